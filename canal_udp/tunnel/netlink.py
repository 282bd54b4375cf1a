"""Links, addresses, routes and sysctls of one network namespace: looked at, and brought to the wanted state.

Structure  requests are made and read with pyroute2's message classes over a socket of our own. Its AsyncIPRoute cannot
           run in uvloop (no AF_NETLINK there), and the kernel answers before `send` returns: a plain call is enough.
Invariant  level-triggered: `reconcile` reads, compares, changes the difference; called again it changes nothing.
           Our routes carry our own protocol number; no other route is ever deleted.
Threads    a `Netlink` belongs to the thread that uses it; inside a pod's namespace, to the thread that entered it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from canal_udp.actions import IPAddress, IPInterface, IPNetwork, Link
from canal_udp.errors import DeviceError
from canal_udp.underlay import Interface, LocalAddress

ROUTE_PROTOCOL = 85  # free in iproute2's rt_protos; `ip route show proto 85` lists what is ours

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x001, 0x004, 0x300, 0x100, 0x400
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_LINKS, _ADDRESSES, _ROUTES, _RULES = 0x1, 0x10 | 0x100, 0x40 | 0x400, 0x80 | 0x40000  # groups, IPv4 | IPv6
_NETCONF = 0x800000 | 0x1000000  # the sysctls forwarding and rp_filter; no others are announced
_GROUPS = _LINKS | _ADDRESSES | _ROUTES | _RULES | _NETCONF
_IFF_UP = 0x1
_IFA_F_TEMPORARY, _IFA_F_NODAD, _IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x01, 0x02, 0x20, 0x80
_TABLE_MAIN, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 254, 0, 253, 1
_LOOPBACK_INDEX = 1

Message = Any  # a dict of pyroute2, which carries no types


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
        self._marshal = MarshalRtnl()
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

    def request(self, message: Message, kind: int, flags: int, what: str) -> list[Message]:
        """Return the kernel's answers to one request.

        Raises     NetlinkError, its text beginning with `what`.
        """
        self._sequence += 1
        message["header"].update({"type": kind, "flags": flags | _REQUEST, "sequence_number": self._sequence, "pid": 0})
        message.encode()
        try:
            self._socket.send(message.data)
            return list(self._answers(flags, what))
        except OSError as error:
            raise NetlinkError(what, error.errno or errno.EIO) from error

    def _answers(self, flags: int, what: str) -> Iterator[Message]:
        while True:
            for answer in self._marshal.parse(self._socket.recv(1 << 18)):
                header = answer["header"]
                if header["sequence_number"] != self._sequence:
                    continue
                if header["type"] == _NLMSG_ERROR:
                    if header["error"] is None:
                        return
                    raise NetlinkError(what, int(header["error"].code))
                if header["type"] == _NLMSG_DONE:
                    return
                yield answer
                if not flags & (_DUMP | _ACK):
                    return

    # what is there

    def link(self, *, name: str = "", index: int = 0) -> Message | None:
        """Return one link, or None."""
        message = ifinfmsg()
        message["index"] = index
        if name:
            message["attrs"] = [("IFLA_IFNAME", name)]
        try:
            return self.request(message, _RTM_GETLINK, 0, f"link {name or index}")[0]
        except NetlinkError as error:
            if error.code in {errno.ENODEV, errno.ENOENT}:
                return None
            raise

    def addresses(self, index: int = 0) -> list[Message]:
        """Return the addresses of one link, or of all."""
        message = ifaddrmsg()
        message["index"] = index
        return self.request(message, _RTM_GETADDR, _DUMP, "addresses")

    def routes(self, family: int, *, protocol: int = 0, index: int = 0) -> list[Message]:
        """Return the main table's routes, through one link only if `index`."""
        message = rtmsg()
        message["family"], message["table"], message["proto"], message["type"] = family, _TABLE_MAIN, protocol, 0
        if index:
            message["attrs"] = [("RTA_OIF", index)]
        return self.request(message, _RTM_GETROUTE, _DUMP, "routes")

    def route_to(self, address: IPAddress) -> tuple[int, IPAddress | None] | None:
        """Return interface index and source address with which the kernel would send there; None if it would not."""
        message = rtmsg()
        message["family"], message["dst_len"] = _family(address), address.max_prefixlen
        message["attrs"] = [("RTA_DST", str(address))]
        try:
            found = self.request(message, _RTM_GETROUTE, 0, f"route to {address}")[0]
        except NetlinkError:
            return None
        source = found.get_attr("RTA_PREFSRC")
        return int(found.get_attr("RTA_OIF") or 0), ip_address(source) if source else None

    def interfaces(self) -> tuple[Interface, ...]:
        """Return the links with their addresses, in the kernel's order."""
        by_index: dict[int, list[LocalAddress]] = {}
        for found in self.addresses():
            flags = found.get_attr("IFA_FLAGS") or found["flags"]
            by_index.setdefault(found["index"], []).append(
                LocalAddress(
                    _address_of(found).ip,
                    deprecated=bool(flags & _IFA_F_DEPRECATED),
                    temporary=bool(flags & _IFA_F_TEMPORARY),
                    permanent=bool(flags & _IFA_F_PERMANENT),
                )
            )
        links = self.request(ifinfmsg(), _RTM_GETLINK, _DUMP, "links")
        return tuple(
            Interface(
                link["index"],
                str(link.get_attr("IFLA_IFNAME")),
                int(link.get_attr("IFLA_MTU") or 0),
                bool(link["flags"] & _IFF_UP),
                tuple(by_index.get(link["index"], ())),
            )
            for link in links
        )

    def default_routes(self) -> tuple[int, ...]:
        """Return the interface indices of the default routes, IPv4 first, best metric first."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in self.routes(family):
                if route["dst_len"] != 0 or route["proto"] == ROUTE_PROTOCOL:
                    continue
                hops = route.get_attr("RTA_MULTIPATH") or []
                index = route.get_attr("RTA_OIF") or (hops[0]["oif"] if hops else 0)
                found.append((family != socket.AF_INET, int(route.get_attr("RTA_PRIORITY") or 0), int(index)))
        return tuple(index for _, _, index in sorted(found))

    # changes

    def set_link(self, index: int, *, up: bool | None = None, **attributes: int | str) -> None:
        """Set a link's flags and attributes (mtu, txqlen, gso_max_segs)."""
        message = ifinfmsg()
        message["index"] = index
        if up is not None:
            message["flags"], message["change"] = (_IFF_UP if up else 0), _IFF_UP
        message["attrs"] = [(f"IFLA_{name.upper()}", value) for name, value in attributes.items()]
        self.request(message, _RTM_NEWLINK, _ACK, f"link {index} {attributes or ''}")

    def delete_link(self, index: int) -> None:
        """Delete a link."""
        message = ifinfmsg()
        message["index"] = index
        self.request(message, _RTM_DELLINK, _ACK, f"delete link {index}")

    def add_address(self, index: int, address: IPInterface) -> None:
        """Add an address, or refresh it."""
        message = _address_message(index, address)
        if address.version == 6:
            message["flags"] = _IFA_F_NODAD
        self.request(message, _RTM_NEWADDR, _ACK | _CREATE | _REPLACE, f"address {address}")

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Delete an address."""
        self.request(_address_message(index, address), _RTM_DELADDR, _ACK, f"delete address {address}")

    def add_route(self, index: int, destination: IPNetwork) -> None:
        """Add our route to `destination` through a link, in the place of any other to it."""
        message = _route_message(index, destination)
        self.request(message, _RTM_NEWROUTE, _ACK | _CREATE | _REPLACE, f"route {destination}")

    def delete_route(self, index: int, destination: IPNetwork) -> None:
        """Delete our route to `destination` through a link."""
        self.request(_route_message(index, destination), _RTM_DELROUTE, _ACK, f"delete route {destination}")


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
        index = int(found["index"])
        if link.loopback_up:
            changes += _raise_loopback(netlink)
        changes += _reconcile_link(netlink, found, link)
        changes += _reconcile_addresses(netlink, index, link)
        for family in (socket.AF_INET, socket.AF_INET6):
            changes += _reconcile_routes(netlink, index, link, family)
    return tuple(changes)


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
    if found is None or found["flags"] & _IFF_UP:
        return []
    netlink.set_link(_LOOPBACK_INDEX, up=True)
    return ["loopback up"]


def _reconcile_link(netlink: Netlink, found: Message, link: Link) -> list[str]:
    wanted = {"mtu": link.mtu_bytes, "txqlen": link.txqlen, "gso_max_segs": link.gso_max_segs}
    differs: dict[str, int | str] = {
        name: value for name, value in wanted.items() if found.get_attr(f"IFLA_{name.upper()}") != value
    }
    up = bool(found["flags"] & _IFF_UP)
    if up and not differs:
        return []
    netlink.set_link(int(found["index"]), up=True, **differs)
    return [f"{name}={value}" for name, value in differs.items()] + ([] if up else ["up"])


def _reconcile_addresses(netlink: Netlink, index: int, link: Link) -> list[str]:
    found = {_address_of(message) for message in netlink.addresses(index)}
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
    found = {_destination(message) for message in netlink.routes(family, protocol=ROUTE_PROTOCOL, index=index)}
    for route in found - wanted:
        netlink.delete_route(index, route)
    missing = [route for route in link.routes if route.version == version and route not in found]
    for route in missing:
        netlink.add_route(index, route)
    return [f"route -{route}" for route in sorted(found - wanted, key=str)] + [f"route +{route}" for route in missing]


def _family(address: IPAddress | IPNetwork | IPInterface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address_of(message: Message) -> IPInterface:
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ip_interface(f"{text}/{message['prefixlen']}")


def _destination(message: Message) -> IPNetwork:
    text = message.get_attr("RTA_DST") or ("0.0.0.0" if message["family"] == socket.AF_INET else "::")
    return ip_network(f"{text}/{message['dst_len']}")


def _address_message(index: int, address: IPInterface) -> Message:
    message = ifaddrmsg()
    message["index"], message["family"], message["prefixlen"] = index, _family(address), address.network.prefixlen
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    return message


def _route_message(index: int, destination: IPNetwork) -> Message:
    message = rtmsg()
    message["family"], message["dst_len"] = _family(destination), destination.prefixlen
    message["table"], message["proto"], message["type"] = _TABLE_MAIN, ROUTE_PROTOCOL, _UNICAST
    message["scope"] = _SCOPE_LINK if destination.version == 4 else _SCOPE_UNIVERSE
    message["attrs"] = [("RTA_OIF", index)]
    if destination.prefixlen:
        message["attrs"].insert(0, ("RTA_DST", str(destination.network_address)))
    return message
