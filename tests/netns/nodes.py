"""Nodes and pods as network namespaces, with real daemons; nothing of it outlives a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
DEADLINE_S = 10.0


def ip(*words: str, netns: str = "", check: bool = True) -> str:
    """Run iproute2's `ip`, in a namespace if given."""
    command = ["ip", *(["-n", netns] if netns else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def ip_json(*words: str, netns: str = "") -> Any:
    return json.loads(ip("-j", *words, netns=netns) or "[]")


def inside(netns: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside a namespace."""
    return subprocess.run(
        ["ip", "netns", "exec", netns, *command], capture_output=True, text=True, check=False, timeout=60
    )


def until(condition: Callable[[], T], deadline_s: float = DEADLINE_S, what: str = "") -> T:
    """Return the first true value of `condition`; what it said last if the deadline passes."""
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {deadline_s} s: {what or condition} is {found!r}"
        time.sleep(0.02)


class Daemon:
    """`canal daemon` in a node's namespace."""

    def __init__(self, netns: str, directory: Path, flags: Iterable[str]) -> None:
        self.netns, self.directory, self.flags = netns, directory, list(flags)
        self.run_dir, self.state_dir = directory / "run", directory / "state"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, ready: bool = True) -> Daemon:
        self.directory.mkdir(exist_ok=True)
        command = ["ip", "netns", "exec", self.netns, sys.executable, "-m", "canal_udp", "daemon", *self.flags]
        command += ["--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir), *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if ready:
            until(self.is_ready, what=f"{self.netns} ready; log: {self.log}")
        return self

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        done = self.canal("status", "-j")
        return done.returncode == 0 and json.loads(done.stdout)["state"] == "ready"

    def canal(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "canal_udp", *words, "--run-dir", str(self.run_dir)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def ask(self, *words: str) -> Any:
        done = self.canal(*words, "-j")
        assert done.returncode == 0, done.stderr + self.log.read_text()
        return json.loads(done.stdout)

    def attach(self, netns: str, *flags: str) -> str:
        """Attach a pod; returns its IPv4 address."""
        return str(self.ask("attach", netns, *flags)["ips"][0].partition("/")[0])

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status


class Nodes:
    """One test's namespaces. Names begin with the test process's id, so runs do not meet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.namespaces: list[str] = []
        self.daemons: list[Daemon] = []

    def namespace(self, name: str) -> str:
        full = f"ct{os.getpid()}-{name}"
        ip("netns", "add", full)
        self.namespaces.append(full)
        return full

    def pod(self, name: str) -> str:
        return self.namespace(name)

    def underlay(self, *nodes: str) -> None:
        """Join nodes at a bridge in a namespace of its own; node i has 192.168.77.i and fd77::i at eth0."""
        switch = self.namespace("switch")
        ip("link", "add", "br0", "type", "bridge", netns=switch)
        ip("link", "set", "br0", "up", netns=switch)
        for number, node in enumerate(nodes, 1):
            ip("link", "add", "eth0", "netns", node, "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            ip("link", "set", f"port{number}", "master", "br0", "up", netns=switch)
            for device in ("lo", "eth0"):
                ip("link", "set", device, "up", netns=node)
            ip("addr", "add", f"192.168.77.{number}/24", "dev", "eth0", netns=node)
            ip("addr", "add", f"fd77::{number}/64", "dev", "eth0", "nodad", netns=node)

    def daemon(self, netns: str, *flags: str) -> Daemon:
        store = f"sqlite://{self.directory}/store.db"
        common = ["--store", store, "--iface", "eth0", "--node", netns]
        if "--network" not in flags:
            common += ["--network", "10.244.0.0/16"]
        daemon = Daemon(netns, self.directory / netns, [*common, *flags])
        self.daemons.append(daemon)
        return daemon

    def settle(self) -> None:
        """Every packet that a daemon received was delivered, dropped for one reason, or is held."""
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                until(lambda daemon=daemon: daemon.ask("status")["conservation"]["balanced"])  # type: ignore[misc]

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.process is not None:
                daemon.stop(signal.SIGKILL)
        for name in reversed(self.namespaces):
            ip("netns", "del", name, check=False)


def nodes_in(directory: Path) -> Iterator[Nodes]:
    """For a fixture: namespaces that end with the test, however it ends; if it ends well, the packets are counted."""
    found = Nodes(directory)
    try:
        yield found
        found.settle()
    finally:
        found.close()
