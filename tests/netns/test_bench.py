"""One real, tiny run of the benchmark: a report comes out, of traffic that was right, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from canal_udp.bench import tools
from canal_udp.bench.report import from_json, load

pytest_plugins = ("tests.netns.lab_fixtures",)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "canal_udp", "bench", "overlay", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)


def namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("bench*")}


@pytest.mark.slow
@pytest.mark.usefixtures("labs_root")
def test_a_small_report(tmp_path: Path) -> None:
    before, file = namespaces(), tmp_path / "r.json"
    words = ["--profile", "wire", "--against", "kernel-vxlan", "--runs", "1", "--seconds", "1", "-j", str(file)]
    done = bench(*words, "--only", "tcp-1,tcp-both,udp-64,udp-rr,tcp-rr-load,connect,idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TCP 1 stream" in done.stdout and "kernel-vxlan" in done.stdout
    found = from_json(load(file), str(file))
    values = {(result.measure, result.metric, result.system): result for result in found.results()}
    for system in ("canal-vxlan", "kernel-vxlan"):
        assert values["tcp-1", "bits_per_s", system].value.median > 50e6
        assert values["tcp-1", "cpu_s_per_gb", system].value.median > 0
        assert values["udp-64", "packets_per_s", system].value.median > 500
        assert values["udp-rr", "p50_us", system].value.median > 0
        assert values["connect", "per_s", system].value.median > 10
    assert values["idle", "rss_mib", "canal-vxlan"].value.median > 1
    assert values["tcp-1", "bits_per_s", "canal-vxlan"].ratio is not None
    assert {check["sha256"] for check in found.checks if "sha256" in check} == {"equal"}
    assert namespaces() <= before


@pytest.mark.slow
@pytest.mark.usefixtures("labs_root")
def test_what_superpackets_are_for(tmp_path: Path) -> None:
    """One TCP stream, every packet of it cut for the wire: ratios within rounds in which each had its turn.

    The second best round counts: whoever else uses the machine costs us more than a kernel, which has fewer processes.
    """
    file = tmp_path / "r.json"
    words = ["--profile", "wire", "--only", "tcp-1", "--runs", "5", "--seconds", "1", "-j", str(file)]
    done = bench(*words, "--against", "kernel-vxlan,one-by-one")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[float]] = {}
    for run in from_json(load(file), str(file)).runs:
        found.setdefault(run.system, []).append(run.values["bits_per_s"])

    def times(other: str) -> float:
        return sorted(ours / theirs for ours, theirs in zip(found["canal-vxlan"], found[other], strict=True))[-2]

    assert times("kernel-vxlan") >= 0.6, found
    assert times("one-by-one") >= 5, found


@pytest.mark.usefixtures("labs_root")
def test_a_system_that_loses_data_gets_no_report(tmp_path: Path) -> None:
    """A plug-in whose path is broken in the middle: refused, with its name, and everything taken down."""
    plugin, file, before = tmp_path / "mine.py", tmp_path / "r.json", namespaces()
    plugin.write_text(
        "from canal_udp.bench.systems import System\n"
        "from canal_udp.lab.host import apply\n"
        "from canal_udp.lab.plan import netns\n"
        "from canal_udp.lab.steps import Ip\n"
        "def cut(lab, state, pods):\n"
        "    apply([Ip(netns(lab, 'b1'), 'link set eth0 down')])\n"
        "    return pods\n"
        "SYSTEMS = [System('mine', 'cut', 'kernel-vxlan', arrange=cut)]\n"
    )
    words = ["--plugin", str(plugin), "--ours", "mine", "--against", "kernel-vxlan", "--profile", "wire"]
    done = bench(*words, "--only", "tcp-1", "--runs", "1", "-j", str(file))
    assert done.returncode == 1 and "mine, wire is not correct" in done.stderr, done.stdout + done.stderr
    assert not file.exists() and namespaces() <= before


def test_the_tools_find_what_was_changed_and_lost() -> None:
    """The receiver counts what is missing and what is not as it was sent."""
    import socket

    tools.build()
    with subprocess.Popen(
        [tools.tool("udp-blast"), "receive", "127.0.0.1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as receiver:
        port = tools.port(receiver)
        sent = subprocess.run(
            [tools.tool("udp-blast"), "send", "127.0.0.1", port, "2000", "0.1", "imix", "check"],
            capture_output=True,
            text=True,
            check=True,
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"no packet of ours, long enough to have a header", ("127.0.0.1", int(port)))
        sums = json.loads(receiver.communicate()[0])
    assert sums["packets"] == json.loads(sent.stdout)["packets"] > 100
    assert (sums["corrupt"], sums["reordered"]) == (1, 0)
