"""What others may send us: headers that the kernel's VXLAN would refuse, strangers, liars, hostile pods.

pods p, r ─TUN─ node a (daemon) ───bridge─── nodes k, l (kernel VXLAN) ─ pods q, s
"""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptPrefixInfo,
    ICMPv6PacketTooBig,
    IPv6,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from canal_udp.lab.plan import public_address
from tests.netns.bed import SO_RCVBUFFORCE, UDP_SEGMENT, VXLAN_PORT, Bed, drain, laboratory

LAB = """
networks: {core: {subnets: [192.168.1.0/24], profile: wire}}
overlay: {network: 10.244.0.0/16, network6: "fd10:244::/48", encap: vxlan}
nodes:
  a: {pods: [p, r], flags: [--mtu-probe-s, "0"]}
  k: {kind: kernel-vxlan, pods: [q]}
  l: {kind: kernel-vxlan, pods: [s]}
"""
STRANGER = "192.168.1.66"
PORT = 7777
HEADER = struct.Struct("!BBBBI")  # flags, 24 reserved bits, VNI and 8 reserved bits
GOOD = HEADER.pack(0x08, 0, 0, 0, 1 << 8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB, "t-faults", tmp_path_factory.mktemp("lab")) as bed:
        bed.run("k", f"ip addr add {STRANGER}/24 dev eth0")
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    """Afterwards the good packets still pass."""
    yield shared
    shared.transfer("q", "p", 1 << 20)
    shared.settle()


def public(bed: Bed, node: str) -> str:
    return str(public_address(bed.lab, node, 4))


def vtep_mac(bed: Bed, node: str) -> str:
    if node == "a":
        return str(bed.status("a")["vtep_mac"])
    return str(json.loads(bed.run(node, "ip -j link show flannel.1"))[0]["address"])


def attacker(bed: Bed, target: str = "a", source: str = "") -> socket.socket:
    """A socket of node k towards the VXLAN port of a node: the outer source is a known peer's, unless it is said."""
    made = bed.sock("k")
    if source:
        made.bind((source, 0))
    made.connect((public(bed, target), VXLAN_PORT))
    return made


def frame(bed: Bed, inner: Packet, target: str = "a") -> bytes:
    return bytes(Ether(dst=vtep_mac(bed, target), src=vtep_mac(bed, "k")) / inner)


def listener(bed: Bed, pod: str) -> socket.socket:
    made = bed.sock(pod)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    made.bind((bed.ip(pod), PORT))
    return made


def to_pod(bed: Bed, pod: str, payload: bytes = b"0000", source: str = "") -> Packet:
    return IP(src=source or bed.ip("q"), dst=bed.ip(pod)) / UDP(sport=9, dport=PORT, chksum=0) / Raw(payload)


# ---- datagrams ---------------------------------------------------------------------------------------------------


def dropped(bed: Bed) -> int:
    """What node a dropped, but for the neighbour discovery that the pods' own kernel tries now and then."""
    return sum(count for reason, count in bed.drops("a").items() if reason != "martian")


def test_every_truncation_is_dropped_once(bed: Bed) -> None:
    """F01: cut anywhere, or as long as a datagram can be: nothing reaches the pod, each is counted."""
    whole = GOOD + frame(bed, to_pod(bed, "p", bytes(60)))
    before = dropped(bed)
    with attacker(bed) as sender, listener(bed, "p") as receiver:
        for size in range(len(whole)):
            sender.send(whole[:size])
        sender.send(GOOD + bytes(65507 - len(GOOD)))
        bed.settle()
        assert drain(receiver, 1, 0.3) == []
    assert dropped(bed) - before == len(whole) + 1


def test_flags_and_vni_are_judged_as_the_kernel_does(bed: Bed) -> None:
    """F02: all flags, near and far VNIs, reserved bits: the same headers pass here and in the kernel's VXLAN."""
    headers = [
        struct.pack("!II", flags << 24 | reserved, vni << 8 | last)
        for flags in range(256)
        for vni in (0, 1, 2, (1 << 24) - 1)
        for reserved in (0, 1, 0x800000)
        for last in (0, 1, 0x80)
    ]
    passed = {}
    for node, pod in (("a", "p"), ("l", "s")):
        packet = bytearray(frame(bed, to_pod(bed, pod), node))
        with attacker(bed, node) as sender, listener(bed, pod) as receiver:
            for number, header in enumerate(headers):
                packet[-4:] = number.to_bytes(4, "big")
                sender.send(header + packet)
            passed[node] = [int.from_bytes(one, "big") for one in drain(receiver, len(headers), 0.5)]
    assert passed["a"] == passed["l"]
    assert [headers[number] for number in passed["a"]] == [GOOD]


def test_a_stranger_reaches_nobody(bed: Bed) -> None:
    """F03: two hundred thousand well-formed frames from an address that is no peer's; the good flow loses nothing."""
    packet = GOOD + frame(bed, to_pod(bed, "p"))
    batch, batches, good = 64, 3125, 3000
    before = bed.drops("a").get("unknown_peer", 0)

    def flood() -> None:
        with attacker(bed, source=STRANGER) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(packet))
            for _ in range(batches):
                sender.send(packet * batch)
                time.sleep(0.0005)

    with (
        ThreadPoolExecutor(1) as pool,
        bed.sock("q") as sender,
        bed.receiver("p") as receiver,
        listener(bed, "p") as hit,
    ):
        flooding = pool.submit(flood)
        sent = 0
        while not flooding.done() or sent < good:
            sender.sendto(sent.to_bytes(4, "big"), receiver.getsockname())
            sent += 1
            time.sleep(0.0005)
        flooding.result()
        assert len(drain(receiver, sent, 0.5)) > 0.999 * sent
        assert drain(hit, 1, 0.1) == []
    assert bed.drops("a")["unknown_peer"] - before > 0.9 * batch * batches  # the rest: the socket's queue was full


@pytest.mark.parametrize("source", ["s", "p", "r", "8.8.8.8", "a"])
def test_a_peer_sends_only_what_it_leases(bed: Bed, source: str) -> None:
    """F04: the source of another peer, of ourselves, of the outside."""
    address = bed.ip(source) if len(source) == 1 and source != "a" else source
    address = bed.status("a")["subnet"].partition("/")[0] if source == "a" else address
    packet = GOOD + frame(bed, to_pod(bed, "p", source=address))
    with attacker(bed) as sender, listener(bed, "p") as receiver, bed.dropping("a", inner_src=50):
        for _ in range(50):
            sender.send(packet)
        assert drain(receiver, 1, 0.2) == []


@pytest.mark.parametrize("target", ["s", "q", "10.244.250.1", "8.8.8.8", "192.168.1.1"])
def test_nothing_that_came_from_a_peer_leaves_again(bed: Bed, target: str) -> None:
    """F05: to another peer, back to the sender, to nobody, to the outside: no packet is emitted, so none can circle."""
    inner = IP(src=bed.ip("q"), dst=bed.ip(target) if len(target) == 1 else target) / UDP(dport=PORT) / Raw(b"x" * 100)
    packet = GOOD + frame(bed, inner)
    with bed.capture("a", "eth0") as wire, attacker(bed) as sender, bed.dropping("a", not_local=50):
        for _ in range(50):
            sender.send(packet)
        bed.settle()
        assert [one for one in wire.frames() if one[12:14] == b"\x08\x00" and one[23] == 17] == []


def ethernets(bed: Bed) -> Iterator[Packet | bytes]:
    """Frames that are not exactly IPv4 or IPv6 to us."""
    ip = to_pod(bed, "p")
    to, source = vtep_mac(bed, "a"), vtep_mac(bed, "k")
    ether = Ether(dst=to, src=source)
    yield ether / Dot1Q(vlan=0) / ip
    yield ether / Dot1Q(vlan=0) / Dot1Q(vlan=0) / ip
    yield ether / Dot1AD(vlan=7) / Dot1Q(vlan=1) / ip
    yield Dot3(dst=to, src=source) / LLC() / SNAP() / ip
    for length in (0, 1, 46, 1500, 1501, 1535):
        yield Dot3(dst=to, src=source, len=length) / LLC() / SNAP(code=0x0800) / ip
    yield ether / ARP(op=1, psrc=bed.ip("q"), pdst=bed.ip("p"))
    yield Ether(dst="ff:ff:ff:ff:ff:ff", src=source) / ARP(op=1, psrc=bed.ip("q"), pdst=bed.ip("p"))
    yield Ether(dst="ff:ff:ff:ff:ff:ff", src=source) / ip
    yield Ether(dst="01:00:5e:00:00:01", src=source) / ip
    yield Ether(dst="02:00:00:00:00:99", src=source) / ip
    yield Ether(dst=to, src=to) / ip
    yield Ether(dst=to, src=source, type=0x86DD) / ip
    yield Ether(dst=to, src=source, type=0x8847) / ip


def test_only_exact_ethernet_passes(bed: Bed) -> None:
    """F15: tags, LLC, broadcasts and wrong types are not looked into."""
    frames = [bytes(one) for one in ethernets(bed)]
    before = sum(bed.drops("a").values())
    with attacker(bed) as sender, listener(bed, "p") as receiver:
        for one in frames:
            sender.send(GOOD + one)
        bed.settle()
        assert drain(receiver, 1, 0.3) == []
    assert sum(bed.drops("a").values()) - before == len(frames)


# ---- a hostile pod -----------------------------------------------------------------------------------------------


def hostile(bed: Bed) -> Iterator[Packet]:
    """What a pod has no right to send."""
    own, other, far = bed.ip("p"), bed.ip("r"), bed.ip("s")
    own6, far6 = bed.ip("p", 6), bed.ip("s", 6)
    for source in (other, bed.ip("q"), public(bed, "a"), public(bed, "k"), "8.8.8.8", "0.0.0.0", "127.0.0.1"):
        for target in (far, other, "8.8.8.8", public(bed, "k")):
            yield IP(src=source, dst=target) / UDP(dport=PORT) / Raw(b"spoofed")
    for source in (bed.ip("r", 6), bed.ip("q", 6), "2001:db8::1", "::"):
        yield IPv6(src=source, dst=far6) / UDP(dport=PORT) / Raw(b"spoofed")
    for source in (own6, "fe80::1"):
        for target in (far6, "ff02::1", "ff02::2", "fe80::2"):
            ip = IPv6(src=source, dst=target, hlim=255)
            yield ip / ICMPv6ND_RA() / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
            yield ip / ICMPv6ND_NS(tgt=far6)
            yield ip / ICMPv6ND_NA(tgt=far6)
            yield ip / ICMPv6ND_Redirect(tgt=own6, dst=far6)
    yield IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / BOOTP() / DHCP()
    yield IP(src=own, dst="224.0.0.1") / UDP(dport=PORT) / Raw(b"multicast")
    for target in (other, far, public(bed, "a")):
        yield IP(src=own, dst=target) / ICMP(type=5, code=1, gw=own) / IP(src=target, dst=far) / UDP()
        yield IP(src=own, dst=target) / ICMP(type=9)


def forged_errors(bed: Bed, port: int) -> Iterator[Packet]:
    """ICMP errors of p about a flow from r to s, on whose way p does not lie, and about flows that do not exist."""
    own, other, far = bed.ip("p"), bed.ip("r"), bed.ip("s")
    for quoted in (
        IP(src=other, dst=far) / UDP(sport=port, dport=PORT),
        IP(src=other, dst=far) / UDP(sport=1, dport=2),
        IP(src=far, dst=other) / TCP(sport=1, dport=2),
    ):
        yield IP(src=own, dst=other) / ICMP(type=3, code=4, nexthopmtu=600) / quoted
        yield IP(src=own, dst=other) / ICMP(type=3, code=3) / quoted
        yield IP(src=own, dst=far) / ICMP(type=3, code=1) / quoted
    own6, other6, far6 = bed.ip("p", 6), bed.ip("r", 6), bed.ip("s", 6)
    yield (
        IPv6(src=own6, dst=other6)
        / ICMPv6PacketTooBig(mtu=1280)
        / IPv6(src=other6, dst=far6)
        / UDP(sport=port, dport=PORT)
    )


def test_a_hostile_pod_harms_nobody(bed: Bed) -> None:
    """F16: none of it leaves the node or reaches the host or another pod; the host's addresses and routes stay."""
    before = belongings(bed)
    packets = list(hostile(bed))
    with (
        bed.capture("a", "eth0") as wire,
        bed.capture("a", "canal0", outgoing=False) as host,
        bed.capture("r", "eth0", outgoing=False) as neighbour,
        bed.sock("r") as victim,
        bed.sock("r", 6) as victim6,
    ):
        for one, version in ((victim, 4), (victim6, 6)):
            one.connect((bed.ip("s", version), PORT))
            one.send(b"a flow of its own")
        packets += forged_errors(bed, victim.getsockname()[1])
        packets += forged_errors(bed, victim6.getsockname()[1])
        bed.settle()
        time.sleep(0.1)  # what s answers (nobody listens there)
        for capture in (wire, host, neighbour):
            capture.frames()
        random.Random(1).shuffle(packets)
        raw = bed.inside("p", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
        with raw:
            for packet in packets:
                kind = 0x0800 if IP in packet and not isinstance(packet, IPv6) else 0x86DD
                raw.sendto(bytes(packet), ("eth0", kind))
        bed.settle()
        time.sleep(0.1)
        for capture in (wire, host, neighbour):
            seen = [one for one in capture.frames() if bed_packet(one, capture is wire)]
            assert seen == []
    assert belongings(bed) == before


def bed_packet(frame: bytes, ethernet: bool) -> bool:
    """Not ARP between the nodes, which goes on as ever."""
    return not ethernet or frame[12:14] in (b"\x08\x00", b"\x86\xdd")


def belongings(bed: Bed) -> list[object]:
    words = ("ip -j addr", "ip -j route", "ip -j -6 route")
    found = [json.loads(bed.run(member, word)) for member in ("a", "r") for word in words]
    for part in found:
        for item in part:
            for key in ("expires", "flags"):
                item.pop(key, None)
    return found
