"""The daemon's side of the store: what it asks, what it tells the node, and what it does while there is no answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from canal_udp import daemon_saved, daemon_store
from canal_udp.actions import Event, LeaseHeld, LeasesSeen, NetworkKnown, StoreSeen
from canal_udp.config import DaemonConfig
from canal_udp.control import saved_leases
from canal_udp.control.acquire import Claim, Previous
from canal_udp.control.lease import Lease
from canal_udp.control.memory import Hub, MemoryStore
from canal_udp.control.network import NetworkConfig
from canal_udp.control.saved_leases import SavedLeases
from canal_udp.daemon_store import Keeper
from canal_udp.errors import ConfigError, LeaseLost, StoreUnavailable

DEADLINE_S = 20.0
OURS, OTHERS = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
NETWORK = '{"Network":"10.1.0.0/16"}'
PEER = Lease(IPv4Network("10.1.9.0/24"), None, OTHERS, node="peer")


class Flaky(MemoryStore):
    """A store that is down when it is told so; counts what it is asked to write."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.down = False
        self.puts = self.lists = 0

    async def _list(self, kind: str) -> Any:
        self._check()
        self.lists += kind == "leases"
        return await super()._list(kind)

    async def _put(self, kind: str, *words: Any) -> Any:
        self._check()
        self.puts += kind == "leases"
        return await super()._put(kind, *words)

    async def _watch(self, kind: str, after: int) -> AsyncIterator[Any]:
        self._check()
        updates = super()._watch(kind, after)
        while True:
            update = asyncio.ensure_future(anext(updates))
            while not update.done():
                await asyncio.wait([update], timeout=0.01)
                if self.down:
                    update.cancel()
                    self._check()
            yield update.result()

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")


class Bench:
    """A keeper and everything that it tells."""

    def __init__(self, tmp_path: Path, hub: Hub | None = None, **config: Any) -> None:
        self.hub = hub or Hub()
        self.store = Flaky(self.hub)
        self.config = DaemonConfig(store="memory://x", state_dir=tmp_path, **config)
        self.events: list[Event] = []
        self.claim = Claim(OURS, node="me")
        self.keeper = Keeper(self.store, self.config, Previous(), lambda: self.claim, self._apply)

    async def _apply(self, event: Event) -> None:
        self.events.append(event)

    def last(self, kind: type) -> Any:
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)

    @property
    def held(self) -> str:
        event = self.last(LeaseHeld)
        return event.lease.key if event else ""

    @property
    def peers(self) -> set[str]:
        event = self.last(LeasesSeen)
        return {lease.key for lease in event.snapshot.leases} - {self.held} if event else set()

    @property
    def problem(self) -> str:
        event = self.last(StoreSeen)
        return event.problem if event else "nothing said"

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self.task.done():
                self.task.result()
            await asyncio.sleep(0.005)

    def run(self, work: Callable[[], Any]) -> None:
        async def body() -> None:
            async with asyncio.timeout(DEADLINE_S):
                self.task = asyncio.create_task(self.keeper.run())
                try:
                    await work()
                finally:
                    self.task.cancel()
                    await asyncio.gather(self.task, return_exceptions=True)
                    self.keeper.close()

        asyncio.run(body())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_store, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(daemon_saved, "SAVE_S", 0.0)


def hub_with(*leases: Lease) -> Hub:
    hub = Hub()
    hub.put("network", "config", NETWORK.encode(), None, None)
    for lease in leases:
        hub.put("leases", lease.key, saved_leases.lease_value(lease).encode(), None, 1000.0)
    return hub


def test_a_store_that_comes_back_is_neither_listed_nor_written(tmp_path: Path) -> None:
    """All nodes meet it at once; what happened meanwhile comes by the watch."""
    bench = Bench(tmp_path, hub_with(PEER))

    async def work() -> None:
        await bench.until(lambda: bench.peers == {PEER.key} and not bench.problem)
        asked = (bench.store.puts, bench.store.lists)
        bench.store.down = True
        await bench.until(lambda: bench.problem == "the store is down")
        bench.hub.delete("leases", PEER.key, None)
        bench.store.down = False
        await bench.until(lambda: not bench.peers and not bench.problem)
        assert (bench.store.puts, bench.store.lists) == asked

    bench.run(work)


def test_a_lease_that_went_while_the_store_was_away_is_taken_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hub_with())

    async def work() -> None:
        await bench.until(lambda: bench.held and not bench.problem)
        key = bench.held
        bench.store.down = True
        await bench.until(lambda: bench.problem)
        bench.hub.delete("leases", key, None)
        bench.store.down = False
        await bench.until(lambda: any(entry.key == key for entry in bench.hub.snapshot("leases").entries))
        await bench.until(lambda: bench.held == key and not bench.problem)

    bench.run(work)


def test_a_daemon_without_its_store_goes_by_what_was_saved(tmp_path: Path) -> None:
    first = Bench(tmp_path, hub_with(PEER))

    async def know() -> None:
        await first.until(lambda: first.peers and not first.problem)

    first.run(know)
    again = Bench(tmp_path, first.hub)
    again.store.down = True

    async def work() -> None:
        await again.until(lambda: again.peers)
        assert (again.held, again.peers) == (first.held, {PEER.key})
        assert again.last(NetworkKnown).network == NetworkConfig.from_json(NETWORK)
        await again.until(lambda: "the store is down (forwarding goes on as of" in again.problem)
        told = len(again.events)
        await again.until(lambda: len(again.events) > told + 3)
        assert "forwarding goes on" in again.problem
        again.hub.delete("leases", PEER.key, None)
        before = again.last(LeaseHeld).lease
        again.store.down = False
        await again.until(lambda: not again.problem)
        assert (again.held, again.peers) == (first.held, set())
        assert again.last(LeaseHeld).lease.revision > before.revision  # looked at before anything else

    again.run(work)


def test_nothing_saved_and_no_store(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store.down = True

    async def work() -> None:
        await bench.until(lambda: bench.problem == "the store is down")
        assert not bench.held
        bench.hub.put("network", "config", NETWORK.encode(), None, None)
        bench.store.down = False
        await bench.until(lambda: bench.held)

    bench.run(work)


def steal(hub: Hub, key: str) -> None:
    thief = replace(PEER, subnet=IPv4Network(key.replace("-", "/")))
    hub.put("leases", key, saved_leases.lease_value(thief).encode(), None, 1000.0)


def test_a_stolen_lease_renumbers_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path, hub_with())
    caplog.set_level(logging.ERROR, "canal.lease")

    async def work() -> None:
        await bench.until(lambda: bench.held and not bench.problem)
        key = bench.held
        steal(bench.hub, key)
        await bench.until(lambda: bench.held != key and not bench.problem)
        owners = {entry.key: json.loads(entry.value)["PublicIP"] for entry in bench.hub.snapshot("leases").entries}
        assert owners == {key: str(OTHERS), bench.held: str(OURS)}
        assert any("belongs to peer" in event.problem for event in bench.events if isinstance(event, StoreSeen))

    bench.run(work)
    assert [record.message.split()[0] for record in caplog.records] == ["lease.lost"]


def test_a_stolen_lease_stops_if_told_to(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hub_with(), on_lease_lost="stop")

    async def work() -> None:
        await bench.until(lambda: bench.held and not bench.problem)
        steal(bench.hub, bench.held)
        with pytest.raises(LeaseLost, match="belongs to peer"):
            await bench.task
        assert len(bench.hub.snapshot("leases").entries) == 1

    bench.run(work)


def test_no_subnet_left_for_who_lost_his(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The old subnet stays in use on this node, the loss is told once, and the next free one is taken."""
    hub = Hub()
    only = '{"Network":"10.1.0.0/16","SubnetMin":"10.1.3.0","SubnetMax":"10.1.3.0"}'
    hub.put("network", "config", only.encode(), None, None)
    bench = Bench(tmp_path, hub)
    caplog.set_level(logging.ERROR, "canal.lease")

    async def work() -> None:
        await bench.until(lambda: bench.held and not bench.problem)
        steal(hub, bench.held)
        told = lambda: [e.problem for e in bench.events if isinstance(e, StoreSeen)]  # noqa: E731
        await bench.until(lambda: sum("out of subnets" in problem for problem in told()) > 3)
        assert bench.held == "10.1.3.0-24"
        hub.delete("leases", bench.held, None)
        await bench.until(lambda: not bench.problem)
        assert json.loads(hub.snapshot("leases").entries[0].value)["PublicIP"] == str(OURS)

    bench.run(work)
    assert [record.message.split()[0] for record in caplog.records] == ["lease.lost"]


# ---- the file --------------------------------------------------------------------------------------------------------

STATE = SavedLeases(
    NetworkConfig.from_json('{"Network":"10.1.0.0/16","SubnetMin":"10.1.3.0","Backend":{"Type":"vxlan","VNI":7}}'),
    replace(PEER, public_ip=OURS, revision=5, created=3, expires_at=99.0),
    (replace(PEER, encap="vxlan", vtep_mac=b"\x02\x00\x00\x00\x00\x01", vni=7, revision=9, created=9),),
    12.5,
)


def test_what_was_saved_is_read() -> None:
    content = b"".join(saved_leases.dump(STATE, "etcd://h"))
    assert saved_leases.load(content, "f", "etcd://h") == STATE
    assert saved_leases.load(content, "f", "etcd://other") is None


def test_a_part_of_the_file_is_not_believed() -> None:
    content = b"".join(saved_leases.dump(STATE, "etcd://h"))
    for end in range(len(content) - 1):
        with pytest.raises(ConfigError):
            saved_leases.load(content[:end], "f", "etcd://h")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[]\n", id="no object"),
        pytest.param(b'{"version":2}\n', id="a later version"),
        pytest.param(b'{"version":1,"store":"etcd://h","leases":1e400}\n', id="no number"),
        pytest.param(b"\xff\n", id="no text"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_another_file_is_not_believed(content: bytes) -> None:
    with pytest.raises(ConfigError):
        saved_leases.load(content, "f", "etcd://h")
