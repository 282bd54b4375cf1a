"""Flows as JSON lines: names to addresses, the verdict added to each; and the table of all pods against all.

Answer    the flow as it was asked, with "verdict", and for "egress" and "ingress" {verdict, tier, policy, rule}:
          rule counts from 0; -1 = no rule matched and the end of the tier decided; null = no policy was asked.
Family    a pod with two addresses is asked for in IPv4, unless the other end has only IPv6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import msgspec

from canal_udp.errors import RequestError
from canal_udp.net import Address, parse_address
from canal_udp.policy.evaluate import Evaluator
from canal_udp.policy.flow import SPORT_DEFAULT, Decision, Flow, Verdict
from canal_udp.policy.model import ICMP, ICMP6, PROTOCOLS, WITH_PORTS, Pod, State

_NUMBERS = {name.lower(): number for name, number in PROTOCOLS.items()}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_ECHO = {ICMP: 8, ICMP6: 128}
_SYNTHETIC = IPv4Address("240.0.0.1")  # reserved: no pod and no policy has such an address
_KEYS = ("protocol", "icmp_type", "icmp_code", "original_dst", "original_dport", "hairpin")
PORT_MAX = 65535


def with_addresses(state: State) -> State:
    """Pods of a file that were never started get an address, so that flows can be asked for by their names."""
    pods: dict[str, Pod] = {}
    given = 0
    for key, pod in state.pods.items():
        if not pod.addresses and not pod.host_network and not pod.finished:
            pod = replace(pod, addresses=(_SYNTHETIC + given,))
            given += 1
        pods[key] = pod
    return replace(state, pods=pods)


class Questions:
    """Answers lines. Questions whose ends and ports no policy can tell apart share one answer."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._names = evaluator.places.names
        self._decode, self._encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
        self._answers: dict[object, bytes] = {}
        self._kinds: dict[object, object] = {name: name for name in self._names}

    def answer(self, line: bytes) -> bytes:
        """One line of JSON for another; RequestError says what is wrong with it."""
        try:
            question = self._decode(line)
        except msgspec.DecodeError as error:
            raise RequestError(f"not JSON: {error}") from None
        if not isinstance(question, dict):
            raise RequestError("a flow is an object")
        try:
            key = self._key(question)
            tail = self._answers.get(key)
        except TypeError:
            raise RequestError("a flow holds words and numbers only") from None
        if tail is None:
            tail = self._answers[key] = self._tail(self._evaluator.verdict(self.flow(question)))
        head = self._encode(question)[:-1]
        return head + (b"," if len(head) > 1 else b"") + tail

    def _key(self, question: Mapping[str, Any]) -> tuple[object, ...]:
        get = question.get
        source, destination, sport, dport = get("src"), get("dst"), get("sport"), get("dport")
        return (
            self._kinds.get(source) or self._kind(source),
            self._kinds.get(destination) or self._kind(destination),
            self._port(sport),
            self._port(dport),
            *map(get, _KEYS),
        )

    def _kind(self, end: object) -> object:
        """What an address is for the policies; anything else stands for itself and is refused later."""
        try:
            address = parse_address(end) if isinstance(end, str) else None
        except ValueError:
            address = None
        return ("as it is", end) if address is None else self._evaluator.kind(address)

    def _port(self, port: object) -> object:
        if type(port) is int and 0 <= port <= PORT_MAX:
            return self._evaluator.port_class(port)
        return "as it is", port

    def _tail(self, verdict: Verdict) -> bytes:
        shown = {
            "verdict": "allow" if verdict.allow else "deny",
            "egress": show(verdict.egress),
            "ingress": show(verdict.ingress),
        }
        return self._encode(shown)[1:]

    def flow(self, question: Mapping[str, Any]) -> Flow:
        """A question as a flow; RequestError names the field."""
        source, destination = self._ends(question)
        protocol = _protocol(question.get("protocol"), source.version)
        original = None
        if question.get("original_dst") is not None:
            original = (_address(question["original_dst"]), _number(question, "original_dport", 0, PORT_MAX))
        return Flow(
            source,
            destination,
            protocol,
            _number(question, "sport", SPORT_DEFAULT if protocol in WITH_PORTS else 0, PORT_MAX),
            _number(question, "dport", 0, PORT_MAX),
            _number(question, "icmp_type", _ECHO.get(protocol, 0), 255),
            _number(question, "icmp_code", 0, 255),
            original,
            question.get("hairpin") is True,
        )

    def _ends(self, question: Mapping[str, Any]) -> tuple[Address, Address]:
        sources, destinations = self._addresses(question, "src"), self._addresses(question, "dst")
        for version in (4, 6):
            for source in sources:
                for destination in destinations:
                    if source.version == destination.version == version:
                        return source, destination
        raise RequestError(f"{question['src']} and {question['dst']} have no address family in common")

    def _addresses(self, question: Mapping[str, Any], end: str) -> tuple[Address, ...]:
        name = question.get(end)
        if not isinstance(name, str):
            raise RequestError(f'{end}: "namespace/pod" or an address is needed')
        if name in self._names:
            if not self._names[name]:
                raise RequestError(f"{end}: {name} has no address")
            return self._names[name]
        if "/" in name:
            raise RequestError(f"{end}: there is no pod {name}")
        return (_address(name),)


def _address(text: object) -> Address:
    try:
        return parse_address(str(text))
    except ValueError as error:
        raise RequestError(str(error)) from None


def _protocol(value: object, version: int) -> int:
    """`ICMP` means that of the flow's family."""
    if isinstance(value, str) and value.lower() in _NUMBERS:
        number = _NUMBERS[value.lower()]
        return ICMP6 if number == ICMP and version == 6 else number
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255:
        return value
    raise RequestError(f"protocol: one of {', '.join(PROTOCOLS)} or a number up to 255 is needed")


def _number(question: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = question.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise RequestError(f"{key}: a number from 0 to {most} is needed")
    return value


def show(decision: Decision) -> dict[str, object]:
    """A decision for JSON."""
    shown: dict[str, object] = {
        "verdict": decision.verdict,
        "tier": decision.tier or None,
        "policy": decision.policy or None,
        "rule": decision.rule,
    }
    if decision.reason:
        shown["reason"] = decision.reason
    if not decision.allow and decision.answer != "drop":
        shown["answer"] = decision.answer
    if decision.logs:
        shown["logs"] = decision.logs
    return shown


# ---- all against all -------------------------------------------------------------------------------------------------


def probes(state: State) -> list[tuple[int, int]]:
    """(port, protocol) that the pods say they listen on; TCP 80 when they say nothing."""
    found = {(port.port, port.protocol) for pod in state.pods.values() for port in pod.ports}
    return sorted(found) or [(80, PROTOCOLS["TCP"])]


def matrix(evaluator: Evaluator, ports: Iterable[tuple[int, int]]) -> Iterator[tuple[str, dict[str, str]]]:
    """For each port the pairs of pods as "source>destination" with two letters: egress and ingress, Allow or Deny."""
    names = sorted(name for name, addresses in evaluator.places.names.items() if addresses)
    for port, protocol in ports:
        table: dict[str, str] = {}
        for source in names:
            for destination in names:
                ends = _common(evaluator.places.names[source], evaluator.places.names[destination])
                if ends is not None:
                    verdict = evaluator.verdict(Flow(*ends, protocol, dport=port))
                    table[f"{source}>{destination}"] = "".join(
                        "A" if one.allow else "D" for one in (verdict.egress, verdict.ingress)
                    )
        yield f"{port}/{_NAMES.get(protocol, protocol)}", table


def _common(sources: tuple[Address, ...], destinations: tuple[Address, ...]) -> tuple[Address, Address] | None:
    pairs = ((one, other) for one in sources for other in destinations if one.version == other.version)
    return min(pairs, key=lambda pair: pair[0].version, default=None)
