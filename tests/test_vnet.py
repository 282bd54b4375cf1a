"""vnet.c: nothing in a virtio_net_hdr is believed, and what is accepted is the truth about the packet behind it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scapy.all import ICMP, IP, SCTP, TCP, UDP, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN, raw
from stages import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    Vnet,
    parse,
    segment,
    vnet_check,
    vnet_header,
)
from twin_gso import headers, random_packet

from canal_udp._abi import lib

NEEDS_CSUM, DATA_VALID, RSC_INFO, UDP_TUNNEL_CSUM = 1, 2, 4, 8
TCP4 = raw(IP(src="10.244.1.2", dst="10.244.2.2") / TCP(flags="A") / bytes(3000))
TCP6 = raw(IPv6(src="fd00::1", dst="fd00::2") / TCP(flags="A") / bytes(3000))
UDP4 = raw(IP(src="10.244.1.2", dst="10.244.2.2") / UDP(sport=1, dport=2) / bytes(3000))
EXT6 = raw(
    IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrDestOpt(options=PadN(optdata=b"\0" * 4)) / UDP() / bytes(3000)
)
PING = raw(IP(dst="10.244.2.2") / ICMP() / bytes(100))
SCTP4 = raw(IP(dst="10.244.2.2") / SCTP() / bytes(100))
FIRST = raw(IP(dst="10.244.2.2", flags="MF") / UDP(sport=1, dport=2, len=4000) / bytes(992))
LATER = raw(IP(dst="10.244.2.2", frag=100, proto=6) / bytes(1000))
FRAG6 = raw(IPv6() / IPv6ExtHdrFragment(m=1, nh=17) / UDP(sport=1, dport=2, len=4000) / bytes(992))
SYN = raw(IP(dst="10.244.2.2") / TCP(flags="SA") / bytes(3000))
RST = raw(IP(dst="10.244.2.2") / TCP(flags="RA") / bytes(3000))
FULL = raw(IP(dst="10.244.2.2") / TCP(flags="A") / bytes(65495))


def csum(packet: bytes, **fields: int) -> dict[str, int]:
    """What the kernel would say of such a packet with a partial checksum."""
    proto, offset, size = headers(packet)
    where = {"csum_start": offset, "csum_offset": 16 if proto == 6 else 6}
    return {"flags": NEEDS_CSUM, "hdr_len": offset + size, **where, **fields}


def header(**fields: int) -> bytes:
    return vnet_header(
        *(fields.get(name, 0) for name in ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset"))
    )


ACCEPTED = [
    pytest.param(TCP4, {}, Vnet(hdr_size=40), id="plain"),
    pytest.param(PING, {}, Vnet(hdr_size=28), id="plain icmp"),
    pytest.param(LATER, {}, Vnet(hdr_size=20), id="later fragment"),
    pytest.param(TCP4, {"flags": DATA_VALID}, Vnet(hdr_size=40), id="DATA_VALID"),
    pytest.param(
        TCP4,
        {"csum_start": 999, "csum_offset": 9, "gso_size": 7},
        Vnet(hdr_size=40),
        id="fields that no flag makes valid",
    ),
    pytest.param(TCP4, csum(TCP4), Vnet(1, 0, 0, 20, 16, 40), id="partial tcp"),
    pytest.param(EXT6, csum(EXT6), Vnet(1, 0, 0, 48, 6, 56), id="partial udp behind an extension header"),
    pytest.param(TCP4, csum(TCP4, hdr_len=65535), Vnet(1, 0, 0, 20, 16, 40), id="hdr_len too large"),
    pytest.param(
        TCP4,
        csum(TCP4, gso_type=GSO_TCPV4, gso_size=1398, hdr_len=1),
        Vnet(1, 1, 1398, 20, 16, 40, 3),
        id="hdr_len lies",
    ),
    pytest.param(
        TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=1000), Vnet(1, 1, 1000, 20, 16, 40, 3), id="three full segments"
    ),
    pytest.param(
        TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=2999), Vnet(1, 1, 2999, 20, 16, 40, 2), id="last is one byte"
    ),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=24), Vnet(1, 1, 24, 20, 16, 40, 125), id="125 segments"),
    pytest.param(
        TCP4,
        csum(TCP4, gso_type=GSO_TCPV4 | GSO_ECN, gso_size=1000),
        Vnet(1, 1, 1000, 20, 16, 40, 3),
        id="tcp with ECN",
    ),
    pytest.param(TCP6, csum(TCP6, gso_type=GSO_TCPV6, gso_size=1378), Vnet(1, 4, 1378, 40, 16, 60, 3), id="tcp ipv6"),
    pytest.param(UDP4, csum(UDP4, gso_type=GSO_UDP_L4, gso_size=1400), Vnet(1, 5, 1400, 20, 6, 28, 3), id="udp"),
    pytest.param(
        EXT6,
        csum(EXT6, gso_type=GSO_UDP_L4, gso_size=1400),
        Vnet(1, 5, 1400, 48, 6, 56, 3),
        id="udp behind an extension header",
    ),
    pytest.param(
        TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=3000), Vnet(1, 0, 0, 20, 16, 40), id="gso of one segment is plain"
    ),
    pytest.param(
        TCP4,
        csum(TCP4, gso_type=GSO_TCPV4, gso_size=65535),
        Vnet(1, 0, 0, 20, 16, 40),
        id="gso_size beyond the payload is plain",
    ),
    pytest.param(FULL, csum(FULL, gso_type=GSO_TCPV4, gso_size=1398), Vnet(1, 1, 1398, 20, 16, 40, 47), id="64 KiB"),
]

REFUSED = [
    pytest.param(TCP4, csum(TCP4, csum_start=19), id="csum_start before the transport header"),
    pytest.param(TCP4, csum(TCP4, csum_start=21), id="csum_start behind it"),
    pytest.param(TCP4, csum(TCP4, csum_start=65535), id="csum_start beyond the packet"),
    pytest.param(TCP4, csum(TCP4, csum_offset=6), id="udp's csum_offset for tcp"),
    pytest.param(UDP4, csum(UDP4, csum_offset=16), id="tcp's csum_offset for udp"),
    pytest.param(TCP4, csum(TCP4, csum_offset=65535), id="csum_offset beyond the packet"),
    pytest.param(PING, csum(PING, csum_offset=2), id="partial icmp"),
    pytest.param(SCTP4, csum(SCTP4, csum_offset=8), id="partial sctp"),
    pytest.param(FIRST, csum(FIRST), id="partial first fragment"),
    pytest.param(LATER, csum(LATER), id="partial later fragment"),
    pytest.param(FRAG6, {"flags": NEEDS_CSUM, "csum_start": 48, "csum_offset": 6}, id="partial ipv6 fragment"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=0), id="gso_size 0"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=1), id="gso_size 1"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=23), id="more segments than one send holds"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV6, gso_size=1000), id="ipv6's type for ipv4"),
    pytest.param(TCP6, csum(TCP6, gso_type=GSO_TCPV4, gso_size=1000), id="ipv4's type for ipv6"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_UDP_L4, gso_size=1000), id="udp's type for tcp"),
    pytest.param(UDP4, csum(UDP4, gso_type=GSO_TCPV4, gso_size=1000), id="tcp's type for udp"),
    pytest.param(UDP4, csum(UDP4, gso_type=GSO_UDP, gso_size=1000), id="udp fragmentation offload"),
    pytest.param(UDP4, csum(UDP4, gso_type=GSO_UDP_L4 | GSO_ECN, gso_size=1000), id="udp with ECN"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_ECN, gso_size=1000), id="ECN of nothing"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4 | 0x20, gso_size=1000), id="tunnel bit"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=1000, flags=0), id="gso without partial checksum"),
    pytest.param(TCP4, csum(TCP4, gso_type=GSO_TCPV4, gso_size=1000, flags=DATA_VALID), id="gso with DATA_VALID only"),
    pytest.param(PING, {"gso_type": GSO_TCPV4, "gso_size": 10}, id="gso of icmp"),
    pytest.param(FIRST, {"gso_type": GSO_UDP_L4, "gso_size": 100}, id="gso of a first fragment"),
    pytest.param(LATER, {"gso_type": GSO_TCPV4, "gso_size": 100}, id="gso of a later fragment"),
    pytest.param(SYN, csum(SYN, gso_type=GSO_TCPV4, gso_size=1000), id="SYN in a superpacket"),
    pytest.param(RST, csum(RST, gso_type=GSO_TCPV4, gso_size=1000), id="RST in a superpacket"),
    pytest.param(TCP4, {"flags": RSC_INFO}, id="RSC_INFO"),
    pytest.param(TCP4, {"flags": UDP_TUNNEL_CSUM}, id="tunnel checksum"),
]


@pytest.mark.parametrize(("packet", "fields", "expected"), ACCEPTED)
def test_accepted(packet: bytes, fields: dict[str, int], expected: Vnet) -> None:
    assert vnet_check(header(**fields), parse([packet])) == ("none", expected)


@pytest.mark.parametrize(("packet", "fields"), REFUSED)
def test_refused(packet: bytes, fields: dict[str, int]) -> None:
    assert vnet_check(header(**fields), parse([packet]))[0] == "bad_gso"


def twin(packet: bytes, flow: np.void, fields: tuple[int, ...]) -> bool:
    """Whether it is to be accepted, said the long way; the packet is TCP or UDP, no fragment, without SYN and RST."""
    flags, gso_type, _, gso_size, csum_start, csum_offset = fields
    proto, offset, size = headers(packet)
    payload = int(flow["total_size"]) - offset - size
    if flags & ~3:
        return False
    if flags & 1 and (csum_start != offset or csum_offset != (16 if proto == 6 else 6)):
        return False
    if gso_type == 0:
        return True
    allowed = {(4, 6): (1, 0x81), (6, 6): (4, 0x84), (4, 17): (5,), (6, 17): (5,)}[packet[0] >> 4, proto]
    return bool(gso_type in allowed and flags & 1 and gso_size and payload <= 128 * gso_size)


@pytest.mark.parametrize("seed", [random.randrange(2**32)])
def test_random_headers_are_judged_as_the_twin_does(seed: int) -> None:
    """What is accepted can be cut into as many segments as it says."""
    rng, accepted = random.Random(seed), 0
    packets = [random_packet(rng, rng.choice((0, 1, 500, 5000))) for _ in range(100)]
    flows = parse(packets)
    for case in range(20_000):
        index = case % len(packets)
        packet = packets[index]
        proto, offset, _ = headers(packet)
        kinds = (0, 1, 4, 5, 0x81, 0x84, rng.randrange(256))
        sizes = (0, 1, 4, 39, 40, 499, 500, 1000, 65535)
        start = (offset, offset, offset, rng.randrange(2**16))
        check = (16 if proto == 6 else 6, 16 if proto == 6 else 6, rng.randrange(2**16))
        choices = ((1, 1, 1, 0, 3, rng.randrange(256)), kinds, (rng.randrange(2**16),), sizes, start, check)
        fields = tuple(rng.choice(options) for options in choices)
        drop, vnet = vnet_check(vnet_header(*fields), flows[index : index + 1])
        expected = twin(packet, flows[index], fields)
        assert (drop == "none") == expected, f"seed {seed}: {fields} for {packet[:60].hex()}"
        if expected and accepted % 20 == 0:
            wire = segment(packet, vnet)
            assert isinstance(wire, list) and len(wire) == vnet.segments, f"seed {seed}: {fields}"
        accepted += expected
    assert accepted > 1500


def test_limit_is_one_sends() -> None:
    """The largest number of segments that passes is CANAL_SEGMENTS_MAX."""
    packet = raw(IP(dst="10.244.2.2") / TCP(flags="A") / bytes(lib.CANAL_SEGMENTS_MAX * 10 + 1))
    size = len(packet) - 40
    flow = parse([packet])
    assert vnet_check(header(**csum(packet, gso_type=GSO_TCPV4, gso_size=10)), flow)[0] == "bad_gso"
    assert vnet_check(header(**csum(packet, gso_type=GSO_TCPV4, gso_size=11)), flow)[1].segments == -(-size // 11)
