"""The whole way of a packet, frame in to frames out, without a kernel; conservation is checked after every push."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, fragment
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw

from canal_udp.encap.forwarding import Route, Vtep, vtep_key
from canal_udp.readings import Frame
from tests.bed import FORWARDING, Bed, X, Y, Z, checksums_hold, from_tun, partial, routes, unwrap, vnet, wrap


@pytest.fixture
def bed() -> Iterator[Bed]:
    with Bed() as bed:
        yield bed


def tcp(src: str = "10.1.1.2", dst: str = "10.1.2.2", size: int = 100, flags: str = "A", **ip: object) -> Packet:
    layer = IP if "." in src else IPv6
    more = {"id": 7, "flags": "DF"} if layer is IP else {}
    return (
        layer(src=src, dst=dst, **{**more, **ip})
        / TCP(sport=1000, dport=80, flags=flags, seq=5000)
        / Raw(bytes(i & 255 for i in range(size)))
    )


def udp(src: str = "10.1.1.2", dst: str = "10.1.2.2", size: int = 100, **ip: object) -> Packet:
    layer = IP if "." in src else IPv6
    return layer(src=src, dst=dst, **ip) / UDP(sport=1000, dport=53) / Raw(b"u" * size)


def disguised() -> bytes:
    """An IPv6 packet whose source is ::ffff:10.1.1.2, the form that IPv4 addresses have inside the data plane."""
    raw = bytearray(bytes(udp("fd00:1:1::2", "fd00:1:2::2")))
    raw[8:24] = bytes(10) + b"\xff\xff" + bytes([10, 1, 1, 2])
    return bytes(raw)


# ---- ways ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dst", "peer"),
    [
        pytest.param("10.1.2.2", X, id="vxlan over IPv4"),
        pytest.param("10.1.3.2", Y, id="udp over IPv4"),
        pytest.param("10.1.4.2", Z, id="vxlan over IPv6"),
        pytest.param("fd00:1:2::2", X, id="IPv6 in vxlan over IPv4"),
    ],
)
def test_pod_to_peer(bed: Bed, dst: str, peer: Vtep) -> None:
    """The peer gets the packet with TTL one lower and valid checksums, at its address and port."""
    packet = tcp("10.1.1.2" if "." in dst else "fd00:1:1::2", dst)
    (frame,) = bed.push(from_tun(bed.a, partial(packet), vnet(csum=True, start=20 if "." in dst else 40, offset=16)))
    (inner,) = unwrap(frame, peer)
    expected = packet.copy()
    if "." in dst:
        expected.ttl = 63
    else:
        expected.hlim = 63
    assert inner == bytes(expected)
    assert (frame.addr, frame.udp_port, frame.gso_size) == (peer.addr, peer.port, 0)


def test_peer_to_pod(bed: Bed) -> None:
    """A pod gets what the peer sent, TTL untouched, with a checksum that the TUN is told to trust."""
    packet = tcp("10.1.2.2", "10.1.1.2")
    (frame,) = bed.push(bed.from_peer(packet))
    assert frame.port == bed.a
    flags, gso, _, gso_size, start, offset = struct.unpack("<BBHHHH", frame.data[:10])
    assert (flags, gso, gso_size, start, offset) == (1, 0, 0, 20, 16)
    assert frame.data[10:] == partial(packet)


@pytest.mark.parametrize(
    ("into", "packet", "out"),
    [
        pytest.param("a", udp("10.1.1.2", "10.1.1.3"), "b", id="pod to pod"),
        pytest.param("host", udp("192.0.2.1", "10.1.1.2"), "a", id="host to pod"),
        pytest.param("a", udp("10.1.1.2", "192.0.2.1"), "host", id="pod to host"),
        pytest.param("a", udp("10.1.1.2", "8.8.8.8"), "host", id="pod to outside"),
        pytest.param("a", udp("10.1.1.2", "10.1.1.77"), "host", id="pod to a pod behind a bridge"),
        pytest.param("a", udp("fd00:1:1::2", "fd00:1:1::3"), "b", id="pod to pod, IPv6"),
    ],
)
def test_inside_the_node(bed: Bed, into: str, packet: Packet, out: str) -> None:
    (frame,) = bed.push(from_tun(getattr(bed, into), packet))
    assert frame.port == getattr(bed, out)
    got = type(packet)(frame.data[10:])
    assert (got.ttl if IP in got else got.hlim) == 63
    assert checksums_hold(frame.data[10:])


@pytest.mark.parametrize(
    ("into", "packet", "reason"),
    [
        pytest.param("a", udp("10.1.1.3"), "spoofed", id="another pod's source"),
        pytest.param("a", udp("192.0.2.1"), "spoofed", id="the host's source"),
        pytest.param("a", udp("fd00:1:1::3", "fd00:1:2::2"), "spoofed", id="another pod's IPv6 source"),
        pytest.param("a", udp("10.1.1.2", "224.0.0.1"), "martian", id="to multicast"),
        pytest.param("a", udp("10.1.1.2", "255.255.255.255"), "martian", id="to broadcast"),
        pytest.param("a", udp("10.1.1.2", "127.0.0.1"), "martian", id="to loopback"),
        pytest.param("a", udp("fe80::1", "ff02::2"), "martian", id="link-local chatter"),
        pytest.param("a", IP(src="10.1.1.2", dst="10.1.2.2") / ICMP(type=5, gw="10.1.1.2"), "martian", id="redirect"),
        pytest.param(
            "a", IPv6(src="fd00:1:1::2", dst="fd00:1:2::2") / ICMPv6ND_RA(), "martian", id="router advertisement"
        ),
        pytest.param("a", disguised(), "martian", id="IPv4 dressed as IPv6"),
        pytest.param("a", udp("10.1.1.2", "10.1.99.1"), "no_route", id="overlay address without lease"),
        pytest.param("host", udp("192.0.2.1", "10.1.1.77"), "no_route", id="host to no pod: would come back"),
        pytest.param("a", udp(ttl=1), "ttl", id="TTL used up"),
        pytest.param("a", tcp(flags="R"), "ct_invalid", id="RST of no flow"),
    ],
)
def test_refused_from_tun(bed: Bed, into: str, packet: Packet, reason: str) -> None:
    bed.push(from_tun(getattr(bed, into), packet))
    assert bed.drops() == {reason: 1}


@pytest.mark.parametrize(
    ("packet", "peer", "reason"),
    [
        pytest.param(udp("10.1.3.2", "10.1.1.2"), X, "inner_src", id="another peer's source"),
        pytest.param(udp("10.1.1.3", "10.1.1.2"), X, "inner_src", id="our own pod's source"),
        pytest.param(udp("8.8.8.8", "10.1.1.2"), X, "inner_src", id="a source outside the overlay"),
        pytest.param(udp("10.1.2.2", "10.1.3.2"), X, "not_local", id="through us to another peer"),
        pytest.param(udp("10.1.2.2", "8.8.8.8"), X, "not_local", id="through us to outside"),
        pytest.param(udp("10.1.2.2", "10.1.2.3"), X, "not_local", id="back to itself"),
        pytest.param(
            udp("10.1.2.2", "10.1.1.2"), replace(X, addr=ip_address("192.0.2.99")), "unknown_peer", id="stranger"
        ),
        pytest.param(
            udp("10.1.2.2", "10.1.1.2"),
            replace(X, mac=bytes.fromhex("02000000a001")),
            "bad_ether",
            id="our own MAC as source",
        ),
    ],
)
def test_refused_from_peer(bed: Bed, packet: Packet, peer: Vtep, reason: str) -> None:
    assert bed.push(bed.from_peer(packet, peer)) == []
    assert bed.drops() == {reason: 1}


# ---- superpackets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [pytest.param(X, id="vxlan"), pytest.param(Y, id="udp")])
@pytest.mark.parametrize(
    "config", [pytest.param({}, id="UDP_SEGMENT"), pytest.param({"no_udp_gso": True}, id="one by one")]
)
def test_superpacket_is_segmented(peer: Vtep, config: dict[str, bool]) -> None:
    """One read of many segments becomes messages of equal size with consecutive ids and sequence numbers."""
    with Bed(**config) as bed:
        mss = 1400
        packet = tcp(dst="10.1.2.2" if peer is X else "10.1.3.2", size=mss * 30 + 17, flags="PA")
        frames = bed.push(from_tun(bed.a, partial(packet), vnet("tcp4", mss, csum=True, start=20, offset=16)))
        inner = [IP(raw) for frame in frames for raw in unwrap(frame, peer)]
        assert len(frames) == (31 if config else 1)
        assert all(checksums_hold(bytes(p)) for p in inner)
        assert [p.id for p in inner] == list(range(7, 38))
        assert [p[TCP].seq for p in inner] == [5000 + mss * i for i in range(31)]
        assert [str(p[TCP].flags) for p in inner] == ["A"] * 30 + ["PA"]
        assert b"".join(bytes(p[TCP].payload) for p in inner) == bytes(packet[TCP].payload)
        assert bed.dp.counters()["tx_underlay"] == 31


def test_runs_fill_across_superpackets(bed: Bed) -> None:
    """Superpackets of one flow share messages up to what one send may hold, in order."""
    mss, frames = 1398, []
    for i in range(4):
        packet = tcp(size=mss * 40, id=7 + 40 * i)
        packet[TCP].seq = 5000 + i * 40 * mss
        frames.append(from_tun(bed.a, partial(packet), vnet("tcp4", mss, csum=True, start=20, offset=16)))
    out = bed.push(*frames)
    seqs = [IP(raw)[TCP].seq for frame in out for raw in unwrap(frame, X)]
    assert seqs == [5000 + mss * i for i in range(160)]
    assert [len(frame.data) // frame.gso_size for frame in out] == [44, 44, 44, 28]


def segments_of(bed: Bed, n: int, size: int, last: int | None = None) -> list[bytes]:
    """n TCP segments from peer x to pod a, as GRO would gather them."""
    made = []
    for i in range(n):
        packet = tcp("10.1.2.2", "10.1.1.2", size if i < n - 1 or last is None else last, id=100 + i)
        packet[TCP].seq = 1 + i * size
        made.append(wrap(bytes(packet), X))
    return made


def test_gro_batch_becomes_one_superpacket(bed: Bed) -> None:
    payloads = segments_of(bed, 40, 1400, 33)
    (frame,) = bed.push(Frame(bed.vxlan, b"".join(payloads), gso_size=len(payloads[0]), addr=X.addr, udp_port=4000))
    flags, gso, _, gso_size, start, offset = struct.unpack("<BBHHHH", frame.data[:10])
    assert (flags, gso, gso_size, start, offset) == (1, 1, 1400, 20, 16)
    assert len(frame.data) == 10 + 40 + 39 * 1400 + 33
    assert IP(frame.data[10:]).len == 40 + 39 * 1400 + 33
    assert bed.dp.counters()["tx_pod"] == bed.dp.counters()["rx_underlay"] == 40


@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_a_damaged_packet_is_not_vouched_for(bed: Bed, make: Callable[..., Packet]) -> None:
    """The outer checksum may be zero; then the inner one is all there is, and the TUN is told to trust it."""
    good = bytes(make("10.1.2.2", "10.1.1.2", 100))
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    (frame,) = bed.push(bed.from_peer(damaged), bed.from_peer(good))
    assert frame.data[0] == 1 and frame.data[20 + 10 + 20 :].endswith(good[-80:])
    assert bed.drops() == {"bad_csum": 1}


def test_interleaved_flows_keep_their_order(bed: Bed) -> None:
    """Segments of several flows, mixed: each pod reads each flow in the order in which it was sent."""
    rng = random.Random(5)
    queues = {}
    for port in range(20, 26):
        queues[port] = [
            IP(src="10.1.2.2", dst="10.1.1.2", id=i, flags="DF")
            / TCP(sport=port, dport=80, flags=rng.choice(["A", "A", "A", "PA"]), seq=1 + 50 * i)
            / Raw(b"x" * 50)
            for i in range(30)
        ]
    frames = []
    while any(queues.values()):
        port = rng.choice([port for port, queue in queues.items() if queue])
        frames.append(bed.from_peer(queues[port].pop(0)))
    seen: dict[int, list[int]] = {}
    for frame in bed.push(*frames):
        packet = IP(frame.data[10:])
        seen.setdefault(packet[TCP].sport, []).extend(
            range(packet[TCP].seq, packet[TCP].seq + len(packet[TCP].payload), 50)
        )
    assert seen == {port: [1 + 50 * i for i in range(30)] for port in range(20, 26)}


@pytest.mark.parametrize("peer", [pytest.param(X, id="vxlan"), pytest.param(Y, id="udp, with nothing between them")])
def test_segments_of_one_datagram_do_not_touch_each_other(bed: Bed, peer: Vtep) -> None:
    """They lie back to back in one buffer; here the second one leaves before the first."""
    src, port = ("10.1.2.2", bed.vxlan) if peer is X else ("10.1.3.2", bed.udp)
    data, *acks = tcp(src, "10.1.1.2", 64, "PA"), tcp(src, "10.1.1.2", 0), tcp(src, "10.1.1.2", 0)
    for number, ack in enumerate(acks):
        ack[TCP].sport, ack[TCP].ack = 2000, number
    first, *others = (wrap(bytes(packet), peer) for packet in (data, *acks))
    out = bed.push(
        Frame(port, first + others[0], gso_size=len(first), addr=peer.addr, udp_port=4000),
        Frame(port, others[1], addr=peer.addr, udp_port=4000),
    )
    seen = [IP(frame.data[10:])[TCP] for frame in out]
    assert [tcp.sport for tcp in seen] == [2000, 1000, 2000]
    assert bytes(seen[1].payload) == bytes(data[TCP].payload)


def test_superpacket_of_a_kernel_tunnel_without_size(bed: Bed) -> None:
    """Kernel VXLAN over veth: one datagram larger than the MTU, no control message: the MTU gives the segment size."""
    packet = tcp("10.1.2.2", "10.1.1.2", 6000)
    (frame,) = bed.push(bed.from_peer(partial(packet)))
    assert struct.unpack("<BBHHHH", frame.data[:10]) == (1, 1, 40, 1410, 20, 16)
    assert frame.data[10:] == partial(packet)


def test_size_of_an_inner_superpacket_is_not_the_outer_one(bed: Bed) -> None:
    """Kernel VXLAN with inner UDP GSO: the control message holds the inner size; cutting there would corrupt."""
    packet = udp("10.1.2.2", "10.1.1.2", 5500)
    (frame,) = bed.push(bed.from_peer(partial(packet), gso_size=1000))
    assert struct.unpack("<BBHHHH", frame.data[:10]) == (1, 5, 28, 1000, 20, 6)
    assert frame.data[10:] == partial(packet)
    assert bed.dp.counters()["rx_underlay"] == 6


def test_udp_superpacket_for_an_old_kernel_is_written_in_segments() -> None:
    with Bed(no_uso_write=True) as bed:
        packet = udp("10.1.1.2", "10.1.1.3", 2500)
        out = bed.push(from_tun(bed.a, partial(packet), vnet("udp", 1000, csum=True, start=20, offset=6)))
        assert [len(IP(f.data[10:])[UDP].payload) for f in out] == [1000, 1000, 500]
        assert all(checksums_hold(f.data[10:]) and f.data[:10] == bytes(10) for f in out)


# ---- MTU, TTL, ICMP --------------------------------------------------------------------------------------------------


def test_too_big_is_told_to_the_sender(bed: Bed) -> None:
    (frame,) = bed.push(from_tun(bed.a, tcp(size=1411)))
    answer = IP(frame.data[10:])
    assert (frame.port, answer.src, answer.dst) == (bed.a, "10.1.1.0", "10.1.1.2")
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1450)
    assert (answer[IPerror].dst, answer[TCPerror].seq) == ("10.1.2.2", 5000)
    assert bed.drops() == {"too_big": 1}


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        pytest.param(tcp("192.0.2.1", size=1411), (3, 4), id="too big"),
        pytest.param(tcp("192.0.2.1", "10.1.99.1"), (3, 0), id="no route"),
    ],
)
def test_the_host_is_told_by_the_other_end(bed: Bed, packet: Packet, kind: tuple[int, int]) -> None:
    """The router's address is one of its own: it would take the answer for a lie."""
    (frame,) = bed.push(from_tun(bed.host, packet))
    answer = IP(frame.data[10:])
    assert (frame.port, answer.src, answer.dst) == (bed.host, packet.dst, "192.0.2.1")
    assert (answer[ICMP].type, answer[ICMP].code) == kind


def test_too_big_superpacket(bed: Bed) -> None:
    """Its segments are what counts, and all of them are dropped for one answer."""
    packet = tcp(size=1411 * 3)
    (frame,) = bed.push(from_tun(bed.a, partial(packet), vnet("tcp4", 1411, csum=True, start=20, offset=16)))
    assert IP(frame.data[10:])[ICMP].nexthopmtu == 1450
    assert bed.drops() == {"too_big": 3}


def test_too_big_ipv6(bed: Bed) -> None:
    (frame,) = bed.push(from_tun(bed.a, tcp("fd00:1:1::2", "fd00:1:2::2", 1391)))
    answer = IPv6(frame.data[10:])
    assert answer[ICMPv6PacketTooBig].mtu == 1450 and answer.dst == "fd00:1:1::2"


def test_too_big_without_df_is_fragmented(bed: Bed) -> None:
    packet = udp(size=4000, id=99)
    frames = bed.push(from_tun(bed.a, packet))
    parts = [IP(raw) for frame in frames for raw in unwrap(frame, X)]
    assert [p.frag * 8 for p in parts] == [0, 1424, 2848]
    assert all(
        len(p) <= 1450 and p.id == 99 and checksums_hold(bytes(p)[:20] + bytes(bytes(p)[20:])) for p in parts[1:]
    )
    assert b"".join(bytes(p.payload) for p in parts) == bytes(packet[UDP])
    assert bed.dp.counters()["tx_underlay"] == 1 and bed.dp.counters()["fragments_created"] == 3


def test_superpacket_without_df_is_cut_and_fragmented() -> None:
    with Bed(replace(FORWARDING, vteps=(replace(X, mtu_bytes=600), Y, Z))) as bed:
        packet = udp(size=3000, id=5)
        frames = bed.push(from_tun(bed.a, partial(packet), vnet("udp", 1000, csum=True, start=20, offset=6)))
        parts = [IP(raw) for frame in frames for raw in unwrap(frame, X)]
        assert {p.id for p in parts} == {5, 6, 7} and all(len(p) <= 600 for p in parts)
        assert sum(len(bytes(p.payload)) for p in parts) == 3 * 1008
        assert bed.dp.counters()["tx_underlay"] == 3


def fragments(identity: int) -> list[Packet]:
    raw = bytes(udp("10.1.2.2", "10.1.1.2", 3000))[20:]
    ip = IP(src="10.1.2.2", dst="10.1.1.2", id=identity, proto=17)
    cuts = [(0, 1400), (1400, 2800), (2800, len(raw))]
    return [ip.__class__(frag=a // 8, flags="MF" if b < len(raw) else 0, **ip.fields) / Raw(raw[a:b]) for a, b in cuts]


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_fragments_leave_in_order_by_one_socket(v6: bool) -> None:
    """Only the first has ports; by different sockets, and so by different paths, the later ones would overtake it."""
    with ExitStack() as stack:
        bed = stack.enter_context(Bed())
        for _ in range(8):
            fd = os.eventfd(0)
            stack.callback(os.close, fd)
            bed.dp.add_underlay(fd, "vxlan", 4, tx_only=True)
        ways = set()
        for last in range(2, 12):
            if v6:
                whole = (
                    IPv6(src="fd00:1:1::2", dst=f"fd00:1:2::{last:x}")
                    / IPv6ExtHdrFragment(id=last)
                    / UDP()
                    / bytes(3000)
                )
                parts = fragment6(whole, 1400)
            else:
                parts = fragment(IP(src="10.1.1.2", dst=f"10.1.2.{last}", id=last) / UDP() / bytes(3000), 1400)
            out = bed.push(*(from_tun(bed.a, part) for part in parts))
            assert len({frame.port for frame in out}) == 1
            ways.add(out[0].port)
        assert len(ways) > 1


def test_later_fragments_follow_the_first(bed: Bed) -> None:
    """Also across a new snapshot; without their first one they go nowhere, a duplicate goes alone."""
    first, second, third = fragments(4)
    sent = [f.data[10:] for f in bed.push(bed.from_peer(first), bed.from_peer(second), bed.from_peer(fragments(5)[1]))]
    bed.republish()
    sent += [f.data[10:] for f in bed.push(bed.from_peer(third))]
    assert sent == [bytes(first), bytes(second), bytes(third)]
    assert bed.drops() == {"frag_no_first": 1}
    first, second, third = fragments(6)
    assert len(bed.push(bed.from_peer(first), bed.from_peer(first), bed.from_peer(second))) == 2
    assert bed.drops() == {"frag_no_first": 1, "frag_overlap": 1}


@pytest.mark.parametrize(
    ("offered", "dst", "expected"),
    [
        pytest.param(1460, "10.1.2.2", 1410, id="lowered to the tunnel"),
        pytest.param(1200, "10.1.2.2", 1200, id="never raised"),
        pytest.param(1460, "10.1.1.3", 1460, id="untouched inside the node"),
        pytest.param(1460, "fd00:1:2::2", 1390, id="IPv6"),
    ],
)
@pytest.mark.parametrize("half", [False, True], ids=["full checksum", "partial checksum"])
def test_mss_clamp(bed: Bed, offered: int, dst: str, expected: int, half: bool) -> None:
    v6 = ":" in dst
    syn = (IPv6(src="fd00:1:1::2", dst=dst) if v6 else IP(src="10.1.1.2", dst=dst)) / TCP(
        sport=9, dport=80, flags="S", options=[("NOP", None), ("MSS", offered), ("SAckOK", b"")]
    )
    frame = (
        from_tun(bed.a, partial(syn), vnet(csum=True, start=40 if v6 else 20, offset=16))
        if half
        else from_tun(bed.a, syn)
    )
    (out,) = bed.push(frame)
    inner = out.data[10:] if out.port == bed.b else next(unwrap(out, X))
    got = (IPv6 if v6 else IP)(inner)
    assert dict(got[TCP].options)["MSS"] == expected
    assert checksums_hold(inner) or (half and out.port == bed.b)


def test_time_exceeded(bed: Bed) -> None:
    (frame,) = bed.push(from_tun(bed.a, udp(ttl=1)))
    assert (IP(frame.data[10:])[ICMP].type, IP(frame.data[10:]).src) == (11, "10.1.1.0")


def test_icmp_errors_are_limited() -> None:
    with Bed() as bed:
        out = [f for _ in range(30) for f in bed.push(*(from_tun(bed.a, udp(ttl=1)) for _ in range(50)))]
        assert len(out) + bed.dp.counters()["icmp_limited"] == 1500
        assert 0 < len(out) <= 1000


def test_icmp_errors_of_one_pod_are_not_another_ones(bed: Bed) -> None:
    """A pod that provokes errors without end takes none from its neighbour, whose path MTU depends on them."""
    bed.push(*(from_tun(bed.a, udp(ttl=1)) for _ in range(1500)))
    (frame,) = bed.push(from_tun(bed.b, tcp("10.1.1.3", size=1411)))
    assert IP(frame.data[10:])[ICMP].nexthopmtu == 1450


@pytest.mark.parametrize(
    ("outer", "inner", "result"),
    [
        pytest.param(3, 0, None, id="congestion, inner cannot tell: dropped"),
        pytest.param(3, 2, 3, id="congestion, ECT(0): marked"),
        pytest.param(3, 1, 3, id="congestion, ECT(1): marked"),
        pytest.param(0, 2, 2, id="no mark outside"),
        pytest.param(2, 3, 3, id="marked before"),
    ],
)
def test_ecn_in(bed: Bed, outer: int, inner: int, result: int | None) -> None:
    out = bed.push(bed.from_peer(udp("10.1.2.2", "10.1.1.2", tos=inner), tos=outer))
    assert [IP(f.data[10:]).tos for f in out] == ([] if result is None else [result])
    assert bed.drops() == ({"ecn": 1} if result is None else {})


def test_ecn_out_and_runs(bed: Bed) -> None:
    """The outer header repeats ECN, not DSCP; packets that differ in it do not share a message."""
    frames = bed.push(*(from_tun(bed.a, udp(tos=tos)) for tos in (0, 0xB8, 0xBA, 3)))
    assert [(f.tos, len(list(unwrap(f, X)))) for f in frames] == [(0, 2), (2, 1), (3, 1)]


# ---- flows -----------------------------------------------------------------------------------------------------------


def test_replies_return_through_the_host(bed: Bed) -> None:
    """A flow that the kernel's NAT sent in by the host port gets its replies back there, also across snapshots."""
    for generation in range(2):
        (there,) = bed.push(from_tun(bed.host, udp("10.1.1.2", "10.1.1.3")))
        assert there.port == bed.b
        (back,) = bed.push(from_tun(bed.b, IP(src="10.1.1.3", dst="10.1.1.2") / UDP(sport=53, dport=1000) / Raw(b"r")))
        assert back.port == bed.host, generation
        bed.republish()


def test_replies_of_peers_return_through_the_host(bed: Bed) -> None:
    bed.push(from_tun(bed.host, udp("10.1.1.2", "10.1.2.2")))
    (back,) = bed.push(bed.from_peer(IP(src="10.1.2.2", dst="10.1.1.2") / UDP(sport=53, dport=1000) / Raw(b"r")))
    assert back.port == bed.host


def test_icmp_error_follows_its_flow(bed: Bed) -> None:
    sent = udp()
    bed.push(from_tun(bed.a, sent))
    error = IP(src="10.1.2.2", dst="10.1.1.2") / ICMP(type=3, code=3) / Raw(bytes(sent)[:28])
    (frame,) = bed.push(bed.from_peer(error))
    assert frame.port == bed.a and frame.data[10:] == bytes(error)
    other = IP(src="10.1.2.2", dst="10.1.1.2") / ICMP(type=3, code=3) / Raw(bytes(udp(src="10.1.1.3"))[:28])
    assert bed.push(bed.from_peer(other)) == []
    assert bed.drops() == {"ct_invalid": 1}


@pytest.mark.parametrize(
    ("into", "src", "dst", "reason"),
    [
        pytest.param("b", "10.1.1.3", "10.1.1.2", "spoofed", id="a neighbour"),
        pytest.param("b", "10.1.1.3", "10.1.2.2", "ct_invalid", id="a neighbour, to the other end"),
        pytest.param("y", "10.1.3.2", "10.1.1.2", "inner_src", id="another peer"),
    ],
)
def test_icmp_error_of_someone_who_is_not_on_the_way(bed: Bed, into: str, src: str, dst: str, reason: str) -> None:
    sent = udp()
    bed.push(from_tun(bed.a, sent))
    error = IP(src=src, dst=dst) / ICMP(type=3, code=4, nexthopmtu=600) / Raw(bytes(sent)[:28])
    assert bed.push(bed.from_peer(error, Y) if into == "y" else from_tun(bed.b, error)) == []
    assert bed.drops() == {reason: 1}


def test_a_port_used_again_at_once_is_a_new_flow(bed: Bed) -> None:
    """RST and the next SYN in one batch: the SYN was looked up when the old flow was still open."""
    bed.now_ms = time.monotonic_ns() // 1_000_000
    bed.push(from_tun(bed.a, tcp(flags="A")))
    bed.push(from_tun(bed.a, tcp(flags="RA")), from_tun(bed.a, tcp(flags="S")))
    assert [(flow.state, flow.packets[0]) for flow in bed.dp.flows()] == [("syn_sent", 1)]


def test_a_route_that_moves_takes_the_flow_along(bed: Bed) -> None:
    """With the next packet after a new snapshot the flow goes where the new FIB says."""
    (frame,) = bed.push(from_tun(bed.a, udp()))
    assert frame.addr == X.addr
    moved = tuple(replace(r, key=vtep_key(Y)) if r.key == vtep_key(X) else r for r in routes())
    bed.republish(routes=moved)
    (frame,) = bed.push(from_tun(bed.a, udp()))
    assert frame.addr == Y.addr
    bed.republish(routes=tuple(r for r in routes() if r.key != vtep_key(X)))
    (answer,) = bed.push(from_tun(bed.a, udp()))
    assert answer.port == bed.a and IP(answer.data[10:])[ICMP].type == 3


def test_a_source_that_moves_is_checked_again(bed: Bed) -> None:
    """A flow that a peer was allowed stops when its subnet belongs to another."""
    packet = udp("10.1.2.2", "10.1.1.2")
    assert len(bed.push(bed.from_peer(packet))) == 1
    bed.republish(routes=tuple(replace(r, key=vtep_key(Y)) if r.key == vtep_key(X) else r for r in routes()))
    assert bed.push(bed.from_peer(packet)) == []
    assert bed.drops() == {"inner_src": 1}


def test_more_specific_routes_win(bed: Bed) -> None:
    bed.republish(routes=routes(Route(ip_network("10.1.2.128/25"), "vtep", vtep_key(Y), False)))
    assert [
        f.addr for f in bed.push(from_tun(bed.a, udp(dst="10.1.2.127")), from_tun(bed.a, udp(dst="10.1.2.128")))
    ] == [X.addr, Y.addr]


def test_new_flows_in_one_batch_do_not_disturb_each_other() -> None:
    """A table far too small for the flows of one batch: every packet is sent or dropped for a reason."""
    with Bed(ct_max=8, ct_share=8) as bed:
        rng = random.Random(3)
        packets = [
            IP(src="10.1.1.2", dst="10.1.2.2") / UDP(sport=rng.randrange(1, 99), dport=7) / Raw(b"z")
            for _ in range(400)
        ]
        out = bed.push(*(from_tun(bed.a, p) for p in packets))
        sent = [IP(raw)[UDP].sport for f in out for raw in unwrap(f, X)]
        assert len(sent) + sum(bed.drops().values()) == 400
        assert set(bed.drops()) <= {"ct_full", "ct_share"}


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_every_truncation_is_dropped_once(bed: Bed) -> None:
    """F01: a datagram cut anywhere never reaches a TUN."""
    whole = wrap(bytes(tcp("10.1.2.2", "10.1.1.2", 60)), X)
    frames = [Frame(bed.vxlan, whole[:size], addr=X.addr, udp_port=1) for size in range(len(whole))]
    assert bed.push(*frames) == []
    assert sum(bed.drops().values()) == len(whole)


def test_the_largest_datagram_is_no_packet(bed: Bed) -> None:
    assert bed.push(Frame(bed.vxlan, bytes(65507), addr=X.addr, udp_port=1)) == []
    assert bed.drops() == {"bad_vxlan": 1}


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_conserved(seed: int) -> None:
    """Random bytes and damaged packets at every port: nothing crashes, and every packet is accounted for."""
    rng = random.Random(seed)
    with Bed(strict_csum=bool(seed & 1)) as bed:
        good = [
            tcp(),
            udp(),
            tcp("10.1.2.2", "10.1.1.2"),
            udp("10.1.2.2", "10.1.1.2"),
            udp("fd00:1:2::2", "fd00:1:1::2"),
            tcp(size=3000),
        ]
        frames = []
        for _ in range(300):
            raw = bytearray(bytes(rng.choice(good)))
            for _ in range(rng.choice([0, 0, 1, 3, 40])):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            raw = raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.2 else raw
            header = rng.randbytes(10) if rng.random() < 0.5 else bytes(10)
            if rng.random() < 0.5:
                frames.append(Frame(rng.choice([bed.a, bed.b, bed.host]), header + bytes(raw)))
            else:
                size = rng.choice([0, 0, rng.randrange(1, 2000)])
                data = (wrap(b"\x45", X)[:-1] + bytes(raw)) * rng.choice([1, 1, 1, 5])
                frames.append(Frame(bed.vxlan, data, gso_size=size, tos=rng.randrange(256), addr=X.addr, udp_port=1))
        bed.push(*frames)


def test_swaps_mix_no_state() -> None:
    """10,000 snapshots under traffic: every packet goes where one whole snapshot says, none is lost."""
    with Bed() as bed:
        packet = from_tun(bed.a, udp())
        moved = tuple(replace(r, key=vtep_key(Y)) if r.key == vtep_key(X) else r for r in routes())
        for i in range(10_000):
            bed.republish(routes=moved if i % 2 else routes())
            (frame,) = bed.dp.process([packet], bed.now_ms)
            assert frame.addr == (Y.addr if i % 2 else X.addr)
        assert bed.dp.status().retired == 0
