"""Sockets of the underlay, on the loopback interface."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, ip_address

import pytest

from canal_udp.errors import DeviceError
from canal_udp.tunnel.sockets import open_underlay, open_underlay_set


def test_a_socket_that_only_sends_queues_nothing_but_errors() -> None:
    """Its port is open to everybody; what they send must not take the room of the errors that tell the path MTU."""
    sender = open_underlay(IPv4Address("127.0.0.1"), 0, "vxlan", tx_only=True)
    with sender.socket, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(1000):
            stranger.sendto(bytes(1000), sender.socket.getsockname())
        with pytest.raises(BlockingIOError):
            sender.socket.recv(1)
        nobody = stranger.getsockname()[1]
        stranger.close()
        sender.socket.sendto(b"x", ("127.0.0.1", nobody))
        _, ancillary, flags, _ = sender.socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        assert flags & socket.MSG_ERRQUEUE and ancillary


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_set_of_one_encapsulation(address: str) -> None:
    """VXLAN receives by one socket and sends by eight more; a second set finds the port taken."""
    opened = open_underlay_set(ip_address(address), 0, "vxlan", gro=True)
    try:
        assert [one.tx_only for one in opened] == [False] + [True] * 8
        assert len({one.socket.getsockname()[1] for one in opened}) == 9
        with pytest.raises(DeviceError, match="is taken"):
            open_underlay_set(ip_address(address), opened[0].socket.getsockname()[1], "vxlan", gro=True)
    finally:
        for one in opened:
            one.close()


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(DeviceError, match="not on this host"):
        open_underlay(IPv4Address("192.0.2.1"), 0, "udp")
