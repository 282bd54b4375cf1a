"""The slow, obvious twin of native/conntrack*.c: a dict of flows, and the states written as sentences."""

from __future__ import annotations

from dataclasses import dataclass, field

TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

NEW, REPLIED, SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSING, TIME_WAIT, CLOSED = range(9)
STATES = ["NEW", "REPLIED", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSING", "TIME_WAIT", "CLOSED"]
HIT, INSERTED, IS_REPLY = 1, 2, 4
NOBODY = 0xFFFFFFFF
LIMITS_S = {SYN_SENT: 60, SYN_RECV: 60, ESTABLISHED: 86400, FIN_WAIT: 60, CLOSING: 60, TIME_WAIT: 60, CLOSED: 10}

End = tuple[bytes, int]

ANSWERS = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129, 139: 140}  # ICMP; every other message is answered by its kind


@dataclass(frozen=True)
class Flow:
    """A packet, as far as conntrack sees it."""

    src: bytes
    dst: bytes
    sport: int = 0
    dport: int = 0
    proto: int = TCP
    family: int = 4
    tcp_flags: int = 0
    flags: int = 0
    drop: int = 0
    size: int = 100
    icmp_type: int = 0

    @property
    def key(self) -> tuple[int, int, End, End]:
        ends = sorted(((self.src, self.sport), (self.dst, self.dport)))
        return self.family, self.proto, ends[0], ends[1]

    def reversed(self, **changes: int) -> Flow:
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        parts |= {"src": self.dst, "dst": self.src, "sport": self.dport, "dport": self.sport}
        return Flow(**(parts | changes))


@dataclass
class Entry:
    original: End
    owner: int
    proto: int
    created_ms: int
    kind: int = 0  # ICMP type of the first packet
    state: int = NEW
    closer: bool | None = None
    packets: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    seen_ms: int = 0
    expires_ms: int = 0

    @property
    def settled(self) -> bool:
        if not self.packets[1]:
            return False
        return self.proto != TCP or self.state in (ESTABLISHED, FIN_WAIT, CLOSING)

    def limit_ms(self) -> int:
        if self.proto == TCP:
            one_way = self.state == ESTABLISHED and not self.packets[1]
            return 300_000 if one_way else 1000 * LIMITS_S[self.state]
        if self.proto == UDP:
            return 120_000 if self.state == REPLIED else 30_000
        return 30_000 if self.proto in (ICMP, ICMP6) else 600_000


def segment(tcp_flags: int) -> str | None:
    """What kind of TCP segment this is; None when no sane end sends it."""
    fin, syn, rst, ack = (bool(tcp_flags & bit) for bit in (FIN, SYN, RST, ACK))
    if fin + syn + rst > 1:
        return None
    if rst:
        return "rst"
    if syn:
        return "syn+ack" if ack else "syn"
    if not ack:
        return None
    return "fin" if fin else "ack"


def advance(entry: Entry, kind: str, reply: bool) -> None:
    """The TCP states, one sentence each."""
    state = entry.state
    if kind == "rst":
        entry.state = CLOSED
    elif state == SYN_SENT and reply and kind in ("syn", "syn+ack"):
        entry.state = SYN_RECV
    elif state == SYN_RECV and (kind == "ack" or (kind == "syn+ack" and not reply)):
        entry.state = ESTABLISHED
    elif state in (SYN_RECV, ESTABLISHED) and kind == "fin":
        entry.state, entry.closer = FIN_WAIT, reply
    elif state == FIN_WAIT and kind == "fin" and reply != entry.closer:
        entry.state = CLOSING
    elif state == CLOSING and kind == "ack" and reply == entry.closer:
        entry.state = TIME_WAIT


class Twin:
    def __init__(self, limit: int, share: int, drops: dict[str, int]) -> None:
        self.limit, self.share, self.drops = limit, share, drops
        self.entries: dict[object, Entry] = {}

    def find(self, flow: Flow, now_ms: int) -> Entry | None:
        entry = self.entries.get(flow.key)
        if entry is None or flow.drop or flow.flags or entry.expires_ms <= now_ms:
            return None
        if flow.proto == TCP and entry.state in (TIME_WAIT, CLOSED) and segment(flow.tcp_flags) == "syn":
            return None
        answers = entry.original != (flow.src, flow.sport)
        if flow.proto in (ICMP, ICMP6) and flow.icmp_type != (
            ANSWERS.get(entry.kind, entry.kind) if answers else entry.kind
        ):
            return None
        return entry

    def track(self, flow: Flow, owner: int, now_ms: int) -> int:
        if flow.drop or flow.flags:
            return -flow.drop
        entry, result = self.find(flow, now_ms), HIT
        if entry is None:
            refused = self.refusal(flow, owner, now_ms)
            if refused:
                return -self.drops[refused]
            entry, result = Entry((flow.src, flow.sport), owner, flow.proto, now_ms, flow.icmp_type), INSERTED
            if flow.proto == TCP:
                entry.state = SYN_SENT if segment(flow.tcp_flags) == "syn" else ESTABLISHED
            self.entries[flow.key] = entry
        reply = entry.original != (flow.src, flow.sport)
        if flow.proto != TCP:
            entry.state = REPLIED if reply else entry.state
        else:
            kind = segment(flow.tcp_flags)
            if kind is None:
                return -self.drops["CT_INVALID"]
            advance(entry, kind, reply)
        entry.packets[reply] += 1
        entry.bytes[reply] += flow.size
        entry.seen_ms, entry.expires_ms = now_ms, now_ms + entry.limit_ms()
        return result | (IS_REPLY if reply else 0)

    def refusal(self, flow: Flow, owner: int, now_ms: int) -> str | None:
        """Why a flow may not be opened; an old one between the same ends is forgotten first."""
        if flow.proto == TCP and segment(flow.tcp_flags) in (None, "fin", "rst"):
            return "CT_INVALID"
        self.entries.pop(flow.key, None)
        if self.owned(owner) >= self.share and not self.evictable(now_ms, owner):
            return "CT_SHARE"
        if self.owned(owner) < self.share and len(self.entries) >= self.limit and not self.evictable(now_ms):
            return "CT_FULL"
        return None

    def owned(self, owner: int) -> int:
        return sum(entry.owner == owner for entry in self.entries.values()) if owner < 4096 else 0

    def evictable(self, now_ms: int, owner: int = NOBODY) -> set[object]:
        """What may go to make room: of one owner, or of all."""
        return {
            key
            for key, entry in self.entries.items()
            if owner in (NOBODY, entry.owner) and (entry.expires_ms <= now_ms or not entry.settled)
        }

    def sweep(self, now_ms: int) -> int:
        over = [key for key, entry in self.entries.items() if entry.expires_ms <= now_ms]
        for key in over:
            del self.entries[key]
        return len(over)
