"""HTTP/1.1 to upstreams: connections that are kept, and one request with its response at a time on each.

aiohttp opens a connection (name look-up, addresses, TLS) and does no more. Its session makes a request, a response, a
writer, two timers, a parser and a task for each call; together they take more than half of the processor time of a
bare proxy. Responses are read by the parser that reads requests on the other side, llhttp behind httptools.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cached_property
from typing import Any, Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

HEADER_LIMIT_BYTES: Final = 64 * 1024
# Chosen: below the idle time of common balancers (60 s), above the gaps of a conversation.
KEEP_ALIVE_S: Final = 30.0
_MOST_UNREAD_BYTES: Final = 512 * 1024  # with so much of a body unread, its connection is read no further
_MOST_INFLATED: Final = 64 * 1024 * 1024  # bytes that one read may be inflated to
_WITHOUT_LENGTH: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
# Encodings that are undone here, though nobody asked for them.
DECODED: Final = frozenset(("deflate", "gzip", "identity", "x-gzip"))


class _Dialled(aiohttp.ClientRequest):
    """Asks aiohttp for a connection, which knows host, port and TLS from a request. It is never sent."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


class Address:
    """Where requests of one URL go: who is dialled, and how a head begins. idle: the connections that wait there."""

    __slots__ = ("dialled", "host", "idle", "target")

    def __init__(self, url: URL, wires: dict[ConnectionKey, list[Wire]]) -> None:
        self.dialled = _Dialled("GET", url, loop=asyncio.get_running_loop(), ssl=True)
        self.idle = wires.setdefault(self.dialled.connection_key, [])
        self.target = f"{url.raw_path_qs} HTTP/1.1\r\n"
        self.host = f"Host: {url.host_port_subcomponent}\r\n"

    def head(
        self, method: str, headers: Mapping[str, str], size: int | None, *, is_chunked: bool = False
    ) -> bytes:
        """Returns the head of a request.

        headers: `Host` only where another one is meant. size: of the body; None: there is none, or it is not known.
        Raises: ValueError: a header has a character that would end it.
        """
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        if is_chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        elif size is not None or method not in _WITHOUT_LENGTH:
            lines.append(f"Content-Length: {size or 0}\r\n")
        text = "".join(lines)
        if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
            raise ValueError("a header with a control character")
        host = "" if "Host" in headers else self.host
        return f"{method} {self.target}{host}{text}\r\n".encode()


class WirePool:
    """All connections of a process; make it in the running loop and close it there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
        self._wires: dict[ConnectionKey, list[Wire]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def address(self, url: URL) -> Address:
        return Address(url, self._wires)

    def take(self, address: Address) -> Wire | None:
        """Returns a connection that was kept; None: there is none."""
        while address.idle:
            wire = address.idle.pop()  # the one used last, so that those that are not needed grow old
            if wire.is_open:
                return wire
        return None

    async def open(self, address: Address, timeout: aiohttp.ClientTimeout) -> Wire:
        """Opens a connection. Raises: what aiohttp raises; a TimeoutError is a ConnectionTimeoutError."""
        try:
            opened = await self._connector.connect(address.dialled, [], timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEP_ALIVE_S, self._sweep)
        return Wire(opened, address.idle)

    async def aclose(self) -> None:
        """Closes every connection, busy ones too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._connector.close()

    def _sweep(self) -> None:
        """Closes connections that have waited for long."""
        oldest = self._loop.time() - KEEP_ALIVE_S
        for idle in self._wires.values():
            for wire in idle:
                if wire.idle_since < oldest:
                    wire.abort()
            idle[:] = [wire for wire in idle if wire.is_open]
        self._sweeper = self._loop.call_later(KEEP_ALIVE_S / 2, self._sweep)


class RawReply:
    """A response: its head, and its body as it arrives. status: 0 until the head is there.

    is_over: all of the body has arrived. error: why no more of it will; it belongs behind what arrived before.
    """

    __slots__ = ("_decode", "_parts", "_unread", "_wire", "error", "is_over", "raw_headers", "status")

    def __init__(self, wire: Wire) -> None:
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.is_over = False
        self.error: Exception | None = None
        self._wire: Wire | None = wire
        self._parts: list[bytes] = []
        self._unread = 0
        self._decode: Callable[[bytes], bytes] | None = None

    @property
    def has_news(self) -> bool:
        """Says whether `take` has something to say."""
        return bool(self._parts) or self.is_over or self.error is not None

    @property
    def is_paused(self) -> bool:
        return self._unread > _MOST_UNREAD_BYTES

    def wait(self, seconds: float) -> asyncio.Future[None]:
        """Returns what is done when there is news. It fails with a TimeoutError."""
        assert self._wire is not None
        return self._wire.wait(seconds)

    def take(self) -> bytes:
        """Returns what has arrived; b"" at the end. Raises: ClientPayloadError, ClientConnectionError."""
        parts = self._parts
        if not parts:
            if self.error is not None:
                raise self.error
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self.is_paused and self._wire is not None and self._wire.is_open:
            self._wire.transport.resume_reading()
        self._unread = 0
        return data

    def close(self) -> None:
        """Drops the connection, unless the body has arrived to its end. Idempotent."""
        wire, self._wire = self._wire, None
        if wire is not None:
            self.error = aiohttp.ClientConnectionError("Connection closed")
            wire.abort()

    def begin(self, status: int) -> None:
        """Takes the head's end."""
        self.status = status
        encodings = [v.strip().lower() for name, v in self.raw_headers if name.lower() == b"content-encoding"]
        if encodings:
            self._decode = _decoder(encodings[-1])

    def feed(self, data: bytes) -> None:
        if self._decode is not None:
            data = self._decode(data)
        if data:
            self._parts.append(data)
            self._unread += len(data)
            if self.is_paused and self._wire is not None:
                self._wire.transport.pause_reading()

    def end(self) -> None:
        self.is_over, self._wire = True, None

    def fail(self, error: Exception) -> None:
        self.error, self._wire = error, None


class Wire(asyncio.Protocol):
    """A connection to an upstream. idle_since: by the loop's clock."""

    def __init__(self, opened: Connection, idle: list[Wire]) -> None:
        """Takes a connection over from aiohttp. idle: where it waits between requests."""
        handler = opened.protocol
        assert handler is not None
        assert handler.transport is not None
        self.transport = handler.transport
        self.idle_since = 0.0
        self._opened, self._handler, self._idle = opened, handler, idle
        self._loop = asyncio.get_running_loop()
        self._parser: Any = HttpResponseParser(self)
        # As aiohttp reads responses.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._reply: RawReply | None = None
        self._is_bodiless = self._keeps = False
        self._head_bytes = 0
        self._news: asyncio.Future[None] | None = None
        self._until = 0.0
        self._clock: asyncio.TimerHandle | None = None
        self._clock_at = 0.0
        self._room: asyncio.Future[None] | None = None  # what a body in pieces waits for
        self._pump: asyncio.Task[None] | None = None
        self.transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    async def send(
        self, head: bytes, body: bytes | AsyncIterator[bytes], seconds: float, *, is_chunked: bool = False
    ) -> RawReply:
        """Sends a request; returns when the head of its response is there.

        body: in pieces, if it is large or not here yet. seconds: how long the head is waited for.
        Raises: ServerDisconnectedError, ClientOSError, ClientPayloadError: what comes is no HTTP; TimeoutError.
        """
        reply = self._reply = RawReply(self)
        self._is_bodiless = head.startswith(b"HEAD ")
        self._head_bytes = 0
        try:
            if isinstance(body, bytes):
                self.transport.write(head + body if body else head)
            else:
                self.transport.write(head)
                self._pump = self._loop.create_task(self._send_pieces(body, is_chunked=is_chunked))
            await self.wait(seconds)
            if not reply.status and reply.error is not None:
                raise reply.error
        except BaseException:
            reply.close()  # in order it would wait until our body is taken
            raise
        return reply

    def wait(self, seconds: float) -> asyncio.Future[None]:
        """Returns what is done with the next news of the response. It fails with a TimeoutError."""
        news = self._news = self._loop.create_future()
        self.bound(seconds)
        return news

    def bound(self, seconds: float) -> None:
        """Begins the time anew in which there must be news. One timer looks now and then, and not one for each wait."""
        self._until = self._loop.time() + seconds
        if self._clock is None or self._until < self._clock_at:
            if self._clock is not None:
                self._clock.cancel()
            self._clock, self._clock_at = self._loop.call_at(self._until, self._look), self._until

    def abort(self) -> None:
        """Drops the connection at once; what is still to be written is not."""
        self.transport.abort()

    def _look(self) -> None:
        self._clock = None
        if self._news is None or self._news.done():
            return
        if self._loop.time() >= self._until:
            self._news.set_exception(TimeoutError())
        else:
            self._clock, self._clock_at = self._loop.call_at(self._until, self._look), self._until

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    # A body in pieces

    async def _send_pieces(self, pieces: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        try:
            async for piece in pieces:
                if piece:
                    self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                if self._room is not None:
                    await self._room
            if is_chunked:
                self.transport.write(b"0\r\n\r\n")
        except Exception as error:
            if self._reply is not None:
                self._reply.fail(aiohttp.ClientConnectionError(type(error).__name__))
            self.abort()
            self._tell()

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # What comes in

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:  # nobody has asked
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._keeps, reply.is_over = False, True
        except HttpParserError as error:
            reply.fail(aiohttp.ClientPayloadError(type(error).__name__))
            self.abort()
        if not reply.status and reply.error is None:
            self._head_bytes += len(data)
            if self._head_bytes > HEADER_LIMIT_BYTES:
                reply.fail(aiohttp.ClientPayloadError("a head without end"))
                self.abort()
        if reply.is_over:
            self._release(reply)
        if reply.status or reply.error is not None:
            self._tell()

    def on_header(self, name: bytes, value: bytes) -> None:
        reply = self._reply
        if reply is not None and not reply.status:  # else it is a trailer
            reply.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        reply, status = self._reply, self._parser.get_status_code()
        if reply is None or reply.status:  # a second response, for which nobody has asked
            self._keeps = False
        elif status < 200 and status != 101:
            reply.raw_headers.clear()
        else:
            reply.begin(status)
            self._keeps = self._parser.should_keep_alive()
            if self._is_bodiless:  # which the parser does not know
                self._keeps, reply.is_over = False, True

    def on_body(self, data: bytes) -> None:
        reply = self._reply
        if reply is not None and not reply.is_over:
            reply.feed(data)

    def on_message_complete(self) -> None:
        reply = self._reply
        if reply is not None and reply.status:
            reply.is_over = True

    def _release(self, reply: RawReply) -> None:
        """Ends a response; the connection waits for the next request, if it may."""
        self._reply = None
        reply.end()
        # Answered before the request was taken, of which the rest may never be.
        is_behind = self.transport.get_write_buffer_size() or (
            self._pump is not None and not self._pump.done()
        )
        if self._keeps and not is_behind:
            if reply.is_paused:
                self.transport.resume_reading()
            self.idle_since = self._loop.time()
            self._idle.append(self)
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)
        self._opened.close()
        for each in (self._clock, self._pump):
            if each is not None:
                each.cancel()
        reply, self._reply = self._reply, None
        if reply is None or reply.error is not None:
            pass
        elif not reply.status:
            is_cut = isinstance(exc, OSError)
            reply.fail(
                aiohttp.ClientOSError(*exc.args) if is_cut and exc else aiohttp.ServerDisconnectedError()
            )
        elif exc is None and not any(name.lower() in _FRAMING for name, _ in reply.raw_headers):
            reply.end()  # such a body ends with its connection
        else:
            reply.fail(aiohttp.ClientPayloadError("the connection was lost"))
        self._tell()


def _decoder(encoding: bytes) -> Callable[[bytes], bytes] | None:
    """Returns what undoes an encoding; None: nothing does."""
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        return None
    inflating: Any = None

    def decode(data: bytes) -> bytes:
        nonlocal inflating
        if inflating is None:
            # Some servers mean by "deflate" the bare stream, without zlib's own head.
            is_bare = encoding == b"deflate" and data[0] & 0xF != 8
            inflating = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        found: bytes = inflating.decompress(data, _MOST_INFLATED)
        if inflating.unconsumed_tail:
            raise ValueError("a body that is inflated beyond measure")
        if inflating.unused_data:  # a second member of gzip follows
            data, inflating = inflating.unused_data, None
            found += decode(data)
        return found

    return decode
