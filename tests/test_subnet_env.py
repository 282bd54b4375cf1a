"""subnet.env: the bytes that flannel writes, replaced at once, read back with flannel's leniency."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from canal_udp.control.subnet_env import SubnetEnv, previous_subnets, read, replace_file, sweep, write

V4 = (IPv4Network("10.42.0.0/16"), IPv4Network("10.42.5.0/24"))
V6 = (IPv6Network("2001:cafe:42::/56"), IPv6Network("2001:cafe:42:5::/64"))
TEXT4 = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\n"
TEXT6 = "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:5::1/64\n"
TAIL = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


@pytest.mark.parametrize(
    ("env", "text"),
    [
        pytest.param(SubnetEnv(*V4, None, None, 1450), TEXT4 + TAIL, id="IPv4 only"),
        pytest.param(SubnetEnv(None, None, *V6, 1450), TEXT6 + TAIL, id="IPv6 only"),
        pytest.param(SubnetEnv(*V4, *V6, 1450), TEXT4 + TEXT6 + TAIL, id="both"),
        pytest.param(
            SubnetEnv(*V4, None, None, 1472, ip_masq=True),
            TEXT4 + "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
            id="masquerading",
        ),
    ],
)
def test_text_is_flannels(env: SubnetEnv, text: str) -> None:
    assert env.text() == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(TEXT4 + TEXT6 + TAIL, (V4[1], V6[1]), id="what we write"),
        pytest.param('FLANNEL_SUBNET="10.42.5.1/24"\r\n', (V4[1], None), id="quoted, CRLF"),
        pytest.param("FLANNEL_SUBNET=10.42.5.1/24,10.42.6.1/24\n", (None, None), id="several count as none"),
        pytest.param("FLANNEL_SUBNET=10.42.5.1/33\n", (None, None), id="no CIDR"),
        pytest.param("FLANNEL_SUBNET=2001:db8::1/64\n", (None, None), id="the other family"),
        pytest.param("\0\x1b[2J=\n=\nFLANNEL_SUBNET\n", (None, None), id="garbage"),
        pytest.param("", (None, None), id="empty"),
    ],
)
def test_previous_subnets(text: str, found: tuple[object, object]) -> None:
    assert previous_subnets(text) == found


def test_write_makes_the_directory_and_ignores_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    before = os.umask(0o077)
    try:
        write(path, TEXT4 + TAIL)
    finally:
        os.umask(before)
    assert path.read_text() == TEXT4 + TAIL
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["subnet.env"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write(path, "old")
    (tmp_path / f".subnet.env.{os.getpid()}").symlink_to("/etc/passwd")  # someone's trap at the temporary name
    with pytest.raises(OSError):
        replace_file(path, b"new", 0o644)
    assert path.read_text() == "old"


def test_read_of_what_is_not_there(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == ""
    assert read(tmp_path) == ""


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    gone, ours, other = (tmp_path / name for name in (f".a.json.{2**22 + 1}", f".b.json.{os.getpid()}", ".c.json"))
    for path in (gone, ours, other):
        path.touch()
    sweep(tmp_path)
    assert (gone.exists(), ours.exists(), other.exists()) == (False, True, True)
