"""Runs of agents: one for each send to a stored conversation, with its steps and what of it is not an exchange.

    created -> running -> completed | failed | cancelled

States move by compare-and-set: who comes second reads what the first wrote. A step is added with the exchange that it
made, in one transaction; a trigger adds it up in its run, and one with a stop reason ends that.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence

import orjson
from msgspec import Struct
from msgspec.structs import replace

from storage.commands import RecallRow, RunAccept
from storage.database import Connection, Database, Row
from storage.errors import NotFound, RunOver, WriteConflict
from storage.listing import Page, RunEntry, RunFilter, StepEntry
from storage.records import Job, Run, RunState, RunStep, TokenCounts
from storage.sql.epochs import load_epoch
from storage.sql.exchanges import NO_RECALL
from storage.sql.group import Group, as_locking_method, as_method, bulk_writes, reads, writes
from storage.sql.jobs import Jobs, check_attempt, is_attempt
from storage.sql.statements import load, rows_of

SQL = load("agents_api/runs.sql")

# The longest message of an error: some upstreams repeat the whole request in it.
_MAX_MESSAGE_CHARS = 4_000


class RunText(Struct, frozen=True):
    """A part of a run that is not, or not yet, an exchange.

    Its kind is request, call, result, event, callback, words (the message of an error, then its status), listing,
    response or turn.
    """

    # The part's position among the run's parts of its kind.
    seq: int
    data: bytes


async def create_run(connection: Connection, draft: Run, *, replaces: int | None = None) -> Run:
    """Stores a run (its id does not count). Returns it, or the agent's run that has its otid already.

    replaces: a run that has ended, from which this one takes the otid.

    Raises: WriteConflict if its public name is taken.
    """
    if replaces is not None:
        await connection.run(SQL["release_otid"], (replaces, draft.agent))
    values = (
        draft.uid, draft.agent, draft.conversation, draft.parent, draft.depth, draft.batch, int(draft.background),
        draft.state, draft.created, draft.begun, draft.otid,
    )  # fmt: skip
    id = await connection.value(SQL["insert"], values)
    if id is not None:
        return replace(draft, id=int(id))
    existing = await find_otid(connection, draft.agent, draft.otid)
    if existing is None:
        raise WriteConflict(f"there is a run {draft.uid!r} already")
    return existing


async def begin_conversation(connection: Connection, agent: int, key: str, uid: str, at: float) -> int | None:
    """Returns the stored conversation with a key; it begins under the public name `uid` if it is not there.

    None: the name is taken.
    """
    await connection.value(SQL["conversation_begin"], (agent, uid, key, at, at))
    conversation: int | None = await connection.value(SQL["conversation_with"], (agent, key))
    return conversation


async def accept_run(connection: Connection, jobs: Jobs, command: RunAccept) -> Run:
    """Stores a run, its request and its job; call `jobs.wake` when that is committed. Returns it as `create_run`.

    Raises: Stale if the agent is gone.
    """
    draft = command.run
    await connection.lock(draft.agent)
    if not draft.conversation:
        conversation = await begin_conversation(
            connection, draft.agent, command.key, command.uid, draft.created
        )
        assert conversation is not None  # its public name is random
        draft = replace(draft, conversation=conversation)
    run = await create_run(connection, draft, replaces=command.replaces)
    if run.uid == draft.uid:
        await add_text(connection, run.agent, run.id, "request", 0, command.request)
        if command.listing is not None:
            await add_text(connection, run.agent, run.id, "listing", 0, command.listing)
        if command.reads is not None and command.kind:
            await jobs.enqueue_in(connection, command.kind, command.reads, command.kind)
        elif command.kind:
            payload = orjson.dumps({"run": run.id})
            await jobs.enqueue_in(connection, command.kind, run.agent, run.uid, payload)
    return run


async def get_run(connection: Connection, agent: int, run: int) -> Run | None:
    """Returns a run of an agent by its row; None where it is gone."""
    row = await connection.row(SQL["get"], (run, agent))
    return None if row is None else make_run(row)


async def find_otid(connection: Connection, agent: int, otid: bytes | None) -> Run | None:
    """Returns the run of the send with this digest of its otid; None if there is none."""
    row = await connection.row(SQL["by_otid"], (agent, otid))
    return None if row is None else make_run(row)


async def newest_run(connection: Connection, agent: int, conversation: int) -> Run | None:
    """Returns the newest run of a conversation; None if it has none."""
    row = await connection.row(SQL["newest"], (agent, conversation))
    return None if row is None else make_run(row)


async def newest_waiting_run(connection: Connection, agent: int, conversation: int, maker: int) -> Run | None:
    """Returns the newest run of a conversation that waits for answers to calls; None if it is gone.

    maker: the row of the run that made the calls.
    """
    row = await connection.row(SQL["newest_waiting"], (agent, conversation, maker))
    return None if row is None else make_run(row)


async def begin_run(connection: Connection, agent: int, run: int, at: float) -> Run:
    """Begins a run that was only created. Returns it as it is now: ended, where another writer was faster.

    Raises: NotFound.
    """
    await connection.run(SQL["begin"], (at, run, agent))
    return await require_run(connection, agent, run)


async def note_begun(connection: Connection, agent: int, run: int, begun: float) -> Run:
    """Stores when the first exchange of a run began that was only created. Returns the run. Raises: NotFound."""
    await connection.run(SQL["note_begun"], (begun, run, agent))
    return await require_run(connection, agent, run)


async def end_if_open(
    connection: Connection, agent: int, run: int, state: RunState, stop: str, at: float
) -> bool:
    """Ends a run. Returns False where another writer has ended it, or it is gone."""
    return await connection.run(SQL["end"], (state, stop, at, run, agent)) > 0


async def end_run(
    connection: Connection,
    agent: int,
    run: int,
    state: RunState,
    stop: str,
    at: float,
    error_message: str = "",
    job: Job | None = None,
    *,
    error_status: int = 0,
) -> Run:
    """Ends a run without a step. Returns it as it is now: as a faster writer has ended it.

    error_message, error_status: as for `add_error_message`; the message quotes no content.
    job: the attempt that performs the run; None: any process may end it.

    Raises: NotFound; Stale if another attempt performs the run.
    """
    await check_attempt(connection, job)
    if await end_if_open(connection, agent, run, state, stop, at):
        await add_error_message(connection, agent, run, error_message, error_status)
    return await require_run(connection, agent, run)


async def cancel_waiting_run(connection: Connection, agent: int, run: int, at: float) -> Run:
    """Cancels a run that ended with calls that wait for answers. Returns it as it is now. Raises: NotFound."""
    await connection.run(SQL["cancel_waiting"], (at, run, agent))
    return await require_run(connection, agent, run)


async def add_step(connection: Connection, step: RunStep, recall: RecallRow | None = None) -> None:
    """Adds a step, counts it in its run, and ends the run where the step has a stop reason.

    recall: is written with it.
    """
    values = (
        step.exchange, step.agent, step.run, step.number, step.begun, step.ended, *step.counts, step.stop, step.error,
        orjson.dumps(step.waiting) if step.waiting else None, *(recall or NO_RECALL),
    )  # fmt: skip
    await connection.run(SQL["step_insert"], values)


async def load_waiting_step(connection: Connection, agent: int, conversation: int) -> RunStep | None:
    """Returns the last step of a stored conversation if its calls wait for an answer; None if none waits."""
    row = await connection.row(SQL["waiting"], (conversation, agent))
    return None if row is None else _step(row)


async def add_text(
    connection: Connection, agent: int, run: int, kind: str, seq: int, data: bytes, job: Job | None = None
) -> bool:
    """Adds a part of a run that is not an exchange. Returns False if it is there already, or its run is gone.

    job: the attempt that adds it. False, too, if another one performs the run.
    """
    if job is not None and not await is_attempt(connection, job):
        return False
    return await connection.row(SQL["text_insert"], (agent, run, seq, kind, data)) is not None


async def add_attempt_text(
    connection: Connection, agent: int, run: int, kind: str, seq: int, data: bytes, job: Job
) -> bool:
    """Adds a part of a run for an attempt, as `add_text`. False, too, if the run has ended, as by a cancellation."""
    now = await get_run(connection, agent, run)
    return (
        now is not None and not now.is_over and await add_text(connection, agent, run, kind, seq, data, job)
    )


async def add_events(
    connection: Connection,
    agent: int,
    run: int,
    kind: str,
    seq: int,
    data: bytes,
    epoch: int,
    job: Job | None = None,
) -> bool:
    """Adds events of a run. Returns False, and adds none, if the memory's epoch has risen or the attempt was replaced.

    epoch: that the memory had when the events were made. They may quote what was forgotten since.
    job: the attempt that makes them. The events of another one, which performs the run now, would come between them.
    """
    if await load_epoch(connection, agent) != epoch:
        return False
    return await add_text(connection, agent, run, kind, seq, data, job)


async def add_error_message(
    connection: Connection, agent: int, run: int, error_message: str, error_status: int = 0
) -> None:
    """Adds the message of the error that ended a run; "" adds nothing.

    error_status: the HTTP status of that error; 0: it has none.
    """
    if error_message:
        message = error_message[:_MAX_MESSAGE_CHARS].encode("utf-8", "replace")
        await add_text(connection, agent, run, "words", 0, message)
        if error_status:
            await add_text(connection, agent, run, "words", 1, b"%d" % error_status)


async def load_texts(
    connection: Connection, agent: int, run: int, kind: str, *, after: int = -1, limit: int = 1000
) -> tuple[RunText, ...]:
    """Returns a page of the parts of a kind, in order."""
    return tuple(
        RunText(*row) for row in await connection.rows(SQL["texts"], (agent, run, kind, after, limit))
    )


async def replace_text(
    connection: Connection, agent: int, run: int, kind: str, seq: int, data: bytes
) -> None:
    """Gives a part another content: a request with its messages in exchanges retains its options.

    Its old content must have no words of a person, unless it is longer than the new one: else it is not overwritten.
    """
    await connection.run(SQL["text_replace"], (agent, run, kind, seq, data))


async def erase_texts(connection: Connection, agent: int, after: int, limit: int) -> int | None:
    """Erases a page of what an agent's runs hold besides their exchanges. Returns where to go on; None if that was all.

    Of a run under way stay what was asked for and that a call was made, so that it is not made twice.
    """
    rows = await connection.rows(SQL["texts_of"], (agent, after, limit))
    for id, is_call in rows:
        if is_call:
            await connection.run(SQL["call_empty"], (id, agent, b"{}"))
        else:
            await connection.run(SQL["text_erase"], (id, agent))
    return rows[-1][0] if len(rows) == limit else None


async def load_last_step(connection: Connection, agent: int, run: int) -> RunStep | None:
    """Returns the newest step of a run."""
    row = await connection.row(SQL["last_step"], (run, agent))
    return None if row is None else _step(row)


class Runs(Group):
    """Runs, for those who have no transaction of their own. A project is that of the agent."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs

    async def accept(self, command: RunAccept) -> Run:
        """Accepts a run that goes on without its client. Raises: as `accept_run`, and Unavailable."""
        return await self._jobs.enqueuing(lambda connection: accept_run(connection, self._jobs, command))

    @writes
    async def create(self, connection: Connection, draft: Run, *, replaces: int | None = None) -> Run:
        """Stores a run before its first step. Returns it as `create_run`.

        Raises: WriteConflict as `create_run` does; RunOver if another run has taken its send; NotFound if its agent is
            gone.
        """
        await connection.lock(draft.agent)
        if await load_epoch(connection, draft.agent) is None:
            raise NotFound("there is no such agent")
        run = await create_run(connection, draft, replaces=replaces)
        if run.uid != draft.uid:
            raise RunOver("another run has taken the send")
        return run

    begin = writes(as_locking_method(begin_run))
    load = reads(as_method(get_run))
    last_step = reads(as_method(load_last_step))
    note_begun = writes(as_locking_method(note_begun))
    end = writes(as_locking_method(end_run))
    cancel_waiting = writes(as_locking_method(cancel_waiting_run))
    newest = reads(as_method(newest_run))
    newest_waiting = reads(as_method(newest_waiting_run))
    by_otid = reads(as_method(find_otid))
    find_waiting_step = reads(as_method(load_waiting_step))
    texts = reads(as_method(load_texts))
    add_text = writes(as_locking_method(add_text))
    add_attempt_text = writes(as_locking_method(add_attempt_text))
    log = bulk_writes(as_locking_method(add_events))

    @reads
    async def open_background(
        self, connection: Connection, *, after: int = 0, limit: int = 1000
    ) -> builtins.list[tuple[RunEntry, bool]]:
        """Returns a page of the runs that go on without their client, oldest first, and whether each has a job."""
        rows = await connection.rows(SQL["open_background"], (after, limit))
        return [(_run_entry(row[:-1]), bool(row[-1])) for row in rows]

    @reads
    async def list_accepted(
        self, connection: Connection, agent: int, conversation: str
    ) -> builtins.list[Run]:
        """Returns the runs of a conversation that jobs perform, oldest first. conversation: its key or uid."""
        return [make_run(row) for row in await connection.rows(SQL["accepted"], (agent, conversation))]

    @bulk_writes
    async def drop_texts(self, connection: Connection, before: float, limit: int) -> int:
        """Empties what runs hold that ended before that, but calls and results that may still be asked for.

        Returns how many runs it were.
        """
        rows = await connection.rows(SQL["texts_left"], (before, limit))
        for agent in sorted({agent for _, agent in rows}):
            await connection.lock(agent)
        for run, agent in rows:
            await connection.run(SQL["texts_drop"], (agent, run))
        return len(rows)

    @reads
    async def texts_since(self, connection: Connection) -> float | None:
        """Returns when the first of the runs ended that hold texts; None if none does."""
        found: float | None = await connection.value(SQL["texts_left_next"])
        return found

    @reads
    async def get(self, connection: Connection, project: str | None, uid: str) -> RunEntry:
        """Returns the run with this public name, of a project or (None) of any. Raises: NotFound."""
        row = await connection.row(SQL["find"], (uid, project))
        if row is None:
            raise NotFound(f"there is no run {uid!r}")
        return _run_entry(row)

    @reads
    async def list(
        self, connection: Connection, project: str, where: RunFilter, page: Page
    ) -> list[RunEntry]:
        """Returns a page of a project's runs. The cursors of the page are ids of runs."""
        low, high = page.bounds
        background = None if where.background is None else int(where.background)
        values = (
            project,
            low,
            high,
            list(where.states),
            where.conversation,
            background,
            where.stop,
            page.limit,
        )
        statement, of = ("of_project", ()) if where.agent is None else ("of_agent", (where.agent,))
        rows = await connection.rows(SQL[f"{statement}_{page.direction}"], (*values, *of))
        return [_run_entry(row) for row in rows]

    @reads
    async def steps(self, connection: Connection, run: Run) -> builtins.list[StepEntry]:
        """Returns all steps of a run, in order."""
        return [_step_entry(row) for row in await connection.rows(SQL["steps"], (run.id, run.agent))]

    @reads
    async def step(self, connection: Connection, project: str, agent_uid: str, seq: int) -> StepEntry:
        """Returns the step with the exchange of this number. Raises: NotFound, also for one of another project."""
        row = await connection.row(SQL["step_find"], (project, agent_uid, seq))
        if row is None:
            raise NotFound(f"there is no step {seq} of agent {agent_uid!r}")
        return _step_entry(row)

    @reads
    async def list_steps(
        self,
        connection: Connection,
        project: str,
        page: Page,
        *,
        agent: int | None = None,
        feedback: str | None = None,
    ) -> builtins.list[StepEntry]:
        """Returns a page of a project's steps, or of one agent's. The cursors of the page are ids of exchanges."""
        values = (project, *page.bounds, feedback, page.limit)
        statement, of = ("steps_of_project", ()) if agent is None else ("steps_of_agent", (agent,))
        rows = await connection.rows(SQL[f"{statement}_{page.direction}"], (*values, *of))
        return [_step_entry(row) for row in rows]

    @reads
    async def error_messages(self, connection: Connection, runs: Sequence[int]) -> dict[int, str]:
        """Returns the messages of the errors that ended runs, by run."""
        return {run: data.decode() for run, data in await rows_of(connection, SQL["error_messages"], runs)}

    @reads
    async def last_exchange(self, connection: Connection, run: Run) -> int | None:
        """Returns the exchange in which the results of a run's last calls may lie, which no reply follows."""
        id: int | None = await connection.value(SQL["next_unanswered"], (run.id, run.agent))
        return id

    @reads
    async def first_exchange(self, connection: Connection, run: Run) -> int | None:
        """Returns the exchange with which a run began."""
        id: int | None = await connection.value(SQL["first_exchange"], (run.id, run.agent))
        return id

    @reads
    async def last(self, connection: Connection, agents: Sequence[int]) -> dict[int, Run]:
        """Returns the newest run of each of these agents."""
        rows = await rows_of(connection, SQL["last"], agents)
        return {run.agent: run for run in map(make_run, rows)}

    @reads
    async def waiting_of(self, connection: Connection, agents: Sequence[int], key: str) -> dict[int, RunStep]:
        """Returns, by agent, the last step of its conversation with this key, where its calls wait for an answer."""
        rows = await rows_of(connection, SQL["waiting_of"], agents, key)
        return {step.agent: step for step in map(_step, rows)}

    @writes
    async def judge(self, connection: Connection, step: RunStep, feedback: str | None) -> None:
        """Stores a step's rating."""
        await connection.lock(step.agent)
        await connection.run(SQL["feedback"], (feedback, step.exchange, step.agent))

    @reads
    async def live(self, connection: Connection) -> builtins.list[RunEntry]:
        """Returns the runs that clients wait for, or waited for when their process ended."""
        return [_run_entry(row) for row in await connection.rows(SQL["live"])]


async def require_run(connection: Connection, agent: int, run: int) -> Run:
    """Returns a run of an agent by its row. Raises: NotFound."""
    present = await get_run(connection, agent, run)
    if present is None:
        raise NotFound(f"there is no run {run}")
    return present


def make_run(row: Row) -> Run:
    """Makes the record of a row of `{run}`."""
    (
        id, uid, agent, conversation, state, created, parent, depth, batch, background, stop, steps,
        prompt, completion, cached, written, reasoning, begun, ended, otid,
    ) = row  # fmt: skip
    counts = TokenCounts(prompt, completion, cached, written, reasoning)
    return Run(
        id, uid, agent, conversation, RunState(state), created, parent, depth, batch, bool(background), stop, steps,
        counts, begun, ended, otid,
    )  # fmt: skip


def _run_entry(row: Row) -> RunEntry:
    return RunEntry(make_run(row[:-3]), *row[-3:])


def _step(row: Row) -> RunStep:
    exchange, agent, run, number, begun, ended, *counts, stop, feedback, error, waiting = row
    return RunStep(
        exchange, agent, run, number, begun, ended, TokenCounts(*counts), stop, feedback, error,
        orjson.loads(waiting) if waiting else {},
    )  # fmt: skip


def _step_entry(row: Row) -> StepEntry:
    return StepEntry(_step(row[:-4]), *row[-4:])
