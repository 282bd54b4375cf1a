"""The core: events in, actions out, the time an argument. It decides what shall be true; others make it true.

Structure    event ─► facts: config, network, lease, leases, underlay, endpoints, learned MTUs
                        └─► wanted goals, in the order of their dependence ─► Agenda ─► Do, Undo
Invariants   Level-triggered: goals are derived anew from all facts after every event, so a lost, doubled or late event
             cannot leave the wrong state. Nothing that works is taken back because the store is away.
             A pod is in the tables only while its device is open; its address outlives every failure until `Detach`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from canal_udp.actions import (
    HOST,
    Action,
    Attach,
    Detach,
    Device,
    DeviceGone,
    Direct,
    DirectSeen,
    Done,
    Event,
    Failed,
    File,
    Goal,
    IPAddress,
    IPInterface,
    IPNetwork,
    LeaseHeld,
    LeasesSeen,
    Link,
    Log,
    MtuLearned,
    MtuSeen,
    NamespaceGone,
    NetworkKnown,
    PolicyKnown,
    Published,
    Release,
    RoutesSeen,
    Sockets,
    StoreSeen,
    Tick,
    UnderlaySeen,
)
from canal_udp.agenda import Agenda
from canal_udp.cni.conflist import CONFIG_NAME, NETWORK, conflist
from canal_udp.config import DaemonConfig, with_network
from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.path_mtu import Path
from canal_udp.control.peers import LearnedMtus, PeerTable, direct_candidates, peer_table, table_routes
from canal_udp.control.store import LeaseSnapshot
from canal_udp.control.subnet_env import SubnetEnv
from canal_udp.encap.forwarding import Forwarding, Route, Vtep, vtep_key
from canal_udp.encap.mtu import MTU_MAX, inner_mtu, overhead
from canal_udp.endpoints import FILE_NAME, Endpoint, dump
from canal_udp.errors import ConfigError
from canal_udp.net import TUNNELS, contains
from canal_udp.netfilter import Rules
from canal_udp.underlay import Underlay

_POD_SYSCTLS = (
    ("net/ipv4/conf/{}/accept_redirects", "0"),
    ("net/ipv6/conf/{}/accept_redirects", "0"),
    ("net/ipv6/conf/{}/accept_ra", "0"),
    ("net/ipv6/conf/{}/autoconf", "0"),
    ("net/ipv6/conf/{}/addr_gen_mode", "1"),  # no link-local address: nothing to solicit or listen for
)
_HOST_SYSCTLS = (*_POD_SYSCTLS, ("net/ipv4/conf/{}/send_redirects", "0"))
_ANYWHERE: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
# without these the host does not route between us and its other interfaces
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


@dataclass(frozen=True, slots=True)
class _Pod:
    """What follows from an endpoint."""

    cause: tuple[Endpoint, int, NetworkConfig]
    device: Device
    link: Link
    routes: tuple[Route, ...]


class Node:
    """This host's part of the overlay."""

    def __init__(self, config: DaemonConfig, mac: bytes, endpoints: tuple[Endpoint, ...]) -> None:
        self.mac = mac
        self.config = config  # with what the network config of the store adds
        self._given = config
        self.network: NetworkConfig | None = None
        self.lease: Lease | None = None
        self.leases: LeaseSnapshot | None = None
        self.underlay: Underlay | None = None
        self.policy: object = None  # what the compiler made; None: nothing yet
        self._governed: frozenset[int] = frozenset()  # endpoints that it knew, by id
        self.endpoints: dict[str, Endpoint] = {one.name: one for one in endpoints}
        self.peers = PeerTable((), ())  # the other nodes, and the leases that are not used with the reason
        self.recursive: frozenset[IPAddress] = frozenset()
        self.gateways: frozenset[IPAddress] = frozenset()  # peers on our own link, with routes of the kernel
        self.published = False  # ever
        self.paths: tuple[Path, ...] = ()  # of the tables in use; another object when they change
        # what is being worked on
        self._agenda = Agenda()
        self._learned = LearnedMtus()
        self._leaving: tuple[Endpoint, ...] = ()
        self._pods: dict[str, _Pod] = {}
        self._remembered: tuple[tuple[Endpoint, ...], str] = (), dump(())
        self._next_id = max((one.id for one in endpoints), default=0) + 1
        self._problems: dict[str, str] = {}

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event in; returns what is to be done about it, in order."""
        return self.handle_all((event,), now)

    def handle_all(self, events: Sequence[Event], now: float) -> list[Action]:
        """Take events in; returns what is to be done about all of them together, in order."""
        logs = [action for event in events for action in self._take(event, now)]
        changed = any(isinstance(event, NetworkKnown | LeaseHeld | LeasesSeen) for event in events)
        if changed and self.network and self.lease and self.leases:
            self.peers = peer_table(self.leases.leases, self.lease, self.network)
        self._learned = self._learned.expire(now)
        actions = [*logs, *self._agenda.settle(self._wanted(), now)]
        if self._leaving:  # the file forgets them when nothing of them is left: a crash in between leaves no device
            actions += [Release(one.name) for one in self._leaving if one.name not in self.endpoints]
            self._leaving = ()
            actions += self._agenda.settle(self._wanted(), now)
        return actions

    def is_due(self, now: float) -> bool:
        """Tell whether a Tick would change anything."""
        return self._agenda.is_due(now) or self._learned.expire(now) is not self._learned

    def is_news(self, event: Event) -> bool:
        """Tell whether an event says anything that was not known."""
        match event:
            case UnderlaySeen(underlay, problem):
                return (underlay, problem) != (self.underlay, self._problems.get("underlay", ""))
            case RoutesSeen(recursive):
                return recursive != self.recursive
            case MtuSeen(address, mtu_bytes):
                return self._learned.confirm(address, mtu_bytes) is not self._learned
        return True

    # facts

    def _take(self, event: Event, now: float) -> Iterator[Action]:
        match event:
            case Tick():
                pass
            case Done(goal):
                self._take_done(goal)
            case Failed(goal, problem):
                if self._agenda.failed(goal, problem, now):
                    yield Log("warning", "goal.failed", (("goal", goal.key), ("reason", problem)))
            case UnderlaySeen(underlay, problem):
                yield from self._take_underlay(underlay, problem)
            case NetworkKnown(network):
                self._take_network(network)
            case LeaseHeld(lease):
                yield from self._take_lease(lease)
            case LeasesSeen(snapshot):
                self.leases = snapshot
            case PolicyKnown(policy, endpoints):
                self.policy, self._governed = policy, endpoints
            case StoreSeen(problem):
                yield from self._note("store", problem)
            case Attach(endpoint):
                self._take_endpoint(endpoint)
            case Detach(name):
                yield from self._drop(name, "endpoint.detached")
            case NamespaceGone(name):
                yield from self._drop(name, "endpoint.namespace_gone")
            case DeviceGone(name):
                for kind in ("link", "device"):
                    self._agenda.lost(f"{kind} {name}")
                yield Log("warning", "device.gone", (("name", name or "host"),))
            case MtuLearned(address, mtu_bytes, told):
                before, self._learned = self._learned, self._learned.learn(address, mtu_bytes, now, told=told)
                if before.mtu_of(address, 0xFFFF) != self._learned.mtu_of(address, 0xFFFF):  # each lost packet says it
                    yield Log("info", "mtu.learned", (("peer", address), ("mtu_bytes", mtu_bytes)))
            case MtuSeen(address, mtu_bytes):
                self._learned = self._learned.confirm(address, mtu_bytes)
                yield Log("info", "mtu.confirmed", (("peer", address), ("mtu_bytes", mtu_bytes)))
            case RoutesSeen(recursive):
                yield from self._take_recursive(recursive)
            case DirectSeen(gateways):
                self.gateways = gateways

    def _take_done(self, goal: Goal) -> None:
        self._agenda.done(goal)
        if isinstance(goal, Device):
            self._agenda.lost(f"link {goal.name}")
            self._agenda.lost("forwarding")  # the port may have another index now
        elif isinstance(goal, Published):
            self.published = True
            self.paths = self._paths(goal.forwarding)

    def _take_underlay(self, underlay: Underlay | None, problem: str) -> Iterator[Action]:
        yield from self._note("underlay", problem)
        if underlay is not None and underlay != self.underlay:
            self.underlay = underlay
            self._learned = self._learned.forget_found()
            addresses = [str(ip) for ip in (underlay.public_ip, underlay.public_ip6) if ip]
            fields = (
                ("iface", underlay.interface),
                ("public_ip", ",".join(addresses)),
                ("mtu_bytes", underlay.mtu_bytes),
            )
            yield Log("info", "underlay.chosen", fields)

    def _take_network(self, network: NetworkConfig) -> None:
        try:
            self.config = with_network(self._given, network)
        except ConfigError as error:
            self._problems["network"] = str(error)
            return
        self._problems.pop("network", None)
        # what this node was told itself goes before what the store says
        self.network = replace(
            network,
            encap=self.config.encap,
            port=self.config.port,
            vni=self.config.vni,
            direct_routing=self.config.direct_routing,
        )

    def _take_lease(self, lease: Lease) -> Iterator[Action]:
        before, self.lease = self.lease, lease
        if before is None or before.key != lease.key:
            yield Log("info", "lease.held", _shown(lease))
        elif before.expires_at != lease.expires_at:
            yield Log("info", "lease.renewed", (("subnet", lease.key), ("expires_at", lease.expires_at)))

    def _take_endpoint(self, endpoint: Endpoint) -> None:
        before = self.endpoints.get(endpoint.name)
        if before is not None:
            self.endpoints[endpoint.name] = replace(endpoint, id=before.id)
            return
        self.endpoints[endpoint.name] = replace(endpoint, id=self._next_id)
        self._next_id += 1

    def _drop(self, name: str, event: str) -> Iterator[Action]:
        endpoint = self.endpoints.pop(name, None)
        if endpoint is not None:
            yield Log("info", event, (("name", name),))
            self._leaving = (*self._leaving, endpoint)

    def _take_recursive(self, recursive: frozenset[IPAddress]) -> Iterator[Action]:
        for address in sorted(recursive - self.recursive, key=str):
            yield Log("error", "peer.recursive", (("peer", address), ("device", self.config.host_ifname)))
        for address in sorted(self.recursive - recursive, key=str):
            yield Log("info", "peer.reachable_again", (("peer", address),))
        self.recursive = recursive

    def _note(self, topic: str, problem: str) -> Iterator[Action]:
        before = self._problems.get(topic, "")
        if problem == before:
            return
        if problem:
            self._problems[topic] = problem
            yield Log("warning", f"{topic}.failed", (("reason", problem),))
        else:
            del self._problems[topic]
            yield Log("info", f"{topic}.recovered")

    # goals

    def _wanted(self) -> Iterator[Goal]:
        """Everything that shall be true, in the order in which one needs the other."""
        yield File(self.config.state_dir / FILE_NAME, self._memory(), 0o600)
        if self.network is None or self.lease is None or self.underlay is None:
            return
        yield from self._sockets(self.underlay)
        try:
            mtu_bytes = self.mtu_bytes
            self._pods = {one.name: self._pod(one, mtu_bytes) for one in self.endpoints.values()}
            forwarding = self._forwarding()
        except ConfigError as error:
            self._problems["mtu"] = str(error)
            return
        self._problems.pop("mtu", None)
        host = Device(HOST, self.config.host_ifname, None, mtu_bytes, 0)
        pods = self._pods.values()
        yield host
        yield from (pod.device for pod in pods)
        if self._agenda.is_true(host):
            yield self._host_link(host)
        yield from (pod.link for pod in pods if self._agenda.is_true(pod.device))
        candidates = direct_candidates(self.peers, self.network)
        if candidates:
            yield Direct(candidates)
        yield wanted_rules(self.config, self.network, self.lease)
        # not before the peers are known: their pods would be called unreachable
        if self._agenda.get(f"device {HOST}") is not None and self.leases is not None:
            yield Published(forwarding, self.policy, self._closed())
        if self.published:
            yield File(self.config.subnet_file, self._subnet_env().text(), 0o644)
            if self.config.cni_conf_dir is not None:
                text = conflist(NETWORK, self.config.cni_chain)
                yield File(self.config.cni_conf_dir / CONFIG_NAME, text, 0o644)

    def _closed(self) -> frozenset[str]:
        """Connected endpoints that the policy does not know."""
        unknown = (one.name for one in self.endpoints.values() if one.id not in self._governed)
        return frozenset(name for name in unknown if self._agenda.get(f"device {name}") is not None)

    @property
    def mtu_bytes(self) -> int:
        """MTU of every device of ours: what the underlay leaves after the encapsulation.

        Raises   ConfigError if that is too little for any packet.
        """
        assert self.underlay is not None
        family = 4 if self.underlay.public_ip is not None else 6
        return inner_mtu(self.config.encap, 4 if family == 4 else 6, self._outer_mtu_bytes)

    @property
    def mtu(self) -> int | None:
        """As `mtu_bytes`; None while there is no underlay that carries a packet."""
        try:
            return self.mtu_bytes if self.underlay is not None else None
        except ConfigError:  # among the reasons
            return None

    def _sockets(self, underlay: Underlay) -> Iterator[Sockets]:
        """Our own encapsulation's to receive, and those of peers that speak another."""
        assert self.network is not None
        spoken = {self.config.encap, *(peer.encap for peer in self.peers.peers)}
        for encap in (one for one in TUNNELS if one in spoken):
            for address in (underlay.bind, underlay.bind6):
                if address is not None:
                    yield Sockets(encap, address, self.network.port_of(encap))

    def _memory(self) -> str:
        """The text that the next daemon reads; made anew only when endpoints came, changed or went."""
        leaving = tuple(one for one in self._leaving if one.name not in self.endpoints)
        remembered = (*self.endpoints.values(), *leaving)
        if remembered != self._remembered[0]:
            self._remembered = remembered, dump(remembered)
        return self._remembered[1]

    def _pod(self, endpoint: Endpoint, mtu_bytes: int) -> _Pod:
        """What follows from an endpoint; the same objects until something changes, since there may be hundreds."""
        assert self.network is not None
        known = self._pods.get(endpoint.name)
        if known is None or known.cause != (endpoint, mtu_bytes, self.network):
            return _pod(endpoint, mtu_bytes, self.network)
        return known

    def _host_link(self, device: Device) -> Link:
        assert self.network is not None and self.lease is not None
        forwarding = [_FORWARDING[prefix.version] for prefix in self.lease.prefixes]
        return Link(
            name=HOST,
            ifname=device.ifname,
            netns=None,
            mtu_bytes=device.mtu_bytes,
            addresses=tuple(_alone(prefix.network_address) for prefix in self.lease.prefixes),
            routes=self.network.networks,
            within=self.network.networks,
            sysctls=(*_sysctls(_HOST_SYSCTLS, device.ifname), *((path, "1") for path in forwarding)),
        )

    @property
    def vteps(self) -> tuple[Vtep, ...]:
        """The VTEPs of all peers, with what each path carries; none while one carries nothing."""
        try:
            return self._layout()[0]
        except ConfigError:  # among the reasons
            return ()

    def _paths(self, forwarding: Forwarding) -> tuple[Path, ...]:
        """How each VTEP is asked what its path carries: the first address of its subnet is the peer's own."""
        device = self._agenda.get(f"device {HOST}")  # nothing larger than its MTU is ever sent
        limit = device.mtu_bytes if isinstance(device, Device) else MTU_MAX
        targets = {route.key: route.prefix.network_address for route in reversed(forwarding.routes)}
        return tuple(Path(vtep.addr, targets[vtep_key(vtep)], min(vtep.mtu_bytes, limit)) for vtep in forwarding.vteps)

    def overhead_to(self, address: IPAddress) -> int:
        """Bytes between the inner and the outer packet on the way to a VTEP."""
        encap = next((vtep.encap for vtep in self.vteps if vtep.addr == address), self.config.encap)
        return overhead(encap, 4 if address.version == 4 else 6)

    @property
    def learned(self) -> frozenset[IPAddress]:
        """Peers whose path is known to be narrower than our own link."""
        limit = self._outer_mtu_bytes
        return frozenset(one for one in self._learned.by_addr if self._learned.mtu_of(one, limit) < limit)

    @property
    def told(self) -> frozenset[IPAddress]:
        """Those of them of which the kernel told us, and may say something else later."""
        return frozenset(address for address, learned in self._learned.by_addr.items() if learned.told)

    @property
    def _outer_mtu_bytes(self) -> int:
        """Largest outer packet that our own link carries, or the user wants."""
        return self.config.mtu or (self.underlay.mtu_bytes if self.underlay is not None else 0)

    def _layout(self) -> tuple[tuple[Vtep, ...], tuple[Route, ...]]:
        if self.network is None or self.underlay is None:
            return (), ()
        return table_routes(self.peers, self.network, self._outer_mtu_bytes, self._learned, self.gateways)

    def _forwarding(self) -> Forwarding:
        """The tables that follow from everything known; the generation is given when they are published."""
        assert self.network is not None and self.lease is not None
        vteps, vtep_routes = self._layout()
        lost = {vtep_key(vtep) for vtep in vteps if vtep.addr in self.recursive}
        routes: dict[IPNetwork, Route] = {}
        for route in (*self._local_routes(), *(one for one in vtep_routes if one.key not in lost)):
            routes.setdefault(route.prefix, route)
        return Forwarding(
            generation=0,
            router4=self.lease.subnet.network_address if self.lease.subnet else None,
            router6=self.lease.subnet6.network_address if self.lease.subnet6 else None,
            mac=self.mac,
            vni=self.network.vni,
            mss_clamp=True,
            vteps=tuple(vtep for vtep in vteps if vtep_key(vtep) not in lost),
            routes=tuple(routes.values()),
        )

    def _local_routes(self) -> Iterator[Route]:
        """Pods, this node's address and subnet (pods behind a bridge), nobody's part of the overlay, and the world."""
        assert self.network is not None and self.lease is not None
        for one in self.endpoints.values():
            if self._agenda.get(f"device {one.name}") is not None:
                yield from self._pods[one.name].routes
        for subnet in self.lease.prefixes:
            yield Route(_alone(subnet.network_address).network, "host", "", local=True)
            yield Route(subnet, "host", "", local=True)
        for network in self.network.networks:
            yield Route(network, "reject", "", local=False)
        for anywhere in _ANYWHERE.values():
            yield Route(anywhere, "host", "", local=False)

    def _subnet_env(self) -> SubnetEnv:
        assert self.network is not None and self.lease is not None
        return SubnetEnv(
            self.network.network,
            self.lease.subnet,
            self.network.network6,
            self.lease.subnet6,
            self.mtu_bytes,
            self.config.ip_masq,
        )

    # what others may know

    @property
    def own_addresses(self) -> frozenset[IPAddress]:
        """Where this host's own packets come from: the underlay's addresses and those of its device in the overlay."""
        found = [self.underlay.public_ip, self.underlay.public_ip6] if self.underlay else []
        found += [prefix.network_address for prefix in self.lease.prefixes] if self.lease else []
        return frozenset(address for address in found if address is not None)

    @property
    def state(self) -> str:
        """ "starting" until the first tables are in use; then "ready", or "degraded" while there are reasons."""
        if not self.published:
            return "starting"
        return "degraded" if self.reasons else "ready"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not as it should be, for people."""
        return tuple(problem for _, problem in self.complaints)

    @property
    def complaints(self) -> tuple[tuple[str, str], ...]:
        """The same, each with what it is about."""
        found = [*sorted(self._problems.items())]
        found += [("goals", problem) for problem in self._agenda.problems]
        found += [
            ("peers", f"peer {ip}: its underlay route leads into {self.config.host_ifname}")
            for ip in sorted(self.recursive, key=str)
        ]
        found += [
            ("peers", f"lease {conflict.lease.key} is not used: {conflict.problem}")
            for conflict in self.peers.conflicts
        ]
        found += [
            ("peers", f"peer {subnet} by {address}: it is not on our own link, which host-gw needs")
            for subnet, address in self._out_of_reach()
        ]
        found += [
            ("endpoints", f"{one.name}: its address is outside this node's subnet; attach it anew")
            for one in self._strangers()
        ]
        if self.lease is None:
            found.append(("lease", "no lease yet"))
        return tuple(found)

    @property
    def announced(self) -> bool:
        """Tell whether subnet.env is written, which is the last that others wait for."""
        return self.published and self._agenda.get(f"file {self.config.subnet_file}") is not None

    def _out_of_reach(self) -> list[tuple[IPNetwork, IPAddress]]:
        peers = (peer for peer in self.peers.peers if peer.encap == "host-gw")
        targets = (target for peer in peers for target in peer.targets())
        return [(subnet, address) for subnet, address, _ in targets if address not in self.gateways]

    def _strangers(self) -> list[Endpoint]:
        if self.lease is None:
            return []
        subnets = self.lease.prefixes
        return [
            one
            for one in self.endpoints.values()
            if not all(any(contains(net, ip) for net in subnets) for ip in one.ips)
        ]

    def problem_of(self, name: str) -> str:
        """Why an endpoint is not connected; empty if it is."""
        for kind in ("device", "link"):
            if self._agenda.problem(f"{kind} {name}"):
                return self._agenda.problem(f"{kind} {name}")
        if self._agenda.get(f"link {name}") is None:
            return "not connected yet"
        return self._agenda.problem("forwarding")

    def link_of(self, name: str) -> Link | None:
        """What an endpoint's interface should be like, once it is there."""
        found = self._agenda.get(f"link {name}")
        return found if isinstance(found, Link) else None

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Everything that is true now because of us, in the order in which it became so."""
        return self._agenda.true


def wanted_rules(config: DaemonConfig, network: NetworkConfig, lease: Lease) -> Rules:
    """The netfilter rules that this node needs; none are a wish, too: an earlier daemon may have left some."""
    wish = config.netfilter
    forward = config.ip_masq if wish.forward is None else wish.forward
    whole = {one.version: one for one in network.networks}
    pairs = tuple((whole[one.version], one) for one in lease.prefixes if one.version in whole)
    return Rules(wish.style, pairs, config.ip_masq, forward, wish.random, wish.resync_s)


def _pod(endpoint: Endpoint, mtu_bytes: int, network: NetworkConfig) -> _Pod:
    device = Device(endpoint.name, endpoint.ifname, endpoint.netns, mtu_bytes, endpoint.id)
    ips = endpoint.ips
    link = Link(
        name=device.name,
        ifname=device.ifname,
        netns=device.netns,
        mtu_bytes=device.mtu_bytes,
        addresses=tuple(_alone(ip) for ip in ips),
        routes=tuple(_ANYWHERE[version] for version in sorted({ip.version for ip in ips})),
        within=network.networks,
        sysctls=_sysctls(_POD_SYSCTLS, device.ifname),
        loopback_up=True,
    )
    routes = tuple(Route(_alone(ip).network, "pod", endpoint.name, local=True) for ip in ips)
    return _Pod((endpoint, mtu_bytes, network), device, link, routes)


def _alone(address: IPAddress) -> IPInterface:
    """The address as an interface has it: /32 or /128."""
    return IPv4Interface(address) if isinstance(address, IPv4Address) else IPv6Interface(address)


def _shown(lease: Lease) -> tuple[tuple[str, object], ...]:
    return (
        ("subnet", lease.subnet or ""),
        ("subnet6", lease.subnet6 or ""),
        ("public_ip", lease.public_ip or lease.public_ip6),
        ("expires_at", lease.expires_at),
        ("new", lease.revision == lease.created),
    )


def _sysctls(templates: tuple[tuple[str, str], ...], ifname: str) -> tuple[tuple[str, str], ...]:
    return tuple((path.format(ifname), value) for path, value in templates)
