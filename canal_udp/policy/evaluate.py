"""Verdicts from the normal form, fast enough for files of flows: each kind of flow is decided once.

Structure address -> class: which prefixes, sets and named ports of the policies hold it (intervals for the prefixes);
          port -> class: between which borders of port ranges it lies;
          endpoint -> program: the policies that select it and its profiles, shared by endpoints with the same ones.
          Flows with equal program, classes and protocol get equal verdicts: a dictionary remembers them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from canal_udp.net import Address, Network
from canal_udp.policy.classes import HOST_ITEM, AddressClass, Classes, label_index
from canal_udp.policy.flow import OUTSIDE, Decision, Flow, Judge, Places, Verdict, judge_flow
from canal_udp.policy.lower import lower_state
from canal_udp.policy.model import ICMP, ICMP6, INGRESS, Direction, IcmpMatch, PortRange, State
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
        if (self.nets and not self.nets & seen.nets) or self.not_nets & seen.nets:
            return False
        if not self.sets <= seen.sets or self.not_sets & seen.sets:
            return False
        if (self.ports or self.port_sets) and not _has(self.ports, self.port_sets, seen, protocol, port):
            return False
        return not _has(self.not_ports, self.not_port_sets, seen, protocol, port)


def _has(ranges: tuple[PortRange, ...], sets: tuple[str, ...], seen: AddressClass, protocol: int, port: int) -> bool:
    return any(port in one for one in ranges) or any((name, protocol, port) in seen.ports for name in sets)


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
    seen: dict[int, AddressClass] = field(default_factory=dict)  # by id of the class
    decided: dict[object, Decision | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tests = [test for _, _, policies in self.tiers for _, some in policies for test in some]
        tests += [test for _, some in self.profiles for test in some]
        sides = [side for test in tests for side in (test.source, test.destination)]
        nets = frozenset(net for one in sides for net in (*one.nets, *one.not_nets))
        sets = frozenset(name for one in sides for name in (*one.sets, *one.not_sets))
        named = frozenset((name, 0, 0) for one in sides for name in (*one.port_sets, *one.not_port_sets))
        object.__setattr__(self, "looks_at", AddressClass(nets, sets, named))

    def see(self, whole: AddressClass) -> AddressClass:
        """The part of a class that the rules of this program look at."""
        found = self.seen.get(id(whole))
        if found is None:
            ports = frozenset(one for one in whole.ports if (one[0], 0, 0) in self.looks_at.ports)
            part = AddressClass(whole.nets & self.looks_at.nets, whole.sets & self.looks_at.sets, ports)
            found = self.seen[id(whole)] = part
        return found

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


class Evaluator(Judge):
    """Verdicts for one state; agrees with Reference. `staged`: as if the staged policies were enforced."""

    def __init__(self, state: State, *, staged: bool = False) -> None:
        self.places = Places(state)
        self.world = lower_state(state, staged=staged)
        self._index = label_index(self.world)
        self._tests: dict[tuple[str, Direction], tuple[_Test, ...]] = {}
        self._programs: dict[object, _Program] = {}
        self._chosen: dict[object, _Program] = {}
        self._classes = Classes(self.world, self._index)
        self._by_selector = {tier: _by_selector(policies) for tier, policies in self.world.policies.items()}

    def verdict(self, flow: Flow) -> Verdict:
        return judge_flow(self, self.places, flow)

    def kind(self, address: Address) -> object:
        """Equal for addresses that no verdict can tell apart."""
        if self.places.party(address) != OUTSIDE:
            return address
        return address.version, id(self._classes.address(address))

    def port_class(self, port: int) -> int:
        """Equal for ports that no verdict can tell apart."""
        return self._classes.port(port)

    # ---- one endpoint ------------------------------------------------------------------------------------------------

    def workload(self, key: str, direction: Direction, flow: Flow) -> Decision:
        endpoint = self.world.endpoints[key]
        if endpoint.closed:
            return Decision(False, reason=endpoint.closed)
        program = self._chosen.get((key, direction)) or self._choose(endpoint, direction, "normal", (key, direction))
        return self._decide(program, flow) or _NOTHING

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
        classes = self._classes
        source = program.see(classes.address(flow.source))
        destination = program.see(classes.address(flow.destination))
        ports = classes.port(flow.sport), classes.port(flow.dport)
        icmp = (flow.icmp_type, flow.icmp_code) if flow.protocol in (ICMP, ICMP6) else None
        key = (source, destination, flow.source.version, flow.protocol, ports, icmp)
        try:
            return program.decided[key]
        except KeyError:
            decision = program.decided[key] = program.decide(flow, source, destination)
            return decision

    # ---- programs ----------------------------------------------------------------------------------------------------

    def _choose(
        self, endpoint: Endpoint, direction: Direction, stage: Stage, name: object = None, *, forwarded: bool = False
    ) -> _Program:
        """The program of an endpoint; endpoints that the same policies select share it."""
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
        if name is not None:
            self._chosen[name] = self._programs[same]
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
