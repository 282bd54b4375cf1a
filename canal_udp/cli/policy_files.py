"""Files of policies: read them, tell what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from canal_udp.cli.output import text
from canal_udp.errors import UsageError

if TYPE_CHECKING:
    from canal_udp.policy.cursor import Problem
    from canal_udp.policy.load import Loaded

FILES_HELP = "YAML or JSON, a folder of them, or - for standard input"
_SUFFIXES = (".yaml", ".yml", ".json")


def load_files(names: Iterable[str]) -> Loaded:
    """Read files, folders of them, and - for standard input."""
    from canal_udp.policy.load import load_texts

    return load_texts(_texts(names))


def _texts(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name == "-":
            yield "standard input", sys.stdin.read()
            continue
        path = Path(name)
        files = sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{name}: no file ends with {', '.join(_SUFFIXES)}")
        for file in files:
            try:
                yield str(file), file.read_text(encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise UsageError(f"{file}: not a text in UTF-8") from None


def tell(problems: Iterable[Problem]) -> None:
    """Print problems where they do not mix with answers."""
    for problem in problems:
        print(f"canal: {text(str(problem))}", file=sys.stderr)


def problem_fields(problem: Problem) -> dict[str, object]:
    """A problem for JSON."""
    return {
        "severity": problem.severity,
        "file": problem.where.source,
        "line": problem.where.line or None,
        "field": problem.field,
        "problem": problem.text,
    }
