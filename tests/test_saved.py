"""The file from which a daemon starts that cannot reach its store."""

from __future__ import annotations

import pytest

from canal_udp.control import saved
from canal_udp.control.store import Entry, Kind, Snapshot
from canal_udp.errors import ConfigError

ENTRIES: dict[Kind, tuple[Entry, ...]] = {
    "endpoints": (Entry("n1/x/a", b'{"a": "\xc3\xa4"}', 7, 0),),
    "policies": (Entry("Tier/_/t", bytes(range(256)), 9, 0), Entry("\n", b"", 1, 0)),
}
CONTENT = b"".join(saved.dump(ENTRIES, "memory://x"))


def test_any_bytes_come_back_as_they_went() -> None:
    found = saved.load(CONTENT, "f", "memory://x")
    assert found == {kind: Snapshot(0, entries) for kind, entries in ENTRIES.items()}


def test_a_file_about_another_store_says_nothing() -> None:
    assert saved.load(CONTENT, "f", "memory://y") is None


def test_half_a_file_is_refused() -> None:
    for size in range(len(CONTENT) - 1):
        with pytest.raises(ConfigError, match=r"^f: "):
            saved.load(CONTENT[:size], "f", "memory://x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "store": "memory://x", "entries": 1}\n["secrets", "k", 1, ""]'],
)
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        saved.load(text.encode(), "f", "memory://x")
