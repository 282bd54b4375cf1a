"""What is legal but suspicious: found in the normal form, told with the place in the file.

Warnings  a policy that selects nothing; rules of a direction that the policy does not govern; a rule that an earlier
          one of the policy or its tier covers; a port name that no pod which is meant has; an egress policy that lets
          no one ask DNS; a tier that is not there.
          The first and the port names need pods to compare with, the last needs tiers; without any they say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from canal_udp.net import covers
from canal_udp.policy.classes import HOST_ITEM, label_index
from canal_udp.policy.cursor import Problem, Where, suggest
from canal_udp.policy.index import LabelIndex
from canal_udp.policy.lower import lower_state
from canal_udp.policy.model import (
    DIRECTIONS,
    EGRESS,
    FIXED_TIERS,
    INGRESS,
    UDP,
    ClusterPolicy,
    Direction,
    PortRange,
    State,
    policy_key,
)
from canal_udp.policy.normal import Policy, PortSet, Rule, Side, World
from canal_udp.policy.selector import All, Selector

DNS_PORT = 53


def warnings(state: State) -> Iterator[Problem]:
    """Everything suspicious in a state, policy by policy."""
    world = lower_state(state)
    index = label_index(world)
    yield from _without_effect(state)
    yield from _unknown_tiers(state, world)
    for policies in world.policies.values():
        earlier = _Earlier()
        for policy in policies:
            if policy.broken:
                continue
            selected = [key for key in world.endpoints if policy.selector.id in index.matching(key)]
            if world.endpoints and not selected and not any(_selects_host(policy, index, key) for key in world.hosts):
                yield _warning(policy.where, policy, "selects nothing")
            for direction in DIRECTIONS:
                yield from _shadowed(policy, direction, earlier.of(policy, direction))
                yield from _unknown_ports(policy, direction, world, index, selected)
            yield from _no_dns(policy, world, index, selected)
            earlier.add(policy)


def _warning(where: Where, policy: Policy, text: str, field: str = "") -> Problem:
    return Problem("warning", where, field, f"{policy.key} {text}")


def _selects_host(policy: Policy, index: LabelIndex[str], key: str) -> bool:
    return policy.selector.id in index.matching(HOST_ITEM + key)


def _without_effect(state: State) -> Iterator[Problem]:
    for policy in state.policies:
        if isinstance(policy, ClusterPolicy) or policy.broken:
            continue
        for direction, rules in ((INGRESS, policy.ingress), (EGRESS, policy.egress)):
            if rules and direction not in policy.types:
                text = f"{policy_key(policy)} has {direction} rules and not that type: they have no effect"
                yield Problem("warning", rules[0].where, f"spec.{direction}", text)


def _unknown_tiers(state: State, world: World) -> Iterator[Problem]:
    known = {*state.tiers, *FIXED_TIERS}
    for tier, policies in world.policies.items():
        if state.tiers and tier not in known:
            text = f"is in tier {tier!r}, which is not there: it comes last; {suggest(tier, known)}"
            yield from (_warning(policy.where, policy, text, "spec.tier") for policy in policies)


# ---- shadowed rules --------------------------------------------------------------------------------------------------


class _Earlier:
    """Policies of a tier that were asked before. Kubernetes' own are left out: they add up on purpose."""

    def __init__(self) -> None:
        self._by_scope: dict[object, list[Policy]] = defaultdict(list)

    def add(self, policy: Policy) -> None:
        if not policy.key.startswith("KubernetesNetworkPolicy:"):
            self._by_scope[_scope(policy, policy.selector.id)].append(policy)

    def of(self, policy: Policy, direction: Direction) -> Iterator[tuple[Policy, Rule]]:
        """Rules that govern whatever the policy governs."""
        for selector in {policy.selector.id, _EVERYBODY}:
            for one in self._by_scope[_scope(policy, selector)]:
                yield from ((one, rule) for rule in one.rules(direction) or ())


def _scope(policy: Policy, selector: str) -> object:
    return selector, policy.stage, policy.forward


_EVERYBODY = Selector(All()).id


def _shadowed(policy: Policy, direction: Direction, before: Iterable[tuple[Policy, Rule]]) -> Iterator[Problem]:
    rules = policy.rules(direction) or ()
    others = [pair for pair in before if _ends(pair[1])]
    for index in sorted({rule.index for rule in rules}):
        mine = [rule for rule in rules if rule.index == index and not rule.never]
        earlier = [*others, *((policy, rule) for rule in rules if rule.index < index and _ends(rule))]
        found = [next((pair for pair in earlier if rule_covers(pair[1], one)), None) for one in mine]
        if found and all(found):
            names = sorted({_name(pair, policy, direction) for pair in found if pair})
            text = f"never gets to this rule: {', '.join(names)} matches all that it matches"
            yield _warning(mine[0].where, policy, text, f"spec.{direction}[{index}]")


def _ends(rule: Rule) -> bool:
    return rule.action != "Log" and not rule.never


def _name(pair: tuple[Policy, Rule], policy: Policy, direction: Direction) -> str:
    owner, rule = pair
    return f"{'' if owner is policy else owner.key + ' '}{direction}[{rule.index}]"


def rule_covers(outer: Rule, inner: Rule) -> bool:
    """Does `outer` surely match whatever `inner` matches? False when in doubt."""
    if outer.version not in (None, inner.version) or outer.protocol not in (None, inner.protocol):
        return False
    if outer.not_protocol is not None and outer.not_protocol != inner.not_protocol:
        return False
    if outer.icmp not in (None, inner.icmp) or outer.not_icmp not in (None, inner.not_icmp):
        return False
    return _side_covers(outer.source, inner.source) and _side_covers(outer.destination, inner.destination)


def _side_covers(outer: Side, inner: Side) -> bool:
    if outer.nets and not (inner.nets and all(any(covers(big, net) for big in outer.nets) for net in inner.nets)):
        return False
    if not all(any(covers(big, net) for big in inner.not_nets) for net in outer.not_nets):
        return False
    if not {*outer.sets} <= {*inner.sets} or not {*outer.not_sets} <= {*inner.not_sets}:
        return False
    if outer.not_port_sets or outer.not_ports:
        return (outer.not_ports, outer.not_port_sets) == (inner.not_ports, inner.not_port_sets)
    if not outer.ports and not outer.port_sets:
        return True
    if not inner.ports and not inner.port_sets:
        return False
    return {*inner.port_sets} <= {*outer.port_sets} and all(_inside(one, outer.ports) for one in inner.ports)


def _inside(port: PortRange, ranges: tuple[PortRange, ...]) -> bool:
    return any(one.first <= port.first and port.last <= one.last for one in ranges)


# ---- names of ports, and DNS -----------------------------------------------------------------------------------------


def _unknown_ports(
    policy: Policy, direction: Direction, world: World, index: LabelIndex[str], selected: list[str]
) -> Iterator[Problem]:
    if not selected:
        return
    told: set[str] = set()
    for rule in policy.rules(direction) or ():
        for used in rule.destination.port_sets:
            if not isinstance(used, PortSet) or used.name in told:
                continue
            meant = [key for key in world.endpoints if used.selector.id in index.matching(key)]
            if direction == INGRESS:
                meant = [key for key in meant if key in selected]
            ports = (port for key in meant for port in world.endpoints[key].ports)
            if not any(port.name == used.name and used.protocol in (None, port.protocol) for port in ports):
                told.add(used.name)
                text = f"names port {used.name!r}, which no pod that is meant has"
                yield _warning(rule.where, policy, text, f"spec.{direction}[{rule.index}]")


def _no_dns(policy: Policy, world: World, index: LabelIndex[str], selected: list[str]) -> Iterator[Problem]:
    """Only where something is allowed: who allows nothing has not forgotten DNS."""
    if policy.tier != "default" or not any(rule.action == "Allow" for rule in policy.egress or ()):
        return
    others = [one for policies in world.policies.values() for one in policies if _allows_dns(one)]
    if policy in others:
        return
    for key in selected:
        matching = index.matching(key)
        if any(one.selector.id in matching for one in others):
            selected = [other for other in selected if other != key]
    if selected or not world.endpoints:
        yield _warning(policy.where, policy, "allows egress and forgets DNS (UDP port 53)", "spec.egress")


def _allows_dns(policy: Policy) -> bool:
    for rule in policy.egress or ():
        side = rule.destination
        asks = rule.action == "Allow" and not rule.never and rule.protocol in (None, UDP) and rule.not_protocol != UDP
        free = not side.ports and not side.port_sets
        if asks and (free or side.port_sets or any(DNS_PORT in one for one in side.ports)):
            return True
    return False
