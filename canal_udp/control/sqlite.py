"""The SQLite file behind `SqliteStore`: opening it safely, and the writes that several processes race for.

Place       one Database per process and file, used by one thread.
Structure   entries(kind, key) -> value, created, revision, deadline, expires_at      what is
            log(revision)      -> kind, key, value or NULL when gone                  how it came about, bounded
            state              -> revision, compacted (changes up to there are forgotten), clock, ticked
Revisions   A new file starts at the milliseconds since 1970, so that no revision of a file that was here before means
            anything in it: who resumes from one gets a snapshot.
Expiry      Deadlines are on a clock of the file's own that every process moves on by what it saw pass on the monotonic
            clock since the last tick: at most the real time, at most STEP_MAX_S at once, nothing for the time while
            nobody was looking, never by the wall clock. So a wall clock that jumps, a machine that was suspended or
            switched off, or a time namespace takes no lease from anyone who could not have renewed it (etcd does
            likewise: leases start anew with a new leader). Whoever sees a lease past its deadline deletes it.
Faults      A file that SQLite cannot read is moved aside as <file>.corrupt-<time> and a new one begun, under a lock on
            its directory, so that two processes never move each other's; a process that holds a replaced file notices
            it by the inode. A full disk, a lock, a read-only file system: StoreUnavailable, nothing was written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from canal_udp.control.store import Batch, Entry, Gone, Snapshot
from canal_udp.errors import StoreConflict, StoreError, StoreUnavailable
from canal_udp.net import printable

log = logging.getLogger("canal.store")

APPLICATION_ID = 0x43414E4C  # "CANL"
SCHEMA_VERSION = 1
BUSY_S = 5.0
LOG_MAX = 10_000  # changes kept for watchers that lag
TICK_S = 5.0  # write the lease clock at least that often while someone watches
STEP_MAX_S = 15.0  # the most that the lease clock moves at once

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE state (
    revision INTEGER NOT NULL, compacted INTEGER NOT NULL, clock REAL NOT NULL, ticked REAL NOT NULL
) STRICT;
CREATE TABLE entries (
    kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL,
    deadline REAL, expires_at REAL, PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX entries_deadline ON entries (deadline) WHERE deadline IS NOT NULL;
CREATE TABLE log (
    revision INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB, created INTEGER NOT NULL,
    expires_at REAL, expired INTEGER NOT NULL
) STRICT;
"""


class Database:
    """thread: the store's."""

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.path, self._clock, self._wall = path, clock, wall
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._data_version = -1  # of the last look
        self._swept = False  # something expired since the last look
        self._ticked = -1.0  # state.ticked as last seen ...
        self._ticked_at = 0.0  # ... and when that was first seen, on this process's clock

    # ---- reading and writing ----

    def snapshot(self, kind: str) -> Snapshot:
        with self._transaction() as db:
            return self._snapshot(db, kind)

    def put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        with self._transaction(write=True) as db:
            old = self._expected(db, kind, key, expect)
            revision = self._next_revision(db)
            deadline = None if ttl_s is None else self._lease_clock(db) + ttl_s
            expires_at = None if ttl_s is None else self._wall() + ttl_s
            entry = Entry(key, value, revision, old[1] if old else revision, expires_at)
            db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
                (kind, key, value, entry.created, revision, deadline, expires_at),
            )
            self._record(db, kind, entry)
            return entry

    def delete(self, kind: str, key: str, expect: int | None) -> bool:
        with self._transaction(write=True) as db:
            if self._expected(db, kind, key, expect) is None:
                return False
            self._remove(db, kind, key, expired=False)
            return True

    def changes(self, kind: str, after: int) -> Snapshot | Batch:
        """What happened after a revision; everything, when that is no longer or not yet known."""
        with self._transaction() as db:
            revision, compacted = db.execute("SELECT revision, compacted FROM state").fetchone()
            if not compacted <= after <= revision:
                return self._snapshot(db, kind)
            rows = db.execute(
                "SELECT key, value, revision, created, expires_at, expired FROM log"
                " WHERE revision > ? AND kind = ? ORDER BY revision",
                (after, kind),
            )
            return Batch(revision, tuple(_change(*row) for row in rows))

    def look(self) -> bool:
        """Did anyone else change the file, or did something expire, since the last look? Cheap."""
        db = self._connected()
        self._sweep(db)
        with self._faults():
            (version,) = db.execute("PRAGMA data_version").fetchone()
        changed = self._swept or version != self._data_version
        self._data_version, self._swept = version, False
        return bool(changed)

    def compact(self) -> None:
        with self._transaction(write=True) as db:
            self._compact(db, self._revision(db))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with self._faults():
                connection.close()

    # ---- inside a transaction ----

    def _snapshot(self, db: sqlite3.Connection, kind: str) -> Snapshot:
        rows = db.execute(
            "SELECT key, value, revision, created, expires_at FROM entries WHERE kind = ? ORDER BY key", (kind,)
        )
        return Snapshot(self._revision(db), tuple(Entry(*row) for row in rows))

    def _expected(self, db: sqlite3.Connection, kind: str, key: str, expect: int | None) -> tuple[int, int] | None:
        row: tuple[int, int] | None = db.execute(
            "SELECT revision, created FROM entries WHERE kind = ? AND key = ?", (kind, key)
        ).fetchone()
        found = row[0] if row else 0
        if expect is not None and expect != found:
            raise StoreConflict(f"{kind}/{printable(key)} is at revision {found}, not {expect}")
        return row

    def _revision(self, db: sqlite3.Connection) -> int:
        revision: int = db.execute("SELECT revision FROM state").fetchone()[0]
        return revision

    def _next_revision(self, db: sqlite3.Connection) -> int:
        db.execute("UPDATE state SET revision = revision + 1")
        return self._revision(db)

    def _record(self, db: sqlite3.Connection, kind: str, change: Entry | Gone) -> None:
        insert = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)"
        match change:
            case Entry(key, value, revision, created, expires_at):
                db.execute(insert, (revision, kind, key, value, created, expires_at, 0))
            case Gone(key, revision, expired):
                db.execute(insert, (revision, kind, key, None, 0, None, int(expired)))
        (compacted,) = db.execute("SELECT compacted FROM state").fetchone()
        if change.revision - compacted > LOG_MAX + LOG_MAX // 10:
            self._compact(db, change.revision - LOG_MAX)

    def _compact(self, db: sqlite3.Connection, revision: int) -> None:
        db.execute("DELETE FROM log WHERE revision <= ?", (revision,))
        db.execute("UPDATE state SET compacted = ?", (revision,))

    def _remove(self, db: sqlite3.Connection, kind: str, key: str, *, expired: bool) -> None:
        db.execute("DELETE FROM entries WHERE kind = ? AND key = ?", (kind, key))
        self._record(db, kind, Gone(key, self._next_revision(db), expired))

    # ---- the lease clock ----

    def _lease_clock(self, db: sqlite3.Connection) -> float:
        clock, ticked = db.execute("SELECT clock, ticked FROM state").fetchone()
        now = self._clock()
        if ticked != self._ticked:
            self._ticked, self._ticked_at = ticked, now
        passed: float = max(0.0, min(now - ticked, now - self._ticked_at, STEP_MAX_S))
        return float(clock) + passed

    def _tick(self, db: sqlite3.Connection) -> float:
        clock = self._lease_clock(db)
        self._ticked = self._ticked_at = self._clock()
        db.execute("UPDATE state SET clock = ?, ticked = ?", (clock, self._ticked))
        return clock

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Delete what expired, and keep the lease clock going."""
        with self._faults():
            (first,) = db.execute("SELECT min(deadline) FROM entries").fetchone()
            if first is None or (self._lease_clock(db) < first and self._clock() - self._ticked_at < TICK_S):
                return
        with self._begun(db, write=True):
            expired = db.execute(
                "SELECT kind, key FROM entries WHERE deadline <= ? ORDER BY deadline, key", (self._tick(db),)
            ).fetchall()
            for kind, key in expired:
                self._remove(db, kind, key, expired=True)
        for kind, key in expired:
            log.info("store.expired kind=%s key=%s", kind, printable(key))
            self._swept = True
        if expired:
            self._touch()

    # ---- the file ----

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        self._sweep_if_possible()
        db = self._connected()
        with self._begun(db, write=write):
            if write:
                self._tick(db)
            yield db
        if write:
            self._touch()

    def _touch(self) -> None:
        """Have those who watch the folder look now (control/sqlite_store.py); opens nothing, so no lock is dropped."""
        try:
            os.utime(self.path)
        except OSError as error:  # it is written; they find it by themselves, later
            log.debug("store.touch failed: %s", error)

    def _sweep_if_possible(self) -> None:
        try:
            self._sweep(self._connected())
        except StoreUnavailable as error:  # a full disk keeps nobody from reading; who can write will sweep
            log.debug("store.sweep failed: %s", error)

    @contextmanager
    def _begun(self, db: sqlite3.Connection, *, write: bool) -> Iterator[None]:
        with self._faults():
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _is_corrupt(error) and self._connection is not None:
                self._connection.close()
                self._connection = None  # the next call opens the file again, and moves it aside
            raise StoreUnavailable(f"{self.path}: {error}") from None
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror or error}") from None

    def _connected(self) -> sqlite3.Connection:
        with self._faults():
            if self._connection is not None and _inode(self.path) != self._inode:
                log.warning("store.replaced path=%s", self.path)
                self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = self._open()
                self._inode = _inode(self.path)
                self._data_version = -1
            return self._connection

    def _open(self) -> sqlite3.Connection:
        directory = self.path.parent
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _make_private(self.path)
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._move_aside(str(error))
            _make_private(self.path)
            return self._connect()
        finally:
            os.close(lock)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            db.text_factory = lambda raw: raw.decode(errors="replace")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _Corrupt(verdict)
            self._check_schema(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check_schema(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables and not application:
            start = int(self._wall() * 1000)
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} INSERT INTO state VALUES ({start}, {start}, 0, 0); COMMIT;")
            log.info("store.created path=%s", self.path)
        elif application != APPLICATION_ID:
            raise StoreError(f"{self.path}: a SQLite file of another program")
        elif version != SCHEMA_VERSION:
            raise StoreError(f"{self.path}: made by another version of Canal (format {version}, not {SCHEMA_VERSION})")

    def _move_aside(self, problem: str) -> None:
        aside = f"{self.path}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(self._wall()))}"
        while os.path.lexists(aside):
            aside += "x"
        for suffix in ("", "-wal", "-shm"):
            if os.path.lexists(f"{self.path}{suffix}"):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
        log.error("store.corrupt path=%s moved_to=%s problem=%r", self.path, aside, printable(problem))


class _Corrupt(sqlite3.DatabaseError):
    """quick_check found damage."""


def _change(
    key: str, value: bytes | None, revision: int, created: int, expires_at: float | None, expired: int
) -> Entry | Gone:
    if value is None:
        return Gone(key, revision, bool(expired))
    return Entry(key, value, revision, created, expires_at)


def _is_corrupt(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, _Corrupt) or (code is not None and code & 0xFF in damaged)


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return -1


def _make_private(path: Path) -> None:
    """Create the file, or take from others the right to read it. A symbolic link is refused.

    A file that exists is never opened here: closing it would drop the locks that another connection of this process
    holds on it (POSIX locks belong to the process), and SQLite would corrupt the file.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        return
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path}: not a regular file")
    if stat.S_IMODE(mode) != 0o600:
        os.chmod(path, 0o600)
