"""Reading policies: every error with file, line and field, all at once; and what is not understood never opens."""

from __future__ import annotations

import json

import pytest

from canal_udp.policy.model import CalicoPolicy, ClusterPolicy, KubePolicy
from tests.policies import CALICO, CNP, KUBE, ask, letters, read, world_yaml


def problems(text: str) -> list[str]:
    return [str(one).removeprefix("file0.yaml:") for one in read(text).problems]


def kube(spec: str, meta: str = "{name: p, namespace: x}") -> str:
    return f"{KUBE}\nmetadata: {meta}\nspec:\n  podSelector: {{}}\n{spec}"


def calico(rule: str, kind: str = "GlobalNetworkPolicy", spec: str = "") -> str:
    return f"{CALICO}\nkind: {kind}\nmetadata: {{name: p}}\nspec:\n  ingress:\n  - {rule}\n{spec}"


def cluster(spec: str) -> str:
    return f"{CNP}\nmetadata: {{name: p}}\nspec:\n{spec}"


BAD = [
    pytest.param("- 1", ["1: error: a mapping (key: value) is needed here"], id="a list"),
    pytest.param("a: 1", ["1: error: kind is missing"], id="no kind"),
    pytest.param(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy",
        ["2: error: kind: unknown kind 'NetworkPolcy'; did you mean 'NetworkPolicy'?"],
        id="a typo in the kind",
    ),
    pytest.param(
        "apiVersion: apps/v1\nkind: Deployment",
        ["2: warning: kind: Deployment says nothing about verdicts: not looked at"],
        id="kinds of no interest",
    ),
    pytest.param(
        "apiVersion: networking.k8s.io/v1\nkind: Pod\nmetadata: {name: a}",
        ["1: error: apiVersion: 'networking.k8s.io/v1' has no Pod; it is in v1"],
        id="the wrong version is read all the same",
    ),
    pytest.param(
        kube("  policyTypes: [Ingres]\n  ingres: []"),
        [
            "7: error: spec.ingres: unknown field; did you mean 'ingress'?",
            "6: error: spec.policyTypes[0]: 'Ingres' is not allowed; did you mean 'Ingress'?",
        ],
        id="two typos in one spec",
    ),
    pytest.param(
        kube("  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0.0/33}\n    ports:\n    - port: 0\n  - form: []"),
        [
            "8: error: spec.ingress[0].from[0].ipBlock.cidr: '10.0.0.0/33' does not appear to be an IPv4 or IPv6 "
            "network",
            "10: error: spec.ingress[0].ports[0].port: 0 is not between 1 and 65535",
            "11: error: spec.ingress[1].form: unknown field; did you mean 'from'?",
        ],
        id="errors of several rules",
    ),
    pytest.param(
        kube("  ingress:\n  - from: [{}]"),
        ["7: error: spec.ingress[0].from[0]: one of podSelector, namespaceSelector, ipBlock is needed"],
        id="a peer without anything",
    ),
    pytest.param(
        kube(
            "  ingress:\n  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8, 10.0.0.0/8]}, podSelector: {}}]"
        ),
        ["7: error: spec.ingress[0].from[0]: ipBlock excludes podSelector and namespaceSelector"],
        id="a block with a selector",
    ),
    pytest.param(
        kube("  ingress:\n  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]"),
        ["7: error: spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/8 must lie inside 10.0.0.0/8 and be smaller"],
        id="an exception outside of its block",
    ),
    pytest.param(
        kube(
            "  ingress:\n  - ports: [{port: web, endPort: 90}, {endPort: 1}, {port: 9, endPort: 8}, {protocol: ICMP}]"
        ),
        [
            "7: error: spec.ingress[0].ports[0].endPort: does not go with a port name",
            "7: error: spec.ingress[0].ports[1].endPort: needs port, the first of the range",
            "7: error: spec.ingress[0].ports[2].endPort: 8 is below port 9",
            "7: error: spec.ingress[0].ports[3].protocol: 'ICMP' is not allowed; known: SCTP, TCP, UDP",
        ],
        id="ports",
    ),
    pytest.param(
        f"{KUBE}\nmetadata: {{name: p}}\nspec: {{ingress: []}}",
        ["4: error: spec: podSelector is missing"],
        id="podSelector is needed",
    ),
    pytest.param(
        kube("  ingress:\n  - from: [{podSelector: {matchLabels: {a: 1}}}]"),
        [
            "7: error: spec.ingress[0].from[0].podSelector.matchLabels.a: a string is needed here "
            "(1 without quotes is none)"
        ],
        id="a number is no label",
    ),
    pytest.param(
        kube(
            "  ingress:\n  - from: [{podSelector: {matchExpressions: [{key: a, operator: In}, "
            "{key: b, operator: Exist}]}}]"
        ),
        [
            "7: error: spec.ingress[0].from[0].podSelector.matchExpressions[0]: values: In needs at least one",
            "7: error: spec.ingress[0].from[0].podSelector.matchExpressions[1].operator: 'Exist' is not allowed; "
            "did you mean 'Exists'?",
        ],
        id="requirements",
    ),
    pytest.param(
        kube("  ingress: []\n  ingress: []"),
        ["7: error: spec.ingress: this key is there twice"],
        id="a key twice",
    ),
    pytest.param(
        kube("  ingress: []") + "\n---\n" + kube("  ingress: []"),
        ["8: error: policy KubernetesNetworkPolicy:x/p is there twice; the first is at file0.yaml:1"],
        id="a policy twice",
    ),
    pytest.param(
        cluster("  tier: Admn\n  priority: 1001\n  subject: {}\n  ingress: [{action: Allow, from: []}]"),
        [
            "5: error: spec.tier: 'Admn' is not allowed; did you mean 'Admin'?",
            "6: error: spec.priority: 1001 is not between 0 and 1000",
            "7: error: spec.subject: exactly one of namespaces, pods is needed",
            "8: error: spec.ingress[0].action: 'Allow' is not allowed; known: Accept, Deny, Pass",
            "8: error: spec.ingress[0].from: an empty list matches nothing; leave it out or fill it",
        ],
        id="a cluster policy",
    ),
    pytest.param(
        cluster(
            "  tier: Admin\n  priority: 1\n  subject: {namespaces: {}}\n"
            "  egress: [{action: Accept, to: [{domainNames: [a]}]}]"
        ),
        [
            "8: error: spec.egress[0].to[0].domainNames: not supported: names of hosts are resolved nowhere here; "
            "allow the addresses with networks"
        ],
        id="domainNames are refused with the reason",
    ),
    pytest.param(
        calico("{action: Allow, http: {methods: [GET]}}"),
        [
            "6: error: spec.ingress[0].http: not supported: only addresses, protocols and ports are looked at; "
            "without http the rule would allow more than it says"
        ],
        id="http is refused with the reason",
    ),
    pytest.param(
        calico("{action: Allow, source: {selector: 'a = 1', nets: [10.0.0.0/8, 'fd00::/8']}, protocol: TPC}"),
        [
            "6: error: spec.ingress[0].protocol: 'TPC' is not allowed; did you mean 'TCP'?",
            "6: error: spec.ingress[0].source.selector: not a selector: expected ==",
            "6: error: spec.ingress[0]: networks of both families; write one rule for each",
        ],
        id="a Calico rule",
    ),
    pytest.param(
        calico("{action: Allow, destination: {ports: [80, '5:1', 'a b', web]}}"),
        [
            "6: error: spec.ingress[0].destination.ports[1]: '5:1' is no range of ports from 1 to 65535",
            "6: error: spec.ingress[0].destination.ports[2]: 'a b' is neither a port, a range first:last nor a "
            "port name",
            "6: error: spec.ingress[0].destination: ports need protocol TCP, UDP or SCTP",
        ],
        id="ports need a protocol",
    ),
    pytest.param(
        calico("{action: Allow, icmp: {code: 1}, ipVersion: 5, source: {notNets: [0.0.0.0/0]}}"),
        [
            "6: error: spec.ingress[0].ipVersion: 4 or 6 is needed here",
            "6: error: spec.ingress[0].icmp: a code needs a type",
            "6: error: spec.ingress[0].source.notNets: without 0.0.0.0/0 nothing is left",
        ],
        id="ICMP and versions",
    ),
    pytest.param(
        calico("{action: Allow, protocol: ICMPv6, ipVersion: 4, source: {selector: global()}}"),
        [
            "6: error: spec.ingress[0].source.selector: global() stands alone in the namespaceSelector of a rule, "
            "and nowhere else",
            "6: error: spec.ingress[0].protocol: does not go with ipVersion 4",
        ],
        id="global() in the wrong place",
    ),
    pytest.param(
        calico(
            "{action: Allow, destination: {services: {name: s}}, "
            "source: {services: {name: s, namespace: n}, nets: [1.1.1.1]}}"
        ),
        [
            "6: error: spec.ingress[0].source.nets: does not go with services",
            "6: error: spec.ingress[0].destination.services: namespace is missing",
            "6: error: spec.ingress[0].destination.services: in ingress rules it is the source that may be a service",
        ],
        id="services",
    ),
    pytest.param(
        calico("{action: Allow}", spec="  preDNAT: true\n  doNotTrack: true\n  types: [Ingress, Egress, Egress]"),
        [
            "9: error: spec.types: a type is there twice",
            "7: error: spec.preDNAT: such a policy has ingress rules only",
            "7: error: spec.preDNAT: does not go with doNotTrack",
            "7: error: spec.preDNAT: needs applyOnForward: true",
            "8: error: spec.doNotTrack: needs applyOnForward: true",
        ],
        id="stages of a host",
    ),
    pytest.param(
        f"{CALICO}\nkind: Tier\nmetadata: {{name: default}}\nspec: {{order: 5}}",
        ["4: error: spec: tier default has order 1e+06 and defaultAction Deny"],
        id="the default tier is as it is",
    ),
    pytest.param(
        f"{CALICO}\nkind: HostEndpoint\nmetadata: {{name: h}}\nspec: {{}}",
        ["4: error: spec: node is missing", "4: error: spec: interfaceName or expectedIPs is needed"],
        id="a host endpoint",
    ),
    pytest.param(
        f"{CALICO}\nkind: StagedNetworkPolicy\nmetadata: {{name: p}}\nspec: {{stagedAction: Delete, selector: all()}}",
        ["4: error: spec.selector: a staged Delete has no spec of its own (but the tier)"],
        id="a staged Delete",
    ),
]


BAD += [
    pytest.param(
        f"{KUBE}\nmetadata: {{name: p, namepsace: x}}\nspec: {{podSelector: {{}}}}",
        ["3: error: metadata.namepsace: unknown field; did you mean 'namespace'?"],
        id="a typo in the metadata",
    ),
    pytest.param(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  hostNetwrok: true\n  hostPID: true\n"
        "  containers: [{name: a, port: [{containerPort: 1}]}]\nstatus: {}\nstauts: {}",
        [
            "9: error: stauts: unknown field; did you mean 'status'?",
            "5: error: spec.hostNetwrok: unknown field; did you mean 'hostNetwork'?",
            "7: error: spec.containers[0].port: unknown field; did you mean 'ports'?",
        ],
        id="typos in a pod, whose other fields are not looked at",
    ),
    pytest.param(
        f"{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: a.b}}\nspec: {{performanceHints: [Fast]}}",
        [
            "4: error: spec.performanceHints[0]: 'Fast' is not allowed; known: AssumeNeededOnEveryNode",
            "3: error: metadata.name: 'a.b' is no DNS label (up to 63 characters, no dots), nor default. before one",
        ],
        id="the name of a Calico policy",
    ),
    pytest.param(
        calico(
            "{action: Allow, protocol: TCP, destination: {ports: ['100000', '1:100000']}, metadata: {anotations: {}}}"
        ),
        [
            "6: error: spec.ingress[0].destination.ports[0]: '100000' is no range of ports from 1 to 65535",
            "6: error: spec.ingress[0].destination.ports[1]: '1:100000' is no range of ports from 1 to 65535",
            "6: error: spec.ingress[0].metadata.anotations: unknown field; did you mean 'annotations'?",
        ],
        id="numbers that are no ports are no port names",
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_errors(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n", "null"])
def test_nothing_is_no_error(text: str) -> None:
    assert problems(text) == []


def test_not_yaml() -> None:
    (problem,) = read("kind: [").errors
    assert str(problem.where).startswith("file0.yaml:") and problem.text.startswith("not YAML: ")


def test_json_lists_anchors_and_merges() -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "x"},
        "spec": {"podSelector": None, "ingress": [{"from": None}]},
    }
    wrapped = json.dumps({"apiVersion": "v1", "kind": "List", "items": [policy]})
    merged = (
        f"{KUBE}\nmetadata: &m {{name: q, namespace: x}}\nspec:\n  podSelector: &s {{matchLabels: {{a: b}}}}\n"
        "  ingress:\n  - from: [{podSelector: *s}, {<<: {podSelector: *s}, namespaceSelector: {}}]"
    )
    loaded = read(wrapped, merged)
    assert loaded.problems == ()
    first, second = loaded.state.policies
    assert isinstance(first, KubePolicy) and isinstance(second, KubePolicy)
    assert first.types == {"ingress"} and first.ingress[0].peers == ()
    assert second.ingress[0].peers[1].pods == second.selector


def test_json_one_document_after_the_other() -> None:
    """With tabs and characters in halves, which YAML does not know; lines count through the whole file."""
    spaces = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}, indent=2)
    labels = {"smile": "\U0001f600", "path": "a/b\\ud83d\t"}
    good = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": labels}}
    bad = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b", "lables": {}}}
    loaded = read("\n".join((spaces, json.dumps(good, indent="\t").replace("/", "\\/"), json.dumps(bad, indent=1))))
    assert [str(one) for one in loaded.problems] == [
        "file0.yaml:24: error: metadata.lables: unknown field; did you mean 'labels'?"
    ]
    assert loaded.state.pods["default/a"].labels == labels
    assert [str(one) for one in read(spaces + "\n{").errors] == [
        "file0.yaml:8: error: not YAML: did not find expected <document start>"
    ]


def test_ports_of_a_pod() -> None:
    """Containers that only start something do not listen later, those that are restarted always do."""
    ports = "ports: [{name: web, containerPort: 80}, {containerPort: 81}]"
    late = "ports: [{name: late, containerPort: 82, protocol: UDP}]"
    loaded = read(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  serviceAccount: robot\n"
        f"  containers: [{{{ports}}}]\n"
        f"  initContainers: [{{ports: [{{name: setup, containerPort: 9}}]}}, {{restartPolicy: Always, {late}}}]"
    )
    assert loaded.problems == ()
    pod = loaded.state.pods["default/a"]
    assert {(port.name, port.protocol, port.port) for port in pod.ports} == {("web", 6, 80), ("late", 17, 82)}
    assert pod.service_account == "robot"


def test_an_alias_cannot_grow_without_bound() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert [one.split(": ", 2)[2] for one in problems(text)] == ["nested too deeply or too large"]
    assert "nested too deeply" in problems("[" * 100 + "]" * 100)[0]


def test_yaml_is_read_as_kubernetes_reads_it() -> None:
    loaded = read(calico("{action: Allow, protocol: TCP, destination: {ports: [1:30, 0x50]}}"))
    assert [one.field for one in loaded.errors] == []
    policy = loaded.state.policies[0]
    assert isinstance(policy, CalicoPolicy)
    assert [str(port) for port in policy.ingress[0].destination.ports] == ["1:30", "0x50"]


def test_defaults_of_types() -> None:
    rules = {"": {"ingress"}, "  egress: [{action: Allow}]": {"egress", "ingress"}}
    for spec, expected in rules.items():
        policy = read(calico("{action: Allow}", spec=spec)).state.policies[0]
        assert isinstance(policy, CalicoPolicy) and policy.types == expected
    only_egress = f"{CALICO}\nkind: GlobalNetworkPolicy\nmetadata: {{name: p}}\nspec: {{egress: [{{action: Allow}}]}}"
    policy = read(only_egress).state.policies[0]
    assert isinstance(policy, CalicoPolicy) and policy.types == {"egress"}


# ---- fail closed -----------------------------------------------------------------------------------------------------

CLOSED = [
    pytest.param(
        kube("  ingress:\n  - from: [{ipBlock: {cidr: nonsense}}]"),
        {"y/a > x/a TCP/80": "AD"},
        id="a bad block allows nobody",
    ),
    pytest.param(
        kube("  ingress:\n  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [nonsense]}}]"),
        {"y/a > x/a TCP/80": "AD"},
        id="a bad exception takes its peer along",
    ),
    pytest.param(
        f"{KUBE}\nmetadata: {{name: p, namespace: x}}\n"
        "spec: {podSelector: {matchLabels: {a: 1}}, ingress: [{}]}",
        {"y/a > x/a TCP/80": "AD", "y/a > y/b TCP/80": "AA", "x/a > y/a TCP/80": "DA"},
        id="a bad podSelector isolates its namespace",
    ),
    pytest.param(
        f"{KUBE}\nmetadata: {{namespace: x}}\nspec: {{podSelector: {{}}, policyTypes: [Ingress]}}",
        {"y/a > x/a TCP/80": "AD"},
        id="a policy without name protects",
    ),
    pytest.param(
        KUBE.replace("/v1", "/v9") + "\nmetadata: {name: p, namespace: x}\nspec: {podSelector: {}, ingress: []}",
        {"y/a > x/a TCP/80": "AD"},
        id="a policy of an unknown version protects",
    ),
    pytest.param(
        calico("{action: Deny, source: {selector: 'oh no'}}\n  - {action: Allow}"),
        {"y/a > x/a TCP/80": "AD"},
        id="a Deny that is not understood denies its direction",
    ),
    pytest.param(
        calico("{action: Allow, source: {selector: 'oh no'}}\n  - {action: Allow, protocol: UDP}"),
        {"y/a > x/a TCP/80": "AD", "y/a > x/a UDP/80": "AA"},
        id="an Allow that is not understood allows nothing",
    ),
    pytest.param(
        calico("{action: Alow}\n  - {action: Allow}"), {"y/a > x/a TCP/80": "AD"}, id="an unknown action denies"
    ),
    pytest.param(
        calico("{action: Allow}", spec="  selector: 'pod == a'"),
        {"y/a > x/a TCP/80": "DD"},
        id="a bad selector closes what it might have selected",
    ),
    pytest.param(
        cluster(
            "  tier: Admin\n  priority: 1\n  subject: {what: {}}\n  ingress: [{action: Deny, from: [{namespaces: {}}]}]"
        ),
        {"y/a > z/a TCP/80": "AD", "8.8.8.8 > z/a TCP/80": "AA"},
        id="a Deny for unknown subjects denies for all",
    ),
    pytest.param(
        cluster(
            "  tier: Admin\n  priority: 1\n  subject: {namespaces: {}}\n"
            "  egress: [{action: Accept, to: [{domainNames: [a.b]}]}, {action: Deny, to: [{networks: [8.0.0.0/8]}]}]"
        ),
        {"x/a > 8.8.8.8 TCP/80": "DA", "x/a > 9.9.9.9 TCP/80": "AA"},
        id="domainNames accept nothing",
    ),
    pytest.param(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: d, namespace: x, labels: {a: 1}}\nstatus: {podIP: 10.1.0.9}",
        {"x/d > y/a TCP/80": "DA", "y/a > x/d TCP/80": "AD"},
        id="a pod whose labels cannot be read has no traffic",
    ),
]


@pytest.mark.parametrize(("text", "verdicts"), CLOSED)
def test_what_is_not_understood_stays_closed(text: str, verdicts: dict[str, str]) -> None:
    loaded = read(world_yaml(), text)
    assert loaded.errors
    assert {flow: letters(ask(loaded.state, flow)) for flow in verdicts} == verdicts


def test_answers_by_annotation() -> None:
    meta = "{name: p, namespace: x, annotations: {canal.io/deny: reject}}"
    loaded = read(world_yaml(), kube("  ingress: []", meta))
    assert ask(loaded.state, "y/a > x/a TCP/80").ingress.answer == "reject"
    assert isinstance(loaded.state.policies[0], KubePolicy)
    bad = read(kube("  ingress: []", meta.replace("reject", "shrug")))
    assert [one.field for one in bad.errors] == ["metadata.annotations.canal.io/deny"]


def test_both_directions_of_a_broken_cluster_policy_keep_their_rules() -> None:
    loaded = read(cluster("  tier: Admin\n  priority: x\n  subject: {namespaces: {}}"))
    policy = loaded.state.policies[0]
    assert isinstance(policy, ClusterPolicy) and policy.broken.startswith("spec.priority: ")
