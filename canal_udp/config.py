"""The daemon's configuration: one table of options, read from flags, environment, a TOML file and the store.

Precedence   flag > CANAL_* environment > file > network config in the store > default; `origins` remembers which it was.
Place        `load` reads one file; everything else is pure.
"""

from __future__ import annotations

import difflib
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

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

DEFAULT_FILE = Path("/etc/canal/canal.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT, STORE = "default", "store"  # origins; the others name the flag, the variable, or file:line


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Everything that the daemon was told. Units are in the names; 0 of vni's neighbours port and mtu means derived."""

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
    host_ifname: str = "canal0"
    vni: int = VNI_DEFAULT
    port: int = 0  # UDP; 0: the encapsulation's
    mtu: int = 0  # of the underlay, bytes; 0: the interface's
    busy_poll_us: int = 60
    healthz_addr: str | None = None  # host:port
    strict_checksums: bool = False
    no_udp_gso: bool = False
    no_coalesce: bool = False
    ct_max: int = 262144
    lease_ttl_s: int = 86400
    lease_renew_margin_s: int = 3600
    clean: bool = False
    log_level: str = "info"
    node: str = ""  # name of this node in its lease; "": the host name
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def origin(self, name: str) -> str:
        """Where the value of a field came from: "--mtu", "CANAL_MTU", "/etc/canal/canal.toml:3", "store" or "default"."""
        return self.origins.get(name, DEFAULT)
