"""Overhead and MTU arithmetic."""

from __future__ import annotations

import pytest

from canal_udp.encap.mtu import Family, inner_mtu, overhead, superpacket_segments
from canal_udp.errors import ConfigError
from canal_udp.net import Encap


@pytest.mark.parametrize(
    ("encap", "family", "expected"),
    [("udp", 4, 28), ("udp", 6, 48), ("vxlan", 4, 50), ("vxlan", 6, 70)],
)
def test_overhead(encap: Encap, family: Family, expected: int) -> None:
    assert overhead(encap, family) == expected


@pytest.mark.parametrize(
    ("encap", "family", "underlay", "expected"),
    [
        pytest.param("udp", 4, 1500, 1472, id="flannel's udp on Ethernet"),
        pytest.param("vxlan", 4, 1500, 1450, id="flannel's vxlan on Ethernet"),
        pytest.param("vxlan", 6, 1500, 1430, id="vxlan over IPv6 really costs 70"),
        pytest.param("vxlan", 4, 9000, 8950, id="jumbo frames"),
        pytest.param("udp", 4, 65536, 65507, id="loopback: no packet is longer than 65535"),
    ],
)
def test_inner_mtu(encap: Encap, family: Family, underlay: int, expected: int) -> None:
    assert inner_mtu(encap, family, underlay) == expected


@pytest.mark.parametrize(
    ("underlay", "inner_ipv6", "message"),
    [
        pytest.param(
            575, False, "mtu: 575 bytes: leaves 525 for the inner packet, IPv4 needs 526", id="too narrow for IPv4"
        ),
        pytest.param(
            1329, True, "mtu: 1329 bytes: leaves 1279 for the inner packet, IPv6 needs 1280", id="and for IPv6"
        ),
    ],
)
def test_too_narrow(underlay: int, inner_ipv6: bool, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        inner_mtu("vxlan", 4, underlay, inner_ipv6=inner_ipv6)
    assert str(caught.value) == message
    inner_mtu("vxlan", 4, underlay + 1, inner_ipv6=inner_ipv6)


@pytest.mark.parametrize(
    ("mtu", "expected"),
    [
        pytest.param(1450, 44, id="vxlan on 1500"),
        pytest.param(8950, 7, id="jumbo"),
        pytest.param(65000, 1, id="one is always allowed"),
        pytest.param(576, 64, id="no more than an old kernel's UDP_SEGMENT takes"),
    ],
)
def test_superpacket_segments(mtu: int, expected: int) -> None:
    """As many as one UDP message holds, so that a superpacket leaves no nearly empty message behind."""
    assert superpacket_segments(mtu) == expected
    assert expected == 1 or expected * (mtu + 22) <= 65487
