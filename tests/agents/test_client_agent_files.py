"""Agent files by the client's own methods: they go round, files of Letta's server are read, hostile ones refused."""

from __future__ import annotations

import copy
import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import unquote

import httpx
import orjson
import pytest
from letta_client import APIStatusError, BadRequestError, UnprocessableEntityError

from gateway.agents.agent_file import file_routes
from gateway.agents.agent_file.import_form import ImportForm
from gateway.agents.agent_file.read import read_file
from gateway.agents.core.agent_file import PortableMessage
from gateway.agents.files.agent_import import AgentImport
from gateway.agents.files.file_exchanges import group_exchanges
from gateway.agents.wire.faults import Unprocessable
from gateway.run.background.retention import Retention
from gateway.settings import ProfileSettings
from storage.errors import StoreUnavailable
from storage.sql.transfer_import import ImportWriter
from tests.agents.letta import LettaWorld, letta, spoken
from tests.agents.letta_file import LETTA_FILE, OLDER_FILE
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.admin.test_transfer_agents import rich
from tests.patience import PATIENCE_S, SHORT_S
from tests.rows import each_row

File = dict[str, Any]


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def export(world: LettaWorld, agent: str, **options: Any) -> File:
    found = json.loads(world.letta.agents.export_file(agent, **options))
    assert isinstance(found, dict)
    return found


def bring_in(world: LettaWorld, file: Any, **options: Any) -> list[str]:
    data = file if isinstance(file, bytes) else orjson.dumps(file)
    return world.letta.agents.import_file(file=("a.af", data, "application/json"), **options).agent_ids


def timeless(file: File) -> Any:
    """A file without the times at which it and what it holds were made."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: strip(v) for k, v in value.items() if k not in ("created_at", "revision_id", "file_name")
            }
        return [strip(each) for each in value] if isinstance(value, list) else value

    file = copy.deepcopy(file)
    file["metadata"]["mnemogate"] = json.loads(file["metadata"]["mnemogate"])
    # The name of a folder is another one where it is taken.
    for source in file["sources"]:
        del source["name"]
    return strip(file)


def counts(world: LettaWorld) -> list[int]:
    """How many rows the tables have that a file fills, but for those that were emptied."""
    world.world.settle()
    tables = {
        "agents": "1 = 1", "definitions": "1 = 1", "attached": "1 = 1", "tags": "1 = 1", "conversations": "1 = 1",
        "blocks": "1 = 1", "files": "memory <> 0", "passages": "agent > 0", "exchanges": "agent <> 0",
        "forgetting": "1 = 1",
    }  # fmt: skip
    return [
        world.world.query(f"SELECT count(*) FROM {table} WHERE {where}")[0] for table, where in tables.items()
    ]


@pytest.mark.parametrize("begins", ["by import", "by its first messages"])
def test_initial_messages_do_not_hide_the_blocks_from_the_prompt(world: LettaWorld, begins: str) -> None:
    """Its messages were just said, but no request has been made of them whose beginning a provider could have."""
    first: Any = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    agent = world.agent(initial_message_sequence=first if begins != "by import" else [])
    id = agent.id
    if begins == "by import":
        world.letta.agents.messages.create(id, input="Hello")
        (id,) = bring_in(world, export(world, id))
    context: Any = world.letta.get(f"/v1/agents/{id}/context", cast_to=object)
    assert "Name: Ann" in context["core_memory"]
    world.letta.agents.messages.create(id, input="How are you?")
    system, *_, question = world.upstream.last.messages
    assert "Name: Ann" in system["content"]
    assert question["content"] == "How are you?"


def test_an_agent_that_begins_with_an_empty_reply_goes_round(world: LettaWorld) -> None:
    first: Any = [{"role": "assistant", "content": ""}]
    made = export(world, world.agent(initial_message_sequence=first).id)
    (id,) = bring_in(world, made)
    assert export(world, id)["agents"][0]["initial_message_sequence"] == first


def test_a_file_goes_round(world: LettaWorld) -> None:
    made = rich(world)
    first = export(world, made["agent"])
    (id,) = bring_in(world, first)
    again = export(world, id)
    assert timeless(again) == timeless(first)
    assert (len(first["blocks"]), len(first["sources"]), len(first["files"])) == (2, 1, 1)
    assert first["agents"][0]["messages"][2]["content"] == [
        {"type": "text", "text": "I have a boat.", "signature": None}
    ]
    agent, client = world.letta.agents.retrieve(made["agent"]), world.letta
    there = client.agents.retrieve(id)
    for name in (
        "name",
        "system",
        "agent_type",
        "tags",
        "tool_rules",
        "model",
        "llm_config",
        "compaction_settings",
    ):
        assert getattr(there, name) == getattr(agent, name), name
    assert [tool.id for tool in there.tools] == [tool.id for tool in agent.tools]

    def shown(id: str) -> list[tuple[Any, Any]]:
        messages = spoken(client.agents.messages.list(id, conversation_id="default"))
        return [(each.message_type, getattr(each, "content", None)) for each in messages]

    assert shown(id) == shown(made["agent"])
    passages = [each.text for each in client.agents.passages.list(id)]
    assert passages == ["She sails."]
    found = client.agents.passages.search(id, query="boat").results
    assert "The boat is red." in {each.content for each in found}
    world.upstream.queue(call_tools(Call("send_message", {"message": "Still here."})))
    client.agents.messages.create(id, input="Are you there?")
    sent = [str(m["content"]) for m in world.upstream.requests[-1].json["messages"]]
    assert any("I have a boat." in text for text in sent)


def test_a_file_says_what_it_was_asked_for(world: LettaWorld) -> None:
    made = rich(world)
    (conversation,) = [
        c for c in world.letta.conversations.list(agent_id=made["agent"]) if c.summary == "On boats"
    ]
    texts = [
        part["text"]
        for message in export(world, made["agent"], conversation_id=conversation.id)["agents"][0]["messages"]
        for part in message["content"]
    ]
    assert texts == ["", "Hello there", "Ok."]
    assert len(export(world, made["agent"], scrub_messages=True)["agents"][0]["messages"]) == 1
    with pytest.raises(BadRequestError, match="newer form"):
        world.letta.agents.export_file(made["agent"], use_legacy_format=True)


def test_an_export_names_the_parameter_that_it_ignores(world: LettaWorld) -> None:
    path = f"/v1/agents/{world.agent().id}/export?max_steps=3"
    reply = world.world.gateway.ask("GET", path, None, {})
    assert (reply.status, dict(reply.headers)["x-mnemogate-kept"]) == (200, "max_steps")


def test_an_import_follows_its_options(world: LettaWorld) -> None:
    agent = world.agent(name="ann")
    world.letta.agents.messages.create(agent.id, input="Hi")
    file = export(world, agent.id)
    client = world.letta.agents
    (copied,) = bring_in(world, file, append_copy_suffix=True, strip_messages=True, model="openai/other")
    shown = client.retrieve(copied)
    assert (shown.name, shown.model, spoken(client.messages.list(copied))) == (
        "ann_copy",
        "openai/other",
        [],
    )
    (named,) = bring_in(world, BOM_UTF8 + json.dumps(json.dumps(file)).encode(), name="bo")
    assert client.retrieve(named).name == "bo"
    assert len(spoken(client.messages.list(named))) == 2
    for options in ({"secrets": '{"a": "b"}'}, {"env_vars_json": "{}"}, {"project_id": "x"}):
        with pytest.raises(BadRequestError):
            bring_in(world, file, **options)
    with pytest.raises(APIStatusError) as wrong:
        bring_in(world, file, extra_body={"nonsense": "1"})
    assert wrong.value.status_code == 422


def test_a_tool_of_a_file_takes_the_place_of_one_that_is_there_or_does_not(world: LettaWorld) -> None:
    schema: dict[str, object] = {"name": "look_up", "description": "new", "parameters": {}}
    made = world.letta.tools.create(source_code="", source_type="json", json_schema=schema)
    agent = world.agent(tools=["look_up"])
    file = export(world, agent.id)
    world.letta.tools.update(made.id, json_schema={**schema, "description": "changed"})
    (first,) = bring_in(world, file, override_existing_tools=False)
    assert world.letta.tools.retrieve(made.id).description == "changed"
    bring_in(world, file)
    assert world.letta.tools.retrieve(made.id).description == "new"
    assert made.id in {tool.id for tool in world.letta.agents.retrieve(first).tools}


def test_a_file_of_lettas_server_is_read(world: LettaWorld) -> None:
    raw = world.letta.agents.with_raw_response.import_file(file=("a.af", orjson.dumps(LETTA_FILE)))
    (id,) = raw.parse().agent_ids
    assert raw.headers["x-mnemogate-left-out"] == "mcp_servers.0,skills.gifts,tools.run_code,secrets.SHOP_KEY"
    agent = world.letta.agents.retrieve(id)
    assert (agent.name, agent.agent_type, agent.model, agent.context_window_limit) == (
        "clerk", "memgpt_v2_agent", "openai/gpt-4o-mini", 32000,
    )  # fmt: skip
    assert {block.label: block.value for block in agent.blocks} == {
        "human": "Name: Chad",
        "persona": "I am Sam.",
    }
    assert {tool.name for tool in agent.tools} == {
        "send_message", "memory_insert", "look_up_order", "grep_files", "semantic_search_files",
    }  # fmt: skip
    assert [rule["type"] for rule in json.loads(agent.model_dump_json())["tool_rules"]] == [
        "exit_loop", "constrain_child_tools",
    ]  # fmt: skip
    messages = spoken(world.letta.agents.messages.list(id, order="asc"))
    assert [each.message_type for each in messages] == [
        "user_message", "reasoning_message", "tool_call_message", "tool_return_message", "reasoning_message",
        "assistant_message", "system_message", "user_message", "assistant_message",
    ]  # fmt: skip
    (source,) = agent.sources
    (file,) = world.letta.folders.files.list(source.id, include_content=True)
    assert (file.original_file_name, file.content) == ("prices.md", "# Prices\n\nA pen costs two.\n")
    world.upstream.queue(call_tools(Call("send_message", {"message": "Gladly."})))
    reply = world.letta.agents.messages.create(id, input="One more pen, please.")
    assert "Gladly." in [getattr(each, "content", None) for each in reply.messages]
    sent = world.upstream.requests[-1].json["messages"]
    assert next(m["content"] for m in sent if m["role"] == "tool").startswith("Order 7")
    again = export(world, id)
    (twin,) = bring_in(world, again)
    assert timeless(export(world, twin)) == timeless(again)


def test_the_header_has_whole_names_of_what_is_left_out_and_the_body_all(world: LettaWorld) -> None:
    names = ["ö" * 60 + str(n) for n in range(12)]

    def with_skills(file: File) -> None:
        file["skills"] = [{"name": name} for name in names]

    raw = world.letta.agents.with_raw_response.import_file(file=("a.af", changed(with_skills)))
    shown = [unquote(name).removeprefix("skills.") for name in raw.headers["x-mnemogate-left-out"].split(",")]
    shown_skills = [name for name in shown if "." not in name]
    left_out = orjson.loads(raw.read())["mnemogate"]["left_out"]
    assert shown_skills
    assert set(shown_skills) <= set(names)
    assert {f"skills.{name}" for name in names} <= set(left_out)


def test_an_older_file_of_lettas_server_is_read(world: LettaWorld) -> None:
    """The prompt stands wherever it was compiled again, also between a call and its result."""
    raw = world.letta.agents.with_raw_response.import_file(file=("a.af", orjson.dumps(OLDER_FILE)))
    assert raw.headers["x-mnemogate-left-out"] == "tools.star_repository,secrets.SHOP_KEY"
    (id,) = raw.parse().agent_ids
    agent = world.letta.agents.retrieve(id)
    assert (agent.name, agent.agent_type, agent.system) == ("old clerk", "memgpt_agent", "You sell pens.")
    assert (agent.model, agent.llm_config.context_window) == ("openai/gpt-4o-mini", 32000)
    assert (agent.tags, agent.metadata, agent.description) == (["shop"], {"shop": 1}, "A clerk")
    (block,) = agent.blocks
    assert (block.label, block.value, block.metadata) == ("human", "Name: Sarah", {"from": "the shop"})
    assert [tool.name for tool in agent.tools] == ["send_message", "core_memory_append", "look_up_order"]
    (looks_up,) = [tool for tool in agent.tools if tool.name == "look_up_order"]
    assert looks_up.json_schema["parameters"] == {  # type: ignore[index]
        "type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]
    }  # fmt: skip
    assert [rule.type for rule in agent.tool_rules or ()] == ["exit_loop", "constrain_child_tools"]
    messages = spoken(world.letta.agents.messages.list(id, order="asc"))
    assert [each.content for each in messages if each.message_type == "user_message"] == [
        "Where is my order 7?"
    ]
    assert [each.content for each in messages if each.message_type == "system_message"] == [
        "Function called, returning control",
        "The shop closes at six.",
    ]
    thoughts = [each.reasoning for each in messages if each.message_type == "reasoning_message"]
    assert thoughts == ["She asks for her order.", "I tell her."]
    assert [each.content for each in messages if each.message_type == "assistant_message"] == [
        "It is on its way."
    ]
    (told,) = [each for each in messages if each.message_type == "tool_return_message"]
    assert (told.tool_return, told.stdout) == ("Order 7 is processing.", ["Looking."])
    world.upstream.queue(call_tools(Call("send_message", {"message": "Gladly."})))
    reply = world.letta.agents.messages.create(id, input="One more pen, please.")
    assert "Gladly." in [getattr(each, "content", None) for each in reply.messages]
    sent = world.upstream.last.messages
    assert [m["tool_call_id"] for m in sent if m["role"] == "tool"] == ["call_1", "call_2"]
    assert not any("### Memory" in str(m["content"]) for m in sent)


@pytest.mark.parametrize(
    "field", [{"llm_config": {"model": "m", "max_tokens": 0}}, {"model_settings": {"max_output_tokens": 0}}]
)
def test_most_tokens_of_0_are_no_bound_in_a_file_and_an_error_elsewhere(
    world: LettaWorld, field: dict[str, Any]
) -> None:
    (id,) = bring_in(world, changed(lambda f: agent_of(f).update(field)))
    world.upstream.queue(call_tools(Call("send_message", {"message": "Yes."})))
    world.letta.agents.messages.create(id, input="Are you there?")
    assert "max_tokens" not in world.upstream.last.json
    with pytest.raises(APIStatusError, match="Expected 'int' >= 1") as refused:
        world.agent(**field)
    assert refused.value.status_code == 422


def test_calls_of_one_id_in_a_message_go_upstream_with_ids_of_their_own(world: LettaWorld) -> None:
    def repeat_call(file: File) -> None:
        reply, result = agent_of(file)["messages"][2:4]
        reply["tool_calls"] *= 3
        other_id = f"{reply['tool_calls'][0]['id']}_2"
        reply["tool_calls"].append({**reply["tool_calls"][0], "id": other_id})
        (first,) = result["tool_returns"]
        results = [{**first, "func_response": f"Order {n} is sent."} for n in (7, 8, 9, 10)]
        result["tool_returns"] = [*results[:3], {**results[3], "tool_call_id": other_id}]

    (id,) = bring_in(world, changed(repeat_call))
    world.upstream.queue(call_tools(Call("send_message", {"message": "Gladly."})))
    world.letta.agents.messages.create(id, input="One more pen, please.")
    reply, *results = world.upstream.last.messages[2:7]
    first_id = reply["tool_calls"][0]["id"]
    call_ids = [call["id"] for call in reply["tool_calls"]]
    assert call_ids == [first_id, f"{first_id}_3", f"{first_id}_4", f"{first_id}_2"]
    assert call_ids == [result["tool_call_id"] for result in results]
    assert [result["content"].split(" is")[0] for result in results] == [f"Order {n}" for n in (7, 8, 9, 10)]


def test_a_summary_of_thoughts_is_shown_as_thoughts(world: LettaWorld) -> None:
    """As replies of OpenAI's Responses API are in a file."""
    steps = [{"index": 0, "text": "She asks."}, {"index": 1, "text": "I look it up."}]
    part = {"type": "summarized_reasoning", "id": "rs_1", "summary": steps, "encrypted_content": "x"}
    (id,) = bring_in(world, changed(lambda f: agent_of(f)["messages"][2].update(content=[part])))
    shown = spoken(world.letta.agents.messages.list(id, order="asc"))
    thoughts = [each.reasoning for each in shown if each.message_type == "reasoning_message"]
    assert thoughts == ["She asks.\n\nI look it up.", "Tell."]


def test_an_image_that_the_file_only_names_is_shown_to_be_missing(world: LettaWorld) -> None:
    image = {"type": "image", "source": {"type": "letta", "file_id": "file-1"}}
    (id,) = bring_in(world, changed(lambda f: agent_of(f)["messages"][1].update(content=[image])))
    _, question, *_ = world.letta.agents.messages.list(id, order="asc")
    assert (question.message_type, question.content) == ("user_message", "[image]")


def with_source(kind: str, source: str) -> File:
    file = copy.deepcopy(LETTA_FILE)
    file["tools"][2].update(source_type=kind, source_code=source)
    return file


def test_a_tool_in_typescript_is_stored_and_says_that_it_cannot_run(world: LettaWorld) -> None:
    source = "export function look_up_order(): string { return 'x'; }"
    file = orjson.dumps(with_source("typescript", source))
    made = world.letta.agents.import_file(file=("a.af", file))
    assert "tools.look_up_order.typescript" in made.mnemogate["left_out"]  # type: ignore[attr-defined]
    (id,) = made.agent_ids
    (tool,) = [each for each in world.letta.agents.tools.list(id) if each.name == "look_up_order"]
    assert (tool.source_type, tool.source_code) == ("typescript", source)
    world.upstream.queue(
        call_tools(Call("look_up_order", {"request_heartbeat": True})),
        call_tools(Call("send_message", {"message": "I cannot look."})),
    )
    reply = world.letta.agents.messages.create(id, input="Where is my order?")
    (told,) = [each for each in reply.messages if each.message_type == "tool_return_message"]
    assert "look_up_order cannot run here" in told.tool_return
    (tools,) = [each for each in export(world, id)["tools"] if each["name"] == "look_up_order"]
    assert (tools["source_type"], tools["source_code"]) == ("typescript", source)
    # What is not its source may be changed.
    assert world.letta.tools.update(tool.id, tags=["later"]).tags == ["later"]
    with pytest.raises(BadRequestError, match="TypeScript is not run here"):
        world.letta.tools.update(tool.id, source_code=f"{source} // more")
    # It is made one that runs, and stays so when the file comes again.
    world.letta.tools.update(tool.id, source_type="json")
    again = world.letta.agents.import_file(file=("a.af", file))
    assert "tools.look_up_order.typescript" not in again.mnemogate["left_out"]  # type: ignore[attr-defined]
    assert world.letta.tools.retrieve(tool.id).source_type == "json"
    with pytest.raises(BadRequestError, match="TypeScript is not run here"):
        world.letta.tools.create(source_code=source, source_type="typescript")


def test_python_is_there_without_a_sandbox_and_says_what_is_missing(
    world: LettaWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine without bubblewrap.
    monkeypatch.setenv("PATH", str(tmp_path))
    file = orjson.dumps(with_source("python", "def look_up_order(order):\n    return 'x'\n"))
    made = world.letta.agents.import_file(file=("a.af", file))
    assert "tools.look_up_order.python" in made.mnemogate["left_out"]  # type: ignore[attr-defined]
    (id,) = made.agent_ids
    world.upstream.queue(
        call_tools(Call("look_up_order", {"order": "7", "request_heartbeat": True})),
        call_tools(Call("send_message", {"message": "I cannot look."})),
    )
    reply = world.letta.agents.messages.create(id, input="Where is my order?")
    (told,) = [each for each in reply.messages if each.message_type == "tool_return_message"]
    assert "install the package `bubblewrap`" in told.tool_return
    with pytest.raises(BadRequestError, match="install the package `bubblewrap`"):
        world.letta.tools.create(source_code="def other():\n    return 'x'\n")


@pytest.mark.parametrize(
    ("source", "kind"), [("def look_up_order():\n    return 1\n", "python"), ("", "json")]
)
def test_source_that_is_not_typescript_is_python_as_on_lettas_server(source: str, kind: str) -> None:
    file = read_file(orjson.dumps(with_source("json", source)), ImportForm(), 0.0)
    assert file.tools["look_up_order"].source_type == kind


def test_a_copy_of_a_users_memory_is_an_agent(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, ProfileSettings("helper", model="m")) as world:
        world.world.chat(user="alice", model="agent/helper").say("I grow tulips.")
        (memory,) = world.letta.agents.list(tags=["user:alice"])
        (id,) = bring_in(world, export(world, memory.id), name="twin")
        assert id != memory.id
        assert world.letta.agents.retrieve(id).name == "twin"
        assert world.letta.agents.messages.create(id, input="And?").messages[-1].content == "Ok."  # type: ignore[union-attr]


def test_a_copy_of_a_primary_has_a_sleeptime_agent_of_its_own(world: LettaWorld) -> None:
    agent = world.agent(name="ann", enable_sleeptime=True)
    assert agent.managed_group is not None
    config = {"manager_type": "sleeptime", "sleeptime_agent_frequency": 3}
    world.ask("PATCH", f"/v1/groups/{agent.managed_group.id}", {"manager_config": config})
    (id,) = bring_in(world, export(world, agent.id))
    copy_ = world.letta.agents.retrieve(id)
    assert copy_.managed_group is not None
    assert copy_.managed_group.sleeptime_agent_frequency == 3
    assert copy_.managed_group.agent_ids != agent.managed_group.agent_ids
    assert len(world.letta.agents.list().items) == 4


def test_a_sleeptime_agent_of_a_letta_server_is_recreated(world: LettaWorld) -> None:
    def with_group(file: dict[str, Any]) -> None:
        first = agent_of(file)
        sleeper = {
            **copy.deepcopy(first),
            "id": "agent-9",
            "agent_type": "sleeptime_agent",
            "name": "clerk-sleeptime",
        }
        file["agents"].append(sleeper)
        manager = {
            "manager_type": "sleeptime",
            "manager_agent_id": first["id"],
            "sleeptime_agent_frequency": 7,
        }
        others = {"manager_type": "round_robin"}
        file["groups"] = [
            {
                "id": "group-0",
                "agent_ids": ["agent-9"],
                "manager_config": manager,
                "description": "",
                "shared_block_ids": [],
            },
            {"id": "group-1", "agent_ids": [first["id"]], "manager_config": others, "description": ""},
        ]

    raw = world.letta.agents.with_raw_response.import_file(file=("a.af", changed(with_group)))
    (id,) = raw.parse().agent_ids
    assert {"groups.1", "agents.1"} <= {*raw.headers["x-mnemogate-left-out"].split(",")}
    assert "groups.0" not in raw.headers["x-mnemogate-left-out"]
    group = world.letta.agents.retrieve(id).managed_group
    assert group is not None
    assert group.sleeptime_agent_frequency == 7
    assert len(world.letta.agents.list().items) == 2


@pytest.mark.parametrize(
    ("most", "least", "imported"),
    [(60, 20, (60, 20)), (10, 20, (None, None)), (60, None, (None, None))],
    ids=["fitting", "crossed", "one"],
)
def test_a_voice_agent_of_a_letta_server_has_the_window_of_its_group(
    world: LettaWorld, most: int, least: int | None, imported: tuple[int | None, int | None]
) -> None:
    def with_voice_group(file: File) -> None:
        first = agent_of(file)
        first["agent_type"] = "voice_convo_agent"
        manager = {
            "manager_type": "voice_sleeptime",
            "manager_agent_id": first["id"],
            "max_message_buffer_length": most,
            "min_message_buffer_length": least,
        }
        file["groups"] = [{"id": "group-0", "agent_ids": [], "manager_config": manager, "description": ""}]

    (id,) = bring_in(world, changed(with_voice_group))
    group = world.letta.agents.retrieve(id).managed_group
    assert group is not None
    assert (group.max_message_buffer_length, group.min_message_buffer_length) == imported


def changed(edit: Any) -> bytes:
    file = copy.deepcopy(LETTA_FILE)
    edit(file)
    return orjson.dumps(file)


def agent_of(file: File) -> File:
    found = file["agents"][0]
    assert isinstance(found, dict)
    return found


HOSTILE: dict[str, Any] = {
    "no JSON": b"{",
    "nothing": b"",
    "a number": b"7",
    "a list": b"[]",
    "deep": b"[" * 5000,
    "deep in a field that nobody knows": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a text": orjson.dumps("x"),
    "no agents": orjson.dumps({"agents": []}),
    "older form of a text": orjson.dumps({**OLDER_FILE, "core_memory": "x"}),
    "older form with a tag of a text": orjson.dumps({**OLDER_FILE, "tags": ["x"]}),
    "older form with a message of a number": orjson.dumps({**OLDER_FILE, "messages": [7]}),
    "older form with a prompt of a number": orjson.dumps(
        {**OLDER_FILE, "messages": [{"role": "system", "content": 7}]}
    ),
    "older form with a secret": orjson.dumps(
        {**OLDER_FILE, "tool_exec_environment_variables": [{"key": "a", "value": "b"}]}
    ),
    "agents are a text": changed(lambda f: f.update(agents="x")),
    "an agent is a number": changed(lambda f: f.update(agents=[1])),
    "no id": changed(lambda f: agent_of(f).pop("id")),
    "an id twice": changed(lambda f: f["agents"].append(f["agents"][0])),
    "a block that is not there": changed(lambda f: agent_of(f).update(block_ids=["block-9"])),
    "a tool that is not there": changed(lambda f: agent_of(f).update(tool_ids=["tool-99"])),
    "a folder that is not there": changed(lambda f: agent_of(f).update(source_ids=["source-9"])),
    "a file of no folder": changed(lambda f: f["files"][0].update(source_id="source-9")),
    "a result of an unknown status": changed(
        lambda f: agent_of(f)["messages"][3]["tool_returns"][0].update(status="perhaps")
    ),
    "a type that nobody knows": changed(lambda f: agent_of(f).update(agent_type="robot")),
    "a rule that nobody knows": changed(
        lambda f: agent_of(f).update(tool_rules=[{"type": "x", "tool_name": "y"}])
    ),
    "rules are a text": changed(lambda f: agent_of(f).update(tool_rules="x")),
    "rules are a number": changed(lambda f: agent_of(f).update(tool_rules=1.5)),
    "messages are a number": changed(lambda f: agent_of(f).update(messages=7)),
    "a message without a role": changed(lambda f: agent_of(f)["messages"][1].pop("role")),
    "a call without a name": changed(
        lambda f: agent_of(f)["messages"][2].update(tool_calls=[{"id": "c", "function": {}}])
    ),
    "a block of a number": changed(lambda f: f["blocks"][0].update(value=7)),
    "labels twice": changed(lambda f: f["blocks"][0].update(label="persona")),
    "a window below 0": changed(lambda f: agent_of(f).update(context_window_limit=-1)),
    "a timezone that is none": changed(lambda f: agent_of(f).update(timezone="Mars")),
    "a tag that no database indexes": changed(lambda f: agent_of(f).update(tags=["t" * 400])),
    "a secret": changed(lambda f: agent_of(f).update(secrets={"a": "b"})),
    "a tool without a schema": changed(lambda f: f["tools"][2].update(json_schema=None)),
    "a tool of another name": changed(lambda f: f["tools"][2]["json_schema"].update(name="other")),
    "properties are a list": changed(
        lambda f: f["tools"][2]["json_schema"].update(parameters={"type": "object", "properties": []})
    ),
    "required is a number": changed(
        lambda f: f["tools"][2]["json_schema"].update(parameters={"type": "object", "required": 7})
    ),
    "ours is no JSON": changed(lambda f: f["metadata"].update(mnemogate="{")),
    "ours is a list": changed(lambda f: f["metadata"].update(mnemogate="[]")),
    "a passage of a number": changed(
        lambda f: f["metadata"].update(
            mnemogate=json.dumps({"agents": {"agent-0": {"passages": [{"text": 7}]}}})
        )
    ),
    **{
        f"very many {part}": changed(lambda f, part=part: f[part].extend([f[part][0]] * 10_000))
        for part in ("blocks", "tools", "sources", "files")
    },
    "very many groups": changed(lambda f: f.update(groups=[{}] * 10_001)),
    "a file too large": changed(lambda f: f["files"][0].update(content="x" * 10_000_001)),
    "a group that reads after more turns than there are numbers": changed(
        lambda f: f.update(
            groups=[
                {
                    "manager_config": {
                        "manager_type": "sleeptime",
                        "manager_agent_id": "agent-0",
                        "sleeptime_agent_frequency": 1 << 63,
                    }
                }
            ]
        )
    ),
    "a name of a profile": changed(lambda f: agent_of(f).update(name="helper")),
}


def test_a_fault_of_a_tool_names_the_tool(
    upstream: StrictUpstream, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    odd_name = changed(
        lambda f: (f["tools"][2].update(name="a b"), f["tools"][2]["json_schema"].update(name="a b"))
    )
    with letta(upstream, tmp_path, ProfileSettings("helper")) as world:
        for file, *end in (
            (odd_name, "name"),
            (HOSTILE["properties are a list"], "parameters", "properties"),
            (HOSTILE["required is a number"], "parameters", "required"),
        ):
            with subtests.test(end=end), pytest.raises(APIStatusError) as refused:
                bring_in(world, file)
            (fault,) = json.loads(refused.value.response.text)["detail"]
            assert fault["loc"] == ["body", "file", "tools", 2, "json_schema", *end]


def test_a_fault_of_a_files_folder_names_the_field(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, ProfileSettings("helper")) as world:
        with pytest.raises(APIStatusError) as refused:
            bring_in(world, HOSTILE["a file of no folder"])
        (fault,) = json.loads(refused.value.response.text)["detail"]
        assert fault["loc"] == ["body", "file", "files", 0, "source_id"]


@pytest.mark.parametrize("fields", [("name", "model"), ("override_name", "override_model_handle")])
def test_the_names_in_the_form_override_those_in_the_file(world: LettaWorld, fields: tuple[str, str]) -> None:
    file = export(world, world.letta.agents.create(name="ann", model="fast").id)
    (copied,) = bring_in(world, file, **dict(zip(fields, ("bea", "clever"), strict=True)))
    copy = world.letta.agents.retrieve(copied)
    assert (copy.name, copy.model) == ("bea", "clever")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"response_format": {"type": "xml"}}, ["response_format"]),
        ({"model_settings": {"temperature": "hot"}}, ["model_settings", "temperature"]),
        ({"llm_config": {"context_window": "wide"}}, ["llm_config", "context_window"]),
        ({"timezone": "Mars/Olympus"}, ["timezone"]),
    ],
)
def test_a_fault_of_a_files_agent_names_the_field(world: LettaWorld, fields: File, path: list[str]) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        bring_in(world, changed(lambda f: agent_of(f).update(fields)))
    (fault,) = json.loads(refused.value.response.text)["detail"]
    assert fault["loc"][: 4 + len(path)] == ["body", "file", "agents", 0, *path]


def test_an_id_that_is_missing_is_missing(world: LettaWorld) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        bring_in(world, HOSTILE["no id"])
    (fault,) = json.loads(refused.value.response.text)["detail"]
    assert (fault["type"], fault["loc"]) == ("missing", ["body", "file", "agents", 0, "id"])


def test_a_hostile_file_is_refused_and_leaves_nothing(
    upstream: StrictUpstream, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    with letta(upstream, tmp_path, ProfileSettings("helper")) as world:
        before = counts(world)
        for name, file in HOSTILE.items():
            with subtests.test(name):
                with pytest.raises(APIStatusError) as refused:
                    bring_in(world, file)
                assert refused.value.status_code in (400, 409, 413, 422), refused.value
                assert "detail" in json.loads(refused.value.response.text)
                assert counts(world) == before


WIDE = {f"k{n}": n for n in range(30_000)}
TOO_LARGE: dict[str, tuple[bytes, list[str | int]]] = {
    "an agent's metadata": (
        changed(lambda f: agent_of(f).update(metadata=WIDE)),
        ["agents", 0, "metadata"],
    ),
    "an agent's response_format": (
        changed(lambda f: agent_of(f).update(response_format=WIDE)),
        ["agents", 0, "response_format"],
    ),
    "an older agent's metadata": (
        orjson.dumps({**OLDER_FILE, "metadata_": WIDE}),
        ["metadata_"],
    ),
    "a block's metadata": (
        changed(lambda f: f["blocks"][0].update(metadata=WIDE)),
        ["blocks", 0, "metadata"],
    ),
    "a tool's metadata": (
        changed(lambda f: f["tools"][2].update(metadata_=WIDE)),
        ["tools", 2, "metadata_"],
    ),
    "a folder's metadata": (
        changed(lambda f: f["sources"][0].update(metadata=WIDE)),
        ["sources", 0, "metadata"],
    ),
    "a passage's metadata": (
        changed(
            lambda f: f["metadata"].update(
                mnemogate=json.dumps({"agents": {"agent-0": {"passages": [{"text": "a", "metadata": WIDE}]}}})
            )
        ),
        ["metadata", "mnemogate", "agents", "passages", 0, "metadata"],
    ),
}


@each_row("name", TOO_LARGE)
def test_an_object_of_any_names_is_bounded(world: LettaWorld, name: str) -> None:
    data, at = TOO_LARGE[name]
    with pytest.raises(UnprocessableEntityError) as refused:
        bring_in(world, data)
    error = json.loads(refused.value.response.text)["detail"][0]
    assert error["loc"] == ["body", "file", *at]
    assert "262,144 bytes" in error["msg"]


def test_a_store_that_fails_in_the_middle_is_left_as_it_was(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rich(world)
    schema: dict[str, object] = {"name": "look_up", "description": "mine", "parameters": {}}
    (tool,) = list(world.letta.tools.list(name="look_up"))
    file = export(world, made["agent"])
    world.letta.tools.update(tool.id, json_schema=schema)
    before = counts(world)
    writer = world.world.gateway.app.services.store.import_writer

    async def fails(*_: object) -> None:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(writer, "finish", fails)
    with pytest.raises(APIStatusError) as failed:
        bring_in(world, file)
    assert failed.value.status_code == 500
    assert counts(world) == before
    assert world.letta.tools.retrieve(tool.id).description == "mine"


@pytest.mark.both
def test_the_unfinished_import_of_a_killed_gateway_is_forgotten(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has an id of its own, so that no later import takes its place, and no request finds it."""
    agent = world.agent()
    world.letta.agents.messages.create(agent.id, input="I have a boat.")
    file, before = export(world, agent.id), counts(world)

    async def dies(*_: object) -> None:
        raise StoreUnavailable("the gateway was killed")

    with monkeypatch.context() as patch:
        patch.setattr(ImportWriter, "finish", dies)
        patch.setattr(AgentImport, "_roll_back", dies)
        with pytest.raises(APIStatusError):
            bring_in(world, file)
    left = counts(world)
    retention = Retention(world.world.store, {}, world.world.clock)
    world.world.gateway.call(retention.forget_old())
    assert counts(world) == left != before, "another process may be writing it"
    world.world.clock.sleep(2 * 86_400)
    assert world.world.gateway.call(retention.forget_old()) == 1
    assert counts(world) == before


def test_a_list_that_is_too_long_is_named() -> None:
    with pytest.raises(Unprocessable) as refused:
        read_file(HOSTILE["very many blocks"], ImportForm(), 0.0)
    fault = refused.value.fault
    assert fault.path == ("body", "file", "blocks")
    assert fault.message == "Expected 'array' of length <= 10000"


@pytest.mark.parametrize("function", ["read_file", "write_agent_file"])
def test_others_are_answered_while_a_file_is_read_or_written(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    real, works, may_go_on = getattr(file_routes, function), Event(), Event()

    def slow(*given: Any) -> Any:
        works.set()
        assert may_go_on.wait(PATIENCE_S)
        return real(*given)

    id = world.agent().id
    monkeypatch.setattr(file_routes, function, slow)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(
            lambda: bring_in(world, LETTA_FILE) if function == "read_file" else export(world, id)["agents"]
        )
        try:
            assert works.wait(PATIENCE_S)
            health = httpx.get(f"{world.world.gateway.url.removesuffix('/v1')}/health", timeout=SHORT_S * 10)
            assert health.status_code == 200
        finally:
            may_go_on.set()
        assert len(future.result()) == 1


def test_the_epoch_is_a_time_as_any_other() -> None:
    passages = [{"text": "Old.", "created_at": "1970-01-01T00:00:00Z"}, {"text": "New."}]
    own = json.dumps({"agents": {"agent-0": {"passages": passages}}})
    data = changed(lambda f: f["metadata"].update(mnemogate=own))
    (agent,) = read_file(data, ImportForm(), 5.0).agents
    assert [each.at for each in agent.passages] == [0.0, 5.0]


def test_a_file_is_read_in_time_that_its_messages_take() -> None:
    """Twenty thousand results after one reply were looked through for each of them: 18 seconds."""
    looked = 0

    class Role(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            nonlocal looked
            looked += key == "role"
            return super().__getitem__(key)

    count = 500
    messages = [Role(role="user", content="x"), Role(role="assistant", content="")]
    messages += [Role(role="tool", content="ok") for _ in range(count)]
    ((came, reply),) = group_exchanges([PortableMessage(each, 0.0) for each in messages])
    assert (len(came), len(reply)) == (1, count + 1)
    assert looked < 5 * count


def test_the_calls_of_a_reply_that_come_in_many_messages_are_its_own() -> None:
    file = copy.deepcopy(LETTA_FILE)
    call = {"type": "function", "function": {"name": "roll", "arguments": "{}"}}
    agent_of(file)["messages"] = [
        {"id": "m", "role": "user", "content": "x"},
        *(
            {"id": f"m{n}", "role": "approval" if n else "assistant", "tool_calls": [{**call, "id": f"c{n}"}]}
            for n in range(300)
        ),
    ]
    (agent,) = read_file(orjson.dumps(file), ImportForm(), 0.0).agents
    calls = [each.message.get("tool_calls") for each in agent.messages if each.message["role"] == "assistant"]
    assert [[each["id"] for each in some or ()] for some in calls] == [[f"c{n}" for n in range(300)]]


def test_a_message_with_several_results_without_calls_is_reported_once() -> None:
    file = copy.deepcopy(LETTA_FILE)
    returns = [{"tool_call_id": id, "func_response": "ok"} for id in ("gone_1", "gone_2")]
    agent_of(file)["messages"] = [
        {"id": "m0", "role": "user", "content": "x"},
        {"id": "m1", "role": "tool", "tool_returns": returns},
    ]
    left_out = read_file(orjson.dumps(file), ImportForm(), 0.0).left_out
    assert [name for name in left_out if ".messages." in name] == ["agents.0.messages.1"]


def test_a_message_of_an_unknown_role_is_reported() -> None:
    file = copy.deepcopy(LETTA_FILE)
    agent_of(file)["messages"] = [
        {"id": "m0", "role": "user", "content": "x"},
        {"id": "m1", "role": "narrator", "content": "It rains."},
    ]
    left_out = read_file(orjson.dumps(file), ImportForm(), 0.0).left_out
    assert [name for name in left_out if ".messages." in name] == ["agents.0.messages.1"]


def test_agents_of_one_file_share_its_blocks(world: LettaWorld) -> None:
    file = copy.deepcopy(LETTA_FILE)
    twin = copy.deepcopy(file["agents"][0])
    twin.update(id="agent-1", name="twin")
    file["agents"].append(twin)
    one, two = bring_in(world, file)
    blocks = world.letta.agents.blocks
    blocks.update("human", agent_id=one, value="Name: Bo")
    assert blocks.retrieve("human", agent_id=two).value == "Name: Bo"
    assert world.letta.agents.retrieve(two).name == "twin"


def test_a_long_passage_of_a_file_becomes_several(world: LettaWorld) -> None:
    file = export(world, world.agent().id)
    long = "One sentence of a long text. " * 200
    own = json.loads(file["metadata"]["mnemogate"])
    own["agents"]["agent-0"]["passages"] = [{"text": long}, {"text": " "}, {"text": "The fern is old."}]
    file["metadata"]["mnemogate"] = json.dumps(own)
    (id,) = bring_in(world, file)
    saved = [each.text for each in world.letta.agents.passages.list(id)]
    assert len(saved) > 3
    assert all(0 < len(each) <= 2000 for each in saved)
    assert " ".join(saved) == f"{long}The fern is old."
    world.letta.agents.messages.create(id, input="Hello.")


def test_messages_that_no_provider_takes_do_not_brick_a_copy(world: LettaWorld) -> None:
    """A summary of Letta's server took a call away and left its result; a reply of nothing was stored as null."""
    file = copy.deepcopy(LETTA_FILE)
    messages = file["agents"][0]["messages"]
    messages[6:6] = [messages[3], {**messages[4], "content": [], "tool_calls": None, "id": "message-empty"}]
    raw = world.letta.agents.with_raw_response.import_file(file=("a.af", orjson.dumps(file)))
    assert "agents.0.messages.6" in raw.headers["x-mnemogate-left-out"].split(",")
    (id,) = raw.parse().agent_ids
    world.upstream.queue(call_tools(Call("send_message", {"message": "Gladly."})))
    reply = world.letta.agents.messages.create(id, input="One more pen, please.")
    assert "Gladly." in [getattr(each, "content", None) for each in reply.messages]
    sent = world.upstream.last.messages
    assert [m["tool_call_id"] for m in sent if m["role"] == "tool"] == ["call_1", "call_2"]
    assert "(No reply.)" in [m["content"] for m in sent if m["role"] == "assistant"]


def test_names_and_arguments_that_no_provider_takes_do_not_brick_a_copy(world: LettaWorld) -> None:
    file = copy.deepcopy(LETTA_FILE)
    messages = file["agents"][0]["messages"]
    messages[1]["name"] = "Ann Smith"
    messages[2]["tool_calls"][0]["function"] = {"name": "shop.look up", "arguments": "{"}
    messages[3]["name"] = "shop.look up"
    (id,) = bring_in(world, file)
    world.letta.agents.messages.create(id, input="One more pen, please.")
    sent = world.upstream.last.messages
    assert [m.get("name") for m in sent[1:4]] == ["Ann_Smith", None, "shop.look_up"]
    assert sent[2]["tool_calls"][0]["function"] == {"name": "shop_look_up", "arguments": "{}"}


def packed(**fields: Any) -> str:
    return json.dumps({**fields, "time": "2025-10-31 03:56:00 PM PDT-0700"})


def test_packed_messages_of_older_letta_agents_are_shown_unpacked(world: LettaWorld) -> None:
    file = copy.deepcopy(LETTA_FILE)
    messages = file["agents"][0]["messages"]
    messages[1]["content"][0]["text"] = packed(
        type="user_message", message="Where is order 7?", location="Bonn"
    )
    result = messages[3]["tool_returns"][0]
    result["func_response"] = packed(status="Failed", message="There is no order 7.")
    result["status"] = None
    alike = '{"message": "a text of the user\'s own", "type": "user_message"}'
    messages[7]["content"][0]["text"] = alike
    (id,) = bring_in(world, file)
    shown = spoken(world.letta.agents.messages.list(id, order="asc"))
    asked = [each.content for each in shown if each.message_type == "user_message"]
    assert asked == ["Where is order 7?", f"{alike}\nAnd a pen?"]
    (told,) = [each for each in shown if each.message_type == "tool_return_message"]
    assert (told.tool_return, told.status) == ("There is no order 7.", "error")
    world.letta.agents.messages.create(id, input="One more pen, please.")
    sent = world.upstream.last.messages
    assert [m["content"] for m in sent[1:4:2]] == ["Where is order 7?", "There is no order 7."]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (packed(status="OK", message="Two."), "Two."),
        (packed(status="OK", message="a\0b"), "ab"),  # not every database has U+0000
        # A file of 0.16.8 has conversation_search's own result so.
        (
            packed(status="OK", message={"message": "Showing 1 results:", "results": [{"role": "user"}]}),
            '{"message":"Showing 1 results:","results":[{"role":"user"}]}',
        ),
        (own := packed(status="OK", message="Two rows.", rows=[1, 2]), own),  # of the tool's own
    ],
)
def test_a_packed_result_has_nothing_but_its_text(world: LettaWorld, result: str, told: str) -> None:
    file = copy.deepcopy(LETTA_FILE)
    file["agents"][0]["messages"][3]["tool_returns"][0]["func_response"] = result
    (id,) = bring_in(world, file)
    messages = spoken(world.letta.agents.messages.list(id, order="asc"))
    assert [each.tool_return for each in messages if each.message_type == "tool_return_message"] == [told]


def test_replies_without_words_between_them_keep_their_order(world: LettaWorld) -> None:
    world.upstream.queue(say("One."), say("Two."))
    agent = world.agent()
    for text in ("a", "b"):
        world.letta.agents.messages.create(agent.id, input=text)
    file = export(world, agent.id)
    messages = file["agents"][0]["messages"]
    del messages[3]  # the second question
    (id,) = bring_in(world, file)
    shown = [
        getattr(each, "content", None) for each in spoken(world.letta.agents.messages.list(id, order="asc"))
    ]
    assert shown == ["a", "One.", "Two."]
    world.letta.agents.messages.create(id, input="c")


def test_a_result_is_what_the_tool_said(world: LettaWorld) -> None:
    """The note of changed blocks after a result stays with the agent of the blocks."""
    agent = world.agent()

    def change_and_call(request: UpstreamRequest) -> Reply | None:
        if request.messages[-1]["role"] != "user":
            return None
        world.make_client().agents.blocks.update("human", agent_id=agent.id, value="Name: Anna")
        return call_tools(Call("conversation_search", {"query": "cats"}))

    world.upstream.script = change_and_call
    world.letta.agents.messages.create(agent.id, input="Look.")
    assert "Name: Anna" in world.upstream.last.messages[-1]["content"]
    file = export(world, agent.id)
    result = file["agents"][0]["messages"][3]
    assert result["content"][0]["text"] == result["tool_returns"][0]["func_response"]
    assert json.loads(result["content"][0]["text"])["message"] == "Nothing was found."


def test_an_agent_from_either_end_of_the_calendar_goes_round(world: LettaWorld) -> None:
    agent = world.agent()
    first, last = "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999Z"
    for at in (first, last):
        (made,) = world.letta.agents.passages.create(agent.id, text="Keep it.", created_at=at)
        assert made.created_at is not None
        assert made.created_at.year == int(at[:4])
    world.upstream.queue(call_tools(Call("conversation_search", {"query": "x"})), say("Done."))
    world.letta.agents.messages.create(agent.id, input="Keep it.")
    file = export(world, agent.id)
    for n, message in enumerate(file["agents"][0]["messages"]):
        message["created_at"] = last if n % 2 else first
    (copied,) = bring_in(world, file)
    again = export(world, copied)
    assert len(again["agents"][0]["messages"]) == len(file["agents"][0]["messages"])
    assert json.loads(again["metadata"]["mnemogate"]) == json.loads(file["metadata"]["mnemogate"])


def test_lettas_server_can_list_the_messages_of_a_file(world: LettaWorld) -> None:
    """0.16.8 takes any file, and answers the list of its agent's messages with an error ever after:

    400 "Invalid system message (no text object on system): []" where one has no text, and 500 "An unknown error
    occurred" where a result is not the object in which it packs its own.
    """
    agent = world.agent(system="")
    search = Call("conversation_search", {"query": "x"})
    world.upstream.queue(call_tools(search), call_tools(Call("nope")), say("Done."))
    world.letta.agents.messages.create(agent.id, input="Keep it.")
    file = export(world, agent.id)
    messages = file["agents"][0]["messages"]
    assert messages[0]["content"] == [{"type": "text", "text": "", "signature": None}]
    results = [each for each in messages if each["role"] == "tool"]
    packed = [json.loads(each["tool_returns"][0]["func_response"]) for each in results]
    assert [(each["status"], each["time"]) for each in packed] == [
        ("OK", "2025-10-09 08:53:20 AM UTC+0000"),
        ("Failed", "2025-10-09 08:53:20 AM UTC+0000"),
    ]
    # Here it is read as what it was.
    (copied,) = bring_in(world, file)
    said = [(each["message"], status) for each, status in zip(packed, ("success", "error"), strict=True)]
    for id in (agent.id, copied):
        listed = spoken(world.letta.agents.messages.list(id, order="asc"))
        told = [(m.tool_return, m.status) for m in listed if m.message_type == "tool_return_message"]
        assert told == said


def test_an_agent_of_another_project_is_not_exported(world: LettaWorld) -> None:
    agent = world.agent()
    gateway = world.world.gateway
    other = world.make_client(gateway.call(gateway.app.services.store.keys.create("elsewhere", "test"))[1])
    with pytest.raises(APIStatusError) as missing:
        other.agents.export_file(agent.id)
    assert missing.value.status_code == 404
