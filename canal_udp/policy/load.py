"""Documents to a State: which kind is read by whom, lists unpacked, the same object twice noted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from canal_udp.errors import ConfigError
from canal_udp.policy import parse_calico, parse_cluster, parse_kubernetes
from canal_udp.policy.cursor import Cursor, Document, Problem, Where, suggest
from canal_udp.policy.model import (
    CALICO_DEFAULTS,
    CalicoPolicy,
    ClusterPolicy,
    EndpointSlice,
    HostEndpoint,
    KubePolicy,
    Namespace,
    NetworkSet,
    Node,
    Object,
    Pod,
    Policy,
    Profile,
    ServiceAccount,
    Settings,
    State,
    Tier,
    WorkloadEndpoint,
    policy_key,
)

Parser: TypeAlias = Callable[[Cursor], Object | None]

CORE, DISCOVERY, NETWORKING = "v1", "discovery.k8s.io/v1", "networking.k8s.io/v1"
CLUSTER, ADMIN = "policy.networking.k8s.io/v1alpha2", "policy.networking.k8s.io/v1alpha1"
CALICO, CALICO_CRD = "projectcalico.org/v3", "crd.projectcalico.org/v1"

_CALICO: dict[str, Parser] = {
    "NetworkPolicy": parse_calico.network_policy,
    "GlobalNetworkPolicy": parse_calico.global_policy,
    "StagedNetworkPolicy": parse_calico.staged_network_policy,
    "StagedGlobalNetworkPolicy": parse_calico.staged_global_policy,
    "StagedKubernetesNetworkPolicy": parse_calico.staged_kubernetes_policy,
    "Tier": parse_calico.tier,
    "NetworkSet": parse_calico.network_set,
    "GlobalNetworkSet": parse_calico.global_network_set,
    "Profile": parse_calico.profile,
    "WorkloadEndpoint": parse_calico.workload_endpoint,
    "HostEndpoint": parse_calico.host_endpoint,
    "FelixConfiguration": parse_calico.settings,
}
KINDS: dict[str, dict[str, Parser]] = {
    CORE: {
        "Namespace": parse_kubernetes.namespace,
        "Pod": parse_kubernetes.pod,
        "ServiceAccount": parse_kubernetes.service_account,
        "Node": parse_kubernetes.node,
    },
    DISCOVERY: {"EndpointSlice": parse_kubernetes.endpoint_slice},
    NETWORKING: {"NetworkPolicy": parse_kubernetes.network_policy},
    CLUSTER: {"ClusterNetworkPolicy": parse_cluster.cluster_policy},
    ADMIN: {
        "AdminNetworkPolicy": parse_cluster.admin_policy,
        "BaselineAdminNetworkPolicy": parse_cluster.baseline_policy,
    },
    CALICO: _CALICO,
    CALICO_CRD: _CALICO,
}
# Neighbours in the same API groups that say nothing about verdicts.
_OTHERS = {
    *("Ingress", "IngressClass", "ServiceCIDR", "IPAddress"),
    *("BGPConfiguration", "BGPFilter", "BGPPeer", "BlockAffinity", "CalicoNodeStatus", "ClusterInformation"),
    *("IPAMBlock", "IPAMConfig", "IPAMConfiguration", "IPAMHandle", "IPPool", "IPReservation"),
    "KubeControllersConfiguration",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read. `tests` are documents of flows that the policies must allow or deny."""

    state: State
    problems: tuple[Problem, ...]
    tests: tuple[Document, ...] = ()
    written: tuple[tuple[Object, Cursor], ...] = ()  # each object and what it was read from

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")


def load_texts(files: Iterable[tuple[str, str]]) -> Loaded:
    """Read files given as (name, text); a file that is not YAML is an error like any other."""
    problems: list[Problem] = []
    return load(_documents(files, problems), problems)


def _documents(files: Iterable[tuple[str, str]], problems: list[Problem]) -> Iterator[Document]:
    from canal_udp.policy.reader import read_documents  # a daemon reads no YAML, and starts sooner without

    for source, text in files:
        try:
            yield from read_documents(text, source)
        except ConfigError as error:
            problems.append(Problem("error", Where(source, error.line or 0), error.field, error.problem))


def load(documents: Iterable[Document], problems: list[Problem] | None = None) -> Loaded:
    """Read objects; every one that can be read is in the state, every error in `problems`."""
    noted: list[Problem] = [] if problems is None else problems
    builder = _Builder(noted)
    for document in documents:
        cursor = document.cursor(noted)
        if isinstance(document.value, dict) and "tests" in document.value and "kind" not in document.value:
            builder.tests.append(document)
        else:
            cursor.attempt(builder.read, None)
    return Loaded(builder.state(), tuple(noted), tuple(builder.tests), tuple(builder.written))


@dataclass(slots=True)
class _Builder:
    problems: list[Problem]
    tests: list[Document] = field(default_factory=list)
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    written: list[tuple[Object, Cursor]] = field(default_factory=list)

    def read(self, cursor: Cursor) -> None:
        top = cursor.table(None)
        kind = top.at("kind")
        if kind.value is None and _looks_like_kubernetes(cursor):
            cursor.warn("kind is missing; podSelector makes it a NetworkPolicy")
            self._add(parse_kubernetes.network_policy(cursor), cursor)
            return
        if kind.value is None:
            raise cursor.fail("kind is missing")
        if kind.text().endswith("List") and "items" in top:
            top.each("items", self.read)
            return
        parser = self._parser(top.read("apiVersion", Cursor.text, ""), kind, cursor)
        found = parser(cursor) if parser else None
        if found is not None:
            self._add(found, cursor)

    def _parser(self, version: str, kind: Cursor, cursor: Cursor) -> Parser | None:
        name = kind.text()
        if parser := KINDS.get(version, {}).get(name):
            return parser
        homes = [group for group, kinds in KINDS.items() if name in kinds and group != CALICO_CRD]
        if homes:  # a wrong version must not lose a protection: read it as what it looks like
            at = cursor.child("apiVersion", version)
            at.fail(f"{version or 'nothing'!r} has no {name}; it is in {' or '.join(homes)}")
            return KINDS[homes[0]][name] if len(homes) == 1 or _looks_like_kubernetes(cursor) else _CALICO[name]
        known = {one for kinds in KINDS.values() for one in kinds}
        guess = suggest(name, known)
        ours = version.partition("/")[0] in {group.partition("/")[0] for group in KINDS if group != CORE}
        if name not in _OTHERS and (ours or _is_typo(name, known)):
            raise kind.fail(f"unknown kind {name!r}; {guess}")
        kind.warn(f"{name} says nothing about verdicts: not looked at")
        return None

    def _add(self, found: Object, cursor: Cursor) -> None:
        key = _key(found)
        if key in self.objects:
            cursor.fail(f"{key[0]} {key[1]} is there twice; the first is at {self.objects[key].where}")
            return
        self.objects[key] = found
        self.written.append((found, cursor))

    def state(self) -> State:
        def named(kind: type[Any]) -> dict[str, Any]:
            return {key[1]: one for key, one in self.objects.items() if isinstance(one, kind)}

        policies: list[Policy] = [
            one for one in self.objects.values() if isinstance(one, KubePolicy | ClusterPolicy | CalicoPolicy)
        ]
        return State(
            namespaces=named(Namespace),
            service_accounts=named(ServiceAccount),
            nodes=named(Node),
            pods=named(Pod),
            slices=named(EndpointSlice),
            workloads=named(WorkloadEndpoint),
            hosts=named(HostEndpoint),
            sets=named(NetworkSet),
            tiers=named(Tier),
            profiles=named(Profile),
            policies=tuple(policies),
            settings=next(iter(named(Settings).values()), CALICO_DEFAULTS),
        )


def _looks_like_kubernetes(cursor: Cursor) -> bool:
    spec = cursor.table(None).at("spec").value
    return isinstance(spec, dict) and ("podSelector" in spec or "policyTypes" in spec)


def _is_typo(name: str, known: set[str]) -> bool:
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=0.85))


def _key(found: Object) -> tuple[str, str]:
    match found:
        case KubePolicy() | ClusterPolicy() | CalicoPolicy():
            return "policy", policy_key(found)
        case Settings():
            return "FelixConfiguration", "default"
        case NetworkSet() if not found.namespace:
            return "GlobalNetworkSet", found.name
        case Namespace() | Node() | HostEndpoint() | Tier() | Profile():
            return type(found).__name__, found.name
        case _:
            return type(found).__name__, f"{found.namespace}/{found.name}"
