"""What the data plane tells about itself, and frames for it in tests: plain values, readable without the C library."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class PortStats:
    """One port: packets are wire packets; drops are of packets that came in here."""

    index: int
    kind: str  # "pod", "host", "underlay"
    name: str  # pod: endpoint name; host: "host"; underlay: "vxlan4", "udp6" ...
    id: int
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    drops: int
    flows: int
    gso_off: bool


@dataclass(frozen=True, slots=True)
class Flow:
    """One conntrack entry; (original, reply) where there are two."""

    src: Address
    dst: Address
    proto: int
    sport: int
    dport: int
    state: str
    verdict: str
    rules: tuple[int, int]  # of egress, of ingress; 0: that end has no policy here
    came_from: str  # "pod default/a", "host", "vtep 192.0.2.7/vxlan"
    goes_to: str
    packets: tuple[int, int]
    bytes: tuple[int, int]
    generation: int
    age_ms: int
    idle_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Note:
    """A flow that policy denied, or that a rule asked to log; times are of the clock that `Dataplane.notes` tells."""

    src: Address
    dst: Address
    proto: int
    sport: int
    dport: int
    icmp_type: int
    icmp_code: int
    verdict: str
    reject: bool  # the sender was told
    end: str  # "egress" or "ingress": who denied
    rules: tuple[int, int]  # of egress, of ingress; 0: that end has no policy here, or was not asked
    logs: tuple[int, int]  # the last rule before it that asked to log
    came_from: str
    packets: int
    bytes: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Judged:
    """struct canal_judgement: what the policy in force says of a flow."""

    allow: bool
    reject: bool
    rules: tuple[int, int]  # of egress, of ingress; 0: that end has no policy here, or was not asked


@dataclass(frozen=True, slots=True)
class Event:
    """Something the data plane found out: "mtu", "gso_fallback", "port_error", "lost", "stalled"."""

    kind: str
    addr: Address | None
    id: int
    value: int
    port: int


@dataclass(frozen=True, slots=True)
class Status:
    """struct canal_status."""

    generation: int
    published: int
    retired: int
    running: int
    ct_entries: int
    ct_max: int
    frag_entries: int
    ports: int
    queued: int
    gso_off: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What one read brings or one write carries: at a TUN virtio_net_hdr + IP packet, at a socket the UDP payload."""

    port: int
    data: bytes
    gso_size: int = 0  # underlay only, as all that follows
    tos: int = 0
    addr: Address | None = None
    udp_port: int = 0
