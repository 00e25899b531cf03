"""MCP servers, by the client's own methods."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import BadRequestError, ConflictError, NotFoundError, UnprocessableEntityError

from gateway.settings import ToolSettings
from tests.doubles import careless_mcp_server
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.agents.letta import LettaWorld, letta
from tests.gateway.tools.test_mcp import ALLOWED, STDIO

CONFIG: Any = {"mcp_server_type": "stdio", "command": STDIO.command[0], "args": list(STDIO.command[1:])}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, tools=ALLOWED) as made:
        yield made


def test_a_server_is_named_and_its_tools_are_called(world: LettaWorld) -> None:
    servers = world.letta.mcp_servers
    made: Any = servers.create(server_name="calc", config=CONFIG)
    assert (made.server_name, made.mcp_server_type, made.command) == ("calc", "stdio", STDIO.command[0])
    assert [each.id for each in servers.list()] == [made.id]
    assert servers.retrieve(made.id) == made
    tools = {each.name: each for each in servers.tools.list(made.id)}
    add = tools["add"]
    assert (add.tool_type, add.source_code, add.tags) == ("external_mcp", None, ["mcp:calc"])
    assert servers.tools.retrieve(add.id, mcp_server_id=made.id) == add
    every = world.letta.tools
    assert {each.name for each in every.list(tool_types=["external_mcp"])} == {*tools}
    assert not {*tools} & {each.name for each in every.list(exclude_tool_types=["external_mcp"])}
    assert every.list(tool_types=["custom"]).items == []
    ran = servers.tools.run(add.id, mcp_server_id=made.id, args={"a": 1, "b": 2})
    assert (ran.status, ran.func_return) == ("success", "3")
    with pytest.raises(BadRequestError, match="`a` is missing"):
        servers.tools.run(add.id, mcp_server_id=made.id, args={})
    agent = world.agent(tools=["add"])
    world.upstream.queue(call_tools(Call("add", {"a": 3, "b": 4})), say("Seven."))
    reply = world.letta.agents.messages.create(agent.id, input="3 + 4?")
    returned = next(each for each in reply.messages if each.message_type == "tool_return_message")
    assert (returned.status, returned.tool_return) == ("success", "7")
    with pytest.raises(BadRequestError, match="The MCP server says what this tool is"):
        world.letta.tools.update(add.id, source_code="def f(): ...")
    renamed: Any = servers.update(made.id, server_name="sums", config=CONFIG)
    assert (renamed.id, renamed.server_name) == (made.id, "sums")
    refreshed: Any = servers.refresh(made.id, agent_id=agent.id)
    assert {each["id"] for each in refreshed} == {each.id for each in tools.values()}
    servers.delete(made.id)
    assert world.letta.agents.tools.list(agent.id).items == [
        each for each in world.letta.agents.tools.list(agent.id).items if each.name != "add"
    ]
    with pytest.raises(NotFoundError):
        servers.retrieve(made.id)


def test_a_tool_that_cannot_be_called_is_left_out_alone(upstream: StrictUpstream, tmp_path: Path) -> None:
    program = [sys.executable, str(Path(careless_mcp_server.__file__))]
    allowed = ToolSettings(mcp_stdio=(" ".join(program),))
    with letta(upstream, tmp_path, tools=allowed) as world:
        servers = world.letta.mcp_servers
        config: Any = {"mcp_server_type": "stdio", "command": program[0], "args": program[1:]}
        made: Any = servers.create(server_name="careless", config=config)
        left_out = {"left_out": ["tools.huge", "tools.array", "tools.text", "tools.demands"]}
        assert made.mnemogate == left_out
        tools = {each.name: each for each in servers.tools.list(made.id)}
        assert list(tools) == ["plain", "empty", "union", "bare"]
        assert {(each.json_schema or {})["parameters"]["type"] for each in tools.values()} == {"object"}  # type: ignore[index]
        for tool in tools.values():
            ran = servers.tools.run(tool.id, mcp_server_id=made.id, args={"a": "x"})
            assert ran.status == "success"
        servers.refresh(made.id)
        assert servers.retrieve(made.id).mnemogate == left_out  # type: ignore[union-attr]


def test_a_server_with_secrets_or_out_of_bounds_is_refused(world: LettaWorld) -> None:
    servers = world.letta.mcp_servers

    def create(name: str = "calc", **config: Any) -> Any:
        return servers.create(server_name=name, config=config)

    http = {"mcp_server_type": "streamable_http", "server_url": "https://mcp.example.org/mcp"}
    with pytest.raises(BadRequestError, match=r"tools\.hosts names none"):
        create(**http)
    for secret in ({"auth_token": "s3cret"}, {"custom_headers": {"Authorization": "s3cret"}}):
        with pytest.raises(BadRequestError, match="Secrets are not kept here"):
            create(**http, **secret)
    with pytest.raises(BadRequestError, match="Secrets are not kept here"):
        create(**{**CONFIG, "env": {"KEY": "s3cret"}})
    with pytest.raises(BadRequestError, match=r"tools\.mcp_stdio does not name the command `sh -c true`"):
        create(mcp_server_type="stdio", command="sh", args=["-c", "true"])
    with pytest.raises(BadRequestError, match="use streamable_http"):
        create(mcp_server_type="sse", server_url="https://mcp.example.org/sse")
    with pytest.raises(UnprocessableEntityError, match="mcp_server_type"):
        create(mcp_server_type="other")
    with pytest.raises(UnprocessableEntityError, match="server_url"):
        create(mcp_server_type="streamable_http")
    with pytest.raises(UnprocessableEntityError, match="server_name"):
        create("a/b", **CONFIG)
    assert servers.list() == []
    create(**CONFIG)
    with pytest.raises(ConflictError, match="There is an MCP server named"):
        create(**CONFIG)
