"""HTTP/1.1 to clients: a connection, and the requests that come on it one after the other.

It stands in the place of uvicorn's protocol, which bounds neither a request's head nor how long a client may not read,
and makes an event, two timers and three packets for each reply. uvicorn's server starts it and drains it. Requests are
read by llhttp (httptools), whose trailers are no headers here (RFC 9110 6.5.1): what a proxy in front lets through as a
trailer may be somebody's name or key.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from uvicorn import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from gateway.web.connection.cycle import STATUS_LINES, Cycle
from gateway.web.connection.reading import WatchesReading

# Longer than the 120 s after which clients and load balancers drop idle connections, so that they close them first.
KEEP_ALIVE_S: Final = 135.0
LINGER_S: Final = 30.0  # nginx's
MAX_HEAD_BYTES: Final = 64 * 1024  # chosen: OpenAI's and Cloudflare's own limits lie at 16 to 32 KiB
# The handshake of the Responses API; every other path is a request's whatever it offers.
_SOCKET_PATHS: Final = frozenset((b"/v1", b"/v1/", b"/v1/responses", b"/v1/responses/"))
_log = logging.getLogger("mnemogate")


class ServedConnection(WatchesReading):
    """A client's connection; uvicorn's server makes it and calls `shutdown`.

    on_lost: the reply under way (gateway.web.sse) puts itself here, to be told when its client closes the connection.
    closes_at: by the loop's clock, when it is closed unless something comes.
    """

    head_timeout_s = 20.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.done = self.loop.create_future()
        self.done.set_result(None)
        self.on_lost: Callable[[], object] | None = None
        self._config, self._state = config, server_state
        self._app, self._app_state = config.loaded_app, app_state
        self._parser: Any = self._make_parser()
        self._scope: dict[str, Any] = {}  # what all requests of this connection have in common
        self._cycles: deque[Cycle] = deque()  # not answered yet; the first is under way
        self._reading: Cycle | None = None  # whose body is still to come
        # The head that is read
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._opens_socket = False
        self._in_head = True
        self._is_deaf = False  # what comes is no request
        self._begun_bytes = 0  # of a head that has not come whole, or of lines within a body
        self._is_behind = False  # something else came before them in the same read
        # One timer looks now and then for whether the time is up.
        self.closes_at = inf
        self._clock: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._room: asyncio.Future[None] | None = None  # what waits for the client to read

    # What a reply asks and does

    @property
    def is_lost(self) -> bool:
        return self.transport.is_closing()

    @property
    def is_full(self) -> bool:
        """Says whether a write would wait for the client to read."""
        return self._room is not None

    @property
    def has_whole_body(self) -> bool:
        """Says whether the body of the newest request has arrived, and so those of all before it."""
        return self._reading is None

    def take_body(self) -> bytes | None:
        """Returns the body of the request under way; None: it has not arrived to its end."""
        return self._cycles[0].take_body() if self._cycles else None

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return self._state.default_headers

    def abort(self) -> None:
        """Drops the connection of a client that left or does not read; closing it in order would wait for it."""
        self.transport.abort()

    def close(self) -> None:
        self.transport.close()
        self.watch_reading()

    async def until_read(self) -> None:
        if self._room is not None:
            await asyncio.shield(self._room)

    def read_on(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def replied(self, cycle: Cycle) -> None:
        self._cycles.popleft()
        if not cycle.keeps_alive:
            if not cycle.has_whole_body:
                self._linger()
                return
            self.close()
        if self.transport.is_closing():
            return
        self.read_on()
        if self._cycles:
            self._start()
        else:
            self._bound(self.head_timeout_s if self._in_head else KEEP_ALIVE_S)

    def shutdown(self) -> None:
        """Ends the connection behind the replies under way."""
        if self._cycles:
            self._cycles[-1].keeps_alive = False
        else:
            self.close()

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "",
            "method": "",
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "state": {},
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "scheme": "https" if is_ssl(transport) else "http",
        }
        self._bound(self.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave()
        for cycle in self._cycles:
            cycle.lose()
        self._cycles.clear()  # they know this connection
        self._reading = None
        self._make_room()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._room is None:
            self._room = self.loop.create_future()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._is_behind = False
        while True:
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as offer:
                if self._opens_socket:
                    self._hand_over()
                    return
                if self._parser.get_method() == b"CONNECT":
                    self._end_behind_last()  # the rest is meant for a tunnel
                    return
                data = self._decline() + data[offer.args[0] :]
            except HttpParserError:
                _log.warning("a request that is no HTTP was refused")
                self._refuse("Invalid HTTP request received.")
                return
        if (self._in_head or self._reading is not None) and not self.transport.is_closing():
            self._bound_lines(len(data))

    # What the parser tells

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, url = self._parser, parse_url(self._url)
        self._in_head = False
        self._begun_bytes = 0
        self.closes_at = inf
        path = url.path.decode("ascii")
        scope = self._scope.copy()  # half the price of one that is made of its parts
        scope["http_version"] = version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        scope["headers"] = self._headers
        # For the edge, which aborts, and for the reply, which wants to know when the client leaves.
        scope["state"] = {**self._app_state, "connection": self}
        if parser.should_upgrade() and scope["method"] != "CONNECT":
            self._opens_socket = self._is_handshake(scope)
            return
        cycle = Cycle(self, scope, keeps_alive=version != "1.0" and parser.should_keep_alive())
        self._reading = cycle
        self._cycles.append(cycle)
        if len(self._cycles) == 1:
            self._start()
        else:
            self._pause()

    def on_body(self, data: bytes) -> None:
        cycle = self._reading
        self._is_behind = True
        self._begun_bytes = 0
        if cycle is not None and not cycle.is_over and cycle.feed(data):
            self._pause()

    def on_message_complete(self) -> None:
        cycle, self._reading = self._reading, None
        self._is_behind = True
        self._begun_bytes = 0
        if cycle is None:
            return  # it offers another protocol
        cycle.end()
        # Only by reading is it found that the client left, and nobody asks for more of a body that is whole. A request
        # that has to wait for its turn stays paused.
        if len(self._cycles) <= 1:
            self.read_on()

    # What it does about them

    def _start(self) -> None:
        task = self.loop.create_task(self._cycles[0].run(self._app))
        task.add_done_callback(self._state.tasks.discard)
        self._state.tasks.add(task)

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)

    def _bound_lines(self, count: int) -> None:
        """Bounds a head that has not come whole: its size, and its time from when nothing else is under way.

        And the size of the lines within a body and behind it, of which the parser keeps those of a trailer. count: of
        the bytes just read. They count as a whole, or not at all where something else is among them, so a head may pass
        that is larger by less than two reads.
        """
        if self._in_head and not self._begun_bytes and not self._cycles:
            self._bound(self.head_timeout_s)
        self._begun_bytes += 1 if self._is_behind else count
        if self._begun_bytes > MAX_HEAD_BYTES:
            self._refuse(
                "Request head too large."
                if self._in_head
                else "Request trailer or chunk extension too large."
            )

    def _refuse(self, why: str) -> None:
        """Answers what is no request, and closes the connection. Requests before it are answered first."""
        if len(self._cycles) > 1 and self._reading is not None:
            self._cycles.pop()  # whose body is at fault: its turn has not come
            self._reading = None
        if self._cycles and self._reading is None:
            self._end_behind_last()
            return
        if self._cycles and self._cycles[0].has_begun:
            self.abort()  # within a reply there is no place for another one
            return
        headers = [
            *self.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(why)).encode()),
            (b"connection", b"close"),
        ]
        head = b"\r\n".join([STATUS_LINES[400], *map(b": ".join, headers)])
        self.transport.write(head + b"\r\n\r\n" + why.encode())
        self.close()

    def _linger(self) -> None:
        """Ends the connection of a client that is still sending its request's body.

        Were it closed, the next bytes would be refused, and the client might lose the reply by that (RFC 9112 9.6): a
        proxy that speaks HTTP/1.0, as nginx does unless it is told, would answer 502.
        """
        if not self.transport.is_closing():
            self._is_deaf = True
            self.read_on()
            self.transport.write_eof()
            self._bound(LINGER_S)

    def _end_behind_last(self) -> None:
        """Reads no more requests, and closes the connection when those that came are answered."""
        self._cycles[-1].keeps_alive = False
        self._is_deaf = True

    # Other protocols

    def _is_handshake(self, scope: dict[str, Any]) -> bool:
        """Says whether the head just read opens a WebSocket, on a connection on which nothing else is under way.

        A reply that its client has yet to read is: its protocol would not learn that the connection is full.
        """
        return (
            (scope["method"], scope["http_version"]) == ("GET", "1.1")
            and scope["raw_path"] in _SOCKET_PATHS
            and any(name == b"upgrade" and value.lower() == b"websocket" for name, value in self._headers)
            and not (self._cycles or self.is_full)
        )

    def _hand_over(self) -> None:
        """Gives the connection to the protocol of WebSockets, which reads the handshake itself."""
        head = self._head_of(self._headers)
        self._leave()
        self.stop_watching()
        make: Any = self._config.ws_protocol_class
        socket = make(config=self._config, server_state=self._state, app_state=self._app_state)
        socket.connection_made(self.transport)
        socket.data_received(head)
        self.transport.set_protocol(socket)

    def _decline(self) -> bytes:
        """Begins anew with a head that offers another protocol. Returns it as one that does not.

        Java's client offers HTTP/2 with every first request. A server may ignore that (RFC 9110 7.8), but llhttp takes
        all that follows such a head for the other protocol's (MagicStack/httptools#124).
        """
        head = self._head_of([pair for pair in self._headers if pair[0] != b"upgrade"])
        self._parser = self._make_parser()
        return head

    def _head_of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        parser = self._parser
        line = b"%b %b HTTP/%b" % (parser.get_method(), self._url, parser.get_http_version().encode())
        return b"\r\n".join([line, *map(b": ".join, headers), b"", b""])

    def _make_parser(self) -> Any:
        parser: Any = HttpRequestParser(self)
        # What comes behind a request that ends its connection is no error of that request.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _leave(self) -> None:
        self._parser = None  # which knows this connection
        self._state.connections.discard(self)
        if self._clock is not None:
            self._clock.cancel()

    # The time

    def _bound(self, seconds: float) -> None:
        """Sets when the connection is closed unless something comes."""
        at = self.closes_at = self.loop.time() + seconds
        if self._clock is None:
            self._clock = self.loop.call_at(at, self._look)
        elif at < self._clock.when():
            self._clock.cancel()
            self._clock = self.loop.call_at(at, self._look)

    def _look(self) -> None:
        self._clock = None
        if self.loop.time() >= self.closes_at:
            self.close()
        elif self.closes_at < inf:
            self._clock = self.loop.call_at(self.closes_at, self._look)
