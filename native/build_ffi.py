"""cffi builder of `canal_udp._native`: canal.h says what Python sees, SOURCES what is compiled, in a packet's order.

Importing this file costs nothing (cffi is imported by `builder`), so that `canal_udp._abi` can ask it for the hashes of
the tree it lies in and refuse a library that was built from another one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cffi import FFI

NATIVE = Path(__file__).resolve().parent
MODULE = "canal_udp._native"

SOURCES = (
    *("vnet.c", "parse.c", "fragment.c", "conntrack_table.c", "conntrack_state.c", "conntrack.c", "judge.c"),
    *("verdict.c", "fib.c", "classify.c", "policy.c", "notes.c", "csum.c", "gso.c", "coalesce.c"),
    *("encap_vxlan.c", "encap_udp.c", "encap.c", "ecn.c", "icmp.c", "reset.c", "emit.c", "tx.c"),
    *("pipeline.c", "io.c", "process.c", "worker.c", "datapath.c"),
    *("classify_set.c", "classify_build.c", "classify_rules.c", "policy_build.c", "tables.c", "epoch.c"),
)

# Never -march=native: a wheel runs on other machines; csum.c and friends choose by CPU at load time.
CFLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Wextra")
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def sources() -> list[Path]:
    """C files that exist: SOURCES in their order, then any others by name."""
    known = [NATIVE / name for name in SOURCES if (NATIVE / name).exists()]
    others = sorted(path for path in NATIVE.glob("*.c") if path not in known and not path.name.startswith("_"))
    return known + others


def headers() -> list[Path]:
    return sorted(NATIVE.glob("*.h"))


def cdef_region() -> str:
    """The part of canal.h between the two marks."""
    text = (NATIVE / "canal.h").read_text()
    begin, end = "/* cdef: begin */", "/* cdef: end */"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"canal.h: the marks {begin!r} and {end!r} must each occur once")
    return text.partition(begin)[2].partition(end)[0]


def boundary_hash() -> str:
    return hashlib.sha256(cdef_region().encode()).hexdigest()


def source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(sources() + headers()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def builder() -> FFI:
    """The FFI that setuptools compiles; paths are relative to the directory of setup.py, as it demands."""
    from cffi import FFI

    root = NATIVE.parent
    sanitize = bool(os.environ.get("CANAL_SANITIZE"))
    ffi = FFI()
    ffi.cdef(cdef_region() + "\nstatic char *const canal_boundary_hash;\nstatic char *const canal_source_hash;\n")
    ffi.set_source(
        MODULE,
        f"""
        #include "canal.h"
        static char *const canal_boundary_hash = "{boundary_hash()}";
        static char *const canal_source_hash = "{source_hash()}";
        """,
        sources=[str(path.relative_to(root)) for path in sources()],
        depends=[str(path.relative_to(root)) for path in headers()],
        include_dirs=[str(NATIVE.relative_to(root))],
        extra_compile_args=[*CFLAGS, *(SANITIZE if sanitize else ())],
        extra_link_args=list(SANITIZE) if sanitize else [],
    )
    return ffi
