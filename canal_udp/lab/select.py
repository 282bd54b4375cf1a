"""The words by which a lab file names pods: all, a name, a label, a namespace, a list of those. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from canal_udp.lab.reader import Cursor, suggest

if TYPE_CHECKING:
    from canal_udp.lab.model import Pod


def select(cursor: Cursor, pods: Mapping[str, Pod], nodes: Collection[str] = ()) -> tuple[str, ...]:
    """Names that `all`, `name`, `key=value`, `namespace/` or a list of those stand for; a node only by its name."""
    chosen: dict[str, None] = {}
    for item in cursor.items():
        chosen |= dict.fromkeys(_select(item, pods, nodes))
    return tuple(chosen)


def _select(item: Cursor, pods: Mapping[str, Pod], nodes: Collection[str]) -> list[str]:
    word = item.text()
    if word == "all":
        return list(pods)
    if "=" in word:
        return _known([pod.name for pod in pods.values() if word in pod.labels], item, "label", _labels(pods))
    if word.endswith("/"):
        found = [pod.name for pod in pods.values() if pod.namespace == word[:-1]]
        return _known(found, item, "namespace", {f"{pod.namespace}/" for pod in pods.values()})
    return [item.choice((*pods, *nodes), "pod or node" if nodes else "pod")]


def _labels(pods: Mapping[str, Pod]) -> set[str]:
    return {label for pod in pods.values() for label in pod.labels}


def _known(found: list[str], item: Cursor, what: str, known: Collection[str]) -> list[str]:
    if not found:
        raise item.fail(f"no pod has the {what} {item.text()}; {suggest(item.text(), known)}")
    return found
