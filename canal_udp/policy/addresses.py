"""Addresses to classes: what all rules in use can see of each address, and the arrays that C searches.

Structure  owner (endpoint, host endpoint, network set) ─► group: its labels ─► the selectors that match, by the index
           address ─► Seen: groups of its owners, prefixes around it, nodes, services ─► class
           Owners with equal labels are one group, so that labels are looked at once for all of them.
Invariants `settle` looks again only at addresses of groups that match differently, of owners that changed, and in
           prefixes that are new. A set, once used, stays; the engine starts anew when too many are no longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeAlias

import numpy as np

from canal_udp._abi import dtype_of, lib
from canal_udp.encap.fib import packed
from canal_udp.net import Address, Network
from canal_udp.policy.class_table import ClassTable, Seen
from canal_udp.policy.compiled import AddressClasses, Array
from canal_udp.policy.index import Change, LabelIndex
from canal_udp.policy.model import EndpointPort, EndpointSlice, Node
from canal_udp.policy.normal import AddressSet, NodeSet, PortedSet, PortSet, SelectorSet, ServiceSet, Side
from canal_udp.policy.prefixes import Prefixes
from canal_udp.policy.rows import NamedPort

Group: TypeAlias = tuple[frozenset[tuple[str, str]], tuple[str, ...]]  # labels, parents

_NOBODY: frozenset[str] = frozenset()
_NO_PORTS: frozenset[NamedPort] = frozenset()
_ANYWHERE: tuple[Network, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has addresses, or, a network set, prefixes."""

    group: Group
    addresses: tuple[Address, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    nets: tuple[Network, ...] = ()


@dataclass(slots=True)
class Addresses:
    """See the module's docstring."""

    table: ClassTable = field(default_factory=ClassTable)
    _index: LabelIndex[Group] = field(default_factory=LabelIndex)
    _owners: dict[str, Owner] = field(default_factory=dict)
    _members: dict[Group, set[str]] = field(default_factory=lambda: defaultdict(set))
    _matching: dict[Group, frozenset[str]] = field(default_factory=dict)
    _bearers: dict[Address, tuple[str, ...]] = field(default_factory=dict)
    _sets: dict[str, AddressSet] = field(default_factory=dict)
    _port_sets: dict[str, PortedSet] = field(default_factory=dict)
    _ports_by_name: dict[str, list[PortSet]] = field(default_factory=lambda: defaultdict(list))
    _nets: Prefixes[Network] = field(default_factory=Prefixes)
    _set_nets: Prefixes[str] = field(default_factory=Prefixes)  # prefix -> network sets that have it
    _own: frozenset[Address] = frozenset()
    _nodes: tuple[Node, ...] = ()
    _slices: tuple[EndpointSlice, ...] = ()
    _elsewhere: dict[Address, frozenset[str]] = field(default_factory=dict)  # sets that labels do not decide
    _served: dict[Address, frozenset[NamedPort]] = field(default_factory=dict)  # ports of services
    _dirty: set[Address] = field(default_factory=set)
    _all_dirty: bool = True
    _classes: dict[Address, int] = field(default_factory=dict)
    _known: dict[object, int] = field(default_factory=dict)  # parts of Seen -> class
    _made: AddressClasses | None = None

    # ---- facts -------------------------------------------------------------------------------------------------------

    def set_owner(self, key: str, owner: Owner | None) -> None:
        """Say who has which addresses; None: nobody any more."""
        before = self._owners.pop(key, None)
        if before is not None:
            self._leave(key, before)
        if owner is not None:
            self._owners[key] = owner
            self._enter(key, owner)
        if any(one is not None and one.nets for one in (before, owner)):
            self._all_dirty = True

    def _enter(self, key: str, owner: Owner) -> None:
        members = self._members[owner.group]
        if not members:
            self._index.set_item(owner.group, dict(owner.group[0]), owner.group[1])
        members.add(key)
        for address in owner.addresses:
            self._bearers[address] = (*self._bearers.get(address, ()), key)
        self._dirty.update(owner.addresses)
        for net in owner.nets:
            self._set_nets.add(net, key)

    def _leave(self, key: str, owner: Owner) -> None:
        members = self._members[owner.group]
        members.discard(key)
        if not members:
            del self._members[owner.group]
            self._index.remove_item(owner.group)
            self._matching.pop(owner.group, None)
        for address in owner.addresses:
            left = tuple(one for one in self._bearers[address] if one != key)
            if left:
                self._bearers[address] = left
            else:
                del self._bearers[address]
        self._dirty.update(owner.addresses)
        for net in owner.nets:
            self._set_nets.discard(net, key)

    def set_parent(self, name: str, labels: dict[str, str]) -> None:
        """Give a profile its labels: they count for everybody who inherits from it."""
        self._touch(self._index.set_parent(name, labels))

    def set_own(self, own: frozenset[Address]) -> None:
        """The addresses of this node."""
        self._dirty |= self._own ^ own
        self._own = own

    def set_world(self, nodes: Iterable[Node], slices: Iterable[EndpointSlice]) -> None:
        """Nodes and services, for the sets that they are in."""
        self._nodes, self._slices = tuple(nodes), tuple(slices)
        self._look_elsewhere()

    def use(self, side: Side) -> None:
        """Rules with this side are in use: see what they look at."""
        for net in (*side.nets, *side.not_nets):
            if self._nets.add(net, net):
                self._all_dirty = True
        for one in (*side.sets, *side.not_sets):
            if one.id not in self._sets:
                self._sets[one.id] = one
                self._follow(one)
        for port_set in (*side.port_sets, *side.not_port_sets):
            if port_set.id not in self._port_sets:
                self._port_sets[port_set.id] = port_set
                self._follow(port_set)

    def _follow(self, used: AddressSet | PortedSet) -> None:
        if isinstance(used, PortSet):
            self._ports_by_name[used.name].append(used)
            self._index.add_selector(used.selector)
            self._touch_members(used.selector.id)
        elif isinstance(used, SelectorSet):
            self._touch(self._index.add_selector(used.selector))
            self._touch_members(used.selector.id)
        else:
            self._look_elsewhere()

    def _touch_members(self, selector: str) -> None:
        for group in self._index.members(selector):
            self._touch_group(group)

    def _touch(self, changes: Iterable[Change[Group]]) -> None:
        for change in changes:
            self._touch_group(change.item)

    def _touch_group(self, group: Group) -> None:
        self._matching.pop(group, None)
        for key in self._members[group]:
            owner = self._owners[key]
            self._dirty.update(owner.addresses)
            if owner.nets:
                self._all_dirty = True

    def _look_elsewhere(self) -> None:
        """Find the sets whose members no labels of endpoints decide."""
        sets: dict[Address, set[str]] = defaultdict(set)
        ports: dict[Address, set[NamedPort]] = defaultdict(set)
        for name, used in self._sets.items():
            if isinstance(used, NodeSet):
                for node in self._nodes:
                    if used.selector.matches(node.labels):
                        for address in node.addresses:
                            sets[address].add(name)
            elif isinstance(used, ServiceSet):
                for one in self._slices_of(used):
                    for address in one.addresses:
                        sets[address].add(name)
        for name, port_set in self._port_sets.items():
            if isinstance(port_set, ServiceSet):
                for one in self._slices_of(port_set):
                    for address in one.addresses:
                        ports[address] |= {(name, protocol, port) for protocol, port in one.ports if port is not None}
        self._dirty |= self._elsewhere.keys() | sets.keys() | self._served.keys() | ports.keys()
        self._elsewhere = {address: frozenset(found) for address, found in sets.items()}
        self._served = {address: frozenset(found) for address, found in ports.items()}

    def _slices_of(self, used: ServiceSet) -> list[EndpointSlice]:
        return [one for one in self._slices if (one.namespace, one.service) == (used.namespace, used.name)]

    # ---- classes -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Give every address that may have changed its class."""
        special = self._bearers.keys() | self._own | self._elsewhere.keys() | self._served.keys()
        dirty = special | self._classes.keys() if self._all_dirty else self._dirty
        if not dirty and not self._all_dirty:
            return
        for address in dirty:
            now = self._class(address) if address in special else None
            if now is None:
                changed = self._classes.pop(address, None) is not None
            else:
                changed = self._classes.get(address) != now
                self._classes[address] = now
            if changed:
                self._made = None
        if self._all_dirty:
            self._made = None
        self._dirty, self._all_dirty = set(), False

    def _class(self, address: Address) -> int:
        owners = self._bearers.get(address, ())
        sets = self._sets_of(owners)
        if self._elsewhere:
            sets |= self._elsewhere.get(address, _NOBODY)
        around = self._set_nets.around(address)
        if around:
            sets |= self._sets_of(around)
        ports = self._ports_of(owners) if self._port_sets else _NO_PORTS
        if self._served:
            ports |= self._served.get(address, _NO_PORTS)
        return self._number(address.version, self._nets.around(address), sets, ports, address in self._own)

    def _number(
        self, version: int, nets: frozenset[Network], sets: frozenset[str], ports: frozenset[NamedPort], own: bool
    ) -> int:
        parts = (version, nets, sets, ports, own)
        found = self._known.get(parts)
        if found is None:
            found = self._known[parts] = self.table.id_of(Seen(*parts))
        return found

    def _sets_of(self, owners: Iterable[str]) -> frozenset[str]:
        found = _NOBODY
        for key in owners:
            group = self._owners[key].group
            matching = self._matching.get(group)
            if matching is None:
                matching = self._matching[group] = self._index.matching(group)
            found = matching if not found else found | matching
        return found

    def _ports_of(self, owners: Iterable[str]) -> frozenset[NamedPort]:
        return frozenset(
            (used.id, port.protocol, port.port)
            for key in owners
            for port in self._owners[key].ports
            for used in self._ports_by_name.get(port.name, ())
            if used.protocol in (None, port.protocol) and used.selector.id in self._sets_of((key,))
        )

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def arrays(self) -> AddressClasses:
        """What `canal_classes_build` takes; the same object while nothing changed."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> AddressClasses:
        nets = {*_ANYWHERE, *self._nets.prefixes, *self._set_nets.prefixes}
        held = {net: self._prefix_class(net) for net in nets if net.prefixlen < net.max_prefixlen}
        lonely = {
            net.network_address: self._class(net.network_address)
            for net in nets
            if net.prefixlen == net.max_prefixlen and net.network_address not in self._classes
        }
        table = _rows(held, {**self._classes, **lonely})
        flags = np.array([lib.CANAL_CLASS_NODE if seen.own else 0 for seen in self.table.seen], np.uint32)
        return AddressClasses(table, flags)

    def _prefix_class(self, net: Network) -> int:
        """The class of the addresses of a prefix that are in no narrower one and nobody's."""
        sets = self._sets_of(self._set_nets.around(net.network_address, net.prefixlen))
        around = self._nets.around(net.network_address, net.prefixlen)
        return self._number(net.version, around, sets, _NO_PORTS, False)


def _rows(prefixes: dict[Network, int], addresses: dict[Address, int]) -> Array:
    table = np.zeros(len(prefixes) + len(addresses), dtype_of("struct canal_fib_entry"))
    raw = b"".join([*(packed(net.network_address) for net in prefixes), *map(packed, addresses)])
    table["prefix"] = np.frombuffer(raw, np.uint8).reshape(-1, 16)
    table["family"] = [*(net.version for net in prefixes), *(address.version for address in addresses)]
    table["plen"] = [*(net.prefixlen for net in prefixes), *(address.max_prefixlen for address in addresses)]
    table["target"] = [*prefixes.values(), *addresses.values()]
    return table
