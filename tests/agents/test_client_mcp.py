"""MCP servers, by the client's own methods."""

from __future__ import annotations

import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from letta_client import (
    APIStatusError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    UnprocessableEntityError,
)

from gateway.agents.api.tool_bodies import UpdateTool, with_tool_update
from gateway.agents.core.mcp_server import MASK
from gateway.agents.registry.tool_registry import ToolRegistry
from gateway.core.definition import ToolDefinition
from gateway.errors import BadRequest
from gateway.settings import ToolSettings
from storage.errors import StoreUnavailable
from tests.agents.letta import LettaWorld, letta
from tests.agents.plain_mcp import ALLOWED, CONFIG, PLAIN
from tests.doubles import careless_mcp_server
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.process import command
from tests.gateway.tools.test_mcp import started


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, tools=ALLOWED) as made:
        yield made


def test_a_server_is_named_and_its_tools_are_called(world: LettaWorld) -> None:
    servers = world.letta.mcp_servers
    made: Any = servers.create(server_name="calc", config=CONFIG)
    assert (made.server_name, made.mcp_server_type, made.command) == ("calc", "stdio", PLAIN.command[0])
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
    ran = servers.tools.run(add.id, mcp_server_id=made.id, args={"a": 2**80, "b": 2})
    assert (ran.status, ran.func_return) == ("success", str(2**80 + 2))
    ran = world.letta.agents.tools.run(
        "add", agent_id=world.agent(tools=["add"]).id, args={"a": 2**80, "b": 2}
    )
    assert ran.func_return == str(2**80 + 2)
    with pytest.raises(BadRequestError, match="`a` is missing"):
        servers.tools.run(add.id, mcp_server_id=made.id, args={})
    agent = world.agent(tools=["add"])
    world.upstream.queue(call_tools(Call("add", {"a": 3, "b": 4})), say("Seven."))
    reply = world.letta.agents.messages.create(agent.id, input="3 + 4?")
    returned = next(each for each in reply.messages if each.message_type == "tool_return_message")
    assert (returned.status, returned.tool_return) == ("success", "7")
    with pytest.raises(BadRequestError, match="The MCP server defines this tool"):
        world.letta.tools.update(add.id, source_code="def f(): ...")
    renamed: Any = servers.update(made.id, server_name="sums", config=CONFIG)
    assert (renamed.id, renamed.server_name) == (made.id, "sums")
    assert {
        tuple(tool.tags or ()) for tool in world.letta.tools.list() if tool.tool_type == "external_mcp"
    } == {("mcp:sums",)}
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
        left_out = {"left_out": ["tools.huge", "tools.endless", "tools.array", "tools.text", "tools.demands"]}
        assert made.mnemogate == left_out
        tools = {each.name: each for each in servers.tools.list(made.id)}
        assert list(tools) == ["plain", "empty", "union", "bare"]
        assert {(each.json_schema or {})["parameters"]["type"] for each in tools.values()} == {"object"}  # type: ignore[index]
        for tool in tools.values():
            ran = servers.tools.run(tool.id, mcp_server_id=made.id, args={"a": "x"})
            assert ran.status == "success"
        servers.refresh(made.id)
        assert servers.retrieve(made.id).mnemogate == left_out  # type: ignore[union-attr]


def test_tools_with_names_in_another_script_are_distinguished(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    program = [sys.executable, str(Path(careless_mcp_server.__file__)), "other_script"]
    with letta(upstream, tmp_path, tools=ToolSettings(mcp_stdio=(" ".join(program),))) as world:
        servers = world.letta.mcp_servers
        config: Any = {"mcp_server_type": "stdio", "command": program[0], "args": program[1:]}
        made: Any = servers.create(server_name="careless", config=config)
        tools = servers.tools.list(made.id)
        assert len({each.name for each in tools}) == 12
        ran = {servers.tools.run(each.id, mcp_server_id=made.id, args={}).func_return for each in tools}
        assert len(ran) == 12, "each calls the tool of its own name"


def test_a_server_that_could_not_be_made_whole_is_not_there(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers, made, create = world.letta.mcp_servers, list[object](), ToolRegistry.create

    async def fails_at_second(self: ToolRegistry, *tool: Any) -> Any:
        if made:
            raise StoreUnavailable("the database is down for a moment")
        made.append(await create(self, *tool))
        return made[0]

    with monkeypatch.context() as patch:
        patch.setattr(ToolRegistry, "create", fails_at_second)
        with pytest.raises(APIStatusError, match="503"):
            servers.create(server_name="calc", config=CONFIG)
    assert len(made) == 1
    assert servers.list() == []
    assert list(world.letta.tools.list(tool_types=["external_mcp"])) == []
    assert servers.create(server_name="calc", config=CONFIG).server_name == "calc"


def test_a_server_with_secrets_or_out_of_bounds_is_refused(world: LettaWorld) -> None:
    servers = world.letta.mcp_servers

    def create(name: str = "calc", **config: Any) -> Any:
        return servers.create(server_name=name, config=config)

    http = {"mcp_server_type": "streamable_http", "server_url": "https://mcp.example.org/mcp"}
    with pytest.raises(BadRequestError, match=r"tools\.hosts names none"):
        create(**http)
    for secret in ({"auth_token": "s3cret"}, {"custom_headers": {"Authorization": "s3cret"}}):
        with pytest.raises(BadRequestError, match=r"not stored without a key.*set MNEMOGATE_SECRETS_KEY"):
            create(**http, **secret)
    with pytest.raises(BadRequestError, match=r"not stored without a key.*set MNEMOGATE_SECRETS_KEY"):
        create(**{**CONFIG, "env": {"KEY": "s3cret"}})
    with pytest.raises(BadRequestError, match=r"tools\.mcp_stdio does not name the command `sh -c true`"):
        create(mcp_server_type="stdio", command="sh", args=["-c", "true"])
    with pytest.raises(BadRequestError, match=r"tools\.hosts names none"):
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


# -- secrets

KEY, OTHER = (b64encode(os.urandom(32)).decode() for _ in range(2))
TOKEN, HEADER, VARIABLE = "zqtoken", "zqheader", "zqvariable"
TOLD: Any = {**CONFIG, "args": [*CONFIG["args"], "told"]}


@contextmanager
def keyed(
    upstream: StrictUpstream, folder: Path, url: str = "", key: str | None = KEY
) -> Iterator[LettaWorld]:
    tools = ToolSettings(
        private_hosts=(url,) if url else (),
        mcp_stdio=(" ".join((TOLD["command"], *TOLD["args"])),),
        mcp_stdio_env=("TOKEN",),
        secrets_key=key,
    )
    with letta(upstream, folder, tools=tools) as world:
        yield world


def told(world: LettaWorld, server: Any, name: str) -> str:
    """Returns what a server says of a header or a variable that it was given."""
    tool = next(each for each in world.letta.mcp_servers.tools.list(server.id) if each.name == "told")
    ran = world.letta.mcp_servers.tools.run(tool.id, mcp_server_id=server.id, args={"name": name})
    text = str(ran.func_return)
    return text if ran.status == "error" or len(text) < 8 else text[::-1]


@pytest.mark.parametrize("kind", ["streamable_http", "sse"])
def test_a_server_is_sent_its_secrets_which_are_shown_nowhere(
    upstream: StrictUpstream, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with started("told", "sse") if kind == "sse" else started("told") as named:
        address = named.url.rpartition("/")[0]
        config: Any = {
            "mcp_server_type": kind, "server_url": named.url,
            "auth_token": TOKEN, "custom_headers": {"X-Shop": HEADER, "X-Said": "seven"},
        }  # fmt: skip
        with keyed(upstream, tmp_path, address) as world:
            servers = world.letta.mcp_servers
            made: Any = servers.create(server_name="calc", config=config)
            assert (made.mcp_server_type, made.auth_token) == (kind, MASK)
            assert (made.auth_header, made.custom_headers) == (None, {"X-Shop": MASK, "X-Said": MASK})
            assert servers.retrieve(made.id) == servers.list()[0] == made
            assert (told(world, made, "authorization"), told(world, made, "x-shop")) == (
                f"Bearer {TOKEN}",
                HEADER,
            )
            agent = world.agent(tools=["told"])
            world.upstream.queue(call_tools(Call("told", {"name": "x-said"})), say("Well."))
            reply = world.letta.agents.messages.create(agent.id, input="Ask.")
            assert "seven" in [getattr(each, "tool_return", None) for each in reply.messages]
            servers.refresh(made.id)
            world.letta.agents.delete(agent.id)
            file = world.letta.agents.export_file(world.agent(tools=["told"]).id)
            agents = [each.id for each in world.letta.agents.list()]
            stored = world.world.query("SELECT body FROM definition_texts")
        exported = exports(tmp_path, agents)
        assert '"told"' in exported
        assert not [each for each in (TOKEN, HEADER) if each in heard(caplog)]
        sealed = [each for body in stored for each in re.findall(r'"(1:[A-Za-z0-9+/=]+)"', str(body))]
        assert len(set(sealed)) == 3
        for text in (str(file), exported, str(stored)):
            assert TOKEN not in text
            assert f'"{HEADER}"' not in text
        assert not [each for each in sealed if each in exported or each in str(file)]


def exports(folder: Path, agents: list[str]) -> str:
    """Returns what `memory export` writes of agents."""
    asked = ("memory", "export", "--db", "memory.db", "--agent")
    ran = [command(*asked, id, where=folder) for id in agents]
    assert [each.returncode for each in ran] == [0] * len(agents)
    return "".join(each.stdout for each in ran)


def heard(log: pytest.LogCaptureFixture) -> str:
    """Returns what was logged, but not by the client that sent the secrets."""
    clients = ("letta_client", "httpx.", "httpcore", "asyncio")
    return "\n".join(each.getMessage() for each in log.records if not f"{each.name}.".startswith(clients))


def test_a_change_leaves_secrets_that_it_does_not_name(upstream: StrictUpstream, tmp_path: Path) -> None:
    with started("told") as named, keyed(upstream, tmp_path, named.url.rpartition("/")[0]) as world:
        servers, config = (
            world.letta.mcp_servers,
            {"mcp_server_type": "streamable_http", "server_url": named.url},
        )
        made: Any = servers.create(
            server_name="calc",
            config={
                **config,
                "auth_header": "X-Key",
                "auth_token": TOKEN,
                "custom_headers": {"X-Shop": HEADER},
            },  # type: ignore[misc]
        )

        def change(**fields: Any) -> Any:
            return servers.update(made.id, config={"mcp_server_type": "streamable_http", **fields})  # type: ignore[misc]

        def now(*names: str) -> list[str]:
            return [told(world, made, name) for name in names]

        assert now("x-key", "x-shop") == [TOKEN, HEADER]
        # As a client sends back what it was shown.
        shown = {"auth_header": "X-Key", "auth_token": MASK, "custom_headers": {"X-Shop": MASK, "X-New": "n"}}
        for each in ({}, {"server_url": None}, {"server_url": named.url, **shown}):
            changed = change(**each)
            assert (changed.auth_header, changed.auth_token) == ("X-Key", MASK)
            assert now("x-key", "x-shop") == [TOKEN, HEADER]
        assert now("x-new") == ["n"]
        assert change(auth_token="other").custom_headers == {"X-Shop": MASK, "X-New": MASK}
        assert now("x-key", "x-shop") == ["other", HEADER]
        with pytest.raises(BadRequestError, match="give them again"):
            change(server_url=named.url + "/")
        with pytest.raises(BadRequestError, match="there is none"):
            change(custom_headers={"X-Other": MASK})
        with pytest.raises(UnprocessableEntityError, match="'x-shop' is named twice"):
            change(auth_header="x-shop")
        renamed: Any = servers.update(made.id, server_name="sums", config={})  # type: ignore[typeddict-item]
        assert (renamed.server_name, renamed.auth_token) == ("sums", MASK)
        bare = change(auth_token=None, custom_headers={})
        assert (bare.auth_header, bare.auth_token, bare.custom_headers) == (None, None, None)
        assert now("x-key", "x-shop") == ["nothing", "nothing"]


def test_a_program_is_given_the_variables_that_may_be_given(upstream: StrictUpstream, tmp_path: Path) -> None:
    with keyed(upstream, tmp_path) as world:
        servers = world.letta.mcp_servers
        with pytest.raises(BadRequestError, match="mcp_stdio_env does not name the variable PYTHONPATH"):
            servers.create(
                server_name="calc", config={**TOLD, "env": {"TOKEN": VARIABLE, "PYTHONPATH": "/tmp"}}
            )
        made: Any = servers.create(server_name="calc", config={**TOLD, "env": {"TOKEN": VARIABLE}})
        assert made.env == {"TOKEN": MASK}
        assert told(world, made, "TOKEN") == VARIABLE
        assert servers.update(made.id, config={"mcp_server_type": "stdio", "env": None}).env is None  # type: ignore
        assert told(world, made, "TOKEN") == "nothing"


def test_with_another_key_a_server_says_so_and_takes_its_secrets_again(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with started("told") as named:
        address, config = (
            named.url.rpartition("/")[0],
            {"mcp_server_type": "streamable_http", "server_url": named.url},
        )
        with keyed(upstream, tmp_path, address) as world:
            made: Any = world.letta.mcp_servers.create(
                server_name="calc",
                config={**config, "auth_token": TOKEN},  # type: ignore[misc]
            )
        for key in (OTHER, None):
            with keyed(upstream, tmp_path, address, key) as world:
                servers = world.letta.mcp_servers
                assert servers.retrieve(made.id) == made
                failed = told(world, made, "authorization")
                assert "the MCP server 'calc'" in failed
                assert "MNEMOGATE_SECRETS_KEY" in failed
                for ask in (
                    lambda servers=servers: servers.refresh(made.id),
                    lambda servers=servers: servers.update(made.id, server_name="sums", config={}),
                ):
                    with pytest.raises(BadRequestError, match=r"'calc'.* cannot be decrypted"):
                        ask()
        with keyed(upstream, tmp_path, address, OTHER) as world:
            again: Any = {"mcp_server_type": "streamable_http", "auth_token": "again"}
            world.letta.mcp_servers.update(made.id, config=again)
            assert told(world, made, "authorization") == "Bearer again"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"custom_headers": {"Host": TOKEN}}, "'Host' is no header"),
        ({"custom_headers": {"Mcp-Session-Id": TOKEN}}, "is no header"),
        ({"custom_headers": {"X A": TOKEN}}, "is no header"),
        ({"custom_headers": {"X-A": f"{TOKEN}\r\nX-B: 1"}}, "control character"),
        ({"auth_token": f"{TOKEN}\n"}, "control character"),
        ({"auth_token": TOKEN, "auth_header": "Content-Length"}, "is no header"),
        ({"custom_headers": {"X-A": TOKEN, "x-a": TOKEN}}, "'custom_headers'.*'x-a' is named twice"),
        (
            {"auth_token": TOKEN, "auth_header": "X-A", "custom_headers": {"x-a": "1"}},
            "'auth_header'.*'X-A' is named twice",
        ),
        # The header of a token that names none.
        ({"auth_token": TOKEN, "custom_headers": {"authorization": "1"}}, "'Authorization' is named twice"),
        ({"auth_token": [TOKEN]}, "Expected"),
        ({"auth_token": TOKEN * 2_000}, "length <= 8000"),
        ({"custom_headers": {f"X-{n}": TOKEN for n in range(51)}}, "length <= 50"),
        ({"auth_token": TOKEN, "other": TOKEN}, "'other'|other"),
    ],
)
def test_secrets_that_cannot_be_sent_are_refused_and_not_repeated(
    upstream: StrictUpstream, tmp_path: Path, fields: Any, says: str
) -> None:
    with keyed(upstream, tmp_path, "http://127.0.0.1:9") as world:
        config: Any = {"mcp_server_type": "streamable_http", "server_url": "http://127.0.0.1:9/mcp", **fields}
        with pytest.raises(UnprocessableEntityError, match=says) as refused:
            world.letta.mcp_servers.create(server_name="calc", config=config)
        assert TOKEN not in refused.value.response.text


def test_a_refused_update_of_a_servers_tool_names_the_field_that_was_sent() -> None:
    tool = ToolDefinition({"name": "add"}, source_type="mcp", source="0/add")
    with pytest.raises(BadRequest) as caught:
        with_tool_update(tool, UpdateTool(json_schema={"name": "add"}, description="Adds."))
    assert caught.value.param == "json_schema"
