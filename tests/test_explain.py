"""Explanations: the verdict is the compiled program's, and the story that is told of it comes to the same rule."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from canal_udp.explain import Explainer, Said, addresses_of, as_if_enforced, has_staged, restricted
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import Flow
from canal_udp.policy.model import EGRESS, INGRESS, TCP, UDP, State
from canal_udp.policy.reference import Reference
from tests.policies import files, gnp, np, tier, world
from tests.test_policy_compile import Matcher, changes, same, with_ports
from tests.test_policy_random import Dice, show


def test_the_story_the_program_and_the_evaluators_agree() -> None:
    """Restricted to the two ends, too: explain == matcher == reference."""
    start = random.randrange(2**32)
    for seed in range(start, start + 60):
        dice, matcher = Dice(seed), Matcher()
        known = changes(State(), dice.state)
        matcher.take(known)
        judges = (Evaluator(dice.state), Reference(dice.state))
        for flow in map(with_ports, dice.flows(10)):
            explainer = Explainer(restricted(known, (flow.source, flow.destination)))
            for direction, address in ((EGRESS, flow.source), (INGRESS, flow.destination)):
                name = explainer.name_at(address)
                if not name:
                    continue
                said = explainer.ask(name, direction, flow, (), from_host=False)
                ((allow, ref),) = matcher.ask(name, direction, [flow])
                about = f"seed {seed}, {direction} of {name}: {said}\n{show(dice.state, flow)}"
                assert (said.allow, said.ref) == (allow, ref), about
                for judge in judges:
                    assert same(judge.workload(name, direction, flow), said.allow, said.ref), about
                if said.story is not None:
                    assert said.story.decision == said.ref, about


WEB = np("x", "{}", "ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}, {port: 90}]}]")


def explained(state: State, source: str, destination: str, port: int, protocol: int = TCP) -> tuple[Said, Said]:
    known = changes(State(), state)
    ends = [next(one for one in addresses_of(known, name) if one.version == 4) for name in (source, destination)]
    explainer, flow = Explainer(restricted(known, ends)), Flow(ends[0], ends[1], protocol, 40000, port)
    return explainer.egress(flow, ()), explainer.ingress(flow, ())


def misses(said: Said) -> list[str]:
    assert said.story is not None
    return [miss for tier in said.story.tiers for one in tier.policies for rule in one.rules for miss in rule.misses]


@pytest.mark.parametrize(
    ("source", "port", "protocol", "missed"),
    [
        pytest.param("x/b", 80, TCP, [], id="allowed by a named port"),
        pytest.param("x/b", 81, TCP, ["port 81 is not 90, a port named web"], id="the nearest miss of a rule"),
        pytest.param("x/b", 80, UDP, ["protocol UDP is not TCP"], id="another protocol"),
        pytest.param("y/a", 80, TCP, ["source 10.2.0.1 is none of those with"], id="another source"),
    ],
)
def test_a_near_miss_says_which_criterion(source: str, port: int, protocol: int, missed: list[str]) -> None:
    egress, ingress = explained(world(WEB), source, "x/a", port, protocol)
    assert egress.allow and ingress.allow == (not missed)
    found = misses(ingress)
    assert len(found) >= len(missed) and all(one in found[0] for one in missed), found


def test_the_story_ends_with_what_decided() -> None:
    pass_on = "{action: Pass, source: {nets: [10.2.0.0/16]}}"
    policies = files(
        tier("first", 1),
        gnp("a", f"tier: first, order: 1, selector: all(), ingress: [{{action: Log}}, {pass_on}]"),
        gnp("b", "tier: first, order: 2, selector: all(), ingress: [{action: Deny}]"),
        WEB,
    )
    _, ingress = explained(world(policies), "y/a", "x/a", 80)
    assert ingress.story is not None
    first, default = ingress.story.tiers
    assert [(one.key, [(rule.action, rule.held) for rule in one.rules]) for one in first.policies] == [
        ("GlobalNetworkPolicy:a", [("Log", True), ("Pass", True)])
    ], "what comes after Pass is not asked"
    assert first.end == "passed on to the next tier"
    assert (default.end, ingress.allow) == ("no rule of the tier matched: its end denies", False)
    assert str(ingress.ref and ingress.ref.where).startswith("file1.yaml:"), "with file and line"
    _, ingress = explained(world(policies), "z/a", "x/a", 80)
    assert ingress.ref is not None and (ingress.ref.policy, ingress.ref.rule) == ("GlobalNetworkPolicy:b", 0)


def test_staged_policies_are_pending() -> None:
    staged = WEB.replace("kind: NetworkPolicy", "kind: StagedKubernetesNetworkPolicy").replace(
        "networking.k8s.io/v1", "projectcalico.org/v3"
    )
    known = changes(State(), world(staged))
    assert has_staged(known) and not has_staged(as_if_enforced(known))
    flow = Flow(ip_address("10.2.0.1"), ip_address("10.1.0.1"), TCP, 40000, 80)
    assert Explainer(known).ingress(flow, ()).allow
    pending = Explainer(as_if_enforced(known)).ingress(flow, ())
    assert not pending.allow and pending.ref is not None
    assert pending.ref.policy == "KubernetesNetworkPolicy:x/p"


def test_traffic_that_no_policy_is_asked_about() -> None:
    known = changes(State(), world(WEB))
    node, pod, outside = map(ip_address, ("10.1.0.0", "10.1.0.1", "203.0.113.1"))
    explainer = Explainer(known)
    assert explainer.egress(Flow(outside, pod, TCP, 1, 80), ()).ref is None
    assert explainer.ingress(Flow(node, pod, TCP, 1, 80), (node,), from_host=True) == Said(
        True, None, "from the pod's own node"
    )
    assert not explainer.ingress(Flow(node, pod, TCP, 1, 80), ()).allow, "an address of another node has no such right"
    assert explainer.ingress(Flow(pod, pod, TCP, 1, 80), ()).allow
