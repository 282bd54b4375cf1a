"""Compiled policy as objects that the data plane holds: classes, programs, and both for the endpoints of a node.

Place    `policy.compile` makes arrays, this file C's immutable objects of them, `Dataplane` a part of the snapshot.
Memory   C counts who holds what; a handle here lets go when Python forgets it. A program whose rows are known is made
         for other classes without building it again.
Threads  any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from socket import htons
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from canal_udp._abi import CData, dtype_of, ffi, lib
from canal_udp.encap.fib import Array, packed
from canal_udp.faults import new_fault, raise_for
from canal_udp.policy.compiled import AddressClasses, Compiled, Program, Rows
from canal_udp.policy.flow import Flow
from canal_udp.policy.model import ICMP, ICMP6, SCTP, TCP, UDP, UDPLITE

Words = NDArray[np.uint32]


class PolicyTables:
    """Compiled policies -> what C holds, with everything reused that an earlier one had."""

    def __init__(self) -> None:
        self._rows: WeakKeyDictionary[Rows, CData] = WeakKeyDictionary()
        self._programs: WeakKeyDictionary[Program, CData] = WeakKeyDictionary()
        self._classes: WeakKeyDictionary[AddressClasses, CData] = WeakKeyDictionary()

    def prepare(self, compiled: Compiled) -> None:
        """Build all that `build` will only put together.

        Raises   TableError.
        """
        self._held_classes(compiled.classes)
        for pair in compiled.programs.values():
            for program in pair:
                self._program(program)

    def build(self, compiled: Compiled, ports: Mapping[str, int]) -> CData:
        """C's policy for the endpoints that have a port, by name; the caller need not release it.

        Raises   TableError.
        """
        programs = list(dict.fromkeys(program for pair in compiled.programs.values() for program in pair))
        index = {program: i for i, program in enumerate(programs)}
        handles = ffi.new("struct canal_program *[]", [self._program(program) for program in programs])
        named = [(ports[name], pair) for name, pair in compiled.programs.items() if name in ports]
        endpoints = np.zeros(len(named), dtype_of("struct canal_endpoint"))
        endpoints["port"] = [port for port, _ in named]
        endpoints["program"] = np.array([[index[one] for one in pair] for _, pair in named]).reshape(len(named), 2)
        out, fault = ffi.new("struct canal_policy **"), new_fault()
        rc = lib.canal_policy_build(
            self._held_classes(compiled.classes),
            handles,
            len(programs),
            ffi.from_buffer("struct canal_endpoint[]", endpoints),
            len(endpoints),
            lib.CANAL_ALLOW if compiled.to_host else lib.CANAL_DENY,
            out,
            fault,
        )
        raise_for(rc, fault, {lib.CANAL_TABLE_ENDPOINT: endpoints})
        return ffi.gc(out[0], lib.canal_policy_release)

    def _held_classes(self, classes: AddressClasses) -> CData:
        found = self._classes.get(classes)
        if found is None:
            base = ffi.NULL if classes.base is None else self._held_classes(classes.base)
            found = self._classes[classes] = _build_classes(classes, base)
        return found

    def _program(self, program: Program) -> CData:
        found = self._programs.get(program)
        if found is None:
            known = self._rows.get(program.rows)
            found = _build_program(program) if known is None else _reclass(known, program)
            self._rows.setdefault(program.rows, found)
            self._programs[program] = found
        return found


def _build_classes(classes: AddressClasses, base: CData) -> CData:
    out, fault = ffi.new("struct canal_classes **"), new_fault()
    rc = lib.canal_classes_build(
        base,
        ffi.from_buffer("struct canal_fib_entry[]", classes.addresses),
        len(classes.addresses),
        ffi.from_buffer("struct canal_fib_entry[]", classes.prefixes),
        len(classes.prefixes),
        ffi.from_buffer("uint32_t[]", classes.flags),
        len(classes.flags),
        out,
        fault,
    )
    raise_for(rc, fault, {lib.CANAL_TABLE_FIB: classes.prefixes})
    return ffi.gc(out[0], lib.canal_classes_release)


def _build_program(program: Program) -> CData:
    out, fault, rows = ffi.new("struct canal_program **"), new_fault(), program.rows
    rc = lib.canal_program_build(
        ffi.from_buffer("struct canal_row[]", rows.table),
        len(rows.table),
        ffi.from_buffer("uint64_t[]", rows.vectors),
        len(rows.vectors),
        *_sides(program),
        out,
        fault,
    )
    raise_for(rc, fault, {lib.CANAL_TABLE_ROW: rows.table})
    return ffi.gc(out[0], lib.canal_program_release)


def _reclass(known: CData, program: Program) -> CData:
    out, fault = ffi.new("struct canal_program **"), new_fault()
    raise_for(lib.canal_program_reclass(known, *_sides(program), out, fault), fault)
    return ffi.gc(out[0], lib.canal_program_release)


def _sides(program: Program) -> tuple[CData, CData, int]:
    return (
        ffi.from_buffer("uint32_t[]", program.source),
        ffi.from_buffer("uint32_t[]", program.destination),
        len(program.source),
    )


def classes_of(tables: PolicyTables, classes: AddressClasses, packed: Sequence[bytes]) -> Words:
    """The class of each address (16 bytes)."""
    found = np.zeros(len(packed), np.uint32)
    addrs = np.frombuffer(b"".join(packed), np.uint8)
    raise_for(
        lib.canal_classes_find(
            tables._held_classes(classes),
            ffi.from_buffer("uint8_t[]", addrs),
            len(packed),
            ffi.from_buffer("uint32_t[]", found),
        )
    )
    return found


def flow_rows(flows: Sequence[Flow]) -> Array:
    """struct canal_flow of first packets, as the parser would make them."""
    rows = np.zeros(len(flows), dtype_of("struct canal_flow"))
    for row, flow in zip(rows, flows, strict=True):
        row["src"] = np.frombuffer(packed(flow.source), np.uint8)
        row["dst"] = np.frombuffer(packed(flow.destination), np.uint8)
        row["proto"], row["family"] = flow.protocol, flow.source.version
        if flow.protocol in (ICMP, ICMP6):
            row["icmp_type"], row["icmp_code"] = flow.icmp_type, flow.icmp_code
        elif flow.protocol in (TCP, UDP, SCTP, UDPLITE):
            row["sport_be"], row["dport_be"] = htons(flow.sport), htons(flow.dport)
    return rows


def judge(policy: CData, flows: Array, ways: Array) -> Array:
    """struct canal_judgement for each struct canal_flow on its struct canal_way: what the worker would decide."""
    found = np.zeros(len(flows), dtype_of("struct canal_judgement"))
    raise_for(
        lib.canal_policy_judge(
            policy,
            ffi.from_buffer("struct canal_flow[]", flows),
            ffi.from_buffer("struct canal_way[]", ways),
            len(flows),
            ffi.from_buffer("struct canal_judgement[]", found),
        )
    )
    return found
