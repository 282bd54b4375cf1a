"""Entries of the store become the objects of a cluster, in whatever order they come."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest

from canal_udp.control.objects import PodEntry, object_key, object_value
from canal_udp.control.store import Batch, Entry, Gone, Kind, Snapshot
from canal_udp.policy.cluster import Changes, Cluster
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.load import load_texts
from canal_udp.policy.model import Namespace
from canal_udp.policy.reference import Reference
from tests.policies import CALICO, cnp, gnp, np, parse_flow, tier


def pod(name: str, *ips: str, node: str = "n1", **labels: str) -> PodEntry:
    namespace, _, bare = name.partition("/")
    return PodEntry(node, namespace, bare, tuple(map(ip_address, ips)), labels)


class Told:
    """A cluster, the store that feeds it, and what a reader of its changes believes."""

    def __init__(self) -> None:
        self.cluster, self.revision = Cluster(), 0
        self.believed: dict[tuple[str, str], Any] = {}

    def put(self, kind: Kind, key: str, value: bytes, revision: int | None = None) -> Changes:
        self.revision += 1
        revision = self.revision if revision is None else revision
        return self.tell(Batch(self.revision, (Entry(key, value, revision, 1),)), kind)

    def drop(self, kind: Kind, key: str) -> Changes:
        self.revision += 1
        return self.tell(Batch(self.revision, (Gone(key, self.revision),)), kind)

    def attach(self, entry: PodEntry) -> Changes:
        return self.put("endpoints", entry.key, entry.value)

    def write(self, text: str) -> Changes:
        changes: Changes = ()
        for found, cursor in load_texts([("f.yaml", text)]).written:
            changes += self.put("policies", str(object_key(found)), object_value(cursor.value))
        return changes

    def tell(self, update: Snapshot | Batch, kind: Kind) -> Changes:
        changes = self.cluster.apply(update, kind)
        for kind_name, key, new in changes:
            assert self.believed.get((kind_name, key)) != new, f"{key} is no change"
            if new is None:
                del self.believed[kind_name, key]
            else:
                self.believed[kind_name, key] = new
        return changes

    def names(self) -> set[str]:
        return {f"{kind} {key}" for kind, key in self.believed}


@pytest.fixture
def told() -> Told:
    return Told()


def test_an_attached_pod_is_a_pod_in_a_namespace_that_nobody_made(told: Told) -> None:
    changes = told.attach(pod("x/a", "10.1.0.2", app="web"))
    assert [change[:2] for change in changes] == [("Namespace", "x"), ("Pod", "x/a")]
    assert changes[0][2] == Namespace("x", {})
    assert told.cluster.state().pods["x/a"].addresses == (ip_address("10.1.0.2"),)
    assert told.drop("endpoints", "n1/x/a") == (("Namespace", "x", None), ("Pod", "x/a", None))
    assert told.cluster.state() == Cluster().state()


def test_the_same_again_is_no_change(told: Told) -> None:
    told.attach(pod("x/a", "10.1.0.2"))
    assert told.attach(pod("x/a", "10.1.0.2")) == ()


def test_a_snapshot_removes_what_it_does_not_hold(told: Told) -> None:
    told.attach(pod("x/a", "10.1.0.2"))
    told.write(np("x", "{}", ""))
    assert told.tell(Snapshot(9, ()), "endpoints") == (("Pod", "x/a", None),)
    assert told.names() == {"Namespace x", "Policy KubernetesNetworkPolicy:x/p"}


def test_a_namespace_without_its_object_keeps_its_pods_and_loses_its_labels(told: Told) -> None:
    told.write("apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {team: red}}")
    told.attach(pod("x/a", "10.1.0.2"))
    assert told.drop("policies", "Namespace/_/x") == (("Namespace", "x", Namespace("x", {})),)


def test_an_attached_pod_counts_for_more_than_a_pod_object(told: Told) -> None:
    told.attach(pod("x/a", "10.1.0.2", app="attached"))
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x, labels: {app: written}}"
    assert told.write(text) == ()
    told.drop("endpoints", "n1/x/a")
    assert told.cluster.state().pods["x/a"].labels == {"app": "written"}


def test_of_two_nodes_with_the_same_pod_the_later_one_counts_and_that_is_a_problem(told: Told) -> None:
    told.attach(pod("x/a", "10.2.0.2", node="n2"))
    told.attach(pod("x/a", "10.1.0.2", node="n1"))
    assert told.cluster.state().pods["x/a"].node == "n1"
    assert told.cluster.problems == ("x/a is attached at several nodes",)
    told.drop("endpoints", "n1/x/a")
    assert (told.cluster.state().pods["x/a"].node, told.cluster.problems) == ("n2", ())


def test_an_address_belongs_to_the_pod_that_had_it_last(told: Told) -> None:
    told.attach(pod("x/old", "10.1.0.2", "fd00::2"))
    changes = told.attach(pod("y/new", "10.1.0.2", node="n2"))
    assert [change[:2] for change in changes] == [("Namespace", "y"), ("Pod", "x/old"), ("Pod", "y/new")]
    assert told.cluster.state().pods["x/old"].addresses == (ip_address("fd00::2"),)
    assert told.cluster.problems == ("10.1.0.2 of x/old is another pod's now",)
    told.drop("endpoints", "n2/y/new")
    assert told.cluster.state().pods["x/old"].addresses == (ip_address("10.1.0.2"), ip_address("fd00::2"))
    assert told.cluster.problems == ()


def test_a_pod_object_takes_no_address_from_an_attached_pod(told: Told) -> None:
    told.attach(pod("x/a", "10.1.0.2"))
    told.write("apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: x}\nstatus: {podIP: 10.1.0.2}")
    assert told.cluster.state().pods["x/a"].addresses
    assert not told.cluster.state().pods["x/b"].addresses


def test_pods_in_the_network_of_their_host_share_its_address(told: Told) -> None:
    for name in ("a", "b"):
        told.write(
            f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{hostNetwork: true}}\n"
            "status: {podIP: 192.168.0.1}"
        )
    assert told.cluster.problems == ()
    assert all(pod.addresses for pod in told.cluster.state().pods.values())


# ---- what cannot be read ---------------------------------------------------------------------------------------------

PODS = (pod("x/a", "10.1.0.2", app="web"), pod("y/b", "10.2.0.2"))
ALLOWED, DENIED = True, False
ACCEPT_ALL = "ingress: [{action: Accept, from: [{namespaces: {}}]}]"


def passes(told: Told, flow: str) -> bool:
    state = told.cluster.state()
    evaluator = Evaluator(state)
    asked = parse_flow(evaluator, flow)
    verdict = evaluator.verdict(asked)
    assert verdict == Reference(state).verdict(asked)
    return verdict.allow


@pytest.mark.parametrize(
    ("text", "key", "into", "away"),
    [
        pytest.param(np("x", "{}", "ingress: [{}]"), "KubernetesNetworkPolicy/x/p", DENIED, ALLOWED, id="kubernetes"),
        pytest.param(gnp("g", "ingress: [{action: Allow}]"), "GlobalNetworkPolicy/_/g", DENIED, DENIED, id="global"),
        pytest.param(cnp("c", "Admin", 1, ACCEPT_ALL), "ClusterNetworkPolicy/_/c", DENIED, DENIED, id="admin"),
    ],
)
@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"kind": "List", "items": []}', b'{"kind": "Pod"}'])
def test_a_policy_spoilt_in_the_store_allows_nothing_and_says_so(
    told: Told, text: str, key: str, into: bool, away: bool, value: bytes
) -> None:
    for one in PODS:
        told.attach(one)
    told.write(text)
    assert passes(told, "y/b > x/a TCP/80")
    told.put("policies", key, value)
    assert passes(told, "y/b > x/a TCP/80") == into
    assert passes(told, "y/b > 9.9.9.9 TCP/80") == away
    assert [problem.startswith(f"policies/{key}: ") for problem in told.cluster.problems] == [True]
    told.write(text)
    assert passes(told, "y/b > x/a TCP/80") and not told.cluster.problems


def test_a_policy_with_one_bad_rule_keeps_the_good_ones_and_says_so(told: Told) -> None:
    for one in PODS:
        told.attach(one)
    told.write(np("x", "{}", "ingress: [{ports: [{port: 80}]}, {ports: [{prot: 81}]}]"))
    assert passes(told, "y/b > x/a TCP/80") and not passes(told, "y/b > x/a TCP/81")
    assert "spec.ingress[1].ports[0].prot" in told.cluster.problems[0]


def test_what_can_stand_for_nothing_stays_as_it_was(told: Told) -> None:
    told.write(tier("t", 10, "Pass"))
    told.put("policies", "Tier/_/t", b"{")
    assert told.cluster.state().tiers["t"].order == 10
    assert "Tier/_/t: not JSON" in told.cluster.problems[0]
    told.drop("policies", "Tier/_/t")
    assert (told.cluster.state().tiers, told.cluster.problems) == ({}, ())


def test_a_pod_that_cannot_be_read_has_no_traffic(told: Told) -> None:
    told.attach(PODS[1])
    told.put("endpoints", "n1/x/a", b"{}")
    assert told.cluster.state().pods["x/a"].broken
    assert len(told.cluster.problems) == 1


def test_a_kind_of_a_later_version_is_a_problem_and_nothing_else(told: Told) -> None:
    assert told.put("policies", "MagicPolicy/_/m", b"{}") == ()
    assert "a kind that this version does not know" in told.cluster.problems[0]


# ---- any order -------------------------------------------------------------------------------------------------------

TEXTS = (
    np("x", "{}", ""),
    np("x", "{matchLabels: {app: web}}", "ingress: [{}]"),
    gnp("p", "order: 5, selector: all()"),
    tier("t", 10),
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {a: b}}",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\nstatus: {podIP: 10.0.0.1}",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: y}\nstatus: {podIP: 10.0.0.2, phase: Failed}",
    f"{CALICO}\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec: {{defaultEndpointToHostAction: Accept}}",
    f"{CALICO}\nkind: NetworkSet\nmetadata: {{name: s, namespace: z}}\nspec: {{nets: [10.0.0.0/8]}}",
)


def test_the_state_depends_on_the_entries_alone_and_changes_tell_all_of_it(told: Told) -> None:
    rng = random.Random(seed := 20261125)
    written = [pair for text in TEXTS for pair in load_texts([("f.yaml", text)]).written]
    values = [(str(object_key(found)), object_value(cursor.value)) for found, cursor in written]
    there: dict[tuple[Kind, str], Entry] = {}
    for step in range(3000):
        kind: Kind = rng.choice(("endpoints", "policies"))
        if kind == "policies":
            key, value = rng.choice(values)
            if rng.random() < 0.1 and not key.startswith(("Tier", "Namespace", "Felix", "NetworkSet")):
                value = b"spoilt"
        else:
            ips = [f"10.0.0.{rng.randrange(4)}" for _ in range(rng.randrange(3))]
            entry = pod(
                f"{rng.choice('xy')}/{rng.choice('ab')}", *ips, node=rng.choice(("n1", "n2")), app=rng.choice("vw")
            )
            key, value = entry.key, entry.value if rng.random() < 0.9 else b"spoilt"
        if rng.random() < 0.4:
            told.drop(kind, key)
            there.pop((kind, key), None)
        else:
            told.put(kind, key, value)
            there[kind, key] = Entry(key, value, told.revision, 1)
        if step % 20 == 0:
            fresh = Cluster()
            for one in rng.sample(("endpoints", "policies"), 2):
                entries = [entry for (its, _), entry in there.items() if its == one]
                fresh.apply(Snapshot(told.revision, tuple(rng.sample(entries, len(entries)))), one)  # type: ignore[arg-type]
            assert fresh.state() == told.cluster.state(), f"seed {seed}, step {step}"
            assert fresh.problems == told.cluster.problems, f"seed {seed}, step {step}"
            assert sum(fresh.counts().values()) == len(told.believed), f"seed {seed}, step {step}"
            assert {
                key: one for (kind_name, key), one in told.believed.items() if kind_name == "Pod"
            } == fresh.state().pods
