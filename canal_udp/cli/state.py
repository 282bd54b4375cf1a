"""canal status | peers | endpoints | flows | drops: what the daemon at --run-dir says about itself."""

from __future__ import annotations

import argparse
from typing import Any

from canal_udp.api import call
from canal_udp.cli.output import add_common, amount, print_json, print_table, text

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    for name, (summary, handler) in _COMMANDS.items():
        parser = subparsers.add_parser(name, help=summary, description=summary)
        add_common(parser)
        parser.set_defaults(handler=handler)
        if name == "flows":
            parser.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many (%(default)s)")


def _status(arguments: argparse.Namespace) -> int:
    status = call(arguments.run_dir, "status")
    if arguments.json:
        print_json(status)
        return 0
    for label, value in _status_lines(status):
        print(f"{label:<12}{value}")
    return 0


def _status_lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    counters, drops, offload, balance = status["counters"], status["drops"], status["offload"], status["conservation"]
    lines = [("node", text(status["node"])), ("state", text(status["state"]))]
    lines += [("", text(reason)) for reason in status["reasons"]]
    lines += [
        ("subnet", text([subnet for subnet in (status["subnet"], status["subnet6"]) if subnet])),
        ("underlay", text([address for address in (status["public_ip"], status["public_ip6"]) if address])),
        ("encap", f"{text(status['encap'])}, MTU {text(status['mtu'])}"),
        ("host device", text(status["host_ifname"])),
        ("mode", f"{text(offload['mode'])} ({text(offload['reason'])})"),
        ("generation", text(status["generation"])),
        ("peers", f"{status['peers']}"),
        ("endpoints", f"{status['endpoints']}"),
        ("objects", _objects(status["objects"])),
    ]
    for way in ("rx", "tx"):
        parts = (f"{kind} {amount(counters.get(f'{way}_{kind}', 0))}" for kind in ("pod", "host", "underlay"))
        lines.append((f"{way} packets", ", ".join(parts)))
    lines.append(("dropped", f"{sum(drops.values())}" + ("" if balance["balanced"] else " (packets are missing)")))
    if status["errors"]:
        lines.append(("errors", ", ".join(f"{text(call)} {count}" for call, count in status["errors"].items())))
    return lines


def _objects(objects: dict[str, Any]) -> str:
    """What is known of the cluster's policies and pods."""
    if not objects["known"]:
        return "nothing known yet"
    counts = ", ".join(f"{text(kind)} {count}" for kind, count in objects["counts"].items())
    return (counts or "none") + ("" if objects["in_sync"] else " (the last that was known)")


def _peers(arguments: argparse.Namespace) -> int:
    columns = ("subnet", "subnet6", "public_ip", "encap", "vtep_mac", "mtu", "path", "node", "state")
    return _table(arguments, "peers", columns, "no peers")


def _endpoints(arguments: argparse.Namespace) -> int:
    return _table(arguments, "endpoints", ("name", "netns", "ifname", "ips", "mtu", "labels", "state"), "no endpoints")


def _flows(arguments: argparse.Namespace) -> int:
    flows = call(arguments.run_dir, "flows", limit=arguments.limit)
    if arguments.json:
        print_json(flows)
        return 0
    rows = [
        {
            "proto": _PROTOCOLS.get(flow["proto"], flow["proto"]),
            "source": _end(flow["src"], flow["sport"]),
            "destination": _end(flow["dst"], flow["dport"]),
            "from": flow["came_from"],
            "to": flow["goes_to"],
            "state": flow["state"],
            "verdict": flow["verdict"],
            "packets": "/".join(amount(count) for count in flow["packets"]),
            "idle": f"{flow['idle_ms'] / 1000:.1f} s",
        }
        for flow in flows
    ]
    columns = ("proto", "source", "destination", "from", "to", "state", "verdict", "packets", "idle")
    print_table(columns, rows, "no flows")
    return 0


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _drops(arguments: argparse.Namespace) -> int:
    drops = call(arguments.run_dir, "drops")
    if arguments.json:
        print_json(drops)
        return 0
    rows = [{"reason": reason, "packets": count} for reason, count in drops.items() if count]
    print_table(("reason", "packets"), sorted(rows, key=lambda row: -row["packets"]), "nothing was dropped")
    return 0


def _table(arguments: argparse.Namespace, op: str, columns: tuple[str, ...], empty: str) -> int:
    rows = call(arguments.run_dir, op)
    if arguments.json:
        print_json(rows)
    else:
        print_table(columns, rows, empty)
    return 0


_COMMANDS = {
    "status": ("say how the daemon is", _status),
    "peers": ("list the other nodes", _peers),
    "endpoints": ("list the pods attached here", _endpoints),
    "flows": ("list the flows that conntrack knows", _flows),
    "drops": ("count the dropped packets by reason", _drops),
}
