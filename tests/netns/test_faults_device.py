"""Devices that cannot be repaired at once, and links that flap: said meanwhile, and over soon after the cause."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.nodes import Daemon, Nodes, inside, ip, ip_json, nodes_in, until

NOTICED_S, REPAIRED_S = 1.0, 2.0
FLAPS = 60
HEALTH = "127.0.0.1:9999"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


@pytest.fixture
def node(nodes: Nodes) -> Daemon:
    name = nodes.namespace("n1")
    nodes.underlay(name)
    return nodes.daemon(name, "--encap", "vxlan", "--healthz-addr", HEALTH).start()


def readyz(node: Daemon) -> str:
    """The answer of /readyz with its status line."""
    request = f"exec 3<>/dev/tcp/{HEALTH.replace(':', '/')}; printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    return inside(node.netns, "bash", "-c", request).stdout


def ready(node: Daemon) -> bool:
    return " 200 " in readyz(node)


@pytest.mark.parametrize("where", ["node", "pod"])
def test_a_name_that_someone_else_took(nodes: Nodes, node: Daemon, where: str) -> None:
    """Our device is gone and a bridge has its name: not ready, with the reason; when the bridge goes, ours is back."""
    pod = nodes.pod("a")
    address = node.attach(pod)
    netns, name = (node.netns, "canal0") if where == "node" else (pod, "eth0")
    until(lambda: ready(node))
    swap = f"link set {name} down name gone\nlink add {name} type bridge\n"  # at one go: the daemon repairs quickly
    done = subprocess.run(["ip", "-n", netns, "-batch", "-"], input=swap, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    until(lambda: not ready(node), NOTICED_S)
    assert f"{name}" in readyz(node) and "no TUN" in readyz(node)
    assert node.ask("status")["state"] == "degraded"
    ip("link", "del", name, netns=netns)
    until(lambda: ready(node), REPAIRED_S)
    assert inside(node.netns, "ping", "-n", "-c", "1", "-W", "2", address).returncode == 0
    assert [link["ifname"] for link in ip_json("link", netns=netns) if link["ifname"] == "gone"] == []


def test_a_renamed_host_device(nodes: Nodes, node: Daemon) -> None:
    address = node.attach(nodes.pod("a"))
    ip("link", "set", "canal0", "down", "name", "other", netns=node.netns)
    until(lambda: inside(node.netns, "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0, REPAIRED_S)
    assert {"canal0"} == {link["ifname"] for link in ip_json("link", netns=node.netns)} - {"lo", "eth0"}


def test_devices_that_are_broken_again_and_again(nodes: Nodes, node: Daemon) -> None:
    """Ten times in a row, whatever it was doing: at the end all is well and nothing has leaked."""
    pod = nodes.pod("a")
    address = node.attach(pod)
    assert node.process is not None
    descriptors = Path(f"/proc/{node.process.pid}/fd")
    until(lambda: ready(node))
    before = len(list(descriptors.iterdir()))
    for number in range(10):
        netns, name = ((node.netns, "canal0"), (pod, "eth0"))[number % 2]
        ip("link", "del", name, netns=netns, check=False)
        time.sleep(0.05 * (number % 4))
    until(lambda: inside(node.netns, "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0, REPAIRED_S)
    until(lambda: ready(node), REPAIRED_S)
    until(lambda: len(list(descriptors.iterdir())) <= before, what="descriptors are closed")


def test_an_underlay_that_flaps(nodes: Nodes) -> None:
    """Sixty times down and up under traffic: the daemons live, peers stay, and packets pass whenever it is up."""
    names = nodes.namespace("n1"), nodes.namespace("n2")
    nodes.underlay(*names)
    first, second = (nodes.daemon(name, "--encap", "vxlan").start() for name in names)
    a, b = nodes.pod("a"), nodes.pod("b")
    first.attach(a)
    address = second.attach(b)
    until(lambda: len(first.ask("peers")) == len(second.ask("peers")) == 1)
    over = threading.Event()

    def traffic() -> None:
        while not over.is_set():
            inside(a, "ping", "-n", "-q", "-c", "100", "-i", "0.005", "-W", "1", address)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for number in range(FLAPS):
            ip("link", "set", "eth0", "down", netns=names[0])
            time.sleep(0.05 + 0.05 * (number % 3))
            ip("link", "set", "eth0", "up", netns=names[0])
            if number % 10 == 0:
                until(lambda: inside(a, "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0, 5.0)
            time.sleep(0.05 * (number % 5))
    finally:
        over.set()
        thread.join()
    until(lambda: inside(a, "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0, 5.0)
    for daemon in (first, second):
        until(daemon.is_ready, REPAIRED_S)
        assert len(daemon.ask("peers")) == 1
        assert "Traceback" not in daemon.log.read_text()
