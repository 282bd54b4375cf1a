"""The daemon's settings: every source, precedence, and errors that name the place."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from canal_udp.config import (
    OPTIONS,
    DaemonConfig,
    combine,
    from_environment,
    from_flags,
    from_toml,
    load,
    parse_listen,
    with_network,
)
from canal_udp.control.network import NetworkConfig
from canal_udp.errors import ConfigError


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    fields = {name for name in DaemonConfig.__dataclass_fields__ if name not in {"origins", "netfilter", "plain_lease"}}
    assert {option.name for option in OPTIONS} == fields


def test_defaults() -> None:
    config = combine({})
    assert config == DaemonConfig()
    assert config.store == "sqlite:///var/lib/canal/canal.db"
    assert config.subnet_file == Path("/run/flannel/subnet.env")
    assert config.origin("mtu") == "default"


def test_precedence_and_origins(tmp_path: Path) -> None:
    file = written(tmp_path / "canal.toml", 'vni = 5\nport = 5\nmtu = 5\n# the end\nlog_level = "debug"\n')
    environ = {"CANAL_PORT": "6", "CANAL_MTU": "6", "CANAL_VNI": "", "CANAL_UNRELATED": "x"}
    config = load({"mtu": "7", "encap": None, "clean": False, "iface": []}, environ, file)
    config = with_network(config, NetworkConfig.make(IPv4Network("10.3.0.0/16"), encap="vxlan", vni=9, mtu_bytes=9))
    assert (config.mtu, config.origin("mtu")) == (7, "--mtu")
    assert (config.port, config.origin("port")) == (6, "CANAL_PORT")
    assert (config.vni, config.origin("vni")) == (5, f"{file}:1")
    assert (config.log_level, config.origin("log_level")) == ("debug", f"{file}:5")
    assert (config.encap, config.origin("encap")) == ("vxlan", "store")
    assert (config.network, config.origin("network")) == (IPv4Network("10.3.0.0/16"), "store")
    assert (config.ct_max, config.origin("ct_max")) == (DaemonConfig().ct_max, "default")


FLAGS: dict[str, Any] = {
    "store": "memory://x",
    "network": "10.3.0.0/16",
    "network6": "fd00::/48",
    "encap": "vxlan",
    "iface": ["eth0", "eth1"],
    "iface_regex": ["^eth"],
    "public_ip": "192.0.2.1",
    "healthz_addr": "127.0.0.1:8080",
    "clean": True,
    "lease_ttl_s": "60",
}
VALUES = {
    "store": "memory://x",
    "network": IPv4Network("10.3.0.0/16"),
    "network6": IPv6Network("fd00::/48"),
    "encap": "vxlan",
    "iface": ("eth0", "eth1"),
    "iface_regex": ("^eth",),
    "public_ip": IPv4Address("192.0.2.1"),
    "healthz_addr": "127.0.0.1:8080",
    "clean": True,
    "lease_ttl_s": 60,
}
ENVIRON = {
    f"CANAL_{name.upper()}": ",".join(value) if isinstance(value, list) else str(value) for name, value in FLAGS.items()
}
TOML = """
store = "memory://x"
network = "10.3.0.0/16"
network6 = "fd00::/48"
encap = "vxlan"
iface = ["eth0", "eth1"]
iface-regex = "^eth"
public-ip = "192.0.2.1"
healthz_addr = "127.0.0.1:8080"
clean = true
lease-ttl-s = 60
"""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(from_flags(FLAGS), id="flags"),
        pytest.param(from_environment(ENVIRON), id="environment"),
        pytest.param(from_toml(TOML, "x.toml"), id="file"),
    ],
)
def test_all_sources_say_the_same(settings: dict[str, Any]) -> None:
    assert {name: setting.value for name, setting in settings.items()} == VALUES


def test_an_address_or_network_can_be_a_list_of_one_in_the_environment() -> None:
    assert from_environment({"CANAL_IFACE": " eth0 , ,192.0.2.1 "})["iface"].value == ("eth0", "192.0.2.1")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("network", "10.3.0.1/16", "has host bits set"),
        ("network", "fd00::/48", "is not an IPv4 network"),
        ("network6", "10.3.0.0/16", "is not an IPv6 network"),
        ("encap", "vxlam", "'vxlam' is none of udp, vxlan, host-gw; did you mean vxlan?"),
        ("public_ip", "127.0.0.1", "is a loopback address"),
        ("public_ip", "0.0.0.0", "is the unspecified address"),
        ("host_ifname", "a-very-long-interface-name", "is not an interface name"),
        ("host_ifname", "../x", "is not an interface name"),
        ("iface_regex", "(", "is not a regular expression"),
        ("iface_can_reach", "x", "does not appear to be an IPv4 or IPv6 address"),
        ("vni", "16777216", "must be 0 to 16777215, not 16777216"),
        ("port", "-1", "must be 0 to 65535"),
        ("mtu", "1450.5", "is not a whole number"),
        ("mtu", "٣", "is not a whole number"),
        ("healthz_addr", "8080", "is not host:port"),
        ("healthz_addr", "::1:8080", "write an IPv6 address in brackets"),
        ("store", "/var/lib/x.db", "is not a store URL"),
        ("log_level", "loud", "is none of debug, info, warning, error"),
        ("lease_ttl_s", "1", "must be 2 to"),
    ],
)
def test_a_wrong_flag_or_variable_is_named(name: str, text: str, problem: str) -> None:
    flag, variable = f"--{name.replace('_', '-')}", f"CANAL_{name.upper()}"
    with pytest.raises(ConfigError) as caught:
        from_flags({name: [text] if name == "iface_regex" else text})
    assert str(caught.value).startswith(f"{flag}: ")
    assert problem in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        from_environment({variable: text})
    assert str(caught.value).startswith(f"{variable}: ")
    assert problem in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        pytest.param("\nmtu = 1400\nmtuu = 3\n", "f.toml:3: mtuu: ", "unknown key; did you mean mtu?", id="typo"),
        pytest.param("wibble = 3\n", "f.toml:1: wibble: ", "unknown key", id="nothing like it"),
        pytest.param("[daemon]\nmtu = 3\n", "f.toml:1: daemon: ", "unknown key", id="a table"),
        pytest.param("a.b = 3\n", "f.toml:1: a: ", "unknown key", id="a dotted key"),
        pytest.param("\n\nmtu = \n", "f.toml:3: ", "Invalid value", id="not TOML"),
        pytest.param('mtu = "1400"\n', "f.toml:1: mtu: ", "must be a whole number", id="a string for a number"),
        pytest.param("mtu = true\n", "f.toml:1: mtu: ", "must be a whole number", id="a boolean for a number"),
        pytest.param("clean = 1\n", "f.toml:1: clean: ", "must be true or false", id="a number for a switch"),
        pytest.param("iface = [1]\n", "f.toml:1: iface: ", "must be a list of strings", id="numbers in a list"),
        pytest.param("network = 7\n", "f.toml:1: network: ", "must be a string", id="a number for a string"),
        pytest.param("# x\nmtu = 99999\n", "f.toml:2: mtu: ", "must be 0 to 65535", id="out of range"),
        pytest.param("ct-max = 99\nct_max = 98\n", "f.toml:2: ct_max: ", "given twice", id="two spellings"),
        pytest.param("mtu = 1\nmtu = 2\n", "f.toml:2: ", "Cannot overwrite a value", id="twice"),
        pytest.param("mtu = " + "[" * 5000, "f.toml", "recursion", id="deep"),
    ],
)
def test_a_wrong_file_is_named_with_line_and_field(text: str, where: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_toml(text, "f.toml")
    assert str(caught.value).startswith(where)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        pytest.param({"state_dir": "/x"}, "store", "sqlite:///x/canal.db", id="store lies in the state dir"),
        pytest.param({"run_dir": "/x"}, "subnet_file", Path("/x/subnet.env"), id="subnet.env in a run dir of our own"),
        pytest.param({"run_dir": "/x", "subnet_file": "/y"}, "subnet_file", Path("/y"), id="unless said"),
        pytest.param({"lease_ttl_s": "60"}, "lease_renew_margin_s", 20, id="short leases are renewed in time"),
    ],
)
def test_derived(flags: dict[str, str], field: str, value: object) -> None:
    assert getattr(combine(from_flags(flags)), field) == value


def test_margin_must_be_less_than_the_lease() -> None:
    with pytest.raises(ConfigError, match=r"--lease-renew-margin-s: lease_renew_margin_s: must be less than"):
        combine(from_flags({"lease_ttl_s": "60", "lease_renew_margin_s": "60"}))


def test_a_flag_that_changes_the_encapsulation_does_not_take_the_stored_port() -> None:
    stored = NetworkConfig.make(IPv4Network("10.3.0.0/16"), encap="vxlan", port=4789)
    assert with_network(combine(from_flags({"encap": "udp"})), stored).port == 0
    assert with_network(combine(from_flags({"encap": "vxlan"})), stored).port == 4789


def test_a_missing_file_is_an_error_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load({}, {}, tmp_path / "none.toml")
    monkeypatch.setattr("canal_udp.config.DEFAULT_FILE", tmp_path / "none.toml")
    assert load({}, {}) == DaemonConfig()


def test_a_file_that_anyone_may_write_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "canal.toml", "mtu = 1400\n")
    os.chmod(file, 0o666)
    with pytest.raises(ConfigError, match="anyone may write it"):
        load({}, {}, file)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"mtu = \x00"])
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "canal.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"canal\.toml"):
        load({}, {}, file)


@pytest.mark.parametrize(
    ("text", "listen"),
    [("127.0.0.1:1", ("127.0.0.1", 1)), (":8080", ("", 8080)), ("[::1]:8080", ("::1", 8080))],
)
def test_listen_address(text: str, listen: tuple[str, int]) -> None:
    assert parse_listen(text) == listen
