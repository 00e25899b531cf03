"""Readers: who works through a memory after the fact, and up to where each has come.

The built-in learner is one, a sleeptime agent another. Each reads what is settled, in order and whole, and moves its
cursor in the transaction that writes what it made of it. The store's `Rules` decide what a message of an exchange is.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from storage.commands import Rules, Unread
from storage.database import Connection, Database
from storage.listing import ReaderEntry
from storage.records import LEARNER, USER_ATOM, Exchange, Message, State
from storage.sql import exchanges
from storage.sql.agents import load_agent
from storage.sql.group import Group, reads
from storage.sql.statements import load, rows_of

SQL = load("readers.sql")

# So many exchanges are read at once.
_BATCH = 32
# A message that was written before its reply, and has had none for this long, will not get one.
_OPEN_S = 3_600.0
_READ_MS = 5_000.0
# As many turns are counted at most.
MOST_TURNS = 1_000
# The kind of an atom of what a tool returned.
TOOL_ATOM = b"t"
# The columns after those of `{spoken}`.
_FULL, _IS_FOLLOWED, _OF_RUN = -3, -2, -1


async def cursor_of(connection: Connection, memory: int, reader: int) -> int:
    """Returns up to where a reader has come."""
    return await connection.value(SQL["cursor"], (memory, reader)) or 0


async def advance(connection: Connection, memory: int, reader: int, upto: int, at: float) -> None:
    """Moves a reader's cursor."""
    await connection.run(SQL["advance"], (memory, reader, upto, at))


async def load_sleepers(connection: Connection, memory: int) -> list[int]:
    """Returns the memories of the sleeptime agents that read a memory."""
    return [row[0] for row in await connection.rows(SQL["sleepers"], (memory,))]


class Readers(Group):
    """Readers, for those who have no transaction of their own."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    async def unread(
        self,
        memory: int,
        reader: int,
        *,
        now: float,
        idle_s: float,
        limit_chars: int,
        message_chars: int,
        upto: int | None = None,
    ) -> Unread | None:
        """Reads the next messages that are settled; None where the memory is gone.

        limit_chars: of one batch, which has an exchange at least.
        message_chars: a message counts with this length at most.
        upto: reads again what was read up to there before.
        """

        async def read(connection: Connection) -> Unread | None:
            agent = await load_agent(connection, memory)
            if agent is None:
                return None
            cursor = await cursor_of(connection, memory, reader)
            last = agent.next_seq if upto is None else upto
            values = (USER_ATOM, memory, cursor, last, _BATCH)
            rows = await connection.rows(SQL["unread"], values)
            found = Unread(agent, cursor, cursor, [], is_more=len(rows) == _BATCH)
            messages: list[Message] = []
            used: dict[int, Sequence[str]] = {}
            size = 0
            for row, (e, is_shared, _) in zip(rows, exchanges.spoken(rows), strict=True):
                is_left = row[_OF_RUN] == "left"
                is_running = row[_OF_RUN] == "running"
                is_decided = is_left or row[_IS_FOLLOWED] or _is_decided(e, now, idle_s)
                if upto is None and (is_running or not is_decided):
                    return replace(found, messages=messages, used=used, is_more=False, is_waiting=True)
                if is_left or (e.active and e.state is State.FINISHED):
                    new = self._rules.messages_of(e, is_shared, None, None)
                    size += sum(min(len(m.text), message_chars) for m in new)
                    if upto is None and messages and size > limit_chars:
                        return replace(found, messages=messages, used=used, is_more=True)
                    messages += new
                    if tools := self._rules.tools_used(replace(e, full=row[_FULL])):
                        used[e.id] = tools
                found = replace(found, upto=e.seq)
            return replace(found, messages=messages, used=used)

        return await self._database.long_read(read, deadline_ms=_READ_MS)

    @reads
    async def of(self, connection: Connection, memories: Sequence[int]) -> dict[int, list[ReaderEntry]]:
        """Returns the sleeptime agents that read each of these memories, and how much they have to read."""
        found: dict[int, list[ReaderEntry]] = {memory: [] for memory in memories}
        for memory, *entry in await rows_of(connection, SQL["of_memories"], memories, MOST_TURNS, TOOL_ATOM):
            found[memory].append(ReaderEntry(*entry))
        return found

    @reads
    async def read_by(self, connection: Connection, reader: int) -> list[int]:
        """Returns the memories that a sleeptime agent reads."""
        return [row[0] for row in await connection.rows(SQL["read_by"], (reader,))]

    @reads
    async def last_at(self, connection: Connection, memory: int) -> float | None:
        """Returns the time of a memory's last turn."""
        at: float | None = await connection.value(SQL["last_at"], (memory,))
        return at

    @reads
    async def unslept(self, connection: Connection, limit: int, profiles: Sequence[str]) -> list[int]:
        """Returns memories with something that their sleeptime agents have not read.

        profiles: those with such agents.
        """
        return [id for (id,) in await connection.rows(SQL["unslept"], (limit, profiles))]

    @reads
    async def unlearned(
        self, connection: Connection, limit: int, but: Sequence[str] = (), reader: int = LEARNER
    ) -> list[int]:
        """Returns people's memories with turns that no reader has read; the rule's, with those it has not.

        but: profiles that sleeptime agents read.
        """
        return [id for (id,) in await connection.rows(SQL["unlearned"], (limit, but, reader))]


def _is_decided(e: Exchange, now: float, idle_s: float) -> bool:
    """Returns whether the text and state of an exchange are settled: a turn followed it, or the idle time is over.

    An exchange that is dated in the future was written before the clock was put back.
    """
    if e.continued or e.state in (State.OFF, State.FORGOTTEN):
        return True
    patience_s = _OPEN_S if e.state is State.OPEN else idle_s
    return abs(now - max(e.ended or e.stopped or e.begun, e.touched)) > patience_s
