"""canal policy apply|delete|list|get: the objects in the store that all nodes share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from canal_udp.api import call
from canal_udp.cli.output import print_json, print_table
from canal_udp.cli.store import add_store, with_store
from canal_udp.errors import ConfigError, RequestError, StoreConflict, UsageError

if TYPE_CHECKING:
    from canal_udp.control.objects import ObjectKey
    from canal_udp.control.store import Entry, Snapshot, Store
    from canal_udp.policy.load import Loaded
    from canal_udp.policy.model import LabelSelector, Policy

_APPLY = """Write the objects of some files into the store: policies, tiers, sets, namespaces, and what else policies
look at. All files are checked first: with an error in one nothing is written, nor when a test of the files would fail
in the cluster as it then is (see `canal policy test`). All nodes know within a second."""
_DELETE = "Remove the objects that some files hold, or one by its kind and name, from the store."
_KIND = "such as NetworkPolicy, GlobalNetworkPolicy, Tier; NetworkPolicy.projectcalico.org is Calico's"
_COLUMNS = ("kind", "namespace", "name", "tier", "order", "selector", "rules", "state")
_CONFLICTS_MAX = 5


def register_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands below `canal policy`."""
    apply = actions.add_parser("apply", help="write objects into the store", description=_APPLY)
    _add_files(apply, required=True)
    apply.add_argument("--force", action="store_true", help="also when tests of the files fail")
    add_store(apply)
    apply.set_defaults(handler=_apply)
    delete = actions.add_parser("delete", help="remove objects from the store", description=_DELETE)
    _add_files(delete, required=False)
    _add_name(delete, required=False)
    add_store(delete)
    delete.set_defaults(handler=_delete)
    listing = actions.add_parser("list", help="list the objects in the store")
    listing.add_argument("-n", "--namespace", default="", metavar="NS", help="only those of a namespace")
    listing.add_argument("--hits", action="store_true", help="how often each rule decided, at the node asked")
    add_store(listing)
    listing.set_defaults(handler=_list)
    get = actions.add_parser("get", help="print an object as it was written")
    _add_name(get, required=True)
    get.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml", help="(%(default)s)")
    add_store(get)
    get.set_defaults(handler=_get)


def _add_files(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        *("-f", "--file"),
        dest="files",
        nargs="+",
        action="extend",
        default=[],
        required=required,
        metavar="FILE",
        help="YAML or JSON, a folder of them, or - for standard input",
    )


def _add_name(parser: argparse.ArgumentParser, *, required: bool) -> None:
    many = None if required else "?"
    parser.add_argument("kind", metavar="KIND", nargs=many, default="", help=_KIND)
    parser.add_argument("name", metavar="NAME", nargs=many, default="")
    parser.add_argument("-n", "--namespace", default="default", metavar="NS", help="its namespace (%(default)s)")


# ---- writing ---------------------------------------------------------------------------------------------------------


def _apply(arguments: argparse.Namespace) -> int:
    from canal_udp.control.objects import object_key, object_value

    loaded = _load(arguments.files)
    wanted = [
        (object_key(found), object_value(cursor.value, str(cursor.where)), cursor.value)
        for found, cursor in loaded.written
    ]
    wanted.sort(key=lambda one: ("Policy" in one[0].kind, one[0]))  # what policies look at is there before they are

    async def write(store: Store) -> list[tuple[ObjectKey, str]]:
        listed = await store.list("policies")
        if loaded.tests and not arguments.force:
            _run_tests(loaded, (await store.list("endpoints"), listed), {str(key): value for key, value, _ in wanted})
        there = {entry.key: entry for entry in listed.entries}
        return [(key, await _put(store, key, value, document, there.get(str(key)))) for key, value, document in wanted]

    _tell(with_store(arguments, write), arguments.json)
    return 0


def _run_tests(loaded: Loaded, before: tuple[Snapshot, Snapshot], wanted: Mapping[str, bytes]) -> None:
    """Run the tests of the files in the cluster that would be; RequestError if one fails."""
    from canal_udp.cli.policy_files import tell
    from canal_udp.control.store import Batch, Entry
    from canal_udp.policy.cluster import Cluster
    from canal_udp.policy.policy_tests import failed_tests

    cluster, (endpoints, policies) = Cluster(), before
    cluster.apply(endpoints, "endpoints")
    cluster.apply(policies, "policies")
    revision = policies.revision + 1
    cluster.apply(Batch(revision, tuple(Entry(key, wanted[key], revision, revision) for key in wanted)), "policies")
    failed = failed_tests(cluster.state(), loaded.tests)
    tell(failed)
    if failed:
        count = f"{len(failed)} {'test fails' if len(failed) == 1 else 'tests fail'}"
        raise RequestError(f"{count}; nothing is changed (--force applies all the same)")


async def _put(store: Store, key: ObjectKey, value: bytes, document: object, entry: Entry | None) -> str:
    """Write one object; says what that changed."""
    for _ in range(_CONFLICTS_MAX):
        if entry is not None and _document(entry) == document:
            return "unchanged"
        try:
            await store.put("policies", str(key), value, entry.revision if entry else 0)
        except StoreConflict:  # someone else wrote it just now: what is true of it now?
            entry = next((one for one in (await store.list("policies")).entries if one.key == str(key)), None)
        else:
            return "configured" if entry else "created"
    raise RequestError(f"{key}: someone else writes it all the time")


def _document(entry: Entry) -> object:
    """What an entry holds; None if it is nothing that could be read."""
    from canal_udp.control.objects import read_value

    try:
        return read_value(entry.value, entry.key)
    except ConfigError:
        return None


def _delete(arguments: argparse.Namespace) -> int:
    if bool(arguments.files) == bool(arguments.kind):
        raise UsageError("say what to delete: -f FILE, or KIND NAME")
    if arguments.kind and not arguments.name:
        raise UsageError(f"say which {arguments.kind}: KIND NAME")
    keys = _keys_of_files(arguments.files) if arguments.files else []

    async def delete(store: Store) -> list[tuple[ObjectKey, str]]:
        found = keys or [_entry(await _keys(store), arguments)]
        gone = [(key, await store.delete("policies", str(key))) for key in found]
        return [(key, "deleted" if was_there else "was not there") for key, was_there in gone]

    done = with_store(arguments, delete)
    _tell(done, arguments.json)
    return int(any(action != "deleted" for _, action in done))


def _keys_of_files(files: Iterable[str]) -> list[ObjectKey]:
    from canal_udp.control.objects import object_key

    return [object_key(found) for found, _ in reversed(_load(files).written)]


def _load(files: Iterable[str]) -> Loaded:
    """Read files that must be without errors, and hold something."""
    from canal_udp.cli.policy_files import load_files, tell

    loaded = load_files(files)
    tell(loaded.problems)
    if errors := loaded.errors:
        raise UsageError(f"{len(errors)} {'error' if len(errors) == 1 else 'errors'}; nothing is changed")
    if not loaded.written:
        raise UsageError("these files hold no object")
    return loaded


def _tell(done: Iterable[tuple[ObjectKey, str]], as_json: bool) -> None:
    if as_json:
        print_json([_named(key) | {"action": action} for key, action in done])
        return
    for key, action in done:
        print(f"{key.kind} {_full_name(key)} {action}")


def _named(key: ObjectKey) -> dict[str, Any]:
    return {"kind": key.kind, "namespace": key.namespace or None, "name": key.name}


def _full_name(key: ObjectKey) -> str:
    return f"{key.namespace}/{key.name}" if key.namespace else key.name


# ---- which object ----------------------------------------------------------------------------------------------------

_CALICO, _KUBERNETES = ".projectcalico.org", ".networking.k8s.io"
_SHORT = {
    "netpol": "NetworkPolicy",
    "gnp": "GlobalNetworkPolicy",
    "cnp": "ClusterNetworkPolicy",
    "anp": "AdminNetworkPolicy",
    "banp": "BaselineAdminNetworkPolicy",
    "ns": "Namespace",
    "netset": "NetworkSet",
    "gns": "GlobalNetworkSet",
    "sa": "ServiceAccount",
    "hep": "HostEndpoint",
    "wep": "WorkloadEndpoint",
}


def kinds_meant(word: str) -> tuple[str, ...]:
    """The kinds in the store that a person may mean by a word; UsageError if there is none."""
    from canal_udp.control.objects import GLOBAL, NAMESPACED
    from canal_udp.policy.cursor import suggest

    lower, group = word.lower(), ""
    for suffix in (_CALICO, _KUBERNETES):
        if lower.endswith(suffix):
            lower, group = lower.removesuffix(suffix), suffix
    lower = _SHORT.get(lower, lower).lower()
    known = {kind.lower(): kind for kind in (*NAMESPACED, *GLOBAL)}
    kind = next((known[one] for one in (lower, lower.removesuffix("s"), f"{lower[:-3]}y") if one in known), "")
    if not kind:
        raise UsageError(f"unknown kind {word!r}; {suggest(word, known.values())}")
    if kind != "NetworkPolicy":
        return (kind,)
    return {_CALICO: (kind,), _KUBERNETES: (f"Kubernetes{kind}",)}.get(group, (f"Kubernetes{kind}", kind))


def _entry(there: Iterable[ObjectKey], arguments: argparse.Namespace) -> ObjectKey:
    """The object that KIND NAME means; RequestError if there is none."""
    from canal_udp.control.objects import NAMESPACED

    kinds = kinds_meant(arguments.kind)
    namespace = arguments.namespace if kinds[0] in NAMESPACED else ""
    found = [key for key in there if key.kind in kinds and (key.namespace, key.name) == (namespace, arguments.name)]
    if not found:
        where = f" in namespace {namespace}" if namespace else ""
        raise RequestError(f"there is no {arguments.kind} {arguments.name}{where}; canal policy list")
    if len(found) > 1:
        raise UsageError(
            f"{arguments.name} is there twice: NetworkPolicy{_KUBERNETES} and NetworkPolicy{_CALICO}; say which"
        )
    return found[0]


async def _keys(store: Store) -> list[ObjectKey]:
    from canal_udp.control.objects import parse_object_key

    found = []
    for entry in (await store.list("policies")).entries:
        try:
            found.append(parse_object_key(entry.key))
        except ValueError:
            continue  # `canal policy list` shows it
    return found


# ---- looking ---------------------------------------------------------------------------------------------------------


def _get(arguments: argparse.Namespace) -> int:
    from canal_udp.policy.reader import write_document

    async def get(store: Store) -> Entry:
        key = str(_entry(await _keys(store), arguments))
        return next(entry for entry in (await store.list("policies")).entries if entry.key == key)

    entry = with_store(arguments, get)
    document = _document(entry)
    if document is None:
        raise RequestError(f"{entry.key} holds no object; canal policy list says what is wrong")
    if arguments.json or arguments.output == "json":
        print_json(document)
    else:
        print(write_document(document), end="")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    entries = with_store(arguments, lambda store: store.list("policies")).entries
    rows = [row for row in map(_row, entries) if arguments.namespace in ("", row["namespace"])]
    if arguments.hits:
        _add_hits(rows, call(arguments.run_dir, "hits"), as_json=arguments.json)
    if arguments.json:
        print_json(rows)
    else:
        print_table((*_COLUMNS, "hits") if arguments.hits else _COLUMNS, rows, "no policies")
    return 0


def _add_hits(rows: Iterable[dict[str, Any]], hits: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    """How often the rules of each policy decided: every rule for programs, for people a sum for each direction."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for one in hits:
        rules.setdefault(one["policy"], []).append(one)
    for row in rows:
        name = f"{row['namespace']}/{row['name']}" if row["namespace"] else row["name"]
        found = rules.get(f"{row['kind']}:{name}", [])
        sums: dict[str, int] = {}
        for one in found:
            sums[one["direction"]] = sums.get(one["direction"], 0) + (one["hits"] or 0)
        row["hits"] = found if as_json else sums or None


def _row(entry: Entry) -> dict[str, Any]:
    """An object as a line; `state` says what is wrong with it."""
    from canal_udp.policy.model import CalicoPolicy, ClusterPolicy, KubePolicy
    from canal_udp.policy.stored import read_fact

    fact = read_fact("policies", entry.key, entry.value)
    named = _named(fact.key) if fact.key else {"kind": None, "namespace": None, "name": entry.key}
    row = dict.fromkeys(_COLUMNS) | named | {"state": fact.problem or "ok"}
    if isinstance(fact.found, KubePolicy | ClusterPolicy | CalicoPolicy):
        row |= _policy_cells(fact.found)
    return row


def _policy_cells(policy: Policy) -> dict[str, Any]:
    from canal_udp.policy.lower import lower_policy

    lowered = lower_policy(policy)
    ways = (("ingress", lowered.ingress, policy.ingress), ("egress", lowered.egress, policy.egress))
    return {
        "tier": lowered.tier,
        "order": f"{lowered.order:g}" if abs(lowered.order) != float("inf") else None,
        "selector": _selected(policy),
        "rules": {way: len(written) for way, governed, written in ways if governed is not None},
    }


def _selected(policy: Policy) -> str:
    """Whom a policy governs, as it was written."""
    from canal_udp.policy.model import CalicoPolicy, KubePolicy

    if isinstance(policy, KubePolicy):
        return _labels(policy.selector)
    if isinstance(policy, CalicoPolicy):
        parts = {"": policy.selector, "namespaces ": policy.namespace_selector}
        parts["service accounts "] = policy.service_account_selector
        return "; ".join(f"{what}{one.canonical}" for what, one in parts.items() if one is not None) or "all()"
    pods = policy.subject.pods
    namespaces = f"namespaces {_labels(policy.subject.namespaces)}"
    return namespaces if pods is None else f"{_labels(pods)}; {namespaces}"


def _labels(selector: LabelSelector) -> str:
    """As kubectl writes it."""
    parts = [f"{key}={value}" for key, value in selector.labels]
    for one in selector.requirements:
        listed = f"({','.join(one.values)})"
        forms = {"In": f"{one.key} in {listed}", "NotIn": f"{one.key} notin {listed}", "Exists": one.key}
        parts.append(forms.get(one.operator, f"!{one.key}"))
    return ",".join(parts) or "all"
