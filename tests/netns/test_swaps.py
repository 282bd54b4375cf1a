"""Ten thousand snapshots while packets flow: none is lost, none goes where no snapshot said.

             ┌── data path A ──┐ 127.0.0.1          127.0.0.2 ┌── data path B ──┐
pod p ──TUN──┤ 10.1.1.0/24     ├──────── loopback ────────────┤ 10.1.2.0/24     ├──TUN── pod q
             └─────────────────┘ └► 127.0.0.3 or 127.0.0.4    └─────────────────┘
               10.1.3.0/24 moves between two plain sockets; dozens of other peers come and go
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from pathlib import Path

import pytest

from canal_udp.actions import Link
from canal_udp.dataplane import Dataplane, DataplaneConfig
from canal_udp.encap.forwarding import Forwarding, Route, Vtep, vtep_key
from canal_udp.tunnel import netlink
from canal_udp.tunnel.device import Tun, open_tun
from canal_udp.tunnel.netns import run_inside
from canal_udp.tunnel.sockets import UnderlaySocket, open_underlay_set
from tests.netns.bed import SO_RCVBUFFORCE
from tests.netns.nodes import Nodes, ip

SWAPS = 10_000
VARIANTS = 64
UDP_PORT, ECHO_PORT = 8285, 7
ANYWHERE = IPv4Network("0.0.0.0/0")


@dataclass
class Side:
    """A data path of its own with one pod."""

    number: int
    dp: Dataplane
    tun: Tun
    sockets: list[UnderlaySocket]

    @property
    def pod(self) -> IPv4Address:
        return IPv4Address(f"10.1.{self.number}.2")

    def close(self) -> None:
        self.dp.stop(2.0)
        self.dp.close()
        for one in self.sockets:
            one.close()
        self.tun.close(keep=False)


def side(number: int, underlay: str, pod: str) -> Side:
    dp = Dataplane(DataplaneConfig(ct_max=4096, ct_share=4096))
    tun = open_tun("eth0", f"/run/netns/{pod}")
    address = ip_address(f"127.0.0.{number}")
    sockets = run_inside(f"/run/netns/{underlay}", lambda: open_underlay_set(address, UDP_PORT, "udp", gro=True))
    made = Side(number, dp, tun, sockets)
    link = Link("p", "eth0", None, 1400, (IPv4Interface(f"{made.pod}/32"),), (ANYWHERE,), loopback_up=True)
    assert run_inside(f"/run/netns/{pod}", lambda: netlink.reconcile(link))
    dp.add_pod("p", tun.fd, 1400, 1)
    for one in sockets:
        dp.add_underlay(one.fd, one.encap, one.family, one.tx_only)
    return made


def vtep(number: int) -> Vtep:
    return Vtep(ip_address("127.0.0.0") + number, UDP_PORT, bytes(6), "udp", 1400, number)


def tables(own: Side, generation: int, moving: int, rng: random.Random) -> Forwarding:
    """The stable peer, the moving one, and some others."""
    vteps = [vtep(3 - own.number), vtep(3), vtep(4), *(vtep(n) for n in sorted(rng.sample(range(5, 250), 40)))]
    to = {3 - own.number: IPv4Network(f"10.1.{3 - own.number}.0/24"), moving: IPv4Network("10.1.3.0/24")}
    to |= {one.id: IPv4Network(f"10.1.{one.id}.0/24") for one in vteps[3:]}
    return Forwarding(
        generation=generation,
        router4=None,
        router6=None,
        mac=bytes(6),
        vni=1,
        mss_clamp=True,
        vteps=tuple(vteps),
        routes=(
            Route(IPv4Network(f"{own.pod}/32"), "pod", "p", local=True),
            *(Route(prefix, "vtep", vtep_key(vtep(number)), local=False) for number, prefix in to.items()),
            Route(IPv4Network("10.1.0.0/16"), "reject", "", local=False),
        ),
    )


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    nodes = Nodes(tmp_path)
    try:
        underlay, p, q = (nodes.namespace(name) for name in ("n", "p", "q"))
        ip("link", "set", "lo", "up", netns=underlay)
        yield underlay, p, q
    finally:
        nodes.close()


def bound(netns: str, address: str, port: int) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        made.bind((address, port))
        return made

    return run_inside(f"/run/netns/{netns}", make)


def received(sock: socket.socket, skip: int = 0) -> list[int]:
    """The numbers that came, in order."""
    sock.settimeout(0.5)
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(int.from_bytes(sock.recv(2048)[skip:], "big"))
    return found


def test_ten_thousand_snapshots_under_load(namespaces: tuple[str, str, str]) -> None:
    underlay, p, q = namespaces
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        one, two = side(1, underlay, p), side(2, underlay, q)
        stack.callback(one.close), stack.callback(two.close)
        variants = [[tables(own, 1, 3 + n % 2, rng) for n in range(VARIANTS)] for own in (one, two)]
        stable = stack.enter_context(bound(q, str(two.pod), ECHO_PORT))
        moving = [stack.enter_context(bound(underlay, f"127.0.0.{n}", UDP_PORT)) for n in (3, 4)]
        client = stack.enter_context(bound(p, str(one.pod), 0))
        for own, made in zip((one, two), variants, strict=True):
            own.dp.publish(made[0])
            own.dp.start()
        sent, over = 0, threading.Event()

        def send() -> None:
            nonlocal sent
            while not over.is_set():
                for target in (str(two.pod), "10.1.3.9"):
                    client.sendto(sent.to_bytes(4, "big"), (target, ECHO_PORT))
                sent += 1
                time.sleep(0.0002)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            for n in range(1, SWAPS + 1):
                for own, made in zip((one, two), variants, strict=True):
                    own.dp.publish(replace(made[n % VARIANTS], generation=n + 1))
        finally:
            over.set()
            sender.join()
        everything = list(range(sent))
        assert sent > SWAPS / 10
        assert received(stable) == everything, f"seed {seed}"
        here, there = (received(sock, skip=28) for sock in moving)  # after the inner IP and UDP headers
        assert here and there
        assert here == sorted(here) and there == sorted(there)
        assert sorted(here + there) == everything, f"seed {seed}"
        for own in (one, two):
            assert not {reason: count for reason, count in own.dp.drops().items() if count and reason != "martian"}
            own.dp.check_conservation()
            own.dp.reclaim()
            assert (own.dp.status().generation, own.dp.status().retired) == (SWAPS + 1, 0)
