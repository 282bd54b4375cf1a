"""Rules for the classifier: generated, read from ClassBench files, and searched one after the other."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Network
from pathlib import Path

import numpy as np

from canal_udp._abi import dtype_of, ffi, lib
from tests.stages import pointer

RULE, FLOW = dtype_of("struct canal_rule"), dtype_of("struct canal_flow")
ANY_PROTO = int(lib.CANAL_RULE_ANY_PROTO)
MAPPED = bytes(10) + b"\xff\xff"
PROTOS = np.array([6, 6, 6, 17, 17, 1, 132], np.uint8)
PLENS = {4: [0, 0, 8, 16, 24, 24, 28, 31, 32, 32], 6: [0, 0, 32, 48, 64, 64, 96, 127, 128, 128]}
LINE = re.compile(r"@([\d.]+/\d+)\s+([\d.]+/\d+)\s+(\d+) : (\d+)\s+(\d+) : (\d+)\s+0x([0-9a-fA-F]+)/0x([0-9a-fA-F]+)")
_DATA = Path(os.environ.get("CANAL_TEST_DATA") or "/nowhere")
CLASSBENCH = next((path for path in (_DATA / "classbench", _DATA.parent / "classbench") if path.is_dir()), _DATA)


def classbench(path: Path) -> np.ndarray:
    """The rules of a ClassBench file; its column of flags is no field here."""
    lines = [match for match in map(LINE.match, path.read_text().splitlines()) if match]
    rules = np.zeros(len(lines), RULE)
    for rule, line in zip(rules, lines, strict=True):
        for name, text in (("src", line[1]), ("dst", line[2])):
            network = IPv4Network(text, strict=False)
            rule[name] = np.frombuffer(MAPPED + network.network_address.packed, np.uint8)
            rule[f"{name}_plen"] = network.prefixlen
        for name, text in zip(("sport_lo", "sport_hi", "dport_lo", "dport_hi"), line.groups()[2:6], strict=True):
            rule[name] = int(text)
        rule["family"], rule["proto"] = 4, int(line[7], 16)
        rule["flags"] = 0 if int(line[8], 16) else ANY_PROTO
    return rules


def masks(plens: np.ndarray, families: np.ndarray) -> np.ndarray:
    """n * 16 bytes: the bits that a prefix compares."""
    bits = plens.astype(np.int64) + np.where(families == 4, 96, 0)
    whole = np.clip(bits[:, None] - 8 * np.arange(16), 0, 8)
    return (0xFF00 >> whole & 0xFF).astype(np.uint8)


def generate(rng: np.random.Generator, n: int, sites: int = 50, ports: int = 20) -> np.ndarray:
    """n rules of both families and of neither, inside each other as they like, between few sites and ports."""
    rules = np.zeros(n, RULE)
    rules["family"] = rng.choice(np.array([4, 4, 4, 6, 6, 0], np.uint8), n)
    pool = rng.integers(0, 65536, ports)
    for name in ("src", "dst"):
        plens = np.where(rules["family"] == 4, rng.choice(PLENS[4], n), rng.choice(PLENS[6], n))
        rules[f"{name}_plen"] = np.where(rules["family"] == 0, 0, plens)
        addrs = addresses(rng, rules["family"], sites)
        kept = masks(rules[f"{name}_plen"], rules["family"])
        rules[name] = np.where((rules["family"] == 0)[:, None], 0, addrs & kept)
    for name in ("sport", "dport"):
        ends = np.sort(rng.choice(pool, (n, 2)), axis=1)
        kind = rng.integers(0, 4, n)
        rules[f"{name}_lo"] = np.choose(kind, [0, ends[:, 0], ends[:, 0], 1024])
        rules[f"{name}_hi"] = np.choose(kind, [65535, ends[:, 0], ends[:, 1], 65535])
    rules["proto"], rules["flags"] = rng.choice(PROTOS, n), rng.choice([0, 0, 0, ANY_PROTO], n)
    return rules


def addresses(rng: np.random.Generator, families: np.ndarray, sites: int) -> np.ndarray:
    """An address each: bytes that are often the same, so that prefixes of every length hold some."""
    addrs = rng.integers(0, 4, (len(families), 16)).astype(np.uint8)
    addrs[:, 12:14] = rng.integers(0, sites, len(families))[:, None] % np.array([5, 251])
    addrs[families == 4, :12] = np.frombuffer(MAPPED, np.uint8)
    return addrs


def inside(rng: np.random.Generator, rules: np.ndarray, n: int) -> np.ndarray:
    """n flows, each of them somewhere in some rule; an earlier one may take it."""
    chosen = rules[rng.integers(0, len(rules), n)]
    flows = np.zeros(n, FLOW)
    flows["family"] = np.where(chosen["family"] == 0, rng.choice([4, 6], n), chosen["family"])
    for name in ("src", "dst"):
        kept = masks(chosen[f"{name}_plen"], chosen["family"])
        flows[name] = np.where(kept, chosen[name] & kept, 0) | (rng.integers(0, 256, (n, 16)).astype(np.uint8) & ~kept)
        flows[name][flows["family"] == 4, :12] = np.frombuffer(MAPPED, np.uint8)
    for name in ("sport", "dport"):
        low, high = chosen[f"{name}_lo"].astype(np.int64), chosen[f"{name}_hi"].astype(np.int64)
        flows[f"{name}_be"] = rng.integers(low, high + 1).astype(np.uint16).byteswap()
    flows["proto"] = np.where(chosen["flags"] == ANY_PROTO, rng.integers(0, 256, n), chosen["proto"])
    return flows


def anywhere(rng: np.random.Generator, rules: np.ndarray, n: int, sites: int = 50) -> np.ndarray:
    """n flows with addresses like those of the rules, ports at and beside the ends of their ranges."""
    flows = np.zeros(n, FLOW)
    flows["family"] = rng.choice([4, 6], n)
    for name in ("src", "dst"):
        flows[name] = addresses(rng, flows["family"], sites)
    for name in ("sport", "dport"):
        ends = np.concatenate([rules[f"{name}_lo"], rules[f"{name}_hi"]]).astype(np.int64)
        flows[f"{name}_be"] = (rng.choice(ends, n) + rng.integers(-1, 2, n)).astype(np.uint16).byteswap()
    flows["proto"] = rng.choice(PROTOS, n)
    return flows


def scan(rules: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """The slow twin: every rule in order, for all flows that none has taken yet."""
    rows, left = np.full(len(flows), len(rules), np.uint32), np.arange(len(flows))
    kept = {name: masks(rules[f"{name}_plen"], rules["family"]).view(np.uint64) for name in ("src", "dst")}
    values = {name: np.ascontiguousarray(rules[name]).view(np.uint64) for name in ("src", "dst")}
    fields = {name: np.ascontiguousarray(flows[name]).view(np.uint64) for name in ("src", "dst")}
    ports = {name: flows[f"{name}_be"].byteswap() for name in ("sport", "dport")}
    families, protos = flows["family"], flows["proto"]
    for row, rule in enumerate(rules):
        holds = np.ones(len(left), bool)
        if rule["family"]:
            holds &= families[left] == rule["family"]
            for name in ("src", "dst"):
                for half in (0, 1):
                    if kept[name][row, half]:
                        holds &= (fields[name][left, half] ^ values[name][row, half]) & kept[name][row, half] == 0
        for name in ("sport", "dport"):
            if (rule[f"{name}_lo"], rule[f"{name}_hi"]) != (0, 65535):
                holds &= (ports[name][left] >= rule[f"{name}_lo"]) & (ports[name][left] <= rule[f"{name}_hi"])
        if not rule["flags"] & ANY_PROTO:
            holds &= protos[left] == rule["proto"]
        rows[left[holds]] = row
        left = left[~holds]
    return rows


def build(rules: np.ndarray) -> tuple[int, object, object]:
    """(return code, classifier, fault)"""
    out, fault = ffi.new("struct canal_classifier **"), ffi.new("struct canal_fault *")
    rc = lib.canal_classifier_build(pointer("struct canal_rule", rules), len(rules), out, fault)
    return rc, ffi.gc(out[0], lib.canal_classifier_free) if rc == 0 else out[0], fault


def classify(classifier: object, flows: np.ndarray) -> np.ndarray:
    rows = np.full(len(flows), 0xFFFFFFFF, np.uint32)
    out = pointer("uint32_t", rows)
    assert lib.canal_classify(classifier, pointer("struct canal_flow", flows), len(flows), out) == 0
    return rows
