"""What a socket receives when a kernel's tunnel sends over veth: superpackets that no wire would carry.

pod p ─TUN─ node a (daemon) ──────────────────────┬──veth as it comes── node k (flannel.1, flannel-v6.1) ─bridge─ pod q
pod s ─TUN─ node strict (verifies inner checksums) ┘

Invariant  each test first shows that the trap is there (on the underlay), then that nobody fell into it (in the pod).
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from canal_udp.encap.codecs import vxlan_pack
from canal_udp.net import parse_mac
from tests.bed import checksums_hold, partial
from tests.netns.bed import UDP_SEGMENT, Bed, drain, laboratory, vxlan_inner

LAB = """
networks:
  core: {subnets: [192.168.1.0/24, "fd00:1::/64"], profile: native}
overlay: {network: 10.244.0.0/16, network6: "fd10:244::/48", encap: vxlan}
nodes:
  a: {pods: [p]}
  k: {kind: kernel-vxlan, pods: [q]}
  strict: {pods: [s], flags: [--strict-checksums]}
"""
FAMILIES = [pytest.param(4, id="IPv4"), pytest.param(6, id="IPv6")]
BAD_SUMS = ("TcpInCsumErrors", "UdpInCsumErrors", "IpInHdrErrors", "Ip6InHdrErrors", "Udp6InCsumErrors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB, "t-kernel", tmp_path_factory.mktemp("lab")) as bed:
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    """Whatever comes, no stack behind us finds a wrong checksum."""
    before = bad_sums(shared)
    yield shared
    shared.settle()
    assert bad_sums(shared) == before


def bad_sums(bed: Bed) -> dict[str, int]:
    return {f"{pod} {name}": bed.nstat(pod, name) for pod in ("p", "s") for name in BAD_SUMS}


def inner_packets(frames: list[bytes]) -> list[Packet]:
    """The overlay packets of captured underlay frames."""
    return [(IP if raw[0] >> 4 == 4 else IPv6)(raw) for raw in map(vxlan_inner, frames) if raw]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pod", ["p", "s"])
def test_partial_checksums(bed: Bed, family: int, pod: str) -> None:
    """A SYN and a datagram whose inner checksums nobody ever finished reach the pod as if they had been."""
    with bed.capture("k", "eth0") as wire:
        with bed.stream("q", pod, family) as (client, server):
            client.sendall(b"ping")
            assert server.recv(16) == b"ping"
        with bed.sock("q", family) as sender, bed.receiver(pod, family) as receiver:
            sender.sendto(b"datagram", receiver.getsockname()[:2])
            assert receiver.recv(16) == b"datagram"
        seen = inner_packets(wire.frames())
    assert any(TCP in packet and packet[TCP].flags.S and not checksums_hold(bytes(packet)) for packet in seen)
    assert any(UDP in packet and not checksums_hold(bytes(packet)) for packet in seen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("pod", "node"), [("p", "a"), ("s", "strict")])
def test_superpacket_without_a_size(bed: Bed, family: int, pod: str, node: str) -> None:
    """TCP superpackets of the kernel's tunnel are one datagram larger than the MTU, with no control message."""
    before = bed.counter(node, "rx_superpackets")
    with bed.capture("k", "eth0") as wire:
        # More than once: the kernel's own veths and bridge are one queue per CPU, and a busy machine may mix them.
        assert any(bed.disorder("q", pod, lambda: bed.transfer("q", pod, 8 << 20, family))[0] == 0 for _ in range(5))
        assert max(map(len, wire.frames())) > 1514
    assert bed.counter(node, "rx_superpackets") > before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sender", ["q", "k"])
def test_size_of_the_inner_superpacket(bed: Bed, family: int, sender: str) -> None:
    """5500 bytes as datagrams of 1000, sent at once by a pod or its host: the size that comes is the inner one."""
    data = random.Random(family).randbytes(5500)
    with bed.capture("k", "eth0") as wire, bed.receiver("p", family) as receiver, bed.sock(sender, family) as client:
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        client.sendto(data, receiver.getsockname()[:2])
        assert drain(receiver, 6) == [data[at : at + 1000] for at in range(0, 5500, 1000)]
        assert max(map(len, wire.frames())) > 5500


@pytest.mark.parametrize("features", ["tx-udp_tnl-segmentation on", "tx-udp_tnl-segmentation off"])
def test_superpacket_of_a_tap(bed: Bed, features: str) -> None:
    """Six segments, given to a TAP as one tunnel superpacket, whole or cut by the kernel, are the pod's next bytes."""
    data = random.Random(6).randbytes(6000)
    bed.run("k", f"ethtool -K eth0 {features}")
    try:
        with bed.capture("k", "eth0", outgoing=False) as answers, bed.stream("q", "p") as (_, server):
            (syn_ack,) = [packet for packet in inner_packets(answers.frames()) if packet[TCP].flags.A]
            tap = bed.inside("k", open_tunnel_tap)
            try:
                bed.run("k", f"ip link set tap0 address {TAP_MAC} up")
                for key in ("tap0.accept_local=1", "tap0.rp_filter=0", "all.rp_filter=0"):
                    bed.run("k", f"sysctl -qw net.ipv4.conf.{key}")
                with bed.capture("k", "eth0") as wire:
                    os.write(tap, tunnel_superpacket(bed, syn_ack, data, 1000))
                    found = b""
                    while len(found) < len(data):
                        found += server.recv(65536)
                    sizes = [len(packet[TCP].payload) for packet in inner_packets(wire.frames()) if packet[TCP].payload]
            finally:
                os.close(tap)
    finally:
        bed.run("k", "ethtool -K eth0 tx-udp_tnl-segmentation on")
    assert found == data
    assert sizes == ([6000] if features.endswith("on") else [1000] * 6)


# ---- a TAP that takes tunnel superpackets ----------------------------------------------------------------------------

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UDP_TUNNEL_GSO = 0x01, 0x02, 0x04, 0x80
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TAP_MAC = "02:00:00:00:c0:de"
NEEDS_CSUM, GSO_TCPV4, GSO_UDP_TUNNEL_IPV4 = 1, 1, 0x20


def open_tunnel_tap() -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", 24))
    try:
        fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_UDP_TUNNEL_GSO)
    except OSError:
        os.close(tap)
        pytest.skip("kernel: no TUN_F_UDP_TUNNEL_GSO before Linux 6.17")
    return tap


def tunnel_superpacket(bed: Bed, syn_ack: Packet, data: bytes, segment_bytes: int) -> bytes:
    """What a TAP takes: the vnet header with both tunnel offsets, then the frame with the inner checksum partial."""
    inner = (
        IP(src=syn_ack.dst, dst=syn_ack.src, id=1, flags="DF")
        / TCP(sport=syn_ack.dport, dport=syn_ack.sport, flags="PA", seq=syn_ack.ack, ack=syn_ack[TCP].seq + 1)
        / data
    )
    frame = (
        Ether(dst=TAP_MAC, src="02:00:00:00:00:01")
        / IP(src="192.168.1.2", dst="192.168.1.1")
        / UDP(sport=50000, dport=8472, chksum=0)
        / Raw(vxlan_pack(partial(inner), vni=1, dst_mac=parse_mac(bed.status("a")["vtep_mac"]), src_mac=bytes(6)))
    )
    outer_th, inner_nh = 34, 64
    head = inner_nh + 40
    offsets = struct.pack("<HHH", segment_bytes, inner_nh + 20, 16)
    vnet = bytes((NEEDS_CSUM, GSO_TCPV4 | GSO_UDP_TUNNEL_IPV4)) + struct.pack("<H", head) + offsets
    return vnet + bytes(10) + struct.pack("<HH", outer_th, inner_nh) + bytes(frame)
