"""Bring a lab up and take it down.

Structure  up   = journal, wiring, foreign nodes, daemons, policies, pods, peers of foreign nodes, faults; else down
           down = processes (those of the journal and whatever lives in the lab's namespaces), namespaces, folder
Invariants `down` needs only the journal, works however far `up` came, and may be repeated.
           Interfaces, routes and rules live in namespaces and go with them. The machine's own namespace is not touched,
           but for one sysctl, restored at once (`_congestion_control_allowed`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from canal_udp.api import call
from canal_udp.errors import CanalError, DaemonUnreachable, LabError
from canal_udp.lab import commands, faults, foreign, host, objects, plan, processes, state
from canal_udp.lab.model import Lab, Node, Pod
from canal_udp.lab.processes import Process
from canal_udp.lab.state import LabState, PodAddress
from canal_udp.policy.load import Loaded

T = TypeVar("T")
R = TypeVar("R")
Say = Callable[[str], None]
READY_TIMEOUT_S = 15.0
GRACE_S = 3.0
POLL_S = 0.03
PARALLEL = 4
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def silent(_: str) -> None:
    """A `Say` for callers that have no one to tell."""


def up(lab: Lab, text: str, say: Say = silent, keep: bool = False) -> LabState:
    """Bring a lab up; when that fails or is interrupted, nothing of it is left unless `keep`. Raises LabError."""
    require_root()
    found = objects.read(lab)
    lab_state: LabState | None = None
    with interruptible():
        try:
            with state.registry():
                with _uninterrupted():
                    lab_state = state.create(lab.name, text, plan.namespaces(lab), existing_namespaces())
                _wire(lab, lab_state, say)
            with lab_state.locked():
                _bring_up(lab, lab_state, found, say)
        except BaseException:
            if lab_state is not None and not keep:
                say("taking it down again")
                _remove_quietly(lab_state)
            raise
    return lab_state


def down(lab_state: LabState, say: Say = silent) -> None:
    """Take a lab down, whole or half made. Raises LabError when something will not go."""
    require_root()
    with lab_state.locked(lambda: say(f"waiting for another command that changes lab {lab_state.name}")):
        for record in lab_state.records("sysctl"):
            Path(record["path"]).write_text(record["value"], encoding="ascii")
        names = lab_state.namespaces()
        with processes.held(names) as identities:
            _end([*lab_state.every_process(), *processes.inside(identities)])
            while left := existing_namespaces().intersection(names):
                for name in left:  # again: an `ip` that outlived a killed `up` may still add some
                    _delete_namespace(name)
            _end(processes.inside(identities))  # what was on its way in when we looked first; nobody comes in any more
        lab_state.remove()


def shell_lines(lab: Lab, lab_state: LabState) -> Iterator[str]:
    """What `up` does, as shell commands; peers of foreign nodes are only known when the daemons have their leases."""
    strangers = foreign.foreign_nodes(lab)
    yield from (step.shell() for step in plan.wiring(lab))
    for node in strangers:
        yield from (step.shell() for step in foreign.node_steps(lab, node))
    ours = [node for node in lab.nodes.values() if node.kind == "canal"]
    if ours:
        yield from (
            shlex.join(commands.lease_put(lab, node, foreign.as_peer(lab, node), lab_state)) for node in strangers
        )
    for node in ours:
        yield f"ip netns exec {plan.netns(lab, node.name)} {shlex.join(commands.daemon(lab, node, lab_state))} &"
    for node in ours:
        yield from (shlex.join(commands.attach(lab, pod, lab_state)) for pod in lab.pods_of(node.name))
    peers = [foreign.as_peer(lab, node) for node in strangers]
    for node, own in zip(strangers, peers, strict=True):
        others = [peer for peer in peers if peer is not own]
        if node.kind == "kernel-vxlan":
            yield from (step.shell() for step in foreign.peer_steps(lab, node, others))
        else:
            arguments = shlex.join(foreign.forwarder_args(lab, node, others))
            yield f"ip netns exec {plan.netns(lab, node.name)} one-by-one {arguments} &"


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("a lab makes network namespaces: run as root")


def existing_namespaces() -> set[str]:
    try:
        return set(os.listdir(host.NETNS_DIR))
    except FileNotFoundError:
        return set()


# -- up, in order


def _wire(lab: Lab, lab_state: LabState, say: Say) -> None:
    links = sum(len(lab.members(network)) for network in lab.networks)
    say(f"{len(plan.namespaces(lab))} namespaces, {links} links")
    with _congestion_control_allowed(lab_state):
        host.apply(plan.wiring(lab))


def _bring_up(lab: Lab, lab_state: LabState, found: Loaded, say: Say) -> None:
    strangers = foreign.foreign_nodes(lab)
    ours = [node for node in lab.nodes.values() if node.kind == "canal"]
    for name in ("store.d", *lab.nodes, *(f"net-{network}" for network in lab.networks)):
        lab_state.node_dir(name).mkdir(mode=0o700)
    for node in strangers:
        host.apply(foreign.node_steps(lab, node))
    pods = {pod.name: foreign.pod_address(lab, pod.name) for node in strangers for pod in lab.pods_of(node.name)}
    if ours:
        for node in strangers:
            host.run(commands.lease_put(lab, node, foreign.as_peer(lab, node), lab_state))
        say(f"{len(ours)} daemons")
        for node in ours:
            start_daemon(lab, node, lab_state)
        _in_parallel(lambda node: wait_ready(lab, node, lab_state), ours)
        objects.write(lab, lab_state, found, pods)
    to_attach = [pod for node in ours for pod in lab.pods_of(node.name)]
    if to_attach:
        say(f"{len(to_attach)} pods")
        attached = _in_parallel(lambda pod: attach(lab, pod, lab_state), to_attach)
        pods |= {pod.name: address for pod, address in zip(to_attach, attached, strict=True)}
    lab_state.save_pods({name: pods[name] for name in lab.pods})
    introduce(lab, lab_state)
    _in_parallel(lambda node: wait_peers(lab, node, lab_state), ours)
    policies = len(found.state.policies)
    _in_parallel(lambda node: objects.wait_known(lab, lab_state, node.name, policies), ours)
    if lab.faults:
        say("faults")
        for network, fault in lab.faults.items():
            faults.impair(lab, lab_state, network, fault)


def start_daemon(lab: Lab, node: Node, lab_state: LabState) -> Process:
    """Start the daemon of a node; `wait_ready` says when it serves."""
    env = {"CANAL_LAB": lab.name}
    return _start(lab, "daemon", node, commands.daemon(lab, node, lab_state), env, lab_state)


def _start(lab: Lab, role: str, node: Node, argv: list[str], env: dict[str, str], lab_state: LabState) -> Process:
    with _uninterrupted():  # a process that the journal does not have would stay
        process = processes.spawn(plan.netns(lab, node.name), argv, lab_state.log(role, node.name), env)
        lab_state.record_process(role, node.name, process)
    return process


def wait_ready(lab: Lab, node: Node, lab_state: LabState) -> None:
    """Until the daemon answers `ready`. Raises LabError with the end of its log."""
    process = lab_state.processes()["daemon", node.name]
    deadline, last = time.monotonic() + READY_TIMEOUT_S, "it does not answer"
    while time.monotonic() < deadline:
        if process.state == "gone":
            raise LabError(f"the daemon of node {node.name} ended{log_tail(lab_state, 'daemon', node.name)}")
        try:
            status = call(lab_state.run_dir(node.name), "status", timeout_s=2.0)
        except DaemonUnreachable:
            time.sleep(POLL_S)
            continue
        if status["state"] == "ready":
            return
        last = f"it is {status['state']}: {', '.join(map(str, status.get('reasons', ())))}"
        time.sleep(POLL_S)
    problem = f"the daemon of node {node.name} is not ready after {READY_TIMEOUT_S:.0f} s: {last}"
    raise LabError(problem + log_tail(lab_state, "daemon", node.name))


def wait_peers(lab: Lab, node: Node, lab_state: LabState) -> None:
    """Until a daemon knows every other node. Raises LabError that says whom it misses."""
    expected = len(lab.nodes) - 1
    deadline, peers = time.monotonic() + READY_TIMEOUT_S, 0
    while time.monotonic() < deadline:
        peers = call(lab_state.run_dir(node.name), "status", timeout_s=2.0)["peers"]
        if peers >= expected:
            return
        time.sleep(POLL_S)
    raise LabError(f"node {node.name} knows {peers} of {expected} peers; `canal lab exec {node.name} -- canal peers`")


def start_missing(lab: Lab, lab_state: LabState, only: str | None = None) -> list[str]:
    """Start the daemons that do not run, and wait until they serve; returns their nodes. Raises LabError."""
    running = lab_state.processes()
    missing = [
        node
        for node in lab.nodes.values()
        if node.kind == "canal" and only in (None, node.name) and running["daemon", node.name].state == "gone"
    ]
    for node in missing:
        start_daemon(lab, node, lab_state)
    for node in missing:
        wait_ready(lab, node, lab_state)
    return [node.name for node in missing]


def attach(lab: Lab, pod: Pod, lab_state: LabState) -> PodAddress:
    """Attach a pod to its node's daemon. Raises LabError."""
    found = json.loads(host.run(commands.attach(lab, pod, lab_state)))
    return PodAddress(tuple(ip.partition("/")[0] for ip in found["ips"]), found["ifname"], int(found["mtu"]))


def introduce(lab: Lab, lab_state: LabState) -> None:
    """Tell foreign nodes about their peers: once all leases are there, and again whenever that changes."""
    strangers = foreign.foreign_nodes(lab)
    if not strangers:
        return
    peers = {node.name: foreign.as_peer(lab, node) for node in strangers}
    known = [peers[node.name] for node in strangers]
    if any(node.kind == "canal" for node in lab.nodes.values()):
        own = {subnet for peer in known for subnet in peer.subnets}
        leases = json.loads(host.run(commands.lease_list(lab, lab_state)))
        found = (foreign.peer_of_lease(lease) for lease in leases)
        known += [peer for peer in found if not own.intersection(peer.subnets)]
    for node in strangers:
        others = [peer for peer in known if peer is not peers[node.name]]
        if node.kind == "kernel-vxlan":
            host.apply(foreign.peer_steps(lab, node, others))
        else:
            _start_forwarder(lab, node, others, lab_state)


def _start_forwarder(lab: Lab, node: Node, others: list[foreign.Peer], lab_state: LabState) -> None:
    old = lab_state.processes().get(("forwarder", node.name))
    if old:
        processes.end([old], GRACE_S)
    argv = [str(foreign.forwarder_program()), *foreign.forwarder_args(lab, node, others)]
    process = _start(lab, "forwarder", node, argv, {}, lab_state)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while "LOWER_UP" not in host.run(["ip", "-n", plan.netns(lab, node.name), "link", "show", foreign.TUN]):
        if process.state == "gone" or time.monotonic() > deadline:
            raise LabError(
                f"the forwarder of node {node.name} does not start{log_tail(lab_state, 'forwarder', node.name)}"
            )
        time.sleep(POLL_S)


def log_tail(lab_state: LabState, role: str, node: str, lines: int = 12) -> str:
    """The end of a process's log for an error message."""
    file = lab_state.log(role, node)
    if not file.exists():
        return ""
    tail = file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n  ".join((f"\n{file} ends with:", *tail)) if tail else f"; {file} is empty"


def _in_parallel(work: Callable[[T], R], items: list[T]) -> list[R]:
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # who is interrupted does not wait for a daemon to get ready


# -- taking away


def _remove_quietly(lab_state: LabState) -> None:
    """After a failed or interrupted `up`; a second Ctrl-C waits until it is done."""
    with _uninterrupted(), contextlib.suppress(CanalError):  # the first error counts; `canal lab down` tries again
        down(lab_state)


def _end(found: list[Process]) -> None:
    processes.end([process for process in set(found) if process.state != "gone"], GRACE_S)


def _delete_namespace(name: str) -> None:
    """Also one of which only the file was made: `up` may have been killed in between."""
    path = host.NETNS_DIR / name
    if not path.exists():
        return
    try:
        host.run(["ip", "netns", "delete", name])
    except LabError:
        if os.path.ismount(path):
            raise
    path.unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals wait. Programs started meanwhile inherit that, and none of them takes long."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is in here like Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextmanager
def _congestion_control_allowed(lab_state: LabState) -> Iterator[None]:
    """Let namespaces choose the congestion control of labs.

    A machine whose default is another one refuses it inside namespaces, even to root, unless it is in this list. The
    list is as before when the lab is up; the journal knows it meanwhile. One lab at a time: two would restore each
    other's change.
    """
    with contextlib.ExitStack() as lock:
        with contextlib.suppress(OSError):  # older kernels hide it from namespaces: labs take the default
            fcntl.flock(lock.enter_context(_ALLOWED.open(encoding="ascii")), fcntl.LOCK_EX)
        with _congestion_control_added(lab_state):
            yield


@contextmanager
def _congestion_control_added(lab_state: LabState) -> Iterator[None]:
    try:
        before = _ALLOWED.read_text(encoding="ascii").strip()
    except OSError:
        yield
        return
    if plan.CONGESTION_CONTROL in before.split() or not os.access(_ALLOWED, os.W_OK):  # read-only inside a container
        yield
        return
    lab_state.record("sysctl", path=str(_ALLOWED), value=before)
    with contextlib.suppress(OSError):  # the kernel does not have it
        _ALLOWED.write_text(f"{before} {plan.CONGESTION_CONTROL}", encoding="ascii")
    try:
        yield
    finally:
        _ALLOWED.write_text(before, encoding="ascii")
