"""The slow evaluator: verdicts straight from the text of the specifications, for checking all others.

Place     reads the model, never the normal form; looks at every policy, rule and address anew for every flow.
Structure Thing = what can be at an address (pod, workload, host, network set) with the labels selectors see;
          one function for every sentence of the specifications: who is selected, what a rule matches, in which order.
Order     per endpoint and direction: tiers by order (no order last, undefined tiers after all), in a tier the policies
          that select the endpoint and govern the direction, by order and then by "name/namespace/kind"; the first
          Allow, Deny or Pass counts; a tier with policies and no match ends with its default action; then profiles;
          then deny. Kubernetes' policies are of order 1000 in `default`, the administrator's in `kube-admin` and
          `kube-baseline`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from canal_udp.net import Address, Network, contains
from canal_udp.policy.flow import Decision, Flow, Judge, Places, Verdict, judge_flow
from canal_udp.policy.model import (
    ADMIN_TIER,
    BASELINE_TIER,
    DEFAULT_TIER,
    EGRESS,
    FIXED_TIERS,
    ICMP,
    ICMP6,
    INGRESS,
    KUBE_POLICY_ORDER,
    NAMESPACE_LABEL,
    ORCHESTRATOR_LABEL,
    SERVICE_ACCOUNT_LABEL,
    Action,
    CalicoPolicy,
    CalicoRule,
    ClusterPolicy,
    ClusterRule,
    Direction,
    EndpointPort,
    Entity,
    IcmpMatch,
    KubePeer,
    KubePolicy,
    KubeRule,
    LabelSelector,
    PodsPeer,
    Policy,
    PortRange,
    State,
    Tier,
    namespace_labels,
    policy_key,
)
from canal_udp.policy.selector import All, Global, Selector, parse, prefixed, rewrite

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Thing:
    """Something with labels at addresses. `labels` are the effective ones."""

    kind: str  # "workload", "host", "set"
    name: str
    namespace: str
    labels: Labels
    nets: tuple[Network, ...]
    addresses: tuple[Address, ...]
    ports: tuple[EndpointPort, ...]
    profiles: tuple[str, ...]
    closed: str = ""

    def at(self, address: Address) -> bool:
        return address in self.addresses or any(contains(net, address) for net in self.nets)

    @property
    def is_pod(self) -> bool:
        return self.kind == "workload" and self.labels.get(ORCHESTRATOR_LABEL) == "k8s"


class Reference(Judge):
    """Verdicts for one state. `staged`: as if the staged policies were enforced."""

    def __init__(self, state: State, *, staged: bool = False) -> None:
        self.state = state
        self.places = Places(state)
        self.policies = tuple(_enforced(state.policies, staged=staged))
        self.things = tuple(_things(state))

    def verdict(self, flow: Flow) -> Verdict:
        return judge_flow(self, self.places, flow)

    # ---- one endpoint ------------------------------------------------------------------------------------------------

    def workload(self, key: str, direction: Direction, flow: Flow) -> Decision:
        thing = next(one for one in self.things if one.kind == "workload" and one.name == key)
        if thing.closed:
            return Decision(False, reason=thing.closed)
        normal = [
            one for one in self.policies if not (isinstance(one, CalicoPolicy) and (one.do_not_track or one.pre_dnat))
        ]
        found = self._tiers(thing, direction, flow, normal)
        return found if found is not None else self._profiles(thing, direction, flow)

    def host(self, name: str, direction: Direction, flow: Flow, *, forwarded: bool) -> Decision:
        thing = next(one for one in self.things if one.kind == "host" and one.name == name)
        if not forwarded and self._is_failsafe(direction, flow):
            return Decision(True, reason="failsafe port")
        calico = [one for one in self.policies if isinstance(one, CalicoPolicy)]
        first = self._tiers(thing, direction, flow, [one for one in calico if one.do_not_track], end=False)
        if first is None and direction == INGRESS:
            before = flow if flow.original is None else _before_dnat(flow)
            first = self._tiers(thing, direction, before, [one for one in calico if one.pre_dnat], end=False)
        if first is not None:
            return first
        if thing.closed:
            return Decision(False, reason=thing.closed)
        normal = [one for one in calico if not one.do_not_track and not one.pre_dnat]
        if forwarded:
            passing = [one for one in normal if one.apply_on_forward]
            found = self._tiers(thing, direction, flow, passing)
            return found if found is not None else Decision(True, reason="no policy applies on forward")
        found = self._tiers(thing, direction, flow, normal)
        return found if found is not None else self._profiles(thing, direction, flow)

    def _is_failsafe(self, direction: Direction, flow: Flow) -> bool:
        settings = self.state.settings
        ports = settings.failsafe_inbound if direction == INGRESS else settings.failsafe_outbound
        remote = flow.source if direction == INGRESS else flow.destination
        return any(
            (one.protocol, one.port) == (flow.protocol, flow.dport) and (one.net is None or contains(one.net, remote))
            for one in ports
        )

    # ---- tiers -------------------------------------------------------------------------------------------------------

    def _tiers(
        self, thing: Thing, direction: Direction, flow: Flow, policies: Iterable[Policy], *, end: bool = True
    ) -> Decision | None:
        """The decision of the tiers; None when the last one passes on. `end` False: no tier has a default action."""
        governing = [one for one in policies if self._selects(one, thing) and direction in _types(one)]
        logs = 0
        for tier in self._ordered_tiers():
            mine = sorted((one for one in governing if _tier(one) == tier.name), key=_order)
            if not mine:
                continue
            for policy, action, index in self._outcomes(mine, direction, flow):
                if action == "Log":
                    logs += 1
                elif action == "Pass":
                    break
                else:
                    key = policy_key(policy)
                    return Decision(action == "Allow", tier.name, key, index, "", policy.answer, logs)
            else:  # no rule matched to the end
                if tier.default_action == "Deny" and end:
                    last = mine[-1]
                    key, reason = policy_key(last), "no rule of the tier matched"
                    return Decision(False, tier.name, key, -1, reason, last.answer, logs)
        return None

    def _ordered_tiers(self) -> list[Tier]:
        known = {**self.state.tiers}
        for name, tier in FIXED_TIERS.items():
            known.setdefault(name, tier)
        ghosts = {_tier(policy) for policy in self.policies} - known.keys()
        ordered = sorted(known.values(), key=lambda tier: (math.inf if tier.order is None else tier.order, tier.name))
        return ordered + [Tier(name) for name in sorted(ghosts)]

    def _profiles(self, thing: Thing, direction: Direction, flow: Flow) -> Decision:
        for name in thing.profiles:
            written = self.state.profiles.get(name)
            if written is None:
                if name.startswith("kns."):
                    return Decision(True, policy=f"Profile:{name}", rule=0)
                if name.startswith("ksa."):
                    continue
                return Decision(False, policy=f"Profile:{name}", rule=-1, reason="the profile does not exist")
            rules = written.ingress if direction == INGRESS else written.egress
            for index, rule in enumerate(rules):
                action = self._calico_outcome(rule, "", flow, written.broken)
                if action in ("Allow", "Deny", "Pass"):
                    return Decision(action == "Allow", policy=f"Profile:{name}", rule=index)
        return Decision(False, reason="no policy and no profile allows it")

    # ---- whom a policy selects ---------------------------------------------------------------------------------------

    def _selects(self, policy: Policy, thing: Thing) -> bool:
        match policy:
            case KubePolicy():
                return thing.is_pod and thing.namespace == policy.namespace and _fits(policy.selector, thing.labels)
            case ClusterPolicy():
                return self._is_peer(policy.subject, thing)
            case CalicoPolicy():
                if thing.kind == "workload" and (policy.do_not_track or policy.pre_dnat):
                    return False
                if policy.namespace and thing.labels.get(NAMESPACE_LABEL) != policy.namespace:
                    return False
                if policy.namespace_selector and not _namespace_fits(policy.namespace_selector, thing.labels):
                    return False
                if policy.service_account_selector and not _account_fits(policy.service_account_selector, thing.labels):
                    return False
                return policy.selector is None or policy.selector.matches(thing.labels)

    def _is_peer(self, peer: PodsPeer, thing: Thing) -> bool:
        """Pods in matching namespaces."""
        if not thing.is_pod or not _fits(peer.namespaces, namespace_labels(self.state, thing.namespace)):
            return False
        return peer.pods is None or _fits(peer.pods, thing.labels)

    # ---- what a policy says ------------------------------------------------------------------------------------------

    def _outcomes(
        self, policies: Iterable[Policy], direction: Direction, flow: Flow
    ) -> Iterator[tuple[Policy, Action, int]]:
        """The rules that match, in order, with what they do."""
        for policy in policies:
            yield from ((policy, action, index) for action, index in self._matching(policy, direction, flow))

    def _matching(self, policy: Policy, direction: Direction, flow: Flow) -> Iterator[tuple[Action, int]]:
        rules = policy.ingress if direction == INGRESS else policy.egress
        for index, rule in enumerate(rules):
            action: Action | None
            match rule:
                case KubeRule():
                    assert isinstance(policy, KubePolicy)
                    action = "Allow" if self._kube_matches(rule, policy, direction, flow) else None
                case ClusterRule():
                    action = self._cluster_outcome(rule, policy.broken, direction, flow)
                case CalicoRule():
                    action = self._calico_outcome(rule, policy.namespace, flow, policy.broken)
            if action is not None:
                yield action, index

    def _kube_matches(self, rule: KubeRule, policy: KubePolicy, direction: Direction, flow: Flow) -> bool:
        if rule.broken or policy.broken:
            return False
        remote = flow.source if direction == INGRESS else flow.destination
        if rule.peers and not any(self._kube_peer(peer, policy.namespace, remote) for peer in rule.peers):
            return False
        return not rule.ports or any(
            one.protocol == flow.protocol and self._port_fits(one.port, one.protocol, flow, self._pods())
            for one in rule.ports
        )

    def _kube_peer(self, peer: KubePeer, namespace: str, address: Address) -> bool:
        if peer.block is not None:
            inside = contains(peer.block.cidr, address)
            return inside and not any(contains(one, address) for one in peer.block.excepts)
        for thing in self._pods():
            if not thing.at(address):
                continue
            if peer.namespaces is None:
                if thing.namespace == namespace and _fits(peer.pods or LabelSelector(), thing.labels):
                    return True
            elif self._is_peer(PodsPeer(peer.namespaces, peer.pods), thing):
                return True
        return False

    def _cluster_outcome(self, rule: ClusterRule, broken: str, direction: Direction, flow: Flow) -> Action | None:
        if rule.broken:
            return None if rule.action == "Allow" else "Deny"
        remote = flow.source if direction == INGRESS else flow.destination
        matched = not rule.peers
        for peer in rule.peers:
            if peer.pods is not None:
                matched |= any(thing.at(remote) and self._is_peer(peer.pods, thing) for thing in self.things)
            elif peer.nodes is not None:
                matched |= any(
                    remote in one.addresses and _fits(peer.nodes, one.labels) for one in self.state.nodes.values()
                )
            else:
                matched |= any(contains(net, remote) for net in peer.nets)
        ports = not rule.ports or any(
            one.protocol in (None, flow.protocol)
            and self._port_fits(one.name or one.port, one.protocol, flow, self._pods())
            for one in rule.ports
        )
        if not (matched and ports):
            return None
        return _without_permission(rule.action, broken)

    def _port_fits(
        self, port: PortRange | str | None, protocol: int | None, flow: Flow, things: Iterable[Thing]
    ) -> bool:
        if port is None:
            return True
        if isinstance(port, PortRange):
            return flow.dport in port
        return _is_named(port, protocol, flow.destination, flow.protocol, flow.dport, things)

    def _pods(self) -> list[Thing]:
        return [thing for thing in self.things if thing.is_pod]

    # ---- Calico's rules ----------------------------------------------------------------------------------------------

    def _calico_outcome(self, rule: CalicoRule, namespace: str, flow: Flow, broken: str) -> Action | None:
        if rule.broken:
            return None if rule.action in ("Allow", "Log") else "Deny"
        if not self._calico_matches(rule, namespace, flow):
            return None
        return _without_permission(rule.action, broken)

    def _calico_matches(self, rule: CalicoRule, namespace: str, flow: Flow) -> bool:
        version = flow.source.version
        if rule.ip_version not in (None, version) or _is_of_other_family(rule, version):
            return False
        if rule.protocol not in (None, flow.protocol) or rule.not_protocol == flow.protocol:
            return False
        if rule.icmp is not None and not _icmp_fits(rule.icmp, flow):
            return False
        if rule.not_icmp is not None and _icmp_fits(rule.not_icmp, flow):
            return False
        return self._end_fits(rule.source, rule.protocol, namespace, flow, is_source=True) and self._end_fits(
            rule.destination, rule.protocol, namespace, flow, is_source=False
        )

    def _end_fits(self, entity: Entity, protocol: int | None, namespace: str, flow: Flow, *, is_source: bool) -> bool:
        address, port = (flow.source, flow.sport) if is_source else (flow.destination, flow.dport)
        if entity.nets and not any(contains(net, address) for net in entity.nets):
            return False
        if any(contains(net, address) for net in entity.not_nets):
            return False
        if entity.service is not None and not self._service_fits(entity, namespace, flow, is_source=is_source):
            return False
        positive = _has_positive(entity, namespace)
        here = [thing for thing in self.things if thing.at(address)]
        if positive and not any(_is_meant(entity, namespace, thing) for thing in here):
            return False
        if not positive and entity.not_selector and any(entity.not_selector.matches(one.labels) for one in here):
            return False
        meant = [one for one in self.things if not positive or _is_meant(entity, namespace, one)]

        def one_fits(one: PortRange | str) -> bool:
            if isinstance(one, PortRange):
                return port in one
            return _is_named(one, protocol, address, flow.protocol, port, meant)

        if entity.ports and not any(one_fits(one) for one in entity.ports):
            return False
        return not any(one_fits(one) for one in entity.not_ports)

    def _service_fits(self, entity: Entity, namespace: str, flow: Flow, *, is_source: bool) -> bool:
        """As a source: an address of the Service; as a destination: one of its ports too."""
        assert entity.service is not None
        wanted = (entity.service[0] or namespace, entity.service[1])
        slices = [one for one in self.state.slices.values() if (one.namespace, one.service) == wanted]
        if is_source:
            return any(flow.source in one.addresses for one in slices)
        here = [one for one in slices if flow.destination in one.addresses]
        return any((flow.protocol, flow.dport) in one.ports for one in here)


# ---- labels ----------------------------------------------------------------------------------------------------------


def _fits(selector: LabelSelector, labels: Labels) -> bool:
    """A LabelSelector of Kubernetes: NotIn and DoesNotExist hold when the key is absent."""
    for key, value in selector.labels:
        if key not in labels or labels[key] != value:
            return False
    for one in selector.requirements:
        there = one.key in labels
        holds = {
            "In": there and labels.get(one.key) in one.values,
            "NotIn": not there or labels.get(one.key) not in one.values,
            "Exists": there,
            "DoesNotExist": not there,
        }
        if not holds[one.operator]:
            return False
    return True


def _namespace_fits(selector: Selector, labels: Labels) -> bool:
    """On pcns.* labels; all() means in a namespace, global() in none."""
    return _in_their_words(selector, "pcns.", NAMESPACE_LABEL).matches(labels)


def _account_fits(selector: Selector, labels: Labels) -> bool:
    return _in_their_words(selector, "pcsa.", SERVICE_ACCOUNT_LABEL).matches(labels)


def _in_their_words(selector: Selector, prefix: str, label: str) -> Selector:
    there = parse(f"has({label})").root
    nowhere = parse(f"!has({label})").root
    moved = prefixed(selector.root, prefix)
    return Selector(
        rewrite(moved, lambda leaf: there if isinstance(leaf, All) else nowhere if isinstance(leaf, Global) else leaf)
    )


def _has_positive(entity: Entity, namespace: str) -> bool:
    """Is there a condition on who is at the address (and not only on who is not)?"""
    return (
        entity.selector is not None
        or entity.namespace_selector is not None
        or entity.service_accounts is not None
        or (entity.not_selector is not None and bool(namespace))
    )


def _is_meant(entity: Entity, namespace: str, thing: Thing) -> bool:
    labels = thing.labels
    if entity.namespace_selector is not None:
        if not _namespace_fits(entity.namespace_selector, labels):
            return False
    elif namespace and labels.get(NAMESPACE_LABEL) != namespace:
        return False
    accounts = entity.service_accounts
    if accounts is not None and accounts.names and labels.get(SERVICE_ACCOUNT_LABEL) not in accounts.names:
        return False
    if accounts is not None and accounts.selector is not None and not _account_fits(accounts.selector, labels):
        return False
    if entity.selector is not None and not entity.selector.matches(labels):
        return False
    return entity.not_selector is None or not entity.not_selector.matches(labels)


# ---- packets ---------------------------------------------------------------------------------------------------------


def _is_named(
    name: str, protocol: int | None, address: Address, flow_protocol: int, port: int, things: Iterable[Thing]
) -> bool:
    """Does an endpoint at the address call this port so?"""
    return any(
        (one.name, one.protocol, one.port) == (name, flow_protocol, port) and protocol in (None, flow_protocol)
        for thing in things
        if address in thing.addresses
        for one in thing.ports
    )


def _icmp_fits(match: IcmpMatch, flow: Flow) -> bool:
    if flow.protocol not in (ICMP, ICMP6):
        return False
    return match.type in (None, flow.icmp_type) and match.code in (None, flow.icmp_code)


def _is_of_other_family(rule: CalicoRule, version: int) -> bool:
    """ICMP is of IPv4, ICMPv6 of IPv6; a list of networks that are all of the other family skips the rule.

    Where Calico also skips a Deny because of its notNets, we do not: that would let the other family pass.
    """
    if rule.protocol in (ICMP, ICMP6) and version != (4 if rule.protocol == ICMP else 6):
        return True
    for entity in (rule.source, rule.destination):
        for nets in (entity.nets, () if rule.action == "Deny" else entity.not_nets):
            if nets and all(net.version != version for net in nets):
                return True
    return False


def _before_dnat(flow: Flow) -> Flow:
    assert flow.original is not None
    address, port = flow.original
    return Flow(
        flow.source, address, flow.protocol, flow.sport, port, flow.icmp_type, flow.icmp_code, None, flow.hairpin
    )


# ---- policies --------------------------------------------------------------------------------------------------------


def _without_permission(action: Action, broken: str) -> Action | None:
    """A policy that is not understood allows nothing and passes nothing on."""
    if not broken or action in ("Deny", "Log"):
        return action
    return None if action == "Allow" else "Deny"


def _enforced(policies: Iterable[Policy], *, staged: bool) -> Iterator[Policy]:
    """Staged policies never count, or replace, add and delete those of the same name."""
    plans = {
        (one.kind.removeprefix("Staged"), one.namespace, one.name): one
        for one in policies
        if not isinstance(one, ClusterPolicy) and one.staged in ("Set", "Delete")
    }
    for one in policies:
        if not isinstance(one, ClusterPolicy) and one.staged is not None:
            continue
        if not staged or (one.kind, one.namespace, one.name) not in plans:
            yield one
    if staged:
        for plan in plans.values():
            if plan.staged == "Set":
                yield _as_enforced(plan)


def _as_enforced(plan: KubePolicy | CalicoPolicy) -> Policy:
    return replace(plan, staged=None)


def _types(policy: Policy) -> frozenset[Direction]:
    if isinstance(policy, ClusterPolicy):
        given = ((INGRESS, policy.ingress), (EGRESS, policy.egress))
        return frozenset(direction for direction, rules in given if rules)
    return policy.types


def _tier(policy: Policy) -> str:
    match policy:
        case KubePolicy():
            return DEFAULT_TIER
        case ClusterPolicy():
            return ADMIN_TIER if policy.tier == "Admin" else BASELINE_TIER
        case CalicoPolicy():
            return policy.tier


def _order(policy: Policy) -> tuple[float, str]:
    match policy:
        case KubePolicy():
            order: float = KUBE_POLICY_ORDER
        case ClusterPolicy():
            order = -math.inf if policy.broken else policy.priority
        case CalicoPolicy():
            order = -math.inf if policy.broken else math.inf if policy.order is None else policy.order
    return order, f"{policy.name}/{policy.namespace}/{policy.kind}"


# ---- who is there ----------------------------------------------------------------------------------------------------


def _things(state: State) -> Iterator[Thing]:
    replaced = {f"{one.namespace}/{one.pod}" for one in state.workloads.values() if one.pod}
    for key, pod in state.pods.items():
        if pod.host_network or pod.finished or key in replaced:
            continue
        profiles = (f"kns.{pod.namespace}", f"ksa.{pod.namespace}.{pod.service_account}")
        own = _own(pod.labels)
        own |= {NAMESPACE_LABEL: pod.namespace, ORCHESTRATOR_LABEL: "k8s", SERVICE_ACCOUNT_LABEL: pod.service_account}
        labels = _inherited(state, profiles) | own
        yield Thing("workload", key, pod.namespace, labels, (), pod.addresses, pod.ports, profiles, pod.broken)
    for one in state.workloads.values():
        own = _own(one.labels) | {NAMESPACE_LABEL: one.namespace}
        own |= {ORCHESTRATOR_LABEL: one.orchestrator} if one.orchestrator else {}
        own |= {SERVICE_ACCOUNT_LABEL: one.service_account} if one.service_account else {}
        labels = _inherited(state, (*one.profiles, f"kns.{one.namespace}")) | own
        key = f"{one.namespace}/{one.pod or one.name}"
        yield Thing("workload", key, one.namespace, labels, (), one.addresses, one.ports, one.profiles, one.broken)
    for host in state.hosts.values():
        labels = _inherited(state, host.profiles) | dict(host.labels)
        yield Thing("host", host.name, "", labels, (), host.addresses, host.ports, host.profiles, host.broken)
    for nets in state.sets.values():
        labels = dict(nets.labels)
        if nets.namespace:
            labels = _inherited(state, (f"kns.{nets.namespace}",)) | labels | {NAMESPACE_LABEL: nets.namespace}
        yield Thing("set", nets.name, nets.namespace, labels, nets.nets, (), (), ())


def _own(labels: Labels) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(("pcns.", "pcsa."))}


def _inherited(state: State, profiles: tuple[str, ...]) -> dict[str, str]:
    """Labels that profiles pass on; the first profile that has a label wins."""
    labels: dict[str, str] = {}
    for name in reversed(profiles):
        written = state.profiles.get(name)
        if written is not None:
            labels |= written.labels
        elif name.startswith("kns."):
            namespace = name.removeprefix("kns.")
            labels |= {f"pcns.{key}": value for key, value in namespace_labels(state, namespace).items()}
            labels["pcns.projectcalico.org/name"] = namespace
        elif name.startswith("ksa."):
            namespace, _, account = name.removeprefix("ksa.").partition(".")
            known = state.service_accounts.get(f"{namespace}/{account}")
            labels |= {f"pcsa.{key}": value for key, value in (known.labels if known else {}).items()}
            labels["pcsa.projectcalico.org/name"] = account
    return labels
