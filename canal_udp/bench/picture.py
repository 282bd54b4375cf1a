"""A report as a picture (SVG, PNG, PDF): for each measure the systems as bars, with the spread of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from canal_udp.bench.plan import BY_NAME, METRICS
from canal_udp.bench.report import Report, Result, shown, systems_of
from canal_udp.bench.table import times, title
from canal_udp.errors import BenchError

COLUMNS = 3
COLOURS = ("#1b6ca8", "#3fa34d", "#7d5ba6", "#c06c84", "#8d99ae", "#e0a458", "#6b705c", "#b56576")


def draw(report: Report, path: Path) -> None:
    """Raises BenchError when matplotlib is missing or the file cannot be written."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError("pictures need matplotlib: pip install 'canal-udp[bench]'") from error
    results = [result for result in report.results() if result.metric == _drawn(result.measure)]
    panels = list(dict.fromkeys((result.profile, result.measure) for result in results))
    if not panels:
        raise BenchError("there is nothing to draw")
    rows = -(-len(panels) // COLUMNS)
    colours = dict(zip(systems_of(report.results()), COLOURS * 4, strict=False))
    with matplotlib.rc_context({"svg.hashsalt": "canal", "font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 0.9 + 2.1 * rows), layout="constrained")
        figure.suptitle(_heading(report))
        axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
        for ax, (profile, measure) in zip(axes, panels, strict=False):  # the last row may have room left
            _panel(ax, profile, [r for r in results if (r.profile, r.measure) == (profile, measure)], colours)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise BenchError(f"{path}: {error}") from error


def _drawn(measure: str) -> str:
    return BY_NAME[measure].metrics[0] if measure in BY_NAME else ""


def _heading(report: Report) -> str:
    about = report.about
    return f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, canal {about['canal']} {about['commit']}"


def _panel(ax: Any, profile: str, results: Sequence[Result], colours: dict[str, str]) -> None:
    metric = METRICS[results[0].metric]
    middles = [result.value.median / metric.scale for result in results]
    errors = [
        [(result.value.median - result.value.low) / metric.scale for result in results],
        [(result.value.high - result.value.median) / metric.scale for result in results],
    ]
    names = [result.system for result in results]
    bars = ax.barh(names, middles, xerr=errors, color=[colours[name] for name in names], error_kw={"linewidth": 0.8})
    labels = [f" {shown(r.metric, r.value.median)}" + (f"  {times(r.ratio)}" if r.ratio else "") for r in results]
    ax.bar_label(bars, labels, padding=6)
    ax.invert_yaxis()
    ax.margins(x=0.35)
    ax.set_xlim(left=0)
    note = "" if metric.better > 0 else " (less is better)"
    ax.set_title(
        f"{profile}: {title(results[0].measure, results[0].metric)}, {metric.unit}{note}", loc="left", fontsize=8
    )
    ax.spines[["top", "right"]].set_visible(False)
