"""The background worker at rest, at its end, killed, and in the gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.metrics import Metrics
from gateway.run.background.job_context import JobContext, JobGivenUp
from gateway.run.background.job_metrics import JobMetrics
from storage.job_records import Job, JobState
from storage.records import Agent, Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.store import Store
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.background import job_process
from tests.gateway.background.bench import Bench
from tests.gateway.background.job_process import STEPS
from tests.gateway.process import make_database_variable, start_process
from tests.patience import PATIENCE_S
from tests.server import RunningGateway, serve, settings_for
from tests.stored import open_store, url_of

# --- quiet and the end ------------------------------------------------------------------------------------------------


async def test_an_idle_worker_says_nothing_to_the_database(bench: Bench) -> None:
    async def learn(job: JobContext) -> None:
        pass

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "now")
    await bench.jobs.enqueue("compact", 0, "nobody performs this")
    await bench.wait_for_outcomes(1)
    bench.statements.clear()
    assert bench.time.sleeps == [], "it waits to be woken"
    for _ in range(100):
        bench.time.move(3600)
        await asyncio.sleep(0)
    await bench.wait_until_idle()
    assert bench.statements == []
    await bench.jobs.enqueue("learn", 0, "again")
    await bench.wait_for_outcomes(2)


async def test_shutdown_leaves_a_job_that_can_go_on(bench: Bench) -> None:
    performed: list[str] = []
    reached = asyncio.Event()

    async def ask() -> bytes:
        performed.append("ask")
        return b"answer"

    async def learn(job: JobContext) -> None:
        await job.step("ask", ask)
        if not reached.is_set():
            reached.set()
            await asyncio.Event().wait()

    bench.start({"learn": learn})
    await bench.jobs.enqueue("learn", 0, "k")
    await reached.wait()
    await bench.stop()
    (job,) = await bench.jobs.list_newest()
    assert (job.state, job.tries, job.due) == (JobState.RETRYING, 0, bench.time.now)
    bench.start({"learn": learn})
    await bench.wait_for_outcomes(1)
    assert (performed, bench.outcomes) == (["ask"], ["finished"])


async def test_attempts_and_states_are_counted(bench: Bench) -> None:
    metrics = Metrics()
    tally = JobMetrics(metrics, bench.jobs.count_by_state)
    await bench.jobs.enqueue("learn", 0, "k")
    tally.count_attempt("learn", "finished")
    tally.count_call("ok", 7)
    await metrics.scrape()
    samples = {(s.name, *s.labels.values()): s.value for family in metrics.collect() for s in family.samples}
    assert samples["mnemogate_job_attempts_total", "learn", "finished"] == 1
    assert samples["mnemogate_jobs", "pending"] == 1
    assert samples["mnemogate_background_tokens_total",] == 7


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before 0", "within 2", "after 2", "within 4", "finished"])
def test_a_kill_loses_no_job_and_repeats_no_journaled_step(tmp_path: Path, where: str) -> None:
    database, marks = tmp_path / "memory.db", tmp_path / "marks"
    marks.touch()

    async def prepare() -> Agent:
        store = await open_store(database)
        draft = store.agents.get_draft(Scope("default", "default", "user:alice"))
        agent = await store.database.write(lambda connection: find_or_create_agent(connection, draft))
        await store.jobs.enqueue("work", agent.id, "k")
        await store.close()
        return agent

    async def look(agent: Agent) -> tuple[tuple[Job, ...], list[str]]:
        store = await open_store(database)
        found = (
            await store.jobs.list_newest(),
            [passage.text for passage in await store.passages.list_texts(agent.id)],
        )
        await store.close()
        return found

    agent = asyncio.run(prepare())
    said = run_until(database, marks, where)
    if where != "finished":
        run_until(database, marks, "")
    jobs, texts = asyncio.run(look(agent))
    assert jobs == ()
    assert texts == [f"passage {n}" for n in range(STEPS)], "each effect once"
    performed = marks.read_text().split()
    for number in range(STEPS):
        was_killed_within = where == f"within {number}"
        assert performed.count(str(number)) == (2 if was_killed_within else 1)
    assert said[-1] == where


def run_until(database: Path, marks: Path, where: str) -> list[str]:
    """The worker's process, killed when it has said that; without it, to its end."""
    said = []
    arguments = [url_of(database) or str(database), str(marks), where]
    with start_process(job_process.__name__, arguments, marks.parent, {}, marks.with_name("log")) as child:
        assert child.stdout is not None
        for line in child.stdout:
            said.append(line.strip())
            if where and said[-1] == where:
                child.kill()
        code = child.wait(PATIENCE_S)
    assert (code != 0) == bool(where)
    return said


# --- in the gateway ---------------------------------------------------------------------------------------------------


def test_the_gateway_performs_jobs_and_its_chat_does_not_notice_their_failing(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    async def open_here() -> Store:
        return await open_store(tmp_path / "memory.db")

    with serve(settings_for(upstream), open_here) as gateway:
        done = wait_for_jobs(gateway)
        assert done == ["good"]
        upstream.queue(say("Hello."))
        reply = gateway.post({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, "Hello.")
        metrics = gateway.ask("GET", "/metrics").body.decode()
        assert 'mnemogate_job_attempts_total{kind="good",outcome="finished"} 1.0' in metrics
        assert 'mnemogate_job_attempts_total{kind="bad",outcome="dead"} 1.0' in metrics
        assert 'mnemogate_jobs{state="dead"} 1.0' in metrics


def wait_for_jobs(gateway: RunningGateway) -> list[str]:
    """One job that ends well, after one that does not."""
    done: list[str] = []
    store = gateway.app.services.store
    assert store is not None

    async def work() -> None:
        moved = asyncio.Event()

        async def bad(job: JobContext) -> None:
            raise JobGivenUp("no")

        async def good(job: JobContext) -> None:
            done.append("good")

        gateway.app.services.background.handlers.update(bad=bad, good=good)
        store.jobs.add_listener(moved.set)
        await store.jobs.enqueue("bad", 0, "k")
        await store.jobs.enqueue("good", 0, "k")
        while not (done and [job.state for job in await store.jobs.list_newest()] == [JobState.DEAD]):
            await moved.wait()
            moved.clear()

    gateway.call(work())
    return done


# --- the command line -------------------------------------------------------------------------------------------------


async def a_dead_letter(database: Path) -> int:
    store = await open_store(database)
    id = await store.jobs.enqueue("learn", 0, "k", b'{"secret":1}')
    job = await store.jobs.leases.claim(("learn",), lease_s=60, tries=3)
    assert job is not None
    await store.jobs.journal(job, "ask", b"secret")
    await store.jobs.fail(job, "JobFailed: no answer", None)
    await store.close()
    return id


def test_jobs_are_shown_retried_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in make_database_variable(tmp_path, []).items():
        monkeypatch.setenv(name, value)
    id = asyncio.run(a_dead_letter(tmp_path / "mnemogate.db"))
    for command in (["jobs"], ["jobs", "list"], ["jobs", "list", "--state", "dead"]):
        assert main(command) == 0
        output = capsys.readouterr().out
        assert f"{id}\tdead\tlearn" in output
        assert "JobFailed: no answer" in output
    assert main(["jobs", "show", str(id)]) == 0
    output = capsys.readouterr().out
    assert json.loads(output)["steps"][0]["name"] == "ask"
    assert "secret" not in output
    assert main(["jobs", "retry", str(id)]) == 0
    assert f"{id}\tpending\tlearn" in capsys.readouterr().out
    assert main(["jobs", "cancel", "--yes", str(id)]) == 0
    capsys.readouterr()
    assert main(["jobs"]) == 0
    assert "no jobs to show" in capsys.readouterr().err
    assert main(["jobs", "retry", str(id)]) == 1
    assert f"there is no job {id}" in capsys.readouterr().err
