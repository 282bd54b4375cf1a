"""Reports as text: one row a metric, one column a system, the ratio to the baseline behind each value. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from canal_udp.bench.plan import BY_NAME, METRICS
from canal_udp.bench.report import Report, Result, shown, systems_of
from canal_udp.bench.stats import Spread

EMPTY = "-"


def lines(report: Report) -> list[str]:
    """The table, its legend and its warnings."""
    results, out = report.results(), []
    for profile in dict.fromkeys(result.profile for result in results):
        out += [*aligned(_rows(profile, [result for result in results if result.profile == profile])), ""]
    about, plan = report.about, report.plan
    baselines = ", ".join(dict.fromkeys(report.baselines[name] for name in systems_of(results)))
    out.append(
        f"medians of {plan['rounds']} interleaved runs of {plan['seconds']:g} s, ± half of the range; "
        f"x = times {baselines}, median of the runs' ratios"
    )
    out.append(
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, canal {about['canal']} {about['commit']}"
    )
    out += [f"WARNING: {warning}" for warning in report.warnings]
    return out


def markdown(report: Report) -> list[str]:
    """The same tables for a document."""
    results, out = report.results(), []
    for profile in dict.fromkeys(result.profile for result in results):
        header, *rows = _rows(profile, [result for result in results if result.profile == profile])
        out += [bar(header), bar(["---", "---", *("--:" for _ in header[2:])]), *map(bar, rows), ""]
    return out


def bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rows(profile: str, results: Sequence[Result]) -> list[list[str]]:
    names = systems_of(results)
    by_key = {(result.measure, result.metric, result.system): result for result in results}
    rows = [[profile, "", *names]]
    for measure, metric in dict.fromkeys((result.measure, result.metric) for result in results):
        cells = [by_key.get((measure, metric, name)) for name in names]
        rows.append([title(measure, metric), unit(metric), *(cell(metric, found) for found in cells)])
    return rows


def title(measure: str, metric: str) -> str:
    """What a row is about; a measure with one metric needs no second word."""
    known = BY_NAME.get(measure)
    if known is None:
        return f"{measure} {metric}"
    first = metric == known.metrics[0] and not metric.endswith("_us")
    return known.title if first else f"{known.title}, {METRICS[metric].title}"


def unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def cell(metric: str, result: Result | None) -> str:
    if result is None:
        return EMPTY
    text = shown(metric, result.value.median) + (f" ±{result.value.share:.0%}" if result.value.n > 1 else "")
    return f"{text} {times(result.ratio)}" if result.ratio else text


def times(ratio: Spread) -> str:
    return f"{ratio.median:.1f}x" if ratio.median >= 10 else f"{ratio.median:.2f}x"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """So many columns to the left, all others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if at < left else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
