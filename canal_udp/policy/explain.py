"""Why a program decides as it does: every tier, policy and rule in order, and what a rule that did not hold missed.

Place     told from what the program was made of (`program.Source`) and from how the classes see both addresses, for
          people; the verdict itself is the compiled program's, and tests compare the two.
Structure Story ─► tiers ─► policies ─► rules, up to the one that decided; then the profiles, which are the last tier
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from canal_udp.net import Address
from canal_udp.policy.class_table import Seen
from canal_udp.policy.compiled import RuleRef
from canal_udp.policy.cursor import NOWHERE, Where
from canal_udp.policy.flow import Flow
from canal_udp.policy.model import ICMP, ICMP6, PROTOCOLS, Action, Direction, IcmpMatch, PortRange
from canal_udp.policy.normal import (
    AddressSet,
    NodeSet,
    Policy,
    PortedSet,
    PortSet,
    Profile,
    Rule,
    ServiceSet,
    Side,
)
from canal_udp.policy.program import Source, TierPart

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
LISTED_MAX = 4  # of many prefixes or ports in a sentence


@dataclass(frozen=True, slots=True)
class RuleStep:
    """A rule that was tried. `misses`: what did not hold; empty: it held."""

    index: int
    action: Action
    where: Where
    misses: tuple[str, ...]

    @property
    def held(self) -> bool:
        return not self.misses


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """A policy, or a profile, and its rules as far as they were tried. `note`: what else is to be said of it."""

    key: str
    where: Where
    rules: tuple[RuleStep, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class TierStep:
    """A tier; "" are the profiles. `end`: how it ended."""

    name: str
    policies: tuple[PolicyStep, ...]
    end: str


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that was tried for one end, and what it came to."""

    tiers: tuple[TierStep, ...]
    decision: RuleRef
    answer: str  # of a denial: "drop" or "reject"


@dataclass(frozen=True, slots=True)
class Packet:
    """A flow's first packet with both addresses as the classes see them."""

    flow: Flow
    source: Seen
    destination: Seen


def tell(source: Source, packet: Packet) -> Story:
    """Try everything in order, as the program does."""
    tiers: list[TierStep] = []
    for tier in source.tiers:
        step, decision, answer = _tier(tier, source.direction, packet)
        tiers.append(step)
        if decision is not None:
            return Story(tuple(tiers), decision, answer)
    step, decision = _profiles(source, packet)
    return Story((*tiers, step) if step.policies else tuple(tiers), decision, "drop")


def _tier(tier: TierPart, direction: Direction, packet: Packet) -> tuple[TierStep, RuleRef | None, str]:
    steps: list[PolicyStep] = []
    for policy in tier.policies:
        rules = _tried(policy.rules(direction) or (), packet)
        steps.append(PolicyStep(policy.key, policy.where, rules, policy.broken))
        last = rules[-1] if rules and rules[-1].held else None
        if last is not None and last.action == "Pass":
            return TierStep(tier.name, tuple(steps), "passed on to the next tier"), None, ""
        if last is not None and last.action != "Log":
            decision = RuleRef(direction, last.action, tier.name, policy.key, last.index, where=last.where)
            return TierStep(tier.name, tuple(steps), "decided"), decision, policy.answer
    if tier.denies:
        end = tier.policies[-1]
        reason = "no rule of the tier matched"
        decision = RuleRef(direction, "Deny", tier.name, end.key, -1, reason, end.where)
        return TierStep(tier.name, tuple(steps), f"{reason}: its end denies"), decision, end.answer
    return TierStep(tier.name, tuple(steps), "no rule matched: its end goes on with the next tier"), None, ""


def _profiles(source: Source, packet: Packet) -> tuple[TierStep, RuleRef]:
    steps: list[PolicyStep] = []
    for one in source.profiles:
        key = f"Profile:{one.name}"
        if one.profile is None:
            reason = "the profile does not exist"
            steps.append(PolicyStep(key, NOWHERE, (), reason))
            return TierStep("", tuple(steps), "decided"), RuleRef(source.direction, "Deny", "", key, -1, reason)
        rules = _tried([rule for rule in one.profile.rules(source.direction) if rule.action != "Log"], packet)
        steps.append(PolicyStep(key, _place(one.profile), rules))
        if rules and rules[-1].held:
            last = rules[-1]
            action: Action = "Allow" if last.action == "Allow" else "Deny"
            decision = RuleRef(source.direction, action, "", key, last.index, where=last.where)
            return TierStep("", tuple(steps), "decided"), decision
    reason = "no policy and no profile allows it"
    return TierStep("", tuple(steps), reason), RuleRef(source.direction, "Deny", reason=reason)


def _place(one: Policy | Profile) -> Where:
    return one.where


def _tried(rules: Iterable[Rule], packet: Packet) -> tuple[RuleStep, ...]:
    """Rules up to the one that ends it. What became several rules is one again, with the nearest miss."""
    steps: list[RuleStep] = []
    for rule in rules:
        step = RuleStep(rule.index, rule.action, rule.where, tuple(misses(rule, packet)))
        if steps and steps[-1].index == step.index:
            if step.held or (not steps[-1].held and len(step.misses) < len(steps[-1].misses)):
                steps[-1] = step
        else:
            steps.append(step)
        if step.held and step.action != "Log":
            break
    return tuple(steps)


# ---- one rule --------------------------------------------------------------------------------------------------------


def misses(rule: Rule, packet: Packet) -> Iterator[str]:
    """What of a rule does not hold for a packet; nothing: it holds."""
    flow = packet.flow
    if rule.never:
        yield f"it can match nothing: {rule.never}"
    if rule.version not in (None, flow.source.version):
        yield f"only IPv{rule.version}"
    if rule.protocol not in (None, flow.protocol):
        yield f"protocol {_protocol(flow.protocol)} is not {_protocol(rule.protocol)}"
    if rule.not_protocol == flow.protocol:
        yield f"any protocol but {_protocol(flow.protocol)}"
    if rule.icmp and not _icmp(rule.icmp, flow):
        yield f"{_message(flow)} is not {_icmp_words(rule.icmp)}"
    if rule.not_icmp and _icmp(rule.not_icmp, flow):
        yield f"any ICMP but {_icmp_words(rule.not_icmp)}"
    yield from _side("source", rule.source, packet.source, flow.source, flow.protocol, flow.sport)
    yield from _side("destination", rule.destination, packet.destination, flow.destination, flow.protocol, flow.dport)


def _side(name: str, side: Side, seen: Seen, address: Address, protocol: int, port: int) -> Iterator[str]:
    if side.nets and seen.nets.isdisjoint(side.nets):
        yield f"{name} {address} is not in {_listed(side.nets)}"
    for net in side.not_nets:
        if net in seen.nets:
            yield f"{name} {address} is in {net}, which is excepted"
    for one in side.sets:
        if one.id not in seen.sets:
            yield f"{name} {address} is none of {_set(one)}"
    for one in side.not_sets:
        if one.id in seen.sets:
            yield f"{name} {address} is one of {_set(one)}, which are excepted"
    if (side.ports or side.port_sets) and not _has(side.ports, side.port_sets, seen, protocol, port):
        wanted = [*map(_port, side.ports), *map(_port_set, side.port_sets)]
        yield f"{name} port {port} is not {_listed(wanted)}"
    if _has(side.not_ports, side.not_port_sets, seen, protocol, port):
        yield f"{name} port {port} is excepted"


def _has(ranges: tuple[PortRange, ...], sets: tuple[PortedSet, ...], seen: Seen, protocol: int, port: int) -> bool:
    named = ((one.id, protocol, port) in seen.ports for one in sets)
    return any(one.first <= port <= one.last for one in ranges) or any(named)


def _icmp(match: IcmpMatch, flow: Flow) -> bool:
    same = match.type in (None, flow.icmp_type) and match.code in (None, flow.icmp_code)
    return same and flow.protocol in (ICMP, ICMP6)


# ---- words -----------------------------------------------------------------------------------------------------------


def _protocol(number: int | None) -> str:
    return _PROTOCOL_NAMES.get(number, str(number)) if number is not None else "any"


def _message(flow: Flow) -> str:
    if flow.protocol not in (ICMP, ICMP6):
        return _protocol(flow.protocol)
    return f"type {flow.icmp_type} code {flow.icmp_code}"


def _icmp_words(match: IcmpMatch) -> str:
    code = "" if match.code is None else f" code {match.code}"
    return "ICMP" if match.type is None else f"ICMP type {match.type}{code}"


def _set(one: AddressSet) -> str:
    if isinstance(one, ServiceSet):
        return f"the pods of service {one.namespace}/{one.name}"
    if isinstance(one, NodeSet):
        return f"the nodes with {one.selector.canonical}"
    return f"those with {one.selector.canonical}"


def _port(one: PortRange) -> str:
    return str(one.first) if one.first == one.last else f"{one.first}-{one.last}"


def _port_set(one: PortedSet) -> str:
    if isinstance(one, PortSet):
        return f"a port named {one.name}"
    return f"a port of service {one.namespace}/{one.name}"


def _listed(values: Iterable[object]) -> str:
    found = [str(one) for one in values]
    more = len(found) - LISTED_MAX
    shown = ", ".join(found[:LISTED_MAX])
    return f"{shown} or {more} more" if more > 0 else shown
