"""`mnemogate mcp`: the tools over stdio, on the file and through the gateway that serves it; and a gateway's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from tests.gateway.forked import ROOT
from tests.gateway.mcp.client import EDITOR, Tools, value_of
from tests.gateway.process import command, serving
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.sqlite

SETTINGS = '[server]\nmcp = true\n[[upstreams]]\nname = "up"\nkind = "scripted"\n'
RUN = ("-m", "gateway", "mcp", "--user", "alice", "--db", "mnemogate.db")


# The handshake, as the lines of a client begin.
HANDSHAKE = [
    {"method": "initialize", "id": 1, "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e", "version": "1"}}},
    {"method": "notifications/initialized"},
]  # fmt: skip


@contextmanager
def editor_of(where: Path, *more: str, asks: Sequence[Mapping[str, Any]] = ()) -> Iterator[Any]:
    """Starts the program and writes a handshake and requests to it. more: its further options."""
    with subprocess.Popen(
        [sys.executable, *RUN, *more],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as editor:
        assert editor.stdin is not None
        for each in (*HANDSHAKE, *asks):
            editor.stdin.write(json.dumps({"jsonrpc": "2.0", **each}) + "\n")
        editor.stdin.flush()
        try:
            yield editor
        finally:
            editor.kill()


def over_stdio(where: Path, work: Callable[[Client], Awaitable[Any]], *more: str, mode: str = "auto") -> Any:
    """Performs some work with the program that an editor would start."""

    async def run() -> Any:
        server = StdioServerParameters(
            command=sys.executable,
            args=[*RUN, *more],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=str(where),
        )
        async with Client(server, mode=mode, client_info=EDITOR) as client:
            return await work(client)

    return asyncio.run(run())


async def remember_and_read(client: Client) -> Any:
    """Remembers, is refused something, and reads."""
    assert len((await client.list_tools()).tools) == 7
    made = await client.call_tool("memory_remember", {"text": "My cat is called Miso."})
    refused = await client.call_tool("memory_search", {"query": ""})
    assert refused.is_error
    assert "query" in refused.content[0].text  # type: ignore[union-attr]
    found = value_of(await client.call_tool("memory_search", {"query": "cat Miso"}))
    return value_of(made), [each["text"] for each in found["results"]]


def test_without_a_gateway_the_file_answers(tmp_path: Path) -> None:
    assert command("keys", "create", "--db", "mnemogate.db", where=tmp_path).returncode == 0
    made, texts = over_stdio(tmp_path, remember_and_read, mode="legacy")
    assert (made["known"], texts) == (False, ["My cat is called Miso."])
    said = command(
        "memory", "show", "--why", "--user", "alice", "--db", "mnemogate.db", where=tmp_path
    ).stdout
    assert "through MCP (Editor 1.2)" in said
    said = command("usage", "--json", "--db", "mnemogate.db", where=tmp_path).stdout
    assert json.loads(said)["requests"] == 3


def test_a_line_that_is_no_message_gets_an_error_and_an_interrupt_ends_it(tmp_path: Path) -> None:
    """A client waited for an answer that never came. The interrupt comes while a thread waits for input."""
    lines = 'not JSON\n\n{"jsonrpc":"2.0"}\n{"jsonrpc":"2.0","id":7,"method":"ping"}\n'
    with editor_of(tmp_path) as editor:
        assert json.loads(editor.stdout.readline())["id"] == 1
        editor.stdin.write(lines)
        editor.stdin.flush()
        # The end of the input would cancel the ping.
        answers = [json.loads(editor.stdout.readline()) for _ in range(3)]
        editor.send_signal(signal.SIGINT)
        assert editor.wait(PATIENCE_S) == 130
    assert [(each["id"], each.get("error", {}).get("code")) for each in answers] == [
        (None, -32700),
        (None, -32600),
        (7, None),
    ]


def test_through_the_gateway_and_after_its_death_the_memory_is_one(tmp_path: Path) -> None:
    with serving(tmp_path, "--db", "mnemogate.db", settings=SETTINGS) as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        mine = Tools(url, {"x-mnemogate-user": "alice"})
        first = mine.ask("memory_remember", text="My cat is called Miso.")

        async def across(client: Client) -> list[dict[str, Any]]:
            known = value_of(await client.call_tool("memory_remember", {"text": "My cat is called Miso."}))
            refused = await client.call_tool("memory_read", {"user": "bob"})
            assert refused.is_error
            # What was answered is on disk, whatever becomes of the process.
            await asyncio.to_thread(gateway.kill)
            after = value_of(await client.call_tool("memory_remember", {"text": "It is grey."}))
            return [known, after, value_of(await client.call_tool("memory_read", {}))]

        # Blanks around a name are as little of it as in requests.
        known, after, read = over_stdio(tmp_path, across, "--user", " alice")
    assert known == {**first, "known": True}
    assert after["known"] is False
    assert [f["text"] for f in read["facts"]] == ["It is grey.", "My cat is called Miso."]


def test_read_refuses_what_writes_and_the_input_s_end_ends_it(tmp_path: Path) -> None:
    cut = {"name": "memory_remember", "arguments": {"text": "Cut \ud83d"}}
    with editor_of(tmp_path, "--read", asks=[{"method": "tools/call", "id": 2, "params": cut}]) as editor:
        editor.stdin.write("no JSON\n")
        editor.stdin.flush()
        # The input stays open until the call is answered: its end cancels the calls that run.
        replies: list[dict[str, Any]] = []
        while not any(each.get("id") == 2 for each in replies):
            replies.append(json.loads(editor.stdout.readline()))
        rest, _ = editor.communicate(timeout=PATIENCE_S)
    assert editor.returncode == 0
    # Nothing but JSON-RPC stands in its output, and no database was made.
    replies += [json.loads(line) for line in rest.splitlines()]
    assert all(each["jsonrpc"] == "2.0" for each in replies)
    (call,) = [each["result"] for each in replies if each.get("id") == 2]
    assert call["isError"]
    assert "There is no database" in call["content"][0]["text"]
    assert not (tmp_path / "mnemogate.db").exists()
