"""A lease, its text in the store (flannel's schema), and whose it is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from canal_udp.control.value import Fields, read_object
from canal_udp.errors import ConfigError
from canal_udp.net import (
    BACKENDS,
    VNI_DEFAULT,
    VNI_MAX,
    Address,
    Backend,
    Network,
    endpoint_problem,
    format_mac,
    parse_address4,
    parse_address6,
    parse_mac,
    parse_network4,
    parse_network6,
    present,
    printable,
)

KEY_MAX = 128
NODE_MAX = 253
_KEY = re.compile(r"(?:(\d+\.\d+\.\d+\.\d+)-(\d{1,2}))?(?:(?:^|(?<=\d)&)([a-f\d:]+)-(\d{1,3}))?")
_UNSPECIFIED: Final = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class Lease:
    """A node's right to a subnet, or to one of each family, until it expires.

    Only the store decides that a lease has expired. `expires_at` tells people; nobody drops a peer by comparing it with
    a clock of his own, so a wrong clock on one node takes nothing from the others.
    """

    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    public_ip: IPv4Address | None  # underlay addresses of the node; at least one
    public_ip6: IPv6Address | None = None
    encap: Backend = "udp"
    vtep_mac: bytes | None = None  # vxlan only: inner destination of IPv4 packets ...
    vtep_mac6: bytes | None = None  # ... and of IPv6 ones if it is another (flannel's second device); None = the same
    expires_at: float | None = None  # unix seconds; None: a reservation, never expires
    node: str = ""  # name for people
    revision: int = 0  # of the last write; what compare-and-swap compares
    created: int = 0  # revision of the first write; of two overlapping leases the older one counts
    vni: int = VNI_DEFAULT  # written for flannel, which ignores it on reading
    data: str = ""  # extension only: what its commands tell each other

    @property
    def key(self) -> str:
        """The name in the store, flannel's: 10.1.2.0-24, 10.1.2.0-24&fd00:1::-64, and fd00:1::-64 without IPv4."""
        return "&".join(f"{prefix.network_address}-{prefix.prefixlen}" for prefix in self.prefixes)

    @property
    def prefixes(self) -> tuple[Network, ...]:
        return tuple(present(self.subnet, self.subnet6))

    @property
    def public_ips(self) -> tuple[Address, ...]:
        return tuple(ip for ip in (self.public_ip, self.public_ip6) if ip is not None)


def parse_key(key: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """The subnets that a key names; ValueError if it is no lease key."""
    match = _KEY.fullmatch(key) if len(key) <= KEY_MAX else None
    if match is None or not key:
        raise ValueError("is not the name of a lease")
    address4, length4, address6, length6 = match.groups()
    subnet = parse_network4(f"{address4}/{length4}") if address4 else None
    subnet6 = parse_network6(f"{address6}/{length6}") if address6 else None
    for prefix in present(subnet, subnet6):
        if not 0 < prefix.prefixlen < prefix.max_prefixlen:
            raise ValueError(f"/{prefix.prefixlen} is no subnet of a node")
    return subnet, subnet6


def lease_value(lease: Lease) -> str:
    """The JSON that flannel writes, keys in its order; ours come after."""
    value: dict[str, object] = {
        "PublicIP": str(lease.public_ip or _UNSPECIFIED),  # flannel fails on null
        "PublicIPv6": str(lease.public_ip6) if lease.public_ip6 else None,
    }
    if lease.encap == "vxlan":
        value["BackendType"] = "vxlan"
        if lease.vtep_mac:
            value["BackendData"] = {"VNI": lease.vni, "VtepMAC": format_mac(lease.vtep_mac)}
        if lease.vtep_mac6:
            value["BackendV6Data"] = {"VNI": lease.vni, "VtepMAC": format_mac(lease.vtep_mac6)}
    elif lease.encap != "udp":
        value["BackendType"] = lease.encap
        if lease.encap == "extension":
            value["BackendData"] = lease.data
    if lease.node:
        value["Node"] = lease.node
    return json.dumps(value, separators=(",", ":"))


def read_lease(
    key: str, value: str | bytes, *, revision: int = 0, created: int = 0, expires_at: float | None = None
) -> Lease:
    """Read a lease that anyone may have written; ConfigError says what is wrong with it."""
    source = f"lease {printable(key)}"
    try:
        subnet, subnet6 = parse_key(key)
    except ValueError as error:
        raise ConfigError(printable(str(error)), source=source) from None
    fields = read_object(value, source)
    public_ip = fields.parsed("PublicIP", parse_address4)
    public_ip6 = fields.parsed("PublicIPv6", parse_address6)
    if public_ip == _UNSPECIFIED:
        public_ip = None
    _check_public(fields, public_ip, public_ip6)
    encap = _read_encap(fields)
    data = fields.object("BackendData") if encap == "vxlan" else None
    data6 = fields.object("BackendV6Data") if encap == "vxlan" else None
    lease = Lease(
        subnet,
        subnet6,
        public_ip,
        public_ip6,
        encap=encap,
        vtep_mac=data.parsed("VtepMAC", parse_mac) if data else None,
        vtep_mac6=data6.parsed("VtepMAC", parse_mac) if data6 else None,
        expires_at=expires_at,
        node=printable(fields.text("Node") or "", NODE_MAX),
        revision=revision,
        created=created,
        vni=(data.integer("VNI", 0, VNI_MAX) if data else None) or VNI_DEFAULT,
        data=(fields.text("BackendData") or "") if encap == "extension" else "",
    )
    if encap == "vxlan" and lease.vtep_mac is None and lease.vtep_mac6 is None:
        raise fields.error("vxlan needs a VtepMAC", "BackendData")
    return lease


def _check_public(fields: Fields, public_ip: IPv4Address | None, public_ip6: IPv6Address | None) -> None:
    if public_ip is None and public_ip6 is None:
        raise fields.error("neither PublicIP nor PublicIPv6", "PublicIP")
    for name, address in (("PublicIP", public_ip), ("PublicIPv6", public_ip6)):
        if address is not None and (problem := endpoint_problem(address)):
            raise fields.error(f"{address} {problem}", name)


def _read_encap(fields: Fields) -> Backend:
    text = (fields.text("BackendType") or "udp").lower()
    for encap in BACKENDS:
        if encap == text:
            return encap
    raise fields.error(f"{printable(text)!r} is none of {', '.join(BACKENDS)}", "BackendType")
