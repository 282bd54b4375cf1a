"""csum.c: every instruction set sums as the obvious loop does, and as scapy does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from native_build import build_native, run_program
from scapy.utils import checksum

from canal_udp._abi import ffi, lib

# Without target_clones the file is compiled for one instruction set: each is tested where another would be chosen.
ONE_CLONE = "-Dtarget_clones(...)="
CPU_FLAGS = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
BUILDS = {"dispatched": (), "scalar": (ONE_CLONE,)} | {
    name: (ONE_CLONE, f"-m{name}") for name in ("avx2", "avx512f") if name in CPU_FLAGS
}


@pytest.mark.parametrize("flags", BUILDS.values(), ids=BUILDS)
def test_sums_equal_the_twins(tmp_path: Path, flags: tuple[str, ...]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    out = run_program(build_native(tmp_path, "test_csum.c", ["csum.c"], *flags), seed)
    assert len(out.splitlines()) == 50
    for line in out.splitlines():
        total, _, data = line.partition(" ")
        assert int(total) ^ 0xFFFF == checksum(bytes.fromhex(data)), data


def test_static_build_dispatches_too(tmp_path: Path) -> None:
    """The resolvers of a static program run before everything else; no sanitizer can be in there."""
    flags = ("-static", "-fno-sanitize=all")
    run_program(build_native(tmp_path, "test_csum.c", ["csum.c"], *flags))


def test_isa_is_what_the_cpu_has() -> None:
    expected = "avx512" if "avx512f" in CPU_FLAGS else "avx2" if "avx2" in CPU_FLAGS else "scalar"
    assert ffi.string(lib.canal_isa()).decode() == expected
