"""One system, up: its lab, its two ends, and its processes, which rest while others are measured."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from canal_udp.api import call
from canal_udp.bench.systems import System
from canal_udp.errors import BenchError
from canal_udp.lab import run
from canal_udp.lab.model import Lab, parse_lab
from canal_udp.lab.plan import netns
from canal_udp.lab.processes import Process
from canal_udp.lab.state import LabState

SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Namespaces and addresses of the two pods that talk."""

    source: str
    source_address: str
    target: str
    target_address: str

    def turned(self) -> Ends:
        return Ends(self.target, self.target_address, self.source, self.source_address)


@dataclass(frozen=True, slots=True)
class Bed:
    """A system in one profile."""

    system: System
    profile: str
    lab: Lab
    state: LabState
    ends: Ends

    def processes(self) -> list[Process]:
        """What forwards the packets in user space."""
        return [process for process in self.state.processes().values() if process.state != "gone"]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Outside of such a block its processes are stopped, so that they take nothing from the others."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for process in self.processes():
            process.signal(number)

    def drops(self) -> dict[str, int]:
        """What our daemons dropped so far, by reason; nothing where none of ours runs. Call while awake."""
        total: dict[str, int] = {}
        for node in self._daemons():
            for reason, count in call(self.state.run_dir(node), "drops").items():
                total[reason] = total.get(reason, 0) + count
        return total

    def check_conservation(self) -> None:
        """Raises BenchError when a daemon of ours lost packets without a reason. Call while awake and silent."""
        for node in self._daemons():
            deadline = time.monotonic() + SETTLE_S
            while not (sums := self._status(node)["conservation"])["balanced"]:
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.system.name}: the daemon of node {node} has lost packets: {sums}")
                time.sleep(0.05)

    def modes(self) -> dict[str, Any]:
        """How our daemons forward, for the report."""
        return {node: self._status(node)["offload"] for node in self._daemons()}

    def _status(self, node: str) -> dict[str, Any]:
        status: dict[str, Any] = call(self.state.run_dir(node), "status")
        return status

    def _daemons(self) -> list[str]:
        return [member for role, member in self.state.processes() if role == "daemon"]


def up(system: System, profile: str, name: str) -> Bed:
    """Bring a system up; nothing of it is left when that fails. Raises CanalError."""
    text = system.lab_text(name, profile)
    lab = parse_lab(text, f"system {system.name}", name)
    state = run.up(lab, text)
    try:
        pods = {pod: address.of(4) or "" for pod, address in state.pods().items()}
        if system.arrange is not None:
            pods = system.arrange(lab, state, pods)
    except BaseException:
        run.down(state)
        raise
    source, target = system.path
    ends = Ends(netns(lab, source), pods[source], netns(lab, target), pods[target])
    return Bed(system, profile, lab, state, ends)
