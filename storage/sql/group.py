"""Operations as methods: each is written with the connection it runs on, and called without.

    class Passages(StoreGroup):
        @reads
        async def count(self, connection: Connection, agent_row: int) -> int: ...

    await store.passages.count(agent)

The decorator names the method of `Database` that runs it. A method under `makes_effect` returns an `Effect`, which a
job performs in its own transaction; its name ends in "_effect". A function of a connection, which other transactions
use as well, becomes a method by `as_method`.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.database import Connection, Database, Effect, Operation, Statement

G = TypeVar("G", bound="StoreGroup")
P = ParamSpec("P")
T = TypeVar("T")
ResultT = TypeVar("ResultT")
MethodT = TypeVar("MethodT", bound=Callable[..., object])

# The most rows that one transaction deletes.
_ROWS_PER_DELETE = 200

_Method = Callable[Concatenate[G, Connection, P], Coroutine[Any, Any, T]]
# A function of a connection and an agent's row.
_AgentFunction = Callable[Concatenate[Connection, int, P], Coroutine[Any, Any, T]]
# The attributes that a method takes over from its operation. Not the signature, which has a connection too.
_COPIED_ATTRIBUTES = ("__module__", "__name__", "__qualname__", "__doc__")


class StoreGroup:
    """The store's operations on one kind of record."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _await_write(self, write: Future[T], after: Callable[[], object]) -> T:
        """Returns the result of a write.

        after: a function that is called when the write has ended, well or not, and even if the caller was cancelled
            meanwhile: the write ends all the same.
        """
        write.add_done_callback(lambda _: after())
        return await asyncio.shield(write)

    async def _delete_older(self, has_older: Statement, delete: Statement, before: float) -> int:
        """Deletes the rows from before a time, a page in each transaction. Returns the number of deleted rows.

        has_older: the statement that returns whether there are such rows. Its parameter is the time.
        delete: the statement that deletes a page of such rows. Its parameters are the time, and the size of a page.
        """
        deleted = 0
        database = self._database
        while await database.read(lambda connection: connection.fetch_value(has_older, (before,))):
            deleted += await database.bulk_write(
                lambda connection: connection.run(delete, (before, _ROWS_PER_DELETE))
            )
        return deleted


def reads(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Coroutine[Any, Any, T]]:
    """Returns a method that runs an operation as a short read."""
    return _without_connection(method, lambda database, operation: database.read(operation))


def long_reads(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Coroutine[Any, Any, T]]:
    """Returns a method that runs an operation as a read that may take long."""
    return _without_connection(method, lambda database, operation: database.long_read(operation))


def writes(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Future[T]]:
    """Returns a method that runs an operation as a transaction."""
    return _without_connection(method, lambda database, operation: database.write(operation))


def bulk_writes(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Future[T]]:
    """Returns a method that runs an operation as a transaction that gives way to turns."""
    return _without_connection(method, lambda database, operation: database.bulk_write(operation))


def makes_effect(method: _Method[G, P, object]) -> Callable[Concatenate[G, P], Effect]:
    """Returns a method that returns an effect: the operation, which runs when the effect is performed."""
    return _without_connection(method, lambda _, operation: operation)


def _without_connection(
    method: _Method[G, P, T], run: Callable[[Database, Operation[T]], ResultT]
) -> Callable[Concatenate[G, P], ResultT]:
    """Returns a method that is called without the connection that an operation needs.

    run: a function that has the database run the operation. The method returns its result.
    """

    def operation_method(self: G, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return run(self._database, lambda connection: method(self, connection, *args, **kwargs))

    return _copy_name(method, operation_method)


def as_method(
    function: Callable[Concatenate[Connection, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[StoreGroup, Connection, P], Coroutine[Any, Any, T]]:
    """Returns a method that runs a function of a connection, for the decorators above."""

    def method(
        self: StoreGroup, connection: Connection, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]:
        return function(connection, *args, **kwargs)

    return _copy_name(function, method)


def as_locking_method(
    function: _AgentFunction[P, T],
) -> Callable[Concatenate[StoreGroup, Connection, int, P], Coroutine[Any, Any, T]]:
    """Returns a method that locks an agent, and then runs a function that writes the agent's rows."""

    async def method(
        self: StoreGroup, connection: Connection, agent_row: int, /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        await connection.lock(agent_row)
        return await function(connection, agent_row, *args, **kwargs)

    return _copy_name(function, method)


def _copy_name(operation: Callable[..., object], method: MethodT) -> MethodT:
    """Returns the method, with the name and the docstring of the operation that it runs."""
    update_wrapper(method, operation, assigned=_COPIED_ATTRIBUTES, updated=())
    del method.__wrapped__  # type: ignore[attr-defined]
    return method
