"""The backends `alloc` and `extension`: a lease and subnet.env; packets are the administrator's business.

Structure    Keeper ─► event ─► subnet.env; `extension` runs its commands, and those of each peer that comes or goes
Commands     run by sh, one after the other, as flannel documents them (since v0.28.2 flanneld splits them at blanks and
             runs them without a shell, so that its own examples fail). What the peer's node printed is on their input.
             A failing pre or post command stops the start; a failing one about a peer is told.
Environment  post: NETWORK, SUBNET, IPV6SUBNET, PUBLIC_IP, PUBLIC_IPV6; add and remove: SUBNET, PUBLIC_IP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from dataclasses import dataclass, replace

from canal_udp.actions import Event, LeaseHeld, LeasesSeen, NetworkKnown, StoreSeen
from canal_udp.config import DaemonConfig
from canal_udp.control.acquire import Claim, Previous, owns
from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.store import open_store
from canal_udp.control.subnet_env import SubnetEnv, previous_subnets, read, write
from canal_udp.control.value import read_object
from canal_udp.daemon_health import sd_notify
from canal_udp.daemon_store import Keeper
from canal_udp.errors import CanalError, LeaseLost
from canal_udp.logs import event
from canal_udp.net import printable
from canal_udp.node import wanted_rules
from canal_udp.tunnel import netfilter
from canal_udp.underlay import Underlay

LOG = logging.getLogger("canal.flanneld")


@dataclass(frozen=True, slots=True)
class Commands:
    """What an administrator wrote into the network config."""

    pre: str = ""
    post: str = ""
    add: str = ""
    remove: str = ""

    @classmethod
    def read(cls, text: str) -> Commands:
        """Those of a network config.

        Raises   ConfigError.
        """
        backend = read_object(text, "network config").object("Backend")
        if backend is None:
            return cls()
        names = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")
        return cls(*(backend.text(name) or "" for name in names))


class LeaseOnly:
    """One node that has a lease and forwards nothing."""

    def __init__(self, config: DaemonConfig, network: NetworkConfig, underlay: Underlay, commands: Commands) -> None:
        self._config, self._network, self._underlay, self._commands = config, network, underlay, commands
        self._claim = Claim(underlay.public_ip, underlay.public_ip6 if network.network6 else None)
        self._lease: Lease | None = None
        self._peers: dict[str, Lease] = {}
        self._problem = ""
        self.announced = False  # subnet.env is written

    async def run(self) -> None:
        """Keep the lease until a signal comes.

        Raises   CanalError when a command that the start depends on fails.
        """
        if self._network.encap == "extension":
            data = await _run(self._commands.pre, {}) if self._commands.pre else ""
            self._claim = replace(self._claim, encap="extension", data=data.strip())
        store = open_store(self._config.store)
        previous = Previous(*previous_subnets(read(self._config.subnet_file)))
        keeper = Keeper(store, self._config, previous, lambda: self._claim, self._take)
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        works = [asyncio.ensure_future(keeper.run()), asyncio.ensure_future(stopped.wait())]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.is_set():
                with contextlib.suppress(LeaseLost):  # told by the keeper; flanneld's status is 0
                    works[0].result()
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            await store.close()

    async def _take(self, happened: Event) -> None:
        match happened:
            case NetworkKnown(network):
                self._network = network
            case LeaseHeld(lease):
                await self._take_lease(lease)
            case LeasesSeen(snapshot):
                await self._take_peers({lease.key: lease for lease in snapshot.leases})
            case StoreSeen(problem) if problem != self._problem:
                self._problem = problem
                event(LOG, "warning" if problem else "info", "store", problem=problem or "none")

    async def _take_lease(self, lease: Lease) -> None:
        known, self._lease = self._lease, lease
        if known is not None and known.key == lease.key:
            return
        fields = {"subnet": lease.subnet or "", "subnet6": lease.subnet6 or "", "public_ip": self._underlay.public_ip}
        event(LOG, "info", "lease.held", **fields, new=lease.created == lease.revision)
        env = SubnetEnv(
            self._network.network,
            lease.subnet,
            self._network.network6,
            lease.subnet6,
            self._config.mtu or self._underlay.mtu_bytes,
            self._config.ip_masq,
        )
        if self._commands.post and self._network.encap == "extension":
            await _run(self._commands.post, self._about_us(lease))
        rules = wanted_rules(self._config, self._network, lease)
        await asyncio.to_thread(netfilter.apply, rules)
        write(self._config.subnet_file, env.text())
        if not self.announced:
            self.announced = True
            sd_notify("READY=1")
            event(LOG, "info", "daemon.ready", subnet_file=self._config.subnet_file)

    def _about_us(self, lease: Lease) -> dict[str, object]:
        return {
            "NETWORK": self._network.network or "",
            "SUBNET": lease.subnet or "",
            "IPV6SUBNET": lease.subnet6 or "",
            "PUBLIC_IP": self._underlay.public_ip or "",
            "PUBLIC_IPV6": self._underlay.public_ip6 or "",
        }

    async def _take_peers(self, leases: dict[str, Lease]) -> None:
        """Run the commands for what is new, other than before, or gone."""
        if self._network.encap != "extension":
            return
        wanted = {
            key: lease
            for key, lease in leases.items()
            if lease.encap == "extension" and not owns(self._claim, lease) and lease.subnet is not None
        }
        for key, lease in self._peers.items():
            if key not in wanted:
                await self._about_peer(self._commands.remove, lease)
        for key, lease in wanted.items():
            known = self._peers.get(key)
            if known is None or (known.data, known.public_ip) != (lease.data, lease.public_ip):
                await self._about_peer(self._commands.add, lease)
        self._peers = wanted

    async def _about_peer(self, command: str, lease: Lease) -> None:
        if not command:
            return
        try:
            await _run(command, {"SUBNET": lease.subnet, "PUBLIC_IP": lease.public_ip}, lease.data + "\n")
        except CommandError as error:
            event(LOG, "error", "command.failed", subnet=lease.subnet, reason=error)


class CommandError(CanalError):
    """A command of the administrator's failed."""


async def _run(command: str, environ: dict[str, object], given: str = "") -> str:
    """Run a command; returns what it printed, both streams as they came.

    Raises   CommandError.
    """
    done = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-c", command],
        input=given.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **{name: str(value) for name, value in environ.items()}},
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise CommandError(f"{printable(command)!r} ended with {done.returncode}: {printable(text.strip(), 500)}")
    return text
