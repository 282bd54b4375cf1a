"""The configuration by which runtimes find the plug-in. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from canal_udp.cni.spec import SUPPORTED

BINARY_NAME = "canal-cni"
CONFIG_NAME = "10-canal.conflist"  # runtimes take the first by name
NETWORK = "canal"
CHAINABLE: dict[str, tuple[str, ...]] = {  # type -> capabilities
    "portmap": ("portMappings",),
    "bandwidth": ("bandwidth",),
    "tuning": (),
    "firewall": (),
    "sbr": (),
}
_OURS_CAN = ("dns", "ipRanges", "ips", "mac")


def conflist(name: str, chain: Sequence[str] = ()) -> str:
    """Return the configuration of a network: ours, and the plug-ins that are called after it.

    chain      of CHAINABLE
    """
    plugins = [_plugin(BINARY_NAME, _OURS_CAN), *(_plugin(kind, CHAINABLE[kind]) for kind in chain)]
    # others do not know 1.1.0 yet, and a runtime takes the highest of the list that it knows itself
    versions = {} if chain else {"cniVersions": list(SUPPORTED[SUPPORTED.index("0.4.0") :])}
    return json.dumps({"cniVersion": "1.0.0", **versions, "name": name, "plugins": plugins}, indent=2) + "\n"


def _plugin(kind: str, can: Iterable[str]) -> dict[str, object]:
    capabilities = dict.fromkeys(can, True)
    return {"type": kind, **({"capabilities": capabilities} if capabilities else {})}
