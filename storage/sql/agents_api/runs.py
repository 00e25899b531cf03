"""Runs of agents: one run for each send to a stored conversation, with its steps. `run_texts.py` has its texts.

    created -> running -> completed | failed | cancelled

States move by compare-and-set: the second writer reads the state that the first one wrote. A step is stored in one
transaction with its exchange; a trigger adds its tokens to its run, and ends the run if the step has a stop reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from storage.commands import RecallRow
from storage.database import Connection, Database, Row
from storage.errors import NotFound, RunEnded, WriteConflict
from storage.job_records import Job
from storage.listing import Page, RunEntry, RunFilter, StepEntry
from storage.run_commands import RunAccept
from storage.run_records import Run, RunState, RunStep, RunTextKind, TokenCounts
from storage.sql.agents_api.run_texts import add_error_message, add_text
from storage.sql.epochs import find_epoch, lock_memory
from storage.sql.exchanges import NO_RECALL
from storage.sql.group import StoreGroup, as_locking_method, as_method, reads, writes
from storage.sql.job_rows import check_attempt
from storage.sql.jobs import Jobs
from storage.sql.statements import load, load_rows

SQL = load("agents_api/runs.sql")

# The states of a run that has not ended. There is an index on the runs in these states.
_OPEN_STATES = frozenset((RunState.CREATED, RunState.RUNNING))


async def find_or_create_run(connection: Connection, draft: Run, *, replaces: int | None = None) -> Run:
    """Returns the run of an agent that has a draft's otid, or else stores the draft and returns it.

    draft: the run; its id is ignored.
    replaces: the row of a run that has ended and gives its otid to the draft; None: no run does.

    Raises: WriteConflict if the run's public id is taken.
    """
    if replaces is not None:
        await connection.run(SQL["release_otid"], (replaces, draft.agent_row))
    values = (
        draft.uid, draft.agent_row, draft.conversation_row, draft.parent, draft.depth, draft.batch,
        int(draft.background), draft.state, draft.created, draft.begun, draft.otid,
    )  # fmt: skip
    run_row = await connection.fetch_value(SQL["insert"], values)
    if run_row is not None:
        return replace(draft, id=int(run_row))
    stored_run = await find_run_by_otid(connection, draft.agent_row, draft.otid)
    if stored_run is None:
        raise WriteConflict(f"there is a run {draft.uid!r} already")
    return stored_run


async def begin_conversation(
    connection: Connection, agent_row: int, key: str | None, uid: str, at: float
) -> int | None:
    """Begins a stored conversation. Returns its row; None: another conversation has the key or the public id."""
    return await connection.fetch_value(SQL["conversation_begin"], (agent_row, uid, key, at, at))


async def find_or_create_conversation(
    connection: Connection, agent_row: int, key: str, uid: str, at: float
) -> int | None:
    """Returns the row of the stored conversation with a key, which is created if there is none.

    Returns None if another conversation has the public id.

    uid: the public id of a conversation that is created.
    """
    await begin_conversation(connection, agent_row, key, uid, at)
    return await connection.fetch_value(SQL["conversation_by_key"], (agent_row, key))


async def accept_run(connection: Connection, jobs: Jobs, command: RunAccept) -> Run:
    """Stores a run, its request and its job. Returns the run, as `find_or_create_run` does.

    The caller calls `jobs.wake` after the commit.

    Raises: StaleWrite if the agent is gone.
    """
    draft = command.run
    await lock_memory(connection, draft.agent_row)
    if not draft.conversation_row:
        conversation_row = await find_or_create_conversation(
            connection, draft.agent_row, command.key, command.uid, draft.created
        )
        assert conversation_row is not None  # its public id is random
        draft = replace(draft, conversation_row=conversation_row)
    run = await find_or_create_run(connection, draft, replaces=command.replaces)
    if run.uid == draft.uid:
        await add_text(connection, run.agent_row, run.id, RunTextKind.REQUEST, seq=0, data=command.request)
        if command.listing is not None:
            await add_text(
                connection, run.agent_row, run.id, RunTextKind.LISTING, seq=0, data=command.listing
            )
        if command.kind:
            await _enqueue_job(connection, jobs, command, run)
    return run


async def _enqueue_job(connection: Connection, jobs: Jobs, command: RunAccept, run: Run) -> None:
    """Stores the job that performs a run."""
    if command.read_memory_row is None:
        payload = orjson.dumps({"run": run.id})
        await jobs.enqueue_in(connection, command.kind, run.agent_row, run.uid, payload)
    else:
        # The memory that is read has one such job for all its runs, so the key of the job is its kind.
        await jobs.enqueue_in(connection, command.kind, command.read_memory_row, command.kind)


async def find_run(connection: Connection, agent_row: int, run_row: int) -> Run | None:
    """Returns a run of an agent by its row; None: the run is gone."""
    row = await connection.fetch_row(SQL["get"], (run_row, agent_row))
    return None if row is None else make_run(row)


async def find_run_by_otid(connection: Connection, agent_row: int, otid: bytes | None) -> Run | None:
    """Returns the run of the send with this digest of its otid; None: there is no such run."""
    row = await connection.fetch_row(SQL["by_otid"], (agent_row, otid))
    return None if row is None else make_run(row)


async def find_newest_run(connection: Connection, agent_row: int, conversation_row: int) -> Run | None:
    """Returns the newest run of a conversation; None: it has no run."""
    row = await connection.fetch_row(SQL["newest_of_conversation"], (agent_row, conversation_row))
    return None if row is None else make_run(row)


async def find_newest_waiting_run(
    connection: Connection, agent_row: int, conversation_row: int, maker_row: int
) -> Run | None:
    """Returns the newest run of a conversation that waits for answers to calls; None: the run is gone.

    maker_row: the row of the run that made the calls. This run counts whether or not it waits.
    """
    row = await connection.fetch_row(SQL["newest_waiting"], (agent_row, conversation_row, maker_row))
    return None if row is None else make_run(row)


async def begin_run(connection: Connection, agent_row: int, run_row: int, at: float) -> Run:
    """Begins a run if it was only created. Returns the run as it is now: another writer may have ended it.

    Raises: NotFound.
    """
    await connection.run(SQL["begin"], (at, run_row, agent_row))
    return await get_run(connection, agent_row, run_row)


async def note_first_exchange(connection: Connection, agent_row: int, run_row: int, begun: float) -> Run:
    """Stores when the first exchange of a run began. Changes nothing unless the run is `created`. Raises: NotFound."""
    await connection.run(SQL["note_first_exchange"], (begun, run_row, agent_row))
    return await get_run(connection, agent_row, run_row)


async def end_if_open(
    connection: Connection, agent_row: int, run_row: int, state: RunState, stop: str, at: float
) -> bool:
    """Ends a run. Returns False if another writer has ended the run, or the run is gone."""
    return await connection.run(SQL["end"], (state, stop, at, run_row, agent_row)) > 0


async def end_run(
    connection: Connection,
    agent_row: int,
    run_row: int,
    state: RunState,
    stop: str,
    at: float,
    *,
    error_message: str = "",
    error_status: int = 0,
    job: Job | None = None,
) -> Run:
    """Ends a run without a step. Returns the run as it is now: another writer may have ended it in another way.

    error_message: the message of the error that ended the run, without any content; "": the run has not failed.
    error_status: the HTTP status of that error; 0: the error has none.
    job: the attempt that performs the run; without it, any process may end the run.

    Raises: NotFound; StaleWrite if another attempt performs the run.
    """
    await check_attempt(connection, job)
    if await end_if_open(connection, agent_row, run_row, state=state, stop=stop, at=at):
        await add_error_message(connection, agent_row, run_row, error_message, error_status)
    return await get_run(connection, agent_row, run_row)


async def cancel_waiting_run(connection: Connection, agent_row: int, run_row: int, at: float) -> Run:
    """Cancels a run that ended with calls waiting for answers. Returns the run as it is now. Raises: NotFound."""
    await connection.run(SQL["cancel_waiting"], (at, run_row, agent_row))
    return await get_run(connection, agent_row, run_row)


async def add_step(connection: Connection, step: RunStep, recall: RecallRow | None = None) -> None:
    """Stores a step, adds it to its run, and ends the run if the step has a stop reason.

    recall: the record of the step's recall, stored with the step; None: nothing was recalled.
    """
    values = (
        step.exchange_row, step.agent_row, step.run_row, step.number, step.begun, step.ended, *step.counts, step.stop,
        step.error, orjson.dumps(step.waiting) if step.waiting else None, *(recall or NO_RECALL),
    )  # fmt: skip
    await connection.run(SQL["step_insert"], values)


async def find_waiting_step(connection: Connection, agent_row: int, conversation_row: int) -> RunStep | None:
    """Returns the last step of a stored conversation, if calls of the step wait for answers; None: no call waits."""
    row = await connection.fetch_row(SQL["waiting"], (conversation_row, agent_row))
    return None if row is None else _make_step(row)


async def find_newest_step(connection: Connection, agent_row: int, run_row: int) -> RunStep | None:
    """Returns the newest step of a run; None: the run has no step."""
    row = await connection.fetch_row(SQL["newest_step"], (run_row, agent_row))
    return None if row is None else _make_step(row)


async def rate_step(connection: Connection, step: RunStep, feedback: str | None) -> None:
    """Stores a user's rating of a step; None takes the rating away."""
    await connection.lock(step.agent_row)
    await connection.run(SQL["feedback"], (feedback, step.exchange_row, step.agent_row))


class BackgroundRun(NamedTuple):
    """An open run that no client waits for."""

    # The run.
    entry: RunEntry
    # True if a job performs the run.
    has_job: bool


class Runs(StoreGroup):
    """Reads and writes of runs, each in a transaction of its own. A run belongs to the project of its agent."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs

    async def accept_run(self, command: RunAccept) -> Run:
        """Accepts a run that goes on without its client. Raises: StoreUnavailable; the errors of `accept_run` above."""
        return await self._jobs.write_enqueuing(
            lambda connection: accept_run(connection, self._jobs, command)
        )

    @writes
    async def create(self, connection: Connection, draft: Run, *, replaces: int | None = None) -> Run:
        """Stores a run before its first step. Returns it as `find_or_create_run`.

        Raises: WriteConflict as `find_or_create_run` does; RunEnded if another run has taken its send; NotFound if
            its agent is gone.
        """
        await connection.lock(draft.agent_row)
        if await find_epoch(connection, draft.agent_row) is None:
            raise NotFound("there is no such agent")
        run = await find_or_create_run(connection, draft, replaces=replaces)
        if run.uid != draft.uid:
            raise RunEnded("another run has taken the send")
        return run

    begin_run = writes(as_locking_method(begin_run))
    note_first_exchange = writes(as_locking_method(note_first_exchange))
    end_run = writes(as_locking_method(end_run))
    cancel_waiting_run = writes(as_locking_method(cancel_waiting_run))
    rate_step = writes(as_method(rate_step))
    find_run = reads(as_method(find_run))
    find_run_by_otid = reads(as_method(find_run_by_otid))
    find_newest_run = reads(as_method(find_newest_run))
    find_newest_waiting_run = reads(as_method(find_newest_waiting_run))
    find_newest_step = reads(as_method(find_newest_step))
    find_waiting_step = reads(as_method(find_waiting_step))

    # -- runs

    @reads
    async def get(self, connection: Connection, project: str | None, uid: str) -> RunEntry:
        """Returns the run with this public id. project: its project; None: any project. Raises: NotFound."""
        row = await connection.fetch_row(SQL["find"], (uid, project))
        if row is None:
            raise NotFound(f"there is no run {uid!r}")
        return _make_run_entry(row)

    @reads
    async def find_row_before(self, connection: Connection, row: int, count: int) -> int | None:
        """Returns the lowest row of the `count` newest runs below a row; None: there are not so many."""
        return await connection.fetch_value(SQL["row_before"], (row, count - 1))

    @reads
    async def list_runs(
        self, connection: Connection, project: str | None, run_filter: RunFilter, page: Page[int]
    ) -> list[RunEntry]:
        """Returns a page of runs. The cursors of the page are rows of runs.

        project: the project of the runs; None: any project, which the filter of an agent does not allow.
        """
        background = None if run_filter.background is None else int(run_filter.background)
        values = (
            project, *page.bounds, list(run_filter.states), run_filter.conversation_row, background, run_filter.stop,
            page.limit,
        )  # fmt: skip
        if _OPEN_STATES.issuperset(run_filter.states):
            rows = await connection.fetch_rows(SQL[f"open_{page.direction}"], (*values, run_filter.agent_row))
        elif run_filter.agent_row is None:
            rows = await connection.fetch_rows(SQL[f"of_project_{page.direction}"], values)
        else:
            rows = await connection.fetch_rows(
                SQL[f"of_agent_{page.direction}"], (*values, run_filter.agent_row)
            )
        return [_make_run_entry(row) for row in rows]

    @reads
    async def list_open_foreground(self, connection: Connection) -> list[RunEntry]:
        """Returns the runs that clients wait for, or waited for when their process ended."""
        return [_make_run_entry(row) for row in await connection.fetch_rows(SQL["open_foreground"])]

    @reads
    async def list_open_background(
        self, connection: Connection, *, after: int = 0, limit: int = 1000
    ) -> list[BackgroundRun]:
        """Returns a page of the open runs without a client that waits, oldest first."""
        rows = await connection.fetch_rows(SQL["open_background"], (after, limit))
        return [BackgroundRun(_make_run_entry(entry), bool(has_job)) for *entry, has_job in rows]

    @reads
    async def list_accepted(
        self, connection: Connection, agent_row: int, conversation_name: str
    ) -> list[Run]:
        """Returns the open runs of a conversation that jobs perform, oldest first.

        conversation_name: the key or the uid of the conversation.
        """
        return [
            make_run(row)
            for row in await connection.fetch_rows(SQL["accepted"], (agent_row, conversation_name))
        ]

    @reads
    async def load_newest_runs(self, connection: Connection, agent_rows: Sequence[int]) -> dict[int, Run]:
        """Returns the newest runs of these agents, by agent. Agents without runs are left out."""
        rows = await load_rows(connection, SQL["newest_of_agents"], agent_rows)
        return {run.agent_row: run for run in map(make_run, rows)}

    # -- steps and exchanges of runs

    @reads
    async def get_step(self, connection: Connection, project: str, agent_uid: str, seq: int) -> StepEntry:
        """Returns the step with the exchange of this number. Raises: NotFound, also for a step of another project."""
        row = await connection.fetch_row(SQL["step_find"], (project, agent_uid, seq))
        if row is None:
            raise NotFound(f"there is no step {seq} of agent {agent_uid!r}")
        return _make_step_entry(row)

    @reads
    async def list_steps(
        self,
        connection: Connection,
        project: str,
        page: Page[int],
        *,
        agent_row: int | None = None,
        feedback: str | None = None,
        has_feedback: bool | None = None,
    ) -> list[StepEntry]:
        """Returns a page of a project's steps, or of one agent's. The cursors of the page are rows of exchanges.

        agent_row: the row of the agent; None: the steps of all agents are listed.
        feedback: the rating that all steps have; None: any rating or none.
        has_feedback: True: rated steps; False: the other steps; None: both.
        """
        feedback_flag = None if has_feedback is None else int(has_feedback)
        values = (project, *page.bounds, feedback, feedback_flag, page.limit)
        if agent_row is None:
            rows = await connection.fetch_rows(SQL[f"steps_of_project_{page.direction}"], values)
        else:
            rows = await connection.fetch_rows(SQL[f"steps_of_agent_{page.direction}"], (*values, agent_row))
        return [_make_step_entry(row) for row in rows]

    @reads
    async def load_steps(self, connection: Connection, run: Run) -> list[StepEntry]:
        """Returns all steps of a run, in order."""
        return [
            _make_step_entry(row)
            for row in await connection.fetch_rows(SQL["steps"], (run.id, run.agent_row))
        ]

    @reads
    async def load_waiting_steps(
        self, connection: Connection, agent_rows: Sequence[int], key: str
    ) -> dict[int, RunStep]:
        """Returns `find_waiting_step` of these agents' conversations with a key, by agent."""
        rows = await load_rows(connection, SQL["waiting_of"], agent_rows, key)
        return {step.agent_row: step for step in map(_make_step, rows)}

    @reads
    async def find_first_exchange(self, connection: Connection, run: Run) -> int | None:
        """Returns the row of the exchange with which a run began; None: the run has no exchange."""
        return await connection.fetch_value(SQL["first_exchange"], (run.id, run.agent_row))

    @reads
    async def find_unanswered_exchange(self, connection: Connection, run: Run) -> int | None:
        """Returns the row of the exchange without a reply after a run's last step, which may hold results of its calls.

        If the run has no step, it is the exchange with which the run began. Returns None if no exchange follows, or if
        the step's calls wait for answers.
        """
        return await connection.fetch_value(SQL["next_unanswered"], (run.id, run.agent_row))

    @reads
    async def has_answered(self, connection: Connection, run: Run) -> bool:
        """Returns whether the model that a run has asked has ever answered its agent."""
        return bool(await connection.fetch_value(SQL["has_answered"], (run.agent_row, run.conversation_row)))

    @reads
    async def count_failed_before(self, connection: Connection, run: Run, limit: int) -> int:
        """Counts the runs of an agent that have failed in a row before a run, up to `limit`."""
        rows = await connection.fetch_rows(SQL["states_before"], (run.agent_row, run.id, limit))
        return next((count for count, (state,) in enumerate(rows) if state != RunState.FAILED), len(rows))


async def get_run(connection: Connection, agent_row: int, run_row: int) -> Run:
    """Returns a run of an agent by its row. Raises: NotFound."""
    run = await find_run(connection, agent_row, run_row)
    if run is None:
        raise NotFound(f"there is no run {run_row}")
    return run


def make_run(row: Row) -> Run:
    """Returns the record of a row of `{run}`."""
    (
        run_row, uid, agent_row, conversation_row, state, created, parent, depth, batch, background, stop, steps,
        prompt, completion, cached, written, reasoning, begun, ended, otid,
    ) = row  # fmt: skip
    counts = TokenCounts(prompt, completion, cached, written, reasoning)
    return Run(
        id=run_row,
        uid=uid,
        agent_row=agent_row,
        conversation_row=conversation_row,
        state=RunState(state),
        created=created,
        parent=parent,
        depth=depth,
        batch=batch,
        background=bool(background),
        stop=stop,
        steps=steps,
        counts=counts,
        begun=begun,
        ended=ended,
        otid=otid,
    )


def _make_run_entry(row: Row) -> RunEntry:
    *run, agent_uid, conversation_uid, key = row
    return RunEntry(make_run(run), agent_uid, conversation_uid, key)


def _make_step(row: Row) -> RunStep:
    exchange_row, agent_row, run_row, number, begun, ended, *counts, stop, feedback, error, waiting = row
    return RunStep(
        exchange_row=exchange_row,
        agent_row=agent_row,
        run_row=run_row,
        number=number,
        begun=begun,
        ended=ended,
        counts=TokenCounts(*counts),
        stop=stop,
        feedback=feedback,
        error=error,
        waiting=orjson.loads(waiting) if waiting else {},
    )


def _make_step_entry(row: Row) -> StepEntry:
    *step, seq, model, run_uid, agent_uid = row
    return StepEntry(_make_step(step), seq, model, run_uid, agent_uid)
