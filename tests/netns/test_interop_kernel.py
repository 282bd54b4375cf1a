"""Our daemon against the kernel's VXLAN device, programmed as flannel programs it; both ways, both underlay profiles.

pod p ─TUN─ node a (daemon) ───veth 1500, 192.168.1.0/24 fd00:1::/64─── node k (flannel.1, flannel-v6.1) ─bridge─ pod q
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import GRE
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Raw

from canal_udp.lab.traffic import ping
from tests.netns.bed import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    IPV6_MTU_DISCOVER,
    Bed,
    laboratory,
    wait,
)

LAB = """
networks:
  core: {{subnets: [192.168.1.0/24, "fd00:1::/64"], joint: direct, profile: {profile}}}
overlay: {{network: 10.244.0.0/16, network6: "fd10:244::/48", encap: vxlan}}
nodes:
  a: {{pods: [p]}}
  k: {{kind: kernel-vxlan, pods: [q]}}
"""
WAYS = [pytest.param("p", "q", id="to the kernel"), pytest.param("q", "p", id="from the kernel")]
FAMILIES = [pytest.param(4, id="IPv4"), pytest.param(6, id="IPv6")]


@pytest.fixture(scope="module", params=["wire", "native"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB.format(profile=request.param), "t-interop", tmp_path_factory.mktemp("lab")) as bed:
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    yield shared
    shared.settle()


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ping(bed: Bed, source: str, target: str, family: int) -> None:
    assert ping(bed.space(source), bed.ip(target, family))


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize(
    ("family", "size_bytes"), [pytest.param(4, 200 << 20, id="IPv4"), pytest.param(6, 50 << 20, id="IPv6")]
)
def test_tcp_transfer(bed: Bed, source: str, target: str, family: int, size_bytes: int) -> None:
    """Nothing is lost, doubled, moved or changed, and no packet was dropped for another reason than a full queue."""
    before = bed.drops("a")
    bed.transfer(source, target, size_bytes, family)
    bed.settle()
    new = {reason for reason, count in bed.drops("a").items() if count > before.get(reason, 0)}
    assert new <= {"martian", "tx_again"}


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_udp_of_every_size(bed: Bed, source: str, target: str, family: int) -> None:
    """From 1 to 9000 bytes there and back; what exceeds the MTU travels as fragments of the inner packet."""
    data = random.Random(family).randbytes(9000)
    with bed.sock(source, family) as client, bed.receiver(target, family) as server:
        if family == 4:
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        client.connect(server.getsockname()[:2])
        if family == 6:
            learn_path_mtu(bed)  # the first packet that is too big tells the sender, and is lost
        for size in range(1, 9001):
            client.send(data[:size])
            seen, back = server.recvfrom(65536)
            assert seen == data[:size]
            server.sendto(seen, back)
            assert client.recv(65536) == data[:size]


def exchange(client: socket.socket, server: socket.socket, data: bytes) -> None:
    """Send on a connection while reading its other end; what arrives is what was sent."""
    found = bytearray()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.sendall, data)
        while len(found) < len(data) and (part := server.recv(1 << 20)):
            found += part
        sent.result()
    assert bytes(found) == data


def learn_path_mtu(bed: Bed) -> None:
    """Let pod p know that its IPv6 peer is behind a narrower path."""
    bed.run("p", "ip -6 route flush cache")
    with bed.sock("p", 6) as prober:
        path_mtu(prober, bed.ip("q", 6), 1450)


def path_mtu(prober: socket.socket, target: str, size: int) -> int:
    """What the sender's stack believes of the path after one packet of `size` bytes that may not be fragmented."""
    level, discover, mtu, header = (41, IPV6_MTU_DISCOVER, 24, 48) if ":" in target else (0, IP_MTU_DISCOVER, 14, 28)
    prober.setsockopt(level, discover, IP_PMTUDISC_DO)
    prober.connect((target, 9))
    before: int = prober.getsockopt(level, mtu)
    prober.send(bytes(size - header))
    wait(lambda: prober.getsockopt(level, mtu) < before, lambda: "no answer that the packet is too big")
    after: int = prober.getsockopt(level, mtu)
    return after


def test_too_big_is_told(bed: Bed) -> None:
    """The pod's MTU fits an IPv4 underlay; over IPv6 the path is narrower, and the sender learns by how much."""
    bed.run("p", "ip -6 route flush cache")
    with bed.sock("p", 6) as prober, bed.dropping("a", too_big=1):
        assert path_mtu(prober, bed.ip("q", 6), 1450) == 1430


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize(
    "proto", [pytest.param(132, id="SCTP"), pytest.param(47, id="GRE"), pytest.param(253, id="experimental")]
)
def test_other_protocols(bed: Bed, source: str, target: str, proto: int) -> None:
    """A protocol that the kernels need not know passes byte for byte."""
    made = {
        132: SCTP(sport=5000, dport=6000, tag=0) / SCTPChunkInit(init_tag=7),
        47: GRE() / IP(src="10.9.9.1", dst="10.9.9.2") / Raw(b"inside"),
        253: Raw(bytes(range(256))),
    }[proto]
    with (
        bed.sock(source, 4, socket.SOCK_RAW, proto) as client,
        bed.sock(target, 4, socket.SOCK_RAW, proto) as server,
    ):
        client.sendto(bytes(made), (bed.ip(target), 0))
        assert IP(server.recv(65536)).payload.build() == bytes(made)


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_small_segments(bed: Bed, source: str, target: str) -> None:
    """A superpacket of tiny segments holds more of them than one send takes; it must come in parts."""
    data = random.Random(3).randbytes(1 << 20)
    with bed.sock(target, 4, socket.SOCK_STREAM) as listener, bed.sock(source, 4, socket.SOCK_STREAM) as client:
        for one in (listener, client):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 100)
        listener.bind((bed.ip(target), 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server, bed.dropping("a"):
            exchange(client, server, data)


@pytest.mark.parametrize("family", FAMILIES)
def test_path_gets_narrower(bed: Bed, family: int) -> None:
    """The underlay's route says less than its interface: transfers go on, senders are told, the rest is fragmented."""
    via, narrow, inner = ("192.168.1.2/32", 1400, 1350) if family == 4 else ("fd00:1::2/128", 1400, 1330)
    data = random.Random(family).randbytes(9000)
    bed.run("a", f"ip -{family} route add {via} dev eth0 mtu {narrow}")
    try:
        bed.transfer("p", "q", 20 << 20, family)
        bed.settle()
        bed.run("p", f"ip -{family} route flush cache")
        with bed.sock("p", family) as prober, bed.dropping("a", too_big=1):
            assert path_mtu(prober, bed.ip("q", family), 1450 if family == 4 else 1400) == inner
        with bed.sock("p") as client, bed.receiver("q") as server, bed.dropping("a"):
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            for size in (1322, 1323, 1400, 1422, 1423, 9000) if family == 4 else ():
                client.sendto(data[:size], server.getsockname())
                assert server.recv(65536) == data[:size]
    finally:
        bed.run("a", f"ip -{family} route del {via} dev eth0")
