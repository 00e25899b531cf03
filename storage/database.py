"""The database below the store: five ways to its data, and the connection that an operation is given.

The store's operations (storage/sql) are written once, over these protocols; each database implements them.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, Self, TypeVar

from msgspec import Struct

from storage.errors import Unavailable
from storage.records import AgentNumbers


class StoreHealth(Struct, frozen=True):
    """The store's state."""

    # ok, slow, closed, or the `status` of the error that stops it (full, readonly, locked, corrupt, broken).
    status: str
    # The message of the last failure, retained after recovery.
    error: str | None = None
    # How many failures there were.
    failures: int = 0
    # Writes not yet on disk, and their bytes.
    waiting: int = 0
    waiting_bytes: int = 0

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def is_up(self) -> bool:
        """True while operations succeed, if slowly."""
        return self.status in ("ok", "slow")


T = TypeVar("T")

# How long each read of this task may take that names no deadline, in milliseconds; None: as long as its method allows.
read_limit_ms: ContextVar[float | None] = ContextVar("read_limit_ms", default=None)

# Changes of other processes are looked for after so many seconds, with or without a notification.
POLL_S = 15.0
# Whether there is a key that callers of the API need; keys of operators open the page alone.
ANY_KEY = (
    "SELECT EXISTS (SELECT 1 FROM keys WHERE opens IS NULL OR opens NOT IN ('operator', 'operator-read'))"
)
# The channels on which processes notify each other that there is work, that keys have changed, that
# something was forgotten, that the lock of a conversation was released, that a run was ended,
# that a user was taken out of usage, that limits have changed.
WORK, KEYS, GONE, LOCKS, RUNS = "work", "keys", "gone", "locks", "runs"
USAGE, LIMITS = "usage", "limits"


# What transactions have changed: by agent its numbers, None where they are not known. None: maybe all.
Changes = Mapping[int, AgentNumbers | None] | None

# A row as every driver gives it: values in the order of the statement's columns.
Row = Sequence[Any]


class Statement(str):
    """A statement of the store: as a string SQLite's text, and as an attribute PostgreSQL's."""

    # For tests and logs.
    name: str
    # The text for PostgreSQL.
    postgres: str
    # The parameters that are lists, with the number of placeholders SQLite has for each.
    sizes: Mapping[int, int]
    # How many values SQLite measures, to fill in what keeps a row in its place.
    measured: int
    # They are those of a new row.
    is_padded: bool

    def __new__(
        cls, sqlite: str, name: str, postgres: str, sizes: Mapping[int, int], measured: int, is_padded: bool
    ) -> Self:
        made = super().__new__(cls, sqlite)
        made.name, made.postgres, made.sizes = name, postgres, sizes
        made.measured, made.is_padded = measured, is_padded
        return made

    def spread(self, values: Sequence[object]) -> Sequence[object]:
        """Returns the values as SQLite takes them: each list laid out over its placeholders, NULL in those left over.

        PostgreSQL takes a list as one value. Raises: ValueError for a list that is longer than its placeholders.
        """
        if not self.sizes:
            return values
        found: list[object] = []
        for number, value in enumerate(values, 1):
            size = self.sizes.get(number)
            if size is None:
                found.append(value)
                continue
            assert isinstance(value, Sequence)
            if len(value) > size:
                raise ValueError(f"{self.name} takes {size} values at once, not {len(value)}")
            found += [*value, *([None] * (size - len(value)))]
        return found


class Connection(Protocol):
    """An open connection, as an operation of the store is given it: inside a transaction where it writes.

    statement: of storage/sql/statements.py. values: its parameters in order. Results are whole: nothing is left open
    across an await.
    """

    async def rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Returns all rows."""

    async def row(self, statement: str, values: Sequence[object] = ()) -> Row | None:
        """Returns the first row; None where there is none."""

    async def value(self, statement: str, values: Sequence[object] = ()) -> Any:
        """Returns the first column of the first row; None where there is none."""

    async def run(self, statement: str, values: Sequence[object] = ()) -> int:
        """Runs the statement. Returns how many rows it touched."""

    async def insert(
        self, statement: str, values: Sequence[object], *, is_only_statement: bool
    ) -> Row | None:
        """Runs a statement that adds a row or writes nothing. Returns the row's id and what else the statement reports.

        is_only_statement: it comes first, and its transaction writes nothing else if it adds a row. In SQLite the
            statement reports the row by `report_row(number, ...)`, which returns the number; a row that is refused
            before that is not added.
        """

    async def single(self, statement: str, values: Sequence[object]) -> Row | None:
        """Returns the first row of a statement that comes first, and is all its transaction writes if it has a row.

        Where it has none it has written nothing, and the operation may go on. PostgreSQL saves two round trips by it.
        """

    async def lock(self, agent: int) -> None:
        """Locks an agent's row, before anything of the agent's is written; SQLite has one writer.

        Who locks several takes the lowest number first.
        """

    async def lock_sharers(self, agent: int) -> None:
        """Locks the rows of an agent and of all that share a block with it, before such a block is written.

        A changed block raises the `rev` of all who see it, so two that write it would wait for each other.
        """

    async def lock_seers(self, block: int) -> None:
        """Locks the rows of all agents that see a block, before another agent writes it."""


# A read or a write. It awaits nothing but its connection, so that a database that never waits needs no event loop.
Operation = Callable[[Connection], Coroutine[Any, Any, T]]

# A part of a transaction. The store's groups make effects; their callers only hand them on.
Effect = Operation[object]


class ServerFindings(Struct, frozen=True):
    """A database server as a start would find it."""

    version: str
    # The version of our tables, 0 where there are none.
    schema: int
    # The one that a start brings an older one to.
    known: int
    # There are gateway keys.
    is_keyed: bool
    # Why notifications do not arrive at other processes.
    listen_fault: str | None


class Database(Protocol):
    """The data of the store, which `read`, `long_read`, `write`, `write_one` and `bulk` reach.

    Each raises what its operation raises, and Unavailable; those that write also Busy, where too many bytes wait.
    """

    @property
    def clock_ahead_s(self) -> float:
        """The seconds by which the clock that all processes share is ahead of this machine's."""

    @property
    def is_shared(self) -> bool:
        """True if other processes may read and write the same data."""

    @property
    def is_owned(self) -> bool:
        """True if this process alone may read and write the data, as of now."""

    async def read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        """Runs a short, indexed read. Raises: TooSlow past the deadline."""

    async def long_read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        """Runs a read that may take long: a big index, an export. Raises: TooSlow past the deadline."""

    def write(self, operation: Operation[T], *, bytes: int = 0, is_repeatable: bool = False) -> Future[T]:
        """Runs a transaction. It begins at once and ends on disk, whether the future is awaited or cancelled.

        bytes: about what the operation holds.
        is_repeatable: where the answer to a commit is lost it may be performed again, since it finds what it
            has written before.
        """

    def write_one(self, statement: str, values: Sequence[object], *, bytes: int = 0) -> Future[list[Row]]:
        """Writes one statement that is a transaction by itself, and returns its rows."""

    def bulk(self, operation: Operation[T], *, bytes: int = 0) -> Future[T]:
        """Runs a transaction that gives way to turns: index, import, forget. It should stay below 5 ms."""

    async def sweep(self, wait_ms: int) -> bool:
        """Takes what was overwritten out of the database's own old copies; False while they are still being read."""

    def start(self) -> None:
        """Starts what runs without requests: the check of its health, and listening for other processes."""

    def listen(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Calls a function with the notifications of a channel, once this process listens.

        None: something may have been missed. It is given every `POLL_S` seconds while no notification arrives.
        """

    def notify(self, channel: str, word: str = "") -> None:
        """Notifies the other processes, soon. A notification may be lost: correctness does not depend on it."""

    def when_changed(self, function: Callable[[Changes], None]) -> None:
        """Has a function called with what each transaction changed of agents' rows, before anybody has its result.

        A database that is shared does not call it: others write there too.
        """

    def when_failed(self, function: Callable[[Unavailable], None]) -> None:
        """Has a function called each time the database fails after it worked, with what is wrong."""

    def when_recovered(self, function: Callable[[], None]) -> None:
        """Has a function called each time the database works again; caches of its content may be wrong by then."""

    @property
    def health(self) -> StoreHealth: ...

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every write given to it is on disk; False when that took too long."""

    async def close(self, timeout_s: float = 5.0) -> None:
        """Drains and closes. What is still waiting after the time fails with Closed. Idempotent."""
