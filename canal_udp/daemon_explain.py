"""Answers to `canal explain`: a question as a flow, both ends explained, the route, the live flow, the pending verdict.

Place        what is in force at an end here is asked of the data plane; a pod elsewhere is explained from the same
             objects, as its node decides.
Threads      compiling takes place in a thread; the objects that it reads do not change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from canal_udp.control.objects import split_name
from canal_udp.daemon_flows import FlowLog, Names, rule_row
from canal_udp.errors import RequestError
from canal_udp.explain import Explainer, Said, addresses_of, as_if_enforced, has_staged, restricted
from canal_udp.net import Address, parse_address
from canal_udp.policy.cluster import Changes
from canal_udp.policy.explain import Story
from canal_udp.policy.flow import SPORT_DEFAULT, Flow
from canal_udp.policy.model import EGRESS, ICMP, ICMP6, INGRESS, WITH_PORTS, Direction

if TYPE_CHECKING:
    from canal_udp.daemon import Daemon

Row = dict[str, Any]
_ECHO = {ICMP: 8, ICMP6: 128}
LIVE_MAX = 5  # flows of conntrack that are shown


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one end of a flow is decided: its pod's node and that node's own addresses."""

    pod: str
    node: str | None
    own: frozenset[Address]
    port: str | None  # name of the endpoint, if it is one of ours


class Explanations:
    """See the module's docstring. thread: the loop's."""

    def __init__(self, daemon: Daemon, log: FlowLog) -> None:
        self._daemon, self._log = daemon, log

    async def answer(self, request: Mapping[str, Any]) -> Row:
        """Explain one flow; RequestError says what cannot be asked."""
        changes = self._daemon.objects.cluster.everything()
        flow = _flow(changes, request)
        from_host = request.get("from_host") is True
        changes = restricted(changes, (flow.source, flow.destination))
        names = Names(self._daemon)
        places: dict[Direction, _Place] = {
            EGRESS: self._place(names, flow.source),
            INGRESS: self._place(names, flow.destination),
        }
        from_host = from_host or flow.source in places[INGRESS].own
        egress, ingress = await asyncio.to_thread(_ask, changes, flow, places, from_host)
        ends: dict[str, Row] = {
            EGRESS: self._end(EGRESS, egress, flow, places[EGRESS], from_host),
            INGRESS: self._end(INGRESS, ingress, flow, places[INGRESS], from_host),
        }
        allow = all(end["verdict"] == "allow" for end in ends.values())
        row = {"verdict": _word(allow), **_question(flow, names), "from_host": from_host, **ends}
        if has_staged(changes):
            pending = await asyncio.to_thread(_ask, as_if_enforced(changes), flow, places, from_host)
            row["pending"] = {
                "verdict": _word(all(said.allow for said in pending)),
                "egress": _said(pending[0]),
                "ingress": _said(pending[1]),
            }
        return row | {"route": self._route(flow), "live": self._log.between(flow, LIVE_MAX)}

    def _place(self, names: Names, address: Address) -> _Place:
        party = names.of(address)
        if party.labels is None:
            return _Place("", None, names.own_of(party.node), None)
        here = party.node == self._daemon.name
        endpoints = self._daemon.node.endpoints if here else ()
        port = next((one for one in endpoints if "/".join(split_name(one)) == party.name), None)
        return _Place(party.name or "", party.node, names.own_of(party.node), port)

    def _end(self, direction: Direction, said: Said, flow: Flow, place: _Place, from_host: bool) -> Row:
        row = {"pod": place.pod or None, "node": place.node, "here": place.port is not None}
        if place.port is None or said.story is None:
            return row | _said(said) | {"in_force": None, "tiers": _story(said.story)}
        plane, compiled = self._daemon.dataplane, self._daemon.policy.compiled
        ends = (place.port, None) if direction == EGRESS else (None, place.port)
        judged = plane.judge(flow, *ends, from_host=from_host and direction == INGRESS)
        if judged is None or compiled is None:
            nothing = Said(False, None, "no policies are known yet: nothing passes")
            return row | _said(nothing) | {"in_force": False, "tiers": _story(said.story)}
        ref = compiled.rules.get(judged.rules[direction == INGRESS])
        if (judged.allow, ref) == (said.allow, said.ref):
            return row | _said(said) | {"in_force": True, "tiers": _story(said.story)}
        older = Said(judged.allow, ref, ref.reason if ref else "", judged.reject)
        return row | _said(older) | {"in_force": False, "known": _said(said), "tiers": _story(said.story)}

    def _route(self, flow: Flow) -> Row:
        """Where packets to the destination go from here, and how large they may be."""
        route = self._daemon.dataplane.route
        target, mtu = route(flow.destination)
        return {"to": target, "mtu": mtu or self._daemon.node.mtu, "comes_from": route(flow.source)[0]}


def _ask(changes: Changes, flow: Flow, places: Mapping[Direction, _Place], from_host: bool) -> tuple[Said, Said]:
    """thread: any."""
    explainer = Explainer(changes)
    return (
        explainer.egress(flow, places[EGRESS].own),
        explainer.ingress(flow, places[INGRESS].own, from_host=from_host),
    )


# ---- the question ----------------------------------------------------------------------------------------------------


def _flow(changes: Changes, request: Mapping[str, Any]) -> Flow:
    sources, destinations = _addresses(changes, request, "src"), _addresses(changes, request, "dst")
    pairs = [(one, other) for one in sources for other in destinations if one.version == other.version]
    if not pairs:
        raise RequestError(f"{request['src']} and {request['dst']} have no address family in common")
    source, destination = min(pairs, key=lambda pair: pair[0].version)
    protocol = _number(request, "protocol", 255)
    if protocol == ICMP and source.version == 6:
        protocol = ICMP6
    ports = protocol in WITH_PORTS
    return Flow(
        source,
        destination,
        protocol,
        _number(request, "sport", 65535, SPORT_DEFAULT) if ports else 0,
        _number(request, "dport", 65535, 0) if ports else 0,
        _number(request, "icmp_type", 255, _ECHO.get(protocol, 0)),
        _number(request, "icmp_code", 255, 0),
    )


def _addresses(changes: Changes, request: Mapping[str, Any], end: str) -> tuple[Address, ...]:
    name = request.get(end)
    if not isinstance(name, str):
        raise RequestError(f"{end}: namespace/pod or an address is needed")
    if "/" in name:
        found = addresses_of(changes, name)
        if not found:
            raise RequestError(f"{end}: there is no pod {name[:100]!a}, or it has no address")
        return found
    try:
        return (parse_address(name),)
    except ValueError as error:
        raise RequestError(f"{end}: {error}; a pod is namespace/pod") from None


def _number(request: Mapping[str, Any], key: str, most: int, default: int | None = None) -> int:
    value = request.get(key)
    if value is None and default is not None:
        return default
    if type(value) is int and 0 <= value <= most:
        return value
    raise RequestError(f"{key}: a number from 0 to {most} is needed")


# ---- the answer ------------------------------------------------------------------------------------------------------


def _question(flow: Flow, names: Names) -> Row:
    ends = {"src": str(flow.source), "dst": str(flow.destination)}
    numbers = {"sport": flow.sport, "dport": flow.dport} if flow.protocol in WITH_PORTS else {}
    if flow.protocol in (ICMP, ICMP6):
        numbers = {"icmp_type": flow.icmp_type, "icmp_code": flow.icmp_code}
    who = names.of(flow.source).fields("src") | names.of(flow.destination).fields("dst")
    return {**ends, "protocol": flow.protocol, **numbers, **who}


def _said(said: Said) -> Row:
    row: Row = {"verdict": _word(said.allow)}
    row |= rule_row(said.ref) if said.ref else {"action": None, "tier": None, "policy": None, "rule": None}
    if said.reason:
        row["reason"] = said.reason
    if not said.allow:
        row["answer"] = "reject" if said.reject else "drop"
    return row


def _story(story: Story | None) -> list[Row]:
    if story is None:
        return []
    return [
        {
            "tier": tier.name or None,
            "policies": [
                {
                    "policy": policy.key,
                    "where": str(policy.where) or None,
                    "note": policy.note or None,
                    "rules": [
                        {
                            "rule": rule.index,
                            "action": rule.action,
                            "where": str(rule.where) or None,
                            "held": rule.held,
                            "misses": list(rule.misses),
                        }
                        for rule in policy.rules
                    ],
                }
                for policy in tier.policies
            ],
            "end": tier.end,
        }
        for tier in story.tiers
    ]


def _word(allow: bool) -> str:
    return "allow" if allow else "deny"
