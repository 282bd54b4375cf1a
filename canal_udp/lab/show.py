"""What a lab prints: steps with progress, matrices, sparklines; coloured on a terminal, plain text anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

_COLOURS = {"good": "32", "bad": "31", "dim": "2", "bold": "1", "accent": "36"}
_LABEL_WIDTH = 34


def canal() -> str:
    """How the user can call this program again from where he stands: it may lie in a .venv that is not on his PATH."""
    sudo = "sudo " if "SUDO_USER" in os.environ else ""
    if shutil.which("canal"):
        return f"{sudo}canal"
    called = Path(sys.argv[0])
    if called.name != "canal":
        return f"{sudo}{sys.executable} -m canal_udp"
    shorter = os.path.relpath(called)
    return sudo + (shorter if not shorter.startswith("..") else str(called))


@dataclass(slots=True)
class Step:
    """One line of progress; `detail` is what stands behind it when it is done."""

    label: str
    detail: str = ""
    good: bool = True
    started: float = field(default_factory=time.monotonic)


class Screen:
    """A place to print to."""

    def __init__(self, stream: TextIO | None = None, colour: bool | None = None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = (self.live and not os.environ.get("NO_COLOR")) if colour is None else colour
        encoding = (self.stream.encoding or "ascii").lower()
        self.unicode = encoding.startswith("utf")

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour else text

    def line(self, text: str = "") -> None:
        print(text, file=self.stream, flush=True)

    def title(self, text: str) -> None:
        self.line(self.paint(text, "bold"))

    def mark(self, good: bool) -> str:
        if self.unicode:
            return self.paint("✓", "good") if good else self.paint("✗", "bad")
        return self.paint("ok", "good") if good else self.paint("FAILED", "bad")

    @contextmanager
    def step(self, label: str) -> Iterator[Step]:
        """Print a step when it is done, with its time; on a terminal it is also there while it runs."""
        step = Step(label)
        self.progress(step, "")
        try:
            yield step
        except BaseException:
            step.good = False
            raise
        finally:
            seconds = self.paint(f"{time.monotonic() - step.started:5.1f} s", "dim")
            start = "\r\x1b[K" if self.live else ""
            self.line(f"{start}  {self.mark(step.good)} {step.label:<{_LABEL_WIDTH}} {seconds}  {step.detail}".rstrip())

    def progress(self, step: Step, text: str) -> None:
        """What a running step does just now; only a terminal shows it."""
        if self.live:
            dots = "…" if self.unicode else "..."
            print(f"\r\x1b[K  {dots} {step.label:<{_LABEL_WIDTH}} {text}", end="", file=self.stream, flush=True)

    def matrix(self, names: Sequence[str], cells: dict[tuple[str, str], bool]) -> None:
        """Who (row) reaches whom (column)."""
        yes, no = ("✓", "✗") if self.unicode else ("y", "N")
        self.grid(names, names, {pair: (yes, "good") if good else (no, "bad") for pair, good in cells.items()})

    def grid(self, rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], tuple[str, str]]) -> None:
        """A text and its colour for each row and column; nothing is a dot."""
        width = max(3, *(len(name) for name in (*rows, *columns)))
        self.line("    " + " " * width + "".join(f" {name:>{width}}" for name in columns))
        none = ("·" if self.unicode else ".", "dim")
        for row in rows:
            found = (cells.get((row, column), none) for column in columns)
            marks = (" " * (width + 1 - len(text)) + self.paint(text, colour) for text, colour in found)
            self.line(f"    {row:>{width}}{''.join(marks)}")

    def sparkline(self, values: Sequence[float]) -> str:
        """Values as bars of eight heights, 0 as a bar of its own."""
        bars = "▁▂▃▄▅▆▇█" if self.unicode else "_.-:=+*#"
        top = max(values, default=0.0) or 1.0
        return "".join(bars[0] if value <= 0 else bars[max(1, round(value / top * 7))] for value in values)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        for index, row in enumerate((header, *rows)):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self.line(self.paint(cells, "dim") if index == 0 else cells)
