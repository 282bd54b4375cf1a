"""Label selectors in Calico's language: parse, evaluate, canonical text, id, and what a selector demands of a label.

Grammar   selector = [ or ]                       nothing but blanks = all()
          or       = and { "||" and }
          and      = term { "&&" term }
          term     = { "!" } primary              "!" binds tighter than "&&", looser than "=="
          primary  = "has(" label ")" | "all()" | "global()" | "(" or ")" | label operator
          operator = ("==" | "!=" | "contains" | "starts with" | "ends with") string | ["not"] "in" set
          set      = "{" [ string { "," string } [","] ] "}"
          string   = '"' any but " '"' | "'" any but ' "'"          no escapes
          label    = [A-Za-z0-9_./-]{1,512}       words are operators only after a label: `in in {"y"}` is fine
          blanks are space and tab; "has(", "all(" and "global(" are one word each.
Limits    128 nested parentheses.
Source    libcalico-go's selector package; its canonical texts and ids are bit for bit the same.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

Labels: TypeAlias = Mapping[str, str]
Predicate: TypeAlias = Callable[[Labels], bool]

DEPTH_MAX = 128
LABEL_MAX = 512


class SelectorError(ValueError):
    """The text is no selector; the message says why."""


# ---- the tree --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class All:
    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class Global:
    """Matches everything by itself; as a whole namespaceSelector it means "what is in no namespace"."""

    def __str__(self) -> str:
        return "global()"


@dataclass(frozen=True, slots=True)
class Has:
    label: str

    def __str__(self) -> str:
        return f"has({self.label})"


@dataclass(frozen=True, slots=True)
class Compare:
    """`operator` is one of _COMPARISONS."""

    label: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.label} {self.operator} {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    label: str
    values: frozenset[str]
    negated: bool = False

    def __str__(self) -> str:
        operator = "not in" if self.negated else "in"
        return f"{self.label} {operator} {{{', '.join(map(_quoted, sorted(self.values)))}}}"


@dataclass(frozen=True, slots=True)
class Not:
    operand: Expression

    def __str__(self) -> str:
        return f"!{self.operand}"


@dataclass(frozen=True, slots=True)
class And:
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"({' && '.join(map(str, self.operands))})"


@dataclass(frozen=True, slots=True)
class Or:
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"({' || '.join(map(str, self.operands))})"


Expression: TypeAlias = All | Global | Has | Compare | In | Not | And | Or


def _quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


# ---- meaning ---------------------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[[str, str], Predicate]] = {
    "==": lambda label, value: lambda labels: labels.get(label) == value,
    "!=": lambda label, value: lambda labels: labels.get(label) != value,
    "contains": lambda label, value: lambda labels: label in labels and value in labels[label],
    "starts with": lambda label, value: lambda labels: label in labels and labels[label].startswith(value),
    "ends with": lambda label, value: lambda labels: label in labels and labels[label].endswith(value),
}


def predicate(expression: Expression) -> Predicate:
    """The function that evaluates an expression on a label map; an absent label satisfies only `!=` and `not in`."""
    match expression:
        case All() | Global():
            return lambda labels: True
        case Has(label):
            return lambda labels: label in labels
        case Compare(label, operator, value):
            return _COMPARISONS[operator](label, value)
        case In(label, values, negated):
            return lambda labels: (labels.get(label) in values) != negated
        case Not(operand):
            inner = predicate(operand)
            return lambda labels: not inner(labels)
        case And(operands):
            every = [predicate(one) for one in operands]
            return lambda labels: all(one(labels) for one in every)
        case Or(operands):
            some = [predicate(one) for one in operands]
            return lambda labels: any(one(labels) for one in some)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a selector needs of one label in order to match at all.

    `values` None: any value will do. An empty set: no value can.
    """

    present: bool = False
    absent: bool = False
    values: frozenset[str] | None = None

    def __and__(self, other: Demand) -> Demand:
        values = self.values
        if values is None:
            values = other.values
        elif other.values is not None:
            values &= other.values
        return Demand(self.present or other.present, self.absent or other.absent, values)

    def __or__(self, other: Demand) -> Demand:
        present = self.present and other.present
        known = present and self.values is not None and other.values is not None
        return Demand(
            present, self.absent and other.absent, (self.values or _NONE) | (other.values or _NONE) if known else None
        )

    @property
    def impossible(self) -> bool:
        return (self.present and self.absent) or (self.values is not None and not self.values)


_NONE: frozenset[str] = frozenset()


def demands(expression: Expression) -> dict[str, Demand]:
    """A necessary condition per label; a label that is not there may be anything."""
    match expression:
        case Has(label):
            return {label: Demand(present=True)}
        case Compare(label, "==", value):
            return {label: Demand(present=True, values=frozenset((value,)))}
        case Compare(label, "contains" | "starts with" | "ends with", _):
            return {label: Demand(present=True)}
        case In(label, values, False):
            return {label: Demand(present=True, values=values)}
        case Not(Has(label)):
            return {label: Demand(absent=True)}
        case And(operands):
            found: dict[str, Demand] = {}
            for operand in operands:
                for label, demand in demands(operand).items():
                    found[label] = found[label] & demand if label in found else demand
            return found
        case Or(operands):
            first, *rest = (demands(operand) for operand in operands)
            for other in rest:
                first = {label: first[label] | other[label] for label in first.keys() & other.keys()}
            return {label: demand for label, demand in first.items() if demand.present or demand.absent}
        case _:
            return {}


# ---- a selector ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Selector:
    """An expression with its canonical text, id and predicate; equal when the canonical texts are."""

    root: Expression
    canonical: str = field(init=False)
    matches: Predicate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "canonical", str(self.root))
        object.__setattr__(self, "matches", predicate(self.root))

    @property
    def id(self) -> str:
        return unique_id("s", self.canonical)

    def __str__(self) -> str:
        return self.canonical

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)


@lru_cache(maxsize=65536)
def unique_id(kind: str, text: str) -> str:
    """The name of a set of addresses: the same text has the same name on every node."""
    digest = hashlib.sha224(f"{kind}:{text}".encode()).digest()
    return f"{kind}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def parse(text: str) -> Selector:
    """Read a selector; SelectorError says what is wrong with it."""
    return Selector(_Parser(text).whole())


def all_of(operands: Iterable[Expression]) -> Expression:
    """The conjunction, without parentheses where there is only one operand; of nothing: all()."""
    kept = tuple(operands)
    return kept[0] if len(kept) == 1 else And(kept) if kept else All()


def rewrite(expression: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """The expression with `change` applied to each of its leaves."""
    match expression:
        case Not(operand):
            return Not(rewrite(operand, change))
        case And(operands):
            return And(tuple(rewrite(one, change) for one in operands))
        case Or(operands):
            return Or(tuple(rewrite(one, change) for one in operands))
        case _:
            return change(expression)


def prefixed(expression: Expression, prefix: str) -> Expression:
    """The same condition on the labels whose names begin with `prefix`."""

    def change(leaf: Expression) -> Expression:
        match leaf:
            case Has(label):
                return Has(prefix + label)
            case Compare(label, operator, value):
                return Compare(prefix + label, operator, value)
            case In(label, values, negated):
                return In(prefix + label, values, negated)
            case _:
                return leaf

    return rewrite(expression, change)


def leaves(expression: Expression) -> Iterator[Expression]:
    """The conditions on single labels, all() and global()."""
    match expression:
        case Not(operand):
            yield from leaves(operand)
        case And(operands) | Or(operands):
            for operand in operands:
                yield from leaves(operand)
        case _:
            yield expression


# ---- text to tree ----------------------------------------------------------------------------------------------------

_BLANKS = re.compile(r"[ \t]*")
_SIGN = re.compile(r"==|!=|&&|\|\||[!(){},]")
_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_LABEL = re.compile(r"[A-Za-z0-9_./-]+")
_WORDS = tuple(
    (re.compile(name.replace(" ", r"[ \t]*") + r"\b", re.ASCII), name)
    for name in ("contains", "starts with", "ends with", "not in", "in")
)
_CALL = re.compile(r"(has|all|global)\([ \t]*")
_CLOSE = re.compile(r"[ \t]*\)")
_END = ("end", "")
_SHOWN = {"end": "the end of the text", "label": "a label", "string": "a string"}

Token: TypeAlias = tuple[str, str]  # kind: "sign", "string", "label", "word", "has", "all", "global", "end"


def _tokens(text: str) -> Iterator[Token]:
    at, last = 0, ""
    while True:
        at = _end(_BLANKS, text, at)
        if at == len(text):
            yield _END
            return
        kind, value, at = _token(text, at, last)
        yield kind, value
        last = value if kind == "label" else ""


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _token(text: str, at: int, last_label: str) -> tuple[str, str, int]:
    if sign := _SIGN.match(text, at):
        return "sign", sign[0], sign.end()
    if text[at] in "\"'":
        if string := _STRING.match(text, at):
            return "string", string[0][1:-1], string.end()
        raise SelectorError("unterminated string")
    if text[at] in "=&|":
        raise SelectorError(f"expected {'==' if text[at] == '=' else text[at] * 2}")
    if last_label:
        for pattern, name in _WORDS:
            if word := pattern.match(text, at):
                return "word", name, word.end()
        raise SelectorError(f'expected operator after label "{last_label}"')
    if call := _CALL.match(text, at):
        return _call(text, call[1], call.end())
    label = _label(text, at)
    return "label", label, at + len(label)


def _call(text: str, name: str, at: int) -> tuple[str, str, int]:
    label = _label(text, at) if name == "has" else ""
    if close := _CLOSE.match(text, at + len(label)):
        return name, label, close.end()
    raise SelectorError(f"no closing ')' after {name}(")


def _label(text: str, at: int) -> str:
    match = _LABEL.match(text, at)
    if not match:
        raise SelectorError("expected identifier")
    if len(match[0]) > LABEL_MAX:
        raise SelectorError(f"label too long: {match[0][:32]}...")
    return match[0]


class _Parser:
    """Recursive descent; one method per line of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))  # a bad word anywhere is reported before a bad sentence
        self._at = 0

    def whole(self) -> Expression:
        if self._tokens == [_END]:
            return All()
        expression = self._or(0)
        if self._peek != _END:
            raise SelectorError(f"unexpected content at end of selector: {_shown(self._peek)}")
        return expression

    @property
    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        if token != _END:
            self._at += 1
        return token

    def _accept(self, sign: str) -> bool:
        found = self._peek == ("sign", sign)
        self._at += found
        return found

    def _or(self, depth: int) -> Expression:
        operands = [self._and(depth)]
        while self._accept("||"):
            operands.append(self._and(depth))
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self, depth: int) -> Expression:
        operands = [self._term(depth)]
        while self._accept("&&"):
            operands.append(self._term(depth))
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _term(self, depth: int) -> Expression:
        negated = False
        while self._accept("!"):
            negated = not negated
        primary = self._primary(depth)
        return Not(primary) if negated else primary

    def _primary(self, depth: int) -> Expression:
        token = self._next()
        match token:
            case ("has", label):
                return Has(label)
            case ("all", _):
                return All()
            case ("global", _):
                return Global()
            case ("label", label):
                return self._operation(label)
            case ("sign", "("):
                if depth == DEPTH_MAX:
                    raise SelectorError(f"more than {DEPTH_MAX} nested parentheses")
                inner = self._or(depth + 1)
                if not self._accept(")"):
                    raise SelectorError("expected )")
                return inner
            case _:
                raise SelectorError(f"unexpected token: {_shown(token)}")

    def _operation(self, label: str) -> Expression:
        if self._peek == _END:
            raise SelectorError("unexpected end of string looking for op")
        match self._next():
            case ("sign", "==" | "!=" as operator) | ("word", "contains" | "starts with" | "ends with" as operator):
                kind, value = self._next()
                if kind != "string":
                    raise SelectorError("expected string")
                return Compare(label, operator, value)
            case ("word", operator):
                return In(label, self._set(), operator == "not in")
            case token:
                raise SelectorError(f"expected == or != not: {_shown(token)}")

    def _set(self) -> frozenset[str]:
        if not self._accept("{"):
            raise SelectorError("expected set literal")
        values: set[str] = set()
        while self._peek[0] == "string":
            values.add(self._next()[1])
            if not self._accept(","):
                break
        if not self._accept("}"):
            raise SelectorError("expected }")
        return frozenset(values)


def _shown(token: Token) -> str:
    kind, value = token
    return f"{value!r}" if kind in ("sign", "string", "label", "word") else _SHOWN.get(kind, f"{kind}()")
