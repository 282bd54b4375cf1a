"""The header space of two states, cut into classes that no rule of either can tell apart.

Structure Spot   = ends that fare alike: pods (by name, in both states) with the same programs and classes, or the
                   intervals of addresses outside that the prefixes of both states leave.
          PacketClass = a protocol (or all others), intervals of its ports, an ICMP type and code.
          One flow of each pair of spots and class of packets stands for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise, product

from canal_udp.net import Address
from canal_udp.policy.evaluate import End, Evaluator, Packet
from canal_udp.policy.flow import SPORT_DEFAULT
from canal_udp.policy.lower_rule import merged_ranges
from canal_udp.policy.model import ICMP, ICMP6, PROTOCOLS, WITH_PORTS, PortRange
from canal_udp.policy.normal import Rule, Side

PORTS_END = 65536
ANY_PORT = PortRange(0, PORTS_END - 1)
_END = {4: 2**32, 6: 2**128}
_ICMP_OF = {4: ICMP, 6: ICMP6}
_NAMES = {number: name for name, number in PROTOCOLS.items()} | {ICMP6: "ICMP"}

# ---- packets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PacketClass:
    """`protocol`, ICMP type or code None: every one but `others`."""

    protocol: int | None
    packet: Packet  # one that stands for all
    sport: PortRange = ANY_PORT
    dport: PortRange = ANY_PORT
    icmp: tuple[int | None, int | None] | None = None
    others: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.protocol is None:
            return f"other protocols{_but(self.others)}"
        return _NAMES.get(self.protocol, str(self.protocol))

    @property
    def icmp_word(self) -> str:
        kind, code = self.icmp or (None, None)
        if kind is None:
            return f"other{_but(self.others)}"
        if code is None:
            return f"{kind}/other{_but(self.others)}" if self.others else str(kind)
        return f"{kind}/{code}"


def _but(others: tuple[int, ...]) -> str:
    return f" than {' '.join(map(str, others))}" if others else ""


def packet_classes(rules: Iterable[Rule], version: int, special_ports: frozenset[int]) -> tuple[PacketClass, ...]:
    """Every packet that an IP header of this version can carry, in as few classes as the rules allow.

    `special_ports`: those that rules mean by a name, and what no policy cuts off.
    """
    rules = tuple(rules)
    mentioned = {number for rule in rules for number in (rule.protocol, rule.not_protocol) if number is not None}
    icmp = _ICMP_OF[version]
    numbers = tuple(sorted(mentioned - {icmp, *WITH_PORTS}))
    other = next(number for number in range(255, 0, -1) if number not in {*mentioned, *WITH_PORTS, ICMP, ICMP6})
    sources = _intervals((rule.source for rule in rules), special_ports)
    destinations = _intervals((rule.destination for rule in rules), special_ports)
    found = [
        PacketClass(protocol, (protocol, _typical(sport, SPORT_DEFAULT), _typical(dport, 80), 0, 0), sport, dport)
        for protocol, sport, dport in product(WITH_PORTS, sources, destinations)
    ]
    found += _icmp_classes(rules, icmp)
    found += (PacketClass(number, (number, 0, 0, 0, 0)) for number in numbers)
    found.append(PacketClass(None, (other, 0, 0, 0, 0), others=numbers))
    return tuple(found)


def _intervals(sides: Iterable[Side], special_ports: frozenset[int]) -> tuple[PortRange, ...]:
    """Between all borders of ports that these sides look at; special ones count where a side means ports by name."""
    edges = {0, PORTS_END}
    for side in sides:
        edges |= {edge for one in (*side.ports, *side.not_ports) for edge in (one.first, one.last + 1)}
        if side.port_sets or side.not_port_sets:
            edges |= {edge for port in special_ports for edge in (port, port + 1)}
    return tuple(PortRange(first, end - 1) for first, end in pairwise(sorted(edges)))


def _typical(ports: PortRange, liked: int) -> int:
    """One that people understand."""
    return liked if liked in ports else max(ports.first, min(1, ports.last))


def _icmp_classes(rules: Iterable[Rule], protocol: int) -> Iterator[PacketClass]:
    codes: dict[int, set[int]] = {}
    for match in (one for rule in rules for one in (rule.icmp, rule.not_icmp) if one is not None):
        if match.type is not None:
            codes.setdefault(match.type, set()).update(() if match.code is None else (match.code,))
    for kind, some in sorted(codes.items()):
        known = tuple(sorted(some))
        for code in known:
            yield PacketClass(protocol, (protocol, 0, 0, kind, code), icmp=(kind, code))
        yield PacketClass(protocol, (protocol, 0, 0, kind, _unused(some)), icmp=(kind, None), others=known)
    yield PacketClass(protocol, (protocol, 0, 0, _unused(codes), 0), icmp=(None, None), others=tuple(sorted(codes)))


def _unused(numbers: Iterable[int]) -> int:
    return next(number for number in range(257) if number not in numbers)


def packet_words(some: Iterable[PacketClass], everything: Iterable[PacketClass]) -> tuple[str, ...]:
    """`TCP 80-90,443`, `TCP from 1-1023 to 80`, `ICMP 8/0`, `UDP`, or `everything`."""
    chosen, whole = _by_name(some), _by_name(everything)
    if chosen == whole:
        return ("everything",)
    found: list[str] = []
    for name, mine in chosen.items():
        if mine == whole[name]:
            found.append(name)
        elif mine[0].icmp is not None:
            found.append(f"{name} {', '.join(one.icmp_word for one in mine)}")
        else:
            found += (f"{name} {word}" for word in _port_words(mine))
    return tuple(found)


def _by_name(some: Iterable[PacketClass]) -> dict[str, list[PacketClass]]:
    found: dict[str, list[PacketClass]] = {}
    for one in some:
        found.setdefault(one.name, []).append(one)
    return found


def _port_words(some: Iterable[PacketClass]) -> Iterator[str]:
    """Destination ports, joined; grouped by the source ports they go with."""
    by_source: dict[PortRange, list[PortRange]] = {}
    for one in some:
        by_source.setdefault(one.sport, []).append(one.dport)
    by_destinations: dict[str, list[PortRange]] = {}
    for sport, dports in by_source.items():
        by_destinations.setdefault(_ranges(dports), []).append(sport)
    for dports_word, sports in by_destinations.items():
        sports_word = _ranges(sports)
        yield dports_word if sports_word == _ranges([ANY_PORT]) else f"from {sports_word} to {dports_word}"


def _ranges(ranges: Iterable[PortRange]) -> str:
    return ",".join(str(one).replace(":", "-") for one in merged_ranges(ranges))


# ---- ends ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Spot:
    """`members`: (end in the old state, end in the new one) of the first two; `names` of all, or `ranges` outside."""

    version: int
    members: list[tuple[End, End]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def add(self, pair: tuple[End, End], name: str = "", span: tuple[int, int] | None = None) -> None:
        if len(self.members) < 2:
            self.members.append(pair)
        self.names += [name] if name else []
        self.ranges += [span] if span else []

    def name_of(self, member: int) -> str:
        """Of one of `members`, as a flow can be asked for: a name stands for its IPv4 address."""
        if self.version == 4 and self.names:
            return self.names[:2][member]
        return str(self.members[member][1].address)


def end_words(some: Iterable[Spot]) -> tuple[str, ...]:
    """Names of pods and hosts, prefixes outside, or `outside` for all addresses at which nothing known is."""
    several = tuple(some)
    version = several[0].version
    ranges = _joined(one for spot in several for one in spot.ranges)
    words = sorted(name for spot in several for name in spot.names)
    if ranges == [(0, _END[version] - 1)]:
        return ("outside", *words)
    return (*(_range_word(first, last, version) for first, last in ranges), *words)


def _range_word(first: int, last: int, version: int) -> str:
    """A prefix, or first-last where it is none."""
    one, other = (IPv4Address(first), IPv4Address(last)) if version == 4 else (IPv6Address(first), IPv6Address(last))
    bits = (last - first).bit_length()
    if last - first + 1 == 1 << bits and first % (1 << bits) == 0:
        return f"{one}/{one.max_prefixlen - bits}"
    return f"{one}-{other}"


def spots(old: Evaluator, new: Evaluator, version: int) -> tuple[Spot, ...]:
    """All ends of one family that are in both states."""
    found: dict[object, Spot] = {}

    def add(one: Address, other: Address, name: str = "", span: tuple[int, int] | None = None) -> None:
        pair = old.end(one), new.end(other)
        found.setdefault(tuple(map(_role, pair)), Spot(version)).add(pair, name, span)

    for name in sorted(old.places.names.keys() & new.places.names.keys()):
        before, after = (_first(one.places.names[name], version) for one in (old, new))
        if before is not None and after is not None:
            add(before, after, name)
    taken = {address for one in (old, new) for several in one.places.names.values() for address in several}
    special = frozenset(address for one in (old, new) for address in (*one.classes.special, *one.places.parties))
    for address in sorted((one for one in special - taken if one.version == version), key=int):
        if old.places.party(address).workload == new.places.party(address).workload:
            add(address, address, str(address))
    for first, last in _outside(old, new, version):
        stand_in = _free(first, last, special, version)
        if stand_in is not None:
            add(stand_in, stand_in, "", (first, last))
    return tuple(found.values())


def _role(end: End) -> object:
    """Equal for ends that fare alike, but for what a pod sends itself."""
    return (id(end.egress), id(end.ingress), id(end.seen), end.node) if end.is_simple else end.address


def _first(addresses: Iterable[Address], version: int) -> Address | None:
    return next((one for one in addresses if one.version == version), None)


def _outside(old: Evaluator, new: Evaluator, version: int) -> Iterator[tuple[int, int]]:
    borders = {0, _END[version]}
    for one in (old, new):
        borders.update(one.classes.borders[version])
    yield from ((first, end - 1) for first, end in pairwise(sorted(borders)))


def _free(first: int, last: int, special: frozenset[Address], version: int) -> Address | None:
    """An address of the interval at which nothing is."""
    numbers = range(first, min(last, first + len(special)) + 1)
    addresses: Iterator[Address] = map(IPv4Address, numbers) if version == 4 else map(IPv6Address, numbers)
    return next((address for address in addresses if address not in special), None)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined
