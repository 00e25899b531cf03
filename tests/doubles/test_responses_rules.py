"""The strict responses: what they send is what OpenAI's SDK has types for, and what OpenAI refuses they refuse."""

from __future__ import annotations

from typing import Any

import openai
import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.doubles.openai_rules import Refusal
from tests.doubles.responses_rules import (
    StoredResponses,
    call_item,
    message_item,
    reasoning_item,
    search_item,
)
from tests.doubles.upstream import StrictUpstream

Json = dict[str, Any]
ASKED: Json = {"model": "m", "input": "Hi"}
CALL: Json = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
THOUGHT: Json = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAAx"}
RESULT: Json = {"type": "function_call_output", "call_id": "c", "output": "Rain."}


@pytest.fixture
def account() -> StoredResponses:
    account = StoredResponses()
    custom = {"type": "custom_tool_call", "call_id": "call_2", "name": "shell", "input": "ls"}
    account.outputs.append(
        [reasoning_item("Hm, so."), search_item("cats"), message_item("Let me see."), call_item("f"), custom]
    )
    return account


def test_a_response_and_its_events_are_of_the_types_of_the_sdk(account: StoredResponses) -> None:
    events = account.answer({**ASKED, "stream": True})
    read: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    found = [read.validate_json(event.partition(b"data: ")[2]) for event in events]
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert found[-1].type == "response.completed"
    account.outputs.append([message_item("Hello.")])
    [whole] = account.answer(ASKED)
    assert Response.model_validate_json(whole).output_text == "Hello."


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": 1}, "Unknown parameter: 'seed'."),
        ({"include": ["thoughts"]}, "Invalid value: 'thoughts'."),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "Missing required parameter"),
        ({"tools": [{"type": "browser"}]}, "Invalid value: 'browser'."),
        ({"input": [{"role": "user", "content": "Hi", "name": "Ann"}]}, "Unknown parameter: 'input"),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            "Invalid value: 'text'.",
        ),
        ({"input": [{"type": "reasoning", "id": "rs_7", "summary": []}]}, "Item with id 'rs_7' not found."),
        ({"input": [{"type": "item_reference", "id": "msg_7"}]}, "Item with id 'msg_7' not found."),
        ({"input": [{"role": "assistant", "content": "Hi", "id": "resp_1"}]}, "Expected an ID that begins"),
        ({"input": [{**CALL, "id": "fc_1"}, RESULT, {**CALL, "id": "fc_1"}]}, "Duplicate item found"),
        ({"input": [{"type": "item_reference"}]}, "Missing required parameter: 'input.0..id'."),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "could not be verified"),
        ({"input": [RESULT]}, "No tool call found"),
        ({"input": [CALL, {"role": "user", "content": "Hi"}]}, "No tool output found"),
        ({"previous_response_id": "resp_9"}, "Previous response with id 'resp_9' not found."),
        ({"conversation": "conv_9"}, "Conversation with id 'conv_9' not found."),
        ({"conversation": "conv_9", "previous_response_id": "resp_9"}, "in conjunction with 'conversation'"),
        ({"input": []}, "empty array"),
        ({"input": 7}, "Invalid type for 'input'"),
        ({"input": [7]}, "Invalid type for 'input.0.'"),
        ({"input": [{"role": "user"}]}, "Missing required parameter: 'input.0..content'."),
        ({"input": [{"role": "tool", "content": "Hi"}]}, "Invalid value: 'tool'. Supported values are"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "'input.0..content.0..text'"),
        ({"input": [{**CALL, "call_id": "c" * 65}, RESULT]}, "string too long"),
        ({"input": [{**CALL, "arguments": {}}, RESULT]}, "Invalid type for 'input.0..arguments'"),
        ({"input": [THOUGHT]}, "without its required following item"),
        ({"input": [THOUGHT, {"role": "user", "content": "Hi"}]}, "without its required following item"),
        ({"truncation": "some"}, "Supported values are: 'auto', 'disabled'"),
        ({"include": "all"}, "Invalid type for 'include': expected an array"),
        ({"store": "no"}, "Invalid type for 'store': expected a boolean"),
        ({"temperature": 3}, "out of range"),
        ({"max_output_tokens": 1}, "out of range"),
        ({"metadata": {"a": 1}}, "Invalid type for 'metadata.a'"),
        ({"metadata": {str(n): "" for n in range(17)}}, "too many properties"),
        ({"safety_identifier": "u" * 65}, "string too long"),
        ({"reasoning": {"effort": "much"}}, "Invalid value: 'much'"),
        ({"text": {"format": {"type": ["text"]}}}, "Invalid type for 'text.format.type'"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "'text.format.schema'"),
        ({"background": True, "store": False}, "Background mode requires store=true."),
        ({"stream_options": {"include_obfuscation": False}}, "only allowed when 'stream' is enabled"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "'stream_options.include_usage'"),
        ({"tools": [{"type": "function", "name": "a b", "parameters": {}}]}, "does not match pattern"),
        (
            {"tools": [{"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "mcp"}]}]},
            "'tools.0..tools.0..type'|Invalid value: 'mcp'",
        ),
        ({"tools": [{"type": "mcp", "server_url": "https://a.b"}]}, "'tools.0..server_label'"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "'tools.0..server_url'"),
        (
            {"tools": [{"type": "mcp", "server_label": "a", "server_url": "b", "require_approval": "some"}]},
            "'some'",
        ),
        ({"tools": [{"type": "mcp", "server_label": "a", "server_url": "b", "url": "b"}]}, "'tools.0..url'"),
        ({"tools": [{"type": "image_generation", "quality": "best"}]}, "Invalid value: 'best'"),
        ({"tools": [{"type": "image_generation", "prompt": "A cat"}]}, "'tools.0..prompt'"),
        (
            {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "size": 1}}]},
            "container.size",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "detail": "auto"}]}]},
            "'input.0..content.0..image_url'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "filename": "a.pdf"}]}]},
            "'input.0..content.0..file_data'",
        ),
        (
            {"input": [CALL, {**RESULT, "output": [{"type": "output_text", "text": "Rain."}]}]},
            "Invalid value: 'output_text'",
        ),
        ({"input": [CALL, {**RESULT, "output": {"a": 1}}]}, "Invalid type for 'input.1..output'"),
        ({"tool_choice": "some"}, "Invalid value: 'some'"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "not found in 'tools'"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "'tool_choice.name'"),
        ({"tool_choice": "required"}, "must be specified with 'tools'"),
    ],
)
def test_requests_that_openai_refuses_are_refused(
    account: StoredResponses, wrong: Json, message: str
) -> None:
    with pytest.raises(Refusal, match=message):
        account.answer({**ASKED, **wrong})
    assert account.bodies == []


def test_an_item_needs_the_thoughts_before_it(account: StoredResponses) -> None:
    account.outputs.clear()
    account.outputs.append([reasoning_item("Hm."), call_item("f")])
    whole = orjson.loads(account.answer(ASKED)[0])
    [rs, call], result = whole["output"], {**RESULT, "call_id": "call_1"}
    with pytest.raises(Refusal, match=f"without its required 'reasoning' item: '{rs['id']}'"):
        account.answer({**ASKED, "input": [call, result]})
    account.answer({**ASKED, "input": [rs, call, result]})
    # What was not stored is gone on from by nobody.
    made = orjson.loads(account.answer({**ASKED, "store": False})[0])
    with pytest.raises(Refusal, match="not found"):
        account.answer({**ASKED, "previous_response_id": made["id"]})


def test_a_response_in_the_background_is_made_later(account: StoredResponses) -> None:
    account.outputs.clear()
    made = orjson.loads(account.answer({**ASKED, "background": True})[0])
    assert (made["status"], made["output"]) == ("queued", [])
    whole = account.answer_stored_response("GET", [made["id"]], "")
    assert whole is not None
    assert (whole["status"], whole["output"][0]["content"][0]["text"]) == ("completed", "Ok.")
    assert account.answer_stored_response("POST", [made["id"], "cancel"], "") == whole
    account.is_busy = True
    made = orjson.loads(account.answer({**ASKED, "background": True})[0])
    assert account.answer_stored_response("POST", [made["id"], "cancel"], "")["status"] == "cancelled"  # type: ignore[index]
    made = orjson.loads(account.answer(ASKED)[0])
    with pytest.raises(Refusal, match="Cannot cancel a synchronous response"):
        account.answer_stored_response("POST", [made["id"], "cancel"], "")


def test_input_and_reply_are_stored(upstream: StrictUpstream) -> None:
    sdk = openai.OpenAI(base_url=upstream.base_url, api_key="k", max_retries=0)
    made = sdk.responses.create(model="m", input="Hi")
    assert sdk.responses.retrieve(made.id) == made
    assert [item.type for item in sdk.responses.input_items.list(made.id)] == ["message"]
    conversation = sdk.conversations.create(items=[{"role": "user", "content": "I am Ann."}]).id
    sdk.responses.create(model="m", input="Hi", conversation=conversation)
    items = sdk.conversations.items.list(conversation, order="asc").to_dict()["data"]
    assert [item["content"][0]["text"] for item in items] == ["I am Ann.", "Hi", "Ok."]  # type: ignore[attr-defined]
    sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)
