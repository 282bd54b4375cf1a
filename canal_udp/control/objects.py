"""Policies and endpoints as they lie in the store: keys and values. Pure.

Policies   `<kind>/<namespace or _>/<name>` -> the object as JSON, one document. The kind is the one that verdicts name:
           KubernetesNetworkPolicy is that of networking.k8s.io, NetworkPolicy is Calico's.
Endpoints  `<node>/<namespace>/<pod>` -> {"name", "node", "ips", "labels", "ports"?}, written by the pod's node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, unquote

import msgspec

from canal_udp.endpoints import check_name
from canal_udp.errors import ConfigError, RequestError
from canal_udp.net import Address, printable
from canal_udp.policy.model import (
    CalicoPolicy,
    ClusterPolicy,
    KubePolicy,
    NetworkSet,
    Object,
    Settings,
)

NAMESPACED = frozenset((
    *("Pod", "ServiceAccount", "EndpointSlice", "WorkloadEndpoint", "NetworkSet"),
    *("KubernetesNetworkPolicy", "StagedKubernetesNetworkPolicy", "NetworkPolicy", "StagedNetworkPolicy"),
))  # fmt: skip
GLOBAL = frozenset((
    *("Namespace", "Node", "HostEndpoint", "GlobalNetworkSet", "Tier", "Profile", "FelixConfiguration"),
    *("ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"),
    *("GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"),
))  # fmt: skip
DEFAULT_NAMESPACE = "default"
VALUE_MAX_BYTES = 1 << 20  # etcd takes 1.5 MiB
_NOWHERE = "_"  # the namespace of what lies in none

# ---- policies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Which object an entry holds."""

    kind: str
    namespace: str  # "": it lies in none
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace or _NOWHERE}/{self.name}"


def object_key(found: Object) -> ObjectKey:
    match found:
        case KubePolicy() | ClusterPolicy() | CalicoPolicy():
            return ObjectKey(found.kind, found.namespace, found.name)
        case Settings():
            return ObjectKey("FelixConfiguration", "", "default")
        case NetworkSet() if not found.namespace:
            return ObjectKey("GlobalNetworkSet", "", found.name)
    return ObjectKey(type(found).__name__, getattr(found, "namespace", ""), found.name)


def parse_object_key(text: str) -> ObjectKey:
    """The object that a key names; ValueError if it names none."""
    kind, _, rest = text.partition("/")
    namespace, _, name = rest.partition("/")
    if not namespace or not name or "/" in name:
        raise ValueError("is no key of an object: kind/namespace/name")
    if kind not in NAMESPACED and kind not in GLOBAL:
        raise ValueError("is of a kind that this version does not know")
    if (kind in GLOBAL) != (namespace == _NOWHERE):
        raise ValueError(f"{kind} lies in {'no' if kind in GLOBAL else 'a'} namespace")
    return ObjectKey(kind, "" if kind in GLOBAL else namespace, name)


def object_value(document: object, source: str = "") -> bytes:
    """One document as the store's JSON; ConfigError if JSON cannot say it, or not in this length."""
    if field := _unsayable(document):
        raise ConfigError("JSON has no such number", source=source, field=field)
    value = msgspec.json.encode(document)
    if len(value) > VALUE_MAX_BYTES:
        raise ConfigError(f"{len(value)} bytes; a store takes {VALUE_MAX_BYTES}", source=source)
    return value


def _unsayable(value: object, path: str = "") -> str:
    """The field of a number that is infinite or none; "" if there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    if isinstance(value, dict):
        return next((bad for key, one in value.items() if (bad := _unsayable(one, f"{path}.{key}".lstrip(".")))), "")
    if isinstance(value, list):
        return next((bad for index, one in enumerate(value) if (bad := _unsayable(one, f"{path}[{index}]"))), "")
    return ""


def read_value(value: bytes, source: str) -> dict[str, object]:
    """The document of an entry; ConfigError if it is none."""
    if len(value) > VALUE_MAX_BYTES:
        raise ConfigError(f"longer than {VALUE_MAX_BYTES} bytes", source=source)
    try:
        document = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"not JSON: {printable(str(error))}", source=source) from None
    if not isinstance(document, dict):
        raise ConfigError("not a JSON object", source=source)
    return document


# ---- endpoints -------------------------------------------------------------------------------------------------------


class _Port(msgspec.Struct, frozen=True):
    name: str
    protocol: str
    port: int


class _Endpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    node: str
    ips: tuple[str, ...]
    labels: dict[str, str]
    ports: tuple[_Port, ...] = ()


@dataclass(frozen=True, slots=True)
class PodEntry:
    """An attached pod, as its node tells everybody."""

    node: str
    namespace: str
    pod: str
    ips: tuple[Address, ...]
    labels: Mapping[str, str]
    ports: tuple[tuple[str, str, int], ...] = ()  # name, protocol, number

    @property
    def key(self) -> str:
        return f"{node_prefix(self.node)}{self.namespace}/{self.pod}"

    @property
    def value(self) -> bytes:
        ports = tuple(_Port(*port) for port in self.ports)
        name, ips = f"{self.namespace}/{self.pod}", tuple(map(str, self.ips))
        return msgspec.json.encode(_Endpoint(name, self.node, ips, dict(self.labels), ports))


def node_prefix(node: str) -> str:
    """What the keys of a node's endpoints begin with; any text may be a node's name."""
    return f"{quote(node, safe='')}/"


def split_name(name: str) -> tuple[str, str]:
    """Namespace and pod of an endpoint's name."""
    namespace, slash, pod = name.partition("/")
    return (namespace, pod) if slash else (DEFAULT_NAMESPACE, name)


def parse_endpoint_key(text: str) -> tuple[str, str, str]:
    """Node, namespace and pod that a key names; ValueError if it names none."""
    node, _, name = text.partition("/")
    namespace, slash, pod = name.partition("/")
    try:
        check_name(name)
    except RequestError:
        slash = ""
    if not node or not slash:
        raise ValueError("is no key of an endpoint: node/namespace/pod")
    return unquote(node), namespace, pod


_decode_endpoint = msgspec.json.Decoder(_Endpoint).decode


def read_endpoint(key: str, value: bytes) -> PodEntry:
    """Read an endpoint that anyone may have written; ConfigError says what is wrong with it."""
    source = f"endpoints/{printable(key)}"
    try:
        node, namespace, pod = parse_endpoint_key(key)
        found = _decode_endpoint(value)
        ips = tuple(map(ip_address, found.ips))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(printable(str(error)), source=source) from None
    if (found.node, found.name) != (node, f"{namespace}/{pod}"):
        raise ConfigError(f"it calls itself {printable(found.name)} of {printable(found.node)}", source=source)
    ports = tuple((port.name, port.protocol, port.port) for port in found.ports)
    entry = PodEntry(node, namespace, pod, ips, found.labels, ports)
    if entry.key != key:
        raise ConfigError("the node's name is quoted in another way", source=source)
    return entry
