"""A pool of PostgreSQL sessions that outlast a test. For each new session the server starts a process, which reads the
definitions of the tables first.

When asyncpg ends a connection, its session is reset and pooled. The next connection with the same first message takes
the session, and reads a copy of the server's first answers. A session inside a transaction, or one that the server does
not reset at once, is closed. The server's built-in types are introspected once.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import asyncpg
from asyncpg.protocol import Protocol

plain_connect = asyncpg.connect
_TERMINATE = b"X" + struct.pack("!i", 4)
_RESET_SQL = b"DISCARD ALL\0"
_RESET_QUERY = b"Q" + struct.pack("!i", 4 + len(_RESET_SQL)) + _RESET_SQL
_READY = b"Z" + struct.pack("!i", 5) + b"I"
_plain_introspect = asyncpg.Connection._introspect_types
# From here on a type has another OID in another server (PostgreSQL: FirstGenbkiObjectId).
_FIRST_CREATED = 10_000
# The longest wait for the reset of a session whose connection is aborted, in seconds.
_RESET_S = 0.1

# The path of the server's socket and a connection's first message -> idle sessions, each with the server's first
# answers.
_idle: dict[tuple[str, bytes], list[tuple[socket.socket, bytes]]] = {}
# OIDs of the server's built-in types -> the rows that describe them.
_types: dict[frozenset[int], list[Any]] = {}


async def connect(*args: Any, **options: Any) -> Any:
    """Connects as `asyncpg.connect` does, on an idle session if there is one."""
    loop = asyncio.get_running_loop()
    connection = await plain_connect(*args, loop=_Loop(loop), **options)
    connection._loop = loop
    return connection


async def introspect(connection: Any, oids: Any, timeout: float | None) -> tuple[list[Any], Any]:
    """Introspects types as `asyncpg.Connection._introspect_types` does, and caches the rows of built-in types.

    The server takes as long to plan that query as a short test takes.
    """
    key = frozenset(oids)
    if key in _types:
        # A statement with a name does not replace the server's unnamed statement, and neither does a cached answer.
        return _types[key], SimpleNamespace(name="none")
    rows, statement = await _plain_introspect(connection, oids, timeout)
    if max(key) < _FIRST_CREATED:
        _types[key] = rows
    return rows, statement


def close_idle() -> None:
    """Closes all idle sessions."""
    for sessions in _idle.values():
        while sessions:
            sessions.pop()[0].close()


def _take_idle(key: tuple[str, bytes]) -> tuple[socket.socket, bytes] | None:
    sessions = _idle.get(key, [])
    while sessions:
        connected, answers = sessions.pop()
        try:
            connected.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return connected, answers
        connected.close()  # the server has closed the session
    return None


class _Loop:
    """An event loop that connects asyncpg to an idle session if there is one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_unix_connection(self, make: Callable[[], Any], path: str) -> tuple[Any, Any]:
        protocol = make()
        if not isinstance(protocol, Protocol):  # a connection that cancels a statement
            return await self._loop.create_unix_connection(lambda: protocol, path)
        transport = _Transport(path, protocol, self._loop)
        protocol.connection_made(transport)
        session = _take_idle(transport.key)
        if session is None:
            await self._loop.create_unix_connection(lambda: _Starting(transport), path)
        else:
            await self._loop.create_unix_connection(lambda: _Starting(transport, session[1]), sock=session[0])
        return transport, protocol


class _Transport:
    """The transport of an asyncpg connection, which pools the session at the end."""

    def __init__(self, path: str, protocol: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self.protocol = protocol
        self._loop = loop
        # Whether asyncpg has sent the end of the session, which is held back from the server.
        self._is_ending = False
        self._first = b""
        # The server's first answers. Empty: they are incomplete.
        self.answers = b""
        # The event loop's transport. None: there is no connection yet.
        self.lower: Any = None

    @property
    def key(self) -> tuple[str, bytes]:
        return self._path, self._first

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lower, name)

    def get_extra_info(self, name: str) -> Any:
        return None if self.lower is None else self.lower.get_extra_info(name)

    def write(self, data: Any) -> None:
        if self.lower is None:
            self._first = bytes(data)
        elif len(data) == len(_TERMINATE) and bytes(data) == _TERMINATE and self._can_be_pooled():
            self.lower.set_protocol(_Ending(self))
            self._is_ending = True
            self._loop.call_soon(self._reset)
        else:
            self.lower.write(data)

    def abort(self) -> None:
        """Closes the connection. Pools the session if the server resets it at once."""
        if self._is_ending and not self.lower.is_closing():
            self._is_ending = False
            connected = self._duplicate_socket()
            connected.settimeout(_RESET_S)
            answers = b""
            with suppress(OSError):
                connected.sendall(_RESET_QUERY)
                while not answers.endswith(_READY) and (data := connected.recv(1 << 16)):
                    answers += data
            self.pool(connected, answers)
        self.lower.abort()

    def _can_be_pooled(self) -> bool:
        return bool(self.answers) and not self.protocol.is_in_transaction()

    def _reset(self) -> None:
        if self._is_ending and not self.lower.is_closing():
            self._is_ending = False
            self.lower.write(_RESET_QUERY)

    def _duplicate_socket(self) -> socket.socket:
        """Returns a duplicate of the socket, since the loop closes the first one."""
        copy: socket.socket = self.lower.get_extra_info("socket").dup()
        return copy

    def send_first(self) -> None:
        self.lower.write(self._first)

    def end(self, answers: bytes) -> None:
        """Closes the connection, and pools its session. answers: the server's answers to the reset."""
        self.pool(self._duplicate_socket(), answers)
        self.lower.abort()

    def pool(self, connected: socket.socket, answers: bytes) -> None:
        """Pools a session if the server has reset it. answers: the server's answers to the reset."""
        if answers.endswith(_READY) and _RESET_SQL in answers:
            connected.setblocking(False)
            _idle.setdefault(self.key, []).append((connected, self.answers))
        else:
            connected.close()


class _Starting(asyncio.Protocol):
    """The protocol until the server is ready.

    answers: the first answers of a pooled session. Empty: the session is new.
    """

    def __init__(self, transport: _Transport, answers: bytes = b"") -> None:
        self._transport = transport
        self._answers = answers

    def connection_made(self, lower: Any) -> None:
        self._transport.lower = lower
        if self._answers:
            self._answer(self._answers)
        else:
            self._transport.send_first()

    def data_received(self, data: bytes) -> None:
        self._answers += data
        self._answer(data)

    def _answer(self, data: bytes) -> None:
        protocol = self._transport.protocol
        protocol.data_received(data)
        if protocol.is_connected():
            self._transport.answers = self._answers
            self._transport.lower.set_protocol(protocol)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport.protocol.connection_lost(error)


class _Ending(asyncio.Protocol):
    """The protocol from the end of the asyncpg connection until its session is reset."""

    def __init__(self, transport: _Transport) -> None:
        self._transport = transport
        self._answers = b""
        self._is_lost = False

    def data_received(self, data: bytes) -> None:
        self._answers += data
        if self._answers.endswith(_READY):
            self._transport.end(self._answers)
            self._lose(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._transport.protocol.connection_lost(error)
