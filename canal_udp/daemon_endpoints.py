"""Attaching and detaching, for whoever asks: `canal attach` or a container runtime.

Invariants   One at a time: what was looked at still holds when it is acted upon. An attach that fails leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from canal_udp.actions import Attach, Detach
from canal_udp.cni.ipam import Span
from canal_udp.endpoints import Endpoint
from canal_udp.errors import DeviceError, RequestError
from canal_udp.logs import event

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon

LOG = logging.getLogger("canal.endpoints")


class Endpoints:
    """The endpoints of a daemon; `attach` and `detach` are called by who holds `alone`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.alone = asyncio.Lock()

    def all(self) -> list[Endpoint]:
        """Return every endpoint."""
        return list(self._daemon.node.endpoints.values())

    async def attach(self, wanted: Endpoint, within: Sequence[Span] = ()) -> Endpoint:
        """Connect an endpoint; `wanted.ips` are those that it asks for, the answer has those that it got.

        Raises     RequestError, AddressError.
        """
        node = self._daemon.node
        for other in self.all():
            if other.name != wanted.name and other.netns_id == wanted.netns_id:
                raise RequestError(f"{other.netns} is attached already, as {other.name}")
        before = node.endpoints.get(wanted.name)
        if before is not None and (before.netns_id, before.ifname) != (wanted.netns_id, wanted.ifname):
            await self.detach(before)
            before = None
        ipam = self._daemon.ipam
        if ipam is None:
            raise RequestError("this node has no subnet yet: " + ("; ".join(self._daemon.reasons()) or "starting"))
        given = await self._daemon.hands.blocking(lambda: ipam.allocate(wanted.name, wanted.ips, within))
        await self._daemon.apply(Attach(replace(wanted, ips=given)))
        problem = node.problem_of(wanted.name)
        if problem:
            if before is None:
                await self._daemon.apply(Detach(wanted.name))
            raise RequestError(f"{wanted.name}: {problem}")
        await self._daemon.policy.settled()  # its first packet meets its policies
        return node.endpoints[wanted.name]

    async def detach(self, endpoint: Endpoint) -> None:
        """Disconnect an endpoint and free its addresses, also one that this daemon has not taken over yet."""
        if self._daemon.node.link_of(endpoint.name) is None:
            await self._daemon.hands.blocking(lambda: self._remove_left(endpoint))
        await self._daemon.apply(Detach(endpoint.name))

    def _remove_left(self, endpoint: Endpoint) -> None:
        host = self._daemon.host
        try:
            if host.identity(endpoint.netns) == endpoint.netns_id:
                host.remove_left_tun(endpoint.ifname, endpoint.netns)
        except (DeviceError, OSError) as error:  # the namespace is gone, and the device with it
            event(LOG, "debug", "namespace.gone", netns=endpoint.netns, reason=error)
