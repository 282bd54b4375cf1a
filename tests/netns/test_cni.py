"""canal-cni as runtimes call it: real processes, real namespaces, real packets, and daemons that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from canal_udp import cni
from canal_udp.actions import Link
from canal_udp.tunnel.host import RealHost
from tests.netns.nodes import Daemon, Nodes, inside, ip, ip_json, nodes_in, until

PLUGIN = Path(cni.__file__).with_name("canal-cni")
CONFIG = {"cniVersion": "1.1.0", "name": "canal", "type": "canal-cni"}


class Runtime:
    """What kubelet does for its pods: one process per command."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def environ(self, command: str, pod: str, container: str = "") -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container or f"id-{pod}",
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGIN.parent),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}",
            "CANAL_RUN_DIR": str(self.daemon.run_dir),
        }

    def start(self, command: str, pod: str, **more: Any) -> subprocess.Popen[str]:
        environ = self.environ(command, pod) | {key: more.pop(key) for key in list(more) if key.startswith("CNI_")}
        pipe = subprocess.PIPE
        started = subprocess.Popen([PLUGIN], env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert started.stdin is not None
        started.stdin.write(json.dumps(CONFIG | more))
        started.stdin.close()
        started.stdin = None
        return started

    def call(self, command: str, pod: str, **more: Any) -> tuple[int, Any]:
        started = self.start(command, pod, **more)
        out, _ = started.communicate(timeout=30)
        return started.returncode, json.loads(out) if out else None

    def add(self, pod: str, **more: Any) -> Any:
        status, result = self.call("ADD", pod, **more)
        assert status == 0, result
        return result

    def traces(self, *pods: str) -> list[str]:
        """Everything that is left of these pods."""
        found = [f"link in {pod}" for pod in pods if [link["ifname"] for link in ip_json("link", netns=pod)] != ["lo"]]
        found += [f"endpoint {row['name']}" for row in self.daemon.ask("endpoints")]
        state = json.loads((self.daemon.state_dir / "ipam.json").read_text())
        found += [f"address of {name}" for name in state["names"]]
        spool = self.daemon.run_dir / "cni-spool"
        return found + [f"file {name}" for name in (os.listdir(spool) if spool.exists() else [])]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


@pytest.fixture
def runtime(nodes: Nodes) -> Runtime:
    names = [nodes.namespace("n1"), nodes.namespace("n2")]
    nodes.underlay(*names)
    first, second = (nodes.daemon(name, "--encap", "vxlan") for name in names)
    second.start()
    return Runtime(first.start())


def test_a_pod_is_reached_from_another_node(nodes: Nodes, runtime: Runtime) -> None:
    pod, far = nodes.pod("a"), nodes.pod("b")
    result = runtime.add(pod)
    assert result["interfaces"] == [{"name": "eth0", "sandbox": f"/run/netns/{pod}", "mtu": 1450}]
    address = result["ips"][0]["address"].partition("/")[0]
    (row,) = runtime.daemon.ask("endpoints")
    assert (row["name"], row["ips"]) == (f"shop/{pod}", [f"{address}/32"])
    assert runtime.call("CHECK", pod, prevResult=result) == (0, None)
    peer = Runtime(nodes.daemons[1])
    peer.add(far)
    until(lambda: inside(far, "ping", "-c", "1", "-W", "1", address).returncode == 0)
    assert inside(pod, "ping", "-c", "1", "-W", "2", address).returncode == 0, "a pod reaches itself"
    for _ in range(3):
        assert runtime.call("DEL", pod) == (0, None)
    assert runtime.traces(pod) == []


def test_check_sees_what_an_interface_lacks(nodes: Nodes) -> None:
    pod = nodes.pod("a")
    anywhere = ip_network("0.0.0.0/0")
    address = ip_interface("10.0.0.2/32")
    link = Link("a", "eth0", f"/run/netns/{pod}", 1450, (address,), (anywhere,))
    host = RealHost()
    assert host.lacks(link) == ("interface eth0",)
    tun = host.open_tun("eth0", link.netns)
    try:
        assert host.lacks(link) == ("eth0 up", "address 10.0.0.2/32", "route 0.0.0.0/0")
        host.reconcile(link)
        ip("addr", "add", "192.0.2.1/24", "dev", "eth0", netns=pod)
        ip("route", "add", "192.0.3.0/24", "dev", "eth0", netns=pod)
        assert host.lacks(link) == ()
        assert host.remove_left_tun("eth0", f"/run/netns/{pod}") is False, "we hold it"
    finally:
        tun.close(keep=True)
    assert host.remove_left_tun("eth0", f"/run/netns/{pod}") is True
    assert host.look_into(f"/run/netns/{pod}")[1] == {"lo"}


def test_an_interface_that_exists_is_refused(nodes: Nodes, runtime: Runtime) -> None:
    for kind in (("tuntap", "add", "eth0", "mode", "tun"), ("link", "add", "eth0", "type", "bridge")):
        pod = nodes.pod(kind[0])
        ip(*kind, netns=pod)
        status, error = runtime.call("ADD", pod)
        assert (status, error["code"], error["msg"]) == (1, 100, f"eth0 exists already in /run/netns/{pod}")
        assert [link["ifname"] for link in ip_json("link", netns=pod)] == ["lo", "eth0"]
    assert runtime.daemon.ask("endpoints") == []


def test_what_is_no_namespace(nodes: Nodes, runtime: Runtime, tmp_path: Path) -> None:
    pod = nodes.pod("a")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(f"/run/netns/{pod}")
    for path in ("/run/netns/none", str(tmp_path / "file"), "/proc/self/ns/mnt", "relative"):
        assert runtime.call("ADD", pod, CNI_NETNS=path)[1]["code"] == 8
        assert runtime.call("DEL", pod, CNI_NETNS=path) == (0, None)
    linked = runtime.add(pod, CNI_NETNS=str(tmp_path / "link"))
    assert linked["interfaces"][0]["sandbox"] == str(tmp_path / "link")
    assert runtime.call("DEL", pod, CNI_NETNS=str(tmp_path / "link")) == (0, None)
    assert runtime.traces(pod) == []


def test_pods_outlive_a_killed_daemon_and_a_del_waits_for_it(nodes: Nodes, runtime: Runtime) -> None:
    stays, goes = nodes.pod("a"), nodes.pod("b")
    result = runtime.add(stays)
    runtime.add(goes)
    runtime.daemon.stop(signal.SIGKILL)
    assert runtime.call("ADD", goes)[1]["code"] == 11
    assert runtime.call("STATUS", goes)[1]["code"] == 50
    assert runtime.call("CHECK", stays, prevResult=result)[1]["code"] == 11
    assert runtime.call("DEL", goes) == (0, None)
    assert [link["ifname"] for link in ip_json("link", netns=goes)] == ["lo", "eth0"]
    runtime.daemon.start()
    assert runtime.call("CHECK", stays, prevResult=result) == (0, None)
    assert [link["ifname"] for link in ip_json("link", netns=goes)] == ["lo"]
    assert [row["name"] for row in runtime.daemon.ask("endpoints")] == [f"shop/{stays}"]
    assert runtime.call("DEL", stays) == (0, None)
    assert runtime.traces(stays, goes) == []


def test_two_hundred_adds_at_once(nodes: Nodes, runtime: Runtime) -> None:
    pods = [nodes.pod(f"p{number}") for number in range(50)]
    started = [runtime.start("ADD", pod) for pod in pods for _ in range(4)]
    ended = [(one.communicate(timeout=60)[0], one.returncode) for one in started]
    done = [json.loads(out) for out, status in ended if status == 0]
    assert len(done) == 50
    assert len({result["ips"][0]["address"] for result in done}) == 50
    assert {json.loads(out)["code"] for out, status in ended if status} == {100}
    assert len(runtime.daemon.ask("endpoints")) == 50
    listed = [{"containerID": f"id-{pod}", "ifname": "eth0"} for pod in pods[:10]]
    assert runtime.call("GC", "", **{"cni.dev/valid-attachments": listed}) == (0, None)
    assert len(runtime.daemon.ask("endpoints")) == 10
    for one in [runtime.start("DEL", pod) for pod in pods]:
        assert one.communicate(timeout=60)[0] == "" and one.returncode == 0
    assert runtime.traces(*pods) == []
