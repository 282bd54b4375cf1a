"""Snapshots are swapped under a reading worker; the sanitizers say what was freed too early or read in a race."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import POLICY, build_native, run_program


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="nothing is freed too early or never"),
        pytest.param(("-fno-sanitize=all", "-fsanitize=thread"), id="nothing is read in a race"),
    ],
)
def test_swaps_under_a_reading_worker(tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = build_native(tmp_path, "test_epoch.c", ["epoch.c", "tables.c", "fib.c", *POLICY], "-pthread", *flags)
    run_program(program, 300)
