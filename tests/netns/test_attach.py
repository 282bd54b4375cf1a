"""`canal attach` on real namespaces: what a pod gets, how it is named, and what is left of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.nodes import Daemon, Nodes, inside, ip, ip_json, nodes_in, until


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


@pytest.fixture
def node(nodes: Nodes) -> Daemon:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    return nodes.daemon(name, "--encap", "vxlan").start()


def interface(netns: str, ifname: str = "eth0") -> dict[str, object]:
    found = ip_json("-d", "addr", "show", "dev", ifname, netns=netns)
    return dict(found[0])


def sysctl(netns: str, name: str) -> str:
    return inside(netns, "cat", f"/proc/sys/net/{name}").stdout.strip()


def test_what_a_pod_gets(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    row = node.ask("attach", pod, "--label", "app=x")
    assert (row["name"], row["ifname"], row["mtu"]) == (f"default/{pod}", "eth0", 1450)
    (address,) = row["ips"]
    found = interface(pod)
    assert (found["mtu"], found["txqlen"], found["operstate"]) == (1450, 10000, "UNKNOWN")
    assert [(a["local"], a["prefixlen"]) for a in found["addr_info"]] == [(address.partition("/")[0], 32)]  # type: ignore[attr-defined]
    assert [(route["dst"], route["dev"]) for route in ip_json("route", netns=pod)] == [("default", "eth0")]
    assert "UP" in interface(pod, "lo")["flags"]  # type: ignore[operator]
    for name in ("accept_ra", "accept_redirects", "autoconf"):
        assert sysctl(pod, f"ipv6/conf/eth0/{name}") == "0"
    assert sysctl(pod, "ipv4/conf/eth0/accept_redirects") == "0"
    (listed,) = node.ask("endpoints")
    assert (listed["labels"], listed["state"]) == ({"app": "x"}, "ok")


def test_again_changes_nothing(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    first = node.ask("attach", pod)
    before = interface(pod)
    assert node.ask("attach", pod) == first
    assert interface(pod)["ifindex"] == before["ifindex"]


def test_dual_stack(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    node = nodes.daemon(name, "--encap", "udp", "--network", "10.244.0.0/16", "--network6", "fd00:10::/48").start()
    pod = nodes.pod("a")
    row = node.ask("attach", pod)
    assert [one.rpartition("/")[2] for one in row["ips"]] == ["32", "128"]
    assert [route["dst"] for route in ip_json("-6", "route", "show", "default", netns=pod)] == ["default"]
    status = node.ask("status")
    gateway = status["subnet6"].partition("/")[0]
    assert inside(pod, "ping", "-c", "1", "-W", "2", gateway).returncode == 0
    assert inside(name, "ping", "-c", "1", "-W", "2", row["ips"][1].partition("/")[0]).returncode == 0


@pytest.mark.parametrize("how", ["name", "path", "pid"])
def test_ways_to_name_a_namespace(nodes: Nodes, node: Daemon, how: str) -> None:
    pod = nodes.pod("a")
    sleeper = subprocess.Popen(["ip", "netns", "exec", pod, "sleep", "60"])
    try:
        until(lambda: inside(pod, "true").returncode == 0)
        until(lambda: Path(f"/proc/{sleeper.pid}/comm").read_text().strip() == "sleep")
        given = {"name": pod, "path": f"/run/netns/{pod}", "pid": str(sleeper.pid)}[how]
        assert node.ask("attach", given)["ifname"] == "eth0"
        assert interface(pod)["mtu"] == 1450
        assert node.ask("detach", given)["detached"] is True
    finally:
        sleeper.kill()
        sleeper.wait()
    assert [link["ifname"] for link in ip_json("link", netns=pod)] == ["lo"]


def test_detach_frees_everything(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    address = node.attach(pod, "--ifname", "net1")
    assert node.ask("detach", pod)["detached"] is True
    assert node.ask("detach", pod)["detached"] is False
    assert [link["ifname"] for link in ip_json("link", netns=pod)] == ["lo"]
    other = nodes.pod("b")
    assert node.attach(other, "--ip", address) == address


def test_an_interface_that_is_no_tun_is_left_alone(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    ip("link", "add", "eth0", "type", "bridge", netns=pod)
    before = ip("-d", "addr", netns=pod)
    done = node.canal("attach", pod)
    assert done.returncode == 1
    assert "exists and is no TUN" in done.stderr
    assert ip("-d", "addr", netns=pod) == before
    assert node.ask("endpoints") == []
    assert node.ask("status")["state"] == "ready"
    assert node.ask("attach", pod, "--ifname", "net1")["ifname"] == "net1"


def test_what_is_no_namespace(node: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for given, problem in (
        ("no-such", "No such file"),
        (str(tmp_path / "file"), "is no network namespace"),
        ("/proc/self/ns/mnt", "is no network namespace"),
        ("999999999", "No such file"),
    ):
        done = node.canal("attach", given)
        assert (done.returncode, problem in done.stderr) == (1, True), done.stderr


def test_pods_of_one_node_reach_each_other_and_the_node(nodes: Nodes, node: Daemon) -> None:
    a, b = nodes.pod("a"), nodes.pod("b")
    address_a, address_b = node.attach(a), node.attach(b)
    assert inside(a, "ping", "-c", "2", "-i", "0.2", "-W", "2", address_b).returncode == 0
    assert inside(b, "ping", "-c", "2", "-i", "0.2", "-W", "2", address_a).returncode == 0
    assert inside(node.netns, "ping", "-c", "2", "-i", "0.2", "-W", "2", address_a).returncode == 0
    assert inside(a, "ping", "-c", "2", "-i", "0.2", "-W", "2", "192.168.77.1").returncode == 0


def test_a_namespace_that_is_deleted_is_detached(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    address = node.attach(pod)
    ip("netns", "del", pod)
    until(lambda: node.ask("endpoints") == [], 3.0)
    again = nodes.pod("b")
    assert node.attach(again, "--ip", address) == address
    (row,) = node.ask("endpoints")
    assert row["netns"] == f"/run/netns/{again}"


def test_descriptors_do_not_leak(nodes: Nodes, node: Daemon) -> None:
    assert node.process is not None
    pod = nodes.pod("a")
    fds = Path(f"/proc/{node.process.pid}/fd")
    node.attach(pod)
    node.ask("detach", pod)
    before = len(list(fds.iterdir()))
    for _ in range(5):
        node.attach(pod)
        node.ask("detach", pod)
    assert len(list(fds.iterdir())) == before


def test_descriptors_are_not_inherited(node: Daemon) -> None:
    assert node.process is not None
    info = Path(f"/proc/{node.process.pid}/fdinfo")
    for entry in sorted(info.iterdir(), key=lambda one: int(one.name)):
        if int(entry.name) > 2:
            flags = next(line for line in entry.read_text().splitlines() if line.startswith("flags:"))
            target = Path(f"/proc/{node.process.pid}/fd/{entry.name}").readlink()
            assert int(flags.split()[1], 8) & 0o2000000, f"{target} has no O_CLOEXEC"
