"""What is measured, in which order, and how long that takes. Pure.

Structure  profile > round > measure > system: systems that are compared run one after the other (A B C, A B C ...),
           and every round repeats everything, so that whatever changes on the machine meanwhile touches all alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from canal_udp.errors import UsageError

PROFILES = ("wire", "native")
SYSTEM_UP_S, TOOL_S = 4.0, 0.3


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a measure."""

    title: str
    unit: str
    scale: float  # shown = value / scale
    better: int  # +1 more is better, -1 less is better


METRICS = {
    "bits_per_s": Metric("throughput", "Gbit/s", 1e9, 1),
    "cpu_s_per_gb": Metric("CPU", "s/GB", 1, -1),
    "packets_per_s": Metric("loss-free rate", "kpps", 1e3, 1),
    "p50_us": Metric("p50", "us", 1, -1),
    "p99_us": Metric("p99", "us", 1, -1),
    "p999_us": Metric("p99.9", "us", 1, -1),
    "per_s": Metric("rate", "1/s", 1, 1),
    "rss_mib": Metric("memory", "MiB", 1, -1),
    "cpu_percent": Metric("CPU", "%", 1, -1),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing to do with one system; `measures.py` knows how."""

    name: str
    group: str
    title: str
    metrics: tuple[str, ...]  # those that are shown and compared; the first one is drawn
    quick: bool = False  # part of a run that is to end soon
    weight: float = 1.0  # how many times --seconds it takes


_TIMES = ("p50_us", "p99_us", "p999_us")
_BULK = ("bits_per_s", "cpu_s_per_gb")
MEASURES = (
    Measure("tcp-1", "tcp", "TCP 1 stream", _BULK, quick=True),
    Measure("tcp-4", "tcp", "TCP 4 streams", _BULK, quick=True),
    Measure("tcp-16", "tcp", "TCP 16 streams", _BULK),
    Measure("tcp-both", "tcp", "TCP both directions", _BULK),
    Measure("udp-64", "udp", "UDP 64 bytes", ("packets_per_s",), quick=True, weight=4),
    Measure("udp-512", "udp", "UDP 512 bytes", ("packets_per_s",), weight=4),
    Measure("udp-1400", "udp", "UDP 1400 bytes", ("packets_per_s",), weight=4),
    Measure("udp-imix", "udp", "UDP IMIX", ("packets_per_s",), weight=4),
    Measure("tcp-rr", "rr", "TCP round trip", _TIMES, quick=True),
    Measure("udp-rr", "rr", "UDP round trip", _TIMES),
    Measure("tcp-rr-load", "load", "TCP round trip, half load", _TIMES, weight=2),
    Measure("udp-rr-load", "load", "UDP round trip, half load", _TIMES, weight=2),
    Measure("connect", "connect", "TCP connections", ("per_s", "p99_us")),
    Measure("idle", "idle", "idle daemon", ("rss_mib", "cpu_percent")),
)
BY_NAME = {measure.name: measure for measure in MEASURES}
GROUPS = tuple(dict.fromkeys(measure.group for measure in MEASURES))


@dataclass(frozen=True, slots=True)
class Step:
    profile: str
    round: int  # from 1
    measure: Measure
    system: str


@dataclass(frozen=True, slots=True)
class Plan:
    profiles: tuple[str, ...]
    systems: tuple[str, ...]
    measures: tuple[Measure, ...]
    rounds: int
    seconds: float

    def steps(self, profile: str, round: int) -> Iterator[Step]:
        """The steps of one round of one profile."""
        for measure in self.measures:
            for system in self.systems:
                yield Step(profile, round, measure, system)

    @property
    def expected_s(self) -> float:
        """About how long it takes."""
        each = sum(measure.weight * self.seconds + TOOL_S for measure in self.measures)
        return len(self.profiles) * len(self.systems) * (SYSTEM_UP_S + self.rounds * each)


def choose(words: Sequence[str], quick: bool) -> tuple[Measure, ...]:
    """The measures of groups or names; without any, all of them or those of a quick run. Raises UsageError."""
    if not words:
        return tuple(measure for measure in MEASURES if measure.quick or not quick)
    for word in words:
        if word not in (*GROUPS, *BY_NAME):
            raise UsageError(f"--only {word}: there are {', '.join((*GROUPS, *BY_NAME))}")
    return tuple(measure for measure in MEASURES if measure.group in words or measure.name in words)


def profiles(words: Sequence[str]) -> tuple[str, ...]:
    """Raises UsageError."""
    for word in words:
        if word not in PROFILES:
            raise UsageError(f"--profile {word}: there are {' and '.join(PROFILES)}")
    return tuple(profile for profile in PROFILES if profile in words)
