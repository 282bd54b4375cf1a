"""flanneld's options become the daemon's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from canal_udp.config import DaemonConfig
from canal_udp.control.network import NetworkConfig
from canal_udp.errors import ConfigError
from canal_udp.flannel.flags import read
from canal_udp.flannel.plan import REFUSED, BackendRefused, daemon_config, remarks, with_backend


def config(*words: str, **environ: str) -> DaemonConfig:
    return daemon_config(read(words, environ), environ)


@pytest.mark.parametrize(
    ("words", "name", "wanted"),
    [
        ("-iface eth1 -iface 192.0.2.1", "iface", ("eth1", "192.0.2.1")),
        ("-iface-regex ^en", "iface_regex", ("^en",)),
        ("-iface-can-reach 192.0.2.1", "iface_can_reach", "192.0.2.1"),
        ("-public-ip 192.0.2.7", "public_ip", IPv4Address("192.0.2.7")),
        ("-public-ipv6 2001:db8::7", "public_ip6", IPv6Address("2001:db8::7")),
        ("", "subnet_file", Path("/run/flannel/subnet.env")),
        ("-subnet-file /vxlan.env", "subnet_file", Path("/vxlan.env")),
        ("", "lease_renew_margin_s", 3600),
        ("-subnet-lease-renew-margin 1439", "lease_renew_margin_s", 86340),
        ("", "lease_ttl_s", 86400),
        ("", "log_level", "info"),
        ("-v 10", "log_level", "debug"),
        ("", "run_dir", Path("/run/canal/flanneld")),
        ("-subnet-file /run/a/x.env", "run_dir", Path("/run/canal/flanneld-run-a-x.env")),
        ("-subnet-file /run/a/x.env", "state_dir", Path("/var/lib/canal/flanneld-run-a-x.env")),
        ("", "store", "etcd://127.0.0.1:4001,127.0.0.1:2379/coreos.com/network"),
        ("-etcd-endpoints http://a:1,http://b:2/ -etcd-prefix /x/", "store", "etcd://a:1,b:2/x"),
        (
            "-etcd-endpoints https://a:1 -etcd-cafile /ca -etcd-certfile /c -etcd-keyfile /k -etcd-username u",
            "store",
            "etcds://a:1/coreos.com/network?user=u&cacert=/ca&cert=/c&key=/k",
        ),
        ("-etcd-endpoints http://a:1 -etcd-cafile /ca", "store", "etcd://a:1/coreos.com/network"),
        ("-kube-subnet-mgr", "store", "kubernetes://"),
    ],
)
def test_what_a_flag_means(words: str, name: str, wanted: Any) -> None:
    assert getattr(config(*words.split()), name) == wanted


@pytest.mark.parametrize(
    ("words", "environ", "problem"),
    [
        ("-subnet-lease-renew-margin 0", {}, "Invalid subnet-lease-renew-margin option, out of acceptable range"),
        ("-subnet-lease-renew-margin 1440", {}, "Invalid subnet-lease-renew-margin option, out of acceptable range"),
        ("-public-ip x", {}, "-public-ip: "),
        ("-public-ip ::1", {}, "-public-ip: ::1 is not an IPv4 address"),
        ("-iface-regex (", {}, "-iface-regex: "),
        ("-etcd-endpoints http://a:1,https://b:2", {}, "-etcd-endpoints: name endpoints, all http:// or all https://"),
        ("-kube-subnet-mgr", {"EVENT_QUEUE_DEPTH": "many"}, "EVENT_QUEUE_DEPTH: must be a whole number"),
    ],
)
def test_what_stops_the_start(words: str, environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*words.split(), **environ)
    assert str(caught.value).startswith(problem)


def test_our_own_variables_fill_in() -> None:
    """What flanneld has no flag for; and another store, unless flanneld's own flags name one."""
    store = {"CANAL_STORE": "sqlite:///x", "CANAL_IFACE": "eth9", "CANAL_CT_MAX": "1000"}
    found = config("-iface", "eth1", **store)
    assert (found.store, found.iface, found.ct_max) == ("sqlite:///x", ("eth1",), 1000)
    assert config("-etcd-prefix", "/x", **store).store.startswith("etcd://")
    assert config(FLANNELD_ETCD_PREFIX="/x", **store).store.startswith("etcd://")


@pytest.mark.parametrize(
    ("backend", "ifname", "encap"),
    [
        ('"Backend": {"Type": "udp"}', "flannel0", "udp"),
        ('"EnableIPv6": false', "flannel0", "udp"),
        ('"Backend": {"Type": "vxlan"}', "flannel.1", "vxlan"),
        ('"Backend": {"Type": "VXLAN", "VNI": 4097}', "flannel.4097", "vxlan"),
    ],
)
def test_devices_have_flannels_names(backend: str, ifname: str, encap: str) -> None:
    network = NetworkConfig.from_json(f'{{"Network": "10.3.0.0/16", {backend}}}')
    found = with_backend(config(), network)
    assert (found.host_ifname, found.encap) == (ifname, encap)
    assert with_backend(config(CANAL_HOST_IFNAME="mine"), network).host_ifname == "mine"


@pytest.mark.parametrize("backend", [*REFUSED, "", "nonsense"])
def test_a_backend_that_is_not_here_says_what_to_use(backend: str) -> None:
    network = NetworkConfig.from_json(f'{{"Network": "10.3.0.0/16", "Backend": {{"Type": "{backend}"}}}}')
    with pytest.raises(BackendRefused, match=f"{backend} is not supported: .*use |unknown backend type: {backend}$"):
        with_backend(config(), network)


def test_certificates_at_a_plain_end_point_are_not_used() -> None:
    assert "insecure" in remarks(read(["-etcd-endpoints", "http://a:1", "-etcd-certfile", "/c"], {}))[0]
    assert remarks(read(["-etcd-endpoints", "https://a:1", "-etcd-certfile", "/c"], {})) == ()
