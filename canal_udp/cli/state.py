"""canal status | peers | endpoints: what the daemon at --run-dir says about itself."""

from __future__ import annotations

import argparse
from typing import Any

from canal_udp.api import call
from canal_udp.cli.output import add_common, amount, print_json, print_table, text


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    for name, (summary, handler) in _COMMANDS.items():
        parser = subparsers.add_parser(name, help=summary, description=summary)
        add_common(parser)
        parser.set_defaults(handler=handler)


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
}
