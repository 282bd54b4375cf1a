"""What flanneld was told -> what the daemon is told. Pure.

Structure   options ─► `daemon_config` ─► (network config read from the store) ─► `with_backend` ─► a daemon to run
Place       CANAL_* variables still count, below flanneld's own, for what flanneld has no flag for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from canal_udp.config import DaemonConfig, Netfilter, Setting, combine, from_environment, option
from canal_udp.control.network import NetworkConfig
from canal_udp.errors import CanalError, ConfigError
from canal_udp.flannel.flags import FLAGS, Options
from canal_udp.underlay import Underlay

MARGIN_MINUTES = range(1, 1440)
LEASE_TTL_S = 86400
RUN_DIR, STATE_DIR = Path("/run/canal"), Path("/var/lib/canal")
VERBOSE = 2  # -v from here on: every decision

# flanneld's flag -> the daemon's option, where both mean the same
_SAME = {
    "iface": "iface",
    "iface-regex": "iface_regex",
    "iface-can-reach": "iface_can_reach",
    "public-ip": "public_ip",
    "public-ipv6": "public_ip6",
    "subnet-file": "subnet_file",
}

LEASE_ONLY = ("alloc", "extension")  # a lease and subnet.env; others carry the packets

# backends that we do not have -> what to use instead
REFUSED: Mapping[str, str] = {
    "wireguard": "packets are not encrypted here; use vxlan below a WireGuard or IPsec link of the hosts themselves",
    "ipsec": "packets are not encrypted here; use vxlan below a WireGuard or IPsec link of the hosts themselves",
    "ipip": "use host-gw where all nodes share a link, else vxlan with DirectRouting",
    "tencent-vpc": "use vxlan, which needs no cloud account; alloc with routes of your own if the VPC shall route",
    "aws-vpc": "flannel removed it in v0.20; use vxlan, or alloc with routes of your own",
    "gce": "flannel removed it in v0.20; use vxlan, or alloc with routes of your own",
    "ali-vpc": "flannel removed it in v0.20; use vxlan, or alloc with routes of your own",
}


class BackendRefused(CanalError):
    """The network config asks for a backend that this program does not have."""


def daemon_config(options: Options, environ: Mapping[str, str]) -> DaemonConfig:
    """What holds whatever the network config says.

    Raises   ConfigError naming flanneld's flag.
    """
    if options.number("subnet-lease-renew-margin") not in MARGIN_MINUTES:
        raise ConfigError("Invalid subnet-lease-renew-margin option, out of acceptable range")
    if options.switch("kube-subnet-mgr") and not re.fullmatch(r"[+-]?\d+", environ.get("EVENT_QUEUE_DEPTH", "5000")):
        raise ConfigError("must be a whole number", source="EVENT_QUEUE_DEPTH")
    if options.number("iptables-resync") < 1:
        raise ConfigError("must be at least 1", source="-iptables-resync")
    settings = from_environment(environ)
    for flag, name in _SAME.items():
        if options.given(flag):
            settings[name] = _setting(options, flag, name)
    given: dict[str, Any] = {
        "ip_masq": options.switch("ip-masq"),
        "subnet_file": subnet_file(options),
        "lease_ttl_s": LEASE_TTL_S,
        "lease_renew_margin_s": 60 * options.number("subnet-lease-renew-margin"),
        "on_lease_lost": "stop",
        "log_level": "debug" if options.number("v") >= VERBOSE else "info",
    }
    for name, value in given.items():
        settings.setdefault(name, Setting(value, "flanneld"))
    if options.given("ip-masq"):
        settings["ip_masq"] = Setting(given["ip_masq"], "-ip-masq")
    for name, base in (("run_dir", RUN_DIR), ("state_dir", STATE_DIR)):
        settings.setdefault(name, Setting(base / _instance(options), "flanneld"))
    stores = {flag.name for flag in FLAGS if flag.name.startswith("etcd-")} | {"kube-subnet-mgr"}
    if "store" not in settings or any(options.given(name) for name in stores):
        settings["store"] = Setting(_store(options), "flanneld")
    netfilter = Netfilter(
        style="flannel-iptables",
        forward=options.switch("iptables-forward-rules"),
        random=not options.switch("ip-masq-fully-random-disable"),
        resync_s=options.number("iptables-resync"),
    )
    return replace(combine(settings), netfilter=netfilter, plain_lease=True)


def subnet_file(options: Options) -> Path:
    """Where subnet.env is."""
    return Path(options.text("subnet-file"))


def with_backend(config: DaemonConfig, network: NetworkConfig) -> DaemonConfig:
    """The same with what the backend decides: the encapsulation, and the device's name, which is flannel's.

    Raises   BackendRefused with the backend to use instead.
    """
    if network.nftables:
        config = replace(config, netfilter=replace(config.netfilter, style="flannel-nft"))
    if network.encap in LEASE_ONLY:
        return config
    names = {"udp": "flannel0", "vxlan": f"flannel.{network.vni}", "host-gw": config.host_ifname}
    if network.encap not in names:
        raise BackendRefused(refusal(network.encap))
    found = replace(config, encap=network.require_encap())
    if config.origin("host_ifname") == "default":
        found = replace(found, host_ifname=names[network.encap])
    origins = {**config.origins, "encap": "Backend.Type", "host_ifname": "Backend.Type"}
    return replace(found, origins=origins)


def check_underlay(network: NetworkConfig, underlay: Underlay) -> None:
    """Refuse what the backend cannot work with.

    Raises   BackendRefused, in flannel's words.
    """
    if network.encap == "host-gw" and (underlay.public_ip, underlay.public_ip6) != (underlay.bind, underlay.bind6):
        raise BackendRefused(
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, "
            "which is not supported by host-gw backend"
        )


def refusal(backend: str) -> str:
    """Why there is no such backend here, and what to use instead."""
    advice = REFUSED.get(backend)
    if advice is None:
        return f"unknown backend type: {backend}"
    return f"backend type {backend} is not supported: {advice}"


def _setting(options: Options, flag: str, name: str) -> Setting:
    try:
        if flag in ("iface", "iface-regex"):
            value: object = tuple(option(name).parse(text) for text in options.list(flag) if text)
        else:
            value = option(name).parse(options.text(flag)) if options.text(flag) else None
    except ValueError as error:
        raise ConfigError(str(error), source=f"-{flag}") from None
    return Setting(value, f"-{flag}")


def _instance(options: Options) -> str:
    """A name for the directories of one of several flannelds on a host: they differ in their subnet files."""
    if not options.given("subnet-file"):
        return "flanneld"
    return "flanneld-" + re.sub(r"[^A-Za-z0-9.-]+", "-", options.text("subnet-file").strip("/"))


def _store(options: Options) -> str:
    """The store's URL; the password is not in it, because URLs are shown."""
    if options.switch("kube-subnet-mgr"):
        return "kubernetes://"
    endpoints = [one.strip() for one in options.text("etcd-endpoints").split(",") if one.strip()]
    tls = {one.startswith("https://") for one in endpoints}
    if len(tls) != 1:
        raise ConfigError("name endpoints, all http:// or all https://", source="-etcd-endpoints")
    hosts = ",".join(re.sub(r"^https?://", "", one).rstrip("/") for one in endpoints)
    words = {"user": options.text("etcd-username")}
    if tls == {True}:
        files = {word: options.text(f"etcd-{word}file") for word in ("ca", "cert", "key")}
        words |= {"cacert": files["ca"], "cert": files["cert"], "key": files["key"]}
    query = urlencode({word: value for word, value in words.items() if value}, quote_via=quote, safe="/")
    scheme = "etcds" if tls == {True} else "etcd"
    return f"{scheme}://{hosts}{quote(_prefix(options))}{'?' if query else ''}{query}"


def _prefix(options: Options) -> str:
    return "/" + options.text("etcd-prefix").strip("/")


def remarks(options: Options) -> tuple[str, ...]:
    """What was said and changes nothing, for the log."""
    found = [*options.warnings, *options.moot]
    plain = options.text("etcd-endpoints").startswith("http://") and not options.switch("kube-subnet-mgr")
    if plain and any(options.given(f"etcd-{word}file") for word in ("ca", "cert", "key")):
        found.append("connecting to etcd with http, as the endpoint says: certificates are not used. This is insecure")
    return tuple(found)
