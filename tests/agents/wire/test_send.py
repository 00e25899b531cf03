"""Sends: the messages or answers that they become."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.send import Send, UpdateMessage
from gateway.agents.wire.send_content import SendContent, read_new_text, read_send
from gateway.agents.wire.struct_fields import convert
from gateway.core.conversation.private import read_private, read_system_text
from gateway.errors import BadRequest


def read(**fields: Any) -> SendContent:
    return read_send(convert(fields, Send, ("body",)))


def test_input_is_one_message_of_the_user() -> None:
    assert read(input="Hi").messages == ({"role": "user", "content": "Hi"},)
    assert read(messages=[{"role": "user", "text": "Hi"}]).messages == ({"role": "user", "content": "Hi"},)
    parts = [{"type": "text", "text": "Hi"}]
    assert read(input=parts).messages == ({"role": "user", "content": "Hi"},)


def test_parts_become_those_of_chat_completions() -> None:
    parts = [
        {"type": "text", "text": "Look"},
        {"type": "image", "source": {"type": "base64", "data": "AA", "media_type": "image/png"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
    ]
    (message,) = read(messages=[{"role": "user", "content": parts}]).messages
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "image_url"]
    assert message["content"][1]["image_url"]["url"] == "data:image/png;base64,AA"


def test_a_system_message_goes_as_the_users_in_a_frame() -> None:
    (message,) = read(messages=[{"role": "system", "content": "Be brief."}]).messages
    assert message["role"] == "user"
    assert read_private(message)["shown"] == "system"
    assert read_system_text(message) == "Be brief."


def test_the_clients_ids_are_private() -> None:
    found = read(messages=[{"role": "user", "content": "Hi", "otid": "o1", "sender_id": "s1"}])
    assert found.otid == "o1"
    assert read_private(found.messages[0]) == {"otid": "o1", "sender": "s1"}


def test_answers_come_in_three_forms() -> None:
    approval = read(
        messages=[
            {
                "type": "approval",
                "approvals": [
                    {"type": "approval", "tool_call_id": "a", "approve": False, "reason": "No."},
                    {"tool_call_id": "b", "status": "success", "tool_return": "Fine.", "stdout": ["x", "y"]},
                ],
            }
        ]
    )
    denied, returned = approval.answers
    assert (denied.call_id, denied.approve, denied.reason, denied.result) == ("a", False, "No.", None)
    assert returned.result is not None
    assert returned.result["content"] == "Fine."
    assert read_private(returned.result)["stdout"] == "x\ny"
    (old,) = read(messages=[{"type": "approval", "approve": True, "approval_request_id": "m"}]).answers
    assert (old.call_id, old.approve) == (None, True)
    given = [{"type": "tool", "tool_call_id": "a", "status": "error", "tool_return": [{"text": "Bad."}]}]
    (result,) = read(messages=[{"type": "tool_return", "tool_returns": given}]).answers
    assert result.result is not None
    assert (result.result["content"], read_private(result.result)["status"]) == ("Bad.", "error")


def test_an_image_need_not_name_the_type_of_its_source() -> None:
    sources = [{"data": "aGk=", "media_type": "image/png"}, {"url": "https://a.example/b.png"}]
    images = [{"source": source} for source in sources]
    (message,) = read(messages=[{"role": "user", "content": images}]).messages
    urls = [part["image_url"]["url"] for part in message["content"]]
    assert urls == ["data:image/png;base64,aGk=", "https://a.example/b.png"]
    given = [{"tool_call_id": "a", "status": "success", "tool_return": images}]
    (result,) = read(messages=[{"type": "tool_return", "tool_returns": given}]).answers
    assert result.result is not None
    assert result.result["content"] == "[2 images omitted]"


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({}, ("body", "messages")),
        ({"messages": []}, ("body", "messages")),
        ({"messages": [{"type": "nonsense"}]}, ("body", "messages", 0, "type")),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user"}]},
            ("body", "messages", 1, "content"),
        ),
        ({"input": "x", "messages": [{"role": "user", "content": "a"}]}, ("body", "input")),
        ({"messages": [{"role": "user", "content": "a"}] * 1001}, ("body", "messages")),
        # Silence is no denial.
        ({"messages": [{"type": "approval"}]}, ("body", "messages", 0, "approvals")),
        ({"messages": [{"type": "approval", "approvals": []}]}, ("body", "messages", 0, "approvals")),
        (
            {"messages": [{"type": "tool_return", "tool_returns": []}]},
            ("body", "messages", 0, "tool_returns"),
        ),
    ],
)
def test_a_send_that_makes_no_sense_is_refused(fields: dict[str, Any], loc: tuple[Any, ...]) -> None:
    with pytest.raises(Unprocessable) as refusal:
        read(**fields)
    assert refusal.value.fault.path == loc


def test_an_image_is_nothing_a_system_message_can_say() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    with pytest.raises(BadRequest):
        read(messages=[{"role": "system", "content": [image]}])


def test_a_new_text_is_needed() -> None:
    assert (
        read_new_text(convert({"content": [{"type": "text", "text": "a"}]}, UpdateMessage, ("body",))) == "a"
    )
    with pytest.raises(Unprocessable):
        read_new_text(convert({}, UpdateMessage, ("body",)))
