"""The usage of a reply that several rounds made."""

from __future__ import annotations

from typing import Any

from gateway.core.turn.draft import MessageDraft
from gateway.core.turn.ledger import EMPTY_LEDGER, Ledger


def after(usage: dict[str, Any] | None, text: str = "") -> Ledger:
    """The ledger of one complete round."""
    draft = MessageDraft()
    draft.add({"content": text})
    draft.add_usage(usage)
    return EMPTY_LEDGER.with_round(draft, len)


def turn_usage(ledger: Ledger, last: dict[str, Any]) -> dict[str, Any]:
    found = ledger.make_turn_usage(last)
    assert found is not None
    return found


def test_the_last_prompt_and_all_completions() -> None:
    first = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    last = {
        "prompt_tokens": 30,
        "completion_tokens": 5,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 9},
        "completion_tokens_details": {"reasoning_tokens": 2, "x": "y"},
        "x": 1,
    }
    assert turn_usage(after(first), last) == {
        "prompt_tokens": 30,
        "completion_tokens": 7,
        "total_tokens": 37,
        "prompt_tokens_details": {"cached_tokens": 9},
        "completion_tokens_details": {"reasoning_tokens": 3, "x": "y"},
        "x": 1,
        "mnemogate_billed": {"prompt_tokens": 40, "completion_tokens": 7, "rounds": 2},
    }
    assert first["completion_tokens"] == 2


def test_details_of_one_round_alone_stay() -> None:
    first = {"completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}
    assert turn_usage(after(first), {"completion_tokens": 3})["completion_tokens_details"] == {
        "reasoning_tokens": 1
    }


def test_details_that_a_round_reports_as_null_count_as_none() -> None:
    first = {
        "completion_tokens": 2,
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": None},
    }
    last = {
        "completion_tokens": 3,
        "completion_tokens_details": {"reasoning_tokens": None, "audio_tokens": None},
    }
    assert turn_usage(after(first), last)["completion_tokens_details"] == {
        "reasoning_tokens": 1,
        "audio_tokens": None,
    }


def test_the_usage_of_a_single_round_is_reported_as_it_came() -> None:
    usage = {"prompt_tokens": 3, "total_tokens": "odd"}
    assert EMPTY_LEDGER.make_turn_usage(usage) is usage


def test_a_round_without_usage_is_estimated() -> None:
    ledger = after(None, "hello")
    assert (ledger.usage, ledger.completion_tokens) == (None, 5)
    assert turn_usage(ledger, {"prompt_tokens": 1, "completion_tokens": 2})["completion_tokens"] == 7


def test_a_value_that_is_no_count_adds_nothing() -> None:
    first = {"completion_tokens": 2**64 - 1, "completion_tokens_details": {"reasoning_tokens": 2**64 - 1}}
    last = {"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}
    told = turn_usage(after(first), last)
    assert (told["completion_tokens"], told["completion_tokens_details"]) == (3, {"reasoning_tokens": 2})


def test_thoughts_that_an_upstream_counts_apart_are_a_part_of_the_completion() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "total_tokens": 42,
        "completion_tokens_details": {"reasoning_tokens": 26},
    }
    told = turn_usage(after(usage), usage)
    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == (9, 66, 75)
    assert told["completion_tokens_details"] == {"reasoning_tokens": 52}
