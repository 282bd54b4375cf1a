"""Everything known of the cluster as model objects, kept up to date by the entries of the store. Pure.

Structure  entry ─► Fact (stored.py) ─► the fact that counts for its object ─► object ─► Changes
Invariants An object is what the facts of now say, whatever the order in which they came: only what is touched is looked
           at again, and only what differs from before is a change.
           A pod that is attached counts for more than a Pod object of the same name, and of two attached ones the one
           written last. An address belongs to one pod: the one written last.
           A namespace that something lies in exists, also without an object.
Faults     What cannot be read is in `problems`; stored.py says what it stands for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, TypeAlias

from canal_udp.control.objects import ObjectKey
from canal_udp.control.store import Batch, Entry, Gone, Kind, Snapshot
from canal_udp.net import Address
from canal_udp.policy.model import (
    CALICO_DEFAULTS,
    EndpointSlice,
    HostEndpoint,
    Namespace,
    NetworkSet,
    Node,
    Object,
    Pod,
    Profile,
    ServiceAccount,
    Settings,
    State,
    Tier,
    WorkloadEndpoint,
)
from canal_udp.policy.stored import Fact, read_fact

Change: TypeAlias = tuple[str, str, Object | None]  # kind, key as State has it, the object or None: it is gone
Changes: TypeAlias = tuple[Change, ...]
Addresses: TypeAlias = tuple[Address, ...]
POLICY = "Policy"  # the kind of all policies in changes; other kinds are called as their class

_KINDS = (
    *(Namespace, ServiceAccount, Node, Pod, EndpointSlice),
    *(WorkloadEndpoint, HostEndpoint, NetworkSet, Tier, Profile, Settings),
)
_Source: TypeAlias = tuple[Kind, str]
_Rank: TypeAlias = tuple[bool, int, str]  # attached?, revision, key in the store


@dataclass(slots=True)
class Cluster:
    """thread: the event loop."""

    _values: dict[_Source, bytes] = field(default_factory=dict)
    _facts: dict[_Source, Fact] = field(default_factory=dict)
    _sources: dict[ObjectKey, set[_Source]] = field(default_factory=lambda: defaultdict(set))
    _counting: dict[ObjectKey, tuple[_Rank, Fact]] = field(default_factory=dict)
    _members: Counter[str] = field(default_factory=Counter)  # objects in each namespace
    _bearers: dict[Address, set[ObjectKey]] = field(default_factory=lambda: defaultdict(set))
    _objects: dict[str, dict[str, Object]] = field(
        default_factory=lambda: {POLICY: {}, **{kind.__name__: {} for kind in _KINDS}}
    )
    _problems: dict[object, str] = field(default_factory=dict)

    # ---- what others ask

    def apply(self, update: Snapshot | Batch, kind: Kind) -> Changes:
        """Take what the store says of a kind; returns the objects that are different now."""
        touched: set[ObjectKey] = set()
        if isinstance(update, Snapshot):
            there = {entry.key for entry in update.entries}
            for source in [source for source in self._facts if source[0] == kind and source[1] not in there]:
                self._forget(source, touched)
        for change in update.entries if isinstance(update, Snapshot) else update.changes:
            self._take(kind, change, touched)
        return self._changes(touched)

    def state(self) -> State:
        """All of it, as one value."""

        def named(kind: type[Any]) -> Mapping[str, Any]:
            return dict(self._objects[kind.__name__])

        policies: Any = self._objects[POLICY]
        return State(
            namespaces=named(Namespace),
            service_accounts=named(ServiceAccount),
            nodes=named(Node),
            pods=named(Pod),
            slices=named(EndpointSlice),
            workloads=named(WorkloadEndpoint),
            hosts=named(HostEndpoint),
            sets=named(NetworkSet),
            tiers=named(Tier),
            profiles=named(Profile),
            policies=tuple(policies[key] for key in sorted(policies)),
            settings=next(iter(named(Settings).values()), CALICO_DEFAULTS),
        )

    def everything(self) -> Changes:
        """All objects, as if there had been none before."""
        return tuple((kind, key, found) for kind, objects in self._objects.items() for key, found in objects.items())

    def pod_at(self, address: Address) -> Pod | None:
        """The pod that has an address of its own."""
        for key in self._bearers.get(address, ()):
            found = self._objects["Pod"].get(f"{key.namespace}/{key.name}")
            if isinstance(found, Pod) and address in found.addresses:
                return found
        return None

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(sorted(self._problems.values()))

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {kind: len(found) for kind, found in self._objects.items() if found}

    # ---- entries to facts

    def _take(self, kind: Kind, change: Entry | Gone, touched: set[ObjectKey]) -> None:
        source: _Source = (kind, change.key)
        if isinstance(change, Gone):
            self._forget(source, touched)
            return
        before = self._facts.get(source)
        if before is None or self._values[source] != change.value:
            fact = read_fact(kind, change.key, change.value, change.revision)
        elif before.revision == change.revision:
            return
        else:
            fact = replace(before, revision=change.revision)
        if fact.found is None and before is not None:
            fact = replace(fact, found=before.found)
        self._values[source], self._facts[source] = change.value, fact
        self._note(source, fact.problem)
        if fact.key is not None:
            self._sources[fact.key].add(source)
            touched.add(fact.key)

    def _forget(self, source: _Source, touched: set[ObjectKey]) -> None:
        fact = self._facts.pop(source, None)
        self._values.pop(source, None)
        self._note(source, "")
        if fact is not None and fact.key is not None:
            self._sources[fact.key].discard(source)
            touched.add(fact.key)

    def _note(self, about: object, problem: str) -> None:
        if problem:
            self._problems[about] = problem
        elif self._problems:
            self._problems.pop(about, None)

    # ---- facts to objects

    def _changes(self, touched: set[ObjectKey]) -> Changes:
        also: set[ObjectKey] = set()
        for key in touched:
            self._count(key, also)
        in_order = sorted(touched | also, key=attrgetter("kind", "namespace", "name"))
        changes = (self._settle(key) for key in in_order)
        return tuple(change for change in changes if change is not None)

    def _count(self, key: ObjectKey, also: set[ObjectKey]) -> None:
        """Choose the fact that counts for an object; `also` gets those that are touched by that."""
        _, before = self._counting.pop(key, (None, None))
        ranked = sorted(
            ((kind == "endpoints", self._facts[kind, name].revision, name), self._facts[kind, name])
            for kind, name in self._sources[key]
        )
        now = None
        if ranked:
            self._counting[key] = ranked[-1]
            now = ranked[-1][1]
        else:
            del self._sources[key]
        if key.namespace:
            self._members[key.namespace] += (_found(now) is not None) - (_found(before) is not None)
            also.add(ObjectKey("Namespace", "", key.namespace))
        self._bear(key, _addresses(_found(before)), _addresses(_found(now)), also)
        several = sum(attached for (attached, *_), _ in ranked) > 1
        self._note(("attached", key), f"{key.namespace}/{key.name} is attached at several nodes" if several else "")

    def _bear(self, key: ObjectKey, before: Addresses, now: Addresses, also: set[ObjectKey]) -> None:
        for address in before:
            self._bearers[address].discard(key)
        for address in now:
            self._bearers[address].add(key)
        for address in {*before, *now}:
            also |= self._bearers[address]
            if not self._bearers[address]:
                del self._bearers[address]

    def _settle(self, key: ObjectKey) -> Change | None:
        """The object of now; a change if it is another one than before."""
        _, fact = self._counting.get(key, (None, None))
        found = _found(fact)
        if found is None and key.kind == "Namespace" and self._members[key.name] > 0:
            found = Namespace(key.name, {})
        lost = self._lost(key, found)
        if isinstance(found, Pod) and lost:
            found = replace(found, addresses=tuple(one for one in found.addresses if one not in lost))
        kind, name = _place(key)
        before = self._objects[kind].get(name)
        if before == found:
            return None
        if found is None:
            del self._objects[kind][name]
        else:
            self._objects[kind][name] = found
        return kind, name, found

    def _lost(self, key: ObjectKey, found: Object | None) -> Addresses:
        """The addresses of a pod that another pod has, too, and for better reasons."""
        lost = tuple(
            address
            for address in _addresses(found)
            if len(rivals := self._bearers.get(address, ())) > 1
            and max((self._counting[one][0], one) for one in rivals)[1] != key
        )
        name = f"{key.namespace}/{key.name}"
        self._note(("lost", key), f"{', '.join(map(str, lost))} of {name} is another pod's now" if lost else "")
        return lost


def _found(fact: Fact | None) -> Object | None:
    return None if fact is None else fact.found


def _addresses(found: Object | None) -> Addresses:
    """Those that nobody else can have."""
    return found.addresses if isinstance(found, Pod) and not found.host_network and not found.finished else ()


def _place(key: ObjectKey) -> tuple[str, str]:
    """Kind and key of an object as State and changes have them."""
    name = f"{key.namespace}/{key.name}" if key.namespace else key.name
    if key.kind.endswith("Policy"):
        return POLICY, f"{key.kind}:{name}"
    return {"GlobalNetworkSet": "NetworkSet", "FelixConfiguration": "Settings"}.get(key.kind, key.kind), name
