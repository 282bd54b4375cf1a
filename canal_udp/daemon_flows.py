"""The flow log: what conntrack holds and what policy denied, with the names of both ends and the rules that decided.

Structure    Dataplane.flows, Dataplane.notes ─► since when? ─► Names (pods, nodes), rules ─► rows for the API
Invariants   The daemon remembers nothing for those who follow: they say up to when they know, and get what moved since.
             The data plane's tables are bounded, and so is an answer; it says when not all did fit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from canal_udp.net import Address
from canal_udp.policy import flow as packets
from canal_udp.policy.compiled import RuleRef
from canal_udp.policy.cursor import NOWHERE
from canal_udp.policy.model import PROTOCOLS, WITH_PORTS
from canal_udp.readings import Flow, Note

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon

Kind: TypeAlias = Literal["flows", "denied", "logged"]
Row: TypeAlias = dict[str, Any]
KINDS: tuple[Kind, ...] = get_args(Kind)
FLOWS_A_TURN = 500
OVERLAP_MS = 50  # what the worker saw in a batch that is not over yet comes again with the next answer

_NAMES = {number: name for name, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Party:
    """Who has an address, as far as it is known."""

    name: str | None = None  # "namespace/pod"; of a node its name
    node: str | None = None
    labels: Mapping[str, str] | None = None

    def fields(self, end: str) -> Row:
        return {f"{end}_name": self.name, f"{end}_node": self.node, f"{end}_labels": self.labels}


class FlowLog:
    """See the module's docstring. thread: the loop's."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def read(self, kind: Kind, since_ms: int, limit: int) -> Row:
        """Rows of what had packets after since_ms; `now_ms` is for the next call; `more`: not all did fit."""
        now_ms = time.monotonic_ns() // 1_000_000
        found = self._flows(since_ms) if kind == "flows" else self._notes(kind, since_ms)
        rows: list[Row] = []
        for row in islice(found, limit):
            rows.append(row)
            if len(rows) % FLOWS_A_TURN == 0:  # a full table takes seconds, and the lease wants to be renewed
                await asyncio.sleep(0)
        return {"now_ms": now_ms - OVERLAP_MS, "rows": rows, "more": next(found, None) is not None}

    def between(self, asked: packets.Flow, limit: int) -> list[Row]:
        """The flows in conntrack that are like the one asked about, from whatever port."""
        found = self._rows(self._daemon.dataplane.flows(ends=(asked.source, asked.destination)))
        alike = (row for row in found if (row["proto"], row["dport"]) == (asked.protocol, asked.dport))
        return list(islice(alike if asked.protocol in WITH_PORTS else found, limit))

    def _flows(self, since_ms: int) -> Iterator[Row]:
        return self._rows(self._daemon.dataplane.flows(since_ms))

    def _rows(self, flows: Iterable[Flow]) -> Iterator[Row]:
        now, names = time.time(), self._names()
        for flow in flows:
            yield (
                _ends(flow, names)
                | {"came_from": flow.came_from, "goes_to": flow.goes_to, "state": flow.state, "verdict": flow.verdict}
                | self._said(flow.rules)
                | {"packets": list(flow.packets), "bytes": list(flow.bytes), "rules": list(flow.rules)}
                | {"first_seen": _moment(now, flow.age_ms), "last_seen": _moment(now, flow.idle_ms)}
                | {name: getattr(flow, name) for name in ("generation", "age_ms", "idle_ms", "expires_ms")}
            )

    def _notes(self, kind: Kind, since_ms: int) -> Iterator[Row]:
        notes, now_ms = self._daemon.dataplane.notes(since_ms)
        now, names = time.time(), self._names()
        for note in sorted(notes, key=lambda one: one.last_ms):
            if (note.verdict == "deny") if kind == "denied" else any(note.logs):
                yield self._note(note, names, now, now_ms)

    def _note(self, note: Note, names: Names, now: float, now_ms: int) -> Row:
        denied = note.verdict == "deny"
        return (
            _ends(note, names)
            | {"icmp_type": note.icmp_type, "icmp_code": note.icmp_code}
            | {"came_from": note.came_from, "verdict": note.verdict}
            | ({"reason": "rejected" if note.reject else "policy", "denied_by": note.end} if denied else {})
            | self._said(note.rules)
            | {"log": {end: self._rule(rule) for end, rule in zip(_ENDS, note.logs, strict=True) if rule}}
            | {"packets": [note.packets, 0], "bytes": [note.bytes, 0], "rules": list(note.rules)}
            | {"first_seen": _moment(now, now_ms - note.first_ms), "last_seen": _moment(now, now_ms - note.last_ms)}
        )

    # rules

    def _said(self, rules: tuple[int, int]) -> Row:
        return {end: self._rule(rule) for end, rule in zip(_ENDS, rules, strict=True)}

    def _rule(self, number: int) -> Row | None:
        """What decided; None: that end has no policy here, or was not asked."""
        found = self._rules.get(number)
        return rule_row(found) if found else None

    @property
    def _rules(self) -> Mapping[int, RuleRef]:
        compiled = self._daemon.policy.compiled
        return compiled.rules if compiled else {}

    def hits(self) -> list[Row]:
        """Every rule that governed a pod of this node, and how often it decided; None where it is not counted."""
        rules = dict(self._rules)
        counts = self._daemon.dataplane.hits(max(rules, default=-1) + 1)
        return [
            {"direction": ref.direction} | rule_row(ref) | {"hits": counts[number] if number < len(counts) else None}
            for number, ref in sorted(rules.items())
            if ref.policy
        ]

    # names

    def _names(self) -> Names:
        return Names(self._daemon)


class Names:
    """Who has which address now."""

    def __init__(self, daemon: Daemon) -> None:
        self._cluster = daemon.objects.cluster
        self._own: dict[str | None, frozenset[Address]] = {}
        for lease in daemon.node.leases.leases if daemon.node.leases else ():
            found = (lease.public_ip, lease.public_ip6, *(net.network_address for net in lease.prefixes))
            self._own[lease.node or None] = frozenset(address for address in found if address is not None)
        self._own[daemon.name] = daemon.node.own_addresses
        self._known = {address: Party(node, node) for node, addresses in self._own.items() for address in addresses}

    def own_of(self, node: str | None) -> frozenset[Address]:
        """The addresses of a node itself."""
        return self._own.get(node, frozenset())

    def of(self, address: Address) -> Party:
        found = self._known.get(address)
        if found is None:
            pod = self._cluster.pod_at(address)
            found = Party(f"{pod.namespace}/{pod.name}", pod.node or None, pod.labels) if pod else Party()
            self._known[address] = found
        return found


_ENDS = ("egress", "ingress")


def rule_row(ref: RuleRef) -> Row:
    """A rule for JSON; `rule` -1: none matched, and the end of the tier or of everything decided."""
    row: Row = {"action": ref.action, "tier": ref.tier or None, "policy": ref.policy or None, "rule": ref.rule}
    if ref.reason:
        row["reason"] = ref.reason
    if ref.where != NOWHERE:
        row["where"] = str(ref.where)
    return row


def _ends(one: Flow | Note, names: Names) -> Row:
    return (
        {"src": str(one.src), "sport": one.sport, "dst": str(one.dst), "dport": one.dport, "proto": one.proto}
        | {"protocol": _NAMES.get(one.proto, str(one.proto))}
        | names.of(one.src).fields("src")
        | names.of(one.dst).fields("dst")
    )


def _moment(now: float, ago_ms: int) -> str:
    return datetime.fromtimestamp(now - ago_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
