"""A daemon that is started, watched and ended as flanneld is.

Structure    health server ─► network config, for as long as it takes ─► backend ─► the daemon, until a signal
Place        the outer shell; what flanneld and `canal daemon` have in common is in `daemon`.
Exit status  0 after a signal and when the lease was revoked, 1 for what stops the start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import uvloop

from canal_udp.config import DaemonConfig
from canal_udp.control.network import NetworkConfig
from canal_udp.control.store import Store, open_store
from canal_udp.control.subnet_env import previous_subnets, read
from canal_udp.daemon import Daemon, serve
from canal_udp.daemon_health import PageServer, health_pages
from canal_udp.errors import CanalError, LeaseLost
from canal_udp.flannel import klog, plan
from canal_udp.flannel.flags import Options
from canal_udp.flannel.lease_only import Commands, LeaseOnly
from canal_udp.flannel.takeover import TakeoverHost, kernel_devices, kernel_mac, lease_mac
from canal_udp.identity import keep_mac, saved_mac
from canal_udp.net import format_mac
from canal_udp.tunnel.host import RealHost
from canal_udp.underlay import Underlay, Wish

LOG = logging.getLogger("canal.flanneld")
FETCH_S = 1.0
T = TypeVar("T")


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Run until a signal ends it; returns the exit status.

    Raises   CanalError for what stops the start.
    """
    _log_to_stderr(options)
    for remark in plan.remarks(options):
        LOG.warning(remark)
    config = plan.daemon_config(options, environ)
    if options.given("etcd-password"):
        os.environ["ETCDCTL_PASSWORD"] = options.text("etcd-password")
    return uvloop.run(Shell(options, config).run())


def _log_to_stderr(options: Options) -> None:
    """Set up klog's format, at the level that -v asks for."""
    subnet, subnet6 = previous_subnets(read(plan.subnet_file(options)))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(klog.Formatter(subnet or subnet6))
    level = logging.DEBUG if options.number("v") >= plan.VERBOSE else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


class Shell:
    """flanneld's life around the daemon's."""

    def __init__(self, options: Options, config: DaemonConfig) -> None:
        self._options, self._config = options, config
        self._daemon: Daemon | None = None
        self._announced: Callable[[], bool] = lambda: False
        self._ready = False
        self._health = PageServer(health_pages(self._checks, "flanneld", "is not ready yet"))

    async def run(self) -> int:
        """See `run`."""
        status = 0
        if port := self._options.number("healthz-port"):
            await self._health.start(self._options.text("healthz-ip"), port)
        try:
            text = await _unless_signalled(self._network())
            if text is not None:
                status = await self._with_backend(text, NetworkConfig.from_json(text))
        except LeaseLost:
            LOG.info("Lease has been revoked. Shutting down daemon.")
        finally:
            await self._health.stop()
        LOG.info("Exiting cleanly..." if status == 0 else "Exiting...")
        return status

    async def _with_backend(self, text: str, network: NetworkConfig) -> int:
        LOG.info("Found network config - Backend type: %s", network.encap)
        config = plan.with_backend(self._config, network)
        wish = Wish(config.iface, config.iface_regex, config.iface_can_reach or "", config.public_ip, config.public_ip6)
        underlay = RealHost().underlay(wish)  # nothing to send through stops the start
        if network.encap in plan.LEASE_ONLY:
            backend = LeaseOnly(config, network, underlay, Commands.read(text))
            self._announced = lambda: backend.announced
            await backend.run()
            return 0
        plan.check_underlay(network, underlay)
        names = kernel_devices(network.vni) if network.encap == "vxlan" else ()
        if names:
            await self._keep_mac(config, kernel_mac(names), underlay)
        status = await serve(config, self._made, TakeoverHost(names))
        if self._daemon is not None and isinstance(self._daemon.failure, LeaseLost):
            raise self._daemon.failure
        return status

    async def _keep_mac(self, config: DaemonConfig, mac: bytes | None, underlay: Underlay) -> None:
        """Have the MAC that peers know, so that none of them sees a change."""
        if mac is None and saved_mac(config.state_dir) is None:
            store = open_store(config.store)
            try:
                mac = lease_mac((await store.list_leases()).leases, underlay.public_ip or underlay.public_ip6)
            finally:
                await store.close()
        if mac is not None and mac != saved_mac(config.state_dir):
            keep_mac(config.state_dir, mac)
            LOG.info("Taking over the VTEP MAC %s", format_mac(mac))

    def _made(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._announced = lambda: daemon.node.announced

    def _checks(self) -> Iterator[tuple[str, str]]:
        """As flanneld: ready when subnet.env is written, and from then on."""
        self._ready = self._ready or self._announced()
        yield "subnet.env", "" if self._ready else "not written"

    async def _network(self) -> str:
        store = open_store(self._config.store)
        try:
            return await _fetched(store)
        finally:
            await store.close()


async def _fetched(store: Store) -> str:
    """The network config's text, asked for until it is there and right; each new problem is told once."""
    said = ""
    while True:
        try:
            text, _ = await store.get_network()
            if text is not None:
                NetworkConfig.from_json(text)
                return text
            problem = "flannel config not found in etcd store. Did you create your config using etcdv3 API?"
        except CanalError as error:
            problem = str(error)
        if problem != said:
            LOG.error("Couldn't fetch network config: %s", problem)
        said = problem
        await asyncio.sleep(FETCH_S)


async def _unless_signalled(work: Coroutine[Any, Any, T]) -> T | None:
    """Return what work gives, or None when a signal comes first."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    task, waiting = asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for one in (task, waiting):
            one.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
