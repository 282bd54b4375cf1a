"""Policies, namespaces and labels of a lab are known to all its daemons; its truth table is tried with real packets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from canal_udp.lab import trial
from canal_udp.lab.probe import Service, every_pair
from canal_udp.lab.state import LabState
from tests.netns.labs import Lab, canal, wait_until

pytest_plugins = ("tests.netns.lab_fixtures",)

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies.yaml"


def known(lab: Lab, node: str) -> dict[str, int]:
    found: dict[str, Any] = json.loads(lab.exec(node, "canal", "status", "-j").stdout)["objects"]
    assert found["in_sync"]
    counts: dict[str, int] = found["counts"]
    return counts


def test_every_daemon_knows_the_lab_files_objects_and_what_is_applied_later(lab: Lab, tmp_path: Path) -> None:
    lab.up(str(EXAMPLE))
    for node in "ab":
        assert known(lab, node) == {"Policy": 3, "Namespace": 2, "Pod": 4}
    file = tmp_path / "tier.yaml"
    file.write_text("apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: t}\nspec: {order: 1}\n")
    lab.exec("a", "canal", "policy", "apply", "-f", str(file))
    wait_until(lambda: all(known(lab, node).get("Tier") == 1 for node in "ab"), "all nodes know the tier")
    lab.exec("b", "canal", "policy", "delete", "tier", "t")
    wait_until(lambda: not any("Tier" in known(lab, node) for node in "ab"), "all nodes forget the tier")
    lab.exec("a", "canal", "detach", "--name", "shop/web")
    wait_until(lambda: all(known(lab, node)["Pod"] == 3 for node in "ab"), "all nodes forget the pod")


def test_the_example_is_enforced_as_its_truth_table_says(lab: Lab) -> None:
    lab.up(str(EXAMPLE))
    done = canal("lab", "test", "--lab", lab.name)
    assert "96 of 96 as the file says" in done.stdout
    lab.exec("a", "canal", "label", "shop/web", "app-")
    wait_until(
        lambda: "web 80/TCP (IPv4): silent" in canal("lab", "test", "--lab", lab.name, check=False).stdout,
        "a pod that is no web server any more is closed",
    )


def test_a_policy_that_cannot_be_understood_is_a_reason_on_every_node(lab: Lab) -> None:
    lab.up(str(EXAMPLE))
    database = LabState(lab.path).store_url(LabState(lab.path).lab())
    code = (
        "import asyncio, sys; from canal_udp.control.store import open_store\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1])\n"
        "    await store.put('policies', 'KubernetesNetworkPolicy/shop/nobody', b'{')\n"
        "    await store.close()\n"
        "asyncio.run(main())"
    )
    lab.exec("a", sys.executable, "-c", code, database)
    for node in "ab":
        wait_until(
            lambda node=node: (
                "KubernetesNetworkPolicy/shop/nobody: not JSON"  # type: ignore[misc]
                in " ".join(json.loads(lab.exec(node, "canal", "status", "-j").stdout)["reasons"])
            ),
            "the reason is in the status",
        )
    lab.exec("a", "canal", "policy", "delete", "netpol", "nobody", "-n", "shop")
    for node in "ab":
        wait_until(
            lambda node=node: json.loads(lab.exec(node, "canal", "status", "-j").stdout)["state"] == "ready",  # type: ignore[misc]
            "the node is well again",
        )


def test_a_truth_table_that_holds_and_one_that_does_not(lab: Lab, tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("policies/shop.yaml", str(EXAMPLE.parent / "policies" / "shop.yaml"))
    head = text.partition("tests:")[0]
    file = tmp_path / "lab.yaml"
    file.write_text(head + "tests:\n  - allow: {from: [web, a], to: clerk, ports: [80/TCP, 53/UDP, 5000/SCTP, ICMP]}\n")
    done = canal("lab", "test", str(file), "--name", lab.name, "--keep")
    assert "16 of 16 as the file says" in done.stdout, "two sources, two families, four services"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(head + "tests:\n  - deny: {from: web, to: clerk, ports: [80/TCP], family: 4}\n")
    lab.down()
    done = canal("lab", "test", str(wrong), "--name", lab.name, "-j", check=False)
    assert done.returncode == 1
    assert [(row["seen"], row["good"]) for row in json.loads(done.stdout)] == [("passed", False)]
    lab.assert_nothing_left()


def test_probers_ask_every_pair_of_a_lab_at_once(lab: Lab) -> None:
    lab.up("--nodes", "2", "--pods", "5")
    lab_state = LabState(lab.path)
    places = {name: place for name, place in trial.places(lab_state.lab(), lab_state.pods()).items() if len(name) > 1}
    services = [Service(protocol, port) for protocol in ("TCP", "UDP", "SCTP") for port in (80, 81)]  # type: ignore[arg-type]
    probes = every_pair(places, services)
    assert len(probes) == 10 * 9 * 6
    with trial.Probers(places, services) as probers:
        assert set(probers.ask(probes, 20).values()) == {"passed"}
