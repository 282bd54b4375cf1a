"""The daemon behind cni.sock, with a fake host: what each command of a runtime does, whatever came before."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from canal_udp.daemon_cni import REQUEST_MAX_BYTES, SOCKET_NAME, SPOOL_NAME
from canal_udp.tunnel.netns import OWN
from tests.test_api import Bench

CONFIG = {"cniVersion": "1.1.0", "name": "canal", "type": "canal-cni"}


class Runtime(Bench):
    """A container runtime and its daemon."""

    def message(self, command: str, container: str = "c1", netns: str = "/run/netns/a", **more: Any) -> bytes:
        environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
        environ |= {"CNI_PATH": "/opt/cni/bin", **{key: more.pop(key) for key in list(more) if key.startswith("CNI_")}}
        head = b"".join(f"{key}={value}\0".encode() for key, value in environ.items())
        return head + b"\0" + json.dumps(CONFIG | more).encode()

    async def send(self, message: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.config.run_dir / SOCKET_NAME))
        writer.write(message)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    async def cni(self, command: str, *where: str, **more: Any) -> tuple[int, Any]:
        """Exit status and what is printed."""
        head, _, body = (await self.send(self.message(command, *where, **more))).partition(b"\n")
        status, size = head.split()
        assert int(size) == len(body)
        return int(status), json.loads(body) if body else None

    async def add(self, *where: str, **more: Any) -> Any:
        status, result = await self.cni("ADD", *where, **more)
        assert status == 0, result
        return result

    async def refused(self, command: str, *where: str, **more: Any) -> tuple[int, str]:
        status, error = await self.cni(command, *where, **more)
        assert status == 1
        return error["code"], error["msg"]

    @property
    def taken(self) -> dict[str, list[str]]:
        """Who has which address; the endpoints are the same ones."""
        assert self.daemon.ipam is not None
        names = self.daemon.ipam.pool.names
        assert set(names) == set(self.daemon.node.endpoints)
        return {name: [str(ip) for ip in ips] for name, ips in names.items()}

    def spool(self, name: str, message: bytes) -> Path:
        folder = self.config.run_dir / SPOOL_NAME
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(message)
        return folder / name


@pytest.fixture
def runtime(tmp_path: Path, request: pytest.FixtureRequest) -> Runtime:
    return Runtime(tmp_path, f"{request.node.name}-{tmp_path.name}")


def test_a_pods_life(runtime: Runtime) -> None:
    async def work() -> None:
        result = await runtime.add(CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")
        assert result == {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a", "mtu": 1450}],
            "ips": [{"interface": 0, "address": "10.244.1.2/32"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        }
        assert runtime.taken == {"shop/web": ["10.244.1.2"]}
        assert await runtime.cni("CHECK", prevResult=result) == (0, None)
        assert await runtime.cni("STATUS") == (0, None)
        for _ in range(3):
            assert await runtime.cni("DEL", prevResult=result) == (0, None)
        assert runtime.taken == {}
        assert runtime.host.tuns["/run/netns/a", "eth0"].kept is False
        assert await runtime.refused("CHECK", prevResult=result) == (3, "c1 has no eth0 of canal")

    runtime.run(work)


def test_labels_and_addresses_that_are_asked_for(runtime: Runtime) -> None:
    async def work() -> None:
        await runtime.add(
            args={"cni": {"labels": [{"key": "app", "value": "web"}]}}, runtimeConfig={"ips": ["10.244.1.77/24"]}
        )
        assert runtime.taken == {"default/c1": ["10.244.1.77"]}
        assert runtime.daemon.node.endpoints["default/c1"].labels == (("app", "web"),)
        ranges = [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.77", "rangeEnd": "10.244.1.78"}]]
        await runtime.add("c2", "/run/netns/b", runtimeConfig={"ipRanges": ranges, "mac": "02:00:00:00:00:01"})
        assert runtime.taken["default/c2"] == ["10.244.1.78"]

    runtime.run(work)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        pytest.param({"CNI_NETNS": "/run/netns/none"}, 8, "No such file", id="no namespace there"),
        pytest.param({"CNI_NETNS": OWN}, 8, "should not be the same", id="the host's own namespace"),
        pytest.param({"CNI_IFNAME": "net7"}, 100, "net7 exists already in /run/netns/a", id="the interface exists"),
        pytest.param({"runtimeConfig": {"ips": ["10.9.9.9"]}}, 7, "10.9.9.9 is not in", id="an address of others"),
        pytest.param({"runtimeConfig": {"ips": ["10.244.1.0"]}}, 7, "reserved", id="the node's own address"),
        pytest.param({"runtimeConfig": {"ips": ["10.244.1.9"]}}, 11, "belongs to default/b", id="an address in use"),
        pytest.param(
            {"runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/16"}]]}}, 7, "no address of", id="a range of others"
        ),
        pytest.param({"CNI_ARGS": "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c"}, 4, "no name", id="a name that is none"),
        pytest.param({"prevResult": 1}, 6, "could not parse prevResult", id="a previous result that is none"),
        pytest.param({"bandWidth": 1, "ipMasq": True}, 2, "ipMasq = true", id="what we do not do"),
    ],
)
def test_an_add_that_is_refused_changes_nothing(
    runtime: Runtime, more: dict[str, Any], code: int, message: str
) -> None:
    async def work() -> None:
        runtime.host.others.add(("/run/netns/a", "net7"))
        runtime.host.namespaces[OWN] = 0
        await runtime.ask("attach", netns="b", ips=["10.244.1.9"])
        before = runtime.taken, set(runtime.host.tuns), len(runtime.plane.published)
        found = await runtime.refused("ADD", **more)
        assert found[0] == code and message in found[1]
        assert (runtime.taken, set(runtime.host.tuns), len(runtime.plane.published)) == before
        assert await runtime.cni("DEL", **{key: value for key, value in more.items() if key != "CNI_NETNS"}) == (
            0,
            None,
        )

    runtime.run(work)


@pytest.mark.parametrize("method", ["open_tun", "reconcile"])
def test_an_add_that_fails_leaves_nothing_and_may_be_tried_again(runtime: Runtime, method: str) -> None:
    async def work() -> None:
        runtime.host.broken[method] = "the kernel is in a bad mood"
        code, message = await runtime.refused("ADD")
        assert code == 11 and "bad mood" in message
        assert runtime.taken == {}
        del runtime.host.broken[method]
        for tun in runtime.host.tuns.values():
            assert tun.ifname != "eth0" or tun.kept is False
        await runtime.add()

    runtime.run(work)


def test_what_is_attached_is_not_attached_again(runtime: Runtime) -> None:
    async def work() -> None:
        await runtime.add()
        before = runtime.host.tuns["/run/netns/a", "eth0"]
        code, message = await runtime.refused("ADD")
        assert code == 100
        assert message == "10.244.1.2 has been allocated to c1, duplicate allocation is not allowed"
        assert runtime.host.tuns["/run/netns/a", "eth0"] is before
        assert runtime.taken == {"default/c1": ["10.244.1.2"]}

    runtime.run(work)


def test_a_pod_in_a_new_sandbox_takes_the_place_of_the_old_one(runtime: Runtime) -> None:
    """Kubernetes may delete the old one later; that must not reach the new one."""

    async def work() -> None:
        args = {"CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0"}
        await runtime.add("old", "/run/netns/a", **args)
        await runtime.add("new", "/run/netns/b", **args)
        assert await runtime.cni("DEL", "old", "/run/netns/a", **args) == (0, None)
        (endpoint,) = runtime.daemon.node.endpoints.values()
        assert (endpoint.name, endpoint.netns, endpoint.attachment) == ("shop/db-0", "/run/netns/b", "canal/new")

    runtime.run(work)


def test_del_without_a_namespace(runtime: Runtime) -> None:
    async def work() -> None:
        for netns in ("", "/run/netns/none"):
            await runtime.add()
            assert await runtime.cni("DEL", "c1", netns) == (0, None)
            assert runtime.taken == {}

    runtime.run(work)


def test_del_is_about_one_interface_of_one_container_in_one_network(runtime: Runtime) -> None:
    async def work() -> None:
        await runtime.add()
        for other in ({"CNI_IFNAME": "eth1"}, {"CNI_CONTAINERID": "c2"}, {"name": "other"}):
            assert await runtime.cni("DEL", "c1", "", **other) == (0, None)
        assert set(runtime.taken) == {"default/c1"}

    runtime.run(work)


def test_check_looks_at_what_is_there(runtime: Runtime) -> None:
    async def work() -> None:
        result = await runtime.add()
        assert (await runtime.refused("CHECK"))[0] == 7
        runtime.host.tuns["/run/netns/a", "eth0"].alive = False
        assert await runtime.refused("CHECK", prevResult=result) == (101, "default/c1 lacks interface eth0")
        runtime.host.namespaces["/run/netns/a"] = 99
        code, message = await runtime.refused("CHECK", prevResult=result)
        assert code == 101 and "another namespace" in message

    runtime.run(work)


def test_gc_frees_what_is_gone_and_nothing_else(runtime: Runtime) -> None:
    async def work() -> None:
        runtime.host.namespaces |= {"/run/netns/c": 3, "/run/netns/d": 4}
        await runtime.add("c1", "/run/netns/a")
        await runtime.add("c2", "/run/netns/b")
        await runtime.add("c3", "/run/netns/c", name="other")
        await runtime.ask("attach", netns="d")
        assert (await runtime.refused("GC"))[0] == 7  # no list is not an empty list
        valid = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth1"}]
        assert await runtime.cni("GC", **{"cni.dev/valid-attachments": valid}) == (0, None)
        assert set(runtime.taken) == {"default/c1", "default/c3", "default/d"}
        assert runtime.host.tuns["/run/netns/b", "eth0"].kept is False

    runtime.run(work)


def test_status(runtime: Runtime) -> None:
    async def work() -> None:
        assert await runtime.cni("STATUS") == (0, None)
        runtime.plane.running = False
        assert await runtime.refused("STATUS") == (51, "no packets are forwarded")
        runtime.plane.running = True
        runtime.daemon.ipam = None
        assert await runtime.refused("STATUS") == (50, "not ready")
        assert (await runtime.refused("ADD"))[0] == 11

    runtime.run(work)


def test_an_address_rests(runtime: Runtime) -> None:
    async def work() -> None:
        ranges = {"ipRanges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.9"}]]}
        await runtime.add(runtimeConfig=ranges)
        await runtime.cni("DEL")
        code, message = await runtime.refused("ADD", "c2", "/run/netns/b", runtimeConfig=ranges)
        assert code == 11 and "until 30 s ago" in message
        await runtime.add("c2", "/run/netns/b", runtimeConfig={"ips": ["10.244.1.9"]})

    runtime.run(work)


# ---- the spool -------------------------------------------------------------------------------------------------------


def test_a_del_that_waited_is_done_at_the_start(runtime: Runtime) -> None:
    async def first() -> None:
        await runtime.add()
        await runtime.add("c2", "/run/netns/b")

    runtime.run(first)
    kept = [runtime.spool("1700000000.000000001-7", runtime.message("DEL"))]
    kept.append(runtime.spool("1700000000.000000002-7", b"what is this?"))
    half = runtime.spool(f".1700000000.000000003-{2**22 + 1}", b"CNI_")
    writing = runtime.spool(f".1700000000.000000004-{os.getpid()}", b"CNI_")

    async def second() -> None:
        await runtime.until(lambda: not any(path.exists() for path in kept))
        assert set(runtime.taken) == {"default/c2"}
        assert runtime.host.tuns["/run/netns/a", "eth0"].kept is False
        assert not half.exists() and writing.exists()

    runtime.run(second)


def test_a_del_that_waited_comes_before_the_next_add(runtime: Runtime) -> None:
    async def work() -> None:
        await runtime.add()
        runtime.spool("1700000000.000000001-7", runtime.message("DEL"))
        assert (await runtime.add())["ips"][0]["address"] == "10.244.1.3/32"

    runtime.run(work)


# ---- clients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        pytest.param(b"", 5, id="nothing"),
        pytest.param(b"CNI_COMMAND=ADD\0", 5, id="no end of the environment"),
        pytest.param(b"\0\0{}", 4, id="no command"),
        pytest.param(b"CNI_COMMAND=VERSION\0\0{}", 4, id="what the executable answers itself"),
        pytest.param(b"\xff\xfe=\0\0\0", 4, id="no text"),
        pytest.param(b"CNI_COMMAND=STATUS\0CNI_PATH=\xff\0\0\xff", 6, id="no text where JSON shall be"),
    ],
)
def test_strange_messages(runtime: Runtime, message: bytes, code: int) -> None:
    async def work() -> None:
        status, _, body = (await runtime.send(message)).partition(b"\n")
        assert status.startswith(b"1 ") and json.loads(body)["code"] == code

    runtime.run(work)


def test_a_client_that_sends_too_much_or_leaves_costs_nothing(runtime: Runtime) -> None:
    async def work() -> None:
        with pytest.raises(OSError):
            await runtime.send(b"x" * (REQUEST_MAX_BYTES + (1 << 20)))
        path = str(runtime.config.run_dir / SOCKET_NAME)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(runtime.message("ADD"))
        assert (await runtime.cni("STATUS"))[0] == 0

    runtime.run(work)


def test_many_at_once(runtime: Runtime) -> None:
    async def work() -> None:
        spaces = {f"/run/netns/p{number}": 100 + number for number in range(100)}
        runtime.host.namespaces |= spaces
        results = await asyncio.gather(*(runtime.add(f"c{number}", path) for path, number in spaces.items()))
        ips = {result["ips"][0]["address"] for result in results}
        assert len(ips) == len(spaces) == len(runtime.taken)
        assert len(runtime.plane.published) < len(spaces), "the tables are made for many at once"
        ends = await asyncio.gather(*(runtime.cni("DEL", f"c{number}", path) for path, number in spaces.items()))
        assert set(ends) == {(0, None)} and runtime.taken == {}

    runtime.run(work)


def test_a_crash_of_ours_is_told(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(runtime.host, "look_into", lambda netns: 1 / 0)
        code, message = await runtime.refused("ADD")
        assert code == 999 and "ZeroDivisionError" in message

    runtime.run(work)
