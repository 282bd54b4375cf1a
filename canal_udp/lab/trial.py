"""The truth table of a running lab, tried with real packets and printed.

Structure  truth.py: what is expected ─► probe.py: what happens ─► Seen ─► tables of sources and targets
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canal_udp.errors import LabError
from canal_udp.lab.host import netns_path
from canal_udp.lab.model import Lab
from canal_udp.lab.plan import netns, public_address
from canal_udp.lab.probe import Answer, Place, Probe, Probers, Service
from canal_udp.lab.show import Screen
from canal_udp.lab.state import PodAddress
from canal_udp.lab.truth import Entry, Verdict, expectations

TIMEOUT_S = 1.0
TIMEOUT_AGAIN_S = 4.0  # for what was not as expected: perhaps the machine was busy
BAD_MAX = 20  # lines about what was not as expected


@dataclass(frozen=True, slots=True)
class Seen:
    """What was expected of a probe, where that is written, and what became of it."""

    probe: Probe
    expected: Verdict
    line: int
    answer: Answer

    @property
    def good(self) -> bool:
        return (self.answer == "passed") == (self.expected == "allow")


def places(lab: Lab, pods: Mapping[str, PodAddress]) -> dict[str, Place]:
    """Where the pods and nodes of a running lab are; nodes with their underlay addresses."""
    found = {name: Place(netns_path(netns(lab, name)), address.ips) for name, address in pods.items()}
    for node in lab.nodes.values():
        ips = (public_address(lab, node.name, family) for family in (4, 6))
        found[node.name] = Place(netns_path(netns(lab, node.name)), tuple(str(ip) for ip in ips if ip is not None))
    return found


def look(table: Iterable[Entry], found: Mapping[str, Place]) -> list[Seen]:
    """Try everything; what is not as expected is tried once more, with more time. Raises LabError."""
    expected = expectations(table, found)
    if not expected:
        raise LabError("nothing to test: the lab file states no `tests:`, or their pods have no address in common")
    ends = {end for probe in expected for end in (probe.source, probe.target)}
    used = {name: place for name, place in found.items() if name in ends}
    with Probers(used, {probe.service for probe in expected}) as probers:
        seen = _seen(expected, probers.ask(expected, TIMEOUT_S))
        if wrong := [one.probe for one in seen if not one.good]:
            again = probers.ask(wrong, TIMEOUT_AGAIN_S)
            seen = _seen(expected, {one.probe: again.get(one.probe, one.answer) for one in seen})
    return seen


def _seen(expected: Mapping[Probe, tuple[Verdict, int]], answers: Mapping[Probe, Answer]) -> list[Seen]:
    return [Seen(probe, verdict, line, answers[probe]) for probe, (verdict, line) in expected.items()]


# ---- showing ---------------------------------------------------------------------------------------------------------


def rows(seen: Iterable[Seen]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "from": one.probe.source,
            "to": one.probe.target,
            "service": str(one.probe.service),
            "family": one.probe.family,
            "expected": one.expected,
            "seen": one.answer,
            "good": one.good,
            "line": one.line,
        }
        for one in seen
    ]


def print_seen(screen: Screen, seen: Sequence[Seen], order: Iterable[str]) -> int:
    """A table for each service, what was not as expected, and a sum; returns the exit status."""
    names = tuple(order)
    for title, cells in _tables(seen):
        sources, targets = ({pair[end] for pair in cells} for end in (0, 1))
        screen.line(f"  {title}")
        screen.grid(
            [name for name in names if name in sources],
            [name for name in names if name in targets],
            _marks(screen, cells),
        )
    bad = [one for one in seen if not one.good]
    for one in bad[:BAD_MAX]:
        way = f"{one.probe.source} -> {one.probe.target} {one.probe.service} (IPv{one.probe.family})"
        screen.line(f"  {screen.mark(False)} line {one.line}: {one.expected} {way}: {one.answer}")
    if len(bad) > BAD_MAX:
        screen.line(f"  {screen.mark(False)} and {len(bad) - BAD_MAX} more; -j has all")
    screen.line(f"  {screen.mark(not bad)} {len(seen) - len(bad)} of {len(seen)} as the file says")
    return 1 if bad else 0


def _tables(seen: Iterable[Seen]) -> list[tuple[str, dict[tuple[str, str], Seen]]]:
    """By service and family; families that say the same are one table."""
    found: dict[Service, dict[int, dict[tuple[str, str], Seen]]] = {}
    for one in seen:
        table = found.setdefault(one.probe.service, {}).setdefault(one.probe.family, {})
        table[one.probe.source, one.probe.target] = one
    tables = []
    for service, families in found.items():
        first, *others = families.values()
        if all(_outcome(first) == _outcome(other) for other in others):
            tables.append((f"{service} ({', '.join(f'IPv{family}' for family in families)})", first))
        else:
            tables += [(f"{service} (IPv{family})", table) for family, table in families.items()]
    return tables


def _outcome(table: Mapping[tuple[str, str], Seen]) -> dict[tuple[str, str], tuple[Answer, Verdict]]:
    return {pair: (one.answer, one.expected) for pair, one in table.items()}


def _marks(screen: Screen, cells: Mapping[tuple[str, str], Seen]) -> dict[tuple[str, str], tuple[str, str]]:
    """Passes or not; with ! when it should be the other way."""
    passed, blocked = ("✓", "–") if screen.unicode else ("y", "-")
    return {
        pair: (
            (passed if one.answer == "passed" else blocked) + ("" if one.good else "!"),
            "bad" if not one.good else "good" if one.answer == "passed" else "dim",
        )
        for pair, one in cells.items()
    }
