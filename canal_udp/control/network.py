"""The network config: flannel's JSON, its defaults and its error texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

from canal_udp.control.value import Fields, read_object
from canal_udp.errors import ConfigError
from canal_udp.net import (
    ENCAPS,
    PORTS,
    VNI_DEFAULT,
    VNI_MAX,
    Address,
    Encap,
    Network,
    Tunnel,
    contains,
    parse_address4,
    parse_address6,
    parse_network4,
    parse_network6,
    printable,
)

NetworkT = TypeVar("NetworkT", IPv4Network, IPv6Network)
SOURCE = "network config"


@dataclass(frozen=True, slots=True)
class Pool(Generic[NetworkT]):
    """The subnets of one family that nodes may lease: `first` to `last` in `network`, each of `subnet_len`."""

    network: NetworkT
    subnet_len: int
    first: NetworkT
    last: NetworkT

    def __len__(self) -> int:
        return (int(self.last.network_address) - int(self.first.network_address)) // self._step + 1

    def __iter__(self) -> Iterator[NetworkT]:
        make = type(self.network)
        for base in range(int(self.first.network_address), int(self.last.network_address) + 1, self._step):
            yield make((base, self.subnet_len))

    def fits(self, subnet: NetworkT | None) -> bool:
        """May a node lease this subnet under this config?"""
        return (
            subnet is not None
            and subnet.prefixlen == self.subnet_len
            and int(self.first.network_address) <= int(subnet.network_address) <= int(self.last.network_address)
        )

    @property
    def _step(self) -> int:
        return 1 << (self.network.max_prefixlen - self.subnet_len)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What every node of one overlay agrees on.

    Units    mtu_bytes is the outer MTU, as flannel's Backend.MTU; 0 = that of the interface.
             port 0 = the encapsulation's default.
    """

    pool: Pool[IPv4Network] | None
    pool6: Pool[IPv6Network] | None
    encap: str = "udp"  # flannel's Backend.Type in lower case; `require_encap` refuses those that we do not speak
    vni: int = VNI_DEFAULT
    port: int = 0
    mtu_bytes: int = 0
    direct_routing: bool = False  # without encapsulation to peers on our own link, whatever `encap` says
    nftables: bool = False  # flannel's EnableNFTables

    @property
    def network(self) -> IPv4Network | None:
        return self.pool.network if self.pool else None

    @property
    def network6(self) -> IPv6Network | None:
        return self.pool6.network if self.pool6 else None

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(n for n in (self.network, self.network6) if n is not None)

    def require_encap(self) -> Encap:
        for encap in ENCAPS:
            if encap == self.encap:
                return encap
        raise ConfigError(
            f"unknown backend type: {printable(self.encap)} (this daemon speaks {', '.join(ENCAPS)})",
            source=SOURCE,
            field="Backend.Type",
        )

    def port_of(self, encap: Tunnel) -> int:
        """UDP destination port of peers that use `encap`."""
        return self.port if self.port and encap == self.encap else PORTS[encap]

    @classmethod
    def make(
        cls,
        network: IPv4Network | None,
        network6: IPv6Network | None = None,
        encap: Encap = "udp",
        *,
        vni: int = VNI_DEFAULT,
        port: int = 0,
        mtu_bytes: int = 0,
        subnet_len: int = 0,
        subnet_len6: int = 0,
    ) -> NetworkConfig:
        """A config with flannel's defaults for everything that is not given."""
        if network is None and network6 is None:
            raise ConfigError("none defined stack", source=SOURCE)
        return cls(
            pool=None if network is None else _V4.pool(network, subnet_len, None, None),
            pool6=None if network6 is None else _V6.pool(network6, subnet_len6, None, None),
            encap=encap,
            vni=vni,
            port=port,
            mtu_bytes=mtu_bytes,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> NetworkConfig:
        """Read and check what an administrator or flannel stored; ConfigError carries flannel's text."""
        fields = read_object(text, SOURCE)
        pool = _V4.read(fields, _network4, parse_address4) if fields.boolean("EnableIPv4", True) else None
        pool6 = _V6.read(fields, _network6, parse_address6) if fields.boolean("EnableIPv6", False) else None
        if pool is None and pool6 is None:
            raise fields.error("none defined stack")
        return _with_backend(cls(pool, pool6, nftables=fields.boolean("EnableNFTables", False)), fields)

    def to_json(self) -> str:
        """The text that `from_json` reads back as an equal config, in flannel's words."""
        value: dict[str, object] = {}
        if self.pool:
            value |= _V4.json(self.pool)
        else:
            value["EnableIPv4"] = False
        if self.pool6:
            value["EnableIPv6"] = True
            value |= _V6.json(self.pool6)
        backend: dict[str, object] = {"Type": self.encap}
        if self.encap == "vxlan":
            backend["VNI"] = self.vni
        if self.port:
            backend["Port"] = self.port
        if self.mtu_bytes:
            backend["MTU"] = self.mtu_bytes
        if self.direct_routing:
            backend["DirectRouting"] = True
        if self.nftables:
            value["EnableNFTables"] = True
        return json.dumps(value | {"Backend": backend})


@dataclass(frozen=True, slots=True)
class _Family(Generic[NetworkT]):
    """How flannel names and bounds one address family."""

    key: str  # prefix of the JSON keys
    longest_len: int  # of a subnet; the error text names one more
    narrowest: int  # Network length up to which there is a default SubnetLen
    default_len: int
    make: Callable[[tuple[int, int]], NetworkT]

    def read(
        self, fields: Fields, parse: Callable[[str], NetworkT], parse_bound: Callable[[str], Address]
    ) -> Pool[NetworkT]:
        network = fields.parsed(f"{self.key}Network", parse)
        if network is None:
            raise self._error(f"please define a correct {self.key}Network parameter in the flannel config", "Network")
        return self.pool(
            network,
            fields.integer(f"{self.key}SubnetLen", 0, 2**32 - 1) or 0,
            fields.parsed(f"{self.key}SubnetMin", parse_bound),
            fields.parsed(f"{self.key}SubnetMax", parse_bound),
        )

    def pool(self, network: NetworkT, subnet_len: int, first: Address | None, last: Address | None) -> Pool[NetworkT]:
        """Flannel's defaults and checks in flannel's order; 0 or an unspecified address means not given."""
        subnet_len = self._subnet_len(network, subnet_len)
        size = 1 << (network.max_prefixlen - subnet_len)
        base = int(network.network_address)
        low = self._bound("SubnetMin", network, first, base + size)
        high = self._bound("SubnetMax", network, last, base + network.num_addresses - size)
        for name, value, bound in (("SubnetMin", low, first), ("SubnetMax", high, last)):
            if value % size:
                raise self._error(f"{self.key}{name} is not on a SubnetLen boundary: {bound}", name)
        if low > high:
            raise self._error(f"{self.key}SubnetMin is above {self.key}SubnetMax", "SubnetMin")
        return Pool(network, subnet_len, self.make((low, subnet_len)), self.make((high, subnet_len)))

    def json(self, pool: Pool[NetworkT]) -> dict[str, object]:
        return {
            f"{self.key}Network": str(pool.network),
            f"{self.key}SubnetLen": pool.subnet_len,
            f"{self.key}SubnetMin": str(pool.first.network_address),
            f"{self.key}SubnetMax": str(pool.last.network_address),
        }

    def _subnet_len(self, network: NetworkT, given: int) -> int:
        plen = network.prefixlen
        if given > self.longest_len:
            raise self._error(f"SubnetLen must be less than /{self.longest_len + 1}", "SubnetLen")
        if given:
            if given < plen + 2:
                raise self._error("network must be able to accommodate at least four subnets", "SubnetLen")
            return given
        if plen > self.narrowest:
            name = "IPv6Network" if self.key else "network"
            raise self._error(f"{name} is too small. Minimum useful network prefix is /{self.narrowest}", "Network")
        return max(self.default_len, plen + 2)

    def _bound(self, name: str, network: NetworkT, given: Address | None, default: int) -> int:
        if given is None or given.is_unspecified:
            return default
        if not contains(network, given):
            raise self._error(f"{self.key}{name} is not in the range of the {self.key}Network", name)
        return int(given)

    def _error(self, problem: str, name: str) -> ConfigError:
        return ConfigError(problem, source=SOURCE, field=self.key + name)


_V4: _Family[IPv4Network] = _Family("", longest_len=30, narrowest=28, default_len=24, make=IPv4Network)
_V6: _Family[IPv6Network] = _Family("IPv6", longest_len=126, narrowest=124, default_len=64, make=IPv6Network)


def _network4(text: str) -> IPv4Network:
    return parse_network4(text, strict=False)


def _network6(text: str) -> IPv6Network:
    return parse_network6(text, strict=False)


def _with_backend(config: NetworkConfig, fields: Fields) -> NetworkConfig:
    backend = fields.object("Backend")
    if backend is None:
        return config
    vni = backend.integer("VNI", 0, VNI_MAX)
    return replace(
        config,
        encap=(backend.text("Type") or "").lower(),
        vni=VNI_DEFAULT if vni is None else vni,
        port=backend.integer("Port", 0, 65535) or 0,
        mtu_bytes=backend.integer("MTU", 0, 65535) or 0,
        direct_routing=backend.boolean("DirectRouting", False),
    )
