"""What the lab tests share: `canal lab` as a user calls it, and what a lab may not leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETNS_DIR = Path("/run/netns")
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
DEADLINE_S = 30.0


def canal(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `canal WORDS`; with `check` it has to succeed."""
    done = subprocess.run([sys.executable, "-m", "canal_udp", *words], capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "canal_udp", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(what: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {why}"
        time.sleep(0.005)


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def processes_of(marker: str) -> list[str]:
    """Command lines that name a lab's folder or one of its namespaces."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, UnicodeDecodeError):
            continue
        if entry.name.isdigit() and int(entry.name) != os.getpid() and marker in line:
            found.append(line)
    return found


@dataclass(frozen=True)
class Lab:
    """A lab of this test session by name; the folder of all labs is the test's own."""

    name: str
    root: Path
    machine: tuple[str, ...] = field(default_factory=lambda: machine())

    @property
    def path(self) -> Path:
        return self.root / self.name

    def up(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return canal("lab", "up", *words, "--name", self.name, check=check)

    def down(self) -> None:
        canal("lab", "down", self.name)

    def exec(self, member: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return canal("lab", "exec", "--lab", self.name, member, "--", *argv, check=check)

    def fault(self, *words: str) -> str:
        return canal("lab", "fault", "--lab", self.name, *words).stdout

    def ps(self) -> dict[str, Any]:
        described: list[dict[str, Any]] = json.loads(canal("lab", "ps", self.name, "-j").stdout)
        return described[0]

    def ip(self, pod: str, family: int = 4) -> str:
        (found,) = (item for item in self.ps()["pods"] if item["name"] == pod)
        return next(ip for ip in found["ips"] if (":" in ip) == (family == 6))

    def ping(self, source: str, address: str, *words: str) -> bool:
        return self.exec(source, "ping", "-n", "-c1", "-W1", *words, address, check=False).returncode == 0

    def namespaces(self) -> list[str]:
        return [path.name for path in NETNS_DIR.glob(f"{self.name}-*")] if NETNS_DIR.exists() else []

    def journal(self) -> str:
        try:
            return (self.path / "journal.jsonl").read_text()
        except FileNotFoundError:
            return ""

    def assert_nothing_left(self) -> None:
        assert self.namespaces() == []
        assert not self.path.exists()
        wait_until(lambda: not processes_of(f"{self.root}/{self.name}/"), "processes of the lab are gone")
        assert processes_of(f"{self.name}-") == []
        assert not [line for line in Path("/proc/mounts").read_text().splitlines() if f"{self.name}-" in line]
        wait_until(lambda: machine() == self.machine, "the machine is as before")  # another lab may be coming up


def machine() -> tuple[str, ...]:
    """The machine's own namespace, which labs do not touch."""
    allowed = ALLOWED.read_text() if ALLOWED.exists() else ""
    links = [line.split(":")[1] for line in output("ip", "-o", "link").splitlines()]
    return (*links, output("ip", "route"), output("ip", "rule"), output("nft", "list", "ruleset"), allowed)
