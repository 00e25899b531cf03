"""aiohttp's pool of connections, with a bound on the bytes that arrive outside of a body.

aiohttp takes all bytes that arrive before the head of a response (interim responses above all) or on an idle
connection, and pauses reading only within a body.
"""

from __future__ import annotations

import asyncio
import socket
from contextvars import ContextVar
from typing import Any, Final

import aiohttp

from adapters.address_cache import AddressCache

# The most bytes that may arrive before aiohttp returns a response: interim responses, the head, and as much of the body
# as aiohttp reads ahead, which is 384 KiB at most.
BEFORE_BODY_BYTES: Final = 1024 * 1024
# Keepalive probes as Anthropic's SDK sends them. A model may think for minutes without a byte; a balancer or NAT would
# forget the connection (AWS after 350 s), and the reply would never arrive. Seconds, and a number of probes.
_PROBES: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 5}


class ConnectionAttempt:
    """The connection of one attempt to send a request, which aiohttp does not report before the response.

    `begin_attempt` puts it into the request's context, where aiohttp calls two functions that fill it in:
    `_make_socket`, if a connection is opened, and `BoundedConnector.connect`, with the connection that the request
    gets.
    """

    def __init__(self) -> None:
        # True if a connection was opened for the request; False if the request got an idle connection.
        self.is_new = False
        # The protocol of the connection; None: the request has no connection yet.
        self.protocol: BoundedProtocol | None = None


_current_attempt: ContextVar[ConnectionAttempt] = ContextVar("attempt")


def begin_attempt() -> ConnectionAttempt:
    """Returns a new attempt, which the connection of the next request in this context fills in."""
    attempt = ConnectionAttempt()
    _current_attempt.set(attempt)
    return attempt


class TooManyBytes(aiohttp.ClientError):
    """More bytes arrived before a response than may."""


class BoundedProtocol(asyncio.Protocol):
    """The protocol of a connection outside of a body: aiohttp's, with a bound on the bytes that arrive.

    A connection on which more bytes arrive is aborted. Within a body the connection has aiohttp's protocol itself.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        # The number of bytes that may still arrive.
        self._bytes_left = BEFORE_BODY_BYTES
        self._protocol: Any = transport.get_protocol()

    def data_received(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left >= 0:
            self._protocol.data_received(data)
        elif not self.transport.is_closing():
            self._protocol.set_exception(TooManyBytes())
            self.transport.abort()

    def eof_received(self) -> bool | None:
        stays_open: bool | None = self._protocol.eof_received()
        return stays_open

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def begin_body(self) -> None:
        """Lifts the bound: aiohttp pauses reading within a body."""
        self.transport.set_protocol(self._protocol)

    def end_body(self) -> None:
        """Sets the bound for the bytes that arrive before the next body."""
        self._bytes_left = BEFORE_BODY_BYTES
        self.transport.set_protocol(self)


class BoundedConnector(aiohttp.TCPConnector):
    """aiohttp's pool. It notes a request's connection in its attempt, and closes idle connections that got bytes.

    If no connection can be made, the host's addresses are looked up again for the next one: a container that is made
    again has another address.
    """

    def __init__(self, keep_alive_s: float) -> None:
        """Opens no connection. keep_alive_s: the seconds that a connection may be idle."""
        self._addresses = AddressCache()
        super().__init__(
            limit=0,
            keepalive_timeout=keep_alive_s,
            resolver=self._addresses,
            use_dns_cache=False,
            socket_factory=_make_socket,
        )

    async def connect(self, *args: Any, **options: Any) -> Any:
        attempt = _current_attempt.get()
        try:
            connection: Any = await super().connect(*args, **options)
            while not attempt.is_new and connection.protocol.should_close:
                connection.close()
                connection = await super().connect(*args, **options)
        except BaseException:  # aiohttp cancels an attempt that takes too long
            self._addresses.clear()
            raise
        protocol = connection.transport.get_protocol()
        if not isinstance(protocol, BoundedProtocol):
            protocol = BoundedProtocol(connection.transport)
            connection.transport.set_protocol(protocol)
        connection.add_callback(protocol.end_body)
        attempt.protocol = protocol
        return connection


def _make_socket(socket_address: tuple[Any, ...]) -> socket.socket:
    """Makes the socket of a new connection."""
    _current_attempt.get().is_new = True
    sock = socket.socket(*socket_address[:3])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # a system may have probes, but not this option
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock
