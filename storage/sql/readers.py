"""Readers of a memory, the built-in learner and sleeptime agents, and the cursor of each.

A reader reads settled exchanges, in order and whole. Its cursor is the number of the last exchange that it has read,
and moves in the transaction that writes what the reader has learned. The store's `Rules` make messages of exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from storage.database import BACKGROUND_READ_MS, Connection, Database, Row
from storage.listing import ReaderEntry
from storage.reader_commands import UnreadMessages
from storage.records import LEARNER, RESULT_ATOM, USER_ATOM, Exchange, ExchangeState, Message
from storage.sql.agents import find_agent_by_id
from storage.sql.exchange_rows import make_shown_exchanges
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.statements import load, load_column, load_rows
from storage.store_rules import Rules

SQL = load("readers.sql")

# The exchanges that one statement reads. Not measured: a reader asks again while there are more.
_BATCH_EXCHANGES = 32
# The seconds that an exchange may wait for its reply; later it gets none. Not measured: the messages of a turn without
# an end are read this much later.
_OPEN_S = 3_600.0
# Unread turns are counted up to this number.
_MAX_TURNS = 1_000
# The columns of `unread` after those of `{shown}`.
_FULL = -3
_IS_FOLLOWED = -2
_RUN_STATE = -1


async def load_cursor(connection: Connection, memory_row: int, reader: int) -> int:
    """Returns the number of the last exchange that a reader has read; 0: none."""
    return await connection.fetch_value(SQL["cursor"], (memory_row, reader)) or 0


async def advance(connection: Connection, memory_row: int, reader: int, upto: int, at: float) -> None:
    """Moves a reader's cursor."""
    await connection.run(SQL["advance"], (memory_row, reader, upto, at))


async def load_sleeptime_agents(connection: Connection, memory_row: int) -> list[int]:
    """Returns the rows of the sleeptime agents that read a memory."""
    return await load_column(connection, SQL["sleeptime_agents"], (memory_row,))


class Readers(StoreGroup):
    """The reads of readers, each in a transaction of its own."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    async def find_unread(
        self,
        memory_row: int,
        reader: int,
        *,
        now: float,
        idle_s: float,
        limit_chars: int,
        message_chars: int,
        upto: int | None = None,
    ) -> UnreadMessages | None:
        """Returns the next settled messages that a reader has not read; None: the memory is gone.

        now: the present time, in seconds since the epoch.
        idle_s: the time after which an exchange that no turn follows is settled.
        limit_chars: the most characters of messages in one batch, which has one exchange at least.
        message_chars: the characters that a longer message counts towards `limit_chars`.
        upto: the last exchange of an earlier read, which is repeated without asking what is settled; None: a new read.
        """

        async def read(connection: Connection) -> UnreadMessages | None:
            agent = await find_agent_by_id(connection, memory_row)
            if agent is None:
                return None
            cursor = await load_cursor(connection, memory_row, reader)
            last = agent.next_seq if upto is None else upto
            rows = await connection.fetch_rows(
                SQL["unread"], (USER_ATOM, memory_row, cursor, last, _BATCH_EXCHANGES)
            )
            batch = _UnreadBatch(
                self._rules, limit_chars, message_chars, is_repeat=upto is not None, end=cursor
            )
            batch.add_rows(rows, now, idle_s)
            return UnreadMessages(
                agent,
                cursor,
                upto=batch.end,
                messages=batch.messages,
                tools_used=batch.tools_used,
                is_more=batch.is_more,
                is_waiting=batch.is_waiting,
            )

        return await self._database.long_read(read, deadline_ms=BACKGROUND_READ_MS)

    @reads
    async def load_by_memory(
        self, connection: Connection, memory_rows: Sequence[int]
    ) -> dict[int, list[ReaderEntry]]:
        """Returns, for each of these memories, the sleeptime agents that read it."""
        readers: dict[int, list[ReaderEntry]] = {row: [] for row in memory_rows}
        for row, *entry in await load_rows(
            connection, SQL["of_memories"], memory_rows, _MAX_TURNS, RESULT_ATOM
        ):
            readers[row].append(ReaderEntry(*entry))
        return readers

    @reads
    async def load_read_by(self, connection: Connection, reader_row: int) -> list[int]:
        """Returns the rows of the memories that a sleeptime agent reads."""
        return await load_column(connection, SQL["read_by"], (reader_row,))

    @reads
    async def find_last_at(self, connection: Connection, memory_row: int) -> float | None:
        """Returns the time of a memory's last turn."""
        return await connection.fetch_value(SQL["last_at"], (memory_row,))

    @long_reads
    async def load_unslept(self, connection: Connection, limit: int, profiles: Sequence[str]) -> list[int]:
        """Returns the rows of memories with something that their sleeptime agents have not read.

        profiles: the profiles with users who have such agents.
        """
        return await load_column(connection, SQL["unslept"], (limit, profiles))

    @long_reads
    async def load_unlearned(
        self, connection: Connection, limit: int, without: Sequence[str] = (), reader: int = LEARNER
    ) -> list[int]:
        """Returns the rows of users' memories with turns that no reader has read.

        without: profiles to leave out, since sleeptime agents read their memories.
        reader: the learner, for which the rule's reads do not count, or the rule, for which all count.
        """
        return await load_column(connection, SQL["unlearned"], (limit, without, reader))


@dataclass(slots=True)
class _UnreadBatch:
    """The messages of one read, as far as they have room."""

    # The rules that make messages of an exchange.
    rules: Rules
    # The characters that the messages may have together, as in `Readers.find_unread`.
    limit_chars: int
    # The characters of a message that count, as in `Readers.find_unread`.
    message_chars: int
    # True if an earlier read is repeated: its messages have room, and are settled.
    is_repeat: bool
    # The number of the last exchange that was read.
    end: int
    # The messages so far, oldest first.
    messages: list[Message] = field(default_factory=list)
    # The gateway tools that an exchange's turn has used, by the exchange.
    tools_used: dict[int, Sequence[str]] = field(default_factory=dict)
    # True if more messages are settled, as `UnreadMessages.is_more`.
    is_more: bool = False
    # True if later messages will be settled, as `UnreadMessages.is_waiting`.
    is_waiting: bool = False
    # The characters of the messages so far that count.
    _chars: int = field(default=0, init=False)

    def add_rows(self, rows: Sequence[Row], now: float, idle_s: float) -> None:
        """Adds the messages of the rows of `unread`, up to the first exchange that is not settled or has no room."""
        self.is_more = len(rows) == _BATCH_EXCHANGES
        for row, (exchange, is_shared, _) in zip(rows, make_shown_exchanges(rows), strict=True):
            is_left = row[_RUN_STATE] == "left"
            is_settled = is_left or row[_IS_FOLLOWED] or _is_settled(exchange, now, idle_s)
            if not self.is_repeat and (row[_RUN_STATE] == "running" or not is_settled):
                self.is_more = False
                self.is_waiting = True
                return
            is_shown = is_left or (exchange.active and exchange.state is ExchangeState.FINISHED)
            if is_shown and not self._add(exchange, row[_FULL], is_shared=is_shared):
                self.is_more = True
                return
            self.end = exchange.seq

    def _add(self, exchange: Exchange, full_reply: bytes | None, *, is_shared: bool) -> bool:
        """Adds the messages of an exchange. Returns False if they have no room.

        full_reply: all messages of the reply, as `Exchange.full_reply`.
        """
        messages = self.rules.list_messages(exchange, is_shared, None, None)
        self._chars += sum(min(len(message.text), self.message_chars) for message in messages)
        if self.messages and self._chars > self.limit_chars and not self.is_repeat:
            return False
        self.messages += messages
        if tools := self.rules.list_tools_used(replace(exchange, full_reply=full_reply)):
            self.tools_used[exchange.id] = tools
        return True


def _is_settled(exchange: Exchange, now: float, idle_s: float) -> bool:
    """Returns whether the text and state of an exchange are settled: a turn followed it, or the idle time is over.

    An exchange that is dated in the future was written before the clock was put back.
    """
    if exchange.continued or exchange.state in (ExchangeState.OFF, ExchangeState.FORGOTTEN):
        return True
    wait_s = _OPEN_S if exchange.state is ExchangeState.OPEN else idle_s
    return abs(now - max(exchange.ended or exchange.stopped or exchange.begun, exchange.touched)) > wait_s
