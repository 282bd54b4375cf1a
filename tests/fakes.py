"""A data plane that moves nothing: it remembers its ports and tables, so that the control plane can be tested alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from canal_udp.encap.forwarding import Forwarding
from canal_udp.readings import Address, Event, Flow, Judged, Note, PortStats, Status


@dataclass
class FakeDataplane:
    """Stands for `canal_udp.dataplane.Dataplane`."""

    table: dict[int, tuple[str, str]] = field(default_factory=dict)  # index -> kind, name
    published: list[Forwarding] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    waiting: list[Event] = field(default_factory=list)
    tracked: list[Flow] = field(default_factory=list)
    judged: Judged | None = None
    noted: list[Note] = field(default_factory=list)
    running: bool = False
    worker_error: str | None = None
    events_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def _add(self, kind: str, name: str) -> int:
        index = len(self.table) + len(self.removed)
        self.table[index] = (kind, name)
        return index

    def add_pod(self, name: str, fd: int, mtu_bytes: int, id: int) -> int:
        assert fd >= 0
        return self._add("pod", name)

    def add_host(self, fd: int, mtu_bytes: int) -> int:
        assert fd >= 0
        return self._add("host", "")

    def add_underlay(self, fd: int, encap: str, family: int, tx_only: bool = False) -> int:
        assert fd >= 0
        return self._add("underlay", f"{encap}{family}")

    def remove_port(self, index: int) -> None:
        del self.table[index]
        self.removed.append(index)

    def publish(self, forwarding: Forwarding, policy: object = None) -> None:
        """Refuse what the real one refuses: a route to a port that is not there."""
        pods = {name for kind, name in self.table.values() if kind == "pod"}
        assert ("host", "") in self.table.values()
        assert {route.key for route in forwarding.routes if route.kind == "pod"} <= pods
        self.published.append(forwarding)

    def prepare(self, policy: object) -> None:
        """Hold whatever comes."""

    def reclaim(self) -> int:
        return 0

    def tell(self, event: Event) -> None:
        """Put an event into the ring."""
        self.waiting.append(event)
        os.eventfd_write(self.events_fd, 1)

    def events(self) -> list[Event]:
        os.eventfd_read(self.events_fd)
        found, self.waiting = self.waiting, []
        return found

    def counters(self) -> dict[str, int]:
        return dict.fromkeys(("rx_pod", "rx_host", "rx_underlay", "originated", "tx_pod", "tx_host", "tx_underlay"), 0)

    def drops(self) -> dict[str, int]:
        return {"short": 0, "no_route": 0}

    def errors(self) -> dict[str, int]:
        return {"send ENOBUFS": 3}

    def ports(self) -> list[PortStats]:
        return []

    def flows(self, since_ms: int = 0, ends: tuple[Address, Address] | None = None) -> Iterator[Flow]:
        return (flow for flow in self.tracked if ends in (None, (flow.src, flow.dst)))

    def judge(self, flow: object, source: object, destination: object, *, from_host: bool) -> Judged | None:
        return self.judged

    def route(self, address: Address) -> tuple[str, int | None]:
        return f"to {address}", 1400

    def notes(self, since_ms: int = 0) -> tuple[list[Note], int]:
        return [note for note in self.noted if note.last_ms > since_ms], 10_000

    def hits(self, rules: int) -> list[int]:
        return list(range(min(rules, 3)))

    def status(self) -> Status:
        generation = self.published[-1].generation if self.published else 0
        return Status(generation, len(self.published), 0, int(self.running), 0, 100, 0, len(self.table), 0, 0)

    def start(self) -> None:
        self.running = True

    def stop(self, timeout_s: float) -> None:
        self.running = False

    def close(self) -> None:
        os.close(self.events_fd)
