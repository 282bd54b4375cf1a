"""Work inside another network namespace, without moving this process there.

Structure  `setns` changes one thread, so the work runs in a short-lived thread that enters, works and ends; no fork,
           and the loop's own thread never leaves home.
Invariant  a namespace is known by `identity`, not by its path: a path can be taken by the next pod, and inode numbers
           of dead namespaces are handed out again at once.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from canal_udp.errors import DeviceError

OWN = "/proc/self/ns/net"  # this process's namespace, as a path

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_SO_NETNS_COOKIE = 71  # Linux >= 5.14
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")

_T = TypeVar("_T")


def resolve(netns: str) -> str:
    """Return the path of a namespace given as a path, a process id, or a name of `ip netns`."""
    if netns.startswith("/"):
        return netns
    if netns.isascii() and netns.isdigit():
        return f"/proc/{netns}/ns/net"
    if not _NAME.fullmatch(netns):
        raise DeviceError(f"{netns!r} is no name of a network namespace; give its name, its path or a process id")
    return f"/run/netns/{netns}"


def run_inside(path: str | None, work: Callable[[], _T]) -> _T:
    """Return `work()`, called inside the namespace at `path` (None: this one).

    Raises     DeviceError if there is no network namespace at `path`; whatever `work` raises.
    """
    if path is None:
        return work()
    fd = _open(path)
    try:
        return _in_thread(lambda: _enter(fd, path), work)
    finally:
        os.close(fd)


def run_private(work: Callable[[], _T]) -> _T:
    """Return `work()`, called inside a new namespace that ends with the call."""
    return _in_thread(lambda: _check(_libc().unshare(_CLONE_NEWNET), "cannot make a network namespace"), work)


def identity(path: str) -> str:
    """Return what tells this namespace from any other that this path ever named.

    Source     SO_NETNS_COOKIE counts up from boot; where the kernel lacks it the inode number has to do.
    """
    return identity_and(path, lambda: None)[0]


def identity_and(path: str, work: Callable[[], _T]) -> tuple[str, _T]:
    """Return what tells a namespace from any other, and `work()`, called inside."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    cookie, found = run_inside(path, lambda: (_cookie(), work()))
    return f"{boot}/{f'inode-{inode(path)}' if cookie is None else cookie}", found


def inode(path: str) -> tuple[int, int] | None:
    """Return what `path` leads to now, cheap enough for every tick; None if nothing.

    Invariant  while we hold a descriptor of the namespace (an open TUN does) the kernel gives its inode to no other.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _cookie() -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError:
            return None


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceError(f"network namespace {path}: {error.strerror}") from error
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise DeviceError(f"{path} is no network namespace")
    return fd


def _enter(fd: int, path: str) -> None:
    _check(_libc().setns(fd, _CLONE_NEWNET), f"cannot enter the network namespace {path}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise DeviceError(f"{what}: {os.strerror(ctypes.get_errno())}")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _in_thread(enter: Callable[[], None], work: Callable[[], _T]) -> _T:
    results: list[_T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter()
            results.append(work())
        except BaseException as error:  # handed to the caller, who waits right below
            errors.append(error)

    thread = threading.Thread(target=body, name="canal-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
