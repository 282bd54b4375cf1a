"""Everyone has a turn in every round, and a round is spread over its time."""

from __future__ import annotations

import pytest

from canal_udp.rounds import Rounds

NAMES = [f"pod{n}" for n in range(10)]


@pytest.mark.parametrize("step_s", [0.05, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_everyone_once_in_a_round(step_s: float, count: int) -> None:
    names, rounds = NAMES[:count], Rounds(30.0, 0.0)
    given: list[str] = []
    most, now, steps = 0, 0.0, int(300 / step_s)
    for _ in range(steps):
        now += step_s
        due = rounds.due(names, now)
        most, given = max(most, len(due)), given + due
    for name in names:
        assert abs(given.count(name) - steps * step_s / 30) <= 1
    assert most <= count * step_s / 30 + 1


def test_a_long_pause_gives_one_turn_to_everyone() -> None:
    rounds = Rounds(30.0, 0.0)
    assert sorted(rounds.due(NAMES, 1e6)) == NAMES
    assert rounds.due(NAMES, 1e6) == []


def test_who_comes_and_goes() -> None:
    rounds = Rounds(10.0, 0.0)
    assert rounds.due(["a", "b"], 5.0) == ["a"]
    assert rounds.due(["a", "c"], 10.0) == []  # b's turn, who is gone
    assert rounds.due(["a", "c"], 20.0) == ["a", "c"]


def test_hundreds_take_longer_but_everyone_has_a_turn() -> None:
    names = [f"pod{n}" for n in range(500)]
    rounds = Rounds(30.0, 0.0, 4.0)
    given = [rounds.due(names, float(second)) for second in range(1, 126)]
    assert {len(due) for due in given} == {4}
    assert {name for due in given for name in due} == set(names)
