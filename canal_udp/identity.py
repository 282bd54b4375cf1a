"""This node's VTEP MAC, the same for ever: peers that are not ours keep it in permanent neighbour entries."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path

from canal_udp.control.subnet_env import replace_file
from canal_udp.logs import event
from canal_udp.net import format_mac

LOG = logging.getLogger("canal.daemon")
FILE_NAME = "node.json"


def own_mac(state_dir: Path) -> bytes:
    """Return the MAC of this node; made at the first start."""
    mac = saved_mac(state_dir)
    if mac is None:
        raw = secrets.token_bytes(6)
        mac = bytes([(raw[0] & 0xFC) | 0x02]) + raw[1:]  # locally administered, one station
        keep_mac(state_dir, mac)
    return mac


def saved_mac(state_dir: Path) -> bytes | None:
    """Return the MAC that an earlier daemon had here."""
    path = state_dir / FILE_NAME
    try:
        mac = bytes.fromhex(json.loads(path.read_text(encoding="ascii"))["vtep_mac"].replace(":", ""))
        if len(mac) == 6 and not mac[0] & 1:
            return mac
    except FileNotFoundError:
        event(LOG, "debug", "node.new", path=path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        event(LOG, "warning", "node.unreadable", path=path, reason=error)
    return None


def keep_mac(state_dir: Path, mac: bytes) -> None:
    """Have that MAC from now on."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"vtep_mac": format_mac(mac)}) + "\n"
    replace_file(state_dir / FILE_NAME, text.encode("ascii"), 0o600)
