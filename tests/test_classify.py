"""The classifier against a linear scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from canal_udp._abi import ffi, lib
from tests.classify_rules import (
    ANY_PROTO,
    CLASSBENCH,
    FLOW,
    MAPPED,
    RULE,
    anywhere,
    build,
    classbench,
    classify,
    generate,
    inside,
    scan,
)


def agree(rules: np.ndarray, flows: np.ndarray, seed: object) -> np.ndarray:
    """What both say; the seed is printed when they differ."""
    rc, classifier, fault = build(rules)
    assert rc == 0, (rc, fault.row, fault.field)
    rows, expected = classify(classifier, flows), scan(rules, flows)
    wrong = np.flatnonzero(rows != expected)
    if len(wrong):
        first = wrong[0]
        pytest.fail(f"seed {seed}: {len(wrong)} differ, first {flows[first]}: {rows[first]}, not {expected[first]}")
    return rows


def mixed(rng: np.random.Generator, rules: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([inside(rng, rules, n // 2), anywhere(rng, rules, n - n // 2)])


@pytest.mark.parametrize("seed", range(100))
def test_small_sets(seed: int) -> None:
    """A million lookups in all."""
    rng = np.random.default_rng(seed)
    rules = generate(rng, int(rng.integers(1, 250)), sites=int(rng.integers(1, 60)), ports=int(rng.integers(1, 40)))
    agree(rules, mixed(rng, rules, 10_000), seed)


@pytest.mark.parametrize(
    ("n", "sites", "ports"),
    [
        pytest.param(4095, 200, 20, id="one block, nearly"),
        pytest.param(4097, 200, 20, id="two blocks"),
        pytest.param(9000, 255, 20, id="three blocks"),
        pytest.param(3000, 255, 3000, id="too many combinations of ports"),
    ],
)
def test_large_sets(n: int, sites: int, ports: int) -> None:
    rng = np.random.default_rng(n)
    rules = generate(rng, n, sites, ports)
    rules = rules[rules["src_plen"] + rules["dst_plen"] > 40]
    rows = agree(rules, mixed(rng, rules, 10_000), n)
    assert len(np.unique(rows)) > 500, "only few rules were ever the first"


def test_a_hundred_thousand_rules() -> None:
    rng = np.random.default_rng(7)
    rules = generate(rng, 100_000, 250, 50)
    flows = mixed(rng, rules, 2000)
    rc, classifier, _ = build(rules)
    assert rc == 0
    assert (classify(classifier, flows) == scan(rules, flows)).all()


class TestClassBench:
    __test__ = bool(list(CLASSBENCH.glob("*1_10k")))

    @pytest.mark.parametrize("path", sorted(CLASSBENCH.glob("*_1*k")), ids=lambda path: path.name)
    def test_agrees(self, path: Path) -> None:
        rng, rules = np.random.default_rng(1), classbench(path)
        rows = agree(rules, np.concatenate([inside(rng, rules, 20_000), anywhere(rng, rules, 2000)]), 1)
        assert len(np.unique(rows)) > len(rules) / 4


def rule(**fields: object) -> np.ndarray:
    """One rule that takes everything but for what is said."""
    rules = np.zeros(1, RULE)
    rules["sport_hi"] = rules["dport_hi"] = 65535
    rules["flags"] = ANY_PROTO
    for name, value in fields.items():
        rules[name] = value
    return rules


def v4(last: int) -> np.ndarray:
    return np.frombuffer(MAPPED + bytes([10, 0, 0, last]), np.uint8)


def flow(family: int = 4, sport: int = 0, dport: int = 0, proto: int = 6) -> np.ndarray:
    flows = np.zeros(1, FLOW)
    flows["family"], flows["proto"] = family, proto
    flows["sport_be"], flows["dport_be"] = np.array([sport, dport], np.uint16).byteswap()
    flows["src"], flows["dst"] = (v4(1), v4(2)) if family == 4 else (0, 0)
    return flows


NET4 = np.frombuffer(MAPPED + bytes(4), np.uint8)


@pytest.mark.parametrize(
    ("rules", "flows", "expected"),
    [
        pytest.param(np.zeros(0, RULE), flow(), 0, id="no rules, none holds"),
        pytest.param(rule(), flow(), 0, id="a rule of both families takes IPv4"),
        pytest.param(rule(), flow(6), 0, id="and IPv6"),
        pytest.param(rule(family=6), flow(), 1, id="one of IPv6 does not"),
        pytest.param(rule(family=4, src=NET4, dst=NET4), flow(6), 1, id="nor the other way"),
        pytest.param(rule(sport_lo=80, sport_hi=80), flow(sport=80), 0, id="one source port"),
        pytest.param(rule(sport_lo=80, sport_hi=80), flow(dport=80), 1, id="is no destination port"),
        pytest.param(rule(dport_lo=80, dport_hi=90), flow(dport=80), 0, id="first of a range"),
        pytest.param(rule(dport_lo=80, dport_hi=90), flow(dport=90), 0, id="last of a range"),
        pytest.param(rule(dport_lo=80, dport_hi=90), flow(dport=79), 1, id="before it"),
        pytest.param(rule(dport_lo=80, dport_hi=90), flow(dport=91), 1, id="behind it"),
        pytest.param(rule(dport_lo=65535), flow(dport=65535), 0, id="the last port"),
        pytest.param(rule(flags=0, proto=255), flow(proto=255), 0, id="the last protocol"),
        pytest.param(rule(flags=0, proto=0), flow(), 1, id="protocol 0 is not any"),
        pytest.param(np.concatenate([rule(dport_lo=1), rule(), rule()]), flow(), 1, id="the first that holds"),
    ],
)
def test_one_flow(rules: np.ndarray, flows: np.ndarray, expected: int) -> None:
    assert agree(rules, flows, None).tolist() == [expected]


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 130])
def test_batches_of_every_size(n: int) -> None:
    rng = np.random.default_rng(n)
    rules = generate(rng, 50)
    agree(rules, anywhere(rng, rules, n), n)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        pytest.param("family", 5, "family", id="a family that is none"),
        pytest.param("src_plen", 33, "src_plen", id="33 bits of IPv4"),
        pytest.param("dst_plen", 33, "dst_plen", id="33 bits of IPv4 at the other end"),
        pytest.param("src", v4(1), "src", id="host bits"),
        pytest.param("dst", v4(128), "dst", id="host bits at the other end"),
        pytest.param("dst", [0] * 12 + [10, 0, 0, 0], "dst", id="IPv4 without its mapping"),
        pytest.param("family", 0, "src_plen", id="a prefix in a rule of both families"),
        pytest.param("sport_lo", 81, "sport_hi", id="source ports reversed"),
        pytest.param("dport_lo", 81, "dport_hi", id="destination ports reversed"),
        pytest.param("flags", 2, "flags", id="a flag that is none"),
    ],
)
def test_a_fault_names_row_and_field(name: str, value: object, field: str) -> None:
    one = rule(family=4, src=v4(0), src_plen=24, dst=v4(0), dst_plen=24, sport_hi=80, dport_hi=80)
    rules = np.concatenate([one, one, one])
    rules[1][name] = value
    rc, classifier, fault = build(rules)
    assert rc == lib.CANAL_EINVAL and classifier == ffi.NULL
    assert (fault.code, fault.table, fault.row, fault.field) == (rc, lib.CANAL_TABLE_RULE, 1, RULE.fields[field][1])


def test_129_bits_of_ipv6() -> None:
    rc, _, fault = build(rule(family=6, src_plen=129))
    assert (rc, fault.field) == (lib.CANAL_EINVAL, RULE.fields["src_plen"][1])


def test_too_many_rules() -> None:
    rc, classifier, fault = build(np.zeros(int(lib.CANAL_RULES_MAX) + 1, RULE))
    assert rc == fault.code == lib.CANAL_ERANGE and classifier == ffi.NULL
