"""Messages across agents by the client's own methods: listed in one order, searched, by agent and by conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import BadRequestError, NotFoundError

from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.sdk import agent as profile

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, profile("tutor", model="m")) as made:
        yield made


def texts(messages: Any) -> list[Any]:
    return [each.content for each in messages]


def speak(world: LettaWorld, agent: str, text: str, reply: str = "Ok.") -> None:
    world.upstream.queue(say(reply))
    world.letta.agents.messages.create(agent, input=text)


def test_messages_of_all_agents_are_listed_in_one_order(world: LettaWorld) -> None:
    one, two = world.agent(), world.agent()
    speak(world, one.id, "One")
    speak(world, two.id, "Two")
    speak(world, one.id, "Three")
    world.world.sdk.chat.completions.create(
        model="agent/tutor", user="ann", messages=[{"role": "user", "content": "Four"}]
    )
    world.world.sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "Nobody's"}])
    world.world.settle()
    listed = world.letta.messages.list
    whole = ["One", "Ok.", "Two", "Ok.", "Three", "Ok.", "Four", "Ok."]
    assert texts(listed(order="asc")) == whole
    assert texts(listed()) == whole
    # Page by page, whatever the size, from either end.
    for limit in (1, 2, 3, 5):
        found: list[Any] = []
        while page := list(listed(order="asc", limit=limit, after=found[-1].id if found else None)):
            found += page
        assert texts(found) == whole
        found = []
        while page := list(listed(limit=limit, before=found[0].id if found else None)):
            found = page + found
        assert texts(found) == whole
    third = list(listed(order="asc"))[4]
    assert texts(listed(order="asc", before=third.id)) == whole[:4]
    assert texts(listed(order="asc", include_return_message_types=["user_message"])) == whole[::2]
    # A cursor whose message is gone still works.
    world.ask("DELETE", f"/v1/agents/{one.id}/messages/{third.id}")
    assert texts(listed(order="asc", after=third.id))[-2:] == ["Four", "Ok."]
    with pytest.raises(NotFoundError):
        listed(after=f"message-{32 * '0'}-1")


def test_those_of_one_conversation(world: LettaWorld) -> None:
    agent = world.agent()
    speak(world, agent.id, "Own")
    one = world.letta.conversations.create(agent_id=agent.id)
    list(world.letta.conversations.messages.create(one.id, input="Beside"))
    assert texts(spoken(world.letta.messages.list(conversation_id=one.id))) == ["Beside", "Ok."]
    with pytest.raises(BadRequestError, match="name it by its id"):
        spoken(world.letta.messages.list(conversation_id="default"))


def test_a_search_asks_all_agents_one_or_one_conversation(world: LettaWorld) -> None:
    one, two = world.agent(), world.agent()
    speak(world, one.id, "The albatross flies south.")
    speak(world, two.id, "An albatross came by.", "It is a large albatross.")
    beside = world.letta.conversations.create(agent_id=two.id)
    list(world.letta.conversations.messages.create(beside.id, input="Tell me of the albatross."))
    world.world.settle()

    def found(**query: Any) -> set[tuple[Any, ...]]:
        results: Any = world.letta.messages.search(query="albatross", **query)
        # What stands next to a hit is found as well, below it.
        hits = [each for each in results if "albatross" in each.content]
        return {(each.content, each.agent_id, each.conversation_id) for each in hits}

    own = {("An albatross came by.", two.id, "default"), ("It is a large albatross.", two.id, "default")}
    side = {("Tell me of the albatross.", two.id, beside.id)}
    assert found() == {("The albatross flies south.", one.id, "default")} | own | side
    assert found(agent_id=two.id) == own | side
    assert found(agent_id=two.id, conversation_id="default") == own
    assert found(conversation_id=beside.id) == side
    assert len(found(limit=2)) == 2
    # One from each first.
    assert {each[1] for each in found(limit=2)} == {one.id, two.id}
    with pytest.raises(BadRequestError, match="embedder"):
        found(search_mode="vector")
    assert found(search_mode="fts") == found()
    status, older = world.ask("POST", "/v1/agents/messages/search", {"query": "albatross", "limit": 3})
    assert status == 200
    assert all("albatross" in each["embedded_text"] for each in older)
    assert [each["rrf_score"] for each in older] == [1, 1 / 2, 1 / 3]


def test_a_message_is_retrieved_by_its_id_alone(world: LettaWorld) -> None:
    agent = world.agent()
    speak(world, agent.id, "Hello there")
    message = next(iter(spoken(world.letta.messages.list(order="asc"))))
    found: Any = world.letta.messages.retrieve(message.id)
    assert [each.content for each in found] == ["Hello there"]
