"""When a lease must be renewed, and what a node may still say about it. Pure; `now_s` is an argument.

Clocks   `now_s` is CLOCK_BOOTTIME: no one sets it, and it counts the time that the machine was suspended. The wall
         clock decides nothing: it dates what people read, so a jump of a day changes no duty (`clock_gap` reports it).
         A pause (suspend, SIGSTOP) shows as a gap between two looks at the clock: after it this node does not know
         whether its lease still stands, so the duty is "recheck" - read the store before announcing anything - and
         neither its own lease nor any peer's is given up because of the gap. Peers' leases end when the store says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from canal_udp.control.lease import Lease

Duty: TypeAlias = Literal["hold", "renew", "recheck"]

PAUSE_S = 5.0  # a look at the clock that comes this much late was a pause, not a busy machine
WALL_STEP_S = 5.0


@dataclass(frozen=True, slots=True)
class Tenure:
    """Our lease and when we last knew that it was ours."""

    lease: Lease
    ttl_s: float | None  # None: a reservation
    renewed_s: float  # when the last successful renewal was *sent*: the store's count began later

    @property
    def ends_s(self) -> float | None:
        """Until then nobody else can have the subnet."""
        return None if self.ttl_s is None else self.renewed_s + self.ttl_s


@dataclass(frozen=True, slots=True)
class Instant:
    """One look at both clocks."""

    boot_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Gap:
    """What happened between two looks that should have been `tick_s` apart."""

    paused_s: float  # 0: no pause
    wall_step_s: float  # 0: the wall clock went on as it should


def clock_gap(before: Instant, now: Instant, tick_s: float) -> Gap:
    """Tell a pause of this process or machine from a step of the wall clock."""
    passed_s = now.boot_s - before.boot_s
    late_s = passed_s - tick_s
    step_s = (now.wall_s - before.wall_s) - passed_s
    return Gap(late_s if late_s > PAUSE_S else 0.0, step_s if abs(step_s) > WALL_STEP_S else 0.0)


def renewal_at(tenure: Tenure, margin_s: float) -> float | None:
    """When to renew: `margin_s` before the end, but not in the first half of the lease's life."""
    if tenure.ttl_s is None:
        return None
    return tenure.renewed_s + max(tenure.ttl_s - margin_s, tenure.ttl_s / 2)


def duty(tenure: Tenure, margin_s: float, now_s: float, gap: Gap | None = None) -> Duty:
    """hold: nothing to do. renew: in time. recheck: it may be another's by now; keep pods running, announce nothing."""
    if now_s < tenure.renewed_s or (gap is not None and gap.paused_s):
        return "recheck"
    if tenure.ends_s is not None and now_s >= tenure.ends_s:
        return "recheck"
    renew_s = renewal_at(tenure, margin_s)
    return "renew" if renew_s is not None and now_s >= renew_s else "hold"
