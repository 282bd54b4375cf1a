"""coalesce.c: what is joined comes apart again as it was; what could not is never joined."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from native_build import build_native, run_program
from scapy.all import IP, TCP, UDP, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, Packet, PadN, raw
from stages import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Vnet, coalesce, segment
from twin_gso import final, partial, pseudo_sum, tcp_packet, udp_packet

from canal_udp._abi import lib

BATCHES = 100_000
SOURCES = ["coalesce.c", "gso.c", "csum.c", "parse.c", "vnet.c"]


def joined(packets: list[bytes], flags: int = 0) -> list[tuple[bytes, Vnet]]:
    out = coalesce(packets, flags)
    assert isinstance(out, list), out
    return out


def apart(supers: list[tuple[bytes, Vnet]]) -> list[bytes]:
    wire: list[bytes] = []
    for packet, vnet in supers:
        cut = segment(packet, vnet)
        assert isinstance(cut, list), cut
        wire += cut
    return wire


def test_random_batches_come_apart_as_they_were(tmp_path: Path) -> None:
    """segment(coalesce(x)) == x, no related packet overtakes another, and a third of the packets or less is left."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    program = build_native(tmp_path, "test_coalesce.c", SOURCES)
    packets, became, most = map(int, run_program(program, seed, BATCHES).split())
    assert packets > 10 * BATCHES
    assert became < packets / 3
    assert most == lib.CANAL_SEGMENTS_MAX


# ---- two packets: joined, or not, and why ----------------------------------------------------------------------------

A, B = b"a" * 96, b"b" * 96
Edit = Callable[[Packet], object]


def pair(proto: type[Packet], version: type[Packet] = IP, first: bytes = A, second: bytes = B) -> tuple[Packet, Packet]:
    """A packet and the one that its sender would send next."""
    packets = []
    for index, payload in enumerate((first, second)):
        ip = (
            IP(src="10.244.1.2", dst="10.244.2.2", id=500 + index, flags="DF")
            if version is IP
            else IPv6(src="fd00::1", dst="fd00::2")
        )
        l4 = TCP(
            sport=1,
            dport=2,
            seq=9000 + index * len(first),
            ack=77,
            flags="A",
            options=[("NOP", None)] * 2 + [("Timestamp", (5, 6))],
        )
        packets.append(ip / (l4 if proto is TCP else UDP(sport=1, dport=2)) / payload)
    return packets[0], packets[1]


def on(layer: type[Packet] | None, fields: dict[str, object]) -> Edit:
    def edit(packet: Packet) -> None:
        for name, value in fields.items():
            setattr(packet[layer] if layer else packet, name, value)

    return edit


def ip(**fields: object) -> Edit:
    return on(None, fields)


def tcp(**fields: object) -> Edit:
    return on(TCP, fields)


def udp(**fields: object) -> Edit:
    return on(UDP, fields)


@pytest.mark.parametrize(
    ("packets", "first", "second", "joins"),
    [
        pytest.param(pair(TCP), None, None, True, id="tcp"),
        pytest.param(pair(TCP, IPv6), None, None, True, id="tcp ipv6"),
        pytest.param(pair(UDP), None, None, True, id="udp"),
        pytest.param(pair(UDP, IPv6), None, None, True, id="udp ipv6"),
        pytest.param(pair(TCP, second=b"b"), None, None, True, id="last is one byte"),
        pytest.param(pair(UDP, second=b"b"), None, None, True, id="last datagram is one byte"),
        pytest.param(pair(TCP, first=b"a"), None, None, False, id="second is longer"),
        pytest.param(pair(TCP, second=b""), None, None, False, id="pure ACK behind data"),
        pytest.param(pair(TCP, first=b"", second=b""), None, None, False, id="pure ACKs"),
        pytest.param(pair(UDP, first=b"", second=b""), None, None, False, id="empty datagrams"),
        pytest.param(pair(TCP), None, tcp(flags="PA"), True, id="PSH on the last"),
        pytest.param(pair(TCP), tcp(flags="PA"), None, False, id="PSH before"),
        *(pytest.param(pair(TCP), None, tcp(flags=f"{flag}A"), False, id=f"{flag} on the second") for flag in "FSRUEC"),
        *(
            pytest.param(pair(TCP), tcp(flags=f"{flag}A"), tcp(flags=f"{flag}A"), False, id=f"{flag} on both")
            for flag in "FSRUEC"
        ),
        pytest.param(pair(TCP), tcp(flags=""), tcp(flags=""), False, id="no ACK"),
        pytest.param(pair(TCP), tcp(reserved=1), tcp(reserved=1), False, id="reserved bits"),
        pytest.param(pair(TCP), None, tcp(seq=9101), False, id="gap"),
        pytest.param(pair(TCP), None, tcp(seq=9000), False, id="retransmission"),
        pytest.param(pair(TCP), None, tcp(ack=78), False, id="ack moved"),
        pytest.param(pair(TCP), None, tcp(window=1), False, id="window moved"),
        pytest.param(
            pair(TCP), None, tcp(options=[("NOP", None)] * 2 + [("Timestamp", (6, 6))]), False, id="timestamp moved"
        ),
        pytest.param(pair(TCP), None, tcp(options=[]), False, id="options gone"),
        pytest.param(pair(TCP), None, tcp(sport=3), False, id="other port"),
        pytest.param(pair(TCP), None, ip(src="10.244.1.3"), False, id="other source"),
        pytest.param(pair(TCP), None, ip(ttl=63), False, id="other TTL"),
        pytest.param(pair(TCP), None, ip(tos=3), False, id="congestion marked"),
        pytest.param(pair(TCP), None, ip(id=500), False, id="same id"),
        pytest.param(pair(TCP), ip(id=65535), ip(id=0), True, id="id wraps around"),
        pytest.param(pair(TCP), tcp(seq=2**32 - 50), tcp(seq=46), True, id="seq wraps around"),
        pytest.param(pair(TCP), None, ip(flags=0), False, id="DF on the first only"),
        pytest.param(pair(TCP), ip(options=[b"\1"] * 4), ip(options=[b"\1"] * 4), False, id="ipv4 options"),
        pytest.param(pair(TCP, IPv6), None, ip(fl=1), False, id="other flow label"),
        pytest.param(pair(TCP, IPv6), None, ip(hlim=63), False, id="other hop limit"),
        pytest.param(pair(UDP), udp(chksum=0), udp(chksum=0), False, id="udp without checksum"),
        pytest.param(pair(UDP), None, ip(frag=20), False, id="later fragment"),
        pytest.param(pair(UDP), ip(flags="MF"), ip(flags="MF"), False, id="first fragments"),
    ],
)
def test_two_packets(packets: tuple[Packet, Packet], first: Edit | None, second: Edit | None, joins: bool) -> None:
    for packet, edit in zip(packets, (first, second), strict=True):
        if edit:
            edit(packet)
    wire = [raw(packet) for packet in packets]
    out = joined(wire)
    assert len(out) == (1 if joins else 2)
    assert apart(out) == wire


@pytest.mark.parametrize(
    "extension",
    [IPv6ExtHdrDestOpt(options=PadN(optdata=b"\0" * 4)), IPv6ExtHdrFragment(id=9)],
    ids=["options", "atomic fragment"],
)
def test_extension_headers_are_left_alone(extension: Packet) -> None:
    wire = [raw(IPv6() / extension / UDP(sport=1, dport=2) / A)] * 2
    assert joined(wire) == [(one, Vnet(hdr_size=56)) for one in wire]


# ---- the superpacket -------------------------------------------------------------------------------------------------


def train(make: Callable[..., bytes], family: int, sizes: list[int], **last: object) -> list[bytes]:
    """Packets of one flow, one after the other."""
    out, seq = [], 1000
    for index, size in enumerate(sizes):
        fields: dict[str, object] = {} if family == 6 else {"ident": 7 + index}
        if make is tcp_packet:
            fields["seq"] = seq
        if index == len(sizes) - 1:
            fields |= last
        out.append(make(family, bytes([index % 256]) * size, **fields))
        seq += size
    return out


@pytest.mark.parametrize(
    ("make", "family", "kind", "offset", "header"),
    [
        pytest.param(tcp_packet, 4, GSO_TCPV4, 16, 40, id="tcp ipv4"),
        pytest.param(tcp_packet, 6, GSO_TCPV6, 16, 60, id="tcp ipv6"),
        pytest.param(udp_packet, 4, GSO_UDP_L4, 6, 28, id="udp ipv4"),
        pytest.param(udp_packet, 6, GSO_UDP_L4, 6, 48, id="udp ipv6"),
    ],
)
def test_head_and_vnet(make: Callable[..., bytes], family: int, kind: int, offset: int, header: int) -> None:
    """Scapy writes the same head around the whole payload; the checksum field holds the pseudo header's sum."""
    sizes = [1398] * 45 + [1]
    wire = train(make, family, sizes)
    ((packet, vnet),) = joined(wire)
    l4 = 20 if family == 4 else 40
    assert vnet == Vnet(1, kind, 1398, l4, offset, header, 46)
    assert packet[header:] == b"".join(one[header:] for one in wire)
    assert int.from_bytes(packet[l4 + offset : l4 + offset + 2], "big") == pseudo_sum(packet)
    layer = IP(packet) if family == 4 else IPv6(packet)
    for part in (layer, layer.payload):
        for name in ("len", "plen", "chksum"):
            part.fields.pop(name, None)
    assert partial(raw(layer)) == packet


def test_psh_of_the_last_is_the_superpackets() -> None:
    wire = train(tcp_packet, 4, [100, 100, 50], flags=24)
    ((packet, _),) = joined(wire)
    assert packet[33] == 24


def test_at_most_64_kib() -> None:
    wire = train(tcp_packet, 4, [9000] * 16)
    assert [len(packet) for packet, _ in joined(wire)] == [40 + 7 * 9000] * 2 + [40 + 2 * 9000]


def test_at_most_128_segments() -> None:
    wire = train(udp_packet, 6, [10] * 300)
    assert [vnet.segments for _, vnet in joined(wire)] == [128, 128, 44]


def from_port(packet: bytes, sport: int) -> bytes:
    return final(packet[:40] + sport.to_bytes(2, "big") + packet[42:])


@pytest.mark.parametrize(
    ("flows", "segments"),
    [pytest.param(16, [3] * 16, id="16 flows"), pytest.param(17, [1] * 51, id="17 flows, one too many")],
)
def test_flows_interleaved(flows: int, segments: list[int]) -> None:
    """The oldest leaves when there is no room for another; with one flow too many in turn, always too early."""
    wire = [from_port(packet, 1000 + flow) for packet in train(udp_packet, 6, [100] * 3) for flow in range(flows)]
    assert [vnet.segments for _, vnet in joined(wire)] == segments


def test_packet_that_cannot_join_closes_its_flow() -> None:
    """data data ACK data: the last must not join the first two."""
    wire = train(tcp_packet, 4, [100, 100, 0, 100])
    assert [vnet.segments for _, vnet in joined(wire)] == [2, 1, 1]
    assert apart(joined(wire)) == wire


def test_fragment_is_not_overtaken() -> None:
    """A fragment has no ports: it may belong to any flow between its addresses."""
    first, second, third = train(udp_packet, 4, [100, 100, 100])
    fragment = raw(IP(src="10.244.0.2", dst="10.244.0.3", proto=17, frag=9, id=99) / b"tail")
    wire = [first, second, fragment, third]
    assert apart(joined(wire)) == wire


def test_without_uso_datagrams_stay_single() -> None:
    wire = train(udp_packet, 4, [100] * 3) + train(tcp_packet, 4, [100] * 3)
    out = joined(wire, lib.CANAL_DP_NO_USO_WRITE)
    assert [vnet.segments for _, vnet in out] == [1, 1, 1, 3]
    assert apart(out) == wire


def test_switched_off() -> None:
    wire = train(tcp_packet, 4, [100] * 5)
    assert joined(wire, lib.CANAL_DP_NO_COALESCE) == [(one, Vnet(hdr_size=40)) for one in wire]


def test_bytes_behind_the_packet_are_dropped() -> None:
    wire = train(tcp_packet, 4, [100] * 3)
    assert joined([one + b"padding" for one in wire]) == joined(wire)


def test_errors() -> None:
    wire = train(tcp_packet, 4, [100] * 3)
    assert coalesce([wire[0][:30]]) == lib.CANAL_EINVAL
    assert coalesce(wire, out_size=339) == lib.CANAL_ERANGE
    assert coalesce([]) == []
