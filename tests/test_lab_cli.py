"""`canal lab` without a lab: what it prints, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from canal_udp.__main__ import main

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANAL_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.delenv("CANAL_LAB", raising=False)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_can_be_planned(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "up", str(file), "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ip netns add ") and all(lines)


def test_the_plan_has_the_real_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "up", "--nodes", "2", "--pods", "1", "--name", "x", "--plan"]) == 0
    text = capsys.readouterr().out
    assert "ip netns exec x-a " in text and " daemon --store sqlite://" in text
    assert " attach x-a1 --name default/a1 " in text


def test_print_gives_a_file_that_means_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--nodes", "2", "--encap", "udp", "--name", "x"]
    assert main(["lab", "up", *arguments, "--print"]) == 0
    file = tmp_path / "x.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["lab", "up", str(file), "--plan"]) == 0
    from_file = capsys.readouterr().out
    assert main(["lab", "up", *arguments, "--plan"]) == 0
    assert capsys.readouterr().out == from_file


def test_a_file_can_be_brought_up_under_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "up", str(EXAMPLES[0]), "--name", "other", "--plan"]) == 0
    spaces = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("ip netns add")]
    assert spaces and all(space.startswith("other-") for space in spaces)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(["up", "/nowhere.yaml"], 2, "canal: /nowhere.yaml: No such file", id="no file"),
        pytest.param(
            ["up", "x.yaml", "--nodes", "2"], 2, "--nodes: a lab file says that itself", id="file and --nodes"
        ),
        pytest.param(["up", "--name", "A"], 2, "--name 'A': a name is", id="bad name"),
        pytest.param(["down"], 1, "no lab is up", id="nothing to take down"),
        pytest.param(["down", "x"], 1, "no lab 'x' is up", id="no such lab"),
        pytest.param(["down", "x", "--all"], 2, "either names or --all", id="down what"),
        pytest.param(["exec", "a1", "--", "true"], 1, "no lab is up", id="exec without a lab"),
        pytest.param(["fault", "clear"], 1, "no lab is up", id="fault without a lab"),
        pytest.param(["check"], 1, "no lab is up", id="check without a lab"),
    ],
)
def test_refusals(arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", *arguments]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--nodes", "0"],
        ["fault", "mtu", "5"],
        ["fault", "link", "a", "left"],
        ["fault", "loss", "much"],
        ["fault", "loss", "-1"],
        [],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["lab", *arguments])
    assert caught.value.code == 2


def test_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "ps"]) == 0
    assert main(["lab", "down", "--all"]) == 0
    assert capsys.readouterr().out == "no lab is up\nno lab is up\n"
    assert main(["lab", "ps", "-j"]) == 0
    assert capsys.readouterr().out == "[]\n"
