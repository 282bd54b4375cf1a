"""Processes of a lab: started apart from us, known by pid and start time, signalled without hitting a stranger."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal_udp.errors import LabError
from canal_udp.lab.host import netns_path

Identity = tuple[int, int]  # of a namespace: device and inode
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """A pid can be used again; pid and start time cannot."""

    pid: int
    start_ticks: int  # since boot, field 22 of /proc/<pid>/stat

    @property
    def state(self) -> str:
        """`running`, `stopped` or `gone`."""
        _reap(self.pid)
        letter, start_ticks = _stat(self.pid)
        if start_ticks != self.start_ticks or letter in "ZX":
            return "gone"
        return "stopped" if letter in "Tt" else "running"

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone. The pidfd keeps the pid from being used again meanwhile."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if self.state == "gone":
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True


def spawn(space: str, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> Process:
    """Start a program in a namespace, in a session of its own, its output appended to `log`."""
    command = ["ip", "netns", "exec", space, *argv]
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Whoever waits for the end of a pipe that this process was given would wait for the daemon.
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CANAL_")}
    defaults = [signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ]
    try:
        pid = os.posix_spawnp(
            "ip", command, inherited | dict(env), file_actions=actions, setsid=True, setsigdef=defaults, setsigmask=[]
        )
    except OSError as error:
        raise LabError(f"cannot start {argv[0]} in {space}: {error.strerror}") from error
    return Process(pid, _stat(pid)[1])


def _inheritable() -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself is closed by now
            if int(entry) > 2 and os.get_inheritable(int(entry)):
                found.append(int(entry))
    return found


@contextmanager
def held(spaces: Iterable[str]) -> Iterator[set[Identity]]:
    """Identities of namespaces; meanwhile no other namespace can get them, not even when these are deleted."""
    with contextlib.ExitStack() as stack:
        identities = set()
        for space in spaces:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(netns_path(space), os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                found = os.fstat(fd)
                identities.add((found.st_dev, found.st_ino))
        mine = _identity("self")
        yield {one for one in identities if one != mine}  # a file that was never mounted, or a path to our own


def inside(identities: set[Identity]) -> list[Process]:
    """Every process that lives in one of these namespaces, whoever started it."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _identity(entry) in identities]
    return [Process(pid, _stat(pid)[1]) for pid in pids]


def end(processes: Collection[Process], grace_s: float) -> None:
    """TERM, then KILL after the grace; returns when all are gone. Raises LabError if one is not."""
    for process in processes:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
    if not wait_gone(processes, grace_s):
        for process in processes:
            process.signal(signal.SIGKILL)
        if not wait_gone(processes, 5.0):
            left = [str(process.pid) for process in processes if process.state != "gone"]
            raise LabError(f"processes {', '.join(left)} survive SIGKILL")


def wait_gone(processes: Collection[Process], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(process.state != "gone" for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time; ("X", -1) when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "X", -1
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _identity(pid: str) -> Identity | None:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return found.st_dev, found.st_ino


def _reap(pid: int) -> None:
    """A child of ours that ended stays a zombie until someone asks."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # it is not our child: another `canal lab` started it
