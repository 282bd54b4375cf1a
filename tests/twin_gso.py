"""The slow twin of gso.c: a superpacket cut in plain Python, one field at a time, and the packets to try it on."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

TCP, UDP = 6, 17
FIN, PSH, CWR = 1, 8, 128


def ones_sum(data: bytes) -> int:
    """RFC 1071, word by word, folded but not inverted."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def headers(packet: bytes) -> tuple[int, int, int]:
    """Protocol, offset and size of the transport header; IPv6 extension headers are followed."""
    if packet[0] >> 4 == 4:
        proto, offset = packet[9], (packet[0] & 15) * 4
    else:
        proto, offset = packet[6], 40
        while proto in (0, 43, 60):
            proto, offset = packet[offset], offset + 8 * (packet[offset + 1] + 1)
    return proto, offset, (packet[offset + 12] >> 4) * 4 if proto == TCP else 8


def pseudo_sum(packet: bytes) -> int:
    """Sum of the pseudo header of a TCP or UDP packet: what a partial checksum field holds."""
    proto, offset, _ = headers(packet)
    addrs = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return ones_sum(addrs + struct.pack("!II", len(packet) - offset, proto))


def check_at(packet: bytes) -> int:
    proto, offset, _ = headers(packet)
    return offset + (16 if proto == TCP else 6)


def partial(packet: bytes) -> bytes:
    at = check_at(packet)
    return packet[:at] + struct.pack("!H", pseudo_sum(packet)) + packet[at + 2 :]


def final(packet: bytes) -> bytes:
    """With lengths as they are, all checksums right."""
    proto, offset, _ = headers(packet)
    out, at = bytearray(packet), check_at(packet)
    if packet[0] >> 4 == 4:
        out[10:12] = b"\0\0"
        out[10:12] = struct.pack("!H", ones_sum(out[:offset]) ^ 0xFFFF)
    out[at : at + 2] = b"\0\0"
    check = ones_sum(struct.pack("!H", pseudo_sum(packet)) + out[offset:]) ^ 0xFFFF
    out[at : at + 2] = struct.pack("!H", check or (0xFFFF if proto == UDP else 0))
    return bytes(out)


def with_lengths(packet: bytearray) -> bytes:
    """The lengths in the headers say what is there."""
    proto, offset, _ = headers(packet)
    if packet[0] >> 4 == 4:
        packet[2:4] = struct.pack("!H", len(packet))
    else:
        packet[4:6] = struct.pack("!H", len(packet) - 40)
    if proto == UDP:
        packet[offset + 4 : offset + 6] = struct.pack("!H", len(packet) - offset)
    return bytes(packet)


def segment(packet: bytes, gso_size: int) -> list[bytes]:
    """What a NIC with TSO or USO would put on the wire."""
    proto, offset, size = headers(packet)
    head, payload = packet[: offset + size], packet[offset + size :]
    cuts = range(0, len(payload), gso_size)
    wire = []
    for index, at in enumerate(cuts):
        out = bytearray(head + payload[at : at + gso_size])
        if packet[0] >> 4 == 4:
            out[4:6] = struct.pack("!H", (int.from_bytes(head[4:6], "big") + index) % 2**16)
        if proto == TCP:
            seq = int.from_bytes(head[offset + 4 : offset + 8], "big")
            out[offset + 4 : offset + 8] = struct.pack("!I", (seq + at) % 2**32)
            if index:
                out[offset + 13] &= ~CWR & 0xFF
            if index < len(cuts) - 1:
                out[offset + 13] &= ~(FIN | PSH) & 0xFF
        wire.append(final(bytearray(with_lengths(out))))
    return wire


def addresses(family: int, source: int, destination: int) -> bytes:
    prefix = "10.244.0.{}" if family == 4 else "fd00:10:244::{:x}"
    return b"".join(ip_address(prefix.format(host)).packed for host in (source, destination))


def ip_header(
    family: int, proto: int, rest: int, extra: bytes = b"", ident: int = 1, tos: int = 0, df: bool = True
) -> bytes:
    """IP header for `rest` bytes behind it; extra: IPv4 options, or an IPv6 extension header but its first byte."""
    if family == 6:
        chain = bytes([proto]) + extra if extra else b""
        first = 60 if extra else proto
        head = struct.pack("!IHBB", 6 << 28 | tos << 20 | 0x12345, rest + len(chain), first, 64)
        return head + addresses(6, 2, 3) + chain
    size = 20 + len(extra)
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, tos, size + rest, ident, 0x4000 * df, 64, proto, 0)
    return head + addresses(4, 2, 3) + extra


def tcp_packet(
    family: int, payload: bytes, flags: int = 16, seq: int = 1000, options: bytes = b"", **ip: object
) -> bytes:
    size = 20 + len(options)
    tcp = struct.pack("!HHIIBBHHH", 5201, 40000, seq, 77, size // 4 << 4, flags, 501, 0, 0) + options
    return final(ip_header(family, TCP, size + len(payload), **ip) + tcp + payload)  # type: ignore[arg-type]


def udp_packet(family: int, payload: bytes, **ip: object) -> bytes:
    udp = struct.pack("!HHHH", 5201, 40000, 8 + len(payload), 0)
    return final(ip_header(family, UDP, 8 + len(payload), **ip) + udp + payload)  # type: ignore[arg-type]


def random_packet(rng: random.Random, size: int) -> bytes:
    """A TCP or UDP packet with `size` bytes of payload and whatever a sender may put around them."""
    family, payload = rng.choice((4, 6)), rng.randbytes(size)
    extra = rng.choice((b"", b"", b"\1" * 4, b"\1" * 40) if family == 4 else (b"", b"", b"\0\1\4\0\0\0\0"))
    ip = {"extra": extra, "tos": rng.randrange(256)}
    if family == 4:
        ip |= {"ident": rng.choice((0, 65535, rng.randrange(2**16))), "df": rng.random() < 0.5}
    if rng.random() < 0.3:
        return udp_packet(family, payload, **ip)
    flags = 16 | rng.randrange(256) & ~6  # neither SYN nor RST
    seq = rng.choice((0, 2**32 - 1, rng.randrange(2**32)))
    return tcp_packet(family, payload, flags, seq, b"\1" * rng.choice((0, 12, 40)), **ip)
