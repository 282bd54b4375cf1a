"""canal policy check and eval, and the warnings: what is printed, and the exit status."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from canal_udp.__main__ import main
from canal_udp.policy.validate import warnings
from tests.policies import CALICO, KUBE, read, world_yaml


def np(spec: str, name: str = "p") -> str:
    return (
        f"{KUBE}\nmetadata: {{name: {name}, namespace: x}}\nspec: {{podSelector: {{matchLabels: {{pod: a}}}}, {spec}}}"
    )


ISOLATED = np("ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]")

SUSPICIOUS = [
    pytest.param(ISOLATED, [], id="nothing to say"),
    pytest.param(
        ISOLATED.replace("pod: a", "pod: q"),
        ["file1.yaml:1: warning: KubernetesNetworkPolicy:x/p selects nothing"],
        id="selects nothing",
    ),
    pytest.param(
        np("policyTypes: [Ingress], egress: [{}]"),
        [
            "file1.yaml:4: warning: spec.egress: KubernetesNetworkPolicy:x/p has egress rules and not that type: "
            "they have no effect"
        ],
        id="rules without their type",
    ),
    pytest.param(
        np(
            "ingress: [{ports: [{port: 80, endPort: 90}]}, {ports: [{port: 85}]}, {ports: [{protocol: UDP, port: 85}]}]"
        ),
        [
            "file1.yaml:4: warning: spec.ingress[1]: KubernetesNetworkPolicy:x/p never gets to this rule: ingress[0] "
            "matches all that it matches"
        ],
        id="a rule that an earlier one covers",
    ),
    pytest.param(
        f"{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: g}}\nspec:\n  ingress:\n"
        "  - {action: Deny, source: {nets: [10.0.0.0/8]}}\n"
        "  - {action: Log}\n"
        "  - {action: Allow, protocol: TCP, source: {nets: [10.2.0.0/16]}}\n"
        "  - {action: Allow, protocol: TCP, source: {nets: [11.0.0.0/8]}}",
        [
            "file1.yaml:8: warning: spec.ingress[2]: GlobalNetworkPolicy:g never gets to this rule: ingress[0] matches "
            "all that it matches"
        ],
        id="by prefixes; Log covers nothing",
    ),
    pytest.param(
        np("ingress: [{ports: [{port: wbe}, {port: web}]}]"),
        [
            "file1.yaml:4: warning: spec.ingress[0]: KubernetesNetworkPolicy:x/p names port 'wbe', which no pod "
            "that is meant has"
        ],
        id="a port name that nobody has",
    ),
    pytest.param(
        np("policyTypes: [Egress], egress: [{ports: [{port: 443}]}]"),
        ["file1.yaml:1: warning: spec.egress: KubernetesNetworkPolicy:x/p allows egress and forgets DNS (UDP port 53)"],
        id="DNS is forgotten",
    ),
    pytest.param(
        np("policyTypes: [Egress], egress: [{ports: [{port: 443}]}]")
        + "\n---\n"
        + np("policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]", "dns"),
        [],
        id="another policy thinks of DNS",
    ),
    pytest.param(
        f"{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: a}}\nspec: {{order: 1, ingress: [{{action: Deny}}]}}"
        f"\n---\n{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: b}}\n"
        "spec: {order: 2, selector: pod == 'a', ingress: [{action: Allow}], egress: [{action: Allow}]}\n---\n"
        + ISOLATED,
        [
            "file1.yaml:9: warning: spec.ingress[0]: GlobalNetworkPolicy:b never gets to this rule: "
            "GlobalNetworkPolicy:a ingress[0] matches all that it matches",
            "file1.yaml:14: warning: spec.ingress[0]: KubernetesNetworkPolicy:x/p never gets to this rule: "
            "GlobalNetworkPolicy:a ingress[0] matches all that it matches",
        ],
        id="a rule that an earlier policy of the tier covers",
    ),
    pytest.param(
        f"{CALICO}\nkind: Tier\nmetadata: {{name: first}}\nspec: {{order: 1}}\n---\n"
        f"{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: p}}\n"
        "spec: {tier: frist, ingress: [{action: Deny}]}",
        [
            "file1.yaml:6: warning: spec.tier: GlobalNetworkPolicy:p is in tier 'frist', which is not there: it comes "
            "last; did you mean 'first'?"
        ],
        id="a tier that is not there",
    ),
    pytest.param(np("policyTypes: [Egress]"), [], id="who allows nothing has not forgotten DNS"),
]


@pytest.mark.parametrize(("text", "expected"), SUSPICIOUS)
def test_warnings(text: str, expected: list[str]) -> None:
    loaded = read(world_yaml(), text)
    assert loaded.problems == ()
    assert [str(one) for one in warnings(loaded.state)] == expected


def test_policies_alone_are_not_said_to_select_nothing() -> None:
    assert list(warnings(read(ISOLATED).state)) == []


# ---- check -----------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["policy", *words])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "world.yaml").write_text(world_yaml())
    (tmp_path / "good.yaml").write_text(ISOLATED)
    (tmp_path / "bad.yaml").write_text(np("ingres: []", "bad"))
    (tmp_path / "readme.txt").write_text("not a policy")
    return tmp_path


def test_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = str(folder / "good.yaml"), str(folder / "bad.yaml")
    assert run(capsys, "check", good) == (0, "1 policy, 0 errors, 0 warnings\n", "")
    status, out, _ = run(capsys, "check", good, bad)
    assert status == 1
    assert out.splitlines() == [
        f"{bad}:4: error: spec.ingres: unknown field; did you mean 'ingress'?",
        "2 policies, 1 errors, 0 warnings",
    ]
    status, out, _ = run(capsys, "check", str(folder), "-j")
    assert status == 1
    assert [(one["severity"], one["line"], one["field"]) for one in json.loads(out)] == [("error", 4, "spec.ingres")]


def test_check_strict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(np("policyTypes: [Egress], egress: [{ports: [{port: 443}]}]"))
    assert run(capsys, "check", str(folder / "good.yaml"))[0] == 0
    assert run(capsys, "check", "--strict", str(folder / "good.yaml"))[0] == 1


@pytest.mark.parametrize("name", ["missing.yaml", "latin1.yaml", "empty"])
def test_check_of_what_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "latin1.yaml").write_bytes(b"\xff\xfe\xfd")
    (folder / "empty").mkdir()
    status, _, err = run(capsys, "check", str(folder / name))
    assert status == 2 and name in err


# ---- eval ------------------------------------------------------------------------------------------------------------


def ask(folder: Path, capsys: pytest.CaptureFixture[str], lines: list[object], *words: str) -> tuple[int, list[Any]]:
    flows = folder / "flows.jsonl"
    flows.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    files = [str(folder / "world.yaml"), str(folder / "good.yaml")]
    status, out, _ = run(capsys, "eval", "--state", *files, "--flows", str(flows), "-j", *words)
    return status, [json.loads(line) for line in out.splitlines()]


def test_eval_repeats_the_flow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flows: list[object] = [
        {"src": "x/b", "dst": "x/a", "protocol": "TCP", "dport": 80, "note": [1]},
        {"src": "8.8.8.8", "dst": "10.1.0.1", "protocol": 6, "sport": 1, "dport": 80},
    ]
    status, answers = ask(folder, capsys, flows)
    assert status == 0
    assert answers[0] == flows[0] | {  # type: ignore[operator]
        "verdict": "allow",
        "egress": {"verdict": "allow", "tier": None, "policy": "Profile:kns.x", "rule": 0},
        "ingress": {"verdict": "allow", "tier": "default", "policy": "KubernetesNetworkPolicy:x/p", "rule": 0},
    }
    assert answers[1] == flows[1] | {  # type: ignore[operator]
        "verdict": "deny",
        "egress": {"verdict": "allow", "tier": None, "policy": None, "rule": None, "reason": "not an endpoint"},
        "ingress": {
            "verdict": "deny",
            "tier": "default",
            "policy": "KubernetesNetworkPolicy:x/p",
            "rule": -1,
            "reason": "no rule of the tier matched",
        },
    }


BAD_FLOWS = [
    ("{", "not JSON: "),
    ([], "a flow is an object"),
    ({"src": "x/b", "protocol": "TCP"}, 'dst: "namespace/pod" or an address is needed'),
    ({"src": "x/b", "dst": "x/q", "protocol": "TCP"}, "dst: there is no pod x/q"),
    ({"src": "nobody", "dst": "x/a", "protocol": "TCP"}, "'nobody' does not appear to be an IPv4 or IPv6 address"),
    (
        {"src": "8.8.8.8", "dst": "fd00::1:1", "protocol": "TCP"},
        "8.8.8.8 and fd00::1:1 have no address family in common",
    ),
    ({"src": "x/b", "dst": "x/a", "protocol": "TPC"}, "protocol: one of "),
    ({"src": "x/b", "dst": "x/a", "protocol": 256}, "protocol: one of "),
    ({"src": "x/b", "dst": "x/a"}, "protocol: one of "),
    ({"src": "x/b", "dst": "x/a", "protocol": "TCP", "dport": 65536}, "dport: a number from 0 to 65535 is needed"),
    ({"src": "x/b", "dst": "x/a", "protocol": "TCP", "dport": True}, "dport: a number from 0 to 65535 is needed"),
    ({"src": ["x/b"], "dst": "x/a", "protocol": "TCP"}, 'src: "namespace/pod" or an address is needed'),
    ({"src": "x/b", "dst": "x/a", "protocol": [6]}, "a flow holds words and numbers only"),
]


def test_eval_goes_on_after_nonsense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"src": "x/b", "dst": "x/a", "protocol": "udp", "dport": 80}
    status, answers = ask(folder, capsys, [*(flow for flow, _ in BAD_FLOWS), good])
    assert status == 1
    for answer, (flow, problem) in zip(answers, BAD_FLOWS, strict=False):
        assert answer["error"].startswith(problem), flow
    assert [answer["line"] for answer in answers[:-1]] == list(range(1, len(BAD_FLOWS) + 1))
    assert answers[-1]["verdict"] == "deny"


def test_eval_of_families_and_icmp(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(
        f"{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: g}}\nspec:\n  selector: pod == 'a'\n  ingress:\n"
        "  - {action: Allow, protocol: ICMPv6, icmp: {type: 128}}"
    )
    flows: list[object] = [
        {"src": "fd00::2:1", "dst": "x/a", "protocol": "ICMP"},
        {"src": "fd00::2:1", "dst": "x/a", "protocol": "ICMP", "icmp_type": 129},
        {"src": "y/a", "dst": "x/a", "protocol": "ICMP"},
    ]
    assert [answer["verdict"] for answer in ask(folder, capsys, flows)[1]] == ["allow", "deny", "deny"]


def test_eval_reads_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(ISOLATED))
    status, out, err = run(capsys, "eval", "--state", str(folder / "world.yaml"), "-", "--port", "80/tcp", "-j")
    assert (status, err) == (0, "")
    table = json.loads(out)["80/TCP"]
    assert len(table) == 81
    assert (table["y/a>x/a"], table["x/b>x/a"], table["x/a>x/a"], table["x/a>y/a"]) == ("AD", "AA", "AA", "AA")


def test_matrix_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(folder / "world.yaml"), str(folder / "good.yaml")]
    status, out, _ = run(capsys, "eval", "--matrix", "--port", "80/TCP", "--state", *files)
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["80/TCP", "X/A", "X/B", "X/C", "Y/A", "Y/B", "Y/C", "Z/A", "Z/B", "Z/C"]
    assert lines[3].split() == ["x/c", "I", *"........"]


def test_eval_of_pods_that_were_never_started(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "world.yaml").write_text(
        "\n---\n".join(
            f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x, labels: {{pod: {name}}}}}"
            for name in "abc"
        )
    )
    flows: list[object] = [{"src": f"x/{name}", "dst": "x/a", "protocol": "TCP", "dport": 80} for name in "bc"]
    assert [answer["verdict"] for answer in ask(folder, capsys, flows)[1]] == ["allow", "deny"]


def test_eval_with_errors_answers_closed_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(np("ingress: [{form: []}]"))
    status, answers = ask(folder, capsys, [{"src": "x/b", "dst": "x/a", "protocol": "TCP", "dport": 80}])
    assert status == 1
    assert answers[0]["verdict"] == "deny"


def test_eval_staged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(
        f"{CALICO}\nkind: StagedGlobalNetworkPolicy\nmetadata: {{name: g}}\n"
        "spec: {selector: pod == 'a', types: [Ingress]}"
    )
    flow: list[object] = [{"src": "x/b", "dst": "x/a", "protocol": "TCP", "dport": 80}]
    assert ask(folder, capsys, flow)[1][0]["verdict"] == "allow"
    assert ask(folder, capsys, flow, "--staged")[1][0]["verdict"] == "deny"
    answer = ask(folder, capsys, flow, "--pending")[1][0]
    assert (answer["verdict"], answer["pending"]["verdict"]) == ("allow", "deny")
    assert answer["pending"]["ingress"]["policy"] == "GlobalNetworkPolicy:g"
    assert ask(folder, capsys, [answer])[1] == ask(folder, capsys, flow)[1]  # an answer can be asked again


@pytest.mark.parametrize("words", [["--port", "80"], ["--port", "80/xxx"], ["--flows", "/nowhere/at/all"]])
def test_eval_usage(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(capsys, "eval", "--state", str(folder / "good.yaml"), *words)[0] == 2
