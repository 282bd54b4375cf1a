"""Verdicts from the normal form, fast enough for files of flows: each kind of flow is decided once.

Structure address -> End: who is there, and its class: which prefixes, sets and named ports of the policies hold it;
          port -> class: between which borders of port ranges it lies;
          endpoint -> program: the policies that select it and its profiles, shared by endpoints with the same ones.
          Flows whose program, classes and protocol are equal get equal verdicts: a dictionary remembers them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeAlias, get_args

from canal_udp.net import Address, Network
from canal_udp.policy.classes import HOST_ITEM, AddressClass, Classes, label_index
from canal_udp.policy.cursor import NOWHERE
from canal_udp.policy.flow import NOT_POLICED, OUTSIDE, Decision, Flow, Judge, Places, Verdict, judge_flow
from canal_udp.policy.lower import lower_state
from canal_udp.policy.model import DIRECTIONS, EGRESS, ICMP, ICMP6, INGRESS, Direction, IcmpMatch, PortRange, State
from canal_udp.policy.normal import (
    Endpoint,
    Policy,
    Rule,
    Side,
    Stage,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """A side of a rule with its sets as names."""

    nets: frozenset[Network]
    not_nets: frozenset[Network]
    sets: frozenset[str]
    not_sets: frozenset[str]
    ports: tuple[PortRange, ...]
    port_sets: tuple[str, ...]
    not_ports: tuple[PortRange, ...]
    not_port_sets: tuple[str, ...]

    @classmethod
    def of(cls, side: Side) -> _Side:
        return cls(
            frozenset(side.nets),
            frozenset(side.not_nets),
            frozenset(one.id for one in side.sets),
            frozenset(one.id for one in side.not_sets),
            side.ports,
            tuple(one.id for one in side.port_sets),
            side.not_ports,
            tuple(one.id for one in side.not_port_sets),
        )

    def matches(self, seen: AddressClass, protocol: int, port: int) -> bool:
        if (self.nets and self.nets.isdisjoint(seen.nets)) or not self.not_nets.isdisjoint(seen.nets):
            return False
        if not self.sets <= seen.sets or not self.not_sets.isdisjoint(seen.sets):
            return False
        if (self.ports or self.port_sets) and not _has(self.ports, self.port_sets, seen, protocol, port):
            return False
        return not _has(self.not_ports, self.not_port_sets, seen, protocol, port)


def _has(ranges: tuple[PortRange, ...], sets: tuple[str, ...], seen: AddressClass, protocol: int, port: int) -> bool:
    for one in ranges:
        if one.first <= port <= one.last:
            return True
    return any((name, protocol, port) in seen.ports for name in sets) if sets else False


@dataclass(frozen=True, slots=True, eq=False)
class _Test:
    rule: Rule
    source: _Side
    destination: _Side

    @classmethod
    def of(cls, rule: Rule) -> _Test:
        return cls(rule, _Side.of(rule.source), _Side.of(rule.destination))

    def matches(self, flow: Flow, source: AddressClass, destination: AddressClass) -> bool:
        rule = self.rule
        if rule.never or rule.version not in (None, flow.source.version):
            return False
        if rule.protocol not in (None, flow.protocol) or rule.not_protocol == flow.protocol:
            return False
        if (rule.icmp and not _icmp(rule.icmp, flow)) or (rule.not_icmp and _icmp(rule.not_icmp, flow)):
            return False
        return self.source.matches(source, flow.protocol, flow.sport) and self.destination.matches(
            destination, flow.protocol, flow.dport
        )


def _icmp(match: IcmpMatch, flow: Flow) -> bool:
    same = match.type in (None, flow.icmp_type) and match.code in (None, flow.icmp_code)
    return same and flow.protocol in (ICMP, ICMP6)


_Steps: TypeAlias = tuple[tuple[Policy, tuple[_Test, ...]], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """What is asked for one endpoint and direction. `default` ends it; None: not decided."""

    tiers: tuple[tuple[str, bool, _Steps], ...]  # name, does its end deny?, policies
    profiles: tuple[tuple[str, tuple[_Test, ...]], ...]
    default: Decision | None
    looks_at: AddressClass = field(init=False)  # every prefix and set of its rules; of `ports` only the sets matter
    parts: dict[AddressClass, int] = field(default_factory=dict)  # what the rules see of an address, numbered
    seen: dict[int, int] = field(default_factory=dict)  # id of a class -> number of its part
    decided: dict[object, Decision | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tests = [test for _, _, policies in self.tiers for _, some in policies for test in some]
        tests += [test for _, some in self.profiles for test in some]
        sides = [side for test in tests for side in (test.source, test.destination)]
        nets = frozenset(net for one in sides for net in (*one.nets, *one.not_nets))
        sets = frozenset(name for one in sides for name in (*one.sets, *one.not_sets))
        named = frozenset((name, 0, 0) for one in sides for name in (*one.port_sets, *one.not_port_sets))
        object.__setattr__(self, "looks_at", AddressClass(nets, sets, named))

    def see(self, whole: AddressClass) -> int:
        """The number of that part of a class that the rules of this program look at."""
        found = self.seen.get(id(whole))
        if found is None:
            ports = frozenset(one for one in whole.ports if (one[0], 0, 0) in self.looks_at.ports)
            part = AddressClass(whole.nets & self.looks_at.nets, whole.sets & self.looks_at.sets, ports)
            found = self.seen[id(whole)] = self.parts.setdefault(part, len(self.parts))
        return found

    def remember(self, key: object, flow: Flow, source: AddressClass, destination: AddressClass) -> Decision | None:
        decision = self.decided[key] = self.decide(flow, source, destination)
        return decision

    def decide(self, flow: Flow, source: AddressClass, destination: AddressClass) -> Decision | None:
        logs = 0
        for name, denies, policies in self.tiers:
            for policy, rule in _matching(policies, flow, source, destination):
                if rule.action == "Log":
                    logs += 1
                elif rule.action == "Pass":
                    break
                else:
                    return Decision(rule.action == "Allow", name, policy.key, rule.index, "", policy.answer, logs)
            else:
                if denies:
                    last = policies[-1][0]
                    return Decision(False, name, last.key, -1, "no rule of the tier matched", last.answer, logs)
        for key, tests in self.profiles:
            if not tests and key.startswith("!"):
                return Decision(False, policy=f"Profile:{key[1:]}", rule=-1, reason="the profile does not exist")
            for test in tests:
                if test.rule.action != "Log" and test.matches(flow, source, destination):
                    return Decision(test.rule.action == "Allow", policy=f"Profile:{key}", rule=test.rule.index)
        return self.default


def _matching(
    policies: _Steps, flow: Flow, source: AddressClass, destination: AddressClass
) -> Iterator[tuple[Policy, Rule]]:
    for policy, tests in policies:
        for test in tests:
            if test.matches(flow, source, destination):
                yield policy, test.rule


_NOTHING = Decision(False, reason="no policy and no profile allows it")
_FORWARDED = Decision(True, reason="no policy applies on forward")


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """An address of a flow, looked up once. `egress` and `ingress`: what polices its pod, or has decided already."""

    address: Address
    kind: object  # equal for addresses that no verdict can tell apart
    workload: str
    node: str
    is_simple: bool  # its flows pass no station of a host
    seen: AddressClass
    egress: _Program | Decision
    ingress: _Program | Decision


Packet: TypeAlias = tuple[int, int, int, int, int]  # protocol, sport, dport, icmp_type, icmp_code


def packet_of(flow: Flow) -> Packet:
    return flow.protocol, flow.sport, flow.dport, flow.icmp_type, flow.icmp_code


class Evaluator(Judge):
    """Verdicts for one state; agrees with Reference. `staged`: as if the staged policies were enforced."""

    def __init__(self, state: State, *, staged: bool = False) -> None:
        self.places = Places(state)
        self.world = lower_state(state, staged=staged)
        self._index = label_index(self.world)
        self._tests: dict[tuple[str, Direction], tuple[_Test, ...]] = {}
        self._programs: dict[object, _Program] = {}
        self._chosen: dict[object, _Program] = {}
        self._ends: dict[Address, End] = {}
        self.classes = Classes(self.world, self._index)
        self._by_selector = {tier: _by_selector(policies) for tier, policies in self.world.policies.items()}

    def verdict(self, flow: Flow) -> Verdict:
        source, destination = self.end(flow.source), self.end(flow.destination)
        if not flow.hairpin and self.is_simple(source, destination):
            return Verdict(*self.simple(source, destination, packet_of(flow)))
        return judge_flow(self, self.places, flow)

    def end(self, address: Address) -> End:
        found = self._ends.get(address)
        if found is None:
            party, seen = self.places.party(address), self.classes.address(address)
            kind = (address.version, id(seen)) if party == OUTSIDE else address
            is_simple = not party.is_host and not self.world.hosts
            stations = (self._station(party.workload, direction) for direction in (EGRESS, INGRESS))
            found = self._ends[address] = End(address, kind, party.workload, party.node, is_simple, seen, *stations)
        return found

    def _station(self, workload: str, direction: Direction) -> _Program | Decision:
        if not workload:
            return NOT_POLICED
        endpoint = self.world.endpoints[workload]
        return (
            Decision(False, reason=endpoint.closed) if endpoint.closed else self._choose(endpoint, direction, "normal")
        )

    def passes(self, source: End, destination: End, packet: Packet) -> bool:
        if self.is_simple(source, destination):
            egress, ingress = self.simple(source, destination, packet)
            return egress.allow and ingress.allow
        return self.verdict(Flow(source.address, destination.address, *packet)).allow

    def rules_between(self, source: End, destination: End) -> Iterator[Rule]:
        """All that may decide a flow: the pods' own, and those of the hosts on its way."""
        yield from _rules_of(source.egress)
        yield from _rules_of(destination.ingress)
        nodes = {source.node, destination.node}
        for host in self.world.hosts.values():
            if host.node in nodes:
                for direction, stage, forwarded in product(DIRECTIONS, get_args(Stage), (False, True)):
                    yield from _rules_of(self._choose(host, direction, stage, forwarded=forwarded))

    def essence(self, station: _Program | Decision) -> object:
        """Equal for stations that decide alike as long as the labels of all are the same."""
        if isinstance(station, Decision):
            return station
        tiers = [
            (name, denies, [(policy.key, _essences(tests)) for policy, tests in policies])
            for name, denies, policies in station.tiers
        ]
        return tiers, [(name, _essences(tests)) for name, tests in station.profiles]

    # ---- flows that only pods police ---------------------------------------------------------------------------------

    @staticmethod
    def is_simple(source: End, destination: End) -> bool:
        """Of the stations in flow.py only the source's egress and the destination's ingress are left."""
        if source.workload == destination.workload and source.workload:
            return False
        return source.is_simple and destination.is_simple

    def simple(self, source: End, destination: End, packet: Packet) -> tuple[Decision, Decision]:
        what = self._what(source.address.version, *packet)
        return (
            self._ask(source.egress, source, destination, what, packet),
            self._ask(destination.ingress, source, destination, what, packet),
        )

    def _what(self, version: int, protocol: int, sport: int, dport: int, icmp_type: int, icmp_code: int) -> object:
        """Equal for what no rule can tell apart between the same ends."""
        port = self.classes.port
        icmp = (icmp_type, icmp_code) if protocol in (ICMP, ICMP6) else None
        return version, protocol, port(sport), port(dport), icmp

    def _ask(
        self, station: _Program | Decision, source: End, destination: End, what: object, packet: Packet
    ) -> Decision:
        if isinstance(station, Decision):
            return station
        key = (station.see(source.seen), station.see(destination.seen), what)
        try:
            return station.decided[key] or _NOTHING
        except KeyError:
            flow = Flow(source.address, destination.address, *packet)
            return station.remember(key, flow, source.seen, destination.seen) or _NOTHING

    # ---- one endpoint ------------------------------------------------------------------------------------------------

    def workload(self, key: str, direction: Direction, flow: Flow) -> Decision:
        endpoint = self.world.endpoints[key]
        if endpoint.closed:
            return Decision(False, reason=endpoint.closed)
        return self._decide(self._choose(endpoint, direction, "normal"), flow) or _NOTHING

    def host(self, name: str, direction: Direction, flow: Flow, *, forwarded: bool) -> Decision:
        endpoint = self.world.hosts[name]
        if not forwarded and self._is_failsafe(direction, flow):
            return Decision(True, reason="failsafe port")
        found = self._decide(self._choose(endpoint, direction, "doNotTrack"), flow)
        if found is None and direction == INGRESS:
            before = flow if flow.original is None else _before_dnat(flow)
            found = self._decide(self._choose(endpoint, direction, "preDNAT"), before)
        if found is not None:
            return found
        if endpoint.closed:
            return Decision(False, reason=endpoint.closed)
        program = self._choose(endpoint, direction, "normal", forwarded=forwarded)
        return self._decide(program, flow) or _NOTHING

    def _is_failsafe(self, direction: Direction, flow: Flow) -> bool:
        settings = self.world.settings
        inbound = direction == INGRESS
        remote = flow.source if inbound else flow.destination
        return any(
            one.protocol == flow.protocol and one.port == flow.dport and (one.net is None or remote in one.net)
            for one in (settings.failsafe_inbound if inbound else settings.failsafe_outbound)
        )

    def _decide(self, program: _Program, flow: Flow) -> Decision | None:
        source, destination = self.classes.address(flow.source), self.classes.address(flow.destination)
        key = (program.see(source), program.see(destination), self._what(flow.source.version, *packet_of(flow)))
        try:
            return program.decided[key]
        except KeyError:
            return program.remember(key, flow, source, destination)

    # ---- programs ----------------------------------------------------------------------------------------------------

    def _choose(self, endpoint: Endpoint, direction: Direction, stage: Stage, *, forwarded: bool = False) -> _Program:
        """The program of an endpoint; endpoints that the same policies select share it."""
        place = (endpoint.host, endpoint.key, direction, stage, forwarded)
        found = self._chosen.get(place)
        if found is None:
            found = self._chosen[place] = self._compose(endpoint, direction, stage, forwarded=forwarded)
        return found

    def _compose(self, endpoint: Endpoint, direction: Direction, stage: Stage, *, forwarded: bool) -> _Program:
        matching = self._index.matching((HOST_ITEM if endpoint.host else "") + endpoint.key)
        tiers = []
        for tier in self.world.tiers:
            places = self._by_selector.get(tier.name, {})
            selecting = sorted(place for name in places.keys() & matching for place in places[name])
            policies = [
                one
                for one in (self.world.policies[tier.name][place] for place in selecting)
                if one.stage == stage and (one.forward or not forwarded) and one.rules(direction) is not None
            ]
            if policies:
                tiers.append((tier.name, tier.default_action == "Deny" and stage == "normal", policies))
        profiles = () if forwarded or stage != "normal" else endpoint.profiles
        default = None if stage != "normal" else _FORWARDED if forwarded else _NOTHING
        same = (direction, tuple(one.key for _, _, some in tiers for one in some), profiles, stage, forwarded)
        if same not in self._programs:
            self._programs[same] = _Program(
                tuple(
                    (tier, denies, tuple((one, self._policy_tests(one, direction)) for one in some))
                    for tier, denies, some in tiers
                ),
                tuple(self._profile_tests(profile, direction) for profile in profiles),
                default,
            )
        return self._programs[same]

    def _policy_tests(self, policy: Policy, direction: Direction) -> tuple[_Test, ...]:
        key = (policy.key, direction)
        if key not in self._tests:
            self._tests[key] = tuple(_Test.of(rule) for rule in policy.rules(direction) or ())
        return self._tests[key]

    def _profile_tests(self, name: str, direction: Direction) -> tuple[str, tuple[_Test, ...]]:
        profile = self.world.profiles.get(name)
        if profile is None:
            return f"!{name}", ()
        return name, tuple(_Test.of(rule) for rule in profile.rules(direction))


def _rules_of(station: _Program | Decision) -> Iterator[Rule]:
    if isinstance(station, _Program):
        yield from (test.rule for _, _, policies in station.tiers for _, tests in policies for test in tests)
        yield from (test.rule for _, tests in station.profiles for test in tests)


def _essences(tests: tuple[_Test, ...]) -> list[Rule]:
    return [replace(test.rule, where=NOWHERE) for test in tests]


def _by_selector(policies: tuple[Policy, ...]) -> dict[str, list[int]]:
    """Where in a tier the policies with a selector are."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, policy in enumerate(policies):
        found[policy.selector.id].append(place)
    return found


def _before_dnat(flow: Flow) -> Flow:
    assert flow.original is not None
    address, port = flow.original
    return Flow(flow.source, address, flow.protocol, flow.sport, port, flow.icmp_type, flow.icmp_code)
