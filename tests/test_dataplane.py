"""The data path as an object: errors in words, ports, snapshots, readings, and a worker between real descriptors."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP

from canal_udp._abi import dtype_of, ffi, lib
from canal_udp.config import OPTIONS
from canal_udp.dataplane import CALLS, COUNTERS, DROPS, EVENT_KINDS, Dataplane, DataplaneConfig
from canal_udp.encap.codecs import vxlan_pack, vxlan_unpack
from canal_udp.encap.forwarding import Forwarding, Route, Vtep
from canal_udp.errors import CanalError, DataplaneError, TableError
from canal_udp.faults import ERRORS, TABLES, raise_for
from canal_udp.readings import Frame, Status

MAC, PEER_MAC = bytes.fromhex("02000000a001"), bytes.fromhex("02000000a002")
SMALL = DataplaneConfig(ct_max=1024, ct_share=1024, frag_max=16, busy_poll_us=0, seed=(1, 2))
VNET = bytes(10)


def route(prefix: str, kind: Any, key: str = "", local: bool = False) -> Route:
    return Route(ip_network(prefix), kind, key, local)


def forwarding(port: int = 8472, generation: int = 1) -> Forwarding:
    """Two pods here, one peer whose VTEP is on this machine's loopback."""
    vtep = Vtep(ip_address("127.0.0.1"), port, PEER_MAC, "vxlan", 1450, 77)
    routes = (
        route("10.1.0.2/32", "pod", "default/a", True),
        route("10.1.0.3/32", "pod", "default/b", True),
        route("10.1.0.0/24", "host", "", True),
        route("10.1.2.0/24", "vtep", "127.0.0.1/vxlan"),
        route("10.1.0.0/16", "reject"),
    )
    return Forwarding(generation, ip_address("10.1.0.0"), None, MAC, 1, True, (vtep,), routes)  # type: ignore[arg-type]


class World:
    """A data path whose TUNs are packet sockets (one read is one packet) and whose underlay is loopback."""

    def __init__(self) -> None:
        self.a, a = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.b, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind(("127.0.0.1", 0))
        self.underlay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.underlay.bind(("127.0.0.1", 0))
        self.inside = (a, b, host, self.underlay)
        for end in self.inside:
            end.setblocking(False)
        for end in (self.a, self.b, self.host, self.peer):
            end.settimeout(10)
        self.dp = Dataplane(SMALL)
        self.ports = [
            self.dp.add_pod("default/a", a.fileno(), 1450, 1),
            self.dp.add_pod("default/b", b.fileno(), 1450, 2),
            self.dp.add_host(host.fileno(), 1450),
            self.dp.add_underlay(self.underlay.fileno(), "vxlan", 4),
        ]
        self.dp.publish(forwarding(self.peer.getsockname()[1]))

    def close(self) -> None:
        self.dp.stop(10)
        self.dp.check_conservation()
        self.dp.close()
        for end in (*self.inside, self.a, self.b, self.host, self.peer):
            end.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def now_ms() -> int:
    """The clock by which `flows` tells what is left of a flow's life."""
    return time.monotonic_ns() // 1_000_000


def udp(src: str, dst: str, data: bytes = b"x" * 32) -> bytes:
    return bytes(IP(src=src, dst=dst, ttl=64) / UDP(sport=1000, dport=2000) / data)


# ---- errors ---------------------------------------------------------------------------------------------------------


def fault(code: int, table: int = 0, row: int = 0, field: int = 0, sys_errno: int = 0) -> Any:
    made = ffi.new("struct canal_fault *")
    made.code, made.table, made.row, made.field, made.sys_errno = code, table, row, field, sys_errno
    return made


def test_calls_that_fail_are_named_by_call_and_errno() -> None:
    with Dataplane(DataplaneConfig()) as plane:
        assert plane.errors() == {}
    assert CALLS == ("read", "receive", "write", "send")
    assert max(errno.errorcode) < lib.CANAL_ERRNO_MAX


def test_every_error_code_has_its_exception_and_its_text() -> None:
    codes = {value for value in ffi.typeof("enum canal_err").relements.values() if value < 0}
    assert set(ERRORS) == codes
    texts = set()
    for code in codes:
        with pytest.raises(ERRORS[code]) as caught:
            raise_for(code)
        texts.add(str(caught.value))
    assert len(texts) == len(codes)
    assert not any("unknown" in text for text in texts)


def test_every_table_can_be_named() -> None:
    assert set(TABLES) == set(ffi.typeof("enum canal_table").relements.values())
    for code in ERRORS:
        for table in TABLES:
            with pytest.raises(CanalError):
                raise_for(code, fault(code, table))


def test_success_is_returned() -> None:
    assert raise_for(0) == 0
    assert raise_for(17, fault(0)) == 17


FIB = np.zeros(20, dtype_of("struct canal_fib_entry"))
FIB[17]["target"] = lib.CANAL_TARGET_VTEP | 9
FIB[3]["prefix"] = np.frombuffer(bytes(10) + b"\xff\xff\x0a\x01\x00\x00", np.uint8)
VTEPS = np.zeros(3, dtype_of("struct canal_vtep"))
VTEPS[1]["port_be"] = socket.htons(53)
ROWS = {lib.CANAL_TABLE_FIB: FIB, lib.CANAL_TABLE_VTEP: VTEPS}


def member(struct: str, name: str) -> int:
    return int(dtype_of(struct).fields[name][1])


@pytest.mark.parametrize(
    ("made", "kind", "message"),
    [
        pytest.param(
            fault(lib.CANAL_ERANGE, lib.CANAL_TABLE_FIB, 17, member("struct canal_fib_entry", "target")),
            TableError,
            "fib[17].target = 0x20000009: index beyond 3 vteps",
            id="a route to a vtep that is not there",
        ),
        pytest.param(
            fault(lib.CANAL_EDUP, lib.CANAL_TABLE_FIB, 3, 0),
            TableError,
            "fib[3].prefix = 10.1.0.0: " + ffi.string(lib.canal_strerror(lib.CANAL_EDUP)).decode(),
            id="the same prefix twice",
        ),
        pytest.param(
            fault(lib.CANAL_EINVAL, lib.CANAL_TABLE_VTEP, 1, member("struct canal_vtep", "port_be")),
            TableError,
            "vteps[1].port_be = 53: " + ffi.string(lib.canal_strerror(lib.CANAL_EINVAL)).decode(),
            id="a number in network order",
        ),
        pytest.param(
            fault(lib.CANAL_EINVAL, lib.CANAL_TABLE_FIB, 99, 0),
            TableError,
            "fib[99].prefix: " + ffi.string(lib.canal_strerror(lib.CANAL_EINVAL)).decode(),
            id="a row that is not at hand",
        ),
        pytest.param(
            fault(lib.CANAL_ESYS, lib.CANAL_TABLE_PORT, 0, 0, 9),
            DataplaneError,
            "Bad file descriptor",
            id="a system call",
        ),
    ],
)
def test_faults_in_words(made: Any, kind: type[CanalError], message: str) -> None:
    with pytest.raises(kind) as caught:
        raise_for(made.code, made, ROWS)
    assert str(caught.value) == message
    assert type(caught.value) is kind


# ---- life, ports, snapshots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"ct_max": 0}, {"frag_max": 0}, {"gso_segments_max": 4096}], ids=str)
def test_config_out_of_its_domain(change: dict[str, int]) -> None:
    with pytest.raises(DataplaneError, match=rf"^config\.{next(iter(change))}: "):
        Dataplane(replace(SMALL, **change))


def test_seeds_are_random_by_default() -> None:
    assert DataplaneConfig().seed != DataplaneConfig().seed


def test_names_are_those_of_the_header(world: World) -> None:
    assert {"rx_pod", "originated", "wakeups"} <= set(world.dp.counters())
    assert list(world.dp.counters()) == list(COUNTERS)
    assert list(world.dp.drops()) == [name for name in DROPS if name != "none"]
    assert {"mtu", "gso_fallback", "port_error", "lost", "stalled"} == set(EVENT_KINDS.values())


def test_ports_come_and_go(world: World) -> None:
    found = [(port.index, port.kind, port.name, port.id) for port in world.dp.ports()]
    kinds = [("pod", "default/a", 1), ("pod", "default/b", 2), ("host", "host", 0), ("underlay", "vxlan4", 0)]
    assert found == [(index, *kind) for index, kind in zip(world.ports, kinds, strict=True)]
    world.dp.remove_port(world.ports[0])
    assert [port.name for port in world.dp.ports()] == ["default/b", "host", "vxlan4"]
    assert world.dp.status().ports == 3
    with pytest.raises(CanalError):
        world.dp.remove_port(world.ports[0])


def test_a_pod_has_one_port(world: World) -> None:
    with pytest.raises(DataplaneError, match="pod port default/a: there is one already"):
        world.dp.add_pod("default/a", world.inside[0].fileno(), 1450, 1)


def test_a_closed_descriptor_is_refused(world: World) -> None:
    fd = os.eventfd(0)
    os.close(fd)
    with pytest.raises(DataplaneError, match="Bad file descriptor"):
        world.dp.add_pod("default/c", fd, 1450, 3)
    assert len(world.dp.ports()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda f: replace(f, routes=(*f.routes, f.routes[0])), r"fib\[5\]\.prefix = 10\.1\.0\.2: ", id="twice"
        ),
        pytest.param(
            lambda f: replace(f, routes=(route("10.1.9.0/24", "pod", "default/z"),)), "no pod default/z", id="unknown"
        ),
    ],
)
def test_a_bad_snapshot_leaves_the_old_one(
    world: World, change: Callable[[Forwarding], Forwarding], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        world.dp.publish(change(forwarding(generation=2)))
    assert world.dp.status().generation == 1


def test_replaced_snapshots_are_freed(world: World) -> None:
    for generation in range(2, 200):
        world.dp.publish(forwarding(generation=generation))
    assert world.dp.reclaim() == 0
    status = world.dp.status()
    assert (status.generation, status.retired) == (199, 0)
    assert set(Status.__dataclass_fields__) == set(dtype_of("struct canal_status").names or ())


def test_closed_is_closed() -> None:
    dp = Dataplane(SMALL)
    dp.close()
    dp.close()
    for use in (dp.counters, dp.status, dp.ports, dp.events, dp.start, dp.reclaim):
        with pytest.raises(DataplaneError, match="closed"):
            use()
    assert "closed" in repr(dp)


# ---- the pipeline without I/O ---------------------------------------------------------------------------------------


def test_process_between_pods(world: World) -> None:
    a, b, *_ = world.ports
    (out,) = world.dp.process([Frame(a, VNET + udp("10.1.0.2", "10.1.0.3"))], now_ms())
    assert out.port == b
    assert IP(out.data[10:])[IP].ttl == 63
    world.dp.check_conservation()
    (flow,) = world.dp.flows()
    assert (str(flow.src), flow.sport, str(flow.dst), flow.dport) == ("10.1.0.2", 1000, "10.1.0.3", 2000)
    assert (flow.proto, flow.state, flow.verdict) == (17, "new", "allow")
    assert (flow.came_from, flow.goes_to) == ("pod default/a", "pod default/b")
    assert (flow.packets, flow.bytes) == ((1, 0), (60, 0))


def test_process_to_a_peer_and_back(world: World) -> None:
    a, _, _, underlay = world.ports
    (out,) = world.dp.process([Frame(a, VNET + udp("10.1.0.2", "10.1.2.9"))], now_ms())
    assert (out.port, str(out.addr), out.udp_port) == (underlay, "127.0.0.1", world.peer.getsockname()[1])
    inner, drop = vxlan_unpack(out.data, vni=1, mac=PEER_MAC)
    assert (drop, IP(inner).dst) == ("none", "10.1.2.9")
    reply = vxlan_pack(udp("10.1.2.9", "10.1.0.2"), vni=1, dst_mac=MAC, src_mac=PEER_MAC)
    (back,) = world.dp.process([Frame(underlay, reply, addr=out.addr, udp_port=out.udp_port)], now_ms())
    assert (back.port, IP(back.data[10:]).src) == (a, "10.1.2.9")
    (flow,) = [flow for flow in world.dp.flows() if str(flow.dst) == "10.1.2.9"]
    assert flow.goes_to == "vtep 127.0.0.1/vxlan"
    assert world.dp.drops()["unknown_peer"] == 0


def test_process_refuses_what_is_no_port(world: World) -> None:
    with pytest.raises(DataplaneError):
        world.dp.process([Frame(4095, VNET)], now_ms())
    assert world.dp.process([], now_ms()) == []


def test_conservation_names_the_sums(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.dp.process([Frame(world.ports[0], VNET + udp("10.1.0.9", "10.1.0.3"))], now_ms())
    assert world.dp.drops()["spoofed"] == 1
    counters, drops = world.dp.counters(), world.dp.drops()
    monkeypatch.setattr(Dataplane, "_read_counters", lambda self: (counters | {"rx_pod": 2}, drops))
    with pytest.raises(AssertionError, match=r"not conserved: rx_pod 2 != drop\.spoofed 1"):
        world.dp.check_conservation()
    monkeypatch.undo()


# ---- the worker -----------------------------------------------------------------------------------------------------


def test_worker_moves_packets(world: World) -> None:
    world.dp.start()
    assert world.dp.running
    world.a.send(VNET + udp("10.1.0.2", "10.1.0.3"))
    assert IP(world.b.recv(2048)[10:]).src == "10.1.0.2"
    world.a.send(VNET + udp("10.1.0.2", "10.1.2.9"))
    inner, _ = vxlan_unpack(world.peer.recv(2048), vni=1, mac=PEER_MAC)
    assert IP(inner).src == "10.1.0.2"
    reply = vxlan_pack(udp("10.1.2.9", "10.1.0.2"), vni=1, dst_mac=MAC, src_mac=PEER_MAC)
    world.peer.sendto(reply, world.underlay.getsockname())
    assert IP(world.a.recv(2048)[10:]).src == "10.1.2.9"
    world.dp.stop(10)
    assert not world.dp.running
    assert world.dp.counters()["tx_pod"] == 2
    assert world.dp.status().running == 0


def test_worker_refuses_to_be_freed_or_started_twice(world: World) -> None:
    world.dp.start()
    wait_until(lambda: world.dp.status().running == 1)
    with pytest.raises(DataplaneError, match="busy"):
        world.dp.close()
    with pytest.raises(DataplaneError, match="runs already"):
        world.dp.start()
    with pytest.raises(DataplaneError, match="busy"):
        world.dp.process([], now_ms())


def test_worker_starts_again_after_a_stop(world: World) -> None:
    for _ in range(3):
        world.dp.start()
        world.a.send(VNET + udp("10.1.0.2", "10.1.0.3"))
        assert world.b.recv(2048)
        world.dp.stop(10)


def test_worker_stopped_at_once_or_never_started(world: World) -> None:
    world.dp.stop(10)
    for _ in range(20):
        world.dp.start()
        world.dp.stop(10)


def test_snapshots_and_ports_change_under_a_running_worker(world: World) -> None:
    world.dp.start()
    for generation in range(2, 300):
        world.dp.publish(forwarding(world.peer.getsockname()[1], generation))
        world.a.send(VNET + udp("10.1.0.2", "10.1.0.3"))
        assert world.b.recv(2048)
    world.dp.remove_port(world.ports[1])
    world.a.send(VNET + udp("10.1.0.2", "10.1.2.9"))
    assert world.peer.recv(2048)
    wait_until(lambda: world.dp.reclaim() == 0)


def test_the_largest_flow_table_that_a_user_may_ask_for_is_made() -> None:
    (most,) = (option.high for option in OPTIONS if option.name == "ct_max")
    Dataplane(DataplaneConfig(ct_max=most, ct_share=most // 4)).close()


def test_a_dead_port_is_an_event(world: World) -> None:
    world.dp.start()
    world.b.close()
    world.a.send(VNET + udp("10.1.0.2", "10.1.0.3"))
    readable, _, _ = select.select([world.dp.events_fd], [], [], 10)
    assert readable
    found = world.dp.events()
    assert [event.kind for event in found] == ["port_error"]
    assert (found[0].port, found[0].id) == (world.ports[1], 2)
    assert world.dp.events() == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
