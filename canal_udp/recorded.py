"""Rows of what the data plane records -> plain values: conntrack entries, and flows that policy took note of."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address
from socket import ntohs
from typing import Any, TypeAlias

from canal_udp._abi import enum_names, lib
from canal_udp.encap.fib import unpacked
from canal_udp.readings import Address, Flow, Judged, Note

CT_STATES = enum_names("enum canal_ct_state", "CANAL_CT_")
VERDICTS = enum_names("enum canal_verdict", "CANAL_")
ENDS = enum_names("enum canal_end", "CANAL_")

Target: TypeAlias = Callable[[int], str]  # what a target of canal.h is called


def flow_of(row: Any, target: Target) -> Flow:
    """struct canal_flow_info."""
    return Flow(
        src=_address(row["src"]),
        dst=_address(row["dst"]),
        proto=int(row["proto"]),
        sport=ntohs(int(row["sport_be"])),
        dport=ntohs(int(row["dport_be"])),
        state=CT_STATES[row["state"]],
        verdict=VERDICTS[row["verdict"]],
        rules=_pair(row["rule"]),
        came_from=target(int(row["in_target"])),
        goes_to=target(int(row["out_target"])),
        packets=_pair(row["packets"]),
        bytes=_pair(row["bytes"]),
        generation=int(row["generation"]),
        age_ms=int(row["age_ms"]),
        idle_ms=int(row["idle_ms"]),
        expires_ms=int(row["expires_ms"]),
    )


def note_of(row: Any, target: Target) -> Note:
    """struct canal_note."""
    return Note(
        src=_address(row["src"]),
        dst=_address(row["dst"]),
        proto=int(row["proto"]),
        sport=ntohs(int(row["sport_be"])),
        dport=ntohs(int(row["dport_be"])),
        icmp_type=int(row["icmp_type"]),
        icmp_code=int(row["icmp_code"]),
        verdict=VERDICTS[row["verdict"]],
        reject=bool(row["reject"]),
        end=ENDS[row["end"]],
        rules=_pair(row["rule"]),
        logs=_pair(row["log"]),
        came_from=target(int(row["in_target"])),
        packets=int(row["packets"]),
        bytes=int(row["bytes"]),
        first_ms=int(row["first_ms"]),
        last_ms=int(row["last_ms"]),
    )


def judged_of(row: Any) -> Judged:
    """struct canal_judgement."""
    return Judged(bool(row["verdict"] == lib.CANAL_ALLOW), bool(row["reject"]), _pair(row["rule"]))


def _address(raw: Any) -> Address:
    return unpacked(raw.tobytes()) or IPv6Address(0)


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])
