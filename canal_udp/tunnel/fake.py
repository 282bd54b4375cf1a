"""A host of one process: TUN devices, sockets and links without the kernel's, for tests without root.

Structure  a FakeTun is a SOCK_SEQPACKET pair: the data plane has one end, the test the other, packets keep their edges.
           FakeHost keeps what was done to it, and does what a test says is wrong.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from canal_udp.actions import IPAddress, IPNetwork, Link, Sockets
from canal_udp.errors import DeviceError
from canal_udp.netfilter import Rules
from canal_udp.tunnel.netns import OWN
from canal_udp.tunnel.sockets import UnderlaySocket
from canal_udp.underlay import Underlay, Wish


class FakeTun:
    """A TUN device; `far` is the end where the pod would be. Frames start with a virtio_net_hdr, as at a real one."""

    def __init__(self, ifname: str, inode: tuple[int, int] | None = None) -> None:
        self.ifname, self.inode, self.alive = ifname, inode, True
        self.kept: bool | None = None
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)

    @property
    def fd(self) -> int:
        """The data plane's end."""
        return self.near.fileno()

    def close(self, *, keep: bool) -> None:
        """Close both ends and remember whether the device was to stay."""
        self.kept = keep
        self.near.close()
        self.far.close()


class FakeMonitor:
    """A monitor that a test rings."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def ring(self) -> None:
        """Announce a change."""
        os.eventfd_write(self._fd, 1)

    def drain(self) -> None:
        """Forget what was announced."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class FakeEcho(FakeMonitor):
    """Echo requests that every peer answers, up to the size that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.carries_bytes = 65535
        self._answers: list[tuple[int, IPAddress]] = []

    def send(self, target: IPAddress, size_bytes: int, number: int) -> None:
        """Answer, unless that is too big."""
        if size_bytes <= self.carries_bytes:
            self._answers.append((number, target))
            self.ring()

    def receive(self) -> list[tuple[int, IPAddress]]:
        """Return the answers since the last call."""
        self.drain()
        found, self._answers = self._answers, []
        return found


@dataclass
class FakeHost:
    """A `Host` whose state is plain attributes."""

    underlay_now: Underlay = field(
        default_factory=lambda: Underlay("eth0", 1500, IPv4Address("127.0.0.1"), None, IPv4Address("192.0.2.1"), None)
    )
    tuns: dict[tuple[str | None, str], FakeTun] = field(default_factory=dict)
    links: dict[tuple[str | None, str], Link] = field(default_factory=dict)
    monitors: dict[str | None, FakeMonitor] = field(default_factory=dict)
    echoes: dict[int, FakeEcho] = field(default_factory=dict)  # by IP version
    namespaces: dict[str, int] = field(default_factory=dict)  # path -> number of the namespace
    recursive: frozenset[IPAddress] = frozenset()
    neighbours: frozenset[IPAddress] = frozenset()
    rules: Rules | None = None
    direct: dict[IPNetwork, IPAddress] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # method -> problem
    sysctls: dict[str, str] = field(default_factory=dict)
    others: set[tuple[str, str]] = field(default_factory=set)  # namespace and name of interfaces that are not ours
    asked_for_routes: int = 0
    path_mtus: dict[IPAddress, int] = field(default_factory=dict)  # narrower than the link

    def _fail(self, method: str) -> None:
        if method in self.broken:
            raise DeviceError(self.broken[method])

    def open_tun(self, ifname: str, namespace: str | None) -> FakeTun:
        """Open a fake TUN."""
        self._fail("open_tun")
        self.tuns[namespace, ifname] = FakeTun(ifname, self.inode(namespace) if namespace else None)
        return self.tuns[namespace, ifname]

    def open_sockets(self, wanted: Sockets, *, gro: bool) -> list[UnderlaySocket]:
        """Open one real socket on any port of the loopback address."""
        self._fail("open_sockets")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.bind(("127.0.0.1", 0))
        return [UnderlaySocket(sock, wanted.encap, 4, False, gro)]

    def monitor(self, namespace: str | None) -> FakeMonitor:
        """Make a monitor that the test can ring."""
        self.monitors[namespace] = FakeMonitor()
        return self.monitors[namespace]

    def open_echo(self, version: int) -> FakeEcho:
        """Make a socket whose peers the test rules."""
        self._fail("open_echo")
        self.echoes[version] = FakeEcho()
        return self.echoes[version]

    def reconcile(self, link: Link) -> tuple[str, ...] | None:
        """Take a link as it is wanted, if its TUN is alive."""
        self._fail("reconcile")
        key = (link.netns, link.ifname)
        if key not in self.tuns or not self.tuns[key].alive:
            return None
        changed = self.links.get(key) != link
        self.links[key] = link
        return ("all",) if changed else ()

    def lacks(self, link: Link) -> tuple[str, ...]:
        """Return the interface if it is dead; the rest is as it was reconciled."""
        found = self.tuns.get((link.netns, link.ifname))
        return () if found is not None and found.alive else (f"interface {link.ifname}",)

    def look_into(self, namespace: str) -> tuple[str, frozenset[str]]:
        """Return a namespace's number, and the TUNs that were opened there and not closed, and what the test says."""
        tuns = {ifname for (space, ifname), tun in self.tuns.items() if space == namespace and tun.kept is not False}
        return self.identity(namespace), frozenset(tuns | {name for space, name in self.others if space == namespace})

    def remove_left_tun(self, ifname: str, namespace: str) -> bool:
        """Remove a TUN that a daemon before left."""
        found = self.tuns.get((namespace, ifname))
        if found is None or found.kept is not True:
            return False
        found.kept = False
        return True

    def identity(self, namespace: str) -> str:
        """Return the number of the namespace at a path; ours is 0."""
        number = 0 if namespace == OWN else self.namespaces.get(namespace)
        if number is None:
            raise DeviceError(f"network namespace {namespace}: No such file or directory")
        return f"fake/{number}"

    def inode(self, namespace: str) -> tuple[int, int] | None:
        """Return the number of the namespace at a path, if any."""
        return (0, self.namespaces[namespace]) if namespace in self.namespaces else None

    def underlay(self, wish: Wish) -> Underlay:
        """Return the underlay that the test set."""
        self._fail("underlay")
        return self.underlay_now

    def leading_into(self, ifname: str, addresses: frozenset[IPAddress]) -> frozenset[IPAddress]:
        """Return the addresses that the test made recursive."""
        self.asked_for_routes += 1
        self._fail("leading_into")
        return addresses & self.recursive

    def path_mtu(self, address: IPAddress) -> int:
        """Return what the test set, or what the link carries."""
        self._fail("path_mtu")
        return min(self.path_mtus.get(address, 1 << 16), self.underlay_now.mtu_bytes)

    def route_directly(self, routes: Mapping[IPNetwork, IPAddress]) -> frozenset[IPAddress]:
        """Take the routes to the peers that the test calls neighbours."""
        self._fail("route_directly")
        self.direct = {subnet: gateway for subnet, gateway in routes.items() if gateway in self.neighbours}
        return frozenset(self.direct.values())

    def apply_rules(self, rules: Rules) -> str:
        """Take the rules."""
        self._fail("apply_rules")
        self.rules = rules
        return self.look_at_rules(rules)

    def look_at_rules(self, rules: Rules) -> str:
        """Return what is there."""
        return str(self.rules)

    def remove_rules(self, rules: Rules) -> None:
        """Have no rules."""
        self.rules = None

    def sysctl(self, path: str) -> str:
        """Return a sysctl that the test set."""
        return self.sysctls.get(path, "")

    def restore_sysctl(self, path: str, value: str) -> None:
        """Set a sysctl."""
        self.sysctls[path] = value
