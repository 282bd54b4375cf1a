"""What the core wants to be true (goals), what it asks for (requests), and what it is told (events). Frozen values.

Structure  A goal is a wish, not a command. Whoever carries it out compares it with what is there and changes the
           difference, so it may be asked for again at any time; `key` says which of two goals takes the other's place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Literal

from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.store import LeaseSnapshot
from canal_udp.encap.forwarding import Forwarding
from canal_udp.encap.mtu import superpacket_segments
from canal_udp.endpoints import Endpoint
from canal_udp.net import Tunnel
from canal_udp.netfilter import Rules
from canal_udp.underlay import Underlay

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

HOST = ""  # name of the host's device; a pod's is its endpoint name


# ---- goals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sockets:
    """The underlay sockets of one encapsulation and family."""

    encap: Tunnel
    address: IPAddress
    port: int

    @property
    def key(self) -> str:
        return f"sockets {self.encap}{self.address.version}"


@dataclass(frozen=True, slots=True)
class Device:
    """A TUN, open, and a port of the data plane."""

    name: str  # HOST or the endpoint's
    ifname: str
    netns: str | None  # path; None: the host's
    mtu_bytes: int
    id: int  # repeated in events and flows

    @property
    def key(self) -> str:
        return f"device {self.name}"


@dataclass(frozen=True, slots=True)
class Link:
    """The state of a device as its namespace sees it."""

    name: str
    ifname: str
    netns: str | None
    mtu_bytes: int
    addresses: tuple[IPInterface, ...]
    routes: tuple[IPNetwork, ...]  # destinations reached straight through the device
    within: tuple[IPNetwork, ...] = ()  # an address in here that is not wanted is stale
    sysctls: tuple[tuple[str, str], ...] = ()  # path below /proc/sys, value
    txqlen: int = 10_000  # a TUN drops at its own queue's end, silently
    loopback_up: bool = False

    @property
    def gso_max_segs(self) -> int:
        """Segments of the largest superpacket that the pod's stack may hand over: what one message to a peer holds."""
        return superpacket_segments(self.mtu_bytes)

    @property
    def key(self) -> str:
        return f"link {self.name}"


@dataclass(frozen=True, slots=True)
class Direct:
    """Routes of the host's kernel to the subnets of those peers that are on our own link."""

    routes: tuple[tuple[IPNetwork, IPAddress], ...]  # subnet, the peer's address
    key: str = "direct"


@dataclass(frozen=True, slots=True)
class Published:
    """The tables that the data plane uses; the generation is given when they are published.

    policy   what the compiler made (policy.compiled.Compiled), the same object while nothing changed; None: no pod gets
             traffic yet.
    """

    forwarding: Forwarding
    policy: object = None
    closed: frozenset[str] = frozenset()  # endpoints that the policy does not mean: later ones of the same name
    key: str = "forwarding"


@dataclass(frozen=True, slots=True)
class File:
    """A file with exactly this text."""

    path: Path
    text: str
    mode: int

    @property
    def key(self) -> str:
        return f"file {self.path}"


Goal = Sockets | Device | Link | Direct | Rules | Published | File


# ---- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Do:
    """Make a goal true; answered by Done, Failed or something more telling."""

    goal: Goal


@dataclass(frozen=True, slots=True)
class Undo:
    """Take back what a goal made."""

    goal: Goal


@dataclass(frozen=True, slots=True)
class Release:
    """Free the addresses of an endpoint that is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the log."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: tuple[tuple[str, object], ...] = ()


Action = Do | Undo | Release | Log


def together(actions: Iterable[Action]) -> list[list[Action]]:
    """Return the actions in their order, as groups of which none needs another of its group: alike, with other keys."""
    groups: list[list[Action]] = []
    before: object = None
    for action in actions:
        kind = (type(action), type(action.goal)) if isinstance(action, Do | Undo) else type(action)
        if kind != before or kind is Log:
            groups.append([])
        groups[-1].append(action)
        before = kind
    return groups


# ---- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class UnderlaySeen:
    """What this host sends through now; None and why if nothing fits."""

    underlay: Underlay | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A goal is true."""

    goal: Goal


@dataclass(frozen=True, slots=True)
class Failed:
    """A goal could not be reached."""

    goal: Goal
    problem: str


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """Someone deleted, renamed or moved a device of ours."""

    name: str


@dataclass(frozen=True, slots=True)
class NamespaceGone:
    """An endpoint's namespace does not exist any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Attach:
    """An endpoint shall be there."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Detach:
    """An endpoint shall go."""

    name: str


@dataclass(frozen=True, slots=True)
class MtuLearned:
    """The path to a peer carries no larger outer packet."""

    address: IPAddress
    mtu_bytes: int
    told: bool = True  # by the kernel; else found out by trying


@dataclass(frozen=True, slots=True)
class MtuSeen:
    """What the kernel says now of a path about which it told us before."""

    address: IPAddress
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class RoutesSeen:
    """Peers whose underlay route leads into our own device."""

    recursive: frozenset[IPAddress]


@dataclass(frozen=True, slots=True)
class DirectSeen:
    """Peers that are on our own link, and have the kernel's routes now."""

    gateways: frozenset[IPAddress]


@dataclass(frozen=True, slots=True)
class NetworkKnown:
    """What all nodes agree on, as the store has it."""

    network: NetworkConfig


@dataclass(frozen=True, slots=True)
class LeaseHeld:
    """This node's subnet: acquired, renewed, or another one than before."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeasesSeen:
    """All leases of the network."""

    snapshot: LeaseSnapshot


@dataclass(frozen=True, slots=True)
class PolicyKnown:
    """Policies and pods as the compiler made them; see Published. endpoints: those of this node that it knew, by id."""

    policy: object
    endpoints: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """The store answers; or does not, or says no, and why."""

    problem: str = ""


Event = (
    Tick | UnderlaySeen | Done | Failed | DeviceGone | NamespaceGone | Attach | Detach | MtuLearned | MtuSeen
    | RoutesSeen | DirectSeen | NetworkKnown | LeaseHeld | LeasesSeen | PolicyKnown | StoreSeen
)  # fmt: skip
