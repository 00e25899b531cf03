"""MCP servers of a project, and the tools of these servers as definitions of the project."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.mcp_server import McpServerConfig, McpToolSource, make_secrets
from gateway.agents.registry.tool_registry import ToolRegistry, ToolView
from gateway.agents.tools.mcp import MAX_TOOLS, ListedTool, McpFault, McpServers
from gateway.agents.tools.secret import SecretCipher, SecretFault
from gateway.core import ids
from gateway.core.definition import McpServerDefinition, ToolDefinition
from gateway.errors import BadRequest, Conflict, make_sentence
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound, StoreError, WriteConflict
from storage.listing import DefinitionDraft, Page
from storage.sql.store import Store

_NO_SERVER = McpServerDefinition()
# The beginning of the tag of a tool that names the tool's server.
_SERVER_TAG = "mcp:"


class McpRegistry(Struct, frozen=True):
    """MCP servers of all projects.

    Each method takes the caller's project, and finds only servers of that project. Besides the errors that a method
    names, it raises errors of the store: NotFound, WriteConflict, StoreUnavailable.
    """

    # The store with the definitions of servers.
    store: Store
    # The tools of projects, to which the tools of a server are added.
    project_tools: ToolRegistry
    # Asks servers for their tools.
    servers: McpServers
    # Encrypts the secrets of servers.
    cipher: SecretCipher
    # Returns seconds since the epoch.
    now: Callable[[], float]

    async def get(self, project: str, uid: str) -> Definition:
        """Returns a server by its public id."""
        return await self.store.definitions.get(project, DefinitionKind.MCP, uid)

    async def create(self, project: str, name: str, config: McpServerConfig) -> Definition:
        """Makes a server, and its tools.

        Raises: BadRequest if the server cannot be asked, or its secrets cannot be stored; WriteConflict if the name is
            taken.
        """
        uid = ids.new_uid()
        encrypted, secrets = config.find_retained_secrets(_NO_SERVER), config.list_new_secrets()
        with _translate_secret_faults():
            encrypted |= await self.cipher.encrypt(project, uid, secrets)
        server, listed_tools = await self._fetch_tools(replace(config.definition, secrets=encrypted), secrets)
        draft = DefinitionDraft(project, DefinitionKind.MCP, uid, server.dump(), name)
        definition = await self.store.definitions.add(draft, at=self.now())
        try:
            await self._sync_tools(project, definition, listed_tools)
        except BaseException:
            # Otherwise the name would be taken when the caller tries again.
            with suppress(StoreError):
                await self.delete(project, uid)
            raise
        return definition

    async def change(
        self,
        project: str,
        uid: str,
        name: str | None,
        edit: Callable[[McpServerDefinition], McpServerConfig] | None,
    ) -> Definition:
        """Changes a server, and its tools with it.

        name: the new name of the server; None: the name stays.
        edit: the function that returns the new configuration for the stored definition; None: the configuration stays.

        Raises: the errors of `create`.
        """
        definition = await self.get(project, uid)
        before = McpServerDefinition.of(definition.body)
        config = McpServerConfig(before) if edit is None else edit(before)
        encrypted, secrets = config.find_retained_secrets(before), config.list_new_secrets()
        with _translate_secret_faults():
            secrets |= await self.cipher.decrypt(definition, encrypted)
            encrypted |= await self.cipher.encrypt(project, uid, config.list_new_secrets())
        server, listed_tools = await self._fetch_tools(replace(config.definition, secrets=encrypted), secrets)
        changed = await self.store.definitions.change(definition, server.dump(), at=self.now(), name=name)
        await self._sync_tools(project, changed, listed_tools)
        return changed

    async def delete(self, project: str, uid: str) -> None:
        """Deletes a server with its tools, which all agents lose."""
        definition = await self.get(project, uid)
        for tool in await self.list_tools(project, uid):
            await self.project_tools.delete(project, tool.uid)
        # Servers are attached to no agent, so this deletes the definition alone.
        await self.store.attached.delete(definition, at=self.now())

    async def refresh(self, project: str, uid: str) -> Sequence[ToolView]:
        """Asks a server for its tools again. Returns the tools. Raises: BadRequest if the server cannot be asked."""
        definition = await self.get(project, uid)
        before = McpServerDefinition.of(definition.body)
        with _translate_secret_faults():
            secrets = await self.cipher.decrypt(definition, before.secrets)
        server, listed_tools = await self._fetch_tools(before, secrets)
        if server != before:
            definition = await self.store.definitions.change(definition, server.dump(), at=self.now())
        await self._sync_tools(project, definition, listed_tools)
        return await self.list_tools(project, uid)

    async def list_tools(self, project: str, uid: str) -> Sequence[ToolView]:
        """Returns a server's stored tools, which it had when it was asked last."""
        await self.get(project, uid)
        all_tools = self.project_tools.select(project, Page(newest_first=False))
        return [tool async for tool in all_tools if _find_name_at_server(tool, uid) is not None]

    async def _fetch_tools(
        self, server: McpServerDefinition, secrets: Mapping[str, str]
    ) -> tuple[McpServerDefinition, Sequence[ListedTool]]:
        """Asks a server for its tools. Returns its definition with the names of unusable tools, and the usable tools.

        secrets: the server's secrets in plain text, by their fields.

        Raises: BadRequest if the server cannot be asked.
        """
        try:
            listed_tools = await self.servers.list_tools(server, make_secrets(server, secrets))
        except McpFault as error:
            raise BadRequest(f"The MCP server cannot be asked: {error}.", param="config") from error
        left_out = dict.fromkeys(tool.name for tool in listed_tools if tool.parameters is None)
        tools = [tool for tool in listed_tools if tool.parameters is not None]
        return replace(server, left_out=tuple(left_out)), tools

    async def _sync_tools(self, project: str, server: Definition, listed_tools: Sequence[ListedTool]) -> None:
        """Adds, updates and deletes the project's tools of a server, so that they are the listed tools.

        The options that an operator has set for a tool, such as its approval, stay. Another gateway may sync meanwhile.
        """
        tools = await self.list_tools(project, server.uid)
        stored_tools = {_find_name_at_server(tool, server.uid): tool for tool in tools}
        for tool in {tool.name: tool for tool in listed_tools}.values():
            existing = stored_tools.pop(tool.name, None)
            if existing is None:
                await self._add_tool(project, server, tool)
            else:
                await self._update_tool(project, server, existing, tool)
        for unlisted in stored_tools.values():
            with suppress(NotFound):
                await self.project_tools.delete(project, unlisted.uid)

    async def _update_tool(
        self, project: str, server: Definition, existing: ToolView, tool: ListedTool
    ) -> None:
        """Gives a project's tool the present schema of the server's tool, and a tag with the server's name."""
        schema = _make_schema(existing.name, tool)

        def edit(current: ToolDefinition) -> tuple[None, ToolDefinition]:
            # The server may have another name now.
            tags = [tag for tag in current.tags if not tag.startswith(_SERVER_TAG)]
            return None, replace(current, schema=schema, tags=(*tags, f"{_SERVER_TAG}{server.name}"))

        await self.project_tools.change(project, existing.uid, edit)

    async def _add_tool(self, project: str, server: Definition, tool: ListedTool) -> None:
        """Makes a tool under its own name. If the name is taken, the server's name comes first, then a number last.

        Several tools of a server may get one name, since letters of another script become `_`.
        """
        full_name = f"{server.name}_{tool.name}"
        numbered_names = (_make_name(full_name, f"_{n}") for n in range(2, MAX_TOOLS + 2))
        for name in chain((_make_name(tool.name), _make_name(full_name)), numbered_names):
            definition = ToolDefinition(
                _make_schema(name, tool),
                "mcp",
                str(McpToolSource(server.uid, tool.name)),
                tags=(f"{_SERVER_TAG}{server.name}",),
            )
            try:
                await self.project_tools.create(project, name, definition)
                return
            except (Conflict, WriteConflict):
                namesake = await self.project_tools.find_named(project, name)
                if namesake is not None and _find_name_at_server(namesake, server.uid) == tool.name:
                    return
        raise Conflict(f"There are too many tools with the name {tool.name!r}.")


@contextmanager
def _translate_secret_faults() -> Iterator[None]:
    """Turns a SecretFault of the block into a BadRequest."""
    try:
        yield
    except SecretFault as error:
        raise BadRequest(make_sentence(str(error)), param="config") from error


def _find_name_at_server(tool: ToolView, uid: str) -> str | None:
    """Returns the name of a tool at its server; None if it is no tool of the server with this uid."""
    source = None if tool.definition is None else McpToolSource.of(ToolDefinition.of(tool.definition.body))
    return source.tool_name if source is not None and source.server_uid == uid else None


def _make_schema(name: str, tool: ListedTool) -> dict[str, object]:
    return {"name": name, "description": tool.description, "parameters": tool.parameters}


def _make_name(name: str, end: str = "") -> str:
    """Returns a name with the letters and of the length that every provider takes. end: the end of the name."""
    return (re.sub(r"[^A-Za-z0-9_-]", "_", name)[: 64 - len(end)] or "_") + end
