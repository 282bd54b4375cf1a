"""Which prefixes lie around an address: a table by length, for as many lengths as there are."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from canal_udp.net import Address, Network

ValueT = TypeVar("ValueT", bound=Hashable)


class Prefixes(Generic[ValueT]):
    """Prefix -> values; `around` gives those of all prefixes that hold an address."""

    def __init__(self) -> None:
        self._at: dict[Network, set[ValueT]] = {}
        self._lengths: dict[int, dict[int, dict[int, Network]]] = {4: {}, 6: {}}  # version -> length -> bits -> prefix
        self._nothing: frozenset[ValueT] = frozenset()
        self._same: dict[frozenset[ValueT], frozenset[ValueT]] = {}

    @property
    def prefixes(self) -> list[Network]:
        return list(self._at)

    def add(self, net: Network, value: ValueT) -> bool:
        """Tell whether the value is new there."""
        values = self._at.setdefault(net, set())
        if value in values:
            return False
        values.add(value)
        bits = int(net.network_address) >> net.max_prefixlen - net.prefixlen
        self._lengths[net.version].setdefault(net.prefixlen, {})[bits] = net
        return True

    def discard(self, net: Network, value: ValueT) -> None:
        values = self._at.get(net, set())
        values.discard(value)
        if not values and net in self._at:
            del self._at[net]
            same_length = self._lengths[net.version][net.prefixlen]
            del same_length[int(net.network_address) >> net.max_prefixlen - net.prefixlen]
            if not same_length:
                del self._lengths[net.version][net.prefixlen]

    def around(self, address: Address, longest: int = 128) -> frozenset[ValueT]:
        """The values of all prefixes, not longer than `longest`, that hold an address; equal answers are one object."""
        lengths = self._lengths[address.version]
        if not lengths:
            return self._nothing
        number, bits = int(address), address.max_prefixlen
        found: set[ValueT] = set()
        for length, nets in lengths.items():
            net = nets.get(number >> bits - length)
            if net is not None and length <= longest:
                found |= self._at[net]
        answer = frozenset(found)
        return self._same.setdefault(answer, answer)
