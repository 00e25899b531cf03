"""Items of a Responses request, and the messages that say the same."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.json_limits import MAX_VALUES
from gateway.dialects.responses.call_form import UpstreamTools
from gateway.dialects.responses.input import read_items
from gateway.dialects.responses.sealed import SEALED_PREFIX, seal
from gateway.errors import BadRequest, BodyTooLarge
from tests.rows import each_row

Json = dict[str, Any]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def said(text: str) -> Json:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}


def refusal(text: str) -> Json:
    return {"role": "assistant", "content": [{"type": "refusal", "refusal": text}]}


def call(id: str, name: str = "f") -> Json:
    return {"type": "function_call", "id": f"fc_{id}", "call_id": id, "name": name, "arguments": "{}"}


def result(id: str, output: Any = "done") -> Json:
    return {"type": "function_call_output", "call_id": id, "output": output}


def thoughts(**fields: Any) -> Json:
    sealed = seal(fields)
    return {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}


def function(id: str, name: str = "f") -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def tool(id: str, content: Any = "done") -> Json:
    return {"role": "tool", "tool_call_id": id, "content": content}


def reply(content: str | None, *calls: Json, **fields: Any) -> Json:
    return {"role": "assistant", "content": content, **fields, **({"tool_calls": [*calls]} if calls else {})}


@each_row(
    ("items", "messages"),
    [
        ("Hi", [user("Hi")]),
        ([user("Hi"), said("Hello."), user("Bye")], [user("Hi"), reply("Hello."), user("Bye")]),
        ([{"role": "assistant", "content": "Hello."}], [reply("Hello.")]),
        ([said("One."), said("Two.")], [reply("One."), reply("Two.")]),
        (
            [call("1"), call("2"), result("1"), result("2")],
            [reply(None, function("1"), function("2")), tool("1"), tool("2")],
        ),
        ([said("So."), call("1"), result("1")], [reply("So.", function("1")), tool("1")]),
        # Results follow their calls, whatever was said after these.
        ([call("1"), said("So."), result("1")], [reply("So.", function("1")), tool("1")]),
        (
            [said("So, "), call("1"), said("wait."), result("1")],
            [reply("So, wait.", function("1")), tool("1")],
        ),
        (
            [call("1"), result("1"), call("2"), result("2")],
            [reply(None, function("1")), tool("1"), reply(None, function("2")), tool("2")],
        ),
        # A message may come while a tool is running.
        (
            [call("1"), call("2"), result("1"), user("Hi"), result("2"), user("Bye")],
            [reply(None, function("1"), function("2")), tool("1"), tool("2"), user("Hi"), user("Bye")],
        ),
        (
            [call("1"), user("Hi"), call("2"), result("2"), said("So."), result("1"), result("9")],
            [
                *(reply(None, function("1")), tool("1"), user("Hi")),
                *(reply(None, function("2")), tool("2"), reply("So."), tool("9")),
            ],
        ),
        ([thoughts(reasoning_content="Hm."), said("So.")], [reply("So.", reasoning_content="Hm.")]),
        (
            [thoughts(reasoning_content="Hm."), call("1")],
            [reply(None, function("1"), reasoning_content="Hm.")],
        ),
        (
            [thoughts(thinking_blocks=[1]), call("1"), thoughts(thinking_blocks=[2]), call("2")],
            [reply(None, function("1"), function("2"), thinking_blocks=[1, 2])],
        ),
        # A reply may think between its words, and before its calls.
        (
            [thoughts(thinking_blocks=[1]), said("So."), thoughts(thinking_blocks=[2]), said("Yes.")],
            [reply("So. Yes.", thinking_blocks=[1, 2])],
        ),
        (
            [said("So."), thoughts(reasoning_content="Hm."), call("1")],
            [reply("So.", function("1"), reasoning_content="Hm.")],
        ),
        (
            [call("1"), said("So."), refusal("No.")],
            [reply("So.", function("1"), refusal="No.")],
        ),
        ([refusal("No.")], [reply(None, refusal="No.")]),
        # Two of no form that could go on; and one that says nothing.
        (
            [thoughts(reasoning={"a": 1}), thoughts(reasoning={"b": 2}), call("1")],
            [reply(None, function("1"), reasoning={"b": 2})],
        ),
        ([thoughts(reasoning=None), said("So.")], [reply("So.")]),
        # Of which no reply came.
        ([thoughts(reasoning_content="Hm."), user("Hi"), said("So.")], [user("Hi"), reply("So.")]),
        # OpenAI's own, which nobody else can read; and fields that no thought has.
        (
            [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAA"}, said("So.")],
            [reply("So.")],
        ),
        ([thoughts(role="system"), said("So.")], [reply("So.")]),
        (
            [{"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}],
            [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}],
        ),
        (
            [result("1", [{"type": "input_text", "text": "ok"}])],
            [tool("1", [{"type": "text", "text": "ok"}])],
        ),
        (
            [
                {"type": "custom_tool_call", "call_id": "1", "name": "py", "input": "1+1"},
                {"type": "custom_tool_call_output", "call_id": "1", "output": "2"},
            ],
            [
                reply(None, {"id": "1", "type": "custom", "custom": {"name": "py", "input": "1+1"}}),
                tool("1", "2"),
            ],
        ),
        ([], []),
    ],
)
def test_messages_say_what_the_items_say(items: Any, messages: list[Json]) -> None:
    told = read_items(items, upstream_tools=UpstreamTools(takes_custom_tools=True))
    assert (told.messages, told.references) == (messages, [])


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (
            {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        ),
        (
            {"type": "input_image", "image_url": "https://x/y.png", "file_id": None},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        ),
        (
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:x"},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:x"}},
        ),
        ({"type": "input_file", "file_id": "file_1"}, {"type": "file", "file": {"file_id": "file_1"}}),
        (
            {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}},
            {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}},
        ),
    ],
)
def test_parts_keep_what_they_say(part: Json, told: Json) -> None:
    assert read_items([{"role": "user", "content": [part]}]).messages == [{"role": "user", "content": [told]}]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        (7, "input[0]"),
        ({}, "input[0].type"),
        ({"type": ["message"]}, "input[0].type"),
        ({"type": "file_search_call", "id": "fs_1"}, "input[0].type"),
        ({"type": "item_reference"}, "input[0].id"),
        ({"role": ["user"], "content": "Hi"}, "input[0].role"),
        ({"role": "user", "content": 7}, "input[0].content"),
        ({"role": "user", "content": ["Hi"]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": {}}]}, "input[0].content[0].type"),
        (
            {"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]},
            "input[0].content[0].file_url",
        ),
        ({"type": "function_call_output", "call_id": "1"}, "input[0].output"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        (
            {"type": "reasoning", "encrypted_content": SEALED_PREFIX + "nonsense"},
            "input[0].encrypted_content",
        ),
        (
            {
                "type": "reasoning",
                "encrypted_content": SEALED_PREFIX + '{"reasoning":' + "[" * 240 + "]" * 240 + "}",
            },
            "input[0].encrypted_content",
        ),
        ({"type": "reasoning", "encrypted_content": 7}, "input[0].encrypted_content"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "u", "detail": 7}]},
            "input[0].content[0].detail",
        ),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}, {}]}, "input[0].content[1].type"),
        (
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": 7}]},
            "input[0].output[0].text",
        ),
        ({"type": "configuration_update", "text": {"format": {"type": "json_object"}}}, "input[0].text"),
    ],
)
def test_an_item_that_has_no_place_is_named(item: Any, param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read_items([item])
    assert raised.value.param == param
    earlier = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    with pytest.raises(BadRequest) as raised:
        read_items([earlier, earlier, item])
    assert raised.value.param == param.replace("input[0]", "input[2]")


def test_sealed_thoughts_are_within_the_limits_of_a_body() -> None:
    """They are JSON in a text, which the limit of a body's values passes over."""
    sealed = SEALED_PREFIX + '{"reasoning_details":[' + "[]," * MAX_VALUES + "0]}"
    with pytest.raises(BodyTooLarge):
        read_items([{"type": "reasoning", "encrypted_content": sealed}])


def test_results_that_move_to_their_calls_move_what_is_noted_of_later_messages() -> None:
    reference = {"type": "item_reference", "id": "msg_1"}
    thought = thoughts(model="m", reasoning_content="Hm.")
    items = [call("1"), user("Hi"), reference, user("Bye"), thought, said("So."), result("1")]
    instructions = {"role": "system", "content": "Be brief."}
    read = read_items(items, [instructions])
    assert [m["role"] for m in read.messages] == [
        "system",
        "assistant",
        "tool",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert read.item_indices == [-1, -1, 6, 1, -1, 3, -1]
    assert [each.index for each in read.references] == [4]
    assert read.models == {6: "m"}
    # An upstream that stores responses gets the items as they are.
    lenient = read_items(items, [instructions], is_lenient=True)
    assert lenient.item_indices == [-1, -1, 1, -1, 3, -1, 6]


def test_images_of_results_follow_in_a_users_message() -> None:
    """A tool's message has no place for them: OpenAI's chat completions refuse it."""
    image = {"type": "input_image", "image_url": "https://x/y.png"}
    text = {"type": "input_text", "text": "Seen."}
    items: list[Any] = [
        {"role": "user", "content": "Look."},
        *({"type": "function_call", "call_id": id, "name": "view", "arguments": "{}"} for id in ("a", "b")),
        {"type": "function_call_output", "call_id": "a", "output": [text, image]},
        {"type": "function_call_output", "call_id": "b", "output": [image]},
        {"role": "assistant", "content": "A cat."},
    ]
    read = read_items(items)
    message = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}] * 2,
    }
    assert [m["role"] for m in read.messages] == ["user", "assistant", "tool", "tool", "user", "assistant"]
    assert [m["content"] for m in read.messages[2:4]] == ["Seen.", ""]
    assert read.messages[4] == message
    assert read.item_indices == [0, -1, 3, 4, -1, -1]
    assert read_items(items[:-1]).messages[-1] == message
    native = read_items(items, is_lenient=True)
    assert [m["role"] for m in native.messages] == [m["role"] for m in read.messages]
    assert native.item_indices == read.item_indices


class Uncompared(dict[str, Any]):
    """A part that is read without a look at all others of its result, of which there may be many thousands."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("Two parts are compared.")


def test_the_texts_of_a_result_are_found_without_a_comparison_with_its_images() -> None:
    text = {"type": "input_text", "text": "Seen."}
    image = Uncompared(type="input_image", image_url="https://x/y.png")
    read = read_items([call("a"), result("a", [text, image, text])], is_lenient=True)
    assert read.messages[1]["content"] == "Seen.\nSeen."


def test_a_part_without_a_type_is_passed_over_where_the_upstream_judges_it() -> None:
    items: list[Any] = [{"role": "assistant", "content": [{"text": "A cat."}]}]
    assert read_items(items, is_lenient=True).messages == [
        {"role": "assistant", "content": items[0]["content"]}
    ]
