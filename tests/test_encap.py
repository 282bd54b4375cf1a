"""encap*.c in batch form: what is pushed is what scapy writes, what is pulled is what a kernel device would take."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ipaddress import IPv4Address

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from stages import DROPS, SPAN, lay, pick, pointer

from canal_udp._abi import CData, ffi, lib
from canal_udp.encap.fib import arrays
from canal_udp.encap.forwarding import Forwarding, Vtep

OUR_MAC, PEER_MAC, OTHER_MAC = (bytes.fromhex(f"02004200000{last}") for last in "abc")
VNI = 1
IP4 = bytes(IP(src="10.1.0.2", dst="10.1.1.2") / UDP(sport=1, dport=2) / b"payload")
IP6 = bytes(IPv6(src="fd00::2", dst="fd00:1::2") / UDP(sport=1, dport=2) / b"payload")
PEERS = (
    Vtep(IPv4Address("192.0.2.1"), 8472, PEER_MAC, "vxlan", 1450, 1),
    Vtep(IPv4Address("192.0.2.2"), 8285, bytes(6), "udp", 1472, 2),
    Vtep(IPv4Address("192.0.2.3"), 8472, OTHER_MAC, "vxlan", 1450, 3),
)


@pytest.fixture(scope="module")
def tables() -> CData:
    node, vteps, _ = arrays(Forwarding(1, None, None, OUR_MAC, VNI, True, PEERS, ()), {})
    out, fault = ffi.new("struct canal_tables **"), ffi.new("struct canal_fault *")
    rows = ffi.from_buffer("struct canal_node *", node), ffi.from_buffer("struct canal_vtep[]", vteps), len(PEERS)
    assert lib.canal_tables_build(*rows, ffi.NULL, 0, 1, out, fault) == 0
    return ffi.gc(out[0], lib.canal_tables_free)


def encap(tables: CData, packets: Sequence[bytes], which: Sequence[int], room: int = 4096) -> list[bytes] | int:
    data, spans = lay(packets)
    out, out_spans = np.zeros(room, np.uint8), np.zeros(len(packets), SPAN)
    done = lib.canal_encap_batch(
        tables,
        ffi.from_buffer("uint8_t[]", data),
        pointer("struct canal_span", spans),
        pointer("uint32_t", np.array(which, np.uint32)),
        len(packets),
        pointer("uint8_t", out),
        room,
        pointer("struct canal_span", out_spans),
    )
    return pick(out, out_spans[:done]) if done >= 0 else done


def decap(tables: CData, kind: int, datagrams: Sequence[bytes]) -> list[tuple[str, bytes]]:
    data, spans = lay(datagrams)
    inner, drops = np.zeros(len(datagrams), SPAN), np.zeros(len(datagrams), np.uint16)
    done = lib.canal_decap_batch(
        tables,
        kind,
        ffi.from_buffer("uint8_t[]", data),
        pointer("struct canal_span", spans),
        len(datagrams),
        pointer("struct canal_span", inner),
        pointer("uint16_t", drops),
    )
    assert done == len(datagrams)
    packets = pick(np.frombuffer(data, np.uint8), inner)
    return [(DROPS[drop], packet) for drop, packet in zip(drops, packets, strict=True)]


def frame(inner: bytes, dst: bytes = PEER_MAC, src: bytes = OUR_MAC, kind: int | None = None) -> bytes:
    kind = kind or (0x0800 if inner[0] >> 4 == 4 else 0x86DD)
    return bytes(VXLAN(flags="Instance", vni=VNI) / Ether(dst=dst.hex(":"), src=src.hex(":"), type=kind)) + inner


def test_push_is_what_scapy_writes(tables: CData) -> None:
    out = encap(tables, [IP4, IP6, IP4, IP6, IP4], [0, 0, 1, 1, 2])
    assert out == [frame(IP4), frame(IP6), IP4, IP6, frame(IP4, OTHER_MAC)]


@pytest.mark.parametrize(
    ("packets", "which", "room", "error"),
    [
        pytest.param([IP4], [3], 999, "CANAL_ERANGE", id="no such vtep"),
        pytest.param([IP4], [0], len(IP4) + 21, "CANAL_ERANGE", id="one byte too few"),
        pytest.param([b""], [0], 999, "CANAL_EINVAL", id="no packet"),
        pytest.param([b"\x50" * 20], [0], 999, "CANAL_EINVAL", id="neither IPv4 nor IPv6"),
    ],
)
def test_push_errors(tables: CData, packets: list[bytes], which: list[int], room: int, error: str) -> None:
    assert encap(tables, packets, which, room) == getattr(lib, error)


def test_flags_and_vni_as_the_kernel_wants_them(tables: CData) -> None:
    """All 256 flag bytes, right and wrong VNIs, every reserved bit: one combination is good."""
    vnis = (VNI, 0, 2, VNI << 8, 2**24 - 1)
    reserved = [0] + [1 << bit for bit in range(32)]
    cases = list(itertools.product(range(256), vnis, reserved))
    body = frame(IP4, OUR_MAC, PEER_MAC)[8:]
    heads = (
        (flags << 24 | low >> 8).to_bytes(4, "big") + (vni << 8 | low & 0xFF).to_bytes(4, "big")
        for flags, vni, low in cases
    )
    results = decap(tables, lib.CANAL_ENCAP_VXLAN, [head + body for head in heads])
    for (flags, vni, low), (drop, inner) in zip(cases, results, strict=True):
        expected = "bad_vxlan" if flags != 8 or low else "none" if vni == VNI else "bad_vni"
        assert (drop, inner) == (expected, IP4 if expected == "none" else b""), (flags, vni, low)


BROADCAST, MULTICAST = b"\xff" * 6, bytes.fromhex("01005e000001")


@pytest.mark.parametrize(
    ("datagram", "drop"),
    [
        pytest.param(frame(IP4, OUR_MAC, PEER_MAC), "none", id="ipv4"),
        pytest.param(frame(IP6, OUR_MAC, PEER_MAC), "none", id="ipv6"),
        pytest.param(frame(IP4, OUR_MAC, OTHER_MAC), "none", id="unknown source MAC"),
        pytest.param(frame(IP4, PEER_MAC, OTHER_MAC), "bad_ether", id="to another"),
        pytest.param(frame(IP4, OUR_MAC, OUR_MAC), "bad_ether", id="from ourselves"),
        pytest.param(frame(IP4, BROADCAST, PEER_MAC), "bad_ether", id="broadcast"),
        pytest.param(frame(IP4, MULTICAST, PEER_MAC), "bad_ether", id="multicast"),
        pytest.param(frame(IP4, OUR_MAC, PEER_MAC, 0x86DD), "bad_ether", id="says ipv6, is ipv4"),
        pytest.param(frame(IP6, OUR_MAC, PEER_MAC, 0x0800), "bad_ether", id="says ipv4, is ipv6"),
        pytest.param(frame(IP4, OUR_MAC, PEER_MAC, 0x0806), "bad_ether", id="ARP"),
        pytest.param(frame(b"\0\1\x08\0" + IP4, OUR_MAC, PEER_MAC, 0x8100), "bad_ether", id="VLAN tag"),
        pytest.param(frame(b"\x45", OUR_MAC, PEER_MAC), "none", id="one byte inside is for parse to refuse"),
    ],
)
def test_inner_ethernet(tables: CData, datagram: bytes, drop: str) -> None:
    expected = datagram[22:] if drop == "none" else b""
    assert decap(tables, lib.CANAL_ENCAP_VXLAN, [datagram]) == [(drop, expected)]


def test_every_truncation_is_short(tables: CData) -> None:
    datagram = frame(IP4, OUR_MAC, PEER_MAC)
    results = decap(tables, lib.CANAL_ENCAP_VXLAN, [datagram[:size] for size in range(len(datagram) + 1)])
    assert results[:23] == [("short", b"")] * 23
    assert results[23:] == [("none", datagram[22:size]) for size in range(23, len(datagram) + 1)]


def test_udp_takes_both_versions_and_nothing_else(tables: CData) -> None:
    datagrams = [bytes([first]) + IP4[1:] for first in range(256)]
    for first, (drop, inner) in enumerate(decap(tables, lib.CANAL_ENCAP_UDP, datagrams)):
        good = first >> 4 in (4, 6)
        assert (drop, inner) == ("none" if good else "bad_ip", datagrams[first] if good else b"")
    assert decap(tables, lib.CANAL_ENCAP_UDP, [b"", IP6]) == [("short", b""), ("none", IP6)]


@pytest.mark.parametrize("inner", [IP4, IP6], ids=["ipv4", "ipv6"])
def test_largest_packet_comes_back(tables: CData, inner: bytes) -> None:
    packet = inner + bytes(65535 - len(inner))
    out = encap(tables, [packet], [0], 70_000)
    assert isinstance(out, list)
    answer = out[0][:8] + out[0][14:20] + out[0][8:14] + out[0][20:]  # from the peer to us
    assert decap(tables, lib.CANAL_ENCAP_VXLAN, [answer]) == [("none", packet)]


def test_unknown_encapsulation(tables: CData) -> None:
    assert lib.canal_decap_batch(tables, 9, ffi.NULL, ffi.NULL, 0, ffi.NULL, ffi.NULL) == lib.CANAL_EINVAL
