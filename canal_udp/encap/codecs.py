"""Both encapsulations the slow and obvious way: what tests compare the data plane with. Bytes are all after outer UDP.

udp     +------------------------+
        | inner IP packet ...    |      flannel's: nothing but the packet
        +------------------------+

vxlan   +--------+------------+---------+----------+     RFC 7348
        | 0x08   | 0 0 0      | VNI (3) | 0        |     8 bytes
        +--------+------------+---------+----------+
        | destination MAC (6) | source MAC (6) | ethertype (2): 0x0800, 0x86dd
        +------------------------------------------+     14 bytes
        | inner IP packet ...                      |
        +------------------------------------------+
"""

from __future__ import annotations

from typing import NamedTuple

VXLAN_SIZE = 22
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}


class Unpacked(NamedTuple):
    """The inner packet, or why there is none: a drop reason's name as in canal.h."""

    inner: bytes
    drop: str = "none"


def udp_pack(inner: bytes) -> bytes:
    return inner


def udp_unpack(datagram: bytes) -> Unpacked:
    return Unpacked(datagram)


def vxlan_pack(inner: bytes, *, vni: int, dst_mac: bytes, src_mac: bytes) -> bytes:
    header = b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0"
    return header + dst_mac + src_mac + ETHERTYPES[inner[0] >> 4] + inner


def vxlan_unpack(datagram: bytes, *, vni: int, mac: bytes) -> Unpacked:
    """As strict as the kernel: only the I flag, reserved bits zero, this VNI, a frame for us and not from us."""
    if len(datagram) <= VXLAN_SIZE:
        return Unpacked(b"", "short")
    if datagram[:4] != b"\x08\0\0\0" or datagram[7]:
        return Unpacked(b"", "bad_vxlan")
    if datagram[4:7] != vni.to_bytes(3, "big"):
        return Unpacked(b"", "bad_vni")
    dst_mac, src_mac, ethertype, inner = datagram[8:14], datagram[14:20], datagram[20:22], datagram[22:]
    if dst_mac != mac or src_mac == mac or ETHERTYPES.get(inner[0] >> 4) != ethertype:
        return Unpacked(b"", "bad_ether")
    return Unpacked(inner)
