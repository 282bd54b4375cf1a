"""The store in etcd beyond what every store does: flannel's bytes, others' keys, and what goes wrong with servers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from etcd_server import MISSING, Etcd, binaries, etcd_in, free_ports
from watched import watching

from canal_udp.control import etcd as etcd_module
from canal_udp.control.acquire import Claim, Previous, acquire, keep
from canal_udp.control.etcd import EtcdStore, end_within
from canal_udp.control.etcd_url import parse
from canal_udp.control.lease import Lease
from canal_udp.control.network import NetworkConfig
from canal_udp.control.store import BadEntry, Gone, LeaseSnapshot, open_store
from canal_udp.errors import LeaseError, LeaseLost, StoreConflict, StoreError, StoreUnavailable

pytestmark = pytest.mark.skipif(not binaries(), reason=MISSING)

DEADLINE_S = 30.0
FROZEN_S = 5.0
DAY_S = 86400.0
PREFIX = "/coreos.com/network"
SUBNETS = f"{PREFIX}/subnets/"

UDP = Lease(IPv4Network("10.3.1.0/24"), None, IPv4Address("1.2.3.4"))
VXLAN = replace(UDP, encap="vxlan", vtep_mac=bytes.fromhex("c6d2326f8f44"))
DUAL = Lease(
    IPv4Network("10.12.13.0/24"),
    IPv6Network("fd00:12:13::/56"),
    IPv4Address("192.168.64.3"),
    IPv6Address("fd77::3"),
    encap="vxlan",
    vtep_mac=bytes.fromhex("c6d2326f8f44"),
    vtep_mac6=bytes.fromhex("c6d2326f8f45"),
)
_VXLAN_DATA = b'"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd_in(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def server(shared: Etcd) -> Etcd:
    """A server without keys."""
    shared.ask("kv/deleterange", key=b"\0", range_end=b"\0")
    return shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Etcd]:
    """A server for a test that does something to it."""
    with etcd_in(tmp_path) as server:
        yield server


def run(body: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def opened(*stores: EtcdStore) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for store in stores:
            await store.close()


def flanneld_puts(server: Etcd, name: str, value: bytes | str, ttl_s: int = 86400) -> int:
    """As flanneld writes a lease, byte for byte; returns the id of the etcd lease that it got."""
    lease = int(server.ask("lease/grant", TTL=ttl_s)["ID"]) if ttl_s else 0
    raw = value.encode() if isinstance(value, str) else value
    server.ask("kv/put", key=f"{PREFIX}/{name}".encode(), value=raw, lease=lease)
    return lease


# ---- flannel's schema ------------------------------------------------------------------------------------------------

BYTES = [
    pytest.param(UDP, "10.3.1.0-24", b'{"PublicIP":"1.2.3.4","PublicIPv6":null}', id="udp"),
    pytest.param(VXLAN, "10.3.1.0-24", b'{"PublicIP":"1.2.3.4","PublicIPv6":null,' + _VXLAN_DATA + b"}", id="vxlan"),
    pytest.param(
        DUAL,
        "10.12.13.0-24&fd00:12:13::-56",
        b'{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::3",'
        + _VXLAN_DATA
        + b',"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}',
        id="both families",
    ),
]


@pytest.mark.parametrize(("lease", "key", "value"), BYTES)
def test_a_lease_is_what_flanneld_writes(server: Etcd, lease: Lease, key: str, value: bytes) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            made = await store.create_lease(lease, DAY_S)
            assert server.keys(PREFIX) == {SUBNETS + key: value}
            (held,) = server.leases(PREFIX)
            ttl = server.ask("lease/timetolive", ID=held)
            assert int(ttl["grantedTTL"]) == 86400
            assert end_within(held) == made.expires_at
            renewed = await store.renew_lease(made, DAY_S)
            assert server.keys(PREFIX) == {SUBNETS + key: value}
            assert server.leases(PREFIX).isdisjoint({held})
            assert "TTL" not in (gone := server.ask("lease/timetolive", ID=held)) or int(gone["TTL"]) < 0
            await store.delete_lease(renewed, renewed.revision)
            assert server.keys(PREFIX) == {}

    run(body())


@pytest.mark.parametrize(("lease", "key", "value"), BYTES)
def test_a_lease_that_flanneld_wrote_is_read(server: Etcd, lease: Lease, key: str, value: bytes) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            before = time.time()
            flanneld_puts(server, f"subnets/{key}", value)
            (found,) = (await store.list_leases()).leases
            assert replace(found, revision=0, created=0, expires_at=None) == lease
            assert found.expires_at is not None and abs(found.expires_at - before - DAY_S) < 60

    run(body())


def test_everything_of_ours_is_elsewhere(server: Etcd) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            await store.put_network("{}")
            await store.put("endpoints", "n1/ns/pod", b"1")
            await store.put("policies", "p", b"2")
            names = [f"{PREFIX}/canal/endpoints/n1/ns/pod", f"{PREFIX}/canal/policies/p", f"{PREFIX}/config"]
            assert [*server.keys("/")] == names

    run(body())


def test_what_would_crash_flanneld_is_not_written(server: Etcd) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            with pytest.raises(LeaseError, match="without IPv4"):
                await store.create_lease(replace(DUAL, subnet=None), DAY_S)
            flanneld_puts(server, "subnets/10.3.1.0-24", BYTES[0].values[2])
            with pytest.raises(LeaseError, match=r"would crash the flanneld that wrote 10\.3\.1\.0-24"):
                await store.create_lease(DUAL, DAY_S)
            await store.create_lease(replace(UDP, subnet=IPv4Network("10.3.2.0/24")), DAY_S)
            assert len(server.keys(SUBNETS)) == 2

    run(body())


# ---- what others write -----------------------------------------------------------------------------------------------

FOREIGN = {
    "subnetsX": b"x",
    "subnets": b"x",
    "subnets/foo": b"x",
    "subnets/10.3.9.0-24hi": b'{"PublicIP":"9.9.9.9"}',
    "subnets/10.3.10.0-24": b"not json",
    "subnets/10.3.11.0-24": b'{"PublicIP":null}',
    "subnets/10.3.12.0-24": b'{"PublicIP":""}',
    "subnets/10.3.13.0-24&2001::": b'{"PublicIP":"9.9.9.9"}',
    "subnets/10.3.14.0-24": b"\xff\xfe",
    "subnets/\u00e4": b'{"PublicIP":"9.9.9.9"}',
}


def test_foreign_keys_cost_themselves(server: Etcd) -> None:
    """Put and deleted while a watch is open, and there when it begins: no peer is lost."""

    async def body() -> None:
        store = server.store()
        async with opened(store):
            flanneld_puts(server, "subnets/10.3.1.0-24", BYTES[0].values[2])
            start = state = await store.list_leases()
            async with watching(store.watch_leases(start.revision)) as watched:
                for name, value in FOREIGN.items():
                    flanneld_puts(server, name, value, ttl_s=0)
                for name in FOREIGN:
                    server.ask("kv/deleterange", key=f"{PREFIX}/{name}".encode())
                flanneld_puts(server, "subnets/10.3.2.0-24", BYTES[0].values[2])
                last = "10.3.2.0-24"
                await watched.until(lambda: watched.changes and watched.changes[-1].key == last)
                for update in watched.updates:
                    assert not isinstance(update, LeaseSnapshot)
                    state = state.apply(update)
                    assert state.leases[0] == start.leases[0]
                assert sum(isinstance(change, BadEntry) for change in watched.changes) == len(FOREIGN) - 2
                assert sum(isinstance(change, Gone) for change in watched.changes) == len(FOREIGN) - 2
            assert state == await store.list_leases()

    run(body())


def test_a_key_that_is_no_text(server: Etcd) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            server.ask("kv/put", key=SUBNETS.encode() + b"\xff\x00", value=b"{}")
            (bad,) = (await store.list_leases()).bad
            assert bad.problem.isprintable()

    run(body())


def test_a_reservation_stays_one(server: Etcd) -> None:
    """A key without etcd lease keeps its subnet for its owner; starting and renewing leave it without one."""

    async def body() -> None:
        store = server.store()
        async with opened(store):
            flanneld_puts(server, "subnets/10.3.7.0-24", b'{"PublicIP":"1.2.3.4"}', ttl_s=0)
            network = NetworkConfig.from_json('{"Network":"10.3.0.0/16"}')
            claim = Claim(IPv4Address("1.2.3.4"))
            held = await acquire(store, claim, network, Previous(), DAY_S, store._rng)
            assert (held.key, held.expires_at) == ("10.3.7.0-24", None)
            held = await keep(store, claim, held, DAY_S)
            assert (held.expires_at, server.leases(PREFIX)) == (None, set())

    run(body())


def test_a_lease_that_etcd_ends(server: Etcd) -> None:
    """Real time: two seconds are the least that etcd grants with its usual heartbeat."""

    async def body() -> None:
        store = server.store()
        async with opened(store):
            made = await store.create_lease(UDP, 1.0)
            async with watching(store.watch_leases(made.revision)) as watched:
                await watched.until(lambda: watched.changes)
            assert watched.changes[0].key == made.key
            assert watched.changes[0].expired
            with pytest.raises(LeaseLost):
                await store.renew_lease(made, DAY_S)
            again = await keep(store, Claim(UDP.public_ip), made, DAY_S)  # the same subnet, before giving up
            assert (again.key, again.created > made.created) == (made.key, True)

    run(body())


def test_a_stolen_lease_is_not_written_over(server: Etcd) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            claim = Claim(UDP.public_ip, node="n")
            held = await store.create_lease(claim.lease(UDP.subnet, None), DAY_S)
            flanneld_puts(server, "subnets/10.3.1.0-24", b'{"PublicIP":"6.6.6.6","PublicIPv6":null}')
            with pytest.raises(LeaseLost, match=r"6\.6\.6\.6"):
                await keep(store, claim, held, DAY_S)
            assert b"6.6.6.6" in server.keys(SUBNETS)[SUBNETS + held.key]

    run(body())


# ---- servers that fail -----------------------------------------------------------------------------------------------


def test_a_watch_survives_kill_9_and_misses_nothing(own: Etcd) -> None:
    async def body() -> None:
        store, other = own.store(), own.store()
        async with opened(store, other):
            first = await store.create_lease(UDP, DAY_S)
            state = await store.list_leases()
            updates: list[Any] = []
            for n in range(2, 4):
                own.kill()
                own.start()
                new = replace(UDP, subnet=IPv4Network(f"10.3.{n}.0/24"))
                await insist(lambda new=new: other.create_lease(new, DAY_S))
                async with watching(again(store, state.revision)) as watched:
                    await watched.until(lambda watched=watched: watched.changes)
                    updates += watched.updates
                    own.kill()
                    own.start()
                    await insist(lambda new=new: other.delete_lease(new))
                    await watched.until(lambda watched=watched: len(watched.changes) == 2)
                    updates += watched.updates[1:]
                state = folded(state, updates)
            assert state.leases == (first,) == (await store.list_leases()).leases

    run(body())


async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
    """The connection of before the restart fails once."""
    try:
        return await call()
    except StoreUnavailable:
        return await call()


async def again(store: EtcdStore, after: int) -> AsyncIterator[Any]:
    """As the daemon does: a watch that broke is watched again from where it was."""
    while True:
        try:
            async for update in store.watch_leases(after):
                after = update.revision
                yield update
        except StoreUnavailable:
            await asyncio.sleep(0.05)


def folded(state: LeaseSnapshot, updates: list[Any]) -> LeaseSnapshot:
    for update in updates:
        state = state.apply(update)
    return state


def test_a_frozen_server_is_noticed(own: Etcd) -> None:
    """SIGSTOP: the watch and a call fail within FROZEN_S, and what happens after the thaw is seen."""

    async def body() -> None:
        store = own.store()
        async with opened(store):
            made = await store.create_lease(UDP, DAY_S)
            async with watching(store.watch_leases(made.revision)) as watched:
                renewed = await store.renew_lease(made, DAY_S)
                await watched.until(lambda: watched.updates)
                own.freeze()
                began = time.monotonic()
                with pytest.raises(StoreUnavailable, match="no answer"):
                    await store.renew_lease(renewed, DAY_S)
                with pytest.raises(StoreUnavailable):
                    await watched.task
                assert time.monotonic() - began < 2 * FROZEN_S  # the watch tried once more
                own.thaw()
            async with watching(again(store, renewed.revision)) as watched:
                await store.put_network("{}")
                await store.delete_lease(UDP)
                await watched.until(lambda: watched.changes)
                assert isinstance(watched.changes[-1], Gone)

    run(body())


def test_the_next_member_takes_over(own: Etcd) -> None:
    """Several endpoints: those that refuse or do not answer are passed over, whichever is asked first."""

    async def body() -> None:
        (refusing,) = free_ports(1)
        for first in range(4):
            url = parse(f"etcd://127.0.0.1:{refusing},{own.host}:{own.port}", {})
            store = EtcdStore(url)
            store._client._members.sort(reverse=first % 2 == 0)
            async with opened(store):
                await store.put_network(str(first))

    run(body())


def test_nobody_there(tmp_path: Path) -> None:
    async def body() -> None:
        one, two = free_ports(2)
        store = open_store(f"etcd://127.0.0.1:{one},127.0.0.1:{two}/x")
        with pytest.raises(StoreUnavailable) as caught:
            await store.list_leases()
        assert str(one) in str(caught.value) and str(two) in str(caught.value)
        await store.close()

    run(body())


def test_a_server_that_speaks_something_else(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async def body() -> None:
        other = await asyncio.start_server(talk, "127.0.0.1", 0)
        async with other:
            store = open_store(f"etcd://127.0.0.1:{other.sockets[0].getsockname()[1]}")
            with pytest.raises(StoreUnavailable):
                await store.list_leases()
            await store.close()

    run(body())


def test_the_cluster_behind_the_address_is_another(own: Etcd, tmp_path: Path) -> None:
    """Begun anew with more revisions than the old one had: what is resumed is nothing of the past."""

    async def body() -> None:
        store = own.store()
        async with opened(store):
            made = await store.create_lease(UDP, DAY_S)
            own.kill()
            shutil.rmtree(tmp_path / "data")
            own.flags["initial-cluster-token"] = "another"
            own.start()
            for n in range(20):
                own.ask("kv/put", key=b"other", value=str(n).encode())
            async with watching(again(store, made.revision)) as watched:
                await watched.until(lambda: watched.updates)
                assert isinstance(watched.updates[0], LeaseSnapshot)
                assert watched.updates[0].leases == ()

    run(body())


def test_a_full_server_refuses_writes_and_goes_on_answering(tmp_path: Path) -> None:
    async def body() -> None:
        with etcd_in(tmp_path, flags={"quota-backend-bytes": "300000"}) as server:
            store = server.store()
            async with opened(store):
                made = await store.create_lease(UDP, DAY_S)
                with pytest.raises(StoreUnavailable, match="space exceeded"):
                    await put_many(store)
                with pytest.raises(StoreUnavailable, match="space exceeded"):
                    await store.renew_lease(made, DAY_S)
                assert (await store.list_leases()).leases == (made,)
                async with watching(store.watch_leases(made.revision)) as watched:
                    await store.delete_lease(made, made.revision)
                    await watched.until(lambda: watched.changes)

    run(body())


async def put_many(store: EtcdStore) -> None:
    """More than fits; a server that writes in the background notices late."""
    for n in range(2000):
        await store.put("policies", str(n), bytes(20_000))


def test_a_value_that_is_too_large_is_refused(server: Etcd) -> None:
    async def body() -> None:
        store = server.store()
        async with opened(store):
            with pytest.raises(StoreError, match="too large") as caught:
                await store.put("policies", "x", bytes(2_000_000))
            assert not isinstance(caught.value, StoreUnavailable)
            await store.put("policies", "x", bytes(1000))

    run(body())


def test_now_and_then_everything_is_read_again(server: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server's bug kept from a watch is found."""
    monkeypatch.setattr(etcd_module, "RELIST_S", 0.05)

    async def body() -> None:
        store = server.store()
        async with opened(store):
            made = await store.create_lease(UDP, DAY_S)
            async with watching(store.watch_leases(made.revision)) as watched:
                await watched.until(lambda: len(watched.updates) >= 2)
                listed = await store.list_leases()
                assert all(update == listed for update in watched.updates)
                await store.delete_lease(made)
                await watched.until(lambda: getattr(watched.updates[-1], "leases", None) == ())

    run(body())


def test_pages_are_of_one_revision(server: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "PAGE", 7)

    async def body() -> None:
        store, other = server.store(), server.store()
        async with opened(store, other):
            for n in range(1, 51):
                await store.put("policies", f"{n:03}", b"%d" % n)

            async def churn() -> None:
                while True:
                    await other.put("policies", "001", b"x")
                    await other.delete("policies", "050")
                    await other.put("policies", "050", b"50")

            churning = asyncio.create_task(churn())
            for _ in range(20):
                found = await store.list("policies")
                assert len(found.entries) in (49, 50)
                assert max(entry.revision for entry in found.entries) <= found.revision
            churning.cancel()
            await asyncio.gather(churning, return_exceptions=True)

    run(body())


# ---- TLS and users ---------------------------------------------------------------------------------------------------


class Authority:
    """Certificates by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._new_key("ca", "-x509", "-days", "2", "-out", str(self.ca))

    def issue(self, name: str, days: int = 2) -> tuple[str, str]:
        """A certificate for `name` at 127.0.0.1, signed by us; returns the files of certificate and key."""
        paths = {suffix: self.folder / f"{name}.{suffix}" for suffix in ("pem", "key", "csr", "ext")}
        self._new_key(name, "-out", str(paths["csr"]))
        paths["ext"].write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            *("x509", "-req", "-in", str(paths["csr"]), "-out", str(paths["pem"]), "-days", str(days)),
            *("-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key"), "-CAcreateserial"),
            *("-extfile", str(paths["ext"])),
        )
        return str(paths["pem"]), str(paths["key"])

    def _new_key(self, name: str, *words: str) -> None:
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        self._openssl("req", *kind, "-keyout", str(self.folder / f"{name}.key"), "-subj", f"/CN={name}", *words)

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.contextmanager
def tls_server(authority: Authority, days: int = 2) -> Iterator[Etcd]:
    """A server that wants to see certificates of the authority."""
    cert, key = authority.issue("server", days)
    flags = {"cert-file": cert, "key-file": key, "trusted-ca-file": str(authority.ca), "client-cert-auth": "true"}
    server = Etcd(authority.folder / "etcd", flags=flags)
    server.scheme = "https"
    try:
        yield server.start()
    finally:
        server.stop()


def test_tls_with_certificates(authority: Authority) -> None:
    async def body() -> None:
        with tls_server(authority) as server:
            cert, key = authority.issue("node")
            query = f"?cacert={authority.ca}&cert={cert}&key={key}"
            store = server.store(query=query)
            async with opened(store):
                assert (await store.create_lease(UDP, DAY_S)).revision
            bare, stranger = server.store(), server.store(query=f"?cert={cert}&key={key}")
            nameless = server.store(query=f"?cacert={authority.ca}")
            missing = server.store(query=f"?cacert={authority.folder}/none.pem")
            async with opened(bare, stranger, nameless, missing):
                for one, problem in (
                    (bare, "etcd at"),
                    (stranger, "unable to get local issuer|self.signed"),
                    (nameless, "etcd at"),
                    (missing, "none.pem: No such file"),
                ):
                    with pytest.raises(StoreUnavailable, match=problem):
                        await one.list_leases()

    run(body())


def test_a_certificate_that_ends_while_we_run(authority: Authority) -> None:
    """The connection goes on; a new one is refused until there is a new certificate, and then taken without restart."""

    async def body() -> None:
        with tls_server(authority) as server:
            cert, key = authority.issue("node")
            store = server.store(query=f"?cacert={authority.ca}&cert={cert}&key={key}")
            async with opened(store):
                made = await store.create_lease(UDP, DAY_S)
                authority.issue("server", days=-1)
                made = await store.renew_lease(made, DAY_S)
                server.kill()
                server.start()
                with pytest.raises(StoreUnavailable):
                    await store.list_leases()
                with pytest.raises(StoreUnavailable, match="expired"):
                    await store.list_leases()
                authority.issue("server")
                assert (await store.list_leases()).leases == (made,)
                authority.issue("node", days=-1)
                server.kill()
                server.start()
                for _ in range(2):
                    with pytest.raises(StoreUnavailable):
                        await store.list_leases()
                authority.issue("node")
                assert (await store.list_leases()).leases == (made,)

    run(body())


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def protect(server: Etcd) -> Callable[..., Any]:
    """Users root and canal, who may touch our prefix only; returns how root asks."""
    for name, password in (("root", "r00t"), ("canal", "s3cret")):
        server.ask("auth/user/add", name=name, password=password)
        server.ask("auth/role/add", name=name)
        server.ask("auth/user/grant", user=name, role=name)
    permission = {"permType": 2, "key": b64(f"{PREFIX}/"), "range_end": b64(f"{PREFIX}0")}
    server.ask("auth/role/grant", name="canal", perm=permission)
    server.ask("auth/enable")

    def as_root(path: str, **fields: object) -> Any:
        token = server.ask("auth/authenticate", name="root", password="r00t")["token"]
        return server.ask(path, token=token, **fields)

    return as_root


def test_user_and_password(own: Etcd, tmp_path: Path) -> None:
    async def body() -> None:
        as_root = protect(own)
        (tmp_path / "password").write_text("s3cret\n")
        store = own.store(query=f"?user=canal&password-file={tmp_path}/password")
        wrong = own.store(environ={"ETCDCTL_USER": "canal:guess"})
        nobody, elsewhere = own.store(), own.store("/elsewhere", {"ETCDCTL_USER": "canal:s3cret"})
        async with opened(store, wrong, nobody, elsewhere):
            made = await store.create_lease(UDP, DAY_S)
            for one, problem in ((wrong, "authentication failed"), (nobody, "user name is empty")):
                with pytest.raises(StoreError, match=problem):
                    await one.list_leases()
            with pytest.raises(StoreError, match="permission denied"):
                await elsewhere.list_leases()
            with pytest.raises(StoreError, match="permission denied"):
                await anext(elsewhere.watch_leases(1))
            own.kill()  # simple tokens do not outlive the server
            own.start()
            with contextlib.suppress(StoreUnavailable):
                await store.list_leases()
            assert (await store.list_leases()).leases == (made,)
            as_root("auth/user/revoke", name="canal", role="canal")
            for _ in range(2):
                with pytest.raises(StoreError, match="permission denied") as caught:
                    await store.renew_lease(made, DAY_S)
                assert not isinstance(caught.value, StoreConflict | StoreUnavailable)
                assert "s3cret" not in str(caught.value)

    run(body())


def test_a_token_that_is_no_longer_valid_is_replaced(own: Etcd) -> None:
    async def body() -> None:
        protect(own)
        store = own.store(environ={"ETCDCTL_USER": "canal:s3cret"})
        async with opened(store):
            made = await store.create_lease(UDP, DAY_S)
            assert store._client._connection is not None
            store._client._connection._metadata["token"] = "stale.1"
            assert (await store.list_leases()).leases == (made,)

    run(body())
