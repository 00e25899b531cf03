"""The folders that agents have attached. An agent with a folder has the tools that read files, too."""

from __future__ import annotations

from collections.abc import Sequence

from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.sql.agents_api.attached import attach, attach_all, detach, load_targets
from storage.sql.agents_api.definitions import touch_agent
from storage.sql.group import StoreGroup, writes


async def match_tools(connection: Connection, agent_row: int, tools: Sequence[int]) -> None:
    """Attaches tools to an agent that has a folder attached, and detaches them from an agent that has none."""
    if await load_targets(connection, agent_row, DefinitionKind.FOLDER):
        await attach_all(connection, agent_row, DefinitionKind.TOOL, tools)
    else:
        for tool in tools:
            await detach(connection, agent_row, DefinitionKind.TOOL, tool)


class AttachedFolders(StoreGroup):
    """The folders of agents."""

    @writes
    async def attach(
        self, connection: Connection, agent_row: int, folder_row: int, tools: Sequence[int], *, at: float
    ) -> None:
        """Attaches a folder, and the tools that read files."""
        if await attach(connection, agent_row, DefinitionKind.FOLDER, folder_row):
            await match_tools(connection, agent_row, tools)
            await touch_agent(connection, agent_row, at)

    @writes
    async def detach(
        self,
        connection: Connection,
        agent_rows: Sequence[int],
        folder_row: int,
        tools: Sequence[int],
        *,
        at: float,
    ) -> None:
        """Detaches a folder from agents. An agent without folders loses the tools that read files as well."""
        for agent_row in agent_rows:
            if await detach(connection, agent_row, DefinitionKind.FOLDER, folder_row):
                await match_tools(connection, agent_row, tools)
                await touch_agent(connection, agent_row, at)
