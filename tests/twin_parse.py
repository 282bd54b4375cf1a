"""The slow, obvious twin of native/parse.c: one packet in, its fields or the reason for dropping it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

DF, FRAG, LATER, MORE, ICMP_ERROR, OPTIONS = 1, 2, 4, 8, 16, 32
HOP_BY_HOP, ICMP, TCP, UDP, ROUTING, FRAGMENT, AH, ICMPV6, DESTINATION, SCTP = 0, 1, 6, 17, 43, 44, 51, 58, 60, 132
PACKET_MAX = 65535
L4_MIN = {TCP: 20, UDP: 8, SCTP: 12}


class Refused(Exception):
    """Carries the drop reason."""


@dataclass
class Twin:
    """Names as in struct canal_flow."""

    family: int = 0
    src: bytes = bytes(16)
    dst: bytes = bytes(16)
    proto: int = 0
    sport: int = 0
    dport: int = 0
    flags: int = 0
    tos: int = 0
    ttl: int = 0
    tcp_flags: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    l4_offset: int = 0
    l4_size: int = 0
    total_size: int = 0
    frag_id: int = 0
    frag_offset: int = 0
    chain: list[int] = field(default_factory=list, compare=False)  # extension headers seen


def u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def ones_sum(data: bytes) -> int:
    total = sum(u16(data, at) for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def read(packet: bytes) -> Twin:
    """Raises   Refused with the reason."""
    if not packet:
        raise Refused("short")
    version = packet[0] >> 4
    if version not in (4, 6):
        raise Refused("bad_ip")
    return _read4(packet) if version == 4 else _read6(packet)


def _read4(packet: bytes) -> Twin:
    if len(packet) < 20:
        raise Refused("short")
    header, total = (packet[0] & 15) * 4, u16(packet, 2)
    if header < 20 or total < header:
        raise Refused("bad_ip")
    if total > len(packet):
        raise Refused("short")
    if ones_sum(packet[:header]) != 0xFFFF:
        raise Refused("bad_ip")
    _check_options(packet[20:header])
    twin = Twin(4, mapped(packet[12:16]), mapped(packet[16:20]), packet[9], tos=packet[1], ttl=packet[8])
    twin.total_size, twin.l4_offset, twin.frag_id = total, header, u16(packet, 4)
    bits = u16(packet, 6)
    twin.flags = (DF if bits & 0x4000 else 0) | (OPTIONS if header > 20 else 0)
    if bits & 0x3FFF:
        _set_fragment(twin, (bits & 0x1FFF) * 8, bool(bits & 0x2000))
        if not _sane(twin, total - header, header):
            raise Refused("bad_ip")
    _read_l4(twin, packet[header:total])
    return twin


def _check_options(options: bytes) -> None:
    while options and options[0] != 0:
        size = 1 if options[0] == 1 else options[1] if len(options) > 1 else 0
        if options[0] in (131, 137) or size > len(options) or size < (1 if options[0] == 1 else 2):
            raise Refused("ip_option")
        options = options[size:]


def _read6(packet: bytes) -> Twin:
    if len(packet) < 40 or len(packet) < 40 + u16(packet, 4):
        raise Refused("short")
    packet = packet[: 40 + u16(packet, 4)]
    if len(packet) > PACKET_MAX:
        raise Refused("too_long")
    twin = Twin(6, packet[8:24], packet[24:40], packet[6], flags=DF, ttl=packet[7], tos=u16(packet, 0) >> 4 & 255)
    twin.total_size = len(packet)
    rest = packet[40:]
    while twin.proto in (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION) and not twin.flags & LATER:
        twin.flags |= OPTIONS
        rest = _skip_extension(twin, rest, len(packet))
    twin.l4_offset = len(packet) - len(rest)
    _read_l4(twin, rest)
    return twin


def _skip_extension(twin: Twin, rest: bytes, total: int) -> bytes:
    kind = twin.proto
    if len(twin.chain) == 8 or len(rest) < 8:
        raise Refused("bad_ext")
    size = {FRAGMENT: 8, AH: (rest[1] + 2) * 4}.get(kind, (rest[1] + 1) * 8)
    if size > len(rest) or total - len(rest) + size > 40 + 256:
        raise Refused("bad_ext")
    if (
        (kind == HOP_BY_HOP and twin.chain)
        or (kind == FRAGMENT and FRAGMENT in twin.chain)
        or (kind == ROUTING and rest[2] == 0)
        or (kind == AH and size < 12)
    ):
        raise Refused("bad_ext")
    if kind == HOP_BY_HOP:
        _check_hop_by_hop(rest[2:size])
    if kind == FRAGMENT:
        twin.frag_id = int.from_bytes(rest[4:8], "big")
        if u16(rest, 2) & 0xFFF9:
            _set_fragment(twin, u16(rest, 2) & 0xFFF8, bool(rest[3] & 1))
            if not _sane(twin, len(rest) - 8, total - len(rest) - 40):
                raise Refused("bad_ext")
    twin.chain.append(kind)
    twin.proto = rest[0]
    return rest[size:]


def _check_hop_by_hop(options: bytes) -> None:
    while options:
        size = 1 if options[0] == 0 else 2 + options[1] if len(options) > 1 else len(options) + 1
        if options[0] == 0xC2 or size > len(options):
            raise Refused("bad_ext")
        options = options[size:]


def _set_fragment(twin: Twin, offset: int, more: bool) -> None:
    twin.frag_offset = offset
    twin.flags |= FRAG | (LATER if offset else 0) | (MORE if more else 0)


def _sane(twin: Twin, payload: int, before: int) -> bool:
    whole_words = payload % 8 == 0 or not twin.flags & MORE
    return payload > 0 and before + twin.frag_offset + payload <= PACKET_MAX and whole_words


def _read_l4(twin: Twin, l4: bytes) -> None:
    if twin.flags & LATER:
        if twin.proto == TCP and twin.frag_offset == 8:
            raise Refused("bad_l4")
        return
    icmp = twin.proto == (ICMP if twin.family == 4 else ICMPV6)
    least = 8 if icmp else L4_MIN.get(twin.proto, 0)
    if len(l4) < least:
        raise Refused("bad_l4")
    twin.l4_size = least
    if twin.proto in L4_MIN:
        twin.sport, twin.dport = u16(l4, 0), u16(l4, 2)
    if twin.proto == TCP:
        twin.l4_size, twin.tcp_flags = (l4[12] >> 4) * 4, l4[13]
        if not 20 <= twin.l4_size <= len(l4):
            raise Refused("bad_l4")
    if twin.proto == UDP and not (u16(l4, 4) >= 8 and (u16(l4, 4) <= len(l4) or twin.flags & FRAG)):
        raise Refused("bad_l4")
    if icmp:
        twin.icmp_type, twin.icmp_code = l4[0], l4[1]
        errors, echoes = ((3, 4, 5, 11, 12), (0, 8)) if twin.family == 4 else (range(128), (128, 129))
        twin.flags |= ICMP_ERROR if l4[0] in errors else 0
        twin.sport = twin.dport = u16(l4, 4) if l4[0] in echoes else 0


def mapped(addr: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + addr


def packed(text: str) -> bytes:
    """The 16 bytes of an address, as struct canal_flow has it."""
    return IPv6Address(text).packed if ":" in text else mapped(IPv4Address(text).packed)
