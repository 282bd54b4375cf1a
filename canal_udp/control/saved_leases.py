"""Network config and leases as text in the state directory: what a daemon forwards by that starts without its store.

Structure  a line that says what this is, whose, and how many follow; then a line for each lease, our own first:
           [key, revision, created, expires_at, value]
Limits     what expired meanwhile is still there: only the store says what has expired (control/lease.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from canal_udp.control.lease import Lease, lease_value, read_lease
from canal_udp.control.network import NetworkConfig
from canal_udp.errors import ConfigError

FILE_NAME = "leases.jsonl"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedLeases:
    """What a daemon needs of a store to forward."""

    network: NetworkConfig
    own: Lease
    leases: tuple[Lease, ...]  # everybody's
    saved_at: float = 0.0  # unix seconds, for people


def dump(state: SavedLeases, store: str) -> Iterator[bytes]:
    """The lines of the file."""
    head = {"version": _VERSION, "store": store, "leases": len(state.leases), "saved_at": state.saved_at}
    yield _line({**head, "network": json.loads(state.network.to_json())})
    for lease in (state.own, *state.leases):
        yield _line([lease.key, lease.revision, lease.created, lease.expires_at, lease_value(lease)])


def load(content: bytes, source: str, store: str) -> SavedLeases | None:
    """The state of a file; None if it is about another store.

    Raises     ConfigError: half of the peers are not the peers.
    """
    try:
        head, *lines = map(json.loads, content.splitlines())
        if head["version"] != _VERSION:
            raise ConfigError(f"version {head['version']!a}; this program writes {_VERSION}", source=source)
        if head["store"] != store:
            return None
        if head["leases"] + 1 != len(lines):
            raise ConfigError(f"{len(lines)} leases of {head['leases'] + 1!a}", source=source)
        own, *leases = (_lease(*line) for line in lines)
        network = NetworkConfig.from_json(json.dumps(head["network"]))
        return SavedLeases(network, own, tuple(leases), float(head["saved_at"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"not the saved leases of a store: {error!r}", source=source) from error


def _lease(key: str, revision: int, created: int, expires_at: float | None, value: str) -> Lease:
    ends = None if expires_at is None else float(expires_at)
    return read_lease(str(key), str(value), revision=int(revision), created=int(created), expires_at=ends)


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
