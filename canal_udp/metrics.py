"""Numbers as Prometheus reads them: its text format, version 0.0.4. Pure.

Structure   # HELP name text
            # TYPE name counter|gauge
            name{label="value",...} number
Choice      forty lines, against 14 MB and 50 ms of a library at every start: there are no histograms here, and every
            number is read at the moment of the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

KIND = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One name with its samples. A counter's name ends with _total; units are Prometheus's base units."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: tuple[Sample, ...]


def counter(name: str, help: str, value: float, **labels: str) -> Metric:
    """A number that only grows."""
    return Metric(name, "counter", help, ((labels, value),))


def gauge(name: str, help: str, value: float, **labels: str) -> Metric:
    """A number that goes up and down."""
    return Metric(name, "gauge", help, ((labels, value),))


def exposition(metrics: Iterable[Metric]) -> str:
    """The page."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {_escaped(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{_labels(labels)} {_number(value)}" for labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    inner = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str, *, quotes: bool = False) -> str:
    safe = text.replace("\\", "\\\\").replace("\n", "\\n")
    return safe.replace('"', '\\"') if quotes else safe


def _number(value: float) -> str:
    """Exact to the last packet; a float only where there is a fraction."""
    return str(int(value)) if value == int(value) else repr(float(value))
