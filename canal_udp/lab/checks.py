"""The checks of a lab file: each pair of pods, each family, held against what the file says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal_udp.api import call
from canal_udp.errors import LabError
from canal_udp.lab import traffic
from canal_udp.lab.model import Check, Lab
from canal_udp.lab.plan import netns
from canal_udp.lab.state import LabState, PodAddress

SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """One direction between two pods."""

    source: str
    target: str
    family: int
    address: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} (IPv{self.family})"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one path of one check."""

    check: Check
    path: Route
    good: bool
    detail: str


def paths(check: Check, pods: dict[str, PodAddress]) -> list[Route]:
    """Every ordered pair of different pods of a check, in every family that both have or that it asks for."""
    found = []
    for source in check.sources:
        for target in check.targets:
            for family in (4, 6) if check.family is None else (check.family,):
                address = pods[target].of(family)
                if source != target and address is not None and pods[source].of(family) is not None:
                    found.append(Route(source, target, family, address))
    return found


def run_checks(lab: Lab, pods: dict[str, PodAddress]) -> Iterator[Result]:
    """Results as they come, in the file's order. Raises LabError for a check that has nothing to check."""
    for check in lab.checks:
        todo = paths(check, pods)
        if not todo:
            raise LabError(f"line {check.line}: no two pods of this {check.kind} check have an address in common")
        if check.kind in ("reach", "blocked"):
            yield from _pings(lab, check, todo)
        else:
            for path in todo:
                yield _measure(lab, check, path)


def _pings(lab: Lab, check: Check, todo: list[Route]) -> Iterator[Result]:
    wanted = check.kind == "reach"
    answers = traffic.ping_all([(netns(lab, path.source), path.address) for path in todo], 2 if wanted else 1)
    for path, answer in zip(todo, answers, strict=True):
        yield Result(check, path, answer == wanted, "answers" if answer else "does not answer")


def _measure(lab: Lab, check: Check, path: Route) -> Result:
    source, target = netns(lab, path.source), netns(lab, path.target)
    try:
        if check.kind == "transfer":
            done = traffic.transfer(source, target, path.address, check.size_bytes)
            detail = (
                f"{done.size_bytes >> 20} MiB in {done.seconds:.1f} s, SHA-256 {'equal' if done.equal else 'DIFFERS'}"
            )
            return Result(check, path, done.equal, detail)
        speed = traffic.throughput(source, target, path.address, check.seconds, check.streams)
    except LabError as error:
        return Result(check, path, False, str(error))
    wanted = f" (at least {bits(check.at_least_bits)})" if check.at_least_bits else ""
    return Result(check, path, speed.bits_per_s >= check.at_least_bits, bits(speed.bits_per_s) + wanted)


@dataclass(frozen=True, slots=True)
class Account:
    """What the daemons of a lab took in and what became of it, in packets."""

    received: int
    delivered: int
    dropped: int
    unbalanced: tuple[str, ...]  # nodes whose daemon lost packets without a reason

    @property
    def balanced(self) -> bool:
        return not self.unbalanced


def account(lab: Lab, lab_state: LabState) -> Account:
    """Add up the daemons' accounts. Raises DaemonUnreachable."""
    found = {node.name: _settled(lab_state.run_dir(node.name)) for node in lab.nodes.values() if node.kind == "canal"}
    received, delivered, dropped = (
        sum(one[key] for one in found.values()) for key in ("received", "delivered", "dropped")
    )
    return Account(received, delivered, dropped, tuple(name for name, one in found.items() if not one["balanced"]))


def _settled(run_dir: Path) -> dict[str, Any]:
    """A daemon's account; read while packets are on their way it may be off by them, so it gets a moment."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        found: dict[str, Any] = call(run_dir, "status")["conservation"]
        if found["balanced"] or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def bits(bits_per_s: float) -> str:
    """A rate as people say it."""
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits_per_s >= factor:
            return f"{bits_per_s / factor:.3g} {unit}"
    return f"{bits_per_s:.0f} bit/s"
