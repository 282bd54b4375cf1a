"""Where an etcd cluster is and who we are to it: a store URL, completed from etcdctl's environment. Pure.

Structure   etcd://host[:port][,host[:port]...][/prefix][?cacert=FILE&cert=FILE&key=FILE&user=NAME&password-file=FILE]
            etcds:// is the same with TLS; naming a certificate turns TLS on too. Without a prefix: flannel's.
Environment what the URL does not say: ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY, ETCDCTL_USER (name or name:password),
            ETCDCTL_PASSWORD.
Invariants  A URL never holds a password: it is seen in process lists, in `canal status` and in logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from canal_udp.errors import UsageError
from canal_udp.net import printable

SCHEMES = ("etcd", "etcds")
PORT = 2379
PREFIX = "/coreos.com/network"  # flanneld's -etcd-prefix
_WORDS = ("cacert", "cert", "key", "user", "password-file")
_VARIABLES = {"cacert": "ETCDCTL_CACERT", "cert": "ETCDCTL_CERT", "key": "ETCDCTL_KEY", "user": "ETCDCTL_USER"}


@dataclass(frozen=True, slots=True)
class EtcdUrl:
    """One cluster, as `parse` read it."""

    endpoints: tuple[tuple[str, int], ...]
    prefix: str = PREFIX  # of every key; no slash at its end
    tls: bool = False
    cacert: str = ""  # files; "" as cacert: those that the system trusts
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""


def parse(url: str, environ: Mapping[str, str]) -> EtcdUrl:
    """Read a store URL; UsageError says what is wrong with it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    if parts.scheme not in SCHEMES:
        raise _wrong(url, f"must begin with {' or '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if "@" in parts.netloc:
        raise UsageError("store URL: the user goes after the ? as user=NAME, the password into ETCDCTL_PASSWORD")
    words = {word: environ.get(variable, "") for word, variable in _VARIABLES.items()} | _query(url, parts)
    user, _, password = words["user"].partition(":")
    if bool(words["cert"]) != bool(words["key"]):
        raise _wrong(url, "cert and key go together")
    return EtcdUrl(
        endpoints=tuple(_endpoint(url, text) for text in parts.netloc.split(",")),
        prefix=_prefix(url, parts),
        tls=parts.scheme == "etcds" or bool(words["cacert"] or words["cert"]),
        cacert=words["cacert"],
        cert=words["cert"],
        key=words["key"],
        user=user,
        password=password or environ.get("ETCDCTL_PASSWORD", ""),
        password_file=words.get("password-file", ""),
    )


def _query(url: str, parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=20)
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    for word, value in pairs:
        if word not in _WORDS:
            raise _wrong(url, f"{printable(word)!r} is none of {', '.join(_WORDS)}")
        if word == "user" and ":" in value:
            raise UsageError("store URL: others see it; the password goes into ETCDCTL_PASSWORD or password-file=FILE")
    if parts.fragment:
        raise _wrong(url, "nothing goes after a #")
    return dict(pairs)


def _prefix(url: str, parts: SplitResult) -> str:
    prefix = unquote(parts.path).rstrip("/")
    if not prefix:
        return PREFIX
    if "//" in prefix or not prefix.isprintable():
        raise _wrong(url, f"{printable(prefix)!r} is no prefix of keys")
    return prefix


def _endpoint(url: str, text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", text, re.ASCII)
    port = int(match[2] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise _wrong(url, f"{printable(text)!r} is not host or host:port")
    return match[1].strip("[]"), port


def _wrong(url: str, problem: str) -> UsageError:
    return UsageError(f"store {printable(url)!r}: {problem}")
