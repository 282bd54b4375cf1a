"""Links, addresses, routes and sysctls of one network namespace: looked at, and brought to the wanted state.

Structure  messages are those of `rtnetlink`, over a plain blocking socket: the kernel answers before `send` returns, so
           there is nothing to wait for in the loop (and uvloop has no AF_NETLINK).
Invariant  level-triggered: `reconcile` reads, compares, changes the difference; called again it changes nothing.
           Our routes carry our own protocol number; no other route is ever deleted.
Threads    a `Netlink` belongs to the thread that uses it; inside a pod's namespace, to the thread that entered it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from canal_udp.actions import IPAddress, IPInterface, IPNetwork, Link
from canal_udp.errors import DeviceError
from canal_udp.tunnel import rtnetlink as rt
from canal_udp.underlay import Interface, LocalAddress

ROUTE_PROTOCOL = 85  # free in iproute2's rt_protos; `ip route show proto 85` lists what is ours

_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_LINKS, _ADDRESSES, _ROUTES, _RULES = 0x1, 0x10 | 0x100, 0x40 | 0x400, 0x80 | 0x40000  # groups, IPv4 | IPv6
_NETCONF = 0x800000 | 0x1000000  # the sysctls forwarding and rp_filter; no others are announced
_GROUPS = _LINKS | _ADDRESSES | _ROUTES | _RULES | _NETCONF
_LOOPBACK_INDEX = 1


class NetlinkError(DeviceError):
    """The kernel refused a netlink request."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what}: {os.strerror(code)}")
        self.code = code


class Netlink:
    """A routing socket in the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(5.0)
        self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)  # dumps take filters
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """Return the bodies of the kernel's answers to one request.

        Raises     NetlinkError, its text beginning with `what`.
        """
        self._sequence += 1
        try:
            self._socket.send(rt.request(kind, flags, self._sequence, body))
            return list(self._answers(flags, what))
        except OSError as error:
            raise NetlinkError(what, error.errno or errno.EIO) from error

    def _answers(self, flags: int, what: str) -> Iterator[bytes]:
        while True:
            for answer in rt.messages(self._socket.recv(1 << 18)):
                if answer.sequence != self._sequence:
                    continue
                if answer.kind == rt.ERROR:
                    code = rt.error_of(answer.body)
                    if code:
                        raise NetlinkError(what, code)
                    return
                if answer.kind == rt.DONE:
                    return
                yield answer.body
                if not flags & (rt.DUMP | rt.ACK):
                    return

    # what is there

    def link(self, *, name: str = "", index: int = 0) -> rt.Link | None:
        """Return one link, or None."""
        try:
            return rt.link_of(self.request(rt.GETLINK, 0, rt.link(index, name), f"link {name or index}")[0])
        except NetlinkError as error:
            if error.code in {errno.ENODEV, errno.ENOENT}:
                return None
            raise

    def addresses(self, index: int = 0) -> list[rt.Address]:
        """Return the addresses of one link, or of all."""
        return [rt.address_of(body) for body in self.request(rt.GETADDR, rt.DUMP, rt.address(index), "addresses")]

    def routes(self, family: int, *, protocol: int = 0, index: int = 0) -> list[rt.Route]:
        """Return the main table's routes, through one link only if `index`."""
        body = rt.routes(family, protocol, index)
        return [rt.route_of(found) for found in self.request(rt.GETROUTE, rt.DUMP, body, "routes")]

    def route_to(self, address: IPAddress) -> tuple[int, IPAddress | None] | None:
        """Return interface index and source address with which the kernel would send there; None if it would not."""
        found = self._way_to(address)
        return (found.index, found.source) if found else None

    def on_link(self, address: IPAddress) -> int:
        """Return the interface index through which the kernel reaches a neighbour; 0 if the address is none."""
        found = self._way_to(address)
        straight = found is not None and found.gateway is None and not found.several
        return found.index if found is not None and straight else 0

    def _way_to(self, address: IPAddress) -> rt.Route | None:
        try:
            return rt.route_of(self.request(rt.GETROUTE, 0, rt.route_to(address), f"route to {address}")[0])
        except NetlinkError:
            return None

    def interfaces(self) -> tuple[Interface, ...]:
        """Return the links with their addresses, in the kernel's order."""
        by_index: dict[int, list[LocalAddress]] = {}
        for one in self.addresses():
            by_index.setdefault(one.index, []).append(
                LocalAddress(
                    one.interface.ip,
                    deprecated=bool(one.flags & rt.IFA_DEPRECATED),
                    temporary=bool(one.flags & rt.IFA_TEMPORARY),
                    permanent=bool(one.flags & rt.IFA_PERMANENT),
                )
            )
        links = [rt.link_of(body) for body in self.request(rt.GETLINK, rt.DUMP, rt.link(), "links")]
        return tuple(
            Interface(
                link.index, link.name, link.mtu, bool(link.flags & rt.IFF_UP), tuple(by_index.get(link.index, ()))
            )
            for link in links
        )

    def default_routes(self) -> tuple[int, ...]:
        """Return the interface indices of the default routes, IPv4 first, best metric first."""
        found = [
            (route.destination.version, route.priority, route.index)
            for family in (socket.AF_INET, socket.AF_INET6)
            for route in self.routes(family)
            if not route.destination.prefixlen and route.protocol != ROUTE_PROTOCOL
        ]
        return tuple(index for _, _, index in sorted(found))

    # changes

    def set_link(self, index: int, *, up: bool | None = None, **numbers: int) -> None:
        """Set a link's flags and numbers (mtu, txqlen, gso_max_segs)."""
        self.request(rt.NEWLINK, rt.ACK, rt.link(index, "", up, **numbers), f"link {index} {numbers or ''}")

    def delete_link(self, index: int) -> None:
        """Delete a link."""
        self.request(rt.DELLINK, rt.ACK, rt.link(index), f"delete link {index}")

    def add_address(self, index: int, address: IPInterface) -> None:
        """Add an address, or refresh it."""
        body = rt.address(index, address, rt.IFA_NODAD if address.version == 6 else 0)
        self.request(rt.NEWADDR, rt.ACK | rt.CREATE | rt.REPLACE, body, f"address {address}")

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Delete an address."""
        self.request(rt.DELADDR, rt.ACK, rt.address(index, address), f"delete address {address}")

    def add_route(self, index: int, destination: IPNetwork, gateway: IPAddress | None = None) -> None:
        """Add our route to `destination` through a link, in the place of any other to it."""
        body = rt.route(index, destination, ROUTE_PROTOCOL, gateway)
        self.request(rt.NEWROUTE, rt.ACK | rt.CREATE | rt.REPLACE, body, f"route {destination}")

    def delete_route(self, index: int, destination: IPNetwork, gateway: IPAddress | None = None) -> None:
        """Delete our route to `destination` through a link."""
        body = rt.route(index, destination, ROUTE_PROTOCOL, gateway)
        self.request(rt.DELROUTE, rt.ACK, body, f"delete route {destination}")


class Monitor:
    """A socket that becomes readable when links, addresses, routes or forwarding of its namespace change."""

    def __init__(self) -> None:
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Forget what was announced; the state is read, never the announcement."""
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # announcements were lost, as if we cared which
                    raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def reconcile(link: Link) -> tuple[str, ...] | None:
    """Bring a device of this thread's namespace to the wanted state.

    Returns    what was changed, in words; None if there is no such device.
    Raises     NetlinkError, after what could be done was done up to the failure.
    """
    changes = [change for change in (write_sysctl(path, value) for path, value in link.sysctls) if change]
    with Netlink() as netlink:
        found = netlink.link(name=link.ifname)
        if found is None:
            return None
        if link.loopback_up:
            changes += _raise_loopback(netlink)
        changes += _reconcile_link(netlink, found, link)
        changes += _reconcile_addresses(netlink, found.index, link)
        for family in (socket.AF_INET, socket.AF_INET6):
            changes += _reconcile_routes(netlink, found.index, link, family)
    return tuple(changes)


def lacks(link: Link) -> tuple[str, ...]:
    """Return what a device of this thread's namespace does not have; what else it has is its own affair."""
    with Netlink() as netlink:
        found = netlink.link(name=link.ifname)
        if found is None:
            return (f"interface {link.ifname}",)
        there = {one.interface for one in netlink.addresses(found.index)}
        routes = {
            one.destination
            for family in (socket.AF_INET, socket.AF_INET6)
            for one in netlink.routes(family, index=found.index)
        }
    missing = [] if found.flags & rt.IFF_UP else [f"{link.ifname} up"]
    missing += [f"address {address}" for address in link.addresses if address not in there]
    return tuple(missing + [f"route {route}" for route in link.routes if route not in routes])


def reconcile_direct(wanted: Mapping[IPNetwork, IPAddress]) -> frozenset[IPAddress]:
    """Have our routes by gateways to exactly those subnets whose gateway is a neighbour; returns these gateways.

    Raises     NetlinkError.
    """
    with Netlink() as netlink:
        links = {gateway: netlink.on_link(gateway) for gateway in {*wanted.values()}}
        links = {gateway: index for gateway, index in links.items() if index > _LOOPBACK_INDEX}
        goal = {subnet: (links[gateway], gateway) for subnet, gateway in wanted.items() if gateway in links}
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in netlink.routes(family, protocol=ROUTE_PROTOCOL):
                if route.gateway is None:
                    continue
                if goal.get(route.destination) == (route.index, route.gateway):
                    del goal[route.destination]
                elif route.destination not in goal:
                    netlink.delete_route(route.index, route.destination, route.gateway)
        for subnet, (index, gateway) in goal.items():
            netlink.add_route(index, subnet, gateway)
    return frozenset(links)


def write_sysctl(path: str, value: str) -> str:
    """Write one sysctl of this thread's namespace if it differs; returns the change in words, or nothing."""
    file = Path("/proc/sys") / path
    try:
        if file.read_text(encoding="ascii").strip() == value:
            return ""
        file.write_text(value, encoding="ascii")
    except FileNotFoundError:
        return ""  # a kernel without IPv6 has nothing to switch off there
    except OSError as error:
        raise DeviceError(f"sysctl {path}={value}: {error.strerror}") from error
    return f"sysctl {path}={value}"


def read_sysctl(path: str) -> str:
    """Return a sysctl of this thread's namespace; empty if the kernel has none by that name."""
    try:
        return (Path("/proc/sys") / path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _raise_loopback(netlink: Netlink) -> list[str]:
    found = netlink.link(index=_LOOPBACK_INDEX)
    if found is None or found.flags & rt.IFF_UP:
        return []
    netlink.set_link(_LOOPBACK_INDEX, up=True)
    return ["loopback up"]


def _reconcile_link(netlink: Netlink, found: rt.Link, link: Link) -> list[str]:
    wanted = {"mtu": link.mtu_bytes, "txqlen": link.txqlen, "gso_max_segs": link.gso_max_segs}
    differs = {name: value for name, value in wanted.items() if getattr(found, name) != value}
    up = bool(found.flags & rt.IFF_UP)
    if up and not differs:
        return []
    netlink.set_link(found.index, up=True, **differs)
    return [f"{name}={value}" for name, value in differs.items()] + ([] if up else ["up"])


def _reconcile_addresses(netlink: Netlink, index: int, link: Link) -> list[str]:
    found = {one.interface for one in netlink.addresses(index)}
    changes = []
    for address in found - set(link.addresses):
        if any(address.version == network.version and address.ip in network for network in link.within):
            netlink.delete_address(index, address)
            changes.append(f"address -{address}")
    for address in link.addresses:
        if address not in found:
            netlink.add_address(index, address)
            changes.append(f"address +{address}")
    return changes


def _reconcile_routes(netlink: Netlink, index: int, link: Link, family: int) -> list[str]:
    version = 4 if family == socket.AF_INET else 6
    wanted = {route for route in link.routes if route.version == version}
    found = {one.destination for one in netlink.routes(family, protocol=ROUTE_PROTOCOL, index=index)}
    for route in found - wanted:
        netlink.delete_route(index, route)
    missing = [route for route in link.routes if route.version == version and route not in found]
    for route in missing:
        netlink.add_route(index, route)
    return [f"route -{route}" for route in sorted(found - wanted, key=str)] + [f"route +{route}" for route in missing]
