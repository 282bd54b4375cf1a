"""What a takeover would do, in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from canal_udp.flannel.survey import Device, Process, Survey, steps

MAC = "c6:d2:32:6f:8f:01"
NOTHING = Survey((), (), (), {}, Path("/run/flannel/subnet.env"))


def told(*words: str, devices: tuple[Device, ...] = (), **environ: str) -> str:
    process = Process(77, ("/opt/bin/flanneld", *words), environ)
    env = {"FLANNEL_SUBNET": "10.244.1.1/24"}
    return "\n".join(steps(Survey((process,), devices, ("nft table ip flannel-ipv4",), env, Path("/s.env"))))


def test_nothing_is_there() -> None:
    assert steps(NOTHING) == ["nothing of flannel is on this host: canal-flanneld would start like a new node"]


def test_a_node_of_flannels() -> None:
    text = told("-iface=eth0", devices=(Device("flannel.1", "vxlan", MAC),), FLANNELD_ETCD_PREFIX="/x")
    for sentence in (
        "stop flanneld first (process 77)",
        "start canal-flanneld -iface=eth0",
        "its store is etcd://127.0.0.1:4001,127.0.0.1:2379/x",
        "it would keep the subnet 10.244.1.1/24 (/s.env)",
        f"it would take over flannel.1: keep its MAC {MAC}",
        "it would replace nft table ip flannel-ipv4 as one transaction",
    ):
        assert sentence in text


@pytest.mark.parametrize("words", [["-etcd-password=sesame"], ["--etcd-password", "sesame"]])
def test_the_password_is_not_shown(words: list[str]) -> None:
    text = told("-etcd-username", "u", *words, "-v", "1")
    assert "sesame" not in text and "-etcd-username u" in text and "-v 1" in text


def test_a_command_line_that_is_refused_says_why() -> None:
    assert "its command line is not accepted: flag provided but not defined: -networks" in told("-networks=a")


def test_other_devices() -> None:
    text = told(devices=(Device("flannel0", "tun", ""), Device("flannel-wg", "wireguard", "")))
    assert "flannel0 is a TUN" in text and "it would leave flannel-wg (wireguard) alone" in text
