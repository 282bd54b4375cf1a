"""The store protocol: one revision counter, compare-and-swap, list at a revision, watch from there on.

Structure   Store       what the daemon and the commands use: typed leases, and plain entries of other kinds
            TypedStore  the same on top of five primitives over (kind, key) -> bytes, for an implementation to fill in
Invariants  Every write takes the next revision of the whole store; an entry's `revision` is that of its last write,
            `created` that of its first. `expect` is the revision that must still be there; 0: must not exist;
            None: whatever is there.
Faults      StoreConflict: someone else was first, read again. StoreUnavailable: try later; read before writing again,
            the write may have happened. What someone else wrote badly is a BadEntry, never an exception.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from canal_udp.control.lease import Lease, lease_value, parse_key, read_lease
from canal_udp.errors import ConfigError, LeaseLost, StoreConflict, UsageError
from canal_udp.net import Network, present, printable

Kind: TypeAlias = Literal["endpoints", "policies"]
KINDS: tuple[Kind, ...] = ("endpoints", "policies")
NETWORK, LEASES = "network", "leases"  # kinds of their own; not for put, delete, list and watch
NETWORK_KEY = "config"


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of the store."""

    key: str
    value: bytes
    revision: int
    created: int
    expires_at: float | None = None  # unix seconds


@dataclass(frozen=True, slots=True)
class Gone:
    """An entry was deleted, or had expired."""

    key: str
    revision: int
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries of a kind at a revision, sorted by key."""

    revision: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened to a kind up to a revision, in order."""

    revision: int
    changes: tuple[Entry | Gone, ...]


@dataclass(frozen=True, slots=True)
class BadEntry:
    """A lease that cannot be understood. It is nobody's peer, but its key still keeps its subnet from being leased."""

    key: str  # as stored; pass it through `printable` before showing it
    problem: str  # safe to show
    revision: int

    @property
    def prefixes(self) -> tuple[Network, ...]:
        try:
            return tuple(present(*parse_key(self.key)))
        except ValueError:
            return ()


@dataclass(frozen=True, slots=True)
class LeaseSnapshot:
    """All leases at a revision, sorted by key."""

    revision: int
    leases: tuple[Lease, ...]
    bad: tuple[BadEntry, ...] = ()

    def apply(self, update: LeaseBatch | LeaseSnapshot) -> LeaseSnapshot:
        """The state after what a watch brought; what is not newer than this changes nothing."""
        if isinstance(update, LeaseSnapshot):
            return update
        if update.revision <= self.revision:
            return self
        leases = {lease.key: lease for lease in self.leases}
        bad = {entry.key: entry for entry in self.bad}
        for change in update.changes:
            leases.pop(change.key, None)
            bad.pop(change.key, None)
            match change:
                case Lease():
                    leases[change.key] = change
                case BadEntry():
                    bad[change.key] = change
        return LeaseSnapshot(
            update.revision,
            tuple(leases[key] for key in sorted(leases)),
            tuple(bad[key] for key in sorted(bad)),
        )


@dataclass(frozen=True, slots=True)
class LeaseBatch:
    """Leases written (also those that only got more time), spoilt or gone, in order."""

    revision: int
    changes: tuple[Lease | BadEntry | Gone, ...]


@runtime_checkable
class Store(Protocol):
    """One cluster's state. thread: the event loop; every call may raise StoreUnavailable."""

    async def get_network(self) -> tuple[str | None, int]:
        """The network config's text and revision; (None, 0) when there is none."""

    async def put_network(self, text: str, expect: int | None = None) -> int:
        """Write the network config; returns its revision."""

    async def list_leases(self) -> LeaseSnapshot: ...

    async def create_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        """Take a key that nobody has, else StoreConflict; returns the lease with its revisions. ttl None: for ever."""

    async def renew_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        """Write the lease anew if it is still at `lease.revision`.

        Raises   LeaseLost when the key is gone; StoreConflict when anyone wrote it since, whoever that was.
        """

    async def delete_lease(self, lease: Lease, expect: int | None = None) -> None:
        """Remove it if it is there (and at revision `expect`, else StoreConflict)."""

    def watch_leases(self, after: int) -> AsyncIterator[LeaseBatch | LeaseSnapshot]:
        """What changes after revision `after`, for ever; a LeaseSnapshot says: forget the rest, this is all there is.

        Raises   StoreUnavailable when the watch breaks; the caller watches again from the last revision it saw.
        """

    async def put(self, kind: Kind, key: str, value: bytes, expect: int | None = None) -> int:
        """Write an entry; returns its revision."""

    async def delete(self, kind: Kind, key: str, expect: int | None = None) -> bool:
        """Remove an entry; says whether it was there."""

    async def list(self, kind: Kind) -> Snapshot: ...

    def watch(self, kind: Kind, after: int) -> AsyncIterator[Batch | Snapshot]:
        """As `watch_leases`, for entries."""

    async def close(self) -> None:
        """End all watches and let go of the store. Calling it again does nothing."""


class TypedStore(ABC):
    """A Store on top of five primitives."""

    @abstractmethod
    async def _list(self, kind: str) -> Snapshot: ...

    @abstractmethod
    async def _put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        """StoreConflict if `expect` does not hold."""

    @abstractmethod
    async def _delete(self, kind: str, key: str, expect: int | None) -> bool: ...

    @abstractmethod
    def _watch(self, kind: str, after: int) -> AsyncIterator[Batch | Snapshot]: ...

    @abstractmethod
    async def close(self) -> None: ...

    async def get_network(self) -> tuple[str | None, int]:
        for entry in (await self._list(NETWORK)).entries:
            if entry.key == NETWORK_KEY:
                return entry.value.decode(errors="replace"), entry.revision
        return None, 0

    async def put_network(self, text: str, expect: int | None = None) -> int:
        return (await self._put(NETWORK, NETWORK_KEY, text.encode(), expect, None)).revision

    async def list_leases(self) -> LeaseSnapshot:
        return _lease_snapshot(await self._list(LEASES))

    async def create_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        return await self._put_lease(lease, 0, ttl_s)

    async def renew_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        try:
            return await self._put_lease(lease, lease.revision, ttl_s)
        except StoreConflict:
            if not any(entry.key == lease.key for entry in (await self._list(LEASES)).entries):
                raise LeaseLost(f"lease {lease.key} is gone") from None
            raise

    async def delete_lease(self, lease: Lease, expect: int | None = None) -> None:
        await self._delete(LEASES, lease.key, expect)

    async def watch_leases(self, after: int) -> AsyncIterator[LeaseBatch | LeaseSnapshot]:
        async for update in self._watch(LEASES, after):
            if isinstance(update, Snapshot):
                yield _lease_snapshot(update)
            else:
                yield LeaseBatch(update.revision, tuple(_lease_change(change) for change in update.changes))

    async def put(self, kind: Kind, key: str, value: bytes, expect: int | None = None) -> int:
        return (await self._put(_known(kind), key, value, expect, None)).revision

    async def delete(self, kind: Kind, key: str, expect: int | None = None) -> bool:
        return await self._delete(_known(kind), key, expect)

    async def list(self, kind: Kind) -> Snapshot:
        return await self._list(_known(kind))

    def watch(self, kind: Kind, after: int) -> AsyncIterator[Batch | Snapshot]:
        return self._watch(_known(kind), after)

    async def _put_lease(self, lease: Lease, expect: int, ttl_s: float | None) -> Lease:
        entry = await self._put(LEASES, lease.key, lease_value(lease).encode(), expect, ttl_s)
        return replace(lease, revision=entry.revision, created=entry.created, expires_at=entry.expires_at)


def open_store(url: str) -> Store:
    """The store of a URL: sqlite:///path, etcd://host:port/prefix or memory://name. Nothing is read or written yet."""
    scheme, separator, rest = url.partition("://")
    match scheme if separator else "":
        case "sqlite" if rest.startswith("/") and len(rest) > 1:
            from canal_udp.control.sqlite_store import SqliteStore

            return SqliteStore(rest)
        case "memory":
            from canal_udp.control.memory import MemoryStore

            return MemoryStore.named(rest)
        case "etcd" | "etcds":
            return _open_etcd(url)
    raise UsageError(f"store {printable(url)!r}: must be sqlite:///path, etcd://host:port/prefix or memory://name")


def _open_etcd(url: str) -> Store:
    from canal_udp.control.etcd_url import parse

    where = parse(url, os.environ)
    try:
        from canal_udp.control.etcd import EtcdStore
    except ModuleNotFoundError as error:
        raise UsageError(f"a store in etcd needs {error.name}: pip install 'canal-udp[etcd]'") from None
    return EtcdStore(where)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"{printable(kind)!r} is not a kind of entry: {', '.join(KINDS)}")
    return kind


def _lease_snapshot(snapshot: Snapshot) -> LeaseSnapshot:
    read = [_read(entry) for entry in snapshot.entries]
    return LeaseSnapshot(
        snapshot.revision,
        tuple(item for item in read if isinstance(item, Lease)),
        tuple(item for item in read if isinstance(item, BadEntry)),
    )


def _lease_change(change: Entry | Gone) -> Lease | BadEntry | Gone:
    return change if isinstance(change, Gone) else _read(change)


def _read(entry: Entry) -> Lease | BadEntry:
    try:
        return read_lease(
            entry.key, entry.value, revision=entry.revision, created=entry.created, expires_at=entry.expires_at
        )
    except ConfigError as error:
        return BadEntry(entry.key, str(error), entry.revision)
