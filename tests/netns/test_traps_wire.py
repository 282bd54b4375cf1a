"""What goes over the wire between two of our nodes, and in which order it comes out.

pods p p2 ─TUN─ node a ───veth, wire profile: segmented, checksummed, joined again by GRO─── node b ─TUN─ pods r r2
"""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP

from canal_udp.lab.traffic import throughput
from tests import twin_gso
from tests.bed import checksums_hold
from tests.netns.bed import IP_RECVTOS, UDP_SEGMENT, Bed, drain, laboratory, vxlan_inner, wait

LAB = """
networks:
  core: {subnets: [192.168.1.0/24], joint: direct, profile: wire}
overlay: {network: 10.244.0.0/16, network6: "fd10:244::/48", encap: vxlan}
nodes:
  a: {pods: [p, p2]}
  b: {pods: [r, r2]}
"""
FAMILIES = [pytest.param(4, id="IPv4"), pytest.param(6, id="IPv6")]
NOT_ECT, ECT1, ECT0, CE = range(4)
MTU = 1500
VNET_HDR_SIZE = 10
RUNS = 5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB, "t-wire", tmp_path_factory.mktemp("lab")) as bed:
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    yield shared
    shared.settle()


# ---- segments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_on_the_wire(bed: Bed, family: int) -> None:
    """Each superpacket of a pod leaves as the segments that a NIC would have made: ids, lengths, flags, checksums."""
    data = random.Random(family).randbytes(400_000)
    with bed.capture("p", "eth0", vnet=True) as tun, bed.capture("a", "eth0") as wire:
        with bed.stream("p", "r", family) as (client, server), ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.sendall, data)
            found = b""
            while len(found) < len(data):
                found += server.recv(1 << 20)
            sent.result()
        wait(lambda: bed.status("a")["conservation"]["balanced"])
        given, frames = tun.frames(), wire.frames()
    outer = [frame for frame in frames if vxlan_inner(frame)]
    assert found == data
    assert all(len(frame) <= 14 + MTU for frame in frames)
    assert all(IP(frame[14:]).flags == "DF" and checksums_hold(frame[14:]) for frame in outer)
    wanted = [segment for one in given for segment in segments_of(one) if segment[9 if family == 4 else 6] == 6]
    left = [inner for inner in map(vxlan_inner, outer) if inner[9 if family == 4 else 6] == 6]
    assert left[: len(wanted)] == wanted  # one more may have come between the two looks
    assert any(len(one) > 2 * MTU for one in given), "the pod's stack made no superpacket"
    flags = [inner[twin_gso.headers(inner)[1] + 13] for inner in wanted]
    assert sum(bool(flag & twin_gso.FIN) for flag in flags) == 1 and flags.count(0x18) < len(flags) // 4


def segments_of(given: bytes) -> list[bytes]:
    """A captured superpacket, routed one hop and cut by the slow twin."""
    gso_size = struct.unpack_from("<H", given, 4)[0] if given[1] else 0
    packet = bytearray(given[VNET_HDR_SIZE:])
    packet[8 if packet[0] >> 4 == 4 else 7] -= 1
    return twin_gso.segment(bytes(packet), gso_size or len(packet)) or [twin_gso.final(bytes(packet))]


# ---- order -----------------------------------------------------------------------------------------------------------


def test_udp_flows_keep_their_order(bed: Bed) -> None:
    """Four flows at once, sizes mixed, singly and in superpackets: every datagram arrives once and in order."""
    flows, count = [("p", "r"), ("p", "r2"), ("p2", "r"), ("p2", "r2")], 3000
    with ThreadPoolExecutor(len(flows)) as pool, bed.dropping("a"), bed.dropping("b"):
        receivers = [bed.receiver(target) for _, target in flows]
        for seed, ((source, _), receiver) in enumerate(zip(flows, receivers, strict=True)):
            pool.submit(send_numbered, bed.sock(source), receiver.getsockname(), count, seed)
        for receiver in receivers:
            with receiver:
                found = [int.from_bytes(one[:4], "big") for one in drain(receiver, count, 2.0)]
                assert found == list(range(count))


def send_numbered(sender: socket.socket, target: tuple[str, int], count: int, seed: int) -> None:
    rng, number = random.Random(seed), 0
    with sender:
        while number < count:
            size, n = rng.choice((4, 60, 900, 1400)), min(rng.choice((1, 1, 3, 20)), count - number)
            run = b"".join((number + i).to_bytes(4, "big").ljust(size, b".") for i in range(n))
            sender.sendmsg([run], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size))], 0, target)
            number += n


@pytest.mark.parametrize("streams", [1, 4])
def test_tcp_sees_no_reordering(bed: Bed, streams: int) -> None:
    """On a wire that loses nothing no segment arrives before an earlier one."""
    for _ in range(RUNS):
        late, lost = bed.disorder("p", "r", lambda: throughput(bed.space("p"), bed.space("r"), bed.ip("r"), 1, streams))
        if lost <= 0:
            break  # a busy machine empties the wire's queue too late now and then
    assert late == 0


# ---- a pod's queue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [pytest.param(1500, id="three default queues"), pytest.param(9000, id="almost full")])
def test_burst_while_the_daemon_stands_still(bed: Bed, count: int) -> None:
    """What fits the pod's queue waits there and arrives; 500 packets, the default, would not be enough."""
    with bed.receiver("r") as receiver, bed.sock("p") as sender:
        sender.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE: the queue in question is the device's
        sender.sendto(b"first", receiver.getsockname())
        assert receiver.recv(16) == b"first"
        before = tx_dropped(bed, "p")
        with bed.dropping("a"), bed.dropping("b"):
            with bed.stopped("a"):
                for number in range(count):
                    sender.sendto(number.to_bytes(4, "big"), receiver.getsockname())
            found = [int.from_bytes(one, "big") for one in drain(receiver, count, 2.0)]
        assert found == list(range(count))
        assert tx_dropped(bed, "p") == before


def test_burst_beyond_the_queue_is_counted(bed: Bed) -> None:
    """What does not fit is lost, and the device says how much."""
    count = 12_000
    with bed.receiver("r") as receiver, bed.sock("p") as sender:
        sender.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)
        before = tx_dropped(bed, "p")
        with bed.stopped("a"):
            for number in range(count):
                sender.sendto(number.to_bytes(4, "big"), receiver.getsockname())
        found, dropped = len(drain(receiver, count, 0.5)), tx_dropped(bed, "p") - before
        assert (found + dropped, dropped > 0) == (count, True)


def tx_dropped(bed: Bed, pod: str) -> int:
    (link,) = json.loads(bed.run(pod, "ip -j -s link show eth0"))
    return int(link["stats64"]["tx"]["dropped"])


# ---- ECN -------------------------------------------------------------------------------------------------------------


@contextmanager
def congestion(bed: Bed, node: str, every: int = 1) -> Iterator[None]:
    """Each n-th outer packet that reaches a node says congestion experienced; a SYN, the first, could not bear it."""
    bed.run(node, "nft add table ip marks")
    bed.run(node, "nft add chain ip marks in { type filter hook prerouting priority -300; }")
    pick = f"numgen inc mod {every} {every - 1} " if every > 1 else ""
    bed.run(node, f"nft add rule ip marks in udp dport 8472 {pick}ip ecn set ce")
    try:
        yield
    finally:
        bed.run(node, "nft delete table ip marks")


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        pytest.param(ECT0, CE, id="ECT(0)"),
        pytest.param(ECT1, CE, id="ECT(1)"),
        pytest.param(CE, CE, id="CE"),
        pytest.param(NOT_ECT, None, id="Not-ECT is dropped"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_congestion_on_the_underlay(bed: Bed, sent: int, found: int | None, family: int) -> None:
    """A packet that can say so says so; one that cannot is dropped, or its sender would never hear of it (RFC 6040)."""
    dscp = 0xB8
    with bed.receiver("r", family) as receiver, bed.sock("p", family) as sender, congestion(bed, "b"):
        set_tos(sender, family, dscp | sent)
        receiver.setsockopt(*((socket.IPPROTO_IP, IP_RECVTOS, 1) if family == 4 else (41, socket.IPV6_RECVTCLASS, 1)))
        with bed.dropping("b", **({} if found is not None else {"ecn": 1})):
            sender.sendto(b"x", receiver.getsockname()[:2])
            wait(lambda: found is not None or bed.drops("b").get("ecn"))
            if found is not None:
                _, ((_, _, tos),), _, _ = receiver.recvmsg(16, 64)
                assert tos[0] == dscp | found


def set_tos(sender: socket.socket, family: int, tos: int) -> None:
    sender.setsockopt(*((socket.IPPROTO_IP, socket.IP_TOS) if family == 4 else (41, socket.IPV6_TCLASS)), tos)


@pytest.mark.parametrize("inner", [NOT_ECT, ECT1, ECT0, CE])
def test_inner_ecn_is_on_the_outer_header(bed: Bed, inner: int) -> None:
    """So that routers may mark instead of drop; superpackets and single packets alike."""
    with bed.receiver("r") as receiver, bed.sock("p") as sender, bed.capture("a", "eth0") as wire:
        set_tos(sender, 4, inner)
        sender.connect(receiver.getsockname())
        sender.send(b"x")
        sender.sendmsg([bytes(5000)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 1000))])
        assert len(drain(receiver, 6)) == 6
        outer = [IP(frame[14:]) for frame in wire.frames() if IP(vxlan_inner(frame) or b"\0").proto == 17]
    assert [packet.tos & 3 for packet in outer] == [inner] * 6


def test_tcp_hears_of_congestion(bed: Bed) -> None:
    """Marks reach the sender through superpackets, joined and cut; CWR is on one segment of each; the data is whole."""
    for pod in ("p", "r"):
        bed.run(pod, "sysctl -qw net.ipv4.tcp_ecn=1")
    before = bed.nstat("p", "TcpExtTCPDeliveredCE"), bed.nstat("r", "IpExtInCEPkts")
    with congestion(bed, "b", 20), bed.capture("a", "eth0") as wire:
        bed.transfer("p", "r", 20 << 20)
        flags = [packet[33] for packet in map(vxlan_inner, wire.frames()) if packet and packet[9] == 6]
    for pod in ("p", "r"):
        bed.run(pod, "sysctl -qw net.ipv4.tcp_ecn=2")
    assert bed.nstat("r", "IpExtInCEPkts") > before[1] and bed.nstat("p", "TcpExtTCPDeliveredCE") > before[0]
    answers = sum(bool(flag & twin_gso.CWR and not flag & 2) for flag in flags)
    assert 0 < answers < len(flags) // 20
