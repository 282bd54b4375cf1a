"""The compiled programs, as the data plane runs them, say what the evaluators say, to the rule; also after changes."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import ip_address

import numpy as np
import pytest

from canal_udp._abi import CData, dtype_of, lib
from canal_udp.encap.fib import packed
from canal_udp.policy.cluster import POLICY, Change, Changes
from canal_udp.policy.compile import Engine
from canal_udp.policy.compiled import Compiled, RuleRef
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import Decision, Flow
from canal_udp.policy.model import EGRESS, ICMP, ICMP6, INGRESS, SCTP, TCP, UDP, Direction, Namespace, State, policy_key
from canal_udp.policy.program import RuleBook
from canal_udp.policy.reference import Reference
from canal_udp.policy_tables import PolicyTables, judge
from tests.policies import KUBE, world
from tests.test_policy_random import Dice, show

FLOW, WAY = dtype_of("struct canal_flow"), dtype_of("struct canal_way")
KINDS = {
    "namespaces": "Namespace",
    "service_accounts": "ServiceAccount",
    "nodes": "Node",
    "pods": "Pod",
    "slices": "EndpointSlice",
    "workloads": "WorkloadEndpoint",
    "hosts": "HostEndpoint",
    "sets": "NetworkSet",
    "tiers": "Tier",
    "profiles": "Profile",
}


def complete(state: State) -> State:
    """With the namespaces that something lies in, as the cluster has them."""
    inside = (*state.pods.values(), *state.workloads.values(), *state.sets.values())
    names = {one.namespace for one in inside} - {""}
    return replace(state, namespaces={**{name: Namespace(name, {}) for name in names}, **state.namespaces})


def changes(old: State, new: State) -> Changes:
    """What is different, as the store would tell it."""
    found: list[Change] = []
    old, new = complete(old), complete(new)
    for name, kind in KINDS.items():
        before, after = getattr(old, name), getattr(new, name)
        found += [(kind, key, after.get(key)) for key in {*before, *after} if before.get(key) != after.get(key)]
    before, after = ({policy_key(one): one for one in state.policies} for state in (old, new))
    found += [(POLICY, key, after.get(key)) for key in {*before, *after} if before.get(key) != after.get(key)]
    return tuple(found)


def with_ports(flow: Flow) -> Flow:
    """As a packet has it: no ports where the protocol has none."""
    return flow if flow.protocol in (TCP, UDP, SCTP) else replace(flow, sport=0, dport=0)


def rows_of(flows: list[Flow]) -> np.ndarray:
    rows = np.zeros(len(flows), FLOW)
    for row, flow in zip(rows, flows, strict=True):
        row["src"] = np.frombuffer(packed(flow.source), np.uint8)
        row["dst"] = np.frombuffer(packed(flow.destination), np.uint8)
        row["sport_be"], row["dport_be"] = socket.htons(flow.sport), socket.htons(flow.dport)
        row["proto"], row["family"] = flow.protocol, flow.source.version
        if flow.protocol in (ICMP, ICMP6):
            row["icmp_type"], row["icmp_code"] = flow.icmp_type, flow.icmp_code
    return rows


class Matcher:
    """C's answers, one end at a time."""

    def __init__(self) -> None:
        self.engine, self.tables = Engine(), PolicyTables()
        self.compiled: Compiled | None = None
        self.handle: CData = None
        self.ports: dict[str, int] = {}

    def take(self, changed: Changes) -> None:
        self.engine.apply(changed)
        self.ports = {name: port for port, name in enumerate(sorted(self.engine.facts.names()), 1)}
        self.compiled = self.engine.compile({name: name for name in self.ports})
        self.handle = self.tables.build(self.compiled, self.ports)

    def ask(self, key: str, direction: Direction, flows: list[Flow]) -> Iterator[tuple[bool, RuleRef | None]]:
        ways = np.zeros(len(flows), WAY)
        ways["source_pod"] = self.ports[key] if direction == EGRESS else lib.CANAL_NO_POD
        ways["destination_pod"] = self.ports[key] if direction == INGRESS else lib.CANAL_NO_POD
        assert self.compiled is not None
        for found in judge(self.handle, rows_of(flows), ways):
            rule = found["rule"][lib.CANAL_EGRESS if direction == EGRESS else lib.CANAL_INGRESS]
            yield bool(found["verdict"]), self.compiled.rules.get(int(rule))


def same(decision: Decision, allow: bool, ref: RuleRef | None) -> bool:
    if decision.allow != allow:
        return False
    if ref is None:
        return not decision.policy
    return (decision.tier, decision.policy) == (ref.tier, ref.policy) and decision.rule in (None, ref.rule)


def compare(matcher: Matcher, state: State, flows: list[Flow], seed: object, *, slow: bool = False) -> None:
    judges = [Evaluator(state), *([Reference(state)] if slow else [])]
    flows = [with_ports(flow) for flow in flows]
    for key in matcher.ports:
        for direction in (EGRESS, INGRESS):
            for flow, (allow, ref) in zip(flows, matcher.ask(key, direction, flows), strict=True):
                for one in judges:
                    decision = one.workload(key, direction, flow)
                    assert same(decision, allow, ref), (
                        f"seed {seed}, {direction} of {key}: {decision}\n{allow} {ref}\n{show(state, flow)}"
                    )


def test_programs_agree_with_the_evaluators() -> None:
    start = random.randrange(2**32)
    for seed in range(start, start + 100):
        dice, matcher = Dice(seed), Matcher()
        matcher.take(changes(State(), dice.state))
        compare(matcher, dice.state, list(dice.flows(30)), seed, slow=True)


def strangers(dice: Dice, count: int) -> Iterator[Flow]:
    """Flows of addresses that pods have had, or will have."""
    for _ in range(count):
        network = dice.rng.choice(("10.0.0.", "fd00::"))
        ends = (ip_address(f"{network}{dice.rng.randrange(1, 9)}") for _ in range(2))
        yield dice.flow(*ends)


def step(dice: Dice, other: Dice) -> State:
    """The state with one thing, or a few, as another random cluster has it."""
    state = dice.state
    for _ in range(dice.rng.choice((1, 1, 1, 3))):
        name = dice.rng.choice([*KINDS, "policies", "policies", "policies", "pods", "pods"])
        mine, others = getattr(state, name), getattr(other.state, name)
        if name == "policies":
            found = {policy_key(one): one for one in mine}
            pool = {policy_key(one): one for one in others}
        else:
            found, pool = dict(mine), dict(others)
        keys = [*found, *pool]
        if not keys:
            continue
        key = dice.rng.choice(keys)
        if key in pool and dice.chance(0.7):
            found[key] = pool[key]
        else:
            found.pop(key, None)
        state = replace(state, **{name: tuple(found.values()) if name == "policies" else found})
    return state


@pytest.mark.parametrize("seed", [random.randrange(2**32) for _ in range(4)])
def test_changes_end_where_a_new_engine_ends(seed: int) -> None:
    """What a change did not touch is reused; what comes out is as if everything had been made anew."""
    dice, matcher = Dice(seed), Matcher()
    matcher.take(changes(State(), dice.state))
    for at in range(60):
        after = step(dice, Dice(seed + at + 1))
        matcher.take(changes(dice.state, after))
        dice.state = after
        compare(matcher, after, [*dice.flows(12), *strangers(dice, 4)], f"{seed}, change {at}")


def test_what_is_not_touched_is_the_same_object() -> None:
    """C then holds it once, and nothing is built again."""
    dice, matcher = Dice(7), Matcher()
    matcher.take(changes(State(), dice.state))
    assert matcher.compiled is not None
    before = matcher.compiled
    matcher.take(())
    assert matcher.compiled.classes is before.classes
    assert all(matcher.compiled.programs[key] == pair for key, pair in before.programs.items())


def test_rules_in_force_are_those_of_now() -> None:
    """A number outlives its rule; what is in force does not."""
    dice, matcher = Dice(7), Matcher()
    matcher.take(changes(State(), dice.state))
    assert matcher.compiled is not None
    before = matcher.compiled.in_force
    assert any(matcher.compiled.rules[number].policy for number in before)
    matcher.take(changes(dice.state, replace(dice.state, policies=())))
    after = matcher.compiled.in_force
    assert after < matcher.compiled.rules.keys()
    assert not any(matcher.compiled.rules[number].tier for number in after)


def test_every_kind_of_object_is_taken() -> None:
    assert {*KINDS, "policies", "settings"} == {one.name for one in fields(State)}


def test_an_endpoint_that_nobody_knows_gets_nothing() -> None:
    matcher = Matcher()
    matcher.take(())
    compiled = matcher.engine.compile({"y": "x/y"})
    handle = matcher.tables.build(compiled, {"y": 3})
    flows = [Flow(ip_address("10.0.0.1"), ip_address("10.0.0.2"), TCP, 1, 80)]
    ways = np.zeros(1, WAY)
    ways["source_pod"], ways["destination_pod"] = 3, lib.CANAL_NO_POD
    assert judge(handle, rows_of(flows), ways)["verdict"] == lib.CANAL_DENY
    ways["source_pod"] = lib.CANAL_NO_POD
    assert judge(handle, rows_of(flows), ways)["verdict"] == lib.CANAL_ALLOW


@pytest.mark.parametrize("seed", [random.randrange(2**32) for _ in range(2)])
def test_an_engine_that_often_starts_anew_says_the_same(seed: int) -> None:
    dice, matcher = Dice(seed), Matcher()
    matcher.engine = Engine(book=RuleBook(shed_from=16), renew_from=16)
    matcher.take(changes(State(), dice.state))
    for at in range(40):
        after = step(dice, Dice(seed + at + 1))
        matcher.take(changes(dice.state, after))
        dice.state = after
        compare(matcher, after, [*dice.flows(8), *strangers(dice, 4)], f"{seed}, change {at}")


def test_what_nobody_needs_any_more_is_forgotten() -> None:
    """A thousand policies that come and go, one at a time, leave what the last one needs."""
    engine, pod = Engine(book=RuleBook(shed_from=64), renew_from=64), world().pods["x/a"]
    engine.apply((("Namespace", "x", Namespace("x", {})), ("Pod", "x/a", pod)))
    sizes = []
    for at in range(1000):
        (policy,) = world(
            f"{KUBE}\nmetadata: {{name: p{at}, namespace: x}}\nspec:\n  podSelector: {{}}\n"
            f"  ingress: [{{from: [{{podSelector: {{matchLabels: {{n: '{at}'}}}}}},"
            f" {{ipBlock: {{cidr: 172.16.{at // 256}.{at % 256}/32}}}}]}}]"
        ).policies
        gone = ((POLICY, policy_key(policy).replace(f"p{at}", f"p{at - 1}"), None),) if at else ()
        engine.apply((*gone, (POLICY, policy_key(policy), policy), ("Pod", "x/a", replace(pod, labels={"n": str(at)}))))
        compiled = engine.compile({"a": "x/a"})
        sizes.append((len(compiled.classes.flags), len(compiled.programs["a"][1].source), len(engine.book._numbers)))
    assert max(classes for classes, _, _ in sizes) < 200, "classes are kept"
    assert max(rules for *_, rules in sizes) < 200, "rules are kept"
    assert all(classes == known for classes, known, _ in sizes)
    assert len(compiled.rules) > 200, "a number has been given to two rules"
    assert len({ref.policy for ref in compiled.rules.values()}) < 200, "policies that are gone are kept"
