"""Do the steps of a plan on this machine."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from canal_udp.errors import LabError
from canal_udp.lab.steps import Bridge, Ip, Netns, Offloads, Step, Sysctl
from canal_udp.tunnel.netns import run_inside

NETNS_DIR = Path("/run/netns")


def netns_path(name: str) -> str:
    return str(NETNS_DIR / name)


def apply(steps: Iterable[Step]) -> None:
    """Do the steps in order; `ip` commands of one namespace that follow each other go in one call. Raises LabError."""
    for (kind, space), group in groupby(steps, key=_batch_key):
        _APPLY[kind](space, list(group))


def _batch_key(step: Step) -> tuple[type, str]:
    return type(step), "" if isinstance(step, Netns) else step.netns


def run(argv: Sequence[str], stdin: str = "", space: str = "") -> str:
    """Run a program to its end, inside a namespace when one is given; returns what it printed. Raises LabError."""

    def work() -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)

    try:
        done = run_inside(netns_path(space), work) if space else work()
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed: apt-get install {PACKAGES.get(argv[0], argv[0])}") from None
    if done.returncode != 0:
        where = f" in {space}" if space else ""
        reason = done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}"
        raise LabError(f"`{' '.join(argv)}`{where}: {reason}")
    return done.stdout


PACKAGES = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "tc": "iproute2",
    "ethtool": "ethtool",
    "nft": "nftables",
    "ping": "iputils-ping",
    "iperf3": "iperf3",
}


def _batch(argv: Sequence[str], commands: Sequence[str]) -> None:
    """`ip -batch`; an error names the command of the batch that failed."""
    try:
        run([*argv, "-batch", "-"], "\n".join(commands) + "\n")
    except LabError as error:
        line = re.search(r"Command failed -:(\d+)", str(error))
        if line is None:
            raise
        reason = str(error).split(": ", 1)[-1].splitlines()[0]
        raise LabError(f"`{' '.join(argv)} {commands[int(line[1]) - 1]}`: {reason}") from None


def _netns(_: str, steps: list[Step]) -> None:
    _batch(["ip"], [f"netns add {step.name}" for step in steps if isinstance(step, Netns)])


def _ip(space: str, steps: list[Step]) -> None:
    _batch(["ip", "-n", space], [step.args for step in steps if isinstance(step, Ip)])


def _bridge(space: str, steps: list[Step]) -> None:
    _batch(["bridge", "-n", space], [step.args for step in steps if isinstance(step, Bridge)])


def _sysctl(space: str, steps: list[Step]) -> None:
    def work() -> None:
        for step in steps:
            if isinstance(step, Sysctl):
                path = Path("/proc/sys", *(part.replace("/", ".") for part in step.key.split(".")))
                try:
                    path.write_text(step.value, encoding="ascii")
                except OSError as error:
                    if step.optional and error.errno in (errno.ENOENT, errno.EPERM, errno.EACCES):
                        continue
                    raise LabError(f"sysctl {step.key}={step.value} in {space}: {error.strerror}") from error

    run_inside(netns_path(space), work)


def _offloads(space: str, steps: list[Step]) -> None:
    for step in steps:
        if isinstance(step, Offloads):
            run(["ethtool", "-K", step.device, *step.features.split()], space=space)


_APPLY: dict[type, Callable[[str, list[Step]], None]] = {
    Netns: _netns,
    Ip: _ip,
    Bridge: _bridge,
    Sysctl: _sysctl,
    Offloads: _offloads,
}
