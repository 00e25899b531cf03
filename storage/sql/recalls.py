"""Recalls: what is noted of the turns that looked for memory, written with them (`RecallRow`).

Their content is numbers (storage/recall_record.py). Texts are read when they are asked for.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from hashlib import blake2b

from msgspec import Struct

from storage.commands import RecallRow
from storage.database import Connection, Row
from storage.records import Scope
from storage.sql.group import Group, bulk_writes, reads
from storage.sql.statements import load, rows_of

SQL = load("page.sql")

# The ids that the gateway gives: twelve random bytes.
_OWN = re.compile(r"req_[0-9a-f]{24}")
# A longer id is stored as its hash.
_LONGEST = 64
_OWN_MARK, _HASH_MARK = b"\x00", b"\x01"


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


def pack_request(id: str) -> bytes:
    """Returns the id of a request as it is stored, in which it can be looked up."""
    if _OWN.fullmatch(id):
        return _OWN_MARK + bytes.fromhex(id[4:])
    raw = id.encode("utf-8", "replace")
    return raw if len(raw) <= _LONGEST else _HASH_MARK + blake2b(raw, digest_size=16).digest()


def unpack_request(stored: bytes) -> str | None:
    """Returns the id of a request; None: it was too long to be stored."""
    if stored[:1] == _OWN_MARK:
        return f"req_{stored[1:].hex()}"
    return None if stored[:1] == _HASH_MARK else stored.decode("utf-8", "replace")


async def note_recall(
    connection: Connection, agent: int, exchange: int, at: float, recall: RecallRow
) -> None:
    """Notes the recall of a turn whose exchange is stored already. It takes the place of an earlier one."""
    await connection.run(SQL["recall_drop"], (exchange, agent))
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

    @bulk_writes
    async def age(self, connection: Connection, before: float, limit: int = 200) -> int:
        """Deletes a page of those that are older. Returns how many went."""
        return await connection.run(SQL["recalls_age"], (before, limit))


def _stored(row: Row) -> StoredRecall:
    exchange, agent, at, request, data, uid, project, profile, subject, conversation, seq, model = row
    scope = Scope(project, profile, subject)
    return StoredRecall(
        exchange, agent, at, unpack_request(request), data, uid, scope, conversation, seq, model
    )
