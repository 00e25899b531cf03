"""Definitions: the documents that are made over REST, and agents as the agents API lists them.

A definition's text lies in rows that are appended; the older one is emptied once a newer one has taken its place.
Changes are compare-and-set on the version.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence, Set
from typing import Any

import orjson

from storage.database import Connection, Row
from storage.errors import NotFound, Overtaken, WriteConflict
from storage.listing import MOST_TAGS, AgentEntry, AgentFilter, Page
from storage.records import Agent, Definition, DefinitionKind, Scope
from storage.sql.group import Group, alone, long_reads, reads, writes
from storage.sql.patterns import part_of
from storage.sql.statements import load, rows_of

SQL = load("agents_api/definitions.sql")

# The kinds of which a project has each name once.
_CALLED = {
    DefinitionKind.TOOL: "a tool",
    DefinitionKind.MCP: "an MCP server",
    DefinitionKind.IDENTITY: "an identity",
}
# The fewest rows that are read at once of a list from which rows may drop out.
_FEW = 20
_MANY = 1000  # agents that a count reads at once
COLUMNS = 10  # of an agent, in front of those of its definition
_FIRST, _LAST = (-1.0, -1), (1e300, 2**62)


async def add_definition(
    connection: Connection,
    project: str,
    kind: DefinitionKind,
    uid: str,
    name: str,
    body: dict[str, Any],
    *,
    at: float,
    memory: int = 0,
) -> Definition:
    """Adds a definition. Raises: WriteConflict: the project has one of this name, and the kind is called by name."""
    id = await connection.value(SQL["insert"], (uid, project, kind, memory, at, name))
    if id is None:
        raise _taken(kind, name)
    text = await connection.value(SQL["text_insert"], (id, 1, at, orjson.dumps(body)))
    await connection.run(SQL["point"], (text, id))
    return await get_definition(connection, id)


def _taken(kind: DefinitionKind, name: str) -> WriteConflict:
    what = _CALLED[kind]
    return WriteConflict(f"there is {what} named {name!r} already")


async def get_definition(connection: Connection, id: int) -> Definition:
    """Returns a definition by its row. Raises: NotFound."""
    row = await connection.row(SQL["by_id"], (id,))
    if row is None:
        raise NotFound(f"there is no definition {id}")
    return make_definition(row)


async def find_definition(
    connection: Connection, project: str, kind: DefinitionKind, uid: str
) -> Definition | None:
    """Returns the definition of a project with this public name."""
    row = await connection.row(SQL["get"], (uid, project, kind))
    return None if row is None else make_definition(row)


async def change_definition(
    connection: Connection, found: Definition, body: dict[str, Any], *, at: float, name: str | None = None
) -> Definition:
    """Changes a definition if it is still at the version that was found. name: None: as it is.

    Raises: Overtaken: it was changed since; WriteConflict: the name is taken; NotFound.
    """
    name = found.name if name is None else name
    same = (found.project, found.kind, name, 1)
    if found.kind in _CALLED and name != found.name and await connection.row(SQL["named"], same) is not None:
        raise _taken(found.kind, name)
    text = await connection.value(SQL["text_insert"], (found.id, found.version + 1, at, orjson.dumps(body)))
    if not await connection.run(SQL["advance"], (text, at, name, found.id, found.version)):
        now = await get_definition(connection, found.id)
        raise Overtaken(
            f"the {found.kind} {found.uid!r} is at version {now.version}, not {found.version}: it was changed since"
        )
    await connection.run(SQL["texts_empty"], (found.id, text))
    return await get_definition(connection, found.id)


async def put_definition(
    connection: Connection,
    project: str,
    kind: DefinitionKind,
    uid: str,
    name: str,
    body: dict[str, Any],
    *,
    at: float,
    memory: int = 0,
) -> Definition:
    """Adds a definition, or changes the one that has its public name."""
    found = await find_definition(connection, project, kind, uid)
    if found is None:
        return await add_definition(connection, project, kind, uid, name, body, at=at, memory=memory)
    return await change_definition(connection, found, body, at=at, name=name)


async def remove_definition(connection: Connection, id: int) -> None:
    """Deletes a definition with its texts."""
    await connection.run(SQL["texts_drop"], (id,))
    await connection.run(SQL["delete"], (id,))


async def remove_definitions(connection: Connection, memory: int) -> None:
    """Deletes what is defined of a memory."""
    for (id,) in await connection.rows(SQL["of_memory"], (memory,)):
        await remove_definition(connection, id)


async def touch_agent(connection: Connection, agent: int, at: float) -> None:
    """Raises the version of an agent's definition: something that belongs to it has changed."""
    await connection.run(SQL["touch"], (at, agent))


async def find_agent_entry(connection: Connection, project: str, uid: str) -> AgentEntry:
    """Returns the agent with this public name: one that is defined, or a person's memory. Raises: NotFound."""
    row = await connection.row(SQL["agent_get"], (uid, project))
    if row is None:
        raise NotFound(f"there is no agent {uid!r}")
    return _entry(row)


async def list_agents(
    connection: Connection,
    project: str,
    wanted: AgentFilter,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = 50,
    newest_first: bool = True,
) -> list[AgentEntry]:
    """Returns a page of a project's agents. after, before: public names, in the order asked for.

    Raises: NotFound: there is no such agent to go on from.
    """
    first = await _place(connection, project, wanted.order, before if newest_first else after) or _FIRST
    last = await _place(connection, project, wanted.order, after if newest_first else before) or _LAST
    tags = sorted(set(wanted.tags))[:MOST_TAGS]
    need = len(tags) if wanted.all_tags else min(1, len(tags))
    keys = sorted(set(wanted.identity_keys))[:MOST_TAGS]
    way = "down" if newest_first else "up"
    found: list[AgentEntry] = []
    while len(found) < limit:
        size = max(limit - len(found), _FEW)
        # The order by row is a range of an index; the others are made of all rows.
        rows_between = (first[1], last[1]) if wanted.order == "created" else (_FIRST[1], _LAST[1])
        values: tuple[object, ...] = (
            project, *rows_between, size, wanted.name, part_of(wanted.text), tags, need, wanted.stop,
            wanted.identity, keys, len(keys),
        )  # fmt: skip
        if wanted.order != "created":
            values += (*first, *last)
        rows = await connection.rows(SQL[f"{wanted.order}_{way}"], values)
        entries = [_entry(row) for row in rows]
        found += [e for e in entries if wanted.hidden or not _is_hidden(e)]
        if len(rows) < size:
            break
        edge = await _place(connection, project, wanted.order, entries[-1].agent.uid)
        assert edge is not None
        first, last = (first, edge) if newest_first else (edge, last)
    return found[:limit]


class Definitions(Group):
    """Definitions, and agents. project: the caller's; what another one has is not found."""

    agent = reads(alone(find_agent_entry))
    agents = long_reads(alone(list_agents))
    add = writes(alone(add_definition))
    change = writes(alone(change_definition))
    find = reads(alone(find_definition))

    @reads
    async def get(self, connection: Connection, project: str, kind: DefinitionKind, uid: str) -> Definition:
        """Returns the definition with this public name. Raises: NotFound."""
        found = await find_definition(connection, project, kind, uid)
        if found is None:
            raise NotFound(f"there is no {kind} {uid!r}")
        return found

    @reads
    async def are_of(self, connection: Connection, versions: Set[tuple[int, int]]) -> bool:
        """Returns whether definitions are there, and of these versions. versions: (row, version) of each."""
        rows = await rows_of(connection, SQL["versions"], [id for id, _ in versions])
        return {(id, version) for id, version in rows} == versions

    @reads
    async def named(
        self, connection: Connection, project: str, kind: DefinitionKind, name: str, limit: int = 2
    ) -> list[Definition]:
        """Returns the definitions with this name, oldest first. Of agents there may be several."""
        rows = await connection.rows(SQL["named"], (project, kind, name, limit))
        return [make_definition(row) for row in rows]

    @reads
    async def several(self, connection: Connection, ids: Sequence[int]) -> dict[int, Definition]:
        """Returns definitions by their rows, as far as they are there."""
        rows = await rows_of(connection, SQL["several"], ids)
        return {row[0]: make_definition(row) for row in rows}

    @reads
    async def of_memories(
        self, connection: Connection, kind: DefinitionKind, memories: Sequence[int]
    ) -> dict[int, Definition]:
        """Returns the definitions of a kind that memories have, by their rows."""
        rows = await rows_of(connection, SQL["of_memories"], memories, kind)
        return {each.memory: each for each in map(make_definition, rows)}

    @reads
    async def memories(
        self, connection: Connection, project: str, ids: Sequence[int]
    ) -> builtins.list[Agent]:
        """Returns memories of a project by their rows, in this order, as far as they are there."""
        rows = await rows_of(connection, SQL["memories"], ids, project)
        found = {row[0]: make_agent_record(row) for row in rows}
        return [found[id] for id in ids if id in found]

    @reads
    async def agents_among(self, connection: Connection, agents: Sequence[int]) -> builtins.list[AgentEntry]:
        """Returns these agents, in the order in which they were made."""
        entries = [_entry(row) for row in await rows_of(connection, SQL["agents_among"], agents)]
        return sorted(entries, key=lambda entry: entry.agent.id)

    @long_reads
    async def list(
        self,
        connection: Connection,
        project: str,
        kind: DefinitionKind,
        page: Page,
        *,
        name: str | None = None,
        text: str | None = None,
    ) -> builtins.list[Definition]:
        """Returns a page of a project's definitions of a kind.

        name: exactly
        text: a part of the name.
        """
        values = (project, *page.bounds, kind, name, part_of(text), page.limit)
        return [make_definition(row) for row in await connection.rows(SQL[f"list_{page.way}"], values)]

    @long_reads
    async def count(self, connection: Connection, project: str, wanted: AgentFilter) -> int:
        """Returns how many agents a project has that are asked for."""
        count, after = 0, None
        while page := await list_agents(
            connection, project, wanted, after=after, limit=_MANY, newest_first=False
        ):
            count, after = count + len(page), page[-1].agent.uid
        return count

    @reads
    async def count_of(self, connection: Connection, project: str, kind: DefinitionKind) -> int:
        """Returns how many definitions of a kind a project has."""
        return int(await connection.value(SQL["count_of"], (project, kind)))

    @reads
    async def newest(
        self, connection: Connection, project: str, limit: int
    ) -> builtins.list[tuple[str, str, float]]:
        """Returns (name, public name, when it was made) of the agents that were defined last."""
        return [(row[0], row[1], row[2]) for row in await connection.rows(SQL["newest"], (project, limit))]


async def _place(
    connection: Connection, project: str, order: str, uid: str | None
) -> tuple[float, int] | None:
    """Returns where an agent stands in an order. Raises: NotFound."""
    if uid is None:
        return None
    row = await connection.row(SQL[f"place_{order}"], (uid, project))
    if row is None:
        raise NotFound(f"there is no agent {uid!r}")
    return row[0], row[1]


def _is_hidden(entry: AgentEntry) -> bool:
    return entry.definition is not None and bool(entry.definition.body.get("hidden"))


def make_definition(row: Row) -> Definition:
    """Makes the record of a row of `{definition}`."""
    id, uid, project, kind, memory, name, version, created, updated, body = row
    return Definition(
        id, uid, project, DefinitionKind(kind), memory, name, version, created, updated, orjson.loads(body)
    )


def make_agent_record(row: Row) -> Agent:
    """Makes the record of the first `COLUMNS` columns of `{entry}`."""
    id, uid, project, profile, subject, *rest = row
    return Agent(id, uid, Scope(project, profile, subject), *rest)


def _entry(row: Row) -> AgentEntry:
    return AgentEntry(
        make_agent_record(row[:COLUMNS]), make_definition(row[COLUMNS:]) if row[COLUMNS] is not None else None
    )
