"""A Unix socket of the daemon: who may connect, and how it begins and ends.

Invariants   Only root and the daemon's own user are served (SO_PEERCRED; the socket is 0600 too). A client that is too
             slow, too long or gone costs its own connection only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from canal_udp.logs import event

LOG = logging.getLogger("canal.api")
BACKLOG = 1024  # hundreds of pods start at once after a reboot

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """A socket, and the function that serves each of its clients."""

    def __init__(self, name: str, limit_bytes: int, serve: Serve) -> None:
        self._name, self._limit_bytes, self._serve_one = name, limit_bytes, serve
        self._server: asyncio.AbstractServer | None = None
        self._path: Path | None = None

    async def start(self, run_dir: Path) -> None:
        """Listen; a socket that a killed daemon left is replaced (the run directory is ours alone)."""
        path = self._path = run_dir / self._name
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, str(path), limit=self._limit_bytes, backlog=BACKLOG
            )
        finally:
            os.umask(mask)

    async def stop(self) -> None:
        """Stop listening, and leave no socket behind."""
        if self._server is not None and self._path is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _permitted(writer.get_extra_info("socket")):
                await self._serve_one(reader, writer)
        except (TimeoutError, OSError, EOFError, ValueError) as error:  # ValueError: beyond the limit
            event(LOG, "debug", "client.left", socket=self._name, reason=error)
        finally:
            writer.close()


def _permitted(sock: socket.socket) -> bool:
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    return uid in {0, os.geteuid()}
