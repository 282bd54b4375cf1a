"""`canal-flanneld` in nodes' namespaces, around an embedded store: what flanneld cannot tell from its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from canal_udp.control.sqlite_store import SqliteStore
from tests.netns.nodes import Daemon, Nodes, inside, until

NETWORK = "10.244.0.0/16"
HEALTH_PORT = 8081


class Flanneld(Daemon):
    """`canal-flanneld`; what flanneld has no flag for is in the environment."""

    environ: dict[str, str]

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    def start(self, *flags: str, ready: bool = True) -> Flanneld:
        self.directory.mkdir(exist_ok=True)
        words = ["-subnet-file", str(self.subnet_file), f"--healthz-port={HEALTH_PORT}", *self.flags, *flags]
        command = ["ip", "netns", "exec", self.netns, sys.executable, "-m", "canal_udp.cli.flanneld", *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.environ)
        if ready:
            until(self.is_ready, 30.0, what=f"{self.netns} ready; log: {self.log}")
        return self

    def is_ready(self) -> bool:
        return self.subnet_file.exists() and super().is_ready()

    def health(self, page: str = "healthz") -> str:
        """The status and text of a page; empty while nobody listens."""
        script = (
            "import sys, urllib.request as r, urllib.error as e\n"
            "try: a = r.urlopen(sys.argv[1], timeout=5)\n"
            "except e.HTTPError as error: a = error\n"
            "except OSError: sys.exit()\n"
            "print(a.status, a.read().decode().strip())"
        )
        url = f"http://127.0.0.1:{HEALTH_PORT}/{page}"
        return inside(self.netns, sys.executable, "-c", script, url).stdout.strip()

    def env(self) -> dict[str, str]:
        """What subnet.env says."""
        lines = self.subnet_file.read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)  # type: ignore[misc]


def flanneld(nodes: Nodes, netns: str, *flags: str, name: str = "", **environ: str) -> Flanneld:
    """A flanneld in a namespace; not started."""
    found = Flanneld(netns, nodes.directory / (name or netns), ["-iface", "eth0", *flags])
    found.environ = {
        "CANAL_STORE": f"sqlite://{nodes.directory}/store.db",
        "CANAL_RUN_DIR": str(found.run_dir),
        "CANAL_STATE_DIR": str(found.state_dir),
        **environ,
    }
    nodes.daemons.append(found)
    return found


def configure(
    nodes: Nodes,
    backend: str = "vxlan",
    *,
    store: str = "store.db",
    network: str = NETWORK,
    nftables: bool = False,
    **more: object,
) -> None:
    """Write the network config, as an administrator does for flannel."""
    text = json.dumps({"Network": network, "EnableNFTables": nftables, "Backend": {"Type": backend, **more}})

    async def write() -> None:
        opened = SqliteStore(nodes.directory / store)
        await opened.put_network(text)
        await opened.close()

    asyncio.run(write())
