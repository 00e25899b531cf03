"""The one HTTP seam of the hot path: bytes out, bytes in. Knows nothing of providers or models.

One pool of connections per process (`adapters.wire`), made in the running loop on first use: unlimited, kept alive, no
cookies, no redirects, no credentials of the environment, and no proxy but one that is named. Every wait has a bound:

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
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp.http import HttpProcessingError

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
from adapters.wire.address import Address, Proxy
from adapters.wire.connection import RawReply, Wire
from adapters.wire.headers import received
from adapters.wire.pool import WirePool


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


# An idle close that crosses our request shows within one round trip.
_IDLE_CLOSE_S: Final = 1.0
# A larger body goes in pieces, so that it neither blocks the loop nor is held twice.
_LARGE_BODY_BYTES: Final = 512 * 1024
_PIECE_BYTES: Final = 256 * 1024
# How server-sent events begin, behind a byte order mark and blank lines (html.spec.whatwg.org, section 9.2.5).
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_BEFORE_FIELDS: Final = b"\xef\xbb\xbf\r\n"
# Chosen: nobody begins a stream with so many blank lines.
_MOST_BEFORE_FIELDS: Final = 64 * 1024
# Chosen: what is looked for is an error; what is read meanwhile is held twice.
_MOST_PEEKED: Final = 1024 * 1024


class HttpTransport:
    """The sender of requests; make one per process and close it in the loop that used it."""

    def __init__(self, timeouts: Timeouts | None = None, proxy: str | None = None) -> None:
        """proxy: its URL, as `Proxy` has it."""
        self.timeouts = timeouts or Timeouts()
        self._proxy = Proxy(proxy)
        self._pool: WirePool | None = None
        self._pace: Pace | None = None

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
        pool, pace = self._pool, self._pace
        if pool is None or pace is None:
            pool, pace = self._pool, self._pace = WirePool(self._proxy), Pace()
        begun = pace.loop.time()
        address = pool.address(url)
        try:
            if isinstance(body, Upload):
                head = address.head(method, headers, body.size, is_chunked=body.size is None)
            else:
                head = address.head(method, headers, None if body is None else len(body))
            response = await _ask(pool, address, head, body, times, begun)
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            raise _translate(error, address.url.authority, times, body) from error
        reply = HttpReply(response, times, begun, pace)
        if streams and not reply.is_stream:
            await reply.look_for_events()
        return reply

    async def aclose(self) -> None:
        """Closes every connection, busy ones too. A later `send` opens others."""
        pool, self._pool, self._pace = self._pool, None, None
        if pool is not None:
            await pool.aclose()


async def _ask(
    pool: WirePool, address: Address, head: bytes, body: bytes | Upload | None, times: Timeouts, begun: float
) -> RawReply:
    """Returns the response to a request, with its head."""
    until = begun + (times.between_chunks_s if isinstance(body, Upload) else times.headers_s)
    kept = pool.take(address, begun)
    wire = kept or await pool.open(address, times.connect)
    while True:
        reply = _send(wire, head, body, times)
        try:
            await reply.wait(until)
            return reply
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The other side had most likely closed a kept connection before it saw the request, which may then be
            # sent once more. An upload was begun, and cannot.
            is_idle_close = wire is kept and not reply.unread and pool.loop.time() - begun < _IDLE_CLOSE_S
            if not is_idle_close or isinstance(body, Upload):
                raise
            wire = await pool.open(address, times.connect)
        except BaseException:
            reply.close()
            raise


def _send(wire: Wire, head: bytes, body: bytes | Upload | None, times: Timeouts) -> RawReply:
    if isinstance(body, Upload):
        return wire.send_in_pieces(head, body.watched(wire, times), is_chunked=body.size is None)
    if body is None or len(body) <= _LARGE_BODY_BYTES:
        return wire.send(head, body or b"")
    return wire.send_in_pieces(head, _pieces(body), is_chunked=False)


async def _pieces(body: bytes) -> AsyncGenerator[bytes]:
    for at in range(0, len(body), _PIECE_BYTES):
        yield body[at : at + _PIECE_BYTES]


class HttpReply:
    """A response whose headers have arrived. Unless its body is read to its end, closing costs the connection."""

    __slots__ = (
        "_ends_at",
        "_pace",
        "_response",
        "_times",
        "headers",
        "is_stream",
        "status",
    )

    def __init__(self, response: RawReply, times: Timeouts, begun: float, pace: Pace) -> None:
        """Wraps a response. begun: when the request was sent, by the loop's clock."""
        self._pace = pace
        self._ends_at = math.inf if times.total_s is None else begun + times.total_s
        self.status = response.status
        self.headers: tuple[Header, ...]
        self.headers, coding = received(response.raw_headers)
        if coding:
            response.undo(coding)
        self.is_stream = is_event_stream(self.status, self.headers)
        self._response = response
        self._times = times

    async def look_for_events(self) -> None:
        """Takes a reply under no type, or a plain one, for a stream if it begins as one does.

        Small servers send streams so, and SDKs read them. Others send a whole reply so, or words about an error. What
        breaks here breaks again for whoever reads it.
        """
        if not 200 <= self.status < 300 or not says_no_type(self.headers):
            return
        seen: list[bytes] = []
        begin, left = b"", _MOST_BEFORE_FIELDS
        try:
            with suppress(ProviderError):
                while left > 0 and any(field.startswith(begin) for field in _FIELDS):
                    if not (data := await self._next()):
                        break
                    seen.append(data)
                    left -= len(data)
                    begin = (begin + data).lstrip(_BEFORE_FIELDS)
        except BaseException:
            await self.aclose()
            raise
        self._response.put_back(b"".join(seen))
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
        """Returns the first event of the body; None: there is none, or it is large.

        Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge.
        """
        first = FirstEvent()
        seen: list[bytes] = []
        left = _MOST_PEEKED
        try:
            while data := await (self._next() if first.comment is None else self._next_by(first.ends_at)):
                seen.append(data)
                left -= len(data)
                if (event := first.feed(data, self._pace.loop.time())) is not None:
                    return event
                if left < 0:
                    return None
            return first.comment if data is None else None
        finally:
            self._response.put_back(b"".join(seen))

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body, at most `limit_bytes`. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""
        response = self._response
        parts: list[bytes] = []
        size = 0
        while data := (response.take() if response.is_whole else await self._next()):
            size += len(data)
            if size > limit_bytes:
                await self.aclose()
                raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
            parts.append(data)
        return b"".join(parts)

    async def aclose(self) -> None:
        """Releases the response; one that is not finished loses its connection at once. Idempotent."""
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
        response = self._response
        try:
            if not response.has_news:
                silent_at = self._pace.loop.time() + self._times.between_chunks_s
                await response.wait(min(silent_at, self._ends_at))
                turn = self._pace.turn()
                if turn is not None:
                    await turn
            return response.take()
        except TimeoutError as error:
            times = self._times
            if self._pace.loop.time() >= self._ends_at:
                why = f"the upstream's reply took longer than {times.total_s} s"
                raise ProviderTimeout(why, phase="total") from error
            why = f"the upstream was silent for {times.between_chunks_s} s within its reply"
            raise ProviderTimeout(why, phase="between chunks") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderBroke(
                f"the upstream's reply ended in the middle ({type(error).__name__})"
            ) from error


class Upload:
    """A body that is here one piece at a time: the next is asked for when the upstream has taken the last.

    An exception of `pieces` breaks the request off. Its maker has to remember it: `send` raises its own.
    size: None: not known. is_over: all pieces were taken.
    """

    __slots__ = ("_pieces", "is_over", "size")

    def __init__(self, pieces: AsyncIterator[bytes], size: int | None) -> None:
        self._pieces = pieces
        self.size = size
        self.is_over = False

    async def watched(self, wire: Wire, times: Timeouts) -> AsyncGenerator[bytes]:
        """Yields the pieces. Each that is taken gives the response more time."""
        async for piece in self._pieces:
            yield piece
            wire.allow(times.between_chunks_s)
        self.is_over = True
        wire.allow(times.first_byte_s)


def _translate(error: Exception, host: str, times: Timeouts, body: bytes | Upload | None) -> ProviderError:
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
        case TimeoutError() if isinstance(body, Upload) and not body.is_over:
            why = f"{host} took no more of the upload for {times.between_chunks_s} s"
            return ProviderTimeout(why, phase="between chunks")
        case TimeoutError():
            return ProviderTimeout(f"no response from {host} within {times.headers_s} s", phase="first byte")
        case aiohttp.ServerDisconnectedError():
            return ProviderUnreachable(f"{host} closed the connection before it answered")
        case ValueError():
            # A control character in a header, which a server could read as two headers.
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
