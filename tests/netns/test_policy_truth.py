"""Who may talk to whom, with real packets: three namespaces of three pods, two ports, three protocols, on two nodes.

pods xa xc yb za zc ─TUN─ node a (daemon) ───veth─── node b (daemon) ─TUN─ pods xb ya yc zb

One lab; policies change, pods stay. Each table is tried until it holds, for as long as a change may take.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from canal_udp.lab import host, trial
from canal_udp.lab.commands import CANAL
from canal_udp.lab.probe import Probe, Probers, Service, every_pair
from tests.netns.bed import Bed, laboratory
from tests.policies import cnp, files, gnp, np, tier

NODES = {"a": ("xa", "xc", "yb", "za", "zc"), "b": ("xb", "ya", "yc", "zb")}
SERVICES = [Service(protocol, port) for protocol in ("TCP", "UDP", "SCTP") for port in (80, 81)]  # type: ignore[arg-type]
DATA = Path(os.environ.get("CANAL_TEST_DATA") or "/nowhere") / "kubernetes_matrices.jsonl"
MATRICES = 20
ASK_S, DEADLINE_S = 0.4, 5.0
Expected = Callable[[str, str, Service], bool]


def lab_text() -> str:
    pods = {
        node: {"pods": {name: {"namespace": name[0], "labels": {"pod": name[1]}} for name in names}}
        for node, names in NODES.items()
    }
    return yaml.safe_dump(
        {
            "overlay": {"network": "10.244.0.0/16", "encap": "vxlan"},
            "namespaces": {name: {"ns": name} for name in "xyz"},
            "nodes": pods,
        }
    )


@dataclass
class World:
    bed: Bed
    probers: Probers
    probes: list[Probe]
    folder: Path
    applied: Path | None = None

    def policy(self, *words: str) -> None:
        host.run([*CANAL, "policy", *words, "--store", self.bed.state.store_url(self.bed.lab)])

    def apply(self, text: str) -> None:
        """These policies, and no others."""
        if self.applied is not None:
            self.policy("delete", "-f", str(self.applied))
        self.applied = None
        if text:
            self.applied = self.folder / "policies.yaml"
            self.applied.write_text(text)
            self.policy("apply", "-f", str(self.applied))

    def check(self, text: str, expected: Expected) -> None:
        self.apply(text)
        wanted = {probe: expected(probe.source, probe.target, probe.service) for probe in self.probes}
        deadline = time.monotonic() + DEADLINE_S
        wrong, timeout_s = list(self.probes), ASK_S
        while True:
            answers = self.probers.ask(wrong, timeout_s)
            wrong = [probe for probe in wrong if (answers[probe] == "passed") != wanted[probe]]
            if not wrong:
                return
            assert time.monotonic() < deadline, [(probe, answers[probe]) for probe in wrong[:10]]
            timeout_s = min(2 * timeout_s, 2.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with laboratory(lab_text(), "t-truth", tmp_path_factory.mktemp("lab")) as bed:
        found = trial.places(bed.lab, bed.state.pods())
        places = {name: place for name, place in found.items() if len(name) == 2}
        with Probers(places, SERVICES) as probers:
            yield World(bed, probers, every_pair(places, SERVICES), tmp_path_factory.mktemp("policies"))
        bed.settle()


def every(rule: str, *namespaces: str) -> str:
    return files(*(np(namespace, "{}", rule) for namespace in namespaces))


NS_Y, POD_B = "namespaceSelector: {matchLabels: {ns: y}}", "podSelector: {matchLabels: {pod: b}}"
NOT_B, POD_A = "{matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}", "'pod == \"a\"'"
TABLES: list[Any] = [
    pytest.param("", lambda s, d, _: True, id="no policy"),
    pytest.param(every("ingress: []", "x"), lambda s, d, _: d[0] != "x", id="nobody reaches x"),
    pytest.param(
        every("policyTypes: [Egress]", "x"), lambda s, d, _: s[0] != "x", id="x reaches nobody, and is reached"
    ),
    pytest.param(
        every("policyTypes: [Ingress, Egress]", "x", "y", "z"), lambda s, d, _: False, id="nobody talks to anybody"
    ),
    pytest.param(every("ingress: [{}]", "x"), lambda s, d, _: True, id="everybody may"),
    pytest.param(
        np("x", "{matchLabels: {pod: a}}", f"ingress: [{{from: [{{{POD_B}}}]}}]"),
        lambda s, d, _: d != "xa" or s == "xb",
        id="a pod selector is about its own namespace",
    ),
    pytest.param(
        np("x", "{matchLabels: {pod: a}}", f"ingress: [{{from: [{{{POD_B}, {NS_Y}}}]}}]"),
        lambda s, d, _: d != "xa" or s == "yb",
        id="both selectors of one peer",
    ),
    pytest.param(
        np("x", "{matchLabels: {pod: a}}", f"ingress: [{{from: [{{{POD_B}}}, {{{NS_Y}}}]}}]"),
        lambda s, d, _: d != "xa" or s == "xb" or s[0] == "y",
        id="two peers",
    ),
    pytest.param(
        np("x", "{}", "ingress: [{from: [{namespaceSelector: {}}]}]"), lambda s, d, _: True, id="any namespace"
    ),
    pytest.param(
        np("x", "{}", "ingress: [{ports: [{port: 80}]}]"),
        lambda s, d, v: d[0] != "x" or (v.protocol, v.port) == ("TCP", 80),
        id="a port is TCP's",
    ),
    pytest.param(
        np("x", "{}", "ingress: [{ports: [{protocol: UDP}]}]"),
        lambda s, d, v: d[0] != "x" or v.protocol == "UDP",
        id="every port of UDP",
    ),
    pytest.param(
        np("x", "{}", "ingress: [{ports: [{protocol: SCTP, port: 81}]}]"),
        lambda s, d, v: d[0] != "x" or (v.protocol, v.port) == ("SCTP", 81),
        id="a port of SCTP",
    ),
    pytest.param(
        np("x", "{}", "ingress: [{ports: [{port: 81, endPort: 90}, {protocol: UDP, port: 70, endPort: 80}]}]"),
        lambda s, d, v: d[0] != "x" or (v.protocol, v.port) in (("TCP", 81), ("UDP", 80)),
        id="ranges end with their last port",
    ),
    pytest.param(
        files(np("x", "{}", "ingress: []", "none"), np("x", "{}", f"ingress: [{{from: [{{{NS_Y}}}]}}]", "some")),
        lambda s, d, _: d[0] != "x" or s[0] == "y",
        id="policies add up",
    ),
    pytest.param(
        files(
            np("x", "{}", f"policyTypes: [Egress], egress: [{{to: [{{{NS_Y}}}], ports: [{{port: 80}}]}}]", "out"),
            np("y", "{matchLabels: {pod: c}}", "ingress: []", "in"),
        ),
        lambda s, d, v: d != "yc" and (s[0] != "x" or (d[0] == "y" and (v.protocol, v.port) == ("TCP", 80))),
        id="both ends must allow",
    ),
    pytest.param(
        np("x", "{}", f"ingress: [{{from: [{{podSelector: {NOT_B}}}]}}]"),
        lambda s, d, _: d[0] != "x" or s in ("xa", "xc"),
        id="not in",
    ),
    pytest.param(
        np("x", "{matchExpressions: [{key: pod, operator: In, values: [a, b]}]}", "ingress: []"),
        lambda s, d, _: d not in ("xa", "xb"),
        id="some pods of a namespace",
    ),
    pytest.param(
        np("x", "{}", "ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}]}]"),
        lambda s, d, _: True,
        id="a block of addresses holds pods",
    ),
    pytest.param(
        np("x", "{}", "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.0.0/16]}}]}]"),
        lambda s, d, _: d[0] != "x",
        id="... without its exception",
    ),
    pytest.param(
        files(
            np("x", "{}", f"ingress: [{{from: [{{{NS_Y}}}]}}]"),
            cnp("deny", "Admin", 10, "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {ns: y}}}]}]"),
        ),
        lambda s, d, _: d[0] != "x",
        id="the admin tier goes first",
    ),
    pytest.param(
        files(
            cnp("p", "Admin", 5, "ingress: [{action: Pass, from: [{namespaces: {matchLabels: {ns: y}}}]}]"),
            cnp("deny", "Admin", 10, "ingress: [{action: Deny, from: [{namespaces: {}}]}]"),
        ),
        lambda s, d, _: d[0] != "x" or s[0] == "y",
        id="pass leaves the tier",
    ),
    pytest.param(
        files(
            np("x", "{matchLabels: {pod: a}}", f"ingress: [{{from: [{{{NS_Y}}}]}}]"),
            cnp("deny", "Baseline", 10, "ingress: [{action: Deny, from: [{namespaces: {}}]}]"),
        ),
        lambda s, d, _: d[0] != "x" or (d == "xa" and s[0] == "y"),
        id="the baseline comes last",
    ),
    pytest.param(
        files(
            tier("t", 10, "Pass"),
            gnp(
                "t.first",
                f"tier: t, order: 1, selector: {POD_A}, types: [Ingress], ingress: [{{action: Deny, protocol: UDP}}]",
            ),
        ),
        lambda s, d, v: d[1] != "a" or v.protocol != "UDP",
        id="a tier of one's own",
    ),
]


@pytest.mark.parametrize(("policies", "expected"), TABLES)
def test_the_table_holds(world: World, policies: str, expected: Expected) -> None:
    world.check(policies, expected)


def plain(case: dict[str, Any]) -> bool:
    """Is it about our pods as they are? Their addresses and their ports' names are the case's own."""
    text = json.dumps(case["policies"])
    return (
        case["namespaces"] == {name: {"ns": name} for name in "xyz"}
        and {key: pod["labels"] for key, pod in case["pods"].items()}
        == {f"{name}/{pod}": {"pod": pod} for name in "xyz" for pod in "abc"}
        and "ipBlock" not in text
        and "serve-" not in text
    )


class TestOthersMatrices:
    __test__ = DATA.exists()

    def test_they_hold(self, world: World) -> None:
        cases = [case for case in map(json.loads, DATA.read_text().splitlines()) if plain(case)]
        for case in cases[:: max(len(cases) // MATRICES, 1)][:MATRICES]:
            verdicts = case["verdicts"]

            def expected(source: str, target: str, service: Service, verdicts: Any = verdicts) -> bool:
                return bool(verdicts[str(service)][f"{source[0]}/{source[1]}>{target[0]}/{target[1]}"] == "AA")

            world.check("\n---\n".join(map(json.dumps, case["policies"])), expected)
