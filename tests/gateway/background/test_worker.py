"""The worker: nothing lost, nothing journaled done twice, nobody in the way of the chat, no statement while idle."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.run.background.job_context import Handler, JobContext, JobGivenUp, JobPostponed
from gateway.run.background.worker import WorkerLimits
from storage.database import Connection, Effect
from storage.errors import StaleWrite, StoreFailed, StoreFull
from storage.job_records import Job, JobState
from storage.records import Agent
from storage.sql.job_rows import forget_jobs
from storage.sql.passages import insert_passage
from storage.sqlite.operations import drive
from storage.sqlite.writer import WriterLimits
from tests.doubles.upstream import Gate
from tests.gateway.background.bench import LIMITS, Bench, ManualClock
from tests.patience import comes
from tests.stored import open_store


def remembering(agent: Agent, text: str) -> Effect:
    return lambda connection: insert_passage(connection, agent.id, text, at=0.0)


# --- performing -------------------------------------------------------------------------------------------------------


async def test_an_enqueued_job_is_performed_at_once_and_deleted(bench: Bench) -> None:
    agent = await bench.create_agent()

    async def learn(job: JobContext) -> None:
        await job.finish(remembering(agent, f"from {job.payload.decode()}"))

    bench.start({"learn": learn})
    await bench.wait_until_idle()
    await bench.jobs.enqueue("learn", agent.id, "k", b"7")
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["finished"]
    assert bench.list_texts(agent) == ["from 7"]
    assert await bench.jobs.list_newest() == ()


async def test_a_job_waits_until_it_is_due(bench: Bench) -> None:
    async def learn(job: JobContext) -> None:
        pass

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k", due=bench.time.now + 30)
    await bench.wait_until_idle()
    assert bench.time.sleeps == [30.0]
    assert bench.outcomes == []
    bench.time.move(30)
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["finished"]


async def test_a_kind_that_rests_is_left_alone_and_the_others_are_not(bench: Bench) -> None:
    done: list[str] = []

    def handler(kind: str) -> Handler:
        async def perform(job: JobContext) -> None:
            done.append(kind)

        return perform

    until = {"embed": 30.0}
    handlers = {kind: handler(kind) for kind in ("embed", "learn")}
    bench.start(handlers, pause_s=lambda kind: until.get(kind, 0.0) - bench.time.tick)
    for n in range(10):
        await bench.jobs.enqueue("embed", 0, str(n))
    await bench.wait_until_idle()
    assert bench.time.sleeps == [30.0]
    await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_for_outcomes(1)
    assert done == ["learn"]
    bench.time.move(30)
    await bench.wait_for_outcomes(11)
    assert done == ["learn", *["embed"] * 10]


async def test_no_more_run_at_a_time_than_allowed(bench: Bench) -> None:
    gate, running, most = asyncio.Event(), 0, 0

    async def learn(job: JobContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    agents = [await bench.create_agent(f"u{n}") for n in range(7)]
    for agent in agents:
        await bench.jobs.enqueue("learn", agent.id, "k")
    bench.start({"learn": learn})
    await bench.wait_until(lambda: running == LIMITS.concurrency)
    await bench.wait_until_idle()
    gate.set()
    await bench.wait_for_outcomes(len(agents))
    assert most == LIMITS.concurrency


async def test_two_workers_never_run_one_lane_at_the_same_time(bench: Bench) -> None:
    running: set[tuple[int, str]] = set()
    done: list[tuple[int, str]] = []

    def handler(kind: str) -> Handler:
        async def perform(job: JobContext) -> None:
            serial_group = (job.agent_row, kind)
            assert serial_group not in running
            running.add(serial_group)
            await job.step("a", empty)
            await job.step("b", empty)
            running.remove(serial_group)
            done.append(serial_group)

        return perform

    async def empty() -> bytes:
        await asyncio.sleep(0)
        return b""

    handlers = {"learn": handler("learn"), "compact": handler("compact")}
    for _ in range(2):
        bench.start(handlers)
    agents = [await bench.create_agent("a"), await bench.create_agent("b")]
    for key in range(6):
        for agent in agents:
            for kind in handlers:
                await bench.jobs.enqueue(kind, agent.id, str(key))
    await bench.wait_for_outcomes(24)
    assert set(bench.outcomes) == {"finished"}
    assert sorted(done) == sorted((agent.id, kind) for agent in agents for kind in handlers for _ in range(6))


async def test_a_worker_that_hangs_loses_its_job_to_another_and_changes_nothing(bench: Bench) -> None:
    agent = await bench.create_agent()
    refused = []

    async def hang(job: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await job.finish(remembering(agent, "late"))
            except StaleWrite as error:
                refused.append(error)
            raise

    async def work(job: JobContext) -> None:
        await job.finish(remembering(agent, "good"))

    # Its heartbeat comes too late: a process that was stopped for a while.
    bench.start({"learn": hang}, WorkerLimits(concurrency=1, lease_s=60, heartbeat_s=1e9))
    await bench.jobs.enqueue("learn", agent.id, "k")
    await bench.wait_until(lambda: (drive(bench.jobs.count_by_state()))[JobState.RUNNING] == 1)
    await bench.wait_until_idle()
    bench.start({"learn": work})
    await bench.wait_until_idle()
    assert bench.outcomes == []
    bench.time.move(60)
    await bench.wait_for_outcomes(2)
    assert len(refused) == 1
    assert sorted(bench.outcomes) == ["finished", "lost"]
    assert bench.list_texts(agent) == ["good"]


async def test_heartbeats_keep_a_long_job_and_end_one_that_was_cancelled(bench: Bench) -> None:
    ended: list[str] = []

    async def learn(job: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(job.job.key)

    bench.start({"learn": learn})
    id = await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_until(lambda: (drive(bench.jobs.count_by_state()))[JobState.RUNNING] == 1)
    for _ in range(9):
        await bench.wait_until_idle()
        bench.time.move(20)
    await bench.wait_until_idle()
    (job,) = await bench.jobs.list_newest()
    assert (job.state, job.attempt, ended) == (JobState.RUNNING, 1, [])
    await bench.jobs.cancel(id)
    await bench.wait_for_outcomes(1)
    assert (ended, bench.outcomes) == (["k"], ["lost"])


async def test_a_lease_that_could_not_be_renewed_in_an_outage_is_renewed_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat, failed = bench.jobs.leases.renew, []

    async def fail(job: Job, lease_s: float) -> bool:
        failed.append(job.key)
        raise StoreFailed("the database is away")

    async def learn(job: JobContext) -> None:
        await asyncio.Event().wait()

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_until(lambda: (drive(bench.jobs.count_by_state()))[JobState.RUNNING] == 1)
    await bench.wait_until_idle()
    monkeypatch.setattr(bench.jobs.leases, "renew", fail)
    bench.time.move(20)
    await bench.wait_until(lambda: failed)
    await bench.wait_until_idle()
    monkeypatch.setattr(bench.jobs.leases, "renew", heartbeat)
    bench.time.move(10)
    bench.jobs.wake_here()  # as when it is back
    await bench.wait_until_idle()
    assert await bench.jobs.leases.find_due_in(["learn"]) == 60.0


async def test_a_heartbeat_notices_what_was_forgotten(bench: Bench) -> None:
    agent = await bench.create_agent()

    async def learn(job: JobContext) -> None:
        await asyncio.Event().wait()

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", agent.id, "k")
    await bench.wait_until(lambda: (drive(bench.jobs.count_by_state()))[JobState.RUNNING] == 1)
    await bench.wait_until_idle()
    await bench.store.database.write(
        lambda c: c.run("UPDATE agents SET epoch = epoch + 1 WHERE id = ?", (agent.id,))
    )
    await bench.wait_until_idle()
    assert bench.outcomes == []
    bench.time.move(20)
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["dropped"]


async def test_a_lane_is_free_when_the_one_that_lost_it_has_ended(bench: Bench) -> None:
    """Cancelled or begun again by forgetting: the database says so at once, the handler takes its time."""
    agent = await bench.create_agent()
    running, most, may_end = 0, 0, asyncio.Event()

    async def learn(job: JobContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            if job.job.attempt == 1:
                await asyncio.Event().wait()
        finally:
            await may_end.wait()
            running -= 1

    async def forget(connection: Connection) -> None:
        await connection.run("UPDATE agents SET epoch = epoch + 1 WHERE id = ?", (agent.id,))
        await forget_jobs(connection, agent.id, lambda job: job.payload)

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", agent.id, "k")
    await bench.wait_until(lambda: running == 1)
    await bench.store.database.write(forget)
    bench.jobs.wake()
    await bench.wait_until_idle()
    assert running == 1
    may_end.set()
    await bench.wait_for_outcomes(2)
    assert (most, bench.outcomes) == (1, ["lost", "finished"])


async def test_work_after_the_end_of_a_job_is_not_cancelled(bench: Bench) -> None:
    after: list[str] = []

    async def learn(job: JobContext) -> None:
        await job.finish()
        await bench.jobs.enqueue("learn", 0, "next") if job.job.key == "k" else None
        after.append(job.job.key)

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_for_outcomes(2)
    assert (after, bench.outcomes) == (["k", "next"], ["finished", "finished"])


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
async def test_a_jumping_clock_disturbs_no_request(bench: Bench, jump: float) -> None:
    gate = asyncio.Event()

    async def learn(job: JobContext) -> None:
        await gate.wait()

    async def compact(job: JobContext) -> None:
        pass

    bench.start({"learn": learn, "compact": compact})
    await bench.jobs.enqueue("learn", 0, "runs")
    await bench.jobs.enqueue("compact", 0, "waits", due=bench.time.now + 30)
    await bench.wait_until_idle()
    bench.time.move(30, jump=jump)
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["finished"], "the one that waited, no later than it would have been"
    assert [(job.key, job.attempt) for job in await bench.jobs.list_newest()] == [("runs", 1)]
    gate.set()
    await bench.wait_for_outcomes(2)
    assert bench.outcomes == ["finished", "finished"]


# --- failing ----------------------------------------------------------------------------------------------------------


async def test_a_poisoned_job_ends_in_the_dead_letter_and_can_be_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    async def learn(job: JobContext) -> None:
        if broken and job.job.key == "poison":
            raise ValueError("alice said: my cat is called Miso")

    agent = await bench.create_agent()
    bench.start({"learn": learn})
    poison = await bench.jobs.enqueue("learn", agent.id, "poison")
    await bench.jobs.enqueue("learn", agent.id, "next")
    await bench.wait_for_outcomes(1)
    assert bench.time.sleeps == [10.0], "its serial_group waits"
    bench.time.move(10)
    await bench.wait_for_outcomes(2)
    assert bench.time.sleeps == [20.0], "longer each time"
    bench.time.move(20)
    await bench.wait_for_outcomes(4)
    assert bench.outcomes == ["retrying", "retrying", "dead", "finished"]
    (dead,) = await bench.jobs.list_newest()
    assert (dead.id, dead.state, dead.tries) == (poison, JobState.DEAD, 3)
    assert "ValueError (test_worker.py:" in str(dead.error)
    assert "Miso" not in f"{dead.error} {caplog.text}", "nothing of what was said"
    broken = False
    await bench.jobs.retry(poison)
    await bench.wait_for_outcomes(5)
    assert bench.outcomes[4:] == ["finished"]
    assert await bench.jobs.list_newest() == ()


async def test_a_job_that_has_failed_thousands_of_times_waits_no_longer_than_allowed(bench: Bench) -> None:
    async def broken(job: JobContext) -> None:
        raise RuntimeError

    id = await bench.jobs.enqueue("learn", 0, "k")
    await bench.store.database.write_one("UPDATE jobs SET tries = ? WHERE id = ?", (5_000, id))
    bench.start({"learn": broken}, replace(LIMITS, tries=1_000_000, backoff_max_s=60))
    await bench.wait_for_outcomes(1)
    assert (bench.outcomes, bench.time.sleeps) == (["retrying"], [60.0])


async def test_a_step_is_not_performed_again_after_a_failure(bench: Bench) -> None:
    performed: list[str] = []

    async def ask() -> bytes:
        performed.append("ask")
        return b"answer"

    async def learn(job: JobContext) -> None:
        assert await job.step("ask", ask) == b"answer"
        if job.job.tries == 1:
            raise RuntimeError

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_for_outcomes(1)
    bench.time.move(10)
    await bench.wait_for_outcomes(2)
    assert performed == ["ask"]
    assert bench.outcomes == ["retrying", "finished"]


async def test_giving_up_and_putting_off(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def hopeless(job: JobContext) -> None:
        raise JobGivenUp("this memory has no model")

    async def later(job: JobContext) -> None:
        raise JobPostponed("the budget is used up", 3600.0)

    async def planned(job: JobContext) -> None:
        raise JobPostponed("it is asked again", 60.0, is_planned=True)

    bench.start({"hopeless": hopeless, "later": later, "planned": planned})
    for kind in ("hopeless", "later", "planned"):
        await bench.jobs.enqueue(kind, 0, "k")
    await bench.wait_for_outcomes(3)
    batch, late, dead = await bench.jobs.list_newest()
    assert str(dead.error).startswith("this memory has no model")
    assert (dead.state, dead.tries) == (JobState.DEAD, 1)
    assert (late.state, late.tries, late.due) == (JobState.RETRYING, 0, bench.time.now + 3600)
    assert (late.error, batch.error) == ("the budget is used up", "it is asked again")
    waits = [each.getMessage() for each in caplog.records if "wait" in each.getMessage()]
    assert waits == ["Jobs of the kind 'later' wait: the budget is used up"]


async def test_a_job_that_is_being_claimed_when_the_worker_stops_is_given_back(bench: Bench) -> None:
    disk, performed = Gate(), []

    async def learn(job: JobContext) -> None:
        performed.append(job.job.id)

    await bench.jobs.enqueue("learn", 0, "k")
    bench.store.database.writer.submit(lambda _: disk.wait_sync())
    worker = bench.start({"learn": learn})
    await bench.wait_until(lambda: bench.store.health.waiting == 2)
    worker.cancel()
    await asyncio.sleep(0)
    disk.open()
    await asyncio.wait([worker])
    (job,) = await bench.jobs.list_newest()
    assert (job.state, job.tries, performed) == (JobState.RETRYING, 0, [])


async def test_a_handler_that_cancels_itself_has_failed(bench: Bench) -> None:
    async def learn(job: JobContext) -> None:
        raise asyncio.CancelledError

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["retrying"]


async def test_a_forgetting_ends_the_running_job(bench: Bench) -> None:
    agent = await bench.create_agent()
    gate = asyncio.Event()

    async def learn(job: JobContext) -> None:
        await gate.wait()
        await job.finish(remembering(agent, "what was forgotten"))

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", agent.id, "k")
    await bench.wait_until(lambda: (drive(bench.jobs.count_by_state()))[JobState.RUNNING] == 1)
    await bench.store.database.write(
        lambda c: c.run("UPDATE agents SET epoch = epoch + 1 WHERE id = ?", (agent.id,))
    )
    gate.set()
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["dropped"]
    assert (bench.list_texts(agent), await bench.jobs.list_newest()) == ([], ())


async def test_the_log_names_all_reasons_for_which_a_job_in_flight_may_be_lost(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def learn(job: JobContext) -> None:
        await bench.jobs.cancel(job.job.id)
        await job.finish(None)

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k")
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["lost"]
    assert "cancelled, forgotten or taken over" in caplog.text


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR])
async def test_a_database_that_fails_in_the_middle_costs_an_attempt(bench: Bench, code: int) -> None:
    agent = await bench.create_agent()
    broken = True

    async def effect(connection: Connection) -> None:
        await remembering(agent, "kept")(connection)
        if broken:
            error = sqlite3.OperationalError("no")
            error.sqlite_errorcode = code
            raise error

    async def learn(job: JobContext) -> None:
        await job.finish(effect)

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", agent.id, "k")
    await bench.wait_for_outcomes(1)
    assert bench.outcomes == ["retrying"]
    broken = False
    bench.time.move(10)
    await bench.wait_for_outcomes(2)
    assert bench.outcomes == ["retrying", "finished"]
    assert bench.list_texts(agent) == ["kept"]


async def test_a_queue_that_cannot_be_read_is_said_in_words_of_an_operator(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def due_in(kinds: object) -> float | None:
        raise StoreFailed("db: PostgreSQL closed the connection")

    async def learn(job: JobContext) -> None: ...

    monkeypatch.setattr(bench.jobs.leases, "find_due_in", due_in)
    bench.start({"learn": learn})
    said = ["Jobs could not be read; trying again: db: PostgreSQL closed the connection"]
    await comes(lambda: caplog.messages == said)


async def test_a_job_whose_failure_cannot_be_written_is_taken_over_when_the_database_is_back(
    tmp_path: Path,
) -> None:
    time, down = ManualClock(), False

    def connect(target: Any) -> sqlite3.Connection:
        from storage.sqlite.database import connect_current

        if down:
            raise StoreFailed("no disk")
        return connect_current(target)

    store = await open_store(
        tmp_path / "memory.db",
        now=lambda: time.now,
        tick=lambda: time.tick,
        limits=WriterLimits(retry_first_s=3600, idle_s=3600),
        connect=connect,
    )
    bench = Bench(store, time, [])
    attempts: list[int] = []

    async def learn(job: JobContext) -> None:
        nonlocal down
        attempts.append(job.job.attempt)
        if len(attempts) == 1:
            down = True
            store.database.writer.report_fault(StoreFull("the disk is full"))
            await store.database.writer.recover()
            await job.commit(lambda c: None)

    try:
        bench.start({"learn": learn})
        await bench.jobs.enqueue("learn", 0, "k")
        await bench.wait_for_outcomes(1)
        assert bench.outcomes == ["unwritten"]
        down = False
        assert await store.database.writer.recover()
        await bench.wait_for_outcomes(2)
        assert (attempts, bench.outcomes) == ([1, 2], ["unwritten", "finished"])
    finally:
        await bench.stop()
        await store.close()
