"""Memory sections as they were sent in system prompts. An emptied section is rendered again for the next request."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from storage.database import Connection, Statement
from storage.records import SectionRecord, SentSection
from storage.sql.group import StoreGroup, as_locking_method, as_method, reads, writes
from storage.sql.statements import load

SQL = load("sections.sql")


async def find_section(connection: Connection, agent_row: int, section_row: int) -> SentSection | None:
    """Returns a section as it was sent; None: the section is gone."""
    row = await connection.fetch_row(SQL["get"], (section_row, agent_row))
    return None if row is None else SentSection(row[0], row[1], orjson.loads(row[2]))


async def add_section(connection: Connection, agent_row: int, section: SentSection) -> int:
    """Stores a section as it was sent. Returns its row."""
    values = (agent_row, section.text, orjson.dumps(section.known))
    return int(await connection.fetch_value(SQL["insert"], values))


async def empty_sections(connection: Connection, agent_row: int) -> None:
    """Empties all sections of an agent."""
    await _empty_selected(connection, SQL["of_agent"], (agent_row,))


async def _empty_section_of_conversation(
    connection: Connection, agent_row: int, conversation_row: int
) -> None:
    """Empties the section of the path with which a stored conversation ends."""
    await _empty_selected(connection, SQL["of_conversation"], (agent_row, conversation_row))


async def empty_sections_showing(connection: Connection, block_row: int) -> None:
    """Empties the sections of all agents that see a block."""
    await _empty_selected(connection, SQL["showing"], (block_row,))


async def _empty_selected(connection: Connection, selection: Statement, values: Sequence[object]) -> None:
    """Empties the sections that a statement selects. values: the values of the statement."""
    for section_row, agent_row, record in await connection.fetch_rows(selection, values):
        emptied_record = orjson.dumps(make_emptied_record(orjson.loads(record)))
        await connection.run(SQL["empty"], (section_row, agent_row, emptied_record))


def make_emptied_record(record: SectionRecord) -> SectionRecord:
    """Returns the `SentSection.known` of a section after it is emptied. record: its value before."""
    return {"blocks": {}, "tools": record.get("tools"), "epoch": -1}


class Sections(StoreGroup):
    """Memory sections, for callers without a transaction of their own."""

    find = reads(as_method(find_section))
    empty = writes(as_locking_method(empty_sections))
    empty_of_conversation = writes(as_locking_method(_empty_section_of_conversation))
