"""Find out what UDP_SEGMENT and UDP_GRO really do on this kernel: by sending, not by asking.

Structure  loopback sockets in a namespace of their own (no firewall, no one else's packets): one superpacket is sent
           with UDP_SEGMENT to a plain socket (the kernel must cut it) and to one with UDP_GRO (sizes and bytes must
           come back). What a TUN is given is found out there too.
Source     kernels that take the option and then mangle were seen in the field: 6.6.44, 6.17 guests, 7.0.
"""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import dataclass, replace

from canal_udp.errors import DeviceError
from canal_udp.tunnel import netns
from canal_udp.tunnel.device import open_tun
from canal_udp.tunnel.netlink import Netlink

_UDP_SEGMENT, _UDP_GRO = 103, 104
_SEGMENT_BYTES, _SEGMENTS, _TAIL_BYTES = 1000, 12, 500
_LOOPBACK_INDEX = 1
_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Offloads:
    """What UDP offloads do here. `segments_max`: datagrams that one UDP_SEGMENT send may hold."""

    udp_gso: bool
    udp_gro: bool
    segments_max: int
    reason: str
    tun: tuple[str, ...] = ()  # offloads that the kernel gives a TUN

    @property
    def mode(self) -> str:
        """One word for `canal status`."""
        return {(True, True): "gso+gro", (True, False): "gso", (False, True): "gro"}.get(
            (self.udp_gso, self.udp_gro), "single"
        )


def run() -> Offloads:
    """Return what was found; never raises for what the kernel cannot do."""
    try:
        return netns.run_private(_with_loopback)
    except DeviceError:  # no CAP_SYS_ADMIN: this namespace's own loopback has to do
        return test_here()


def _with_loopback() -> Offloads:
    with Netlink() as netlink:
        netlink.set_link(_LOOPBACK_INDEX, up=True)
    tun = open_tun("probe")
    tun.close(keep=False)
    return replace(test_here(), tun=tun.offloads)


def test_here() -> Offloads:
    """Return what this thread's namespace does with UDP offloads."""
    gso = _problem_of_gso()
    gro = _problem_of_gro() if not gso else ""
    problems = [problem for problem in (gso, gro) if problem]
    return Offloads(
        udp_gso=not gso,
        udp_gro=not gro,
        segments_max=_segments_max() if not gso else 1,
        reason="; ".join(problems) or "self-test passed: superpackets are cut and joined right",
    )


def _payload() -> bytes:
    return random.Random(1).randbytes(_SEGMENT_BYTES * _SEGMENTS + _TAIL_BYTES)


def _send(receiver: socket.socket, payload: bytes, segment_bytes: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_TIMEOUT_S)
        control = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", segment_bytes))]
        sender.sendmsg([payload], control, 0, receiver.getsockname())


def _receiver() -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    receiver.settimeout(_TIMEOUT_S)
    receiver.bind(("127.0.0.1", 0))
    return receiver


def _problem_of_gso() -> str:
    payload = _payload()
    wanted = [payload[at : at + _SEGMENT_BYTES] for at in range(0, len(payload), _SEGMENT_BYTES)]
    try:
        with _receiver() as receiver:
            _send(receiver, payload, _SEGMENT_BYTES)
            found = [receiver.recv(65536) for _ in wanted]
    except OSError as error:
        return f"UDP_SEGMENT fails: {error.strerror or error}"
    return "" if found == wanted else "UDP_SEGMENT mangles: datagrams came with wrong sizes or bytes"


def _problem_of_gro() -> str:
    payload = _payload()
    try:
        with _receiver() as receiver:
            receiver.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            _send(receiver, payload, _SEGMENT_BYTES)
            found = b""
            while len(found) < len(payload):
                part, control, _, _ = receiver.recvmsg(65536, 64)
                sizes = [
                    struct.unpack("i", data[:4])[0] for level, kind, data in control if (level, kind) == (17, _UDP_GRO)
                ]
                if len(part) > _SEGMENT_BYTES and sizes != [_SEGMENT_BYTES]:
                    return "UDP_GRO mangles: a joined datagram came without its segment size"
                found += part
    except OSError as error:
        return f"UDP_GRO fails: {error.strerror or error}"
    return "" if found == payload else "UDP_GRO mangles: wrong bytes"


def _segments_max() -> int:
    """Return 128, or 64 before Linux 6.10."""
    try:
        with _receiver() as receiver:
            _send(receiver, bytes(100 * 128), 100)
    except OSError:
        return 64
    return 128
