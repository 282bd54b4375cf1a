"""Paths that carry less than was believed: told by the link, told by a router, or not told at all.

pod p ─TUN─ node a ───core 1500─── router r ───far 1400─── node c ─TUN─ pod s
                         └─ node b ─TUN─ pod q
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from canal_udp.api import call
from canal_udp.lab import faults
from canal_udp.lab.impair import Impairment
from canal_udp.lab.traffic import ping
from tests.netns.bed import IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, TIMEOUT_S, Bed, laboratory, wait

LAB = """
networks: {{core: {{profile: wire}}, far: {{profile: wire, mtu: 1400}}}}
routers: {{r: {{networks: [core, far]}}}}
overlay: {{network: 10.244.0.0/16, encap: {encap}}}
nodes:
  a: {{network: core, pods: [p]}}
  b: {{network: core, pods: [q]}}
  c: {{network: far, pods: [s]}}
"""
OVERHEAD = {"udp": 28, "vxlan": 50}
IP_MTU = 14
RECOVERY_S = 2.0  # TCP sends again after 0.2, 0.6 and 1.4 s; the third one is for busy machines
PATIENCE_S = 10.0


@pytest.fixture(params=OVERHEAD)
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A lab for each test: what was learned of a path is kept for minutes."""
    text = LAB.format(encap=request.param)
    with laboratory(text, "t-path", tmp_path_factory.mktemp("lab")) as bed:
        yield bed
        bed.settle()


def overhead(bed: Bed) -> int:
    return OVERHEAD[bed.lab.nodes["a"].encap]


def peer(bed: Bed, node: str, other: str) -> dict[str, Any]:
    """What a node knows of another."""
    found: list[dict[str, Any]] = call(bed.state.run_dir(node), "peers", timeout_s=TIMEOUT_S)
    return next(row for row in found if row["node"] == other)


def settled(bed: Bed, node: str, other: str, path: str) -> Callable[[], bool]:
    return lambda: bool(peer(bed, node, other)["path"] == path)


def full_size_pings(bed: Bed, source: str, target: str, mtu_bytes: int) -> None:
    """A packet of the MTU passes unfragmented, one of a byte more does not."""
    words = ["ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s"]
    bed.run(source, " ".join([*words, str(mtu_bytes - 28), bed.ip(target)]))
    with bed.sock(source) as client:
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        client.connect((bed.ip(target), 9))
        with pytest.raises(OSError, match="too long"):
            client.send(bytes(mtu_bytes - 27))


def pod_mtu(bed: Bed, pod: str) -> int:
    return int(json.loads(bed.run(pod, "ip -j link show dev eth0"))[0]["mtu"])


def test_the_underlay_changes_live(bed: Bed) -> None:
    """1500, 1280, 9000: devices and pods follow, and a connection goes on with what fits."""
    with bed.stream("p", "q") as (client, server):
        for mtu_bytes in (1280, 9000, 1500):
            faults.mtu(bed.lab, "core", mtu_bytes)
            inner = mtu_bytes - overhead(bed)
            wait(lambda inner=inner: pod_mtu(bed, "p") == pod_mtu(bed, "q") == inner)  # type: ignore[misc]
            wait(lambda inner=inner: peer(bed, "a", "b")["mtu"] == peer(bed, "b", "a")["mtu"] == inner)  # type: ignore[misc]
            wait(settled(bed, "a", "b", "verified"))
            full_size_pings(bed, "p", "q", inner)
            exchange(client, server, 4 << 20)


def exchange(client: socket.socket, server: socket.socket, size: int) -> None:
    def send() -> None:
        client.sendall(bytes(size))

    sender = threading.Thread(target=send)
    sender.start()
    left = size
    while left:
        left -= len(server.recv(min(left, 1 << 20)))
    sender.join()


def test_a_router_tells(bed: Bed) -> None:
    """Frag-needed of a router on the way is believed to the byte, and told on to the pods."""
    inner = 1400 - overhead(bed)
    wait(settled(bed, "a", "c", "learned"))
    assert peer(bed, "a", "c")["mtu"] == inner
    assert peer(bed, "a", "b")["mtu"] == 1500 - overhead(bed)
    with bed.sock("p") as client:
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        client.connect((bed.ip("s"), 9))
        client.send(bytes(inner + 1 - 28))
        wait(lambda: client.getsockopt(socket.IPPROTO_IP, IP_MTU) == inner)
    assert bed.drops("a")["too_big"] >= 1
    for source, target in (("p", "s"), ("s", "p")):
        bed.transfer(source, target, 8 << 20)


def test_what_may_be_fragmented_arrives(bed: Bed) -> None:
    """Don't Fragment is clear: datagrams larger than the path arrive whole."""
    wait(settled(bed, "a", "c", "learned"))
    with bed.sock("p") as client, bed.receiver("s") as server:
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        for size in (1400, 1500, 4000, 9000):
            client.sendto(bytes([size & 255]) * size, server.getsockname())
            assert server.recv(65536) == bytes([size & 255]) * size


def test_nobody_tells(bed: Bed) -> None:
    """A black hole for large packets: a running connection goes on soon, and the log says why it stood."""
    wait(settled(bed, "a", "b", "verified"))
    with bed.stream("p", "q") as (client, server):
        client.settimeout(PATIENCE_S)
        server.settimeout(PATIENCE_S)
        exchange(client, server, 1 << 20)
        faults.impair(bed.lab, bed.state, "core", Impairment(blackhole_bytes=1300))
        began = time.monotonic()
        exchange(client, server, 16 << 20)
        took = time.monotonic() - began
    assert took < RECOVERY_S
    row = peer(bed, "a", "b")
    assert row["path"] == "learned"
    assert 1300 - overhead(bed) - 8 < row["mtu"] <= 1300 - overhead(bed)
    assert f"path.black_hole peer={row['public_ip']}" in bed.state.log("daemon", "a").read_text()
    assert ping(bed.space("p"), bed.ip("q"))
    bed.transfer("q", "p", 4 << 20)
