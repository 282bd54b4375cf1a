"""Medians, ratios and the search for the highest rate without loss."""

from __future__ import annotations

import random
from statistics import median

import pytest

from canal_udp.bench.search import LOSS_LIMIT, TOLERANCE, Trial, loss_free_rate
from canal_udp.bench.stats import interval, ratio, spread


def test_spread() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.n) == (2, 1, 3, 3)
    assert found.share == 0.5
    assert spread([0.0]).share == 0


def test_ratio_pairs_rounds() -> None:
    """A machine that gets slower over time changes both alike, and the ratio not at all."""
    ours, baseline = {1: 10.0, 2: 5.0, 3: 2.0}, {1: 20.0, 2: 10.0, 3: 4.0, 4: 1.0}
    found = ratio(ours, baseline)
    assert found is not None and (found.median, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 3)


@pytest.mark.parametrize(
    "baseline",
    [pytest.param({}, id="no round in common"), pytest.param({1: 0.0}, id="a baseline of zero")],
)
def test_no_ratio(baseline: dict[int, float]) -> None:
    assert ratio({1: 1.0}, baseline) is None


def test_interval_holds_the_median_and_is_the_same_every_time() -> None:
    rng = random.Random(3)
    for _ in range(20):
        values = [rng.gauss(10, 2) for _ in range(rng.randrange(1, 12))]
        low, high = interval(values)
        assert min(values) <= low <= median(values) <= high <= max(values)
        assert interval(values) == (low, high)


# ---- search ----------------------------------------------------------------------------------------------------------


class Path:
    """Something that carries so many packets per second, and a sender that offers so many."""

    def __init__(self, capacity: float, sender: float, collapse: float = 1.0, hiccup: int = -1) -> None:
        self.capacity, self.sender, self.collapse, self.hiccup = capacity, sender, collapse, hiccup
        self.trials = 0

    def __call__(self, rate: float) -> Trial:
        self.trials += 1
        offered = min(rate or self.sender, self.sender)
        received = offered if offered <= self.capacity else self.capacity * self.collapse
        if self.trials == self.hiccup:
            received *= 0.9
        return Trial(rate, offered, received)


@pytest.mark.parametrize("collapse", [1.0, 0.5, 0.05], ids=lambda value: f"overload leaves {value:.0%}")
def test_search_finds_the_capacity(collapse: float) -> None:
    rng = random.Random(7)
    for _ in range(50):
        capacity, sender = rng.uniform(2e3, 5e5), 1e6
        found = loss_free_rate(Path(capacity, sender, collapse))
        assert capacity / (1 + TOLERANCE) ** 2 <= found.rate <= capacity, (capacity, found)
        assert not found.sender_limited


def test_search_says_when_the_sender_is_the_limit() -> None:
    found = loss_free_rate(Path(capacity=1e9, sender=4e5))
    assert (found.rate, found.sender_limited, len(found.trials)) == (4e5, True, 1)


@pytest.mark.parametrize("hiccup", range(3, 12))
def test_one_hiccup_does_not_change_the_result(hiccup: int) -> None:
    assert loss_free_rate(Path(1e5, 1e6, hiccup=hiccup)).rate >= 1e5 / (1 + TOLERANCE) ** 2


def test_a_path_that_always_loses_has_no_rate() -> None:
    found = loss_free_rate(lambda rate: Trial(rate, rate or 1e6, (rate or 1e6) * 0.9))
    assert found.rate == 0 and found.trials


def test_a_path_that_carries_nothing_has_no_rate() -> None:
    assert loss_free_rate(lambda rate: Trial(rate, 1e6, 0.0)).rate == 0
    assert loss_free_rate(lambda rate: Trial(rate, 0.0, 0.0)).rate == 0


def test_a_loss_below_the_limit_is_none() -> None:
    assert loss_free_rate(lambda rate: Trial(rate, 1e6, 1e6 * (1 - LOSS_LIMIT * 0.99))).sender_limited


def test_search_ends_when_the_sender_offers_less_than_wanted() -> None:
    """Paced sending may top out below what unpaced sending reaches."""

    def attempt(rate: float) -> Trial:
        offered = min(rate, 3e5) if rate else 1e6
        return Trial(rate, offered, min(offered, 4e5))

    found = loss_free_rate(attempt)
    assert found.rate == pytest.approx(3e5) and len(found.trials) < 10
