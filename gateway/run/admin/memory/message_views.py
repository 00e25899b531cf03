"""Views of messages: the messages of an exchange, those around a message, and a message as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.run.admin.memory.exchange_messages import make_message_records
from gateway.run.admin.memory_by_uid import get_memory
from gateway.run.admin.memory_names import name_user_role
from gateway.run.admin.records.memory_records import MessageRecord
from gateway.run.admin.records.request_records import HitRecord
from storage.sql.store import Store


class MessagesAround(Struct, frozen=True):
    """Messages of a conversation, oldest first."""

    # The public id of the conversation.
    conversation: str
    # The messages.
    items: tuple[MessageRecord, ...]


class MessageViews(Struct, frozen=True):
    """Reads the messages of a memory. The methods raise UnknownId where there is no such memory or message."""

    store: Store

    async def read_exchange(self, project: str | None, uid: str, seq: int) -> list[MessageRecord]:
        """Returns the messages of an exchange, whole and in order. Each message of a user has a name.

        seq: the number of the first message of the exchange.
        """
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        rows = await pages.find_exchange_of_message(memory.id, seq)
        path = [] if rows is None else await pages.load_path(memory.id, rows.exchange_row, limit=1)
        return [
            replace(record, speaker=record.speaker or name_user_role(memory.scope))
            if record.role == "user"
            else record
            for exchange in path
            for record in make_message_records(exchange, None, is_whole=True)
        ]

    async def read_around(self, project: str | None, uid: str, seq: int, limit: int) -> MessagesAround:
        """Returns a message with messages before and after it on its path, oldest first. limit: the most messages."""
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        rows = await pages.find_exchange_of_message(memory.id, seq)
        if rows is None:
            raise _make_no_message_error()
        end_row = await pages.find_following(memory.id, *rows, steps=limit // 2)
        ref = (await pages.load_exchange_refs(memory.id, [rows.exchange_row])).get(rows.exchange_row)
        if end_row is None or ref is None:
            raise _make_no_message_error()
        path = await pages.load_path(memory.id, end_row, limit=2 * limit)
        records = [
            record
            for exchange in reversed(path)
            for record in make_message_records(exchange, None)
            if record.text is not None
        ]
        index = next((index for index, record in enumerate(records) if record.seq == seq), None)
        if index is None:
            raise _make_no_message_error()
        start = max(0, min(index - limit // 2, len(records) - limit))
        return MessagesAround(ref.conversation_uid, tuple(records[start : start + limit]))

    async def read_text(self, project: str | None, uid: str, id: str, seq: int) -> str:
        """Returns the whole text of a message of a conversation."""
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        conversation = await pages.find_conversation(memory.id, id)
        row = (
            None
            if conversation is None
            else await find_exchange_row(self.store, memory.id, conversation.id, seq)
        )
        if row is None:
            raise _make_no_message_error()
        (exchange,) = await pages.load_path(memory.id, row, limit=1)
        records = make_message_records(exchange, None, is_whole=True)
        text = next((record.text for record in records if record.seq == seq), None)
        if text is None:
            raise _make_no_message_error()
        return text

    async def load_speakers(self, project: str | None, uid: str, hits: Iterable[HitRecord]) -> dict[int, str]:
        """Returns the speakers of the messages among hits, by the messages' numbers.

        A speaker without a name is called by the name of the memory's user, else by the role.
        """
        memory = await get_memory(self.store, project, uid)
        seqs = sorted({hit.seq for hit in hits if hit.kind == "message" and hit.text is not None})
        messages = await self.store.recall.load(memory.id, seqs)
        names = {"user": name_user_role(memory.scope)}
        return {
            seq: message.speaker or names.get(message.role, message.role) for seq, message in messages.items()
        }


async def find_exchange_row(store: Store, agent_row: int, conversation_row: int, seq: int) -> int | None:
    """Returns the row of the exchange with a message of a conversation; None: the conversation has no such message.

    A forked conversation also has the messages of the conversations from which it was forked.
    """
    rows = await store.memory_pages.find_exchange_of_message(agent_row, seq)
    if rows is None or rows.conversation_row not in await store.messages.load_past(
        agent_row, conversation_row
    ):
        return None
    return rows.exchange_row


def _make_no_message_error() -> UnknownId:
    return UnknownId("There is no such message.")
