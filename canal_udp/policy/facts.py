"""The cluster in the normal form, one object at a time: a change lowers what it touches and says what that was.

Place     between `cluster` (objects that changed) and `compile`; `lower_state` does the same for a whole state at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from canal_udp.policy.cluster import POLICY, Changes
from canal_udp.policy.lower import lower_policy
from canal_udp.policy.lower_endpoint import (
    account_profile,
    lower_host,
    lower_pod,
    lower_profile,
    lower_set,
    lower_workload,
    namespace_profile,
)
from canal_udp.policy.model import (
    EndpointSlice,
    HostEndpoint,
    Namespace,
    NetworkSet,
    Node,
    Object,
    Pod,
    ServiceAccount,
    Settings,
    State,
    Tier,
    WorkloadEndpoint,
)
from canal_udp.policy.model import Policy as WrittenPolicy
from canal_udp.policy.model import Profile as WrittenProfile
from canal_udp.policy.normal import Endpoint, Policy, PrefixSet, Profile

ValueT = TypeVar("ValueT")


@dataclass(slots=True)
class Touched:
    """Keys of what is different now. `world`: nodes, services or settings are."""

    endpoints: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    profiles: set[str] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    tiers: bool = False
    world: bool = False


@dataclass(slots=True)
class Facts:
    """Lowered objects by key; endpoints, of which there are many, are lowered when they are asked for."""

    hosts: dict[str, Endpoint] = field(default_factory=dict)
    prefix_sets: dict[str, PrefixSet] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    tiers: dict[str, Tier] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    slices: dict[str, EndpointSlice] = field(default_factory=dict)
    settings: Settings | None = None
    _pods: dict[str, Pod] = field(default_factory=dict)
    _workloads: dict[str, WorkloadEndpoint] = field(default_factory=dict)
    _workload_of: dict[str, str] = field(default_factory=dict)  # endpoint -> key of the workload that stands for it
    _accounts: dict[str, ServiceAccount] = field(default_factory=dict)

    def endpoint(self, name: str) -> Endpoint | None:
        """The workload endpoint that stands for it, else its pod if that has an interface of its own."""
        workload, pod = self._workloads.get(self._workload_of.get(name, "")), self._pods.get(name)
        if workload is not None:
            return lower_workload(workload)
        return lower_pod(pod) if pod is not None and not pod.host_network and not pod.finished else None

    def names(self) -> set[str]:
        """Of all endpoints."""
        return {name for name in self._pods.keys() | self._workload_of.keys() if self.endpoint(name) is not None}

    def apply(self, changes: Changes) -> Touched:
        touched = Touched()
        for kind, key, new in changes:
            self._take(kind, key, new, touched)
        return touched

    def _take(self, kind: str, key: str, new: Object | None, touched: Touched) -> None:
        match kind:
            case "Pod":
                self._take_pod(key, new if isinstance(new, Pod) else None, touched)
            case "WorkloadEndpoint":
                self._take_workload(key, new if isinstance(new, WorkloadEndpoint) else None, touched)
            case "Namespace":
                state = State(namespaces={key: new} if isinstance(new, Namespace) else {})
                self._set_profile(f"kns.{key}", None if new is None else namespace_profile(state, key), touched)
            case "ServiceAccount":
                _store(self._accounts, key, new if isinstance(new, ServiceAccount) else None)
                self._account(key, touched)
            case "HostEndpoint":
                _store(self.hosts, key, lower_host(new) if isinstance(new, HostEndpoint) else None)
                touched.hosts.add(key)
            case "NetworkSet":
                _store(self.prefix_sets, key, lower_set(new) if isinstance(new, NetworkSet) else None)
                touched.sets.add(key)
            case "Profile":
                self._set_profile(key, lower_profile(new) if isinstance(new, WrittenProfile) else None, touched)
            case "Tier":
                _store(self.tiers, key, new if isinstance(new, Tier) else None)
                touched.tiers = True
            case _ if kind == POLICY:
                lowered = lower_policy(new) if isinstance(new, WrittenPolicy) else None
                _store(self.policies, key, lowered)
                touched.policies.add(key)
            case _:
                self._take_surroundings(kind, key, new, touched)

    def _take_surroundings(self, kind: str, key: str, new: Object | None, touched: Touched) -> None:
        match kind:
            case "Node":
                _store(self.nodes, key, new if isinstance(new, Node) else None)
            case "EndpointSlice":
                _store(self.slices, key, new if isinstance(new, EndpointSlice) else None)
            case "Settings":
                self.settings = new if isinstance(new, Settings) else None
        touched.world = True

    def _take_pod(self, key: str, pod: Pod | None, touched: Touched) -> None:
        _store(self._pods, key, pod)
        if pod is not None and f"ksa.{pod.namespace}.{pod.service_account}" not in self.profiles:
            self._account(f"{pod.namespace}/{pod.service_account}", touched)
        touched.endpoints.add(key)

    def _take_workload(self, key: str, workload: WorkloadEndpoint | None, touched: Touched) -> None:
        before = self._workloads.get(key)
        _store(self._workloads, key, workload)
        for one in (before, workload):
            if one is not None:
                name = f"{one.namespace}/{one.pod or one.name}"
                _store(self._workload_of, name, key if one is workload else None)
                touched.endpoints.add(name)

    def _account(self, key: str, touched: Touched) -> None:
        """Every service account has a profile, written or not."""
        namespace, _, name = key.partition("/")
        account = self._accounts.get(key)
        state = State(service_accounts={key: account} if account is not None else {})
        self._set_profile(f"ksa.{namespace}.{name}", account_profile(state, namespace, name), touched)

    def _set_profile(self, name: str, profile: Profile | None, touched: Touched) -> None:
        if self.profiles.get(name) != profile:
            _store(self.profiles, name, profile)
            touched.profiles.add(name)


def _store(into: dict[str, ValueT], key: str, value: ValueT | None) -> None:
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value
