"""The programs that make and answer traffic: built from benchmarks/*.c, run inside pods, ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canal_udp.errors import BenchError
from canal_udp.lab.host import PACKAGES, netns_path
from canal_udp.tunnel.netns import run_inside

SOURCES = Path(__file__).parents[2] / "benchmarks"
BUILD = SOURCES / "build"
PATIENCE_S = 20.0  # beyond the time that a program is told to run


def build() -> None:
    """Compile what is older than its source. Raises BenchError."""
    script = SOURCES / "build.sh"
    if not script.exists():
        raise BenchError(f"{script} is missing: benchmarks run from a source tree")
    done = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{script}: {done.stderr.strip() or f'exit {done.returncode}'}")


def tool(name: str) -> str:
    return str(BUILD / name)


@contextmanager
def running(space: str, argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in a namespace, with pipes; it is gone at the end of the block. Raises BenchError."""

    def work() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    try:
        process = run_inside(netns_path(space), work)
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is not installed: apt-get install {PACKAGES.get(argv[0], argv[0])}") from None
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], timeout_s: float) -> str:
    """Close its input, wait, and return what it printed. Raises BenchError when it failed or hangs."""
    name = _name(process)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} hangs: no end after {timeout_s:.0f} s") from None
    if process.returncode != 0:
        last = (errors.strip() or output.strip() or f"exit {process.returncode}").splitlines()[-1]
        raise BenchError(f"{name}: {_iperf_error(output) or last}")
    return output


def _name(process: subprocess.Popen[str]) -> str:
    argv = process.args
    return Path(str(argv[0] if isinstance(argv, list) else argv)).name


def _iperf_error(output: str) -> str:
    """iperf3 -J puts its error into the JSON."""
    with contextlib.suppress(ValueError):
        return str(json.loads(output).get("error", ""))
    return ""


def line(process: subprocess.Popen[str], until: str = "") -> str:
    """The next line that contains a word. Raises BenchError when the program ends before."""
    assert process.stdout is not None
    for text in process.stdout:
        if until in text:
            return text
    finish(process, PATIENCE_S)
    raise BenchError(f"{_name(process)} ended before it said {until!r}")


def port(process: subprocess.Popen[str]) -> str:
    """What our own servers print when they are ready."""
    return str(json.loads(line(process))["port"])


def call(space: str, argv: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a program that takes some seconds and prints one JSON document. Raises BenchError."""
    with running(space, argv) as process:
        document: dict[str, Any] = json.loads(finish(process, seconds + PATIENCE_S))
    return document
