"""Waiting to be woken: every watcher of a store by one ring, anyone by an event or by time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

BEAT_S = 1.0  # who waits that long is woken with all the others: an idle wakeup costs more than what is done in it
_EARLY_S = 0.05  # a timer that fires a little early must not fire twice


class Bell:
    """A ring between two waits is never missed. thread: the event loop."""

    def __init__(self) -> None:
        self._hearers: set[asyncio.Event] = set()

    @contextmanager
    def heard(self) -> Iterator[asyncio.Event]:
        """An event that every ring sets: clear it, look, wait for it."""
        event = asyncio.Event()
        self._hearers.add(event)
        try:
            yield event
        finally:
            self._hearers.discard(event)

    def ring(self) -> None:
        for event in self._hearers:
            event.set()

    def __bool__(self) -> bool:
        return bool(self._hearers)


async def rung(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until the event is set, and set it when that takes too long; tell whether someone else did.

    Limits     for one waiter; waits shorter by BEAT_S at most. asyncio.wait_for would do, with a task and an exception
               for every second of idling.
    """
    late = False

    def ring() -> None:
        nonlocal late
        late = True
        event.set()

    timer = asyncio.get_running_loop().call_later(on_the_beat(timeout_s, time.clock_gettime(time.CLOCK_BOOTTIME)), ring)
    try:
        await event.wait()
    finally:
        timer.cancel()
    return not late


def on_the_beat(timeout_s: float, now: float) -> float:
    """Return how long to wait so that all who wait long are woken together, not later than they asked."""
    if timeout_s < BEAT_S:
        return timeout_s
    return math.floor((now + timeout_s + _EARLY_S) / BEAT_S) * BEAT_S - now
