"""Forks of conversations by the client's own method: one past, two futures, and what is forgotten is gone in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from letta_client import APIError, BadRequestError, NotFoundError

from gateway.errors import UnknownId
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.settings import ProfileSettings, ToolSettings
from storage.records import Scope
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.admin.test_transfer_agents import export, restore
from tests.gateway.compacting import Notes
from tests.gateway.sdk import agent as profile
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Makes = Callable[..., LettaWorld]
NOTHING_ELSE = {"learn_every": 0, "recall_tokens": 0}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, ProfileSettings("bare"), tools=ToolSettings(python=PYTHON)) as made:
        yield made


def say_in(world: LettaWorld, id: str, text: str, reply: str | None = None, **options: Any) -> None:
    """Sends a message, to which the model says `To <text>`."""
    world.upstream.queue(say(reply or f"To {text}"))
    list(world.letta.conversations.messages.create(id, input=text, **options))


def begun(world: LettaWorld, *said: str, **options: Any) -> str:
    """Returns a conversation of a new agent in which this was said."""
    one = world.letta.conversations.create(agent_id=world.agent(**options).id)
    for text in said:
        say_in(world, one.id, text)
    return one.id


def fork(world: LettaWorld, id: str, **options: Any) -> str:
    return world.letta.conversations.fork(id, **options).id


def listed(world: LettaWorld, id: str, **options: Any) -> list[Any]:
    return spoken(world.letta.conversations.messages.list(id, order="asc", **options))


def texts(world: LettaWorld, id: str, **options: Any) -> list[str]:
    return [each.content for each in listed(world, id, **options) if hasattr(each, "content")]


def sent(world: LettaWorld) -> list[str]:
    """What went upstream last, after the system message."""
    return [m["content"] for m in world.upstream.last.messages[1:]]


@pytest.mark.both
def test_two_conversations_have_one_past(world: LettaWorld) -> None:
    one = begun(world, "One")
    made = world.letta.conversations.fork(one)
    two = made.id
    assert made.agent_id == world.letta.conversations.retrieve(one).agent_id
    # Messages of the past are the same ones; the system message is its own.
    assert [each.id for each in listed(world, two)] == [each.id for each in listed(world, one)]
    ids = made.in_context_message_ids or []
    assert ids[1:] == [each.id for each in listed(world, one)]
    assert ids[0] != (world.letta.conversations.retrieve(one).in_context_message_ids or [])[0]
    say_in(world, two, "Two")
    assert sent(world) == ["One", "To One", "Two"]
    say_in(world, one, "Three")
    assert sent(world) == ["One", "To One", "Three"]
    say_in(world, two, "Four")
    assert sent(world) == ["One", "To One", "Two", "To Two", "Four"]
    assert texts(world, one) == ["One", "To One", "Three", "To Three"]
    assert texts(world, two) == ["One", "To One", "Two", "To Two", "Four", "To Four"]
    # The agent has each of them once.
    whole = spoken(world.letta.agents.messages.list(made.agent_id))
    assert len(whole) == 8
    newest = world.letta.conversations.messages.list(two, limit=3).items
    assert [each.content for each in newest] == ["To Four", "Four", "To Two"]  # type: ignore[union-attr]
    older = world.letta.conversations.messages.list(two, limit=3, before=newest[-1].id).items
    assert [each.content for each in older] == ["Two", "To One", "One"]  # type: ignore[union-attr]


@pytest.mark.both
def test_an_operator_reads_a_long_message_of_its_past_whole(world: LettaWorld) -> None:
    one = begun(world, "x" * 5_000)
    say_in(world, fork(world, one), "Two")
    views, call = MemoryViews(world.world.store, world.world.clock), world.world.gateway.call
    (memory,) = call(views.list_page(None, "agent")).items
    talks = call(views.conversations.list_page(None, memory.uid)).items
    assert len(talks) == 2
    for talk in talks:
        first = call(views.conversations.show(None, memory.uid, talk.id)).items[0]
        assert call(views.messages.read_text(None, memory.uid, talk.id, first.seq)) == "x" * 5_000
    own = call(views.conversations.show(None, memory.uid, talks[0].id)).items[-1]
    with pytest.raises(UnknownId):
        call(views.messages.read_text(None, memory.uid, talks[1].id, own.seq))


def test_the_agents_own_is_forked_with_and_without_a_body(world: LettaWorld) -> None:
    agent = world.agent()
    empty = fork(world, "default", agent_id=agent.id)
    assert texts(world, empty) == []
    say_in(world, "default", "One", agent_id=agent.id)
    for path in (f"default/fork?agent_id={agent.id}", f"{agent.id}/fork", f"{agent.id}/fork/"):
        for body in (None, {}):
            status, made = world.ask("POST", f"/v1/conversations/{path}", body)
            assert (status, made["agent_id"]) == (200, agent.id)
            assert texts(world, made["id"]) == ["One", "To One"]
    with pytest.raises(NotFoundError):
        fork(world, "conv-" + 32 * "0")
    with pytest.raises(BadRequestError, match="agent_id"):
        fork(world, "default")


def test_a_conversation_that_has_not_begun_is_forked_after_no_message(world: LettaWorld) -> None:
    agent = world.agent()
    system = world.letta.agents.retrieve(agent.id).message_ids or []
    assert texts(world, fork(world, "default", agent_id=agent.id, message_id=system[0])) == []
    elsewhere = world.letta.conversations.create(agent_id=agent.id).id
    say_in(world, elsewhere, "One")
    message = listed(world, elsewhere)[1].id
    with pytest.raises(NotFoundError):
        fork(world, "default", agent_id=agent.id, message_id=message)


def test_a_fork_has_the_model_of_its_source_and_none_of_its_words(world: LettaWorld) -> None:
    agent, conversations = world.agent(), world.letta.conversations
    settings: Any = {"temperature": 1.0, "provider_type": "openai"}
    one = conversations.create(
        agent_id=agent.id, summary="Cats", description="Pets.", model="openai/other", model_settings=settings
    )
    conversations.update(one.id, archived=True)
    made = conversations.fork(one.id, hidden=True)
    assert (made.model, made.summary, made.description, made.archived) == ("openai/other", None, None, False)
    say_in(world, made.id, "Hi")
    assert (world.upstream.last.json["model"], world.upstream.last.json["temperature"]) == ("other", 1.0)
    assert conversations.list(agent_id=agent.id) == []
    shown = conversations.fork(one.id)
    assert [each.id for each in conversations.list(agent_id=agent.id)] == [shown.id]


def test_its_system_message_has_the_blocks_as_they_are_now(world: LettaWorld) -> None:
    one = begun(world, "One", system="You help.")
    agent = world.letta.conversations.retrieve(one).agent_id
    before = world.upstream.last.messages[0]["content"]
    same = fork(world, one)
    say_in(world, same, "Two")
    assert world.upstream.last.messages[0]["content"] == before  # the provider's cached prefix holds
    world.letta.agents.blocks.update("human", agent_id=agent, value="Name: Zoe")
    two = world.letta.conversations.fork(one)
    (shown,) = world.letta.messages.retrieve((two.in_context_message_ids or [])[0])
    assert "Name: Zoe" in str(shown.content)  # type: ignore[union-attr]
    say_in(world, two.id, "Two")
    assert "Name: Zoe" in world.upstream.last.messages[0]["content"]
    say_in(world, one, "Three")
    assert world.upstream.last.messages[0]["content"] == before


def test_a_fork_ends_with_the_message_that_is_named(world: LettaWorld) -> None:
    one = begun(world, "One", "Two", "Three")
    ids = [each.id for each in listed(world, one)]
    two = fork(world, one, message_id=ids[3])
    assert texts(world, two) == ["One", "To One", "Two", "To Two"]
    say_in(world, two, "Else")
    assert sent(world) == ["One", "To One", "Two", "To Two", "Else"]
    # Also one of the past that a fork shares.
    three = fork(world, two, message_id=ids[1])
    assert texts(world, three) == ["One", "To One"]
    (system, *_) = world.letta.conversations.retrieve(one).in_context_message_ids or ()
    assert texts(world, fork(world, one, message_id=system)) == []
    with pytest.raises(BadRequestError, match="after a reply"):
        fork(world, one, message_id=ids[2])
    for unknown in (ids[5], "message-1", f"message-{32 * '0'}-1"):
        with pytest.raises(NotFoundError):
            fork(world, three, message_id=unknown)


def test_a_fork_of_a_fork(world: LettaWorld) -> None:
    one = begun(world, "One")
    two = fork(world, one)
    again = fork(world, two)  # nothing was said in the one between
    say_in(world, two, "Two")
    three = fork(world, two)
    say_in(world, one, "Elsewhere")
    say_in(world, two, "Elsewhere too")
    say_in(world, three, "Three")
    assert sent(world) == ["One", "To One", "Two", "To Two", "Three"]
    assert texts(world, three) == ["One", "To One", "Two", "To Two", "Three", "To Three"]
    say_in(world, again, "Again")
    assert sent(world) == ["One", "To One", "Again"]
    world.letta.conversations.delete(two)
    assert texts(world, three) == ["One", "To One", "Three", "To Three"]
    assert texts(world, again) == ["One", "To One", "Again", "To Again"]


@pytest.mark.both
def test_forgetting_reaches_both(world: LettaWorld) -> None:
    one = begun(world, "Zanzibar", "Two")
    two = fork(world, one)
    say_in(world, two, "Mine")
    for each in listed(world, two)[:2]:
        status, _ = world.ask("DELETE", f"/v1/agents/{_agent_of(world, two)}/messages/{each.id}")
        assert status == 200
    assert texts(world, one) == ["Two", "To Two"]
    assert texts(world, two) == ["Two", "To Two", "Mine", "To Mine"]
    say_in(world, two, "Next")
    assert sent(world) == ["Two", "To Two", "Mine", "To Mine", "Next"]
    world.letta.conversations.delete(one)
    assert texts(world, two) == ["Mine", "To Mine", "Next", "To Next"]
    say_in(world, two, "Last")
    assert sent(world) == ["Mine", "To Mine", "Next", "To Next", "Last"]
    assert b"Zanzibar" not in world.world.data() or world.world.file == Path()


@pytest.mark.both
def test_a_deleted_fork_leaves_the_past(world: LettaWorld) -> None:
    one = begun(world, "One")
    two = fork(world, one)
    say_in(world, two, "Mine")
    world.letta.conversations.delete(two)
    assert texts(world, one) == ["One", "To One"]
    with pytest.raises(NotFoundError):
        world.letta.conversations.retrieve(two)
    world.letta.agents.delete(_agent_of(world, one))
    world.world.settle()
    for table in ("forks", "conversations"):
        assert world.world.query(f"SELECT count(*) FROM {table}") == [0]


@pytest.mark.both
def test_a_change_of_a_message_reaches_both(world: LettaWorld) -> None:
    one = begun(world, "One")
    two = fork(world, one)
    agent, id = _agent_of(world, one), listed(world, one)[0].id
    body = {"message_type": "user_message", "content": "Uno"}
    assert world.ask("PATCH", f"/v1/agents/{agent}/messages/{id}", body)[0] == 200
    say_in(world, two, "Two")
    assert sent(world) == ["Uno", "To One", "Two"]


def test_a_message_that_is_being_answered_stays_with_its_conversation(world: LettaWorld) -> None:
    one = begun(world, "One")
    gate = Gate()
    world.upstream.queue(say("Slow.", ["Sl", "ow."], hold_after={2: gate}))
    slow = iter(world.letta.conversations.messages.create(one, input="Slowly", stream_tokens=True))
    assert getattr(next(slow), "content", None) == "Sl"
    two = fork(world, one)
    assert texts(world, two) == ["One", "To One"]
    say_in(world, two, "Quick")
    assert sent(world) == ["One", "To One", "Quick"]
    gate.open()
    list(slow)
    assert texts(world, one) == ["One", "To One", "Slowly", "Slow."]
    assert texts(world, two) == ["One", "To One", "Quick", "To Quick"]
    assert texts(world, fork(world, one)) == ["One", "To One", "Slowly", "Slow."]


@needs_bwrap
def test_calls_that_wait_for_an_approval_stay_with_their_conversation(world: LettaWorld) -> None:
    source = 'def launch() -> str:\n    """Launches."""\n    return "up"\n'
    tool = world.letta.tools.create(source_code=source, default_requires_approval=True)
    one = begun(world, "One", tools=[tool.name])
    world.upstream.queue(call_tools(Call("launch", {})))
    list(world.letta.conversations.messages.create(one, input="Launch"))
    asked = listed(world, one)[-1]
    assert asked.message_type == "approval_request_message"
    two = fork(world, one)
    assert texts(world, two) == ["One", "To One"]
    with pytest.raises(BadRequestError, match="after a reply"):
        fork(world, one, message_id=asked.id)
    denial: Any = {"type": "approval", "approve": False, "approval_request_id": asked.id}
    with pytest.raises(BadRequestError, match="awaiting approval"):
        list(world.letta.conversations.messages.create(two, messages=[denial]))
    world.upstream.queue(say("Then not."))
    list(world.letta.conversations.messages.create(one, messages=[denial]))
    assert texts(world, one)[-1] == "Then not."
    say_in(world, two, "Two")
    assert sent(world) == ["One", "To One", "Two"]


def test_a_fork_of_what_the_upstream_refused_starts_over(world: LettaWorld) -> None:
    first: Any = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A gardener."}]
    agent = world.agent(initial_message_sequence=first)
    one = world.letta.conversations.create(agent_id=agent.id).id
    world.upstream.queue(*[fail(400, "It was filtered.")] * 2)
    with pytest.raises(APIError):
        list(world.letta.conversations.messages.create(one, input="Odd"))
    two = fork(world, one)
    say_in(world, two, "Hi")
    assert sent(world) == ["Who?", "A gardener.", "Hi"]
    say_in(world, one, "Hi")
    assert sent(world) == ["Who?", "A gardener.", "Hi"]


@pytest.mark.both
def test_a_search_of_a_fork_finds_its_past_and_no_more(world: LettaWorld) -> None:
    one = begun(world, "The albatross flies.")
    two = fork(world, one)
    say_in(world, one, "The albatross sleeps.")
    say_in(world, two, "The albatross eats.")
    world.world.settle()

    def found(id: str) -> list[str]:
        hits = world.letta.messages.search(query="albatross", conversation_id=id, agent_id=agent)
        return sorted(hit.content for hit in hits if hit.message_type == "user_message")  # type: ignore[misc,union-attr]

    agent = _agent_of(world, one)
    assert found(two) == ["The albatross eats.", "The albatross flies."]
    assert found(one) == ["The albatross flies.", "The albatross sleeps."]


def test_messages_in_the_window_of_a_fork_are_not_recalled(world: LettaWorld) -> None:
    one = begun(world, "My albatross is called Miso.")
    two = fork(world, one)
    say_in(world, one, "The albatross Miso eats squid.")
    say_in(world, two, "What about the albatross Miso?")
    note = sent(world)[-1]
    assert "eats squid" in note
    assert "is called Miso" not in note


@pytest.mark.both
def test_each_message_is_read_once(world: LettaWorld) -> None:
    """By the learner and by sleeptime agents, which have one reader."""
    one = begun(world, "One")
    two = fork(world, one)
    say_in(world, two, "Two")
    say_in(world, one, "Three")
    world.world.pass_time(10_000)
    store, uid = world.world.store, _agent_of(world, one).removeprefix("agent-")

    async def read() -> list[str]:
        memory = await store.agents.find(Scope("default", "@", f"agent:{uid}"))
        assert memory is not None
        now = world.world.clock()
        found = await store.readers.find_unread(
            memory.id, 0, now=now, idle_s=1.0, limit_chars=9999, message_chars=999
        )
        assert found is not None
        assert not found.is_more
        return [m.text for m in found.messages]

    said = world.world.gateway.call(read())
    assert said == ["One", "To One", "Two", "To Two", "Three", "To Three"]


def test_an_exported_agent_keeps_its_forks(
    world: LettaWorld, upstream: StrictUpstream, tmp_path: Path
) -> None:
    one = begun(world, "One")
    two = fork(world, one)
    three = fork(world, two)
    say_in(world, two, "Two")
    say_in(world, one, "Elsewhere")
    agent = _agent_of(world, one)
    world.world.settle()
    lines = export(world, agent)
    (tmp_path / "other").mkdir()
    with letta(upstream, tmp_path / "other") as other:
        restore(other, agent, lines)
        for id in (one, two, three):
            assert texts(other, id) == texts(world, id)
        say_in(other, three, "Three")
        assert sent(other) == ["One", "To One", "Three"]
        say_in(other, two, "Four")
        assert sent(other) == ["One", "To One", "Two", "To Two", "Four"]
        other.letta.conversations.delete(one)
        assert texts(other, three) == ["Three", "To Three"]
        paths = "SELECT path FROM exchanges WHERE length(path) > 0"
        assert len(set(other.world.query(paths))) == len(other.world.query(paths))


def test_an_agent_file_of_a_fork_has_its_past(world: LettaWorld) -> None:
    one = begun(world, "One")
    two = fork(world, one)
    say_in(world, two, "Two")
    say_in(world, one, "Elsewhere")
    exported = world.letta.agents.export_file(_agent_of(world, one), conversation_id=two)
    for text, is_there in (("To One", True), ("To Two", True), ("Elsewhere", False)):
        assert (text in exported) is is_there


@pytest.mark.both
def test_forks_of_one_conversation_are_sent_to_at_once(world: LettaWorld) -> None:
    one = begun(world, "One")
    ids = [one, *(fork(world, one) for _ in range(3))]
    with ThreadPoolExecutor(len(ids)) as pool:
        for _ in range(2):
            list(pool.map(lambda id: list(world.letta.conversations.messages.create(id, input=id)), ids))
    for id in ids:
        assert texts(world, id) == ["One", "To One", id, "Ok.", id, "Ok."]


def test_the_same_send_in_a_fork_is_another_one(world: LettaWorld) -> None:
    one = world.letta.conversations.create(agent_id=world.agent().id).id
    message: Any = {"role": "user", "content": "Hi", "otid": "1"}
    world.upstream.queue(say("First."))
    list(world.letta.conversations.messages.create(one, messages=[message]))
    two = fork(world, one)
    world.upstream.queue(say("Second."))
    for _ in range(2):  # the second time it is answered as before
        list(world.letta.conversations.messages.create(two, messages=[message]))
    assert texts(world, two) == ["Hi", "First.", "Hi", "Second."]


def test_a_barge_in_cuts_nothing_above_a_fork(world: LettaWorld) -> None:
    one = begun(world, name="helper")
    say_in(world, one, "Tell me", "A long tale of the sea and of the ships upon it.")
    two = fork(world, one)
    heard = [
        {"role": "user", "content": "Tell me"},
        {"role": "assistant", "content": "A long tale of"},
        {"role": "user", "content": "Stop"},
    ]
    name = {"x-mnemogate-conversation": two}
    world.world.sdk.chat.completions.create(model="agent/helper", messages=heard, extra_headers=name)  # type: ignore[arg-type]
    assert texts(world, one)[1] == "A long tale of the sea and of the ships upon it."
    assert texts(world, two)[2:] == ["Stop", "Ok."]


def test_a_clients_list_goes_on_where_its_words_stand(world: LettaWorld) -> None:
    one = begun(world, "One", name="helper")
    two = fork(world, one)
    say_in(world, two, "Two")
    chat, other = (world.world.chat(model="agent/helper") for _ in range(2))
    messages = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "To One"}]
    chat.messages += messages
    chat.say("Three")
    other.messages += [
        *messages,
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": "To Two"},
    ]
    other.say("Four")
    world.world.settle()
    assert texts(world, one) == ["One", "To One", "Three", "Ok."]
    assert texts(world, two) == ["One", "To One", "Two", "To Two", "Four", "Ok."]


def test_a_client_conversation_goes_on_after_a_fork_of_it(world: LettaWorld) -> None:
    world.agent(name="helper")
    chat = world.world.chat(model="agent/helper")
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Cat: Miso"})), say("Noted.")
    )
    chat.say("My cat is Miso.")
    world.world.settle()
    (one,) = world.letta.conversations.list()
    two = fork(world, one.id)
    assert texts(world, two) == texts(world, one.id)
    # What the fork goes on from is confirmed, and so are its edits.
    assert "Cat: Miso" in world.letta.agents.blocks.retrieve("human", agent_id=one.agent_id).value
    say_in(world, two, "From the fork")
    assert sent(world)[-1] == "From the fork"
    world.upstream.queue(say("Other."))
    chat.messages[-1:] = []
    chat.go_on()  # the same question once more
    chat.say("From the client")
    world.world.settle()
    say_in(world, two, "Still the fork")
    assert sent(world)[-3:] == ["From the fork", "To From the fork", "Still the fork"]
    assert "From the client" not in str(world.upstream.last.messages)
    assert texts(world, two)[0] == "My cat is Miso."


def test_a_fork_is_compacted_for_itself(upstream: StrictUpstream, tmp_path: Path) -> None:
    notes = Notes(upstream)
    with letta(upstream, tmp_path, memory=NOTHING_ELSE) as world:
        tale = "A long tale of the sea. " * 8
        one = begun(world)
        for n in range(5):
            list(world.letta.conversations.messages.create(one, input=f"{n}: {tale}"))
        two = fork(world, one)
        compaction = world.letta.conversations.messages.compact(two)
        assert compaction is not None
        assert (compaction.num_messages_before, compaction.num_messages_after) == (11, 5)
        list(world.letta.conversations.messages.create(two, input="And now?"))
        assert [text[:4] for text in sent(world)] == ["3: A", "Ok.", "4: A", "Ok.", "And "]
        assert "Notes 1" in world.upstream.last.messages[0]["content"]
        list(world.letta.conversations.messages.create(one, input="And here?"))
        assert [text[:4] for text in sent(world)][::2] == ["0: A", "1: A", "2: A", "3: A", "4: A", "And "]
        # A fork begins with the window of the other one.
        list(world.letta.conversations.messages.create(fork(world, two), input="There?"))
        assert [text[:4] for text in sent(world)] == ["3: A", "Ok.", "4: A", "Ok.", "And ", "Ok.", "Ther"]
        # Whatever goes of the past takes the summaries of all its forks along.
        three = fork(world, two)
        for n in range(3):
            list(world.letta.conversations.messages.create(three, input=f"{n}: {tale}"))
        world.letta.conversations.messages.compact(three)
        assert len(world.world.query("SELECT id FROM summaries WHERE agent <> 0")) == 2
        first = listed(world, one)[0].id
        assert world.ask("DELETE", f"/v1/agents/{_agent_of(world, one)}/messages/{first}")[0] == 200
        assert world.world.query("SELECT id FROM summaries WHERE agent <> 0") == []
        assert len(notes.asked) == 2


def test_forks_of_a_memory_of_a_profile(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, profile("tutor", model="m")) as world:
        chat = world.world.chat(model="agent/tutor", user="ann")
        chat.say("Hi there")
        world.world.settle()
        (one,) = world.letta.conversations.list()
        two = fork(world, one.id)
        say_in(world, two, "And I?")
        assert texts(world, two) == ["Hi there", "Ok.", "And I?", "To And I?"]


def _agent_of(world: LettaWorld, id: str) -> str:
    return world.letta.conversations.retrieve(id).agent_id
