"""What a sleeptime agent holds of a memory goes with it: while it reads, after it has written, and as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from letta_client import InternalServerError, NotFoundError
from letta_client.types import AgentState

from storage.errors import Unavailable
from storage.sql.forget import Forgetting
from tests.agents.letta import spoken
from tests.agents.sleep import SleepWorld, hold, sleeping
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools
from tests.inflated import with_inflated

SECRET = "Quetzalcoatl"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleepWorld]:
    with sleeping(upstream, tmp_path) as made:
        yield made


def holds(folder: Path, text: str) -> list[str]:
    """The files of the database in which the text is, old copies and the log included."""
    return [
        f.name
        for f in folder.iterdir()
        if f.name.startswith("memory.db") and text.encode() in with_inflated(f.read_bytes())
    ]


def message_with(world: SleepWorld, agent: AgentState, text: str) -> Any:
    found = spoken(world.letta.letta.agents.messages.list(agent.id))
    return next(m for m in found if m.message_type == "user_message" and text in str(m.content))


def forget(world: SleepWorld, agent: AgentState, text: str) -> None:
    status, _ = world.letta.ask(
        "DELETE", f"/v1/agents/{agent.id}/messages/{message_with(world, agent, text).id}"
    )
    assert status == 200


@pytest.mark.sqlite
def test_a_message_that_is_being_read_leaves_nothing(world: SleepWorld, tmp_path: Path) -> None:
    agent = world.primary()
    world.frequency(agent, 2)
    gate = Gate()
    world.model.before = lambda seen: hold(seen, gate)
    world.send(agent, f"The password of my heart is {SECRET}.")
    world.send(agent, "Good night.")
    world.upstream_has(3)
    assert holds(tmp_path, SECRET)
    forget(world, agent, SECRET)
    gate.open()
    world.slept()
    assert holds(tmp_path, SECRET) == []
    first, *rest = world.runs(agent)
    assert (first.status, first.stop_reason) == ("failed", "error")
    assert SECRET not in world.block(agent)
    # What stayed is read again.
    world.rest()
    assert world.block(agent) == "Name: Ann\nGood night."
    assert rest or len(world.runs(agent)) == 2


def reading(world: SleepWorld) -> tuple[AgentState, Gate]:
    """Returns an agent whose sleeptime agent is reading its memory, and what lets it go on."""
    agent, gate = world.primary(), Gate()
    world.frequency(agent, 1)
    world.model.before = lambda seen: hold(seen, gate)
    world.send(agent, f"I love {SECRET}.")
    world.upstream_has(2)
    return agent, gate


def test_a_message_whose_edit_has_entered_leaves_nothing_while_the_run_goes_on(
    world: SleepWorld, tmp_path: Path
) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    gate = Gate()

    def hold_second(seen: Seen) -> Reply | None:
        if seen.messages[-1]["role"] == "tool" and not gate.is_open:
            return call_tools(Call("memory_finish_edits"), hold_before_headers=gate)
        return None

    world.model.before = hold_second
    world.send(agent, f"I am called {SECRET}.")
    world.upstream_has(3)
    assert SECRET in world.block(agent)
    forget(world, agent, SECRET)
    gate.open()
    world.slept()
    assert holds(tmp_path, SECRET) == []
    assert world.block(agent) == "Name: Ann"


def test_what_was_written_goes_with_the_message_that_it_came_from(world: SleepWorld, tmp_path: Path) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    client = world.letta.letta
    for name in ("archival_memory_insert", "remember_fact"):
        (tool,) = client.tools.list(name=name)
        client.agents.tools.attach(tool.id, agent_id=world.sleeper(agent).id)

    def keep(seen: Seen) -> Reply | None:
        if seen.messages[-1]["role"] == "user":
            said = Call("memory_insert", {"label": "memory_persona", "new_string": f"Mind {SECRET}."}, "p1")
            edit = Call("memory_insert", {"label": "human", "new_string": f"Loves {SECRET}."}, "p2")
            passage = Call("archival_memory_insert", {"content": f"A god: {SECRET}."}, "p3")
            fact = Call("remember_fact", {"fact": f"The user loves {SECRET}."}, "p4")
            return call_tools(said, edit, passage, fact)
        return None

    world.model.before = keep
    world.send(agent, f"I love {SECRET}.")
    world.slept()
    assert [each.text for each in client.agents.passages.list(agent.id)] == [f"A god: {SECRET}."]
    assert world.query("SELECT text FROM facts") == [f"The user loves {SECRET}."]
    world.model.before = lambda seen: None
    world.send(agent, "I live in Oslo.")
    world.slept()
    assert world.block(agent) == f"Name: Ann\nLoves {SECRET}.\nI live in Oslo."
    forget(world, agent, SECRET)
    assert world.block(agent) == "Name: Ann\nI live in Oslo."
    assert SECRET not in world.block(world.sleeper(agent), "memory_persona")
    assert holds(tmp_path, SECRET) == []


def test_a_primary_that_is_deleted_takes_all_along(world: SleepWorld, tmp_path: Path) -> None:
    agent, gate = reading(world)
    sleeper = world.sleeper(agent)
    world.letta.letta.agents.delete(agent.id)
    gate.open()
    world.slept()
    with pytest.raises(NotFoundError):
        world.letta.letta.agents.retrieve(sleeper.id)
    assert holds(tmp_path, SECRET) == []
    assert world.query("SELECT count(*) FROM readers") == [0]


@pytest.mark.sqlite
def test_a_sleeptime_agent_that_is_no_longer_used_holds_nothing_of_what_it_was_reading(
    world: SleepWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway is killed after the agent was taken from the memory, and before it is deleted."""
    agent, gate = reading(world)

    async def wipe(*_: object) -> NoReturn:
        raise Unavailable("it is killed")

    monkeypatch.setattr(Forgetting, "wipe", wipe)
    with pytest.raises(InternalServerError):
        world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    gate.open()
    world.slept()
    forget(world, agent, SECRET)
    assert world.query("SELECT count(*) FROM runs WHERE state IN ('created', 'running')") == [0]
    assert holds(tmp_path, SECRET) == []


def test_a_sleeptime_agent_that_is_deleted_leaves_what_it_wrote(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.send(agent, "I live in Oslo.")
    world.slept()
    world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    assert world.block(agent) == "Name: Ann\nI live in Oslo."
    # And it still goes with what it came from.
    forget(world, agent, "Oslo")
    assert world.block(agent) == "Name: Ann"


def test_turned_on_again_it_reads_from_where_it_was_read(world: SleepWorld) -> None:
    agent = world.primary()
    world.frequency(agent, 1)
    world.send(agent, "I live in Oslo.")
    world.slept()
    world.letta.letta.agents.update(agent.id, enable_sleeptime=False)
    world.letta.letta.agents.update(agent.id, enable_sleeptime=True)
    world.frequency(agent, 1)
    world.send(agent, "I have a cat.")
    world.slept()
    assert world.block(agent) == "Name: Ann\nI live in Oslo.\nI have a cat."


def test_who_shares_a_block_with_what_is_forgotten_goes_on(world: SleepWorld) -> None:
    """The block is made again, so whoever sees it begins the step under way again, and nothing is left undone."""
    one, two = world.sharers()
    world.send(one, f"I love {SECRET}.")
    world.slept()
    gate = Gate()
    world.model.before = lambda seen: hold(seen, gate, "team")
    world.send(two, "Hello.")
    world.upstream_has(5)
    forget(world, one, SECRET)
    gate.open()
    world.slept()
    world.finished()
    (run,) = world.runs(two)
    assert run.status == "completed"
    assert world.block(two, "team") == "Team:\nHello."


@pytest.mark.both
def test_what_a_shared_block_has_shown_another_agent_goes_too(world: SleepWorld) -> None:
    one, two = world.sharers()

    def sent(text: str) -> str:
        """Returns the prompt of a message to the second agent."""
        world.send(two, text)
        (seen,) = [seen for seen in world.letta.upstream.chats if seen.messages[-1]["content"].endswith(text)]
        world.slept()
        return str(seen.messages)

    assert SECRET not in sent("Hello.")
    world.send(one, f"I love {SECRET}.")
    world.slept()
    assert SECRET in sent("How are you?")
    forget(world, one, SECRET)
    world.finished()
    prompt = sent("And now?")
    assert SECRET not in prompt
    assert "How are you?" in prompt
