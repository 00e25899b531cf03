"""Who may use `/mcp`, whose memory it is, in which mode; limits and usage of its calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from gateway.core.json_limits import MAX_VALUES
from gateway.errors import BadRequest
from gateway.web.mcp.mcp_endpoint import MAX_BYTES
from storage.usage_records import UsageLimit
from tests.doubles.upstream import StrictUpstream
from tests.gateway.mcp.client import ERAS, Tools, session
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply, RunningGateway

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
OWNER = {"x-mnemogate-admin": "the-owner"}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(), server={"mcp": True}, admin_token="the-owner") as made:
        yield made


def ask(gateway: RunningGateway, headers: Any = (), path: str = "/mcp", body: Any = LIST) -> RawReply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gateway.ask("POST", path, data, {**ACCEPT, **dict(headers)})


def key(world: World, **fields: Any) -> dict[str, str]:
    reply = world.gateway.ask("POST", "/v1/manage/keys", json.dumps(fields).encode(), OWNER)
    assert reply.status == 201, reply.body
    return {"authorization": f"Bearer {reply.json['secret']}"}


def test_mcp_is_served_only_if_the_setting_says_so(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path) as world:
        assert ask(world.gateway).status == 404


def test_without_keys_other_hosts_and_pages_are_refused(world: World) -> None:
    assert ask(world.gateway).status == 200
    assert ask(world.gateway, {"host": "evil.example"}).status == 403
    assert ask(world.gateway, {"origin": "https://evil.example"}).status == 403


def test_a_key_is_demanded_once_there_is_one(world: World) -> None:
    bearer = key(world, name="app")
    refused = ask(world.gateway)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert ask(world.gateway, bearer).status == 200
    assert ask(world.gateway, key(world, opens="operator")).status == 403
    assert ask(world.gateway, key(world, opens="metrics")).status == 403


@pytest.mark.parametrize("mode", ERAS)
def test_a_client_shows_why_it_is_refused(world: World, mode: str) -> None:
    async def work(client: Client) -> list[str]:
        assert not (await client.call_tool("memory_read")).is_error
        long = {"label": "human", "value": "x" * MAX_BYTES, "version": 1}
        with pytest.raises(MCPError) as too_long:
            await client.call_tool("memory_edit_block", long)
        await asyncio.to_thread(lambda: world.gateway.call(world.store.keys.revoke("app")))
        with pytest.raises(MCPError) as revoked:
            await client.call_tool("memory_read")
        return [str(too_long.value), str(revoked.value)]

    headers = {**key(world, name="app"), "x-mnemogate-user": "alice"}
    too_long, revoked = session(f"{world.gateway.url}/mcp", headers, work, mode)
    assert str(MAX_BYTES) in too_long
    assert "revoked" in revoked


@pytest.mark.parametrize("query", ["user=J%fcrgen", "user=alice&user=bob", "profile=%ff&user=alice"])
def test_a_user_that_cannot_be_distinguished_from_others_is_refused(world: World, query: str) -> None:
    """Read with replacement characters, J%fcrgen and J%e4rgen would be one person."""
    assert ask(world.gateway, path=f"/mcp?{query}").status == 400
    for path in ("imports", "usage", "limits"):
        assert world.gateway.ask("GET", f"/v1/manage/{path}?{query}", headers=OWNER).status == 400
    assert ask(world.gateway, path="/mcp?user=J%c3%bcrgen").status == 200


def test_a_key_of_a_user_is_for_no_other(world: World) -> None:
    bound = key(world, user="alice")
    url = world.gateway.url
    Tools(url, bound).ask("memory_remember", text="Alice likes tea.")
    assert "tea" in str(Tools(url, {**bound, "x-mnemogate-user": "alice"}).ask("memory_read"))
    other = ask(world.gateway, {**bound, "x-mnemogate-user": "bob"})
    assert (other.status, other.error["code"]) == (403, -32600)
    assert other.error["data"]["code"] == "user_not_allowed"
    assert ask(world.gateway, bound, "/mcp?user=bob").status == 403
    # A key of everybody may name her, in the URL as well; projects share nothing.
    everybody = Tools(url, key(world))
    everybody.url += "?user=alice"
    assert "tea" in str(everybody.ask("memory_read"))
    everybody.url += "&profile=helper"
    assert everybody.ask("memory_read")["facts"] == []
    elsewhere = Tools(url, {**key(world, project="other"), "x-mnemogate-user": "alice"})
    assert elsewhere.ask("memory_read")["facts"] == []


def test_without_a_user_calls_say_how_to_name_one(world: World) -> None:
    said = Tools(world.gateway.url).fail("memory_read")
    assert "x-mnemogate-user" in said
    assert "?user=" in said
    unknown = Tools(world.gateway.url)
    unknown.url += "?user=alice&profile=nothing"
    assert "nothing" in unknown.fail("memory_read")


def test_the_default_user_needs_no_name(upstream: StrictUpstream, tmp_path: Path) -> None:
    memory = {"default_user": "alice"}
    with remember(upstream, tmp_path, server={"mcp": True}, memory=memory) as world:
        assert Tools(world.gateway.url).ask("memory_read")["user"] == "alice"


def test_read_refuses_what_writes_and_off_refuses_all(world: World) -> None:
    url, alice = world.gateway.url, {"x-mnemogate-user": "alice"}
    Tools(url, alice).ask("memory_remember", text="Likes tea.")
    for reading in ({**alice, "x-mnemogate-memory": "read"}, {**alice, **key(world, memory="read")}):
        mine = Tools(url, reading if "authorization" in reading else {**reading, **key(world)})
        assert len(mine.ask("memory_read")["facts"]) == 1
        for tool, given in (
            ("memory_remember", {"text": "Likes coffee."}),
            ("memory_correct", {"id": "fact:1", "text": "Likes coffee."}),
            ("memory_edit_block", {"label": "human", "value": "x", "version": 1}),
            ("memory_forget", {"id": "fact:1"}),
        ):
            assert "only reads" in mine.fail(tool, **given)
    assert ask(world.gateway, {**key(world), **alice, "x-mnemogate-memory": "off"}).status == 403
    assert ask(world.gateway, {**key(world, memory="off"), **alice}).status == 403


def test_a_misspelt_header_is_refused(world: World) -> None:
    alice = {"x-mnemogate-user": "alice"}
    refused = ask(world.gateway, {**alice, "x-mnemogate-memroy": "read"})
    assert (refused.status, refused.error["data"]["param"]) == (400, "x-mnemogate-memroy")


def test_a_paused_memory_is_left_alone(world: World) -> None:
    mine = Tools(world.gateway.url, {"x-mnemogate-user": "alice"})
    mine.ask("memory_remember", text="Likes tea.")
    (id,) = world.gateway.call(world.store.forget_targets.list_memories("default", None, "user:alice"))
    world.gateway.call(world.store.forgetting.pause(id, world.clock()))
    for tool, given in (
        ("memory_read", {}),
        ("memory_search", {"query": "tea"}),
        ("memory_remember", {"text": "x y"}),
    ):
        assert "paused" in mine.fail(tool, **given)
    world.gateway.call(world.store.forgetting.pause(id, None))
    assert len(mine.ask("memory_read")["facts"]) == 1


@pytest.mark.both
def test_calls_are_counted_and_held_to_limits_on_requests(world: World) -> None:
    mine = Tools(world.gateway.url, {"x-mnemogate-user": "alice"})
    mine.ask("memory_read")
    add = world.store.limits.add
    for unit, per, most in (
        ("requests", "day", 3),
        ("tokens", "day", 0),
        ("concurrent", None, 0),
        ("cost", "day", 0),
    ):
        world.gateway.call(add(UsageLimit(0, "default", None, None, unit, per, most, "refuse")))
    mine.ask("memory_remember", text="Likes tea.")
    assert "query" in mine.fail("memory_search")
    said = mine.fail("memory_remember", text="Likes coffee.")
    assert "allows 3 requests per day" in said
    usage = world.gateway.ask("GET", "/v1/manage/usage?by=user,upstream,model", headers=OWNER).json["data"]
    (row,) = usage
    assert (row["user"], row["upstream"], row["model"]) == ("alice", "", "")
    assert (row["requests"], row["refused"], row["calls"], row["errors"]) == (3, 1, 0, 0)


def test_half_a_character_costs_nothing_but_itself(world: World) -> None:
    """As programs send it that cut a text."""
    headers = {"x-mnemogate-user": "alice"}
    call = {**LIST, "method": "tools/call"}
    call["params"] = {"name": "memory_remember", "arguments": {"text": "Likes tea \ud83d"}}
    assert ask(world.gateway, headers, body=call).status == 200
    (fact,) = Tools(world.gateway.url, headers).ask("memory_read")["facts"]
    assert fact["text"] == "Likes tea \ufffd"


def test_arguments_of_the_command_line_that_are_no_object_are_named(world: World) -> None:
    call = {"project": "default", "tool": "memory_search", "user": "alice"}
    mcp = world.gateway.app.services.mcp
    for arguments in ("tea", ["tea"], [], "", 3):
        with pytest.raises(BadRequest, match="arguments must be a JSON object") as refused:
            world.gateway.call(mcp.call_for_command_line({**call, "arguments": arguments}))
        assert refused.value.param == "arguments"


def test_protocol_errors_are_json_rpc(world: World) -> None:
    headers = {"x-mnemogate-user": "alice"}
    call = {**LIST, "method": "tools/call", "params": {"name": "memory_drop", "arguments": {}}}
    assert ask(world.gateway, headers, body=call).json["error"]["code"] == -32602
    assert ask(world.gateway, headers, body={**LIST, "method": "tools/drop"}).json["error"]["code"] == -32601
    assert ask(world.gateway, headers, body=b"{").json["error"]["code"] == -32700
    assert ask(world.gateway, headers, body=[LIST]).status == 400
    deep = (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"memory_read","arguments":{"a":'
        + b"[" * 99_999
    )
    assert ask(world.gateway, headers, body=deep).status == 400
    assert ask(world.gateway, headers, body=b" " * (5 << 20)).status == 413
    many = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":[%b0]}}' % (b"0," * MAX_VALUES)
    assert ask(world.gateway, headers, body=many).status == 413
    for method in ("GET", "DELETE"):
        assert world.gateway.ask(method, "/mcp", headers=headers).status == 405
    # It answers as before.
    assert ask(world.gateway, headers).status == 200


def test_nothing_that_is_said_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = Tools(world.gateway.url, {"x-mnemogate-user": "alice"})
    mine.ask("memory_remember", text="The word is Zqmisox.")
    mine.fail("memory_search", query=["Zqmisox"])
    ask(
        world.gateway, {"x-mnemogate-user": "alice"}, body=b'{"jsonrpc": "2.0", "id": "Zqmisox", "method": 3}'
    )
    world.settle()
    world.gateway.flush_log()
    lines = str(world.gateway.lines) + caplog.text + "".join(capfd.readouterr())
    assert '"mcp"' in lines or "'/mcp'" in lines
    assert "Zqmisox" not in lines


@pytest.mark.both
def test_a_call_that_is_left_is_carried_out(world: World) -> None:
    body = {
        **LIST,
        "method": "tools/call",
        "params": {"name": "memory_remember", "arguments": {"text": "Likes tea."}},
    }

    with world.gateway.connect() as client:
        client.request("POST", "/mcp?user=alice", json.dumps(body).encode(), ACCEPT)
    mine = Tools(world.gateway.url, {"x-mnemogate-user": "alice"})
    # The next call of the same text waits for nothing of it, and there is one fact in the end, and not two.
    mine.ask("memory_remember", text="Likes tea.")
    assert len(mine.ask("memory_read")["facts"]) == 1


@pytest.mark.both
def test_any_gateway_confirms_what_another_has_shown(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The word that confirms is made of what the database has: two gateways over one are asked in turn."""
    settings: dict[str, Any] = {"server": {"mcp": True}}
    with remember(upstream, tmp_path, **settings) as first:
        alice = {"x-mnemogate-user": "alice"}
        mine = Tools(first.gateway.url, alice)
        fact = mine.ask("memory_remember", text="Likes tea.")["id"]
        word = mine.ask("memory_forget", id=fact)["confirm"]
        clock = first.clock
    with remember(upstream, tmp_path, clock=clock, **settings) as second:
        mine = Tools(second.gateway.url, alice)
        assert mine.ask("memory_forget", id=fact, confirm=word)["forgotten"]
        assert mine.ask("memory_read")["facts"] == []
