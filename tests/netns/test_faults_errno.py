"""System calls of the data path that fail: counted, no busy loop meanwhile, and over as soon as the cause is.

pod p ─TUN─ node a (daemon, its worker under strace) ───bridge─── node b (daemon) ─TUN─ pod q
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.bed import Bed, laboratory, wait

LAB = """
overlay: {network: 10.244.0.0/16, encap: vxlan}
nodes: {a: {pods: [p], flags: [--mtu-probe-s, "0"]}, b: {pods: [q], flags: [--mtu-probe-s, "0"]}}
"""
PROBE_EVERY_S = 0.005
FAULT_S = 0.6
CALLS_PER_S = 10_000  # far above what two hundred packets a second need, far below what a busy loop makes
RECOVERY_S = 0.1
REOPENED_S = 2.5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    with laboratory(LAB, "t-errno", tmp_path_factory.mktemp("lab")) as bed:
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    yield shared
    shared.transfer("p", "q", 1 << 20)
    shared.settle()


def worker(bed: Bed, node: str) -> int:
    """The thread that moves the packets."""
    tasks = Path(f"/proc/{bed.process(node).pid}/task").iterdir()
    return next(int(task.name) for task in tasks if (task / "comm").read_text() == "canal-worker\n")


COUNTED = {"sendmmsg": "send", "recvmmsg": "receive", "read": "read", "write,writev": "write"}


def failed(bed: Bed, node: str, call: str, error: str) -> int:
    """How often the daemon counted that."""
    return int(bed.status(node)["errors"].get(f"{COUNTED[call]} {error}", 0))


@contextmanager
def failing(bed: Bed, node: str, call: str, error: str) -> Iterator[None]:
    """Every such call of a worker fails; the kernel is not asked. It is counted by errno."""
    thread, before = worker(bed, node), failed(bed, node, call, error)
    argv = ["strace", "-q", "-e", f"inject={call}:error={error}", "-o", "/dev/null", "-p", str(thread)]
    with subprocess.Popen(argv) as tracer:
        try:
            status = Path(f"/proc/{thread}/status")
            wait(lambda: "TracerPid:\t0\n" not in status.read_text(encoding="ascii"), lambda: "strace does not attach")
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
    assert failed(bed, node, call, error) > before


@contextmanager
def probes(bed: Bed, source: str, target: str) -> Iterator[list[float]]:
    """Datagrams all the time; when each arrived."""
    arrived: list[float] = []
    over = threading.Event()
    with bed.sock(source) as sender, bed.receiver(target) as receiver:
        sender.connect(receiver.getsockname())
        receiver.settimeout(0.1)

        def send() -> None:
            while not over.wait(PROBE_EVERY_S):
                sender.send(b"probe")

        def hear() -> None:
            while not over.is_set():
                try:
                    receiver.recv(64)
                    arrived.append(time.monotonic())
                except TimeoutError:
                    continue

        threads = [threading.Thread(target=work) for work in (send, hear)]
        for thread in threads:
            thread.start()
        try:
            yield arrived
        finally:
            over.set()
            for thread in threads:
                thread.join()


SENDING = ["ENOBUFS", "EAGAIN", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "EPERM", "EINVAL", "ENOMEM"]
PASSING = ["EAGAIN", "EINTR", "ENOBUFS", "ENOMEM"]
REASONS = {"ENOBUFS": "tx_again", "EAGAIN": "tx_again", "ENOMEM": "tx_again"}


@pytest.mark.parametrize("error", SENDING)
def test_sending_fails(bed: Bed, error: str) -> None:
    """What could not be sent is dropped for a reason; the first probe after the cause arrives at once."""
    reason = REASONS.get(error, "tx_error")
    before = bed.drops("a").get(reason, 0)
    with probes(bed, "p", "q") as arrived:
        calls = bed.counter("a", "syscalls")
        with failing(bed, "a", "sendmmsg", error):
            time.sleep(FAULT_S)
        ended = time.monotonic()
        wait(lambda: arrived and arrived[-1] > ended)
        assert bed.counter("a", "syscalls") - calls < CALLS_PER_S * FAULT_S
    assert next(at for at in arrived if at > ended) - ended < RECOVERY_S
    assert bed.drops("a")[reason] - before > 0.5 * FAULT_S / PROBE_EVERY_S
    assert bed.status("a")["state"] == "ready"


@pytest.mark.parametrize(
    ("call", "source", "target", "error"),
    [
        *(pytest.param("recvmmsg", "q", "p", error, id=f"socket {error}") for error in (*PASSING, "ECONNREFUSED")),
        *(pytest.param("read", "p", "q", error, id=f"TUN {error}") for error in PASSING),
    ],
)
def test_receiving_fails(bed: Bed, call: str, source: str, target: str, error: str) -> None:
    """What waits in the kernel is there when the cause is over; nobody spins meanwhile."""
    with probes(bed, source, target) as arrived:
        wait(lambda: arrived)
        calls = bed.counter("a", "syscalls")
        with failing(bed, "a", call, error):
            time.sleep(FAULT_S)
        ended = time.monotonic()
        wait(lambda: arrived[-1] > ended)
        assert bed.counter("a", "syscalls") - calls < CALLS_PER_S * FAULT_S
    assert next(at for at in arrived if at > ended) - ended < RECOVERY_S
    assert bed.status("a")["state"] == "ready"


@pytest.mark.parametrize(("error", "reason"), [("EAGAIN", "tx_again"), ("EIO", "port_down"), ("EINVAL", "tx_error")])
def test_writing_fails(bed: Bed, error: str, reason: str) -> None:
    before = bed.drops("a").get(reason, 0)
    with probes(bed, "q", "p") as arrived:
        with failing(bed, "a", "write,writev", error):
            time.sleep(FAULT_S)
        ended = time.monotonic()
        wait(lambda: arrived and arrived[-1] > ended)
    assert next(at for at in arrived if at > ended) - ended < RECOVERY_S
    assert bed.drops("a")[reason] - before > 0.5 * FAULT_S / PROBE_EVERY_S


@pytest.mark.parametrize(("call", "source", "target"), [("recvmmsg", "q", "p"), ("read", "p", "q")])
def test_a_descriptor_that_is_dead_is_replaced(bed: Bed, call: str, source: str, target: str) -> None:
    """The data plane gives a port up that says EBADF; the daemon says so, opens it anew and goes on."""
    with probes(bed, source, target) as arrived:
        wait(lambda: arrived)
        with failing(bed, "a", call, "EBADF"):
            wait(lambda: bed.status("a")["state"] == "degraded")
        ended = time.monotonic()
        wait(lambda: arrived[-1] > ended and bed.status("a")["state"] == "ready")
    assert next(at for at in arrived if at > ended) - ended < REOPENED_S
