"""The table of operations that the process which owns the database performs for an operator: JSON in, JSON out.

The command line calls the table directly if no process serves, else over the owner's admin route.
gateway/operations.py fills the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.errors import Conflict, MemoryUnavailable, UnknownId, UnknownPath, make_sentence
from gateway.run.admin.operation_arguments import RawArguments
from storage.errors import NotFound, StaleWrite, StoreError, WriteConflict

_Perform = Callable[[RawArguments], Awaitable[Any]]


class OperationTable:
    """Performs operations by their names."""

    def __init__(self, operations: Mapping[str, _Perform]) -> None:
        self._operations = operations

    async def perform(self, name: str, raw: RawArguments) -> Any:
        """Performs one operation and returns its answer, which can be written as JSON.

        Raises: UnknownPath: there is no such operation; BadRequest; UnknownId: a record is gone; Conflict: it has
            changed; MemoryUnavailable: any other error of the store.
        """
        operation = self._operations.get(name)
        if operation is None:
            raise UnknownPath(
                f"There is no operation {name!r} here: the gateway and the command have different versions. "
                "Start the gateway again."
            )
        try:
            return await operation(raw)
        except NotFound as error:
            raise UnknownId(make_sentence(error.message)) from error
        except (WriteConflict, StaleWrite) as error:
            raise Conflict(make_sentence(error.message)) from error
        except StoreError as error:
            raise MemoryUnavailable(error.message, retry_after_s=1.0) from error
