"""Streams with memory in between: the upstream's bytes as they came, and errors that the SDK understands."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from adapters.reply_quota import REPLIES
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, raw, say
from tests.gateway.sdk import CHAT, World, agent, remember
from tests.patience import becomes
from tests.server import QUIET

HELLO: dict[str, Any] = {
    "model": "m",
    "user": "alice",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def direct(world: World, body: dict[str, Any]) -> bytes:
    """What the upstream itself would say."""
    url = f"{world.upstream.base_url}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return bytes(reply.read())


def through(world: World, **options: Any) -> bytes:
    reply = world.gateway.post({**HELLO, **options})
    assert reply.status == 200
    assert reply.headers["x-mnemogate-memory"] == "on"
    return reply.body


STREAMS = [
    pytest.param(say("A plain reply, token by token."), {}, id="plain"),
    pytest.param(say("With usage."), {"stream_options": {"include_usage": True}}, id="usage"),
    pytest.param(say("Two of them."), {"n": 2}, id="n"),
    pytest.param(say("Sure."), {"logprobs": True, "top_logprobs": 2}, id="logprobs"),
    pytest.param(say("Hm.", delta={"reasoning_content": "let me see", "x": [1.10]}), {}, id="reasoning"),
    pytest.param(say("", tokens=["", "", ""]), {}, id="empty tokens"),
    pytest.param(Reply(text="No end.", done=False), {}, id="no done"),
]


@pytest.mark.parametrize(("reply", "options"), STREAMS)
def test_a_stream_without_tools_is_the_upstreams_bytes(
    world: World, reply: Reply, options: dict[str, Any]
) -> None:
    fixed = {"id": "chatcmpl-1", "created": 1, "x_upstream": {"odd": [1.10, None]}}
    reply = replace(reply, extra={**reply.extra, **fixed})
    world.upstream.queue(reply, reply)
    assert through(world, **options) == direct(world, {**HELLO, **options})
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [1]


ODD = (
    b": a comment\n\n",
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"x":1.10}\r\n\r\n',
    b'event: ping\ndata: {"type":"ping"}\n\n',
    b'data:{"id":"c","choices":[{"index":0,"delta":{"content":"caf\\u00e9"}}]}\n\nda',
    b'ta: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop","native":"x"}]}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"total_tokens":3}}\n\ndata: [DONE]\n\n',
)


def test_odd_but_valid_framing_passes_byte_for_byte(world: World) -> None:
    world.upstream.queue(raw(*ODD))
    assert through(world) == b"".join(ODD)


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/json", "text/html"])
@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_stream_by_another_type_is_one(world: World, memory: str, kind: str) -> None:
    """Small servers of one's own name none, and SDKs do not look at it."""
    gate = Gate()
    pieces = (chunk({"role": "assistant", "content": "Tea."}), chunk({}, "stop"), b"data: [DONE]\n\n")
    world.upstream.queue(raw(*pieces, content_type=kind, hold_after={1: gate}))
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(HELLO).encode(), {"x-mnemogate-memory": memory})
        assert client.read_head().headers["content-type"] == kind
        client.read_until(b"Tea.")
        gate.open()
        client.read_until(b"data: [DONE]")
    if memory == "on":
        world.settle()
        assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [1]


def test_a_stream_by_another_type_may_begin_in_pieces(world: World) -> None:
    begun = (b"\r\n", b"d", b"ata", chunk({"role": "assistant", "content": "Tea."}, "stop")[4:])
    world.upstream.queue(raw(*begun, b"data: [DONE]\n\n", content_type="text/plain"))
    assert through(world) == b"".join(begun) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
@pytest.mark.parametrize("body", [b'{"choices": []}', b"Too busy.\n\nCome again.", b"da", b""])
def test_a_whole_reply_where_a_stream_was_asked_for_is_no_stream(
    world: World, body: bytes, kind: str
) -> None:
    """A small server may stream nothing, whatever it is asked for."""
    world.upstream.queue(raw(body, content_type=kind, headers={"content-length": str(len(body))}))
    assert through(world) == body


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_a_whole_reply_where_a_stream_was_asked_for_is_remembered(world: World, kind: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Tea."}, "finish_reason": "stop"}
    body = json.dumps({"id": "c", "choices": [choice]}).encode()
    world.upstream.queue(raw(body, content_type=kind))
    assert through(world) == body
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [1]


@pytest.mark.parametrize("model", ["m", "agent/helper"])
def test_a_whole_reply_by_the_type_of_a_stream_is_whole(world: World, model: str) -> None:
    """Some proxies name this type for each reply, and SDKs read the JSON."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Tea."}, "finish_reason": "stop"}
    world.upstream.queue(raw(json.dumps({"id": "c", "choices": [choice]}).encode()))
    answer = world.post([{"role": "user", "content": "What do I like?"}], model=model, user="alice")
    assert answer.json["choices"][0]["message"]["content"] == "Tea."
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [1]


def test_gateway_tools_are_run_in_a_stream_by_another_type(world: World) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "memory_insert"}}
    call["function"] |= {"arguments": json.dumps({"label": "human", "new_string": "Likes tea."})}
    pieces = (chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), b"data: [DONE]\n\n")
    world.upstream.queue(raw(*pieces, content_type="text/plain"), say("Noted."))
    assert b"memory_insert" not in through(world, model="agent/helper")
    assert "Likes tea." in str(world.upstream.last.messages)


def test_each_token_leaves_as_it_comes(world: World) -> None:
    gates = {n: Gate() for n in range(1, 6)}
    world.upstream.queue(say("one two three", hold_after=gates))
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**HELLO, "model": "agent/helper"}).encode())
        gates[1].open()  # the role delta alone may wait: an error would still be a status
        client.read_until(b'"one"')
        assert client.unread.count(b"data:") == 0
        gates[2].open()
        client.read_until(b'" two"')
        gates[3].open()
        client.read_until(b'" three"')
        gates[4].open()
        gates[5].open()
        client.read_until(b"data: [DONE]")


def test_the_head_of_a_plain_stream_leaves_with_its_first_text(world: World) -> None:
    gate = Gate()
    world.upstream.queue(say("one two", hold_after={2: gate}))
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(HELLO).encode())
        assert client.read_head().status == 200
        gate.open()
        client.read_until(b"[DONE]")


def test_usage_is_sent_only_where_it_was_asked_for(world: World) -> None:
    insert = Call("memory_insert", {"label": "human", "new_string": "x"})
    body = {**HELLO, "model": "agent/helper", "max_tokens": 500}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    for options in ({}, {"stream_options": {"include_usage": True}}):
        world.upstream.queue(call_tools(insert, text=None, usage=usage), say("Done.", usage=usage))
        chunks = _chunks(world.gateway.post({**body, **options}).body)
        usages = [c["usage"] for c in chunks if c.get("usage")]
        if options:
            (total,) = usages
            assert (total["prompt_tokens"], total["completion_tokens"]) == (10, 10)
            assert chunks[-1]["choices"] == []
            assert all("usage" in c for c in chunks)
        else:
            assert usages == []
            assert all(c["choices"] for c in chunks)


def _chunks(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.split(b"\n\n") if line.startswith(b"data: {")]


def test_an_error_after_the_first_byte_is_one_that_the_sdk_raises(world: World) -> None:
    world.upstream.queue(say("one two three", cut_after=3))
    stream = world.sdk.chat.completions.create(**HELLO)
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "one", " two"]
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.body
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [0]


def test_an_error_event_of_the_upstream_passes_and_ends_the_stream(world: World) -> None:
    error = {
        "message": "The server is overloaded.",
        "type": "server_error",
        "param": None,
        "code": "overloaded",
    }
    world.upstream.queue(say("one two three", error_after=(2, error)))
    data = through(world)
    last = data.rstrip(b"\n").split(b"\n\n")[-1]
    assert json.loads(last[6:]) == {"error": error}
    world.upstream.queue(say("one two three", error_after=(2, error)))
    with pytest.raises(openai.APIError, match="overloaded"):
        list(world.sdk.chat.completions.create(**HELLO))
    world.chat(user="alice").say("What was one two?")
    world.settle()
    assert "one" not in str(world.query("SELECT shown_reply FROM exchanges WHERE active <> 0"))


def test_an_upstream_that_is_lost_before_its_answer_is_a_502(world: World) -> None:
    world.upstream.queue(say("x", cut_before_headers=True), say("x", cut_before_headers=True))
    with pytest.raises(openai.InternalServerError) as caught:
        world.sdk.chat.completions.create(**HELLO)
    assert caught.value.status_code == 502
    assert "The gateway got no whole answer from its upstream: 127.0.0.1" in caught.value.message


def test_a_refusal_of_the_upstream_is_the_clients_own(world: World) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        world.sdk.chat.completions.create(**HELLO, temperature=9)
    assert caught.value.param == "temperature"
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges") == [0]


def test_a_whole_reply_passes_byte_for_byte(world: World) -> None:
    body = b'{ "id": "x",  "unknown": [1.10], "choices": [{"index":0, "message":{"role":"assistant","content":"Hi"},'
    body += b' "finish_reason":"stop"}], "usage":{"total_tokens":2} }'
    world.upstream.queue(raw(body, content_type="application/json"))
    assert world.gateway.post({**HELLO, "stream": False}).body == body


def test_a_body_in_no_known_form_passes_and_is_not_stored(world: World) -> None:
    world.upstream.queue(raw(b"<html>hm</html>", content_type="text/html"))
    reply = world.gateway.post({**HELLO, "stream": False})
    assert (reply.status, reply.body) == (200, b"<html>hm</html>")
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [0]


@pytest.mark.sqlite
def test_the_end_waits_for_the_commit_and_the_text_does_not(world: World) -> None:
    gate, entered = Gate(), Gate()

    def block(_: object) -> None:
        entered.open()
        gate.wait_sync()

    world.gateway.loop.call_soon_threadsafe(lambda: world.store.database.writer.submit(block))
    entered.wait_sync()
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(HELLO).encode())
        client.read_until(b'"Ok."')
        gate.open()
        client.read_until(b"[DONE]")
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [1]


@pytest.mark.sqlite
def test_a_slow_store_is_reported_in_a_comment(upstream: StrictUpstream, tmp_path: Path) -> None:
    gate, entered = Gate(), Gate()

    def block(_: object) -> None:
        entered.open()
        gate.wait_sync()

    with remember(upstream, tmp_path, limits=replace(QUIET, commit_wait_s=0.001)) as world:
        world.gateway.loop.call_soon_threadsafe(lambda: world.store.database.writer.submit(block))
        entered.wait_sync()
        data = world.gateway.post(HELLO).body
        whole = world.gateway.post({**HELLO, "stream": False})
        gate.open()
        # openai-go reads a comment with a blank line after it as an event without data, which is an error there.
        assert data.endswith(b"data: [DONE]\n\n: mnemogate not durable\n")
        assert whole.headers["x-mnemogate-durable"] == "false"
        assert world.query("SELECT count(*) FROM exchanges") == [1]


def test_a_reply_without_end_is_cut_where_it_is_stored(upstream: StrictUpstream, tmp_path: Path) -> None:
    """An upstream that never stops took gigabytes of a turn that is remembered."""
    upstream.queue(*(say("word " * 4000) for _ in range(2)))
    with remember(upstream, tmp_path, limits=replace(QUIET, streamed_bytes=20_000)) as world:
        streamed = world.gateway.post(HELLO).body
        assert b"larger than 20000 bytes" in streamed[-300:]
        assert b"[DONE]" not in streamed
        without_user = {key: value for key, value in HELLO.items() if key != "user"}
        handed_on = world.gateway.post(without_user).body
        assert handed_on.endswith(b"data: [DONE]\n\n")


def test_streams_that_are_remembered_have_one_quota_over_all(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six endless streams took two gigabytes, since each was within its own limit."""
    monkeypatch.setattr(REPLIES, "left_bytes", 2_000_000)
    tokens, held = ["word " * 100_000] * 3, Gate()
    upstream.queue(*(say("".join(tokens), tokens, hold_after=gate) for gate in ({4: held}, {})), say("Ok."))
    with remember(upstream, tmp_path) as world, ThreadPoolExecutor() as pool:
        first = pool.submit(world.gateway.post, HELLO)
        becomes(lambda: REPLIES.left_bytes < 1_000_000)
        second = world.gateway.post({**HELLO, "user": "bob"}).body
        assert b"all replies under way are larger than" in second[-300:]
        assert b"[DONE]" not in second
        (endpoint,) = world.gateway.app.services.chat.failover.endpoints["up"]
        assert endpoint.health.break_count == 0  # it is no fault of the upstream's
        assert world.gateway.post({**HELLO, "user": "bob"}).body.endswith(b"data: [DONE]\n\n")
        held.open()
        assert first.result().body.endswith(b"data: [DONE]\n\n")
    assert REPLIES.left_bytes == 2_000_000
