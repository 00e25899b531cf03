"""Operations as methods: each is written with the connection it runs on, and called without.

    class Passages(Group):
        @reads
        async def count(self, connection: Connection, agent: int) -> int: ...

    await store.passages.count(agent)

The decorator names the door of the database through which it goes, or marks it as an effect of a transaction to
come. A function of a connection, which other transactions use too, becomes a method by `alone`.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.database import Connection, Database, Effect, Statement

G = TypeVar("G", bound="Group")
P = ParamSpec("P")
T = TypeVar("T")

# Rows that one transaction deletes.
_DELETED = 200

_Method = Callable[Concatenate[G, Connection, P], Coroutine[Any, Any, T]]


_Of = Callable[Concatenate[Connection, int, P], Coroutine[Any, Any, T]]


class Group:
    """A part of the store's operations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _delete_older(self, has_older: Statement, delete: Statement, before: float) -> int:
        """Deletes rows that are older, a page in each transaction. Returns how many went.

        has_older: returns whether there are any, by the time. delete: deletes some, by the time and how many at most.
        """
        gone, database = 0, self._database
        while await database.read(lambda connection: connection.value(has_older, (before,))):
            gone += await database.bulk(lambda connection: connection.run(delete, (before, _DELETED)))
        return gone


def reads(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Coroutine[Any, Any, T]]:
    """Makes a short read of a method."""

    def reading(self: G, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._database.read(lambda connection: method(self, connection, *args, **kwargs))

    return reading


def long_reads(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Coroutine[Any, Any, T]]:
    """Makes a read of a method that may take long."""

    def reading(self: G, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._database.long_read(lambda connection: method(self, connection, *args, **kwargs))

    return reading


def writes(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Future[T]]:
    """Makes a transaction of a method."""

    def writing(self: G, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._database.write(lambda connection: method(self, connection, *args, **kwargs))

    return writing


def bulk_writes(method: _Method[G, P, T]) -> Callable[Concatenate[G, P], Future[T]]:
    """Makes a transaction of a method that gives way to turns."""

    def writing(self: G, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._database.bulk(lambda connection: method(self, connection, *args, **kwargs))

    return writing


def effect(method: _Method[G, P, object]) -> Callable[Concatenate[G, P], Effect]:
    """Makes a method that returns an effect, which runs the method's body when it is performed."""

    def making(self: G, /, *args: P.args, **kwargs: P.kwargs) -> Effect:
        return lambda connection: method(self, connection, *args, **kwargs)

    return making


def alone(
    function: Callable[Concatenate[Connection, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Group, Connection, P], Coroutine[Any, Any, T]]:
    """Makes a method of a function that has no need of its group."""

    def method(
        self: Group, connection: Connection, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]:
        return function(connection, *args, **kwargs)

    return method


def locking(function: _Of[P, T]) -> Callable[Concatenate[Group, Connection, int, P], Coroutine[Any, Any, T]]:
    """Makes a method of a function that writes an agent's rows: it locks the agent first."""

    async def method(
        self: Group, connection: Connection, agent: int, /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        await connection.lock(agent)
        return await function(connection, agent, *args, **kwargs)

    return method
