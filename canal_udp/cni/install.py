"""The plug-in and its configuration on a host, put there and taken away.

Invariants   A runtime that looks at any moment finds the whole old file or the whole new one: both come by rename. The
             configuration is the last to come and the first to go, since a runtime takes it as a promise.
"""

from __future__ import annotations

import json
from pathlib import Path

from canal_udp.cni.conflist import BINARY_NAME, CONFIG_NAME
from canal_udp.control.subnet_env import replace_file
from canal_udp.errors import UsageError

CONFIG_DIR = Path("/etc/cni/net.d")
BINARY_DIR = Path("/opt/cni/bin")
OURS = Path(__file__).with_name(BINARY_NAME)


def install_binary(folder: Path) -> Path:
    """Put the executable into a directory, which is made; a running one goes on undisturbed."""
    if not OURS.exists():
        raise UsageError(f"{OURS} is not there: this canal was installed without a C compiler; make build")
    return _put(folder, BINARY_NAME, OURS.read_bytes(), 0o755)


def install_config(folder: Path, text: str) -> Path:
    """Put the configuration into a directory, which is made."""
    return _put(folder, CONFIG_NAME, text.encode("ascii"), 0o644)


def _put(folder: Path, name: str, content: bytes, mode: int) -> Path:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace_file(folder / name, content, mode)
    return folder / name


def uninstall(config_dir: Path, binary_dir: Path) -> list[Path]:
    """Remove what `install` put there; returns what was."""
    removed = []
    for path in (config_dir / CONFIG_NAME, binary_dir / BINARY_NAME):
        if path.exists():
            path.unlink()
            removed.append(path)
    return removed


def cached_attachments(folder: Path) -> list[tuple[str, str, str]]:
    """Return network, container id and interface of everything that libcni remembers below its cache directory.

    Raises     UsageError: no cache is not an empty one.
    """
    results = folder / "results"
    if not results.is_dir():
        raise UsageError(f"{results} is no directory: no runtime that uses libcni remembers anything there")
    return [entry for path in sorted(results.iterdir()) if (entry := _cached(path)) is not None]


def _cached(path: Path) -> tuple[str, str, str] | None:
    try:
        entry = json.loads(path.read_bytes())
        if entry.get("kind") != "cniCacheV1":
            return None
        return str(entry["networkName"]), str(entry["containerId"]), str(entry["ifName"])
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is no entry of libcni's cache: {error}; nothing was collected") from error
