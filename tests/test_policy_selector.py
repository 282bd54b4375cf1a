"""Selectors: what is one, what it means, its canonical text and id; hypothesis for round trips."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_udp.__main__ import main
from canal_udp.policy.selector import (
    All,
    And,
    Compare,
    Expression,
    Global,
    Has,
    In,
    Not,
    Or,
    Selector,
    SelectorError,
    demands,
    parse,
    prefixed,
    unique_id,
)

CANONICAL = [
    pytest.param("", "all()", id="nothing selects everything"),
    pytest.param(" \t ", "all()", id="blanks are nothing"),
    pytest.param("((all( )))", "all()", id="one operand loses its parentheses"),
    pytest.param('a=="b"&&b=="b"', '(a == "b" && b == "b")', id="a group has parentheses at the top too"),
    pytest.param("a=='b'||b=='b'&&c=='d'", '(a == "b" || (b == "b" && c == "d"))', id="and binds tighter than or"),
    pytest.param("(has(a)&&has(b))&&has(c)", "((has(a) && has(b)) && has(c))", id="written groups stay"),
    pytest.param("!!a == 'b'", 'a == "b"', id="two nots in a row are none"),
    pytest.param("!!! has( a )", "!has(a)", id="three nots are one"),
    pytest.param("!(!(a == 'b'))", '!!a == "b"', id="nots across parentheses stay"),
    pytest.param("!(all())", "!all()", id="not of a group of one"),
    pytest.param("a in {'c','b' , \"b\",}", 'a in {"b", "c"}', id="sets are sorted, once each; comma at the end"),
    pytest.param("a notin{}", "a not in {}", id="empty set; notin is two words"),
    pytest.param("a\tnot \tin{'x'}", 'a not in {"x"}', id="blanks inside of two words"),
    pytest.param("a startswith'x'&&a endswith'y'", '(a starts with "x" && a ends with "y")', id="one word or two"),
    pytest.param('a contains"\'"', 'a contains "\'"', id="a single quote in a double-quoted string"),
    pytest.param("a == 'say \"hi\"'", "a == 'say \"hi\"'", id="a double quote needs single ones"),
    pytest.param('in in {"y"}', 'in in {"y"}', id="a label may be called in"),
    pytest.param("has == '1' || all == 'x' || not != ''", '(has == "1" || all == "x" || not != "")', id="or has"),
    pytest.param("-./x == ''", '-./x == ""', id="a label may begin with signs"),
    pytest.param("a == '\u00e9\n'", 'a == "\u00e9\n"', id="strings hold anything but their quote"),
    pytest.param("global()", "global()", id="global"),
]

REJECTED = [
    ("b == b", "expected string"),
    ("b contains b", "expected string"),
    ("'b1' == b", "unexpected token: 'b1'"),
    ("b", "unexpected end of string looking for op"),
    ("a b", 'expected operator after label "a"'),
    ('a inf {"b"}', 'expected operator after label "a"'),
    ('a containsx "b"', 'expected operator after label "a"'),
    ("!", "unexpected token: the end of the text"),
    ('foo == "bar" &', "expected &&"),
    ("foo |", "expected ||"),
    ("foo != ||", "expected string"),
    ('foo in ""', "expected set literal"),
    ('"FOO', "unterminated string"),
    ("(", "unexpected token: the end of the text"),
    ('(a == "foo"', "expected )"),
    (")", "unexpected token: ')'"),
    ("()", "unexpected token: ')'"),
    ("%", "expected identifier"),
    ("has(a)\n", "expected identifier"),
    ("has(\u00e9)", "expected identifier"),
    ("has(foo) &&", "unexpected token: the end of the text"),
    ('a = "b"', "expected =="),
    ('a === "b"', "expected =="),
    ('a ! = "b"', "expected =="),
    ('a>"b"', 'expected operator after label "a"'),
    ("a in {,}", "expected }"),
    ('a in {"b" "c"}', "expected }"),
    ("has()", "expected identifier"),
    ("has(a", "no closing ')' after has("),
    ("all(x)", "no closing ')' after all("),
    ("global(", "no closing ')' after global("),
    ("has (a)", "expected == or != not: '('"),
    ("all ()", "expected == or != not: '('"),
    ("all() all()", "unexpected content at end of selector: all()"),
    ("x" * 513 + " == 'a'", "label too long: " + "x" * 32 + "..."),
    ("(" * 129 + "all()" + ")" * 129, "more than 128 nested parentheses"),
]

MEANING = [
    # selector, labels, does it match
    ("has(k)", {}, False),
    ("has(k)", {"k": ""}, True),
    ("k == ''", {}, False),
    ("k == ''", {"k": ""}, True),
    ("k != 'v'", {}, True),
    ("k != 'v'", {"k": "v"}, False),
    ("k in {'v', 'w'}", {"k": "w"}, True),
    ("k in {'v', 'w'}", {}, False),
    ("k not in {'v'}", {}, True),
    ("k not in {'v'}", {"k": "v"}, False),
    ("k in {}", {"k": "v"}, False),
    ("k not in {}", {"k": "v"}, True),
    ("k contains ''", {"k": ""}, True),
    ("k contains ''", {}, False),
    ("k starts with 'ab'", {"k": "abc"}, True),
    ("k starts with 'ab'", {}, False),
    ("k ends with ''", {"k": "x"}, True),
    ("k ends with 'bc'", {"k": "abc"}, True),
    ("all()", {}, True),
    ("global()", {"a": "b"}, True),
    ("!global()", {}, False),
    ('!a == "b"', {}, True),
    ("a in {}", {}, False),
    ("a not in {}", {}, True),
    ('!(a == "b" && c == "d")', {"a": "b"}, True),
    ('a == "1" || b == "2" && c == "3"', {"a": "1"}, True),
    ('(a == "1" || b == "2") && c == "3"', {"a": "1"}, False),
]


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_canonical(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


@pytest.mark.parametrize(("text", "problem"), REJECTED, ids=[text[:20] for text, _ in REJECTED])
def test_rejected(text: str, problem: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(("text", "labels", "expected"), MEANING)
def test_meaning(text: str, labels: dict[str, str], expected: bool) -> None:
    assert parse(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        ("!(has(b) || !has(a))", "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q"),
        ('!(a == "b" && !c != "d")', "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w"),
    ],
)
def test_ids_that_others_computed(text: str, name: str) -> None:
    assert parse(text).id == name


def test_longest_label_and_deepest_nesting() -> None:
    assert parse("x" * 512 + " == ''").matches({"x" * 512: ""})
    deep = parse("!(" * 128 + "has(a)" + ")" * 128)
    assert deep.matches({"a": ""}) and not deep.matches({}) and deep.id.startswith("s:")


def test_prefix_moves_every_label_and_nothing_else() -> None:
    text = "(has(a) && b == 'x' && !c in {'y'}) || all() || d starts with 'z'"
    moved = '((has(p.a) && p.b == "x" && !p.c in {"y"}) || all() || p.d starts with "z")'
    assert str(prefixed(parse(text).root, "p.")) == moved


# ---- hypothesis ------------------------------------------------------------------------------------------------------

LABELS = st.sampled_from(["a", "b", "in", "has", "x/y.z-w_1", "not"])
VALUES = st.sampled_from(["", "x", "xy", "it's", 'say "hi"', "\u00e9"])
MAPS = st.dictionaries(LABELS, VALUES)
LEAVES: st.SearchStrategy[Expression] = st.one_of(
    st.just(All()),
    st.just(Global()),
    st.builds(Has, LABELS),
    st.builds(Compare, LABELS, st.sampled_from(["==", "!=", "contains", "starts with", "ends with"]), VALUES),
    st.builds(In, LABELS, st.frozensets(VALUES, max_size=3), st.booleans()),
)


def _groups(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        several.map(And), several.map(Or), inner.map(lambda one: one if isinstance(one, Not) else Not(one))
    )


EXPRESSIONS = st.recursive(LEAVES, _groups, max_leaves=8)


def naive(expression: Expression, labels: dict[str, str]) -> bool:
    """The table of the language, written down once more."""
    match expression:
        case Has(label):
            return label in labels
        case Compare(label, operator, value):
            if label not in labels:
                return operator == "!="
            have = labels[label]
            return {
                "==": have == value,
                "!=": have != value,
                "contains": have.find(value) >= 0,
                "starts with": have[: len(value)] == value,
                "ends with": value == "" or have[-len(value) :] == value,
            }[operator]
        case In(label, values, negated):
            return negated if label not in labels else (labels[label] in values) is not negated
        case Not(operand):
            return not naive(operand, labels)
        case And(operands):
            return min(naive(one, labels) for one in operands)
        case Or(operands):
            return max(naive(one, labels) for one in operands)
        case _:
            return True


@given(EXPRESSIONS)
def test_canonical_text_is_read_back_as_the_same_tree(expression: Expression) -> None:
    assert parse(str(expression)).root == expression


@given(EXPRESSIONS, MAPS)
def test_predicate_is_the_table(expression: Expression, labels: dict[str, str]) -> None:
    assert Selector(expression).matches(labels) is naive(expression, labels)


@given(EXPRESSIONS, MAPS)
def test_a_match_fulfils_every_demand(expression: Expression, labels: dict[str, str]) -> None:
    if not naive(expression, labels):
        return
    for label, demand in demands(expression).items():
        assert not demand.impossible
        assert not (demand.present and label not in labels)
        assert not (demand.absent and label in labels)
        assert demand.values is None or labels[label] in demand.values


@given(st.text(alphabet="ab!=&|(){}, \t\n'\"hasinot.", max_size=30))
def test_any_text_is_a_selector_or_an_error(text: str) -> None:
    try:
        selector = parse(text)
    except SelectorError:
        return
    meaning = parse(selector.canonical)
    for labels in ({}, {"a": "b"}, {"a": "", "b": "a"}):
        assert meaning.matches(labels) == selector.matches(labels)


# ---- the command -----------------------------------------------------------------------------------------------------


def _ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str) -> tuple[int, list[object]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    status = main(["policy", "selector"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_command_answers_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [{"selector": "a=='b'", "labels": [{"a": "b"}, {}]}, {"selector": "has(b"}, {"selector": ""}]
    status, answers = _ask(monkeypatch, capsys, "\n".join(map(json.dumps, questions)) + "\n\n")
    assert status == 0
    assert answers == [
        {"canonical": 'a == "b"', "id": unique_id("s", 'a == "b"'), "match": [True, False]},
        {"error": "no closing ')' after has("},
        {"canonical": "all()", "id": "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug", "match": []},
    ]


def test_command_goes_on_after_nonsense(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = '{"selector"\n[]\n{"selector": 7}\n{"selector": "", "labels": [1]}\n{"selector": "a == \'\\ud800\'"}\n'
    status, answers = _ask(monkeypatch, capsys, lines)
    assert status == 1
    assert [set(answer) for answer in answers] == [{"error"}] * 4 + [{"canonical", "id", "match"}]  # type: ignore[call-overload]
