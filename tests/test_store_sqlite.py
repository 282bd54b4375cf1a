"""What only the SQLite store promises: its file, its lease clock, and other processes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import reduce
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from watched import watching

import canal_udp.control.sqlite as backend
import canal_udp.control.sqlite_store as sqlite_store
from canal_udp.control.lease import Lease
from canal_udp.control.memory import MemoryStore
from canal_udp.control.sqlite_store import POLL_S, SqliteStore
from canal_udp.control.store import Batch, LeaseBatch, LeaseSnapshot, Snapshot, open_store
from canal_udp.errors import StoreError, StoreUnavailable, UsageError

LEASE = Lease(IPv4Network("10.1.1.0/24"), None, IPv4Address("192.0.2.1"))
DEADLINE_S = 20.0


class Clock:
    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(bounded())


def filled(path: Path) -> None:
    """A closed file with one lease in it."""

    async def fill() -> None:
        store = SqliteStore(path)
        await store.create_lease(LEASE, None)
        await store.close()

    run(fill)


# ---- URLs ------------------------------------------------------------------------------------------------------------


def test_open_store(tmp_path: Path) -> None:
    assert isinstance(open_store(f"sqlite://{tmp_path}/x.db"), SqliteStore)
    assert isinstance(open_store("memory://x"), MemoryStore)
    assert os.listdir(tmp_path) == []  # nothing happens before the first call


@pytest.mark.parametrize(
    "url", ["", "sqlite://", "sqlite://x.db", "sqlite:///", "postgres://x", "/var/lib/x.db", "\x1b://"]
)
def test_not_a_store(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert str(caught.value).isprintable()


def test_memory_stores_of_one_name_share_their_content() -> None:
    async def scenario() -> None:
        one, two, other = open_store("memory://a"), open_store("memory://a"), open_store("memory://b")
        await one.put_network("{}")
        assert (await two.get_network())[0] == "{}"
        assert await other.get_network() == (None, 0)

    run(scenario)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "canal.db"

    def look() -> None:
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["canal.db", "canal.db-shm", "canal.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    async def scenario() -> None:
        store = SqliteStore(path)
        await store.create_lease(LEASE, None)
        look()
        await store.close()

    old = os.umask(0)
    try:
        run(scenario)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "canal.db"
    filled(path)
    path.chmod(0o644)
    filled_again = SqliteStore(path)
    run(lambda: read_and_close(filled_again))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def read_and_close(store: SqliteStore) -> None:
    assert len((await store.list_leases()).leases) == 1
    await store.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 5000)


def truncated(path: Path) -> None:
    os.truncate(path, 5000)


def short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


def hole(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [garbage, truncated, short, hole], ids=lambda damage: str(damage.__name__))
def test_a_corrupt_file_is_moved_aside_and_said_so(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "canal.db"
    filled(path)
    damage(path)
    corrupt = path.read_bytes()

    async def scenario() -> None:
        stores = [SqliteStore(path) for _ in range(3)]  # all at once: one moves it, the others find the new file
        snapshots = await asyncio.gather(*(store.list_leases() for store in stores))
        assert [snapshot.leases for snapshot in snapshots] == [()] * 3
        await stores[0].create_lease(LEASE, None)
        assert len((await stores[1].list_leases()).leases) == 1
        for store in stores:
            await store.close()

    run(scenario)
    (aside,) = tmp_path.glob("canal.db.corrupt-*")
    assert aside.read_bytes() == corrupt
    assert f"moved_to={aside}" in caplog.text


def test_a_file_that_is_damaged_while_open_heals_at_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "canal.db"
    filled(path)
    inode = path.stat().st_ino

    async def scenario() -> None:
        store, other = SqliteStore(path), SqliteStore(path)
        state = await store.list_leases()
        async with watching(persistent(store, state.revision)) as watched:
            overwrite(path)
            assert (await other.list_leases()).leases == ()
            made = await other.create_lease(LEASE, None)
            await watched.until(lambda: reduce(LeaseSnapshot.apply, watched.updates, state).leases == (made,))
            assert (await store.list_leases()).leases == (made,)
        await other.close()
        await store.close()

    run(scenario)
    assert path.stat().st_ino != inode
    assert len(list(tmp_path.glob("*.corrupt-????????T??????"))) == 1


def overwrite(path: Path) -> None:
    """In place, as a failing disk does."""
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


async def persistent(store: SqliteStore, after: int) -> AsyncIterator[LeaseSnapshot | LeaseBatch]:
    """Watch as a daemon does: a broken watch is begun anew from where it was."""
    while True:
        try:
            async for update in store.watch_leases(after):
                yield update
                after = update.revision
        except StoreUnavailable:
            await asyncio.sleep(0.01)


def test_a_file_that_is_deleted_while_open_begins_anew_and_watchers_get_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "canal.db"

    async def scenario() -> None:
        store = SqliteStore(path)
        made = await store.create_lease(LEASE, None)
        updates = store.watch_leases(made.revision)
        pending = asyncio.ensure_future(anext(updates))
        await asyncio.sleep(0)
        empty(tmp_path)
        snapshot = await pending
        assert isinstance(snapshot, LeaseSnapshot)
        assert snapshot.leases == ()
        assert snapshot.revision > made.revision
        await updates.aclose()  # type: ignore[attr-defined]
        await store.close()

    run(scenario)


def empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


@pytest.mark.parametrize("kind", ["symlink", "directory", "other program", "newer version"])
def test_what_is_not_ours_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "canal.db", tmp_path / "target"
    match kind:
        case "symlink":
            target.write_bytes(b"precious")
            path.symlink_to(target)
        case "directory":
            path.mkdir()
        case "other program":
            with sqlite3.connect(path) as db:
                db.execute("CREATE TABLE precious (x)")
        case "newer version":
            filled(path)
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 99")

    async def scenario() -> None:
        store = SqliteStore(path)
        with pytest.raises(StoreError, match=r"canal\.db: "):
            await store.list_leases()
        await store.close()

    run(scenario)
    assert not list(tmp_path.glob("*corrupt*"))
    if kind == "symlink":
        assert target.read_bytes() == b"precious"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def scenario() -> None:
        store = SqliteStore(tmp_path / "file" / "canal.db")
        with pytest.raises(StoreUnavailable):
            await store.list_leases()
        await store.close()

    run(scenario)


def test_the_log_is_bounded_and_who_lags_gets_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "LOG_MAX", 20)

    async def scenario() -> None:
        store = SqliteStore(tmp_path / "canal.db")
        first = await store.put("endpoints", "x", b"0")
        for n in range(100):
            last = await store.put("endpoints", "x", str(n).encode())
        behind, ahead = store.watch("endpoints", first), store.watch("endpoints", last - 5)
        assert isinstance(await anext(behind), Snapshot)
        update = await anext(ahead)
        assert isinstance(update, Batch)
        assert len(update.changes) == 5
        with sqlite3.connect(tmp_path / "canal.db") as db:
            (kept,) = db.execute("SELECT count(*) FROM log").fetchone()
        assert kept <= 22
        await store.close()

    run(scenario)


# ---- the lease clock -------------------------------------------------------------------------------------------------

TTL_S = 100.0


@pytest.mark.parametrize(
    ("mono_s", "wall_s"),
    [
        pytest.param(0, 86400, id="wall clock a day ahead"),
        pytest.param(0, -86400, id="wall clock a day back"),
        pytest.param(3600, 3600, id="an hour during which nobody looked: suspended, stopped, or switched off"),
        pytest.param(-900, 3600, id="rebooted: the monotonic clock began anew"),
    ],
)
def test_no_lease_expires_because_a_clock_jumped(tmp_path: Path, mono_s: float, wall_s: float) -> None:
    async def scenario() -> None:
        clock, wall = Clock(1000.0), Clock(1.7e9)
        store = SqliteStore(tmp_path / "canal.db", clock=clock, wall=wall)
        made = await store.create_lease(LEASE, TTL_S)
        clock.now_s += mono_s
        wall.now_s += wall_s
        for reader in (store, SqliteStore(tmp_path / "canal.db", clock=clock, wall=wall)):
            assert (await reader.list_leases()).leases == (made,)
            await reader.close()

    run(scenario)


def test_a_lease_lives_as_long_as_someone_sees_time_pass(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock(1000.0)
        store = SqliteStore(tmp_path / "canal.db", clock=clock)
        await store.create_lease(LEASE, TTL_S)
        for second in range(1, int(TTL_S)):
            clock.now_s = 1000.0 + second
            assert (await store.list_leases()).leases, f"gone after {second} s"
        clock.now_s = 1000.0 + TTL_S
        assert (await store.list_leases()).leases == ()
        await store.close()

    run(scenario)


def test_processes_in_other_time_namespaces_do_not_make_time_go_faster(tmp_path: Path) -> None:
    async def scenario() -> None:
        clocks = [Clock(1000.0), Clock(1e6), Clock(5.0)]
        stores = [SqliteStore(tmp_path / "canal.db", clock=clock) for clock in clocks]
        await stores[0].create_lease(LEASE, TTL_S)
        for second in range(1, int(TTL_S)):
            for clock in clocks:
                clock.now_s += 1
            for store in stores:
                assert (await store.list_leases()).leases, f"gone after {second} s"
        for _ in range(3 * int(TTL_S)):  # and it does go on
            for clock in clocks:
                clock.now_s += 1
            for store in stores:
                left = (await store.list_leases()).leases
            if not left:
                break
        assert left == ()
        for store in stores:
            await store.close()

    run(scenario)


# ---- other processes -------------------------------------------------------------------------------------------------

WATCHER = """
import asyncio, json, sys
from canal_udp.control.store import open_store
async def main():
    store = open_store(sys.argv[1])
    after = (await store.list_leases()).revision
    print(json.dumps("ready"), flush=True)
    async for update in store.watch_leases(after):
        for change in update.changes:
            print(json.dumps([type(change).__name__, change.key, change.revision]), flush=True)
asyncio.run(main())
"""

RACER = """
import asyncio, random, sys
from ipaddress import IPv4Address
from canal_udp.control.acquire import Claim, Previous, acquire
from canal_udp.control.network import NetworkConfig
from canal_udp.control.store import open_store
from canal_udp.errors import LeaseError
async def main(url, first, count):
    network = NetworkConfig.from_json('{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.0","SubnetMax":"10.1.20.0"}')
    store = open_store(url)
    async def node(n):
        claim = Claim(IPv4Address((192 << 24) | n))
        try:
            print((await acquire(store, claim, network, Previous(), 3600.0, random.Random(n))).key)
        except LeaseError as error:
            print(error)
    await asyncio.gather(*(node(n) for n in range(first, first + count)))
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def child(code: str, *args: object) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ}
    )


def test_another_process_sees_changes(tmp_path: Path) -> None:
    path = tmp_path / "canal.db"
    process = child(WATCHER, f"sqlite://{path}")

    async def scenario() -> None:
        store = SqliteStore(path)
        assert await heard() == "ready"
        for _ in range(5):
            made = await store.create_lease(LEASE, None)
            assert await heard() == ["Lease", made.key, made.revision]
            await store.delete_lease(made)
            kind, key, revision = await heard()
            assert (kind, key, revision > made.revision) == ("Gone", made.key, True)
        await store.close()

    async def heard() -> Any:
        assert process.stdout is not None
        return json.loads(await asyncio.to_thread(process.stdout.readline))

    try:
        run(scenario)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("inotify", [True, False], ids=["announced", "polled"])
def test_how_changes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inotify: bool) -> None:
    """At once where files announce their changes: the slow look is as good as off here. Else within two polls."""

    def none_left(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "no watches left")

    monkeypatch.setattr(sqlite_store, "POLL_S" if inotify else "QUIET_S", 1e6)
    if inotify:
        monkeypatch.setattr(sqlite_store, "QUIET_S", 1e6)
    else:
        monkeypatch.setattr(sqlite_store, "FolderWatch", none_left)

    async def scenario() -> None:
        mine, other = SqliteStore(tmp_path / "canal.db"), SqliteStore(tmp_path / "canal.db")
        after = (await mine.list_leases()).revision
        async with watching(mine.watch_leases(after)) as watched:
            for number in range(1, 6):
                made = await other.create_lease(LEASE, None)
                await watched.until(lambda number=number: len(watched.changes) == 2 * number - 1)  # type: ignore[misc]
                await other.delete_lease(made)
                await watched.until(lambda number=number: len(watched.changes) == 2 * number)  # type: ignore[misc]
        await mine.close()
        await other.close()

    run(scenario)
    assert 2 * POLL_S <= 0.1  # what is promised, on a machine that has time for both


def test_a_watch_outlives_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone moves it away with the file in it; the store begins anew, and so does listening."""
    monkeypatch.setattr(sqlite_store, "QUIET_S", 1e6)
    folder = tmp_path / "store.d"

    async def scenario() -> None:
        mine, other = SqliteStore(folder / "canal.db"), SqliteStore(folder / "canal.db")
        async with watching(mine.watch_leases((await mine.list_leases()).revision)) as watched:
            await other.create_lease(LEASE, None)
            await watched.until(lambda: watched.changes)
            folder.rename(tmp_path / "gone")
            await watched.until(lambda: len(watched.updates) == 2)  # all is gone: everything anew
            made = await other.create_lease(LEASE, None)
            await watched.until(lambda: watched.changes[-1].revision == made.revision)
        await mine.close()
        await other.close()

    run(scenario)


def test_processes_race_for_subnets(tmp_path: Path) -> None:
    processes = [child(RACER, f"sqlite://{tmp_path}/canal.db", first, 10) for first in (0, 10, 20, 30)]
    lines = [line for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * 4
    won = [line for line in lines if line.endswith("-24")]
    assert sorted(won) == sorted(f"10.1.{n}.0-24" for n in range(1, 21))
    assert len(lines) - len(won) == 20
    assert all("out of subnets" in line for line in lines if line not in won)


def test_a_process_killed_while_it_writes_leaves_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "canal.db"
    code = (
        "import asyncio, sys\nfrom canal_udp.control.store import open_store\nasync def main():\n"
        " store = open_store(sys.argv[1])\n while True:\n"
        "  print(await store.put('endpoints', 'x', b'y' * 3000), flush=True)\n"
        "asyncio.run(main())\n"
    )
    for _ in range(3):
        process = child(code, f"sqlite://{path}")
        assert process.stdout is not None
        for _ in range(20):
            written = int(process.stdout.readline())
        process.kill()
        rest = process.communicate()[0].split("\n")[:-1]  # the last line may be torn, the file may not
        written = int(rest[-1]) if rest else written

        async def scenario(written: int = written) -> None:
            store = SqliteStore(path)
            snapshot = await store.list("endpoints")
            assert snapshot.revision >= written
            assert snapshot.entries[0].value == b"y" * 3000
            await store.close()

        run(scenario)
    assert not list(tmp_path.glob("*corrupt*"))
