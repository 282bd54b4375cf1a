"""canal-cni under the runtimes' own library, alone and in front of the plug-ins that Debian has."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canal_udp.cni.conflist import conflist
from canal_udp.cni.install import OURS
from canal_udp.cni.spec import SUPPORTED
from tests.netns.nodes import Daemon, Nodes, inside, ip_json, nodes_in, until

SOURCE = Path(__file__).with_name("main.go")
DEBIAN = Path("/usr/lib/cni")
ALONE = {"type": "canal-cni", "capabilities": {"ips": True, "dns": True}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
CHAIN = [
    ALONE,
    PORTMAP,
    {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}},
    {"type": "firewall"},
]


def go() -> str:
    found = [*sorted(Path("/usr/lib").glob("go-*/bin/go"), reverse=True), shutil.which("go")]
    assert found[0], "no Go: tools/install-deps cni"
    return str(found[0])


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program; its library is the source that Debian has."""
    built = tmp_path_factory.mktemp("go") / "runtime"
    environ = os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "CGO_ENABLED": "0", "GOFLAGS": ""}
    subprocess.run([go(), "build", "-o", str(built), str(SOURCE)], env=environ, check=True)
    return built


class Runtime:
    """A container runtime on one node."""

    def __init__(self, program: Path, daemon: Daemon, folder: Path) -> None:
        self.program, self.daemon, self.folder = program, daemon, folder
        self.folder.mkdir()
        self.file = folder / "net.conflist"

    def configure(self, version: str, *plugins: dict[str, Any]) -> None:
        if len(plugins) == 1:
            self.file = self.folder / "net.conf"
            self.file.write_text(json.dumps({"cniVersion": version, "name": "canal", **plugins[0]}))
        else:
            self.file = self.folder / "net.conflist"
            self.file.write_text(json.dumps({"cniVersion": version, "name": "canal", "plugins": plugins}))

    def call(self, command: str, pod: str, capabilities: Any = None, args: str = "") -> tuple[int, str, str]:
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_PATH": f"{OURS.parent}:{DEBIAN}",
            "CNI_CACHE": str(self.folder / "cache"),
            "CNI_ARGS": args,
            "CAPABILITIES": json.dumps(capabilities or {}),
            "CANAL_RUN_DIR": str(self.daemon.run_dir),
        }
        words = [str(self.program), command, str(self.file), f"/run/netns/{pod}", f"id-{pod}"]
        words = ["ip", "netns", "exec", self.daemon.netns, *words]
        done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    def do(self, command: str, pod: str, capabilities: Any = None, args: str = "") -> Any:
        status, out, error = self.call(command, pod, capabilities, args)
        assert status == 0, f"{command}: {out}{error}"
        return json.loads(out) if out else None

    def refused(self, command: str, pod: str) -> str:
        status, out, error = self.call(command, pod)
        assert status == 1, out
        return error


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_in(tmp_path)


@pytest.fixture
def runtime(nodes: Nodes, program: Path, tmp_path: Path) -> Runtime:
    names = [nodes.namespace("n1"), nodes.namespace("n2")]
    nodes.underlay(*names)
    first, _ = (nodes.daemon(name, "--encap", "vxlan").start() for name in names)
    return Runtime(program, first, tmp_path / "runtime")


def rules(netns: str) -> set[str]:
    """What iptables has, without counters and without the chains that the plug-ins never remove."""
    saved = inside(netns, "iptables-save").stdout.splitlines()
    return {line for line in saved if line.startswith("-A") and ("id-" in line or "CNI-DN-" in line)}


def addresses(result: Any) -> list[str]:
    listed = [ip["address"] for ip in result["ips"]] if "ips" in result else [result["ip4"]["ip"]]
    return [address.partition("/")[0] for address in listed]


def test_alone_in_every_version(nodes: Nodes, runtime: Runtime) -> None:
    pod = nodes.pod("a")
    for version in SUPPORTED:
        runtime.configure(version, ALONE)
        if version != "1.1.0":  # which Debian's library does not know
            runtime.do("validate", pod)
        result = runtime.do("add", pod)
        assert result["cniVersion"] == version
        assert inside(pod, "ping", "-c", "1", "-W", "2", "192.168.77.1").returncode == 0
        assert "duplicate allocation is not allowed" in runtime.refused("add", pod)
        if "0.4.0" <= version < "1.1.0":
            runtime.do("check", pod)
        if version == "1.1.0":
            runtime.do("status", pod)
            runtime.do("gc", pod, {"cni.dev/valid-attachments": [{"containerID": f"id-{pod}", "ifname": "eth0"}]})
            assert len(runtime.daemon.ask("endpoints")) == 1
            runtime.do("gc", pod, {"cni.dev/valid-attachments": []})
            assert runtime.daemon.ask("endpoints") == []
        else:
            for command in ("gc", "status"):
                assert f"config version does not allow {command.upper()}" in runtime.refused(command, pod)
        runtime.do("del", pod)
        runtime.do("del", pod)
        assert [link["ifname"] for link in ip_json("link", netns=pod)] == ["lo"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_in_front_of_others(nodes: Nodes, runtime: Runtime, version: str) -> None:
    pod = nodes.pod("a")
    runtime.configure(version, *(CHAIN if version >= "0.4.0" else CHAIN[:-1]))  # firewall knows no older one
    before = rules(runtime.daemon.netns)
    capabilities = {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "dns": {"servers": ["10.0.0.53"]},
    }
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"
    result = runtime.do("add", pod, capabilities, args)
    assert result["dns"] == {"nameservers": ["10.0.0.53"]}
    assert result["interfaces"][0]["name"] == "eth0"
    assert [row["name"] for row in runtime.daemon.ask("endpoints")] == ["shop/web"]
    assert rules(runtime.daemon.netns) > before
    assert inside(pod, "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians").stdout.strip() == "1"
    for _ in range(2):
        runtime.do("del", pod, capabilities, args)
    assert rules(runtime.daemon.netns) == before
    assert runtime.daemon.ask("endpoints") == []


def test_check_in_front_of_others(nodes: Nodes, runtime: Runtime) -> None:
    """What they did is no reason for ours to fail.

    Not with two of them: bandwidth 1.1.1 fails at its CHECK where eth0 is no veth, portmap's where there is no IPv6.
    """
    pod = nodes.pod("a")
    runtime.configure("1.0.0", *(plugin for plugin in CHAIN if plugin["type"] not in {"bandwidth", "portmap"}))
    runtime.do("add", pod)
    runtime.do("check", pod)
    runtime.do("del", pod)


@contextlib.contextmanager
def serving(netns: str, address: str) -> Iterator[None]:
    """An HTTP server at port 80."""
    command = ["ip", "netns", "exec", netns, sys.executable, "-m", "http.server", "80", "--bind", address]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: gets(netns, f"http://{address}/") == "")
        yield
    finally:
        server.kill()
        server.wait()


def gets(netns: str, url: str) -> str:
    """Why a namespace does not get an answer; empty if it does."""
    code = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=3).read()"
    return inside(netns, sys.executable, "-c", code, url).stderr[-400:]


def test_host_ports(nodes: Nodes, runtime: Runtime) -> None:
    """From another host, from the host itself by its own address, from a pod of another node, from the pod itself."""
    first, second = (daemon.netns for daemon in nodes.daemons)
    pod, client = nodes.pod("a"), nodes.pod("b")
    runtime.file.write_text(conflist("canal", ["portmap"]))
    mappings = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    (address,) = addresses(runtime.do("add", pod, mappings))
    nodes.daemons[1].attach(client)
    masquerade = "-t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE"  # as every cluster's node
    assert inside(second, "iptables", *masquerade.split()).returncode == 0
    with serving(pod, address):
        for who in (second, first, client, pod):
            assert gets(who, "http://192.168.77.1:8080/") == "", who
        assert gets(first, "http://127.0.0.1:8080/") == ""
    runtime.do("del", pod, mappings)
    assert gets(second, "http://192.168.77.1:8080/") != ""


def test_a_service_address_that_the_host_translates(nodes: Nodes, runtime: Runtime) -> None:
    """As kube-proxy does it: a pod's connection leaves by the host, whose NAT must see the replies too."""
    first = runtime.daemon.netns
    client, near, far = (nodes.pod(name) for name in ("a", "b", "c"))
    runtime.configure("1.0.0", ALONE)
    runtime.do("add", client)
    targets = {near: addresses(runtime.do("add", near))[0], far: nodes.daemons[1].attach(far)}
    for number, (pod, address) in enumerate(targets.items(), 1):
        rule = f"-t nat -A PREROUTING -p tcp -d 10.96.0.{number} --dport 80 -j DNAT --to-destination {address}:80"
        assert inside(first, "iptables", *rule.split()).returncode == 0
        with serving(pod, address):
            assert gets(client, f"http://10.96.0.{number}/") == "", f"translated to {address}"
