"""canal daemon: run this node."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from canal_udp.config import OPTIONS, load

_DESCRIPTION = (
    "Give this host a subnet, connect its pods and forward their packets. Every flag is also a variable CANAL_FLAG and "
    "a key of the file; the flag wins."
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("daemon", help="run this node", description=_DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML (/etc/canal/canal.toml if it exists)")
    for option in OPTIONS:
        if option.shape == "switch":
            parser.add_argument(option.flag, dest=option.name, action="store_true", default=None, help=option.help)
        elif option.shape == "list":
            parser.add_argument(
                option.flag, dest=option.name, action="append", metavar=option.metavar, help=option.help + "; repeat"
            )
        else:
            parser.add_argument(option.flag, dest=option.name, metavar=option.metavar, help=option.help)
    parser.set_defaults(handler=_daemon)


def _daemon(arguments: argparse.Namespace) -> int:
    flags = {option.name: getattr(arguments, option.name) for option in OPTIONS}
    config = load(flags, os.environ, arguments.config)
    from canal_udp.daemon import run

    return run(config)
