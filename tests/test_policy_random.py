"""Random clusters with policies of every kind: the fast evaluator says what the reference says, to the rule.

Also metamorphic: what must not matter does not.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from canal_udp.net import Address, Network
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import Flow
from canal_udp.policy.model import (
    EGRESS,
    ICMP,
    ICMP6,
    INGRESS,
    SCTP,
    TCP,
    UDP,
    CalicoPolicy,
    CalicoRule,
    ClusterPeer,
    ClusterPolicy,
    ClusterPort,
    ClusterRule,
    EndpointPort,
    EndpointSlice,
    Entity,
    HostEndpoint,
    IcmpMatch,
    IpBlock,
    KubePeer,
    KubePolicy,
    KubePort,
    KubeRule,
    LabelSelector,
    Namespace,
    NetworkSet,
    Node,
    Pod,
    PodsPeer,
    Policy,
    PortRange,
    Profile,
    Requirement,
    ServiceAccount,
    ServiceAccountMatch,
    State,
    Tier,
    WorkloadEndpoint,
    policy_key,
)
from canal_udp.policy.reference import Reference
from canal_udp.policy.selector import Selector, parse

SELECTORS = [
    *("all()", "has(app)", "!has(app)", "app == 'a'", "app != 'a'", "app in {'a', 'b'}", "app not in {'b'}"),
    *("app == 'a' && tier == '1'", "app == 'a' || tier == '2'", "role == 'host'", "set == 'blocked'", "has(set)"),
    *("projectcalico.org/namespace == 'n0'", "pcns.env == 'prod'", "app starts with 'a'", "!(has(set) || app == 'b')"),
]
NAMESPACE_SELECTORS = ["all()", "env == 'prod'", "env != 'prod'", "!has(env)", "env not in {'dev'}"]
NAMESPACES, NODES = ("n0", "n1", "n2"), ("node0", "node1")
ADDRESSES4 = ["8.8.8.8", "9.9.9.9", "10.250.0.1", "10.0.0.77", "172.16.5.5"]
ADDRESSES6 = ["2001:db8::1", "fd00::77"]
NETS4 = ["0.0.0.0/0", "8.0.0.0/8", "10.0.0.0/16", "10.0.0.0/30", "10.250.0.0/16", "172.16.0.0/12", "9.9.9.9/32"]
NETS6 = ["::/0", "fd00::/64", "2001:db8::/32"]
CLUSTERS = int(os.environ.get("CANAL_RANDOM_CLUSTERS") or 120)  # each with 40 flows
PORT_NAMES = ["web", "dns", "odd"]


class Dice:
    """A random cluster."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.state = self.cluster()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def labels(self) -> dict[str, str]:
        found = {"app": self.rng.choice("abc")} if self.chance(0.7) else {}
        return found | ({"tier": self.rng.choice("12")} if self.chance(0.5) else {})

    def ports(self) -> tuple[EndpointPort, ...]:
        names = self.rng.sample(PORT_NAMES, self.rng.randrange(3))
        return tuple(EndpointPort(name, self.rng.choice((TCP, UDP)), self.rng.choice((53, 80, 8080))) for name in names)

    # ---- who is there

    def cluster(self) -> State:
        pods = {}
        for number in range(8):
            namespace, name = self.rng.choice(NAMESPACES), f"p{number}"
            addresses = (ip_address(f"10.0.0.{number + 1}"), ip_address(f"fd00::{number + 1:x}"))
            pods[f"{namespace}/{name}"] = Pod(
                namespace,
                name,
                self.labels(),
                addresses if self.chance(0.8) else addresses[:1],
                self.ports(),
                self.rng.choice(("", *NODES)),
                service_account=self.rng.choice(("default", "robot")),
                host_network=self.chance(0.05),
                finished=self.chance(0.05),
                broken="odd" if self.chance(0.03) else "",
            )
        env = [{"env": "prod"}, {"env": "dev"}, {}]
        policies = {policy_key(one): one for one in (self.policy(number) for number in range(self.rng.randrange(9)))}
        return State(
            namespaces={name: Namespace(name, self.rng.choice(env)) for name in NAMESPACES},
            service_accounts={"n0/robot": ServiceAccount("n0", "robot", {"kind": "bot"})},
            nodes={
                name: Node(name, {"zone": str(number)}, (ip_address(f"192.168.0.{number + 1}"),))
                for number, name in enumerate(NODES)
            },
            pods=pods,
            slices={
                "n0/s": EndpointSlice("n0", "s", "svc", (ip_address("10.0.0.1"), ip_address("10.0.0.2")), ((TCP, 80),))
            },
            workloads=self.workloads(),
            hosts=self.hosts(),
            sets={
                "n1/near": NetworkSet("n1", "near", {"set": "near"}, (ip_network("10.250.0.0/24"),)),
                "far": NetworkSet(
                    "", "far", {"set": "blocked"}, (ip_network("8.8.0.0/16"), ip_network("2001:db8::/64"))
                ),
            },
            tiers={"first": Tier("first", 10, "Pass"), "late": Tier("late"), "mine": Tier("mine", 5_000)},
            profiles={"open": Profile("open", {"given": "yes"}, self.rules(False), (CalicoRule("Allow"),))},
            policies=tuple(policies.values()),
        )

    def workloads(self) -> dict[str, WorkloadEndpoint]:
        if not self.chance(0.5):
            return {}
        profiles = self.rng.choice(((), ("open",), ("nobody",), ("kns.n0",)))
        found = WorkloadEndpoint(
            "n0", "w", self.labels(), "vm", "node1", "k8s", "", (ip_address("10.0.0.50"),), profiles, self.ports()
        )
        return {"n0/w": found}

    def hosts(self) -> dict[str, HostEndpoint]:
        found = {}
        for number, name in enumerate(NODES):
            if self.chance(0.4):
                interface = self.rng.choice(("*", "eth0", ""))
                addresses = (ip_address(f"192.168.0.{number + 1}"),)
                profiles = ("open",) if self.chance(0.5) else ()
                found[name] = HostEndpoint(f"hep-{name}", {"role": "host"}, name, interface, addresses, profiles)
        return {host.name: host for host in found.values()}

    # ---- policies

    def policy(self, number: int) -> Policy:
        kind = self.rng.randrange(5)
        if kind == 0:
            return self.kube_policy(number)
        if kind == 1:
            return self.cluster_policy(number)
        return self.calico_policy(number)

    def label_selector(self) -> LabelSelector:
        match self.rng.randrange(5):
            case 0:
                return LabelSelector()
            case 1:
                return LabelSelector((("app", self.rng.choice("ab")),))
            case 2:
                return LabelSelector((), (Requirement("app", self.rng.choice(("In", "NotIn")), ("a", "b")),))
            case 3:
                return LabelSelector((), (Requirement("tier", self.rng.choice(("Exists", "DoesNotExist"))),))
            case _:
                return LabelSelector((("tier", "1"),), (Requirement("app", "NotIn", ("c",)),))

    def namespaces(self) -> LabelSelector:
        return self.rng.choice(
            (
                LabelSelector(),
                LabelSelector((("env", "prod"),)),
                LabelSelector((), (Requirement("env", "NotIn", ("prod",)),)),
                LabelSelector((("kubernetes.io/metadata.name", "n1"),)),
            )
        )

    def directions(self) -> frozenset[str]:
        return frozenset(self.rng.choice(((INGRESS,), (EGRESS,), (INGRESS, EGRESS))))

    def kube_policy(self, number: int) -> KubePolicy:
        namespace = self.rng.choice(NAMESPACES)
        return KubePolicy(
            namespace,
            f"k{number}",
            self.label_selector(),
            self.directions(),  # type: ignore[arg-type]
            tuple(self.kube_rule() for _ in range(self.rng.randrange(3))),
            tuple(self.kube_rule() for _ in range(self.rng.randrange(3))),
            staged=self.rng.choice(("Set", "Delete", "Learn")) if self.chance(0.1) else None,
            broken="unreadable" if self.chance(0.05) else "",
        )

    def kube_rule(self) -> KubeRule:
        peers = tuple(self.kube_peer() for _ in range(self.rng.randrange(3)))
        ports = tuple(self.kube_port() for _ in range(self.rng.randrange(3)))
        return KubeRule(peers, ports, broken="unreadable" if self.chance(0.05) else "")

    def kube_peer(self) -> KubePeer:
        match self.rng.randrange(4):
            case 0:
                return KubePeer(pods=self.label_selector())
            case 1:
                return KubePeer(namespaces=self.namespaces())
            case 2:
                return KubePeer(pods=self.label_selector(), namespaces=self.namespaces())
            case _:
                excepts = (ip_network("10.0.0.0/30"),) if self.chance(0.5) else ()
                return KubePeer(IpBlock(ip_network("10.0.0.0/16"), excepts) if self.chance(0.7) else self.block())

    def block(self) -> IpBlock:
        return IpBlock(ip_network(self.rng.choice((*NETS4, *NETS6))))

    def kube_port(self) -> KubePort:
        protocol = self.rng.choice((TCP, TCP, UDP, SCTP))
        return KubePort(protocol, self.rng.choice((None, PortRange(80, 80), PortRange(1, 1024), *PORT_NAMES)))

    def cluster_policy(self, number: int) -> ClusterPolicy:
        rules = [tuple(self.cluster_rule(d) for _ in range(self.rng.randrange(3))) for d in (INGRESS, EGRESS)]
        return ClusterPolicy(
            "ClusterNetworkPolicy",
            f"c{number}",
            "Admin" if self.chance(0.6) else "Baseline",
            self.rng.randrange(3),
            PodsPeer(self.namespaces(), self.label_selector() if self.chance(0.5) else None),
            *rules,
            broken="unreadable" if self.chance(0.05) else "",
        )

    def cluster_rule(self, direction: str) -> ClusterRule:
        peers = tuple(self.cluster_peer(direction) for _ in range(self.rng.randrange(1, 3)))
        ports: tuple[ClusterPort, ...] = ()
        if self.chance(0.6):
            ports = (self.rng.choice((ClusterPort(TCP), ClusterPort(UDP, PortRange(53, 80)), ClusterPort(name="web"))),)
        action = self.rng.choice(("Allow", "Deny", "Pass"))
        return ClusterRule(action, peers, ports, broken="unreadable" if self.chance(0.03) else "")  # type: ignore[arg-type]

    def cluster_peer(self, direction: str) -> ClusterPeer:
        match self.rng.randrange(4 if direction == EGRESS else 2):
            case 0:
                return ClusterPeer(PodsPeer(self.namespaces()))
            case 1:
                return ClusterPeer(PodsPeer(self.namespaces(), self.label_selector()))
            case 2:
                return ClusterPeer(nets=tuple(map(ip_network, self.rng.sample((*NETS4, *NETS6), 2))))
            case _:
                return ClusterPeer(nodes=LabelSelector((("zone", "0"),)))

    def calico_policy(self, number: int) -> CalicoPolicy:
        namespace = self.rng.choice(NAMESPACES) if self.chance(0.4) else ""
        stage = self.rng.random()
        pre, untracked = not namespace and stage < 0.1, not namespace and 0.1 < stage < 0.2
        return CalicoPolicy(
            namespace,
            self.rng.choice(("q", f"g{number}")),
            self.rng.choice(("default", "default", "first", "late", "mine", "ghost")),
            self.rng.choice((None, 1, 999, 1000, 1001)),
            self.selector() if self.chance(0.7) else None,
            parse(self.rng.choice(NAMESPACE_SELECTORS)) if not namespace and self.chance(0.3) else None,
            parse(self.rng.choice(("all()", "kind == 'bot'"))) if self.chance(0.1) else None,
            frozenset((INGRESS,)) if pre else self.directions(),  # type: ignore[arg-type]
            self.rules(bool(namespace)),
            () if pre else self.rules(bool(namespace)),
            untracked,
            pre,
            pre or untracked or (not namespace and self.chance(0.2)),
            self.rng.choice(("Set", "Delete", "Ignore")) if self.chance(0.1) else None,
            broken="unreadable" if self.chance(0.05) else "",
        )

    def selector(self) -> Selector:
        return parse(self.rng.choice(SELECTORS))

    def rules(self, namespaced: bool) -> tuple[CalicoRule, ...]:
        return tuple(self.calico_rule(namespaced) for _ in range(self.rng.randrange(4)))

    def calico_rule(self, namespaced: bool) -> CalicoRule:
        protocol = self.rng.choice((None, None, TCP, TCP, UDP, SCTP, ICMP, ICMP6))
        icmp = IcmpMatch(8, self.rng.choice((None, 0))) if protocol in (ICMP, ICMP6) and self.chance(0.6) else None
        flipped = self.chance(0.3)
        version = self.rng.choice((None, None, None, 4, 6))
        nets = NETS6 if version == 6 or self.chance(0.2) else NETS4
        return CalicoRule(
            self.rng.choice(("Allow", "Allow", "Deny", "Pass", "Log")),  # type: ignore[arg-type]
            version,  # type: ignore[arg-type]
            protocol,
            self.rng.choice((TCP, UDP)) if protocol is None and self.chance(0.1) else None,
            None if flipped else icmp,
            icmp if flipped else None,
            self.entity(nets, namespaced, INGRESS, protocol),
            self.entity(nets, namespaced, EGRESS, protocol),
            broken="unreadable" if self.chance(0.03) else "",
        )

    def entity(self, nets: list[str], namespaced: bool, end: str, protocol: int | None) -> Entity:
        if self.chance(0.4):
            return Entity()
        if self.chance(0.1):
            return Entity(service=("" if namespaced else "n0", "svc"))

        def some() -> tuple[Network, ...]:
            return tuple(map(ip_network, self.rng.sample(nets, self.rng.randrange(1, 3))))

        named = self.rng.choice(PORT_NAMES)
        numeric = PortRange(*self.rng.choice(((80, 80), (1, 1023), (53, 8080))))
        ports: tuple[PortRange | str, ...] = self.rng.choice(
            ((), (), (named,), (numeric, named) if protocol else (named,))
        )
        return Entity(
            some() if self.chance(0.3) else (),
            some() if self.chance(0.2) else (),
            self.selector() if self.chance(0.3) else None,
            self.selector() if self.chance(0.2) else None,
            parse(self.rng.choice((*NAMESPACE_SELECTORS, "global()"))) if self.chance(0.2) else None,
            ServiceAccountMatch(("robot",), parse("kind == 'bot'") if self.chance(0.3) else None)
            if self.chance(0.1)
            else None,
            None,
            ports if self.chance(0.6) else (),
            ports if self.chance(0.2) else (),
        )

    # ---- flows

    def flows(self, count: int) -> Iterator[Flow]:
        inside = [address for pod in self.state.pods.values() for address in pod.addresses]
        inside += [address for node in self.state.nodes.values() for address in node.addresses]
        inside += [address for one in self.state.workloads.values() for address in one.addresses]
        outside = [*map(ip_address, (*ADDRESSES4, *ADDRESSES6))]
        for _ in range(count):
            source = self.rng.choice(inside if self.chance(0.7) else outside)
            others = [one for one in (inside if self.chance(0.8) else outside) if one.version == source.version]
            yield self.flow(source, self.rng.choice(others or [source]))

    def flow(self, source: Address, destination: Address) -> Flow:
        icmp = ICMP if source.version == 4 else ICMP6
        return Flow(
            source,
            destination,
            self.rng.choice((TCP, TCP, TCP, UDP, UDP, SCTP, icmp, 47)),
            self.rng.choice((80, 1023, 50000)),
            self.rng.choice((22, 53, 80, 81, 8080)),
            self.rng.choice((8, 8, 0, 13)),
            self.rng.choice((0, 1)),
            (ip_address("9.9.9.9"), 80) if source.version == 4 and self.chance(0.1) else None,
            self.chance(0.2),
        )


def show(state: State, flow: Flow) -> str:
    return "\n".join((str(flow), *map(str, state.policies)))


@pytest.mark.parametrize("staged", [False, True], ids=["enforced", "staged"])
def test_evaluator_agrees_with_the_reference(staged: bool) -> None:
    start = random.randrange(2**32)
    for seed in range(start, start + CLUSTERS):
        dice = Dice(seed)
        evaluator, reference = Evaluator(dice.state, staged=staged), Reference(dice.state, staged=staged)
        for flow in dice.flows(40):
            fast, slow = evaluator.verdict(flow), reference.verdict(flow)
            assert fast == slow, f"seed {seed}: {fast}\n{slow}\n{show(dice.state, flow)}"


def test_what_must_not_matter() -> None:
    """The order of objects, a policy that selects nothing, staged policies."""
    start = random.randrange(2**32)
    for seed in range(start, start + 60):
        dice = Dice(seed)
        state = dice.state
        nothing = CalicoPolicy("", "zzz", order=0, selector=parse("never in {}"), ingress=(CalicoRule("Deny"),))
        staged = CalicoPolicy("", "yyy", order=0, ingress=(CalicoRule("Deny"),), staged="Set")
        shuffled = [*state.policies, nothing, staged]
        dice.rng.shuffle(shuffled)
        other = replace(
            state,
            policies=tuple(shuffled),
            pods=dict(reversed(list(state.pods.items()))),
            sets=dict(reversed(list(state.sets.items()))),
        )
        before, after = Evaluator(state), Evaluator(other)
        for flow in dice.flows(40):
            assert before.verdict(flow) == after.verdict(flow), f"seed {seed}\n{show(state, flow)}"


def test_a_broken_policy_never_allows_more() -> None:
    """Whatever is not understood: every flow that passes then passed before or was never governed."""
    start = random.randrange(2**32)
    for seed in range(start, start + 60):
        dice = Dice(seed)
        policies = dice.state.policies
        if not policies:
            continue
        at = dice.rng.randrange(len(policies))
        broken = replace(policies[at], broken="unreadable")
        if isinstance(broken, KubePolicy | CalicoPolicy):
            broken = replace(broken, types=frozenset((INGRESS, EGRESS)))
        changed = replace(dice.state, policies=(*policies[:at], broken, *policies[at + 1 :]))
        without_passes = all("Pass" not in str(one) for one in policies)
        before, after = Evaluator(dice.state), Evaluator(changed)
        for flow in dice.flows(30):
            if without_passes and after.verdict(flow).allow:
                assert before.verdict(flow).allow, f"seed {seed}\n{show(changed, flow)}"
