"""Rules of every kind to rules of the normal form.

Kubernetes   each rule becomes one Allow rule for every peer and protocol, its ports merged.
Calico       one rule stays one rule; who may be at an end becomes one set, named ports a set of their own.
Versions     a rule with networks of one family is a rule of that family, also when they are only in notNets; there a
             Deny stays for both families, because skipping it would let the other family pass.
Broken       see model.py: a rule that is not understood allows nothing, and denies everything where it denied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from canal_udp.net import Network
from canal_udp.policy.expressions import (
    KUBERNETES,
    accounts_expression,
    in_namespace,
    labels_expression,
    namespaces_expression,
    peer_expression,
    pods_expression,
)
from canal_udp.policy.model import (
    ANYWHERE,
    ICMP,
    ICMP6,
    INGRESS,
    NAMESPACE_LABEL,
    SERVICE_ACCOUNT_LABEL,
    Action,
    CalicoRule,
    ClusterPeer,
    ClusterPort,
    ClusterRule,
    Direction,
    Entity,
    KubePeer,
    KubePolicy,
    KubePort,
    KubeRule,
    LabelSelector,
    PodsPeer,
    PortRange,
)
from canal_udp.policy.normal import (
    ANY_SIDE,
    NodeSet,
    PortedSet,
    PortSet,
    Rule,
    SelectorSet,
    ServiceSet,
    Side,
)
from canal_udp.policy.selector import (
    All,
    And,
    Compare,
    Expression,
    In,
    Not,
    Selector,
    all_of,
)


def without_permission(rule: Rule, broken: str) -> Rule:
    """A rule of a policy that is not understood: it allows nothing; where it would pass on, it denies."""
    if not broken or rule.action in ("Deny", "Log"):
        return rule
    return replace(rule, never=rule.never or broken) if rule.action == "Allow" else replace(rule, action="Deny")


def _broken(action: Action, index: int, reason: str) -> Rule:
    return Rule(action, index, never=reason) if action in ("Allow", "Log") else Rule("Deny", index)


# ---- Kubernetes rules ------------------------------------------------------------------------------------------------


def kube_rules(rule: KubeRule, index: int, direction: Direction, policy: KubePolicy) -> list[Rule]:
    if broken := rule.broken or policy.broken:
        return [Rule("Allow", index, never=broken, where=rule.where)]
    peers = [_kube_peer(peer, policy.namespace) for peer in rule.peers] or [ANY_SIDE]
    return [
        _rule("Allow", index, direction, peer, protocol, ports, names, rule)
        for protocol, ports, names in merged_ports(rule.ports)
        for peer in peers
    ]


def _rule(
    action: Action,
    index: int,
    direction: Direction,
    peer: Side,
    protocol: int | None,
    ports: tuple[PortRange, ...],
    names: tuple[str, ...],
    written: KubeRule | ClusterRule,
) -> Rule:
    """Peer and ports in their places: the ports are always the destination's."""
    inbound = direction == INGRESS
    destination = ANY_SIDE if inbound else peer
    chosen = [one.selector for one in destination.sets if isinstance(one, SelectorSet)] or [_ANY_POD]
    found = tuple(PortSet(chosen[0], protocol, name) for name in names)
    destination = replace(destination, ports=ports, port_sets=found)
    version = _version((peer.nets, peer.not_nets), action)
    source = peer if inbound else ANY_SIDE
    return Rule(action, index, version, protocol, source=source, destination=destination, where=written.where)


_ANY_POD = Selector(KUBERNETES)


def merged_ports(
    ports: tuple[KubePort, ...],
) -> list[tuple[int | None, tuple[PortRange, ...], tuple[str, ...]]]:
    """(protocol, ranges, names), one for each protocol; a protocol without port swallows those with one."""
    if not ports:
        return [(None, (), ())]
    found: list[tuple[int | None, tuple[PortRange, ...], tuple[str, ...]]] = []
    for protocol in sorted({port.protocol for port in ports}):
        given = [port.port for port in ports if port.protocol == protocol]
        if None in given:
            found.append((protocol, (), ()))
            continue
        ranges = merged_ranges(port for port in given if isinstance(port, PortRange))
        found.append((protocol, ranges, tuple(sorted({port for port in given if isinstance(port, str)}))))
    return found


def merged_ranges(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    merged: list[PortRange] = []
    for one in sorted(ranges, key=lambda port: port.first):
        if merged and one.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, one.last))
        else:
            merged.append(one)
    return tuple(merged)


def _kube_peer(peer: KubePeer, namespace: str) -> Side:
    if peer.block is not None:
        return Side(nets=(peer.block.cidr,), not_nets=peer.block.excepts)
    if peer.namespaces is None:
        expression = in_namespace(namespace, pods_expression(peer.pods or LabelSelector()))
    else:
        expression = peer_expression(PodsPeer(peer.namespaces, peer.pods))
    return Side(sets=(SelectorSet(Selector(expression)),))


# ---- rules of the administrator --------------------------------------------------------------------------------------


def cluster_rules(rule: ClusterRule, index: int, direction: Direction, policy_broken: str) -> list[Rule]:
    if rule.broken:
        return [replace(_broken(rule.action, index, rule.broken), where=rule.where)]
    ports = rule.ports or (ClusterPort(),)
    found = [
        _rule(rule.action, index, direction, side, port.protocol, *_cluster_ports(port), rule)
        for port in ports
        for peer in rule.peers or (ClusterPeer(),)
        for side in _cluster_peer(peer)
    ]
    return [without_permission(one, policy_broken) for one in found]


def _cluster_ports(port: ClusterPort) -> tuple[tuple[PortRange, ...], tuple[str, ...]]:
    return (port.port,) if port.port else (), (port.name,) if port.name else ()


def _cluster_peer(peer: ClusterPeer) -> list[Side]:
    """Networks of both families in one peer become a side for each."""
    if peer.pods is not None:
        return [Side(sets=(SelectorSet(Selector(peer_expression(peer.pods))),))]
    if peer.nodes is not None:
        return [Side(sets=(NodeSet(Selector(labels_expression(peer.nodes, ""))),))]
    families = [tuple(net for net in peer.nets if net.version == version) for version in (4, 6)]
    return [Side(nets=nets) for nets in families if nets] or [ANY_SIDE]


# ---- Calico rules ----------------------------------------------------------------------------------------------------


def calico_rule(rule: CalicoRule, index: int, namespace: str) -> Rule:
    if rule.broken:
        return replace(_broken(rule.action, index, rule.broken), where=rule.where)
    version = rule.ip_version or {ICMP: 4, ICMP6: 6}.get(rule.protocol or 0)
    nets = [(entity.nets, entity.not_nets) for entity in (rule.source, rule.destination)]
    implied = {found for one in nets if (found := _version(one, rule.action))}
    if len(implied | ({version} if version else set())) > 1:
        return Rule(rule.action, index, never="networks of the other family", where=rule.where)
    return Rule(
        rule.action,
        index,
        version or next(iter(implied), None),  # type: ignore[arg-type]
        rule.protocol,
        rule.not_protocol,
        rule.icmp,
        rule.not_icmp,
        _side(rule.source, rule.protocol, namespace),
        _side(rule.destination, rule.protocol, namespace, is_destination=True),
        where=rule.where,
    )


def _version(nets: tuple[tuple[Network, ...], tuple[Network, ...]], action: Action) -> Literal[4, 6] | None:
    """The one family that the networks leave possible; None when they say nothing or name both."""
    positive, negative = ({net.version for net in some} for some in nets)
    for versions in (positive, negative if action != "Deny" else set()):
        if len(versions) == 1:
            return 4 if versions == {4} else 6
    return None


def _side(entity: Entity, protocol: int | None, namespace: str, *, is_destination: bool = False) -> Side:
    if entity == ANYWHERE:
        return ANY_SIDE
    positive = _positive(entity, namespace)
    not_sets: tuple[SelectorSet, ...] = ()
    if entity.not_selector is not None:
        if positive is None:
            not_sets = (SelectorSet(entity.not_selector),)
        else:
            positive = And((positive, Not(entity.not_selector.root)))
    chosen = Selector(positive if positive is not None else All())
    ports, names = _split(entity.ports)
    not_ports, not_names = _split(entity.not_ports)
    sets: tuple[SelectorSet | ServiceSet, ...] = (SelectorSet(chosen),) if positive is not None else ()
    port_sets: tuple[PortedSet, ...] = tuple(PortSet(chosen, protocol, name) for name in names)
    if entity.service is not None:
        service = ServiceSet(entity.service[0] or namespace, entity.service[1], is_destination)
        sets, port_sets = (sets, (*port_sets, service)) if is_destination else ((*sets, service), port_sets)
    return Side(
        entity.nets,
        entity.not_nets,
        sets,
        not_sets,
        ports,
        port_sets,
        not_ports,
        tuple(PortSet(chosen, protocol, name) for name in not_names),
    )


def _split(ports: tuple[PortRange | str, ...]) -> tuple[tuple[PortRange, ...], tuple[str, ...]]:
    numeric = merged_ranges(port for port in ports if isinstance(port, PortRange))
    return numeric, tuple(port for port in ports if isinstance(port, str))


def _positive(entity: Entity, namespace: str) -> Expression | None:
    """The condition on who is at an address; None: no condition, any address will do."""
    parts: list[Expression] = []
    accounts = entity.service_accounts
    if accounts is not None and accounts.names:
        parts.append(In(SERVICE_ACCOUNT_LABEL, frozenset(accounts.names)))
    if accounts is not None and accounts.selector is not None:
        parts.append(accounts_expression(accounts.selector))
    if entity.selector is not None:
        parts.append(entity.selector.root)
    given = bool(parts) or entity.not_selector is not None or entity.namespace_selector is not None
    if not given:
        return None
    if entity.namespace_selector is not None:
        parts.insert(0, namespaces_expression(entity.namespace_selector))
    elif namespace:
        parts.insert(0, Compare(NAMESPACE_LABEL, "==", namespace))
    return all_of(parts) if parts else None
