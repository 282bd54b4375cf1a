"""Which items does each selector match? Kept up to date by looking only at what a change can touch.

Place     between the label maps of endpoints and network sets and the sets of addresses that rules refer to.
Structure items -> effective labels (own, then inherited from parents in order; the first one wins)
          selectors are filed once, under that demand which the fewest items meet when the selector comes:

              label -> value -> {selectors}      demands one of these values
              label -> {selectors}               demands only that the label is there
              {selectors}                        demands nothing that could be looked up: tried on every item

          and by every label they mention: a relabelled item tries only those that mention a label that changed.
Threads   none: one owner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from canal_udp.policy.selector import Compare, Expression, Has, In, Labels, Selector, demands, leaves

ItemT = TypeVar("ItemT", bound=Hashable)

_ANY_VALUE = 2**31


@dataclass(frozen=True, slots=True)
class Change(Generic[ItemT]):
    """An item began or ceased to match a selector."""

    selector: str  # its id
    item: ItemT
    matches: bool


@dataclass(slots=True)
class _Item:
    own: Labels
    parents: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)
    matching: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _File:
    """Where a selector lies. `label` None: everywhere; `values` None: under the label itself."""

    label: str | None
    values: frozenset[str] | None = None


class LabelIndex(Generic[ItemT]):
    """Items with labels, parents that pass labels on, selectors by id; every change returns who matches differently."""

    def __init__(self) -> None:
        self._items: dict[ItemT, _Item] = {}
        self._parents: dict[str, Labels] = {}
        self._children: dict[str, set[ItemT]] = defaultdict(set)
        self._carriers: dict[str, dict[str, set[ItemT]]] = defaultdict(lambda: defaultdict(set))
        self._selectors: dict[str, Selector] = {}
        self._members: dict[str, set[ItemT]] = {}
        self._by_value: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._by_label: dict[str, set[str]] = defaultdict(set)
        self._unfiled: set[str] = set()
        self._places: dict[str, _File] = {}
        self._mentions: dict[str, set[str]] = defaultdict(set)
        self.evaluations = 0  # how often a selector was tried on an item

    def members(self, selector: str) -> frozenset[ItemT]:
        return frozenset(self._members[selector])

    def matching(self, item: ItemT) -> frozenset[str]:
        """Ids of the selectors that match an item."""
        return frozenset(self._items[item].matching)

    def labels(self, item: ItemT) -> dict[str, str]:
        return dict(self._items[item].labels)

    # ---- items -------------------------------------------------------------------------------------------------------

    def set_item(self, item: ItemT, labels: Labels, parents: Iterable[str] = ()) -> list[Change[ItemT]]:
        """Add an item or give it other labels or parents."""
        is_new = item not in self._items
        entry = self._items.setdefault(item, _Item({}, ()))
        for parent in entry.parents:
            self._children[parent].discard(item)
        entry.own, entry.parents = dict(labels), tuple(parents)
        for parent in entry.parents:
            self._children[parent].add(item)
        return list(self._refresh(item, entry, everything=is_new))

    def remove_item(self, item: ItemT) -> list[Change[ItemT]]:
        entry = self._items.pop(item, None)
        if entry is None:
            return []
        for parent in entry.parents:
            self._children[parent].discard(item)
        for label, value in entry.labels.items():
            self._carriers[label][value].discard(item)
        for selector in entry.matching:
            self._members[selector].discard(item)
        return [Change(selector, item, False) for selector in sorted(entry.matching)]

    def set_parent(self, parent: str, labels: Labels) -> list[Change[ItemT]]:
        """Give a parent labels (none: it is gone); only its children are looked at."""
        self._parents[parent] = dict(labels)
        children = tuple(self._children[parent])
        return [change for item in children for change in self._refresh(item, self._items[item])]

    def _refresh(self, item: ItemT, entry: _Item, *, everything: bool = False) -> Iterator[Change[ItemT]]:
        before, entry.labels = entry.labels, self._effective(entry)
        changed = {label for label, _ in before.items() ^ entry.labels.items()}
        for label in changed:
            if label in before:
                self._carriers[label][before[label]].discard(item)
            if label in entry.labels:
                self._carriers[label][entry.labels[label]].add(item)
        candidates = self._candidates(entry.labels) | entry.matching
        if not everything:
            candidates &= {selector for label in changed for selector in self._mentions[label]}
        for selector in sorted(candidates):
            yield from self._try(selector, item, entry)

    def _effective(self, entry: _Item) -> dict[str, str]:
        labels: dict[str, str] = {}
        for parent in reversed(entry.parents):
            labels.update(self._parents.get(parent, {}))
        labels.update(entry.own)
        return labels

    def _candidates(self, labels: Mapping[str, str]) -> set[str]:
        found = set(self._unfiled)
        for label, value in labels.items():
            if label in self._by_label:
                found |= self._by_label[label]
            if label in self._by_value:
                found |= self._by_value[label].get(value, set())
        return found

    def _try(self, selector: str, item: ItemT, entry: _Item) -> Iterator[Change[ItemT]]:
        self.evaluations += 1
        now, before = self._selectors[selector].matches(entry.labels), selector in entry.matching
        if now == before:
            return
        if now:
            entry.matching.add(selector)
            self._members[selector].add(item)
        else:
            entry.matching.discard(selector)
            self._members[selector].discard(item)
        yield Change(selector, item, now)

    # ---- selectors ---------------------------------------------------------------------------------------------------

    def add_selector(self, selector: Selector) -> list[Change[ItemT]]:
        """Begin to follow a selector; one that is followed already changes nothing."""
        name = selector.id
        if name in self._selectors:
            return []
        self._selectors[name], self._members[name] = selector, set()
        for label in _mentioned(selector.root):
            self._mentions[label].add(name)
        if (place := self._place(selector)) is None:
            return []  # it can match nothing, whatever the labels
        self._places[name] = place
        self._file(name, place)
        items = self._reached(place)
        return [change for item in items for change in self._try(name, item, self._items[item])]

    def remove_selector(self, name: str) -> None:
        selector = self._selectors.pop(name, None)
        if selector is None:
            return
        for item in self._members.pop(name):
            self._items[item].matching.discard(name)
        for label in _mentioned(selector.root):
            self._mentions[label].discard(name)
        place = self._places.pop(name, None)
        if place is None:
            return
        if place.label is None:
            self._unfiled.discard(name)
        elif place.values is None:
            self._by_label[place.label].discard(name)
        else:
            for value in place.values:
                self._by_value[place.label][value].discard(name)

    def _file(self, name: str, place: _File) -> None:
        if place.label is None:
            self._unfiled.add(name)
        elif place.values is None:
            self._by_label[place.label].add(name)
        else:
            for value in place.values:
                self._by_value[place.label][value].add(name)

    def _place(self, selector: Selector) -> _File | None:
        """The narrowest demand of a selector; None when it cannot match at all."""
        best, best_key = _File(None), (len(self._items) + 1, 0, "")
        for label, demand in demands(selector.root).items():
            if demand.impossible:
                return None
            if not demand.present:
                continue
            place = _File(label, demand.values)
            key = (self._count(place), _breadth(demand.values), label)
            if key < best_key:
                best, best_key = place, key
        return best

    def _count(self, place: _File) -> int:
        carriers = self._carriers.get(place.label or "", {})
        values = carriers.keys() if place.values is None else place.values
        return sum(len(carriers.get(value, ())) for value in values)

    def _reached(self, place: _File) -> list[ItemT]:
        if place.label is None:
            return list(self._items)
        carriers = self._carriers.get(place.label, {})
        values = carriers.keys() if place.values is None else place.values
        return [item for value in values for item in carriers.get(value, ())]


def _breadth(values: frozenset[str] | None) -> int:
    """Decides between demands that as many items meet: the fewer values the better, any value is the worst."""
    return _ANY_VALUE if values is None else len(values)


def _mentioned(expression: Expression) -> set[str]:
    return {leaf.label for leaf in leaves(expression) if isinstance(leaf, Has | Compare | In)}
