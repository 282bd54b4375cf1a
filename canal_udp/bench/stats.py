"""Numbers of several runs: middle, spread, ratios. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 1000
SEED = 1  # the same runs give the same report


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the interval around it: of values the smallest and largest, of ratios a 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    n: int

    @property
    def share(self) -> float:
        """Half of the interval as a share of the median."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values."""
    return Spread(median(values), min(values), max(values), len(values))


def ratio(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Spread | None:
    """The median of the ratios of runs of the same round, which the machine's moods touch alike.

    Keys       rounds; a round that only one of them has, or where the baseline is zero, does not count.
    Returns    None when no round is left.
    """
    ratios = [ours[key] / baseline[key] for key in sorted(ours) if baseline.get(key)]
    if not ratios:
        return None
    low, high = interval(ratios)
    return Spread(median(ratios), low, high, len(ratios))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the median; with few values it is nearly their whole range."""
    rng = random.Random(SEED)
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - confidence) / 2)
    return medians[cut], medians[-1 - cut]
