"""Plans, reports, tables, comparisons: everything of the benchmarks that moves no packet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canal_udp.__main__ import main
from canal_udp.bench import compare, gate, machine, picture, plan, stages, systems, table
from canal_udp.bench.report import Report, Run, from_json, load, save, shown, to_json
from canal_udp.bench.stats import Spread
from canal_udp.errors import BenchError, UsageError

ABOUT = {"cpu": "Abacus 3000", "cores": 2, "kernel": "6.18", "canal": "0.1.0", "commit": "abc"}


def report(scale: float = 1.0, warnings: tuple[str, ...] = ()) -> Report:
    """Two systems, one profile, three rounds; ours is `scale` times as fast as the kernel."""
    runs = []
    for round in (1, 2, 3):
        bits = (9 + round) * 1e9
        runs.append(Run("wire", round, "tcp-1", "canal-vxlan", {"bits_per_s": bits * scale, "cpu_s_per_gb": 1.0}))
        runs.append(Run("wire", round, "tcp-1", "kernel-vxlan", {"bits_per_s": bits, "cpu_s_per_gb": 2.0}))
        runs.append(Run("wire", round, "tcp-rr", "canal-vxlan", {"p50_us": 10.0, "max_us": 99.0}, {"count": 7}))
        runs.append(Run("wire", round, "idle", "canal-vxlan", {"rss_mib": 40.0}))
    baselines = {"canal-vxlan": "kernel-vxlan", "kernel-vxlan": "kernel-vxlan"}
    return Report(ABOUT, {"rounds": 3, "seconds": 1.0}, baselines, tuple(runs), ({"sha256": "equal"},), warnings)


# ---- plan ------------------------------------------------------------------------------------------------------------


def a_plan(**changes: Any) -> plan.Plan:
    made = plan.Plan(("wire", "native"), ("a", "b"), plan.choose(["tcp-1", "rr"], quick=True), 3, 1.0)
    return replace(made, **changes)


def test_systems_take_turns_within_a_measure() -> None:
    steps = [(step.measure.name, step.system) for step in a_plan().steps("wire", 1)]
    measures = ("tcp-1", "tcp-rr", "udp-rr")
    assert steps == [(measure, system) for measure in measures for system in ("a", "b")]


def test_a_plan_takes_as_long_as_its_parts() -> None:
    assert a_plan(rounds=6).expected_s > 1.5 * a_plan().expected_s
    assert a_plan(profiles=("wire",)).expected_s == a_plan().expected_s / 2


def test_the_quick_plan_is_short() -> None:
    chosen = plan.choose([], quick=True)
    assert 100 < a_plan(systems=("a", "b", "c"), measures=chosen).expected_s < 240
    assert len(plan.choose([], quick=False)) == len(plan.MEASURES)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        pytest.param(["rr"], ["tcp-rr", "udp-rr"], id="a group"),
        pytest.param(["udp-64", "tcp-1"], ["tcp-1", "udp-64"], id="names, in the order of the list"),
    ],
)
def test_choose(words: list[str], names: list[str]) -> None:
    assert [measure.name for measure in plan.choose(words, quick=True)] == names


def test_unknown_words_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="tcp-16"):
        plan.choose(["sctp"], quick=True)
    with pytest.raises(UsageError, match="wire and native"):
        plan.profiles(["wireless"])
    with pytest.raises(UsageError, match="kernel-vxlan"):
        systems.choose(["kernel-vxlam"], systems.known(None))


def test_every_metric_that_is_shown_is_known() -> None:
    assert {metric for measure in plan.MEASURES for metric in measure.metrics} == set(plan.METRICS)


# ---- systems ---------------------------------------------------------------------------------------------------------


def test_the_baseline_comes_along() -> None:
    names = [system.name for system in systems.choose(["canal-local", "canal-udp"], systems.known(None))]
    assert names == ["canal-local", "canal-udp", "veth-local", "kernel-vxlan"]


def test_every_system_has_a_baseline_and_a_lab_that_can_be_read() -> None:
    from canal_udp.lab.model import parse_lab

    known = systems.known(None)
    for system in known.values():
        assert system.baseline in known
        lab = parse_lab(system.lab_text("bench", "native"), "test", "bench")
        assert {*system.path} <= {*lab.pods} and lab.networks["core"].profile == "native"


def test_a_plugin_is_a_few_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from canal_udp.bench.systems import System\n"
        "SYSTEMS = [System('mine', 'with a program', 'canal', programs=('no-such-program:nsp',))]\n"
    )
    known = systems.known(file)
    with pytest.raises(BenchError, match="apt-get install nsp"):
        systems.choose(["mine"], known)
    file.write_text("x = 1\n")
    with pytest.raises(BenchError, match="SYSTEMS"):
        systems.known(file)


# ---- gate and machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        pytest.param({}, {"martian": 3}, {}, id="noise"),
        pytest.param({"spoofed": 2}, {"spoofed": 2}, {}, id="from before"),
        pytest.param({"spoofed": 2}, {"spoofed": 3, "martian": 9}, {"spoofed": 1}, id="new"),
    ],
)
def test_unexpected_drops(before: dict[str, int], after: dict[str, int], found: dict[str, int]) -> None:
    assert gate.unexpected(before, after, gate.NOISE) == found


def test_stat_is_read_as_everything_but_idle() -> None:
    times = machine.parse_stat("cpu  100 10 200 5000 60 30 70 40 5 0\ncpu0 1 2 3\n", 12.0)
    assert times == machine.CpuTimes(410 / machine.TICKS_PER_S, 40 / machine.TICKS_PER_S, 12.0)
    assert times.since(times) == machine.CpuTimes(0, 0, 0)


@pytest.mark.parametrize(
    ("load", "foreign", "steal_s", "words"),
    [
        pytest.param(0.2, [0.01, 0.02], 0.0, [], id="quiet"),
        pytest.param(1.5, [0.01], 0.0, ["load average"], id="load before"),
        pytest.param(0.1, [0.01, 0.3], 0.0, ["30%"], id="someone else works"),
        pytest.param(0.1, [], 1.0, ["steal"], id="the hypervisor takes"),
    ],
)
def test_busy_machine(load: float, foreign: list[float], steal_s: float, words: list[str]) -> None:
    warnings = machine.busy_warnings(load, foreign, machine.CpuTimes(3.0, steal_s, 10.0), 2)
    assert len(warnings) == len(words) and all(word in text for word, text in zip(words, warnings, strict=True))


# ---- report ----------------------------------------------------------------------------------------------------------


def test_results_follow_from_runs() -> None:
    found = {result.key: result for result in report(0.8).results()}
    ours = found["wire", "tcp-1", "bits_per_s", "canal-vxlan"]
    assert ours.value.median == pytest.approx(8.8e9) and ours.ratio is not None
    assert ours.ratio.median == pytest.approx(0.8)
    assert found["wire", "tcp-1", "bits_per_s", "kernel-vxlan"].ratio is None
    assert found["wire", "tcp-rr", "p50_us", "canal-vxlan"].ratio is None, "the baseline has no such run"
    assert ("wire", "tcp-rr", "max_us", "canal-vxlan") not in found, "not a metric that is compared"


def test_a_report_survives_json(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "r.json"
    save(to_json(report(warnings=("busy",))), file)
    again = from_json(load(file), "r.json")
    assert again.results() == report().results() and again.warnings == ("busy",)
    assert len(load(file)["summary"]) == len(again.results())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": "overlay", "format": 1}', '{"kind": "overlay", "format": 1, "runs": [{}]}'],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(BenchError, match=r"r\.json"):
        from_json(load(file), str(file))


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("bits_per_s", 1.234e9, "1.23"),
        ("bits_per_s", 12.34e9, "12.3"),
        ("packets_per_s", 456_789, "457"),
        ("x", 0.5, "0.50"),
    ],
)
def test_shown(metric: str, value: float, text: str) -> None:
    assert shown(metric, value) == text


def test_table() -> None:
    text = "\n".join(table.lines(report(0.8, warnings=("busy",))))
    (row,) = (line for line in text.splitlines() if line.startswith("TCP 1 stream  "))
    assert row.split() == ["TCP", "1", "stream", "Gbit/s", "8.80", "±9%", "0.80x", "11.0", "±9%"]
    assert "TCP round trip, p50" in text and "WARNING: busy" in text and "Abacus 3000" in text
    idle = next(line for line in text.splitlines() if line.startswith("idle daemon"))
    assert idle.split()[-1] == table.EMPTY, "the kernel has no daemon"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_picture(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"p.{suffix}"
    picture.draw(report(), file)
    assert file.stat().st_size > 1000
    if suffix == "svg":
        assert "TCP 1 stream" in file.read_text()


def test_a_picture_of_nothing_or_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing"):
        picture.draw(replace(report(), runs=()), tmp_path / "p.svg")
    with pytest.raises(BenchError, match="no-format"):
        picture.draw(report(), tmp_path / "p.no-format")


# ---- comparison ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "better", "verdict"),
    [
        pytest.param((9, 11), (10, 12), 1, "same", id="overlap"),
        pytest.param((9, 11), (12, 14), 1, "better", id="more"),
        pytest.param((9, 11), (12, 14), -1, "worse", id="more of what should be less"),
        pytest.param((9, 11), (6, 8), 1, "worse", id="less"),
    ],
)
def test_verdict(old: tuple[int, int], new: tuple[int, int], better: int, verdict: str) -> None:
    before, after = (Spread(sum(pair) / 2, *pair, 3) for pair in (old, new))
    assert compare.verdict(before, after, better) == verdict


def test_reports_are_compared_by_ratio() -> None:
    """A machine that is twice as fast today changes nothing; ours against the kernel does."""
    old, new = report(0.8), report(0.9)
    faster = replace(
        new, runs=tuple(replace(run, values={k: 2 * v for k, v in run.values.items()}) for run in new.runs)
    )
    changes = compare.compare(to_json(old), to_json(faster), ("old", "new"))
    ours = next(change for change in changes if change.where == "wire canal-vxlan" and change.unit == "x")
    assert (ours.old, ours.new, ours.verdict) == ("0.80x", "0.90x", "better")
    assert ours.share == pytest.approx(0.125)
    assert "better" in "\n".join(compare.lines(changes))


def test_what_one_report_lacks() -> None:
    old = report()
    new = replace(old, runs=tuple(run for run in old.runs if run.measure != "idle"))
    words = {change.verdict for change in compare.compare(to_json(old), to_json(new), ("old", "new"))}
    assert words == {"same", "gone"}
    words = {change.verdict for change in compare.compare(to_json(new), to_json(old), ("old", "new"))}
    assert words == {"same", "new"}


def raw_stage(group: str, name: str, median_s: float) -> dict[str, Any]:
    extra = {"group": group, "name": name, "n": 100, "checked": "all of it"}
    return {"extra_info": extra, "stats": {"median": median_s, "iqr": median_s / 10, "rounds": 50}}


def stage_report(median_s: float) -> dict[str, Any]:
    rows = stages.rows({"benchmarks": [raw_stage("segment", "TCP", 3e-6), raw_stage("parse", "mixed", median_s)]})
    return {"kind": "stages", "format": 1, "about": ABOUT | {"isa": "avx2"}, "stages": rows}


def test_stages() -> None:
    found = stage_report(1e-6)
    assert [row["group"] for row in found["stages"]] == ["parse", "segment"], "in the order of a packet's way"
    assert found["stages"][0]["ns_per_item"] == pytest.approx(10)
    assert found["stages"][0]["items_per_s"] == pytest.approx(1e8)
    text = stages.lines(found)
    assert text[1].split() == ["parse", "mixed", "10.0", "±5%", "100", "all", "of", "it"]


def test_stages_are_compared_by_value() -> None:
    changes = compare.compare(stage_report(1e-6), stage_report(0.5e-6), ("old", "new"))
    assert [(change.where, change.verdict) for change in changes] == [("parse", "better"), ("segment", "same")]
    with pytest.raises(BenchError, match="same kind"):
        compare.compare(stage_report(1e-6), to_json(report()), ("old", "new"))


# ---- command line ----------------------------------------------------------------------------------------------------


def test_compare_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("old.json", "new.json")]
    for file, scale in zip(files, (0.8, 0.9), strict=True):
        Path(file).write_text(json.dumps(to_json(report(scale))))
    assert main(["bench", "compare", *files]) == 0
    assert "0.80x" in capsys.readouterr().out
    assert main(["bench", "compare", files[0], str(tmp_path / "none")]) == 1


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, document in (("o", to_json(report(0.8))), ("s", stage_report(1e-6))):
        (tmp_path / name).write_text(json.dumps(document))
        assert main(["bench", "show", str(tmp_path / name)]) == 0
        assert main(["bench", "show", str(tmp_path / name), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| TCP 1 stream | Gbit/s | 8.80 ±9% 0.80x | 11.0 ±9% |" in out
    assert "| parse | mixed | 10.0 | ±5% | 100 | all of it |" in out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "overlay", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*systems.known(None), *plan.BY_NAME))


@pytest.mark.parametrize("words", [["--profile", "air"], ["--only", "sctp"], ["--against", "nobody"]])
def test_wrong_words(words: list[str]) -> None:
    assert main(["bench", "overlay", *words]) == 2
