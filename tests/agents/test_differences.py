"""A program for each row of the table in docs/agents.md that says where the gateway differs from Letta's server.

`tests/test_docs.py` checks that each row has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from letta_client import BadRequestError, ConflictError, InternalServerError, UnprocessableEntityError

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, say

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Program = Callable[[LettaWorld], None]
PAGE: Final = Path(__file__).parents[2] / "docs/agents.md"
PROGRAMS: Final[dict[str, Program]] = {}


def rows() -> dict[str, list[str]]:
    """Returns the cells of each row after its first one, by that."""
    text = PAGE.read_text("utf-8")
    (table,) = re.findall(r"^\| \| Letta 0\.16 \| here \| why \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]
    return {name: rest for name, *rest in cells}


def of(row: str) -> Callable[[Program], Program]:
    """Makes a function the program of a row."""

    def note(program: Program) -> Program:
        assert row not in PROGRAMS
        PROGRAMS[row] = program
        return program

    return note


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def said(world: LettaWorld, agent: str) -> list[str]:
    page = world.letta.agents.messages.list(agent, order="asc")
    return [str(m.content) for m in page if hasattr(m, "content") and m.message_type != "system_message"]


def send(world: LettaWorld, agent: str, text: str = "Hi", **options: Any) -> Any:
    return world.letta.agents.messages.create(agent, input=text, **options)


def refused(ask: Callable[[], object], words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        ask()


@of("four sends at once")
def sends_at_once(world: LettaWorld) -> None:
    agent, texts = world.agent().id, [f"Send {n}." for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: world.make_client().agents.messages.create(agent, input=text), texts))
    found = said(world, agent)
    assert sorted(found[::2]) == texts
    assert found[1::2] == ["Ok."] * 4


@of("an upstream's error")
def upstreams_error(world: LettaWorld) -> None:
    agent = world.agent().id
    world.upstream.queue(fail(500))
    with pytest.raises(InternalServerError):
        send(world, agent)
    assert said(world, agent) == ["Hi"]


@of("a block's limit")
def blocks_limit(world: LettaWorld) -> None:
    agent = world.agent(memory_blocks=[{"label": "human", "value": "Ann", "limit": 5}])
    with pytest.raises(UnprocessableEntityError):
        world.letta.agents.blocks.update("human", agent_id=agent.id, value="sixsix")


@of("a passage without a text")
def empty_passage(world: LettaWorld) -> None:
    with pytest.raises(UnprocessableEntityError):
        world.letta.agents.passages.create(world.agent().id, text="")


@of("a shared block that was changed")
def shared_block(world: LettaWorld) -> None:
    shared = world.letta.blocks.create(label="team", value="Red")
    one, two = (world.agent(name=name, block_ids=[shared.id]).id for name in ("one", "two"))
    send(world, two)
    world.letta.agents.blocks.update("team", agent_id=one, value="Blue")
    send(world, two)
    assert "Blue" in str(world.upstream.last.messages)


def asking(world: LettaWorld) -> tuple[str, str]:
    """Returns an agent whose call waits for a person, and the call."""
    rule: Any = {"type": "requires_approval", "tool_name": "memory_insert"}
    agent = world.agent(tools=["memory_insert"], tool_rules=[rule]).id
    world.upstream.queue(call_tools(Call("memory_insert", {"label": "human", "new_string": "x"}, "c1")))
    assert send(world, agent).stop_reason.stop_reason == "requires_approval"
    return agent, "c1"


@of("an unanswered approval")
def unanswered_approval(world: LettaWorld) -> None:
    agent, _ = asking(world)
    assert send(world, agent, "Never mind.").messages[-1].content == "Ok."


@of("an approval request, once it is answered")
def answered_approval(world: LettaWorld) -> None:
    agent, call = asking(world)
    answer: Any = {"type": "approval", "tool_call_id": call, "approve": True}
    world.letta.agents.messages.create(agent, messages=[{"type": "approval", "approvals": [answer]}])
    kinds = [m.message_type for m in world.letta.agents.messages.list(agent, order="asc")]
    assert "approval_request_message" not in kinds
    assert kinds.index("tool_call_message") + 1 == kinds.index("approval_response_message")


def spoken(world: LettaWorld) -> str:
    """Returns a conversation of three turns."""
    conversation = world.letta.conversations.create(agent_id=world.agent().id).id
    for n in range(3):
        list(world.letta.conversations.messages.create(conversation, input=f"Turn {n}."))
    return conversation


@of("the list of a conversation, newest first")
def conversation_newest_first(world: LettaWorld) -> None:
    page = world.letta.conversations.messages.list(spoken(world), limit=2, order="desc")
    texts = [str(m.content) for m in page if m.message_type == "user_message"]  # page by page
    assert texts == ["Turn 2.", "Turn 1.", "Turn 0."]


@of("`model_settings` that were not set")
def model_settings(world: LettaWorld) -> None:
    shown_settings = world.agent().model_settings
    assert shown_settings is not None
    assert getattr(shown_settings, "temperature", None) is None
    send(world, world.agent().id)
    assert "temperature" not in world.upstream.last.json


def page_before(world: LettaWorld) -> None:
    conversation = spoken(world)
    listed = world.letta.conversations.messages.list
    every = [m.id for m in listed(conversation, order="asc")]
    page = listed(conversation, order="asc", before=every[-1], limit=2).items
    assert [m.id for m in page] == every[-3:-1]


PROGRAMS[next(row for row in rows() if row.startswith("a page that only `before` bounds"))] = page_before


@of("the window")
def window(world: LettaWorld) -> None:
    agent = world.agent().id
    send(world, agent)
    assert len(world.letta.agents.retrieve(agent).message_ids or ()) >= 2
    status, _ = world.ask("PATCH", f"/v1/agents/{agent}", {"message_ids": ["message-1"]})
    assert status == 400


@of("the system message with which a conversation begins")
def system_message(world: LettaWorld) -> None:
    agent = world.agent().id
    send(world, agent)
    first, *_ = world.letta.agents.messages.list(agent, order="asc")
    assert first.message_type == "system_message"
    assert world.ask("DELETE", f"/v1/agents/{agent}/messages/{first.id}")[0] == 400
    assert first.id not in [m.id for m in world.letta.messages.list(order="asc")]


@of("traces of requests, the window of a step")
def traces(world: LettaWorld) -> None:
    agent = world.agent().id
    send(world, agent)
    run = world.letta.runs.list(agent_id=agent).items[0]
    (step,) = world.letta.runs.steps.list(run.id)
    assert world.letta.runs.trace.retrieve(run.id) == []
    assert step.context_window_limit is None


@of("a tool's call in a stream of tokens")
def call_in_a_stream(world: LettaWorld) -> None:
    agent = world.agent(tools=["memory_insert"]).id
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "x"}, "c1")), say("Done.")
    )
    events = list(world.letta.agents.messages.stream(agent, input="Hi", stream_tokens=True))
    (call,) = [each for each in events if each.message_type == "tool_call_message"]
    assert call.tool_call.arguments == '{"label":"human","new_string":"x"}'  # type: ignore[union-attr]


@of("a model that answers in text where a rule demands a call")
def rule_demands(world: LettaWorld) -> None:
    rule: Any = {"type": "required_before_exit", "tool_name": "memory_insert"}
    agent = world.agent(tools=["memory_insert"], tool_rules=[rule]).id
    send(world, agent, max_steps=3)
    assert len(world.upstream.chats) == 3


@of("sleeptime")
def sleeptime(world: LettaWorld) -> None:
    group = world.agent(enable_sleeptime=True).managed_group
    assert group is not None
    assert (group.sleeptime_agent_frequency, group.last_processed_message_id) == (5, None)


@of("counts, times and ids in the prompt")
def prompt_without_metadata(world: LettaWorld) -> None:
    agent = world.agent().id
    send(world, agent)
    first = world.upstream.last.messages[0]["content"]
    send(world, agent)
    assert world.upstream.last.messages[0]["content"] == first
    assert agent not in first


@of("`isolated_block_labels` of a conversation")
def isolated_blocks(world: LettaWorld) -> None:
    agent, labels = world.agent().id, {"isolated_block_labels": ["human"]}
    refused(lambda: world.letta.conversations.create(agent_id=agent, extra_body=labels), "isolated")


@of("`message_id` of a fork")
def fork_within_a_turn(world: LettaWorld) -> None:
    agent, conversations = world.agent().id, world.letta.conversations
    send(world, agent)
    _, question, answer = world.letta.agents.messages.list(agent, order="asc")
    refused(lambda: conversations.fork("default", agent_id=agent, message_id=question.id), "after a reply")
    assert conversations.fork("default", agent_id=agent, message_id=answer.id).agent_id == agent


@of("secrets and variables of an agent")
def agents_secrets(world: LettaWorld) -> None:
    refused(lambda: world.agent(secrets={"KEY": "s3cret"}), "secrets")


@of("`pip_requirements` of a tool")
def requirements(world: LettaWorld) -> None:
    source = 'def now() -> str:\n    """Returns the time."""\n    return "noon"\n'
    refused(
        lambda: world.letta.tools.create(source_code=source, pip_requirements=[{"name": "requests"}]),
        "installed",
    )


@of("`web_search`, `run_code`, `fetch_webpage`")
def services(world: LettaWorld) -> None:
    for name in ("web_search", "run_code", "fetch_webpage"):
        refused(lambda name=name: world.agent(tools=[name]), f"{name} needs a service")


@of("a program as an MCP server")
def program_as_server(world: LettaWorld) -> None:
    config: Any = {"mcp_server_type": "stdio", "command": "sh", "args": ["-c", "true"]}
    refused(
        lambda: world.letta.mcp_servers.create(server_name="sh", config=config), "mcp_stdio does not name"
    )


@of("OAuth of MCP servers")
def oauth(world: LettaWorld) -> None:
    status, answer = world.ask("GET", "/v1/tools/mcp/servers/calc/connect")
    assert (status, "/v1/mcp-servers" in str(answer["detail"])) == (400, True)


@of("files that are opened")
def opened_files(world: LettaWorld) -> None:
    agent = world.agent().id
    refused(lambda: world.letta.agents.files.open("file-1", agent_id=agent), "searched")


@of("groups that take turns (`round_robin`, `supervisor`, `dynamic`)")
def groups(world: LettaWorld) -> None:
    status, answer = world.ask("POST", "/v1/groups/", {"manager_config": {"manager_type": "round_robin"}})
    assert (status, "by their tools" in answer["detail"]) == (400, True)


@of("the record of a run")
def deleted_run(world: LettaWorld) -> None:
    agent = world.agent().id
    send(world, agent)
    run = world.letta.runs.list(agent_id=agent).items[0].id
    assert world.ask("DELETE", f"/v1/runs/{run}")[0] == 400
    assert world.letta.runs.retrieve(run).id == run


@of("a tool named as a built-in one")
def built_in_name(world: LettaWorld) -> None:
    schema: Any = {"name": "send_message", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(ConflictError):
        world.letta.tools.create(source_type="json", source_code="", json_schema=schema)  # type: ignore[call-arg]


@pytest.mark.parametrize("row", PROGRAMS)
def test_a_program_of_the_table(world: LettaWorld, row: str) -> None:
    PROGRAMS[row](world)
