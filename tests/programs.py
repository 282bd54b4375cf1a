"""Policies by hand: what the compiler would make, for tests that are about what the data plane makes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import numpy as np

from canal_udp._abi import dtype_of, enum_names, ffi, lib
from canal_udp.dataplane import Dataplane
from canal_udp.encap.fib import packed
from canal_udp.policy.compiled import AddressClasses, Compiled, Program, Rows, words

ACTIONS = {name: getattr(lib, f"CANAL_ACTION_{name.upper()}") for name in ("allow", "deny", "reject", "pass", "log")}
HITS = 64

# Class of the addresses of bed.py: the longest prefix decides; the first class is that of everybody else.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "world": ("0.0.0.0/0", "::/0"),
    "a": ("10.1.1.2/32", "fd00:1:1::2/128"),
    "b": ("10.1.1.3/32", "fd00:1:1::3/128"),
    "node": ("10.1.1.0/32", "192.0.2.1/32", "fd00:1:1::/128", "2001:db8::1/128"),
    "x": ("10.1.2.0/24", "fd00:1:2::/64"),
}


@dataclass(frozen=True)
class Line:
    """One row; None: whatever. `next`: where Pass goes on."""

    action: str
    rule: int = 0
    src: Collection[str] | None = None
    dst: Collection[str] | None = None
    proto: int | None = None
    dport: tuple[int, int] = (0, 0xFFFF)
    sport: tuple[int, int] = (0, 0xFFFF)
    next: int = 0


ALLOW, DENY, REJECT = (Line(action, rule) for action, rule in (("allow", 1), ("deny", 2), ("reject", 3)))
Lines = Sequence[Line]


def table(lines: Lines) -> np.ndarray:
    made = np.zeros(len(lines), dtype_of("struct canal_row"))
    for row, line in zip(made, lines, strict=True):
        row["sport_lo"], row["sport_hi"] = line.sport
        row["dport_lo"], row["dport_hi"] = line.dport
        row["proto_lo"], row["proto_hi"] = (0, 255) if line.proto is None else (line.proto, line.proto)
        row["action"], row["rule"], row["next"] = ACTIONS[line.action], line.rule, line.next
    return made


def program(lines: Lines, names: Collection[str] = CLASSES) -> Program:
    """A program for classes of these names, numbered in this order."""

    def bits(end: str) -> np.ndarray:
        wanted = [getattr(line, end) for line in lines]
        return np.array([[one is None or name in one for one in wanted] for name in names], bool)

    vectors = words(np.concatenate([bits("src"), bits("dst")]).reshape(2 * len(names), len(lines)))
    numbers = np.arange(2 * len(names), dtype=np.uint32)
    return Program(Rows(table(lines), vectors), numbers[: len(names)].copy(), numbers[len(names) :].copy())


def classes(made: Mapping[str, tuple[str, ...]] = CLASSES) -> AddressClasses:
    prefixes: list[tuple[IPv4Network | IPv6Network, int]] = [
        (ip_network(prefix), at) for at, several in enumerate(made.values()) for prefix in several
    ]
    rows = np.zeros(len(prefixes), dtype_of("struct canal_fib_entry"))
    for row, (prefix, at) in zip(rows, prefixes, strict=True):
        row["prefix"] = np.frombuffer(packed(prefix.network_address), np.uint8)
        row["family"], row["plen"], row["target"] = prefix.version, prefix.prefixlen, at
    flags = [lib.CANAL_CLASS_NODE if name == "node" else 0 for name in made]
    single = rows["plen"] == np.where(rows["family"] == 4, 32, 128)
    return AddressClasses(rows[single], rows[~single], np.array(flags, np.uint32))


def compiled(programs: Mapping[str, tuple[Lines, Lines]], to_host: bool = True) -> Compiled:
    """Programs (egress, ingress) of endpoints by name; one that is not named has none."""
    made = {name: (program(egress), program(ingress)) for name, (egress, ingress) in programs.items()}
    return Compiled(classes(), made, to_host, {})


def one(pod: str = "a", egress: Lines = (ALLOW,), ingress: Lines = (ALLOW,), to_host: bool = True) -> Compiled:
    """These lines for one pod of bed.py; the other one may do everything."""
    open_to_all = ((ALLOW,), (ALLOW,))
    return compiled({"a": open_to_all, "b": open_to_all, pod: (egress, ingress)}, to_host)


# ---- looking in ------------------------------------------------------------------------------------------------------


def hits(dp: Dataplane) -> dict[int, int]:
    """How often each rule decided; 0 stands for no rule."""
    found = np.zeros(HITS, np.uint64)
    assert lib.canal_hits_read(dp._open, 0, ffi.from_buffer("uint64_t[]", found), HITS) == 0
    return {rule: int(count) for rule, count in enumerate(found) if count and rule}


def notes(dp: Dataplane, since_ms: int = 0, n: int = 8192) -> np.ndarray:
    """struct canal_note of the flows that were denied or logged."""
    found, now = np.zeros(n, dtype_of("struct canal_note")), ffi.new("uint64_t *")
    return found[: lib.canal_notes_read(dp._open, since_ms, ffi.from_buffer("struct canal_note[]", found), n, now)]


def flow_rows(flows: Sequence[tuple[str, str, int, int, int]]) -> np.ndarray:
    """struct canal_flow of (source, destination, protocol, source port, destination port); ICMP: type, code."""
    rows = np.zeros(len(flows), dtype_of("struct canal_flow"))
    for row, (src, dst, proto, first, second) in zip(rows, flows, strict=True):
        for name, text in (("src", src), ("dst", dst)):
            row[name] = np.frombuffer(packed(ip_address(text)), np.uint8)
        row["proto"], row["family"] = proto, ip_address(src).version
        if proto in (1, 58):
            row["icmp_type"], row["icmp_code"] = first, second
        else:
            row["sport_be"], row["dport_be"] = (
                int.from_bytes(port.to_bytes(2, "big"), "little") for port in (first, second)
            )
    return rows


ENDS = enum_names("enum canal_end", "CANAL_")
