"""What the commands print: tables for people, JSON for programs; nothing of others' text reaches the terminal raw."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canal_udp.api import DEFAULT_RUN_DIR


def add_common(parser: argparse.ArgumentParser, *, json_output: bool = True) -> None:
    """Add --run-dir, and -j where there is something to print."""
    default = Path(os.environ.get("CANAL_RUN_DIR") or DEFAULT_RUN_DIR)
    parser.add_argument(
        "--run-dir", type=Path, default=default, metavar="DIR", help="the daemon's directory (%(default)s)"
    )
    if json_output:
        parser.add_argument("-j", "--json", action="store_true", help="print JSON")


def print_json(value: object) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], empty: str) -> None:
    """Print rows under their column names, which are also their keys; `empty` if there are none."""
    if not rows:
        print(empty)
        return
    cells = [[name.upper().replace("_", " ") for name in columns]]
    cells += [[text(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def text(value: object) -> str:
    """Return one cell: lists joined, nothing as a dash, control characters escaped."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, list):
        return ",".join(text(item) for item in value)
    if isinstance(value, dict):
        return ",".join(f"{text(key)}={text(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))


def amount(count: int, unit: str = "") -> str:
    """Return a number that a person can read: 12.3 M."""
    scaled = float(count)
    for prefix in ("", "k", "M", "G", "T"):
        if scaled < 1000 or prefix == "T":
            break
        scaled /= 1000
    number = f"{scaled:.0f}" if not prefix else f"{scaled:.1f}"
    return f"{number} {prefix}{unit}".rstrip()
