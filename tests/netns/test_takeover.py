"""A node that flanneld programmed is taken over, and given back; the peer is the kernel's, and is left alone."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from canal_udp.control.lease import Lease
from canal_udp.control.sqlite_store import SqliteStore
from tests.netns.flannelds import Flanneld, configure, flanneld
from tests.netns.nodes import Nodes, inside, ip, ip_json, nodes_in, until

MACS = {1: "c6:d2:32:6f:8f:01", 2: "c6:d2:32:6f:8f:02"}
INTERVAL_S, LOST_S = 0.02, 2.0  # on an idle machine 0.1 s


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


def as_flanneld(netns: str, own: int, peer: int) -> None:
    """The kernel's device, addresses, neighbours and routes, as flanneld programs them."""
    words = (
        f"link add flannel.1 address {MACS[own]} mtu 1450 type vxlan id 1 dev eth0 local 192.168.77.{own} nolearning"
    )
    ip(*words.split(), netns=netns)
    ip("addr", "add", f"10.244.{own}.0/32", "dev", "flannel.1", netns=netns)
    ip("link", "set", "flannel.1", "up", netns=netns)
    ip(*f"neigh replace 10.244.{peer}.0 lladdr {MACS[peer]} dev flannel.1 nud permanent".split(), netns=netns)
    command = f"bridge fdb replace {MACS[peer]} dev flannel.1 dst 192.168.77.{peer} self permanent"
    assert inside(netns, *command.split()).returncode == 0
    ip(*f"route replace 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink".split(), netns=netns)


def leases(nodes: Nodes, *new: Lease) -> dict[str, str]:
    """Write leases as flanneld would; returns key -> MAC of all that there are."""

    async def work() -> dict[str, str]:
        store = SqliteStore(nodes.directory / "store.db")
        for lease in new:
            await store.create_lease(lease, 86400)
        found = {lease.key: (lease.vtep_mac or b"").hex(":") for lease in (await store.list_leases()).leases}
        await store.close()
        return found

    return asyncio.run(work())


def of_node(number: int) -> Lease:
    mac = bytes.fromhex(MACS[number].replace(":", ""))
    subnet, public_ip = IPv4Network(f"10.244.{number}.0/24"), IPv4Address(f"192.168.77.{number}")
    return Lease(subnet, None, public_ip, encap="vxlan", vtep_mac=mac)


class Pings:
    """Echo requests without end, from the peer's overlay address to ours."""

    def __init__(self, netns: str) -> None:
        command = ["ping", "-n", "-O", "-i", str(INTERVAL_S), "-W", "1", "-I", "10.244.2.0", "10.244.1.0"]
        self._process = subprocess.Popen(["ip", "netns", "exec", netns, *command], stdout=subprocess.PIPE, text=True)

    def lost_s(self) -> float:
        """Stop; how long there was no answer."""
        self._process.send_signal(2)
        text = self._process.communicate(timeout=20)[0]
        found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        assert found is not None, text
        return (int(found[1]) - int(found[2])) * INTERVAL_S


def neighbours(netns: str) -> object:
    return sorted(str(one) for one in ip_json("neigh", "show", "dev", "flannel.1", netns=netns))


def test_there_and_back(nodes: Nodes) -> None:
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    configure(nodes)
    leases(nodes, of_node(1), of_node(2))
    as_flanneld(names[0], 1, 2)
    as_flanneld(names[1], 2, 1)
    peer = neighbours(names[1])
    node = flanneld(nodes, names[0])
    node.directory.mkdir()
    env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    node.subnet_file.write_text(env)
    assert "it would take over flannel.1" in dry_run(node)
    pings = Pings(names[1])
    node.start()
    until(
        lambda: (
            [link["linkinfo"]["info_kind"] for link in ip_json("-d", "link", "show", "flannel.1", netns=names[0])]
            == ["tun"]
        )
    )
    until(lambda: inside(names[1], "ping", "-c", "1", "-W", "1", "-I", "10.244.2.0", "10.244.1.0").returncode == 0)
    assert pings.lost_s() < LOST_S
    assert node.subnet_file.read_text() == env
    assert leases(nodes) == {"10.244.1.0-24": MACS[1], "10.244.2.0-24": MACS[2]}
    assert node.ask("status")["vtep_mac"] == MACS[1]
    assert neighbours(names[1]) == peer
    pod = nodes.pod("a")
    address = node.attach(pod)
    assert inside(names[1], "ping", "-c", "1", "-W", "1", "-I", "10.244.2.0", address).returncode == 0
    # and back: flanneld finds a device of its name that is no VXLAN device, and makes its own
    assert node.stop() == 0
    ip("link", "del", "flannel.1", netns=names[0])
    as_flanneld(names[0], 1, 2)
    until(lambda: inside(names[1], "ping", "-c", "1", "-W", "1", "-I", "10.244.2.0", "10.244.1.0").returncode == 0)
    assert neighbours(names[1]) == peer


def test_the_lease_knows_the_mac(nodes: Nodes) -> None:
    """A new machine image in the place of the old one: no device, no state, but peers have the MAC."""
    name = nodes.namespace("n1")
    nodes.underlay(name)
    configure(nodes)
    leases(nodes, of_node(1))
    node = flanneld(nodes, name).start()
    assert node.ask("status")["vtep_mac"] == MACS[1]
    assert leases(nodes) == {"10.244.1.0-24": MACS[1]}


def dry_run(node: Flanneld) -> str:
    """What `canal migrate` would do on this node."""
    command = [
        sys.executable,
        "-m",
        "canal_udp",
        "migrate",
        "flannel",
        "--dry-run",
        "--subnet-file",
        str(node.subnet_file),
    ]
    shown = inside(node.netns, *command)
    assert shown.returncode == 0, shown.stderr
    as_json = json.loads(inside(node.netns, *command, "-j").stdout)
    assert as_json["subnet_env"]["FLANNEL_SUBNET"] == "10.244.1.1/24"
    assert as_json["devices"] == [{"name": "flannel.1", "kind": "vxlan", "mac": MACS[1]}]
    return shown.stdout
