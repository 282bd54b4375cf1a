"""The agenda: one attempt at a time, failures again later, what is not wanted any more taken back."""

from __future__ import annotations

import random
from pathlib import Path

from canal_udp.actions import Do, File, Undo
from canal_udp.agenda import RETRY_S, Agenda


def goal(name: str, text: str = "") -> File:
    return File(Path("/") / name, text, 0o600)


def test_a_goal_is_asked_for_once() -> None:
    agenda = Agenda()
    assert agenda.settle([goal("a")], 0.0) == [Do(goal("a"))]
    assert agenda.settle([goal("a")], 1.0) == []  # on its way
    agenda.done(goal("a"))
    assert agenda.settle([goal("a")], 2.0) == []
    assert agenda.true == (goal("a"),)


def test_what_changed_meanwhile_waits_for_the_answer() -> None:
    agenda = Agenda()
    agenda.settle([goal("a", "old")], 0.0)
    assert agenda.settle([goal("a", "new")], 0.0) == []
    agenda.done(goal("a", "old"))
    assert agenda.settle([goal("a", "new")], 0.0) == [Do(goal("a", "new"))]


def test_a_failure_is_tried_again_later_and_another_goal_at_once() -> None:
    agenda = Agenda()
    now = 0.0
    for delay in (*RETRY_S, RETRY_S[-1]):
        assert agenda.settle([goal("a")], now) == [Do(goal("a"))]
        agenda.failed(goal("a"), "no", now)
        assert agenda.settle([goal("a")], now + delay - 0.01) == []
        now += delay
    assert agenda.problems == ("no",)
    assert agenda.settle([goal("a", "new")], now - 0.5) == [Do(goal("a", "new"))]
    agenda.done(goal("a", "new"))
    assert agenda.problems == ()


def test_a_failure_is_news_once() -> None:
    agenda = Agenda()
    agenda.settle([goal("a")], 0.0)
    assert agenda.failed(goal("a"), "no", 0.0)
    assert not agenda.failed(goal("a"), "no", 1.0)
    assert agenda.failed(goal("a"), "still no", 2.0)


def test_what_is_not_wanted_is_undone_the_latest_first() -> None:
    agenda = Agenda()
    for name in "abc":
        agenda.settle([goal("a"), goal("b"), goal("c")], 0.0)
        agenda.done(goal(name))
    assert agenda.settle([goal("b")], 0.0) == [Undo(goal("c")), Undo(goal("a"))]
    assert agenda.settle([goal("b")], 0.0) == []


def test_a_failed_goal_that_is_not_wanted_is_undone_too() -> None:
    """Its attempt may have done half."""
    agenda = Agenda()
    agenda.settle([goal("a")], 0.0)
    agenda.failed(goal("a"), "half way", 0.0)
    assert agenda.settle([], 0.0) == [Undo(goal("a"))]
    assert agenda.problems == ()


def test_a_lost_goal_is_done_again() -> None:
    agenda = Agenda()
    agenda.settle([goal("a")], 0.0)
    agenda.done(goal("a"))
    agenda.lost(goal("a").key)
    assert agenda.settle([goal("a")], 0.0) == [Do(goal("a"))]


def test_any_history_ends_in_what_is_wanted() -> None:
    """Whatever fails, gets lost or changes on the way: in the end the world is as wanted, and nothing else is in it."""
    for seed in range(300):
        rng = random.Random(seed)
        agenda, world, now = Agenda(), dict[str, File](), 0.0
        wanted: list[File] = []
        for step in range(60):
            now += rng.random() * 3
            calm = step > 40
            if rng.random() < 0.4 and not calm:
                wanted = [goal(name, rng.choice("xy")) for name in "abcd" if rng.random() < 0.5]
            if rng.random() < 0.2 and world and not calm:
                key = rng.choice(list(world))
                del world[key]
                agenda.lost(key)
            if calm:
                now += RETRY_S[-1]
            for action in agenda.settle(wanted, now):
                if isinstance(action, Undo):
                    world.pop(action.goal.key, None)
                elif rng.random() < 0.3 and not calm:
                    agenda.failed(action.goal, "bad luck", now)
                    if rng.random() < 0.5:
                        world[action.goal.key] = action.goal  # half done
                else:
                    world[action.goal.key] = action.goal
                    agenda.done(action.goal)
        assert world == {one.key: one for one in wanted}, f"seed {seed}"
