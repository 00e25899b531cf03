"""Stored messages that any model and any upstream can take."""

from __future__ import annotations

from typing import Any

from gateway.core.conversation.portable_message import CLAUDE_FILES, make_portable_message

Json = dict[str, Any]
SIGNED = {"google": {"thought_signature": "EjQK"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAID: Json = {"role": "assistant", "content": "Hi", "reasoning": "Hm", "reasoning_content": "Hm"}
DETAILS = [{"type": "reasoning.encrypted", "data": "x", "index": 0}]


def test_another_model_sees_no_thoughts() -> None:
    said = {**SAID, "reasoning_details": DETAILS, "tool_calls": [{**CALL, "extra_content": SIGNED}]}
    assert make_portable_message(said) == {"role": "assistant", "content": "Hi", "tool_calls": [CALL]}


def test_another_model_sees_what_every_model_knows() -> None:
    words = {"type": "text", "text": "Hi"}
    message = {"role": "assistant", "content": [{"type": "thinking", "thinking": []}, words], "mnemogate": {}}
    extra = {"prefix": False, "annotations": [], "tool_calls": [{**CALL, "index": 0}]}
    assert make_portable_message({**message, **extra}) == {
        **message,
        "content": [words],
        "tool_calls": [CALL],
    }
    assert make_portable_message({**message, "content": message["content"][:1]})["content"] is None
    result = {"role": "tool", "tool_call_id": "a", "content": "Rain", "is_error": True}
    assert make_portable_message(result) == result


def test_another_model_sees_functions_called() -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "py", "input": 'print("hi")'}}
    said = {**SAID, "citations": [{"url": "x"}], "tool_calls": [custom, CALL, "no call"]}
    function = {"name": "py", "arguments": '{"input":"print(\\"hi\\")"}'}
    called = [{"id": "c", "type": "function", "function": function}, CALL, "no call"]
    assert make_portable_message(said) == {"role": "assistant", "content": "Hi", "tool_calls": called}


def test_a_file_in_claudes_form_becomes_text() -> None:
    file = {"type": "document", "source": {"type": "file", "file_id": "f"}}
    words = {"type": "text", "text": "Read it"}
    [read, given] = CLAUDE_FILES.replace_in({"role": "user", "content": [file, words]})["content"]
    assert (read["type"], given) == ("text", words)
    for message in ({"role": "user"}, {"role": "user", "content": "Read it"}):
        assert CLAUDE_FILES.replace_in(message) is message
