"""canal flows | drops: the flow log, who talks to whom, by which rule of which policy, and who may not."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from canal_udp.api import call
from canal_udp.cli.output import add_common, amount, print_json, print_table, text

Row: TypeAlias = dict[str, Any]

FOLLOW_S = 1.0
FOLLOW_MAX = 10_000  # rows an answer
_COLUMNS = ("proto", "source", "destination", "state", "verdict", "egress", "ingress", "packets", "bytes", "idle")
_DENIED = ("proto", "source", "destination", "end", "policy", "reason", "packets", "bytes", "last_seen")
_WHICH = ("proto", "src", "sport", "dst", "dport", "icmp_type", "icmp_code", "verdict")

_FLOWS = """List the flows that conntrack knows: names and labels of both ends, what decided at each, packets and bytes
of both directions, first and last seen. --follow prints a line for each flow that had packets since the line before,
with its sums; with -j one JSON object a line."""
_DROPS = """Count the dropped packets by reason, and list the flows that policy denied: who, to whom, by which rule.
With -j one object: packets by reason, and `flows`. --follow prints a line for each flow that was denied since the line
before; with -j one JSON object a line."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    flows = subparsers.add_parser("flows", help="list the flows that conntrack knows", description=_FLOWS)
    flows.add_argument("--logged", action="store_true", help="instead those that a rule with action Log has seen")
    drops = subparsers.add_parser("drops", help="what was dropped, and whom policy denied", description=_DROPS)
    for parser, handler in ((flows, _flows), (drops, _drops)):
        add_common(parser)
        parser.add_argument("--follow", action="store_true", help="go on until interrupted")
        parser.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many (%(default)s)")
        parser.set_defaults(handler=handler)


def _flows(arguments: argparse.Namespace) -> int:
    kind = "logged" if arguments.logged else "flows"
    if arguments.follow:
        return _follow(arguments, kind, _flow_line)
    answer = call(arguments.run_dir, "flow_log", kind=kind, limit=arguments.limit)
    if arguments.json:
        print_json(answer["rows"])
        return 0
    print_table(_COLUMNS, [_flow_cells(row) for row in answer["rows"]], "no flows")
    _tell_more(answer)
    return 0


def _drops(arguments: argparse.Namespace) -> int:
    if arguments.follow:
        return _follow(arguments, "denied", _denied_line)
    drops = call(arguments.run_dir, "drops")
    answer = call(arguments.run_dir, "flow_log", kind="denied", limit=arguments.limit)
    if arguments.json:
        print_json(drops | {"flows": answer["rows"]})
        return 0
    rows = [{"reason": reason, "packets": count} for reason, count in drops.items() if count]
    print_table(("reason", "packets"), sorted(rows, key=lambda row: -row["packets"]), "nothing was dropped")
    if answer["rows"]:
        print()
        print_table(_DENIED, [_denied_cells(row) for row in answer["rows"]], "")
    _tell_more(answer)
    return 0


def _tell_more(answer: Row) -> None:
    if answer["more"]:
        print(f"canal: there are more than these {len(answer['rows'])}; --limit", file=sys.stderr)


# ---- following -------------------------------------------------------------------------------------------------------


def _follow(arguments: argparse.Namespace, kind: str, line: Callable[[Row], str]) -> int:
    for row in followed(arguments.run_dir, kind):
        print(json.dumps(row) if arguments.json else line(row), flush=True)
    return 0


def followed(run_dir: Path, kind: str) -> Iterator[Row]:
    """Rows as they come, for ever. What the daemon sees now is where it begins: the past is in the list."""
    since_ms = call(run_dir, "flow_log", kind=kind, since_ms=(1 << 63) - 1, limit=1)["now_ms"]
    told: dict[object, Any] = {}
    while True:
        answer = call(run_dir, "flow_log", kind=kind, since_ms=since_ms, limit=FOLLOW_MAX)
        rows = {tuple(row.get(name) for name in _WHICH): row for row in answer["rows"]}
        yield from (row for key, row in rows.items() if told.get(key) != row["packets"])
        if answer["more"]:
            print(f"canal: more than {FOLLOW_MAX} flows moved; the others are not shown", file=sys.stderr)
        told = {key: row["packets"] for key, row in rows.items()}
        since_ms = answer["now_ms"]
        time.sleep(FOLLOW_S)


# ---- for people ------------------------------------------------------------------------------------------------------


def _flow_cells(row: Row) -> Row:
    return _ends(row) | {
        "state": row.get("state"),
        "verdict": row["verdict"],
        "egress": said(row["egress"]),
        "ingress": said(row["ingress"]),
        "packets": "/".join(amount(count) for count in row["packets"]),
        "bytes": "/".join(amount(count) for count in row["bytes"]),
        "idle": f"{row['idle_ms'] / 1000:.1f} s" if "idle_ms" in row else None,
    }


def _denied_cells(row: Row) -> Row:
    rule = row[row["denied_by"]] or {}
    return _ends(row) | {
        "end": row["denied_by"],
        "policy": said(rule),
        "reason": rule.get("reason") or rule.get("where"),
        "packets": amount(row["packets"][0]),
        "bytes": amount(row["bytes"][0]),
        "last_seen": row["last_seen"],
    }


def _flow_line(row: Row) -> str:
    cells = _flow_cells(row)
    sums = f"{cells['packets']} packets, {cells['bytes']} bytes"
    rules = f"egress {text(cells['egress'])}, ingress {text(cells['ingress'])}"
    return f"{row['last_seen']}  {row['verdict']}  {_arrow(cells)}  {rules}  {sums}"


def _denied_line(row: Row) -> str:
    cells = _denied_cells(row)
    rule = f"{cells['end']} {text(cells['policy'])} ({text(cells['reason'])})"
    return f"{row['last_seen']}  {row['verdict']}  {_arrow(cells)}  {rule}  {cells['packets']} packets"


def _arrow(cells: Row) -> str:
    return f"{text(cells['proto'])} {text(cells['source'])} -> {text(cells['destination'])}"


def _ends(row: Row) -> Row:
    return {"proto": row["protocol"].lower(), "source": _end(row, "s", "src"), "destination": _end(row, "d", "dst")}


def _end(row: Row, letter: str, end: str) -> str:
    """`shop/web:80`, `10.244.1.2:80`, `[fd00::2]:80`."""
    name, address, port = row.get(f"{end}_name"), row[end], row[f"{letter}port"]
    if name:
        return f"{name}:{port}" if port else name
    if not port:
        return str(address)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def said(rule: Row | None) -> str | None:
    """`NetworkPolicy:shop/web rule 2`; without a policy, why."""
    if not rule:
        return None
    if not rule["policy"]:
        return rule.get("reason")
    return rule["policy"] if rule["rule"] < 0 else f"{rule['policy']} rule {rule['rule']}"
