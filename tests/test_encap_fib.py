"""Forwarding decisions laid out as arrays."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest

from canal_udp._abi import lib
from canal_udp.encap.fib import arrays, packed, unpacked
from canal_udp.encap.forwarding import Forwarding, Route, RouteKind, Vtep, vtep_key
from canal_udp.errors import TableError

MAC = bytes.fromhex("020000000001")
VTEPS = (
    Vtep(IPv4Address("192.0.2.2"), 8472, bytes.fromhex("020000000002"), "vxlan", 1450, 7),
    Vtep(IPv6Address("2001:db8::3"), 8285, bytes(6), "udp", 1452, 8),
    Vtep(IPv4Address("192.0.2.2"), 8285, bytes(6), "udp", 1472, 9),
)
ROUTES = (
    Route(IPv4Network("10.1.0.5/32"), "pod", "default/a", True),
    Route(IPv6Network("fd00::5/128"), "pod", "default/a", True),
    Route(IPv4Network("10.1.0.0/24"), "host", "", True),
    Route(IPv4Network("10.1.2.0/24"), "vtep", "192.0.2.2/vxlan", False),
    Route(IPv4Network("10.1.3.0/24"), "vtep", "192.0.2.2/udp", False),
    Route(IPv6Network("fd00:3::/64"), "vtep", "2001:db8::3/udp", False),
    Route(IPv4Network("10.1.0.0/16"), "reject", "", False),
    Route(IPv4Network("0.0.0.0/0"), "host", "", False),
)
FORWARDING = Forwarding(3, IPv4Address("10.1.0.0"), None, MAC, 1, True, VTEPS, ROUTES)
PORTS = {"": 0, "default/a": 4}


def test_node() -> None:
    node, _, _ = arrays(FORWARDING, PORTS)
    assert node.shape == (1,)
    assert node[0]["router4"].tobytes() == bytes.fromhex("00000000000000000000ffff0a010000")
    assert not node[0]["router6"].any()
    assert node[0]["mac"].tobytes() == MAC
    assert (node[0]["vni"], node[0]["mss_clamp"], node[0]["policy_default"]) == (1, 1, lib.CANAL_ALLOW)


def test_vteps() -> None:
    _, vteps, _ = arrays(FORWARDING, PORTS)
    assert [unpacked(row["addr"].tobytes()) for row in vteps] == [vtep.addr for vtep in VTEPS]
    assert [row["port_be"].tobytes() for row in vteps] == [b"\x21\x18", b"\x20\x5d", b"\x20\x5d"]
    assert vteps["encap"].tolist() == [lib.CANAL_ENCAP_VXLAN, lib.CANAL_ENCAP_UDP, lib.CANAL_ENCAP_UDP]
    assert vteps["family"].tolist() == [4, 6, 4]
    assert vteps["mtu_bytes"].tolist() == [1450, 1452, 1472]
    assert vteps["id"].tolist() == [7, 8, 9]
    assert vteps[0]["mac"].tobytes() == VTEPS[0].mac


def test_fib() -> None:
    _, _, fib = arrays(FORWARDING, PORTS)
    port, vtep, local = lib.CANAL_TARGET_PORT, lib.CANAL_TARGET_VTEP, lib.CANAL_TARGET_LOCAL
    expected = [port | local | 4, port | local | 4, port | local, vtep | 0, vtep | 2, vtep | 1]
    assert fib["target"].tolist() == [*expected, lib.CANAL_TARGET_REJECT, port]
    assert fib["family"].tolist() == [4, 6, 4, 4, 4, 6, 4, 4]
    assert fib["plen"].tolist() == [32, 128, 24, 24, 24, 64, 16, 0]
    assert [unpacked(row["prefix"].tobytes()) for row in fib[:7]] == [
        route.prefix.network_address for route in ROUTES[:7]
    ]


def test_empty() -> None:
    node, vteps, fib = arrays(replace(FORWARDING, vteps=(), routes=()), {})
    assert (len(node), len(vteps), len(fib)) == (1, 0, 0)


def with_route(kind: RouteKind, key: str) -> Forwarding:
    return replace(FORWARDING, routes=(Route(IPv4Network("10.9.0.0/24"), kind, key, False),))


def with_vtep(**change: Any) -> Forwarding:
    return replace(FORWARDING, vteps=(VTEPS[0], replace(VTEPS[1], **change)), routes=())


@pytest.mark.parametrize(
    ("forwarding", "message"),
    [
        (with_route("vtep", "192.0.2.9/udp"), "routes[0] (10.9.0.0/24): no vtep 192.0.2.9/udp"),
        (with_route("pod", "default/z"), "routes[0] (10.9.0.0/24): no pod default/z"),
        (replace(FORWARDING, mac=b"\x02"), "node.mac = 02: 1 bytes, a MAC has 6"),
        (replace(FORWARDING, vni=1 << 24), "node.vni = 16777216: not in 0..16777215"),
        (with_vtep(port=65536), "vteps[1].port = 65536: not in 1..65535"),
        (with_vtep(mtu_bytes=70000), "vteps[1].mtu_bytes = 70000: not in 0..65535"),
        (with_vtep(mac=bytes(5)), "vteps[1].mac = 00:00:00:00:00: 5 bytes, a MAC has 6"),
    ],
    ids=["unknown vtep", "unknown pod", "short MAC", "VNI of 25 bits", "port", "mtu", "VTEP's MAC"],
)
def test_refused(forwarding: Forwarding, message: str) -> None:
    with pytest.raises(TableError) as caught:
        arrays(forwarding, PORTS)
    assert str(caught.value) == message


def test_no_host_port() -> None:
    with pytest.raises(TableError, match=r"routes\[0\] \(0.0.0.0/0\): no host$"):
        arrays(replace(FORWARDING, routes=ROUTES[-1:]), {"default/a": 4})


def test_addresses_survive_packing() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(2000):
        addr = ip_address(rng.getrandbits(32)) if rng.random() < 0.5 else ip_address(rng.getrandbits(127) | 1 << 127)
        assert unpacked(packed(addr)) == addr, f"seed {seed}"
    assert unpacked(packed(None)) is None
    assert vtep_key(VTEPS[1]) == "2001:db8::3/udp"
