"""Labs come up, show real traffic, live beside each other, and leave nothing behind, however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.labs import Lab, canal, output, processes_of, start, wait_until

pytest_plugins = ("tests.netns.lab_fixtures",)

EXAMPLES = Path(__file__).parents[2] / "examples"
LABS = int(os.environ.get("CANAL_TEST_LABS", "10"))
KERNEL = str(EXAMPLES / "kernel-vxlan.yaml")


@pytest.fixture(scope="module")
def one_by_one() -> None:
    subprocess.run([EXAMPLES.parent / "benchmarks" / "build.sh"], check=True)


@pytest.mark.parametrize("encap", ["vxlan", "udp"])
@pytest.mark.parametrize("profile", ["wire", "native"])
def test_a_small_lab_of_real_daemons(lab: Lab, encap: str, profile: str) -> None:
    lab.up("--nodes", "3", "--pods", "2", "--encap", encap, "--profile", profile, "--check")
    described = lab.ps()
    assert {node["state"] for node in described["nodes"]} == {"running"}
    assert len({ip for pod in described["pods"] for ip in pod["ips"]}) == 12
    status = json.loads(lab.exec("a", "canal", "status", "-j").stdout)
    assert (status["state"], status["peers"], status["encap"]) == ("ready", 2, encap)
    lab.down()
    lab.assert_nothing_left()


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_does_what_its_checks_say(lab: Lab, file: Path) -> None:
    lab.up(str(file), "--check")
    lab.down()
    lab.assert_nothing_left()


def test_a_failing_check_is_an_exit_status(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "fast.yaml"
    file.write_text(
        Path(KERNEL).read_text().partition("checks:")[0]
        + "checks:\n  - throughput: {from: a1, to: b1, family: 4, seconds: 1, at_least: 900G}\n"
        + "  - blocked: {from: a1, to: a2, family: 4}\n"
    )
    lab.up(str(file))
    done = canal("lab", "check", "--lab", lab.name, "-j", check=False)
    assert done.returncode == 1
    assert [result["good"] for result in json.loads(done.stdout)] == [False, False]


def test_two_labs_with_the_same_addresses_live_side_by_side(new_lab: Callable[[], Lab]) -> None:
    labs = [new_lab(), new_lab()]
    try:
        for lab in labs:
            lab.up(KERNEL)
        for lab in labs:
            assert lab.ping("a1", lab.ip("b1"))
        labs[0].down()
        assert labs[1].ping("a1", labs[1].ip("b1")), "the other one is not touched"
    finally:
        for lab in labs:
            if lab.path.exists():
                lab.down()


def test_the_same_name_twice_is_refused_and_does_no_harm(lab: Lab) -> None:
    lab.up(KERNEL)
    done = lab.up(KERNEL, check=False)
    assert done.returncode == 1 and "is up already" in done.stderr
    assert lab.ping("a1", lab.ip("b1"))


def test_a_namespace_of_someone_else_stays_his(lab: Lab) -> None:
    space = f"{lab.name}-b1"
    output("ip", "netns", "add", space)
    try:
        done = lab.up(KERNEL, check=False)
        assert done.returncode == 1 and f"namespace {space} exists" in done.stderr
        assert lab.namespaces() == [space] and not lab.path.exists()
    finally:
        output("ip", "netns", "delete", space)
    lab.assert_nothing_left()


@pytest.mark.parametrize("keep", [False, True], ids=["", "keep"])
def test_a_lab_that_cannot_come_up_leaves_nothing_unless_asked(lab: Lab, tmp_path: Path, keep: bool) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("nodes:\n  a: {pods: {p: {ip: 203.0.113.9}}}\n")
    done = lab.up(str(file), *(["--keep"] if keep else []), check=False)
    assert done.returncode == 1 and "203.0.113.9" in done.stderr
    assert bool(lab.namespaces()) == keep
    if keep:
        lab.down()
    lab.assert_nothing_left()


def test_what_starts_while_a_lab_is_taken_down_is_ended_too(lab: Lab) -> None:
    lab.up(KERNEL)
    space, late = f"{lab.name}-a1", f"sleep {3600 + os.getpid()}"
    command = f"trap : TERM; while :; do {late}; done"
    shell = subprocess.Popen(["ip", "netns", "exec", space, "sh", "-c", command])
    wait_until(lambda: len(output("ip", "netns", "pids", space).split()) == 2, "the shell sleeps")
    lab.down()
    assert shell.wait() == -signal.SIGKILL, "it was asked to end, and started something instead"
    assert [line for line in processes_of(late) if line.strip() == late] == []
    lab.assert_nothing_left()


POINTS: dict[str, Callable[[Lab], object]] = {
    "before the first namespace": lambda lab: lab.journal(),
    "while namespaces are made": lambda lab: len(lab.namespaces()) >= 3,
    "while daemons start": lambda lab: '"daemon"' in lab.journal(),
    "when pods are attached": lambda lab: list(lab.path.glob("*/run/api.sock")),
}


@pytest.mark.parametrize("point", POINTS)
def test_an_up_that_is_killed_is_taken_down_by_down(lab: Lab, point: str) -> None:
    process = start("lab", "up", "--nodes", "2", "--pods", "2", "--name", lab.name)
    wait_until(lambda: POINTS[point](lab), point)
    process.kill()
    process.communicate()
    lab.down()
    lab.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("point", POINTS)
def test_an_up_that_is_interrupted_cleans_up_by_itself(lab: Lab, point: str, number: signal.Signals) -> None:
    process = start("lab", "up", "--nodes", "2", "--pods", "2", "--name", lab.name)
    wait_until(lambda: POINTS[point](lab), point)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 130
    lab.assert_nothing_left()


def test_down_ends_what_users_started_in_the_lab(lab: Lab) -> None:
    lab.up(KERNEL)
    shell = start("lab", "exec", "--lab", lab.name, "a1", "--", "sleep", "1000")
    wait_until(lambda: output("ip", "netns", "pids", f"{lab.name}-a1"), "the program runs in the pod")
    lab.down()
    shell.communicate(timeout=10)
    assert shell.returncode == -signal.SIGTERM
    lab.assert_nothing_left()


def test_exec_returns_the_status_and_the_output_of_the_program(lab: Lab) -> None:
    lab.up(KERNEL)
    done = lab.exec("a1", "sh", "-c", "cat /proc/net/dev; exit 7", check=False)
    assert done.returncode == 7 and "eth0" in done.stdout
    done = lab.exec("a3", "true", check=False)
    assert done.returncode == 1 and "no 'a3'" in done.stderr


def test_pods_use_cubic_whatever_the_machine_prefers(lab: Lab) -> None:
    lab.up(KERNEL)
    assert lab.exec("a1", "cat", "/proc/sys/net/ipv4/tcp_congestion_control").stdout.strip() == "cubic"


@pytest.mark.slow
def test_the_demo(lab: Lab) -> None:
    done = canal("lab", "demo", "--name", lab.name, "--down")
    assert "30 of 30 pairs" in done.stdout and "the same TCP connection goes on" in done.stdout
    assert "\x1b" not in done.stdout and len(done.stdout.splitlines()) <= 45
    lab.assert_nothing_left()


@pytest.mark.timeout(60 + 30 * LABS)
def test_many_labs_up_and_down_leave_nothing(new_lab: Callable[[], Lab]) -> None:
    """A tenth of what a release has to show; CANAL_TEST_LABS=100 is the whole of it."""
    for _ in range(LABS):
        lab = new_lab()
        lab.up("--nodes", "2", "--pods", "1")
        lab.down()
        lab.assert_nothing_left()
