"""Namespaces, policies and the truth table of a lab file: what they say, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from canal_udp.errors import ConfigError, UsageError
from canal_udp.lab import objects
from canal_udp.lab.model import Lab, parse_lab
from canal_udp.lab.probe import Place, Probe, Service
from canal_udp.lab.show import Screen
from canal_udp.lab.trial import Seen, print_seen, rows
from canal_udp.lab.truth import expectations

NODES = """
nodes:
  a: {pods: {web: {namespace: shop, labels: {app: web}}, db: {namespace: shop, labels: {app: db}}}}
  b: {pods: [out]}
"""
PLACES = {
    "web": Place("w", ("10.0.0.1", "fd00::1")),
    "db": Place("d", ("10.0.0.2", "fd00::2")),
    "out": Place("o", ("10.0.1.1",)),
    "a": Place("a", ("192.168.1.1",)),
}
POLICY = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {%s}}"


def lab(text: str, source: str = "lab.yaml") -> Lab:
    return parse_lab(NODES + text, source, "lab")


def table(text: str) -> dict[str, str]:
    """source>target service family -> verdict and line."""
    found = expectations(lab(f"tests:\n{text}").tests, PLACES)
    return {
        f"{p.source}>{p.target} {p.service} {p.family}": f"{verdict} {line}" for p, (verdict, line) in found.items()
    }


def test_the_later_entry_counts() -> None:
    found = table("  - deny: {from: all, to: db, family: 4}\n  - allow: {from: app=web, to: shop/, family: 4}\n")
    assert found == {"web>db 80/TCP 4": "allow 7", "out>db 80/TCP 4": "deny 6"}


def test_an_entry_without_ports_is_about_all_that_are_named() -> None:
    found = table("  - deny: {from: out, to: db}\n  - allow: {from: out, to: db, ports: [53/udp, ICMP]}\n")
    assert found == {"out>db 53/UDP 4": "allow 7", "out>db ICMP 4": "allow 7"}


def test_families_are_those_that_both_have() -> None:
    assert set(table("  - allow: {from: web, to: [db, out]}\n")) == {
        *("web>db 80/TCP 4", "web>db 80/TCP 6", "web>out 80/TCP 4"),
    }


def test_a_node_is_named_by_its_name() -> None:
    assert table("  - allow: {from: a, to: web, ports: 22/TCP}\n") == {"a>web 22/TCP 4": "allow 6"}
    assert "a>web 80/TCP 4" not in table("  - allow: {from: all, to: web}\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tests: [{permit: {from: all, to: all}}]", "tests[0].permit: unknown key 'permit'"),
        ("tests: [{allow: {from: all}}]", "tests[0].allow: `to:` is missing"),
        ("tests: [{allow: {from: all, to: web, ports: [80]}}]", "'80' is neither port/protocol"),
        ("tests: [{allow: {from: all, to: web, ports: [1/ICMP]}}]", "'1/ICMP' is neither port/protocol"),
        ("tests: [{allow: {from: all, to: web, ports: [70000/TCP]}}]", "70000 is no port"),
        ("tests: [{allow: {from: all, to: web, family: 5}}]", "4 or 6"),
        ("tests: [{allow: {from: shp/, to: web}}]", "no pod has the namespace shp/; did you mean 'shop/'?"),
        ("tests: [{allow: {from: wbe, to: web}}]", "unknown pod or node 'wbe'; did you mean 'web'?"),
        ("namespaces: {shop: x}", "labels are a mapping"),
        ("namespaces: {Shop: {}}", "is no name"),
        ("checks: [{reach: {from: a, to: web}}]", "unknown pod 'a'"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"^lab\.yaml:5: ") as caught:
        lab(text)
    assert problem in str(caught.value)


def test_files_lie_beside_the_lab_file_and_objects_in_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY % "podSelector: {}")
    text = "namespaces: {shop: {team: x}, empty: }\npolicies:\n  - p.yaml\n  - " + POLICY.replace("name: p", "name: q")
    found = objects.read(lab(text % "podSelector: {}", str(tmp_path / "lab.yaml")))
    assert {policy.name for policy in found.state.policies} == {"p", "q"}
    assert found.state.namespaces["shop"].labels == {"team": "x"} and "empty" in found.state.namespaces
    assert len(found.written) == 4


def test_all_mistakes_of_all_policies_are_told_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY % "\npodSelector: {},\ningres: []")
    text = "policies:\n  - p.yaml\n  - kind: NetworkPolicy\n    metadata: {name: q}\n    spec: {podSelctor: {}}\n"
    with pytest.raises(UsageError) as caught:
        objects.read(lab(text, str(tmp_path / "lab.yaml")))
    assert f"{tmp_path}/p.yaml:3: error: spec.ingres: unknown field" in str(caught.value)
    assert f"{tmp_path}/lab.yaml:9: error: spec.podSelctor: unknown field" in str(caught.value)
    with pytest.raises(UsageError, match=r"none\.yaml: No such file"):
        objects.read(lab("policies: [none.yaml]"))


def seen(answer: str, expected: str, family: int = 4, target: str = "db") -> Seen:
    return Seen(Probe("web", target, Service("TCP", 80), family), expected, 7, answer)  # type: ignore[arg-type]


def printed(*found: Seen) -> tuple[int, str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    status = print_seen(Screen(stream), found, PLACES)
    stream.seek(0)
    return status, stream.read()


def test_what_is_as_expected_is_a_table() -> None:
    status, text = printed(seen("passed", "allow"), seen("passed", "allow", 6), seen("refused", "deny", 4, "out"))
    assert status == 0
    assert text.splitlines()[:3] == ["  80/TCP (IPv4)", "         db out", "    web   y   -"]
    assert "3 of 3 as the file says" in text


def test_families_that_say_the_same_are_one_table() -> None:
    assert printed(seen("passed", "allow"), seen("passed", "allow", 6))[1].startswith("  80/TCP (IPv4, IPv6)\n")


def test_what_is_not_as_expected_is_marked_and_told() -> None:
    status, text = printed(seen("silent", "allow"), seen("passed", "deny", 4, "out"))
    assert status == 1
    assert "    web  -!  y!" in text
    assert "line 7: allow web -> db 80/TCP (IPv4): silent" in text and "0 of 2" in text
    assert [row["good"] for row in rows([seen("silent", "allow"), seen("silent", "deny")])] == [False, True]


def test_many_mistakes_are_not_many_screens() -> None:
    text = printed(*(seen("silent", "allow", 4, f"p{n}") for n in range(30)))[1]
    assert "and 10 more; -j has all" in text
