"""Which prefixes lie around an address: a table by length, for as many lengths as there are."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from canal_udp.net import Network

ValueT = TypeVar("ValueT", bound=Hashable)

_BITS = {4: 32, 6: 128}


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
        self._lengths[net.version].setdefault(net.prefixlen, {})[_bits_of(net)] = net
        return True

    def discard(self, net: Network, value: ValueT) -> None:
        self._same.clear()  # answers that may not come again
        values = self._at.get(net, set())
        values.discard(value)
        if not values and net in self._at:
            del self._at[net]
            same_length = self._lengths[net.version][net.prefixlen]
            del same_length[_bits_of(net)]
            if not same_length:
                del self._lengths[net.version][net.prefixlen]

    def around(self, address: bytes, version: int, longest: int = 128) -> frozenset[ValueT]:
        """The values of all prefixes, not longer than `longest`, that hold an address; equal answers are one object.

        address  16 bytes, IPv4 as ::ffff:a.b.c.d.
        """
        lengths = self._lengths[version]
        if not lengths:
            return self._nothing
        bits = _BITS[version]
        number = int.from_bytes(address[-(bits // 8) :], "big")
        found: set[ValueT] = set()
        for length, nets in lengths.items():
            net = nets.get(number >> bits - length)
            if net is not None and length <= longest:
                found |= self._at[net]
        answer = frozenset(found)
        return self._same.setdefault(answer, answer)


def _bits_of(net: Network) -> int:
    return int(net.network_address) >> net.max_prefixlen - net.prefixlen
