"""ecn: RFC 6040 on decapsulation, for every pair of codepoints, without touching anything else of the packet."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from native_build import build_native, run_program
from packets import V4, V6, every_kind, random_packet
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from canal_udp._abi import enum_names

DROPS = enum_names("enum canal_drop", "CANAL_DROP_")
NOT_ECT, ECT1, ECT0, CE = range(4)
SEED = 20240613

# RFC 6040 4.2, figure 4: inner -> outer Not-ECT, ECT(1), ECT(0), CE; None is dropped
DECAP: dict[int, tuple[int | None, ...]] = {
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, None),
    ECT1: (ECT1, ECT1, ECT1, CE),
    ECT0: (ECT0, ECT1, ECT0, CE),
    CE: (CE, CE, CE, CE),
}

Decap = Callable[[Sequence[tuple[int, bytes]]], list[tuple[str, bytes]]]


@pytest.fixture(scope="module")
def decap(tmp_path_factory: pytest.TempPathFactory) -> Decap:
    """(outer TOS, packet) -> (drop reason, packet afterwards); the program checks flow.tos and the header checksum."""
    program = build_native(tmp_path_factory.mktemp("ecn"), "test_ecn.c", ["ecn.c", "parse.c"])

    def run(cases: Sequence[tuple[int, bytes]]) -> list[tuple[str, bytes]]:
        lines = run_program(program, stdin="".join(f"{tos} {packet.hex()}\n" for tos, packet in cases)).splitlines()
        return [(DROPS[int(drop)], bytes.fromhex(after)) for drop, after in map(str.split, lines)]

    return run


def with_tos(packet: bytes, tos: int) -> bytes:
    """The packet that scapy writes with this TOS."""
    ip = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    if isinstance(ip, IP):
        ip.tos = tos
        del ip.chksum
    else:
        ip.tc = tos
    return bytes(ip)


@pytest.mark.parametrize("outer", range(4), ids=["outer Not-ECT", "outer ECT(1)", "outer ECT(0)", "outer CE"])
@pytest.mark.parametrize("inner", range(4), ids=["inner Not-ECT", "inner ECT(1)", "inner ECT(0)", "inner CE"])
def test_every_pair(decap: Decap, inner: int, outer: int) -> None:
    expected = DECAP[inner][outer]
    for dscp in (0, 0xB8, 0xFC):
        for base in (bytes(IP(**V4, tos=dscp | inner) / UDP()), bytes(IPv6(**V6, tc=dscp | inner, fl=0xABCDE) / UDP())):
            ((drop, after),) = decap([(0x48 | outer, base)])
            assert drop == ("ecn" if expected is None else "none")
            assert after == (base if expected is None else with_tos(base, dscp | expected))


def test_random_packets_change_in_nothing_but_these_bits(decap: Decap) -> None:
    rng = random.Random(SEED)
    packets = [*every_kind().values(), *(bytes(random_packet(rng)) for _ in range(500))]
    cases = [(rng.randrange(256), packet) for packet in packets]
    for (outer, before), (drop, after) in zip(cases, decap(cases), strict=True):
        inner = int.from_bytes(before[:2], "big") >> (0 if before[0] >> 4 == 4 else 4) & 255
        marked = DECAP[inner & 3][outer & 3]
        assert drop == ("ecn" if marked is None else "none"), f"seed {SEED}: {outer} {before.hex()}"
        assert after == (before if marked is None else with_tos(before, inner & 0xFC | marked)), f"seed {SEED}"
