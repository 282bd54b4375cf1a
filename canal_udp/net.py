"""Addresses, prefixes and MACs: reading them from untrusted text, and what `ipaddress` does not answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Tunnel: TypeAlias = Literal["udp", "vxlan"]
Encap: TypeAlias = Literal["udp", "vxlan", "host-gw"]  # host-gw: none, the peer is a gateway on our own link
Backend: TypeAlias = Literal["udp", "vxlan", "host-gw", "extension"]  # extension: commands that an administrator wrote

TUNNELS: tuple[Tunnel, ...] = ("udp", "vxlan")
ENCAPS: tuple[Encap, ...] = (*TUNNELS, "host-gw")
BACKENDS: tuple[Backend, ...] = (*ENCAPS, "extension")
PORTS: dict[Tunnel, int] = {"udp": 8285, "vxlan": 8472}  # UDP destination ports, flannel's
VNI_DEFAULT = 1
VNI_MAX = 2**24 - 1

_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_ADDRESS_TEXT_MAX = 64


def parse_address(text: str) -> Address:
    """Read an address without zone; ValueError says why not."""
    if len(text) > _ADDRESS_TEXT_MAX or "%" in text:
        raise ValueError(f"{printable(text)!r} is not an IP address")
    return ip_address(text)


def parse_address4(text: str) -> IPv4Address:
    address = parse_address(text)
    if not isinstance(address, IPv4Address):
        raise ValueError(f"{address} is not an IPv4 address")
    return address


def parse_address6(text: str) -> IPv6Address:
    address = parse_address(text)
    if not isinstance(address, IPv6Address):
        raise ValueError(f"{address} is not an IPv6 address")
    return address


def parse_network(text: str, *, strict: bool = True) -> Network:
    """Read "address/length"; host bits are an error, or masked off when not strict."""
    if len(text) > _ADDRESS_TEXT_MAX or "/" not in text or "%" in text:
        raise ValueError(f"{printable(text)!r} is not a network in the form address/length")
    if not text.rpartition("/")[2].isdecimal():
        raise ValueError(f"{printable(text)!r}: the length after / must be a number")
    return ip_network(text, strict=strict)


def parse_network4(text: str, *, strict: bool = True) -> IPv4Network:
    network = parse_network(text, strict=strict)
    if not isinstance(network, IPv4Network):
        raise ValueError(f"{network} is not an IPv4 network")
    return network


def parse_network6(text: str, *, strict: bool = True) -> IPv6Network:
    network = parse_network(text, strict=strict)
    if not isinstance(network, IPv6Network):
        raise ValueError(f"{network} is not an IPv6 network")
    return network


def parse_mac(text: str) -> bytes:
    """Read aa:bb:cc:dd:ee:ff of one station (no multicast, not zero)."""
    if not _MAC.fullmatch(text):
        raise ValueError(f"{printable(text)!r} is not a MAC address")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"{text} is not the MAC address of one station")
    return mac


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def endpoint_problem(address: Address) -> str | None:
    """Why no peer can be reached at this underlay address, or None."""
    if address.is_unspecified:
        return "is the unspecified address"
    if address.is_loopback:
        return "is a loopback address"
    if address.is_multicast:
        return "is a multicast address"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return "is an IPv4 address in IPv6 form"
        return "is a link-local address" if address.is_link_local else None
    if int(address) == 2**32 - 1 or int(address) < 2**24:
        return "is no address of a host"
    return None


def overlaps(a: Network, b: Network) -> bool:
    """Do two prefixes share an address? Never across families."""
    if isinstance(a, IPv4Network):
        return isinstance(b, IPv4Network) and a.overlaps(b)
    return isinstance(b, IPv6Network) and a.overlaps(b)


def covers(outer: Network, inner: Network) -> bool:
    """Does every address of `inner` lie in `outer`? Never across families."""
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


def contains(network: Network | None, address: Address) -> bool:
    """`address in network`, False across families and for None."""
    return network is not None and network.version == address.version and address in network


def sort_key(prefix: Network) -> tuple[int, int, int]:
    """IPv4 first, then by address, then the wider prefix first."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def first_host(subnet: Network) -> Address:
    """x.y.z.1: the address that a bridge on this node takes (FLANNEL_SUBNET)."""
    return subnet.network_address + 1


def printable(text: str, limit: int = 120) -> str:
    """Make text of others safe for a log line or a terminal: no control, no bidi, no line breaks, bounded."""
    cut = text[:limit]
    safe = cut if cut.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)
    return safe if len(text) <= limit else f"{safe}... ({len(text)} characters)"


def present(*items: Network | None) -> Iterator[Network]:
    """The prefixes that are not None."""
    return (item for item in items if item is not None)


def any_overlap(prefixes: Iterable[Network], others: Iterable[Network]) -> bool:
    rest = tuple(others)
    return any(overlaps(a, b) for a in prefixes for b in rest)
