"""gso.c: superpackets are cut as a NIC with TSO and USO would, and every checksum on the wire is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from native_build import build_native, run_program
from scapy.all import IP, TCP, UDP, IPv6, IPv6ExtHdrDestOpt, PadN, raw
from stages import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Vnet, coalesce, segment
from twin_gso import CWR, FIN, PSH, check_at, final, headers, partial, random_packet, tcp_packet, udp_packet
from twin_gso import segment as twin_segment

from canal_udp._abi import lib

ACK, URG, ECE = 16, 32, 64


def superpacket_vnet(packet: bytes, gso_size: int) -> Vnet:
    proto, offset, size = headers(packet)
    kind = GSO_UDP_L4 if proto == 17 else GSO_TCPV4 if packet[0] >> 4 == 4 else GSO_TCPV6
    count = -(-(len(packet) - offset - size) // gso_size)
    return Vnet(1, kind, gso_size, offset, check_at(packet) - offset, offset + size, count)


def cut(packet: bytes, gso_size: int) -> list[bytes]:
    wire = segment(partial(packet), superpacket_vnet(packet, gso_size))
    assert isinstance(wire, list), wire
    return wire


def rebuilt(packet: bytes) -> bytes:
    """As scapy writes it when it chooses lengths and checksums itself."""
    layer = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    for name in ("len", "chksum", "plen"):
        for part in (layer, layer[TCP] if TCP in layer else layer[UDP]):
            if name in part.fields:
                delattr(part, name)
    return raw(layer)


@pytest.mark.parametrize("seed", [random.randrange(2**32) for _ in range(4)])
def test_segments_equal_the_twins(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(400):
        gso_size = rng.choice((1, 2, 7, 100, 536, 1398, 1399))
        size = rng.randrange(1, min(gso_size * 60, 65300)) if rng.random() < 0.95 else gso_size * rng.randrange(1, 40)
        packet = random_packet(rng, size)
        assert cut(packet, gso_size) == twin_segment(packet, gso_size), f"seed {seed}, gso_size {gso_size}"


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(
            raw(IP(src="10.0.0.1", dst="10.0.1.1", id=65534, tos=2) / TCP(flags="PA") / (bytes(range(250)) * 20)),
            id="ipv4 tcp",
        ),
        pytest.param(
            raw(IP(flags="DF", ttl=3) / TCP(flags="A", options=[("Timestamp", (1, 2))]) / (b"x" * 3001)),
            id="tcp timestamps",
        ),
        pytest.param(raw(IP(options=[b"\1"] * 8) / TCP(flags="AF") / (b"ab" * 999)), id="ipv4 options"),
        pytest.param(
            raw(IPv6(src="fd00::1", dst="fd00::2", fl=77, tc=9) / TCP(flags="A") / (b"x" * 2801)), id="ipv6 tcp"
        ),
        pytest.param(
            raw(IPv6() / IPv6ExtHdrDestOpt(options=PadN(optdata=b"\0" * 4)) / TCP(flags="A") / (b"x" * 1999)),
            id="ipv6 extension header",
        ),
        pytest.param(raw(IP() / UDP(sport=1, dport=2) / (b"y" * 5003)), id="ipv4 udp"),
        pytest.param(raw(IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / (b"y" * 5003)), id="ipv6 udp"),
    ],
)
@pytest.mark.parametrize("gso_size", [400, 999])
def test_scapy_agrees_with_every_header(packet: bytes, gso_size: int) -> None:
    wire = cut(packet, gso_size)
    _, offset, size = headers(packet)
    assert [rebuilt(one) for one in wire] == wire
    assert b"".join(one[offset + size :] for one in wire) == packet[offset + size :]


@pytest.mark.parametrize(
    ("flags", "first", "middle", "last"),
    [
        pytest.param(ACK, ACK, ACK, ACK, id="ACK on all"),
        pytest.param(ACK | PSH, ACK, ACK, ACK | PSH, id="PSH only on the last"),
        pytest.param(ACK | FIN, ACK, ACK, ACK | FIN, id="FIN only on the last"),
        pytest.param(ACK | CWR | ECE, ACK | CWR | ECE, ACK | ECE, ACK | ECE, id="CWR only on the first"),
        pytest.param(ACK | URG, ACK | URG, ACK | URG, ACK | URG, id="URG on all"),
    ],
)
def test_tcp_flags(flags: int, first: int, middle: int, last: int) -> None:
    wire = cut(tcp_packet(4, bytes(300), flags), 100)
    assert [one[33] for one in wire] == [first, middle, last]


def test_sequence_and_id_wrap_around() -> None:
    wire = cut(tcp_packet(4, bytes(30), seq=2**32 - 10, ident=65535), 10)
    assert [int.from_bytes(one[24:28], "big") for one in wire] == [2**32 - 10, 0, 10]
    assert [int.from_bytes(one[4:6], "big") for one in wire] == [65535, 0, 1]


@pytest.mark.parametrize("family", [4, 6])
def test_udp_checksum_is_never_zero(family: int) -> None:
    """The payload is chosen so that the sum comes out as zero, in one segment and in a plain packet."""
    probe = udp_packet(family, bytes(10))
    zero = probe[check_at(probe) : check_at(probe) + 2]
    plain = udp_packet(family, zero + bytes(8))
    assert plain[check_at(plain) : check_at(plain) + 2] == b"\xff\xff"
    vnet = Vnet(1, csum_start=headers(plain)[1], csum_offset=6)
    assert segment(partial(plain), vnet) == [plain]
    if family == 4:
        many = udp_packet(4, (zero + bytes(8)) * 3)
        assert cut(many, 10)[0][26:28] == b"\xff\xff"


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(final(tcp_packet(4, b"abc")), id="tcp"),
        pytest.param(tcp_packet(4, b"abc")[:-1] + b"!", id="wrong checksum"),
        pytest.param(udp_packet(6, b"abc"), id="udp"),
        pytest.param(raw(IP(dst="10.0.0.1", proto=1) / b"\x08\0\1\2\3\4\5\6"), id="icmp"),
        pytest.param(raw(IP(dst="10.0.0.1", frag=9, proto=6) / b"fragment"), id="later fragment"),
        pytest.param(raw(IP(dst="10.0.0.1", proto=99)), id="no payload"),
    ],
)
def test_plain_packet_without_partial_checksum_stays_as_it_is(packet: bytes) -> None:
    assert segment(packet, Vnet()) == [packet]


def test_trailing_bytes_are_not_sent() -> None:
    packet = tcp_packet(4, bytes(100))
    assert segment(partial(packet) + b"padding", superpacket_vnet(packet, 60)) == twin_segment(packet, 60)


@pytest.mark.parametrize(
    ("packet", "vnet", "room", "error"),
    [
        pytest.param(b"", Vnet(), 100, "CANAL_EINVAL", id="no packet"),
        pytest.param(tcp_packet(4, b"")[:30], Vnet(), 100, "CANAL_EINVAL", id="truncated"),
        pytest.param(
            raw(IP(dst="10.0.0.1", proto=99) / b"xx"), Vnet(1), 100, "CANAL_EINVAL", id="no checksum to finish"
        ),
        pytest.param(tcp_packet(4, bytes(9)), Vnet(1, GSO_TCPV4, 0), 100, "CANAL_EINVAL", id="gso_size 0"),
        pytest.param(
            tcp_packet(4, bytes(9)), Vnet(0, GSO_TCPV4, 4), 900, "CANAL_EINVAL", id="gso without partial checksum"
        ),
        pytest.param(tcp_packet(4, bytes(9)), Vnet(), 48, "CANAL_ERANGE", id="one byte too few"),
    ],
)
def test_refused(packet: bytes, vnet: Vnet, room: int, error: str) -> None:
    assert segment(packet, vnet, out_size=room) == getattr(lib, error)


def test_too_few_spans() -> None:
    packet = partial(tcp_packet(4, bytes(30)))
    vnet = superpacket_vnet(packet, 10)
    assert segment(packet, vnet, n_spans=2) == lib.CANAL_ERANGE
    assert isinstance(segment(packet, vnet, n_spans=3), list)


@pytest.mark.parametrize("seed", [random.randrange(2**32)])
def test_cut_and_joined_again(seed: int) -> None:
    """coalesce(segment(s)) == s for what coalesce joins at all."""
    rng = random.Random(seed)
    for _ in range(200):
        family, payload, gso_size = rng.choice((4, 6)), rng.randbytes(rng.randrange(200, 9000)), rng.randrange(100, 199)
        packet = partial(rng.choice((tcp_packet, udp_packet))(family, payload))
        joined = coalesce(cut(packet, gso_size))
        assert isinstance(joined, list)
        whole, vnet = joined[0]
        assert len(joined) == 1 and vnet == superpacket_vnet(packet, gso_size), f"seed {seed}"
        assert final(whole) == final(packet), f"seed {seed}"
        assert whole == partial(whole)


# ---- partial and final checksums of linear packets: tests/native/test_gso.c ------------------------------------------


def corrupted(packet: bytes, at: int) -> bytes:
    out = bytearray(packet)
    out[at] ^= 0x10
    return bytes(out)


ICMP4 = raw(IP(src="10.0.0.1", dst="10.0.1.1", proto=1) / bytes.fromhex("0800f7fd00000002"))
ICMP6 = bytes.fromhex("6000000000083a40") + bytes.fromhex("fd" + "00" * 14 + "01fd" + "00" * 14 + "02800080c7dead9fe8")
FRAGMENT = raw(IP(src="10.0.0.1", dst="10.0.1.1", flags="MF", proto=17) / bytes.fromhex("00010002001c1234") / bytes(16))
NO_CHECK = udp_packet(4, b"abc")[:26] + b"\0\0abc"
NO_CHECK6 = udp_packet(6, b"abc")[:46] + b"\0\0abc"
PADDED = raw(
    IP(src="10.0.0.1", dst="10.0.1.1", proto=17)
    / (raw(IP(src="10.0.0.1", dst="10.0.1.1") / UDP() / b"abc")[20:] + b"ZZ")
)

CHECKED = [
    *(
        pytest.param(make(f, bytes(range(n))), True, True, id=f"{make.__name__} ipv{f} {n} bytes")
        for make in (tcp_packet, udp_packet)
        for f in (4, 6)
        for n in (0, 1, 50)
    ),
    *(
        pytest.param(corrupted(make(f, bytes(51)), -1), False, True, id=f"{make.__name__} ipv{f} wrong byte")
        for make in (tcp_packet, udp_packet)
        for f in (4, 6)
    ),
    *(
        pytest.param(partial(make(f, bytes(51))), True, True, id=f"{make.__name__} ipv{f} partial")
        for make in (tcp_packet, udp_packet)
        for f in (4, 6)
    ),
    pytest.param(NO_CHECK, True, False, id="udp ipv4 without checksum"),
    pytest.param(NO_CHECK6, False, False, id="udp ipv6 without checksum"),
    pytest.param(PADDED, True, False, id="bytes behind the udp datagram"),
    pytest.param(FRAGMENT, True, False, id="fragment"),
    pytest.param(ICMP4, True, False, id="icmp"),
    pytest.param(corrupted(ICMP4, -1), False, False, id="icmp wrong byte"),
    pytest.param(raw(IP(dst="10.0.0.1", proto=132) / bytes(12)), True, False, id="sctp is not ours to check"),
    pytest.param(raw(IP(dst="10.0.0.1", proto=99) / b"xyz"), True, False, id="unknown protocol"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_native(tmp_path_factory.mktemp("gso"), "test_gso.c", ["gso.c", "csum.c", "parse.c", "vnet.c"])


@pytest.mark.parametrize(("packet", "right", "ours"), CHECKED)
def test_verify_make_partial_finish(program: Path, packet: bytes, right: bool, ours: bool) -> None:
    """ours: a checksum that make_partial replaces; finishing it again is what scapy and the twin would have sent."""
    verified, needs_csum, half, whole = run_program(program, stdin=packet.hex()).split()
    assert bool(int(verified)) == right
    assert bool(int(needs_csum)) == ours
    assert bytes.fromhex(half) == (partial(packet) if ours else packet)
    assert bytes.fromhex(whole) == (final(packet) if ours else packet)
