"""What supervisors ask: /healthz and /readyz over HTTP, and systemd's notify socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

REQUEST_MAX_BYTES = 8192
TIMEOUT_S = 5.0


class HealthServer:
    """GET /healthz: 200 while the loop turns. GET /readyz: 200 while all is as it should be, else 503 and why."""

    def __init__(self, problems: Callable[[], tuple[str, ...]]) -> None:
        self._problems = problems
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen at host:port; an empty host means every address."""
        self._server = await asyncio.start_server(self._serve, host or None, port, limit=REQUEST_MAX_BYTES)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that does not speak HTTP, or left
        finally:
            writer.close()

    def _answer(self, request_line: bytes) -> bytes:
        words = request_line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", "not a request")
        if words[0] not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", "only GET")
        path = words[1].split(b"?", 1)[0]
        if path == b"/healthz":
            return _response("200 OK", "canal is running")
        if path == b"/readyz":
            problems = self._problems()
            if problems:
                return _response("503 Service Unavailable", "canal is not ready: " + "; ".join(problems))
            return _response("200 OK", "canal is ready")
        return _response("404 Not Found", "there are /healthz and /readyz")


def _response(status: str, text: str) -> bytes:
    body = text.encode("utf-8", "backslashreplace") + b"\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode("ascii") + body


def sd_notify(message: str) -> None:
    """Tell systemd, if it started us and wants to know (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message.encode("utf-8"), address)
        except OSError:
            return  # a supervisor that does not listen is no reason to stop
