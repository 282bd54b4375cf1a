"""The lines that people grep flanneld's log for."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from canal_udp.flannel.klog import Formatter
from canal_udp.logs import event

HEAD = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ test_flannel_klog\.py:\d+\] ")


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    logger, text = logging.getLogger("canal.test-klog"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(Formatter(IPv4Network("10.5.2.0/24")))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield logger, text
    logger.removeHandler(handler)


def lease(subnet: str, *, new: bool) -> dict[str, object]:
    return {
        "subnet": IPv4Network(subnet),
        "subnet6": "",
        "public_ip": IPv4Address("192.0.2.1"),
        "expires_at": 0.0,
        "new": new,
    }


@pytest.mark.parametrize(
    ("name", "fields", "wanted"),
    [
        (
            "underlay.chosen",
            {"iface": "eth0", "public_ip": "192.0.2.1", "mtu_bytes": 1500},
            ["Using interface with name eth0 and address 192.0.2.1"],
        ),
        (
            "lease.held",
            lease("10.5.1.0/24", new=True),
            ["Allocated lease (ip: 10.5.1.0/24 ipv6: ::/0) to current node (192.0.2.1)"],
        ),
        (
            "lease.held",
            lease("10.5.2.0/24", new=True),
            [
                "Found previously leased subnet (10.5.2.0/24), reusing",
                "Allocated lease (ip: 10.5.2.0/24 ipv6: ::/0) to current node (192.0.2.1)",
            ],
        ),
        (
            "lease.held",
            lease("10.5.2.0/24", new=False),
            ["Found lease (ip: 10.5.2.0/24 ipv6: ::/0) for current IP (192.0.2.1), reusing"],
        ),
        (
            "lease.renewed",
            {"subnet": "x", "expires_at": 17.5},
            ["Lease renewed, new expiration: 1970-01-01 00:00:17.500000 +0000 UTC"],
        ),
        ("lease.renewed", {"subnet": "x", "expires_at": None}, ["Lease renewed, new expiration: never"]),
        ("lease.lost", {"reason": "x"}, ["x", "Lease has been revoked. Shutting down daemon."]),
        ("daemon.ready", {"subnet_file": "/x.env"}, ["Wrote subnet file to /x.env", "Running backend."]),
        ("store.failed", {"reason": "it is away"}, ['store.failed reason="it is away"']),
    ],
)
def test_lines(
    log: tuple[logging.Logger, io.StringIO], name: str, fields: dict[str, object], wanted: list[str]
) -> None:
    event(log[0], "info", name, **fields)
    lines = log[1].getvalue().splitlines()
    assert all(HEAD.match(line) and line[0] == "I" for line in lines), lines
    assert [HEAD.sub("", line) for line in lines] == wanted


def test_levels_and_traces(log: tuple[logging.Logger, io.StringIO]) -> None:
    log[0].warning("plain %d", 1)
    try:
        raise ValueError("x")
    except ValueError:
        log[0].exception("failed")
    text = log[1].getvalue()
    assert text.startswith("W") and "] plain 1\nE" in text and text.endswith("ValueError: x\n")
