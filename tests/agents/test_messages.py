"""Messages of an agent: one order over all conversations, pages that outlive what they go on from, changed texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.agents.runs.message_search import MessageSearch
from gateway.core.ids import ObjectRef
from gateway.errors import BadRequest
from storage.commands import LearnedFact
from storage.database import Connection
from storage.errors import NotFound, StaleWrite
from storage.forget_commands import ForgetTarget
from storage.listing import Page
from storage.records import Agent
from storage.run_records import Run, RunState, RunStep, TokenCounts
from storage.sql.agents_api.runs import add_step
from storage.sql.fact_writes import add_fact
from storage.sql.store import Store
from tests.core.conversations import assistant, call, result, user
from tests.storage.api import api_scope, bytes_in, make_agent
from tests.stored import Speaker, keeps_emptied_rows, put_run, rows, save_passage

UID = "0" * 32


@pytest.fixture
async def ann(store: Store) -> Speaker:
    await make_agent(store, "ann")
    return Speaker(store, api_scope("ann"))


@pytest.fixture
def messages(store: Store) -> AgentMessages:
    return AgentMessages(store, lambda: 50.0)


def at(seq: int, hidden: int | None = None) -> ObjectRef:
    return ObjectRef(UID, seq, hidden)


def texts(views: Any) -> list[Any]:
    return [view.listed.message.get("content") for view in views]


def ref_of(view: MessageView) -> ObjectRef:
    return at(view.listed.seq, view.listed.hidden_index)


async def talk(ann: Speaker, key: str, *turns: tuple[str, str]) -> None:
    said: list[Any] = []
    for asked, told in turns:
        said += [user(asked)]
        await ann.say(said, assistant(told), key)
        said += [assistant(told)]


async def hidden_round(ann: Speaker) -> None:
    """A turn with a search that the client does not see: one message in, three after it."""
    turn = await ann.begin([user("Where?")], "h")
    full = [
        assistant("Let me look.", call("c1", "conversation_search", "{}")),
        result("c1", "Rome."),
        assistant("Rome."),
    ]
    await ann.end(turn, full)


# -- lists


async def test_all_conversations_are_one_order_and_one_is_its_own(
    messages: AgentMessages, ann: Speaker
) -> None:
    await talk(ann, "a", ("a1", "A1"))
    await talk(ann, "b", ("b1", "B1"))
    await ann.say([user("a1"), assistant("A1"), user("a2")], assistant("A2"), "a")
    everything = await messages.list_agent_messages(ann.agent, Page(newest_first=False))
    assert texts(everything) == ["a1", "A1", "b1", "B1", "a2", "A2"]
    assert [v.listed.seq for v in everything] == [1, 2, 3, 4, 5, 6]
    assert texts(await messages.list_agent_messages(ann.agent, Page())) == texts(everything)[::-1]
    assert texts(await messages.list_agent_messages(ann.agent, Page(), conversation_name="a")) == [
        "A2",
        "a2",
        "A1",
        "a1",
    ]
    uid = everything[2].conversation_uid
    assert texts(
        await messages.list_agent_messages(ann.agent, Page(newest_first=False), conversation_name=uid)
    ) == [
        "b1",
        "B1",
    ]
    assert everything[2].key == "b"
    assert await messages.list_agent_messages(ann.agent, Page(), conversation_name="default") == []
    with pytest.raises(NotFound):
        await messages.list_agent_messages(ann.agent, Page(), conversation_name="nowhere")
    assert await messages.list_numbers(ann.agent, "a") == [1, 2, 5, 6]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("conversation", [None, "h"])
async def test_pages_have_every_message_once_hidden_ones_too(
    messages: AgentMessages, ann: Speaker, newest_first: bool, limit: int, conversation: str | None
) -> None:
    await talk(ann, "a", ("a1", "A1"))
    await hidden_round(ann)
    await talk(ann, "c", ("c1", "C1"), ("c2", "C2"))
    order = [(1, None), (2, None), (3, None), (4, 1), (4, 2), (4, None), *((n, None) for n in range(5, 9))]
    if conversation is not None:
        order = order[2:6]
    seen: list[MessageView] = []
    after = None
    while page := await messages.list_agent_messages(
        ann.agent, Page(after=after, limit=limit, newest_first=newest_first), conversation_name=conversation
    ):
        assert len(page) <= limit
        seen += page
        after = ref_of(page[-1])
    assert [(v.listed.seq, v.listed.hidden_index) for v in seen] == (order[::-1] if newest_first else order)


async def test_a_page_lies_between_its_cursors_and_goes_on_from_one_that_is_gone(
    messages: AgentMessages, ann: Speaker
) -> None:
    await talk(ann, "a", ("a1", "A1"), ("a2", "A2"), ("a3", "A3"))
    assert texts(await messages.list_agent_messages(ann.agent, Page(after=at(5), before=at(1)))) == [
        "A2",
        "a2",
        "A1",
    ]
    assert texts(
        await messages.list_agent_messages(ann.agent, Page(after=at(1), before=at(4), newest_first=False))
    ) == [
        "A1",
        "a2",
    ]
    await messages.delete(ann.agent, at(4))
    assert texts(await messages.list_agent_messages(ann.agent, Page(after=at(4)))) == ["a2", "A1", "a1"]
    assert texts(await messages.list_agent_messages(ann.agent, Page(after=at(4), newest_first=False))) == [
        "a3",
        "A3",
    ]
    with pytest.raises(NotFound):
        await messages.get(ann.agent, at(4))


async def test_a_message_says_its_run_and_what_waits_at_the_end(
    messages: AgentMessages, ann: Speaker, store: Store
) -> None:
    asked = assistant(None, call("c9", "pay", "{}"))
    await ann.say([user("Pay.")], asked, "a")
    (e,) = await ann.rows()
    run = await put_run(store, Run(0, "r1", ann.agent.id, e.conversation_row, RunState.RUNNING, 1.0))
    step = RunStep(
        e.id,
        ann.agent.id,
        run.id,
        1,
        1.0,
        2.0,
        TokenCounts(),
        "requires_approval",
        waiting={"c9": "approval"},
    )

    async def write(connection: Connection) -> None:
        await add_step(connection, step)

    await store.database.write(write)
    await rows(store, "UPDATE conversations SET tip = ?", (e.id,))
    first, reply = await messages.list_agent_messages(ann.agent, Page(newest_first=False))
    assert (first.run_uid, first.step_seq, first.waiting) == ("r1", 1, {})
    assert (reply.run_uid, reply.step_seq, reply.waiting) == ("r1", 1, {"c9": "approval"})
    # Its result is of the next exchange: it says which tool it is of, and nothing waits any more.
    await ann.say([user("Pay."), asked, result("c9", "Paid.")], assistant("Done."), "a")
    (view,) = await messages.list_agent_messages(ann.agent, Page(limit=1, after=at(4)))
    assert (view.listed.message["content"], view.tool_names) == ("Paid.", {"c9": "pay"})
    assert (await messages.get(ann.agent, at(2))).waiting == {}


async def test_superseded_messages_are_not_listed(messages: AgentMessages, ann: Speaker) -> None:
    await ann.say([user("one")], assistant("First."), "a")
    await ann.say([user("one")], assistant("Again."), "a")  # an answer that was asked for again
    assert texts(await messages.list_agent_messages(ann.agent, Page(newest_first=False))) == ["one", "Again."]


async def test_a_turn_under_way_shows_its_question_in_a_stored_conversation_alone(
    messages: AgentMessages, ann: Speaker, store: Store
) -> None:
    await talk(ann, "a", ("a1", "A1"), ("a2", "A2"))
    await rows(store, "UPDATE exchanges SET state = 'open', active = 0, shown_reply = NULL WHERE seq = 3")
    assert texts(await messages.list_agent_messages(ann.agent, Page())) == ["A1", "a1"]
    await rows(store, "UPDATE conversations SET tip = 2")
    assert texts(await messages.list_agent_messages(ann.agent, Page())) == ["a2", "A1", "a1"]


async def test_anothers_messages_are_not_there(messages: AgentMessages, ann: Speaker, store: Store) -> None:
    await talk(ann, "a", ("a1", "A1"))
    bob = (await make_agent(store, "bob")).agent
    assert await messages.list_agent_messages(bob, Page()) == []
    for attempt in (
        lambda: messages.get(bob, at(1)),
        lambda: messages.rewrite(bob, at(1), "x"),
        lambda: messages.delete(bob, at(1)),
        lambda: messages.list_agent_messages(bob, Page(), conversation_name="a"),
    ):
        with pytest.raises(NotFound):
            await attempt()
    assert texts(await messages.list_agent_messages(ann.agent, Page())) == ["A1", "a1"]


async def test_a_search_finds_messages_by_who_said_them_and_when(
    messages: AgentMessages, ann: Speaker, store: Store
) -> None:
    await talk(ann, "a", ("My cat is Miso.", "A cat, how nice."), ("Rome is old.", "So it is."))
    await save_passage(store, ann.agent.id, "The cat sleeps.", at=1.0)

    async def search(**options: Any) -> list[Any]:
        found = await MessageSearch(store, messages).search([ann.agent], "cat", **options)
        assert all(agent == ann.agent for agent, _ in found)
        return texts(view for _, view in found)

    assert {"A cat, how nice.", "My cat is Miso."} <= {*await search()}
    assert (await search(roles=["user"]))[0] == "My cat is Miso."
    assert len(await search(limit=1)) == 1
    assert await search(until=0.5) == []
    assert await search(since=2.0) == []


async def test_a_search_leaves_out_what_is_forgotten_after_it_was_found(
    messages: AgentMessages, ann: Speaker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk(ann, "a", ("My cat is Miso.", "Noted."), ("The cat sleeps.", "Good."))
    search = store.recall.search

    async def forget_between(*args: Any, **options: Any) -> Any:
        hits = await search(*args, **options)
        await store.forgetting.forget(ann.agent.id, ForgetTarget(message_seqs=[hits[0].seq]))
        return hits

    monkeypatch.setattr(store.recall, "search", forget_between)
    assert len(await MessageSearch(store, messages).search([ann.agent], "cat", roles=["user"])) == 1


# -- changes


async def found(store: Store, agent: Agent, query: str) -> list[str]:
    now = await store.agents.find_by_id(agent.id)
    assert now is not None
    hits = await store.recall.search(now, query)
    return [hit.text for hit in hits]


async def index(store: Store, agent: Agent) -> None:
    while await store.search_index.advance(agent.id):
        pass


@pytest.mark.parametrize("is_indexed", [True, False])
async def test_a_changed_text_is_what_is_listed_found_and_sent(
    messages: AgentMessages, ann: Speaker, store: Store, is_indexed: bool
) -> None:
    await talk(ann, "a", ("My cat is zqmisox.", "Noted."), ("And?", "Fine."))
    if is_indexed:
        await index(store, ann.agent)
    sql = (
        "INSERT INTO summaries (agent, conversation, exchange, depth, at, tokens, model, text)"
        " VALUES (?, 1, ?, ?, 1, 1, '', ?)"
    )
    first, second = await ann.rows()
    await rows(store, sql, (ann.agent.id, second.id, 1, "of all"))
    (before,) = await rows(store, "SELECT rev FROM conversations")
    changed = await messages.rewrite(ann.agent, at(1), "My cat is zqtomx.")
    assert changed.listed.message == user("My cat is zqtomx.")
    assert texts(await messages.list_agent_messages(ann.agent, Page()))[-1] == "My cat is zqtomx."
    for _ in range(2):
        assert "My cat is zqtomx." in await found(store, ann.agent, "zqtomx")
        assert await found(store, ann.agent, "zqmisox") == []
        await index(store, ann.agent)
    assert await rows(store, "SELECT text FROM summaries WHERE agent <> 0") == []
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    assert await rows(store, "SELECT rev FROM conversations") == [(before[0] + 1,)]
    # Who resends the old words is still recognised.
    said = [user("My cat is zqmisox."), assistant("Noted."), user("And?"), assistant("Fine."), user("So?")]
    await ann.say(said, assistant("So."), "a")
    assert [e.parent for e in await ann.rows()] == [None, first.id, second.id]


async def test_replies_are_changed_with_their_hidden_rounds_and_calls_are_not(
    messages: AgentMessages, ann: Speaker
) -> None:
    await hidden_round(ann)
    await messages.rewrite(ann.agent, at(2), "Paris.")
    assert texts(await messages.list_agent_messages(ann.agent, Page(newest_first=False))) == [
        "Where?",
        None,
        "Rome.",
        "Paris.",
    ]
    (e,) = await ann.rows()
    assert orjson.loads(e.full_reply or b"")["messages"][-1]["content"] == "Paris."
    await ann.say([user("Pay.")], assistant(None, call("c9", "pay", "{}")), "b")
    with pytest.raises(BadRequest, match="a tool call"):
        await messages.rewrite(ann.agent, at(4), "x")
    for attempt in (
        lambda: messages.rewrite(ann.agent, at(2, 1), "x"),
        lambda: messages.delete(ann.agent, at(2, 1)),
    ):
        with pytest.raises(BadRequest, match="hidden round"):
            await attempt()
    assert texts([await messages.get(ann.agent, at(2, 2))]) == ["Rome."]
    with pytest.raises(NotFound):
        await messages.get(ann.agent, at(2, 3))


async def test_nothing_is_changed_on_what_was_forgotten_meanwhile(
    messages: AgentMessages, ann: Speaker, store: Store
) -> None:
    await talk(ann, "a", ("a1", "A1"), ("a2", "A2"))
    before = await store.agents.find_by_id(ann.agent.id)
    assert before is not None
    await messages.delete(ann.agent, at(1))
    with pytest.raises(StaleWrite):
        await messages.rewrite(before, at(3), "x")


@pytest.mark.sqlite
async def test_a_deleted_message_is_nowhere_in_the_file(
    messages: AgentMessages, ann: Speaker, store: Store, tmp_path: Path
) -> None:
    await talk(ann, "a", ("zqonex", "zqreplyx"), ("two", "Two."))
    run = await put_run(store, Run(0, "r1", ann.agent.id, 1, RunState.RUNNING, 1.0))
    for kind in ("request", "call", "result", "event"):
        await store.run_texts.add_text(ann.agent.id, run.id, kind, 0, f"zq{kind}x".encode())
    await messages.delete(ann.agent, at(1))
    data = bytes_in(tmp_path)
    # Of a run under way stays what was asked for, and that a call was made.
    left = [
        word
        for word in ("one", "reply", "request", "call", "result", "event")
        if f"zq{word}x".encode() in data
    ]
    assert left == ["reply", "request"]
    assert [t.data for t in await store.run_texts.load_texts(ann.agent.id, run.id, "call")] == [b"{}"]


@pytest.mark.sqlite
async def test_a_reset_conversation_is_empty_and_what_was_learned_stays(
    messages: AgentMessages, ann: Speaker, store: Store, tmp_path: Path
) -> None:
    await talk(ann, "default", ("zqonex", "zqtwox"))
    await talk(ann, "other", ("stays", "Stays."))
    e = (await ann.rows())[0]
    await save_passage(store, ann.agent.id, "zqsavedx", at=1.0, sources=[e.id])

    async def learn(connection: Connection) -> None:
        fact = LearnedFact("zqlearnedx", "user", "k", 1.0, e.id, [e.id])
        await add_fact(connection, ann.agent, fact, 1.0)

    await store.database.write(learn)
    run = await put_run(store, Run(0, "r1", ann.agent.id, e.conversation_row, RunState.RUNNING, 1.0))
    await messages.reset(ann.agent)
    data = bytes_in(tmp_path)
    left = [word for word in ("one", "two", "saved", "learned") if f"zq{word}x".encode() in data]
    assert left == ["saved", "learned"]
    assert texts(await messages.list_agent_messages(ann.agent, Page())) == ["Stays.", "stays"]
    assert await messages.list_agent_messages(ann.agent, Page(), conversation_name="default") == []
    assert (await store.runs.get("default", "r1")).run.state is RunState.CANCELLED
    assert run.state is RunState.RUNNING
    assert [f.text for f in await store.facts.list_page(ann.agent.id)] == ["zqlearnedx"]
    await talk(ann, "default", ("new", "New."))
    assert texts(await messages.list_agent_messages(ann.agent, Page(), conversation_name="default")) == [
        "New.",
        "new",
    ]
    await messages.reset(ann.agent)
    await messages.reset(ann.agent)  # nothing has begun
    # The words of the first one may be said again.
    await talk(ann, "default", ("zqonex", "zqtwox"))
    assert texts(await messages.list_agent_messages(ann.agent, Page(), conversation_name="default")) == [
        "zqtwox",
        "zqonex",
    ]
