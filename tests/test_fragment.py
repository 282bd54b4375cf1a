"""fragment: what later fragments get, overlaps, bounds and time; and cutting what is too big."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
from native_build import build_native, run_program
from packets import PORTS, V4, V6
from scapy.layers.inet import IP, UDP, IPOption, IPOption_NOP, IPOption_RR, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.ipsec import AH
from scapy.packet import Packet, Raw
from twin_parse import ones_sum

from canal_udp._abi import enum_names

DROPS = enum_names("enum canal_drop", "CANAL_DROP_")
LIFE_MS = 30_000
RANGES_MAX = 32
SEED = 20240612
OK, OVERLAP, NO_FIRST, FULL = "none", "frag_overlap", "frag_no_first", "frag_full"

Run = Callable[[Sequence[str]], list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    program = build_native(tmp_path_factory.mktemp("fragment"), "test_fragment.c", ["fragment.c", "parse.c", "csum.c"])
    return lambda lines: run_program(program, stdin="\n".join(lines) + "\n").splitlines()


def f4(first: int, end: int, more: bool = True, **changes: object) -> Packet:
    """Bytes [first, end) of a GRE datagram, whose fragments have no transport header that could be cut."""
    flags = "MF" if more else 0
    ip = {**V4, "id": 7, "proto": 47, **changes}
    return IP(flags=flags, frag=first // 8, **ip) / Raw(bytes(end - first))


def f6(first: int, end: int, more: bool = True, nh: int = 47, **changes: object) -> Packet:
    extension = IPv6ExtHdrFragment(offset=first // 8, m=int(more), id=7, nh=nh)
    return IPv6(**{**V6, **changes}) / extension / Raw(bytes(end - first))


# ---- scenarios -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A fragment, what becomes of it, and the time whose verdict a later one gets (0: none)."""

    packet: Packet
    drop: str
    verdict: int = 0
    now_ms: int = 1000
    source: int = 1
    allow: bool = True


# UDP behind a destination header: the fragment's payload starts before the transport header
UDP_BEHIND_OPTIONS = (
    IPv6(**V6)
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrRouting(type=4, segleft=0)
    / AH(nh=44, payloadlen=4, spi=1, seq=1, icv=bytes(12))
    / IPv6ExtHdrFragment(m=1, id=7, nh=60)
    / IPv6ExtHdrDestOpt()
    / UDP(**PORTS, len=100)
)

SCENARIOS = [
    pytest.param([Step(f4(8, 16), NO_FIRST), Step(f4(16, 20, False), NO_FIRST)], id="later ones only"),
    pytest.param([Step(f4(0, 8), OK), Step(f4(8, 16), OK, 1000), Step(f4(16, 20, False), OK, 1000)], id="in order"),
    pytest.param([Step(f4(0, 8), OK), Step(f4(16, 20, False), OK, 1000), Step(f4(8, 16), OK, 1000)], id="reordered"),
    pytest.param([Step(f4(8, 16, False), NO_FIRST), Step(f4(0, 8), OK), Step(f4(8, 16, False), OK, 1000)], id="again"),
    pytest.param([Step(f4(0, 8), OK, allow=False), Step(f4(8, 16), NO_FIRST)], id="the first one was denied"),
    pytest.param(
        [Step(f4(0, 16), OK), Step(f4(0, 16), OVERLAP), Step(f4(16, 24, False), OK, 1000)],
        id="a duplicate is dropped alone",
    ),
    pytest.param(
        [Step(f4(0, 16), OK), Step(f4(8, 16), OVERLAP), Step(f4(16, 24, False), OK, 1000)],
        id="one inside what passed is dropped alone",
    ),
    pytest.param(
        [Step(f4(0, 16), OK), Step(f4(8, 24), OVERLAP), Step(f4(24, 32, False), OVERLAP), Step(f4(0, 16), OVERLAP)],
        id="a partial overlap ends the datagram",
    ),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(24, 32), OK, 1000), Step(f4(8, 40), OVERLAP), Step(f4(8, 24), OVERLAP)],
        id="one around what passed ends the datagram",
    ),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(16, 24, False), OK, 1000), Step(f4(24, 32), OVERLAP), Step(f4(8, 16), OVERLAP)],
        id="nothing lies beyond the end",
    ),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(24, 32), OK, 1000), Step(f4(8, 16, False), OVERLAP)],
        id="the end does not lie before what passed",
    ),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(16, 24, False), OK, 1000), Step(f4(24, 32, False), OVERLAP)], id="there is one end"
    ),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(8, 16, False), OK, 1000), Step(f4(8, 16, False), NO_FIRST)],
        id="after the last byte the datagram is forgotten",
    ),
    pytest.param(
        [
            Step(f4(0, 8), OK),
            Step(f4(8, 16, False), OK, 1000),
            Step(f4(0, 8), OK, now_ms=1001),
            Step(f4(8, 16, False), OK, 1001, now_ms=1001),
        ],
        id="its id may be used again at once",
    ),
    pytest.param([Step(f4(0, 8), OK), Step(f4(0, 16), OVERLAP)], id="but not before"),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(8, 16), OK, 1000, now_ms=30_999), Step(f4(16, 24), NO_FIRST, now_ms=31_000)],
        id="30 s after the first one all are forgotten",
    ),
    pytest.param(
        [Step(f4(0, 8), OK), Step(f4(0, 16), OK, now_ms=31_000), Step(f4(16, 24), OK, 31_000, now_ms=31_000)],
        id="and the id is free",
    ),
    pytest.param([Step(f4(0, 8), OK), Step(f4(8, 16, id=8), NO_FIRST)], id="another id"),
    pytest.param([Step(f4(0, 8), OK), Step(f4(8, 16, src="10.244.9.9"), NO_FIRST)], id="another source address"),
    pytest.param([Step(f4(0, 8), OK), Step(f4(8, 16, dst="10.244.9.9"), NO_FIRST)], id="another destination"),
    pytest.param([Step(f4(0, 8), OK), Step(f4(8, 16, proto=17), NO_FIRST)], id="another protocol"),
    pytest.param([Step(f4(0, 8), OK), Step(f4(8, 16), NO_FIRST, source=2)], id="another port"),
    pytest.param([Step(f6(0, 8), OK), Step(f6(8, 16, False), OK, 1000)], id="IPv6"),
    pytest.param(
        [Step(UDP_BEHIND_OPTIONS, OK), Step(f6(16, 24, False, nh=60), OK, 1000)],
        id="IPv6, extension headers on both sides of the fragment header",
    ),
    pytest.param(
        [Step(UDP_BEHIND_OPTIONS, OK), Step(f6(8, 24, False, nh=60), OVERLAP)],
        id="IPv6, over the transport header behind an extension header",
    ),
    pytest.param([Step(f6(0, 8), OK), Step(f6(8, 16, src="fd00:1::9"), NO_FIRST)], id="IPv6, another source"),
    pytest.param([Step(f6(0, 8), OK), Step(f6(16, 24, nh=60), OK, 1000)], id="IPv6 does not compare next headers"),
    pytest.param(
        [Step(f4(0, 8), OK)]
        + [Step(f4(16 * i, 16 * i + 8), OK, 1000) for i in range(1, RANGES_MAX)]
        + [Step(f4(16 * 50, 16 * 50 + 8), FULL), Step(f4(16 * 50, 16 * 50 + 8), FULL)],
        id="more holes than are remembered",
    ),
]


@pytest.mark.parametrize("steps", SCENARIOS)
def test_what_fragments_get(run: Run, steps: list[Step]) -> None:
    answers = run(["new 8", *(f"packet {s.now_ms} {s.source} {s.allow:d} {bytes(s.packet).hex()}" for s in steps)])
    got = [(DROPS[int(drop)], int(out)) for drop, out, _ in map(str.split, answers)]
    assert got == [(step.drop, step.verdict) for step in steps]


# ---- bounds ----------------------------------------------------------------------------------------------------------


@cache
def raw4(ident: int, first: int, end: int, more: bool) -> str:
    """As f4, without scapy's price; in hex."""
    word = more << 13 | first // 8
    head = bytes(
        [0x45, 0, *(20 + end - first).to_bytes(2, "big"), ident >> 8, ident & 255, *word.to_bytes(2, "big"), 9, 47]
    )
    ends = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    check = ~ones_sum(head + b"\0\0" + ends) & 0xFFFF
    return (head + check.to_bytes(2, "big") + ends + bytes(end - first)).hex()


def test_64k_datagrams_that_never_end(run: Run) -> None:
    """The table stays within its size, one source within half of it, and 30 s later all is free."""
    lines = [f"packet {i // 100} 1 1 {raw4(i, 0, 8, True)}" for i in range(65_000)]
    answers = run(
        ["new 1000", *lines, f"packet 700 2 1 {raw4(65_001, 0, 8, True)}", "sweep 31000 5000", "sweep 31000 9"]
    )
    counts = [int(answer.split()[2]) for answer in answers[:-2]]
    drops = [DROPS[int(answer.split()[0])] for answer in answers[:-2]]
    assert max(counts) == 501
    assert drops == [OK] * 500 + [FULL] * 64_500 + [OK]
    assert answers[-2:] == ["501 0", "0 0"]


def test_a_table_of_none(run: Run) -> None:
    assert run(["new 0", f"packet 1 1 1 {raw4(1, 0, 8, True)}", f"packet 1 1 1 {raw4(1, 8, 16, True)}"]) == [
        f"{DROPS.index(FULL)} 0 0",
        f"{DROPS.index(NO_FIRST)} 0 0",
    ]


def test_sweep_looks_at_no_more_than_it_may(run: Run) -> None:
    lines = [f"packet {i} 1 1 {raw4(i, 0, 8, True)}" for i in range(10)]
    assert run(["new 100", *lines, "sweep 30003 3", "sweep 30003 3", "sweep 30009 100"])[10:] == ["3 7", "1 6", "6 0"]


# ---- a slow twin -----------------------------------------------------------------------------------------------------


@dataclass
class Datagram:
    born_ms: int
    source: int
    seen: int = 0  # a bit a byte
    size: int = 0
    dead: bool = False
    verdict: int = 0


@dataclass
class TwinTable:
    """fragment.c with a bitmap for the ranges and a dict for the hash."""

    max: int
    datagrams: dict[tuple[int, int], Datagram] = field(default_factory=dict)

    def packet(
        self, now: int, source: int, allow: bool, ident: int, first: int, end: int, more: bool
    ) -> tuple[str, int]:
        key = (ident, source)
        self._sweep(now, key)
        datagram = self.datagrams.get(key)
        if datagram is None:
            if first > 0:
                return NO_FIRST, 0
            held = sum(other.source == source for other in self.datagrams.values())
            if len(self.datagrams) == self.max or held == (self.max + 1) // 2:
                return FULL, 0
            datagram = self.datagrams[key] = Datagram(now, source)
        drop = self._add(datagram, first, end, more)
        if drop == OK and first == 0 and allow:
            datagram.verdict = now
        elif drop == OK and first > 0 and not datagram.verdict:
            drop = NO_FIRST
        if datagram.size and datagram.seen == (1 << datagram.size) - 1:
            del self.datagrams[key]
        return drop, datagram.verdict if first > 0 and drop == OK else 0

    def _sweep(self, now: int, key: tuple[int, int]) -> None:
        """As many as one call looks at, and the one that is asked for."""
        oldest = list(self.datagrams.items())[:2]
        for other, datagram in [*oldest, (key, self.datagrams.get(key))]:
            if datagram and now >= datagram.born_ms + LIFE_MS:
                self.datagrams.pop(other, None)

    def _add(self, datagram: Datagram, first: int, end: int, more: bool) -> str:
        mine = (1 << end) - (1 << first)
        common = datagram.seen & mine
        beyond = end > datagram.size if more else end != datagram.size
        wrong_end = beyond if datagram.size else not more and datagram.seen.bit_length() > end
        if wrong_end or common not in (0, mine):
            datagram.dead = True
        if datagram.dead or common:
            return OVERLAP
        if (datagram.seen & ~(datagram.seen << 1)).bit_count() == RANGES_MAX:
            return FULL
        datagram.seen |= mine
        datagram.size = datagram.size if more else end
        return OK


def test_random_fragments_are_judged_like_the_twin_does(run: Run) -> None:
    rng = random.Random(SEED)
    twin, now = TwinTable(12), 1000
    lines, expected = ["new 12"], []
    for _ in range(100_000):
        now += rng.choice((0, 0, 1, 50, 1000, 20_000 if rng.random() < 0.01 else 0))
        ident, source, allow = rng.randrange(8), rng.randrange(1, 4), rng.random() < 0.9
        first, more = rng.choice((0, 0, 8, 16, 24, 32, 40)), rng.random() < 0.7
        end = first + (rng.choice((8, 8, 8, 16, 24)) if more else rng.choice((8, 8, 5, 16)))
        more = more or first == 0  # a first fragment that is the last one is no fragment
        end = end if end % 8 == 0 or not more else first + 8
        drop, verdict = twin.packet(now, source, allow, ident, first, end, more)
        lines.append(f"packet {now} {source} {allow:d} {raw4(ident, first, end, more)}")
        expected.append(f"{DROPS.index(drop)} {verdict} {len(twin.datagrams)}")
    answers = run(lines)
    wrong = next((i for i, (a, b) in enumerate(zip(answers, expected, strict=True)) if a != b), None)
    assert wrong is None, f"seed {SEED}: {lines[1:][wrong]}: {answers[wrong]}, the twin says {expected[wrong]}"
    assert {DROPS[int(answer.split()[0])] for answer in answers} == {OK, OVERLAP, NO_FIRST, FULL}


def test_a_datagram_in_random_order_passes_whole(run: Run) -> None:
    rng = random.Random(SEED)
    for _ in range(20):
        pieces = [(8 * i, 8 * i + 8, True) for i in range(1, 60)] + [(480, 483, False)]
        rng.shuffle(pieces)
        lines = ["new 4", *(f"packet 5 1 1 {raw4(9, *piece)}" for piece in [(0, 8, True), *pieces])]
        assert run(lines) == ["0 0 1", *["0 5 1"] * 59, "0 5 0"], f"seed {SEED}"


# ---- cutting ---------------------------------------------------------------------------------------------------------


def split(run: Run, packet: bytes, mtu: int, headroom: int = 0) -> list[bytes]:
    *fragments, _ = run([f"split {mtu} {headroom} {packet.hex()}"])
    return [bytes.fromhex(line.strip()) for line in fragments]


def reassembled(fragments: Sequence[bytes]) -> IP:
    (whole,) = defragment([IP(fragment) for fragment in fragments])  # type: ignore[no-untyped-call]
    assert isinstance(whole, IP)
    return whole


OPTIONS = {
    "none": [],
    "one that only the first fragment keeps": [IPOption_RR(routers=["0.0.0.0"] * 3)],
    "one that all fragments keep": [IPOption(b"\x88\x04\x12\x34")],
    "both, and padding between": [
        IPOption_NOP(),
        IPOption(b"\x88\x04\x12\x34"),
        IPOption_RR(routers=["0.0.0.0"] * 3),
        IPOption_NOP(),
        IPOption(b"\x94\x04\0\0"),
    ],
}


def kept(packet: IP) -> list[bytes]:
    return [bytes(option) for option in packet.options if option.copy_flag]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_cut_packets_are_what_a_router_sends(run: Run, options: list[IPOption]) -> None:
    rng = random.Random(SEED)
    for _ in range(15):
        whole = IP(**V4, id=rng.randrange(65536), ttl=rng.randrange(1, 255), tos=rng.randrange(256), options=options)
        whole = IP(bytes(whole / UDP(**PORTS) / Raw(rng.randbytes(rng.randrange(1, 4000)))))
        mtu = rng.randrange(68, 1500)
        raw = split(run, bytes(whole), mtu, rng.randrange(200))
        cut = [IP(fragment) for fragment in raw]
        where = f"seed {SEED} mtu {mtu}: {bytes(whole).hex()}"
        assert all(len(fragment) == ip.len <= mtu for fragment, ip in zip(raw, cut, strict=True)), where
        assert all(ones_sum(fragment[: 4 * (fragment[0] & 15)]) == 0xFFFF for fragment in raw), where
        assert [bool(ip.flags.MF) for ip in cut] == [True] * (len(cut) - 1) + [False], where
        assert {(ip.id, ip.ttl, ip.tos, ip.src, ip.dst, ip.proto) for ip in cut} == {
            (whole.id, whole.ttl, whole.tos, whole.src, whole.dst, whole.proto)
        }, where
        assert cut[0].options == whole.options, where
        assert all(kept(ip) == kept(whole) and len(ip.options) - len(kept(ip)) <= 1 for ip in cut[1:]), where
        again = reassembled(raw)
        assert bytes(again.payload) == bytes(whole.payload), where


def test_fragments_are_cut_again(run: Run) -> None:
    whole = IP(bytes(IP(**V4, id=3) / UDP(**PORTS) / Raw(random.Random(SEED).randbytes(3000))))
    twice = [small for big in split(run, bytes(whole), 1400) for small in split(run, big, 300)]
    assert max(map(len, twice)) <= 300
    assert [IP(fragment).flags.MF for fragment in twice].count(False) == 1
    again = reassembled(twice)
    assert bytes(again.payload) == bytes(whole.payload)


def test_a_packet_that_fits_stays_one(run: Run) -> None:
    packet = bytes(IP(**V4, id=3) / UDP(**PORTS) / Raw(bytes(100)))
    assert split(run, packet, 128) == [packet]


def test_bytes_behind_the_packet_are_not_sent(run: Run) -> None:
    packet = bytes(IP(**V4, id=3) / UDP(**PORTS) / Raw(bytes(200)))
    assert split(run, packet + b"trailer", 128) == split(run, packet, 128)


@pytest.mark.parametrize("mtu", [0, 20, 27])
def test_an_mtu_without_room_for_eight_bytes(run: Run, mtu: int) -> None:
    assert split(run, bytes(IP(**V4) / UDP(**PORTS) / Raw(bytes(200))), mtu) == []
