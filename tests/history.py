"""What clients of a store asked and were told, checked against a model: a register per key, in the order of revisions.

Place       `Recorded` goes between a client and its store; `check` is for the end of the test, when all is quiet.
Model       Every write that succeeded has a revision of its own, and revisions order all of them. Replayed in that
            order each must have found what it compared with; who began after another had ended is later in it.
            A list shows exactly what the writes up to its revision left; a conflict is true at some moment of its call;
            a watch brings every write after its start once, in order.
Limits      nothing expires and nothing is compacted while it records.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from canal_udp.control.store import Batch, Entry, Gone, Snapshot, TypedStore
from canal_udp.errors import StoreConflict


@dataclass
class Call:
    """One call; `began` and `ended` are places in the order in which things happened to the test."""

    what: str
    key: str
    expect: int | None
    value: bytes
    began: int
    ended: int = 0
    result: Any = None


@dataclass
class History:
    calls: list[Call] = field(default_factory=list)
    watched: list[list[Entry | Gone]] = field(default_factory=list)
    ticks: itertools.count[int] = field(default_factory=itertools.count)

    def check(self, kind_start: Snapshot, told: str = "") -> None:
        """Fail unless the model explains everything."""
        state = {entry.key: entry for entry in kind_start.entries}
        states = {kind_start.revision: dict(state)}
        latest = -1  # the latest begin among what is earlier in the order
        done = [call for call in self.calls if call.what != "list" and not isinstance(call.result, StoreConflict)]
        assert all(call.result is not None for call in self.calls), f"{told}: calls without an answer"
        written = sorted((call for call in done if call.result[0]), key=lambda call: call.result[0])
        for call in written:
            revision, entry = call.result
            assert revision not in states, f"{told}: revision {revision} twice"
            found = state[call.key].revision if call.key in state else 0
            assert call.expect is None or call.expect == found, f"{told}: {call} found {found}"
            assert latest < call.ended, f"{told}: {call} is before what began after it had ended"
            latest = max(latest, call.began)
            if call.what == "put":
                created = state[call.key].created if call.key in state else revision
                assert (entry.created, entry.value) == (created, call.value), f"{told}: {call}"
                state[call.key] = entry
            else:
                del state[call.key]
            states[revision] = dict(state)
        self._check_lists(states, told)
        self._check_conflicts(states, told)
        order = [(call.key, call.result[0], call.value) for call in written]
        for changes in self.watched:
            seen = [(one.key, one.revision, one.value if isinstance(one, Entry) else b"") for one in changes]
            assert seen == order, f"{told}: a watch brought {seen}, written was {order}"

    def _check_lists(self, states: dict[int, dict[str, Entry]], told: str) -> None:
        for call in self.calls:
            if call.what == "list":
                revision = max(one for one in states if one <= call.result.revision)
                assert {entry.key: entry for entry in call.result.entries} == states[revision], f"{told}: {call}"

    def _check_conflicts(self, states: dict[int, dict[str, Entry]], told: str) -> None:
        """A refused call needs a moment, between what had ended before it and what began after it, that refuses it."""
        ends = [(call.ended, call.began, call.result[0]) for call in self.calls if isinstance(call.result, tuple)]
        for call in self.calls:
            if not isinstance(call.result, StoreConflict):
                continue
            low = max((revision for ended, _, revision in ends if revision and ended < call.began), default=0)
            high = min((revision for _, began, revision in ends if revision and began > call.ended), default=2**63)
            low = max((revision for revision in states if revision <= low), default=min(states))
            moments = [state for revision, state in states.items() if low <= revision < high]
            found = [state[call.key].revision if call.key in state else 0 for state in moments]
            assert any(revision != call.expect for revision in found), f"{told}: {call} was no conflict"


class Recorded(TypedStore):
    """A store's client that writes down what it does to one kind."""

    def __init__(self, store: TypedStore, history: History) -> None:
        self._store, self._history = store, history

    async def _list(self, kind: str) -> Snapshot:
        call = self._begin("list", "", None, b"")
        call.result = await self._store._list(kind)
        call.ended = next(self._history.ticks)
        found: Snapshot = call.result
        return found

    async def _put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        call = self._begin("put", key, expect, value)
        try:
            entry = await self._store._put(kind, key, value, expect, ttl_s)
        except StoreConflict as error:
            call.result = error
            raise
        finally:
            call.ended = next(self._history.ticks)
        call.result = (entry.revision, entry)
        return entry

    async def _delete(self, kind: str, key: str, expect: int | None) -> bool:
        """A delete is not told its revision: it is what the next watch event of the key says (`deletions`)."""
        call = self._begin("delete", key, expect, b"")
        try:
            there = await self._store._delete(kind, key, expect)
        except StoreConflict as error:
            call.result = error
            raise
        finally:
            call.ended = next(self._history.ticks)
        call.result = (-1 if there else 0, None)
        return there

    async def _watch(self, kind: str, after: int) -> AsyncIterator[Batch | Snapshot]:
        async for update in self._store._watch(kind, after):
            yield update

    async def close(self) -> None:
        await self._store.close()

    def _begin(self, what: str, key: str, expect: int | None, value: bytes) -> Call:
        call = Call(what, key, expect, value, next(self._history.ticks))
        self._history.calls.append(call)
        return call


def deletions(history: History) -> None:
    """Give each delete the revision that a watch saw: those of one key go by what they compared with."""
    gone: dict[str, list[int]] = {}
    for change in history.watched[0]:
        if isinstance(change, Gone):
            gone.setdefault(change.key, []).append(change.revision)
    pending = [call for call in history.calls if call.what == "delete" and call.result == (-1, None)]
    for call in sorted(pending, key=lambda call: call.expect or 0):
        call.result = (gone[call.key].pop(0), None)
    assert not any(gone.values()), f"deletions that nobody asked for: {gone}"
