"""Two stores over one database, as two gateways have them: every race between them, and how each notifies the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from storage.database import KEYS, LOCKS, POLL_S, WORK, Connection
from storage.digests import digest_secret
from storage.errors import StaleWrite, StoreUnavailable, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.job_records import NO_AGENT, JobState
from storage.records import Agent, Block, Scope
from storage.run_commands import ResponseEnd
from storage.run_records import Run, RunState
from storage.sql.agents import pause_agent
from storage.sql.blocks import write_block
from storage.sql.key_uses import RECORDED_S
from storage.sql.keys import SQL as KEY_SQL
from storage.sql.passages import insert_passage
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.patience import PATIENCE_S, comes
from tests.postgres import empty_database
from tests.stored import ALICE, HUMAN, PATIENT, Speaker, open_store, rows

KINDS = ("learn", "compact")
LEASE_S = 60.0


@pytest.fixture
def url(postgres: str) -> str:
    return empty_database(postgres).url


@pytest.fixture
async def stores(url: str) -> AsyncIterator[tuple[Store, Store]]:
    one, other = await open_store(url), await open_store(url)
    yield one, other
    for store in (one, other):
        await store.close()


async def make(store: Store, scope: Scope = ALICE, blocks: tuple[Block, ...] = (HUMAN,)) -> Agent:
    return await store.agents.find_or_create(scope, blocks, (), 1.0)


async def listening(*stores: Store) -> None:
    """Has stores listen, and waits until they hear."""
    for store in stores:
        heard: list[str | None] = []
        store.database.add_listener("hello", heard.append)
        store.database.start()
        await comes(lambda heard=heard: bool(heard))  # type: ignore[misc]


async def waits_for_a_lock(store: Store) -> None:
    """Waits until a transaction waits for another one."""
    async with asyncio.timeout(PATIENCE_S):
        while not await rows(store, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            await rows(store, "SELECT pg_sleep(0.01)")


# --- agents and turns -------------------------------------------------------------------------------------------------


async def test_first_contact_at_two_gateways_is_one_agent(stores: tuple[Store, Store]) -> None:
    agents = await asyncio.gather(*(make(store) for store in stores for _ in range(5)))
    assert len({(agent.id, agent.uid, agent.secret) for agent in agents}) == 1
    for store in stores:
        assert [block.label for block in await store.blocks.load(agents[0].id)] == ["human"]


async def test_a_memory_that_was_forgotten_and_stays_paused_is_found_paused_elsewhere(
    stores: tuple[Store, Store],
) -> None:
    """Also before its gateway is notified, while its cache has the forgotten agent."""
    one, other = stores
    forgotten = await make(other)
    await one.forgetting.pause(forgotten.id, 5.0)
    whole = ForgetTarget(is_all=True)
    await one.forgetting.finish(await one.forgetting.begin(forgotten.id, whole, keeps_pause=True))
    current = await other.agents.find_current(ALICE)
    assert current is not None
    assert (current.uid != forgotten.uid, current.paused_at) == (True, 5.0)


async def test_two_turns_on_one_conversation_are_both_stored(stores: tuple[Store, Store]) -> None:
    """Whoever commits second finds the revision moved, and resolves on what is there then."""
    await make(stores[0])
    speakers = [Speaker(store) for store in stores]
    for chat in map(str, range(5)):
        messages = [user(f"hello {chat}"), assistant("hi")]
        await speakers[0].say(messages[:1], messages[1], chat)
        turns = [await each.begin([*messages, user("a question")], chat) for each in speakers]
        assert [turn.is_plain for turn in turns] == [True, True]
        ended = await asyncio.gather(
            *(
                each.end(turn, [assistant(f"answer {n}")])
                for n, (each, turn) in enumerate(zip(speakers, turns, strict=True))
            )
        )
        assert sorted(each.is_plain for each in ended) == [False, True]
        assert len({each.exchange_row for each in ended}) == 2
    kept = await speakers[0].rows()
    assert len(kept) == 15
    assert_numbered(kept)


async def test_an_agents_numbers_have_no_gap_whoever_takes_them(stores: tuple[Store, Store]) -> None:
    await make(stores[0])

    async def talk(store: Store, name: str) -> None:
        speaker, said = Speaker(store), []
        for n in range(6):
            said += [user(f"{name} says {n}")]
            reply = assistant(f"to {name} {n}")
            await speaker.say(said, reply, name)
            said += [reply]

    await asyncio.gather(*(talk(store, f"chat {n} {i}") for i, store in enumerate(stores) for n in range(3)))
    kept = await Speaker(stores[0]).rows()
    assert len(kept) == 36
    assert_numbered(kept)


def assert_numbered(kept: list[Any]) -> None:
    """Ids are in the order of numbers, and no number is taken twice or left out."""
    ends = 1
    for e in kept:
        assert e.seq == ends
        ends += len(e.inputs) + 1


async def test_a_turn_that_was_under_way_does_not_bring_back_what_another_gateway_forgot(
    stores: tuple[Store, Store],
) -> None:
    one, other = stores
    agent = await make(one)
    speaker = Speaker(one)
    messages = [user("my secret is 4711"), assistant("I see")]
    await speaker.say(messages[:1], messages[1], "chat")
    turn = await speaker.begin([*messages, user("what was it?")], "chat")
    id = await other.forgetting.begin(agent.id, ForgetTarget(is_all=True))
    with pytest.raises(StaleWrite):
        await speaker.end(turn, [assistant("4711")])
    assert await other.forgetting.run(id)
    assert await rows(one, "SELECT 1 FROM exchanges") == []
    # The agent is cached here still, and the snapshot says that it is gone.
    assert await one.agents.find(ALICE) is not None
    assert await one.turns.find_snapshot(agent, "chat", None) is None


async def test_two_processes_may_carry_out_the_same_forgetting(stores: tuple[Store, Store]) -> None:
    one, other = stores
    agent = await make(one)
    speaker, said = Speaker(one), []
    for n in range(40):
        said += [user(f"message {n}")]
        reply = assistant(f"reply {n}")
        await speaker.say(said, reply, "chat")
        said += [reply]
    id = await one.forgetting.begin(agent.id, ForgetTarget(is_all=True))
    assert await one.forgetting.list_unfinished() == await other.forgetting.list_unfinished() == [id]
    assert await asyncio.gather(one.forgetting.run(id), other.forgetting.run(id)) == [True, True]
    for table in ("exchanges", "conversations", "agents", "forgetting"):
        assert await rows(other, f"SELECT 1 FROM {table}") == []


async def test_blocks_that_two_write_at_once_keep_both_edits(stores: tuple[Store, Store]) -> None:
    agent = await make(stores[0])
    edits = [(n, store) for n, store in enumerate(stores * 5)]

    async def edit(n: int, store: Store) -> None:
        """A conversation whose edit is confirmed by what follows."""
        speaker = Speaker(store)
        messages = [user(f"note {n}")]
        turn = await speaker.begin(messages, f"chat {n}")
        reply = assistant("done")
        await speaker.end(turn, [reply], inserted_texts=[f"fact {n}"])
        await speaker.say([*messages, reply, user("thanks")], assistant("welcome"), f"chat {n}")

    await asyncio.gather(*(edit(n, store) for n, store in edits))
    (block,) = await stores[0].blocks.load(agent.id)
    assert sorted(block.value.split("\n")) == sorted(f"fact {n}" for n, _ in edits)


async def test_edits_of_two_people_to_a_block_that_a_profile_shares_are_both_stored(
    stores: tuple[Store, Store],
) -> None:
    """Each locks its own memory, so the block's row is what they wait for."""
    people = [Scope("default", "default", f"user:{n}") for n in range(6)]
    for scope in people:
        await stores[0].agents.find_or_create(scope, (), (HUMAN,), 1.0)

    async def edit(store: Store, scope: Scope) -> None:
        speaker, asked, reply = Speaker(store, scope), [user("note it")], assistant("done")
        turn = await speaker.begin(asked, "chat")
        await speaker.end(turn, [reply], inserted_texts=[f"fact of {scope.subject}"])
        await speaker.say([*asked, reply, user("thanks")], assistant("welcome"), "chat")

    await asyncio.gather(*(edit(stores[n % 2], scope) for n, scope in enumerate(people)))
    agent = await make(stores[0], people[0], ())
    (block,) = await stores[0].blocks.load(agent.id)
    assert sorted(block.value.split("\n")) == sorted(f"fact of {scope.subject}" for scope in people)


async def test_a_profiles_shared_block_is_made_once(stores: tuple[Store, Store]) -> None:
    shared = replace(HUMAN, label="house")
    people = [Scope("default", "default", f"user:{n}") for n in range(8)]
    await asyncio.gather(
        *(
            stores[n % 2].agents.find_or_create(scope, (HUMAN,), (shared,), 1.0)
            for n, scope in enumerate(people)
        )
    )
    assert await rows(stores[0], "SELECT label FROM blocks WHERE agent IS NULL") == [("house",)]


async def test_a_block_that_is_being_written_is_rebuilt_without_what_is_forgotten(
    stores: tuple[Store, Store],
) -> None:
    """A block that a profile shares, with a fact of one user; another one's turn writes to it."""
    one, other = stores
    agent = await one.agents.find_or_create(ALICE, (), (HUMAN,), 1.0)
    speaker, asked, reply = Speaker(one), [user("note it")], assistant("done")
    await speaker.end(await speaker.begin(asked, "chat"), [reply], inserted_texts=["Alice likes tea."])
    await speaker.say([*asked, reply, user("thanks")], assistant("welcome"), "chat")
    (block,) = await one.blocks.load(agent.id)
    written, end = asyncio.Event(), asyncio.Event()

    async def turn(connection: Connection) -> None:
        value = f"{block.value}\nThe house is red."
        await write_block(connection, block.id, block.version, value, at=2.0, origin="tool:1")
        written.set()
        await end.wait()

    writing = other.database.write(turn)
    await written.wait()
    forgetting = asyncio.create_task(one.forgetting.forget(agent.id, ForgetTarget(is_all=True)))
    await waits_for_a_lock(other)
    end.set()
    await writing
    await forgetting
    (after,) = await rows(one, "SELECT value FROM block_history h JOIN blocks b ON b.current = h.id")
    assert "tea" not in after[0]


async def test_a_forgetting_locks_the_blocks_of_a_profile_in_the_order_of_turns(
    stores: tuple[Store, Store],
) -> None:
    """Else each waits for a block that the other one holds."""
    one, other = stores
    agent = await one.agents.find_or_create(ALICE, (), (HUMAN, replace(HUMAN, label="house")), 1.0)
    await Speaker(one).say([user("hello")], assistant("hi"), "chat")
    first, last = await one.blocks.load(agent.id)
    # PostgreSQL reads a row that was changed after the others.
    await one.database.write(
        lambda connection: write_block(connection, first.id, first.version, "red", at=2.0, origin="tool:1")
    )
    locked, end = asyncio.Event(), asyncio.Event()

    async def turn(connection: Connection) -> None:
        await connection.fetch_rows("SELECT id FROM blocks WHERE id = $1 FOR NO KEY UPDATE", (first.id,))
        locked.set()
        await end.wait()
        await connection.fetch_rows(
            "SELECT id FROM blocks WHERE id = $1 FOR NO KEY UPDATE NOWAIT", (last.id,)
        )

    locking = other.database.write(turn)
    await locked.wait()
    forgetting = asyncio.create_task(one.forgetting.forget(agent.id, ForgetTarget(is_all=True)))
    await waits_for_a_lock(other)
    end.set()
    await locking
    await forgetting


async def test_an_import_takes_no_memory_away_from_a_turn_that_begins_it(stores: tuple[Store, Store]) -> None:
    """The memory is empty until the turn of another gateway is committed."""
    one, other = stores
    agent = await make(one)
    imported = await one.import_writer.begin(one.agents.make_draft(ALICE))
    written, end = asyncio.Event(), asyncio.Event()

    async def turn(connection: Connection) -> None:
        await connection.lock(agent.id)
        await insert_passage(connection, agent.id, "I like tea.", at=1.0)
        written.set()
        await end.wait()

    writing = other.database.write(turn)
    await written.wait()
    finishing = asyncio.create_task(one.import_writer.finish(imported, 1))
    await waits_for_a_lock(other)
    end.set()
    await writing
    with pytest.raises(WriteConflict, match="has a memory here already"):
        await finishing
    assert await one.passages.count(agent.id) == 1


async def test_an_import_that_dies_leaves_no_memory_that_it_has_replaced(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = stores
    agent = await make(one)
    imported = await one.import_writer.begin(one.agents.make_draft(ALICE))

    async def dies(_: int) -> bool:
        raise StoreUnavailable("the process was killed")

    with monkeypatch.context() as patch:
        patch.setattr(one.forgetting, "run", dies)
        with pytest.raises(StoreUnavailable):
            await one.import_writer.finish(imported, 1)
    assert await one.agents.find_by_id(agent.id) is None
    assert [await one.forgetting.run(id) for id in await one.forgetting.list_unfinished()] == [True]


async def test_an_import_takes_over_a_pause_that_it_waits_for(stores: tuple[Store, Store]) -> None:
    one, other = stores
    agent = await make(one)
    imported = await one.import_writer.begin(one.agents.make_draft(ALICE))
    written, end = asyncio.Event(), asyncio.Event()

    async def pause(connection: Connection) -> None:
        await connection.lock(agent.id)
        await pause_agent(connection, agent.id, 5.0)
        written.set()
        await end.wait()

    pausing = other.database.write(pause)
    await written.wait()
    finishing = asyncio.create_task(one.import_writer.finish(imported, 1))
    await waits_for_a_lock(other)
    end.set()
    await pausing
    await finishing
    found = await one.agents.find_by_id(imported.id)
    assert found is not None
    assert (found.scope, found.paused_at) == (ALICE, 5.0)


async def test_gateways_that_start_side_by_side_install_one_key(stores: tuple[Store, Store]) -> None:
    one, other = stores
    written, end = asyncio.Event(), asyncio.Event()
    plain = "mg-" + "0123456789abcdef" * 2
    values = ("default", "given", digest_secret(plain), plain[:7], 1.0, *[None] * 5)

    async def install(connection: Connection) -> None:
        await connection.fetch_rows(KEY_SQL["key_insert"], values)
        written.set()
        await end.wait()

    writing = other.database.write(install)
    await written.wait()
    installing = asyncio.create_task(one.keys.install(plain, "given"))
    await waits_for_a_lock(other)
    end.set()
    await writing
    assert await installing
    assert [(key.name, key.revoked) for key in await one.keys.list()] == [("given", None)]
    assert await one.keys.find(plain)


# --- jobs -------------------------------------------------------------------------------------------------------------


async def test_each_job_is_done_once_and_never_two_of_a_lane(stores: tuple[Store, Store]) -> None:
    agents = [await make(stores[0], Scope("default", "default", f"user:{n}")) for n in range(4)]
    for n in range(60):
        await stores[n % 2].jobs.enqueue("learn", agents[n % 4].id, f"key {n}")
    done: Counter[str] = Counter()
    running: set[int] = set()

    async def work(store: Store) -> None:
        while await store.jobs.count_by_state() != dict.fromkeys(JobState, 0):
            job = await store.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
            if job is None:
                await asyncio.sleep(0.01)
                continue
            assert job.agent_row not in running
            running.add(job.agent_row)
            await asyncio.sleep(0)
            done[job.key] += 1
            running.discard(job.agent_row)
            await store.jobs.finish(job)

    await asyncio.gather(*(work(store) for store in stores for _ in range(3)))
    assert done == Counter({f"key {n}": 1 for n in range(60)})


async def test_jobs_of_a_key_that_two_enqueue_at_once_are_one(stores: tuple[Store, Store]) -> None:
    agent = await make(stores[0])
    for _ in range(10):
        ids = await asyncio.gather(*(store.jobs.enqueue("learn", agent.id, "k") for store in stores * 3))
        assert len(set(ids)) == 1


async def test_a_claim_of_another_process_delays_no_other_kind_of_job(stores: tuple[Store, Store]) -> None:
    one, other = stores
    for kind in KINDS:
        await one.jobs.enqueue(kind, 0, "k")
    claiming, end = asyncio.Event(), asyncio.Event()

    async def claim(connection: Connection) -> None:
        await connection.run("SELECT 1 FROM jobs WHERE kind = 'learn' FOR UPDATE")
        claiming.set()
        await end.wait()

    transaction = one.database.write(claim)
    await claiming.wait()
    claimed = [await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3) for _ in range(2)]
    assert [job and job.kind for job in claimed] == ["compact", None]
    end.set()
    await transaction


async def test_a_dead_letter_is_tried_again_while_a_turn_asks_for_a_job_of_its_lane(
    stores: tuple[Store, Store],
) -> None:
    one, other = stores
    agent = await make(one)
    dead = await one.jobs.enqueue("learn", agent.id, "old")
    job = await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert job is not None
    await one.jobs.fail(job, "no", None)
    asked, end = asyncio.Event(), asyncio.Event()

    async def turn(connection: Connection) -> None:
        await one.jobs.enqueue_in(connection, "learn", agent.id, "new")
        asked.set()
        await end.wait()

    writing = one.database.write(turn)
    await asked.wait()
    retrying = asyncio.create_task(other.jobs.retry(dead))
    await waits_for_a_lock(other)
    end.set()
    await writing
    await retrying
    claimed = [await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3) for _ in range(2)]
    assert [job and job.key for job in claimed] == ["new", None]


async def test_a_job_is_taken_over_when_its_lease_has_run_out(stores: tuple[Store, Store]) -> None:
    """By the database's clock: nobody asks the machines what time it is."""
    one, other = stores
    agent = await make(one)
    await one.jobs.enqueue("learn", agent.id, "k")
    job = await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert job is not None
    await one.jobs.journal(job, "ask", b"answer")
    assert await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3) is None
    left = await other.jobs.leases.find_due_in(KINDS)
    assert left is not None
    assert 0 < left <= LEASE_S
    later = "UPDATE jobs SET held_until = held_until - 50"
    await rows(one, later)
    assert await one.jobs.leases.renew(job, LEASE_S)
    await rows(one, later)
    assert await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3) is None
    await rows(one, later)
    again = await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert again is not None
    assert (again.id, again.attempt) == (job.id, 2)
    assert await other.jobs.find_step(again, "ask") == b"answer"
    assert not await one.jobs.leases.renew(job, LEASE_S)
    assert not await one.jobs.leases.is_held(job)
    with pytest.raises(StaleWrite):
        await one.jobs.finish(job)
    await other.jobs.finish(again)


async def test_right_after_an_outage_nothing_is_taken_over(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could renew a lease in it. What was let go of is free all the same."""
    one, other = stores
    monkeypatch.setattr(other.database, "_limits", replace(PATIENT, settle_s=3600.0))
    for key in ("lost", "released"):
        await one.jobs.enqueue("learn", NO_AGENT, key)
    jobs = {
        job.key: job for _ in "ab" if (job := await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3))
    }
    assert await one.conversation_locks.acquire("a", LEASE_S)
    for table in ("jobs", "conversation_locks"):
        await rows(one, f"UPDATE {table} SET held_until = held_until - 1000")
    assert await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=1) is None
    one.jobs.leases.release_later(jobs["released"])
    assert await one.jobs.leases.claim(["none"], lease_s=LEASE_S, tries=3) is None  # which writes the release
    again = await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert again is not None
    assert again.key == "released"
    assert not await other.conversation_locks.acquire("a", LEASE_S)
    assert await other.conversation_locks.load_held(["a", "b"]) == {"a"}
    assert await one.conversation_locks.renew(["a"], LEASE_S) == {"a"}
    assert await one.jobs.leases.renew(jobs["lost"], LEASE_S)


async def test_an_attempt_that_lost_its_job_writes_nothing_of_its_response(
    stores: tuple[Store, Store],
) -> None:
    one, other = stores
    agent = await make(one)
    draft = Run(0, "r", agent.id, 0, RunState.CREATED, 1.0, background=True)
    run, _ = await one.responses.accept(draft, agent.scope.project, "response", "k", b"{}", b"shown")
    lost = await one.jobs.leases.claim(["response"], lease_s=LEASE_S, tries=3)
    await rows(one, "UPDATE jobs SET held_until = held_until - 1000")
    job = await other.jobs.leases.claim(["response"], lease_s=LEASE_S, tries=3)
    end = ResponseEnd(RunState.FAILED, 2.0, b"failed", None, b"", 0, agent.epoch)
    for late in (
        one.responses.replace_shown(agent.id, run.id, b"late", lost),
        one.responses.drop_events(agent.id, run.id, lost),
        one.responses.note_turn(agent.id, run.id, b"late", lost),
        one.responses.finish(run, end, lost),
        one.runs.end_run(agent.id, run.id, RunState.FAILED, "error", 2.0, job=lost),
    ):
        with pytest.raises(StaleWrite):
            await late
    for attempt in (lost, job):
        stored = await one.run_texts.add_events(agent.id, run.id, 1, b"words", epoch=agent.epoch, job=attempt)
        assert stored == (attempt is job)
        noted = await one.responses.add_text(agent.id, run.id, "call", 1, b"{}", job=attempt)
        assert noted == (attempt is job)
    assert await other.responses.note_turn(agent.id, run.id, b"turn", job)
    assert (await other.responses.finish(run, end, job)).state is RunState.FAILED
    # A call is made only once it is noted: none is after the end, which may be a cancellation by another process.
    assert not await other.responses.add_text(agent.id, run.id, "call", 2, b"{}", job=job)
    assert await other.responses.load_turns(agent.id, run.id) == [b"turn"]


async def test_a_job_that_is_let_go_of_is_taken_over_at_once(stores: tuple[Store, Store]) -> None:
    one, other = stores
    await one.jobs.enqueue("learn", 0, "k")
    job = await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert job is not None
    one.jobs.leases.release_later(job)
    assert await one.jobs.leases.find_due_in(KINDS) == 0.0
    again = await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert again is not None
    assert (await other.jobs.release(again)) == "retrying"
    assert await other.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3) is not None


async def test_a_memory_that_another_process_has_forgotten_gets_no_work(stores: tuple[Store, Store]) -> None:
    one, other = stores
    agent = await make(one)
    for key in ("running", "waiting"):
        await one.jobs.enqueue("learn", agent.id, key)
    job = await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3)
    assert job is not None
    id = await other.forgetting.begin(agent.id, ForgetTarget(is_all=True))
    with pytest.raises(StaleWrite):
        await one.jobs.commit(job, lambda connection: connection.run("SELECT 1"))
    assert await other.forgetting.run(id)
    assert await one.jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=3) is None
    assert await one.jobs.list_newest() == ()


# --- how each notifies the other --------------------------------------------------------------------------------------


async def test_work_is_notified_and_polled_for_without_a_notification(stores: tuple[Store, Store]) -> None:
    one, other = stores
    woken: list[str] = []
    other.jobs.add_listener(lambda: woken.append("all"))
    other.jobs.add_listener(lambda: woken.append("runs"), ("run",))
    await one.jobs.enqueue("learn", 0, "k")
    assert await other.jobs.leases.find_due_in(KINDS) == 0.0, "it hears nothing yet"
    assert not woken
    await listening(other)
    woken.clear()
    await one.jobs.enqueue("learn", 0, "j")
    await comes(lambda: bool(woken))
    assert "runs" not in woken, "what begins elsewhere is no run"
    waits = await other.jobs.leases.find_due_in(("nothing of that kind",))
    assert waits == 60.0, "the queue is looked at anew all the same"


async def test_a_key_that_is_revoked_elsewhere_opens_nothing_here(stores: tuple[Store, Store]) -> None:
    one, other = stores
    key, plain = await one.keys.create("default", "k")
    await listening(other)
    assert await other.keys.find(plain) == key
    await one.keys.revoke("k")
    told: list[str | None] = []
    other.database.add_listener(KEYS, told.append)
    await comes(lambda: bool(told))
    assert await other.keys.find(plain) is None


async def test_a_notification_before_a_close_is_delivered(stores: tuple[Store, Store], url: str) -> None:
    """So does the command line."""
    heard: list[str | None] = []
    stores[0].database.add_listener(KEYS, heard.append)
    await listening(stores[0])
    for n in range(5):
        heard.clear()
        brief = await open_store(url)
        await brief.keys.create("default", f"k{n}")
        await asyncio.sleep(0)  # the telling begins
        await brief.close()
        await comes(lambda: bool(heard))


async def test_no_notification_decides_who_may_ask(stores: tuple[Store, Store]) -> None:
    """Neither of them hears anything here."""
    one, other = stores
    tick = 0.0
    other.keys._tick = lambda: tick
    assert not await other.keys.has_any()
    key, plain = await one.keys.create("default", "k")
    assert not await other.keys.has_any(), "believed for a while"
    tick += POLL_S
    assert await other.keys.has_any(), "the door is closed"
    assert await other.keys.find(plain) == key
    await one.keys.revoke("k")
    assert await other.keys.find(plain) == key, "believed for a while"
    tick += POLL_S
    assert await other.keys.find(plain) is None


async def test_a_known_caller_stays_known_while_the_database_is_down(stores: tuple[Store, Store]) -> None:
    one, other = stores
    tick = 0.0
    other.keys._tick = lambda: tick
    key, plain = await one.keys.create("default", "k")
    assert await other.keys.find(plain) == key
    await other.close()
    tick += 100 * POLL_S
    assert await other.keys.find(plain) == key


async def test_a_line_is_heard_of_when_it_is_given_back(stores: tuple[Store, Store]) -> None:
    one, other = stores
    freed: list[str | None] = []
    other.conversation_locks.add_release_listener(freed.append)
    await listening(other)
    assert await one.conversation_locks.acquire("a", 15.0)
    assert not await other.conversation_locks.acquire("a", 15.0)
    left = await other.conversation_locks.request_handover("a")
    assert left is not None
    assert 14 < left <= 15
    await one.conversation_locks.release("a", 15.0)
    await comes(lambda: "a" in freed)
    assert not await one.conversation_locks.acquire("a", 15.0)
    assert await other.conversation_locks.acquire("a", 15.0)


async def test_a_notification_does_not_wait_for_other_writes(stores: tuple[Store, Store]) -> None:
    """Else a conversation waits for its lock as long as another memory's import writes."""
    one, other = stores
    heard: list[str | None] = []
    other.database.add_listener(LOCKS, heard.append)
    await listening(other)
    assert await one.conversation_locks.acquire("a", 15.0)
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        held.set()
        await go_on.wait()

    writing = one.database.bulk_write(hold)
    await held.wait()
    await one.conversation_locks.release("a", 15.0)
    await comes(lambda: "a" in heard)
    go_on.set()
    await writing


async def test_a_process_does_not_hear_itself(stores: tuple[Store, Store]) -> None:
    one, other = stores
    heard: dict[Store, list[str | None]] = {store: [] for store in stores}
    for store in stores:
        store.database.add_listener(KEYS, heard[store].append)
        store.database.add_listener(WORK, lambda _: None)
    await listening(*stores)
    for each in heard.values():
        each.clear()
    one.database.notify(KEYS, "word")
    await comes(lambda: heard[other] == ["word"])
    assert heard[one] == []


async def test_the_use_of_a_key_is_recorded_once_for_all_gateways(url: str) -> None:
    clock = [1000.0]
    stores = [await open_store(url, now=lambda: clock[0]) for _ in range(3)]
    _, plain = await stores[0].keys.create("shop", "laptop")
    for at, recorded in ((2000.0, 2000.0), (2500.0, 2000.0), (2000.0 + RECORDED_S, 2000.0 + RECORDED_S)):
        for number, store in enumerate(stores):
            clock[0] = at + number
            assert await store.keys.find(plain)
            assert await store.drain(PATIENCE_S)
        assert [(await store.keys.list())[0].used for store in stores] == [recorded] * 3
    for store in stores:
        await store.close()
