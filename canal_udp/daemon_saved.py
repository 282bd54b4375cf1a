"""The leases' file in the state directory: written a moment after every change, read by a daemon without its store.

Threads    the loop's; the file is written by a thread of its own, so that 5,000 leases stop nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from canal_udp.control import saved_leases
from canal_udp.control.saved_leases import SavedLeases
from canal_udp.control.subnet_env import replace_file
from canal_udp.errors import ConfigError
from canal_udp.logs import event

LOG = logging.getLogger("canal.lease")
SAVE_S = 1.0  # from a change to the file ...
SAVE_REST = 20  # ... and a pause of so many times as long as writing it took


class LeasesFile:
    """See the module's docstring. `content` gives what is to be in it, None while there is nothing to keep."""

    def __init__(self, state_dir: Path, store: str, content: Callable[[], SavedLeases | None]) -> None:
        self._path, self._store, self._content = state_dir / saved_leases.FILE_NAME, store, content
        self._changed = asyncio.Event()
        self._problem = ""

    def notice(self) -> None:
        """Write it soon."""
        self._changed.set()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(SAVE_S)
            self._changed.clear()
            began = time.monotonic()
            await asyncio.to_thread(self._write, self._content())
            if self._problem:
                self._changed.set()
            await asyncio.sleep(SAVE_REST * (time.monotonic() - began))

    def close(self) -> None:
        """Leave the last state to the next daemon."""
        if self._changed.is_set():
            self._write(self._content())

    def remove(self) -> None:
        """This node is leaving."""
        self._changed.clear()
        self._path.unlink(missing_ok=True)

    def load(self) -> SavedLeases | None:
        """What an earlier daemon knew last; None when that is nothing of this store."""
        try:
            return saved_leases.load(self._path.read_bytes(), str(self._path), self._store)
        except FileNotFoundError:
            return None
        except (ConfigError, OSError) as error:
            event(LOG, "error", "leases.unreadable", reason=error)
            return None

    def _write(self, state: SavedLeases | None) -> None:
        """thread: any, one at a time."""
        if state is None:
            return
        before, self._problem = self._problem, ""
        try:
            replace_file(self._path, b"".join(saved_leases.dump(state, self._store)), 0o600)
        except OSError as error:
            self._problem = f"{self._path}: {error.strerror or error}"
        if self._problem and self._problem != before:
            event(LOG, "warning", "leases.not_saved", reason=self._problem)
