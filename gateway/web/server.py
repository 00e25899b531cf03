"""uvicorn as the gateway needs it: it bounds a request's head, drains before it ends, and can cut a connection."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from gateway.errors import SettingsError
from gateway.limits import Limits
from gateway.settings import ServerSettings
from gateway.web.health import Readiness
from gateway.web.httptools_shim import HttpToolsShim

# Longer than the 120 s after which clients and load balancers drop idle connections, so that they close them first.
KEEP_ALIVE_S = 135
MAX_HEAD_BYTES = 64 * 1024  # chosen: OpenAI's and Cloudflare's own limits lie at 16 to 32 KiB


class _Corked:
    """A transport that holds a response's head back until the first bytes of its body: one system call, one packet."""

    __slots__ = ("_held", "_transport", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] = []
        self.write: Callable[[bytes], object] = transport.write

    def hold(self) -> None:
        """Keeps what is written until `release`; it leaves with the first write after that."""
        self.write = self._held.append

    def release(self) -> None:
        self.write = self._write_held

    def _write_held(self, data: bytes) -> None:
        self.write = self._transport.write
        self._transport.write(b"".join((*self._held, data)))
        self._held.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _ServerConnection(HttpToolsShim):
    """uvicorn's protocol with the two bounds that it lacks: the time for a request's head, and its size."""

    head_timeout_s = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        # The reply under way (gateway.web.sse) puts itself here, to be told that its client has closed the connection.
        self.on_lost: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvicorn knows no other way to get between its protocol and its transport than to hand it another transport.
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_timed_out)

    @property
    def is_lost(self) -> bool:
        return self.transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            if self._head_timer is not None:
                self._stop_timer()
            return
        # Only whole reads are counted, so a head may pass that is larger by less than one of them.
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request head too large.")
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_timed_out)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        # For the edge, which corks and aborts, and for the reply, which wants to know when the client leaves.
        self.scope["state"]["transport"] = self.transport
        self.scope["state"]["connection"] = self

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # uvicorn pauses reading at 64 KiB until somebody asks for more of the body. Nobody does so of a whole one, and
        # only by reading is it found that the client left. A request that has to wait for its turn stays paused.
        if not self.pipeline:
            self.flow.resume_reading()

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class GatewayServer(uvicorn.Server):
    """The server says from the first signal on that it is draining, and exits with 0 when it has ended in order."""

    def __init__(
        self,
        config: uvicorn.Config,
        readiness: Readiness,
        on_started: Callable[[], object] | None,
    ) -> None:
        super().__init__(config)
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()


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

    Raises: SettingsError: the address is in use, or is not this machine's.
    """
    family, address = find_address(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(f"server.port: cannot listen on {host} port {port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


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
    head_timeout_s = (limits or Limits()).header_timeout_s
    # uvicorn makes its protocols itself and takes no arguments for them, so the setting travels in a class.
    connection = type("Connection", (_ServerConnection,), {"head_timeout_s": head_timeout_s})
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=connection,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    return GatewayServer(config, readiness, on_started)
