"""Pods behind a bridge, as Docker and flannel's CNI plug-in make them: Debian's bridge and host-local plug-ins."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.flannelds import Flanneld, configure, flanneld
from tests.netns.nodes import Nodes, inside, ip_json, nodes_in, until

PLUGINS = "/usr/lib/cni"
OUTSIDE = "192.168.77.3"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


def delegate(node: Flanneld) -> dict[str, Any]:
    """What flannel's plug-in makes of subnet.env for the bridge plug-in."""
    env = node.env()
    subnet = env["FLANNEL_SUBNET"].replace(".1/", ".0/")
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": env["FLANNEL_NETWORK"]}],
        "dataDir": str(node.directory / "ipam"),
    }
    return {
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "hairpinMode": True,
        "isDefaultGateway": True,
        "isGateway": True,
        "ipMasq": env["FLANNEL_IPMASQ"] != "true",
        "mtu": int(env["FLANNEL_MTU"]),
        "ipam": ipam,
    }


def cni(node: Flanneld, pod: str, command: str = "ADD") -> dict[str, Any]:
    """Call the plug-in as a container runtime does."""
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": PLUGINS,
        "PATH": os.environ["PATH"],
    }
    program = ["ip", "netns", "exec", node.netns, f"{PLUGINS}/bridge"]
    text = json.dumps(delegate(node))
    done = subprocess.run(program, input=text, capture_output=True, text=True, check=False, env=environ, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else {}


def pings(netns: str, address: str, *flags: str) -> bool:
    return inside(netns, "ping", "-n", "-c", "1", "-W", "2", *flags, address).returncode == 0


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_pods_behind_bridges_on_two_hosts(nodes: Nodes, backend: str) -> None:
    names = nodes.namespace("n1"), nodes.namespace("n2"), nodes.namespace("outside")
    nodes.underlay(*names)
    configure(nodes, backend)
    hosts = [flanneld(nodes, name, "--ip-masq").start() for name in names[:2]]
    pods = [nodes.pod(name) for name in "abc"]
    places = [hosts[0], hosts[0], hosts[1]]
    found = [cni(node, pod) for node, pod in zip(places, pods, strict=True)]
    addresses = [one["ips"][0]["address"].partition("/")[0] for one in found]
    mtu = int(hosts[0].env()["FLANNEL_MTU"])
    assert ip_json("link", "show", "eth0", netns=pods[0])[0]["mtu"] == mtu
    assert f"inet {hosts[0].env()['FLANNEL_SUBNET']} " in inside(names[0], "ip", "addr", "show", "cni0").stdout
    until(lambda: pings(pods[0], addresses[2]))
    assert pings(pods[2], addresses[0]), "from the other host"
    assert pings(pods[0], addresses[1]), "on one host"
    assert pings(pods[0], addresses[2], "-M", "do", "-s", str(mtu - 28)), "a full packet"
    assert pings(names[0], addresses[2]), "from the host itself"
    assert pings(pods[0], hosts[1].env()["FLANNEL_SUBNET"].partition("/")[0]), "the other host's bridge"
    assert pings(pods[0], OUTSIDE), "the outside, masqueraded"
    status = hosts[0].ask("status")
    assert status["counters"]["tx_underlay"] > 0
    cni(hosts[0], pods[0], "DEL")
    assert not pings(pods[2], addresses[0])
