"""Endpoints: the pods attached to this node, and the text by which they outlive the daemon. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import msgspec

from canal_udp.errors import ConfigError, RequestError

FILE_NAME = "endpoints.json"
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,252})?")
_LABEL_KEY = re.compile(
    r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's interface. `netns_id` tells its namespace from a later one at the same path."""

    name: str
    netns: str
    netns_id: str
    ifname: str
    ips: tuple[IPv4Address | IPv6Address, ...]
    labels: tuple[tuple[str, str], ...] = ()
    id: int = 0
    attachment: str = ""  # network/container id, of a container runtime's ADD


def check_name(name: str) -> str:
    """Return `name` if it is one.

    Raises     RequestError.
    """
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise RequestError(f"{name[:80]!a} is no name for an endpoint: namespace/pod of A-Z a-z 0-9 _ . -")
    return name


def parse_labels(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return labels given as key=value, sorted, with Kubernetes' rules for both.

    Raises     RequestError.
    """
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise RequestError(f"{text[:80]!a} is no label: key=value as in Kubernetes")
        labels[key] = value
    return tuple(sorted(labels.items()))


def change_labels(labels: Iterable[tuple[str, str]], changes: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return labels with changes: key=value sets one, key- takes it away.

    Raises     RequestError.
    """
    found = dict(labels)
    for text in changes:
        if text.endswith("-") and "=" not in text:
            found.pop(text.removesuffix("-"), None)
        else:
            found |= dict(parse_labels([text]))
    return tuple(sorted(found.items()))


def dump(endpoints: Iterable[Endpoint]) -> str:
    """Return the text of the state file."""
    rows = [
        {
            "name": one.name,
            "netns": one.netns,
            "netns_id": one.netns_id,
            "ifname": one.ifname,
            "ips": [str(ip) for ip in one.ips],
            "labels": dict(one.labels),
            **({"attachment": one.attachment} if one.attachment else {}),
        }
        for one in sorted(endpoints, key=lambda one: one.name)
    ]
    document = msgspec.json.encode({"version": _VERSION, "endpoints": rows})
    return msgspec.json.format(document, indent=1).decode("utf-8") + "\n"


def load(text: str, source: str) -> tuple[Endpoint, ...]:
    """Return the endpoints of a state file.

    Raises     ConfigError: better no start than pods whose addresses are given away.
    """
    try:
        document = json.loads(text)
        if document["version"] != _VERSION:
            raise ConfigError(f"version {document['version']!a}; this program writes {_VERSION}", source=source)
        return tuple(_endpoint(row, number) for number, row in enumerate(document["endpoints"], 1))
    except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise ConfigError(f"not a list of endpoints: {error}", source=source) from error


def _endpoint(row: dict[str, Any], number: int) -> Endpoint:
    return Endpoint(
        name=check_name(row["name"]),
        netns=str(row["netns"]),
        netns_id=str(row["netns_id"]),
        ifname=str(row["ifname"]),
        ips=tuple(ip_address(ip) for ip in row["ips"]),
        labels=tuple(sorted((str(key), str(value)) for key, value in row["labels"].items())),
        id=number,
        attachment=str(row.get("attachment", "")),
    )
