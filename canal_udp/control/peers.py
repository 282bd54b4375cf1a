"""From leases to peers, their VTEPs and routes. Pure: equal input gives equal output, in sorted order.

Conflicts   Of two leases that overlap, the one created first counts and the other is a conflict: nobody takes a subnet
            from its owner by announcing it, or a wider one, later. Our own subnets are older than anything.
Not a peer  A lease with an address of ours (ourselves), one outside the overlay's network, one whose public address
            lies inside the overlay (its packets would be sent into the tunnel that carries them).
Direct      Peers on our own link may be reached without encapsulation: packets go to the host's port, the kernel has
            a route. So it is always for host-gw, else where the network asks for it.
Families    A subnet goes to the peer's public address of its own family when both nodes have one, as flannel does, else
            to that of the other. A subnet of a family that the overlay does not have is passed over.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType

from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.encap.forwarding import Route, Vtep, vtep_key
from canal_udp.encap.mtu import inner_mtu
from canal_udp.net import ENCAPS, TUNNELS, Address, Backend, Network, Tunnel, contains, covers, sort_key

MTU_LEARNED_S = 600.0  # RFC 8201 section 4: try the larger one again after 10 minutes
MTU_FLOOR = {4: 576, 6: 1280}  # a forged too-big message cannot make us send smaller packets than these
NO_MAC = bytes(6)


# ---- learned MTUs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LearnedMtu:
    mtu_bytes: int  # of the underlay path
    expires_s: float
    told: bool  # by the kernel, which can be asked whether it holds; else found out by trying


@dataclass(frozen=True, slots=True)
class LearnedMtus:
    """Underlay path MTUs that the kernel or a router told us, or that we found out, by peer address."""

    by_addr: Mapping[Address, LearnedMtu] = field(default_factory=lambda: MappingProxyType({}))

    def learn(self, addr: Address, mtu_bytes: int, now_s: float, *, told: bool) -> LearnedMtus:
        """Believe it for MTU_LEARNED_S, but never less than every path must carry."""
        learned = LearnedMtu(max(mtu_bytes, MTU_FLOOR[addr.version]), now_s + MTU_LEARNED_S, told)
        return LearnedMtus(MappingProxyType({**self.by_addr, addr: learned}))

    def confirm(self, addr: Address, kernel_mtu_bytes: int) -> LearnedMtus:
        """Without what the kernel told once and says no more: our own link was that narrow, maybe for a moment."""
        learned = self.by_addr.get(addr)
        if learned is None or not learned.told or kernel_mtu_bytes <= learned.mtu_bytes:
            return self
        return LearnedMtus(MappingProxyType({other: one for other, one in self.by_addr.items() if other != addr}))

    def forget_found(self) -> LearnedMtus:
        """Without what we found out by trying: the paths start at another link now."""
        kept = {addr: learned for addr, learned in self.by_addr.items() if learned.told}
        return LearnedMtus(MappingProxyType(kept))

    def expire(self, now_s: float) -> LearnedMtus:
        """Without what is too old; the same object if nothing is."""
        kept = {addr: learned for addr, learned in self.by_addr.items() if learned.expires_s > now_s}
        return self if len(kept) == len(self.by_addr) else LearnedMtus(MappingProxyType(kept))

    def mtu_of(self, addr: Address, underlay_mtu_bytes: int) -> int:
        learned = self.by_addr.get(addr)
        return underlay_mtu_bytes if learned is None else min(learned.mtu_bytes, underlay_mtu_bytes)

    @property
    def next_expiry_s(self) -> float | None:
        return min((learned.expires_s for learned in self.by_addr.values()), default=None)


# ---- peers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node as the data plane needs it."""

    lease: Lease
    addr4: Address | None  # underlay address for its IPv4 subnet; None: it has none, or cannot be reached
    addr6: Address | None  # ... for its IPv6 subnet

    @property
    def encap(self) -> Backend:
        return self.lease.encap

    def targets(self) -> Iterable[tuple[Network, Address, bytes]]:
        """Each subnet with the underlay address and inner destination MAC of its VTEP."""
        lease = self.lease
        if lease.subnet is not None and self.addr4 is not None:
            yield lease.subnet, self.addr4, _mac(lease, self.addr4)
        if lease.subnet6 is not None and self.addr6 is not None:
            yield lease.subnet6, self.addr6, _mac(lease, self.addr6)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A lease that is not used, and why."""

    lease: Lease
    problem: str


@dataclass(frozen=True, slots=True)
class PeerTable:
    peers: tuple[Peer, ...]
    conflicts: tuple[Conflict, ...]


def peer_table(leases: Iterable[Lease], own: Lease, network: NetworkConfig) -> PeerTable:
    """Sort out who is a peer; both parts in the order of their subnets."""
    peers: list[Peer] = []
    conflicts: list[Conflict] = []
    claimed = _Claimed(own)
    for lease in sorted(leases, key=lambda lease: (lease.created, lease.key)):
        if set(lease.public_ips) & set(own.public_ips) or (lease.key == own.key and lease.revision <= own.revision):
            continue  # ourselves, maybe with the address that we had when we wrote it
        peer = _reach(lease, own, network)
        problem = _unknown(lease) or _misplaced(lease, network) or claimed.problem(lease)
        if problem is None and not any(peer.targets()):
            problem = "no subnet or no underlay address of a family that this node has"
        if problem is None:
            claimed.add(lease)
            peers.append(peer)
        else:
            conflicts.append(Conflict(lease, problem))
    return PeerTable(
        tuple(sorted(peers, key=lambda peer: _order(peer.lease))),
        tuple(sorted(conflicts, key=lambda conflict: _order(conflict.lease))),
    )


def direct_candidates(table: PeerTable, network: NetworkConfig) -> tuple[tuple[Network, Address], ...]:
    """Subnets that the kernel shall have routes to if their peers are on our own link, with the peers' addresses."""
    return tuple(
        (prefix, addr)
        for peer in table.peers
        for prefix, addr, _ in peer.targets()
        if (network.direct_routing or peer.encap == "host-gw") and prefix.version == addr.version
    )


def peer_routes(
    leases: Iterable[Lease],
    own: Lease,
    network: NetworkConfig,
    underlay_mtu_bytes: int,
    learned: LearnedMtus = LearnedMtus(),
) -> tuple[tuple[Vtep, ...], tuple[Route, ...]]:
    """VTEPs and routes of all peers, for `Forwarding`; conflicts are in `peer_table`."""
    return table_routes(peer_table(leases, own, network), network, underlay_mtu_bytes, learned)


def table_routes(
    table: PeerTable,
    network: NetworkConfig,
    underlay_mtu_bytes: int,
    learned: LearnedMtus,
    direct: Set[Address] = frozenset(),
) -> tuple[tuple[Vtep, ...], tuple[Route, ...]]:
    """Lay out a peer table. One VTEP for each address and encapsulation, however many subnets it has.

    Arguments  direct: addresses that are on our own link, with routes of the kernel to their subnets.
    """
    candidates = frozenset(direct_candidates(table, network))
    vteps: dict[str, Vtep] = {}
    routes: list[Route] = []
    for peer in sorted(table.peers, key=lambda peer: peer.lease.revision):  # the last written lease knows the MAC
        for prefix, addr, mac in peer.targets():
            if addr in direct and (prefix, addr) in candidates:
                routes.append(Route(prefix, "host", "", local=False))
                continue
            if peer.encap not in TUNNELS:
                continue  # not on our link, or not yet
            vtep = _vtep(peer.encap, addr, mac, network, learned.mtu_of(addr, underlay_mtu_bytes))
            vteps[vtep_key(vtep)] = vtep
            routes.append(Route(prefix, "vtep", vtep_key(vtep), local=False))
    return (
        tuple(sorted(vteps.values(), key=lambda vtep: (vtep.addr.version, int(vtep.addr), vtep.encap))),
        tuple(sorted(routes, key=lambda route: sort_key(route.prefix))),
    )


def _unknown(lease: Lease) -> str | None:
    return None if lease.encap in ENCAPS else f"it is reached by {lease.encap}, which this node does not have"


def _vtep(encap: Tunnel, addr: Address, mac: bytes, network: NetworkConfig, path_mtu_bytes: int) -> Vtep:
    return Vtep(
        addr=addr,
        port=network.port_of(encap),
        mac=mac if encap == "vxlan" else NO_MAC,
        encap=encap,
        mtu_bytes=inner_mtu(encap, 4 if addr.version == 4 else 6, path_mtu_bytes),
        id=zlib.crc32(f"{addr}/{encap}".encode()),  # the same in every generation
    )


def _mac(lease: Lease, addr: Address) -> bytes:
    """The peer's device for an outer family; a node of ours has one for both."""
    first, second = (lease.vtep_mac, lease.vtep_mac6) if addr.version == 4 else (lease.vtep_mac6, lease.vtep_mac)
    return first or second or NO_MAC


def _reach(lease: Lease, own: Lease, network: NetworkConfig) -> Peer:
    """Choose the underlay address for each subnet, among the families that both nodes have."""
    addr4 = lease.public_ip if own.public_ip is not None else None
    addr6 = lease.public_ip6 if own.public_ip6 is not None else None
    return Peer(
        lease,
        (addr4 or addr6) if lease.subnet is not None and network.network is not None else None,
        (addr6 or addr4) if lease.subnet6 is not None and network.network6 is not None else None,
    )


def _misplaced(lease: Lease, network: NetworkConfig) -> str | None:
    for prefix in lease.prefixes:
        whole = network.network if prefix.version == 4 else network.network6
        if whole is not None and not covers(whole, prefix):
            return f"{prefix} is outside the network {whole}"
    for address in lease.public_ips:
        if contains(network.network, address) or contains(network.network6, address):
            return f"its public address {address} lies inside the overlay"
    return None


def _order(lease: Lease) -> tuple[int, int, int]:
    return sort_key(lease.prefixes[0])


class _Claimed:
    """Prefixes already given to someone, disjoint, found by bisection."""

    def __init__(self, own: Lease) -> None:
        self._ranges: dict[int, list[tuple[int, int, Lease]]] = {4: [], 6: []}
        self._own = own
        self.add(own)

    def add(self, lease: Lease) -> None:
        for prefix in lease.prefixes:
            insort(self._ranges[prefix.version], (*_range(prefix), lease), key=_start)

    def problem(self, lease: Lease) -> str | None:
        for prefix in lease.prefixes:
            holder = self._holder(prefix)
            if holder is self._own:
                return f"{prefix} overlaps our own subnet"
            if holder is not None:
                return f"{prefix} overlaps {holder.key}, which is older"
        return None

    def _holder(self, prefix: Network) -> Lease | None:
        """Who has the last range that starts before this one's end: no other can overlap, as they are disjoint."""
        low, high = _range(prefix)
        ranges = self._ranges[prefix.version]
        at = bisect_right(ranges, high, key=_start) - 1
        return ranges[at][2] if at >= 0 and ranges[at][1] >= low else None


def _range(prefix: Network) -> tuple[int, int]:
    return int(prefix.network_address), int(prefix.broadcast_address)


def _start(item: tuple[int, int, Lease]) -> int:
    return item[0]
