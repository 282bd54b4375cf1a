"""YAML text to checked values; every error says file, line, field and what would have been right.

Place     the lab's only reader of YAML. `model.py` says what the fields mean, this file how to take them out.
Structure Cursor = one YAML node + the path that leads to it; `table()` opens a mapping, `items()` a list, the rest are
          for single values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from canal_udp.errors import ConfigError

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
NAME_RULE = "a name is 1 to 30 lower case letters, digits and inner dashes"
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_BITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def suggest(word: str, known: Collection[str]) -> str:
    """The end of an error message about an unknown word: what was meant, or what there is."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known))}" if known else "none is defined"


def _quantity(text: str, factors: dict[str, int]) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.lower())
    if not match:
        raise ValueError(text)
    return round(float(match[1]) * factors[match[2]])


def size_bytes(text: str) -> int:
    """`64M` = 64 * 2^20."""
    return _quantity(text, _BYTES)


def rate_bits(text: str) -> int:
    """`500M` = 500 * 10^6 bits per second."""
    return _quantity(text, _BITS)


@dataclass(frozen=True, slots=True)
class Cursor:
    """One node of a YAML document and the path that leads to it."""

    node: Any
    source: str
    field: str = ""

    def fail(self, problem: str) -> ConfigError:
        return ConfigError(problem, source=self.source, line=self.node.start_mark.line + 1, field=self.field)

    def at(self, node: Any, key: str) -> Cursor:
        return Cursor(node, self.source, f"{self.field}.{key}" if self.field else key)

    @property
    def is_table(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_empty(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and str(self.node.tag).endswith(":null")

    @property
    def is_integer(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and str(self.node.tag).endswith(":int")

    def table(self, known: Collection[str] | None = None) -> dict[str, Cursor]:
        """The entries of a mapping; `known` limits the keys, without it the keys are names that the file chooses."""
        if self.is_empty:
            return {}
        if not self.is_table:
            raise self.fail("a mapping (key: value) is needed here")
        entries: dict[str, Cursor] = {}
        for key_node, value_node in self.node.value:
            here = self.at(key_node, str(key_node.value))
            key = here.name() if known is None else here.choice(known, "key")
            if key in entries:
                raise here.fail("this key is there twice")
            entries[key] = self.at(value_node, key)
        return entries

    def items(self) -> list[Cursor]:
        """The elements of a list; a single value counts as a list of one."""
        if self.is_empty:
            return []
        if not self.is_list:
            return [self]
        return [Cursor(node, self.source, f"{self.field}[{index}]") for index, node in enumerate(self.node.value)]

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or self.is_empty:
            raise self.fail("a single value is needed here")
        return str(self.node.value)

    def name(self) -> str:
        if not NAME.fullmatch(text := self.text()):
            raise self.fail(f"{text!r} is no name: {NAME_RULE}")
        return text

    def choice(self, known: Collection[str], what: str = "value") -> str:
        if (text := self.text()) not in known:
            raise self.fail(f"unknown {what} {text!r}; {suggest(text, known)}")
        return text

    def parsed(self, parse: Callable[[str], T], what: str) -> T:
        """What `parse` makes of the text; its ValueError becomes "<text> is not <what>"."""
        text = self.text()
        try:
            return parse(text)
        except ValueError as error:
            detail = f" ({error})" if "host bits" in str(error) else ""
            raise self.fail(f"{text!r} is not {what}{detail}") from None

    def integer(self, low: int, high: int) -> int:
        value = self.parsed(int, f"a whole number from {low} to {high}")
        if not low <= value <= high:
            raise self.fail(f"{value} is not between {low} and {high}")
        return value

    def number(self, low: float, high: float) -> float:
        value = self.parsed(float, f"a number from {low:g} to {high:g}")
        if not low <= value <= high:
            raise self.fail(f"{value:g} is not between {low:g} and {high:g}")
        return value


def read_yaml(text: str, source: str) -> Cursor:
    """The root of a document."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise ConfigError(f"not YAML: {error.problem or error.context}", source=source, line=line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}".splitlines()[0], source=source) from None
    if node is None:
        raise ConfigError("the file is empty", source=source)
    return Cursor(node, source)
