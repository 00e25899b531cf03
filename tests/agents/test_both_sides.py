"""One agent by the agents API and by chat completions: what was said on one side is known on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def test_default_is_one_conversation_whoever_sends(world: LettaWorld) -> None:
    agent = world.agent(name="bob", system="You help.")
    chat = world.world.chat(model="agent/bob", headers={"x-mnemogate-conversation": "default"})
    world.upstream.queue(say("Hello."), say("Hello again."), say("Still here."))
    world.letta.agents.messages.create(agent.id, input="Hi by REST.")
    chat.say("Hi by SDK.")
    said = ["Hi by REST.", "Hello.", "Hi by SDK."]
    assert [m["content"] for m in world.upstream.last.messages[1:]] == said
    # Its list is resent as a whole, and nothing is there twice.
    world.letta.agents.messages.create(agent.id, input="REST once more.")
    chat.say("SDK once more.")
    said += ["Hello again.", "REST once more.", "Still here.", "SDK once more."]
    assert [m["content"] for m in world.upstream.last.messages[1:]] == said
    messages: Any = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert [each.content for each in messages] == [*said, "Ok."]


def test_a_conversation_of_the_applications_own_shares_the_memory(world: LettaWorld) -> None:
    agent = world.agent(name="bob")
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Cat: Miso"})), say("Noted.")
    )
    chat = world.world.chat(model=agent.id)
    chat.say("My cat is called Miso.")
    chat.say("Thank you.")
    world.world.settle()
    assert "Cat: Miso" in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    world.letta.agents.messages.create(agent.id, input="What is my cat called?")
    messages = world.upstream.last.messages
    assert "Thank you." not in [m["content"] for m in messages]
    assert "Miso" in str(messages)
    shown: Any = [
        each
        for each in spoken(world.letta.agents.messages.list(agent.id))
        if each.message_type == "user_message"
    ]
    assert [each.content for each in shown] == [
        "My cat is called Miso.",
        "Thank you.",
        "What is my cat called?",
    ]
    # Each says in which conversation it stands.
    assert shown[2].conversation_id == "default"
    assert shown[0].conversation_id == shown[1].conversation_id != "default"
    theirs: Any = spoken(world.letta.agents.messages.list(agent.id, conversation_id=shown[1].conversation_id))
    assert {each.id for each in shown[:2]} < {each.id for each in theirs}
    own: Any = spoken(world.letta.agents.messages.list(agent.id, conversation_id="default", order="asc"))
    assert [each.message_type for each in own] == ["user_message", "assistant_message"]
