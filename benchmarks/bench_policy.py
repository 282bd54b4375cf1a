"""Policy: verdicts without any cache, and what it costs to compile a large cluster and to follow its changes."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from benchmarks.conftest import Stage
from benchmarks.traffic import SEED
from canal_udp._abi import dtype_of, lib
from canal_udp.encap.fib import packed
from canal_udp.policy.cluster import POLICY, Change, Changes
from canal_udp.policy.compile import Engine
from canal_udp.policy.model import (
    EndpointPort,
    IpBlock,
    KubePeer,
    KubePolicy,
    KubePort,
    KubeRule,
    LabelSelector,
    Namespace,
    Pod,
    PortRange,
)
from canal_udp.policy_tables import PolicyTables, judge

NAMESPACES, APPS, LOCAL, CHANGES = 200, 25, 100, 100
LARGE = (100_000, 10_000)  # pods and policies
LOOKUPS = 1 << 16


def pod(number: int, app: int) -> Change:
    namespace = f"n{number % NAMESPACES}"
    labels = {"app": f"a{app}", "tier": ("web", "db")[number % 2], "pod-template-hash": f"{namespace}-{app}"}
    address = (ip_address((10 << 24) + number + 1),)
    found = Pod(namespace, f"p{number}", labels, address, (EndpointPort("http", 6, 8080),), f"node{number % 1000}")
    return "Pod", f"{namespace}/p{number}", found


def policy(number: int, rng: random.Random) -> Change:
    """Two kinds of peers, a port by number and by name, an address block; both directions."""
    namespace = f"n{number % NAMESPACES}"
    team, app, other = f"t{rng.randrange(20)}", f"a{rng.randrange(APPS)}", f"a{rng.randrange(APPS)}"
    peers = (
        KubePeer(pods=LabelSelector((("app", app),))),
        KubePeer(namespaces=LabelSelector((("team", team),)), pods=LabelSelector((("app", other),))),
    )
    block = KubePeer(IpBlock(ip_network(f"192.168.{number % 200}.0/24")))
    rules = (
        KubeRule(peers, (KubePort(6, PortRange(80, 80)), KubePort(6, "http"))),
        KubeRule((block,), (KubePort(17, PortRange(53, 53)),)),
    )
    subject = LabelSelector((("app", f"a{number // NAMESPACES % APPS}"),))
    found = KubePolicy(namespace, f"k{number}", subject, frozenset(("ingress", "egress")), rules, rules)
    return POLICY, f"KubernetesNetworkPolicy:{namespace}/k{number}", found


def cluster(pods: int, policies: int) -> Changes:
    rng = random.Random(SEED)

    def objects() -> Iterator[Change]:
        for number in range(NAMESPACES):
            yield "Namespace", f"n{number}", Namespace(f"n{number}", {"team": f"t{number % 20}"})
        for number in range(pods):
            yield pod(number, number // NAMESPACES % APPS)
        for number in range(policies):
            yield policy(number, rng)

    return tuple(objects())


class Compiler:
    """An engine with 100 pods here."""

    def __init__(self, pods: int) -> None:
        self.engine, self.tables = Engine(), PolicyTables()
        self.here = range(0, pods, pods // LOCAL)
        self.local = {(name := f"n{number % NAMESPACES}/p{number}"): name for number in self.here}
        self.ports = {name: port for port, name in enumerate(self.local, 1)}

    def take(self, changes: Changes) -> object:
        self.engine.apply(changes)
        self.compiled = self.engine.compile(self.local)
        self.handle = self.tables.build(self.compiled, self.ports)
        return self.handle


@pytest.fixture(scope="module")
def large() -> Iterator[Compiler]:
    compiler = Compiler(LARGE[0])
    compiler.take(cluster(*LARGE))
    gc.collect()
    gc.freeze()  # as the daemon does
    yield compiler
    gc.unfreeze()


def test_compile(stage: Stage) -> None:
    objects = cluster(*LARGE)
    made: list[Compiler] = []

    def whole() -> None:
        made[:] = [Compiler(LARGE[0])]
        gc.disable()
        made[0].take(objects)
        gc.enable()

    def check() -> str:
        assert len(made[0].compiled.programs) == LOCAL
        return f"{len(made[0].compiled.classes.flags)} classes"

    name = f"compile {LARGE[0]:,} pods, {LARGE[1]:,} policies, {LOCAL} pods here"
    stage("policy", name, 1, whole, check, fresh=lambda: ((), {}))


@pytest.mark.parametrize("whose", ["one remote pod", "one of ours"])
def test_change(stage: Stage, large: Compiler, whose: str) -> None:
    """New labels for a pod, from the object to what C publishes."""
    rng = random.Random(SEED)
    took_ms: list[float] = []

    def change() -> Change:
        number = rng.choice(large.here) if whose == "one of ours" else rng.randrange(LARGE[0])
        return pod(number, rng.randrange(APPS))

    def one_by_one(changes: list[Change]) -> None:
        for one in changes:
            began = time.perf_counter()
            large.take((one,))
            took_ms.append((time.perf_counter() - began) * 1e3)

    def check() -> str:
        assert len(large.compiled.programs) == LOCAL
        return f"p99 {np.percentile(took_ms, 99):.1f} ms"

    def fresh() -> tuple[tuple[list[Change]], dict[str, object]]:
        return ([change() for _ in range(CHANGES)],), {}

    name = f"{whose} changes, {LARGE[0]:,} pods, {LARGE[1]:,} policies"
    stage("policy", name, CHANGES, one_by_one, check, fresh=fresh)


def test_verdicts(stage: Stage, large: Compiler) -> None:
    """Flows between a pod of ours and any other, both directions in turn."""
    rng = np.random.default_rng(SEED)
    flows, ways = np.zeros(LOOKUPS, dtype_of("struct canal_flow")), np.zeros(LOOKUPS, dtype_of("struct canal_way"))
    here = rng.choice(np.array(large.here), LOOKUPS)
    there = rng.integers(0, LARGE[0], LOOKUPS)
    for name, numbers in (("src", here), ("dst", there)):
        raw = b"".join(packed(ip_address((10 << 24) + int(number) + 1)) for number in numbers)
        flows[name] = np.frombuffer(raw, np.uint8).reshape(-1, 16)
    flows["proto"], flows["family"] = 6, 4
    flows["dport_be"] = rng.choice(np.array([80, 8080, 443], ">u2").view(np.uint16), LOOKUPS)
    ways["source_pod"] = [large.ports[f"n{number % NAMESPACES}/p{number}"] for number in here]
    ways["destination_pod"] = lib.CANAL_NO_POD
    found: list[np.ndarray] = []

    def check() -> str:
        allowed = int((found[0]["verdict"] == lib.CANAL_ALLOW).sum())
        assert 0 < allowed < LOOKUPS
        return f"{allowed} of {LOOKUPS} allowed"

    def all_of_them() -> None:
        found[:] = [judge(large.handle, flows, ways)]

    stage("policy", "verdicts", LOOKUPS, all_of_them, check)
