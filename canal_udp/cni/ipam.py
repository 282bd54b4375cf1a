"""Addresses of this node's pods: a pure pool, and the file that remembers it.

Structure    Pool    frozen: names -> addresses; allocate and release return another pool
             Ipam    a Pool and its file; what was returned is on disk
Invariants   An address has one name; a name has at most one address of each family. Never handed out: the subnet's base
             (the node's own overlay address), base + 1 (the bridge that FLANNEL_SUBNET names), the IPv4 broadcast.
             The next address is the one after the last given, and one that was freed rests for `rest_s` before it is
             given to another who did not ask for it: what still knows its old bearer has forgotten it by then.
Faults       Killed at any moment: the file is the old or the new one. A write that fails changes nothing. A file that
             cannot be understood is moved aside as <file>.corrupt-<time>; the caller adopts the pods it finds running.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from canal_udp.errors import AddressError, AddressTaken
from canal_udp.net import Address, Network, contains, parse_address, printable

log = logging.getLogger("canal.ipam")

Span = tuple[Address, Address]  # first and last

_RESERVED_LOW = 2  # base and base + 1


@dataclass(frozen=True, slots=True)
class Pool:
    """Who has which address of the node's subnets."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=lambda: MappingProxyType({}))
    last: Mapping[int, Address] = field(default_factory=lambda: MappingProxyType({}))  # given, by IP version
    freed: Mapping[Address, float] = field(default_factory=lambda: MappingProxyType({}))  # when; those that rest
    rest_s: float = 0.0

    @property
    def subnets(self) -> tuple[Network, ...]:
        return tuple(subnet for subnet in (self.subnet, self.subnet6) if subnet is not None)

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Those of the present subnets, IPv4 first; () when there are none."""
        return tuple(a for a in self.names.get(name, ()) if any(contains(subnet, a) for subnet in self.subnets))

    def allocate(
        self, name: str, wanted: Iterable[Address] = (), within: Sequence[Span] = (), now: float = 0.0
    ) -> Pool:
        """A pool in which the name has an address of each family; this one if it has them already.

        within   first and last address of what is taken from; a family without any is not limited
        Raises   AddressError: the wanted one is not ours to give, or reserved; AddressTaken: none left, or another's.
        """
        want: dict[int, Address] = {address.version: address for address in wanted}
        have: dict[int, Address] = {address.version: address for address in self.addresses(name)}
        families: dict[int, Network] = {subnet.version: subnet for subnet in self.subnets}
        for version, address in want.items():
            if version not in families or not contains(families[version], address):
                raise AddressError(f"{address} is not in {' or '.join(map(str, self.subnets))}")
            if have.get(version, address) != address:
                raise AddressError(f"{printable(name)} has {have[version]} already, not {address}")
        if len(have) == len(families):
            return self
        used = self._used()
        given: dict[int, Address] = {}
        for version, subnet in families.items():
            if version in want:
                given[version] = have.get(version) or self._checked(want[version], used)
            elif version not in have:
                given[version] = self._next(subnet, [span for span in within if span[0].version == version], used, now)
        chosen = tuple(address for _, address in sorted((have | given).items()))
        return replace(
            self,
            names=MappingProxyType({**self.names, name: chosen}),
            last=MappingProxyType({**self.last, **given}),
            freed=MappingProxyType({a: at for a, at in self.freed.items() if a not in chosen and self._rests(a, now)}),
        )

    def release(self, name: str, now: float = 0.0) -> Pool:
        """A pool without the name, whose addresses rest from now on."""
        if name not in self.names:
            return self
        return replace(
            self,
            names=MappingProxyType({n: a for n, a in self.names.items() if n != name}),
            freed=MappingProxyType({**self.freed, **dict.fromkeys(self.names[name], now)} if self.rest_s else {}),
        )

    def _rests(self, address: Address, now: float) -> bool:
        return address in self.freed and 0 <= now - self.freed[address] < self.rest_s  # a clock may be set back

    def _used(self) -> dict[Address, str]:
        return {address: name for name, addresses in self.names.items() for address in addresses}

    def _checked(self, address: Address, used: Mapping[Address, str]) -> Address:
        if address in used:
            raise AddressTaken(f"{address} belongs to {printable(used[address])}")
        subnet = next(subnet for subnet in self.subnets if contains(subnet, address))
        if int(address) not in _assignable(subnet):
            raise AddressError(f"{address} is reserved in {subnet}")
        return address

    def _next(self, subnet: Network, within: Sequence[Span], used: Mapping[Address, str], now: float) -> Address:
        """The first free address after the last one given; at most as many steps as there are used ones, and one."""
        choices = _choices(subnet, within)
        count = sum(map(_count, choices))
        if within and not count:
            raise AddressError(f"no address of {subnet} is in {', '.join(f'{a}-{b}' for a, b in within)}")
        start = _after(choices, self.last.get(subnet.version))
        make = type(subnet.network_address)
        for step in range(min(len(used) + len(self.freed) + 1, count)):
            address = make(_at(choices, (start + step) % count))
            if address not in used and not self._rests(address, now):
                return address
        raise AddressTaken(f"no address left in {subnet}: all {count} are in use, or were until {self.rest_s:g} s ago")


def _choices(subnet: Network, within: Sequence[Span]) -> list[range]:
    """What may be handed out, as ranges that do not overlap."""
    every = _assignable(subnet)
    if not within:
        return [every]
    found: list[range] = []
    for first, last in sorted((int(first), int(last)) for first, last in within):
        start = max(first, every.start, found[-1].stop if found else 0)
        stop = min(last + 1, every.stop)
        if start < stop:
            found.append(range(start, stop))
    return found


def _at(choices: Iterable[range], index: int) -> int:
    for one in choices:
        if index < _count(one):
            return one.start + index
        index -= _count(one)
    raise IndexError(index)


def _after(choices: Iterable[range], last: Address | None) -> int:
    """Index of the address after `last`; 0 if that is none of them."""
    before = 0
    for one in choices:
        if last is not None and int(last) in one:
            return before + int(last) + 1 - one.start
        before += _count(one)
    return 0


def _assignable(subnet: Network) -> range:
    base = int(subnet.network_address)
    end = base + subnet.num_addresses - (1 if subnet.version == 4 else 0)
    return range(base + _RESERVED_LOW, max(end, base + _RESERVED_LOW))


def _count(numbers: range) -> int:
    return numbers.stop - numbers.start  # len() is limited to 2^63


@dataclass(frozen=True, slots=True)
class Claim:
    """What one name asks a pool for."""

    name: str
    wanted: tuple[Address, ...] = ()
    within: tuple[Span, ...] = ()


# ---- the file --------------------------------------------------------------------------------------------------------


class Ipam:
    """A pool that survives. thread: one at a time."""

    def __init__(
        self, path: Path, subnet: IPv4Network | None, subnet6: IPv6Network | None, rest_s: float = 0.0
    ) -> None:
        """Read the file if there is one. Names with addresses of other subnets keep them until they are released."""
        self._path = path
        self._pool = Pool(subnet, subnet6, rest_s=rest_s)
        _temporary(path).unlink(missing_ok=True)
        content = _read(path)
        if content is not None:
            try:
                self._pool = _decoded(content, self._pool)
            except (ValueError, RecursionError) as error:
                _move_aside(path, str(error))

    @property
    def pool(self) -> Pool:
        return self._pool

    def allocate(self, name: str, wanted: Iterable[Address] = (), within: Sequence[Span] = ()) -> tuple[Address, ...]:
        """The name's addresses, IPv4 first; the same ones however often it is asked. AddressError."""
        (given,) = self.allocate_all([Claim(name, tuple(wanted), tuple(within))])
        if isinstance(given, AddressError):
            raise given
        return given

    def allocate_all(self, claims: Iterable[Claim]) -> list[tuple[Address, ...] | AddressError]:
        """Each claim's addresses, or why it has none; the file is written once for all of them. AddressError."""
        pool, now = self._pool, time.time()
        given: list[tuple[Address, ...] | AddressError] = []
        for claim in claims:
            try:
                pool = pool.allocate(claim.name, claim.wanted, claim.within, now)
                given.append(pool.addresses(claim.name))
            except AddressError as error:
                given.append(error)
        self._commit(pool)
        return given

    def exhausted(self) -> str:
        """Why nobody more can have an address; empty if one can."""
        try:
            self._pool.allocate("", now=time.time())
        except AddressError as error:
            return str(error)
        return ""

    def release(self, *names: str) -> bool:
        """Give the names' addresses back; says whether they had any."""
        known = any(name in self._pool.names for name in names)
        pool, now = self._pool, time.time()
        for name in names:
            pool = pool.release(name, now)
        self._commit(pool)
        return known

    def _commit(self, pool: Pool) -> None:
        if pool is self._pool:
            return
        try:
            write_file(self._path, _encoded(pool))
        except OSError as error:
            raise AddressError(f"{self._path}: {error.strerror or error}; nothing was changed") from None
        self._pool = pool


def write_file(path: Path, content: bytes) -> None:
    """Replace a file so that a crash at any moment leaves the old content or the new, mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = _temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """What lies on disk."""

    version: Literal[1]
    last: list[str]
    names: dict[str, list[str]]
    freed: dict[str, float] = {}


def _encoded(pool: Pool) -> bytes:
    names = {name: [str(address) for address in addresses] for name, addresses in sorted(pool.names.items())}
    freed = {str(address): at for address, at in pool.freed.items()}
    content = _File(1, [str(address) for _, address in sorted(pool.last.items())], names, freed)
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def _decoded(content: bytes, empty: Pool) -> Pool:
    """What the file says; ValueError (of which msgspec's errors are a kind) if `_encoded` cannot have written it."""
    file = msgspec.json.decode(content, type=_File)
    names = {name: tuple(parse_address(item) for item in listed) for name, listed in file.names.items()}
    every = [address for addresses in names.values() for address in addresses]
    if len(set(every)) != len(every):
        raise ValueError("an address has two names")
    last: dict[int, Address] = {address.version: address for address in map(parse_address, file.last)}
    freed: dict[Address, float] = {parse_address(text): at for text, at in file.freed.items()}
    return replace(empty, names=MappingProxyType(names), last=MappingProxyType(last), freed=MappingProxyType(freed))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AddressError(f"{path}: {error.strerror or error}") from None


def _move_aside(path: Path, problem: str) -> None:
    aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    while os.path.lexists(aside):
        aside += "x"
    os.rename(path, aside)
    log.error("ipam.corrupt path=%s moved_to=%s problem=%r", path, aside, printable(problem))
