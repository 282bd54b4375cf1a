"""Policies with their own tests: documents of flows that must be allowed or denied.

Document  tests:
          - name: the shop is open                            # for people
            allow:
            - {from: shop/web, to: shop/db, port: 5432}       # TCP if nothing else is said
            - {from: [8.8.8.8, 2001:db8::8], to: shop/*, port: [80, 443]}
            deny:
            - {from: shop/*, to: bank/vault, protocol: ICMP, icmpType: 8}

          `from` and `to`: namespace/pod, namespace/*, an address, or a list of them. What is listed is tried in every
          combination; pairs without an address family in common, and a pod with itself, only when nothing else is left.
Place     offline (`canal policy test`), and before policies are applied: `failed_tests` has no other effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from canal_udp.errors import RequestError
from canal_udp.policy.cursor import Bad, Cursor, Document, Problem, Table, Where, dotted
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.model import State
from canal_udp.policy.questions import PORT_MAX, Questions, with_addresses
from canal_udp.policy.why import Why

_NUMBERS = {"sourcePort": ("sport", PORT_MAX), "icmpType": ("icmp_type", 255), "icmpCode": ("icmp_code", 255)}
_FIELDS = ("from", "to", "protocol", "port", *_NUMBERS)


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line of a test: flows that must all fare alike."""

    test: str
    allow: bool
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: tuple[int, ...]  # none: the protocol has no ports, or they do not matter
    rest: Mapping[str, Any]  # the other words of a question
    where: Where


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an expectation fared. `failures`: each flow that did not fare as it must, with who decided."""

    expectation: Expectation
    flows: int
    failures: tuple[str, ...]


def failed_tests(state: State, documents: Iterable[Document], *, staged: bool = False) -> tuple[Problem, ...]:
    """What is wrong with the tests, and which of them fail in this state; nothing if all is well."""
    problems: list[Problem] = []
    expectations = read_tests(documents, problems)
    for outcome in run_tests(state, expectations, staged=staged):
        one = outcome.expectation
        problems += (Problem("error", one.where, "", f"test {one.test!r}: {text}") for text in outcome.failures)
    return tuple(problems)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_tests(documents: Iterable[Document], problems: list[Problem]) -> tuple[Expectation, ...]:
    """Every line that can be read; the others are noted."""
    found: list[Expectation] = []
    for document in documents:
        for several in document.cursor(problems).table(("tests",)).each("tests", _test):
            found += several
    return tuple(found)


def _test(cursor: Cursor) -> tuple[Expectation, ...]:
    table = cursor.table(("name", "allow", "deny"))
    if "allow" not in table and "deny" not in table:
        raise cursor.fail("allow or deny is needed")
    name = table.read("name", Cursor.text, "") or dotted(cursor.path)
    allowed = table.each("allow", lambda one: _expectation(one, name, allow=True))
    return (*allowed, *table.each("deny", lambda one: _expectation(one, name, allow=False)))


def _expectation(cursor: Cursor, name: str, *, allow: bool) -> Expectation:
    since = cursor.errors
    table = cursor.table(_FIELDS, required=("from", "to"))
    ports = table.read("port", _ports, ())
    rest: dict[str, Any] = {"protocol": table.read("protocol", _protocol, "TCP")}
    for field, (key, most) in _NUMBERS.items():
        if field in table:
            rest[key] = table.at(field).attempt(partial(Cursor.integer, low=0, high=most), 0)
    found = Expectation(name, allow, _words(table, "from"), _words(table, "to"), ports, rest, cursor.where)
    if error := cursor.first_error(since):
        raise Bad(error)
    return found


def _ports(cursor: Cursor) -> tuple[int, ...]:
    if isinstance(cursor.value, list):
        return cursor.each(lambda one: one.integer(0, PORT_MAX))
    return (cursor.integer(0, PORT_MAX),)


def _protocol(cursor: Cursor) -> str | int:
    return cursor.integer(0, 255) if isinstance(cursor.value, int) else cursor.text()


def _words(table: Table, field: str) -> tuple[str, ...]:
    def read(cursor: Cursor) -> tuple[str, ...]:
        return cursor.each(Cursor.text) if isinstance(cursor.value, list) else (cursor.text(),)

    return table.read(field, read, ())


# ---- running ---------------------------------------------------------------------------------------------------------


def run_tests(state: State, expectations: Iterable[Expectation], *, staged: bool = False) -> Iterator[Outcome]:
    """Every expectation against one state."""
    evaluator = Evaluator(with_addresses(state), staged=staged)
    questions, why = Questions(evaluator), Why(evaluator.world)
    names = evaluator.places.names
    for one in expectations:
        count, failures = 0, []
        for question in _questions(one, names):
            count += 1
            failure = _failure(one, question, questions, why)
            failures += [failure] if failure else []
        yield Outcome(one, count, tuple(failures) if count else (f"{_ends(one)}: there is no such pod",))


def _questions(one: Expectation, names: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    sources, destinations = ([*_meant(words, names)] for words in (one.sources, one.destinations))
    pairs = list(product(sources, destinations))
    others = [pair for pair in pairs if pair[0] != pair[1] and _same_family(*pair)]
    for source, destination in others or pairs:
        for port in one.ports or (None,):
            yield {"src": source, "dst": destination, **one.rest, **({} if port is None else {"dport": port})}


def _meant(words: Iterable[str], names: Mapping[str, object]) -> Iterator[str]:
    for word in words:
        if word.endswith("/*"):
            yield from sorted(name for name in names if name.startswith(word[:-1]))
        else:
            yield word


def _same_family(source: str, destination: str) -> bool:
    """Two addresses that are written out; a name has what it has."""
    return "/" in source or "/" in destination or (":" in source) == (":" in destination)


def _failure(one: Expectation, question: dict[str, Any], questions: Questions, why: Why) -> str:
    try:
        verdict = questions.verdict(question)
    except RequestError as error:
        return f"{_flow(question)}: {error}"
    if verdict.allow is one.allow:
        return ""
    is_told = "is denied and must be allowed" if one.allow else "is allowed and must be denied"
    return f"{_flow(question)} {is_told}: {why.both(verdict)}"


def _flow(question: Mapping[str, Any]) -> str:
    port = f"/{question['dport']}" if "dport" in question else ""
    return f"{question['src']} -> {question['dst']} {question['protocol']}{port}"


def _ends(one: Expectation) -> str:
    return f"{', '.join(one.sources)} -> {', '.join(one.destinations)}"
