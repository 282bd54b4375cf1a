"""The few rtnetlink messages that a pod network needs, as bytes and as values. Pure.

Structure   0        4      6       8          12        16
            +--------+------+-------+----------+---------+------------+-----------+-----------+ ...
            | length | kind | flags | sequence | port id | fixed part | attribute | attribute |
            +--------+------+-------+----------+---------+------------+-----------+-----------+ ...
                                                           of its kind  length 2, type 2, value, up to the next 4

            link     family 1, pad 1, type 2, index 4, flags 4, change 4
            address  family 1, prefix length 1, flags 1, scope 1, index 4
            route    family 1, destination's length 1, source's 1, tos 1, table 1, protocol 1, scope 1, type 1, flags 4
Byte order  the machine's; addresses as on the wire.
Source      linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h. pyroute2 knows all of it, for a tenth of a second and
            10 MB at every start of the daemon, and a millisecond and a half at every look at a device.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address

from canal_udp.actions import IPAddress, IPInterface, IPNetwork

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, REPLACE, CREATE = 0x001, 0x004, 0x300, 0x100, 0x400  # flags of a request

IFF_UP = 0x1
IFA_TEMPORARY, IFA_NODAD, IFA_DEPRECATED, IFA_PERMANENT = 0x01, 0x02, 0x20, 0x80
TABLE_MAIN, SCOPE_UNIVERSE, SCOPE_LINK, UNICAST = 254, 0, 253, 1

_HEAD = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")
_HOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")
_TYPE_MASK = 0x3FFF  # the upper bits say "nested" and "network byte order"

# attributes: of links, of addresses, of routes
_IFADDRESS, _IFNAME, _LINKINFO, _INFO_KIND, _NUMBERS = 1, 3, 18, 1, {"mtu": 4, "txqlen": 13, "gso_max_segs": 40}
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH, _VIA = 1, 4, 5, 6, 7, 9, 18


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the kernel."""

    kind: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    flags: int
    mtu: int
    txqlen: int
    gso_max_segs: int
    address: bytes = b""
    kind: str = ""  # "vxlan", "tun" ...; none for hardware


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    index: int
    flags: int
    interface: IPInterface


@dataclass(frozen=True, slots=True)
class Route:
    """A route; `index` is that of its first hop, 0 if it leads nowhere."""

    destination: IPNetwork
    protocol: int
    index: int
    priority: int
    source: IPAddress | None
    gateway: IPAddress | None = None
    several: bool = False  # ways


# ---- to the kernel ---------------------------------------------------------------------------------------------------


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a whole message."""
    return _HEAD.pack(_HEAD.size + len(body), kind, flags | REQUEST, sequence, 0) + body


def link(index: int = 0, name: str = "", up: bool | None = None, /, **numbers: int) -> bytes:
    """Return the body of a request about a link: which one, and what shall change (mtu, txqlen, gso_max_segs)."""
    body = _LINK.pack(0, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    if name:
        body += _attribute(_IFNAME, name.encode("ascii") + b"\0")
    return body + b"".join(_attribute(_NUMBERS[key], _U32.pack(value)) for key, value in numbers.items())


def address(index: int, interface: IPInterface | None = None, flags: int = 0) -> bytes:
    """Return the body of a request about an address, or about all of a link (0: of every link)."""
    if interface is None:
        return _ADDRESS.pack(0, 0, 0, 0, index)
    packed = interface.ip.packed
    body = _ADDRESS.pack(family_of(interface), interface.network.prefixlen, flags, 0, index)
    return body + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)


def route(index: int, destination: IPNetwork, protocol: int, gateway: IPAddress | None = None) -> bytes:
    """Return the body of a request about a route of the main table through a link, straight or by a gateway."""
    scope = SCOPE_LINK if destination.version == 4 and gateway is None else SCOPE_UNIVERSE
    family = family_of(destination)
    body = _ROUTE.pack(family, destination.prefixlen, 0, 0, TABLE_MAIN, protocol, scope, UNICAST, 0)
    if destination.prefixlen:
        body += _attribute(_DST, destination.network_address.packed)
    if gateway is not None:
        body += _attribute(_GATEWAY, gateway.packed)
    return body + _attribute(_OIF, _I32.pack(index))


def routes(family: int, protocol: int = 0, index: int = 0) -> bytes:
    """Return the body of a request for the main table's routes, of one protocol and link only if given."""
    body = _ROUTE.pack(family, 0, 0, 0, TABLE_MAIN, protocol, 0, 0, 0)
    return body + (_attribute(_OIF, _I32.pack(index)) if index else b"")


def route_to(target: IPAddress) -> bytes:
    """Return the body of the question how the kernel would send to an address."""
    return _ROUTE.pack(family_of(target), target.max_prefixlen, *[0] * 7) + _attribute(_DST, target.packed)


def family_of(value: IPAddress | IPInterface | IPNetwork) -> int:
    """Return AF_INET or AF_INET6."""
    return socket.AF_INET if value.version == 4 else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


# ---- from the kernel -------------------------------------------------------------------------------------------------


def messages(data: bytes) -> Iterator[Message]:
    """Return the messages of one datagram."""
    at = 0
    while at + _HEAD.size <= len(data):
        size, kind, _, sequence, _ = _HEAD.unpack_from(data, at)
        if size < _HEAD.size:
            return
        yield Message(kind, sequence, data[at + _HEAD.size : at + size])
        at += size + -size % 4


def error_of(body: bytes) -> int:
    """Return the errno of an acknowledgement; 0 if there is none."""
    return -int(_I32.unpack_from(body)[0])


def link_of(body: bytes) -> Link:
    """Return what a NEWLINK says."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = _attributes(body, _LINK.size)
    name = found.get(_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
    numbers = {key: _number(found, kind) for key, kind in _NUMBERS.items()}
    inside = _attributes(found.get(_LINKINFO, b""), 0)
    kind = inside.get(_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
    return Link(index, name, flags, **numbers, address=found.get(_IFADDRESS, b""), kind=kind)


def address_of(body: bytes) -> Address:
    """Return what a NEWADDR says."""
    family, length, flags, _, index = _ADDRESS.unpack_from(body)
    found = _attributes(body, _ADDRESS.size)
    packed = found[_IFA_LOCAL] if _IFA_LOCAL in found else found[_IFA_ADDRESS]
    kind = IPv4Interface if family == socket.AF_INET else IPv6Interface
    return Address(index, _number(found, _IFA_FLAGS) or flags, kind((packed, length)))


def route_of(body: bytes) -> Route:
    """Return what a NEWROUTE says."""
    family, length, _, _, _, protocol, _, _, _ = _ROUTE.unpack_from(body)
    found = _attributes(body, _ROUTE.size)
    kind, bytes_all = (IPv4Network, 4) if family == socket.AF_INET else (IPv6Network, 16)
    index = _number(found, _OIF)
    if not index and len(found.get(_MULTIPATH, b"")) >= _HOP.size:
        index = _HOP.unpack_from(found[_MULTIPATH])[3]
    source = ip_address(found[_PREFSRC]) if _PREFSRC in found else None
    destination = kind((found.get(_DST, bytes(bytes_all)), length))
    gateway = ip_address(found[_GATEWAY]) if _GATEWAY in found else None
    several = _MULTIPATH in found or _VIA in found
    return Route(destination, protocol, index, _number(found, _PRIORITY), source, gateway, several)


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = body[at + _ATTRIBUTE.size : at + size]
        at += size + -size % 4
    return found


def _number(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind, b"")
    return int(_U32.unpack(value)[0]) if len(value) == _U32.size else 0
