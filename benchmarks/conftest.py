"""What the benchmarks of stages share: one way to run a batch function, and no result without a check of its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest


class Stage(Protocol):
    def __call__(
        self,
        group: str,
        name: str,
        n: int,
        call: Callable[..., Any],
        check: Callable[[], str],
        fresh: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> None: ...


@pytest.fixture
def stage(benchmark: Any) -> Stage:
    """Measure `call`, which handles n packets or rows, then let `check` look at what the last one left.

    check   asserts, and says what it has compared.
    fresh   arguments for each call, made outside of the measured time: for calls that cannot be repeated.
    """

    def run(
        group: str,
        name: str,
        n: int,
        call: Callable[..., Any],
        check: Callable[[], str],
        fresh: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> None:
        if fresh is None:
            benchmark(call)
        else:
            benchmark.pedantic(call, setup=fresh, rounds=5)
        checked = check()
        ns = benchmark.stats.stats.median / n * 1e9
        extra = {"group": group, "name": name, "n": n, "ns_per_packet": ns, "packets_per_s": 1e9 / ns}
        benchmark.extra_info.update(extra, checked=checked)

    return run
