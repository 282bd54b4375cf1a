"""This host, as the daemon sees and changes it: the one place where goals meet the kernel.

Structure  `Host` is what the daemon needs; `RealHost` is the kernel, `fake.FakeHost` a model of it for tests.
Threads    every method may block for milliseconds: call it in the daemon's host thread, one at a time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from canal_udp.actions import IPAddress, IPNetwork, Link, Sockets
from canal_udp.errors import DeviceError
from canal_udp.netfilter import Rules
from canal_udp.tunnel import netfilter, netlink, netns
from canal_udp.tunnel.device import Tun, open_tun
from canal_udp.tunnel.echo import EchoSocket
from canal_udp.tunnel.netlink import Monitor, Netlink
from canal_udp.tunnel.sockets import UnderlaySocket, open_underlay_set, path_mtu
from canal_udp.underlay import Underlay, Wish, choose


class AnyTun(Protocol):
    """An open TUN."""

    @property
    def fd(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def inode(self) -> tuple[int, int] | None: ...
    def close(self, *, keep: bool) -> None: ...


class AnyMonitor(Protocol):
    """Something to wait on for changes in a namespace."""

    def fileno(self) -> int: ...
    def drain(self) -> None: ...
    def close(self) -> None: ...


class AnyEcho(Protocol):
    """Echo requests of one family and their answers."""

    def fileno(self) -> int: ...
    def send(self, target: IPAddress, size_bytes: int, number: int) -> None: ...
    def receive(self) -> Iterable[tuple[int, IPAddress]]: ...
    def close(self) -> None: ...


class Host(Protocol):
    """What the daemon needs of the host."""

    def open_tun(self, ifname: str, namespace: str | None) -> AnyTun: ...
    def open_sockets(self, wanted: Sockets, *, gro: bool) -> list[UnderlaySocket]: ...
    def open_echo(self, version: int) -> AnyEcho: ...
    def monitor(self, namespace: str | None) -> AnyMonitor: ...
    def reconcile(self, link: Link) -> tuple[str, ...] | None: ...
    def lacks(self, link: Link) -> tuple[str, ...]: ...
    def look_into(self, namespace: str) -> tuple[str, frozenset[str]]: ...
    def remove_left_tun(self, ifname: str, namespace: str) -> bool: ...
    def identity(self, namespace: str) -> str: ...
    def inode(self, namespace: str) -> tuple[int, int] | None: ...
    def underlay(self, wish: Wish) -> Underlay: ...
    def leading_into(self, ifname: str, addresses: frozenset[IPAddress]) -> frozenset[IPAddress]: ...
    def path_mtu(self, address: IPAddress) -> int: ...
    def route_directly(self, routes: Mapping[IPNetwork, IPAddress]) -> frozenset[IPAddress]: ...
    def apply_rules(self, rules: Rules) -> str: ...
    def look_at_rules(self, rules: Rules) -> str: ...
    def remove_rules(self, rules: Rules) -> None: ...
    def sysctl(self, path: str) -> str: ...
    def restore_sysctl(self, path: str, value: str) -> None: ...


class RealHost:
    """The kernel of this machine, seen from this process's network namespace."""

    def open_tun(self, ifname: str, namespace: str | None) -> Tun:
        """Open a TUN, in `namespace` if given."""
        return open_tun(ifname, namespace)

    def open_sockets(self, wanted: Sockets, *, gro: bool) -> list[UnderlaySocket]:
        """Open the underlay sockets of one encapsulation and family."""
        return open_underlay_set(wanted.address, wanted.port, wanted.encap, gro=gro)

    def open_echo(self, version: int) -> EchoSocket:
        """Open a socket for echo requests from this host."""
        return EchoSocket(version)

    def monitor(self, namespace: str | None) -> Monitor:
        """Watch links, addresses and routes of a namespace."""
        return netns.run_inside(namespace, Monitor)

    def reconcile(self, link: Link) -> tuple[str, ...] | None:
        """Bring a device to the wanted state; None if it is not there."""
        return netns.run_inside(link.netns, lambda: netlink.reconcile(link))

    def lacks(self, link: Link) -> tuple[str, ...]:
        """Return what a device does not have that it should; changes nothing."""
        return netns.run_inside(link.netns, lambda: netlink.lacks(link))

    def look_into(self, namespace: str) -> tuple[str, frozenset[str]]:
        """Return what a namespace is known by, and the names of its interfaces."""
        return netns.identity_and(namespace, lambda: frozenset(name for _, name in socket.if_nameindex()))

    def remove_left_tun(self, ifname: str, namespace: str) -> bool:
        """Remove a TUN that nobody holds, as a killed daemon leaves one; anything else by that name stays."""
        if ifname not in self.look_into(namespace)[1]:
            return False
        try:
            found = open_tun(ifname, namespace)
        except DeviceError:  # no TUN, or someone's
            return False
        found.close(keep=False)
        return True

    def identity(self, namespace: str) -> str:
        """Tell a namespace from every other that its path ever named."""
        return netns.identity(namespace)

    def inode(self, namespace: str) -> tuple[int, int] | None:
        """Tell cheaply whether a path still names the namespace that we hold open."""
        return netns.inode(namespace)

    def underlay(self, wish: Wish) -> Underlay:
        """Choose the underlay interface and addresses."""
        with Netlink() as socket:
            return choose(wish, socket.interfaces(), socket.default_routes(), socket.route_to)

    def leading_into(self, ifname: str, addresses: frozenset[IPAddress]) -> frozenset[IPAddress]:
        """Return those addresses that the kernel would send into the device `ifname`: a tunnel in itself."""
        with Netlink() as socket:
            found = socket.link(name=ifname)
            if found is None:
                return frozenset()
            routes = ((address, socket.route_to(address)) for address in addresses)
            return frozenset(address for address, route in routes if route is not None and route[0] == found.index)

    def path_mtu(self, address: IPAddress) -> int:
        """Return what the kernel sends there in one piece: what its link carries, or what a router told it."""
        return path_mtu(address)

    def route_directly(self, routes: Mapping[IPNetwork, IPAddress]) -> frozenset[IPAddress]:
        """Have routes to the subnets of those peers that are on our own link; returns their addresses."""
        return netlink.reconcile_direct(routes)

    def apply_rules(self, rules: Rules) -> str:
        """Make netfilter rules hold; returns what a look will show."""
        return netfilter.apply(rules)

    def look_at_rules(self, rules: Rules) -> str:
        """Return what is there of them."""
        return netfilter.look(rules)

    def remove_rules(self, rules: Rules) -> None:
        """Have none of them."""
        netfilter.remove(rules)

    def sysctl(self, path: str) -> str:
        """Read a sysctl of this namespace."""
        return netlink.read_sysctl(path)

    def restore_sysctl(self, path: str, value: str) -> None:
        """Write a sysctl of this namespace."""
        netlink.write_sysctl(path, value)


def attempt(work: Callable[[], None]) -> str:
    """Do some clean-up; returns what went wrong, if anything did, for the log."""
    try:
        work()
    except (DeviceError, OSError) as error:
        return str(error)
    return ""
