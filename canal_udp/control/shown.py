"""Leases as the commands and the daemon's socket show them: plain values with fixed names."""

from __future__ import annotations

from typing import Any

from canal_udp.control.lease import Lease
from canal_udp.net import format_mac


def lease_row(lease: Lease) -> dict[str, Any]:
    """Return one row; what a lease does not have is None."""
    mac = lease.vtep_mac or lease.vtep_mac6
    return {
        "key": lease.key,
        "subnet": str(lease.subnet) if lease.subnet else None,
        "subnet6": str(lease.subnet6) if lease.subnet6 else None,
        "public_ip": str(lease.public_ip) if lease.public_ip else None,
        "public_ip6": str(lease.public_ip6) if lease.public_ip6 else None,
        "encap": lease.encap,
        "vtep_mac": format_mac(mac) if mac else None,
        "expires_at": lease.expires_at,
        "node": lease.node,
    }
