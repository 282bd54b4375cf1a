"""Which interface and address carry the outer packets: flanneld's choice, from facts in tables."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from canal_udp.errors import ConfigError
from canal_udp.underlay import Interface, IPAddress, LocalAddress, Underlay, Wish, choose


def interface(index: int, name: str, *addresses: str, mtu: int = 1500) -> Interface:
    return Interface(index, name, mtu, True, tuple(LocalAddress(ip_address(one)) for one in addresses))


LO = interface(1, "lo", "127.0.0.1", "::1", mtu=65536)
ETH0 = interface(2, "eth0", "192.0.2.2", "2001:db8::2", "fe80::2")
ETH1 = interface(3, "eth1", "198.51.100.3", mtu=9000)
ALL = (LO, ETH0, ETH1)
ROUTES: dict[IPAddress, tuple[int, IPAddress | None]] = {
    ip_address("203.0.113.9"): (3, ip_address("198.51.100.3")),
    ip_address("127.0.0.9"): (1, ip_address("127.0.0.1")),
}


def run(wish: Wish, interfaces: tuple[Interface, ...] = ALL, defaults: tuple[int, ...] = (2,)) -> Underlay:
    return choose(wish, interfaces, defaults, ROUTES.get)


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        pytest.param(Wish(), "eth0", id="the default route's interface"),
        pytest.param(Wish(names=("eth1",)), "eth1", id="by name"),
        pytest.param(Wish(names=("nope", "eth1", "eth0")), "eth1", id="the first name that is there"),
        pytest.param(Wish(names=("198.51.100.3",)), "eth1", id="by address"),
        pytest.param(Wish(expressions=(r"^198\.51\.",)), "eth1", id="expression on an address"),
        pytest.param(Wish(expressions=("^eth",)), "eth0", id="expression on a name, in the kernel's order"),
        pytest.param(Wish(expressions=("eth0", r"^198\.")), "eth0", id="expressions in their order"),
        pytest.param(Wish(names=("nope",), expressions=("eth1",)), "eth1", id="names before expressions"),
        pytest.param(Wish(can_reach="203.0.113.9"), "eth1", id="by reachability"),
        pytest.param(Wish(expressions=("nope",), can_reach="203.0.113.9"), "eth1", id="reachability last"),
        pytest.param(Wish(public_ip=IPv4Address("198.51.100.3")), "eth1", id="a local public address selects"),
        pytest.param(Wish(public_ip=IPv4Address("8.8.8.8")), "eth0", id="a public address behind a NAT does not"),
    ],
)
def test_interface(wish: Wish, found: str) -> None:
    assert run(wish).interface == found


@pytest.mark.parametrize(
    ("wish", "problem"),
    [
        pytest.param(Wish(names=("nope",)), "Failed to find interface to use that matches", id="no such name"),
        pytest.param(Wish(expressions=("nope",)), "Failed to find interface", id="no match"),
        pytest.param(Wish(expressions=("[",)), "no regular expression", id="a broken expression"),
        pytest.param(Wish(can_reach="198.18.0.1"), "Failed to find interface", id="unreachable"),
        pytest.param(Wish(can_reach="127.0.0.9", exclude=("lo",)), "Failed to find interface", id="our own device"),
        pytest.param(Wish(can_reach="somewhere"), "no IP address", id="not an address"),
    ],
)
def test_no_interface(wish: Wish, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(wish)


def test_no_default_route() -> None:
    with pytest.raises(ConfigError, match="no default route"):
        run(Wish(), defaults=())


def test_a_default_route_through_our_own_device_is_passed_over() -> None:
    assert run(Wish(exclude=("eth0",)), defaults=(2, 3)).interface == "eth1"


def test_an_interface_without_mtu_is_refused() -> None:
    with pytest.raises(ConfigError, match="MTU"):
        run(Wish(names=("x",)), (interface(7, "x", "192.0.2.7", mtu=0),))


def test_addresses_to_bind_and_to_publish() -> None:
    assert run(Wish()) == Underlay(
        "eth0",
        1500,
        IPv4Address("192.0.2.2"),
        IPv6Address("2001:db8::2"),
        IPv4Address("192.0.2.2"),
        IPv6Address("2001:db8::2"),
    )
    behind_nat = run(Wish(public_ip=IPv4Address("8.8.8.8"), public_ip6=IPv6Address("2001:db8:9::9")))
    assert (behind_nat.bind, behind_nat.public_ip) == (IPv4Address("192.0.2.2"), IPv4Address("8.8.8.8"))
    assert (behind_nat.bind6, behind_nat.public_ip6) == (IPv6Address("2001:db8::2"), IPv6Address("2001:db8:9::9"))


def test_the_address_asked_for_is_the_one_bound() -> None:
    two = interface(2, "eth0", "192.0.2.2", "192.0.2.22")
    assert run(Wish(names=("192.0.2.22",)), (two,)).bind == IPv4Address("192.0.2.22")
    assert run(Wish(public_ip=IPv4Address("192.0.2.22")), (two,)).bind == IPv4Address("192.0.2.22")


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        pytest.param([LocalAddress(ip_address("2001:db8::1"), deprecated=True)], None, id="deprecated"),
        pytest.param([LocalAddress(ip_address("fe80::1"))], None, id="link-local says nothing to a peer"),
        pytest.param(
            [LocalAddress(ip_address("fe80::1")), LocalAddress(ip_address("2001:db8::1"))],
            "2001:db8::1",
            id="global first",
        ),
        pytest.param(
            [LocalAddress(ip_address("2001:db8::1"), permanent=False), LocalAddress(ip_address("2001:db8::2"))],
            "2001:db8::2",
            id="permanent before dynamic",
        ),
        pytest.param(
            [LocalAddress(ip_address("2001:db8::1"), temporary=True), LocalAddress(ip_address("2001:db8::2"))],
            "2001:db8::2",
            id="stable before temporary",
        ),
    ],
)
def test_best_address(addresses: list[LocalAddress], best: str | None) -> None:
    one = Interface(2, "eth0", 1500, True, (LocalAddress(IPv4Address("192.0.2.2")), *addresses))
    assert run(Wish(), (one,)).bind6 == (IPv6Address(best) if best else None)


def test_an_interface_without_addresses_is_refused() -> None:
    with pytest.raises(ConfigError, match="failed to find an IP address for interface x"):
        run(Wish(names=("x",)), (interface(7, "x"),))
