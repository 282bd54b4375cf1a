#!/usr/bin/env python
"""Write the seed corpora of tests/fuzz: one good input of each kind, from scapy; run when a target's input changes."""

from __future__ import annotations

import struct
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "corpus"
A, B, PEER = "10.1.0.2", "10.1.0.3", "10.1.2.2"
POD_A, POD_B, HOST, VXLAN_SOCKET, UDP_SOCKET = range(5)


def packets() -> dict[str, bytes]:
    def v4(payload: Packet, src: str = A, dst: str = B, **fields: object) -> Packet:
        return IP(src=src, dst=dst, id=1, **fields) / payload

    def v6(payload: Packet) -> Packet:
        return IPv6(src="fd00::2", dst="fd02::2") / payload

    data = Raw(bytes(range(40)))
    quoted = Raw(bytes(v4(UDP(sport=1, dport=2) / data, src=B, dst=A)))
    first, *_, last = fragment(v4(UDP(sport=1, dport=2) / Raw(bytes(300))), fragsize=160)
    return {
        "tcp": bytes(v4(TCP(sport=1, dport=2, flags="PA", options=[("MSS", 1460)]) / data)),
        "tcp-syn": bytes(v4(TCP(sport=1, dport=2, flags="S", options=[("MSS", 1460), ("WScale", 7)]), dst=PEER)),
        "udp": bytes(v4(UDP(sport=1, dport=2) / data)),
        "sctp": bytes(v4(SCTP(sport=1, dport=2))),
        "icmp": bytes(v4(ICMP(id=7))),
        "icmp-error": bytes(v4(ICMP(type=3, code=4) / quoted)),
        "options": bytes(v4(UDP(sport=1, dport=2) / data, options=[IPOption_RR()])),
        "fragment-first": bytes(first),
        "fragment-last": bytes(last),
        "tcp6": bytes(v6(TCP(sport=1, dport=2) / data)),
        "echo6": bytes(v6(ICMPv6EchoRequest(id=7))),
        "error6": bytes(v6(ICMPv6PacketTooBig(mtu=1280) / v6(UDP(sport=1, dport=2) / data))),
        "extension6": bytes(v6(IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=9, m=1) / UDP(sport=1, dport=2) / data)),
    }


def vxlan(inner: bytes) -> bytes:
    ether = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x0800 if inner[0] >> 4 == 4 else 0x86DD)
    return bytes(VXLAN(flags="Instance", vni=1) / ether / Raw(inner))


def vnet(
    *, needs_csum: int = 0, gso_type: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0, at: int = 0
) -> bytes:
    return struct.pack("=BBHHHH", needs_csum, gso_type, hdr_len, gso_size, start, at)


def superpacket() -> bytes:
    tcp = bytes(IP(src=A, dst=PEER, id=1) / TCP(sport=1, dport=2, flags="A") / Raw(bytes(600)))
    return vnet(needs_csum=1, gso_type=1, hdr_len=40, gso_size=200, start=20, at=16) + tcp


def frame(port: int, data: bytes, gso_size: int = 0, tos: int = 0) -> bytes:
    return struct.pack(">BHHB", port, len(data), gso_size, tos) + data


def corpora() -> dict[str, dict[str, bytes]]:
    plain = packets()
    big = IP(src=A, dst=PEER, id=3) / UDP(sport=1, dport=2) / Raw(bytes(1472))
    train = [
        bytes(IP(src=A, dst=B, id=i) / TCP(sport=1, dport=2, seq=100 * i, flags="A") / Raw(bytes(100)))
        for i in range(4)
    ]
    answers = [vxlan(bytes(IP(src=PEER, dst=A, id=i) / TCP(sport=2, dport=1, seq=i, flags="SA"))) for i in range(2)]
    return {
        "parse": plain,
        "vxlan": {name: vxlan(packet) for name, packet in plain.items()},
        "vnet": {name: vnet() + packet for name, packet in plain.items()} | {"superpacket": superpacket()},
        "gso": {name: struct.pack(">HB", 16, 64) + packet for name, packet in plain.items()},
        "coalesce": {"train": b"".join(struct.pack(">H", len(p)) + p for p in train)},
        "pipeline": {
            "local": frame(POD_A, vnet() + plain["udp"]) + frame(POD_B, vnet() + plain["udp"]),
            "out-and-back": frame(POD_A, vnet() + plain["tcp-syn"]) + frame(VXLAN_SOCKET, answers[0]),
            "too-big": frame(POD_A, vnet() + bytes(big)),
            "superpacket": frame(POD_A, superpacket()),
            "coalesced": frame(VXLAN_SOCKET, b"".join(answers), gso_size=len(answers[0])),
            "fragments": frame(POD_A, vnet() + plain["fragment-first"]) + frame(POD_A, vnet() + plain["fragment-last"]),
            "host6": frame(HOST, vnet() + plain["echo6"]),
            "bare": frame(UDP_SOCKET, bytes(IP(src="10.1.3.2", dst=A) / UDP(sport=1, dport=2) / Raw(b"x"))),
        },
    }


for target, inputs in corpora().items():
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in inputs.items():
        (directory / name).write_bytes(data)
