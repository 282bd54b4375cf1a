"""canal explain: why a flow may be, or may not; asked of the daemon of this node."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, TypeAlias

from canal_udp.api import call
from canal_udp.cli.flows import said
from canal_udp.cli.output import add_common, amount, print_json, text
from canal_udp.errors import UsageError

Row: TypeAlias = dict[str, Any]

_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "icmp6": 58, "sctp": 132, "udplite": 136}
_NAMES = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_SUMMARY = "say why a flow may be, or may not"
_DESCRIPTION = """Ask the daemon of this node about a flow: the verdict of the policies in force at both ends, every
tier, policy and rule in the order in which they are tried, why those that did not hold missed, what staged policies
would change, the route, and the live flows that are like it. Exit status: 0 answered, whatever the verdict is; 1 there
is no answer."""
_WHAT = "tcp/80, udp/53, icmp, icmp/TYPE/CODE, or a protocol's number"
_FROM_HOST = "it comes in through this node: NAT, kubelet, a bridge"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("explain", help=_SUMMARY, description=_DESCRIPTION)
    parser.add_argument("src", metavar="SRC", help="namespace/pod, or an address")
    parser.add_argument("dst", metavar="DST", help="namespace/pod, or an address")
    parser.add_argument(
        "what", metavar="PROTO/PORT", help="tcp/80, udp/53, icmp, icmp/TYPE/CODE, or a protocol's number"
    )
    parser.add_argument("--sport", type=int, metavar="N", help="source port (an ephemeral one)")
    parser.add_argument(
        "--from-host", action="store_true", help="it comes in through this node: NAT, kubelet, a bridge"
    )
    add_common(parser)
    parser.set_defaults(handler=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    question = {"src": arguments.src, "dst": arguments.dst, "from_host": arguments.from_host, **packet(arguments.what)}
    if arguments.sport is not None:
        question["sport"] = arguments.sport
    answer = call(arguments.run_dir, "explain", **question)
    if arguments.json:
        print_json(answer)
    else:
        for line in lines(answer):
            print(line)
    return 0


def packet(what: str) -> Row:
    """`tcp/80`, `icmp/8/0`, `47` as fields of a question; UsageError if it is none of them."""
    word, *given = what.lower().split("/")
    number = _NUMBERS.get(word, int(word) if word.isdecimal() else -1)
    if not 0 <= number <= 255 or len(given) > 2 or not all(one.isdecimal() for one in given):
        raise UsageError(f"{what}: write protocol/port, like tcp/80; icmp/8 is a type")
    numbers = [int(one) for one in given]
    if number in (1, 58):
        return {"protocol": number, **dict(zip(("icmp_type", "icmp_code"), numbers, strict=False))}
    if len(numbers) > 1:
        raise UsageError(f"{what}: one port, the destination's")
    return {"protocol": number, **({"dport": numbers[0]} if numbers else {})}


# ---- for people ------------------------------------------------------------------------------------------------------


def lines(answer: Row) -> Iterator[str]:
    """The whole answer."""
    yield f"{_end(answer, 'src')} -> {_end(answer, 'dst')} {_what(answer)}: {_VERDICTS[answer['verdict']]}"
    for way in ("egress", "ingress"):
        yield ""
        yield from _station(way, answer[way])
    if "pending" in answer:
        yield ""
        yield from _pending(answer["pending"], answer["verdict"])
    yield ""
    yield from _way(answer)


_VERDICTS = {"allow": "allowed", "deny": "denied"}


def _end(answer: Row, end: str) -> str:
    name = answer[f"{end}_name"]
    return f"{text(name)} ({answer[end]})" if name else str(answer[end])


def _what(answer: Row) -> str:
    name = _NAMES.get(answer["protocol"], str(answer["protocol"]))
    if "icmp_type" in answer:
        return f"{name}/{answer['icmp_type']}/{answer['icmp_code']}"
    return f"{name}/{answer['dport']}" if "dport" in answer else name


def _station(way: str, end: Row) -> Iterator[str]:
    who = f" of {text(end['pod'])}" if end["pod"] else ""
    place = "here" if end["here"] else f"at node {text(end['node'])}" if end["node"] else ""
    yield f"{way}{who}{', decided ' + place if place else ''}: {_VERDICTS[end['verdict']]}{_because(end)}"
    if end["in_force"] is False:
        known = end.get("known")
        yield "  not in force yet is what is known now" + (
            f": {_VERDICTS[known['verdict']]}{_because(known)}" if known else ""
        )
    for tier in end["tiers"]:
        yield f"  tier {text(tier['tier'])}" if tier["tier"] else "  profiles"
        for policy in tier["policies"]:
            yield f"    {text(policy['policy'])}{_place(policy)}"
            if policy["note"]:
                yield f"      {text(policy['note'])}"
            yield from (_rule(rule, policy) for rule in policy["rules"])
            if not policy["rules"] and not policy["note"]:
                yield "      it has no rules"
        yield f"    {text(tier['end'])}"


def _rule(rule: Row, policy: Row) -> str:
    outcome = "holds" if rule["held"] else "misses: " + text("; ".join(rule["misses"]))
    place = "" if rule["where"] == policy["where"] else _place(rule)  # an object of the store has no lines
    return f"      rule {rule['rule']} {rule['action']:<5} {outcome}{place}"


def _place(row: Row) -> str:
    return f"  ({text(row['where'])})" if row.get("where") else ""


def _because(end: Row) -> str:
    by, reason = said(end) if end["policy"] else None, end.get("reason")
    told = f" by {text(by)}{_place(end)}" if by else ""
    told += f"; {text(reason)}" if reason and by else f": {text(reason)}" if reason else ""
    return told + (", and the sender is told" if end.get("answer") == "reject" else "")


def _pending(pending: Row, now: str) -> Iterator[str]:
    change = "the same" if pending["verdict"] == now else "a change"
    yield f"with the staged policies: {_VERDICTS[pending['verdict']]}, {change}"
    for way in ("egress", "ingress"):
        yield f"  {way}: {_VERDICTS[pending[way]['verdict']]}{_because(pending[way])}"


def _way(answer: Row) -> Iterator[str]:
    route = answer["route"]
    yield f"route: from {text(route['comes_from'])} to {text(route['to'])}, MTU {text(route['mtu'])}"
    if not answer["live"]:
        yield "conntrack: no such flow now"
    for flow in answer["live"]:
        sums = "/".join(amount(count) for count in flow["packets"])
        idle = f"idle {flow['idle_ms'] / 1000:.1f} s"
        yield f"conntrack: {flow['state']}, from port {flow['sport']}, {sums} packets, {idle}"
