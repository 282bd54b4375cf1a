"""Real nodes, real pods, real packets: a lab, and what tests need to send, to watch and to settle accounts.

Structure  `laboratory(text)` brings a lab up, yields a Bed and proves that nothing of it is left.
           A socket belongs to the namespace of the thread that made it, so a test holds both ends of a conversation:
           `bed.sock("p", ...)` is a socket inside pod p.
Invariant  `bed.settle()` ends every test: what a daemon received is what it delivered plus what it dropped, by reason.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from canal_udp.api import call
from canal_udp.lab import host, run
from canal_udp.lab.model import Lab, parse_lab
from canal_udp.lab.plan import netns
from canal_udp.lab.processes import Process
from canal_udp.lab.state import LabState
from canal_udp.lab.traffic import transfer
from canal_udp.tunnel.netns import run_inside

T = TypeVar("T")
UDP_SEGMENT, VXLAN_PORT = 103, 8472
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO, IP_RECVTOS = 10, 0, 2, 13
IPV6_MTU_DISCOVER = 23
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
ETH_P_ALL, PACKET_OUTGOING = 0x0003, 4
TIMEOUT_S = 5.0
SETTLE_S = 20.0


@dataclass
class Bed:
    """A lab that is up."""

    lab: Lab
    state: LabState

    def space(self, member: str) -> str:
        return netns(self.lab, member)

    def inside(self, member: str, work: Callable[[], T]) -> T:
        return run_inside(host.netns_path(self.space(member)), work)

    def run(self, member: str, command: str, stdin: str = "") -> str:
        """Run a program inside a namespace; LabError if it fails."""
        return host.run(command.split(), stdin, self.space(member))

    def ip(self, pod: str, family: int = 4) -> str:
        return next(ip for ip in self.state.pods()[pod].ips if (":" in ip) == (family == 6))

    # ---- talking

    def sock(self, member: str, family: int = 4, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
        """A socket inside a namespace, with a timeout."""
        made = self.inside(
            member, lambda: socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind, proto)
        )
        made.settimeout(TIMEOUT_S)
        return made

    def receiver(self, pod: str, family: int = 4, buffer_bytes: int = 32 << 20) -> socket.socket:
        """A UDP socket bound to a pod's address, whose queue is never the reason of a loss."""
        made = self.sock(pod, family)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        made.bind((self.ip(pod, family), 0))
        return made

    @contextmanager
    def stream(self, source: str, target: str, family: int = 4) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of a TCP connection between two pods."""
        with self.sock(target, family, socket.SOCK_STREAM) as listener:
            listener.bind((self.ip(target, family), 0))
            listener.listen()
            with self.sock(source, family, socket.SOCK_STREAM) as client:
                client.connect(listener.getsockname()[:2])
                server, _ = listener.accept()
                with server:
                    server.settimeout(TIMEOUT_S)
                    yield client, server

    def transfer(self, source: str, target: str, size_bytes: int, family: int = 4) -> float:
        """Send seeded data over TCP; the digests of both ends are equal. Returns seconds."""
        result = transfer(self.space(source), self.space(target), self.ip(target, family), size_bytes)
        assert result.equal, f"{source} -> {target}: the bytes that arrived are not those that were sent"
        return result.seconds

    # ---- watching

    def status(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = call(self.state.run_dir(node), "status", timeout_s=TIMEOUT_S)
        return found

    def counter(self, node: str, name: str) -> int:
        return int(self.status(node)["counters"][name])

    def drops(self, node: str) -> dict[str, int]:
        return {reason: count for reason, count in self.status(node)["drops"].items() if count}

    def process(self, node: str) -> Process:
        return self.state.processes()["daemon", node]

    @contextmanager
    def stopped(self, node: str) -> Iterator[None]:
        """The daemon of a node stands still meanwhile."""
        self.process(node).signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process(node).signal(signal.SIGCONT)

    def nstat(self, member: str, name: str) -> int:
        """A counter of a namespace's own stack, for example TcpExtTCPOFOQueue."""
        lines = self.run(member, "nstat -asz").splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == name)

    def disorder(self, source: str, target: str, send: Callable[[], object]) -> tuple[int, int]:
        """While `send` runs: how many segments reached a pod before an earlier one, how many were lost on the way."""
        names = (target, "TcpExtTCPOFOQueue"), (source, "TcpRetransSegs"), (source, "TcpExtTCPDSACKRecvSegs")
        before = [self.nstat(*name) for name in names]
        send()
        late, sent_again, arrived_twice = (self.nstat(*name) - old for name, old in zip(names, before, strict=True))
        return late, sent_again - arrived_twice

    def capture(self, member: str, device: str, outgoing: bool = True, vnet: bool = False) -> Capture:
        """What leaves (or comes in by) a device from now on, after the kernel segmented it."""
        return self.inside(member, lambda: Capture(device, outgoing, vnet))

    # ---- accounts

    def nodes(self) -> list[str]:
        return [node.name for node in self.lab.nodes.values() if node.kind == "canal"]

    def settle(self) -> None:
        """Assert the conservation law of every node as soon as its packets have come to rest."""
        for node in self.nodes():
            wait(partial(self._balanced, node), partial(self._accounts, node))

    def _accounts(self, node: str) -> str:
        return f"{node}: {self.status(node)['conservation']}"

    def _balanced(self, node: str) -> bool:
        return bool(self.status(node)["conservation"]["balanced"])

    @contextmanager
    def dropping(self, node: str, **wanted: int) -> Iterator[None]:
        """Exactly these packets are dropped meanwhile; link-local chatter (martian) does not count."""
        before = self.drops(node)
        yield
        self.settle()
        after = self.drops(node)
        found = {reason: count - before.get(reason, 0) for reason, count in after.items()}
        assert {r: n for r, n in found.items() if n and r != "martian"} == wanted


class Capture:
    """A packet socket: frames from the Ethernet or, on a TUN, from the IP header on, in order."""

    def __init__(self, device: str, outgoing: bool, vnet: bool) -> None:
        self._outgoing = outgoing
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        if vnet:
            self._socket.setsockopt(SOL_PACKET, 15, 1)  # PACKET_VNET_HDR
        self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def frames(self) -> list[bytes]:
        """Everything since the last call; fails if the kernel could not keep up."""
        found: list[bytes] = []
        while True:
            try:
                frame, (_, _, kind, _, _) = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                break
            if (kind == PACKET_OUTGOING) == self._outgoing:
                found.append(frame)
        _, lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert lost == 0, f"the capture lost {lost} frames"
        return found


def vxlan_inner(frame: bytes) -> bytes:
    """The inner packet of an underlay frame; empty if it is no VXLAN."""
    udp = 34 if frame[12:14] == b"\x08\x00" else 54
    if frame[23 if udp == 34 else 20] != socket.IPPROTO_UDP or frame[udp + 2 : udp + 4] != VXLAN_PORT.to_bytes(
        2, "big"
    ):
        return b""
    return frame[udp + 30 :]


def wait(condition: Callable[[], object], describe: Callable[[], str] = str, timeout_s: float = SETTLE_S) -> None:
    """Until the condition holds; fails with the description."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.02)


def drain(receiver: socket.socket, count: int, timeout_s: float = TIMEOUT_S) -> list[bytes]:
    """Up to `count` datagrams, fewer when none comes for the timeout."""
    receiver.settimeout(timeout_s)
    found: list[bytes] = []
    try:
        while len(found) < count:
            found.append(receiver.recv(65536))
    except TimeoutError:
        pass  # the caller compares
    return found


@contextmanager
def laboratory(text: str, name: str, folder: Path) -> Iterator[Bed]:
    """Bring a lab up, take it down, and prove that no namespace, process, interface or file of it is left."""
    interfaces = _own_interfaces()
    before, os.environ["CANAL_LAB_DIR"] = os.environ.get("CANAL_LAB_DIR"), str(folder)
    name = f"{name}-{os.getpid()}"
    try:
        lab = parse_lab(text, "<test>", name)
        state = run.up(lab, text)
        try:
            yield Bed(lab, state)
        finally:
            run.down(state)
        assert not [space for space in run.existing_namespaces() if space.startswith(f"{name}-")]
        assert not _processes_of(name)
        assert not (folder / name).exists()
        assert _own_interfaces() == interfaces
    finally:
        if before is None:
            del os.environ["CANAL_LAB_DIR"]
        else:
            os.environ["CANAL_LAB_DIR"] = before


def _own_interfaces() -> set[str]:
    """Those of this namespace whose names could be a lab's."""
    ours = ("eth", "canal", "flannel", "cni", "to-", "br")
    return {name for _, name in socket.if_nameindex() if name.startswith(ours)}


def _processes_of(name: str) -> list[str]:
    """Processes that the lab started, whatever namespace they live in."""
    found: list[bytes] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"CANAL_LAB={name}\0".encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except (OSError, ProcessLookupError):
            continue  # it ended while we looked
    return found
