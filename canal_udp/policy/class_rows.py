"""Address -> class as the arrays that C takes: a large base that stays, and what is different since, in front of it.

Invariants an address in the amendment counts instead of the one in the base; the base is made anew when the amendment
           has grown to a part of it, so that a change costs what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from canal_udp._abi import dtype_of, lib
from canal_udp.encap.fib import V4_MAPPED, packed
from canal_udp.net import Network
from canal_udp.policy.class_table import ClassTable
from canal_udp.policy.compiled import AddressClasses, Array

AMENDED_MAX = 1024  # addresses, or an eighth of the base if that is more


class ClassRows:
    """See the module's docstring. Addresses are 16 bytes."""

    def __init__(self) -> None:
        self._classes: dict[bytes, int] = {}  # of addresses that are somebody's
        self._amended: dict[bytes, int] = {}
        self._base: AddressClasses | None = None
        self._made: AddressClasses | None = None
        self._prefixes: Array = _rows({})
        self._flags: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._keys: NDArray[np.uint8] | None = None  # all addresses

    def put(self, address: bytes, number: int, *, owned: bool) -> None:
        """Give an address its class; one that is nobody's has that of the prefix around it."""
        before = self._classes.get(address) if owned else self._classes.pop(address, None)
        if owned:
            if before == number:
                return
            self._classes[address] = number
        elif before is None and self._amended.get(address, number) == number:
            return
        self._amended[address] = number
        self._made = self._keys = None

    @property
    def in_use(self) -> int:
        """How many classes addresses and prefixes have."""
        return len({*self._classes.values(), *self._prefixes["target"].tolist()})

    def within(self, net: Network) -> set[bytes]:
        """The addresses in a prefix."""
        if self._keys is None:
            loose = self._amended.keys() - self._classes.keys()
            self._keys = np.frombuffer(b"".join((*self._classes, *loose)), np.uint8).reshape(-1, 16)
        keys = self._keys
        length = net.prefixlen + (96 if net.version == 4 else 0)
        whole, rest = divmod(length, 8)
        first = np.frombuffer(packed(net.network_address), np.uint8)
        inside = (keys[:, :whole] == first[:whole]).all(axis=1)
        if rest:
            inside &= (keys[:, whole] ^ first[whole]) >> (8 - rest) == 0
        return {key.tobytes() for key in keys[inside]}

    def arrays(self, prefixes: Mapping[Network, int] | None, table: ClassTable) -> AddressClasses:
        """All of it; the same object while nothing changed. prefixes: None, those of before."""
        if prefixes is not None:
            self._prefixes, self._made = _prefix_rows(prefixes), None
        if self._made is None:
            self._grow_flags(table)
            if self._base is None or len(self._amended) > max(AMENDED_MAX, len(self._base.addresses) // 8):
                self._amended = {}
                self._base = self._made = AddressClasses(_rows(self._classes), self._prefixes, self._flags)
            else:
                self._made = AddressClasses(_rows(self._amended), self._prefixes, self._flags, self._base)
        return self._made

    def _grow_flags(self, table: ClassTable) -> None:
        if len(self._flags) < len(table):
            more = [lib.CANAL_CLASS_NODE if seen.own else 0 for seen in table.seen[len(self._flags) :]]
            self._flags = np.concatenate([self._flags, np.array(more, np.uint32)])


def _rows(classes: Mapping[bytes, int]) -> Array:
    table = np.zeros(len(classes), dtype_of("struct canal_fib_entry"))
    if classes:
        prefix = np.frombuffer(b"".join(classes), np.uint8).reshape(-1, 16)
        v4 = (prefix[:, :12] == np.frombuffer(V4_MAPPED, np.uint8)).all(axis=1)
        table["prefix"] = prefix
        table["family"] = np.where(v4, 4, 6)
        table["plen"] = np.where(v4, 32, 128)
        table["target"] = np.fromiter(classes.values(), np.uint32, len(classes))
    return table


def _prefix_rows(prefixes: Mapping[Network, int]) -> Array:
    table = np.zeros(len(prefixes), dtype_of("struct canal_fib_entry"))
    table["prefix"] = np.frombuffer(b"".join(packed(net.network_address) for net in prefixes), np.uint8).reshape(-1, 16)
    table["family"] = [net.version for net in prefixes]
    table["plen"] = [net.prefixlen for net in prefixes]
    table["target"] = list(prefixes.values())
    return table
