"""uvicorn as the gateway needs it: it bounds a request's head, drains before it ends, and can cut a connection."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.errors import GatewayError, SettingsError
from gateway.limits import Limits
from gateway.settings import ServerSettings
from gateway.web.connection.httptools_shim import without_upgrade
from gateway.web.connection.reading import WatchesReading
from gateway.web.health import Readiness

# Longer than the 120 s after which clients and load balancers drop idle connections, so that they close them first.
KEEP_ALIVE_S = 135
_BODILESS = frozenset((204, 304))
_CONTROL = bytes((*range(9), *range(10, 32), 127))  # all but the tab
_AS_BLANKS = bytes.maketrans(_CONTROL, b" " * len(_CONTROL))  # RFC 9110 5.5
MAX_HEAD_BYTES = 64 * 1024  # chosen: OpenAI's and Cloudflare's own limits lie at 16 to 32 KiB


class _Cycle(RequestResponseCycle):
    """uvicorn's request and its reply; the reply's head leaves with the first bytes of its body, in one packet."""

    _head = b""
    _is_bodiless = False

    async def receive(self) -> ASGIReceiveEvent:
        if self.more_body or not self.body or self.response_complete or self.disconnected:
            return await super().receive()
        # The whole body is here, so there is nothing to wait for, and nobody to be asked for more.
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: ASGISendEvent) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._begin(message["status"], message["headers"])
        elif message["type"] == "http.response.body" and self.response_started and not self.response_complete:
            self._go_on(message["body"], message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']!r} has no place here")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Returns the head. Control characters, which an upstream may put into a header, become blanks."""
        says_close = False
        parts = [STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                self.chunked_encoding, self.expected_content_length = False, int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive, says_close = False, True
            parts += (name, b": ", value, b"\r\n")
        head = b"".join(parts)
        line_ends = 2 + 2 * (len(parts) // 4)
        if len(head) - len(head.translate(None, _CONTROL)) != line_ends:
            for first in (1, 3):  # the names, then the values
                parts[first::4] = [part.translate(_AS_BLANKS) for part in parts[first::4]]
            head = b"".join(parts)
        if not self.keep_alive and not says_close:
            head += b"connection: close\r\n"
        self._is_bodiless = self.scope["method"] == "HEAD" or status in _BODILESS
        if self._is_bodiless:
            self.expected_content_length = 0
        elif self.chunked_encoding is None and self.scope["http_version"] != "1.0":
            # (HTTP/1.0 does not know of chunks: there the body ends with the connection.)
            self.chunked_encoding = True
            head += b"transfer-encoding: chunked\r\n"
        return head + b"\r\n"

    def _go_on(self, body: bytes, more_body: bool) -> None:
        head, self._head = self._head, b""
        if self._is_bodiless:
            data = head
        elif self.chunked_encoding:
            data = b"%b%x\r\n%b\r\n" % (head, len(body), body) if body else head
            if not more_body:
                data += b"0\r\n\r\n"
        else:
            if self.chunked_encoding is not None:  # it has a length
                self.expected_content_length -= len(body)
                if self.expected_content_length < 0:
                    raise RuntimeError("a body longer than its content-length")
            data = head + body if head else body
        if data:
            self.transport.write(data)
        if not more_body:
            if self.expected_content_length:
                raise RuntimeError("a body shorter than its content-length")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class _ServerConnection(WatchesReading, HttpToolsProtocol):
    """uvicorn's protocol with the bounds that it lacks: a head's time and size, and how long a client may not read.

    The server speaks HTTP/1.1 and nothing else, and reads no trailers (gateway/web/connection/httptools_shim.py).
    """

    head_timeout_s = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._in_body = False
        self._head = bytearray()  # of the pieces of one that has not come whole
        self._head_timer: asyncio.TimerHandle | None = None
        # The reply under way (gateway.web.sse) puts itself here, to be told that its client has closed the connection.
        self.on_lost: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_timed_out)

    @property
    def is_lost(self) -> bool:
        return self.transport.is_closing()

    @property
    def is_full(self) -> bool:
        """Says whether a write would wait for the client to read."""
        return self.flow.write_paused

    @property
    def has_whole_body(self) -> bool:
        """Says whether the body of the newest request has arrived, and so those of all before it."""
        return not self.cycle.more_body

    def abort(self) -> None:
        """Drops the connection of a client that left or does not read; closing it in order would wait for it."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            data = without_upgrade(data, self._head)
        super().data_received(data)
        if self._in_body:
            self.headers.clear()  # else trailers without end would fill the memory
        if not self._in_head:
            if self._head_timer is not None:
                self._stop_timer()
            return
        # Only whole reads are counted, so a head may pass that is larger by less than one of them.
        self._head += data
        if len(self._head) > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request head too large.")
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_timed_out)

    def _should_upgrade(self) -> bool:
        """Says whether another protocol takes the connection over, on which nothing else may be under way.

        A reply that its client has yet to read is: its protocol would not learn that the connection is full.
        """
        is_free = (self.cycle is None or self.cycle.response_complete) and not self.is_full
        return is_free and self.scope["method"] == "GET" and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Is called where httptools has taken a request's body for another protocol's, and lost it."""
        self.cycle.keep_alive = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        # For the edge, which aborts, and for the reply, which wants to know when the client leaves.
        self.scope["state"]["connection"] = self

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._head.clear()
        super().on_headers_complete()
        if self.parser.should_upgrade() and self._should_upgrade():
            return  # it has made no cycle
        # The scope keeps the list it was given. Trailers go to this one, which nobody reads: what a proxy in front
        # lets through as a trailer may be somebody's name or key.
        self.headers = []
        # uvicorn makes its cycles itself. This one has only been given to a task that has not begun.
        self.cycle.__class__ = _Cycle

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()
        # uvicorn pauses reading at 64 KiB until somebody asks for more of the body. Nobody does so of a whole one, and
        # only by reading is it found that the client left. A request that has to wait for its turn stays paused.
        if not self.pipeline:
            self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.watch_reading()

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _DatedState(ServerState):
    """The date in the head of replies is made when a request finds it a second old, and not by a timer."""

    def __init__(self) -> None:
        self._second = 0
        self._dated: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        second = int(time.time())
        if second != self._second:
            self._second, self._dated = second, [(b"date", formatdate(second, usegmt=True).encode())]
        return self._dated

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Takes none: uvicorn begins with an empty list."""


class GatewayServer(uvicorn.Server):
    """The server says from the first signal on that it is draining, and exits with 0 when it has ended in order.

    uvicorn looks ten times a second for whether it is to end, which is most of what an idle process does. This server
    is told.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        readiness: Readiness,
        on_started: Callable[[], object] | None,
    ) -> None:
        super().__init__(config)
        self.server_state = _DatedState()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_exit = asyncio.Event()
        self._on_started = on_started
        self._readiness = readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The first signal lets running requests end; a second Ctrl-C cuts them.
        if self._readiness.draining and sig == signal.SIGINT:
            self.force_exit = True
        self.exit_now()

    def exit_now(self) -> None:
        self._readiness.draining = True
        self.should_exit = True
        if self._loop is not None:  # else it is still starting, and looks when it has
            self._loop.call_soon_threadsafe(self._told_to_exit.set)

    async def main_loop(self) -> None:
        if not self.should_exit:
            await self._told_to_exit.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves what runs to the end of the loop, where nothing of it would be written any more.
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


def find_address(host: str, port: int) -> tuple[int, Any]:
    """Returns the family and the address to listen on. Raises: SettingsError: the host is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"server.host: {host!r} is no address to listen on: {error}") from error
    family, _, _, _, address = found[0]
    return family, address


def bind(host: str, port: int) -> socket.socket:
    """Takes a listening address, before anything is started.

    Raises: SettingsError: the address is not this machine's; GatewayError: it is in use.
    """
    family, address = find_address(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _not_free(host, port, error) from error
    listener.setblocking(False)
    return listener


def listen(listener: socket.socket) -> None:
    """Lets clients come to an address that was taken; they wait until they are served.

    Raises: GatewayError: another process, which took it at the same moment, listens there.
    """
    try:
        # uvloop listens too, and passes over the error.
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _not_free(host, port, error) from error


def _not_free(host: str, port: int, error: OSError) -> GatewayError:
    setting = "server.host" if error.errno == errno.EADDRNOTAVAIL else "server.port"
    why = f"{setting}: cannot listen on {host} port {port}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:  # it may be free at the next start
        return GatewayError(f"{why}; `--port` takes another one")
    return SettingsError(why)


def _make_socket(send_timeout_s: float, **made: Any) -> Any:
    """Returns the protocol of a connection whose handshake has come."""
    from gateway.web.sockets.protocol import SocketConnection

    connection = SocketConnection(**made)
    connection.send_timeout_s = send_timeout_s
    return connection


def make_server(
    app: Any,
    settings: ServerSettings,
    readiness: Readiness,
    on_started: Callable[[], object] | None = None,
    limits: Limits | None = None,
) -> GatewayServer:
    """Returns the server of an application; give its `serve` the sockets of `bind`.

    on_started: called when it listens.
    """
    limits = limits or Limits()
    times = {"head_timeout_s": limits.header_timeout_s, "send_timeout_s": limits.send_timeout_s}
    # uvicorn makes its protocols itself and takes no arguments for them, so the settings travel in a class.
    connection = type("Connection", (_ServerConnection,), times)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=connection,
        # uvicorn calls it, and nothing else.
        ws=partial(_make_socket, limits.send_timeout_s),  # type: ignore[arg-type]
        ws_max_size=settings.max_body_bytes,
        # A client answers pings when it reads, which one that is idle or slow may not do: what it leaves unread tells
        # whether it is there, and a ping that never arrives.
        ws_ping_timeout=None,
        ws_per_message_deflate=False,  # events are small, and each would wait for it
        lifespan="on",
        access_log=False,
        log_config=None,
        interface="asgi3",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    return GatewayServer(config, readiness, on_started)
