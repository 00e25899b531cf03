"""The numbers of tokens in a usage."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.token_counts import read_token_count


@pytest.mark.parametrize(
    ("value", "count"),
    [(7, 7), ("7", 7), (7.0, 7), (7.5, 0), (-1, 0), ("many", 0), (None, 0), (True, 0), (1 << 41, 0)],
)
def test_a_value_that_is_no_number_of_tokens_is_none(value: Any, count: int) -> None:
    found = read_token_count({"tokens": value}, "tokens")
    assert (found, type(found)) == (count, int)
