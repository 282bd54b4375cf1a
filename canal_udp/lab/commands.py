"""The command lines of our own programs as a lab calls them: pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from canal_udp.lab.foreign import Peer
from canal_udp.lab.model import Lab, Node, Pod
from canal_udp.lab.plan import device, netns, public_address
from canal_udp.lab.state import LabState

CANAL = (sys.executable, "-m", "canal_udp")


def daemon(lab: Lab, node: Node, state: LabState) -> list[str]:
    """`canal daemon` for one node; run inside its namespace."""
    options = {
        "--store": state.store_url(lab),
        "--encap": node.encap,
        "--iface": device(lab, node.name, node.network),
        "--run-dir": str(state.run_dir(node.name)),
        "--state-dir": str(state.node_dir(node.name) / "state"),
        "--node": node.name,
    }
    if lab.overlay.network:
        options["--network"] = str(lab.overlay.network)
    if lab.overlay.network6:
        options["--network6"] = str(lab.overlay.network6)
    for family, flag in ((4, "--public-ip"), (6, "--public-ip6")):
        if address := public_address(lab, node.name, family):
            options[flag] = str(address)
    return [*CANAL, "daemon", *(word for pair in options.items() for word in pair), *node.flags]


def attach(lab: Lab, pod: Pod, state: LabState) -> list[str]:
    words = [
        *CANAL,
        "attach",
        netns(lab, pod.name),
        "--name",
        f"{pod.namespace}/{pod.name}",
        "--run-dir",
        str(state.run_dir(pod.node)),
        "-j",
    ]
    if pod.ip != "auto":
        words += ["--ip", pod.ip]
    for label in pod.labels:
        words += ["--label", label]
    return words


def lease_put(lab: Lab, node: Node, peer: Peer, state: LabState) -> list[str]:
    """Tell the store about a node that runs no daemon."""
    words = [*CANAL, "lease", "put", "--store", state.store_url(lab), "--node", node.name, "--encap", peer.encap]
    for subnet in peer.subnets:
        words += ["--subnet" if subnet.version == 4 else "--subnet6", str(subnet)]
    for ip in peer.public_ips:
        words += ["--public-ip" if ip.version == 4 else "--public-ip6", str(ip)]
    if peer.mac:
        words += ["--vtep-mac", peer.mac]
    return words


def lease_list(lab: Lab, state: LabState) -> list[str]:
    return [*CANAL, "lease", "list", "-j", "--store", state.store_url(lab)]


def policy_apply(lab: Lab, state: LabState, file: Path) -> list[str]:
    return [*CANAL, "policy", "apply", "-f", str(file), "--store", state.store_url(lab)]


def relay(ports: Sequence[str], state: LabState, network: str) -> list[str]:
    """Our impairment relay; run inside the network's namespace."""
    folder = state.path / f"net-{network}"
    return [
        sys.executable,
        "-m",
        "canal_udp.lab.relay",
        "--spec",
        str(folder / "relay.json"),
        "--counts",
        str(folder / "counts.json"),
        *ports,
    ]
