"""Whose turn it is when everyone is looked at once in a while, and never all at once. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection


class Rounds:
    """One round takes `round_s`, longer where that were more than `most_per_s`; who comes in it waits for the next."""

    def __init__(self, round_s: float, now: float, most_per_s: float = math.inf) -> None:
        self._round_s, self._most_per_s = round_s, most_per_s
        self._last = now
        self._owed = 0.0  # the part of a turn that is not due yet
        self._queue: deque[str] = deque()

    def due(self, names: Collection[str], now: float) -> list[str]:
        """Return who has a turn now; after a long pause everyone has one, nobody two."""
        passed, self._last = now - self._last, now
        rate = min(len(names) / self._round_s, self._most_per_s)
        turns, self._owed = divmod(self._owed + rate * passed, 1)
        found: list[str] = []
        for _ in range(min(int(turns), len(names))):
            if not self._queue:
                self._queue.extend(names)
            found.append(self._queue.popleft())
        return [name for name in dict.fromkeys(found) if name in names]
