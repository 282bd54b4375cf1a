"""A folder tells whose files changed, and says so when it cannot."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from canal_udp.control.inotify import LOST, FolderWatch, _names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    return tmp_path / "folder"


@pytest.fixture
def watch(folder: Path) -> Iterator[FolderWatch]:
    found = FolderWatch(folder)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param(lambda folder: None, set(), id="nothing"),
        pytest.param(lambda folder: os.utime(folder / "old"), {"old"}, id="touched"),
        pytest.param(lambda folder: (folder / "new").mkdir(), {"new"}, id="made"),
        pytest.param(lambda folder: (folder / "old").unlink(), {"old"}, id="removed"),
        pytest.param(lambda folder: (folder / "old").rename(folder / "x y"), {"old", "x y"}, id="renamed"),
        pytest.param(lambda folder: (folder / "old").rename(folder.parent / "away"), {"old"}, id="moved away"),
        pytest.param(lambda folder: (folder / "old").write_text("x"), set(), id="written"),
        pytest.param(lambda folder: folder.rename(folder.parent / "other"), {LOST}, id="the folder moved"),
    ],
)
def test_what_is_told(folder: Path, watch: FolderWatch, change: Callable[[Path], object], names: set[str]) -> None:
    change(folder)
    assert watch.names() == names
    assert watch.names() == set()


def test_a_folder_that_is_removed(folder: Path, watch: FolderWatch) -> None:
    (folder / "old").unlink()
    folder.rmdir()
    assert watch.names() == {"old", LOST}


def test_a_file_is_no_folder(folder: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for path in (folder / "old", folder / "none"):
        with pytest.raises(OSError, match=r"Not a directory|No such file"):
            FolderWatch(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_queue_that_overflowed() -> None:
    event = struct.Struct("iIII")
    announced = event.pack(1, 0x4, 0, 16) + b"canal.db".ljust(16, b"\0") + event.pack(-1, 0x4000, 0, 0)
    assert _names(announced) == {"canal.db", LOST}
