"""How each measure is taken. Each checks what it got, or its tool does, and raises BenchError instead of a number."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from canal_udp.bench import machine, tools
from canal_udp.bench.bed import Bed, Ends
from canal_udp.bench.plan import Measure
from canal_udp.bench.search import Trial, loss_free_rate
from canal_udp.errors import BenchError
from canal_udp.lab.plan import CONGESTION_CONTROL

IPERF_PORT = "5201"
TRIAL_SHARE, TRIAL_MIN_S = 0.25, 0.25  # of --seconds, for one trial of a search
LOAD_LEAD_S = 0.4
IDLE_SETTLE_S, IDLE_MIN_S = 1.0, 2.0  # timers that were due while it rested are not its idle state
REQUEST_SIZE = "64"

Values = dict[str, float]
Details = dict[str, Any]


@dataclass(slots=True)
class Bench:
    """What the measures of one report have in common."""

    seconds: float
    capacity: dict[tuple[str, str], float] = field(default_factory=dict)  # bits/s of one stream by profile, system

    def take(self, measure: Measure, bed: Bed) -> tuple[Values, Details]:
        """Values by metric, and whatever else a reader may want. Raises BenchError."""
        word = measure.name.partition("-")[2]
        if measure.name == "tcp-both":
            return bulk(bed.ends, self.seconds, 1, both=True)
        if measure.group == "tcp":
            values, details = bulk(bed.ends, self.seconds, int(word))
            if word == "1":
                self.capacity.setdefault((bed.profile, bed.system.name), values["bits_per_s"])
            return values, details
        return _TAKE[measure.group](self, measure, bed)

    def udp(self, measure: Measure, bed: Bed) -> tuple[Values, Details]:
        size = measure.name.partition("-")[2]
        found = loss_free_rate(lambda rate: blast(bed.ends, rate, max(TRIAL_MIN_S, self.seconds * TRIAL_SHARE), size))
        trials = [[round(trial.wanted), round(trial.offered), round(trial.received)] for trial in found.trials]
        return {"packets_per_s": found.rate}, {"sender_limited": found.sender_limited, "trials": trials}

    def round_trips(self, measure: Measure, bed: Bed) -> tuple[Values, Details]:
        return ping_pong(bed.ends, measure.name.partition("-")[0], self.seconds)

    def connections(self, measure: Measure, bed: Bed) -> tuple[Values, Details]:
        values, details = ping_pong(bed.ends, "connect", self.seconds)
        return values | {"per_s": details["count"] / details["seconds"]}, details

    def loaded(self, measure: Measure, bed: Bed) -> tuple[Values, Details]:
        """Round trips beside a stream at half of what this system carries."""
        key = bed.profile, bed.system.name
        if key not in self.capacity:
            self.capacity[key] = bulk(bed.ends, self.seconds, 1)[0]["bits_per_s"]
        rate = self.capacity[key] / 2
        with background(bed.ends, rate, self.seconds):
            values, details = ping_pong(bed.ends, measure.name.partition("-")[0], self.seconds)
        return values, details | {"load_bits_per_s": rate}

    def idle(self, measure: Measure, bed: Bed) -> tuple[Values, Details]:
        """Mean of the processes that forward; nothing where the kernel does."""
        pids = [process.pid for process in bed.processes()]
        if not pids:
            return {}, {}
        time.sleep(IDLE_SETTLE_S)
        before, started = sum(map(machine.cpu_s, pids)), time.monotonic()
        time.sleep(max(IDLE_MIN_S, self.seconds))
        used, span = sum(map(machine.cpu_s, pids)) - before, time.monotonic() - started
        rss = sum(map(machine.rss_mib, pids)) / len(pids)
        return {"rss_mib": rss, "cpu_percent": 100 * used / span / len(pids)}, {"processes": len(pids)}


_TAKE: dict[str, Callable[[Bench, Measure, Bed], tuple[Values, Details]]] = {
    "udp": Bench.udp,
    "rr": Bench.round_trips,
    "load": Bench.loaded,
    "connect": Bench.connections,
    "idle": Bench.idle,
}


# ---- TCP by iperf3 ---------------------------------------------------------------------------------------------------


@contextmanager
def _iperf_server(ends: Ends) -> Iterator[None]:
    argv = ["iperf3", "-s", "-1", "--forceflush", "-B", ends.target_address, "-p", IPERF_PORT]
    with tools.running(ends.target, argv) as server:
        tools.line(server, until="listening")
        yield


def _iperf_client(ends: Ends, seconds: float, *words: str) -> list[str]:
    whole = str(max(1, round(seconds)))
    argv = ["iperf3", "-c", ends.target_address, "-p", IPERF_PORT, "-C", CONGESTION_CONTROL, "-t", whole]
    return [*argv, "-J", *words]


def bulk(ends: Ends, seconds: float, streams: int, both: bool = False) -> tuple[Values, Details]:
    """Throughput at the receiver, and what the whole machine spent on it: softirq, daemons, iperf3 and all."""
    words = ["-P", str(streams), *(["--bidir"] if both else [])]
    with _iperf_server(ends):
        before = machine.cpu_times()
        result = tools.call(ends.source, _iperf_client(ends, seconds, *words), seconds)
        used = machine.cpu_times().since(before)
    end = result["end"]
    received = [end[name] for name in ("sum_received", "sum_received_bidir_reverse") if name in end]
    size = sum(item["bytes"] for item in received)
    if size == 0:
        raise BenchError("iperf3 moved no byte")
    values = {
        "bits_per_s": sum(item["bits_per_second"] for item in received),
        "cpu_s_per_gb": used.busy_s / (size / 1e9),
    }
    details = {
        "bytes": size,
        "retransmits": sum(
            end[name].get("retransmits", 0) for name in ("sum_sent", "sum_sent_bidir_reverse") if name in end
        ),
        "cpu_busy_s": round(used.busy_s, 3),
        "cpu_steal_s": round(used.steal_s, 3),
    }
    return values, details


@contextmanager
def background(ends: Ends, bits_per_s: float, seconds: float) -> Iterator[None]:
    """One TCP stream at a rate for as long as the block runs. Raises BenchError when it broke meanwhile."""
    argv = _iperf_client(ends, seconds + 2 * LOAD_LEAD_S + 1, "-b", str(round(bits_per_s)))
    with _iperf_server(ends), tools.running(ends.source, argv) as client:
        time.sleep(LOAD_LEAD_S)
        yield
        if client.poll() is not None:
            raise BenchError("the load ended before the measurement")


# ---- our own tools ---------------------------------------------------------------------------------------------------


def blast(ends: Ends, rate: float, seconds: float, size: str, check: bool = False) -> Trial:
    """UDP packets of a size at a rate, 0 = as fast as they go. Raises BenchError for a packet that was changed."""
    blaster = tools.tool("udp-blast")
    with tools.running(ends.target, [blaster, "receive", ends.target_address]) as receiver:
        argv = [blaster, "send", ends.target_address, tools.port(receiver), str(round(rate)), f"{seconds:.3f}", size]
        sent = tools.call(ends.source, [*argv, *(["check"] if check else [])], seconds)
        received = json.loads(tools.finish(receiver, tools.PATIENCE_S))
    if received["corrupt"]:
        raise BenchError(f"{received['corrupt']} of {received['packets']} UDP packets arrived changed")
    return Trial(rate, sent["packets"] / sent["seconds"], received["packets"] / sent["seconds"])


def ping_pong(ends: Ends, way: str, seconds: float) -> tuple[Values, Details]:
    """Round trips, or whole connections, one after the other."""
    program = tools.tool("pingpong")
    with tools.running(ends.target, [program, "serve", way, ends.target_address]) as server:
        argv = [program, way, ends.target_address, tools.port(server), f"{seconds:.3f}", REQUEST_SIZE]
        result = tools.call(ends.source, argv, seconds)
    times = {name: value for name, value in result.items() if name.endswith("_us")}
    return times, {"count": result["count"], "seconds": result["seconds"], "lost": result["lost"]}
