"""What flanneld left or runs on this host, and what a takeover would do about it. `steps` is pure."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from canal_udp.errors import CanalError, UsageError
from canal_udp.flannel import flags, plan
from canal_udp.net import format_mac
from canal_udp.netfilter import CHAINS, FLANNEL_TABLES
from canal_udp.tunnel.netlink import Netlink

PROGRAM = "flanneld"
PREFIX = "flannel"


@dataclass(frozen=True, slots=True)
class Process:
    """A flanneld that runs in this network namespace."""

    pid: int
    words: tuple[str, ...]
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Device:
    """A link whose name is flannel's."""

    name: str
    kind: str
    mac: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that was found."""

    processes: tuple[Process, ...]
    devices: tuple[Device, ...]
    rules: tuple[str, ...]
    subnet_env: Mapping[str, str]
    subnet_file: Path


def survey(subnet_file: Path) -> Survey:
    """Look at this host."""
    with Netlink() as netlink:
        links = [netlink.link(index=one.index) for one in netlink.interfaces() if one.name.startswith(PREFIX)]
    devices = tuple(Device(one.name, one.kind, format_mac(one.address)) for one in links if one is not None)
    return Survey(tuple(_processes()), devices, tuple(_rules()), _env(subnet_file), subnet_file)


def steps(found: Survey) -> list[str]:
    """What would happen, in order; each a sentence."""
    if not (found.processes or found.devices or found.subnet_env):
        return ["nothing of flannel is on this host: canal-flanneld would start like a new node"]
    lines = []
    for process in found.processes:
        lines.append(f"stop flanneld first (process {process.pid}): it would take its device back")
        lines += _start(process)
    if not found.processes:
        lines.append("start canal-flanneld with flanneld's flags or FLANNELD_* variables; flanneld does not run")
    if subnet := found.subnet_env.get("FLANNEL_SUBNET"):
        lines.append(f"it would keep the subnet {subnet} ({found.subnet_file}) and rewrite that file")
    for device in found.devices:
        lines.append(_about(device))
    for rules in found.rules:
        lines.append(f"it would replace {rules} as one transaction")
    return [*lines, "peers would see the lease renewed, with the same subnet, address and MAC"]


def _about(device: Device) -> str:
    if device.kind == "vxlan":
        return f"it would take over {device.name}: keep its MAC {device.mac}, remove it, put a TUN of that name there"
    if device.kind == "tun":
        return f"{device.name} is a TUN: canal-flanneld's from before, or gone with flanneld's process"
    return f"it would leave {device.name} ({device.kind or 'a device'}) alone; its backend is not supported"


def _start(process: Process) -> list[str]:
    words = process.words[1:]
    try:
        config = plan.daemon_config(flags.read(words, process.environ), process.environ)
    except (UsageError, CanalError) as error:
        return [f"its command line is not accepted: {error}"]
    return [f"start canal-flanneld {' '.join(_hidden(words))}".rstrip(), f"its store is {config.store}"]


def _hidden(words: Sequence[str]) -> list[str]:
    """Without the password, which is the value of a flag."""
    shown, secret = [], False
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        shown.append(
            "..." if secret else f"{word.partition('=')[0]}=..." if name == "etcd-password" and equals else word
        )
        secret = name == "etcd-password" and not equals
    return shown


def _processes() -> list[Process]:
    own = Path("/proc/self/ns/net").readlink()
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if not directory.name.isdigit() or (directory / "comm").read_text().strip() != PROGRAM:
                continue
            if (directory / "ns" / "net").readlink() != own:
                continue
            words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            pairs = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended while we looked
            continue
        environ = dict(pair.partition("=")[::2] for pair in pairs if pair.startswith("FLANNELD_"))
        found.append(Process(int(directory.name), tuple(words), environ))
    return found


def _rules() -> list[str]:
    found = []
    if shutil.which("iptables-save"):
        saved = _printed("iptables-save")
        found += [
            f"iptables chain {chain} ({table})" for table, (_, chain, _) in CHAINS.items() if f":{chain} " in saved
        ]
    if shutil.which("nft"):
        tables = _printed("nft", "list", "tables").splitlines()
        found += [f"nft table {name}" for name in FLANNEL_TABLES.values() if f"table {name}" in tables]
    return found


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout


def _env(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in lines if line.startswith("FLANNEL_"))
