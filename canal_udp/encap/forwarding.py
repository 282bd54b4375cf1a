"""What the data plane shall know, decided by the node and laid out by `encap.fib`: peers' end points and routes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from canal_udp.net import Tunnel

RouteKind = Literal["pod", "host", "vtep", "reject"]

HOST_KEY = ""  # the key of the host port among the ports; a pod's is its endpoint name


@dataclass(frozen=True, slots=True)
class Vtep:
    """A peer's tunnel end point."""

    addr: IPv4Address | IPv6Address
    port: int
    mac: bytes  # 6 bytes; zeros for udp
    encap: Tunnel
    mtu_bytes: int  # largest inner packet
    id: int  # repeated in the data plane's events


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets for a prefix go, and so whose source addresses lie in it."""

    prefix: IPv4Network | IPv6Network
    kind: RouteKind
    key: str  # pod: endpoint name; vtep: vtep_key(); host, reject: ""
    local: bool  # this node's own subnet or address: a peer may send to it


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Everything that one snapshot is made of."""

    generation: int
    router4: IPv4Address | None  # source of our own ICMP errors; None: send none
    router6: IPv6Address | None
    mac: bytes
    vni: int
    mss_clamp: bool
    vteps: tuple[Vtep, ...]
    routes: tuple[Route, ...]


def vtep_key(vtep: Vtep) -> str:
    """How a route names a VTEP: one address may have one VTEP of each encapsulation."""
    return f"{vtep.addr}/{vtep.encap}"
