"""One endpoint's and direction's policies -> a program: rows in the order in which they are asked.

Structure  tier ─► policies ─► rules ─► rows; a tier that denies at its end has a row that holds always; Pass goes on
           with the next tier; profiles come after all tiers, and nothing that is left passes.
Invariants a program is kept while its policies are; when there are new classes only their part of it is made anew, when
           there are new named ports its rows too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from canal_udp._abi import dtype_of, lib
from canal_udp.policy.class_table import ClassTable
from canal_udp.policy.compiled import Program, Rows, RuleRef, numbers_of, words
from canal_udp.policy.model import Action, Answer, Direction
from canal_udp.policy.normal import Policy, Profile, Rule, Side
from canal_udp.policy.rows import EVERYTHING, Criterion, Row, expand

SHED_FROM = 8192  # rules: fewer are not worth a look
_ACTIONS = {"Allow": lib.CANAL_ACTION_ALLOW, "Pass": lib.CANAL_ACTION_PASS, "Log": lib.CANAL_ACTION_LOG}


@dataclass(frozen=True, slots=True)
class TierPart:
    """What one tier says to an endpoint. `denies`: its end does."""

    name: str
    denies: bool
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class ProfilePart:
    """A profile of the endpoint; None: there is none of that name, which denies."""

    name: str
    profile: Profile | None


@dataclass(frozen=True, slots=True)
class Source:
    """What a program is made of."""

    direction: Direction
    tiers: tuple[TierPart, ...]
    profiles: tuple[ProfilePart, ...]

    @property
    def key(self) -> object:
        """Equal for sources of the same objects."""
        tiers = tuple((one.name, one.denies, *map(id, one.policies)) for one in self.tiers)
        return self.direction, tiers, tuple((one.name, id(one.profile)) for one in self.profiles)

    def rules(self) -> Iterator[Rule]:
        for tier in self.tiers:
            for policy in tier.policies:
                yield from policy.rules(self.direction) or ()
        for one in self.profiles:
            yield from one.profile.rules(self.direction) if one.profile else ()

    def sides(self) -> Iterator[Side]:
        for rule in self.rules():
            yield rule.source
            yield rule.destination


class RuleBook:
    """Rules by number, which no other rule ever gets; of one that is long gone direction and action are left."""

    def __init__(self, shed_from: int = SHED_FROM) -> None:
        self.refs: dict[int, RuleRef] = {}
        self._numbers: dict[RuleRef, int] = {}
        self._shed_from = self._look_at = shed_from

    def number(self, ref: RuleRef) -> int:
        found = self._numbers.get(ref)
        if found is None:
            found = self._numbers[ref] = len(self.refs) + 1
            self.refs[found] = ref
        return found

    def shed(self, programs: Iterable[Program]) -> None:
        """Forget the rules that are in no program, when they are most of them."""
        if len(self._numbers) < self._look_at:
            return
        used = numbers_of(programs)
        kept = {ref: number for ref, number in self._numbers.items() if number in used}
        if 2 * len(kept) < len(self._numbers):
            self.refs = {number: ref if ref in kept else _gone(ref) for number, ref in self.refs.items()}
            self._numbers = kept
        self._look_at = max(self._shed_from, 2 * len(self._numbers))


def _gone(ref: RuleRef) -> RuleRef:
    return _gone_rule(ref.direction, ref.action)


@cache
def _gone_rule(direction: Direction, action: Action) -> RuleRef:
    return RuleRef(direction, action, reason="a rule of before, which is gone")


@dataclass(slots=True)
class _Step:
    """A row with what it does; `tier` says where Pass goes on: with the next one."""

    row: Row
    action: int
    rule: int
    tier: int


@dataclass(slots=True)
class Held:
    """A program that is in use, with what is needed to keep it up to date."""

    source: Source
    program: Program
    named_changes: int
    criteria: tuple[tuple[Criterion, ...], tuple[Criterion, ...]]
    patterns: tuple[dict[bytes, int], dict[bytes, int]]  # truth values of the criteria -> vector


def make(source: Source, table: ClassTable, book: RuleBook) -> Held:
    """Make a program for all classes that there are."""
    steps = list(_steps(source, table, book))
    rows = _table(steps, len(source.tiers) + 1)
    places = (_places([step.row.source for step in steps]), _places([step.row.destination for step in steps]))
    vectors: dict[bytes, int] = {}
    blocks: list[NDArray[np.uint64]] = []
    maps, patterns = [], []
    for criteria, which in places:
        truth = _truth(table, criteria, 0)
        packed = np.packbits(truth, axis=1)
        unique, first, inverse = np.unique(_as_keys(packed), return_index=True, return_inverse=True)
        full = words(truth[first][:, which])
        numbers = np.array([_kept(vectors, blocks, row) for row in full], np.uint32)
        maps.append(numbers[inverse.reshape(-1)])
        patterns.append({key.tobytes(): int(number) for key, number in zip(unique, numbers, strict=True)})
    made = Rows(rows, np.array(blocks, np.uint64).reshape(len(blocks), -1))
    program = Program(made, maps[0], maps[1])
    return Held(source, program, table.named_changes, (places[0][0], places[1][0]), (patterns[0], patterns[1]))


def extend(held: Held, table: ClassTable, book: RuleBook) -> Held:
    """The program for the classes and named ports of now."""
    known = len(held.program.source)
    if held.named_changes != table.named_changes and _looks_at_names(held.source):
        return make(held.source, table, book)
    held.named_changes = table.named_changes
    if known == len(table):
        return held
    tails = []
    for criteria, patterns in zip(held.criteria, held.patterns, strict=True):
        packed = np.packbits(_truth(table, criteria, known), axis=1)
        found = [patterns.get(row.tobytes()) for row in packed]
        if None in found:
            return make(held.source, table, book)
        tails.append(np.array(found, np.uint32))
    source, destination = (
        np.concatenate([before, tail])
        for before, tail in zip((held.program.source, held.program.destination), tails, strict=True)
    )
    held.program = Program(held.program.rows, source, destination)
    return held


def _looks_at_names(source: Source) -> bool:
    return any(side.port_sets or side.not_port_sets for side in source.sides())


def _truth(table: ClassTable, criteria: Sequence[Criterion], first: int) -> NDArray[np.bool_]:
    """Classes from `first` on by criteria."""
    return np.stack([table.column(one)[first:] for one in criteria], axis=1)


def _places(criteria: list[Criterion]) -> tuple[tuple[Criterion, ...], NDArray[np.intp]]:
    """The different ones, and which of them each is."""
    index = {one: i for i, one in enumerate(dict.fromkeys(criteria))}
    return tuple(index), np.array([index[one] for one in criteria], np.intp)


def _as_keys(packed: NDArray[np.uint8]) -> NDArray[np.void]:
    """Rows of bytes as one value each."""
    return np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).reshape(-1)


def _kept(vectors: dict[bytes, int], blocks: list[NDArray[np.uint64]], row: NDArray[np.uint64]) -> int:
    key = row.tobytes()
    if key not in vectors:
        vectors[key] = len(blocks)
        blocks.append(row)
    return vectors[key]


# ---- rows ------------------------------------------------------------------------------------------------------------


def _steps(source: Source, table: ClassTable, book: RuleBook) -> Iterator[_Step]:
    direction = source.direction
    for at, tier in enumerate(source.tiers):
        for policy in tier.policies:
            for rule in policy.rules(direction) or ():
                ref = RuleRef(direction, rule.action, tier.name, policy.key, rule.index, where=rule.where)
                yield from _rule_steps(rule, policy.answer, book.number(ref), at, table)
        if tier.denies:
            last = tier.policies[-1]
            reason = "no rule of the tier matched"
            ref = RuleRef(direction, "Deny", tier.name, last.key, -1, reason, last.where)
            yield _Step(EVERYTHING, _denial(last.answer), book.number(ref), at)
    end = len(source.tiers)
    for one in source.profiles:
        key = f"Profile:{one.name}"
        if one.profile is None:
            ref = RuleRef(direction, "Deny", "", key, -1, "the profile does not exist")
            yield _Step(EVERYTHING, lib.CANAL_ACTION_DENY, book.number(ref), end)
            break
        for rule in one.profile.rules(direction):
            if rule.action != "Log":
                action: Action = "Allow" if rule.action == "Allow" else "Deny"
                ref = RuleRef(direction, action, "", key, rule.index, where=rule.where)
                for row in expand(rule, table):
                    yield _Step(row, _ACTIONS.get(action, lib.CANAL_ACTION_DENY), book.number(ref), end)
    ref = RuleRef(direction, "Deny", reason="no policy and no profile allows it")
    yield _Step(EVERYTHING, lib.CANAL_ACTION_DENY, book.number(ref), end)


def _rule_steps(rule: Rule, answer: Answer, number: int, tier: int, table: ClassTable) -> Iterator[_Step]:
    action = _denial(answer) if rule.action == "Deny" else _ACTIONS[rule.action]
    for row in expand(rule, table):
        yield _Step(row, action, number, tier)


def _denial(answer: Answer) -> int:
    return lib.CANAL_ACTION_REJECT if answer == "reject" else lib.CANAL_ACTION_DENY


def _table(steps: list[_Step], n_tiers: int) -> NDArray[np.void]:
    begins = [len(steps)] * (n_tiers + 1)
    for place in range(len(steps) - 1, -1, -1):
        begins[steps[place].tier] = place
    for tier in range(n_tiers - 1, -1, -1):
        begins[tier] = min(begins[tier], begins[tier + 1])
    table = np.zeros(len(steps), dtype_of("struct canal_row"))
    for name in ("sport", "dport"):
        ranges = np.array([getattr(step.row, name) for step in steps], np.uint16)
        table[f"{name}_lo"], table[f"{name}_hi"] = ranges[:, 0], ranges[:, 1]
    protocols = np.array([step.row.protocols for step in steps], np.uint8)
    table["proto_lo"], table["proto_hi"] = protocols[:, 0], protocols[:, 1]
    table["action"] = [step.action for step in steps]
    table["rule"] = [step.rule for step in steps]
    table["next"] = [begins[step.tier + 1] if step.action == lib.CANAL_ACTION_PASS else 0 for step in steps]
    return table
