"""HTTP/1.1 to clients: a connection, the requests that come on it one after the other, and their replies.

uvicorn's server starts, drains and ends; this stands in the place of its protocol, which bounds neither the time nor
the size of a request's head, and makes an event, a timer and two packets for each reply. Heads are read by llhttp
(httptools). Three things about them are mended here:

`Upgrade`: Java's client offers HTTP/2 with every first request. A server may ignore that (RFC 9110 7.8), but httptools
takes all that follows such a head for the other protocol's, and the request's body is lost (MagicStack/httptools#124).
Trailers: httptools reports them as headers, although they are none (RFC 9110 6.5.1): what a proxy in front lets through
as a trailer may be somebody's name or key. A body larger than the buffer stops the reading until somebody asks for it,
and only by reading is it found that the client left; so a body that is here as a whole stops nothing.
"""

from __future__ import annotations

import asyncio
import http
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import Message, Scope
from uvicorn import Config
from uvicorn.server import ServerState

# Longer than the 120 s after which clients and load balancers drop idle connections, so that they close them first.
KEEP_ALIVE_S = 135
MAX_HEAD_BYTES = 64 * 1024  # chosen: OpenAI's and Cloudflare's own limits lie at 16 to 32 KiB
_MOST_UNREAD_BYTES = 64 * 1024
_BODILESS = frozenset((204, 304))
_CONTROL = bytes((*range(9), *range(10, 32), 127))  # all but the tab
_UPGRADE = re.compile(rb"(^|\n)[Uu]pgrade(?=[ \t]*:)")
_STATUS_LINES = {int(each): b"HTTP/1.1 %d %b\r\n" % (each, each.phrase.encode()) for each in http.HTTPStatus}
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_log = logging.getLogger("uvicorn.error")


class Cycle:
    """One request and its reply, as ASGI has them. The reply's head leaves with the first bytes of its body.

    more_body: the request's body has not arrived to its end. is_over: the reply is complete.
    """

    __slots__ = (
        "_connection",
        "_expects_continue",
        "_has_begun",
        "_has_news",
        "_head",
        "_is_bodiless",
        "_is_chunked",
        "_is_gone",
        "_left",
        "_parts",
        "_unread",
        "_waiter",
        "is_over",
        "keeps_alive",
        "more_body",
        "scope",
    )

    def __init__(
        self, connection: ServedConnection, scope: Scope, *, expects_continue: bool, keeps_alive: bool
    ) -> None:
        self.scope = scope
        self.keeps_alive = keeps_alive
        self.more_body = True
        self.is_over = False
        self._connection = connection
        self._expects_continue = expects_continue
        self._parts: list[bytes] = []
        self._unread = 0
        self._has_news = self._is_gone = False
        self._waiter: asyncio.Future[None] | None = None
        self._has_begun = self._is_bodiless = self._is_chunked = False
        self._head = b""
        self._left: int | None = None  # of the announced length

    async def run(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:
            _log.error("Exception in ASGI application\n", exc_info=error)
        if self.is_over or self._is_gone:
            return
        if self._has_begun:  # a body that was cut: the connection's end tells it
            self._connection.transport.close()
        else:
            headers = [
                (b"content-type", b"text/plain"),
                (b"content-length", b"21"),
                (b"connection", b"close"),
            ]
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send({"type": "http.response.body", "body": b"Internal Server Error"})

    # The request

    async def receive(self) -> Message:
        if self._expects_continue and not self._connection.is_lost:
            self._expects_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not (self._has_news or self._is_gone or self.is_over):
            self._connection.read_on()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._is_gone or self.is_over:
            return {"type": "http.disconnect"}
        parts, self._parts, self._unread, self._has_news = self._parts, [], 0, False
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def feed(self, data: bytes) -> bool:
        """Takes a piece of the body. Returns whether enough of it is unread."""
        self._parts.append(data)
        self._unread += len(data)
        self._tell()
        return self._unread > _MOST_UNREAD_BYTES

    def end(self) -> None:
        """Takes the end of the body."""
        self.more_body = False
        self._tell()

    def lose(self) -> None:
        """Learns that the client is gone."""
        if not self.is_over:
            self._is_gone = True
        self._tell()

    def _tell(self) -> None:
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The reply

    async def send(self, message: Message) -> None:
        """Sends the head, a piece of the body, or both: a head may bring a `body`, as no other server takes it."""
        connection = self._connection
        if connection.is_full and not self._is_gone:
            await connection.drain()
        if self._is_gone:
            return
        if message["type"] == "http.response.start" and not self._has_begun:
            self._has_begun = True
            self._expects_continue = False
            self._head = self._begin(message["status"], message["headers"])
            if "body" not in message:
                return
        elif message["type"] != "http.response.body" or not self._has_begun or self.is_over:
            raise RuntimeError(f"{message['type']!r} has no place here")
        self._go_on(message.get("body", b""), message.get("more_body", False))

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Returns the head. Raises: RuntimeError: a header that would end it."""
        says_close = False
        parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in (*self._connection.server_state.default_headers, *headers):
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keeps_alive, says_close = False, True
            parts += (name, b": ", value, b"\r\n")
        head = b"".join(parts)
        line_ends = 2 + 2 * (len(parts) // 4)
        if len(head) - len(head.translate(None, _CONTROL)) != line_ends:
            raise RuntimeError("a header with a control character")
        if not self.keeps_alive and not says_close:
            head += b"connection: close\r\n"
        self._is_bodiless = self.scope["method"] == "HEAD" or status in _BODILESS
        if self._is_bodiless:
            self._left = None
        elif self._left is None and self.scope["http_version"] != "1.0":
            # (HTTP/1.0 does not know of chunks: there the body ends with the connection.)
            self._is_chunked = True
            head += b"transfer-encoding: chunked\r\n"
        return head + b"\r\n"

    def _go_on(self, body: bytes, more_body: bool) -> None:
        head, self._head = self._head, b""
        if self._is_bodiless:
            data = head
        elif self._is_chunked:
            data = b"%b%x\r\n%b\r\n" % (head, len(body), body) if body else head
            if not more_body:
                data += b"0\r\n\r\n"
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0:
                    raise RuntimeError("a body longer than its content-length")
            data = head + body if head else body
        if data:
            self._connection.transport.write(data)
        if not more_body:
            if self._left:
                raise RuntimeError("a body shorter than its content-length")
            self.is_over = True
            self._tell()
            self._connection.replied(self)


class ServedConnection(asyncio.Protocol):
    """A client's connection; uvicorn's server makes it and calls `shutdown`.

    on_lost: the reply under way (gateway.web.sse) puts itself here, to be told when its client closes the connection.
    """

    head_timeout_s = 20.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.server_state = server_state
        self.on_lost: Callable[[], object] | None = None
        self.transport: Any = None
        self._app, self._app_state = config.loaded_app, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser: Any = HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._peers: dict[str, Any] = {}
        self._cycle: Cycle | None = None  # the newest
        self._running: Cycle | None = None
        self._pipeline: deque[Cycle] = deque()  # those whose turn has not come
        # The head that is read
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = self._in_body = False
        self._in_head = True
        self._head_bytes = 0
        # The time in which something has to come. One timer looks now and then.
        self.closes_at = inf
        self._clock: asyncio.TimerHandle | None = None
        self._clock_at = inf
        self._is_paused = False
        self._writable: asyncio.Future[None] | None = None

    # What its reply asks and does

    @property
    def is_lost(self) -> bool:
        closing: bool = self.transport.is_closing()
        return closing

    @property
    def is_full(self) -> bool:
        """Says whether a write would wait for the client to read."""
        return self._writable is not None

    @property
    def has_whole_body(self) -> bool:
        """Says whether the body of the newest request has arrived, and so those of all before it."""
        return self._cycle is not None and not self._cycle.more_body

    def abort(self) -> None:
        """Drops the connection of a client that left or does not read; closing it in order would wait for it."""
        self.transport.abort()

    async def drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def read_on(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def replied(self, cycle: Cycle) -> None:
        """Goes on behind a reply that is complete."""
        if not cycle.keeps_alive:
            self.transport.close()
        if self.transport.is_closing():
            return
        self.read_on()
        if self._pipeline:
            self._start(self._pipeline.popleft())
        else:
            self._bound(self.head_timeout_s if self._in_head else KEEP_ALIVE_S)

    def shutdown(self) -> None:
        """Ends the connection behind the reply under way."""
        if self._cycle is None or self._cycle.is_over:
            self.transport.close()
        else:
            self._cycle.keeps_alive = False

    # What the transport tells

    def connection_made(self, transport: Any) -> None:
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        self.transport = transport
        secure = transport.get_extra_info("sslcontext") is not None
        self._peers = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "scheme": "https" if secure else "http",
        }
        self._bound(self.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        if self._clock is not None:
            self._clock.cancel()
        for cycle in {self._cycle, self._running}:
            if cycle is not None:
                cycle.lose()
        self.resume_writing()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)

    def data_received(self, data: bytes) -> None:
        # A head mostly comes with its whole body, through which it would take long to look.
        if not self._in_body and data.find(b"pgrade", 0, data.find(b"\r\n\r\n")) >= 0:
            data = _without_upgrade(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            _log.warning("Unsupported upgrade request.")
        except HttpParserError:
            _log.warning("Invalid HTTP request received.")
            self._refuse("Invalid HTTP request received.")
            return
        if not self._in_head:
            return
        # Only whole reads are counted, so a head may pass that is larger by less than one of them.
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse("Request head too large.")

    # What the parser tells

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._expects_continue = False
        self._in_head = True
        self._head_bytes = 0
        if self._cycle is None or self._cycle.is_over:
            self._bound(self.head_timeout_s)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects_continue = True
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser, url = self._parser, parse_url(self._url)
        self._in_head, self._in_body = False, True
        self.closes_at = inf
        version = parser.get_http_version()
        path = url.path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            # For the edge, which aborts, and for the reply, which wants to know when the client leaves.
            "state": {**self._app_state, "connection": self},
            **self._peers,
        }
        cycle = Cycle(
            self,
            scope,
            expects_continue=self._expects_continue,
            keeps_alive=version != "1.0" and parser.should_keep_alive(),
        )
        before, self._cycle = self._cycle, cycle
        if before is None or before.is_over:
            self._start(cycle)
        else:
            self._pipeline.append(cycle)
            self._pause()

    def on_body(self, data: bytes) -> None:
        cycle = self._cycle
        if cycle is not None and not cycle.is_over and cycle.feed(data):
            self._pause()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._cycle is not None and not self._cycle.is_over:
            self._cycle.end()
        # A request that has to wait for its turn stays paused.
        if not self._pipeline:
            self.read_on()

    def _start(self, cycle: Cycle) -> None:
        self._running, tasks = cycle, self.server_state.tasks
        task = self._loop.create_task(cycle.run(self._app))
        task.add_done_callback(tasks.discard)
        tasks.add(task)

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def _refuse(self, why: str) -> None:
        """Answers what is no request, and closes the connection."""
        dated = b"".join(b"%b: %b\r\n" % each for each in self.server_state.default_headers)
        head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(_STATUS_LINES[400] + dated + head % len(why) + why.encode())
        self.transport.close()

    # The time

    def _bound(self, seconds: float) -> None:
        self.closes_at = self._loop.time() + seconds
        if self.closes_at < self._clock_at:
            if self._clock is not None:
                self._clock.cancel()
            self._set_clock()

    def _set_clock(self) -> None:
        self._clock, self._clock_at = self._loop.call_at(self.closes_at, self._look), self.closes_at

    def _look(self) -> None:
        self._clock, self._clock_at = None, inf
        if self._loop.time() >= self.closes_at:
            self.transport.close()
        elif self.closes_at < inf:
            self._set_clock()


def _address(found: Any) -> tuple[str, int] | None:
    return (str(found[0]), int(found[1])) if isinstance(found, list | tuple) else None


def _without_upgrade(data: bytes) -> bytes:
    """Returns the beginning of a request that asks for no other protocol.

    The field gets the name of another one that is as long and goes no further, so that no offset moves.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\\1trailer", head) + blank + rest
