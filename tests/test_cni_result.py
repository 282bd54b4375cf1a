"""cni.result: what a runtime reads, in every version; what it sends back for CHECK."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from canal_udp.cni.request import Call
from canal_udp.cni.result import Attachment, check_previous, failure, previous_of, result, success
from canal_udp.cni.spec import SUPPORTED
from canal_udp.errors import CniError

V4, V6 = ip_address("10.244.1.2"), ip_address("fd00::2")
MADE = Attachment("eth0", "/run/netns/a", (V4, V6), 1450, {"nameservers": ["10.0.0.53"]})
DNS = {"nameservers": ["10.0.0.53"]}
IPS = [{"interface": 0, "address": "10.244.1.2/32"}, {"interface": 0, "address": "fd00::2/128"}]
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
PLAIN = {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}], "ips": IPS, "routes": ROUTES, "dns": DNS}
WITH_VERSION = PLAIN | {"ips": [{"version": "4", **IPS[0]}, {"version": "6", **IPS[1]}]}
BY_FAMILY = {
    "ip4": {"ip": "10.244.1.2/32", "routes": ROUTES[:1]},
    "ip6": {"ip": "fd00::2/128", "routes": ROUTES[1:]},
    "dns": DNS,
}
EXPECTED: dict[str, dict[str, Any]] = {
    "0.1.0": BY_FAMILY,
    "0.2.0": BY_FAMILY,
    "0.3.0": WITH_VERSION,
    "0.3.1": WITH_VERSION,
    "0.4.0": WITH_VERSION,
    "1.0.0": PLAIN,
    "1.1.0": PLAIN | {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/a", "mtu": 1450}]},
}


def call(**more: Any) -> Call:
    config = {"cniVersion": "1.0.0", "name": "canal", **more}
    return Call("CHECK", "c", "/run/netns/a", "eth0", "", "canal", "1.0.0", config)


@pytest.mark.parametrize("version", SUPPORTED)
def test_results(version: str) -> None:
    assert result(version, MADE, {}) == {"cniVersion": version, **EXPECTED[version]}


def test_what_came_before_stays_in_front() -> None:
    before = {
        "interfaces": [{"name": "veth1", "mac": "02:00:00:00:00:01"}, {"name": "net0", "sandbox": "/run/netns/a"}],
        "ips": [{"interface": 1, "address": "192.0.2.2/24", "gateway": "192.0.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org"},
    }
    found = result("1.0.0", MADE, before)
    assert found["interfaces"] == [*before["interfaces"], PLAIN["interfaces"][0]]  # type: ignore[misc]
    assert [ip["interface"] for ip in found["ips"]] == [1, 2, 2]
    assert found["routes"] == ROUTES
    assert found["dns"] == {"nameservers": ["10.0.0.53"], "domain": "example.org"}


@pytest.mark.parametrize(
    "previous", [7, [], {"interfaces": {}}, {"ips": [1]}, {"routes": "x"}, {"dns": "x"}], ids=json.dumps
)
def test_a_previous_result_that_nobody_can_read(previous: Any) -> None:
    with pytest.raises(CniError, match="could not parse prevResult"):
        previous_of(call(prevResult=previous))


def test_check_allows_what_later_plugins_did() -> None:
    found = result("1.0.0", MADE, {})
    found["interfaces"].append({"name": "bwp123", "mac": "02:00:00:00:00:02"})
    found["ips"].append({"address": "192.0.2.9/24"})
    found["interfaces"][0]["mac"] = "02:00:00:00:00:03"
    check_previous(call(prevResult=found), (V4, V6))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        pytest.param(None, 7, "CHECK needs the prevResult", id="no result"),
        pytest.param({"interfaces": []}, 101, "has no interface eth0 in /run/netns/a", id="our interface is missing"),
        pytest.param({"ips": IPS[:1]}, 101, "does not have fd00::2/128", id="an address is missing"),
        pytest.param(
            {"ips": [{"interface": 1, "address": "10.244.1.2/32"}, IPS[1]]}, 101, "10.244.1.2/32", id="at another's"
        ),
    ],
)
def test_check_finds_what_is_missing(change: dict[str, Any] | None, code: int, message: str) -> None:
    previous = None if change is None else PLAIN | change
    with pytest.raises(CniError, match=message) as caught:
        check_previous(call(prevResult=previous), (V4, V6))
    assert caught.value.code == code


def test_answers() -> None:
    assert success() == b"0 0\n"
    assert success({"a": 1}) == b'0 8\n{"a":1}\n'
    status, _, body = failure(CniError(11, "later", "why"), "0.2.0").partition(b"\n")
    assert status == b"1 %d" % len(body)
    assert json.loads(body) == {"cniVersion": "0.2.0", "code": 11, "msg": "later", "details": "why"}
    assert json.loads(failure(CniError(4, "x\x1b")).partition(b"\n")[2])["cniVersion"] == "1.1.0"
