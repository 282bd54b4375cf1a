"""Which flows change: tables, comparison with brute force over random clusters, what must not matter."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from canal_udp.__main__ import main
from canal_udp.policy.diff import difference, recorded_difference, with_staged_enforced
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import Flow
from canal_udp.policy.model import ICMP, ICMP6, SCTP, TCP, UDP, WITH_PORTS, CalicoPolicy, CalicoRule, State
from canal_udp.policy.questions import Questions
from canal_udp.policy.selector import parse
from tests.policies import calico, files, gnp, np, world, world_yaml
from tests.test_policy_random import Dice, show

A = "{matchLabels: {pod: a}}"
B = "{matchLabels: {pod: b}}"
OTHERS = "x/b, x/c, y/a, y/b, y/c, z/a, z/b, z/c"

CASES = [
    pytest.param(np("x", A, "ingress: []"), np("x", A, "ingress: []"), [], id="the same"),
    pytest.param(
        np("x", A, "ingress: [{ports: [{port: 80}]}]"),
        np("x", A, "ingress: [{ports: [{port: 80}, {port: 81, endPort: 90}]}]"),
        [f"allow outside, {OTHERS} -> x/a 46: TCP 81-90"],
        id="ports are joined, families too",
    ),
    pytest.param(
        np("x", A, "ingress: [{from: [{podSelector: {}}]}]"),
        np("x", A, f"ingress: [{{from: [{{podSelector: {B}}}]}}]"),
        ["deny x/c -> x/a 46: everything"],
        id="who may no longer",
    ),
    pytest.param(
        np("x", A, "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 8.0.0.0/8}}]}]"),
        np("x", A, "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 8.0.0.0/8, except: [8.8.0.0/16]}}]}]"),
        ["deny x/a -> 8.8.0.0/16 4: everything"],
        id="prefixes outside",
    ),
    pytest.param(
        gnp("p", "selector: pod == 'a', ingress: [{action: Allow}]"),
        gnp(
            "p",
            "selector: pod == 'a', ingress: [{action: Deny, protocol: ICMP, icmp: {type: 8}, source: {selector: "
            "projectcalico.org/namespace == 'y'}}, {action: Deny, protocol: TCP, source: {selector: pod == 'b', ports: "
            "['1:1023']}, destination: {ports: [443]}}, {action: Allow}]",
        ),
        [
            "deny x/b, y/b, z/b -> x/a, y/a, z/a 6: TCP from 1-1023 to 443",
            "deny x/b, z/b -> x/a, y/a, z/a 4: TCP from 1-1023 to 443",
            "deny y/a, y/c -> x/a, y/a, z/a 4: ICMP 8",
            "deny y/b -> x/a, y/a, z/a 4: TCP from 1-1023 to 443; ICMP 8",
        ],
        id="source ports and ICMP",
    ),
    pytest.param(
        "",
        gnp("p", "selector: pod == 'a', types: [Ingress], ingress: [{action: Allow, notProtocol: 47}]"),
        [
            "deny outside, x/a, x/b, x/c, y/a, y/b, y/c, z/a, z/b, z/c -> x/a, y/a, z/a 46: 47",
        ],
        id="a protocol's number",
    ),
]


def lines(old: State, new: State) -> list[str]:
    found = difference(old, new)
    return sorted(
        f"{'allow' if one.allow else 'deny'} {', '.join(one.sources)} -> {', '.join(one.destinations)} "
        f"{''.join(map(str, one.families))}: {'; '.join(one.packets)}"
        for one in found.changes
    )


@pytest.mark.parametrize(("old", "new", "expected"), CASES)
def test_changes(old: str, new: str, expected: list[str]) -> None:
    assert lines(world(old), world(new)) == expected
    flipped = {"allow": "deny", "deny": "allow"}
    back = sorted(" ".join((flipped[verdict], rest)) for verdict, _, rest in (one.partition(" ") for one in expected))
    assert lines(world(new), world(old)) == back


def test_why_and_example() -> None:
    (change,) = difference(
        world(np("x", A, "ingress: [{from: [{podSelector: {}}]}]")),
        world(np("x", A, f"ingress: [{{from: [{{podSelector: {B}}}]}}]")),
    ).changes
    assert change.example["src"] == "x/c" and change.example["dst"] == "x/a"
    assert change.before == (
        "egress allowed by Profile:kns.x rule 0; ingress allowed by KubernetesNetworkPolicy:x/p rule 0 (file1.yaml:4)"
    )
    assert change.after == ("ingress denied by KubernetesNetworkPolicy:x/p (file1.yaml:1): no rule of the tier matched")


def test_a_relabelled_namespace_changes_what_no_policy_says() -> None:
    policy = np("x", A, "ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]")
    old = world(policy)
    new = replace(old, namespaces={**old.namespaces, "z": replace(old.namespaces["z"], labels={"ns": "y"})})
    assert lines(old, new) == ["allow z/a, z/b, z/c -> x/a 46: everything"]


def test_a_pod_in_the_host_network_does_not_stand_for_its_neighbours() -> None:
    """Its address is the node's, and no rule is about the prefix that it is the first of."""
    block = "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.168.0.0/24]}}]}]"
    more = {"y/a": "nodeName: n1\n  hostNetwork: true", "x/a": "nodeName: n1"}
    old, new = (world(np("x", A, spec), more=more) for spec in (block, "policyTypes: [Egress]"))
    pods = {**old.pods, "y/a": replace(old.pods["y/a"], addresses=(ip_address("192.168.1.0"),))}
    found = lines(replace(old, pods=pods), replace(new, pods=pods))
    assert [one.partition(" 4: ")[0] for one in found if "192.168.1.0-" in one] == [
        "deny x/a -> 0.0.0.0-192.167.255.255, 192.168.1.0-255.255.255.255, x/b, x/c, y/b, y/c, z/a, z/b, z/c"
    ]


def test_pods_of_one_state_only_are_named() -> None:
    old = world(np("x", A, "ingress: []"))
    pods = {key: pod for key, pod in old.pods.items() if key != "y/c"}
    found = difference(old, replace(old, pods=pods))
    assert (found.changes, found.only_old, found.only_new) == ((), ("y/c",), ())


# ---- brute force -----------------------------------------------------------------------------------------------------


def test_agrees_with_asking_for_every_flow() -> None:
    """Every flow of the dice that changes is in a change, and every example of a change does."""
    start = random.randrange(2**32)
    for seed in range(start, start + 8):
        dice = Dice(seed)
        old = dice.state if seed % 8 == 0 else replace(dice.state, hosts={})  # hosts cost much
        new = replace(old, policies=mutated(dice))
        before, after = Evaluator(old), Evaluator(new)
        found = difference(old, new)
        for change in found.changes:
            verdicts = [Questions(one).verdict(change.example).allow for one in (before, after)]
            assert verdicts == [not change.allow, change.allow], f"seed {seed}: {change}"
        for flow in map(real, dice.flows(300)):
            if flow.hairpin or flow.original is not None:
                continue
            old_verdict, new_verdict = before.verdict(flow), after.verdict(flow)
            told = [one for one in found.changes if covers(one, flow, before)]
            if old_verdict.allow is new_verdict.allow:
                assert not told, f"seed {seed}: {flow} does not change\n{told}\n{show(old, flow)}"
            else:
                assert [one.allow for one in told] == [new_verdict.allow], f"seed {seed}: {flow}\n{found}"


def real(flow: Flow) -> Flow:
    """The dice give ports to every protocol."""
    return flow if flow.protocol in WITH_PORTS else replace(flow, sport=0, dport=0)


def mutated(dice: Dice) -> tuple[Any, ...]:
    policies = list(dice.state.policies)
    for _ in range(dice.rng.randrange(1, 3)):
        if policies and dice.chance(0.5):
            policies.pop(dice.rng.randrange(len(policies)))
        else:
            policies.append(dice.policy(100 + len(policies)))
    return tuple(policies)


NAMES = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP", ICMP: "ICMP", ICMP6: "ICMP"}


def covers(change: Any, flow: Flow, evaluator: Evaluator) -> bool:
    """Read a change as a person would."""
    if flow.source.version not in change.families:
        return False
    pods = [evaluator.places.party(address).workload for address in (flow.source, flow.destination)]
    if pods[0] and pods[0] == pods[1]:
        return False
    ends = ((change.sources, flow.source), (change.destinations, flow.destination))
    is_between = all(end_is_in(words, address, evaluator) for words, address in ends)
    return is_between and any(packet_is_in(word, flow) for word in change.packets)


def end_is_in(words: tuple[str, ...], address: Any, evaluator: Evaluator) -> bool:
    names = [name for name, addresses in evaluator.places.names.items() if address in addresses[:2]]
    if names or str(address) in words:
        return any(name in words for name in (*names, str(address)))
    if address in evaluator.classes.special or address in evaluator.places.parties:
        return False
    return "outside" in words or any(is_in_range(word, address) for word in words)


def is_in_range(word: str, address: Any) -> bool:
    """`10.0.0.0/8` or `10.0.0.0-10.0.0.2`; names of pods are neither."""
    try:
        if "/" in word:
            net = ip_network(word)
            return net.version == address.version and address in net
        first, last = map(ip_address, word.split("-"))
    except ValueError:
        return False
    return first.version == address.version and first <= address <= last


def packet_is_in(word: str, flow: Flow) -> bool:
    if word == "everything":
        return True
    if word.startswith("other protocols"):
        return flow.protocol not in NAMES and str(flow.protocol) not in word.split()
    name, _, rest = word.partition(" ")
    if name != NAMES.get(flow.protocol, str(flow.protocol)):
        return False
    if not rest:
        return True
    if flow.protocol in (ICMP, ICMP6):
        return any(icmp_is_in(one, str(flow.icmp_type), str(flow.icmp_code)) for one in rest.split(", "))
    sports, _, dports = rest.removeprefix("from ").rpartition(" to ")
    return is_in(dports, flow.dport) and (not sports or is_in(sports, flow.sport))


def icmp_is_in(word: str, kind: str, code: str) -> bool:
    """`8`, `8/0`, `8/other than 0`, `other than 8`."""
    if word.startswith("other"):
        return kind not in word.split()
    first, _, rest = word.partition("/")
    return kind == first and (code not in rest.split() if rest.startswith("other") else rest in ("", code))


def is_in(ranges: str, port: int) -> bool:
    pairs = (one.partition("-") for one in ranges.split(","))
    return any(int(first) <= port <= int(last or first) for first, _, last in pairs)


def test_what_must_not_matter() -> None:
    """A policy that selects nothing, the order of objects, where they are written, staged policies."""
    start = random.randrange(2**32)
    for seed in range(start, start + 8):
        state = Dice(seed).state if seed % 8 == 0 else replace(Dice(seed).state, hosts={})
        nothing = CalicoPolicy("", "zzz", order=0, selector=parse("never in {}"), ingress=(CalicoRule("Deny"),))
        staged = CalicoPolicy("", "yyy", order=0, ingress=(CalicoRule("Deny"),), staged="Set")
        other = replace(
            state,
            policies=(nothing, *reversed(state.policies), staged),
            pods=dict(reversed(list(state.pods.items()))),
            sets=dict(reversed(list(state.sets.items()))),
        )
        assert difference(state, other).changes == (), f"seed {seed}"
        assert difference(state, state).changes == (), f"seed {seed}"


def test_what_staged_policies_would_change() -> None:
    staged = calico("StagedGlobalNetworkPolicy", "p", "selector: pod == 'a', types: [Ingress]")
    state = world(staged)
    assert lines(state, with_staged_enforced(state)) == lines(world(), world(gnp("p", "selector: pod == 'a'")))


# ---- recorded flows --------------------------------------------------------------------------------------------------


def test_recorded_flows() -> None:
    old, new = world(), world(np("x", A, "ingress: [{ports: [{port: 80}]}]"))
    flows: list[dict[str, Any]] = [
        *({"src": "y/a", "dst": "x/a", "protocol": "TCP", "sport": port, "dport": 81} for port in (1, 2, 3)),
        {"src": "y/a", "dst": "x/a", "protocol": "TCP", "dport": 80, "bytes": 7},
        {"src": "gone/pod", "dst": "x/a", "protocol": "TCP", "dport": 80},
    ]
    found = recorded_difference(old, new, flows)
    assert [(one.flow, one.allow, one.count) for one in found.changes] == [(flows[0], False, 3)]
    assert found.changes[0].after.startswith("ingress denied by KubernetesNetworkPolicy:x/p")
    assert (found.asked, found.not_compared) == (4, ("src: there is no pod gone/pod",))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "world.yaml").write_text(world_yaml())
    (tmp_path / "old.yaml").write_text(np("x", A, "ingress: [{from: [{podSelector: {}}]}]"))
    (tmp_path / "new.yaml").write_text(np("x", A, f"ingress: [{{from: [{{podSelector: {B}}}]}}]"))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, str, str]:
    names = [str(folder / word) if word.endswith((".yaml", ".jsonl")) else word for word in words]
    status = main(["policy", "diff", *names, "--state", str(folder / "world.yaml")])
    output = capsys.readouterr()
    return status, output.out.replace(f"{folder}/", ""), output.err


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, folder, "old.yaml", "old.yaml") == (0, "0 changes\n", "")
    status, out, err = run(capsys, folder, "old.yaml", "new.yaml")
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "deny   x/c -> x/a: everything",
        "       such as x/c -> x/a TCP/80",
        "       before: egress allowed by Profile:kns.x rule 0; ingress allowed by KubernetesNetworkPolicy:x/p rule 0 "
        "(old.yaml:4)",
        "       after:  ingress denied by KubernetesNetworkPolicy:x/p (new.yaml:1): no rule of the tier matched",
        "1 change",
    ]


def test_command_in_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, folder, "old.yaml", "new.yaml", "-j")
    (change,) = json.loads(out)["changes"]
    assert status == 1
    assert change["verdict"] == "deny" and change["sources"] == ["x/c"] and change["families"] == [4, 6]
    assert json.loads(run(capsys, folder, "old.yaml", "old.yaml", "-j")[1])["changes"] == []


def test_command_with_flows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = {"src": "x/c", "dst": "x/a", "protocol": "TCP", "dport": 80, "verdict": "allow"}
    (folder / "flows.jsonl").write_text("\n".join(map(json.dumps, (flow, flow, flow | {"src": "x/b"}))))
    status, out, _ = run(capsys, folder, "old.yaml", "new.yaml", "--flows", "flows.jsonl")
    assert status == 1
    assert out.splitlines()[0] == "deny   x/c -> x/a TCP/80  (2 flows)"
    assert out.splitlines()[-1] == "2 of 3 flows would fare differently"
    status, out, _ = run(capsys, folder, "old.yaml", "old.yaml", "--flows", "flows.jsonl", "-j")
    assert (status, json.loads(out)) == (0, {"changes": [], "asked": 3, "not_compared": []})


def test_command_for_staged_policies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = "selector: pod == 'a' && projectcalico.org/namespace == 'x', types: [Egress]"
    (folder / "staged.yaml").write_text(calico("StagedGlobalNetworkPolicy", "p", spec))
    status, out, _ = run(capsys, folder, "staged.yaml", "--staged")
    assert status == 1
    assert out.startswith("deny   x/a -> outside, x/b, ")
    assert run(capsys, folder, "old.yaml", "--staged")[0] == 0
    assert run(capsys, folder, "old.yaml")[0] == 2
    assert run(capsys, folder, "old.yaml", "new.yaml", "--staged")[0] == 2


@pytest.mark.parametrize("line", ["{", "[]"])
def test_command_with_nonsense(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (folder / "flows.jsonl").write_text(line)
    status, _, err = run(capsys, folder, "old.yaml", "new.yaml", "--flows", "flows.jsonl")
    assert status == 2 and "flows.jsonl:1: " in err


def test_errors_in_a_file_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.yaml").write_text(files(np("x", A, "ingress: []"), calico("Tier", "t", "oder: 1")))
    assert run(capsys, folder, "bad.yaml", "bad.yaml")[0] == 1
