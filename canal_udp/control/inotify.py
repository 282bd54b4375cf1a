"""A folder that tells which of its files were touched, made, moved or removed (inotify(7)).

Structure    folder ─► kernel queue ─► fileno() readable ─► names() ─► {file name, ...}, LOST if some are missing
Invariant    Nothing in the folder is opened: a file's own locks are not disturbed.
Limits       A network file system does not tell what other machines do; the kernel bounds the watches of a user.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

LOST = ""  # stands for every name: announcements were dropped, or the folder itself is gone

_ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x4, 0x40, 0x80, 0x100, 0x200
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x0100_0000
_WANTED = _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_GONE = _UNMOUNT | _OVERFLOW | _IGNORED | _DELETE_SELF | _MOVE_SELF
_HEAD = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name with its padding
_READ_BYTES = 1 << 14


class FolderWatch:
    """thread: any, one at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError: no such folder, or no watches left."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _checked(libc.inotify_add_watch(self._fd, os.fsencode(folder), _WANTED))
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def names(self) -> set[str]:
        """Return whose names were announced since the last call."""
        found: set[str] = set()
        while True:
            try:
                announced = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return found
            found |= _names(announced)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _names(announced: bytes) -> set[str]:
    found, at = set(), 0
    while at < len(announced):
        _, mask, _, size = _HEAD.unpack_from(announced, at)
        at += _HEAD.size + size
        name = announced[at - size : at].rstrip(b"\0")
        found.add(LOST if mask & _GONE else os.fsdecode(name))
    return found


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
