"""Policies and pods between a store and daemons, with a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import cast

import pytest

from canal_udp.config import DaemonConfig
from canal_udp.control.lease import Lease
from canal_udp.control.memory import MemoryStore
from canal_udp.control.store import Batch, Kind, LeaseSnapshot, Snapshot
from canal_udp.daemon_objects import ObjectKeeper
from canal_udp.endpoints import Endpoint
from canal_udp.errors import StoreUnavailable
from canal_udp.node import Node
from canal_udp.policy.cluster import Changes

LEASES = [
    Lease(ip_network(f"10.1.{n}.0/24"), None, ip_address(f"192.0.2.{n}"), node=f"n{n}")  # type: ignore[arg-type]
    for n in (1, 2)
]


class Flaky(MemoryStore):
    """A store that can be away."""

    away = False

    async def _list(self, kind: str) -> Snapshot:
        self._here()
        return await super()._list(kind)

    async def _watch(self, kind: str, after: int) -> AsyncIterator[Batch | Snapshot]:
        async for update in super()._watch(kind, after):
            self._here()
            yield update

    def _here(self) -> None:
        if self.away:
            raise StoreUnavailable("the store is away")


@dataclass
class FakeNode:
    """As much of a Node as is looked at."""

    lease: Lease | None
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    leases: LeaseSnapshot | None = field(default_factory=lambda: LeaseSnapshot(1, tuple(LEASES)))
    reasons: tuple[str, ...] = ()


class Side:
    """One node's keeper, and what it was told."""

    def __init__(self, number: int, store: Flaky, state_dir: Path) -> None:
        self.store, self.node, self.name = store, FakeNode(LEASES[number - 1]), f"n{number}"
        self.told: list[tuple[Changes, bool]] = []
        config = DaemonConfig(state_dir=state_dir / self.name, store="memory://x")
        config.state_dir.mkdir(exist_ok=True)
        self.keeper = ObjectKeeper(
            store, config, self.name, cast(Node, self.node), lambda *told: self.told.append(told)
        )
        self.task: asyncio.Task[None]

    def start(self) -> None:
        self.task = asyncio.create_task(self.keeper.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.keeper.close()

    def attach(self, name: str, ip: str, *labels: tuple[str, str]) -> None:
        self.node.endpoints[name] = Endpoint(name, "/run/netns/x", "1", "eth0", (ip_address(ip),), labels)
        self.keeper.notice()

    def detach(self, name: str) -> None:
        del self.node.endpoints[name]
        self.keeper.notice()

    @property
    def pods(self) -> set[str]:
        return set(self.keeper.cluster.state().pods)


@pytest.fixture
def store() -> Flaky:
    return Flaky()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of another object's state
            await asyncio.sleep(0.005)


def run(tmp_path: Path, work: Callable[[Side, Side], Awaitable[None]], store: Flaky) -> None:
    async def body() -> None:
        one, two = (Side(number, store, tmp_path) for number in (1, 2))
        one.start()
        two.start()
        try:
            await work(one, two)
        finally:
            await one.stop()
            await two.stop()

    asyncio.run(body())


def test_every_node_learns_of_every_pod_and_policy(tmp_path: Path, store: Flaky) -> None:
    async def work(one: Side, two: Side) -> None:
        one.attach("x/a", "10.1.1.2", ("app", "web"))
        two.attach("bare", "10.1.2.2")
        await until(lambda: one.pods == two.pods == {"x/a", "default/bare"})
        assert two.keeper.cluster.state().pods["x/a"].labels == {"app": "web"}
        one.attach("x/a", "10.1.1.2", ("app", "db"))
        await until(lambda: two.keeper.cluster.state().pods["x/a"].labels == {"app": "db"})
        one.detach("x/a")
        await until(lambda: one.pods == two.pods == {"default/bare"})
        await store.put(
            "policies", "Tier/_/t", b'{"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "t"}}'
        )
        await until(lambda: one.keeper.cluster.state().tiers.keys() == two.keeper.cluster.state().tiers.keys() == {"t"})
        assert one.keeper.problems == ()

    run(tmp_path, work, store)


def test_the_first_call_tells_everything_and_no_call_tells_nothing(tmp_path: Path, store: Flaky) -> None:
    async def work(one: Side, two: Side) -> None:
        one.attach("x/a", "10.1.1.2")
        await until(lambda: one.told)
        changes, in_sync = one.told[0]
        assert {change[1] for change in changes} == {"x", "x/a"} and in_sync
        assert all(changes for changes, _ in one.told)

    run(tmp_path, work, store)


def test_with_the_store_away_nothing_is_known_until_it_comes(tmp_path: Path, store: Flaky) -> None:
    store.away = True

    async def work(one: Side, two: Side) -> None:
        await until(lambda: one.keeper.problems)
        one.attach("x/a", "10.1.1.2")
        assert one.told == [] and not one.keeper.known
        assert "the store is away" in one.keeper.problems[0]
        one.node.reasons = ("the store is away",)
        assert one.keeper.problems == ()
        store.away = False
        await until(lambda: one.told)
        assert one.told[0][1] and one.pods == {"x/a"}

    run(tmp_path, work, store)


def test_what_was_known_stays_when_the_store_goes_and_own_pods_still_change(tmp_path: Path, store: Flaky) -> None:
    async def work(one: Side, two: Side) -> None:
        two.attach("x/b", "10.1.2.2")
        await until(lambda: one.pods == {"x/b"})
        store.away = True
        await store.put("policies", "Tier/_/t", b"{}")  # wakes the watches
        await until(lambda: not one.keeper.in_sync)
        assert one.told[-1] == ((), False)
        one.attach("x/a", "10.1.1.2")
        assert one.pods == {"x/a", "x/b"} and one.told[-1][1] is False
        store.away = False
        await until(lambda: one.keeper.in_sync and two.pods == {"x/a", "x/b"})
        assert one.told[-1][1] is True

    run(tmp_path, work, store)


def test_a_daemon_that_starts_while_the_store_is_away_knows_what_the_last_one_knew(
    tmp_path: Path, store: Flaky
) -> None:
    async def before(one: Side, two: Side) -> None:
        two.attach("x/b", "10.1.2.2")
        one.attach("x/a", "10.1.1.2")
        await until(lambda: one.pods == {"x/a", "x/b"} and len(store.hub.snapshot("endpoints").entries) == 2)

    async def after(one: Side, two: Side) -> None:
        await until(lambda: one.told)
        assert one.pods == {"x/a", "x/b"} and one.told[0][1] is False
        store.away = False
        await until(lambda: one.keeper.in_sync and one.pods == {"x/b"} and two.pods == {"x/b"})

    async def work_two(one: Side, two: Side) -> None:
        two.attach("x/b", "10.1.2.2")
        await after(one, two)

    run(tmp_path, before, store)
    store.away = True
    run(tmp_path, work_two, store)


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff"])
def test_a_file_that_cannot_be_read_is_no_knowledge(tmp_path: Path, store: Flaky, content: bytes) -> None:
    store.away = True

    async def work(one: Side, two: Side) -> None:
        await until(lambda: one.keeper.problems)
        assert not one.keeper.known

    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "cluster.jsonl").write_bytes(content)
    run(tmp_path, work, store)


def test_a_file_that_cannot_be_written_is_a_problem_and_tried_again(
    tmp_path: Path, store: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canal_udp.daemon_objects.SAVE_S", 0.01)

    async def work(one: Side, two: Side) -> None:
        path = tmp_path / "n1" / "cluster.jsonl"
        path.mkdir()
        await until(lambda: one.keeper.problems)
        assert f"{path}: Is a directory" in one.keeper.problems
        path.rmdir()
        await until(lambda: not one.keeper.problems)
        assert path.read_bytes()

    run(tmp_path, work, store)


def test_our_own_pods_are_what_we_know_of_them(tmp_path: Path, store: Flaky) -> None:
    async def work(one: Side, two: Side) -> None:
        one.attach("x/a", "10.1.1.2")
        await until(lambda: "x/a" in two.pods)
        good = store.hub.snapshot("endpoints").entries[0].value
        await store.put("endpoints", "n1/x/a", b"spoilt")
        await until(lambda: store.hub.snapshot("endpoints").entries[0].value == good)
        assert all(getattr(new, "broken", "") == "" for changes, _ in one.told for _, _, new in changes)
        await until(lambda: not two.keeper.problems)

    run(tmp_path, work, store)


def test_many_bad_entries_are_a_few_lines(tmp_path: Path, store: Flaky) -> None:
    async def work(one: Side, two: Side) -> None:
        for number in range(20):
            await store.put("policies", f"Tier/_/t{number}", b"{")
        await until(lambda: "and 15 more objects" in one.keeper.problems)

    run(tmp_path, work, store)


def test_who_leaves_takes_its_pods_along(tmp_path: Path, store: Flaky) -> None:
    async def work(one: Side, two: Side) -> None:
        one.attach("x/a", "10.1.1.2")
        two.attach("x/b", "10.1.2.2")
        await until(lambda: one.pods == two.pods == {"x/a", "x/b"})
        kinds: tuple[Kind, ...] = ("endpoints",)
        await one.keeper.give_back()
        assert [entry.key for kind in kinds for entry in (await store.list(kind)).entries] == ["n2/x/b"]

    run(tmp_path, work, store)
