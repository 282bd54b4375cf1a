"""The systemd unit leaves the daemon what it needs: with those capabilities and no others it does all its work."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.nodes import Daemon, Nodes, inside, nodes_in, until

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "canal.service"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


class Confined(Daemon):
    """`canal daemon` as the unit starts it, as far as that goes without systemd."""

    def start(self, *flags: str, ready: bool = True) -> Confined:
        self.directory.mkdir(exist_ok=True)
        found = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
        assert found is not None
        bounds = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in found[1].split())
        command = ["ip", "netns", "exec", self.netns, "setpriv", f"--bounding-set=-all,{bounds}", "--inh-caps=-all"]
        command += ["--no-new-privs", sys.executable, "-m", "canal_udp", "daemon", *self.flags]
        command += ["--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir), *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if ready:
            until(self.is_ready, what=f"{self.netns} ready; log: {self.log}")
        return self


def test_the_units_capabilities_are_enough(nodes: Nodes) -> None:
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    daemons = []
    for name in names:
        flags = ["--store", f"sqlite://{nodes.directory}/store.db", "--iface", "eth0", "--network", "10.244.0.0/16"]
        flags += ["--encap", "vxlan", "--ip-masq", "--clean", "--mtu-probe-s", "1"]
        daemons.append(Confined(name, nodes.directory / name, flags).start())
    nodes.daemons += daemons
    pods = nodes.pod("a"), nodes.pod("b")
    daemons[0].attach(pods[0])
    process = subprocess.Popen(["ip", "netns", "exec", pods[1], "sleep", "60"])
    try:
        until(lambda: inside(pods[1], "true").returncode == 0)
        address = daemons[1].attach(f"/proc/{process.pid}/ns/net")
        until(lambda: inside(pods[0], "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0)
        assert "table inet canal" in inside(names[0], "nft", "list", "tables").stdout
        until(lambda: daemons[0].ask("peers")[0]["path"].startswith("verified"), what="echo requests to the peer")
        nodes.settle()
        assert daemons[1].stop() == 0
    finally:
        process.kill()
        process.wait()
    assert "goal.failed" not in daemons[0].log.read_text(), "nothing was refused"
