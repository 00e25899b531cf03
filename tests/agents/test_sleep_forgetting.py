"""A forgetting also erases what a sleeptime agent has of the forgotten messages: in its run, and in its edits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from letta_client import InternalServerError, NotFoundError
from letta_client.types import AgentState

from storage.errors import StoreUnavailable
from storage.sql.forget import Forgetting
from tests.agents.letta import spoken
from tests.agents.sleeptime import SleeptimeWorld, hold_first_reply, serve_sleeptime
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools
from tests.inflated import find_files_with

SECRET = "Quetzalcoatl"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleeptimeWorld]:
    with serve_sleeptime(upstream, tmp_path) as made:
        yield made


def find_user_message(world: SleeptimeWorld, agent: AgentState, text: str) -> Any:
    messages = spoken(world.letta.letta.agents.messages.list(agent.id))
    return next(m for m in messages if m.message_type == "user_message" and text in str(m.content))


def forget(world: SleeptimeWorld, agent: AgentState, text: str) -> None:
    status, _ = world.letta.ask(
        "DELETE", f"/v1/agents/{agent.id}/messages/{find_user_message(world, agent, text).id}"
    )
    assert status == 200


@pytest.mark.sqlite
def test_a_message_that_is_forgotten_while_it_is_read_leaves_no_trace(
    world: SleeptimeWorld, tmp_path: Path
) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 2)
    gate = Gate()
    world.model.intercept = lambda request: hold_first_reply(request, gate)
    world.send(agent, f"The password of my heart is {SECRET}.")
    world.send(agent, "Good night.")
    world.wait_for_requests(3)
    assert find_files_with(tmp_path, SECRET)
    forget(world, agent, SECRET)
    gate.open()
    world.wait_until_idle()
    assert find_files_with(tmp_path, SECRET) == []
    first, *rest = world.list_runs(agent)
    assert (first.status, first.stop_reason) == ("failed", "error")
    assert SECRET not in world.get_block(agent)
    # The message that was not forgotten is read again.
    world.pass_idle_time()
    assert world.get_block(agent) == "Name: Ann\nGood night."
    assert rest or len(world.list_runs(agent)) == 2


def begin_reading(world: SleeptimeWorld) -> tuple[AgentState, Gate]:
    """Returns an agent whose sleeptime agent is reading a message, and the gate that its reply waits for."""
    agent, gate = world.create_primary(), Gate()
    world.set_frequency(agent, 1)
    world.model.intercept = lambda request: hold_first_reply(request, gate)
    world.send(agent, f"I love {SECRET}.")
    world.wait_for_requests(2)
    return agent, gate


def test_a_message_that_is_forgotten_after_its_edit_leaves_no_trace(
    world: SleeptimeWorld, tmp_path: Path
) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    gate = Gate()

    def hold_second(request: UpstreamRequest) -> Reply | None:
        if request.messages[-1]["role"] == "tool" and not gate.is_open:
            return call_tools(Call("memory_finish_edits"), hold_before_headers=gate)
        return None

    world.model.intercept = hold_second
    world.send(agent, f"I am called {SECRET}.")
    world.wait_for_requests(3)
    assert SECRET in world.get_block(agent)
    forget(world, agent, SECRET)
    gate.open()
    world.wait_until_idle()
    assert find_files_with(tmp_path, SECRET) == []
    assert world.get_block(agent) == "Name: Ann"


def test_edits_are_forgotten_with_their_message(world: SleeptimeWorld, tmp_path: Path) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    client = world.letta.letta
    for name in ("archival_memory_insert", "remember_fact"):
        (tool,) = client.tools.list(name=name)
        client.agents.tools.attach(tool.id, agent_id=world.get_sleeptime_agent(agent).id)

    def edit_all(request: UpstreamRequest) -> Reply | None:
        if request.messages[-1]["role"] == "user":
            persona = Call(
                "memory_insert", {"label": "memory_persona", "new_string": f"Mind {SECRET}."}, "p1"
            )
            edit = Call("memory_insert", {"label": "human", "new_string": f"Loves {SECRET}."}, "p2")
            passage = Call("archival_memory_insert", {"content": f"A god: {SECRET}."}, "p3")
            fact = Call("remember_fact", {"fact": f"The user loves {SECRET}."}, "p4")
            return call_tools(persona, edit, passage, fact)
        return None

    world.model.intercept = edit_all
    world.send(agent, f"I love {SECRET}.")
    world.wait_until_idle()
    assert [each.text for each in client.agents.passages.list(agent.id)] == [f"A god: {SECRET}."]
    assert world.query("SELECT text FROM facts") == [f"The user loves {SECRET}."]
    world.model.intercept = lambda request: None
    world.send(agent, "I live in Oslo.")
    world.wait_until_idle()
    assert world.get_block(agent) == f"Name: Ann\nLoves {SECRET}.\nI live in Oslo."
    forget(world, agent, SECRET)
    assert world.get_block(agent) == "Name: Ann\nI live in Oslo."
    assert SECRET not in world.get_block(world.get_sleeptime_agent(agent), "memory_persona")
    assert find_files_with(tmp_path, SECRET) == []


def test_a_deleted_primary_leaves_no_trace_of_its_sleeptime_agent(
    world: SleeptimeWorld, tmp_path: Path
) -> None:
    agent, gate = begin_reading(world)
    sleeper = world.get_sleeptime_agent(agent)
    world.letta.letta.agents.delete(agent.id)
    gate.open()
    world.wait_until_idle()
    with pytest.raises(NotFoundError):
        world.letta.letta.agents.retrieve(sleeper.id)
    assert find_files_with(tmp_path, SECRET) == []
    assert world.query("SELECT count(*) FROM readers") == [0]


@pytest.mark.sqlite
def test_a_disabled_sleeptime_agent_keeps_no_trace_of_a_forgotten_message(
    world: SleeptimeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway fails after the sleeptime agent was detached, and before it is deleted."""
    agent, gate = begin_reading(world)

    async def wipe(*_: object) -> NoReturn:
        raise StoreUnavailable("the gateway was killed")

    monkeypatch.setattr(Forgetting, "wipe", wipe)
    with pytest.raises(InternalServerError):
        world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    gate.open()
    world.wait_until_idle()
    forget(world, agent, SECRET)
    assert world.query("SELECT count(*) FROM runs WHERE state IN ('created', 'running')") == [0]
    assert find_files_with(tmp_path, SECRET) == []


def test_the_edits_of_a_deleted_sleeptime_agent_stay(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.send(agent, "I live in Oslo.")
    world.wait_until_idle()
    world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    assert world.get_block(agent) == "Name: Ann\nI live in Oslo."
    # The edit is still forgotten with its message.
    forget(world, agent, "Oslo")
    assert world.get_block(agent) == "Name: Ann"


def test_a_sleeptime_agent_that_is_enabled_again_does_not_read_turns_twice(world: SleeptimeWorld) -> None:
    agent = world.create_primary()
    world.set_frequency(agent, 1)
    world.send(agent, "I live in Oslo.")
    world.wait_until_idle()
    world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    world.letta.letta.agents.update(agent.id, enable_sleeptime=True)
    world.set_frequency(agent, 1)
    world.send(agent, "I have a cat.")
    world.wait_until_idle()
    assert world.get_block(agent) == "Name: Ann\nI live in Oslo.\nI have a cat."


def test_a_run_with_a_shared_block_continues_after_a_forgetting(world: SleeptimeWorld) -> None:
    """The forgetting rewrites the block, so a run that has read it begins its step again."""
    one, two = world.create_sharing_primaries()
    world.send(one, f"I love {SECRET}.")
    world.wait_until_idle()
    gate = Gate()
    world.model.intercept = lambda request: hold_first_reply(request, gate, "team")
    world.send(two, "Hello.")
    world.wait_for_requests(5)
    forget(world, one, SECRET)
    gate.open()
    world.wait_until_idle()
    world.finish_jobs()
    (run,) = world.list_runs(two)
    assert run.status == "completed"
    assert world.get_block(two, "team") == "Team:\nHello."


@pytest.mark.both
def test_a_forgetting_reaches_the_agents_that_a_shared_block_was_shown_to(world: SleeptimeWorld) -> None:
    one, two = world.create_sharing_primaries()

    def send_to_second(text: str) -> str:
        """Sends a message to the second agent. Returns the request's messages, as text."""
        world.send(two, text)
        (seen,) = [
            request
            for request in world.letta.upstream.chats
            if request.messages[-1]["content"].endswith(text)
        ]
        world.wait_until_idle()
        return str(seen.messages)

    assert SECRET not in send_to_second("Hello.")
    world.send(one, f"I love {SECRET}.")
    world.wait_until_idle()
    assert SECRET in send_to_second("How are you?")
    forget(world, one, SECRET)
    world.finish_jobs()
    prompt = send_to_second("And now?")
    assert SECRET not in prompt
    assert "How are you?" in prompt
