"""Runs: states by compare-and-set, steps that add up, texts that can be emptied, lists and their pages."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from gateway.run.background.run_cleaning import RunCleaning
from storage.database import Connection
from storage.errors import NotFound, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import Page, RunFilter
from storage.records import Agent, Scope
from storage.run_commands import RunAccept
from storage.run_records import Run, RunState, RunStep, TokenCounts
from storage.sql.agents import find_or_create_agent
from storage.sql.agents_api.run_texts import replace_text
from storage.sql.agents_api.runs import SQL, add_step
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.conftest import Holds, OpenStore
from tests.stored import Speaker, keeps_emptied_rows, put_run, rows, start_run

CALLS = {"call_1": "approval", "call_2": "client"}


@pytest.fixture
async def alice(store: Store) -> Speaker:
    made = Speaker(store)
    await made.say([user("one")], assistant("First."), "c1")
    return made


@pytest.fixture
def draft(alice: Speaker) -> Run:
    return Run(0, "r1", alice.agent.id, 1, RunState.CREATED, 5.0, otid=b"otid")


async def said(alice: Speaker, count: int) -> list[int]:
    """Exchanges for steps to stand on, oldest first."""
    for n in range(count):
        await alice.say([user(f"more {n}")], assistant(f"Reply {n}."), f"more {n}")
    return [e.id for e in await alice.rows()][-count:]


async def put_step(store: Store, step: RunStep) -> None:
    async def write(connection: Connection) -> None:
        await connection.lock(step.agent_row)
        await add_step(connection, step)

    await store.database.write(write)


async def test_a_run_is_created_begun_and_ended_once(store: Store, draft: Run) -> None:
    run = await put_run(store, draft)
    assert run == replace(draft, id=run.id)
    begun = await start_run(store, run.agent_row, run.id, 6.0)
    assert (begun.state, begun.begun, begun.is_over) == (RunState.RUNNING, 6.0, False)
    assert (await start_run(store, run.agent_row, run.id, 9.0)).begun == 6.0
    ends = [
        store.runs.end_run(run.agent_row, run.id, RunState.CANCELLED, "cancelled", 7.0),
        store.runs.end_run(run.agent_row, run.id, RunState.FAILED, "error", 8.0),
    ]
    first, second = await asyncio.gather(*ends)
    # Over PostgreSQL they are two transactions, and either may come first.
    assert first == second, "the later one reads what the earlier one wrote"
    assert (first.state, first.stop, first.ended) in (
        (RunState.CANCELLED, "cancelled", 7.0),
        (RunState.FAILED, "error", 8.0),
    )
    assert first.is_over
    assert (await start_run(store, run.agent_row, run.id, 9.0)).state is first.state
    with pytest.raises(NotFound):
        await start_run(store, run.agent_row + 1, run.id, 9.0)


async def test_the_same_send_is_one_run_until_another_takes_its_place(store: Store, draft: Run) -> None:
    run = await put_run(store, draft)
    assert await put_run(store, replace(draft, uid="r2")) == run
    # One that goes on cannot be replaced.
    assert (await put_run(store, replace(draft, uid="r3"), replaces=run.id)).id == run.id
    await store.runs.end_run(run.agent_row, run.id, RunState.FAILED, "error", 8.0)
    again = await put_run(store, replace(draft, uid="r4"), replaces=run.id)
    assert (again.uid, again.otid) == ("r4", b"otid")
    assert (await store.runs.get("default", "r1")).run.otid is None
    assert await store.runs.find_newest_run(run.agent_row, 1) == again
    # Sends without an id of their own are never the same.
    assert len({(await put_run(store, replace(draft, uid=u, otid=None))).id for u in "ab"}) == 2


async def test_a_response_of_which_an_upstream_gave_the_id_before_is_refused(
    store: Store, alice: Speaker, draft: Run
) -> None:
    response = replace(draft, conversation_row=0, otid=None)
    await store.responses.add_made_upstream(response, b"first", alice.agent.epoch)
    with pytest.raises(WriteConflict, match="there is a run 'r1' already"):
        await store.responses.add_made_upstream(response, b"second", alice.agent.epoch)
    found = await store.responses.find("default", "r1")
    assert found is not None
    (text,) = await store.run_texts.load_texts(draft.agent_row, found.run.id, "response")
    assert text.data == b"first"


async def test_steps_add_up_in_their_run_and_the_last_one_ends_it(
    store: Store, alice: Speaker, draft: Run
) -> None:
    run = await put_run(store, replace(draft, state=RunState.RUNNING, begun=5.0))
    first, second, late = await said(alice, 3)
    step = RunStep(first, run.agent_row, run.id, 1, 5.0, 6.0, TokenCounts(100, 10, 80, 5, 2))
    await put_step(store, step)
    entry = await store.runs.get("default", "r1")
    assert (entry.run.state, entry.run.steps, entry.run.counts) == (
        RunState.RUNNING,
        1,
        TokenCounts(100, 10, 80, 5, 2),
    )
    await put_step(
        store,
        replace(step, exchange_row=second, number=2, ended=7.0, stop="requires_approval", waiting=CALLS),
    )
    await put_step(
        store, replace(step, exchange_row=late, number=3, ended=9.0, stop="error", error="StaleWrite")
    )
    entry = await store.runs.get("default", "r1")
    assert entry.run.counts == TokenCounts(300, 30, 240, 15, 6)
    assert (entry.run.state, entry.run.stop, entry.run.ended) == (
        RunState.COMPLETED,
        "requires_approval",
        7.0,
    )
    steps = await store.runs.load_steps(entry.run)
    assert [(s.step.exchange_row, s.step.number, s.step.waiting) for s in steps] == [
        (first, 1, {}),
        (second, 2, CALLS),
        (late, 3, {}),
    ]
    assert {(s.run_uid, s.agent_uid) for s in steps} == {("r1", alice.agent.uid)}
    found = await store.runs.get_step("default", alice.agent.uid, steps[1].seq)
    assert found == steps[1]
    await store.runs.rate_step(found.step, "positive")
    (judged,) = await store.runs.list_steps("default", Page(), feedback="positive")
    assert judged.step == replace(found.step, feedback="positive")
    assert await store.runs.list_steps("default", Page(), has_feedback=True) == [judged]
    for agent_row in (None, judged.step.agent_row):
        others = await store.runs.list_steps("default", Page(), agent_row=agent_row, has_feedback=False)
        assert [each.step.exchange_row for each in others] == [late, first]
    assert await store.runs.list_steps("default", Page(), feedback="positive", has_feedback=False) == []


async def test_calls_wait_while_their_step_is_the_last(store: Store, alice: Speaker, draft: Run) -> None:
    run = await put_run(store, draft)
    assert await store.runs.find_waiting_step(run.agent_row, 1) is None
    (last,) = [e.id for e in await alice.rows()]
    await put_step(
        store, RunStep(last, run.agent_row, run.id, 1, 5.0, stop="requires_approval", waiting=CALLS)
    )
    assert await store.runs.find_waiting_step(run.agent_row, 1) is None, "a tree of the client's"
    await rows(store, "UPDATE conversations SET tip = ? WHERE id = 1", (last,))
    waiting = await store.runs.find_waiting_step(run.agent_row, 1)
    assert waiting is not None
    assert (waiting.exchange_row, waiting.waiting) == (last, CALLS)
    await alice.say([user("one"), assistant("First."), user("two")], assistant("Second."), "c1")
    assert await store.runs.find_waiting_step(run.agent_row, 1) is None, "the conversation went on"


async def test_texts_are_stored_once_read_in_order_and_replaced(
    store: Store, draft: Run, holds: Holds
) -> None:
    run = await put_run(store, draft)
    of = (run.agent_row, run.id)
    assert await store.run_texts.add_text(*of, "request", 0, b'{"messages": "zqrequestx"}')
    for seq in (2, 0, 1):
        assert await store.run_texts.add_text(*of, "event", seq, f"zqevent{seq}x".encode())
    assert not await store.run_texts.add_text(*of, "event", 1, b"another")
    assert [t.data for t in await store.run_texts.load_texts(*of, "event", after=0)] == [
        b"zqevent1x",
        b"zqevent2x",
    ]
    assert [t.seq for t in await store.run_texts.load_texts(*of, "event", limit=2)] == [0, 1]
    assert await store.run_texts.load_texts(run.agent_row + 1, run.id, "event") == ()

    async def shorten(connection: Connection) -> None:
        await connection.lock(run.agent_row)
        await replace_text(connection, *of, "request", 0, b"{}")

    await store.database.write(shorten)
    assert [t.data for t in await store.run_texts.load_texts(*of, "request")] == [b"{}"]
    await store.database.sweep(1000)
    assert not holds(b"zqrequestx")


async def bob_of(store: Store, project: str) -> Agent:
    made = store.agents.get_draft(Scope(project, "@", "agent:bob"))
    return await store.database.write(lambda connection: find_or_create_agent(connection, made))


async def test_lists_by_page_and_filter_stay_within_the_project(
    store: Store, alice: Speaker, draft: Run
) -> None:
    bob, other = await bob_of(store, "default"), await bob_of(store, "elsewhere")
    sql = "INSERT INTO conversations (id, agent, uid, key, begun, last_at) VALUES (?, ?, ?, 'default', 1, 1)"
    for id, agent in ((77, bob), (78, other)):
        await rows(store, sql, (id, agent.id, f"conv {id}"))
    for n in range(6):
        await put_run(store, replace(draft, uid=f"a{n}", otid=None, background=n % 2 == 0))
    for agent, conversation, uid in ((bob.id, 77, "b"), (other.id, 78, "o")):
        await put_run(
            store, replace(draft, agent_row=agent, conversation_row=conversation, uid=uid, otid=None)
        )
    last = (await store.runs.get("default", "a5")).run
    await store.runs.end_run(last.agent_row, last.id, RunState.COMPLETED, "end_turn", 9.0)

    async def listed(page: Page[int] | None = None, **wanted: object) -> str:
        found = await store.runs.list_runs("default", RunFilter(**wanted), page or Page())  # type: ignore[arg-type]
        return " ".join(entry.run.uid for entry in found)

    assert await listed() == "b a5 a4 a3 a2 a1 a0"
    assert await listed(Page(newest_first=False)) == "a0 a1 a2 a3 a4 a5 b"
    ids = {e.run.uid: e.run.id for e in await store.runs.list_runs("default", RunFilter(), Page())}
    assert await listed(Page(after=ids["a5"], limit=2)) == "a4 a3"
    assert await listed(Page(before=ids["a4"])) == "b a5"
    assert await listed(Page(after=ids["a1"], before=ids["a4"], newest_first=False)) == "a2 a3"
    assert await listed(agent_row=alice.agent.id, background=True) == "a4 a2 a0"
    assert await listed(agent_row=other.id) == "", "another project's agent"
    assert await listed(states=(RunState.COMPLETED,)) == await listed(stop="end_turn") == "a5"
    assert await listed(conversation_row=77) == "b"
    (entry,) = await store.runs.list_runs("default", RunFilter(agent_row=bob.id), Page())
    assert (entry.agent_uid, entry.conversation_uid, entry.key) == (bob.uid, "conv 77", "default")
    with pytest.raises(NotFound):
        await store.runs.get("default", "o")

    exchanges = await said(alice, 3)
    for number, exchange in enumerate(exchanges, 1):
        await put_step(store, RunStep(exchange, last.agent_row, last.id, number, 5.0))
    page = Page(after=exchanges[0], newest_first=False)
    assert [s.step.exchange_row for s in await store.runs.list_steps("default", page)] == exchanges[1:]
    page = Page(limit=2)
    assert [
        s.step.exchange_row for s in await store.runs.list_steps("default", page, agent_row=last.agent_row)
    ] == exchanges[:0:-1]
    assert await store.runs.list_steps("elsewhere", page) == []
    assert await store.runs.list_steps("elsewhere", page, agent_row=last.agent_row) == []


async def test_open_runs_are_listed_without_those_that_have_ended(open_store: OpenStore) -> None:
    statements: list[str] = []
    store = await open_store(note=statements.append)
    alice = Speaker(store)
    await alice.say([user("one")], assistant("First."), "c1")
    draft = Run(0, "r1", alice.agent.id, 1, RunState.CREATED, 5.0)
    ended, created, running = [
        await put_run(store, replace(draft, uid=uid, state=state))
        for uid, state in (("ended", "running"), ("created", "created"), ("running", "running"))
    ]
    await store.runs.end_run(ended.agent_row, ended.id, RunState.COMPLETED, "end_turn", 6.0)
    for states, agent_row, expected in (
        ((RunState.CREATED, RunState.RUNNING), None, [running.id, created.id]),
        ((RunState.RUNNING,), alice.agent.id, [running.id]),
        ((RunState.RUNNING,), alice.agent.id + 1, []),
    ):
        statements.clear()
        run_filter = RunFilter(agent_row=agent_row, states=states)
        assert [each.run.id for each in await store.runs.list_runs("default", run_filter, Page())] == expected
        assert statements
        for name in ("of_project_down", "of_agent_down"):
            assert not {SQL[name], SQL[name].postgres}.intersection(statements)


async def test_live_runs_are_distinguished_from_background_ones_and_those_that_have_ended(
    store: Store, draft: Run
) -> None:
    live = await put_run(store, replace(draft, uid="live", otid=None, state=RunState.RUNNING))
    for state in (RunState.CREATED, RunState.RUNNING):
        await put_run(store, replace(draft, uid=state, otid=None, background=True, state=state))
    done = await put_run(store, replace(draft, uid="done", otid=None))
    await store.runs.end_run(done.agent_row, done.id, RunState.COMPLETED, "end_turn", 6.0)
    assert [each.run.uid for each in await store.runs.list_open_foreground()] == ["live"]
    await store.runs.end_run(live.agent_row, live.id, RunState.FAILED, "error", 9.0)
    assert await store.runs.list_open_foreground() == []
    found = {
        e.run.uid: e.run
        for e in await store.runs.list_runs("default", RunFilter(agent_row=live.agent_row), Page())
    }
    assert {uid: run.state for uid, run in found.items()} == {
        "live": "failed",
        "created": "created",
        "running": "running",
        "done": "completed",
    }
    assert (found["live"].stop, found["live"].ended) == ("error", 9.0)


async def test_a_run_is_accepted_with_its_request_and_its_job(store: Store, draft: Run) -> None:
    woken: list[int] = []
    store.jobs.add_listener(lambda: woken.append(1))
    wanted = RunAccept(replace(draft, background=True), b'{"messages":[]}')
    run = await store.runs.accept_run(wanted)
    assert woken
    (job,) = await store.jobs.list_newest()
    assert (job.kind, job.agent_row, job.key, job.payload) == (
        "run",
        run.agent_row,
        run.uid,
        b'{"run":%d}' % run.id,
    )
    assert [text.data for text in await store.run_texts.load_texts(run.agent_row, run.id, "request")] == [
        wanted.request
    ]
    # The same send again is the same run, and no second job.
    assert await store.runs.accept_run(replace(wanted, run=replace(draft, uid="r2"))) == run
    assert len(await store.jobs.list_newest()) == 1
    ((entry, has_job),) = await store.runs.list_open_background()
    assert (entry.run.id, has_job) == (run.id, True)
    await store.jobs.cancel(job.id)
    assert [has for _, has in await store.runs.list_open_background()] == [False]
    await store.runs.end_run(run.agent_row, run.id, RunState.FAILED, "error", 8.0)
    assert await store.runs.list_open_background() == []


async def test_a_run_is_accepted_into_a_conversation_that_begins_with_it(
    store: Store, alice: Speaker, draft: Run
) -> None:
    wanted = RunAccept(replace(draft, conversation_row=0), b"{}", key="default", uid="d" * 32)
    run = await store.runs.accept_run(wanted)
    found = await store.stored_paths.find_conversation(alice.agent, "default")
    assert found is not None
    assert (found.id, found.uid, found.last_exchange) == (run.conversation_row, "d" * 32, -1)
    other = await store.runs.accept_run(
        replace(wanted, run=replace(wanted.run, uid="r2", otid=None), uid="e" * 32)
    )
    assert other.conversation_row == run.conversation_row


async def test_the_texts_of_a_run_are_dropped_long_after_its_end(
    store: Store, alice: Speaker, draft: Run
) -> None:
    run = await put_run(store, draft)
    for kind in ("request", "event", "call", "result"):
        await store.run_texts.add_text(run.agent_row, run.id, kind, 1, f"the {kind} of it".encode())
    assert await store.run_texts.drop_texts(100.0, 10) == 0
    await store.runs.end_run(run.agent_row, run.id, RunState.COMPLETED, "end_turn", 8.0)
    assert await store.run_texts.find_first_end() == 8.0
    # If the clock was put back by days meanwhile, runs that end from now on are looked for all the same.
    assert (
        await RunCleaning(store, lambda: -9 * 86_400.0).perform_due()
        == await RunCleaning(store, lambda: 8.0).perform_due()
    )
    assert await store.run_texts.drop_texts(8.0, 10) == 0
    assert await store.run_texts.drop_texts(9.0, 10) == 1
    for kind in ("request", "event", "call", "result"):
        assert await store.run_texts.load_texts(run.agent_row, run.id, kind) == ()
    assert await store.run_texts.find_first_end() is None
    assert await keeps_emptied_rows(store) is not store.database.is_shared


@pytest.mark.parametrize(
    ("stop", "waiting"), [("requires_approval", CALLS), (None, {})], ids=["waits", "broken off"]
)
async def test_records_of_calls_are_retained_as_long_as_their_conversation_ends_with_them(
    store: Store, alice: Speaker, draft: Run, stop: str | None, waiting: dict[str, str]
) -> None:
    run = await put_run(store, replace(draft, state=RunState.RUNNING, begun=5.0))
    exchange, later = await said(alice, 2)
    step = RunStep(exchange, run.agent_row, run.id, 1, 5.0, 6.0, TokenCounts(), stop, waiting=waiting)
    await put_step(store, step)
    await store.runs.end_run(run.agent_row, run.id, RunState.FAILED, "error", 6.0)
    for kind in ("event", "call", "result"):
        await store.run_texts.add_text(run.agent_row, run.id, kind, 1, kind.encode())
    # A call that an answer allows is noted here before it is made, however late the answer comes.
    await rows(store, "UPDATE conversations SET tip = ? WHERE id = 1", (exchange,))
    assert await store.run_texts.drop_texts(9.0, 10) == 1
    for kind in ("call", "result"):
        assert [x.data for x in await store.run_texts.load_texts(run.agent_row, run.id, kind)] == [
            kind.encode()
        ]
    assert await store.run_texts.load_texts(run.agent_row, run.id, "event") == ()
    assert await store.runs.find_newest_step(run.agent_row, run.id) == step
    assert (await store.run_texts.drop_texts(9.0, 10), await store.run_texts.find_first_end()) == (0, None)
    # The results lie in the next exchange then.
    await rows(store, "UPDATE conversations SET tip = ? WHERE id = 1", (later,))
    assert await store.run_texts.find_first_end() == 6.0
    assert await store.run_texts.drop_texts(9.0, 10) == 1
    for kind in ("call", "result"):
        assert await store.run_texts.load_texts(run.agent_row, run.id, kind) == ()


async def test_the_names_of_the_turns_of_a_response_stay_as_long_as_its_run(
    store: Store, alice: Speaker, draft: Run
) -> None:
    run = await put_run(store, replace(draft, conversation_row=0))
    assert await store.responses.note_turn(run.agent_row, run.id, b"first")
    assert await store.responses.note_turn(run.agent_row, run.id, b"second")
    await store.forgetting.forget(run.agent_row, ForgetTarget(message_seqs=[0]))
    await store.runs.end_run(run.agent_row, run.id, RunState.COMPLETED, "completed", 8.0)
    await store.run_texts.drop_texts(100.0, 10)
    assert not await store.responses.note_turn(run.agent_row, run.id, b"third")
    assert await store.responses.load_turns(run.agent_row, run.id) == [b"first", b"second"]
    await store.responses.remove(run.agent_row, run.id)
    assert not await store.responses.note_turn(run.agent_row, run.id, b"third")
    assert await store.responses.load_turns(run.agent_row, run.id) == []


async def test_late_writes_of_a_deleted_run_are_not_stored(store: Store, alice: Speaker, draft: Run) -> None:
    run = await put_run(store, draft)
    await store.responses.remove(run.agent_row, run.id)
    assert not await store.run_texts.add_events(run.agent_row, run.id, 1, b"words", epoch=alice.agent.epoch)
    assert await store.run_texts.load_texts(run.agent_row, run.id, "event") == ()


async def test_events_that_may_quote_what_is_forgotten_are_not_stored(
    store: Store, alice: Speaker, draft: Run
) -> None:
    run = await put_run(store, draft)
    epoch = alice.agent.epoch
    assert await store.run_texts.add_events(run.agent_row, run.id, 1, b"first", epoch=epoch)
    begun = await store.forgetting.begin(run.agent_row, ForgetTarget(message_seqs=[0]))
    await store.forgetting.run(begun)
    assert not await store.run_texts.add_events(run.agent_row, run.id, 2, b"second", epoch=epoch)
    assert await store.run_texts.load_texts(run.agent_row, run.id, "event") == ()
    now = await store.agents.find_by_id(run.agent_row)
    assert now is not None
    assert await store.run_texts.add_events(run.agent_row, run.id, 2, b"second", epoch=now.epoch)


async def test_why_a_run_failed_stays_until_something_is_forgotten(
    store: Store, alice: Speaker, draft: Run, holds: Holds
) -> None:
    run = await put_run(store, draft)
    other = await put_run(store, replace(draft, uid="r2", otid=None))
    await store.runs.end_run(
        run.agent_row, run.id, RunState.FAILED, "error", 8.0, error_message="zqerrorx" + "…" * 5000
    )
    # Who comes second says nothing of it.
    await store.runs.end_run(run.agent_row, run.id, RunState.FAILED, "error", 9.0, error_message="another")
    await store.run_texts.drop_texts(100.0, 10)
    assert await store.run_texts.load_error_messages([run.id, other.id]) == {run.id: "zqerrorx" + "…" * 3992}
    begun = await store.forgetting.begin(run.agent_row, ForgetTarget(message_seqs=[0]))
    await store.forgetting.run(begun)
    assert await store.run_texts.load_error_messages([run.id]) == {}
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    await store.database.sweep(1000)
    assert not holds(b"zqerrorx")
