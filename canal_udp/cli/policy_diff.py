"""canal policy diff: which flows two sets of policies decide differently, offline."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal_udp.cli.output import print_json, text
from canal_udp.cli.policy_files import load_files, tell
from canal_udp.errors import UsageError

if TYPE_CHECKING:
    from canal_udp.policy.diff import Change, Difference, Recorded, RecordedChange

_DESCRIPTION = """Say which flows fare differently under the new policies, with an example of each and who decides.
Without --flows every flow that there can be between the pods of both, their nodes and the world outside is compared:
if nothing is printed, nothing changes. The exit status is 1 if something does."""
_NAMES_SHOWN = 8


def register(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    diff = actions.add_parser("diff", help="which flows would fare differently", description=_DESCRIPTION)
    diff.add_argument("old", metavar="OLD", help="a file or folder")
    diff.add_argument("new", metavar="NEW", nargs="?", help="a file or folder")
    diff.add_argument("--staged", action="store_true", help="instead of NEW: OLD with its staged policies enforced")
    diff.add_argument(
        *("--state", "-s"),
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="what is the same in both: pods, namespaces",
    )
    diff.add_argument("--flows", metavar="FILE", help="only these, one JSON object a line; - reads standard input")
    diff.add_argument("-j", "--json", action="store_true", help="print JSON")
    diff.set_defaults(handler=_diff)


def _diff(arguments: argparse.Namespace) -> int:
    if (arguments.new is None) is not arguments.staged:
        raise UsageError("NEW or --staged is needed, not both")
    from canal_udp.policy.diff import difference, recorded_difference, with_staged_enforced

    loaded = [load_files((*arguments.state, name)) for name in (arguments.old, arguments.new) if name is not None]
    errors = dict.fromkeys(error for one in loaded for error in one.errors)
    tell(errors)
    old = loaded[0].state
    new = with_staged_enforced(old) if arguments.staged else loaded[1].state
    if arguments.flows is not None:
        recorded = recorded_difference(old, new, _recorded(arguments.flows))
        _print_recorded(recorded, as_json=arguments.json)
        return int(bool(recorded.changes or errors))
    found = difference(old, new)
    _print(found, as_json=arguments.json)
    return int(bool(found.changes or errors))


def _recorded(name: str) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                flow = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{name}:{number}: not JSON: {error}") from None
            if not isinstance(flow, dict):
                raise UsageError(f"{name}:{number}: a flow is an object")
            yield flow


# ---- printing --------------------------------------------------------------------------------------------------------


def _print(found: Difference, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "changes": [_fields(one) for one in found.changes],
                "only_old": list(found.only_old),
                "only_new": list(found.only_new),
            }
        )
        return
    for one in found.changes:
        family = "" if len(one.families) > 1 else f" (IPv{one.families[0]})"
        print(
            f"{_now(one.allow)}  {_names(one.sources)} -> {_names(one.destinations)}{family}: {'; '.join(one.packets)}"
        )
        print(f"       such as {_flow(one.example)}")
        _print_why(one.before, one.after)
    for names, where in ((found.only_old, "old"), (found.only_new, "new")):
        if names:
            print(f"only in the {where} state, not compared: {_names(names)}")
    print(_count(len(found.changes), "change"))


def _print_recorded(recorded: Recorded, *, as_json: bool) -> None:
    if as_json:
        fields = [_recorded_fields(one) for one in recorded.changes]
        print_json({"changes": fields, "asked": recorded.asked, "not_compared": list(recorded.not_compared)})
        return
    for one in recorded.changes:
        times = f"  ({one.count} flows)" if one.count > 1 else ""
        print(f"{_now(one.allow)}  {_flow(one.flow)}{times}")
        _print_why(one.before, one.after)
    for reason in dict.fromkeys(recorded.not_compared):
        print(f"not compared, {recorded.not_compared.count(reason)} x: {text(reason)}")
    changed = sum(one.count for one in recorded.changes)
    print(f"{changed} of {_count(recorded.asked, 'flow')} would fare differently")


def _fields(one: Change) -> dict[str, object]:
    shown = asdict(one)
    return {"verdict": "allow" if shown.pop("allow") else "deny", **shown}


def _recorded_fields(one: RecordedChange) -> dict[str, object]:
    verdict = "allow" if one.allow else "deny"
    return {"verdict": verdict, "flow": one.flow, "count": one.count, "before": one.before, "after": one.after}


def _print_why(before: str, after: str) -> None:
    print(f"       before: {text(before)}")
    print(f"       after:  {text(after)}")


def _now(allow: bool) -> str:
    return "allow" if allow else "deny "


def _names(names: Iterable[str]) -> str:
    listed = [*names]
    more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
    return text(", ".join(listed[:_NAMES_SHOWN]) + more)


def _flow(flow: Any) -> str:
    port = f"/{flow['dport']}" if flow.get("dport") is not None else ""
    icmp = f"/{flow['icmp_type']}/{flow.get('icmp_code', 0)}" if flow.get("icmp_type") is not None else ""
    return text(f"{flow.get('src')} -> {flow.get('dst')} {flow.get('protocol')}{port}{icmp}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
