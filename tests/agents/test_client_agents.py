"""Agents and tools by the client's own methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from letta_client import (
    APIStatusError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    UnprocessableEntityError,
)

from gateway.settings import ModelSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import agent as profile
from tests.patience import becomes
from tests.rows import each_row


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def detail(error: APIStatusError) -> Any:
    assert isinstance(error.body, dict)
    return error.body["detail"]


def test_an_agent_is_as_it_was_made(world: LettaWorld) -> None:
    agent = world.letta.agents.create(
        name="bob", model="openai/m", system="You help.", description="A helper.", tags=["a", "b"],
        memory_blocks=[{"label": "human", "value": "Ann", "limit": 50, "description": "Who it is."}],
        metadata={"team": 7}, context_window_limit=9000, timezone="Europe/Zurich",
        model_settings={"provider_type": "openai", "temperature": 0.5},
        tool_rules=[{"type": "exit_loop", "tool_name": "memory_insert"}],
    )  # fmt: skip
    again = world.letta.agents.retrieve(agent.id)
    assert again == agent
    assert (agent.name, agent.system, agent.description) == ("bob", "You help.", "A helper.")
    assert (agent.agent_type, agent.timezone, agent.metadata) == (
        "letta_v1_agent",
        "Europe/Zurich",
        {"team": 7},
    )
    assert sorted(agent.tags) == ["a", "b"]
    assert agent.llm_config.handle == "openai/m"
    assert (agent.llm_config.temperature, agent.llm_config.context_window) == (0.5, 9000)
    (block,) = agent.blocks
    assert (block.label, block.value, block.limit, block.description) == ("human", "Ann", 50, "Who it is.")
    assert [tool.name for tool in agent.tools] == ["conversation_search", "memory_insert", "memory_replace"]
    assert [(rule.type, rule.tool_name) for rule in agent.tool_rules or ()] == [
        ("exit_loop", "memory_insert")
    ]


def test_fields_that_letta_does_not_accept_as_null_are_left_out(world: LettaWorld) -> None:
    """The TypeScript client's types have no null there, and Letta's server would refuse an agent file with one."""
    config: Any = {"model": "m", "model_endpoint_type": "openai", "context_window": 9000}
    for given in ({}, {"llm_config": {**config, "temperature": None, "enable_reasoner": None}}):
        shown_config = world.agent(**given).to_dict()["llm_config"]
        assert {"temperature", "enable_reasoner"}.isdisjoint(shown_config)
        assert shown_config["max_tokens"] is None


def test_a_field_without_effect_is_stored_and_named(world: LettaWorld) -> None:
    raw = world.letta.agents.with_raw_response.create(
        model="openai/m", embedding="openai/e", max_files_open=3
    )
    assert raw.headers["x-mnemogate-kept"] == "embedding,max_files_open"
    made = raw.parse()
    assert (made.embedding, made.max_files_open) == ("openai/e", 3)
    agent = world.letta.agents.retrieve(made.id)
    assert agent.embedding == "openai/e"
    assert agent.embedding_config is not None
    assert agent.embedding_config.embedding_model == "e"


def test_an_agent_changes_in_what_is_sent(world: LettaWorld) -> None:
    agent = world.agent(name="bob", system="Old.", tags=["a"], description="What.")
    changed = world.letta.agents.update(agent.id, system="New.", tags=["b"], description="")
    assert (changed.system, changed.tags, changed.description, changed.name) == ("New.", ["b"], "", "bob")
    assert changed.blocks == agent.blocks
    block = world.letta.blocks.create(label="job", value="Baker")
    tool = next(iter(world.letta.tools.list(name="send_message")))
    changed = world.letta.agents.update(agent.id, block_ids=[block.id], tool_ids=[tool.id])
    assert [each.label for each in changed.blocks] == ["job"]
    assert [each.name for each in changed.tools] == ["send_message"]


def test_the_settings_of_a_model_are_shown_as_they_hold(world: LettaWorld) -> None:
    thinks: Any = {"provider_type": "openai", "reasoning": {"reasoning_effort": "high"}, "temperature": 0.5}
    agent = world.agent(model_settings={**thinks, "verbosity": "low", "strict": True})

    def changed(**fields: Any) -> Any:
        return world.letta.agents.update(agent.id, **fields).to_dict()["model_settings"]

    hotter = {"provider_type": "openai", "temperature": 0.7}
    own = {"max_output_tokens": None, "parallel_tool_calls": None, "response_format": None}
    assert changed(model_settings=hotter) == {**own, **thinks, **hotter, "verbosity": "low", "strict": True}
    world.letta.agents.messages.create(agent.id, input="Hi")
    body = world.upstream.last.json
    assert (body["temperature"], body["reasoning_effort"], body["verbosity"]) == (0.7, "high", "low")
    config = {"model": "m", "model_endpoint_type": "openai", "context_window": 9000, "temperature": None}
    shown = changed(llm_config=config, max_tokens=7)
    assert (shown.get("temperature"), shown["max_output_tokens"]) == (None, 7)


def test_the_settings_that_count_are_shown_whichever_field_has_set_them(world: LettaWorld) -> None:
    """0.16.8 shows what each request of the agent bears, of an agent too that named its model alone."""
    unset = dict.fromkeys(
        ("max_output_tokens", "parallel_tool_calls", "temperature", "reasoning", "response_format")
    )
    agent = world.agent()
    assert agent.to_dict()["model_settings"] == {"provider_type": "openai", **unset}
    config: Any = {
        "model": "m", "model_endpoint_type": "openai", "context_window": 9000, "temperature": 0.3,
        "reasoning_effort": "low",
    }  # fmt: skip
    world.letta.agents.update(agent.id, llm_config=config, max_tokens=70, parallel_tool_calls=False)
    changed = world.letta.agents.update(agent.id, response_format={"type": "json_object"})
    assert changed.to_dict()["model_settings"] == {
        "provider_type": "openai", "max_output_tokens": 70, "parallel_tool_calls": False, "temperature": 0.3,
        "reasoning": {"reasoning_effort": "low"}, "response_format": {"type": "json_object"},
    }  # fmt: skip
    claude = world.agent(model="anthropic/claude-opus-4-6").to_dict()["model_settings"]
    assert claude == {
        "provider_type": "anthropic", "max_output_tokens": None, "parallel_tool_calls": None, "temperature": None,
        "effort": None, "response_format": None,
    }  # fmt: skip


def test_the_provider_that_was_sent_holds_for_its_model_alone(world: LettaWorld) -> None:
    settings: Any = {"provider_type": "anthropic", "effort": "low"}
    agent = world.agent(model="anthropic/claude-opus-4-6", model_settings=settings)

    def changed(**fields: Any) -> Any:
        shown = world.letta.agents.update(agent.id, **fields).to_dict()["model_settings"]
        return {name: shown.get(name) for name in ("provider_type", "effort", "reasoning")}

    claude = {"provider_type": "anthropic", "effort": "low", "reasoning": None}
    assert changed(model="anthropic/claude-opus-4-6") == claude  # the same model
    other = {"provider_type": "openai", "effort": None, "reasoning": {"reasoning_effort": "low"}}
    assert changed(model="openai/gpt-5-mini") == other
    assert changed(model="anthropic/claude-opus-4-6", model_settings={"provider_type": "anthropic"}) == claude
    config: Any = {"model": "gpt-5-mini", "model_endpoint_type": "openai", "context_window": 9000}
    assert changed(llm_config={**config, "handle": "openai/gpt-5-mini"}) == other


def test_the_settings_of_a_model_are_bounded_together(world: LettaWorld) -> None:
    agent, half = world.agent(model_settings={"provider_type": "openai", "a": "x" * 150_000}), "x" * 150_000
    with pytest.raises(UnprocessableEntityError, match="262,144 bytes") as refused:
        world.letta.agents.update(agent.id, model_settings={"provider_type": "openai", "b": half})  # type: ignore[typeddict-unknown-key]
    assert detail(refused.value)[0]["loc"] == ["body", "model_settings"]
    changed = world.letta.agents.update(agent.id, model_settings={"provider_type": "openai", "a": "y"})  # type: ignore[typeddict-unknown-key]
    assert changed.to_dict()["model_settings"]["a"] == "y"  # type: ignore[index]


def test_settings_that_its_model_refuses_are_left_out(world: LettaWorld) -> None:
    """Letta's server left them out for these models, so agents have them: OpenAI would answer each send with a 400."""
    config: Any = {
        "model": "o4-mini", "handle": "openai/o4-mini", "model_endpoint_type": "openai", "context_window": 9000,
        "temperature": 0.7, "max_tokens": 500, "reasoning_effort": "low", "parallel_tool_calls": False,
    }  # fmt: skip
    rules: Any = [
        {"type": "constrain_child_tools", "tool_name": "memory_insert", "children": ["memory_replace"]}
    ]
    agent = world.agent(model=None, llm_config=config, tool_rules=rules)
    names = ("temperature", "max_tokens", "max_completion_tokens", "reasoning_effort", "parallel_tool_calls")

    def asked(**chat: Any) -> list[Any]:
        """Returns what both steps of a turn are asked with."""
        world.upstream.queue(call_tools(Call("conversation_search", {"query": "x"})), say("Yes."))
        if chat:
            world.world.post([{"role": "user", "content": "Hi."}], model=f"agent/{agent.id}", **chat)
        else:
            world.letta.agents.messages.create(agent.id, input="Hi.")
        return [
            {n: request.json[n] for n in names if n in request.json}
            for request in world.upstream.requests[-2:]
        ]

    taken = {"max_completion_tokens": 500, "reasoning_effort": "low"}
    assert asked() == [taken, taken]
    first, second = asked(stream=False)
    assert first == taken
    # What is left of the limit of a chat completion goes under the same name.
    assert second.keys() == first.keys()
    assert second["max_completion_tokens"] < 500
    # What an application says itself goes as it is.
    assert asked(max_tokens=70)[0] == {"max_tokens": 70, "reasoning_effort": "low"}
    # The same agent with a model that takes them.
    world.letta.agents.update(agent.id, model="openai/gpt-4o")
    assert asked()[0] == {"temperature": 0.7, "max_tokens": 500, "parallel_tool_calls": False}


@pytest.mark.parametrize("mode", ["on", "read", "off"])
def test_they_are_left_out_whatever_memory_does(world: LettaWorld, mode: str) -> None:
    agent = world.agent(model="openai/gpt-5", max_tokens=9)
    messages = [{"role": "user", "content": "Hi."}]
    world.world.post(messages, {"x-mnemogate-memory": mode}, model=f"agent/{agent.id}")
    assert world.upstream.last.json.get("max_completion_tokens") == 9
    assert "max_tokens" not in world.upstream.last.json


def test_an_agents_settings_leave_the_limit_of_a_messages_request_to_be_renamed(world: LettaWorld) -> None:
    """Its API demands `max_tokens`, so the limit goes under the name that the model takes, as without an agent."""
    settings: Any = {"provider_type": "openai", "reasoning": {"reasoning_effort": "low"}}
    agent = world.agent(model="openai/gpt-5", model_settings=settings)
    body = {
        "model": f"agent/{agent.id}", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi."}]
    }  # fmt: skip
    assert world.world.gateway.ask("POST", "/v1/messages", orjson.dumps(body)).status == 200
    asked = world.upstream.last.json
    assert asked["reasoning_effort"] == "low"
    assert (asked.get("max_completion_tokens"), "max_tokens" in asked) == (9, False)


def test_an_agent_without_tools_says_nothing_of_parallel_calls(world: LettaWorld) -> None:
    """Strict upstreams take that with tools only."""
    settings: Any = {"provider_type": "openai", "parallel_tool_calls": True}
    agent = world.agent(model_settings=settings, include_base_tools=False)
    assert len(world.letta.agents.messages.create(agent.id, input="Hi").messages) == 1
    assert "parallel_tool_calls" not in world.upstream.last.json


def test_an_agent_with_a_form_for_its_answers_has_its_tools(world: LettaWorld) -> None:
    form = {"type": "json_object"}
    agent = world.agent(response_format=form, parallel_tool_calls=False)
    insert = Call("memory_insert", {"label": "human", "new_string": "Cat: Miso"})
    world.upstream.queue(call_tools(insert), say('{"noted": true}'))
    reply = world.letta.agents.messages.create(agent.id, input="My cat is Miso. Answer in JSON.")
    assert reply.messages[-1].content == '{"noted": true}'
    assert "Cat: Miso" in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    request = world.upstream.last
    assert (request.json["response_format"], "memory_insert" in request.tool_names) == (form, True)
    chat = [{"role": "user", "content": "And now? Answer in JSON."}]
    asked_for: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    for own, is_offered in (({}, True), ({"response_format": asked_for}, False)):
        world.world.post(chat, model=f"agent/{agent.id}", **own)
        assert ("memory_insert" in world.upstream.last.tool_names) is is_offered


def test_a_null_leaves_a_field_as_it_is(world: LettaWorld) -> None:
    """As Letta's server has it: programs pass on what they were not given."""
    compaction: Any = {"mode": "all", "clip_chars": 500}
    agent = world.agent(
        system="Old.", tags=["a"], description="What.", timezone="Europe/Zurich", metadata={"k": 1},
        context_window_limit=9000, compaction_settings=compaction, embedding="openai/e",
    )  # fmt: skip
    changed = world.letta.agents.update(
        agent.id, name=None, system=None, tags=None, description=None, timezone=None, metadata=None, model=None,
        context_window_limit=None, compaction_settings=None, embedding=None, tool_rules=None, llm_config=None,
        model_settings=None, response_format=None, hidden=None, tool_ids=None, block_ids=None,
    )  # fmt: skip
    assert changed.model_dump(exclude={"updated_at"}) == agent.model_dump(exclude={"updated_at"})
    settings: Any = {"clip_chars": 900}
    assert world.letta.agents.update(agent.id, compaction_settings=settings).compaction_settings is not None
    shown = world.ask("GET", f"/v1/agents/{agent.id}")[1]["compaction_settings"]
    assert shown == {"mode": "all", "clip_chars": 900}


def test_agents_are_listed_page_by_page(world: LettaWorld) -> None:
    names = [f"agent-{n}" for n in range(5)]
    for n, name in enumerate(names):
        world.agent(name=name, tags=["even" if n % 2 == 0 else "odd", "all"])
    listed = [each.name for each in world.letta.agents.list(limit=2)]
    assert listed == names[::-1]
    assert [each.name for each in world.letta.agents.list(limit=2, order="asc")] == names
    assert [each.name for each in world.letta.agents.list(tags=["odd"])] == ["agent-3", "agent-1"]
    both = world.letta.agents.list(tags=["odd", "all"], match_all_tags=True)
    assert [each.name for each in both] == ["agent-3", "agent-1"]
    assert [each.name for each in world.letta.agents.list(name="agent-2")] == ["agent-2"]
    assert [each.name for each in world.letta.agents.list(query_text="T-4")] == ["agent-4"]
    first = next(iter(world.letta.agents.list(name="agent-0")))
    world.letta.agents.update(first.id, description="Newest.")
    assert next(iter(world.letta.agents.list(order_by="updated_at"))).name == "agent-0"
    for query, count in (
        ("", 5),
        ("?tags=odd", 2),
        ("?tags=odd&tags=even", 5),
        ("?tags=odd&tags=all&match_all_tags=true", 2),
        ("?name=agent-2", 1),
        ("?query_text=T-4", 1),
        ("?last_stop_reason=error", 0),
    ):
        assert world.ask("GET", f"/v1/agents/count{query}") == (200, count), query
    for name in ("tags", "identifier_keys"):
        status, told = world.ask("GET", f"/v1/agents/?{'&'.join(f'{name}={n}' for n in range(65))}")
        assert (status, told["detail"][0]["loc"]) == (422, ["query", name]), "none is passed over in silence"
    assert world.letta.tags.list() == ["all", "even", "odd"]


def test_a_deleted_agent_is_gone(world: LettaWorld) -> None:
    agent = world.agent()
    world.letta.agents.delete(agent.id)
    with pytest.raises(NotFoundError):
        world.letta.agents.retrieve(agent.id)
    assert list(world.letta.agents.list()) == []
    assert list(world.letta.blocks.list()) == []


def test_tools_are_attached_and_detached(world: LettaWorld) -> None:
    agent = world.agent(include_base_tools=False)
    assert agent.tools == []
    tool = next(iter(world.letta.tools.list(name="archival_memory_search")))
    assert world.letta.tools.retrieve(tool.id) == tool
    assert tool.tool_type == "letta_core"
    changed = world.letta.agents.tools.attach(tool.id, agent_id=agent.id)
    assert [each.name for each in changed.tools] == ["archival_memory_search"]
    assert [each.name for each in world.letta.agents.tools.list(agent.id)] == ["archival_memory_search"]
    assert world.letta.agents.tools.detach(tool.id, agent_id=agent.id).tools == []


def test_a_list_of_tools_ends(world: LettaWorld) -> None:
    every = [each.name for each in world.letta.tools.list(limit=4)]
    assert len(every) == len(set(every))
    assert "send_message" in every
    assert [each.name for each in world.letta.tools.list(limit=4, order="asc")] == every[::-1]
    some = world.letta.tools.list(names=["send_message", "memory_insert"], limit=1)
    assert {each.name for each in some} == {"send_message", "memory_insert"}


def test_a_list_of_tools_after_one_that_was_deleted_names_it(world: LettaWorld) -> None:
    tool = world.letta.tools.create(source_type="json", source_code="", json_schema={"name": "t1"})
    assert tool.id is not None
    world.letta.tools.delete(tool.id)
    with pytest.raises(NotFoundError) as refused:
        world.letta.tools.list(after=tool.id)
    assert tool.id in detail(refused.value)


@each_row(
    ("fields", "loc"),
    [
        ({"memory_blocks": [{"label": "x"}]}, ["body", "memory_blocks", 0, "value"]),
        ({"name": 7}, ["body", "name"]),
        ({"nonsense": 1}, ["body", "nonsense"]),
        ({"timezone": "Mars/Olympus"}, ["body", "timezone"]),
        ({"tool_rules": [{"type": "nonsense", "tool_name": "x"}]}, ["body", "tool_rules", 0]),
        ({"llm_config": {"temperature": "hot"}}, ["body", "llm_config", "temperature"]),
        ({"context_window_limit": 999}, ["body", "context_window_limit"]),
        ({"llm_config": {"context_window": 999}}, ["body", "llm_config", "context_window"]),
        ({"message_buffer_limit": 10, "message_buffer_min": 11}, ["body", "message_buffer_min"]),
        ({"agent_type": "voice_convo_agent", "message_buffer_min": 31}, ["body", "message_buffer_min"]),
    ],
)
def test_a_wrong_value_is_named(world: LettaWorld, fields: dict[str, Any], loc: list[Any]) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        world.letta.agents.create(model="openai/m", extra_body=fields)
    (fault,) = detail(refused.value)
    assert fault["loc"][: len(loc)] == loc
    assert fault["msg"]


def test_a_window_keeps_no_more_messages_than_it_may_have(world: LettaWorld) -> None:
    agent = world.letta.agents.create(model="openai/m", agent_type="voice_convo_agent")
    with pytest.raises(UnprocessableEntityError) as refused:
        world.letta.agents.update(agent.id, extra_body={"message_buffer_limit": 14})
    (fault,) = detail(refused.value)
    assert (fault["loc"], fault["input"]) == (["body", "message_buffer_limit"], 14)
    bounds = {"message_buffer_limit": 14, "message_buffer_min": 14}
    world.letta.agents.update(agent.id, extra_body=bounds)
    assert world.letta.agents.update(agent.id, description="It is small.").message_buffer_limit == 14


@pytest.mark.parametrize("kind", ["letta_v1_agent", "voice_convo_agent"])
def test_a_window_of_one_message_has_the_newest_message(world: LettaWorld, kind: Any) -> None:
    agent = world.letta.agents.create(
        model="openai/m", agent_type=kind, extra_body={"message_buffer_limit": 1}, tool_ids=[]
    )
    for text in ("One.", "Two.", "Three."):
        world.letta.agents.messages.create(agent.id, input=text)
    spoken_messages = [each for each in world.upstream.last.messages if each["role"] in ("user", "assistant")]
    assert [each["content"].split("\n")[-1] for each in spoken_messages] == ["Three."]


@pytest.mark.parametrize(
    "fields",
    [{"secrets": {"A": "b"}}, {"message_ids": ["m"]}, {"from_template": "t"}],
)
def test_a_field_that_is_refused_says_why(world: LettaWorld, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        world.letta.agents.create(model="openai/m", extra_body=fields)
    (name,) = fields
    assert detail(refused.value).startswith(f"{name}: ")


def test_a_window_says_what_the_least_is(world: LettaWorld) -> None:
    agent = world.agent(context_window_limit=1000)
    for fields in ({"context_window_limit": 999}, {"llm_config": {"context_window": 999}}):
        with pytest.raises(UnprocessableEntityError, match="1000"):
            world.letta.agents.update(agent.id, extra_body=fields)
    assert world.letta.agents.retrieve(agent.id).context_window_limit == 1000


def test_learning_cannot_be_turned_on_for_an_agent_of_the_agents_api(world: LettaWorld) -> None:
    with pytest.raises(BadRequestError, match="enable_sleeptime"):
        world.agent(extra_body={"mnemogate": {"learn": True}})
    agent = world.agent(extra_body={"mnemogate": {"learn": False}})
    with pytest.raises(BadRequestError, match="remember_fact"):
        world.letta.agents.update(agent.id, extra_body={"mnemogate": {"learn": True}})


def test_requests_of_older_programs(world: LettaWorld) -> None:
    agent = world.agent()
    assert world.ask("GET", "/v1/blocks/count") == (200, len(list(world.letta.blocks.list())))
    assert world.ask("GET", "/v1/runs/active") == (200, [])
    status, tools = world.ask("POST", "/v1/tools/add-base-tools")
    assert (status, {each["tool_type"] for each in tools} >= {"letta_core"}) == (200, True)
    assert {each["name"] for each in tools} >= {"send_message", "memory_insert"}
    path = f"/v1/agents/{agent.id}/messages/preview-raw-payload"
    status, body = world.ask("POST", path, {"input": "Hi"})
    assert (status, body["messages"][-1]) == (200, {"role": "user", "content": "Hi"})
    assert "Name: Ann" in body["messages"][0]["content"]
    assert body["tools"]
    assert (world.upstream.chats, spoken(world.letta.agents.messages.list(agent.id).items)) == ([], [])
    world.letta.agents.messages.create(agent.id, input="Hi")
    messages = world.upstream.last.messages
    assert messages == body["messages"]
    assert world.ask("POST", f"/v1/agents/{agent.id}/generate", {})[0] == 400
    assert world.ask("GET", "/v1/tools/mcp/servers")[1]["detail"].endswith("/v1/mcp-servers.")


def test_a_tool_that_needs_a_service_says_how_to_have_it(world: LettaWorld) -> None:
    """Letta's own first example names these two. Letta Code makes an agent without them upon this status and words."""
    with pytest.raises(BadRequestError) as caught:
        world.agent(tools=["web_search", "memory_insert", "look", "run_code"])
    detail = caught.value.body["detail"]  # type: ignore[index]
    assert detail.startswith(
        "Tools not found by name: web_search, look, run_code. web_search needs a service"
    )
    tool = world.letta.tools.create(source_code="", source_type="json", json_schema={"name": "web_search"})
    assert tool.id in {each.id for each in world.agent(tools=["web_search"]).tools}


@pytest.mark.sqlite
def test_no_text_has_a_zero_byte(world: LettaWorld) -> None:
    """PostgreSQL has none, and a memory can move there."""
    letta = world.letta
    block = letta.blocks.create(
        label="pl\0an", value="Tu\0lips", description="a\0b", metadata={"k\0": ["v\0"]}
    )
    assert (block.label, block.value, block.description) == ("plan", "Tulips", "ab")
    assert block.metadata == {"k": ["v"]}
    agent = world.agent(name="gar\0dener", tags=["a\0b"], system="You\0 help.", block_ids=[block.id])
    assert (agent.name, agent.tags, agent.system) == ("gardener", ["ab"], "You help.")
    assert world.ask("GET", f"/v1/agents/{agent.id}/core-memory/blocks/pl%00an")[0] == 404
    assert world.ask("PATCH", f"/v1/agents/{agent.id}/memory", {"plan": "Ro\0ses"})[1]["blocks"]
    assert letta.blocks.retrieve(block.id).value == "Roses"
    (passage,) = letta.agents.passages.create(agent.id, text="Ro\0ses", tags=["x\0y"])
    assert (passage.text, passage.tags) == ("Roses", ["xy"])
    assert [each.id for each in letta.agents.list(name="gar\0dener")] == [agent.id]
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "plan", "new_string": "Li\0lies"})), say("Done.")
    )
    letta.agents.messages.create(agent.id, input="Hi\0!")
    assert letta.blocks.retrieve(block.id).value == "Roses\nLilies"
    columns = [("block_history", "value"), ("passages", "text"), ("blocks", "label"), ("definitions", "name")]
    for table, column in columns:
        assert world.world.query(f"SELECT 1 FROM {table} WHERE instr({column}, char(0))") == []


def test_unknown_ids_are_not_found(world: LettaWorld) -> None:
    agent = world.agent()
    missing = "agent-" + "0" * 32
    for ask in (
        lambda: world.letta.agents.retrieve(missing),
        lambda: world.letta.agents.update("nonsense", system="x"),
        lambda: world.letta.blocks.retrieve("block-" + "0" * 32),
        lambda: world.letta.agents.blocks.retrieve("nonsense", agent_id=agent.id),
        lambda: world.letta.agents.create(model="openai/m", block_ids=["block-" + "0" * 32]),
        lambda: world.letta.agents.create(model="openai/m", tool_ids=["tool-" + "0" * 32]),
    ):
        with pytest.raises(NotFoundError) as refused:
            ask()
        assert isinstance(detail(refused.value), str)
    assert len(list(world.letta.agents.list())) == 1


def test_the_project_of_another_key_is_not_found(world: LettaWorld) -> None:
    with pytest.raises(NotFoundError):
        world.make_client(project_id="elsewhere").agents.list()
    assert list(world.make_client(project_id="default").agents.list()) == []


def test_errors_before_a_route_have_the_same_form(world: LettaWorld) -> None:
    status, body = world.ask("GET", "/v1/agents/a/b/c/d")
    assert status == 404
    assert body["detail"].startswith("Unknown path")
    assert world.ask("PUT", "/v1/agents/")[0] == 405
    assert "error" in world.ask("GET", "/v1/nonsense")[1]


def test_the_refusal_of_a_call_that_is_not_served_has_the_reason(world: LettaWorld) -> None:
    agent = world.agent()
    for ask in (
        lambda: world.letta.agents.files.close_all(agent.id),
        lambda: world.letta.templates.create(agent_id=agent.id, type="agent"),
    ):
        with pytest.raises(BadRequestError) as refused:
            ask()
        assert detail(refused.value).endswith(".")


def test_models_are_a_bare_list_at_a_path_that_ends_with_a_slash(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with letta(upstream, tmp_path, models=(ModelSettings("fast", "m", context_window=9000),)) as world:
        (model,) = world.letta.models.list()
        assert (model.handle, model.context_window) == ("fast", 9000)
        assert world.letta.models.list(provider_category=["base"]) == [model]
        assert world.letta.models.list(provider_category=["byok"]) == []
        for name in ("provider_name", "provider_type"):
            value = getattr(model, name)
            assert len(world.ask("GET", f"/v1/models/?{name}={value}")[1]) == 1
            assert world.ask("GET", f"/v1/models/?{name}=nobody")[1] == []
        assert world.ask("GET", "/v1/models")[1]["object"] == "list"
        assert world.letta.agents.create().model == "fast"
        agent = world.letta.agents.create(model="fast")
        conversation = world.letta.conversations.create(agent_id=agent.id, model="fast")
        for ask in (
            lambda: world.letta.agents.create(model="gone"),
            lambda: world.letta.agents.update(agent.id, model="gone"),
            lambda: world.letta.conversations.create(agent_id=agent.id, model="gone"),
            lambda: world.letta.conversations.update(conversation.id, model="gone"),
        ):
            with pytest.raises(NotFoundError, match="'gone' does not exist here"):
                ask()
        # What is imported may wait for the settings to name its model, and is changed meanwhile.
        file = world.letta.agents.export_file(agent.id).encode()
        (copy,) = world.letta.agents.import_file(file=("a.af", file), model="gone").agent_ids
        assert world.letta.agents.update(copy, name="later").model == "gone"
        assert world.letta.health().status == "ok"
        assert world.letta.models.embeddings.list() == []


def test_an_agent_without_a_model_gets_one_that_the_key_may_ask_for(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    models = (ModelSettings("fast", "m"), ModelSettings("small", "m"))
    with letta(upstream, tmp_path, models=models) as world:
        gateway = world.world.gateway
        _, key = gateway.call(world.world.store.keys.create("default", "k", models=("small",)))
        assert world.make_client(key).agents.create().model == "small"


def test_an_agent_whose_model_is_gone_is_cancelled_and_compacted(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    upstream.queue(say("Ok."), call_tools(Call("memory_insert", {"label": "human", "new_str": "x"})))
    rules: Any = [{"type": "requires_approval", "tool_name": "memory_insert"}]
    with letta(upstream, tmp_path, models=(ModelSettings("fast", "m"),)) as world:
        agent = world.agent(model="fast", tools=["memory_insert"], tool_rules=rules).id
        for words in ("Hi", "Note it."):
            run: Any = world.letta.agents.messages.create_async(agent, input=words)
            becomes(lambda run=run: world.letta.runs.retrieve(run.id).stop_reason)
    with letta(upstream, tmp_path, models=(ModelSettings("other", "m"),)) as world:
        with pytest.raises(NotFoundError):
            world.letta.agents.messages.create(agent, input="Hi")
        cancelled: Any = world.letta.agents.messages.cancel(agent, run_ids=[run.id])
        assert cancelled == {run.id: "cancelled"}
        assert world.letta.agents.retrieve(agent).pending_approval is None
        settings: Any = {"model": "other", "mode": "all"}
        upstream.queue(say("They greeted each other."))
        assert world.letta.agents.messages.compact(agent, compaction_settings=settings).summary
        with pytest.raises(NotFoundError):
            world.letta.agents.messages.compact(agent)


def test_a_closed_list_of_models_holds_for_agents(upstream: StrictUpstream, tmp_path: Path) -> None:
    listed = ModelSettings("fast", "m", context_window=9000)
    with letta(upstream, tmp_path, profile("helper", model="m", upstream="up"), models=(listed,)) as world:
        agent = world.letta.agents.create(model="up/m")
        spoken(world.letta.agents.messages.create(agent.id, input="Hi").messages)
        assert upstream.chats[-1].json["model"] == "m"
        conversation = world.letta.conversations.create(agent_id=agent.id)
        world.world.chat(model="agent/helper", user="ann").say("Hi")
        of_profile = next(each for each in world.letta.agents.list() if each.id != agent.id)
        chat_count = len(upstream.chats)
        for model in ("up/dear", "openai/dear"):
            for ask in (
                lambda model: world.letta.agents.create(model=model),
                lambda model: world.letta.agents.update(agent.id, model=model),
                lambda model: world.letta.conversations.create(agent_id=agent.id, model=model),
                lambda model: world.letta.conversations.update(conversation.id, model=model),
                lambda model: world.letta.agents.messages.create(agent.id, input="Hi", override_model=model),
                lambda model: world.letta.agents.messages.create(
                    of_profile.id, input="Hi", override_model=model
                ),
                lambda model: world.letta.agents.messages.compact(
                    agent.id, compaction_settings={"model": model}
                ),
            ):
                with pytest.raises(NotFoundError, match="dear' does not exist here"):
                    ask(model)
        # One that was made before the list has to be given a listed model.
        file = world.letta.agents.export_file(agent.id).encode()
        (copy,) = world.letta.agents.import_file(file=("a.af", file), model="up/dear").agent_ids
        with pytest.raises(NotFoundError, match="dear' does not exist here"):
            world.letta.agents.messages.create(copy, input="Hi")
        assert len(upstream.chats) == chat_count


def test_a_users_memory_is_an_agent_that_the_settings_configure(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with letta(upstream, tmp_path, profile()) as world:
        world.world.chat(model="agent/helper", user="ann").say("Hi")
        (agent,) = world.letta.agents.list(tags=["user:ann"])
        assert agent.name == "helper ann"
        assert {tool.name for tool in agent.tools} == set(world.upstream.last.tool_names)
        assert [block.label for block in agent.blocks] == ["human"]
        changed = world.letta.agents.blocks.update("human", agent_id=agent.id, value="Ann, a baker.")
        assert changed.value == "Ann, a baker."
        with pytest.raises(ConflictError, match="settings"):
            world.letta.agents.update(agent.id, system="Other.")
        with pytest.raises(ConflictError):
            world.agent(name="helper")


def test_the_ids_of_messages_are_those_of_the_window(world: LettaWorld) -> None:
    agent, client = world.agent(context_window_limit=1_100), world.letta
    conversation = client.conversations.create(agent_id=agent.id)

    def check(shown: Sequence[str] | None, everything: list[str]) -> None:
        # Without the system prompt, and with the reply.
        count = len(world.upstream.last.messages)
        assert 0 < count < len(everything)
        assert shown is not None
        assert shown[1:] == everything[-count:]

    for n in range(12):
        client.agents.messages.create(agent.id, input=f"Tale {n}: " + "on and on " * 20)
    own = [each.id for each in spoken(client.agents.messages.list(agent.id, order="asc"))]
    check(client.agents.retrieve(agent.id).message_ids, own)
    assert [each.message_ids for each in client.agents.list()] == [
        client.agents.retrieve(agent.id).message_ids
    ]
    for n in range(12):
        messages: Any = [{"role": "user", "content": f"Tale {n}: " + "on and on " * 20}]
        list(client.conversations.messages.create(conversation.id, messages=messages))
    listed = [each.id for each in spoken(client.conversations.messages.list(conversation.id, order="asc"))]
    check(client.conversations.retrieve(conversation.id).in_context_message_ids, listed)


@pytest.mark.parametrize("size", [2, 50])
def test_a_page_of_agents_takes_a_few_statements_whatever_its_size(world: LettaWorld, size: int) -> None:
    for n in range(size):
        agent = world.agent(name=f"agent {n}", tags=["t"], tools=["memory"])
        if n % 10 == 0:
            world.letta.agents.messages.create(agent.id, input="Hi")

    def page() -> None:
        listed = world.letta.agents.list(limit=50).items
        assert [len(each.message_ids or ()) for each in listed[::-1]] == [
            1 + 2 * (n % 10 == 0) for n in range(size)
        ]
        assert all(each.tools and each.tags and each.blocks for each in listed)

    assert len(world.world.statements_of(page)) <= 11
