"""Who reads a memory after the fact reads what is settled, in order and whole, and never within a run."""

from __future__ import annotations

import pytest

from storage.database import Connection
from storage.reader_commands import UnreadMessages
from storage.records import LEARNER, Exchange, ExchangeState
from storage.run_records import RunState
from storage.sql.exchanges import find_exchange
from storage.sql.readers import advance, load_cursor
from storage.sql.store import Store
from tests.core.conversations import assistant, call, result, user
from tests.storage.conftest import OpenStore
from tests.storage.run_writer import RunWriter
from tests.stored import ALICE, Speaker

SLEEPER = 77


@pytest.fixture
async def writer(open_store: OpenStore) -> RunWriter:
    return RunWriter(await open_store())


async def unread(writer: RunWriter, reader: int = SLEEPER, limit_chars: int = 10_000) -> UnreadMessages:
    found = await writer.store.readers.find_unread(
        writer.agent.id, reader, now=writer.now, idle_s=60.0, limit_chars=limit_chars, message_chars=4_000
    )
    assert found is not None
    return found


def texts(found: UnreadMessages) -> list[str]:
    return [m.text for m in found.messages]


async def move(store: Store, memory_row: int, reader: int, upto: int) -> None:
    async def write(connection: Connection) -> None:
        await advance(connection, memory_row, reader, upto, 5.0)

    await store.database.write(write)


async def test_nothing_is_read_of_a_run_that_goes_on(writer: RunWriter) -> None:
    await writer.say("Hello.", "Hi.")
    await writer.begin(user("What is new?"))
    assert (texts(await unread(writer)), (await unread(writer)).is_waiting) == (["Hello.", "Hi."], True)
    await writer.finish(assistant("One moment.", call("c1", "search")), stop=None)
    found = await unread(writer)  # its step has ended, the run has not
    assert (texts(found), found.is_waiting) == (["Hello.", "Hi."], True)
    await writer.go_on(result("c1", "Nothing."))
    await writer.finish(assistant("Nothing is new."))
    found = await unread(writer)
    assert texts(found)[2:] == ["What is new?", "One moment.", "Nothing is new."]
    assert (list(found.tools_used.values()), found.is_waiting) == ([["search"]], False)


async def test_a_question_that_a_dead_process_left_open_is_read(writer: RunWriter) -> None:
    """The next send ends its exchange, which has its number already: the cursor would have passed it."""
    opened = await writer.begin(user("Are you there?"))
    assert opened.run is not None
    await writer.store.runs.end_run(opened.agent.id, opened.run.id, RunState.FAILED, "error", 101.0)
    assert texts(await unread(writer)) == ["Are you there?"]


async def test_each_reader_has_its_own_cursor_and_the_learner_follows_all(writer: RunWriter) -> None:
    for n in range(3):
        await writer.say(f"Message {n}.")
    memory = writer.agent.id
    await move(writer.store, memory, SLEEPER, 4)
    read = writer.store.database.read
    assert await read(lambda c: load_cursor(c, memory, SLEEPER)) == 4
    assert await read(lambda c: load_cursor(c, memory, SLEEPER + 1)) == 0
    # Where a sleeptime agent has read for it, it does not learn the same again.
    assert await read(lambda c: load_cursor(c, memory, LEARNER)) == 4
    assert texts(await unread(writer)) == ["Message 2.", "Yes."]


async def test_a_long_span_is_read_in_batches_to_its_end(writer: RunWriter) -> None:
    for n in range(40):
        await writer.say(f"Message {n}.", f"Reply {n}.")
    read: list[str] = []
    while True:
        found = await unread(writer, limit_chars=200)
        read += texts(found)
        await move(writer.store, writer.agent.id, SLEEPER, found.upto)
        if not found.is_more:
            break
    assert read == [line for n in range(40) for line in (f"Message {n}.", f"Reply {n}.")]


async def test_the_texts_that_a_run_has_read_are_emptied_under_the_lock_of_its_agent(
    writer: RunWriter,
) -> None:
    """Which the double of PostgreSQL's connections looks for."""
    said = await writer.say("A transcript.", "A thought.")
    await writer.store.sleeptime_agents.empty_reading(writer.agent.id, said.conversation_row)

    async def read(connection: Connection) -> Exchange | None:
        return await find_exchange(connection, writer.agent.id, said.id)

    found = await writer.store.database.read(read)
    assert found is not None
    assert (found.state, found.input, found.shown_reply) == (ExchangeState.FORGOTTEN, None, None)


async def test_memories_to_be_read_are_found_among_many_profiles(store: Store) -> None:
    alice = Speaker(store, ALICE)
    await alice.say([user("Hello.")], assistant("Hi."))
    others = [f"profile {n}" for n in range(40)]
    assert await store.readers.load_unslept(10, [*others, "default"]) == [alice.agent.id]
    assert await store.readers.load_unslept(10, others) == []
    assert await store.readers.load_unlearned(10, others) == [alice.agent.id]
    assert await store.readers.load_unlearned(10, [*others, "default"]) == []
