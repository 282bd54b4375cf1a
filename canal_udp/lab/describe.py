"""What there is in a lab, as values for JSON and as tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from canal_udp.errors import CanalError
from canal_udp.lab import faults, plan
from canal_udp.lab.checks import Account, Result
from canal_udp.lab.impair import Impairment
from canal_udp.lab.model import Lab
from canal_udp.lab.show import Screen
from canal_udp.lab.state import LabState

ROLES = {"canal": "daemon", "one-by-one": "forwarder"}


def describe(lab_state: LabState) -> dict[str, Any]:
    """A lab as `canal lab ps -j` prints it."""
    described: dict[str, Any] = {"name": lab_state.name, "path": str(lab_state.path)}
    try:
        lab = lab_state.lab()
    except CanalError as error:
        return {**described, "problem": str(error), "namespaces": lab_state.namespaces()}
    return {
        **described,
        "networks": _networks(lab, lab_state),
        "nodes": _nodes(lab, lab_state),
        "pods": _pods(lab, lab_state),
    }


def _networks(lab: Lab, lab_state: LabState) -> list[dict[str, Any]]:
    in_force = lab_state.faults()
    return [
        {
            "name": network.name,
            "subnets": [str(subnet) for subnet in network.subnets],
            "mtu": network.mtu_bytes,
            "profile": network.profile,
            "joint": network.joint,
            "faults": in_force.get(network.name, Impairment()).describe(),
            "relay": faults.relay_counts(lab_state, network.name),
        }
        for network in lab.networks.values()
    ]


def _nodes(lab: Lab, lab_state: LabState) -> list[dict[str, Any]]:
    processes = lab_state.processes()
    nodes = []
    for node in lab.nodes.values():
        process = processes.get((ROLES.get(node.kind, ""), node.name))
        ips = [str(address) for address in plan.addresses(lab, node.name, node.network)]
        nodes.append(
            {
                "name": node.name,
                "kind": node.kind,
                "encap": node.encap,
                "network": node.network,
                "netns": plan.netns(lab, node.name),
                "ips": ips,
                "pid": process.pid if process else None,
                "state": process.state if process else "kernel" if node.kind == "kernel-vxlan" else "gone",
                "run_dir": str(lab_state.run_dir(node.name)),
                "log": str(lab_state.log(ROLES.get(node.kind, "daemon"), node.name)),
            }
        )
    return nodes


def _pods(lab: Lab, lab_state: LabState) -> list[dict[str, Any]]:
    addresses = lab_state.pods()
    pods = []
    for pod in lab.pods.values():
        address = addresses.get(pod.name)
        pods.append(
            {
                "name": pod.name,
                "node": pod.node,
                "netns": plan.netns(lab, pod.name),
                "labels": list(pod.labels),
                "ips": list(address.ips) if address else [],
                "mtu": address.mtu_bytes if address else None,
            }
        )
    return pods


def print_lab(screen: Screen, lab: dict[str, Any]) -> None:
    screen.title(f"lab {lab['name']}")
    if "problem" in lab:
        screen.line(f"  {lab['problem']}")
        return
    rows = []
    for node in lab["nodes"]:
        pid = f" pid {node['pid']}" if node["pid"] and node["state"] != "gone" else ""
        rows.append((node["name"], node["kind"], node["netns"], " ".join(node["ips"]), node["state"] + pid))
        rows += [
            (f"  {pod['name']}", "pod", pod["netns"], " ".join(pod["ips"]) or "-", " ".join(pod["labels"]))
            for pod in lab["pods"]
            if pod["node"] == node["name"]
        ]
    screen.table(("NAME", "KIND", "NAMESPACE", "ADDRESSES", "STATE"), rows)
    for network in lab["networks"]:
        subnets = " ".join(network["subnets"])
        screen.line(
            f"network {network['name']}: {subnets}, MTU {network['mtu']}, {network['profile']}, "
            f"faults: {network['faults']}"
        )


def print_results(screen: Screen, results: Iterable[Result]) -> int:
    """Print results as they come; returns the exit status. Pings that are as wanted make one line a check."""
    good, bad = 0, 0
    for result in results:
        good, bad = good + result.good, bad + (not result.good)
        if not result.good or result.check.kind in ("throughput", "transfer"):
            what = f"line {result.check.line}: {result.check.kind} {result.path}: {result.detail}"
            screen.line(f"  {screen.mark(result.good)} {what}")
    screen.line(f"  {screen.mark(not bad)} {good} of {good + bad} paths as the file says")
    return 1 if bad else 0


def account_text(account: Account) -> str:
    if account.unbalanced:
        return f"packets are missing on {', '.join(account.unbalanced)}; `canal status -j` there says how many"
    return f"{account.received:,} in = {account.delivered:,} out + {account.dropped:,} dropped for a reason"


def print_account(screen: Screen, account: Account) -> int:
    """Print what became of the packets of our daemons, if there are any; returns the exit status."""
    if account.received or account.unbalanced:
        screen.line(f"  {screen.mark(account.balanced)} every packet accounted for: {account_text(account)}")
    return 0 if account.balanced else 1
