"""Policies of hosts (normal, on forward, before DNAT, untracked, failsafes), and staged policies."""

from __future__ import annotations

import pytest

from tests.policies import CALICO, NODES, ask, calico, files, gnp, letters, np, world

A = "{matchLabels: {pod: a}}"
Y_PODS = "from: [{namespaceSelector: {matchLabels: {ns: y}}}]"

HEP = (
    f"{CALICO}\nkind: HostEndpoint\nmetadata: {{name: n1-eth0, labels: {{role: host}}}}\n"
    "spec: {node: n1, interfaceName: eth0, expectedIPs: [192.168.0.1]}"
)
ON_N1 = {f"{namespace}/{pod}": "nodeName: n1" for namespace in "xy" for pod in "abc"}
HOST = "selector: role == 'host'"
HOSTS = [
    pytest.param(
        gnp("p", f"{HOST}, ingress: [{{action: Deny}}]"),
        {"8.8.8.8 > x/a TCP/80": "AA", "8.8.8.8 > 192.168.0.1 TCP/22": "AA", "8.8.8.8 > 192.168.0.1 TCP/9100": "AD"},
        id="40 a normal policy is for the host's own traffic; failsafe ports stay open",
    ),
    pytest.param(
        gnp("p", f"{HOST}, applyOnForward: true, ingress: [{{action: Allow, protocol: UDP}}]"),
        {
            "8.8.8.8 > x/a TCP/80": "AD",
            "8.8.8.8 > x/a UDP/80": "AA",
            "8.8.8.8 > x/a TCP/22": "AD",
            "y/a > x/a TCP/80": "AA",
        },
        id="41 a policy on forward governs what goes to pods, without failsafes and profiles",
    ),
    pytest.param(
        gnp(
            "p",
            f"{HOST}, preDNAT: true, applyOnForward: true, ingress: [{{action: Deny, protocol: TCP, destination:"
            " {ports: [30080]}}]",
        ),
        {
            "8.8.8.8 > x/a TCP/80 original=192.168.0.1:30080": "AD",
            "y/a > x/a TCP/80": "AA",
            "8.8.8.8 > x/a TCP/80": "AA",
        },
        id="43 preDNAT sees the original destination",
    ),
    pytest.param(
        files(
            gnp("pre", f"{HOST}, preDNAT: true, applyOnForward: true, ingress: [{{action: Allow}}]"),
            gnp("fwd", f"{HOST}, applyOnForward: true, types: [Ingress, Egress], ingress: [{{action: Deny}}]"),
            np("x", A, "ingress: [{ports: [{port: 80}]}]"),
        ),
        {
            "8.8.8.8 > x/a TCP/80": "AA",
            "8.8.8.8 > x/a TCP/81": "AD",
            "8.8.8.8 > 192.168.0.1 TCP/9100": "AA",
            "x/a > 8.8.8.8 TCP/80": "DA",
        },
        id="an Allow before DNAT skips the host's later policy, not the pod's",
    ),
    pytest.param(
        gnp("p", f"{HOST}, doNotTrack: true, applyOnForward: true, ingress: [{{action: Deny, protocol: UDP}}]"),
        {"8.8.8.8 > x/a UDP/80": "AD", "8.8.8.8 > x/a TCP/80": "AA", "8.8.8.8 > 192.168.0.1 UDP/68": "AA"},
        id="doNotTrack comes first, and without a match the others follow",
    ),
    pytest.param(
        "",
        {"192.168.0.1 > 8.8.8.8 TCP/80": "DA", "192.168.0.1 > 8.8.8.8 UDP/53": "AA", "x/a > 8.8.8.8 TCP/80": "AA"},
        id="no policy and no profile: nothing but failsafes, and what is forwarded",
    ),
]


@pytest.mark.parametrize(("policies", "verdicts"), HOSTS)
def test_host_endpoints(policies: str, verdicts: dict[str, str]) -> None:
    state = world(files(*filter(None, (NODES, HEP, policies))), more=ON_N1)
    assert {flow: letters(ask(state, flow)) for flow in verdicts} == verdicts


def test_failsafes_are_settings() -> None:
    setting = calico("FelixConfiguration", "default", "failsafeInboundHostPorts: [{port: 9100, net: 8.0.0.0/8}]")
    state = world(files(NODES, HEP, setting), more=ON_N1)
    assert letters(ask(state, "8.8.8.8 > 192.168.0.1 TCP/9100")) == "AA"
    assert letters(ask(state, "9.9.9.9 > 192.168.0.1 TCP/9100")) == "AD"
    assert letters(ask(state, "8.8.8.8 > 192.168.0.1 TCP/22")) == "AD"


# ---- staged policies -------------------------------------------------------------------------------------------------


def test_staged_policies_show_what_they_would_change() -> None:
    enforced = np("x", A, f"ingress: [{{{Y_PODS}}}]")
    staged = f"{CALICO}\nkind: StagedKubernetesNetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: "
    replaced = staged + f"{{podSelector: {A}, ingress: []}}"
    deleted = staged + "{stagedAction: Delete}"
    added = calico("StagedGlobalNetworkPolicy", "new", "selector: pod == 'b', types: [Ingress]")
    state = world(files(enforced, replaced, added))
    for flow in ("y/a > x/a TCP/80", "y/a > x/b TCP/80"):
        assert letters(ask(state, flow)) == "AA"
        assert letters(ask(state, flow, staged=True)) == "AD"
    state = world(files(enforced, deleted))
    assert letters(ask(state, "z/a > x/a TCP/80")) == "AD"
    assert letters(ask(state, "z/a > x/a TCP/80", staged=True)) == "AA"
