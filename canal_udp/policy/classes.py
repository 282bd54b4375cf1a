"""Who has which labels, and what the rules of a world can see of an address or a port.

Place     evaluate.py and validate.py ask here; the sets that rules refer to get their members from the same index.
Structure items of the index: endpoints by key, host endpoints and network sets with a prefix before theirs.
          address -> class: intervals between the borders of all prefixes, and each address that something has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from canal_udp.net import Address, Network
from canal_udp.policy.index import LabelIndex
from canal_udp.policy.model import DIRECTIONS
from canal_udp.policy.normal import (
    Endpoint,
    NodeSet,
    PortSet,
    PrefixSet,
    Rule,
    SelectorSet,
    ServiceSet,
    Side,
    World,
)

HOST_ITEM, SET_ITEM = "host ", "set "  # names of endpoints have no blanks


@dataclass(frozen=True, slots=True)
class AddressClass:
    """What policies can see of an address. `ports` are (set, protocol, port)."""

    nets: frozenset[Network]
    sets: frozenset[str]
    ports: frozenset[tuple[str, int, int]]


def label_index(world: World) -> LabelIndex[str]:
    """Every selector of the rules and policies, followed over everything that has labels."""
    index: LabelIndex[str] = LabelIndex()
    for profile in world.profiles.values():
        index.set_parent(profile.name, profile.labels)
    for key, endpoint in world.endpoints.items():
        index.set_item(key, endpoint.labels, endpoint.parents)
    for key, endpoint in world.hosts.items():
        index.set_item(HOST_ITEM + key, endpoint.labels, endpoint.parents)
    for key, one in world.prefix_sets.items():
        index.set_item(SET_ITEM + key, one.labels, one.parents)
    for policies in world.policies.values():
        for policy in policies:
            index.add_selector(policy.selector)
    for side in _sides(world):
        for used in (*side.sets, *side.not_sets, *side.port_sets, *side.not_port_sets):
            if isinstance(used, SelectorSet | PortSet):
                index.add_selector(used.selector)
    return index


def _rules(world: World) -> Iterator[Rule]:
    for direction in DIRECTIONS:
        for policies in world.policies.values():
            for policy in policies:
                yield from policy.rules(direction) or ()
        for profile in world.profiles.values():
            yield from profile.rules(direction)


def _sides(world: World) -> Iterator[Side]:
    for rule in _rules(world):
        yield rule.source
        yield rule.destination


class Classes:
    """Addresses and ports by what the policies can see of them."""

    def __init__(self, world: World, index: LabelIndex[str]) -> None:
        self._index = index
        self._nodes, self._slices = tuple(world.nodes.values()), world.slices
        self.rules = tuple(_rules(world))
        sides = [side for rule in self.rules for side in (rule.source, rule.destination)]
        self._sets = {one.id: one for side in sides for one in (*side.sets, *side.not_sets)}
        self._elsewhere = {name: one for name, one in self._sets.items() if not isinstance(one, SelectorSet)}
        used = {one.id: one for side in sides for one in (*side.port_sets, *side.not_port_sets)}
        self._services = {name: one for name, one in used.items() if isinstance(one, ServiceSet)}
        self._named_by: dict[str, list[tuple[str, PortSet]]] = defaultdict(list)  # by the selector of the set
        for name, one in used.items():
            if isinstance(one, PortSet):
                self._named_by[one.selector.id].append((name, one))
        self._at: dict[Address, list[tuple[str, Endpoint]]] = defaultdict(list)
        for prefix, found in (("", world.endpoints), (HOST_ITEM, world.hosts)):
            for key, endpoint in found.items():
                for address in endpoint.addresses:
                    self._at[address].append((prefix + key, endpoint))
        special = {*self._at, *(a for one in world.nodes.values() for a in one.addresses)}
        special |= {address for one in world.slices for address in one.addresses}
        self.special = frozenset(special)  # addresses that may differ from their neighbours
        self._prefix_sets = tuple(world.prefix_sets.values())
        safe = (*world.settings.failsafe_inbound, *world.settings.failsafe_outbound)
        nets = {net for side in sides for net in (*side.nets, *side.not_nets)}
        nets |= {one.net for one in safe if one.net is not None}
        self._nets = _by_length(nets)
        self.borders = {4: _borders(nets, self._prefix_sets, 4), 6: _borders(nets, self._prefix_sets, 6)}
        self.special_ports = frozenset(_named_ports(world))
        self.port_borders = _port_borders(sides, (one.port for one in safe), self.special_ports)
        self._by_address: dict[Address, AddressClass] = {}
        self._by_interval: dict[tuple[int, int], AddressClass] = {}
        self._same: dict[AddressClass, AddressClass] = {}

    def port(self, port: int) -> int:
        return bisect_right(self.port_borders, port)

    def address(self, address: Address) -> AddressClass:
        """The one object of a class: classes can be compared by identity."""
        found = self._by_address.get(address)
        if found is not None:
            return found
        if address in self.special:
            found = self._by_address[address] = self._shared(address)
            return found
        interval = (address.version, bisect_right(self.borders[address.version], int(address)))
        found = self._by_interval.get(interval)
        if found is None:
            found = self._by_interval[interval] = self._shared(address)
        return found

    def _shared(self, address: Address) -> AddressClass:
        seen = self._look(address)
        return self._same.setdefault(seen, seen)

    def _look(self, address: Address) -> AddressClass:
        endpoints = self._at.get(address, [])
        sets: set[str] = set()
        for key, _ in endpoints:
            sets |= self._index.matching(key)
        for one in self._prefix_sets:
            if any(net.version == address.version and address in net for net in one.nets):
                sets |= self._index.matching(SET_ITEM + one.key)
        sets |= {name for name, used in self._elsewhere.items() if self._is_elsewhere(used, address)}
        return AddressClass(
            frozenset(self._around(address)),
            frozenset(sets & self._sets.keys()),
            frozenset(self._named(address, endpoints)),
        )

    def _around(self, address: Address) -> Iterator[Network]:
        """The prefixes that hold an address."""
        number = int(address)
        for bits, nets in self._nets[address.version].items():
            if (net := nets.get(number >> bits)) is not None:
                yield net

    def _is_elsewhere(self, used: object, address: Address) -> bool:
        """Sets that labels of endpoints do not decide."""
        if isinstance(used, NodeSet):
            return any(address in one.addresses and used.selector.matches(one.labels) for one in self._nodes)
        if isinstance(used, ServiceSet):
            return any(
                (one.namespace, one.service) == (used.namespace, used.name) and address in one.addresses
                for one in self._slices
            )
        return False

    def _named(self, address: Address, endpoints: list[tuple[str, Endpoint]]) -> Iterator[tuple[str, int, int]]:
        for name, service in self._services.items():
            for one in self._slices:
                if (one.namespace, one.service) == (service.namespace, service.name) and address in one.addresses:
                    yield from ((name, protocol, port) for protocol, port in one.ports if port is not None)
        for key, endpoint in endpoints:
            for selector in self._index.matching(key) & self._named_by.keys():
                for name, used in self._named_by[selector]:
                    for port in endpoint.ports:
                        if port.name == used.name and used.protocol in (None, port.protocol):
                            yield name, port.protocol, port.port


def _by_length(nets: Iterable[Network]) -> dict[int, dict[int, dict[int, Network]]]:
    """Version -> host bits -> network bits -> prefix: as many look-ups as there are lengths."""
    found: dict[int, dict[int, dict[int, Network]]] = {4: {}, 6: {}}
    for net in nets:
        bits = net.max_prefixlen - net.prefixlen
        found[net.version].setdefault(bits, {})[int(net.network_address) >> bits] = net
    return found


def _borders(nets: Iterable[Network], sets: Iterable[PrefixSet], version: int) -> list[int]:
    """First addresses of the intervals in which no prefix begins or ends."""
    found: set[int] = set()
    for net in (*nets, *(net for one in sets for net in one.nets)):
        if net.version == version:
            found |= {int(net.network_address), int(net.broadcast_address) + 1}
    return sorted(found)


def _port_borders(sides: Iterable[Side], single: Iterable[int], named: Iterable[int]) -> list[int]:
    """Of ranges and of `single` ports; of the `named` ones if a rule means a port by its name."""
    found = {edge for port in single for edge in (port, port + 1)}
    is_any_named = False
    for side in sides:
        for one in (*side.ports, *side.not_ports):
            found |= {one.first, one.last + 1}
        is_any_named = is_any_named or bool(side.port_sets or side.not_port_sets)
    if is_any_named:
        found |= {edge for port in named for edge in (port, port + 1)}
    return sorted(found)


def _named_ports(world: World) -> Iterator[int]:
    for one in (*world.endpoints.values(), *world.hosts.values()):
        yield from (port.port for port in one.ports)
    for some in world.slices:
        yield from (port for _, port in some.ports if port is not None)
