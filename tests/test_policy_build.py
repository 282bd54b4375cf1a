"""policy: what a snapshot refuses to take, to the row and the member. Counting is tested in C, under ASan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from native_build import POLICY, build_native, run_program

from canal_udp._abi import CData, dtype_of, ffi, lib
from canal_udp.encap.fib import Array
from canal_udp.errors import TableError
from canal_udp.faults import new_fault
from canal_udp.policy.compiled import AddressClasses, Program
from canal_udp.policy_tables import PolicyTables
from tests.programs import ALLOW, Line, classes, compiled, program, table

EINVAL, ERANGE, EDUP = lib.CANAL_EINVAL, lib.CANAL_ERANGE, lib.CANAL_EDUP
Refused = tuple[int, int, int, str]  # code, table, row, member


def refusal(rc: int, fault: CData, struct: str = "", out: CData = None) -> Refused:
    assert rc < 0 and fault.code == rc
    assert out is None or out[0] == ffi.NULL, "nothing half-made is handed out"
    member = next((name for name, at in ffi.typeof(struct).fields if at.offset == fault.field), "") if struct else ""
    return rc, fault.table, fault.row, member


# ---- programs --------------------------------------------------------------------------------------------------------


def build_program(
    rows: Array,
    vectors: int = 2,
    src: list[int] | None = None,
    dst: list[int] | None = None,
    n_classes: int | None = None,
) -> tuple[int, CData, CData]:
    words = np.full((max(vectors, 1), (len(rows) + 63) // 64), ~np.uint64(0))
    sides = [np.array([0, 1] if side is None else side, np.uint32) for side in (src, dst)]
    out, fault = ffi.new("struct canal_program **"), new_fault()
    rc = lib.canal_program_build(
        ffi.from_buffer("struct canal_row[]", rows),
        len(rows),
        ffi.from_buffer("uint64_t[]", words),
        vectors,
        *(ffi.from_buffer("uint32_t[]", side) for side in sides),
        len(sides[0]) if n_classes is None else n_classes,
        out,
        fault,
    )
    return rc, out, fault


def changed(row: int, **members: int) -> Array:
    rows = table([ALLOW, Line("pass", 2, next=2), ALLOW])
    for name, value in members.items():
        rows[name][row] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "row", "member"),
    [
        pytest.param(changed(1, sport_lo=2, sport_hi=1), 1, "sport_hi", id="source ports that end before they begin"),
        pytest.param(changed(2, dport_lo=2, dport_hi=1), 2, "dport_hi", id="destination ports"),
        pytest.param(changed(0, proto_lo=2, proto_hi=1), 0, "proto_hi", id="protocols"),
        pytest.param(changed(0, action=5), 0, "action", id="an action that there is not"),
        pytest.param(changed(1, next=1), 1, "next", id="pass to itself"),
        pytest.param(changed(1, next=0), 1, "next", id="pass back"),
        pytest.param(changed(1, next=4), 1, "next", id="pass beyond the end"),
        pytest.param(changed(2, action=lib.CANAL_ACTION_PASS, next=2), 2, "next", id="pass of the last row to itself"),
        pytest.param(
            changed(0, sport_lo=2, sport_hi=1, action=9), 0, "sport_hi", id="of several faults the first member"
        ),
    ],
)
def test_rows_out_of_their_domain(rows: Array, row: int, member: str) -> None:
    rc, out, fault = build_program(rows)
    assert refusal(rc, fault, "struct canal_row", out) == (EINVAL, lib.CANAL_TABLE_ROW, row, member)


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        pytest.param(lambda: build_program(changed(0), src=[0, 2]), (lib.CANAL_TABLE_CLASS, 1), id="source vector"),
        pytest.param(
            lambda: build_program(changed(0), dst=[2, 0]), (lib.CANAL_TABLE_CLASS, 0), id="destination vector"
        ),
        pytest.param(
            lambda: build_program(changed(0), n_classes=lib.CANAL_CLASSES_MAX + 1),
            (lib.CANAL_TABLE_CLASS, lib.CANAL_CLASSES_MAX),
            id="too many classes",
        ),
        pytest.param(
            lambda: build_program(np.zeros(lib.CANAL_RULES_MAX + 1, dtype_of("struct canal_row"))),
            (lib.CANAL_TABLE_ROW, lib.CANAL_RULES_MAX),
            id="too many rows",
        ),
    ],
)
def test_programs_beyond_their_tables(how: Callable[[], tuple[int, CData, CData]], refused: tuple[int, int]) -> None:
    rc, out, fault = how()
    assert refusal(rc, fault, "", out)[:3] == (ERANGE, *refused)


def test_other_classes_for_the_same_rows_are_checked_too() -> None:
    rc, out, fault = build_program(changed(0))
    assert rc == 0
    known, again = ffi.gc(out[0], lib.canal_program_release), ffi.new("struct canal_program **")
    good, bad = (np.array(side, np.uint32) for side in ([0, 1, 1, 0], [0, 1, 2, 0]))
    sides = [ffi.from_buffer("uint32_t[]", side) for side in (good, bad)]
    rc = lib.canal_program_reclass(known, sides[0], sides[1], 4, again, fault)
    assert refusal(rc, fault, "", again)[:3] == (ERANGE, lib.CANAL_TABLE_CLASS, 2)
    rc = lib.canal_program_reclass(known, sides[0], sides[0], lib.CANAL_CLASSES_MAX + 1, again, fault)
    assert refusal(rc, fault, "", again)[:3] == (ERANGE, lib.CANAL_TABLE_CLASS, lib.CANAL_CLASSES_MAX)
    assert lib.canal_program_reclass(known, sides[0], sides[0], 4, again, fault) == 0
    lib.canal_program_release(again[0])


# ---- classes ---------------------------------------------------------------------------------------------------------


def build_classes(made: AddressClasses, base: CData = ffi.NULL) -> tuple[int, CData, CData]:
    out, fault = ffi.new("struct canal_classes **"), new_fault()
    tables = [
        (ffi.from_buffer("struct canal_fib_entry[]", rows), len(rows)) for rows in (made.addresses, made.prefixes)
    ]
    flags = ffi.from_buffer("uint32_t[]", made.flags)
    rc = lib.canal_classes_build(base, *tables[0], *tables[1], flags, len(made.flags), out, fault)
    return rc, out, fault


def changed_classes(part: str, row: int, value: int, member: str = "") -> AddressClasses:
    made = classes()
    rows = getattr(made, part)
    (rows[member] if member else rows)[row] = value
    return made


@pytest.mark.parametrize(
    ("made", "refused"),
    [
        pytest.param(
            changed_classes("flags", 3, 2), (EINVAL, lib.CANAL_TABLE_CLASS, 3, ""), id="a flag that there is not"
        ),
        pytest.param(
            changed_classes("prefixes", 1, 5, "target"), (ERANGE, lib.CANAL_TABLE_FIB, 1, "target"), id="a class beyond"
        ),
        pytest.param(
            changed_classes("addresses", 2, 5, "target"), (ERANGE, lib.CANAL_TABLE_FIB, 2, "target"), id="of an address"
        ),
        pytest.param(
            changed_classes("prefixes", 0, 33, "plen"), (EINVAL, lib.CANAL_TABLE_FIB, 0, "plen"), id="prefix too long"
        ),
        pytest.param(
            changed_classes("prefixes", 0, 5, "family"), (EINVAL, lib.CANAL_TABLE_FIB, 0, "family"), id="no such family"
        ),
        pytest.param(
            changed_classes("prefixes", 2, 8, "plen"), (EINVAL, lib.CANAL_TABLE_FIB, 2, "prefix"), id="host bits"
        ),
    ],
)
def test_classes_out_of_their_domain(made: AddressClasses, refused: Refused) -> None:
    rc, out, fault = build_classes(made)
    assert refusal(rc, fault, "struct canal_fib_entry" if refused[3] else "", out) == refused


@pytest.mark.parametrize("part", ["addresses", "prefixes"])
def test_two_classes_of_one_prefix(part: str) -> None:
    made = classes()
    rows = getattr(made, part)
    rows[3] = rows[2]
    rc, out, fault = build_classes(made)
    assert refusal(rc, fault, "", out)[:2] == (EDUP, lib.CANAL_TABLE_FIB)


def test_too_many_classes() -> None:
    nothing = classes({})
    many = AddressClasses(nothing.addresses, nothing.prefixes, np.zeros(lib.CANAL_CLASSES_MAX + 1, np.uint32))
    rc, out, fault = build_classes(many)
    assert refusal(rc, fault, "", out)[:3] == (ERANGE, lib.CANAL_TABLE_CLASS, lib.CANAL_CLASSES_MAX)


def test_a_base_with_more_classes() -> None:
    rc, held, _ = build_classes(classes())
    assert rc == 0
    base, made = ffi.gc(held[0], lib.canal_classes_release), classes({"world": ("0.0.0.0/0",)})
    rc, out, fault = build_classes(made, base)
    assert refusal(rc, fault, "", out)[:3] == (ERANGE, lib.CANAL_TABLE_CLASS, 1)


# ---- all together ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "programs", "member"),
    [
        pytest.param(lib.CANAL_PORTS_MAX, (0, 0), "port", id="a port beyond"),
        pytest.param(1, (1, 0), "program", id="a program for egress that there is not"),
        pytest.param(1, (lib.CANAL_PROGRAM_NONE, 1), "program", id="... for ingress"),
    ],
)
def test_endpoints_beyond_their_tables(port: int, programs: tuple[int, int], member: str) -> None:
    tables, out, fault = PolicyTables(), ffi.new("struct canal_policy **"), new_fault()
    endpoints = np.zeros(2, dtype_of("struct canal_endpoint"))
    endpoints["port"][1], endpoints["program"][1] = port, programs
    handles = ffi.new("struct canal_program *[]", [tables._program(program([ALLOW]))])
    rows = ffi.from_buffer("struct canal_endpoint[]", endpoints)
    rc = lib.canal_policy_build(tables._held_classes(classes()), handles, 1, rows, 2, lib.CANAL_ALLOW, out, fault)
    assert refusal(rc, fault, "struct canal_endpoint", out) == (ERANGE, lib.CANAL_TABLE_ENDPOINT, 1, member)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(Line("allow", 1, dport=(9, 2)), r"rows\[0\]\.dport_hi = 2: ", id="a range"),
        pytest.param(Line("pass", 1, next=0), r"rows\[0\]\.next = 0: ", id="a pass"),
    ],
)
def test_python_names_row_member_and_value(line: Line, message: str) -> None:
    with pytest.raises(TableError, match=message):
        PolicyTables().build(compiled({"a": ((line,), (ALLOW,))}), {"a": 1})


def test_programs_are_shared_and_made_for_other_classes() -> None:
    """What Python shares, C holds once; rows that are known are not built again."""
    tables, both = PolicyTables(), program([ALLOW])
    longer = Program(
        both.rows, np.append(both.source, both.source[:1]), np.append(both.destination, both.destination[:1])
    )
    first, again, other = tables._program(both), tables._program(both), tables._program(longer)
    assert first == again
    assert other != first
    del first, again, both, longer
    assert not tables._programs, "what Python forgets is let go of"


def test_references_are_counted(tmp_path: Path) -> None:
    """Every order of letting go, and every program for other classes, under ASan with its search for leaks."""
    sources = ["tables.c", "fib.c", "classify_rules.c", *POLICY]
    run_program(build_native(tmp_path, "test_policy.c", sources))
