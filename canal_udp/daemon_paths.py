"""The daemon asks every peer whether full-size packets arrive, and tells the node where they do not.

Structure  node.paths ─► control.path_mtu (what to ask, what the answers mean) ─► echo sockets ─► MtuLearned
Threads    the loop's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from canal_udp.actions import Event, IPAddress, MtuLearned
from canal_udp.control.bell import rung
from canal_udp.control.path_mtu import Knowledge, Path, PathMtus
from canal_udp.errors import DeviceError
from canal_udp.logs import event
from canal_udp.node import Node
from canal_udp.tunnel.host import AnyEcho, Host

LOG = logging.getLogger("canal.paths")
NEVER_S = 86400.0  # nothing to do before someone says so


class PathProber:
    """See the module's docstring."""

    def __init__(
        self,
        host: Host,
        node: Node,
        interval_s: float,
        apply: Callable[[Event], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._host, self._node, self._apply, self._clock = host, node, apply, clock
        self._mtus = PathMtus(interval_s)
        self._known: tuple[Path, ...] = ()
        self._sockets: dict[int, AnyEcho] = {}
        self._wake = asyncio.Event()

    def knowledge(self, address: IPAddress) -> Knowledge:
        """Whether the MTU towards a peer was verified."""
        return self._mtus.knowledge(address)

    def suspect(self, address: IPAddress) -> None:
        """Ask at once what a path carries: a connection sends its large packets again."""
        self._mtus.suspect(address, self._clock())
        self._wake.set()

    def notice(self) -> None:
        """Look whether the node has other paths now."""
        if self._known is not self._node.paths:
            self._wake.set()

    async def run(self) -> None:
        """Work for ever; a host without raw sockets has paths that are never verified."""
        try:
            for version in (4, 6):
                self._open(version)
            while True:
                await self._turn()
        finally:
            self._close()

    def _open(self, version: int) -> None:
        try:
            echo = self._sockets[version] = self._host.open_echo(version)
        except DeviceError as error:
            event(LOG, "warning", "paths.unverified", reason=error)
            return
        asyncio.get_running_loop().add_reader(echo.fileno(), lambda: self._hear(echo))

    def _hear(self, echo: AnyEcho) -> None:
        now = self._clock()
        for number, sender in echo.receive():
            self._mtus.answer(number, sender, now)
        self._wake.set()

    async def _turn(self) -> None:
        self._wake.clear()
        now = self._clock()
        if self._known is not self._node.paths:
            self._known = self._node.paths
            self._mtus.know((path for path in self._known if path.target.version in self._sockets), now)
        probes, found = self._mtus.step(now)
        for probe in probes:
            self._sockets[probe.target.version].send(probe.target, probe.size_bytes, probe.number)
        for one in found:
            outer = one.mtu_bytes + self._node.overhead_to(one.address)
            event(LOG, "warning", "path.black_hole", peer=one.address, carries_bytes=outer)
            await self._apply(MtuLearned(one.address, outer, told=False))
        due = self._mtus.next_at
        await rung(self._wake, NEVER_S if due is None else max(due - now, 0.001))

    def _close(self) -> None:
        for echo in self._sockets.values():
            asyncio.get_running_loop().remove_reader(echo.fileno())
            echo.close()
        self._sockets.clear()
