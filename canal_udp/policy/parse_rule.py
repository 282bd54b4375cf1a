"""One rule of a Calico policy or profile: its fields, and the combinations that mean nothing and are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from canal_udp.net import Network
from canal_udp.policy.cursor import Bad, Cursor, Table
from canal_udp.policy.model import (
    EVERYTHING,
    ICMP,
    ICMP6,
    INGRESS,
    PROTOCOLS,
    WITH_PORTS,
    Action,
    CalicoRule,
    Direction,
    Entity,
    IcmpMatch,
    PortRange,
    ServiceAccountMatch,
)
from canal_udp.policy.parse_common import one_port, reject
from canal_udp.policy.selector import Global, Selector, SelectorError, leaves, parse

NETS_MAX, PORTS_MAX, SELECTOR_MAX = 256, 50, 1024
_NO_HTTP = "only addresses, protocols and ports are looked at; without http the rule would allow more than it says"
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_RANGE = re.compile(r"([0-9]+)(?::([0-9]+))?")
_DIGITS_MAX = 5
_ACTIONS: dict[str, Action] = {"Allow": "Allow", "Deny": "Deny", "Pass": "Pass", "Log": "Log"}
_PROTOCOLS = {name.lower(): number for name, number in PROTOCOLS.items()}
_RULE = (
    *("action", "metadata", "ipVersion", "protocol", "notProtocol", "icmp", "notICMP"),
    *("source", "destination", "http"),
)
_ENTITY = (
    *("nets", "notNets", "selector", "notSelector", "namespaceSelector", "services", "ports", "notPorts"),
    "serviceAccounts",
)
_NOT_WITH_SERVICES = ("selector", "notSelector", "namespaceSelector", "nets", "notNets", "serviceAccounts")


def selector(cursor: Cursor, *, may_be_global: bool = False) -> Selector:
    """A selector; global() only where it has a meaning."""
    text = cursor.text()
    if len(text) > SELECTOR_MAX:
        raise cursor.fail(f"{len(text)} characters; at most {SELECTOR_MAX} are allowed")
    try:
        found = parse(text)
    except SelectorError as error:
        raise cursor.fail(f"not a selector: {error}") from None
    if any(isinstance(leaf, Global) for leaf in leaves(found.root)) and not (
        may_be_global and isinstance(found.root, Global)
    ):
        raise cursor.fail("global() stands alone in the namespaceSelector of a rule, and nowhere else")
    return found


def protocol_number(cursor: Cursor) -> int:
    if isinstance(cursor.value, str) and not cursor.value.isdecimal():
        number = _PROTOCOLS.get(cursor.value.lower())
        if number is None:
            cursor.choice(tuple(PROTOCOLS))
        return number or 0
    number = int(cursor.value) if isinstance(cursor.value, str) else cursor.integer(1, 255)
    if not 1 <= number <= 255:
        raise cursor.fail(f"{number} is not between 1 and 255")
    return number


def read_rule(cursor: Cursor, direction: Direction, *, namespaced: bool) -> CalicoRule:
    """A rule; one with an error keeps its action and the reason, and nothing that it matches."""
    since, action = cursor.errors, "Deny"
    rule = CalicoRule("Deny", where=cursor.where)
    try:
        table = cursor.table(_RULE, required=("action",))
        action = _ACTIONS[table.read("action", lambda one: one.choice(tuple(_ACTIONS)), "Deny")]
        rule = CalicoRule(
            action,
            table.read("ipVersion", _version, None),
            table.read("protocol", protocol_number, None),
            table.read("notProtocol", protocol_number, None),
            table.read("icmp", _icmp, None),
            table.read("notICMP", _icmp, None),
            _entity(table, "source", direction, namespaced=namespaced),
            _entity(table, "destination", direction, namespaced=namespaced),
            cursor.where,
        )
        table.read("metadata", _annotations, None)
        reject(table, "http", _NO_HTTP)
        _check_rule(table, rule)
    except Bad:
        pass  # noted; the reason is kept below
    error = cursor.first_error(since)
    return broken_rule(replace(rule, action=action), error) if error else rule  # type: ignore[arg-type]


def broken_rule(rule: CalicoRule, reason: str) -> CalicoRule:
    return CalicoRule(rule.action, where=rule.where, broken=reason)


def _annotations(cursor: Cursor) -> None:
    """For people: they change nothing, and a word that is no annotation is a mistake all the same."""
    cursor.table(("annotations",)).read("annotations", Cursor.labels, {})


def _version(cursor: Cursor) -> Literal[4, 6]:
    if cursor.value not in (4, 6) or isinstance(cursor.value, bool):
        raise cursor.fail("4 or 6 is needed here")
    return 4 if cursor.value == 4 else 6


def _icmp(cursor: Cursor) -> IcmpMatch:
    table = cursor.table(("type", "code"))
    match = IcmpMatch(
        table.read("type", lambda one: one.integer(0, 254), None),
        table.read("code", lambda one: one.integer(0, 255), None),
    )
    if match.code is not None and match.type is None:
        raise cursor.fail("a code needs a type")
    return match


# ---- one end ---------------------------------------------------------------------------------------------------------


def _entity(table: Table, end: str, direction: Direction, *, namespaced: bool) -> Entity:
    if end not in table:
        return Entity()
    fields = table.at(end).table(_ENTITY)
    entity = Entity(
        fields.each("nets", Cursor.net_or_address, NETS_MAX),
        fields.each("notNets", Cursor.net_or_address, NETS_MAX),
        fields.read("selector", selector, None),
        fields.read("notSelector", selector, None),
        fields.read("namespaceSelector", lambda one: selector(one, may_be_global=True), None),
        fields.read("serviceAccounts", _service_accounts, None),
        fields.read("services", lambda one: _service(one, namespaced=namespaced), None),
        fields.each("ports", _port, PORTS_MAX),
        fields.each("notPorts", _port, PORTS_MAX),
    )
    _check_entity(fields, end, direction, entity)
    return entity


def _service_accounts(cursor: Cursor) -> ServiceAccountMatch | None:
    table = cursor.table(("names", "selector"))
    names = table.each("names", Cursor.text)
    chosen = table.read("selector", selector, None)
    return ServiceAccountMatch(names, chosen) if names or chosen is not None else None


def _service(cursor: Cursor, *, namespaced: bool) -> tuple[str, str]:
    table = cursor.table(("name", "namespace"), required=("name",) if namespaced else ("name", "namespace"))
    return table.read("namespace", Cursor.text, ""), table.read("name", Cursor.text, "")


def _port(cursor: Cursor) -> PortRange | str:
    if not isinstance(cursor.value, str):
        return one_port(cursor.integer(1, 65535))
    if match := _RANGE.fullmatch(cursor.value):
        words = match[1], match[2] or match[1]
        first, last = (int(word) if len(word) <= _DIGITS_MAX else 0 for word in words)
        if not 1 <= first <= last <= 65535:
            raise cursor.fail(f"{cursor.value!r} is no range of ports from 1 to 65535")
        return PortRange(first, last)
    if not _PORT_NAME.fullmatch(cursor.value):
        raise cursor.fail(f"{cursor.value!r} is neither a port, a range first:last nor a port name")
    return cursor.value


def _check_entity(fields: Table, end: str, direction: Direction, entity: Entity) -> None:
    for net in entity.not_nets:
        if net in EVERYTHING:
            fields.at("notNets").fail(f"without {net} nothing is left")
    if entity.service is None:
        return
    right_end = "source" if direction == INGRESS else "destination"
    if end != right_end:
        fields.at("services").fail(f"in {direction} rules it is the {right_end} that may be a service")
    for field in (*_NOT_WITH_SERVICES, *(("ports", "notPorts") if end == "destination" else ())):
        if field in fields:
            fields.at(field).fail("does not go with services")


# ---- the whole rule --------------------------------------------------------------------------------------------------


def _check_rule(table: Table, rule: CalicoRule) -> None:
    for end, entity in (("source", rule.source), ("destination", rule.destination)):
        numeric = [port for port in (*entity.ports, *entity.not_ports) if not isinstance(port, str)]
        if numeric and rule.protocol not in WITH_PORTS:
            table.at(end).fail("ports need protocol TCP, UDP or SCTP")
    _check_icmp(table, rule)
    families = {net.version for net in _nets(rule)}
    if rule.protocol in (ICMP, ICMP6):
        implied = 4 if rule.protocol == ICMP else 6
        if rule.ip_version not in (None, implied):
            table.at("protocol").fail(f"does not go with ipVersion {rule.ip_version}")
        if families - {implied}:
            table.at("protocol").fail(f"does not go with networks of IPv{10 - implied}")
    if families == {4, 6}:
        table.cursor.fail("networks of both families; write one rule for each")
    elif rule.ip_version is not None and families - {rule.ip_version}:
        table.at("ipVersion").fail(f"does not go with networks of IPv{10 - rule.ip_version}")


def _check_icmp(table: Table, rule: CalicoRule) -> None:
    for field, given in (("icmp", rule.icmp), ("notICMP", rule.not_icmp)):
        if given is not None and rule.protocol not in (ICMP, ICMP6):
            table.at(field).fail("needs protocol ICMP or ICMPv6")


def _nets(rule: CalicoRule) -> tuple[Network, ...]:
    return (*rule.source.nets, *rule.source.not_nets, *rule.destination.nets, *rule.destination.not_nets)
