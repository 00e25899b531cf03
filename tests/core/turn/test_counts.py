"""The tokens of a call: as the upstream counted them, whatever it put there."""

from __future__ import annotations

import pytest

from gateway.core.turn.ledger import counts_or_zeros
from storage.records import TokenCounts


def test_each_count_is_taken_from_its_place() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert counts_or_zeros(usage) == TokenCounts(5, 4, 3, 2, 1)


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": "5", "prompt_tokens_details": [], "completion_tokens_details": "none"}],
)
def test_what_is_no_count_counts_nothing(usage: dict[str, object] | None) -> None:
    assert counts_or_zeros(usage) == TokenCounts()
