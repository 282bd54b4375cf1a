"""Longest prefix match, and building and publishing snapshots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.conftest import Stage
from benchmarks.tables import Arrays, build, forwarding, prefixes
from benchmarks.traffic import SEED, addresses, c
from canal_udp._abi import lib
from canal_udp.dataplane import Dataplane, DataplaneConfig
from canal_udp.encap.fib import arrays

LOOKUPS = 1 << 16
PEERS = 5000


@pytest.mark.parametrize("n", [16, 5000, 100_000])
def test_fib_random_prefixes(stage: Stage, n: int) -> None:
    """Addresses inside the prefixes: each of them has to be searched to its end."""
    made = prefixes(n)
    rng = np.random.default_rng(SEED + 1)
    base = made[2][rng.integers(0, n, LOOKUPS)]
    values = _value(base["prefix"]) + rng.integers(0, 1 << 30, LOOKUPS) % (1 << (32 - base["plen"].astype(np.int64)))
    _lookup(stage, f"{n:,} prefixes", made, values)


def test_fib_peers(stage: Stage) -> None:
    """A cluster: a /24 for each peer."""
    values = (10 << 24) + np.random.default_rng(SEED).integers(0, PEERS << 8, LOOKUPS)
    _lookup(stage, f"{PEERS:,} peers", arrays(forwarding(PEERS), {}), values)


def _lookup(stage: Stage, name: str, made: Arrays, values: np.ndarray) -> None:
    built, addrs, targets = build(made), addresses(values), np.zeros(len(values), np.uint32)

    def check() -> str:
        sample = range(0, len(values), len(values) // 256)
        for i in sample:
            assert targets[i] == _slow_lookup(made[2], int(values[i]))
        return f"{len(sample)} by linear scan"

    data, out = c("uint8_t", addrs.reshape(-1)), c("uint32_t", targets)
    stage("FIB lookup", name, len(values), lambda: lib.canal_fib_lookup(built, data, len(values), out), check)


def _value(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows[:, 12:]).view(">u4").reshape(-1).astype(np.int64)


def _slow_lookup(fib: np.ndarray, value: int) -> int:
    plens = fib["plen"].astype(np.int64)
    fits = (_value(fib["prefix"]) ^ value) >> (32 - plens) == 0
    return int(fib["target"][np.argmax(np.where(fits, plens, -1))]) if fits.any() else 0


def test_arrays(stage: Stage) -> None:
    """Decisions -> arrays, in Python."""
    wanted = forwarding(PEERS)
    made: list[Arrays] = []

    def check() -> str:
        assert len(made[-1][1]) == len(made[-1][2]) == PEERS
        return "rows"

    stage(
        "snapshot",
        f"arrays of {PEERS:,} peers",
        PEERS,
        lambda: made.__setitem__(slice(None), [arrays(wanted, {})]),
        check,
    )


def test_build(stage: Stage) -> None:
    """Arrays -> snapshot, in C."""
    made = arrays(forwarding(PEERS), {})
    found: list[object] = []

    def check() -> str:
        targets = np.zeros(1, np.uint32)
        last = addresses(np.array([(10 << 24) + ((PEERS - 1) << 8) + 7]))
        lib.canal_fib_lookup(found[-1], c("uint8_t", last.reshape(-1)), 1, c("uint32_t", targets))
        assert targets[0] == lib.CANAL_TARGET_VTEP | (PEERS - 1)
        return "last peer"

    stage("snapshot", f"build {PEERS:,} peers", PEERS, lambda: found.__setitem__(slice(None), [build(made)]), check)


def test_publish(stage: Stage) -> None:
    """All of it: arrays, build, publish, reclaim the one before."""
    generations = iter(range(1, 1 << 30))
    wanted = forwarding(PEERS)

    with Dataplane(DataplaneConfig(seed=(1, 2))) as dp:
        before = dp.status().published

        def fresh() -> tuple[tuple[object], dict[str, object]]:
            return (replace(wanted, generation=next(generations)),), {}

        def check() -> str:
            status = dp.status()
            assert (status.published - before, status.retired) == (next(generations) - 1, 0)
            return "none left behind"

        stage("snapshot", f"publish {PEERS:,} peers", PEERS, dp.publish, check, fresh)
