"""Entry point of `canal` and `python -m canal_udp`: finds the command's module, turns errors into exit statuses."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from canal_udp import __version__
from canal_udp.errors import CanalError

# command -> module; only the one that is called is imported: `canal status` must answer at once
COMMANDS = {
    "daemon": "daemon",
    "attach": "endpoint",
    "detach": "endpoint",
    "label": "endpoint",
    "status": "state",
    "peers": "state",
    "endpoints": "state",
    "flows": "flows",
    "drops": "flows",
    "explain": "explain",
    "cni": "cni",
    "lease": "store",
    "network": "store",
    "policy": "policy",
    "migrate": "migrate",
    "lab": "lab",
    "bench": "bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            arguments = _parser(words).parse_args(words)
            status = arguments.handler(arguments)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is no error; --help leaves by SystemExit
    except CanalError as error:
        print(f"canal: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return int(status)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="canal", description="A pod network in user space.")
    parser.add_argument("--version", action="version", version=f"canal {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((word for word in words if not word.startswith("-")), None)
    modules = {COMMANDS[called]} if called in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in modules:
        importlib.import_module(f"canal_udp.cli.{module}").register(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
