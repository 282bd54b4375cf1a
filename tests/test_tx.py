"""Messages to the underlay before a kernel that refuses them: tests/native/test_tx.c."""

from __future__ import annotations

from pathlib import Path

from native_build import run_native


def test_every_packet_is_sent_or_dropped_once(tmp_path: Path) -> None:
    """Partial sends, refused segmentation, narrow paths, old errors, a socket that stays full."""
    run_native(tmp_path, "test_tx.c", ["tx.c"])
