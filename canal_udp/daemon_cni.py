"""The CNI plug-in's socket: what each command of a container runtime does and answers.

Structure    Server: request ─► Cni: command ─► answer; canal_udp/cni decides, Endpoints attaches and detaches
             <run-dir>/cni-spool: DELs that the executable could not deliver, done before the next command
Invariants   A command that fails changes nothing. DEL asks for nothing but names and never fails because something is
             gone. A runtime may try again after every error that is not about its own request.
Faults       Killed in the middle: what an ADD had begun is in the endpoints' file, so that DEL or GC finds it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from canal_udp.cni import naming, result
from canal_udp.cni.request import Call, read_call, read_wishes, split, valid_attachments, version_of
from canal_udp.cni.spec import Code
from canal_udp.daemon_endpoints import Endpoints
from canal_udp.daemon_listener import Listener
from canal_udp.endpoints import Endpoint
from canal_udp.errors import AddressError, AddressTaken, CanalError, CniError, DeviceError
from canal_udp.logs import event
from canal_udp.tunnel.netns import OWN

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon

LOG = logging.getLogger("canal.cni")
SOCKET_NAME = "cni.sock"
SPOOL_NAME = "cni-spool"
REQUEST_MAX_BYTES = 4 << 20
IDLE_S = 30.0

Body = dict[str, Any] | None
_T = TypeVar("_T")


class Server:
    """The socket <run-dir>/cni.sock."""

    def __init__(self, cni: Cni) -> None:
        self._cni = cni
        self._listener = Listener(SOCKET_NAME, REQUEST_MAX_BYTES, self._serve)
        self.stop = self._listener.stop

    async def start(self, run_dir: Path) -> None:
        """Listen, then do what was spooled: in this order the executable can make sure that nothing is forgotten."""
        await self._listener.start(run_dir)
        await self._cni.empty_spool()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await asyncio.wait_for(_read_all(reader), IDLE_S)
        writer.write(await self._cni.answer(message))
        await writer.drain()


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    message = bytearray()
    while part := await reader.read(1 << 16):
        message += part
        if len(message) > REQUEST_MAX_BYTES:
            raise ValueError(f"more than {REQUEST_MAX_BYTES} bytes")
    return bytes(message)


class Cni:
    """The commands."""

    def __init__(self, daemon: Daemon, endpoints: Endpoints) -> None:
        self._daemon, self._endpoints = daemon, endpoints
        self._spool = daemon.config.run_dir / SPOOL_NAME
        self._commands: dict[str, Callable[[Call], Awaitable[Body]]] = {
            "ADD": self._add,
            "DEL": self._del,
            "CHECK": self._check,
            "GC": self._gc,
            "STATUS": self._status,
        }

    async def answer(self, message: bytes) -> bytes:
        """Return the answer to what the executable sent."""
        stdin = b""
        try:
            environ, stdin = split(message)
            call = read_call(environ, stdin)
            await self.empty_spool()
            return result.success(await self._commands[call.command](call))
        except CanalError as error:
            told = _told(error)
            event(LOG, "warning", "command.failed", code=int(told.code), reason=told, details=told.details)
            return result.failure(told, version_of(stdin))
        except Exception as error:
            LOG.exception("command.crashed")
            problem = f"the daemon failed at this request: {type(error).__name__}; its log says where"
            return result.failure(CniError(Code.INTERNAL, problem), version_of(stdin))

    # commands

    async def _add(self, call: Call) -> Body:
        wishes, previous = read_wishes(call), result.previous_of(call)
        identity, taken = await self._look(call)
        wanted = naming.endpoint(call, wishes, identity)
        async with self._endpoints.about(wanted.attachment, wanted.name, identity):
            naming.refuse_duplicate(call, self._endpoints.all())
            if taken:
                raise CniError(Code.DUPLICATE, f"{call.ifname} exists already in {call.netns}")
            made = await self._endpoints.attach(wanted, wishes.within)
        if wishes.mac:
            event(LOG, "info", "mac.ignored", name=made.name, mac=wishes.mac, reason="a TUN has no MAC address")
        event(LOG, "info", "pod.added", name=made.name, ips=",".join(map(str, made.ips)), attachment=made.attachment)
        mtu = self._daemon.node.mtu or 0
        return result.result(
            call.version, result.Attachment(call.ifname, call.netns, made.ips, mtu, wishes.dns), previous
        )

    async def _del(self, call: Call) -> Body:
        await self._delete(call)
        if call.netns and not call.own_netns_allowed and await self._is_own(call.netns):
            raise _own_netns()
        return None

    async def _delete(self, call: Call) -> None:
        async with self._endpoints.about(naming.attachment(call)):
            found = naming.attached(call, self._endpoints.all())
            if found is not None:
                await self._detach(found, "pod.deleted")
            elif call.netns and not await self._is_own(call.netns):
                await self._remove_left(call)

    async def _detach(self, endpoint: Endpoint, why: str) -> None:
        """Detach it unless another has taken its name meanwhile."""
        async with self._endpoints.about(endpoint.name):
            now = self._daemon.node.endpoints.get(endpoint.name)
            if now is not None and now.attachment == endpoint.attachment:
                await self._endpoints.detach(now)
                event(LOG, "info", why, name=now.name, attachment=now.attachment)

    async def _remove_left(self, call: Call) -> None:
        """A daemon that was killed in the middle of this DEL may have left the interface behind."""
        try:
            removed = await self._blocking(lambda: self._daemon.host.remove_left_tun(call.ifname, call.netns))
        except (DeviceError, OSError) as error:  # no namespace, no interface
            event(LOG, "debug", "namespace.gone", netns=call.netns, reason=error)
            return
        if removed:
            event(LOG, "info", "interface.removed", netns=call.netns, ifname=call.ifname)

    async def _check(self, call: Call) -> Body:
        found = naming.attached(call, self._endpoints.all())
        if found is None:
            raise CniError(Code.UNKNOWN_CONTAINER, f"{call.container_id} has no {call.ifname} of {call.network}")
        result.check_previous(call, found.ips)
        identity, _ = await self._look(call)
        if found.netns_id != identity:
            raise CniError(Code.CHANGED, f"{call.netns} is another namespace than that of {found.name}")
        problem = self._daemon.node.problem_of(found.name)
        if problem:
            raise CniError(Code.CHANGED, f"{found.name}: {problem}")
        lacking = await self._lacking(found)
        if lacking:
            raise CniError(Code.CHANGED, f"{found.name} lacks {', '.join(lacking)}")
        return None

    async def _lacking(self, endpoint: Endpoint) -> tuple[str, ...]:
        link = self._daemon.node.link_of(endpoint.name)
        if link is None:
            return (f"interface {endpoint.ifname}",)
        return await self._blocking(lambda: self._daemon.host.lacks(link))

    async def _gc(self, call: Call) -> Body:
        valid = {(call.network, *one) for one in valid_attachments(call)}
        network = [one for one in self._endpoints.all() if one.attachment.startswith(f"{call.network}/")]
        await self._collect(naming.unknown(network, valid))
        return None

    async def collect(self, valid: Set[tuple[str, str, str]] | None) -> list[str]:
        """Disconnect what is gone, and what is not valid if anybody says what is; returns the names."""
        await self.empty_spool()
        vanished = await self._blocking(self._daemon.vanished)
        known = self._endpoints.all()
        gone = {one.name: one for one in known if one.name in vanished}
        if valid is not None:
            gone |= {one.name: one for one in naming.unknown(known, valid)}
        await self._collect(gone.values())
        return sorted(gone)

    async def _collect(self, gone: Iterable[Endpoint]) -> None:
        await asyncio.gather(*(self._detach(one, "pod.collected") for one in gone))

    async def _status(self, call: Call) -> Body:
        daemon = self._daemon
        if not daemon.dataplane.running:
            raise CniError(Code.LIMITED, "no packets are forwarded", "; ".join(daemon.reasons()))
        if daemon.ipam is None or not daemon.node.published:
            raise CniError(Code.NOT_AVAILABLE, "not ready", "; ".join(daemon.reasons()) or "starting")
        problem = daemon.ipam.exhausted()
        if problem:
            raise CniError(Code.NOT_AVAILABLE, problem)
        return None

    # the spool

    async def empty_spool(self) -> None:
        """Do the DELs that were left here while no daemon answered; each is forgotten once it is done."""
        for path in _spooled(self._spool):
            try:
                call = read_call(*split(path.read_bytes()))
                event(LOG, "info", "spool.done", file=path.name, container=call.container_id, ifname=call.ifname)
                await self._delete(call)
            except FileNotFoundError:
                continue  # the executable took it back: it was offered to us meanwhile
            except CniError as error:  # not even a DEL; a runtime got no other answer than "done"
                event(LOG, "warning", "spool.refused", file=path.name, reason=error)
            path.unlink(missing_ok=True)

    # namespaces

    async def _look(self, call: Call) -> tuple[str, bool]:
        """Return what a container's namespace is known by, and whether it has the interface already."""
        host = self._daemon.host
        try:
            identity, names = await self._blocking(lambda: host.look_into(call.netns))
        except (DeviceError, OSError) as error:
            raise CniError(Code.NETNS, str(error)) from error
        if not call.own_netns_allowed and await self._is_own(call.netns):
            raise _own_netns()
        return identity, call.ifname in names

    async def _is_own(self, path: str) -> bool:
        host = self._daemon.host
        return host.inode(path) == host.inode(OWN) is not None

    async def _blocking(self, work: Callable[[], _T]) -> _T:
        return await self._daemon.hands.blocking(work)


def _told(error: CanalError) -> CniError:
    """What a runtime is told: its own faults as such, everything else as something that may be over soon."""
    if isinstance(error, CniError):
        return error
    final = isinstance(error, AddressError) and not isinstance(error, AddressTaken)
    return CniError(Code.CONFIG if final else Code.TRY_AGAIN, str(error))


def _own_netns() -> CniError:
    return CniError(Code.NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")


def _spooled(folder: Path) -> list[Path]:
    """The finished files, the oldest first; what a killed executable left unfinished is removed."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    for name in names:
        process = name.rpartition("-")[2]
        if name.startswith(".") and not Path("/proc", process).exists():
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names if not name.startswith(".")]
