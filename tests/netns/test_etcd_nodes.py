"""Three nodes of ours and a kernel VXLAN host on one real etcd: what flannel writes, and packets through its faults.

Structure    etcd in the switch's namespace, at 192.168.77.100; a, b, c: daemons with a pod each; k: flannel.1 as
             flannel programs it, its lease put as flanneld writes it.
Promise      a flow between two pods and one with the kernel's host lose no packet, whatever becomes of the store; after
             healing what every node knows equals a fresh list.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from etcd_server import MISSING, Etcd, binaries

from tests.netns.nodes import Daemon, Nodes, inside, ip, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(not binaries(), reason=MISSING)]

MAC = "0e:00:00:00:00:44"
KERNEL_SUBNET = "10.244.200.0"
PREFIX = "/coreos.com/network"
FROZEN_S = 10.0


class Lab:
    """The nodes, their store and the traffic that runs all the time."""

    def __init__(self, nodes: Nodes, server: Etcd) -> None:
        self.nodes, self.server = nodes, server
        self.daemons: dict[str, Daemon] = {}
        self.pods: dict[str, tuple[str, str]] = {}  # namespace, address
        self.flows: list[subprocess.Popen[str]] = []
        self.began = 0.0

    def start_flows(self) -> None:
        ways = [("a", self.pods["b"][1]), ("c", self.pods["a"][1]), ("b", KERNEL_SUBNET)]
        for source, target in ways:
            until(lambda source=source, target=target: ping(self.pods[source][0], target), what=f"{source} -> {target}")  # type: ignore[misc]
            command = ["ip", "netns", "exec", self.pods[source][0], "ping", "-n", "-q", "-i0.05", "-W2", target]
            self.flows.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        self.began = time.monotonic()

    def end_flows(self) -> None:
        """Everything that was sent came back, for a second at least."""
        time.sleep(max(self.began + 1.0 - time.monotonic(), 0.0))
        for flow in self.flows:
            flow.send_signal(signal.SIGINT)
        for flow in self.flows:
            told = flow.communicate(timeout=10)[0]
            found = re.search(r"(\d+) packets transmitted, (\d+) received", told)
            assert found, told
            assert int(found[1]) > 10
            assert int(found[1]) - int(found[2]) <= 1, told  # the one that is under way
        self.flows = []

    def state(self, name: str) -> str:
        return str(self.daemons[name].ask("status")["state"])

    def degraded(self, why: str) -> None:
        """Every node says that the store is away, and why."""
        for name, daemon in self.daemons.items():
            until(
                lambda daemon=daemon: any(re.search(why, one) for one in daemon.ask("status")["reasons"]),  # type: ignore[misc]
                FROZEN_S,
                f"{name} says {why}",
            )

    def healed(self) -> None:
        """Every node is ready, and knows what a fresh list says."""
        for name, daemon in self.daemons.items():
            until(lambda name=name: self.state(name) == "ready", 20.0, f"{name} ready")  # type: ignore[misc]
            until(lambda daemon=daemon: self.known(daemon) == self.listed(daemon), 10.0, f"{name} as listed")  # type: ignore[misc]

    def known(self, daemon: Daemon) -> set[str]:
        return {str(peer["subnet"]) for peer in daemon.ask("peers")}

    def listed(self, daemon: Daemon) -> set[str]:
        own = daemon.ask("status")["subnet"]
        keys = {key.rpartition("/")[2].replace("-", "/") for key in self.server.keys(f"{PREFIX}/subnets/")}
        return keys - {own}


def ping(netns: str, address: str) -> bool:
    return inside(netns, "ping", "-n", "-c1", "-W1", address).returncode == 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    nodes = Nodes(folder)
    server = Etcd(folder / "etcd")
    try:
        names = {name: nodes.namespace(name) for name in "abck"}
        nodes.underlay(*names.values())
        serve_on_the_switch(nodes, server)
        lab = Lab(nodes, server)
        put_network(server)
        add_kernel_host(names["k"], server)
        for name in "abc":
            daemon = nodes.daemon(names[name], "--encap", "vxlan", "--store", server.url, "--network", "10.244.0.0/16")
            lab.daemons[name] = daemon.start()
        for name, daemon in lab.daemons.items():
            pod = nodes.pod(f"pod-{name}")
            lab.pods[name] = (pod, daemon.attach(pod))
        tell_the_kernel(names["k"], server)
        yield lab
    finally:
        nodes.close()
        server.stop()


def serve_on_the_switch(nodes: Nodes, server: Etcd) -> None:
    """etcd in the machine's own loopback namespace cannot be reached from nodes: it runs beside the switch."""
    switch = next(name for name in nodes.namespaces if name.endswith("-switch"))
    ip("link", "set", "lo", "up", netns=switch)
    ip("addr", "add", "192.168.77.100/24", "dev", "br0", netns=switch)
    server.host, server.command = "192.168.77.100", ("ip", "netns", "exec", switch)
    server.netns = switch
    server.start()


def put_network(server: Etcd) -> None:
    network = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
    server.ask("kv/put", key=f"{PREFIX}/config".encode(), value=json.dumps(network).encode())


def add_kernel_host(netns: str, server: Etcd) -> None:
    """flannel.1 and the lease, as flanneld would leave them."""
    words = (
        f"link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dev eth0 local 192.168.77.4 dstport 8472 nolearning"
    )
    ip(*words.split(), netns=netns)
    ip("addr", "add", f"{KERNEL_SUBNET}/32", "dev", "flannel.1", netns=netns)
    ip("link", "set", "flannel.1", "up", netns=netns)
    data = f'"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}'
    value = f'{{"PublicIP":"192.168.77.4","PublicIPv6":null,{data}}}'
    lease = server.ask("lease/grant", TTL=86400)["ID"]
    server.ask("kv/put", key=f"{PREFIX}/subnets/{KERNEL_SUBNET}-24".encode(), value=value.encode(), lease=lease)


def tell_the_kernel(netns: str, server: Etcd) -> None:
    """What flanneld does for each lease: neighbour, forwarding entry, route."""
    for key, raw in server.keys(f"{PREFIX}/subnets/").items():
        value, subnet = json.loads(raw), key.rpartition("/")[2].replace("-", "/")
        base, mac = subnet.partition("/")[0], value["BackendData"]["VtepMAC"]
        if mac == MAC:
            continue
        ip("neigh", "replace", base, "lladdr", mac, "dev", "flannel.1", "nud", "permanent", netns=netns)
        words = f"fdb replace {mac} dev flannel.1 dst {value['PublicIP']} self permanent"
        subprocess.run(["bridge", "-n", netns, *words.split()], check=True)
        ip("route", "replace", subnet, "via", base, "dev", "flannel.1", "onlink", netns=netns)


@pytest.fixture
def flowing(lab: Lab) -> Iterator[Lab]:
    """Traffic before, during and after what the test does."""
    lab.healed()
    lab.start_flows()
    try:
        yield lab
        lab.healed()
        lab.end_flows()
    finally:
        for flow in lab.flows:
            flow.kill()
            flow.wait()
        lab.flows = []


def test_leases_are_flannels(lab: Lab) -> None:
    """Byte for byte, with the node's name after what flannel knows."""
    values = lab.server.keys(f"{PREFIX}/subnets/")
    assert len(values) == 4
    for number, daemon in enumerate(lab.daemons.values(), 1):
        key = f"{PREFIX}/subnets/{daemon.ask('status')['subnet'].replace('/', '-')}"
        written = json.loads(values[key])
        mac = written["BackendData"]["VtepMAC"]
        assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac)
        expected = (
            f'{{"PublicIP":"192.168.77.{number}","PublicIPv6":"fd77::{number}","BackendType":"vxlan",'
            f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"Node":"{daemon.netns}"}}'
        )
        assert values[key].decode() == expected


def test_foreign_keys_take_no_peer(flowing: Lab) -> None:
    for name, value in (("subnetsX", b"x"), ("subnets/foo", b"x"), ("subnets/10.244.250.0-24", b'{"PublicIP":null}')):
        key = f"{PREFIX}/{name}".encode()
        flowing.server.ask("kv/put", key=key, value=value)
        flowing.server.ask("kv/deleterange", key=key)


def test_kill_9(flowing: Lab) -> None:
    flowing.server.kill()
    flowing.degraded("etcd at")
    flowing.server.start()


def test_frozen(flowing: Lab) -> None:
    flowing.server.freeze()
    try:
        flowing.degraded("no answer")
    finally:
        flowing.server.thaw()


def test_compaction_during_an_outage(flowing: Lab) -> None:
    """What happened meanwhile is found by a fresh list: a lease came, another went."""
    flowing.server.ask("kv/put", key=f"{PREFIX}/subnets/10.244.230.0-24".encode(), value=kernel_value(230))
    daemon = flowing.daemons["a"]
    until(lambda: "10.244.230.0/24" in flowing.known(daemon))
    for one in flowing.daemons.values():
        assert one.process is not None
        one.process.send_signal(signal.SIGSTOP)
    try:
        flowing.server.ask("kv/deleterange", key=f"{PREFIX}/subnets/10.244.230.0-24".encode())
        flowing.server.ask("kv/put", key=f"{PREFIX}/subnets/10.244.231.0-24".encode(), value=kernel_value(231))
        flowing.server.kill()
        flowing.server.start()
        flowing.server.compact()
    finally:
        for one in flowing.daemons.values():
            assert one.process is not None
            one.process.send_signal(signal.SIGCONT)
    until(lambda: "10.244.231.0/24" in flowing.known(daemon), 15.0)
    assert "10.244.230.0/24" not in flowing.known(daemon)
    flowing.server.ask("kv/deleterange", key=f"{PREFIX}/subnets/10.244.231.0-24".encode())


def kernel_value(number: int) -> bytes:
    return f'{{"PublicIP":"192.168.77.{number}","PublicIPv6":null}}'.encode()


def test_churn_in_the_prefix(flowing: Lab) -> None:
    """Hundreds of writes that mean nothing, as fast as they go."""
    for n in range(300):
        flowing.server.ask(
            "kv/put",
            key=f"{PREFIX}/subnets/10.244.240.0-24".encode(),
            value=b'{"PublicIP":"192.168.77.%d"}' % (n % 100 + 101),
        )
    flowing.server.ask("kv/deleterange", key=f"{PREFIX}/subnets/10.244.240.0-24".encode())


def test_a_daemon_that_starts_without_its_store(flowing: Lab) -> None:
    """Killed and started anew with the store down: after the restart's own gap everything flows as before."""
    daemon = flowing.daemons["c"]
    subnet = daemon.ask("status")["subnet"]
    time.sleep(1.5)  # the file is written a second after a change
    flowing.server.kill()
    flowing.end_flows()
    daemon.stop(signal.SIGKILL)
    daemon.start(ready=False)
    until(lambda: daemon.canal("status").returncode == 0 and daemon.ask("status")["state"] == "degraded")
    until(lambda: ping(flowing.pods["c"][0], flowing.pods["a"][1]), what="c -> a without a store")
    assert ping(flowing.pods["a"][0], flowing.pods["c"][1])
    assert daemon.ask("status")["subnet"] == subnet
    assert any("forwarding goes on as of" in one for one in daemon.ask("status")["reasons"])
    flowing.start_flows()
    flowing.server.start()
    flowing.healed()
    assert daemon.ask("status")["subnet"] == subnet


def test_a_full_server(flowing: Lab) -> None:
    """The quota is used up: nobody can renew, everybody goes on; there is space again, and so it does."""
    server = flowing.server
    server.kill()
    server.flags["quota-backend-bytes"] = "600000"
    server.start()
    with pytest.raises(AssertionError, match="space exceeded"):
        fill(server)
    flowing.healed()
    server.kill()
    server.flags.pop("quota-backend-bytes")
    server.start()
    server.ask("maintenance/alarm", action="DEACTIVATE", alarm="NOSPACE", memberID="0")
    server.ask("kv/deleterange", key=b"/ballast/", range_end=b"/ballast0")


def fill(server: Etcd) -> None:
    for n in range(200):
        server.ask("kv/put", key=f"/ballast/{n}".encode(), value=bytes(30_000))


def test_a_slow_server(flowing: Lab) -> None:
    """It answers in fits and starts: slow is no fault."""
    for _ in range(2):
        flowing.server.freeze()
        time.sleep(1.0)
        flowing.server.thaw()
        time.sleep(0.3)
    for name in "abc":
        assert flowing.state(name) == "ready"
