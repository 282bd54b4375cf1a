"""The daemon's configuration: one table of options, read from flags, environment, a TOML file and the store.

Precedence   flag > CANAL_* environment > file > network config in the store > default; `origins` remembers which.
Place        `load` reads one file; everything else is pure.
"""

from __future__ import annotations

import difflib
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from canal_udp.cni.conflist import CHAINABLE
from canal_udp.control.network import NetworkConfig
from canal_udp.errors import ConfigError
from canal_udp.net import (
    ENCAPS,
    VNI_DEFAULT,
    VNI_MAX,
    Encap,
    endpoint_problem,
    parse_address,
    parse_address4,
    parse_address6,
    parse_network4,
    parse_network6,
    printable,
)
from canal_udp.netfilter import Style

DEFAULT_FILE = Path("/etc/canal/canal.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT, STORE = "default", "store"  # origins; the others name the flag, the variable, or file:line


@dataclass(frozen=True, slots=True)
class Netfilter:
    """How masquerading and forward rules are written; flanneld's own switches, and no options of ours."""

    style: Style = "canal"
    forward: bool | None = None  # None: with `ip_masq`
    random: bool = True
    resync_s: int = 5


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Everything that the daemon was told."""

    store: str = "sqlite:///var/lib/canal/canal.db"
    network: IPv4Network | None = None
    network6: IPv6Network | None = None
    encap: Encap = "udp"
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str | None = None
    public_ip: IPv4Address | None = None
    public_ip6: IPv6Address | None = None
    run_dir: Path = Path("/run/canal")
    state_dir: Path = Path("/var/lib/canal")
    subnet_file: Path = Path("/run/flannel/subnet.env")
    cni_conf_dir: Path | None = None
    cni_chain: tuple[str, ...] = ()
    host_ifname: str = "canal0"
    vni: int = VNI_DEFAULT
    port: int = 0  # UDP; 0: the encapsulation's
    mtu: int = 0  # of the underlay, bytes; 0: the interface's
    busy_poll_us: int = 60
    mtu_probe_s: int = 2  # 0: paths are believed
    healthz_addr: str | None = None  # host:port
    metrics_addr: str | None = None  # host:port
    ip_masq: bool = False
    direct_routing: bool = False  # without encapsulation to peers on our own link
    strict_checksums: bool = False
    reset_cut: bool = False
    no_udp_gso: bool = False
    no_coalesce: bool = False
    ct_max: int = 262144
    ip_rest_s: int = 30
    lease_ttl_s: int = 86400
    lease_renew_margin_s: int = 3600
    on_lease_lost: Literal["renumber", "stop"] = "renumber"
    clean: bool = False
    log_level: str = "info"
    node: str = ""  # name of this node in its lease; "": the host name
    netfilter: Netfilter = Netfilter()
    plain_lease: bool = False  # for flanneld's place: what flannel writes into a lease, and no more
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def origin(self, name: str) -> str:
        """Where a field's value came from: "--mtu", "CANAL_MTU", "/etc/canal/canal.toml:3", "store" or "default"."""
        return self.origins.get(name, DEFAULT)


# ---- options ---------------------------------------------------------------------------------------------------------

Shape = Literal["text", "number", "switch", "list"]
_WANTED = {"switch": "true or false", "number": "a whole number", "text": "a string", "list": "a list of strings"}


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: how it is spelled everywhere, what it takes, what it means."""

    name: str  # the field; the flag is --a-b, the variable CANAL_A_B, the file's key a_b or a-b
    help: str
    shape: Shape = "text"
    metavar: str = ""
    parse: Callable[[str], Any] = str  # text and list: each item; ValueError says what is wrong
    low: int = 0  # number
    high: int = 2**31 - 1

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "CANAL_" + self.name.upper()

    def of_text(self, text: str) -> object:
        """The value of a flag or variable; ValueError."""
        match self.shape:
            case "number":
                if not re.fullmatch(r"-?\d{1,12}", text, re.ASCII):
                    raise ValueError(f"{printable(text)!r} is not a whole number")
                return self._bounded(int(text))
            case "switch":
                return _switch(text)
            case "list":
                return tuple(self.parse(item.strip()) for item in text.split(",") if item.strip())
        return self.parse(text)

    def of_value(self, value: object) -> object:
        """The value of a TOML key, of the type that the option has; ValueError."""
        match self.shape, value:
            case "switch", bool():
                return value
            case "number", int() if not isinstance(value, bool):
                return self._bounded(value)
            case "text", str():
                return self.parse(value)
            case "list", str():
                return (self.parse(value),)
            case "list", list() if all(isinstance(item, str) for item in value):
                return tuple(self.parse(item) for item in value)
        raise ValueError(f"must be {_WANTED[self.shape]}")

    def _bounded(self, value: int) -> int:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be {self.low} to {self.high}, not {value}")
        return value


def _switch(text: str) -> bool:
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError(f"{printable(text)!r} is neither true nor false")


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{printable(text)!r} is none of {', '.join(words)}{_did_you_mean(text, words)}")
        return text

    return parse


def _store(text: str) -> str:
    if "://" not in text:
        raise ValueError(f"{printable(text)!r} is not a store URL, for example sqlite:///var/lib/canal/canal.db")
    return text


def _public(parse: Callable[[str], IPv4Address | IPv6Address]) -> Callable[[str], IPv4Address | IPv6Address]:
    def check(text: str) -> IPv4Address | IPv6Address:
        address = parse(text)
        if problem := endpoint_problem(address):
            raise ValueError(f"{address} {problem}")
        return address

    return check


def _ifname(text: str) -> str:
    if not 0 < len(text.encode()) < 16 or text in (".", "..") or re.search(r"[\s/:%]", text) or not text.isprintable():
        raise ValueError(f"{printable(text)!r} is not an interface name")
    return text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{printable(text)!r} is not a regular expression: {error}") from None
    return text


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("must be a path")
    return Path(text)


def parse_listen(text: str) -> tuple[str, int]:
    """Split host:port or [v6]:port; an empty host means every address."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
        raise ValueError(f"{printable(text)!r} is not host:port")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare and bare == host:
        raise ValueError(f"{printable(text)!r}: write an IPv6 address in brackets")
    return bare, int(port)


def _listen(text: str) -> str:
    parse_listen(text)
    return text


def _can_reach(text: str) -> str:
    return str(parse_address(text))


OPTIONS: tuple[Option, ...] = (
    Option("store", "where leases are kept: sqlite:///path or etcd://host:port/prefix", metavar="URL", parse=_store),
    Option("network", "IPv4 network of all nodes; made when the store has none", metavar="CIDR", parse=parse_network4),
    Option("network6", "IPv6 network of all nodes", metavar="CIDR", parse=parse_network6),
    Option("encap", "how packets travel: udp, vxlan or host-gw", metavar="ENCAP", parse=_one_of(*ENCAPS)),
    Option("iface", "underlay interface, name or address; the first that fits", "list", "NAME"),
    Option("iface_regex", "the same by regular expression, tried after --iface", "list", "REGEX", _regex),
    Option("iface_can_reach", "the interface of the route to this address", metavar="IP", parse=_can_reach),
    Option("public_ip", "IPv4 address that peers send to", metavar="IP", parse=_public(parse_address4)),
    Option("public_ip6", "IPv6 address that peers send to", metavar="IP", parse=_public(parse_address6)),
    Option("run_dir", "sockets and files of the running daemon", metavar="DIR", parse=_path),
    Option("state_dir", "what survives a reboot", metavar="DIR", parse=_path),
    Option("subnet_file", "the subnet.env that other programs read", metavar="FILE", parse=_path),
    Option("cni_conf_dir", "write a CNI configuration here once packets are forwarded", metavar="DIR", parse=_path),
    Option("cni_chain", "CNI plug-in that is called after ours, as portmap", "list", "TYPE", _one_of(*CHAINABLE)),
    Option("host_ifname", "name of the host's TUN device", metavar="NAME", parse=_ifname),
    Option("vni", "VXLAN network identifier", "number", "N", high=VNI_MAX),
    Option("port", "UDP port; 0: 8285 for udp, 8472 for vxlan", "number", "N", high=65535),
    Option("mtu", "MTU of the underlay; 0: the interface's", "number", "BYTES", high=65535),
    Option(
        "mtu_probe_s",
        "ask so often whether full-size packets reach each peer; 0: never",
        "number",
        "S",
        high=86400,
    ),
    Option(
        "busy_poll_us", "poll up to this long before sleeping, where that is answered", "number", "US", high=1_000_000
    ),
    Option("healthz_addr", "answer /healthz and /readyz here", metavar="HOST:PORT", parse=_listen),
    Option("direct_routing", "without encapsulation to peers on our own link, by routes of the kernel", "switch"),
    Option("metrics_addr", "answer /metrics here, and /healthz and /readyz", "text", "HOST:PORT", _listen),
    Option("ip_masq", "masquerade what pods send to the outside, and let their packets be forwarded", "switch"),
    Option("reset_cut", "reset connections that a new policy cuts, whatever it says of those that it denies", "switch"),
    Option("strict_checksums", "verify the inner checksums of what peers send", "switch"),
    Option("no_udp_gso", "never send UDP superpackets", "switch"),
    Option("no_coalesce", "never join packets", "switch"),
    Option("ct_max", "conntrack entries", "number", "N", low=16, high=2**24),
    Option("ip_rest_s", "a pod's address is not given to the next pod for so long", "number", "S", high=86400),
    Option("lease_ttl_s", "a lease lives this long without renewal", "number", "S", low=2, high=10 * 365 * 86400),
    Option("lease_renew_margin_s", "renew this long before the end", "number", "S", low=1, high=10 * 365 * 86400),
    Option(
        "on_lease_lost",
        "another node has our subnet: renumber (take another one) or stop",
        metavar="WHAT",
        parse=_one_of("renumber", "stop"),
    ),
    Option("clean", "at exit leave the machine as it was found", "switch"),
    Option("log_level", "debug, info, warning or error", metavar="LEVEL", parse=_one_of(*LOG_LEVELS)),
    Option("node", "name of this node, for people", metavar="NAME", parse=lambda text: printable(text, 253)),
)
_BY_NAME: Mapping[str, Option] = MappingProxyType({option.name: option for option in OPTIONS})


def option(name: str) -> Option:
    """The option of a field."""
    return _BY_NAME[name]


# ---- sources ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from."""

    value: Any
    origin: str


def from_flags(flags: Mapping[str, object]) -> dict[str, Setting]:
    """What argparse gave: None or [] for what was not said, True for a switch, text or lists of text otherwise."""
    settings = {}
    for name, given in flags.items():
        if given is None or given is False or given == []:
            continue
        option = _BY_NAME[name]
        try:
            value = given if option.shape == "switch" else _of_flag(option, given)
        except ValueError as error:
            raise ConfigError(str(error), source=option.flag) from None
        settings[name] = Setting(value, option.flag)
    return settings


def from_environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    """The CANAL_* variables that name an option; an empty one is as if unset."""
    settings = {}
    for option in OPTIONS:
        if text := environ.get(option.variable):
            try:
                settings[option.name] = Setting(option.of_text(text), option.variable)
            except ValueError as error:
                raise ConfigError(str(error), source=option.variable) from None
    return settings


def from_toml(text: str, source: str) -> dict[str, Setting]:
    """The settings of a file; ConfigError names file, line and field."""
    try:
        pairs = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        at = re.search(r"at line (\d+)", str(error))
        raise ConfigError(printable(str(error), 200), source=source, line=int(at[1]) if at else None) from None
    settings = {}
    for key, value in pairs.items():
        name, line = key.replace("-", "_"), _line_of(text, key)
        option = _BY_NAME.get(name)
        if option is None:
            hint = _did_you_mean(name, _BY_NAME)
            raise ConfigError(f"unknown key{hint}", source=source, line=line, field=printable(key))
        if name in settings:
            raise ConfigError("given twice", source=source, line=line, field=printable(key))
        try:
            settings[name] = Setting(option.of_value(value), f"{source}:{line}" if line else source)
        except ValueError as error:
            raise ConfigError(str(error), source=source, line=line, field=key) from None
    return settings


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None) -> DaemonConfig:
    """Read the file (the default one only if it exists), put everything together and check it."""
    path = file if file is not None else DEFAULT_FILE
    settings: dict[str, Setting] = {}
    if file is not None or path.exists():
        settings |= from_toml(_read(path), str(path))
    return combine(settings | from_environment(environ) | from_flags(flags))


def combine(settings: Mapping[str, Setting]) -> DaemonConfig:
    """A config of the winners of all sources; what depends on another setting is derived here."""
    config = DaemonConfig(
        **{name: setting.value for name, setting in settings.items()},
        origins=MappingProxyType({name: setting.origin for name, setting in settings.items()}),
    )
    derived: dict[str, Any] = {}
    if "store" not in settings:
        derived["store"] = f"sqlite://{config.state_dir.absolute()}/canal.db"
    if "subnet_file" not in settings and "run_dir" in settings:
        derived["subnet_file"] = config.run_dir / "subnet.env"
    if "lease_renew_margin_s" not in settings:
        derived["lease_renew_margin_s"] = min(config.lease_renew_margin_s, max(config.lease_ttl_s // 3, 1))
    config = replace(config, **derived)
    if config.lease_renew_margin_s >= config.lease_ttl_s:
        raise ConfigError(
            f"must be less than lease_ttl_s ({config.lease_ttl_s})",
            source=config.origin("lease_renew_margin_s"),
            field="lease_renew_margin_s",
        )
    return config


def with_network(config: DaemonConfig, network: NetworkConfig) -> DaemonConfig:
    """Take what nobody on this node decided from the network config of the store."""
    stored: dict[str, Any] = {
        "network": network.network,
        "network6": network.network6,
        "encap": network.require_encap() if config.origin("encap") == DEFAULT else None,
        "vni": network.vni,
        "port": network.port,
        "mtu": network.mtu_bytes,
        "direct_routing": network.direct_routing,
    }
    if config.origin("encap") not in (DEFAULT, STORE) and config.encap != network.encap:
        stored["port"] = 0  # the stored port is of the stored encapsulation
    taken = {name: value for name, value in stored.items() if config.origin(name) == DEFAULT and value is not None}
    return replace(config, **taken, origins=MappingProxyType({**config.origins, **dict.fromkeys(taken, STORE)}))


def _of_flag(option: Option, given: object) -> object:
    if isinstance(given, list | tuple):
        return tuple(option.parse(str(item)) for item in given)
    return option.of_text(str(given))


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _line_of(text: str, key: str) -> int | None:
    """The line where a top-level key or table starts; tomllib does not say."""
    pattern = re.compile(rf"""\s*(?:\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)


def _read(path: Path) -> str:
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise ConfigError("anyone may write it; chmod o-w", source=str(path))
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(error.strerror or "cannot be read", source=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", source=str(path)) from None
