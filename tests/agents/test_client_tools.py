"""Tools of the agents API, made by the client's own methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import BadRequestError, ConflictError, NotFoundError, UnprocessableEntityError

from gateway.settings import ToolSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap

SOURCE = '''
def roll(sides: int) -> str:
    """Roll a die.

    Args:
        sides: How many sides it has.
    """
    return f"One of {sides}."
'''
HOOK: Any = {
    "source_type": "webhook",
    "source_code": "https://hooks.example.org/x",
    "json_schema": {
        "name": "hook",
        "description": "Calls.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, tools=ToolSettings(hosts=("hooks.example.org",), python=PYTHON)) as made:
        yield made


@needs_bwrap
def test_a_tool_is_made_of_its_source_and_called(world: LettaWorld) -> None:
    tool = world.letta.tools.create(source_code=SOURCE, tags=["dice"])
    assert (tool.name, tool.tool_type, tool.source_type) == ("roll", "custom", "python")
    assert tool.json_schema is not None
    assert tool.json_schema["parameters"]["required"] == ["sides"]
    agent = world.agent(tools=["roll"])
    ran = world.letta.agents.tools.run("roll", agent_id=agent.id, args={"sides": 6})
    assert (ran.status, ran.func_return) == ("success", "One of 6.")
    world.upstream.queue(call_tools(Call("roll", {"sides": 20})), say("Rolled."))
    reply = world.letta.agents.messages.create(agent.id, input="Roll a die.")
    returned = next(each for each in reply.messages if each.message_type == "tool_return_message")
    assert returned.tool_return == "One of 20."
    again = world.letta.tools.upsert(source_code=SOURCE.replace("One", "Some"))
    assert again.id == tool.id
    assert (
        world.letta.agents.tools.run("roll", agent_id=agent.id, args={"sides": 6}).func_return == "Some of 6."
    )
    with pytest.raises(BadRequestError, match="sides"):
        world.letta.agents.tools.run("roll", agent_id=agent.id, args={"sides": "six"})


@needs_bwrap
def test_a_source_is_tried_and_not_stored(world: LettaWorld) -> None:
    """The client before 1.0 has `tools.run_tool_from_source` for it, and 1.12 no method."""

    def tried(source: str, args: Any, **more: Any) -> Any:
        return world.ask("POST", "/v1/tools/run", {"source_code": source, "args": args, **more})

    status, answer = tried(SOURCE, {"sides": 6})
    assert (status, answer["status"], answer["tool_return"]) == (200, "success", "One of 6.")
    assert (answer["message_type"], answer["name"]) == ("tool_return_message", "roll")
    fails = "def f() -> str:\n    print('here')\n    raise ValueError('no dice')\n"
    status, answer = tried(fails, {})
    assert (status, answer["status"], answer["stdout"]) == (200, "error", ["here"])
    assert "no dice" in answer["tool_return"]
    for part, (status, told) in (
        ("sides", tried(SOURCE, {"sides": "six"})),
        ("was never closed", tried("def f(x", {})),
        ("no variables", tried(SOURCE, {"sides": 6}, env_vars={"KEY": "x"})),
        ("nothing is installed", tried(SOURCE, {"sides": 6}, pip_requirements=[{"name": "numpy"}])),
        (
            "tools.hosts",
            tried("https://example.org/hook", {}, source_type="webhook", json_schema={"name": "hook"}),
        ),
    ):
        assert status == 400, part
        assert part in told["detail"]
    assert world.ask("POST", "/v1/tools/run", {"source_code": SOURCE})[0] == 422
    assert list(world.letta.tools.list(name="roll")) == []


NOTE = '''
def note(text: str, agent_state: "AgentState") -> str:
    """Notes a text.

    Args:
        text: What to note.
    """
    before = agent_state.memory.get_block("human").value
    agent_state.memory.update_block_value(label="human", value=f"{before}\\n{text}")
    return "noted"
'''


@needs_bwrap
def test_changes_of_a_python_tool_in_its_copy_of_the_blocks_are_written(world: LettaWorld) -> None:
    world.letta.tools.create(source_code=NOTE)
    agent, messages = world.agent(tools=["note"]), world.letta.agents.messages

    def human() -> str:
        return world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value

    def result() -> str:
        return str(world.upstream.last.messages[-1]["content"])

    both = Call("note", {"text": "gardener"}, "n1"), Call("note", {"text": "London"}, "n2")
    world.upstream.queue(call_tools(*both), say("Done."))
    reply = messages.create(agent.id, input="She gardens in London.")
    assert human() == "Name: Ann\ngardener\nLondon"
    # The model is notified at once, as of what somebody else changes. Who reads the list is shown what the tool said.
    assert "it now reads" in result()
    assert "gardener\nLondon" in result()
    returned = [each for each in reply.messages if each.message_type == "tool_return_message"]
    assert [each.tool_return for each in returned] == ["noted", "noted"]
    world.letta.agents.blocks.update("human", agent_id=agent.id, read_only=True)
    world.upstream.queue(call_tools(Call("note", {"text": "more"})))
    messages.create(agent.id, input="And more.")
    assert result() == "noted\nError: the memory block 'human' is read-only, and was not changed."
    world.letta.agents.blocks.update("human", agent_id=agent.id, read_only=False, limit=29)
    world.upstream.queue(call_tools(Call("note", {"text": "more"})))
    messages.create(agent.id, input="And more.")
    assert "takes 29 characters at most, not 30, and was not changed" in result()
    edit = Call("memory_insert", {"label": "human", "new_string": "!"}, "n3")
    world.upstream.queue(call_tools(edit, Call("note", {"text": "?"}, "n4")))
    messages.create(agent.id, input="Both.")
    assert human().count("!") == 1
    # Forgetting what was said forgets what the tool made of it.
    said = spoken(messages.list(agent.id, order="asc"))[0]
    assert world.ask("DELETE", f"/v1/agents/{agent.id}/messages/{said.id}")[0] == 200
    world.world.settle()
    assert "gardener" not in human()
    ran = world.letta.agents.tools.run("note", agent_id=agent.id, args={"text": "by hand"})
    assert ran.func_return == "noted"
    assert human().endswith("by hand")


@needs_bwrap
@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-conversation": "default"}], ids=["its own", "default"])
def test_changes_of_a_python_tool_in_a_chat_completion_are_edits_of_the_turn(
    world: LettaWorld, headers: dict[str, str]
) -> None:
    world.letta.tools.create(source_code=NOTE)
    agent = world.agent(tools=["note"])
    chat = world.world.chat(model=f"agent/{agent.id}", headers=headers)
    world.upstream.queue(call_tools(Call("note", {"text": "gardener"}, "n1")), say("Noted."))
    assert chat.say("She gardens.") == "Noted."
    assert world.upstream.last.messages[-1]["content"].splitlines()[0] == "noted"
    chat.say("Well.")
    world.world.pass_time(3600)
    block = world.letta.agents.blocks.retrieve("human", agent_id=agent.id)
    assert block.value == "Name: Ann\ngardener"
    message = spoken(world.letta.agents.messages.list(agent.id, order="asc", limit=2).items)[0]
    assert world.ask("DELETE", f"/v1/agents/{agent.id}/messages/{message.id}")[0] == 200
    world.world.settle()
    assert "gardener" not in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    world.letta.agents.blocks.update("human", agent_id=agent.id, read_only=True)
    world.upstream.queue(call_tools(Call("note", {"text": "more"}, "n2")), say("No."))
    chat.say("More.")
    assert "read-only" in world.upstream.last.messages[-1]["content"]


@needs_bwrap
def test_all_blocks_that_python_changes_in_a_chat_completion_are_written(world: LettaWorld) -> None:
    both = NOTE.replace(
        'return "noted"', 'agent_state.memory.update_block_value("task", text)\n    return "noted"'
    )
    world.letta.tools.create(source_code=both)
    blocks = [{"label": label, "value": "Name: Ann"} for label in ("human", "task")]
    agent = world.agent(tools=["note"], memory_blocks=blocks)
    chat = world.world.chat(model=f"agent/{agent.id}")
    world.upstream.queue(call_tools(Call("note", {"text": "gardener"}, "n1")), say("Noted."))
    chat.say("She gardens.")
    chat.say("Well.")
    world.world.pass_time(3600)
    found = world.letta.agents.blocks.list(agent.id)
    assert {each.label: each.value for each in found} == {"human": "Name: Ann\ngardener", "task": "gardener"}


@needs_bwrap
def test_a_schema_of_the_arguments_takes_the_place_of_types_and_docstring(world: LettaWorld) -> None:
    """As `Model.model_json_schema()` of pydantic makes it."""
    source = (
        'def plan(steps, why="none"):\n    """Makes a plan."""\n    return [each["name"] for each in steps]\n'
    )
    step = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    steps = {"type": "array", "items": {"$ref": "#/$defs/Step"}}
    arguments: Any = {
        "$defs": {"Step": step},
        "type": "object",
        "properties": {"steps": steps},
        "required": ["steps"],
    }
    tool = world.letta.tools.upsert(source_code=source, args_json_schema=arguments)
    assert (tool.name, tool.description, tool.args_json_schema) == ("plan", "Makes a plan.", arguments)
    agent = world.agent(tools=["plan"])
    run = world.letta.agents.tools.run
    assert run("plan", agent_id=agent.id, args={"steps": [{"name": "go"}]}).func_return == '["go"]'
    with pytest.raises(BadRequestError, match=r"steps\[0\].name"):
        run("plan", agent_id=agent.id, args={"steps": [{}]})


def test_a_tool_that_is_made_again_is_changed(world: LettaWorld) -> None:
    """0.16.8 answers the second POST /v1/tools/ of one name with 200, the same id, and what the second one says."""
    made = world.letta.tools.create(**HOOK, tags=["one"])
    agent = world.agent(tools=["hook"])
    again = world.letta.tools.create(**{**HOOK, "source_code": "https://hooks.example.org/new"}, tags=["two"])
    assert (again.id, again.source_code, again.tags) == (made.id, "https://hooks.example.org/new", ["two"])
    assert made.id in [each.id for each in world.letta.agents.tools.list(agent.id)]


def test_an_upsert_retains_what_it_does_not_name(world: LettaWorld) -> None:
    options: Any = {
        "tags": ["one"], "return_char_limit": 100, "default_requires_approval": True,
        "enable_parallel_execution": True, "extra_body": {"metadata_": {"a": 1}},
    }  # fmt: skip
    made = world.letta.tools.create(**HOOK, **options)
    for again in (world.letta.tools.upsert(**HOOK), world.letta.tools.create(**HOOK)):
        assert again.model_dump(exclude={"updated_at"}) == made.model_dump(exclude={"updated_at"})
    assert made.tags == ["one"]
    changed = world.letta.tools.upsert(**HOOK, tags=[], default_requires_approval=False, description="Anew.")
    assert (changed.tags, changed.default_requires_approval, changed.description) == ([], False, "Anew.")
    assert changed.return_char_limit == 100
    # A schema brings its own description along.
    assert world.letta.tools.upsert(**HOOK).description == "Calls."


def test_a_search_has_as_many_words_as_a_loop_has_time_for(world: LettaWorld) -> None:
    """Each of its words is looked for in each tool."""
    search = "/v1/tools/search"
    assert world.ask("POST", search, {"query": "memory " * 1_000})[0] == 200
    for name, value in (("query", "memory " * 2_000), ("tool_types", ["custom"] * 1_001)):
        status, refused = world.ask("POST", search, {name: value})
        assert (status, refused["detail"][0]["loc"]) == (422, ["body", name])


def test_a_search_says_that_its_mode_has_no_effect(world: LettaWorld) -> None:
    raw = world.letta.tools.with_raw_response.search(query="memory", search_mode="vector")
    assert raw.headers["x-mnemogate-kept"] == "search_mode"


def test_a_schema_and_a_source_that_name_two_functions(world: LettaWorld) -> None:
    schema: Any = {"name": "toss", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(BadRequestError, match=r"names the function 'toss', but .* is 'roll'"):
        world.letta.tools.create(source_code=SOURCE, json_schema=schema)
    with pytest.raises(BadRequestError, match="Line 1"):
        world.letta.tools.create(source_code="def broken(:", json_schema=schema)
    assert list(world.letta.tools.list(name="toss")) == []


@needs_bwrap
def test_a_changed_schema_cannot_name_another_function_than_the_source(world: LettaWorld) -> None:
    tool = world.letta.tools.create(source_code=SOURCE)
    schema: Any = {"name": "toss", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(BadRequestError, match="toss"):
        world.letta.tools.update(tool.id, json_schema=schema)
    both = world.letta.tools.update(tool.id, json_schema=schema, source_code=SOURCE.replace("roll", "toss"))
    assert both.name == "toss"


def test_the_same_rule_is_stored_once(world: LettaWorld) -> None:
    once: Any = {"type": "exit_loop", "tool_name": "memory_insert"}
    other: Any = {"type": "continue_loop", "tool_name": "memory_insert"}
    agent = world.agent(tool_rules=[once, other, once, {**once, "prompt_template": None}])
    given = [("exit_loop", "memory_insert"), ("continue_loop", "memory_insert")]
    assert [(each.type, each.tool_name) for each in agent.tool_rules or ()] == given
    changed = world.letta.agents.update(agent.id, tool_rules=[other, other, other])
    assert [each.type for each in changed.tool_rules or ()] == ["continue_loop"]


def test_a_webhook_is_made_changed_and_deleted(world: LettaWorld) -> None:
    tool = world.letta.tools.create(**HOOK, return_char_limit=100)
    assert (tool.name, tool.source_type, tool.return_char_limit) == ("hook", "webhook", 100)
    assert world.letta.tools.retrieve(tool.id) == tool
    changed = world.letta.tools.update(tool.id, description="Calls somebody.", default_requires_approval=True)
    assert (changed.description, changed.default_requires_approval, changed.name) == (
        "Calls somebody.",
        True,
        "hook",
    )
    agent = world.agent(tool_ids=[tool.id])
    assert "hook" in [each.name for each in agent.tools]
    found = world.letta.tools.search(query="somebody")
    assert [each.tool.name for each in found] == ["hook"]
    assert [each.name for each in world.letta.tools.list(tool_types=["custom"])] == ["hook"]
    # The client's documentation allows one value with commas as well.
    files = {
        "tool_types": ["letta_files_core, custom"],
        "exclude_tool_types": ["letta_files_core,letta_core"],
    }
    assert [each.name for each in world.letta.tools.list(**files)] == ["hook"]
    ids = [tool.id for tool in world.letta.tools.list(limit=3)]
    assert [tool.id for tool in world.letta.tools.list(tool_ids=[",".join(ids)])] == ids
    world.letta.tools.delete(tool.id)
    assert "hook" not in [each.name for each in world.letta.agents.retrieve(agent.id).tools]
    with pytest.raises(NotFoundError):
        world.letta.tools.retrieve(tool.id)


def test_a_tool_that_cannot_be_is_refused(world: LettaWorld) -> None:
    with pytest.raises(BadRequestError, match="webhook"):
        world.letta.tools.create(**{**HOOK, "source_code": "https://elsewhere.example.org/"})
    with pytest.raises(UnprocessableEntityError, match="json_schema"):
        world.letta.tools.create(source_type="webhook", source_code="https://hooks.example.org/x")
    with pytest.raises(UnprocessableEntityError, match="name"):
        world.letta.tools.create(**{**HOOK, "json_schema": {"name": "two words"}})
    for kind in ("string", ["object", "null"]):
        # Providers refuse each request with such a tool.
        schema = {**HOOK["json_schema"], "parameters": {"type": kind}}
        with pytest.raises(UnprocessableEntityError, match="Expected the schema of an object"):
            world.letta.tools.create(**{**HOOK, "json_schema": schema})
    huge = {"name": "hook", "parameters": {"type": "object", "description": "x" * 70_000}}
    with pytest.raises(
        UnprocessableEntityError, match="A schema has at most 65,536 bytes; this one has 70,0"
    ):
        world.letta.tools.create(**{**HOOK, "json_schema": huge})
    with pytest.raises(UnprocessableEntityError, match="A schema has at most 65,536 bytes"):
        world.letta.tools.create(source_code=SOURCE, args_json_schema=huge["parameters"])
    with pytest.raises(BadRequestError, match="Line 1"):
        world.letta.tools.create(source_code="def broken(:")
    with pytest.raises(BadRequestError, match="pip_requirements"):
        world.letta.tools.create(**HOOK, pip_requirements=[{"name": "requests"}])
    own = next(iter(world.letta.tools.list(name="send_message")))
    with pytest.raises(ConflictError):
        world.letta.tools.delete(own.id)
    with pytest.raises(ConflictError):
        world.letta.tools.create(**{**HOOK, "json_schema": {**HOOK["json_schema"], "name": "send_message"}})


def test_approval_is_a_rule_that_comes_and_goes(world: LettaWorld) -> None:
    agent = world.agent()
    tools = world.letta.agents.tools
    for _ in range(2):
        changed = tools.update_approval("memory_insert", agent_id=agent.id, body_requires_approval=True)
        assert [(each.type, each.tool_name) for each in changed.tool_rules or ()] == [
            ("requires_approval", "memory_insert")
        ]
    world.upstream.queue(call_tools(Call("memory_insert", {"label": "human", "new_string": "x"})))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert reply.stop_reason.stop_reason == "requires_approval"
    assert (
        tools.update_approval("memory_insert", agent_id=agent.id, body_requires_approval=False).tool_rules
        == []
    )
    with pytest.raises(NotFoundError):
        tools.update_approval("nonsense", agent_id=agent.id, body_requires_approval=True)
    with pytest.raises(BadRequestError, match="own"):
        tools.run("memory_insert", agent_id=agent.id, args={})


def test_the_typescript_client_says_approval_under_another_name(world: LettaWorld) -> None:
    """Its method `updateApproval` sends its parameter's name as the field's."""
    path = f"/v1/agents/{world.agent().id}/tools/approval/memory_insert"
    for needed, rules in ((True, 1), (False, 0)):
        status, shown = world.ask("PATCH", path, {"body_requires_approval": needed})
        assert (status, len(shown["tool_rules"])) == (200, rules)
    status, shown = world.ask("PATCH", path, {})
    assert (status, shown["detail"][0]["loc"]) == (422, ["body", "requires_approval"])


def test_approval_that_a_tool_wants_itself_is_not_taken_away_of_one_agent(world: LettaWorld) -> None:
    tool = world.letta.tools.create(**HOOK, default_requires_approval=True)
    agent = world.agent(tools=["hook"])
    with pytest.raises(BadRequestError, match="default_requires_approval"):
        world.letta.agents.tools.update_approval("hook", agent_id=agent.id, body_requires_approval=False)
    world.letta.tools.update(tool.id, default_requires_approval=False)
    world.letta.agents.tools.update_approval("hook", agent_id=agent.id, body_requires_approval=False)


@needs_bwrap
@pytest.mark.parametrize("is_named", [True, False])
def test_a_repeated_approval_allows_nothing_that_was_not_shown(world: LettaWorld, is_named: bool) -> None:
    world.letta.tools.create(source_code=SOURCE, default_requires_approval=True)
    agent, messages = world.agent(tools=["roll"]), world.letta.agents.messages
    again = {"x-stainless-retry-count": "1"}

    def approve(asked: Any, headers: dict[str, str] | None = None) -> list[Any]:
        named = {"approval_request_id": asked.id} if is_named else {}
        given: Any = [{"type": "approval", "approve": True, **named}]
        return messages.create(agent.id, messages=given, extra_headers=headers).messages

    world.upstream.queue(call_tools(Call("roll", {"sides": 6}, "r1")))
    asked = messages.create(agent.id, input="Roll.").messages[-1]
    world.upstream.queue(call_tools(Call("roll", {"sides": 20}, "r2")), say("Rolled."))
    told = approve(asked)
    assert told[-1].message_type == "approval_request_message"
    assert [each.id for each in approve(asked, again)] == [each.id for each in told]
    assert len(world.upstream.chats) == 2
    done = approve(told[-1])
    assert (done[-1].message_type, done[-1].content) == ("assistant_message", "Rolled.")
    assert [each.id for each in approve(told[-1], again)] == [each.id for each in done]
