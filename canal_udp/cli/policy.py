"""canal policy: check|eval|selector, the language of policies, offline; apply|delete|list|get are in objects.py."""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from canal_udp.cli import policy_diff, policy_tests
from canal_udp.cli.objects import register_actions
from canal_udp.cli.output import print_json, print_table, text
from canal_udp.cli.policy_files import FILES_HELP, load_files, problem_fields, tell
from canal_udp.errors import RequestError, UsageError

if TYPE_CHECKING:
    from canal_udp.policy.questions import Questions

_EVAL = """Say what the policies of some files say about flows. A flow is one JSON object a line:
{"src": "namespace/pod" or address, "dst": ..., "protocol": "TCP", "UDP", "SCTP", "ICMP" or a number, "sport"?,
"dport"?, "icmp_type"?, "icmp_code"?}. The answer repeats it with "verdict", "egress" and "ingress"."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    policy = subparsers.add_parser("policy", help="network policy: check it, ask it")
    actions = policy.add_subparsers(metavar="ACTION", required=True)
    summary = "find every error in files of policies, and what looks like one"
    check = actions.add_parser("check", help=summary, description=summary)
    check.add_argument("files", nargs="+", metavar="FILE", help=FILES_HELP)
    check.add_argument("--strict", action="store_true", help="warnings fail too")
    check.add_argument("-j", "--json", action="store_true", help="print JSON")
    check.set_defaults(handler=_check)
    summary = "verdicts for flows, from files"
    ask = actions.add_parser("eval", help=summary, description=_EVAL)
    ask.add_argument(
        "--state", nargs="+", action="extend", required=True, metavar="FILE", help="policies, pods, namespaces"
    )
    ask.add_argument("--flows", metavar="FILE", help="JSON lines; - reads standard input")
    ask.add_argument("--matrix", action="store_true", help="every pod to every pod")
    ask.add_argument("--port", action="append", default=[], metavar="80/TCP", help="of the matrix; repeat")
    ask.add_argument("--staged", action="store_true", help="as if the staged policies were enforced")
    ask.add_argument(
        "--pending", action="store_true", help="beside each verdict the one that staged policies would give"
    )
    ask.add_argument("-j", "--json", action="store_true", help="print JSON")
    ask.set_defaults(handler=_eval)
    summary = "evaluate selectors: JSON lines in, JSON lines out"
    selector = actions.add_parser("selector", help=summary, description=_SELECTOR)
    selector.set_defaults(handler=_selector)
    policy_tests.register(actions)
    policy_diff.register(actions)
    register_actions(actions)


# ---- check -----------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    loaded = load_files(arguments.files)
    from canal_udp.policy.validate import warnings

    problems = sorted(
        (*loaded.problems, *warnings(loaded.state)), key=lambda one: (one.where.source, one.where.line, one.severity)
    )
    errors = sum(one.severity == "error" for one in problems)
    if arguments.json:
        print_json([problem_fields(one) for one in problems])
    else:
        for problem in problems:
            print(text(str(problem)))
        count = len(loaded.state.policies)
        print(f"{count} {'policy' if count == 1 else 'policies'}, {errors} errors, {len(problems) - errors} warnings")
    return int(bool(errors or (arguments.strict and problems)))


# ---- eval ------------------------------------------------------------------------------------------------------------


def _eval(arguments: argparse.Namespace) -> int:
    gc.disable()  # a large state is many objects that stay, and each collection would look at all of them
    loaded = load_files(arguments.state)
    tell(loaded.errors)
    from canal_udp.policy.evaluate import Evaluator
    from canal_udp.policy.questions import Questions, with_addresses

    state = with_addresses(loaded.state)
    evaluator = Evaluator(state, staged=arguments.staged)
    failed = bool(loaded.errors)
    if arguments.flows is not None:
        try:
            with open(0 if arguments.flows == "-" else arguments.flows, "rb", closefd=arguments.flows != "-") as lines:
                pending = Questions(Evaluator(state, staged=True)) if arguments.pending else None
                as_json = arguments.json or not sys.stdout.isatty()
                failed |= _answers(lines, Questions(evaluator), pending, as_json)
        except OSError as error:
            raise UsageError(f"{arguments.flows}: {error.strerror}") from None
    if arguments.matrix or arguments.flows is None:
        from canal_udp.policy.questions import matrix, probes

        ports = [_probe(one) for one in arguments.port] or probes(state)
        tables = dict(matrix(evaluator, ports))
        if arguments.json:
            print_json(tables)
        else:
            for name, table in tables.items():
                _print_matrix(name, table)
    return int(failed)


def _answers(lines: Iterable[bytes], questions: Questions, pending: Questions | None, as_json: bool) -> bool:
    """Print an answer for every line; True if one was not understood."""
    failed, write = False, sys.stdout.write
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            answer = questions.answer(line, pending)
        except RequestError as error:
            failed = True
            answer = json.dumps({"error": str(error), "line": number}).encode()
        write((answer.decode() if as_json else _sentence(json.loads(answer))) + "\n")
    return failed


def _sentence(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"line {answer['line']}: {text(answer['error'])}"
    ends = f"{text(answer['src'])} -> {text(answer['dst'])} {text(answer['protocol'])}/{text(answer.get('dport'))}"
    why = "; ".join(f"{name}: {_because(answer[name])}" for name in ("egress", "ingress"))
    then = ""
    if "pending" in answer and answer["pending"]["verdict"] != answer["verdict"]:
        then = f"  [staged: {answer['pending']['verdict']}]"
    return f"{answer['verdict']:<6}{ends}  ({why}){then}"


def _because(decision: dict[str, Any]) -> str:
    rule = "" if decision["rule"] in (None, -1) else f" rule {decision['rule']}"
    reason = f", {decision['reason']}" if "reason" in decision else ""
    return f"{decision['verdict']} {text(decision['policy'])}{rule}{reason}".replace(" -,", ",")


def _probe(given: str) -> tuple[int, int]:
    from canal_udp.policy.model import PROTOCOLS

    match = re.fullmatch(r"([0-9]{1,5})/([A-Za-z0-9]+)", given)
    numbers = {name.lower(): number for name, number in PROTOCOLS.items()}
    if not match or match[2].lower() not in numbers or int(match[1]) > 65535:
        raise UsageError(f"--port {given}: write port/protocol, like 80/TCP")
    return int(match[1]), numbers[match[2].lower()]


def _print_matrix(port: str, table: dict[str, str]) -> None:
    """Rows are sources, columns destinations; `.` passes, E and I say who denies."""
    names = sorted({name for pair in table for name in pair.split(">")})
    rows: list[dict[str, Any]] = []
    for source in names:
        row: dict[str, Any] = {port: source}
        for destination in names:
            row[destination] = _MARKS.get(table.get(f"{source}>{destination}", ""), " ")
        rows.append(row)
    print_table([port, *names], rows, "no pods")
    print()


_MARKS = {"AA": ".", "DA": "E", "AD": "I", "DD": "EI"}


# ---- selectors -------------------------------------------------------------------------------------------------------

_SELECTOR = """Read lines {"selector": TEXT, "labels": [MAP, ...]} from standard input; answer each with
{"canonical": TEXT, "id": TEXT, "match": [BOOL, ...]} or {"error": TEXT}."""


def _selector(arguments: argparse.Namespace) -> int:
    status = 0
    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        try:
            selector, labels = _question(line)
        except ValueError as error:
            answer: dict[str, Any] = {"error": f"not understood: {error}"}
            status = 1
        else:
            answer = _answer(selector, labels)
        print(json.dumps(answer), flush=True)  # whoever asks one by one waits for the answer
    return status


def _question(line: bytes) -> tuple[str, list[dict[str, str]]]:
    question = json.loads(line.decode(errors="replace"))
    if not isinstance(question, dict) or not isinstance(selector := question.get("selector"), str):
        raise ValueError('a line is {"selector": TEXT, "labels": [MAP, ...]}')
    labels = question.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(one, dict) for one in labels):
        raise ValueError("labels are a list of maps")
    return _plain(selector), [{_plain(key): _plain(str(value)) for key, value in one.items()} for one in labels]


def _plain(text: str) -> str:
    """JSON can spell halves of characters; they become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _answer(text: str, labels: list[dict[str, str]]) -> dict[str, Any]:
    from canal_udp.policy.selector import SelectorError, parse

    try:
        selector = parse(text)
    except SelectorError as error:
        return {"error": str(error)}
    return {
        "canonical": selector.canonical,
        "id": selector.id,
        "match": [selector.matches(one) for one in labels],
    }
