"""The commands: their arguments, exit statuses, and what they print for people and programs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canal_udp.__main__ import COMMANDS, main
from canal_udp.api import SOCKET_NAME, decode, encode
from canal_udp.cli import flows
from canal_udp.cli.output import amount, text

STATUS = {
    "node": "n1",
    "state": "degraded",
    "reasons": ["store\x1b[2J is away"],
    "generation": 7,
    "public_ip": "192.0.2.1",
    "public_ip6": None,
    "subnet": "10.244.1.0/24",
    "subnet6": None,
    "encap": "vxlan",
    "mtu": 1450,
    "host_ifname": "canal0",
    "offload": {"mode": "gso+gro", "reason": "self-test passed"},
    "counters": {"rx_pod": 12_345_678, "tx_underlay": 12},
    "drops": {"short": 2, "policy": 3},
    "errors": {"send ENOBUFS": 3, "read EIO": 1},
    "peers": 4,
    "endpoints": 5,
    "objects": {"in_sync": True, "known": True, "counts": {"Pod": 12, "Policy": 3, "Namespace": 4}},
    "conservation": {"balanced": True},
}
FLOW = {
    "src": "10.244.1.2",
    "sport": 40000,
    "dst": "fd00::2",
    "dport": 80,
    "proto": 6,
    "protocol": "TCP",
    "dst_name": "shop/web",
    "egress": None,
    "ingress": {"action": "Allow", "policy": "NetworkPolicy:shop/web", "rule": 2},
    "bytes": [1000, 2000],
    "came_from": "pod default/a",
    "goes_to": "vtep 192.0.2.2/vxlan",
    "state": "established",
    "verdict": "allow",
    "packets": [10, 20],
    "idle_ms": 1500,
}


class Daemon(threading.Thread):
    """Answers one connection after the other from a table."""

    def __init__(self, run_dir: Path, answers: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.answers = answers
        self.requests: list[dict[str, Any]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(run_dir / SOCKET_NAME))
        self.listener.listen()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                request = decode(lines.readline())
                self.requests.append(request)
                connection.sendall(encode(self.answers[request["op"]]))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    thread = Daemon(tmp_path, {})
    thread.start()
    yield thread
    thread.listener.shutdown(socket.SHUT_RDWR)
    thread.listener.close()
    thread.join()


def ok(result: object) -> dict[str, Any]:
    return {"ok": True, "result": result}


def run(daemon: Daemon, tmp_path: Path, *words: str) -> int:
    return main([*words, "--run-dir", str(tmp_path)])


def test_status_for_people(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["status"] = ok(STATUS)
    assert run(daemon, tmp_path, "status") == 0
    shown = capsys.readouterr().out
    assert "state       degraded" in shown
    assert "store\\x1b[2J is away" in shown
    assert "\x1b" not in shown
    assert "pod 12.3 M" in shown
    assert "dropped     5" in shown
    assert "errors      send ENOBUFS 3, read EIO 1" in shown


def test_status_for_programs(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["status"] = ok(STATUS)
    assert run(daemon, tmp_path, "status", "-j") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


DENIED = FLOW | {
    "icmp_type": 0,
    "icmp_code": 0,
    "verdict": "deny",
    "denied_by": "ingress",
    "ingress": {"action": "Deny", "policy": "NetworkPolicy:shop/web", "rule": -1, "reason": "no rule matched"},
    "packets": [3, 0],
    "last_seen": "2026-01-02T03:04:05.678Z",
}


def log(*rows: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return ok({"now_ms": 5, "rows": list(rows), "more": more})


def test_flows(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["flow_log"] = log(FLOW, more=True)
    assert run(daemon, tmp_path, "flows", "--limit", "5") == 0
    assert daemon.requests == [{"op": "flow_log", "kind": "flows", "limit": 5}]
    shown = capsys.readouterr()
    line = shown.out.splitlines()[1]
    assert line.split()[:3] == ["tcp", "10.244.1.2:40000", "shop/web:80"]
    assert "NetworkPolicy:shop/web rule 2" in line and "10/20" in line
    assert "more than these 1" in shown.err


def test_drops_are_sorted(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["drops"] = ok({"short": 2, "policy": 30, "ttl": 0})
    daemon.answers["flow_log"] = log()
    assert run(daemon, tmp_path, "drops") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [["policy", "30"], ["short", "2"]]


def test_drops_say_whom_policy_denied(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["drops"] = ok({"policy": 3})
    daemon.answers["flow_log"] = log(DENIED)
    assert run(daemon, tmp_path, "drops") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "ingress  NetworkPolicy:shop/web  no rule matched" in line
    assert run(daemon, tmp_path, "drops", "-j") == 0
    assert json.loads(capsys.readouterr().out) == {"policy": 3, "flows": [DENIED]}


def test_following_tells_what_moved_once(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer overlaps the one before, and a flow that had no packet since is not told again."""
    monkeypatch.setattr(flows, "FOLLOW_S", 0)
    daemon.answers["flow_log"] = log(DENIED)
    found = flows.followed(tmp_path, "denied")
    assert next(found) == DENIED
    more = DENIED | {"packets": [4, 0]}
    daemon.answers["flow_log"] = log(more)
    assert next(found) == more
    assert [request["since_ms"] for request in daemon.requests] == [(1 << 63) - 1, 5, 5]


@pytest.mark.parametrize(("command", "empty"), [("peers", "no peers"), ("endpoints", "no endpoints")])
def test_empty_tables(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, empty: str
) -> None:
    daemon.answers[command] = ok([])
    assert run(daemon, tmp_path, command) == 0
    assert capsys.readouterr().out == f"{empty}\n"


def test_attach_sends_what_it_was_told(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "a/b", "netns": "/n", "ifname": "net1", "ips": ["10.244.1.2/32"], "mtu": 1450}
    daemon.answers["attach"] = ok(row | {"labels": {}, "state": "ok"})
    words = (
        "attach",
        "ns1",
        "--name",
        "a/b",
        "--ip",
        "auto",
        "--ip",
        "10.244.1.2",
        "--label",
        "x=y",
        "--ifname",
        "net1",
    )
    assert run(daemon, tmp_path, *words, "-j") == 0
    assert daemon.requests == [
        {"op": "attach", "netns": "ns1", "name": "a/b", "ips": ["10.244.1.2"], "labels": ["x=y"], "ifname": "net1"}
    ]
    assert json.loads(capsys.readouterr().out) == row


def test_detach(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["detach"] = ok({"name": "default/a", "detached": True})
    assert run(daemon, tmp_path, "detach", "./relative") == 0
    assert daemon.requests[0]["netns"] == str(Path.cwd() / "relative")
    assert capsys.readouterr().out == "default/a: detached\n"


@pytest.mark.parametrize(("code", "status"), [(1, 1), (2, 2), (77, 1), (None, 1)])
def test_a_refusal_is_one_line_and_a_status(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int | None, status: int
) -> None:
    daemon.answers["status"] = {"ok": False, "error": "no", "code": code}
    assert run(daemon, tmp_path, "status") == status
    assert capsys.readouterr().err == "canal: no\n"


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"canal: no daemon answers at {tmp_path}/{SOCKET_NAME}: ")
    assert error.count("\n") == 1


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    script = f"{sys.executable} -m canal_udp --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("words", [[], ["nonsense"], ["attach"], ["status", "--nonsense"], ["lease"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: canal" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_a_state_command_imports_little() -> None:
    """What `canal status` costs is what it imports."""
    code = "import sys; from canal_udp.__main__ import _parser; _parser(['status']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "msgspec", "numpy", "pyroute2", "sqlite3", "uvloop", "logging", "yaml"}


# ---- the store -------------------------------------------------------------------------------------------------------

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1}}


@pytest.fixture
def store(tmp_path: Path) -> list[str]:
    return ["--store", f"sqlite://{tmp_path}/store.db", "--run-dir", str(tmp_path)]


def test_network(store: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", "get", *store]) == 1
    assert "canal network set" in capsys.readouterr().err
    assert main(["network", "set", json.dumps(CONFIG), *store]) == 0
    assert main(["network", "get", *store]) == 0
    assert json.loads(capsys.readouterr().out) == CONFIG
    assert main(["network", "get", "-j", *store]) == 0
    assert json.loads(capsys.readouterr().out)["SubnetLen"] == 24


@pytest.mark.parametrize("config", ["", "{", '{"Network": "x"}', '{"Network":"10.0.0.0/8","Backend":{"Type":"alien"}}'])
def test_a_bad_network_is_not_written(store: list[str], config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", "set", config, *store]) == 2
    assert main(["network", "get", *store]) == 1
    assert capsys.readouterr().out == ""


PUT = ["lease", "put", "--subnet", "10.244.7.0/24", "--public-ip", "192.0.2.7"]
VXLAN = ["--encap", "vxlan", "--vtep-mac", "02:00:00:00:00:07"]


def test_leases(store: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PUT, *VXLAN, *store]) == 0
    assert main(["lease", "list", "-j", *store]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "key": "10.244.7.0-24",
        "subnet": "10.244.7.0/24",
        "subnet6": None,
        "public_ip": "192.0.2.7",
        "public_ip6": None,
        "encap": "vxlan",
        "vtep_mac": "02:00:00:00:00:07",
        "expires_at": None,
        "node": "",
        "own": False,
    }
    assert main([*PUT, *VXLAN, "--expires", "3600", *store]) == 0
    assert main(["lease", "list", "-j", *store]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["expires_at"] > 0
    assert main(["lease", "list", *store]) == 0
    assert "10.244.7.0/24" in capsys.readouterr().out
    assert main(["lease", "delete", "10.244.7.0/24", *store]) == 0
    assert main(["lease", "delete", "--subnet", "10.244.7.0/24", "-j", *store]) == 0
    assert json.loads(capsys.readouterr().out) == {"subnet": "10.244.7.0/24", "deleted": False}


def test_a_lease_of_someone_else_is_not_overwritten(store: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PUT, *VXLAN, *store]) == 0
    assert main([*PUT[:-1], "192.0.2.8", *VXLAN, *store]) == 1
    assert "belongs to 192.0.2.7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([*PUT, "--encap", "vxlan"], id="vxlan without MAC"),
        pytest.param([*PUT, "--encap", "udp", "--vtep-mac", "02:00:00:00:00:07"], id="udp with MAC"),
        pytest.param([*PUT, "--encap", "vxlan", "--vtep-mac", "x"], id="no MAC"),
        pytest.param(["lease", "put", "--subnet", "10.244.7.0/24", "--encap", "udp"], id="no public address"),
        pytest.param(["lease", "put", "--public-ip", "192.0.2.7", "--encap", "udp"], id="no subnet"),
        pytest.param(
            ["lease", "put", "--subnet", "fd00::/64", "--public-ip", "192.0.2.7", "--encap", "udp"], id="family"
        ),
        pytest.param(
            ["lease", "put", "--subnet", "10.244.7.1/24", "--public-ip", "192.0.2.7", "--encap", "udp"], id="host bits"
        ),
        pytest.param(["lease", "delete", "x"], id="delete nothing"),
    ],
)
def test_bad_leases(store: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, *store]) == 2
    assert capsys.readouterr().err.startswith("canal: ")


# ---- words and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (["a", "b"], "a,b"),
        ({"k": "v"}, "k=v"),
        (True, "yes"),
        (0, "0"),
        ("a\x1b[31m\n\u202e\x00", "a\\x1b[31m\\n\\u202e\\x00"),
    ],
)
def test_text(value: object, shown: str) -> None:
    assert text(value) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0"), (999, "999"), (1000, "1.0 k"), (12_345_678, "12.3 M"), (10**16, "10000.0 T")]
)
def test_amount(count: int, shown: str) -> None:
    assert amount(count) == shown
