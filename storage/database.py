"""The database below the store: how it runs operations, and the connection that an operation is given.

The store's operations (storage/sql) are written once, over these protocols; each database implements them.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, Self, TypeVar

from msgspec import Struct

from storage.errors import StoreStatus, StoreUnavailable
from storage.records import AgentNumbers


class StoreHealth(Struct, frozen=True):
    """The store's state."""

    # "ok", "slow", or the `status` of the error that stops the store.
    status: StoreStatus
    # The message of the last failure, retained after recovery.
    error: str | None = None
    # The number of writes that are not on disk yet.
    waiting: int = 0
    # The bytes of these writes.
    waiting_bytes: int = 0

    @property
    def ok(self) -> bool:
        """True if no error stops the store, and writes are not slow."""
        return self.status == "ok"

    @property
    def is_up(self) -> bool:
        """True while operations succeed, also if slowly."""
        return self.status in ("ok", "slow")

    @property
    def is_read_only(self) -> bool:
        """True while reads succeed, and writes fail for want of room or rights."""
        return self.status in ("full", "readonly")


T = TypeVar("T")

# The deadline, in milliseconds, of the task's reads that are called without one; None: the method's own deadline.
read_limit_ms: ContextVar[float | None] = ContextVar("read_limit_ms", default=None)

# The deadline of a long read for which no request waits. Not measured: one that takes longer fails, and is tried again.
BACKGROUND_READ_MS = 5_000.0


def choose_deadline_ms(deadline_ms: float | None) -> float | None:
    """Returns the milliseconds that a read may take: its own deadline, otherwise the deadline of its task."""
    return read_limit_ms.get() if deadline_ms is None else deadline_ms


# The generation of the database in which the work of the task began (`begin_work`); None: nothing is checked.
work_generation: ContextVar[int | None] = ContextVar("work_generation", default=None)

# Changes of other processes are read after so many seconds, with or without a notification.
POLL_S = 15.0
# A statement that returns whether callers of the API need a key; keys of operators open the page alone. The statement
# is run before a store is opened.
ANY_KEY = (
    "SELECT EXISTS (SELECT 1 FROM keys WHERE opens IS NULL OR opens NOT IN ('operator', 'operator-read'))"
)
# The channels on which processes notify each other of an event.

# A job is due.
WORK = "work"
# Keys have changed.
KEYS = "keys"
# A part of a memory was forgotten.
FORGOTTEN = "gone"
# The lock of a conversation was released.
LOCKS = "locks"
# A run has ended.
RUNS = "runs"
# A user was taken out of usage.
USAGE = "usage"
# Limits have changed.
LIMITS = "limits"

# The numbers of the agents that transactions have changed; None: the numbers are not known. None instead of the
# mapping: any agent may have changed.
Changes = Mapping[int, AgentNumbers | None] | None

# A row as every driver gives it: values in the order of the statement's columns.
Row = Sequence[Any]


class Statement(str):
    """A statement of the store. The string is SQLite's text."""

    # For tests and logs.
    name: str
    # The text for PostgreSQL.
    postgres: str
    # The number of placeholders that SQLite has for a parameter that is a list, by the parameter's number.
    sizes: Mapping[int, int]
    # The number of the statement's values, from the first on, that are columns of a row that SQLite pads
    # (storage/sqlite/padding.py); 0: the statement writes no such row.
    sized_columns: int
    # True if the row is new: SQLite is given its room and padding instead.
    is_padded: bool

    def __new__(
        cls,
        sqlite: str,
        name: str,
        postgres: str,
        sizes: Mapping[int, int],
        sized_columns: int,
        is_padded: bool,
    ) -> Self:
        statement = super().__new__(cls, sqlite)
        statement.name, statement.postgres, statement.sizes = name, postgres, sizes
        statement.sized_columns, statement.is_padded = sized_columns, is_padded
        return statement

    def spread(self, values: Sequence[object]) -> Sequence[object]:
        """Returns the values as SQLite takes them: a list takes all its placeholders, with NULL in those left over.

        PostgreSQL takes a list as one value. Raises: ValueError if a list has more values than placeholders.
        """
        if not self.sizes:
            return values
        spread_values: list[object] = []
        for number, value in enumerate(values, 1):
            size = self.sizes.get(number)
            if size is None:
                spread_values.append(value)
                continue
            assert isinstance(value, Sequence)
            if len(value) > size:
                raise ValueError(f"{self.name} takes {size} values at once, not {len(value)}")
            spread_values += [*value, *([None] * (size - len(value)))]
        return spread_values


class Connection(Protocol):
    """An open connection, as an operation of the store is given it: inside a transaction where it writes.

    Each method takes a statement of storage/sql/statements.py and its parameters in order. A result is whole: no cursor
    stays open across an await.
    """

    async def fetch_rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Returns all rows."""

    async def fetch_row(self, statement: str, values: Sequence[object] = ()) -> Row | None:
        """Returns the first row; None where there is none."""

    async def fetch_value(self, statement: str, values: Sequence[object] = ()) -> Any:
        """Returns the first column of the first row; None where there is none."""

    async def run(self, statement: str, values: Sequence[object] = ()) -> int:
        """Runs the statement. Returns the number of rows that it touched."""

    async def insert(
        self, statement: str, values: Sequence[object], *, is_only_statement: bool
    ) -> Row | None:
        """Runs a statement that adds a row or writes nothing. Returns the row's id and the values that it reports.

        is_only_statement: True if no statement comes before it in the transaction, and none after it if it adds a row.

        In SQLite the statement reports the row by `report_row(number, ...)`, which returns the number. A row that the
        statement refuses before that call is not added.
        """

    async def run_single(self, statement: str, values: Sequence[object]) -> Row | None:
        """Runs a write that is its transaction's first statement, and its last if the write returns a row.

        Returns the first row, or None if the statement has written nothing; then the operation may go on. This saves
        two round trips with PostgreSQL.
        """

    async def lock(self, *agent_rows: int) -> None:
        """Locks the rows of agents before one of their tables' rows is written; SQLite has one writer.

        The lowest row is locked first, as everywhere, so that no two transactions wait for each other.
        """

    async def lock_sharers(self, *agent_rows: int) -> None:
        """Locks the rows of agents, and of all agents that share blocks with them, before such a block is written.

        A changed block raises the `rev` of all agents that see it, so two writers would wait for each other.
        """

    async def lock_profile_blocks(self, agent_row: int) -> None:
        """Locks the blocks that all users of an agent's profile share: their agents are too many to lock."""

    async def lock_seers(self, block_row: int) -> None:
        """Locks the rows of all agents that see a block, and the block, before another writer changes it."""


# A read or a write. It awaits nothing but its connection, so a database that never waits can run it without
# an event loop.
Operation = Callable[[Connection], Coroutine[Any, Any, T]]

# A part of a transaction, made by a group of the store (`makes_effect` in storage/sql/group.py) for another one to run.
Effect = Operation[object]


class ServerFindings(Struct, frozen=True):
    """A database server as a start would find it."""

    # The version of the server, as it reports it.
    version: str
    # The schema version of the gateway's tables; 0: there are none.
    schema: int
    # The schema version to which a start upgrades older tables.
    latest_schema: int
    # True if there are gateway keys.
    is_keyed: bool
    # Why notifications do not arrive at other processes; None: notifications arrive.
    listen_fault: str | None


class Database(Protocol):
    """Runs operations on the data of the store.

    The methods that run an operation or a statement raise its errors, and StoreUnavailable. Those that write also raise
    StoreBusy, where too many bytes wait.
    """

    @property
    def clock_ahead_s(self) -> float:
        """The seconds by which the clock that all processes share is ahead of this machine's."""

    @property
    def is_shared(self) -> bool:
        """True if other processes may read and write the same data."""

    @property
    def is_settled(self) -> bool:
        """False for some seconds after this process has started, or after an outage of the database.

        Until then no process takes over another's lease: processes that live could not renew their leases during the
        outage, and do so now.
        """

    @property
    def is_owned(self) -> bool:
        """True if this process alone may read and write the data, as of now."""

    @property
    def generation(self) -> int:
        """Rises when another database is found in the place of this one, whose ids name other rows (`begin_work`)."""

    async def read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        """Runs a short, indexed read. Raises: StoreTimeout past the deadline.

        deadline_ms: the milliseconds that the read may take; None: those of the task (`choose_deadline_ms`), or else
            as long as the database allows.
        """

    async def long_read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        """Runs a read that may take long: a big index, an export. Raises: StoreTimeout past the deadline.

        deadline_ms: as in `read`.

        A read without a deadline may wait for other long reads, so that turns find the database free.
        """

    def write(
        self, operation: Operation[T], *, size_bytes: int = 0, is_repeatable: bool = False
    ) -> Future[T]:
        """Runs a transaction. It begins at once and ends on disk, whether the future is awaited or cancelled.

        size_bytes: the approximate size of the values that the operation holds while it waits.
        is_repeatable: True if the operation may run again after the answer to its commit was lost, since it then finds
            its own writes.
        """

    def write_one(self, statement: str, values: Sequence[object]) -> Future[list[Row]]:
        """Runs one statement as a transaction of its own. Returns its rows."""

    def bulk_write(self, operation: Operation[T], *, size_bytes: int = 0) -> Future[T]:
        """Runs a transaction that gives way to turns: index, import, forget. It should stay below 5 ms."""

    async def sweep(self, wait_ms: int) -> bool:
        """Removes overwritten content from the database's old copies. Returns False if one of these is still read."""

    def start(self) -> None:
        """Starts the work that needs no request: the check of its health, and listening for other processes."""

    def add_listener(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Calls a function with the notifications of a channel, once this process listens.

        The function gets the payload of a notification, and None where one may have been missed and every `POLL_S`
        seconds while none arrives.
        """

    def notify(self, channel: str, payload: str = "") -> None:
        """Notifies the other processes, soon. Call it after the commit, since they read the change then.

        A notification may be lost: correctness does not depend on it.
        """

    def add_change_listener(self, callback: Callable[[Changes], None]) -> None:
        """Registers a function that is called with the changes of each transaction, before its caller has the result.

        A database that is shared does not call it: other processes write there, too.
        """

    def add_failure_listener(self, callback: Callable[[StoreUnavailable], None]) -> None:
        """Registers a function that is called with the error each time that the database stops working."""

    def add_recovery_listener(self, callback: Callable[[], None]) -> None:
        """Registers a function that is called each time that the database works again.

        Caches of its content may be wrong by then.
        """

    @property
    def health(self) -> StoreHealth:
        """The state of the database. Reading it never waits."""

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every submitted write is on disk. Returns False if that takes too long."""

    async def close(self, timeout_s: float = 5.0) -> None:
        """Drains and closes. Writes that still wait after the time fail with StoreClosed. Idempotent."""


def begin_work(database: Database) -> None:
    """Notes in the context that a request, or an attempt of a job, begins in this task.

    If another database takes the place of this one, the reads of the work raise StoreFailed and its writes StaleWrite,
    as do those of the tasks that it has created: the ids that it has read may be those of other users there.
    """
    work_generation.set(database.generation)


def is_outdated_work(database: Database) -> bool:
    """Returns whether the work of this task began before another database was in the place of this one."""
    return work_generation.get() not in (None, database.generation)
