"""What every store must do, whatever holds it. One suite; a new store adds a harness to HARNESSES."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from etcd_server import MISSING, Etcd, binaries, etcd_in
from history import History, Recorded, deletions
from watched import Watched, watching

from canal_udp.control import etcd
from canal_udp.control.acquire import Claim, Previous, acquire
from canal_udp.control.etcd import EtcdStore, end_within
from canal_udp.control.etcd_url import parse
from canal_udp.control.lease import Lease
from canal_udp.control.memory import Hub, MemoryStore
from canal_udp.control.network import NetworkConfig
from canal_udp.control.sqlite_store import SqliteStore
from canal_udp.control.store import (
    LEASES,
    BadEntry,
    Batch,
    Gone,
    LeaseBatch,
    LeaseSnapshot,
    Snapshot,
    Store,
    TypedStore,
)
from canal_udp.errors import LeaseError, LeaseLost, StoreConflict, StoreUnavailable, UsageError

TTL_S = 10.0
DEADLINE_S = 20.0  # of a whole scenario; nothing here takes a second


# ---- harnesses -------------------------------------------------------------------------------------------------------


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Harness:
    """One store, opened by any number of clients."""

    def __init__(self, connect: Callable[[], TypedStore], clock: Clock) -> None:
        self._connect, self._clock = connect, clock
        self._opened: list[TypedStore] = []

    def open(self) -> TypedStore:
        self._opened.append(self._connect())
        return self._opened[-1]

    async def let_pass(self, seconds: float) -> None:
        """Time passes while someone looks at the store."""
        store = self.open()
        await store.list_leases()
        self._clock.now_s += seconds

    async def plant(self, key: str, value: bytes) -> None:
        """Write a lease as someone would who does not know what a lease is."""
        await self.open()._put(LEASES, key, value, None, None)

    async def compact(self) -> None:
        store = self.open()
        if isinstance(store, MemoryStore):
            store.hub.compact()
        else:
            assert isinstance(store, SqliteStore)
            await store.compact()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


def memory(tmp_path: Path) -> Harness:
    clock = Clock()
    hub = Hub(clock)
    return Harness(lambda: MemoryStore(hub), clock)


def sqlite(tmp_path: Path) -> Harness:
    clock = Clock()
    return Harness(lambda: SqliteStore(tmp_path / "canal.db", clock=clock), clock)


class EtcdHarness(Harness):
    """A prefix of its own on a real server. Time passes by revoking the leases that would have ended."""

    def __init__(self, server: Etcd, prefix: str) -> None:
        self._server, self._prefix = server, prefix
        self._url, clock = parse(f"{server.url}{prefix}", {}), Clock()
        super().__init__(lambda: EtcdStore(self._url, wall=clock), clock)

    async def let_pass(self, seconds: float) -> None:
        await super().let_pass(seconds)
        for lease in self._server.leases(self._prefix):
            end = end_within(lease)
            if end is not None and end <= self._clock.now_s:
                self._server.ask("lease/revoke", ID=lease)

    async def compact(self) -> None:
        self._server.compact()

    async def close(self) -> None:
        await super().close()
        for lease in self._server.leases(self._prefix):  # the revision of the next test is its own
            self._server.ask("lease/revoke", ID=lease)


HARNESSES = {"memory": memory, "sqlite": sqlite}
ETCDS = {f"etcd-{version}": binary for version, binary in binaries().items()} or {"etcd": ""}
_numbers = itertools.count()


@pytest.fixture(params=[*HARNESSES, *ETCDS])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    if request.param in HARNESSES:
        return HARNESSES[request.param](tmp_path)
    server: Etcd = request.getfixturevalue("etcds")(ETCDS[request.param])
    return EtcdHarness(server, f"/test{next(_numbers)}")


@pytest.fixture(scope="module")
def etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Etcd]]:
    """One server for each version, started when it is first needed; its own clock ends no lease."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(etcd, "TTL_MIN_S", 3600)

        def started(binary: str) -> Etcd:
            if not binary:
                pytest.skip(MISSING)
            return stack.enter_context(etcd_in(tmp_path_factory.mktemp("etcd"), binary))

        yield functools.cache(started)


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in a loop of its own, with a deadline, and close what it opened."""

    @functools.wraps(test)
    def run(harness: Harness, **others: Any) -> None:
        async def whole() -> None:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await test(harness, **others)
            finally:
                await harness.close()

        asyncio.run(whole())

    return run


def lease(n: int, node: int | None = None) -> Lease:
    """Subnet 10.1.n.0/24 of a node."""
    address = IPv4Address((192 << 24) | (n if node is None else node))
    return Lease(IPv4Network((10 << 24 | 1 << 16 | n << 8, 24)), None, address)


# ---- network config --------------------------------------------------------------------------------------------------


@scenario
async def test_network_config(harness: Harness) -> None:
    store = harness.open()
    assert await store.get_network() == (None, 0)
    first = await store.put_network("{}", expect=0)
    assert await store.get_network() == ("{}", first)
    with pytest.raises(StoreConflict):
        await harness.open().put_network("{1}", expect=0)
    second = await store.put_network("{2}", expect=first)
    assert second > first
    with pytest.raises(StoreConflict):
        await store.put_network("{3}", expect=first)
    third = await store.put_network("{4}")
    assert await harness.open().get_network() == ("{4}", third)


# ---- leases: compare and swap ----------------------------------------------------------------------------------------


@scenario
async def test_a_created_lease_is_listed_with_its_revisions(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    assert made.revision == made.created > 0
    assert made.expires_at is not None
    assert replace(made, revision=0, created=0, expires_at=None) == lease(1)
    listed = await harness.open().list_leases()
    assert listed == LeaseSnapshot(made.revision, (made,))


@scenario
async def test_a_taken_key_is_a_conflict(harness: Harness) -> None:
    made = await harness.open().create_lease(lease(1), TTL_S)
    with pytest.raises(StoreConflict):
        await harness.open().create_lease(lease(1, node=2), TTL_S)
    assert (await harness.open().list_leases()).leases == (made,)


@scenario
async def test_renewal_compares_the_revision_and_keeps_the_creation(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    renewed = await store.renew_lease(replace(made, node="new"), TTL_S)
    assert (renewed.created, renewed.node, renewed.revision > made.revision) == (made.created, "new", True)
    with pytest.raises(StoreConflict):
        await store.renew_lease(made, TTL_S)
    assert (await store.list_leases()).leases == (renewed,)


@scenario
async def test_renewal_of_a_lease_that_is_gone(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    await harness.open().delete_lease(made)
    with pytest.raises(LeaseLost):
        await store.renew_lease(made, TTL_S)
    assert (await store.list_leases()).leases == ()


@scenario
async def test_a_lease_created_again_is_younger(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    await store.delete_lease(made)
    again = await store.create_lease(lease(1), TTL_S)
    assert again.created > made.created
    with pytest.raises(StoreConflict):
        await store.renew_lease(made, TTL_S)


@scenario
async def test_delete_compares_when_told_to(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    renewed = await store.renew_lease(made, TTL_S)
    with pytest.raises(StoreConflict):
        await store.delete_lease(made, expect=made.revision)
    await store.delete_lease(renewed, expect=renewed.revision)
    await store.delete_lease(renewed)
    assert (await store.list_leases()).leases == ()


@scenario
async def test_of_many_renewals_of_one_revision_one_wins(harness: Harness) -> None:
    made = await harness.open().create_lease(lease(1), TTL_S)
    clients = [harness.open() for _ in range(8)]
    renewals = [client.renew_lease(replace(made, node=str(n)), TTL_S) for n, client in enumerate(clients)]
    outcomes = await asyncio.gather(*renewals, return_exceptions=True)
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert all(isinstance(outcome, StoreConflict) for outcome in outcomes if outcome is not winner)
    assert (await clients[0].list_leases()).leases == (winner,)


# ---- other entries ---------------------------------------------------------------------------------------------------


@scenario
async def test_entries_of_other_kinds(harness: Harness) -> None:
    store = harness.open()
    first = await store.put("endpoints", "n1/ns/pod", b"\x00\xff", expect=0)
    with pytest.raises(StoreConflict):
        await store.put("endpoints", "n1/ns/pod", b"", expect=0)
    second = await store.put("endpoints", "n1/ns/pod", b"2", expect=first)
    await store.put("policies", "n1/ns/pod", b"other kind")
    listed = await harness.open().list("endpoints")
    assert [(e.key, e.value, e.revision, e.created) for e in listed.entries] == [("n1/ns/pod", b"2", second, first)]
    with pytest.raises(StoreConflict):
        await store.delete("endpoints", "n1/ns/pod", expect=first)
    assert await store.delete("endpoints", "n1/ns/pod", expect=second)
    assert not await store.delete("endpoints", "n1/ns/pod")
    assert len((await store.list("policies")).entries) == 1
    assert (await store.list_leases()).leases == ()


@scenario
async def test_a_key_is_any_text(harness: Harness) -> None:
    store = harness.open()
    keys = ["", "a/b", "ä ö", "'; DROP TABLE entries; --", "\x00", "x" * 5000]
    for key in keys:
        await store.put("endpoints", key, key.encode())
    entries = (await harness.open().list("endpoints")).entries
    assert [entry.key for entry in entries] == sorted(keys)
    assert all(entry.value == entry.key.encode() for entry in entries)


@pytest.mark.parametrize("kind", ["leases", "network", "endpoint", ""])
def test_no_back_door_to_other_kinds(harness: Harness, kind: Any) -> None:
    async def check(harness: Harness) -> None:
        store = harness.open()
        with pytest.raises(UsageError):
            await store.put(kind, "key", b"")
        with pytest.raises(UsageError):
            await store.list(kind)
        with pytest.raises(UsageError):
            store.watch(kind, 0)

    scenario(check)(harness)


@scenario
async def test_one_counter_for_everything(harness: Harness) -> None:
    a, b = harness.open(), harness.open()
    revisions = [
        await a.put_network("{}"),
        (await b.create_lease(lease(1), TTL_S)).revision,
        await a.put("endpoints", "x", b""),
        await b.put("policies", "x", b""),
        (await a.create_lease(lease(2), None)).revision,
    ]
    assert revisions == sorted(set(revisions))
    assert (await a.list("policies")).revision == (await b.list_leases()).revision == revisions[-1]


# ---- what nobody understands -----------------------------------------------------------------------------------------

GARBAGE = {
    "10.1.50.0-24": b"not json",
    "10.1.51.0-24": b'{"PublicIP":null}',
    "10.1.52.0-24": b'{"PublicIP":"127.0.0.1"}',
    "10.1.53.0-24": b"\xff\xfe\x00",
    "10.1.54.0-24": b'{"PublicIP":' + b"[" * 50_000,
    "10.1.55.9-24": b'{"PublicIP":"192.0.2.1"}',
    "0.0.0.0-0": b'{"PublicIP":"192.0.2.1"}',
    "$(id)\x1b[31m": b'{"PublicIP":"192.0.2.1"}',
    "10.1.56.0-24": b"x" * 1_000_000,
}


@scenario
async def test_bad_leases_are_skipped_and_reported(harness: Harness) -> None:
    store = harness.open()
    good = await store.create_lease(lease(1), TTL_S)
    for key, value in GARBAGE.items():
        await harness.plant(key, value)
    listed = await store.list_leases()
    assert listed.leases == (good,)
    assert [entry.key for entry in listed.bad] == sorted(GARBAGE)
    assert all(entry.problem.isprintable() and len(entry.problem) < 1000 for entry in listed.bad)
    assert {str(prefix) for entry in listed.bad for prefix in entry.prefixes} == {
        f"10.1.{n}.0/24" for n in (50, 51, 52, 53, 54, 56)
    }


@scenario
async def test_one_bad_write_costs_one_lease_until_it_is_mended(harness: Harness) -> None:
    store = harness.open()
    one, two = await store.create_lease(lease(1), TTL_S), await store.create_lease(lease(2), TTL_S)
    state = await store.list_leases()
    async with watching(store.watch_leases(state.revision)) as watched:
        await harness.plant(one.key, b"spoilt")
        await watched.until(lambda: watched.changes)
        (bad,) = watched.changes
        assert isinstance(bad, BadEntry)
        for update in watched.updates:
            state = state.apply(update)
        assert (state.leases, state.bad) == ((two,), (bad,))
        await harness.open().delete_lease(one)
        await watched.until(lambda: len(watched.changes) == 2)
        assert state.apply(watched.updates[-1]).bad == ()


# ---- watching --------------------------------------------------------------------------------------------------------


@scenario
async def test_watch_brings_what_others_do_in_order(harness: Harness) -> None:
    store, other = harness.open(), harness.open()
    start = (await store.list_leases()).revision
    async with watching(store.watch_leases(start)) as watched:
        made = await other.create_lease(lease(1), TTL_S)
        renewed = await other.renew_lease(made, TTL_S)
        await other.put("endpoints", "x", b"")
        await other.delete_lease(renewed)
        await watched.until(lambda: len(watched.changes) == 3)
        assert watched.changes[:2] == [made, renewed]
        gone = watched.changes[2]
        assert isinstance(gone, Gone)
        assert (gone.key, gone.expired, gone.revision > renewed.revision) == (made.key, False, True)
        revisions = [update.revision for update in watched.updates]
        assert revisions == sorted(revisions)
        assert all(isinstance(update, LeaseBatch) for update in watched.updates)


@scenario
async def test_watch_of_entries(harness: Harness) -> None:
    store, other = harness.open(), harness.open()
    start = (await store.list("policies")).revision
    async with watching(store.watch("policies", start)) as watched:
        await other.put("endpoints", "a", b"not this kind")
        first = await other.put("policies", "a", b"1")
        await other.delete("policies", "a")
        await watched.until(lambda: len(watched.changes) == 2)
        assert [(c.key, c.revision) for c in watched.changes[:1]] == [("a", first)]
        assert isinstance(watched.changes[1], Gone)
        assert all(isinstance(update, Batch) for update in watched.updates)


@scenario
async def test_watch_resumes_from_any_revision(harness: Harness) -> None:
    store = harness.open()
    made = [await store.create_lease(lease(n), TTL_S) for n in range(1, 6)]
    for seen in range(5):
        async with watching(harness.open().watch_leases(made[seen].revision)) as watched:
            await watched.until(lambda want=4 - seen: len(watched.changes) == want)
            assert watched.changes == made[seen + 1 :]


@scenario
async def test_a_watch_from_before_the_compaction_brings_a_snapshot(harness: Harness) -> None:
    store = harness.open()
    made = [await store.create_lease(lease(n), TTL_S) for n in range(1, 4)]
    await store.delete_lease(made[0])
    await harness.compact()
    async with watching(harness.open().watch_leases(made[0].revision)) as watched:
        await watched.until(lambda: watched.updates)
        snapshot = watched.updates[0]
        assert isinstance(snapshot, LeaseSnapshot)
        assert snapshot == await store.list_leases()
        more = await store.create_lease(lease(9), TTL_S)
        await watched.until(lambda: watched.changes)
        assert watched.changes == [more]


@scenario
async def test_a_watch_at_the_compacted_revision_goes_on(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    await harness.compact()
    async with watching(store.watch_leases(made.revision)) as watched:
        more = await store.create_lease(lease(2), TTL_S)
        await watched.until(lambda: watched.updates)
        assert watched.changes == [more]


@scenario
async def test_a_watch_from_the_future_brings_a_snapshot(harness: Harness) -> None:
    """The store was restored from a backup, or begun anew."""
    store = harness.open()
    await store.put("endpoints", "x", b"1")
    async with watching(store.watch("endpoints", 2**60)) as watched:
        await watched.until(lambda: watched.updates)
        assert watched.updates[0] == await store.list("endpoints")
        assert isinstance(watched.updates[0], Snapshot)


@scenario
async def test_several_watchers_see_the_same(harness: Harness) -> None:
    store = harness.open()
    start = (await store.list_leases()).revision
    async with (
        watching(store.watch_leases(start)) as one,
        watching(store.watch_leases(start)) as two,
        watching(harness.open().watch_leases(start)) as three,
    ):
        for n in range(1, 20):
            await store.create_lease(lease(n), TTL_S)
        for watched in (one, two, three):
            await watched.until(lambda watched=watched: len(watched.changes) == 19)
        assert one.changes == two.changes == three.changes


@scenario
async def test_close_ends_watches_and_refuses_calls(harness: Harness) -> None:
    store = harness.open()
    start = await store.put_network("{}")
    async with watching(store.watch_leases(start)) as watched:
        await store.create_lease(lease(1), TTL_S)
        await watched.until(lambda: watched.updates)
        await store.close()
        await asyncio.wait_for(watched.task, DEADLINE_S)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.list_leases()
    assert (await harness.open().get_network())[0] == "{}"


# ---- expiry ----------------------------------------------------------------------------------------------------------


@scenario
async def test_a_lease_expires_and_watchers_hear_of_it(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    async with watching(store.watch_leases(made.revision)) as watched:
        await harness.let_pass(TTL_S - 1)
        assert (await harness.open().list_leases()).leases == (made,)
        await harness.let_pass(2)
        await watched.until(lambda: watched.changes)
        (gone,) = watched.changes
        assert (gone.key, gone.expired) == (made.key, True)
    assert (await store.list_leases()).leases == ()
    with pytest.raises(LeaseLost):
        await store.renew_lease(made, TTL_S)


@scenario
async def test_an_expired_subnet_is_free_and_its_new_owner_is_younger(harness: Harness) -> None:
    store = harness.open()
    made = await store.create_lease(lease(1), TTL_S)
    await harness.let_pass(TTL_S + 1)
    again = await store.create_lease(lease(1, node=2), TTL_S)
    assert again.created > made.revision


@scenario
async def test_a_renewed_lease_and_a_reservation_stay(harness: Harness) -> None:
    store = harness.open()
    kept = await store.create_lease(lease(1), TTL_S)
    reserved = await store.create_lease(lease(2), None)
    await store.create_lease(lease(3), TTL_S)
    assert reserved.expires_at is None
    await harness.let_pass(TTL_S - 1)
    kept = await store.renew_lease(kept, TTL_S)
    await harness.let_pass(2)
    assert (await store.list_leases()).leases == (kept, reserved)


@scenario
async def test_a_lease_can_become_a_reservation_and_back(harness: Harness) -> None:
    store = harness.open()
    reserved = await store.renew_lease(await store.create_lease(lease(1), TTL_S), None)
    assert reserved.expires_at is None
    await harness.let_pass(TTL_S + 1)
    again = await store.renew_lease(reserved, TTL_S)
    await harness.let_pass(TTL_S + 1)
    assert again.expires_at is not None
    assert (await store.list_leases()).leases == ()


# ---- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_watched_state_equals_a_fresh_list(harness: Harness, seed: int) -> None:
    """Random writes, expiries and compactions by several clients; a watcher that joins late and one from the start."""

    async def check(harness: Harness) -> None:
        rng = random.Random(seed)
        store, clients = harness.open(), [harness.open() for _ in range(3)]
        start = await store.list_leases()
        async with watching(store.watch_leases(start.revision)) as early:
            for round_ in range(150):
                await random_write(rng, rng.choice(clients), harness)
                if round_ == 75:
                    middle = await store.list_leases()
            async with watching(harness.open().watch_leases(middle.revision)) as late:
                final = await store.list_leases()
                for watched, base in ((early, start), (late, middle)):
                    await watched.until(lambda w=watched, b=base: same(folded(b, w), final))

    scenario(check)(harness)


def same(a: LeaseSnapshot, b: LeaseSnapshot) -> bool:
    return (a.leases, a.bad) == (b.leases, b.bad)


def folded(state: LeaseSnapshot, watched: Watched) -> LeaseSnapshot:
    return functools.reduce(LeaseSnapshot.apply, watched.updates, state)


async def random_write(rng: random.Random, client: TypedStore, harness: Harness) -> None:
    with contextlib.suppress(StoreConflict, LeaseLost):
        known = (await client.list_leases()).leases
        match rng.randrange(8):
            case 0 | 1 | 2:
                await client.create_lease(lease(rng.randrange(12)), rng.choice([TTL_S, 2 * TTL_S, None]))
            case 3 | 4 if known:
                await client.renew_lease(replace(rng.choice(known), node=str(rng.random())), TTL_S)
            case 5:
                await client.delete_lease(lease(rng.randrange(12)))
            case 6:
                await harness.plant(lease(rng.randrange(12)).key, b"bad")
            case 7 if rng.random() < 0.3:
                await harness.let_pass(TTL_S / 2)


class Interleaved:
    """Gives way before and after each call, as a store on the network does."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self._store, self._rng = store, rng

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: object) -> Any:
            await self._give_way()
            result = await getattr(self._store, name)(*args)
            await self._give_way()
            return result

        return call

    async def _give_way(self) -> None:
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)


NODES, SUBNETS = 40, 20
RACE = NetworkConfig.from_json('{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.0","SubnetMax":"10.1.20.0"}')


SEEDS = range(50)
RACES = [(name, seed) for name in HARNESSES for seed in SEEDS]
RACES += [([*ETCDS][seed % len(ETCDS)], seed) for seed in SEEDS]  # each version its part


@pytest.mark.parametrize(("harness", "seed"), RACES, indirect=["harness"])
def test_forty_nodes_race_for_twenty_subnets(harness: Harness, seed: int) -> None:
    """No subnet twice, nobody fails otherwise, also when some leave; the model explains all that was asked and told."""

    async def check(harness: Harness) -> None:
        rng = random.Random(seed)
        clients, history = [harness.open() for _ in range(4)], History()
        start = await clients[0]._list(LEASES)
        claims = {Claim(IPv4Address((192 << 24) | node), node=f"n{node}") for node in range(NODES)}
        async with watching(clients[0]._watch(LEASES, start.revision)) as watched:
            first = await race(clients, history, claims, rng)
            assert len(first) == SUBNETS, f"seed {seed}: {first}"
            leaving = rng.sample(list(first), 5)
            for claim in leaving:
                left = first.pop(claim)
                await Recorded(rng.choice(clients), history).delete_lease(left, left.revision)
            second = await race(clients, history, claims - set(first) - set(leaving), rng)
            last = max(entry.revision for entry in (await clients[0]._list(LEASES)).entries)
            await watched.until(lambda: watched.changes[-1].revision == last)
            history.watched.append(watched.changes)
        won = [*first.values(), *second.values()]
        assert len({winner.subnet for winner in won}) == len(won) == SUBNETS, f"seed {seed}: {won}"
        assert set((await clients[0].list_leases()).leases) == set(won), f"seed {seed}"
        deletions(history)
        history.check(start, f"seed {seed}")

    scenario(check)(harness)


async def race(
    clients: list[TypedStore], history: History, claims: Iterable[Claim], rng: random.Random
) -> dict[Claim, Lease]:
    """All acquire at once; returns who got what. Whoever got nothing was told that there is nothing."""
    racers = sorted(claims, key=lambda claim: claim.node)
    races = []
    for claim in racers:
        store: Any = Interleaved(Recorded(rng.choice(clients), history), random.Random(rng.random()))
        races.append(acquire(store, claim, RACE, Previous(), TTL_S, random.Random(rng.random())))
    outcomes = dict(zip(racers, await asyncio.gather(*races, return_exceptions=True), strict=True))
    lost = [outcome for outcome in outcomes.values() if not isinstance(outcome, Lease)]
    assert all(isinstance(one, LeaseError) and "out of subnets: all 20" in str(one) for one in lost), lost
    return {claim: outcome for claim, outcome in outcomes.items() if isinstance(outcome, Lease)}
