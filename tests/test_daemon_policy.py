"""Policies in force: compiled aside, refused without harm, tried again from all objects."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from canal_udp import daemon_policy
from canal_udp.actions import PolicyKnown
from canal_udp.daemon_policy import PolicyKeeper
from canal_udp.endpoints import Endpoint
from canal_udp.errors import TableError
from canal_udp.policy.cluster import Changes
from canal_udp.policy.compiled import Compiled
from canal_udp.policy.model import Namespace, Pod

POD = Endpoint("x/a", "/run/netns/a", "boot/1", "eth0", (ip_address("10.0.0.1"),), id=3)
OBJECTS: Changes = (
    ("Namespace", "x", Namespace("x", {})),
    ("Pod", "x/a", Pod("x", "a", {}, (ip_address("10.0.0.1"),))),
)


@dataclass
class Bench:
    """A node with one pod, and a data plane that may refuse."""

    refusals: int = 0
    endpoints: dict[str, Endpoint] = field(default_factory=lambda: {"x/a": POD})
    own_addresses: frozenset[Any] = frozenset()
    known: list[PolicyKnown] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def prepare(self, compiled: Compiled) -> None:
        if self.refusals:
            self.refusals -= 1
            raise TableError("rows[1048576]: too many")

    async def apply(self, event: PolicyKnown) -> None:
        self.known.append(event)
        self.told.set()

    async def run(self, *batches: Changes) -> PolicyKeeper:
        """Until the node is told something."""
        keeper = PolicyKeeper(self, lambda: OBJECTS, self.prepare, self.apply)  # type: ignore[arg-type]
        keeper.notice()
        for changes in batches:
            keeper.take(changes)
        task = asyncio.create_task(keeper.run())
        async with asyncio.timeout(20):
            await self.told.wait()
        task.cancel()
        keeper.close()
        return keeper


def test_a_burst_is_one_publication() -> None:
    bench = Bench()
    keeper = asyncio.run(bench.run(OBJECTS[:1], OBJECTS[1:]))
    assert [event.endpoints for event in bench.known] == [frozenset((3,))]
    assert keeper.compiled is not None and list(keeper.compiled.programs) == ["x/a"]


def test_what_the_data_plane_refuses_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is told nothing, the reason is kept, and the next attempt starts from all objects."""
    monkeypatch.setattr(daemon_policy, "RETRY_S", 0.01)
    bench = Bench(refusals=1)
    keeper = asyncio.run(bench.run(OBJECTS[:1]))
    assert keeper.problem == ""
    assert keeper.compiled is not None and list(keeper.compiled.programs) == ["x/a"]


def test_the_reason_of_a_refusal_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(refusals=1)

    async def refused() -> PolicyKeeper:
        keeper = PolicyKeeper(bench, lambda: OBJECTS, bench.prepare, bench.apply)  # type: ignore[arg-type]
        keeper.take(OBJECTS)
        assert not await keeper._compile()
        keeper.close()
        return keeper

    keeper = asyncio.run(refused())
    assert "too many" in keeper.problem
    assert keeper.compiled is None and bench.known == []
