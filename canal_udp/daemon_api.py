"""Requests at the daemon's socket: what each operation does and answers.

Structure    Server: one line in, one line out, many clients ─► Service: op ─► answer
Invariants   A request changes something only through the daemon's `apply`, so it cannot meet half of another's work.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from canal_udp.actions import Attach, IPAddress
from canal_udp.api import REQUEST_MAX_BYTES, SOCKET_NAME, decode, encode, failure, success
from canal_udp.control.acquire import owns
from canal_udp.control.shown import lease_row
from canal_udp.daemon_endpoints import Endpoints
from canal_udp.daemon_explain import Explanations
from canal_udp.daemon_flows import KINDS, FlowLog
from canal_udp.daemon_listener import Listener
from canal_udp.endpoints import Endpoint, change_labels, check_name, parse_labels
from canal_udp.errors import CanalError, RequestError
from canal_udp.net import format_mac, parse_address
from canal_udp.tunnel.device import check_ifname
from canal_udp.tunnel.netns import OWN, resolve

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon
    from canal_udp.daemon_cni import Cni

LOG = logging.getLogger("canal.api")
IDLE_S = 30.0
FLOWS_MAX = 100_000

Request = Mapping[str, Any]
Operation = Callable[[Request], Awaitable[Any]]


class Server:
    """The socket <run-dir>/api.sock."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._listener = Listener(SOCKET_NAME, REQUEST_MAX_BYTES, self._serve)
        self.start, self.stop = self._listener.start, self._listener.stop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await asyncio.wait_for(reader.readline(), IDLE_S):
            writer.write(encode(await self._answer(line)))
            await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return success(await self._service.answer(decode(line)))
        except CanalError as error:
            return failure(error)
        except Exception as error:
            LOG.exception("request.crashed")
            return failure(CanalError(f"the daemon failed at this request: {type(error).__name__}; its log says where"))


class Service:
    """The operations."""

    def __init__(self, daemon: Daemon, endpoints: Endpoints, cni: Cni) -> None:
        self._daemon, self._known, self._cni = daemon, endpoints, cni
        self._log = FlowLog(daemon)
        self._operations: dict[str, Operation] = {
            "status": self._status,
            "peers": self._peers,
            "endpoints": self._endpoints,
            "flows": self._flows,
            "drops": self._drops,
            "flow_log": self._flow_log,
            "hits": self._hits,
            "explain": Explanations(daemon, self._log).answer,
            "attach": self._attach,
            "detach": self._detach,
            "label": self._label,
            "lease_list": self._lease_list,
            "cni_gc": self._cni_gc,
        }

    async def answer(self, request: Request) -> Any:
        """Do one operation.

        Raises     CanalError, whose text is the answer.
        """
        operation = self._operations.get(str(request.get("op")))
        if operation is None:
            raise RequestError(
                f"unknown operation {str(request.get('op'))[:40]!a}; there are {', '.join(self._operations)}"
            )
        return await operation(request)

    # looking

    async def _status(self, request: Request) -> dict[str, Any]:
        daemon, node = self._daemon, self._daemon.node
        plane = daemon.dataplane.status()
        counters, drops = daemon.dataplane.counters(), daemon.dataplane.drops()
        lease, underlay = node.lease, node.underlay
        return {
            "node": node.config.node or socket.gethostname(),
            "state": daemon.state(),
            "store": daemon.config.store,
            "reasons": list(daemon.reasons()),
            "generation": plane.generation,
            "public_ip": _text(underlay.public_ip if underlay else None),
            "public_ip6": _text(underlay.public_ip6 if underlay else None),
            "iface": underlay.interface if underlay else None,
            "subnet": _text(lease.subnet if lease else None),
            "subnet6": _text(lease.subnet6 if lease else None),
            "encap": node.config.encap,
            "vni": node.config.vni,
            "vtep_mac": format_mac(node.mac),
            "mtu": node.mtu,
            "host_ifname": node.config.host_ifname,
            "offload": self._offload(plane.gso_off),
            "counters": counters,
            "drops": drops,
            "errors": daemon.dataplane.errors(),
            "peers": len(node.peers.peers),
            "endpoints": len(node.endpoints),
            "objects": daemon.objects.status(),
            "worker": asdict(plane) | {"running": daemon.dataplane.running, "error": daemon.dataplane.worker_error},
            "conservation": _conservation(counters, drops, plane.queued),
        }

    def _offload(self, gso_off: int) -> dict[str, Any]:
        config, found = self._daemon.config, self._daemon.offloads
        gso, reason = found.udp_gso, found.reason
        if config.no_udp_gso:
            gso, reason = False, "--no-udp-gso"
        elif gso_off:
            reason = f"{gso_off} sockets lost UDP_SEGMENT at run time; {reason}"
        return {
            "mode": found.mode if gso else found.mode.replace("gso+gro", "gro").replace("gso", "single"),
            "reason": reason,
            "tun": list(found.tun),
            "udp_gso": gso,
            "udp_gro": found.udp_gro,
            "segments_max": found.segments_max,
            "sockets_without_gso": gso_off,
            "coalesce": not config.no_coalesce,
        }

    async def _peers(self, request: Request) -> list[dict[str, Any]]:
        node = self._daemon.node
        mtus = {vtep.addr: vtep.mtu_bytes for vtep in node.vteps}
        rows = []
        for peer in node.peers.peers:
            address = peer.addr4 or peer.addr6
            recursive = bool({peer.addr4, peer.addr6} & node.recursive)
            state = f"left out: its route leads into {node.config.host_ifname}" if recursive else "ok"
            path = {"mtu": mtus.get(address) if address else None, "path": self._path(address)}
            rows.append(lease_row(peer.lease) | path | {"state": state})
        none = {"mtu": None, "path": ""}
        rows += [lease_row(bad.lease) | none | {"state": f"not used: {bad.problem}"} for bad in node.peers.conflicts]
        return rows

    def _path(self, address: IPAddress | None) -> str:
        """How the MTU towards a peer is known."""
        if address is None:
            return ""
        return "learned" if address in self._daemon.node.learned else self._daemon.prober.knowledge(address)

    async def _endpoints(self, request: Request) -> list[dict[str, Any]]:
        return [self._endpoint_row(one) for one in self._daemon.node.endpoints.values()]

    async def _flows(self, request: Request) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self._log.read("flows", 0, _limit(request)))["rows"]
        return rows

    async def _flow_log(self, request: Request) -> dict[str, Any]:
        kind = next((one for one in KINDS if one == request.get("kind")), None)
        if kind is None:
            raise RequestError(f"kind: one of {', '.join(KINDS)}")
        since_ms = request.get("since_ms", 0)
        if not isinstance(since_ms, int) or not 0 <= since_ms < 1 << 63:
            raise RequestError("since_ms: what an earlier answer called now_ms, or 0")
        return await self._log.read(kind, since_ms, _limit(request))

    async def _hits(self, request: Request) -> list[dict[str, Any]]:
        return self._log.hits()

    async def _drops(self, request: Request) -> dict[str, int]:
        return self._daemon.dataplane.drops()

    async def _lease_list(self, request: Request) -> list[dict[str, Any]]:
        node = self._daemon.node
        leases = node.leases.leases if node.leases else ()
        own = node.lease
        return [lease_row(lease) | {"own": own is not None and owns(own, lease)} for lease in leases]

    # endpoints

    async def _attach(self, request: Request) -> dict[str, Any]:
        wanted = await self._wanted(request)
        async with self._known.about(wanted.name, wanted.netns_id):
            return self._endpoint_row(await self._known.attach(wanted))

    async def _wanted(self, request: Request) -> Endpoint:
        netns = resolve(_string(request, "netns"))
        identity = await self._daemon.hands.blocking(lambda: self._daemon.host.identity(netns))
        if identity == await self._daemon.hands.blocking(lambda: self._daemon.host.identity(OWN)):
            raise RequestError(f"{netns} is the daemon's own namespace, and no pod: its default route would be lost")
        try:
            ips = tuple(parse_address(ip) for ip in _strings(request, "ips"))
        except ValueError as error:
            raise RequestError(str(error)) from error
        return Endpoint(
            name=check_name(_string(request, "name") or default_name(netns)),
            netns=netns,
            netns_id=identity,
            ifname=check_ifname(_string(request, "ifname") or "eth0"),
            ips=ips,
            labels=parse_labels(_strings(request, "labels")),
        )

    async def _detach(self, request: Request) -> dict[str, Any]:
        name = _string(request, "name")
        netns = resolve(_string(request, "netns")) if request.get("netns") else ""
        if not name and not netns:
            raise RequestError("say which: NETNS or --name")
        asked_for = (one for one in self._known.all() if name in {"", one.name} and netns in {"", one.netns})
        found = next(asked_for, None)
        if found is None:
            return {"name": name or netns, "detached": False}
        async with self._known.about(found.name, found.netns_id):
            await self._known.detach(found)
        return {"name": found.name, "detached": True}

    async def _label(self, request: Request) -> dict[str, Any]:
        name, changes = _string(request, "name"), _strings(request, "labels")
        async with self._known.about(name):
            found = next((one for one in self._known.all() if one.name == name), None)
            if found is None:
                raise RequestError(f"{name!a} is not attached to this node; canal endpoints")
            labels = change_labels(found.labels, changes)
            await self._daemon.apply(Attach(replace(found, labels=labels)))
        return self._endpoint_row(self._daemon.node.endpoints[name])

    async def _cni_gc(self, request: Request) -> list[str]:
        valid = request.get("valid")
        if valid is None:
            return await self._cni.collect(None)
        if not isinstance(valid, list) or not all(isinstance(one, list) and len(one) == 3 for one in valid):
            raise RequestError("valid: not a list of network, container id and interface")
        return await self._cni.collect({(str(one[0]), str(one[1]), str(one[2])) for one in valid})

    def _endpoint_row(self, one: Endpoint) -> dict[str, Any]:
        node = self._daemon.node
        return {
            "name": one.name,
            "netns": one.netns,
            "ifname": one.ifname,
            "ips": [f"{ip}/{ip.max_prefixlen}" for ip in one.ips],
            "mtu": node.mtu,
            "labels": dict(one.labels),
            "state": node.problem_of(one.name) or "ok",
        }


def default_name(netns: str) -> str:
    """Name an endpoint after its namespace: the last part of the path, or the process."""
    process = re.fullmatch(r"/proc/(\d+)/ns/net", netns)
    return f"default/pid-{process[1]}" if process else f"default/{netns.rpartition('/')[2]}"


def _conservation(counters: Mapping[str, int], drops: Mapping[str, int], queued: int) -> dict[str, Any]:
    """Every packet that came in went out, was dropped for one reason, or is held now; exact while nothing moves."""
    received = sum(counters[name] for name in ("rx_pod", "rx_host", "rx_underlay", "originated"))
    delivered = sum(counters[name] for name in ("tx_pod", "tx_host", "tx_underlay"))
    dropped = sum(drops.values())
    balanced = received == delivered + dropped + queued
    return {"received": received, "delivered": delivered, "dropped": dropped, "queued": queued, "balanced": balanced}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _limit(request: Request) -> int:
    limit = request.get("limit", FLOWS_MAX)
    if not isinstance(limit, int) or not 0 < limit <= FLOWS_MAX:
        raise RequestError(f"limit: 1 to {FLOWS_MAX}")
    return limit


def _string(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str) or len(value) > 4096 or "\0" in value:
        raise RequestError(f"{name}: not a string, or too long")
    return value


def _strings(request: Request, name: str) -> list[str]:
    value = request.get(name) or []
    if not isinstance(value, list) or len(value) > 1000 or not all(isinstance(item, str) for item in value):
        raise RequestError(f"{name}: not a list of strings")
    return value
