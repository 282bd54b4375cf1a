"""Snapshots of a size for the benchmarks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import numpy as np

from benchmarks.traffic import SEED, addresses, c
from canal_udp._abi import dtype_of, ffi, lib
from canal_udp.encap.fib import arrays
from canal_udp.encap.forwarding import Forwarding, Route, Vtep, vtep_key

MAC, NODE_MAC = bytes.fromhex("0200c0a80001"), bytes.fromhex("020000000001")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def forwarding(peers: int, encap: str = "vxlan", generation: int = 1) -> Forwarding:
    """A cluster: every peer leases a /24 of 10.0.0.0/8 and is one VTEP."""
    port = 8472 if encap == "vxlan" else 8285
    vteps, routes = [], []
    for i in range(peers):
        mac = (int.from_bytes(MAC, "big") + i).to_bytes(6, "big")
        vteps.append(Vtep(IPv4Address(0xC0A80001 + i), port, mac, encap, 1450, i))  # type: ignore[arg-type]
        routes.append(Route(IPv4Network(((10 << 24) + (i << 8), 24)), "vtep", vtep_key(vteps[-1]), False))
    return Forwarding(generation, IPv4Address("10.255.255.0"), None, NODE_MAC, 1, True, tuple(vteps), tuple(routes))


def prefixes(n: int) -> Arrays:
    """n random prefixes of /16 to /30 that lie inside each other as they like, and one VTEP for each target."""
    node, vteps, _ = arrays(forwarding(16), {})
    rng = np.random.default_rng(SEED)
    plens = rng.integers(16, 31, 2 * n)
    values = rng.integers(1 << 24, 224 << 24, 2 * n, dtype=np.int64) & ~((1 << (32 - plens)) - 1)
    _, first = np.unique(values << 6 | plens, return_index=True)
    chosen = rng.permutation(first)[:n]
    fib = np.zeros(n, dtype_of("struct canal_fib_entry"))
    fib["prefix"], fib["plen"], fib["family"] = addresses(values[chosen]), plens[chosen], 4
    fib["target"] = lib.CANAL_TARGET_VTEP | rng.integers(0, len(vteps), n)
    return node, vteps, fib


def build(made: Arrays, generation: int = 1) -> Any:
    """canal_tables_build; the snapshot is freed when nobody holds it."""
    node, vteps, fib = made
    out, fault = ffi.new("struct canal_tables **"), ffi.new("struct canal_fault *")
    rc = lib.canal_tables_build(
        *(ffi.from_buffer("struct canal_node *", node), c("struct canal_vtep", vteps), len(vteps)),
        *(c("struct canal_fib_entry", fib), len(fib), generation, out, fault),
    )
    assert rc == 0, (rc, fault.table, fault.row)
    return ffi.gc(out[0], lib.canal_tables_free)


def tables(peers: int, encap: str = "vxlan") -> Any:
    return build(arrays(forwarding(peers, encap), {}))
