"""What all kinds share: metadata, names, the deny annotation, label selectors of Kubernetes."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from canal_udp.policy.cursor import Bad, Cursor, Table, Where
from canal_udp.policy.model import DENY_ANNOTATION, Answer, LabelSelector, PortRange, Requirement

PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_META = (
    *("name", "namespace", "labels", "annotations", "generateName", "uid", "resourceVersion", "generation", "selfLink"),
    *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers"),
    *("managedFields", "clusterName"),
)
_NULLABLE = ("podSelector",)  # required by Kubernetes, but null means the same as {}
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True)
class Meta:
    name: str
    namespace: str
    labels: dict[str, str]
    answer: Answer
    where: Where


def read_meta(document: Cursor, *, namespaced: bool) -> Meta:
    """Name, namespace ("default" if not given) and labels; what has no name gets one, so that it is not lost."""
    meta = _mapping(document.table(None), "metadata", _META)
    if "name" not in meta:
        meta.cursor.fail("name is missing")
    name = meta.read("name", _name, "") or f"unnamed-{document.where.line}"
    namespace = ""
    if namespaced:
        namespace = meta.read("namespace", _name, "default")
    elif "namespace" in meta:
        meta.at("namespace").fail("this kind lies in no namespace")
    return Meta(name, namespace, meta.read("labels", Cursor.labels, {}), _answer(meta), document.where)


def read_spec(document: Cursor, known: tuple[str, ...], *, required: tuple[str, ...] = ()) -> Table:
    """The spec of a kind whose fields must all be known; one that is no mapping is noted and empty."""
    spec = _mapping(document.table(_TOP), "spec", known)
    for key in required:
        if spec.values.get(key) is None and not (key in spec.values and key in _NULLABLE):
            spec.cursor.fail(f"{key} is missing")
    return spec


def open_table(table: Table, key: str, read: tuple[str, ...]) -> Table:
    """A part of an object that has many fields of no interest; one that looks like a field that is read is noted."""
    found = _mapping(table, key, None)
    note_typos(found, read)
    return found


def note_typos(table: Table, read: tuple[str, ...]) -> None:
    for key in table:
        if key not in read and (close := difflib.get_close_matches(str(key), read, n=1, cutoff=0.8)):
            table.at(key).fail(f"unknown field; did you mean {close[0]!r}?")


def _mapping(top: Table, key: str, known: tuple[str, ...] | None) -> Table:
    nothing = top.cursor.child(key, {})
    return top.read(key, lambda cursor: cursor.table(known), Table(nothing, {}))


def _name(cursor: Cursor) -> str:
    if not _NAME.fullmatch(text := cursor.text()):
        raise cursor.fail(f"{text!r} is no name: lower case letters, digits, inner dashes and dots")
    return text


def _answer(meta: Table) -> Answer:
    annotations = meta.read("annotations", lambda cursor: cursor.table(None), None)
    if annotations is None or DENY_ANNOTATION not in annotations:
        return "drop"
    return (
        "reject"
        if annotations.read(DENY_ANNOTATION, lambda c: c.choice(("drop", "reject")), "") == "reject"
        else "drop"
    )


def read_selector(cursor: Cursor) -> LabelSelector:
    """A LabelSelector; every error in it makes it Bad, because half a selector selects more."""
    since = cursor.errors
    table = cursor.table(("matchLabels", "matchExpressions"))
    labels = tuple(sorted(table.read("matchLabels", Cursor.labels, {}).items()))
    selector = LabelSelector(labels, table.each("matchExpressions", _requirement))
    if error := cursor.first_error(since):
        raise Bad(error)
    return selector


def _requirement(cursor: Cursor) -> Requirement:
    table = cursor.table(("key", "operator", "values"), required=("key", "operator"))
    if "key" not in table or "operator" not in table:
        raise Bad("key and operator are needed")
    key, operator = table.at("key").text(), table.at("operator").choice(_OPERATORS)
    values = table.each("values", Cursor.text)
    if operator in ("In", "NotIn") and not values:
        raise cursor.fail(f"values: {operator} needs at least one")
    if operator in ("Exists", "DoesNotExist") and values:
        raise cursor.fail(f"values: {operator} takes none")
    return Requirement(key, operator, values)  # type: ignore[arg-type]


def read_port(cursor: Cursor) -> int:
    return cursor.integer(1, 65535)


def read_port_name(cursor: Cursor) -> str:
    if not PORT_NAME.fullmatch(text := cursor.text()):
        raise cursor.fail(f"{text!r} is no port name: up to 15 lower case letters, digits and inner dashes")
    return text


def one_port(number: int) -> PortRange:
    return PortRange(number, number)


def reject(table: Table, field: str, reason: str) -> None:
    """Note a field that exists in the API and is not implemented."""
    if field in table:
        table.at(field).fail(f"not supported: {reason}")
