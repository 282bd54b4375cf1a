"""The daemon's side of the store: network config, lease, watch; what it learns goes to the node as events.

Structure    run ─► session: network ─► lease (acquire, or check that it is ours still) ─► list ─┬─ watch ─► LeasesSeen
                                                                                                 └─ renew ─► LeaseHeld
Invariants   The daemon never ends because the store is away: the session is begun again after BACKOFF_S, and everything
             that worked goes on. A daemon that starts meanwhile goes by what an earlier one saved (daemon_saved.py).
             A session goes on where the last one broke; it writes and lists nothing that it need not, since all nodes
             do it at once when the store comes back. After a pause, and when it comes from a file, the lease is checked
             before anything is announced (control/tenure.py).
             A lease that is another's now is never written over. Pods go on talking to each other on this node; it
             renumbers, or the daemon ends: --on-lease-lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from canal_udp.actions import Event, LeaseHeld, LeasesSeen, NetworkKnown, StoreSeen
from canal_udp.config import DaemonConfig
from canal_udp.control import tenure
from canal_udp.control.acquire import Claim, Previous, acquire, keep
from canal_udp.control.bell import rung
from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.saved_leases import SavedLeases
from canal_udp.control.store import LeaseSnapshot, Store
from canal_udp.control.tenure import Instant, Tenure
from canal_udp.daemon_saved import LeasesFile
from canal_udp.errors import CanalError, ConfigError, LeaseLost, StoreConflict
from canal_udp.logs import event

LOG = logging.getLogger("canal.lease")
BACKOFF_S = (0.5, 1.0, 2.0, 4.0)
UNDERLAY_S = 1.0  # until it is looked for again
LOOK_S = 3.0  # at the clocks: a pause is noticed by then

Apply = Callable[[Event], Awaitable[None]]


class Keeper:
    """Gets and keeps this node's lease, and tells the node about everybody's."""

    def __init__(
        self, store: Store, config: DaemonConfig, previous: Previous, claim: Callable[[], Claim | None], apply: Apply
    ) -> None:
        self._store, self._config, self._previous = store, config, previous
        self._claim, self._apply = claim, apply
        self._rng = random.Random()
        self._tenure: Tenure | None = None
        self._claimed: Claim | None = None
        self._network_seen: NetworkConfig | None = None
        self._snapshot: LeaseSnapshot | None = None  # where a watch goes on
        self._touched = False  # our lease may not be as we left it: the watch says so, or it comes from a file
        self._as_of = ""  # what people are told while all that is known comes from a file
        self._lost = ""  # why it is not ours any more
        self._wake = asyncio.Event()
        self._file = LeasesFile(config.state_dir, config.store, self._to_save)

    async def run(self) -> None:
        """Work for ever.

        Raises   LeaseLost with --on-lease-lost stop.
        """
        await first_failure(self._work(), self._file.run())

    async def _work(self) -> None:
        failures = 0
        while True:
            began = _boottime()
            try:
                await self._session()
            except (CanalError, OSError) as error:
                if isinstance(error, LeaseLost):
                    raise
                problem = str(error) or type(error).__name__
                await self._restore()
                await self._apply(StoreSeen(problem + self._as_of))
            failures = 0 if _boottime() - began > 10 * BACKOFF_S[-1] else failures + 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] * self._rng.uniform(0.7, 1.0))

    def notice(self) -> None:
        """Look whether the node claims something else now."""
        if self._claimed is not None and self._claim() not in {None, self._claimed}:
            self._wake.set()

    async def give_back(self) -> None:
        """Delete the lease: this node is leaving."""
        self._file.remove()
        if self._tenure is not None:
            await self._store.delete_lease(self._tenure.lease, self._tenure.lease.revision)

    def close(self) -> None:
        """Leave what is known to the next daemon."""
        self._file.close()

    async def _session(self) -> None:
        network = self._network_seen = await self._network()
        await self._apply(NetworkKnown(network))
        claim = await self._some_claim()
        if self._must_check(claim, None):
            await self._hold(network, claim)
        if self._snapshot is None:
            self._snapshot = await self._store.list_leases()
        await self._apply(LeasesSeen(self._snapshot))
        self._as_of = ""
        await self._apply(StoreSeen())
        self._file.notice()
        await first_failure(self._watch(self._snapshot), self._renew(network))

    def _must_check(self, claim: Claim, gap: tenure.Gap | None) -> bool:
        """Is there anything to write to the store, or to ask it about our lease?"""
        if self._tenure is None or self._touched or claim != self._claimed:
            return True
        return tenure.duty(self._tenure, self._config.lease_renew_margin_s, _boottime(), gap) != "hold"

    async def _network(self) -> NetworkConfig:
        text, _ = await self._store.get_network()
        if text is None:
            if self._config.network is None and self._config.network6 is None:
                raise ConfigError("the store has no network config: canal network set, or canal daemon --network CIDR")
            wanted = NetworkConfig.make(
                self._config.network,
                self._config.network6,
                self._config.encap,
                vni=self._config.vni,
                port=self._config.port,
            )
            try:
                await self._store.put_network(wanted.to_json(), 0)
            except StoreConflict:  # another daemon started at the same moment
                return await self._network()
            return wanted
        return NetworkConfig.from_json(text)

    async def _some_claim(self) -> Claim:
        while True:  # the underlay may come later than we do
            claim = self._claim()
            if claim is not None:
                return claim
            await asyncio.sleep(UNDERLAY_S)

    # what an earlier daemon knew

    def _to_save(self) -> SavedLeases | None:
        if self._network_seen is None or self._tenure is None or self._snapshot is None:
            return None
        return SavedLeases(self._network_seen, self._tenure.lease, self._snapshot.leases, time.time())

    async def _restore(self) -> None:
        """Forward by what is in the file, if nothing better was ever known."""
        saved = self._file.load() if self._tenure is None else None
        if saved is None:
            return
        ttl_s = None if saved.own.expires_at is None else float(self._config.lease_ttl_s)
        self._tenure, self._touched = Tenure(saved.own, ttl_s, _boottime()), True
        await self._apply(NetworkKnown(saved.network))
        await self._apply(LeaseHeld(saved.own))
        await self._apply(LeasesSeen(LeaseSnapshot(0, saved.leases)))
        self._as_of = f" (forwarding goes on as of {time.strftime('%F %T', time.localtime(saved.saved_at))})"

    # the lease

    async def _hold(self, network: NetworkConfig, claim: Claim) -> None:
        """Have a lease that carries our claim: the one held if it still is ours, else another."""
        sent, self._touched = _boottime(), False
        ttl_s = float(self._config.lease_ttl_s)
        try:
            lease = await self._kept(claim, ttl_s)
            if lease is None:
                lease = await acquire(self._store, claim, network, self._before(), ttl_s, self._rng)
        except CanalError:
            self._touched = True  # nobody knows: look again
            raise
        self._tenure = Tenure(lease, None if lease.expires_at is None else ttl_s, sent)
        self._claimed, self._lost = claim, ""
        await self._apply(LeaseHeld(lease))
        await self._apply(StoreSeen())
        self._file.notice()

    async def _kept(self, claim: Claim, ttl_s: float) -> Lease | None:
        """The lease that we had, renewed; None if we have none and shall have another."""
        if self._tenure is None:
            return None
        try:
            return await keep(self._store, claim, self._tenure.lease, ttl_s)
        except LeaseLost as error:
            await self._lose(str(error))
            if self._config.on_lease_lost == "stop":
                raise
            return None

    async def _lose(self, reason: str) -> None:
        """Say it loudly, once."""
        assert self._tenure is not None
        if reason != self._lost:
            then = self._config.on_lease_lost
            event(LOG, "error", "lease.lost", subnet=self._tenure.lease.key, reason=reason, then=then)
        self._lost = reason
        await self._apply(StoreSeen(reason))

    def _before(self) -> Previous:
        if self._tenure is None:
            return self._previous
        return Previous(self._tenure.lease.subnet, self._tenure.lease.subnet6)

    async def _renew(self, network: NetworkConfig) -> None:
        before = Instant(_boottime(), time.time())
        while True:
            limit_s = self._patience(before.boot_s)
            woken = await rung(self._wake, limit_s)
            self._wake.clear()
            now = Instant(_boottime(), time.time())
            gap = None if woken else tenure.clock_gap(before, now, limit_s)
            before = now
            claim = self._claim() or self._claimed
            assert claim is not None
            if self._must_check(claim, gap):
                await self._hold(network, claim)

    def _patience(self, now_s: float) -> float:
        """How long nothing needs to be done, unless someone says so."""
        assert self._tenure is not None
        due_s = tenure.renewal_at(self._tenure, self._config.lease_renew_margin_s)
        return LOOK_S if due_s is None else min(max(due_s - now_s, 0.0), LOOK_S)

    async def _watch(self, snapshot: LeaseSnapshot) -> None:
        async for update in self._store.watch_leases(snapshot.revision):
            self._snapshot = snapshot = snapshot.apply(update)
            await self._apply(LeasesSeen(snapshot))
            self._file.notice()
            if self._tenure is not None and not _stands(self._tenure.lease, snapshot):
                self._touched = True
                self._wake.set()


def _stands(own: Lease, snapshot: LeaseSnapshot) -> bool:
    """Is our lease there as we wrote it, or newer (our own renewal, seen before its answer)?"""
    found = next((lease for lease in snapshot.leases if lease.key == own.key), None)
    return found is not None and (found.revision <= own.revision or found.public_ips == own.public_ips)


def _boottime() -> float:
    """Seconds that nobody sets and that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def first_failure(*works: Awaitable[None]) -> None:
    """Run all until one ends; raise what ended it, with the others cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
