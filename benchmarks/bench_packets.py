"""Stages that look at packets: parse, encapsulate, segment, coalesce."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP

from benchmarks.conftest import Stage
from benchmarks.tables import MAC, NODE_MAC, tables
from benchmarks.traffic import Batch, c, mixed, packet, segments
from canal_udp._abi import dtype_of, lib
from canal_udp.encap.codecs import vxlan_pack
from tests.stages import pick

SPAN = dtype_of("struct canal_span")
VNET = dtype_of("struct canal_vnet")
MSS, SEGMENTS = 1398, 44  # the most that one datagram of a VXLAN path holds


def test_parse(stage: Stage) -> None:
    batch = Batch.of(mixed(1024))
    rows = np.zeros(len(batch), dtype_of("struct canal_flow"))

    def check() -> str:
        assert not rows["drop"].any()
        assert rows["total_size"].tolist() == [len(one) for one in batch.packets]
        assert sorted(set(zip(rows["family"].tolist(), rows["proto"].tolist(), strict=True))) == [
            *((4, 6), (4, 17), (6, 6), (6, 17))
        ]
        return "sizes, families, protocols"

    stage(
        "parse",
        "IPv4 and IPv6, TCP and UDP",
        len(batch),
        lambda: lib.canal_parse(*batch.pointers, c("struct canal_flow", rows)),
        check,
    )


@pytest.mark.parametrize("size", [64, 1400])
@pytest.mark.parametrize("encap", ["udp", "vxlan"])
def test_encap(stage: Stage, encap: str, size: int) -> None:
    batch = Batch.of([packet(size, number=i) for i in range(256)])
    out, spans = np.zeros(256 * 1500, np.uint8), np.zeros(256, SPAN)
    which = np.zeros(256, np.uint32)
    made = tables(16, encap)

    def call() -> None:
        lib.canal_encap_batch(
            made,
            *batch.pointers[:2],
            c("uint32_t", which),
            256,
            c("uint8_t", out),
            len(out),
            c("struct canal_span", spans),
        )

    def check() -> str:
        for one, outer in zip(batch.packets, pick(out, spans), strict=True):
            assert outer == (one if encap == "udp" else vxlan_pack(one, vni=1, dst_mac=MAC, src_mac=NODE_MAC))
        return "every byte"

    stage("encap", f"{encap}, {size} bytes", 256, call, check)


@pytest.mark.parametrize("encap", ["udp", "vxlan"])
def test_decap(stage: Stage, encap: str) -> None:
    inner = [packet(576, number=i) for i in range(256)]
    batch = Batch.of(
        [one if encap == "udp" else vxlan_pack(one, vni=1, dst_mac=NODE_MAC, src_mac=MAC) for one in inner]
    )
    spans, drops = np.zeros(256, SPAN), np.ones(256, np.uint16)
    made, kind = tables(16, encap), {"udp": lib.CANAL_ENCAP_UDP, "vxlan": lib.CANAL_ENCAP_VXLAN}[encap]

    def call() -> None:
        lib.canal_decap_batch(made, kind, *batch.pointers, c("struct canal_span", spans), c("uint16_t", drops))

    def check() -> str:
        assert not drops.any() and pick(batch.data, spans) == inner
        return "every byte"

    stage("decap", encap, 256, call, check)


def test_segment(stage: Stage) -> None:
    wire = segments(SEGMENTS, MSS)
    joined, vnet = coalesced(wire)
    out, spans = np.zeros(len(joined) * 2, np.uint8), np.zeros(128, SPAN)
    data, row = np.frombuffer(bytearray(joined), np.uint8), c("struct canal_vnet", vnet)

    def call() -> None:
        lib.canal_segment(
            c("uint8_t", data), len(joined), row, c("uint8_t", out), len(out), c("struct canal_span", spans), 128
        )

    def check() -> str:
        assert pick(out, spans[:SEGMENTS]) == wire
        return "every byte, checksums as scapy has them"

    stage("segment", f"TCP, {SEGMENTS} x {MSS} bytes", SEGMENTS, call, check)


def test_coalesce(stage: Stage) -> None:
    wire = segments(SEGMENTS, MSS)
    batch = Batch.of(wire)
    out, spans, vnets = np.zeros(1 << 17, np.uint8), np.zeros(64, SPAN), np.zeros(64, VNET)

    def call() -> int:
        return lib.canal_coalesce(
            *(*batch.pointers, 0, c("uint8_t", out), len(out)),
            c("struct canal_span", spans),
            c("struct canal_vnet", vnets),
            64,
        )

    def check() -> str:
        assert call() == 1
        (joined,) = pick(out, spans[:1])
        assert bytes(IP(joined)[TCP].payload) == b"".join(bytes(IP(one)[TCP].payload) for one in wire)
        return "payload of all segments"

    stage("coalesce", f"TCP, {SEGMENTS} x {MSS} bytes", SEGMENTS, call, check)


def coalesced(wire: list[bytes]) -> tuple[bytes, np.ndarray]:
    """One superpacket of these segments, and its vnet header."""
    batch, out = Batch.of(wire), np.zeros(1 << 17, np.uint8)
    spans, vnets = np.zeros(1, SPAN), np.zeros(1, VNET)
    done = lib.canal_coalesce(
        *batch.pointers, 0, c("uint8_t", out), len(out), c("struct canal_span", spans), c("struct canal_vnet", vnets), 1
    )
    assert done == 1
    return pick(out, spans)[0], vnets
