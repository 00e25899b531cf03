"""The tokens of a reply are read in whichever dialect it is, and the text of one that reports none is measured."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.core.usage.reply_facts import NO_FACTS, read_facts
from gateway.core.usage.reported import (
    MAX_HELD_BYTES,
    MAX_PARSED_BYTES,
    UsageReader,
    costs_tokens,
    find_reported_counts,
)
from storage.run_records import TokenCounts

CHAT = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60},
    "completion_tokens_details": {"reasoning_tokens": 7},
}
RESPONSE = {
    "input_tokens": 100,
    "output_tokens": 20,
    "input_tokens_details": {"cached_tokens": 60},
    "output_tokens_details": {"reasoning_tokens": 7},
}
ALL = TokenCounts(100, 20, 60, 0, 7)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (CHAT, ALL),
        (RESPONSE, ALL),
        # Anthropic's input is without what is read from and written to the cache.
        (
            {
                "input_tokens": 30,
                "output_tokens": 20,
                "cache_read_input_tokens": 60,
                "cache_creation_input_tokens": 10,
            },
            TokenCounts(100, 20, 60, 10, 0),
        ),
        # What Claude bills apart from its totals, and what it does not bill.
        (
            {
                "input_tokens": 23,
                "output_tokens": 10,
                "iterations": [
                    {
                        "type": "compaction",
                        "input_tokens": 80,
                        "cache_read_input_tokens": 100,
                        "output_tokens": 35,
                    },
                    {"type": "advisor_message", "model": "other", "input_tokens": 5, "output_tokens": 4},
                    {"type": "fallback_message", "input_tokens": 9, "output_tokens": 9},
                    {"type": "message", "input_tokens": 23, "output_tokens": 10},
                    "?",
                ],
            },
            TokenCounts(208, 49, 100),
        ),
        # Gemini and xAI count thoughts in the total, and not among the completion.
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 7,
                "total_tokens": 42,
                "completion_tokens_details": {"reasoning_tokens": 26},
            },
            TokenCounts(9, 33, 0, 0, 26),
        ),
        ({"completion_tokens": 1, "prompt_tokens": 9, "total_tokens": 103}, TokenCounts(9, 94)),
        ({"completion_tokens": 8, "total_tokens": 103}, TokenCounts(0, 8)),
        ({"completion_tokens": 8, "prompt_tokens": 9, "total_tokens": 0}, TokenCounts(9, 8)),
        ({"prompt_tokens": 5, "total_tokens": 5}, TokenCounts(5)),
        ({"total_tokens": 5}, TokenCounts(5)),
        # A transcription that is billed by its length.
        ({"type": "duration", "seconds": 3}, None),
        (None, None),
        ("12", None),
        ({"prompt_tokens": -1, "completion_tokens": "x"}, None),
        ({"prompt_tokens": "9", "completion_tokens": 8.0, "total_tokens": 1e400}, TokenCounts(9, 8)),
        ({"prompt_tokens": "9" * 9_000, "completion_tokens": 8.5, "total_tokens": "17"}, None),
        # Zeros stand for tokens that were not counted.
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"input_tokens": 0, "output_tokens": 0}, None),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cache_write_tokens": 2}}, TokenCounts(5, 0, 0, 2)),
        ({"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 3}, TokenCounts(5, 1, 3)),  # Kimi
        ({"prompt_tokens": 5, "completion_tokens": 1, "prompt_cache_hit_tokens": 3}, TokenCounts(5, 1, 3)),
        (
            {"prompt_tokens": 5, "prompt_tokens_details": [], "completion_tokens_details": "none"},
            TokenCounts(5),
        ),
    ],
)
def test_each_dialect_reports_the_same(usage: Any, counts: TokenCounts | None) -> None:
    assert find_reported_counts(usage) == counts


def events(*data: Any) -> bytes:
    return b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in data)


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/chat/completions", events({"choices": [], "usage": None}, {"choices": [], "usage": CHAT})),
        # Kimi's and Groq's.
        ("/chat/completions", events({"choices": [{"finish_reason": "stop", "usage": CHAT}]})),
        ("/chat/completions", events({"choices": [{"delta": {}}], "x_groq": {"id": "1", "usage": CHAT}})),
        (
            "/responses",
            events(
                {"type": "response.created", "response": {"usage": None}},
                {"type": "response.completed", "response": {"id": "r", "usage": RESPONSE}},
            ),
        ),
        (
            "/messages?beta=true",
            events(
                {"type": "message_start", "message": {"usage": {"input_tokens": 40, "output_tokens": 1}}},
                {"type": "message_delta", "usage": {"output_tokens": 20, "cache_read_input_tokens": 60}},
            ),
        ),
    ],
)
def test_a_stream_is_read_wherever_its_dialect_puts_the_usage(path: str, stream: bytes) -> None:
    reader = UsageReader(path)
    for event in stream.splitlines(keepends=True):
        reader.read_events(event)
    assert reader.counts is not None
    assert reader.counts[:3] == (100, 20, 60)


def test_a_stream_with_half_a_character_is_read() -> None:
    """Upstreams that cut a text by its tokens write such halves."""
    reader = UsageReader("/responses")
    reader.read_events(rb'data: {"response":{"output":["\ud83d"],"usage":%b}}' % orjson.dumps(RESPONSE))
    assert reader.counts is not None


def test_the_text_of_the_model_is_measured_in_characters() -> None:
    reader = UsageReader("/chat/completions")
    reader.read_events(events({"choices": [{"delta": {"role": "assistant", "content": 'ä "b"\n'}}]}))
    reader.read_events(events({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": '{"a'}}]}}]}))
    assert (reader.counts, reader.char_count) == (None, 9)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "four"},
        {"refusal": "four"},
        {"reasoning_content": "four"},
        {"reasoning": "four"},
        {"reasoning": "four", "reasoning_content": "four"},
        {"audio": {"id": "a", "transcript": "four"}},
        {"function_call": {"name": "f", "arguments": "our"}},
        {"tool_calls": [{"function": {"name": "f", "arguments": "our"}}]},
        {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "our"}}]},
    ],
)
def test_each_field_in_which_an_upstream_sends_a_reply_is_measured(delta: dict[str, Any]) -> None:
    reader = UsageReader("/chat/completions")
    reader.read_events(events({"choices": [{"delta": delta}]}))
    assert reader.char_count == 4


def test_the_whole_of_a_long_stream_is_measured() -> None:
    reader = UsageReader("/chat/completions")
    event = events({"choices": [{"delta": {"content": "word "}}]})
    count = 2 * MAX_HELD_BYTES // len(event) + 1
    for _ in range(count):
        reader.read_events(event)
    assert reader.char_count == 5 * count


def test_a_usage_in_an_event_that_is_no_object_is_none() -> None:
    reader = UsageReader("/chat/completions")
    reader.read_events(events([{"usage": CHAT}]))
    assert reader.counts is None


def test_text_that_looks_like_usage_is_text() -> None:
    reader = UsageReader("/chat/completions")
    reader.read_events(events({"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 9}'}}]}))
    assert reader.counts is None


@pytest.mark.parametrize("is_first", [True, False])
def test_only_the_ends_of_a_large_body_are_searched(is_first: bool) -> None:
    vectors = {"data": [{"embedding": [0.25] * 30_000}]}
    usage = {"usage": {"prompt_tokens": 8, "total_tokens": 8}}
    body = orjson.dumps({**usage, **vectors} if is_first else {**vectors, **usage})
    assert len(body) > MAX_PARSED_BYTES
    whole, pieces = UsageReader("/embeddings"), UsageReader("/embeddings")
    whole.read_body(body)
    for at in range(0, len(body), 1000):
        pieces.read_piece(body[at : at + 1000])
    pieces.end()
    assert whole.counts == pieces.counts == TokenCounts(8)


def test_only_calls_that_have_a_model_work_cost_tokens() -> None:
    assert costs_tokens("POST", "/messages?beta=true")
    assert costs_tokens("POST", "/videos/video_1/remix")
    assert not costs_tokens("GET", "/videos/video_1/content")
    assert not costs_tokens("GET", "/responses/resp_1")
    assert not costs_tokens("POST", "/messages/count_tokens")
    assert not costs_tokens("POST", "/batches")


@pytest.mark.parametrize(
    "body",
    [b'{"a": ' + b"[" * 2_000 + b"]" * 2_000 + b"}", b'{"usage": {"a": "\xff"}}', b"\xff\xfb\x90"],
    ids=["deep", "not UTF-8", "audio"],
)
def test_a_body_that_cannot_be_read_reports_nothing(body: bytes) -> None:
    reader = UsageReader("/embeddings")
    reader.read_body(body)
    assert (reader.counts, read_facts([body])) == (None, NO_FACTS)
