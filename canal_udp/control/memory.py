"""The store in memory: for tests, and for a daemon that needs nobody else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import ClassVar
from weakref import WeakValueDictionary

from canal_udp.control.bell import Bell, rung
from canal_udp.control.store import Batch, Entry, Gone, Snapshot, TypedStore
from canal_udp.errors import StoreConflict, StoreUnavailable

LOG_MAX = 4096  # changes that a watcher may lag behind before it gets a snapshot instead
POLL_S = 0.05  # how often a watcher looks for expired entries


class Hub:
    """What several MemoryStores share. thread: one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self.clock, self.wall = clock, wall
        self.revision = 0
        self.compacted = 0  # changes up to here are forgotten
        self.bell = Bell()
        self._kinds: dict[str, dict[str, Entry]] = {}
        self._deadlines: dict[tuple[str, str], float] = {}  # on `clock`
        self._log: list[tuple[str, Entry | Gone]] = []

    def snapshot(self, kind: str) -> Snapshot:
        self._expire()
        entries = self._kinds.get(kind, {})
        return Snapshot(self.revision, tuple(entries[key] for key in sorted(entries)))

    def put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        old = self._expected(kind, key, expect)
        self.revision += 1
        expires_at = None if ttl_s is None else self.wall() + ttl_s
        entry = Entry(key, value, self.revision, old.created if old else self.revision, expires_at)
        self._kinds.setdefault(kind, {})[key] = entry
        self._deadlines.pop((kind, key), None)
        if ttl_s is not None:
            self._deadlines[kind, key] = self.clock() + ttl_s
        self._logged(kind, entry)
        return entry

    def delete(self, kind: str, key: str, expect: int | None) -> bool:
        if self._expected(kind, key, expect) is None:
            return False
        self._remove(kind, key, expired=False)
        return True

    def changes(self, kind: str, after: int) -> Snapshot | Batch:
        """What happened after a revision; everything, when that is no longer or not yet known."""
        self._expire()
        if not self.compacted <= after <= self.revision:
            return self.snapshot(kind)
        new = (change for its_kind, change in self._log if its_kind == kind and change.revision > after)
        return Batch(self.revision, tuple(new))

    def compact(self) -> None:
        """Forget how the present state came about."""
        self.compacted = self.revision
        self._log.clear()

    def _expected(self, kind: str, key: str, expect: int | None) -> Entry | None:
        self._expire()
        old = self._kinds.get(kind, {}).get(key)
        if expect is not None and expect != (old.revision if old else 0):
            raise StoreConflict(f"{kind}/{key} is at revision {old.revision if old else 0}, not {expect}")
        return old

    def _logged(self, kind: str, change: Entry | Gone) -> None:
        self._log.append((kind, change))
        if len(self._log) > LOG_MAX:
            self.compacted = self._log[LOG_MAX // 2][1].revision
            del self._log[: LOG_MAX // 2 + 1]
        self.bell.ring()

    def _remove(self, kind: str, key: str, *, expired: bool) -> None:
        self.revision += 1
        del self._kinds[kind][key]
        self._deadlines.pop((kind, key), None)
        self._logged(kind, Gone(key, self.revision, expired))

    def _expire(self) -> None:
        now = self.clock()
        for kind, key in [name for name, deadline in self._deadlines.items() if deadline <= now]:
            self._remove(kind, key, expired=True)


class MemoryStore(TypedStore):
    """One client of a hub."""

    _hubs: ClassVar[WeakValueDictionary[str, Hub]] = WeakValueDictionary()

    def __init__(self, hub: Hub | None = None) -> None:
        self.hub = hub or Hub()
        self._closed = False

    @classmethod
    def named(cls, name: str) -> MemoryStore:
        """Stores of one name share their content as long as one of them lives."""
        hub = cls._hubs.get(name) or Hub()
        cls._hubs[name] = hub
        return cls(hub)

    async def _list(self, kind: str) -> Snapshot:
        return self._open.snapshot(kind)

    async def _put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        return self._open.put(kind, key, value, expect, ttl_s)

    async def _delete(self, kind: str, key: str, expect: int | None) -> bool:
        return self._open.delete(kind, key, expect)

    async def _watch(self, kind: str, after: int) -> AsyncIterator[Batch | Snapshot]:
        hub = self._open
        with hub.bell.heard() as news:
            while not self._closed:
                news.clear()
                update = hub.changes(kind, after)
                if isinstance(update, Snapshot) or update.changes:
                    yield update
                after = update.revision
                await rung(news, POLL_S)

    async def close(self) -> None:
        self._closed = True
        self.hub.bell.ring()

    @property
    def _open(self) -> Hub:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        return self.hub
