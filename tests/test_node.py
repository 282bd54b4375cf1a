"""The core: every event leads to the goals that follow from all facts, whatever the order in which they came."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from canal_udp.actions import (
    HOST,
    Attach,
    Detach,
    Device,
    DeviceGone,
    Do,
    Done,
    Event,
    Failed,
    File,
    Goal,
    LeaseHeld,
    LeasesSeen,
    Link,
    Log,
    MtuLearned,
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
    Undo,
    together,
)
from canal_udp.config import DaemonConfig
from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.store import LeaseSnapshot
from canal_udp.encap.forwarding import Forwarding
from canal_udp.endpoints import Endpoint
from canal_udp.node import Node
from canal_udp.underlay import Underlay

MAC = bytes.fromhex("020000000001")
CONFIG = DaemonConfig(
    encap="vxlan", state_dir=Path("/s"), subnet_file=Path("/r/subnet.env"), origins={"encap": "--encap"}
)
NETWORK = NetworkConfig.make(IPv4Network("10.244.0.0/16"), None, "vxlan")
OWN = Lease(IPv4Network("10.244.1.0/24"), None, IPv4Address("192.0.2.1"), encap="vxlan", vtep_mac=MAC, created=1)
PEER = Lease(
    IPv4Network("10.244.2.0/24"),
    None,
    IPv4Address("192.0.2.2"),
    encap="vxlan",
    vtep_mac=bytes.fromhex("020000000002"),
    created=2,
)
UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), None, IPv4Address("192.0.2.1"), None)
POD = Endpoint("default/a", "/run/netns/a", "boot/1", "eth0", (IPv4Address("10.244.1.2"),))
ALONE = LeasesSeen(LeaseSnapshot(2, ()))
START = (NetworkKnown(NETWORK), UnderlaySeen(UNDERLAY), LeaseHeld(OWN), LeasesSeen(LeaseSnapshot(2, (OWN, PEER))))


class World:
    """Carries actions out in a dictionary, as the daemon would on a host."""

    def __init__(self, config: DaemonConfig = CONFIG, endpoints: tuple[Endpoint, ...] = ()) -> None:
        self.node = Node(config, MAC, endpoints)
        self.now = 100.0
        self.true: dict[str, Goal] = {}
        self.broken: dict[str, str] = {}  # goal key -> problem
        self.released: list[str] = []
        self.logs: list[str] = []
        self.history: list[str] = []

    def tell(self, *events: Event) -> World:
        queue = list(events)
        while queue:
            for action in self.node.handle(queue.pop(0), self.now):
                match action:
                    case Do(goal) if goal.key in self.broken:
                        queue.append(Failed(goal, self.broken[goal.key]))
                    case Do(goal):
                        self.true[goal.key] = goal
                        self.history.append(f"+{goal.key}")
                        queue.append(Done(goal))
                    case Undo(goal):
                        self.true.pop(goal.key, None)
                        self.history.append(f"-{goal.key}")
                    case Release(name):
                        self.released.append(name)
                    case Log(level, event, _):
                        self.logs.append(f"{level} {event}")
        return self

    def tick(self, seconds: float) -> World:
        self.now += seconds
        return self.tell(Tick()) if self.node.is_due(self.now) else self

    @property
    def forwarding(self) -> Forwarding:
        goal = self.true["forwarding"]
        assert isinstance(goal, Published)
        return goal.forwarding

    def routes(self) -> dict[str, str]:
        return {
            str(route.prefix): f"{route.kind} {route.key}".strip() + ("!" if route.local else "")
            for route in self.forwarding.routes
        }

    def link(self, name: str) -> Link:
        goal = self.true[f"link {name}"]
        assert isinstance(goal, Link)
        return goal


@pytest.fixture
def world() -> World:
    return World().tell(*START)


# ---- from facts to goals ---------------------------------------------------------------------------------------------


def test_nothing_happens_before_everything_is_known() -> None:
    for count in range(3):
        for some in itertools.combinations(START[:3], count):
            world = World().tell(Tick(), *some)
            assert set(world.true) == {"file /s/endpoints.json"}
            assert world.node.state == "starting"


def test_no_peer_is_called_unreachable_before_all_are_known() -> None:
    world = World().tell(*START[:-1])
    assert "device " in world.true and "forwarding" not in world.true
    assert world.node.state == "starting"
    assert "10.244.2.0/24" in world.tell(START[-1]).routes()


def test_the_order_of_facts_does_not_matter(world: World) -> None:
    for events in itertools.permutations((*START, Attach(POD))):
        other = World().tell(*events)
        assert other.true == World().tell(*START, Attach(POD)).true
    assert world.node.state == "ready"


def test_routes(world: World) -> None:
    world.tell(Attach(POD))
    assert world.routes() == {
        "10.244.1.2/32": "pod default/a!",
        "10.244.1.0/32": "host!",
        "10.244.1.0/24": "host!",
        "10.244.0.0/16": "reject",
        "10.244.2.0/24": "vtep 192.0.2.2/vxlan",
        "0.0.0.0/0": "host",
        "::/0": "host",
    }
    assert [(vtep.addr, vtep.port, vtep.mtu_bytes, vtep.mac) for vtep in world.forwarding.vteps] == [
        (PEER.public_ip, 8472, 1450, PEER.vtep_mac)
    ]
    assert (world.forwarding.router4, world.forwarding.router6) == (IPv4Address("10.244.1.0"), None)


def test_host_link(world: World) -> None:
    link = world.link(HOST)
    assert (link.ifname, link.netns, link.mtu_bytes) == ("canal0", None, 1450)
    assert link.addresses == (ip_interface("10.244.1.0/32"),)
    assert link.routes == link.within == (ip_network("10.244.0.0/16"),)
    assert ("net/ipv4/ip_forward", "1") in link.sysctls
    assert ("net/ipv6/conf/canal0/accept_ra", "0") in link.sysctls
    assert not any("all/forwarding" in path for path, _ in link.sysctls)


def test_pod_link(world: World) -> None:
    link = world.tell(Attach(POD)).link("default/a")
    assert (link.ifname, link.netns, link.mtu_bytes) == ("eth0", "/run/netns/a", 1450)
    assert link.addresses == (ip_interface("10.244.1.2/32"),)
    assert link.routes == (ip_network("0.0.0.0/0"),)
    assert link.loopback_up
    assert ("net/ipv6/conf/eth0/accept_ra", "0") in link.sysctls
    assert not any(path.startswith("net/ipv4/ip_") for path, _ in link.sysctls)


def test_dual_stack() -> None:
    network = NetworkConfig.make(IPv4Network("10.244.0.0/16"), IPv6Network("fd00::/48"), "vxlan")
    own = replace(OWN, subnet6=IPv6Network("fd00:0:0:1::/64"), public_ip6=IPv6Address("2001:db8::1"))
    underlay = replace(UNDERLAY, bind6=IPv6Address("2001:db8::1"), public_ip6=IPv6Address("2001:db8::1"))
    pod = replace(POD, ips=(*POD.ips, IPv6Address("fd00:0:0:1::2")))
    world = World().tell(NetworkKnown(network), UnderlaySeen(underlay), LeaseHeld(own), Attach(pod), ALONE)
    assert world.link(HOST).addresses == (ip_interface("10.244.1.0/32"), ip_interface("fd00:0:0:1::/128"))
    assert ("net/ipv6/conf/all/forwarding", "1") in world.link(HOST).sysctls
    assert world.link("default/a").routes == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert world.routes()["fd00:0:0:1::2/128"] == "pod default/a!"
    assert world.routes()["fd00::/48"] == "reject"
    assert {key for key in world.true if key.startswith("sockets")} == {"sockets vxlan4", "sockets vxlan6"}
    env = world.true["file /r/subnet.env"]
    assert isinstance(env, File)
    assert "FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64" in env.text


@pytest.mark.parametrize(
    ("config", "network", "underlay", "mtu"),
    [
        pytest.param(CONFIG, NETWORK, UNDERLAY, 1450, id="vxlan over IPv4"),
        pytest.param(
            replace(CONFIG, encap="udp"), replace(NETWORK, encap="udp"), UNDERLAY, 1472, id="flannel's udp over IPv4"
        ),
        pytest.param(
            CONFIG,
            NETWORK,
            Underlay("eth0", 1500, None, IPv6Address("2001:db8::1"), None, IPv6Address("2001:db8::1")),
            1430,
            id="vxlan over IPv6",
        ),
        pytest.param(CONFIG, replace(NETWORK, mtu_bytes=1400), UNDERLAY, 1350, id="the outer MTU of the store"),
        pytest.param(
            replace(CONFIG, mtu=1300, origins={"mtu": "--mtu"}),
            replace(NETWORK, mtu_bytes=1400),
            UNDERLAY,
            1250,
            id="the flag before the store",
        ),
    ],
)
def test_mtu(config: DaemonConfig, network: NetworkConfig, underlay: Underlay, mtu: int) -> None:
    world = World(config).tell(NetworkKnown(network), UnderlaySeen(underlay), LeaseHeld(OWN), Attach(POD), ALONE)
    assert world.link(HOST).mtu_bytes == world.link("default/a").mtu_bytes == mtu
    env = world.true["file /r/subnet.env"]
    assert isinstance(env, File)
    assert f"FLANNEL_MTU={mtu}\n" in env.text


def test_an_underlay_too_narrow_is_a_reason_not_a_crash(world: World) -> None:
    world.tell(UnderlaySeen(replace(UNDERLAY, mtu_bytes=100)))
    assert any("100 bytes" in reason for reason in world.node.reasons)
    assert world.tell(UnderlaySeen(UNDERLAY)).node.reasons == ()


def test_sockets_of_a_peer_that_speaks_another_encapsulation(world: World) -> None:
    other = replace(PEER, encap="udp", vtep_mac=None)
    world.tell(LeasesSeen(LeaseSnapshot(3, (OWN, other))))
    assert world.true["sockets udp4"] == Sockets("udp", IPv4Address("192.0.2.1"), 8285)
    world.tell(LeasesSeen(LeaseSnapshot(4, (OWN, PEER))))
    assert "sockets udp4" not in world.true


# ---- endpoints -------------------------------------------------------------------------------------------------------


def test_a_pod_is_routed_only_while_its_device_is_open(world: World) -> None:
    world.broken["device default/a"] = "no such namespace"
    world.tell(Attach(POD))
    assert "10.244.1.2/32" not in world.routes()
    assert world.node.problem_of("default/a") == "no such namespace"
    assert world.node.state == "degraded"
    del world.broken["device default/a"]
    world.tick(2.0)
    assert world.routes()["10.244.1.2/32"] == "pod default/a!"
    assert world.node.problem_of("default/a") == ""
    assert world.node.state == "ready"


def test_an_endpoint_is_saved_before_anything_is_made_for_it(world: World) -> None:
    world.history.clear()
    world.tell(Attach(POD))
    assert world.history == [
        "+file /s/endpoints.json",
        "+device default/a",
        "+link default/a",
        "+forwarding",
    ]


def test_detach_takes_the_route_before_the_device(world: World) -> None:
    world.tell(Attach(POD))
    world.history.clear()
    world.tell(Detach("default/a"))
    assert world.history == ["+forwarding", "-link default/a", "-device default/a", "+file /s/endpoints.json"]
    assert world.released == ["default/a"]
    assert "10.244.1.2/32" not in world.routes()


def test_policies_of_an_earlier_pod_are_not_the_next_one_s(world: World) -> None:
    """The same name, attached anew: no traffic until what was compiled means this one."""
    policy, later = object(), object()

    def closed() -> frozenset[str]:
        goal = world.true["forwarding"]
        assert isinstance(goal, Published)
        return goal.closed

    world.tell(Attach(POD))
    assert closed() == {"default/a"}
    world.tell(PolicyKnown(policy, frozenset((world.node.endpoints["default/a"].id,))))
    assert closed() == frozenset()
    world.tell(Detach("default/a"), Attach(replace(POD, netns_id="boot/2")))
    assert closed() == {"default/a"}
    world.tell(PolicyKnown(later, frozenset((world.node.endpoints["default/a"].id,))))
    assert closed() == frozenset()


def test_attach_again_changes_nothing(world: World) -> None:
    world.tell(Attach(POD))
    world.history.clear()
    world.tell(Attach(POD), Detach("default/unknown"))
    assert world.history == []
    assert world.released == []


def test_endpoints_of_an_earlier_run_come_back() -> None:
    world = World(endpoints=(replace(POD, id=7),)).tell(*START, Attach(replace(POD, name="default/b")))
    assert world.true["device default/a"] == Device("default/a", "eth0", "/run/netns/a", 1450, 7)
    assert world.node.endpoints["default/b"].id == 8


def test_a_namespace_that_is_gone_frees_the_address(world: World) -> None:
    world.tell(Attach(POD), NamespaceGone("default/a"))
    assert world.released == ["default/a"]
    assert "device default/a" not in world.true


@pytest.mark.parametrize("name", [HOST, "default/a"])
def test_a_device_that_someone_deleted_is_made_again(world: World, name: str) -> None:
    world.tell(Attach(POD))
    for kind in ("device", "link"):
        del world.true[f"{kind} {name}"]
    world.history.clear()
    world.tell(DeviceGone(name))
    assert world.history[0] == f"+device {name}"
    assert f"link {name}" in world.true
    assert "+forwarding" in world.history  # the port has another index


def test_an_endpoint_outside_the_subnet_is_reported(world: World) -> None:
    world.tell(Attach(replace(POD, ips=(IPv4Address("10.244.9.9"),))))
    assert any("default/a" in reason for reason in world.node.reasons)


# ---- peers, store, time ----------------------------------------------------------------------------------------------


def test_a_recursive_peer_is_left_out_until_its_route_is_right(world: World) -> None:
    world.tell(RoutesSeen(frozenset({ip_address("192.0.2.2")})))
    assert "10.244.2.0/24" not in world.routes()
    assert world.forwarding.vteps == ()
    assert world.node.reasons == ("peer 192.0.2.2: its underlay route leads into canal0",)
    assert "error peer.recursive" in world.logs
    world.tell(RoutesSeen(frozenset()))
    assert "10.244.2.0/24" in world.routes()
    assert world.node.reasons == ()


def test_a_conflicting_lease_is_a_reason(world: World) -> None:
    thief = replace(PEER, subnet=IPv4Network("10.244.2.0/25"), public_ip=IPv4Address("192.0.2.66"), created=9)
    world.tell(LeasesSeen(LeaseSnapshot(9, (OWN, PEER, thief))))
    assert world.routes()["10.244.2.0/24"] == "vtep 192.0.2.2/vxlan"
    assert any("10.244.2.0-25" in reason for reason in world.node.reasons)


def test_a_learned_mtu_narrows_one_peer_and_is_forgotten(world: World) -> None:
    world.tell(MtuLearned(ip_address("192.0.2.2"), 1400))
    assert [vtep.mtu_bytes for vtep in world.forwarding.vteps] == [1350]
    assert world.link(HOST).mtu_bytes == 1450
    assert [vtep.mtu_bytes for vtep in world.tick(601.0).forwarding.vteps] == [1450]


def test_what_is_as_wide_as_our_link_is_not_learned(world: World) -> None:
    world.tell(MtuLearned(ip_address("192.0.2.2"), 1400), UnderlaySeen(replace(UNDERLAY, mtu_bytes=1400)))
    assert world.node.learned == frozenset()
    assert world.node.told == {ip_address("192.0.2.2")}


def test_a_forged_mtu_narrows_to_the_least_that_every_path_carries(world: World) -> None:
    world.tell(MtuLearned(ip_address("192.0.2.2"), 68))
    assert [vtep.mtu_bytes for vtep in world.forwarding.vteps] == [576 - 50]


def test_nothing_is_taken_back_while_the_store_is_away(world: World) -> None:
    before = dict(world.true)
    world.tell(StoreSeen("connection refused")).tick(86400.0)
    assert world.true == before
    assert world.node.reasons == ("connection refused",)
    assert world.node.state == "degraded"
    world.tell(StoreSeen())
    assert world.node.state == "ready"


def test_a_problem_is_logged_once(world: World) -> None:
    world.tell(StoreSeen("down"), StoreSeen("down"), StoreSeen(), StoreSeen())
    assert [line for line in world.logs if "store" in line] == ["warning store.failed", "info store.recovered"]


def test_another_lease_moves_everything(world: World) -> None:
    world.tell(LeaseHeld(replace(OWN, subnet=IPv4Network("10.244.7.0/24"), created=5)))
    assert world.link(HOST).addresses == (ip_interface("10.244.7.0/32"),)
    assert world.routes()["10.244.7.0/24"] == "host!"
    assert "10.244.1.0/24" not in world.routes()
    env = world.true["file /r/subnet.env"]
    assert isinstance(env, File)
    assert "FLANNEL_SUBNET=10.244.7.1/24" in env.text


def test_a_renewal_changes_nothing(world: World) -> None:
    world.history.clear()
    renewed = replace(OWN, revision=9, expires_at=5e9)
    world.tell(LeaseHeld(renewed), LeasesSeen(LeaseSnapshot(9, (renewed, replace(PEER, revision=8)))))
    assert world.history == []


def test_another_underlay_address_moves_the_sockets(world: World) -> None:
    world.tell(UnderlaySeen(replace(UNDERLAY, bind=IPv4Address("192.0.2.111"), public_ip=IPv4Address("192.0.2.111"))))
    assert world.true["sockets vxlan4"] == Sockets("vxlan", IPv4Address("192.0.2.111"), 8472)


def test_a_lost_underlay_keeps_the_last_one(world: World) -> None:
    before = dict(world.true)
    world.tell(UnderlaySeen(None, "there is no default route"))
    assert world.true == before
    assert world.node.state == "degraded"


def test_what_is_known_already_is_no_news(world: World) -> None:
    other = replace(UNDERLAY, mtu_bytes=9000)
    peers = frozenset({ip_address("192.0.2.2")})
    asked = (UnderlaySeen(UNDERLAY), UnderlaySeen(other), UnderlaySeen(None, "x"), RoutesSeen(frozenset()),
             RoutesSeen(peers), DeviceGone(HOST))  # fmt: skip
    assert [world.node.is_news(event) for event in asked] == [False, True, True, False, True, True]
    world.tell(UnderlaySeen(other), RoutesSeen(peers))
    assert [world.node.is_news(event) for event in asked] == [True, False, True, True, False, True]
    world.tell(UnderlaySeen(None, "x"))
    assert world.node.is_news(UnderlaySeen(other))  # found again


def test_nothing_is_due_while_all_is_well(world: World) -> None:
    assert not world.node.is_due(1e9)
    world.broken["device "] = "busy"
    world.tell(DeviceGone(HOST))
    assert [world.node.is_due(world.now + later) for later in (0.0, 0.5)] == [False, True]


def test_an_unknown_backend_is_a_reason() -> None:
    config = replace(CONFIG, encap="udp", origins={})
    world = World(config).tell(NetworkKnown(replace(NETWORK, encap="ipsec")), UnderlaySeen(UNDERLAY), LeaseHeld(OWN))
    assert any("ipsec" in reason for reason in world.node.reasons)
    assert world.node.state == "starting"


def test_any_history_ends_as_a_fresh_start_would() -> None:
    """Random events, failures and losses; once they stop, the state is what the facts alone lead to."""
    pods = [
        replace(POD, name=f"default/{n}", netns=f"/n/{n}", ips=(IPv4Address(f"10.244.1.{n + 2}"),)) for n in range(4)
    ]
    for seed in range(60):
        rng = random.Random(seed)
        world = World().tell(*START)
        for _ in range(40):
            pod = rng.choice(pods)
            keys = ["forwarding", "device ", "link ", f"device {pod.name}", f"link {pod.name}", "sockets vxlan4"]
            world.broken = {key: "bad luck" for key in keys if rng.random() < 0.15}
            event = rng.choice(
                [
                    Attach(pod),
                    Detach(pod.name),
                    DeviceGone(rng.choice([HOST, pod.name])),
                    NamespaceGone(pod.name),
                    LeasesSeen(LeaseSnapshot(3, rng.choice([(OWN, PEER), (OWN,)]))),
                    RoutesSeen(frozenset(rng.choice([(), (ip_address("192.0.2.2"),)]))),
                    StoreSeen(rng.choice(["", "down"])),
                    Tick(),
                ]
            )
            world.tell(event)
            world.now += rng.random() * 5
        world.broken = {}
        world.tell(RoutesSeen(frozenset()), LeasesSeen(LeaseSnapshot(4, (OWN, PEER))), StoreSeen())
        for _ in range(3):
            world.tick(10.0)
        left = [pod for pod in pods if pod.name in world.node.endpoints]
        fresh = World(endpoints=tuple(world.node.endpoints.values())).tell(*START)
        assert sorted(world.true) == sorted(fresh.true), f"seed {seed}"
        assert set(world.forwarding.routes) == set(fresh.forwarding.routes), f"seed {seed}"
        assert {f"device {pod.name}" for pod in left} <= set(world.true), f"seed {seed}"
        assert world.node.state == "ready", f"seed {seed}: {world.node.reasons}"


def pod(number: int) -> Endpoint:
    ip = IPv4Address("10.244.1.2") + number
    return Endpoint(f"default/{number}", f"/run/netns/{number}", f"boot/{number}", "eth0", (ip,))


@pytest.mark.parametrize("seed", range(20))
def test_many_at_once_end_as_one_after_the_other(seed: int) -> None:
    rng = random.Random(seed)
    alone, together_ = World().tell(*START), World().tell(*START)
    for _ in range(10):
        events: list[Event] = [
            Attach(pod(rng.randrange(5))) if rng.random() < 0.6 else Detach(f"default/{rng.randrange(5)}")
            for _ in range(rng.randrange(1, 6))
        ]
        alone.tell(*events)
        following = list(events)
        while following:
            actions = together_.node.handle_all(following, together_.now)
            following = [Done(action.goal) for action in actions if isinstance(action, Do)]
            for action in actions:
                if isinstance(action, Do):
                    together_.true[action.goal.key] = action.goal
                elif isinstance(action, Undo):
                    together_.true.pop(action.goal.key, None)
        same = [
            {key: replace(goal, id=0) if isinstance(goal, Device) else goal for key, goal in world.true.items()}
            for world in (alone, together_)
        ]
        assert same[0] == same[1], f"seed {seed}"


def test_a_name_that_goes_and_comes_at_once_keeps_its_address() -> None:
    world = World().tell(*START, Attach(POD))
    again = replace(POD, netns="/run/netns/b", netns_id="boot/2")
    actions = world.node.handle_all([NamespaceGone(POD.name), Attach(again)], world.now)
    assert not [action for action in actions if isinstance(action, Release)]
    assert world.node.endpoints[POD.name].netns == "/run/netns/b"


def test_what_is_done_together_is_alike() -> None:
    file, device = File(Path("/a"), "", 0o600), Device("a", "eth0", None, 1450, 1)
    link = Link("a", "eth0", None, 1450, (), ())
    actions = [Log("info", "x"), Log("info", "y"), Do(file), Do(device), Do(device), Do(link), Undo(link), Undo(device)]
    assert [len(group) for group in together(actions)] == [1, 1, 1, 2, 1, 1, 1]
    assert [action for group in together(actions) for action in group] == actions
