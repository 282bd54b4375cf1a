"""The whole way of a packet without system calls: canal_process, which is what the worker runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from socket import htons

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from benchmarks.bench_packets import MSS, SEGMENTS, coalesced
from benchmarks.conftest import Stage
from benchmarks.traffic import c, packet, segments
from canal_udp._abi import dtype_of, lib
from canal_udp.encap.fib import packed
from canal_udp.readings import Frame
from tests.bed import Bed, X, from_tun, unwrap, vnet, wrap

FRAMES = 256


def run(stage: Stage, bed: Bed, name: str, frames: list[Frame], packets: int, check: Callable[[], str]) -> None:
    """`packets` is what the frames stand for on a wire."""
    data = np.frombuffer(bytearray(b"".join(frame.data for frame in frames)), np.uint8)
    rows = np.zeros(len(frames), dtype_of("struct canal_frame"))
    at = 0
    for row, frame in zip(rows, frames, strict=True):
        row["port"], row["offset"], row["size"], row["gso_size"] = frame.port, at, len(frame.data), frame.gso_size
        row["addr"], row["port_be"] = np.frombuffer(packed(frame.addr), np.uint8), htons(frame.udp_port)
        at += len(frame.data)
    out, out_rows = np.zeros((1 << 20) + 4 * len(data), np.uint8), np.zeros(4096, rows.dtype)
    into = (c("uint8_t", out), len(out), c("struct canal_frame", out_rows), len(out_rows))
    pointers = (bed.dp._dp, c("uint8_t", data), c("struct canal_frame", rows), len(rows), bed.now_ms, *into)
    stage("pipeline", name, packets, lambda: lib.canal_process(*pointers), check)


@pytest.fixture
def bed() -> Bed:
    return Bed()


def conserved(bed: Bed) -> str:
    bed.dp.check_conservation()
    assert bed.drops() == {}
    return "nothing dropped or lost"


def test_pod_to_peer_small(stage: Stage, bed: Bed) -> None:
    frames = [from_tun(bed.a, packet(64, number=i)) for i in range(FRAMES)]

    def check() -> str:
        sent = [inner for frame in bed.push(*frames) for inner in unwrap(frame, X)]
        assert sorted(IP(inner).sport for inner in sent) == sorted(1024 + i for i in range(FRAMES))
        return conserved(bed)

    with bed:
        run(stage, bed, "pod to peer, UDP 64 bytes", frames, FRAMES, check)


def test_peer_to_pod_small(stage: Stage, bed: Bed) -> None:
    inner = [bytes(IP(src="10.1.2.2", dst="10.1.1.2") / UDP(sport=1024 + i) / Raw(bytes(36))) for i in range(FRAMES)]
    frames = [bed.from_peer(one) for one in inner]

    def check() -> str:
        assert len(bed.push(*frames)) == FRAMES
        return conserved(bed)

    with bed:
        run(stage, bed, "peer to pod, UDP 64 bytes", frames, FRAMES, check)


STRANGER = ip_address("203.0.113.9")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        pytest.param("a stranger's packet", "unknown_peer", id="unknown_peer"),
        pytest.param("a peer's lying source", "inner_src", id="inner_src"),
        pytest.param("garbage inside", "bad_ip", id="bad_ip"),
    ],
)
def test_drops(stage: Stage, bed: Bed, what: str, reason: str) -> None:
    """What a flood costs for each packet that is refused."""
    inner = [bytes(IP(src="10.1.2.2", dst="10.1.1.2") / UDP(sport=1024 + i) / Raw(bytes(36))) for i in range(FRAMES)]
    if reason == "inner_src":
        inner = [bytes(IP(src="10.1.3.2", dst="10.1.1.2") / UDP(sport=1024 + i)) for i in range(FRAMES)]
    elif reason == "bad_ip":
        inner = [b"\x41" + one[1:] for one in inner]
    frames = [bed.from_peer(one) for one in inner]
    if reason == "unknown_peer":
        frames = [replace(frame, addr=STRANGER) for frame in frames]

    def check() -> str:
        before = bed.drops().get(reason, 0)
        assert bed.push(*frames) == []
        assert bed.drops() == {reason: before + FRAMES}
        bed.dp.check_conservation()
        return "each dropped once, with that reason"

    with bed:
        run(stage, bed, f"dropped: {what}", frames, FRAMES, check)


def test_pod_to_peer_superpacket(stage: Stage, bed: Bed) -> None:
    wire = segments(SEGMENTS, MSS)
    joined, _ = coalesced(wire)
    frame = from_tun(bed.a, joined, vnet("tcp4", MSS, csum=True, start=20, offset=16))

    def check() -> str:
        sent = [IP(inner) for out in bed.push(frame) for inner in unwrap(out, X)]
        assert b"".join(bytes(one[TCP].payload) for one in sent) == bytes(IP(joined)[TCP].payload)
        return conserved(bed)

    with bed:
        run(stage, bed, f"pod to peer, TCP {SEGMENTS} x {MSS} bytes", [frame] * 4, 4 * SEGMENTS, check)


def test_peer_to_pod_superpacket(stage: Stage, bed: Bed) -> None:
    wire = []
    for one in segments(SEGMENTS, MSS):
        turned = IP(one)
        turned.src, turned.dst = turned.dst, turned.src
        del turned.chksum, turned[TCP].chksum
        wire.append(bytes(turned))
    outer = [wrap(one, X) for one in wire]
    frame = Frame(bed.vxlan, b"".join(outer), gso_size=len(outer[0]), addr=X.addr, udp_port=40000)

    def check() -> str:
        (found,) = bed.push(frame)
        assert bytes(IP(found.data[10:])[TCP].payload) == b"".join(bytes(IP(one)[TCP].payload) for one in wire)
        return conserved(bed)

    with bed:
        run(stage, bed, f"peer to pod, TCP {SEGMENTS} x {MSS} bytes", [frame] * 4, 4 * SEGMENTS, check)
