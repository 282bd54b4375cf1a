"""What a runtime is answered: results in every version of the specification, and errors. Pure.

Structure    0.1.0, 0.2.0            {cniVersion, ip4: {ip, routes}, ip6: {ip, routes}, dns}
             0.3.0, 0.3.1, 0.4.0     {cniVersion, interfaces, ips: [{version, interface, address}], routes, dns}
             1.0.0                   the same without ips[].version
             1.1.0                   and interfaces[].mtu
Invariants   `sandbox` is CNI_NETNS as it was given. `interface` is written also when it is 0. What earlier plug-ins of
             the chain reported stays, in front of ours, so that its indices keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from canal_udp.cni.request import Call, get
from canal_udp.cni.spec import NEWEST, Code, number
from canal_udp.errors import CniError
from canal_udp.net import Address

_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """What an ADD made."""

    ifname: str
    sandbox: str
    ips: tuple[Address, ...]
    mtu_bytes: int
    dns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def result(version: str, made: Attachment, previous: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of an ADD.

    previous   of the plug-ins before ours, in the same version; empty if we are the first
    """
    if number(version) < (0, 3, 0):
        return _by_family(version, made)
    before = {key: list(previous.get(key) or []) for key in ("interfaces", "ips", "routes")}
    interface: dict[str, Any] = {"name": made.ifname, "sandbox": made.sandbox}
    if number(version) >= (1, 1, 0):
        interface["mtu"] = made.mtu_bytes
    at = len(before["interfaces"])
    routes = [route for ip in made.ips if (route := {"dst": _ANYWHERE[ip.version]}) not in before["routes"]]
    return {
        "cniVersion": version,
        "interfaces": [*before["interfaces"], interface],
        "ips": [*before["ips"], *(_ip(version, ip, at) for ip in made.ips)],
        "routes": [*before["routes"], *routes],
        "dns": {**(previous.get("dns") or {}), **made.dns},
    }


def _ip(version: str, ip: Address, interface: int) -> dict[str, Any]:
    one: dict[str, Any] = {"interface": interface, "address": f"{ip}/{ip.max_prefixlen}"}
    return one if number(version) >= (1, 0, 0) else {"version": str(ip.version), **one}


def _by_family(version: str, made: Attachment) -> dict[str, Any]:
    families = {
        f"ip{ip.version}": {"ip": f"{ip}/{ip.max_prefixlen}", "routes": [{"dst": _ANYWHERE[ip.version]}]}
        for ip in reversed(made.ips)  # the first of each family stays
    }
    return {"cniVersion": version, **families, "dns": dict(made.dns)}


# ---- what earlier plug-ins, or we, said before -----------------------------------------------------------------------


def previous_of(call: Call) -> Mapping[str, Any]:
    """Return the prevResult of a configuration as far as its lists are lists; empty if there is none.

    Raises     CniError.
    """
    previous = get(call.config, "prevResult")
    if previous is None:
        return {}
    if not isinstance(previous, dict):
        raise CniError(Code.DECODE, "could not parse prevResult: no object")
    for key in ("interfaces", "ips", "routes"):
        listed = previous.get(key)
        if listed is not None and not (isinstance(listed, list) and all(isinstance(one, dict) for one in listed)):
            raise CniError(Code.DECODE, f"could not parse prevResult: {key} is no list of objects")
    if not isinstance(previous.get("dns") or {}, dict):
        raise CniError(Code.DECODE, "could not parse prevResult: dns is no object")
    return previous


def check_previous(call: Call, ips: tuple[Address, ...]) -> None:
    """Accept a prevResult that still has the interface and addresses of ours, whatever later plug-ins added.

    Raises     CniError.
    """
    previous = previous_of(call)
    if not previous:
        raise CniError(Code.CONFIG, "CHECK needs the prevResult of the ADD")
    interfaces = previous.get("interfaces") or []
    ours = [
        at for at, one in enumerate(interfaces) if (one.get("name"), one.get("sandbox")) == (call.ifname, call.netns)
    ]
    if not ours:
        raise CniError(Code.CHANGED, f"prevResult has no interface {call.ifname} in {call.netns}")
    told = {str(one.get("address")) for one in previous.get("ips") or [] if one.get("interface") in ours}
    missing = [text for ip in ips if (text := f"{ip}/{ip.max_prefixlen}") not in told]
    if missing:
        raise CniError(Code.CHANGED, f"prevResult does not have {', '.join(missing)} at {call.ifname}")


# ---- the answer on the socket ----------------------------------------------------------------------------------------


def success(body: Mapping[str, Any] | None = None) -> bytes:
    """Return the answer that makes the executable print `body` and end with 0."""
    return _answer(0, body)


def failure(error: CniError, version: str = "") -> bytes:
    """Return the answer that makes the executable print the error and end with 1."""
    details = {"details": error.details} if error.details else {}
    code = int(error.code)
    return _answer(1, {"cniVersion": version or NEWEST, "code": code, "msg": str(error), **details})


def _answer(status: int, body: Mapping[str, Any] | None) -> bytes:
    text = b"" if body is None else msgspec.json.encode(body) + b"\n"
    return b"%d %d\n%b" % (status, len(text), text)
