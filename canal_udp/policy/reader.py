"""Files in YAML or JSON to documents: plain values, as Kubernetes reads them, and the line of each; and back.

Place     the door of YAML for policies. Documents that come from an API do not pass here.
Limits    depth 64, 2,000,000 values a document after aliases (an alias can grow a small file without bound).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from canal_udp.errors import ConfigError
from canal_udp.policy.cursor import Document, Path, Problem, Where, dotted

DEPTH_MAX = 64
VALUES_MAX = 2_000_000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_TAG = "tag:yaml.org,2002:"


def read_documents(text: str, source: str) -> Iterator[Document]:
    """Every document of a file that holds something; ConfigError when the text is not YAML at all."""
    try:
        for node in yaml.compose_all(text, Loader=_LOADER):
            if node is None:
                continue
            plain = _Plain(source)
            if (value := plain.value(node, ())) is not None:
                yield Document(value, source, plain.lines, tuple(plain.problems))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise ConfigError(f"not YAML: {error.problem or error.context}", source=source, line=line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}".splitlines()[0], source=source) from None
    except RecursionError:
        raise ConfigError("not YAML that can be read: nested too deeply", source=source) from None


class _Plain:
    """YAML nodes to plain values, as Kubernetes reads them: no sexagesimal numbers, no dates."""

    def __init__(self, source: str) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._source, self._count = source, 0

    def value(self, node: Any, path: Path) -> object:
        line = node.start_mark.line + 1
        self.lines[path] = line
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
                raise ConfigError("a key must be a word", source=self._source, line=key_node.start_mark.line + 1)
            key = str(key_node.value)
            if str(key_node.tag) == _TAG + "merge":
                for one in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    value = self.value(one, path)
                    merged = {**value, **merged} if isinstance(value, dict) else merged
                continue
            if key in found:
                where = Where(self._source, key_node.start_mark.line + 1)
                self.problems.append(Problem("error", where, dotted((*path, key)), "this key is there twice"))
            found[key] = self.value(child, (*path, key))
            self.lines[(*path, key)] = key_node.start_mark.line + 1
        return {**merged, **found}


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
