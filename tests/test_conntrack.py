"""The flow table: conversations as they look on the wire, limits, floods, and random traffic against a dict."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from native_build import run_native
from twin_conntrack import (
    ACK,
    FIN,
    HIT,
    ICMP,
    ICMP6,
    INSERTED,
    IS_REPLY,
    NOBODY,
    PSH,
    RST,
    SCTP,
    STATES,
    SYN,
    TCP,
    UDP,
    URG,
    Flow,
    Twin,
)

from canal_udp._abi import dtype_of, enum_names, ffi, lib

FLOW = dtype_of("struct canal_flow")
INFO = dtype_of("struct canal_flow_info")
DROP = {name.upper(): value for value, name in enumerate(enum_names("enum canal_drop", "CANAL_DROP_"))}
FOREVER = 1 << 30


def v4(last: int) -> bytes:
    return bytes(10) + b"\xff\xff\x0a\xf4" + last.to_bytes(2, "big")


def v6(last: int) -> bytes:
    return b"\xfd" + bytes(13) + last.to_bytes(2, "big")


def swapped(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "big"), "little")


class Table:
    """A conntrack table by itself; one row a packet in, one result a packet out."""

    def __init__(self, limit: int = 1024, share: int = FOREVER, seed: tuple[int, int] = (1, 2)) -> None:
        out = ffi.new("struct canal_ct **")
        assert lib.canal_ct_new(limit, share, ffi.new("uint64_t[2]", seed), out) == 0
        self.ct = ffi.gc(out[0], lib.canal_ct_free)

    @staticmethod
    def rows(flows: Sequence[Flow]) -> np.ndarray:
        rows = np.zeros(len(flows), FLOW)
        rows["src"] = np.frombuffer(b"".join(flow.src for flow in flows), np.uint8).reshape(-1, 16)
        rows["dst"] = np.frombuffer(b"".join(flow.dst for flow in flows), np.uint8).reshape(-1, 16)
        rows["sport_be"] = [swapped(flow.sport) for flow in flows]
        rows["dport_be"] = [swapped(flow.dport) for flow in flows]
        for name in ("proto", "family", "flags", "tcp_flags", "drop", "icmp_type"):
            rows[name] = [getattr(flow, name) for flow in flows]
        rows["total_size"] = [flow.size for flow in flows]
        return rows

    def track_rows(self, rows: np.ndarray, owners: Sequence[int], now_ms: int) -> list[int]:
        owned, results = np.array(owners, np.uint32), np.zeros(len(rows), np.int32)
        pointers = ffi.from_buffer("struct canal_flow[]", rows), ffi.from_buffer("uint32_t[]", owned)
        out = ffi.from_buffer("int32_t[]", results, require_writable=True)
        assert lib.canal_ct_track(self.ct, *pointers, len(rows), now_ms, out) == 0
        return results.tolist()

    def track(self, flows: Sequence[Flow], now_ms: int = 0, owner: int = NOBODY) -> list[int]:
        return self.track_rows(self.rows(flows), [owner] * len(flows), now_ms)

    def find(self, flows: Sequence[Flow]) -> list[int]:
        results = np.zeros(len(flows), np.int32)
        pointer = ffi.from_buffer("int32_t[]", results, require_writable=True)
        assert (
            lib.canal_ct_find(self.ct, ffi.from_buffer("struct canal_flow[]", self.rows(flows)), len(flows), pointer)
            == 0
        )
        return results.tolist()

    def sweep(self, now_ms: int, n: int = FOREVER) -> int:
        return lib.canal_ct_sweep(self.ct, now_ms, n)

    def read(self, now_ms: int, at_once: int = 7) -> list[np.void]:
        cursor, found = ffi.new("uint32_t *"), []
        while True:
            rows = np.zeros(at_once, INFO)
            pointer = ffi.from_buffer("struct canal_flow_info[]", rows, require_writable=True)
            found += list(rows[: lib.canal_ct_read(self.ct, now_ms, cursor, pointer, at_once)])
            if not cursor[0]:
                return found

    def __len__(self) -> int:
        return lib.canal_ct_count(self.ct)


OPEN = Flow(v4(1), v4(2), 40000, 80, tcp_flags=SYN)
FLAGS = {"S": SYN, "A": ACK, "F": FIN, "R": RST, "P": PSH, "U": URG, ".": 0}


def packet(step: str) -> Flow:
    """`> SA` is a segment of the original direction with SYN and ACK, `<` one of the reply."""
    direction, letters = step.split()
    flags = sum(FLAGS[letter] for letter in letters)
    return Flow(v4(1), v4(2), 40000, 80, tcp_flags=flags) if direction == ">" else OPEN.reversed(tcp_flags=flags)


SHAKE = "> S SYN_SENT, < SA SYN_RECV, > A ESTABLISHED"
CONVERSATIONS = [
    pytest.param(f"{SHAKE}, > PA ESTABLISHED, < A ESTABLISHED", id="open, data"),
    pytest.param(
        "> S SYN_SENT, > S SYN_SENT, < SA SYN_RECV, < SA SYN_RECV, > S SYN_RECV, > A ESTABLISHED", id="all lost once"
    ),
    pytest.param(f"{SHAKE}, < SA ESTABLISHED, > A ESTABLISHED", id="the last ACK of the handshake was lost"),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, < A FIN_WAIT, < FA CLOSING, > A TIME_WAIT", id="the client closes"),
    pytest.param(f"{SHAKE}, < FA FIN_WAIT, > A FIN_WAIT, > FA CLOSING, < A TIME_WAIT", id="the server closes"),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, < FA CLOSING, > A TIME_WAIT", id="FIN answered by FIN"),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, < PA FIN_WAIT, > A FIN_WAIT, < PA FIN_WAIT", id="half-closed, data goes on"),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, > FA FIN_WAIT, < FA CLOSING, < FA CLOSING, > A TIME_WAIT", id="FINs again"),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, < FA CLOSING, < A CLOSING, > A TIME_WAIT", id="both close at once"),
    pytest.param(
        f"{SHAKE}, > FA FIN_WAIT, < FA CLOSING, > A TIME_WAIT, < FA TIME_WAIT, > A TIME_WAIT", id="last ACK lost"
    ),
    pytest.param("> S SYN_SENT, < S SYN_RECV, > SA ESTABLISHED, < SA ESTABLISHED", id="simultaneous open"),
    pytest.param(
        "> S SYN_SENT, < S SYN_RECV, < SA SYN_RECV, > A ESTABLISHED", id="simultaneous open, one SYN+ACK first"
    ),
    pytest.param("> S SYN_SENT, < RA CLOSED", id="refused"),
    pytest.param(
        "> S SYN_SENT, < A SYN_SENT, > R CLOSED, > S SYN_SENT, < SA SYN_RECV", id="the server remembers an old one"
    ),
    pytest.param(f"{SHAKE}, > S ESTABLISHED, < A ESTABLISHED, > R CLOSED", id="the client restarted"),
    pytest.param(f"{SHAKE}, > R CLOSED", id="reset by the client"),
    pytest.param(f"{SHAKE}, < RA CLOSED", id="reset by the server"),
    pytest.param(
        f"{SHAKE}, < RA CLOSED, > PA CLOSED, < PA CLOSED, < FA CLOSED, > R CLOSED", id="late packets after RST"
    ),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, < RA CLOSED", id="FIN answered by RST"),
    pytest.param(f"{SHAKE}, > R CLOSED, > S SYN_SENT, < SA SYN_RECV", id="the port is used again after RST"),
    pytest.param(f"{SHAKE}, > FA FIN_WAIT, < FA CLOSING, > A TIME_WAIT, > S SYN_SENT", id="and after TIME_WAIT"),
    pytest.param("> S SYN_SENT, < SA SYN_RECV, > FA FIN_WAIT", id="closed before it was open"),
    pytest.param("> S SYN_SENT, < SA SYN_RECV, < PA ESTABLISHED", id="fast open: the server's data is early"),
    pytest.param(
        "> PA ESTABLISHED, < A ESTABLISHED, > FA FIN_WAIT, < FA CLOSING, > A TIME_WAIT", id="picked up mid-stream"
    ),
    pytest.param("> SA ESTABLISHED, < A ESTABLISHED", id="picked up within the handshake"),
    pytest.param("> A ESTABLISHED, > SU ESTABLISHED, > PAU ESTABLISHED", id="PSH and URG mean nothing"),
    *(
        pytest.param(f"> {flags} -", id=f"{flags} opens nothing")
        for flags in ("R", "RA", "FA", "F", ".", "FPU", "SF", "SR", "SFRPAU")
    ),
    *(
        pytest.param(f"{SHAKE}, > {flags} -, > A ESTABLISHED", id=f"{flags} within a flow is nobody's")
        for flags in (".", "F", "FPU", "SF", "SR", "FRA", "SFA")
    ),
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_tcp_conversations(conversation: str) -> None:
    table = Table()
    for step in conversation.split(", "):
        words = step.rsplit(" ", 1)
        (result,) = table.track([packet(words[0])], now_ms=5)
        if words[1] == "-":
            assert result == -DROP["CT_INVALID"], step
            continue
        (flow,) = table.read(5)
        assert (result > 0, STATES[flow["state"]]) == (True, words[1]), step


def test_a_port_used_again_from_the_other_end_is_a_new_flow() -> None:
    table = Table()
    table.track([packet("> S"), packet("< RA")])
    again = OPEN.reversed(tcp_flags=SYN)
    assert table.find([again, OPEN, packet("> A")]) == [0, 0, HIT]
    assert table.track([again]) == [INSERTED]
    assert table.find([again, packet("> SA")]) == [HIT, HIT | IS_REPLY]
    assert len(table) == 1


UDP_FLOW = Flow(v4(1), v4(2), 1000, 53, UDP)
ECHO = Flow(v4(1), v4(2), 77, 77, ICMP)
LIFETIMES = [
    pytest.param([UDP_FLOW], 30_000, id="UDP without an answer"),
    pytest.param([UDP_FLOW, UDP_FLOW.reversed()], 120_000, id="UDP, answered"),
    pytest.param([UDP_FLOW, UDP_FLOW.reversed(), UDP_FLOW], 120_000, id="UDP, answered, and on"),
    pytest.param([ECHO], 30_000, id="ICMP echo"),
    pytest.param([ECHO, ECHO.reversed()], 30_000, id="ICMP echo, answered"),
    pytest.param([Flow(v6(1), v6(2), 7, 7, ICMP6, 6)], 30_000, id="ICMPv6 echo"),
    pytest.param([Flow(v4(1), v4(2), proto=47)], 600_000, id="another protocol"),
    pytest.param([Flow(v4(1), v4(2), 5, 6, SCTP)], 600_000, id="SCTP"),
    pytest.param(["> S"], 60_000, id="SYN_SENT"),
    pytest.param(["> S", "< SA"], 60_000, id="SYN_RECV"),
    pytest.param(["> S", "< SA", "> A"], 86_400_000, id="ESTABLISHED"),
    pytest.param(["> A"], 300_000, id="picked up, one way"),
    pytest.param(["> A", "< A"], 86_400_000, id="picked up, both ways"),
    pytest.param(["> A", "< A", "> FA"], 60_000, id="FIN_WAIT"),
    pytest.param(["> A", "< A", "> FA", "< FA"], 60_000, id="CLOSING"),
    pytest.param(["> A", "< A", "> FA", "< FA", "> A"], 60_000, id="TIME_WAIT"),
    pytest.param(["> A", "< A", "> R"], 10_000, id="CLOSED"),
]


@pytest.mark.parametrize("start_ms", [0, 2**32 - 1000, 2**31 - 1, 2**40 + 123], ids=["0", "2^32-1s", "2^31", "2^40"])
@pytest.mark.parametrize(("steps", "limit_ms"), LIFETIMES)
def test_lifetimes(steps: list[str | Flow], limit_ms: int, start_ms: int) -> None:
    """Alive one millisecond before the limit, gone at the limit, wherever the 32-bit clock stands."""
    table = Table()
    flows = [packet(step) if isinstance(step, str) else step for step in steps]
    table.track(flows, start_ms)
    assert [(row["age_ms"], row["expires_ms"]) for row in table.read(start_ms + 1)] == [(1, limit_ms - 1)]
    assert table.sweep(start_ms + limit_ms - 1) == 0
    probe = flows[-1] if flows[-1].proto != TCP else packet("> A")
    assert table.find([probe])[0] & HIT
    assert table.sweep(start_ms + limit_ms, 0) == 0
    assert table.find([probe]) == [0] and table.read(start_ms + limit_ms) == []
    assert len(table) == 1
    assert table.sweep(start_ms + limit_ms) == 1
    assert len(table) == 0


def test_every_packet_keeps_udp_alive() -> None:
    table = Table()
    for now_ms in range(0, 10**6, 29_999):
        assert table.track([UDP_FLOW], now_ms)[0] == (HIT if now_ms else INSERTED)
    assert len(table) == 1


def test_an_expired_flow_is_opened_anew() -> None:
    table = Table()
    assert table.track([UDP_FLOW, UDP_FLOW.reversed()], 0) == [INSERTED, HIT | IS_REPLY]
    assert table.track([UDP_FLOW.reversed()], 120_000) == [INSERTED]
    (flow,) = table.read(120_000)
    assert bytes(flow["src"]) == UDP_FLOW.dst and flow["packets"].tolist() == [1, 0]


def test_sweeps_go_round_in_small_steps() -> None:
    table = Table()
    table.track([Flow(v4(1), v4(2), port, 53, UDP) for port in range(100)])
    assert [table.sweep(30_000, 30) for _ in range(5)] == [30, 30, 30, 10, 0]
    assert len(table) == 0


UNTRACKED = {
    "later fragment": (Flow(v4(1), v4(2), proto=UDP, flags=lib.CANAL_FLOW_FRAG | lib.CANAL_FLOW_LATER_FRAG), 0),
    "ICMP error": (Flow(v4(1), v4(2), proto=ICMP, flags=lib.CANAL_FLOW_ICMP_ERROR), 0),
    "dropped by parse": (Flow(v4(1), v4(2), 1, 2, UDP, drop=DROP["BAD_L4"]), -DROP["BAD_L4"]),
}


@pytest.mark.parametrize(("flow", "expected"), UNTRACKED.values(), ids=UNTRACKED.keys())
def test_what_has_no_flow_of_its_own(flow: Flow, expected: int) -> None:
    table = Table()
    table.track([Flow(v4(1), v4(2), proto=UDP), Flow(v4(1), v4(2), proto=ICMP), Flow(v4(1), v4(2), 1, 2, UDP)])
    assert table.find([flow]) == [expected]
    assert table.track([flow]) == [expected]
    assert len(table) == 3


def test_flows_differ_in_each_part_of_the_key() -> None:
    base = Flow(v4(1), v4(2), 10, 20, UDP)
    others = [
        Flow(v4(3), v4(2), 10, 20, UDP),
        Flow(v4(1), v4(3), 10, 20, UDP),
        Flow(v4(1), v4(2), 11, 20, UDP),
        Flow(v4(1), v4(2), 10, 21, UDP),
        Flow(v4(1), v4(2), 20, 10, UDP),
        Flow(v4(1), v4(2), 10, 20, SCTP),
        Flow(v6(1), v6(2), 10, 20, UDP, 6),
        Flow(v4(1), v4(1), 10, 20, UDP),
    ]
    table = Table()
    table.track([base])
    assert table.find(others) == [0] * len(others)
    assert table.track(others) == [INSERTED] * len(others)
    assert table.find([base, *others]) == [HIT] * 9
    assert table.find([flow.reversed() for flow in [base, *others]]) == [HIT | IS_REPLY] * 9


def test_read_shows_the_original_direction() -> None:
    table = Table()
    opening = Flow(v4(9), v4(2), 5555, 80, UDP, size=60)
    table.track([opening], 1000, owner=7)
    table.track([opening.reversed(size=500), opening], 4000)
    (flow,) = table.read(5000)
    assert (bytes(flow["src"]), bytes(flow["dst"])) == (v4(9), v4(2))
    assert (swapped(int(flow["sport_be"])), swapped(int(flow["dport_be"]))) == (5555, 80)
    assert flow["packets"].tolist() == [2, 1] and flow["bytes"].tolist() == [120, 500]
    assert (flow["age_ms"], flow["idle_ms"], flow["expires_ms"]) == (4000, 1000, 119_000)
    assert (flow["proto"], flow["family"], flow["verdict"]) == (UDP, 4, lib.CANAL_ALLOW)
    assert flow["in_target"] == lib.CANAL_TARGET_PORT | 7


@pytest.mark.parametrize(
    ("limit", "share", "code"),
    [(0, 1, "EINVAL"), (1, 0, "EINVAL"), ((1 << 24) + 1, 1, "ERANGE")],
    ids=["no entries", "no share", "too many entries"],
)
def test_sizes_out_of_range(limit: int, share: int, code: str) -> None:
    out = ffi.new("struct canal_ct **")
    assert lib.canal_ct_new(limit, share, ffi.new("uint64_t[2]"), out) == getattr(lib, f"CANAL_{code}")
    assert out[0] == ffi.NULL
    lib.canal_ct_free(ffi.NULL)


def test_what_the_pipeline_asks(tmp_path: Path) -> None:
    """Batches of packets, related errors, ports that go: tests/native/test_conntrack.c."""
    run_native(tmp_path, "test_conntrack.c", ["conntrack.c", "conntrack_table.c", "conntrack_state.c"])


# ---- limits and floods ----------------------------------------------------------------------------------------------


def conversations(n: int, host: int = 1) -> Iterator[list[Flow]]:
    """n TCP connections, as the three segments of their handshakes."""
    for index in range(n):
        syn = Flow(v4(host), v4(index), index, 80, tcp_flags=SYN)
        yield [syn, syn.reversed(tcp_flags=SYN | ACK), Flow(v4(host), v4(index), index, 80, tcp_flags=ACK)]


def syn_flood(n: int, host: int) -> list[Flow]:
    return [Flow(v4(host), v4(index >> 8), index & 0xFFFF, 80, tcp_flags=SYN) for index in range(n)]


def test_established_flows_survive_a_flood_from_many() -> None:
    """A full table turns the flood over against itself."""
    table = Table(limit=2000)
    for handshake in conversations(500):
        table.track(handshake)
    for host in range(64):
        results = table.track(syn_flood(1000, 100 + host), now_ms=host, owner=host)
        refused = [result for result in results if result < 0]
        assert set(refused) <= {-DROP["CT_FULL"]}
        assert len(refused) < 100, host
    assert len(table) == 2000
    assert all(table.find([handshake[2]]) == [HIT] for handshake in conversations(500))
    new = Flow(v4(2), v4(3), 1, 1, tcp_flags=SYN)
    assert table.track([new, new.reversed(tcp_flags=SYN | ACK)], 64) == [INSERTED, HIT | IS_REPLY]


def test_half_open_flows_that_a_server_answers_are_no_better() -> None:
    table = Table(limit=1000)
    for handshake in conversations(300):
        table.track(handshake)
    for syn in syn_flood(3000, 99):
        table.track([syn, syn.reversed(tcp_flags=SYN | ACK)])
    assert all(table.find([handshake[2]]) == [HIT] for handshake in conversations(300))


def test_a_flood_from_one_pod_takes_its_share_only() -> None:
    table = Table(limit=2000, share=100)
    assert table.track(syn_flood(5000, 9), owner=3) == [INSERTED] * 5000
    assert len(table) == 100
    assert table.track(syn_flood(200, 10), owner=4) == [INSERTED] * 200
    assert table.track(syn_flood(500, 11), owner=NOBODY) == [INSERTED] * 500
    assert len(table) == 700
    assert table.sweep(60_000) == 700


def test_a_flood_at_one_pod_leaves_its_connections_alone() -> None:
    """What strangers send to a pod counts as its own; it displaces nothing that was answered, and no new connection."""
    table = Table(limit=2000, share=100)
    for handshake in conversations(50):
        table.track(handshake, owner=3)
    table.track(syn_flood(5000, 9), owner=3)
    assert all(table.find([handshake[2]]) == [HIT] for handshake in conversations(50))
    assert table.track([Flow(v4(7), v4(8), 1, 1, tcp_flags=SYN)], owner=3) == [INSERTED]


def test_a_share_of_settled_flows_is_all_that_a_pod_gets() -> None:
    table = Table(limit=200, share=20)
    for handshake in conversations(20):
        table.track(handshake, owner=3)
    late = Flow(v4(7), v4(8), 1, 1, tcp_flags=SYN)
    assert table.track([late], owner=3) == [-DROP["CT_SHARE"]]
    assert table.track([late], owner=4) == [INSERTED]


def test_a_table_of_settled_flows_refuses_new_ones() -> None:
    table = Table(limit=50)
    for handshake in conversations(50):
        table.track(handshake)
    late = Flow(v4(7), v4(8), 1, 1, tcp_flags=SYN)
    assert table.track([late]) == [-DROP["CT_FULL"]]
    table.track([Flow(v4(1), v4(20), 20, 80, tcp_flags=RST)])
    assert table.track([late]) == [INSERTED]
    assert table.track([late.reversed(tcp_flags=SYN | ACK), Flow(v4(7), v4(8), 1, 1, tcp_flags=ACK)])[1] == HIT
    assert len(table) == 50


@pytest.mark.parametrize("seed", [(0, 0), (1, 2), (2**64 - 1, 2**64 - 1)])
def test_any_seed_will_do(seed: tuple[int, int]) -> None:
    flows = [Flow(v4(1), v4(2), port, 53, UDP) for port in range(1, 65)]
    table = Table(limit=64, seed=seed)
    assert table.track(flows) == [INSERTED] * 64
    assert table.find(flows) == [HIT] * 64


@pytest.mark.parametrize(("proto", "family", "asks", "answers"), [(ICMP, 4, 8, 0), (ICMP6, 6, 128, 129)])
def test_an_echo_request_from_the_other_end_is_a_flow_of_its_own(
    proto: int, family: int, asks: int, answers: int
) -> None:
    """Its identifier is the sender's choice: with that of a flow that is allowed it would pass as an answer."""
    table, address = Table(), v4 if family == 4 else v6
    asked = Flow(address(1), address(2), 77, 77, proto, family, icmp_type=asks)
    assert table.track([asked, asked.reversed(icmp_type=answers)]) == [INSERTED, HIT | IS_REPLY]
    assert table.find([asked.reversed(icmp_type=asks)]) == [0]
    assert table.track([asked.reversed(icmp_type=asks)]) == [INSERTED]


@pytest.mark.parametrize(("asks", "answers"), [(13, 14), (15, 16), (17, 18), (8, 0)])
def test_an_icmp_message_of_another_kind_is_a_flow_of_its_own(asks: int, answers: int) -> None:
    """All but echoes have the number 0, and an echo may have it: one that is allowed would let the others through."""
    table = Table()
    asked = Flow(v4(1), v4(2), 0, 0, ICMP, icmp_type=asks)
    assert table.track([asked, asked.reversed(icmp_type=answers)]) == [INSERTED, HIT | IS_REPLY]
    for kind in {0, 8, 13, 14, 17, 40} - {asks}:
        assert table.find([Flow(v4(1), v4(2), 0, 0, ICMP, icmp_type=kind)]) == [0]
    for kind in {0, 8, 13, 14, 17, 40} - {answers}:
        assert table.find([asked.reversed(icmp_type=kind)]) == [0]


# ---- random traffic -------------------------------------------------------------------------------------------------


def random_flows(rng: random.Random, n: int, hosts: int, ports: int) -> list[Flow]:
    addrs = [(v4(host), 4) for host in range(hosts)] + [(v6(host), 6) for host in range(max(1, hosts // 2))]
    segments = [SYN, SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, 0, SYN | FIN, FIN]
    flows = []
    for _ in range(n):
        src, family = rng.choice(addrs)
        dst = rng.choice([addr for addr, of in addrs if of == family])
        proto = rng.choice((TCP, TCP, UDP, ICMP, 47))
        sport, dport = (rng.randrange(ports), rng.randrange(ports)) if proto in (TCP, UDP) else (0, 0)
        if proto == ICMP:
            sport = dport = rng.randrange(ports)
        flags = rng.choice(segments) if proto == TCP else 0
        odd = rng.random()
        special = lib.CANAL_FLOW_LATER_FRAG if odd < 0.01 else lib.CANAL_FLOW_ICMP_ERROR if odd < 0.02 else 0
        drop = DROP["BAD_L4"] if odd > 0.99 else 0
        kind = rng.choice((0, 8, 8, 128)) if proto == ICMP else 0
        size = rng.randrange(20, 60000)
        flows.append(Flow(src, dst, sport, dport, proto, family, flags, special, drop, size, kind))
    return flows


def state_of(table: Table, now_ms: int) -> dict[object, tuple[object, ...]]:
    found: dict[object, tuple[object, ...]] = {}
    for row in table.read(now_ms, at_once=64):
        ports = swapped(int(row["sport_be"])), swapped(int(row["dport_be"]))
        flow = Flow(bytes(row["src"]), bytes(row["dst"]), *ports, int(row["proto"]), int(row["family"]))
        facts = tuple(int(row[name]) for name in ("state", "age_ms", "idle_ms", "expires_ms"))
        found[flow.key] = ((flow.src, flow.sport), *facts, row["packets"].tolist(), row["bytes"].tolist())
    return found


def state_of_twin(twin: Twin, now_ms: int) -> dict[object, tuple[object, ...]]:
    return {
        key: (e.original, e.state, now_ms - e.created_ms, now_ms - e.seen_ms, e.expires_ms - now_ms, e.packets, e.bytes)
        for key, e in twin.entries.items()
        if e.expires_ms > now_ms
    }


@pytest.mark.parametrize(
    ("seed", "hosts", "ports"),
    [(1, 3, 3), (2, 8, 6), (3, 30, 20), (4, 2, 40), (5, 12, 2)],
)
def test_agrees_with_a_dict(seed: int, hosts: int, ports: int) -> None:
    """Runs of 12,000 packets in batches, with time passing, across the wrap of the 32-bit clock."""
    rng = random.Random(seed)
    table, twin = Table(limit=20_000), Twin(20_000, FOREVER, DROP)
    now_ms = 2**32 - 400_000
    for _ in range(200):
        flows = random_flows(rng, rng.randrange(1, 120), hosts, ports)
        owners = [rng.choice((0, 1, 4095, NOBODY)) for _ in flows]
        expected = [twin.track(flow, owner, now_ms) for flow, owner in zip(flows, owners, strict=True)]
        assert table.track_rows(table.rows(flows), owners, now_ms) == expected, (seed, now_ms)
        assert state_of(table, now_ms) == state_of_twin(twin, now_ms), (seed, now_ms)
        now_ms += rng.choice((0, 1, 500, 9_999, 10_000, 30_000, 60_000, 700_000))
        if rng.random() < 0.7:
            assert table.sweep(now_ms) == twin.sweep(now_ms), (seed, now_ms)
        assert len(table) == len(twin.entries), (seed, now_ms)
        probes = random_flows(rng, 20, hosts, ports)
        lib.canal_ct_sweep(table.ct, now_ms, 0)
        hits = [twin.find(flow, now_ms) is not None for flow in probes]
        assert [result > 0 for result in table.find(probes)] == hits, (seed, now_ms)


@pytest.mark.parametrize("part", [1, 3, 8], ids=["no share", "share of a third", "share of an eighth"])
@pytest.mark.parametrize("limit", [1, 2, 6, 12, 25, 51, 64])
def test_a_tiny_table_agrees_on_what_may_go(limit: int, part: int) -> None:
    """Buckets overflow and entries are evicted: the twin says which may go, the table chooses among them."""
    rng = random.Random(limit * part)
    share = limit // part + 1
    table, twin = Table(limit=limit, share=share), Twin(limit, share, DROP)
    now_ms = 0
    for _ in range(1000):
        (flow,) = random_flows(rng, 1, 6, 5)
        assert table.sweep(now_ms) == twin.sweep(now_ms), (limit, now_ms)
        owner = rng.choice((0, 4095, NOBODY))
        may_go = twin.evictable(now_ms, owner if twin.owned(owner) >= share else NOBODY) - {flow.key}
        expected = twin.track(flow, owner, now_ms)
        assert table.track([flow], now_ms, owner) == [expected], (limit, now_ms)
        found = state_of(table, now_ms)
        if len(twin.entries) > limit or twin.owned(owner) > share:
            (victim,) = set(twin.entries) - set(found)
            assert victim in may_go, (limit, now_ms)
            del twin.entries[victim]
        assert found == state_of_twin(twin, now_ms), (limit, now_ms)
        now_ms += rng.choice((0, 0, 0, 100, 5_000, 40_000))
