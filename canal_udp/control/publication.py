"""Which endpoints this node writes into the store, and which it removes. Pure: facts and the time in, writes out.

Structure  want, know, see ─► the keys that may be wrong now ─► step ─► Put, Drop
Invariants Who leases a subnet is the authority for it: it writes the pods that have addresses there, and removes at
           once what else claims one. An address that its node does not lease is an orphan; whoever sees it so for
           `grace_s` on end removes it, unless it was written since. Nothing is removed while the leases are unknown.
           Two nodes of one name do not touch each other's endpoints: neither leases the other's addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from canal_udp.control.acquire import owns
from canal_udp.control.lease import Lease
from canal_udp.control.objects import PodEntry, node_prefix, read_endpoint
from canal_udp.control.store import Batch, Entry, LeaseSnapshot, Snapshot
from canal_udp.errors import ConfigError
from canal_udp.net import Address, Network, contains

GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Put:
    """Write this endpoint if the entry is still at `expect`."""

    key: str
    value: bytes
    expect: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove this endpoint if the entry is still at `expect`."""

    key: str
    expect: int


@dataclass(frozen=True, slots=True)
class _Seen:
    entry: Entry
    pod: PodEntry | None  # None: it cannot be read


class Publication:
    """One node's view. thread: the event loop."""

    def __init__(self, node: str, grace_s: float = GRACE_S) -> None:
        self._prefix, self._node, self._grace_s = node_prefix(node), node, grace_s
        self._wanted: Mapping[str, PodEntry] = {}
        self._seen: dict[str, _Seen] = {}
        self._own: tuple[Network, ...] = ()
        self._holders = Holders()
        self._look: set[str] = set()  # keys that may be wrong
        self._orphans: dict[str, float] = {}  # key, since when

    # ---- facts

    def want(self, pods: Iterable[PodEntry]) -> None:
        """The pods that are attached here."""
        before, self._wanted = self._wanted, {pod.key: pod for pod in pods}
        self._look |= {key for key in before.keys() | self._wanted.keys() if before.get(key) != self._wanted.get(key)}

    def know(self, own: Lease | None, leases: LeaseSnapshot | None) -> None:
        """Our lease and everybody's."""
        same = (lease for lease in leases.leases if own and lease.key == own.key) if leases else ()
        held = own.prefixes if own and any(owns(own, lease) for lease in same) else ()
        holders = Holders.of(leases)
        if (held, holders) != (self._own, self._holders):
            self._own, self._holders = held, holders
            self._look |= self._seen.keys() | self._wanted.keys()

    def see(self, update: Snapshot | Batch) -> None:
        """The endpoints that are in the store."""
        if isinstance(update, Snapshot):
            gone = self._seen.keys() - {entry.key for entry in update.entries}
            for key in gone:
                self._forget(key)
        for change in update.entries if isinstance(update, Snapshot) else update.changes:
            if isinstance(change, Entry):
                self._remember(change)
            else:
                self._forget(change.key)

    def _remember(self, entry: Entry) -> None:
        before = self._seen.get(entry.key)
        if before is not None and before.entry.revision > entry.revision:
            return  # our own write, seen before its answer
        same = before is not None and before.entry.value == entry.value
        self._seen[entry.key] = _Seen(entry, before.pod if before is not None and same else _read(entry))
        self._orphans.pop(entry.key, None)
        self._look.add(entry.key)

    def _forget(self, key: str) -> None:
        self._seen.pop(key, None)
        self._orphans.pop(key, None)
        self._look.add(key)

    # ---- decisions

    @property
    def next_at(self) -> float | None:
        """When there will be something to do without news."""
        return min(self._orphans.values()) + self._grace_s if self._orphans else None

    @property
    def waiting(self) -> bool:
        """Is there something to look at?"""
        return bool(self._look)

    @property
    def problems(self) -> tuple[str, ...]:
        """Endpoints of ours that another node of our name has, too."""
        taken = (key for key, pod in self._wanted.items() if self._mine(pod) and self._is_another_nodes(key))
        return tuple(f"another node calls itself {self._node} and has {key}: --node names a node" for key in taken)

    def step(self, now: float) -> tuple[Put | Drop, ...]:
        """What to write and remove now."""
        if not self._holders.known:
            return ()
        due = {key for key, since in self._orphans.items() if now >= since + self._grace_s}
        look, self._look = self._look | due, set()
        return tuple(self._decide(look, now))

    def _decide(self, keys: set[str], now: float) -> Iterator[Put | Drop]:
        for key in sorted(keys):
            seen, wanted = self._seen.get(key), self._wanted.get(key)
            if wanted is not None and self._mine(wanted):
                value = wanted.value
                if (seen is None or seen.entry.value != value) and not self._is_another_nodes(key):
                    yield Put(key, value, seen.entry.revision if seen else 0)
            elif seen is not None and self._is_ours_to_remove(seen, now):
                yield Drop(key, seen.entry.revision)

    def _mine(self, pod: PodEntry) -> bool:
        return bool(pod.ips) and all(_within(ip, self._own) for ip in pod.ips)

    def _is_another_nodes(self, key: str) -> bool:
        """Is what lies at a key of ours another node's of the same name?"""
        pod = seen.pod if (seen := self._seen.get(key)) else None
        return pod is not None and bool(pod.ips) and not self._mine(pod) and self._holders.hold(pod)

    def _is_ours_to_remove(self, seen: _Seen, now: float) -> bool:
        key, pod = seen.entry.key, seen.pod
        if self._own and (self._mine(pod) if pod is not None and pod.ips else key.startswith(self._prefix)):
            return True
        if pod is not None and self._holders.hold(pod):
            self._orphans.pop(key, None)
            return False
        return now >= self._orphans.setdefault(key, now) + self._grace_s


@dataclass(frozen=True, slots=True)
class Holders:
    """What each node leases. `unclear`: subnets of leases that cannot be read; nothing in them is an orphan."""

    leases: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)
    unclear: tuple[Network, ...] = ()
    known: bool = False

    @classmethod
    def of(cls, snapshot: LeaseSnapshot | None) -> Holders:
        if snapshot is None:
            return cls()
        leases: dict[str, tuple[Network, ...]] = {}
        for lease in snapshot.leases:
            leases[lease.node] = (*leases.get(lease.node, ()), *lease.prefixes)
        return cls(leases, tuple(prefix for bad in snapshot.bad for prefix in bad.prefixes), True)

    def hold(self, pod: PodEntry) -> bool:
        """Does the pod's node lease all its addresses? Of a pod without any: does it lease something?"""
        held = self.leases.get(pod.node, ())
        if not pod.ips:
            return bool(held)
        return all(_within(ip, held) or _within(ip, self.unclear) for ip in pod.ips)


def _read(entry: Entry) -> PodEntry | None:
    try:
        return read_endpoint(entry.key, entry.value)
    except ConfigError:
        return None


def _within(address: Address, prefixes: Iterable[Network]) -> bool:
    return any(contains(prefix, address) for prefix in prefixes)
