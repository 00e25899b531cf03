"""Definitions: the documents of the agents API.

The body of each version is a row of its own, a text; the texts of earlier versions are emptied. Changes are
compare-and-set on the version.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from storage.database import Connection, Row
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound, RecordChanged, WriteConflict
from storage.listing import DefinitionDraft, Page
from storage.records import Agent
from storage.sql.agents import find_or_create_agent
from storage.sql.epochs import lock_memory
from storage.sql.group import StoreGroup, as_method, bulk_writes, long_reads, reads, writes
from storage.sql.statements import load, load_rows, lower_ascii

SQL = load("agents_api/definitions.sql")

# The definitions that one read of `iterate` returns. Filters of the caller may leave few of them.
_READ_SIZE = 200

# The kinds with names that are unique in a project, with their nouns.
_NAMED_KINDS = {
    DefinitionKind.TOOL: "a tool",
    DefinitionKind.MCP: "an MCP server",
    DefinitionKind.IDENTITY: "an identity",
}


class DefinedMemory(NamedTuple):
    """A memory that is an archive or a folder, with its definition."""

    agent: Agent
    definition: Definition


async def add_definition(connection: Connection, draft: DefinitionDraft, *, at: float) -> Definition:
    """Adds a definition.

    Raises: WriteConflict if its public id is taken, or its name, where names of its kind are unique.
    """
    definition_row = await insert_definition(connection, draft, created=at, updated=at)
    if definition_row is None and draft.kind in _NAMED_KINDS:
        raise _make_name_taken_error(draft.kind, draft.name)
    if definition_row is None:
        raise WriteConflict(f"the {draft.kind} {draft.uid!r} is there already")
    return await get_definition(connection, definition_row)


async def insert_definition(
    connection: Connection, draft: DefinitionDraft, *, created: float, updated: float
) -> int | None:
    """Adds a definition with its first text. Returns its row.

    Returns None if the public id is taken, or the name, for kinds with unique names.
    """
    values = (draft.uid, draft.project, draft.kind, draft.memory_row, created, updated, draft.name)
    definition_row: int | None = await connection.fetch_value(SQL["insert"], values)
    if definition_row is not None:
        text_row = await _insert_text(connection, definition_row, 1, draft.body, updated)
        await connection.run(SQL["text_set"], (text_row, definition_row))
    return definition_row


async def _insert_text(
    connection: Connection, definition_row: int, version: int, body: Mapping[str, Any], at: float
) -> int:
    """Adds the text of a version of a definition. Returns its row."""
    return int(
        await connection.fetch_value(SQL["text_insert"], (definition_row, version, at, orjson.dumps(body)))
    )


async def get_definition(connection: Connection, definition_row: int) -> Definition:
    """Returns a definition by its row. Raises: NotFound."""
    row = await connection.fetch_row(SQL["by_row"], (definition_row,))
    if row is None:
        raise NotFound(f"there is no definition {definition_row}")
    return make_definition(row)


async def find_definition(
    connection: Connection, project: str, kind: DefinitionKind, uid: str
) -> Definition | None:
    """Returns the definition of a project with this public id."""
    row = await connection.fetch_row(SQL["by_uid"], (uid, project, kind))
    return None if row is None else make_definition(row)


async def find_definitions_by_name(
    connection: Connection, project: str, kind: DefinitionKind, name: str
) -> list[Definition]:
    """Returns the definitions with this name, oldest first, at most two. Agents may share a name."""
    rows = await connection.fetch_rows(SQL["by_name"], (project, kind, name))
    return [make_definition(row) for row in rows]


async def change_definition(
    connection: Connection,
    definition: Definition,
    body: dict[str, Any],
    *,
    at: float,
    name: str | None = None,
) -> Definition:
    """Changes a definition if it is still at the version that was found. name: the new name; None: the name stays.

    Raises: RecordChanged if the definition was changed since; WriteConflict if the name is taken; NotFound.
    """
    name = definition.name if name is None else name
    kind = definition.kind
    has_new_name = kind in _NAMED_KINDS and name != definition.name
    if has_new_name and await find_definitions_by_name(connection, definition.project, kind, name):
        raise _make_name_taken_error(kind, name)
    text_row = await _insert_text(connection, definition.id, definition.version + 1, body, at)
    if not await connection.run(SQL["text_replace"], (text_row, at, name, definition.id, definition.version)):
        stored_definition = await get_definition(connection, definition.id)
        raise RecordChanged(
            f"the {kind} {definition.uid!r} is at version {stored_definition.version}, not {definition.version}: "
            "it was changed since"
        )
    await connection.run(SQL["texts_empty"], (definition.id, text_row))
    return await get_definition(connection, definition.id)


async def put_definition(connection: Connection, draft: DefinitionDraft, *, at: float) -> Definition:
    """Adds a definition, or changes the stored definition with its public id."""
    definition = await find_definition(connection, draft.project, draft.kind, draft.uid)
    if definition is None:
        return await add_definition(connection, draft, at=at)
    return await change_definition(connection, definition, draft.body, at=at, name=draft.name)


async def remove_definition(connection: Connection, definition_row: int) -> None:
    """Deletes a definition with its texts."""
    await connection.run(SQL["texts_drop"], (definition_row,))
    await connection.run(SQL["delete"], (definition_row,))


async def remove_definitions(connection: Connection, memory_row: int) -> None:
    """Deletes the definitions that belong to a memory."""
    for (definition_row,) in await connection.fetch_rows(SQL["rows_of_memory"], (memory_row,)):
        await remove_definition(connection, definition_row)


async def touch_agent(connection: Connection, agent_row: int, at: float) -> None:
    """Raises the version of an agent's definition: something that belongs to it has changed.

    agent_row: the row of its memory.
    """
    await connection.run(SQL["version_raise"], (at, agent_row))


async def create_memory(
    connection: Connection, draft: Agent, kind: DefinitionKind, name: str, body: dict[str, Any], *, at: float
) -> DefinedMemory:
    """Makes a memory without conversations, an archive or a folder, and its definition."""
    agent = await find_or_create_agent(connection, draft)
    definition = DefinitionDraft(
        project=draft.scope.project, kind=kind, uid=agent.uid, body=body, name=name, memory_row=agent.id
    )
    return DefinedMemory(agent, await add_definition(connection, definition, at=at))


class Definitions(StoreGroup):
    """Reads and writes definitions of a caller's project. Definitions of other projects are not found."""

    add = writes(as_method(add_definition))
    change = writes(as_method(change_definition))
    create_memory = writes(as_method(create_memory))
    find = reads(as_method(find_definition))
    find_by_name = reads(as_method(find_definitions_by_name))
    remove = writes(as_method(remove_definition))

    @writes
    async def bind(self, connection: Connection, definition_row: int, memory_row: int) -> int:
        """Has a definition belong to a memory, unless it has one. Returns the row of its memory.

        Raises: NotFound; StaleWrite if the memory is gone.
        """
        await lock_memory(connection, memory_row)
        await connection.run(SQL["bind"], (memory_row, definition_row))
        return (await get_definition(connection, definition_row)).memory_row

    @bulk_writes
    async def remove_unbound(
        self, connection: Connection, project: str | None, before: float, limit: int
    ) -> int:
        """Deletes conversations with items that belong to no memory. Returns their number; 0: none are left.

        project: the project of the conversations; None: all projects.
        before: the time since which they have not changed, in seconds since the epoch.
        limit: the most conversations to delete.
        """
        rows = await connection.fetch_rows(SQL["conversations_unbound"], (before, project, limit))
        for (definition_row,) in rows:
            await remove_definition(connection, definition_row)
        return len(rows)

    @reads
    async def get(self, connection: Connection, project: str, kind: DefinitionKind, uid: str) -> Definition:
        """Returns the definition with this public id. Raises: NotFound."""
        definition = await find_definition(connection, project, kind, uid)
        if definition is None:
            raise NotFound(f"there is no {kind} {uid!r}")
        return definition

    @reads
    async def are_current(self, connection: Connection, versions: Set[tuple[int, int]]) -> bool:
        """Returns whether definitions still have these versions. versions: the row and the version of each."""
        rows = await load_rows(
            connection, SQL["versions"], [definition_row for definition_row, _ in versions]
        )
        return {(definition_row, version) for definition_row, version in rows} == versions

    @reads
    async def load_by_rows(
        self, connection: Connection, definition_rows: Sequence[int]
    ) -> dict[int, Definition]:
        """Returns definitions by their rows, as far as they are there."""
        rows = await load_rows(connection, SQL["by_rows"], definition_rows)
        return {row[0]: make_definition(row) for row in rows}

    @reads
    async def find_by_memories(
        self, connection: Connection, kind: DefinitionKind, memory_rows: Sequence[int]
    ) -> dict[int, Definition]:
        """Returns the definitions of this kind that these memories have, by the memories' rows."""
        rows = await load_rows(connection, SQL["by_memories"], memory_rows, kind)
        return {definition.memory_row: definition for definition in map(make_definition, rows)}

    @long_reads
    async def list_page(
        self,
        connection: Connection,
        project: str,
        kind: DefinitionKind,
        page: Page[int],
        *,
        name: str | None = None,
        name_part: str | None = None,
    ) -> list[Definition]:
        """Returns a page of a project's definitions of a kind.

        name: the whole name.
        name_part: a part of the name, in any case.
        """
        values = (project, *page.bounds, kind, name, lower_ascii(name_part), page.limit)
        return [
            make_definition(row) for row in await connection.fetch_rows(SQL[f"list_{page.direction}"], values)
        ]

    async def iterate(
        self,
        project: str,
        kind: DefinitionKind,
        page: Page[int],
        *,
        name: str | None = None,
        name_part: str | None = None,
    ) -> AsyncIterator[Definition]:
        """Yields a project's definitions of a kind between the ends of a page. The limit of the page is ignored.

        name, name_part: as in `list_page`.
        """
        page = replace(page, limit=_READ_SIZE)
        while True:
            definitions = await self.list_page(project, kind, page, name=name, name_part=name_part)
            for definition in definitions:
                yield definition
            if len(definitions) < page.limit:
                return
            page = replace(page, after=definitions[-1].id)

    @reads
    async def count(self, connection: Connection, project: str, kind: DefinitionKind) -> int:
        """Returns how many definitions of a kind a project has."""
        return int(await connection.fetch_value(SQL["count"], (project, kind)))


def make_definition(row: Row) -> Definition:
    """Returns the record of a row of `{definition}`."""
    definition_row, uid, project, kind, memory_row, name, version, created, updated, body = row
    return Definition(
        id=definition_row,
        uid=uid,
        project=project,
        kind=DefinitionKind(kind),
        memory_row=memory_row,
        name=name,
        version=version,
        created=created,
        updated=updated,
        body=orjson.loads(body),
    )


def _make_name_taken_error(kind: DefinitionKind, name: str) -> WriteConflict:
    return WriteConflict(f"there is {_NAMED_KINDS[kind]} named {name!r} already")
