"""Netfilter rules of this namespace: put there as one transaction, and looked at.

Structure   text of `canal_udp.netfilter` ─► nft -f, iptables-restore; a later look compares with what was listed then
Threads     every call runs other programs and blocks: in the host thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from canal_udp.errors import DeviceError
from canal_udp.netfilter import (
    FLANNEL_TABLES,
    OWN_TABLE,
    Family,
    Rules,
    iptables_ours,
    iptables_restore,
    nft_removal,
    nft_script,
)

TIMEOUT_S = 30
_IPTABLES: dict[Family, str] = {4: "iptables", 6: "ip6tables"}
_WAIT_S = "5"  # for the lock of iptables-legacy


def apply(rules: Rules) -> str:
    """Make the rules hold, those of flannel's other style gone; returns what a look will show.

    Raises   DeviceError naming the program and what it said.
    """
    if rules.none:
        remove(rules)
        return ""
    if rules.style == "flannel-iptables":
        if shutil.which("nft", path=_path()):
            _run(["nft", "-f", "-"], nft_removal((*FLANNEL_TABLES.values(), OWN_TABLE)))
        for family in _families(rules):
            _restore(rules, family)
    else:
        _run(["nft", "-f", "-"], nft_script(rules))
        if rules.style == "flannel-nft":
            _remove_iptables(rules)
    return look(rules)


def look(rules: Rules) -> str:
    """What is there of the rules now."""
    if rules.style == "flannel-iptables":
        return "\n".join(line for family in _families(rules) for line in iptables_ours(_saved(family)))
    tables = (["nft", "list", "table", *table.split()] for table in rules.tables)
    return "\n".join(_output(command) for command in tables)


def remove(rules: Rules) -> None:
    """Have none of the rules, in whichever of flannel's styles; a program that is not here wrote none."""
    if rules.style != "canal":
        _remove_iptables(rules)
    if shutil.which("nft", path=_path()):
        tables = (*FLANNEL_TABLES.values(), OWN_TABLE) if rules.style != "canal" else (OWN_TABLE,)
        _run(["nft", "-f", "-"], nft_removal(tables))


def _families(rules: Rules) -> list[Family]:
    versions = {network.version for network, _ in rules.pairs}
    return [family for family in _IPTABLES if family in versions]


def _restore(rules: Rules, family: Family) -> None:
    script = iptables_restore(rules, family, _saved(family))
    if script:
        _run([f"{_IPTABLES[family]}-restore", "-w", _WAIT_S, "--noflush"], script)


def _remove_iptables(rules: Rules) -> None:
    """Without iptables there are no rules of iptables."""
    none = Rules("flannel-iptables", rules.pairs, masq=False, forward=False)
    for family, program in _IPTABLES.items():
        if shutil.which(program, path=_path()):
            _restore(none, family)


def _saved(family: Family) -> str:
    return _run([f"{_IPTABLES[family]}-save"])


def _output(command: Sequence[str]) -> str:
    """What a command prints; nothing if it fails, as it does when a table is gone."""
    try:
        return _run(command)
    except DeviceError:
        return ""


def _run(command: Sequence[str], given: str = "") -> str:
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={"PATH": _path(), "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise DeviceError(f"{command[0]} is missing, and needed for masquerading and forward rules") from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{command[0]} did not end within {TIMEOUT_S} s") from error
    if done.returncode:
        raise DeviceError(f"{command[0]}: {' '.join(done.stderr.split()) or f'ended with {done.returncode}'}")
    return done.stdout


def _path() -> str:
    return os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
