"""Addresses to classes: what all rules in use can see of each address, and the arrays that C searches.

Structure  owner (endpoint, host endpoint, network set) ─► kind: its labels and ports ─► the selectors that match
           address ─► kinds of its owners, prefixes around it, nodes, services ─► class
           Owners with equal labels and ports are one kind: labels are looked at once for all of them.
Invariants `settle` looks again only at addresses of kinds that match differently, of owners that changed, and in
           prefixes that are new. A set, once used, stays; the engine starts anew when too many are no longer.
Memory     addresses are 16 bytes here, as C has them: a hundred thousand of them are hashed often.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeAlias

from canal_udp.encap.fib import V4_MAPPED, packed
from canal_udp.net import Address, Network
from canal_udp.policy.class_rows import ClassRows
from canal_udp.policy.class_table import ClassTable, Seen
from canal_udp.policy.compiled import AddressClasses
from canal_udp.policy.elsewhere import Elsewhere
from canal_udp.policy.index import Change, LabelIndex
from canal_udp.policy.model import EndpointPort, EndpointSlice, Node
from canal_udp.policy.normal import AddressSet, PortedSet, PortSet, SelectorSet, Side
from canal_udp.policy.prefixes import Prefixes
from canal_udp.policy.rows import NamedPort

Labels: TypeAlias = tuple[frozenset[tuple[str, str]], tuple[str, ...]]  # own ones, parents

_NOBODY: frozenset[str] = frozenset()
_NO_NETS: frozenset[Network] = frozenset()
_NO_PORTS: frozenset[NamedPort] = frozenset()
_ANYWHERE: tuple[Network, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@dataclass(slots=True, eq=False)
class _Kind:
    """All owners with the same labels and ports. `plain`: class of an address that only they have, by version."""

    labels: Labels
    ports: tuple[EndpointPort, ...]
    members: set[str] = field(default_factory=set)
    sets: frozenset[str] | None = None
    named: frozenset[NamedPort] | None = None
    plain: dict[int, int] = field(default_factory=dict)

    def forget(self) -> None:
        self.sets = self.named = None
        self.plain.clear()


@dataclass(slots=True, eq=False)
class _Owner:
    kind: _Kind
    addresses: tuple[bytes, ...]
    nets: tuple[Network, ...]


class Addresses:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.table = ClassTable()
        self._index: LabelIndex[Labels] = LabelIndex()
        self._owners: dict[str, _Owner] = {}
        self._kinds: dict[Labels, dict[tuple[EndpointPort, ...], _Kind]] = {}
        self._bearers: dict[bytes, tuple[_Kind, ...]] = {}
        self._sets: dict[str, AddressSet] = {}
        self._port_sets: dict[str, PortedSet] = {}
        self._ports_by_selector: dict[str, list[PortSet]] = defaultdict(list)
        self._nets: Prefixes[Network] = Prefixes()
        self._set_nets: Prefixes[str] = Prefixes()  # prefix -> network sets that have it
        self._own: frozenset[bytes] = frozenset()
        self._elsewhere = Elsewhere()
        self._dirty: set[bytes] = set()
        self._nets_changed = True
        self._known: dict[object, int] = {}  # parts of Seen -> class
        self._rows = ClassRows()

    # ---- facts -------------------------------------------------------------------------------------------------------

    def set_owner(
        self,
        key: str,
        labels: Labels,
        addresses: Iterable[Address] = (),
        ports: tuple[EndpointPort, ...] = (),
        nets: tuple[Network, ...] = (),
    ) -> None:
        """Say who has which addresses, or, for a network set, prefixes."""
        self.remove_owner(key)
        kind = self._kind(labels, ports)
        kind.members.add(key)
        owner = self._owners[key] = _Owner(kind, tuple(map(packed, addresses)), nets)
        for address in owner.addresses:
            self._bearers[address] = (*self._bearers.get(address, ()), kind)
        self._dirty.update(owner.addresses)
        for net in nets:
            self._set_nets.add(net, key)
            self._touch_net(net)

    def remove_owner(self, key: str) -> None:
        """Say that nobody has them any more."""
        owner = self._owners.pop(key, None)
        if owner is None:
            return
        self._leave(key, owner.kind)
        for address in owner.addresses:
            left = list(self._bearers.pop(address))
            left.remove(owner.kind)
            if left:
                self._bearers[address] = tuple(left)
        self._dirty.update(owner.addresses)
        for net in owner.nets:
            self._set_nets.discard(net, key)
            self._touch_net(net)

    def _kind(self, labels: Labels, ports: tuple[EndpointPort, ...]) -> _Kind:
        same_labels = self._kinds.get(labels)
        if same_labels is None:
            same_labels = self._kinds[labels] = {}
            self._index.set_item(labels, dict(labels[0]), labels[1])
        kind = same_labels.get(ports)
        if kind is None:
            kind = same_labels[ports] = _Kind(labels, ports)
        return kind

    def _leave(self, key: str, kind: _Kind) -> None:
        kind.members.discard(key)
        if kind.members:
            return
        del self._kinds[kind.labels][kind.ports]
        if not self._kinds[kind.labels]:
            del self._kinds[kind.labels]
            self._index.remove_item(kind.labels)

    def set_parent(self, name: str, labels: dict[str, str]) -> None:
        """Give a profile its labels: they count for everybody who inherits from it."""
        self._touch(self._index.set_parent(name, labels))

    def set_own(self, own: Iterable[Address]) -> None:
        """The addresses of this node."""
        now = frozenset(map(packed, own))
        self._dirty |= self._own ^ now
        self._own = now

    def set_world(self, nodes: Iterable[Node], slices: Iterable[EndpointSlice]) -> None:
        """Nodes and services, for the sets that they are in."""
        self._dirty |= self._elsewhere.set_world(nodes, slices)

    # ---- what is looked at -------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Classes, and the sets and prefixes that are followed."""
        return len(self.table) + self._followed

    @property
    def _followed(self) -> int:
        return len(self._sets) + len(self._port_sets) + len(self._nets.prefixes)

    def is_overgrown(self, sides: Iterable[Side]) -> bool:
        """Are most classes nobody's, or most of what is followed nothing that these sides look at?"""
        needed: set[object] = set()
        for side in sides:
            needed.update(side.nets, side.not_nets)
            needed.update(one.id for one in (*side.sets, *side.not_sets))
            needed.update((one.id, "ports") for one in (*side.port_sets, *side.not_port_sets))
        return 2 * len(needed) < self._followed or 2 * self._rows.in_use < len(self.table)

    def use(self, side: Side) -> None:
        """Rules with this side are in use: see what they look at."""
        for net in (*side.nets, *side.not_nets):
            if self._nets.add(net, net):
                self._touch_net(net)
        for one in (*side.sets, *side.not_sets):
            if one.id not in self._sets:
                self._sets[one.id] = one
                if isinstance(one, SelectorSet):
                    self._touch(self._index.add_selector(one.selector))
                    self._touch_members(one.selector.id)
                else:
                    self._dirty |= self._elsewhere.use(one)
        for port_set in (*side.port_sets, *side.not_port_sets):
            if port_set.id not in self._port_sets:
                self._port_sets[port_set.id] = port_set
                if isinstance(port_set, PortSet):
                    self._ports_by_selector[port_set.selector.id].append(port_set)
                    self._index.add_selector(port_set.selector)
                    self._touch_members(port_set.selector.id)
                else:
                    self._dirty |= self._elsewhere.use_ports(port_set)

    def _touch_members(self, selector: str) -> None:
        """A selector that was followed already is looked at in another way now."""
        for labels in self._index.members(selector):
            self._touch_labels(labels)

    def _touch(self, changes: Iterable[Change[Labels]]) -> None:
        for change in changes:
            self._touch_labels(change.item)

    def _touch_labels(self, labels: Labels) -> None:
        for kind in self._kinds[labels].values():
            if kind.sets is None and kind.named is None:
                continue  # nobody has asked since it was touched last
            kind.forget()
            for key in kind.members:
                owner = self._owners[key]
                self._dirty.update(owner.addresses)
                for net in owner.nets:
                    self._touch_net(net)

    def _touch_net(self, net: Network) -> None:
        self._nets_changed = True
        self._dirty |= self._rows.within(net)

    # ---- classes -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Give every address that may have changed its class."""
        for address in self._dirty:
            owned = address in self._bearers or address in self._own or address in self._elsewhere
            self._rows.put(address, self._class(address), owned=owned)
        self._dirty = set()

    def _class(self, address: bytes) -> int:
        kinds = self._bearers.get(address, ())
        version = 4 if address.startswith(V4_MAPPED) else 6
        nets, sets = self._nets.around(address, version), self._set_nets.around(address, version)
        plain = len(kinds) == 1 and not nets and not sets and address not in self._own
        if plain and address not in self._elsewhere:
            found = kinds[0].plain.get(version)
            if found is None:
                found = self._number(version, nets, self._matching(kinds[0]), self._named(kinds[0]), False)
                kinds[0].plain[version] = found
            return found
        seen = self._elsewhere.sets_of(address).union(*map(self._matching, kinds), self._of_sets(sets))
        ports = self._elsewhere.ports_of(address).union(*map(self._named, kinds))
        return self._number(version, nets, seen, ports, address in self._own)

    def _number(
        self, version: int, nets: frozenset[Network], sets: frozenset[str], ports: frozenset[NamedPort], own: bool
    ) -> int:
        parts = (version, nets, sets, ports, own)
        found = self._known.get(parts)
        if found is None:
            found = self._known[parts] = self.table.id_of(Seen(*parts))
        return found

    def _matching(self, kind: _Kind) -> frozenset[str]:
        if kind.sets is None:
            kind.sets = self._index.matching(kind.labels)
        return kind.sets

    def _named(self, kind: _Kind) -> frozenset[NamedPort]:
        if kind.named is None:
            matching = self._matching(kind)
            kind.named = frozenset(
                (used.id, port.protocol, port.port)
                for used in self._followed_ports(matching if kind.ports else _NOBODY)
                for port in kind.ports
                if port.name == used.name and used.protocol in (None, port.protocol)
            )
        return kind.named

    def _followed_ports(self, selectors: frozenset[str]) -> Iterator[PortSet]:
        for selector in selectors & self._ports_by_selector.keys():
            yield from self._ports_by_selector[selector]

    def _of_sets(self, keys: frozenset[str]) -> frozenset[str]:
        """The sets that network sets are in."""
        return _NOBODY.union(*(self._matching(self._owners[key].kind) for key in keys))

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def arrays(self) -> AddressClasses:
        """What `canal_classes_build` takes; the same object while nothing changed."""
        prefixes = dict(self._prefixes()) if self._nets_changed else None
        self._nets_changed = False
        return self._rows.arrays(prefixes, self.table)

    def _prefixes(self) -> Iterator[tuple[Network, int]]:
        """Each prefix with the class of its addresses that are in no narrower one and nobody's."""
        for net in {*_ANYWHERE, *self._nets.prefixes, *self._set_nets.prefixes}:
            first, longest = packed(net.network_address), net.prefixlen
            nets = self._nets.around(first, net.version, longest)
            sets = self._of_sets(self._set_nets.around(first, net.version, longest))
            yield net, self._number(net.version, nets, sets, _NO_PORTS, False)
