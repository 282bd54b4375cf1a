"""Policies and endpoints between the store and the daemon: everybody's come in, this node's pods go out.

Structure  store ─► list, watch ─► entries, with our own pods put over them ─► Cluster ─► on_changes
           pods, leases ─► Publication ─► Put, Drop ─► store
           entries ─► <state-dir>/cluster.jsonl ─► the Cluster of a daemon that starts while the store is away
Invariants Before the first call of `on_changes` nothing is known of the cluster, and no pod may have traffic because of
           what is not known. From then on the last state that was known is in force, whatever becomes of the store.
           Our own pods are what we know of them, at once, and not what the store says.
Threads    the loop's; the file is written by a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TypeAlias

from canal_udp.config import DaemonConfig
from canal_udp.control import saved
from canal_udp.control.bell import rung
from canal_udp.control.objects import PodEntry, split_name
from canal_udp.control.publication import GRACE_S, Drop, Publication, Put
from canal_udp.control.store import KINDS, Batch, Entry, Gone, Kind, Snapshot, Store
from canal_udp.control.subnet_env import replace_file
from canal_udp.daemon_store import BACKOFF_S, first_failure
from canal_udp.endpoints import Endpoint
from canal_udp.errors import CanalError, ConfigError, StoreConflict
from canal_udp.logs import event
from canal_udp.node import Node
from canal_udp.policy.cluster import Changes, Cluster

LOG = logging.getLogger("canal.objects")
OWN_REVISION = 1 << 62  # of our own pods: newer than what anybody wrote
LOOK_S = 3600.0  # with nothing to do before someone says so
SAVE_S = 1.0  # from a change to the file ...
SAVE_REST = 20  # ... and a pause of so many times as long as writing it took
PROBLEMS_MAX = 5  # that are told one by one

OnChanges: TypeAlias = Callable[[Changes, bool], None]


class ObjectKeeper:
    """See the module's docstring. `cluster` is what is known."""

    def __init__(self, store: Store, config: DaemonConfig, node_name: str, node: Node, on_changes: OnChanges) -> None:
        self.cluster = Cluster()
        self.in_sync = False
        self.known = False  # ever anything
        self._store, self._config, self._name, self._node = store, config, node_name, node
        self._on_changes = on_changes
        self._path = config.state_dir / saved.FILE_NAME
        self._entries: dict[Kind, dict[str, Entry]] = {kind: {} for kind in KINDS}  # what the store says
        self._own: dict[str, PodEntry] = {}
        self._publication = Publication(node_name, GRACE_S * random.uniform(1, 1.5))  # not all at the same moment
        self._wake, self._unsaved = asyncio.Event(), asyncio.Event()
        self._told_in_sync: bool | None = None
        self._problem = self._save_problem = ""

    # life

    async def run(self) -> None:
        """Work for ever; the store may come and go."""
        self.notice()
        self._restore()
        failures = 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._save(), name="objects file")
            while True:
                began = _boottime()
                try:
                    await self._session()
                except (CanalError, OSError) as error:
                    self._lost(str(error) or type(error).__name__)
                failures = 0 if _boottime() - began > 10 * BACKOFF_S[-1] else failures + 1
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])

    def notice(self) -> None:
        """Look whether the node has other pods or leases now."""
        own = {pod.key: pod for pod in map(self._entry, self._node.endpoints.values())}
        if own != self._own:
            before, self._own = self._own, own
            self._publication.want(own.values())
            self._show_own(before)
        self._publication.know(self._node.lease, self._node.leases)
        if self._publication.waiting:
            self._wake.set()

    def close(self) -> None:
        """Leave the last state to the next daemon."""
        if self._unsaved.is_set():
            self._write(self._content())

    async def give_back(self) -> None:
        """Remove our pods from the store: this node is leaving."""
        self._publication.want(())
        await self._write_store()
        self._unsaved.clear()
        self._path.unlink(missing_ok=True)

    def _entry(self, endpoint: Endpoint) -> PodEntry:
        namespace, pod = split_name(endpoint.name)
        return PodEntry(self._name, namespace, pod, endpoint.ips, dict(endpoint.labels))

    # what others need to know

    @property
    def problems(self) -> tuple[str, ...]:
        found = [*self.cluster.problems, *self._publication.problems]
        more = len(found) - PROBLEMS_MAX
        told = found[:PROBLEMS_MAX] + ([f"and {more} more objects"] if more > 0 else [])
        if self._problem and self._problem not in self._node.reasons:
            told.append(f"policies and pods of the cluster: {self._problem}")
        return (*told, *((self._save_problem,) if self._save_problem else ()))

    def status(self) -> dict[str, object]:
        return {"in_sync": self.in_sync, "known": self.known, "counts": self.cluster.counts()}

    # the store

    async def _session(self) -> None:
        lists = {kind: await self._store.list(kind) for kind in KINDS}
        self._problem, self.in_sync, self.known = "", True, True
        self._take(*lists.items())
        watches = (self._watch(kind, snapshot.revision) for kind, snapshot in lists.items())
        await first_failure(*watches, self._publish())

    async def _watch(self, kind: Kind, after: int) -> None:
        async for update in self._store.watch(kind, after):
            self._take((kind, update))

    def _lost(self, reason: str) -> None:
        self._problem = reason
        self.in_sync = False
        self._tell(())

    async def _publish(self) -> None:
        while True:
            self._wake.clear()
            await self._write_store()
            due = self._publication.next_at
            await rung(self._wake, LOOK_S if due is None else max(due - _boottime(), 0.01))

    async def _write_store(self) -> None:
        for action in self._publication.step(_boottime()):
            try:
                await self._do(action)
            except StoreConflict:  # the watch tells what it is now
                event(LOG, "debug", "endpoint.conflict", key=action.key)

    async def _do(self, action: Put | Drop) -> None:
        match action:
            case Put(key, value, expect):
                revision = await self._store.put("endpoints", key, value, expect)
                self._publication.see(Batch(revision, (Entry(key, value, revision, revision),)))
            case Drop(key, expect):
                await self._store.delete("endpoints", key, expect)
                event(LOG, "info", "endpoint.removed", key=key)

    # what is known

    def _take(self, *updates: tuple[Kind, Snapshot | Batch]) -> None:
        """Take what the store says; one call tells all that is different."""
        changes: Changes = ()
        for kind, update in updates:
            if isinstance(update, Snapshot):
                self._entries[kind] = {entry.key: entry for entry in update.entries}
            else:
                _follow(self._entries[kind], update)
            if kind == "endpoints":
                self._publication.see(update)
                update = self._with_own(update)
            changes += self.cluster.apply(update, kind)
        self._tell(changes)
        if self._publication.waiting:
            self._wake.set()
        self._unsaved.set()

    def _with_own(self, update: Snapshot | Batch) -> Snapshot | Batch:
        """What the store says, but of our own pods what we know."""
        if isinstance(update, Snapshot):
            others = (entry for entry in update.entries if entry.key not in self._own)
            return Snapshot(update.revision, (*others, *map(_own_entry, self._own.values())))
        return Batch(update.revision, tuple(one for one in update.changes if one.key not in self._own))

    def _show_own(self, before: dict[str, PodEntry]) -> None:
        """Our own pods changed. Before anything is known of the others, that is only remembered."""
        if not self.known:
            return
        gone = [self._without(pod) for key, pod in before.items() if key not in self._own]
        news = [_own_entry(pod) for key, pod in self._own.items() if before.get(key) != pod]
        self._tell(self.cluster.apply(Batch(OWN_REVISION, (*gone, *news)), "endpoints"))

    def _without(self, pod: PodEntry) -> Entry | Gone:
        """What is at the key of a pod that was ours: our own entry is as good as removed."""
        entry = self._entries["endpoints"].get(pod.key)
        return Gone(pod.key, OWN_REVISION) if entry is None or entry.value == pod.value else entry

    def _tell(self, changes: Changes) -> None:
        if self.known and (changes or self.in_sync != self._told_in_sync):
            self._told_in_sync = self.in_sync
            self._on_changes(changes, self.in_sync)

    # the file

    def _restore(self) -> None:
        """Take up what an earlier daemon knew last."""
        try:
            content = self._path.read_bytes()
            snapshots = saved.load(content, str(self._path), self._config.store)
        except FileNotFoundError:
            return
        except (ConfigError, OSError) as error:
            event(LOG, "error", "cluster.unreadable", reason=error)
            return
        if snapshots is not None:
            self.known = True
            self._take(*snapshots.items())

    async def _save(self) -> None:
        while True:
            await self._unsaved.wait()
            await asyncio.sleep(SAVE_S)
            began = _boottime()
            self._unsaved.clear()
            await asyncio.to_thread(self._write, self._content())
            if self._save_problem:
                self._unsaved.set()
            await asyncio.sleep(SAVE_REST * (_boottime() - began))

    def _content(self) -> dict[Kind, tuple[Entry, ...]]:
        return {kind: tuple(found.values()) for kind, found in self._entries.items()}

    def _write(self, entries: dict[Kind, tuple[Entry, ...]]) -> None:
        """thread: any, one at a time."""
        try:
            replace_file(self._path, b"".join(saved.dump(entries, self._config.store)), 0o600)
            self._save_problem = ""
        except OSError as error:
            self._save_problem = f"{self._path}: {error.strerror or error}"


def _follow(entries: dict[str, Entry], batch: Batch) -> None:
    for change in batch.changes:
        if isinstance(change, Entry):
            entries[change.key] = change
        else:
            entries.pop(change.key, None)


def _own_entry(pod: PodEntry) -> Entry:
    return Entry(pod.key, pod.value, OWN_REVISION, OWN_REVISION)


def _boottime() -> float:
    """Seconds that nobody sets and that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
