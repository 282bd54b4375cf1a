"""The truth table of a lab file: who may talk to whom. Pure; trial.py compares it with what happens.

Structure  - deny: {from: all, to: app=db}                          entries; of two about the same the later one counts,
           - allow: {from: app=web, to: app=db, ports: [80/TCP]}    so the rule comes first and its exceptions after it
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from canal_udp.lab.probe import PROTOCOLS, Place, Probe, Protocol, Service
from canal_udp.lab.probe_wire import Family
from canal_udp.lab.reader import Cursor
from canal_udp.lab.select import select

if TYPE_CHECKING:
    from canal_udp.lab.model import Pod

Verdict: TypeAlias = Literal["allow", "deny"]
_SERVICE = re.compile(r"([0-9]{1,5})/([A-Za-z]+)")
_DEFAULT = (Service("TCP", 80),)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table; without services it is about all that the table names."""

    verdict: Verdict
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    services: tuple[Service, ...] = ()
    family: Family | None = None
    line: int = 0


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_entry(cursor: Cursor, pods: Mapping[str, Pod], nodes: Collection[str]) -> Entry:
    verdicts: tuple[Verdict, ...] = get_args(Verdict)
    entries = cursor.table(verdicts)
    if len(entries) != 1:
        raise cursor.fail("one verdict each: `- allow: {from: app=web, to: app=db, ports: [80/TCP]}`, or deny")
    ((verdict, body),) = entries.items()
    fields = body.table(["from", "to", "ports", "family"])
    for key in ("from", "to"):
        if key not in fields:
            raise body.fail(f"`{key}:` is missing: a pod, a node, a label such as app=web, a namespace/, or all")
    family = fields["family"].integer(4, 6) if "family" in fields else None
    if family == 5:
        raise fields["family"].fail("4 or 6")
    return Entry(
        verdict,  # type: ignore[arg-type]
        select(fields["from"], pods, nodes),
        select(fields["to"], pods, nodes),
        tuple(map(read_service, fields["ports"].items())) if "ports" in fields else (),
        family,  # type: ignore[arg-type]
        cursor.node.start_mark.line + 1,
    )


def read_service(cursor: Cursor) -> Service:
    """80/TCP, 53/UDP, 5000/SCTP, ICMP."""
    text = cursor.text()
    match = _SERVICE.fullmatch(text)
    protocol = (match[2] if match else text).upper()
    if protocol not in PROTOCOLS or (protocol == "ICMP") == bool(match):
        raise cursor.fail(f"{text!r} is neither port/protocol (80/TCP, 53/UDP, 5000/SCTP) nor ICMP")
    port = int(match[1]) if match else 0
    if match and not 0 < port < 1 << 16:
        raise cursor.fail(f"{port} is no port")
    return Service(_protocol(protocol), port)


def _protocol(text: str) -> Protocol:
    return next(one for one in PROTOCOLS if one == text)


# ---- the table -------------------------------------------------------------------------------------------------------


def expectations(table: Iterable[Entry], places: Mapping[str, Place]) -> dict[Probe, tuple[Verdict, int]]:
    """What every probe should meet, and the line that says so; families that one end lacks are left out."""
    entries = tuple(table)
    named = tuple(dict.fromkeys(service for entry in entries for service in entry.services)) or _DEFAULT
    found: dict[Probe, tuple[Verdict, int]] = {}
    for entry in entries:
        for probe in _probes(entry, named, places):
            found[probe] = (entry.verdict, entry.line)
    return found


def _probes(entry: Entry, named: Sequence[Service], places: Mapping[str, Place]) -> Iterator[Probe]:
    families: tuple[Family, ...] = (4, 6) if entry.family is None else (entry.family,)
    for service in entry.services or named:
        for family in families:
            for source in entry.sources:
                for target in entry.targets:
                    if source != target and places[source].of(family) and places[target].of(family):
                        yield Probe(source, target, service, family)
