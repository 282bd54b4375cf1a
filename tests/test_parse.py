"""parse: fields as scapy reads them, malformed packets dropped with their reason, nothing read beyond the packet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_build import run_native
from packets import PAYLOAD, PORTS, V4, V6, every_kind, random_packet
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw
from twin_parse import AH, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, Refused, Twin, ones_sum, packed, read

from canal_udp._abi import dtype_of, enum_names, ffi, lib

DROPS = enum_names("enum canal_drop", "CANAL_DROP_")
DF, FRAG, LATER, MORE, ICMP_ERROR, OPTIONS = 1, 2, 4, 8, 16, 32
SEED = 20240611


def parse(packets: Sequence[bytes]) -> Any:
    """A structured array, one row a packet."""
    spans = np.zeros(len(packets), dtype_of("struct canal_span"))
    spans["size"] = [len(packet) for packet in packets]
    spans["offset"][1:] = np.cumsum(spans["size"])[:-1]
    flows = np.full(len(packets), 0xA5, np.uint8).repeat(ffi.sizeof("struct canal_flow"))
    done = lib.canal_parse(
        ffi.from_buffer("uint8_t[]", b"".join(packets) or b"\0"),
        ffi.from_buffer("struct canal_span[]", spans),
        len(packets),
        ffi.from_buffer("struct canal_flow[]", flows, require_writable=True),
    )
    assert done == len(packets)
    return flows.view(dtype_of("struct canal_flow"))


def reason(packet: bytes | Packet) -> str:
    return DROPS[int(parse([bytes(packet)])[0]["drop"])]


def fields(flow: Any) -> Twin:
    numbers = ("family", "proto", "flags", "tos", "ttl", "tcp_flags", "icmp_type", "icmp_code", "l4_offset", "l4_size")
    twin = Twin(src=bytes(flow["src"]), dst=bytes(flow["dst"]))
    for name in (*numbers, "total_size", "frag_id", "frag_offset"):
        setattr(twin, name, int(flow[name]))
    twin.sport, twin.dport = (int.from_bytes(flow[port].tobytes(), "big") for port in ("sport_be", "dport_be"))
    return twin


def twin_of(packet: bytes) -> Twin | str:
    try:
        return read(packet)
    except Refused as refused:
        return str(refused)


def assert_like_twin(packets: Sequence[bytes]) -> None:
    for packet, flow in zip(packets, parse(packets), strict=True):
        expected = twin_of(packet)
        got = fields(flow) if flow["drop"] == 0 else DROPS[flow["drop"]]
        assert got == expected, packet.hex()


def fixed_sum(header: bytes) -> bytes:
    """The IPv4 header (or packet without options) with its checksum right."""
    header = header[:10] + b"\0\0" + header[12:]
    check = ~ones_sum(header[: (header[0] & 15) * 4].ljust(20, b"\0")) & 0xFFFF
    return header[:10] + check.to_bytes(2, "big") + header[12:]


def with_ip(packet: Packet, at: int, value: bytes) -> bytes:
    """An IPv4 packet with bytes of its header replaced and the header checksum right again."""
    raw = bytes(packet)
    return fixed_sum(raw[:at] + value + raw[at + len(value) :])


# ---- good packets ----------------------------------------------------------------------------------------------------


def test_scapy_agrees_on_random_packets() -> None:
    rng = random.Random(SEED)
    packets = [random_packet(rng) for _ in range(3000)]
    for packet, flow in zip(packets, parse([bytes(packet) for packet in packets]), strict=True):
        raw = bytes(packet)
        where = f"seed {SEED}: {raw.hex()}"
        again = IP(raw) if raw[0] >> 4 == 4 else IPv6(raw)
        l4 = next(again[layer] for layer in (TCP, UDP, SCTP, ICMP, ICMPv6EchoRequest) if layer in packet)
        got = fields(flow)
        assert flow["drop"] == 0, where
        assert (got.family, got.src, got.dst) == (again.version, packed(again.src), packed(again.dst)), where
        assert got.total_size == len(raw), where
        assert got.l4_offset == len(raw) - len(bytes(l4)), where
        if got.family == 4:
            assert (got.tos, got.ttl, got.frag_id) == (again.tos, again.ttl, again.id), where
            assert bool(got.flags & DF) == bool(again.flags.DF), where
        else:
            assert (got.tos, got.ttl) == (again.tc, again.hlim), where
        ports = (l4.id, l4.id) if isinstance(l4, (ICMP, ICMPv6EchoRequest)) else (l4.sport, l4.dport)
        assert (got.sport, got.dport) == ports, where
        if isinstance(l4, TCP):
            assert (got.tcp_flags, got.l4_size) == (int(l4.flags) & 255, l4.dataofs * 4), where


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_is_valid_and_read_like_the_twin_does(kind: str) -> None:
    packet = every_kind()[kind]
    assert reason(packet) == "none"
    assert_like_twin([packet, packet + b"trailing bytes that the header does not count"])


def test_a_batch_of_none() -> None:
    assert lib.canal_parse(ffi.NULL, ffi.NULL, 0, ffi.NULL) == 0


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(
            IP(**V4, flags="DF") / TCP(**PORTS) / Raw(bytes(65535 - 40)),
            {"flags": DF, "total_size": 65535, "l4_size": 20},
            id="superpacket of TCP, as large as they come",
        ),
        pytest.param(
            IPv6(**V6) / UDP(**PORTS) / Raw(bytes(60000)),
            {"flags": DF, "total_size": 60048, "sport": 40000},
            id="superpacket of UDP: its length field counts all segments",
        ),
        pytest.param(
            IP(**V4) / ICMP(type=0, id=9), {"sport": 9, "dport": 9, "icmp_type": 0}, id="echo reply has its id"
        ),
        pytest.param(IP(**V4) / ICMP(type=13, id=9), {"sport": 0, "flags": 0}, id="timestamp request has no ports"),
        pytest.param(IP(**V4) / ICMP(type=5) / Raw(bytes(28)), {"flags": ICMP_ERROR}, id="redirect quotes a packet"),
        pytest.param(
            IPv6(**V6) / ICMPv6TimeExceeded() / Raw(bytes(48)),
            {"flags": DF | ICMP_ERROR, "icmp_type": 3},
            id="ICMPv6 below 128 is an error",
        ),
        pytest.param(
            IPv6(**V6, nh=1) / Raw(bytes(8)), {"proto": 1, "l4_size": 0}, id="ICMP over IPv6 is just a protocol"
        ),
        pytest.param(IP(**V4, proto=58) / Raw(bytes(8)), {"proto": 58, "l4_size": 0}, id="ICMPv6 over IPv4 likewise"),
        pytest.param(IPv6(**V6, nh=50) / PAYLOAD, {"proto": 50, "sport": 0, "l4_size": 0}, id="ESP has no ports"),
        pytest.param(
            IPv6(**V6, nh=59) / PAYLOAD, {"proto": 59, "l4_size": 0}, id="bytes after no next header are no L4"
        ),
        pytest.param(
            IPv6(**V6) / IPv6ExtHdrFragment(id=7) / UDP(**PORTS),
            {"flags": DF | OPTIONS, "sport": 40000, "frag_id": 7, "l4_offset": 48},
            id="an atomic fragment is no fragment",
        ),
        pytest.param(
            IPv6(**V6) / IPv6ExtHdrFragment(m=1, id=7) / IPv6ExtHdrDestOpt() / UDP(**PORTS),
            {"flags": DF | OPTIONS | FRAG | MORE, "sport": 40000, "l4_offset": 56},
            id="a first fragment is read through to its ports",
        ),
        pytest.param(
            IPv6(**V6) / IPv6ExtHdrFragment(offset=3, id=7, nh=60) / Raw(bytes(20)),
            {"flags": DF | OPTIONS | FRAG | LATER, "proto": 60, "frag_offset": 24, "l4_offset": 48, "sport": 0},
            id="what a later fragment calls next header is payload",
        ),
        pytest.param(
            IP(**V4, frag=100, flags="MF", id=3, proto=17) / Raw(bytes(16)),
            {"flags": FRAG | LATER | MORE, "frag_offset": 800, "frag_id": 3, "sport": 0, "dport": 0},
            id="a later fragment has no ports",
        ),
        pytest.param(
            IP(**V4, frag=8188, proto=17) / Raw(bytes(11)), {"frag_offset": 65504}, id="a fragment that ends at 65535"
        ),
    ],
)
def test_what_is_read(packet: Packet, expected: dict[str, int]) -> None:
    assert reason(packet) == "none"
    got = fields(parse([bytes(packet)])[0])
    assert {name: getattr(got, name) for name in expected} == expected


# ---- bad packets -----------------------------------------------------------------------------------------------------


def destination_options(n: int, size: int = 8) -> bytes:
    """n headers before a UDP header."""
    headers = b"".join(bytes([DESTINATION if i < n - 1 else 17, size // 8 - 1]).ljust(size, b"\0") for i in range(n))
    return bytes(IPv6(**V6, nh=DESTINATION if n else 17) / Raw(headers) / UDP(**PORTS, chksum=1))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(b"", "short", id="nothing"),
        pytest.param(with_ip(IP(**V4) / UDP(**PORTS), 2, b"\0\x1d"), "short", id="IPv4 total length beyond the bytes"),
        pytest.param(with_ip(IP(**V4) / UDP(**PORTS), 2, b"\0\x13"), "bad_ip", id="IPv4 total length below its header"),
        pytest.param(bytes(IP(**V4, chksum=0xBAD) / UDP(**PORTS)), "bad_ip", id="IPv4 header checksum"),
        pytest.param(bytes(40)[1:], "bad_ip", id="version 0"),
        pytest.param(bytes(IPv6(**V6, plen=9) / PAYLOAD), "short", id="IPv6 payload length beyond the bytes"),
        pytest.param(bytes(IPv6(**V6, plen=65500) / Raw(bytes(65500))), "too_long", id="IPv6 packet above 65535 bytes"),
        pytest.param(IP(**V4) / TCP(dataofs=4), "bad_l4", id="TCP data offset 4"),
        pytest.param(IP(**V4) / TCP(dataofs=6), "bad_l4", id="TCP data offset beyond the packet"),
        pytest.param(IP(**V4, proto=6) / Raw(bytes(19)), "bad_l4", id="TCP header of 19 bytes"),
        pytest.param(IP(**V4) / UDP(len=7) / PAYLOAD, "bad_l4", id="UDP length 7"),
        pytest.param(IP(**V4) / UDP(len=17) / PAYLOAD, "bad_l4", id="UDP length beyond the packet"),
        pytest.param(IP(**V4, proto=17) / Raw(bytes(7)), "bad_l4", id="UDP header of 7 bytes"),
        pytest.param(IP(**V4, proto=132) / Raw(bytes(11)), "bad_l4", id="SCTP header of 11 bytes"),
        pytest.param(IP(**V4, proto=1) / Raw(bytes(7)), "bad_l4", id="ICMP header of 7 bytes"),
        pytest.param(IPv6(**V6, nh=58) / Raw(bytes(7)), "bad_l4", id="ICMPv6 header of 7 bytes"),
        pytest.param(IP(**V4, flags="MF", proto=6) / Raw(bytes(8)), "bad_l4", id="tiny first fragment of TCP, 8 bytes"),
        pytest.param(
            IP(**V4, flags="MF") / TCP(dataofs=8) / Raw(bytes(4)), "bad_l4", id="first fragment cuts TCP options"
        ),
        pytest.param(
            IPv6(**V6) / IPv6ExtHdrFragment(m=1, nh=6) / Raw(bytes(16)), "bad_l4", id="tiny first fragment, IPv6"
        ),
        pytest.param(IP(**V4, frag=1, proto=6) / Raw(bytes(40)), "bad_l4", id="TCP fragment at 8: over the flags"),
        pytest.param(IPv6(**V6) / IPv6ExtHdrFragment(offset=1, nh=6) / PAYLOAD, "bad_l4", id="TCP fragment at 8, IPv6"),
        pytest.param(IP(**V4, frag=8188, proto=17) / Raw(bytes(12)), "bad_ip", id="fragment that ends above 65535"),
        pytest.param(IP(**V4, frag=8191, proto=17) / Raw(bytes(1400)), "bad_ip", id="ping of death"),
        pytest.param(IP(**V4, frag=2, flags="MF", proto=17) / Raw(bytes(9)), "bad_ip", id="not the last, of 9 bytes"),
        pytest.param(IP(**V4, frag=2, proto=17), "bad_ip", id="fragment of no bytes"),
        pytest.param(IPv6(**V6) / IPv6ExtHdrFragment(offset=8191) / Raw(bytes(8)), "bad_ext", id="above 65535, IPv6"),
        pytest.param(IPv6(**V6) / IPv6ExtHdrFragment(offset=9, m=1) / Raw(bytes(9)), "bad_ext", id="9 bytes, IPv6"),
        pytest.param(IPv6(**V6) / IPv6ExtHdrFragment(offset=9), "bad_ext", id="fragment of no bytes, IPv6"),
        pytest.param(
            IPv6(**V6) / IPv6ExtHdrFragment() / IPv6ExtHdrFragment(m=1) / UDP(), "bad_ext", id="two fragment headers"
        ),
        pytest.param(IPv6(**V6) / IPv6ExtHdrRouting(type=0) / UDP(), "bad_ext", id="routing header 0"),
        pytest.param(
            IPv6(**V6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / UDP(), "bad_ext", id="hop-by-hop not first"
        ),
        pytest.param(IPv6(**V6, nh=0) / Raw(b"\x11\0\xc2\x04\0\1\0\0") / UDP(), "bad_ext", id="jumbo payload"),
        pytest.param(
            IPv6(**V6, nh=0) / Raw(b"\x11\0\x05\x05\0\0\0\0") / UDP(), "bad_ext", id="hop-by-hop option overruns"
        ),
        pytest.param(IPv6(**V6, nh=0, plen=0), "bad_ext", id="payload length 0 and no jumbo option either"),
        pytest.param(IPv6(**V6, nh=60) / Raw(b"\x11\1" + bytes(6)), "bad_ext", id="extension header beyond the packet"),
        pytest.param(IPv6(**V6, nh=60) / Raw(b"\x11\0" + bytes(5)), "bad_ext", id="extension header of 7 bytes"),
        pytest.param(IPv6(**V6, nh=51) / Raw(b"\x11\0" + bytes(30)), "bad_ext", id="AH shorter than its fixed part"),
        pytest.param(destination_options(9), "bad_ext", id="nine extension headers"),
        pytest.param(destination_options(2, 136), "bad_ext", id="272 bytes of extension headers"),
    ],
)
def test_what_is_dropped(packet: bytes | Packet, expected: str) -> None:
    assert reason(packet) == expected


@pytest.mark.parametrize(
    "packet", [destination_options(8), destination_options(2, 128)], ids=["8 headers", "256 bytes"]
)
def test_extension_headers_up_to_the_bound_pass(packet: bytes) -> None:
    assert reason(packet) == "none"


@pytest.mark.parametrize("version", range(16))
def test_ip_versions(version: int) -> None:
    """Whatever follows: only 4 and 6 can ever be valid, or too short to tell."""
    rng = random.Random(version)
    packets = [bytes([version << 4 | rng.randrange(16)]) + rng.randbytes(rng.randrange(80)) for _ in range(500)]
    seen = {DROPS[flow["drop"]] for flow in parse(packets)}
    if version not in (4, 6):
        assert seen == {"bad_ip"}
    assert_like_twin(packets)


# ---- exhaustive tables against the twin ------------------------------------------------------------------------------


def test_every_header_length_and_total_length() -> None:
    body = bytes(IP(**V4, proto=47) / Raw(b"\1" * 60))
    packets = [
        fixed_sum(bytes([0x40 | ihl]) + body[1:2] + total.to_bytes(2, "big") + body[4:])
        for ihl in range(16)
        for total in range(len(body) + 5)
    ]
    assert_like_twin(packets)


def test_every_option_and_its_length() -> None:
    """All types with the lengths that matter, alone and behind others: source routes never pass."""

    body = bytes(IP(**V4, proto=47, options=[IPOption(bytes([1] * 12))]) / PAYLOAD)

    def packet(options: bytes) -> bytes:
        return fixed_sum(body[:20] + options.ljust(12, b"\0") + body[32:])

    packets = [
        packet(before + bytes([kind, size]))
        for kind in range(256)
        for size in (*range(5), *range(9, 14), 255)
        for before in (b"", b"\1", b"\7\4\4\0", b"\1" * 10)
    ]
    packets += [packet(b"\1" * 11 + bytes([kind])) for kind in range(256)]
    assert_like_twin(packets)
    routes = [packet(before + bytes([kind, 3, 4])) for kind in (131, 137) for before in (b"", b"\1", b"\7\4\4\0")]
    assert {reason(route) for route in routes} == {"ip_option"}


EXTENSIONS = {
    HOP_BY_HOP: bytes(8),
    DESTINATION: bytes(8),
    ROUTING: b"\0\0\4\0" + bytes(4),
    FRAGMENT: bytes(8),
    AH: b"\0\4" + bytes(22),
}
MORE_EXTENSIONS = {
    **{
        name: (kind, EXTENSIONS[kind])
        for name, kind in (("h", HOP_BY_HOP), ("d", DESTINATION), ("r", ROUTING), ("a", AH))
    },
    "0": (ROUTING, bytes(8)),
    "A": (FRAGMENT, bytes(8)),
    "F": (FRAGMENT, b"\0\0\0\1" + bytes(4)),
    "L": (FRAGMENT, b"\0\0\0\x20" + bytes(4)),
    "e": (50, bytes(8)),
    "n": (59, b""),
    "o": (DESTINATION, b"\0\xff" + bytes(6)),
}


def chain(names: Iterable[str], last: int, payload: bytes) -> bytes:
    """An IPv6 packet with these extension headers before protocol `last`."""
    headers = [MORE_EXTENSIONS[name] for name in names]
    kinds = [kind for kind, _ in headers] + [last]
    body = b"".join(bytes([kinds[i + 1]]) + raw[1:] for i, (_, raw) in enumerate(headers) if raw) + payload
    return bytes(IPv6(**V6, nh=kinds[0], plen=len(body))) + body


def test_every_chain_of_up_to_four_extension_headers() -> None:
    udp = bytes(UDP(**PORTS, len=16)) + b"payload!"
    chains = itertools.chain.from_iterable(itertools.product(MORE_EXTENSIONS, repeat=n) for n in range(4))
    assert_like_twin([chain(names, 17, udp) for names in chains])


def test_deep_and_random_chains() -> None:
    rng = random.Random(SEED)
    tcp = bytes(TCP(**PORTS, chksum=1)) + bytes(12)
    chains = [
        rng.choices(list(MORE_EXTENSIONS), (1, 9, 9, 9, 1, 2, 1, 1, 1, 1, 1), k=rng.randrange(21)) for _ in range(5000)
    ]
    assert_like_twin([chain(names, rng.choice((6, 17, 132, 58, 1, 47)), tcp) for names in chains])


def test_every_fragment_offset_of_both_families() -> None:
    sizes = (0, 7, 8, 16, 24, 1480)
    packets = []
    for offset, more, size, proto in itertools.product((*range(12), *range(8000, 8192)), (0, 1), sizes, (6, 17)):
        body = bytes(size)
        word = more << 13 | offset
        ip4 = (
            b"\x45\0"
            + (20 + size).to_bytes(2, "big")
            + b"\0\1"
            + word.to_bytes(2, "big")
            + bytes([9, proto])
            + bytes(10)
        )
        packets.append(fixed_sum(ip4) + body)
        extension = bytes([proto, 0]) + (offset << 3 | more).to_bytes(2, "big") + bytes(4)
        packets.append(
            b"\x60\0\0\0" + (8 + size).to_bytes(2, "big") + bytes([FRAGMENT, 9]) + bytes(32) + extension + body
        )
    assert_like_twin(packets)


def test_random_damage_is_judged_like_the_twin_does() -> None:
    rng = random.Random(SEED)
    kinds = list(every_kind().values())

    def damaged() -> bytes:
        packet = bytearray(rng.choice(kinds))
        for _ in range(rng.randrange(1, 4)):
            packet[rng.randrange(min(len(packet), 100))] = rng.choice((0, 1, 4, 8, 0x45, 255, rng.randrange(256)))
        cut = bytes(packet[: rng.randrange(len(packet)) if rng.random() < 0.1 else len(packet)])
        header_is_there = len(cut) >= 20 and cut[0] >> 4 == 4 and (cut[0] & 15) * 4 <= len(cut)
        return fixed_sum(cut) if header_is_there and rng.random() < 0.9 else cut

    assert_like_twin([damaged() for _ in range(20000)])


# ---- never beyond the packet (sanitizers) ----------------------------------------------------------------------------


def test_every_prefix_of_every_kind_is_dropped(tmp_path: Path) -> None:
    kinds = every_kind()
    lines = run_native(
        tmp_path, "test_parse.c", ["parse.c"], "prefixes", stdin="\n".join(p.hex() for p in kinds.values())
    )
    for (kind, packet), line in zip(kinds.items(), lines.splitlines(), strict=True):
        drops = [DROPS[int(word)] for word in line.split()]
        assert len(drops) == len(packet) + 1
        assert set(drops[:-1]) == {"short"}, kind
        assert drops[-1] == "none", kind


def test_damaged_packets_are_read_within_their_bytes(tmp_path: Path) -> None:
    run_native(
        tmp_path, "test_parse.c", ["parse.c"], "mutate", SEED, stdin="\n".join(p.hex() for p in every_kind().values())
    )
