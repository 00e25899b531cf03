"""Conversations of an agent by the client's own methods, and from OpenAI's SDK."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from letta_client import APIStatusError, BadRequestError, ConflictError, NotFoundError
from openai import OpenAI

from gateway.settings import UpstreamSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.gateway.sdk import agent as profile
from tests.inflated import with_inflated
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def say_in(world: LettaWorld, id: str, text: str, **options: Any) -> list[str]:
    """Sends a message to a conversation. Returns what the agent says."""
    events = world.letta.conversations.messages.create(id, input=text, **options)
    return [each.content for each in events if each.message_type == "assistant_message"]  # type: ignore[misc]


def sent(world: LettaWorld) -> list[Any]:
    """What went upstream last, after the system message."""
    return [m["content"] for m in world.upstream.last.messages[1:]]


def texts(messages: Any) -> list[Any]:
    return [each.content for each in messages]


def test_conversations_share_the_agent_and_not_the_window(world: LettaWorld) -> None:
    agent, conversations = world.agent(), world.letta.conversations
    one, two = conversations.create(agent_id=agent.id), conversations.create(agent_id=agent.id)
    assert (one.agent_id, one.last_message_at) == (agent.id, None)
    assert len(one.in_context_message_ids or ()) == 1  # the system message
    world.upstream.queue(say("Hello."), say("Sweet."), say("Again."), say("Own."))
    assert say_in(world, one.id, "Hi there") == ["Hello."]
    assert say_in(world, two.id, "My cat is Miso.") == ["Sweet."]
    assert say_in(world, one.id, "Go on.") == ["Again."]
    assert sent(world) == ["Hi there", "Hello.", "Go on."]
    reply = world.letta.agents.messages.create(agent.id, input="To Xavier")
    assert sent(world) == ["To Xavier"]
    assert [each.content for each in reply.messages] == ["Own."]  # type: ignore[union-attr]
    # Each lists its own; the agent lists all, and its own under `default`.
    listed = conversations.messages.list
    assert texts(spoken(listed(two.id, order="asc"))) == ["My cat is Miso.", "Sweet."]
    assert texts(spoken(listed("default", agent_id=agent.id, order="asc"))) == ["To Xavier", "Own."]
    assert texts(spoken(listed(agent.id, order="asc"))) == ["To Xavier", "Own."]
    whole = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert len(whole) == 8
    by_query = spoken(world.letta.agents.messages.list(agent.id, conversation_id=two.id, order="asc"))
    assert texts(by_query) == ["My cat is Miso.", "Sweet."]
    shown = conversations.retrieve(two.id)
    assert shown.in_context_message_ids == [each.id for each in listed(two.id, order="asc")]
    assert shown.last_message_at is not None


def test_a_conversation_is_read_back_from_its_newest_message(world: LettaWorld) -> None:
    """0.16.8 answers a conversation newest first, and `before` an id with what is older, in that order too.

    Letta Code goes on so: `before` the last message of a page. The client's pager sends `after` that one instead, at
    which 0.16.8 repeats what it has given: ['Three', 'SAY Three', 'Two', 'Three', 'SAY Three', 'Three'] for `limit=3`.
    """
    agent = world.agent()
    one = world.letta.conversations.create(agent_id=agent.id)
    for text in ("One", "Two", "Three"):
        world.upstream.queue(say(f"To {text}"))
        say_in(world, one.id, text)
    listed = world.letta.conversations.messages.list
    whole = ["To Three", "Three", "To Two", "Two", "To One", "One"]
    ids = [each.id for each in listed(one.id)]
    assert texts(spoken(listed(one.id).items)) == whole
    assert texts(listed(one.id, limit=2, before=ids[1]).items) == ["To Two", "Two"]
    assert texts(listed(one.id, limit=2, before=ids[1], after=ids[3]).items) == ["To Two"]
    assert texts(listed(one.id, limit=2, before=ids[1], order="asc").items) == ["Two", "To Two"]
    assert texts(spoken(listed(one.id, limit=4))) == whole


def test_runs_are_distinguished_by_their_conversation(world: LettaWorld) -> None:
    agent = world.agent()
    one = world.letta.conversations.create(agent_id=agent.id)
    say_in(world, one.id, "Hi")
    world.letta.agents.messages.create(agent.id, input="Hi")
    runs = world.letta.runs
    (run,) = runs.list(agent_id=agent.id, conversation_id=one.id).items
    assert run.conversation_id == one.id
    assert [each.conversation_id for each in runs.list(agent_id=agent.id).items] == ["default", one.id]
    assert [each.id for each in runs.list(conversation_id=one.id).items] == [run.id]
    with pytest.raises(NotFoundError):
        runs.list(agent_id=world.agent().id, conversation_id=one.id)
    (own,) = runs.list(agent_id=agent.id, conversation_id="default").items
    assert [each.id for each in runs.list(conversation_id=agent.id).items] == [own.id]
    with pytest.raises(NotFoundError, match="of this agent"):
        runs.list(agent_id=world.agent().id, conversation_id=agent.id)
    with pytest.raises(NotFoundError, match="of this agent"):
        world.letta.conversations.messages.list(agent.id, agent_id=world.agent().id)
    assert own.conversation_id == "default"


def test_a_block_is_shared_and_what_was_said_is_recalled(world: LettaWorld) -> None:
    agent = world.agent()
    one, two = (world.letta.conversations.create(agent_id=agent.id) for _ in range(2))
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Cat: Miso"})), say("Noted.")
    )
    say_in(world, one.id, "My cat Miso chases albatrosses.")
    world.world.settle()
    say_in(world, two.id, "What does Miso do with albatrosses?")
    assert "Cat: Miso" in world.upstream.last.messages[0]["content"]
    assert "chases albatrosses" in str(sent(world)[0])


def test_the_fields_of_a_conversation(world: LettaWorld) -> None:
    agent, conversations = world.agent(), world.letta.conversations
    conversation = conversations.create(agent_id=agent.id, summary="Cats and dogs", description="Pets.")
    assert (conversation.summary, conversation.description, conversation.archived) == (
        "Cats and dogs",
        "Pets.",
        False,
    )
    assert conversations.update(conversation.id, summary="Cats").description == "Pets."
    archived = conversations.update(conversation.id, archived=True)
    assert archived.archived_at is not None
    other = conversations.create(agent_id=agent.id)
    hidden = conversations.create(agent_id=agent.id, hidden=True)

    def listed(**query: Any) -> list[str]:
        return [each.id for each in conversations.list(agent_id=agent.id, **query)]

    assert listed() == [other.id]
    assert listed(archive_status="archived") == [conversation.id]
    assert listed(archive_status="all", order="asc") == [conversation.id, other.id]
    assert listed(archive_status="all", order="asc", after=conversation.id) == [other.id]
    assert listed(archive_status="all", summary_search="CAT") == [conversation.id]
    assert listed(archive_status="all", summary_search="bird") == []
    assert conversations.update(conversation.id, archived=False).archived_at is None
    say_in(world, conversation.id, "Hi")
    world.world.clock.sleep(5)
    assert listed(order_by="last_message_at") == [conversation.id, other.id]
    assert listed(order_by="last_run_completion", order="asc") == [other.id, conversation.id]
    assert listed(order_by="last_run_completion", order="asc", limit=1) == [other.id]
    assert listed(order_by="last_run_completion", order="asc", after=other.id) == [conversation.id]
    assert [each.id for each in conversations.list()] == [other.id, conversation.id]
    assert conversations.retrieve(hidden.id).id == hidden.id
    with pytest.raises(BadRequestError, match="last_message_at"):
        conversations.update(conversation.id, last_message_at="2026-01-01T00:00:00Z")


def test_a_conversation_has_a_model_of_its_own(world: LettaWorld) -> None:
    agent, conversations = world.agent(model_settings={"temperature": 0.5}), world.letta.conversations
    one = conversations.create(
        agent_id=agent.id,
        model="openai/other",
        model_settings={"temperature": 1.0, "provider_type": "openai"},
    )
    assert one.model == "openai/other"
    say_in(world, one.id, "Hi")
    assert (world.upstream.last.json["model"], world.upstream.last.json["temperature"]) == ("other", 1.0)
    world.letta.agents.messages.create(agent.id, input="Hi")
    assert (world.upstream.last.json["model"], world.upstream.last.json["temperature"]) == ("m", 0.5)
    sdk_say(world.world.sdk, agent.name, one.id, "Still you?")
    assert (world.upstream.last.json["model"], world.upstream.last.json["temperature"]) == ("other", 1.0)
    conversations.update(one.id, model=None, model_settings=None)
    say_in(world, one.id, "Hi")
    assert (world.upstream.last.json["model"], world.upstream.last.json["temperature"]) == ("m", 0.5)


def sdk_say(sdk: OpenAI, name: str | None, conversation: str, text: str) -> Any:
    return sdk.chat.completions.create(
        model=f"agent/{name}",
        messages=[{"role": "user", "content": text}],
        extra_headers={"x-mnemogate-conversation": conversation},
    )


def test_openais_sdk_goes_on_with_a_conversation(world: LettaWorld) -> None:
    agent = world.agent(name="helper")
    one = world.letta.conversations.create(agent_id=agent.id)
    world.upstream.queue(say("Hello."), say("From here, too."))
    # It goes on with one that is empty as well.
    sdk_say(world.world.sdk, agent.name, one.id, "Hi")
    say_in(world, one.id, "And from here?")
    assert sent(world) == ["Hi", "Hello.", "And from here?"]
    sdk_say(world.world.sdk, agent.name, one.id, "Back again")
    assert sent(world) == ["Hi", "Hello.", "And from here?", "From here, too.", "Back again"]


def test_sends_to_two_conversations_run_side_by_side(world: LettaWorld) -> None:
    agent = world.agent()
    one, two = (world.letta.conversations.create(agent_id=agent.id) for _ in range(2))
    gate = Gate()
    world.upstream.queue(say("Slow.", ["Sl", "ow."], hold_after={2: gate}), say("Fast."))
    slow = iter(world.letta.conversations.messages.create(one.id, input="Slowly", stream_tokens=True))
    assert getattr(next(slow), "content", None) == "Sl"
    assert say_in(world, two.id, "Quickly") == ["Fast."]
    gate.open()
    assert "ow." in [getattr(each, "content", None) for each in slow]


def test_a_cancel_ends_the_runs_of_one_conversation(world: LettaWorld) -> None:
    agent = world.agent()
    one, two = (world.letta.conversations.create(agent_id=agent.id) for _ in range(2))
    gate = Gate()
    world.upstream.queue(say("Slow.", ["Sl", "ow."], hold_after={2: gate}))
    slow = iter(world.letta.conversations.messages.create(one.id, input="Slowly", stream_tokens=True))
    assert getattr(next(slow), "content", None) == "Sl"
    assert world.letta.conversations.cancel(two.id) == {}
    assert world.letta.conversations.cancel("default", agent_id=agent.id) == {}
    ended = world.letta.conversations.cancel(one.id)
    assert list(ended.values()) == ["cancelled"]
    assert [each.message_type for each in slow][-2:] == ["stop_reason", "usage_statistics"]


@pytest.mark.sqlite
def test_a_deleted_conversation_is_forgotten(world: LettaWorld, tmp_path: Path) -> None:
    agent, conversations = world.agent(), world.letta.conversations
    one = conversations.create(agent_id=agent.id, summary="Zanzibar summary", description="Zanzibar words")
    stays = conversations.create(agent_id=agent.id)
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Zanzibar block"})),
        say("Zanzibar reply"),
        say("Stays."),
    )
    say_in(world, one.id, "Zanzibar question")
    say_in(world, stays.id, "Something else")
    world.world.settle()
    conversations.delete(one.id)
    for gone in (conversations.retrieve, conversations.delete, conversations.cancel):
        with pytest.raises(NotFoundError):
            gone(one.id)
    with pytest.raises(NotFoundError):
        list(conversations.messages.create(one.id, input="Hi"))
    assert [each.id for each in conversations.list(agent_id=agent.id)] == [stays.id]
    assert texts(spoken(world.letta.agents.messages.list(agent.id, order="asc"))) == [
        "Something else",
        "Stays.",
    ]
    assert "Zanzibar" not in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    for file in tmp_path.glob("memory.db*"):
        assert b"Zanzibar" not in with_inflated(file.read_bytes()), file.name
    # Nobody finds it by its name in a chat completion either: there it names a new conversation of the client's.
    with closing(sqlite3.connect(tmp_path / "memory.db")) as database:
        (count,) = database.execute("SELECT count(*) FROM definitions WHERE kind = 'conversation'").fetchone()
    assert count == 1


def test_a_conversation_or_agent_that_is_not_there_is_named(world: LettaWorld) -> None:
    agent, other = world.agent(), world.agent()
    one = world.letta.conversations.create(agent_id=agent.id)
    with pytest.raises(NotFoundError):
        spoken(world.letta.conversations.messages.list(one.id, agent_id=other.id))
    with pytest.raises(NotFoundError):
        world.letta.conversations.retrieve("conv-" + 32 * "0")
    with pytest.raises(NotFoundError):
        world.letta.conversations.create(agent_id="agent-" + 32 * "0")
    with pytest.raises(BadRequestError, match="agent_id"):
        list(world.letta.conversations.messages.create("default", input="Hi"))
    with pytest.raises(BadRequestError, match="reset-messages"):
        world.letta.conversations.delete(agent.id)
    assert say_in(world, "default", "Hi", agent_id=agent.id) == ["Ok."]
    assert texts(spoken(world.letta.agents.messages.list(agent.id, conversation_id="default"))) == [
        "Hi",
        "Ok.",
    ]
    assert "Name: Ann" in world.letta.conversations.recompile("default", agent_id=agent.id)


def test_a_whole_reply_and_a_recompile(world: LettaWorld) -> None:
    agent = world.agent(system="You help.")
    one = world.letta.conversations.create(agent_id=agent.id)
    status, reply = world.ask(
        "POST", f"/v1/conversations/{one.id}/messages", {"input": "Hi", "streaming": False}
    )
    assert (status, reply["messages"][0]["content"]) == (200, "Ok.")
    world.letta.agents.blocks.update("human", agent_id=agent.id, value="Name: Zoe")
    assert "Name: Zoe" in world.letta.conversations.recompile(one.id)
    say_in(world, one.id, "Who am I?")
    assert "Name: Zoe" in world.upstream.last.messages[0]["content"]


def test_a_memory_of_a_profile_has_conversations_without_a_model(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with letta(upstream, tmp_path, profile("tutor", model="m")) as world:
        world.world.sdk.chat.completions.create(
            model="agent/tutor", user="ann", messages=[{"role": "user", "content": "Hi"}]
        )
        world.world.settle()
        (agent,) = world.letta.agents.list().items
        one = world.letta.conversations.create(agent_id=agent.id)
        assert say_in(world, one.id, "Hi") == ["Ok."]
        with pytest.raises(ConflictError, match="settings file"):
            world.letta.conversations.create(agent_id=agent.id, model="openai/other")


def test_openais_conversations_pass_through(upstream: StrictUpstream, tmp_path: Path) -> None:
    stores = UpstreamSettings("up", base_url=upstream.base_url, takes={"responses": "stored"})
    with letta(upstream, tmp_path, upstreams=(stores,)) as world:
        pass_through(world)


def pass_through(world: LettaWorld) -> None:
    gateway = world.world.gateway
    for method, path in (
        ("POST", "/v1/conversations"), ("GET", "/v1/conversations/conv_123"),
        ("POST", "/v1/conversations/conv_123/items"), ("DELETE", "/v1/conversations/conv_123"),
    ):  # fmt: skip
        before = len(world.upstream.requests)
        gateway.ask(method, path, b"{}" if method == "POST" else None, {"content-type": "application/json"})
        assert world.upstream.requests[before].path == path
    status, listed = world.ask("GET", f"/v1/conversations?agent_id={world.agent().id}")
    assert (status, listed) == (200, [])


@pytest.mark.parametrize("name", ["conv-nonexistent", f"conv-{UUID(int=1)}", "agent-nonexistent", "conv-A B"])
def test_a_conversation_that_there_is_not(world: LettaWorld, name: str) -> None:
    """A 404 in this API's form, with and without a body; nothing of it goes to an upstream."""
    of, messages = world.letta.conversations, world.letta.conversations.messages
    for ask in (
        lambda: of.retrieve(name), lambda: of.update(name, summary="S"), lambda: of.delete(name),
        lambda: of.cancel(name), lambda: of.recompile(name), lambda: messages.list(name),
        lambda: messages.compact(name), lambda: messages.stream(name),
        lambda: messages.create(name, input="Hi"),
    ):  # fmt: skip
        with pytest.raises(NotFoundError) as missing:
            ask()
        assert "There is no" in missing.value.response.json()["detail"]
    for end in ("messages", "stream", "compact", "cancel"):
        reply = world.world.gateway.ask("POST", f"/v1/conversations/{name.replace(' ', '%20')}/{end}")
        assert (reply.status, list(orjson.loads(reply.body))) == (404, ["detail"])
    assert world.upstream.requests == []


def test_an_otid_counts_within_its_conversation(world: LettaWorld) -> None:
    agent = world.agent()
    fields: Any = {"messages": [{"role": "user", "content": "Hi", "otid": "1"}]}
    world.upstream.queue(say("In mine."), say("In one."), say("In two."))
    made = [world.letta.conversations.create(agent_id=agent.id).id for _ in range(2)]
    create, listed = world.letta.conversations.messages.create, world.letta.conversations.messages.list
    for _ in range(2):  # the second time each is answered as before
        reply = world.letta.agents.messages.create(agent.id, **fields)
        assert reply.messages[-1].content == "In mine."
        assert [each.content for each in create(made[0], **fields) if hasattr(each, "content")] == ["In one."]
        background = create(made[1], background=True, **fields)
        assert [each.content for each in background if hasattr(each, "content")] == ["In two."]
    assert [[each.content for each in spoken(listed(id, order="asc"))] for id in made] == [
        ["Hi", "In one."],
        ["Hi", "In two."],
    ]


def test_a_run_in_the_background_is_followed(world: LettaWorld) -> None:
    agent = world.agent()
    one = world.letta.conversations.create(agent_id=agent.id)
    stream = world.letta.conversations.messages.stream
    with pytest.raises(BadRequestError, match="No active runs found"):
        stream(one.id)
    gate = Gate()
    world.upstream.queue(say("Slow.", ["Sl", "ow."], hold_after={2: gate}))
    messages: Any = [{"role": "user", "content": "Slowly", "otid": "mine"}]
    options: Any = {"messages": messages, "background": True, "stream_tokens": True}
    first = world.letta.conversations.messages.create(one.id, **options)
    assert next(each.content for each in first if each.message_type == "assistant_message") == "Sl"
    first.close()
    run = world.letta.runs.list(conversation_id=one.id).items[0].id
    followed: list[Any] = [stream(one.id), stream(one.id, run_id=run), stream(one.id, otid="mine")]
    gate.open()
    for each in followed:
        said = [getattr(event, "content", None) for event in each]
        assert [text for text in said if text] == ["Sl", "ow."]
    with pytest.raises(BadRequestError, match="No active runs found"):
        stream(one.id)
    replayed: Any = stream(one.id, run_id=run)
    assert [each.content for each in replayed if getattr(each, "content", None)] == ["Sl", "ow."]
    with pytest.raises(NotFoundError):
        stream("default", agent_id=agent.id, run_id=run)
    with pytest.raises(NotFoundError):
        stream(one.id, otid="another")


def test_a_conversation_is_deleted_while_it_is_spoken_in(world: LettaWorld, tmp_path: Path) -> None:
    agent = world.agent()
    one = world.letta.conversations.create(agent_id=agent.id)
    gate = Gate()
    world.upstream.queue(say("Zanzibar it is.", ["Zanzibar", " it is."], hold_after={2: gate}))
    under_way = world.letta.conversations.messages.create(one.id, input="Is it Zanzibar?", stream_tokens=True)
    assert next(each.content for each in under_way if each.message_type == "assistant_message") == "Zanzibar"
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(say_in, world, one.id, "Zanzibar again?")
        world.letta.conversations.delete(one.id)
        gate.open()
        with pytest.raises(APIStatusError):
            waits.result(PATIENCE_S)
    under_way.close()
    world.world.settle()
    assert spoken(world.letta.agents.messages.list(agent.id)) == []
    assert world.letta.conversations.list(agent_id=agent.id) == []
    for file in tmp_path.glob("memory.db*"):
        assert b"Zanzibar" not in with_inflated(file.read_bytes()), file.name
