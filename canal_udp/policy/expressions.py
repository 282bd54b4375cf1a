"""Selectors of every language as expressions on the labels that endpoints have here.

Labels    an endpoint has its own, those that say who it is (projectcalico.org/namespace, .../orchestrator,
          .../serviceaccount), and inherits pcns.* from its namespace and pcsa.* from its service account.
          Peers of Kubernetes carry `orchestrator == "k8s"`, which keeps negative selectors from matching hosts and
          network sets.
"""

from __future__ import annotations

from canal_udp.policy.model import (
    INHERITED_PREFIXES,
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    ORCHESTRATOR_LABEL,
    SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
    LabelSelector,
    PodsPeer,
)
from canal_udp.policy.selector import (
    All,
    And,
    Compare,
    Expression,
    Global,
    Has,
    In,
    Not,
    Selector,
    all_of,
    prefixed,
    rewrite,
)

KUBERNETES = Compare(ORCHESTRATOR_LABEL, "==", "k8s")
_NEVER = In(ORCHESTRATOR_LABEL, frozenset())


def labels_expression(selector: LabelSelector, prefix: str) -> Expression:
    """A LabelSelector as an expression on labels that carry `prefix`."""
    parts: list[Expression] = [Compare(prefix + key, "==", value) for key, value in selector.labels]
    for one in selector.requirements:
        label = prefix + one.key
        match one.operator:
            case "In":
                parts.append(In(label, frozenset(one.values)))
            case "NotIn":
                parts.append(In(label, frozenset(one.values), negated=True))
            case "Exists":
                parts.append(Has(label))
            case "DoesNotExist":
                parts.append(Not(Has(label)))
    return all_of(parts)


def pods_expression(selector: LabelSelector) -> Expression:
    """Pods by their own labels. They cannot have inherited ones, so such a key is absent for everyone."""

    def forged(leaf: Expression) -> Expression:
        if isinstance(leaf, Has | Compare | In) and leaf.label.startswith(INHERITED_PREFIXES):
            return All() if isinstance(leaf, In) and leaf.negated else _NEVER
        return leaf

    return conjunction(KUBERNETES, rewrite(labels_expression(selector, ""), forged))


def peer_expression(peer: PodsPeer) -> Expression:
    pods = pods_expression(peer.pods or LabelSelector())
    return conjunction(pods, labels_expression(peer.namespaces, NAMESPACE_PREFIX))


def in_namespace(namespace: str, expression: Expression) -> Expression:
    return conjunction(expression, Compare(NAMESPACE_LABEL, "==", namespace))


def conjunction(*parts: Expression) -> Expression:
    flat = [one for part in parts for one in (part.operands if isinstance(part, And) else (part,))]
    return all_of(one for one in flat if not isinstance(one, All))


def namespaces_expression(selector: Selector) -> Expression:
    """A namespaceSelector: on labels of namespaces; all() is "in some namespace", global() "in none"."""

    def change(leaf: Expression) -> Expression:
        match leaf:
            case All():
                return Has(NAMESPACE_LABEL)
            case Global():
                return Not(Has(NAMESPACE_LABEL))
            case _:
                return prefixed(leaf, NAMESPACE_PREFIX)

    return rewrite(selector.root, change)


def accounts_expression(selector: Selector) -> Expression:
    def change(leaf: Expression) -> Expression:
        return Has(SERVICE_ACCOUNT_LABEL) if isinstance(leaf, All) else prefixed(leaf, SERVICE_ACCOUNT_PREFIX)

    return rewrite(selector.root, change)
