"""`canal bench stages`: the functions of canal.h by themselves, by pytest-benchmark over benchmarks/bench_*.py.

Structure  each benchmark puts into its extra_info: group, n = packets (or rows) a call, and what it checked;
           a row of the report is {group, name, n, ns_per_item, items_per_s, rounds, checked}
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canal_udp.bench import machine
from canal_udp.bench.table import aligned, bar
from canal_udp.bench.tools import SOURCES
from canal_udp.errors import BenchError

FORMAT = 1
ORDER = ("parse", "decap", "FIB lookup", "conntrack hit", "conntrack miss", "conntrack insert")  # then the others


def run(seconds: float, only: Sequence[str], verbose: bool) -> dict[str, Any]:
    """Run them; returns the report. Raises BenchError when a check of an output failed: then there is none."""
    about = machine.about()
    with tempfile.TemporaryDirectory(prefix="canal-bench") as folder:
        file = Path(folder) / "raw.json"
        argv = [sys.executable, "-m", "pytest", str(SOURCES), "-q", "--benchmark-only", "--benchmark-json", str(file)]
        argv += ["-o", "python_files=bench_*.py", "-o", "timeout=600", "-p", "no:cacheprovider", "--benchmark-quiet"]
        argv += ["--benchmark-max-time", str(seconds), "--benchmark-min-rounds", "5", "--benchmark-disable-gc"]
        argv += ["-k", " or ".join(only)] if only else []
        done = subprocess.run(argv, cwd=SOURCES.parent, capture_output=not verbose, text=True, check=False)
        if done.returncode != 0 or not file.exists():
            raise BenchError(f"the benchmarks of the stages failed:\n{(done.stdout or '').strip()}")
        raw = json.loads(file.read_text(encoding="utf-8"))
    return {"kind": "stages", "format": FORMAT, "about": about, "stages": rows(raw)}


def rows(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What pytest-benchmark wrote, as rows of the report. Pure."""
    found = []
    for item in raw["benchmarks"]:
        extra, stats = item["extra_info"], item["stats"]
        ns = stats["median"] / extra["n"] * 1e9
        found.append(
            {
                "group": extra["group"],
                "name": extra["name"],
                "n": extra["n"],
                "ns_per_item": ns,
                "items_per_s": 1e9 / ns,
                "spread": stats["iqr"] / stats["median"] / 2 if stats["median"] else 0.0,
                "rounds": stats["rounds"],
                "checked": extra["checked"],
            }
        )
    return sorted(found, key=lambda row: ORDER.index(row["group"]) if row["group"] in ORDER else len(ORDER))


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table, and what it was measured on."""
    about = report["about"]
    legend = f"{about['cpu']}, {about['isa']}, Linux {about['kernel']}, canal {about['commit']}"
    return [*aligned(_cells(report), left=2), "", legend]


def markdown(report: Mapping[str, Any]) -> list[str]:
    """The table for a document."""
    header, *cells = _cells(report)
    return [bar(header), bar(["---", "---", "--:", "--:", "--:", "---"]), *map(bar, cells)]


def _cells(report: Mapping[str, Any]) -> list[list[str]]:
    table = [["stage", "case", "ns", "spread", "M/s", "checked"]]
    for row in report["stages"]:
        rate = f"{row['items_per_s'] / 1e6:.3g}"
        table.append(
            [row["group"], row["name"], f"{row['ns_per_item']:.1f}", f"±{row['spread']:.0%}", rate, row["checked"]]
        )
    return table
