"""Taking a node over from flanneld without its peers noticing: same subnet, same VTEP MAC, its kernel device removed.

Order       The MAC is read first, of the device that flanneld made, else of what an earlier start of ours kept, else of
            the lease that bears our public address. The device goes at the last moment, when our socket needs its port
            and our TUN its name: until then the kernel goes on forwarding.
Way back    flanneld finds a device of its name that is no VXLAN device, deletes it and makes its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from canal_udp.actions import Sockets
from canal_udp.control.lease import Lease
from canal_udp.logs import event
from canal_udp.net import Address, format_mac
from canal_udp.tunnel.device import Tun
from canal_udp.tunnel.host import RealHost
from canal_udp.tunnel.netlink import Netlink
from canal_udp.tunnel.sockets import UnderlaySocket

LOG = logging.getLogger("canal.flanneld")
_VXLAN = "vxlan"


def kernel_devices(vni: int) -> tuple[str, str]:
    """The names of flanneld's devices, for IPv4 and IPv6."""
    return f"flannel.{vni}", f"flannel-v6.{vni}"


def kernel_mac(names: Iterable[str]) -> bytes | None:
    """The MAC of the first of those that is a VXLAN device of the kernel."""
    with Netlink() as netlink:
        for name in names:
            found = netlink.link(name=name)
            if found is not None and found.kind == _VXLAN and len(found.address) == 6:
                return found.address
    return None


def lease_mac(leases: Iterable[Lease], public_ip: Address | None) -> bytes | None:
    """The MAC that peers know of the node with this public address."""
    own = (lease for lease in leases if public_ip is not None and public_ip in lease.public_ips)
    return next((lease.vtep_mac for lease in own if lease.vtep_mac is not None), None)


class TakeoverHost(RealHost):
    """The kernel of this machine; flanneld's devices make way when ours need their place."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def open_sockets(self, wanted: Sockets, *, gro: bool) -> list[UnderlaySocket]:
        """Open the underlay sockets of one encapsulation and family."""
        self._make_way()
        return super().open_sockets(wanted, gro=gro)

    def open_tun(self, ifname: str, namespace: str | None) -> Tun:
        """Open a TUN, in `namespace` if given."""
        if namespace is None:
            self._make_way()
        return super().open_tun(ifname, namespace)

    def _make_way(self) -> None:
        with Netlink() as netlink:
            for name in self._names:
                found = netlink.link(name=name)
                if found is not None and found.kind == _VXLAN:
                    netlink.delete_link(found.index)
                    event(LOG, "info", "takeover.device_removed", device=name, vtep_mac=format_mac(found.address))
