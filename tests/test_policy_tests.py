"""Policies with their own tests: what is read, what fails and who is blamed, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from canal_udp.__main__ import main
from canal_udp.policy.policy_tests import failed_tests
from tests.policies import KUBE, files, read, world_yaml

POLICY = (
    f"{KUBE}\nmetadata: {{name: p, namespace: x}}\nspec:\n  podSelector: {{matchLabels: {{pod: a}}}}\n  ingress:\n"
    "  - {from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}"
)


def failures(tests: str, *policies: str) -> list[str]:
    loaded = read(world_yaml(), files(POLICY, *policies), tests)
    assert loaded.problems == ()
    return [str(one) for one in failed_tests(loaded.state, loaded.tests)]


GOOD = [
    pytest.param("allow: [{from: x/b, to: x/a, port: 80}]", id="what is allowed"),
    pytest.param("deny: [{from: x/b, to: x/a, port: [81, 82]}, {from: x/c, to: x/a, port: 80}]", id="what is denied"),
    pytest.param("deny: [{from: [y/*, 8.8.8.8, 'fd00::9'], to: x/a, port: 80}]", id="lists, namespaces, addresses"),
    pytest.param("allow: [{from: x/*, to: [x/b, x/c], protocol: UDP, port: 53}]", id="a protocol"),
    pytest.param("allow: [{from: x/a, to: x/a}]", id="a pod and itself, when asked for"),
    pytest.param("deny: [{from: x/*, to: x/a, protocol: ICMP, icmpType: 8}]", id="not itself, in a list"),
    pytest.param("deny: [{from: x/b, to: x/a, protocol: 47}]", id="a protocol's number"),
    pytest.param("allow: [{from: x/b, to: x/a, port: 80, sourcePort: 1}]", id="a source port"),
]


@pytest.mark.parametrize("test", GOOD)
def test_nothing_fails(test: str) -> None:
    assert failures(f"tests: [{{{test}}}]") == []


BAD = [
    pytest.param(
        "tests:\n- name: shop\n  allow:\n  - {from: x/c, to: x/a, port: 80}",
        [
            "file2.yaml:4: error: test 'shop': x/c -> x/a TCP/80 is denied and must be allowed: ingress denied by "
            "KubernetesNetworkPolicy:x/p (file1.yaml:1): no rule of the tier matched"
        ],
        id="denied by the end of a tier",
    ),
    pytest.param(
        "tests:\n- deny:\n  - {from: x/b, to: x/a, port: 80}",
        [
            "file2.yaml:3: error: test 'tests[0]': x/b -> x/a TCP/80 is allowed and must be denied: egress allowed by "
            "Profile:kns.x rule 0; ingress allowed by KubernetesNetworkPolicy:x/p rule 0 (file1.yaml:7)"
        ],
        id="allowed by a rule",
    ),
    pytest.param(
        "tests:\n- allow:\n  - {from: x/q, to: x/a}",
        ["file2.yaml:3: error: test 'tests[0]': x/q -> x/a TCP: src: there is no pod x/q"],
        id="no such pod",
    ),
    pytest.param(
        "tests:\n- deny:\n  - {from: q/*, to: x/a}",
        ["file2.yaml:3: error: test 'tests[0]': q/* -> x/a: there is no such pod"],
        id="a namespace without pods proves nothing",
    ),
    pytest.param(
        "tests:\n- alow: []\n- deny:\n  - {form: x/a, to: x/b, port: 70000}\n  - {from: x/a, to: 7}",
        [
            "file2.yaml:2: error: tests[0].alow: unknown field; did you mean 'allow'?",
            "file2.yaml:2: error: tests[0]: allow or deny is needed",
            "file2.yaml:4: error: tests[1].deny[0].form: unknown field; did you mean 'from'?",
            "file2.yaml:4: error: tests[1].deny[0]: from is missing",
            "file2.yaml:4: error: tests[1].deny[0].port: 70000 is not between 0 and 65535",
            "file2.yaml:5: error: tests[1].deny[1].to: a string is needed here (7 without quotes is none)",
        ],
        id="tests that cannot be read",
    ),
    pytest.param(
        "tests: [{allow: [{from: x/a, to: x/b, protocol: TPC}]}]",
        [
            "file2.yaml:1: error: test 'tests[0]': x/a -> x/b TPC: protocol: one of TCP, UDP, ICMP, ICMPv6, SCTP, "
            "UDPLite or a number up to 255 is needed"
        ],
        id="a protocol that is none",
    ),
]


@pytest.mark.parametrize(("tests", "expected"), BAD)
def test_what_fails_says_who_decided(tests: str, expected: list[str]) -> None:
    assert failures(tests) == expected


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "world.yaml").write_text(world_yaml())
    (tmp_path / "policy.yaml").write_text(files(POLICY, "tests: [{name: b, allow: [{from: x/b, to: x/a, port: 80}]}]"))
    return tmp_path


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "test", str(folder)]) == 0
    assert capsys.readouterr().out == "ok      b\n1 flow, 0 failed\n"
    (folder / "more.yaml").write_text("tests: [{name: c, deny: [{from: x/*, to: x/a, port: 80}]}]")
    assert main(["policy", "test", str(folder)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "FAILED  c"
    assert out[1].startswith(f"        {folder}/more.yaml:1: x/b -> x/a TCP/80 is allowed and must be denied: egress ")
    assert out[2:] == ["ok      b", "3 flows, 1 failed"]


def test_command_in_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "test", "-j", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "problems": [],
        "tests": [
            {
                "test": "b",
                "file": str(folder / "policy.yaml"),
                "line": 9,
                "expected": "allow",
                "flows": 1,
                "failures": [],
            }
        ],
    }


def test_command_without_tests_and_with_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "test", str(folder / "world.yaml")]) == 2
    (folder / "bad.yaml").write_text("tests: [{alow: []}]")
    assert main(["policy", "test", str(folder)]) == 1
    assert "tests[0].alow: unknown field" in capsys.readouterr().err
