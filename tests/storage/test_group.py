"""The decorators that make operations to methods of a group."""

import inspect

import pytest

from storage.database import Connection
from storage.sql import group


@pytest.mark.parametrize("name", ["reads", "long_reads", "writes", "bulk_writes", "makes_effect"])
def test_a_method_has_the_name_and_docstring_of_its_operation_but_not_its_connection(name: str) -> None:
    async def count(self: group.StoreGroup, connection: Connection, agent_row: int) -> int:
        """Returns how many there are."""
        raise NotImplementedError

    method = getattr(group, name)(count)
    assert (method.__name__, method.__qualname__) == ("count", count.__qualname__)
    assert method.__doc__ == "Returns how many there are."
    assert "connection" not in inspect.signature(method).parameters


@pytest.mark.parametrize("name", ["as_method", "as_locking_method"])
def test_a_method_of_a_function_has_its_name_and_docstring(name: str) -> None:
    async def count_words(connection: Connection, agent_row: int) -> int:
        """Returns how many words there are."""
        raise NotImplementedError

    method = group.reads(getattr(group, name)(count_words))
    assert (method.__name__, method.__doc__) == ("count_words", "Returns how many words there are.")
