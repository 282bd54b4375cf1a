"""Who can talk to whom: many pods asked at once, with real packets, by one process.

Structure  A socket belongs to the namespace in which it was made and can be used from anywhere. So this process makes
           listeners in every place, and askers in the places that ask, and waits for all of them with one selector.

               probe ─► TCP connect, UDP datagram, SCTP INIT, ICMP echo ─► listener, or kernel ─► its name, the mark
Invariants Every round asks from new source ports, so no probe meets the flow of an earlier round.
           `passed` means that the right listener's answer came back; `refused` an RST or an ICMP error; else `silent`.
Limits     a round lasts `timeout_s` if anything is silent in it; TCP takes a descriptor for each probe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from canal_udp.errors import LabError
from canal_udp.lab import probe_wire
from canal_udp.lab.probe_wire import Family
from canal_udp.tunnel.netns import run_inside

Protocol: TypeAlias = Literal["TCP", "UDP", "SCTP", "ICMP"]
Answer: TypeAlias = Literal["passed", "refused", "silent"]
PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP", "SCTP", "ICMP")
TIMEOUT_S = 1.0
AGAIN = 0.4  # of the timeout: what may be lost is sent once more then
_AT_ONCE = 2000  # probes in one round
_MARK_BYTES = 8
_READ_BYTES = 4096
_IP_RECVERR, _IPV6_RECVERR = 11, 25


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """A protocol and port that listeners are on; ICMP has none."""

    protocol: Protocol
    port: int = 0

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" if self.port else self.protocol


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace (path) and its addresses."""

    netns: str
    addresses: tuple[str, ...]

    def of(self, family: Family) -> str | None:
        return next((one for one in self.addresses if (":" in one) == (family == 6)), None)


@dataclass(frozen=True, slots=True, order=True)
class Probe:
    """May this place talk to that one?"""

    source: str
    target: str
    service: Service
    family: Family = 4


def every_pair(
    places: Mapping[str, Place], services: Iterable[Service], families: Sequence[Family] = (4,)
) -> list[Probe]:
    """Everybody to everybody else, in every family that both have."""
    return [
        Probe(source, target, service, family)
        for service in services
        for family in families
        for source in places
        for target in places
        if source != target and places[source].of(family) and places[target].of(family)
    ]


class Probers:
    """Listeners in all places, until the end of the `with`; `ask` sends probes. thread: one."""

    def __init__(self, places: Mapping[str, Place], services: Iterable[Service]) -> None:
        self._places, self._services = dict(places), tuple(dict.fromkeys(services))
        self._selector = selectors.DefaultSelector()
        self._stack = ExitStack()

    def __enter__(self) -> Probers:
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            _raise_limit()
            for name, place in self._places.items():
                for sock, serve in run_inside(place.netns, lambda name=name, place=place: self._listeners(name, place)):  # type: ignore[misc]
                    stack.callback(sock.close)
                    self._selector.register(sock, selectors.EVENT_READ, serve)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, probes: Iterable[Probe], timeout_s: float = TIMEOUT_S) -> dict[Probe, Answer]:
        """Send all probes at once and say what became of each."""
        todo, found = list(dict.fromkeys(probes)), dict[Probe, Answer]()
        for start in range(0, len(todo), _AT_ONCE):
            found |= _Round(self._selector, self._places).run(todo[start : start + _AT_ONCE], timeout_s)
        return found

    # ---- listeners

    def _listeners(self, name: str, place: Place) -> list[tuple[socket.socket, Callable[[], None]]]:
        return [
            _listener(name, address, protocol, {one.port for one in self._services if one.protocol == protocol})
            if protocol == "SCTP"
            else _listener(name, address, protocol, {port})
            for address in place.addresses
            for protocol, port in self._sockets()
        ]

    def _sockets(self) -> list[tuple[Protocol, int]]:
        """One socket for each port, but one for all ports of SCTP, and none for ICMP."""
        return list(
            dict.fromkeys(
                (one.protocol, 0 if one.protocol == "SCTP" else one.port)
                for one in self._services
                if one.protocol != "ICMP"
            )
        )


def _listener(name: str, address: str, protocol: Protocol, ports: set[int]) -> tuple[socket.socket, Callable[[], None]]:
    sock = _socket(address, protocol)
    port = 0 if protocol == "SCTP" else min(ports)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise LabError(f"{name}: cannot listen on {port}/{protocol} at {address}: {error.strerror}") from None
    own = name.encode()
    if protocol == "TCP":
        sock.listen(1024)
        return sock, lambda: _serve_tcp(sock, own)
    if protocol == "UDP":
        return sock, lambda: _serve_udp(sock, own)
    return sock, lambda: _serve_sctp(sock, ports)


def _serve_tcp(sock: socket.socket, own: bytes) -> None:
    with contextlib.suppress(OSError):
        connection, _ = sock.accept()
        with connection:
            connection.send(own)


def _serve_udp(sock: socket.socket, own: bytes) -> None:
    with contextlib.suppress(OSError):
        mark, peer = sock.recvfrom(_READ_BYTES)
        sock.sendto(mark[:_MARK_BYTES] + own, peer)


def _serve_sctp(sock: socket.socket, ports: set[int]) -> None:
    with contextlib.suppress(OSError):
        packet, peer = sock.recvfrom(_READ_BYTES)
        packet = _payload(sock, packet)
        answer = probe_wire.sctp_init_ack(packet) if probe_wire.sctp_port(packet) in ports else None
        if answer is not None:
            sock.sendto(answer, (peer[0], 0))


# ---- asking ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Round:
    """Probes that are on their way together."""

    selector: selectors.BaseSelector
    places: Mapping[str, Place]
    found: dict[Probe, Answer] = field(default_factory=dict)
    marks: dict[bytes, Probe] = field(default_factory=dict)
    sends: list[tuple[Probe, Callable[[], None]]] = field(default_factory=list)  # what is sent once more

    def run(self, probes: list[Probe], timeout_s: float) -> dict[Probe, Answer]:
        with ExitStack() as stack:
            for group, some in _grouped(probes):
                source, family, protocol = group
                for sock, part in self._askers(source, family, protocol, some):
                    stack.callback(self._forget, sock)
                    self._begin(sock, family, protocol, part)
            self._wait(len(probes), timeout_s)
        return {probe: self.found.get(probe, "silent") for probe in probes}

    def _askers(
        self, source: str, family: Family, protocol: Protocol, probes: list[Probe]
    ) -> Iterator[tuple[socket.socket, list[Probe]]]:
        """A socket for each TCP probe, one for all others of a place."""
        place = self.places[source]
        address = place.of(family)
        if address is None:
            raise LabError(f"{source} has no IPv{family} address")
        parts = [[probe] for probe in probes] if protocol == "TCP" else [probes]
        made = run_inside(place.netns, lambda: [_socket(address, protocol) for _ in parts])
        return zip(made, parts, strict=True)

    def _forget(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(sock)
        sock.close()

    def _begin(self, sock: socket.socket, family: Family, protocol: Protocol, probes: list[Probe]) -> None:
        if protocol == "TCP":
            self._connect(sock, probes[0])
            return
        level, option = (socket.IPPROTO_IPV6, _IPV6_RECVERR) if family == 6 else (socket.IPPROTO_IP, _IP_RECVERR)
        sock.setsockopt(level, option, 1)
        self.selector.register(sock, selectors.EVENT_READ, lambda: self._read(sock, family, protocol))
        for probe in probes:
            packet = self._packet(probe)
            peer = (self._address(probe), probe.service.port if protocol == "UDP" else 0)
            self.sends.append((probe, partial(_send, sock, packet, peer, self._read_errors)))
        for _, send in self.sends[-len(probes) :]:
            send()

    def _address(self, probe: Probe) -> str:
        address = self.places[probe.target].of(probe.family)
        if address is None:
            raise LabError(f"{probe.target} has no IPv{probe.family} address")
        return address

    def _packet(self, probe: Probe) -> bytes:
        mark = os.urandom(_MARK_BYTES)
        if probe.service.protocol == "SCTP":
            mark = mark[:4]
            self.marks[mark] = probe
            sport = 1024 + int.from_bytes(mark[:2], "big") % 64000
            return probe_wire.sctp_init(sport, probe.service.port, int.from_bytes(mark, "big"))
        self.marks[mark] = probe
        return probe_wire.echo_request(probe.family, mark) if probe.service.protocol == "ICMP" else mark

    # TCP

    def _connect(self, sock: socket.socket, probe: Probe) -> None:
        code = sock.connect_ex((self._address(probe), probe.service.port))
        if code not in (0, errno.EINPROGRESS):
            self.found[probe] = "refused"
            return
        self.selector.register(sock, selectors.EVENT_READ, lambda: self._greeted(sock, probe))

    def _greeted(self, sock: socket.socket, probe: Probe) -> None:
        self.selector.unregister(sock)
        try:
            name = sock.recv(_READ_BYTES)
        except OSError as error:
            self.found[probe] = "silent" if error.errno == errno.ETIMEDOUT else "refused"
            return
        if name == probe.target.encode():
            self.found[probe] = "passed"

    # the others

    def _read(self, sock: socket.socket, family: Family, protocol: Protocol) -> None:
        try:
            packet = _payload(sock, sock.recv(_READ_BYTES))
        except OSError:
            self._read_errors(sock)
            return
        if protocol == "UDP":
            probe = self.marks.get(packet[:_MARK_BYTES])
            if probe is not None and packet[_MARK_BYTES:] == probe.target.encode():
                self.found[probe] = "passed"
        elif protocol == "SCTP":
            self._answered(_sctp_mark(packet))
        elif probe_wire.is_echo_reply(family, packet):
            self._answered(probe_wire.echo_mark(family, packet))

    def _answered(self, mark: bytes | None) -> None:
        if mark in self.marks:
            self.found[self.marks[mark]] = "passed"

    def _read_errors(self, sock: socket.socket) -> None:
        """Every error that came back quotes the packet that it is about."""
        while True:
            try:
                quoted, *_ = sock.recvmsg(_READ_BYTES, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            for mark in (quoted[:_MARK_BYTES], _sctp_mark(quoted), quoted[8 : 8 + _MARK_BYTES]):
                if mark in self.marks:
                    self.found.setdefault(self.marks[mark], "refused")

    # waiting

    def _wait(self, count: int, timeout_s: float) -> None:
        began = time.monotonic()
        again = began + AGAIN * timeout_s
        while len(self.found) < count and (now := time.monotonic()) < began + timeout_s:
            if now >= again:
                self._send_again()
                again = began + timeout_s
            for key, _ in self.selector.select(max(min(again, began + timeout_s) - now, 0)):
                key.data()

    def _send_again(self) -> None:
        for probe, send in self.sends:
            if probe not in self.found:
                send()


def _send(
    sock: socket.socket, packet: bytes, peer: tuple[str, int], read_errors: Callable[[socket.socket], None]
) -> None:
    for _ in range(3):  # an error of an earlier packet is told to the next call
        try:
            sock.sendto(packet, peer)
        except OSError:
            read_errors(sock)
        else:
            return


def _grouped(probes: list[Probe]) -> Iterable[tuple[tuple[str, Family, Protocol], list[Probe]]]:
    groups: dict[tuple[str, Family, Protocol], list[Probe]] = {}
    for probe in probes:
        groups.setdefault((probe.source, probe.family, probe.service.protocol), []).append(probe)
    return groups.items()


_KINDS: dict[Protocol, tuple[int, int, int]] = {
    "TCP": (socket.SOCK_STREAM, 0, 0),
    "UDP": (socket.SOCK_DGRAM, 0, 0),
    "SCTP": (socket.SOCK_RAW, probe_wire.SCTP, probe_wire.SCTP),
    "ICMP": (socket.SOCK_RAW, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6),
}


def _socket(address: str, protocol: Protocol) -> socket.socket:
    kind, number4, number6 = _KINDS[protocol]
    family, number = (socket.AF_INET6, number6) if ":" in address else (socket.AF_INET, number4)
    try:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
    except PermissionError:
        raise LabError("probes need raw sockets: run as root") from None


def _payload(sock: socket.socket, packet: bytes) -> bytes:
    raw4 = sock.family == socket.AF_INET and sock.type == socket.SOCK_RAW
    return probe_wire.without_ip(packet) if raw4 else packet


def _sctp_mark(packet: bytes) -> bytes | None:
    mark = probe_wire.sctp_mark(packet)
    return None if mark is None else mark.to_bytes(4, "big")


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
