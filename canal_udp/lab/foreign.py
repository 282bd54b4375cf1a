"""Nodes of a lab that run no daemon of ours: kernel VXLAN as flannel programs it, and one packet per system call. Pure.

Structure  kernel-vxlan  flannel.1 (IPv4 underlay), flannel-v6.1 (IPv6); per peer a neighbour, an FDB entry and a route
           one-by-one    flannel0, a TUN that benchmarks/one_by_one.c forwards
           both          pods on veth behind the bridge cni0, as flannel's CNI plugin makes them
Place      their subnets come from the end of the pool; the store gets leases for them, so that daemons know them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from canal_udp.control.network import NetworkConfig
from canal_udp.encap.mtu import inner_mtu
from canal_udp.errors import LabError
from canal_udp.lab.model import Lab, Node
from canal_udp.lab.plan import netns, port_name, public_address
from canal_udp.lab.state import PodAddress
from canal_udp.lab.steps import Bridge, Ip, Step, Sysctl
from canal_udp.net import PORTS, VNI_DEFAULT, Address, Encap, Network

TUN = "flannel0"


@dataclass(frozen=True, slots=True)
class Peer:
    """What a foreign node has to know of another node."""

    subnets: tuple[Network, ...]
    public_ips: tuple[Address, ...]
    encap: Encap
    mac: str = ""  # of its VXLAN devices, the same for both families
    ours: bool = False  # a daemon of ours also takes what its peers speak

    def public(self, family: int) -> Address | None:
        return next((ip for ip in self.public_ips if ip.version == family), None)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The device that carries one family of the overlay."""

    name: str
    overlay_family: int
    local: Address
    mtu_bytes: int


def foreign_nodes(lab: Lab) -> list[Node]:
    return [node for node in lab.nodes.values() if node.kind != "canal"]


def encap_of(node: Node) -> Encap:
    """What a node speaks on the underlay."""
    fixed: dict[str, Encap] = {"kernel-vxlan": "vxlan", "one-by-one": "udp"}
    return fixed.get(node.kind, node.encap)


def subnets(lab: Lab, node: Node) -> tuple[Network, ...]:
    """The subnets of a foreign node: the n-th from the pool's end."""
    index = foreign_nodes(lab).index(node)
    config = NetworkConfig.make(lab.overlay.network, lab.overlay.network6 if node.kind == "kernel-vxlan" else None)
    found: list[Network] = []
    for pool in (config.pool, config.pool6):
        if pool is not None:
            step = pool.last.num_addresses
            base = int(pool.last.network_address) - index * step
            if base < int(pool.first.network_address):
                raise LabError(f"node {node.name!r}: the overlay {pool.network} has no subnet left for it")
            found.append(type(pool.network)((base, pool.subnet_len)))
    return tuple(found)


def mac(lab: Lab, node: Node) -> str:
    """A locally administered MAC, the same every time."""
    digest = hashlib.sha256(f"{lab.name}/{node.name}".encode()).digest()
    return bytes((0x0E, *digest[:5])).hex(":")


def as_peer(lab: Lab, node: Node) -> Peer:
    """A foreign node as others see it."""
    ips = tuple(ip for family in (4, 6) if (ip := public_address(lab, node.name, family)))
    return Peer(subnets(lab, node), ips, encap_of(node), mac(lab, node) if node.kind == "kernel-vxlan" else "")


def peer_of_lease(lease: Mapping[str, Any]) -> Peer:
    """A row of `canal lease list -j` that is no stranger's."""
    subnets = [ip_network(lease[key]) for key in ("subnet", "subnet6") if lease.get(key)]
    ips = [ip_address(lease[key]) for key in ("public_ip", "public_ip6") if lease.get(key)]
    return Peer(tuple(subnets), tuple(ips), lease["encap"], lease.get("vtep_mac") or "", ours=True)


def tunnels(lab: Lab, node: Node) -> list[Tunnel]:
    """One device per overlay family, over the underlay family of the same version where there is one."""
    mtu = lab.networks[node.network].mtu_bytes
    found = []
    for subnet in subnets(lab, node):
        local = public_address(lab, node.name, subnet.version) or public_address(lab, node.name, 4)
        local = local or public_address(lab, node.name, 6)
        if local is None:
            raise LabError(f"node {node.name!r} has no underlay address")
        device = TUN if node.kind == "one-by-one" else "flannel.1" if local.version == 4 else "flannel-v6.1"
        found.append(Tunnel(device, subnet.version, local, inner_mtu(encap_of(node), local.version, mtu)))
    return found


def node_steps(lab: Lab, node: Node) -> Iterator[Step]:
    """The tunnel devices, the bridge and the pods of a foreign node."""
    space = netns(lab, node.name)
    yield Sysctl(space, "net.ipv4.ip_forward", "1")
    yield Sysctl(space, "net.ipv6.conf.all.forwarding", "1")
    made: set[str] = set()
    found = tunnels(lab, node)
    for tunnel, subnet in zip(found, subnets(lab, node), strict=True):
        if tunnel.name not in made:
            yield from _device(lab, node, tunnel)
            made.add(tunnel.name)
        yield Ip(space, f"address add {subnet.network_address}/{subnet.max_prefixlen} dev {tunnel.name}")
        if node.kind == "one-by-one":
            yield Ip(space, f"route add {lab.overlay.network} dev {tunnel.name} src {subnet.network_address}")
    mtu = min(tunnel.mtu_bytes for tunnel in found)
    yield Ip(space, f"link add cni0 mtu {mtu} type bridge forward_delay 0")
    for subnet in subnets(lab, node):
        yield Ip(space, f"address add {subnet.network_address + 1}/{subnet.prefixlen} dev cni0")
    yield Ip(space, "link set cni0 up")
    for pod in lab.pods_of(node.name):
        yield from _pod(lab, node, pod.name, mtu)


def _device(lab: Lab, node: Node, tunnel: Tunnel) -> Iterator[Step]:
    space = netns(lab, node.name)
    if node.kind == "one-by-one":
        yield Ip(space, f"tuntap add {tunnel.name} mode tun")
        yield Ip(space, f"link set {tunnel.name} mtu {tunnel.mtu_bytes} txqueuelen 10000 up")
        return
    yield Ip(
        space,
        f"link add {tunnel.name} address {mac(lab, node)} mtu {tunnel.mtu_bytes} type vxlan id {VNI_DEFAULT} dev eth0 "
        f"local {tunnel.local} dstport {PORTS['vxlan']} nolearning",
    )
    yield Sysctl(space, f"net.ipv6.conf.{tunnel.name.replace('.', '/')}.accept_ra", "0", optional=True)
    yield Ip(space, f"link set {tunnel.name} up")


def _pod(lab: Lab, node: Node, pod: str, mtu: int) -> Iterator[Step]:
    space, inside, address = netns(lab, node.name), netns(lab, pod), pod_address(lab, pod)
    yield Ip(space, f"link add {port_name(pod)} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}")
    yield Ip(space, f"link set {port_name(pod)} master cni0 up")
    for subnet in subnets(lab, node):
        yield Ip(inside, f"address add {address.of(subnet.version)}/{subnet.prefixlen} dev eth0")
    yield Ip(inside, "link set eth0 up")
    for subnet in subnets(lab, node):
        yield Ip(inside, f"route add default via {subnet.network_address + 1}")


def pod_address(lab: Lab, pod: str) -> PodAddress:
    """The n-th pod of a foreign node has x.y.z.(n+1): .1 is the bridge."""
    node = lab.nodes[lab.pods[pod].node]
    index = [item.name for item in lab.pods_of(node.name)].index(pod)
    ips = tuple(str(subnet.network_address + 2 + index) for subnet in subnets(lab, node))
    return PodAddress(ips, "eth0", min(tunnel.mtu_bytes for tunnel in tunnels(lab, node)))


def peer_steps(lab: Lab, node: Node, peers: Iterable[Peer]) -> Iterator[Step]:
    """What a kernel VXLAN node needs to reach its peers; replaces what is there. Peers that use udp are skipped."""
    space = netns(lab, node.name)
    found = {tunnel.overlay_family: tunnel for tunnel in tunnels(lab, node)}
    for peer in peers:
        for subnet in peer.subnets if peer.encap == "vxlan" else ():
            tunnel = found.get(subnet.version)
            remote = tunnel and peer.public(tunnel.local.version)
            if tunnel is None or remote is None:
                continue
            gateway = subnet.network_address
            yield Ip(space, f"neighbour replace {gateway} lladdr {peer.mac} dev {tunnel.name} nud permanent")
            yield Bridge(space, f"fdb replace {peer.mac} dev {tunnel.name} dst {remote} self permanent")
            yield Ip(space, f"route replace {subnet} via {gateway} dev {tunnel.name} onlink")


def forwarder_args(lab: Lab, node: Node, peers: Iterable[Peer]) -> list[str]:
    """Arguments of benchmarks/one_by_one.c."""
    local = public_address(lab, node.name, 4)
    routes = [
        f"{subnet}={peer.public(4)}"
        for peer in peers
        if peer.encap == "udp" or peer.ours
        for subnet in peer.subnets
        if subnet.version == 4
    ]
    return [TUN, str(local), str(PORTS["udp"]), *routes]


def forwarder_program() -> Path:
    """benchmarks/build/one-by-one of the source tree. Raises LabError when it is not built."""
    program = Path(__file__).parents[2] / "benchmarks" / "build" / "one-by-one"
    if not program.exists():
        raise LabError(f"nodes of kind one-by-one need {program}: run benchmarks/build.sh in the source tree")
    return program
