"""Wakes every watcher of a store; a ring between two waits is never missed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
    """thread: the event loop."""

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
