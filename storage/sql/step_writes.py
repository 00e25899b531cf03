"""Performs the transactions that write runs into stored conversations.

A step begins or ends, or the run ends after its last step. `StoredPaths` documents the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import orjson
from msgspec.structs import replace

from storage.commands import BlockMerge
from storage.database import Connection
from storage.errors import RunEnded, StaleWrite, WriteConflict
from storage.records import (
    Agent,
    EditState,
    Exchange,
    MarkKind,
    place_exchange,
)
from storage.run_commands import ReadSpan, RunEnd, StepEnd, StepOpen, StepOpened
from storage.run_records import Run, RunState, RunTextKind
from storage.sql import exchanges
from storage.sql.agents_api.run_texts import add_error_message, add_text, replace_text
from storage.sql.agents_api.runs import (
    add_step,
    begin_conversation,
    begin_run,
    end_run,
    find_or_create_run,
    find_run,
)
from storage.sql.agents_api.sleeptime_agents import accept_reading, advance_over
from storage.sql.epochs import lock_epoch
from storage.sql.exchange_rows import update_values
from storage.sql.job_rows import check_attempt
from storage.sql.jobs import Jobs
from storage.sql.sections import add_section
from storage.sql.statements import load
from storage.sql.turn_edits import add_edit
from storage.sql.turns import merge_edits, write_merge
from storage.store_rules import Rules

SQL = load("stored_paths.sql")
# How a cancelled step stopped.
_CANCELLED_STOP = "cancelled"
# The message of an error if the run is not this process's any more.
_TAKEN_OVER_MESSAGE = "another process has taken over the conversation of this run"


async def open_step(connection: Connection, write: StepOpen, rules: Rules) -> StepOpened:
    """Begins a step of an agent that is stored. Raises: WriteConflict, StaleWrite, RunEnded."""
    agent, exchange, rev = write.agent, write.exchange, write.rev
    await _lock_for_step(connection, write)
    if write.conversation_row is None:
        exchange = replace(exchange, conversation_row=await _begin_conversation(connection, write))
        rev = 0
    if write.adopts_conversation:
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
    """Locks the agents whose rows a step writes before its exchange.

    The statement of the exchange locks the agent of the exchange.
    """
    if write.edits.writes or write.adopts_conversation or write.reading is not None:
        await connection.lock_sharers(write.agent.id, *_list_read_memories(write.reading))
    elif write.conversation_row is None or write.abandoned is not None or write.replaced is not None:
        await connection.lock(write.agent.id)


async def _abandon_step(connection: Connection, agent_row: int, exchange: Exchange) -> None:
    """Ends the previous step, which another process left open. Raises: WriteConflict if that process has ended it."""
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
        run = await end_run_of_step(
            connection, write.end if run is None else replace(write.end, run_row=run.id)
        )
    return run


async def _begin_conversation(connection: Connection, write: StepOpen) -> int:
    """Begins the conversation of a step. Raises: WriteConflict if it is there."""
    row = await begin_conversation(connection, write.agent.id, write.key, write.uid, write.now)
    if row is None:
        raise WriteConflict("the conversation was begun by another request meanwhile")
    return row


async def _adopt_conversation(connection: Connection, write: StepOpen, rules: Rules) -> None:
    """Makes a client conversation a stored conversation with this path. Raises: WriteConflict if it has moved."""
    if not await connection.run(
        SQL["adopt"],
        (write.exchange.parent or -1, write.exchange.conversation_row, write.agent.id, write.rev),
    ):
        raise WriteConflict("the conversation was moved by another request meanwhile")
    await continue_exchanges(connection, write.agent.id, write.continued, rules, write.now)


async def continue_exchanges(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int], rules: Rules, at: float
) -> None:
    """Marks exchanges that a stored conversation continues as not superseded, and merges their edits."""
    for exchange_row in exchange_rows:
        await connection.run(SQL["continue"], (exchange_row, agent_row))
    await merge_edits(connection, agent_row, exchange_rows, rules, at)


async def _refuse_step(connection: Connection, agent: Agent) -> NoReturn:
    """Raises the error of a step that was not written: StaleWrite, or WriteConflict."""
    await _check_epoch(connection, agent)
    raise WriteConflict("the conversation was moved by another request meanwhile")


async def _check_epoch(connection: Connection, agent: Agent) -> None:
    """Raises StaleWrite if something of an agent was forgotten since it was read."""
    if await lock_epoch(connection, agent.id) != agent.epoch:
        raise StaleWrite("something was forgotten while this run was under way")


def _list_read_memories(reading: ReadSpan | None) -> tuple[int, ...]:
    """Returns the row of the memory that a run reads, if it reads one."""
    return () if reading is None else (reading.memory_row,)


async def write_edits(
    connection: Connection,
    agent_row: int,
    merge: BlockMerge,
    first_versions: Mapping[int, int],
    now: float,
    reading: ReadSpan | None = None,
) -> None:
    """Writes the edits of a written exchange, and their results. The other parameters are as in `write_merge`.

    Raises: WriteConflict.
    """
    await write_merge(connection, agent_row, merge, first_versions, now, reading)
    # Forgetting rebuilds the blocks from the edits that stay.
    for write in merge.writes:
        await add_edit(connection, agent_row, replace(write.edit, state=EditState.MERGED))


async def _begin_run(connection: Connection, draft: Run, write: StepOpen) -> Run:
    """Begins the run of a step. A run that was accepted before is stored already.

    Raises: RunEnded if the run has ended, unless the step only ends it; or if another run has taken the send.
    """
    if draft.is_stored:
        run = await begin_run(connection, draft.agent_row, draft.id, write.exchange.begun)
    else:
        run = await find_or_create_run(connection, draft, replaces=write.replaces)
    if run.uid != draft.uid or (run.is_over and write.end is None):
        raise RunEnded("the run was ended, or another one has taken its send")
    if write.request is not None:
        await replace_text(connection, run.agent_row, run.id, RunTextKind.REQUEST, seq=0, data=write.request)
    return run


async def end_step(connection: Connection, jobs: Jobs, write: StepEnd) -> list[str]:
    """Ends a step, and accepts the runs that this makes due. Returns their public ids.

    Raises: StaleWrite, RunEnded.
    """
    agent, exchange = write.agent, write.exchange
    values = (*update_values(exchange), exchange.id, agent.id, agent.epoch, write.step.run_row)
    row = await connection.fetch_row(SQL["step_finish"], values)
    await check_attempt(connection, write.job)
    if row is None:
        await _check_epoch(connection, agent)
        raise RunEnded(_TAKEN_OVER_MESSAGE)
    if exchange.seq <= row[0]:
        # The index has passed the exchange while it was open, so the exchange has to be indexed again.
        await exchanges.add_marks(connection, agent.id, MarkKind.STALE, (b"",), exchange.id)
    step = write.step
    await add_step(connection, step, None if write.recall is None else write.recall())
    await _add_results(connection, agent.id, step.run_row, write.results)
    await add_error_message(connection, agent.id, step.run_row, write.error_message, write.error_status)
    if write.reading is not None and step.stop not in (None, _CANCELLED_STOP) and step.error is None:
        await advance_over(connection, write.reading, step.ended or step.begun)
    runs = [await accept_reading(connection, jobs, reading) for reading in write.accepts]
    return [run.uid for run in runs if run is not None]


async def end_run_of_step(connection: Connection, write: RunEnd) -> Run:
    """Ends a run. Raises: WriteConflict, StaleWrite, RunEnded, NotFound."""
    if write.edits.writes or write.reading is not None:
        await connection.lock_sharers(write.agent_row, *_list_read_memories(write.reading))
    else:
        await connection.lock(write.agent_row)
    if write.exchange_row is not None:
        run = await find_run(connection, write.agent_row, write.run_row)
        if run is not None and run.state is RunState.FAILED:
            raise RunEnded(_TAKEN_OVER_MESSAGE)
        values = (
            write.stop,
            orjson.dumps(write.waiting) if write.waiting else None,
            write.exchange_row,
            write.agent_row,
            write.epoch,
        )
        step_run_row = await connection.fetch_value(SQL["step_stop"], values)
        if step_run_row is None:
            raise StaleWrite("something was forgotten while this run was under way")
        await _add_results(connection, write.agent_row, step_run_row, write.results)
    await write_edits(connection, write.agent_row, write.edits, write.versions, write.at, write.reading)
    if write.reading is not None and write.state is RunState.COMPLETED:
        await advance_over(connection, write.reading, write.at)
    return await end_run(
        connection,
        write.agent_row,
        write.run_row,
        state=write.state,
        stop=write.stop,
        at=write.at,
        error_message=write.error_message,
        job=write.job,
    )


async def _add_results(
    connection: Connection, agent_row: int, run_row: int, results: Mapping[int, bytes]
) -> None:
    """Stores results of a run's calls by their numbers."""
    for number, data in results.items():
        if not await add_text(connection, agent_row, run_row, RunTextKind.RESULT, seq=number, data=data):
            # A call that was approved has been made since.
            await replace_text(connection, agent_row, run_row, RunTextKind.RESULT, seq=number, data=data)
