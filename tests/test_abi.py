"""The boundary: what Python derives from canal.h is what the compiler made of it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from canal_udp import _abi
from canal_udp._abi import ABI_VERSION, Lib, dtype_of, enum_names, ffi, lib, source_is_stale, stale

HEADER = (Path(__file__).resolve().parent.parent / "native" / "canal.h").read_text()
REGION = HEADER.partition("/* cdef: begin */")[2].partition("/* cdef: end */")[0]
CODE = re.sub(r"/\*.*?\*/", "", REGION, flags=re.DOTALL)
STRUCTS = re.findall(r"^struct (\w+) \{", CODE, flags=re.MULTILINE)
ENUMS = re.findall(r"^enum (\w+) \{", CODE, flags=re.MULTILINE)
FUNCTIONS = sorted(set(re.findall(r"\b(canal_\w+)\s*\(", CODE)))


def test_library_is_built_from_this_source() -> None:
    assert not source_is_stale(), _abi.REBUILD


def test_versions_agree() -> None:
    assert lib.canal_abi_version() == lib.CANAL_ABI_VERSION == ABI_VERSION


@pytest.mark.parametrize("name", STRUCTS)
def test_dtype_matches_struct(name: str) -> None:
    """Same members in the same order at the same offsets, naturally aligned, and no hidden padding to leak."""
    struct = ffi.typeof(f"struct {name}")
    dtype = dtype_of(f"struct {name}")
    assert dtype.itemsize == ffi.sizeof(struct)
    assert dtype.names == tuple(member for member, _ in struct.fields)
    end = 0
    for member, field in struct.fields:
        base, offset = dtype.fields[member][:2]
        assert offset == field.offset
        assert base.itemsize == ffi.sizeof(field.type)
        assert offset % base.base.itemsize == 0, f"{member} is not naturally aligned"
        assert offset == end, f"hidden padding before {member}"
        end = offset + base.itemsize
    if name not in ("canal_frame", "canal_flow"):
        assert end == dtype.itemsize, "hidden padding at the end"


@pytest.mark.parametrize("name", STRUCTS)
def test_values_written_by_numpy_are_read_by_c(name: str) -> None:
    """The highest value of every member survives the way through an array."""
    rows = np.zeros(2, dtype_of(f"struct {name}"))
    view = ffi.from_buffer(f"struct {name}[]", rows, require_writable=True)
    for member, field in ffi.typeof(f"struct {name}").fields:
        scalar = rows.dtype.fields[member][0].base
        assert scalar.kind == ("i" if np.issubdtype(scalar, np.signedinteger) else "u")
        top = int(np.iinfo(scalar).max)
        rows[1][member] = top
        read = getattr(view[1], member)
        assert (list(read) if field.type.kind == "array" else [read])[-1] == top
    assert bytes(rows[0].tobytes()) == bytes(rows.dtype.itemsize), "wrote into the neighbour"


@pytest.mark.parametrize(
    ("enum", "prefix"),
    [
        ("canal_counter", "CANAL_"),
        ("canal_drop", "CANAL_DROP_"),
        ("canal_ct_state", "CANAL_CT_"),
        ("canal_verdict", "CANAL_"),
    ],
)
def test_enum_names_are_complete(enum: str, prefix: str) -> None:
    """Dense from zero, each name once, nothing of the list in canal.h missing."""
    names = enum_names(f"enum {enum}", prefix)
    body = re.search(rf"enum {enum} \{{(.*?)\}}", CODE, flags=re.DOTALL)
    assert body is not None
    listed = [item.split("=")[0].strip() for item in body[1].split(",") if item.strip()]
    closing = f"{enum.upper()}S"
    assert [f"{prefix}{name.upper()}" for name in names] == [name for name in listed if name != closing]
    if closing in listed:
        assert getattr(lib, closing) == len(names)


def test_every_function_is_typed() -> None:
    """The Protocol that mypy reads has the functions of canal.h with as many arguments; nothing else."""
    typed = {name: f for name, f in vars(Lib).items() if name.startswith("canal_") and inspect.isfunction(f)}
    assert sorted(typed) == FUNCTIONS
    for name, function in typed.items():
        declared = ffi.typeof(getattr(lib, name))
        assert len(declared.args) == len(inspect.signature(function).parameters) - 1, name
        result = inspect.signature(function).return_annotation
        assert result == {"int": "int", "void": "None"}.get(declared.result.cname, "CData"), name


@pytest.mark.parametrize("name", STRUCTS + ENUMS)
def test_header_names_reach_python(name: str) -> None:
    kind = "struct" if name in STRUCTS else "enum"
    assert ffi.typeof(f"{kind} {name}").kind == kind


@pytest.mark.parametrize(
    ("compiled", "present", "expected"),
    [
        pytest.param("aa", "aa", False, id="the same tree"),
        pytest.param("aa", "bb", True, id="the tree changed since the build"),
        pytest.param("aa", None, False, id="installed without a tree"),
    ],
)
def test_stale_library_guard(compiled: str, present: str | None, expected: bool) -> None:
    assert stale(compiled, present) is expected


def test_library_of_another_header_refuses_to_load(tmp_path: Path) -> None:
    """A copy of the package beside a canal.h with one more line says `rebuild`."""
    root = Path(_abi.__file__).resolve().parent.parent
    package, native = tmp_path / "canal_udp", tmp_path / "native"
    package.mkdir()
    native.mkdir()
    for file in (root / "canal_udp").glob("*.py"):
        (package / file.name).write_bytes(file.read_bytes())
    for file in (root / "native").glob("*.[ch]"):
        (native / file.name).write_bytes(file.read_bytes())
    (native / "build_ffi.py").write_bytes((root / "native" / "build_ffi.py").read_bytes())
    code = "import os, sys; sys.path.insert(0, os.getcwd()); import canal_udp._abi as abi; print(abi.source_is_stale())"
    environment = os.environ | {"CANAL_LIBRARY": str(_abi.library_path())}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run().stdout.strip() in ("True", "False"), run().stderr
    (native / "fib.c").write_text("/* another one */\n")
    assert run().stdout.strip() == "True"
    (native / "canal.h").write_text(HEADER.replace("/* cdef: begin */", "/* cdef: begin */\n#define CANAL_NEW 1"))
    done = run()
    assert done.returncode == 1
    assert "canal.h changed" in done.stderr
    assert "rebuild it" in done.stderr


def test_missing_library_says_so() -> None:
    environment = os.environ | {"CANAL_LIBRARY": "/nonexistent/_native.so"}
    command = [sys.executable, "-c", "import canal_udp._abi"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rebuild it: make build" in done.stderr
