"""Everything known of the cluster -> what the data plane of one node needs, again and again, at the price of a change.

Place     the daemon hands in changes (cluster.py) and the names of the pods attached here, and publishes the result.
Structure changes ─► Facts ─┬─► Addresses: address -> class
                            └─► which policies govern each pod of ours ─► programs, shared by pods with the same ones
Invariants what comes out is the same as a new engine would make of the same objects (tests compare verdicts).
           Only rules that govern a pod of ours count: nobody else's sets and prefixes are followed.
Memory     what nobody needs any more is left alone until it is most of what there is; then all addresses are classed
           anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from canal_udp.net import Address
from canal_udp.policy.addresses import Addresses, Labels
from canal_udp.policy.class_table import Seen
from canal_udp.policy.classes import HOST_ITEM, SET_ITEM
from canal_udp.policy.cluster import Changes
from canal_udp.policy.compiled import Compiled, Program
from canal_udp.policy.facts import Facts, Touched
from canal_udp.policy.index import LabelIndex
from canal_udp.policy.model import EGRESS, INGRESS, Direction, Tier
from canal_udp.policy.normal import Endpoint, Policy, PrefixSet, sort_tiers
from canal_udp.policy.program import Held, ProfilePart, RuleBook, Source, TierPart, extend, make

RENEW_FROM = 4096  # classes and sets: fewer are not worth a look


@dataclass(slots=True)
class Engine:
    """One node's compiler. thread: one at a time."""

    facts: Facts = field(default_factory=Facts)
    book: RuleBook = field(default_factory=RuleBook)
    renew_from: int = RENEW_FROM
    _addresses: Addresses = field(default_factory=Addresses)
    _governed: LabelIndex[str] = field(default_factory=LabelIndex)  # endpoints of ours, selectors of all policies
    _local: frozenset[str] = frozenset()
    _by_selector: dict[str, dict[str, Policy]] = field(default_factory=lambda: defaultdict(dict))
    _selector_of: dict[str, str] = field(default_factory=dict)  # policy -> its selector
    _tiers: dict[str, tuple[int, Tier]] = field(default_factory=dict)  # place in the order of evaluation
    _made_of: dict[str, tuple[Source, Source] | None] = field(default_factory=dict)  # by endpoint
    _held: dict[object, Held] = field(default_factory=dict)
    _own: frozenset[Address] = frozenset()
    _look_at: int = 0  # size of the addresses' tables at which it is asked whether they are overgrown

    def apply(self, changes: Changes) -> None:
        """Take objects in that are different now."""
        touched = self.facts.apply(changes)
        for name in touched.profiles:
            profile = self.facts.profiles.get(name)
            labels = dict(profile.labels) if profile else {}
            self._addresses.set_parent(name, labels)
            self._governed.set_parent(name, labels)
        if touched.profiles or touched.policies or touched.tiers:
            self._made_of.clear()
        self._take_owners(touched)
        for key in touched.policies:
            self._take_policy(key)
        if touched.tiers or touched.policies:
            named = {policy.tier for policy in self.facts.policies.values()}
            self._tiers = {tier.name: (at, tier) for at, tier in enumerate(sort_tiers(self.facts.tiers, named))}
        if touched.world:
            self._addresses.set_world(self.facts.nodes.values(), self.facts.slices.values())

    def set_own(self, own: Collection[Address]) -> None:
        """Say which addresses are this node's."""
        self._own = frozenset(own)
        self._addresses.set_own(self._own)

    def compile(self, local: Mapping[str, str]) -> Compiled:
        """What the data plane shall know.

        local    the endpoints of this node: name -> "namespace/pod" in the cluster.
        """
        self._follow(frozenset(local.values()))
        found = ((name, self._sources(key)) for name, key in local.items())
        sources = {name: pair for name, pair in found if pair is not None}
        wanted = {source.key: source for pair in sources.values() for source in pair}
        self._classify(wanted)
        classes = self._addresses.arrays()
        self._held = {key: self._program(key, source) for key, source in wanted.items()}
        self.book.shed(held.program for held in self._held.values())
        settings = self.facts.settings
        return Compiled(
            classes,
            {name: (self._made(pair[0]), self._made(pair[1])) for name, pair in sources.items()},
            settings is None or settings.endpoint_to_host != "Drop",
            self.book.refs,
        )

    def _made(self, source: Source) -> Program:
        return self._held[source.key].program

    def _program(self, key: object, source: Source) -> Held:
        held = self._held.get(key)
        table = self._addresses.table
        return make(source, table, self.book) if held is None else extend(held, table, self.book)

    # ---- addresses ---------------------------------------------------------------------------------------------------

    def _classify(self, wanted: Mapping[object, Source]) -> None:
        """Give every address its class as these sources see it."""
        self._use(source for key, source in wanted.items() if key not in self._held)
        if self._addresses.size < max(self._look_at, self.renew_from):
            return
        if self._addresses.is_overgrown(side for source in wanted.values() for side in source.sides()):
            self._start_anew()
            self._use(wanted.values())
        self._look_at = 2 * self._addresses.size

    def _use(self, sources: Iterable[Source]) -> None:
        for source in sources:
            for side in source.sides():
                self._addresses.use(side)
        self._addresses.settle()

    def _start_anew(self) -> None:
        """Forget all classes, and the programs for them; the facts stay."""
        facts, self._addresses, self._held = self.facts, Addresses(), {}
        self._addresses.set_own(self._own)
        self._addresses.set_world(facts.nodes.values(), facts.slices.values())
        for name, profile in facts.profiles.items():
            self._addresses.set_parent(name, dict(profile.labels))
        self._take_owners(Touched(endpoints=facts.names(), hosts=set(facts.hosts), sets=set(facts.prefix_sets)))

    # ---- facts -------------------------------------------------------------------------------------------------------

    def _take_owners(self, touched: Touched) -> None:
        for key in touched.endpoints:
            self._take_owner(key, self.facts.endpoint(key))
            if key in self._local:
                self._govern(key)
        for key in touched.hosts:
            self._take_owner(HOST_ITEM + key, self.facts.hosts.get(key))
        for key in touched.sets:
            found = self.facts.prefix_sets.get(key)
            if found is None:
                self._addresses.remove_owner(SET_ITEM + key)
            else:
                self._addresses.set_owner(SET_ITEM + key, _labels(found), nets=found.nets)

    def _take_owner(self, key: str, endpoint: Endpoint | None) -> None:
        if endpoint is None:
            self._addresses.remove_owner(key)
        else:
            self._addresses.set_owner(key, _labels(endpoint), endpoint.addresses, endpoint.ports)

    def _take_policy(self, key: str) -> None:
        before, policy = self._selector_of.pop(key, None), self.facts.policies.get(key)
        if before is not None:
            del self._by_selector[before][key]
        if policy is not None and policy.staged is None and policy.stage == "normal":
            self._selector_of[key] = policy.selector.id
            self._by_selector[policy.selector.id][key] = policy
            self._governed.add_selector(policy.selector)
        if before is not None and not self._by_selector[before]:
            del self._by_selector[before]
            self._governed.remove_selector(before)

    # ---- our endpoints -----------------------------------------------------------------------------------------------

    def _follow(self, local: frozenset[str]) -> None:
        """Follow these endpoints' labels, and nobody else's."""
        before, self._local = self._local, local
        for name in before - local:
            self._governed.remove_item(name)
            self._made_of.pop(name, None)
        for name in local - before:
            self._govern(name)

    def _govern(self, name: str) -> None:
        self._made_of.pop(name, None)
        endpoint = self.facts.endpoint(name)
        if endpoint is None:
            self._governed.remove_item(name)
        else:
            self._governed.set_item(name, endpoint.labels, endpoint.parents)

    def _sources(self, name: str) -> tuple[Source, Source] | None:
        """What an endpoint's programs are made of; None for one that gets no traffic."""
        if name not in self._made_of:
            self._made_of[name] = self._look_sources(name)
        return self._made_of[name]

    def _look_sources(self, name: str) -> tuple[Source, Source] | None:
        endpoint = self.facts.endpoint(name)
        if endpoint is None or endpoint.closed:
            return None
        policies = [
            policy for selector in self._governed.matching(name) for policy in self._by_selector[selector].values()
        ]
        policies.sort(key=lambda one: (self._tiers[one.tier][0], one.sort_key))
        profiles = tuple(ProfilePart(one, self.facts.profiles.get(one)) for one in endpoint.profiles)
        return (
            Source(EGRESS, self._parts(policies, EGRESS), profiles),
            Source(INGRESS, self._parts(policies, INGRESS), profiles),
        )

    def _parts(self, policies: list[Policy], direction: Direction) -> tuple[TierPart, ...]:
        by_tier: dict[str, list[Policy]] = {}
        for policy in policies:
            if policy.rules(direction) is not None:
                by_tier.setdefault(policy.tier, []).append(policy)
        return tuple(
            TierPart(name, self._tiers[name][1].default_action == "Deny", tuple(found))
            for name, found in by_tier.items()
        )

    # ---- explaining --------------------------------------------------------------------------------------------------

    def sources(self, name: str) -> tuple[Source, Source] | None:
        """What the programs of an endpoint that was compiled for are made of: of egress, of ingress."""
        return self._sources(name)

    def seen_as(self, number: int) -> Seen:
        """What the rules see of the addresses of a class."""
        return self._addresses.table.seen[number]


def _labels(one: Endpoint | PrefixSet) -> Labels:
    return frozenset(one.labels.items()), one.parents
