"""C's error codes become exceptions: the one place. Whatever a function of `lib` returned goes through `raise_for`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from socket import ntohs
from typing import Any

import numpy as np

from canal_udp._abi import CData, ffi, lib
from canal_udp.encap.fib import Array, unpacked
from canal_udp.errors import CanalError, DataplaneError, TableError

# What each error code of canal.h becomes, unless it is about a row of an input table: that is always a TableError.
ERRORS: Mapping[int, type[CanalError]] = {
    lib.CANAL_EINVAL: DataplaneError,
    lib.CANAL_ERANGE: DataplaneError,
    lib.CANAL_ENOMEM: DataplaneError,
    lib.CANAL_EBUSY: DataplaneError,
    lib.CANAL_EDUP: DataplaneError,
    lib.CANAL_ESYS: DataplaneError,
}
# Table of a fault -> its name in messages, and the struct whose member `fault.field` is the offset of; "": numbers.
TABLES: Mapping[int, tuple[str, str]] = {
    lib.CANAL_TABLE_NODE: ("node", "struct canal_node"),
    lib.CANAL_TABLE_VTEP: ("vteps", "struct canal_vtep"),
    lib.CANAL_TABLE_FIB: ("fib", "struct canal_fib_entry"),
    lib.CANAL_TABLE_PORT: ("port", "struct canal_port_config"),
    lib.CANAL_TABLE_CONFIG: ("config", "struct canal_dp_config"),
    lib.CANAL_TABLE_RULE: ("rules", "struct canal_rule"),
    lib.CANAL_TABLE_CLASS: ("classes", ""),
    lib.CANAL_TABLE_VECTOR: ("vectors", ""),
    lib.CANAL_TABLE_ROW: ("rows", "struct canal_row"),
    lib.CANAL_TABLE_ENDPOINT: ("endpoints", "struct canal_endpoint"),
}
INPUT_TABLES = (
    *(lib.CANAL_TABLE_NODE, lib.CANAL_TABLE_VTEP, lib.CANAL_TABLE_FIB, lib.CANAL_TABLE_CLASS),
    *(lib.CANAL_TABLE_ROW, lib.CANAL_TABLE_VECTOR, lib.CANAL_TABLE_ENDPOINT),
)
ONE_ROW = (lib.CANAL_TABLE_NODE, lib.CANAL_TABLE_PORT, lib.CANAL_TABLE_CONFIG)
ABOUT_A_VALUE = (lib.CANAL_EINVAL, lib.CANAL_ERANGE, lib.CANAL_EDUP)


def raise_for(rc: int, fault: CData = None, rows: Mapping[int, Array] | None = None) -> int:
    """Return rc, or raise what a negative one stands for: the one place where C's error codes become exceptions.

    fault    struct canal_fault that the call filled in; says which row and member.
    rows     input tables of the call by enum canal_table: the message then quotes the value.
    """
    if rc >= 0:
        return rc
    kind, problem = ERRORS.get(rc, DataplaneError), ffi.string(lib.canal_strerror(rc)).decode()
    if fault is None or fault.code == 0:
        raise kind(problem)
    if rc not in ABOUT_A_VALUE:
        raise kind(os.strerror(fault.sys_errno) if fault.sys_errno else problem)
    if fault.table not in TABLES:
        raise kind(f"table {fault.table}, row {fault.row}: {problem}")
    raise (TableError if fault.table in INPUT_TABLES else kind)(_about(fault, rows or {}, problem))


def _about(fault: CData, rows: Mapping[int, Array], problem: str) -> str:
    """`fib[17].target = 0x20000009: index beyond 3 vteps`, as far as the tables are at hand."""
    name, struct = TABLES[fault.table]
    if not struct:
        return f"{name}[{fault.row}]: {problem}"
    member = next((name for name, at in ffi.typeof(struct).fields if at.offset == fault.field), f"byte {fault.field}")
    place = f"{name}.{member}" if fault.table in ONE_ROW else f"{name}[{fault.row}].{member}"
    table = rows.get(fault.table)
    if table is None or table.dtype.names is None or fault.row >= len(table) or member not in table.dtype.names:
        return f"{place}: {problem}"
    value = table[fault.row][member]
    if member == "target" and fault.code == lib.CANAL_ERANGE and value & lib.CANAL_TARGET_KIND == lib.CANAL_TARGET_VTEP:
        problem = f"index beyond {len(rows.get(lib.CANAL_TABLE_VTEP, ()))} vteps"
    return f"{place} = {_readable(member, value)}: {problem}"


def _readable(member: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(unpacked(value.tobytes())) if value.size == 16 else value.tobytes().hex(":")
    if member.endswith("_be"):
        return str(ntohs(int(value)))
    return hex(value) if member == "target" else str(value)


def new_fault() -> CData:
    return ffi.new("struct canal_fault *")
