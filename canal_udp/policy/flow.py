"""A flow, who its ends are, the stations on its way that may deny it, and the verdict.

Place     shared by every evaluator: they bring a Judge (one endpoint, one direction), this file the order:

          source pod: egress -> [its node: host endpoint, forwarded] -> [destination's node: host endpoint, forwarded]
          -> destination pod: ingress; a host's own traffic passes its host endpoint as local traffic.

Rules     traffic inside one pod is never policed (through a Service it is: `hairpin`); a node reaches its own pods;
          a pod reaches processes of its own node as the setting endpoint_to_host says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from canal_udp.net import Address
from canal_udp.policy.model import EGRESS, INGRESS, Answer, Direction, HostEndpoint, State

SPORT_DEFAULT = 49152  # the first ephemeral port, for a flow that names none


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a connection, after DNAT."""

    source: Address
    destination: Address
    protocol: int
    sport: int = SPORT_DEFAULT
    dport: int = 0
    icmp_type: int = 8
    icmp_code: int = 0
    original: tuple[Address, int] | None = None  # destination before DNAT
    hairpin: bool = False  # to itself through a Service


@dataclass(frozen=True, slots=True)
class Decision:
    """What one end says. `rule` counts from 0 in the policy's list; -1: none matched, the tier's end decided."""

    allow: bool
    tier: str = ""
    policy: str = ""
    rule: int | None = None
    reason: str = ""
    answer: Answer = "drop"
    logs: int = 0  # Log rules that matched before

    @property
    def verdict(self) -> str:
        return "allow" if self.allow else "deny"


@dataclass(frozen=True, slots=True)
class Verdict:
    egress: Decision
    ingress: Decision

    @property
    def allow(self) -> bool:
        return self.egress.allow and self.ingress.allow


class Judge(Protocol):
    """Policy of one endpoint in one direction."""

    def workload(self, key: str, direction: Direction, flow: Flow) -> Decision: ...

    def host(self, name: str, direction: Direction, flow: Flow, *, forwarded: bool) -> Decision: ...


NOT_POLICED = Decision(True, reason="not an endpoint")
OWN_ADDRESS = Decision(True, reason="own address: never leaves the pod")
OWN_NODE = Decision(True, reason="the pod's own node")
TO_OWN_NODE = Decision(True, reason="endpoint_to_host: Accept")
NOT_TO_OWN_NODE = Decision(False, reason="endpoint_to_host: Drop")


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a flow. `node` "" is unknown or outside."""

    workload: str = ""
    node: str = ""

    @property
    def is_host(self) -> bool:
        return bool(self.node) and not self.workload


OUTSIDE = Party()


class Places:
    """Who has which address."""

    def __init__(self, state: State) -> None:
        self.settings = state.settings
        self.names: dict[str, tuple[Address, ...]] = {}
        self.parties: dict[Address, Party] = {}
        self._hosts: dict[str, list[HostEndpoint]] = {}
        for host in sorted(state.hosts.values(), key=lambda one: one.name):
            self._hosts.setdefault(host.node, []).append(host)
            self._add("", host.addresses, Party(node=host.node))
        for node in state.nodes.values():
            self._add("", node.addresses, Party(node=node.name))
        replaced = {f"{one.namespace}/{one.pod}" for one in state.workloads.values() if one.pod}
        for pod in state.pods.values():
            key = f"{pod.namespace}/{pod.name}"
            if pod.node:
                self._add("", pod.node_addresses, Party(node=pod.node))
            if pod.host_network:
                self._add(key, pod.addresses or pod.node_addresses, Party(node=pod.node))
            elif not pod.finished and key not in replaced:
                self._add(key, pod.addresses, Party(key, pod.node))
        for workload in state.workloads.values():
            key = f"{workload.namespace}/{workload.pod or workload.name}"
            self._add(key, workload.addresses, Party(key, workload.node))

    def _add(self, name: str, addresses: tuple[Address, ...], party: Party) -> None:
        if name:
            self.names[name] = addresses
        for address in addresses:
            known = self.parties.get(address)
            if known is None or (party.workload and not known.workload):
                self.parties[address] = party

    def party(self, address: Address) -> Party:
        return self.parties.get(address, OUTSIDE)

    def host_endpoint(self, node: str, address: Address | None, *, only_wildcard: bool = False) -> str:
        """The host endpoint that polices a node's interface; "" if none does.

        A file does not say on which interface traffic arrives: the endpoint with this address, else the first one of
        an interface, else the one for all others ("*").
        """
        hosts = self._hosts.get(node, [])
        if not only_wildcard:
            for host in hosts:
                if not host.interface and address is not None and address in host.addresses:
                    return host.name
            for host in hosts:
                if host.interface != "*":
                    return host.name
        return next((host.name for host in hosts if host.interface == "*"), "")


def judge_flow(judge: Judge, places: Places, flow: Flow) -> Verdict:
    """Ask every station on the way; the first denial of an end is what that end says."""
    source, destination = places.party(flow.source), places.party(flow.destination)
    if source.workload and source.workload == destination.workload and not flow.hairpin:
        return Verdict(OWN_ADDRESS, OWN_ADDRESS)
    return Verdict(
        _egress(judge, places, flow, source, destination), _ingress(judge, places, flow, source, destination)
    )


def _egress(judge: Judge, places: Places, flow: Flow, source: Party, destination: Party) -> Decision:
    decision = NOT_POLICED
    if source.workload:
        decision = judge.workload(source.workload, EGRESS, flow)
    if decision.allow and source.node:
        inside = source.node == destination.node
        if inside and source.workload:
            return decision
        host = places.host_endpoint(source.node, flow.source, only_wildcard=inside)
        if host and not (inside and destination.is_host):
            passed = judge.host(host, EGRESS, flow, forwarded=bool(source.workload))
            decision = passed if source.is_host or not passed.allow else decision
    return decision


def _ingress(judge: Judge, places: Places, flow: Flow, source: Party, destination: Party) -> Decision:
    inside = bool(source.node) and source.node == destination.node
    decision = NOT_POLICED
    if destination.node and not inside:
        host = places.host_endpoint(destination.node, flow.destination)
        if host:
            decision = judge.host(host, INGRESS, flow, forwarded=bool(destination.workload))
    elif inside and destination.is_host and source.workload:
        decision = _to_own_node(judge, places, flow, destination)
    if not destination.workload or not decision.allow:
        return decision
    if inside and source.is_host:
        return OWN_NODE
    return judge.workload(destination.workload, INGRESS, flow)


def _to_own_node(judge: Judge, places: Places, flow: Flow, destination: Party) -> Decision:
    action = places.settings.endpoint_to_host
    if action != "Return":
        return TO_OWN_NODE if action == "Accept" else NOT_TO_OWN_NODE
    host = places.host_endpoint(destination.node, None, only_wildcard=True)
    return judge.host(host, INGRESS, flow, forwarded=False) if host else NOT_POLICED


def resolve(names: Mapping[str, tuple[Address, ...]], name: str, version: int | None) -> Address | None:
    """The address of a pod, of one family if that matters; None when it has none."""
    return next((one for one in names.get(name, ()) if version in (None, one.version)), None)
