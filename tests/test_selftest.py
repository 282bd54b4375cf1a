"""The offload self-test: what it says on this kernel, and that it notices a kernel that lies."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from canal_udp.tunnel import selftest
from canal_udp.tunnel.selftest import Offloads


@pytest.mark.parametrize(
    ("gso", "gro", "mode"),
    [(True, True, "gso+gro"), (True, False, "gso"), (False, True, "gro"), (False, False, "single")],
)
def test_mode_is_one_word(gso: bool, gro: bool, mode: str) -> None:
    assert Offloads(gso, gro, 1, "").mode == mode


def test_this_kernel() -> None:
    """Whatever it can do, the answer is consistent and says why."""
    found = selftest.test_here()
    assert found.reason
    assert found.segments_max in ({64, 128} if found.udp_gso else {1})
    assert ("passed" in found.reason) == (found.udp_gso and found.udp_gro)


class _Lying(socket.socket):
    """A kernel that takes the option and then mangles."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(size, flags)[:-1]

    def recvmsg(self, size: int, ancillary: int = 0, flags: int = 0) -> Any:
        data, _, message_flags, address = super().recvmsg(size, ancillary, flags)
        return data, [], message_flags, address


def test_mangled_datagrams_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.socket, "socket", _Lying)
    found = selftest.test_here()
    assert not found.udp_gso
    assert "mangles" in found.reason or "fails" in found.reason
    assert found.segments_max == 1


def test_a_joined_datagram_without_its_size_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    if not selftest.test_here().udp_gro:
        pytest.skip("kernel: no UDP_GRO")
    monkeypatch.setattr(_Lying, "recv", socket.socket.recv)
    monkeypatch.setattr(selftest.socket, "socket", _Lying)
    found = selftest.test_here()
    assert found.udp_gso
    assert not found.udp_gro
    assert "segment size" in found.reason


def test_a_kernel_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_UDP_SEGMENT", 9999)
    found = selftest.test_here()
    assert not found.udp_gso
    assert found.segments_max == 1
