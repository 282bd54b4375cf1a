"""flanneld's command line and FLANNELD_* environment, read as Go's `flag` package reads them. Pure.

Structure   -name value, -name=value, the same with two dashes; a switch takes its value only after "=". The first word
            that is no flag, or "--", ends the flags; flanneld ignores what follows.
Precedence  command line > FLANNELD_NAME > default. An empty variable is as if unset; a bad one is reported, not fatal.
Source      flannel main.go; Go flag, strconv.ParseBool and ParseInt(s, 0, 64).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from canal_udp.errors import UsageError
from canal_udp.net import printable

Value = str | bool | int | tuple[str, ...]
Shape = Literal["text", "switch", "number", "list"]

_TRUE, _FALSE = {"1", "t", "T", "true", "TRUE", "True"}, {"0", "f", "F", "false", "FALSE", "False"}
_INTEGER = re.compile(r"[+-]?(0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])*|[1-9](?:_?[0-9])*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of flanneld."""

    name: str
    default: Value
    help: str
    moot: str = ""  # why it changes nothing here; said once when it is given

    @property
    def shape(self) -> Shape:
        match self.default:
            case bool():
                return "switch"
            case int():
                return "number"
            case tuple():
                return "list"
        return "text"

    @property
    def variable(self) -> str:
        return "FLANNELD_" + self.name.upper().replace("-", "_")


_LOGS = "log lines carry no source position"

FLAGS: tuple[Flag, ...] = (
    Flag("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "a comma-delimited list of etcd endpoints"),
    Flag("etcd-prefix", "/coreos.com/network", "etcd prefix"),
    Flag("etcd-keyfile", "", "SSL key file used to secure etcd communication"),
    Flag("etcd-certfile", "", "SSL certification file used to secure etcd communication"),
    Flag("etcd-cafile", "", "SSL Certificate Authority file used to secure etcd communication"),
    Flag("etcd-username", "", "username for BasicAuth to etcd"),
    Flag("etcd-password", "", "password for BasicAuth to etcd"),
    Flag("iface", (), "interface to use (IP or name) for inter-host communication; repeat, the first that fits wins"),
    Flag("iface-regex", (), "regular expression for the interface to use (IP or name); repeat, tried after iface"),
    Flag("iface-can-reach", "", "use the interface of the route to this address; tried last"),
    Flag("subnet-file", "/run/flannel/subnet.env", "file where the subnet, MTU ... are written to, and read at start"),
    Flag("public-ip", "", "IP accessible by other nodes for inter-host communication"),
    Flag("public-ipv6", "", "IPv6 accessible by other nodes for inter-host communication"),
    Flag("subnet-lease-renew-margin", 60, "subnet lease renewal margin, in minutes, 1 to 1439"),
    Flag("ip-masq", False, "set up IP masquerade rules for traffic destined outside of the overlay network"),
    Flag("ip-masq-fully-random-disable", False, "masquerade without random ports"),
    Flag("kube-subnet-mgr", False, "contact the Kubernetes API for subnet assignment instead of etcd"),
    Flag("kube-api-url", "", "Kubernetes API server URL; not needed inside a cluster"),
    Flag("kube-annotation-prefix", "flannel.alpha.coreos.com", "prefix of the node's annotations"),
    Flag("kubeconfig-file", "", "kubeconfig file location; not needed inside a cluster"),
    Flag("version", False, "print version and exit"),
    Flag("healthz-ip", "0.0.0.0", "the IP address for the healthz server to listen on"),
    Flag("healthz-port", 0, "the port for the healthz server to listen on (0 to disable)"),
    Flag("iptables-resync", 5, "resync period for iptables rules, in seconds"),
    Flag("iptables-forward-rules", True, "add default accept rules to the FORWARD chain"),
    Flag(
        "ip-blackhole-route",
        False,
        "add a blackhole route for this node's subnet",
        moot="what nobody has in our subnet is answered with unreachable, so no blackhole route is needed",
    ),
    Flag("net-config-path", "/etc/kube-flannel/net-conf.json", "network config, with kube-subnet-mgr"),
    Flag("set-node-network-unavailable", True, "set the node's NetworkUnavailable condition when ready"),
    Flag("v", 0, "number for the log level verbosity; 2 or more shows every decision"),
    Flag("vmodule", "", "comma-separated list of pattern=N settings", moot=_LOGS),
    Flag("log_backtrace_at", "", "when logging hits line file:N, emit a stack trace", moot=_LOGS),
)
_BY_NAME: Mapping[str, Flag] = {flag.name: flag for flag in FLAGS}


class HelpWanted(UsageError):
    """-h or -help."""

    exit_status = 0


@dataclass(frozen=True, slots=True)
class Options:
    """What flanneld was told."""

    values: Mapping[str, Value] = field(default_factory=dict)  # what was given; not the defaults
    warnings: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        value = self._get(name)
        assert isinstance(value, str)
        return value

    def switch(self, name: str) -> bool:
        value = self._get(name)
        assert isinstance(value, bool)
        return value

    def number(self, name: str) -> int:
        value = self._get(name)
        assert isinstance(value, int)
        return value

    def list(self, name: str) -> tuple[str, ...]:
        value = self._get(name)
        assert isinstance(value, tuple)
        return value

    def given(self, name: str) -> bool:
        """Tell whether the command line or the environment said something."""
        return name in self.values

    @property
    def moot(self) -> tuple[str, ...]:
        """Why flags that were given change nothing."""
        return tuple(f"-{flag.name}: {flag.moot}" for flag in FLAGS if flag.moot and self.given(flag.name))

    def _get(self, name: str) -> Value:
        return self.values.get(name, _BY_NAME[name].default)


def read(words: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Everything that was said.

    Raises   UsageError, in Go's words; HelpWanted for -h.
    """
    values = _command_line(words)
    warnings = []
    for flag in FLAGS:
        text = environ.get(flag.variable, "")
        if text and flag.name not in values:
            try:
                values[flag.name] = _value(flag, text, ())
            except ValueError as error:
                warnings.append(f"failed to set {flag.variable}={printable(text)!r}: {error}")
    return Options(values, tuple(warnings))


def usage(program: str) -> str:
    """The text of -h."""
    lines = [f"Usage: {program} [OPTION]..."]
    for flag in FLAGS:
        kind = {"text": " string", "list": " value", "number": " int", "switch": ""}[flag.shape]
        default = f" (default {_shown(flag)})" if flag.default not in ("", 0, False, ()) else ""
        lines += [f"  -{flag.name}{kind}", f"    \t{flag.help}{default}"]
    return "\n".join(lines) + "\n"


def _command_line(words: Sequence[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    at = 0
    while at < len(words) and len(words[at]) > 1 and words[at][0] == "-" and words[at] != "--":
        word = words[at]
        at += 1
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {printable(word)}")
        flag = _BY_NAME.get(name)
        if flag is None:
            if name in {"h", "help"}:
                raise HelpWanted("help requested")
            raise UsageError(f"flag provided but not defined: -{printable(name)}")
        if not equals:
            if flag.shape == "switch":
                text = "true"
            elif at == len(words):
                raise UsageError(f"flag needs an argument: -{name}")
            else:
                text, at = words[at], at + 1
        try:
            values[name] = _value(flag, text, values.get(name, ()))
        except ValueError as error:
            what = "boolean value" if flag.shape == "switch" else "value"
            raise UsageError(f"invalid {what} {printable(text)!r} for flag -{name}: {error}") from None
    return values


def _value(flag: Flag, text: str, before: Value) -> Value:
    match flag.shape:
        case "switch":
            if text not in _TRUE | _FALSE:
                raise ValueError("parse error")
            return text in _TRUE
        case "number":
            return _integer(text)
        case "list":
            return (*(before if isinstance(before, tuple) else ()), text)
    return text


def _integer(text: str) -> int:
    """As ParseInt with base 0: 10, 0x0a, 0b1010, 0o12, 012, 1_000."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        raise ValueError("parse error")
    digits = found[1].replace("_", "")
    old_octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    number = int(digits, 8) if old_octal else int(digits, 0)
    number = -number if text[0] == "-" else number
    if not -(2**63) <= number < 2**63:
        raise ValueError("value out of range")
    return number


def _shown(flag: Flag) -> str:
    match flag.default:
        case bool():
            return str(flag.default).lower()
        case str():
            return f'"{flag.default}"'
    return str(flag.default)
