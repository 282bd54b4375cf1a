"""Situations in which network policies surprise people, each with the verdict that the specifications give.

Every verdict is asked of the reference and of the fast evaluator, which must agree on policy and rule too.
"""

from __future__ import annotations

import pytest

from canal_udp.policy.selector import parse
from tests.policies import CALICO, NODES, ask, calico, cnp, files, gnp, letters, np, read, tier, world, world_yaml

A = "{matchLabels: {pod: a}}"
B = "{matchLabels: {pod: b}}"
ALL = "{}"
FROM_Y = "from: [{namespaces: {matchLabels: {ns: y}}}]"
FROM_ALL = "from: [{namespaces: {}}]"
Y_PODS = "from: [{namespaceSelector: {matchLabels: {ns: y}}}]"

KUBERNETES = [
    # policies, {flow: both letters (egress, ingress)}
    pytest.param(
        np("x", ALL, "ingress: []"),
        {"y/a > x/a TCP/80": "AD", "x/a > y/a TCP/80": "AA"},
        id="01 no ingress rules, no types: ingress is isolated, egress is not",
    ),
    pytest.param(
        np("x", ALL, "policyTypes: [Egress]"),
        {"x/a > y/a TCP/80": "DA", "y/a > x/a TCP/80": "AA"},
        id="02 type Egress without rules denies egress only",
    ),
    pytest.param(
        np("x", A, "policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]"),
        {"x/a > y/a TCP/9": "AA", "y/a > x/a TCP/80": "AD"},
        id="03 egress rules without the type have no effect",
    ),
    pytest.param(
        np("x", A, "ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]"),
        {"x/b > x/a TCP/80": "AA", "y/b > x/a TCP/80": "AD"},
        id="04 a podSelector alone means the policy's own namespace",
    ),
    pytest.param(
        np(
            "x",
            A,
            f"ingress: [{{from: [{{podSelector: {B}, namespaceSelector: {{matchLabels: {{ns: y}}}}}}]}}]",
        ),
        {"y/a > x/a TCP/80": "AD", "y/b > x/a TCP/80": "AA", "x/b > x/a TCP/80": "AD"},
        id="05 both selectors in one peer: and",
    ),
    pytest.param(
        np(
            "x",
            A,
            f"ingress: [{{from: [{{podSelector: {B}}}, {{namespaceSelector: {{matchLabels: {{ns: y}}}}}}]}}]",
        ),
        {"y/a > x/a TCP/80": "AA", "x/b > x/a TCP/80": "AA", "z/b > x/a TCP/80": "AD"},
        id="05 two peers: or",
    ),
    pytest.param(
        np("x", A, "ingress: [{from: [{namespaceSelector: {}}]}]"),
        {"z/c > x/a TCP/80": "AA", "8.8.8.8 > x/a TCP/80": "AD"},
        id="06 all namespaces are all pods, not the world",
    ),
    pytest.param(
        np("x", A, "ingress: [{from: [], ports: [{port: 80}]}]"),
        {"8.8.8.8 > x/a TCP/80": "AA", "8.8.8.8 > x/a TCP/81": "AD"},
        id="07 an empty list of peers is anyone",
    ),
    pytest.param(
        np(
            "x",
            A,
            "ingress: [{from: [{namespaceSelector: {matchExpressions: "
            "[{key: env, operator: NotIn, values: [prod]}]}}]}]",
        ),
        {"y/a > x/a TCP/80": "AA", "8.8.8.8 > x/a TCP/80": "AD"},
        id="08 NotIn holds for an absent key",
    ),
    pytest.param(
        np("x", A, "ingress: [{from: [{podSelector: {matchLabels: {k: ''}}}]}]"),
        {"x/b > x/a TCP/80": "AD"},
        id="09 an empty value needs the key",
    ),
    pytest.param(
        np(
            "x",
            A,
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}, "
            "{podSelector: {matchLabels: {pod: a}}, namespaceSelector: {matchLabels: {ns: y}}}]}]",
        ),
        {"y/a > x/a TCP/80": "AA", "y/b > x/a TCP/80": "AD", "z/b > x/a TCP/80": "AA"},
        id="10 an exception does not deny what another peer allows; a block matches pods",
    ),
    pytest.param(
        np("x", A, "ingress: [{ports: [{port: 80}]}]"),
        {"y/a > x/a TCP/80": "AA", "y/a > x/a UDP/80": "AD", "y/a > x/a ICMP": "AD"},
        id="11 a port without protocol is TCP",
    ),
    pytest.param(
        np("x", A, "ingress: [{ports: [{protocol: UDP}]}]"),
        {"y/a > x/a UDP/9999": "AA", "y/a > x/a TCP/80": "AD"},
        id="12 a protocol without port is all its ports",
    ),
    pytest.param(
        np("x", A, "ingress: [{ports: [{port: 80, endPort: 90}]}]"),
        {"y/a > x/a TCP/80": "AA", "y/a > x/a TCP/90": "AA", "y/a > x/a TCP/91": "AD", "y/a > x/a TCP/79": "AD"},
        id="14 endPort belongs to the range",
    ),
    pytest.param(
        files(np("x", A, f"ingress: [{{{Y_PODS}, ports: [{{port: 80}}]}}]"), np("x", A, "ingress: []", "q")),
        {"y/a > x/a TCP/80": "AA", "y/a > x/a TCP/81": "AD"},
        id="15 policies add up",
    ),
    pytest.param(
        files(
            np("x", A, "policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]"),
            np("y", A, "ingress: []"),
        ),
        {"x/a > y/a TCP/80": "AD", "x/a > y/b TCP/80": "AA", "x/a > z/a TCP/80": "DA"},
        id="16 both ends must allow",
    ),
    pytest.param(
        np("x", A, "policyTypes: [Ingress, Egress]"),
        {"x/a > x/a TCP/80": "AA", "x/a > x/a TCP/80 hairpin": "DD"},
        id="17 own address is not policed, itself through a Service is",
    ),
    pytest.param(
        np("x", A, "ingress: [{ports: [{protocol: TCP}, {port: 80}]}]"),
        {"y/a > x/a TCP/9999": "AA", "y/a > x/a UDP/80": "AD"},
        id="49 a protocol without port swallows its ports",
    ),
    pytest.param(
        np("x", A, "ingress: [{}]"),
        {"8.8.8.8 > x/a TCP/80": "AA", "y/a > x/a ICMP": "AA", "y/a > x/a 47": "AA"},
        id="an empty rule allows everything",
    ),
    pytest.param(
        np("x", A, "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"),
        {"2001:db8::1 > x/a TCP/80": "AD", "8.8.8.8 > x/a TCP/80": "AA"},
        id="a block of IPv4 does not match IPv6",
    ),
]


@pytest.mark.parametrize(("policies", "verdicts"), KUBERNETES)
def test_kubernetes(policies: str, verdicts: dict[str, str]) -> None:
    state = world(policies)
    assert {flow: letters(ask(state, flow)) for flow in verdicts} == verdicts


def test_13_a_named_port_is_that_of_the_destination() -> None:
    ports = {
        "x/b": "{name: web, containerPort: 8080}",
        "x/c": "{name: web, containerPort: 80, protocol: UDP}",
    }
    state = world(np("x", ALL, "ingress: [{ports: [{port: web}]}]"), ports=ports)
    verdicts = {
        "y/a > x/a TCP/80": "AA",
        "y/a > x/b TCP/80": "AD",
        "y/a > x/b TCP/8080": "AA",
        "y/a > x/c TCP/80": "AD",
        "y/a > x/c UDP/80": "AD",  # the rule's protocol is TCP
    }
    assert {flow: letters(ask(state, flow)) for flow in verdicts} == verdicts


def test_18_a_node_reaches_its_own_pods() -> None:
    state = world(files(NODES, np("x", A, "ingress: []")), more={"x/a": "nodeName: n1"})
    assert letters(ask(state, "192.168.0.1 > x/a TCP/80")) == "AA"
    assert letters(ask(state, "192.168.0.2 > x/a TCP/80")) == "AD"


@pytest.mark.parametrize(("node", "verdict"), [("n1", "AA"), ("n2", "AD")])
def test_20_a_pod_in_the_host_network_is_its_node(node: str, verdict: str) -> None:
    more = {"x/a": "nodeName: n1", "y/a": f"nodeName: {node}\n  hostNetwork: true"}
    state = world(files(NODES, np("x", A, f"ingress: [{{{Y_PODS}}}]")), more=more)
    assert letters(ask(state, f"192.168.0.{node[1]} > x/a TCP/80")) == verdict
    assert letters(ask(state, "y/b > x/a TCP/80")) == "AA"


def test_44_pod_to_its_own_node_is_as_the_setting_says() -> None:
    policy = np("x", A, "policyTypes: [Egress], egress: [{}]")
    for action, verdict in (("Drop", "AD"), ("Return", "AA"), ("Accept", "AA")):
        setting = calico("FelixConfiguration", "default", f"defaultEndpointToHostAction: {action}")
        state = world(files(NODES, policy, setting), more={"x/a": "nodeName: n1"})
        assert letters(ask(state, "x/a > 192.168.0.1 TCP/80")) == verdict
        assert letters(ask(state, "x/a > 192.168.0.2 TCP/80")) == "AA"
    state = world(files(NODES, policy), more={"x/a": "nodeName: n1"})
    assert letters(ask(state, "x/a > 192.168.0.1 TCP/80")) == "AD"


CLUSTER = [
    pytest.param(
        files(
            cnp("deny", "Admin", 10, f"ingress: [{{action: Deny, {FROM_Y}}}]"), np("x", A, f"ingress: [{{{Y_PODS}}}]")
        ),
        {"y/a > x/a TCP/80": "AD"},
        id="21 the administrator's Deny beats a NetworkPolicy",
    ),
    pytest.param(
        files(
            cnp("pass", "Admin", 5, f"ingress: [{{action: Pass, {FROM_Y}}}]"),
            cnp("deny", "Admin", 10, f"ingress: [{{action: Deny, {FROM_ALL}}}]"),
        ),
        {"y/a > x/a TCP/80": "AA", "z/a > x/a TCP/80": "AD"},
        id="22 Pass leaves the tier",
    ),
    pytest.param(
        files(
            cnp("accept", "Admin", 10, "egress: [{action: Accept, to: [{namespaces: {matchLabels: {ns: y}}}]}]"),
            np("y", ALL, "ingress: []"),
        ),
        {"x/a > y/a TCP/80": "AD"},
        id="23 Accept at the source does not open the destination",
    ),
    pytest.param(
        files(
            cnp("deny", "Baseline", 10, f"ingress: [{{action: Deny, {FROM_ALL}}}]"),
            np("x", A, "policyTypes: [Egress], egress: [{}]"),
        ),
        {"y/a > x/a TCP/80": "AD", "8.8.8.8 > x/a TCP/80": "AA"},
        id="24 the baseline counts where no NetworkPolicy governs the direction",
    ),
    pytest.param(
        files(
            cnp("deny", "Baseline", 10, f"ingress: [{{action: Deny, {FROM_ALL}}}]"),
            np("x", A, f"ingress: [{{{Y_PODS}}}]"),
        ),
        {"y/a > x/a TCP/80": "AA", "z/a > x/a TCP/80": "AD", "z/a > x/b TCP/80": "AD"},
        id="25 a NetworkPolicy decides before the baseline",
    ),
    pytest.param(
        cnp("accept", "Admin", 10, "ingress: [{action: Accept, from: [{namespaces: {}}]}]"),
        {"8.8.8.8 > x/a TCP/80": "AA"},
        id="selection alone isolates nothing",
    ),
    pytest.param(
        files(
            NODES,
            cnp(
                "peers",
                "Admin",
                10,
                "egress: [{action: Deny, to: [{nodes: {matchLabels: {role: gateway}}}, {networks: [9.0.0.0/8]}]},"
                "{action: Deny, to: [{networks: ['2001:db8::/32', 8.0.0.0/8]}], protocols: [{tcp: {destinationPort:"
                " {range: {start: 80, end: 90}}}}, {udp: {}}]}]",
            ),
        ),
        {
            "x/a > 192.168.0.1 TCP/80": "AA",
            "x/a > 192.168.0.2 TCP/80": "DA",
            "x/a > 9.9.9.9 ICMP": "DA",
            "x/a > 8.8.8.8 TCP/90": "DA",
            "x/a > 8.8.8.8 TCP/91": "AA",
            "x/a > 8.8.8.8 UDP/1": "DA",
            "x/a > 2001:db8::1 TCP/85": "DA",
            "x/a > 2001:db9::1 TCP/85": "AA",
        },
        id="networks, nodes, port ranges",
    ),
    pytest.param(
        cnp(
            "named", "Admin", 10, f"ingress: [{{action: Deny, {FROM_ALL}, protocols: [{{destinationNamedPort: web}}]}}]"
        ),
        {"y/a > x/a TCP/80": "AD", "y/a > x/a TCP/81": "AA", "y/a > x/a UDP/80": "AA", "y/a > z/a TCP/80": "AA"},
        id="a named port brings its protocol",
    ),
    pytest.param(
        files(
            cnp("b", "Admin", 10, f"ingress: [{{action: Deny, {FROM_ALL}}}]"),
            cnp("a", "Admin", 10, f"ingress: [{{action: Accept, {FROM_ALL}}}]"),
        ),
        {"y/a > x/a TCP/80": "AA"},
        id="equal priorities: by name",
    ),
    pytest.param(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: old}\n"
        "spec: {priority: 3, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}},"
        f" ingress: [{{action: Deny, {FROM_Y}, ports: [{{portNumber: {{port: 80}}}}, {{namedPort: dns}},"
        " {portRange: {protocol: UDP, start: 5, end: 9}}]}]}",
        {"y/a > x/a TCP/80": "AD", "y/a > x/a UDP/7": "AD", "y/a > x/a UDP/80": "AA", "y/a > x/b TCP/80": "AA"},
        id="the older AdminNetworkPolicy",
    ),
]


@pytest.mark.parametrize(("policies", "verdicts"), CLUSTER)
def test_cluster(policies: str, verdicts: dict[str, str]) -> None:
    state = world(policies)
    assert {flow: letters(ask(state, flow)) for flow in verdicts} == verdicts


@pytest.mark.parametrize(("action", "verdict"), [("Accept", "AD"), ("Deny", "AD"), ("Pass", "AD")])
def test_26_a_peer_that_is_not_known_never_opens(action: str, verdict: str) -> None:
    """Accept is as if it were not there (the NetworkPolicy denies), Deny and Pass deny the direction."""
    unknown = cnp("new", "Admin", 1, f"ingress: [{{action: {action}, from: [{{moonPhase: full}}]}}]")
    loaded = read(world_yaml(), files(unknown, np("x", A, f"ingress: [{{{Y_PODS}}}]")))
    assert [str(one) for one in loaded.errors] == [
        "file1.yaml:4: error: spec.ingress[0].from[0].moonPhase: unknown field; known: namespaces, pods",
        "file1.yaml:4: error: spec.ingress[0].from[0]: exactly one of namespaces, pods is needed",
    ]
    assert letters(ask(loaded.state, "z/a > x/a TCP/80")) == verdict
    assert letters(ask(loaded.state, "y/a > x/a TCP/80")) == ("AA" if action == "Accept" else "AD")
    assert letters(ask(loaded.state, "y/a > x/b TCP/80")) == ("AA" if action == "Accept" else "AD")


SELECT_A = "selector: pod == 'a'"
TIERS = [
    pytest.param(
        files(tier("t", 10), gnp("t.p", f"tier: t, {SELECT_A}, types: [Egress], egress: [{{action: Allow}}]")),
        {"y/a > x/a TCP/80": "AA"},
        id="27 a tier without policies for the direction is skipped",
    ),
    pytest.param(
        files(
            tier("t", 10), calico("StagedGlobalNetworkPolicy", "p", f"tier: t, {SELECT_A}, types: [Ingress, Egress]")
        ),
        {"y/a > x/a TCP/80": "AA", "x/a > y/a TCP/80": "AA"},
        id="28 staged policies do not make a tier count",
    ),
    pytest.param(
        files(
            tier("t", 10),
            gnp(
                "t.p", f"tier: t, {SELECT_A}, ingress: [{{action: Pass, protocol: TCP, destination: {{ports: [80]}}}}]"
            ),
        ),
        {"y/a > x/a TCP/80": "AA", "y/a > x/a TCP/81": "AD"},
        id="29 Pass to the profile, end of tier denies",
    ),
    pytest.param(
        files(
            tier("t", 10, "Pass"),
            gnp("t.p", f"tier: t, {SELECT_A}, ingress: [{{action: Allow, protocol: 99}}]"),
            gnp("d", "types: [Ingress]"),
        ),
        {"y/a > x/a TCP/80": "AD", "y/a > x/a 99": "AA"},
        id="30 a tier that passes",
    ),
    pytest.param(
        files(gnp("b", "order: 1, ingress: [{action: Deny}]"), gnp("a", "order: 1, ingress: [{action: Allow}]")),
        {"y/a > x/a TCP/80": "AA"},
        id="31 equal order: by name",
    ),
    pytest.param(
        files(gnp("a", "order: 1, ingress: [{action: Allow}]"), gnp("a-0", "order: 1, ingress: [{action: Deny}]")),
        {"y/a > x/a TCP/80": "AD"},
        id="31 the name is compared with a slash after it",
    ),
    pytest.param(
        files(gnp("deny", "ingress: [{action: Deny}]"), np("x", A, "ingress: [{}]")),
        {"y/a > x/a TCP/80": "AA", "y/a > x/b TCP/80": "AD"},
        id="32 no order comes after a NetworkPolicy",
    ),
    pytest.param(
        gnp("log", "ingress: [{action: Log}, {action: Deny}]"), {"y/a > x/a TCP/80": "AD"}, id="33 Log goes on"
    ),
    pytest.param(
        gnp("p", f"{SELECT_A}, ingress: [{{action: Deny, source: {{notSelector: has(pod)}}}}, {{action: Allow}}]"),
        {"8.8.8.8 > x/a TCP/80": "AD", "y/a > x/a TCP/80": "AA"},
        id="35 notSelector alone matches unknown addresses in a global policy",
    ),
    pytest.param(
        calico(
            "NetworkPolicy",
            "p",
            f"{SELECT_A}, ingress: [{{action: Deny, source: {{notSelector: has(never)}}}}, {{action: Allow}}]",
            "x",
        ),
        {"8.8.8.8 > x/a TCP/80": "AA", "x/b > x/a TCP/80": "AD", "y/b > x/a TCP/80": "AA"},
        id="35 and only endpoints of its namespace in a namespaced one",
    ),
    pytest.param(
        files(
            calico("GlobalNetworkSet", "net", "nets: [8.8.8.0/24]"),
            gnp("p", f"{SELECT_A}, ingress: [{{action: Allow, source: {{namespaceSelector: env != 'prod'}}}}]"),
        ),
        {"8.8.8.8 > x/a TCP/80": "AA", "9.9.9.9 > x/a TCP/80": "AD", "y/a > x/a TCP/80": "AA"},
        id="36 a negative namespaceSelector matches global sets",
    ),
    pytest.param(
        files(
            f"{CALICO}\nkind: GlobalNetworkSet\nmetadata: {{name: net, labels: {{pod: b}}}}\nspec: {{nets: [8.8.8.8]}}",
            gnp(
                "p",
                f"{SELECT_A}, ingress: [{{action: Allow, source: "
                "{namespaceSelector: global(), selector: pod == 'b'}}]",
            ),
        ),
        {"8.8.8.8 > x/a TCP/80": "AA", "x/b > x/a TCP/80": "AD"},
        id="37 global() is what lies in no namespace",
    ),
    pytest.param(
        gnp("p", f"{SELECT_A}, ingress: [{{action: Allow, source: {{notNets: [10.0.0.0/8]}}}}]"),
        {"8.8.8.8 > x/a TCP/80": "AA", "2001:db8::1 > x/a TCP/80": "AD", "y/a > x/a TCP/80": "AD"},
        id="38 notNets of IPv4 make a rule of IPv4",
    ),
    pytest.param(
        gnp("p", f"{SELECT_A}, ingress: [{{action: Deny, source: {{notNets: [10.0.0.0/8]}}}}, {{action: Allow}}]"),
        {"8.8.8.8 > x/a TCP/80": "AD", "2001:db8::1 > x/a TCP/80": "AD", "y/a > x/a TCP/80": "AA"},
        id="38 but a Deny stays closed for IPv6",
    ),
    pytest.param(
        gnp("p", "selector: all(), doNotTrack: true, applyOnForward: true, types: [Ingress, Egress]"),
        {"y/a > x/a TCP/80": "AA"},
        id="42 doNotTrack is not for workloads",
    ),
    pytest.param(
        gnp("p", f"{SELECT_A}, ingress: [{{action: Allow, protocol: ICMP, icmp: {{type: 8}}}}]"),
        {"y/a > x/a ICMP/8": "AA", "y/a > x/a ICMP/13": "AD", "fd00::2:1 > fd00::1:1 ICMP/8": "AD"},
        id="45 ICMP by type",
    ),
    pytest.param(
        files(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: x, labels:"
            " {kubernetes.io/service-name: s}}\nendpoints: [{addresses: [10.2.0.1]}]\nports: [{port: 80}]",
            calico(
                "NetworkPolicy",
                "p",
                "types: [Egress], egress: [{action: Allow, destination: {services: {name: s}}}]",
                "x",
            ),
        ),
        {"x/a > y/a TCP/80": "AA", "x/a > y/a TCP/81": "DA", "x/a > y/b TCP/80": "DA"},
        id="46 a service without namespace is the policy's",
    ),
    pytest.param(
        gnp(
            "p",
            "types: [Egress], egress: [{action: Allow, protocol: TCP, destination: {selector: pod == 'a',"
            " ports: [web, 443]}}]",
        ),
        {"x/c > y/a TCP/80": "AA", "x/c > y/a TCP/443": "AA", "x/c > y/b TCP/80": "DA", "x/c > y/a TCP/81": "DA"},
        id="47 named and numeric ports: or",
    ),
    pytest.param(
        files(gnp("p", f"tier: ghost, {SELECT_A}, ingress: [{{action: Allow}}]"), gnp("q", f"{SELECT_A}")),
        {"y/a > x/a TCP/80": "AD"},
        id="48 an undefined tier comes last",
    ),
    pytest.param(
        gnp("p", f"tier: ghost, {SELECT_A}, ingress: [{{action: Allow, protocol: TCP}}]"),
        {"y/a > x/a TCP/80": "AA", "y/a > x/a UDP/80": "AD"},
        id="48 and still denies at its end",
    ),
    pytest.param(
        gnp(
            "p",
            f"{SELECT_A}, ingress: [{{action: Deny, protocol: TCP, source: {{ports: ['1:1023']}}, destination:"
            " {notPorts: [web, 443]}}, {action: Allow}]",
        ),
        {"y/a > x/a TCP/81 sport=22": "AD", "y/a > x/a TCP/80 sport=22": "AA", "y/a > x/a TCP/81": "AA"},
        id="source ports and notPorts",
    ),
    pytest.param(
        gnp(
            "p",
            "namespaceSelector: ns == 'x', serviceAccountSelector: all(), ingress: [{action: Allow, source:"
            " {serviceAccounts: {names: [default]}, namespaceSelector: has(ns)}}]",
        ),
        {"y/a > x/a TCP/80": "AA", "z/a > x/a TCP/80": "AD", "z/a > y/a TCP/80": "AA"},
        id="namespaces and service accounts",
    ),
]


@pytest.mark.parametrize(("policies", "verdicts"), TIERS)
def test_tiers(policies: str, verdicts: dict[str, str]) -> None:
    state = world(policies)
    assert {flow: letters(ask(state, flow)) for flow in verdicts} == verdicts


def test_33_one_log() -> None:
    state = world(gnp("log", "ingress: [{action: Log}, {action: Log, protocol: UDP}, {action: Deny}]"))
    decision = ask(state, "y/a > x/a TCP/80").ingress
    assert (decision.logs, decision.rule, decision.policy) == (1, 2, "GlobalNetworkPolicy:log")


def test_34_a_profile_that_does_not_exist_denies() -> None:
    workload = calico("WorkloadEndpoint", "w", "pod: w, ipNetworks: [10.9.0.1/32], profiles: [nobody, open]", "x")
    opened = calico("Profile", "open", "ingress: [{action: Allow}]")
    state = world(files(workload, opened))
    assert letters(ask(state, "y/a > x/w TCP/80")) == "AD"
    assert ask(state, "y/a > x/w TCP/80").ingress.policy == "Profile:nobody"


def test_39_a_pod_cannot_forge_the_labels_of_a_namespace() -> None:
    policy = gnp("p", f"{SELECT_A}, ingress: [{{action: Allow, source: {{namespaceSelector: env == 'prod'}}}}]")
    forger = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: f, namespace: x, labels: {pcns.env: prod}}\n"
        "status: {podIP: 10.1.0.9}"
    )
    state = world(files(policy, forger))
    assert letters(ask(state, "x/f > x/a TCP/80")) == "AD"
    by_label = np("x", A, "ingress: [{from: [{podSelector: {matchLabels: {pcns.env: prod}}}]}]")
    assert letters(ask(world(files(by_label, forger)), "x/f > x/a TCP/80")) == "AD"


def test_50_selectors() -> None:
    assert parse('!a == "b"').matches({})
    assert not parse("a in {}").matches({"a": "b"})
    assert parse("a not in {}").matches({"a": "b"})
    assert parse('!(a == "b" && c == "d")').matches({"a": "b"})
