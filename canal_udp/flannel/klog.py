"""Log lines as flanneld writes them, so that what people grep for is found: I0629 14:28:35.866793    5522 x.py:38] text

Structure  an event that flanneld has a sentence for is told in it (`LINES`); any other by its name and fields.
Source     klog v2 (level, month and day, time, id, file, line); flannel main.go, pkg/ipmatch, pkg/subnet/etcd.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network

_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "F"}

Fields = Mapping[str, object]
Line = Callable[[Fields], str]


class Formatter(logging.Formatter):
    """Writes a record; `previous` is the subnet that subnet.env had at the start."""

    def __init__(self, previous: IPv4Network | IPv6Network | None = None) -> None:
        super().__init__()
        self._previous = str(previous)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or several: flanneld says some things in two sentences."""
        time = datetime.fromtimestamp(record.created)
        head = f"{_LETTERS.get(record.levelno, 'I')}{time:%m%d %H:%M:%S.%f} {record.process or 0:7d}"
        head += f" {record.filename}:{record.lineno}] "
        texts = self._texts(record)
        if record.exc_info:
            texts = [*texts[:-1], f"{texts[-1]}\n{self.formatException(record.exc_info)}"]
        return "\n".join(head + text for text in texts)

    def _texts(self, record: logging.LogRecord) -> list[str]:
        name, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        lines = LINES.get(name)
        if lines is None:
            return [record.getMessage()]
        texts = [line(fields) for line in lines]
        if name == "lease.held" and fields["new"] and str(fields["subnet"]) == self._previous:
            texts.insert(0, f"Found previously leased subnet ({self._previous}), reusing")
        return texts


def _held(fields: Fields) -> str:
    what = f"(ip: {fields['subnet']} ipv6: {fields['subnet6'] or '::/0'})"
    if fields["new"]:
        return f"Allocated lease {what} to current node ({fields['public_ip']})"
    return f"Found lease {what} for current IP ({fields['public_ip']}), reusing"


def _time(unix_s: object) -> str:
    """As Go prints a time; a reservation does not end."""
    return (
        f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S.%f +0000 UTC}"
        if isinstance(unix_s, float)
        else "never"
    )


LINES: Mapping[str, tuple[Line, ...]] = {
    "underlay.chosen": (lambda f: f"Using interface with name {f['iface']} and address {f['public_ip']}",),
    "lease.held": (_held,),
    "lease.renewed": (lambda f: f"Lease renewed, new expiration: {_time(f['expires_at'])}",),
    "lease.lost": (lambda f: f"{f['reason']}", lambda f: "Lease has been revoked. Shutting down daemon."),
    "daemon.ready": (lambda f: f"Wrote subnet file to {f['subnet_file']}", lambda f: "Running backend."),
}
