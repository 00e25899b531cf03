"""Recalls: records of the hits of turns' searches. A turn that searched its memory writes one (`RecallRow`).

A recall has the numbers of its hits (storage/recall_record.py). The texts of the hits are read when a recall is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from storage.commands import RecallRow
from storage.database import Connection, Row
from storage.recall_record import pack_request_id, unpack_request_id
from storage.records import Scope
from storage.sql.exchange_rows import ShownExchange, make_shown_exchanges
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.statements import load, load_rows

SQL = load("recalls.sql")


class StoredRecall(Struct, frozen=True):
    """A recall as it is stored, with its memory and its turn."""

    # The row of the turn's exchange.
    exchange_row: int
    # The row of the memory.
    agent_row: int
    # When the turn was written, in seconds since the epoch.
    at: float
    # The id of the recall's request, packed (storage/recall_record.py).
    packed_request: bytes
    # The record of the recall, packed (storage/recall_record.py).
    data: bytes
    # The public id of the memory.
    memory_uid: str
    # The scope of the memory.
    scope: Scope
    # The public id of the turn's conversation.
    conversation_uid: str
    # The number of the exchange's first message.
    seq: int
    # The model as it is stored with a turn: upstream/model.
    model: str

    @property
    def request(self) -> str | None:
        """The id of the recall's request; None: the id was too long to be stored."""
        return unpack_request_id(self.packed_request)


class FirstRecall(NamedTuple):
    """The recall of the first of several requests with a question."""

    # The id of the recall's request; None: the id was too long to be stored.
    request: str | None
    # The record of the recall, packed (storage/recall_record.py).
    data: bytes


async def note_recall(
    connection: Connection, agent_row: int, exchange_row: int, at: float, recall: RecallRow
) -> None:
    """Stores the recall of a turn, once its exchange is stored. An earlier recall of the exchange stays."""
    await connection.run(SQL["recall_add"], (exchange_row, agent_row, at, recall.request, recall.data))


async def delete_recall(connection: Connection, agent_row: int, exchange_row: int) -> None:
    """Deletes the recall of a turn."""
    await connection.run(SQL["recall_delete"], (exchange_row, agent_row))


class Recalls(StoreGroup):
    """Reads recalls, and deletes old ones. since: the time, in seconds since the epoch, before which none is read."""

    @reads
    async def find(
        self, connection: Connection, request: str, since: float, project: str | None = None
    ) -> list[StoredRecall]:
        """Returns the recalls of the requests with an id, the newest first.

        request: the id; requests of several memories may have it.
        project: the project of the memories; None: all projects.
        """
        rows = await connection.fetch_rows(
            SQL["recalls_of_request"], (pack_request_id(request), since, project)
        )
        return list(map(_make_recall, rows))

    @reads
    async def list_page(
        self, connection: Connection, agent_row: int, since: float, *, before: int, limit: int = 50
    ) -> list[StoredRecall]:
        """Returns a page of a memory's recalls, the newest first.

        before: the row of the last exchange on the previous page.
        """
        rows = await connection.fetch_rows(SQL["recalls_of_memory"], (agent_row, before, since, limit))
        return list(map(_make_recall, rows))

    @reads
    async def load_requests(
        self, connection: Connection, agent_row: int, exchange_rows: Sequence[int], since: float
    ) -> dict[int, str]:
        """Returns the ids of the requests that these exchanges answer, by their rows, as far as they are known."""
        rows = await load_rows(connection, SQL["recall_requests"], exchange_rows, agent_row, since)
        requests = {exchange_row: unpack_request_id(request) for exchange_row, request in rows}
        return {row: request_id for row, request_id in requests.items() if request_id is not None}

    @reads
    async def find_first_of_question(
        self, connection: Connection, agent_row: int, exchange_row: int, since: float
    ) -> FirstRecall | None:
        """Returns the recall for the question of an exchange; None: the recall is not known.

        The same question may have been asked again, with another reply.
        """
        row = await connection.fetch_row(SQL["recall_of_question"], (agent_row, exchange_row, since))
        return None if row is None else FirstRecall(unpack_request_id(row[0]), row[1])

    @long_reads
    async def load_exchanges(
        self, connection: Connection, agent_row: int, requests: Sequence[str], since: float, max_bytes: int
    ) -> dict[str, ShownExchange]:
        """Returns the exchanges that answer some requests, by their ids, as far as they are known.

        max_bytes: the most stored bytes of an exchange; longer exchanges are left out.
        """
        request_by_packed_id = {pack_request_id(request_id): request_id for request_id in requests}
        rows = await load_rows(
            connection, SQL["recall_exchanges"], [*request_by_packed_id], agent_row, since, max_bytes
        )
        shown_exchanges = make_shown_exchanges(row[1:] for row in rows)
        return {
            request_by_packed_id[bytes(row[0])]: shown_exchange
            for row, shown_exchange in zip(rows, shown_exchanges, strict=True)
        }

    async def delete_older(self, before: float) -> int:
        """Deletes the recalls from before a time. Returns their number."""
        return await self._delete_older(SQL["recalls_old"], SQL["recalls_age"], before)


def _make_recall(row: Row) -> StoredRecall:
    exchange_row, agent_row, at, request, data, uid, project, profile, subject, conversation, seq, model = row
    return StoredRecall(
        exchange_row=exchange_row,
        agent_row=agent_row,
        at=at,
        packed_request=request,
        data=data,
        memory_uid=uid,
        scope=Scope(project, profile, subject),
        conversation_uid=conversation,
        seq=seq,
        model=model,
    )
