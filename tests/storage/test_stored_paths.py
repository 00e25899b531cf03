"""A stored conversation: what a send reads, what each step writes, and what refuses it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial

import pytest
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.stored_path import abandon, finish_step
from gateway.core.memory import edits
from gateway.core.memory.rules import RULES
from storage.commands import MemorySnapshot
from storage.database import Connection
from storage.errors import RunEnded, StaleWrite, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.job_records import NO_AGENT
from storage.records import EvictedPart, Exchange, ExchangeState, MemoryEdit, Scope
from storage.run_commands import ConversationPath, RunEnd, StepEnd
from storage.run_records import Run, RunState, RunStep, TokenCounts
from storage.sql import step_writes
from tests.core.conversations import assistant, call, result, user
from tests.storage.conftest import OpenStore
from tests.storage.run_writer import RunWriter
from tests.stored import ALICE, Speaker, rows, save_passage


@pytest.fixture
def statements() -> list[str]:
    return []


@pytest.fixture
async def writer(open_store: OpenStore, statements: list[str]) -> RunWriter:
    return RunWriter(await open_store(note=statements.append))


def kinds(statements: list[str]) -> list[str]:
    """Their names, and forgets them."""
    names = [" ".join(name.split()[:1]) for name in statements]
    statements.clear()
    return names


PLAIN = [
    "head", "path",
    "BEGIN", "exchange_add_planned", "insert", "COMMIT",
    "BEGIN", "step_finish", "step_insert", "COMMIT",
]  # fmt: skip


async def long_path(writer: RunWriter, steps: int) -> None:
    """A conversation of so many plain messages, the last ten of which are in the window.

    A transaction writes a hundred of them: it has its time, also on a busy machine.
    """
    await writer.say("Message 0")
    first = await writer.read()
    assert first.snapshot.conversation is not None
    section = first.snapshot.section
    conversation, rev = first.snapshot.conversation.id, first.snapshot.conversation.rev

    async def write(connection: Connection, path: list[Exchange], numbers: Sequence[int]) -> list[Exchange]:
        for n in numbers:
            begin = path[0]
            evicted = EvictedPart(begin.depth, begin.offset, 5, 1000) if len(path) == 10 else None
            planned = writer.planned(
                ConversationPath(MemorySnapshot(), path), path[-1], [user(f"Message {n}")], evicted
            )
            run = Run(0, uuid.uuid4().hex, 0, 0, RunState.RUNNING, 100.0, begun=100.0)
            opening = replace(
                planned, conversation_row=conversation, rev=rev + n - 1, run=run, section=section
            )
            opened = await step_writes.open_step(connection, opening, RULES)
            assert opened.run is not None
            e = finish_step(
                opened.exchange, MessageHasher(writer.agent.secret), path[-1].path_hash,
                full_reply=[assistant("Yes.")], shown_reply=None, model="up/m", evicted=evicted, now=100.0,
            )  # fmt: skip
            step = RunStep(e.id, writer.agent.id, opened.run.id, 1, 100.0, 100.0, stop="end_turn")
            await step_writes.end_step(connection, writer.store.jobs, StepEnd(writer.agent, e, step))
            path = [*path, e][-10:]
        return path

    path = [first.path[-1]]
    for n in range(1, steps, 100):
        numbers = range(n, min(n + 100, steps))
        path = await writer.store.database.write(partial(write, path=path, numbers=numbers))


@pytest.mark.parametrize("steps", [1, 300])
async def test_a_plain_message_is_six_statements_however_long_its_conversation(
    writer: RunWriter, statements: list[str], steps: int
) -> None:
    await long_path(writer, steps)
    statements.clear()
    await writer.say("And now?")
    assert kinds(statements) == PLAIN


async def test_a_send_reads_from_where_the_window_begins(writer: RunWriter) -> None:
    await long_path(writer, 40)
    own = await writer.read()
    assert [x.depth for x in own.path] == list(range(29, 40))
    assert own.path[0].input is not None
    assert own.path[-1].shown_reply is not None
    # A larger window, or one whose size nobody knows, has room for more.
    writer.context = 2000
    assert len((await writer.read()).path) == 40
    writer.context = None
    assert len((await writer.read()).path) == 40


async def test_each_step_of_a_run_is_an_exchange(writer: RunWriter) -> None:
    await writer.begin(user("Weather?"))
    first = await writer.finish(assistant(None, call("1")), stop=None)
    second = await writer.go_on(result("1", "sunny"))
    assert second.run is not None
    await writer.finish(assistant("Sunny."), first.path_hash)
    own = await writer.read()
    assert [x.state for x in own.path] == [ExchangeState.FINISHED] * 2
    assert all(x.continued and x.active for x in own.path)
    assert own.path[1].parent == own.path[0].id
    assert own.path[1].offset == count_atoms_to_end(own.path[0])
    assert [(x.seq, x.gapless_from) for x in own.path] == [(1, 1), (3, 1)]
    run = await writer.store.runs.find_newest_run(writer.agent.id, own.path[0].conversation_row)
    assert run is not None
    assert (run.state, run.stop, run.steps) == (RunState.COMPLETED, "end_turn", 2)
    assert run.counts == TokenCounts(14, 6)


async def test_the_message_is_there_before_the_reply(writer: RunWriter) -> None:
    await writer.begin(user("Are you there?"))
    own = await writer.read()
    assert own.path[-1].state is ExchangeState.OPEN
    assert b"Are you there?" in (own.path[-1].input or b"")
    run = await writer.store.runs.find_newest_run(writer.agent.id, own.path[0].conversation_row)
    assert run is not None
    assert run.state is RunState.RUNNING


async def test_a_step_that_a_process_left_open_stays_in_the_path(writer: RunWriter) -> None:
    await writer.begin(user("Are you there?"))
    own = await writer.read()
    ends = abandon(own.path[-1], MessageHasher(writer.agent.secret), b"", 50.0)
    await writer.begin(user("Hello?"), own=own, abandoned=ends)
    await writer.finish(assistant("Yes."), ends.path_hash)
    path = (await writer.read()).path
    assert [(x.state, x.reply is None, x.active) for x in path] == [
        (ExchangeState.FINISHED, True, True),
        (ExchangeState.FINISHED, False, True),
    ]


async def test_a_step_that_another_process_has_ended_is_not_written_over(writer: RunWriter) -> None:
    """As by a process that was paused for longer than its lease, and does not know."""
    await writer.begin(user("Are you there?"))
    other = RunWriter(writer.store)
    own = await other.read()
    ends = abandon(own.path[-1], MessageHasher(other.agent.secret), b"", 50.0)
    await other.begin(user("Hello?"), own=own, abandoned=ends)
    with pytest.raises(RunEnded):
        await writer.finish(assistant("Late."))
    await other.finish(assistant("Yes."), ends.path_hash)
    with pytest.raises(RunEnded):
        await other.finish(assistant("Twice."), ends.path_hash)
    path = (await other.read()).path
    assert [x.reply is None for x in path] == [True, False]
    assert b"Yes." in (path[-1].shown_reply or b"")
    assert writer.opened.run is not None
    assert await writer.store.runs.find_newest_step(writer.agent.id, writer.opened.run.id) is None


async def test_a_step_that_has_ended_is_not_taken_for_one_that_was_left_open(writer: RunWriter) -> None:
    await writer.begin(user("Are you there?"))
    other = RunWriter(writer.store)
    own = await other.read()
    ends = abandon(own.path[-1], MessageHasher(other.agent.secret), b"", 50.0)
    await writer.finish(assistant("Just in time."))
    with pytest.raises(WriteConflict):
        await other.begin(user("Hello?"), own=own, abandoned=ends)
    (e,) = (await other.read()).path
    assert b"Just in time." in (e.shown_reply or b"")


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED])
async def test_a_step_after_the_end_of_a_run_is_stored_only_if_the_run_was_cancelled(
    writer: RunWriter, state: RunState
) -> None:
    """Another process fails a run when the one that performs it has lost its lease."""
    run = (await writer.begin(user("Are you there?"))).run
    assert run is not None
    await writer.store.runs.end_run(run.agent_row, run.id, state, "error", 101.0)
    if state is RunState.CANCELLED:
        await writer.finish(assistant("I am h"), stop="cancelled")
    else:
        with pytest.raises(RunEnded):
            await writer.finish(assistant("I am here."))
    (e,) = (await writer.read()).path
    assert (e.state is ExchangeState.FINISHED) == (state is RunState.CANCELLED)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)  # a file has one process
async def test_an_attempt_that_lost_its_job_writes_nothing_of_its_run(writer: RunWriter) -> None:
    own, jobs, lease = await writer.read(), writer.store.jobs, {"lease_s": 60.0, "tries": 9}
    await jobs.enqueue("run", NO_AGENT, "k")
    lost = await jobs.leases.claim(["run"], **lease)
    await writer.begin(user("Are you there?"), own=own, job=lost)
    run = writer.opened.run
    assert run is not None
    await rows(writer.store, "UPDATE jobs SET held_until = 1")
    job = await jobs.leases.claim(["run"], **lease)
    assert lost is not None
    assert job is not None
    end = RunEnd(run.agent_row, run.id, RunState.FAILED, "error", 100.0, job=lost)
    for late in (
        writer.finish(assistant("Late."), job=lost),
        writer.go_on(user("Late."), job=lost),
        writer.store.stored_paths.end(end),
        writer.store.runs.end_run(run.agent_row, run.id, RunState.FAILED, "error", 100.0, job=lost),
    ):
        with pytest.raises(StaleWrite):
            await late
    writer.number = 0
    await writer.finish(assistant("Yes."), job=job)
    (e,) = (await writer.read()).path
    assert b"Yes." in (e.shown_reply or b"")
    ended = await writer.store.runs.find_run(run.agent_row, run.id)
    assert ended is not None
    assert (ended.state, ended.steps) == (RunState.COMPLETED, 1)


async def test_a_step_on_a_path_that_moved_is_refused(writer: RunWriter) -> None:
    await writer.say("One.")
    before = await writer.read()
    await writer.say("Two.")
    with pytest.raises(WriteConflict):
        await writer.begin(user("Three."), own=before)
    assert len((await writer.read()).path) == 2


async def test_a_conversation_begins_once(writer: RunWriter) -> None:
    await writer.say("One.")
    with pytest.raises(WriteConflict):
        await writer.begin(user("Other."), own=ConversationPath(MemorySnapshot()))


async def test_no_step_is_written_once_something_was_forgotten(writer: RunWriter) -> None:
    e = await writer.say("My secret is 1234.")
    own = await writer.read()
    await writer.begin(user("What is it?"), own=own)
    await rows(writer.store, "UPDATE agents SET epoch = epoch + 1 WHERE id = ?", (writer.agent.id,))
    with pytest.raises(StaleWrite):
        await writer.finish(assistant("1234."), e.path_hash)
    with pytest.raises(StaleWrite):
        await writer.go_on(user("And now?"))
    assert (await writer.read()).path[-1].shown_reply is None


async def test_edits_are_written_with_their_results_or_not_at_all(writer: RunWriter) -> None:
    first = await writer.begin(user("I am Ann."))
    made = await writer.finish(assistant(None, call("1", "memory_insert", "{}")), stop=None)
    (block,) = (await writer.read()).snapshot.blocks
    arguments = b'{"label":"human","new_string":"Ann"}'
    op = MemoryEdit(0, made.id, "1", "insert", "human", arguments, at=100.0)
    merged = edits.make_block_merge([block], [op])
    await writer.store.blocks.write(block.id, block.version, "Bob was here", at=99.0, origin="api")
    with pytest.raises(WriteConflict):
        await writer.go_on(result("1", "done"), edits=merged, versions={block.id: block.version})
    own = await writer.read()
    assert [x.id for x in own.path] == [first.exchange.id]
    assert [b.value for b in own.snapshot.blocks] == ["Bob was here"]
    # Made again on what is there now.
    again = edits.make_block_merge(own.snapshot.blocks, [op])
    await writer.go_on(result("1", "done"), edits=again, versions={block.id: block.version + 1})
    (block,) = (await writer.read()).snapshot.blocks
    assert block.value == "Bob was here\nAnn"
    (newest, *_) = await writer.store.blocks.list_revisions(block.id)
    assert (newest.exchange_row, newest.sources) == (made.id, (made.id,))


async def test_a_step_that_ended_while_the_index_passed_it_is_indexed_again(writer: RunWriter) -> None:
    await writer.begin(user("Slow?"))
    await rows(writer.store, "UPDATE agents SET indexed_seq = 9 WHERE id = ?", (writer.agent.id,))
    e = await writer.finish(assistant("Quick."))
    stale = await rows(writer.store, "SELECT exchange FROM marks WHERE kind = 'stale'")
    assert stale == [(e.id,)]


async def test_a_message_that_is_being_answered_is_indexed_with_its_reply(writer: RunWriter) -> None:
    agent = (await writer.begin(user("Who built it?"))).agent
    await writer.finish(assistant("Gaudi."))
    await writer.go_on(user("When?"))
    reached = "SELECT indexed_seq FROM agents"
    assert not await writer.store.search_index.advance(agent.id)
    assert await rows(writer.store, reached) == [(2,)]
    await writer.finish(assistant("In 1906."))
    assert await rows(writer.store, "SELECT 1 FROM marks WHERE kind = 'stale'") == []
    await writer.go_on(user("Where?"))
    await save_passage(writer.store, agent.id, "It stands in Barcelona.", at=101.0)
    # Something has a number after it: that does not wait.
    assert not await writer.store.search_index.advance(agent.id)
    assert await rows(writer.store, reached) == [(7,)]
    hits = await writer.store.recall.search(agent, "Gaudi 1906 Barcelona")
    assert {m.seq for m in hits} >= {2, 4, 7}


async def test_a_run_ends_after_a_step_that_is_written_already(writer: RunWriter) -> None:
    await writer.begin(user("Ring Ann."))
    e = await writer.finish(assistant(None, call("1"), call("2")), stop=None)
    assert writer.opened.run is not None
    run = writer.opened.run.id
    ended = await writer.store.stored_paths.end(
        RunEnd(
            writer.agent.id,
            run,
            RunState.COMPLETED,
            "requires_approval",
            101.0,
            e.id,
            writer.agent.epoch,
            waiting={"1": "client"},
            results={0: b'{"a":1}'},
        )
    )
    assert (ended.state, ended.stop) == (RunState.COMPLETED, "requires_approval")
    step = await writer.store.runs.find_waiting_step(writer.agent.id, e.conversation_row)
    assert step is not None
    assert (step.waiting, step.stop) == ({"1": "client"}, "requires_approval")
    (text,) = await writer.store.run_texts.load_texts(writer.agent.id, run, "result")
    assert text.data == b'{"a":1}'


async def test_effects_of_the_calls_of_a_forgotten_reply_are_not_written(writer: RunWriter) -> None:
    await writer.begin(user("I am Ann."))
    e = await writer.finish(assistant(None, call("1", "memory_insert", "{}"), call("2")), stop=None)
    assert writer.opened.run is not None
    (block,) = (await writer.read()).snapshot.blocks
    op = MemoryEdit(0, e.id, "1", "insert", "human", b'{"label":"human","new_string":"Ann"}', at=100.0)
    end = RunEnd(
        writer.agent.id,
        writer.opened.run.id,
        RunState.COMPLETED,
        "requires_approval",
        101.0,
        e.id,
        writer.agent.epoch,
        {"2": "client"},
        {0: b"done"},
        edits.make_block_merge([block], [op]),
        {block.id: block.version},
    )
    await writer.store.forgetting.forget(writer.agent.id, ForgetTarget(exchange_rows=[e.id]))
    with pytest.raises(StaleWrite):
        await writer.store.stored_paths.end(end)
    assert [b.value for b in (await writer.read()).snapshot.blocks] == [""]
    assert await writer.store.runs.find_waiting_step(writer.agent.id, e.conversation_row) is None
    assert await writer.store.run_texts.load_texts(writer.agent.id, end.run_row, "result") == ()


async def test_a_client_conversation_becomes_stored_from_its_newest_exchange(open_store: OpenStore) -> None:
    store = await open_store()
    alice = Speaker(store, ALICE)
    await alice.say([user("one")], assistant("First."), "default")
    await alice.say([user("one"), assistant("First."), user("two")], assistant("Second."), "default")
    writer = RunWriter(store, ALICE)
    own = await writer.read()
    assert own.snapshot.conversation is not None
    assert own.snapshot.conversation.last_exchange == 0
    assert [x.depth for x in own.path] == [0, 1]
    await writer.begin(user("three"), own=own, adopts_conversation=True, continued=[own.path[-1].id])
    await writer.finish(assistant("Third."), own.path[-1].path_hash)
    after = await writer.read()
    assert after.snapshot.conversation is not None
    assert after.snapshot.conversation.last_exchange == after.path[-1].id
    assert [x.continued for x in after.path] == [True] * 3


async def test_a_memory_does_not_read_the_path_of_another(writer: RunWriter) -> None:
    await writer.say("Mine.")
    mine = (await writer.read()).snapshot.conversation
    assert mine is not None
    other = RunWriter(writer.store, Scope("default", "@", "agent:a2"))
    await other.say("Theirs.")
    own = await other.read(mine.uid)
    assert own.snapshot.conversation is None
    assert own.path == ()
