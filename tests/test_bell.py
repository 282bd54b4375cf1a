"""Waiting: what wakes, and who is told what woke."""

from __future__ import annotations

import asyncio

import pytest

from canal_udp.control.bell import Bell, on_the_beat, rung


def test_every_hearer_hears_and_none_misses_a_ring() -> None:
    bell = Bell()
    assert not bell
    with bell.heard() as one, bell.heard() as two:
        bell.ring()
        assert bell and one.is_set() and two.is_set()
    assert not bell


def test_what_woke() -> None:
    async def work() -> None:
        event = asyncio.Event()
        assert await rung(event, 0.0) is False
        assert event.is_set()
        event.clear()
        asyncio.get_running_loop().call_soon(event.set)
        assert await rung(event, 1e6) is True
        assert await rung(event, 1e6) is True  # set already

    asyncio.run(work())


def test_a_wait_that_is_cancelled_sets_nothing_later() -> None:
    async def work() -> None:
        event = asyncio.Event()
        waiting = asyncio.create_task(rung(event, 0.001))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await asyncio.wait_for(rung(asyncio.Event(), 0.002), 10) is False  # a timer that is due later
        assert not event.is_set()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("timeout_s", "now", "wait_s"),
    [
        (0.0, 7.3, 0.0),
        (0.9, 7.3, 0.9),
        (1.0, 7.25, 0.75),
        (3.0, 7.25, 2.75),
        (1.0, 8.0, 1.0),
        (1.0, 7.99, 1.01),  # woken early
        (1.0, 8.01, 0.99),  # woken late
    ],
)
def test_who_waits_long_is_woken_with_the_others(timeout_s: float, now: float, wait_s: float) -> None:
    assert on_the_beat(timeout_s, now) == pytest.approx(wait_s)
