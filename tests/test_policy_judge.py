"""policy: both ends of a flow are asked, tiers pass on and log; random programs beside a search of one row by one."""

from __future__ import annotations

import random
from ipaddress import ip_address

import numpy as np
import pytest

from canal_udp._abi import dtype_of, lib
from canal_udp.encap.fib import packed
from canal_udp.policy.compiled import Compiled
from canal_udp.policy_tables import PolicyTables, classes_of, judge
from tests.programs import ALLOW, CLASSES, DENY, REJECT, Line, Lines, classes, compiled, flow_rows, one

WAY = dtype_of("struct canal_way")
TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
A, B, NOBODY = 1, 2, lib.CANAL_NO_POD
PORTS = {"a": A, "b": B}
EGRESS, INGRESS = lib.CANAL_EGRESS, lib.CANAL_INGRESS

A4, B4, X4, HOST4, OUTSIDE = "10.1.1.2", "10.1.1.3", "10.1.2.9", "192.0.2.1", "8.8.8.8"


def ask(
    policy: Compiled, flow: tuple[str, str, int, int, int], source: int, destination: int, from_host: bool = False
) -> np.void:
    ways = np.zeros(1, WAY)
    ways["source_pod"], ways["destination_pod"], ways["from_host"] = source, destination, from_host
    tables = PolicyTables()
    found: np.void = judge(tables.build(policy, PORTS), flow_rows([flow]), ways)[0]
    return found


def tcp(src: str = A4, dst: str = X4, dport: int = 80, sport: int = 4000) -> tuple[str, str, int, int, int]:
    return src, dst, TCP, sport, dport


# ---- one program -----------------------------------------------------------------------------------------------------

WEB = Line("allow", 5, proto=TCP, dport=(80, 80))
LOG = Line("log", 9)


@pytest.mark.parametrize(
    ("egress", "flow", "verdict", "rule"),
    [
        pytest.param([ALLOW], tcp(), "allow", 1, id="a row that holds decides"),
        pytest.param([DENY, ALLOW], tcp(), "deny", 2, id="the first one does"),
        pytest.param([WEB], tcp(dport=80), "allow", 5, id="port"),
        pytest.param([WEB], tcp(dport=81), "deny", 0, id="nothing that holds: denied, by no rule"),
        pytest.param([], tcp(), "deny", 0, id="nothing at all"),
        pytest.param([WEB], (A4, X4, UDP, 1, 80), "deny", 0, id="other protocol"),
        pytest.param([Line("allow", 5, dst=["x"])], tcp(), "allow", 5, id="class of the destination"),
        pytest.param([Line("allow", 5, dst=["b"])], tcp(), "deny", 0, id="another class"),
        pytest.param([Line("allow", 5, src=["b"])], tcp(), "deny", 0, id="class of the source"),
        pytest.param([Line("allow", 5, dport=(80, 90))], tcp(dport=90), "allow", 5, id="the range's last port"),
        pytest.param([Line("allow", 5, dport=(80, 90))], tcp(dport=91), "deny", 0, id="beyond it"),
        pytest.param([Line("allow", 5, sport=(1, 10))], tcp(sport=10), "allow", 5, id="source port"),
        pytest.param([Line("allow", 5, sport=(1, 10))], tcp(sport=11), "deny", 0, id="another source port"),
        pytest.param(
            [Line("allow", 5, proto=ICMP, dport=(8 << 8, 8 << 8 | 255))],
            (A4, X4, ICMP, 8, 3),
            "allow",
            5,
            id="ICMP: type and code are the destination port",
        ),
        pytest.param(
            [Line("allow", 5, proto=ICMP, dport=(8 << 8, 8 << 8))], (A4, X4, ICMP, 8, 3), "deny", 0, id="code"
        ),
        pytest.param([Line("allow", 5, dport=(0, 0))], (A4, X4, 47, 0, 0), "allow", 5, id="no ports: 0"),
        pytest.param([REJECT], tcp(), "reject", 3, id="reject denies, and says so"),
        pytest.param([Line("pass", 4, next=2), DENY, ALLOW], tcp(), "allow", 1, id="pass goes on with the next tier"),
        pytest.param([Line("pass", 4, next=1), DENY, ALLOW], tcp(), "deny", 2, id="pass to the next row"),
        pytest.param([ALLOW, Line("pass", 4, next=2)], tcp(), "allow", 1, id="a pass behind what decides"),
        pytest.param([Line("pass", 4, next=1)], tcp(), "deny", 0, id="pass to the end: denied"),
        pytest.param(
            [Line("pass", 4, proto=UDP, next=2), DENY, ALLOW], tcp(), "deny", 2, id="a pass that does not hold"
        ),
        pytest.param(
            [Line("pass", 4, next=2), ALLOW, Line("pass", 4, next=4), ALLOW, DENY], tcp(), "deny", 2, id="three tiers"
        ),
        pytest.param([LOG, ALLOW], tcp(), "allow", 1, id="log goes on"),
        pytest.param([LOG], tcp(), "deny", 0, id="log decides nothing"),
    ],
)
def test_rows_are_asked_in_order(egress: Lines, flow: tuple[str, str, int, int, int], verdict: str, rule: int) -> None:
    found = ask(one("a", egress), flow, A, NOBODY)
    said = "allow" if found["verdict"] else "reject" if found["reject"] else "deny"
    assert (said, found["rule"].tolist()) == (verdict, [rule, 0])
    assert found["log"].tolist() == [9 if LOG in egress else 0, 0]


def test_rows_behind_others_are_found_in_big_programs() -> None:
    """Bits of other words and blocks."""
    for at in (0, 63, 64, 1000, 4095, 4096, 5000):
        lines = [Line("allow", 100 + i, dport=(i, i)) for i in range(at)] + [Line("deny", 7, dport=(at, at))]
        assert ask(one("a", [*lines, ALLOW]), tcp(dport=at), A, NOBODY)["rule"][EGRESS] == 7
        passing = [Line("pass", 8, next=at + 1), *lines, ALLOW]
        assert ask(one("a", passing), tcp(dport=at), A, NOBODY)["rule"][EGRESS] == 7


# ---- two ends --------------------------------------------------------------------------------------------------------

NO_A = Line("deny", 8, src=["a"])


@pytest.mark.parametrize(
    ("policy", "flow", "way", "verdict", "end", "rules"),
    [
        pytest.param(one("a", [DENY]), tcp(A4, B4), (A, B, False), "deny", EGRESS, [2, 0], id="the source denies"),
        pytest.param(
            one("b", [ALLOW], [NO_A, ALLOW]),
            tcp(A4, B4),
            (A, B, False),
            "deny",
            INGRESS,
            [1, 8],
            id="the destination denies",
        ),
        pytest.param(
            one("b", [DENY], [ALLOW]),
            tcp(A4, B4),
            (A, B, False),
            "allow",
            INGRESS,
            [1, 1],
            id="the other program of the destination",
        ),
        pytest.param(
            one("a", [DENY], [ALLOW]),
            tcp(X4, A4),
            (NOBODY, A, False),
            "allow",
            INGRESS,
            [0, 1],
            id="from a peer: only ingress is ours",
        ),
        pytest.param(
            one("a", [ALLOW], [DENY]),
            tcp(A4, X4),
            (A, NOBODY, False),
            "allow",
            INGRESS,
            [1, 0],
            id="to a peer: only egress is ours",
        ),
        pytest.param(
            one("a"), tcp(X4, OUTSIDE), (NOBODY, NOBODY, False), "allow", INGRESS, [0, 0], id="no pod of ours"
        ),
        pytest.param(
            compiled({"a": ((ALLOW,), (ALLOW,))}),
            tcp(A4, B4),
            (A, B, False),
            "deny",
            INGRESS,
            [1, 0],
            id="a pod that has no program, as destination",
        ),
        pytest.param(
            compiled({"a": ((ALLOW,), (ALLOW,))}),
            tcp(B4, A4),
            (B, A, False),
            "deny",
            EGRESS,
            [0, 0],
            id="... and as source",
        ),
        pytest.param(one("a"), tcp(A4, X4), (77, NOBODY, False), "deny", EGRESS, [0, 0], id="a port that nobody knows"),
        pytest.param(
            one("a", [ALLOW], [DENY]),
            tcp(HOST4, A4),
            (NOBODY, A, True),
            "allow",
            INGRESS,
            [0, 0],
            id="the host reaches its pods",
        ),
        pytest.param(
            one("a", [ALLOW], [DENY]),
            tcp(HOST4, A4),
            (NOBODY, A, False),
            "deny",
            INGRESS,
            [0, 2],
            id="... not under its address from elsewhere",
        ),
        pytest.param(
            one("a", [ALLOW], [DENY]),
            tcp(OUTSIDE, A4),
            (NOBODY, A, True),
            "deny",
            INGRESS,
            [0, 2],
            id="what the host forwards is asked",
        ),
        pytest.param(one("a"), tcp(A4, HOST4), (A, NOBODY, False), "allow", INGRESS, [1, 0], id="a pod to its host"),
        pytest.param(
            one("a", to_host=False),
            tcp(A4, HOST4),
            (A, NOBODY, False),
            "deny",
            INGRESS,
            [1, 0],
            id="... when hosts want none",
        ),
        pytest.param(
            one("a", to_host=False),
            tcp(A4, OUTSIDE),
            (A, NOBODY, False),
            "allow",
            INGRESS,
            [1, 0],
            id="through the host",
        ),
        pytest.param(
            one("a", to_host=False),
            tcp(OUTSIDE, HOST4),
            (NOBODY, NOBODY, True),
            "allow",
            INGRESS,
            [0, 0],
            id="to the host from elsewhere: not ours to say",
        ),
    ],
)
def test_both_ends_are_asked(
    policy: Compiled,
    flow: tuple[str, str, int, int, int],
    way: tuple[int, int, bool],
    verdict: str,
    end: int,
    rules: list[int],
) -> None:
    found = ask(policy, flow, *way)
    assert ("allow" if found["verdict"] else "deny", found["end"], found["rule"].tolist()) == (verdict, end, rules)


def test_what_no_class_holds_is_denied() -> None:
    """A FIB without a default: everything that the compiler did not see."""
    made = one("a")
    lonely = Compiled(
        classes({name: prefixes for name, prefixes in CLASSES.items() if name != "world"}), made.programs, True, {}
    )
    tables = PolicyTables()
    (found,) = classes_of(tables, lonely.classes, [packed(ip_address(OUTSIDE))])
    assert found >= lib.CANAL_CLASSES_MAX
    assert not ask(lonely, tcp(A4, OUTSIDE), A, NOBODY)["verdict"]
    assert ask(lonely, tcp(A4, B4), A, NOBODY)["verdict"]


def test_a_program_that_knows_fewer_classes_denies_the_others() -> None:
    made = one("a")
    pair = tuple(type(p)(p.rows, p.source[:4].copy(), p.destination[:4].copy()) for p in made.programs["a"])
    short = Compiled(made.classes, {"a": pair}, True, {})  # type: ignore[dict-item]
    assert ask(short, tcp(A4, B4), A, NOBODY)["verdict"]
    assert not ask(short, tcp(A4, X4), A, NOBODY)["verdict"], "x is the fifth"


# ---- random ----------------------------------------------------------------------------------------------------------

NAMES = tuple(CLASSES)
ADDRESSES = {"world": OUTSIDE, "a": A4, "b": B4, "node": HOST4, "x": X4}
SIX = {"world": "2001:db8::99", "a": "fd00:1:1::2", "b": "fd00:1:1::3", "node": "2001:db8::1", "x": "fd00:1:2::7"}


def random_lines(rng: random.Random) -> list[Line]:
    n = rng.choice((0, 1, 2, 5, 20, 70, 200))
    lines = []
    for at in range(n):
        low, high = sorted(rng.choices(range(6), k=2))
        sport = rng.choice(((0, 0xFFFF), (0, 2)))
        action = rng.choice(("allow", "deny", "reject", "pass", "pass", "log", "log"))
        sides = [None if rng.random() < 0.4 else rng.sample(NAMES, rng.randint(0, 3)) for _ in range(2)]
        proto = rng.choice((None, None, TCP, UDP, ICMP))
        dport = rng.choice(((0, 0xFFFF), (low, high), (low << 8, high << 8)))
        lines.append(Line(action, at + 1, *sides, proto, dport, sport, rng.randint(at + 1, n)))
    return lines


def walk(lines: list[Line], src: str, dst: str, flow: tuple[str, str, int, int, int]) -> tuple[str, int, int]:
    """What decides, by reading one row after the other: (action, rule, the last one that logged)."""
    _, _, proto, first, second = flow
    sport, dport = (0, first << 8 | second) if proto in (ICMP, ICMP6) else (first, second)
    at, log = 0, 0
    while at < len(lines):
        line = lines[at]
        holds = (
            (line.src is None or src in line.src)
            and (line.dst is None or dst in line.dst)
            and line.proto in (None, proto)
            and line.dport[0] <= dport <= line.dport[1]
            and line.sport[0] <= sport <= line.sport[1]
        )
        if holds and line.action == "pass":
            at = line.next
            continue
        if holds and line.action == "log":
            log = line.rule
        elif holds:
            return line.action, line.rule, log
        at += 1
    return "deny", 0, log


def test_random_programs_say_what_a_search_says() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(60):
        egress, ingress, to_host = random_lines(rng), random_lines(rng), rng.random() < 0.5
        tables = PolicyTables()
        handle = tables.build(compiled({"a": (egress, []), "b": ([], ingress)}, to_host), PORTS)
        flows, expected = [], []
        ways = np.zeros(100, WAY)
        for way in ways:
            src, dst = rng.choice(NAMES), rng.choice(NAMES)
            book = rng.choice((ADDRESSES, SIX))
            flow = (book[src], book[dst], rng.choice((TCP, UDP, ICMP, 47)), rng.randrange(4), rng.randrange(7))
            way["source_pod"], way["destination_pod"] = rng.choice((A, NOBODY)), rng.choice((B, NOBODY))
            way["from_host"] = rng.random() < 0.5
            flows.append(flow)
            expected.append(by_hand(egress, ingress, to_host, src, dst, flow, way))
        for found, wanted in zip(judge(handle, flow_rows(flows), ways), expected, strict=True):
            got = (bool(found["verdict"]), bool(found["reject"]), found["rule"].tolist(), found["log"].tolist())
            assert got == wanted, f"seed {seed}"


def by_hand(
    egress: list[Line],
    ingress: list[Line],
    to_host: bool,
    src: str,
    dst: str,
    flow: tuple[str, str, int, int, int],
    way: np.void,
) -> tuple[bool, bool, list[int], list[int]]:
    rules, logs = [0, 0], [0, 0]
    if way["source_pod"] != NOBODY:
        action, rules[0], logs[0] = walk(egress, src, dst, flow)
        if action != "allow":
            return False, action == "reject", rules, logs
        if dst == "node" and not to_host:
            return False, False, rules, logs
    if way["destination_pod"] != NOBODY and not (way["from_host"] and src == "node"):
        action, rules[1], logs[1] = walk(ingress, src, dst, flow)
        if action != "allow":
            return False, action == "reject", rules, logs
    return True, False, rules, logs
