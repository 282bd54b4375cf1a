"""Bytes that an encapsulation costs, and the largest inner packet that an underlay of some MTU carries."""

from __future__ import annotations

from typing import Literal

from canal_udp.errors import ConfigError
from canal_udp.net import Encap

IPV4_HEADER = 20
IPV6_HEADER = 40
UDP_HEADER = 8
VXLAN_HEADER = 8
ETHER_HEADER = 14

IPV4_MTU_MIN = 576 - 50  # RFC 791: what every host takes, less VXLAN over IPv4; the data plane's least
IPV6_MTU_MIN = 1280  # RFC 8200: no IPv6 link has less
MTU_MAX = 65535
UDP_PAYLOAD_MAX = 65535 - IPV6_HEADER - UDP_HEADER  # of one UDP_SEGMENT message, either family
SEGMENTS_MAX = 64  # what UDP_SEGMENT takes on every kernel that has it

Family = Literal[4, 6]


def overhead(encap: Encap, family: Family) -> int:
    """Bytes between the underlay's MTU and the inner packet's; family is the underlay's: udp 28 / 48, vxlan 50 / 70."""
    if encap == "host-gw":
        return 0
    outer = (IPV4_HEADER if family == 4 else IPV6_HEADER) + UDP_HEADER
    return outer + (VXLAN_HEADER + ETHER_HEADER if encap == "vxlan" else 0)


def inner_mtu(encap: Encap, family: Family, underlay_mtu_bytes: int, *, inner_ipv6: bool = False) -> int:
    """Largest inner packet.

    Raises   ConfigError when the underlay is too narrow for any inner packet (IPv6 inside: narrower than 1280).
    """
    mtu = min(underlay_mtu_bytes, MTU_MAX) - overhead(encap, family)
    least = IPV6_MTU_MIN if inner_ipv6 else IPV4_MTU_MIN
    if mtu < least:
        problem = (
            f"{underlay_mtu_bytes} bytes: leaves {mtu} for the inner packet, IPv{6 if inner_ipv6 else 4} needs {least}"
        )
        raise ConfigError(problem, field="mtu")
    return mtu


def superpacket_segments(mtu_bytes: int) -> int:
    """Segments that one UDP_SEGMENT message holds: of a larger superpacket a nearly empty message would be left."""
    return max(1, min(SEGMENTS_MAX, UDP_PAYLOAD_MAX // (mtu_bytes + VXLAN_HEADER + ETHER_HEADER)))
