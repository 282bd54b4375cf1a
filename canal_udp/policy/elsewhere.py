"""Sets whose members no labels of endpoints decide: addresses of nodes, and of services with or without their ports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from canal_udp.encap.fib import packed
from canal_udp.policy.model import EndpointSlice, Node
from canal_udp.policy.normal import AddressSet, NodeSet, PortedSet, ServiceSet
from canal_udp.policy.rows import NamedPort

_NO_SETS: frozenset[str] = frozenset()
_NO_PORTS: frozenset[NamedPort] = frozenset()


class Elsewhere:
    """Every change returns the addresses that may be in other sets now. Addresses are 16 bytes."""

    def __init__(self) -> None:
        self._nodes: tuple[Node, ...] = ()
        self._slices: tuple[EndpointSlice, ...] = ()
        self._used: dict[str, AddressSet] = {}
        self._used_ports: dict[str, PortedSet] = {}
        self._sets: dict[bytes, frozenset[str]] = {}
        self._ports: dict[bytes, frozenset[NamedPort]] = {}

    def __contains__(self, address: bytes) -> bool:
        return address in self._sets or address in self._ports

    def sets_of(self, address: bytes) -> frozenset[str]:
        return self._sets.get(address, _NO_SETS)

    def ports_of(self, address: bytes) -> frozenset[NamedPort]:
        return self._ports.get(address, _NO_PORTS)

    def set_world(self, nodes: Iterable[Node], slices: Iterable[EndpointSlice]) -> set[bytes]:
        self._nodes, self._slices = tuple(nodes), tuple(slices)
        return self._look()

    def use(self, one: AddressSet) -> set[bytes]:
        self._used[one.id] = one
        return self._look()

    def use_ports(self, one: PortedSet) -> set[bytes]:
        self._used_ports[one.id] = one
        return self._look()

    def _look(self) -> set[bytes]:
        sets: dict[bytes, set[str]] = defaultdict(set)
        ports: dict[bytes, set[NamedPort]] = defaultdict(set)
        for name, used in self._used.items():
            if isinstance(used, NodeSet):
                members = [one.addresses for one in self._nodes if used.selector.matches(one.labels)]
            else:
                members = [one.addresses for one in self._slices_of(used)]
            for address in (address for some in members for address in some):
                sets[packed(address)].add(name)
        for name, served in self._used_ports.items():
            for one in self._slices_of(served):
                borne = {(name, protocol, port) for protocol, port in one.ports if port is not None}
                for address in one.addresses:
                    ports[packed(address)] |= borne
        before = self._sets.keys() | self._ports.keys()
        self._sets = {address: frozenset(found) for address, found in sets.items()}
        self._ports = {address: frozenset(found) for address, found in ports.items()}
        return before | self._sets.keys() | self._ports.keys()

    def _slices_of(self, used: AddressSet | PortedSet) -> list[EndpointSlice]:
        if not isinstance(used, ServiceSet):
            return []
        return [one for one in self._slices if (one.namespace, one.service) == (used.namespace, used.name)]
