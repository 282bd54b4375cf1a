"""Does the path to each peer carry the packets that we believe it carries? Echoes of full size ask. Pure.

Structure   A round is a set of echoes sent together: always a small one and one of the MTU in use; a search adds sizes
            in between. It ends when all are answered, or when no answer came for some round trips.

            check ──full size answered──────────► verified ─┐
              │ ──small not answered either─────► assumed ──┴─► after the interval: check
              └ ──only small answered─────────► search ─► narrower from round to round ─► Found

Invariants  A few lost packets decide nothing: the full size is asked for again in every round, twice in a search.
            A peer that answers nothing says nothing about the path.
Source      RFC 8899: a path that drops without a word what is too big for it can only be found by trying.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

IPAddress = IPv4Address | IPv6Address
Knowledge = Literal["assumed", "verified"]

SMALL_BYTES = 128  # every path carries it
RUNGS = 12  # sizes that a search asks for together
CLOSE_ENOUGH = 8  # bytes between the largest that passed and the smallest that did not
RATE = 20.0  # checks a second, however many peers there are
TOGETHER_S = 1.0  # checks that are due so close to each other are one wakeup, on the daemon's beat
SUSPECT_S = 0.1  # what was asked so recently is not asked again for a suspicion
FIRST_S = 0.2  # a new peer needs a moment to know us
PATIENCE_S = (0.05, 1.0)  # wait for the first answer, and for each one after another, at least and at most so long,
ROUND_TRIPS = 4.0  # ... in between this many of the last round trip


@dataclass(frozen=True, slots=True)
class Path:
    """A way to a peer: the address of its VTEP, an overlay address of it that answers, the inner MTU in use."""

    address: IPAddress
    target: IPAddress
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class Probe:
    """An echo to send, as a packet of `size_bytes` that may not be fragmented; its answer repeats `number`."""

    target: IPAddress
    size_bytes: int
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """The path to the VTEP at `address` loses inner packets of more than `mtu_bytes` without a word."""

    address: IPAddress
    mtu_bytes: int


@dataclass(slots=True)
class _State:
    path: Path
    next_at: float  # the round's end, or the next one's begin
    knowledge: Knowledge = "assumed"
    search: tuple[int, int] | None = None  # the largest that passed, the smallest that did not
    asked: dict[int, int] = field(default_factory=dict)  # of this round: size by number
    answered: set[int] = field(default_factory=set)  # sizes
    sent_at: float = 0.0
    patience_s: float = PATIENCE_S[1]


class PathMtus:
    """All paths, and what is known of them."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._states: dict[IPAddress, _State] = {}
        self._by_number: dict[int, _State] = {}
        self._number = 0

    def know(self, paths: Iterable[Path], now: float) -> None:
        """Take the paths in use. One that is new, or whose MTU is, is checked soon; the others go on."""
        before, self._states = self._states, {}
        begun = 0
        for path in paths:
            state = before.get(path.address)
            if state is None or state.path != path:
                state = _State(path, now + FIRST_S + begun / RATE)
                begun += 1
            self._states[path.address] = state
        self._by_number = {number: state for state in self._states.values() for number in state.asked}

    def knowledge(self, address: IPAddress) -> Knowledge:
        """What is known of the MTU in use towards a peer."""
        state = self._states.get(address)
        return state.knowledge if state else "assumed"

    @property
    def next_at(self) -> float | None:
        """When `step` has something to do; None: not before `know`."""
        return min((state.next_at for state in self._states.values()), default=None)

    def answer(self, number: int, target: IPAddress, now: float) -> None:
        """Take an answer; one that is late, or of another than was asked, changes nothing."""
        state = self._by_number.get(number)
        if state is None or state.path.target != target:
            return
        state.answered.add(state.asked[number])
        least, most = PATIENCE_S
        state.patience_s = min(max(ROUND_TRIPS * (now - state.sent_at), least), most)
        state.next_at = now + state.patience_s
        if state.answered == set(state.asked.values()):
            state.next_at = now

    def suspect(self, address: IPAddress, now: float) -> None:
        """Check a path now: what is sent there seems to be lost."""
        state = self._states.get(address)
        if state is not None and not state.asked and now - state.sent_at >= SUSPECT_S:
            state.next_at = now

    def step(self, now: float) -> tuple[list[Probe], list[Found]]:
        """End rounds and begin those that are due; returns what to send and what was found out."""
        probes: list[Probe] = []
        found: list[Found] = []
        for state in self._states.values():
            if state.asked and now >= state.next_at:
                found += self._end(state, now)
            if not state.asked and now >= state.next_at:
                probes += self._begin(state, now)
        return probes, found

    def _begin(self, state: _State, now: float) -> list[Probe]:
        full = state.path.mtu_bytes
        sizes = [SMALL_BYTES, full] if state.search is None else [SMALL_BYTES, full, *_rungs(*state.search), full]
        probes = []
        for size in sizes:
            self._number = (self._number + 1) & 0xFFFF
            self._by_number[self._number] = state
            state.asked[self._number] = size
            probes.append(Probe(state.path.target, size, self._number))
        state.sent_at, state.next_at = now, now + state.patience_s
        return probes

    def _end(self, state: _State, now: float) -> list[Found]:
        """What the answers of a round say. What leaves `next_at` alone begins the next round at once."""
        for number in state.asked:
            self._by_number.pop(number, None)
        answered, state.asked, state.answered = state.answered, {}, set()
        if state.path.mtu_bytes in answered or SMALL_BYTES not in answered:
            state.knowledge = "verified" if state.path.mtu_bytes in answered else "assumed"
            return self._rest(state, now)
        if state.search is None:
            state.search = (SMALL_BYTES, state.path.mtu_bytes)
            return []
        passed, lost = state.search
        rungs = _rungs(passed, lost)
        passed = max(answered)
        lost = min((size for size in rungs if size > passed), default=lost)
        state.search = (passed, lost)
        if lost - passed > CLOSE_ENOUGH:
            return []
        state.knowledge = "assumed"
        return [Found(state.path.address, passed), *self._rest(state, now)]

    def _rest(self, state: _State, now: float) -> list[Found]:
        state.search = None
        pause_s = max(self._interval_s, len(self._states) / RATE)
        state.next_at = round((now + pause_s) / TOGETHER_S) * TOGETHER_S
        return []


def _rungs(passed: int, lost: int) -> list[int]:
    """Sizes between two, without either."""
    return sorted({passed + (lost - passed) * i // (RUNGS + 1) for i in range(1, RUNGS + 1)} - {passed})
