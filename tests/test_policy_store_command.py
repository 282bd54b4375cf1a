"""canal policy apply, delete, list, get and canal label, against a store in a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from canal_udp.__main__ import main
from canal_udp.cli.objects import kinds_meant
from canal_udp.control.store import Entry, open_store
from canal_udp.endpoints import change_labels
from canal_udp.errors import RequestError, UsageError
from tests.policies import CALICO, calico, cnp, files, gnp, np, tier
from tests.test_cli import Daemon, daemon, ok

__all__ = ["daemon"]  # the fixture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/canal.db"


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        status = main(["policy", *words, "--store", url])
        return status, *capsys.readouterr()

    return call


def write(path: Path, *documents: str) -> str:
    path.write_text(files(*documents))
    return str(path)


def entries(url: str) -> dict[str, Entry]:
    async def body() -> dict[str, Entry]:
        store = open_store(url)
        try:
            return {entry.key: entry for entry in (await store.list("policies")).entries}
        finally:
            await store.close()

    return asyncio.run(body())


def put(url: str, key: str, value: bytes) -> None:
    async def body() -> None:
        store = open_store(url)
        await store.put("policies", key, value)
        await store.close()

    asyncio.run(body())


WEB = np("x", "{matchLabels: {app: web}}", "ingress: [{}]", "web")


def test_apply_says_what_it_did_to_each_object(run: Run, url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", WEB, tier("t", 10))
    assert run("apply", "-f", file) == (0, "Tier t created\nKubernetesNetworkPolicy x/web created\n", "")
    before = entries(url)
    assert run("apply", "-f", file)[1] == "Tier t unchanged\nKubernetesNetworkPolicy x/web unchanged\n"
    assert entries(url) == before, "nothing was written"
    write(tmp_path / "a.yaml", WEB.replace("web", "db", 1).replace("name: db", "name: web"), tier("t", 11))
    _, out, _ = run("apply", "-f", file, "-j")
    assert [(one["name"], one["action"]) for one in json.loads(out)] == [("t", "configured"), ("web", "unchanged")]


def test_a_list_and_a_folder_are_their_objects(run: Run, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} for name in "ab"]
    (folder / "list.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    write(folder / "np.yaml", WEB)
    assert run("apply", "-f", str(folder))[0] == 0
    assert entries(url).keys() == {"Pod/default/a", "Pod/default/b", "KubernetesNetworkPolicy/x/web"}
    assert json.loads(entries(url)["Pod/default/a"].value) == pods[0]


def test_all_errors_of_all_files_are_told_and_nothing_is_written(run: Run, url: str, tmp_path: Path) -> None:
    bad = WEB.replace("ingress: [{}]", "ingres: [{}]")
    one, two = (
        write(tmp_path / "one.yaml", WEB, bad),
        write(tmp_path / "two.yaml", tier("t", 1).replace("order", "oder")),
    )
    status, out, err = run("apply", "-f", one, two)
    assert (status, out, entries(url)) == (2, "", {})
    assert f"{one}:9: error: spec.ingres: unknown field; did you mean 'ingress'?" in err
    assert f"{two}:4: error: spec.oder" in err and "nothing is changed" in err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "hold no object", id="nothing in it"),
        pytest.param("kind: [", "not YAML", id="not YAML"),
        pytest.param(files(WEB, WEB), "is there twice", id="the same object twice"),
    ],
)
def test_what_cannot_be_written_is_refused(run: Run, url: str, tmp_path: Path, text: str, problem: str) -> None:
    status, _, err = run("apply", "-f", write(tmp_path / "a.yaml", text))
    assert status == 2 and problem in err and not entries(url)


def test_delete_by_file_and_by_name(run: Run, url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", WEB, tier("t", 10), gnp("g", ""))
    run("apply", "-f", file)
    assert run("delete", "networkpolicies", "web", "-n", "x") == (0, "KubernetesNetworkPolicy x/web deleted\n", "")
    status, _, err = run("delete", "netpol", "web", "-n", "x")
    assert status == 1 and "there is no netpol web in namespace x" in err
    status, out, _ = run("delete", "-f", file)
    assert status == 1 and "GlobalNetworkPolicy g deleted\nTier t deleted\nKubernetesNetworkPolicy x/web was not" in out
    assert entries(url) == {}


@pytest.mark.parametrize(
    "words", [("delete",), ("delete", "Tier"), ("delete", "Tier", "t", "-f", "x"), ("delete", "x", "y")]
)
def test_delete_wants_to_know_what(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words)[0] == 2


def test_get_prints_what_was_written(run: Run, tmp_path: Path) -> None:
    run("apply", "-f", write(tmp_path / "a.yaml", WEB))
    _, out, _ = run("get", "netpol", "web", "-n", "x")
    again = tmp_path / "again.yaml"
    again.write_text(out)
    assert run("apply", "-f", str(again))[1] == "KubernetesNetworkPolicy x/web unchanged\n"
    assert json.loads(run("get", "netpol", "web", "-n", "x", "-o", "json")[1])["metadata"]["name"] == "web"


def test_one_name_of_two_kinds_must_be_said_in_full(run: Run, tmp_path: Path) -> None:
    run("apply", "-f", write(tmp_path / "a.yaml", WEB, calico("NetworkPolicy", "web", "selector: all()", "x")))
    status, _, err = run("get", "NetworkPolicy", "web", "-n", "x")
    assert status == 2 and "NetworkPolicy.projectcalico.org" in err
    for kind, version in (("projectcalico.org", "projectcalico.org/v3"), ("networking.k8s.io", "networking.k8s.io/v1")):
        out = run("get", f"networkpolicies.{kind}", "web", "-n", "x", "-o", "json")[1]
        assert json.loads(out)["apiVersion"] == version


@pytest.mark.parametrize(
    ("word", "kinds"),
    [
        ("tier", ("Tier",)),
        ("GlobalNetworkPolicies", ("GlobalNetworkPolicy",)),
        ("gnp", ("GlobalNetworkPolicy",)),
        ("cnp", ("ClusterNetworkPolicy",)),
        ("NetworkPolicy", ("KubernetesNetworkPolicy", "NetworkPolicy")),
        ("KubernetesNetworkPolicy", ("KubernetesNetworkPolicy",)),
    ],
)
def test_people_name_kinds_in_their_way(word: str, kinds: tuple[str, ...]) -> None:
    assert kinds_meant(word) == kinds


def test_a_kind_that_is_none_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'NetworkPolicy'"):
        kinds_meant("NetworkPolcy")


def test_list_says_in_which_tier_and_whom(run: Run, url: str, tmp_path: Path) -> None:
    admin = cnp("c", "Admin", 7, "ingress: [{action: Deny, from: [{namespaces: {}}]}]")
    named = calico("NetworkPolicy", "p", "tier: t, selector: has(app), types: [Egress]", "y")
    run("apply", "-f", write(tmp_path / "a.yaml", WEB, admin, named, tier("t", 1), gnp("g", "order: 2.5")))
    put(url, "GlobalNetworkPolicy/_/spoilt", b"{")
    put(url, "\x1b[2J", b"{}")
    rows = {row["name"]: row for row in json.loads(run("list", "-j")[1])}
    cells: dict[str, tuple[Any, ...]] = {name: tuple(list(row.values())[3:7]) for name, row in rows.items()}
    assert cells["web"] == ("default", "1000", "app=web", {"ingress": 1})
    assert cells["c"] == ("kube-admin", "7", "namespaces ns=x", {"ingress": 1})
    assert cells["p"] == ("t", None, "has(app)", {"egress": 0})
    assert cells["g"] == ("default", "2.5", "all()", {"ingress": 0})
    assert cells["t"] == (None, None, None, None)
    assert rows["spoilt"]["state"].startswith("policies/GlobalNetworkPolicy/_/spoilt: not JSON")
    out = run("list")[1]
    assert "\x1b" not in out and "is no key of an object" in out
    assert [row["name"] for row in json.loads(run("list", "-n", "x", "-j")[1])] == ["web"]


def test_a_spoilt_entry_can_be_deleted_and_not_printed(run: Run, url: str) -> None:
    put(url, "Tier/_/t", b"{")
    status, _, err = run("get", "tier", "t")
    assert status == 1 and "holds no object" in err
    assert run("delete", "tier", "t") == (0, "Tier t deleted\n", "")


def test_without_a_flag_it_is_the_store_of_the_daemon_that_runs(
    daemon: Daemon, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CANAL_STORE", "CANAL_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    file = write(tmp_path / "a.yaml", WEB)
    daemon.answers["status"] = ok({"store": url})
    assert main(["policy", "apply", "-f", file, "--run-dir", str(tmp_path)]) == 0
    assert entries(url).keys() == {"KubernetesNetworkPolicy/x/web"}


def test_a_store_in_the_memory_of_a_daemon_is_nobody_elses(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CANAL_STORE", raising=False)
    daemon.answers["status"] = ok({"store": "memory://x"})
    assert main(["policy", "list", "--run-dir", str(tmp_path)]) == 1
    assert "in its own memory" in capsys.readouterr().err


def test_labels_are_set_and_taken_away() -> None:
    before = (("app", "web"), ("tier", "x"))
    assert change_labels(before, ["app=db", "tier-", "none-", "new="]) == (("app", "db"), ("new", ""))
    for bad in ("app", "=", "a b=c"):
        with pytest.raises(RequestError, match="is no label"):
            change_labels(before, [bad])


def test_what_cannot_be_understood_is_kept_by_its_version(run: Run, tmp_path: Path) -> None:
    other = f"{CALICO}\nkind: IPPool\nmetadata: {{name: pool}}"
    status, out, err = run("apply", "-f", write(tmp_path / "a.yaml", WEB, other))
    assert status == 0 and "x/web created" in out and "IPPool says nothing about verdicts" in err


PODS = """
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: web}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: y}, status: {podIP: 10.0.0.2}}
"""


def test_apply_refuses_when_a_test_of_the_files_would_fail_in_the_cluster(run: Run, url: str, tmp_path: Path) -> None:
    run("apply", "-f", write(tmp_path / "pods.yaml", PODS))
    tests = "tests: [{name: open, allow: [{from: y/b, to: x/a, port: 80}]}]"
    good, bad = write(tmp_path / "good.yaml", WEB, tests), write(tmp_path / "bad.yaml", np("x", "{}", ""), tests)
    before = entries(url)
    status, out, err = run("apply", "-f", bad)
    assert (status, out) == (1, "") and entries(url) == before
    assert f"{bad}:6: error: test 'open'" in err and "nothing is changed (--force" in err
    assert run("apply", "-f", good)[0] == 0
    assert run("apply", "-f", bad)[1] == "KubernetesNetworkPolicy x/p created\n", "policies of the cluster count, too"
    run("delete", "-f", good)
    assert run("apply", "-f", bad)[0] == 1
    assert run("apply", "-f", bad, "--force")[0] == 0


def test_a_list_with_hits_asks_the_daemon(run: Run, tmp_path: Path, daemon: Daemon) -> None:
    run("apply", "-f", write(tmp_path / "a.yaml", WEB, tier("t", 10)))
    rule = {"policy": "KubernetesNetworkPolicy:x/web", "direction": "ingress", "action": "Allow"}
    daemon.answers["hits"] = ok([rule | {"rule": 0, "hits": 3}, rule | {"rule": -1, "hits": 4}])
    asked = ("list", "--hits", "--run-dir", str(tmp_path))
    assert run(*asked)[1].splitlines()[1].split()[-1] == "ingress=7"
    rows = json.loads(run(*asked, "-j")[1])
    assert [[one["hits"] for one in row["hits"]] for row in rows] == [[3, 4], []], "a tier has no rules"
