"""Masquerading and forward rules on real packets: flannel's text in both its modes, and ours; no gap, and repaired."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.flannelds import configure, flanneld
from tests.netns.nodes import Nodes, inside, ip, nodes_in, until
from tests.test_netfilter import GOLDEN_FILTER, GOLDEN_NAT, GOLDEN_NFT

OUTSIDE = "192.168.77.3"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


def pings(netns: str, address: str) -> bool:
    return inside(netns, "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0


class Seen:
    """The sources of the echo requests that a namespace gets."""

    def __init__(self, netns: str, device: str) -> None:
        command = ["ip", "netns", "exec", netns, "tcpdump", "-lnUi", device, "--immediate-mode", "icmp[icmptype] == 8"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        while "listening on" not in self._process.stderr.readline():
            pass

    def sources(self) -> set[str]:
        """Stop looking."""
        time.sleep(0.1)
        self._process.terminate()
        lines = self._process.communicate()[0].splitlines()
        return {line.split(" IP ")[1].split(" > ")[0] for line in lines if " IP " in line}


def prepared(nodes: Nodes) -> tuple[str, str, str]:
    """Two nodes and a host outside that knows no way to pods."""
    names = nodes.namespace("n1"), nodes.namespace("n2"), nodes.namespace("outside")
    nodes.underlay(*names)
    return names


def golden(text: str, subnet: str) -> str:
    return text.replace("10.42.1.0/24", subnet).replace("10.42.0.0/16", "10.244.0.0/16")


def iptables(netns: str, table: str) -> list[str]:
    lines = inside(netns, "iptables", "-t", table, "-S").stdout.splitlines()
    return [line for line in lines if "flanneld" in line]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_flannels_rules(nodes: Nodes, mode: str) -> None:
    """host-gw, so that what goes from pod to pod passes the rules as well."""
    names = prepared(nodes)
    configure(nodes, "host-gw", nftables=mode == "nftables")
    for name in names[:2]:
        inside(name, "iptables", "-A", "FORWARD", "-j", "ACCEPT", "-m", "comment", "--comment", "kube")
    first, second = (flanneld(nodes, name, "--ip-masq").start() for name in names[:2])
    a, b = nodes.pod("a"), nodes.pod("b")
    first.attach(a)
    address_b = second.attach(b)
    until(lambda: pings(a, address_b))
    at_b, outside = Seen(b, "eth0"), Seen(names[2], "eth0")
    assert pings(a, address_b) and pings(a, OUTSIDE)
    assert at_b.sources() == {first.ask("endpoints")[0]["ips"][0].partition("/")[0]}, "pod to pod as it is"
    assert outside.sources() == {"192.168.77.1"}, "pod to the outside is masqueraded"
    subnet = first.env()["FLANNEL_SUBNET"].replace(".1/", ".0/")
    assert first.env()["FLANNEL_IPMASQ"] == "true"
    if mode == "iptables":
        assert iptables(names[0], "nat") == golden(GOLDEN_NAT, subnet).splitlines()
        assert iptables(names[0], "filter") == golden(GOLDEN_FILTER, subnet).splitlines()
        before = inside(names[0], "iptables", "-S", "FORWARD").stdout
        assert before.splitlines()[1].endswith("kube -j ACCEPT"), "appended, as flannel does"
    else:
        assert inside(names[0], "nft", "list", "table", "ip", "flannel-ipv4").stdout == golden(GOLDEN_NFT, subnet)
        assert inside(names[0], "nft", "list", "table", "ip6", "flannel-ipv6").returncode == 0
        assert iptables(names[0], "nat") == []


def test_a_change_of_mode_leaves_nothing_of_the_other(nodes: Nodes) -> None:
    name = prepared(nodes)[0]
    configure(nodes)
    node = flanneld(nodes, name, "--ip-masq").start()
    assert len(iptables(name, "nat")) == 7 and len(iptables(name, "filter")) == 3
    for nftables, flag, found in ((True, "--ip-masq", (0, 0, 3)), (False, "--ip-masq=false", (0, 3, 0))):
        node.stop()
        configure(nodes, nftables=nftables)
        node.start(flag)
        tables = inside(name, "nft", "list", "tables").stdout
        ours = tables.count("flannel-") + tables.count("inet canal")
        assert (len(iptables(name, "nat")), len(iptables(name, "filter")), ours) == found


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_what_someone_removes_comes_back(nodes: Nodes, mode: str) -> None:
    name = prepared(nodes)[0]
    configure(nodes, nftables=mode == "nftables")
    flanneld(nodes, name, "--ip-masq", "--iptables-resync=1").start()
    look = ("nft", "list", "table", "ip", "flannel-ipv4") if mode == "nftables" else ("iptables-save", "-t", "nat")

    def rules() -> list[str]:
        lines = inside(name, *look).stdout.splitlines()
        return [line for line in lines if "nft" in look or "FLANNEL" in line]

    before = rules()
    for command in (
        ("nft", "flush", "chain", "ip", "flannel-ipv4", "postrtg")
        if mode == "nftables"
        else ("iptables", "-t", "nat", "-F"),
        ("nft", "flush", "ruleset"),
    ):
        assert inside(name, *command).returncode == 0
        until(lambda: rules() == before)


def test_a_host_without_iptables(nodes: Nodes, tmp_path: Path) -> None:
    """nft alone is enough in nftables mode; in iptables mode the message says what is missing."""
    name = prepared(nodes)[0]
    bare = tmp_path / "bin"
    bare.mkdir()
    for program in ("nft", "ip"):
        (bare / program).symlink_to(f"/usr/sbin/{program}")
    path = {"PATH": str(bare)}
    configure(nodes, nftables=True)
    node = flanneld(nodes, name, "--ip-masq", **path).start()
    assert "flannel-ipv4" in inside(name, "nft", "list", "tables").stdout
    node.stop()
    configure(nodes)
    node.start(ready=False)
    until(lambda: any("iptables-save is missing" in one for one in reasons(node)))
    until(lambda: node.health("readyz") == "200 flanneld is ready", what="pods still have a network")


def reasons(node: object) -> list[str]:
    done = node.canal("status", "-j")  # type: ignore[attr-defined]
    return [done.stdout] if done.returncode == 0 else []


def test_our_own_rules(nodes: Nodes) -> None:
    """`canal daemon --ip-masq`: one table of ours, both families; --clean takes it back."""
    names = prepared(nodes)
    first = nodes.daemon(names[0], "--ip-masq", "--network6", "fd10:244::/48", "--clean").start()
    a = nodes.pod("a")
    first.attach(a)
    seen = Seen(names[2], "eth0")
    assert pings(a, OUTSIDE)
    assert seen.sources() == {"192.168.77.1"}
    assert pings(a, "fd77::3")
    assert inside(names[0], "nft", "list", "tables").stdout == "table inet canal\n"
    assert "FLANNEL_IPMASQ=true" in (first.run_dir / "subnet.env").read_text()
    assert first.stop() == 0
    assert inside(names[0], "nft", "list", "tables").stdout == ""


@pytest.mark.parametrize("style", ["canal", "flannel-nft", "flannel-iptables"])
def test_replaced_without_a_gap(nodes: Nodes, style: str) -> None:
    """New flows all the time while the rules are written anew: none leaves with the pod's own address."""
    host, outside, pod = nodes.namespace("h"), nodes.namespace("o"), nodes.pod("p")
    for netns, address in ((outside, "192.0.2.2/24"), (pod, "10.244.1.2/24")):
        ip("link", "add", "eth0", "netns", netns, "type", "veth", "peer", "name", netns[-1], "netns", host)
        ip("addr", "add", address, "dev", "eth0", netns=netns)
        ip("link", "set", "eth0", "up", netns=netns)
    for device, address in (("o", "192.0.2.1/24"), ("p", "10.244.1.1/24")):
        ip("addr", "add", address, "dev", device, netns=host)
        ip("link", "set", device, "up", netns=host)
    inside(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    ip("route", "add", "default", "via", "10.244.1.1", netns=pod)
    write = (
        "import sys\nfrom ipaddress import ip_network as n\n"
        "from canal_udp.netfilter import Rules\nfrom canal_udp.tunnel.netfilter import apply\n"
        f"rules = Rules({style!r}, ((n('10.244.0.0/16'), n('10.244.1.0/24')),), True, True)\n"
        "looks = {apply(rules) for _ in range(int(sys.argv[1]))}\nassert len(looks) == 1, looks\n"
    )
    flows = (
        "import socket, time\nend = time.monotonic() + 30\n"
        "while time.monotonic() < end:\n s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        " s.sendto(b'x', ('192.0.2.2', 9)); s.close(); time.sleep(0.001)"
    )
    assert inside(host, sys.executable, "-c", write, "1").returncode == 0
    command = ["ip", "netns", "exec", outside, "tcpdump", "-lnUi", "eth0", "--immediate-mode"]
    command += ["udp and src net 10.0.0.0/8"]
    capture = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert capture.stderr is not None
    while "listening on" not in capture.stderr.readline():
        pass
    sender = subprocess.Popen(["ip", "netns", "exec", pod, sys.executable, "-c", flows])
    try:
        done = inside(host, sys.executable, "-c", write, "20")
        assert done.returncode == 0, done.stderr
        assert int(inside(outside, "cat", "/sys/class/net/eth0/statistics/rx_packets").stdout) > 100
    finally:
        sender.kill()
        sender.wait()
    capture.terminate()
    assert capture.communicate()[0].strip() == ""
