"""Endpoints' names, labels and the file by which they outlive the daemon."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from canal_udp.endpoints import Endpoint, check_name, dump, load, parse_labels
from canal_udp.errors import ConfigError, RequestError

ONE = Endpoint("default/a", "/run/netns/a", "boot/7", "eth0", (ip_address("10.1.2.3"),), (("app", "x"),), 1)
TWO = Endpoint("z", "/proc/9/ns/net", "boot/8", "net1", (ip_address("10.1.2.4"), ip_address("fd00::4")), (), 2)


def test_the_file_says_everything_again() -> None:
    assert load(dump([TWO, ONE]), "x") == (ONE, TWO)
    assert load(dump([]), "x") == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no version"),
        pytest.param('{"version":2,"endpoints":[]}', id="of the future"),
        pytest.param('{"version":1,"endpoints":[{}]}', id="row without fields"),
        pytest.param('{"version":1,"endpoints":[7]}', id="row of another kind"),
        pytest.param(dump([ONE]).replace("10.1.2.3", "10.1.2"), id="no address"),
        pytest.param(dump([ONE]).replace("default/a", "../a"), id="a hostile name"),
        pytest.param(json.dumps({"version": 1, "endpoints": None}), id="null"),
    ],
)
def test_a_file_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^state\.json: "):
        load(text, "state.json")


def test_every_truncation_is_refused() -> None:
    text = dump([ONE, TWO]).rstrip()
    for size in range(len(text)):
        with pytest.raises(ConfigError):
            load(text[:size], "x")


@pytest.mark.parametrize("name", ["a", "default/a", "kube-system/coredns-5d78c9869d-x2v4k", "A.b_c/d"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "/", "a/", "/a", "a/b/c", "../a", ".a", "a b", "a\n", "\x1b[2J", "a" * 254, "ä"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_name(name)
    assert str(caught.value).isprintable()


def test_labels() -> None:
    assert parse_labels(["b=2", "a=1", "k8s.io/x=", "b=3"]) == (("a", "1"), ("b", "3"), ("k8s.io/x", ""))


@pytest.mark.parametrize("label", ["a", "=b", "a=b=c", "a b=c", "a=b c", "-a=b", "a/b/c=d", "a=" + "v" * 64])
def test_labels_that_are_none(label: str) -> None:
    with pytest.raises(RequestError):
        parse_labels([label])
