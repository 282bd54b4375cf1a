"""What supervisors ask: pages over HTTP (/healthz, /readyz, /metrics), and systemd's notify socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

REQUEST_MAX_BYTES = 8192
TIMEOUT_S = 5.0
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """A page: 200 or 503, and what it says."""

    ok: bool
    text: str
    kind: str = TEXT


Page = Callable[[str], Answer]  # takes what stands after the "?"


def health_pages(
    checks: Callable[[], Iterable[tuple[str, str]]], name: str = "canal", not_ready: str = "is not ready"
) -> dict[str, Page]:
    """/healthz: 200 while the loop turns. /readyz: 200 while all is as it should be, else 503 and why.

    Arguments  checks: what is looked at, with what is wrong about it, if anything is.
    """

    def ready(query: str) -> Answer:
        found = list(checks())
        problems = [problem for _, problem in found if problem]
        if "verbose" in query.split("&"):
            lines = [f"[-]{topic} failed: {problem}" if problem else f"[+]{topic} ok" for topic, problem in found]
            return Answer(not problems, "\n".join([*lines, f"readyz check {'failed' if problems else 'passed'}"]))
        if problems:
            return Answer(False, f"{name} {not_ready}: {'; '.join(problems)}")
        return Answer(True, f"{name} is ready")

    return {"/healthz": lambda query: Answer(True, f"{name} is running"), "/readyz": ready}


class PageServer:
    """Answers GET requests for a few pages, one request a connection."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
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
        path, _, query = words[1].decode("latin-1").partition("?")
        page = self._pages.get(path)
        if page is None:
            return _response("404 Not Found", "there are " + ", ".join(self._pages))
        answer = page(query)
        status = "200 OK" if answer.ok else "503 Service Unavailable"
        response = _response(status, answer.text, answer.kind)
        return response[: response.index(b"\r\n\r\n") + 4] if words[0] == b"HEAD" else response


def _response(status: str, text: str, kind: str = TEXT) -> bytes:
    body = (text if text.endswith("\n") else text + "\n").encode("utf-8", "backslashreplace")
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
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
