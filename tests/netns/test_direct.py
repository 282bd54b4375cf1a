"""Peers on our own link, without encapsulation: host-gw, and vxlan with DirectRouting. The wire is looked at."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.flannelds import Flanneld, configure, flanneld
from tests.netns.nodes import Daemon, Nodes, inside, ip, ip_json, nodes_in, until


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


def pings(netns: str, address: str, *flags: str) -> bool:
    return inside(netns, "ping", "-n", "-c", "2", "-i", "0.1", "-W", "2", *flags, address).returncode == 0


def kernel_routes(netns: str, family: str = "-4") -> dict[str, str]:
    """Our routes by gateways."""
    found = ip_json(family, "route", "show", "proto", "85", netns=netns)
    return {route["dst"]: route["gateway"] for route in found if "gateway" in route}


def on_the_wire(netns: str, source: str, target: str) -> str:
    """What eth0 carries while a pod talks, as tcpdump tells it."""
    command = ["ip", "netns", "exec", netns, "tcpdump", "-lni", "eth0", "-c", "4"]
    command += ["icmp or udp port 8472 or udp port 8285"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stderr is not None and capture.stdout is not None
        while "listening on" not in capture.stderr.readline():
            pass
        assert pings(source, target)
        capture.terminate()
        return capture.stdout.read()


def behind_a_router(nodes: Nodes) -> str:
    """A third node in another subnet, 192.168.78.3; the switch of the others is the router."""
    name = nodes.namespace("n3")
    switch = next(one for one in nodes.namespaces if one.endswith("-switch"))
    ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", "far", "netns", switch)
    ends = ((switch, "br0", "192.168.77.254"), (switch, "far", "192.168.78.254"), (name, "eth0", "192.168.78.3"))
    for netns, device, address in ends:
        ip("addr", "add", f"{address}/24", "dev", device, netns=netns)
        ip("link", "set", device, "up", netns=netns)
    ip("link", "set", "lo", "up", netns=name)
    inside(switch, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    ip("route", "add", "default", "via", "192.168.78.254", netns=name)
    for one in nodes.namespaces[:2]:
        ip("route", "add", "192.168.78.0/24", "via", "192.168.77.254", netns=one)
    return name


def subnet(node: Flanneld) -> str:
    return node.env()["FLANNEL_SUBNET"].replace(".1/", ".0/")


def test_host_gw(nodes: Nodes) -> None:
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    configure(nodes, "host-gw")
    first, second = (flanneld(nodes, name).start() for name in names)
    a, b = nodes.pod("a"), nodes.pod("b")
    address_a, address_b = first.attach(a), second.attach(b)
    until(lambda: kernel_routes(names[0]) == {subnet(second): "192.168.77.2"})
    until(lambda: pings(a, address_b))
    assert pings(names[0], address_b) and pings(b, address_a)
    assert first.env()["FLANNEL_MTU"] == "1500"
    assert pings(a, address_b, "-M", "do", "-s", "1472"), "nothing is lost to a header"
    wire = on_the_wire(names[0], a, address_b)
    assert f"IP {address_a} > {address_b}: ICMP echo request" in wire and "UDP" not in wire
    assert [peer["encap"] for peer in first.ask("peers")] == ["host-gw"]
    assert inside(names[0], "ss", "-lun").stdout.count(":8472") == 0, "no socket that nobody needs"


def test_direct_routing_beside_vxlan(nodes: Nodes) -> None:
    """The neighbour directly, the node behind a router by VXLAN; a neighbour that moves away, too."""
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    far = behind_a_router(nodes)
    configure(nodes, "vxlan", DirectRouting=True)
    first, second, third = (flanneld(nodes, name).start() for name in (*names, far))
    pods = [nodes.pod(name) for name in "abc"]
    addresses = [node.attach(pod) for node, pod in zip((first, second, third), pods, strict=True)]
    until(lambda: kernel_routes(names[0]) == {subnet(second): "192.168.77.2"})
    until(lambda: kernel_routes(names[1]) == {subnet(first): "192.168.77.1"})
    for source in pods:
        for target in addresses:
            until(lambda source=source, target=target: pings(source, target))  # type: ignore[misc]
    assert kernel_routes(far) == {}
    wire = on_the_wire(names[0], pods[0], addresses[1])
    assert f"IP {addresses[0]} > {addresses[1]}: ICMP" in wire and "UDP" not in wire
    wire = on_the_wire(names[0], pods[0], addresses[2])
    assert "UDP, length" in wire or "OTV" in wire or "VXLAN" in wire, wire
    assert first.env()["FLANNEL_MTU"] == "1450", "as flannel: the VXLAN paths need it"
    ip("route", "del", subnet(second), netns=names[0])
    until(lambda: kernel_routes(names[0]) == {subnet(second): "192.168.77.2"}, 3.0, "repair")
    ip("route", "add", "192.168.77.2/32", "via", "192.168.77.254", netns=names[0])
    until(lambda: kernel_routes(names[0]) == {}, 3.0, "no neighbour any more")
    assert [route for route in ip_json("route", netns=names[0]) if route["dst"] == subnet(second)] == []


def test_our_own_command_line(nodes: Nodes) -> None:
    """`canal daemon --encap host-gw`, both families; --clean takes the routes back."""
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    flags = ("--encap", "host-gw", "--network", "10.244.0.0/16", "--network6", "fd10:244::/48", "--clean")
    first, second = (nodes.daemon(name, *flags).start() for name in names)
    pods = nodes.pod("a"), nodes.pod("b")
    ips = [attached(node, pod) for node, pod in zip((first, second), pods, strict=True)]
    for target in ips[1]:
        until(lambda target=target: pings(pods[0], target))  # type: ignore[misc]
    assert len(kernel_routes(names[0])) == len(kernel_routes(names[0], "-6")) == 1
    assert first.stop() == 0
    assert kernel_routes(names[0]) == kernel_routes(names[0], "-6") == {}


def attached(node: Daemon, pod: str) -> list[str]:
    return [one.partition("/")[0] for one in json.loads(node.canal("attach", pod, "-j").stdout)["ips"]]


def test_a_peer_behind_a_router_is_none_for_host_gw(nodes: Nodes) -> None:
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    far = behind_a_router(nodes)
    configure(nodes, "host-gw")
    first = flanneld(nodes, names[0]).start()
    flanneld(nodes, far).start(ready=False)
    until(lambda: any("is not on our own link" in reason for reason in first.ask("status")["reasons"]))
    assert kernel_routes(names[0]) == {}


def test_alloc_and_extension(nodes: Nodes) -> None:
    """A lease, subnet.env, and the administrator's commands; here they make what host-gw makes."""
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    configure(nodes, "alloc")
    node = flanneld(nodes, names[0]).start(ready=False)
    until(node.subnet_file.exists)
    assert node.env()["FLANNEL_MTU"] == "1500"
    assert node.health("readyz") == "200 flanneld is ready"
    assert node.stop() == 0
    out = nodes.directory
    configure(
        nodes,
        "extension",
        PreStartupCommand="echo hello; echo world 1>&2",
        PostStartupCommand=f'echo "$NETWORK $SUBNET $PUBLIC_IP" > {out}/post-$PUBLIC_IP',
        SubnetAddCommand=f'read data; ip route replace $SUBNET via $PUBLIC_IP && echo "$data" > {out}/add-$PUBLIC_IP',
        SubnetRemoveCommand=f"ip route del $SUBNET; touch {out}/remove-$PUBLIC_IP",
    )
    quick = {"CANAL_LEASE_TTL_S": "2", "CANAL_LEASE_RENEW_MARGIN_S": "1"}
    first, second = (flanneld(nodes, name, name=f"{name}-x", **quick).start(ready=False) for name in names)
    until(second.subnet_file.exists)
    until(lambda: subnet(second) in ip("route", netns=names[0]))
    until(lambda: subnet(first) in ip("route", netns=names[1]))
    assert (out / "post-192.168.77.2").read_text() == f"10.244.0.0/16 {subnet(second)} 192.168.77.2\n"
    assert (out / "add-192.168.77.2").read_text() == "hello\n"
    assert second.stop() == 0
    until(lambda: (out / "remove-192.168.77.2").exists(), 20.0, "its lease ended")
    assert subnet(second) not in ip("route", netns=names[0])
    assert first.stop() == 0  # it moves no packets that could be counted


def test_a_command_that_fails_stops_the_start(nodes: Nodes) -> None:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    configure(nodes, "extension", PreStartupCommand="echo no such thing; exit 3")
    node = flanneld(nodes, name).start(ready=False)
    assert node.process is not None and node.process.wait(20) == 1
    assert "'echo no such thing; exit 3' ended with 3: no such thing" in node.log.read_text()
