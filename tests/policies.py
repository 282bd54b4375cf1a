"""A small world for policy tests: namespaces x, y, z with pods a, b, c each; YAML in, both evaluators asked."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import Flow, Verdict
from canal_udp.policy.load import Loaded, load_texts
from canal_udp.policy.model import PROTOCOLS, State
from canal_udp.policy.questions import Questions
from canal_udp.policy.reference import Reference

NAMESPACES = {"x": 1, "y": 2, "z": 3}
PODS = {"a": 1, "b": 2, "c": 3}
CALICO = "apiVersion: projectcalico.org/v3"
KUBE = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy"
CNP = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy"


def world_yaml(ports: dict[str, str] | None = None, more: dict[str, str] | None = None) -> str:
    """Pods 10.<namespace>.0.<pod> and fd00::<namespace>:<pod>; TCP 80 is `web`. `more`: spec lines of one pod."""
    documents = []
    for name in NAMESPACES:
        labels = "" if name == "z" else f"ns: {name}"
        documents.append(f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}")
    for namespace, n in NAMESPACES.items():
        for pod, p in PODS.items():
            key = f"{namespace}/{pod}"
            named = (ports or {}).get(key, "{name: web, containerPort: 80}")
            documents.append(
                "apiVersion: v1\nkind: Pod\n"
                f"metadata: {{name: {pod}, namespace: {namespace}, labels: {{pod: {pod}}}}}\n"
                f"spec:\n  containers: [{{ports: [{named}]}}]\n  {(more or {}).get(key, '')}\n"
                f"status: {{podIPs: [{{ip: 10.{n}.0.{p}}}, {{ip: 'fd00::{n}:{p}'}}]}}"
            )
    return "\n---\n".join(documents)


def read(*texts: str) -> Loaded:
    return load_texts((f"file{number}.yaml", text) for number, text in enumerate(texts))


def world(policies: str = "", **options: Any) -> State:
    loaded = read(world_yaml(**options), policies)
    assert not loaded.errors, "\n".join(map(str, loaded.errors))
    return loaded.state


def parse_flow(evaluator: Evaluator, text: str) -> Flow:
    """`y/a > x/a TCP/80`, `ICMP/8/0` is type and code; then fields: sport=1 original=9.9.9.9:80 hairpin."""
    ends, _, rest = text.partition(" > ")
    destination, protocol, *more = rest.split()
    name, *numbers = protocol.split("/")
    question: dict[str, Any] = {"src": ends, "dst": destination, "protocol": int(name) if name.isdecimal() else name}
    keys = ("icmp_type", "icmp_code") if name.startswith("ICMP") else ("dport",)
    question |= dict(zip(keys, map(int, numbers), strict=False))
    for word in more:
        key, _, value = word.partition("=")
        if key == "original":
            question["original_dst"], port = value.rsplit(":", 1)
            question["original_dport"] = int(port)
        else:
            question[key] = int(value) if value else True
    return Questions(evaluator).flow(question)


def ask(state: State, text: str, *, staged: bool = False) -> Verdict:
    """The verdict on which both evaluators agree."""
    evaluator = Evaluator(state, staged=staged)
    flow = parse_flow(evaluator, text)
    verdict, slow = evaluator.verdict(flow), Reference(state, staged=staged).verdict(flow)
    assert verdict == slow, f"{text}: {verdict} and {slow}"
    return verdict


def letters(verdict: Verdict) -> str:
    return "".join("A" if one.allow else "D" for one in (verdict.egress, verdict.ingress))


def kubernetes_documents(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A cluster given as namespaces, pods and policies, as objects of the API."""
    for name, labels in case["namespaces"].items():
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    ports = [
        {"containerPort": port, "protocol": protocol, "name": f"serve-{port}-{protocol.lower()}"}
        for port in (80, 81)
        for protocol in ("TCP", "UDP", "SCTP")
    ]
    for key, pod in case["pods"].items():
        namespace, name = key.split("/")
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": pod["labels"]},
            "spec": {"containers": [{"ports": ports}]},
            "status": {"podIP": pod["ip"]},
        }
    yield from case["policies"]


def plain_flow(source: str, destination: str, protocol: str, port: int) -> Flow:
    return Flow(ip_address(source), ip_address(destination), PROTOCOLS[protocol], dport=port)


# ---- policies as text ------------------------------------------------------------------------------------------------

NODES = """
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {role: gateway}}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}, {type: Hostname, address: n2}]}
"""


def np(namespace: str, selector: str, spec: str, name: str = "p") -> str:
    return f"{KUBE}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{podSelector: {selector}, {spec}}}"


def cnp(name: str, tier: str, priority: int, spec: str, subject: str = "{namespaces: {matchLabels: {ns: x}}}") -> str:
    return (
        f"{CNP}\nmetadata: {{name: {name}}}\nspec: {{tier: {tier}, priority: {priority}, subject: {subject}, {spec}}}"
    )


def calico(kind: str, name: str, spec: str, namespace: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return f"{CALICO}\nkind: {kind}\nmetadata: {{name: {name}{where}}}\nspec: {{{spec}}}"


def gnp(name: str, spec: str) -> str:
    return calico("GlobalNetworkPolicy", name, spec)


def tier(name: str, order: int, action: str = "Deny") -> str:
    return calico("Tier", name, f"order: {order}, defaultAction: {action}")


def files(*documents: str) -> str:
    return "\n---\n".join(documents)
