"""Getting and keeping a subnet: flannel's order of preference, without its races."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_udp.control.acquire import (
    CANDIDATES_MAX,
    Claim,
    Create,
    Discard,
    Previous,
    Take,
    acquire,
    free_subnets,
    keep,
    owns,
    plan_acquire,
    plan_keep,
)
from canal_udp.control.lease import Lease
from canal_udp.control.memory import MemoryStore
from canal_udp.control.network import NetworkConfig, Pool
from canal_udp.control.store import BadEntry, LeaseSnapshot
from canal_udp.errors import LeaseError, LeaseLost

NETWORK = NetworkConfig.make(IPv4Network("10.1.0.0/16"))
SMALL = NetworkConfig.make(IPv4Network("10.1.0.0/22"))  # 10.1.1.0, .2.0, .3.0
DUAL = NetworkConfig.make(IPv4Network("10.1.0.0/16"), IPv6Network("fd00::/48"))
ME = Claim(IPv4Address("192.0.2.1"), node="me")
YOU = Claim(IPv4Address("192.0.2.2"), node="you")
NOTHING = LeaseSnapshot(0, ())
TTL_S = 3600.0


def subnet(n: int, length: int = 24) -> IPv4Network:
    return IPv4Network((10 << 24 | 1 << 16 | n << 8, length))


def subnet6(n: int) -> IPv6Network:
    return IPv6Network(f"fd00:0:0:{n:x}::/64")


def held(
    claim: Claim, prefix: IPv4Network, prefix6: IPv6Network | None = None, *, revision: int = 5, **changes: object
) -> Lease:
    lease = replace(claim.lease(prefix, prefix6), revision=revision, created=revision, expires_at=1e9)
    return replace(lease, **changes)  # type: ignore[arg-type]


def known(*leases: Lease, bad: tuple[BadEntry, ...] = ()) -> LeaseSnapshot:
    return LeaseSnapshot(99, tuple(leases), bad)


def plan(
    snapshot: LeaseSnapshot,
    claim: Claim = ME,
    network: NetworkConfig = NETWORK,
    previous: Previous | None = None,
    seed: int = 1,
) -> Take | Create | Discard:
    return plan_acquire(snapshot, claim, network, previous or Previous(), random.Random(seed))


# ---- order of preference ---------------------------------------------------------------------------------------------


def test_same_public_ip_is_taken_again_with_new_attributes() -> None:
    old = held(ME, subnet(7), node="old name")
    step = plan(known(old, held(YOU, subnet(8))), previous=Previous(subnet(9)))
    assert step == Take(replace(old, node="me"))


def test_previous_subnet_when_the_public_ip_changed() -> None:
    assert plan(known(held(YOU, subnet(8))), previous=Previous(subnet(9))) == Create(ME.lease(subnet(9), None))


@pytest.mark.parametrize(
    "previous",
    [
        pytest.param(subnet(8), id="leased by another"),
        pytest.param(subnet(8, 25), id="of another length"),
        pytest.param(subnet(0), id="before SubnetMin"),
        pytest.param(IPv4Network("10.9.1.0/24"), id="outside the network"),
    ],
)
def test_a_previous_subnet_that_will_not_do_is_ignored(previous: IPv4Network) -> None:
    step = plan(known(held(YOU, subnet(8))), previous=Previous(previous))
    assert isinstance(step, Create)
    assert step.lease.subnet != previous
    assert NETWORK.pool is not None
    assert NETWORK.pool.fits(step.lease.subnet)


@pytest.mark.parametrize(
    "lease",
    [
        pytest.param(held(ME, subnet(7, 25)), id="another length"),
        pytest.param(held(ME, subnet(0)), id="the first subnet"),
        pytest.param(held(ME, subnet(7), subnet6(7)), id="IPv6 is off now"),
    ],
)
def test_our_lease_that_does_not_fit_the_network_is_given_back(lease: Lease) -> None:
    assert plan(known(lease)) == Discard(lease)


def test_our_lease_under_an_older_one_is_given_back() -> None:
    ours = held(ME, subnet(7), revision=9)
    assert plan(known(held(YOU, subnet(4, 22), revision=3), ours)) == Discard(ours)
    assert plan(known(held(YOU, subnet(4, 22), revision=10), ours)) == Take(replace(ours, node="me"))


def test_a_reservation_is_taken_as_it_is_and_never_discarded() -> None:
    reserved = held(ME, subnet(7), expires_at=None)
    assert plan(known(reserved)) == Take(reserved)
    misfit = held(ME, subnet(7, 25), expires_at=None)
    step = plan(known(misfit))
    assert isinstance(step, Create)
    assert step.lease.subnet != subnet(7)


def test_a_reservation_of_another_is_not_free() -> None:
    others = [held(YOU, subnet(n), expires_at=None) for n in (1, 2)]
    assert plan(known(*others), network=SMALL) == Create(ME.lease(subnet(3), None))


def test_a_lease_that_nobody_understands_is_not_free_either() -> None:
    bad = BadEntry("10.1.1.0-24", "not valid JSON", 4), BadEntry("nonsense", "is not the name of a lease", 5)
    step = plan(known(held(YOU, subnet(2)), bad=bad), network=SMALL)
    assert step == Create(ME.lease(subnet(3), None))


def test_out_of_subnets() -> None:
    others = [held(YOU, subnet(n)) for n in (1, 2, 3)]
    with pytest.raises(LeaseError, match=r"out of subnets: all 3 of 10\.1\.0\.0/22 are leased"):
        plan(known(*others), network=SMALL)


def test_the_choice_is_random_among_the_first_hundred_and_repeats_with_its_seed() -> None:
    def pick(seed: int) -> IPv4Network | None:
        step = plan(NOTHING, seed=seed)
        assert isinstance(step, Create)
        return step.lease.subnet

    picks = {pick(seed) for seed in range(300)}
    assert pick(7) == pick(7)
    assert picks <= {subnet(n) for n in range(1, CANDIDATES_MAX + 1)}
    assert len(picks) > CANDIDATES_MAX // 2


def test_dual_stack_families_are_chosen_independently() -> None:
    step = plan(known(held(YOU, subnet(8), subnet6(9))), network=DUAL, previous=Previous(subnet(8), subnet6(8)))
    assert isinstance(step, Create)
    assert step.lease.subnet != subnet(8)
    assert step.lease.subnet6 == subnet6(8)


@pytest.mark.parametrize(
    ("claim", "other", "same"),
    [
        pytest.param(ME, ME.lease(subnet(1), None), True, id="same IPv4 address"),
        pytest.param(ME, YOU.lease(subnet(1), None), False, id="another"),
        pytest.param(
            replace(ME, public_ip6=IPv6Address("2001:db8::1")), YOU.lease(subnet(1), None), False, id="IPv4 decides"
        ),
        pytest.param(
            Claim(None, IPv6Address("2001:db8::1")),
            Lease(None, subnet6(1), None, IPv6Address("2001:db8::1")),
            True,
            id="IPv6 only, same",
        ),
        pytest.param(
            Claim(None, IPv6Address("2001:db8::1")),
            Lease(None, subnet6(1), None, IPv6Address("2001:db8::2")),
            False,
            id="IPv6 only, another",
        ),
    ],
)
def test_whose_lease(claim: Claim, other: Lease, same: bool) -> None:
    assert owns(claim, other) is same


def slow_free(pool: Pool[IPv4Network], taken: list[IPv4Network], limit: int) -> list[IPv4Network]:
    return [candidate for candidate in pool if not any(candidate.overlaps(other) for other in taken)][:limit]


prefixes = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(int(IPv4Address("10.0.240.0")), int(IPv4Address("10.1.16.255"))),
    st.integers(16, 30),
)


@given(st.integers(20, 24), st.integers(2, 5), st.lists(prefixes, max_size=12), st.integers(0, 8))
def test_free_subnets_against_the_slow_twin(length: int, extra: int, taken: list[IPv4Network], limit: int) -> None:
    pool = NetworkConfig.make(IPv4Network(("10.1.0.0", length)), subnet_len=length + extra).pool
    assert pool is not None
    assert free_subnets(pool, taken, limit) == slow_free(pool, taken, limit)


def test_free_subnets_of_a_huge_pool_full_of_leases_is_quick() -> None:
    pool6 = NetworkConfig.make(None, IPv6Network("fd00::/16")).pool6
    assert pool6 is not None
    taken = [IPv6Network((int(pool6.first.network_address) + (n << 64), 64)) for n in range(5000)]
    assert free_subnets(pool6, taken, 1)[0] == IPv6Network((int(pool6.first.network_address) + (5000 << 64), 64))


# ---- keeping it ------------------------------------------------------------------------------------------------------

OURS = held(ME, subnet(7))


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        pytest.param(known(replace(OURS, revision=8)), Take(replace(OURS, revision=8)), id="written for us meanwhile"),
        pytest.param(
            known(replace(OURS, revision=8, expires_at=None)),
            Take(replace(OURS, revision=8, expires_at=None)),
            id="made a reservation",
        ),
        pytest.param(known(held(YOU, subnet(8))), Create(OURS), id="gone and free: the same subnet again"),
    ],
)
def test_a_lease_that_is_still_ours_to_have(snapshot: LeaseSnapshot, expected: Take | Create) -> None:
    assert plan_keep(snapshot, ME, OURS) == expected


def test_a_lease_with_the_address_that_we_had_is_ours() -> None:
    moved = replace(ME, public_ip=IPv4Address("192.0.2.77"))
    step = plan_keep(known(replace(OURS, revision=8)), moved, OURS)
    assert step == Take(replace(OURS, revision=8, public_ip=moved.public_ip))


@pytest.mark.parametrize(
    ("snapshot", "problem"),
    [
        pytest.param(known(held(YOU, subnet(7))), r"10\.1\.7\.0-24 now belongs to you 192\.0\.2\.2", id="another's"),
        pytest.param(known(held(YOU, subnet(4, 22))), r"10\.1\.4\.0-22 of you 192\.0\.2\.2 covers it", id="covered"),
        pytest.param(
            known(bad=(BadEntry("10.1.7.0-24", "x", 9),)), "overwritten with something that is no lease", id="spoilt"
        ),
    ],
)
def test_a_lease_that_is_lost(snapshot: LeaseSnapshot, problem: str) -> None:
    with pytest.raises(LeaseLost, match=problem):
        plan_keep(snapshot, ME, OURS)


# ---- against a store -------------------------------------------------------------------------------------------------


class Intruded(MemoryStore):
    """Lets someone else act just before a write of ours."""

    def __init__(self, intrude: Callable[[MemoryStore], Awaitable[object]]) -> None:
        super().__init__()
        self._intrude: Callable[[MemoryStore], Awaitable[object]] | None = intrude

    async def _interrupt(self) -> None:
        intrude, self._intrude = self._intrude, None
        if intrude is not None:
            await intrude(MemoryStore(self.hub))

    async def create_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        await self._interrupt()
        return await super().create_lease(lease, ttl_s)

    async def renew_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        await self._interrupt()
        return await super().renew_lease(lease, ttl_s)


def test_beaten_to_a_subnet_we_pick_another() -> None:
    async def scenario() -> None:
        store = Intruded(lambda other: other.create_lease(YOU.lease(subnet(7), None), TTL_S))
        lease = await acquire(store, ME, NETWORK, Previous(subnet(7)), TTL_S, random.Random(1))
        assert lease.subnet not in (None, subnet(7))
        assert {found.public_ip for found in (await store.list_leases()).leases} == {ME.public_ip, YOU.public_ip}

    asyncio.run(scenario())


def test_beaten_by_an_overlap_under_another_key_we_give_ours_back() -> None:
    """The key does not exist, so the store accepts it; only the second look finds the older, wider lease."""

    async def scenario() -> None:
        store = Intruded(lambda other: other.create_lease(YOU.lease(subnet(4, 22), None), TTL_S))
        lease = await acquire(store, ME, NETWORK, Previous(subnet(7)), TTL_S, random.Random(1))
        assert lease.subnet is not None
        assert not lease.subnet.overlaps(subnet(4, 22))
        assert len((await store.list_leases()).leases) == 2

    asyncio.run(scenario())


def test_dual_stack_halves_cannot_be_leased_twice() -> None:
    async def scenario() -> None:
        store = Intruded(lambda other: other.create_lease(YOU.lease(subnet(7), subnet6(8)), TTL_S))
        lease = await acquire(store, ME, DUAL, Previous(subnet(7), subnet6(7)), TTL_S, random.Random(1))
        assert (lease.subnet != subnet(7), lease.subnet6) == (True, subnet6(7))

    asyncio.run(scenario())


def test_a_discarded_lease_leaves_its_good_half() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        await store.create_lease(ME.lease(subnet(7), None), TTL_S)
        lease = await acquire(store, ME, DUAL, Previous(), TTL_S, random.Random(1))
        assert lease.subnet == subnet(7)
        assert lease.subnet6 is not None
        assert len((await store.list_leases()).leases) == 1

    asyncio.run(scenario())


def test_a_reservation_stays_one_through_start_and_renewals() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        await store.create_lease(ME.lease(subnet(7), None), None)
        lease = await acquire(store, ME, NETWORK, Previous(), TTL_S, random.Random(1))
        assert (lease.subnet, lease.expires_at) == (subnet(7), None)
        assert (await keep(store, ME, lease, TTL_S)).expires_at is None

    asyncio.run(scenario())


def test_a_foreign_lease_on_our_key_is_never_overwritten() -> None:
    """Both when it is there already and when it comes between our look and our write."""

    async def steal(other: MemoryStore) -> None:
        (mine,) = (await other.list_leases()).leases
        await other.renew_lease(replace(YOU.lease(subnet(7), None), revision=mine.revision), TTL_S)

    async def scenario(*, late: bool) -> None:
        plain = MemoryStore()
        mine = await plain.create_lease(ME.lease(subnet(7), None), TTL_S)
        store = Intruded(steal)
        store.hub = plain.hub
        if not late:
            await steal(plain)
        with pytest.raises(LeaseLost, match="now belongs to you"):
            await keep(store if late else plain, ME, mine, TTL_S)
        assert [lease.public_ip for lease in (await plain.list_leases()).leases] == [YOU.public_ip]

    asyncio.run(scenario(late=False))
    asyncio.run(scenario(late=True))


def test_an_expired_lease_is_taken_again_before_it_is_given_up() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        mine = await store.create_lease(ME.lease(subnet(7), None), TTL_S)
        await store.delete_lease(mine)
        again = await keep(store, ME, mine, TTL_S)
        assert (again.subnet, again.created > mine.created) == (subnet(7), True)

    asyncio.run(scenario())


def test_a_node_that_moved_publishes_its_new_address_on_the_same_subnet() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        mine = await store.create_lease(ME.lease(subnet(7), None), TTL_S)
        moved = replace(ME, public_ip=IPv4Address("192.0.2.77"))
        assert (await keep(store, moved, mine, TTL_S)).public_ip == moved.public_ip
        assert len((await store.list_leases()).leases) == 1

    asyncio.run(scenario())
