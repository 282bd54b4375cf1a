"""What checks check, and how the output of other programs is read."""

from __future__ import annotations

import pytest

from canal_udp.lab import commands, traffic
from canal_udp.lab.checks import bits, paths
from canal_udp.lab.model import Check, parse_lab
from canal_udp.lab.state import LabState, PodAddress, root_dir

PODS = {
    "a1": PodAddress(("10.244.1.2", "fd10::1:2"), "eth0", 1450),
    "b1": PodAddress(("10.244.2.2", "fd10::2:2"), "eth0", 1450),
    "c1": PodAddress(("10.244.3.2",), "eth0", 1450),
}


@pytest.mark.parametrize(
    ("sources", "targets", "family", "expected"),
    [
        pytest.param(("a1",), ("b1",), None, ["a1 -> b1 (IPv4)", "a1 -> b1 (IPv6)"], id="both families"),
        pytest.param(("a1",), ("b1",), 6, ["a1 -> b1 (IPv6)"], id="one family"),
        pytest.param(("a1",), ("c1",), None, ["a1 -> c1 (IPv4)"], id="only what both have"),
        pytest.param(("a1",), ("c1",), 6, [], id="nothing in common"),
        pytest.param(("a1", "c1"), ("a1", "c1"), 4, ["a1 -> c1 (IPv4)", "c1 -> a1 (IPv4)"], id="never to itself"),
    ],
)
def test_paths(sources: tuple[str, ...], targets: tuple[str, ...], family: int | None, expected: list[str]) -> None:
    found = paths(Check("reach", sources, targets, family), PODS)
    assert [str(path) for path in found] == expected
    assert all(path.address == PODS[path.target].of(path.family) for path in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bit/s"), (999, "999 bit/s"), (1500, "1.5 kbit/s"), (9.41e8, "941 Mbit/s"), (1.234e10, "12.3 Gbit/s")],
)
def test_rates_as_people_say_them(value: float, text: str) -> None:
    assert bits(value) == text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[  5]   0.00-0.50   sec   112 MBytes  1879 Mbits/sec    0    482 KBytes       ", ("0.00", "0.50", "1879")),
        ("[  5]   3.00-3.50   sec  0.00 Bytes  0.00 Mbits/sec    2   1.37 KBytes       ", ("3.00", "3.50", "0.00")),
        ("[ 12]  10.00-10.50  sec  35.0 KBytes  0.57 Mbits/sec    2   1.37 KBytes       ", ("10.00", "10.50", "0.57")),
        ("[ ID] Interval           Transfer     Bitrate         Retr", None),
        ("Connecting to host 10.244.1.2, port 5201", None),
    ],
)
def test_the_lines_of_iperf3(line: str, expected: tuple[str, ...] | None) -> None:
    match = traffic._INTERVAL.match(line)
    assert (match.groups() if match else None) == expected


def test_the_daemon_gets_what_the_file_says() -> None:
    text = """
    lab: x
    networks: {core: {subnets: [192.168.1.0/24, "fd00:1::/64"]}}
    overlay: {network: 10.1.0.0/16, network6: "fd10::/48", encap: udp}
    nodes: {a: {flags: [--ct-max, "1000"], pods: {p: {labels: {app: web}, ip: 10.1.7.7}}}}
    """
    lab = parse_lab(text, "x.yaml", "x")
    state = LabState(root_dir() / "x")
    words = " ".join(commands.daemon(lab, lab.nodes["a"], state)[3:])
    assert words == (
        f"daemon --store sqlite://{state.path}/store.d/canal.db --encap udp --iface eth0 --run-dir {state.path}/a/run "
        f"--state-dir {state.path}/a/state --node a --network 10.1.0.0/16 --network6 fd10::/48 "
        "--public-ip 192.168.1.1 --public-ip6 fd00:1::1 --ct-max 1000"
    )
    words = " ".join(commands.attach(lab, lab.pods["p"], state)[3:])
    assert words == f"attach x-p --name default/p --run-dir {state.path}/a/run -j --ip 10.1.7.7 --label app=web"
