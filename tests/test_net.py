"""Addresses, prefixes and MACs from untrusted text."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from canal_udp import net


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("10.0.0.0", id="no length"),
        pytest.param("10.0.0.0/", id="empty length"),
        pytest.param("10.0.0.0/33", id="length too long"),
        pytest.param("10.0.0.0/-1", id="negative length"),
        pytest.param("10.0.0.1/24", id="host bits"),
        pytest.param("10.0.0.0/255.255.255.0", id="netmask instead of length"),
        pytest.param("010.0.0.0/24", id="leading zero, octal to some"),
        pytest.param("10.0.0/24", id="three octets"),
        pytest.param("fe80::%eth0/64", id="zone"),
        pytest.param("1" * 10_000 + "/8", id="very long"),
        pytest.param("10.0.0.0/２４", id="digits of another script"),
    ],
)
def test_not_a_network(text: str) -> None:
    with pytest.raises(ValueError):
        net.parse_network(text)


def test_host_bits_are_masked_on_request() -> None:
    assert net.parse_network("10.1.2.3/16", strict=False) == IPv4Network("10.1.0.0/16")


@pytest.mark.parametrize("parse", [net.parse_network4, net.parse_address4])
def test_ipv6_is_not_ipv4(parse: object) -> None:
    text = "fd00::/64" if parse is net.parse_network4 else "fd00::1"
    with pytest.raises(ValueError, match="is not an IPv4"):
        parse(text)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        pytest.param("02:00:00:00:00:01", bytes.fromhex("020000000001"), id="lower case"),
        pytest.param("C6:D2:32:6F:8F:44", bytes.fromhex("c6d2326f8f44"), id="upper case"),
        pytest.param("01:00:00:00:00:01", None, id="multicast"),
        pytest.param("ff:ff:ff:ff:ff:ff", None, id="broadcast"),
        pytest.param("00:00:00:00:00:00", None, id="zero"),
        pytest.param("02:00:00:00:00", None, id="five bytes"),
        pytest.param("02-00-00-00-00-01", None, id="dashes"),
        pytest.param("02:00:00:00:00:01\n", None, id="line break"),
    ],
)
def test_mac(text: str, mac: bytes | None) -> None:
    if mac is None:
        with pytest.raises(ValueError):
            net.parse_mac(text)
    else:
        assert net.parse_mac(text) == mac
        assert net.format_mac(mac) == text.lower()


@pytest.mark.parametrize(
    ("address", "usable"),
    [
        ("192.0.2.1", True),
        ("169.254.1.1", True),
        ("2001:db8::1", True),
        ("fd00::1", True),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("127.0.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("ff02::1", False),
        ("fe80::1", False),
        ("::ffff:192.0.2.1", False),
    ],
)
def test_who_can_be_a_peer(address: str, usable: bool) -> None:
    assert (net.endpoint_problem(ip_address(address)) is None) is usable


@pytest.mark.parametrize(
    ("a", "b", "overlap", "covered"),
    [
        pytest.param("10.0.0.0/16", "10.0.3.0/24", True, True, id="inside"),
        pytest.param("10.0.3.0/24", "10.0.0.0/16", True, False, id="around"),
        pytest.param("10.0.3.0/24", "10.0.4.0/24", False, False, id="beside"),
        pytest.param("fd00::/48", "fd00:0:0:1::/64", True, True, id="IPv6 inside"),
        pytest.param("0.0.0.0/0", "::/0", False, False, id="never across families"),
        pytest.param("::/0", "0.0.0.0/0", False, False, id="never across families, other way"),
    ],
)
def test_overlap_and_cover(a: str, b: str, overlap: bool, covered: bool) -> None:
    assert net.overlaps(ip_network(a), ip_network(b)) is overlap
    assert net.covers(ip_network(a), ip_network(b)) is covered


def test_contains_never_across_families() -> None:
    assert net.contains(IPv4Network("10.0.0.0/8"), ip_address("10.1.1.1"))
    assert not net.contains(IPv6Network("::/0"), ip_address("10.1.1.1"))
    assert not net.contains(None, ip_address("10.1.1.1"))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\x1b[31mred\x1b[0m", id="ANSI colours"),
        pytest.param("\x1b]0;title\x07", id="OSC title"),
        pytest.param("a\r\nb\0c", id="CR LF NUL"),
        pytest.param("\u202eevil", id="bidi override"),
        pytest.param("\u2028", id="line separator"),
        pytest.param("x" * 100_000, id="100 KB"),
    ],
)
def test_printable_is_safe_and_short(text: str) -> None:
    safe = net.printable(text)
    assert safe.isprintable()
    assert len(safe) < 1000


def test_prefixes_sort_by_family_address_and_width() -> None:
    order = ["10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "fd00::/16"]
    assert sorted(map(ip_network, reversed(order)), key=net.sort_key) == list(map(ip_network, order))
