"""The daemon behind its socket, with a fake host and a fake data plane: what clients get, whatever they send."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from canal_udp.api import REQUEST_MAX_BYTES, SOCKET_NAME, call, decode, encode
from canal_udp.config import DaemonConfig
from canal_udp.control.lease import Lease
from canal_udp.daemon import Daemon
from canal_udp.daemon_api import default_name
from canal_udp.dataplane import Dataplane
from canal_udp.errors import DaemonUnreachable, RequestError
from canal_udp.policy.compiled import RuleRef
from canal_udp.policy.cursor import Where
from canal_udp.readings import Event, Flow, Judged, Note
from canal_udp.tunnel.fake import FakeHost
from canal_udp.tunnel.selftest import Offloads
from tests.fakes import FakeDataplane

OFFLOADS = Offloads(True, True, 128, "self-test passed", ("csum", "tso4", "tso6", "uso4", "uso6"))
SUBNET = ip_network("10.244.1.0/24")


class Bench:
    """A daemon in this process."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.config = DaemonConfig(
            store=f"memory://{name}",
            network=ip_network("10.244.0.0/16"),  # type: ignore[arg-type]
            encap="vxlan",
            run_dir=tmp_path / "run",
            state_dir=tmp_path / "state",
            subnet_file=tmp_path / "run" / "subnet.env",
            origins={"encap": "--encap", "network": "--network"},
        )
        self.config.run_dir.mkdir(exist_ok=True)
        self.config.subnet_file.write_text("FLANNEL_SUBNET=10.244.1.1/24\n")
        self.host = FakeHost(namespaces={"/run/netns/a": 1, "/run/netns/b": 2})
        self.plane = FakeDataplane()
        self.daemon: Daemon

    async def start(self, state: str = "ready") -> None:
        self.plane = FakeDataplane()
        self.daemon = Daemon(self.config, self.host, cast(Dataplane, self.plane), OFFLOADS)
        await self.daemon.start()
        await self.until(lambda: self.daemon.state() == state)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - of another object's state
                await asyncio.sleep(0.005)

    async def ask(self, op: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(call, self.config.run_dir, op, **arguments)

    def run(self, work: Callable[[], Awaitable[None]], *, stop: bool = True, state: str = "ready") -> None:
        async def body() -> None:
            await self.start(state)
            try:
                await work()
            finally:
                if stop:
                    await self.daemon.stop()

        asyncio.run(body())


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(tmp_path, f"{request.node.name}-{tmp_path.name}")


def test_status(bench: Bench) -> None:
    async def work() -> None:
        status = await bench.ask("status")
        assert status["state"] == "ready"
        assert status["reasons"] == []
        assert (status["subnet"], status["encap"], status["mtu"]) == ("10.244.1.0/24", "vxlan", 1450)
        assert (status["public_ip"], status["host_ifname"]) == ("192.0.2.1", "canal0")
        assert status["offload"]["mode"] == "gso+gro"
        assert status["worker"]["running"] is True
        assert status["conservation"] == {"received": 0, "delivered": 0, "dropped": 0, "queued": 0, "balanced": True}
        assert status["errors"] == {"send ENOBUFS": 3}
        assert status["generation"] >= 1
        assert (status["peers"], status["endpoints"]) == (0, 0)
        assert json.loads(json.dumps(status)) == status

    bench.run(work)


def test_attach_is_idempotent_and_detach_frees(bench: Bench) -> None:
    async def work() -> None:
        first = await bench.ask("attach", netns="a")
        assert first == {
            "name": "default/a",
            "netns": "/run/netns/a",
            "ifname": "eth0",
            "ips": ["10.244.1.2/32"],
            "mtu": 1450,
            "labels": {},
            "state": "ok",
        }
        assert await bench.ask("attach", netns="a") == first
        assert [name for kind, name in bench.plane.table.values() if kind == "pod"] == ["default/a"]
        labelled = await bench.ask("attach", netns="a", labels=["app=x"])
        assert labelled["labels"] == {"app": "x"}
        second = await bench.ask("attach", netns="b", ips=["10.244.1.9"])
        assert second["ips"] == ["10.244.1.9/32"]
        assert [row["name"] for row in await bench.ask("endpoints")] == ["default/a", "default/b"]
        assert await bench.ask("detach", netns="a") == {"name": "default/a", "detached": True}
        assert await bench.ask("detach", netns="a") == {"name": "/run/netns/a", "detached": False}
        assert bench.host.tuns["/run/netns/a", "eth0"].kept is False
        again = await bench.ask("attach", netns="a", ips=["10.244.1.2"])
        assert again["ips"] == ["10.244.1.2/32"]

    bench.run(work)


def test_labels_of_an_attached_pod_change_and_everybody_is_told(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a", labels=["app=web", "tier=x"])
        row = await bench.ask("label", name="default/a", labels=["app=db", "tier-"])
        assert row["labels"] == {"app": "db"} and row["ips"] == ["10.244.1.2/32"]
        assert bench.daemon.objects.cluster.state().pods["default/a"].labels == {"app": "db"}
        assert (await bench.ask("status"))["objects"]["counts"] == {"Namespace": 1, "Pod": 1}
        assert '"app": "db"' in (bench.config.state_dir / "endpoints.json").read_text()
        for arguments in ({"name": "default/b", "labels": ["a=b"]}, {"name": "default/a", "labels": ["a b"]}):
            with pytest.raises(RequestError, match=r"not attached to this node|is no label"):
                await bench.ask("label", **arguments)

    bench.run(work)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param({"netns": "none"}, "No such file", id="no such namespace"),
        pytest.param({"netns": "../etc"}, "no name of a network namespace", id="a path as a name"),
        pytest.param({"netns": ""}, "no name of a network namespace", id="nothing"),
        pytest.param({"netns": 7}, "not a string", id="a number"),
        pytest.param({"netns": "a", "name": "../x"}, "no name for an endpoint", id="a hostile name"),
        pytest.param({"netns": "a", "ifname": "eth%d"}, "no name for an interface", id="a name the kernel expands"),
        pytest.param({"netns": "a", "ifname": "x" * 16}, "no name for an interface", id="a name the kernel cuts"),
        pytest.param({"netns": "a", "ips": ["10.9.9.9"]}, "10.9.9.9", id="an address of another subnet"),
        pytest.param({"netns": "a", "ips": ["10.244.1.0"]}, "reserved", id="the node's own address"),
        pytest.param({"netns": "a", "ips": ["x"]}, "x", id="no address"),
        pytest.param({"netns": "a", "labels": ["x"]}, "no label", id="no label"),
        pytest.param({"netns": "a", "labels": "x=y"}, "not a list", id="labels that are no list"),
    ],
)
def test_attach_refuses(bench: Bench, arguments: dict[str, Any], problem: str) -> None:
    async def work() -> None:
        with pytest.raises(RequestError, match=problem):
            await bench.ask("attach", **arguments)
        assert bench.daemon.node.endpoints == {}
        assert bench.daemon.ipam is not None
        assert not bench.daemon.ipam.pool.names

    bench.run(work)


def test_an_attach_that_fails_leaves_nothing(bench: Bench) -> None:
    async def work() -> None:
        bench.host.broken["open_tun"] = "eth0 exists and is no TUN"
        with pytest.raises(RequestError, match="is no TUN"):
            await bench.ask("attach", netns="a")
        assert bench.daemon.node.endpoints == {}
        assert bench.daemon.ipam is not None
        assert not bench.daemon.ipam.pool.names
        assert (await bench.ask("status"))["state"] == "ready"

    bench.run(work)


def test_one_namespace_is_one_endpoint(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a")
        with pytest.raises(RequestError, match="is attached already, as default/a"):
            await bench.ask("attach", netns="a", name="default/other")

    bench.run(work)


def test_a_name_moves_to_a_new_namespace(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a", name="default/x")
        moved = await bench.ask("attach", netns="b", name="default/x")
        assert moved["netns"] == "/run/netns/b"
        assert bench.host.tuns["/run/netns/a", "eth0"].kept is False

    bench.run(work)


def test_pods_outlive_the_daemon(bench: Bench) -> None:
    """The second daemon finds what the first, killed, had; and drops the pod whose path another namespace took."""

    async def first() -> None:
        await bench.ask("attach", netns="a")
        await bench.ask("attach", netns="b")

    bench.run(first, stop=False)
    bench.host.namespaces["/run/netns/b"] = 22

    async def second() -> None:
        assert [row["name"] for row in await bench.ask("endpoints")] == ["default/a"]
        assert [row["ips"] for row in await bench.ask("endpoints")] == [["10.244.1.2/32"]]
        assert {"pod default/a"} == {
            f"{route.kind} {route.key}" for route in bench.plane.published[-1].routes if route.kind == "pod"
        }
        assert bench.daemon.ipam is not None
        assert set(bench.daemon.ipam.pool.names) == {"default/a"}

    bench.run(second)
    assert bench.host.tuns["/run/netns/a", "eth0"].kept is True


def test_clean_leaves_nothing(bench: Bench) -> None:
    bench.config = replace(bench.config, clean=True)
    bench.host.sysctls["net/ipv4/ip_forward"] = "0"

    async def work() -> None:
        await bench.ask("attach", netns="a")

    bench.run(work)
    assert {tun.kept for tun in bench.host.tuns.values()} == {False}
    assert list(bench.config.state_dir.iterdir()) == []
    assert list(bench.config.run_dir.iterdir()) == []


@pytest.mark.parametrize("where", ["inspect", "events"])
def test_what_someone_deleted_comes_back(bench: Bench, where: str) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a")
        key = (None, "canal0") if where == "inspect" else ("/run/netns/a", "eth0")
        gone = bench.host.tuns[key]
        gone.alive = False
        bench.host.monitors[key[0]].ring()
        await bench.until(lambda: bench.host.tuns[key] is not gone and key in bench.host.links)
        await bench.until(lambda: bench.daemon.state() == "ready")

    bench.run(work)


def test_a_namespace_that_is_gone_is_detached(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a")
        del bench.host.namespaces["/run/netns/a"]
        bench.host.monitors[None].ring()
        await bench.until(lambda: not bench.daemon.node.endpoints)
        await bench.until(lambda: bench.host.tuns["/run/netns/a", "eth0"].kept is False)
        assert bench.daemon.ipam is not None
        await bench.until(lambda: not bench.daemon.ipam.pool.names)  # type: ignore[union-attr]

    bench.run(work)


def test_peers_and_leases(bench: Bench) -> None:
    peer = Lease(
        ip_network("10.244.2.0/24"),  # type: ignore[arg-type]
        None,
        IPv4Address("192.0.2.2"),
        encap="vxlan",
        vtep_mac=bytes.fromhex("020000000002"),
    )

    async def work() -> None:
        await bench.daemon._store.create_lease(peer, None)
        await bench.until(lambda: bench.daemon.node.peers.peers)
        (row,) = await bench.ask("peers")
        assert (row["subnet"], row["public_ip"], row["mtu"], row["state"]) == ("10.244.2.0/24", "192.0.2.2", 1450, "ok")
        await bench.until(lambda: bench.daemon.prober.knowledge(ip_address("192.0.2.2")) == "verified")
        assert (await bench.ask("peers"))[0]["path"] == "verified"
        leases = await bench.ask("lease_list")
        assert [(lease["subnet"], lease["own"]) for lease in leases] == [
            ("10.244.1.0/24", True),
            ("10.244.2.0/24", False),
        ]
        bench.plane.tell(Event("mtu", ip_address("192.0.2.2"), 0, 1400, 0))
        await bench.until(lambda: bench.plane.published[-1].vteps[0].mtu_bytes == 1350)
        bench.host.echoes[4].carries_bytes = 1250
        await bench.until(lambda: bench.plane.published[-1].vteps[0].mtu_bytes < 1350)
        row = (await bench.ask("peers"))[0]
        assert 1242 < row["mtu"] <= 1250 and row["path"] == "learned"
        bench.host.recursive = frozenset({ip_address("192.0.2.2")})
        bench.host.monitors[None].ring()
        await bench.until(lambda: not bench.plane.published[-1].vteps)
        (row,) = await bench.ask("peers")
        assert row["state"] == "left out: its route leads into canal0"
        assert (await bench.ask("status"))["state"] == "degraded"

    bench.run(work)


def test_a_port_that_the_data_plane_gave_up_is_made_again(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="/run/netns/a")
        for wanted in (("pod", "default/a"), ("host", ""), ("underlay", "vxlan4")):
            index = next(index for index, port in bench.plane.table.items() if port == wanted)
            bench.plane.tell(Event("port_error", None, 0, 5, index))
            await bench.until(lambda: bench.daemon.state() == "degraded")
            assert "Input/output error" in " ".join(bench.daemon.reasons())
            await bench.until(lambda: bench.daemon.state() == "ready")
            assert index not in bench.plane.table
            assert wanted in bench.plane.table.values()
        bench.plane.tell(Event("port_error", None, 0, 5, 999))
        await bench.until(lambda: not bench.plane.waiting)

    bench.run(work)


def test_a_recursive_peer_is_never_published(bench: Bench) -> None:
    bench.host.recursive = frozenset({ip_address("192.0.2.2")})
    peer = Lease(ip_network("10.244.2.0/24"), None, IPv4Address("192.0.2.2"), encap="udp")  # type: ignore[arg-type]

    async def work() -> None:
        await bench.daemon._store.create_lease(peer, None)
        await bench.until(lambda: bench.daemon.node.recursive)
        assert all(not forwarding.vteps for forwarding in bench.plane.published)

    bench.run(work)


def test_flows_and_drops(bench: Bench) -> None:
    async def work() -> None:
        assert await bench.ask("flows", limit=10) == []
        assert await bench.ask("drops") == {"short": 0, "no_route": 0}
        with pytest.raises(RequestError, match="limit"):
            await bench.ask("flows", limit=-1)

    bench.run(work)


A, B, STRANGER = ip_address("10.244.1.2"), ip_address("10.244.1.3"), ip_address("203.0.113.9")
TRACKED = Flow(
    *(A, STRANGER, 6, 40000, 443, "established", "allow", (1, 0), "pod default/a", "host"),
    *((10, 20), (1000, 2000), 7, 5000, 1500, 60_000),
)
NOTED = Note(
    *(A, B, 6, 40000, 80, 0, 0, "deny", True, "ingress", (1, 2), (0, 3), "pod default/a"),
    *(3, 180, 4000, 9000),
)
RULES = {
    1: RuleRef("egress", "Allow", "default", "NetworkPolicy:default/out", 0, where=Where("out.yaml", 9)),
    2: RuleRef("ingress", "Deny", "default", "NetworkPolicy:default/in", -1, "no rule of the tier matched"),
    3: RuleRef("ingress", "Log", "default", "NetworkPolicy:default/in", 0),
}


def test_the_flow_log_names_ends_and_rules(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a", labels=["app=x"])
        await bench.ask("attach", netns="b")
        bench.plane.tracked, bench.plane.noted = [TRACKED], [NOTED]
        await bench.until(lambda: bench.daemon.policy.compiled)
        assert bench.daemon.policy.compiled is not None
        bench.daemon.policy.compiled = replace(bench.daemon.policy.compiled, rules=RULES)
        (row,) = (await bench.ask("flow_log", kind="flows"))["rows"]
        assert (row["src_name"], row["src_labels"]) == ("default/a", {"app": "x"})
        assert (row["dst_name"], row["dst_labels"], row["protocol"]) == (None, None, "TCP")
        assert row["egress"] == {
            "action": "Allow",
            "tier": "default",
            "policy": "NetworkPolicy:default/out",
            "rule": 0,
            "where": "out.yaml:9",
        }
        assert row["ingress"] is None, "nobody here polices what is outside"
        assert row["first_seen"] < row["last_seen"] and row["last_seen"].endswith("Z")
        answer = await bench.ask("flow_log", kind="denied")
        (row,) = answer["rows"]
        assert (row["reason"], row["denied_by"], row["ingress"]["rule"]) == ("rejected", "ingress", -1)
        assert (row["dst_name"], row["packets"], row["bytes"]) == ("default/b", [3, 0], [180, 0])
        assert answer["more"] is False
        assert (await bench.ask("flow_log", kind="denied", since_ms=9000))["rows"] == []
        (row,) = (await bench.ask("flow_log", kind="logged"))["rows"]
        assert row["log"]["ingress"]["action"] == "Log"
        hits = await bench.ask("hits")
        assert [(row["policy"], row["rule"], row["hits"]) for row in hits] == [
            *(("NetworkPolicy:default/out", 0, 1), ("NetworkPolicy:default/in", -1, 2)),
            ("NetworkPolicy:default/in", 0, None),
        ], "rules beyond those that are counted are no error"

    bench.run(work)


POLICY = """{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec":
{"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 443}]}]}}"""


def test_explain_says_what_is_in_force_and_why(bench: Bench) -> None:
    async def work() -> None:
        await bench.ask("attach", netns="a")
        await bench.ask("attach", netns="b")
        await bench.daemon._store.put("policies", "KubernetesNetworkPolicy/default/p", POLICY.encode(), 0)
        policy = bench.daemon.policy
        await bench.until(lambda: policy.compiled and any(ref.policy for ref in policy.compiled.rules.values()))
        question = {"src": "default/a", "dst": "default/b", "protocol": 6}
        answer = await bench.ask("explain", **question, dport=80)
        assert (answer["verdict"], answer["ingress"]["in_force"]) == ("deny", False), "the data plane has no policy yet"
        assert policy.compiled is not None
        numbers = {ref: number for number, ref in policy.compiled.rules.items()}
        at = {(ref.direction, ref.policy, ref.rule): numbers[ref] for ref in numbers}
        key = "KubernetesNetworkPolicy:default/p"
        out = at["egress", "Profile:kns.default", 0]
        bench.plane.judged = Judged(False, False, (out, at["ingress", key, -1]))
        answer = await bench.ask("explain", **question, dport=80)
        end = answer["ingress"]
        assert (end["verdict"], end["policy"], end["rule"], end["in_force"]) == ("deny", key, -1, True)
        (rule,) = end["tiers"][0]["policies"][0]["rules"]
        assert (rule["held"], rule["misses"]) == (False, ["destination port 80 is not 443"])
        assert answer["route"] == {"to": "to 10.244.1.3", "comes_from": "to 10.244.1.2", "mtu": 1400}
        bench.plane.judged = Judged(True, False, (out, at["ingress", key, 0]))
        bench.plane.tracked = [replace(TRACKED, dst=B)]
        answer = await bench.ask("explain", **question, dport=443)
        assert (answer["ingress"]["verdict"], answer["ingress"]["rule"]) == ("allow", 0)
        assert [row["state"] for row in answer["live"]] == ["established"]
        assert "pending" not in answer

    bench.run(work)


@pytest.mark.parametrize(
    ("question", "error"),
    [
        pytest.param({"src": "x/y", "dst": "10.0.0.1", "protocol": 6}, "no pod 'x/y'", id="a pod that is not there"),
        pytest.param({"src": "fd00::1", "dst": "10.0.0.1", "protocol": 6}, "no address family", id="two families"),
        pytest.param({"src": "here", "dst": "10.0.0.1", "protocol": 6}, "a pod is namespace/pod", id="no address"),
        pytest.param({"src": 1, "dst": "10.0.0.1", "protocol": 6}, "src: namespace/pod", id="not even a word"),
        pytest.param({"src": "10.0.0.2", "dst": "10.0.0.1"}, "protocol: a number", id="no protocol"),
        pytest.param({"src": "10.0.0.2", "dst": "10.0.0.1", "protocol": 6, "dport": 65536}, "dport", id="no port"),
    ],
)
def test_a_question_that_cannot_be_answered(bench: Bench, question: dict[str, Any], error: str) -> None:
    async def work() -> None:
        with pytest.raises(RequestError, match=error):
            await bench.ask("explain", **question)

    bench.run(work)


def test_an_answer_says_what_did_not_fit(bench: Bench) -> None:
    async def work() -> None:
        bench.plane.tracked = [replace(TRACKED, sport=port) for port in range(1200)]
        answer = await bench.ask("flow_log", kind="flows", limit=600)
        assert (len(answer["rows"]), answer["more"]) == (600, True)
        for bad in ({"kind": "x"}, {"kind": "flows", "since_ms": -1}, {"kind": "flows", "limit": 0}):
            with pytest.raises(RequestError):
                await bench.ask("flow_log", **bad)

    bench.run(work)


def raw(path: Path, payload: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)
        found = bytearray()
        while part := sock.recv(65536):
            found += part
        return bytes(found)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(b"\n", "not JSON", id="empty"),
        pytest.param(b"\xff\xfe\n", "not JSON", id="not text"),
        pytest.param(b"[" * 100_000 + b"\n", "not JSON", id="deep"),
        pytest.param(b"[]\n", "not a JSON object", id="a list"),
        pytest.param(b"{}\n", "unknown operation", id="no operation"),
        pytest.param(b'{"op":"\\u001b[2J"}\n', "unknown operation", id="an escape sequence"),
        pytest.param(b'{"op":{"a":1}}\n', "unknown operation", id="an operation that is no string"),
    ],
)
def test_bad_lines(bench: Bench, line: bytes, problem: str) -> None:
    async def work() -> None:
        answer = await asyncio.to_thread(raw, bench.config.run_dir / SOCKET_NAME, line)
        message = decode(answer)
        assert message["ok"] is False
        assert problem in message["error"]
        assert b"\x1b" not in answer
        assert (await bench.ask("status"))["state"] == "ready"

    bench.run(work)


def test_a_megabyte_without_a_line_ends_the_connection(bench: Bench) -> None:
    async def work() -> None:
        path = bench.config.run_dir / SOCKET_NAME
        try:
            answer = await asyncio.to_thread(raw, path, b"x" * (REQUEST_MAX_BYTES * 3))
        except OSError:  # closed while we were still talking
            answer = b""
        assert answer == b""
        assert (await bench.ask("status"))["state"] == "ready"

    bench.run(work)


def test_the_socket_is_for_root_only(bench: Bench) -> None:
    async def work() -> None:
        assert (bench.config.run_dir / SOCKET_NAME).stat().st_mode & 0o777 == 0o600

    bench.run(work)


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="is `canal daemon` running"):
        call(tmp_path, "status")
    (tmp_path / SOCKET_NAME).touch()
    with pytest.raises(DaemonUnreachable):
        call(tmp_path, "status")


def test_lines_survive_every_character() -> None:
    text = "".join(map(chr, [*range(300), 0x202E, 0x2028, 0x1F600])) + "\ud800"
    line = encode({"x": text})
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode(line) == {"x": text}


@pytest.mark.parametrize(
    ("netns", "name"),
    [("/run/netns/a", "default/a"), ("/proc/17/ns/net", "default/pid-17"), ("/var/run/x/cni-1", "default/cni-1")],
)
def test_default_name(netns: str, name: str) -> None:
    assert default_name(netns) == name
