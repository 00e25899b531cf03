"""uvicorn's server as the gateway needs it: after a signal, the server drains and then ends."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from gateway.limits import Limits
from gateway.settings import ServerSettings
from gateway.web.health import Readiness
from gateway.web.uvicorn_protocol import HttpConnection

# Seconds that an idle connection stays open. Clients and load balancers drop theirs after 120 s at most, and they have
# to close first: a request on a connection that the server just closes would be lost.
_KEEP_ALIVE_S = 135


class _DatedState(ServerState):
    """Formats the `date` header when a request finds the header a second old; uvicorn formats it by a timer."""

    def __init__(self) -> None:
        self._second = 0
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        second = int(time.time())
        if second != self._second:
            self._second, self._headers = second, [(b"date", formatdate(second, usegmt=True).encode())]
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Ignores the empty list that uvicorn begins with."""


class GatewayServer(uvicorn.Server):
    """Drains from the first signal on, and exits with 0 when all requests have ended.

    uvicorn checks ten times a second whether it should end, and an idle process does little else. This server is
    notified instead.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        readiness: Readiness,
        on_started: Callable[[], object] | None,
        on_stopping: Callable[[str | None], object] | None,
    ) -> None:
        super().__init__(config)
        self.server_state = _DatedState()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit_requested = asyncio.Event()
        self._on_started = on_started
        self._on_stopping = on_stopping
        self._signal_name: str | None = None
        self._readiness = readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The first signal lets running requests end; a second signal cuts them. SIGHUP does not count as a second
        # signal, since a terminal that closes sends it, too.
        if self._readiness.is_draining and sig in (signal.SIGINT, signal.SIGTERM):
            self.force_exit = True
        self._signal_name = self._signal_name or signal.Signals(sig).name
        self.request_exit()

    def request_exit(self) -> None:
        """Begins to drain, and to end. Threads and signal handlers may call this method."""
        self._readiness.is_draining = True
        self.should_exit = True
        if self._loop is not None:  # None: the server is starting, and checks `should_exit` afterwards
            self._loop.call_soon_threadsafe(self._exit_requested.set)

    async def main_loop(self) -> None:
        if not self.should_exit:
            await self._exit_requested.wait()
        if self._on_stopping is not None:
            self._on_stopping(self._signal_name)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves running tasks to the end of the loop, when the tasks could not write anything any more.
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


def make_server(
    app: Any,
    settings: ServerSettings,
    readiness: Readiness,
    on_started: Callable[[], object] | None = None,
    limits: Limits | None = None,
    on_stopping: Callable[[str | None], object] | None = None,
) -> GatewayServer:
    """Returns the server of an application. The caller calls the server's `serve` with the sockets of `bind`.

    on_started: a function that is called when the server listens.
    on_stopping: a function that is called before the server drains, with the name of the signal; None: no signal
        came.
    """
    limits = limits or Limits()
    bounds = {
        "head_timeout_s": limits.header_timeout_s,
        "send_timeout_s": limits.send_timeout_s,
        "last_request_s": min(limits.last_request_s, settings.shutdown_s),
        "descriptor_limit": _choose_descriptor_limit(),
    }
    # uvicorn makes its protocols itself and takes no arguments for them, so the settings are attributes of a class.
    connection_class = type("HttpConnection", (HttpConnection,), bounds)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=connection_class,
        # uvicorn only calls `ws`, though its type says a class.
        ws=partial(_make_websocket, limits.send_timeout_s),  # type: ignore[arg-type]
        ws_max_size=settings.max_body_bytes,
        # The answer to a ping has no deadline: an idle or slow client may not read the ping. The server finds out that
        # a client is gone by the bytes that the client leaves unread, those of the ping included.
        ws_ping_timeout=None,
        ws_per_message_deflate=False,  # events are small, and each event would wait for the compression
        lifespan="on",
        access_log=False,
        log_config=None,
        interface="asgi3",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    return GatewayServer(config, readiness, on_started, on_stopping)


def _make_websocket(send_timeout_s: float, **arguments: Any) -> Any:
    """Returns the protocol of a WebSocket after its handshake. arguments: uvicorn's for such a protocol."""
    from gateway.web.sockets.protocol import SocketConnection

    connection = SocketConnection(**arguments)
    connection.send_timeout_s = send_timeout_s
    return connection


def _choose_descriptor_limit() -> int | None:
    """Returns the descriptor from which on connections are refused; None: descriptors are not limited.

    Above the process's own limit libuv closes new connections without a message. Some are left for upstreams, the
    database and the refusals themselves: an eighth of all, or of fewer than 128 a quarter, at most 16.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit - max(limit // 8, min(limit // 4, 16))
