"""A value with its path and line, and a reader that notes every error instead of stopping at the first.

Place     between documents (reader.py, or an API's JSON) and the parse modules.
Structure Document = plain value + lines by path; Cursor = one value, its path, and the list that problems go to;
          Table = a mapping whose keys are checked. A reader that finds a value wrong notes it and raises Bad;
          Table.read and Cursor.each catch it and go on with the next field.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from canal_udp.net import Address, Network, parse_address, parse_network, printable

T = TypeVar("T")
D = TypeVar("D")
Path: TypeAlias = tuple[str | int, ...]

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file; line 0 is the whole of it."""

    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


NOWHERE = Where()


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, or legal but suspicious, and where."""

    severity: Literal["error", "warning"]
    where: Where
    field: str
    text: str

    def __str__(self) -> str:
        parts = (str(self.where), self.severity, self.field, self.text)
        return ": ".join(part for part in parts if part)


class Bad(Exception):
    """A value cannot be used; the problem is noted already."""


def suggest(word: str, known: Collection[str]) -> str:
    """The end of a message about an unknown word: what was meant, or what there is."""
    folded = {name.lower(): name for name in known}
    if close := difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6):
        return f"did you mean {folded[close[0]]!r}?"
    return f"known: {', '.join(sorted(known))}"


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file or an API, as plain values."""

    value: object
    source: str
    lines: Mapping[Path, int] = field(default_factory=dict, repr=False)
    problems: tuple[Problem, ...] = ()

    def cursor(self, problems: list[Problem]) -> Cursor:
        problems.extend(self.problems)
        return Cursor(self.value, (), self, problems)


def dotted(path: Path) -> str:
    """spec.ingress[0].from, as error messages name a field."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@dataclass(frozen=True, slots=True)
class Cursor:
    """One value and the path that leads to it."""

    value: object
    path: Path
    document: Document
    problems: list[Problem]

    # ---- problems

    @property
    def where(self) -> Where:
        lines, path = self.document.lines, self.path
        while path and path not in lines:
            path = path[:-1]
        return Where(self.document.source, lines.get(path, 0))

    @property
    def errors(self) -> int:
        """How many errors there are so far; `first_error` says what came after."""
        return len(self.problems)

    def first_error(self, since: int) -> str:
        """The first error noted after `errors` was `since`; "" if none."""
        return next((f"{p.field}: {p.text}" for p in self.problems[since:] if p.severity == "error"), "")

    def fail(self, text: str) -> Bad:
        self.problems.append(Problem("error", self.where, dotted(self.path), text))
        return Bad(text)

    def warn(self, text: str) -> None:
        self.problems.append(Problem("warning", self.where, dotted(self.path), text))

    # ---- structure

    def child(self, step: str | int, value: object) -> Cursor:
        return Cursor(value, (*self.path, step), self.document, self.problems)

    def table(self, known: Collection[str] | None = None, *, required: Collection[str] = ()) -> Table:
        """A mapping; keys that are not `known` are errors (None: any key is fine)."""
        if not isinstance(self.value, dict):
            raise self.fail("a mapping (key: value) is needed here")
        table = Table(self, self.value)
        if known is not None:
            for key in self.value:
                if key not in known:
                    self.child(key, None).fail(f"unknown field; {suggest(str(key), known)}")
        for key in required:
            if self.value.get(key) is None:
                self.fail(f"{key} is missing")
        return table

    def each(self, read: Callable[[Cursor], T], most: int | None = None) -> tuple[T, ...]:
        """The elements of a list that can be read; the others are noted."""
        if not isinstance(self.value, list):
            raise self.fail("a list is needed here")
        if most is not None and len(self.value) > most:
            self.fail(f"{len(self.value)} elements; at most {most} are allowed")
        found = (self.child(index, value).attempt(read, _MISSING) for index, value in enumerate(self.value))
        return tuple(one for one in found if one is not _MISSING)  # type: ignore[misc]

    def attempt(self, read: Callable[[Cursor], T], default: D) -> T | D:
        try:
            return read(self)
        except Bad:
            return default

    # ---- single values

    def text(self) -> str:
        if isinstance(self.value, str):
            return self.value
        shown = str(self.value).lower() if isinstance(self.value, bool) else printable(str(self.value), 40)
        hint = f" ({shown} without quotes is none)" if isinstance(self.value, bool | int | float) else ""
        raise self.fail(f"a string is needed here{hint}")

    def boolean(self) -> bool:
        if isinstance(self.value, bool):
            return self.value
        raise self.fail("true or false is needed here")

    def integer(self, low: int, high: int) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fail(f"a whole number from {low} to {high} is needed here")
        if not low <= self.value <= high:
            raise self.fail(f"{self.value} is not between {low} and {high}")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or self.value != self.value:
            raise self.fail("a number is needed here")
        return float(self.value)

    def choice(self, known: Collection[str]) -> str:
        if (text := self.text()) in known:
            return text
        raise self.fail(f"{printable(text, 40)!r} is not allowed; {suggest(text, known)}")

    def network(self) -> Network:
        return self._parsed(lambda text: parse_network(text, strict=False))

    def net_or_address(self) -> Network:
        """A prefix; an address alone is the prefix that holds only it."""
        return self._parsed(lambda text: parse_network(text if "/" in text else f"{text}/{_bits(text)}", strict=False))

    def address(self) -> Address:
        return self._parsed(parse_address)

    def labels(self) -> dict[str, str]:
        table = self.table()
        return {key: text for key in table if (text := table.read(key, Cursor.text, None)) is not None}

    def _parsed(self, parse: Callable[[str], T]) -> T:
        text = self.text()
        try:
            return parse(text)
        except ValueError as error:
            raise self.fail(str(error)) from None


def _bits(text: str) -> int:
    return parse_address(text).max_prefixlen


@dataclass(frozen=True, slots=True)
class Table:
    """The entries of a mapping; null is the same as not there."""

    cursor: Cursor
    values: Mapping[str, object]

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def at(self, key: str) -> Cursor:
        return self.cursor.child(key, self.values.get(key))

    def read(self, key: str, read: Callable[[Cursor], T], default: D) -> T | D:
        """What `read` makes of an entry; the default if it is not there or cannot be read."""
        return self.at(key).attempt(read, default) if key in self else default

    def each(self, key: str, read: Callable[[Cursor], T], most: int | None = None) -> tuple[T, ...]:
        return self.read(key, lambda cursor: cursor.each(read, most), ())

    def one_of(self, names: Collection[str]) -> str:
        """The one of these keys that is there; none or several are an error."""
        found = [name for name in names if name in self]
        if len(found) != 1:
            listed = ", ".join(names)
            raise self.cursor.fail(f"exactly one of {listed} is needed" + (f", not {len(found)}" if found else ""))
        return found[0]
