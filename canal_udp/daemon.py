"""The daemon: where sockets, timers and signals meet the node's decisions. It decides nothing itself.

Structure    signals, timers, monitors, store, requests ─► event ─► Node.handle ─► actions ─► Hands ─► events ─► ...
Invariants   Events are handled one after the other, each with everything that follows from it (`apply` holds a lock).
             A stop leaves pods connected: devices and addresses stay, the next daemon takes them over; not so --clean.
Threads      the loop's (control), one for the host's blocking calls, one for the store, one worker without the GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import uvloop

from canal_udp import daemon_cni
from canal_udp.actions import (
    Action,
    Detach,
    Do,
    Event,
    Failed,
    Log,
    MtuLearned,
    NamespaceGone,
    Release,
    Tick,
    Undo,
    together,
)
from canal_udp.cni.ipam import Ipam
from canal_udp.config import DaemonConfig, parse_listen
from canal_udp.control.acquire import Claim, Previous
from canal_udp.control.bell import rung
from canal_udp.control.store import open_store
from canal_udp.control.subnet_env import previous_subnets, read, sweep
from canal_udp.daemon_api import Server, Service
from canal_udp.daemon_endpoints import Endpoints
from canal_udp.daemon_hands import Hands
from canal_udp.daemon_health import Answer, PageServer, health_pages, sd_notify
from canal_udp.daemon_metrics import metrics
from canal_udp.daemon_objects import ObjectKeeper
from canal_udp.daemon_paths import PathProber
from canal_udp.daemon_policy import PolicyKeeper
from canal_udp.daemon_store import Keeper
from canal_udp.dataplane import Dataplane, DataplaneConfig
from canal_udp.endpoints import FILE_NAME, Endpoint, load
from canal_udp.errors import CanalError, ConfigError, DeviceError
from canal_udp.identity import FILE_NAME as IDENTITY_NAME
from canal_udp.identity import own_mac
from canal_udp.logs import event, setup
from canal_udp.metrics import KIND, exposition
from canal_udp.node import Node
from canal_udp.policy.cluster import Changes
from canal_udp.tunnel import selftest
from canal_udp.tunnel.host import Host, RealHost
from canal_udp.tunnel.selftest import Offloads
from canal_udp.underlay import Wish

LOG = logging.getLogger("canal.daemon")
LOCK_NAME = "daemon.lock"  # held while the daemon runs; has its process id
TICK_S = 1.0
DEBOUNCE_S = 0.05  # a burst of netlink announcements is one look ...
REST = 4  # ... and a look is followed by a pause of so many times its length: announcements that do not end
REST_MAX_S = 0.5  # take a fifth of a processor at most
STOP_S = 2.0
CHECKS = (
    "addresses",
    "endpoints",
    "goals",
    "lease",
    "mtu",
    "network",
    "peers",
    "store",
    "tables",
    "underlay",
    "worker",
)
_IP_FORWARD = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def run(config: DaemonConfig) -> int:
    """Run the daemon until a signal ends it; returns the exit status."""
    setup(config.log_level)
    return uvloop.run(serve(config))


async def serve(config: DaemonConfig, made: Callable[[Daemon], None] | None = None, host: Host | None = None) -> int:
    """Be the daemon until a signal ends it; `made` gets it before it starts."""
    with _sole_daemon(config.run_dir):
        return await _serve(config, made, host or RealHost())


async def _serve(config: DaemonConfig, made: Callable[[Daemon], None] | None, host: Host) -> int:
    offloads = selftest.run()
    event(LOG, "info", "offload.tested", mode=offloads.mode, reason=offloads.reason)
    with Dataplane(dataplane_config(config, offloads)) as dataplane:
        daemon = Daemon(config, host, dataplane, offloads)
        if made is not None:
            made(daemon)
        await daemon.start()
        status = await daemon.until_stopped()
        await daemon.stop()
    return status


class Daemon:
    """One node, running."""

    def __init__(self, config: DaemonConfig, host: Host, dataplane: Dataplane, offloads: Offloads) -> None:
        self.config, self.dataplane, self.offloads = config, dataplane, offloads
        self.host = host
        self.node = Node(config, own_mac(config.state_dir), _saved_endpoints(config.state_dir))
        self.hands = Hands(host, dataplane, gro=offloads.udp_gro, wake=self._wake, now=now())
        self.ipam: Ipam | None = None
        self._pool_problem = ""
        self._lock = asyncio.Lock()
        self._events: list[Event] = []  # that wait for it
        self._came = self._handled = 0  # events, since the start
        self._stopping = asyncio.Event()
        self._look = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._found_sysctls = {path: host.sysctl(path) for path in _IP_FORWARD}
        self._store = open_store(config.store)
        previous = Previous(*previous_subnets(read(config.subnet_file)))
        self._keeper = Keeper(self._store, config, previous, self._claim, self.apply)
        self.objects = ObjectKeeper(self._store, config, self.name, self.node, self._on_objects)
        self.policy = PolicyKeeper(self.node, self.objects.cluster.everything, dataplane.prepare, self.apply)
        self.prober = PathProber(host, self.node, config.mtu_probe_s, self.apply, now)
        endpoints = Endpoints(self)
        cni = daemon_cni.Cni(self, endpoints)
        self._server = Server(Service(self, endpoints, cni))
        self._cni = daemon_cni.Server(cni)
        pages = health_pages(self.checks)
        self._health = PageServer(pages)
        self._metrics = PageServer(pages | {"/metrics": lambda query: Answer(True, exposition(metrics(self)), KIND)})
        self._ready = False
        self.failure: BaseException | None = None  # what ended us

    # life

    async def start(self) -> None:
        """Take over what an earlier daemon left, and begin."""
        for folder in (self.config.state_dir, self.config.run_dir):
            sweep(folder)
        self.dataplane.start()
        for name in await self.hands.blocking(self.vanished):
            await self.apply(NamespaceGone(name))
        await self.apply(await self.hands.underlay(self.wish))
        asyncio.get_running_loop().add_reader(self.dataplane.events_fd, self._on_dataplane_events)
        self._spawn(self._keeper.run(), "store")
        self._spawn(self.objects.run(), "objects")
        self._spawn(self.policy.run(), "policy")
        self._spawn(self._tick(), "tick")
        if self.config.mtu_probe_s:
            self._spawn(self.prober.run(), "paths")
        await self._server.start(self.config.run_dir)
        await self._cni.start(self.config.run_dir)
        if self.config.healthz_addr:
            await self._health.start(*parse_listen(self.config.healthz_addr))
        if self.config.metrics_addr:
            await self._metrics.start(*parse_listen(self.config.metrics_addr))

    async def until_stopped(self) -> int:
        """Wait for SIGTERM or SIGINT, or for a part of us to fail."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        stopping = asyncio.ensure_future(self._stopping.wait())
        done, _ = await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            return 0
        stopping.cancel()
        for task in done:
            self.failure = task.exception()
            event(LOG, "error", "daemon.failed", task=task.get_name(), reason=repr(task.exception()))
        return 1

    async def stop(self) -> None:
        """Stop; pods stay connected to devices that wait for the next daemon, unless --clean. Forwarding ends last."""
        sd_notify("STOPPING=1")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        await self._cni.stop()
        await self._health.stop()
        await self._metrics.stop()
        asyncio.get_running_loop().remove_reader(self.dataplane.events_fd)
        if self.config.clean:
            await self._clean()
        self._keeper.close()
        self.objects.close()
        self.policy.close()
        await self._store.close()
        try:
            self.dataplane.stop(STOP_S)
        except CanalError as error:
            event(LOG, "error", "worker.failed", reason=error)
        await self.hands.close()
        event(LOG, "info", "daemon.stopped", clean=self.config.clean)

    async def _clean(self) -> None:
        """Leave the machine as it was found: no devices, no files, no lease."""
        for name in list(self.node.endpoints):
            await self.apply(Detach(name))
        for goal in reversed(self.node.goals):
            await self.hands.undo(goal)
        for path, value in self._found_sysctls.items():
            if value == "0":
                await self.hands.blocking(lambda path=path, value=value: self.host.restore_sysctl(path, value))  # type: ignore[misc]
        with contextlib.suppress(CanalError):  # the store is away: the lease ends by itself
            await self.objects.give_back()
            await self._keeper.give_back()
        for name in ("ipam.json", IDENTITY_NAME, FILE_NAME):
            (self.config.state_dir / name).unlink(missing_ok=True)
        (self.config.run_dir / LOCK_NAME).unlink(missing_ok=True)

    # events and actions

    async def apply(self, *events: Event) -> None:
        """Handle events, and everything that follows from them; those that came meanwhile are handled together."""
        self._events.extend(events)
        self._came += len(events)
        mine = self._came
        async with self._lock:
            if self._handled < mine:  # else together with those of whoever had the lock before
                await self._apply_waiting()

    async def _apply_waiting(self) -> None:
        """Handle what waits now until nothing follows from it. Holds the lock."""
        batch, self._events = self._events, []
        try:
            following: list[Event] = batch
            while following:
                actions = self.node.handle_all(following, now())
                await self._have_pool()
                following = [event for alike in together(actions) for event in await self._perform_all(alike)]
            self.prober.notice()
            self._keeper.notice()
            self.objects.notice()
            self.policy.notice()
            self._tell_supervisor()
        finally:
            self._handled += len(batch)

    async def _perform_all(self, actions: Sequence[Action]) -> list[Event]:
        """Perform actions of one kind, of which none needs another."""
        if isinstance(actions[0], Release):
            await self._release([one.name for one in actions if isinstance(one, Release)])
            return []
        if len(actions) == 1:
            return await self._perform(actions[0])
        return [event for events in await asyncio.gather(*map(self._perform, actions)) for event in events]

    async def _perform(self, action: Action) -> list[Event]:
        match action:
            case Do(goal):
                return await self.hands.do(goal)
            case Undo(goal):
                await self.hands.undo(goal)
            case Log(level, name, fields):
                event(LOG, level, name, **dict(fields))
        return []

    async def _have_pool(self) -> None:
        """Have the pool of the lease's subnets, before anyone can see that there is a lease."""
        lease = self.node.lease
        if lease is None or (self.ipam is not None and self.ipam.pool.subnets == lease.prefixes):
            return
        self.ipam, problem = None, ""
        try:
            self.ipam = await self.hands.blocking(lambda: self._open_ipam(lease.subnet, lease.subnet6))
        except (CanalError, OSError) as error:  # the rest does not wait for it; tried again with every event
            problem = f"addresses of pods: {error}"
        if problem and problem != self._pool_problem:
            event(LOG, "error", "pool.failed", reason=problem)
        self._pool_problem = problem

    async def _release(self, names: Sequence[str]) -> None:
        """Give addresses back, or have the pool read anew, which gives back what no endpoint bears."""
        ipam = self.ipam
        if ipam is None:
            return
        try:
            await self.hands.blocking(lambda: ipam.release(*names))
        except CanalError as error:
            event(LOG, "warning", "address.not_released", names=",".join(names), reason=error)
            self.ipam = None

    def _tell_supervisor(self) -> None:
        if self.node.announced and not self._ready:
            self._ready = True
            sd_notify("READY=1")
            subnet = self.node.lease.key if self.node.lease else ""
            event(LOG, "info", "daemon.ready", subnet=subnet, subnet_file=self.config.subnet_file)

    def _open_ipam(self, subnet: Any, subnet6: Any) -> Ipam:
        """Read the pool; names that no endpoint bears are left over from a crash, endpoints it lost are put back."""
        ipam = Ipam(self.config.state_dir / "ipam.json", subnet, subnet6, self.config.ip_rest_s)
        for name in set(ipam.pool.names) - self.node.endpoints.keys():
            ipam.release(name)
        for one in self.node.endpoints.values():
            with contextlib.suppress(CanalError):  # of another subnet: reported by the node
                ipam.allocate(one.name, one.ips)
        return ipam

    def _on_objects(self, changes: Changes, in_sync: bool) -> None:
        """The objects of the cluster that are different now."""
        event(LOG, "debug", "objects.changed", count=len(changes), in_sync=in_sync)
        self.policy.take(changes)

    # timers and descriptors

    async def _tick(self) -> None:
        while True:
            announced = await rung(self._look, TICK_S)
            if announced:
                await asyncio.sleep(DEBOUNCE_S)
            self._look.clear()
            began = now()
            peers = [ip for peer in self.node.peers.peers for ip in (peer.addr4, peer.addr6) if ip is not None]
            async with self._lock:
                found = await self.hands.inspect(self.wish, peers, self.node.told, began)
            events = [one for one in found if self.node.is_news(one)]
            if events or self._pool_problem or self.node.is_due(began):
                await self.apply(Tick(), *events)
            if announced:
                await asyncio.sleep(min(REST * (now() - began), REST_MAX_S))

    def _wake(self) -> None:
        self._look.set()

    def _on_dataplane_events(self) -> None:
        found = self.dataplane.events()
        mtus = {one.addr: one.value for one in found if one.kind == "mtu" and one.addr is not None}
        events: list[Event] = [MtuLearned(address, value) for address, value in mtus.items()]
        for address in {one.addr for one in found if one.kind == "stalled" and one.addr is not None}:
            self.prober.suspect(address)
        for one in found:
            if one.kind not in ("mtu", "stalled"):
                event(LOG, "warning", f"dataplane.{one.kind}", port=one.port, value=one.value)
                self._wake()
            goal = self.hands.of_port(one.port) if one.kind == "port_error" else None
            if goal is not None:
                events.append(Failed(goal, f"{goal.key}: {os.strerror(one.value)}"))
        if events:
            self._spawn(self.apply(*events), "dataplane events", watched=False)

    def _spawn(self, work: Any, name: str, *, watched: bool = True) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        if watched:
            self._tasks.append(task)
        else:
            self._once = task  # the loop itself keeps no strong reference

    # what others need to know

    @property
    def wish(self) -> Wish:
        """What the user said about the underlay."""
        config = self.config
        return Wish(
            names=config.iface,
            expressions=config.iface_regex,
            can_reach=config.iface_can_reach or "",
            public_ip=config.public_ip,
            public_ip6=config.public_ip6,
            exclude=(config.host_ifname, "lo"),
        )

    @property
    def name(self) -> str:
        """How the others call this node."""
        return self.node.config.node or socket.gethostname()

    def _claim(self) -> Claim | None:
        underlay, config = self.node.underlay, self.node.config
        if underlay is None or self.node.network is None:
            return None
        plain, dual = config.plain_lease, self.node.network.network6 is not None
        return Claim(
            underlay.public_ip,
            underlay.public_ip6 if dual or not plain else None,
            encap=config.encap,
            vtep_mac=self.node.mac if config.encap == "vxlan" else None,
            vtep_mac6=self.node.mac if config.encap == "vxlan" and dual else None,
            node="" if plain else self.name,
            vni=config.vni,
        )

    def reasons(self) -> tuple[str, ...]:
        """Everything that is not as it should be."""
        return (
            *(problem for _, problem in self._complaints()),
            *self.objects.problems,
            *filter(None, (self.policy.problem,)),
        )

    def _complaints(self) -> Iterator[tuple[str, str]]:
        yield from self.node.complaints
        if self._pool_problem:
            yield "addresses", self._pool_problem
        if not self.dataplane.running:
            yield "worker", f"the worker does not run: {self.dataplane.worker_error or 'stopped'}"

    def checks(self) -> Iterator[tuple[str, str]]:
        """What a readiness probe is told: each thing that is looked at, and what is wrong with it."""
        found = list(self._complaints())
        if not self.node.published and not found:
            found.append(("tables", "starting"))
        good = [(topic, "") for topic in CHECKS if topic not in {name for name, _ in found}]
        yield from sorted(found + good, key=lambda check: check[0])

    def state(self) -> str:
        """starting, ready or degraded."""
        if not self.node.published:
            return "starting"
        return "degraded" if self.reasons() else "ready"

    def vanished(self) -> list[str]:
        """Endpoints whose namespace went while no daemon ran, or whose path another namespace took."""
        return [one.name for one in self.node.endpoints.values() if not self._stands(one)]

    def _stands(self, endpoint: Endpoint) -> bool:
        try:
            return self.host.identity(endpoint.netns) == endpoint.netns_id
        except DeviceError:
            return False


def now() -> float:
    """Seconds that nobody sets and that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def dataplane_config(config: DaemonConfig, offloads: Offloads) -> DataplaneConfig:
    """What the data plane is told: the user's wishes within what the kernel does."""
    return DataplaneConfig(
        strict_csum=config.strict_checksums,
        reset_cut=config.reset_cut,
        no_udp_gso=config.no_udp_gso or not offloads.udp_gso,
        no_coalesce=config.no_coalesce,
        no_uso_write="uso4" not in offloads.tun,
        ct_max=config.ct_max,
        ct_share=max(config.ct_max // 4, 1),
        busy_poll_us=config.busy_poll_us,
        gso_segments_max=offloads.segments_max,
    )


@contextlib.contextmanager
def _sole_daemon(run_dir: Path) -> Any:
    """Hold the run directory: two daemons in one would take each other's devices."""
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (run_dir / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeviceError(f"another daemon runs with --run-dir {run_dir}") from error
        _write_pid(lock)
        yield


def _write_pid(lock: IO[str]) -> None:
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _saved_endpoints(state_dir: Path) -> tuple[Endpoint, ...]:
    path = state_dir / FILE_NAME
    try:
        return load(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return ()
    except (ConfigError, UnicodeDecodeError) as error:
        aside = path.with_name(f"{path.name}.corrupt-{int(time.time())}")
        path.rename(aside)
        event(LOG, "error", "endpoints.corrupt", reason=error, moved_to=aside)
        return ()
