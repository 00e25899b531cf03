"""Recalls: what is noted of the turns that looked for memory, written with them (`RecallRow`).

Their content is numbers (storage/recall_record.py). Texts are read when they are asked for.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from msgspec import Struct

from storage.commands import RecallRow
from storage.database import Connection, Row
from storage.recall_record import pack_request, unpack_request
from storage.records import Scope
from storage.sql.group import Group, reads
from storage.sql.statements import load, rows_of

SQL = load("page.sql")


class StoredRecall(Struct, frozen=True):
    """A recall as it is stored, with its memory and its turn."""

    exchange: int
    agent: int
    at: float
    # The id of its request; None: it was too long to be stored.
    request: str | None
    data: bytes
    memory_uid: str
    scope: Scope
    conversation_uid: str
    # The number of the exchange's first message.
    seq: int
    # Upstream and model.
    model: str


async def note_recall(
    connection: Connection, agent: int, exchange: int, at: float, recall: RecallRow
) -> None:
    """Notes the recall of a turn whose exchange is stored already. An earlier one stays."""
    await connection.run(SQL["recall_add"], (exchange, agent, at, recall.request, recall.data))


class Recalls(Group):
    """Reads what is noted, as long as it is not too old. since: a time; what is older is not shown."""

    @reads
    async def find(
        self, connection: Connection, request: str, since: float, project: str | None = None
    ) -> builtins.list[StoredRecall]:
        """Returns the recalls of the requests with an id, the newest first. project: None: of any."""
        rows = await connection.rows(SQL["recalls_of_request"], (pack_request(request), since, project))
        return list(map(_stored, rows))

    @reads
    async def list(
        self, connection: Connection, agent: int, since: float, *, before: int, limit: int = 50
    ) -> builtins.list[StoredRecall]:
        """Returns a page of the recalls of a memory, the newest first. before: the row of an exchange."""
        rows = await connection.rows(SQL["recalls_of_memory"], (agent, before, since, limit))
        return list(map(_stored, rows))

    @reads
    async def requests(
        self, connection: Connection, agent: int, exchanges: Sequence[int], since: float
    ) -> dict[int, str]:
        """Returns the ids of the requests that some exchanges answer, as far as they are noted."""
        rows = await rows_of(connection, SQL["recall_requests"], exchanges, agent, since)
        found = {exchange: unpack_request(request) for exchange, request in rows}
        return {exchange: id for exchange, id in found.items() if id is not None}

    async def age(self, before: float) -> int:
        """Deletes those that are older. Returns how many went."""
        return await self._delete_older(SQL["recalls_old"], SQL["recalls_age"], before)


def _stored(row: Row) -> StoredRecall:
    exchange, agent, at, request, data, uid, project, profile, subject, conversation, seq, model = row
    scope = Scope(project, profile, subject)
    return StoredRecall(
        exchange, agent, at, unpack_request(request), data, uid, scope, conversation, seq, model
    )
