"""Forks: whose past stands where, which summaries go with what is forgotten, and what else is erased in a fork."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from storage.database import Connection
from storage.errors import NotFound, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.records import Exchange, ExchangeState
from storage.sql import exchanges
from storage.sql.store import Store
from tests.core.conversations import assistant, call, result, user
from tests.storage.run_writer import RunWriter
from tests.stored import Speaker, rows

UIDS = [letter * 32 for letter in "abc"]


class Talk:
    """One agent, its default conversation and forks of it."""

    def __init__(self, store: Store) -> None:
        self.store, self.writer = store, RunWriter(store)

    async def say(self, text: str, name: str = "default") -> Exchange:
        own = await self.writer.read(name)
        await self.writer.begin(user(text), own=own)
        return await self.writer.finish(assistant(f"To {text}"))

    async def fork(self, of: Exchange, uid: str, **options: Any) -> None:
        agent = self.writer.agent
        await self.store.forks.create(agent, of.conversation_row, uid, {}, at=500.0, **options)

    async def path(self, name: str) -> list[str]:
        own = await self.writer.read(name)
        said = [e for e in own.path if e.shown_reply is not None]
        return [orjson.loads(e.input or b"")[0]["content"] for e in said]

    async def forget(self, e: Exchange) -> None:
        target = ForgetTarget(message_seqs=[e.seq])
        await self.store.forgetting.forget(self.writer.agent.id, target)

    async def summarise(self, e: Exchange) -> None:
        agent = self.writer.agent.id
        add = self.store.summaries.make_add_effect(agent, e, f"of {e.id}", tokens=1, at=1.0, model="m")
        await self.store.database.write(add)

    async def summarised(self) -> set[int]:
        return {row[0] for row in await rows(self.store, "SELECT exchange FROM summaries WHERE agent <> 0")}


@pytest.fixture
def talk(store: Store) -> Talk:
    return Talk(store)


async def test_the_past_of_a_fork_stands_in_all_conversations_above_it(talk: Talk) -> None:
    one = await talk.say("one")
    two = await talk.say("two")
    await talk.fork(one, UIDS[0], upto=one.seq + 1)
    three = await talk.say("three", UIDS[0])
    await talk.fork(three, UIDS[1])
    await talk.say("four", UIDS[1])
    # Of the fork a part, and what stands above it.
    await talk.fork(three, UIDS[2], upto=one.seq + 1)
    assert await talk.path("default") == ["one", "two"]
    assert await talk.path(UIDS[0]) == ["one", "three"]
    assert await talk.path(UIDS[1]) == ["one", "three", "four"]
    assert await talk.path(UIDS[2]) == ["one"]
    found = await rows(
        talk.store, "SELECT conversation, origin, seq FROM forks ORDER BY conversation, origin"
    )
    a, (b, c) = three.conversation_row, (three.conversation_row + 1, three.conversation_row + 2)
    first, last = one.seq + 1, three.seq + 1
    default = two.conversation_row
    assert found == [(a, default, first), (b, default, first), (b, a, last), (c, default, first)]


async def test_a_run_that_has_not_ended_stays_with_its_conversation(talk: Talk) -> None:
    one = await talk.say("one")
    own = await talk.writer.read()
    await talk.writer.begin(user("two"), own=own)
    await talk.writer.finish(assistant("Not all."), stop=None)
    await talk.fork(one, UIDS[0])
    assert await talk.path(UIDS[0]) == ["one"]


async def test_a_turn_that_was_planned_on_a_client_conversation_is_planned_again(talk: Talk) -> None:
    speaker = Speaker(talk.store)
    await speaker.say([user("one")], assistant("Yes."))
    (e,) = await speaker.rows()
    before = "SELECT rev, tip FROM conversations ORDER BY id LIMIT 1"
    ((rev, last),) = await rows(talk.store, before)
    await talk.store.forks.create(speaker.agent, e.conversation_row, UIDS[0], {}, at=2.0)
    assert await rows(talk.store, before) == [(rev + 1, last)]
    assert [x.continued for x in await speaker.rows() if x.id == e.id] == [True]


async def test_a_fork_has_the_summaries_of_its_past_and_no_others(talk: Talk) -> None:
    one = await talk.say("one")
    two = await talk.say("two")
    await talk.fork(one, UIDS[0], upto=one.seq + 1)
    three = await talk.say("three", UIDS[0])
    for e in (one, two, three):
        await talk.summarise(e)
    for name, of in (("default", [two.id, one.id]), (UIDS[0], [three.id, one.id])):
        own = await talk.writer.read(name)
        assert [each.exchange.id for each in own.summaries] == of


async def test_a_long_path_is_read_from_its_last_summary_on_and_without_its_end(talk: Talk) -> None:
    one, two, three = [await talk.say(text) for text in ("one", "two", "three")]
    load_path = talk.store.summaries.load_path

    async def read(limit: int) -> list[int]:
        return [each.id for each in await load_path(talk.writer.agent.id, three.id, limit)]

    assert await read(2) == [one.id, two.id]
    await talk.summarise(two)
    assert await read(1) == [two.id]
    assert await read(5) == [two.id, three.id]


async def test_a_summary_is_forgotten_with_any_part_of_what_it_covers(talk: Talk) -> None:
    one = await talk.say("one")
    two = await talk.say("two")
    await talk.fork(one, UIDS[0], upto=one.seq + 1)
    three = await talk.say("three", UIDS[0])
    await talk.fork(three, UIDS[1])
    four = await talk.say("four", UIDS[1])
    for e in (two, three, four):
        await talk.summarise(e)
    await talk.forget(two)
    assert await talk.summarised() == {three.id, four.id}
    await talk.summarise(two)
    await talk.forget(three)
    assert await talk.summarised() == {two.id}
    await talk.summarise(four)
    await talk.forget(one)
    assert await talk.summarised() == set()


async def test_another_text_takes_the_summaries_of_forks_along(talk: Talk) -> None:
    one = await talk.say("one")
    two = await talk.say("two")
    await talk.fork(one, UIDS[0], upto=one.seq + 1)
    three = await talk.say("three", UIDS[0])
    for e in (two, three):
        await talk.summarise(e)
    own = await talk.writer.read(UIDS[0])
    agent = talk.writer.agent
    await talk.store.messages.rewrite(agent, two.seq, lambda e: e)
    assert await talk.summarised() == {three.id}
    await talk.store.messages.rewrite(agent, one.seq, lambda e: e)
    assert await talk.summarised() == set()
    # Who planned on the old text plans again.
    with pytest.raises(WriteConflict):
        await talk.writer.begin(user("planned before"), own=own)


async def test_hidden_rounds_after_what_is_forgotten_go_in_forks_too(talk: Talk) -> None:
    one = await talk.say("one")
    two = await talk.say("two")
    await talk.fork(one, UIDS[0], upto=one.seq + 1)
    three = await talk.say("three", UIDS[0])
    agent = talk.writer.agent.id
    said = orjson.loads(three.shown_reply or b"")
    rounds = {"messages": [assistant(None, call("1")), result("1", "x"), said], "ours": ["1"]}
    hidden = replace(three, full_reply=orjson.dumps(rounds), has_full_reply=True)

    async def write(connection: Connection) -> None:
        await connection.lock(agent)
        await exchanges.update_exchange(connection, agent, hidden, is_whole=True)

    await talk.store.database.write(write)
    await talk.forget(two)
    ((full,),) = await rows(talk.store, 'SELECT "full" FROM exchanges WHERE id = ?', (three.id,))
    assert full is not None
    await talk.forget(one)
    ((full,),) = await rows(talk.store, 'SELECT "full" FROM exchanges WHERE id = ?', (three.id,))
    assert full is None


async def test_a_fork_begins_with_an_exchange_that_matches_nothing(talk: Talk) -> None:
    one = await talk.say("one")
    await talk.fork(one, UIDS[0])
    own = await talk.writer.read(UIDS[0])
    e = own.path[-1]
    assert (e.state, e.active, e.inputs, e.path_hash, e.parent) == (ExchangeState.OFF, False, (), b"", one.id)
    assert (e.depth, e.length, e.offset) == (1, 3, 2)
    said = await rows(talk.store, "SELECT count(*) FROM exchanges WHERE active = 1")
    assert said == [(1,)]


async def test_a_source_or_a_message_that_is_gone_is_not_forked(talk: Talk) -> None:
    one = await talk.say("one")
    two = await talk.say("two")
    with pytest.raises(NotFound):
        await talk.fork(replace(one, conversation_row=99), UIDS[0])
    await talk.fork(one, UIDS[0], upto=one.seq + 1)
    with pytest.raises(NotFound):
        await talk.fork(two, UIDS[1], upto=two.seq + 10)
    with pytest.raises(WriteConflict):
        await talk.fork(one, UIDS[0])
    (fork,) = await rows(talk.store, "SELECT conversation FROM forks")
    with pytest.raises(NotFound):
        await talk.fork(replace(one, conversation_row=fork[0]), UIDS[1], upto=two.seq + 1)
