"""Stored conversations. Each is one path, which sends continue at its head.

A send reads the end of the path with two statements, whatever the size of the memory, and writes step by step: the
user's message before the model is asked, each reply before its tools run, the results before the model is asked again.
A step is planned on the conversation's rev; if another writer has moved the conversation since, nothing is written.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Mapping
from functools import partial
from typing import NoReturn

import orjson
from msgspec.structs import replace

from storage.commands import BlockMerge, MemoryReader, MemorySnapshot, Rules
from storage.database import Connection, Database, Row
from storage.errors import RunOver, Stale, WriteConflict
from storage.records import (
    DEFAULT_CONVERSATION,
    Agent,
    Conversation,
    EditState,
    Evicted,
    Exchange,
    MarkKind,
    Summary,
    place_exchange,
)
from storage.run_commands import ConversationPath, ReadSpan, RunEnd, StepEnd, StepOpen, StepOpened
from storage.run_records import Run, RunState, RunTextKind
from storage.sql import exchanges
from storage.sql.agents import Agents
from storage.sql.agents_api.run_texts import add_error_message, add_text, replace_text
from storage.sql.agents_api.runs import (
    add_step,
    begin_run,
    end_run,
    find_or_create_run,
    find_run,
)
from storage.sql.agents_api.sleepers import accept_reading, advance_over
from storage.sql.blocks import OwnedBlock
from storage.sql.epochs import lock_epoch
from storage.sql.exchange_rows import make_exchange_with_content, update_values
from storage.sql.group import StoreGroup, as_method, reads
from storage.sql.job_rows import check_attempt
from storage.sql.jobs import Jobs
from storage.sql.readers import TOOL_ATOM
from storage.sql.sections import add_section
from storage.sql.statements import load
from storage.sql.turn_edits import add_edit
from storage.sql.turns import merge_edits, write_merge

SQL = load("stored_paths.sql")
_CANCELLED_STOP = "cancelled"
_TAKEN_OVER = "another process has taken over the conversation of this run"
# What the column `tip` of a conversation has in place of the last exchange of a stored conversation: the client has the
# history, and sends it; or nothing is stored yet.
CLIENT_TIP, EMPTY_TIP = 0, -1
# The most summaries of a path, as in `Summaries.list_of_conversation`.
_MAX_SUMMARIES = 16
# Columns of a row of the statement `head` (what it is, five numbers, three texts, a content, a time), and of `path`
# (what it is, a summary's five values, three contents, the columns of `{skeleton}`).
_NUMBER, _TEXT, _CONTENT, _TIME = 1, 6, 9, 10
_PATH_CONTENT = 6


async def read_path(
    connection: Connection,
    agent: Agent,
    conversation_name: str,
    window_tokens: int | None,
    max_unread_turns: int = 0,
) -> ConversationPath | None:
    """Returns a conversation from where its window begins; None where the agent is not stored any more.

    conversation_name: as `Conversation.name`.
    window_tokens: of the model's window; None: they are unknown, and all of the conversation is read.
    max_unread_turns: up to how many the turns are counted that a sleeptime agent has not read; 0: none are counted.
    """
    scope = agent.scope
    values = (
        agent.id,
        *_split_key_and_uid(conversation_name),
        scope.project,
        scope.profile,
        scope.subject,
        max_unread_turns,
        TOOL_ATOM,
    )
    rows = await connection.rows(SQL["head"], values)
    if not rows or rows[0][0] != "agent":
        return None
    snapshot = MemorySnapshot(*rows[0][1:6])
    last_row: Row | None = None
    blocks: list[OwnedBlock] = []
    for row in rows[1:]:
        match row[0]:
            case "conversation":
                texts = row[_TEXT], row[_TEXT + 1]
                snapshot.conversation = Conversation(row[_NUMBER], *texts, row[_NUMBER + 1], row[_NUMBER + 2])
            case "last":
                last_row = row
            case "reader":
                snapshot.readers.append(MemoryReader(row[_NUMBER], row[_NUMBER + 1], bool(row[_NUMBER + 2])))
            case _:
                exchanges.add_snapshot_row(snapshot, blocks, row, row[_TIME])
    exchanges.complete_snapshot(snapshot, blocks)
    if last_row is None or snapshot.conversation is None:
        return ConversationPath(snapshot)
    evicted = Evicted(*orjson.loads(last_row[_CONTENT])) if last_row[_CONTENT] else None
    first_depth = evicted.depth if evicted is not None and evicted.is_out_of(window_tokens) else 0
    path_rows = await connection.rows(
        SQL["path"], (agent.id, snapshot.conversation.id, last_row[_NUMBER], first_depth, _MAX_SUMMARIES)
    )
    path, summaries = [], []
    for row in path_rows:
        exchange = make_exchange_with_content(row[_PATH_CONTENT:])
        if row[0] == "exchange":
            path.append(exchange)
        else:
            summaries.append(Summary(row[1], exchange, *row[2:_PATH_CONTENT]))
    return ConversationPath(snapshot, tuple(path), tuple(reversed(summaries)))


def _split_key_and_uid(conversation_name: str) -> tuple[str | None, str | None]:
    return (
        (conversation_name, None) if conversation_name == DEFAULT_CONVERSATION else (None, conversation_name)
    )


class StoredPaths(StoreGroup):
    """Reads a stored conversation, and writes the steps of its runs."""

    def __init__(self, database: Database, agents: Agents, rules: Rules, jobs: Jobs) -> None:
        super().__init__(database)
        self._agents = agents
        self._rules = rules
        self._jobs = jobs

    load_path = reads(as_method(read_path))

    @reads
    async def find_conversation(
        self, connection: Connection, agent: Agent, conversation_name: str
    ) -> Conversation | None:
        """Returns a conversation by its name (`Conversation.name`); None: it has not begun, or it is gone."""
        row = await connection.row(
            SQL["conversation_named"], (agent.id, *_split_key_and_uid(conversation_name))
        )
        return None if row is None else Conversation(*row)

    def open(self, write: StepOpen) -> Future[StepOpened]:
        """Begins a step: its exchange with what came in, and with the edits of the step before.

        Raises: WriteConflict when the conversation or a block was changed since it was read; Stale when something was
        forgotten since, or another attempt performs the run; RunOver when there is no run to begin; Unavailable.
        """
        return self._database.write(
            partial(self._open_step, write),
            size_bytes=2 * write.exchange.content_bytes,
        )

    async def _open_step(self, write: StepOpen, connection: Connection) -> StepOpened:
        if not write.agent.is_stored:
            agent = await self._agents.store_draft(
                connection, write.agent, write.defaults, write.shared, write.now
            )
            write = replace(write, agent=agent)
        return await open_step(connection, write, self._rules)

    def finish(self, write: StepEnd) -> Future[list[str]]:
        """Ends a step, and its run where the step has a stop reason.

        Returns the public ids of the runs that the step made due.

        Raises:
            Stale: something was forgotten since the step was opened, or another attempt performs the run.
            RunOver: another process has ended the step or failed the run, because this process had lost its lease.
            Unavailable: the database cannot be written.
        """
        ending = self._database.write(
            lambda connection: end_step(connection, self._jobs, write),
            size_bytes=2 * write.exchange.content_bytes,
        )
        if write.accepts:
            ending.add_done_callback(lambda _: self._jobs.wake())
        return ending

    def end(self, write: RunEnd) -> Future[Run]:
        """Ends a run after a step that is written already. Returns it as it is now.

        Raises: WriteConflict when a block was changed since it was read; Stale when something was forgotten since the
        step was written, or another attempt performs the run; RunOver when another process has failed the run that is
        to wait; Unavailable, NotFound.
        """
        return self._database.write(lambda connection: _end_run(connection, write))


async def open_step(connection: Connection, write: StepOpen, rules: Rules) -> StepOpened:
    """Begins a step of an agent that is stored. Raises: as `StoredPaths.open`."""
    agent, exchange, rev = write.agent, write.exchange, write.rev
    await _lock_for_step(connection, write)
    if write.conversation_row is None:
        exchange = replace(exchange, conversation_row=await _begin_conversation(connection, write))
        rev = 0
    if write.adopts:
        await _adopt_conversation(connection, write, rules)
    if write.abandoned is not None:
        await _abandon_step(connection, agent.id, write.abandoned)
    if write.replaced is not None:
        await exchanges.update_exchange(connection, agent.id, write.replaced)
    section = write.section
    if section is not None and not section.is_stored:
        section = replace(section, id=await add_section(connection, agent.id, section))
    exchange = replace(exchange, section=None if section is None else section.id)
    added = await exchanges.add_planned_exchange(connection, agent.id, agent.epoch, rev, exchange)
    if added is None:
        await _refuse_step(connection, agent)
    await check_attempt(connection, write.job)
    await write_edits(connection, agent.id, write.edits, write.versions, write.now, write.reading)
    run = await _begin_or_end_run(connection, write, exchange.conversation_row)
    return StepOpened(agent, place_exchange(exchange, added.id, added.seq), rev + 1, section, run)


async def _lock_for_step(connection: Connection, write: StepOpen) -> None:
    """Locks what a step writes before its exchange. The statement that adds the exchange locks the agent itself."""
    if write.edits.writes or write.adopts or write.reading is not None:
        await connection.lock_sharers(write.agent.id, *_read_memories(write.reading))
    elif write.conversation_row is None or write.abandoned is not None or write.replaced is not None:
        await connection.lock(write.agent.id)


async def _abandon_step(connection: Connection, agent_row: int, exchange: Exchange) -> None:
    """Ends the previous step, which was left open. Raises: WriteConflict if its own process has ended it."""
    values = (*update_values(exchange), exchange.id, agent_row)
    if not await connection.run(SQL["step_abandon"], values):
        raise WriteConflict("the step before was ended by its own process meanwhile")


async def _begin_or_end_run(connection: Connection, write: StepOpen, conversation_row: int) -> Run | None:
    """Begins the run of a step, ends the run, or both. Returns the run as it is then; None if the step does neither."""
    run = None
    if write.run is not None:
        draft = replace(write.run, agent_row=write.agent.id, conversation_row=conversation_row)
        run = await _begin_run(connection, draft, write)
    if write.end is not None:
        run = await _end_run(connection, write.end if run is None else replace(write.end, run_row=run.id))
    return run


async def _begin_conversation(connection: Connection, write: StepOpen) -> int:
    """Begins the conversation of a step. Raises: WriteConflict if it is there."""
    begun = (write.agent.id, write.uid, write.key, write.now, write.now)
    conversation_row = await connection.value(SQL["begin"], begun)
    if conversation_row is None:
        raise WriteConflict("the conversation was begun by another request meanwhile")
    return int(conversation_row)


async def _adopt_conversation(connection: Connection, write: StepOpen, rules: Rules) -> None:
    """Turns a client conversation into a stored one with this path. Raises: WriteConflict if it was moved."""
    agent_row, exchange = write.agent.id, write.exchange
    if not await connection.run(
        SQL["adopt"], (exchange.parent or -1, exchange.conversation_row, agent_row, write.rev)
    ):
        raise WriteConflict("the conversation was moved by another request meanwhile")
    for exchange_row in write.continued:
        await connection.run(SQL["continue"], (exchange_row, agent_row))
    await merge_edits(connection, agent_row, write.continued, rules, write.now)


async def _refuse_step(connection: Connection, agent: Agent) -> NoReturn:
    """Raises: Stale or WriteConflict, whichever is the reason why a step was not written."""
    await _check_epoch(connection, agent)
    raise WriteConflict("the conversation was moved by another request meanwhile")


async def _check_epoch(connection: Connection, agent: Agent) -> None:
    """Raises Stale if something of an agent was forgotten since it was read."""
    if await lock_epoch(connection, agent.id) != agent.epoch:
        raise Stale("something was forgotten while this run was under way")


def _read_memories(reading: ReadSpan | None) -> tuple[int, ...]:
    return () if reading is None else (reading.memory_row,)


async def write_edits(
    connection: Connection,
    agent_row: int,
    merged: BlockMerge,
    first_versions: Mapping[int, int],
    now: float,
    reading: ReadSpan | None = None,
) -> None:
    """Writes the edits of a written exchange, and what they change. The other parameters are those of `write_merge`.

    Raises: WriteConflict.
    """
    await write_merge(connection, agent_row, merged, first_versions, now, reading)
    # Forgetting rebuilds the blocks from the edits that stay.
    for write in merged.writes:
        await add_edit(connection, agent_row, replace(write.edit, state=EditState.MERGED))


async def _begin_run(connection: Connection, draft: Run, write: StepOpen) -> Run:
    """Begins the run of a step. A run that was accepted before is stored already.

    Raises: RunOver if the run has ended, unless the step only ends it; or if another run has taken the send.
    """
    if draft.is_stored:
        run = await begin_run(connection, draft.agent_row, draft.id, write.exchange.begun)
    else:
        run = await find_or_create_run(connection, draft, replaces=write.replaces)
    if run.uid != draft.uid or (run.is_over and write.end is None):
        raise RunOver("the run was ended, or another one has taken its send")
    if write.request is not None:
        await replace_text(connection, run.agent_row, run.id, RunTextKind.REQUEST, 0, write.request)
    return run


async def end_step(connection: Connection, jobs: Jobs, write: StepEnd) -> list[str]:
    """Ends a step, and accepts the runs that this makes due. Returns their public ids.

    Raises: as `StoredPaths.finish` does.
    """
    agent, exchange = write.agent, write.exchange
    values = (*update_values(exchange), exchange.id, agent.id, agent.epoch, write.step.run_row)
    row = await connection.row(SQL["step_finish"], values)
    await check_attempt(connection, write.job)
    if row is None:
        await _check_epoch(connection, agent)
        raise RunOver(_TAKEN_OVER)
    if exchange.seq <= row[0]:
        # The index has passed the exchange while it was open, so the exchange has to be indexed again.
        await exchanges.add_marks(connection, agent.id, MarkKind.STALE, (b"",), exchange.id)
    step = write.step
    await add_step(connection, step, None if write.recall is None else write.recall())
    await _add_results(connection, agent.id, step.run_row, write.results)
    await add_error_message(connection, agent.id, step.run_row, write.error_message, write.error_status)
    if write.reading is not None and step.stop not in (None, _CANCELLED_STOP) and step.error is None:
        await advance_over(connection, write.reading, step.ended or step.begun)
    accepted = [await accept_reading(connection, jobs, reading) for reading in write.accepts]
    return [run.uid for run in accepted if run is not None]


async def _end_run(connection: Connection, write: RunEnd) -> Run:
    """Ends a run. Raises: as `StoredPaths.end`."""
    if write.edits.writes or write.reading is not None:
        await connection.lock_sharers(write.agent_row, *_read_memories(write.reading))
    else:
        await connection.lock(write.agent_row)
    if write.exchange_row is not None:
        run = await find_run(connection, write.agent_row, write.run_row)
        if run is not None and run.state is RunState.FAILED:
            raise RunOver(_TAKEN_OVER)
        values = (
            write.stop,
            orjson.dumps(write.waiting) if write.waiting else None,
            write.exchange_row,
            write.agent_row,
            write.epoch,
        )
        maker = await connection.value(SQL["step_stop"], values)
        if maker is None:
            raise Stale("something was forgotten while this run was under way")
        await _add_results(connection, write.agent_row, maker, write.results)
    await write_edits(connection, write.agent_row, write.edits, write.versions, write.at, write.reading)
    if write.reading is not None and write.state is RunState.COMPLETED:
        await advance_over(connection, write.reading, write.at)
    return await end_run(
        connection,
        write.agent_row,
        write.run_row,
        write.state,
        write.stop,
        write.at,
        error_message=write.error_message,
        job=write.job,
    )


async def _add_results(
    connection: Connection, agent_row: int, run_row: int, results: Mapping[int, bytes]
) -> None:
    """Stores results of a run's calls by their numbers."""
    for n, data in results.items():
        if not await add_text(connection, agent_row, run_row, RunTextKind.RESULT, n, data):
            # A call that was approved has been made since.
            await replace_text(connection, agent_row, run_row, RunTextKind.RESULT, n, data)
