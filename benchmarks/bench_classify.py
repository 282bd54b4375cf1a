"""The classifier without any cache: flows inside random rules, in batches of 64."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conftest import Stage
from benchmarks.traffic import SEED, c
from canal_udp._abi import lib
from tests.classify_rules import CLASSBENCH, build, classbench, generate, inside, scan

LOOKUPS = 1 << 16
CHECKED = 512
FILES = sorted(CLASSBENCH.glob("*_10k")) if os.environ.get("CANAL_TEST_DATA") else []


@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
def test_generated(stage: Stage, n: int) -> None:
    """A tenth of these rules or more leave each address open."""
    _classify(stage, f"{n:,} generated rules", generate(np.random.default_rng(SEED), n, sites=250, ports=50))


class TestClassBench:
    __test__ = bool(FILES)

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_classbench(self, stage: Stage, path: Path) -> None:
        _classify(stage, path.name, classbench(path))


def _classify(stage: Stage, name: str, rules: np.ndarray) -> None:
    flows = inside(np.random.default_rng(SEED), rules, LOOKUPS)
    rc, classifier, _ = build(rules)
    assert rc == 0
    rows = np.zeros(LOOKUPS, np.uint32)

    def check() -> str:
        assert (rows[:CHECKED] == scan(rules, flows[:CHECKED])).all()
        return f"{CHECKED} by linear scan"

    data, out = c("struct canal_flow", flows), c("uint32_t", rows)
    stage("classify", name, LOOKUPS, lambda: lib.canal_classify(classifier, data, LOOKUPS, out), check)


def test_build(stage: Stage) -> None:
    rules = generate(np.random.default_rng(SEED), 10_000, sites=250, ports=50)
    built: list[int] = []

    def check() -> str:
        assert set(built) == {0}
        return "built"

    stage("classify", "build 10,000 generated rules", len(rules), lambda: built.append(build(rules)[0]), check)
