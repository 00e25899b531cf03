"""Stored conversations. Each is one path, at whose end sends continue.

A send reads the end of the path with two statements, whatever the size of the memory, and writes step by step: the
user's message before the model is asked, each reply before its tools run, the results before the model is asked again.
A step is planned on the conversation's rev; if another writer has moved the conversation since, nothing is written.
step_writes.py has the transactions.
"""

from __future__ import annotations

from asyncio import Future
from functools import partial
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from storage.commands import MemoryReader, MemorySnapshot
from storage.database import Connection, Database
from storage.records import (
    DEFAULT_CONVERSATION,
    RESULT_ATOM,
    Agent,
    Conversation,
    EvictedPart,
    Summary,
)
from storage.run_commands import ConversationPath, RunEnd, StepEnd, StepOpen, StepOpened
from storage.run_records import Run
from storage.sql import exchanges
from storage.sql.agents import Agents
from storage.sql.blocks import OwnedBlock
from storage.sql.exchange_rows import make_exchange_with_content
from storage.sql.group import StoreGroup, as_method, reads
from storage.sql.jobs import Jobs
from storage.sql.statements import load
from storage.sql.step_writes import end_run_of_step, end_step, open_step
from storage.sql.summaries import MAX_SUMMARIES
from storage.store_rules import Rules

SQL = load("stored_paths.sql")
# The values of the column `tip` of a conversation without a last stored exchange: the client has the history, and sends
# it; or nothing is stored yet.
CLIENT_TIP = 0
EMPTY_TIP = -1
# The column of a row of `head` with the time.
_TIME = 10
# The columns of a row of `path` after its kind: a summary's five values, then the exchange (three contents, and the
# columns of `{skeleton}`).
_SUMMARY_VALUES = slice(1, 6)
_EXCHANGE = slice(6, None)


class _PathHead(NamedTuple):
    """The part of a stored conversation that is read before its exchanges."""

    # The snapshot of the memory, with the conversation if it exists.
    snapshot: MemorySnapshot
    # The row of the last exchange of the path; None: the path is empty.
    last_row: int | None
    # The part of the path that had left the window at the last exchange; None: the whole path is in the window.
    evicted: EvictedPart | None


async def _read_path(
    connection: Connection,
    agent: Agent,
    conversation_name: str,
    window_tokens: int | None,
    max_unread_turns: int = 0,
) -> ConversationPath | None:
    """Returns a conversation from the beginning of its window on; None: the agent is not stored any more.

    conversation_name: the name of the conversation, as `Conversation.name`.
    window_tokens: the size of the model's window; None: it is unknown, and all of the conversation is read.
    max_unread_turns: the number up to which turns that a sleeptime agent has not read are counted; 0: none are.
    """
    head = await _read_head(connection, agent, conversation_name, max_unread_turns)
    if head is None:
        return None
    snapshot, last_row, evicted = head
    if last_row is None or snapshot.conversation is None:
        return ConversationPath(snapshot)
    first_depth = evicted.depth if evicted is not None and evicted.is_out_of(window_tokens) else 0
    values = (agent.id, snapshot.conversation.id, last_row, first_depth, MAX_SUMMARIES)
    path, summaries = [], []
    for row in await connection.fetch_rows(SQL["path"], values):
        exchange = make_exchange_with_content(row[_EXCHANGE])
        if row[0] == "exchange":
            path.append(exchange)
        else:
            summary_row, *summary_values = row[_SUMMARY_VALUES]
            summaries.append(Summary(summary_row, exchange, *summary_values))
    return ConversationPath(snapshot, tuple(path), tuple(reversed(summaries)))


async def _read_head(
    connection: Connection, agent: Agent, conversation_name: str, max_unread_turns: int
) -> _PathHead | None:
    """Returns the part of a conversation before its exchanges; None: the agent is not stored any more.

    The parameters are as in `_read_path`.
    """
    scope = agent.scope
    values = (
        agent.id,
        *_split_key_and_uid(conversation_name),
        scope.project,
        scope.profile,
        scope.subject,
        max_unread_turns,
        RESULT_ATOM,
    )
    rows = await connection.fetch_rows(SQL["head"], values)
    if not rows or rows[0][0] != "agent":
        return None
    snapshot = MemorySnapshot(*rows[0][1:6])
    last_row: int | None = None
    evicted: EvictedPart | None = None
    blocks: list[OwnedBlock] = []
    for columns in rows[1:]:
        row = exchanges.SnapshotRow.make(columns, columns[_TIME])
        match row.kind:
            case "conversation":
                conversation_row, rev, tip, *_ = row.numbers
                uid, key, _ = row.texts
                snapshot.conversation = Conversation(conversation_row, uid, key, rev, tip)
            case "last":
                last_row = row.numbers[0]
                evicted = EvictedPart(*orjson.loads(row.content)) if row.content else None
            case "reader":
                reader_row, turns, is_busy, *_ = row.numbers
                snapshot.readers.append(MemoryReader(reader_row, turns, bool(is_busy)))
            case _:
                exchanges.add_snapshot_row(snapshot, blocks, row)
    exchanges.complete_snapshot(snapshot, blocks)
    return _PathHead(snapshot, last_row, evicted)


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

    load_path = reads(as_method(_read_path))

    @reads
    async def find_conversation(
        self, connection: Connection, agent: Agent, conversation_name: str
    ) -> Conversation | None:
        """Returns a conversation by its name (`Conversation.name`); None: no such conversation has begun."""
        row = await connection.fetch_row(
            SQL["conversation_named"], (agent.id, *_split_key_and_uid(conversation_name))
        )
        return None if row is None else Conversation(*row)

    def open(self, write: StepOpen) -> Future[StepOpened]:
        """Begins a step: its exchange with the new messages, and with the edits of the previous step.

        Raises:
            WriteConflict: the conversation or a block was changed since it was read.
            StaleWrite: something was forgotten since, or another attempt performs the run.
            RunEnded: there is no run to begin.
            StoreUnavailable: the database cannot be written.
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
            StaleWrite: something was forgotten since the step was opened, or another attempt performs the run.
            RunEnded: another process has ended the step or failed the run, because this process had lost its lease.
            StoreUnavailable: the database cannot be written.
        """
        ending = self._database.write(
            lambda connection: end_step(connection, self._jobs, write),
            size_bytes=2 * write.exchange.content_bytes,
        )
        if write.accepts:
            ending.add_done_callback(lambda _: self._jobs.wake())
        return ending

    def end(self, write: RunEnd) -> Future[Run]:
        """Ends a run after a step that is written already. Returns the run as it is now.

        Raises:
            WriteConflict: a block was changed since it was read.
            StaleWrite: something was forgotten since the step was written, or another attempt performs the run.
            RunEnded: another process has failed the run that is to wait.
            StoreUnavailable: the database cannot be written.
            NotFound: there is no such run.
        """
        return self._database.write(lambda connection: end_run_of_step(connection, write))
