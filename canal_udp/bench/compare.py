"""Two reports side by side: what got better, what got worse, what only looks so. Pure.

Structure  overlay reports are compared by their ratios to the baseline, which was measured in the same minutes; a
           baseline itself, and stages, by their values. A change counts when the two intervals do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canal_udp.bench.plan import METRICS
from canal_udp.bench.report import Result, from_json, shown
from canal_udp.bench.stats import Spread
from canal_udp.bench.table import EMPTY, aligned, times, title, unit
from canal_udp.errors import BenchError

STAGE_NOISE = 0.05  # stages are single runs of many rounds; less than this is nothing


@dataclass(frozen=True, slots=True)
class Change:
    where: str  # profile and system, or file of a stage
    what: str
    unit: str
    old: str
    new: str
    share: float | None  # of the old value; None where one is missing
    verdict: str  # better, worse, same, new, gone


def compare(old: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, str]) -> list[Change]:
    """Raises BenchError when the two are not of one kind."""
    if old.get("kind") != new.get("kind"):
        raise BenchError(f"{names[0]} and {names[1]} are not the same kind of report")
    if new.get("kind") == "stages":
        return _stages(_rows(old, names[0]), _rows(new, names[1]))
    before = {result.key: result for result in from_json(old, names[0]).results()}
    after = {result.key: result for result in from_json(new, names[1]).results()}
    return [_overlay(before.get(key), after.get(key)) for key in {**before, **after}]


def verdict(old: Spread, new: Spread, better: int) -> str:
    """same, unless the intervals are apart."""
    if old.low <= new.high and new.low <= old.high:
        return "same"
    return "better" if (new.median > old.median) == (better > 0) else "worse"


def _overlay(old: Result | None, new: Result | None) -> Change:
    known = new or old
    assert known is not None
    by_ratio = bool(old and new and old.ratio and new.ratio)
    where, what = f"{known.profile} {known.system}", title(known.measure, known.metric)
    texts = _text(old, by_ratio), _text(new, by_ratio)
    if old is None or new is None:
        return Change(where, what, unit(known.metric), *texts, None, "new" if old is None else "gone")
    first, second = (old.ratio, new.ratio) if old.ratio and new.ratio else (old.value, new.value)
    share = second.median / first.median - 1 if first.median else None
    better = METRICS[known.metric].better if known.metric in METRICS else 1
    return Change(where, what, "x" if by_ratio else unit(known.metric), *texts, share, verdict(first, second, better))


def _text(result: Result | None, by_ratio: bool) -> str:
    if result is None:
        return EMPTY
    return times(result.ratio) if by_ratio and result.ratio else shown(result.metric, result.value.median)


def _rows(document: Mapping[str, Any], name: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    try:
        return {(row["group"], row["name"]): row for row in document["stages"]}
    except (KeyError, TypeError) as error:
        raise BenchError(f"{name}: a damaged report") from error


def _stages(
    old: Mapping[tuple[str, str], Mapping[str, Any]], new: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[Change]:
    changes = []
    for key in {**old, **new}:
        before, after = (side[key]["ns_per_item"] if key in side else None for side in (old, new))
        texts = _ns(before), _ns(after)
        if before is None or after is None:
            changes.append(Change(*key, "ns", *texts, None, "new" if before is None else "gone"))
            continue
        share = after / before - 1
        word = "same" if abs(share) < STAGE_NOISE else "better" if share < 0 else "worse"
        changes.append(Change(*key, "ns", *texts, share, word))
    return changes


def _ns(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1f}"


def lines(changes: Sequence[Change]) -> list[str]:
    rows = [["", "what", "unit", "old", "new", "change", ""]]
    for change in changes:
        share = EMPTY if change.share is None else f"{change.share:+.0%}"
        word = "" if change.verdict == "same" else change.verdict
        rows.append([change.where, change.what, change.unit, change.old, change.new, share, word])
    counts = {word: sum(change.verdict == word for change in changes) for word in ("better", "worse", "same")}
    return [*aligned(rows, left=2), "", ", ".join(f"{count} {word}" for word, count in counts.items())]
