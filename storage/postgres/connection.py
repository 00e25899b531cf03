"""Connections to a PostgreSQL server: how they are opened, and how an operation uses one.

This room knows asyncpg and SQLSTATE; it knows no tables. asyncpg comes with the extra `postgres`, and
storage/open.py imports this room only where a URL asks for it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import asyncpg
from msgspec import Struct

from storage.database import Row, Statement
from storage.errors import ServerRefused, StatementFailed, StoreError, StoreFailed
from storage.masked_url import mask_password
from storage.postgres.sqlstates import ASYNCPG_ERRORS, translate_error
from storage.postgres.url import BAD_URL, split_by_host
from storage.text import replace_unstorable

# The oldest major version that is admitted.
_OLDEST_SERVER = 14
# SQL_ASCII stores bytes as they are, and these are UTF-8.
_ENCODINGS = ("UTF8", "SQL_ASCII")

# The statements lock rows in the order of their ids, so that two transactions do not wait for each other.

# Locks some agents, and all agents that share a block with one of them: a block that either owns or has attached.
_LOCK_SHARERS = """\
WITH seen_blocks AS (
    SELECT id FROM blocks WHERE agent = ANY($1)
    UNION SELECT target FROM attached WHERE agent = ANY($1) AND kind = 'block')
SELECT id FROM agents WHERE id IN (
    SELECT unnest($1::bigint[])
    UNION SELECT agent FROM attached WHERE kind = 'block' AND target IN (SELECT id FROM seen_blocks)
    UNION SELECT agent FROM blocks WHERE id IN (SELECT id FROM seen_blocks))
ORDER BY id FOR NO KEY UPDATE"""
# Locks the agents that see a block.
_LOCK_SEERS = """\
SELECT id FROM agents WHERE id IN (
    SELECT agent FROM blocks WHERE id = $1 UNION SELECT agent FROM attached WHERE kind = 'block' AND target = $1)
ORDER BY id FOR NO KEY UPDATE"""
# Locks the blocks that an agent's profile shares among its users.
PROFILE_BLOCKS = """\
SELECT b.id FROM agents a
JOIN blocks b ON b.agent IS NULL AND b.profile <> '' AND b.project = a.project AND b.profile = a.profile
WHERE a.id = $1 ORDER BY b.id FOR NO KEY UPDATE OF b"""

# The server's time, in seconds.
NOW = "extract(epoch FROM clock_timestamp())::float8"

# asyncpg's own default is 100; the store has some 300, and preparing one is a round trip.
CACHED_STATEMENTS = 1024


class RawConnection(Protocol):
    """The methods of asyncpg's connection that the store uses. timeout: the seconds that a call may take."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: object) -> Row | None: ...
    async def fetchval(self, query: str, *args: object) -> Any: ...
    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str: ...
    async def add_listener(self, channel: str, callback: Callable[[Any, int, str, str], None]) -> None: ...
    def add_log_listener(self, callback: Callable[[Any, Any], None]) -> None: ...
    async def close(self, *, timeout: float | None = None) -> None: ...
    def add_termination_listener(self, callback: Callable[[Any], None]) -> None: ...
    def transaction(self) -> AbstractAsyncContextManager[None]: ...
    def get_server_version(self) -> Any: ...
    def get_settings(self) -> Any: ...
    def is_closed(self) -> bool: ...
    def terminate(self) -> None: ...


# A part of the names of statements: a pooler may hand a session to another process without notice, and under a name
# that both processes give, each would run the other's statement.
_PROCESS = secrets.token_hex(4)

# After so many seconds without a packet from the server's machine a connection is lost, and its statement fails. A
# server that is busy with a statement is not lost: its system acknowledges packets and answers keep-alive probes. The
# same time as for opening a connection. Only Linux has all these socket options; elsewhere the store's own time limits
# hold.
_SILENT_S = 5
_TCP_OPTIONS = {"TCP_USER_TIMEOUT": 1000 * _SILENT_S, "TCP_KEEPIDLE": _SILENT_S, "TCP_KEEPINTVL": 1}


class OwnConnection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection, with names of statements that no other process uses, and with TCP keep-alive."""

    __slots__ = ()

    def __init__(self, protocol: Any, transport: asyncio.Transport, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _TCP_OPTIONS.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{_PROCESS}"


class PostgresTarget(Struct, frozen=True):
    """A database on a server, and how to connect to it.

    Raises: ServerRefused if the URL cannot be read.
    """

    url: str
    # True if a pooler in transaction mode lies between, so that nothing may be set for a session.
    is_pooled: bool = False
    # True if the pooler takes prepared statements along from one session to another.
    pooler_prepares: bool = False
    # The class of connections; tests that count statements bring their own.
    factory: type[Any] = OwnConnection
    # The time in which a connection to one host must be open.
    connect_s: float = 5.0
    # A URL for each host that `url` names, made of `url`. `connect` moves the host that accepted it to the front.
    urls: list[str] = []

    def __post_init__(self) -> None:
        self.urls.extend(split_by_host(self.url))

    @property
    def name(self) -> str:
        return mask_password(self.url)

    @property
    def cached_statements(self) -> int:
        """The most prepared statements of a connection. 0: each is parsed and run at once, in one session."""
        return CACHED_STATEMENTS if self.pooler_prepares or not self.is_pooled else 0


_SESSION = {
    "application_name": "mnemogate",
    "jit": "off",
    # The server's default plans statements with lists and NULLs each time, at many times the cost of one plan.
    "plan_cache_mode": "force_generic_plan",
    # After a wait for an agent's row, a transaction has to read it as it is then. Stricter levels make that an error.
    "default_transaction_isolation": "read committed",
    # In milliseconds. The server looks for deadlocks after one second; a longer wait for a lock fails.
    "idle_in_transaction_session_timeout": "5000",
    "lock_timeout": "3000",
    # In seconds. A machine that vanishes must not hold an agent's lock for hours.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
BEGIN = "BEGIN"
# A pooler may hand each transaction to another session.
BEGIN_POOLED = (
    "BEGIN ISOLATION LEVEL READ COMMITTED;"
    " SET LOCAL lock_timeout = 3000; SET LOCAL idle_in_transaction_session_timeout = 5000"
)


async def connect(target: PostgresTarget) -> RawConnection:
    """Opens a connection to the first host that accepts writes.

    Hosts are tried one after another, each with its own timeout. asyncpg has one timeout for all hosts together, which
    a machine that has vanished would use up.

    Raises: StoreUnavailable; ServerRefused if the server refuses the account, or is too old.
    """
    errors: list[StoreError] = []
    # A copy, because the loop reorders the list.
    for url in [*target.urls]:
        try:
            raw = await _connect_to(url, target)
        except StoreError as error:
            errors.append(error)
            continue
        target.urls.remove(url)
        target.urls.insert(0, url)
        return raw
    main_error = next((error for error in errors if not isinstance(error, StoreFailed)), errors[-1])
    if len(errors) == 1:
        raise main_error
    raise type(main_error)("; ".join(error.message for error in errors)) from main_error


async def _connect_to(url: str, target: PostgresTarget) -> RawConnection:
    """Opens a connection to one host of a target."""
    name = mask_password(url)
    try:
        raw: RawConnection = await asyncpg.connect(
            url,
            timeout=target.connect_s,
            statement_cache_size=target.cached_statements,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            connection_class=target.factory,
            server_settings=None if target.is_pooled else _SESSION,
            target_session_attrs="read-write" if len(target.urls) > 1 else None,
        )
    except asyncpg.InvalidCatalogNameError as error:
        raise ServerRefused(f"{name}: {error}; create it first") from error
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise StoreFailed(f"{name} is read-only, as a replica is") from error
    except TimeoutError as error:
        raise StoreFailed(f"{name}: no connection within {target.connect_s:g} s") from error
    except OSError as error:
        raise StoreFailed(
            f"{name} does not answer: {_describe_error(error)}. Start the server, or correct database.url."
        ) from error
    except ASYNCPG_ERRORS as error:
        raise translate_error(error, name) from error
    except ValueError:
        # The part that could not be read may be of the password, so the error itself is not shown.
        raise ServerRefused(f"{name}: {BAD_URL}") from None
    try:
        _check_server(raw, name)
    except ServerRefused:
        await raw.close()
        raise
    return raw


def _check_server(raw: RawConnection, name: str) -> None:
    """Raises: ServerRefused: the server is too old, or its database has an encoding without a place for every text."""
    version = raw.get_server_version()
    if version.major < _OLDEST_SERVER:
        raise ServerRefused(f"{name} is PostgreSQL {version.major}; {_OLDEST_SERVER} or newer is needed")
    # A pooler may not report the encoding.
    encoding = getattr(raw.get_settings(), "server_encoding", "UTF8")
    if encoding not in _ENCODINGS:
        raise ServerRefused(
            f"{name} has the encoding {encoding}, which not every text has a place in; make the database anew: "
            "createdb --encoding UTF8 --template template0"
        )


def _describe_error(error: OSError) -> str:
    """Returns the reason of a failed connection."""
    # An error of name resolution or of TLS has its own numbers in `errno`.
    if error.errno and not isinstance(error, socket.gaierror | ssl.SSLError):
        # asyncio's own text repeats the address.
        return os.strerror(error.errno)
    return error.strerror or str(error)


class PostgresConnection:
    """A connection of asyncpg as the store's operations use one."""

    __slots__ = ("_begin", "_clock", "_deadline", "_locked", "_raw", "is_begun", "may_have_committed")

    def __init__(
        self,
        raw: RawConnection,
        deadline: float,
        clock: asyncio.AbstractEventLoop,
        begin: str | None = None,
    ) -> None:
        """Wraps a connection for one operation.

        deadline: the time by which the statements must have ended, by the loop's clock.
        begin: the statement that begins the transaction, sent before the first statement that is not `run_single`;
            None: the connection reads, and each statement is a transaction of its own.
        """
        self._raw = raw
        self._deadline = deadline
        self._clock = clock
        self._begin = begin
        # The rows of agents that the transaction has locked.
        self._locked: set[int] = set()
        # True once the transaction was begun.
        self.is_begun = False
        # True once a commit was sent: the writes may be on disk even if no answer comes.
        self.may_have_committed = False

    async def fetch_rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        await self._begin_once()
        return await self._raw.fetch(_render_text(statement), *values, timeout=self._get_remaining_s())

    async def fetch_row(self, statement: str, values: Sequence[object] = ()) -> Row | None:
        rows = await self.fetch_rows(statement, values)
        return rows[0] if rows else None

    async def fetch_value(self, statement: str, values: Sequence[object] = ()) -> Any:
        rows = await self.fetch_rows(statement, values)
        return rows[0][0] if rows else None

    async def run(self, statement: str, values: Sequence[object] = ()) -> int:
        await self._begin_once()
        status = await self._raw.execute(_render_text(statement), *values, timeout=self._get_remaining_s())
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def insert(
        self, statement: str, values: Sequence[object], *, is_only_statement: bool
    ) -> Row | None:
        return await (self.run_single if is_only_statement else self.fetch_row)(statement, values)

    async def run_single(self, statement: str, values: Sequence[object]) -> Row | None:
        self.may_have_committed = True
        rows = await self._raw.fetch(_render_text(statement), *values, timeout=self._get_remaining_s())
        self.may_have_committed = bool(rows)
        return rows[0] if rows else None

    async def lock(self, *agent_rows: int) -> None:
        for agent_row in sorted({*agent_rows} - self._locked):
            await self.fetch_rows("SELECT FROM agents WHERE id = $1 FOR NO KEY UPDATE", (agent_row,))
            self._locked.add(agent_row)

    async def lock_sharers(self, *agent_rows: int) -> None:
        self._locked.update(row[0] for row in await self.fetch_rows(_LOCK_SHARERS, (agent_rows,)))

    async def lock_profile_blocks(self, agent_row: int) -> None:
        await self.fetch_rows(PROFILE_BLOCKS, (agent_row,))

    async def lock_seers(self, block_row: int) -> None:
        self._locked.update(row[0] for row in await self.fetch_rows(_LOCK_SEERS, (block_row,)))
        # If no agent sees the block, its own row is all that can be locked.
        await self.fetch_rows("SELECT FROM blocks WHERE id = $1 FOR NO KEY UPDATE", (block_row,))

    async def commit(self) -> None:
        """Ends the transaction, if one was begun. Raises: StatementFailed if it went on after a failure."""
        if self.is_begun:
            self.may_have_committed = True
            if await self._raw.execute("COMMIT", timeout=self._get_remaining_s()) != "COMMIT":
                raise StatementFailed("a write went on after one of its statements had failed")

    async def _begin_once(self) -> None:
        begin = self._begin
        self._begin = None
        if begin is not None:
            self.is_begun = True
            await self._raw.execute(begin, timeout=self._get_remaining_s())

    def _get_remaining_s(self) -> float:
        remaining_s = self._deadline - self._clock.time()
        if remaining_s <= 0:
            raise TimeoutError
        return remaining_s


class SanitizingConnection(PostgresConnection):
    """A connection that replaces the characters that PostgreSQL refuses in texts.

    An operation that was refused for such a character is repeated on it.
    """

    __slots__ = ()

    async def fetch_rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        return await super().fetch_rows(statement, replace_unstorable(values))

    async def run(self, statement: str, values: Sequence[object] = ()) -> int:
        return await super().run(statement, replace_unstorable(values))

    async def run_single(self, statement: str, values: Sequence[object]) -> Row | None:
        return await super().run_single(statement, replace_unstorable(values))


def _render_text(statement: str) -> str:
    return statement.postgres if isinstance(statement, Statement) else statement
