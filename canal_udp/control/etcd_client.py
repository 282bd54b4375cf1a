"""Calls to an etcd cluster over gRPC: one connection to one of its members at a time.

Structure    Client ─► _Connection (TLS, token) ─► grpclib ─► a member; when it fails the next call takes the next one
Liveness     While a watch is open the member is asked for something small every PROBE_S; who does not answer within
             ANSWER_S is frozen, or gone without a word: the connection is closed, and all that waits on it fails.
             (HTTP/2 PINGs would do as well, but etcd ends connections that send them more often than every 5 s.)
Faults       A call ends within CALL_S, in an answer or in one of
             StoreUnavailable  nobody answers, or cannot now (no leader, no space): try later; it may have been done.
             StoreError        the answer is no, and will be no until someone changes something.
             Nothing is sent twice on its own, except to a member that refused the token of another one.
Threads      one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from canal_udp.control.bell import rung
from canal_udp.control.etcd_messages import AUTHENTICATE, RANGE, Method
from canal_udp.control.etcd_url import EtcdUrl
from canal_udp.errors import StoreError, StoreUnavailable
from canal_udp.net import printable

CALL_S = 4.5  # a call; a healthy cluster answers in milliseconds, a frozen one is noticed within 5 s
CONNECT_S = 2.0  # TCP and TLS
PROBE_S = 2.0
ANSWER_S = 2.0  # to a probe, and to the first request on a new connection
WINDOW_BYTES = 16 << 20  # of what may be on its way to us: a list of all leases needs no round trips

_REFUSED = {
    Status.PERMISSION_DENIED,
    Status.INVALID_ARGUMENT,
    Status.FAILED_PRECONDITION,
    Status.OUT_OF_RANGE,
    Status.NOT_FOUND,
    Status.UNIMPLEMENTED,
    Status.UNAUTHENTICATED,
}
_TOKEN_PROBLEMS = ("invalid auth token", "user name is empty", "revision in header is old", "revision of auth store")


class Refused(StoreError):
    """etcd's own error, with its gRPC status."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One cluster."""

    def __init__(self, url: EtcdUrl, rng: random.Random) -> None:
        self._url = url
        self._members = rng.sample(url.endpoints, len(url.endpoints))  # not every node asks the same one first
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def call(self, method: Method, request: Any) -> Any:
        """Ask one thing."""
        connection = await self._connected()
        try:
            return await connection.call(method, request, CALL_S)
        except Refused as error:
            if not self._url.user or not any(problem in str(error) for problem in _TOKEN_PROBLEMS):
                raise
        await connection.authenticate()  # tokens end, and every member has its own
        return await connection.call(method, request, CALL_S)

    @contextlib.asynccontextmanager
    async def stream(self, method: Method, request: Any) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        """Send a request whose answers do not end; gives what waits for the next of them."""
        connection = await self._connected()
        async with connection.stream(method, request) as receive:
            yield receive

    async def close(self) -> None:
        """End everything that is under way."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._connection is None or self._connection.lost:
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> _Connection:
        """Connect to the first member that answers; the one that failed last is asked last."""
        if self._connection is not None:
            await self._connection.close()
            self._members.append(self._members.pop(0))
        problems = []
        for _ in range(len(self._members)):
            connection = _Connection(self._url, *self._members[0])
            try:
                await connection.open()
            except StoreError as error:
                await connection.close()
                problems.append(str(error))
                self._members.append(self._members.pop(0))
            except BaseException:
                await connection.close()
                raise
            else:
                return connection
        raise StoreUnavailable("; ".join(problems))


class _Connection:
    """To one member, once: when it is lost another one takes its place."""

    def __init__(self, url: EtcdUrl, host: str, port: int) -> None:
        self._url, self._host, self._port = url, host, port
        self._name = f"etcd at {host}:{port}"
        self._channel: Channel | None = None
        self._metadata: dict[str, str] = {"hasleader": "true"}  # a member without a leader refuses
        self._streams = 0
        self._prober: asyncio.Task[None] | None = None
        self._quit = asyncio.Event()
        self.lost = False
        self._fault = ""  # that ended it; what fails because of that says the same

    async def open(self) -> None:
        """Connect, log in, and see it answer. Raises StoreUnavailable, or StoreError when the login is wrong."""
        with self._faults():
            config = Configuration(http2_connection_window_size=WINDOW_BYTES, http2_stream_window_size=WINDOW_BYTES)
            self._channel = Channel(self._host, self._port, ssl=_tls(self._url), config=config)
            async with asyncio.timeout(CONNECT_S):  # asyncio.wait_for of 3.11 can swallow a cancellation
                await self._channel.__connect__()
        if self._url.user:
            await self.authenticate()
        await self._probe()

    async def authenticate(self) -> None:
        """Get a token for the user's name and password."""
        if self._url.cert and not (self._url.password or self._url.password_file):
            return  # the certificate says who we are
        with self._faults():
            request = AUTHENTICATE.request(name=self._url.user, password=_password(self._url))
        self._metadata.pop("token", None)
        reply = await self.call(AUTHENTICATE, request, ANSWER_S)
        self._metadata["token"] = reply.token

    async def call(self, method: Method, request: Any, timeout_s: float) -> Any:
        assert self._channel is not None
        with self._faults():
            unary = UnaryUnaryMethod(self._channel, method.path, method.request, method.reply)
            return await unary(request, timeout=timeout_s, metadata=self._metadata)

    @contextlib.asynccontextmanager
    async def stream(self, method: Method, request: Any) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        assert self._channel is not None
        with self._faults():
            stream = self._channel.request(
                method.path, Cardinality.STREAM_STREAM, method.request, method.reply, metadata=self._metadata
            )
            async with stream:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        await stream.send_message(request)
                    self._keep_probing()
                    self._streams += 1
                    try:
                        yield self._receiver(stream)
                    finally:
                        self._streams -= 1
                finally:
                    with contextlib.suppress(ProtocolError, StreamTerminatedError, OSError):
                        await stream.cancel()

    def _receiver(self, stream: Any) -> Callable[[], Awaitable[Any]]:
        async def receive() -> Any:
            with self._faults():
                message = await stream.recv_message()
                if message is None:
                    await stream.recv_trailing_metadata()  # raises what ended it
                    raise StreamTerminatedError("the answers ended")
                return message

        return receive

    def _lose(self, fault: str) -> StoreUnavailable:
        """Fail all that waits on this connection, now; returns what to raise."""
        self._fault = self._fault or fault
        self.lost = True
        self._quit.set()
        if self._channel is not None:
            self._channel.close()
        return StoreUnavailable(f"{self._name}: {printable(self._fault, 300)}")

    async def close(self) -> None:
        self._lose("closed")
        if self._prober is not None and self._prober is not asyncio.current_task():
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    # is it alive?

    def _keep_probing(self) -> None:
        if self._prober is None or self._prober.done():
            self._prober = asyncio.create_task(self._probe_on(), name="canal-etcd-probe")

    async def _probe_on(self) -> None:
        while self._streams and not await rung(self._quit, PROBE_S):
            self._quit.clear()
            with contextlib.suppress(StoreError):
                await self._probe()

    async def _probe(self) -> None:
        """See it answer something, whatever it is."""
        key = f"{self._url.prefix}/config".encode()
        request = RANGE.request(key=key, limit=1, keys_only=True, serializable=True)
        with contextlib.suppress(Refused):
            await self.call(RANGE, request, ANSWER_S)

    # faults

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn the library's exceptions into ours; what says that the member is gone ends the connection."""
        try:
            yield
        except GRPCError as error:
            message = error.message or error.status.name.lower()
            if error.status in _REFUSED:
                raise Refused(f"{self._name}: {printable(message, 300)}", error.status) from None
            if error.status is Status.RESOURCE_EXHAUSTED:
                raise StoreUnavailable(f"{self._name}: {printable(message, 300)}") from None
            raise self._lose(message) from None
        except TimeoutError:
            raise self._lose("no answer") from None
        except ssl.SSLError as error:
            raise self._lose(f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}") from None
        except (OSError, UnicodeError) as error:
            raise self._lose(_told(error)) from None
        except (StreamTerminatedError, ProtocolError) as error:
            raise self._lose(str(error) or "connection lost") from None


def _told(error: OSError | UnicodeError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text


def _password(url: EtcdUrl) -> str:
    """Read anew each time: passwords change while we run."""
    if not url.password_file:
        return url.password
    return Path(url.password_file).read_text(encoding="utf-8").strip("\r\n")


def _tls(url: EtcdUrl) -> ssl.SSLContext | None:
    """A new context for each connection: certificates are replaced while we run."""
    if not url.tls:
        return None
    for name in filter(None, (url.cacert, url.cert, url.key)):
        Path(name).open("rb").close()  # ssl's own error does not say which file is not there
    context = ssl.create_default_context(cafile=url.cacert or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if url.cert:
        context.load_cert_chain(url.cert, url.key)
    return context
