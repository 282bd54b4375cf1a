"""The daemon on a real host: what someone breaks it repairs, what kills it pods survive, what it made it takes back."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.nodes import Daemon, Nodes, inside, ip, ip_json, nodes_in, until

REPAIR_S = 2.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


@pytest.fixture
def node(nodes: Nodes) -> Daemon:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    return nodes.daemon(name, "--encap", "vxlan").start()


@pytest.fixture
def pair(nodes: Nodes, request: pytest.FixtureRequest) -> tuple[Daemon, Daemon]:
    """Two nodes; the encapsulation is the fixture's parameter."""
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    first, second = (nodes.daemon(name, "--encap", getattr(request, "param", "vxlan")).start() for name in names)
    until(lambda: len(first.ask("peers")) == len(second.ask("peers")) == 1)
    return first, second


def pings(netns: str, address: str, *flags: str) -> bool:
    return inside(netns, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", *flags, address).returncode == 0


# ---- two nodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["vxlan", "udp"], indirect=True)
def test_pods_and_nodes_reach_each_other(nodes: Nodes, pair: tuple[Daemon, Daemon]) -> None:
    a, b = nodes.pod("a"), nodes.pod("b")
    address_a, address_b = pair[0].attach(a), pair[1].attach(b)
    overlay = [daemon.ask("status")["subnet"].partition("/")[0] for daemon in pair]
    assert pings(a, address_b)
    assert pings(b, address_a)
    assert pings(pair[0].netns, address_b)
    assert pings(pair[0].netns, overlay[1])
    assert pings(a, overlay[1])
    mtu = pair[0].ask("status")["mtu"]
    assert pings(a, address_b, "-M", "do", "-s", str(mtu - 28))
    assert {daemon.ask("status")["state"] for daemon in pair} == {"ready"}


def test_an_address_that_nobody_leases_is_unreachable(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    node.attach(pod)
    done = inside(pod, "ping", "-n", "-c", "1", "-W", "2", "10.244.254.254")
    assert "Unreachable" in done.stdout
    done = inside(node.netns, "ping", "-n", "-c", "1", "-W", "2", "10.244.254.254")
    assert "Unreachable" in done.stdout, "the host itself"


def test_a_peer_that_leaves_is_forgotten(nodes: Nodes, pair: tuple[Daemon, Daemon]) -> None:
    pair[1].stop()
    assert len(pair[0].ask("peers")) == 1  # its lease holds: it may come back
    pair[1].start("--clean")
    pair[1].stop()
    until(lambda: pair[0].ask("peers") == [], 3.0)


# ---- what someone breaks ---------------------------------------------------------------------------------------------

POD, NODE = "pod", "node"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        pytest.param(POD, "addr flush dev eth0", id="the pod's address"),
        pytest.param(POD, "route flush table main", id="the pod's routes"),
        pytest.param(POD, "link set eth0 down", id="the pod's device down"),
        pytest.param(POD, "link set eth0 mtu 600", id="the pod's MTU"),
        pytest.param(POD, "link set eth0 txqueuelen 5", id="the pod's queue"),
        pytest.param(POD, "link del eth0", id="the pod's device deleted"),
        pytest.param(POD, "link set eth0 down name other", id="the pod's device renamed"),
        pytest.param(POD, "addr add 10.244.99.99/32 dev eth0", id="a stale address in the pod"),
        pytest.param(POD, "link set lo down", id="the pod's loopback down"),
        pytest.param(NODE, "addr flush dev canal0", id="the node's overlay address"),
        pytest.param(NODE, "route del 10.244.0.0/16", id="the overlay route"),
        pytest.param(NODE, "route add 10.99.0.0/16 dev canal0 proto 85", id="a stale route of ours"),
        pytest.param(NODE, "link set canal0 down", id="the host device down"),
        pytest.param(NODE, "link set canal0 mtu 1280", id="the host device's MTU"),
        pytest.param(NODE, "link del canal0", id="the host device deleted"),
    ],
)
def test_what_someone_breaks_comes_back(nodes: Nodes, node: Daemon, where: str, words: str) -> None:
    pod = nodes.pod("a")
    address = node.attach(pod)
    before = picture(pod), picture(node.netns)
    ip(*words.split(), netns=pod if where == POD else node.netns)
    until(lambda: (picture(pod), picture(node.netns)) == before, REPAIR_S, f"repair of {words}")
    until(lambda: pings(node.netns, address), REPAIR_S)
    until(node.is_ready, REPAIR_S)


def picture(netns: str) -> object:
    """What a namespace looks like, without what names an attempt (indices, lifetimes, MAC addresses)."""
    links = {
        link["ifname"]: (link["mtu"], link.get("txqlen"), "UP" in link["flags"])
        for link in ip_json("link", netns=netns)
    }
    addresses = sorted(
        (link["ifname"], one["local"], one["prefixlen"])
        for link in ip_json("addr", netns=netns)
        for one in link["addr_info"]
        if one["scope"] != "link"
    )
    routes = sorted(
        (route["dst"], route.get("dev"), route.get("protocol"))
        for family in ("-4", "-6")
        for route in ip_json(family, "route", netns=netns)
        if route["dst"] != "fe80::/64" and "linkdown" not in route["flags"]
    )
    return links, addresses, routes


def test_forwarding_and_subnet_env_come_back(node: Daemon) -> None:
    subnet_env = node.run_dir / "subnet.env"
    before = subnet_env.read_text()
    subnet_env.unlink()
    inside(node.netns, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    until(lambda: subnet_env.exists() and subnet_env.read_text() == before, REPAIR_S)
    until(lambda: inside(node.netns, "cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n", REPAIR_S)
    assert "net/ipv4/ip_forward=1" in node.log.read_text()


def test_a_strict_rp_filter_is_named_and_left_alone(node: Daemon) -> None:
    path = "/proc/sys/net/ipv4/conf/all/rp_filter"
    inside(node.netns, "sh", "-c", f"echo 0 > {path}; echo 1 > {path}")
    until(lambda: "rp_filter.strict sysctl=net/ipv4/conf/all/rp_filter" in node.log.read_text(), REPAIR_S)
    assert inside(node.netns, "cat", path).stdout == "1\n"


def test_routes_and_addresses_of_others_are_left_alone(node: Daemon) -> None:
    ip("addr", "add", "203.0.113.7/32", "dev", "canal0", netns=node.netns)
    ip("route", "add", "203.0.113.0/24", "dev", "canal0", netns=node.netns)
    ip("link", "set", "canal0", "mtu", "1300", netns=node.netns)
    until(lambda: ip_json("link", "show", "canal0", netns=node.netns)[0]["mtu"] == 1450, REPAIR_S)
    assert "203.0.113.7" in ip("addr", netns=node.netns)
    assert "203.0.113.0/24" in ip("route", netns=node.netns)


def test_a_tunnel_in_itself_is_left_out(nodes: Nodes, pair: tuple[Daemon, Daemon]) -> None:
    """The peer's underlay route leads into our own device: reported, not followed; and back when it is right again."""
    ip("route", "add", "192.168.77.2/32", "dev", "canal0", netns=pair[0].netns)
    until(lambda: pair[0].ask("status")["state"] == "degraded", 1.0)
    (row,) = pair[0].ask("peers")
    assert row["state"] == "left out: its route leads into canal0"
    assert "peer.recursive peer=192.168.77.2" in pair[0].log.read_text()
    ip("route", "del", "192.168.77.2/32", "dev", "canal0", netns=pair[0].netns)
    until(pair[0].is_ready, REPAIR_S)


def test_another_underlay_address(nodes: Nodes, pair: tuple[Daemon, Daemon]) -> None:
    a, b = nodes.pod("a"), nodes.pod("b")
    pair[0].attach(a)
    address = pair[1].attach(b)
    ip("addr", "add", "192.168.77.201/24", "dev", "eth0", netns=pair[0].netns)
    ip("addr", "del", "192.168.77.1/24", "dev", "eth0", netns=pair[0].netns)
    ip("addr", "add", "192.168.77.201/24", "dev", "eth0", netns=pair[0].netns, check=False)
    until(lambda: pair[1].ask("peers")[0]["public_ip"] == "192.168.77.201", 5.0)
    until(lambda: pings(a, address), 5.0)


# ---- death and return ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_pods_outlive_the_daemon(nodes: Nodes, node: Daemon, number: signal.Signals) -> None:
    pod = nodes.pod("a")
    address = node.attach(pod, "--label", "app=x")
    before = picture(pod), ip_json("link", "show", "eth0", netns=pod)[0]["ifindex"], node.ask("endpoints")
    subnet = node.ask("status")["subnet"]
    node.stop(number)
    assert node.canal("status").returncode == 1
    links = ip_json("link", "show", "eth0", netns=pod)
    assert "UP" in links[0]["flags"]
    node.start()
    assert (picture(pod), ip_json("link", "show", "eth0", netns=pod)[0]["ifindex"], node.ask("endpoints")) == before
    assert node.ask("status")["subnet"] == subnet
    assert pings(node.netns, address)


def test_a_connection_outlives_the_daemon(nodes: Nodes, pair: tuple[Daemon, Daemon]) -> None:
    """kill -9 in the middle of a TCP transfer: every byte arrives in order."""
    a, b = nodes.pod("a"), nodes.pod("b")
    pair[0].attach(a)
    address = pair[1].attach(b)
    receive = (
        "import socket,hashlib; s=socket.create_server(('0.0.0.0',5000)); print('up',flush=True); c,_=s.accept(); "
        "h=hashlib.sha256(); [h.update(d) for d in iter(lambda: c.recv(1<<16), b'')]; print(h.hexdigest())"
    )
    send = (
        f"import socket,hashlib,time; s=socket.create_connection(('{address}',5000)); h=hashlib.sha256()\n"
        "for i in range(300):\n b=bytes([i%256])*65536; h.update(b); s.sendall(b); time.sleep(.01)\n"
        "s.close(); print(h.hexdigest())"
    )
    receiver = subprocess.Popen(["ip", "netns", "exec", b, sys.executable, "-c", receive], stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == b"up\n"
    sender = subprocess.Popen(["ip", "netns", "exec", a, sys.executable, "-c", send], stdout=subprocess.PIPE)
    try:
        until(lambda: pair[0].ask("status")["counters"]["tx_underlay"] > 500)
        pair[0].stop(signal.SIGKILL)
        pair[0].start()
        sent, _ = sender.communicate(timeout=30)
        received, _ = receiver.communicate(timeout=30)
    finally:
        for process in (sender, receiver):
            process.kill()
            process.wait()
    assert sent == received != b""


def test_a_pod_that_died_with_the_daemon_frees_its_address(nodes: Nodes, node: Daemon) -> None:
    pod = nodes.pod("a")
    address = node.attach(pod)
    node.stop(signal.SIGKILL)
    ip("netns", "del", pod)
    ip("netns", "add", pod)  # another one at the same path
    node.start()
    assert node.ask("endpoints") == []
    assert [link["ifname"] for link in ip_json("link", netns=pod)] == ["lo"]
    assert node.attach(pod, "--ip", address) == address


def test_clean_leaves_the_machine_as_it_was(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    pod = nodes.pod("a")
    sysctls = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    before = picture(name), inside(name, "sysctl", *sysctls).stdout
    node = nodes.daemon(name, "--network", "10.244.0.0/16", "--network6", "fd00:10::/48", "--clean").start()
    node.attach(pod)
    assert picture(name) != before[0]
    assert node.stop() == 0
    assert (picture(name), inside(name, "sysctl", *sysctls).stdout) == before
    assert [link["ifname"] for link in ip_json("link", netns=pod)] == ["lo"]
    assert list(node.run_dir.iterdir()) == []
    assert list(node.state_dir.iterdir()) == []
    assert json.loads(node.canal("lease", "list", "-j", "--store", f"sqlite://{nodes.directory}/store.db").stdout) == []


def test_a_second_daemon_is_refused(nodes: Nodes, node: Daemon) -> None:
    second = Daemon(node.netns, node.directory, node.flags).start(ready=False)
    assert second.process is not None
    assert second.process.wait(10) == 1
    assert "another daemon runs with --run-dir" in node.log.read_text()
    assert node.is_ready()


def test_two_daemons_on_one_host(nodes: Nodes, node: Daemon) -> None:
    other = nodes.daemon(
        node.netns, *("--host-ifname", "canal1", "--port", "9999", "--encap", "vxlan", "--network", "10.245.0.0/16")
    )
    other.directory = nodes.directory / "other"
    other.run_dir, other.state_dir = other.directory / "run", other.directory / "state"
    other.flags[1] = f"sqlite://{nodes.directory}/other.db"
    other.start()
    a, b = nodes.pod("a"), nodes.pod("b")
    assert node.attach(a).startswith("10.244.")
    assert other.attach(b).startswith("10.245.")
    assert node.is_ready()
    assert "10.245.0.0/16 dev canal1 proto 85" in ip("route", netns=node.netns)


# ---- faults around it ------------------------------------------------------------------------------------------------


def test_a_taken_port_is_named_and_taken_when_it_is_free(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472", netns=name)
    ip("link", "set", "flannel.1", "up", netns=name)
    node = nodes.daemon(name, "--encap", "vxlan").start(ready=False)
    until(lambda: "kernel vxlan device" in node.canal("status").stdout)
    assert node.ask("status")["state"] == "degraded"
    ip("link", "del", "flannel.1", netns=name)
    until(node.is_ready)


def test_a_store_without_network_is_waited_for(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    node = nodes.daemon(name)
    at = node.flags.index("--network")
    del node.flags[at : at + 2]
    node.start(ready=False)
    until(lambda: "the store has no network config" in node.canal("status").stdout)
    done = node.canal("attach", nodes.pod("a"))
    assert (done.returncode, "no subnet yet" in done.stderr) == (1, True)
    store = f"sqlite://{nodes.directory}/store.db"
    assert node.canal("network", "set", '{"Network":"10.246.0.0/16"}', "--store", store).returncode == 0
    until(node.is_ready)
    status = node.ask("status")
    assert (status["subnet"][:7], status["encap"], status["mtu"]) == ("10.246.", "udp", 1472)


def test_an_interface_that_is_not_there_is_waited_for(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    node = nodes.daemon(name).start(ready=False)
    until(lambda: "Failed to find interface" in node.canal("status").stdout)
    nodes.underlay(name)
    until(node.is_ready)


def test_a_lease_that_someone_deletes_is_taken_again(nodes: Nodes, node: Daemon) -> None:
    subnet = node.ask("status")["subnet"]
    store = f"sqlite://{nodes.directory}/store.db"
    assert node.canal("lease", "delete", subnet, "--store", store).returncode == 0
    until(lambda: [row["subnet"] for row in node.ask("lease", "list", "--store", store)] == [subnet], 3.0)
    assert node.ask("lease", "list", "--store", store)[0]["own"] is True
    until(node.is_ready)


def test_a_frozen_daemon_recovers(nodes: Nodes, pair: tuple[Daemon, Daemon]) -> None:
    a, b = nodes.pod("a"), nodes.pod("b")
    pair[0].attach(a)
    address = pair[1].attach(b)
    process = pair[0].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    assert not pings(a, address)  # its worker is frozen with it
    process.send_signal(signal.SIGCONT)
    until(pair[0].is_ready)
    assert pings(a, address)


def test_health(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    node = nodes.daemon(name, "--healthz-addr", "127.0.0.1:9099").start()
    script = (
        "import sys,urllib.request as u,urllib.error as e\n"
        "for p in sys.argv[1:]:\n"
        " try: r=u.urlopen('http://127.0.0.1:9099'+p); print(r.status, r.read().decode().strip())\n"
        " except e.HTTPError as x: print(x.code, x.read().decode().strip())\n"
    )
    shown = inside(name, sys.executable, "-c", script, "/healthz", "/readyz", "/etc/passwd").stdout.splitlines()
    assert shown[:2] == ["200 canal is running", "200 canal is ready"]
    assert shown[2].startswith("404 ")
    ip("link", "add", "x", "type", "vxlan", "id", "9", "dstport", "8285", netns=name)
    ip("addr", "flush", "dev", "eth0", netns=name)
    until(lambda: inside(name, sys.executable, "-c", script, "/readyz").stdout.startswith("503 "), 5.0)
    assert node.process is not None


def test_no_log_line_carries_a_control_character(nodes: Nodes, node: Daemon) -> None:
    call_with(node, {"op": "attach", "netns": "\x1b[2Jx\r\n\u202e"})
    call_with(node, {"op": "\x1b]0;x\x07"})
    store = f"sqlite://{nodes.directory}/store.db"
    done = node.canal("lease", "put", "--subnet", "10.244.9.0/24", "--public-ip", "192.168.77.9", "--encap", "udp",
                      "--node", "\x1b[31mred\n", "--store", store)  # fmt: skip
    assert done.returncode == 0
    until(lambda: node.ask("peers"))
    shown = node.canal("peers").stdout + node.log.read_text()
    assert not [c for c in shown if not c.isprintable() and c != "\n"]


def call_with(node: Daemon, request: dict[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(node.run_dir / "api.sock"))
        sock.sendall(json.dumps(request).encode() + b"\n")
        answer = sock.recv(65536)
    assert b"\x1b" not in answer
    return json.loads(answer)
