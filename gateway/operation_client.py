"""Has operations performed by the process that serves the database, or by this one if there is none."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar

from gateway.core.json_object import without_none
from gateway.errors import BadRequest, DatabaseInUse, GatewayError
from gateway.loading import loading
from gateway.run.admin.command_line.printed import print_error
from gateway.run.admin.command_line.serving import ProcessGone, ServingProcess
from gateway.settings import Settings
from storage.errors import StoreError, StoreReadOnly
from storage.sqlite.lock import find_lock_owner

# Operations that make sense before the first `serve`: they may create the database.
_CREATES_DATABASE = ("keys-create", "memory-import")

# The seconds that a command waits for a gateway that starts, or for another command to end. A start takes a second, and
# several seconds on a busy machine.
START_S = 10.0
# The seconds between two attempts meanwhile.
START_POLL_S = 0.1
# Seconds after which a command prints that it waits. Commands and starts take less: it is mostly a gateway that drains.
_START_NOTED_S = 1.5

_Arguments = Mapping[str, Any]
T = TypeVar("T")


class OperationClient:
    """Has operations performed on the database that the settings name. All methods raise GatewayError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def perform(self, operation: str, arguments: _Arguments, answer_s: float | None = None) -> Any:
        """Asks the process that serves this database, or performs the operation here if there is none.

        arguments: the operation's arguments; an argument that is None counts as left out.
        answer_s: the most seconds that the answer of a serving process may take; None: `ANSWER_S`.
        """
        arguments = without_none(arguments)
        try:
            body = json.dumps(arguments, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            excerpt = error.object[max(error.start - 8, 0) : error.end]
            raise BadRequest(f"What was given is not UTF-8: {excerpt!r}.") from error
        return self.dispatch(
            lambda: self._perform_here(operation, arguments),
            lambda process: process.ask(operation, body, answer_s),
        )

    def dispatch(self, perform_here: Callable[[], T], ask: Callable[[ServingProcess], T]) -> T:
        """Has work done by the process that serves the database, or here if no process serves it.

        perform_here: a function that opens the database and does the work. If another command has the database open,
            this one waits for that command.
        ask: a function that has the work done by the process.
        """
        deadline = time.monotonic() + START_S
        is_noted = False
        while True:
            if (process := self.find_process(deadline)) is not None:
                with suppress(ProcessGone):
                    return ask(process)
            try:
                return perform_here()
            except DatabaseInUse:
                # Another one was faster: a command that soon ends, or a gateway that starts or has begun to stop.
                now = time.monotonic()
                if now > deadline:
                    raise
                if not is_noted and now > deadline - START_S + _START_NOTED_S:
                    is_noted = True
                    print_error(f"waiting up to {START_S:g} s for the process that has the database to end")
                time.sleep(START_POLL_S)

    def _perform_here(self, operation: str, arguments: _Arguments) -> Any:
        """Performs an operation on the database itself."""
        database = self._settings.database
        has_database = database.url is not None or os.path.exists(database.path)
        if operation not in _CREATES_DATABASE and not has_database:
            raise GatewayError(
                f"There is no database at {database.shown}; --db or database.path says where it is."
            )
        with loading():
            from gateway.offline_work import perform_operation

        answer = asyncio.run(perform_operation(self._settings, operation, arguments))
        if not has_database:
            print(f"There was no database: {database.shown} is new.", file=sys.stderr)
        return answer

    def find_process(self, deadline: float | None = None) -> ServingProcess | None:
        """Returns the process that serves this database; None: no process serves it.

        The database's lock decides whether there is such a process: a process that was killed leaves its file, and
        another program may have its port by now. A process that starts takes the lock before it writes its file, so
        this method waits for the file.

        deadline: the time, by `time.monotonic`, until which the method waits; None: `START_S` from now.

        Raises: GatewayError: the database is another account's.
        """
        database = self._settings.database
        if database.url is not None:
            return None
        deadline = time.monotonic() + START_S if deadline is None else deadline
        try:
            while find_lock_owner(database.path) is not None:
                process = ServingProcess.find(database.path)
                if process is not None or time.monotonic() > deadline:
                    return process
                time.sleep(START_POLL_S)
        except StoreReadOnly as error:
            raise GatewayError(error.message) from error
        except StoreError:
            return None
        return None

    def read_pages(
        self, operation: str, arguments: _Arguments, cursor: Literal["from", "after"] = "from"
    ) -> Iterator[Any]:
        """Yields the answers of an operation that answers page by page. cursor: the name of the argument for `next`."""
        page = self.perform(operation, arguments)
        yield page
        while page["next"] is not None:
            page = self.perform(operation, {**arguments, cursor: page["next"]})
            yield page

    def read_records(self, operation: str, arguments: _Arguments) -> list[dict[str, Any]]:
        """Returns all records of a list."""
        return [record for page in self.read_pages(operation, arguments, "after") for record in page["data"]]
