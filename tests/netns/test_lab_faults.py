"""Faults do what they say while a lab runs, and `clear` takes them back."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.labs import Lab, start, wait_until

pytest_plugins = ("tests.netns.lab_fixtures",)

KERNEL = str(Path(__file__).parents[2] / "examples" / "kernel-vxlan.yaml")


@pytest.fixture(scope="module")
def kernel(new_lab: Callable[[], Lab]) -> Iterator[Lab]:
    """One lab of kernel VXLAN nodes: what is tested here is the underlay."""
    lab = new_lab()
    lab.up(KERNEL)
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def clear(kernel: Lab) -> Iterator[Lab]:
    assert kernel.ping("a1", kernel.ip("b1"))
    yield kernel
    kernel.fault("clear")
    assert kernel.ping("a1", kernel.ip("b1")), "nothing of the fault is left"
    assert kernel.ps()["networks"][0]["faults"] == "none"


def relay(lab: Lab) -> Counter[str]:
    """What the relay wrote last; it does so now and then."""
    return Counter(lab.ps()["networks"][0]["relay"])


def test_an_unplugged_link_and_plugged_again(clear: Lab) -> None:
    address = clear.ip("b1")
    clear.fault("link", "b", "down")
    assert not clear.ping("a1", address)
    assert "NO-CARRIER" in clear.exec("b", "ip", "link", "show", "eth0").stdout
    clear.fault("link", "b", "up")
    assert clear.ping("a1", address)


@pytest.mark.parametrize("means", [[], ["--seed", "1"]], ids=["nft", "relay"])
def test_total_loss(clear: Lab, means: list[str]) -> None:
    clear.fault("loss", "100", *means)
    assert not clear.ping("a1", clear.ip("b1"))
    assert clear.ping("a1", clear.ip("a2")), "the same node does not use the underlay"


@pytest.mark.parametrize("means", [[], ["--seed", "1"]], ids=["nft", "relay"])
def test_a_black_hole_takes_large_packets_silently(clear: Lab, means: list[str]) -> None:
    address = clear.ip("b1")
    clear.fault("blackhole", "1300", *means)
    assert clear.ping("a1", address, "-s", "1000")
    assert not clear.ping("a1", address, "-s", "1400")


def test_a_delay_is_there_and_back(clear: Lab) -> None:
    clear.fault("delay", "30", "--seed", "1")
    done = clear.exec("a1", "ping", "-n", "-c3", "-i0.2", "-W2", clear.ip("b1"))
    fastest = float(re.search(r"min/avg/max/mdev = ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    assert fastest >= 60


def test_duplicates_arrive(clear: Lab) -> None:
    clear.fault("duplicate", "100", "--seed", "1")
    done = clear.exec("a1", "ping", "-n", "-c3", "-i0.2", clear.ip("b1"))
    assert "duplicates" in done.stdout
    wait_until(lambda: relay(clear)["duplicated"] > 0, "the relay counts its duplicates")


def test_corrupted_packets_never_reach_a_pod(clear: Lab) -> None:
    clear.fault("corrupt", "100", "--seed", "1")
    assert not clear.ping("a1", clear.ip("b1"), "-s", "1000")


def test_impairments_add_up_and_a_rate_holds(clear: Lab) -> None:
    assert "delay 1 ms" in clear.fault("delay", "1", "--seed", "1")
    said = clear.fault("rate", "50")
    assert "delay 1 ms, rate 50 Mbit/s (by relay)" in said
    done = clear.exec("b1", "sh", "-c", "iperf3 -s -1 -D")
    done = clear.exec("a1", "iperf3", "-c", clear.ip("b1"), "-t", "2", "-J")
    assert 20e6 < json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] < 50e6


def test_an_mtu_changes_live(clear: Lab) -> None:
    clear.fault("mtu", "1280")
    assert " mtu 1280 " in clear.exec("a", "ip", "link", "show", "eth0").stdout
    assert not clear.ping("a", "192.168.1.2", "-s", "1400", "-M", "do")
    assert clear.ping("a1", clear.ip("b1"), "-s", "1400"), "kernel VXLAN cuts its outer packets"
    clear.fault("clear")
    assert " mtu 1500 " in clear.exec("a", "ip", "link", "show", "eth0").stdout


@pytest.mark.parametrize("profile", ["wire", "native"])
def test_data_survives_loss_reordering_and_duplication(lab: Lab, tmp_path: Path, profile: str) -> None:
    """Also that superpackets of the native profile are cut before the relay sees them."""
    file = tmp_path / "bad.yaml"
    file.write_text(
        f"networks: {{core: {{profile: {profile}}}}}\n"
        "nodes: {a: {pods: 1}, b: {pods: 1}}\n"
        "faults: {core: {loss: 1, reorder: 10, duplicate: 5, seed: 3}}\n"
        "checks: [{transfer: {from: a1, to: b1, size: 16M}}]\n"
    )
    lab.up(str(file), "--check")
    wait_until(lambda: min(relay(lab)[name] for name in ("lost", "reordered", "duplicated")) > 0, "the relay's counts")
    counts = relay(lab)
    assert "oversize" not in counts and "send_failed" not in counts


def test_a_daemon_is_stopped_continued_killed_and_started(lab: Lab) -> None:
    lab.up("--nodes", "2", "--pods", "1")
    address = lab.ip("b1")
    for fault, cure, state in (("stop", "cont", "stopped"), ("kill", "start", "gone")):
        lab.fault(fault, "a")
        assert lab.ps()["nodes"][0]["state"] == state
        assert not lab.ping("a1", address)
        lab.fault(cure, "a")
        wait_until(lambda: lab.ping("a1", address), f"traffic after {cure}")
    lab.fault("kill", "b")
    assert "started the daemons of b" in lab.fault("clear")
    wait_until(lambda: lab.ping("a1", address), "traffic after clear")


def test_a_link_that_flaps_does_not_stop_a_transfer(lab: Lab) -> None:
    lab.up("--nodes", "2", "--pods", "1")
    server = lab.exec("b1", "sh", "-c", "iperf3 -s -1 -D")
    assert server.returncode == 0
    address = lab.ip("b1")
    client = start("lab", "exec", "--lab", lab.name, "a1", "--", "iperf3", "-c", address, "-t", "6", "-J")
    for _ in range(3):
        time.sleep(0.7)
        lab.fault("link", "b", "down")
        time.sleep(0.3)
        lab.fault("link", "b", "up")
    text, _ = client.communicate(timeout=30)
    assert client.returncode == 0, text
    assert json.loads(text)["end"]["sum_received"]["bytes"] > 1 << 20
