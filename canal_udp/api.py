"""The daemon's socket: one JSON line with a request, one JSON line with its answer.

Structure  {"op": "attach", "netns": ...}  ->  {"ok": true, "result": ...}  or  {"ok": false, "error": text, "code": n}
Place      the client side (`call`) serves the commands, which must answer fast: nothing heavy is imported here.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canal_udp.errors import CanalError, DaemonUnreachable, RequestError

SOCKET_NAME = "api.sock"
REQUEST_MAX_BYTES = 1 << 20
DEFAULT_RUN_DIR = Path("/run/canal")
TIMEOUT_S = 30.0


def encode(message: Mapping[str, Any]) -> bytes:
    """Return one line. JSON escapes every control character, so a line is a line."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return what a line says.

    Raises     RequestError unless it is one JSON object.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {type(error).__name__}") from error
    if not isinstance(message, dict):
        raise RequestError("not a JSON object")
    return message


def success(result: object) -> dict[str, Any]:
    """Return the answer to a request that was done."""
    return {"ok": True, "result": result}


def failure(error: CanalError) -> dict[str, Any]:
    """Return the answer to a request that failed; `code` is the exit status for the command."""
    return {"ok": False, "error": str(error), "code": error.exit_status}


def call(run_dir: Path, op: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any) -> Any:
    """Ask the daemon at `run_dir` and return its result.

    Raises     DaemonUnreachable if none answers; RequestError, with its text, if it refuses.
    """
    path = run_dir / SOCKET_NAME
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(encode({"op": op, **arguments}))
            answer = _read_line(sock)
    except OSError as error:
        raise DaemonUnreachable(_why_not(path, error)) from error
    message = decode(answer)
    if message.get("ok") is True:
        return message.get("result")
    problem = RequestError(str(message.get("error", "the daemon gave no reason")))
    problem.exit_status = 2 if message.get("code") == 2 else 1
    raise problem


def _read_line(sock: socket.socket) -> bytes:
    parts = bytearray()
    while not parts.endswith(b"\n"):
        part = sock.recv(1 << 16)
        if not part:
            raise ConnectionResetError("the daemon closed the connection")
        parts += part
    return bytes(parts)


def _why_not(path: Path, error: OSError) -> str:
    hint = "is `canal daemon` running? (--run-dir says which)"
    if isinstance(error, PermissionError):
        hint = "run as root"
    elif isinstance(error, TimeoutError):
        hint = "it does not answer in time"
    return f"no daemon answers at {path}: {error.strerror or error}; {hint}"
