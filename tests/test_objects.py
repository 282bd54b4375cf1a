"""Objects and endpoints in the store: keys, values, and what others wrote badly."""

from __future__ import annotations

import random
import string
from ipaddress import ip_address

import pytest

from canal_udp.control import objects
from canal_udp.control.objects import PodEntry
from canal_udp.errors import ConfigError
from canal_udp.policy.load import KINDS, load_texts
from canal_udp.policy.stored import read_fact
from tests.policies import CALICO, cnp, gnp, np

POD = PodEntry("n1", "x", "a", (ip_address("10.1.0.2"), ip_address("fd00::2")), {"app": "web"}, (("web", "TCP", 80),))


def test_every_kind_that_the_loader_knows_has_its_place() -> None:
    known = {kind for kinds in KINDS.values() for kind in kinds} | {"KubernetesNetworkPolicy"}
    assert known == objects.NAMESPACED | objects.GLOBAL


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param(np("x", "{}", ""), "KubernetesNetworkPolicy/x/p", id="kubernetes"),
        pytest.param(
            f"{CALICO}\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}", "NetworkPolicy/x/p", id="calico"
        ),
        pytest.param(gnp("g", "selector: all()"), "GlobalNetworkPolicy/_/g", id="global"),
        pytest.param(cnp("c", "Admin", 1, ""), "ClusterNetworkPolicy/_/c", id="cluster"),
        pytest.param(
            f"{CALICO}\nkind: GlobalNetworkSet\nmetadata: {{name: s}}",
            "GlobalNetworkSet/_/s",
            id="a set of no namespace",
        ),
        pytest.param(
            f"{CALICO}\nkind: NetworkSet\nmetadata: {{name: s}}", "NetworkSet/default/s", id="the namespace is default"
        ),
        pytest.param(
            f"{CALICO}\nkind: FelixConfiguration\nmetadata: {{name: default}}",
            "FelixConfiguration/_/default",
            id="there is one FelixConfiguration",
        ),
        pytest.param("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "Pod/default/a", id="pod"),
    ],
)
def test_an_object_has_a_key_and_the_key_names_it(text: str, key: str) -> None:
    ((found, _),) = load_texts([("f.yaml", text)]).written
    assert str(objects.object_key(found)) == key
    assert objects.parse_object_key(key) == objects.object_key(found)


@pytest.mark.parametrize(
    "key",
    ["", "Pod", "Pod/x", "Pod/x/", "Pod//a", "Pod/x/a/b", "Pod/_/a", "Tier/x/t", "Secret/x/a", "pod/x/a", "Tier/_/"],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError):
        objects.parse_object_key(key)
    assert read_fact("policies", key, b"{}").problem.startswith("policies/")


def test_a_document_comes_back_as_it_went() -> None:
    document = {"kind": "Pod", "metadata": {"name": "ä", "labels": {}}, "spec": [1, 2.5, None, True]}
    assert objects.read_value(objects.object_value(document), "") == document


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_JSON_has_not_is_refused_by_its_field(number: float) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: spec\.order\[0\]: JSON has no such number"):
        objects.object_value({"spec": {"order": [number]}}, "f.yaml")


def test_a_document_that_is_too_long_is_refused_on_both_sides() -> None:
    with pytest.raises(ConfigError, match="a store takes"):
        objects.object_value({"x": "x" * objects.VALUE_MAX_BYTES})
    assert "longer than" in read_fact("policies", "Pod/x/a", b" " * (objects.VALUE_MAX_BYTES + 1)).problem


def test_an_endpoint_comes_back_as_it_went() -> None:
    assert POD.key == "n1/x/a"
    assert objects.read_endpoint(POD.key, POD.value) == POD


@pytest.mark.parametrize("node", ["n/1", "a b", "ü", "%2f", "..", "n1"])
def test_any_text_is_a_node_and_its_key_has_three_parts(node: str) -> None:
    entry = PodEntry(node, "x", "a", (), {})
    assert entry.key.count("/") == 2
    assert objects.read_endpoint(entry.key, entry.value) == entry


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        pytest.param("n1/a", POD.value, "no key of an endpoint", id="a key without a namespace"),
        pytest.param("n1/x/a/b", POD.value, "no key of an endpoint", id="a key with too many parts"),
        pytest.param("n1/x/b", POD.value, "calls itself x/a of n1", id="another pod's value"),
        pytest.param("n2/x/a", POD.value, "calls itself x/a of n1", id="another node's value"),
        pytest.param("n1/x/a", b"", "truncated", id="nothing"),
        pytest.param("n1/x/a", b"[]", "Expected `object`", id="a list"),
        pytest.param("n1/x/a", POD.value.replace(b"10.1.0.2", b"10.1.0.x"), "10.1.0.x", id="no address"),
        pytest.param("n1/x/a", POD.value.replace(b'"web"}', b"1}"), "labels", id="a label that is a number"),
        pytest.param("n1/x/a", POD.value.replace(b"TCP", b"TCPx"), "TCPx/80 is no port", id="an unknown protocol"),
        pytest.param("n1/x/a", POD.value.replace(b":80", b":80000"), "80000 is no port", id="no port number"),
    ],
)
def test_a_bad_endpoint_is_a_fact_with_a_reason(key: str, value: bytes, problem: str) -> None:
    fact = read_fact("endpoints", key, value)
    assert problem in fact.problem
    if fact.key is not None:
        assert getattr(fact.found, "broken", "")


def test_no_bytes_make_a_reader_fail() -> None:
    rng = random.Random(seed := 20261125)
    values = [POD.value, objects.object_value({"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {}})]
    keys = [POD.key, "KubernetesNetworkPolicy/default/p", "ClusterNetworkPolicy/_/c", "Tier/_/t"]
    for _ in range(5000):
        value = bytearray(rng.choice(values))
        for _ in range(rng.randrange(4)):
            value[rng.randrange(len(value))] = rng.choice(string.printable.encode() + b"\xff\x00")
        key = list(rng.choice(keys))
        if rng.random() < 0.3:
            key[rng.randrange(len(key))] = rng.choice("/_x\n%\ud800")
        kind = rng.choice(("endpoints", "policies"))
        fact = read_fact(kind, "".join(key), bytes(value))  # type: ignore[arg-type]
        assert fact.found is not None or fact.problem, f"seed {seed}"
        assert fact.problem.isprintable(), f"seed {seed}: {fact.problem!r}"
