"""parse_quoted: whose flow an ICMP error belongs to, from however little it quotes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from native_build import build_native, run_program
from packets import PAYLOAD, PORTS, V4, V6
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6TimeExceeded, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw
from twin_parse import packed


@pytest.fixture(scope="module")
def quoted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Packet], str]:
    program = build_native(tmp_path_factory.mktemp("parse"), "test_parse.c", ["parse.c"])

    def run(packet: Packet) -> str:
        return " ".join(run_program(program, "quoted", stdin=bytes(packet).hex() + "\n").split())

    return run


def error4(quote: bytes) -> Packet:
    return IP(**V4) / ICMP(type=3, code=3) / Raw(quote)


def error6(quote: bytes) -> Packet:
    return IPv6(**V6) / ICMPv6DestUnreach() / Raw(quote)


TCP4, UDP4 = bytes(IP(**V4) / TCP(**PORTS, flags="SA")), bytes(IP(**V4) / UDP(**PORTS) / PAYLOAD)
TCP6 = bytes(IPv6(**V6) / TCP(**PORTS, flags="SA"))
ENDS4, ENDS6 = (f"{packed(ends['src']).hex()} {packed(ends['dst']).hex()}" for ends in (V4, V6))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(error4(TCP4), f"{ENDS4} 4 6 40000 80 18", id="TCP"),
        pytest.param(error4(TCP4[:28]), f"{ENDS4} 4 6 40000 80 0", id="TCP cut after 8 bytes"),
        pytest.param(error4(TCP4[:27]), "none none none", id="TCP cut after 7 bytes"),
        pytest.param(error4(TCP4[:19]), "none none none", id="IPv4 header cut"),
        pytest.param(
            error4(b"\x46" + TCP4[1:20] + bytes(4) + TCP4[20:]), f"{ENDS4} 4 6 40000 80 18", id="options quoted"
        ),
        pytest.param(error4(b"\x4f" + TCP4[1:]), "none none none", id="quoted IHL beyond the quote"),
        pytest.param(error4(b"\x44" + TCP4[1:]), "none none none", id="quoted IHL 4"),
        pytest.param(error4(UDP4[:10] + b"\0\0" + UDP4[12:28]), f"{ENDS4} 4 17 40000 80 0", id="stale header checksum"),
        pytest.param(error4(bytes(IP(**V4) / SCTP(**PORTS))[:28]), f"{ENDS4} 4 132 40000 80 0", id="SCTP, 8 bytes"),
        pytest.param(error4(bytes(IP(**V4) / ICMP(type=8, id=77))), f"{ENDS4} 4 1 77 77 0", id="echo request"),
        pytest.param(
            error4(bytes(IP(**V4) / ICMP(type=11) / Raw(UDP4))), "none none none", id="an error about an error"
        ),
        pytest.param(error4(bytes(IP(**V4, proto=47) / PAYLOAD)), f"{ENDS4} 4 47 0 0 0", id="a protocol without ports"),
        pytest.param(
            error4(bytes(IP(**V4, flags="MF") / UDP(**PORTS))), f"{ENDS4} 4 17 40000 80 0", id="a first fragment"
        ),
        pytest.param(error4(bytes(IP(**V4, frag=9, proto=17) / PAYLOAD)), "none none none", id="a later fragment"),
        pytest.param(error4(TCP6), "none none none", id="the other family"),
        pytest.param(error4(b""), "none none none", id="nothing quoted"),
        pytest.param(error6(TCP6), f"{ENDS6} 6 6 40000 80 18", id="TCP, IPv6"),
        pytest.param(error6(TCP6[:48]), f"{ENDS6} 6 6 40000 80 0", id="TCP cut after 8 bytes, IPv6"),
        pytest.param(error6(TCP6[:39]), "none none none", id="IPv6 header cut"),
        pytest.param(error6(TCP4), "none none none", id="the other family, IPv6"),
        pytest.param(
            error6(bytes(IPv6(**V6) / IPv6ExtHdrDestOpt() / UDP(**PORTS))),
            f"{ENDS6} 6 17 40000 80 0",
            id="behind an extension header",
        ),
        pytest.param(error6(bytes(IPv6(**V6) / IPv6ExtHdrDestOpt())[:47]), "none none none", id="extension header cut"),
        pytest.param(
            error6(bytes(IPv6(**V6) / ICMPv6EchoRequest(id=77))), f"{ENDS6} 6 58 77 77 0", id="echo request, IPv6"
        ),
        pytest.param(
            error6(bytes(IPv6(**V6) / ICMPv6TimeExceeded() / PAYLOAD)),
            "none none none",
            id="an error about an error, IPv6",
        ),
        pytest.param(IP(**V4) / UDP(**PORTS) / Raw(TCP4), "none none none", id="not an error at all"),
    ],
)
def test_the_flow_that_an_icmp_error_quotes(quoted: Callable[[Packet], str], packet: Packet, expected: str) -> None:
    assert quoted(packet) == expected
