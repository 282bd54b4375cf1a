"""Waiting: what wakes, and who is told what woke."""

from __future__ import annotations

import asyncio

from canal_udp.control.bell import Bell, rung


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
