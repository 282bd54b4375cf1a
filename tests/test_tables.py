"""A snapshot is built whole or not at all, and a fault says which row of which table."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from native_build import POLICY, build_native, run_program

from canal_udp._abi import dtype_of, ffi, lib

NODE = dtype_of("struct canal_node")
VTEP = dtype_of("struct canal_vtep")
FIB = dtype_of("struct canal_fib_entry")
V4 = [0] * 10 + [255, 255]
PORT, VTEP_KIND, REJECT, LOCAL = (
    int(getattr(lib, f"CANAL_TARGET_{kind}")) for kind in ("PORT", "VTEP", "REJECT", "LOCAL")
)

Tables = tuple[np.ndarray, np.ndarray, np.ndarray]


def sound() -> Tables:
    """One node, three VTEPs, four routes, all valid."""
    node, vteps, fib = np.zeros(1, NODE), np.zeros(3, VTEP), np.zeros(4, FIB)
    node["router4"], node["router6"][0][0] = [*V4, 10, 244, 1, 0], 0xFD
    node["mac"], node["vni"], node["policy_default"], node["mss_clamp"] = [2, 0, 0, 0, 0, 1], 0xFFFFFF, 1, 1410
    for row, (addr, family) in enumerate(
        (([*V4, 192, 0, 2, 1], 4), ([*V4, 192, 0, 2, 2], 4), ([0xFD] + [0] * 14 + [1], 6))
    ):
        vteps[row]["addr"], vteps[row]["family"] = addr, family
    vteps["port_be"], vteps["mtu_bytes"], vteps["encap"] = 0x2118, 1450, lib.CANAL_ENCAP_VXLAN
    for row, target in enumerate((PORT | LOCAL, PORT | 4095, VTEP_KIND | 2, REJECT)):
        fib[row]["prefix"], fib[row]["family"], fib[row]["plen"], fib[row]["target"] = (
            [*V4, 10, 244, row, 0],
            4,
            24,
            target,
        )
    return node, vteps, fib


def build(tables: Tables, generation: int = 1) -> tuple[int, object, object]:
    node, vteps, fib = tables
    out, fault = ffi.new("struct canal_tables **"), ffi.new("struct canal_fault *")
    rc = lib.canal_tables_build(
        ffi.from_buffer("struct canal_node[]", node),
        ffi.from_buffer("struct canal_vtep[]", vteps),
        len(vteps),
        ffi.from_buffer("struct canal_fib_entry[]", fib),
        len(fib),
        generation,
        out,
        fault,
    )
    return rc, out[0], fault


def test_sound_tables_are_built() -> None:
    rc, tables, fault = build(sound())
    assert (rc, fault.code) == (0, 0) and tables != ffi.NULL
    lib.canal_tables_free(tables)


def test_empty_tables_are_built() -> None:
    node, vteps, fib = sound()
    rc, tables, _ = build((node, vteps[:0], fib[:0]))
    assert rc == 0
    lib.canal_tables_free(tables)
    lib.canal_tables_free(ffi.NULL)


def put(table: int, row: int, field: str, value: object) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table][row][field] = value

    return change


FAULTS = [
    pytest.param(0, 0, "router4", [0xFD] + [0] * 15, "EINVAL", id="an IPv4 router that is IPv6"),
    pytest.param(0, 0, "router6", [*V4, 10, 0, 0, 1], "EINVAL", id="an IPv6 router that is IPv4"),
    pytest.param(0, 0, "router6", [0xFF, 2] + [0] * 13 + [1], "EINVAL", id="a router that is a group"),
    pytest.param(0, 0, "mac", [1, 0, 0x5E, 0, 0, 1], "EINVAL", id="a MAC that is a group"),
    pytest.param(0, 0, "policy_default", 2, "EINVAL", id="a verdict that is none"),
    pytest.param(0, 0, "vni", 1 << 24, "EINVAL", id="a VNI of 25 bits"),
    pytest.param(0, 0, "mss_clamp", 65536, "EINVAL", id="an MSS beyond TCP's field"),
    pytest.param(1, 1, "family", 0, "EINVAL", id="a VTEP without family"),
    pytest.param(1, 1, "addr", [0xFD] + [0] * 14 + [9], "EINVAL", id="an IPv4 VTEP with an IPv6 address"),
    pytest.param(1, 2, "addr", [*V4, 192, 0, 2, 9], "EINVAL", id="an IPv6 VTEP with an IPv4 address"),
    pytest.param(1, 2, "addr", [0] * 16, "EINVAL", id="a VTEP without address"),
    pytest.param(1, 0, "encap", 2, "EINVAL", id="an encapsulation that is none"),
    pytest.param(1, 2, "port_be", 0, "EINVAL", id="a VTEP without port"),
    pytest.param(1, 2, "mtu_bytes", 525, "EINVAL", id="an MTU that no host may have"),
    pytest.param(1, 2, "mac", [0xFF] * 6, "EINVAL", id="a VTEP whose MAC is broadcast"),
    pytest.param(1, 1, "addr", [*V4, 192, 0, 2, 1], "EDUP", id="two VTEPs of one address and encapsulation"),
    pytest.param(2, 3, "target", 0, "EINVAL", id="a route to nowhere"),
    pytest.param(2, 3, "target", 0x40000000, "EINVAL", id="a route to a kind that is none"),
    pytest.param(2, 3, "target", PORT | 0x00100000, "EINVAL", id="a bit between flags and index"),
    pytest.param(2, 1, "target", PORT | 4096, "ERANGE", id="a port beyond the ports"),
    pytest.param(2, 2, "target", VTEP_KIND | 3, "ERANGE", id="a VTEP beyond the VTEPs"),
    pytest.param(2, 2, "target", VTEP_KIND | LOCAL, "EINVAL", id="a VTEP that is local"),
    pytest.param(2, 3, "target", REJECT | 1, "EINVAL", id="a rejection with an index"),
    pytest.param(2, 3, "plen", 33, "EINVAL", id="a prefix longer than an address"),
]


@pytest.mark.parametrize(("table", "row", "field", "value", "code"), FAULTS)
def test_a_fault_names_table_row_and_field(table: int, row: int, field: str, value: object, code: str) -> None:
    tables = sound()
    put(table, row, field, value)(tables)
    rc, built, fault = build(tables)
    assert rc == getattr(lib, f"CANAL_{code}") and built == ffi.NULL
    offset = (NODE, VTEP, FIB)[table].fields[field][1]
    assert (fault.code, fault.table, fault.row, fault.field) == (rc, table, row, offset)


def test_two_encapsulations_may_share_an_address() -> None:
    node, vteps, fib = sound()
    vteps[1]["addr"], vteps[1]["encap"] = vteps[0]["addr"], lib.CANAL_ENCAP_UDP
    rc, tables, _ = build((node, vteps, fib))
    assert rc == 0
    lib.canal_tables_free(tables)


def test_the_input_arrays_are_copied() -> None:
    tables = sound()
    rc, built, _ = build(tables)
    assert rc == 0
    for array in tables:
        array[:] = np.zeros(1, array.dtype)
    target = ffi.new("uint32_t *")
    lib.canal_fib_lookup(built, ffi.new("uint8_t[16]", [*V4, 10, 244, 2, 7]), 1, target)
    assert target[0] == VTEP_KIND | 2
    lib.canal_tables_free(built)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused_or_harmless(seed: int) -> None:
    """A table with one random byte changed is built or refused; what is built can be asked anything."""
    rng = random.Random(seed)
    for _ in range(200):
        tables = sound()
        array = rng.choice(tables).view(np.uint8)
        array[rng.randrange(len(array))] = rng.randrange(256)
        rc, built, fault = build(tables)
        assert (rc == 0) == (built != ffi.NULL), seed
        assert fault.code == rc and fault.row < 4, seed
        if rc == 0:
            lib.canal_fib_lookup(
                built, ffi.new("uint8_t[16]", [*V4, 10, 244, rng.randrange(4), 1]), 1, ffi.new("uint32_t *")
            )
            lib.canal_tables_free(built)


def test_vteps_are_found_by_address_and_encapsulation(tmp_path: Path) -> None:
    run_program(build_native(tmp_path, "test_tables.c", ["tables.c", "fib.c", *POLICY]))
