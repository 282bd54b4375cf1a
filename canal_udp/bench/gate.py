"""The correctness gate: a system whose traffic is not right gets no figures, and neither does the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from canal_udp.bench.bed import Bed, Ends
from canal_udp.bench.measures import background, blast, ping_pong
from canal_udp.errors import BenchError, LabError
from canal_udp.lab import traffic

TRANSFER_BYTES = 16 << 20
CHECK_RATE, CHECK_S = 5000.0, 0.2
UNLIMITED = 0.0
NOISE = {"martian"}  # neighbour discovery and the like, which every new interface sends
OVERLOAD = NOISE | {"tx_again"}  # a full queue is what a search for the highest rate looks for


def unexpected(before: Mapping[str, int], after: Mapping[str, int], expected: set[str]) -> dict[str, int]:
    """Drops of reasons that nothing we sent explains. Pure."""
    grown = {reason: count - before.get(reason, 0) for reason, count in after.items()}
    return {reason: count for reason, count in grown.items() if count and reason not in expected}


def check(bed: Bed) -> dict[str, Any]:
    """Data as sent, in both directions, TCP and UDP, without a drop. Call while awake. Raises BenchError."""
    name, before = f"{bed.system.name}, {bed.profile}", bed.drops()
    try:
        _exchange(bed.ends)
    except (BenchError, LabError) as error:
        raise BenchError(f"{name} is not correct: {error}") from error
    if found := unexpected(before, bed.drops(), NOISE):
        raise BenchError(f"{name}: packets were dropped during the check: {found}")
    bed.check_conservation()
    return {
        "profile": bed.profile,
        "system": bed.system.name,
        "sha256": "equal",
        "bytes": 2 * TRANSFER_BYTES,
        "modes": bed.modes(),
    }


def _exchange(both: Ends) -> None:
    for ends in (both, both.turned()):
        if not traffic.transfer(ends.source, ends.target, ends.target_address, TRANSFER_BYTES).equal:
            raise BenchError(f"{TRANSFER_BYTES >> 20} MiB over TCP arrive changed (SHA-256 differs)")
        if blast(ends, CHECK_RATE, CHECK_S, "imix", check=True).received == 0:
            raise BenchError("no UDP packet arrives")
    with background(both, UNLIMITED, CHECK_S):  # flows beside each other, whose packets share batches and datagrams
        for way in ("tcp", "udp"):
            ping_pong(both, way, CHECK_S)


def check_end(bed: Bed, before: Mapping[str, int]) -> dict[str, int]:
    """After everything: drops by reason since `before`. Call while awake. Raises BenchError."""
    after = bed.drops()
    if found := unexpected(before, after, OVERLOAD):
        raise BenchError(f"{bed.system.name}, {bed.profile}: packets were dropped for no good reason: {found}")
    bed.check_conservation()
    return unexpected(before, after, set())
