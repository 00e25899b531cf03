"""Finds targets of forgettings: memories by their scope or by the age of their content, conversations, messages."""

from __future__ import annotations

from collections.abc import Sequence

from storage.database import Connection, Row
from storage.forget_commands import Extent, ForgetTarget
from storage.records import REPLY, Exchange, ExchangeState
from storage.sql import exchanges
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.statements import load, load_column

SQL = load("forget_targets.sql")

# The most memories that one read searches for old content. Chosen, not measured: some hundred exchanges of a user take
# milliseconds.
_MEMORIES_PER_READ = 64


class ForgetTargets(StoreGroup):
    """Lists memories, and finds and measures parts of them, before `Forgetting` is asked to forget them."""

    @reads
    async def list_memories(
        self,
        connection: Connection,
        project: str,
        profile: str | None,
        subject: str | None,
        *,
        after: int = 0,
        limit: int = 100,
    ) -> list[int]:
        """Returns a page of the rows of the memories in a scope, in order.

        profile: the profile of the memories; None: any profile.
        subject: the subject of the memories; None: any subject.
        after: the row of the last memory on the previous page.
        """
        if subject is None:
            return await load_column(connection, SQL["agents_of"], (project, profile, after, limit))
        return await load_column(
            connection, SQL["agents_of_subject"], (project, profile, subject, after, limit)
        )

    async def list_older(
        self, project: str, before: float, *, run_wait_s: float = 0.0, after: int = 0, limit: int = 100
    ) -> list[int]:
        """Returns a page of the rows of a project's memories with content from before a time, in order.

        before: the time, in seconds since the epoch.
        run_wait_s: the seconds by which the time is earlier for memories with an open run.
        after: the row of the last memory on the previous page.
        """
        agent_rows: list[int] = []
        # A read looks through the whole content of some memories. A read of all memories could take minutes.
        while len(agent_rows) < limit:
            values = (project, before, after, _MEMORIES_PER_READ, before - run_wait_s)
            rows = await self._read_agents_before(values)
            agent_rows += [agent_row for agent_row, is_older in rows if is_older]
            if len(rows) < _MEMORIES_PER_READ:
                break
            after = rows[-1][0]
        return agent_rows[:limit]

    @long_reads
    async def _read_agents_before(self, connection: Connection, values: Sequence[object]) -> list[Row]:
        return await connection.fetch_rows(SQL["agents_before"], values)

    @long_reads
    async def list_inactive(
        self, connection: Connection, before: float, prefix: str, *, limit: int = 100
    ) -> list[int]:
        """Returns the rows of memories that began and had their last turn before a time.

        before: the time, in seconds since the epoch.
        prefix: the beginning of the memories' subjects.
        """
        return await load_column(connection, SQL["inactive_before"], (before, prefix, limit))

    @reads
    async def find_conversation(self, connection: Connection, agent_row: int, name: str) -> int | None:
        """Returns the row of a conversation; None: there is none. name: its public id, or the client's id."""
        return await connection.fetch_value(SQL["conversation_of"], (agent_row, name))

    @reads
    async def measure(self, connection: Connection, agent_row: int, target: ForgetTarget) -> Extent:
        """Returns the present size of a target that names messages and exchanges, or a conversation."""
        named_rows = [
            await exchanges.find_exchange_row(connection, agent_row, seq) for seq in target.message_seqs
        ]
        named_exchanges = [
            await exchanges.find_exchange(connection, agent_row, exchange_row)
            # Several messages may be of one exchange.
            for exchange_row in dict.fromkeys([*named_rows, *target.exchange_rows])
            if exchange_row is not None
        ]
        target_exchanges = [exchange for exchange in named_exchanges if exchange is not None]
        if not target_exchanges:
            return Extent(
                await connection.fetch_value(SQL["messages_in"], (agent_row, target.conversation_row))
            )
        named_seqs = set(target.message_seqs)
        seqs = [seq for exchange in target_exchanges for seq in list_remaining_seqs(exchange)]
        erased_seqs = [seq for seq in seqs if not named_seqs or seq in named_seqs]
        conversation_uid = await exchanges.find_conversation_uid(
            connection, agent_row, target_exchanges[0].conversation_row
        )
        return Extent(
            len(erased_seqs), remaining=len(seqs) - len(erased_seqs), conversation_uid=conversation_uid
        )


def list_remaining_seqs(exchange: Exchange) -> list[int]:
    """Returns the numbers of an exchange's messages that are not forgotten. Inputs without atoms do not count."""
    if exchange.state in (ExchangeState.FORGOTTEN, ExchangeState.OFF):
        return []
    indices = [
        index for index, atoms in enumerate(exchange.inputs) if index not in exchange.redactions and atoms
    ]
    seqs = [exchange.seq + index for index in indices]
    if exchange.shown_reply is not None and REPLY not in exchange.redactions:
        seqs.append(exchange.reply_seq)
    return seqs
