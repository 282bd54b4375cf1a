"""The machine that measures: what it is, how busy it was, what processes used."""

from __future__ import annotations

import os
import platform
import runpy
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal_udp import __version__
from canal_udp._abi import source_is_stale
from canal_udp.dataplane import isa

ROOT = Path(__file__).parents[2]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
FOREIGN_LIMIT, STEAL_LIMIT, LOAD_LIMIT = 0.05, 0.01, 0.5


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of all cores together since boot."""

    busy_s: float  # user, system, interrupts and softirq: whoever works for a packet
    steal_s: float  # the hypervisor gave the core to someone else
    at_s: float  # monotonic

    def since(self, before: CpuTimes) -> CpuTimes:
        return CpuTimes(self.busy_s - before.busy_s, self.steal_s - before.steal_s, self.at_s - before.at_s)


def parse_stat(text: str, at_s: float) -> CpuTimes:
    """The first line of /proc/stat; guest time is part of user time."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in text.split(maxsplit=9)[1:9])
    return CpuTimes((user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S, at_s)


def cpu_times() -> CpuTimes:
    return parse_stat(Path("/proc/stat").read_text(encoding="ascii"), time.monotonic())


def cores() -> int:
    return len(os.sched_getaffinity(0))


def foreign_share(seconds: float) -> float:
    """The share of the machine that someone else uses while we do nothing for a moment."""
    before = cpu_times()
    time.sleep(seconds)
    used = cpu_times().since(before)
    return used.busy_s / (used.at_s * (os.cpu_count() or 1))


def busy_warnings(load: float, foreign: Iterable[float], used: CpuTimes, n_cores: int) -> list[str]:
    """Why the numbers may be worth little. Pure."""
    warnings = []
    worst = max(foreign, default=0.0)
    if load > LOAD_LIMIT * n_cores:
        warnings.append(f"the load average was {load:.1f} on {n_cores} cores before the start")
    if worst > FOREIGN_LIMIT:
        warnings.append(f"other programs used up to {worst:.0%} of the machine while nothing was measured")
    steal = used.steal_s / (used.at_s * n_cores) if used.at_s else 0.0
    if steal > STEAL_LIMIT:
        warnings.append(f"the hypervisor took {steal:.1%} of the processor time away (steal)")
    return warnings


def library_warnings() -> list[str]:
    return ["the native library was not built from this tree: `make build`"] if source_is_stale() else []


def about() -> dict[str, Any]:
    """What a reader has to know to judge the numbers."""
    return {
        "canal": __version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "python": platform.python_version(),
        "isa": isa(),
        "cflags": _cflags(),
        "gcc": _first_line("gcc", "--version"),
        "iperf3": _first_line("iperf3", "--version"),
        "load_average": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or "unknown"


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    return (done.stdout or done.stderr).partition("\n")[0]


def _cflags() -> str:
    """Of the source tree; a wheel does not know its own."""
    builder = ROOT / "native" / "build_ffi.py"
    return " ".join(runpy.run_path(str(builder))["CFLAGS"]) if builder.exists() else "unknown"


def _commit() -> str:
    """Of the source tree, where there is one; with a + when files differ from it."""
    if not (ROOT / ".git").exists():
        return "unknown"
    git = ("git", "-C", str(ROOT))
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return _first_line(*git, "rev-parse", "--short", "HEAD") + ("+" if changed.stdout.strip() else "")


# ---- processes -------------------------------------------------------------------------------------------------------


def rss_mib(pid: int) -> float:
    """Resident memory. Raises OSError when the process is gone."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid: int) -> float:
    """Processor time of all threads, to the nanosecond; ticks are too coarse for an idle daemon."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9
