"""A second opinion: network-config-analyzer computes exact sets of connections of random NetworkPolicy clusters.

Its limits: blocks of addresses mean what is outside of the cluster only, so they hold no pods here; what a pod sends to
itself is always allowed, so it is not asked. CANAL_ORACLE_CLUSTERS=1000 compares more clusters than the suite does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from nca.CoreDS.Peer import BasePeerSet, IpBlock
from nca.NetworkConfig.ResourcesHandler import ResourcesHandler

from canal_udp.policy.cursor import Document
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.load import load
from canal_udp.policy.model import ICMP, ICMP6, PROTOCOLS

CLUSTERS = int(os.environ.get("CANAL_ORACLE_CLUSTERS") or 40)
OUTSIDE = ("8.8.8.8", "9.9.9.9", "172.16.5.5", "192.0.2.1", "2001:db8::1", "2001:db9::1")
BLOCKS = (
    {"cidr": "8.0.0.0/8"},
    {"cidr": "8.0.0.0/7", "except": ["9.9.9.0/24"]},
    {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/24", "8.0.0.0/7"]},
    {"cidr": "172.16.0.0/12", "except": ["172.16.0.0/16", "172.17.0.0/16"]},
    {"cidr": "2001:db8::/32"},
    {"cidr": "2001:db8::/31", "except": ["2001:db8::/64"]},
)


class Dice:
    """A random cluster as objects of the API."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.namespaces = [self.namespace(name) for name in ("n0", "n1", "n2")]
        self.pods = [self.pod(number) for number in range(6)]
        self.policies = [self.policy(number) for number in range(self.rng.randrange(1, 6))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def labels(self) -> dict[str, str]:
        some = {"app": self.rng.choice("abc"), "tier": self.rng.choice(("one", "two"))}
        return {key: value for key, value in some.items() if self.chance(0.7)}

    def namespace(self, name: str) -> dict[str, Any]:
        labels = {"env": self.rng.choice(("prod", "dev"))} if self.chance(0.7) else {}
        labels |= {"kubernetes.io/metadata.name": name}  # the API server gives it
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}

    def pod(self, number: int) -> dict[str, Any]:
        ports = [
            {
                "name": name,
                "containerPort": self.rng.choice((80, 81, 8080)),
                "protocol": self.rng.choice(("TCP", "UDP")),
            }
            for name in self.rng.sample(("web", "dns"), self.rng.randrange(3))
        ]
        meta = {"name": f"p{number}", "namespace": self.rng.choice(("n0", "n1", "n2")), "labels": self.labels()}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]},
            "status": {"podIP": f"10.0.0.{number + 1}", "podIPs": [{"ip": f"10.0.0.{number + 1}"}]},
        }

    def policy(self, number: int) -> dict[str, Any]:
        spec: dict[str, Any] = {"podSelector": self.selector("app", "tier")}
        if self.chance(0.7):
            spec["policyTypes"] = self.rng.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        types = spec.get("policyTypes", ["Ingress", "Egress"])  # the oracle refuses rules without their type
        if "Ingress" in types and self.chance(0.8):
            spec["ingress"] = [self.rule("from") for _ in range(self.rng.randrange(4))]
        if "Egress" in types and self.chance(0.6):
            least = (
                0 if "policyTypes" in spec else 1
            )  # for the oracle an empty list is the type, for Kubernetes it is not
            spec["egress"] = [self.rule("to") for _ in range(self.rng.randrange(least, 4))]
        meta = {"name": f"q{number}", "namespace": self.rng.choice(("n0", "n1", "n2"))}
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}

    def selector(self, *keys: str, kinds: int = 5) -> dict[str, Any]:
        key = self.rng.choice(keys)
        values = ["a", "b", "prod", "one"]
        match self.rng.randrange(kinds):
            case 0:
                return {}
            case 1:
                return {"matchLabels": {key: self.rng.choice(values)}}
            case 2:
                operator = self.rng.choice(("In", "NotIn"))
                some = self.rng.sample(values, self.rng.randrange(1, 4))
                return {"matchExpressions": [{"key": key, "operator": operator, "values": some}]}
            case 3:
                return {"matchExpressions": [{"key": key, "operator": self.rng.choice(("Exists", "DoesNotExist"))}]}
            case _:
                both = [{"key": key, "operator": "Exists"}, {"key": key, "operator": "NotIn", "values": ["b", "dev"]}]
                return {"matchExpressions": both}

    def rule(self, peers: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.chance(0.8):
            found[peers] = [self.peer() for _ in range(self.rng.randrange(4))]
        if self.chance(0.6):
            found["ports"] = [self.port() for _ in range(self.rng.randrange(4))]
        return found

    def peer(self) -> dict[str, Any]:
        match self.rng.randrange(4):
            case 0:
                return {"podSelector": self.selector("app", "tier")}
            case 1:
                return {"namespaceSelector": self.selector("env", "kubernetes.io/metadata.name")}
            case 2:
                pods = self.selector("app", "tier", kinds=3)  # the oracle looks for mere keys in one namespace only
                return {"podSelector": pods, "namespaceSelector": self.selector("env")}
            case _:
                return {"ipBlock": self.rng.choice(BLOCKS)}

    def port(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.chance(0.7):
            found["protocol"] = self.rng.choice(("TCP", "UDP", "SCTP"))
        match self.rng.randrange(4):
            case 0:
                found["port"] = self.rng.choice((80, 81, 8080))
            case 1:
                found |= {"port": 80, "endPort": self.rng.choice((80, 90, 65535))}
            case 2 if found.get("protocol") != "SCTP":
                found["port"] = self.rng.choice(("web", "dns"))
        return found


@dataclass(frozen=True)
class Connections:
    """One of the oracle's cubes."""

    sources: frozenset[str]
    destinations: frozenset[str]
    protocols: Any
    ports: Any

    def hold(self, source: str, destination: str, protocol: str, port: int) -> bool:
        if protocol not in self.protocols or not (
            is_among(source, self.sources) and is_among(destination, self.destinations)
        ):
            return False
        return protocol == "ICMP" or port in self.ports.port_set


def is_among(end: str, ends: frozenset[str]) -> bool:
    """A pod by its name, an address in one of the prefixes."""
    if "/" in end:
        return end in ends
    nets = (ip_network(one) for one in ends if one.rpartition("/")[2].isdecimal())
    return any(net.version == ip_address(end).version and ip_address(end) in net for net in nets)


def oracle(folder: Path, dice: Dice) -> list[Connections]:
    names = []
    for name, objects in (("policies", dice.policies), ("namespaces", dice.namespaces), ("pods", dice.pods)):
        path = folder / f"{name}.yaml"
        path.write_text("\n---\n".join(map(json.dumps, objects)))
        names.append([str(path)])
    BasePeerSet.reset()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        allowed = ResourcesHandler().get_network_config(*names, None).allowed_connections().all_allowed_conns
    cubes = (allowed.get_connectivity_cube(cube) for cube in allowed)
    return [
        Connections(ends(one["src_peers"]), ends(one["dst_peers"]), one["protocols"], one["dst_ports"]) for one in cubes
    ]


def ends(peers: Any) -> frozenset[str]:
    return frozenset(name for peer in peers for name in names_of(peer))


def names_of(peer: Any) -> Iterator[str]:
    yield from peer.get_cidr_list() if isinstance(peer, IpBlock) else [peer.full_name()]


@pytest.mark.timeout(1800)
def test_random_clusters(tmp_path: Path) -> None:
    start = random.randrange(2**32)
    for seed in range(start, start + CLUSTERS):
        dice = Dice(seed)
        loaded = load(Document(one, "cluster") for one in (*dice.namespaces, *dice.pods, *dice.policies))
        assert not loaded.errors
        expected, evaluator = oracle(tmp_path, dice), Evaluator(loaded.state)
        inside = {f"{pod.namespace}/{pod.name}": pod.addresses[0] for pod in loaded.state.pods.values()}
        addresses = inside | {address: ip_address(address) for address in OUTSIDE}
        for source, destination in product(addresses, addresses):
            one, other = evaluator.end(addresses[source]), evaluator.end(addresses[destination])
            if one.address.version != other.address.version or source == destination:
                continue
            if source not in inside and destination not in inside:
                continue
            for protocol, port in product(("TCP", "UDP", "SCTP", "ICMP"), (79, 80, 81, 90, 91, 8080)):
                number = PROTOCOLS[protocol] if protocol != "ICMP" or one.address.version == 4 else ICMP6
                verdict = evaluator.passes(one, other, (number, 50000, 0 if number in (ICMP, ICMP6) else port, 8, 0))
                held = any(some.hold(source, destination, protocol, port) for some in expected)
                assert verdict is held, (
                    f"seed {seed}: {source} > {destination} {protocol}/{port}: {verdict}, not {held}"
                )
