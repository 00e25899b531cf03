"""The one HTTP seam of the hot path: bytes out, bytes in, over aiohttp. Knows nothing of providers or models.

One pool of connections per process, made in the running loop on first use: unlimited, kept alive, no cookies, no
redirects, no credentials of the environment, and no proxy but one that is named. `adapters.wire` sends what is here as
a whole, aiohttp's session what goes in pieces. Every wait has a bound:

    connect          name look-up, TCP and TLS of a new connection
    first byte       from the call to the response's headers, the sending of the body included; of an upload, from
                     its end
    between chunks   silence of the upstream within the body (our own slowness does not count: a full buffer
                     stops the clock); for an upload, how long it may take no piece
    total            from the call to the last byte; none unless asked for

A kept-alive connection may be closed by the other side at the very moment we send on it. Such a request is
sent once more if nothing of a response came back and the loss showed within `_IDLE_CLOSE_S`.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import payload
from aiohttp.http import HttpProcessingError
from yarl import URL

from adapters.errors import (
    ProviderBroke,
    ProviderError,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
)
from adapters.pace import Pace
from adapters.sse import EventDecoder, FirstEvent
from adapters.types import Event, Header, is_event_stream, says_no_type
from adapters.wire import HEADER_LIMIT_BYTES, Address, Proxy, RawReply, received, send_whole


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The bounds of a call, in seconds. headers_s: of the wait for the headers; connect: of a new connection's."""

    connect_s: float = 10.0
    # A whole reply's first byte comes when the model is done; OpenAI's SDK waits as long.
    first_byte_s: float = 600.0
    between_chunks_s: float = 300.0
    total_s: float | None = None
    headers_s: float = field(init=False)
    connect: aiohttp.ClientTimeout = field(init=False)

    def __post_init__(self) -> None:
        headers_s = self.first_byte_s if self.total_s is None else min(self.first_byte_s, self.total_s)
        connect_s = min(self.connect_s, headers_s)
        object.__setattr__(self, "headers_s", headers_s)
        object.__setattr__(self, "connect", aiohttp.ClientTimeout(total=None, connect=connect_s))


# Chosen: below the idle time of common balancers (60 s), above the gaps of a conversation.
_KEEP_ALIVE_S: Final = 30.0
# An idle close that crosses our request shows within one round trip.
_IDLE_CLOSE_S: Final = 1.0
# A larger body goes in pieces; aiohttp would hand the socket all bytes at once, and warn.
_LARGE_BODY_BYTES: Final = 512 * 1024
_PIECE_BYTES: Final = 256 * 1024
_MOST_ADDRESSES: Final = 256
# How server-sent events begin, behind a byte order mark and blank lines (html.spec.whatwg.org, section 9.2.5).
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_BEFORE_FIELDS: Final = b"\xef\xbb\xbf\r\n"

_AUTO_HEADERS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

# Filled by `_dial` when this request opens a connection of its own; empty, it went out on a kept one.
_dialled: ContextVar[list[bool]] = ContextVar("dialled")


class HttpTransport:
    """The sender of requests; make one per process and close it in the loop that used it."""

    def __init__(self, timeouts: Timeouts | None = None, proxy: str | None = None) -> None:
        """proxy: its URL, as `Proxy` has it."""
        self.timeouts = timeouts or Timeouts()
        self._proxy = Proxy(proxy)
        self._pool: _Pool | None = None
        self._addresses: dict[str, Address] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Upload | None = None,
        *,
        streams: bool = False,
    ) -> HttpReply:
        """Sends a request; returns when the response's headers are there.

        url: as it is written to an upstream. headers: all headers to send, except `Host` and `Content-Length`.
        streams: the request asks for a stream. Where its type does not say that it is one, its first bytes do.
        Raises: ProviderUnreachable, ProviderTimeout.
        """
        times = self.timeouts
        upload = None if body is None or isinstance(body, bytes) else body
        fresh: list[bool] = []
        _dialled.set(fresh)
        pool = self._pool
        if pool is None:
            pool = self._pool = _open(self._proxy)
        begun = pool.pace.loop.time()
        address = self._addresses.get(url) or self._address(url)
        try:
            send_once = _sender(pool, method, address, headers, body, times)
            try:
                response = await send_once()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # The other side had most likely closed a kept connection before it saw the request, which may then be
                # sent once more. An upload that was begun cannot.
                lost_idle = not fresh and pool.pace.loop.time() - begun < _IDLE_CLOSE_S
                is_begun = upload is not None and upload.consumed
                if not lost_idle or is_begun or isinstance(error, aiohttp.ClientConnectorError):
                    raise
                response = await send_once()
            if response.status == 101:
                response.close()
                raise HttpProcessingError(message="another protocol, which was not asked for (RFC 9110 7.8)")
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            raise _translate(error, address.url.authority, times, upload) from error
        reply = HttpReply(response, times, begun, pool.pace)
        if streams and not reply.is_stream:
            await reply.look_for_events()
        return reply

    async def aclose(self) -> None:
        """Closes every connection, busy ones too. A later `send` opens others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.session.close()

    def _address(self, url: str) -> Address:
        # Paths may carry ids, so what is kept is bounded.
        if len(self._addresses) >= _MOST_ADDRESSES:
            self._addresses.clear()
        address = self._addresses[url] = Address(URL(url, encoded=True), self._proxy)
        return address


class _Pool(NamedTuple):
    """The connections of a transport, as long as it is open."""

    session: aiohttp.ClientSession
    connector: aiohttp.TCPConnector
    pace: Pace
    proxy: Proxy


def _open(proxy: Proxy) -> _Pool:
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=60, socket_factory=_dial
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_AUTO_HEADERS,
        auto_decompress=True,
        trust_env=False,
        max_line_size=HEADER_LIMIT_BYTES,
        max_field_size=HEADER_LIMIT_BYTES,
    )
    return _Pool(session, connector, Pace(), proxy)


def _sender(
    pool: _Pool,
    method: str,
    address: Address,
    headers: Mapping[str, str],
    body: bytes | Upload | None,
    times: Timeouts,
) -> Callable[[], Awaitable[RawReply | aiohttp.ClientResponse]]:
    """Returns the call that sends the request once. Raises: ValueError: a header cannot be sent."""
    if body is not None and not isinstance(body, bytes):
        return partial(_send_in_pieces, pool, method, address.url, headers, body, times)
    if body is not None and len(body) > _LARGE_BODY_BYTES:
        return partial(_send_in_pieces, pool, method, address.url, headers, _LargeBody(body), times)
    return partial(
        send_whole,
        pool.connector,
        address,
        address.head(method, headers, None if body is None else len(body)),
        body or b"",
        loop=pool.pace.loop,
        ends_at=pool.pace.loop.time() + times.headers_s,
        connect=times.connect,
    )


async def _send_in_pieces(
    pool: _Pool,
    method: str,
    url: URL,
    headers: Mapping[str, str],
    body: _LargeBody | Upload,
    times: Timeouts,
) -> aiohttp.ClientResponse:
    async with asyncio.timeout(times.headers_s) as timer:
        if isinstance(body, Upload):
            body.watch(timer, times)
        return await pool.session.request(
            method,
            url,
            headers={**headers, **pool.proxy.headers_for(url)},
            data=body,
            allow_redirects=False,
            timeout=times.connect,
            proxy=pool.proxy.url,
            proxy_headers=pool.proxy.headers,
        )


class HttpReply:
    """A response whose headers have arrived. Unless its body is read to its end, closing costs the connection."""

    __slots__ = (
        "_ahead",
        "_clock",
        "_ends_at",
        "_loop",
        "_pace",
        "_response",
        "_taken",
        "_times",
        "_waits_since",
        "headers",
        "is_stream",
        "status",
    )

    def __init__(
        self,
        response: RawReply | aiohttp.ClientResponse,
        times: Timeouts,
        begun: float,
        pace: Pace,
    ) -> None:
        """Wraps a response. begun: when the request was sent, by the loop's clock."""
        self._pace = pace
        self._ends_at = math.inf if times.total_s is None else begun + times.total_s
        self.status = response.status
        self.headers: tuple[Header, ...] = received(response.raw_headers)
        self.is_stream = is_event_stream(self.status, self.headers)
        self._response = response
        self._times = times
        self._ahead = b""  # bytes that `peek` has read
        self._taken = 0  # bytes taken from the response so far
        self._loop = pace.loop
        self._waits_since: float | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def look_for_events(self) -> None:
        """Takes a reply under no type, or a plain one, for a stream if it begins as one does.

        Small servers send streams so, and SDKs read them. Others send a whole reply so, or words about an error. What
        breaks here breaks again for whoever reads it.
        """
        if not 200 <= self.status < 300 or not says_no_type(self.headers):
            return
        seen = begin = b""
        try:
            with suppress(ProviderError):
                while any(field.startswith(begin) for field in _FIELDS) and (data := await self._next()):
                    seen += data
                    begin = seen.lstrip(_BEFORE_FIELDS)
        except BaseException:
            await self.aclose()
            raise
        self._ahead = seen
        self.is_stream = begin.startswith(_FIELDS)

    @property
    def size(self) -> int | None:
        """The body's length as it was announced; None where it was not, or where the content is decoded here."""
        found = {name.lower(): value for name, value in self._response.raw_headers}
        length = found.get(b"content-length", b"")
        return int(length) if length.isdigit() and b"content-encoding" not in found else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives, content decoded. Raises: ProviderBroke, ProviderTimeout."""
        while data := await self._next():
            yield data

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as server-sent events, all that one read completed at a time.

        Raises: ProviderBroke (UnfinishedEvent among them), ProviderTimeout, ProviderTooLarge.
        """
        decoder = EventDecoder()
        while data := await self._next():
            if events := decoder.feed(data):
                yield events
        if events := decoder.finish():
            yield events

    async def peek(self) -> Event | None:
        """Returns the first event of the body. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""
        first = FirstEvent()
        seen: list[bytes] = []
        try:
            while data := await (self._next() if first.comment is None else self._next_by(first.ends_at)):
                seen.append(data)
                if (event := first.feed(data, self._loop.time())) is not None:
                    return event
            return first.comment if data is None else None
        finally:
            self._ahead = b"".join((*seen, self._ahead))

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body, at most `limit_bytes`. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""
        content = self._response.content
        parts: list[bytes] = []
        size = 0
        while data := await self._next():
            size += len(data)
            if size > limit_bytes:
                await self.aclose()
                raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
            parts.append(data)
            if content.at_eof():
                break
        return b"".join(parts)

    async def aclose(self) -> None:
        """Releases the response; one that is not finished loses its connection at once. Idempotent."""
        if self._clock is not None:
            self._clock.cancel()
        connection = self._response.connection
        if connection is not None:
            if connection.transport is not None:
                # close() would wait until an upstream that does not read has taken our body.
                connection.transport.abort()
            self._response.close()

    async def _next_by(self, when: float) -> bytes | None:
        """As `_next`; None: nothing has arrived by then, by the loop's clock."""
        try:
            async with asyncio.timeout_at(when):
                return await self._next()
        except TimeoutError:
            return None

    async def _next(self) -> bytes:
        """Returns the bytes that have arrived, after a wait for the first; empty at the end."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        content = self._response.content
        try:
            # To be asked for what has not come takes aiohttp 0.6 us, and each event of a stream would ask.
            if content.is_eof() or content.total_bytes > self._taken:
                data = content.read_nowait()
                self._taken += len(data)
                return data
            self._waits_since = self._loop.time()
            if self._clock is None:
                self._clock = self._loop.call_at(self._late_at(self._waits_since), self._look)
            data = await content.readany()
            self._taken += len(data)
            turn = self._pace.turn()
            if turn is not None:
                self._ahead = data  # it stays, if this wait is given up
                await turn
                self._ahead = b""
                if content.exception() is None:  # an error belongs behind what came before it
                    more = content.read_nowait()
                    self._taken += len(more)
                    data += more
            return data
        except TimeoutError as error:
            times = self._times
            if self._loop.time() >= self._ends_at:
                why = f"the upstream's reply took longer than {times.total_s} s"
                raise ProviderTimeout(why, phase="total") from error
            why = f"the upstream was silent for {times.between_chunks_s} s within its reply"
            raise ProviderTimeout(why, phase="between chunks") from error
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise ProviderBroke(
                f"the upstream's reply ended in the middle ({type(error).__name__})"
            ) from error
        finally:
            self._waits_since = None

    def _late_at(self, since: float) -> float:
        """Returns when a wait that began at `since` has taken too long."""
        return min(since + self._times.between_chunks_s, self._ends_at)

    def _look(self) -> None:
        """Ends a wait that took too long. One timer looks now and then; one for each wait would cost each event."""
        self._clock = None
        if self._waits_since is None:
            return
        late_at = self._late_at(self._waits_since)
        if self._loop.time() < late_at:
            self._clock = self._loop.call_at(late_at, self._look)
        else:
            self._response.content.set_exception(aiohttp.SocketTimeoutError("silence within a reply"))


class _LargeBody(payload.Payload):
    """A body that is written in pieces, so that it neither blocks the loop nor doubles the memory."""

    _autoclose = True
    _value: bytes

    def __init__(self, value: bytes) -> None:
        super().__init__(value, content_type="application/json")
        self._size = len(value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        view = memoryview(self._value)[:content_length]
        with _or_abort(writer):
            for at in range(0, len(view), _PIECE_BYTES):
                await writer.write(view[at : at + _PIECE_BYTES])


class Upload(payload.Payload):
    """A body that is here one piece at a time: the next is asked for when the upstream has taken the last.

    An exception of `pieces` breaks the request off. Its maker has to remember it, because aiohttp raises its own here.
    """

    _autoclose = True
    _value: AsyncIterator[bytes]

    def __init__(self, pieces: AsyncIterator[bytes], size: int | None) -> None:
        super().__init__(pieces, content_type="application/octet-stream")
        self._size = size
        self._timer: asyncio.Timeout | None = None
        self._times = Timeouts()
        self.is_over = False

    def watch(self, timer: asyncio.Timeout, times: Timeouts) -> None:
        """Restarts `timer` with every piece, for as long as it runs."""
        self._timer, self._times = timer, times
        self._restart(times.between_chunks_s)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("an upload is not kept")

    async def write(self, writer: Any) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        self._consumed = True
        with _or_abort(writer):
            async for piece in self._value:
                await writer.write(piece)
                self._restart(self._times.between_chunks_s)
        self.is_over = True
        self._restart(self._times.first_byte_s)

    def _restart(self, seconds: float) -> None:
        if self._timer is not None:
            # The timer refuses once the response's headers are there or the time is up: then nothing is left to do.
            with suppress(RuntimeError):
                self._timer.reschedule(asyncio.get_running_loop().time() + seconds)


def _translate(error: Exception, host: str, times: Timeouts, upload: Upload | None) -> ProviderError:
    """Returns the provider's error for one that came before the response's headers."""
    match error:
        case aiohttp.ConnectionTimeoutError() if times.connect_s <= times.headers_s:
            return ProviderTimeout(f"no connection to {host} within {times.connect_s} s", phase="connect")
        case aiohttp.ClientProxyConnectionError():
            return ProviderUnreachable(f"no connection to the proxy before {host}: {_why(error)}", sent=False)
        case aiohttp.ClientHttpProxyError():
            return ProviderUnreachable(f"the proxy before {host} refused with {error.status}", sent=False)
        case aiohttp.ClientConnectorError():
            return ProviderUnreachable(f"no connection to {host}: {_why(error)}", sent=False)
        case TimeoutError() if upload is not None and not upload.is_over:
            why = f"{host} took no more of the upload for {times.between_chunks_s} s"
            return ProviderTimeout(why, phase="between chunks")
        case TimeoutError():
            return ProviderTimeout(f"no response from {host} within {times.headers_s} s", phase="first byte")
        case aiohttp.ServerDisconnectedError():
            return ProviderUnreachable(f"{host} closed the connection before it answered")
        case ValueError():
            # A control character in a header: aiohttp refuses to send what a server could read as two headers.
            return ProviderUnreachable(f"a request that cannot be sent to {host}: {error}")
        case HttpProcessingError() | aiohttp.ClientResponseError():
            # aiohttp's message quotes bytes that are no HTTP, and they may be somebody's words.
            return ProviderUnreachable(f"{host} answered, but not in HTTP that can be read")
        case _:
            why = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            return ProviderUnreachable(f"no answer from {host}: {why}")


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Returns what went wrong. aiohttp's own text repeats the address, and says "ssl:default" also without TLS."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    cause = error.os_error
    if cause.errno is not None and cause.errno > 0 and not isinstance(error, aiohttp.ClientSSLError):
        return os.strerror(cause.errno)
    return cause.strerror or str(cause)


@contextmanager
def _or_abort(writer: Any) -> Iterator[None]:
    """Drops the connection if the body could not be written: aiohttp's close() would wait until it is taken."""
    # Kept here, because by the time of a failure aiohttp has dropped its reference.
    transport = writer.transport
    try:
        yield
    except BaseException:
        if transport is not None:
            transport.abort()
        raise


def _dial(address: tuple[Any, ...]) -> socket.socket:
    """Makes the socket of a new connection, and notes in the request's context that it has one."""
    family, kind, protocol = address[:3]
    fresh = _dialled.get(None)
    if fresh is not None:
        fresh.append(True)
    return socket.socket(family=family, type=kind, proto=protocol)
