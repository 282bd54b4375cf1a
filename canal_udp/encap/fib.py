"""Forwarding decisions as the arrays that `canal_tables_build` takes."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

import numpy as np
from numpy.typing import NDArray

from canal_udp._abi import dtype_of, lib
from canal_udp.encap.forwarding import Forwarding, Route, Vtep, vtep_key
from canal_udp.errors import TableError

Array = NDArray[np.void]

V4_MAPPED = bytes(10) + b"\xff\xff"
ENCAPS = {"udp": lib.CANAL_ENCAP_UDP, "vxlan": lib.CANAL_ENCAP_VXLAN}


def packed(addr: IPv4Address | IPv6Address | None) -> bytes:
    """16 bytes in network order, IPv4 as ::ffff:a.b.c.d; all zero for None."""
    if addr is None:
        return bytes(16)
    return addr.packed if addr.version == 6 else V4_MAPPED + addr.packed


def unpacked(addr: bytes) -> IPv4Address | IPv6Address | None:
    """The inverse of `packed`."""
    if addr == bytes(16):
        return None
    return IPv4Address(addr[12:]) if addr.startswith(V4_MAPPED) else IPv6Address(addr)


def arrays(forwarding: Forwarding, ports: Mapping[str, int]) -> tuple[Array, Array, Array]:
    """Lay out a snapshot's input.

    Shapes   node: (1,) struct canal_node; vteps: (n,) struct canal_vtep; fib: (m,) struct canal_fib_entry; rows in the
             order of `forwarding`, so that a fault's row is the index of a vtep or route.
    Keys     ports: endpoint name, or "" for the host port, -> port index.
    Raises   TableError when a route names a port or VTEP that does not exist, or a value does not fit its field.
    """
    return _node(forwarding), _vteps(forwarding.vteps), _fib(forwarding, ports)


def _addresses(rows: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)


def _mac(mac: bytes, where: str) -> bytes:
    if len(mac) != 6:
        raise TableError(f"{where} = {mac.hex(':')}: {len(mac)} bytes, a MAC has 6")
    return mac


def _fits(value: int, low: int, high: int, where: str) -> int:
    if not low <= value <= high:
        raise TableError(f"{where} = {value}: not in {low}..{high}")
    return value


def _node(forwarding: Forwarding) -> Array:
    node = np.zeros(1, dtype_of("struct canal_node"))
    node["router4"] = _addresses([packed(forwarding.router4)])
    node["router6"] = _addresses([packed(forwarding.router6)])
    node["mac"] = _addresses([_mac(forwarding.mac, "node.mac")])
    node["policy_default"] = lib.CANAL_ALLOW
    node["vni"] = _fits(forwarding.vni, 0, 0xFFFFFF, "node.vni")
    node["mss_clamp"] = forwarding.mss_clamp
    return node


def _vteps(vteps: tuple[Vtep, ...]) -> Array:
    table = np.zeros(len(vteps), dtype_of("struct canal_vtep"))
    if not vteps:
        return table
    for i, vtep in enumerate(vteps):
        _fits(vtep.port, 1, 0xFFFF, f"vteps[{i}].port")
        _fits(vtep.mtu_bytes, 0, 0xFFFF, f"vteps[{i}].mtu_bytes")
        _fits(vtep.id, 0, 0xFFFFFFFF, f"vteps[{i}].id")
    table["addr"] = _addresses([packed(vtep.addr) for vtep in vteps])
    table["port_be"] = np.array([vtep.port for vtep in vteps], dtype=">u2").view(np.uint16)
    table["mtu_bytes"] = [vtep.mtu_bytes for vtep in vteps]
    table["mac"] = _addresses([_mac(vtep.mac, f"vteps[{i}].mac") for i, vtep in enumerate(vteps)])
    table["encap"] = [ENCAPS[vtep.encap] for vtep in vteps]
    table["family"] = [vtep.addr.version for vtep in vteps]
    table["id"] = [vtep.id for vtep in vteps]
    return table


def _fib(forwarding: Forwarding, ports: Mapping[str, int]) -> Array:
    routes = forwarding.routes
    table = np.zeros(len(routes), dtype_of("struct canal_fib_entry"))
    if not routes:
        return table
    vteps = {vtep_key(vtep): i for i, vtep in enumerate(forwarding.vteps)}
    table["prefix"] = _addresses([packed(route.prefix.network_address) for route in routes])
    table["family"] = [route.prefix.version for route in routes]
    table["plen"] = [route.prefix.prefixlen for route in routes]
    table["target"] = [_target(i, route, ports, vteps) for i, route in enumerate(routes)]
    return table


def _target(row: int, route: Route, ports: Mapping[str, int], vteps: Mapping[str, int]) -> int:
    local = lib.CANAL_TARGET_LOCAL if route.local else 0
    if route.kind == "reject":
        return lib.CANAL_TARGET_REJECT | local
    kind, table = (lib.CANAL_TARGET_VTEP, vteps) if route.kind == "vtep" else (lib.CANAL_TARGET_PORT, ports)
    index = table.get(route.key)
    if index is None:
        raise TableError(f"routes[{row}] ({route.prefix}): no {route.kind} {route.key}".rstrip())
    return kind | local | index
