"""Our daemon against a node that speaks flannel's udp backend: the raw inner IP packet in UDP port 8285, one at a time.

pod p ─TUN─ node a (daemon, udp) ───veth 1500─── 192.168.1.77 ProxyPeer ─TUN flannel0─ 10.244.77.0
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from canal_udp.lab import host
from canal_udp.lab.commands import CANAL
from canal_udp.lab.traffic import ping, transfer
from tests.netns.bed import IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, Bed, laboratory, wait

LAB = """
networks:
  core: {subnets: [192.168.1.0/24], joint: direct, profile: wire}
overlay: {network: 10.244.0.0/16, encap: udp}
nodes:
  a: {pods: [p]}
  k: {kind: kernel-vxlan, pods: [q]}
"""
POD = "0.0.0.0"  # stands for pod p, whose address is known when the lab is up
PEER, OVERLAY, PORT, MTU = "192.168.1.77", "10.244.77.0", 8285, 1472
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class ProxyPeer:
    """What flannel's proxy does: TUN to socket, socket to TUN, TTL one lower at each step, buffers of one MTU."""

    def __init__(self, a: str) -> None:
        self._a = (a, PORT)
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH22x", b"flannel0", IFF_TUN | IFF_NO_PI))
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((PEER, PORT))
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        os.write(self._stop, b".")
        self._thread.join()
        self.socket.close()
        for fd in (self._tun, self._wake, self._stop):
            os.close(fd)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._tun, self.socket, self._wake], [], [])
            if self._wake in ready:
                return
            if self._tun in ready and (inner := os.read(self._tun, MTU)):
                self.socket.sendto(one_hop(inner), self._a)
            if self.socket in ready:
                os.write(self._tun, one_hop(self.socket.recv(MTU)))


def one_hop(inner: bytes) -> bytes:
    """The packet with its TTL one lower, or as it was if that is no IPv4."""
    if inner[0] >> 4 != 4:
        return inner
    total = int.from_bytes(inner[10:12], "big") + 0x0100
    return (
        inner[:8]
        + bytes((inner[8] - 1,))
        + inner[9:10]
        + ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
        + inner[12:]
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB, "t-udp", tmp_path_factory.mktemp("lab")) as bed:
        bed.run("k", f"ip addr add {PEER}/32 dev eth0")
        put = ["--subnet", "10.244.77.0/24", "--public-ip", PEER, "--encap", "udp"]
        host.run([*CANAL, "lease", "put", "--store", bed.state.store_url(bed.lab), *put])
        peer = bed.inside("k", lambda: ProxyPeer("192.168.1.1"))
        try:
            bed.run("k", f"ip link set flannel0 mtu {MTU} txqueuelen 10000 up")
            bed.run("k", f"ip addr add {OVERLAY}/32 dev flannel0")
            bed.run("k", f"ip route replace {bed.status('a')['subnet']} dev flannel0 src {OVERLAY}")
            wait(lambda: bed.status("a")["peers"] == 2)
            peer.start()
            yield bed
        finally:
            peer.close()


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    yield shared
    shared.settle()


def test_ping(bed: Bed) -> None:
    assert ping(bed.space("p"), OVERLAY)
    assert ping(bed.space("k"), bed.ip("p"))


@pytest.mark.parametrize(
    ("source", "target"), [pytest.param("p", "k", id="to the peer"), pytest.param("k", "p", id="from the peer")]
)
def test_tcp_transfer(bed: Bed, source: str, target: str) -> None:
    address = OVERLAY if target == "k" else bed.ip("p")
    assert transfer(bed.space(source), bed.space(target), address, 20 << 20).equal


def test_udp_of_many_sizes(bed: Bed) -> None:
    data = random.Random(1).randbytes(9000)
    with bed.sock("p") as client, bed.sock("k") as server:
        server.bind((OVERLAY, 0))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        for size in [*range(1, 64), *range(1430, 1460), *range(64, 9000, 61), 9000]:
            client.sendto(data[:size], server.getsockname())
            seen, back = server.recvfrom(65536)
            server.sendto(seen, back)
            assert seen == data[:size] == client.recv(65536)


def test_the_wire_holds_the_inner_packet_and_nothing_else(bed: Bed) -> None:
    """Not a byte before it, none after it; TTL one lower, checksums final, outer Don't Fragment set."""
    with bed.sock("p") as client, bed.capture("a", "eth0") as wire:
        client.sendto(b"hello", (OVERLAY, 7))
        wait(lambda: bed.counter("a", "tx_underlay"))
        (frame,) = (IP(frame[14:]) for frame in wire.frames() if b"hello" in frame)
    assert (frame.src, frame.dst, frame[UDP].sport, frame[UDP].dport) == ("192.168.1.1", PEER, PORT, PORT)
    assert str(frame.flags) == "DF"
    inner = bytes(frame[UDP].payload)
    assert IP(inner).ttl == 63 and IP(inner).len == len(inner) == 33
    fresh = IP(inner)
    del fresh.chksum, fresh[UDP].chksum
    assert bytes(fresh) == inner


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(IP(src="10.244.78.5", dst=POD) / UDP(), "inner_src", id="a source that it does not lease"),
        pytest.param(IP(src=OVERLAY, dst="10.244.77.9") / UDP(), "not_local", id="back to itself"),
        pytest.param(IP(src=OVERLAY, dst=POD, len=200) / UDP(), "short", id="cut off"),
        pytest.param(b"\x45", "short", id="one byte"),
        pytest.param(IP(src=OVERLAY, dst=POD, ihl=4) / UDP(), "bad_ip", id="impossible header length"),
    ],
)
def test_what_a_peer_may_not_send(bed: Bed, payload: IP | bytes, reason: str) -> None:
    if isinstance(payload, IP) and payload.dst == POD:
        payload = payload.copy()
        payload.dst = bed.ip("p")
    with bed.dropping("a", **{reason: 1}), bed.sock("k", 4, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        raw.bind((PEER, 0))
        raw.sendto(bytes(UDP(sport=PORT, dport=PORT, chksum=0) / Raw(bytes(payload))), ("192.168.1.1", 0))
        wait(lambda: bed.status("a")["drops"][reason])


def test_pods_learn_the_path_to_a_narrower_peer(bed: Bed) -> None:
    """The same pod reaches a udp peer with 1472 bytes and a vxlan peer with 1450."""
    with bed.sock("p") as prober:
        prober.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        prober.connect((OVERLAY, 9))
        prober.send(bytes(MTU - 28))
    assert bed.status("a")["drops"]["too_big"] == 0
    with bed.sock("p") as prober, bed.dropping("a", too_big=1):
        prober.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        prober.connect((bed.ip("q"), 9))
        prober.send(bytes(MTU - 28))
        wait(lambda: prober.getsockopt(socket.IPPROTO_IP, 14) == 1450)
