"""The highest rate without loss, by binary search. Pure: the caller sends the packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

LOSS_LIMIT = 0.005
TOLERANCE = 0.04
TRIALS_MAX = 24
RATE_MIN = 500.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of offering packets for a moment. A sender that cannot keep up offers less than wanted."""

    wanted: float  # packets per second; 0 = as fast as the sender can
    offered: float
    received: float

    @property
    def loss(self) -> float:
        return max(0.0, 1 - self.received / self.offered) if self.offered else 1.0


@dataclass(frozen=True, slots=True)
class Found:
    rate: float  # packets per second that arrived in the best trial without loss; 0 = none
    sender_limited: bool  # nothing was lost at all that the sender can offer
    trials: tuple[Trial, ...]


def loss_free_rate(
    attempt: Callable[[float], Trial], tolerance: float = TOLERANCE, loss_limit: float = LOSS_LIMIT
) -> Found:
    """Search between nothing and what the sender can offer.

    A rate counts as lossy when two trials in a row lose more than the limit: a single one may be the machine's hiccup.
    Ends when a lossless and a lossy rate differ by no more than the tolerance.
    """
    trials: list[Trial] = []

    def lossless(rate: float) -> Trial | None:
        for _ in range(2):
            trials.append(attempt(rate))
            if trials[-1].loss <= loss_limit:
                return trials[-1]
        return None

    if top := lossless(0):
        return Found(top.received, True, tuple(trials))
    bad = max(trial.offered for trial in trials)
    good: Trial | None = None
    rate = min(trials[-1].received, bad / (1 + tolerance))  # what survives an overload is a fair first guess
    while len(trials) < TRIALS_MAX and rate >= RATE_MIN:
        found = lossless(rate)
        if found is None:
            bad = min(bad, rate)
        elif good is None or found.offered > good.offered * (1 + tolerance / 4):
            good = found
        else:
            break  # the sender offers no more than before, whatever is wanted
        if good is None:
            rate = bad / 2
        elif bad <= good.offered * (1 + tolerance):
            break
        else:
            rate = sqrt(good.offered * bad)
    return Found(good.received if good else 0.0, False, tuple(trials))
