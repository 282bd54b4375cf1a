"""Goals and how far they are: what is true, on its way, or failed and due again. Pure.

Structure    wanted ─► Do ─► (on its way) ─┬─ done ──► true ─── no longer wanted ─► Undo
                                            └─ failed ─► again after RETRY_S
Invariants   One attempt per key at a time; what changed meanwhile is asked for when its answer is in. An Undo needs no
             answer: what cannot be taken back is gone, or is made true again by the next Do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from canal_udp.actions import Do, Goal, Undo

RETRY_S = (0.5, 1.0)  # what someone breaks is back within 2 s of the end of the cause


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a goal is not true, and when to try again."""

    goal: Goal
    problem: str
    count: int
    again_at: float


class Agenda:
    """What is wanted against what is true."""

    def __init__(self) -> None:
        self._true: dict[str, Goal] = {}
        self._on_its_way: dict[str, Goal] = {}
        self._failures: dict[str, Failure] = {}

    def settle(self, wanted: Iterable[Goal], now: float) -> list[Do | Undo]:
        """Return what to do now, in the order of `wanted`; then what to take back, the latest first."""
        goals = {goal.key: goal for goal in wanted}
        dos = [Do(goal) for goal in goals.values() if self._due(goal, now)]
        tried = self._true | {key: failure.goal for key, failure in self._failures.items()}
        undos = [Undo(goal) for key, goal in reversed(tried.items()) if key not in goals]
        for undo in undos:
            self._true.pop(undo.goal.key, None)
        self._on_its_way |= {action.goal.key: action.goal for action in dos}
        self._failures = {key: failure for key, failure in self._failures.items() if key in goals}
        return [*dos, *undos]

    def _due(self, goal: Goal, now: float) -> bool:
        key = goal.key
        true = self._true.get(key)
        if true is goal or key in self._on_its_way or true == goal:
            return False
        failure = self._failures.get(key)
        return failure is None or failure.goal != goal or now >= failure.again_at

    def is_due(self, now: float) -> bool:
        """Tell whether a goal that failed is to be tried again now."""
        return any(now >= failure.again_at for failure in self._failures.values())

    def done(self, goal: Goal) -> None:
        """Note that a goal is true."""
        self._on_its_way.pop(goal.key, None)
        self._failures.pop(goal.key, None)
        self._true.pop(goal.key, None)
        self._true[goal.key] = goal  # at the end: undone in the opposite order

    def failed(self, goal: Goal, problem: str, now: float) -> bool:
        """Note that a goal was not reached, or is not true any more; tell whether that is news."""
        self._on_its_way.pop(goal.key, None)
        self._true.pop(goal.key, None)
        before = self._failures.get(goal.key)
        count = before.count if before and before.goal == goal else 0
        self._failures[goal.key] = Failure(goal, problem, count + 1, now + RETRY_S[min(count, len(RETRY_S) - 1)])
        return before is None or before.problem != problem

    def lost(self, key: str) -> None:
        """Note that a goal is not true any more, so that it is done again."""
        self._true.pop(key, None)

    def is_true(self, goal: Goal) -> bool:
        """Tell whether exactly this goal is true."""
        return self._true.get(goal.key) == goal

    def get(self, key: str) -> Goal | None:
        """Return the goal that is true under `key`."""
        return self._true.get(key)

    def problem(self, key: str) -> str:
        """Return why the goal of `key` is not true; empty if nothing went wrong."""
        failure = self._failures.get(key)
        return failure.problem if failure else ""

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that went wrong and was not put right yet."""
        return tuple(failure.problem for failure in self._failures.values())

    @property
    def true(self) -> tuple[Goal, ...]:
        """Every goal that is true, the earliest first."""
        return tuple(self._true.values())
