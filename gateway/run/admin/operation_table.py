"""The table of operations that the process which owns the database performs for an operator: JSON in, JSON out.

The command line calls the table directly if no process serves, else over the owner's admin route.
gateway/operations.py fills the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.errors import MemoryUnavailable, UnknownPath
from gateway.run.admin.operation_arguments import RawArguments
from gateway.run.store_errors import make_record_error
from storage.errors import StoreError

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
        except StoreError as error:
            # The operator may read the store's message, which can name a file or a server.
            unavailable = MemoryUnavailable(error.message, retry_after_s=1.0)
            raise make_record_error(error, error.message) or unavailable from error
