"""The daemon when something around it fails: it says so, goes on with the rest, and catches up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from canal_udp.actions import MtuLearned
from canal_udp.control.lease import Lease
from canal_udp.daemon import LOCK_NAME, _sole_daemon
from canal_udp.errors import DeviceError, RequestError
from canal_udp.readings import Flow
from tests.test_api import Bench


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(tmp_path, f"{request.node.name}-{tmp_path.name}")


def test_the_hosts_own_namespace_is_no_pod(bench: Bench) -> None:
    """Its default route would be replaced by one into the overlay: the machine would be gone."""
    bench.host.namespaces["/proc/1/ns/net"] = 0

    async def work() -> None:
        with pytest.raises(RequestError, match="the daemon's own namespace"):
            await bench.ask("attach", netns="1")
        assert await bench.ask("endpoints") == []

    bench.run(work)


def test_detach_by_name_and_namespace_means_both(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a", name="default/a")
        await bench.ask("attach", netns="b", name="default/b")
        assert (await bench.ask("detach", netns="a", name="default/b"))["detached"] is False
        assert (await bench.ask("detach", netns="b", name="default/b"))["detached"] is True
        assert [one["name"] for one in await bench.ask("endpoints")] == ["default/a"]

    bench.run(work)


def test_a_pool_that_cannot_be_read_is_told_and_waited_for(bench: Bench) -> None:
    """Nothing else stands still meanwhile, and the daemon does not end."""
    path = bench.config.state_dir / "ipam.json"
    path.mkdir(parents=True)

    async def work() -> None:
        await bench.until(lambda: bench.plane.published)
        status = await bench.ask("status")
        assert status["state"] == "degraded" and "Is a directory" in status["reasons"][0]
        with pytest.raises(RequestError, match="Is a directory"):
            await bench.ask("attach", netns="a")
        path.rmdir()
        await bench.until(lambda: bench.daemon.state() == "ready")
        assert (await bench.ask("attach", netns="a"))["ips"] == ["10.244.1.2/32"]

    bench.run(work, state="degraded")


def test_an_address_that_cannot_be_given_back_is_given_back_later(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a", name="default/a")
        scratch = bench.config.state_dir / ".ipam.json.new"
        scratch.mkdir()
        assert (await bench.ask("detach", name="default/a"))["detached"] is True
        assert bench.plane.published[-1].routes[0].kind != "pod"
        assert bench.daemon.state() == "degraded"
        scratch.rmdir()
        await bench.until(lambda: bench.daemon.state() == "ready")
        assert bench.daemon.ipam is not None and not bench.daemon.ipam.pool.names

    bench.run(work)


def test_a_kernel_that_does_not_tell_its_routes_is_asked_again(bench: Bench) -> None:
    async def work() -> None:
        store = bench.daemon._store
        await store.create_lease(Lease(IPv4Network("10.244.9.0/24"), None, IPv4Address("192.0.2.9")), None)
        await bench.until(lambda: bench.daemon.node.peers.peers)
        bench.host.broken["leading_into"] = "No buffer space available"
        bench.host.monitors[None].ring()
        before = bench.host.asked_for_routes
        await bench.until(lambda: bench.host.asked_for_routes > before + 1)
        bench.host.recursive = frozenset({IPv4Address("192.0.2.9")})
        del bench.host.broken["leading_into"]
        await bench.until(lambda: bench.daemon.node.recursive)
        assert any("192.0.2.9" in reason for reason in (await bench.ask("status"))["reasons"])

    bench.run(work)


def test_an_underlay_too_narrow_for_anything(bench: Bench) -> None:
    """Status says so, instead of failing over it; what was there stays."""

    async def work() -> None:
        bench.host.underlay_now = replace(bench.host.underlay_now, mtu_bytes=100)
        bench.host.monitors[None].ring()
        await bench.until(lambda: bench.daemon.state() == "degraded")
        status = await bench.ask("status")
        assert status["mtu"] is None and "100 bytes" in status["reasons"][0]
        assert await bench.ask("peers") == [] == await bench.ask("endpoints")
        assert all(not task.done() for task in bench.daemon._tasks)

    bench.run(work)


def test_a_link_that_was_narrow_for_a_moment(bench: Bench) -> None:
    """What the kernel said of it then says nothing about the path now, even if nobody saw the link change."""
    peer = IPv4Address("192.0.2.9")

    async def work() -> None:
        await bench.daemon._store.create_lease(Lease(IPv4Network("10.244.9.0/24"), None, peer), None)
        await bench.until(lambda: bench.daemon.node.peers.peers)
        await bench.daemon.apply(MtuLearned(peer, 1280))
        assert [vtep.mtu_bytes for vtep in bench.plane.published[-1].vteps] == [1252]
        bench.host.path_mtus[peer] = 1280
        bench.host.monitors[None].ring()
        await bench.until(lambda: not bench.daemon._look.is_set())
        bench.host.path_mtus.clear()
        bench.host.monitors[None].ring()
        await bench.until(lambda: bench.plane.published[-1].vteps[0].mtu_bytes == 1472)
        assert bench.daemon.node.learned == frozenset()

    bench.run(work)


def test_a_full_table_of_flows_holds_nobody_up(bench: Bench) -> None:
    """Reading it takes seconds; the lease is renewed meanwhile, and others are answered."""
    turns = 0
    seen = set()
    pod = IPv4Address("10.244.1.2")
    flow = Flow(pod, pod, 17, 1, 2, "new", "allow", (0, 0), "", "", (1, 0), (1, 0), 1, 0, 0, 0)

    def flows(since_ms: int = 0) -> Iterator[Flow]:
        for _ in range(10_000):
            seen.add(turns)
            yield flow

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def work() -> None:
        bench.plane.flows = flows  # type: ignore[method-assign]
        task = asyncio.create_task(others())
        assert len(await bench.ask("flows")) == 10_000
        task.cancel()
        assert len(seen) > 10

    bench.run(work)


def test_the_second_daemon_leaves_the_firsts_lock_alone(tmp_path: Path) -> None:
    with _sole_daemon(tmp_path):
        before = (tmp_path / LOCK_NAME).read_text(encoding="ascii")
        with pytest.raises(DeviceError, match="another daemon"), _sole_daemon(tmp_path):
            pass
        assert (tmp_path / LOCK_NAME).read_text(encoding="ascii") == before != ""
