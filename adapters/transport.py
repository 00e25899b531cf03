"""The one HTTP seam of the hot path: bytes out, bytes in. Knows nothing of providers or models.

One pool of connections per process (`adapters.wire`), made in the running loop on first use: unlimited, kept alive, no
cookies, no redirects, no proxies or credentials from the environment. Every wait has a bound:

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

import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from adapters.errors import (
    ProviderBroke,
    ProviderError,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
)
from adapters.pace import Pace
from adapters.sse import MAX_EVENT_BYTES, EventDecoder
from adapters.types import Event, Header
from adapters.wire import DECODED, Address, RawReply, Wire, WirePool


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The bounds of a call, in seconds."""

    connect_s: float = 10.0
    # A whole reply's first byte comes when the model is done; OpenAI's SDK waits as long.
    first_byte_s: float = 600.0
    between_chunks_s: float = 300.0
    total_s: float | None = None

    @property
    def headers_s(self) -> float:
        """Returns how long the headers are waited for."""
        return self.first_byte_s if self.total_s is None else min(self.first_byte_s, self.total_s)


# An idle close that crosses our request shows within one round trip.
_IDLE_CLOSE_S: Final = 1.0
# A larger body goes in pieces, so that it neither blocks the loop nor is held twice.
_LARGE_BODY_BYTES: Final = 512 * 1024
_PIECE_BYTES: Final = 256 * 1024
_MOST_ADDRESSES: Final = 256

# The list of RFC 9110 7.6.1, and headers of the connection's own framing; `alt-svc` is about the upstream's host.
_HOP_BY_HOP: Final = frozenset(
    re.findall(
        r"[\w-]+",
        "alt-svc connection content-length keep-alive proxy-authenticate proxy-authorization proxy-connection te "
        "trailer transfer-encoding upgrade",
    )
)


class HttpTransport:
    """The sender of requests; make one per process and close it in the loop that used it."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self.timeouts = timeouts or Timeouts()
        self._pool: WirePool | None = None
        self._dialling: dict[float, aiohttp.ClientTimeout] = {}
        self._addresses: dict[URL, Address] = {}
        self._pace: Pace | None = None

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | Upload | None = None,
        *,
        timeouts: Timeouts | None = None,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> HttpReply:
        """Sends a request; returns when the response's headers are there.

        headers: all headers to send, except `Host` and `Content-Length`.
        Raises: ProviderUnreachable, ProviderTimeout.
        """
        times = timeouts or self.timeouts
        upload = body if isinstance(body, Upload) else None
        begun = time.monotonic()
        if self._pool is None or self._pace is None:
            self._pool, self._pace = WirePool(), Pace()
        try:
            address = self._addresses.get(url) or self._address(self._pool, url)
            if isinstance(body, Upload):
                head = address.head(method, headers, body.size, is_chunked=body.size is None)
            else:
                head = address.head(method, headers, None if body is None else len(body))
            wire = self._pool.take(address)
            is_kept = wire is not None
            if wire is None:
                wire = await self._dial(self._pool, address, times)
            try:
                response = await _send(wire, head, body, times, begun)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # The other side had most likely closed a kept connection before it saw the request, which may then be
                # sent once more. An upload that was begun cannot.
                is_idle_close = is_kept and time.monotonic() - begun < _IDLE_CLOSE_S
                if not is_idle_close or upload is not None:
                    raise
                wire = await self._dial(self._pool, address, times)
                response = await _send(wire, head, body, times, begun)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translate(error, url.authority, times, upload) from error
        return HttpReply(response, times, max_event_bytes, begun, self._pace)

    async def aclose(self) -> None:
        """Closes every connection, busy ones too. A later `send` opens new ones."""
        pool, self._pool = self._pool, None
        self._addresses.clear()
        if pool is not None:
            await pool.aclose()

    def _address(self, pool: WirePool, url: URL) -> Address:
        # Paths may carry ids, so what is kept is bounded.
        if len(self._addresses) >= _MOST_ADDRESSES:
            self._addresses.clear()
        address = self._addresses[url] = pool.address(url)
        return address

    async def _dial(self, pool: WirePool, address: Address, times: Timeouts) -> Wire:
        connect_s = min(times.connect_s, times.headers_s)
        timeout = self._dialling.get(connect_s)
        if timeout is None:
            timeout = self._dialling[connect_s] = aiohttp.ClientTimeout(total=None, connect=connect_s)
        return await pool.open(address, timeout)


async def _send(
    wire: Wire, head: bytes, body: bytes | Upload | None, times: Timeouts, begun: float
) -> RawReply:
    if isinstance(body, Upload):
        pieces = body.sent_on(wire, times)
        return await wire.send(head, pieces, times.between_chunks_s, is_chunked=body.size is None)
    left_s = begun + times.headers_s - time.monotonic()
    if body is not None and len(body) > _LARGE_BODY_BYTES:
        return await wire.send(head, _pieces(body), left_s)
    return await wire.send(head, body or b"", left_s)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), _PIECE_BYTES):
        yield body[at : at + _PIECE_BYTES]


class HttpReply:
    """A response whose headers have arrived. Unless its body is read to its end, closing costs the connection."""

    __slots__ = (
        "_ahead",
        "_ends_at",
        "_max_event_bytes",
        "_pace",
        "_response",
        "_times",
        "headers",
        "status",
    )

    def __init__(
        self,
        response: RawReply,
        times: Timeouts,
        max_event_bytes: int,
        begun: float,
        pace: Pace,
    ) -> None:
        """Wraps a response. begun: when the request was sent, by time.monotonic()."""
        self._pace = pace
        self._ends_at = None if times.total_s is None else begun + times.total_s
        self.status = response.status
        self.headers: tuple[Header, ...] = _received(response.raw_headers)
        self._response = response
        self._times = times
        self._max_event_bytes = max_event_bytes
        self._ahead = b""  # bytes that `peek` has read

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives, content decoded. Raises: ProviderBroke, ProviderTimeout."""
        while data := await self._next():
            yield data

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as server-sent events, all that one read completed at a time.

        Raises: ProviderBroke (UnfinishedEvent among them), ProviderTimeout, ProviderTooLarge.
        """
        decoder = EventDecoder(self._max_event_bytes)
        while data := await self._next():
            if events := decoder.feed(data):
                yield events
        if events := decoder.finish():
            yield events

    async def peek(self) -> Event | None:
        """Returns the first event of the body. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""
        decoder = EventDecoder(self._max_event_bytes)
        seen: list[bytes] = []
        try:
            while data := await self._next():
                seen.append(data)
                if events := decoder.feed(data):
                    return events[0]
            return None
        finally:
            self._ahead = b"".join(seen)

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body, at most `limit_bytes`. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""
        data = await self._next()
        if not data:
            return b""
        size = len(data)
        parts = [data]
        while size <= limit_bytes and (data := await self._next()):
            size += len(data)
            parts.append(data)
        if size > limit_bytes:
            await self.aclose()
            raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def aclose(self) -> None:
        """Releases the response; one that is not finished loses its connection at once. Idempotent."""
        self._response.close()

    async def _next(self) -> bytes:
        """Returns the bytes that have arrived, after a wait for the first; empty at the end."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        response = self._response
        if not response.has_news:
            await self._wait(response)
            turn = self._pace.turn()
            if turn is not None:
                await turn
        try:
            return response.take()
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderBroke(
                f"the upstream's reply ended in the middle ({type(error).__name__})"
            ) from error

    async def _wait(self, response: RawReply) -> None:
        between_s = self._times.between_chunks_s
        left_s = between_s if self._ends_at is None else self._ends_at - time.monotonic()
        try:
            await response.wait(min(left_s, between_s))
        except TimeoutError as error:
            is_total = left_s < between_s
            response.close()
            raise ProviderTimeout(
                f"the upstream's reply took longer than {self._times.total_s} s"
                if is_total
                else f"the upstream was silent for {between_s} s within its reply",
                phase="total" if is_total else "between chunks",
            ) from error


class Upload:
    """A body that is here one piece at a time: the next is asked for when the upstream has taken the last.

    An exception of `pieces` breaks the request off. Its maker has to remember it, because another one is raised here.
    size: None: it is not known. is_over: the upstream has taken all of it.
    """

    def __init__(self, pieces: AsyncIterator[bytes], size: int | None) -> None:
        self._pieces = pieces
        self.size = size
        self.is_over = False

    async def sent_on(self, wire: Wire, times: Timeouts) -> AsyncIterator[bytes]:
        """Yields the pieces; the time begins anew with each that was taken."""
        async for piece in self._pieces:
            yield piece
            wire.bound(times.between_chunks_s)
        self.is_over = True
        wire.bound(times.first_byte_s)


def _translate(error: Exception, host: str, times: Timeouts, upload: Upload | None) -> ProviderError:
    """Returns the provider's error for one that came before the response's headers."""
    match error:
        case aiohttp.ConnectionTimeoutError() if times.connect_s <= times.headers_s:
            return ProviderTimeout(f"no connection to {host} within {times.connect_s} s", phase="connect")
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
        case _:
            # aiohttp's message quotes bytes that are no HTTP, and they may be somebody's words.
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


def end_to_end(headers: Iterable[Header]) -> list[Header]:
    """Returns the headers for the other end: without hop-by-hop ones and those that `Connection` names."""
    kept: list[Header] = []
    named: frozenset[str] = frozenset()
    for spelled, value in headers:
        name = spelled.lower()
        if name == "connection":
            named |= _tokens(value)
        elif name not in _HOP_BY_HOP:
            kept.append((name, value))
    return [pair for pair in kept if pair[0] not in named] if named else kept


def _tokens(value: str) -> frozenset[str]:
    return frozenset(token.strip().lower() for token in value.split(","))


def _received(raw: Iterable[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    kept: list[Header] = []
    named: frozenset[str] = frozenset()
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name == "connection":
            named |= _tokens(value)
        elif name in _HOP_BY_HOP or (name == "content-encoding" and value.strip().lower() in DECODED):
            continue
        else:
            kept.append((name, value))
    return tuple(pair for pair in kept if pair[0] not in named) if named else tuple(kept)


def as_sent(value: str) -> str:
    """Returns a header's value as it is to be given to `send`, which writes UTF-8; it came in as latin-1."""
    if not value.isascii():
        # A value that was not UTF-8 goes as it is.
        with suppress(UnicodeError):
            return value.encode("latin-1").decode("utf-8")
    return value
