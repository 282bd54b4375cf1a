"""Policies of the cluster's administrator: ClusterNetworkPolicy v1alpha2, (Baseline)AdminNetworkPolicy v1alpha1.

The older kinds say Allow for Accept, ports for protocols and carry the tier in the kind; the model knows only the new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from canal_udp.policy.cursor import Bad, Cursor, Table
from canal_udp.policy.model import (
    Action,
    ClusterPeer,
    ClusterPolicy,
    ClusterPort,
    ClusterRule,
    LabelSelector,
    PodsPeer,
    PortRange,
)
from canal_udp.policy.parse_common import one_port, read_meta, read_port, read_port_name, read_selector, read_spec
from canal_udp.policy.parse_kubernetes import KUBE_PROTOCOLS

RULES_MAX, PEERS_MAX, PRIORITY_MAX, NAME_MAX = 25, 25, 1000, 100
ADMIN_RULES_MAX = 100  # of the older kinds
_NO_NAMES = "names of hosts are resolved nowhere here; allow the addresses with networks"
_ACTIONS: dict[str, Action] = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}
_ADMIN_ACTIONS: dict[str, Action] = {"Allow": "Allow", "Deny": "Deny", "Pass": "Pass"}
_BASELINE_ACTIONS: dict[str, Action] = {"Allow": "Allow", "Deny": "Deny"}
_TIERS: dict[str, Literal["Admin", "Baseline"]] = {"Admin": "Admin", "Baseline": "Baseline"}
_FIELDS = ("subject", "ingress", "egress")
_EVERY_POD = PodsPeer(LabelSelector())


def cluster_policy(document: Cursor) -> ClusterPolicy:
    since = document.errors
    spec = read_spec(document, ("tier", "priority", *_FIELDS), required=("tier", "priority", "subject"))
    tier = _TIERS[spec.read("tier", lambda cursor: cursor.choice(tuple(_TIERS)), "Admin")]
    return _policy(document, spec, "ClusterNetworkPolicy", tier, since, _ACTIONS, "protocols", _protocol, RULES_MAX)


def admin_policy(document: Cursor) -> ClusterPolicy:
    kind, since = "AdminNetworkPolicy", document.errors
    spec = read_spec(document, ("priority", *_FIELDS), required=("priority", "subject"))
    return _policy(document, spec, kind, "Admin", since, _ADMIN_ACTIONS, "ports", _admin_port, ADMIN_RULES_MAX)


def baseline_policy(document: Cursor) -> ClusterPolicy:
    kind, since = "BaselineAdminNetworkPolicy", document.errors
    spec = read_spec(document, _FIELDS, required=("subject",))
    name = document.table(None).at("metadata").table(None).at("name")
    if name.value != "default":
        name.fail("there is one baseline, and its name is default")
    return _policy(document, spec, kind, "Baseline", since, _BASELINE_ACTIONS, "ports", _admin_port, ADMIN_RULES_MAX)


def _policy(
    document: Cursor,
    spec: Table,
    kind: str,
    tier: Literal["Admin", "Baseline"],
    since: int,
    actions: dict[str, Action],
    ports: str,
    port: Callable[[Cursor], ClusterPort],
    most: int,
) -> ClusterPolicy:
    meta = read_meta(document, namespaced=False)
    priority = spec.read("priority", lambda cursor: cursor.integer(0, PRIORITY_MAX), 0)
    subject = spec.read("subject", _pods_peer, _EVERY_POD)
    broken = document.first_error(since)
    return ClusterPolicy(
        kind,
        meta.name,
        tier,
        priority,
        subject,
        spec.each("ingress", lambda cursor: _rule(cursor, "from", actions, ports, port), most),
        spec.each("egress", lambda cursor: _rule(cursor, "to", actions, ports, port), most),
        answer=meta.answer,
        where=meta.where,
        broken=broken,
    )


def _rule(
    cursor: Cursor, peers: str, actions: dict[str, Action], ports: str, port: Callable[[Cursor], ClusterPort]
) -> ClusterRule:
    """A rule; one with an error that accepts matches nothing, any other denies its whole direction."""
    since, action, name = cursor.errors, "Deny", ""
    found: tuple[ClusterPeer, ...] = ()
    listed: tuple[ClusterPort, ...] = ()
    try:
        table = cursor.table(("name", "action", peers, ports), required=("action", peers))
        action = actions[table.read("action", lambda one: one.choice(tuple(actions)), "Deny")]
        name = table.read("name", Cursor.text, "")
        if len(name) > NAME_MAX:
            table.at("name").fail(f"{len(name)} characters; at most {NAME_MAX} are allowed")
        egress = peers == "to"
        found = table.each(peers, lambda one: _peer(one, egress=egress, accepts=action == "Allow"), PEERS_MAX)
        listed = table.each(ports, port, PEERS_MAX)
        _check_lists(table, peers, ports, found, listed)
    except Bad:
        pass  # noted; `broken` below says it
    broken = cursor.first_error(since)
    if broken:
        found, listed = (), ()
    return ClusterRule(action, found, listed, name, cursor.where, broken)  # type: ignore[arg-type]


def _check_lists(
    table: Table, peers: str, ports: str, found: tuple[ClusterPeer, ...], listed: tuple[ClusterPort, ...]
) -> None:
    for field in (peers, ports):
        if field in table and table.values[field] == []:
            table.at(field).fail("an empty list matches nothing; leave it out or fill it")
    if any(port.name for port in listed) and any(peer.pods is None for peer in found):
        table.at(ports).fail("a port name goes with pods and namespaces only")


def _pods_peer(cursor: Cursor) -> PodsPeer:
    table = cursor.table(("namespaces", "pods"))
    if table.one_of(("namespaces", "pods")) == "namespaces":
        return PodsPeer(read_selector(table.at("namespaces")))
    return _pods(table.at("pods"))


def _pods(cursor: Cursor) -> PodsPeer:
    table = cursor.table(("namespaceSelector", "podSelector"), required=("namespaceSelector", "podSelector"))
    if "namespaceSelector" not in table or "podSelector" not in table:
        raise Bad("both are needed")
    return PodsPeer(read_selector(table.at("namespaceSelector")), read_selector(table.at("podSelector")))


def _peer(cursor: Cursor, *, egress: bool, accepts: bool) -> ClusterPeer:
    names = ("namespaces", "pods", *(("networks", "nodes", "domainNames") if egress else ()))
    table = cursor.table(names)
    match table.one_of(names):
        case "namespaces":
            return ClusterPeer(PodsPeer(read_selector(table.at("namespaces"))))
        case "pods":
            return ClusterPeer(_pods(table.at("pods")))
        case "networks":
            nets = table.each("networks", Cursor.network, PEERS_MAX)
            if not nets:
                raise table.at("networks").fail("at least one network is needed")
            return ClusterPeer(nets=nets)
        case "nodes":
            return ClusterPeer(nodes=read_selector(table.at("nodes")))
        case _:
            more = "" if accepts else "; and they go with Accept only"
            raise table.at("domainNames").fail(f"not supported: {_NO_NAMES}{more}")


# ---- ports -----------------------------------------------------------------------------------------------------------


def _protocol(cursor: Cursor) -> ClusterPort:
    names = ("tcp", "udp", "sctp", "destinationNamedPort")
    table = cursor.table(names)
    name = table.one_of(names) if any(one in table for one in names) or len(table.values) != 1 else _bare(table)
    if name == "destinationNamedPort":
        return ClusterPort(name=read_port_name(table.at(name)))
    number = KUBE_PROTOCOLS[name.upper()]
    if name not in table:
        return ClusterPort(number)
    inner = table.at(name).table(("destinationPort",))
    return ClusterPort(number, inner.read("destinationPort", _destination_port, None))


def _bare(table: Table) -> str:
    """`tcp:` with nothing after it is every TCP port."""
    (name,) = table.values
    if name in ("tcp", "udp", "sctp"):
        return name
    raise table.cursor.fail("exactly one of tcp, udp, sctp, destinationNamedPort is needed")


def _destination_port(cursor: Cursor) -> PortRange:
    table = cursor.table(("number", "range"))
    if table.one_of(("number", "range")) == "number":
        return one_port(read_port(table.at("number")))
    return _range(table.at("range").table(("start", "end"), required=("start", "end")))


def _range(table: Table) -> PortRange:
    if "start" not in table or "end" not in table:
        raise Bad("start and end are needed")
    first, last = read_port(table.at("start")), read_port(table.at("end"))
    if last <= first:
        raise table.at("end").fail(f"{last} must be above start {first}")
    return PortRange(first, last)


def _admin_port(cursor: Cursor) -> ClusterPort:
    names = ("portNumber", "portRange", "namedPort")
    table = cursor.table(names)
    name = table.one_of(names)
    if name == "namedPort":
        return ClusterPort(name=read_port_name(table.at(name)))
    fields = ("protocol", "port") if name == "portNumber" else ("protocol", "start", "end")
    inner = table.at(name).table(fields, required=fields[1:])
    protocol = inner.read("protocol", lambda one: KUBE_PROTOCOLS[one.choice(KUBE_PROTOCOLS)], KUBE_PROTOCOLS["TCP"])
    if name == "portRange":
        return ClusterPort(protocol, _range(inner))
    if "port" not in inner:
        raise Bad("port is needed")
    return ClusterPort(protocol, one_port(read_port(inner.at("port"))))
