"""The label index: always what a scan of everything would say, and few evaluations on the way there."""

from __future__ import annotations

import random

from canal_udp.policy.index import Change, LabelIndex
from canal_udp.policy.selector import Selector, parse

TEXTS = [
    "all()",
    "has(a)",
    "!has(a)",
    "a == '1'",
    "a != '1'",
    "a == '1' && b == '2'",
    "a == '1' || b == '2'",
    "a in {'1', '2'} && !has(b)",
    "a in {}",
    "a == '1' && a == '2'",
    "ns.env == 'prod'",
    "ns.env == 'prod' && a in {'1', '2', '3'}",
    "ns.env not in {'prod'} && b starts with '2'",
    "has(a) && (b == '1' || b == '2')",
    "!(a == '1' && ns.env == 'dev')",
]


def test_random_changes_agree_with_a_scan() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    index: LabelIndex[int] = LabelIndex()
    own: dict[int, dict[str, str]] = {}
    parents: dict[int, tuple[str, ...]] = {}
    inherited: dict[str, dict[str, str]] = {}
    selectors: dict[str, Selector] = {}
    believed: dict[str, set[int]] = {}

    def labels(names: tuple[str, ...]) -> dict[str, str]:
        return {name: rng.choice("123") for name in names if rng.random() < 0.6}

    def hear(changes: list[Change[int]]) -> None:
        for change in changes:
            members = believed[change.selector]
            assert (change.item in members) is not change.matches, f"seed {seed}: a change that changes nothing"
            (members.add if change.matches else members.discard)(change.item)

    for _ in range(3000):
        match rng.randrange(6):
            case 0 | 1:
                item = rng.randrange(20)
                own[item] = labels(("a", "b"))
                parents[item] = tuple(rng.sample(["x", "y", "z"], rng.randrange(3)))
                hear(index.set_item(item, own[item], parents[item]))
            case 2:
                item = rng.randrange(20)
                own.pop(item, None)
                hear(index.remove_item(item))
            case 3:
                parent = rng.choice("xyz")
                inherited[parent] = labels(("a",)) | (
                    {"ns.env": rng.choice(["prod", "dev"])} if rng.random() < 0.7 else {}
                )
                hear(index.set_parent(parent, inherited[parent]))
            case 4:
                selector = parse(rng.choice(TEXTS))
                selectors[selector.id] = selector
                believed.setdefault(selector.id, set())
                hear(index.add_selector(selector))
            case 5:
                name = parse(rng.choice(TEXTS)).id
                selectors.pop(name, None)
                believed.pop(name, None)
                index.remove_selector(name)
        for name, selector in selectors.items():
            scan = set()
            for item, mine in own.items():
                effective: dict[str, str] = {}
                for parent in reversed(parents[item]):
                    effective |= inherited.get(parent, {})
                if selector.matches(effective | mine):
                    scan.add(item)
            assert index.members(name) == scan == believed[name], f"seed {seed}: {selector}"


def test_a_relabel_tries_only_what_it_can_touch() -> None:
    index: LabelIndex[str] = LabelIndex()
    for number in range(1000):
        index.add_selector(parse(f"ns == 'n{number}' && app == 'web'"))
    for number in range(1000):
        index.set_item(f"pod{number}", {"ns": f"n{number}", "app": "web"})
    index.evaluations = 0
    changes = index.set_item("pod7", {"ns": "n7", "app": "db"})
    assert [change.matches for change in changes] == [False]
    assert index.evaluations == 1
    index.evaluations = 0
    assert index.set_item("pod7", {"ns": "n7", "app": "db", "other": "1"}) == []
    assert index.evaluations == 0


def test_a_namespace_relabel_touches_its_own_pods() -> None:
    index: LabelIndex[str] = LabelIndex()
    for number in range(100):
        index.set_parent(f"n{number}", {"ns.env": "dev"})
        for pod in range(10):
            index.set_item(f"n{number}/p{pod}", {"app": str(pod)}, [f"n{number}"])
    selector = parse("ns.env == 'prod'")
    index.add_selector(selector)
    index.evaluations = 0
    index.set_parent("n5", {"ns.env": "prod"})
    assert index.members(selector.id) == {f"n5/p{pod}" for pod in range(10)}
    assert index.evaluations == 10
