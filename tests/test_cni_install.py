"""canal cni install, uninstall, gc: what is put where, in which order, and what is collected."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from canal_udp.__main__ import main
from canal_udp.cni.conflist import CHAINABLE, conflist
from canal_udp.cni.install import OURS, cached_attachments, install_binary
from canal_udp.errors import UsageError
from tests.test_daemon_cni import Runtime


@pytest.fixture
def runtime(tmp_path: Path, request: pytest.FixtureRequest) -> Runtime:
    return Runtime(tmp_path, f"{request.node.name}-{tmp_path.name}")


def dirs(runtime: Runtime, tmp_path: Path) -> list[str]:
    runs = ["--run-dir", str(runtime.config.run_dir)]
    return ["--conf-dir", str(tmp_path / "net.d"), "--bin-dir", str(tmp_path / "bin"), *runs]


def listing(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): oct(path.stat().st_mode & 0o7777) for path in folder.rglob("*.*")}


def test_alone_it_speaks_every_version_and_in_a_chain_those_of_others() -> None:
    alone = json.loads(conflist("canal"))
    assert alone["cniVersions"] == ["0.4.0", "1.0.0", "1.1.0"]
    assert alone["plugins"] == [
        {"type": "canal-cni", "capabilities": {"dns": True, "ipRanges": True, "ips": True, "mac": True}}
    ]
    chained = json.loads(conflist("canal", ["portmap", "tuning"]))
    assert "cniVersions" not in chained and chained["cniVersion"] == "1.0.0"
    assert chained["plugins"][1:] == [{"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "tuning"}]


def test_install_and_uninstall(runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = dirs(runtime, tmp_path)
    mask = os.umask(0o077)
    try:

        async def work() -> None:
            for _ in range(2):
                assert await asyncio.to_thread(main, ["cni", "install", *where]) == 0

        runtime.run(work)
    finally:
        os.umask(mask)
    assert (tmp_path / "bin" / "canal-cni").read_bytes() == OURS.read_bytes()
    assert (tmp_path / "bin" / "canal-cni").stat().st_mode & 0o7777 == 0o755
    assert listing(tmp_path / "net.d") == {"10-canal.conflist": "0o644"}
    assert (tmp_path / "net.d" / "10-canal.conflist").read_text() == conflist("canal")
    for _ in range(2):
        assert main(["cni", "uninstall", *where[:4]]) == 0
    assert list((tmp_path / "bin").iterdir()) == list((tmp_path / "net.d").iterdir()) == []


def test_no_configuration_without_a_daemon(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = dirs(runtime, tmp_path)
    assert main(["cni", "install", *where, "--wait-s", "0"]) == 1
    assert "no daemon answers" in capsys.readouterr().err
    assert (tmp_path / "bin" / "canal-cni").exists() and not (tmp_path / "net.d").exists()
    assert main(["cni", "install", *where, "--binary-only"]) == 0


def test_what_a_chain_needs_is_looked_for_first(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cni", "install", *dirs(runtime, tmp_path), "--chain", "portmap"]) == 1
    assert "has no portmap" in capsys.readouterr().err
    assert not (tmp_path / "bin").exists()
    assert "portmap" in CHAINABLE


def test_a_running_executable_is_replaced(tmp_path: Path) -> None:
    install_binary(tmp_path)
    before = (tmp_path / "canal-cni").stat().st_ino
    install_binary(tmp_path)
    assert (tmp_path / "canal-cni").stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["canal-cni"]


def test_the_daemon_writes_the_configuration_once_it_forwards(runtime: Runtime, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = tmp_path / "net.d"
    runtime.config = replace(runtime.config, cni_conf_dir=folder, cni_chain=("portmap",), clean=True)

    async def work() -> None:
        await runtime.until((folder / "10-canal.conflist").exists)
        assert (folder / "10-canal.conflist").read_text() == conflist("canal", ["portmap"])
        assert runtime.plane.published

    runtime.run(work)
    assert list(folder.iterdir()) == []


def entry(folder: Path, container: str, **changes: Any) -> None:
    (folder / "results").mkdir(exist_ok=True)
    known = {"kind": "cniCacheV1", "networkName": "canal", "containerId": container, "ifName": "eth0"}
    (folder / "results" / f"canal-{container}-eth0").write_text(json.dumps(known | changes))


def test_gc(runtime: Runtime, tmp_path: Path) -> None:
    entry(tmp_path, "c2")
    entry(tmp_path, "c9", kind="other")

    async def work() -> None:
        runtime.host.namespaces |= {"/run/netns/c": 3, "/run/netns/d": 4}
        for container, space in (("c1", "a"), ("c2", "b"), ("c3", "c")):
            await runtime.add(container, f"/run/netns/{space}")
        await runtime.ask("attach", netns="d")
        runtime.spool("1700000000.000000001-7", runtime.message("DEL"))
        runtime.host.namespaces["/run/netns/c"] = 33
        assert await runtime.ask("cni_gc") == ["default/c3"]
        assert set(runtime.taken) == {"default/c2", "default/d"}
        valid = await asyncio.to_thread(cached_attachments, tmp_path)
        assert valid == [("canal", "c2", "eth0")]
        await runtime.add("c4", "/run/netns/a")
        assert await runtime.ask("cni_gc", valid=valid) == ["default/c4"]
        assert set(runtime.taken) == {"default/c2", "default/d"}

    runtime.run(work)


def test_a_cache_that_is_none_collects_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no directory"):
        cached_attachments(tmp_path)
    entry(tmp_path, "c1")
    (tmp_path / "results" / "x").write_text("{")
    with pytest.raises(UsageError, match="is no entry of libcni's cache"):
        cached_attachments(tmp_path)
