"""A lab's names, addresses, routes and steps."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from canal_udp.lab import foreign, plan
from canal_udp.lab.model import Lab, parse_lab, small_lab
from canal_udp.lab.steps import Ip, Netns, Offloads, Sysctl

THREE_NETWORKS = """
networks:
  left: {subnets: [10.0.1.0/24, "fd00:1::/64"]}
  middle: {subnets: [10.0.2.0/24], mtu: 1400}
  right: {subnets: [10.0.3.0/24, "fd00:3::/64"], profile: native}
routers:
  r1: {networks: [left, middle]}
  r2: {networks: [middle, right]}
nodes:
  a: {network: left, pods: 1}
  b: {network: right, pods: 1}
"""


def lab_of(text: str, name: str = "t") -> Lab:
    return parse_lab(text, "lab.yaml", name)


SMALL = lab_of(small_lab(3, 2))


def test_namespaces_are_named_after_the_lab() -> None:
    names = ["net-core", "a", "b", "c", "a1", "a2", "b1", "b2", "c1", "c2"]
    assert plan.namespaces(SMALL) == [f"lab-{name}" for name in names]


def test_a_direct_network_has_no_namespace_of_its_own() -> None:
    lab = lab_of("networks: {core: {joint: direct}}\nnodes: {a: {}, b: {}}")
    assert plan.namespaces(lab) == ["t-a", "t-b"]
    assert "t-net-core" not in "\n".join(step.shell() for step in plan.wiring(lab))


@pytest.mark.parametrize("member", ["a", "node-twelve", "node-thirteen", "a" * 30, "a" * 29 + "b"])
def test_interface_names_fit(member: str) -> None:
    assert len(plan.port_name(member)) <= plan.IFNAME_MAX
    assert plan.port_name(member).startswith("to-")


def test_long_names_do_not_meet() -> None:
    names = {plan.port_name("a" * 28 + f"{number:02}") for number in range(100)}
    assert len(names) == 100


def test_addresses_are_the_same_every_time() -> None:
    lab = lab_of(THREE_NETWORKS)
    assert plan.addresses(lab, "a", "left") == (ip_address("10.0.1.1"), ip_address("fd00:1::1"))
    assert plan.addresses(lab, "r1", "left") == (ip_address("10.0.1.254"), ip_address("fd00:1::fe"))
    assert plan.addresses(lab, "r1", "middle") == (ip_address("10.0.2.254"),)
    assert plan.addresses(lab, "r2", "middle") == (ip_address("10.0.2.253"),)
    assert plan.public_address(lab, "b", 6) == ip_address("fd00:3::1")


def test_routes_take_the_fewest_routers_and_only_families_that_get_there() -> None:
    lab = lab_of(THREE_NETWORKS)
    via = ip_address("10.0.1.254")
    assert plan.routes(lab, "a") == [
        (ip_network("10.0.2.0/24"), via),
        (ip_network("10.0.3.0/24"), via),
        (ip_network("fd00:3::/64"), ip_address("fd00:1::fe")),
    ]
    assert plan.routes(lab, "r2") == [
        (ip_network("10.0.1.0/24"), ip_address("10.0.2.254")),
    ]


def test_a_lab_without_routers_has_no_routes() -> None:
    assert plan.routes(SMALL, "a") == []


def test_steps_name_only_what_was_made_before() -> None:
    for lab in (SMALL, lab_of(THREE_NETWORKS)):
        made: set[str] = set()
        for step in plan.wiring(lab):
            if isinstance(step, Netns):
                made.add(step.name)
            else:
                assert step.netns in made
        assert made == set(plan.namespaces(lab))


def test_two_labs_share_no_name() -> None:
    other = lab_of(small_lab(3, 2, name="other"))
    assert not set(plan.namespaces(SMALL)) & set(plan.namespaces(other))
    assert not any(isinstance(step, Ip) and not step.netns for step in plan.wiring(SMALL))


def test_the_wire_profile_turns_offloads_off_at_both_ends_and_joins_only_at_the_nodes() -> None:
    offloads = {(step.netns, step.device): step.features for step in plan.wiring(SMALL) if isinstance(step, Offloads)}
    assert offloads["lab-a", "eth0"] == f"{plan.WIRE} gro on"
    assert offloads["lab-net-core", "to-a"] == f"{plan.WIRE} gro off"
    assert len(offloads) == 6


def test_the_native_profile_leaves_the_links_alone() -> None:
    lab = lab_of(small_lab(2, 1, profile="native"))
    assert not [step for step in plan.wiring(lab) if isinstance(step, Offloads)]
    restored = list(plan.restore_steps(lab, lab.networks["core"]))
    assert all(isinstance(step, Offloads) and step.features == f"{plan.NATIVE} gro off" for step in restored)


def test_every_namespace_uses_the_same_congestion_control() -> None:
    chosen = [
        step.netns
        for step in plan.wiring(SMALL)
        if isinstance(step, Sysctl) and step.key == "net.ipv4.tcp_congestion_control" and step.value == "cubic"
    ]
    assert chosen == plan.namespaces(SMALL)


def test_a_new_mtu_reaches_both_ends_of_every_link() -> None:
    steps = plan.mtu_steps(SMALL, SMALL.networks["core"], 1280)
    assert len(steps) == 6 and all(step.shell().endswith("mtu 1280") for step in steps)


def test_steps_can_be_pasted_into_a_shell() -> None:
    lines = [step.shell() for step in plan.wiring(SMALL)]
    assert lines[0] == "ip netns add lab-net-core"
    assert "ip -n lab-net-core link add to-a mtu 1500 type veth peer name eth0 mtu 1500 netns lab-a" in lines
    assert "ip netns exec lab-a1 sysctl -qw -e net.ipv4.tcp_congestion_control=cubic" in lines


# -- nodes without a daemon

STRANGERS = """
networks: {core: {subnets: [192.168.1.0/24, "fd00:1::/64"]}}
overlay: {network: 10.244.0.0/16, network6: "fd10:244::/48"}
nodes:
  a: {pods: 1}
  k: {kind: kernel-vxlan, pods: 2}
  s: {kind: one-by-one, pods: 1}
"""


def test_strangers_take_the_last_subnets() -> None:
    lab = lab_of(STRANGERS)
    assert foreign.subnets(lab, lab.nodes["k"]) == (ip_network("10.244.255.0/24"), ip_network("fd10:244:0:ffff::/64"))
    assert foreign.subnets(lab, lab.nodes["s"]) == (ip_network("10.244.254.0/24"),)
    assert foreign.pod_address(lab, "k2").ips == ("10.244.255.3", "fd10:244:0:ffff::3")


def test_their_mtu_leaves_room_for_the_outer_headers() -> None:
    lab = lab_of(STRANGERS)
    assert [(t.name, t.mtu_bytes) for t in foreign.tunnels(lab, lab.nodes["k"])] == [
        ("flannel.1", 1450),
        ("flannel-v6.1", 1430),
    ]
    assert [(t.name, t.mtu_bytes) for t in foreign.tunnels(lab, lab.nodes["s"])] == [("flannel0", 1472)]


def test_a_kernel_peer_is_programmed_as_flannel_does() -> None:
    lab = lab_of(STRANGERS)
    lease = {"subnet": "10.244.1.0/24", "subnet6": None, "public_ip": "192.168.1.1", "public_ip6": None,
             "encap": "vxlan", "vtep_mac": "0e:00:00:00:00:01"}  # fmt: skip
    steps = [step.shell() for step in foreign.peer_steps(lab, lab.nodes["k"], [foreign.peer_of_lease(lease)])]
    assert steps == [
        "ip -n t-k neighbour replace 10.244.1.0 lladdr 0e:00:00:00:00:01 dev flannel.1 nud permanent",
        "bridge -n t-k fdb replace 0e:00:00:00:00:01 dev flannel.1 dst 192.168.1.1 self permanent",
        "ip -n t-k route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
    ]


def test_peers_of_another_encapsulation_are_passed_over() -> None:
    lab = lab_of(STRANGERS)
    slow, kernel = (foreign.as_peer(lab, lab.nodes[name]) for name in ("s", "k"))
    assert list(foreign.peer_steps(lab, lab.nodes["k"], [slow])) == []
    assert foreign.forwarder_args(lab, lab.nodes["s"], [kernel]) == ["flannel0", "192.168.1.3", "8285"]


def test_the_forwarder_gets_its_peers() -> None:
    lab = lab_of("overlay: {encap: udp}\nnodes: {a: {kind: one-by-one}, b: {kind: one-by-one}}")
    peers = [foreign.as_peer(lab, lab.nodes["b"])]
    assert foreign.forwarder_args(lab, lab.nodes["a"], peers)[3:] == ["10.244.254.0/24=192.168.1.2"]
