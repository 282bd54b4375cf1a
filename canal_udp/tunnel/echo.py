"""Echo requests of a given size that may not be fragmented, and their answers.

Structure  a raw ICMP socket per family, its identifier random; the request's sequence number comes back.
Invariant  the kernel's own memory of path MTUs has no say (IP_PMTUDISC_PROBE); answers to others are not taken.
Source     RFC 792, RFC 4443: type, code, checksum, identifier, sequence number, data.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from canal_udp.actions import IPAddress
from canal_udp.errors import DeviceError

_HEADER = struct.Struct("!BBHHH")
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_IP_HEADER = {4: 20, 6: 40}
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_RECEIVE_BUFFER = 1 << 20  # the answers of a search come together
_ALL = 0xFFFFFFFF


class EchoSocket:
    """Asks and hears the hosts of one address family. thread: any, one at a time."""

    def __init__(self, version: int) -> None:
        self.version = version
        family, proto = (
            (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        )
        self._identifier = secrets.randbits(16)
        try:
            self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, proto)
            self._set_options()
        except OSError as error:
            raise DeviceError(f"raw ICMP socket for IPv{version}: {error.strerror}") from error

    def _set_options(self) -> None:
        sock, reply = self._socket, _REPLY[self.version]
        if self.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("I", _ALL & ~(1 << reply)))
        else:
            words = [_ALL & ~(1 << (reply & 31)) if word == reply >> 5 else _ALL for word in range(8)]
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("8I", *words))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def send(self, target: IPAddress, size_bytes: int, number: int) -> None:
        """Send one request as a packet of `size_bytes`; what the kernel refuses is a packet that was lost."""
        data = bytes(size_bytes - _IP_HEADER[self.version] - _HEADER.size)
        message = _HEADER.pack(_REQUEST[self.version], 0, 0, self._identifier, number) + data
        if self.version == 4:  # the kernel sums only ICMPv6
            head = _HEADER.pack(_REQUEST[4], 0, _checksum(message), self._identifier, number)
            message = head + data
        try:
            self._socket.sendto(message, (str(target), 0))
        except OSError:
            return

    def receive(self) -> Iterator[tuple[int, IPAddress]]:
        """Yield number and sender of the answers that came."""
        while True:
            try:
                message, sender = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier request
                continue
            if self.version == 4:
                message = message[(message[0] & 15) * 4 :]
            if len(message) < _HEADER.size:
                continue
            kind, _, _, identifier, number = _HEADER.unpack_from(message)
            if (kind, identifier) == (_REPLY[self.version], self._identifier):
                yield number, ip_address(sender[0].partition("%")[0])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _checksum(message: bytes) -> int:
    """RFC 1071, of a message whose checksum field is zero."""
    padded = message + bytes(len(message) & 1)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
