"""A lab's namespaces, addresses, routes and the steps that wire them: pure.

Structure  one namespace per node, pod, router and bridge network, nothing in the machine's own namespace:

             <lab>-a1 ──TUN── <lab>-a [eth0]───[to-a] <lab>-net-core, br0 [to-b]───[eth0] <lab>-b ──TUN── <lab>-b1

           A direct network has no namespace: its two members share a veth pair.
Invariants interface names live in namespaces of this lab only, so two labs never meet; at most 15 characters;
           members have the same addresses every time: nodes from a subnet's first host on, routers from its last down.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator

from canal_udp.lab.model import Address, Lab, Network, Subnet
from canal_udp.lab.steps import Ip, Netns, Offloads, Step, Sysctl

IFNAME_MAX = 15
CONGESTION_CONTROL = "cubic"  # alike for everybody, whatever the machine prefers
# Real MTU-sized packets with real checksums, as on a plain network card.
WIRE = "tx off tso off gso off tx-udp-segmentation off tx-udp_tnl-segmentation off"
NATIVE = "tx on tso on gso on tx-udp-segmentation on tx-udp_tnl-segmentation on"


def netns(lab: Lab, member: str) -> str:
    """The namespace of a node, pod or router."""
    return f"{lab.name}-{member}"


def network_netns(lab: Lab, network: str) -> str:
    return f"{lab.name}-net-{network}"


def port_name(member: str) -> str:
    """The bridge's end of a member's link, `to-<member>`."""
    name = f"to-{member}"
    if len(name) <= IFNAME_MAX:
        return name
    digest = hashlib.sha256(member.encode()).hexdigest()[:8]
    return f"{name[: IFNAME_MAX - 8]}{digest}"


def joined(lab: Lab, member: str) -> tuple[str, ...]:
    """The underlay networks of a node or router; its interface in the i-th one is eth<i>."""
    return (lab.nodes[member].network,) if member in lab.nodes else lab.routers[member].networks


def device(lab: Lab, member: str, network: str) -> str:
    return f"eth{joined(lab, member).index(network)}"


def addresses(lab: Lab, member: str, network: str) -> tuple[Address, ...]:
    """A member's addresses in a network, one per subnet."""
    nodes = [node.name for node in lab.nodes.values() if node.network == network]
    routers = [router.name for router in lab.routers.values() if network in router.networks]
    subnets = lab.networks[network].subnets
    if member in nodes:
        return tuple(subnet[nodes.index(member) + 1] for subnet in subnets)
    # Counted from the end of a /24 or /112 at most: fd00:1::254 is easier on the eye than fd00:1::ffff:ffff:ffff:fffe.
    return tuple(subnet[min(subnet.num_addresses, 256) - 2 - routers.index(member)] for subnet in subnets)


def public_address(lab: Lab, node: str, family: int) -> Address | None:
    """The underlay address of a node that its peers send to."""
    return next((a for a in addresses(lab, node, lab.nodes[node].network) if a.version == family), None)


def namespaces(lab: Lab) -> list[str]:
    """Every namespace that the lab makes."""
    bridges = [network_netns(lab, network.name) for network in lab.networks.values() if network.joint == "bridge"]
    return [*bridges, *(netns(lab, name) for name in (*lab.routers, *lab.nodes, *lab.pods))]


def routes(lab: Lab, member: str) -> list[tuple[Subnet, Address]]:
    """What a member needs to reach the networks it is not in: (subnet, next router), by the fewest routers."""
    found: list[tuple[Subnet, Address]] = []
    own = joined(lab, member)
    first_hop: dict[str, tuple[str, str]] = {}  # network -> (router, own network that the router shares with us)
    queue = deque((network, network, "") for network in own)
    seen = set(own)
    while queue:
        here, start, router = queue.popleft()
        for candidate in lab.routers.values():
            if here not in candidate.networks or candidate.name == member:
                continue
            for network in candidate.networks:
                if network not in seen:
                    seen.add(network)
                    first_hop[network] = (router or candidate.name, start)
                    queue.append((network, start, router or candidate.name))
    for network, (router, start) in first_hop.items():
        for subnet in lab.networks[network].subnets:
            via = next((a for a in addresses(lab, router, start) if a.version == subnet.version), None)
            if via is not None:
                found.append((subnet, via))
    return found


def wiring(lab: Lab) -> list[Step]:
    """Namespaces, settings, links, addresses, routes and profiles of the underlay, in the order to make them."""
    members = (*lab.routers, *lab.nodes)
    steps: list[Step] = [Netns(name) for name in namespaces(lab)]
    for name in namespaces(lab):
        steps += _settings(name)
    for network in lab.networks.values():
        steps += _bridge(lab, network) if network.joint == "bridge" else _direct(lab, network)
    for member in members:
        steps += _member(lab, member)
    for pod in lab.pods.values():
        steps.append(Ip(netns(lab, pod.name), "link set lo up"))
    for network in lab.networks.values():
        if network.joint == "bridge":
            steps += profile_steps(lab, network, network.profile)
        elif network.profile == "wire":
            steps += [
                Offloads(netns(lab, m), device(lab, m, network.name), f"{WIRE} gro on")
                for m in lab.members(network.name)
            ]
    return steps


def profile_steps(lab: Lab, network: Network, profile: str, middle_gro: bool = False) -> Iterator[Step]:
    """Offloads of a bridge network's links. The middle of a wire never joins packets; only its ends do."""
    for member in lab.members(network.name):
        end, middle = netns(lab, member), network_netns(lab, network.name)
        if profile == "wire":
            yield Offloads(end, device(lab, member, network.name), f"{WIRE} gro on")
            yield Offloads(middle, port_name(member), f"{WIRE} gro {'on' if middle_gro else 'off'}")


def restore_steps(lab: Lab, network: Network) -> Iterator[Step]:
    """Back to the network's own profile after impairments needed real packets."""
    if network.profile == "wire":
        yield from profile_steps(lab, network, "wire")
        return
    for member in lab.members(network.name):
        yield Offloads(netns(lab, member), device(lab, member, network.name), f"{NATIVE} gro off")
        yield Offloads(network_netns(lab, network.name), port_name(member), f"{NATIVE} gro off")


def mtu_steps(lab: Lab, network: Network, mtu_bytes: int) -> list[Step]:
    """Set a network's MTU on every link of it."""
    steps: list[Step] = []
    for member in lab.members(network.name):
        if network.joint == "bridge":
            steps.append(Ip(network_netns(lab, network.name), f"link set {port_name(member)} mtu {mtu_bytes}"))
        steps.append(Ip(netns(lab, member), f"link set {device(lab, member, network.name)} mtu {mtu_bytes}"))
    return steps


def _settings(name: str) -> Iterator[Step]:
    for scope in ("all", "default"):
        yield Sysctl(name, f"net.ipv6.conf.{scope}.accept_dad", "0")
        yield Sysctl(name, f"net.ipv6.conf.{scope}.accept_ra", "0")
    yield Sysctl(name, "net.ipv4.tcp_congestion_control", CONGESTION_CONTROL, optional=True)


def _bridge(lab: Lab, network: Network) -> Iterator[Step]:
    middle = network_netns(lab, network.name)
    yield Ip(middle, "link set lo up")
    yield Ip(middle, "link add br0 type bridge forward_delay 0 mcast_snooping 0")
    for member in lab.members(network.name):
        port, end, mtu = port_name(member), device(lab, member, network.name), network.mtu_bytes
        yield Ip(middle, f"link add {port} mtu {mtu} type veth peer name {end} mtu {mtu} netns {netns(lab, member)}")
        yield Ip(middle, f"link set {port} master br0 up")
    yield Ip(middle, "link set br0 up")
    for family in ("ip", "ip6", "arp"):
        yield Sysctl(middle, f"net.bridge.bridge-nf-call-{family}tables", "0", optional=True)


def _direct(lab: Lab, network: Network) -> Iterator[Step]:
    one, two = lab.members(network.name)
    ends = device(lab, one, network.name), device(lab, two, network.name)
    mtu = network.mtu_bytes
    yield Ip(
        netns(lab, one), f"link add {ends[0]} mtu {mtu} type veth peer name {ends[1]} mtu {mtu} netns {netns(lab, two)}"
    )


def _member(lab: Lab, member: str) -> Iterator[Step]:
    space = netns(lab, member)
    yield Ip(space, "link set lo up")
    for network in joined(lab, member):
        name = device(lab, member, network)
        for address, subnet in zip(addresses(lab, member, network), lab.networks[network].subnets, strict=True):
            nodad = " nodad" if address.version == 6 else ""
            yield Ip(space, f"address add {address}/{subnet.prefixlen} dev {name}{nodad}")
        yield Ip(space, f"link set {name} up")
    for subnet, via in routes(lab, member):
        yield Ip(space, f"route add {subnet} via {via}")
    if member in lab.routers:
        yield Sysctl(space, "net.ipv4.ip_forward", "1")
        yield Sysctl(space, "net.ipv6.conf.all.forwarding", "1")
