"""The table of operations: what the command line gets for an error of the store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import Conflict, GatewayError, MemoryUnavailable, UnknownId
from gateway.run.admin.operation_table import OperationTable
from storage.errors import NotFound, RecordChanged, StaleWrite, StoreError, StoreFull


@pytest.mark.parametrize(
    ("error", "expected", "message", "retry_after_s"),
    [
        # Another try would find the same.
        (NotFound("this memory is gone"), UnknownId, "This memory is gone.", None),
        (RecordChanged("the block was changed"), Conflict, "The block was changed.", None),
        (StaleWrite("it was forgotten meanwhile"), Conflict, "It was forgotten meanwhile.", None),
        # The operator may read which file has no room.
        (StoreFull("mem.db: no room"), MemoryUnavailable, "mem.db: no room", 1.0),
    ],
)
def test_an_error_of_the_store_says_whether_another_try_may_help(
    error: StoreError, expected: type[GatewayError], message: str, retry_after_s: float | None
) -> None:
    async def fail(_: Any) -> None:
        raise error

    with pytest.raises(GatewayError) as caught:
        asyncio.run(OperationTable({"memory-export": fail}).perform("memory-export", {}))
    assert (type(caught.value), caught.value.message) == (expected, message)
    assert caught.value.retry_after_s == retry_after_s
