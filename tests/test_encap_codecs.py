"""The slow codecs agree with scapy, and the data plane agrees with the slow codecs."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from canal_udp._abi import CData, dtype_of, enum_names, ffi, lib
from canal_udp.encap.codecs import VXLAN_SIZE, udp_pack, udp_unpack, vxlan_pack, vxlan_unpack
from canal_udp.encap.fib import arrays
from canal_udp.encap.forwarding import Forwarding, Vtep

OUR_MAC, PEER_MAC = bytes.fromhex("02004200000a"), bytes.fromhex("02004200000b")
VNI = 0x123456
DROPS = enum_names("enum canal_drop", "CANAL_DROP_")

INNER4 = bytes(IP(src="10.1.0.2", dst="10.1.1.2") / UDP(sport=1, dport=2) / b"payload")
INNER6 = bytes(IPv6(src="fd00::2", dst="fd00:1::2") / UDP(sport=1, dport=2) / b"payload")
GOOD = vxlan_pack(INNER4, vni=VNI, dst_mac=OUR_MAC, src_mac=PEER_MAC)


@pytest.mark.parametrize("inner", [pytest.param(INNER4, id="IPv4"), pytest.param(INNER6, id="IPv6")])
def test_vxlan_is_what_scapy_writes(inner: bytes) -> None:
    ethertype = 0x0800 if inner is INNER4 else 0x86DD
    ether = Ether(dst=PEER_MAC.hex(":"), src=OUR_MAC.hex(":"), type=ethertype)
    expected = bytes(VXLAN(flags="Instance", vni=VNI) / ether / Raw(inner))
    assert vxlan_pack(inner, vni=VNI, dst_mac=PEER_MAC, src_mac=OUR_MAC) == expected
    assert vxlan_unpack(expected, vni=VNI, mac=PEER_MAC) == (inner, "none")


def test_udp_is_the_bare_packet() -> None:
    assert udp_unpack(udp_pack(INNER6)) == (INNER6, "none")


def changed(offset: int, value: bytes) -> bytes:
    return GOOD[:offset] + value + GOOD[offset + len(value) :]


CASES = [
    pytest.param(GOOD, "none", id="good"),
    pytest.param(changed(0, b"\x00"), "bad_vxlan", id="no VNI flag"),
    pytest.param(changed(0, b"\x0c"), "bad_vxlan", id="GPE flag"),
    pytest.param(changed(0, b"\x88"), "bad_vxlan", id="GBP flag"),
    pytest.param(changed(2, b"\x01"), "bad_vxlan", id="reserved bits before the VNI"),
    pytest.param(changed(7, b"\x01"), "bad_vxlan", id="reserved bits after the VNI"),
    pytest.param(changed(6, b"\x00"), "bad_vni", id="another VNI"),
    pytest.param(changed(8, PEER_MAC), "bad_ether", id="a frame for another"),
    pytest.param(changed(8, b"\xff" * 6), "bad_ether", id="a broadcast frame"),
    pytest.param(changed(14, OUR_MAC), "bad_ether", id="a frame from ourselves"),
    pytest.param(changed(20, b"\x08\x06"), "bad_ether", id="ARP"),
    pytest.param(changed(20, b"\x86\xdd"), "bad_ether", id="says IPv6, is IPv4"),
    pytest.param(changed(22, b"\x55"), "bad_ether", id="IP version 5"),
    *(pytest.param(GOOD[:size], "short", id=f"cut to {size}") for size in range(VXLAN_SIZE + 1)),
]


@pytest.fixture(scope="module")
def tables() -> CData:
    vtep = Vtep(IPv4Address("192.0.2.2"), 8472, PEER_MAC, "vxlan", 1450, 1)
    node, vteps, fib = arrays(Forwarding(1, None, None, OUR_MAC, VNI, True, (vtep,), ()), {})
    out, fault = ffi.new("struct canal_tables **"), ffi.new("struct canal_fault *")
    rows = (ffi.from_buffer("struct canal_vtep[]", vteps), 1, ffi.from_buffer("struct canal_fib_entry[]", fib), 0)
    assert lib.canal_tables_build(ffi.from_buffer("struct canal_node *", node), *rows, 1, out, fault) == 0
    return ffi.gc(out[0], lib.canal_tables_free)


def decap(tables: CData, datagram: bytes) -> tuple[bytes, str]:
    data = np.frombuffer(datagram + bytes(1), np.uint8).copy()
    span, inner = (np.zeros(1, dtype_of("struct canal_span")) for _ in range(2))
    drops = np.zeros(1, np.uint16)
    span["size"] = len(datagram)
    lib.canal_decap_batch(
        tables,
        lib.CANAL_ENCAP_VXLAN,
        ffi.from_buffer("uint8_t[]", data),
        ffi.from_buffer("struct canal_span[]", span),
        1,
        ffi.from_buffer("struct canal_span[]", inner),
        ffi.from_buffer("uint16_t[]", drops),
    )
    offset, size = int(inner[0]["offset"]), int(inner[0]["size"])
    return (datagram[offset : offset + size] if drops[0] == 0 else b"", DROPS[drops[0]])


@pytest.mark.parametrize(("datagram", "drop"), CASES)
def test_vxlan_refusals(tables: CData, datagram: bytes, drop: str) -> None:
    expected = (INNER4 if drop == "none" else b"", drop)
    assert vxlan_unpack(datagram, vni=VNI, mac=OUR_MAC) == expected
    assert decap(tables, datagram) == expected


def test_random_damage_is_judged_alike(tables: CData) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(5000):
        datagram = bytearray(GOOD)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            datagram[rng.randrange(VXLAN_SIZE + 1)] = rng.choice((0, 4, 6, 8, 0xFF, rng.randrange(256)))
        cut = bytes(datagram[: rng.choice((len(datagram), rng.randrange(len(datagram))))])
        assert decap(tables, cut) == tuple(vxlan_unpack(cut, vni=VNI, mac=OUR_MAC)), f"seed {seed}: {cut.hex()}"
