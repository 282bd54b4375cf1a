"""Classes of addresses, and which of them meet a criterion: columns of truth values, one row a class.

Structure  atom (a prefix, a set, a named port, a version) -> column; a criterion's column is made of its atoms' columns
Invariants a class is never taken back: who needs fewer starts anew. Columns grow with the classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canal_udp.net import Network
from canal_udp.policy.rows import Criterion, NamedPort

Column = NDArray[np.bool_]

_ROOM = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What rules can see of an address. `own`: it is an address of this node."""

    version: int
    nets: frozenset[Network] = frozenset()
    sets: frozenset[str] = frozenset()
    ports: frozenset[NamedPort] = frozenset()
    own: bool = False


class ClassTable:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._ids: dict[Seen, int] = {}
        self._room = _ROOM
        self._atoms: dict[Hashable, Column] = {}
        self._columns: dict[Criterion, tuple[int, Column]] = {}  # with how many of its rows are filled
        self._named: dict[str, set[NamedPort]] = {}
        self.named_changes = 0  # grows when an address bears a named port that none did

    def __len__(self) -> int:
        return len(self.seen)

    def id_of(self, seen: Seen) -> int:
        """The number of a class; a new one if there is none."""
        found = self._ids.get(seen)
        if found is not None:
            return found
        found = self._ids[seen] = len(self.seen)
        self.seen.append(seen)
        if found == self._room:
            self._grow()
        for atom in (seen.version, *seen.nets, *seen.sets, *seen.ports):
            self._atom(atom)[found] = True
        for port in seen.ports:
            known = self._named.setdefault(port[0], set())
            if port not in known:
                known.add(port)
                self.named_changes += 1
        return found

    def _grow(self) -> None:
        self._room *= 2
        self._atoms = {atom: _longer(column, self._room) for atom, column in self._atoms.items()}
        self._columns = {one: (filled, _longer(column, self._room)) for one, (filled, column) in self._columns.items()}

    def _atom(self, atom: Hashable) -> Column:
        found = self._atoms.get(atom)
        if found is None:
            found = self._atoms[atom] = np.zeros(self._room, np.bool_)
        return found

    # ---- named ports (rows.NamedPorts) -------------------------------------------------------------------------------

    def ports_of(self, name: str) -> frozenset[NamedPort]:
        return frozenset(self._named.get(name, ()))

    def combinations(self, names: frozenset[str]) -> Iterable[frozenset[NamedPort]]:
        return {frozenset(port for port in seen.ports if port[0] in names) for seen in self.seen} | {frozenset()}

    # ---- criteria ----------------------------------------------------------------------------------------------------

    def column(self, criterion: Criterion) -> Column:
        """Which classes meet it."""
        n = len(self.seen)
        filled, column = self._columns.get(criterion, (0, None))
        if column is None:
            column = np.zeros(self._room, np.bool_)
        if filled < n:
            column[filled:n] = self._met(criterion, slice(filled, n))
            self._columns[criterion] = n, column
        return column[:n]

    def _met(self, criterion: Criterion, rows: slice) -> Column:
        met = np.ones(rows.stop - rows.start, np.bool_)
        if criterion.version is not None:
            met &= self._atom(criterion.version)[rows]
        if criterion.nets:
            met &= self._any(criterion.nets, rows)
        if criterion.not_nets:
            met &= ~self._any(criterion.not_nets, rows)
        for atom in (*criterion.sets, *criterion.bears):
            met &= self._atom(atom)[rows]
        if criterion.not_sets:
            met &= ~self._any(criterion.not_sets, rows)
        if criterion.only is not None:
            names, borne = criterion.only
            others = {port for name in names for port in self._named.get(name, ())} - borne
            for port in borne:
                met &= self._atom(port)[rows]
            if others:
                met &= ~self._any(others, rows)
        return met

    def _any(self, atoms: Iterable[Hashable], rows: slice) -> Column:
        found = np.zeros(rows.stop - rows.start, np.bool_)
        for atom in atoms:
            found |= self._atom(atom)[rows]
        return found


def _longer(column: Column, room: int) -> Column:
    grown = np.zeros(room, np.bool_)
    grown[: len(column)] = column
    return grown
