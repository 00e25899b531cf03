"""Errors of the agents API: they name what the caller has named, and are short."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import StrictUpstream
from tests.rows import each_row

UID = "0" * 32
LONG = "x" * 5000


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


@each_row(
    ("path", "id"),
    [
        ("/v1/agents/{}", f"agent-{UID}"),
        ("/v1/agents/{}", f"agent-{uuid.UUID(UID)}"),
        ("/v1/blocks/{}", f"block-{UID}"),
        ("/v1/tools/{}", f"tool-{UID}"),
        ("/v1/runs/{}", f"run-{UID}"),
        ("/v1/steps/{}", f"step-{UID}-7"),
        ("/v1/archives/{}", f"archive-{UID}"),
        ("/v1/mcp-servers/{}", f"mcp_server-{UID}"),
        ("/v1/messages/{}", f"message-{UID}-7"),
        ("/v1/agents/{agent}/messages/{}", "message-{uid}-7"),
        ("/v1/agents/{agent}/messages?conversation_id={}", f"conv-{UID}"),
        ("/v1/runs/?agent_id={}", f"agent-{UID}"),
    ],
)
def test_the_error_names_an_unknown_object_as_the_caller_does(world: LettaWorld, path: str, id: str) -> None:
    agent = world.agent().id
    id = id.format(uid=agent.removeprefix("agent-"))
    status, error = world.ask("GET", path.format(id, agent=agent))
    assert status == 404
    assert f"'{id}'" in error["detail"]


@each_row(
    ("path", "id", "noun"),
    [
        ("/v1/mcp-servers/{}", f"mcp_server-{UID}", "MCP server"),
        ("/v1/mcp-servers/{}", "x", "MCP server"),
        ("/v1/folders/{}", f"source-{UID}", "folder"),
        ("/v1/folders/{}", "x", "folder"),
        ("/v1/conversations/{}", f"conv-{UID}", "conversation"),
        ("/v1/archives/?agent_id={}", f"agent-{UID}", "agent"),
        ("/v1/agents/{agent}/archives/attach/{}", f"archive-{UID}", "archive"),
    ],
)
def test_the_error_names_the_kind_of_an_unknown_object(
    world: LettaWorld, path: str, id: str, noun: str
) -> None:
    method = "PATCH" if "attach" in path else "GET"
    answer = world.ask(method, path.format(id, agent=world.agent().id))
    assert answer == (404, {"detail": f"There is no {noun} {id!r}."})
    search = {"query": "x", "archive_id": f"archive-{UID}"}
    answer = world.ask("POST", "/v1/passages/search", search)
    assert answer == (404, {"detail": f"There is no archive 'archive-{UID}'."})


def test_the_error_names_an_unknown_object_of_a_body(world: LettaWorld) -> None:
    for field, id in (("block_ids", f"block-{UID}"), ("tool_ids", f"tool-{UID}")):
        status, error = world.ask("POST", "/v1/agents/", {"model": "openai/m", field: [id]})
        assert (status, error["detail"]) == (404, f"There is no {id.split('-')[0]} '{id}'.")


def test_a_long_word_next_to_an_unknown_id_blocks_no_other_request(world: LettaWorld) -> None:
    """The search for the id in the body was quadratic: hours for these two megabytes, for everybody."""
    body = {"model": "openai/m", "description": "a" * 2_000_000, "block_ids": [f"block-{UID}"]}
    status, error = world.ask("POST", "/v1/agents/", body)
    assert (status, error["detail"]) == (404, f"There is no block 'block-{UID}'.")


@each_row(
    ("path", "body"),
    [
        ("/v1/agents/", {"timezone": LONG}),
        ("/v1/agents/", {"name": LONG}),
        ("/v1/agents/", {"llm_config": {"temperature": LONG}}),
        ("/v1/agents/", {LONG: 1}),
        ("/v1/agents/", {"metadata": [LONG]}),
        ("/v1/agents/", {"tool_rules": [{"type": LONG}]}),
        ("/v1/tools/", {"source_type": "webhook", "source_code": "x", "json_schema": {"name": LONG}}),
        ("/v1/agents/{agent}/messages", {"messages": [{"type": LONG}]}),
        ("/v1/agents/{agent}/archival-memory", {"text": "x", "created_at": LONG}),
    ],
)
def test_an_error_does_not_repeat_what_is_long(world: LettaWorld, path: str, body: Any) -> None:
    status, error = world.ask("POST", path.format(agent=world.agent().id), body)
    assert status in (400, 422)
    assert len(str(error)) < 1000, error


def test_a_number_that_no_database_has_is_refused(world: LettaWorld) -> None:
    for name in ("eq", "gt", "lt"):
        status, told = world.ask("GET", f"/v1/blocks/?connected_to_agents_count_{name}={2**63}")
        assert (status, told["detail"][0]["loc"][1]) == (422, f"connected_to_agents_count_{name}")


@each_row(
    ("path", "field"),
    [
        ("/v1/agents/", "query_text"),
        ("/v1/blocks/", "label_search"),
        ("/v1/blocks/", "description_search"),
        ("/v1/blocks/", "value_search"),
        ("/v1/tags/", "name"),
        ("/v1/tags/", "query_text"),
        ("/v1/agents/{agent}/archival-memory", "search"),
    ],
)
def test_a_part_that_is_longer_than_databases_look_for_is_refused(
    world: LettaWorld, path: str, field: str
) -> None:
    path = path.format(agent=world.agent().id)
    assert world.ask("GET", f"{path}?{field}={'%25' * 10_000}")[0] == 200
    status, told = world.ask("GET", f"{path}?{field}={'x' * 10_001}")
    assert (status, told["detail"][0]["loc"]) == (422, ["query", field])
    assert world.ask("GET", f"{path}?{field}={'%F0%9F%90%8B' * 4_000}")[0] == 200


MANY: dict[str, list[Any]] = {
    "tags": [f"t{n}" for n in range(1001)],
    "tools": ["send_message"] * 1001,
    "tool_ids": ["tool-1"] * 1001,
    "block_ids": ["block-1"] * 1001,
    "folder_ids": ["folder-1"] * 1001,
    "source_ids": ["source-1"] * 1001,
    "memory_blocks": [{"label": f"l{n}", "value": ""} for n in range(1001)],
    "tool_rules": [{"type": "exit_loop", "tool_name": "send_message"}] * 1001,
    "initial_message_sequence": [{"role": "user", "content": "Hi."}] * 1001,
}


@each_row("field", MANY)
def test_an_agent_has_no_more_parts_than_are_made_at_once(world: LettaWorld, field: str) -> None:
    status, told = world.ask("POST", "/v1/agents/", {"model": "m", field: MANY[field]})
    assert (status, told["detail"][0]["loc"]) == (422, ["body", field])


WIDE = {f"k{n}": n for n in range(30_000)}
LARGE = {
    "POST /v1/agents/": (
        "metadata",
        "tool_rules",
        "response_format",
        "model_settings",
        "llm_config",
        "embedding_config",
    ),
    "PATCH /v1/agents/{agent}": ("metadata", "response_format", "llm_config"),
    "POST /v1/blocks/": ("metadata",),
    "PATCH /v1/blocks/{block}": ("metadata",),
    "POST /v1/identities/": ("properties",),
    "POST /v1/folders/": ("metadata",),
    "POST /v1/archives/": ("embedding_config",),
    "POST /v1/tools/": ("json_schema", "args_json_schema", "metadata_"),
    "POST /v1/conversations/?agent_id={agent}": ("model_settings",),
    "POST /v1/mcp-servers/": ("config",),
}


# Each of their entries is small.
CHILDREN = {"type": "constrain_child_tools", "tool_name": "a", "children": [f"t{n}" for n in range(900)]}
LISTS = {
    "tool_rules": [CHILDREN] * 100,
    "properties": [{"key": f"k{n}", "value": {"a": "x" * 5_000}, "type": "json"} for n in range(100)],
}


@each_row(("route", "field"), [(r, field) for r, fields in LARGE.items() for field in fields])
def test_an_object_of_any_names_is_bounded(world: LettaWorld, route: str, field: str) -> None:
    agent = world.agent()
    method, _, path = route.partition(" ")
    path = path.format(agent=agent.id, block=agent.blocks[0].id)
    required = {
        "/v1/blocks/": {"label": "a", "value": ""},
        "/v1/identities/": {"identifier_key": "a", "name": "a", "identity_type": "user"},
        "/v1/folders/": {"name": "a"},
        "/v1/archives/": {"name": "a"},
        "/v1/tools/": {"source_code": "def a(): pass"},
        "/v1/mcp-servers/": {"server_name": "a"},
    }
    status, error = world.ask(method, path, {**required.get(path, {}), field: LISTS.get(field, WIDE)})
    assert status == 422, error
    assert error["detail"][0]["loc"] == ["body", field]
    assert "262,144 bytes" in error["detail"][0]["msg"]


def test_an_object_within_a_part_is_bounded_and_named(world: LettaWorld) -> None:
    block = {"label": "a", "value": "", "metadata": WIDE}
    status, error = world.ask("POST", "/v1/agents/", {"memory_blocks": [block]})
    assert (status, error["detail"][0]["loc"]) == (422, ["body", "memory_blocks", 0, "metadata"])


@pytest.mark.parametrize("path", ["/v1/blocks/", "/v1/tools/", "/v1/agents/{}/archival-memory"])
def test_a_part_has_no_more_tags_than_an_agent(world: LettaWorld, path: str) -> None:
    tags = {"tags": [f"t{n}" for n in range(1_001)]}
    body = {"label": "a", "value": "", "source_code": "def a(): pass", "text": "x"}
    fields = {"blocks": ("label", "value"), "tools": ("source_code",), "agents": ("text",)}[
        path.split("/")[2]
    ]
    status, error = world.ask("POST", path.format(world.agent().id), {n: body[n] for n in fields} | tags)
    assert (status, error["detail"][0]["loc"]) == (422, ["body", "tags"])


def test_nothing_is_ignored_in_silence(world: LettaWorld) -> None:
    agent = world.agent().id
    for method, path in (("GET", f"/v1/agents/{agent}/memory"), ("DELETE", f"/v1/agents/{agent}")):
        status, told = world.ask(method, f"{path}?force=true")
        assert (status, told["detail"][0]["loc"]) == (422, ["query", "force"])
    tool = next(iter(world.letta.tools.list(name="send_message"))).id
    attach = f"/v1/agents/{agent}/tools/attach/{tool}"
    status, told = world.ask("PATCH", attach, {"requires_approval": True})
    assert (status, told["detail"][0]["loc"]) == (422, ["body", "requires_approval"])
    assert world.ask("PATCH", f"{attach}?user_id=user-1", {})[0] == 200
    # A part of a body as well as the body itself.
    block = {"label": "x", "value": "", "template_id": "t"}
    status, told = world.ask("POST", "/v1/agents/", {"memory_blocks": [block]})
    assert (status, told["detail"].partition(":")[0]) == (400, "memory_blocks.template_id")
    rule = {"type": "exit_loop", "tool_name": "send_message", "prompt_template": "No."}
    settings: Any = {"provider_type": "openai", "temperature": 0.5, "strict": True, "\u00e9,": 1}
    raw = world.letta.agents.with_raw_response.update(agent, tool_rules=[rule], model_settings=settings)  # type: ignore[list-item]
    assert raw.headers["x-mnemogate-kept"] == "model_settings.strict,tool_rules.prompt_template"
    shown = world.ask("GET", f"/v1/agents/{agent}")[1]
    assert shown["tool_rules"][0]["prompt_template"] == "No."
    assert shown["model_settings"]["strict"] is True
    listed = world.letta.agents.messages.with_raw_response.list(agent, include_err=True)
    assert listed.headers["x-mnemogate-kept"] == "include_err"
