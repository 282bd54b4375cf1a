"""TUN devices: opened, given their offloads, and left behind when the daemon goes.

Structure  `open_tun` runs whole inside the pod's namespace: the kernel looks a device up in the namespace in which
           /dev/net/tun was opened, not in that of the caller of TUNSETIFF.
Invariant  a persistent device outlives its descriptor; opening the name again takes it over with address and routes.
           A descriptor keeps its namespace alive: close it when the namespace's path is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass

import pytun

from canal_udp.errors import DeviceError
from canal_udp.tunnel import netns

_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNGETIFF = 0x800454D2
_VNET_HDR_SIZE = 10

# linux/if_tun.h TUN_F_*; the kernel takes all USO bits or none
_CSUM, _TSO4, _TSO6, _USO4, _USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
_OFFLOADS = (
    (_CSUM | _TSO4 | _TSO6 | _USO4 | _USO6, ("csum", "tso4", "tso6", "uso4", "uso6")),
    (_CSUM | _TSO4 | _TSO6, ("csum", "tso4", "tso6")),
    (_CSUM, ("csum",)),
    (0, ()),
)
_IFNAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")


@dataclass(frozen=True, slots=True)
class Tun:
    """An open TUN. thread: any; `close` once, after the data plane let go of `fd`."""

    ifname: str
    fd: int
    offloads: tuple[str, ...]
    netns: str | None
    inode: tuple[int, int] | None
    device: pytun.TunTapDevice  # owns fd, so it must live as long

    @property
    def alive(self) -> bool:
        """Tell whether the device still exists under its name."""
        try:
            answer = fcntl.ioctl(self.fd, _TUNGETIFF, bytes(40))
        except OSError:
            return False
        return bool(answer[:16].rstrip(b"\0").decode("ascii", "replace") == self.ifname)

    def close(self, *, keep: bool) -> None:
        """Close the descriptor; the device stays in its namespace if `keep`."""
        try:
            if not keep:
                self.device.persist(False)
        except OSError as error:
            if error.errno != errno.EBADFD:  # someone deleted the device: nothing to take back
                raise DeviceError(f"{self.ifname}: {error}") from error
        finally:
            self.device.close()


def check_ifname(ifname: str) -> str:
    """Return `ifname` if the kernel would take it literally.

    Source     the kernel expands `%d` and cuts after 15 bytes; `.` and `..` are directories of sysfs.
    """
    if not _IFNAME.fullmatch(ifname) or ifname in {".", "..", "all", "default", "lo"}:
        raise DeviceError(f"{ifname!r} is no name for an interface: 1 to 15 of A-Z a-z 0-9 _ . -")
    return ifname


def open_tun(ifname: str, namespace: str | None = None) -> Tun:
    """Open the persistent TUN `ifname`, made if it is not there, inside `namespace`.

    Raises     DeviceError if the name belongs to something else or another process holds the device.
    """
    check_ifname(ifname)
    return netns.run_inside(namespace, lambda: _open(ifname, namespace))


def _open(ifname: str, namespace: str | None) -> Tun:
    try:
        device = pytun.TunTapDevice(name=ifname, flags=pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR)
    except OSError as error:  # pytun.Error is one
        raise DeviceError(_why_not(ifname, namespace, error)) from error
    try:
        fd = device.fileno()
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        os.set_blocking(fd, False)
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_SIZE))
        offloads = _set_offloads(fd)
        device.persist(True)
    except OSError as error:
        device.close()
        raise DeviceError(f"{ifname}: {error}") from error
    return Tun(ifname, fd, offloads, namespace, netns.inode(namespace) if namespace else None, device)


def _set_offloads(fd: int) -> tuple[str, ...]:
    for bits, names in _OFFLOADS:
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, bits)
        except OSError:
            continue
        return names
    return ()


def _why_not(ifname: str, namespace: str | None, error: OSError) -> str:
    code = error.errno
    where = f" in {namespace}" if namespace else ""
    if code == errno.EBUSY:
        return f"{ifname}{where} is in use: another daemon holds this TUN"
    if code == errno.EINVAL:
        return f"{ifname}{where} exists and is no TUN; choose another name or delete it"
    if code in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        return "/dev/net/tun is missing: modprobe tun, or give the container that device"
    if code in {errno.EPERM, errno.EACCES}:
        return f"cannot make {ifname}{where}: CAP_NET_ADMIN is needed (run as root)"
    return f"cannot open the TUN {ifname}{where}: {error}"
