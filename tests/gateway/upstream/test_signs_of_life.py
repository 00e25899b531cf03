"""Keep-alive comments in the silence of an upstream, with memory and without."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.doubles.upstream import (
    Gate,
    call_tools,
    fail,
    raw,
    say,
)
from tests.gateway.sdk import CHAT, agent
from tests.gateway.upstream.failover_world import AGENT, BUSY, INSERT, OpenFailover, both, only_openai

MESSAGES = [{"role": "user", "content": "Hi"}]
over_claude = pytest.mark.parametrize("kind", ["anthropic"], indirect=True)
each_dialect = pytest.mark.parametrize(
    ("path", "asked", "begun"),
    [
        (CHAT, {"messages": MESSAGES}, b'"role":"assistant"'),
        ("/v1/responses", {"input": "Hi"}, b"event: response.created"),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}, b"event: message_start"),
    ],
    ids=["chat", "responses", "messages"],
)


def claudes_stream(*events: dict[str, Any]) -> list[bytes]:
    """Returns a message's events, of which the first two are its start and a ping."""
    message = {
        "id": "msg_1",
        "model": "big",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": 1},
    }
    ending = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
    start = {"type": "message_start", "message": message}
    whole = (start, {"type": "ping"}, *events, ending, {"type": "message_stop"})
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in whole]


def block(**fields: Any) -> tuple[dict[str, Any], ...]:
    begun = {"type": "content_block_start", "index": 0, "content_block": fields}
    return begun, {"type": "content_block_stop", "index": 0}


# --- signs of life


@both
def test_silence_is_filled_with_comments_after_the_upstreams_headers(
    open_failover: OpenFailover, memory: bool
) -> None:
    for at in (0, 3):
        gate = Gate()
        with open_failover(server={"keep_alive_comment_s": 0.01}) as world:
            world.first.queue(say("One two three", hold_after={at: gate}))
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            if memory:
                body["user"] = "alice"
            with world.world.gateway.connect() as client:
                client.request("POST", CHAT, json.dumps(body).encode())
                assert client.read_head().status == 200
                got = client.read_until(b": keep-alive\n\n")
                gate.open()
                got += client.read_until(b"data: [DONE]\n\n")
        assert b'"content":"' in got
        assert (b'"content":" three"' in got, got.count(b"[DONE]")) == (True, 1)


@both
@only_openai
def test_a_comment_does_not_stand_within_an_event(open_failover: OpenFailover, memory: bool) -> None:
    """The half of one that is there waits for the other."""
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[%b]}\n\n'
    first = chunk % b'{"index":0,"delta":{"role":"assistant","content":"One"},"finish_reason":null}'
    second = chunk % b'{"index":0,"delta":{"content":" two"},"finish_reason":"stop"}'
    gate = Gate()
    with open_failover(server={"keep_alive_comment_s": 0.01}) as world:
        world.first.queue(raw(first + second[:50], second[50:], b"data: [DONE]\n\n", hold_after={1: gate}))
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        if memory:
            body["user"] = "alice"
        with world.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode())
            client.read_head()
            got = b""
            while piece := client.read_chunk():
                got += piece
                if b": keep-alive\n\n" in got:
                    gate.open()
        events = [event + b"\n\n" for event in got.split(b"\n\n")[:-1] if event != b": keep-alive"]
        assert events == [first, second, b"data: [DONE]\n\n"]


@both
def test_an_upstream_that_answers_late_is_still_a_status(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(
        fallbacks=(),
        retries=1,
        server={"keep_alive_comment_s": 0.001},
    ) as world:
        world.first.queue(fail(503), fail(503, code="full"))
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(True, memory)
        assert (caught.value.status_code, caught.value.code) == (503, "full")


def test_no_comment_commits_to_a_status_while_a_hidden_round_is_possible(open_failover: OpenFailover) -> None:
    """By the time a stream that began later has its comment, this one had its turn to have one."""
    silent = Gate()
    server = {"keep_alive_comment_s": 0.01}
    with open_failover(profiles=[agent()], server=server) as world:
        world.first.queue(
            call_tools(INSERT, hold_after={1: silent}), say("One", hold_after={1: silent}), BUSY
        )
        body = {**AGENT, "user": "alice", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with world.world.gateway.connect() as client, world.world.gateway.connect() as later:
            client.request("POST", CHAT, json.dumps(body).encode())
            world.first.request_gate(1).wait_sync()
            later.request("POST", CHAT, json.dumps({**body, "model": "m", "user": "bob"}).encode())
            later.read_until(b": keep-alive\n\n")
            silent.open()
            later.read_until(b"data: [DONE]\n\n")
            reply = client.read_reply()
        assert (reply.status, reply.headers["retry-after"]) == (429, "30")


def test_a_later_round_that_thinks_long_is_covered(open_failover: OpenFailover) -> None:
    """The client has text, so it may hear that we live, also before the second reply's headers."""
    thinking = Gate()
    server = {"keep_alive_comment_s": 0.01}
    with open_failover(profiles=[agent()], server=server) as world:
        world.first.queue(
            call_tools(INSERT, text="Let me see. "), say("Noted.", hold_before_headers=thinking)
        )
        body = {**AGENT, "user": "alice", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with world.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode())
            world.first.request_gate(2).wait_sync()
            client.read_until(b"see.")
            client.read_until(b": keep-alive\n\n")
            thinking.open()
            assert b"Noted." in client.read_until(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("model", "memory"),
    [("m", False), ("m", True), ("agent/helper", True)],
    ids=["plain", "memory", "memory tools"],
)
@over_claude
@each_dialect
def test_a_client_gets_the_pings_of_a_claude_that_thinks(
    open_failover: OpenFailover,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    asked: dict[str, Any],
    begun: bytes,
    model: str,
    memory: bool,
) -> None:
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.01)
    pieces = claudes_stream({"type": "ping"}, *block(type="text", text="One"))
    first, thinking = Gate(), Gate()
    with open_failover(profiles=[agent()]) as world:
        world.first.queue(raw(*pieces, hold_after={2: first, 3: thinking}))
        headers = {"x-mnemogate-user": "alice"} if memory else {}
        with world.world.gateway.connect() as client:
            client.request(
                "POST", path, json.dumps({"model": model, "stream": True, **asked}).encode(), headers
            )
            assert client.read_head().status == 200
            client.read_until(begun)
            first.open()
            client.read_until(b"ping")
            thinking.open()
            client.read_until(b"One")


@only_openai
def test_a_long_wait_commits_to_no_status_where_the_upstream_gives_no_sign_of_life(
    open_failover: OpenFailover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its role comes apart from its call, and says nothing of how long that will take."""
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    call = Gate()
    with open_failover(profiles=[agent()]) as world:
        world.first.queue(call_tools(INSERT, hold_after={1: call}), BUSY)
        body = {**AGENT, "user": "alice", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with world.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode())
            world.first.request_gate(1).wait_sync()
            call.open()
            assert client.read_reply().status == 429


@over_claude
@each_dialect
def test_a_round_that_is_hidden_after_a_sign_of_life_leaves_no_trace(
    open_failover: OpenFailover,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    asked: dict[str, Any],
    begun: bytes,
) -> None:
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    thinking = Gate()
    call = block(type="tool_use", id="toolu_1", name=INSERT.name, input=INSERT.arguments)
    with open_failover(profiles=[agent()]) as world:
        world.first.queue(raw(*claudes_stream(*call), hold_after={2: thinking}), say("Noted."))
        body = json.dumps({"model": "agent/helper", "stream": True, **asked}).encode()
        with world.world.gateway.connect() as client:
            client.request("POST", path, body, {"x-mnemogate-user": "alice"})
            got = client.read_until(begun)
            thinking.open()
            got += client.read_until(b"\r\n0\r\n\r\n")
        assert got.count(begun) == 1
        assert b"Noted" in got
        assert INSERT.name.encode() not in got
