"""The export of one memory: as JSON lines, as `mnemogate memory export` writes it, or as parts of a readable page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any, Literal, NamedTuple

import orjson
from msgspec import Struct

from gateway.run.admin.list_page import MAX_PAGE_LIMIT
from gateway.run.admin.memory.exchange_messages import make_message_records
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.records.memory_records import MessageRecord, SourceRecord
from gateway.run.admin.transfer.transfer_operations import PAGE_LINES, ExportPosition, TransferOperations
from storage.records import Agent
from storage.sql.store import Store
from storage.transfer_commands import TransferPart, TransferRecord

# The kinds of parts of a readable export, in the order of reading.
PartName = Literal["head", "blocks", "facts", "passages", "messages", "foot"]


class ReadablePart(NamedTuple):
    """A part of a readable export."""

    name: PartName
    # head: a MemoryRecord. blocks, facts and passages: a tuple of records. messages: a ConversationPart. foot: None.
    record: Any


class ConversationPart(Struct, frozen=True):
    """Messages of one conversation, oldest first."""

    # True: the previous part has messages of another conversation, or none.
    begins: bool
    items: tuple[MessageRecord, ...]


class MemoryExport(Struct, frozen=True):
    """Exports memories."""

    store: Store
    transfer: TransferOperations
    views: MemoryViews

    async def render_line_pages(self, project: str | None, uid: str) -> AsyncIterator[list[bytes]]:
        """Returns the pages of an export, each a list of lines without their ends.

        project: the only project that the caller sees; None: all projects.

        Raises: UnknownId: there is no such memory. While pages are read, BadRequest: the memory was forgotten.
        """
        return self._read_pages(await get_agent(self.store, project, uid))

    async def render_readable_parts(self, project: str | None, uid: str) -> AsyncIterator[ReadablePart]:
        """Returns a memory for people to read, as parts in the order of reading.

        There may be none or several parts of facts, of passages and of messages.

        project: the only project that the caller sees; None: all projects.

        Raises: as `render_line_pages`.
        """
        return self._read_parts(project, await get_agent(self.store, project, uid))

    async def _read_pages(self, agent: Agent) -> AsyncIterator[list[bytes]]:
        position: ExportPosition | None = None
        while True:
            page = await self.transfer.read_page(agent, position)
            yield [orjson.dumps(line) for line in page.lines]
            position = page.next
            if position is None:
                return

    async def _read_parts(self, project: str | None, agent: Agent) -> AsyncIterator[ReadablePart]:
        """Yields the parts of a readable export. Raises: BadRequest: the memory was forgotten meanwhile."""
        page = await self.views.show(project, agent.uid)
        yield ReadablePart("head", page.memory)
        yield ReadablePart("blocks", page.blocks)
        after: str | None = None
        while True:
            facts = await self.views.facts.list_page(
                project, agent.uid, includes_ended=True, after=after, limit=MAX_PAGE_LIMIT
            )
            yield ReadablePart("facts", facts.items)
            after = facts.next
            if after is None:
                break
        async for records in self._read_records(agent, "passage"):
            rows = [record.values for record in records]
            passages = tuple(SourceRecord("passage", row["seq"], row["text"], row["at"]) for row in rows)
            yield ReadablePart("passages", passages)
        last_conversation: str | None = None
        async for records in self._read_records(agent, "exchange"):
            for conversation, group in groupby(records, lambda record: str(record.values["conversation"])):
                items = tuple(
                    message
                    for record in group
                    if record.exchange is not None
                    for message in make_message_records(record.exchange, None, is_whole=True)
                    if message.text
                )
                if items:
                    part = ConversationPart(conversation != last_conversation, items)
                    yield ReadablePart("messages", part)
                    last_conversation = conversation
        await self.transfer.check_not_forgotten(agent)
        yield ReadablePart("foot", None)

    async def _read_records(self, agent: Agent, part: TransferPart) -> AsyncIterator[list[TransferRecord]]:
        reader = self.store.export_reader
        export_end = await reader.find_end(agent)
        last_row = 0
        while page := await reader.load_page(agent, part, last_row, PAGE_LINES, export_end):
            yield [exported.record for exported in page]
            last_row = page[-1].cursor
