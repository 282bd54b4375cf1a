"""What the files say: one frozen class per kind, with the API servers' defaults filled in.

Place     made by the parse modules; read by normal.py (one form for all kinds) and reference.py (straight from here).
Broken    a rule or policy that cannot be understood stays, with the reason: it loses every permission that it might
          have given and keeps every protection. An Allow rule then matches nothing, a Deny or Pass rule denies its
          whole direction; a policy whose scope cannot be read applies to all that it could have meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Literal, TypeAlias

from canal_udp.net import Address, Network
from canal_udp.policy.cursor import NOWHERE, Where
from canal_udp.policy.selector import Selector

Direction: TypeAlias = Literal["ingress", "egress"]
Action: TypeAlias = Literal["Allow", "Deny", "Pass", "Log"]
Answer: TypeAlias = Literal["drop", "reject"]  # what the sender of a denied packet learns
StagedAction: TypeAlias = Literal["Set", "Delete", "Learn", "Ignore"]

INGRESS: Direction = "ingress"
EGRESS: Direction = "egress"
DIRECTIONS: tuple[Direction, Direction] = (INGRESS, EGRESS)

ICMP, TCP, UDP, ICMP6, SCTP, UDPLITE = 1, 6, 17, 58, 132, 136
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "ICMP": ICMP, "ICMPv6": ICMP6, "SCTP": SCTP, "UDPLite": UDPLITE}
WITH_PORTS = (TCP, UDP, SCTP)

NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX = "pcns.", "pcsa."
INHERITED_PREFIXES = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)  # only profiles may give such labels

DENY_ANNOTATION = "canal.io/deny"  # drop (default) or reject


@dataclass(frozen=True, slots=True)
class PortRange:
    """Both ends belong to it."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}:{self.last}"


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """A port with a name, of one endpoint."""

    name: str
    protocol: int
    port: int


# ---- who is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Mapping[str, str]
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    namespace: str
    name: str
    labels: Mapping[str, str]
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    labels: Mapping[str, str]
    addresses: tuple[Address, ...]
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class Pod:
    namespace: str
    name: str
    labels: Mapping[str, str]
    addresses: tuple[Address, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    node: str = ""
    node_addresses: tuple[Address, ...] = ()
    service_account: str = "default"
    host_network: bool = False
    finished: bool = False  # it has no interface any more
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Where a Service leads to. A port of None is no port."""

    namespace: str
    name: str
    service: str
    addresses: tuple[Address, ...]
    ports: tuple[tuple[int, int | None], ...]  # protocol, port
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class WorkloadEndpoint:
    namespace: str
    name: str
    labels: Mapping[str, str]
    pod: str = ""
    node: str = ""
    orchestrator: str = ""
    interface: str = ""
    addresses: tuple[Address, ...] = ()
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    service_account: str = ""
    spoofable: tuple[Network, ...] = ()  # allowSpoofedSourcePrefixes
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class HostEndpoint:
    name: str
    labels: Mapping[str, str]
    node: str
    interface: str = ""  # "*": every interface without a host endpoint of its own
    addresses: tuple[Address, ...] = ()
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class NetworkSet:
    """A named set of prefixes with labels; namespace "" is a GlobalNetworkSet."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    nets: tuple[Network, ...]
    where: Where = NOWHERE


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All must hold; nothing matches everything."""

    labels: tuple[tuple[str, str], ...] = ()
    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class IpBlock:
    cidr: Network
    excepts: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class KubePeer:
    """A block alone, or selectors: pods None = all of them, namespaces None = the policy's own."""

    block: IpBlock | None = None
    pods: LabelSelector | None = None
    namespaces: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class KubePort:
    """`port` None: every port; a name is looked up at the destination."""

    protocol: int
    port: PortRange | str | None = None


@dataclass(frozen=True, slots=True)
class KubeRule:
    """Allows what one of the peers and one of the ports match; none of them = any."""

    peers: tuple[KubePeer, ...] = ()
    ports: tuple[KubePort, ...] = ()
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class KubePolicy:
    namespace: str
    name: str
    selector: LabelSelector
    types: frozenset[Direction]
    ingress: tuple[KubeRule, ...] = ()
    egress: tuple[KubeRule, ...] = ()
    staged: StagedAction | None = None
    answer: Answer = "drop"
    where: Where = NOWHERE
    broken: str = ""

    @property
    def kind(self) -> str:
        return "KubernetesNetworkPolicy" if self.staged is None else "StagedKubernetesNetworkPolicy"


@dataclass(frozen=True, slots=True)
class PodsPeer:
    """pods None: all of the namespaces."""

    namespaces: LabelSelector
    pods: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class ClusterPeer:
    """Exactly one of the three is given."""

    pods: PodsPeer | None = None
    nets: tuple[Network, ...] = ()
    nodes: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class ClusterPort:
    """A port name goes with the protocol that the destination declares for it."""

    protocol: int | None = None
    port: PortRange | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterRule:
    action: Action
    peers: tuple[ClusterPeer, ...] = ()
    ports: tuple[ClusterPort, ...] = ()
    name: str = ""
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """ClusterNetworkPolicy, or AdminNetworkPolicy and BaselineAdminNetworkPolicy that came before it."""

    kind: str
    name: str
    tier: Literal["Admin", "Baseline"]
    priority: int
    subject: PodsPeer
    ingress: tuple[ClusterRule, ...] = ()
    egress: tuple[ClusterRule, ...] = ()
    answer: Answer = "drop"
    where: Where = NOWHERE
    broken: str = ""

    namespace = ""


# ---- Calico ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tier:
    name: str
    order: float | None = None
    default_action: Literal["Deny", "Pass"] = "Deny"
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class IcmpMatch:
    type: int | None = None
    code: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    names: tuple[str, ...] = ()
    selector: Selector | None = None


@dataclass(frozen=True, slots=True)
class Entity:
    """One end of a rule: all that is given must hold."""

    nets: tuple[Network, ...] = ()
    not_nets: tuple[Network, ...] = ()
    selector: Selector | None = None
    not_selector: Selector | None = None
    namespace_selector: Selector | None = None
    service_accounts: ServiceAccountMatch | None = None
    service: tuple[str, str] | None = None  # namespace ("" = the policy's), name
    ports: tuple[PortRange | str, ...] = ()
    not_ports: tuple[PortRange | str, ...] = ()


ANYWHERE = Entity()


@dataclass(frozen=True, slots=True)
class CalicoRule:
    action: Action
    ip_version: Literal[4, 6] | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: IcmpMatch | None = None
    not_icmp: IcmpMatch | None = None
    source: Entity = ANYWHERE
    destination: Entity = ANYWHERE
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class CalicoPolicy:
    """NetworkPolicy, or GlobalNetworkPolicy when the namespace is ""; staged ones too."""

    namespace: str
    name: str
    tier: str = "default"
    order: float | None = None
    selector: Selector | None = None
    namespace_selector: Selector | None = None
    service_account_selector: Selector | None = None
    types: frozenset[Direction] = frozenset((INGRESS,))
    ingress: tuple[CalicoRule, ...] = ()
    egress: tuple[CalicoRule, ...] = ()
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    staged: StagedAction | None = None
    answer: Answer = "drop"
    where: Where = NOWHERE
    broken: str = ""

    @property
    def kind(self) -> str:
        return f"{'Staged' if self.staged else ''}{'' if self.namespace else 'Global'}NetworkPolicy"


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)  # labelsToApply
    ingress: tuple[CalicoRule, ...] = ()
    egress: tuple[CalicoRule, ...] = ()
    where: Where = NOWHERE
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Failsafe:
    """Traffic of a host that no policy can cut off."""

    protocol: int
    port: int
    net: Network | None = None


def _failsafes(protocol: int, *ports: int) -> tuple[Failsafe, ...]:
    return tuple(Failsafe(protocol, port) for port in ports)


@dataclass(frozen=True, slots=True)
class Settings:
    """Calico's FelixConfiguration, as far as verdicts depend on it."""

    failsafe_inbound: tuple[Failsafe, ...] = (
        *_failsafes(TCP, 22),
        *_failsafes(UDP, 68),
        *_failsafes(TCP, 179, 2379, 2380, 5473, 6443, 6666, 6667),
    )
    failsafe_outbound: tuple[Failsafe, ...] = (
        *_failsafes(UDP, 53, 67),
        *_failsafes(TCP, 179, 2379, 2380, 5473, 6443, 6666, 6667),
    )
    endpoint_to_host: Literal["Drop", "Return", "Accept"] = "Drop"  # pod to a process of its own node
    where: Where = NOWHERE


CALICO_DEFAULTS = Settings()


Policy: TypeAlias = KubePolicy | ClusterPolicy | CalicoPolicy
Object: TypeAlias = (
    Namespace
    | ServiceAccount
    | Node
    | Pod
    | EndpointSlice
    | WorkloadEndpoint
    | HostEndpoint
    | NetworkSet
    | KubePolicy
    | ClusterPolicy
    | Tier
    | CalicoPolicy
    | Profile
    | Settings
)

# ---- everything ------------------------------------------------------------------------------------------------------

DEFAULT_TIER, ADMIN_TIER, BASELINE_TIER = "default", "kube-admin", "kube-baseline"
# The three tiers that are always there. Their order and action are fixed.
FIXED_TIERS = {
    ADMIN_TIER: Tier(ADMIN_TIER, 1_000, "Pass"),
    DEFAULT_TIER: Tier(DEFAULT_TIER, 1_000_000, "Deny"),
    BASELINE_TIER: Tier(BASELINE_TIER, 10_000_000, "Pass"),
}
KUBE_POLICY_ORDER = 1_000
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class State:
    """All objects of a cluster; keys are "namespace/name", or the name of what lies in no namespace."""

    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    service_accounts: Mapping[str, ServiceAccount] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    slices: Mapping[str, EndpointSlice] = field(default_factory=dict)
    workloads: Mapping[str, WorkloadEndpoint] = field(default_factory=dict)
    hosts: Mapping[str, HostEndpoint] = field(default_factory=dict)
    sets: Mapping[str, NetworkSet] = field(default_factory=dict)
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    settings: Settings = CALICO_DEFAULTS


def namespace_labels(state: State, name: str) -> dict[str, str]:
    """The labels of a namespace with the one that the API server gives to each."""
    namespace = state.namespaces.get(name)
    return {**(namespace.labels if namespace else {}), NAMESPACE_NAME_LABEL: name}


def policy_key(policy: Policy) -> str:
    """`Kind:namespace/name`, as flows and verdicts name a policy."""
    name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
    return f"{policy.kind}:{name}"
