"""Durable jobs: serial groups, leases, fences, journals, and what is left of them when something goes wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from storage.database import Connection, Operation
from storage.errors import NotFound, StaleWrite, WriteConflict
from storage.job_records import Job, JobState
from storage.records import Agent, Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.job_rows import forget_jobs
from storage.sql.jobs import Jobs
from storage.sql.passages import insert_passage
from storage.sql.statements import make_statement
from storage.sql.store import Store
from tests.storage.conftest import Holds, OpenStore
from tests.stored import rows

KINDS = ("learn", "compact")
LEASE_S = 60.0
TRIES = 3


class Clock:
    """The wall's time, which may jump, and one that never does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tick = 50.0

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.tick += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(open_store: OpenStore, clock: Clock) -> Store:
    return await open_at(open_store, clock)


async def open_at(open_store: OpenStore, clock: Clock) -> Store:
    return await open_store(now=lambda: clock.now, tick=lambda: clock.tick)


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return store.jobs


async def make_agent(store: Store, user: str = "alice") -> Agent:
    draft = store.agents.get_draft(Scope("default", "default", f"user:{user}"))
    return await store.database.write(lambda connection: find_or_create_agent(connection, draft))


async def claim(jobs: Jobs, *kinds: str) -> Job | None:
    return await jobs.leases.claim(kinds or KINDS, lease_s=LEASE_S, tries=TRIES)


async def take(jobs: Jobs, *kinds: str) -> Job:
    job = await claim(jobs, *kinds)
    assert job is not None
    return job


def remember(agent: Agent, text: str) -> Operation[Any]:
    return lambda connection: insert_passage(connection, agent.id, text, at=1.0)


async def texts(store: Store, agent: Agent) -> list[str]:
    return [passage.text for passage in await store.passages.list_texts(agent.id)]


def raise_epoch(agent: Agent) -> Operation[Any]:
    statement = make_statement("raise", "UPDATE agents SET epoch = epoch + 1 WHERE id = ?")
    return lambda c: c.run(statement, (agent.id,))


# Processes that share a database have its clock, and leases that outlive them.
one_process = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


# --- from enqueueing to the end ---------------------------------------------------------------------------------------


@one_process
async def test_a_job_is_claimed_once_and_gone_when_it_ends(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    id = await jobs.enqueue("learn", agent.id, "k", b'{"from":7}')
    job = await take(jobs)
    assert (job.id, job.kind, job.agent_row, job.payload) == (id, "learn", agent.id, b'{"from":7}')
    assert (job.state, job.attempt, job.tries) == (JobState.RUNNING, 1, 1)
    assert await claim(jobs) is None
    await jobs.journal(job, "ask", b"answer")
    await jobs.finish(job, remember(agent, "done"))
    assert await jobs.list_newest() == ()
    assert await jobs.list_steps(id) == ()
    assert await texts(store, agent) == ["done"]
    assert await jobs.leases.find_due_in(KINDS) is None


async def test_a_failure_in_the_last_effect_leaves_the_job_as_it_was(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "k")
    job = await take(jobs)

    async def half(connection: Connection) -> None:
        await remember(agent, "half")(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await jobs.finish(job, half)
    assert await texts(store, agent) == []
    assert [each.state for each in await jobs.list_newest()] == [JobState.RUNNING]
    await jobs.finish(job)


async def test_a_job_enqueued_in_a_transaction_that_fails_is_not_there(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)

    async def turn(connection: Connection) -> None:
        await jobs.enqueue_in(connection, "learn", agent.id, "k", due=0.0, epoch=agent.epoch)
        raise ValueError

    with pytest.raises(ValueError):
        await store.database.write(turn)
    assert await jobs.list_newest() == ()


async def test_only_what_is_due_and_has_a_handler_is_claimed(store: Store, jobs: Jobs, clock: Clock) -> None:
    await jobs.enqueue("learn", 0, "k", due=clock.now + 10)
    await jobs.enqueue("index", 0, "k")
    assert await claim(jobs) is None
    assert await jobs.leases.find_due_in(KINDS) == 10.0
    assert await jobs.leases.find_due_in(("index",)) == 0.0
    clock.pass_(10)
    assert (await take(jobs)).kind == "learn"


async def test_an_agent_has_one_running_job_of_a_kind(store: Store, jobs: Jobs) -> None:
    a, b = await make_agent(store, "a"), await make_agent(store, "b")
    await jobs.enqueue("learn", a.id, "1")
    await jobs.enqueue("learn", a.id, "2")
    await jobs.enqueue("learn", b.id, "1")
    await jobs.enqueue("compact", a.id, "1")
    claimed = [await take(jobs), await take(jobs), await take(jobs)]
    assert [(job.kind, job.agent_row, job.key) for job in claimed] == [
        ("learn", a.id, "1"),
        ("learn", b.id, "1"),
        ("compact", a.id, "1"),
    ]
    assert await claim(jobs) is None
    await jobs.finish(claimed[0])
    assert (await take(jobs)).key == "2"


async def test_the_schema_itself_forbids_two_in_a_lane(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "1")
    await jobs.enqueue("learn", agent.id, "2")
    await take(jobs)
    with pytest.raises(WriteConflict):
        await rows(store, "UPDATE jobs SET state = 'running'")


async def test_jobs_of_one_key_that_wait_are_one(store: Store, jobs: Jobs, clock: Clock) -> None:
    first = await jobs.enqueue("learn", 0, "k", b"old", due=clock.now + 5)
    assert await jobs.enqueue("learn", 0, "k", b"new", due=clock.now + 50) == first
    (job,) = await jobs.list_newest()
    assert (job.payload, job.due) == (b"new", clock.now + 5)
    await jobs.enqueue("learn", 0, "k", b"er", due=clock.now + 2, merge=lambda a, b: a + b)
    (job,) = await jobs.list_newest()
    assert (job.payload, job.due) == (b"newer", clock.now + 2)


async def test_enqueueing_while_one_runs_leaves_one_waiting(store: Store, jobs: Jobs) -> None:
    await jobs.enqueue("learn", 0, "k", b"1")
    job = await take(jobs)
    for payload in (b"2", b"3"):
        await jobs.enqueue("learn", 0, "k", payload)
    assert [each.state for each in await jobs.list_newest()] == [JobState.PENDING, JobState.RUNNING]
    assert job.payload == b"1"
    await jobs.finish(job)
    assert (await take(jobs)).payload == b"3"


async def test_claims_in_one_batch_share_the_lanes(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    for key in "12345":
        await jobs.enqueue("learn", agent.id, key)
    claimed = await asyncio.gather(*(claim(jobs) for _ in range(5)))
    assert [job.key for job in claimed if job] == ["1"]


async def test_jobs_without_a_memory_have_a_serial_group_for_each_key(store: Store, jobs: Jobs) -> None:
    for key in "123":
        await jobs.enqueue("learn", 0, key)
    first, second = await take(jobs), await take(jobs)
    assert (first.key, second.key) == ("1", "2")
    assert await jobs.fail(first, "waits", 30.0) == "retrying"
    await jobs.enqueue("learn", 0, "1")
    assert (await take(jobs)).key == "3", "the first key's next job waits for it, the others do not"
    assert await claim(jobs) is None


# --- failing ----------------------------------------------------------------------------------------------------------


async def test_a_failing_job_holds_its_lane_until_its_dead_letter(
    store: Store, jobs: Jobs, clock: Clock
) -> None:
    agent = await make_agent(store)
    poison = await jobs.enqueue("learn", agent.id, "poison")
    await jobs.enqueue("learn", agent.id, "next")
    job = await take(jobs)
    assert await jobs.fail(job, "first", 30.0) == "retrying"
    assert await claim(jobs) is None, "the serial_group waits for it"
    assert await jobs.leases.find_due_in(KINDS) == 30.0
    clock.pass_(30)
    job = await take(jobs)
    assert (job.id, job.attempt, job.tries, job.error) == (poison, 2, 2, "first")
    assert await jobs.fail(job, "second", None) == "dead"
    assert (await take(jobs)).key == "next"
    (dead,) = await jobs.list_newest(JobState.DEAD)
    assert (dead.id, dead.error) == (poison, "second")


async def test_a_dead_letter_is_tried_again_from_where_it_was(store: Store, jobs: Jobs) -> None:
    id = await jobs.enqueue("learn", 0, "k")
    job = await take(jobs)
    await jobs.journal(job, "ask", b"answer")
    await jobs.fail(job, "no", None)
    assert (await jobs.count_by_state())[JobState.DEAD] == 1
    assert (await jobs.retry(id)).state is JobState.PENDING
    job = await take(jobs)
    assert (job.id, job.tries, job.attempt, job.error) == (id, 1, 2, None)
    assert await jobs.find_step(job, "ask") == b"answer"


async def test_a_newer_job_of_the_key_takes_the_dead_ones_place(
    store: Store, jobs: Jobs, clock: Clock
) -> None:
    id = await jobs.enqueue("learn", 0, "k", b"old")
    await jobs.fail(await take(jobs), "no", None)
    newer = await jobs.enqueue("learn", 0, "k", b"new", due=clock.now + 99)
    job = await jobs.retry(id)
    assert (job.id, job.payload, job.due) == (newer, b"new", clock.now)
    assert [each.id for each in await jobs.list_newest()] == [newer]


async def test_a_key_has_one_dead_letter(store: Store, jobs: Jobs) -> None:
    for error in ("1", "2"):
        await jobs.enqueue("learn", 0, "k")
        await jobs.fail(await take(jobs), error, None)
    assert [job.error for job in await jobs.list_newest()] == ["2"]


async def test_a_job_that_is_given_back_counts_no_attempt(store: Store, jobs: Jobs, clock: Clock) -> None:
    await jobs.enqueue("learn", 0, "k")
    await jobs.release(await take(jobs), 0.4)
    assert await claim(jobs) is None
    clock.pass_(0.4)
    job = await take(jobs)
    assert (job.tries, job.attempt) == (1, 2)


async def test_a_running_job_that_is_hastened_is_due_when_it_is_given_back(store: Store, jobs: Jobs) -> None:
    id = await jobs.enqueue("learn", 0, "k")
    job = await take(jobs)
    assert (await jobs.retry(id)).state is JobState.RUNNING
    assert await claim(jobs) is None
    await jobs.release(job, 60.0)
    await jobs.release(await take(jobs), 60.0)
    assert await claim(jobs) is None


async def test_an_attempt_whose_end_could_not_be_written_does_not_count(store: Store, jobs: Jobs) -> None:
    await jobs.enqueue("learn", 0, "k")
    for _ in range(TRIES + 1):
        job = await take(jobs)
        assert job.tries == 1
        jobs.leases.release_later(job)


async def test_a_cancelled_job_is_gone_and_commits_nothing(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    id = await jobs.enqueue("learn", agent.id, "k")
    job = await take(jobs)
    await jobs.cancel(id)
    assert not await jobs.leases.renew(job, LEASE_S)
    with pytest.raises(StaleWrite):
        await jobs.finish(job, remember(agent, "late"))
    assert await jobs.fail(job, "late", 1.0) == "lost"
    assert await texts(store, agent) == []
    for missing in (jobs.cancel, jobs.retry):
        with pytest.raises(NotFound):
            await missing(id)


# --- serial groups
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["finish", "cancel", "bury", "expire", "forget", "take back"])
async def test_when_the_first_of_a_lane_has_gone_the_next_one_follows(
    store: Store, jobs: Jobs, clock: Clock, end: str
) -> None:
    agent = await make_agent(store)
    for key in "123":
        await jobs.enqueue("learn", agent.id, key)
        clock.pass_(1)
    if end == "take back":
        await jobs.cancel((await jobs.list_newest())[-1].id)
    elif end == "forget":
        # Those that were made before are dropped when they are claimed.
        await store.database.write(raise_epoch(agent))
        await jobs.enqueue("learn", agent.id, "2")
    else:
        job = await take(jobs)
        if end == "finish":
            await jobs.finish(job)
        elif end == "cancel":
            await jobs.cancel(job.id)
        elif end == "bury":
            await jobs.fail(job, "no", None)
        else:
            clock.pass_(LEASE_S)
            assert await jobs.leases.claim(KINDS, lease_s=LEASE_S, tries=1) is not None
    assert await jobs.leases.find_due_in(KINDS) == (LEASE_S if end == "expire" else 0.0)
    left = [job.key for job in await jobs.list_newest(JobState.RUNNING)]
    while job := await claim(jobs):
        left.append(job.key)
        await jobs.finish(job)
    assert left == (["2"] if end in ("forget", "expire") else ["2", "3"])


async def test_later_jobs_keep_their_order_while_the_first_is_tried_again(
    store: Store, jobs: Jobs, clock: Clock
) -> None:
    agent = await make_agent(store)
    for key in "12":
        await jobs.enqueue("learn", agent.id, key)
    await jobs.fail(await take(jobs), "no", 30.0)
    await jobs.enqueue("learn", agent.id, "3", due=clock.now - 5)
    assert await jobs.leases.find_due_in(KINDS) == 30.0
    clock.pass_(30)
    ran = []
    while job := await claim(jobs):
        ran.append(job.key)
        await jobs.finish(job)
    assert ran == ["1", "3", "2"], "of those behind it the one that was due first"


async def test_a_dead_letter_that_is_tried_again_comes_after_the_first_of_its_serial_group(
    store: Store, jobs: Jobs
) -> None:
    agent = await make_agent(store)
    dead = await jobs.enqueue("learn", agent.id, "dead")
    await jobs.fail(await take(jobs), "no", None)
    await jobs.enqueue("learn", agent.id, "next")
    running = await take(jobs)
    assert (await jobs.retry(dead)).state is JobState.PENDING
    assert await claim(jobs) is None
    await jobs.finish(running)
    assert (await take(jobs)).id == dead


async def test_a_dead_letter_that_outlives_a_forgetting_blocks_no_other_job(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "dead")
    await jobs.fail(await take(jobs), "no", None)
    await store.database.write(lambda c: forget_jobs(c, agent.id, lambda job: job.payload))
    await jobs.enqueue("learn", agent.id, "next")
    assert (await take(jobs)).key == "next"


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_lease_that_ran_out_is_taken_over_and_its_worker_commits_nothing(
    store: Store, jobs: Jobs, clock: Clock
) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "k")
    old = await take(jobs)
    clock.pass_(LEASE_S - 1)
    assert await claim(jobs) is None
    assert await jobs.leases.find_due_in(KINDS) == 1.0
    clock.pass_(1)
    new = await take(jobs)
    assert (new.id, new.attempt) == (old.id, old.attempt + 1)
    assert not await jobs.leases.renew(old, LEASE_S)
    for late in (
        jobs.journal(old, "ask", b"late", remember(agent, "late")),
        jobs.commit(old, remember(agent, "late")),
        jobs.finish(old, remember(agent, "late")),
    ):
        with pytest.raises(StaleWrite):
            await late
    assert await jobs.fail(old, "late", None) == "lost"
    await jobs.finish(new, remember(agent, "good"))
    assert await texts(store, agent) == ["good"]


async def test_a_heartbeat_keeps_the_lease(store: Store, jobs: Jobs, clock: Clock) -> None:
    await jobs.enqueue("learn", 0, "k")
    job = await take(jobs)
    for _ in range(5):
        clock.pass_(LEASE_S - 1)
        assert await jobs.leases.renew(job, LEASE_S)
        assert await claim(jobs) is None
    await jobs.finish(job)


@one_process
async def test_running_jobs_of_an_ended_process_are_taken_over_at_once(
    open_store: OpenStore, clock: Clock
) -> None:
    """Its steps are there: none is performed again."""
    first = await open_at(open_store, clock)
    await first.jobs.enqueue("learn", 0, "k")
    job = await take(first.jobs)
    await first.jobs.journal(job, "ask", b"answer")
    await first.close()  # without an end of the job, as after a kill
    clock.now -= 10_000
    second = await open_at(open_store, clock)
    assert await second.jobs.leases.find_due_in(KINDS) == 0.0
    again = await take(second.jobs)
    assert (again.id, again.attempt, again.tries) == (job.id, 2, 2)
    assert await second.jobs.find_step(again, "ask") == b"answer"
    await second.close()


@one_process
async def test_a_job_that_kills_every_process_ends_in_the_dead_letter(
    open_store: OpenStore, clock: Clock
) -> None:
    for attempt in range(TRIES):
        store = await open_at(open_store, clock)
        if attempt == 0:
            await store.jobs.enqueue("learn", 0, "k")
        assert (await take(store.jobs)).tries == attempt + 1
        await store.close()
    store = await open_at(open_store, clock)
    assert await claim(store.jobs) is None
    (dead,) = await store.jobs.list_newest()
    assert dead.state is JobState.DEAD
    assert "3 attempts" in str(dead.error)
    await store.close()


@one_process
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_jumping_clock_neither_ends_a_lease_nor_loses_a_job(
    store: Store, jobs: Jobs, clock: Clock, jump: float
) -> None:
    await jobs.enqueue("learn", 0, "running")
    job = await take(jobs)
    await jobs.enqueue("compact", 0, "waiting", due=clock.now + 60)
    clock.now += jump
    assert await claim(jobs, "learn") is None
    assert await jobs.leases.renew(job, LEASE_S)
    assert (await take(jobs, "compact")).key == "waiting", "due, or a time nobody can tell any more: now"
    await jobs.finish(job)


# --- the journal ------------------------------------------------------------------------------------------------------


async def test_a_step_is_journaled_once_with_its_effect(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "k")
    job = await take(jobs)
    assert await jobs.find_step(job, "ask") is None
    assert await jobs.journal(job, "ask", b"one", remember(agent, "one")) == b"one"
    assert await jobs.journal(job, "ask", b"two", remember(agent, "two")) == b"one"
    assert await jobs.find_step(job, "ask") == b"one"
    assert await texts(store, agent) == ["one"]
    assert [(step.name, step.size) for step in await jobs.list_steps(job.id)] == [("ask", 3)]


# --- forgetting -------------------------------------------------------------------------------------------------------


async def test_nothing_is_enqueued_on_an_epoch_that_has_gone(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await store.database.write(raise_epoch(agent))
    with pytest.raises(StaleWrite):
        await jobs.enqueue("learn", agent.id, "k", epoch=agent.epoch)
    with pytest.raises(StaleWrite):
        await jobs.enqueue("learn", 999, "k")
    assert await jobs.enqueue("learn", agent.id, "k")


async def test_a_running_job_brings_nothing_back(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "k")
    job = await take(jobs)
    await jobs.journal(job, "ask", b"what was said")
    await store.database.write(raise_epoch(agent))
    assert not await jobs.leases.renew(job, LEASE_S)
    for late in (
        jobs.journal(job, "more", b"", remember(agent, "late")),
        jobs.commit(job, remember(agent, "late")),
        jobs.finish(job, remember(agent, "late")),
    ):
        with pytest.raises(StaleWrite):
            await late
    assert await jobs.fail(job, "late", 1.0) == "dropped"
    assert await jobs.list_newest() == ()
    assert await texts(store, agent) == []


async def test_a_waiting_job_of_an_old_epoch_is_dropped_not_run(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "old")
    await store.database.write(raise_epoch(agent))
    await jobs.enqueue("learn", agent.id, "new")
    assert (await take(jobs)).key == "new"
    assert [job.key for job in await jobs.list_newest()] == ["new"]


async def test_a_payload_of_an_old_epoch_is_not_merged_into_a_new_one(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "k", b"forgotten,")
    await store.database.write(raise_epoch(agent))
    await jobs.enqueue("learn", agent.id, "k", b"new", merge=lambda a, b: a + b)
    assert (await take(jobs)).payload == b"new"


async def test_forgetting_drops_jobs_steps_and_words_of_errors(
    store: Store, jobs: Jobs, holds: Holds
) -> None:
    alice, bob = await make_agent(store), await make_agent(store, "bob")
    await jobs.enqueue("learn", alice.id, "k")
    job = await take(jobs)
    await jobs.journal(job, "ask", b"zanzibar")
    await jobs.fail(job, "zanzibar", None)
    await jobs.enqueue("learn", bob.id, "k")
    await store.database.write(lambda c: forget_jobs(c, alice.id))
    assert [job.agent_row for job in await jobs.list_newest()] == [bob.id]
    await store.close()
    assert not holds(b"zanzibar")


async def test_forgetting_can_let_a_job_begin_again(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    await jobs.enqueue("learn", agent.id, "runs", b"1")
    job = await take(jobs)
    await jobs.journal(job, "ask", b"what was said")
    await jobs.enqueue("learn", agent.id, "waits", b"2")

    async def forget(connection: Connection) -> None:
        await raise_epoch(agent)(connection)
        await forget_jobs(connection, agent.id, lambda job: job.payload + b"!")

    await store.database.write(forget)
    with pytest.raises(StaleWrite):
        await jobs.finish(job)
    again = await take(jobs)
    assert (again.id, again.payload, again.attempt > job.attempt) == (job.id, b"1!", True)
    assert await jobs.find_step(again, "ask") is None
    await jobs.finish(again)
    assert (await take(jobs)).payload == b"2!"


async def test_a_dead_letter_of_an_old_epoch_is_not_tried_again(store: Store, jobs: Jobs) -> None:
    agent = await make_agent(store)
    id = await jobs.enqueue("learn", agent.id, "k")
    await jobs.fail(await take(jobs), "no", None)
    await store.database.write(raise_epoch(agent))
    with pytest.raises(StaleWrite, match="forgotten"):
        await jobs.retry(id)


# --- who waits --------------------------------------------------------------------------------------------------------


async def test_watchers_are_notified_of_what_there_may_be_to_do(store: Store, jobs: Jobs) -> None:
    wakes: list[int] = []
    stop = jobs.add_listener(lambda: wakes.append(1))
    await jobs.enqueue("learn", 0, "k")
    assert len(wakes) == 1
    job = await take(jobs)
    assert len(wakes) == 1
    await jobs.finish(job)
    assert len(wakes) == 2
    stop()
    jobs.wake()
    assert len(wakes) == 2


async def test_watchers_of_some_kinds_are_not_woken_for_others(store: Store, jobs: Jobs) -> None:
    wakes: list[str] = []
    jobs.add_listener(lambda: wakes.append("runs"), ("run", "callback"))
    await jobs.enqueue("learn", 0, "k")
    await jobs.finish(await take(jobs))
    assert wakes == []
    jobs.wake("learn", "run")
    jobs.wake()
    assert wakes == ["runs"] * 2
    await jobs.enqueue("learn", 0, "k")

    async def go_on(connection: Connection) -> None:
        await jobs.enqueue_in(connection, "callback", 0, "k")

    await jobs.finish(await take(jobs), go_on, enqueues=("callback",))
    assert wakes == ["runs"] * 3
