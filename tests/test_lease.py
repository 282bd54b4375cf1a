"""A lease and its text in the store, which flannel must be able to read."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_udp.control.lease import Lease, lease_value, parse_key, read_lease
from canal_udp.errors import ConfigError

MAC = bytes.fromhex("c6d2326f8f44")
SUBNET, SUBNET6 = IPv4Network("10.12.13.0/24"), IPv6Network("fd00:12:13::/56")
IP, IP6 = IPv4Address("192.168.64.3"), IPv6Address("2001:db8::3")


@pytest.mark.parametrize(
    ("lease", "key", "value"),
    [
        pytest.param(
            Lease(SUBNET, None, IPv4Address("1.2.3.4")),
            "10.12.13.0-24",
            '{"PublicIP":"1.2.3.4","PublicIPv6":null}',
            id="udp, as flannel's own test wants it",
        ),
        pytest.param(
            Lease(SUBNET, None, IP, encap="vxlan", vtep_mac=MAC),
            "10.12.13.0-24",
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
            id="vxlan",
        ),
        pytest.param(
            Lease(SUBNET, SUBNET6, IP, IP6, encap="vxlan", vtep_mac=MAC, vtep_mac6=b"\2" + MAC[1:], vni=9),
            "10.12.13.0-24&fd00:12:13::-56",
            '{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan",'
            '"BackendData":{"VNI":9,"VtepMAC":"c6:d2:32:6f:8f:44"},'
            '"BackendV6Data":{"VNI":9,"VtepMAC":"02:d2:32:6f:8f:44"}}',
            id="dual stack",
        ),
        pytest.param(
            Lease(SUBNET, None, IP, encap="host-gw"),
            "10.12.13.0-24",
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
            id="host-gw",
        ),
        pytest.param(
            Lease(SUBNET, None, IP, encap="extension", data="what it printed"),
            "10.12.13.0-24",
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"extension","BackendData":"what it printed"}',
            id="extension",
        ),
        pytest.param(
            Lease(None, SUBNET6, None, IP6, node="n1"),
            "fd00:12:13::-56",
            '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3","Node":"n1"}',
            id="IPv6 only: PublicIP is never null",
        ),
    ],
)
def test_text_in_the_store(lease: Lease, key: str, value: str) -> None:
    assert lease.key == key
    assert lease_value(lease) == value
    assert read_lease(key, value) == lease


@pytest.mark.parametrize(
    "key",
    [
        "10",
        "10.12.13.0",
        "10.12.13-24",
        "10.12.13.300-24",
        "10.12.13.0-24hi",
        "&2001::-56",
        "10.12.13.0-24&:12:13:-56",
        "10.12.13.0-24&20011::-56",
        "10.12.13.0-24&2001-56",
        "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi",
        "10.12.13.0-24&fd00::-129",
        pytest.param("", id="empty"),
        pytest.param("subnets/10.12.13.0-24", id="longer path"),
        pytest.param("10.12.13.5-24", id="host bits"),
        pytest.param("0.0.0.0-0", id="everything"),
        pytest.param("10.12.13.1-32", id="one address"),
        pytest.param("10x12y13.0-24", id="the dots that flannel's pattern does not escape"),
        pytest.param("10.12.13.0-24\n", id="line break"),
        pytest.param("10.12.13.0-24" * 10_000, id="very long"),
        pytest.param("$(id)", id="shell"),
    ],
)
def test_not_the_name_of_a_lease(key: str) -> None:
    with pytest.raises(ValueError):
        parse_key(key)
    with pytest.raises(ConfigError) as caught:
        read_lease(key, '{"PublicIP":"1.2.3.4"}')
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param("", "not valid JSON", id="empty"),
        pytest.param("nonsense", "not valid JSON", id="not JSON"),
        pytest.param(b"\xff\xfe", "not valid JSON", id="not UTF-8"),
        pytest.param("[]", "must be a JSON object", id="a list"),
        pytest.param("{}", "neither PublicIP nor PublicIPv6", id="no address"),
        pytest.param('{"PublicIP":null}', "neither PublicIP nor PublicIPv6", id="null address"),
        pytest.param('{"PublicIP":""}', "PublicIP: ", id="empty address"),
        pytest.param('{"PublicIP":"fd00::1"}', "is not an IPv4 address", id="IPv6 as PublicIP"),
        pytest.param('{"PublicIP":"127.0.0.1"}', "loopback", id="loopback"),
        pytest.param('{"PublicIP":"224.1.1.1"}', "multicast", id="multicast"),
        pytest.param('{"PublicIP":"0.0.0.0"}', "neither", id="unspecified"),
        pytest.param(
            '{"PublicIP":"1.2.3.4","PublicIPv6":"::ffff:1.2.3.4"}', "IPv4 address in IPv6 form", id="v4-mapped"
        ),
        pytest.param('{"PublicIP":"1.2.3.4","PublicIPv6":"fe80::1%eth0"}', "PublicIPv6", id="zone"),
        pytest.param('{"PublicIP":"1.2.3.4","BackendType":"ipsec"}', "'ipsec' is none of udp, vxlan", id="backend"),
        pytest.param('{"PublicIP":"1.2.3.4","BackendType":"vxlan"}', "vxlan needs a VtepMAC", id="vxlan without MAC"),
        pytest.param(
            '{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}',
            "one station",
            id="multicast MAC",
        ),
        pytest.param(
            '{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":"x"}',
            "BackendData: must be an object",
            id="data is a string",
        ),
        pytest.param('{"PublicIP":' + "[" * 100_000, "bytes", id="deep and long"),
        pytest.param('{"PublicIP":' + "[" * 60_000, "not valid JSON", id="deep"),
    ],
)
def test_a_bad_value_says_what_is_wrong(value: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_lease("10.12.13.0-24", value)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


def test_keys_in_any_case_and_a_missing_vni_are_read() -> None:
    value = '{"publicip":"1.2.3.4","backendtype":"VXLAN","backenddata":{"vtepmac":"C6:D2:32:6F:8F:44"},"other":1}'
    lease = read_lease("10.12.13.0-24", value, revision=7, created=5, expires_at=9.0)
    assert lease == Lease(
        SUBNET, None, IPv4Address("1.2.3.4"), encap="vxlan", vtep_mac=MAC, revision=7, created=5, expires_at=9.0
    )


def test_a_node_name_cannot_hurt_a_terminal() -> None:
    lease = read_lease("10.12.13.0-24", '{"PublicIP":"1.2.3.4","Node":"\\u001b[31m' + "x" * 5000 + '"}')
    assert lease.node.isprintable()
    assert len(lease.node) < 300


@given(st.binary(max_size=200), st.text(max_size=40))
def test_any_bytes_are_a_lease_or_a_config_error(value: bytes, key: str) -> None:
    for name in ("10.12.13.0-24", key):
        with contextlib.suppress(ConfigError):
            assert isinstance(read_lease(name, value), Lease)


leases = st.builds(
    Lease,
    subnet=st.integers(0, 2**16 - 1).map(lambda n: IPv4Network((10 << 24 | n << 8, 24))),
    subnet6=st.none() | st.integers(0, 2**16 - 1).map(lambda n: IPv6Network((0xFD << 120 | n << 64, 64))),
    public_ip=st.integers(2**24, 2**24 + 2**16).map(IPv4Address),
    public_ip6=st.none() | st.integers(1, 2**16).map(lambda n: IPv6Address((0x2001 << 112) | n)),
    encap=st.just("vxlan"),
    vtep_mac=st.binary(min_size=5, max_size=5).map(lambda rest: b"\2" + rest),
    node=st.text("abc-.123", max_size=20),
    vni=st.integers(1, 2**24 - 1),
)


@given(leases)
def test_written_and_read_again(lease: Lease) -> None:
    assert read_lease(lease.key, lease_value(lease)) == lease
