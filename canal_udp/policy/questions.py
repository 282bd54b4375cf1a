"""Flows as JSON lines: names to addresses, the verdict added to each; and the table of all pods against all.

Answer    the flow as it was asked, with "verdict", and for "egress" and "ingress" {verdict, tier, policy, rule}:
          rule counts from 0; -1 = no rule matched and the end of the tier decided; null = no policy was asked.
          "pending", where it is asked for: the same as if the staged policies were enforced.
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
from canal_udp.policy.evaluate import End, Evaluator, Packet
from canal_udp.policy.flow import SPORT_DEFAULT, Decision, Flow, Verdict
from canal_udp.policy.model import ICMP, ICMP6, PROTOCOLS, WITH_PORTS, Pod, State

_NUMBERS = PROTOCOLS | {name.lower(): number for name, number in PROTOCOLS.items()}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_ECHO = {ICMP: 8, ICMP6: 128}
_SYNTHETIC = IPv4Address("240.0.0.1")  # reserved: no pod and no policy has such an address
_KEYS = ("protocol", "icmp_type", "icmp_code", "original_dst", "original_dport", "hairpin")
_ANSWER = ("verdict", "egress", "ingress", "pending")
_VERDICT = {True: b"allow", False: b"deny"}
PORT_MAX = 65535
TAILS_MAX = 2**20  # answers remembered


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
        self._ends: dict[str, tuple[End | None, End | None]] = {}
        self._tails: dict[object, bytes] = {}
        self._shown: dict[int, tuple[Decision, bytes]] = {}  # by id, which the decision beside it keeps from reuse

    def answer(self, line: bytes, pending: Questions | None = None) -> bytes:
        """One line of JSON for another; RequestError says what is wrong with it. `pending` adds its own verdict."""
        try:
            question = self._decode(line)
        except msgspec.DecodeError as error:
            raise RequestError(f"not JSON: {error}") from None
        if not isinstance(question, dict):
            raise RequestError("a flow is an object")
        tail = self._answer(question)
        if pending is not None:
            tail = b'%b,"pending":{%b}' % (tail[:-1], pending._answer(question))
        if "verdict" in question:  # a recorded flow: what was decided then is not repeated
            line = self._encode({name: value for name, value in question.items() if name not in _ANSWER})
        return line.rstrip()[:-1] + b"," + tail

    def _answer(self, question: Mapping[str, Any]) -> bytes:
        """The verdict as the end of an object."""
        source, destination = self._pair(question)
        key = self._key(question, source, destination)
        try:
            tail = self._tails.get(key)
        except TypeError:
            raise RequestError("a flow holds words and numbers only") from None
        if tail is None:
            if len(self._tails) == TAILS_MAX:
                self._tails.clear()
            tail = self._tails[key] = self._tail(question, source, destination)
        return tail

    def _key(self, question: Mapping[str, Any], source: End, destination: End) -> tuple[object, ...]:
        get, port = question.get, self._evaluator.classes.port
        sport, dport = get("sport"), get("dport")
        return (
            source.kind,
            destination.kind,
            port(sport) if type(sport) is int and 0 <= sport <= PORT_MAX else ("as it is", sport),
            port(dport) if type(dport) is int and 0 <= dport <= PORT_MAX else ("as it is", dport),
            *map(get, _KEYS),
        )

    def _tail(self, question: Mapping[str, Any], source: End, destination: End) -> bytes:
        packet = _packet(question, source.address.version)
        evaluator = self._evaluator
        if not _has_past(question) and evaluator.is_simple(source, destination):
            egress, ingress = evaluator.simple(source, destination, packet)
            shown = self._remembered(egress), self._remembered(ingress)
        else:
            verdict = evaluator.verdict(_flow(question, source, destination, packet))
            egress, ingress = verdict.egress, verdict.ingress
            shown = self._encode(show(egress)), self._encode(show(ingress))
        return b'"verdict":"%b","egress":%b,"ingress":%b}' % (_VERDICT[egress.allow and ingress.allow], *shown)

    def _remembered(self, decision: Decision) -> bytes:
        found = self._shown.get(id(decision))
        if found is None:
            found = self._shown[id(decision)] = decision, self._encode(show(decision))
        return found[1]

    def verdict(self, question: Mapping[str, Any]) -> Verdict:
        return self._evaluator.verdict(self.flow(question))

    def flow(self, question: Mapping[str, Any]) -> Flow:
        """A question as a flow; RequestError names the field."""
        source, destination = self._pair(question)
        return _flow(question, source, destination, _packet(question, source.address.version))

    def _pair(self, question: Mapping[str, Any]) -> tuple[End, End]:
        """The ends in a family that both have, IPv4 first."""
        source, destination = self._found(question, "src"), self._found(question, "dst")
        for one, other in zip(source, destination, strict=True):
            if one is not None and other is not None:
                return one, other
        raise RequestError(f"{question['src']} and {question['dst']} have no address family in common")

    def _found(self, question: Mapping[str, Any], end: str) -> tuple[End | None, End | None]:
        """The first addresses of a name in IPv4 and IPv6."""
        name = question.get(end)
        if not isinstance(name, str):
            raise RequestError(f'{end}: "namespace/pod" or an address is needed')
        found = self._ends.get(name)
        if found is None:
            by_version = {one.version: self._evaluator.end(one) for one in reversed(self._addresses(name, end))}
            found = self._ends[name] = by_version.get(4), by_version.get(6)
        return found

    def _addresses(self, name: str, end: str) -> tuple[Address, ...]:
        if name in self._names:
            if not self._names[name]:
                raise RequestError(f"{end}: {name} has no address")
            return self._names[name]
        if "/" in name:
            raise RequestError(f"{end}: there is no pod {name}")
        return (_address(name),)


def _has_past(question: Mapping[str, Any]) -> bool:
    """What happened to the packet before matters."""
    return "original_dst" in question or "hairpin" in question


def _flow(question: Mapping[str, Any], source: End, destination: End, packet: Packet) -> Flow:
    original = None
    if question.get("original_dst") is not None:
        original = (_address(question["original_dst"]), _number(question, "original_dport", 0, PORT_MAX))
    return Flow(source.address, destination.address, *packet, original, question.get("hairpin") is True)


def _packet(question: Mapping[str, Any], version: int) -> Packet:
    protocol = _protocol(question.get("protocol"), version)
    return (
        protocol,
        _number(question, "sport", SPORT_DEFAULT if protocol in WITH_PORTS else 0, PORT_MAX),
        _number(question, "dport", 0, PORT_MAX),
        _number(question, "icmp_type", _ECHO.get(protocol, 0), 255),
        _number(question, "icmp_code", 0, 255),
    )


def _address(text: object) -> Address:
    try:
        return parse_address(str(text))
    except ValueError as error:
        raise RequestError(str(error)) from None


def _protocol(value: object, version: int) -> int:
    """`ICMP` means that of the flow's family."""
    if isinstance(value, str):
        number = _NUMBERS.get(value) or _NUMBERS.get(value.lower())
        if number is not None:
            return ICMP6 if number == ICMP and version == 6 else number
        value = int(value) if value.isdecimal() else None
    if type(value) is int and 0 <= value <= 255:
        return value
    raise RequestError(f"protocol: one of {', '.join(PROTOCOLS)} or a number up to 255 is needed")


def _number(question: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = question.get(key, default)
    if type(value) is int and 0 <= value <= most:
        return value
    if value is None:
        return default
    raise RequestError(f"{key}: a number from 0 to {most} is needed")


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
        yield f"{port}/{PROTOCOL_NAMES.get(protocol, protocol)}", table


def _common(sources: tuple[Address, ...], destinations: tuple[Address, ...]) -> tuple[Address, Address] | None:
    pairs = ((one, other) for one in sources for other in destinations if one.version == other.version)
    return min(pairs, key=lambda pair: pair[0].version, default=None)
