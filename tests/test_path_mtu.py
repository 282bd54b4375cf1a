"""Asking paths what they carry, against a network of one function; the clock is a number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from canal_udp.control.path_mtu import CLOSE_ENOUGH, RATE, Found, Path, PathMtus, Probe

PATH = Path(ip_address("192.0.2.2"), ip_address("10.1.2.0"), 1450)
ROUND_TRIP_S = 0.001
INTERVAL_S = 2.0


class World:
    """Paths, a network that carries what `carries` says, and a clock that goes from one deadline to the next."""

    def __init__(self, carries: Callable[[Probe], bool], *paths: Path) -> None:
        self.mtus, self.carries, self.now = PathMtus(INTERVAL_S), carries, 1000.0
        self.paths = paths or (PATH,)
        self.mtus.know(self.paths, self.now)
        self.sent: list[tuple[float, Probe]] = []
        self.found: list[tuple[float, Found]] = []

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.mtus.next_at) is not None and due <= end:
            self.now = max(self.now, due)
            probes, found = self.mtus.step(self.now)
            self.sent += [(self.now, probe) for probe in probes]
            self.found += [(self.now, one) for one in found]
            passing = [probe for probe in probes if self.carries(probe)]
            if passing:
                self.now += ROUND_TRIP_S
            for probe in passing:
                self.mtus.answer(probe.number, probe.target, self.now)
        self.now = end

    def knowledge(self) -> str:
        return self.mtus.knowledge(PATH.address)


def up_to(limit: int) -> Callable[[Probe], bool]:
    return lambda probe: probe.size_bytes <= limit


def test_a_path_that_carries_everything_is_verified() -> None:
    world = World(up_to(9000))
    assert world.knowledge() == "assumed"
    world.run(60)
    assert (world.knowledge(), world.found) == ("verified", [])
    assert len(world.sent) <= 2 * (60 / INTERVAL_S + 1)
    assert {probe.size_bytes for _, probe in world.sent} == {128, 1450}


@pytest.mark.parametrize("limit", [*range(540, 1450, 13), 1449])
def test_a_black_hole_is_found_soon_and_closely(limit: int) -> None:
    world = World(up_to(limit))
    world.run(4)
    at, found = world.found[0]
    assert found.address == PATH.address
    assert limit - CLOSE_ENOUGH < found.mtu_bytes <= limit
    assert at < 1000 + 4
    assert world.knowledge() == "assumed"


def test_a_black_hole_that_appears_later() -> None:
    world = World(up_to(9000))
    world.run(30)
    world.carries = up_to(1300)
    began = world.now
    world.run(10)
    assert world.found[0][0] - began < INTERVAL_S + 1.5
    assert world.found[0][1].mtu_bytes > 1300 - CLOSE_ENOUGH


def test_a_suspicion_is_looked_into_at_once() -> None:
    """A black hole is found before a connection that fell into it sends for the third time (0.2 s, 0.6 s)."""
    world = World(up_to(9000))
    world.run(30.3)
    world.carries = up_to(1300)
    began = world.now
    world.mtus.suspect(PATH.address, world.now)
    world.run(0.35)
    assert world.found and world.found[0][0] - began < 0.35
    assert world.found[0][1].mtu_bytes > 1300 - CLOSE_ENOUGH


def test_suspicions_do_not_add_up() -> None:
    world = World(up_to(9000))
    world.run(30)
    before = len(world.sent)
    for _ in range(100):
        world.mtus.suspect(PATH.address, world.now)
        world.mtus.suspect(ip_address("192.0.2.77"), world.now)
        world.run(0.01)
    assert len(world.sent) - before <= 2 * (1 / 0.1 + 2)
    assert (world.knowledge(), world.found) == ("verified", [])


def test_answers_that_come_one_by_one_end_no_round() -> None:
    """A busy host answers late, but one after the other."""
    mtus, now = PathMtus(INTERVAL_S), 1000.0
    mtus.know((PATH,), now)
    while not (probes := mtus.step(now)[0]):
        now = mtus.next_at or now
    mtus.answer(probes[0].number, PATH.target, now + 0.01)
    assert mtus.next_at is not None and mtus.next_at >= now + 0.01 + 0.05
    mtus.answer(probes[1].number, PATH.target, now + 0.059)
    mtus.step(now + 0.059)
    assert mtus.knowledge(PATH.address) == "verified"


def test_a_smaller_mtu_in_use_is_verified_in_turn() -> None:
    world = World(up_to(1300))
    world.run(4)
    world.mtus.know((replace(PATH, mtu_bytes=world.found[0][1].mtu_bytes),), world.now)
    world.found.clear()
    world.run(10)
    assert (world.knowledge(), world.found) == ("verified", [])


@pytest.mark.parametrize("small", [True, False], ids=["echoes are limited", "nothing answers"])
def test_who_does_not_answer_tells_nothing(small: bool) -> None:
    """Not even when it goes silent in the middle of a search."""
    world = World(up_to(1300) if small else up_to(0))
    world.run(0.3 if small else 60)
    world.carries = up_to(0)
    world.run(60)
    assert (world.knowledge(), world.found) == ("assumed", [])


@pytest.mark.parametrize("seed", range(10))
def test_random_loss_is_no_black_hole(seed: int) -> None:
    rng = random.Random(seed)
    world = World(lambda probe: rng.random() > 0.05)
    world.run(600)
    assert world.found == []


def test_a_late_or_foreign_answer_changes_nothing() -> None:
    world = World(up_to(0))
    world.run(0.3)
    (_, probe), *_ = world.sent
    world.mtus.answer(probe.number, ip_address("10.1.3.0"), world.now)
    world.run(10)
    for _, probe in world.sent:
        world.mtus.answer(probe.number, probe.target, world.now)
    world.mtus.answer(65535, PATH.target, world.now)
    world.run(10)
    assert (world.knowledge(), world.found) == ("assumed", [])


def test_many_peers_are_asked_slowly() -> None:
    paths = tuple(Path(ip_address("192.0.2.0") + i, ip_address("10.1.0.0") + 256 * i, 1450) for i in range(1, 400))
    world = World(up_to(9000), *paths)
    world.run(60)
    assert len({probe.target for _, probe in world.sent}) == 399
    for second in range(60):
        in_it = [probe for at, probe in world.sent if second <= at - 1000 < second + 1]
        assert len(in_it) <= 2 * (RATE + 1)


def test_paths_come_and_go() -> None:
    world = World(up_to(9000))
    world.run(10)
    world.mtus.know((), world.now)
    assert (world.mtus.next_at, world.knowledge()) == (None, "assumed")
    world.mtus.know((PATH,), world.now)
    world.mtus.know((PATH,), world.now)
    world.run(10)
    assert world.knowledge() == "verified"
