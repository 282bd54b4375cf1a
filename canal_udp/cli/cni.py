"""canal cni: the plug-in for container runtimes on this host."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from canal_udp.api import call
from canal_udp.cli.output import add_common, print_json, text
from canal_udp.cni.conflist import CHAINABLE, NETWORK, conflist
from canal_udp.cni.install import (
    BINARY_DIR,
    CONFIG_DIR,
    cached_attachments,
    install_binary,
    install_config,
    uninstall,
)
from canal_udp.errors import CanalError, DaemonUnreachable

_WAIT_S = 60.0
_LOOK_S = 0.2

_INSTALL = (
    "Put canal-cni and a configuration that uses it where container runtimes look: the executable at once, the "
    "configuration when the daemon forwards packets, since a runtime starts pods as soon as it is there."
)
_UNINSTALL = "Take both away again, the configuration first. Pods that run are not touched."
_GC = (
    "Disconnect pods whose namespace is gone, and do DELs that waited for the daemon. With --cache-dir also disconnect "
    "every pod that libcni's cache does not know, except those attached by hand."
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = subparsers.add_parser("cni", help="the plug-in for container runtimes", description=__doc__)
    commands = parser.add_subparsers(dest="cni_command", metavar="COMMAND", required=True)
    install = commands.add_parser("install", help="put the plug-in where runtimes look", description=_INSTALL)
    _add_dirs(install)
    install.add_argument("--name", default=NETWORK, metavar="NAME", help="name of the network (%(default)s)")
    install.add_argument(
        "--chain", default=[], action="append", choices=CHAINABLE, help="plug-in to call after canal-cni; repeat"
    )
    install.add_argument(
        "--binary-only", action="store_true", help="no configuration: `canal daemon --cni-conf-dir` writes it"
    )
    install.add_argument(
        "--wait-s", type=float, default=_WAIT_S, metavar="S", help="wait so long for the daemon (%(default)s)"
    )
    add_common(install, json_output=False)
    install.set_defaults(handler=_install)
    remove = commands.add_parser("uninstall", help="take it away", description=_UNINSTALL)
    _add_dirs(remove)
    remove.set_defaults(handler=_uninstall)
    collect = commands.add_parser("gc", help="disconnect pods that are gone", description=_GC)
    collect.add_argument("--cache-dir", type=Path, metavar="DIR", help="libcni's, as /var/lib/cni")
    add_common(collect)
    collect.set_defaults(handler=_gc)


def _add_dirs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conf-dir", type=Path, default=CONFIG_DIR, metavar="DIR", help="configurations (%(default)s)")
    parser.add_argument("--bin-dir", type=Path, default=BINARY_DIR, metavar="DIR", help="plug-ins (%(default)s)")


def _install(arguments: argparse.Namespace) -> int:
    config = conflist(arguments.name, arguments.chain)
    missing = [kind for kind in arguments.chain if not (arguments.bin_dir / kind).exists()]
    if missing:
        raise CanalError(f"{arguments.bin_dir} has no {', '.join(missing)}; on Debian: containernetworking-plugins")
    print(text(str(install_binary(arguments.bin_dir))))
    if not arguments.binary_only:
        _wait_until_ready(arguments.run_dir, time.monotonic() + arguments.wait_s)
        print(text(str(install_config(arguments.conf_dir, config))))
    return 0


def _wait_until_ready(run_dir: Path, deadline: float) -> None:
    while True:
        try:
            status = call(run_dir, "status")
            if status["state"] != "starting":
                return
            problem = "the daemon does not forward packets yet: " + "; ".join(map(str, status["reasons"]))
        except DaemonUnreachable as error:
            problem = str(error)
        if time.monotonic() >= deadline:
            raise CanalError(f"{problem}; no configuration was written")
        time.sleep(_LOOK_S)


def _uninstall(arguments: argparse.Namespace) -> int:
    for path in uninstall(arguments.conf_dir, arguments.bin_dir):
        print(f"{text(str(path))}: removed")
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    valid = None if arguments.cache_dir is None else cached_attachments(arguments.cache_dir)
    gone = call(arguments.run_dir, "cni_gc", valid=valid)
    if arguments.json:
        print_json(gone)
        return 0
    for name in gone:
        print(f"{text(name)}: detached")
    return 0
