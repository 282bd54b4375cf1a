"""The entries of the store as text in the state directory: what a daemon enforces that starts while the store is away.

Structure  a line that says what this is and how many follow, then a line for each entry: [kind, key, revision, value]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping

from canal_udp.control.store import KINDS, Entry, Kind, Snapshot
from canal_udp.errors import ConfigError

FILE_NAME = "cluster.jsonl"
_VERSION = 1


def dump(entries: Mapping[Kind, Collection[Entry]], store: str) -> Iterator[bytes]:
    """The lines of the file."""
    yield _line({"version": _VERSION, "store": store, "entries": sum(map(len, entries.values()))})
    for kind, some in entries.items():
        for entry in some:
            yield _line([kind, entry.key, entry.revision, entry.value.decode("utf-8", "surrogateescape")])


def load(content: bytes, source: str, store: str) -> dict[Kind, Snapshot] | None:
    """The entries of a file; None if it is about another store.

    Raises     ConfigError: half a cluster is not a cluster.
    """
    try:
        head, *lines = map(json.loads, content.splitlines())
        if head["version"] != _VERSION:
            raise ConfigError(f"version {head['version']!a}; this program writes {_VERSION}", source=source)
        if head["store"] != store:
            return None
        if head["entries"] != len(lines):
            raise ConfigError(f"{len(lines)} entries of {head['entries']}", source=source)
        found: dict[Kind, list[Entry]] = {kind: [] for kind in KINDS}
        for kind, key, revision, value in lines:
            found[kind].append(Entry(str(key), value.encode("utf-8", "surrogateescape"), int(revision), 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"not the saved entries of a store: {error!r}", source=source) from error
    return {kind: Snapshot(0, tuple(entries)) for kind, entries in found.items()}


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
