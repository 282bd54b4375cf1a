"""The systems that are compared: plug-ins of a few lines.

Structure  a system is a lab of two nodes, a with pods a1 and a2, b with pod b1, on one veth pair, and, where the lab
           has no such thing, a function that rearranges the nodes when the lab is up
Place      `canal bench overlay --plugin FILE` adds those of the list SYSTEMS of a Python file.
"""

from __future__ import annotations

import runpy
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from canal_udp.api import call
from canal_udp.errors import BenchError, UsageError
from canal_udp.lab import host, processes
from canal_udp.lab.model import Lab
from canal_udp.lab.plan import netns, port_name, public_address
from canal_udp.lab.reader import suggest
from canal_udp.lab.state import LabState
from canal_udp.lab.steps import Ip, Step, Sysctl

Addresses = dict[str, str]  # pod -> IPv4 address
Arrange = Callable[[Lab, LabState, Addresses], Addresses]

WIREGUARD_PORT, WIREGUARD_MTU = 51820, 1420


@dataclass(frozen=True, slots=True)
class System:
    """One way to connect two pods."""

    name: str
    about: str
    node: str  # `kind` of the lab's nodes
    encap: str = "vxlan"
    path: tuple[str, str] = ("a1", "b1")
    baseline: str = "kernel-vxlan"  # what its ratios are to
    arrange: Arrange | None = None
    programs: tuple[str, ...] = ()  # needed, and the packages they come in: "wg:wireguard-tools"

    def missing(self) -> list[str]:
        """Packages that have to be installed first."""
        return [item.partition(":")[2] for item in self.programs if not shutil.which(item.partition(":")[0])]

    def lab_text(self, lab: str, profile: str) -> str:
        return (
            f"lab: {lab}\n"
            f"networks: {{core: {{subnets: [192.168.1.0/24], mtu: 1500, profile: {profile}, joint: direct}}}}\n"
            f"overlay: {{network: 10.244.0.0/16, encap: {self.encap}}}\n"
            f"nodes: {{a: {{kind: {self.node}, pods: 2}}, b: {{kind: {self.node}, pods: 1}}}}\n"
        )


# ---- rearranging -----------------------------------------------------------------------------------------------------


def pods_on_veth(lab: Lab, state: LabState, pods: Addresses) -> Addresses:
    """Pods behind a bridge of the host, which sends by the daemon's host TUN: the place of flanneld."""
    for node in lab.nodes:
        status = call(state.run_dir(node), "status")
        subnet, mtu, space = IPv4Network(status["subnet"]), status["mtu"], netns(lab, node)
        host.apply(_bridge(space, subnet, mtu))
        for index, pod in enumerate(lab.pods_of(node)):
            inside, pods[pod.name] = netns(lab, pod.name), str(subnet[200 + index])
            call(state.run_dir(node), "detach", netns=inside, name="")
            host.apply(_pod_on_bridge(space, inside, port_name(pod.name), f"{pods[pod.name]}/24", str(subnet[1]), mtu))
    return pods


def _bridge(space: str, subnet: IPv4Network, mtu: int) -> Iterable[Step]:
    yield Sysctl(space, "net.ipv4.ip_forward", "1")
    yield Ip(space, f"link add cni0 mtu {mtu} type bridge forward_delay 0")
    yield Ip(space, f"address add {subnet[1]}/{subnet.prefixlen} dev cni0")
    yield Ip(space, "link set cni0 up")


def _pod_on_bridge(space: str, inside: str, port: str, address: str, gateway: str, mtu: int) -> Iterable[Step]:
    yield Ip(space, f"link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}")
    yield Ip(space, f"link set {port} master cni0 up")
    yield Ip(inside, f"address add {address} dev eth0")
    yield Ip(inside, "link set eth0 up")
    yield Ip(inside, f"route add default via {gateway}")


def pods_routed(lab: Lab, state: LabState, pods: Addresses) -> Addresses:
    """No bridge: the host routes between the veths of its pods, as Calico does."""
    space = netns(lab, "a")
    for pod in lab.pods_of("a"):
        inside, port, address = netns(lab, pod.name), port_name(pod.name), pods[pod.name]
        host.apply(
            [
                Ip(space, f"link set {port} nomaster"),
                Sysctl(space, f"net.ipv4.conf.{port}.proxy_arp", "1"),
                Ip(space, f"route add {address}/32 dev {port}"),
                Ip(inside, "address flush dev eth0"),
                Ip(inside, f"address add {address}/32 dev eth0"),
                Ip(inside, "route add default dev eth0"),
            ]
        )
    return pods


def wireguard(lab: Lab, state: LabState, pods: Addresses) -> Addresses:
    """Encrypts; instead of flannel.1 the nodes use a TUN of wireguard-go."""
    nodes = list(lab.nodes)
    secrets = {node: host.run(["wg", "genkey"]).strip() for node in nodes}
    for node, peer in zip(nodes, reversed(nodes), strict=True):
        space, device = netns(lab, node), f"wg{zlib.crc32(netns(lab, node).encode()):08x}"
        log = state.log("wireguard", node)
        argv = ["wireguard-go", "--foreground", device]
        state.record_process("wireguard", node, processes.spawn(space, argv, log, {}))
        _wait_for_device(space, device, log)
        public = host.run(["wg", "pubkey"], secrets[peer]).strip()
        subnet = IPv4Network((pods[f"{peer}1"], 24), strict=False)
        endpoint = f"{public_address(lab, peer, 4)}:{WIREGUARD_PORT}"
        words = ["wg", "set", device, "listen-port", str(WIREGUARD_PORT), "private-key", "/dev/stdin"]
        words += ["peer", public, "allowed-ips", str(subnet), "endpoint", endpoint]
        host.run(words, secrets[node], space)
        steps: list[Step] = [
            Ip(space, f"link set {device} mtu {WIREGUARD_MTU} txqueuelen 10000 up"),
            Ip(space, f"route replace {subnet} dev {device}"),
            Ip(space, f"link set cni0 mtu {WIREGUARD_MTU}"),
        ]
        for pod in lab.pods_of(node):
            steps.append(Ip(space, f"link set {port_name(pod.name)} mtu {WIREGUARD_MTU}"))
            steps.append(Ip(netns(lab, pod.name), f"link set eth0 mtu {WIREGUARD_MTU}"))
        host.apply(steps)
    return pods


def _wait_for_device(space: str, device: str, log: Path) -> None:
    deadline = time.monotonic() + 5
    while device not in host.run(["ip", "-n", space, "-o", "link"]):
        if time.monotonic() > deadline:
            raise BenchError(f"wireguard-go does not start: see {log}")
        time.sleep(0.02)


# ---- the list --------------------------------------------------------------------------------------------------------

OURS = (
    System("canal-vxlan", "Canal, flannel's VXLAN format, a TUN per pod", "canal"),
    System("canal-udp", "Canal, flannel's UDP format, a TUN per pod", "canal", "udp"),
    System("canal-veth", "Canal, VXLAN, pods on veth behind the host TUN", "canal", arrange=pods_on_veth),
    System("canal-local", "Canal, two pods of one node", "canal", path=("a1", "a2"), baseline="veth-local"),
)
OTHERS = (
    System("kernel-vxlan", "the kernel's VXLAN device as flannel programs it, pods on veth", "kernel-vxlan"),
    System("one-by-one", "one packet per system call, as flannel's udp backend", "one-by-one", "udp"),
    System(
        "wireguard-go",
        "wireguard-go, encrypted, pods on veth",
        "kernel-vxlan",
        arrange=wireguard,
        programs=("wireguard-go:wireguard-go", "wg:wireguard-tools"),
    ),
    System(
        "veth-local",
        "two pods of one node on veth, routed by the host",
        "kernel-vxlan",
        path=("a1", "a2"),
        baseline="veth-local",
        arrange=pods_routed,
    ),
)


def known(plugin: Path | None) -> dict[str, System]:
    """Every system by name, with those of a plug-in file. Raises BenchError."""
    extra: Sequence[System] = ()
    if plugin is not None:
        try:
            extra = runpy.run_path(str(plugin))["SYSTEMS"]
        except (OSError, KeyError, SyntaxError) as error:
            raise BenchError(f"{plugin}: a plug-in defines SYSTEMS, a list: {error!r}") from error
    return {system.name: system for system in (*OURS, *OTHERS, *extra)}


def choose(names: Iterable[str], systems: dict[str, System]) -> list[System]:
    """The systems of these names, and those that they are compared with. Raises UsageError, BenchError."""
    chosen: dict[str, System] = {}
    for name in names:
        if name not in systems:
            raise UsageError(f"no system {name!r}; {suggest(name, systems)}")
        chosen[name] = systems[name]
    for system in list(chosen.values()):
        chosen.setdefault(system.baseline, systems[system.baseline])
    for system in chosen.values():
        if packages := system.missing():
            raise BenchError(f"{system.name} needs what is not installed: apt-get install {' '.join(packages)}")
    return list(chosen.values())
