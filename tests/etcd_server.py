"""Real etcd servers for tests: on loopback, each in a folder of its own, gone with the test."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from canal_udp.control.etcd import EtcdStore
from canal_udp.control.etcd_url import parse
from canal_udp.tunnel.netns import run_inside

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 15.0
MISSING = "there is no etcd: tools/install-deps test, or tools/get-etcd"


def binaries() -> dict[str, str]:
    """Every etcd to test against by its version: what tools/get-etcd got, else that of the machine."""
    got = {path.parents[2].name: str(path) for path in sorted(ROOT.glob("build/etcd/*/usr/bin/etcd"))}
    installed = shutil.which("etcd")
    return got or ({"installed": installed} if installed else {})


def any_binary() -> str:
    found = binaries()
    assert found, MISSING
    return next(iter(found.values()))


class Etcd:
    """One server, a cluster of its own."""

    def __init__(self, folder: Path, binary: str = "", flags: Mapping[str, str] | None = None) -> None:
        self.folder, self.binary, self.flags = folder, binary or any_binary(), dict(flags or {})
        self.host = "127.0.0.1"
        self.port, self._peer_port = free_ports(2)
        self.scheme = "http"
        self.command: tuple[str, ...] = ()  # before etcd's own, for example to enter a namespace
        self.netns = ""  # where `ask` has to be asked
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"etcd://{self.host}:{self.port}"

    def start(self) -> Etcd:
        peer = f"http://127.0.0.1:{self._peer_port}"
        client = f"{self.scheme}://{self.host}:{self.port}"
        flags = {
            "name": "n",
            "data-dir": str(self.folder / "data"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"n={peer}",
            "unsafe-no-fsync": "true",
            **self.flags,
        }
        words = [*self.command, self.binary, *(f"--{name}={value}" for name, value in flags.items())]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            logged = log.tell()
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "2"})
        self._await_ready(logged)
        return self

    def _await_ready(self, logged: int) -> None:
        """Wait until it says that it serves; `logged` bytes of its log are of earlier runs."""
        assert self.process is not None
        log, end = self.folder / "log", time.monotonic() + DEADLINE_S
        while b"serving" not in (news := log.read_bytes()[logged:]):
            assert self.process.poll() is None, f"etcd ended: {news[-2000:]!r}"
            assert time.monotonic() < end, f"etcd is not ready: {news[-2000:]!r}"
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9; what it had is there at the next start."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def ask(self, path: str, token: str = "", **fields: object) -> Any:
        """Call etcd through its JSON gateway: bytes become base64, as it wants them."""
        body = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in fields.items()
        }
        request = urllib.request.Request(f"http://{self.host}:{self.port}/v3/{path}", json.dumps(body).encode())
        if token:
            request.add_header("Authorization", token)
        try:
            return run_inside(f"/run/netns/{self.netns}" if self.netns else None, lambda: _fetched(request))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"etcd: {path}: {error.read().decode(errors='replace')}") from None

    def compact(self) -> None:
        """Forget how the present state came about."""
        revision = self.ask("kv/range", key=b"none")["header"]["revision"]
        with contextlib.suppress(AssertionError):  # nothing to forget
            self.ask("kv/compaction", revision=revision, physical=True)

    def keys(self, prefix: str) -> dict[str, bytes]:
        """All keys of a prefix with their values."""
        return {
            base64.b64decode(kv["key"]).decode(errors="replace"): base64.b64decode(kv.get("value", ""))
            for kv in self._kvs(prefix)
        }

    def leases(self, prefix: str) -> set[int]:
        """The leases that hold keys of a prefix."""
        return {int(kv["lease"]) for kv in self._kvs(prefix) if "lease" in kv}

    def _kvs(self, prefix: str) -> list[dict[str, str]]:
        end = prefix[:-1].encode() + bytes([ord(prefix[-1]) + 1])
        found: list[dict[str, str]] = self.ask("kv/range", key=prefix.encode(), range_end=end).get("kvs", [])
        return found

    def store(self, prefix: str = "", environ: Mapping[str, str] | None = None, query: str = "") -> EtcdStore:
        return EtcdStore(parse(f"{self.url}{prefix}{query}", environ or {}))


@contextlib.contextmanager
def etcd_in(folder: Path, binary: str = "", flags: Mapping[str, str] | None = None) -> Iterator[Etcd]:
    """Run a server as long as the block lasts."""
    server = Etcd(folder, binary, flags).start()
    try:
        yield server
    finally:
        server.stop()


def _fetched(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as reply:
        return json.load(reply)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
