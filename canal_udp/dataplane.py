"""The data plane as an object: ports in, snapshots in, numbers out. The only caller of `lib.canal_*`.

Threads  every method belongs to the control thread, except where a docstring says `thread: any`. The packets move in a
         thread of their own that `start` makes and that holds no Python lock while it forwards.
"""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from socket import htons, ntohs
from time import monotonic_ns
from types import TracebackType
from typing import Any

import numpy as np

from canal_udp._abi import CData, dtype_of, enum_names, ffi, lib
from canal_udp.encap.fib import ENCAPS, arrays, packed, unpacked
from canal_udp.encap.forwarding import HOST_KEY, Forwarding, Vtep, vtep_key
from canal_udp.errors import CanalError, DataplaneError
from canal_udp.faults import new_fault, raise_for
from canal_udp.policy.compiled import Compiled
from canal_udp.policy.flow import Flow as FirstPacket
from canal_udp.policy_tables import PolicyTables, flow_rows, judge
from canal_udp.readings import Address, Event, Flow, Frame, Judged, Note, PortStats, Status
from canal_udp.recorded import flow_of, judged_of, note_of

__all__ = [
    *("COUNTERS", "DROPS", "CT_STATES", "EVENT_KINDS", "VERDICTS", "VNET_HDR_SIZE"),
    *("Dataplane", "DataplaneConfig", "isa"),
    *("Event", "Flow", "Frame", "Note", "PortStats", "Status"),
]

COUNTERS = enum_names("enum canal_counter", "CANAL_")
CALLS = enum_names("enum canal_call", "CANAL_CALL_")
DROPS = enum_names("enum canal_drop", "CANAL_DROP_")
EVENT_KINDS = {
    value: name.removeprefix("CANAL_EVENT_").lower()
    for value, name in ffi.typeof("enum canal_event_kind").elements.items()
}

VNET_HDR_SIZE = lib.CANAL_VNET_HDR_SIZE
READ_ROWS = 4096  # flows or events fetched by one call


# ---- what goes in and what comes out ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DataplaneConfig:
    """struct canal_dp_config; the seed of the flow hash is random unless a test wants the same run again."""

    strict_csum: bool = False
    no_udp_gso: bool = False
    no_coalesce: bool = False
    no_uso_write: bool = False
    ct_max: int = 1 << 18
    ct_share: int = 1 << 16
    frag_max: int = 4096
    busy_poll_us: int = 60
    icmp_per_s: int = 1000
    gso_segments_max: int = 64
    rules_max: int = 1 << 17
    reset_cut: bool = False
    seed: tuple[int, int] = field(default_factory=lambda: (secrets.randbits(64), secrets.randbits(64)))

    @property
    def flags(self) -> int:
        return (
            (lib.CANAL_DP_STRICT_CSUM if self.strict_csum else 0)
            | (lib.CANAL_DP_NO_UDP_GSO if self.no_udp_gso else 0)
            | (lib.CANAL_DP_NO_COALESCE if self.no_coalesce else 0)
            | (lib.CANAL_DP_NO_USO_WRITE if self.no_uso_write else 0)
            | (lib.CANAL_DP_RESET_CUT if self.reset_cut else 0)
        )


@dataclass(frozen=True, slots=True)
class _Port:
    kind: str
    name: str


# ---- the object ------------------------------------------------------------------------------------------------------


class Dataplane:
    """One data path with its ports, its snapshot and its worker."""

    def __init__(self, config: DataplaneConfig) -> None:
        raw, out, fault = ffi.new("struct canal_dp_config *"), ffi.new("struct canal_dp **"), new_fault()
        raw.seed = config.seed
        raw.flags = config.flags
        for name in ("ct_max", "ct_share", "frag_max", "busy_poll_us", "icmp_per_s", "gso_segments_max", "rules_max"):
            setattr(raw, name, getattr(config, name))
        raise_for(lib.canal_dp_new(raw, out, fault), fault)
        self._dp: CData = out[0]
        self._ports: dict[int, _Port] = {}
        self._vteps: tuple[Vtep, ...] = ()
        self._published: tuple[Forwarding, Mapping[str, int], CData | None] | None = None
        self._policies = PolicyTables()
        self._rules_max = config.rules_max
        self._worker: _Worker | None = None
        self.events_fd: int = raise_for(lib.canal_events_fd(self._dp))

    def __enter__(self) -> Dataplane:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Dataplane ports={len(self._ports)} {'closed' if self._dp is None else self.status()}>"

    # ports

    def add_pod(self, name: str, fd: int, mtu_bytes: int, id: int) -> int:
        """Forward for a pod: fd is its TUN, non-blocking, with virtio_net_hdr. Returns the port's index."""
        return self._add(_Port("pod", name), fd=fd, kind=lib.CANAL_PORT_POD, mtu_bytes=mtu_bytes, id=id)

    def add_host(self, fd: int, mtu_bytes: int) -> int:
        """Forward for the host itself and whatever it routes here."""
        return self._add(_Port("host", HOST_KEY), fd=fd, kind=lib.CANAL_PORT_HOST, mtu_bytes=mtu_bytes)

    def add_underlay(self, fd: int, encap: str, family: int, tx_only: bool = False) -> int:
        """Send and receive encapsulated packets by a UDP socket; tx_only sockets only lend their source port."""
        flags = lib.CANAL_PORT_TX_ONLY if tx_only else 0
        port = _Port("underlay", f"{encap}{family}")
        return self._add(port, fd=fd, kind=lib.CANAL_PORT_UNDERLAY, encap=ENCAPS[encap], family=family, flags=flags)

    def _add(self, port: _Port, **members: int) -> int:
        if port.kind != "underlay" and port in self._ports.values():
            raise DataplaneError(f"{port.kind} port {port.name}".rstrip() + ": there is one already")
        config, fault = ffi.new("struct canal_port_config *", members), new_fault()
        index = raise_for(lib.canal_port_add(self._open, config, fault), fault)
        self._ports[index] = port
        return index

    def remove_port(self, index: int) -> None:
        """After this the worker does not touch the port's fd; the caller closes it."""
        raise_for(lib.canal_port_del(self._open, index))
        del self._ports[index]

    # snapshots

    def publish(self, forwarding: Forwarding, policy: Compiled | None = None) -> None:
        """Build a snapshot aside, make it what every later batch sees, free those that nobody sees any more.

        policy   by name of endpoint; None: everything may pass.
        Raises   TableError; the snapshot before stays in force.
        """
        names = {port.name: index for index, port in self._ports.items() if port.kind != "underlay"}
        tables = self._tables(forwarding, names)
        try:
            held = None if policy is None else self._policies.build(policy, names)
            if held is not None:
                raise_for(lib.canal_tables_set_policy(tables, held))
            raise_for(lib.canal_dp_publish(self._open, tables))
        except CanalError:
            lib.canal_tables_free(tables)
            raise
        self._vteps = forwarding.vteps
        self._published = forwarding, names, held
        self.reclaim()

    def prepare(self, policy: Compiled) -> None:
        """Build the parts of a policy that do not depend on ports. thread: any.

        Raises   TableError when it cannot be held.
        """
        self._policies.prepare(policy)

    @staticmethod
    def _tables(forwarding: Forwarding, names: Mapping[str, int]) -> CData:
        """A snapshot that is not published."""
        node, vteps, fib = arrays(forwarding, names)
        out, fault = ffi.new("struct canal_tables **"), new_fault()
        rc = lib.canal_tables_build(
            ffi.from_buffer("struct canal_node *", node),
            ffi.from_buffer("struct canal_vtep[]", vteps),
            len(vteps),
            ffi.from_buffer("struct canal_fib_entry[]", fib),
            len(fib),
            forwarding.generation,
            out,
            fault,
        )
        rows = {lib.CANAL_TABLE_NODE: node, lib.CANAL_TABLE_VTEP: vteps, lib.CANAL_TABLE_FIB: fib}
        raise_for(rc, fault, rows)
        return out[0]

    def reclaim(self) -> int:
        """Free the snapshots that no worker can still see; returns how many remain."""
        return raise_for(lib.canal_dp_reclaim(self._open))

    # asking what is published

    def judge(
        self, flow: FirstPacket, source: str | None, destination: str | None, *, from_host: bool
    ) -> Judged | None:
        """What the policy in force says of a flow's first packet; None: there is none.

        source, destination   the endpoints of ours that are its ends, or None.
        """
        _, names, held = self._published or (None, {}, None)
        if held is None:
            return None
        ways = np.zeros(1, dtype_of("struct canal_way"))
        for end, name in (("source_pod", source), ("destination_pod", destination)):
            ways[end] = lib.CANAL_NO_POD if name is None else names.get(name, lib.CANAL_NO_POD)
        ways["from_host"] = from_host
        return judged_of(judge(held, flow_rows([flow]), ways)[0])

    def route(self, address: Address) -> tuple[str, int | None]:
        """Where the FIB in force sends an address; and the largest packet, where a tunnel limits it."""
        if self._published is None:
            return "none", None
        forwarding, names, _ = self._published
        tables = self._tables(forwarding, names)
        target = np.zeros(1, np.uint32)
        key = ffi.from_buffer("uint8_t[]", np.frombuffer(packed(address), np.uint8))
        try:
            raise_for(lib.canal_fib_lookup(tables, key, 1, ffi.from_buffer("uint32_t[]", target)))
        finally:
            lib.canal_tables_free(tables)
        found, index = int(target[0]), int(target[0]) & lib.CANAL_TARGET_INDEX
        tunnel = found & lib.CANAL_TARGET_KIND == lib.CANAL_TARGET_VTEP
        return self._target(found), forwarding.vteps[index].mtu_bytes if tunnel else None

    # looking in

    def counters(self) -> dict[str, int]:
        """Every counter by name. thread: any."""
        return self._read_counters()[0]

    def drops(self) -> dict[str, int]:
        """Every drop reason by name, but "none". thread: any."""
        return self._read_counters()[1]

    def _read_counters(self) -> tuple[dict[str, int], dict[str, int]]:
        counters, drops = np.zeros(len(COUNTERS), np.uint64), np.zeros(len(DROPS), np.uint64)
        into = (ffi.from_buffer("uint64_t[]", counters), ffi.from_buffer("uint64_t[]", drops))
        raise_for(lib.canal_counters_read(self._open, *into))
        reasons = dict(zip(DROPS, drops.tolist(), strict=True))
        del reasons["none"]
        return dict(zip(COUNTERS, counters.tolist(), strict=True)), reasons

    def errors(self) -> dict[str, int]:
        """System calls of the worker that failed, as "send ENOBUFS". thread: any."""
        counts = np.zeros((len(CALLS), lib.CANAL_ERRNO_MAX), np.uint64)
        raise_for(lib.canal_errors_read(self._open, ffi.from_buffer("uint64_t[]", counts)))
        return {
            f"{CALLS[call]} {errno.errorcode.get(number, number)}": int(counts[call, number])
            for call, number in zip(*(axis.tolist() for axis in counts.nonzero()), strict=True)
        }

    def ports(self) -> list[PortStats]:
        """The ports in use."""
        rows = np.zeros(max(self._ports, default=0) + 1, dtype_of("struct canal_port_stats"))
        raise_for(lib.canal_ports_read(self._open, ffi.from_buffer("struct canal_port_stats[]", rows), len(rows)))
        return [_port_stats(index, port, rows[index]) for index, port in sorted(self._ports.items())]

    def flows(self, since_ms: int = 0, ends: tuple[Address, Address] | None = None) -> Iterator[Flow]:
        """The conntrack table, a block at a time; flows that come and go meanwhile may be missed or met twice.

        since_ms   only those that had a packet after that, on the clock of `notes`.
        ends       only those from the first to the second of these addresses.
        """
        rows, cursor = np.zeros(READ_ROWS, dtype_of("struct canal_flow_info")), ffi.new("uint32_t *")
        while True:
            into = ffi.from_buffer("struct canal_flow_info[]", rows)
            n = raise_for(lib.canal_flows_read(self._open, cursor, into, len(rows)))
            found = rows[:n]
            if since_ms:
                found = found[found["idle_ms"] < max(monotonic_ns() // 1_000_000 - since_ms, 0)]
            if ends is not None:
                wanted = np.frombuffer(b"".join(map(packed, ends)), np.uint8).reshape(2, 16)
                found = found[((found["src"] == wanted[0]) & (found["dst"] == wanted[1])).all(axis=1)]
            for row in found:
                yield flow_of(row, self._target)
            if cursor[0] == 0:
                return

    def notes(self, since_ms: int = 0) -> tuple[list[Note], int]:
        """The flows that policy denied or was asked to log, seen after since_ms; and the time of now. thread: any."""
        rows, now_ms = np.zeros(READ_ROWS, dtype_of("struct canal_note")), ffi.new("uint64_t *")
        into = ffi.from_buffer("struct canal_note[]", rows)
        n = raise_for(lib.canal_notes_read(self._open, since_ms, into, len(rows), now_ms))
        return [note_of(row, self._target) for row in rows[:n]], int(now_ms[0])

    def hits(self, rules: int) -> list[int]:
        """By number of the rule, below `rules`: flows that it let begin, packets that it denied. thread: any.

        Rules beyond DataplaneConfig.rules_max are not counted, and not in the list.
        """
        hits = np.zeros(min(rules, self._rules_max), np.uint64)
        raise_for(lib.canal_hits_read(self._open, 0, ffi.from_buffer("uint64_t[]", hits), len(hits)))
        counts: list[int] = hits.tolist()
        return counts

    def _target(self, target: int) -> str:
        kind, index = target & lib.CANAL_TARGET_KIND, target & lib.CANAL_TARGET_INDEX
        if kind == lib.CANAL_TARGET_PORT:
            port = self._ports.get(index)
            return f"{port.kind} {port.name}".strip() if port else f"port {index}, removed"
        if kind == lib.CANAL_TARGET_VTEP:
            return f"vtep {vtep_key(self._vteps[index])}" if index < len(self._vteps) else f"vtep {index}, removed"
        return "reject" if kind == lib.CANAL_TARGET_REJECT else "none"

    def events(self) -> list[Event]:
        """Everything in the event ring since the last call; `events_fd` is readable when there is something."""
        rows, found = np.zeros(READ_ROWS, dtype_of("struct canal_event")), []
        while True:
            n = raise_for(lib.canal_events_read(self._open, ffi.from_buffer("struct canal_event[]", rows), len(rows)))
            found += [_event(row) for row in rows[:n]]
            if n < len(rows):
                return found

    def status(self) -> Status:
        """thread: any."""
        raw = ffi.new("struct canal_status *")
        raise_for(lib.canal_status_read(self._open, raw))
        return Status(**{name: getattr(raw, name) for name in Status.__dataclass_fields__})

    def check_conservation(self) -> None:
        """At rest, every packet that came in went out, was dropped for one reason, or is held by the worker.

        Raises   AssertionError with the sums.
        """
        counters, drops = self._read_counters()
        came = {name: counters[name] for name in ("rx_pod", "rx_host", "rx_underlay", "originated")}
        went = {name: counters[name] for name in ("tx_pod", "tx_host", "tx_underlay")}
        went["queued"] = self.status().queued
        went |= {f"drop.{name}": count for name, count in drops.items()}
        if sum(came.values()) != sum(went.values()):
            parts = (" + ".join(f"{name} {n}" for name, n in side.items() if n) or "0" for side in (came, went))
            raise AssertionError("packets are not conserved: {} != {}".format(*parts))

    # the worker

    def start(self) -> None:
        """Forward in a thread of its own until `stop`."""
        if self.running:
            raise DataplaneError("the worker runs already")
        self._worker = _Worker(self._open)
        self._worker.start()

    @property
    def running(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    @property
    def worker_error(self) -> str | None:
        """Why the worker returned without having been asked to."""
        return self._worker.error if self._worker else None

    def stop(self, timeout_s: float) -> None:
        """Return when the worker has handed out what it holds and left.

        Raises   DataplaneError when it has not after timeout_s, or had left before because of an error.
        """
        if self._worker is None:
            return
        raise_for(lib.canal_worker_stop(self._open))
        self._worker.join(timeout_s)
        if self._worker.is_alive():
            raise DataplaneError(f"the worker did not stop within {timeout_s} s")
        error, self._worker = self._worker.error, None
        if error is not None:
            raise DataplaneError(f"the worker failed: {error}")

    def close(self) -> None:
        """Free everything but the fds, which are the caller's. The worker must have been stopped."""
        if self._dp is not None:
            raise_for(lib.canal_dp_free(self._dp))
            self._dp = None

    @property
    def _open(self) -> CData:
        if self._dp is None:
            raise DataplaneError("the data plane is closed")
        return self._dp

    # the whole pipeline without I/O

    def process(self, frames: Sequence[Frame], now_ms: int) -> list[Frame]:
        """What the worker would write for these frames at that time; the same code, no system call."""
        data = np.frombuffer(b"".join(frame.data for frame in frames) or b"\0", np.uint8)
        rows = np.zeros(len(frames), dtype_of("struct canal_frame"))
        offset = 0
        for row, frame in zip(rows, frames, strict=True):
            row["port"], row["offset"], row["size"] = frame.port, offset, len(frame.data)
            row["gso_size"], row["tos"] = frame.gso_size, frame.tos
            row["addr"] = np.frombuffer(packed(frame.addr), np.uint8)
            row["port_be"] = htons(frame.udp_port)
            offset += len(frame.data)
        out = np.zeros((1 << 20) + 4 * len(data), np.uint8)
        out_rows = np.zeros(1024 + lib.CANAL_SEGMENTS_MAX * len(frames), rows.dtype)
        n = raise_for(
            lib.canal_process(
                self._open,
                ffi.from_buffer("uint8_t[]", data),
                ffi.from_buffer("struct canal_frame[]", rows),
                len(rows),
                now_ms,
                ffi.from_buffer("uint8_t[]", out),
                len(out),
                ffi.from_buffer("struct canal_frame[]", out_rows),
                len(out_rows),
            )
        )
        return [_frame(row, out) for row in out_rows[:n]]


def isa() -> str:
    """What sums and lookups use on this CPU: avx512, avx2 or scalar."""
    name: str = ffi.string(lib.canal_isa()).decode()
    return name


class _Worker(threading.Thread):
    """One thread inside canal_worker_run; cffi releases the GIL for the whole call."""

    def __init__(self, dp: CData) -> None:
        super().__init__(name="canal-worker-0", daemon=True)
        self._dp = dp
        self.error: str | None = None

    def run(self) -> None:
        fault = new_fault()
        try:
            raise_for(lib.canal_worker_run(self._dp, 0, fault), fault)
        except CanalError as error:
            self.error = str(error)


def _port_stats(index: int, port: _Port, row: Any) -> PortStats:
    names = ("id", "rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "drops", "flows")
    numbers = {name: int(row[name]) for name in names}
    return PortStats(index, port.kind, port.name or port.kind, gso_off=bool(row["gso_off"]), **numbers)


def _event(row: Any) -> Event:
    kind = EVENT_KINDS.get(int(row["kind"]), f"event {row['kind']}")
    return Event(kind, unpacked(row["addr"].tobytes()), int(row["id"]), int(row["value"]), int(row["port"]))


def _frame(row: Any, out: np.ndarray[Any, np.dtype[np.uint8]]) -> Frame:
    data = out[row["offset"] : row["offset"] + row["size"]].tobytes()
    addr = unpacked(row["addr"].tobytes())
    return Frame(int(row["port"]), data, int(row["gso_size"]), int(row["tos"]), addr, ntohs(int(row["port_be"])))
