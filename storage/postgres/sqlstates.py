"""PostgreSQL's errors as the store's own, by their SQLSTATE (postgresql.org/docs/current/errcodes-appendix.html)."""

from __future__ import annotations

from typing import Any, NamedTuple

import asyncpg

from storage.errors import (
    ServerRefused,
    StatementFailed,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreTimeout,
    StoreUnavailable,
    WriteConflict,
)

# The errors by SQLSTATE, then by its class, the first two characters.
_BY_STATE: dict[str, type[StoreError]] = {
    "25006": StoreReadOnly,  # a replica, or a primary that has become one
    "53100": StoreFull,  # the disk
    "53200": StoreFull,  # the server's memory
    "53300": StoreBusy,  # too many connections
    "55P03": StoreLocked,  # another transaction has the lock
    "57014": StoreTimeout,  # canceled, for example by a timeout
    "XX001": StoreCorrupt,  # data
    "XX002": StoreCorrupt,  # an index
    "42501": ServerRefused,  # no privilege
}
_BY_CLASS: dict[str, type[StoreError]] = {
    "08": StoreFailed,  # the connection
    "23": WriteConflict,  # a constraint
    "28": ServerRefused,  # no such user, or a wrong password
    "3D": ServerRefused,  # no such database
    "40": WriteConflict,  # rolled back: a deadlock, or a transaction that cannot be serialized
    "53": StoreFailed,  # resources
    "57": StoreFailed,  # an operator's intervention, for example a shutdown
    "58": StoreFailed,  # the server's system
    "F0": StoreFailed,  # the server's configuration file
}

# A prepared statement that is gone, or there already: a pooler has given the gateway another session in between.
_POOLER_STATES = ("26000", "42P05", "08P01")
_POOLER_ADVICE = (
    "behind a pooler in transaction mode set database.pooled = true, without database.pooler_prepares, and have "
    "database.listen_url name the server itself"
)

# SQLSTATEs of a connection that is gone, or that the server ends because it stops.
_CLOSED_STATES = ("08003", "08006", "57P01", "57P02")

# The errors after which nothing works until a connection has been tried again.
_STOPPING_ERRORS = (StoreFailed, StoreReadOnly, StoreCorrupt, StoreFull)

# The errors that calls of asyncpg raise: its own, and the network's.
ASYNCPG_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class _Translation(NamedTuple):
    """The store's error for an error, without the name of the database."""

    # The class of the store's error.
    error_type: type[StoreError]
    # The text of the store's error.
    text: str


def translate_error(error: BaseException, name: str = "the database") -> StoreError:
    """Returns the store's own error for an error of asyncpg or of the network, which becomes its cause."""
    if isinstance(error, asyncpg.PostgresError):
        _remove_values(error)
    error_type, text = _choose_translation(error)
    translated = error_type(f"{name}: {text}")
    translated.__cause__ = error
    return translated


def _choose_translation(error: BaseException) -> _Translation:
    text = str(error) or type(error).__name__
    if _is_closed(error):
        return _Translation(StoreFailed, "PostgreSQL closed the connection")
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        text = f"{text} ({state})"
        if state in _POOLER_STATES and ("prepared statement" in text or "startup parameter" in text):
            return _Translation(StoreFailed, f"{text}: {_POOLER_ADVICE}")
        return _Translation(_BY_STATE.get(state) or _BY_CLASS.get(state[:2], StatementFailed), text)
    if isinstance(error, TimeoutError):
        return _Translation(StoreTimeout, "no answer in time")
    # asyncpg's other errors: it was asked for something that it does not do.
    return _Translation(StoreFailed if isinstance(error, OSError) else StatementFailed, text)


def _is_closed(error: BaseException) -> bool:
    """Returns whether an error is the end of the connection, for which asyncpg has many errors, some of them its own.

    Its InternalClientError ("cannot switch to state ..") is of a connection that ended within a statement.
    """
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in _CLOSED_STATES
    if isinstance(error, asyncpg.InterfaceError):
        return "closed" in str(error)
    return isinstance(error, asyncpg.InternalClientError | ConnectionResetError | BrokenPipeError)


def _remove_values(error: Any) -> None:
    """Removes the values of a row that an error of asyncpg's quotes, since the log gets the error and its cause."""
    state_class = (error.sqlstate or "")[:2]
    if state_class in ("22", "23"):
        error.detail = None  # "Failing row contains (..)"
    if state_class == "22":  # "invalid input: .."
        error.args = (type(error).__name__,)


def is_outcome_unknown(error: BaseException) -> bool:
    """Returns whether it is unknown after an error if the statement was performed.

    An error that the server sends proves that it was not. Those of class 08 are the connection's, not the statement's.
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith("08")
    return isinstance(error, OSError | TimeoutError)


def is_refused_text(error: BaseException | None) -> bool:
    """Returns whether a statement was refused for U+0000 in a text, or for half a surrogate pair.

    It has done nothing.
    """
    if isinstance(error, asyncpg.CharacterNotInRepertoireError):
        return True
    return isinstance(error, asyncpg.DataError) and isinstance(error.__cause__, UnicodeEncodeError)


def is_stopping(error: StoreError) -> bool:
    """Returns whether nothing works after this error until a connection has been tried again."""
    return isinstance(error, _STOPPING_ERRORS)


def as_unavailable(error: StoreError) -> StoreUnavailable:
    """Returns the error as a state of the database: a database that refuses the gateway after it was open is broken."""
    if isinstance(error, StoreUnavailable):
        return error
    failure = StoreFailed(error.message)
    failure.__cause__ = error
    return failure
