"""Packets for tests: one of every kind that the data plane knows, and random ones, all written by scapy."""

from __future__ import annotations

import random
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

V4: dict[str, Any] = {"src": "10.244.1.2", "dst": "10.244.2.3"}
V6: dict[str, Any] = {"src": "fd00:1::2", "dst": "fd00:2::3"}
PORTS: dict[str, Any] = {"sport": 40000, "dport": 80}
PAYLOAD = Raw(b"payload!")


def _inner4() -> Packet:
    return IP(src=V4["dst"], dst=V4["src"], ttl=9) / UDP(sport=53, dport=4242) / PAYLOAD


def _inner6() -> Packet:
    return IPv6(src=V6["dst"], dst=V6["src"]) / TCP(sport=443, dport=4242, flags="S")


def every_kind() -> dict[str, bytes]:
    """Valid packets by name."""
    tcp_options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 7)]
    kinds: dict[str, Packet] = {
        "tcp4": IP(**V4) / TCP(**PORTS, flags="PA") / PAYLOAD,
        "tcp4 syn with options": IP(**V4, flags="DF") / TCP(**PORTS, flags="S", options=tcp_options),
        "udp4": IP(**V4) / UDP(**PORTS) / PAYLOAD,
        "udp4 behind IP options": IP(**V4, options=[IPOption_NOP(), IPOption_RR(routers=["0.0.0.0"])])
        / UDP(**PORTS)
        / PAYLOAD,
        "sctp4": IP(**V4) / SCTP(**PORTS) / SCTPChunkInit(),
        "echo4": IP(**V4) / ICMP(type=8, id=77, seq=1) / PAYLOAD,
        "unreachable4": IP(**V4) / ICMP(type=3, code=1) / _inner4(),
        "gre4": IP(**V4, proto=47) / PAYLOAD,
        "udp4 first fragment": IP(**V4, flags="MF", id=5) / UDP(**PORTS, len=1000) / PAYLOAD,
        "udp4 later fragment": IP(**V4, frag=2, id=5, proto=17) / PAYLOAD,
        "tcp6": IPv6(**V6) / TCP(**PORTS, flags="A") / PAYLOAD,
        "udp6": IPv6(**V6) / UDP(**PORTS) / PAYLOAD,
        "sctp6": IPv6(**V6) / SCTP(**PORTS) / SCTPChunkInit(),
        "echo6": IPv6(**V6) / ICMPv6EchoRequest(id=77) / PAYLOAD,
        "unreachable6": IPv6(**V6) / ICMPv6DestUnreach() / _inner6(),
        "no next header": IPv6(**V6, nh=59),
        "udp6 behind every extension": IPv6(**V6)
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrRouting(type=4, segleft=0)
        / IPv6ExtHdrFragment(id=9, nh=51)
        / AH(nh=17, payloadlen=4, spi=1, seq=1, icv=bytes(12))
        / UDP(**PORTS)
        / PAYLOAD,
        "udp6 first fragment": IPv6(**V6) / IPv6ExtHdrFragment(m=1, id=9) / UDP(**PORTS, len=1000) / PAYLOAD,
        "udp6 later fragment": IPv6(**V6) / IPv6ExtHdrFragment(offset=2, id=9, nh=17) / PAYLOAD,
    }
    return {name: bytes(packet) for name, packet in kinds.items()}


def random_packet(rng: random.Random) -> Packet:
    """A valid TCP, UDP, SCTP or ICMP echo packet over either family, with options or extension headers or without."""
    payload = Raw(rng.randbytes(rng.randrange(64)))
    ports: dict[str, Any] = {"sport": rng.randrange(65536), "dport": rng.randrange(65536)}
    v4 = rng.random() < 0.5
    l4: Packet = rng.choice(
        (
            TCP(**ports, seq=rng.getrandbits(32), flags=rng.randrange(256), options=[("NOP", None)] * rng.randrange(9)),
            UDP(**ports),
            SCTP(**ports),
            ICMP(type=8, id=ports["sport"]) if v4 else ICMPv6EchoRequest(id=ports["sport"]),
        )
    )
    return (_random_ip4(rng) if v4 else _random_ip6(rng)) / l4 / payload


def _random_ip4(rng: random.Random) -> Packet:
    return IP(
        src=".".join(str(rng.randrange(256)) for _ in range(4)),
        dst=".".join(str(rng.randrange(256)) for _ in range(4)),
        tos=rng.randrange(256),
        ttl=rng.randrange(256),
        id=rng.randrange(65536),
        flags=rng.choice((0, "DF")),
        options=rng.choice(([], [IPOption_NOP()] * rng.randrange(8), [IPOption_RR(routers=["0.0.0.0"] * 2)])),
    )


def _random_ip6(rng: random.Random) -> Packet:
    packet: Packet = IPv6(
        src=":".join(f"{rng.randrange(65536):x}" for _ in range(8)),
        dst=":".join(f"{rng.randrange(65536):x}" for _ in range(8)),
        tc=rng.randrange(256),
        fl=rng.getrandbits(20),
        hlim=rng.randrange(256),
    )
    if rng.random() < 0.2:
        packet /= IPv6ExtHdrHopByHop(options=[PadN(optdata=rng.randbytes(rng.randrange(20)))])
    for _ in range(rng.choice((0, 0, 0, 1, 2, 4))):
        packet /= rng.choice((IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))])))
    return packet
