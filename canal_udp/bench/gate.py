"""The correctness gate: a system whose traffic is not right gets no figures, and neither does the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from canal_udp.bench.bed import Bed
from canal_udp.bench.measures import blast
from canal_udp.errors import BenchError
from canal_udp.lab import traffic

TRANSFER_BYTES = 16 << 20
CHECK_RATE, CHECK_S = 5000.0, 0.2
NOISE = {"martian"}  # neighbour discovery and the like, which every new interface sends
OVERLOAD = NOISE | {"tx_again"}  # a full queue is what a search for the highest rate looks for


def unexpected(before: Mapping[str, int], after: Mapping[str, int], expected: set[str]) -> dict[str, int]:
    """Drops of reasons that nothing we sent explains. Pure."""
    grown = {reason: count - before.get(reason, 0) for reason, count in after.items()}
    return {reason: count for reason, count in grown.items() if count and reason not in expected}


def check(bed: Bed) -> dict[str, Any]:
    """Data as sent, in both directions, TCP and UDP, without a drop. Call while awake. Raises BenchError."""
    before = bed.drops()
    name = f"{bed.system.name}, {bed.profile}"
    for ends in (bed.ends, bed.ends.turned()):
        if not traffic.transfer(ends.source, ends.target, ends.target_address, TRANSFER_BYTES).equal:
            raise BenchError(f"{name}: {TRANSFER_BYTES >> 20} MiB over TCP arrive changed (SHA-256 differs)")
        if blast(ends, CHECK_RATE, CHECK_S, "imix", check=True).received == 0:
            raise BenchError(f"{name}: no UDP packet arrives")
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


def check_end(bed: Bed, before: Mapping[str, int]) -> dict[str, int]:
    """After everything: drops by reason since `before`. Call while awake. Raises BenchError."""
    after = bed.drops()
    if found := unexpected(before, after, OVERLOAD):
        raise BenchError(f"{bed.system.name}, {bed.profile}: packets were dropped for no good reason: {found}")
    bed.check_conservation()
    return unexpected(before, after, set())
