"""The stages of the data plane as functions on bytes: calls of the batch functions, and nothing decided here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from canal_udp._abi import dtype_of, enum_names, ffi, lib

DROPS = enum_names("enum canal_drop", "CANAL_DROP_")
SPAN = dtype_of("struct canal_span")
VNET = dtype_of("struct canal_vnet")
FLOW = dtype_of("struct canal_flow")
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80


@dataclass(frozen=True)
class Vnet:
    """Fields as in struct canal_vnet."""

    needs_csum: int = 0
    gso_type: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    hdr_size: int = 0
    segments: int = 1

    @classmethod
    def of(cls, row: np.void) -> Vnet:
        return cls(*(int(row[name]) for name in VNET.names or ()))

    def array(self) -> np.ndarray:
        rows = np.zeros(1, VNET)
        for name in VNET.names or ():
            rows[name] = getattr(self, name)
        return rows


def lay(packets: Sequence[bytes], gap: int = 0) -> tuple[bytes, np.ndarray]:
    """All packets in one buffer, `gap` bytes between them, and where they lie."""
    spans, at = np.zeros(len(packets), SPAN), 0
    for index, packet in enumerate(packets):
        spans[index] = (at, len(packet))
        at += len(packet) + gap
    return bytes(gap).join(packets) + b"\0", spans


def pick(buffer: np.ndarray, spans: np.ndarray) -> list[bytes]:
    return [buffer[int(at) : int(at) + int(size)].tobytes() for at, size in spans]


def pointer(kind: str, array: np.ndarray) -> object:
    return ffi.from_buffer(f"{kind}[]", array, require_writable=True)


def parse(packets: Sequence[bytes]) -> np.ndarray:
    data, spans = lay(packets)
    flows = np.zeros(len(packets), FLOW)
    done = lib.canal_parse(
        ffi.from_buffer("uint8_t[]", data),
        pointer("struct canal_span", spans),
        len(packets),
        pointer("struct canal_flow", flows),
    )
    assert done == len(packets)
    return flows


def vnet_header(flags: int, gso_type: int, hdr_len: int, gso_size: int, csum_start: int, csum_offset: int) -> bytes:
    return struct.pack("=BBHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)


def vnet_check(header: bytes, flow: np.ndarray) -> tuple[str, Vnet]:
    """flow: one row that parse() filled. Returns the drop reason and what came out."""
    vnet = np.zeros(1, VNET)
    drop = lib.canal_vnet_check(
        ffi.from_buffer("uint8_t[]", header), pointer("struct canal_flow", flow), pointer("struct canal_vnet", vnet)
    )
    return DROPS[drop], Vnet.of(vnet[0])


def segment(packet: bytes, vnet: Vnet, out_size: int = 300_000, n_spans: int = 4096) -> list[bytes] | int:
    """Wire packets, or the error."""
    out, spans = np.zeros(out_size, np.uint8), np.zeros(n_spans, SPAN)
    data = ffi.from_buffer("uint8_t[]", packet)
    vnets = pointer("struct canal_vnet", vnet.array())
    done = lib.canal_segment(
        data, len(packet), vnets, pointer("uint8_t", out), out_size, pointer("struct canal_span", spans), n_spans
    )
    return pick(out, spans[:done]) if done >= 0 else done


def coalesce(packets: Sequence[bytes], flags: int = 0, out_size: int | None = None) -> list[tuple[bytes, Vnet]] | int:
    """Superpackets with their vnet, or the error."""
    data, spans = lay(packets, gap=3)
    out = np.zeros(sum(map(len, packets)) if out_size is None else out_size, np.uint8)
    out_spans, vnets = np.zeros(len(packets), SPAN), np.zeros(len(packets), VNET)
    done = lib.canal_coalesce(
        ffi.from_buffer("uint8_t[]", data),
        pointer("struct canal_span", spans),
        len(packets),
        flags,
        pointer("uint8_t", out),
        len(out),
        pointer("struct canal_span", out_spans),
        pointer("struct canal_vnet", vnets),
        len(packets),
    )
    if done < 0:
        return done
    return list(zip(pick(out, out_spans[:done]), map(Vnet.of, vnets[:done]), strict=True))
