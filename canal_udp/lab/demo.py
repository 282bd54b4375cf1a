"""`canal lab demo`: three nodes, real daemons, real packets, both encapsulations, and a daemon killed under load.

Leaves the second lab running, because the first thing that someone wants after it is to look around; it says how to
take it down. When a check fails or the user interrupts, nothing is left.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from itertools import permutations

from canal_udp.errors import LabError
from canal_udp.lab import faults, run, state, traffic
from canal_udp.lab.checks import account, bits
from canal_udp.lab.describe import account_text
from canal_udp.lab.model import Lab, parse_lab, small_lab
from canal_udp.lab.plan import netns
from canal_udp.lab.show import Screen, Step, canal
from canal_udp.lab.state import LabState
from canal_udp.lab.traffic import Interval

NODES, PODS = 3, 2
LOAD_S, KILL_AT_S, BACK_AT_S = 8, 2.0, 3.0
SPEED_S = 3


def demo(screen: Screen, name: str, take_down: bool) -> int:
    """Run it; returns the exit status."""
    run.require_root()
    started = time.monotonic()
    screen.title("Three nodes, two pods each, on one machine: every node a namespace with its own daemon")
    for old in state.labs():
        if old.name == name:
            with screen.step(f"removing the lab {name!r} of before"):
                run.down(old)
    good = True
    for encap in ("udp", "vxlan"):
        last = encap == "vxlan"
        text = small_lab(NODES, PODS, encap=encap, name=name)
        lab = parse_lab(text, "demo", name)
        screen.line()
        screen.title(f"encapsulation {encap}" + (" (flannel's kernel format)" if last else " (flannel's raw format)"))
        with screen.step("lab up") as step:
            lab_state = run.up(lab, text, lambda text, step=step: screen.progress(step, text))  # type: ignore[misc]
            step.detail = f"{len(lab.nodes)} nodes, {len(lab.pods)} pods, profile {lab.networks['core'].profile}"
        keep = False
        try:
            good &= _show(screen, lab, lab_state, under_load=last)
            keep = good and last and not take_down
        finally:
            if not keep:
                with screen.step("lab down"):
                    run.down(lab_state)
        if not good:
            return 1
    screen.line()
    screen.title(f"All of it in {time.monotonic() - started:.0f} s, every packet through user space.")
    if not take_down:
        _look_around(screen, lab, lab_state)
    return 0


def _show(screen: Screen, lab: Lab, lab_state: LabState, under_load: bool) -> bool:
    good = _reachability(screen, lab, lab_state) and _ipv6(screen, lab, lab_state)
    _speed(screen, lab, lab_state, "throughput, another node", "a1", "b1")
    _speed(screen, lab, lab_state, "throughput, same node", "a1", "a2")
    if under_load:
        good &= _killed_under_load(screen, lab, lab_state)
        good &= _accounts(screen, lab, lab_state)
    return good


def _reachability(screen: Screen, lab: Lab, lab_state: LabState) -> bool:
    pods = lab_state.pods()
    pairs = list(permutations(lab.pods, 2))
    with screen.step("reachability, IPv4") as step:
        answers = traffic.ping_all([(netns(lab, source), pods[target].of(4) or "") for source, target in pairs])
        step.good = all(answers)
        step.detail = f"{sum(answers)} of {len(pairs)} pairs of pods"
    screen.matrix(list(lab.pods), dict(zip(pairs, answers, strict=True)))
    return step.good


def _ipv6(screen: Screen, lab: Lab, lab_state: LabState) -> bool:
    with screen.step("reachability, IPv6 a1 -> c1") as step:
        address = lab_state.pods()["c1"].of(6)
        step.good = address is not None and traffic.ping(netns(lab, "a1"), address)
        step.detail = address or "c1 has no IPv6 address"
    return step.good


def _speed(screen: Screen, lab: Lab, lab_state: LabState, label: str, source: str, target: str) -> None:
    address = lab_state.pods()[target].of(4) or ""
    with screen.step(f"{label}, {source} -> {target}") as step:
        intervals = []
        for interval in traffic.load(netns(lab, source), netns(lab, target), address, SPEED_S):
            intervals.append(interval.bits_per_s)
            screen.progress(step, f"{screen.sparkline(intervals)} {bits(interval.bits_per_s)}")
        step.detail = screen.paint(bits(sum(intervals) / len(intervals)), "accent")


def _killed_under_load(screen: Screen, lab: Lab, lab_state: LabState) -> bool:
    """kill -9 of the sender's daemon while iperf3 runs through it; the connection has to live on."""
    address = lab_state.pods()["b1"].of(4) or ""
    with screen.step("daemon of a killed under load") as step:
        gap = _Killer(lab, lab_state)
        speeds: list[float] = []
        for interval in gap.watch(traffic.load(netns(lab, "a1"), netns(lab, "b1"), address, LOAD_S)):
            speeds.append(interval.bits_per_s)
            _progress_of_kill(screen, step, speeds, gap)
        after = speeds[-4:]
        step.good = bool(gap.back_after_s) and all(speed > 0 for speed in after)
        what = f"serves again {gap.back_after_s:.1f} s after its start; the same TCP connection goes on"
        step.detail = what if step.good else "the connection does not recover"
    screen.line(
        f"    {screen.paint(screen.sparkline(speeds), 'accent')}  {bits(max(speeds))}, "
        f"killed at {KILL_AT_S:.0f} s, started at {BACK_AT_S:.0f} s"
    )
    return step.good


def _progress_of_kill(screen: Screen, step: Step, speeds: list[float], gap: _Killer) -> None:
    screen.progress(step, f"{screen.sparkline(speeds)} {gap.phase}")


class _Killer:
    """Kills and restarts the daemon of node a at its times, beside the traffic that is watched."""

    def __init__(self, lab: Lab, lab_state: LabState) -> None:
        self.lab, self.lab_state = lab, lab_state
        self.phase = "running"
        self.back_after_s = 0.0
        self.error: Exception | None = None

    def watch(self, intervals: Iterator[Interval]) -> Iterator[Interval]:
        thread = threading.Thread(target=self._run, name="canal-lab-killer")
        thread.start()
        try:
            for interval in intervals:
                if self.error is not None:
                    break  # nothing will come through any more
                yield interval
        finally:
            thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        time.sleep(KILL_AT_S)
        try:
            with self.lab_state.locked():
                faults.send_signal(self.lab_state, "a", signal.SIGKILL)
            self.phase = "killed"
            time.sleep(BACK_AT_S - KILL_AT_S)
            self.phase = "starting"
            started = time.monotonic()
            with self.lab_state.locked():
                run.start_daemon(self.lab, self.lab.nodes["a"], self.lab_state)
            run.wait_ready(self.lab, self.lab.nodes["a"], self.lab_state)
            self.back_after_s, self.phase = time.monotonic() - started, "back"
        except (LabError, OSError) as error:
            self.error = error


def _accounts(screen: Screen, lab: Lab, lab_state: LabState) -> bool:
    """No daemon may have lost a packet without a counter that says why."""
    with screen.step("every packet accounted for") as step:
        found = account(lab, lab_state)
        step.good, step.detail = found.balanced, account_text(found)
    return step.good


def _look_around(screen: Screen, lab: Lab, lab_state: LabState) -> None:
    address = lab_state.pods()["b1"].of(4)
    screen.line()
    screen.title("It is still running. Look around:")
    hints = [
        ("lab ps", "what there is"),
        (f"lab exec a1 -- ping -c 3 {address}", "from pod a1 to pod b1"),
        ("lab exec a -- canal status -j", "the daemon of node a; also peers, flows, drops, endpoints"),
        ("lab fault loss 1", "and `lab fault clear`; delay, reorder, mtu, link, kill ..."),
        (f"lab down {lab.name}", "take it down"),
    ]
    for command, what in hints:
        command = f"{canal()} {command}"
        screen.line(f"  {command:<56} {screen.paint(what, 'dim')}")
