"""A client's connection: uvicorn's, with the bounds that it lacks.

uvicorn bounds neither the head of a request, nor the lines within its body, nor a body that stays unread, nor the
requests that wait, nor the time for which a client reads nothing (`SlowReaderWatch`), nor the connections. It sends
chunks to clients of HTTP/1.0, which do not know them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.web.slow_reader import SlowReaderWatch

# The most bytes of a head. OpenAI and Cloudflare allow 16 to 32 KiB.
_MAX_HEAD_BYTES: Final = 64 * 1024
# The most requests that a client may send before the reply to an earlier one. Browsers and SDKs send none.
MAX_WAITING: Final = 64
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
# The value of SO_LINGER with which a close resets the connection and drops the unsent bytes (socket(7)).
_NO_LINGER: Final = pack("ii", 1, 0)
_LAST_CHUNK: Final = b"0\r\n\r\n"
# The seconds that a refused connection has for its head, and after the reply for the rest of a body, since it holds one
# of the last descriptors. No measurement; any value from 1 to 5 behaves alike.
_REFUSED_HEAD_S: Final = 2.0
_FEW_DESCRIPTORS: Final = (
    "Few file descriptors are left, so new connections are refused. Raise the limit of this process (`ulimit -n`, "
    "LimitNOFILE of systemd): a reply takes two"
)
_log = logging.getLogger("mnemogate")


class UnchunkedReply:
    """Passes the writes of one reply to the connection without chunks: the reply ends with its connection.

    uvicorn sends a reply without a length in chunks, which HTTP/1.0 does not have (RFC 9112 6.1).
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        # True if uvicorn writes the body in chunks; None: the head was not written yet.
        self._is_chunked: bool | None = None
        # True if the last chunk was written.
        self._has_ended = False

    def write(self, data: bytes) -> None:
        if self._is_chunked is None:
            self._is_chunked = _CHUNKED in data
            data = data.replace(_CHUNKED, b"")
        elif self._is_chunked and data:  # one chunk, the last chunk, or both
            digits, _, chunk = data.partition(b"\r\n")
            size = int(digits, 16)
            self._has_ended = not size or chunk.endswith(_LAST_CHUNK, size)
            data = chunk[:size]
        self._connection.write(data)

    def is_closing(self) -> bool:
        return self._connection.is_closing()

    def close(self) -> None:
        """Ends the connection. An unfinished stream is reset, since it would look whole."""
        if self._is_chunked and not self._has_ended:
            self._connection.reset()
        else:
            self._connection.close()


class HttpConnection(SlowReaderWatch, HttpToolsProtocol):
    """One connection of uvicorn's server; its requests have it in `scope["state"]["connection"]`.

    uvicorn's `cycle` is the newest request; it is answered after the requests in the `pipeline`. The requests write to
    this connection instead of the transport.
    """

    # The seconds that a client has for a head, and for the rest of a body after its reply.
    head_timeout_s = 20.0
    # The seconds for which an idle connection stays open when the server stops.
    last_request_s = 1.0
    # Connections with this descriptor or a higher one are refused. The system gives the lowest one that is free, so few
    # are left then. None: no limit.
    descriptor_limit: int | None = None
    # True if few descriptors were left when the connection was made.
    is_refused = False
    # A function that is called when the connection is lost. The reply under way sets it (gateway.web.client_reply).
    on_lost: Callable[[], object] | None = None
    # The head of the reply under way; b"": it was sent; None: no reply is under way.
    _head: bytes | None = None
    # True if further bytes of the client are dropped.
    _drops_input = False
    # True if the connection ends after the next request, since the server stops.
    _ends_after_next = False
    # The bytes read since a head, a part of a body or a request ended. Whole reads are counted, so a head may exceed
    # the bound by less than two of them.
    _bytes_since_part = 0
    # Ends the connection unless the rest of a head or a body arrives; None: nothing is waited for.
    _arrival_timer: asyncio.TimerHandle | None = None

    @property
    def is_writing_paused(self) -> bool:
        """True if a write waits for the client to read."""
        return self.flow.write_paused

    @property
    def is_answering(self) -> bool:
        """True if the newest request is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def has_whole_body(self) -> bool:
        """True if the body of the newest request, and so of all before it, has arrived."""
        return self.cycle is None or not self.cycle.more_body

    def is_closing(self) -> bool:
        """Returns whether the connection is closed, or about to be."""
        return self.transport.is_closing()

    def abort(self) -> None:
        """Ends the connection at once, and drops the bytes that are not sent yet."""
        self.transport.abort()

    def reset(self) -> None:
        """Ends the connection so that the client sees an error, and not the end of a reply."""
        if not self.transport.is_closing():  # True: the client has left, and the socket may be gone
            self.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
            self.transport.abort()

    def write(self, data: bytes) -> None:
        """Writes a part of a reply. Its head leaves with the first bytes of its body, in one packet."""
        if self._head is None and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
            return
        if self._head:
            data, self._head = self._head + data, b""
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Ends the connection. Further bytes of the client are dropped: a reset could destroy the reply on its way."""
        self.write(b"")
        if (self.has_whole_body and not self._drops_input) or self.pipeline:
            self.transport.close()
        else:
            self._drops_input = True  # RFC 9112 9.6
            self.flow.resume_reading()
            self.transport.write_eof()

    # -- the callbacks of asyncio, llhttp and uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.descriptor_limit is not None:
            descriptor = transport.get_extra_info("socket").fileno()
            self.is_refused = descriptor >= self.descriptor_limit
            self._ends_after_next = self.is_refused
            if self.is_refused:
                self.head_timeout_s = min(self.head_timeout_s, _REFUSED_HEAD_S)
                _log.warning(_FEW_DESCRIPTORS)
        self._limit_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._limit_arrival()
        # The requests refer to this connection. Without these references no cycle is left for the garbage collector.
        self.pipeline.clear()
        self.cycle = self.scope = None  # type: ignore[assignment]
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Parses bytes of the client, and refuses a head, trailer or chunk extension that is too large."""
        if self._drops_input:
            return
        self._bytes_since_part += len(data)
        try:
            while data := self._parse(data):
                pass
            if self._bytes_since_part > _MAX_HEAD_BYTES:
                raise HttpParserError("a head, trailer or chunk extension is too large")
        except HttpParserError as error:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response(f"Invalid HTTP request received: {error}.")
        self._limit_arrival()

    def on_headers_complete(self) -> None:
        """Begins a request. Raises: HttpParserError: too many requests wait."""
        self._bytes_since_part = 0
        if self.parser.should_upgrade():
            return  # `_parse` decides
        if len(self.pipeline) >= MAX_WAITING:
            raise HttpParserError("too many requests wait")
        self.scope["state"]["connection"] = self
        super().on_headers_complete()
        self.headers = []  # for trailers, which are no headers (RFC 9110 6.5.1)
        self.cycle.transport = self  # type: ignore[assignment]
        if self.scope["http_version"] == "1.0":
            self.cycle.transport = UnchunkedReply(self)  # type: ignore[assignment]
            self.cycle.waiting_for_100_continue = False  # RFC 9110 10.1.1
        if self._ends_after_next:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._bytes_since_part = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._bytes_since_part = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self.cycle.more_body = False  # uvicorn does not note it once the reply has ended
            # uvicorn pauses reading until a route asks for more of the body, but only reading shows that a client left.
            if not self.pipeline:
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self.write(b"")  # sends the head of a reply without a body, as to HEAD
        self._head = None
        super().on_response_complete()
        if self.transport.is_closing():
            self.watch_reader()
        elif self.pipeline:
            self.flow.pause_reading()
        self._limit_arrival()

    def shutdown(self) -> None:
        """Ends the connection after the reply under way, or after the next request if the reply's head was sent.

        A proxy may just be sending the next request. It would be lost with the connection, and not be sent elsewhere.
        """
        if not self.last_request_s or (self.is_answering and not self.cycle.response_started):
            super().shutdown()
            return
        self._ends_after_next = True
        self.timeout_keep_alive = self.last_request_s  # type: ignore[assignment]  # uvicorn only waits for it
        if not self.is_answering:
            if self.timeout_keep_alive_task is not None:
                self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        if not self.is_answering:
            super().timeout_keep_alive_handler()
            self.watch_reader()

    def send_400_response(self, msg: str) -> None:
        """Refuses the newest request, and ends the connection once the requests before it are answered."""
        self._drops_input = True
        if self.is_answering and self.has_whole_body:
            self.cycle.keep_alive = False  # the refused bytes come after the newest request
        elif self.is_answering and (self.pipeline or self.cycle.response_started):
            self.abort()  # the newest request is refused, and a 400 would be taken for a part of another reply
        else:
            super().send_400_response(msg)

    def _parse(self, data: bytes) -> bytes:
        """Parses bytes of the client. Raises: HttpParserError.

        Returns the bytes that have to be parsed instead; b"": there are none.
        """
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            method = self.parser.get_method()
            headers = dict(self.headers)
            if method == b"CONNECT":
                raise HttpParserError("there are no tunnels") from None
            is_handshake = method == b"GET" and b"sec-websocket-key" in headers
            if is_handshake and not (self.is_answering or self.is_writing_paused or self.is_refused):
                self.scope["method"] = "GET"
                self.handle_websocket_upgrade()
                self.parser = self.scope = None  # type: ignore[assignment]  # they refer to this connection
                return b""
            # Any other offer is ignored (RFC 9110 7.8): Java's client makes an offer with its first request. llhttp
            # takes the following bytes for the other protocol (MagicStack/httptools#124), so the head is parsed again
            # without the offer.
            request_line = b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())
            header_lines = [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return b"\r\n".join([request_line, *header_lines, b"", data[upgrade.args[0] :]])
        return b""

    def _limit_arrival(self) -> None:
        """Limits the wait for the rest of a head or a body while no reply is under way."""
        is_arriving = self.scope is None or "path" not in self.scope or self.cycle.more_body
        is_waited_for = is_arriving and self.parser is not None and not self.is_answering
        if is_waited_for and self._arrival_timer is None:
            self._arrival_timer = self.loop.call_later(self.head_timeout_s, self.timeout_keep_alive_handler)
        elif self._arrival_timer is not None and not is_waited_for:
            self._arrival_timer.cancel()
            self._arrival_timer = None
