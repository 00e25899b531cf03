"""MCP servers, real ones: over HTTP and over pipes, alive, slow and dead."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import orjson
import pytest
import uvicorn
from msgspec.structs import replace

import gateway.agents.tools
import tests.doubles.mcp_server as double
from gateway import event_loop
from gateway.agents.core.mcp_server import McpSecrets
from gateway.agents.tools import mcp, mcp_host_transport, mcp_session
from gateway.agents.tools.hosts import ToolHosts
from gateway.agents.tools.mcp import McpFault, McpServers
from gateway.core.definition import McpServerDefinition
from gateway.run.tools.toolbox import ToolAnswer
from gateway.settings import ToolHeader, ToolSettings
from tests.agents.plain_mcp import PLAIN
from tests.doubles import careless_mcp_server
from tests.doubles.closing import close_server
from tests.doubles.tool_server import ToolServer, replying, serving
from tests.patience import PATIENCE_S

SERVER = str(Path(double.__file__))
STDIO = McpServerDefinition(command=(sys.executable, SERVER, "stdio"))
# The package takes a second to load in each program that is started for one call.
FAULTY = replace(PLAIN, command=(*PLAIN.command, "faulty"))
ALLOWED = ToolSettings(mcp_stdio=(" ".join(STDIO.command), " ".join(FAULTY.command)))


@contextmanager
def started(*options: str) -> Iterator[McpServerDefinition]:
    """Serves over HTTP in a thread, which begins in a twentieth of the time of a process."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = double.make_app(*options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield named(listening.getsockname()[1], *options)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the MCP server did not stop"


@contextmanager
def started_alone(*options: str) -> Iterator[tuple[McpServerDefinition, subprocess.Popen[str]]]:
    """Serves over HTTP in a process, which may die."""
    process = subprocess.Popen([sys.executable, SERVER, "http", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield named(int(process.stdout.readline()), *options), process
    finally:
        process.kill()
        process.communicate()


def named(port: int, *options: str) -> McpServerDefinition:
    if "sse" in options:
        return McpServerDefinition(f"http://127.0.0.1:{port}/sse", transport="sse")
    return McpServerDefinition(f"http://127.0.0.1:{port}/mcp", transport="streamable_http")


@pytest.fixture(scope="module")
def sse() -> Iterator[McpServerDefinition]:
    with started("sse") as made:
        yield made


@pytest.fixture(scope="module")
def http() -> Iterator[McpServerDefinition]:
    with started() as made:
        yield made


def asking(server: McpServerDefinition, **settings: object) -> McpServers:
    made = ToolSettings(private_hosts=(server.url.rpartition("/")[0],)) if server.url else ALLOWED
    return McpServers(made, ToolHosts(made))


async def check_tools(servers: McpServers, server: McpServerDefinition) -> None:
    listed = {tool.name: tool for tool in await servers.list_tools(server)}
    assert [*listed] == ["add", "say.hello", "fail", "die", "hang", "flood", "variables"]
    assert listed["add"].description == "Adds two numbers."
    assert listed["add"].parameters["required"] == ["a", "b"]


async def check_server(server: McpServerDefinition) -> None:
    servers = asking(server)
    await check_tools(servers, server)
    assert await servers.call_tool(server, "add", {"a": 1, "b": 2}) == ToolAnswer("3")
    assert await servers.call_tool(server, "add", {"a": 2**80, "b": 1}) == ToolAnswer(str(2**80 + 1))
    assert await servers.call_tool(server, "say.hello", {"name": "Ann"}) == ToolAnswer("Hello Ann")
    failed = await servers.call_tool(server, "fail", {})
    assert failed.status == "error"
    assert "no luck" in failed.content
    unknown = await servers.call_tool(server, "nothing", {})
    assert unknown.status == "error"
    assert "nothing" in unknown.content


async def test_a_server_is_asked_over_http(http: McpServerDefinition) -> None:
    await check_server(http)


async def test_a_server_is_asked_over_events(sse: McpServerDefinition) -> None:
    await check_server(sse)


async def test_over_http_with_plain_replies() -> None:
    with started("json") as server:
        await check_server(server)


async def test_numbers_that_are_too_large_to_be_stored() -> None:
    with started("large") as server:
        servers = asking(server)
        (tool,) = [each for each in await servers.list_tools(server) if each.name == "large"]
        assert orjson.loads(orjson.dumps(tool.parameters))["properties"]["n"]["maximum"] == float(
            double.LARGE
        )
        assert await servers.call_tool(server, "large", {"n": 1}) == ToolAnswer(
            f'{{"large": {double.LARGE}}}'
        )


async def test_a_program_is_asked_over_pipes_and_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    servers = asking(STDIO)
    await check_tools(servers, STDIO)
    told = await servers.call_tool(STDIO, "variables", {})
    assert "PATH" in told.content
    assert "OPENAI_API_KEY" not in told.content


@pytest.mark.parametrize("options", [(), ("sse",)])
async def test_a_server_that_dies_is_an_error_of_the_call(options: tuple[str, ...]) -> None:
    with started_alone(*options) as (server, process):
        servers = asking(server)
        assert await servers.call_tool(server, "add", {"a": 1, "b": 2}) == ToolAnswer("3")
        died = await servers.call_tool(server, "die", {})
        assert died.status == "error"
        assert died.content.startswith("Error: die was called, but ")
        assert died.content.endswith(". It may have been done.")
        # Until it is gone the machine accepts connections for it.
        await asyncio.to_thread(process.wait, PATIENCE_S)
        gone = await servers.call_tool(server, "add", {"a": 1, "b": 2})
        unreached = "Error: add cannot be called: it could not be reached."
        assert gone == ToolAnswer(unreached, "error", was_sent=False)
        with pytest.raises(McpFault, match="could not be reached"):
            await servers.list_tools(server)


async def test_a_program_that_dies_is_an_error_of_the_call() -> None:
    died = await asking(FAULTY).call_tool(FAULTY, "die", {})
    assert died.status == "error"
    assert await asking(FAULTY).call_tool(FAULTY, "add", {"a": 1, "b": 2}) == ToolAnswer("3")


@pytest.mark.parametrize("way", ["http", "sse", "pipes"])
async def test_a_server_that_is_slow_is_not_waited_for(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    server = FAULTY if way == "pipes" else request.getfixturevalue(way)
    await asking(server).list_tools(server)  # what is loaded once does not count
    monkeypatch.setattr(mcp, "TIMEOUT_S", 1.0)
    answer = await asking(server).call_tool(server, "hang", {})
    assert answer.status == "error"
    assert "its server did not answer within 1 s." in answer.content


@pytest.mark.parametrize("way", ["http", "sse", "pipes"])
async def test_a_server_that_says_too_much(request: pytest.FixtureRequest, way: str) -> None:
    server = FAULTY if way == "pipes" else request.getfixturevalue(way)
    answer = await asking(server).call_tool(server, "flood", {})
    assert answer.status == "error"
    assert "more than 1,000,000 bytes" in answer.content


async def test_a_server_that_does_not_answer_that_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_host_transport, "END_S", 0.1)
    with started("deaf") as server:
        assert await asking(server).call_tool(server, "add", {"a": 1, "b": 2}) == ToolAnswer("3")


async def test_a_result_counts_where_the_end_of_its_session_fails(
    http: McpServerDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeverEnded(mcp_session._Client):
        async def __aexit__(self, *error: object) -> None:
            await super().__aexit__(*error)  # type: ignore[arg-type]
            raise TimeoutError

    monkeypatch.setattr(mcp_session, "_Client", NeverEnded)
    assert await asking(http).call_tool(http, "add", {"a": 1, "b": 2}) == ToolAnswer("3")


def careless(*options: str) -> tuple[McpServers, McpServerDefinition]:
    command = (sys.executable, str(Path(careless_mcp_server.__file__)), *options)
    settings = ToolSettings(mcp_stdio=(" ".join(command),))
    return McpServers(settings, ToolHosts(settings)), McpServerDefinition(command=command)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("run", [asyncio.run, event_loop.run])
def test_a_program_gets_no_file_that_was_left_open(run: Callable[..., ToolAnswer], tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_CREAT, 0o600)
    os.set_inheritable(secret, True)
    try:
        servers, server = careless("descriptors")
        assert run(servers.call_tool(server, "plain", {})) == ToolAnswer("[]")
    finally:
        os.close(secret)


async def test_parts_of_a_result_without_text_are_named_with_their_address() -> None:
    """A link said only that there was one, and a part of an unknown type lost the result of a call that was made."""
    servers, server = careless("parts")
    assert await servers.call_tool(server, "plain", {}) == ToolAnswer(
        "Hello mnemogate.\n[image: image/png]\n[resource_link: a.csv, file:///a.csv, All sales.]\nInner text.\n"
        "[resource: file:///c.pdf, application/pdf]\n[hologram]\n[['text']]"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        # Invalid params, of a server that checks the arguments; the model was told that it may have been done.
        (-32602, "Error: add cannot be called: its server failed (a must be a number)."),
        (-32601, "Error: add cannot be called: its server failed (a must be a number)."),
        # An error within the server.
        (
            -32603,
            "Error: add was called, but its server failed (a must be a number). It may have been done.",
        ),
    ],
)
async def test_a_call_that_its_server_refuses_was_not_done(code: int, words: str) -> None:
    servers, server = careless("refusing", str(code))
    answer = await servers.call_tool(server, "add", {"a": "x"})
    assert (answer.content, answer.status, answer.was_sent) == (words, "error", code == -32603)


async def test_the_result_of_a_call_does_not_wait_for_the_list_of_tools() -> None:
    servers, server = careless("failing")
    with pytest.raises(McpFault, match="no list"):
        await servers.list_tools(server)
    assert (await servers.call_tool(server, "plain", {"a": 1})).status == "success"


@pytest.mark.parametrize(("pages", "count"), [("bad", mcp.MAX_TOOLS), ("empty", 0)])
async def test_a_list_without_end_is_not_read_on(pages: str, count: int) -> None:
    servers, server = careless(pages)
    listed = await servers.list_tools(server)
    assert len(listed) == count
    assert all(tool.parameters is None for tool in listed)


async def test_servers_that_speak_no_mcp() -> None:
    async with serving(replying("200 OK", b"hello")) as server:
        named = McpServerDefinition(f"{server.url}/mcp")
        with pytest.raises(McpFault, match="its server failed"):
            await asking(named).list_tools(named)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        ("401 Unauthorized", b'{"error": "invalid_token"}', "its server answered with the status 401"),
        ("503 Service Unavailable", b"", "its server answered with the status 503"),
        (
            "400 Bad Request",
            b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32600, "message": "Say who you are"}}',
            "its server failed (Say who you are)",
        ),
    ],
)
async def test_a_server_that_refuses_says_why_or_its_status(status: str, body: bytes, words: str) -> None:
    reply = replying(f"{status}\r\nContent-Type: application/json", body)
    async with serving(reply) as server:
        named = McpServerDefinition(f"{server.url}/mcp")
        with pytest.raises(McpFault) as fault:
            await asking(named).list_tools(named)
    assert str(fault.value) == words


@asynccontextmanager
async def events(endpoint: str, answer: bytes) -> AsyncIterator[ToolServer]:
    """A server whose stream of events names an endpoint for messages, each of which it answers so. It stays open."""
    server, closed = ToolServer(0), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        server.heads.append(head)
        if head.startswith("GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            writer.write(f"event: endpoint\ndata: {endpoint}\n\n".encode())
            await closed.wait()
        writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        closed.set()
        await close_server(listening)
        await listening.wait_closed()


async def test_a_server_of_events_that_refuses_a_message_is_not_waited_for() -> None:
    async with events("/messages", replying("403 Forbidden", b"")) as server:
        named = McpServerDefinition(f"{server.url}/sse", transport="sse")
        with pytest.raises(McpFault) as fault:
            await asking(named).list_tools(named)
    assert str(fault.value) == "its server answered with the status 403"


async def test_a_server_that_has_no_events() -> None:
    async with serving(replying("404 Not Found", b"")) as server:
        named = McpServerDefinition(f"{server.url}/sse", transport="sse")
        with pytest.raises(McpFault) as fault:
            await asking(named).list_tools(named)
    assert str(fault.value) == "its server answered with the status 404"


# -- what may be asked


@pytest.mark.parametrize("transport", ["streamable_http", "sse"])
async def test_secrets_go_to_no_other_address(
    monkeypatch: pytest.MonkeyPatch, transport: Literal["streamable_http", "sse"]
) -> None:
    """Neither where a server redirects to, nor where its events have messages sent, though both may be asked."""
    monkeypatch.setattr(mcp, "TIMEOUT_S", 1.0)
    secrets = McpSecrets({"Authorization": "Bearer s3cret"})
    async with serving(replying("200 OK", b"")) as other:
        away = replying(f"307 Temporary Redirect\r\nLocation: {other.url}/mcp", b"")
        for opened in (serving(away), events(f"{other.url}/messages", away)):
            async with opened as server:
                settings = ToolSettings(private_hosts=(server.url, other.url))
                named = McpServerDefinition(f"{server.url}/mcp", transport=transport)
                with pytest.raises(McpFault):
                    await McpServers(settings, ToolHosts(settings)).list_tools(named, secrets)
                assert all("\r\nAuthorization: Bearer s3cret\r\n" in head for head in server.heads)
        assert other.heads == []


async def test_secrets_go_to_no_host_that_the_settings_do_not_name() -> None:
    async with serving(replying("200 OK", b"")) as server:
        settings = ToolSettings(hosts=("mcp.example.org",))
        named = McpServerDefinition(f"{server.url}/mcp")
        with pytest.raises(McpFault, match=r"tools\.hosts does not name"):
            await McpServers(settings, ToolHosts(settings)).list_tools(named, McpSecrets({"X-Key": "s3cret"}))
        assert server.heads == []


async def test_a_secret_that_a_server_repeats_is_masked() -> None:
    """Its errors and results are read by models, and by people who may use the server and not see its secrets."""
    secret = "s3cret-of-the-server"
    fault = {"code": -32600, "message": f"{'No. ' * 45}Bearer {secret}"}
    body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": fault})
    async with serving(replying("400 Bad Request\r\nContent-Type: application/json", body)) as server:
        named = McpServerDefinition(f"{server.url}/mcp")
        secrets = McpSecrets({"Authorization": f"Bearer {secret}"})
        for made in (secrets, McpSecrets({"X-Key": secret})):
            with pytest.raises(McpFault) as raised:
                await asking(named).list_tools(named, made)
            assert "Bearer" in str(raised.value)
            assert "s3c" not in str(raised.value)
        header = ToolHeader("ours", "127.0.0.1", "X-Key", secret)
        settings = ToolSettings(private_hosts=(server.url,), headers=(header,))
        with pytest.raises(McpFault) as raised:
            await McpServers(settings, ToolHosts(settings)).list_tools(replace(named, header="ours"))
        assert "s3c" not in str(raised.value)
    program = McpServerDefinition(command=(*PLAIN.command, "told"))
    settings = ToolSettings(mcp_stdio=(" ".join(program.command),), mcp_stdio_env=("TOKEN",))
    servers = McpServers(settings, ToolHosts(settings))
    told = McpSecrets(variables={"TOKEN": secret[::-1]})  # the server says it backwards
    assert await servers.call_tool(program, "told", {"name": "TOKEN"}, told) == ToolAnswer(secret)
    both = McpSecrets(variables={"TOKEN": secret[::-1], "OTHER": secret})
    settings = replace(settings, mcp_stdio_env=("TOKEN", "OTHER"))
    servers = McpServers(settings, ToolHosts(settings))
    assert await servers.call_tool(program, "told", {"name": "TOKEN"}, both) == ToolAnswer("********")


async def test_a_program_gets_the_variables_that_the_settings_name() -> None:
    server = McpServerDefinition(command=(*PLAIN.command, "told"))
    settings = ToolSettings(mcp_stdio=(" ".join(server.command),), mcp_stdio_env=("TOKEN",))
    servers, secrets = McpServers(settings, ToolHosts(settings)), McpSecrets(variables={"TOKEN": "s3cret"})
    assert await servers.call_tool(server, "told", {"name": "TOKEN"}, secrets) == ToolAnswer("s3cret")
    assert await servers.call_tool(server, "told", {"name": "TOKEN"}) == ToolAnswer("nothing")
    other = McpSecrets(variables={"LD_PRELOAD": "/tmp/x.so"})
    with pytest.raises(McpFault, match="mcp_stdio_env does not name the variable LD_PRELOAD"):
        await servers.list_tools(server, other)


async def test_a_header_goes_to_its_host_alone() -> None:
    async with serving(replying("401 Unauthorized", b"")) as server:
        headers = (
            ToolHeader("ours", "127.0.0.1", "Authorization", "Bearer s3cret"),
            ToolHeader("other", "api.example.org", "Authorization", "Bearer other"),
        )
        settings = ToolSettings(private_hosts=(server.url,), headers=headers)
        servers = McpServers(settings, ToolHosts(settings))
        with pytest.raises(McpFault, match="its server answered with the status 401"):
            await servers.list_tools(McpServerDefinition(f"{server.url}/mcp", header="ours"))
        assert server.heads
        assert all("\r\nAuthorization: Bearer s3cret\r\n" in head for head in server.heads)
        server.heads.clear()
        for name in ("other", "nothing"):
            with pytest.raises(McpFault, match=f"no entry '{name}' for this host"):
                await servers.list_tools(McpServerDefinition(f"{server.url}/mcp", header=name))
        assert server.heads == []


async def test_the_settings_name_what_may_be_asked() -> None:
    servers = McpServers(ALLOWED, ToolHosts(ALLOWED))
    servers.check(STDIO)
    for command in ((*STDIO.command, "more"), ("sh", "-c", "true"), STDIO.command[:1]):
        with pytest.raises(McpFault, match=r"tools\.mcp_stdio does not name the command"):
            await servers.list_tools(McpServerDefinition(command=command))
    with pytest.raises(McpFault, match=r"tools\.hosts names none"):
        await servers.list_tools(McpServerDefinition("https://api.example.org/mcp"))


async def test_a_program_that_is_not_there() -> None:
    settings = ToolSettings(mcp_stdio=("/nowhere/program",))
    servers = McpServers(settings, ToolHosts(settings))
    with pytest.raises(McpFault, match="its program is not there"):
        await servers.list_tools(McpServerDefinition(command=("/nowhere/program",)))


async def test_without_the_extra_a_call_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gateway.agents.tools, "mcp_session", raising=False)
    monkeypatch.delitem(sys.modules, "gateway.agents.tools.mcp_session", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    answer = await asking(STDIO).call_tool(STDIO, "add", {})
    assert answer.status == "error"
    assert answer.content == (
        "Error: add cannot be called: the extra `mcp` is not installed on the gateway's machine: in the clone run "
        "pip install -e '.[mcp]', or uv sync --extra mcp."
    )
