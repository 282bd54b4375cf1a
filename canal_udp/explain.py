"""canal explain: what the compiled program says of a flow at both ends, and the story of how it came to that.

Place     the daemon brings what it knows of the cluster; the programs are compiled here once more, by the engine that
          compiles for the data plane, and asked through `policy_tables.judge`. So an end on another node is explained
          as its node decides. What is in force at an end here the daemon asks of the data plane itself.
Structure changes ─► restricted to those who matter for two addresses ─► Engine ─► programs ─┬─► judge ─► verdict
                                                                                         └─► Source ─► Story
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from canal_udp._abi import dtype_of, lib
from canal_udp.encap.fib import packed
from canal_udp.net import Address
from canal_udp.policy.cluster import POLICY, Change, Changes
from canal_udp.policy.compile import Engine
from canal_udp.policy.compiled import RuleRef
from canal_udp.policy.explain import Packet, Story, tell
from canal_udp.policy.flow import Flow
from canal_udp.policy.lower import with_staged
from canal_udp.policy.model import EGRESS, INGRESS, Direction, Pod, WorkloadEndpoint, policy_key
from canal_udp.policy.model import Policy as Written
from canal_udp.policy_tables import PolicyTables, classes_of, flow_rows, judge

_PORT = 1  # of the endpoint that is asked about
_END = {EGRESS: lib.CANAL_EGRESS, INGRESS: lib.CANAL_INGRESS}


@dataclass(frozen=True, slots=True)
class Said:
    """What one end says. `ref` None: nothing here polices it, or nothing passes at all; `reason` says which."""

    allow: bool
    ref: RuleRef | None
    reason: str = ""
    reject: bool = False
    story: Story | None = None


NOT_POLICED = Said(True, None, "not a pod: no policy here")
OWN_ADDRESS = Said(True, None, "its own address: never leaves the pod")
OWN_NODE = Said(True, None, "from the pod's own node")
NOT_TO_NODE = "a pod may not reach its own node: defaultEndpointToHostAction is Drop"


def restricted(changes: Changes, addresses: Collection[Address]) -> Changes:
    """Without the pods that have neither address: who else is in a set makes no difference to these two."""
    wanted = frozenset(addresses)
    return tuple(one for one in changes if not isinstance(one[2], Pod) or not wanted.isdisjoint(one[2].addresses))


def addresses_of(changes: Changes, name: str) -> tuple[Address, ...]:
    """Those of a pod, "namespace/pod"."""
    for _, _, found in changes:
        if isinstance(found, WorkloadEndpoint) and f"{found.namespace}/{found.pod or found.name}" == name:
            return found.addresses
    return next((one.addresses for kind, key, one in changes if key == name and isinstance(one, Pod)), ())


def has_staged(changes: Changes) -> bool:
    return any(kind == POLICY and getattr(found, "staged", None) is not None for kind, _, found in changes)


def as_if_enforced(changes: Changes) -> Changes:
    """With staged policies enforced."""
    written: list[Written] = [found for kind, _, found in changes if kind == POLICY]  # type: ignore[misc]
    policies: Iterator[Change] = ((POLICY, policy_key(one), one) for one in with_staged(tuple(written)))
    return (*(one for one in changes if one[0] != POLICY), *policies)


@dataclass(slots=True)
class Explainer:
    """Answers for one pair of addresses."""

    changes: Changes
    _engine: Engine = field(default_factory=Engine)
    _tables: PolicyTables = field(default_factory=PolicyTables)

    def __post_init__(self) -> None:
        self._engine.apply(self.changes)

    def name_at(self, address: Address) -> str:
        """The endpoint that has an address; "" if none does."""
        facts = self._engine.facts
        known = ((name, facts.endpoint(name)) for name in facts.names())
        return next((name for name, one in known if one is not None and address in one.addresses), "")

    def egress(self, flow: Flow, own: Collection[Address]) -> Said:
        """What the source says; `own` are the addresses of its node."""
        name = self.name_at(flow.source)
        if name and name == self.name_at(flow.destination):
            return OWN_ADDRESS
        return self.ask(name, EGRESS, flow, own, from_host=False) if name else NOT_POLICED

    def ingress(self, flow: Flow, own: Collection[Address], *, from_host: bool = False) -> Said:
        """What the destination says; `own` are the addresses of its node."""
        name = self.name_at(flow.destination)
        if name and name == self.name_at(flow.source):
            return OWN_ADDRESS
        return self.ask(name, INGRESS, flow, own, from_host=from_host) if name else NOT_POLICED

    def ask(self, name: str, direction: Direction, flow: Flow, own: Collection[Address], *, from_host: bool) -> Said:
        """What the compiled program of an endpoint says, and why."""
        self._engine.set_own(own)
        compiled = self._engine.compile({name: name})
        endpoint = self._engine.facts.endpoint(name)
        if endpoint is None or endpoint.closed:
            return Said(False, None, endpoint.closed if endpoint else "it has no interface of its own")
        policy = self._tables.build(compiled, {name: _PORT})
        ways = np.zeros(1, dtype_of("struct canal_way"))
        ways["source_pod"] = _PORT if direction == EGRESS else lib.CANAL_NO_POD
        ways["destination_pod"] = _PORT if direction == INGRESS else lib.CANAL_NO_POD
        ways["from_host"] = from_host
        found = judge(policy, flow_rows([flow]), ways)[0]
        allow = bool(found["verdict"] == lib.CANAL_ALLOW)
        ref = compiled.rules.get(int(found["rule"][_END[direction]]))
        if ref is None:  # the node's own traffic is not asked about
            return OWN_NODE if allow else Said(False, None, "no program: nothing passes")
        sources = self._engine.sources(name)
        assert sources is not None
        numbers = classes_of(self._tables, compiled.classes, [packed(flow.source), packed(flow.destination)])
        packet = Packet(flow, *(self._engine.seen_as(int(number)) for number in numbers))
        story = tell(sources[direction == INGRESS], packet)
        if not allow and ref.action == "Allow":
            return Said(False, ref, NOT_TO_NODE, story=story)
        return Said(allow, ref, ref.reason, bool(found["reject"]), story)
