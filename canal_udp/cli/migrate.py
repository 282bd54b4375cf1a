"""canal migrate flannel: what taking this node over from flanneld would do."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from canal_udp.cli.output import add_common, print_json
from canal_udp.errors import UsageError
from canal_udp.flannel.flags import Options

_DESCRIPTION = (
    "Look at what flanneld runs and left on this host, and say what canal-flanneld would do about it. Nothing is "
    "changed: the takeover is done by canal-flanneld when it starts."
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("migrate", help="what taking this node over from flanneld would do")
    actions = parser.add_subparsers(metavar="FROM", required=True)
    flannel = actions.add_parser("flannel", help="from flanneld", description=_DESCRIPTION)
    flannel.add_argument("--dry-run", action="store_true", help="say what would be done (there is nothing else)")
    flannel.add_argument("--subnet-file", type=Path, default=Path(Options().text("subnet-file")), metavar="FILE")
    add_common(flannel)
    flannel.set_defaults(handler=_flannel)


def _flannel(arguments: argparse.Namespace) -> int:
    if not arguments.dry_run:
        raise UsageError("say --dry-run: the takeover itself is done by canal-flanneld when it starts")
    from canal_udp.flannel.survey import steps, survey

    found = survey(arguments.subnet_file)
    if arguments.json:
        shown = asdict(found) | {"steps": steps(found), "subnet_file": str(found.subnet_file)}
        shown["processes"] = [process.pid for process in found.processes]  # their words may hold a password
        print_json(shown)
        return 0
    for number, line in enumerate(steps(found), 1):
        print(f"{number}. {line}")
    return 0
