"""Sessions of PostgreSQL that outlast a test. For a new one the server starts a process, which reads the tables'
definitions first.

When asyncpg ends a connection, its session is emptied and kept, for the next connection that would send the same first
message; this one is given the server's first answers once more. Within a transaction, and where the server does not
answer at once, the session ends as ever. What asyncpg asks of the server's own types is asked once.
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
_COMMAND = b"DISCARD ALL\0"
_EMPTY = b"Q" + struct.pack("!i", 4 + len(_COMMAND)) + _COMMAND
_READY = b"Z" + struct.pack("!i", 5) + b"I"
_plain_introspect = asyncpg.Connection._introspect_types
# From here on a type has another OID in another server (PostgreSQL: FirstGenbkiObjectId).
_FIRST_CREATED = 10_000
# The seconds that a session has to be emptied when its connection is dropped.
_AT_ONCE_S = 0.1

# The server's socket and a connection's first message -> sessions, each with the server's first answers.
_kept: dict[tuple[str, bytes], list[tuple[socket.socket, bytes]]] = {}
# OIDs of the server's own types -> the rows that describe them.
_types: dict[frozenset[int], list[Any]] = {}


async def connect(*args: Any, **options: Any) -> Any:
    """`asyncpg.connect`, with a session that is kept where there is one."""
    loop = asyncio.get_running_loop()
    connection = await plain_connect(*args, loop=_Loop(loop), **options)
    connection._loop = loop
    return connection


async def introspect(connection: Any, oids: Any, timeout: float | None) -> tuple[list[Any], Any]:
    """`asyncpg.Connection._introspect_types`, which each connection would ask for the same arrays.

    The server takes as long to plan that query as a short test takes.
    """
    key = frozenset(oids)
    if key in _types:
        # A statement with a name leaves the one without a name as it is, and so does none.
        return _types[key], SimpleNamespace(name="none")
    rows, statement = await _plain_introspect(connection, oids, timeout)
    if max(key) < _FIRST_CREATED:
        _types[key] = rows
    return rows, statement


def end_kept() -> None:
    for sessions in _kept.values():
        while sessions:
            sessions.pop()[0].close()


def _take(key: tuple[str, bytes]) -> tuple[socket.socket, bytes] | None:
    sessions = _kept.get(key, [])
    while sessions:
        connected, answers = sessions.pop()
        try:
            connected.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return connected, answers
        connected.close()  # the server has ended it
    return None


class _Loop:
    """The loop as asyncpg opens a connection with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_unix_connection(self, make: Callable[[], Any], path: str) -> tuple[Any, Any]:
        protocol = make()
        if not isinstance(protocol, Protocol):  # one that cancels a statement
            return await self._loop.create_unix_connection(lambda: protocol, path)
        transport = _Transport(path, protocol, self._loop)
        protocol.connection_made(transport)
        kept = _take(transport.key)
        if kept is None:
            await self._loop.create_unix_connection(lambda: _Starting(transport), path)
        else:
            await self._loop.create_unix_connection(lambda: _Starting(transport, kept[1]), sock=kept[0])
        return transport, protocol


class _Transport:
    """What an asyncpg connection writes to."""

    def __init__(self, path: str, protocol: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self.protocol = protocol
        self._loop = loop
        # asyncpg has said that the session ends; the server was not told yet.
        self._is_ending = False
        self._first = b""
        # The server's first answers, once they are complete.
        self.answers = b""
        # The transport of the loop.
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
        elif len(data) == len(_TERMINATE) and bytes(data) == _TERMINATE and self._can_be_kept():
            self.lower.set_protocol(_Ending(self))
            self._is_ending = True
            self._loop.call_soon(self._empty)
        else:
            self.lower.write(data)

    def abort(self) -> None:
        """Keeps a session that answers at once."""
        if self._is_ending and not self.lower.is_closing():
            self._is_ending = False
            connected = self._socket()
            connected.settimeout(_AT_ONCE_S)
            answers = b""
            with suppress(OSError):
                connected.sendall(_EMPTY)
                while not answers.endswith(_READY) and (data := connected.recv(1 << 16)):
                    answers += data
            self.keep(connected, answers)
        self.lower.abort()

    def _can_be_kept(self) -> bool:
        return bool(self.answers) and not self.protocol.is_in_transaction()

    def _empty(self) -> None:
        if self._is_ending and not self.lower.is_closing():
            self._is_ending = False
            self.lower.write(_EMPTY)

    def _socket(self) -> socket.socket:
        """The socket once more: the loop closes its own."""
        copy: socket.socket = self.lower.get_extra_info("socket").dup()
        return copy

    def send_first(self) -> None:
        self.lower.write(self._first)

    def end(self, answers: bytes) -> None:
        """Ends the connection. answers: what the server answered last."""
        self.keep(self._socket(), answers)
        self.lower.abort()

    def keep(self, connected: socket.socket, answers: bytes) -> None:
        """Keeps a session if the server has emptied it. answers: what it answered."""
        if answers.endswith(_READY) and _COMMAND in answers:
            connected.setblocking(False)
            _kept.setdefault(self.key, []).append((connected, self.answers))
        else:
            connected.close()


class _Starting(asyncio.Protocol):
    """Until the server is ready. answers: of a session that was kept."""

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
    """From when asyncpg closes the connection until the session is empty."""

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
