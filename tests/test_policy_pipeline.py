"""Policy on a packet's way, frame in to frames out: what passes, how it is refused, what a change does to flows."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from canal_udp.encap.fib import unpacked
from canal_udp.policy.compile import Engine
from canal_udp.policy.compiled import Compiled
from canal_udp.policy.model import State
from canal_udp.readings import Frame
from tests.bed import Bed, X, checksums_hold, from_tun, partial, unwrap, vnet
from tests.policies import read
from tests.programs import ALLOW, DENY, Line, compiled, hits, notes, one
from tests.test_policy_compile import changes

A, B, X1, HOST, OUTSIDE = "10.1.1.2", "10.1.1.3", "10.1.2.9", "192.0.2.1", "8.8.8.8"
A6, B6, X6, HOST6 = "fd00:1:1::2", "fd00:1:1::3", "fd00:1:2::7", "2001:db8::1"
PICK_UP_MS = 300_000

NOT_80 = (Line("deny", 5, dport=(80, 80)), ALLOW)
NOT_81 = (Line("deny", 5, dport=(81, 81)), ALLOW)
REJECT_80 = (Line("reject", 5, dport=(80, 80)), ALLOW)


def ip(src: str, dst: str) -> Packet:
    return IP(src=src, dst=dst, id=7) if "." in src else IPv6(src=src, dst=dst)


def tcp(src: str, dst: str, dport: int = 80, sport: int = 4000, flags: str = "S", size: int = 0) -> Packet:
    return ip(src, dst) / TCP(sport=sport, dport=dport, flags=flags, seq=5000, ack=9000) / Raw(b"t" * size)


def udp(src: str, dst: str, dport: int = 80, sport: int = 4000, size: int = 10) -> Packet:
    return ip(src, dst) / UDP(sport=sport, dport=dport) / Raw(b"u" * size)


def push(bed: Bed, packet: Packet) -> list[Frame]:
    """From wherever its source lives."""
    src = packet[IP].src if IP in packet else packet[IPv6].src
    if src in (X1, X6):
        return bed.push(bed.from_peer(packet))
    return bed.push(from_tun({A: bed.a, A6: bed.a, B: bed.b, B6: bed.b}.get(src, bed.host), packet))


def passes(bed: Bed, packet: Packet) -> bool:
    """Does it leave, and nothing else?"""
    before = bed.drops()
    frames = push(bed, packet)
    assert bool(frames) == (bed.drops() == before)
    return bool(frames)


def inner(bed: Bed, frame: Frame) -> Packet:
    raw = next(unwrap(frame, X)) if frame.port == bed.vxlan else frame.data[10:]
    assert checksums_hold(raw) or frame.port != bed.vxlan
    return (IP if raw[0] >> 4 == 4 else IPv6)(raw)


def grown(policy: Compiled, **config: bool | int) -> Bed:
    """A node that runs for so long that no connection can be older than its data path."""
    made = Bed(policy=policy, **config)
    made.push()
    made.now_ms = PICK_UP_MS + time.monotonic_ns() // 1_000_000
    return made


@pytest.fixture
def bed() -> Iterator[Bed]:
    """Pod a may not begin anything to port 80; nobody may begin anything to port 80 of pod b."""
    with grown(compiled({"a": (NOT_80, (ALLOW,)), "b": ((ALLOW,), NOT_80)})) as bed:
        yield bed


# ---- ways ------------------------------------------------------------------------------------------------------------

WAYS = [
    pytest.param(A, X1, "egress", id="pod to peer"),
    pytest.param(A6, X6, "egress", id="pod to peer, IPv6"),
    pytest.param(A, B, "egress", id="pod to pod: the source says no"),
    pytest.param(X1, B, "ingress", id="peer to pod"),
    pytest.param(X6, B6, "ingress", id="peer to pod, IPv6"),
    pytest.param(A, HOST, "egress", id="pod to host"),
    pytest.param(A, OUTSIDE, "egress", id="pod to outside"),
    pytest.param(OUTSIDE, B, "ingress", id="outside to pod, through the host"),
]


@pytest.mark.parametrize(("src", "dst", "end"), WAYS)
@pytest.mark.parametrize("make", [pytest.param(tcp, id="TCP"), pytest.param(udp, id="UDP")])
def test_every_way_is_judged(bed: Bed, src: str, dst: str, end: str, make: object) -> None:
    assert passes(bed, make(src, dst, 81))  # type: ignore[operator]
    assert not passes(bed, make(src, dst, 80))  # type: ignore[operator]
    assert bed.drops() == {"policy": 1}
    assert hits(bed.dp) == {1: 1 + (dst in (B, B6) and src in (A, A6)), 5: 1}
    (note,) = notes(bed.dp)
    assert (unpacked(note["src"].tobytes()), unpacked(note["dst"].tobytes())) == (ip_address(src), ip_address(dst))
    assert (socket.ntohs(int(note["dport_be"])), int(note["packets"])) == (80, 1)
    assert ("egress", "ingress")[note["end"]] == end


def test_sctp_is_judged_by_its_ports(bed: Bed) -> None:
    for port, good in ((81, True), (80, False)):
        packet = ip(A, X1) / SCTP(sport=9, dport=port) / SCTPChunkData(data=b"x")
        assert passes(bed, IP(bytes(packet))) == good


def test_the_host_reaches_its_pods_and_nobody_does_in_its_name(bed: Bed) -> None:
    assert passes(bed, tcp(HOST, B))
    assert passes(bed, tcp(HOST6, B6))
    assert bed.push(bed.from_peer(tcp(HOST, B))) == []
    assert bed.drops() == {"inner_src": 1}


def test_pods_do_not_reach_their_host_where_it_says_so() -> None:
    with Bed(policy=one("a", to_host=False)) as bed:
        assert not passes(bed, tcp(A, HOST))
        assert passes(bed, tcp(A, OUTSIDE))
        assert passes(bed, tcp(HOST, A, sport=80, dport=9))
        assert passes(bed, tcp(A, HOST, sport=9, dport=80, flags="SA")), "it answers"


def test_a_pod_without_program_is_cut_off() -> None:
    """Attached, but the compiler does not know it yet."""
    with Bed(policy=compiled({"a": ((ALLOW,), (ALLOW,))})) as bed:
        assert not passes(bed, udp(B, X1))
        assert not passes(bed, udp(X1, B))
        assert not passes(bed, udp(A, B))
        assert passes(bed, udp(A, X1))
        assert passes(bed, udp(HOST, B)), "its own host reaches it all the same"


def test_a_superpacket_counts_as_its_segments(bed: Bed) -> None:
    for port, good in ((81, True), (80, False)):
        raw = partial(tcp(A, X1, port, flags="A", size=1400 * 30))
        frames = bed.push(from_tun(bed.a, raw, vnet("tcp4", 1400, csum=True, start=20, offset=16)))
        assert bool(frames) == good
    assert bed.drops() == {"policy": 30}
    assert int(notes(bed.dp)[0]["packets"]) == 30


# ---- flows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "answer"), [pytest.param(tcp, {"flags": "SA"}, id="TCP"), pytest.param(udp, {}, id="UDP")]
)
def test_answers_of_allowed_flows_pass_whatever_policy_says_of_them(bed: Bed, make: object, answer: object) -> None:
    assert passes(bed, make(X1, A, dport=81, sport=80))  # type: ignore[operator]
    assert passes(bed, make(A, X1, dport=80, sport=81, **answer))  # type: ignore[operator]
    assert not passes(bed, make(A, X1, dport=80, sport=82))  # type: ignore[operator]


NO_ECHO = (
    Line("deny", 6, proto=1, dport=(8 << 8, 8 << 8 | 255)),
    Line("deny", 7, proto=58, dport=(128 << 8, 0xFFFF)),
    ALLOW,
)
ECHOES = [
    pytest.param(A, X1, ICMP(type=8, id=5), ICMP(type=0, id=5), id="IPv4"),
    pytest.param(A6, X6, ICMPv6EchoRequest(id=5), ICMPv6EchoReply(id=5), id="IPv6"),
]


@pytest.mark.parametrize(("near", "far", "request_", "reply"), ECHOES)
def test_an_echo_is_judged_by_its_request_also_after_a_change(
    near: str, far: str, request_: Packet, reply: Packet
) -> None:
    with Bed(policy=one("a", NO_ECHO)) as bed:
        assert not passes(bed, ip(near, far) / request_)
        assert passes(bed, ip(far, near) / request_)
        assert passes(bed, ip(near, far) / reply)
        bed.republish(policy=one("a", (Line("deny", 8, proto=1), Line("deny", 8, proto=58), ALLOW)))
        assert passes(bed, ip(near, far) / reply), "its request is still allowed: ingress is open"
        bed.republish(policy=one("a", (ALLOW,), NO_ECHO))
        assert not passes(bed, ip(near, far) / reply), "the reply of a request that is denied now"
        assert not passes(bed, ip(far, near) / request_)


def test_icmp_messages_of_another_kind_are_no_part_of_a_known_flow() -> None:
    """They bear the same numbers, by chance or by will: each kind is judged by itself."""
    only_timestamp = (Line("allow", 1, proto=1, dport=(13 << 8, 13 << 8 | 255)),)
    with Bed(policy=one("a", only_timestamp, ())) as bed:
        assert passes(bed, ip(A, X1) / ICMP(type=13))
        assert not passes(bed, ip(A, X1) / ICMP(type=17))
        assert not passes(bed, ip(A, X1) / ICMP(type=8, id=0))
        assert passes(bed, ip(X1, A) / ICMP(type=14)), "its answer"
        assert not passes(bed, ip(X1, A) / ICMP(type=13)), "a question of the other end is no answer"


# ---- errors about flows ----------------------------------------------------------------------------------------------


def error(about: Packet, src: str, dst: str) -> Packet:
    kind = ICMP(type=3, code=3) if "." in src else ICMPv6DestUnreach(code=4)
    return ip(src, dst) / kind / Raw(bytes(about))


@pytest.mark.parametrize(("near", "far"), [pytest.param(A, X1, id="IPv4"), pytest.param(A6, X6, id="IPv6")])
def test_errors_about_allowed_flows_pass(near: str, far: str) -> None:
    """Whatever policy says of ICMP; a change that denies the flow denies its errors with it."""
    no_icmp = (Line("deny", 6, proto=1), Line("deny", 6, proto=58), ALLOW)
    with Bed(policy=one("a", (ALLOW,), no_icmp)) as bed:
        about = udp(near, far)
        assert not passes(bed, error(about, far, near)), "about no flow"
        assert passes(bed, about)
        assert passes(bed, error(about, far, near))
        bed.republish(policy=one("a", (ALLOW,), no_icmp))
        assert passes(bed, error(about, far, near)), "judged again, and still allowed"
        bed.republish(policy=one("a", NOT_80, no_icmp))
        assert not passes(bed, error(about, far, near))
        assert bed.drops() == {"ct_invalid": 1, "policy": 1}
        assert not passes(bed, error(about, far, near)), "still"
        assert not passes(bed, about)


def test_an_error_about_an_answer_passes_too() -> None:
    with Bed(policy=one("a", NOT_80)) as bed:
        assert passes(bed, udp(X1, A, dport=81, sport=80))
        answer = udp(A, X1, dport=80, sport=81)
        assert passes(bed, answer)
        too_big = ip(X1, A) / ICMP(type=3, code=4, nexthopmtu=1300) / Raw(bytes(answer))
        assert passes(bed, too_big)
        bed.republish(policy=one("a", (ALLOW,), (DENY,)))
        assert not passes(bed, too_big), "its flow, begun by the other end, is denied now"


def test_packet_too_big_of_a_denied_flow_does_not_pass() -> None:
    with Bed(policy=one("a")) as bed:
        about = tcp(A6, X6, flags="S")
        assert passes(bed, about)
        bed.republish(policy=one("a", NOT_80))
        assert not passes(bed, ip(X6, A6) / ICMPv6PacketTooBig(mtu=1300) / Raw(bytes(about)))


# ---- refusals --------------------------------------------------------------------------------------------------------

REFUSED = [
    pytest.param(A, X1, id="a pod, IPv4"),
    pytest.param(A6, X6, id="a pod, IPv6"),
    pytest.param(X1, A, id="a peer, IPv4"),
    pytest.param(X6, A6, id="a peer, IPv6"),
    pytest.param(OUTSIDE, A, id="the outside"),
    pytest.param(B, A, id="another pod here"),
]


@pytest.fixture
def rejecting() -> Iterator[Bed]:
    with grown(one("a", REJECT_80, REJECT_80)) as bed:
        yield bed


@pytest.mark.parametrize(("src", "dst"), REFUSED)
@pytest.mark.parametrize(
    ("flags", "size"),
    [pytest.param("S", 0, id="SYN"), pytest.param("A", 33, id="ACK, data"), pytest.param("FA", 1, id="FIN")],
)
def test_a_rejected_tcp_segment_is_answered_by_a_reset(
    rejecting: Bed, src: str, dst: str, flags: str, size: int
) -> None:
    packet = tcp(src, dst, flags=flags, size=size)
    (frame,) = push(rejecting, packet)
    got = inner(rejecting, frame)
    assert bytes(got) == bytes(reset_of(packet))
    assert rejecting.drops() == {"rejected": 1}


def reset_of(packet: Packet) -> Packet:
    """RFC 9293 3.10.7.1."""
    segment, layer = packet[TCP], packet[IP] if IP in packet else packet[IPv6]
    flags = str(segment.flags)
    if "A" in flags:
        answer = TCP(flags="R", seq=segment.ack, ack=0)
    else:
        more = len(bytes(segment.payload)) + ("S" in flags) + ("F" in flags)
        answer = TCP(flags="RA", seq=0, ack=(segment.seq + more) % 2**32)
    answer.sport, answer.dport, answer.window = segment.dport, segment.sport, 0
    if IP in packet:
        return IP(src=layer.dst, dst=layer.src, ttl=64, id=0, flags="DF") / answer
    return IPv6(src=layer.dst, dst=layer.src, hlim=64) / answer


def test_resets_are_those_of_the_rfc_for_any_segment() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with grown(one("a", REJECT_80, REJECT_80)) as bed:
        for at in range(300):
            src, dst = rng.choice(((A, X1), (A6, X6), (X1, A), (X6, A6)))
            packet = tcp(src, dst, flags=rng.choice(("S", "SA", "A", "FA", "PA", "SEC")), size=rng.choice((0, 1, 700)))
            packet[TCP].sport = 10000 + at
            packet[TCP].seq, packet[TCP].ack = rng.randrange(2**32), rng.randrange(2**32)
            packet[TCP].options = rng.choice(([], [("MSS", 1400)], [("NOP", None), ("Timestamp", (1, 2))]))
            bed.now_ms += 10
            (frame,) = push(bed, packet)
            assert bytes(inner(bed, frame)) == bytes(reset_of(packet)), f"seed {seed}"


def test_a_reset_is_not_answered(rejecting: Bed) -> None:
    assert push(rejecting, tcp(A, X1, flags="R")) == []
    assert push(rejecting, tcp(A, X1, flags="RA")) == []


@pytest.mark.parametrize(("src", "dst"), REFUSED)
def test_a_rejected_datagram_is_answered_by_an_error(rejecting: Bed, src: str, dst: str) -> None:
    packet = udp(src, dst)
    (frame,) = push(rejecting, packet)
    got = inner(rejecting, frame)
    if "." in src:
        assert (got[ICMP].type, got[ICMP].code) == (3, 13)
        router = dst if src == OUTSIDE else "10.1.1.0"
        assert (got.src, got.dst) == (router, src)
        quoted = IP(bytes(got[ICMP].payload))
    else:
        assert (got[ICMPv6DestUnreach].type, got[ICMPv6DestUnreach].code) == (1, 1)
        assert (got.src, got.dst) == ("fd00:1:1::", src)
        quoted = IPv6(bytes(got[ICMPv6DestUnreach].payload))
    assert quoted[UDP].dport == 80
    assert rejecting.drops() == {"rejected": 1}


def test_refusals_are_limited() -> None:
    with Bed(policy=one("a", REJECT_80), icmp_per_s=10) as bed:
        told = sum(len(push(bed, udp(A, X1, sport=1000 + i))) for i in range(50))
        assert told == 2, "a fifth of a second's"
        assert bed.drops() == {"rejected": 50}
        assert bed.dp.counters()["icmp_limited"] == 48


def test_a_drop_is_not_answered(bed: Bed) -> None:
    assert push(bed, udp(A, X1)) == []
    assert push(bed, tcp(A, X1)) == []


# ---- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "more"), [pytest.param(tcp, {"flags": "A"}, id="TCP"), pytest.param(udp, {}, id="UDP")]
)
@pytest.mark.parametrize(
    ("src", "dst", "cut"),
    [
        pytest.param(A, X1, one("a", NOT_80), id="begun here"),
        pytest.param(X1, A, one("a", (ALLOW,), NOT_80), id="begun by a peer"),
        pytest.param(A, B, one("b", (ALLOW,), NOT_80), id="between pods of ours"),
        pytest.param(OUTSIDE, A, one("a", (ALLOW,), NOT_80), id="begun outside"),
    ],
)
def test_a_flow_that_is_denied_now_stops_at_once_in_both_directions(
    make: object, more: dict[str, str], src: str, dst: str, cut: Compiled
) -> None:
    def there() -> Packet:
        return make(src, dst, dport=80, sport=4000, **more)  # type: ignore[operator, no-any-return]

    def back() -> Packet:
        return make(dst, src, dport=4000, sport=80, **more)  # type: ignore[operator, no-any-return]

    with grown(one("a")) as bed:
        assert passes(bed, tcp(src, dst) if make is tcp else there())
        assert passes(bed, back())
        bed.now_ms += 1
        bed.republish(policy=cut)
        assert not passes(bed, back()), "the answer to what is denied, though its sender may begin flows"
        assert not passes(bed, there())
        assert not passes(bed, back())
        (flow,) = bed.dp.flows()
        assert flow.verdict == "deny"
        bed.republish(policy=one("a"))
        assert passes(bed, back()), "allowed again: it goes on"
        assert passes(bed, there())


def test_a_denied_flow_is_forgotten_in_time_and_makes_room_first() -> None:
    with Bed(policy=one("a"), ct_max=16, ct_share=16) as bed:
        assert passes(bed, udp(A, X1))
        assert passes(bed, udp(X1, A, dport=4000, sport=80))
        bed.republish(policy=one("a", NOT_80))
        assert not passes(bed, udp(A, X1))
        bed.now_ms += 119_000
        assert not passes(bed, udp(X1, A, dport=4000, sport=80)), "remembered, and not refreshed"
        bed.now_ms += 2_000
        assert passes(bed, udp(X1, A, dport=4000, sport=80)), "a flow that the other end may begin"


def test_a_packet_of_another_generation_is_judged_once() -> None:
    with Bed(policy=one("a")) as bed:
        for _ in range(3):
            bed.republish(policy=one("a"))
            for _ in range(2):
                assert passes(bed, udp(A, X1))
        assert bed.dp.counters()["policy_misses"] == 3
        assert hits(bed.dp) == {1: 1}, "hits count flows"


def test_what_is_cut_is_reset_where_that_is_wished() -> None:
    """Whoever sends learns it, at each end with its next packet; policy itself only says drop."""
    with Bed(policy=one("a"), reset_cut=True) as bed:
        assert passes(bed, tcp(A, X1))
        assert passes(bed, tcp(X1, A, dport=4000, sport=80, flags="SA"))
        bed.republish(policy=one("a", NOT_80))
        for packet in (tcp(A, X1, flags="A", size=9), tcp(X1, A, dport=4000, sport=80, flags="A", size=9)):
            (frame,) = push(bed, packet)
            assert bytes(inner(bed, frame)) == bytes(reset_of(packet))
        assert push(bed, tcp(A, X1, sport=4001)) == [], "a new one is dropped as policy says"
        assert bed.drops() == {"rejected": 2, "policy": 1}


def test_a_connection_that_is_older_than_the_data_path_goes_on_either_way() -> None:
    """After a restart: the server may not begin anything, and sends first."""
    closed = one("a", (DENY,), NOT_81)
    with Bed(policy=closed) as bed:
        bed.now_ms = time.monotonic_ns() // 1_000_000
        assert passes(bed, tcp(A, X1, dport=4000, sport=80, flags="A", size=100))
        (flow,) = bed.dp.flows()
        assert (str(flow.src), flow.sport, str(flow.dst), flow.dport) == (X1, 4000, A, 80)
        assert passes(bed, tcp(X1, A, flags="A"))
        assert flow.rules == (0, 1)
        assert not passes(bed, tcp(A, X1, dport=4000, sport=81, flags="A")), "81 is not allowed from there either"
        assert not passes(bed, tcp(A, X1, dport=4000, sport=82, flags="SA")), "a connection that begins"
        assert not passes(bed, udp(A, X1, dport=4000, sport=80))
        bed.now_ms += PICK_UP_MS
        assert not passes(bed, tcp(A, X1, dport=4001, sport=80, flags="A")), "later nothing is older"


# ---- fragments -------------------------------------------------------------------------------------------------------


def pieces(packet: Packet) -> list[Packet]:
    if IP in packet:
        return [IP(bytes(one)) for one in fragment(packet, 104)]
    parts = fragment6(IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=9) / packet[UDP], 160)
    return [IPv6(bytes(one)) for one in parts]


@pytest.mark.parametrize(("near", "far"), [pytest.param(A, X1, id="IPv4"), pytest.param(A6, X6, id="IPv6")])
@pytest.mark.parametrize("out", [pytest.param(True, id="out"), pytest.param(False, id="in")])
def test_fragments_fare_as_their_first_one(near: str, far: str, out: bool) -> None:
    with Bed(policy=one("a", NOT_80, NOT_80)) as bed:
        src, dst = (near, far) if out else (far, near)
        assert all(passes(bed, piece) for piece in pieces(udp(src, dst, 81, size=400)))
        denied = [passes(bed, piece) for piece in pieces(udp(src, dst, 80, sport=4001, size=400))]
        assert not any(denied)


@pytest.mark.parametrize(("near", "far"), [pytest.param(A, X1, id="IPv4"), pytest.param(A6, X6, id="IPv6")])
@pytest.mark.parametrize("gone", [pytest.param(False, id="flow known"), pytest.param(True, id="flow forgotten")])
def test_later_fragments_are_judged_by_the_policy_of_their_time(near: str, far: str, gone: bool) -> None:
    """The first one passed; what comes after the change is asked about with the first one's ports."""
    with Bed(policy=one("a")) as bed:
        first, second, third, *_ = pieces(udp(near, far, size=600))
        assert passes(bed, first)
        if gone:
            bed.now_ms += 29_900  # a first fragment lives for 30 s, and so does a flow of UDP
            assert passes(bed, second)
            bed.now_ms += 99
        bed.republish(policy=one("a", (Line("deny", 5, dport=(81, 81)), ALLOW)))
        assert passes(bed, second if not gone else third), "another port is denied"
        bed.republish(policy=one("a", NOT_80))
        assert not passes(bed, pieces(udp(near, far, size=600))[4])
        assert bed.drops() == {"policy": 1}


def test_later_fragments_of_an_echo_are_judged_by_its_type() -> None:
    with Bed(policy=one("a", (DENY,))) as bed:
        bed.republish(policy=one("a"))
        first, second, third, *_ = pieces(ip(A, X1) / ICMP(type=8, id=3) / Raw(b"p" * 500))
        assert passes(bed, first)
        bed.republish(policy=one("a", NO_ECHO[1:]))
        assert passes(bed, second)
        bed.republish(policy=one("a", NO_ECHO))
        assert not passes(bed, third)


# ---- notes -----------------------------------------------------------------------------------------------------------


def test_logged_flows_are_noted_once_and_pass(bed: Bed) -> None:
    bed.republish(policy=one("a", (Line("log", 9), ALLOW)))
    assert all(passes(bed, udp(A, X1)) for _ in range(3))
    (note,) = notes(bed.dp)
    assert (int(note["verdict"]), note["log"].tolist(), int(note["packets"])) == (1, [9, 0], 1)
    assert hits(bed.dp) == {1: 1, 9: 1}


def test_notes_are_what_was_denied() -> None:
    """Beside a dictionary: every denied flow with its packets, bytes and times."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with Bed(policy=one("a", NOT_80, NOT_80)) as bed:
        expected: dict[tuple[str, str, int], list[int]] = {}
        for _ in range(400):
            src, dst = rng.choice(((A, X1), (X1, A), (A6, X6), (X6, A6)))
            packet = udp(src, dst, rng.choice((80, 80, 81)), sport=rng.randrange(5000, 5040), size=rng.randrange(50))
            bed.now_ms += rng.randrange(3)
            if not passes(bed, packet):
                row = expected.setdefault((src, dst, packet.sport), [0, 0, bed.now_ms, 0])
                row[0], row[1], row[3] = row[0] + 1, row[1] + len(packet), bed.now_ms
        found = {
            (str(unpacked(n["src"].tobytes())), str(unpacked(n["dst"].tobytes())), socket.ntohs(int(n["sport_be"]))): [
                int(n[name]) for name in ("packets", "bytes", "first_ms", "last_ms")
            ]
            for n in notes(bed.dp)
        }
        assert found == expected, f"seed {seed}"
        latest = max(row[3] for row in expected.values())
        assert len(notes(bed.dp, latest - 1)) == sum(row[3] == latest for row in expected.values())
        assert len(notes(bed.dp, latest)) == 0


def test_a_flood_of_denied_flows_displaces_older_notes_only() -> None:
    with Bed(policy=one("a", NOT_80)) as bed:
        for at in range(6000):
            bed.now_ms += 1
            bed.push(*(from_tun(bed.a, udp(A, f"10.1.2.{1 + at % 250}", sport=2000 + at)),))
        found = notes(bed.dp)
        assert 3000 < len(found) <= 4096
        ages = bed.now_ms - found["last_ms"].astype(int)
        assert ages.min() == 0
        assert sorted(ages)[len(ages) // 2] < 4096, "mostly the latest"


# ---- from the policies' text -----------------------------------------------------------------------------------------

CLUSTER = """
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
status: {podIPs: [{ip: 10.1.1.2}, {ip: 'fd00:1:1::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x}
status: {podIPs: [{ip: 10.1.1.3}, {ip: 'fd00:1:1::3'}]}
"""


def compile_text(text: str) -> Compiled:
    loaded = read(CLUSTER, text)
    assert not loaded.errors, loaded.errors
    engine = Engine()
    engine.apply(changes(State(), loaded.state))
    engine.set_own([ip_address(HOST), ip_address("10.1.1.0")])
    return engine.compile({"a": "x/a", "b": "x/b"})


def policy_text(annotation: str, port: int) -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: x, annotations: {{{annotation}}}}}
spec:
  podSelector: {{matchLabels: {{app: a}}}}
  ingress: [{{ports: [{{port: {port}}}]}}]
"""


@pytest.mark.parametrize(
    ("annotation", "drop", "answers"),
    [
        pytest.param("", "policy", 0, id="nothing said: drop"),
        pytest.param("canal.io/deny: drop", "policy", 0, id="drop"),
        pytest.param("canal.io/deny: reject", "rejected", 1, id="reject"),
    ],
)
def test_a_policy_says_how_it_denies(annotation: str, drop: str, answers: int) -> None:
    with Bed(policy=compile_text(policy_text(annotation, 80))) as bed:
        assert passes(bed, tcp(X1, A, 80))
        assert len(push(bed, tcp(X1, A, 81))) == answers
        assert len(push(bed, udp(B, A, 81))) == answers
        assert bed.drops() == {drop: 2}
        assert passes(bed, tcp(A, X1, 81)), "the other direction is nobody's"


def test_a_rule_that_denies_says_it_as_its_policy_does() -> None:
    text = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: p, namespace: x, annotations: {canal.io/deny: reject}}
spec:
  selector: app == "a"
  types: [Egress]
  egress: [{action: Deny, protocol: UDP}, {action: Allow}]
"""
    with Bed(policy=compile_text(text)) as bed:
        assert len(push(bed, udp(A, X1))) == 1
        assert passes(bed, tcp(A, X1))
        assert bed.drops() == {"rejected": 1}
