"""The store in etcd: flannel's own schema, so that flanneld's nodes and ours are one cluster.

Structure   <prefix>/config                    the network config
            <prefix>/subnets/10.1.2.0-24       a lease (control/lease.py), `10.1.2.0-24&fd00:1::-64` with both families
            <prefix>/canal/<kind>/<key>        everything that is ours alone
Invariants  Nothing but a lease that flanneld understands is ever written under <prefix>/subnets: by one key that it
            cannot parse every running flanneld drops all its peers. Nor a lease that it crashes on: `create_lease`.
            Revisions are etcd's. Events that are not newer than what was seen are dropped (servers up to 3.5 repeat
            some), and every RELIST_S a watch brings a snapshot, which mends what they lost.
Expiry      An etcd lease of its own for each write, as flanneld has it; 0 is a reservation. Its id is ours to choose
            and holds the time of its end, so reading N leases needs no N questions; only those of others need one.
Faults      A watch that breaks is opened again at once, on any member; StoreUnavailable when that does not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

from grpclib.const import Status

from canal_udp.control.etcd_client import Client, Refused
from canal_udp.control.etcd_messages import (
    DELETE,
    EQUAL,
    GRANT,
    MOD,
    RANGE,
    REVOKE,
    TIME_TO_LIVE,
    TXN,
    WATCH,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RequestOp,
    WatchCreateRequest,
)
from canal_udp.control.etcd_url import EtcdUrl
from canal_udp.control.lease import Lease
from canal_udp.control.store import LEASES, NETWORK, NETWORK_KEY, Batch, Entry, Gone, Snapshot, TypedStore
from canal_udp.errors import LeaseError, StoreConflict, StoreError, StoreUnavailable
from canal_udp.net import printable

PAGE = 2000  # keys per answer
ASK_MAX = 64  # questions about the leases of others under way
RELIST_S = 600.0
TRIES = 5
TTL_MIN_S = 1  # etcd takes whole seconds

# An etcd lease id is 63 bits: ours are MARK, the unix second of the end, and noise that keeps two of them apart.
_MARK, _NOISE_BITS, _SECOND_BITS = 0xCA1, 18, 33


class EtcdStore(TypedStore):
    """thread: one event loop."""

    def __init__(
        self, url: EtcdUrl, *, wall: Callable[[], float] = time.time, rng: random.Random | None = None
    ) -> None:
        self._url, self._wall, self._rng = url, wall, rng or random.Random(os.urandom(16))
        self._client = Client(url, self._rng)
        self._cluster = 0  # its id, as last seen: another one means that everything is another
        self._ends: dict[int, float] = {}  # of the leases of others, by id
        self._closed = False

    async def create_lease(self, lease: Lease, ttl_s: float | None) -> Lease:
        """As the protocol says.

        Raises   LeaseError when the lease would crash a flanneld of this cluster: it cannot do without IPv4, nor with
                 leases of one family beside those of two. Nodes of ours name themselves in their leases.
        """
        if lease.subnet is None:
            raise LeaseError(
                "flannel's schema in etcd has no leases without IPv4: give the network config an IPv4 Network"
            )
        for other in (await self.list_leases()).leases:
            if not other.node and (other.subnet6 is None) != (lease.subnet6 is None) and other.key != lease.key:
                raise LeaseError(
                    f"{lease.key} would crash the flanneld that wrote {other.key}, one has IPv6 and one has not: "
                    "change EnableIPv6 in the network config, or end all leases of the other kind"
                )
        return await super().create_lease(lease, ttl_s)

    # ---- reading ----

    async def _list(self, kind: str) -> Snapshot:
        for _ in range(TRIES):
            try:
                return await self._list_once(kind)
            except Refused as error:
                if error.status is not Status.OUT_OF_RANGE:
                    raise
        raise StoreUnavailable("etcd forgets revisions faster than they can be read")

    async def _list_once(self, kind: str) -> Snapshot:
        first, end = self._span(kind)
        revision, found, more = 0, [], True
        while more:
            request = RANGE.request(key=first, range_end=end, limit=PAGE, revision=revision)
            reply = await self._client.call(RANGE, request)
            revision = revision or reply.header.revision
            self._cluster = reply.header.cluster_id
            found += reply.kvs
            more = reply.more and len(reply.kvs) > 0
            first = found[-1].key + b"\0" if more else first
        await self._ask_ends(kv.lease for kv in found)
        if kind == LEASES:
            self._ends = {kv.lease: self._ends[kv.lease] for kv in found if kv.lease in self._ends}
        return Snapshot(revision, tuple(self._entry(kind, kv) for kv in found))

    def _entry(self, kind: str, kv: Any) -> Entry:
        return Entry(self._key(kind, kv.key), kv.value, kv.mod_revision, kv.create_revision, self._end_of(kv.lease))

    # ---- writing ----

    async def _put(self, kind: str, key: str, value: bytes, expect: int | None, ttl_s: float | None) -> Entry:
        name = self._name(kind, key)
        lease = 0 if ttl_s is None else await self._grant(ttl_s)
        put = RequestOp(request_put=PutRequest(key=name, value=value, lease=lease, prev_kv=True))
        try:
            reply, done = await self._swap(kind, key, name, expect, put)
        except StoreConflict:
            await self._revoke(lease)
            raise
        before = done.response_put.prev_kv
        await self._revoke(before.lease)  # it holds no key any more
        revision = reply.header.revision
        return Entry(key, value, revision, before.create_revision or revision, self._end_of(lease))

    async def _delete(self, kind: str, key: str, expect: int | None) -> bool:
        name = self._name(kind, key)
        delete = RequestOp(request_delete_range=DeleteRangeRequest(key=name, prev_kv=True))
        _, done = await self._swap(kind, key, name, expect, delete)
        for kv in done.response_delete_range.prev_kvs:
            await self._revoke(kv.lease)
        return bool(done.response_delete_range.deleted)

    async def _swap(self, kind: str, key: str, name: bytes, expect: int | None, change: Any) -> tuple[Any, Any]:
        """Do one thing to a key if it is at the revision; returns the whole answer and the thing's part of it."""
        compare = [] if expect is None else [Compare(result=EQUAL, target=MOD, key=name, mod_revision=expect)]
        look = RequestOp(request_range=RANGE.request(key=name))
        reply = await self._client.call(TXN, TXN.request(compare=compare, success=[change], failure=[look]))
        (done,) = reply.responses
        if not reply.succeeded:
            found = next((kv.mod_revision for kv in done.response_range.kvs), 0)
            raise StoreConflict(f"{kind}/{printable(key)} is at revision {found}, not {expect}")
        return reply, done

    # ---- watching ----

    async def _watch(self, kind: str, after: int) -> AsyncIterator[Batch | Snapshot]:
        fresh = True  # nothing has come since the watch was opened
        while not self._closed:
            try:
                async with contextlib.aclosing(self._watch_once(kind, after)) as updates:
                    async for update in updates:
                        fresh = False
                        if isinstance(update, Snapshot) or update.changes:
                            yield update
                        after = update.revision
            except StoreUnavailable:
                if self._closed:
                    return
                if fresh:
                    raise
            fresh = True

    async def _watch_once(self, kind: str, after: int) -> AsyncGenerator[Batch | Snapshot, None]:
        """Watch until RELIST_S have passed, or from after a revision that etcd does not have; ends with a snapshot."""
        first, end = self._span(kind)
        create = WatchCreateRequest(
            key=first, range_end=end, start_revision=after + 1, progress_notify=True, prev_kv=True
        )
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(RELIST_S * self._rng.uniform(0.8, 1.2)),
                self._client.stream(WATCH, WATCH.request(create_request=create)) as receive,
            ):
                while True:
                    reply = await receive()
                    if self._cannot_go_on(reply, after):
                        break
                    update = await self._batch(kind, reply, after)
                    after = update.revision
                    yield update
        yield await self._list(kind)

    def _cannot_go_on(self, reply: Any, after: int) -> bool:
        """Does an answer say that what follows the revision is not to be had? Raises what else ends a watch."""
        if reply.canceled and not reply.compact_revision:
            raise StoreError(f"etcd ended the watch: {printable(reply.cancel_reason or 'it did not say why', 300)}")
        another = self._cluster not in (0, reply.header.cluster_id)
        return bool(reply.canceled) or (reply.created and (reply.header.revision < after or another))

    async def _batch(self, kind: str, reply: Any, after: int) -> Batch:
        events = [event for event in reply.events if event.kv.mod_revision > after]
        if not reply.events:  # progress: nothing of ours happened until then
            return Batch(after if reply.created else max(after, reply.header.revision), ())
        await self._ask_ends(event.kv.lease for event in events)
        revision = max((event.kv.mod_revision for event in events), default=after)
        return Batch(revision, tuple(self._change(kind, event) for event in events))

    def _change(self, kind: str, event: Any) -> Entry | Gone:
        if event.type != DELETE:
            return self._entry(kind, event.kv)
        ended = self._end_of(event.prev_kv.lease) if event.prev_kv.lease else None
        expired = ended is not None and ended <= self._wall()
        return Gone(self._key(kind, event.kv.key), event.kv.mod_revision, expired)

    async def close(self) -> None:
        self._closed = True
        await self._client.close()

    # ---- etcd's leases ----

    async def _grant(self, ttl_s: float) -> int:
        ends = min(math.ceil(self._wall() + ttl_s), (1 << _SECOND_BITS) - 1)
        for _ in range(TRIES):
            lease = ((_MARK << _SECOND_BITS | ends) << _NOISE_BITS) | self._rng.getrandbits(_NOISE_BITS)
            try:
                await self._client.call(GRANT, GRANT.request(TTL=max(math.ceil(ttl_s), TTL_MIN_S), ID=lease))
            except Refused as error:
                if error.status is not Status.FAILED_PRECONDITION:  # it exists: draw again
                    raise
            else:
                return lease
        raise StoreUnavailable("etcd has leases of all the ids that were tried")

    async def _revoke(self, lease: int) -> None:
        """End a lease of ours that holds nothing, which it would do by itself; whatever goes wrong."""
        if end_within(lease) is not None:
            with contextlib.suppress(StoreError):
                await self._client.call(REVOKE, REVOKE.request(ID=lease))

    async def _ask_ends(self, leases: Iterable[int]) -> None:
        """Learn when the leases of others end. An answer that does not come costs nothing but the time of the end."""
        unknown = {lease for lease in leases if lease and end_within(lease) is None and lease not in self._ends}
        limit = asyncio.Semaphore(ASK_MAX)

        async def ask(lease: int) -> None:
            ttl_s = 0
            async with limit:
                with contextlib.suppress(StoreError):
                    ttl_s = (await self._client.call(TIME_TO_LIVE, TIME_TO_LIVE.request(ID=lease))).TTL
            self._ends[lease] = self._wall() + max(ttl_s, 0)

        await asyncio.gather(*(ask(lease) for lease in unknown))

    def _end_of(self, lease: int) -> float | None:
        if not lease:
            return None
        ours = end_within(lease)
        return self._ends.get(lease, self._wall()) if ours is None else ours

    # ---- names ----

    def _span(self, kind: str) -> tuple[bytes, bytes]:
        """First key and end of a kind, as etcd's ranges have them; no end is one key."""
        if kind == NETWORK:
            return self._name(kind, NETWORK_KEY), b""
        folder = self._name(kind, "")
        return folder, folder[:-1] + bytes([folder[-1] + 1])

    def _name(self, kind: str, key: str) -> bytes:
        folder = {NETWORK: "", LEASES: "subnets/"}.get(kind, f"canal/{kind}/")
        return f"{self._url.prefix}/{folder}{key}".encode(errors="surrogateescape")

    def _key(self, kind: str, name: bytes) -> str:
        folder = 0 if kind == NETWORK else len(self._name(kind, ""))
        return NETWORK_KEY if kind == NETWORK else name[folder:].decode(errors="surrogateescape")


def end_within(lease: int) -> float | None:
    """The unix second in a lease id of ours; None for one that etcd chose."""
    if lease >> (_NOISE_BITS + _SECOND_BITS) != _MARK:
        return None
    return float(lease >> _NOISE_BITS & (1 << _SECOND_BITS) - 1)
