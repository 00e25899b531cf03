"""The provider without a network: replies in the shapes of the real API."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.demo import DemoProvider
from adapters.errors import ProviderReplyBroken, ProviderUnreachable, UnfinishedEvent
from adapters.scripted import ScriptedBody, ScriptedFailure, ScriptedProvider
from adapters.scripted_message import ScriptedCall, ScriptedMessage
from adapters.types import ModelRequest
from tests.adapters.test_sse import DONES


def body_of(*contents: str, **more: Any) -> dict[str, Any]:
    """A chat whose messages alternate, the last one the user's."""
    roles = ["user", "assistant"] if len(contents) % 2 else ["assistant", "user"]
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"model": "demo", "messages": messages, **more}


def request(body: dict[str, Any]) -> ModelRequest:
    return ModelRequest(orjson.dumps(body))


async def stream(provider: ScriptedProvider, body: dict[str, Any]) -> list[Any]:
    reply = await provider.send(request({**body, "stream": True}))
    events = [event.data async for batch in reply.events() for event in batch]
    await reply.aclose()
    assert events[-1] == b"[DONE]"
    return [orjson.loads(data) for data in events[:-1] if data is not None]


async def whole(provider: ScriptedProvider, body: dict[str, Any]) -> Any:
    reply = await provider.send(request(body))
    return orjson.loads(await reply.read(1_000_000))


async def test_a_stream_has_the_chunks_of_the_real_api() -> None:
    provider = ScriptedProvider(replies=[ScriptedMessage("Hello, you there")])
    chunks = await stream(provider, body_of("hi", stream_options={"include_usage": True}))
    *deltas, usage = chunks
    assert deltas[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["delta"].get("content") for c in deltas[1:-1]] == ["Hello,", " you", " there"]
    assert (deltas[-1]["choices"][0]["delta"], deltas[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert all(c["usage"] is None for c in deltas)
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1


@pytest.mark.parametrize("n", [1, 2])
async def test_the_usage_counts_every_choice(n: int) -> None:
    provider = ScriptedProvider(replies=[ScriptedMessage("Hello, you there")] * 2)
    reply = await whole(provider, body_of("hi", n=n))
    *_, last = await stream(provider, body_of("hi", n=n, stream_options={"include_usage": True}))
    assert len(reply["choices"]) == n
    for usage in (reply["usage"], last["usage"]):
        assert usage["completion_tokens"] == 3 * n
        assert usage["total_tokens"] == usage["prompt_tokens"] + 3 * n


async def test_usage_is_streamed_only_if_asked_for() -> None:
    assert all(c["choices"] and "usage" not in c for c in await stream(ScriptedProvider(), body_of("hi")))


async def test_a_whole_reply_and_a_streamed_one_say_the_same() -> None:
    said = ScriptedMessage(
        "Let me look.", (ScriptedCall("f", '{"a": "b c"}', "c1"), ScriptedCall("g", "{}", "c2"))
    )
    provider = ScriptedProvider(replies=[said, said])
    message = (await whole(provider, body_of("hi")))["choices"][0]["message"]
    chunks = await stream(provider, body_of("hi"))
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            calls.setdefault(call["index"], []).extend((function.get("name", ""), function["arguments"]))
    assert ["".join(calls[i]) for i in sorted(calls)] == ['f{"a": "b c"}', "g{}"]
    assert [c["function"] for c in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"a": "b c"}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("end", DONES)
async def test_a_done_without_its_blank_line_is_whole_as_it_is_over_a_network(end: bytes) -> None:
    provider = ScriptedProvider(
        replies=[ScriptedBody((b"data: {}\n\n", tail)) for tail in (end, b"data: [DONE")]
    )
    assert await stream(provider, body_of("1")) == [{}]
    with pytest.raises(UnfinishedEvent):
        await stream(provider, body_of("2"))


async def test_errors_raw_bytes_and_lost_connections_can_be_scripted() -> None:
    provider = ScriptedProvider(
        replies=[
            ScriptedFailure(429, "Slow down.", headers=(("retry-after", "2"),)),
            ScriptedBody((b"data: {}\n\n", ProviderReplyBroken("cut"))),
            ProviderUnreachable("nobody there"),
        ]
    )
    refused = await provider.send(request(body_of("1")))
    assert (refused.status, dict(refused.headers)["retry-after"]) == (429, "2")
    broken = await provider.send(request(body_of("2")))
    with pytest.raises(ProviderReplyBroken):
        [batch async for batch in broken.events()]
    with pytest.raises(ProviderUnreachable, match="nobody"):
        await provider.send(request(body_of("3")))
    assert [body["messages"][0]["content"] for body in provider.bodies] == ["1", "2", "3"]


async def test_a_request_that_is_no_chat_is_refused_as_the_real_api_refuses_it() -> None:
    for path, body, status in (("/chat/completions", b"{", 400), ("/audio/speech", b"{}", 404)):
        reply = await DemoProvider().send(ModelRequest(body, path=path))
        assert reply.status == status
        assert ("POST /v1/audio/speech" in orjson.loads(await reply.read(10_000))["error"]["message"]) is (
            status == 404
        )
    odd = await DemoProvider().send(request(body_of("hi", tools=5)))
    assert odd.status == 400
