"""Files in YAML or JSON to documents: plain values, as Kubernetes reads them, and the line of each; and back.

Place     the door of YAML for policies. Documents that come from an API do not pass here.
Limits    depth 64, 2,000,000 values a document after aliases (an alias can grow a small file without bound).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from canal_udp.errors import ConfigError
from canal_udp.policy.cursor import Document, Path, Problem, Where, dotted

DEPTH_MAX = 64
VALUES_MAX = 2_000_000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_JSON = re.compile(r"[ \t\r\n]*[{\[]")
_HALVES = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|.)")
_SHORT = len(r"\n")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_TAG = "tag:yaml.org,2002:"


def read_documents(text: str, source: str) -> Iterator[Document]:
    """Every document of a file that holds something; ConfigError when the text is not YAML at all."""
    for part, lines_before in json_documents(text) or [(text, 0)]:
        yield from _read(part, source, lines_before)


def json_documents(text: str) -> list[tuple[str, int]]:
    """JSON in one or many documents, as YAML that is read alike, and the lines before each; [] if it is not JSON.

    YAML knows most of JSON, but no documents one after the other, tabs or characters in halves.
    """
    found: list[tuple[str, int]] = []
    at, decoder = 0, json.JSONDecoder()
    try:
        while start := _JSON.match(text, at):
            first = start.end() - 1
            _, end = decoder.raw_decode(text, first)
            found.append((_HALVES.sub(_whole, text[first:end]).replace("\t", " "), text.count("\n", 0, first)))
            at = end
    except (ValueError, RecursionError):
        return []
    return found if not text[at:].strip() else []


def _whole(match: re.Match[str]) -> str:
    """An escape of JSON as YAML has it: two halves of a character become one of 32 bits."""
    if len(escape := match[0]) == _SHORT:
        return escape
    return f"\\U{ord(json.loads(chr(34) + escape + chr(34))):08x}"


def _read(text: str, source: str, lines_before: int) -> Iterator[Document]:
    try:
        for node in yaml.compose_all(text, Loader=_LOADER):
            if node is None:
                continue
            if (document := document_of(node, source, lines_before)).value is not None:
                yield document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 + lines_before if mark else None
        raise ConfigError(f"not YAML: {error.problem or error.context}", source=source, line=line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}".splitlines()[0], source=source) from None
    except RecursionError:
        raise ConfigError("not YAML that can be read: nested too deeply", source=source) from None


def document_of(node: Any, source: str, lines_before: int = 0) -> Document:
    """A part of a YAML file as a document of its own."""
    plain = _Plain(source, lines_before)
    value = plain.value(node, ())
    return Document(value, source, plain.lines, tuple(plain.problems))


class _Plain:
    """YAML nodes to plain values, as Kubernetes reads them: no sexagesimal numbers, no dates."""

    def __init__(self, source: str, lines_before: int) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._source, self._count, self._first_line = source, 0, lines_before + 1

    def value(self, node: Any, path: Path) -> object:
        line = self.lines[path] = node.start_mark.line + self._first_line
        self._count += 1
        if len(path) > DEPTH_MAX or self._count > VALUES_MAX:
            raise ConfigError("nested too deeply or too large", source=self._source, line=line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        return _scalar(str(node.tag).removeprefix(_TAG), str(node.value))

    def _mapping(self, node: Any, path: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be a word", source=self._source, line=self._line(key_node))
            key = str(key_node.value)
            if str(key_node.tag) == _TAG + "merge":
                for one in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    value = self.value(one, path)
                    merged = {**value, **merged} if isinstance(value, dict) else merged
                continue
            if key in found:
                where = Where(self._source, self._line(key_node))
                self.problems.append(Problem("error", where, dotted((*path, key)), "this key is there twice"))
            found[key] = self.value(child, (*path, key))
            self.lines[(*path, key)] = self._line(key_node)
        return {**merged, **found}

    def _line(self, node: Any) -> int:
        return int(node.start_mark.line) + self._first_line


def _scalar(tag: str, text: str) -> object:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in ("true", "yes", "on")
    if tag == "int" and _INTEGER.fullmatch(text):
        return int(text)
    if tag == "float":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def write_document(value: object) -> str:
    """A document as YAML, its keys in their order."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))
