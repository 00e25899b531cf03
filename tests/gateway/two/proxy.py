"""A proxy between a gateway and PostgreSQL that fails as networks and servers do.

with Proxy(url) as proxy:
    ... serve over proxy.url ...
    proxy.refuse()  # until `allow`
    cut = proxy.cut_at("INSERT INTO exchanges", after_reply=True)  # the client gets no reply to a row that is stored
    ...
    cut.wait_sync()
"""

from __future__ import annotations

import asyncio
import re
import struct
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.doubles.closing import close_server
from tests.doubles.upstream import Gate
from tests.patience import PATIENCE_S

T = TypeVar("T")

# Codes of the first message of a connection that is not a startup message.
_SSL_REQUEST, _CANCEL_REQUEST = 80877103, 80877102


@dataclass
class Cut:
    """A planned loss of the connection that next runs a statement."""

    # A pattern in the statement.
    pattern: re.Pattern[str]
    # Whether the connection is lost when the server has replied, and not before it gets the statement.
    after_reply: bool
    # A pattern in a statement of the same transaction, up to this one.
    within: re.Pattern[str]
    # Opened when the connection is lost.
    gate: Gate = field(default_factory=Gate)


class Proxy:
    """A proxy on a port of its own, whose event loop runs in a thread of its own."""

    def __init__(self, url: str) -> None:
        """Makes a proxy that does not listen yet. url: the URL of the server's database."""
        self._target = urlsplit(url)
        # The number of connections that clients have opened so far.
        self.connection_count = 0
        self._connections: set[_Connection] = set()
        self._cut: Cut | None = None
        self._refuses = False
        # Cleared while `stall` holds all data back.
        self._flows = asyncio.Event()
        self._delay_s = 0.0
        # (pattern, text of the same length) by which the server's data are changed on their way to a client.
        self.replacement: tuple[bytes, bytes] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    @property
    def url(self) -> str:
        """The URL of the database by way of the proxy."""
        user = self._target.username or "postgres"
        return f"postgresql://{user}@127.0.0.1:{self.port}{self._target.path}"

    # -- the faults

    def refuse(self) -> None:
        """Closes all connections, and each new one as soon as it is opened, until `allow`."""

        async def refuse() -> None:
            self._refuses = True
            self._abort()

        self._call(refuse())

    def allow(self) -> None:
        self._refuses = False

    def cut(self) -> None:
        """Closes all connections. New ones are accepted."""

        async def cut() -> None:
            self._abort()

        self._call(cut())

    def stall(self) -> None:
        """Holds all data back in both directions until `flow`."""

        async def stall() -> None:
            self._flows.clear()

        self._call(stall())

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def slow_down(self, seconds: float) -> None:
        """Delays all data to the server by so many seconds. 0: no delay."""
        self._delay_s = seconds

    def cut_at(self, pattern: str, *, after_reply: bool, within: str = "") -> Gate:
        """Closes the connection that next runs a statement. Returns a gate that opens when it is closed.

        pattern: a regular expression that is found in the statement.
        after_reply: whether it is closed when the server has run the statement and replies. Otherwise the server does
            not get the statement.
        within: a regular expression that is found in this or an earlier statement of the transaction.
        """
        self._cut = Cut(re.compile(pattern), after_reply, re.compile(within))
        return self._cut.gate

    # -- in the event loop

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _start(self) -> None:
        self._flows.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._refuses = True
        self._abort()
        await close_server(self._server)
        # They end by themselves, and some start another task. Python 3.11 logs an error if a connection is cancelled.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*tasks, return_exceptions=True)

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        try:
            server = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, client=(reader, writer), server=server)
        if self._refuses:
            connection.abort()
            return
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self._target.hostname or parse_qs(self._target.query).get("host", [""])[0]
        host, port = unquote(host), self._target.port or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def wait_for_network(self) -> None:
        """Waits while data are held back, and for the delay."""
        await self._flows.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    def take_cut(self, sql: str, transaction: Sequence[str]) -> Cut | None:
        """Returns the planned cut if it is for this statement, and forgets it.

        transaction: the statements of the transaction up to this one.
        """
        cut = self._cut
        if cut is None or not cut.pattern.search(sql) or not any(map(cut.within.search, transaction)):
            return None
        self._cut = None
        return cut


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """A client's connection, with its connection to the server.

    It reads the client's messages one by one (PostgreSQL's protocol 3: a letter, the length, the body).
    """

    def __init__(self, proxy: Proxy, *, client: _Stream, server: _Stream) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client
        self._server_reader, self._server_writer = server
        # name of a prepared statement -> its text
        self._prepared: dict[bytes, str] = {}
        # The statements of the transaction so far.
        self._transaction: list[str] = []
        # A cut after the reply to the statement that the server has got. The client gets no data any more.
        self._awaited_cut: Cut | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def abort(self) -> None:
        self._client_writer.transport.abort()
        self._server_writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def run(self) -> None:
        self._tasks = [
            asyncio.create_task(self._forward_requests()),
            asyncio.create_task(self._forward_replies()),
        ]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward_requests(self) -> None:
        while True:
            # The first message has no letter.
            head = await self._client_reader.readexactly(8)
            length, code = struct.unpack("!II", head)
            await self._forward(head + await self._client_reader.readexactly(length - 8))
            if code not in (_SSL_REQUEST, _CANCEL_REQUEST):
                break
        while True:
            letter = await self._client_reader.readexactly(1)
            length = await self._client_reader.readexactly(4)
            body = await self._client_reader.readexactly(struct.unpack("!I", length)[0] - 4)
            sql = self._find_statement(letter, body)
            cut = None if sql is None else self._proxy.take_cut(sql, self._add_statement(sql))
            if cut is not None and not cut.after_reply:
                self.abort()
                cut.gate.open()
                return
            if cut is not None:
                self._awaited_cut = cut
            await self._forward(letter + length + body)

    def _add_statement(self, sql: str) -> Sequence[str]:
        """Adds a statement to its transaction. Returns the statements of the transaction up to this one."""
        if sql.startswith("BEGIN"):
            self._transaction.clear()
        self._transaction.append(sql)
        return self._transaction

    async def _forward(self, data: bytes) -> None:
        await self._proxy.wait_for_network()
        self._server_writer.write(data)
        await self._server_writer.drain()

    def _find_statement(self, letter: bytes, body: bytes) -> str | None:
        """Returns the text of the statement that a message runs, or None if it runs none."""
        if letter == b"Q":
            return body[:-1].decode()
        if letter == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode()
        if letter == b"B":
            _, name, _ = body.split(b"\0", 2)
            return self._prepared.get(name)
        return None

    async def _forward_replies(self) -> None:
        while data := await self._server_reader.read(65536):
            await self._proxy._flows.wait()
            if self._awaited_cut is not None:
                # ReadyForQuery outside of a transaction: a single statement, or a COMMIT, is on disk.
                if b"Z\0\0\0\x05" in data:
                    cut = self._awaited_cut
                    self.abort()
                    cut.gate.open()
                    return
                continue
            if self._proxy.replacement is not None:
                data = re.sub(*self._proxy.replacement, data)
            self._client_writer.write(data)
            await self._client_writer.drain()
