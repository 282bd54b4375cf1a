"""Traffic between namespaces: who answers whom, how fast, and whether what arrives is what was sent."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from canal_udp.errors import LabError
from canal_udp.lab.host import PACKAGES, netns_path
from canal_udp.lab.plan import CONGESTION_CONTROL
from canal_udp.tunnel.netns import run_inside

PARALLEL_PINGS = 8
START_TIMEOUT_S = 5.0
INTERVAL_S = 0.5
OVERTIME_S = 15.0  # after which a test that should have ended does not go on
_INTERVAL = re.compile(r"\[ *\d+\] +([\d.]+)-([\d.]+) +sec +[\d.]+ \w?Bytes +([\d.]+) Mbits/sec")
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Throughput:
    bits_per_s: float
    retransmits: int


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of a running iperf3."""

    start_s: float
    end_s: float
    bits_per_s: float


@dataclass(frozen=True, slots=True)
class Transfer:
    size_bytes: int
    seconds: float
    equal: bool  # both ends have the same digest of all bytes


def ping(space: str, address: str, timeout_s: int = 2) -> bool:
    """Does one echo come back?"""
    argv = ["ping", "-n", "-q", "-c", "1", "-W", str(timeout_s), address]
    process = _start(space, argv)
    process.communicate()
    return process.returncode == 0


def ping_all(pairs: Sequence[tuple[str, str]], timeout_s: int = 2) -> list[bool]:
    """One echo for each (namespace, address), several at a time."""
    with ThreadPoolExecutor(PARALLEL_PINGS) as pool:
        return list(pool.map(lambda pair: ping(pair[0], pair[1], timeout_s), pairs))


def throughput(source: str, target: str, address: str, seconds: int, streams: int = 1) -> Throughput:
    """iperf3 over TCP from one namespace to an address in another. Raises LabError."""
    with _iperf_server(target, address) as port:
        client = _start(source, [*_client(address, port, seconds, streams), "-J"])
        with _deadline(client, seconds + OVERTIME_S):
            output, _ = client.communicate()
    result = json.loads(output or "{}")
    if "error" in result or "end" not in result:
        raise LabError(f"iperf3 from {source} to {address}: {result.get('error', f'exit {client.returncode}')}")
    sent, received = result["end"]["sum_sent"], result["end"]["sum_received"]
    return Throughput(received["bits_per_second"], sent.get("retransmits", 0))


def load(source: str, target: str, address: str, seconds: int) -> Iterator[Interval]:
    """iperf3 as it runs, an interval at a time. Raises LabError when the connection did not live to the end."""
    with _iperf_server(target, address) as port:
        argv = [*_client(address, port, seconds, 1), "-i", str(INTERVAL_S), "--forceflush", "-f", "m"]
        client = _start(source, argv)
        try:
            for line in _until(client, seconds + OVERTIME_S):
                if match := _INTERVAL.match(line):
                    interval = Interval(float(match[1]), float(match[2]), float(match[3]) * 1e6)
                    if interval.end_s - interval.start_s < 2 * INTERVAL_S:  # not the sums at the end
                        yield interval
            if client.wait() != 0:
                raise LabError(f"iperf3 from {source} to {address}: {_errors(client) or f'exit {client.returncode}'}")
        finally:
            _stop(client)


def transfer(source: str, target: str, address: str, size_bytes: int, seed: int = 1) -> Transfer:
    """Send seeded data over TCP and compare the digests of both ends. Raises LabError when the connection breaks."""
    program = [sys.executable, "-m", "canal_udp.lab.transfer"]
    receiver = _start(target, [*program, "receive", address])
    try:
        port = json.loads(next(_lines(receiver), "{}")).get("port")
        if port is None:
            raise LabError(f"the receiver in {target} does not start: {_errors(receiver)}")
        sender = _start(source, [*program, "send", address, str(port), str(size_bytes), str(seed)])
        try:
            output, errors = sender.communicate()
            if sender.returncode != 0:
                raise LabError(f"transfer from {source} to {address}: {_last_line(errors)}")
            sent = json.loads(output)
            received = json.loads(next(_lines(receiver), "{}"))
        finally:
            _stop(sender)
    finally:
        _stop(receiver)
    equal = sent["sha256"] == received.get("sha256") and received.get("bytes") == size_bytes
    return Transfer(size_bytes, sent["seconds"], equal)


def _client(address: str, port: int, seconds: int, streams: int) -> list[str]:
    return ["iperf3", "-c", address, "-p", str(port), "-t", str(seconds), "-P", str(streams), "-C", CONGESTION_CONTROL]


@contextmanager
def _iperf_server(space: str, address: str) -> Iterator[int]:
    """A server for one test on a free port."""
    port = run_inside(netns_path(space), lambda: _free_port(address))
    server = _start(space, ["iperf3", "-s", "-1", "-B", address, "-p", str(port)])
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(server.pid, port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"the iperf3 server in {space} does not start: {_errors(server)}")
            time.sleep(0.01)
        yield port
    finally:
        _stop(server)


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port


def _listens(pid: int, port: int) -> bool:
    """Does anyone listen on a port in the namespace of a process?"""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except (FileNotFoundError, OSError):
            return False
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def _start(space: str, argv: Sequence[str]) -> subprocess.Popen[str]:
    def work() -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    try:
        return run_inside(netns_path(space), work)
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed: apt-get install {PACKAGES.get(argv[0], argv[0])}") from None


@contextmanager
def _deadline(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """End a process that does not end by itself: a TCP connection without an answer lives for a quarter of an hour."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _until(process: subprocess.Popen[str], seconds: float) -> Iterator[str]:
    with _deadline(process, seconds):
        yield from _lines(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process if it still runs and take in what is left of it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    stream: IO[str] | None = process.stdout
    return iter(stream) if stream is not None else iter(())


def _errors(process: subprocess.Popen[str]) -> str:
    """What a process said before it failed; ends it first, so that this cannot block."""
    if process.poll() is None:
        process.terminate()
    output, errors = process.communicate()
    return _last_line(errors or output)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it says nothing"
