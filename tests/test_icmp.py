"""icmp: errors that hosts understand, about packets that deserve one, and not too many."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from native_build import build_native, run_program
from packets import PAYLOAD, PORTS, V4, V6, every_kind, random_packet
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw
from twin_parse import ones_sum, packed

NO_ROUTE, PROHIBITED, TOO_BIG, TIME_EXCEEDED = range(4)
ROUTER4, ROUTER6, NO_ROUTER = "10.244.1.1", "fd00:1::1", "::"
SEED = 20240614

Run = Callable[[Sequence[str]], list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    program = build_native(tmp_path_factory.mktemp("icmp"), "test_icmp.c", ["icmp.c", "parse.c", "csum.c"])
    return lambda lines: run_program(program, stdin="\n".join(lines) + "\n").splitlines()


def ask(kind: int, packet: bytes | Packet, mtu: int = 0, router: str | None = None) -> str:
    """The line that asks for an error about a packet."""
    raw = bytes(packet)
    router = router or (ROUTER4 if raw[0] >> 4 == 4 else ROUTER6)
    return f"error {kind} {mtu} {packed(router).hex()} {raw.hex()}"


def error_about(run: Run, kind: int, packet: bytes | Packet, mtu: int = 0, router: str | None = None) -> bytes | None:
    (answer,) = run([ask(kind, packet, mtu, router)])
    return None if answer == "none" else bytes.fromhex(answer.strip())


BIG4, BIG6 = (bytes(ip / TCP(**PORTS) / Raw(bytes(range(256)) * 8)) for ip in (IP(**V4, flags="DF"), IPv6(**V6)))


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mtu", "expected"),
    [
        pytest.param(NO_ROUTE, 0, ICMP(type="dest-unreach", code="network-unreachable"), id="no route"),
        pytest.param(PROHIBITED, 0, ICMP(type=3, code="communication-prohibited"), id="prohibited"),
        pytest.param(TOO_BIG, 1400, ICMP(type=3, code="fragmentation-needed", nexthopmtu=1400), id="too big"),
        pytest.param(
            TOO_BIG, 70000, ICMP(type=3, code=4, nexthopmtu=65535), id="too big, for an MTU above the field's"
        ),
        pytest.param(
            TIME_EXCEEDED, 1400, ICMP(type="time-exceeded", code=0), id="time exceeded, where MTU says nothing"
        ),
    ],
)
def test_ipv4_errors_are_those_that_scapy_writes(run: Run, kind: int, mtu: int, expected: Packet) -> None:
    header = IP(src=ROUTER4, dst=V4["src"], ttl=64, tos=0xC0, id=0)
    assert error_about(run, kind, BIG4, mtu) == bytes(header / expected / Raw(BIG4[: 576 - 28]))


@pytest.mark.parametrize(
    ("kind", "mtu", "expected"),
    [
        pytest.param(NO_ROUTE, 0, ICMPv6DestUnreach(code=0), id="no route"),
        pytest.param(PROHIBITED, 0, ICMPv6DestUnreach(code=1), id="prohibited"),
        pytest.param(TOO_BIG, 1400, ICMPv6PacketTooBig(mtu=1400), id="too big"),
        pytest.param(TOO_BIG, 70000, ICMPv6PacketTooBig(mtu=70000), id="too big, MTU of 32 bits"),
        pytest.param(TIME_EXCEEDED, 1400, ICMPv6TimeExceeded(code=0), id="time exceeded, where MTU says nothing"),
    ],
)
def test_ipv6_errors_are_those_that_scapy_writes(run: Run, kind: int, mtu: int, expected: Packet) -> None:
    header = IPv6(src=ROUTER6, dst=V6["src"], hlim=64)
    assert error_about(run, kind, BIG6, mtu) == bytes(header / expected / Raw(BIG6[: 1280 - 48]))


def test_short_packets_are_quoted_whole_and_without_what_followed_them(run: Run) -> None:
    packet = bytes(IP(**V4) / UDP(**PORTS) / PAYLOAD)
    assert error_about(run, NO_ROUTE, packet + b"behind the packet") == error_about(run, NO_ROUTE, packet)
    quote = (error_about(run, NO_ROUTE, packet) or b"")[28:]
    assert quote == packet


def test_superpackets_are_quoted_by_their_beginning(run: Run) -> None:
    superpacket = bytes(IP(**V4, flags="DF") / TCP(**PORTS) / Raw(bytes(60000)))
    error = error_about(run, TOO_BIG, superpacket, 1450)
    assert error is not None
    assert len(error) == 576
    assert error[28:] == superpacket[:548]


def test_checksums_are_right_for_odd_and_random_packets(run: Run) -> None:
    rng = random.Random(SEED)
    packets = [bytes(random_packet(rng)) for _ in range(300)]
    answers = run([ask(rng.randrange(4), packet, rng.randrange(65536)) for packet in packets])
    written = [bytes.fromhex(answer.strip()) for answer in answers if answer != "none"]
    assert len(written) > 200
    for error in written:
        if error[0] >> 4 == 4:
            assert len(error) == int.from_bytes(error[2:4], "big")
            assert ones_sum(error[:20]) == ones_sum(error[20:] + bytes(len(error) % 2)) == 0xFFFF
        else:
            pseudo = error[8:40] + (len(error) - 40).to_bytes(4, "big") + b"\0\0\0\x3a"
            assert ones_sum(pseudo + error[40:] + bytes(len(error) % 2)) == 0xFFFF


# ---- who gets none ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp4", "udp4", "echo4", "gre4", "udp4 first fragment", "tcp6", "udp6", "echo6"])
def test_ordinary_packets_deserve_an_error(run: Run, kind: str) -> None:
    assert error_about(run, NO_ROUTE, every_kind()[kind])


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(IP(**V4) / ICMP(type=3) / PAYLOAD, id="unreachable"),
        pytest.param(IP(**V4) / ICMP(type=5) / PAYLOAD, id="redirect"),
        pytest.param(IP(**V4) / ICMP(type=11) / PAYLOAD, id="time exceeded"),
        pytest.param(IP(**V4) / ICMP(type=12) / PAYLOAD, id="parameter problem"),
        pytest.param(IP(**V4, frag=9, proto=17) / PAYLOAD, id="later fragment"),
        pytest.param(IP(src=V4["src"], dst="224.0.0.1") / UDP(), id="to multicast"),
        pytest.param(IP(src=V4["src"], dst="255.255.255.255") / UDP(), id="to broadcast"),
        pytest.param(IP(src="0.0.0.0", dst=V4["dst"]) / UDP(), id="from nobody"),
        pytest.param(IP(src="0.1.2.3", dst=V4["dst"]) / UDP(), id="from this network"),
        pytest.param(IP(src="127.0.0.1", dst=V4["dst"]) / UDP(), id="from loopback"),
        pytest.param(IP(src="224.0.0.1", dst=V4["dst"]) / UDP(), id="from multicast"),
        pytest.param(IP(src="255.255.255.255", dst=V4["dst"]) / UDP(), id="from broadcast"),
        pytest.param(IPv6(**V6) / ICMPv6DestUnreach() / PAYLOAD, id="unreachable, IPv6"),
        pytest.param(IPv6(**V6) / ICMPv6PacketTooBig() / PAYLOAD, id="packet too big, IPv6"),
        pytest.param(IPv6(**V6) / ICMPv6ND_Redirect(), id="redirect, IPv6"),
        pytest.param(IPv6(**V6) / IPv6ExtHdrFragment(offset=9) / PAYLOAD, id="later fragment, IPv6"),
        pytest.param(IPv6(src=V6["src"], dst="ff02::1") / ICMPv6EchoRequest(), id="to multicast, IPv6"),
        pytest.param(IPv6(src="::", dst=V6["dst"]) / UDP(), id="from nobody, IPv6"),
        pytest.param(IPv6(src="::1", dst=V6["dst"]) / UDP(), id="from loopback, IPv6"),
        pytest.param(IPv6(src="ff02::1", dst=V6["dst"]) / UDP(), id="from multicast, IPv6"),
    ],
)
@pytest.mark.parametrize("kind", range(4), ids=["no route", "prohibited", "too big", "time exceeded"])
def test_no_error_about(run: Run, packet: Packet, kind: int) -> None:
    assert error_about(run, kind, packet, 1400) is None


@pytest.mark.parametrize("packet", [BIG4, BIG6], ids=["IPv4", "IPv6"])
def test_no_error_without_an_address_of_our_own(run: Run, packet: bytes) -> None:
    assert error_about(run, NO_ROUTE, packet, router=NO_ROUTER) is None


# ---- how many --------------------------------------------------------------------------------------------------------


def allowed(run: Run, per_s: int, times: Sequence[int]) -> list[bool]:
    (answer,) = run([f"allow {per_s} {' '.join(map(str, times))}"])
    return [letter == "1" for letter in answer]


@pytest.mark.parametrize("start", [0, 1, 10**15], ids=["clock at 0", "clock at 1", "clock at 30,000 years"])
def test_a_burst_and_then_the_rate(run: Run, start: int) -> None:
    """100/s: 20 at once, then one every 10 ms."""
    assert allowed(run, 100, [start] * 30) == [True] * 20 + [False] * 10
    assert int(run([f"flood 100 {start} 10000 25"])[0]) in (1019, 1020)


@pytest.mark.parametrize("per_s", [1, 3, 7, 333, 999, 1001])
def test_no_rounding_at_odd_rates(run: Run, per_s: int) -> None:
    total = int(run([f"flood {per_s} 1 20000 {per_s}"])[0])
    assert abs(total - per_s * 20 - max(1, per_s // 5)) <= 1


def test_a_long_silence_earns_no_more_than_the_burst(run: Run) -> None:
    assert sum(allowed(run, 100, [1] * 30 + [10**12] * 30)) == 40


def test_a_clock_that_steps_back_earns_nothing(run: Run) -> None:
    assert sum(allowed(run, 100, [5000] * 30 + [1] * 30 + [4999] * 30)) == 20


def test_no_rate_is_no_error(run: Run) -> None:
    assert not any(allowed(run, 0, [1, 2, 3]))
