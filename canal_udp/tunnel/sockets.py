"""Underlay sockets: UDP, with everything set that the data plane counts on.

Structure  per address family and encapsulation one socket that receives; vxlan sends from eight more, whose ports
           spread the flows over paths and queues (one socket would mean one source port, so one path).
Invariant  Don't Fragment is set on every outer packet: of a path too narrow we hear, there are no silent fragments.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from canal_udp.errors import DeviceError

TX_SOCKETS = 8
_BUFFER_BYTES = 8 << 20
_TX_ONLY_RCVBUF_BYTES = 64 << 10  # nothing but ICMP errors is queued there

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 32, 33, 26
_BPF_RET = 0x06
_UDP_GRO = 104
_IP_MTU_DISCOVER, _IP_RECVERR, _IP_RECVTOS, _IP_PMTUDISC_DO = 10, 11, 13, 2
_IP_MTU, _IPV6_MTU, _DISCARD = 14, 24, 9
_IPV6_MTU_DISCOVER, _IPV6_RECVERR, _IPV6_PMTUDISC_DO = 23, 25, 2

Encap = Literal["udp", "vxlan"]


@dataclass(frozen=True, slots=True)
class UnderlaySocket:
    """An open socket and what the data plane has to know about it."""

    socket: socket.socket
    encap: Encap
    family: int  # 4 or 6
    tx_only: bool
    gro: bool

    @property
    def fd(self) -> int:
        """The descriptor, owned by `socket`."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket, after the data plane let go of it."""
        self.socket.close()


def open_underlay(
    address: IPv4Address | IPv6Address, port: int, encap: Encap, *, tx_only: bool = False, gro: bool = True
) -> UnderlaySocket:
    """Return a socket bound to the underlay address; `tx_only` ones take any port.

    Raises     DeviceError, naming the address and who may hold the port.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _set_options(sock, address.version, tx_only)
        gro = gro and not tx_only and _try_option(sock, socket.IPPROTO_UDP, _UDP_GRO, 1)
        sock.bind((str(address), 0 if tx_only else port))
    except OSError as error:
        sock.close()
        raise DeviceError(_why_not(address, port, error)) from error
    return UnderlaySocket(sock, encap, address.version, tx_only, gro)


def open_underlay_set(
    address: IPv4Address | IPv6Address, port: int, encap: Encap, *, gro: bool
) -> list[UnderlaySocket]:
    """Return all sockets of one encapsulation and family; none if one of them fails."""
    opened: list[UnderlaySocket] = []
    try:
        opened.append(open_underlay(address, port, encap, gro=gro))
        if encap == "vxlan":
            opened += [open_underlay(address, port, encap, tx_only=True) for _ in range(TX_SOCKETS)]
    except DeviceError:
        for sock in opened:
            sock.close()
        raise
    return opened


def path_mtu(address: IPv4Address | IPv6Address) -> int:
    """Return the largest packet that the kernel sends to an address in one piece.

    Raises     DeviceError when there is no way to it.
    """
    family, level, option = (
        (socket.AF_INET, socket.IPPROTO_IP, _IP_MTU)
        if address.version == 4
        else (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_MTU)
    )
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect((str(address), _DISCARD))
            return sock.getsockopt(level, option)
        except OSError as error:
            raise DeviceError(f"path to {address}: {error.strerror}") from error


def _set_options(sock: socket.socket, version: int, tx_only: bool) -> None:
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_DO)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _BUFFER_BYTES)
    if tx_only:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TX_ONLY_RCVBUF_BYTES)
        _refuse_datagrams(sock)
    else:
        _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _BUFFER_BYTES)


def _refuse_datagrams(sock: socket.socket) -> None:
    """Drop what strangers send to this port: nobody reads it, and it would take the room of the ICMP errors."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))  # keep 0 bytes of every datagram
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _set_buffer(sock: socket.socket, force: int, polite: int, size: int) -> None:
    if not _try_option(sock, socket.SOL_SOCKET, force, size):  # without CAP_NET_ADMIN: as far as the sysctl lets us
        sock.setsockopt(socket.SOL_SOCKET, polite, size)


def _try_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, struct.pack("i", value))
    except OSError:
        return False
    return True


def _why_not(address: IPv4Address | IPv6Address, port: int, error: OSError) -> str:
    where = f"UDP port {port} of {address}"
    if error.errno == errno.EADDRINUSE:
        hint = "ss -ulpn; ip -d link show type vxlan"
        return f"{where} is taken: by another daemon, flanneld or a kernel vxlan device ({hint})"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: the address is not on this host"
    return f"{where}: {error.strerror}"
