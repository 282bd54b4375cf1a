"""The embedded store: one SQLite file for all daemons of a machine.

Structure   SqliteStore   asyncio side; every call runs in the store's one thread, a task wakes the watchers
            Database      thread side (control/sqlite.py): the file, its tables, the lease clock
Doorbell    Who has committed a write touches the file, which inotify tells the others at once. (The write itself would
            be announced too early, before the other processes can see it.) Programs that do not touch it are seen
            within QUIET_S; everybody within POLL_S where there is no inotify.
Invariants  a watch that falls behind gets a snapshot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from canal_udp.control.bell import Bell, rung
from canal_udp.control.inotify import LOST, FolderWatch
from canal_udp.control.sqlite import Database
from canal_udp.control.store import Batch, Entry, Snapshot, TypedStore
from canal_udp.errors import StoreUnavailable

POLL_S = 0.05  # without inotify
QUIET_S = 4.0  # with it: what expires is deleted by then, and what was not announced is found
T = TypeVar("T")


class SqliteStore(TypedStore):
    """thread: one event loop."""

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database = Database(Path(path), clock, wall)
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "canal-store")
        self._bell = Bell()
        self._poller: asyncio.Task[None] | None = None

    async def _list(self, kind: str) -> Snapshot:
        return await self._call(lambda: self._database.snapshot(kind))

    async def _put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        entry = await self._call(lambda: self._database.put(kind, key, value, expect, ttl_s))
        self._bell.ring()
        return entry

    async def _delete(self, kind: str, key: str, expect: int | None) -> bool:
        gone = await self._call(lambda: self._database.delete(kind, key, expect))
        self._bell.ring()
        return gone

    async def _watch(self, kind: str, after: int) -> AsyncIterator[Batch | Snapshot]:
        with self._bell.heard() as rung:
            self._keep_polling()
            while self._thread is not None:
                rung.clear()
                update = await self._changes(kind, after)
                if isinstance(update, Snapshot) or update.changes:
                    yield update
                after = update.revision
                await rung.wait()

    async def _changes(self, kind: str, after: int) -> Batch | Snapshot:
        return await self._call(lambda: self._database.changes(kind, after))

    async def compact(self) -> None:
        """Forget the log: watchers that lag get a snapshot."""
        await self._call(self._database.compact)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._bell.ring()
        if self._poller is not None:
            self._poller.cancel()
        await asyncio.get_running_loop().run_in_executor(thread, self._database.close)
        thread.shutdown(wait=False)

    def _keep_polling(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="canal-store-poll")

    async def _poll(self) -> None:
        """Ring when someone else changed the file; when that cannot be told, so that the watchers meet the fault."""
        doorbell = _Doorbell(self._database.path)
        try:
            while self._bell and self._thread is not None:
                announced = doorbell.attach()
                try:
                    changed = await self._call(self._database.look)
                except StoreUnavailable:
                    changed = True
                if changed:
                    self._bell.ring()
                await doorbell.rung(QUIET_S if announced else POLL_S)
        finally:
            doorbell.detach()

    async def _call(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise StoreUnavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _Doorbell:
    """What others do to the file, as the folder tells it. thread: the loop's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watch: FolderWatch | None = None
        self._rung = asyncio.Event()

    def attach(self) -> bool:
        """Listen, if that is possible now; what happens from here on rings."""
        self._rung.clear()
        if self._watch is None:
            try:
                self._watch = FolderWatch(self._path.parent)
            except OSError:  # no folder yet, no watches left, no inotify: the caller polls, and comes again
                return False
            asyncio.get_running_loop().add_reader(self._watch.fileno(), self._hear)
        return True

    def _hear(self) -> None:
        assert self._watch is not None
        names = self._watch.names()
        if LOST in names:  # perhaps the folder at this path is another one now
            self.detach()
        if names & {LOST, self._path.name}:
            self._rung.set()

    async def rung(self, timeout_s: float) -> None:
        """Wait until it rings, no longer than that."""
        await rung(self._rung, timeout_s)

    def detach(self) -> None:
        """Stop listening."""
        watch, self._watch = self._watch, None
        if watch is not None:
            asyncio.get_running_loop().remove_reader(watch.fileno())
            watch.close()
