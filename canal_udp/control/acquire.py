"""Getting and keeping a subnet: pure plans, and the two loops that carry them out against a store.

Order        flannel's: the lease with our public IP, else the subnet we had before, else one at random of the first
             CANDIDATES_MAX free ones.
Invariants   Every write compares the revision that the plan was made from; whatever is beaten is planned anew from a
             fresh list. A key with another node's public IP is never written. Keys alone do not exclude overlaps (two
             subnet lengths, or the halves of two dual-stack leases), so after a new lease the list is read once more:
             of two that overlap the one created first stays, the other is given back. Both sides see the same order.
Reservation  A lease without expiry stays without expiry, whoever renews it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig, NetworkT, Pool
from canal_udp.control.store import LeaseSnapshot, Store
from canal_udp.errors import LeaseError, LeaseLost, StoreConflict
from canal_udp.net import Backend, Network, any_overlap

CANDIDATES_MAX = 100
ATTEMPTS_MAX = 200  # beaten that often, someone else got a subnet each time; the caller backs off and comes again


@dataclass(frozen=True, slots=True)
class Claim:
    """What this node writes into its lease."""

    public_ip: IPv4Address | None
    public_ip6: IPv6Address | None = None
    encap: Backend = "udp"
    vtep_mac: bytes | None = None
    vtep_mac6: bytes | None = None
    node: str = ""
    vni: int = 1
    data: str = ""

    def lease(self, subnet: IPv4Network | None, subnet6: IPv6Network | None) -> Lease:
        return Lease(
            subnet,
            subnet6,
            self.public_ip,
            self.public_ip6,
            encap=self.encap,
            vtep_mac=self.vtep_mac if self.encap == "vxlan" else None,
            vtep_mac6=self.vtep_mac6 if self.encap == "vxlan" else None,
            node=self.node,
            vni=self.vni,
            data=self.data,
        )

    def onto(self, lease: Lease) -> Lease:
        """Our attributes on the subnet, revision and life time of a lease."""
        ours = self.lease(lease.subnet, lease.subnet6)
        return replace(ours, revision=lease.revision, created=lease.created, expires_at=lease.expires_at)


def owns(claim: Claim | Lease, lease: Lease) -> bool:
    """Is this lease the node's? The public IPv4 address says it, or the IPv6 one of a node that has no other."""
    if claim.public_ip is not None:
        return lease.public_ip == claim.public_ip
    return lease.public_ip is None and lease.public_ip6 == claim.public_ip6


@dataclass(frozen=True, slots=True)
class Previous:
    """The subnets that subnet.env says we had."""

    subnet: IPv4Network | None = None
    subnet6: IPv6Network | None = None


# ---- plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """Renew this lease, which is ours already."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Create:
    lease: Lease


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete this lease of ours, it does not fit the network any more; then plan again."""

    lease: Lease


Step: TypeAlias = Take | Create | Discard


def plan_acquire(
    known: LeaseSnapshot, claim: Claim, network: NetworkConfig, previous: Previous, rng: random.Random
) -> Step:
    """The next step towards a lease; LeaseError when no subnet is left."""
    own = sorted((lease for lease in known.leases if owns(claim, lease)), key=lambda lease: lease.created)
    for lease in own:
        if _fits(lease, network) and older_rival(known, lease) is None:
            return Take(claim.onto(lease))
    for lease in own:
        if lease.expires_at is not None:  # a reservation is an administrator's: not ours to delete
            return Discard(lease)
    taken = tuple(_taken(known))
    subnet = _choose(network.pool, previous.subnet, taken, rng)
    subnet6 = _choose(network.pool6, previous.subnet6, taken, rng)
    return Create(claim.lease(subnet, subnet6))


def plan_keep(known: LeaseSnapshot, claim: Claim, held: Lease) -> Take | Create:
    """What to do about a lease of ours that is not as we left it: LeaseLost if someone else has the subnet.

    Gone but free: take the same subnet again before anyone gives it up. Written by us or for us: write over that.
    """
    for lease in known.leases:
        if lease.key == held.key:
            if not (owns(claim, lease) or owns(held, lease)):
                raise LeaseLost(f"{held.key} now belongs to {_owner(lease)}")
            return Take(claim.onto(lease))
    if any(entry.key == held.key for entry in known.bad):
        raise LeaseLost(f"{held.key} was overwritten with something that is no lease")
    for lease in known.leases:
        if any_overlap(lease.prefixes, held.prefixes):
            raise LeaseLost(f"{held.key} expired and {lease.key} of {_owner(lease)} covers it")
    return Create(claim.onto(held))


def older_rival(known: LeaseSnapshot, lease: Lease) -> Lease | None:
    """Another lease that overlaps this one and was there first."""
    for other in known.leases:
        if other.key != lease.key and other.created < lease.created and any_overlap(other.prefixes, lease.prefixes):
            return other
    return None


def free_subnets(pool: Pool[NetworkT], taken: Iterable[Network], limit: int = CANDIDATES_MAX) -> list[NetworkT]:
    """The lowest subnets of a pool that overlap nothing taken, at most `limit`.

    Cost     O(taken log taken + limit): it steps over each taken range, however large the pool.
    """
    version, bits = pool.network.version, pool.network.max_prefixlen - pool.subnet_len
    ranges: list[tuple[int, int]] = sorted(
        (int(p.network_address) >> bits, int(p.broadcast_address) >> bits) for p in taken if p.version == version
    )
    make = type(pool.network)
    free: list[NetworkT] = []
    at, end = int(pool.first.network_address) >> bits, int(pool.last.network_address) >> bits
    for low, high in [*ranges, (end + 1, end + 1)]:
        while at < min(low, end + 1) and len(free) < limit:
            free.append(make((at << bits, pool.subnet_len)))
            at += 1
        at = max(at, high + 1)
    return free


def _choose(
    pool: Pool[NetworkT] | None, previous: NetworkT | None, taken: Sequence[Network], rng: random.Random
) -> NetworkT | None:
    if pool is None:
        return None
    if previous is not None and pool.fits(previous) and not any_overlap([previous], taken):
        return previous
    free = free_subnets(pool, taken)
    if not free:
        raise LeaseError(f"out of subnets: all {len(pool)} of {pool.network} are leased")
    return rng.choice(free)


def _taken(known: LeaseSnapshot) -> Iterable[Network]:
    for lease in known.leases:
        yield from lease.prefixes
    for entry in known.bad:
        yield from entry.prefixes


def _fits(lease: Lease, network: NetworkConfig) -> bool:
    fits4 = network.pool.fits(lease.subnet) if network.pool else lease.subnet is None
    fits6 = network.pool6.fits(lease.subnet6) if network.pool6 else lease.subnet6 is None
    return fits4 and fits6


def _owner(lease: Lease) -> str:
    return " ".join(str(part) for part in (lease.node, *lease.public_ips) if part)


# ---- loops -----------------------------------------------------------------------------------------------------------


async def acquire(
    store: Store,
    claim: Claim,
    network: NetworkConfig,
    previous: Previous,
    ttl_s: float,
    rng: random.Random,
) -> Lease:
    """Get a lease.

    Raises   LeaseError when there is no subnet; StoreUnavailable when the store went away: call again, what was
             written before is found by its public IP.
    """
    for _ in range(ATTEMPTS_MAX):
        step = plan_acquire(await store.list_leases(), claim, network, previous, rng)
        lease = await _carry_out(store, step, ttl_s)
        if lease is not None:
            return lease
        if isinstance(step, Discard):  # keep the addresses of the family that still fits
            gone = step.lease
            previous = Previous(gone.subnet or previous.subnet, gone.subnet6 or previous.subnet6)
    raise LeaseError(f"max retries reached trying to acquire a subnet ({ATTEMPTS_MAX})")


async def keep(store: Store, claim: Claim, held: Lease, ttl_s: float) -> Lease:
    """Renew a lease, or take it again; LeaseLost when it is another's now, StoreUnavailable when nobody knows."""
    step: Take | Create = Take(claim.onto(held))
    for _ in range(ATTEMPTS_MAX):
        lease = await _carry_out(store, step, ttl_s)
        if lease is not None:
            return lease
        step = plan_keep(await store.list_leases(), claim, held)
    raise LeaseLost(f"{held.key} is written by someone else all the time")


async def _carry_out(store: Store, step: Step, ttl_s: float) -> Lease | None:
    """The lease, or None when there is none yet or someone else was first: plan again."""
    try:
        match step:
            case Discard(lease):
                await store.delete_lease(lease, lease.revision)
                return None
            case Take(lease):
                return await store.renew_lease(lease, None if lease.expires_at is None else ttl_s)
            case Create(lease):
                lease = await store.create_lease(lease, ttl_s)
        if older_rival(await store.list_leases(), lease) is not None:
            await store.delete_lease(lease, lease.revision)
            return None
    except (StoreConflict, LeaseLost):
        return None
    return lease
