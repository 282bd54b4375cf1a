"""What an underlay network does to the frames that cross it, and by which means: pure.

Structure Impairment   what is asked for, one per network
          means()      nftables for loss and black holes; netem or our own relay for what takes time or changes bytes
          Impairer     the relay's decisions: frame in -> frames out and when; seeded, no clock and no socket
Invariants decisions depend on the seed and on the order of frames of one port, never on the clock: a seed repeats them
          delay and jitter keep the order of frames, only `reorder` breaks it
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any, Literal

ETHERNET_SIZE = 14
HELD_MAX_S = 0.002  # a reordered frame waits for later ones, but not longer than this
HELD_MAX_FRAMES = 5
QUEUE_MAX_S = 0.100  # a rate limit drops what would wait longer than this
Means = Literal["none", "nft", "netem", "relay"]


@dataclass(frozen=True, slots=True)
class Impairment:
    """Percentages are of frames, each frame judged by itself; 0 = off."""

    loss_percent: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    reorder_percent: float = 0.0
    duplicate_percent: float = 0.0
    corrupt_percent: float = 0.0
    rate_mbit: float = 0.0
    blackhole_bytes: int = 0  # IP packets larger than this vanish without an ICMP error
    seed: int | None = None  # asked for: the relay is used even where netem exists

    @property
    def active(self) -> bool:
        return any(getattr(self, item.name) for item in fields(self) if item.name != "seed")

    def changed(self, **values: Any) -> Impairment:
        return replace(self, **values)

    def describe(self) -> str:
        words = {
            "loss_percent": "loss {:g} %",
            "delay_ms": "delay {:g} ms",
            "jitter_ms": "jitter {:g} ms",
            "reorder_percent": "reorder {:g} %",
            "duplicate_percent": "duplicate {:g} %",
            "corrupt_percent": "corrupt {:g} %",
            "rate_mbit": "rate {:g} Mbit/s",
            "blackhole_bytes": "black hole above {:g} bytes",
        }
        active = (text.format(getattr(self, name)) for name, text in words.items() if getattr(self, name))
        return ", ".join(active) or "none"


def means(impairment: Impairment, netem: bool) -> Means:
    """The lightest means that can do it."""
    if not impairment.active:
        return "none"
    rest = impairment.changed(loss_percent=0.0, blackhole_bytes=0)
    if impairment.seed is None and not rest.active:
        return "nft"
    return "netem" if netem and impairment.seed is None else "relay"


def nft_ruleset(table: str, impairment: Impairment, with_loss: bool) -> str:
    """Rules for the forward path of a bridge; loading it replaces what was there."""
    rules = []
    if impairment.blackhole_bytes:
        rules.append(f'meta length > {impairment.blackhole_bytes} counter drop comment "black hole"')
    if impairment.loss_percent and with_loss:
        share = max(1, round(impairment.loss_percent * 1000))
        chance = (
            f"numgen random mod 100000 < {share} " if share < 100_000 else ""
        )  # nft wants a value that can be false
        rules.append(f'{chance}counter drop comment "loss"')
    chain = "\n    ".join(["type filter hook forward priority 0; policy accept;", *rules])
    body = f"table bridge {table} {{\n  chain forward {{\n    {chain}\n  }}\n}}\n"
    return f"table bridge {table}\ndelete table bridge {table}\n{body}"


def netem_args(impairment: Impairment) -> list[str]:
    """Arguments of `tc qdisc replace dev X root netem`; it reorders only what it delays."""
    args: list[str] = []
    delay_ms = impairment.delay_ms or (1.0 if impairment.reorder_percent or impairment.jitter_ms else 0.0)
    if delay_ms:
        args += ["delay", f"{delay_ms:g}ms", *([f"{impairment.jitter_ms:g}ms"] if impairment.jitter_ms else [])]
    for word, percent in (
        ("loss", impairment.loss_percent),
        ("duplicate", impairment.duplicate_percent),
        ("corrupt", impairment.corrupt_percent),
        ("reorder", impairment.reorder_percent),
    ):
        if percent:
            args += [word, f"{percent:g}%"]
    if impairment.rate_mbit:
        args += ["rate", f"{impairment.rate_mbit:g}mbit"]
    return ["limit", "10000", *args]


@dataclass(slots=True)
class _Port:
    random: Random
    free_at: float = 0.0  # when the rate limit lets the next frame start
    last_due: float = 0.0
    held: list[tuple[int, float, bytes]] = field(default_factory=list)  # (later frames to wait for, deadline, frame)


class Impairer:
    """The relay's decisions. `push` takes a frame, `due` gives back what is to be sent by now."""

    def __init__(self, spec: Impairment) -> None:
        self.spec = spec
        self.counts: Counter[str] = Counter()
        self._ports: dict[int, _Port] = {}
        self._queue: list[tuple[float, int, int, bytes]] = []  # (due, serial, port it came in by, frame)
        self._serial = 0

    def push(self, port: int, frame: bytes, now: float) -> None:
        """Judge one frame that came in by `port`."""
        spec, state = self.spec, self._port(port)
        self.counts["seen"] += 1
        released = self._release(state)
        # Every knob draws for every frame, so that turning one does not change what another decides.
        lost, doubled, broken, late, shift = (state.random.random() * 100 for _ in range(5))
        if spec.blackhole_bytes and len(frame) - ETHERNET_SIZE > spec.blackhole_bytes:
            self.counts["black_hole"] += 1
        elif lost < spec.loss_percent:
            self.counts["lost"] += 1
        else:
            if broken < spec.corrupt_percent:
                self.counts["corrupted"] += 1
                frame = corrupted(frame, state.random)
            copies = 1
            if doubled < spec.duplicate_percent:
                self.counts["duplicated"] += 1
                copies = 2
            for _ in range(copies):
                if late < spec.reorder_percent:
                    self.counts["reordered"] += 1
                    state.held.append((state.random.randint(1, HELD_MAX_FRAMES), now + HELD_MAX_S, frame))
                    late = 100.0  # a copy of a late frame is in time
                else:
                    self._enqueue(state, port, frame, now, shift)
        for old in released:
            self._enqueue(state, port, old, now, shift)

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """Frames to send now, in order, each with the port it came in by."""
        for port, state in self._ports.items():
            overdue = [frame for _, deadline, frame in state.held if deadline <= now]
            if overdue:
                state.held = [item for item in state.held if item[1] > now]
                for frame in overdue:
                    self._enqueue(state, port, frame, now, 50.0)
        ready = []
        while self._queue and self._queue[0][0] <= now:
            _, _, port, frame = heapq.heappop(self._queue)
            ready.append((port, frame))
        return ready

    def next_due(self) -> float | None:
        """When `due` will have something, None = not before the next push."""
        times = [deadline for state in self._ports.values() for _, deadline, _ in state.held]
        if self._queue:
            times.append(self._queue[0][0])
        return min(times, default=None)

    def _port(self, port: int) -> _Port:
        if port not in self._ports:
            self._ports[port] = _Port(Random(f"{self.spec.seed or 0}/{port}"))
        return self._ports[port]

    @staticmethod
    def _release(state: _Port) -> list[bytes]:
        """Held frames that have now been overtaken by enough later ones."""
        if not state.held:
            return []
        released = [frame for wait, _, frame in state.held if wait <= 1]
        state.held = [(wait - 1, deadline, frame) for wait, deadline, frame in state.held if wait > 1]
        return released

    def _enqueue(self, state: _Port, port: int, frame: bytes, now: float, shift: float) -> None:
        spec, due = self.spec, now
        if spec.rate_mbit:
            start = max(now, state.free_at)
            if start - now > QUEUE_MAX_S:
                self.counts["queue_full"] += 1
                return
            state.free_at = due = start + len(frame) * 8 / (spec.rate_mbit * 1e6)
        due += max(0.0, spec.delay_ms + spec.jitter_ms * (shift / 50 - 1)) / 1000
        state.last_due = due = max(due, state.last_due)
        self._serial += 1
        heapq.heappush(self._queue, (due, self._serial, port, frame))


def corrupted(frame: bytes, random: Random) -> bytes:
    """One bit flipped somewhere after the Ethernet header, so that the frame still arrives."""
    if len(frame) <= ETHERNET_SIZE:
        return frame
    where = random.randrange(ETHERNET_SIZE, len(frame))
    changed = bytearray(frame)
    changed[where] ^= 1 << random.randrange(8)
    return bytes(changed)
