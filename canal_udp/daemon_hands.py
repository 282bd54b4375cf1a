"""The daemon's hands: makes the node's goals true on this host and in the data plane, and looks whether they still are.

Structure    goal ─► Host (TUN, sockets, links; blocking, one thread), Forwarder (ports, tables; in the loop) ─► events
             monitors ─► `inspect` ─► what someone else changed, repaired or reported; the rest in rounds, slowly
Invariants   A port is removed before its descriptor is closed. Doing a goal again is harmless; what it changes is
             announced like everybody's changes, looked at once more and found right.
Threads      the loop's; `Host` is only used inside `_blocking`, one call at a time; TUNs are closed many at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from canal_udp.actions import (
    HOST,
    Device,
    DeviceGone,
    Direct,
    DirectSeen,
    Done,
    Event,
    Failed,
    File,
    Goal,
    IPAddress,
    Link,
    MtuSeen,
    NamespaceGone,
    Published,
    RoutesSeen,
    Sockets,
    UnderlaySeen,
)
from canal_udp.control.subnet_env import replace_file
from canal_udp.encap.forwarding import Forwarding
from canal_udp.errors import CanalError
from canal_udp.logs import event
from canal_udp.netfilter import Rules
from canal_udp.policy.compile import Engine
from canal_udp.policy.compiled import Compiled
from canal_udp.rounds import Rounds
from canal_udp.tunnel.host import AnyMonitor, AnyTun, Host
from canal_udp.tunnel.sockets import UnderlaySocket
from canal_udp.underlay import Wish

LOG = logging.getLogger("canal.host")
CLOSING = 16  # devices at once: the kernel lets each wait for all processors to have forgotten it
ROUND_S = 30.0  # every link is looked at that often: the kernel does not announce most sysctls
LOOKS_PER_S = 4.0  # at most: a look costs about a millisecond, and there may be hundreds of pods

_T = TypeVar("_T")


class Forwarder(Protocol):
    """The part of the data plane that is used here."""

    def add_pod(self, name: str, fd: int, mtu_bytes: int, id: int) -> int: ...
    def add_host(self, fd: int, mtu_bytes: int) -> int: ...
    def add_underlay(self, fd: int, encap: str, family: int, tx_only: bool = False) -> int: ...
    def remove_port(self, index: int) -> None: ...
    def publish(self, forwarding: Forwarding, policy: Compiled | None = None) -> None: ...
    def reclaim(self) -> int: ...


@dataclass(slots=True)
class _Open:
    """A device of ours, its port and what tells us of changes around it."""

    device: Device
    tun: AnyTun
    port: int | None
    monitor: AnyMonitor | None


@dataclass(slots=True)
class _Written:
    """Rules, what the kernel listed when they had been written, and when to look again."""

    rules: Rules
    seen: str
    due: float = 0.0
    listed: str = ""  # after the last repair


class Hands:
    """See the module's docstring."""

    def __init__(self, host: Host, forwarder: Forwarder, *, gro: bool, wake: Callable[[], None], now: float) -> None:
        self._host, self._forwarder, self._gro, self._wake = host, forwarder, gro, wake
        self._thread = ThreadPoolExecutor(1, "canal-host")
        self._closing = ThreadPoolExecutor(CLOSING, "canal-close")
        self._sockets: dict[str, tuple[Sockets, list[tuple[UnderlaySocket, int]]]] = {}
        self._devices: dict[str, _Open] = {}
        self._links: dict[str, Link] = {}
        self._files: dict[str, File] = {}
        self._rules: _Written | None = None
        self._direct = Direct(())
        self._gateways: frozenset[IPAddress] = frozenset()
        self._changed: set[str] = set()  # names of devices whose namespace announced a change
        self._rounds = Rounds(ROUND_S, now, LOOKS_PER_S)
        self._routes_known: dict[IPAddress, bool] = {}  # does it lead into our device?
        self._strict = False  # rp_filter, as last seen
        self._generation = 0
        self._closed = Engine().compile({})  # no pod gets traffic before its policies are known
        self._monitor = host.monitor(None)
        self._watch(HOST, self._monitor)

    async def blocking(self, work: Callable[[], _T]) -> _T:
        """Do what may block in the host thread, after everything that was given to it before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # goals

    async def do(self, goal: Goal) -> list[Event]:
        """Make a goal true; returns what came of it."""
        try:
            match goal:
                case Sockets():
                    await self._do_sockets(goal)
                case Device():
                    await self._do_device(goal)
                case Link():
                    return await self._do_link(goal)
                case Direct():
                    return await self._do_direct(goal)
                case Rules():
                    await self._do_rules(goal)
                case Published():
                    return await self._do_published(goal)
                case File():
                    await self.blocking(lambda: _write(goal))
                    self._files[goal.key] = goal
        except (CanalError, OSError) as error:
            return [Failed(goal, str(error))]
        return [Done(goal)]

    async def undo(self, goal: Goal) -> None:
        """Take back what a goal made; what is gone already is no error."""
        try:
            match goal:
                case Sockets():
                    self._close_sockets(goal.key)
                case Device():
                    await self._close_device(goal.name, keep=False)
                case Link():
                    self._links.pop(goal.name, None)
                case Direct():
                    self._direct = Direct(())
                    await self.blocking(lambda: self._host.route_directly({}))
                case Rules():
                    self._rules = None
                    await self.blocking(lambda: self._host.remove_rules(goal))
                case File():
                    self._files.pop(goal.key, None)
                    await self.blocking(lambda: goal.path.unlink(missing_ok=True))
        except (CanalError, OSError) as error:
            event(LOG, "warning", "goal.undo_failed", goal=goal.key, reason=error)

    async def _do_sockets(self, goal: Sockets) -> None:
        self._close_sockets(goal.key)
        opened = await self.blocking(lambda: self._host.open_sockets(goal, gro=self._gro))
        entries: list[tuple[UnderlaySocket, int]] = []
        self._sockets[goal.key] = goal, entries
        for sock in opened:
            port = self._forwarder.add_underlay(sock.fd, sock.encap, sock.family, sock.tx_only)
            entries.append((sock, port))

    def _close_sockets(self, key: str) -> None:
        _, entries = self._sockets.pop(key, (None, []))
        for sock, port in entries:
            self._forwarder.remove_port(port)
            sock.close()

    async def _do_device(self, goal: Device) -> None:
        found = self._devices.get(goal.name)
        if found is not None and not self._same(found, goal):
            await self._close_device(goal.name, keep=False)
            found = None
        if found is not None:
            self._remove_port(found)
            found.port, found.device = self._add_port(goal, found.tun), goal
            return
        tun, monitor = await self.blocking(lambda: self._open(goal))
        try:
            self._devices[goal.name] = _Open(goal, tun, self._add_port(goal, tun), monitor)
        except (CanalError, OSError):
            await self.blocking(lambda: tun.close(keep=True))
            if monitor is not None:
                monitor.close()
            raise
        if monitor is not None:
            self._watch(goal.name, monitor)

    def _open(self, goal: Device) -> tuple[AnyTun, AnyMonitor | None]:
        tun = self._host.open_tun(goal.ifname, goal.netns)
        try:
            return tun, self._host.monitor(goal.netns) if goal.netns else None
        except (CanalError, OSError):
            tun.close(keep=True)
            raise

    @staticmethod
    def _same(found: _Open, goal: Device) -> bool:
        return (found.device.ifname, found.device.netns) == (goal.ifname, goal.netns) and found.tun.alive

    def _add_port(self, goal: Device, tun: AnyTun) -> int:
        if goal.name == HOST:
            return self._forwarder.add_host(tun.fd, goal.mtu_bytes)
        return self._forwarder.add_pod(goal.name, tun.fd, goal.mtu_bytes, goal.id)

    async def _close_device(self, name: str, *, keep: bool) -> None:
        found = self._devices.pop(name, None)
        if found is None:
            return
        if found.monitor is not None:
            asyncio.get_running_loop().remove_reader(found.monitor.fileno())
            found.monitor.close()
        self._remove_port(found)
        close = partial(found.tun.close, keep=keep)
        await asyncio.get_running_loop().run_in_executor(self._closing, close)

    def _remove_port(self, found: _Open) -> None:
        port, found.port = found.port, None
        if port is not None:
            self._forwarder.remove_port(port)

    async def _do_link(self, goal: Link) -> list[Event]:
        changes = await self.blocking(lambda: self._host.reconcile(goal))
        if changes is None:
            return [Failed(goal, f"{goal.ifname} is gone"), DeviceGone(goal.name)]
        self._links[goal.name] = goal
        if changes:
            event(LOG, "info", "link.changed", device=goal.name or "host", changes=",".join(changes))
        return [Done(goal)]

    async def _do_direct(self, goal: Direct) -> list[Event]:
        self._gateways = await self.blocking(lambda: self._host.route_directly(dict(goal.routes)))
        self._direct = goal
        return [Done(goal), DirectSeen(self._gateways)]

    async def _do_rules(self, goal: Rules) -> None:
        seen = await self.blocking(lambda: self._host.apply_rules(goal))
        self._rules = None if goal.none else _Written(goal, seen)

    async def _do_published(self, goal: Published) -> list[Event]:
        recursive = await self._recursive(vtep.addr for vtep in goal.forwarding.vteps)
        if recursive:
            bad = frozenset(address for address, leads in self._routes_known.items() if leads)
            return [Failed(goal, "a peer's route leads into our own device"), RoutesSeen(bad)]
        self._generation += 1
        policy = goal.policy.without(goal.closed) if isinstance(goal.policy, Compiled) else self._closed
        self._forwarder.publish(replace(goal.forwarding, generation=self._generation), policy)
        return [Done(goal)]

    def of_port(self, index: int) -> Goal | None:
        """Return the goal that a port of the data plane belongs to."""
        for one in self._devices.values():
            if one.port == index:
                return one.device
        return next((goal for goal, entries in self._sockets.values() if index in (port for _, port in entries)), None)

    async def _recursive(self, addresses: Iterable[IPAddress]) -> frozenset[IPAddress]:
        """Ask the kernel about those addresses that it was not asked about since routes changed."""
        wanted = frozenset(addresses)
        unknown = wanted - self._routes_known.keys()
        if unknown and HOST in self._devices:
            ifname = self._devices[HOST].device.ifname
            leading = await self.blocking(lambda: self._host.leading_into(ifname, unknown))
            self._routes_known |= {address: address in leading for address in unknown}
        return frozenset(address for address in wanted if self._routes_known.get(address))

    # looking after what was done

    def _watch(self, name: str, monitor: AnyMonitor) -> None:
        def rang() -> None:
            monitor.drain()
            self._changed.add(name)
            self._wake()

        asyncio.get_running_loop().add_reader(monitor.fileno(), rang)

    async def inspect(
        self, wish: Wish, peers: Iterable[IPAddress], told: Iterable[IPAddress], now: float
    ) -> list[Event]:
        """Repair what someone else changed; returns what only the node can decide about.

        Arguments  told: peers of whose path the kernel told us something.
        """
        changed, self._changed = self._changed, set()
        changed.update(self._rounds.due(self._links, now))
        events = self._missing(changed)
        gone = {one.name for one in events if isinstance(one, DeviceGone | NamespaceGone)}
        for name in changed - gone:
            if name in self._links:
                events += await self._repair(self._links[name])
        if HOST in changed:
            events += await self._look_around(wish, peers)
            events += await self._look_for_neighbours()
            events += await self._path_mtus(told)
            self._warn_of_rp_filter()
        events += await self._look_at_rules(now)
        for file in self._files.values():
            if not file.path.exists():
                events += await self.do(file)
        self._forwarder.reclaim()
        return events

    def _missing(self, changed: Set[str]) -> list[Event]:
        """Namespaces go without a word, devices do not."""
        found: list[Event] = []
        for name, one in self._devices.items():
            if one.device.netns and self._host.inode(one.device.netns) != one.tun.inode:
                found.append(NamespaceGone(name))
            elif name in changed and not one.tun.alive:
                found.append(DeviceGone(name))
        return found

    async def _repair(self, link: Link) -> list[Event]:
        try:
            changes = await self.blocking(lambda: self._host.reconcile(link))
        except (CanalError, OSError) as error:
            return [Failed(link, str(error))]
        if changes is None:
            return [DeviceGone(link.name)]
        if changes:
            event(LOG, "warning", "link.repaired", device=link.name or "host", changes=",".join(changes))
        return []

    async def _look_around(self, wish: Wish, peers: Iterable[IPAddress]) -> list[Event]:
        """Routes or addresses of the host changed: who leads into our device now, and what do we send through?"""
        self._routes_known.clear()
        events: list[Event] = [await self.underlay(wish)]
        try:
            events.append(RoutesSeen(await self._recursive(peers)))
        except (CanalError, OSError) as error:
            event(LOG, "warning", "routes.unknown", reason=error)
            self._changed.add(HOST)  # ask again in the next turn
        return events

    async def _path_mtus(self, addresses: Iterable[IPAddress]) -> list[Event]:
        """What the kernel told of a path ends with what made it so: it is asked again when a link or route changed."""
        events: list[Event] = []
        for address in addresses:
            try:
                events.append(MtuSeen(address, await self.blocking(lambda at=address: self._host.path_mtu(at))))  # type: ignore[misc]
            except (CanalError, OSError) as error:  # no route now: whatever brings one announces it
                event(LOG, "debug", "path.unknown", peer=address, reason=error)
        return events

    async def _look_for_neighbours(self) -> list[Event]:
        """Repair the routes to peers on our own link; says when they are others now."""
        if not self._direct.routes:
            return []
        before, goal = self._gateways, self._direct
        try:
            await self._do_direct(goal)
        except (CanalError, OSError) as error:
            return [Failed(goal, str(error))]
        return [DirectSeen(self._gateways)] if self._gateways != before else []

    async def _look_at_rules(self, now: float) -> list[Event]:
        """Put the rules back when someone else changed them; nobody announces that."""
        written = self._rules
        if written is None or now < written.due:
            return []
        written.due = now + written.rules.resync_s
        try:
            if await self.blocking(lambda: self._host.look_at_rules(written.rules)) != written.seen:
                listed = await self.blocking(lambda: self._host.apply_rules(written.rules))
                if listed == written.listed:  # twice the same: the listing is another now, the rules are not
                    written.seen = listed
                written.listed = listed  # once may be what someone broke while it was written
                event(LOG, "warning", "rules.repaired", style=written.rules.style)
        except (CanalError, OSError) as error:
            return [Failed(written.rules, str(error))]
        return []

    def _warn_of_rp_filter(self) -> None:
        """Say when the kernel drops what comes in by another way than it would send out; it is not ours to set."""
        ifname = self._devices[HOST].device.ifname if HOST in self._devices else "all"
        paths = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", ifname)]
        strict = [path for path in paths if self._host.sysctl(path) == "1"]
        if strict and not self._strict:
            event(LOG, "warning", "rp_filter.strict", sysctl=strict[0], hint="2 or 0 lets replies take another way")
        self._strict = bool(strict)

    async def underlay(self, wish: Wish) -> UnderlaySeen:
        """Choose the underlay anew."""
        try:
            return UnderlaySeen(await self.blocking(lambda: self._host.underlay(wish)))
        except (CanalError, OSError) as error:
            return UnderlaySeen(None, str(error))

    async def close(self) -> None:
        """Let go of everything and leave the devices where they are. The worker has been stopped."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._monitor.fileno())
        self._monitor.close()
        for name in list(self._devices):
            await self._close_device(name, keep=True)
        for key in list(self._sockets):
            self._close_sockets(key)
        self._thread.shutdown(wait=False)
        self._closing.shutdown(wait=False)


def _write(file: File) -> None:
    file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    content = file.text.encode("utf-8")
    try:
        with file.path.open("rb") as old:
            same = old.read(len(content) + 1) == content and os.fstat(old.fileno()).st_mode & 0o777 == file.mode
    except FileNotFoundError:
        same = False
    if not same:
        # pods and subnet.env do not outlive a reboot, so neither need these files
        replace_file(file.path, content, file.mode, durable=False)
