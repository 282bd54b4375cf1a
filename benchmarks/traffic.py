"""Packets and flows for the benchmarks, in the arrays that canal.h takes; the same every time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from canal_udp._abi import dtype_of, ffi
from tests.stages import lay

SEED = 1


def c(kind: str, array: np.ndarray) -> Any:
    """An array as C sees it."""
    return ffi.from_buffer(f"{kind}[]", array, require_writable=True)


@dataclass(frozen=True)
class Batch:
    """Packets one after the other, as a stage takes them."""

    packets: tuple[bytes, ...]
    data: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, packets: Sequence[bytes]) -> Batch:
        data, spans = lay(packets)
        return cls(tuple(packets), np.frombuffer(bytearray(data), np.uint8), spans)

    def __len__(self) -> int:
        return len(self.packets)

    @property
    def pointers(self) -> tuple[Any, Any, int]:
        return c("uint8_t", self.data), c("struct canal_span", self.spans), len(self)


def packet(size: int, family: int = 4, proto: type[Packet] = UDP, number: int = 0) -> bytes:
    """One IP packet of a size in bytes, of one of many flows."""
    ip = IP(src="10.1.1.2", dst="10.1.2.2", flags="DF") if family == 4 else IPv6(src="fd00:1:1::2", dst="fd00:1:2::2")
    head = ip / proto(sport=1024 + number % 60000, dport=80)
    return bytes(head / Raw(bytes(size - len(head))))


def mixed(n: int) -> list[bytes]:
    """Packets of both families and protocols."""
    rng = random.Random(SEED)
    return [
        packet(rng.choice((80, 576, 1400)), rng.choice((4, 6)), rng.choice((TCP, UDP)), number) for number in range(n)
    ]


def segments(n: int, size: int) -> list[bytes]:
    """TCP segments of one flow that follow each other."""
    made = []
    for i in range(n):
        ip = IP(src="10.1.1.2", dst="10.1.2.2", flags="DF", id=1 + i)
        payload = bytes((i + j) & 255 for j in range(size))
        made.append(bytes(ip / TCP(sport=1024, dport=80, flags="A", seq=1 + i * size) / Raw(payload)))
    return made


def addresses(values: np.ndarray) -> np.ndarray:
    """IPv4 addresses as numbers -> rows of 16 bytes."""
    rows = np.zeros((len(values), 16), np.uint8)
    rows[:, 10:12] = 0xFF
    rows[:, 12:] = np.asarray(values, ">u4").view(np.uint8).reshape(-1, 4)
    return rows


def flows(n: int, first: int = 0) -> np.ndarray:
    """UDP flows that differ in addresses and ports; those of another `first` are others."""
    rows = np.zeros(n, dtype_of("struct canal_flow"))
    number = np.arange(first, first + n, dtype=np.uint32)
    rows["src"] = addresses(int(IPv4Address("10.0.0.0")) + number % 65521)
    rows["dst"] = addresses(int(IPv4Address("10.128.0.0")) + number // 65521)
    rows["sport_be"], rows["dport_be"] = number % 64512, 80
    rows["proto"], rows["family"] = 17, 4
    rows["l4_offset"], rows["l4_size"], rows["total_size"] = 20, 8, 64
    return rows


def shuffled(n: int, out_of: int) -> np.ndarray:
    """n row numbers below a limit, in random order."""
    return np.random.default_rng(SEED).integers(0, out_of, n)
