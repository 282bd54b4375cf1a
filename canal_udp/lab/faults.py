"""Faults while a lab runs: links, MTU, impairments of a network's frames, signals to daemons; and taking them back.

Structure  one Impairment per bridge network says everything about its frames; `impair` replaces it as a whole:
             nft    rules in the forward path of the bridge        loss, black hole
             netem  qdisc on every port                            all but the black hole; where the kernel has it
             relay  our own switch instead of the bridge           everything, repeatable by its seed
Invariants while frames are judged one by one, the links carry real ones: no superpacket crosses the middle
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict

from canal_udp.errors import LabError
from canal_udp.lab import commands, host, plan, processes
from canal_udp.lab.impair import Impairment, means, netem_args, nft_ruleset
from canal_udp.lab.model import NO_MIDDLE, Lab, Network
from canal_udp.lab.processes import Process
from canal_udp.lab.state import LabState
from canal_udp.lab.steps import Ip

TABLE = "canal_lab"
GRACE_S = 3.0
START_TIMEOUT_S = 5.0


def impair(lab: Lab, lab_state: LabState, network: str, impairment: Impairment) -> str:
    """Make this what a network does to its frames; says by which means. Raises LabError."""
    where = lab.networks[network]
    if where.joint == "direct":
        raise LabError(NO_MIDDLE.format(network))
    has_netem = netem_works(plan.network_netns(lab, network))
    way = means(impairment, has_netem)
    _real_packets(lab, where, way != "none")
    _nft(lab, where, impairment, way)
    if has_netem:
        _netem(lab, where, impairment, way)
    _relay(lab, lab_state, where, impairment, way)
    lab_state.save_faults({**lab_state.faults(), network: impairment})
    return way


def link(lab: Lab, node: str, up: bool) -> None:
    """Plug or unplug a node's cable: it loses its carrier and keeps its addresses. Raises LabError."""
    network = lab.networks[lab.nodes[node].network]
    if network.joint == "direct":
        raise LabError(NO_MIDDLE.format(network.name))
    port = plan.port_name(node)
    host.apply([Ip(plan.network_netns(lab, network.name), f"link set {port} {'up' if up else 'down'}")])


def mtu(lab: Lab, network: str, mtu_bytes: int) -> None:
    host.apply(plan.mtu_steps(lab, lab.networks[network], mtu_bytes))


def send_signal(lab_state: LabState, node: str, number: int) -> Process:
    """Signal the daemon of a node. Raises LabError when it does not run."""
    process = lab_state.processes().get(("daemon", node))
    if process is None:
        raise LabError(f"node {node!r} runs no daemon")
    if not process.signal(number):
        raise LabError(f"the daemon of node {node!r} does not run; `canal lab fault start {node}` starts it")
    if number == signal.SIGKILL:
        processes.wait_gone([process], GRACE_S)
    return process


def clear(lab: Lab, lab_state: LabState) -> None:
    """Undo everything but killed daemons, which `run.start_daemon` brings back."""
    for network in lab.networks.values():
        mtu(lab, network.name, network.mtu_bytes)
        if network.joint == "bridge":
            impair(lab, lab_state, network.name, Impairment())
            ports = [
                Ip(plan.network_netns(lab, network.name), f"link set {plan.port_name(member)} up")
                for member in lab.members(network.name)
            ]
            host.apply(ports)
    for (role, _), process in lab_state.processes().items():
        if role == "daemon":
            process.signal(signal.SIGCONT)


def relay_counts(lab_state: LabState, network: str) -> dict[str, int]:
    """What the relay of a network did so far; empty when none ran."""
    try:
        text = (lab_state.node_dir(f"net-{network}") / "counts.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    counts: dict[str, int] = json.loads(text)
    return counts


def netem_works(space: str) -> bool:
    """Does this kernel have netem? Asked of the loopback device, changed back at once."""
    try:
        host.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "limit", "1000"], space=space)
    except LabError:
        return False
    host.run(["tc", "qdisc", "delete", "dev", "lo", "root"], space=space)
    return True


def _real_packets(lab: Lab, network: Network, needed: bool) -> None:
    steps = plan.profile_steps(lab, network, "wire") if needed else plan.restore_steps(lab, network)
    host.apply(steps)


def _nft(lab: Lab, network: Network, impairment: Impairment, way: str) -> None:
    """The rules when they are needed, no table otherwise."""
    space = plan.network_netns(lab, network.name)
    rules = impairment if way in ("nft", "netem") else Impairment()
    ruleset = nft_ruleset(TABLE, rules, with_loss=way == "nft")
    if not rules.blackhole_bytes and way != "nft":
        ruleset = f"table bridge {TABLE}\ndelete table bridge {TABLE}\n"
    host.run(["nft", "-f", "-"], ruleset, space=space)


def _netem(lab: Lab, network: Network, impairment: Impairment, way: str) -> None:
    space = plan.network_netns(lab, network.name)
    for member in lab.members(network.name):
        device = ["dev", plan.port_name(member), "root"]
        if way == "netem":
            host.run(["tc", "qdisc", "replace", *device, "netem", *netem_args(impairment)], space=space)
        elif "netem" in host.run(["tc", "qdisc", "show", *device[:2]], space=space):
            host.run(["tc", "qdisc", "delete", *device], space=space)


def _relay(lab: Lab, lab_state: LabState, network: Network, impairment: Impairment, way: str) -> None:
    """Put the relay in the place of the bridge, change what it does, or put the bridge back."""
    running = lab_state.processes().get(("relay", network.name))
    if running and running.state == "gone":
        running = None
    spec = lab_state.node_dir(f"net-{network.name}") / "relay.json"
    if way != "relay":
        if running:
            processes.end([running], GRACE_S)
            host.apply(_ports(lab, network, "master br0"))
        return
    new = spec.with_suffix(".new")
    new.write_text(json.dumps(asdict(impairment)), encoding="utf-8")
    new.replace(spec)
    if running:
        running.signal(signal.SIGHUP)
        return
    counts = lab_state.node_dir(f"net-{network.name}") / "counts.json"
    counts.unlink(missing_ok=True)
    host.apply(_ports(lab, network, "nomaster"))
    ports = [plan.port_name(member) for member in lab.members(network.name)]
    log = lab_state.node_dir(f"net-{network.name}") / "relay.log"
    process = processes.spawn(
        plan.network_netns(lab, network.name), commands.relay(ports, lab_state, network.name), log, {}
    )
    lab_state.record_process("relay", network.name, process)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not counts.exists():  # it writes them as soon as it runs
        if process.state == "gone" or time.monotonic() > deadline:
            raise LabError(f"the relay of network {network.name!r} does not start: see {log}")
        time.sleep(0.01)


def _ports(lab: Lab, network: Network, change: str) -> Iterator[Ip]:
    for member in lab.members(network.name):
        yield Ip(plan.network_netns(lab, network.name), f"link set {plan.port_name(member)} {change}")
