"""canal-flanneld on a real etcd: what it writes there is flannel's to the byte, and how it takes a lost lease."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.etcd_server import Etcd
from tests.netns.flannelds import Flanneld, flanneld
from tests.netns.nodes import Nodes, inside, nodes_in, until

PREFIX = "/coreos.com/network"
CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
SERVER = "192.168.77.3"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


class Cluster:
    """An etcd beside two nodes, in a namespace of its own."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.names = nodes, (nodes.namespace("n1"), nodes.namespace("n2"))
        self.home = nodes.namespace("etcd")
        nodes.underlay(*self.names, self.home)
        self.etcd = Etcd(nodes.directory / "etcd")
        self.etcd.host, self.etcd.command = SERVER, ("ip", "netns", "exec", self.home)
        self.etcd.start()
        self.put("config", CONFIG)

    def ask(self, path: str, **fields: str | int) -> Any:
        body = {k: base64.b64encode(v.encode()).decode() if isinstance(v, str) else v for k, v in fields.items()}
        script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], sys.argv[2].encode()).read().decode())"
        url = f"http://{SERVER}:{self.etcd.port}/v3/{path}"
        done = inside(self.home, sys.executable, "-c", script, url, json.dumps(body))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def put(self, key: str, value: str) -> None:
        self.ask("kv/put", key=f"{PREFIX}/{key}", value=value)

    def leases(self) -> dict[str, str]:
        found = self.ask("kv/range", key=f"{PREFIX}/subnets", range_end=f"{PREFIX}/subnett").get("kvs", [])
        return {base64.b64decode(kv["key"]).decode(): base64.b64decode(kv["value"]).decode() for kv in found}

    def start(self, netns: str, *flags: str) -> Flanneld:
        endpoints = f"http://127.0.0.1:9,http://{SERVER}:{self.etcd.port}"
        return flanneld(self.nodes, netns, "-etcd-endpoints", endpoints, *flags).start()


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    found = Cluster(nodes)
    try:
        yield found
        nodes.settle()
    finally:
        found.etcd.stop()


def key_of(node: Flanneld) -> str:
    return f"{PREFIX}/subnets/" + node.env()["FLANNEL_SUBNET"].replace(".1/", ".0-")


def test_two_nodes_on_etcd(cluster: Cluster) -> None:
    first, second = (cluster.start(name) for name in cluster.names)
    target = second.env()["FLANNEL_SUBNET"].replace(".1/24", ".0")
    until(lambda: inside(first.netns, "ping", "-n", "-c", "1", "-W", "1", target).returncode == 0)
    macs = [node.ask("status")["vtep_mac"] for node in (first, second)]
    assert cluster.leases() == {
        key_of(node): (
            f'{{"PublicIP":"192.168.77.{number}","PublicIPv6":null,"BackendType":"vxlan",'
            f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}'
        )
        for number, node, mac in zip((1, 2), (first, second), macs, strict=True)
    }


def test_both_families(cluster: Cluster) -> None:
    """flannel's peers find the MAC for IPv6 in BackendV6Data; our device is one for both families."""
    families = '"EnableIPv6": true, "IPv6Network": "fd10:244::/48"'
    cluster.put("config", f'{{"Network": "10.244.0.0/16", {families}, "Backend": {{"Type": "vxlan"}}}}')
    first, second = (cluster.start(name, "--ip-masq") for name in cluster.names)
    env = second.env()
    for target in (env["FLANNEL_SUBNET"].replace(".1/24", ".0"), env["FLANNEL_IPV6_SUBNET"].replace("::1/64", "::")):
        until(lambda target=target: inside(first.netns, "ping", "-c", "1", "-W", "1", target).returncode == 0)  # type: ignore[misc]
    subnet6 = env["FLANNEL_IPV6_SUBNET"].replace("::1/64", "::-64")
    data = f'{{"VNI":1,"VtepMAC":"{second.ask("status")["vtep_mac"]}"}}'
    assert cluster.leases()[f"{key_of(second)}&{subnet6}"] == (
        f'{{"PublicIP":"192.168.77.2","PublicIPv6":"fd77::2","BackendType":"vxlan","BackendData":{data},'
        f'"BackendV6Data":{data}}}'
    )
    rules = inside(second.netns, "ip6tables", "-t", "nat", "-S", "FLANNEL-POSTRTG").stdout
    assert "-s fd10:244::/48 ! -d ff00::/8 " in rules


def test_a_lease_that_is_deleted_is_taken_again(cluster: Cluster) -> None:
    """flanneld ends, and its supervisor starts it anew; here nothing stands still."""
    node = cluster.start(cluster.names[0])
    before = cluster.leases()
    cluster.ask("kv/deleterange", key=key_of(node))
    until(lambda: cluster.leases() == before)
    assert node.is_ready()


def test_a_lease_that_is_stolen_ends_it(cluster: Cluster) -> None:
    node = cluster.start(cluster.names[0])
    stolen = '{"PublicIP":"192.168.77.99","PublicIPv6":null}'
    cluster.put(key_of(node).removeprefix(f"{PREFIX}/"), stolen)
    assert node.process is not None and node.process.wait(20) == 0, "as flanneld: its supervisor starts it anew"
    assert "Lease has been revoked. Shutting down daemon." in node.log.read_text()
    assert cluster.leases() == {key_of(node): stolen}, "not overwritten"
    node.start()
    assert node.process.poll() is None and len(cluster.leases()) == 2
