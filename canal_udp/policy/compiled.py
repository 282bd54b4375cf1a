"""What the compiler makes: arrays in the shape of canal.h's structs, and which rule each number stands for.

Structure  Compiled ─┬─ classes   AddressClasses: prefix -> class, flags of each class
                     ├─ programs  endpoint -> (egress, ingress): Program: rows, and class -> vector for both ends
                     └─ rules     number in verdicts and counters -> RuleRef
Invariants frozen, compared by identity: two publications that share a part share its object, and C's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canal_udp.policy.cursor import NOWHERE, Where
from canal_udp.policy.model import Action, Direction

Array = NDArray[np.void]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AddressClasses:
    """Address -> class, as struct canal_fib_entry with target = class.

    addresses  single ones; they go before those of `base`, which go before the prefixes.
    flags      one CANAL_CLASS_* word a class.
    """

    addresses: Array
    prefixes: Array
    flags: NDArray[np.uint32]
    base: AddressClasses | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Rows:
    """table: struct canal_row. vectors: (n, words) uint64, a bit for each row."""

    table: Array
    vectors: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Program:
    """source, destination: class -> row of `rows.vectors`."""

    rows: Rows
    source: NDArray[np.uint32]
    destination: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class RuleRef:
    """What a verdict's number stands for. `rule` -1: no rule matched, the end of the tier or of everything decided."""

    direction: Direction
    action: Action
    tier: str = ""
    policy: str = ""
    rule: int = -1
    reason: str = ""
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """Everything that a snapshot needs to know of policies. An endpoint that is not in `programs` gets no traffic."""

    classes: AddressClasses
    programs: Mapping[str, tuple[Program, Program]]
    to_host: bool  # a pod may reach processes of its own node, if its own policy allows
    rules: Mapping[int, RuleRef]

    @property
    def in_force(self) -> set[int]:
        """The numbers of the rules that a packet of now may meet."""
        return numbers_of(program for pair in self.programs.values() for program in pair)

    def without(self, names: frozenset[str]) -> Compiled:
        """The same, with no traffic for these endpoints."""
        if not names & self.programs.keys():
            return self
        return replace(self, programs={name: pair for name, pair in self.programs.items() if name not in names})


def numbers_of(programs: Iterable[Program]) -> set[int]:
    """The rules that programs name; what they share is looked at once."""
    return {number for rows in {program.rows for program in programs} for number in rows.table["rule"].tolist()}


def words(bits: NDArray[Any]) -> NDArray[np.uint64]:
    """Rows of booleans as rows of 64-bit words, the first one in the lowest bit."""
    packed = np.packbits(bits, axis=1, bitorder="little")
    padded = np.zeros((len(bits), -(-packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8").astype(np.uint64, copy=False)
