"""A connection to an upstream that is kept, and its responses: one request at a time."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import aiohttp
from aiohttp.http import HttpProcessingError
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from adapters.wire.inflate import MOST_BYTES, Inflater

_HEAD_BYTES: Final = 64 * 1024
_MOST_UNREAD_BYTES: Final = 512 * 1024


class RawReply:
    """A response, and what has arrived of its body.

    status: 0 until its head is there. has_news: `take` has something to say. is_over: all of the body has arrived.
    is_whole: so it has, and can be taken without an error. error: why no more of it will arrive.
    unread: bytes that came in for it and were not taken, its head among them.
    """

    __slots__ = (
        "_inflater",
        "_parts",
        "_wire",
        "error",
        "has_news",
        "is_over",
        "is_whole",
        "raw_headers",
        "status",
        "unread",
    )

    def __init__(self, wire: Wire) -> None:
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.has_news = self.is_over = self.is_whole = False
        self._wire: Wire | None = wire  # until all has arrived that will
        self._parts: list[bytes] = []
        self.unread = 0
        self.error: Exception | None = None
        self._inflater: Inflater | None = None

    def wait(self, until: float) -> asyncio.Future[None]:
        """Returns what is done when its head is there, or else with the next news.

        until: by the loop's clock; then it fails with a TimeoutError.
        Raises, while there is no head: ServerDisconnectedError, ClientConnectionError, HttpProcessingError.
        """
        assert self._wire is not None
        return self._wire.wait(until)

    def take(self) -> bytes:
        """Returns what has arrived; b"" at the end. Raises: ClientPayloadError, ClientConnectionError."""
        parts = self._parts
        if not parts:
            return self._end()
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._inflater is not None:
            self._inflater.room = MOST_BYTES
            self._inflate(b"")
        if not parts:
            if self._wire is not None:
                self.has_news = False
                if self.unread > _MOST_UNREAD_BYTES:
                    self._wire.resume_reading()
            self.unread = 0
        return data

    def put_back(self, data: bytes) -> None:
        """Gives back what was taken, which comes with the next `take` again."""
        if data:
            self._parts.insert(0, data)
            self.has_news = True

    def undo(self, coding: str) -> None:
        """Undoes the encoding of the content. coding: gzip or deflate."""
        packed = b"".join(self._parts)
        self._parts.clear()
        self.has_news, self.is_whole = self._wire is None, False
        self._inflater = Inflater(coding)
        self._inflate(packed)

    def close(self) -> None:
        """Drops the connection, unless the body has arrived to its end. Idempotent."""
        if self._wire is not None:
            self._wire.abort()

    def feed(self, data: bytes) -> None:
        """Takes more of the body. Raises: zlib.error."""
        if self._inflater is not None:
            data = self._inflater.feed(data)
        if data:
            self._parts.append(data)
            self.has_news = True

    def end(self, error: Exception | None = None) -> None:
        """Takes the end of the body. error: why there is no more of it; it belongs behind what came before."""
        self._wire, self.error = None, error
        self.is_over = error is None
        self.is_whole = self.is_over and self._inflater is None
        self.has_news = True

    def _inflate(self, data: bytes) -> None:
        try:
            self.feed(data)
        except zlib.error:
            self.close()
            self.end(aiohttp.ClientPayloadError("content that cannot be decoded"))

    def _end(self) -> bytes:
        if self.error is not None:
            # Another each time: the traceback of one that is kept would keep all that is in it, this reply too.
            raise type(self.error)(*self.error.args)
        if self._inflater is not None and not self._inflater.is_whole:
            raise aiohttp.ClientPayloadError("content that cannot be decoded to its end")
        return b""


class Wire(asyncio.Protocol):
    """A connection. idle_since: by the loop's clock."""

    __slots__ = (
        "_clock",
        "_every",
        "_is_bodiless",
        "_keeps",
        "_looks_at",
        "_loop",
        "_news",
        "_parser",
        "_pump",
        "_reply",
        "_resting",
        "_room",
        "_until",
        "idle_since",
        "transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        every: set[Wire],
        resting: list[Wire],
    ) -> None:
        """Takes over a transport. every: holds it while it is open. resting: where it waits for its next request."""
        self.transport = transport
        self.idle_since = 0.0
        self._loop = loop
        self._every, self._resting = every, resting
        self._parser = HttpResponseParser(self)
        # As aiohttp reads responses.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._reply: RawReply | None = None
        self._keeps = self._is_bodiless = False
        self._news: asyncio.Future[None] | None = None
        self._until = self._looks_at = math.inf
        self._clock: asyncio.TimerHandle | None = None
        self._pump: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        every.add(self)
        transport.set_protocol(self)

    def send(self, head: bytes, body: bytes) -> RawReply:
        """Sends a request. Returns its response, of which nothing has arrived yet."""
        reply = self._reply = RawReply(self)
        self._is_bodiless = head.startswith(b"HEAD ")
        self._keeps = False
        self.transport.write(head + body)
        return reply

    def send_in_pieces(self, head: bytes, pieces: AsyncGenerator[bytes], *, is_chunked: bool) -> RawReply:
        """Does as `send`; a piece is asked for when the upstream has taken the one before."""
        reply = self.send(head, b"")
        self._pump = self._loop.create_task(self._send_pieces(pieces, is_chunked=is_chunked))
        return reply

    def wait(self, until: float) -> asyncio.Future[None]:
        """Waits as the response says."""
        news = self._news = self._loop.create_future()
        self._bound(until)
        return news

    def allow(self, seconds: float) -> None:
        """Gives the head of the response so much time from now on."""
        if self._reply is not None and not self._reply.status:
            self._bound(self._loop.time() + seconds)

    def abort(self, error: Exception | None = None) -> None:
        """Drops the connection at once: in order, a close would wait until an upstream has taken all of a body."""
        self._give_up(error or aiohttp.ClientConnectionError("Connection closed"))
        self.transport.abort()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # The transport calls these

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:  # nobody has asked
            self.abort()
            return
        reply.unread += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._keeps = False
            if not reply.is_over:
                self.abort(_unreadable(reply))
                return
        if reply.is_over:
            self._release(reply)
        elif reply.unread > _HEAD_BYTES:
            self._stop_reading(reply)
        if reply.has_news and self._news is not None:
            self._tell(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._every.discard(self)
        if self._clock is not None:
            self._clock.cancel()
        del self._parser  # they hold each other
        reply = self._reply
        if reply is None:
            return
        if reply.status:
            ends_so = exc is None and _ends_with_its_connection(reply)
            self._give_up(None if ends_so else aiohttp.ClientPayloadError("the connection was lost"))
        elif isinstance(exc, OSError):
            self._give_up(aiohttp.ClientOSError(*exc.args))
        else:
            self._give_up(aiohttp.ServerDisconnectedError())

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # The parser calls these, within `data_received`

    def on_message_begin(self) -> None:
        assert self._reply is not None
        if self._reply.is_over:
            raise ValueError("a response for which nobody asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        reply = self._reply
        assert reply is not None
        if 0 in value:  # RFC 9110 5.5
            raise ValueError("a header with a zero byte")
        if not reply.status:  # else it is a trailer
            reply.raw_headers.append((name, value.rstrip()))

    def on_headers_complete(self) -> None:
        reply, status = self._reply, self._parser.get_status_code()
        assert reply is not None
        if status == 101:
            raise ValueError("another protocol, which was not asked for (RFC 9110 7.8)")
        if reply.unread > _HEAD_BYTES and _size(reply) > _HEAD_BYTES:
            raise ValueError("a head beyond measure")
        if status < 200:
            reply.raw_headers.clear()
            return
        reply.status = status
        if self._is_bodiless:  # which the parser cannot know
            reply.is_over = True
        self._tell(reply)

    def on_body(self, data: bytes) -> None:
        reply = self._reply
        assert reply is not None
        if not reply.is_over:
            reply.feed(data)

    def on_message_complete(self) -> None:
        reply = self._reply
        assert reply is not None
        if reply.status:
            reply.is_over = True
            self._keeps = self._parser.should_keep_alive()

    def _release(self, reply: RawReply) -> None:
        """Ends a response; the connection waits for its next request, if it may."""
        self._reply = None
        reply.end()
        # Answered before the request was taken, of which the rest may never be.
        is_behind = self.transport.get_write_buffer_size() or (self._pump and not self._pump.done())
        if self._keeps and not is_behind:
            self._pump = None
            self.idle_since = self._loop.time()
            self._resting.append(self)
        else:
            self.abort()

    def _stop_reading(self, reply: RawReply) -> None:
        """Reads no further until something is taken, or no further at all: a head has less room than a body."""
        if not reply.status:
            self.abort(_unreadable(reply))
        elif reply.has_news and reply.unread > _MOST_UNREAD_BYTES and not self.transport.is_closing():
            self.transport.pause_reading()

    def _give_up(self, error: Exception | None) -> None:
        reply, self._reply = self._reply, None
        if self._pump is not None:
            self._pump.cancel()
        if reply is not None:
            reply.end(error)
            self._tell(reply)

    def _tell(self, reply: RawReply) -> None:
        news, self._news = self._news, None
        if news is None or news.done():
            return
        if reply.error is not None and not reply.status:
            error, reply.error = reply.error, None
            news.set_exception(error)
        else:
            news.set_result(None)

    def _bound(self, until: float) -> None:
        """Sets when a wait ends. One timer looks now and then: one for each wait would cost each event."""
        self._until = until
        if until < self._looks_at:
            if self._clock is not None:
                self._clock.cancel()
            self._looks_at = until
            self._clock = self._loop.call_at(until, self._look)

    def _look(self) -> None:
        self._clock, self._looks_at = None, math.inf
        news = self._news
        if news is None or news.done():
            return
        if self._loop.time() < self._until:
            self._bound(self._until)
        else:
            news.set_exception(TimeoutError())

    async def _send_pieces(self, pieces: AsyncGenerator[bytes], *, is_chunked: bool) -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece:
                        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                    if self._room is not None:
                        await self._room
            if is_chunked:
                self.transport.write(b"0\r\n\r\n")
        except Exception as error:
            self._pump = None
            self.abort(aiohttp.ClientConnectionError(f"the body: {type(error).__name__}"))


def _unreadable(reply: RawReply) -> Exception:
    if reply.status:
        return aiohttp.ClientPayloadError("a body that is no HTTP, or cannot be decoded")
    return HttpProcessingError(message="no HTTP that can be read")


def _size(reply: RawReply) -> int:
    return sum(len(name) + len(value) for name, value in reply.raw_headers)


def _ends_with_its_connection(reply: RawReply) -> bool:
    """Returns whether nothing else says where a body ends (RFC 9112 6.3)."""
    for name, value in reply.raw_headers:
        if name.lower() == b"content-length":
            return False
        if name.lower() == b"transfer-encoding" and b"chunked" in value.lower():
            return False
    return True
