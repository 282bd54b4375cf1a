"""A rule to rows: criteria that the classes of both addresses must meet, and one range each of protocol and ports.

Place     between the normal form and `compile`, which turns rows into a program's bits.
Structure a list of ports is one row a range; a port name one row for each (protocol, port) that any address bears,
          met only by addresses that bear it. "Not these ports" becomes the ranges between them; where names are among
          them, one set of rows for each kind of address that the names tell apart.
ICMP      type and code stand in place of the destination port, as canal.h says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal, Protocol, TypeAlias

from canal_udp.net import Network
from canal_udp.policy.model import ICMP, ICMP6, IcmpMatch
from canal_udp.policy.normal import Rule, Side

Range: TypeAlias = tuple[int, int]  # both ends belong to it
NamedPort: TypeAlias = tuple[str, int, int]  # set, protocol, port
Protocols: TypeAlias = frozenset[int]

ANY_PORT: Range = (0, 0xFFFF)
ANY_PROTOCOL: Protocols = frozenset(range(256))
_ICMP: Protocols = frozenset((ICMP, ICMP6))


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a row demands of an address. `bears`: a named port; `only`: of these sets' named ports exactly these."""

    version: Literal[4, 6] | None = None
    nets: frozenset[Network] = frozenset()
    not_nets: frozenset[Network] = frozenset()
    sets: frozenset[str] = frozenset()
    not_sets: frozenset[str] = frozenset()
    bears: frozenset[NamedPort] = frozenset()
    only: tuple[frozenset[str], frozenset[NamedPort]] | None = None


ANY_ADDRESS = Criterion()


@dataclass(frozen=True, slots=True)
class Row:
    """What must hold of a packet."""

    source: Criterion
    destination: Criterion
    protocols: Range
    sport: Range
    dport: Range


EVERYTHING = Row(ANY_ADDRESS, ANY_ADDRESS, (0, 255), ANY_PORT, ANY_PORT)


class NamedPorts(Protocol):
    """Which named ports addresses bear."""

    def ports_of(self, name: str) -> frozenset[NamedPort]:
        """Those of a set that any address bears."""

    def combinations(self, names: frozenset[str]) -> Iterable[frozenset[NamedPort]]:
        """What the addresses bear of several sets, each combination once."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One of the alternatives of a side."""

    protocols: Protocols
    port: Range
    criterion: Criterion


def expand(rule: Rule, named: NamedPorts) -> Iterator[Row]:
    """The rows of a rule; none if it can match nothing."""
    if rule.never:
        return
    protocols = ANY_PROTOCOL if rule.protocol is None else frozenset((rule.protocol,))
    if rule.not_protocol is not None:
        protocols -= {rule.not_protocol}
    source, destination = _criterion(rule, rule.source), _criterion(rule, rule.destination)
    if rule.icmp is None and rule.not_icmp is None and not _has_ports(rule.source) and not _has_ports(rule.destination):
        yield from _rows(protocols, source, destination, ANY_PORT, ANY_PORT)
        return
    if not _demands_ports(rule.source) and not _demands_ports(rule.destination):
        for messages in _icmp_ranges(rule):
            yield from _rows(protocols & _ICMP, source, destination, ANY_PORT, messages)
    if rule.icmp is None:
        ways = (_ways(side, one, protocols - _ICMP, named) for side, one in _sides(rule, source, destination))
        for at_source, at_destination in product(*map(tuple, ways)):
            both = at_source.protocols & at_destination.protocols
            yield from _rows(both, at_source.criterion, at_destination.criterion, at_source.port, at_destination.port)


def _sides(rule: Rule, source: Criterion, destination: Criterion) -> tuple[tuple[Side, Criterion], ...]:
    return (rule.source, source), (rule.destination, destination)


def _rows(protocols: Protocols, source: Criterion, destination: Criterion, sport: Range, dport: Range) -> Iterator[Row]:
    for one in _runs(protocols):
        yield Row(source, destination, one, sport, dport)


@cache
def _runs(numbers: frozenset[int]) -> tuple[Range, ...]:
    """Numbers as ranges without gaps."""
    found: list[Range] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


def _criterion(rule: Rule, side: Side) -> Criterion:
    return Criterion(
        rule.version,
        frozenset(side.nets),
        frozenset(side.not_nets),
        frozenset(one.id for one in side.sets),
        frozenset(one.id for one in side.not_sets),
    )


def _demands_ports(side: Side) -> bool:
    return bool(side.ports or side.port_sets)


def _has_ports(side: Side) -> bool:
    return bool(_demands_ports(side) or side.not_ports or side.not_port_sets)


def _icmp_ranges(rule: Rule) -> tuple[Range, ...]:
    """Types and codes as ranges of type << 8 | code."""
    wanted = ANY_PORT if rule.icmp is None else _messages(rule.icmp)
    return _between((wanted,), () if rule.not_icmp is None else (_messages(rule.not_icmp),))


def _messages(match: IcmpMatch) -> Range:
    if match.type is None:
        return ANY_PORT
    if match.code is None:
        return match.type << 8, match.type << 8 | 0xFF
    return match.type << 8 | match.code, match.type << 8 | match.code


def _ways(side: Side, criterion: Criterion, protocols: Protocols, named: NamedPorts) -> Iterator[_Way]:
    for way in _wanted(side, criterion, protocols, named):
        if side.not_ports or side.not_port_sets:
            yield from _without(side, way, named)
        else:
            yield way


def _wanted(side: Side, criterion: Criterion, protocols: Protocols, named: NamedPorts) -> Iterator[_Way]:
    if not _demands_ports(side):
        yield _Way(protocols, ANY_PORT, criterion)
    for one in side.ports:
        yield _Way(protocols, (one.first, one.last), criterion)
    for name in dict.fromkeys(one.id for one in side.port_sets):
        for port in sorted(named.ports_of(name)):
            if port[1] in protocols:
                bears = replace(criterion, bears=criterion.bears | {port})
                yield _Way(frozenset((port[1],)), (port[2], port[2]), bears)


def _without(side: Side, way: _Way, named: NamedPorts) -> Iterator[_Way]:
    """What is left of a way when the ports that the side excludes are taken out."""
    numbers = tuple((one.first, one.last) for one in side.not_ports)
    names = frozenset(one.id for one in side.not_port_sets)
    for borne in named.combinations(names) if names else (frozenset[NamedPort](),):
        criterion = replace(way.criterion, only=(names, borne)) if names else way.criterion
        special = frozenset(protocol for _, protocol, _ in borne)
        for protocols in (way.protocols - special, *(frozenset((one,)) & way.protocols for one in special)):
            here = tuple((port, port) for _, protocol, port in borne if protocol in protocols)
            for left in _between((way.port,), (*numbers, *here)):
                yield _Way(protocols, left, criterion)


def _between(ranges: Iterable[Range], holes: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges without the holes."""
    left = tuple(ranges)
    for low, high in holes:
        parts = (((first, min(last, low - 1)), (max(first, high + 1), last)) for first, last in left)
        left = tuple((first, last) for pair in parts for first, last in pair if first <= last)
    return left
