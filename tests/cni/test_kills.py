"""The daemon or canal-cni is killed at every system call of ADD and DEL in turn; DEL or GC leaves nothing of a pod.

Structure  A first run under strace says which system calls there are, and how often a thread makes each; then a run per
           call and number. `make test` takes CNI_KILLS (8) of them, evenly; `make test-cni` a thousand.
"""

from __future__ import annotations

import collections
import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from canal_udp.api import call
from canal_udp.cni.install import OURS
from canal_udp.errors import CanalError
from tests.netns.nodes import Daemon, Nodes, ip_json, nodes_in, until

KILLS = int(os.environ.get("CNI_KILLS", "8"))
SEED = 20261125
CONFIG = {"cniVersion": "1.1.0", "name": "canal", "type": "canal-cni"}
# what the worker and idle threads do all the time, and what changes nothing
DULL = {"futex", "epoll_pwait", "epoll_wait", "restart_syscall", "exit", "recvmmsg", "readv", "rt_sigreturn", "poll"}
Point = tuple[str, str, int]  # command, system call, its number within one thread


class Bench:
    """One node, one pod."""

    def __init__(self, daemon: Daemon, pod: str) -> None:
        self.daemon, self.pod = daemon, pod
        self.start()

    def start(self) -> None:
        self.daemon.start(ready=False)
        until(self._ready, 30, "the daemon is ready")

    def _ready(self) -> bool:
        try:
            return bool(call(self.daemon.run_dir, "status")["state"] == "ready")
        except CanalError:
            return False

    def files(self) -> list[str]:
        """Files that were half written, and DELs that wait."""
        found = [path for folder in (self.daemon.run_dir, self.daemon.state_dir) for path in folder.rglob("*")]
        return sorted(str(path) for path in found if path.name.startswith(".") or path.parent.name == "cni-spool")

    def command(self, name: str, *prefix: str, **more: Any) -> tuple[int, str]:
        environ = {
            "CNI_COMMAND": name,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": f"/run/netns/{self.pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CANAL_RUN_DIR": str(self.daemon.run_dir),
        }
        words = [*prefix, str(OURS)]
        text = json.dumps(CONFIG | more)
        done = subprocess.run(words, input=text, capture_output=True, text=True, env=environ, check=False, timeout=60)
        return done.returncode, done.stdout

    @contextmanager
    def traced(self, *words: str) -> Iterator[Path]:
        """The daemon, with all of its threads, under strace."""
        assert self.daemon.process is not None
        pid = int((self.daemon.run_dir / "daemon.lock").read_text())
        output = self.daemon.directory / "strace"
        output.unlink(missing_ok=True)
        command = ["strace", "-f", "-q", *words, "-o", str(output), "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            tasks = Path(f"/proc/{pid}/task")
            until(lambda: all("TracerPid:\t0\n" not in (one / "status").read_text() for one in tasks.iterdir()))
            yield output
        finally:
            tracer.terminate()
            try:
                tracer.wait(2)
            except subprocess.TimeoutExpired:  # it waits for threads that were killed
                tracer.kill()
                tracer.wait()

    def revive(self) -> bool:
        """Start the daemon again if it was killed."""
        assert self.daemon.process is not None
        try:
            self.daemon.process.wait(0.3 if self._ready() else 10)
        except subprocess.TimeoutExpired:
            return False
        assert self.daemon.process.returncode == -signal.SIGKILL, self.daemon.log.read_text()[-2000:]
        self.daemon.process = None
        self.start()
        return True

    def traces(self) -> list[str]:
        """Everything that is left of the pod."""
        ipam = self.daemon.state_dir / "ipam.json"
        names = json.loads(ipam.read_text())["names"] if ipam.exists() else {}
        routes = {route["dst"] for route in ip_json("route", netns=self.daemon.netns) if route["dev"] == "canal0"}
        found = [f"link {link['ifname']}" for link in ip_json("link", netns=self.pod) if link["ifname"] != "lo"]
        found += [f"endpoint {row['name']}" for row in call(self.daemon.run_dir, "endpoints")]
        found += [f"address of {name}" for name in names]
        found += [f"route {route}" for route in routes - {"10.244.0.0/16"}]
        return found + self.files()

    def remove(self, by: str) -> list[str]:
        """What is left after a DEL or GC."""
        more = {"cni.dev/valid-attachments": []} if by == "GC" else {}
        assert self.command(by, **more) == (0, "")
        return self.traces()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    nodes: Nodes
    for nodes in nodes_in(tmp_path):
        name = nodes.namespace("n1")
        nodes.underlay(name)
        bench = Bench(nodes.daemon(name, "--encap", "vxlan", "--mtu-probe-s", "0"), nodes.pod("a"))
        yield bench


def points(bench: Bench, command: str) -> list[Point]:
    """Every system call of a command, with the largest number of them that one thread makes."""
    if command == "DEL":
        assert bench.command("ADD")[0] == 0
    with bench.traced() as output:
        assert bench.command(command)[0] == 0
    per_thread = collections.Counter(re.findall(r"^(\d+) +([a-z0-9_]+)\(", output.read_text(), re.MULTILINE))
    most: dict[str, int] = {}
    for (_, name), count in per_thread.items():
        most[name] = max(most.get(name, 0), count)
    bench.command("DEL")
    return [(command, name, k) for name in sorted(most.keys() - DULL) for k in range(1, most[name] + 1)]


def check_answer(command: str, answer: tuple[int, str]) -> None:
    """A runtime understands it, whatever happened."""
    status, out = answer
    if command == "DEL":
        assert answer == (0, "")
    elif status:
        assert json.loads(out)["code"] == 11
    else:
        assert json.loads(out)["ips"]


@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_killed_daemon(bench: Bench) -> None:
    every = [*points(bench, "ADD"), *points(bench, "DEL")]
    random.Random(SEED).shuffle(every)
    chosen = [every[number % len(every)] for number in range(KILLS)]
    killed = 0
    for number, (command, name, k) in enumerate(chosen):
        if command == "DEL":
            assert bench.command("ADD")[0] == 0
        with bench.traced("-e", f"inject={name}:signal=SIGKILL:when={k}"):
            check_answer(command, bench.command(command))
        killed += bench.revive()
        left = bench.remove("GC" if number % 2 else "DEL")
        assert left == [], f"killed at {name} number {k} of {command}, then {'GC' if number % 2 else 'DEL'}"
    print(f"\n{killed} of {len(chosen)} runs killed the daemon; {len(every)} points")
    assert killed > len(chosen) // 2


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("away", [False, True], ids=["with the daemon", "without the daemon"])
def test_a_killed_executable(bench: Bench, command: str, away: bool) -> None:
    """Also while it keeps a DEL for later."""
    if away:
        bench.daemon.stop(signal.SIGKILL)
    survived = 0
    for number in range(1, 100):
        if command == "DEL" and not away:
            bench.command("ADD")
        tracer = ["strace", "-q", "-e", f"inject=all:signal=SIGKILL:when={number}", "-o", "/dev/null"]
        status, _ = bench.command(command, *tracer)
        if status in {0, 1}:
            survived += 1
            if survived == 2:
                break
        if not away:
            until(lambda: bench.remove("DEL") == [] or None)
    assert survived == 2, "it makes fewer system calls than that"
    if away:
        bench.start()
        assert bench.remove("DEL") == []
