"""The bytes of probes: an SCTP handshake's first two packets and ICMP echoes, each with a mark that comes back.

Place     under probe.py. Kernels without SCTP carry it as well as any other protocol, so both ends of it are ours here.
Source    RFC 9260 sections 3.1, 3.3.2 and 3.3.3, appendix A (CRC32c); RFC 792; RFC 4443.
"""

from __future__ import annotations

import struct
from typing import Literal, TypeAlias

Family: TypeAlias = Literal[4, 6]

SCTP = 132
_INIT, _INIT_ACK = 1, 2
_COOKIE = 7  # the parameter that an INIT ACK cannot do without
_ECHO: dict[Family, tuple[int, int]] = {4: (8, 0), 6: (128, 129)}  # request, reply
_HEADER = struct.Struct("!HHI4s")  # source port, destination port, verification tag, CRC32c in little endian
_INIT_CHUNK = struct.Struct("!BBHIIHHI")  # type, flags, length, initiate tag, window, streams out and in, TSN


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def sctp_init(sport: int, dport: int, mark: int) -> bytes:
    """The packet that opens an association; `mark` is its initiate tag."""
    return _sctp(sport, dport, 0, _INIT_CHUNK.pack(_INIT, 0, _INIT_CHUNK.size, mark, 65536, 1, 1, mark))


def sctp_init_ack(init: bytes) -> bytes | None:
    """The answer to an INIT, which bears its mark; None if this is no INIT."""
    found = _read(init, _INIT)
    if found is None:
        return None
    sport, dport, _, mark = found
    cookie = struct.pack("!HH4s", _COOKIE, 8, b"lab.")
    chunk = _INIT_CHUNK.pack(_INIT_ACK, 0, _INIT_CHUNK.size + len(cookie), mark ^ 1 or 2, 65536, 1, 1, mark)
    return _sctp(dport, sport, mark, chunk + cookie)


def sctp_port(packet: bytes) -> int:
    """The port that a packet is for; 0 if it is too short to say."""
    return int(_HEADER.unpack_from(packet)[1]) if len(packet) >= _HEADER.size else 0


def sctp_mark(packet: bytes) -> int | None:
    """The mark that an INIT ACK answers, or that an INIT bears (errors quote it); None if it is neither."""
    if ack := _read(packet, _INIT_ACK):
        return ack[2]
    init = _read(packet, _INIT)
    return init[3] if init else None


def _read(packet: bytes, kind: int) -> tuple[int, int, int, int] | None:
    if len(packet) < _HEADER.size + _INIT_CHUNK.size or packet[_HEADER.size] != kind:
        return None
    sport, dport, tag, _ = _HEADER.unpack_from(packet)
    return sport, dport, tag, _INIT_CHUNK.unpack_from(packet, _HEADER.size)[3]


def _sctp(sport: int, dport: int, tag: int, chunk: bytes) -> bytes:
    crc = crc32c(_HEADER.pack(sport, dport, tag, b"\0\0\0\0") + chunk)
    return _HEADER.pack(sport, dport, tag, struct.pack("<I", crc)) + chunk


def echo_request(family: Family, mark: bytes) -> bytes:
    """An ICMP echo request, its identifier of the mark; the kernel fills in the checksum of IPv6."""
    head = struct.pack("!BBH2sH", _ECHO[family][0], 0, 0, mark[:2], 1)
    if family == 6:
        return head + mark
    words = struct.unpack(f"!{(len(head) + len(mark)) // 2}H", head + mark)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[4:] + mark


def echo_mark(family: Family, packet: bytes) -> bytes | None:
    """The mark of an echo reply, or of a request (errors quote it); None for what is neither."""
    return packet[8:] if len(packet) > 8 and packet[0] in _ECHO[family] else None


def is_echo_reply(family: Family, packet: bytes) -> bool:
    return packet[:1] == bytes((_ECHO[family][1],))


def without_ip(packet: bytes) -> bytes:
    """What a raw socket of IPv4 received, without the header before it."""
    return packet[(packet[0] & 0x0F) * 4 :] if packet else packet
