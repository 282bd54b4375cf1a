"""rtnetlink messages against pyroute2's: what we write it reads, what it writes we read."""

from __future__ import annotations

import socket
import sys
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from canal_udp.tunnel import rtnetlink as rt

INET, INET6 = socket.AF_INET, socket.AF_INET6


def read(kind: int, body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """A message of ours as pyroute2 reads it: fixed part and attributes."""
    (found,) = MarshalRtnl().parse(rt.request(kind, rt.ACK, 7, body))
    header = found["header"]
    assert (header["type"], header["flags"], header["sequence_number"]) == (kind, rt.REQUEST | rt.ACK, 7)
    assert header["length"] == 16 + len(body)
    return found, dict(found["attrs"])


def written(message: Any, fields: dict[str, Any], attributes: dict[str, Any]) -> bytes:
    """The body of a message of pyroute2's."""
    message.update(fields)
    message["attrs"] = list(attributes.items())
    message["header"].update({"type": 1000, "flags": 0, "sequence_number": 9, "pid": 0})
    message.encode()
    (found,) = rt.messages(bytes(message.data))
    assert (found.kind, found.sequence) == (1000, 9)
    return found.body


@pytest.mark.parametrize(
    ("body", "fields", "attributes"),
    [
        pytest.param(rt.link(), {"index": 0, "flags": 0, "change": 0}, {}, id="all"),
        pytest.param(rt.link(0, "canal0"), {"index": 0}, {"IFLA_IFNAME": "canal0"}, id="by name"),
        pytest.param(rt.link(5, "", True), {"index": 5, "flags": 1, "change": 1}, {}, id="up"),
        pytest.param(rt.link(5, "", False), {"index": 5, "flags": 0, "change": 1}, {}, id="down"),
        pytest.param(
            rt.link(5, "", None, mtu=1450, txqlen=10000, gso_max_segs=45),
            {"index": 5, "flags": 0, "change": 0},
            {"IFLA_MTU": 1450, "IFLA_TXQLEN": 10000, "IFLA_GSO_MAX_SEGS": 45},
            id="numbers",
        ),
    ],
)
def test_links_that_are_asked_for(body: bytes, fields: dict[str, Any], attributes: dict[str, Any]) -> None:
    found, found_attributes = read(rt.NEWLINK, body)
    assert fields.items() <= found.items()
    assert found_attributes == attributes


@pytest.mark.parametrize("text", ["10.244.1.2/32", "192.0.2.1/24", "fd00:10::2/128"])
def test_addresses_that_are_asked_for(text: str) -> None:
    wanted = ip_interface(text)
    found, attributes = read(rt.NEWADDR, rt.address(3, wanted, rt.IFA_NODAD))
    family = INET if wanted.version == 4 else INET6
    expected = (3, family, wanted.network.prefixlen, rt.IFA_NODAD, 0)
    assert tuple(found[key] for key in ("index", "family", "prefixlen", "flags", "scope")) == expected
    assert attributes == {"IFA_LOCAL": str(wanted.ip), "IFA_ADDRESS": str(wanted.ip)}


@pytest.mark.parametrize("text", ["10.244.0.0/16", "0.0.0.0/0", "fd00:10::/48", "::/0"])
def test_routes_that_are_asked_for(text: str) -> None:
    wanted = ip_network(text)
    found, attributes = read(rt.NEWROUTE, rt.route(3, wanted, 85))
    scope = rt.SCOPE_LINK if wanted.version == 4 else rt.SCOPE_UNIVERSE
    expected = {"dst_len": wanted.prefixlen, "src_len": 0, "table": 254, "proto": 85, "scope": scope, "type": 1}
    assert expected.items() <= found.items()
    destination = {"RTA_DST": str(wanted.network_address)} if wanted.prefixlen else {}
    assert attributes == {**destination, "RTA_OIF": 3}


def test_a_route_by_a_gateway() -> None:
    found, attributes = read(rt.NEWROUTE, rt.route(3, ip_network("10.1.0.0/16"), 85, ip_address("192.0.2.1")))
    assert found["scope"] == 0, "universe: the gateway's own route has link"
    assert attributes == {"RTA_DST": "10.1.0.0", "RTA_OIF": 3, "RTA_GATEWAY": "192.0.2.1"}


def test_questions_about_routes() -> None:
    found, attributes = read(rt.GETROUTE, rt.routes(INET6, 85, 3))
    assert (found["family"], found["table"], found["proto"], attributes) == (INET6, 254, 85, {"RTA_OIF": 3})
    found, attributes = read(rt.GETROUTE, rt.route_to(ip_address("192.0.2.7")))
    assert (found["family"], found["dst_len"], attributes) == (INET, 32, {"RTA_DST": "192.0.2.7"})


def test_a_link_that_is_there() -> None:
    attributes = {"IFLA_IFNAME": "eth0", "IFLA_MTU": 1450, "IFLA_TXQLEN": 1000, "IFLA_GSO_MAX_SEGS": 65535}
    body = written(ifinfmsg(), {"index": 4, "flags": 0x10043}, {**attributes, "IFLA_ADDRESS": "02:00:00:00:00:01"})
    assert rt.link_of(body) == rt.Link(4, "eth0", 0x10043, 1450, 1000, 65535, bytes((2, 0, 0, 0, 0, 1)))


@pytest.mark.parametrize(
    ("fields", "attributes", "found"),
    [
        pytest.param(
            {"family": INET, "prefixlen": 24, "flags": 0x80, "index": 2},
            {"IFA_ADDRESS": "192.0.2.9", "IFA_LOCAL": "192.0.2.1", "IFA_LABEL": "e", "IFA_FLAGS": 0x280},
            rt.Address(2, 0x280, ip_interface("192.0.2.1/24")),
            id="our end, all flags",
        ),
        pytest.param(
            {"family": INET6, "prefixlen": 64, "flags": 0x20, "index": 2},
            {"IFA_ADDRESS": "fd00::1"},
            rt.Address(2, 0x20, ip_interface("fd00::1/64")),
            id="IPv6",
        ),
    ],
)
def test_an_address_that_is_there(fields: dict[str, Any], attributes: dict[str, Any], found: rt.Address) -> None:
    assert rt.address_of(written(ifaddrmsg(), fields, attributes)) == found


@pytest.mark.parametrize(
    ("fields", "attributes", "found"),
    [
        pytest.param(
            {"family": INET, "dst_len": 0, "proto": 3},
            {"RTA_GATEWAY": "192.0.2.1", "RTA_OIF": 4, "RTA_PRIORITY": 100, "RTA_PREFSRC": "192.0.2.9"},
            rt.Route(ip_network("0.0.0.0/0"), 3, 4, 100, ip_address("192.0.2.9"), ip_address("192.0.2.1")),
            id="default",
        ),
        pytest.param(
            {"family": INET6, "dst_len": 48, "proto": 85},
            {"RTA_DST": "fd00:10::", "RTA_OIF": 5},
            rt.Route(ip_network("fd00:10::/48"), 85, 5, 0, None),
            id="IPv6",
        ),
        pytest.param(
            {"family": INET, "dst_len": 8, "proto": 4},
            {"RTA_DST": "10.0.0.0", "RTA_MULTIPATH": [{"oif": 6, "hops": 1}, {"oif": 7, "hops": 1}]},
            rt.Route(ip_network("10.0.0.0/8"), 4, 6, 0, None, several=True),
            id="several ways",
        ),
        pytest.param(
            {"family": INET, "dst_len": 8, "proto": 4},
            {"RTA_DST": "10.0.0.0"},
            rt.Route(ip_network("10.0.0.0/8"), 4, 0, 0, None),
            id="leads nowhere",
        ),
    ],
)
def test_a_route_that_is_there(fields: dict[str, Any], attributes: dict[str, Any], found: rt.Route) -> None:
    assert rt.route_of(written(rtmsg(), fields, attributes)) == found


def test_several_messages_in_one_datagram() -> None:
    one, two = rt.request(rt.NEWLINK, 0, 1, rt.link(1) + b"odd"), rt.request(rt.DONE, 0, 1, bytes(4))
    padded = one + bytes(-len(one) % 4) + two
    assert [message.kind for message in rt.messages(padded)] == [rt.NEWLINK, rt.DONE]
    assert [message.kind for message in rt.messages(padded[:-20] + bytes(20))] == [rt.NEWLINK]


def test_errors() -> None:
    assert rt.error_of((-19).to_bytes(4, sys.byteorder, signed=True)) == 19
    assert rt.error_of(bytes(20)) == 0
