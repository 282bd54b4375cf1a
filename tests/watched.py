"""What a watch of a store brought, collected while a test goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Watched:
    """What a watch brought so far."""

    updates: list[Any]
    task: asyncio.Task[None]

    @property
    def changes(self) -> list[Any]:
        return [change for update in self.updates for change in getattr(update, "changes", ())]

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self.task.done():
                self.task.result()
                raise AssertionError(f"the watch ended; it brought {self.updates}")
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watching(updates: AsyncIterator[Any]) -> AsyncIterator[Watched]:
    got: list[Any] = []

    async def collect() -> None:
        async for update in updates:
            got.append(update)  # noqa: PERF401 - what came before a fault must be there

    task = asyncio.create_task(collect())
    try:
        yield Watched(got, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
