"""Cases that others computed: JSON lines in the folder that CANAL_TEST_DATA names; without it nothing is collected."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from canal_udp.net import Address, covers
from canal_udp.policy.cursor import Document
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import Decision, Flow
from canal_udp.policy.load import load
from canal_udp.policy.model import (
    DIRECTIONS,
    INGRESS,
    PROTOCOLS,
    CalicoPolicy,
    CalicoRule,
    EndpointPort,
    EndpointSlice,
    Entity,
    HostEndpoint,
    IcmpMatch,
    NetworkSet,
    PortRange,
    Profile,
    Settings,
    State,
    Tier,
    WorkloadEndpoint,
)
from canal_udp.policy.reference import Reference
from canal_udp.policy.selector import SelectorError, parse
from tests.policies import kubernetes_documents, letters, plain_flow

DATA = Path(os.environ.get("CANAL_TEST_DATA") or "/nowhere")


def cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


class TestSelectors:
    __test__ = (DATA / "selectors.jsonl").exists()

    def test_all_agree(self) -> None:
        for case in cases("selectors.jsonl"):
            try:
                selector = parse(case["selector"])
            except SelectorError:
                assert "error" in case, case
                continue
            assert selector.canonical == case.get("canonical"), case
            assert selector.id == case["id"], case
            assert [selector.matches(labels) for labels in case["labels"]] == case["match"], case


class TestKubernetes:
    __test__ = (DATA / "kubernetes_matrices.jsonl").exists()

    def test_all_agree(self) -> None:
        """The reference is slow: it is asked for every tenth verdict."""
        for case in cases("kubernetes_matrices.jsonl"):
            loaded = load(Document(one, f"case {case['case']}") for one in kubernetes_documents(case))
            assert not loaded.errors
            evaluator, reference = Evaluator(loaded.state), Reference(loaded.state)
            asked = 0
            for probe, table in case["verdicts"].items():
                port, protocol = probe.split("/")
                for pair, expected in table.items():
                    source, destination = (case["pods"][name]["ip"] for name in pair.split(">"))
                    flow = plain_flow(source, destination, protocol, int(port))
                    verdict = evaluator.verdict(flow)
                    assert letters(verdict) == expected, (case["case"], probe, pair)
                    asked += 1
                    if asked % 10 == 0:
                        assert reference.verdict(flow) == verdict


# ---- tiers -----------------------------------------------------------------------------------------------------------

# In the tests policies on forward are listed apart from the others; a policy here would govern local traffic too. So
# there are two host endpoints: one is asked for local traffic, one for what is forwarded.
LOCAL, FORWARD, BOTH = parse("role == 'local'"), parse("role == 'forward'"), parse("has(role) && role != 'pod'")
POD = parse("role == 'pod'")


class TestTiers:
    """Calico's own data plane tests, its flat rules written back as policies."""

    __test__ = (DATA / "tiers.jsonl").exists()

    def test_all_agree(self) -> None:
        for case in cases("tiers.jsonl"):
            state = tier_state(case)
            for judge in (Reference(state), Evaluator(state)):
                for expected, packets in ((True, case["allowed"]), (False, case["dropped"])):
                    for packet in packets or ():
                        assert decide(judge, case, packet).allow is expected, (case["name"], packet)
                for packet in case["unmatched"] or ():
                    assert decide(judge, case, packet).reason == "no policy applies on forward", (case["name"], packet)


def decide(judge: Reference | Evaluator, case: dict[str, Any], packet: dict[str, Any]) -> Decision:
    """Host policy if there is one for this packet, then the workload's unless it is a host's interface."""
    policy, flow = case["policy"], tier_flow(case, packet)
    if policy.get("ForXDP"):
        return judge.host("forward", INGRESS, flow, forwarded=True)
    is_local = bool(packet.get("ToHost") or packet.get("FromHost"))
    decision = Decision(True)
    if case["group"] == "host" and not (is_local and policy.get("SuppressNormalHostPolicy")):
        decision = judge.host("local" if is_local else "forward", INGRESS, flow, forwarded=not is_local)
    if decision.allow and not policy.get("ForHostInterface"):
        decision = judge.workload("n/pod", INGRESS, flow)
    return decision


def tier_flow(case: dict[str, Any], packet: dict[str, Any]) -> Flow:
    def address(text: str) -> Address:
        found = ip_address(text)
        # A program for IPv4 reads an IPv6 address of the table as zeros.
        return found if case["v6"] or found.version == 4 else ip_address("0.0.0.0")

    original = (address(packet["PreDst"]), packet["PreDport"]) if "PreDst" in packet else None
    dport = packet["Dport"]
    return Flow(
        address(packet["Src"]),
        address(packet["Dst"]),
        packet["Proto"],
        packet["Sport"],
        dport,
        dport & 255,
        dport >> 8,
        original,
    )


def tier_state(case: dict[str, Any]) -> State:
    sets: dict[str, NetworkSet] = {}
    workloads = {"n/pod": WorkloadEndpoint("n", "pod", {"role": "pod"}, profiles=profile_names(case))}
    for name, members in (case["ipsets"] or {}).items():
        nets = tuple(ip_network(member) for member in members if "," not in member)
        sets[name] = NetworkSet("", name, {"set": name}, nets)
        for number, member in enumerate(one for one in members if "," in one):
            net, port = member.split(",")
            protocol, number_text = port.split(":")
            named = EndpointPort(name, PROTOCOLS[protocol.upper()], int(number_text))
            key = f"{name}-{number}"
            addresses = (ip_network(net).network_address,)
            workloads[f"n/{key}"] = WorkloadEndpoint("n", key, {}, addresses=addresses, ports=(named,))
    for names in {tuple(sets) for sets in several_sets(case["policy"])}:
        common = sets[names[0]].nets
        for name in names[1:]:
            common = tuple(
                one if covers(other, one) else other
                for one in common
                for other in sets[name].nets
                if covers(other, one) or covers(one, other)
            )
        sets[both(names)] = NetworkSet("", both(names), {"set": both(names)}, common)
    policies, tiers = [], {}
    for field, selector, stage in UNTRACKED if case["policy"].get("ForXDP") else TIERS:
        for number, written in enumerate(case["policy"].get(field) or ()):
            name = f"{field}-{number}"
            tiers[name] = Tier(name, number, "Pass" if written.get("EndAction") == "pass" else "Deny")
            for order, one in enumerate(written["Policies"]):
                rules = tuple(map(tier_rule, one["Rules"] or ()))
                policies.append(
                    CalicoPolicy(
                        "",
                        f"p{number}-{order}-{stage}",
                        f"{field}-{number}",
                        order,
                        selector,
                        types=frozenset(DIRECTIONS),
                        ingress=rules,
                        apply_on_forward=stage != "normal",
                        do_not_track=stage == "doNotTrack",
                        pre_dnat=stage == "preDNAT",
                    )
                )
    return State(
        workloads=workloads,
        slices=slices(case),
        hosts={
            name: HostEndpoint(name, {"role": name}, "node", "eth0", profiles=profile_names(case, "HostProfiles"))
            for name in ("local", "forward")
        },
        sets=sets,
        tiers=tiers,
        profiles={
            one["Name"]: Profile(one["Name"], {}, tuple(map(tier_rule, one["Rules"] or ())))
            for field in ("Profiles", "HostProfiles")
            for one in case["policy"].get(field) or ()
        },
        policies=tuple(policies),
        settings=Settings((), ()),
    )


# A program of the driver has the untracked policies only, in the place of the normal ones.
UNTRACKED = (("HostNormalTiers", parse("has(role) && role != 'pod'"), "doNotTrack"),)


def several_sets(value: Any) -> Iterator[Sequence[str]]:
    """Wherever a rule names more than one set for an end."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key in ("SrcIpSetIds", "DstIpSetIds") and len(inner or ()) > 1:
            yield inner
        yield from several_sets(inner)
    for inner in value if isinstance(value, list) else ():
        yield from several_sets(inner)


def slices(case: dict[str, Any]) -> dict[str, EndpointSlice]:
    """Sets of addresses with ports, as services that have them."""
    found = {}
    for name, members in (case["ipsets"] or {}).items():
        for number, member in enumerate(one for one in members if "," in one):
            net, port = member.split(",")
            protocol_name, number_text = port.split(":")
            only = (PROTOCOLS[protocol_name.upper()], int(number_text))
            key = f"{name}-{number}"
            found[f"n/{key}"] = EndpointSlice("n", key, name, (ip_network(net).network_address,), (only,))
    return found


TIERS = (
    ("Tiers", POD, "normal"),
    ("HostPreDnatTiers", BOTH, "preDNAT"),
    ("HostForwardTiers", FORWARD, "forward"),
    ("HostNormalTiers", LOCAL, "normal"),
)


def profile_names(case: dict[str, Any], field: str = "Profiles") -> tuple[str, ...]:
    return tuple(one["Name"] for one in case["policy"].get(field) or ())


def tier_rule(rule: dict[str, Any]) -> CalicoRule:
    known = {"Action", "Protocol", "NotProtocol", "Icmp", "NotIcmp", "IpVersion"}
    ends = {f"{no}{end}{what}" for no in ("", "Not") for end in ("Src", "Dst") for what in ENDS}
    assert rule.keys() <= known | ends, rule
    return CalicoRule(
        ACTIONS[rule["Action"].lower()],  # type: ignore[arg-type]
        rule.get("IpVersion"),
        protocol(rule.get("Protocol")),
        protocol(rule.get("NotProtocol")),
        icmp(rule.get("Icmp")),
        icmp(rule.get("NotIcmp")),
        entity(rule, "Src"),
        entity(rule, "Dst"),
    )


ACTIONS = {"allow": "Allow", "deny": "Deny", "pass": "Pass", "next-tier": "Pass", "log": "Log"}
ENDS = ("Net", "Ports", "IpSetIds", "NamedPortIpSetIds", "IpPortSetIds")


def entity(rule: dict[str, Any], end: str) -> Entity:
    def nets(key: str) -> tuple[Any, ...]:
        return tuple(ip_network(one, strict=False) for one in rule.get(f"{key}Net") or ())

    def ports(key: str) -> tuple[PortRange | str, ...]:
        numeric = (PortRange(one["First"], one["Last"]) for one in rule.get(f"{key}Ports") or ())
        return (*numeric, *(rule.get(f"{key}NamedPortIpSetIds") or ()))

    sets, not_sets = (rule.get(f"{key}IpSetIds") or () for key in (end, f"Not{end}"))
    assert not rule.get(f"Not{end}IpPortSetIds"), rule
    services = rule.get(f"{end}IpPortSetIds") or ()
    assert len(services) <= 1, "several services in one rule"
    return Entity(
        nets(end),
        nets(f"Not{end}"),
        parse(f"set == '{both(sets)}'") if sets else None,
        parse(" || ".join(f"set == '{one}'" for one in not_sets)) if not_sets else None,
        service=("n", services[0]) if services else None,
        ports=ports(end),
        not_ports=ports(f"Not{end}"),
    )


def both(sets: Sequence[str]) -> str:
    """The name of the set of what lies in all of these sets."""
    return "+".join(sets)


def protocol(value: dict[str, Any] | None) -> int | None:
    if value is None:
        return None
    inner = value["NumberOrName"]
    return inner["Number"] if "Number" in inner else PROTOCOLS[inner["Name"].upper()]


def icmp(value: dict[str, Any] | None) -> IcmpMatch | None:
    if value is None:
        return None
    (inner,) = value.values()
    return IcmpMatch(inner["Type"], inner["Code"]) if isinstance(inner, dict) else IcmpMatch(inner)
