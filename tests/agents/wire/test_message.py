"""Stored messages, as the agents API shows them."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.agents.wire.message import Envelope, Showing, render_messages
from gateway.core.conversation.private import make_framed_system_message, with_private

ENVELOPE = Envelope("message-x-1", 0.0, "run-r", "step-x-1")


def call(name: str, id: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(arguments).decode()},
    }


def kinds(message: dict[str, Any], showing: Showing | None = None, **options: Any) -> list[str]:
    return [
        each["message_type"] for each in render_messages(message, ENVELOPE, showing or Showing(), **options)
    ]


def test_a_reply_is_its_thoughts_its_text_and_its_calls() -> None:
    reply = {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": [call("a")]}
    found = render_messages(reply, ENVELOPE, Showing())
    assert [each["message_type"] for each in found] == [
        "reasoning_message",
        "assistant_message",
        "tool_call_message",
    ]
    assert {each["id"] for each in found} == {"message-x-1"}
    assert len({each["otid"] for each in found}) == 3
    assert found[0]["date"] == "1970-01-01T00:00:00.000000+00:00"


def test_thoughts_that_nobody_can_read_are_said_to_be_there() -> None:
    reply = {
        "role": "assistant",
        "content": "",
        "thinking_blocks": [{"type": "redacted_thinking", "data": "xyz"}],
    }
    (hidden,) = render_messages(reply, ENVELOPE, Showing())
    assert (hidden["message_type"], hidden["state"]) == ("hidden_reasoning_message", "redacted")


def test_words_that_a_call_says_are_text() -> None:
    reply = {"role": "assistant", "content": None, "tool_calls": [call("send_message", message="Hello.")]}
    (said,) = render_messages(reply, ENVELOPE, Showing())
    assert (said["message_type"], said["content"]) == ("assistant_message", "Hello.")
    assert kinds(reply, Showing(speaking_tool=None)) == ["tool_call_message"]
    result = {"role": "tool", "tool_call_id": "c1", "content": "Sent."}
    assert kinds(result, tool_names={"c1": "send_message"}) == []
    assert kinds(result, Showing(speaking_tool=None), tool_names={"c1": "send_message"}) == [
        "tool_return_message"
    ]


def test_a_call_that_is_nested_too_deeply_is_shown_as_it_came() -> None:
    deep = call("a")
    deep["function"]["arguments"] = '{"thinking":"Hm.","x":' + "[" * 300 + "]" * 300 + "}"
    reply = with_private(
        {"role": "assistant", "content": None, "tool_calls": [deep]}, asides={"a": ["thinking"]}
    )
    (shown,) = render_messages(reply, ENVELOPE, Showing())
    assert shown["tool_call"]["arguments"] == deep["function"]["arguments"]


def test_calls_that_wait_are_a_request() -> None:
    reply = {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b", "c2")]}
    runs, waits = render_messages(reply, ENVELOPE, Showing(), waiting={"c1": "approval", "c2": "held"})
    assert (waits["message_type"], waits["tool_call"]["tool_call_id"]) == ("approval_request_message", "c1")
    assert (runs["message_type"], runs["tool_call"]["tool_call_id"]) == ("tool_call_message", "c2")


def test_a_result_shows_its_status_and_output() -> None:
    result = with_private(
        {"role": "tool", "tool_call_id": "c1", "content": "No."},
        status="error",
        stderr="a\nb",
        approval="denied",
    )
    answer, returned = render_messages(result, ENVELOPE, Showing(), tool_names={"c1": "a"})
    assert answer["message_type"] == "approval_response_message"
    assert (returned["status"], returned["stderr"], returned["name"]) == ("error", ["a", "b"], "a")
    assert returned["tool_returns"][0]["tool_call_id"] == "c1"


def test_an_answer_says_whether_it_was_allowed() -> None:
    for approval, approve in (("approved", True), ("denied", False)):
        message = with_private({"role": "tool", "tool_call_id": "c1", "content": ""}, approval=approval)
        assert render_messages(message, ENVELOPE, Showing())[0]["approve"] is approve


def test_the_speaker_is_shown() -> None:
    assert kinds({"role": "user", "content": "Hi"}) == ["user_message"]
    (system,) = render_messages(
        make_framed_system_message("Be brief.", sender="agent-1"), ENVELOPE, Showing()
    )
    assert (system["message_type"], system["content"], system["sender_id"]) == (
        "system_message",
        "Be brief.",
        "agent-1",
    )


def test_images_come_back_as_they_were_sent() -> None:
    parts = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]
    (message,) = render_messages({"role": "user", "content": parts}, ENVELOPE, Showing())
    assert message["content"][1]["source"] == {"type": "base64", "media_type": "image/png", "data": "AA"}


def test_an_empty_text_among_parts_is_none_of_another_kind() -> None:
    parts = [
        {"type": "text", "text": ""},
        {"type": "refusal", "refusal": "No."},
        {"type": "input_audio", "input_audio": {}},
    ]
    (message,) = render_messages({"role": "user", "content": parts}, ENVELOPE, Showing())
    assert [each["text"] for each in message["content"]] == ["", "No.", "[input_audio]"]


def test_types_that_are_not_wanted_stay_out() -> None:
    reply = {"role": "assistant", "content": "Well.", "tool_calls": [call("a")]}
    (found,) = render_messages(reply, ENVELOPE, Showing(types=frozenset({"tool_call_message"})))
    assert found["otid"] == "message-x-1:1"
