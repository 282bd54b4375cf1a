"""canal policy test: policies with their own tests, offline."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from canal_udp.cli.output import print_json, text
from canal_udp.cli.policy_files import FILES_HELP, load_files, problem_fields, tell
from canal_udp.errors import UsageError

if TYPE_CHECKING:
    from canal_udp.policy.policy_tests import Outcome

_DESCRIPTION = """Run the tests that lie beside policies, as documents of the same files:
`tests: [{name: TEXT, allow: [FLOW, ...], deny: [FLOW, ...]}]`, where a FLOW is
{from: namespace/pod, namespace/*, address or a list, to: ..., protocol: TCP, port: number or a list,
sourcePort, icmpType, icmpCode}. The exit status is 1 if a flow does not fare as it must."""


def register(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    test = actions.add_parser("test", help="run the tests that lie beside policies", description=_DESCRIPTION)
    test.add_argument("files", nargs="+", metavar="FILE", help=FILES_HELP)
    test.add_argument("--staged", action="store_true", help="as if the staged policies were enforced")
    test.add_argument("-j", "--json", action="store_true", help="print JSON")
    test.set_defaults(handler=_test)


def _test(arguments: argparse.Namespace) -> int:
    loaded = load_files(arguments.files)
    from canal_udp.policy.policy_tests import read_tests, run_tests

    problems = list(loaded.errors)
    expectations = read_tests(loaded.tests, problems)
    tell(problems)
    if not expectations and not problems:
        raise UsageError("no tests in these files: a document `tests:` holds them, see --help")
    outcomes = list(run_tests(loaded.state, expectations, staged=arguments.staged))
    if arguments.json:
        print_json({"problems": [problem_fields(one) for one in problems], "tests": [_fields(one) for one in outcomes]})
    else:
        _print(outcomes)
    return int(bool(problems) or any(one.failures for one in outcomes))


def _fields(outcome: Outcome) -> dict[str, object]:
    one = outcome.expectation
    return {
        "test": one.test,
        "file": one.where.source,
        "line": one.where.line,
        "expected": "allow" if one.allow else "deny",
        "flows": outcome.flows,
        "failures": list(outcome.failures),
    }


def _print(outcomes: list[Outcome]) -> None:
    """A line for each test, the failed flows under it, and the sum."""
    for name in dict.fromkeys(one.expectation.test for one in outcomes):
        mine = [one for one in outcomes if one.expectation.test == name]
        failed = any(one.failures for one in mine)
        print(f"{'FAILED' if failed else 'ok':<8}{text(name)}")
        for one in mine:
            for failure in one.failures:
                print(f"        {text(str(one.expectation.where))}: {text(failure)}")
    flows, failures = sum(one.flows for one in outcomes), sum(len(one.failures) for one in outcomes)
    print(f"{flows} {'flow' if flows == 1 else 'flows'}, {failures} failed")
