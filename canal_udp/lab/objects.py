"""The policies and namespaces of a lab: read from files and from the lab file itself, written into the lab's store.

Invariants All is checked before anything is made. The objects are in the store before the first pod is attached.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from canal_udp.api import call
from canal_udp.errors import LabError, UsageError
from canal_udp.lab import commands, host
from canal_udp.lab.model import Lab, Pod
from canal_udp.lab.state import LabState, PodAddress
from canal_udp.policy.cursor import Document
from canal_udp.policy.load import Loaded, load
from canal_udp.policy.reader import read_documents

TIMEOUT_S = 15.0
POLL_S = 0.03


def read(lab: Lab) -> Loaded:
    """All objects of a lab file. Raises UsageError that names every error with file, line and field."""
    loaded = load(_documents(lab))
    if loaded.errors:
        raise UsageError("\n".join(map(str, loaded.errors)))
    return loaded


def _documents(lab: Lab) -> Iterator[Document]:
    for name, labels in lab.namespaces.items():
        metadata = {"name": name, "labels": dict(labels)}
        yield Document({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, f"namespace {name}")
    for one in lab.policies:
        if isinstance(one, Document):
            yield one
            continue
        try:
            text = Path(one).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{one}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}") from None
        yield from read_documents(text, one)


def write(lab: Lab, lab_state: LabState, loaded: Loaded, strangers: Mapping[str, PodAddress]) -> None:
    """Put the objects into the lab's store, and the pods of nodes that run no daemon to tell of them."""
    items = [cursor.value for _, cursor in loaded.written]
    items += [_pod(lab.pods[name], address) for name, address in strangers.items()]
    if not items:
        return
    file = lab_state.path / "objects.json"
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
    file.write_text(f"{text}\n", encoding="utf-8")
    host.run(commands.policy_apply(lab, lab_state, file))


def _pod(pod: Pod, address: PodAddress) -> dict[str, Any]:
    labels = dict(label.split("=", 1) for label in pod.labels)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": labels},
        "spec": {"nodeName": pod.node},
        "status": {"podIPs": [{"ip": ip} for ip in address.ips]},
    }


def wait_known(lab: Lab, lab_state: LabState, node: str, policies: int) -> None:
    """Until a daemon knows all policies and pods of the lab. Raises LabError."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        found: dict[str, Any] = call(lab_state.run_dir(node), "status", timeout_s=2.0)["objects"]
        counts = found["counts"]
        if found["in_sync"] and counts.get("Pod", 0) >= len(lab.pods) and counts.get("Policy", 0) >= policies:
            return
        if time.monotonic() > deadline:
            raise LabError(f"node {node} knows {counts} of {len(lab.pods)} pods and {policies} policies")
        time.sleep(POLL_S)
