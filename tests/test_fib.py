"""Longest prefix match against a linear scan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import numpy as np
import pytest

from canal_udp._abi import dtype_of, ffi, lib

FIB = dtype_of("struct canal_fib_entry")
MAPPED = 0xFFFF << 32
PORT, REJECT = int(lib.CANAL_TARGET_PORT), int(lib.CANAL_TARGET_REJECT)

Network = IPv4Network | IPv6Network
Prefix = tuple[Network, int]


def sixteen_bytes(addr: int, family: int) -> bytes:
    return (addr | (MAPPED if family == 4 else 0)).to_bytes(16, "big")


def entries_of(prefixes: Sequence[Prefix]) -> np.ndarray:
    rows = np.zeros(len(prefixes), FIB)
    for row, (network, target) in zip(rows, prefixes, strict=True):
        row["prefix"] = np.frombuffer(sixteen_bytes(int(network.network_address), network.version), np.uint8)
        row["family"], row["plen"], row["target"] = network.version, network.prefixlen, target
    return rows


def build(entries: np.ndarray) -> tuple[int, object, object]:
    """What canal_tables_build says of a snapshot with this FIB only: (return code, tables, fault)."""
    out, fault = ffi.new("struct canal_tables **"), ffi.new("struct canal_fault *")
    fib = ffi.from_buffer("struct canal_fib_entry[]", entries)
    rc = lib.canal_tables_build(ffi.new("struct canal_node *"), ffi.NULL, 0, fib, len(entries), 1, out, fault)
    return rc, ffi.gc(out[0], lib.canal_tables_free) if rc == 0 else out[0], fault


def lookup(tables: object, addrs: Sequence[bytes]) -> list[int]:
    targets = np.zeros(len(addrs), np.uint32)
    rc = lib.canal_fib_lookup(
        tables,
        ffi.from_buffer("uint8_t[]", b"".join(addrs)),
        len(addrs),
        ffi.from_buffer("uint32_t[]", targets, require_writable=True),
    )
    assert rc == 0
    return [int(target) for target in targets]


def scan(prefixes: Sequence[Prefix], addr: int, family: int) -> int:
    """The slow twin: every prefix, longest wins."""
    best, found = -1, 0
    for network, target in prefixes:
        same = network.version == family and addr >> (network.max_prefixlen - network.prefixlen) == int(
            network.network_address
        ) >> (network.max_prefixlen - network.prefixlen)
        if same and network.prefixlen > best:
            best, found = network.prefixlen, target
    return found


def of(*texts: str) -> list[Prefix]:
    return [(ip_network(text), PORT | index) for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("prefixes", "addr", "expected"),
    [
        pytest.param([], "10.0.0.1", None, id="an empty FIB has no target"),
        pytest.param([], "2001:db8::1", None, id="nor for IPv6"),
        pytest.param(["0.0.0.0/0"], "10.0.0.1", 0, id="the default route of IPv4"),
        pytest.param(["0.0.0.0/0"], "2001:db8::1", None, id="is none of IPv6"),
        pytest.param(["::/0"], "10.0.0.1", None, id="nor the other way round"),
        pytest.param(["::/0"], "::", 0, id="all zeros under the default route"),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"], "10.1.2.3", 3, id="longest: host"),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"], "10.1.2.4", 2, id="longest: /24"),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"], "10.1.3.3", 1, id="longest: /16"),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"], "10.2.2.3", 0, id="longest: /8"),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"], "11.1.2.3", None, id="beside all"),
        pytest.param(["10.0.0.0/9", "10.128.0.0/9"], "10.127.255.255", 0, id="last of the lower half"),
        pytest.param(["10.0.0.0/9", "10.128.0.0/9"], "10.128.0.0", 1, id="first of the upper half"),
        pytest.param(["255.255.255.255/32"], "255.255.255.255", 0, id="the last address"),
        pytest.param(["10.1.2.3/32", "0.0.0.0/0"], "10.1.2.2", 1, id="a lonely host falls back to the default"),
        pytest.param(["fd00:10:244::/48", "fd00:10:244:7::/64"], "fd00:10:244:7::1", 1, id="IPv6 node in the overlay"),
        pytest.param(["fd00:10:244::/48", "fd00:10:244:7::/64"], "fd00:10:244:8::1", 0, id="IPv6 overlay"),
        pytest.param(["fd00:10:244::/48", "fd00:10:244:7::/64"], "fd00:10:245:7::1", None, id="a jump that misses"),
        pytest.param(["::/0", "2001:db8::1/128"], "2001:db8::1", 1, id="a jump over eight bytes, then over the rest"),
        pytest.param(["::/0", "2001:db8::1/128"], "2001:db8::2", 0, id="differs in the last byte"),
        pytest.param(["::/0", "2001:db8::1/128"], "2001:db9::1", 0, id="differs in the fourth byte"),
        pytest.param(["::/0", "2001:db8::2/127"], "2001:db8::3", 1, id="a pair of hosts"),
    ],
)
def test_longest_prefix_wins(prefixes: list[str], addr: str, expected: int | None) -> None:
    rc, tables, _ = build(entries_of(of(*prefixes)))
    assert rc == 0
    wanted = 0 if expected is None else PORT | expected
    family = 6 if ":" in addr else 4
    assert lookup(tables, [sixteen_bytes(int(ip_address(addr)), family)]) == [wanted]


def random_prefixes(rng: random.Random, n: int) -> list[Prefix]:
    """Clustered, so that prefixes nest: under few stems, of every length."""
    stems = {4: [rng.getrandbits(32) for _ in range(6)], 6: [rng.getrandbits(128) for _ in range(6)]}
    chosen: dict[Network, int] = {}
    while len(chosen) < n:
        family = rng.choice((4, 4, 6))
        bits = 32 if family == 4 else 128
        plen = rng.randrange(bits + 1)
        addr = rng.choice(stems[family]) ^ rng.getrandbits(bits) >> rng.randrange(bits)
        kind = IPv4Network if family == 4 else IPv6Network
        chosen[kind((addr >> (bits - plen) << (bits - plen), plen))] = rng.choice((REJECT, PORT | rng.randrange(4096)))
    return list(chosen.items())


def random_addresses(rng: random.Random, prefixes: Sequence[Prefix], n: int) -> list[tuple[int, int]]:
    """Inside prefixes, at their edges, one beside them, and anywhere."""
    found = []
    for _ in range(n):
        network = rng.choice(prefixes)[0]
        bits = network.max_prefixlen
        first, size = int(network.network_address), network.num_addresses
        addr = rng.choice((first, first + size - 1, first - 1, first + size, first + rng.randrange(size)))
        found.append((rng.getrandbits(bits) if rng.random() < 0.1 else addr % (1 << bits), network.version))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_linear_scan(seed: int) -> None:
    rng = random.Random(seed)
    prefixes = random_prefixes(rng, rng.choice((1, 3, 30, 400)))
    rc, tables, fault = build(entries_of(prefixes))
    assert rc == 0, (seed, fault.row)
    addrs = random_addresses(rng, prefixes, 800)
    targets = lookup(tables, [sixteen_bytes(addr, family) for addr, family in addrs])
    for (addr, family), target in zip(addrs, targets, strict=True):
        # an IPv6 address that is v4-mapped is an IPv4 address here
        if family == 6 and addr >> 32 == 0xFFFF:
            continue
        assert target == scan(prefixes, addr, family), (seed, family, hex(addr))


def test_five_thousand_peers() -> None:
    peers = [IPv4Network((0x0AF40000 + (index << 8), 24)) for index in range(5000)]
    prefixes = [(network, PORT | index % 4096) for index, network in enumerate(peers)]
    rc, tables, _ = build(entries_of([*prefixes, (ip_network("0.0.0.0/0"), REJECT)]))
    assert rc == 0
    last = [sixteen_bytes(int(network.broadcast_address), 4) for network in peers]
    assert lookup(tables, last) == [target for _, target in prefixes]
    assert lookup(tables, [sixteen_bytes(int(peers[-1].broadcast_address) + 1, 4)]) == [REJECT]


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 63, 64, 65, 130])
def test_batches_of_every_size(n: int) -> None:
    rc, tables, _ = build(entries_of(of("10.0.0.0/24", "10.0.1.0/24", "fd00::/64")))
    assert rc == 0
    addrs = [sixteen_bytes(0x0A000000 + (index % 3 << 8), 4) for index in range(n)]
    assert lookup(tables, addrs) == [(PORT, PORT | 1, 0)[index % 3] for index in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_entries_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    prefixes = random_prefixes(rng, 100)
    addrs = [sixteen_bytes(*pair) for pair in random_addresses(rng, prefixes, 500)]
    _, tables, _ = build(entries_of(prefixes))
    rng.shuffle(prefixes)
    _, shuffled, _ = build(entries_of(prefixes))
    assert lookup(tables, addrs) == lookup(shuffled, addrs)


@pytest.mark.parametrize(
    ("row", "field", "value", "code"),
    [
        pytest.param(1, "family", 5, "EINVAL", id="a family that is none"),
        pytest.param(1, "plen", 33, "EINVAL", id="33 bits of IPv4"),
        pytest.param(2, "plen", 129, "EINVAL", id="129 bits of IPv6"),
        pytest.param(1, "prefix", [0] * 10 + [255, 255, 10, 0, 1, 1], "EINVAL", id="host bits in the last byte"),
        pytest.param(2, "prefix", [0xFD] + [0] * 8 + [1] + [0] * 6, "EINVAL", id="host bits far behind"),
        pytest.param(1, "prefix", [0] * 12 + [10, 0, 1, 0], "EINVAL", id="IPv4 without its mapping"),
        pytest.param(1, "prefix", [0] * 10 + [255, 255, 10, 0, 0, 0], "EDUP", id="the same prefix twice"),
        pytest.param(1, "target", 0x80000000 | PORT, "EINVAL", id="a bit that no target has"),
    ],
)
def test_a_fault_names_row_and_field(row: int, field: str, value: object, code: str) -> None:
    entries = entries_of(of("10.0.0.0/24", "10.0.1.0/24", "fd00::/64"))
    entries[row][field] = value
    rc, tables, fault = build(entries)
    assert rc == getattr(lib, f"CANAL_{code}") and tables == ffi.NULL
    assert (fault.code, fault.table, fault.row, fault.field) == (rc, lib.CANAL_TABLE_FIB, row, FIB.fields[field][1])
