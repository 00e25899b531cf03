"""The one HTTP seam of the hot path: bytes out, bytes in. Knows nothing of providers or models.

Sessions of aiohttp per upstream, made in the running loop on first use: unlimited, with keep-alive, no cookies, no
redirects, no credentials of the environment, and no proxy but one that is named. Every wait has a bound:

    connect          name look-up, TCP and TLS of a new connection
    first byte       from the call to the response's headers, the sending of the body included; of an upload, from
                     its end
    between chunks   silence of the upstream within the body (a slow reader does not count: a full buffer
                     stops the clock); for an upload, how long it may take no piece
    total            from the call to the last byte; none unless asked for

The other side may close an idle connection at the very moment a request is sent on it. Such a request is sent once more
if nothing of a response came back and the loss showed within `_IDLE_CLOSE_S`. A request that `sends_once` is never sent
again, so it has a pool of its own, in which no connection stays idle for long enough to be closed.

What comes before the head of a response, interim responses above all, is bounded in bytes as well, and so is what comes
on an idle connection: aiohttp takes all of it, and never pauses the reading of what is no body.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

import aiohttp
from msgspec import Struct
from multidict import CIMultiDict
from yarl import URL

from adapters.base import REPLIES, ReplyQuota, ReplyReservation
from adapters.errors import (
    ProviderBroke,
    ProviderError,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
)
from adapters.headers import response_headers
from adapters.pace import Pace
from adapters.sse import EventDecoder, FirstEvent
from adapters.types import Event, Header, is_event_stream


class Timeouts(Struct, frozen=True):
    """The bounds of a call, in seconds."""

    connect_s: float = 10.0
    # A whole reply's first byte comes when the model is done; OpenAI's SDK waits as long.
    first_byte_s: float = 600.0
    between_chunks_s: float = 300.0
    total_s: float | None = None

    @property
    def headers_s(self) -> float:
        """How long the headers may take."""
        return self.first_byte_s if self.total_s is None else min(self.first_byte_s, self.total_s)

    @property
    def for_connection(self) -> aiohttp.ClientTimeout:
        """Returns aiohttp's bound on a new connection."""
        return aiohttp.ClientTimeout(total=None, connect=min(self.connect_s, self.headers_s))


# Chosen: below the idle time of common balancers (60 s), above the gaps of a conversation.
_KEEP_ALIVE_S: Final = 30.0
# The same for requests that are sent once. Chosen: servers close idle connections after two seconds (gunicorn) or more.
_KEEP_ALIVE_ONCE_S: Final = 1.0
# An idle close that crosses our request shows within one round trip.
_IDLE_CLOSE_S: Final = 1.0
_SMALL_BODY_BYTES: Final = 64 * 1024  # what a transport takes without a wait
_SMALL_REPLY_BYTES: Final = 64 * 1024  # a whole reply of this size takes nothing of the quota
_PIECE_BYTES: Final = 256 * 1024
_HEADER_BYTES: Final = 64 * 1024  # of one header, or of one trailer; aiohttp takes 128 of both together
# What may come before a response is in our hands: interim responses, its head, and as much of its body as aiohttp reads
# ahead, which is 384 KiB at most.
_BEFORE_BODY_BYTES: Final = 1024 * 1024
# What is decoded of a reply before other work of the loop goes on. Chosen: some 5 ms.
_BYTES_BEFORE_YIELD: Final = 1024 * 1024
# Events may be as short as 7 bytes, and each takes some 10 us whatever it has. Pieces with more lines are divided.
_LINES_BEFORE_YIELD: Final = 2048
_DIVIDED_BYTES: Final = 16 * 1024
# How often a wait checks whether aiohttp has closed the connection without an error, as after a body that is no HTTP.
_CHECK_S: Final = 1.0
# How server-sent events begin, after a byte order mark and blank lines (html.spec.whatwg.org, section 9.2.5).
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_BEFORE_FIELDS: Final = b"\xef\xbb\xbf\r\n"
# Chosen: no server begins a stream with so many blank lines.
_MAX_BEFORE_FIELDS: Final = 64 * 1024
# Chosen: what is looked for is an error; what is read meanwhile is held twice.
_MAX_PEEKED: Final = 1024 * 1024
# Statuses of a request that has to be sent elsewhere.
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
# What aiohttp would add to a request that does not have it.
_AUTO_HEADERS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class _Attempt:
    """The connection of a request."""

    is_new = False
    # None: the request has no connection yet.
    protocol: _BoundedProtocol | None = None


_attempt: ContextVar[_Attempt] = ContextVar("attempt")


class _TooManyBytes(aiohttp.ClientError):
    """More bytes arrived before a response than may."""


class _BoundedProtocol(asyncio.Protocol):
    """A connection's protocol, aiohttp's with a bound on the bytes that arrive outside of a body. Beyond it, it aborts.

    transport: the connection's.
    bytes_left: how many may still arrive; `inf` while a body is read.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.bytes_left: float = _BEFORE_BODY_BYTES
        self._protocol: Any = transport.get_protocol()

    def data_received(self, data: bytes) -> None:
        self.bytes_left -= len(data)
        if self.bytes_left >= 0:
            self._protocol.data_received(data)
        elif not self.transport.is_closing():
            self._protocol.set_exception(_TooManyBytes())
            self.transport.abort()

    def eof_received(self) -> bool | None:
        answer: bool | None = self._protocol.eof_received()
        return answer

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def end_body(self) -> None:
        self.bytes_left = _BEFORE_BODY_BYTES


class _Connector(aiohttp.TCPConnector):
    """aiohttp's pool. It reports which connection a request has, and never one on which something arrived unasked."""

    async def connect(self, *args: Any, **named: Any) -> Any:
        attempt = _attempt.get()
        connection: Any = await super().connect(*args, **named)
        while not attempt.is_new and connection.protocol.should_close:
            connection.close()
            connection = await super().connect(*args, **named)
        protocol = connection.transport.get_protocol()
        if not isinstance(protocol, _BoundedProtocol):
            protocol = _BoundedProtocol(connection.transport)
            connection.transport.set_protocol(protocol)
        connection.add_callback(protocol.end_body)
        attempt.protocol = protocol
        return connection


def _make_socket(address: tuple[Any, ...]) -> socket.socket:
    """Makes the socket of a new connection."""
    _attempt.get().is_new = True
    return socket.socket(*address[:3])


class HttpTransport:
    """Sends requests. Make one per upstream, and close it in the loop that used it."""

    def __init__(
        self, timeouts: Timeouts | None = None, proxy: str | None = None, replies: ReplyQuota = REPLIES
    ) -> None:
        """Opens nothing.

        proxy: http://host:port, with user and password before the host where it asks for them; None: there is
            none.
        replies: for the replies that are read whole.
        """
        self.timeouts = timeouts or Timeouts()
        self._replies = replies
        whole = URL(proxy) if proxy is not None else None
        self._proxy = None if whole is None else whole.with_user(None)
        self._login: dict[str, str] = {}
        if whole is not None and whole.user is not None:
            login = aiohttp.encode_basic_auth(whole.user, whole.password or "")
            self._login["Proxy-Authorization"] = login
        # By the seconds for which their connections may be idle.
        self._sessions: dict[float, aiohttp.ClientSession] = {}
        self._pace: Pace | None = None

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Upload | None = None,
        *,
        streams: bool = False,
        sends_once: bool = False,
    ) -> HttpReply:
        """Sends a request; returns when the response's headers are there.

        url: as it is written to an upstream.
        headers: all headers to send, except `Host` and `Content-Length`.
        streams: the request asks for a stream. Where its type does not say that it is one, its first bytes
            do.
        sends_once: the request is not sent again, whatever becomes of it.

        Raises: ProviderUnreachable, also where a POST is redirected: it is not followed, and a client that followed it
        would send its words past the gateway; ProviderTimeout.
        """
        keep_alive_s = _KEEP_ALIVE_ONCE_S if sends_once else _KEEP_ALIVE_S
        times, session, pace = self.timeouts, self._sessions.get(keep_alive_s), self._pace
        if session is None:
            session = self._sessions[keep_alive_s] = self._open_session(keep_alive_s)
        if pace is None:
            pace = self._pace = Pace()
        begun = pace.loop.time()
        address = _parse_url(url)
        try:
            response = await self._send_in_time(session, method, address, headers, body, sends_once)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translate_error(error, address.authority, times, body) from error
        reply = HttpReply(response, times, begun, pace, self._replies)
        if reply.status == 101:
            await reply.aclose()
            raise ProviderUnreachable(f"{address.authority} answered, but not in HTTP that can be read")
        if method == "POST" and reply.status in _REDIRECTS:
            await reply.aclose()
            where = _describe_redirect(address, reply)
            raise ProviderUnreachable(f"{address.authority} redirects to {where}, which is not followed")
        if streams and not reply.is_stream:
            await reply.detect_events()
        return reply

    async def aclose(self) -> None:
        """Closes every connection, busy ones too. A later `send` opens others."""
        sessions, self._sessions, self._pace = self._sessions, {}, None
        for session in sessions.values():
            await session.close()

    def _open_session(self, keep_alive_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=_Connector(
                limit=0, keepalive_timeout=keep_alive_s, ttl_dns_cache=60, socket_factory=_make_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self.timeouts.for_connection,
            skip_auto_headers=_AUTO_HEADERS,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            proxy=self._proxy,
        )

    async def _send_in_time(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | Upload | None,
        sends_once: bool,
    ) -> aiohttp.ClientResponse:
        """Returns the response to a request, with its head."""
        times = self.timeouts
        if self._login and url.scheme == "http":  # the proxy is handed the request itself (RFC 9112 3.2.2)
            headers = CIMultiDict([*headers.items(), *self._login.items()])
        if body is None or (isinstance(body, bytes) and len(body) <= _SMALL_BODY_BYTES):
            async with asyncio.timeout(times.headers_s):
                return await self._send_with_retry(session, method, url, headers, lambda: body, sends_once)
        pieces = body if isinstance(body, Upload) else _LargeBody(body)
        if pieces.size is not None:
            headers = CIMultiDict(headers, **{"Content-Length": str(pieces.size)})
        async with asyncio.timeout(times.headers_s) as timer:
            return await self._send_with_retry(
                session, method, url, headers, lambda: pieces.begin(timer, times), sends_once
            )

    async def _send_with_retry(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        make_data: Callable[[], bytes | AsyncGenerator[bytes] | None],
        sends_once: bool,
    ) -> aiohttp.ClientResponse:
        """Sends a request, and once more where it was most likely not seen, unless it `sends_once`.

        make_data: its body; one that cannot be begun again raises an OSError.
        """
        begun = asyncio.get_running_loop().time()
        for is_last in (sends_once, True):
            attempt = _Attempt()
            _attempt.set(attempt)
            try:
                response = await session.request(
                    method,
                    url,
                    headers=headers,
                    data=make_data(),
                    allow_redirects=False,
                    proxy_headers=self._login,
                )
                if attempt.protocol is not None and response.connection is not None:  # else its body is here
                    attempt.protocol.bytes_left = math.inf
                return response
            except BaseException as error:
                protocol = attempt.protocol
                if protocol is not None and protocol.transport.is_closing():
                    # aiohttp closes in order, which would wait until an upstream has taken all of a body.
                    protocol.transport.abort()
                # The other side had most likely closed a connection that rested before it saw the request.
                is_idle_close = protocol is not None and not attempt.is_new and _is_unanswered(error)
                if is_last or not is_idle_close or asyncio.get_running_loop().time() - begun > _IDLE_CLOSE_S:
                    raise
        raise AssertionError


def _is_unanswered(error: BaseException) -> bool:
    """Returns whether a connection was lost before any part of a response came."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is that part
    return isinstance(error, aiohttp.ClientOSError)


@lru_cache(256)  # paths may carry ids
def _parse_url(url: str) -> URL:
    return URL(url, encoded=True)


class HttpReply:
    """A response after its headers have arrived. Closing it before its body has ended closes the connection."""

    __slots__ = (
        "_bytes_taken",
        "_pace",
        "_reservation",
        "_response",
        "_times",
        "_total_ends_at",
        "_unread",
        "_wait_timer",
        "_waits_since",
        "_yields_at",
        "headers",
        "is_stream",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        times: Timeouts,
        begun: float,
        pace: Pace,
        replies: ReplyQuota = REPLIES,
    ) -> None:
        """Wraps a response. begun: when the request was sent, by the loop's clock."""
        self._pace = pace
        self._total_ends_at = math.inf if times.total_s is None else begun + times.total_s
        # Other statuses are a server's fault (RFC 9110 15).
        self.status = response.status if 100 <= response.status < 600 else 500
        self.headers: tuple[Header, ...] = response_headers(response.raw_headers)
        self.is_stream = is_event_stream(self.status, self.headers)
        self._response = response
        self._times = times
        self._unread = b""  # bytes that were read too early
        self._bytes_taken = 0  # bytes taken from the response so far
        self._yields_at = _BYTES_BEFORE_YIELD  # taken, until other work of the loop goes on
        self._waits_since: float | None = None
        self._wait_timer: asyncio.TimerHandle | None = None
        self._reservation = ReplyReservation(_SMALL_REPLY_BYTES, replies)

    async def detect_events(self) -> None:
        """Takes a reply under another type for a stream if it begins as one does.

        Small servers send streams under no type, a plain one, JSON's or HTML's, and SDKs read them. Others send a whole
        reply so, or words about an error. What breaks here breaks again for whoever reads it.
        """
        if not 200 <= self.status < 300:
            return
        seen: list[bytes] = []
        begin, left = b"", _MAX_BEFORE_FIELDS
        try:
            with suppress(ProviderError):
                while left > 0 and any(field.startswith(begin) for field in _FIELDS):
                    if not (data := await self._read_next()):
                        break
                    seen.append(data)
                    left -= len(data)
                    begin = (begin + data).lstrip(_BEFORE_FIELDS)
        except BaseException:
            await self.aclose()
            raise
        self._unread = b"".join((*seen, self._unread))
        self.is_stream = begin.startswith(_FIELDS)

    @property
    def size(self) -> int | None:
        """The body's length as it was announced; None where it was not, or where the content is decoded here."""
        found = {name.lower(): value for name, value in self._response.raw_headers}
        length = found.get(b"content-length", b"")
        is_bodiless = self.status in (204, 304)
        return int(length) if length.isdigit() and not (is_bodiless or b"content-encoding" in found) else None

    @property
    def prompt_usage(self) -> None:
        """Returns None: nothing is translated."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives, content decoded. Raises: ProviderBroke, ProviderTimeout."""
        while data := await self._read_next():
            yield data

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as server-sent events, all that one read completed at a time.

        Raises: ProviderBroke (UnfinishedEvent among them), ProviderTimeout, ProviderTooLarge.
        """
        decoder = EventDecoder()
        while data := await self._read_next():
            if events := decoder.feed(data):
                yield events
        if events := decoder.finish():
            yield events

    async def peek(self) -> Event | None:
        """Returns the first event of the body; None: it is large.

        Raises: ProviderBroke (also where there is none), ProviderTimeout, ProviderTooLarge.
        """
        first = FirstEvent()
        seen: list[bytes] = []
        left = _MAX_PEEKED
        try:
            while data := await (
                self._read_next() if first.comment is None else self._read_next_by(first.ends_at)
            ):
                seen.append(data)
                left -= len(data)
                if (event := first.feed(data, self._pace.loop.time())) is not None:
                    return event
                if left < 0:
                    return None
            return first.comment if data is None else first.finish()
        finally:
            self._unread = b"".join((*seen, self._unread))

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body, at most `limit_bytes`; a large one counts as held until `aclose`.

        Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge.
        """
        content = self._response.content
        parts: list[bytes] = []
        size = 0
        while data := await self._read_next():
            size += len(data)
            if size > limit_bytes:
                await self.aclose()
                raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
            try:
                self._reservation.reserve(size)
            except ProviderTooLarge:
                await self.aclose()
                raise
            parts.append(data)
            if content.at_eof() and not self._unread:
                break
        return b"".join(parts)

    async def aclose(self) -> None:
        """Releases the response; one that is not finished loses its connection at once. Idempotent."""
        self._reservation.release()
        self._abort()

    def _abort(self) -> None:
        connection = self._response.connection
        if connection is not None:
            if connection.transport is not None:
                # `close` would wait until an upstream that does not read has taken all of the request's body.
                connection.transport.abort()
            self._response.close()

    async def _read_next_by(self, when: float) -> bytes | None:
        """As `_read_next`; None: nothing has arrived by then, by the loop's clock."""
        try:
            async with asyncio.timeout_at(when):
                return await self._read_next()
        except TimeoutError:
            return None

    def _limit_piece(self, data: bytes) -> bytes:
        """Returns the bytes to read before other work of the loop goes on; the rest stays unread."""
        if len(data) <= _DIVIDED_BYTES or data.count(b"\n") <= _LINES_BEFORE_YIELD:
            self._unread = b""
            return data
        self._unread = data[_DIVIDED_BYTES:]
        return data[:_DIVIDED_BYTES]

    async def _read_next(self) -> bytes:
        """Returns the bytes that have arrived, after a wait for the first; empty at the end."""
        if self._unread:
            if len(self._unread) > _DIVIDED_BYTES:
                await asyncio.sleep(0)
            return self._limit_piece(self._unread)
        content = self._response.content
        try:
            # aiohttp's own wait takes 0.6 us where nothing is waited for, and each event of a stream would pay it.
            if content.is_eof() or content.total_bytes > self._bytes_taken:
                if self._bytes_taken > self._yields_at:
                    self._yields_at = self._bytes_taken + _BYTES_BEFORE_YIELD
                    await asyncio.sleep(0)
                data = content.read_nowait()
                self._bytes_taken += len(data)
                return self._limit_piece(data)
            self._begin_wait()
            data = await content.readany()
            self._bytes_taken += len(data)
            turn = self._pace.turn()
            if turn is not None:
                self._unread = data  # it stays, if this wait is given up
                await turn
                self._unread = b""
                if content.exception() is None:  # an error comes after what came before it
                    more = content.read_nowait()
                    self._bytes_taken += len(more)
                    data += more
            return self._limit_piece(data)
        except TimeoutError as error:
            self._abort()
            times = self._times
            if self._pace.loop.time() >= self._total_ends_at:
                why = f"the upstream's reply took longer than {times.total_s} s"
                raise ProviderTimeout(why, phase="total") from error
            why = f"the upstream was silent for {times.between_chunks_s} s within its reply"
            raise ProviderTimeout(why, phase="between chunks") from error
        except (aiohttp.ClientError, OSError) as error:
            self._abort()
            raise ProviderBroke(
                f"the upstream's reply ended in the middle ({type(error).__name__})"
            ) from error
        finally:
            self._waits_since = None

    def _begin_wait(self) -> None:
        """Begins a wait. One timer checks the waits of a reply now and then; a timer for each would slow each event."""
        loop = self._pace.loop
        now = self._waits_since = loop.time()
        if self._wait_timer is None:
            late_at = min(now + self._times.between_chunks_s, self._total_ends_at)
            self._wait_timer = loop.call_at(min(late_at, now + _CHECK_S), self._check_wait)

    def _check_wait(self) -> None:
        self._wait_timer = None
        if self._waits_since is None:
            return
        loop, content, connection = self._pace.loop, self._response.content, self._response.connection
        now, late_at = loop.time(), min(self._waits_since + self._times.between_chunks_s, self._total_ends_at)
        if now >= late_at:
            content.set_exception(aiohttp.SocketTimeoutError("silence within a reply"))
        elif connection is not None and connection.closed:
            content.set_exception(aiohttp.ClientPayloadError("no HTTP within a body"))
        else:
            self._wait_timer = loop.call_at(min(late_at, now + _CHECK_S), self._check_wait)


class Upload:
    """A body that arrives one piece at a time: the next is read when the upstream has taken the last.

    An exception of `pieces` breaks the request off. Its maker has to store it, since `send` raises its own.
    """

    __slots__ = ("_is_begun", "_pieces", "is_over", "size")

    def __init__(self, pieces: AsyncIterator[bytes], size: int | None) -> None:
        self._pieces = pieces
        # None: it is not known.
        self.size = size
        self._is_begun = False
        # All pieces were taken.
        self.is_over = False

    def begin(self, timer: asyncio.Timeout, times: Timeouts) -> AsyncGenerator[bytes]:
        """Returns the pieces, once. Each that is taken gives the response more time. Raises: ConnectionError."""
        if self._is_begun:
            raise ConnectionError("an upload is not sent again")
        self._is_begun = True
        return self._yield_pieces(timer, times)

    async def _yield_pieces(self, timer: asyncio.Timeout, times: Timeouts) -> AsyncGenerator[bytes]:
        _extend_deadline(timer, times.between_chunks_s)
        async for piece in self._pieces:
            yield piece
            _extend_deadline(timer, times.between_chunks_s)
        self.is_over = True
        _extend_deadline(timer, times.first_byte_s)


class _LargeBody:
    """A body in memory that is sent in pieces, so that it neither blocks the loop nor is copied."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size = len(body)

    async def begin(self, timer: asyncio.Timeout, times: Timeouts) -> AsyncGenerator[bytes]:
        for at in range(0, self.size, _PIECE_BYTES):
            yield self._body[at : at + _PIECE_BYTES]


def _extend_deadline(timer: asyncio.Timeout, seconds: float) -> None:
    """Gives the head of a response some seconds from now on, unless it has arrived or is late."""
    with suppress(RuntimeError):
        timer.reschedule(asyncio.get_running_loop().time() + seconds)


def _translate_error(
    error: Exception, host: str, times: Timeouts, body: bytes | Upload | None
) -> ProviderError:
    """Returns the provider's error for one that came before the response's headers."""
    match error:
        case aiohttp.ConnectionTimeoutError() if times.connect_s <= times.headers_s:
            return ProviderTimeout(f"no connection to {host} within {times.connect_s} s", phase="connect")
        case aiohttp.ClientProxyConnectionError():
            return ProviderUnreachable(
                f"no connection to the proxy before {host}: {_describe_error(error)}", sent=False
            )
        case aiohttp.ClientHttpProxyError():
            return ProviderUnreachable(f"the proxy before {host} refused with {error.status}", sent=False)
        case aiohttp.ClientConnectorError():
            return ProviderUnreachable(f"no connection to {host}: {_describe_error(error)}", sent=False)
        case TimeoutError() if isinstance(body, Upload) and not body.is_over:
            why = f"{host} took no more of the upload for {times.between_chunks_s} s"
            return ProviderTimeout(why, phase="between chunks")
        case TimeoutError():
            return ProviderTimeout(f"no response from {host} within {times.headers_s} s", phase="first byte")
        case aiohttp.ServerDisconnectedError():
            return ProviderUnreachable(f"{host} closed the connection before it answered")
        case _TooManyBytes():
            return ProviderUnreachable(f"{host} sent more than {_BEFORE_BODY_BYTES} bytes before a response")
        case ValueError():
            # A control character in a header, which a server could read as two headers.
            return ProviderUnreachable(f"a request that cannot be sent to {host}: {error}")
        case aiohttp.ClientResponseError():
            # aiohttp's message quotes bytes that are no HTTP, and they may be a user's words.
            return ProviderUnreachable(f"{host} answered, but not in HTTP that can be read")
        case _:
            why = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            return ProviderUnreachable(f"no answer from {host}: {why}")


def _describe_redirect(address: URL, reply: HttpReply) -> str:
    """Returns the server to which a reply redirects; its path and its query may have secrets."""
    try:
        target = address.join(URL(dict(reply.headers).get("location", ""))).origin()
    except ValueError:
        return "an address that cannot be read"
    return str(target) if target != address.origin() else "another path of its own"


def _describe_error(error: aiohttp.ClientConnectorError) -> str:
    """Returns what went wrong. aiohttp's own text repeats the address, and has "ssl:default" also without TLS."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    cause = error.os_error
    if cause.errno is not None and cause.errno > 0 and not isinstance(error, aiohttp.ClientSSLError):
        return os.strerror(cause.errno)
    return cause.strerror or str(cause)
