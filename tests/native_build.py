"""Compile and run C test programs of stages that Python cannot reach through the boundary, under ASan and UBSan."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent
NATIVE = TESTS.parent / "native"
# What a snapshot may hold.
POLICY = ("policy.c", "policy_build.c", "classify.c", "classify_build.c", "classify_set.c")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def build_native(tmp_path: Path, test: str, sources: Sequence[str], *flags: str) -> Path:
    """Compile tests/native/<test> with native/<sources>; returns the executable.

    flags    more arguments for the compiler, e.g. "-mavx2".
    Raises   AssertionError with what the compiler said.
    """
    program = tmp_path / Path(test).stem
    command = [os.environ.get("CC", "gcc"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", *WARNINGS, *SANITIZERS, *flags]
    command += [f"-I{NATIVE}", f"-I{TESTS / 'native'}", "-o", str(program), str(TESTS / "native" / test)]
    command += [str(NATIVE / source) for source in sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return program


def run_program(program: Path, *args: object, stdin: str = "", timeout_s: float = 120) -> str:
    """Run a test program; returns its stdout.

    Raises   AssertionError with its stderr (failed check or sanitizer report) when it did not exit with 0.
    """
    command = [str(program), *(str(arg) for arg in args)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stderr}"
    return done.stdout


def run_native(tmp_path: Path, test: str, sources: Sequence[str], *args: object, stdin: str = "") -> str:
    """Compile tests/native/<test> with native/<sources>, run it with args, return its stdout."""
    return run_program(build_native(tmp_path, test, sources), *args, stdin=stdin)
