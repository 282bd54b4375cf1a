"""Store URLs of etcd, and what etcdctl's environment adds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from canal_udp.control.etcd_url import EtcdUrl, parse
from canal_udp.errors import UsageError

HOST = (("h", 2379),)

GOOD = [
    pytest.param("etcd://h", {}, EtcdUrl(HOST), id="flannel's prefix and etcd's port"),
    pytest.param("etcd://h/", {}, EtcdUrl(HOST), id="a bare slash is no prefix"),
    pytest.param("etcd://h:1/a/b/", {}, EtcdUrl((("h", 1),), "/a/b"), id="a slash at the end of the prefix goes"),
    pytest.param(
        "etcd://a,10.0.0.1:2,[fd00::1]:3,[::1]",
        {},
        EtcdUrl((("a", 2379), ("10.0.0.1", 2), ("fd00::1", 3), ("::1", 2379))),
        id="several endpoints",
    ),
    pytest.param("etcds://h", {}, EtcdUrl(HOST, tls=True), id="TLS with the system's roots"),
    pytest.param("etcd://h?cacert=/ca", {}, EtcdUrl(HOST, tls=True, cacert="/ca"), id="a certificate turns TLS on"),
    pytest.param(
        "etcd://h/p?cert=/c&key=/k&user=u&password-file=/p",
        {},
        EtcdUrl(HOST, "/p", True, "", "/c", "/k", "u", "", "/p"),
        id="everything",
    ),
    pytest.param(
        "etcd://h",
        {"ETCDCTL_CACERT": "/ca", "ETCDCTL_CERT": "/c", "ETCDCTL_KEY": "/k"},
        EtcdUrl(HOST, tls=True, cacert="/ca", cert="/c", key="/k"),
        id="etcdctl's files",
    ),
    pytest.param(
        "etcd://h",
        {"ETCDCTL_USER": "u:p:q"},
        EtcdUrl(HOST, user="u", password="p:q"),
        id="etcdctl's user with password",
    ),
    pytest.param(
        "etcd://h",
        {"ETCDCTL_USER": "u", "ETCDCTL_PASSWORD": "p"},
        EtcdUrl(HOST, user="u", password="p"),
        id="etcdctl's password",
    ),
    pytest.param(
        "etcd://h?user=v", {"ETCDCTL_USER": "u:p"}, EtcdUrl(HOST, user="v"), id="the URL goes before the environment"
    ),
]

BAD = [
    pytest.param("etcd://", "is not host", id="no host"),
    pytest.param("etcd://h:0", "is not host", id="port 0"),
    pytest.param("etcd://h:65536", "is not host", id="port too large"),
    pytest.param("etcd://h,", "is not host", id="an empty endpoint"),
    pytest.param("etcd://h x", "is not host", id="a space"),
    pytest.param("etcd://[::1", "Invalid IPv6", id="a bracket that does not close"),
    pytest.param("etcd://u:p@h", "user=NAME", id="user information"),
    pytest.param("etcd://h?user=u:secret", "ETCDCTL_PASSWORD", id="a password in the query"),
    pytest.param("etcd://h?ca=/x", "'ca' is none of cacert", id="an unknown word"),
    pytest.param("etcd://h?cert=/c", "go together", id="a certificate without key"),
    pytest.param("etcd://h?cert", "bad query field", id="a word without value"),
    pytest.param("etcd://h/a//b", "no prefix", id="an empty part of the prefix"),
    pytest.param("etcd://h/a%0Ab", "no prefix", id="a line break in the prefix"),
    pytest.param("etcd://h/p#x", "after a #", id="a fragment"),
    pytest.param("http://h", "must begin with etcd://", id="another scheme"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "environ", "expected"), GOOD)
def test_good(url: str, environ: dict[str, str], expected: EtcdUrl) -> None:
    assert parse(url, environ) == expected


@pytest.mark.parametrize(("url", "problem"), BAD)
def test_bad(url: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        parse(url, {})
    assert "secret" not in str(caught.value)


def test_no_password_is_shown() -> None:
    assert "hunter2" not in repr(parse("etcd://h?user=u", {"ETCDCTL_PASSWORD": "hunter2"}))


def test_other_stores_do_not_load_the_client() -> None:
    code = "import sys; from canal_udp.control.store import open_store as o; o('memory://x'); o('sqlite:///x'); "
    code += "print('grpclib' in sys.modules or 'google.protobuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
