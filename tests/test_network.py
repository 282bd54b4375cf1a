"""The network config: flannel's keys, defaults and error texts."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_udp.control.network import NetworkConfig, Pool
from canal_udp.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "first", "last", "length"),
    [
        pytest.param(
            '{ "network": "10.3.0.0/16" }', "10.3.1.0", "10.3.255.0", 24, id="flannel's example, key in lower case"
        ),
        pytest.param('{"Network":"10.3.7.9/16"}', "10.3.1.0", "10.3.255.0", 24, id="host bits masked off"),
        pytest.param('{"Network":"10.3.0.0/22"}', "10.3.1.0", "10.3.3.0", 24, id="/22 is the last that gets /24"),
        pytest.param('{"Network":"10.3.0.0/23"}', "10.3.0.128", "10.3.1.128", 25, id="narrower: prefix + 2"),
        pytest.param('{"Network":"10.3.0.0/28"}', "10.3.0.4", "10.3.0.12", 30, id="narrowest"),
        pytest.param('{"Network":"10.3.0.0/16","SubnetLen":28}', "10.3.0.16", "10.3.255.240", 28, id="SubnetLen"),
        pytest.param(
            '{"Network":"10.3.0.0/16","SubnetLen":0}', "10.3.1.0", "10.3.255.0", 24, id="SubnetLen 0 is absent"
        ),
        pytest.param(
            '{"Network":"10.3.0.0/16","subnetmin":"10.3.9.0","SUBNETMAX":"10.3.20.0"}',
            "10.3.9.0",
            "10.3.20.0",
            24,
            id="bounds",
        ),
        pytest.param('{"Network":"10.3.0.0/16","SubnetMin":null}', "10.3.1.0", "10.3.255.0", 24, id="null is absent"),
        pytest.param('{"Network":"10.3.0.0/16","Extra":[1]}', "10.3.1.0", "10.3.255.0", 24, id="unknown keys ignored"),
        pytest.param(
            '{"Network":"x","NETWORK":"10.3.0.0/16"}', "10.3.1.0", "10.3.255.0", 24, id="last of equal keys counts"
        ),
    ],
)
def test_ipv4(text: str, first: str, last: str, length: int) -> None:
    config = NetworkConfig.from_json(text)
    assert config.pool is not None
    assert (str(config.pool.first), str(config.pool.last)) == (f"{first}/{length}", f"{last}/{length}")
    assert config.pool6 is None


@pytest.mark.parametrize(
    ("network", "first", "last", "length"),
    [
        pytest.param("fc00::/48", "fc00:0:0:1::", "fc00:0:0:ffff::", 64, id="flannel's example"),
        pytest.param("fc00::/62", "fc00:0:0:1::", "fc00:0:0:3::", 64, id="/62 is the last that gets /64"),
        pytest.param("fc00::/63", "fc00::8000:0:0:0", "fc00:0:0:1:8000::", 65, id="narrower: prefix + 2"),
        pytest.param("fc00::/124", "fc00::4", "fc00::c", 126, id="narrowest"),
    ],
)
def test_ipv6_only(network: str, first: str, last: str, length: int) -> None:
    text = json.dumps({"enableIPv6": True, "ipv6Network": network, "enableIPv4": False})
    config = NetworkConfig.from_json(text)
    assert config.pool is None
    assert config.pool6 is not None
    assert (str(config.pool6.first), str(config.pool6.last)) == (f"{first}/{length}", f"{last}/{length}")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"Network": None}, "please define a correct Network parameter in the flannel config", id="no Network"
        ),
        pytest.param({"SubnetLen": 31}, "SubnetLen must be less than /31", id="/31"),
        pytest.param({"SubnetLen": 17}, "network must be able to accommodate at least four subnets", id="two subnets"),
        pytest.param(
            {"Network": "10.0.0.0/29"}, "network is too small. Minimum useful network prefix is /28", id="/29"
        ),
        pytest.param({"SubnetMin": "10.9.0.0"}, "SubnetMin is not in the range of the Network", id="SubnetMin outside"),
        pytest.param({"SubnetMax": "10.9.0.0"}, "SubnetMax is not in the range of the Network", id="SubnetMax outside"),
        pytest.param(
            {"SubnetMin": "10.3.0.1"},
            "SubnetMin is not on a SubnetLen boundary: 10.3.0.1",
            id="SubnetMin inside a subnet",
        ),
        pytest.param(
            {"SubnetMax": "10.3.9.1"},
            "SubnetMax is not on a SubnetLen boundary: 10.3.9.1",
            id="SubnetMax inside a subnet",
        ),
        pytest.param(
            {"SubnetMin": "10.3.9.0", "SubnetMax": "10.3.8.0"}, "SubnetMin is above SubnetMax", id="empty range"
        ),
        pytest.param({"Network": "fd00::/48"}, "is not an IPv4 network", id="IPv6 in Network"),
        pytest.param({"EnableIPv4": False}, "none defined stack", id="no family"),
        pytest.param(
            {"EnableIPv6": True},
            "please define a correct IPv6Network parameter in the flannel config",
            id="no IPv6Network",
        ),
        pytest.param(
            {"EnableIPv6": True, "IPv6Network": "fc00::/125"},
            "IPv6Network is too small. Minimum useful network prefix is /124",
            id="/125",
        ),
        pytest.param(
            {"EnableIPv6": True, "IPv6Network": "fc00::/48", "IPv6SubnetLen": 127},
            "SubnetLen must be less than /127",
            id="/127",
        ),
        pytest.param(
            {"EnableIPv6": True, "IPv6Network": "fc00::/48", "IPv6SubnetMin": "fd00::"},
            "IPv6SubnetMin is not in the range of the IPv6Network",
            id="IPv6SubnetMin outside",
        ),
        pytest.param(
            {"EnableIPv6": True, "IPv6Network": "fc00::/48", "IPv6SubnetMax": "fc00::1"},
            "IPv6SubnetMax is not on a SubnetLen boundary: fc00::1",
            id="IPv6SubnetMax inside a subnet",
        ),
        pytest.param(
            {"EnableIPv4": "yes"}, "EnableIPv4: must be true or false, not a string", id="a string for a switch"
        ),
        pytest.param(
            {"SubnetLen": "24"}, "SubnetLen: must be a whole number, not a string", id="a string for a number"
        ),
        pytest.param({"SubnetLen": -1}, "must be 0 to", id="negative length"),
        pytest.param({"Network": 7}, "Network: must be a string, not a number", id="a number for a network"),
        pytest.param({"Backend": "vxlan"}, "Backend: must be an object, not a string", id="a string for the backend"),
        pytest.param({"Backend": {"Type": "vxlan", "VNI": 2**24}}, "VNI: must be 0 to 16777215", id="VNI too large"),
    ],
)
def test_flannels_error_texts(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.from_json(json.dumps({"Network": "10.3.0.0/16"} | changes))
    assert problem in str(caught.value)
    assert str(caught.value).startswith("network config: ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[1]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param("{'Network': 1}", id="not JSON"),
        pytest.param('{"Network":"10.3.0.0/16","x":NaN}', id="NaN"),
        pytest.param('{"x":' * 1000 + "1" + "}" * 1000, id="1000 deep"),
        pytest.param('{"x":' * 20_000, id="20000 deep, cut off"),
        pytest.param('{"Network":"' + "1" * 10_000_000 + '"}', id="10 MB"),
        pytest.param('{"Network":"\x1b[31m"}', id="control characters"),
    ],
)
def test_garbage_is_a_config_error_that_is_safe_to_print(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.from_json(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("backend", "encap", "port"),
    [
        pytest.param(None, "udp", 8285, id="absent: udp"),
        pytest.param({"Type": "VXLAN"}, "vxlan", 8472, id="any case"),
        pytest.param({"Type": "vxlan", "Port": 4789, "VNI": 5}, "vxlan", 4789, id="its own port"),
        pytest.param({"Type": "udp", "Port": 0}, "udp", 8285, id="port 0: the default"),
    ],
)
def test_backend(backend: object, encap: str, port: int) -> None:
    config = NetworkConfig.from_json(json.dumps({"Network": "10.3.0.0/16", "Backend": backend}))
    assert config.require_encap() == encap
    assert config.port_of(config.require_encap()) == port


def test_the_configured_port_is_only_for_the_configured_encapsulation() -> None:
    config = NetworkConfig.make(IPv4Network("10.3.0.0/16"), encap="vxlan", port=4789)
    assert (config.port_of("vxlan"), config.port_of("udp")) == (4789, 8285)


@pytest.mark.parametrize("backend", [{}, {"Type": "alloc"}, {"Type": "$(id)\x1b"}])
def test_other_backends_are_refused_by_name(backend: object) -> None:
    config = NetworkConfig.from_json(json.dumps({"Network": "10.3.0.0/16", "Backend": backend}))
    with pytest.raises(ConfigError, match="unknown backend type: ") as caught:
        config.require_encap()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(NetworkConfig.make(IPv4Network("10.3.0.0/16")), id="IPv4, udp"),
        pytest.param(NetworkConfig.make(IPv4Network("10.3.0.0/16"), encap="vxlan", vni=7, mtu_bytes=1400), id="vxlan"),
        pytest.param(NetworkConfig.make(None, IPv6Network("fd00::/48"), port=99), id="IPv6 only"),
        pytest.param(
            NetworkConfig.make(IPv4Network("10.3.0.0/20"), IPv6Network("fd00::/56"), subnet_len=26), id="dual stack"
        ),
    ],
)
def test_to_json_and_back(config: NetworkConfig) -> None:
    assert NetworkConfig.from_json(config.to_json()) == config


def test_a_network_needs_a_family() -> None:
    with pytest.raises(ConfigError, match="none defined stack"):
        NetworkConfig.make(None)


def slow_subnets(pool: Pool[IPv4Network]) -> list[IPv4Network]:
    every = pool.network.subnets(new_prefix=pool.subnet_len)
    return [subnet for subnet in every if pool.first <= subnet <= pool.last]


@given(prefix=st.integers(8, 26), extra=st.integers(2, 4))
def test_a_pool_is_the_subnets_of_its_network(prefix: int, extra: int) -> None:
    pool = NetworkConfig.make(IPv4Network((10 << 24, prefix)), subnet_len=prefix + extra).pool
    assert pool is not None
    expected = slow_subnets(pool)
    assert list(pool) == expected
    assert len(pool) == len(expected) == 2**extra - 1
    assert all(pool.fits(subnet) for subnet in expected)
    assert not pool.fits(IPv4Network((10 << 24, prefix + extra)))  # the first subnet is skipped
    assert not pool.fits(IPv4Network("192.168.0.0/24"))
    assert not pool.fits(None)
