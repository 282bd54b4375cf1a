"""`canal bench overlay`: bring the systems up, check them, measure in turns, check again, report.

Structure  for each profile: all systems up, each behind the gate, then rounds of measures of systems; see plan.py
Invariants a system that is not measured is stopped. No report without every check; nothing is left behind, however it
           ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from canal_udp.bench import bed as beds
from canal_udp.bench import gate, machine, tools
from canal_udp.bench.bed import Bed
from canal_udp.bench.measures import Bench
from canal_udp.bench.plan import Measure, Plan, Step
from canal_udp.bench.report import Report, Run, shown
from canal_udp.bench.systems import System
from canal_udp.errors import BenchError, CanalError
from canal_udp.lab import run as labs
from canal_udp.lab.show import Screen
from canal_udp.lab.show import Step as Line

LOOK_BEFORE_S, LOOK_BETWEEN_S = 1.0, 0.25  # how long we look at what others do with the machine


@dataclass(slots=True)
class Findings:
    """What a profile adds to the report."""

    runs: list[Run]
    checks: list[dict[str, Any]]
    foreign: list[float]


def run(plan: Plan, systems: Sequence[System], screen: Screen) -> Report:
    """Measure. Raises BenchError, LabError, KeyboardInterrupt; then there is no report."""
    labs.require_root()
    about = machine.about()
    with screen.step("tools"):
        tools.build()
    found, bench = Findings([], [], []), Bench(plan.seconds)
    started = machine.cpu_times()
    with _interruptible():
        for profile in plan.profiles:
            with ExitStack() as stack:
                up = _up(systems, profile, found, screen, stack)
                _profile(plan, profile, up, bench, found, screen)
    used = machine.cpu_times().since(started)
    return Report(
        about=about,
        plan={
            "profiles": plan.profiles,
            "systems": {system.name: system.about for system in systems},
            "measures": [measure.name for measure in plan.measures],
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "foreign_share": [round(share, 4) for share in found.foreign],
            "steal_s": round(used.steal_s, 2),
        },
        baselines={system.name: system.baseline for system in systems},
        runs=tuple(found.runs),
        checks=tuple(found.checks),
        warnings=(
            *machine.library_warnings(),
            *machine.busy_warnings(about["load_average"], found.foreign, used, os.cpu_count() or 1),
        ),
    )


def _up(systems: Sequence[System], profile: str, found: Findings, screen: Screen, stack: ExitStack) -> list[Bed]:
    """Every system up, correct, and at rest; the stack takes them down."""
    up = []
    for index, system in enumerate(systems):
        with screen.step(f"{profile}: {system.name}") as line:
            bed = beds.up(system, profile, f"bench{os.getpid()}-{profile[0]}{index}")
            stack.callback(_down, bed)
            up.append(bed)
            with bed.awake():
                screen.progress(line, "checking")
                check = gate.check(bed)
            modes = {str(mode.get("mode")) for mode in check["modes"].values()}
            line.detail = "; ".join(["correct", *sorted(modes)])
            found.checks.append(check)
    return up


def _down(bed: Bed) -> None:
    """One lab that will not go does not keep the others."""
    with contextlib.suppress(CanalError):
        labs.down(bed.state)


def _profile(plan: Plan, profile: str, up: Sequence[Bed], bench: Bench, found: Findings, screen: Screen) -> None:
    by_name = {bed.system.name: bed for bed in up}
    before = {}
    for bed in up:
        with bed.awake():
            before[bed.system.name] = bed.drops()
    found.foreign.append(machine.foreign_share(LOOK_BEFORE_S))
    for number in range(1, plan.rounds + 1):
        with screen.step(f"{profile}: round {number} of {plan.rounds}") as line:
            for step in plan.steps(profile, number):
                found.runs.append(_step(step, by_name[step.system], bench, screen, line))
            found.foreign.append(machine.foreign_share(LOOK_BETWEEN_S))
    for bed in up:
        with bed.awake():
            drops = gate.check_end(bed, before[bed.system.name])
        if drops:
            found.checks.append({"profile": profile, "system": bed.system.name, "drops_under_overload": drops})


def _step(step: Step, bed: Bed, bench: Bench, screen: Screen, line: Line) -> Run:
    screen.progress(line, f"{step.measure.title}: {step.system}")
    with bed.awake():
        try:
            values, details = bench.take(step.measure, bed)
        except BenchError as error:
            raise BenchError(f"{step.system}, {step.profile}, {step.measure.title}: {error}") from error
    screen.progress(line, f"{step.measure.title}: {step.system} {_headline(step.measure, values)}")
    return Run(step.profile, step.round, step.measure.name, step.system, values, details)


def _headline(measure: Measure, values: dict[str, float]) -> str:
    metric = measure.metrics[0]
    return shown(metric, values[metric]) if metric in values else ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run like Ctrl-C does, so that the labs are taken down."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
