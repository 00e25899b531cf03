"""MCP servers of a project: their tools are the project's, and follow what the server lists."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gateway.agents.core.mcp_server import McpSecrets, McpServerConfig
from gateway.agents.registry.mcp_registry import McpRegistry
from gateway.agents.registry.registry import NewAgent, Registry
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.agents.tools.hosts import ToolHosts
from gateway.agents.tools.mcp import NO_SECRETS, ListedTool, McpFault, McpServers
from gateway.agents.tools.secret import SecretCipher
from gateway.core.definition import AgentDefinition, McpServerDefinition, ToolDefinition
from gateway.errors import BadRequest
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from gateway.settings import Settings, ToolSettings
from storage.definition_records import DefinitionKind
from storage.errors import NotFound, WriteConflict
from storage.listing import Page
from storage.sql.store import Store
from tests.agents.plain_mcp import ALLOWED, PLAIN

PROJECT = "default"
SERVER = McpServerConfig(McpServerDefinition("https://mcp.example.org/mcp"))
ANY: dict[str, object] = {"type": "object", "properties": {}}


class Listing(McpServers):
    """A server that lists what a test says."""

    def __init__(self) -> None:
        super().__init__(ToolSettings(), ToolHosts(ToolSettings()))
        self.tools: list[ListedTool] | None = []

    async def list_tools(
        self, server: McpServerDefinition, secrets: McpSecrets = NO_SECRETS
    ) -> Sequence[ListedTool]:
        if self.tools is None:
            raise McpFault("it could not be reached")
        return self.tools

    def says(self, *names: str, about: str = "") -> None:
        self.tools = [ListedTool(name, about, ANY) for name in names]


@pytest.fixture
def agents(store: Store) -> Registry:
    return Registry(store, Settings(), [], lambda: 1000.0)


@pytest.fixture
def listing() -> Listing:
    return Listing()


@pytest.fixture
def servers(store: Store, agents: Registry, listing: Listing) -> McpRegistry:
    return McpRegistry(store, agents.tools, listing, SecretCipher(None), lambda: 1000.0)


async def test_tools_follow_their_server(servers: McpRegistry, agents: Registry, listing: Listing) -> None:
    listing.says("add", "say.hello")
    made = await servers.create(PROJECT, "calc", SERVER)
    tools = await servers.list_tools(PROJECT, made.uid)
    assert [each.name for each in tools] == ["add", "say_hello"]
    agent = await agents.create(PROJECT, NewAgent(AgentDefinition("letta_v1_agent"), name="ann"))
    for each in tools:
        agent = await agents.attach_tool(PROJECT, agent.agent.uid, each.uid)
    # A person says that one needs approval, and that stays.
    await agents.tools.change(PROJECT, tools[0].uid, lambda now: (None, replace(now, needs_approval=True)))
    listing.says("add", "subtract", about="Anew.")
    assert [each.name for each in await servers.refresh(PROJECT, made.uid)] == ["add", "subtract"]
    add = await agents.tools.get(PROJECT, tools[0].uid)
    assert add.definition is not None
    now = ToolDefinition.of(add.definition.body)
    assert (now.needs_approval, now.schema["description"], now.source_type) == (True, "Anew.", "mcp")
    kept = [each.name for each in (await agents.get(PROJECT, agent.agent.uid)).tools]
    assert "add" in kept
    assert "say_hello" not in kept
    await servers.delete(PROJECT, made.uid)
    assert "add" not in [each.name for each in (await agents.get(PROJECT, agent.agent.uid)).tools]
    with pytest.raises(NotFound):
        await servers.get(PROJECT, made.uid)


async def test_names_that_are_taken(servers: McpRegistry, agents: Registry, listing: Listing) -> None:
    await agents.tools.create(PROJECT, "add", ToolDefinition({"name": "add"}, "json"))
    listing.says("add", "send_message", "x" * 80, "")
    made = await servers.create(PROJECT, "calc", SERVER)
    names = [each.name for each in await servers.list_tools(PROJECT, made.uid)]
    assert names == ["calc_add", "calc_send_message", "x" * 64, "_"]
    with pytest.raises(WriteConflict):
        await servers.create(PROJECT, "calc", SERVER)
    other = await servers.create(PROJECT, "calc2", SERVER)
    again = [each.name for each in await servers.list_tools(PROJECT, other.uid)]
    assert again == ["calc2_add", "calc2_send_message", ("calc2_" + "x" * 80)[:64], "calc2_"]


async def test_a_tool_that_is_listed_twice_is_one(servers: McpRegistry, listing: Listing) -> None:
    """Each refresh would make another one."""
    listing.says("add", "add")
    made = await servers.create(PROJECT, "calc", SERVER)
    for _ in range(2):
        assert [each.name for each in await servers.refresh(PROJECT, made.uid)] == ["add"]


async def test_two_gateways_that_refresh_at_once_make_and_delete_each_tool_once(
    store: Store, servers: McpRegistry, agents: Registry, listing: Listing
) -> None:
    other = McpRegistry(store, agents.tools, listing, SecretCipher(None), lambda: 1000.0)
    listing.says("add")
    made = await servers.create(PROJECT, "calc", SERVER)
    for names in (["add", "subtract"], ["subtract"]):
        listing.says(*names)
        await asyncio.gather(*(each.refresh(PROJECT, made.uid) for each in (servers, other)))
        assert [each.name for each in await servers.list_tools(PROJECT, made.uid)] == names


async def test_a_server_that_cannot_be_asked(store: Store, servers: McpRegistry, listing: Listing) -> None:
    listing.tools = None
    with pytest.raises(BadRequest, match="cannot be asked: it could not be reached"):
        await servers.create(PROJECT, "calc", SERVER)
    assert await store.definitions.list_page(PROJECT, DefinitionKind.MCP, Page()) == []


async def test_another_project_has_none_of_it(servers: McpRegistry, listing: Listing) -> None:
    listing.says("add")
    made = await servers.create(PROJECT, "calc", SERVER)
    for ask in (servers.get, servers.list_tools, servers.refresh, servers.delete):
        with pytest.raises(NotFound):
            await ask("other", made.uid)


async def test_a_call_asks_the_server_of_its_own_project(store: Store, agents: Registry) -> None:
    defined_tools = DefinedTools(ALLOWED, store, lambda: 1000.0)
    servers = McpRegistry(store, agents.tools, defined_tools.mcp, defined_tools.secrets, lambda: 1000.0)
    made = await servers.create(PROJECT, "calc", McpServerConfig(PLAIN))
    tool = next(each for each in await servers.list_tools(PROJECT, made.uid) if each.name == "say_hello")
    assert tool.definition is not None
    definition = ToolDefinition.of(tool.definition.body)
    call = ForeignCall("say_hello", {"name": "Ann"}, "c", "agent-1", "run-1", "k", project=PROJECT)
    assert await defined_tools.run(definition, call) == ToolAnswer("Hello Ann")
    elsewhere = ForeignCall("say_hello", {"name": "Ann"}, "c", "agent-1", "run-1", "k", project="other")
    refused = await defined_tools.run(definition, elsewhere)
    assert refused == ToolAnswer("Error: the server of say_hello was deleted. Nothing was done.", "error")
