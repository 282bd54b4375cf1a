"""Which flows fare differently in two states: over the whole header space, or of those that were recorded.

Place     `canal policy diff`, and before policies are applied. Pure: two states in, changes out.
Structure every pair of spots (see space.py) and every class of packets is asked of both states; what changed is joined:
          packets of a pair, then sources that share packets and destinations, then destinations, then both families.
Exactness the classes leave nothing out, so no change means that none exists, for ends that are in both states; a pod
          that is only in one of them is named and not compared.
Limits    CASES_MAX questions. Ends whose own policies are the same are not asked where nobody else's labels changed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from canal_udp.errors import RequestError
from canal_udp.policy.cursor import NOWHERE
from canal_udp.policy.evaluate import End, Evaluator, Packet
from canal_udp.policy.flow import Flow, Verdict
from canal_udp.policy.lower import with_staged
from canal_udp.policy.model import DIRECTIONS, EGRESS, ICMP, ICMP6, INGRESS, WITH_PORTS, Direction, PortRange, State
from canal_udp.policy.normal import Rule, Side, World
from canal_udp.policy.questions import PROTOCOL_NAMES, Questions, with_addresses
from canal_udp.policy.space import PacketClass, Spot, end_words, packet_classes, packet_words, spots
from canal_udp.policy.why import Why

CASES_MAX = 20_000_000
_FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class Change:
    """Flows from each of the sources to each of the destinations that one state allows and the other denies."""

    allow: bool  # in the new state
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    families: tuple[int, ...]
    packets: tuple[str, ...]  # TCP 80-90,443; UDP; ICMP 8/0; other protocols
    example: dict[str, Any]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """`only_old`, `only_new`: pods that cannot be compared."""

    changes: tuple[Change, ...]
    only_old: tuple[str, ...] = ()
    only_new: tuple[str, ...] = ()


class _Pair:
    """Two states, made ready to be asked."""

    def __init__(self, old: State, new: State) -> None:
        self.old, self.new = Evaluator(with_addresses(old)), Evaluator(with_addresses(new))
        self._whys = Why(self.old.world), Why(self.new.world)

    def told(self, before: Verdict, after: Verdict) -> tuple[str, str]:
        return self._whys[0].both(before), self._whys[1].both(after)


# ---- the whole header space ------------------------------------------------------------------------------------------


def difference(old: State, new: State) -> Difference:
    """Every change there is; RequestError when there are too many classes to ask for all."""
    pair = _Pair(old, new)
    names = [set(one.places.names) for one in (pair.old, pair.new)]
    changes = [change for version in _FAMILIES for change in _family(pair, version)]
    return Difference(
        tuple(_both_families(changes)), tuple(sorted(names[0] - names[1])), tuple(sorted(names[1] - names[0]))
    )


def with_staged_enforced(state: State) -> State:
    """What a state would be if its staged policies were enforced."""
    return replace(state, policies=tuple(with_staged(state.policies)))


@dataclass(frozen=True, slots=True)
class _Found:
    """Packets that fare differently between two spots."""

    source: int
    destination: int
    allow: bool
    words: tuple[str, ...]
    example: Packet


def _family(pair: _Pair, version: int) -> Iterator[Change]:
    ends = spots(pair.old, pair.new, version)
    packets = _Packets(pair, version)
    asked, found = 0, list[_Found]()
    for source, destination in _asked(pair, ends):
        members = _members(ends, source, destination)
        kinds = packets.between(*members)
        asked += len(kinds)
        if asked > CASES_MAX:
            raise RequestError(
                f"{len(ends)} kinds of ends are too many to ask for all their flows; ask for recorded ones, or for a "
                "part of the cluster"
            )
        found += (_Found(source, destination, *one) for one in _changed(pair, *members, kinds))
    alone = {number for number, spot in enumerate(ends) if len(spot.members) == 1 and spot.names}
    for sources, destinations, one in _joined(found, alone):
        yield _change(pair, ends, sources, destinations, one)


class _Packets:
    """Classes of packets, as few as the rules between two ends need."""

    def __init__(self, pair: _Pair, version: int) -> None:
        self._pair, self._version = pair, version
        self._special = pair.old.classes.special_ports | pair.new.classes.special_ports
        self._known: dict[object, tuple[PacketClass, ...]] = {}

    def between(self, source: tuple[End, End], destination: tuple[End, End]) -> tuple[PacketClass, ...]:
        both = (self._pair.old, self._pair.new)
        stations = (source[0].egress, source[1].egress, destination[0].ingress, destination[1].ingress)
        nodes = (end.node for end in (*source, *destination))
        key = (*map(id, stations), *nodes)
        if key not in self._known:
            rules = [rule for at, one in enumerate(both) for rule in one.rules_between(source[at], destination[at])]
            rules += (rule for one in both for rule in _failsafes(one.world))
            self._known[key] = packet_classes(rules, self._version, self._special)
        return self._known[key]


def _failsafes(world: World) -> Iterator[Rule]:
    """What no policy of a host can cut off, as rules."""
    for one in (*world.settings.failsafe_inbound, *world.settings.failsafe_outbound) if world.hosts else ():
        yield Rule("Allow", 0, protocol=one.protocol, destination=Side(ports=(PortRange(one.port, one.port),)))


def _asked(pair: _Pair, ends: tuple[Spot, ...]) -> Iterator[tuple[int, int]]:
    """Pairs that may fare differently. What a pod sends to itself is not policed."""
    is_same = _SameStations(pair)
    same = {direction: [is_same(one, direction) for one in ends] for direction in DIRECTIONS}
    for source, spot in enumerate(ends):
        for destination in range(len(ends)):
            if same[EGRESS][source] and same[INGRESS][destination]:
                continue
            if source != destination or len(spot.members) > 1 or not spot.names:
                yield source, destination


class _SameStations:
    """Is what polices a spot the same in both states, and are the labels that its rules look at?"""

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self._is_possible = _people(pair.old) == _people(pair.new)
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, spot: Spot, direction: Direction) -> bool:
        before, after = (end.egress if direction == EGRESS else end.ingress for end in spot.members[0])
        key = id(before), id(after)
        if key not in self._known:
            self._known[key] = self._is_possible and self._pair.old.essence(before) == self._pair.new.essence(after)
        return self._known[key]


def _people(evaluator: Evaluator) -> tuple[object, ...] | float:
    """Everything but policies and tiers, wherever it is written; with host endpoints nothing equals it."""
    world = evaluator.world
    if world.hosts:
        return math.nan
    return (
        evaluator.places.parties,
        {key: replace(one, where=NOWHERE) for key, one in world.endpoints.items()},
        world.prefix_sets,
        {name: profile.labels for name, profile in world.profiles.items()},
        {name: replace(node, where=NOWHERE) for name, node in world.nodes.items()},
        [replace(one, where=NOWHERE) for one in world.slices],
        replace(world.settings, where=NOWHERE),
    )


def _changed(
    pair: _Pair, source: tuple[End, End], destination: tuple[End, End], kinds: tuple[PacketClass, ...]
) -> Iterator[tuple[bool, tuple[str, ...], Packet]]:
    found: dict[bool, list[PacketClass]] = {True: [], False: []}
    for kind in kinds:
        after = pair.new.passes(source[1], destination[1], kind.packet)
        if pair.old.passes(source[0], destination[0], kind.packet) is not after:
            found[after].append(kind)
    for allow, some in found.items():
        if some:
            yield allow, packet_words(some, kinds), some[0].packet


def _members(ends: tuple[Spot, ...], source: int, destination: int) -> tuple[tuple[End, End], tuple[End, End]]:
    """Of one spot two different pods."""
    return ends[source].members[0], ends[destination].members[-1 if source == destination else 0]


# ---- joining what changed --------------------------------------------------------------------------------------------


def _joined(found: Iterable[_Found], alone: set[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], _Found]]:
    """Sources that share destination and packets, then destinations that share sources; with one of them."""
    by_destination: dict[object, list[_Found]] = defaultdict(list)
    for one in found:
        by_destination[one.destination, one.allow, one.words].append(one)
    by_sources: dict[object, list[list[_Found]]] = defaultdict(list)
    for some in by_destination.values():
        by_sources[frozenset(one.source for one in some), some[0].allow, some[0].words].append(some)
    for several in _but_for_themselves(by_sources.values(), alone):
        sources = {one.source for some in several for one in some}
        yield tuple(sorted(sources)), tuple(some[0].destination for some in several), several[0][0]


def _but_for_themselves(groups: Iterable[list[list[_Found]]], alone: set[int]) -> Iterator[list[list[_Found]]]:
    """Join destinations that share their sources but for themselves: what a pod sends to itself is not policed."""
    alike: dict[object, list[list[_Found]]] = defaultdict(list)
    for group in groups:
        some, *more = group
        sources, destination = {one.source for one in some}, some[0].destination
        if not more and destination in alone:
            sources.add(destination)
        alike[frozenset(sources), some[0].allow, some[0].words].extend(group)
    yield from alike.values()


def _change(
    pair: _Pair, ends: tuple[Spot, ...], sources: tuple[int, ...], destinations: tuple[int, ...], one: _Found
) -> Change:
    source, destination = _members(ends, one.source, one.destination)
    before = pair.old.verdict(Flow(source[0].address, destination[0].address, *one.example))
    after = pair.new.verdict(Flow(source[1].address, destination[1].address, *one.example))
    names = ends[one.source].name_of(0), ends[one.destination].name_of(-1 if one.source == one.destination else 0)
    return Change(
        one.allow,
        end_words(ends[number] for number in sources),
        end_words(ends[number] for number in destinations),
        (ends[one.source].version,),
        one.words,
        _question(*names, one.example),
        *pair.told(before, after),
    )


def _question(source: str, destination: str, packet: Packet) -> dict[str, Any]:
    """As `canal policy eval` asks."""
    protocol, sport, dport, icmp_type, icmp_code = packet
    question: dict[str, Any] = {"src": source, "dst": destination, "protocol": PROTOCOL_NAMES.get(protocol, protocol)}
    if protocol in WITH_PORTS:
        question |= {"sport": sport, "dport": dport}
    if protocol in (ICMP, ICMP6):
        question |= {"icmp_type": icmp_type, "icmp_code": icmp_code}
    return question


def _both_families(changes: Iterable[Change]) -> Iterator[Change]:
    """What changes alike in both families is one change."""
    found: dict[object, Change] = {}
    for one in changes:
        key = one.allow, one.sources, one.destinations, one.packets
        known = found.get(key)
        found[key] = one if known is None else replace(known, families=(*known.families, *one.families))
    yield from found.values()


# ---- recorded flows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordedChange:
    """A recorded flow that fares differently; `count` flows differ from it in their source port only."""

    flow: Mapping[str, Any]
    allow: bool  # in the new state
    before: str
    after: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    changes: tuple[RecordedChange, ...]
    asked: int
    not_compared: tuple[str, ...]  # why, for each flow that is not understood in one of the states


def recorded_difference(old: State, new: State, flows: Iterable[Mapping[str, Any]]) -> Recorded:
    """Which of these flows, asked as for `canal policy eval`, fare differently."""
    pair = _Pair(old, new)
    asked, not_compared = 0, []
    before_questions, after_questions = Questions(pair.old), Questions(pair.new)
    changes: dict[object, RecordedChange] = {}
    for flow in flows:
        try:
            before, after = before_questions.verdict(flow), after_questions.verdict(flow)
        except RequestError as error:
            not_compared.append(str(error))
            continue
        asked += 1
        if before.allow is not after.allow:
            key = (*map(flow.get, _SAME), *(told := pair.told(before, after)))
            known = changes.get(key)
            count = 1 if known is None else known.count + 1
            changes[key] = RecordedChange(flow if known is None else known.flow, after.allow, *told, count)
    return Recorded(tuple(changes.values()), asked, tuple(not_compared))


_SAME = ("src", "dst", "protocol", "dport", "icmp_type", "icmp_code")
