"""Probes between namespaces: they see what a filter in between lets through, and nothing else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from itertools import product

import pytest

from canal_udp.errors import LabError
from canal_udp.lab.probe import Place, Probe, Probers, Service, every_pair
from canal_udp.tunnel.netns import run_inside

NAMES = [f"pr-{letter}" for letter in "abc"]
SERVICES = [Service(protocol, port) for protocol, port in product(("TCP", "UDP", "SCTP"), (80, 81))] + [Service("ICMP")]  # type: ignore[arg-type]
PLACES = {name: Place(f"/run/netns/{name}", (f"10.9.0.{n}", f"fd09::{n}")) for n, name in enumerate(NAMES, 1)}


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    """Three places at a bridge in a namespace of its own."""
    spaces = [*NAMES, "pr-br"]
    try:
        for space in spaces:
            sh(f"ip netns add {space}")
        sh("ip -n pr-br link add br0 type bridge mcast_snooping 0; ip -n pr-br link set br0 up")
        for n, name in enumerate(NAMES, 1):
            sh(f"ip -n pr-br link add {name} type veth peer name eth0 netns {name}")
            sh(f"ip -n pr-br link set {name} master br0 up; ip -n {name} link set eth0 up")
            sh(f"ip -n {name} addr add 10.9.0.{n}/24 dev eth0; ip -n {name} addr add fd09::{n}/64 dev eth0 nodad")
        yield "pr-br"
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


@pytest.fixture
def rules(bridge: str) -> Iterator[object]:
    """A function that puts rules for incoming packets into a place."""

    def add(name: str, *lines: str) -> None:
        text = "\n".join(["table inet f {", "chain i {", "type filter hook input priority 0", *lines, "}", "}", ""])
        subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=text, text=True, check=True)

    yield add
    for name in NAMES:
        sh(f"ip netns exec {name} nft flush ruleset")


def test_everybody_reaches_everybody_in_every_way(bridge: str) -> None:
    probes = every_pair(PLACES, SERVICES, (4, 6))
    assert len(probes) == 6 * 7 * 2
    with Probers(PLACES, SERVICES) as probers:
        for _ in range(2):
            began = time.monotonic()
            found = probers.ask(probes, timeout_s=20)
            assert set(found.values()) == {"passed"}, {p for p, answer in found.items() if answer != "passed"}
            assert time.monotonic() - began < 10, "nobody waits for the timeout when all have answered"


def test_what_is_dropped_is_silent_and_what_is_rejected_is_refused(rules) -> None:  # type: ignore[no-untyped-def]
    rules(
        "pr-a",
        "tcp dport 80 drop",
        "udp dport 80 drop",
        "sctp dport 80 drop",
        "ip saddr 10.9.0.2 icmp type echo-request drop",
    )
    rules(
        "pr-b",
        "tcp dport 81 reject with tcp reset",
        "udp dport 81 reject",
        "sctp dport 81 reject with icmpx admin-prohibited",
    )
    with Probers(PLACES, SERVICES) as probers:
        found = probers.ask(every_pair(PLACES, SERVICES, (4, 6)), 2.0)

    def expected(probe: Probe) -> str:
        if probe.service == Service("ICMP"):
            return "silent" if (probe.source, probe.target, probe.family) == ("pr-b", "pr-a", 4) else "passed"
        if probe.target == "pr-a" and probe.service.port == 80:
            return "silent"
        return "refused" if probe.target == "pr-b" and probe.service.port == 81 else "passed"

    assert {str(p): a for p, a in found.items()} == {str(p): expected(p) for p in found}


def test_a_rule_that_goes_away_is_seen_by_the_next_round(rules) -> None:  # type: ignore[no-untyped-def]
    rules("pr-a", "udp dport 80 drop")
    probe = Probe("pr-b", "pr-a", Service("UDP", 80))
    with Probers(PLACES, [probe.service]) as probers:
        assert probers.ask([probe], 0.3) == {probe: "silent"}
        sh("ip netns exec pr-a nft flush ruleset")
        assert probers.ask([probe], 5) == {probe: "passed"}


def test_a_port_nobody_listens_on_is_refused_and_one_that_is_taken_is_told(bridge: str) -> None:
    with Probers(PLACES, [Service("TCP", 80)]) as probers:
        probes = [Probe("pr-a", "pr-b", Service(protocol, 9)) for protocol in ("TCP", "UDP")]  # type: ignore[arg-type]
        assert set(probers.ask(probes, 5).values()) == {"refused"}
        with pytest.raises(LabError, match=r"pr-a: cannot listen on 80/TCP at 10\.9\.0\.1: Address already in use"):
            Probers(PLACES, [Service("TCP", 80)]).__enter__()


def test_nothing_is_left_open(bridge: str) -> None:
    with Probers(PLACES, SERVICES):
        pass
    sockets = run_inside(PLACES["pr-a"].netns, lambda: open("/proc/thread-self/net/udp").read().count("\n"))  # noqa: SIM115
    assert sockets == 1, "only the header"
