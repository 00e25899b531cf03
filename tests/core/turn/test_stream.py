"""Deltas into messages: what one reply of a model says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gateway.core.turn.chunks import has_content, make_chunk
from gateway.core.turn.draft import MessageDraft, join_messages, read_generated_text
from gateway.core.turn.tool_call import CallOwner, ToolCall, decide_owner

NAMES = {"memory_insert", "memory_insert_all", "search"}


def draft_of(*deltas: dict[str, Any], ours: frozenset[str] = frozenset()) -> MessageDraft:
    draft = MessageDraft()
    for delta in deltas:
        draft.add(delta)
        if "tool_calls" in delta:
            draft.add_calls(delta["tool_calls"], ours, is_over=False)
    return draft


class TestManyPieces:
    """Each takes as long as the first: of twenty megabytes in pieces there would be no end otherwise."""

    def test_texts_within_other_fields_are_continued(self) -> None:
        draft = MessageDraft()
        for _ in range(200_000):
            draft.add({"reasoning_details": [{"index": 0, "type": "text", "text": "x" * 100}]})
        (item,) = draft.make_message()["reasoning_details"]
        assert item == {"index": 0, "type": "text", "text": "x" * 20_000_000}

    def test_items_of_a_list_are_continued_near_its_end(self) -> None:
        draft = MessageDraft()
        for n in range(200_000):
            draft.add({"reasoning_details": [{"index": n, "type": "text", "text": "a"}]})
        draft.add({"reasoning_details": [{"index": n, "text": "b"} for n in (0, 199_950)]})
        items = draft.make_message()["reasoning_details"]
        assert len(items) == 200_001
        assert [items[n]["text"] for n in (0, 199_950, 200_000)] == ["a", "ab", "b"]


class TestMessages:
    def test_text_is_continued_and_names_are_replaced(self) -> None:
        draft = draft_of(
            {"role": "assistant", "content": "Hel", "x": "a", "refusal": None},
            {"role": "assistant", "content": "lo", "x": "b", "annotations": [{"n": 1}]},
            {"annotations": [{"n": 2}], "audio": {"id": "au", "data": "AA"}},
            {"audio": {"id": "au", "data": "BB", "expires_at": 5}},
        )
        assert draft.make_message() == {
            "role": "assistant",
            "content": "Hello",
            "x": "ab",
            "refusal": None,
            "annotations": [{"n": 1}, {"n": 2}],
            "audio": {"id": "au", "data": "AABB", "expires_at": 5},
        }

    def test_content_in_parts_and_content_in_text_are_both_retained(self) -> None:
        thinking = [{"type": "thinking", "thinking": "hm"}]
        draft = draft_of({"content": thinking}, {"content": "So"}, {"content": "."})
        assert draft.make_message()["content"] == [*thinking, {"type": "text", "text": "So."}]

    @pytest.mark.parametrize("role", ["user", "system", "", None, 7, ["assistant"], {"a": 1}])
    def test_a_reply_is_the_assistants_whatever_its_upstream_calls_it(self, role: Any) -> None:
        assert draft_of({"role": role, "content": "Hi"}).make_message() == {
            "role": "assistant",
            "content": "Hi",
        }

    def test_content_is_null_only_with_calls(self) -> None:
        """The real API refuses an assistant message that has neither."""
        assert draft_of({"role": "assistant", "content": None}).make_message()["content"] == ""
        draft = draft_of(
            {"content": ""}, {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}
        )
        assert draft.make_message(draft.calls) == {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        }

    def test_other_fields_of_a_call_are_retained(self) -> None:
        signature = {"google": {"thought_signature": "s"}}
        first = {"index": 0, "id": "a", "type": "function", "extra_content": signature}
        draft = draft_of(
            {"tool_calls": [{**first, "function": {"name": "f", "arguments": "{", "strict": True}}]},
            {"tool_calls": [{"index": 0, "id": "", "type": None, "function": {"arguments": "}"}}]},
            {"tool_calls": [{"index": 0, "id": "", "type": "", "function": {"arguments": ""}}]},
        )
        assert draft.make_message(draft.calls)["tool_calls"] == [
            {
                "type": "function",
                "id": "a",
                "extra_content": signature,
                "function": {"strict": True, "name": "f", "arguments": "{}"},
            }
        ]

    def test_arguments_that_come_as_an_object_become_text(self) -> None:
        draft = draft_of({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]})
        assert draft.calls[0].arguments_text == '{"x":1}'

    def test_merging_a_chunk_does_not_change_the_sent_chunk(self) -> None:
        """A draft grows; the chunk its beginning came in may still have to leave as it was."""
        delta = {"audio": {"data": "A"}, "list": [{"index": 0, "text": "a"}]}
        before = orjson.dumps(delta)
        draft = draft_of(delta, {"audio": {"data": "B"}, "list": [{"index": 0, "text": "b"}]})
        assert orjson.dumps(delta) == before
        assert draft.make_message()["list"] == [{"index": 0, "text": "ab"}]

    def test_messages_said_one_after_the_other_are_joined(self) -> None:
        call = {"id": "t"}
        messages: list[dict[str, Any]] = [
            {"role": "assistant", "content": "A", "reasoning_content": "x"},
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "B", "reasoning_content": "y", "tool_calls": [call]},
        ]
        assert join_messages(messages) == {
            "role": "assistant",
            "content": "A B",
            "reasoning_content": "x\n\ny",
            "tool_calls": [call],
        }
        parts: list[dict[str, Any]] = [
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
            {"content": "B"},
        ]
        assert [part["text"] for part in join_messages(parts)["content"]] == ["A", "B"]

    def test_thoughts_that_are_no_text_are_joined_as_other_fields(self) -> None:
        thoughts: list[dict[str, Any]] = [{"reasoning": ["a"]}, {"reasoning": ["b"]}]
        assert join_messages(thoughts)["reasoning"] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"reasoning_content": "Hm. "}, "Hm. Yes"),
        ({"reasoning": "Hm. "}, "Hm. Yes"),
        ({"reasoning": "Hm. ", "reasoning_content": "Hm. "}, "Hm. Yes"),
        ({"refusal": " no"}, "Yes no"),
        ({"audio": {"id": "a", "data": "AAAA", "transcript": " sir"}}, "Yes sir"),
        ({"audio": None}, "Yes"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "Yesf{}"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, "x"]}, "Yesf{}"),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "in"}}]}, "Yesfin"),
    ],
)
def test_the_generated_text_of_a_message_has_all_that_its_model_wrote(
    fields: dict[str, Any], text: str
) -> None:
    assert read_generated_text({"role": "assistant", "content": "Yes", **fields}) == text


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        (
            [{"content": [{"type": "text", "text": "Ye"}]}, {"content": [{"type": "text", "text": "s"}]}],
            "Yes",
        ),
        (
            [
                {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]},
                {"content": [{"type": "thinking", "thinking": "."}]},
            ],
            "Hm.",
        ),
        ([{"reasoning": "Hm.", "reasoning_content": "Hm."}], "Hm."),
        ([{"function_call": {"name": "f"}}, {"function_call": {"arguments": "{}"}}], "f{}"),
        ([{"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "in"}}]}], "fin"),
    ],
)
def test_the_generated_text_of_a_draft_has_all_that_its_model_wrote(
    deltas: list[dict[str, Any]], text: str
) -> None:
    draft = draft_of(*deltas)
    assert (draft.read_generated_text(), draft.char_count) == (text, len(text))


@pytest.mark.parametrize(
    ("name", "is_complete", "owner"),
    [
        ("", False, CallOwner.UNKNOWN),
        ("memory", False, CallOwner.UNKNOWN),
        ("memory_insert", False, CallOwner.UNKNOWN),  # may go on
        ("memory_insert", True, CallOwner.GATEWAY),
        ("memory", True, CallOwner.CLIENT),
        ("memory_insert_al", False, CallOwner.UNKNOWN),
        ("memory_insert_also", False, CallOwner.CLIENT),
        ("get", False, CallOwner.CLIENT),
        ("", True, CallOwner.CLIENT),
    ],
)
def test_a_call_is_assigned_as_early_as_its_name_allows(
    name: str, is_complete: bool, owner: CallOwner
) -> None:
    call = ToolCall(0)
    call.name = name
    assert decide_owner(call, NAMES, is_complete=is_complete) is owner


def test_a_call_that_is_no_function_is_passed_on_at_once() -> None:
    draft, ours = MessageDraft(), frozenset({"memory_insert"})
    begun = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "memory_insert", "input": ""}}
    assert draft.add_calls([begun], ours, is_over=False) is None
    assert draft.add_calls([{"index": 0, "custom": {"input": "x"}}], ours, is_over=False) is None


def test_a_later_call_waits_for_one_whose_name_is_not_known() -> None:
    """Else its index would depend on how the bytes were cut."""
    draft, ours = MessageDraft(), frozenset({"memory_insert"})
    first = {"index": 0, "id": "a", "function": {"name": "mem", "arguments": ""}}
    second = {"index": 1, "id": "b", "function": {"name": "get", "arguments": "{}"}}
    assert draft.add_calls([first, second], ours, is_over=False) == []
    shown = draft.add_calls([{"index": 0, "function": {"name": "e"}}], ours, is_over=False)
    assert shown is not None
    assert [(call["index"], call["function"]["name"]) for call in shown] == [(0, "meme"), (1, "get")]


class Watched(list[ToolCall]):
    """A list that counts how often one of its calls is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[ToolCall]:
        for call in super().__iter__():
            self.looks += 1
            yield call

    def __getitem__(self, at: Any) -> Any:
        self.looks += 1
        return super().__getitem__(at)


@pytest.mark.parametrize("name", ["search", "get_weather"])
def test_each_call_is_looked_at_once_however_many_follow(name: str) -> None:
    draft = MessageDraft()
    draft.calls = watched = Watched()
    for n in range(100):
        piece = {"index": n, "id": f"c{n}", "function": {"name": name, "arguments": "{}"}}
        draft.add_calls([piece], NAMES, is_over=False)
    assert watched.looks <= 200


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None, "refusal": None, "tool_calls": []}, False),
        ({"content": "a"}, True),
        ({"reasoning_content": "a"}, True),
        ({"x": 1}, True),
    ],
)
def test_a_role_alone_is_no_content(delta: dict[str, Any], expected: bool) -> None:
    assert has_content(delta) is expected


def test_a_whole_reply_is_a_chunk_and_stays_what_it_was() -> None:
    body = {
        "id": "a",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"content": None, "tool_calls": [{"id": "c"}]}, "logprobs": None}
        ],
    }
    before = orjson.dumps(body)
    assert make_chunk(body) == {
        "id": "a",
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "logprobs": None,
                "delta": {"content": None, "tool_calls": [{"id": "c", "index": 0}]},
            }
        ],
    }
    assert orjson.dumps(body) == before


class Counted(int):
    """An index that counts how often it is compared."""

    compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other


def test_a_call_has_its_fields_in_the_order_in_which_they_came() -> None:
    """The bytes that stand in place of a message which its client left out are those that the client sent."""
    head = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": ""}}
    (call,) = draft_of({"tool_calls": [head]}).calls
    del head["index"]
    assert orjson.dumps(call.as_json()) == orjson.dumps(head)
    (untyped,) = draft_of({"tool_calls": [{**head, "index": 0, "type": None}]}).calls
    assert untyped.as_json()["type"] == "function"


def test_a_call_is_found_among_many_without_looking_at_each() -> None:
    draft = MessageDraft()
    for half in ('{"a": ', "1}"):
        for n in range(500):
            draft.add_call_piece({"index": Counted(n), "function": {"arguments": half}})
    assert Counted.compared < 2_000
    assert [call.arguments_text for call in draft.calls] == ['{"a": 1}'] * 500
