"""What a lab remembers of itself on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from canal_udp.errors import LabError
from canal_udp.lab import state
from canal_udp.lab.impair import Impairment
from canal_udp.lab.model import parse_lab, small_lab
from canal_udp.lab.processes import Process
from canal_udp.lab.state import LabState, PodAddress


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANAL_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.delenv("CANAL_LAB", raising=False)


def make(name: str, namespaces: list[str] | None = None, existing: set[str] = frozenset()) -> LabState:  # type: ignore[assignment]
    with state.registry():
        return state.create(name, small_lab(1, 1, name=name), namespaces or [f"{name}-a"], existing)


def test_the_lab_file_comes_back() -> None:
    lab_state = make("one")
    assert lab_state.lab() == parse_lab(small_lab(1, 1, name="one"), "x", "x")


def test_the_journal_keeps_order_and_the_last_process_of_each_role() -> None:
    lab_state = make("one", ["one-a", "one-b"])
    for pid in (10, 11):
        lab_state.record_process("daemon", "a", Process(pid, pid * 100))
    lab_state.record_process("relay", "core", Process(12, 1200))
    assert lab_state.namespaces() == ["one-a", "one-b"]
    assert lab_state.processes() == {("daemon", "a"): Process(11, 1100), ("relay", "core"): Process(12, 1200)}
    assert [process.pid for process in lab_state.every_process()] == [10, 11, 12]


@pytest.mark.parametrize("torn", ["{", '{"kind": "process", "pid": 1', '{"kind": "namespaces", "names": ["x"]}'])
def test_a_torn_last_line_is_as_good_as_none(torn: str) -> None:
    lab_state = make("one")
    with open(lab_state.path / "journal.jsonl", "a", encoding="utf-8") as file:
        file.write(torn)
    assert lab_state.namespaces() == ["one-a"]
    assert lab_state.processes() == {}


def test_a_folder_without_anything_in_it_can_still_be_taken_down() -> None:
    path = state.root_dir() / "half"
    path.mkdir(parents=True)
    lab_state = state.find("half")
    assert (lab_state.namespaces(), lab_state.every_process(), lab_state.records("sysctl")) == ([], [], [])
    with pytest.raises(LabError, match="canal lab down half"):
        lab_state.lab()
    lab_state.remove()
    assert not state.root_dir().exists()


def test_a_name_is_taken_once() -> None:
    make("one")
    with pytest.raises(LabError, match=r"'one' is up already .*canal lab down one"):
        make("one")


def test_a_namespace_that_is_there_is_left_alone() -> None:
    with pytest.raises(LabError, match="namespace one-a exists and is not a lab's"):
        make("one", existing={"one-a"})
    assert state.labs() == []


def test_a_namespace_belongs_to_one_lab() -> None:
    make("a", ["a-b-c"])
    with pytest.raises(LabError, match="a-b-c belongs to lab 'a'"):
        make("a-b", ["a-b-c"])


def test_pods_and_faults_are_replaced_as_a_whole() -> None:
    lab_state = make("one")
    assert (lab_state.pods(), lab_state.faults()) == ({}, {})
    pods = {"a1": PodAddress(("10.244.1.2", "fd10::2"), "eth0", 1450)}
    faults = {"core": Impairment(loss_percent=1.5, seed=3)}
    lab_state.save_pods(pods)
    lab_state.save_faults(faults)
    assert (lab_state.pods(), lab_state.faults()) == (pods, faults)
    assert (pods["a1"].of(4), pods["a1"].of(6)) == ("10.244.1.2", "fd10::2")
    assert sorted(os.listdir(lab_state.path)) == ["faults.json", "journal.jsonl", "lab.yaml", "pods.json"]


def test_finding_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="no lab is up; `canal lab up`"):
        state.find(None)
    make("one")
    assert state.find(None).name == "one"
    make("two")
    with pytest.raises(LabError, match=r"2 labs are up \(one, two\): say which"):
        state.find(None)
    with pytest.raises(LabError, match="no lab 'tow' is up; did you mean 'two'"):
        state.find("tow")
    monkeypatch.setenv("CANAL_LAB", "two")
    assert state.find(None).name == "two"


def test_the_folder_above_goes_with_the_last_lab() -> None:
    one, two = make("one"), make("two")
    one.remove()
    assert state.root_dir().exists()
    two.remove()
    assert not state.root_dir().exists()


def test_a_lab_that_is_gone_cannot_be_locked() -> None:
    lab_state = make("one")
    with lab_state.locked():
        lab_state.remove()
    with pytest.raises(LabError, match="'one' is gone"), lab_state.locked():
        raise AssertionError("unreachable")


def test_a_process_is_its_pid_and_its_start() -> None:
    me = Process(os.getpid(), int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]))
    assert me.state == "running"
    assert Process(me.pid, me.start_ticks + 1).state == "gone"
    assert not Process(me.pid, me.start_ticks + 1).signal(0)
    assert me.signal(0)
