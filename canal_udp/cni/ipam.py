"""Addresses of this node's pods: a pure pool, and the file that remembers it.

Structure    Pool    frozen: names -> addresses; allocate and release return another pool
             Ipam    a Pool and its file; what was returned is on disk
Invariants   An address has one name; a name has at most one address of each family. Never handed out: the subnet's base
             (the node's own overlay address), base + 1 (the bridge that FLANNEL_SUBNET names), the IPv4 broadcast.
             The next address is the one after the last given, so that a freed one rests as long as possible.
Faults       Killed at any moment: the file is the old or the new one. A write that fails changes nothing. A file that
             cannot be understood is moved aside as <file>.corrupt-<time>; the caller adopts the pods it finds running.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from canal_udp.errors import AddressError
from canal_udp.net import Address, Network, contains, parse_address, printable

log = logging.getLogger("canal.ipam")

_RESERVED_LOW = 2  # base and base + 1


@dataclass(frozen=True, slots=True)
class Pool:
    """Who has which address of the node's subnets."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=lambda: MappingProxyType({}))
    last: Mapping[int, Address] = field(default_factory=lambda: MappingProxyType({}))  # given, by IP version

    @property
    def subnets(self) -> tuple[Network, ...]:
        return tuple(subnet for subnet in (self.subnet, self.subnet6) if subnet is not None)

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Those of the present subnets, IPv4 first; () when there are none."""
        return tuple(a for a in self.names.get(name, ()) if any(contains(subnet, a) for subnet in self.subnets))

    def allocate(self, name: str, wanted: Iterable[Address] = ()) -> Pool:
        """A pool in which the name has an address of each family; this one if it has them already.

        Raises   AddressError: none left, or the wanted one is not ours to give, reserved, or another's.
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
            if version not in have:
                given[version] = self._checked(want[version], used) if version in want else self._next(subnet, used)
        chosen = tuple(address for _, address in sorted((have | given).items()))
        return replace(
            self,
            names=MappingProxyType({**self.names, name: chosen}),
            last=MappingProxyType({**self.last, **given}),
        )

    def release(self, name: str) -> Pool:
        """A pool without the name."""
        if name not in self.names:
            return self
        return replace(self, names=MappingProxyType({n: a for n, a in self.names.items() if n != name}))

    def _used(self) -> dict[Address, str]:
        return {address: name for name, addresses in self.names.items() for address in addresses}

    def _checked(self, address: Address, used: Mapping[Address, str]) -> Address:
        if address in used:
            raise AddressError(f"{address} belongs to {printable(used[address])}")
        subnet = next(subnet for subnet in self.subnets if contains(subnet, address))
        if int(address) not in _assignable(subnet):
            raise AddressError(f"{address} is reserved in {subnet}")
        return address

    def _next(self, subnet: Network, used: Mapping[Address, str]) -> Address:
        """The first free address after the last one given; at most used + 1 steps."""
        choices = _assignable(subnet)
        last = self.last.get(subnet.version)
        start = int(last) + 1 - choices.start if last is not None and int(last) in choices else 0
        make = type(subnet.network_address)
        for step in range(min(len(used) + 1, _count(choices))):
            address = make(choices[(start + step) % _count(choices)])
            if address not in used:
                return address
        raise AddressError(f"no address left in {subnet}: all {_count(choices)} are in use")


def _assignable(subnet: Network) -> range:
    base = int(subnet.network_address)
    end = base + subnet.num_addresses - (1 if subnet.version == 4 else 0)
    return range(base + _RESERVED_LOW, max(end, base + _RESERVED_LOW))


def _count(numbers: range) -> int:
    return numbers.stop - numbers.start  # len() is limited to 2^63


# ---- the file --------------------------------------------------------------------------------------------------------


class Ipam:
    """A pool that survives. thread: one at a time."""

    def __init__(self, path: Path, subnet: IPv4Network | None, subnet6: IPv6Network | None) -> None:
        """Read the file if there is one. Names with addresses of other subnets keep them until they are released."""
        self._path = path
        self._pool = Pool(subnet, subnet6)
        content = _read(path)
        if content is not None:
            try:
                self._pool = _decoded(content, self._pool)
            except (ValueError, RecursionError) as error:
                _move_aside(path, str(error))

    @property
    def pool(self) -> Pool:
        return self._pool

    def allocate(self, name: str, wanted: Iterable[Address] = ()) -> tuple[Address, ...]:
        """The name's addresses, IPv4 first; the same ones however often it is asked. AddressError."""
        self._commit(self._pool.allocate(name, wanted))
        return self._pool.addresses(name)

    def release(self, name: str) -> bool:
        """Give the name's addresses back; says whether it had any."""
        known = name in self._pool.names
        self._commit(self._pool.release(name))
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
    temporary = path.with_name(f".{path.name}.new")
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


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """What lies on disk."""

    version: Literal[1]
    last: list[str]
    names: dict[str, list[str]]


def _encoded(pool: Pool) -> bytes:
    names = {name: [str(address) for address in addresses] for name, addresses in sorted(pool.names.items())}
    content = _File(1, [str(address) for _, address in sorted(pool.last.items())], names)
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def _decoded(content: bytes, empty: Pool) -> Pool:
    """What the file says; ValueError (of which msgspec's errors are a kind) if `_encoded` cannot have written it."""
    file = msgspec.json.decode(content, type=_File)
    names = {name: tuple(parse_address(item) for item in listed) for name, listed in file.names.items()}
    every = [address for addresses in names.values() for address in addresses]
    if len(set(every)) != len(every):
        raise ValueError("an address has two names")
    last: dict[int, Address] = {address.version: address for address in map(parse_address, file.last)}
    return replace(empty, names=MappingProxyType(names), last=MappingProxyType(last))


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
