"""Kubernetes objects: Namespace, Pod, ServiceAccount, Node, EndpointSlice, NetworkPolicy v1.

Source    the API's own defaulting and validation; facts about pods that no verdict depends on are not looked at.
"""

from __future__ import annotations

from canal_udp.net import Address, covers
from canal_udp.policy.cursor import Bad, Cursor, Table
from canal_udp.policy.model import (
    EGRESS,
    INGRESS,
    PROTOCOLS,
    SCTP,
    TCP,
    UDP,
    Direction,
    EndpointPort,
    EndpointSlice,
    IpBlock,
    KubePeer,
    KubePolicy,
    KubePort,
    KubeRule,
    LabelSelector,
    Namespace,
    Node,
    Pod,
    PortRange,
    ServiceAccount,
)
from canal_udp.policy.parse_common import (
    note_typos,
    one_port,
    open_table,
    read_meta,
    read_port,
    read_port_name,
    read_selector,
    read_spec,
)

KUBE_PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
TYPES: dict[str, Direction] = {"Ingress": INGRESS, "Egress": EGRESS}
_POD_SPEC = (
    *("containers", "initContainers", "nodeName", "hostNetwork", "serviceAccountName", "serviceAccount"),
    *("nodeSelector", "hostname", "ephemeralContainers"),  # not read, and no typos either
)
_POD_STATUS = ("podIPs", "podIP", "hostIPs", "hostIP", "phase")
POLICY_FIELDS = ("podSelector", "policyTypes", "ingress", "egress")


# ---- who is there ----------------------------------------------------------------------------------------------------


def namespace(document: Cursor) -> Namespace:
    meta = read_meta(document, namespaced=False)
    return Namespace(meta.name, meta.labels, meta.where)


def service_account(document: Cursor) -> ServiceAccount:
    meta = read_meta(document, namespaced=True)
    return ServiceAccount(meta.namespace, meta.name, meta.labels, meta.where)


def node(document: Cursor) -> Node:
    meta = read_meta(document, namespaced=False)
    status = open_table(document.table(None), "status", ("addresses",))
    addresses = status.each("addresses", _node_address)
    return Node(meta.name, meta.labels, tuple(one for one in addresses if one is not None), meta.where)


def _node_address(cursor: Cursor) -> Address | None:
    table = cursor.table(None)
    return table.at("address").address() if table.values.get("type") in ("InternalIP", "ExternalIP") else None


def pod(document: Cursor) -> Pod:
    """A pod; with an error in what policies look at it is `broken` and gets no traffic."""
    since = document.errors
    meta = read_meta(document, namespaced=True)
    top = document.table(None)
    note_typos(top, ("apiVersion", "kind", "metadata", "spec", "status"))
    spec, status = open_table(top, "spec", _POD_SPEC), open_table(top, "status", _POD_STATUS)
    containers = (*spec.each("initContainers", _sidecar_ports), *spec.each("containers", _ports))
    account = spec.read("serviceAccount", Cursor.text, "")  # the old name of the same
    return Pod(
        meta.namespace,
        meta.name,
        meta.labels,
        addresses=_addresses(status, "podIPs", "podIP"),
        ports=tuple(dict.fromkeys(port for ports in containers for port in ports)),
        node=spec.read("nodeName", Cursor.text, ""),
        node_addresses=_addresses(status, "hostIPs", "hostIP"),
        service_account=spec.read("serviceAccountName", Cursor.text, "") or account or "default",
        host_network=spec.read("hostNetwork", Cursor.boolean, False),
        finished=status.read("phase", Cursor.text, "") in ("Succeeded", "Failed"),
        where=meta.where,
        broken=document.first_error(since),
    )


def _addresses(status: Table, several: str, one: str) -> tuple[Address, ...]:
    found = status.each(several, lambda cursor: cursor.table(None).at("ip").address())
    first = status.read(one, lambda cursor: cursor.address() if cursor.value != "" else None, None)
    return tuple(dict.fromkeys((*((first,) if first is not None else ()), *found)))


def _sidecar_ports(container: Cursor) -> tuple[EndpointPort, ...]:
    """A container of the start listens later only if it is restarted always."""
    table = container.table(None)
    return _ports(container) if table.read("restartPolicy", Cursor.text, "") == "Always" else ()


def _ports(container: Cursor) -> tuple[EndpointPort, ...]:
    table = container.table(None)
    note_typos(table, ("ports", "name"))
    ports = table.each("ports", _container_port)
    return tuple(port for port in ports if port is not None)


def _container_port(cursor: Cursor) -> EndpointPort | None:
    table = cursor.table(("name", "protocol", "containerPort", "hostPort", "hostIP"))
    if "name" not in table:
        return None
    protocol = table.read("protocol", lambda one: KUBE_PROTOCOLS[one.choice(KUBE_PROTOCOLS)], TCP)
    return EndpointPort(table.at("name").text(), protocol, read_port(table.at("containerPort")))


def endpoint_slice(document: Cursor) -> EndpointSlice:
    meta = read_meta(document, namespaced=True)
    top = document.table(None)
    endpoints = top.each("endpoints", lambda cursor: cursor.table(None).each("addresses", Cursor.address))
    return EndpointSlice(
        meta.namespace,
        meta.name,
        meta.labels.get("kubernetes.io/service-name", ""),
        tuple(address for addresses in endpoints for address in addresses),
        top.each("ports", _slice_port),
        meta.where,
    )


def _slice_port(cursor: Cursor) -> tuple[int, int | None]:
    table = cursor.table(None)
    protocol = table.read("protocol", lambda one: KUBE_PROTOCOLS[one.choice(KUBE_PROTOCOLS)], TCP)
    return protocol, table.read("port", read_port, None)


# ---- NetworkPolicy ---------------------------------------------------------------------------------------------------


def network_policy(document: Cursor) -> KubePolicy:
    since = document.errors
    return kube_policy(document, read_spec(document, POLICY_FIELDS, required=("podSelector",)), since)


def kube_policy(document: Cursor, spec: Table, since: int) -> KubePolicy:
    """A policy from a spec that was read after `since`; staged ones share it.

    An error outside of the rules makes it govern both directions and allow nothing.
    """
    meta = read_meta(document, namespaced=True)
    broken = document.first_error(since)
    ingress = spec.each("ingress", lambda cursor: _rule(cursor, "from"))
    egress = spec.each("egress", lambda cursor: _rule(cursor, "to"))
    since = document.errors
    selector = spec.read("podSelector", read_selector, LabelSelector())
    types = frozenset(spec.each("policyTypes", lambda cursor: TYPES[cursor.choice(tuple(TYPES))]))
    broken = broken or document.first_error(since)
    if broken:
        types = frozenset((INGRESS, EGRESS))
    return KubePolicy(
        meta.namespace,
        meta.name,
        selector,
        types or frozenset((INGRESS, EGRESS) if egress else (INGRESS,)),
        ingress,
        egress,
        answer=meta.answer,
        where=meta.where,
        broken=broken,
    )


def _rule(cursor: Cursor, peers: str) -> KubeRule:
    """A rule; one with an error allows nothing."""
    since = cursor.errors
    try:
        table = cursor.table((peers, "ports"))
        rule = KubeRule(table.each(peers, _peer), table.each("ports", _port), cursor.where)
    except Bad:
        rule = KubeRule(where=cursor.where)
    error = cursor.first_error(since)
    return KubeRule(where=cursor.where, broken=error) if error else rule


def _peer(cursor: Cursor) -> KubePeer:
    table = cursor.table(("podSelector", "namespaceSelector", "ipBlock"))
    if "ipBlock" in table:
        if "podSelector" in table or "namespaceSelector" in table:
            raise cursor.fail("ipBlock excludes podSelector and namespaceSelector")
        return KubePeer(block=_block(table.at("ipBlock")))
    if "podSelector" not in table and "namespaceSelector" not in table:
        raise cursor.fail("one of podSelector, namespaceSelector, ipBlock is needed")
    return KubePeer(
        pods=read_selector(table.at("podSelector")) if "podSelector" in table else None,
        namespaces=read_selector(table.at("namespaceSelector")) if "namespaceSelector" in table else None,
    )


def _block(cursor: Cursor) -> IpBlock:
    table = cursor.table(("cidr", "except"), required=("cidr",))
    if "cidr" not in table:
        raise Bad("cidr")
    cidr = table.at("cidr").network()
    excepts = table.each("except", Cursor.network)
    for index, one in enumerate(excepts):
        if not covers(cidr, one) or one == cidr:
            table.at("except").child(index, None).fail(f"{one} must lie inside {cidr} and be smaller")
    return IpBlock(cidr, excepts)


def _port(cursor: Cursor) -> KubePort:
    table = cursor.table(("protocol", "port", "endPort"))
    protocol = table.read("protocol", lambda one: PROTOCOLS[one.choice(KUBE_PROTOCOLS)], TCP)
    if "port" not in table:
        if "endPort" in table:
            raise table.at("endPort").fail("needs port, the first of the range")
        return KubePort(protocol)
    at = table.at("port")
    if isinstance(at.value, str):
        if "endPort" in table:
            raise table.at("endPort").fail("does not go with a port name")
        return KubePort(protocol, read_port_name(at))
    first = read_port(at)
    if "endPort" not in table:
        return KubePort(protocol, one_port(first))
    last = read_port(table.at("endPort"))
    if last < first:
        raise table.at("endPort").fail(f"{last} is below port {first}")
    return KubePort(protocol, PortRange(first, last))
