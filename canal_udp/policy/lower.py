"""The model to the normal form: every function takes one object, so that one change lowers one object.

Kubernetes   a NetworkPolicy is a policy of order 1000 in tier `default`.
Cluster      Admin is tier `kube-admin`, Baseline is `kube-baseline`, priority is order; a policy governs only the
             directions that it has rules for.
Calico       as it stands; a policy without order comes last in its tier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from canal_udp.policy.expressions import (
    accounts_expression,
    in_namespace,
    namespaces_expression,
    peer_expression,
    pods_expression,
)
from canal_udp.policy.lower_endpoint import lower_endpoints, lower_host, lower_profiles, lower_set
from canal_udp.policy.lower_rule import calico_rule, cluster_rules, kube_rules, without_permission
from canal_udp.policy.model import (
    ADMIN_TIER,
    BASELINE_TIER,
    DEFAULT_TIER,
    EGRESS,
    INGRESS,
    KUBE_POLICY_ORDER,
    NAMESPACE_LABEL,
    CalicoPolicy,
    CalicoRule,
    ClusterPolicy,
    ClusterRule,
    Direction,
    KubePolicy,
    KubeRule,
    State,
    policy_key,
)
from canal_udp.policy.model import Policy as Written
from canal_udp.policy.normal import Policy, Rule, World, sort_tiers
from canal_udp.policy.selector import Compare, Expression, Selector, all_of

# ---- the whole state -------------------------------------------------------------------------------------------------


def lower_state(state: State, *, staged: bool = False) -> World:
    """Everything; `staged` treats staged policies as if they were enforced."""
    policies: dict[str, list[Policy]] = {}
    for one in with_staged(state.policies) if staged else state.policies:
        policy = lower_policy(one)
        if policy.staged is None:
            policies.setdefault(policy.tier, []).append(policy)
    endpoints = lower_endpoints(state)
    return World(
        tiers=sort_tiers(state.tiers, set(policies)),
        policies={tier: tuple(sorted(found, key=lambda one: one.sort_key)) for tier, found in policies.items()},
        profiles=lower_profiles(state, endpoints.values()),
        endpoints=endpoints,
        hosts={host.name: lower_host(host) for host in state.hosts.values()},
        prefix_sets={key: lower_set(one) for key, one in state.sets.items()},
        nodes=state.nodes,
        slices=tuple(state.slices.values()),
        settings=state.settings,
    )


def with_staged(policies: tuple[Written, ...]) -> Iterator[Written]:
    """Set replaces or adds the policy of the same name, Delete removes it, Learn and Ignore do nothing."""
    changed = {
        (policy_key(one).removeprefix("Staged"), one.staged): one
        for one in policies
        if not isinstance(one, ClusterPolicy) and one.staged in ("Set", "Delete")
    }
    touched = {key for key, _ in changed}
    for one in policies:
        if (isinstance(one, ClusterPolicy) or one.staged is None) and policy_key(one) not in touched:
            yield one
    yield from (replace(one, staged=None) for (_, action), one in changed.items() if action == "Set")


# ---- policies --------------------------------------------------------------------------------------------------------


def lower_policy(policy: Written) -> Policy:
    match policy:
        case KubePolicy():
            return _kube_policy(policy)
        case ClusterPolicy():
            return _cluster_policy(policy)
        case CalicoPolicy():
            return _calico_policy(policy)


def _kube_policy(policy: KubePolicy) -> Policy:
    def rules(direction: Direction, written: tuple[KubeRule, ...]) -> tuple[Rule, ...] | None:
        if direction not in policy.types:
            return None
        found = (kube_rules(rule, index, direction, policy) for index, rule in enumerate(written))
        return tuple(rule for several in found for rule in several)

    return Policy(
        policy_key(policy),
        DEFAULT_TIER,
        KUBE_POLICY_ORDER,
        f"{policy.name}/{policy.namespace}/{policy.kind}",
        Selector(in_namespace(policy.namespace, pods_expression(policy.selector))),
        rules(INGRESS, policy.ingress),
        rules(EGRESS, policy.egress),
        staged=policy.staged,
        answer=policy.answer,
        where=policy.where,
        broken=policy.broken,
    )


def _cluster_policy(policy: ClusterPolicy) -> Policy:
    def rules(direction: Direction, written: tuple[ClusterRule, ...]) -> tuple[Rule, ...] | None:
        found = (cluster_rules(rule, index, direction, policy.broken) for index, rule in enumerate(written))
        return tuple(rule for several in found for rule in several) if written else None

    return Policy(
        policy_key(policy),
        ADMIN_TIER if policy.tier == "Admin" else BASELINE_TIER,
        -math.inf if policy.broken else policy.priority,
        f"{policy.name}//{policy.kind}",
        Selector(peer_expression(policy.subject)),
        rules(INGRESS, policy.ingress),
        rules(EGRESS, policy.egress),
        answer=policy.answer,
        where=policy.where,
        broken=policy.broken,
    )


def _calico_policy(policy: CalicoPolicy) -> Policy:
    def rules(direction: Direction, written: tuple[CalicoRule, ...]) -> tuple[Rule, ...] | None:
        if direction not in policy.types:
            return None
        lowered = (calico_rule(rule, index, policy.namespace) for index, rule in enumerate(written))
        return tuple(without_permission(rule, policy.broken) for rule in lowered)

    order = math.inf if policy.order is None else policy.order
    return Policy(
        policy_key(policy),
        policy.tier,
        -math.inf if policy.broken else order,
        f"{policy.name}/{policy.namespace}/{policy.kind}",
        Selector(_scope(policy)),
        rules(INGRESS, policy.ingress),
        rules(EGRESS, policy.egress),
        "doNotTrack" if policy.do_not_track else "preDNAT" if policy.pre_dnat else "normal",
        policy.apply_on_forward,
        policy.staged,
        policy.answer,
        policy.where,
        policy.broken,
    )


def _scope(policy: CalicoPolicy) -> Expression:
    parts = [policy.selector.root] if policy.selector is not None else []
    if policy.namespace:
        parts.append(Compare(NAMESPACE_LABEL, "==", policy.namespace))
    elif policy.namespace_selector is not None:
        parts.append(namespaces_expression(policy.namespace_selector))
    if policy.service_account_selector is not None:
        parts.append(accounts_expression(policy.service_account_selector))
    return all_of(parts)
