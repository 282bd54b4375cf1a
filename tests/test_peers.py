"""From leases to VTEPs and routes: who is a peer, where packets for it go, how large they may be."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest

from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.peers import (
    MTU_LEARNED_S,
    LearnedMtus,
    Peer,
    direct_candidates,
    peer_routes,
    peer_table,
    table_routes,
)
from canal_udp.encap.forwarding import Route, Vtep
from canal_udp.net import overlaps

MAC_A, MAC_B, MAC_B6 = (bytes((2, 0, 0, 0, 0, n)) for n in (1, 2, 3))
NET4 = NetworkConfig.make(IPv4Network("10.1.0.0/16"), encap="vxlan")
DUAL = NetworkConfig.make(IPv4Network("10.1.0.0/16"), IPv6Network("fd00::/48"), encap="vxlan")
NET6 = NetworkConfig.make(None, IPv6Network("fd00::/48"), encap="vxlan")


def lease4(n: int, **changes: object) -> Lease:
    """Node n: subnet 10.1.n.0/24 at 192.0.2.n."""
    plain = Lease(
        IPv4Network((10 << 24 | 1 << 16 | n << 8, 24)), None, IPv4Address(f"192.0.2.{n}"), revision=n, created=n
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def dual(n: int, **changes: object) -> Lease:
    return lease4(
        n, **{"subnet6": IPv6Network(f"fd00:0:0:{n:x}::/64"), "public_ip6": ip_address(f"2001:db8::{n:x}")} | changes
    )


OWN, OWN_DUAL = lease4(1), dual(1)


def where(leases: list[Lease], own: Lease, network: NetworkConfig) -> dict[str, str]:
    """Prefix -> key of its VTEP."""
    _, routes = peer_routes(leases, own, network, 1500)
    assert all(route.kind == "vtep" and not route.local for route in routes)
    return {str(route.prefix): route.key for route in routes}


def conflicts(leases: list[Lease], own: Lease = OWN, network: NetworkConfig = NET4) -> dict[str, str]:
    return {conflict.lease.key: conflict.problem for conflict in peer_table(leases, own, network).conflicts}


# ---- where packets go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encap", "family", "port", "mtu_bytes"),
    [
        pytest.param("udp", 4, 8285, 1472, id="udp over IPv4 costs 28"),
        pytest.param("vxlan", 4, 8472, 1450, id="vxlan over IPv4 costs 50"),
        pytest.param("udp", 6, 8285, 1452, id="udp over IPv6 costs 48"),
        pytest.param("vxlan", 6, 8472, 1430, id="vxlan over IPv6 costs 70"),
    ],
)
def test_vtep_and_route(encap: str, family: int, port: int, mtu_bytes: int) -> None:
    address = {"public_ip6": IPv6Address("2001:db8::2"), "public_ip": None} if family == 6 else {}
    peer = lease4(2, encap=encap, vtep_mac=MAC_B, **address)
    own = replace(OWN, public_ip6=IPv6Address("2001:db8::1"))
    addr = peer.public_ips[0]
    (vtep,), (route,) = peer_routes([own, peer], own, NET4, 1500)
    mac = MAC_B if encap == "vxlan" else bytes(6)
    assert vtep == Vtep(addr=addr, port=port, mac=mac, encap=encap, mtu_bytes=mtu_bytes, id=vtep.id)  # type: ignore[arg-type]
    assert route == Route(IPv4Network("10.1.2.0/24"), "vtep", f"{addr}/{encap}", local=False)


@pytest.mark.parametrize(
    ("peer", "own", "network", "expected"),
    [
        pytest.param(
            dual(2),
            OWN_DUAL,
            DUAL,
            {"10.1.2.0/24": "192.0.2.2/udp", "fd00:0:0:2::/64": "2001:db8::2/udp"},
            id="dual stack: each family over its own, as flannel",
        ),
        pytest.param(
            dual(2, public_ip6=None),
            OWN_DUAL,
            DUAL,
            {"10.1.2.0/24": "192.0.2.2/udp", "fd00:0:0:2::/64": "192.0.2.2/udp"},
            id="IPv4 underlay carries both",
        ),
        pytest.param(
            dual(2),
            dual(1, public_ip=None),
            DUAL,
            {"10.1.2.0/24": "2001:db8::2/udp", "fd00:0:0:2::/64": "2001:db8::2/udp"},
            id="we have an IPv6 underlay only",
        ),
        pytest.param(dual(2), OWN, NET4, {"10.1.2.0/24": "192.0.2.2/udp"}, id="a dual-stack peer of an IPv4 overlay"),
        pytest.param(
            lease4(2), OWN_DUAL, DUAL, {"10.1.2.0/24": "192.0.2.2/udp"}, id="an IPv4 peer of a dual-stack overlay"
        ),
        pytest.param(
            dual(2, subnet=None),
            dual(1, subnet=None),
            NET6,
            {"fd00:0:0:2::/64": "2001:db8::2/udp"},
            id="IPv6 only",
        ),
    ],
)
def test_families(peer: Lease, own: Lease, network: NetworkConfig, expected: dict[str, str]) -> None:
    assert where([peer, own], own, network) == expected


@pytest.mark.parametrize(
    ("macs", "addr", "mac"),
    [
        pytest.param((MAC_B, MAC_B6), "192.0.2.2", MAC_B, id="flannel has a device of each family: IPv4"),
        pytest.param((MAC_B, MAC_B6), "2001:db8::2", MAC_B6, id="... and IPv6"),
        pytest.param((MAC_B, None), "2001:db8::2", MAC_B, id="one device for both"),
        pytest.param((None, MAC_B6), "192.0.2.2", MAC_B6, id="only the other is known"),
    ],
)
def test_vtep_mac(macs: tuple[bytes | None, bytes | None], addr: str, mac: bytes) -> None:
    peer = dual(2, encap="vxlan", vtep_mac=macs[0], vtep_mac6=macs[1])
    vteps, _ = peer_routes([peer], OWN_DUAL, DUAL, 1500)
    assert {vtep.addr: vtep.mac for vtep in vteps}[ip_address(addr)] == mac


def test_two_subnets_of_one_address_share_a_vtep_with_the_mac_written_last() -> None:
    stale = lease4(2, encap="vxlan", vtep_mac=MAC_A, revision=10)
    fresh = lease4(3, encap="vxlan", vtep_mac=MAC_B, revision=11, public_ip=stale.public_ip)
    for leases in ([stale, fresh], [fresh, stale]):
        (vtep,), routes = peer_routes(leases, OWN, NET4, 1500)
        assert vtep.mac == MAC_B
        assert {route.key for route in routes} == {"192.0.2.2/vxlan"}


def test_one_address_with_both_encapsulations_has_two_vteps() -> None:
    other = lease4(3, encap="vxlan", vtep_mac=MAC_B, public_ip=IPv4Address("192.0.2.2"))
    vteps, _ = peer_routes([lease4(2), other], OWN, NET4, 1500)
    assert [(vtep.encap, vtep.port) for vtep in vteps] == [("udp", 8285), ("vxlan", 8472)]


def test_equal_input_in_any_order_gives_equal_output() -> None:
    leases = [dual(n) for n in range(2, 40)]
    expected = peer_routes(leases, OWN_DUAL, DUAL, 1500)
    for seed in range(5):
        random.Random(seed).shuffle(leases)
        assert peer_routes(leases, OWN_DUAL, DUAL, 1500) == expected, f"seed {seed}"


def test_renewals_change_nothing() -> None:
    before = [dual(n) for n in range(2, 9)]
    after = [replace(lease, revision=lease.revision + 100, expires_at=5.0) for lease in before]
    assert peer_routes(before, OWN_DUAL, DUAL, 1500) == peer_routes(after, OWN_DUAL, DUAL, 1500)


# ---- who is no peer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lease",
    [
        pytest.param(OWN, id="our lease"),
        pytest.param(lease4(7, public_ip=OWN.public_ip), id="another lease with our public IP"),
        pytest.param(lease4(1, public_ip=IPv4Address("192.0.2.99"), revision=1), id="our lease before we moved"),
    ],
)
def test_we_are_no_peer_of_ours(lease: Lease) -> None:
    assert peer_routes([lease], OWN, NET4, 1500) == ((), ())
    assert conflicts([lease]) == {}


@pytest.mark.parametrize(
    ("lease", "problem"),
    [
        pytest.param(
            lease4(1, public_ip=IPv4Address("192.0.2.9"), revision=5),
            "10.1.1.0/24 overlaps our own subnet",
            id="our key, taken by another",
        ),
        pytest.param(
            lease4(2, subnet=IPv4Network("10.1.0.0/17"), created=0),
            "10.1.0.0/17 overlaps our own subnet",
            id="a wider one, and older",
        ),
        pytest.param(
            lease4(2, subnet=IPv4Network("10.1.1.128/25")), "10.1.1.128/25 overlaps our own subnet", id="a part of ours"
        ),
        pytest.param(
            lease4(2, subnet=IPv4Network("10.2.0.0/24")), "10.2.0.0/24 is outside the network 10.1.0.0/16", id="outside"
        ),
        pytest.param(
            lease4(2, subnet=IPv4Network("10.0.0.0/8")),
            "10.0.0.0/8 is outside the network 10.1.0.0/16",
            id="around the network",
        ),
        pytest.param(
            lease4(2, public_ip=IPv4Address("10.1.9.9")),
            "its public address 10.1.9.9 lies inside the overlay",
            id="tunnel in the tunnel",
        ),
        pytest.param(
            lease4(2, public_ip=None, public_ip6=IPv6Address("2001:db8::2")),
            "no subnet or no underlay address of a family that this node has",
            id="no way to it",
        ),
        pytest.param(
            lease4(2, subnet=None, subnet6=IPv6Network("fd00::/64")),
            "no subnet or no underlay address of a family that this node has",
            id="no family in common",
        ),
    ],
)
def test_ignored_and_reported(lease: Lease, problem: str) -> None:
    assert where([lease, lease4(3)], OWN, NET4) == {"10.1.3.0/24": "192.0.2.3/udp"}
    assert conflicts([lease, lease4(3)]) == {lease.key: problem}


@pytest.mark.parametrize("wide_first", [False, True])
def test_of_two_that_overlap_the_older_counts(wide_first: bool) -> None:
    wide = lease4(8, subnet=IPv4Network("10.1.8.0/22"), created=1 if wide_first else 99)
    narrow = lease4(9, created=50)
    winner, loser = (wide, narrow) if wide_first else (narrow, wide)
    assert where([narrow, wide], OWN, NET4) == {str(winner.subnet): f"{winner.public_ip}/udp"}
    assert conflicts([narrow, wide]) == {loser.key: f"{loser.subnet} overlaps {winner.key}, which is older"}


def test_a_renewal_does_not_make_a_lease_younger() -> None:
    owner = lease4(9, created=5, revision=1000)
    thief = lease4(8, subnet=IPv4Network("10.1.8.0/22"), created=6, revision=7)
    assert where([owner, thief], OWN, NET4) == {"10.1.9.0/24": "192.0.2.9/udp"}


def slow_peers(leases: list[Lease], own: Lease, network: NetworkConfig) -> set[str]:
    """Keys of the peers, by comparing each lease with all older ones. IPv4 only, all addresses fine."""
    taken = [own.subnet]
    chosen = set()
    for lease in sorted(leases, key=lambda lease: (lease.created, lease.key)):
        assert lease.subnet is not None
        inside = network.network is not None and lease.subnet.subnet_of(network.network)
        if inside and not any(overlaps(lease.subnet, other) for other in taken if other):
            taken.append(lease.subnet)
            chosen.add(lease.key)
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_random_overlaps_against_the_slow_twin(seed: int) -> None:
    rng = random.Random(seed)
    leases = {}
    for n in range(2, 120):
        length = rng.randint(18, 28)
        base = int(IPv4Address("10.1.0.0")) | rng.getrandbits(17) >> 1 << 1
        subnet = IPv4Network((base, length), strict=False)
        lease = lease4(2, subnet=subnet, public_ip=IPv4Address(f"192.0.2.{n}"), created=rng.randint(1, 500))
        leases[lease.key] = lease
    table = peer_table(leases.values(), OWN, NET4)
    assert {peer.lease.key for peer in table.peers} == slow_peers(list(leases.values()), OWN, NET4), f"seed {seed}"
    assert len(table.peers) + len(table.conflicts) == len(leases)


def test_a_peer_knows_its_addresses() -> None:
    (peer,) = peer_table([dual(2)], OWN_DUAL, DUAL).peers
    assert peer == Peer(dual(2), IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2"))
    assert peer.encap == "udp"


# ---- learned MTUs ----------------------------------------------------------------------------------------------------

PEER = IPv4Address("192.0.2.2")
PEER6 = IPv6Address("2001:db8::2")


def test_a_learned_mtu_is_believed_for_a_while() -> None:
    learned = LearnedMtus().learn(PEER, 1300, 100.0, told=True)
    assert learned.mtu_of(PEER, 1500) == 1300
    assert learned.mtu_of(IPv4Address("192.0.2.3"), 1500) == 1500
    assert learned.next_expiry_s == 100.0 + MTU_LEARNED_S
    assert learned.expire(100.0 + MTU_LEARNED_S - 1) is learned
    assert learned.expire(100.0 + MTU_LEARNED_S).mtu_of(PEER, 1500) == 1500
    assert LearnedMtus().next_expiry_s is None


@pytest.mark.parametrize(
    ("addr", "told", "believed"),
    [
        pytest.param(PEER, 68, 576, id="IPv4 floor"),
        pytest.param(PEER, 0, 576, id="zero"),
        pytest.param(PEER6, 576, 1280, id="IPv6 floor"),
        pytest.param(PEER, 9000, 1500, id="never more than our own interface"),
    ],
)
def test_a_learned_mtu_is_bounded(addr: IPv4Address, told: int, believed: int) -> None:
    assert LearnedMtus().learn(addr, told, 0.0, told=True).mtu_of(addr, 1500) == believed


def test_the_newest_word_counts() -> None:
    learned = LearnedMtus().learn(PEER, 1300, 0.0, told=True).learn(PEER, 1400, 10.0, told=True)
    assert learned.mtu_of(PEER, 1500) == 1400
    assert learned.expire(MTU_LEARNED_S + 5).mtu_of(PEER, 1500) == 1400


@pytest.mark.parametrize(
    ("told", "kernel", "believed"),
    [
        pytest.param(True, 1300, 1300, id="the kernel still says so"),
        pytest.param(True, 1280, 1300, id="it says less: its next word comes with the next packet"),
        pytest.param(True, 1500, 1500, id="it says more: our own link was that narrow for a moment"),
        pytest.param(False, 1500, 1300, id="a black hole, of which the kernel knows nothing"),
    ],
)
def test_what_the_kernel_told_holds_while_it_says_so(told: bool, kernel: int, believed: int) -> None:
    learned = LearnedMtus().learn(PEER, 1300, 0.0, told=told)
    assert learned.confirm(PEER, kernel).mtu_of(PEER, 1500) == believed
    assert learned.confirm(PEER6, kernel) is learned


def test_another_link_has_other_black_holes() -> None:
    learned = LearnedMtus().learn(PEER, 1300, 0.0, told=False).learn(PEER6, 1300, 0.0, told=True).forget_found()
    assert (learned.mtu_of(PEER, 1500), learned.mtu_of(PEER6, 1500)) == (1500, 1300)


def test_routes_use_the_learned_mtu_of_their_peer_only() -> None:
    learned = LearnedMtus().learn(PEER, 1300, 0.0, told=True)
    vteps, _ = peer_routes([lease4(2), lease4(3)], OWN, NET4, 1500, learned)
    assert {str(vtep.addr): vtep.mtu_bytes for vtep in vteps} == {"192.0.2.2": 1272, "192.0.2.3": 1472}


# ---- without encapsulation -------------------------------------------------------------------------------------------


def kinds(leases: list[Lease], network: NetworkConfig, *neighbours: str) -> dict[str, str]:
    """Prefix -> how it is reached, when those addresses are on our own link."""
    on_link = frozenset(ip_address(one) for one in neighbours)
    _, routes = table_routes(peer_table(leases, OWN_DUAL, network), network, 1500, LearnedMtus(), on_link)
    return {str(route.prefix): route.kind for route in routes}


VXLAN = lease4(2, encap="vxlan", vtep_mac=MAC_A)
HOST_GW = lease4(3, encap="host-gw")


def test_direct_routing_is_for_neighbours_only() -> None:
    direct = replace(NET4, direct_routing=True)
    assert kinds([VXLAN, HOST_GW], direct) == {"10.1.2.0/24": "vtep"}
    assert kinds([VXLAN, HOST_GW], direct, "192.0.2.2") == {"10.1.2.0/24": "host"}
    assert kinds([VXLAN, HOST_GW], NET4, "192.0.2.2", "192.0.2.3") == {"10.1.2.0/24": "vtep", "10.1.3.0/24": "host"}


def test_who_may_be_routed_to() -> None:
    """A subnet of the other family than the address would need a route of two families."""
    table = peer_table([VXLAN, HOST_GW, dual(4, encap="host-gw")], OWN, DUAL)
    candidates = {str(subnet): str(address) for subnet, address in direct_candidates(table, DUAL)}
    assert candidates == {"10.1.3.0/24": "192.0.2.3", "10.1.4.0/24": "192.0.2.4"}
    table = peer_table([VXLAN, dual(4, encap="host-gw")], OWN_DUAL, DUAL)
    candidates = {str(subnet): str(address) for subnet, address in direct_candidates(table, DUAL)}
    assert candidates == {"10.1.4.0/24": "192.0.2.4", "fd00:0:0:4::/64": "2001:db8::4"}


def test_a_peer_that_only_commands_reach_is_none() -> None:
    assert conflicts([lease4(2, encap="extension")]) == {
        "10.1.2.0-24": "it is reached by extension, which this node does not have"
    }
