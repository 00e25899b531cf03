"""One request and its reply on a connection, as ASGI has them: what an application receives, and what it sends."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Awaitable, Iterable
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Scope

STATUS_LINES: Final = {int(each): f"HTTP/1.1 {each} {each.phrase}".encode() for each in http.HTTPStatus}
_BODILESS: Final = frozenset((204, 304))
_CONTROL: Final = bytes((*range(9), *range(10, 32), 127))  # all but the tab
_AS_BLANKS: Final = bytes.maketrans(_CONTROL, b" " * len(_CONTROL))  # RFC 9110 5.5
# So much of a body the server takes before anybody asks for it.
_MOST_UNREAD_BYTES: Final = 64 * 1024
_log = logging.getLogger("mnemogate")


class Line(Protocol):
    """The connection of a cycle. is_full: a write would wait for the client to read. done: a future that is done."""

    transport: asyncio.Transport
    done: asyncio.Future[None]

    @property
    def is_full(self) -> bool: ...

    @property
    def default_headers(self) -> Iterable[tuple[bytes, bytes]]:
        """The headers of every reply."""

    async def until_read(self) -> None:
        """Waits until the client has read enough."""

    def read_on(self) -> None:
        """Reads from the client again, if that was paused."""

    def close(self) -> None:
        """Closes the connection when what was sent is read."""

    def replied(self, cycle: Cycle) -> None:
        """Goes on behind a reply that is complete."""


class Cycle:
    """A request and its reply. The reply's head leaves with the first bytes of its body, in one packet.

    keeps_alive: the connection serves more requests behind this one. has_whole_body: the request has arrived to its
    end. has_begun: the reply's head is made. is_over: the reply is complete.
    """

    __slots__ = (
        "_has_asked",
        "_has_news",
        "_head",
        "_is_bodiless",
        "_is_chunked",
        "_is_gone",
        "_left",
        "_line",
        "_parts",
        "_unread",
        "_waiter",
        "has_begun",
        "has_whole_body",
        "is_over",
        "keeps_alive",
        "scope",
    )

    def __init__(self, line: Line, scope: Scope, *, keeps_alive: bool) -> None:
        self.scope = scope
        self.keeps_alive = keeps_alive
        self.has_whole_body = self.has_begun = self.is_over = False
        self._line = line
        self._parts: list[bytes] = []  # of the request's body, which nobody has received yet
        self._unread = 0
        self._has_asked = self._has_news = self._is_gone = False
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._is_bodiless = self._is_chunked = False
        self._left: int | None = None  # of the length that the reply's head names

    async def run(self, app: ASGIApp) -> None:
        """Has the application answer. What it leaves open is ended here."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:
            _log.error("a request failed outside of its edge", exc_info=error)
        finally:
            if not (self.is_over or self._is_gone):
                if self.has_begun:
                    self._line.close()  # which tells that the body was cut
                else:
                    self._begin(500, ((b"content-length", b"0"), (b"connection", b"close")))
                    self._go_on(b"", more_body=False)

    # The request

    async def receive(self) -> Message:
        if not (self._has_news or self._is_gone or self.is_over):
            self._ask_on()
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)  # others may wait as well
        if self._is_gone or self.is_over:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._take(), "more_body": not self.has_whole_body}

    def _ask_on(self) -> None:
        """Has the client send on: it may wait to be asked for the body (RFC 9110 10.1.1)."""
        if not (self._has_asked or self.has_begun or self.has_whole_body):
            self._has_asked = True
            if self.scope["http_version"] != "1.0" and any(
                name == b"expect" and value.lower() == b"100-continue"
                for name, value in self.scope["headers"]
            ):
                self._line.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._line.read_on()

    def take_body(self) -> bytes | None:
        """Returns what is left of the body, without a wait; None: it has not arrived to its end."""
        return self._take() if self.has_whole_body and not self._is_gone else None

    def _take(self) -> bytes:
        parts, self._parts, self._unread, self._has_news = self._parts, [], 0, False
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed(self, data: bytes) -> bool:
        """Takes a piece of the request's body. Returns whether enough of it is unread."""
        self._parts.append(data)
        self._unread += len(data)
        self._tell()
        return self._unread > _MOST_UNREAD_BYTES

    def end(self) -> None:
        """Takes the end of the request."""
        self.has_whole_body = True
        self._tell()

    def lose(self) -> None:
        """Learns that the client is gone."""
        self._is_gone = True
        self._tell()

    def _tell(self) -> None:
        self._has_news = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.set_result(None)

    # The reply

    def send(self, message: Message) -> Awaitable[None]:
        """Sends a message of the reply; what it returns is done unless the client has to read first."""
        if self._line.is_full and not self._is_gone:
            return self._send_when_read(message)
        self._send_now(message)
        return self._line.done

    async def _send_when_read(self, message: Message) -> None:
        await self._line.until_read()
        self._send_now(message)

    def _send_now(self, message: Message) -> None:
        if self._is_gone:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.has_begun:
            self._begin(message["status"], message["headers"])
        elif kind == "http.response.body" and self.has_begun and not self.is_over:
            self._go_on(message["body"], message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind!r} has no place here")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Makes the head. Control characters, which an upstream may put into a header, become blanks."""
        self.has_begun = True
        says_close = False
        pairs = [*self._line.default_headers, *headers]
        for name, value in pairs:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keeps_alive, says_close = False, True
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
        head = b"\r\n".join([line, *map(b": ".join, pairs)])
        if len(head) - len(head.translate(None, _CONTROL)) != 2 * len(pairs):
            blank = [(name.translate(_AS_BLANKS), value.translate(_AS_BLANKS)) for name, value in pairs]
            head = b"\r\n".join([line, *map(b": ".join, blank)])
        if not self.keeps_alive and not says_close:
            head += b"\r\nconnection: close"
        if status in _BODILESS or self.scope["method"] == "HEAD":
            self._is_bodiless, self._left = True, None
        elif self._left is None and self.scope["http_version"] != "1.0":
            # (HTTP/1.0 does not know of chunks: there the body ends with the connection.)
            self._is_chunked = True
            head += b"\r\ntransfer-encoding: chunked"
        self._head = head + b"\r\n\r\n"

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
            self._line.transport.write(data)
        if not more_body:
            if self._left:
                raise RuntimeError("a body shorter than its content-length")
            self.is_over = True
            self._tell()
            self._line.replied(self)
