"""One entry of the store -> the object that it holds; what cannot be read becomes the object that fails closed.

Faults    An entry that is no document, or not the object that its key names, is still known by its key: a policy then
          governs everybody that it could have governed and allows nothing, a pod or endpoint gets no traffic. For what
          can be neither (a namespace, a tier, a set) the caller keeps what it knew before.
"""

from __future__ import annotations

from dataclasses import dataclass

from canal_udp.control.objects import (
    ObjectKey,
    PodEntry,
    object_key,
    parse_endpoint_key,
    parse_object_key,
    read_endpoint,
    read_value,
)
from canal_udp.control.store import Kind
from canal_udp.errors import ConfigError
from canal_udp.net import printable
from canal_udp.policy.cursor import NOWHERE, Document, Where
from canal_udp.policy.load import load
from canal_udp.policy.model import (
    DIRECTIONS,
    PROTOCOLS,
    CalicoPolicy,
    ClusterPolicy,
    ClusterRule,
    EndpointPort,
    HostEndpoint,
    KubePolicy,
    LabelSelector,
    Object,
    Pod,
    PodsPeer,
    Profile,
    WorkloadEndpoint,
)

_BOTH = frozenset(DIRECTIONS)
_EVERY_POD = PodsPeer(LabelSelector())


@dataclass(frozen=True, slots=True)
class Fact:
    """What an entry says. `key` None: not even which object; `found` None: nothing that can be used."""

    key: ObjectKey | None
    found: Object | None
    problem: str = ""
    revision: int = 0


def read_fact(kind: Kind, key: str, value: bytes, revision: int = 0) -> Fact:
    """Read an entry that anyone may have written. Never raises for what it holds."""
    source = f"{kind}/{printable(key)}"
    try:
        if kind == "endpoints":
            pod = _pod(read_endpoint(key, value), Where(source))
            return Fact(ObjectKey("Pod", pod.namespace, pod.name), pod, "", revision)
        named = parse_object_key(key)
        found, problem = _object(named, value, source)
    except ValueError as error:
        return Fact(None, None, f"{source}: {error}", revision)
    except ConfigError as error:
        return _by_its_key(kind, key, Where(source), error, revision)
    return Fact(named, found, problem, revision)


def _by_its_key(kind: Kind, key: str, where: Where, error: ConfigError, revision: int) -> Fact:
    try:
        named = _endpoint_key(key) if kind == "endpoints" else parse_object_key(key)
    except ValueError:
        return Fact(None, None, str(error), revision)
    return Fact(named, unreadable(named, where, error.problem), str(error), revision)


def _endpoint_key(key: str) -> ObjectKey:
    _, namespace, pod = parse_endpoint_key(key)
    return ObjectKey("Pod", namespace, pod)


def _pod(entry: PodEntry, where: Where = NOWHERE) -> Pod:
    for name, protocol, port in entry.ports:
        if protocol not in PROTOCOLS or not 0 < port < 1 << 16:
            raise ConfigError(f"{printable(protocol)}/{port} is no port", source=where.source, field=printable(name))
    return Pod(
        entry.namespace,
        entry.pod,
        entry.labels,
        addresses=entry.ips,
        ports=tuple(EndpointPort(name, PROTOCOLS[protocol], port) for name, protocol, port in entry.ports),
        node=entry.node,
        where=where,
    )


def _object(key: ObjectKey, value: bytes, source: str) -> tuple[Object, str]:
    loaded = load([Document(read_value(value, source), source)])
    first = next(iter(loaded.errors), None)
    if len(loaded.written) != 1:
        reason = f"{first.field}: {first.text}" if first else "it holds no object"
        raise ConfigError(reason, source=source)
    found = loaded.written[0][0]
    if object_key(found) != key:
        raise ConfigError(f"it holds {object_key(found)}", source=source)
    return found, str(first) if first else ""


def unreadable(key: ObjectKey, where: Where, reason: str) -> Object | None:
    """What must be assumed of an object of which only the key is known; None: nothing."""
    match key.kind:
        case "KubernetesNetworkPolicy":
            return KubePolicy(key.namespace, key.name, LabelSelector(), _BOTH, where=where, broken=reason)
        case "NetworkPolicy" | "GlobalNetworkPolicy":
            return CalicoPolicy(key.namespace, key.name, types=_BOTH, where=where, broken=reason)
        case "ClusterNetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy":
            rules = (ClusterRule("Deny", where=where, broken=reason),)
            tier = "Baseline" if key.kind.startswith("Baseline") else "Admin"
            return ClusterPolicy(
                *(key.kind, key.name, tier, 0, _EVERY_POD, rules, rules),  # type: ignore[arg-type]
                where=where,
                broken=reason,
            )
        case "Pod":
            return Pod(key.namespace, key.name, {}, where=where, broken=reason)
        case "WorkloadEndpoint":
            return WorkloadEndpoint(key.namespace, key.name, {}, where=where, broken=reason)
        case "HostEndpoint":
            return HostEndpoint(key.name, {}, node="", where=where, broken=reason)
        case "Profile":
            return Profile(key.name, where=where, broken=reason)
    return None
