"""Attaching and detaching, for whoever asks: `canal attach` or a container runtime.

Structure    Hundreds may come at once: what they have in common (files, tables) is done once for all that wait
             (`Daemon.apply`, `_grant_all`); only those about the same name, namespace or container wait (`about`).
Invariants   What was looked at still holds when it is acted upon. An attach that fails leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from canal_udp.actions import Attach, Detach
from canal_udp.cni.ipam import Claim, Ipam, Span
from canal_udp.endpoints import Endpoint
from canal_udp.errors import AddressError, DeviceError, RequestError
from canal_udp.logs import event
from canal_udp.net import Address

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon

LOG = logging.getLogger("canal.endpoints")


class _Claiming:
    """A claim, and what came of it."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.given: tuple[Address, ...] | AddressError = AddressError("nobody answered")


class Endpoints:
    """The endpoints of a daemon; `attach` and `detach` are called by who is alone about them."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._busy: dict[str, asyncio.Event] = {}
        self._claims: deque[_Claiming] = deque()

    def all(self) -> list[Endpoint]:
        """Return every endpoint."""
        return list(self._daemon.node.endpoints.values())

    @asynccontextmanager
    async def about(self, *keys: str) -> AsyncIterator[None]:
        """Be alone about names, namespaces, containers."""
        while blocker := next((self._busy[key] for key in keys if key in self._busy), None):
            await blocker.wait()
        mine = asyncio.Event()
        self._busy |= dict.fromkeys(keys, mine)
        try:
            yield
        finally:
            for key in set(keys):
                del self._busy[key]
            mine.set()

    async def attach(self, wanted: Endpoint, within: Sequence[Span] = ()) -> Endpoint:
        """Connect an endpoint; `wanted.ips` are those that it asks for, the answer has those that it got.

        Caller     is alone about its name and its namespace's identity.
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
        given = await self._addresses(Claim(wanted.name, wanted.ips, tuple(within)))
        await self._daemon.apply(Attach(replace(wanted, ips=given)))
        problem = node.problem_of(wanted.name)
        if problem:
            if before is None:
                await self._daemon.apply(Detach(wanted.name))
            raise RequestError(f"{wanted.name}: {problem}")
        await self._daemon.policy.settled()  # its first packet meets its policies
        return node.endpoints[wanted.name]

    async def _addresses(self, claim: Claim) -> tuple[Address, ...]:
        ipam = self._daemon.ipam
        if ipam is None:
            raise RequestError("this node has no subnet yet: " + ("; ".join(self._daemon.reasons()) or "starting"))
        mine = _Claiming(claim)
        self._claims.append(mine)
        await self._daemon.hands.blocking(lambda: self._grant_all(ipam))
        if isinstance(mine.given, AddressError):
            raise mine.given
        return mine.given

    def _grant_all(self, ipam: Ipam) -> None:
        """Grant every claim that waits; those who come after find theirs granted."""
        waiting = []
        while self._claims:
            waiting.append(self._claims.popleft())
        try:
            answers = ipam.allocate_all(one.claim for one in waiting)
        except AddressError as error:
            answers = [error for _ in waiting]
        for one, given in zip(waiting, answers, strict=True):
            one.given = given

    async def detach(self, endpoint: Endpoint) -> None:
        """Disconnect an endpoint and free its addresses, also one that this daemon has not taken over yet.

        Caller     is alone about its name.
        """
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
