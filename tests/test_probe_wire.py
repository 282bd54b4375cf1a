"""The bytes of probes, against scapy."""

from __future__ import annotations

import random

from scapy.layers.inet import ICMP, IP, IPOption
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck

from canal_udp.lab import probe_wire

MARK = 0xDEADBEEF
INIT = probe_wire.sctp_init(4000, 80, MARK)


def checked(packet: bytes) -> SCTP:
    """What scapy reads, after it agreed with the checksum."""
    found = SCTP(packet)
    again = found.copy()
    del again.chksum
    assert bytes(again) == packet
    return found


def test_a_known_crc() -> None:
    assert probe_wire.crc32c(b"123456789") == 0xE3069283


def test_an_init_is_one() -> None:
    found = checked(INIT)
    assert (found.sport, found.dport, found.tag, found[SCTPChunkInit].init_tag) == (4000, 80, 0, MARK)
    assert (probe_wire.sctp_port(INIT), probe_wire.sctp_mark(INIT)) == (80, MARK)


def test_its_answer_bears_its_mark() -> None:
    answer = probe_wire.sctp_init_ack(INIT)
    assert answer is not None
    found = checked(answer)
    assert (found.sport, found.dport, found.tag) == (80, 4000, MARK)
    assert found[SCTPChunkInitAck].init_tag and found[SCTPChunkInitAck].params
    assert probe_wire.sctp_mark(answer) == MARK
    assert probe_wire.sctp_init_ack(answer) is None


def test_no_bytes_make_a_reader_fail() -> None:
    rng = random.Random(seed := 20261125)
    for packet in (INIT, probe_wire.sctp_init_ack(INIT) or b"", probe_wire.echo_request(4, b"12345678")):
        for size in range(len(packet)):
            cut = bytearray(packet[:size])
            if cut and rng.random() < 0.5:
                cut[rng.randrange(size)] = rng.randrange(256)
            data = bytes(cut)
            assert probe_wire.sctp_init_ack(data) is None or size >= 32, f"seed {seed}"
            probe_wire.sctp_mark(data)
            probe_wire.sctp_port(data)
            probe_wire.echo_mark(4, data)
            probe_wire.without_ip(data)


def test_an_echo_is_one_in_both_families() -> None:
    found = ICMP(probe_wire.echo_request(4, b"12345678"))
    again = found.copy()
    del again.chksum
    assert found.type == 8 and bytes(again) == bytes(found)
    assert ICMPv6EchoRequest(probe_wire.echo_request(6, b"12345678")).data == b"12345678"
    reply = bytes(ICMP(type=0, id=1, seq=1) / b"12345678")
    assert probe_wire.is_echo_reply(4, reply) and probe_wire.echo_mark(4, reply) == b"12345678"
    assert not probe_wire.is_echo_reply(6, reply)


def test_options_are_part_of_the_header() -> None:
    packet = bytes(IP(options=[IPOption(b"\x94\x04\x00\x00")], proto=132) / INIT)
    assert len(packet) == 24 + len(INIT) and probe_wire.without_ip(packet) == INIT
