"""The impairment relay: a switch between the ports of an underlay network that loses, delays, reorders ... frames.

Place      a process of its own in the namespace of a bridge network; the ports leave the bridge while it runs.
           `python -m canal_udp.lab.relay --spec FILE --counts FILE PORT...`; SIGHUP: read the spec anew, SIGTERM: end
Structure  AF_PACKET socket per port ─► learn source MAC ─► Impairer (pure, seeded) ─► port of the destination, or all
Invariants a frame leaves as it came in: the links have no offloads while the relay runs, so frames are whole, at most
           MTU-sized and carry real checksums (`faults.py` sees to it)
Limits     some 50,000 frames/s: Python judges each one; the kernel's own means are used for what they can do
"""

from __future__ import annotations

import argparse
import errno
import json
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from canal_udp.lab.impair import Impairer, Impairment

FRAME_MAX = 65536
BATCH = 64
COUNTS_EVERY_S = 0.5
SOCKET_BUFFER = 32 << 20
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_ETH_P_ALL = 3


class Switch:
    """Where frames go: the port behind which their destination was last seen, or every other port."""

    def __init__(self, ports: int) -> None:
        self.ports = ports
        self.seen: dict[bytes, int] = {}

    def learn(self, port: int, frame: bytes) -> None:
        source = frame[6:12]
        if not source[0] & 1:
            self.seen[source] = port

    def targets(self, port: int, frame: bytes) -> list[int]:
        known = self.seen.get(frame[:6])
        if known is not None and not frame[0] & 1:
            return [known] if known != port else []
        return [other for other in range(self.ports) if other != port]


def open_port(name: str) -> socket.socket:
    """A raw socket that sees every frame that comes in by an interface, and none that we send."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    sock.setblocking(False)
    sock.bind((name, _ETH_P_ALL))
    return sock


class Relay:
    """The loop: read, judge, send what is due, sleep until the next frame or due time."""

    def __init__(self, spec_file: Path, counts_file: Path, ports: list[str]) -> None:
        self.spec_file, self.counts_file = spec_file, counts_file
        self.sockets = [open_port(name) for name in ports]
        self.switch = Switch(len(ports))
        self.impairer = Impairer(self._read_spec())
        self.running = True
        self.reload = False

    def run(self) -> None:
        poller = select.epoll()
        by_fd = {sock.fileno(): port for port, sock in enumerate(self.sockets)}
        for fd in by_fd:
            poller.register(fd, select.EPOLLIN)
        written = 0.0
        while self.running:
            ready = poller.poll(self._sleep_s())
            for fd, _ in ready:
                self._receive(by_fd[fd])
            self._send_due()
            if self.reload:
                self.reload = False
                self._change(self._read_spec())
            if (now := time.monotonic()) - written > COUNTS_EVERY_S:
                written = now
                self._write_counts()
        self._write_counts()

    def _receive(self, port: int) -> None:
        sock, now = self.sockets[port], time.monotonic()
        for _ in range(BATCH):
            try:
                frame = sock.recv(FRAME_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # a link fault: the port comes back, its frames do not
                    raise
                return
            if len(frame) >= 14:
                self.switch.learn(port, frame)
                self.impairer.push(port, frame, now)

    def _send_due(self) -> None:
        for port, frame in self.impairer.due(time.monotonic()):
            for target in self.switch.targets(port, frame):
                try:
                    self.sockets[target].send(frame)
                except OSError as error:
                    reason = "oversize" if error.errno == errno.EMSGSIZE else "send_failed"
                    self.impairer.counts[reason] += 1
                else:
                    self.impairer.counts["sent"] += 1

    def _sleep_s(self) -> float:
        """At most the interval of the counts; epoll rounds up to a millisecond, so what is due sooner is polled for."""
        due = self.impairer.next_due()
        if due is None:
            return COUNTS_EVERY_S
        left = due - time.monotonic()
        return 0.0 if left < 0.001 else min(left, COUNTS_EVERY_S)

    def _change(self, spec: Impairment) -> None:
        """Take a new spec; frames on their way arrive now, counts go on."""
        for port, frame in self.impairer.due(float("inf")):
            for target in self.switch.targets(port, frame):
                self.sockets[target].send(frame)
        counts = self.impairer.counts
        self.impairer = Impairer(spec)
        self.impairer.counts = counts

    def _read_spec(self) -> Impairment:
        return Impairment(**json.loads(self.spec_file.read_text(encoding="utf-8")))

    def _write_counts(self) -> None:
        new = self.counts_file.with_suffix(".new")
        new.write_text(json.dumps(self.impairer.counts), encoding="utf-8")
        new.replace(self.counts_file)


def main() -> int:
    parser = argparse.ArgumentParser(prog="canal-lab-relay")
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("ports", nargs="+")
    arguments = parser.parse_args()
    relay = Relay(arguments.spec, arguments.counts, arguments.ports)

    def on_signal(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            relay.reload = True
        else:
            relay.running = False

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    relay.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
