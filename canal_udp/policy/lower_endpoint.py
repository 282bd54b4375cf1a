"""Pods, workload and host endpoints, network sets and profiles to the normal form.

Profiles     `kns.<namespace>` allows everything and gives pcns.*, `ksa.<namespace>.<account>` gives pcsa.*.
             A workload endpoint inherits its namespace's labels whatever its profiles are.
             A label that begins like an inherited one is taken off an endpoint: it would forge its namespace's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from canal_udp.policy.lower_rule import calico_rule, without_permission
from canal_udp.policy.model import (
    DIRECTIONS,
    EGRESS,
    INGRESS,
    INHERITED_PREFIXES,
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    ORCHESTRATOR_LABEL,
    SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
    HostEndpoint,
    NetworkSet,
    Pod,
    State,
    WorkloadEndpoint,
    namespace_labels,
)
from canal_udp.policy.model import Profile as WrittenProfile
from canal_udp.policy.normal import Endpoint, PrefixSet, Profile, Rule


def lower_endpoints(state: State) -> dict[str, Endpoint]:
    """Pods that have an interface of their own, and workload endpoints, which replace the pod they name."""
    workloads = {f"{one.namespace}/{one.pod or one.name}": lower_workload(one) for one in state.workloads.values()}
    pods = {
        key: lower_pod(pod)
        for key, pod in state.pods.items()
        if key not in workloads and not pod.host_network and not pod.finished
    }
    return {**pods, **workloads}


def lower_pod(pod: Pod) -> Endpoint:
    derived = {
        NAMESPACE_LABEL: pod.namespace,
        ORCHESTRATOR_LABEL: "k8s",
        SERVICE_ACCOUNT_LABEL: pod.service_account,
    }
    profiles = (f"kns.{pod.namespace}", f"ksa.{pod.namespace}.{pod.service_account}")
    return Endpoint(
        f"{pod.namespace}/{pod.name}",
        False,
        own_labels(pod.labels, derived),
        profiles,
        profiles,
        pod.addresses,
        pod.ports,
        pod.node,
        pod.broken,
        pod.where,
    )


def lower_workload(workload: WorkloadEndpoint) -> Endpoint:
    derived = {NAMESPACE_LABEL: workload.namespace}
    if workload.orchestrator:
        derived[ORCHESTRATOR_LABEL] = workload.orchestrator
    if workload.service_account:
        derived[SERVICE_ACCOUNT_LABEL] = workload.service_account
    return Endpoint(
        f"{workload.namespace}/{workload.pod or workload.name}",
        False,
        own_labels(workload.labels, derived),
        workload.profiles,
        tuple(dict.fromkeys((*workload.profiles, f"kns.{workload.namespace}"))),
        workload.addresses,
        workload.ports,
        workload.node,
        workload.broken,
        workload.where,
    )


def lower_host(host: HostEndpoint) -> Endpoint:
    return Endpoint(
        host.name,
        True,
        host.labels,
        host.profiles,
        host.profiles,
        host.addresses,
        host.ports,
        host.node,
        host.broken,
        host.where,
    )


def own_labels(labels: Mapping[str, str], derived: Mapping[str, str]) -> dict[str, str]:
    """An endpoint's own labels without those that would forge a namespace's or account's."""
    return {**{key: value for key, value in labels.items() if not key.startswith(INHERITED_PREFIXES)}, **derived}


def lower_set(one: NetworkSet) -> PrefixSet:
    if not one.namespace:
        return PrefixSet(one.name, one.labels, (), one.nets)
    labels = {**one.labels, NAMESPACE_LABEL: one.namespace}
    return PrefixSet(f"{one.namespace}/{one.name}", labels, (f"kns.{one.namespace}",), one.nets)


def lower_profiles(state: State, endpoints: Iterable[Endpoint]) -> dict[str, Profile]:
    """Written profiles, and those that every namespace and service account has."""
    found = {name: lower_profile(profile) for name, profile in state.profiles.items()}
    names = {*state.namespaces, *(one.namespace for one in state.pods.values())}
    names |= {one.namespace for one in state.workloads.values()} | {one.namespace for one in state.sets.values()}
    for name in names - {""}:
        found.setdefault(f"kns.{name}", namespace_profile(state, name))
    accounts = set(state.service_accounts) | {f"{pod.namespace}/{pod.service_account}" for pod in state.pods.values()}
    for key in accounts:
        namespace, _, name = key.partition("/")
        found.setdefault(f"ksa.{namespace}.{name}", account_profile(state, namespace, name))
    return found


def namespace_profile(state: State, name: str) -> Profile:
    """Allows everything: a pod that no policy selects is open."""
    labels = {NAMESPACE_PREFIX + key: value for key, value in namespace_labels(state, name).items()}
    labels[NAMESPACE_PREFIX + "projectcalico.org/name"] = name
    rules = (Rule("Allow", 0),)
    return Profile(f"kns.{name}", labels, rules, rules)


def account_profile(state: State, namespace: str, name: str) -> Profile:
    account = state.service_accounts.get(f"{namespace}/{name}")
    labels = {SERVICE_ACCOUNT_PREFIX + key: value for key, value in (account.labels if account else {}).items()}
    return Profile(
        f"ksa.{namespace}.{name}", {**labels, SERVICE_ACCOUNT_PREFIX + "projectcalico.org/name": name}, (), ()
    )


def lower_profile(profile: WrittenProfile) -> Profile:
    rules = {
        direction: tuple(
            without_permission(calico_rule(rule, index, ""), profile.broken)
            for index, rule in enumerate(profile.ingress if direction == INGRESS else profile.egress)
        )
        for direction in DIRECTIONS
    }
    return Profile(profile.name, profile.labels, rules[INGRESS], rules[EGRESS], profile.where)
