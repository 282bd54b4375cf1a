"""The normal form: every kind of policy as tiers of ordered policies of rules, with sets of addresses by reference.

Place     made by lower.py, one object at a time, so that a change of one object lowers only that object; read by
          evaluate.py and the compiler. Nothing here looks at who is there: which endpoints a policy selects and which
          addresses a set holds is found by the selectors, through the label index.
Rule      all criteria that are given must hold. One rule of a file may become several; `index` is its place there.

              nets, not_nets     prefixes: in one of / in none of
              sets, not_sets     sets of addresses: in every / in none
              ports              numeric, or (address, protocol, port) in one of `port_sets`
              not_ports          neither numeric nor in one of `not_port_sets`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from canal_udp.net import Address, Network
from canal_udp.policy.cursor import NOWHERE, Where
from canal_udp.policy.model import (
    FIXED_TIERS,
    Action,
    Answer,
    Direction,
    EndpointPort,
    EndpointSlice,
    IcmpMatch,
    Node,
    PortRange,
    Settings,
    StagedAction,
    Tier,
)
from canal_udp.policy.selector import Selector, unique_id

Stage: TypeAlias = Literal["normal", "preDNAT", "doNotTrack"]

# ---- sets ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SelectorSet:
    """Addresses of endpoints, and prefixes of network sets, whose labels match."""

    selector: Selector

    @property
    def id(self) -> str:
        return self.selector.id


@dataclass(frozen=True, slots=True)
class PortSet:
    """(address, protocol, port) of endpoints that match and have a port of this name; protocol None = any."""

    selector: Selector
    protocol: int | None
    name: str

    @property
    def id(self) -> str:
        return unique_id("n", f"{self.selector.id},{self.protocol or ''},{self.name}")


@dataclass(frozen=True, slots=True)
class ServiceSet:
    """Addresses of a Service's endpoints, with their ports or without."""

    namespace: str
    name: str
    with_ports: bool

    @property
    def id(self) -> str:
        return unique_id("svc" if self.with_ports else "svcnoport", f"{self.namespace}/{self.name}")


@dataclass(frozen=True, slots=True)
class NodeSet:
    """Addresses of the nodes whose labels match."""

    selector: Selector

    @property
    def id(self) -> str:
        return unique_id("node", self.selector.canonical)


AddressSet: TypeAlias = SelectorSet | ServiceSet | NodeSet
PortedSet: TypeAlias = PortSet | ServiceSet

# ---- rules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    nets: tuple[Network, ...] = ()
    not_nets: tuple[Network, ...] = ()
    sets: tuple[AddressSet, ...] = ()
    not_sets: tuple[AddressSet, ...] = ()
    ports: tuple[PortRange, ...] = ()
    port_sets: tuple[PortedSet, ...] = ()
    not_ports: tuple[PortRange, ...] = ()
    not_port_sets: tuple[PortedSet, ...] = ()


ANY_SIDE = Side()


@dataclass(frozen=True, slots=True)
class Rule:
    action: Action
    index: int
    version: Literal[4, 6] | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: IcmpMatch | None = None
    not_icmp: IcmpMatch | None = None
    source: Side = ANY_SIDE
    destination: Side = ANY_SIDE
    never: str = ""  # why it can match nothing; it stays because people count rules
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules of a direction that it does not govern are None; governing with no rules is ()."""

    key: str
    tier: str
    order: float
    tie: str  # "name/namespace/kind": decides between equal orders
    selector: Selector
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    stage: Stage = "normal"
    forward: bool = False  # applyOnForward
    staged: StagedAction | None = None
    answer: Answer = "drop"
    where: Where = NOWHERE
    broken: str = ""

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        return self.ingress if direction == "ingress" else self.egress

    @property
    def sort_key(self) -> tuple[float, str]:
        return self.order, self.tie


@dataclass(frozen=True, slots=True)
class Profile:
    """Last resort of an endpoint, and labels for it."""

    name: str
    labels: Mapping[str, str]
    ingress: tuple[Rule, ...]
    egress: tuple[Rule, ...]
    where: Where = NOWHERE

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        return self.ingress if direction == "ingress" else self.egress


# ---- who is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's interface, or a host's. `parents` are the profiles from which it inherits labels, first one first."""

    key: str  # "namespace/pod", or the name of the host endpoint
    host: bool
    labels: Mapping[str, str]
    profiles: tuple[str, ...]  # in the order in which they are asked
    parents: tuple[str, ...]
    addresses: tuple[Address, ...]
    ports: tuple[EndpointPort, ...] = ()
    node: str = ""
    closed: str = ""  # why it gets no traffic at all
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class PrefixSet:
    """A NetworkSet or GlobalNetworkSet: prefixes that selectors find by its labels."""

    key: str
    labels: Mapping[str, str]
    parents: tuple[str, ...]
    nets: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class World:
    """Everything lowered. Tiers in order of evaluation, policies of a tier too."""

    tiers: tuple[Tier, ...]
    policies: Mapping[str, tuple[Policy, ...]]  # by name of the tier
    profiles: Mapping[str, Profile]
    endpoints: Mapping[str, Endpoint]
    hosts: Mapping[str, Endpoint]
    prefix_sets: Mapping[str, PrefixSet]
    nodes: Mapping[str, Node] = field(default_factory=dict)
    slices: tuple[EndpointSlice, ...] = ()
    settings: Settings = field(default_factory=Settings)


def sort_tiers(tiers: Mapping[str, Tier], named: set[str]) -> tuple[Tier, ...]:
    """Order of evaluation; tiers that policies name and nobody defined come last and deny."""
    known = {**tiers, **{name: tier for name, tier in FIXED_TIERS.items() if name not in tiers}}
    ghosts = {name: Tier(name) for name in named - known.keys()}
    return (*sorted(known.values(), key=_tier_key), *sorted(ghosts.values(), key=_tier_key))


def _tier_key(tier: Tier) -> tuple[float, str]:
    return math.inf if tier.order is None else tier.order, tier.name
