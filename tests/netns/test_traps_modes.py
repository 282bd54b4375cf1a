"""Data arrives whole in every mode that a user or the kernel may force on us, and status says which mode that is.

pods p, n, c, s ─TUN─ nodes a, no-gso, no-coalesce, strict ───bridge, wire profile─── node k (kernel VXLAN) ─ pod q
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.bed import UDP_SEGMENT, Bed, drain, laboratory, wait

LAB = """
networks:
  core: {subnets: [192.168.1.0/24], profile: wire}
overlay: {network: 10.244.0.0/16, encap: vxlan}
nodes:
  a: {pods: [p]}
  no-gso: {pods: [n], flags: [--no-udp-gso]}
  no-coalesce: {pods: [c], flags: [--no-coalesce]}
  strict: {pods: [s], flags: [--strict-checksums]}
  k: {kind: kernel-vxlan, pods: [q]}
"""
SIZE_BYTES = 50 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with laboratory(LAB, "t-modes", tmp_path_factory.mktemp("lab")) as bed:
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Iterator[Bed]:
    yield shared
    shared.settle()


@pytest.mark.parametrize("pod", ["n", "c", "s"])
@pytest.mark.parametrize("other", ["p", "q"])
def test_transfer(bed: Bed, pod: str, other: str) -> None:
    """Both ways, with a daemon in the usual mode and with the kernel."""
    bed.transfer(pod, other, SIZE_BYTES)
    bed.transfer(other, pod, SIZE_BYTES)


def test_modes_are_what_was_asked_for(bed: Bed) -> None:
    """Not only said: without UDP_SEGMENT nothing is sent in superpackets, without coalescing none is made."""
    for pod in ("n", "c", "s"):
        bed.transfer(pod, "p", 1 << 20)
    found = {node: bed.status(node)["offload"] for node in bed.nodes()}
    assert found["a"]["mode"] == found["strict"]["mode"] == "gso+gro"
    assert (found["no-gso"]["mode"], found["no-gso"]["reason"]) == ("gro", "--no-udp-gso")
    assert [node for node, offload in found.items() if not offload["coalesce"]] == ["no-coalesce"]
    assert [node for node in found if bed.drops(node).keys() - {"martian", "tx_again"}] == []


def test_udp_segment_is_refused_at_run_time(bed: Bed) -> None:
    """The kernel says EIO where it agreed before: the refused go in pieces, none lost or doubled, as all after."""
    data = random.Random(1).randbytes(40_000)
    parts = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    with bed.receiver("n") as receiver, bed.sock("p") as sender, bed.dropping("a"):
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(data, receiver.getsockname())
        assert drain(receiver, len(parts)) == parts
        assert bed.status("a")["offload"]["sockets_without_gso"] == 0
        with refused_sends(bed, "a", "EIO", calls=2):
            sender.sendto(data, receiver.getsockname())
            assert drain(receiver, len(parts)) == parts
        status, before = bed.status("a"), bed.counter("a", "tx_superpackets")
        sender.sendto(data, receiver.getsockname())
        assert drain(receiver, len(parts) + 1, 0.3) == parts
    assert (status["counters"]["gso_fallback"], status["offload"]["sockets_without_gso"]) == (1, 1)
    assert "1 sockets lost UDP_SEGMENT at run time" in status["offload"]["reason"]
    assert bed.counter("a", "tx_superpackets") == before
    bed.transfer("p", "n", SIZE_BYTES)


@contextmanager
def refused_sends(bed: Bed, node: str, error: str, calls: int) -> Iterator[None]:
    """The next sends of a daemon fail. The kernel is not asked, so nothing of them is sent."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    pid = bed.process(node).pid
    inject = f"inject=sendmmsg:error={error}:when=1..{calls}"
    with subprocess.Popen(["strace", "-f", "-q", "-e", inject, "-o", "/dev/null", "-p", str(pid)]) as tracer:
        try:
            wait(lambda: traced(pid), lambda: "strace does not attach")
            yield
        finally:
            tracer.send_signal(signal.SIGINT)


def traced(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all("TracerPid:\t0\n" not in (task / "status").read_text(encoding="ascii") for task in tasks)
