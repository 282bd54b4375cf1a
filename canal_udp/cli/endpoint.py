"""canal attach | detach | label: connect a network namespace to the pod network by hand."""

from __future__ import annotations

import argparse
import os

from canal_udp.api import call
from canal_udp.cli.output import add_common, print_json, text


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    attach = subparsers.add_parser("attach", help="connect a network namespace", description=_ATTACH)
    attach.add_argument("netns", metavar="NETNS", help="name of `ip netns`, path, or process id")
    attach.add_argument(
        "--name", default="", metavar="NS/POD", help="name of the endpoint (default/ and the last part of NETNS)"
    )
    attach.add_argument(
        "--ip", default=[], action="append", metavar="IP", help="address to take instead of a free one; repeat for IPv6"
    )
    attach.add_argument("--label", default=[], action="append", metavar="K=V", help="label for policies; repeat")
    attach.add_argument("--ifname", default="eth0", metavar="NAME", help="interface inside (%(default)s)")
    add_common(attach)
    attach.set_defaults(handler=_attach)
    detach = subparsers.add_parser("detach", help="disconnect a network namespace", description=_DETACH)
    detach.add_argument("netns", metavar="NETNS", nargs="?", default="", help="as given to attach")
    detach.add_argument("--name", default="", metavar="NS/POD", help="name of the endpoint instead")
    add_common(detach)
    detach.set_defaults(handler=_detach)
    label = subparsers.add_parser("label", help="change the labels of an attached pod", description=_LABEL)
    label.add_argument("name", metavar="NS/POD", help="name of the endpoint")
    label.add_argument("labels", metavar="K=V | K-", nargs="+", help="set a label, or take it away")
    add_common(label)
    label.set_defaults(handler=_label)


_ATTACH = "Give a network namespace an interface and an address of this node's subnet. Doing it again changes nothing."
_DETACH = "Take the interface away and free the address. It is no error if there is none."

_LABEL = "Change labels of a pod that is attached to this node; policies of all nodes follow within a second."


def _attach(arguments: argparse.Namespace) -> int:
    found = call(
        arguments.run_dir,
        "attach",
        netns=_absolute(arguments.netns),
        name=arguments.name,
        ips=[ip for ip in arguments.ip if ip != "auto"],
        labels=arguments.label,
        ifname=arguments.ifname,
    )
    if arguments.json:
        print_json({key: found[key] for key in ("name", "netns", "ifname", "ips", "mtu")})
    else:
        print(f"{text(found['name'])}: {text(found['ifname'])} in {text(found['netns'])} has {text(found['ips'])}")
    return 0


def _detach(arguments: argparse.Namespace) -> int:
    gone = call(arguments.run_dir, "detach", netns=_absolute(arguments.netns), name=arguments.name)
    if arguments.json:
        print_json(gone)
    else:
        print(f"{text(gone['name'])}: detached" if gone["detached"] else "was not attached")
    return 0


def _label(arguments: argparse.Namespace) -> int:
    found = call(arguments.run_dir, "label", name=arguments.name, labels=arguments.labels)
    if arguments.json:
        print_json({key: found[key] for key in ("name", "labels")})
    else:
        print(f"{text(found['name'])}: {text(found['labels'])}")
    return 0


def _absolute(netns: str) -> str:
    """The daemon has another working directory."""
    return os.path.abspath(netns) if netns.startswith(("./", "../")) else netns
