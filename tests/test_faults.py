"""Faults that need no kernel: loops, fragments that never end, options, checksums, superpackets, through all stages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption, IPOption_LSRR, IPOption_NOP, IPOption_RR, IPOption_SSRR
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from canal_udp.encap.forwarding import Route, vtep_key
from canal_udp.readings import Frame
from tests.bed import FORWARDING, Bed, X, checksums_hold, from_tun, partial, unwrap, vnet


@pytest.fixture
def bed() -> Iterator[Bed]:
    with Bed() as bed:
        yield bed


# ---- F05 -------------------------------------------------------------------------------------------------------------


def test_two_nodes_that_point_at_each_other() -> None:
    """Each believes that the other has 10.1.9.0/24: a packet travels once, its TTL one lower, and is dropped there."""
    lost = IPv4Network("10.1.9.0/24")
    with Bed() as here, Bed() as there:
        for bed in (here, there):
            bed.republish(routes=(Route(lost, "vtep", vtep_key(X), local=False), *FORWARDING.routes))
        packet = IP(src="10.1.1.2", dst="10.1.9.9", ttl=64) / UDP(dport=9) / Raw(bytes(900))
        travelling = here.push(*(from_tun(here.a, packet) for _ in range(20)))
        inner = [one for frame in travelling for one in unwrap(frame, X)]
        assert len(inner) == 20
        assert sum(map(len, inner)) < 70_000
        assert {IP(one).ttl for one in inner} == {63}
        as_from_peer = [IP(one) for one in inner]
        for one in as_from_peer:  # the other node is x to this one
            one.src = "10.1.2.2"
            del one.chksum, one[UDP].chksum
        assert there.push(*(there.from_peer(one) for one in as_from_peer)) == []
        assert there.drops() == {"not_local": 20}


# ---- F07 -------------------------------------------------------------------------------------------------------------


def test_fragments_that_never_end(bed: Bed) -> None:
    """Thousands of datagrams begin and none ends: the table stays small, others' fragments pass again after."""
    first = bytearray(
        bytes(IP(src="10.1.2.2", dst="10.1.1.2", flags="MF", id=0, proto=17) / UDP(dport=9) / Raw(bytes(64)))
    )
    for start in range(0, 4000, 50):
        frames = []
        for identity in range(start, start + 50):
            packet = IP(bytes(first))
            packet.id = identity
            del packet.chksum
            frames.append(bed.from_peer(packet))
        bed.push(*frames)
        assert bed.dp.status().frag_entries <= 64
    assert set(bed.drops()) <= {"frag_full"}
    bed.now_ms += 31_000
    whole = [
        IP(src="10.1.2.2", dst="10.1.1.2", flags="MF", id=7, proto=17)
        / UDP(dport=9, len=72, chksum=0)
        / Raw(bytes(56)),
        IP(src="10.1.2.2", dst="10.1.1.2", frag=8, id=7, proto=17) / Raw(bytes(8)),
    ]
    assert len(bed.push(*(bed.from_peer(one) for one in whole))) == 2


# ---- F08 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["pod", "host", "peer"])
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        pytest.param([IPOption_LSRR(routers=["10.1.1.3"])], False, id="loose source route"),
        pytest.param([IPOption_SSRR(routers=["10.1.1.3"])], False, id="strict source route"),
        pytest.param(
            [IPOption_NOP(), IPOption_NOP(), IPOption_LSRR(routers=["10.1.1.3"])], False, id="hidden behind NOPs"
        ),
        pytest.param([IPOption_RR(routers=["0.0.0.0"])], True, id="record route"),
        pytest.param([IPOption(copy_flag=0, optclass=0, option=30, length=0)], False, id="length 0"),
        pytest.param([IPOption(copy_flag=0, optclass=0, option=30, length=1)], False, id="length 1"),
        pytest.param([IPOption(copy_flag=0, optclass=0, option=30, length=40)], False, id="beyond the header"),
    ],
)
def test_source_routes_go_nowhere(bed: Bed, into: str, options: list[Packet], passes: bool) -> None:
    source, target = ("10.1.2.2", "10.1.1.2") if into == "peer" else ("10.1.1.2", "10.1.1.3")
    packet = IP(src=source, dst=target, options=options) / UDP(dport=9) / Raw(b"x")
    frame = bed.from_peer(packet) if into == "peer" else from_tun(bed.a if into == "pod" else bed.host, packet)
    assert len(bed.push(frame)) == passes
    assert bed.drops() == ({} if passes else {"ip_option": 1})


# ---- F10 -------------------------------------------------------------------------------------------------------------


def test_what_leaves_has_the_checksum_it_should(bed: Bed) -> None:
    """Partial ones are finished before the wire; whole ones stay, also wrong ones: they are not ours to fix."""
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(2000):
        six = rng.random() < 0.5
        ip = IPv6(src="fd00:1:1::2", dst="fd00:1:2::2") if six else IP(src="10.1.1.2", dst="10.1.2.2", flags="DF")
        layer = (
            TCP(sport=1, dport=2, flags="S", seq=rng.getrandbits(32)) if rng.random() < 0.5 else UDP(sport=1, dport=2)
        )
        layer.sport = rng.randrange(200)
        packet = ip / layer / Raw(rng.randbytes(rng.choice([0, 1, 2, 3, 100, 1001])))
        start, offset = (40 if six else 20), (16 if TCP in packet else 6)
        kind = rng.choice(["partial", "whole", "wrong"])
        header = vnet(csum=True, start=start, offset=offset) if kind == "partial" else vnet()
        raw = bytearray(partial(packet) if kind == "partial" else bytes(packet))
        if kind == "wrong":
            raw[start + offset] ^= 0x55
        (frame,) = bed.push(from_tun(bed.a, bytes(raw), header))
        (inner,) = unwrap(frame, X)
        if kind == "wrong":
            assert inner[start:] == bytes(raw[start:]), f"seed {seed}"
        else:
            assert checksums_hold(inner), f"seed {seed}"


# ---- F11 -------------------------------------------------------------------------------------------------------------

MSS, SEGMENTS = 1000, 12


def superpacket(**ip: Any) -> Packet:
    return (
        IP(**{"src": "10.1.1.2", "dst": "10.1.2.2", "flags": "DF", "id": 7, **ip})
        / TCP(sport=5, dport=6, flags="A", seq=100)
        / Raw(random.Random(1).randbytes(MSS * SEGMENTS))
    )


@pytest.mark.parametrize(
    "ip",
    [
        pytest.param({}, id="passes"),
        pytest.param({"dst": "10.1.1.3"}, id="inside the node"),
        pytest.param({"dst": "10.1.3.7"}, id="another encapsulation"),
        pytest.param({"src": "10.1.1.3"}, id="spoofed"),
        pytest.param({"dst": "10.1.77.7"}, id="no route"),
        pytest.param({"dst": "224.0.0.1"}, id="martian"),
        pytest.param({"ttl": 1}, id="TTL"),
        pytest.param({"tos": 2}, id="ECN"),
    ],
)
def test_a_superpacket_fares_as_its_segments_do(ip: dict[str, Any]) -> None:
    """The same verdict, the same counts, and the same bytes for whoever takes them apart."""
    whole = superpacket(**ip)
    with Bed() as one, Bed() as many:
        out = one.push(from_tun(one.a, partial(whole), vnet("tcp4", MSS, csum=True, start=20, offset=16)))
        segments = []
        for n in range(SEGMENTS):
            part = whole.copy()
            part[TCP].remove_payload()
            part = part / Raw(bytes(whole[Raw])[n * MSS : (n + 1) * MSS])
            part.id, part[TCP].seq = 7 + n, 100 + n * MSS
            segments.append(IP(bytes(part)))
        parts = many.push(*(from_tun(many.a, segment) for segment in segments))
        assert one.drops() == many.drops()
        for name in ("rx_pod", "tx_pod", "tx_host", "tx_underlay"):
            if not one.drops():
                assert one.dp.counters()[name] == many.dp.counters()[name]
        assert payload(one, out) == payload(many, parts)


def payload(bed: Bed, frames: list[Frame]) -> bytes:
    """TCP bytes in the order of leaving, ICMP errors left out."""
    found = b""
    for frame in frames:
        tun = frame.port in (bed.a, bed.b, bed.host)
        step = len(frame.data) if tun else frame.gso_size or len(frame.data)
        for at in range(0, len(frame.data), step):
            piece = frame.data[at : at + step]
            inner = IP(piece[10:] if tun else piece[22:] if frame.port == bed.vxlan else piece)
            if TCP in inner:
                found += bytes(inner[TCP].payload)
    return found


LIES = [
    pytest.param(vnet("tcp4", 0, csum=True, start=20, offset=16), id="size 0"),
    pytest.param(vnet("tcp4", 65535, csum=True, start=20, offset=16), id="size 65535"),
    pytest.param(vnet("tcp4", MSS, csum=True, start=65000, offset=16), id="checksum beyond the end"),
    pytest.param(vnet("tcp4", MSS, csum=True, start=20, offset=65000), id="checksum field beyond the end"),
    pytest.param(vnet("tcp6", MSS, csum=True, start=20, offset=16), id="IPv6 type of an IPv4 packet"),
    pytest.param(vnet("udp", MSS, csum=True, start=20, offset=6), id="UDP type of a TCP packet"),
    pytest.param(vnet("tcp4", 1, csum=True, start=20, offset=16), id="too many segments"),
    pytest.param(vnet("tcp4", MSS), id="segments without a checksum to finish"),
]


@pytest.mark.parametrize("header", LIES)
def test_a_header_that_lies(bed: Bed, header: bytes) -> None:
    """Dropped for that reason, or taken as the single packet that it is; never more bytes than were sent."""
    out = bed.push(from_tun(bed.a, partial(superpacket()), header))
    assert bed.drops().keys() <= {"bad_gso", "too_big"}
    assert len(payload(bed, out)) <= MSS * SEGMENTS
    assert bed.drops()


# ---- F04, F16: what is refused is not remembered ---------------------------------------------------------------------


def test_refused_packets_leave_no_trace(bed: Bed) -> None:
    """Strangers, liars and spoofers make no flow: what they send cannot crowd out what is allowed."""
    stranger = replace(X, addr=ip_address("192.0.2.99"))
    for n in range(500):
        lie = IP(src=str(IPv4Address("10.1.3.0") + n % 250), dst="10.1.1.2") / UDP(sport=n, dport=9)
        spoof = IP(src="10.1.1.3", dst="10.1.2.2") / UDP(sport=n, dport=9)
        bed.push(bed.from_peer(lie), bed.from_peer(lie, stranger), from_tun(bed.a, spoof))
    assert bed.drops() == {"inner_src": 500, "unknown_peer": 500, "spoofed": 500}
    assert bed.dp.status().ct_entries == 0
