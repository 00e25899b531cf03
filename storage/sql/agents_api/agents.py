"""Agents of the agents API: a memory with a definition, its blocks, tools and tags; and lists of agents.

They end by `Forgetting`, as every memory does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from storage.database import Connection, Row, Statement
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound, WriteConflict
from storage.listing import (
    MAX_TAGS,
    AgentChange,
    AgentDraft,
    AgentEntry,
    AgentFilter,
    DefinitionDraft,
    NamedAgent,
    Page,
    PageEnd,
)
from storage.records import API_ORIGIN, Agent
from storage.sql.agents import AGENT_COLUMNS, find_or_create_agent, make_agent_record
from storage.sql.agents_api.attached import attach_all, attach_only
from storage.sql.agents_api.attached_folders import update_file_tools
from storage.sql.agents_api.blocks import (
    add_block,
    attach_block,
    detach_block,
    get_block_entry,
    load_visible_blocks,
)
from storage.sql.agents_api.definitions import (
    add_definition,
    change_definition,
    find_definition,
    find_definitions_by_name,
    make_definition,
)
from storage.sql.filtered_pages import AFTER_ALL, BEFORE_ALL, fill_page
from storage.sql.group import StoreGroup, as_method, long_reads, reads, writes
from storage.sql.statements import load, load_column, load_rows, lower_ascii

SQL = load("agents_api/agents.sql")

# The most agents that are listed by their rows: a list of a statement has as many values.
_FEW_AGENTS = 64
# The prefix of the tag that all memories of a profile have.
_PROFILE_TAG_PREFIX = "profile:"
# Agents that a count reads at once.
_COUNT_PAGE_AGENTS = 1000


async def _get_agent_entry(connection: Connection, project: str, uid: str) -> AgentEntry:
    """Returns the agent with this public id: a defined agent, or a person's memory. Raises: NotFound."""
    row = await connection.fetch_row(SQL["get"], (uid, project))
    if row is None:
        raise NotFound(f"there is no agent {uid!r}")
    return _make_entry(row)


async def list_agents(
    connection: Connection, project: str, agent_filter: AgentFilter, page: Page[str]
) -> list[AgentEntry]:
    """Returns a page of a project's agents. page: with uids as cursors.

    Raises: NotFound if there is no agent with one of these uids.
    """
    low_uid, high_uid = page.ends
    first_end = await _find_position(connection, project, agent_filter.order, low_uid) or BEFORE_ALL
    last_end = await _find_position(connection, project, agent_filter.order, high_uid) or AFTER_ALL
    agent_list = await _open_list(connection, project, agent_filter, page.direction)
    return await fill_page(page, first_end, last_end, partial(agent_list.read, connection))


async def count_agents(connection: Connection, project: str, agent_filter: AgentFilter) -> int:
    """Returns how many agents of a project a filter selects."""
    agent_list = await _open_list(connection, project, agent_filter, "up")
    count = 0
    end: PageEnd | None = BEFORE_ALL
    while end is not None:
        entries, end = await agent_list.read(connection, end, AFTER_ALL, _COUNT_PAGE_AGENTS)
        count += len(entries)
    return count


class _AgentList(NamedTuple):
    """The agents of a project that a filter selects, in its order."""

    # The statement that reads a part of the list.
    statement: Statement
    # The filter.
    agent_filter: AgentFilter
    # The project.
    project: str
    # The values of the filter in the statement.
    filter_values: tuple[object, ...]
    # The rows among which the agents are, if they are few; None: they are among all agents of the project.
    few_rows: list[int] | None

    async def read(
        self, connection: Connection, low: PageEnd, high: PageEnd, size: int
    ) -> tuple[list[AgentEntry], PageEnd | None]:
        """Returns the agents of a part of the list, and its end, as `fill_page` needs them."""
        is_by_row = self.agent_filter.order == "created"
        # Only the order by time of creation is a range of an index. The others sort all agents of the project.
        rows_between = (low[1], high[1]) if is_by_row else (BEFORE_ALL[1], AFTER_ALL[1])
        values = (self.project, *rows_between, size, *self.filter_values)
        if not is_by_row:
            values += (*low, *high)
        if self.few_rows is not None:
            values += (self.few_rows,)
        rows = await connection.fetch_rows(self.statement, values)
        entries = [_make_entry(row[1:]) for row in rows]
        end = (rows[-1][0], entries[-1].agent.id) if len(rows) == size else None
        includes_hidden = self.agent_filter.includes_hidden
        return [entry for entry in entries if includes_hidden or not _is_hidden(entry)], end


async def _open_list(
    connection: Connection, project: str, agent_filter: AgentFilter, direction: str
) -> _AgentList:
    """Returns the list of a project's agents that a filter selects. direction: as `Page.direction`."""
    tags = sorted(set(agent_filter.tags))[:MAX_TAGS]
    min_tags = len(tags) if agent_filter.needs_all_tags else min(1, len(tags))
    identity_keys = sorted(set(agent_filter.identity_keys))[:MAX_TAGS]
    filter_values = (
        agent_filter.name, lower_ascii(agent_filter.text), tags, min_tags, agent_filter.stop,
        agent_filter.identity, identity_keys, len(identity_keys),
    )  # fmt: skip
    few_rows = await _find_few_agents(connection, _list_searches(project, agent_filter, tags, identity_keys))
    prefix = "" if few_rows is None else "few_"
    statement = SQL[f"{prefix}{agent_filter.order}_{direction}"]
    return _AgentList(statement, agent_filter, project, filter_values, few_rows)


class _AgentSearch(NamedTuple):
    """A statement that finds agents by one condition of a filter, by an index."""

    # The name of the statement. It returns rows of agents, some perhaps of agents that lack other conditions.
    statement: str
    # The project, and the value of the condition.
    values: tuple[object, ...]


def _list_searches(
    project: str, agent_filter: AgentFilter, tags: list[str], identity_keys: list[str]
) -> list[_AgentSearch]:
    """Returns a search for each condition of a filter that has an index. All agents of the list are in each."""
    searches: list[_AgentSearch] = []
    if agent_filter.name is not None:
        searches.append(_AgentSearch("with_name", (project, agent_filter.name)))
    if agent_filter.identity is not None:
        searches.append(_AgentSearch("with_identity", (project, agent_filter.identity)))
    if identity_keys:
        searches.append(_AgentSearch("with_identity_keys", (project, identity_keys)))
    # The agents with all tags are among those with any one of them.
    tag_groups = [[tag] for tag in tags] if agent_filter.needs_all_tags else [tags] if tags else []
    searches += [
        _AgentSearch("with_tags", (project, tag_group))
        for tag_group in tag_groups
        if not any(tag.startswith(_PROFILE_TAG_PREFIX) for tag in tag_group)
    ]
    return searches


async def _find_few_agents(connection: Connection, searches: Sequence[_AgentSearch]) -> list[int] | None:
    """Returns the rows that a search finds, so that a list need not read all people of the project.

    Returns None if each search finds more than `_FEW_AGENTS`, or there is no search.
    """
    for search in searches:
        agent_rows = await load_column(connection, SQL[search.statement], (*search.values, _FEW_AGENTS + 1))
        if len(agent_rows) <= _FEW_AGENTS:
            return agent_rows
    return None


async def make_agent(connection: Connection, draft: AgentDraft, *, at: float) -> AgentEntry:
    """Makes an agent of a draft, with all that is attached to it.

    Raises: NotFound: a block is not there; WriteConflict: a label is there twice; LimitExceeded: too many archives and
        folders.
    """
    project = draft.agent.scope.project
    agent = await find_or_create_agent(connection, draft.agent)
    definition = DefinitionDraft(
        project=project,
        kind=DefinitionKind.AGENT,
        uid=agent.uid,
        body=draft.body,
        name=draft.name,
        memory_row=agent.id,
    )
    await add_definition(connection, definition, at=at)
    for own in draft.own_blocks:
        await add_block(connection, project, own, at=at, origin=API_ORIGIN, owner=agent.id)
    for uid in dict.fromkeys(draft.blocks or ()):
        await attach_block(connection, agent.id, await get_block_entry(connection, project, uid))
    await attach_all(connection, agent.id, DefinitionKind.TOOL, draft.tools or ())
    await attach_all(connection, agent.id, DefinitionKind.FOLDER, draft.folders or ())
    await attach_all(connection, agent.id, DefinitionKind.IDENTITY, draft.identities or ())
    await _set_tags(connection, agent, draft.tags or ())
    return await _get_agent_entry(connection, project, agent.uid)


async def _set_tags(connection: Connection, agent: Agent, tags: Sequence[str]) -> None:
    """Gives an agent these tags and no others."""
    await connection.lock(agent.id)
    await remove_tags(connection, agent.id)
    for tag in tags:
        await connection.run(SQL["tag"], (agent.scope.project, tag, agent.id))


async def remove_tags(connection: Connection, agent_row: int) -> None:
    """Takes all tags from an agent."""
    await connection.run(SQL["untag"], (agent_row,))


async def change_agent(
    connection: Connection, entry: AgentEntry, change: AgentChange, *, at: float
) -> AgentEntry:
    """Changes an agent if its definition is still at the version that was found. A None in `change` changes nothing.

    Raises: WriteConflict, NotFound.
    """
    agent, definition = entry.agent, entry.definition
    if definition is None:
        raise WriteConflict(f"{entry.name!r} is a profile's: the settings file configures it")
    if change.blocks is not None:
        await connection.lock_sharers(agent.id)
        await _set_visible_blocks(connection, agent, change.blocks)
    if change.tools is not None:
        await attach_only(connection, agent.id, DefinitionKind.TOOL, change.tools)
    if change.folders is not None:
        await attach_only(connection, agent.id, DefinitionKind.FOLDER, change.folders)
        await update_file_tools(connection, agent.id, change.folder_tools)
    if change.identities is not None:
        await attach_only(connection, agent.id, DefinitionKind.IDENTITY, change.identities)
    if change.tags is not None:
        await _set_tags(connection, agent, change.tags)
    body = definition.body if change.body is None else change.body
    await change_definition(connection, definition, body, at=at, name=change.name)
    return await _get_agent_entry(connection, agent.scope.project, agent.uid)


class DefinedAgents(StoreGroup):
    """Agents of the agents API."""

    create = writes(as_method(make_agent))
    change = writes(as_method(change_agent))
    get = reads(as_method(_get_agent_entry))
    list_page = long_reads(as_method(list_agents))
    count = long_reads(as_method(count_agents))

    @reads
    async def load_memories(
        self, connection: Connection, project: str, agent_rows: Sequence[int]
    ) -> list[Agent]:
        """Returns the memories of a project with these rows, in this order. Missing memories are left out."""
        rows = await load_rows(connection, SQL["memories"], agent_rows, project)
        records = {row[0]: make_agent_record(row) for row in rows}
        return [records[agent_row] for agent_row in agent_rows if agent_row in records]

    @reads
    async def load_entries(self, connection: Connection, agent_rows: Sequence[int]) -> list[AgentEntry]:
        """Returns these agents, in the order in which they were made."""
        entries = [_make_entry(row) for row in await load_rows(connection, SQL["among"], agent_rows)]
        return sorted(entries, key=lambda entry: entry.agent.id)

    @reads
    async def list_newest(self, connection: Connection, project: str, limit: int) -> list[NamedAgent]:
        """Returns the agents that were defined last."""
        return [NamedAgent(*row) for row in await connection.fetch_rows(SQL["newest"], (project, limit))]

    @reads
    async def find_by_name_or_uid(
        self, connection: Connection, project: str, name: str, uid: str | None
    ) -> list[Definition]:
        """Returns the definition of the agent with this public id, or of at most two agents with this name.

        uid: the public id; None: the name is searched for.
        """
        if uid is None:
            return await find_definitions_by_name(connection, project, DefinitionKind.AGENT, name)
        definition = await find_definition(connection, project, DefinitionKind.AGENT, uid)
        return [] if definition is None else [definition]

    @reads
    async def load_tags(self, connection: Connection, agent_rows: Sequence[int]) -> dict[int, list[str]]:
        """Returns the tags of each of these agents, by name."""
        tags: dict[int, list[str]] = {agent_row: [] for agent_row in agent_rows}
        for agent_row, tag in await load_rows(connection, SQL["tags_of"], agent_rows):
            tags[agent_row].append(tag)
        return tags

    @reads
    async def list_tags(
        self,
        connection: Connection,
        project: str,
        page: Page[str],
        *,
        text: str | None = None,
    ) -> list[str]:
        """Returns a page of a project's tags by name, Z before A where the newest come first.

        page: the page; its cursors are tags.
        text: a part of the tags.
        """
        low, high = page.ends
        values = (project, low or "", high, lower_ascii(text), page.limit)
        return await load_column(connection, SQL[f"tags_{page.direction}"], values)


async def _set_visible_blocks(connection: Connection, agent: Agent, uids: Sequence[str]) -> None:
    """Has an agent see these blocks and no others."""
    project = agent.scope.project
    entries = [await get_block_entry(connection, project, uid) for uid in dict.fromkeys(uids)]
    block_rows = {entry.block.id for entry in entries}
    for entry in (await load_visible_blocks(connection, [agent.id]))[agent.id]:
        if entry.block.id not in block_rows:
            await detach_block(connection, agent, entry)
    for entry in entries:
        await attach_block(connection, agent.id, entry)


async def _find_position(connection: Connection, project: str, order: str, uid: str | None) -> PageEnd | None:
    """Returns where an agent stands in an order; None: no uid is given. Raises: NotFound: there is no such agent."""
    if uid is None:
        return None
    row = await connection.fetch_row(SQL[f"cursor_{order}"], (uid, project))
    if row is None:
        raise NotFound(f"there is no agent {uid!r}")
    return row[0], row[1]


def _is_hidden(entry: AgentEntry) -> bool:
    return entry.definition is not None and bool(entry.definition.body.get("hidden"))


def _make_entry(row: Row) -> AgentEntry:
    definition = None
    if row[AGENT_COLUMNS] is not None:
        definition = make_definition(row[AGENT_COLUMNS:])
    return AgentEntry(make_agent_record(row[:AGENT_COLUMNS]), definition)
