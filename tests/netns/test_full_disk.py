"""A disk without space: what was there can be read, nothing is torn, and it goes on when there is space again."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from canal_udp.cni.ipam import Ipam
from canal_udp.control.lease import Lease
from canal_udp.control.sqlite_store import SqliteStore
from canal_udp.errors import AddressError, StoreUnavailable

LEASE = Lease(IPv4Network("10.1.1.0/24"), None, IPv4Address("192.0.2.1"))
DEADLINE_S = 30.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "canal-test", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def fill(disk: Path) -> Path:
    """Use up every byte; returns the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


async def put_many(store: SqliteStore) -> None:
    for n in range(1000):
        await store.put("endpoints", str(n), bytes(4000))


def allocate_many(ipam: Ipam) -> None:
    for n in range(10_000):
        ipam.allocate(f"pod{n}" * 50)


def test_the_store_on_a_full_disk(small_disk: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(DEADLINE_S):
            store = SqliteStore(small_disk / "canal.db")
            made = await store.create_lease(LEASE, 3600.0)
            ballast = fill(small_disk)
            with pytest.raises(StoreUnavailable, match="full"):
                await put_many(store)
            state = await store.list("endpoints")
            assert (await store.list_leases()).leases == (made,)
            ballast.unlink()
            await store.put("endpoints", "after", b"")
            assert len((await store.list("endpoints")).entries) == len(state.entries) + 1
            await store.close()

            again = SqliteStore(small_disk / "canal.db")
            assert (await again.list_leases()).leases == (made,)
            await again.close()

    asyncio.run(scenario())
    assert not list(small_disk.glob("*.corrupt-*"))


def test_a_store_that_begins_on_a_full_disk(small_disk: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(DEADLINE_S):
            ballast = fill(small_disk)
            store = SqliteStore(small_disk / "canal.db")
            with pytest.raises(StoreUnavailable):
                await store.create_lease(LEASE, None)
            ballast.unlink()
            assert (await store.create_lease(LEASE, None)).revision
            await store.close()

    asyncio.run(scenario())


def test_pod_addresses_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "ipam.json"
    ipam = Ipam(path, IPv4Network("10.1.0.0/16"), None)
    held = ipam.allocate("before")
    ballast = fill(small_disk)
    with pytest.raises(AddressError, match="No space left on device; nothing was changed"):
        allocate_many(ipam)
    before = Ipam(path, IPv4Network("10.1.0.0/16"), None).pool
    assert before == ipam.pool
    assert before.addresses("before") == held
    ballast.unlink()
    assert ipam.allocate("after")
