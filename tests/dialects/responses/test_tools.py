"""Tools that a client runs become functions upstream, and their calls come back in the client's form."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from gateway.core.turn.call_ids import MAX_NAME_CHARS
from gateway.dialects.responses.call_form import UpstreamTools, make_flat_name
from gateway.dialects.responses.input import read_items
from gateway.dialects.responses.parse import parse
from gateway.errors import BadRequest
from tests.dialects.responses.test_render import event, stream, whole

Json = dict[str, Any]
SCHEMA = {"type": "object", "properties": {"id": {"type": "string"}}}
WAIT = {"type": "function", "name": "wait", "parameters": SCHEMA, "strict": False}
PATCH = {
    "type": "custom",
    "name": "apply",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
AGENTS = {"type": "namespace", "name": "agents_v1", "description": "Sub-agents.", "tools": [WAIT, PATCH]}
SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": SCHEMA}
LOCAL = {"type": "local_shell"}
CUSTOM = UpstreamTools(takes_custom_tools=True)
CLAUDE = UpstreamTools(takes_web_search=True)


def asked(takes: UpstreamTools | None = None, **fields: Any) -> Json:
    body = orjson.dumps({"model": "m", "input": "Hi", **fields})
    return (parse(body) if takes is None else parse(body, upstream_tools=takes)).chat.json


def functions(chat: Json) -> dict[str, Json]:
    return {tool["function"]["name"]: tool["function"] for tool in chat["tools"]}


def called(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def test_a_custom_tool_is_a_function_with_one_text_that_quotes_its_grammar() -> None:
    found = functions(asked(tools=[PATCH]))["apply"]
    assert found["parameters"]["required"] == ["input"]
    assert found["description"].startswith("Edits files.")
    assert 'start: "x"' in found["description"]


def test_a_custom_tool_stays_one_where_the_upstream_takes_it() -> None:
    (tool,) = asked(CUSTOM, tools=[PATCH])["tools"]
    grammar = {"syntax": "lark", "definition": 'start: "x"'}
    assert tool == {
        "type": "custom",
        "custom": {
            "name": "apply",
            "description": "Edits files.",
            "format": {"type": "grammar", "grammar": {**grammar}},
        },
    }


def test_tools_of_a_namespace_bear_its_name_and_its_description() -> None:
    found = functions(asked(tools=[AGENTS]))
    assert [*found] == ["agents_v1__wait", "agents_v1__apply"]
    assert found["agents_v1__wait"]["description"] == "Sub-agents."
    assert found["agents_v1__apply"]["description"].startswith("Sub-agents.\n\nEdits files.")


def test_a_long_name_is_cut_and_stays_another_one() -> None:
    long = make_flat_name("space" * 10, "name" * 10 + "1"), make_flat_name("space" * 10, "name" * 10 + "2")
    assert [len(name) for name in long] == [MAX_NAME_CHARS] * 2
    assert long[0] != long[1]


def test_tools_come_with_the_input_too() -> None:
    """As Codex sends them, and as its search finds them."""
    more = {"type": "additional_tools", "role": "developer", "tools": [AGENTS]}
    call = {"type": "tool_search_call", "call_id": "1", "execution": "client", "arguments": {"id": "x"}}
    found = {
        "type": "tool_search_output",
        "call_id": "1",
        "execution": "client",
        "tools": [{**WAIT, "name": "late"}],
    }
    chat = asked(tools=[SEARCH], input=[more, {"role": "user", "content": "Hi"}, call, found])
    assert [*functions(chat)] == ["tool_search", "agents_v1__wait", "agents_v1__apply", "late"]
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool"]
    assert chat["messages"][1]["tool_calls"][0]["function"] == {
        "name": "tool_search",
        "arguments": '{"id":"x"}',
    }


def test_the_tools_of_a_stored_request_are_read_by_the_names_under_which_they_are_stored() -> None:
    stored = b'{"custom":true,"web_search":true}'
    assert msgspec.json.decode(stored, type=UpstreamTools) == UpstreamTools(
        takes_custom_tools=True, takes_web_search=True
    )


@pytest.mark.parametrize("takes", [UpstreamTools(), CUSTOM])
def test_a_tool_that_was_found_twice_is_offered_once(takes: UpstreamTools) -> None:
    found = {"type": "tool_search_output", "call_id": "1", "execution": "client", "tools": [PATCH, WAIT]}
    newer = {**found, "tools": [{**PATCH, "description": "Edits them."}]}
    tools = asked(takes, input=[{"role": "user", "content": "Hi"}, found, newer])["tools"]
    names = [tool[tool["type"]]["name"] for tool in tools]
    assert names == ["wait", "apply"]
    assert "Edits them." in tools[1][tools[1]["type"]]["description"]


def test_a_search_that_needs_an_index_is_left_out_and_claude_searches_itself() -> None:
    cached = {"type": "web_search", "external_web_access": False}
    request = parse(orjson.dumps({"model": "m", "input": "Hi", "tools": [cached, WAIT]}))
    assert [*functions(request.chat.json)] == ["wait"]
    assert request.echo["tools"] == [WAIT]
    assert request.chat.consumed == ()
    chat = asked(CLAUDE, tools=[{"type": "web_search"}], max_tool_calls=3)
    assert chat["tools"] == [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]


def test_a_search_among_other_tools_is_left_out_where_it_is_not_supported() -> None:
    """As Codex offers it in every request, once it runs without its sandbox; the reply names it."""
    request = parse(orjson.dumps({"model": "m", "input": "Hi", "tools": [WAIT, {"type": "web_search"}]}))
    assert [*functions(request.chat.json)] == ["wait"]
    assert request.echo["tools"] == [WAIT]
    assert request.chat.consumed == ("tools.web_search",)


def test_allowed_tools_are_the_only_ones_where_the_upstream_knows_no_such_choice() -> None:
    other = {**WAIT, "name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "wait"}]}
    request = parse(
        orjson.dumps({"model": "m", "input": "Hi", "tools": [WAIT, other], "tool_choice": choice})
    )
    assert [*functions(request.chat.json)] == ["wait"]
    assert request.chat.json["tool_choice"] == "required"
    assert [tool["name"] for tool in request.echo["tools"]] == ["wait", "other"]
    assert asked(CUSTOM, tools=[WAIT, other], tool_choice=choice)["tool_choice"]["type"] == "allowed_tools"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": [{"type": "tool_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "of_tomorrow"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
            "tools[0].environment.type",
        ),
        ({"tools": [{**AGENTS, "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [{**AGENTS, "tools": [AGENTS]}]}, "tools[0].tools[0].type"),
        ({"tools": [WAIT, {**WAIT, "description": ["Waits."]}]}, "tools[1].description"),
        ({"tools": [{**PATCH, "description": 7}]}, "tools[0].description"),
        ({"tools": [WAIT], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        (
            {"tools": [WAIT, {"type": "web_search"}], "tool_choice": {"type": "web_search"}},
            "tool_choice.type",
        ),
        ({"include": ["of_tomorrow"]}, "include[0]"),
        ({"store": "false"}, "store"),
        ({"metadata": [1]}, "metadata"),
        ({"max_tool_calls": "x"}, "max_tool_calls"),
        ({"service_tier": 5}, "service_tier"),
        ({"stream_options": True}, "stream_options"),
        ({"truncation": "sometimes"}, "truncation"),
        (
            {"tools": [WAIT], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}},
            "tool_choice.mode",
        ),
    ],
)
def test_the_refusal_of_an_untranslatable_tool_names_the_field(fields: Json, param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        asked(**fields)
    assert raised.value.param == param


FORMS: dict[str, tuple[Json, str, str, Json]] = {
    "function": (
        WAIT,
        "wait",
        '{"id":"1"}',
        {"type": "function_call", "name": "wait", "arguments": '{"id":"1"}'},
    ),
    "custom": (
        PATCH,
        "apply",
        '{"input": "a\\nb \\u00e9"}',
        {"type": "custom_tool_call", "input": "a\nb \u00e9"},
    ),
    "custom as plain text": (PATCH, "apply", "just text", {"type": "custom_tool_call", "input": "just text"}),
    "of a namespace": (
        AGENTS,
        "agents_v1__wait",
        "{}",
        {"type": "function_call", "namespace": "agents_v1", "name": "wait", "arguments": "{}"},
    ),
    "custom of a namespace": (
        AGENTS,
        "agents_v1__apply",
        '{"input":"x"}',
        {"type": "custom_tool_call", "namespace": "agents_v1", "name": "apply", "input": "x"},
    ),
    "search": (
        SEARCH,
        "tool_search",
        '{"id":"x"}',
        {"type": "tool_search_call", "execution": "client", "arguments": {"id": "x"}},
    ),
    "local shell": (
        LOCAL,
        "local_shell",
        '{"command":["ls"]}',
        {"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"], "env": {}}},
    ),
    "shell": ({"type": "shell"}, "shell", '{"commands":["ls"]}', {"type": "shell_call"}),
    "patch": (
        {"type": "apply_patch"},
        "apply_patch",
        '{"type":"delete_file","path":"a"}',
        {"type": "apply_patch_call"},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_call_comes_back_in_the_clients_form(name: str) -> None:
    tool, upstream, arguments, members = FORMS[name]
    message = called(upstream, arguments)
    (item,) = whole(message, tools=[tool]).output
    shown = item.model_dump(exclude_none=True)
    assert members.items() <= shown.items()
    pieces = [arguments[at : at + 3] for at in range(0, len(arguments), 3)]
    first = {"index": 0, "id": "1", "type": "function", "function": {"name": upstream, "arguments": ""}}
    events, response = stream(
        event({"tool_calls": [first]}),
        *(event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in pieces),
        tools=[tool],
    )
    assert [each.model_dump(exclude={"id"}) for each in response.output] == [item.model_dump(exclude={"id"})]
    deltas = "".join(each.delta for each in events if each.type == "response.custom_tool_call_input.delta")
    assert deltas == members.get("input", "")


@pytest.mark.parametrize("name", [name for name in FORMS if name != "custom as plain text"])
def test_a_call_that_is_sent_back_is_the_one_that_came(name: str) -> None:
    tool, upstream, arguments, _ = FORMS[name]
    items = [
        each.model_dump(exclude_none=True) for each in whole(called(upstream, arguments), tools=[tool]).output
    ]
    (message,) = read_items(items).messages
    function = message["tool_calls"][0]["function"]
    assert function["name"] == upstream
    assert orjson.loads(arguments).items() <= orjson.loads(function["arguments"]).items()


def test_a_search_of_claudes_is_an_item_and_its_pages_are_cited() -> None:
    asked_for = {
        "index": 0,
        "type": "server_tool_use",
        "id": "s",
        "name": "web_search",
        "input": {"query": "q"},
    }
    page = {"type": "web_search_result_location", "url": "https://a", "title": "A", "cited_text": "x"}
    cited = {"index": 0, "start_index": 0, "end_index": 6, "citation": page}
    message = {"content": "Found.", "provider_blocks": [asked_for], "citations": [cited]}
    response = whole(message)
    assert [item.type for item in response.output] == ["reasoning", "web_search_call", "message"]
    _, search, said = [item.model_dump() for item in response.output]
    assert (search["status"], search["action"]["query"]) == ("completed", "q")
    (annotation,) = said["content"][0]["annotations"]
    assert annotation == {
        "type": "url_citation",
        "start_index": 0,
        "end_index": 6,
        "url": "https://a",
        "title": "A",
    }


@pytest.mark.parametrize("kind", [[], {}, 1, True])
def test_a_choice_of_another_form_is_refused(kind: Any) -> None:
    for choice in ({"type": kind}, {"type": "allowed_tools", "tools": [{"type": kind}]}):
        with pytest.raises(BadRequest, match="tool_choice"):
            asked(tools=[WAIT], tool_choice=choice)
