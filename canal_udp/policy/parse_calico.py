"""Calico v3 objects: policies, tiers, sets, profiles, endpoints, and what of the settings verdicts depend on.

Source    projectcalico.org/v3 with the defaults and the refusals of its API server.
"""

from __future__ import annotations

import re
from dataclasses import replace

from canal_udp.net import Address, Network
from canal_udp.policy.cursor import Bad, Cursor, Table
from canal_udp.policy.model import (
    CALICO_DEFAULTS,
    EGRESS,
    FIXED_TIERS,
    INGRESS,
    NAMESPACE_LABEL,
    TCP,
    CalicoPolicy,
    Direction,
    EndpointPort,
    Failsafe,
    HostEndpoint,
    KubePolicy,
    NetworkSet,
    Profile,
    Settings,
    StagedAction,
    Tier,
    WorkloadEndpoint,
)
from canal_udp.policy.parse_common import read_meta, read_port, read_spec
from canal_udp.policy.parse_kubernetes import POLICY_FIELDS, TYPES, kube_policy
from canal_udp.policy.parse_rule import protocol_number, read_rule, selector

RULES_MAX = 1024
_FIELDS = ("tier", "order", "selector", "serviceAccountSelector", "types", "ingress", "egress", "performanceHints")
_GLOBAL_FIELDS = (*_FIELDS, "namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward")
_HINTS = ("AssumeNeededOnEveryNode",)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_STAGED_ACTIONS: tuple[StagedAction, ...] = ("Set", "Delete", "Learn", "Ignore")


# ---- policies --------------------------------------------------------------------------------------------------------


def network_policy(document: Cursor) -> CalicoPolicy:
    return _policy(document, _FIELDS, namespaced=True)


def global_policy(document: Cursor) -> CalicoPolicy:
    return _policy(document, _GLOBAL_FIELDS, namespaced=False)


def staged_network_policy(document: Cursor) -> CalicoPolicy:
    return _policy(document, ("stagedAction", *_FIELDS), namespaced=True, staged=True)


def staged_global_policy(document: Cursor) -> CalicoPolicy:
    return _policy(document, ("stagedAction", *_GLOBAL_FIELDS), namespaced=False, staged=True)


def staged_kubernetes_policy(document: Cursor) -> KubePolicy:
    since = document.errors
    spec = read_spec(document, ("stagedAction", *POLICY_FIELDS))
    action = _staged_action(spec)
    return replace(kube_policy(document, spec, since), staged=action)


def _staged_action(spec: Table) -> StagedAction:
    action = spec.read("stagedAction", lambda cursor: cursor.choice(_STAGED_ACTIONS), "Set")
    if action == "Delete" and (more := [key for key in spec if key not in ("stagedAction", "tier") and key in spec]):
        spec.at(more[0]).fail("a staged Delete has no spec of its own (but the tier)")
    return action  # type: ignore[return-value]


def _policy(document: Cursor, fields: tuple[str, ...], *, namespaced: bool, staged: bool = False) -> CalicoPolicy:
    """An error outside of the rules makes it govern both directions and allow nothing."""
    since = document.errors
    spec = read_spec(document, fields)
    broken = document.first_error(since)
    meta = read_meta(document, namespaced=namespaced)
    ingress = spec.each("ingress", lambda cursor: read_rule(cursor, INGRESS, namespaced=namespaced), RULES_MAX)
    egress = spec.each("egress", lambda cursor: read_rule(cursor, EGRESS, namespaced=namespaced), RULES_MAX)
    since = document.errors
    flags = {name: spec.read(name, Cursor.boolean, False) for name in ("doNotTrack", "preDNAT", "applyOnForward")}
    types = _types(spec, bool(ingress), bool(egress))
    policy = CalicoPolicy(
        meta.namespace,
        meta.name,
        tier=spec.read("tier", Cursor.text, "default") or "default",
        order=spec.read("order", Cursor.number, None),
        selector=spec.read("selector", selector, None),
        namespace_selector=spec.read("namespaceSelector", selector, None),
        service_account_selector=spec.read("serviceAccountSelector", selector, None),
        types=types,
        ingress=ingress,
        egress=egress,
        do_not_track=flags["doNotTrack"],
        pre_dnat=flags["preDNAT"],
        apply_on_forward=flags["applyOnForward"],
        staged=_staged_action(spec) if staged else None,
        answer=meta.answer,
        where=meta.where,
    )
    spec.each("performanceHints", lambda cursor: cursor.choice(_HINTS))
    _check_name(document, policy)
    _check_policy(spec, policy)
    broken = broken or document.first_error(since)
    return replace(policy, types=frozenset((INGRESS, EGRESS)), broken=broken) if broken else policy


def _types(spec: Table, ingress: bool, egress: bool) -> frozenset[Direction]:
    given = spec.each("types", lambda cursor: TYPES[cursor.choice(tuple(TYPES))])
    if len(given) != len(set(given)):
        spec.at("types").fail("a type is there twice")
    if given:
        return frozenset(given)
    return frozenset((*((EGRESS,) if egress else ()), *((INGRESS,) if ingress or not egress else ())))


def _check_name(document: Cursor, policy: CalicoPolicy) -> None:
    """A DNS label, by old custom with the tier before it."""
    if policy.name and not _LABEL.fullmatch(policy.name.removeprefix(f"{policy.tier}.")):
        at = document.child("metadata", {}).child("name", policy.name)
        at.fail(f"{policy.name!r} is no DNS label (up to 63 characters, no dots), nor {policy.tier}. before one")


def _check_policy(spec: Table, policy: CalicoPolicy) -> None:
    if policy.pre_dnat and (EGRESS in policy.types or policy.egress):
        spec.at("preDNAT").fail("such a policy has ingress rules only")
    if policy.pre_dnat and policy.do_not_track:
        spec.at("preDNAT").fail("does not go with doNotTrack")
    for field, given in (("preDNAT", policy.pre_dnat), ("doNotTrack", policy.do_not_track)):
        if given and not policy.apply_on_forward:
            spec.at(field).fail("needs applyOnForward: true")


# ---- tiers, sets, profiles -------------------------------------------------------------------------------------------


def tier(document: Cursor) -> Tier:
    meta = read_meta(document, namespaced=False)
    spec = read_spec(document, ("order", "defaultAction"))
    if "." in meta.name:
        document.table(None).at("metadata").table(None).at("name").fail("the name of a tier has no dots")
    order = spec.read("order", Cursor.number, None)
    action = spec.read("defaultAction", lambda cursor: cursor.choice(("Deny", "Pass")), "Deny")
    found = Tier(meta.name, order, "Pass" if action == "Pass" else "Deny", meta.where)
    fixed = FIXED_TIERS.get(meta.name)
    if fixed is not None:
        if (found.order, found.default_action) != (fixed.order, fixed.default_action):
            raise spec.cursor.fail(
                f"tier {fixed.name} has order {fixed.order:g} and defaultAction {fixed.default_action}"
            )
        return Tier(fixed.name, fixed.order, fixed.default_action, meta.where)
    return found


def network_set(document: Cursor) -> NetworkSet:
    return _set(document, namespaced=True)


def global_network_set(document: Cursor) -> NetworkSet:
    return _set(document, namespaced=False)


def _set(document: Cursor, *, namespaced: bool) -> NetworkSet:
    meta = read_meta(document, namespaced=namespaced)
    spec = read_spec(document, ("nets",))
    if NAMESPACE_LABEL in meta.labels:
        document.fail(f"metadata.labels: only we give the label {NAMESPACE_LABEL}")
    labels = {key: value for key, value in meta.labels.items() if key != NAMESPACE_LABEL}
    return NetworkSet(meta.namespace, meta.name, labels, spec.each("nets", Cursor.net_or_address), meta.where)


def profile(document: Cursor) -> Profile:
    since = document.errors
    meta = read_meta(document, namespaced=False)
    spec = read_spec(document, ("ingress", "egress", "labelsToApply"))
    return Profile(
        meta.name,
        spec.read("labelsToApply", Cursor.labels, {}),
        spec.each("ingress", lambda cursor: read_rule(cursor, INGRESS, namespaced=False), RULES_MAX),
        spec.each("egress", lambda cursor: read_rule(cursor, EGRESS, namespaced=False), RULES_MAX),
        meta.where,
        document.first_error(since),
    )


# ---- endpoints -------------------------------------------------------------------------------------------------------

_WORKLOAD_FIELDS = (
    *("orchestrator", "workload", "node", "containerID", "pod", "endpoint", "serviceAccountName", "ipNetworks"),
    *("ipNATs", "ipv4Gateway", "ipv6Gateway", "profiles", "interfaceName", "mac", "ports"),
    *("allowSpoofedSourcePrefixes", "qosControls"),
)


def workload_endpoint(document: Cursor) -> WorkloadEndpoint:
    since = document.errors
    meta = read_meta(document, namespaced=True)
    spec = read_spec(document, _WORKLOAD_FIELDS)

    def word(name: str) -> str:
        return spec.read(name, Cursor.text, "")

    return WorkloadEndpoint(
        meta.namespace,
        meta.name,
        meta.labels,
        pod=word("pod"),
        node=word("node"),
        orchestrator=word("orchestrator"),
        interface=word("interfaceName"),
        addresses=spec.each("ipNetworks", _single),
        profiles=spec.each("profiles", Cursor.text),
        ports=spec.each("ports", _endpoint_port),
        service_account=word("serviceAccountName"),
        spoofable=spec.each("allowSpoofedSourcePrefixes", Cursor.net_or_address),
        where=meta.where,
        broken=document.first_error(since),
    )


def host_endpoint(document: Cursor) -> HostEndpoint:
    since = document.errors
    meta = read_meta(document, namespaced=False)
    spec = read_spec(document, ("node", "interfaceName", "expectedIPs", "profiles", "ports"), required=("node",))
    interface = spec.read("interfaceName", Cursor.text, "")
    addresses = spec.each("expectedIPs", Cursor.address)
    if not interface and not addresses:
        spec.cursor.fail("interfaceName or expectedIPs is needed")
    return HostEndpoint(
        meta.name,
        meta.labels,
        spec.read("node", Cursor.text, ""),
        interface,
        addresses,
        spec.each("profiles", Cursor.text),
        spec.each("ports", _endpoint_port),
        meta.where,
        document.first_error(since),
    )


def _single(cursor: Cursor) -> Address:
    net = cursor.net_or_address()
    if net.prefixlen != net.max_prefixlen:
        raise cursor.fail(f"{net} is more than one address")
    return net.network_address


def _endpoint_port(cursor: Cursor) -> EndpointPort:
    table = cursor.table(("name", "protocol", "port", "hostPort", "hostIP"), required=("name", "protocol", "port"))
    if not all(key in table for key in ("name", "protocol", "port")):
        raise Bad("incomplete")
    return EndpointPort(table.at("name").text(), protocol_number(table.at("protocol")), read_port(table.at("port")))


# ---- settings --------------------------------------------------------------------------------------------------------


def settings(document: Cursor) -> Settings | None:
    """FelixConfiguration "default"; its other fields do not change a verdict, per-node ones are not looked at."""
    meta = read_meta(document, namespaced=False)
    if meta.name != "default":
        document.warn("only the FelixConfiguration with the name default is looked at")
        return None
    spec = document.table(None).at("spec")
    table = spec.table(None) if spec.value is not None else Table(spec, {})
    defaults = CALICO_DEFAULTS
    action = table.read("defaultEndpointToHostAction", lambda one: one.choice(("Drop", "Return", "Accept")), "Drop")

    def ports(name: str, default: tuple[Failsafe, ...]) -> tuple[Failsafe, ...]:
        return table.each(name, _failsafe) if name in table else default

    return Settings(
        ports("failsafeInboundHostPorts", defaults.failsafe_inbound),
        ports("failsafeOutboundHostPorts", defaults.failsafe_outbound),
        action,  # type: ignore[arg-type]
        meta.where,
    )


def _failsafe(cursor: Cursor) -> Failsafe:
    table = cursor.table(("protocol", "port", "net"), required=("port",))
    if "port" not in table:
        raise Bad("port is missing")
    net: Network | None = table.read("net", Cursor.net_or_address, None)
    return Failsafe(table.read("protocol", protocol_number, TCP), read_port(table.at("port")), net)
