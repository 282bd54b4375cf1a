"""The executable canal-cni, under ASan and UBSan, with a daemon that is absent, slow, strange or hostile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_build import NATIVE, SANITIZERS, WARNINGS

from canal_udp.cni.request import split
from canal_udp.cni.spec import COMMANDS, SUPPORTED

CONFIG = b'{"cniVersion":"1.0.0","name":"canal","type":"canal-cni"}'
ENVIRON = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("cni") / "canal-cni"
    command = [os.environ.get("CC", "gcc"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", *WARNINGS, *SANITIZERS]
    command += ['-DCANAL_VERSION="1.2.3"', "-o", str(built), *map(str, sorted((NATIVE / "cni").glob("*.c")))]
    subprocess.run(command, check=True)
    return built


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    def call(command: str, stdin: bytes = CONFIG, **environ: str) -> subprocess.CompletedProcess[bytes]:
        env = {"CNI_COMMAND": command, "CANAL_RUN_DIR": str(tmp_path), **ENVIRON, **environ}
        return subprocess.run([program], input=stdin, capture_output=True, env=env, timeout=30, check=False)

    return call


class Answering:
    """A daemon of one client that takes the whole request and sends what the test says."""

    def __init__(self, folder: Path, answer: bytes) -> None:
        self.got = b""
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "cni.sock"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as client:
            while part := client.recv(1 << 16):
                self.got += part
            with contextlib.suppress(BrokenPipeError):  # it takes no more than it can use
                client.sendall(self._answer)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(30)


def error(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found) == {"cniVersion", "code", "msg"}
    return found


def test_about(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, env={}, text=True, check=True)
    assert done.stdout == ""
    listed = ", ".join(SUPPORTED)
    assert done.stderr == f"CNI canal-udp plugin v1.2.3\nCNI protocol versions supported: {listed}\n"


def test_version_needs_nobody(run: Run) -> None:
    done = run("VERSION", b"", CNI_NETNS="dummy", CNI_IFNAME="dummy", CNI_PATH="dummy", CNI_CONTAINERID="")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED)}


def test_the_request_arrives_whole_and_the_answer_is_printed(run: Run, tmp_path: Path) -> None:
    body = b'{"cniVersion":"1.0.0"}\n'
    config = CONFIG + b" " * 300_000
    with Answering(tmp_path, b"0 %d\n%b" % (len(body), body)) as daemon:
        done = run("ADD", config, OTHER="x", CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=a")
    assert (done.returncode, done.stdout, done.stderr) == (0, body, b"")
    environ, stdin = split(daemon.got)
    assert environ == ENVIRON | {"CNI_COMMAND": "ADD", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=a"}
    assert stdin == config


@pytest.mark.parametrize(("answer", "status"), [(b"0 0\n", 0), (b'1 10\n{"code":4}', 1)])
def test_exit_status_is_the_daemons(run: Run, tmp_path: Path, answer: bytes, status: int) -> None:
    with Answering(tmp_path, answer):
        done = run("CHECK")
    assert (done.returncode, done.stdout) == (status, answer.partition(b"\n")[2])


GOOD = b'0 9\n{"a":"b"}'
HOSTILE = [GOOD[:size] for size in range(len(GOOD))]
HOSTILE += [GOOD + b"x", b"2 0\n", b"-1 0\n", b"0 00000000\n", b"0 99999999999999999999\n", b"0 4194305\n", b"0 -1\n"]
HOSTILE += [b"0 4\nhaha", b'0 7\n{"a":1\0', b'0 9\n{"a":\0\0\0}', b"0 2\n[]", b"\0" * 64, b"HTTP/1.1 200 OK\r\n\r\n{}"]
HOSTILE += [b"0 5000000\n" + b"{" * 5_000_000]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: repr(answer[:24]))
def test_what_is_no_answer_is_none(run: Run, tmp_path: Path, answer: bytes) -> None:
    with Answering(tmp_path, answer):
        found = error(run("ADD"))
    assert found["code"] == 11 and "daemon not reachable at" in found["msg"]


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_no_daemon(run: Run, tmp_path: Path, command: str, code: int) -> None:
    found = error(run(command))
    assert found["code"] == code
    reason = "No such file or directory; is `canal daemon` running?"
    assert found["msg"] == f"daemon not reachable at {tmp_path}/cni.sock: {reason}"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_not_worth_another_try(run: Run) -> None:
    assert error(run('PURGE\x1b"\\é'))["msg"].startswith('unknown CNI_COMMAND: PURGE\x1b"\\')
    assert {"ADD", "DEL", "CHECK", "GC", "STATUS"} == set(COMMANDS)


def test_del_is_kept_for_the_daemons_return(run: Run, tmp_path: Path) -> None:
    done = run("DEL", CNI_NETNS="")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"it will do this DEL when it is back" in done.stderr
    (kept,) = (tmp_path / "cni-spool").iterdir()
    assert re.fullmatch(r"\d{10}\.\d{9}-\d+", kept.name)
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
    assert split(kept.read_bytes()) == (ENVIRON | {"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, CONFIG)


def test_del_that_the_daemon_dies_of_is_kept_too(run: Run, tmp_path: Path) -> None:
    with Answering(tmp_path, b""):
        assert run("DEL").returncode == 0
    assert len(list((tmp_path / "cni-spool").iterdir())) == 1


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": ""}, "CNI_IFNAME"),
        ({"CNI_CONTAINERID": "", "CNI_IFNAME": ""}, "CNI_CONTAINERID,CNI_IFNAME"),
    ],
)
def test_del_of_nobody_is_not_kept(run: Run, tmp_path: Path, environ: dict[str, str], missing: str) -> None:
    found = error(run("DEL", **environ))
    assert (found["code"], found["msg"]) == (4, f"required env variables [{missing}] missing")
    assert not (tmp_path / "cni-spool").exists()


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside")


def test_a_spool_that_is_a_link_is_not_followed(run: Run, tmp_path: Path, outside: Path) -> None:
    (tmp_path / "cni-spool").symlink_to(outside)
    found = error(run("DEL"))
    assert found["code"] == 11 and "cni-spool: " in found["msg"]
    assert list(outside.iterdir()) == []


def test_more_than_is_taken(run: Run, tmp_path: Path) -> None:
    for command in ("ADD", "DEL"):
        found = error(run(command, b" " * (10 << 20)))
        assert (found["code"], found["msg"]) == (5, "error reading from stdin: File too large")
    assert list(tmp_path.iterdir()) == []


def test_no_stdin(program: Path, tmp_path: Path) -> None:
    env = {"CNI_COMMAND": "ADD", "CANAL_RUN_DIR": str(tmp_path)}
    done = subprocess.run(["sh", "-c", f"exec {program} <&-"], capture_output=True, env=env, check=False)
    assert (error(done)["code"], error(done)["msg"]) == (5, "error reading from stdin: Bad file descriptor")


@pytest.mark.parametrize("size", [90, 120, 300, 100_000])
def test_a_run_dir_that_is_too_long(run: Run, size: int) -> None:
    assert error(run("ADD", CANAL_RUN_DIR="/" + "x" * size))["code"] in {4, 11}


def test_what_is_built_is_static_and_has_the_version() -> None:
    """As it is installed: without libraries, for any host's file system."""
    from canal_udp import __version__, cni

    built = Path(cni.__file__).with_name("canal-cni")
    done = subprocess.run([built], capture_output=True, text=True, env={}, check=True)
    assert done.stderr.startswith(f"CNI canal-udp plugin v{__version__}\n")
    assert b"/lib64/ld-linux" not in built.read_bytes()
