"""A node without a kernel: two pods, the host, two peers of each kind, and packets pushed through the whole pipeline.

pod a  10.1.1.2  fd00:1:1::2 ─┐                     ┌─ peer x  192.0.2.2  vxlan  10.1.2.0/24  fd00:1:2::/64
pod b  10.1.1.3  fd00:1:1::3 ─┤  node 192.0.2.1     ├─ peer y  192.0.2.3  udp    10.1.3.0/24
host   canal0  (10.1.1.0) ────┘  10.1.1.0/24        └─ peer z  2001:db8::4 vxlan 10.1.4.0/24
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import TracebackType

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from canal_udp.dataplane import Dataplane, DataplaneConfig
from canal_udp.encap.codecs import Unpacked, vxlan_pack, vxlan_unpack
from canal_udp.encap.forwarding import Forwarding, Route, Vtep, vtep_key
from canal_udp.policy.compiled import Compiled
from canal_udp.readings import Frame

MAC = bytes.fromhex("02000000a001")
PEER_MAC = {"x": bytes.fromhex("02000000a002"), "z": bytes.fromhex("02000000a004")}
X = Vtep(ip_address("192.0.2.2"), 8472, PEER_MAC["x"], "vxlan", 1450, 2)
Y = Vtep(ip_address("192.0.2.3"), 8285, bytes(6), "udp", 1472, 3)
Z = Vtep(ip_address("2001:db8::4"), 8472, PEER_MAC["z"], "vxlan", 1430, 4)
GSO = {"none": 0, "tcp4": 1, "tcp6": 4, "udp": 5}


def routes(*extra: Route) -> tuple[Route, ...]:
    def route(prefix: str, kind: str, key: str = "", local: bool = False) -> Route:
        return Route(ip_network(prefix), kind, key, local)  # type: ignore[arg-type]

    return (
        *(route(f"10.1.1.{2 + i}/32", "pod", name, True) for i, name in enumerate("ab")),
        *(route(f"fd00:1:1::{2 + i}/128", "pod", name, True) for i, name in enumerate("ab")),
        *(route(prefix, "host", "", True) for prefix in ("10.1.1.0/24", "fd00:1:1::/64")),
        *(route(prefix, "vtep", vtep_key(X)) for prefix in ("10.1.2.0/24", "fd00:1:2::/64")),
        route("10.1.3.0/24", "vtep", vtep_key(Y)),
        route("10.1.4.0/24", "vtep", vtep_key(Z)),
        *(route(prefix, "reject") for prefix in ("10.1.0.0/16", "fd00:1::/48")),
        *(route(prefix, "host") for prefix in ("0.0.0.0/0", "::/0")),
        *extra,
    )


FORWARDING = Forwarding(
    generation=1,
    router4=ip_address("10.1.1.0"),  # type: ignore[arg-type]
    router6=ip_address("fd00:1:1::"),  # type: ignore[arg-type]
    mac=MAC,
    vni=1,
    mss_clamp=True,
    vteps=(X, Y, Z),
    routes=routes(),
)


def vnet(
    gso: str = "none", gso_size: int = 0, csum: bool = False, start: int = 0, offset: int = 0, flags: int = 0
) -> bytes:
    return struct.pack("<BBHHHH", csum | flags, GSO[gso], start + 20 if gso != "none" else 0, gso_size, start, offset)


def from_tun(port: int, packet: Packet | bytes, header: bytes = bytes(10)) -> Frame:
    return Frame(port, header + bytes(packet))


def partial(packet: Packet) -> bytes:
    """The packet as a local stack gives it to a TUN: the transport checksum holds the pseudo-header sum only."""
    packet = packet.__class__(bytes(packet))
    l4 = packet[TCP] if TCP in packet else packet[UDP]
    size = len(bytes(l4))
    ip = packet[IP] if IP in packet else packet[IPv6]
    src, dst = ip_address(ip.src).packed, ip_address(ip.dst).packed
    total = sum(struct.unpack(f"!{len(src)}H", src + dst)) + (6 if TCP in packet else 17) + size
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    raw = bytearray(bytes(packet))
    at = len(raw) - size + (16 if TCP in packet else 6)
    raw[at : at + 2] = total.to_bytes(2, "big")
    return bytes(raw)


class Bed:
    """The node. `push` runs frames through the pipeline and checks that no packet was lost uncounted."""

    def __init__(
        self,
        forwarding: Forwarding = FORWARDING,
        *,
        policy: Compiled | None = None,
        **config: bool | int | tuple[int, int],
    ) -> None:
        settings = {"seed": (1, 2), "ct_max": 4096, "ct_share": 1024, "frag_max": 64, **config}
        self.dp = Dataplane(DataplaneConfig(**settings))  # type: ignore[arg-type]
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(6)]
        self.a = self.dp.add_pod("a", self.fds[0], 1450, 10)
        self.b = self.dp.add_pod("b", self.fds[1], 1450, 11)
        self.host = self.dp.add_host(self.fds[2], 1450)
        self.vxlan = self.dp.add_underlay(self.fds[3], "vxlan", 4)
        self.udp = self.dp.add_underlay(self.fds[4], "udp", 4)
        self.vxlan6 = self.dp.add_underlay(self.fds[5], "vxlan", 6)
        self.forwarding = forwarding
        self.policy = policy
        self.dp.publish(forwarding, policy)
        self.now_ms = 1_000_000
        self.generation = forwarding.generation

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.dp.check_conservation()
        self.dp.close()
        for fd in self.fds:
            os.close(fd)

    def push(self, *frames: Frame) -> list[Frame]:
        out = self.dp.process(frames, self.now_ms)
        self.dp.check_conservation()
        return out

    def republish(self, *, policy: Compiled | None = None, **changes: object) -> None:
        """With another policy, or the same one."""
        self.generation += 1
        self.policy = policy or self.policy
        self.forwarding = replace(self.forwarding, generation=self.generation, **changes)  # type: ignore[arg-type]
        self.dp.publish(self.forwarding, self.policy)

    def from_peer(self, inner: Packet | bytes, peer: Vtep = X, **changes: int) -> Frame:
        """What a socket receives when `peer` sends `inner`."""
        port = {"vxlan4": self.vxlan, "udp4": self.udp, "vxlan6": self.vxlan6}[f"{peer.encap}{peer.addr.version}"]
        return Frame(port, wrap(bytes(inner), peer), addr=peer.addr, udp_port=40000, **changes)

    def drops(self) -> dict[str, int]:
        return {reason: count for reason, count in self.dp.drops().items() if count}


def wrap(inner: bytes, peer: Vtep) -> bytes:
    """An outer payload from `peer` to us."""
    if peer.encap == "udp":
        return inner
    return vxlan_pack(inner, vni=1, dst_mac=MAC, src_mac=peer.mac)


def unwrap(frame: Frame, peer: Vtep) -> Iterator[bytes]:
    """The inner packets of a frame that goes to `peer`, one a segment."""
    step = frame.gso_size or len(frame.data)
    for at in range(0, len(frame.data), step):
        payload = frame.data[at : at + step]
        found = vxlan_unpack(payload, vni=1, mac=peer.mac) if peer.encap == "vxlan" else Unpacked(payload)
        assert found.drop == "none", found.drop
        yield found.inner


def checksums_hold(inner: bytes) -> bool:
    """Does scapy compute the same checksums?"""
    packet = (IP if inner[0] >> 4 == 4 else IPv6)(inner)
    fresh = packet.copy()
    for layer in (IP, TCP, UDP):
        if layer in fresh:
            del fresh[layer].chksum
    return bytes(fresh) == inner
