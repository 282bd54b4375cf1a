"""Which interface and address of this host carry the outer packets: chosen as flanneld chooses. Pure.

Structure  facts in (`Interface`, default routes, what `ip route get` says), `Underlay` out.
Source     flannel pkg/ipmatch: by name or address, then by expression, then by reachability, then the default route.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from canal_udp.errors import ConfigError

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of an interface, with what decides between several."""

    ip: IPAddress
    deprecated: bool = False
    temporary: bool = False
    permanent: bool = True


@dataclass(frozen=True, slots=True)
class Interface:
    """A link of this host."""

    index: int
    name: str
    mtu_bytes: int
    up: bool
    addresses: tuple[LocalAddress, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user said about the interface."""

    names: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    can_reach: str = ""
    public_ip: IPv4Address | None = None
    public_ip6: IPv6Address | None = None
    exclude: tuple[str, ...] = ()  # our own devices


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface chosen, the addresses to bind, and those to tell peers (other behind a NAT)."""

    interface: str
    mtu_bytes: int
    bind: IPv4Address | None
    bind6: IPv6Address | None
    public_ip: IPv4Address | None
    public_ip6: IPv6Address | None


def choose(
    wish: Wish,
    interfaces: Sequence[Interface],
    defaults: Sequence[int],
    route_to: Callable[[IPAddress], tuple[int, IPAddress | None] | None],
) -> Underlay:
    """Return the underlay that `wish` leads to.

    Arguments  defaults: interface indices of the default routes, best first.
               route_to: the interface and source address that the kernel would use.
    Raises     ConfigError if nothing matches, or what matches has no address of the family.
    """
    candidates = [one for one in interfaces if one.name not in wish.exclude]
    source: IPAddress | None = None
    if wish.names or wish.expressions or wish.can_reach:
        chosen, source = _asked_for(wish, candidates, route_to)
    else:
        chosen = _by_public_ip(wish, candidates) or _by_default_route(candidates, defaults)
    if chosen.mtu_bytes == 0:
        raise ConfigError(f"cannot determine the MTU of {chosen.name}", field="iface")
    bind = _bind(4, chosen, (source, wish.public_ip))
    bind6 = _bind(6, chosen, (source, wish.public_ip6))
    assert not isinstance(bind, IPv6Address) and not isinstance(bind6, IPv4Address)
    if bind6 is not None and bind6.is_link_local:
        bind6 = None  # says nothing to a peer, and cannot be bound without naming the interface
    if bind is None and bind6 is None:
        raise ConfigError(f"failed to find an IP address for interface {chosen.name}", field="iface")
    return Underlay(chosen.name, chosen.mtu_bytes, bind, bind6, wish.public_ip or bind, wish.public_ip6 or bind6)


def _asked_for(
    wish: Wish,
    candidates: Sequence[Interface],
    route_to: Callable[[IPAddress], tuple[int, IPAddress | None] | None],
) -> tuple[Interface, IPAddress | None]:
    for name in wish.names:
        found = _by_name_or_address(name, candidates)
        if found:
            return found
    for expression in wish.expressions:
        one = _by_expression(expression, candidates)
        if one:
            return one, None
    if wish.can_reach:
        try:
            route = route_to(ip_address(wish.can_reach))
        except ValueError as error:
            raise ConfigError(f"{wish.can_reach!r} is no IP address", field="iface-can-reach") from error
        by_index = {one.index: one for one in candidates}
        if route and route[0] in by_index:
            return by_index[route[0]], route[1]
    raise ConfigError(
        "Failed to find interface to use that matches the interfaces and/or regexes provided; there are "
        + (", ".join(one.name for one in candidates) or "none"),
        field="iface",
    )


def _by_name_or_address(wanted: str, candidates: Sequence[Interface]) -> tuple[Interface, IPAddress | None] | None:
    try:
        address = ip_address(wanted)
    except ValueError:
        return next(((one, None) for one in candidates if one.name == wanted), None)
    return next(((one, address) for one in candidates if any(a.ip == address for a in one.addresses)), None)


def _by_expression(expression: str, candidates: Sequence[Interface]) -> Interface | None:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{expression!r} is no regular expression: {error}", field="iface-regex") from error
    for one in candidates:
        if any(pattern.search(str(address.ip)) for address in one.addresses):
            return one
    return next((one for one in candidates if pattern.search(one.name)), None)


def _by_public_ip(wish: Wish, candidates: Sequence[Interface]) -> Interface | None:
    for address in (wish.public_ip, wish.public_ip6):
        for one in candidates:
            if address is not None and any(a.ip == address for a in one.addresses):
                return one
    return None


def _by_default_route(candidates: Sequence[Interface], defaults: Sequence[int]) -> Interface:
    by_index = {one.index: one for one in candidates}
    for index in defaults:
        if index in by_index:
            return by_index[index]
    raise ConfigError("there is no default route to choose the interface by; name one", field="iface")


def _best(interface: Interface, version: int) -> IPAddress | None:
    """Return the address flannel takes: global before link-local, permanent before dynamic, stable before temporary."""
    usable = [
        a
        for a in interface.addresses
        if a.ip.version == version
        and not a.deprecated
        and not (a.ip.is_loopback or a.ip.is_multicast or a.ip.is_unspecified)
    ]
    if not usable:
        return None
    return min(usable, key=lambda a: (a.ip.is_link_local, not a.permanent, a.temporary)).ip


def _bind(version: int, chosen: Interface, asked: Sequence[IPAddress | None]) -> IPAddress | None:
    local = {a.ip for a in chosen.addresses}
    wanted = (a for a in asked if a is not None and a.version == version and a in local)
    return next(wanted, None) or _best(chosen, version)
