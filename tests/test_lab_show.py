"""What a lab prints: plain where it is not a terminal, coloured where it is, ASCII where it must be."""

from __future__ import annotations

import io

import pytest

from canal_udp.lab.show import Screen


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def screen(kind: str = "utf-8", terminal: bool = False) -> tuple[Screen, io.BytesIO]:
    raw = io.BytesIO()
    return Screen((Terminal if terminal else io.TextIOWrapper)(raw, encoding=kind)), raw


def test_a_pipe_gets_plain_text() -> None:
    out, raw = screen()
    out.title("t")
    with out.step("doing") as step:
        out.progress(step, "half")
        step.detail = "done"
    text = raw.getvalue().decode()
    assert "\x1b" not in text and "\r" not in text and "half" not in text
    assert text.splitlines()[1].split() == ["✓", "doing", "0.0", "s", "done"]


def test_a_terminal_sees_progress_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out, raw = screen(terminal=True)
    with out.step("doing") as step:
        out.progress(step, "half")
    text = raw.getvalue().decode()
    assert "half" in text and "\x1b[32m✓" in text and text.endswith("\n")


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out, raw = screen(terminal=True)
    out.title("t")
    assert raw.getvalue() == b"t\n"


def test_a_failed_step_says_so() -> None:
    out, raw = screen("ascii")
    with pytest.raises(ValueError, match="no"), out.step("doing"):
        raise ValueError("no")
    assert raw.getvalue().decode().split()[:2] == ["FAILED", "doing"]


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", "·✓✗"), ("ascii", ".yN")])
def test_a_matrix(encoding: str, marks: str) -> None:
    out, raw = screen(encoding)
    out.matrix(["a1", "b1"], {("a1", "b1"): True, ("b1", "a1"): False})
    header, first, second = raw.getvalue().decode(encoding).splitlines()
    assert header.split() == ["a1", "b1"]
    assert first.split() == ["a1", marks[0], marks[1]]
    assert second.split() == ["b1", marks[2], marks[0]]
    assert len(header) == len(first) == len(second)


def test_a_sparkline_shows_nothing_as_nothing() -> None:
    out, _ = screen()
    assert out.sparkline([0, 1, 50, 100]) == "▁▂▅█"
    assert out.sparkline([]) == ""
    assert out.sparkline([0, 0]) == "▁▁"


def test_a_table_is_aligned() -> None:
    out, raw = screen()
    out.table(("NAME", "STATE"), [("a", "running"), ("long-name", "gone")])
    assert raw.getvalue().decode().splitlines() == ["NAME       STATE", "a          running", "long-name  gone"]
