"""A proxy between a gateway and PostgreSQL that fails as networks and servers do.

with Proxy(url) as proxy:
    ... serve over proxy.url ...
    proxy.refuse()           # until `allow`
    gate = proxy.cut_at("INSERT INTO exchanges", is_answer=True)   # it was done, and nobody hears of it
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

_SSL, _CANCEL = 80877103, 80877102


@dataclass
class Cut:
    """A connection to be lost at the next statement of a pattern. is_answer: when it was done, instead of before it.

    within: of a transaction that has had such a statement before.
    done: opened when it is lost.
    """

    pattern: re.Pattern[str]
    is_answer: bool
    within: re.Pattern[str]
    done: Gate = field(default_factory=Gate)


class Proxy:
    """A proxy on a port of its own, with a loop in a thread of its own. url: of the server, as a client gives it."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.opened = 0
        self._open: set[_Link] = set()
        self._cut: Cut | None = None
        self._refuses = False
        self._flows = asyncio.Event()
        self._delay_s = 0.0
        # What the server says of itself at first, and what a client hears instead, of the same length.
        self.lie: tuple[bytes, bytes] | None = None
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
        """The database's URL past the proxy."""
        user = self._target.username or "postgres"
        return f"postgresql://{user}@127.0.0.1:{self.port}{self._target.path}"

    # -- what may go wrong

    def refuse(self) -> None:
        """Loses all connections, and every new one at once, until `allow`."""

        async def refuse() -> None:
            self._refuses = True
            self._abort()

        self._call(refuse())

    def allow(self) -> None:
        self._refuses = False

    def cut(self) -> None:
        """Loses all connections now. New ones are taken."""

        async def cut() -> None:
            self._abort()

        self._call(cut())

    def stall(self) -> None:
        """Holds back all that is sent from now on, both ways, until `flow`."""

        async def stall() -> None:
            self._flows.clear()

        self._call(stall())

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def slow_down(self, seconds: float) -> None:
        """Has everything that is sent to the server wait for so long; 0: not any more."""
        self._delay_s = seconds

    def cut_at(self, pattern: str, *, is_answer: bool, within: str = "") -> Gate:
        """Loses the connection that runs the next statement with this in its text.

        within: the transaction has had a statement with this, or begins with one.
        is_answer: after the server has done it, when its answer comes; else before the server gets it.
        Returns: opened when it was lost.
        """
        self._cut = Cut(re.compile(pattern), is_answer, re.compile(within))
        return self._cut.done

    # -- the loop's side

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
        # They end by themselves, and some begin another. Python 3.11 complains of a connection that is cancelled.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*tasks, return_exceptions=True)

    def _abort(self) -> None:
        for link in list(self._open):
            link.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            there = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), there)
        if self._refuses:
            link.abort()
            return
        self._open.add(link)
        try:
            await link.run()
        finally:
            self._open.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self._target.hostname or parse_qs(self._target.query).get("host", [""])[0]
        host, port = unquote(host), self._target.port or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def held(self) -> None:
        """Waits as long as the network does."""
        await self._flows.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    def cut_for(self, sql: str, before: Sequence[str]) -> Cut | None:
        """Returns what is to be done to the connection that runs this statement; once.

        before: the statements of its transaction up to this one.
        """
        cut = self._cut
        if cut is None or not cut.pattern.search(sql) or not any(map(cut.within.search, before)):
            return None
        self._cut = None
        return cut


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection, whose messages are read one by one (PostgreSQL's protocol 3: a letter, a length, the rest)."""

    def __init__(self, proxy: Proxy, here: _Stream, there: _Stream) -> None:
        self._proxy = proxy
        self._reader, self._writer = here
        self._back, self._forth = there
        self._texts: dict[bytes, str] = {}
        self._transaction: list[str] = []
        self._swallowing: Cut | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def abort(self) -> None:
        self._writer.transport.abort()
        self._forth.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def run(self) -> None:
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._answer())]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self) -> None:
        """From the client to the server."""
        while True:
            # A first message has no letter.
            head = await self._reader.readexactly(8)
            length, code = struct.unpack("!II", head)
            await self._pass_on(head + await self._reader.readexactly(length - 8))
            if code not in (_SSL, _CANCEL):
                break
        while True:
            letter = await self._reader.readexactly(1)
            length = await self._reader.readexactly(4)
            body = await self._reader.readexactly(struct.unpack("!I", length)[0] - 4)
            sql = self._statement(letter, body)
            cut = None if sql is None else self._proxy.cut_for(sql, self._note(sql))
            if cut is not None and not cut.is_answer:
                self.abort()
                cut.done.open()
                return
            if cut is not None:
                self._swallowing = cut
            await self._pass_on(letter + length + body)

    def _note(self, sql: str) -> Sequence[str]:
        """Notes a statement. Returns those of its transaction up to this one."""
        if sql.startswith("BEGIN"):
            self._transaction.clear()
        self._transaction.append(sql)
        return self._transaction

    async def _pass_on(self, data: bytes) -> None:
        await self._proxy.held()
        self._forth.write(data)
        await self._forth.drain()

    def _statement(self, letter: bytes, body: bytes) -> str | None:
        """Returns the text of the statement that a message runs; None where it runs none."""
        if letter == b"Q":
            return body[:-1].decode()
        if letter == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._texts[name] = text.decode()
        if letter == b"B":
            _, name, _ = body.split(b"\0", 2)
            return self._texts.get(name)
        return None

    async def _answer(self) -> None:
        """From the server to the client."""
        while data := await self._back.read(65536):
            await self._proxy._flows.wait()
            if self._swallowing is not None:
                # ReadyForQuery: a transaction of one statement, or COMMIT, is on disk by now.
                if b"Z\0\0\0\x05" in data:
                    cut = self._swallowing
                    self.abort()
                    cut.done.open()
                    return
                continue
            if self._proxy.lie is not None:
                data = re.sub(*self._proxy.lie, data)
            self._writer.write(data)
            await self._writer.drain()
