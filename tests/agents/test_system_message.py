"""The system message with which each conversation of an agent begins, by the client's own methods.

Letta's server stores it, and programs take the first message of a list, or the first id, for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from letta_client import NotFoundError
from letta_client.types import AgentState

from gateway.settings import ProfileSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import StrictUpstream, say

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, ProfileSettings("bare")) as made:
        yield made


def one(world: LettaWorld, id: str) -> Any:
    """Returns the message of an id, as programs read it back."""
    (found,) = world.letta.messages.retrieve(id)
    return found


def ids(messages: Any) -> list[str]:
    return [each.id for each in messages]


def test_a_new_agent_has_one_and_it_goes_to_the_model(world: LettaWorld) -> None:
    agent = world.agent(system="You help.")
    assert len(agent.message_ids or ()) == 1
    (listed,) = world.letta.agents.messages.list(agent.id)
    assert (listed.message_type, [listed.id]) == ("system_message", agent.message_ids)
    assert one(world, listed.id).content == listed.content  # type: ignore[union-attr]
    world.letta.agents.messages.create(agent.id, input="Hi")
    assert world.upstream.last.messages[0]["content"] == listed.content  # type: ignore[union-attr]
    for words in ("You help.", "Name: Ann"):
        assert words in str(listed.content)  # type: ignore[union-attr]


def test_the_system_message_is_rendered_on_request_under_a_stable_id(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent()
    (id,) = agent.message_ids or ()
    client.agents.messages.create(agent.id, input="Hi")
    client.agents.blocks.update("human", agent_id=agent.id, value="Name: Bob")
    assert orjson.loads(client.agents.recompile(agent.id)) == one(world, id).content
    assert "Name: Bob" in one(world, id).content
    client.agents.messages.reset(agent.id)
    assert client.agents.retrieve(agent.id).message_ids == [id]
    # It is of no search, and nobody can forget or change it: it is made of the agent.
    assert client.messages.search(query="Bob", agent_id=agent.id) == []
    for method, body in (("DELETE", None), ("PATCH", {"content": "x", "message_type": "system_message"})):
        status, said = world.ask(method, f"/v1/agents/{agent.id}/messages/{id}", body)
        assert (status, "blocks" in said["detail"]) == (400, True)
    with pytest.raises(NotFoundError):
        one(world, f"message-{'0' * 32}-0")
    other = world.agent()
    assert world.ask("GET", f"/v1/agents/{other.id}/messages/{id}")[0] == 404
    with pytest.raises(NotFoundError):
        client.agents.messages.list(other.id, after=id)


def test_each_conversation_has_its_own(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent()
    made = client.conversations.create(agent_id=agent.id)
    assert len(made.in_context_message_ids or ()) == 1
    list(client.conversations.messages.create(made.id, input="Hi"))
    whole = list(client.conversations.messages.list(made.id, order="asc"))
    assert [each.message_type for each in whole] == ["system_message", "user_message", "assistant_message"]
    assert client.conversations.retrieve(made.id).in_context_message_ids == ids(whole)
    assert ids(client.conversations.messages.list(made.id)) == ids(whole)[::-1]
    assert whole[0].id != (agent.message_ids or [""])[0]
    assert one(world, whole[0].id).conversation_id == made.id
    assert sorted(whole, key=lambda each: each.date) == whole
    assert ids(client.agents.messages.list(agent.id, conversation_id=made.id)) == ids(whole)
    # An agent's list has the messages of all its conversations, and begins with the agent's own.
    of_agent = list(client.agents.messages.list(agent.id, order="asc"))
    assert ids(of_agent) == [*(agent.message_ids or ()), *ids(whole)[1:]]
    assert sorted(of_agent, key=lambda each: each.date) == of_agent


def check_pages(listed: Callable[..., Any], whole: list[str]) -> None:
    """Checks the pages of a list that is given oldest first, around its system message."""
    system = whole[0]
    for limit in range(1, len(whole) + 2):
        assert ids(listed(order="asc", limit=limit).items) == whole[:limit]
        assert ids(listed(order="asc", limit=limit)) == whole
        assert ids(listed(order="asc", limit=limit, after=system)) == whole[1:]
        assert ids(listed(order="asc", limit=limit, before=whole[1]).items) == [system]
        back = [ids(page.items) for page in listed(order="asc", limit=limit, before=whole[-1]).iter_pages()]
        assert [id for page in back[::-1] for id in page] == whole[:-1]
        assert ids(listed(order="asc", limit=limit, before=system).items) == []


def test_pages_have_it_once_whatever_their_size(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent()
    made = client.conversations.create(agent_id=agent.id)
    for text in ("One", "Two"):
        client.agents.messages.create(agent.id, input=text)
        list(client.conversations.messages.create(made.id, input=text))

    def of_agent(**query: Any) -> Any:
        return client.agents.messages.list(agent.id, **query)

    def of_conversation(**query: Any) -> Any:
        return client.conversations.messages.list(made.id, **query)

    def of_own(**query: Any) -> Any:
        return client.conversations.messages.list("default", agent_id=agent.id, **query)

    for listed in (of_agent, of_conversation, of_own):
        check_pages(listed, ids(listed(order="asc")))
    # Newest first it is the last one, and nothing comes after it.
    whole = ids(of_conversation(order="asc"))
    for limit in (1, 2, 3, 10):
        assert ids(of_conversation(limit=limit)) == whole[::-1]
        assert ids(of_conversation(limit=limit, after=whole[0])) == []
        assert ids(of_conversation(limit=limit, before=whole[1]).items) == [whole[0]]
    assert ids(of_agent(before=ids(of_agent(order="asc"))[1])) == agent.message_ids
    # A list of certain kinds alone has it where that is one of these.
    assert ids(of_agent(include_return_message_types=["system_message"], order="asc")) == agent.message_ids
    users = list(of_agent(include_return_message_types=["user_message"], order="asc", limit=1))
    assert [each.content for each in users] == ["One", "One", "Two", "Two"]


def test_a_memory_of_a_profile_has_one_also_where_no_model_is_known(world: LettaWorld) -> None:
    world.upstream.queue(say("Hello."))
    world.world.sdk.chat.completions.create(
        model="m", user="ann", messages=[{"role": "user", "content": "Hi"}],
        extra_headers={"x-mnemogate-agent": "bare"},
    )  # fmt: skip
    world.world.settle()
    memory: AgentState = world.letta.agents.list(tags=["profile:bare"]).items[0]
    system, *said = world.letta.agents.messages.list(memory.id, order="asc")
    assert (system.message_type, [each.message_type for each in said]) == (
        "system_message",
        ["user_message", "assistant_message"],
    )
    assert (memory.message_ids or [""])[0] == system.id


def test_an_agent_file_brings_none_with_it(world: LettaWorld) -> None:
    """Letta's files have it among the messages, and so have the gateway's; it is made of the agent again."""
    client, agent = world.letta, world.agent(system="You help.")
    client.agents.messages.create(agent.id, input="Hi")
    file = client.agents.export_file(agent.id)
    (copied,) = client.agents.import_file(file=("a.af", str(file).encode())).agent_ids
    system, *said = client.agents.messages.list(copied, order="asc")
    assert system.message_type == "system_message"
    assert [each.message_type for each in said] == ["user_message", "assistant_message"]
    assert spoken([system, *said]) == said
    assert sorted([system, *said], key=lambda each: each.date) == [system, *said]
