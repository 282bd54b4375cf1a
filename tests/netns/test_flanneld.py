"""flanneld's command line in front of the daemon: what others see is flannel's, and packets cross."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.flannelds import Flanneld, configure, flanneld
from tests.netns.nodes import Nodes, inside, ip, ip_json, nodes_in, until


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


@pytest.fixture
def names(nodes: Nodes) -> tuple[str, str]:
    found = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*found)
    return found


def pings(netns: str, address: str, *flags: str) -> bool:
    return inside(netns, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", *flags, address).returncode == 0


def overlay_address(node: Flanneld) -> str:
    return node.env()["FLANNEL_SUBNET"].replace(".1/24", ".0")


@pytest.mark.parametrize(("backend", "ifname", "mtu"), [("vxlan", "flannel.1", 1450), ("udp", "flannel0", 1472)])
def test_two_nodes(nodes: Nodes, names: tuple[str, str], backend: str, ifname: str, mtu: int) -> None:
    configure(nodes, backend)
    first, second = (flanneld(nodes, name).start() for name in names)
    until(lambda: pings(first.netns, overlay_address(second)))
    for node in (first, second):
        env = node.env()
        subnet = env["FLANNEL_SUBNET"].replace(".1/24", ".0/24")
        assert list(env) == ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"]
        assert (env["FLANNEL_NETWORK"], env["FLANNEL_MTU"], env["FLANNEL_IPMASQ"]) == (
            "10.244.0.0/16",
            str(mtu),
            "false",
        )
        assert node.subnet_file.stat().st_mode & 0o777 == 0o644
        link = ip_json("addr", "show", ifname, netns=node.netns)[0]
        assert link["mtu"] == mtu
        assert [(a["local"], a["prefixlen"]) for a in link["addr_info"]] == [(overlay_address(node), 32)]
        log = node.log.read_text()
        for line in (
            f"Found network config - Backend type: {backend}\n",
            "Using interface with name eth0 and address 192.168.77.",
            f"Allocated lease (ip: {subnet} ipv6: ::/0) to current node (192.168.77.",
            f"Wrote subnet file to {node.subnet_file}\n",
        ):
            assert log.count(line) == 1, log
    assert first.health("healthz") == "200 flanneld is running"
    assert first.health("readyz") == "200 flanneld is ready"


def test_a_restart_keeps_the_subnet(nodes: Nodes, names: tuple[str, str]) -> None:
    configure(nodes)
    node = flanneld(nodes, names[0]).start()
    before = node.env()
    assert node.stop(signal.SIGTERM) == 0
    assert node.log.read_text().endswith("Exiting cleanly...\n")
    assert node.env() == before and ip_json("link", "show", "flannel.1", netns=node.netns), "nothing is removed"
    node.start()
    assert node.env() == before
    assert ") for current IP (192.168.77.1), reusing\n" in node.log.read_text()
    assert node.stop(signal.SIGINT) == 0
    Path(nodes.directory / "store.db").unlink()
    configure(nodes)
    node.start()
    assert node.env() == before, "the subnet of subnet.env, although the store forgot it"
    assert f"Found previously leased subnet ({before['FLANNEL_SUBNET'].replace('.1/', '.0/')}), reusing" in (
        node.log.read_text()
    )


def test_before_the_config_arrives(nodes: Nodes, names: tuple[str, str]) -> None:
    """It waits for ever, alive and not ready; then READY=1 comes after subnet.env."""
    path = nodes.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        supervisor.settimeout(20)
        node = flanneld(nodes, names[0], NOTIFY_SOCKET=str(path)).start(ready=False)
        until(lambda: node.health("healthz") == "200 flanneld is running")
        until(lambda: "Couldn't fetch network config: flannel config not found in etcd store" in node.log.read_text())
        assert node.health("readyz") == "503 flanneld is not ready yet: not written"
        configure(nodes)
        while supervisor.recv(4096) != b"READY=1":
            pass
        assert node.subnet_file.exists()
        assert node.health("readyz") == "200 flanneld is ready"


def test_a_signal_ends_the_wait(nodes: Nodes, names: tuple[str, str]) -> None:
    node = flanneld(nodes, names[0]).start(ready=False)
    until(lambda: node.health("healthz"))
    assert node.stop(signal.SIGTERM) == 0
    assert "Exiting cleanly..." in node.log.read_text()


@pytest.mark.parametrize(
    ("flags", "backend", "line"),
    [
        pytest.param([], "wireguard", "backend type wireguard is not supported: packets are not", id="backend"),
        pytest.param(["-iface=no"], "vxlan", "Failed to find interface to use that matches the", id="interface"),
        pytest.param(["-subnet-lease-renew-margin=0"], "vxlan", "Invalid subnet-lease-renew-margin", id="margin"),
        pytest.param(["-healthz-ip=192.0.2.99"], "vxlan", "cannot assign requested address", id="health address"),
    ],
)
def test_what_stops_the_start(nodes: Nodes, names: tuple[str, str], flags: list[str], backend: str, line: str) -> None:
    configure(nodes, backend)
    node = flanneld(nodes, names[0])
    node.flags = flags or node.flags
    node.start(ready=False)
    assert node.process is not None and node.process.wait(20) == 1
    assert line in node.log.read_text()


def test_two_on_one_host(nodes: Nodes, names: tuple[str, str]) -> None:
    """Two networks, side by side; neither carries the other's packets."""
    configure(nodes)
    other = {"CANAL_STORE": f"sqlite://{nodes.directory}/other.db"}
    configure(nodes, store="other.db", network="10.245.0.0/16", VNI=2, Port=8473)
    pairs = []
    for name in names:
        one = flanneld(nodes, name).start()
        two = flanneld(nodes, name, "-healthz-port=8082", name=f"{name}-two", **other)
        two.start(ready=False)
        until(two.subnet_file.exists)
        pairs.append((one, two))
    for index, ifname in enumerate(("flannel.1", "flannel.2")):
        target = overlay_address(pairs[1][index])
        until(lambda target=target, ifname=ifname: pings(names[0], target, "-I", ifname))  # type: ignore[misc]
        assert not pings(names[0], target, "-I", "flannel.2" if ifname == "flannel.1" else "flannel.1")
    assert ip("route", "show", "dev", "flannel.2", netns=names[0]).startswith("10.245.0.0/16")
