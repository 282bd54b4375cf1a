"""Log lines: an event's name, then key=value; text of others is escaped, so one event is one line."""

from __future__ import annotations

import logging
import re

_PLAIN = re.compile(r"[A-Za-z0-9_.,:;/@+=&%*()\[\]{}<>|~^!?#$-]+")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_VALUE_MAX = 500


def setup(level: str) -> None:
    """Log to stderr; with a time unless the journal adds its own."""
    logging.basicConfig(level=_LEVELS[level], format="%(asctime)s %(levelname).1s %(name)s %(message)s", force=True)


def event(logger: logging.Logger, level: str, name: str, /, **fields: object) -> None:
    """Log one event."""
    number = _LEVELS[level]
    if logger.isEnabledFor(number):
        text = " ".join([name, *(f"{key}={quoted(value)}" for key, value in fields.items())])
        logger.log(number, "%s", text, extra={"event": name, "fields": fields}, stacklevel=2)


def quoted(value: object) -> str:
    """Return a value as it stands in a log line: bare if it is one plain word, else in quotes and escaped."""
    text = str(value)
    text = text if len(text) <= _VALUE_MAX else text[:_VALUE_MAX] + "..."
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in escaped)
    return f'"{safe}"'
