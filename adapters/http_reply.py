"""Reads a response over HTTP, as bytes or as server-sent events. Each wait and each piece has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import aiohttp

from adapters.errors import ProviderError, ProviderReplyBroken, ProviderTooLarge
from adapters.first_event import FirstEvent
from adapters.headers import choose_response_headers
from adapters.pace import Pace
from adapters.reply_headers import is_event_stream
from adapters.reply_quota import ReplyQuota, ReplyReservation
from adapters.reply_wait import ReplyWait
from adapters.sse import EventDecoder
from adapters.timeouts import Timeouts
from adapters.types import Event, Header

# A whole reply of this size takes nothing of the quota.
_SMALL_REPLY_BYTES: Final = 64 * 1024
# The bytes of a reply that are decoded before other work of the loop goes on. Chosen: some 5 ms.
_BYTES_BEFORE_YIELD: Final = 1024 * 1024
# Events may be as short as 7 bytes, and each takes some 10 us whatever it has. Pieces with more lines are divided.
_LINES_BEFORE_YIELD: Final = 2048
_PIECE_BYTES: Final = 16 * 1024
# How server-sent events begin, after a byte order mark and blank lines (html.spec.whatwg.org, section 9.2.5).
_FIELD_PREFIXES: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_BYTES_BEFORE_FIELDS: Final = b"\xef\xbb\xbf\r\n"
# The most blank lines before the first field, in bytes. Chosen: no server begins a stream with as many.
_MAX_BYTES_BEFORE_FIELDS: Final = 64 * 1024
# The most bytes in which `peek` looks for the first event. Chosen: an error is far shorter; the bytes are held twice.
_MAX_PEEKED_BYTES: Final = 1024 * 1024


class HttpReply:
    """A response after its headers have arrived. Closing it before its body has ended closes the connection."""

    __slots__ = (
        "_bytes_taken",
        "_pace",
        "_reservation",
        "_response",
        "_unread",
        "_wait",
        "_yields_at",
        "headers",
        "is_stream",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        timeouts: Timeouts,
        sent_at: float,
        pace: Pace,
        replies: ReplyQuota,
    ) -> None:
        """Wraps a response.

        sent_at: the time at which the request was sent, by the loop's clock.
        replies: the quota of memory for replies that are read whole.
        """
        self._pace = pace
        # Other statuses are a server's fault (RFC 9110 15).
        self.status = response.status if 100 <= response.status < 600 else 500
        self.headers: tuple[Header, ...] = choose_response_headers(response.raw_headers)
        self.is_stream = is_event_stream(self.status, self.headers)
        self._response = response
        self._wait = ReplyWait(response, timeouts, sent_at, pace.loop)
        # Bytes that were read and are still to be returned.
        self._unread = b""
        # The number of bytes that were taken from the response.
        self._bytes_taken = 0
        # The number of bytes taken at which other work of the loop goes on.
        self._yields_at = _BYTES_BEFORE_YIELD
        self._reservation = ReplyReservation(_SMALL_REPLY_BYTES, replies)

    async def detect_events(self) -> None:
        """Sets `is_stream` by how the reply begins, for a reply with another content type than was asked for.

        Small servers send streams without a content type, or as plain text, JSON or HTML, and SDKs read such streams.
        Other servers send whole replies or errors of these types, or whole replies with the type of a stream. A reply
        that breaks here breaks again when it is read.
        """
        if not 200 <= self.status < 300:
            return
        pieces: list[bytes] = []
        beginning = b""
        bytes_left = _MAX_BYTES_BEFORE_FIELDS
        try:
            with suppress(ProviderError):
                while bytes_left > 0 and any(field.startswith(beginning) for field in _FIELD_PREFIXES):
                    if not (data := await self._read_next()):
                        break
                    pieces.append(data)
                    bytes_left -= len(data)
                    beginning = (beginning + data).lstrip(_BYTES_BEFORE_FIELDS)
        except BaseException:
            await self.aclose()
            raise
        self._unread = b"".join((*pieces, self._unread))
        self.is_stream = beginning.startswith(_FIELD_PREFIXES)

    @property
    def size_bytes(self) -> int | None:
        """The body's announced length in bytes; None: no length is announced, or the content is decoded here."""
        headers = {name.lower(): value for name, value in self._response.raw_headers}
        if self.status in (204, 304) or b"content-encoding" in headers:
            return None
        length = headers.get(b"content-length", b"")
        return int(length) if length.isdigit() else None

    @property
    def prompt_usage(self) -> None:
        """None: the reply is not translated, so its usage is not read."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives, content decoded. Raises: ProviderReplyBroken, ProviderTimeout."""
        while data := await self._read_next():
            yield data

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as server-sent events. Each list has the events that one read completed.

        Raises: ProviderReplyBroken (UnfinishedEvent among them), ProviderTimeout, ProviderTooLarge.
        """
        decoder = EventDecoder()
        while data := await self._read_next():
            if events := decoder.feed(data):
                yield events
        if events := decoder.finish():
            yield events

    async def peek(self) -> Event | None:
        """Returns the first event of the body; None: the event is too large to be held.

        Raises: ProviderReplyBroken (also where the body has no event), ProviderTimeout, ProviderTooLarge.
        """
        first = FirstEvent()
        pieces: list[bytes] = []
        bytes_left = _MAX_PEEKED_BYTES
        try:
            while bytes_left >= 0:
                if first.held_event is None:
                    data = await self._read_next()
                elif (arrived := await self._read_next_by(first.hold_ends_at)) is not None:
                    data = arrived
                else:
                    return first.held_event
                if not data:
                    return first.finish()
                pieces.append(data)
                bytes_left -= len(data)
                if (event := first.feed(data, self._pace.loop.time())) is not None:
                    return event
            return None
        finally:
            self._unread = b"".join((*pieces, self._unread))

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body, at most `limit_bytes`. A large body counts for the `ReplyQuota` until `aclose`.

        Raises: ProviderReplyBroken, ProviderTimeout, ProviderTooLarge.
        """
        content = self._response.content
        pieces: list[bytes] = []
        size_bytes = 0
        while data := await self._read_next():
            size_bytes += len(data)
            if size_bytes > limit_bytes:
                await self.aclose()
                raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
            try:
                self._reservation.reserve(size_bytes)
            except ProviderTooLarge:
                await self.aclose()
                raise
            pieces.append(data)
            if content.at_eof() and not self._unread:
                break
        return b"".join(pieces)

    async def aclose(self) -> None:
        """Releases the response. The connection of an unfinished response is closed at once. Idempotent."""
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
        """Returns the result of `_read_next`; None: nothing has arrived by `when`, a time of the loop's clock."""
        try:
            async with asyncio.timeout_at(when):
                return await self._read_next()
        except TimeoutError:
            return None

    def _limit_piece(self, data: bytes) -> bytes:
        """Returns the bytes to read before other work of the loop goes on; the rest stays unread."""
        if len(data) <= _PIECE_BYTES or data.count(b"\n") <= _LINES_BEFORE_YIELD:
            self._unread = b""
            return data
        self._unread = data[_PIECE_BYTES:]
        return data[:_PIECE_BYTES]

    async def _read_next(self) -> bytes:
        """Returns the bytes that have arrived, and waits for bytes where there are none; b"" at the end."""
        if self._unread:
            if len(self._unread) > _PIECE_BYTES:
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
            self._wait.begin()
            try:
                data = await content.readany()
            finally:
                self._wait.end()
            self._bytes_taken += len(data)
            turn = self._pace.enter()
            if turn is not None:
                # If the wait is cancelled, the next read returns these bytes.
                self._unread = data
                await turn
                self._unread = b""
                # `read_nowait` would raise an error before the bytes that came earlier are returned.
                if content.exception() is None:
                    later_data = content.read_nowait()
                    self._bytes_taken += len(later_data)
                    data += later_data
            return self._limit_piece(data)
        except TimeoutError as error:
            self._abort()
            raise self._wait.make_timeout_error() from error
        except (aiohttp.ClientError, OSError) as error:
            self._abort()
            raise ProviderReplyBroken(
                f"the upstream's reply ended in the middle ({type(error).__name__})"
            ) from error
