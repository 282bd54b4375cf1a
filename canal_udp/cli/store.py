"""canal network get|set and canal lease list|put|delete: the cluster's state, straight from the store."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from canal_udp.api import call
from canal_udp.cli.output import add_common, print_json, print_table, text
from canal_udp.config import load
from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.shown import lease_row
from canal_udp.control.store import Store, open_store
from canal_udp.errors import DaemonUnreachable, RequestError, StoreConflict, UsageError
from canal_udp.net import ENCAPS, Network, parse_address4, parse_address6, parse_mac, parse_network

_T = TypeVar("_T")
_COLUMNS = ("subnet", "subnet6", "public_ip", "public_ip6", "encap", "vtep_mac", "expires_at", "node", "own")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    network = subparsers.add_parser("network", help="the network config that all nodes share")
    actions = network.add_subparsers(metavar="ACTION", required=True)
    get = actions.add_parser("get", help="print it")
    add_store(get)
    get.set_defaults(handler=_network_get)
    put = actions.add_parser("set", help="write it; nodes take it when they start")
    put.add_argument("given", metavar="JSON", nargs="?", default="-", help="flannel's JSON; - reads standard input")
    add_store(put)
    put.set_defaults(handler=_network_set)
    lease = subparsers.add_parser("lease", help="who has which subnet")
    actions = lease.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the leases")
    add_store(listing)
    listing.set_defaults(handler=_lease_list)
    _register_put(actions.add_parser("put", help="write the lease of a peer that runs no daemon of ours"))
    delete = actions.add_parser("delete", help="end a lease")
    delete.add_argument("subnet", metavar="SUBNET", nargs="?", default="", help="one of its subnets")
    delete.add_argument("--subnet", dest="subnet_flag", default="", metavar="SUBNET", help="the same as a flag")
    add_store(delete)
    delete.set_defaults(handler=_lease_delete)


def _register_put(put: argparse.ArgumentParser) -> None:
    put.add_argument("--subnet", metavar="CIDR", help="its pods' IPv4 subnet")
    put.add_argument("--subnet6", metavar="CIDR", help="its pods' IPv6 subnet")
    put.add_argument("--public-ip", metavar="IP", help="its underlay IPv4 address")
    put.add_argument("--public-ip6", metavar="IP", help="its underlay IPv6 address")
    put.add_argument("--encap", choices=ENCAPS, required=True, help="what it speaks")
    put.add_argument("--vtep-mac", metavar="MAC", help="MAC of its VXLAN device")
    put.add_argument("--vni", type=int, default=1, metavar="N", help="VXLAN network identifier (%(default)s)")
    put.add_argument("--node", default="", metavar="NAME", help="its name, for people")
    put.add_argument("--expires", type=float, metavar="S", help="the lease ends after so many seconds (never)")
    add_store(put)
    put.set_defaults(handler=_lease_put)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add what says which store."""
    parser.add_argument(
        "--store", metavar="URL", help="the store (that of --config, of the daemon that runs, its default)"
    )
    parser.add_argument("--state-dir", metavar="DIR", help="the daemon's, where its store lies by default")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the daemon's file")
    add_common(parser)


def with_store(arguments: argparse.Namespace, work: Callable[[Store], Awaitable[_T]]) -> _T:
    """Do something with the store that the arguments mean."""
    url = _store_url(arguments)

    async def body() -> _T:
        store = open_store(url)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(body())


def _store_url(arguments: argparse.Namespace) -> str:
    """The store that is named somewhere; else that of the daemon at --run-dir; else the one that it would have."""
    config = load({"store": arguments.store, "state_dir": arguments.state_dir}, os.environ, arguments.config)
    if {"store", "state_dir"} & config.origins.keys():
        return config.store
    try:
        running = str(call(arguments.run_dir, "status", timeout_s=2.0)["store"])
    except (DaemonUnreachable, RequestError):
        return config.store
    if running.startswith("memory:"):
        raise RequestError(f"the daemon at {arguments.run_dir} has its store in its own memory; nobody else can see it")
    return running


# ---- network ---------------------------------------------------------------------------------------------------------


def _network_get(arguments: argparse.Namespace) -> int:
    stored, _ = with_store(arguments, lambda store: store.get_network())
    if stored is None:
        raise RequestError("the store has no network config; canal network set writes one")
    network = NetworkConfig.from_json(stored)
    print(network.to_json() if arguments.json else stored.strip())
    return 0


def _network_set(arguments: argparse.Namespace) -> int:
    given = sys.stdin.read() if arguments.given == "-" else arguments.given
    network = NetworkConfig.from_json(given)
    if network.encap not in {"alloc", "extension"}:  # those are canal-flanneld's
        network.require_encap()
    with_store(arguments, lambda store: store.put_network(given.strip()))
    if arguments.json:
        print(network.to_json())
    return 0


# ---- leases ----------------------------------------------------------------------------------------------------------


def _lease_list(arguments: argparse.Namespace) -> int:
    own = _own_key(arguments)
    snapshot = with_store(arguments, lambda store: store.list_leases())
    rows = [lease_row(lease) | {"own": lease.key == own} for lease in snapshot.leases]
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        expires = row["expires_at"]
        row["expires_at"] = time.strftime("%F %T", time.localtime(expires)) if expires else "never"
    print_table(_COLUMNS, rows, "no leases")
    for bad in snapshot.bad:
        print(f"canal: {text(bad.key)} is no lease: {text(bad.problem)}", file=sys.stderr)
    return 0


def _own_key(arguments: argparse.Namespace) -> str:
    """The key of the lease that the daemon at --run-dir holds; none if no daemon runs there."""
    try:
        rows = call(arguments.run_dir, "lease_list", timeout_s=2.0)
    except (DaemonUnreachable, RequestError):
        return ""
    return next((str(row["key"]) for row in rows if row["own"]), "")


def _lease_put(arguments: argparse.Namespace) -> int:
    lease = _lease_of(arguments)

    async def put(store: Store) -> Lease:
        for known in (await store.list_leases()).leases:
            if known.key == lease.key:
                if known.public_ips != lease.public_ips:
                    raise StoreConflict(
                        f"{known.key} belongs to {', '.join(map(str, known.public_ips))}; delete it first"
                    )
                await store.delete_lease(known, known.revision)
        return await store.create_lease(lease, arguments.expires)

    written = with_store(arguments, put)
    if arguments.json:
        print_json(lease_row(written))
    return 0


def _lease_of(arguments: argparse.Namespace) -> Lease:
    try:
        subnet, subnet6 = (parse_network(one) if one else None for one in (arguments.subnet, arguments.subnet6))
        if (subnet and subnet.version != 4) or (subnet6 and subnet6.version != 6) or not (subnet or subnet6):
            raise UsageError("--subnet takes an IPv4 network, --subnet6 an IPv6 one; give one of them or both")
        lease = Lease(
            subnet,  # type: ignore[arg-type]
            subnet6,  # type: ignore[arg-type]
            parse_address4(arguments.public_ip) if arguments.public_ip else None,
            parse_address6(arguments.public_ip6) if arguments.public_ip6 else None,
            encap=arguments.encap,
            vtep_mac=parse_mac(arguments.vtep_mac) if arguments.vtep_mac else None,
            node=arguments.node,
            vni=arguments.vni,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not lease.public_ips:
        raise UsageError("--public-ip or --public-ip6: where do its packets go?")
    if (lease.encap == "vxlan") != (lease.vtep_mac is not None):
        raise UsageError("--vtep-mac goes with --encap vxlan, and only with it")
    return lease


def _lease_delete(arguments: argparse.Namespace) -> int:
    try:
        subnet: Network = parse_network(arguments.subnet or arguments.subnet_flag)
    except ValueError as error:
        raise UsageError(str(error)) from error

    async def delete(store: Store) -> bool:
        for lease in (await store.list_leases()).leases:
            if subnet in lease.prefixes:
                await store.delete_lease(lease, lease.revision)
                return True
        return False

    found = with_store(arguments, delete)
    if arguments.json:
        print_json({"subnet": str(subnet), "deleted": found})
    elif not found:
        print(f"there is no lease of {subnet}")
    return 0
