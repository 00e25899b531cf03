"""The folders that agents have attached. An agent with a folder has the tools that read files, too."""

from __future__ import annotations

from collections.abc import Sequence

from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.sql.agents_api.attached import attach, attach_all, detach, load_targets
from storage.sql.agents_api.definitions import touch_agent
from storage.sql.group import StoreGroup, writes


async def update_file_tools(connection: Connection, agent_row: int, file_tool_rows: Sequence[int]) -> None:
    """Attaches the tools that read files to an agent with a folder, and detaches them from an agent without one."""
    if await load_targets(connection, agent_row, DefinitionKind.FOLDER):
        await attach_all(connection, agent_row, DefinitionKind.TOOL, file_tool_rows)
    else:
        for tool_row in file_tool_rows:
            await detach(connection, agent_row, DefinitionKind.TOOL, tool_row)


class AttachedFolders(StoreGroup):
    """The folders of agents. `file_tool_rows` are the rows of the tools that read files."""

    @writes
    async def attach(
        self,
        connection: Connection,
        agent_row: int,
        folder_row: int,
        file_tool_rows: Sequence[int],
        *,
        at: float,
    ) -> None:
        """Attaches a folder to an agent, and the tools that read files. Raises: LimitExceeded, as `Attached.attach`.

        at: the present time, in seconds since the epoch.
        """
        if await attach(connection, agent_row, DefinitionKind.FOLDER, folder_row):
            await update_file_tools(connection, agent_row, file_tool_rows)
            await touch_agent(connection, agent_row, at)

    @writes
    async def detach(
        self,
        connection: Connection,
        agent_rows: Sequence[int],
        folder_row: int,
        file_tool_rows: Sequence[int],
        *,
        at: float,
    ) -> None:
        """Detaches a folder from agents. An agent without folders loses the tools that read files as well.

        at: the present time, in seconds since the epoch.
        """
        for agent_row in agent_rows:
            if await detach(connection, agent_row, DefinitionKind.FOLDER, folder_row):
                await update_file_tools(connection, agent_row, file_tool_rows)
                await touch_agent(connection, agent_row, at)
