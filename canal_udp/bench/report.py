"""A report: every single run with its conditions, as JSON, and what follows from it. Pure.

Structure  {"kind": "overlay", "format": 1, "about": {...}, "plan": {...}, "warnings": [...], "checks": [...],
            "baselines": {system: system}, "runs": [{profile, round, measure, system, values}...], "summary": [...]}
Invariant  the summary follows from the runs; readers take it from there again and do not believe the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from canal_udp.bench.plan import BY_NAME, METRICS
from canal_udp.bench.stats import Spread, ratio, spread
from canal_udp.errors import BenchError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What one measure of one system gave once."""

    profile: str
    round: int
    measure: str
    system: str
    values: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """One metric of one measure of one system over all rounds."""

    profile: str
    measure: str
    metric: str
    system: str
    value: Spread
    ratio: Spread | None  # to the baseline; None for the baseline itself

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.profile, self.measure, self.metric, self.system


@dataclass(frozen=True, slots=True)
class Report:
    about: Mapping[str, Any]
    plan: Mapping[str, Any]
    baselines: Mapping[str, str]
    runs: tuple[Run, ...]
    checks: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    def results(self) -> list[Result]:
        """In the order of measures, metrics and systems as they ran; what a system has no value for is left out."""
        found: dict[tuple[str, str, str, str], dict[int, float]] = {}
        for run in self.runs:
            shown = BY_NAME[run.measure].metrics if run.measure in BY_NAME else tuple(run.values)
            for metric in shown:
                if metric in run.values:
                    key = run.profile, run.measure, metric, run.system
                    found.setdefault(key, {})[run.round] = run.values[metric]
        return [self._result(key, rounds, found) for key, rounds in found.items()]

    def _result(
        self,
        key: tuple[str, str, str, str],
        rounds: Mapping[int, float],
        found: Mapping[tuple[str, str, str, str], Mapping[int, float]],
    ) -> Result:
        *where, system = key
        baseline = self.baselines.get(system, system)
        against = found.get((where[0], where[1], where[2], baseline)) if baseline != system else None
        return Result(*key, spread(list(rounds.values())), ratio(rounds, against) if against else None)


def to_json(report: Report) -> dict[str, Any]:
    summary = [
        {**{k: v for k, v in asdict(result).items() if k != "ratio"}, "ratio": result.ratio and asdict(result.ratio)}
        for result in report.results()
    ]
    return {
        "kind": "overlay",
        "format": FORMAT,
        "about": report.about,
        "plan": report.plan,
        "warnings": list(report.warnings),
        "checks": list(report.checks),
        "baselines": dict(report.baselines),
        "summary": summary,
        "runs": [asdict(run) for run in report.runs],
    }


def from_json(document: Mapping[str, Any], source: str) -> Report:
    """Raises BenchError when it is no report that this version can read."""
    if document.get("kind") != "overlay" or document.get("format") != FORMAT:
        raise BenchError(f"{source}: no report of `canal bench overlay` in format {FORMAT}")
    try:
        runs = tuple(
            Run(
                run["profile"],
                int(run["round"]),
                run["measure"],
                run["system"],
                _numbers(run["values"]),
                run["details"],
            )
            for run in document["runs"]
        )
        return Report(
            document["about"],
            document["plan"],
            document["baselines"],
            runs,
            tuple(document["checks"]),
            tuple(document["warnings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{source}: a damaged report: {type(error).__name__} {error}") from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def load(path: Path) -> dict[str, Any]:
    """A JSON document of `canal bench`. Raises BenchError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BenchError(f"{path}: no report of `canal bench`")
    return document


def save(document: Mapping[str, Any], path: Path) -> None:
    """Raises BenchError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error


def shown(metric: str, value: float) -> str:
    """A value with as many digits as it is worth."""
    scaled = value / METRICS[metric].scale if metric in METRICS else value
    if scaled >= 100:
        return f"{scaled:.0f}"
    return f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"


def systems_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.system for result in results))
