"""The flow table: hits, misses and inserts at sizes that fit the caches and sizes that do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import Stage
from benchmarks.traffic import c, flows, shuffled
from canal_udp._abi import ffi, lib

SIZES = (1000, 10_000, 100_000, 1_000_000)
LOOKUPS = 1 << 14
NOW_MS = 1_000_000


@contextmanager
def table(size: int) -> Iterator[Any]:
    """An empty table with room for `size` flows and some more."""
    out = ffi.new("struct canal_ct **")
    rc = lib.canal_ct_new(size + size // 4, size + size // 4, ffi.new("uint64_t[2]", [1, 2]), out)
    assert rc == 0
    try:
        yield out[0]
    finally:
        lib.canal_ct_free(out[0])


def track(ct: Any, rows: np.ndarray, results: np.ndarray) -> None:
    owner = np.zeros(len(rows), np.uint32)
    lib.canal_ct_track(
        *(ct, c("struct canal_flow", rows), c("uint32_t", owner), len(rows), NOW_MS, c("int32_t", results))
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ["hit", "miss"])
def test_find(stage: Stage, case: str, size: int) -> None:
    known = flows(size)
    asked = known[shuffled(LOOKUPS, size)] if case == "hit" else flows(LOOKUPS, first=10_000_000)
    results, inserted = np.zeros(LOOKUPS, np.int32), np.zeros(size, np.int32)
    with table(size) as ct:
        track(ct, known, inserted)
        assert (inserted == lib.CANAL_CT_INSERTED).all() and lib.canal_ct_count(ct) == size
        pointers = ct, c("struct canal_flow", asked), LOOKUPS, c("int32_t", results)

        def check() -> str:
            hits = int(((results > 0) & (results & lib.CANAL_CT_HIT)).sum())
            assert hits == (LOOKUPS if case == "hit" else 0)
            return f"{hits:,} hits"

        stage(f"conntrack {case}", f"{size:,} flows", LOOKUPS, lambda: lib.canal_ct_find(*pointers), check)


@pytest.mark.parametrize("size", SIZES)
def test_insert(stage: Stage, size: int) -> None:
    """Fill an empty table, in a random order of keys."""
    rows = flows(size)[np.random.default_rng(1).permutation(size)]
    results = np.zeros(size, np.int32)
    current: list[Any] = []

    def fresh() -> tuple[tuple[Any, ...], dict[str, Any]]:
        out = ffi.new("struct canal_ct **")
        assert lib.canal_ct_new(size + size // 4, size + size // 4, ffi.new("uint64_t[2]", [1, 2]), out) == 0
        current[:] = [ffi.gc(out[0], lib.canal_ct_free)]
        return (current[0], rows, results), {}

    def check() -> str:
        assert (results == lib.CANAL_CT_INSERTED).all() and lib.canal_ct_count(current[0]) == size
        return f"{size:,} in the table"

    stage("conntrack insert", f"{size:,} flows", size, track, check, fresh)
