"""What a lab has made, on disk, so that any later command can find it and `down` can remove it, however `up` ended.

Structure  /run/canal-lab/<lab>/
             lab.yaml       the lab file; everything that is planned follows from it
             journal.jsonl  one record a line: namespaces before they are made, processes as soon as they have a pid
             pods.json      the addresses that the pods got
             faults.json    impairments in force, by network
             store.d/       the store that the daemons share; a folder of its own, which it locks as we lock ours
             <node>/        run/ state/ daemon.log
Invariants nothing is made in the machine before the journal says so; a torn last line is as good as none.
           a namespace is in one lab's journal only: it did not exist when it was written there.
           Who changes a lab holds the lock of its folder; who makes or removes the folder, that of the folder above.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal_udp.errors import LabError
from canal_udp.lab.impair import Impairment
from canal_udp.lab.model import Lab, parse_lab
from canal_udp.lab.processes import Process
from canal_udp.lab.reader import suggest


def root_dir() -> Path:
    return Path(os.environ.get("CANAL_LAB_DIR", "/run/canal-lab"))


@dataclass(frozen=True, slots=True)
class PodAddress:
    """What a pod got when it was attached."""

    ips: tuple[str, ...]  # without prefix length
    ifname: str
    mtu_bytes: int

    def of(self, family: int) -> str | None:
        return next((ip for ip in self.ips if (":" in ip) == (family == 6)), None)


@dataclass(frozen=True, slots=True)
class LabState:
    """The folder of one lab."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def node_dir(self, node: str) -> Path:
        return self.path / node

    def run_dir(self, node: str) -> Path:
        return self.path / node / "run"

    def log(self, role: str, member: str) -> Path:
        return self.path / member / f"{role}.log"

    def store_url(self, lab: Lab) -> str:
        return f"sqlite://{self.path}/store.d/canal.db" if lab.store == "sqlite" else lab.store

    def lab(self) -> Lab:
        """The lab as it was brought up. Raises LabError when its folder holds none."""
        file = self.path / "lab.yaml"
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise LabError(f"{file} is missing; `canal lab down {self.name}` removes what is left of the lab") from None
        return parse_lab(text, str(file), self.name)

    # -- journal

    def record(self, kind: str, **values: Any) -> None:
        with open(self.path / "journal.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def records(self, kind: str) -> list[dict[str, Any]]:
        try:
            lines = (self.path / "journal.jsonl").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        records = [json.loads(line) for line in lines[:-1]]
        return [record for record in records if record["kind"] == kind]

    def namespaces(self) -> list[str]:
        return [name for record in self.records("namespaces") for name in record["names"]]

    def record_process(self, role: str, member: str, process: Process) -> None:
        self.record("process", role=role, member=member, pid=process.pid, start_ticks=process.start_ticks)

    def processes(self) -> dict[tuple[str, str], Process]:
        """The last process of every (role, member)."""
        return {(r["role"], r["member"]): Process(r["pid"], r["start_ticks"]) for r in self.records("process")}

    def every_process(self) -> list[Process]:
        return [Process(r["pid"], r["start_ticks"]) for r in self.records("process")]

    # -- what is read and replaced as a whole

    def pods(self) -> dict[str, PodAddress]:
        return {
            name: PodAddress(tuple(value["ips"]), value["ifname"], value["mtu_bytes"])
            for name, value in self._load("pods.json").items()
        }

    def save_pods(self, pods: dict[str, PodAddress]) -> None:
        self._save(
            "pods.json",
            {name: {"ips": pod.ips, "ifname": pod.ifname, "mtu_bytes": pod.mtu_bytes} for name, pod in pods.items()},
        )

    def faults(self) -> dict[str, Impairment]:
        return {network: Impairment(**values) for network, values in self._load("faults.json").items()}

    def save_faults(self, faults: dict[str, Impairment]) -> None:
        names = Impairment.__dataclass_fields__
        values = {network: {key: getattr(fault, key) for key in names} for network, fault in faults.items()}
        self._save("faults.json", values)

    def _load(self, name: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return loaded

    def _save(self, name: str, value: dict[str, Any]) -> None:
        new = self.path / f".{name}.new"
        new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path / name)

    @contextmanager
    def locked(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only one who changes this lab. Raises LabError when the lab is gone."""
        with _locked_dir(self.path, create=False, on_wait=on_wait):
            yield

    def remove(self) -> None:
        """Remove the folder, and the one above if it was the last lab."""
        shutil.rmtree(self.path, ignore_errors=False)
        with _locked_dir(root_dir(), create=True):
            if not any(root_dir().iterdir()):
                root_dir().rmdir()


@contextmanager
def registry() -> Iterator[None]:
    """Be the only one who makes labs; while this is held no other lab takes a namespace."""
    with _locked_dir(root_dir(), create=True):
        yield


def create(name: str, text: str, namespaces: list[str], existing: set[str]) -> LabState:
    """Make a lab's folder and write down the namespaces to come. Call inside `registry()`. Raises LabError."""
    state = LabState(root_dir() / name)
    if state.path.exists():
        raise LabError(
            f"lab {name!r} is up already (or left behind): `canal lab down {name}`, or choose another --name"
        )
    owner = {space: lab.name for lab in labs() for space in lab.namespaces()}
    for space in namespaces:
        if space in existing or space in owner:
            whose = f"belongs to lab {owner[space]!r}" if space in owner else "exists and is not a lab's"
            raise LabError(f"namespace {space} {whose}; choose another --name")
    state.path.mkdir(mode=0o700)
    state.record("namespaces", names=namespaces)
    (state.path / "lab.yaml").write_text(text, encoding="utf-8")
    return state


def labs() -> list[LabState]:
    """Every lab that has something on this machine."""
    try:
        return [LabState(path) for path in sorted(root_dir().iterdir()) if path.is_dir()]
    except FileNotFoundError:
        return []


def find(name: str | None) -> LabState:
    """The lab of this name, or the only one there is. Raises LabError that says which there are."""
    known = {lab.name: lab for lab in labs()}
    name = name or os.environ.get("CANAL_LAB")
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if not known:
        raise LabError(f"no lab{f' {name!r}' if name else ''} is up; `canal lab up` or `canal lab demo` makes one")
    if name is None:
        raise LabError(f"{len(known)} labs are up ({', '.join(known)}): say which with --lab")
    if name not in known:
        raise LabError(f"no lab {name!r} is up; {suggest(name, list(known))}")
    return known[name]


@contextmanager
def _locked_dir(path: Path, create: bool, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """flock on a folder that others may remove and make again meanwhile."""
    while True:
        if create:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if create:
                continue
            raise LabError(f"lab {path.name!r} is gone") from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(fd)):
                yield
                return
        finally:
            os.close(fd)
