"""What the CNI specification fixes: versions, error codes, what each command needs. Pure.

Source     containernetworking/cni SPEC.md 1.1.0; texts and codes of pkg/skel, which runtimes and their users know.
"""

from __future__ import annotations

import re
from enum import IntEnum

from canal_udp.errors import CniError

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = SUPPORTED[-1]
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")  # VERSION is answered by the executable
NEEDS = {  # in the order in which a missing one is named
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_VERSION = re.compile(r"(0|[1-9]\d{0,5})(\.\d{1,6}){0,2}", re.ASCII)


class Code(IntEnum):
    """Error codes; from 100 on they are ours."""

    VERSION = 1
    UNSUPPORTED = 2  # the message holds key and value
    UNKNOWN_CONTAINER = 3
    ENVIRONMENT = 4
    IO = 5
    DECODE = 6
    CONFIG = 7
    NETNS = 8
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED = 51  # and what runs already has not all of its network
    DUPLICATE = 100  # this container has this interface already
    CHANGED = 101  # CHECK found something missing
    INTERNAL = 999


def number(version: str) -> tuple[int, ...]:
    """Return a version as something to compare.

    Raises     CniError.
    """
    if not _VERSION.fullmatch(version):
        raise CniError(Code.DECODE, f"cniVersion {version[:40]!a} is no version")
    parts = [int(part) for part in version.split(".")]
    return (*parts, 0, 0)[:3]


def check_version(command: str, version: str) -> None:
    """Accept the version of a configuration for a command.

    Raises     CniError.
    """
    since = _SINCE.get(command)
    if since and number(version) < number(since):
        raise CniError(Code.VERSION, f"config version does not allow {command}")
    if version not in SUPPORTED:
        listed = " ".join(f'"{one}"' for one in SUPPORTED)
        number(version)
        raise CniError(Code.VERSION, "incompatible CNI versions", f'config is "{version}", plugin supports [{listed}]')
