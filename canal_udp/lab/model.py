"""The lab file: what a lab is made of, read from YAML and checked as a whole. Pure.

Structure Lab = underlay networks joined by routers, nodes on them, pods on nodes, one overlay, impairments, checks,
          namespaces and policies for the pods, and the truth table that these are held to.
Invariants every name of a node, pod, router and network is unique in its lab (they become namespaces `<lab>-<name>`);
          every reference is to something that exists. The one way to make a Lab is `parse_lab`, also for `--nodes N`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, get_args

from canal_udp.lab.impair import Impairment
from canal_udp.lab.reader import Cursor, rate_bits, read_yaml, size_bytes, suggest
from canal_udp.lab.select import select
from canal_udp.lab.truth import Entry, read_entry
from canal_udp.policy.cursor import Document
from canal_udp.policy.reader import document_of

Subnet = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Profile = Literal["wire", "native"]
Joint = Literal["bridge", "direct"]
NodeKind = Literal["canal", "kernel-vxlan", "one-by-one"]
Encap = Literal["vxlan", "udp"]
CheckKind = Literal["reach", "blocked", "throughput", "transfer"]

MTU_MIN_BYTES, MTU_MAX_BYTES = 576, 65535


@dataclass(frozen=True, slots=True)
class Network:
    """An underlay network: a bridge in a namespace of its own, or a bare veth pair between two members."""

    name: str
    subnets: tuple[Subnet, ...]
    mtu_bytes: int
    profile: Profile
    joint: Joint


@dataclass(frozen=True, slots=True)
class Router:
    name: str
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    kind: NodeKind
    network: str
    encap: Encap
    flags: tuple[str, ...]  # further flags of its daemon


@dataclass(frozen=True, slots=True)
class Pod:
    name: str
    node: str
    labels: tuple[str, ...]  # "key=value"
    ip: str  # "auto" or an address
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class Overlay:
    network: IPv4Network | None
    network6: IPv6Network | None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold; `sources` and `targets` are pod names, resolved."""

    kind: CheckKind
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    family: int | None = None  # 4, 6 or None = both where both pods have one
    at_least_bits: int = 0  # throughput
    seconds: int = 3
    streams: int = 1
    size_bytes: int = 0  # transfer
    line: int = 0


@dataclass(frozen=True, slots=True)
class Lab:
    name: str
    networks: dict[str, Network]
    routers: dict[str, Router]
    nodes: dict[str, Node]
    pods: dict[str, Pod]
    overlay: Overlay
    store: str  # "sqlite" (in the lab's folder) or a store URL
    faults: dict[str, Impairment]  # by network
    checks: tuple[Check, ...]
    namespaces: dict[str, dict[str, str]]  # labels by name
    policies: tuple[str | Document, ...]  # files, and what the lab file holds itself
    tests: tuple[Entry, ...]

    def pods_of(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.node == node]

    def members(self, network: str) -> list[str]:
        """Nodes, then routers, that have an interface in a network."""
        nodes = [node.name for node in self.nodes.values() if node.network == network]
        return nodes + [router.name for router in self.routers.values() if network in router.networks]


_TOP = (
    *("lab", "networks", "routers", "overlay", "nodes", "store", "faults", "checks"),
    *("namespaces", "policies", "tests"),
)


def parse_lab(text: str, source: str, name: str) -> Lab:
    """Read a lab file; `name` is the lab's when the file does not say one. Raises ConfigError."""
    root = read_yaml(text, source)
    top = root.table(_TOP)
    if "lab" in top:
        name = top["lab"].name()
    names: dict[str, str] = {}
    networks = _networks(root, top, names)
    routers = _routers(top, networks, names)
    overlay, encap = _overlay(root, top)
    nodes, pods = _nodes(root, top, networks, encap, names)
    lab = Lab(
        *(name, networks, routers, nodes, pods, overlay, _store(top), _faults(top, networks), _checks(top, pods)),
        namespaces={name: _labels(item) for name, item in top["namespaces"].table().items()}
        if "namespaces" in top
        else {},
        policies=tuple(map(_policy, top["policies"].items())) if "policies" in top else (),
        tests=tuple(read_entry(item, pods, nodes) for item in top["tests"].items()) if "tests" in top else (),
    )
    _check_whole(lab, root, top)
    return lab


def _claim(names: dict[str, str], cursor: Cursor, name: str, what: str) -> str:
    if name in names:
        raise cursor.fail(f"the name {name!r} belongs to a {names[name]} already")
    if what != "network" and name.startswith("net-"):
        raise cursor.fail("names that start with 'net-' are those of the underlay networks' namespaces")
    names[name] = what
    return name


def _networks(root: Cursor, top: dict[str, Cursor], names: dict[str, str]) -> dict[str, Network]:
    networks: dict[str, Network] = {}
    for name, cursor in top["networks"].table().items() if "networks" in top else [("core", None)]:
        names[f"net-{name}"] = "network"
        entries = cursor.table(["subnets", "mtu", "profile", "joint"]) if cursor else {}
        index = len(networks) + 1
        subnets = (
            tuple(_subnet(item) for item in entries["subnets"].items())
            if "subnets" in entries
            else (IPv4Network(f"192.168.{index}.0/24"),)
        )
        if cursor and (not subnets or len({subnet.version for subnet in subnets}) < len(subnets)):
            raise entries["subnets"].fail("one IPv4 subnet, one IPv6 subnet, or one of each")
        for other in networks.values():
            for mine in subnets:
                if clash := next((s for s in other.subnets if s.version == mine.version and s.overlaps(mine)), None):
                    raise (cursor or root).fail(f"{mine} overlaps {clash} of network {other.name!r}")
        networks[name] = Network(
            name,
            subnets,
            entries["mtu"].integer(MTU_MIN_BYTES, MTU_MAX_BYTES) if "mtu" in entries else 1500,
            _choice(entries, "profile", Profile, "wire"),
            _choice(entries, "joint", Joint, "bridge"),
        )
    if not networks:
        raise top["networks"].fail("at least one network is needed")
    return networks


def _subnet(cursor: Cursor) -> Subnet:
    subnet = cursor.parsed(ip_network, "a subnet such as 192.168.1.0/24 or fd00:1::/64")
    if subnet.num_addresses < 16:
        raise cursor.fail("too small: at least 16 addresses are needed")
    return subnet


def _choice(entries: dict[str, Cursor], key: str, of: object, default: str) -> Any:
    return entries[key].choice(get_args(of)) if key in entries else default


def _routers(top: dict[str, Cursor], networks: dict[str, Network], names: dict[str, str]) -> dict[str, Router]:
    routers: dict[str, Router] = {}
    for name, cursor in top["routers"].table().items() if "routers" in top else []:
        entries = cursor.table(["networks"])
        joined = tuple(item.choice(networks, "network") for item in entries["networks"].items()) if entries else ()
        if len(set(joined)) < 2 or len(set(joined)) < len(joined):
            raise cursor.fail("a router joins two or more different networks: `networks: [core, edge]`")
        routers[_claim(names, cursor, name, "router")] = Router(name, joined)
    return routers


def _overlay(root: Cursor, top: dict[str, Cursor]) -> tuple[Overlay, Encap]:
    entries = top["overlay"].table(["network", "network6", "encap"]) if "overlay" in top else {}
    overlay = Overlay(
        entries["network"].parsed(IPv4Network, "an IPv4 network such as 10.244.0.0/16")
        if "network" in entries
        else None,
        entries["network6"].parsed(IPv6Network, "an IPv6 network such as fd10:244::/48")
        if "network6" in entries
        else None,
    )
    if overlay == Overlay(None, None):
        overlay = Overlay(IPv4Network("10.244.0.0/16"), None)
    return overlay, _choice(entries, "encap", Encap, "vxlan")


def _nodes(
    root: Cursor, top: dict[str, Cursor], networks: dict[str, Network], encap: Encap, names: dict[str, str]
) -> tuple[dict[str, Node], dict[str, Pod]]:
    nodes: dict[str, Node] = {}
    pods: dict[str, Pod] = {}
    for name, cursor in top["nodes"].table().items() if "nodes" in top else []:
        entries = cursor.table(["network", "kind", "encap", "pods", "flags"])
        if "network" in entries:
            network = entries["network"].choice(networks, "network")
        elif len(networks) == 1:
            network = next(iter(networks))
        else:
            raise cursor.fail(f"there are several networks, so `network:` is needed; {suggest('', networks)}")
        flags = tuple(item.text() for item in entries["flags"].items()) if "flags" in entries else ()
        kind: NodeKind = _choice(entries, "kind", NodeKind, "canal")
        if flags and kind != "canal":
            raise entries["flags"].fail(f"a node of kind {kind} runs no daemon that could take flags")
        nodes[_claim(names, cursor, name, "node")] = Node(
            name, kind, network, _choice(entries, "encap", Encap, encap), flags
        )
        if "pods" in entries:
            for pod in _pods(entries["pods"], name, names):
                pods[pod.name] = pod
    if not nodes:
        raise top.get("nodes", root).fail("at least one node is needed: `nodes: {a: {pods: 2}, b: {pods: 2}}`")
    return nodes, pods


def _pods(cursor: Cursor, node: str, names: dict[str, str]) -> list[Pod]:
    """`pods: 2`, `pods: [web, db]` or `pods: {web: {labels: {app: web}}}`."""
    if cursor.is_integer:
        count = cursor.integer(0, 200)
        return [
            Pod(_claim(names, cursor, f"{node}{number}", "pod"), node, (), "auto") for number in range(1, count + 1)
        ]
    if not cursor.is_table:
        return [Pod(_claim(names, item, item.name(), "pod"), node, (), "auto") for item in cursor.items()]
    pods = []
    for name, item in cursor.table().items():
        entries = item.table(["labels", "ip", "namespace"])
        labels = _labels(entries["labels"]) if "labels" in entries else {}
        ip = str(entries["ip"].parsed(ip_address, "an address")) if "ip" in entries else "auto"
        namespace = entries["namespace"].name() if "namespace" in entries else "default"
        words = tuple(f"{key}={value}" for key, value in labels.items())
        pods.append(Pod(_claim(names, item, name, "pod"), node, words, ip, namespace))
    return pods


def _labels(cursor: Cursor) -> dict[str, str]:
    if not cursor.is_table and not cursor.is_empty:
        raise cursor.fail("labels are a mapping: `labels: {app: web}`")
    return {} if cursor.is_empty else {key.value: value.value for key, value in cursor.node.value}


def _policy(cursor: Cursor) -> str | Document:
    """An object, or the name of a file: relative to the lab file's folder."""
    if cursor.is_table:
        return document_of(cursor.node, cursor.source)
    return str((Path(cursor.source).parent / cursor.text()).absolute())


def _store(top: dict[str, Cursor]) -> str:
    if "store" not in top:
        return "sqlite"
    text = top["store"].text()
    if text != "sqlite" and "://" not in text:
        raise top["store"].fail(f"{text!r} is neither `sqlite` nor a store URL such as etcd://10.0.0.1:2379")
    if text.startswith("memory"):
        raise top["store"].fail("the daemons of a lab are processes of their own and cannot share a store in memory")
    return text


_FAULT_WORDS = {item.name.rpartition("_")[0] or item.name: item.name for item in fields(Impairment)}
FAULT_LIMITS: dict[str, float] = {
    "delay_ms": 10_000,
    "jitter_ms": 10_000,
    "rate_mbit": 100_000,
    "blackhole_bytes": MTU_MAX_BYTES,
    "seed": 2**53,
}


def _faults(top: dict[str, Cursor], networks: dict[str, Network]) -> dict[str, Impairment]:
    """`faults: {core: {loss: 1, delay: 20, seed: 7}}`; the words are those of `canal lab fault`."""
    faults: dict[str, Impairment] = {}
    for name, cursor in top["faults"].table().items() if "faults" in top else []:
        if name not in networks:
            raise cursor.fail(f"unknown network {name!r}; {suggest(name, networks)}")
        if networks[name].joint == "direct":
            raise cursor.fail(NO_MIDDLE.format(name))
        values: dict[str, float | int] = {}
        for word, item in cursor.table(_FAULT_WORDS).items():
            key = _FAULT_WORDS[word]
            whole = key in ("blackhole_bytes", "seed")
            limit = FAULT_LIMITS.get(key, 100)
            values[key] = item.integer(0, int(limit)) if whole else item.number(0, limit)
        faults[name] = Impairment(**values)  # type: ignore[arg-type]
    return faults


NO_MIDDLE = "network {!r} is a bare veth pair and has no middle where frames could be impaired; say `joint: bridge`"


def _checks(top: dict[str, Cursor], pods: dict[str, Pod]) -> tuple[Check, ...]:
    checks = []
    for cursor in top["checks"].items() if "checks" in top else []:
        entries = cursor.table(get_args(CheckKind))
        if len(entries) != 1:
            raise cursor.fail(f"one check each: `- reach: {{from: all, to: all}}`; {suggest('', get_args(CheckKind))}")
        ((kind, body),) = entries.items()
        checks.append(_check(kind, body, pods))  # type: ignore[arg-type]
    return tuple(checks)


def _check(kind: CheckKind, cursor: Cursor, pods: dict[str, Pod]) -> Check:
    own = {"throughput": ["at_least", "seconds", "streams"], "transfer": ["size"]}.get(kind, [])
    entries = cursor.table(["from", "to", "family", *own])
    for key in ("from", "to"):
        if key not in entries:
            raise cursor.fail(f"`{key}:` is missing: a pod, a list of pods, a label such as app=web, or all")
    check = Check(
        kind,
        select(entries["from"], pods),
        select(entries["to"], pods),
        entries["family"].integer(4, 6) if "family" in entries else None,
        entries["at_least"].parsed(rate_bits, "a rate such as 500M or 2G (bit/s)") if "at_least" in entries else 0,
        entries["seconds"].integer(1, 3600) if "seconds" in entries else 3,
        entries["streams"].integer(1, 128) if "streams" in entries else 1,
        entries["size"].parsed(size_bytes, "a size such as 64M or 1G (bytes)") if "size" in entries else 16 << 20,
        cursor.node.start_mark.line + 1,
    )
    if check.family == 5:
        raise entries["family"].fail("4 or 6")
    return check


def _check_whole(lab: Lab, root: Cursor, top: dict[str, Cursor]) -> None:
    """What only shows when everything is known."""
    for node in lab.nodes.values():
        families = {subnet.version for subnet in lab.networks[node.network].subnets}
        if node.kind == "one-by-one" and (lab.overlay.network is None or 4 not in families):
            raise top["nodes"].fail(f"node {node.name!r} of kind one-by-one needs IPv4, in the overlay and underneath")
    for network in lab.networks.values():
        members = lab.members(network.name)
        if network.joint == "direct" and len(members) != 2:
            raise top["networks"].fail(
                f"network {network.name!r} is direct, a veth pair between exactly two members; it has {len(members)}"
            )
        for subnet in network.subnets:
            if len(members) + 2 > min(subnet.num_addresses, 65536) - 2:
                raise top["networks"].fail(f"{subnet} is too small for {len(members)} members")
    for overlay in (lab.overlay.network, lab.overlay.network6):
        for network in lab.networks.values():
            for subnet in network.subnets:
                if overlay and overlay.version == subnet.version and overlay.overlaps(subnet):
                    raise root.fail(f"the overlay {overlay} overlaps the underlay {subnet} of network {network.name!r}")


def small_lab(nodes: int, pods: int, encap: str = "vxlan", profile: str = "wire", name: str = "lab") -> str:
    """The lab file behind `canal lab up --nodes N --pods M`: one network, nodes a, b, c ... with pods a1, a2 ..."""
    lines = [
        f"lab: {name}",
        "networks:",
        f"  core: {{subnets: [192.168.1.0/24, 'fd00:1::/64'], mtu: 1500, profile: {profile}}}",
        f"overlay: {{network: 10.244.0.0/16, network6: 'fd10:244::/48', encap: {encap}}}",
        "nodes:",
    ]
    lines += [f"  {node_name(index)}: {{pods: {pods}}}" for index in range(nodes)]
    if pods:
        lines += ["checks:", "  - reach: {from: all, to: all}"]
    return "\n".join(lines) + "\n"


def node_name(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    letter = chr(ord("a") + index % 26)
    return letter if index < 26 else node_name(index // 26 - 1) + letter
