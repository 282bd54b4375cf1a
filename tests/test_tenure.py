"""When to renew, and what a pause or a wrong clock changes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from canal_udp.control.lease import Lease
from canal_udp.control.tenure import Gap, Instant, Tenure, clock_gap, duty, renewal_at

LEASE = Lease(IPv4Network("10.1.2.0/24"), None, IPv4Address("192.0.2.1"))
DAY, HOUR = 86400.0, 3600.0
HELD = Tenure(LEASE, DAY, renewed_s=1000.0)
RESERVED = Tenure(LEASE, None, renewed_s=1000.0)


@pytest.mark.parametrize(
    ("tenure", "now_s", "expected"),
    [
        pytest.param(HELD, 1000.0, "hold", id="just renewed"),
        pytest.param(HELD, 1000.0 + 23 * HOUR - 1, "hold", id="before the margin"),
        pytest.param(HELD, 1000.0 + 23 * HOUR, "renew", id="margin reached"),
        pytest.param(HELD, 1000.0 + DAY - 1, "renew", id="last moment"),
        pytest.param(HELD, 1000.0 + DAY, "recheck", id="may be another's now"),
        pytest.param(HELD, 999.0, "recheck", id="the clock is of another boot"),
        pytest.param(RESERVED, 1000.0 + 100 * DAY, "hold", id="a reservation never ends"),
    ],
)
def test_duty(tenure: Tenure, now_s: float, expected: str) -> None:
    assert duty(tenure, HOUR, now_s) == expected


@pytest.mark.parametrize(
    ("ttl_s", "margin_s", "after_s"),
    [
        pytest.param(DAY, HOUR, DAY - HOUR, id="flannel's"),
        pytest.param(60.0, 59.0, 30.0, id="not in the first half"),
        pytest.param(60.0, HOUR, 30.0, id="margin longer than the lease"),
    ],
)
def test_renewal_time(ttl_s: float, margin_s: float, after_s: float) -> None:
    assert renewal_at(Tenure(LEASE, ttl_s, 1000.0), margin_s) == 1000.0 + after_s


START = Instant(boot_s=1000.0, wall_s=1.7e9)


@pytest.mark.parametrize(
    ("boot_s", "wall_s", "gap"),
    [
        pytest.param(1, 1, Gap(0, 0), id="as expected"),
        pytest.param(3, 3, Gap(0, 0), id="a busy machine"),
        pytest.param(61, 61, Gap(60, 0), id="stopped for a minute"),
        pytest.param(3601, 3601, Gap(3600, 0), id="suspended for an hour"),
        pytest.param(1, 1 + DAY, Gap(0, DAY), id="wall clock a day ahead"),
        pytest.param(1, 1 - DAY, Gap(0, -DAY), id="wall clock a day back"),
        pytest.param(61, 61 - DAY, Gap(60, -DAY), id="both"),
        pytest.param(3601, 1, Gap(3600, -3600), id="a wall clock that stood still while suspended"),
    ],
)
def test_gap(boot_s: float, wall_s: float, gap: Gap) -> None:
    now = Instant(START.boot_s + boot_s, START.wall_s + wall_s)
    assert clock_gap(START, now, tick_s=1.0) == gap


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        pytest.param(Gap(60, 0), "recheck", id="after a pause the store is asked first"),
        pytest.param(Gap(0, DAY), "hold", id="the wall clock decides nothing"),
        pytest.param(Gap(0, -DAY), "hold", id="in neither direction"),
    ],
)
def test_duty_after_a_gap(gap: Gap, expected: str) -> None:
    assert duty(HELD, HOUR, 2000.0, gap) == expected
    assert duty(RESERVED, HOUR, 2000.0, gap) == expected
