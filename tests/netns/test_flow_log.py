"""Who talks to whom, who may not, and why: what the commands say of real packets between the pods of two nodes."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from canal_udp.lab import trial
from canal_udp.lab.probe import Probe, Service
from canal_udp.lab.state import LabState
from tests.netns.labs import Lab, wait_until

pytest_plugins = ("tests.netns.lab_fixtures",)

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies.yaml"
WEB, DB = Service("TCP", 80), Service("UDP", 53)


@pytest.fixture(scope="module")
def shop(new_lab: Callable[[], Lab]) -> Iterator[Lab]:
    """The example: clerk (office, node b) may ask web (shop, node a) on TCP 80, and nobody asks db but the shop."""
    lab = new_lab()
    lab.up(str(EXAMPLE))
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def probers(shop: Lab) -> Iterator[trial.Probers]:
    state = LabState(shop.path)
    with trial.Probers(trial.places(state.lab(), state.pods()), [WEB, DB]) as made:
        yield made


def ask(lab: Lab, node: str, *words: str) -> Any:
    return json.loads(lab.exec(node, "canal", *words, "-j").stdout)


def test_flows_name_their_ends_and_what_decided(shop: Lab, probers: trial.Probers) -> None:
    assert set(probers.ask([Probe("clerk", "web", WEB)], 1).values()) == {"passed"}
    for node, end, policy in (("a", "ingress", "KubernetesNetworkPolicy:shop/web-for-all"), ("b", "egress", None)):
        row = next(row for row in ask(shop, node, "flows") if (row["dst_name"], row["dport"]) == ("shop/web", 80))
        assert (row["src_name"], row["src_node"], row["src_labels"]) == ("office/clerk", "b", {"app": "browser"})
        assert (row["verdict"], row["protocol"], row[end]["policy"]) == ("allow", "TCP", policy or row[end]["policy"])
        assert min(row["packets"]) >= 3 and min(row["bytes"]) > 100
    rule = row_of(ask(shop, "a", "policy", "list", "--hits"), "web-for-all")
    assert rule["direction"] == "ingress" and rule["hits"] >= 1


def row_of(listed: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The hits of the only rule of a policy."""
    (policy,) = (one for one in listed if one["name"] == name)
    found: dict[str, Any] = policy["hits"][0]
    return found


def test_drops_say_whom_policy_denied_and_why(shop: Lab, probers: trial.Probers) -> None:
    assert set(probers.ask([Probe("clerk", "db", DB)], 1).values()) == {"silent"}
    drops = ask(shop, "a", "drops")
    assert drops["policy"] >= 1
    row = next(row for row in drops["flows"] if row["dst_name"] == "shop/db" and row["src_name"] == "office/clerk")
    assert (row["verdict"], row["denied_by"], row["reason"], row["dport"]) == ("deny", "ingress", "policy", 53)
    assert row["ingress"]["policy"] == "KubernetesNetworkPolicy:shop/nobody"
    assert row["ingress"]["reason"] == "no rule of the tier matched"
    assert "KubernetesNetworkPolicy:shop/nobody" in shop.exec("a", "canal", "drops").stdout
    assert [row for row in ask(shop, "b", "drops")["flows"] if row["dst_name"] == "shop/db"] == [], "b let it out"


@pytest.mark.parametrize("command", ["flows", "drops"])
def test_following_tells_each_flow_as_it_comes(shop: Lab, probers: trial.Probers, command: str) -> None:
    target, service = ("web", WEB) if command == "flows" else ("db", DB)
    command_line = [sys.executable, "-m", "canal_udp", "lab", "exec", "--lab", shop.name, "a", "--"]
    with subprocess.Popen([*command_line, "canal", command, "--follow", "-j"], stdout=subprocess.PIPE) as follower:
        try:
            assert follower.stdout is not None
            while not select.select([follower.stdout], [], [], 0)[0]:  # until it looks, and after
                assert follower.poll() is None
                probers.ask([Probe("clerk", target, service)], 1)
            row = json.loads(follower.stdout.readline())
        finally:
            follower.terminate()
    assert (row["src_name"], row["dst_name"]) == ("office/clerk", f"shop/{target}")
    assert row["verdict"] == ("allow" if command == "flows" else "deny")


def test_explain_says_what_packets_meet(shop: Lab, probers: trial.Probers) -> None:
    """At either node, for either end: the verdict of the policies in force there, and of the same objects elsewhere."""
    for target, service, passes in (("web", WEB, True), ("db", DB, False)):
        seen = set(probers.ask([Probe("clerk", target, service)], 1).values())
        assert seen == ({"passed"} if passes else {"silent"})
        what = f"{service.protocol.lower()}/{service.port}"
        for node in "ab":
            answer = ask(shop, node, "explain", "office/clerk", f"shop/{target}", what)
            assert answer["verdict"] == ("allow" if passes else "deny")
            assert (answer["egress"]["node"], answer["ingress"]["node"]) == ("b", "a")
            assert (answer["egress"]["in_force"], answer["ingress"]["in_force"]) == (
                (None, True) if node == "a" else (True, None)
            )
            assert bool(answer["live"]) == (passes or node == "b")
    assert answer["route"]["to"].startswith("vtep ") and answer["route"]["mtu"] == 1450
    (denied,) = answer["ingress"]["tiers"]
    assert [one["policy"].split("/")[1] for one in denied["policies"]] == ["db-for-the-shop", "nobody"]
    shown = shop.exec("a", "canal", "explain", "office/clerk", "shop/db", "udp/53").stdout
    assert "denied by KubernetesNetworkPolicy:shop/nobody" in shown and "misses: source " in shown


def test_a_staged_policy_is_pending(shop: Lab, tmp_path: Path) -> None:
    file = tmp_path / "staged.yaml"
    file.write_text(
        "apiVersion: projectcalico.org/v3\nkind: StagedNetworkPolicy\nmetadata: {name: no-web, namespace: shop}\n"
        "spec: {stagedAction: Set, order: 1, selector: app == 'web', ingress: [{action: Deny}]}\n"
    )
    shop.exec("a", "canal", "policy", "apply", "-f", str(file))
    try:
        wait_until(lambda: "pending" in ask(shop, "a", "explain", "office/clerk", "shop/web", "tcp/80"), "it is known")
        answer = ask(shop, "a", "explain", "office/clerk", "shop/web", "tcp/80")
        assert (answer["verdict"], answer["pending"]["verdict"]) == ("allow", "deny")
        assert answer["pending"]["ingress"]["policy"] == "NetworkPolicy:shop/no-web"
    finally:
        shop.exec("a", "canal", "policy", "delete", "-f", str(file))
