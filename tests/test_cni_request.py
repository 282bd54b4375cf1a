"""cni.request: what runtimes send -> what is asked for; everything malformed gets its code and message."""

from __future__ import annotations

import contextlib
import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_udp.cni.request import read_call, read_wishes, split, valid_attachments
from canal_udp.cni.spec import SUPPORTED
from canal_udp.errors import CniError

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c-1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = {"cniVersion": "1.1.0", "name": "canal", "type": "canal-cni"}
LISTED = " ".join(f'"{version}"' for version in SUPPORTED)


def environ(**changes: str | None) -> dict[str, str]:
    changed = ENVIRON | {f"CNI_{key}": value for key, value in changes.items()}  # type: ignore[dict-item]
    return {key: value for key, value in changed.items() if value is not None}


def stdin(config: Any = CONFIG, **more: Any) -> bytes:
    return json.dumps({**config, **more}).encode() if isinstance(config, dict) else config


def refusal(env: dict[str, str], config: bytes) -> CniError:
    with pytest.raises(CniError) as caught:
        read_wishes(read_call(env, config))
    return caught.value


ENVIRONMENT = [
    pytest.param({"CONTAINERID": None}, "required env variables [CNI_CONTAINERID] missing", id="no container id"),
    pytest.param({"CONTAINERID": ""}, "required env variables [CNI_CONTAINERID] missing", id="an empty container id"),
    pytest.param(
        {"NETNS": None, "PATH": None}, "required env variables [CNI_NETNS,CNI_PATH] missing", id="all that is missing"
    ),
    pytest.param(
        {"COMMAND": "DEL", "IFNAME": None}, "required env variables [CNI_IFNAME] missing", id="DEL without interface"
    ),
    pytest.param({"COMMAND": "GC", "PATH": None}, "required env variables [CNI_PATH] missing", id="GC without path"),
    pytest.param({"COMMAND": "STATUS", "PATH": ""}, "required env variables [CNI_PATH] missing", id="STATUS likewise"),
    pytest.param({"COMMAND": "add"}, "unknown CNI_COMMAND: add", id="a command in another case"),
    pytest.param({"COMMAND": "\x1b[2J"}, "unknown CNI_COMMAND: \\x1b[2J", id="a command that is an escape sequence"),
    pytest.param({"CONTAINERID": "../x"}, "invalid characters in containerID", id="a path as container id"),
    pytest.param({"CONTAINERID": "-x"}, "invalid characters in containerID", id="a flag as container id"),
    pytest.param({"CONTAINERID": "a b"}, "invalid characters in containerID", id="a blank in the container id"),
    pytest.param({"CONTAINERID": "a\n"}, "invalid characters in containerID", id="a newline after the container id"),
    pytest.param({"CONTAINERID": "é"}, "invalid characters in containerID", id="a letter beyond ASCII"),
    pytest.param({"IFNAME": "x" * 16}, "interface name is too long", id="16 characters"),
    pytest.param({"IFNAME": "x" * 4096}, "interface name is too long", id="4 KB"),
    pytest.param({"IFNAME": "."}, "interface name is . or ..", id="one dot"),
    pytest.param({"IFNAME": ".."}, "interface name is . or ..", id="two dots"),
    pytest.param(
        {"IFNAME": "../x"}, "interface name contains / or : or whitespace characters", id="a path as interface"
    ),
    pytest.param({"IFNAME": "a:1"}, "interface name contains / or : or whitespace characters", id="a colon"),
    pytest.param({"IFNAME": "a b"}, "interface name contains / or : or whitespace characters", id="a blank"),
    pytest.param({"IFNAME": "a\u2003b"}, "interface name contains / or : or whitespace characters", id="an em space"),
    pytest.param({"IFNAME": "eth%d"}, "interface name cannot be used", id="a name the kernel expands"),
    pytest.param({"IFNAME": "lo"}, "interface name cannot be used", id="the loopback device"),
    pytest.param({"ARGS": "IP"}, 'ARGS: invalid pair "IP"', id="an argument without a value"),
    pytest.param({"ARGS": "A=1;B=2"}, 'ARGS: unknown args ["A=1" "B=2"]', id="unknown arguments"),
    pytest.param({"ARGS": "IgnoreUnknown=x"}, "ARGS: IgnoreUnknown=x is neither true nor false", id="a bad boolean"),
]


@pytest.mark.parametrize(("changes", "message"), ENVIRONMENT)
def test_malformed_environment(changes: dict[str, str | None], message: str) -> None:
    error = refusal(environ(**changes), stdin())
    assert (error.code, str(error)) == (4, message)


CONFIGURATIONS = [
    pytest.param(b"", 6, "error unmarshall network config: ", id="nothing"),
    pytest.param(b"{", 6, "error unmarshall network config: ", id="half of an object"),
    pytest.param(b"[]", 6, "error unmarshall network config: not an object", id="a list"),
    pytest.param(b"[" * 100_000, 6, "error unmarshall network config: ", id="a hundred thousand brackets"),
    pytest.param(b'{"name":"\xff"}', 6, "error unmarshall network config: ", id="no UTF-8"),
    pytest.param(stdin(name=7), 6, "error unmarshall network config: name is no string", id="a number as name"),
    pytest.param(stdin(cniVersion=1), 6, "error unmarshall network config: cniVersion is no", id="a number as version"),
    pytest.param(stdin({"cniVersion": "1.0.0"}), 7, "missing network name", id="no name"),
    pytest.param(stdin(name=""), 7, "missing network name", id="an empty name"),
    pytest.param(stdin(name="a/b"), 7, "invalid characters found in network name", id="a path as name"),
    pytest.param(stdin(cniVersion="9.9.9"), 1, "incompatible CNI versions", id="a version of the future"),
    pytest.param(stdin(cniVersion="1.0.1"), 1, "incompatible CNI versions", id="a version between two"),
    pytest.param(stdin(cniVersion="x"), 6, "cniVersion 'x' is no version", id="a word as version"),
    pytest.param(stdin(cniVersion="1.0.0.0"), 6, "cniVersion '1.0.0.0' is no version", id="too many numbers"),
    pytest.param(stdin(ipam={"type": "host-local"}), 2, 'unsupported field ipam.type = "host-local"', id="an IPAM"),
    pytest.param(stdin(ipMasq="true"), 2, 'unsupported field ipMasq = "true"', id="masquerading, as a string"),
    pytest.param(stdin(ipMasq="x"), 7, "ipMasq is neither true nor false", id="a switch that is none"),
    pytest.param(stdin(ipam=[]), 7, "ipam is no object", id="a list as IPAM"),
    pytest.param(
        stdin(runtimeConfig={"portMappings": [{"hostPort": 1}]}),
        2,
        'unsupported field runtimeConfig.portMappings = [{"hostPort":1}]',
        id="port mappings, which are portmap's",
    ),
    pytest.param(stdin(runtimeConfig={"ips": "10.0.0.1"}), 7, "ips is no list of strings", id="one address, no list"),
    pytest.param(stdin(runtimeConfig={"ips": ["10.0.0.x"]}), 7, "'10.0.0.x' is no IP address", id="no address"),
    pytest.param(
        stdin(runtimeConfig={"ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]}),
        7,
        "runtimeConfig.ipRanges: 10.0.1.1 to 10.0.0.255 is no range in 10.0.0.0/24",
        id="a range outside of its subnet",
    ),
    pytest.param(
        stdin(args={"cni": {"labels": [{"key": "a b", "value": "x"}]}}), 7, "labels: 'a b=x' is no label", id="no label"
    ),
    pytest.param(stdin(args={"cni": {"labels": "x"}}), 7, "labels are no list of objects", id="labels as text"),
]


@pytest.mark.parametrize(("config", "code", "message"), CONFIGURATIONS)
def test_malformed_configuration(config: bytes, code: int, message: str) -> None:
    error = refusal(environ(), config)
    assert (error.code, str(error)[: len(message)]) == (code, message)


def test_details_say_what_fits() -> None:
    error = refusal(environ(), stdin(cniVersion="9.9.9"))
    assert error.details == f'config is "9.9.9", plugin supports [{LISTED}]'


@pytest.mark.parametrize(
    ("command", "version", "allowed"),
    [(command, version, True) for command in ("ADD", "DEL") for version in SUPPORTED]
    + [("CHECK", version, version >= "0.4.0") for version in SUPPORTED]
    + [(command, version, version == "1.1.0") for command in ("GC", "STATUS") for version in SUPPORTED],
)
def test_versions_of_commands(command: str, version: str, allowed: bool) -> None:
    if allowed:
        assert read_call(environ(COMMAND=command), stdin(cniVersion=version)).version == version
        return
    error = refusal(environ(COMMAND=command), stdin(cniVersion=version))
    assert (error.code, str(error)) == (1, f"config version does not allow {command}")


@pytest.mark.parametrize("config", [{"name": "canal"}, {"name": "canal", "cniVersion": ""}])
def test_no_version_is_the_first(config: dict[str, str]) -> None:
    assert read_call(environ(), stdin(config)).version == "0.1.0"


def test_the_order_of_checks() -> None:
    """Each fault is reported while all later ones are there too."""
    faults: list[tuple[dict[str, str | None], bytes, str]] = [
        ({"CONTAINERID": None, "IFNAME": ".."}, b"{", "required env"),
        ({"CONTAINERID": "/", "IFNAME": ".."}, b"{", "invalid characters in containerID"),
        ({"IFNAME": ".."}, b"{", "interface name is . or .."),
        ({}, b"{", "error unmarshall"),
        ({}, b'{"cniVersion":"9.9.9"}', "missing network name"),
        ({}, b'{"cniVersion":"9.9.9","name":"/"}', "invalid characters found in network name"),
        ({}, b'{"cniVersion":"9.9.9","name":"n"}', "incompatible CNI versions"),
    ]
    for changes, config, message in faults:
        assert str(refusal(environ(**changes), config)).startswith(message)


def test_a_del_needs_only_names() -> None:
    """What an ADD would refuse, and a prevResult that nobody can read, do not keep a container from going."""
    broken = stdin(prevResult=7, ipam={"type": "x"}, args=[], runtimeConfig=1)
    call = read_call(environ(COMMAND="DEL", NETNS=None, ARGS="nonsense"), broken)
    assert (call.container_id, call.netns, call.network) == ("c-1", "", "canal")


def test_what_kubernetes_sends() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;NEW=x"
    wishes = read_wishes(read_call(environ(ARGS=args), stdin()))
    assert wishes.pod == ("shop", "web-0")


def test_what_mesos_sends() -> None:
    info = {
        "name": "canal",
        "labels": {"labels": [{"key": "app", "value": "web"}]},
        "port_mappings": [{"host_port": 80, "container_port": 8080, "protocol": "tcp"}],
    }
    config = stdin(cniVersion="0.2.0", args={"org.apache.mesos": {"network_info": info}})
    wishes = read_wishes(read_call(environ(), config))
    assert (wishes.labels, wishes.pod) == ((("app", "web"),), None)


@pytest.mark.parametrize(
    ("args", "config", "expected"),
    [
        pytest.param("IP=10.0.0.9", {}, ["10.0.0.9"], id="CNI_ARGS"),
        pytest.param("IP=10.0.0.9", {"args": {"cni": {"ips": ["10.0.0.8"]}}}, ["10.0.0.8"], id="args before CNI_ARGS"),
        pytest.param(
            "IP=10.0.0.9",
            {"args": {"cni": {"ips": ["10.0.0.8"]}}, "runtimeConfig": {"ips": ["10.0.0.7/24", "fd00::7/64"]}},
            ["10.0.0.7", "fd00::7"],
            id="runtimeConfig before both, with lengths",
        ),
        pytest.param("", {"RuntimeConfig": {"IPs": ["10.0.0.7"]}}, ["10.0.0.7"], id="keys in any case"),
    ],
)
def test_wanted_addresses(args: str, config: dict[str, Any], expected: list[str]) -> None:
    wishes = read_wishes(read_call(environ(ARGS=args), stdin(**config)))
    assert wishes.ips == tuple(map(ip_address, expected))


def test_labels_ranges_mac_and_dns() -> None:
    config = stdin(
        args={"cni": {"labels": [{"key": "b", "value": "2"}, {"key": "a", "value": "1"}]}},
        dns={"nameservers": ["10.0.0.53"], "domain": "example.org", "options": ["ndots:5"]},
        runtimeConfig={
            "ipRanges": [[{"subnet": "10.0.0.0/30"}], [{"subnet": "fd00::/126", "rangeStart": "fd00::2"}]],
            "mac": "02:00:00:00:00:01",
            "dns": {"servers": ["10.0.0.54"], "searches": ["svc.local"]},
        },
    )
    wishes = read_wishes(read_call(environ(), config))
    assert wishes.labels == (("a", "1"), ("b", "2"))
    assert [f"{first}-{last}" for first, last in wishes.within] == ["10.0.0.0-10.0.0.3", "fd00::2-fd00::3"]
    assert wishes.mac == "02:00:00:00:00:01"
    assert wishes.dns == {
        "nameservers": ["10.0.0.54"],
        "domain": "example.org",
        "search": ["svc.local"],
        "options": ["ndots:5"],
    }


def test_gc_takes_the_new_key_and_the_old_one_but_not_none() -> None:
    listed = [{"containerID": "c", "ifname": "eth0"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        call = read_call(environ(COMMAND="GC"), stdin(**{key: listed}))
        assert valid_attachments(call) == {("c", "eth0")}
    for nothing in ({}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": "x"}):
        with pytest.raises(CniError, match="valid-attachments"):
            valid_attachments(read_call(environ(COMMAND="GC"), stdin(**nothing)))


def test_the_message_of_the_executable() -> None:
    assert split(b"CNI_COMMAND=ADD\0CNI_ARGS=\0\0{}") == ({"CNI_COMMAND": "ADD", "CNI_ARGS": ""}, b"{}")
    with pytest.raises(CniError, match="ends within"):
        split(b"CNI_COMMAND=ADD\0")


@given(st.dictionaries(st.sampled_from(sorted(ENVIRON)), st.text(max_size=20)), st.binary(max_size=200))
def test_anything_is_a_call_or_a_refusal(env: dict[str, str], config: bytes) -> None:
    with contextlib.suppress(CniError):
        read_wishes(read_call(ENVIRON | env, config))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = ("args", "runtimeConfig", "ipam", "dns", "ipMasq", "prevResult", "cni.dev/valid-attachments")
_INNER = st.dictionaries(st.sampled_from(["cni", "ips", "mac", "dns", "ipRanges", "labels", "type"]), _JSON, max_size=4)


@given(st.dictionaries(st.sampled_from(_KEYS), _JSON | _INNER, max_size=4))
def test_any_object_is_a_wish_or_a_refusal(more: dict[str, Any]) -> None:
    for command, read in (("ADD", read_wishes), ("GC", valid_attachments)):
        with contextlib.suppress(CniError):
            read(read_call(environ(COMMAND=command), stdin(**more)))  # type: ignore[operator]
