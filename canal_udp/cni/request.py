"""A request of a container runtime: what came through the socket -> what is asked for, or the error that it gets. Pure.

Structure    bytes ─► environment, stdin ─► Call (every command) ─► Wishes (ADD)
Invariants   Checked in one order: environment, names in it, JSON, network name, version. What a DEL does not need
             cannot make it fail. Keys of the configuration are found whatever their case, as Go's decoder finds them.
Source       CNI SPEC.md and CONVENTIONS.md 1.1.0; Mesos: src/slave/containerizer/mesos/isolators/network/cni.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from types import MappingProxyType
from typing import Any

import msgspec

from canal_udp.cni.spec import COMMANDS, NEEDS, Code, check_version
from canal_udp.endpoints import parse_labels
from canal_udp.errors import CniError, RequestError
from canal_udp.net import Address, contains, parse_address, parse_network, printable

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME_MAX = 15
_IFNAME = re.compile(r"[A-Za-z0-9_.-]+")
_RESERVED_IFNAMES = {"lo", "all", "default"}  # names of sysctl directories, or never ours
_ARGS = ("IP", "MAC", "IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID")
_TRUE, _FALSE = {"1", "true"}, {"0", "false", ""}
_MESOS = "org.apache.mesos"


@dataclass(frozen=True, slots=True)
class Call:
    """What every command has."""

    command: str
    container_id: str
    netns: str
    ifname: str
    args: str
    network: str
    version: str
    config: Mapping[str, Any]
    own_netns_allowed: bool = False  # CNI_NETNS_OVERRIDE


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an ADD asks for beyond an interface."""

    pod: tuple[str, str] | None = None  # Kubernetes' namespace and name
    ips: tuple[Address, ...] = ()
    within: tuple[tuple[Address, Address], ...] = ()  # first and last address of each range
    labels: tuple[tuple[str, str], ...] = ()
    mac: str = ""  # cannot be given: a TUN has none
    dns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def split(message: bytes) -> tuple[dict[str, str], bytes]:
    """Return environment and stdin of what the executable sent.

    Raises     CniError.
    """
    head, end, stdin = message.partition(b"\0\0")
    if not end:
        raise CniError(Code.IO, "the request ends within its environment")
    pairs = (item.decode("utf-8", "surrogateescape").partition("=") for item in head.split(b"\0"))
    return {key: value for key, _, value in pairs}, stdin


def read_call(environ: Mapping[str, str], stdin: bytes) -> Call:
    """Return what is asked for.

    Raises     CniError.
    """
    command = environ.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(Code.ENVIRONMENT, f"unknown CNI_COMMAND: {printable(command)}")
    missing = [name for name in NEEDS[command] if not environ.get(name)]
    if missing:
        raise CniError(Code.ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    if "CNI_CONTAINERID" in NEEDS[command]:
        _check_container_id(environ["CNI_CONTAINERID"])
        _check_ifname(environ["CNI_IFNAME"])
    config = _decode(stdin)
    network, version = _network(config), _text(config, "cniVersion") or "0.1.0"
    check_version(command, version)
    return Call(
        command=command,
        container_id=environ.get("CNI_CONTAINERID", ""),
        netns=environ.get("CNI_NETNS", ""),
        ifname=environ.get("CNI_IFNAME", ""),
        args=environ.get("CNI_ARGS", ""),
        network=network,
        version=version,
        config=config,
        own_netns_allowed=environ.get("CNI_NETNS_OVERRIDE", "").lower() in _TRUE,
    )


def version_of(stdin: bytes) -> str:
    """Return the version to answer an error in, as far as one can be made out."""
    try:
        return _text(_decode(stdin), "cniVersion")
    except CniError:
        return ""


def get(mapping: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, in its own case or else in any; None if it is not there."""
    if key in mapping:
        return mapping[key]
    return next((value for found, value in mapping.items() if found.lower() == key.lower()), None)


def _check_container_id(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise CniError(Code.ENVIRONMENT, "invalid characters in containerID", printable(text))


def _check_ifname(text: str) -> None:
    if len(text.encode("utf-8", "surrogateescape")) > _IFNAME_MAX:
        raise CniError(
            Code.ENVIRONMENT,
            "interface name is too long",
            f"interface name should be less than {_IFNAME_MAX + 1} characters",
        )
    if text in {".", ".."}:
        raise CniError(Code.ENVIRONMENT, "interface name is . or ..")
    if re.search(r"[/:\s]", text):
        raise CniError(Code.ENVIRONMENT, "interface name contains / or : or whitespace characters")
    if not _IFNAME.fullmatch(text) or text in _RESERVED_IFNAMES:
        raise CniError(
            Code.ENVIRONMENT, "interface name cannot be used", f"{printable(text)!a}: A-Z a-z 0-9 _ . -, and not lo"
        )


def _decode(stdin: bytes) -> Mapping[str, Any]:
    try:
        config = msgspec.json.decode(stdin)
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
        raise CniError(Code.DECODE, f"error unmarshall network config: {printable(str(error))}") from error
    if not isinstance(config, dict):
        raise CniError(Code.DECODE, "error unmarshall network config: not an object")
    return config


def _network(config: Mapping[str, Any]) -> str:
    name = _text(config, "name")
    if not name:
        raise CniError(Code.CONFIG, "missing network name")
    if not _NAME.fullmatch(name):
        raise CniError(Code.CONFIG, "invalid characters found in network name", printable(name))
    return name


def _text(config: Mapping[str, Any], key: str) -> str:
    value = get(config, key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CniError(Code.DECODE, f"error unmarshall network config: {key} is no string")
    return value


# ---- ADD -------------------------------------------------------------------------------------------------------------


def read_wishes(call: Call) -> Wishes:
    """Return what an ADD asks for beyond an interface.

    Raises     CniError.
    """
    _refuse_unsupported(call.config)
    arguments = _arguments(call.args)
    runtime, cni = _object(call.config, "runtimeConfig"), _object(_object(call.config, "args"), "cni")
    asked = _strings(runtime, "ips") or _strings(cni, "ips") or ([arguments["IP"]] if arguments.get("IP") else [])
    namespace, pod = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    return Wishes(
        pod=(namespace, pod) if namespace and pod else None,
        ips=tuple(_address(text) for text in asked),
        within=_ranges(runtime),
        labels=_labels(call.config, cni),
        mac=_string(runtime, "mac") or _string(cni, "mac") or arguments.get("MAC", ""),
        dns=MappingProxyType(_dns(_object(call.config, "dns"), _object(runtime, "dns"))),
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    runtime = _object(config, "runtimeConfig")
    kind = _string(_object(config, "ipam"), "type")
    if kind not in {"", "canal", "canal-cni"}:
        raise _unsupported("ipam.type", kind, "the daemon gives addresses of its node's subnet; leave ipam out")
    if _switch(config, "ipMasq"):
        raise _unsupported("ipMasq", get(config, "ipMasq"), "masquerading is the host's: canal-cni changes no firewall")
    if get(runtime, "portMappings"):
        raise _unsupported(
            "runtimeConfig.portMappings",
            get(runtime, "portMappings"),
            "declare the capability at the portmap plug-in, chained after canal-cni",
        )
    if get(runtime, "bandwidth"):
        raise _unsupported("runtimeConfig.bandwidth", get(runtime, "bandwidth"), "canal-cni limits no rates")


def _unsupported(key: str, value: object, why: str) -> CniError:
    return CniError(Code.UNSUPPORTED, f"unsupported field {key} = {_shown(value)}", why)


def _shown(value: object) -> str:
    return printable(msgspec.json.encode(value).decode("utf-8", "replace"), 200)


def _arguments(text: str) -> dict[str, str]:
    """The pairs of CNI_ARGS; unknown ones only if it says so itself."""
    found: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise CniError(Code.ENVIRONMENT, f'ARGS: invalid pair "{printable(pair)}"')
        found[key] = value
    ignore = found.get("IgnoreUnknown", "").lower()
    if ignore not in _TRUE | _FALSE:
        raise CniError(Code.ENVIRONMENT, f"ARGS: IgnoreUnknown={printable(ignore)} is neither true nor false")
    unknown = [f'"{printable(f"{key}={value}")}"' for key, value in found.items() if key not in _ARGS]
    if unknown and ignore not in _TRUE:
        raise CniError(Code.ENVIRONMENT, f"ARGS: unknown args [{' '.join(unknown)}]")
    return {key: value for key, value in found.items() if key in _ARGS}


def _address(text: str) -> Address:
    """An address, with or without the length of its network, which is ours to know."""
    try:
        return ip_interface(text).ip if "/" in text else parse_address(text)
    except ValueError:
        raise CniError(Code.CONFIG, f"{printable(text)!a} is no IP address") from None


def _ranges(runtime: Mapping[str, Any]) -> tuple[tuple[Address, Address], ...]:
    sets = get(runtime, "ipRanges") or []
    if not isinstance(sets, list) or not all(isinstance(one, list) for one in sets):
        raise CniError(Code.CONFIG, "runtimeConfig.ipRanges is no list of lists")
    return tuple(_range(entry) for one in sets for entry in one)


def _range(entry: Any) -> tuple[Address, Address]:
    if not isinstance(entry, dict):
        raise CniError(Code.CONFIG, "runtimeConfig.ipRanges: a range is no object")
    try:
        subnet = parse_network(_string(entry, "subnet"), strict=False)
    except ValueError as error:
        raise CniError(Code.CONFIG, f"runtimeConfig.ipRanges: {error}") from None
    first = _address(_string(entry, "rangeStart") or str(subnet[0]))
    last = _address(_string(entry, "rangeEnd") or str(subnet[-1]))
    if not contains(subnet, first) or not contains(subnet, last) or int(first) > int(last):
        raise CniError(Code.CONFIG, f"runtimeConfig.ipRanges: {first} to {last} is no range in {subnet}")
    return first, last


def _labels(config: Mapping[str, Any], cni: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Labels by the conventions of CNI (args.cni.labels) and Mesos (args."org.apache.mesos".network_info.labels)."""
    mesos = _object(_object(_object(config, "args"), _MESOS), "network_info")
    pairs = [*_pairs(get(cni, "labels")), *_pairs(get(_object(mesos, "labels"), "labels"))]
    try:
        return parse_labels(f"{key}={value}" for key, value in pairs)
    except RequestError as error:
        raise CniError(Code.CONFIG, f"labels: {error}") from None


def _pairs(labels: Any) -> list[tuple[str, str]]:
    if labels is None:
        return []
    if isinstance(labels, dict):
        labels = [{"key": key, "value": value} for key, value in labels.items()]
    if not isinstance(labels, list) or not all(isinstance(one, dict) for one in labels):
        raise CniError(Code.CONFIG, "labels are no list of objects with key and value")
    return [(_string(one, "key"), _string(one, "value")) for one in labels]


def _dns(of_config: Mapping[str, Any], of_runtime: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the result; what the runtime says goes before what the file says."""
    found: dict[str, Any] = {
        "nameservers": _strings(of_runtime, "servers") or _strings(of_config, "nameservers"),
        "domain": _string(of_config, "domain"),
        "search": _strings(of_runtime, "searches") or _strings(of_config, "search"),
        "options": _strings(of_config, "options"),
    }
    return {key: value for key, value in found.items() if value}


def _object(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = get(mapping, key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniError(Code.CONFIG, f"{key} is no object")
    return value


def _string(mapping: Mapping[str, Any], key: str) -> str:
    value = get(mapping, key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CniError(Code.CONFIG, f"{key} is no string")
    return value


def _strings(mapping: Mapping[str, Any], key: str) -> Sequence[str]:
    value = get(mapping, key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CniError(Code.CONFIG, f"{key} is no list of strings")
    return value


def _switch(mapping: Mapping[str, Any], key: str) -> bool:
    """Booleans may be strings."""
    value = get(mapping, key)
    text = str(value if value is not None else "").lower()
    if text not in _TRUE | _FALSE:
        raise CniError(Code.CONFIG, f"{key} is neither true nor false")
    return text in _TRUE


# ---- GC --------------------------------------------------------------------------------------------------------------


def valid_attachments(call: Call) -> frozenset[tuple[str, str]]:
    """Return container id and interface of everything that shall stay.

    Raises     CniError: without the list nothing may go.
    """
    listed = get(call.config, "cni.dev/valid-attachments")
    if listed is None:
        listed = get(call.config, "cni.dev/attachments")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise CniError(Code.CONFIG, "cni.dev/valid-attachments is no list of attachments")
    return frozenset((_string(one, "containerID"), _string(one, "ifname")) for one in listed)
