"""When the worker waits awake: while that is answered, and now and then to see whether it is again."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import build_native, run_program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_native(tmp_path_factory.mktemp("spin"), "test_spin.c", [])


def awake(program: Path, waits: str) -> list[int]:
    """Numbers of the waits that were awake."""
    out = run_program(program, stdin=f"{waits}\n").strip()
    assert len(out) == len(waits)
    return [at for at, mark in enumerate(out) if mark == "!"]


def test_answers_that_come_soon_are_waited_for(program: Path) -> None:
    found = awake(program, "h" * 200)
    assert found == list(range(found[0], 200))
    assert found[0] < 20


def test_nobody_answers_and_the_processor_rests(program: Path) -> None:
    assert len(awake(program, "m" * 1000)) < 1000 / 10


def test_one_answer_in_three_is_enough(program: Path) -> None:
    waits = "h" * 50 + "mmh" * 100
    assert awake(program, waits)[-300:] == list(range(50, 350))


def test_one_answer_in_ten_is_not(program: Path) -> None:
    waits = "h" * 50 + "mmmmmmmmmh" * 100
    assert len([at for at in awake(program, waits) if at >= 550]) < 500 / 2


def test_it_begins_again_when_answers_do(program: Path) -> None:
    waits = "m" * 500 + "h" * 100
    assert awake(program, waits)[-80:] == list(range(520, 600))
