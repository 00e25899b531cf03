"""What every adapter owes the gateway, whatever its upstream speaks: one suite, run for each row there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from msgspec.structs import asdict

from adapters.base import ModelReply, Provider
from adapters.errors import ProviderReplyBroken, ProviderTimeout, ProviderTooLarge, ProviderUnreachable
from adapters.factory import make_provider
from adapters.providers import PROVIDERS, ProviderSpec
from adapters.timeouts import Timeouts
from adapters.transport import HttpTransport
from adapters.types import Header, ModelRequest
from tests.doubles.anthropic_upstream import StrictAnthropic, refuse
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, say
from tests.patience import PATIENCE_S, SHORT_S

Json = dict[str, Any]

PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
HI = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class Family:
    """A row of the registry, and the upstream that is strict about its dialect."""

    row: ProviderSpec
    model: str = "claude-opus-4-6"

    @property
    def upstream(self) -> type[StrictUpstream]:
        return StrictAnthropic if self.row.dialect == "anthropic" else StrictUpstream

    def provider(self, name: str, url: str, **options: Any) -> Provider:
        known = asdict(self.row.capabilities)  # else they would not count at this address
        return make_provider(self.row.name, name=name, base_url=url, known_capabilities=known, **options)

    def refuse(self, status: int, kind: str, message: str, **options: Any) -> Reply:
        if self.upstream is StrictAnthropic:
            return refuse(status, kind, message, **options)
        return fail(status, message, **options)

    @property
    def cached(self) -> Json:
        """Usage of 100 prompt tokens, 60 of them from the cache, and 7 of the completion."""
        if self.upstream is StrictAnthropic:
            return {
                "input_tokens": 30,
                "cache_creation_input_tokens": 10,
                "cache_read_input_tokens": 60,
                "output_tokens": 7,
            }
        return {
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "total_tokens": 107,
            "prompt_tokens_details": {"cached_tokens": 60},
        }


FAMILIES = [Family(row) for row in PROVIDERS.values()]
ONE_OF_EACH_DIALECT = [*{family.row.dialect: family for family in FAMILIES}.values()]


@pytest.fixture(params=FAMILIES, ids=[family.row.name for family in FAMILIES])
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture
def upstream(family: Family) -> Iterator[StrictUpstream]:
    with family.upstream() as running:
        if not family.row.capabilities.replies_without_thoughts:
            running.rules = Rules(wants_thoughts=True)
        yield running


@pytest.fixture
async def provider(
    family: Family, upstream: StrictUpstream, transport: HttpTransport
) -> AsyncIterator[Provider]:
    made = family.provider("up", upstream.base_url, transport=transport)
    yield made
    await made.aclose()


def request(family: Family, headers: tuple[Header, ...] = (), **body: Any) -> ModelRequest:
    body = {"model": family.model, "messages": HI, **body}
    return ModelRequest(orjson.dumps(body), headers)


async def whole(provider: Provider, asked: ModelRequest) -> Json:
    reply = await provider.send(asked)
    body: Json = orjson.loads(await reply.read(1_000_000))
    await reply.aclose()
    assert reply.status == 200, body
    return body


async def chunks(provider: Provider, asked: ModelRequest) -> list[Json]:
    """The parsed chunks of a stream that ends as it should."""
    reply = await provider.send(asked)
    try:
        assert reply.status == 200
        assert dict(reply.headers)["content-type"].startswith("text/event-stream")
        found = [event.data async for batch in reply.events() for event in batch if event.data is not None]
    finally:
        await reply.aclose()
    assert found[-1] == b"[DONE]"
    return [orjson.loads(data) for data in found[:-1]]


async def read_out(reply: ModelReply, stream: bool) -> None:
    if stream:
        async for _ in reply.events():
            pass
    else:
        await reply.read(1_000_000)


def joined(found: list[Json]) -> Json:
    """The message that a stream's deltas make, calls by index, as a client puts them together."""
    text, reason = "", None
    calls: dict[int, Json] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            assert choice["index"] == 0
            delta = choice["delta"]
            text += delta.get("content") or ""
            for piece in delta.get("tool_calls") or ():
                call = calls.setdefault(piece["index"], {"id": piece.get("id"), "name": "", "arguments": ""})
                assert piece.get("id") in (None, call["id"]), "an id stays what it was"
                for key, value in piece["function"].items():
                    call[key] += value
            reason = choice["finish_reason"] or reason
    assert list(calls) == list(range(len(calls)))
    return {"text": text or None, "calls": list(calls.values()), "finish_reason": reason}


def of_whole(body: Json) -> Json:
    choice = body["choices"][0]
    calls = choice["message"].get("tool_calls") or ()
    return {
        "text": choice["message"]["content"],
        "calls": [{"id": call["id"], **call["function"]} for call in calls],
        "finish_reason": choice["finish_reason"],
    }


# -- replies


async def test_a_stream_begins_with_the_role_and_keeps_its_name(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    upstream.queue(say("Hello you", tokens=["Hel", "lo", " you"]))
    found = await chunks(provider, request(family, stream=True))
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert not any("role" in choice["delta"] for chunk in found[1:] for choice in chunk["choices"])
    assert len({(c["id"], c["model"], c["created"], c["object"]) for c in found}) == 1
    assert found[0]["object"] == "chat.completion.chunk"
    texts = [choice["delta"].get("content") for chunk in found for choice in chunk["choices"]]
    assert [text for text in texts if text] == ["Hel", "lo", " you"], "token by token"
    assert "usage" not in found[-1] or found[-1]["choices"]


CALLS = (
    Call("weather", {"city": "Rome"}),
    Call("weather", {"city": "Oslo ø"}, pieces=1),
    Call("clock", "{}"),
)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (say("Hello."), "stop"),
        (say("Cut", finish_reason="length"), "length"),
        (say("No", finish_reason="content_filter"), "content_filter"),
        (call_tools(*CALLS), "tool_calls"),
        (call_tools(*CALLS, text="Let me look."), "tool_calls"),
    ],
    ids=["text", "length", "filtered", "calls", "text and calls"],
)
async def test_whole_and_streamed_say_the_same(
    family: Family, provider: Provider, upstream: StrictUpstream, reply: Reply, reason: str
) -> None:
    tools = [WEATHER, CLOCK]
    upstream.queue(reply, reply)
    body = of_whole(await whole(provider, request(family, tools=tools)))
    streamed = joined(await chunks(provider, request(family, tools=tools, stream=True)))
    for each in (body, streamed):
        assert len({call.pop("id") for call in each["calls"]}) == len(reply.calls)
        for call in each["calls"]:
            call["arguments"] = orjson.loads(call["arguments"])
    assert body == streamed
    assert body["finish_reason"] == reason
    assert [call["name"] for call in body["calls"]] == [call.name for call in reply.calls]
    assert [call["arguments"] for call in body["calls"]] == [orjson.loads(call.text) for call in reply.calls]


async def test_usage_comes_when_asked_for_alone_and_last(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    upstream.queue(*[say("Hello.", usage=family.cached)] * 3)
    asked = request(family, stream=True, stream_options={"include_usage": True})
    *before, last = await chunks(provider, asked)
    assert last["choices"] == []
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in before)
    usage = last["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (100, 7, 107)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 60
    assert (await whole(provider, request(family)))["usage"] == usage
    assert all("usage" not in chunk for chunk in await chunks(provider, request(family, stream=True)))


async def test_bytes_and_events_are_the_same_stream(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    upstream.queue(*[call_tools(*CALLS, text="Hm.", id="same")] * 2)
    asked = request(family, tools=[WEATHER, CLOCK], stream=True)
    replies = [await provider.send(asked) for _ in range(2)]
    by_events = [event.raw async for batch in replies[0].events() for event in batch]
    by_bytes = [chunk async for chunk in replies[1].chunks()]
    for reply in replies:
        await reply.aclose()

    def says(stream: bytes) -> Json:
        assert stream.endswith(b"data: [DONE]\n\n")
        lines = [line[6:] for line in stream.split(b"\n\n") if line.startswith(b"data: {")]
        assert len(lines) > 5
        said = joined([orjson.loads(line) for line in lines])
        return {**said, "calls": [call["arguments"] for call in said["calls"]]}

    assert says(b"".join(by_events)) == says(b"".join(by_bytes))


def count_events_to_first_word(family: Family) -> int:
    """Returns the number of events of a streamed reply up to the event with its first word."""
    return 4 if family.upstream is StrictAnthropic else 2


async def test_peeked_events_are_returned_as_well(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    """peek: the first event, before the rest has come; nothing of the stream is lost or returned twice."""
    gates = [Gate(), Gate()]
    count = count_events_to_first_word(family)
    upstream.queue(*(say("One two", tokens=["One", " two"], hold_after={count: gate}) for gate in gates))
    for by_bytes, gate in zip((True, False), gates, strict=True):
        reply = await provider.send(request(family, stream=True))
        async with asyncio.timeout(PATIENCE_S):
            first = await reply.peek()
        assert first is not None
        assert first.data is not None
        gate.open()
        if by_bytes:
            stream = b"".join([chunk async for chunk in reply.chunks()])
        else:
            stream = b"".join([event.raw async for batch in reply.events() for event in batch])
        await reply.aclose()
        lines = [orjson.loads(line[6:]) for line in stream.split(b"\n\n") if line.startswith(b"data: {")]
        assert first.data in stream.partition(b"two")[0]
        assert joined(lines)["text"] == "One two"
        assert stream.count(b'"role":"assistant"') == 1


async def test_the_first_words_do_not_wait_for_the_next(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    gate = Gate()
    count = count_events_to_first_word(family)
    upstream.queue(say("One two", tokens=["One", " two"], hold_after={count: gate}))
    reply = await provider.send(request(family, stream=True))
    events = reply.events()
    seen = b""
    async with asyncio.timeout(PATIENCE_S):
        while b"One" not in seen:
            seen += b"".join(event.raw for event in await anext(events))
    assert b"two" not in seen
    gate.open()
    assert b"two" in b"".join([event.raw async for batch in events for event in batch])
    await reply.aclose()


async def test_the_connection_is_used_again(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    """Also by a caller that stops reading at [DONE], and reads out what is left as bytes."""
    for _ in range(2):
        reply = await provider.send(request(family, stream=True))
        async for batch in reply.events():
            if batch[-1].data == b"[DONE]":
                break
        assert b"".join([chunk async for chunk in reply.chunks()]) == b""
        await reply.aclose()
    await whole(provider, request(family))
    assert upstream.opened == 1


# -- requests


@pytest.mark.parametrize("ask", [whole, chunks], ids=["whole", "streamed"])
async def test_zero_is_a_temperature(
    family: Family,
    provider: Provider,
    upstream: StrictUpstream,
    ask: Callable[[Provider, ModelRequest], Awaitable[Any]],
) -> None:
    for field in ("temperature", "top_p"):
        await ask(provider, request(family, **{field: 0}, stream=ask is chunks))
        assert upstream.last.json[field] == 0


async def test_a_conversation_with_calls_images_and_system_messages_is_accepted(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    """The strict upstreams refuse what the real ones do."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Rome?"}, _image()]},
        {"role": "assistant", "content": None, "tool_calls": [_call("call_1"), _call("call_2")]},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        {"role": "assistant", "content": "Both, then."},
        {"role": "system", "content": "Now be brief."},
        {"role": "user", "content": "Thanks"},
    ]
    asked = request(
        family, messages=messages, tools=[WEATHER, CLOCK], tool_choice="auto", parallel_tool_calls=False
    )
    await whole(provider, asked)
    assert upstream.last.refusal is None
    body = orjson.dumps(upstream.last.json)
    for words in (b"Be kind.", b"Rome?", b"rain", b"sun", b"Both, then.", b"Now be brief.", b"Thanks"):
        assert body.count(words) == 1
    assert PIXEL.partition(",")[2].encode() in body


def _image() -> Json:
    return {"type": "image_url", "image_url": {"url": PIXEL}}


def _call(call_id: str) -> Json:
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    return {"id": call_id, "type": "function", "function": function}


async def test_an_unknown_field_is_never_dropped_in_silence(family: Family, provider: Provider) -> None:
    """It goes upstream, and these upstreams know no such field."""
    reply = await provider.send(request(family, x_unheard_of=1))
    error = orjson.loads(await reply.read(10_000))["error"]
    assert (reply.status, error["param"]) == (400, "x_unheard_of")
    await reply.aclose()


async def test_the_callers_headers_go_on(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    await whole(provider, request(family, (("x-title", "app"), ("user-agent", "sdk/1"))))
    assert (upstream.last.headers["x-title"], upstream.last.headers["user-agent"]) == ("app", "sdk/1")


# -- what goes wrong


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
async def test_an_error_keeps_its_status_words_and_headers(
    family: Family, provider: Provider, upstream: StrictUpstream, status: int, stream: bool
) -> None:
    upstream.queue(family.refuse(status, "some_error", "Sorry, no.", retry_after="7"))
    reply = await provider.send(request(family, stream=stream))
    error = orjson.loads(await reply.read(10_000))["error"]
    await reply.aclose()
    assert reply.status == status
    assert error["message"] == "Sorry, no."
    assert error.keys() >= {"message", "type", "param", "code"}
    assert dict(reply.headers)["retry-after"] == "7"
    assert "x-request-id" in dict(reply.headers)


async def test_an_error_in_the_middle_is_an_error_event(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    upstream.queue(
        say("One two three", error_after=(4, {"type": "overloaded_error", "message": "Too busy."}))
    )
    reply = await provider.send(request(family, stream=True))
    found = [event.data async for batch in reply.events() for event in batch if event.data]
    await reply.aclose()
    error = orjson.loads(found[-1])["error"]
    assert (error["type"], error["message"]) == ("overloaded_error", "Too busy.")
    assert b"One" in b"".join(found)
    assert b"[DONE]" not in found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_lost_connection_is_no_end(
    family: Family, provider: Provider, upstream: StrictUpstream, stream: bool
) -> None:
    upstream.queue(say("One two three", cut_after=3))
    reply = await provider.send(request(family, stream=stream))
    with pytest.raises(ProviderReplyBroken):
        await read_out(reply, stream)
    await reply.aclose()


async def test_the_error_names_an_upstream_that_cannot_be_reached(family: Family) -> None:
    provider = family.provider("gone", "http://127.0.0.1:1/v1")
    with pytest.raises(ProviderUnreachable) as caught:
        await provider.send(request(family))
    assert "127.0.0.1" in str(caught.value)
    await provider.aclose()


# The transport counts the time for every row; of each dialect one shows that it is asked to.
@pytest.mark.parametrize("family", ONE_OF_EACH_DIALECT, ids=lambda family: family.row.name, indirect=True)
@pytest.mark.parametrize("where", ["first byte", "between chunks"])
async def test_timeouts_are_honoured(
    family: Family, upstream: StrictUpstream, transport: HttpTransport, where: str
) -> None:
    never = Gate()
    short = Timeouts(first_byte_s=SHORT_S if where == "first byte" else PATIENCE_S, between_chunks_s=SHORT_S)
    held: Json = {"hold_before_headers": never} if where == "first byte" else {"hold_after": {2: never}}
    upstream.queue(say("One two", **held))
    transport.timeouts = short
    provider = family.provider("up", upstream.base_url, transport=transport)
    with pytest.raises(ProviderTimeout) as caught:
        await chunks(provider, request(family, stream=True))
    assert caught.value.phase == where


@pytest.mark.parametrize("moment", ["before the first byte", "in the middle", "whole"])
async def test_closing_a_reply_stops_the_upstream(
    family: Family, provider: Provider, upstream: StrictUpstream, moment: str
) -> None:
    never = Gate()
    held: Json = {"hold_after": {3: never}} if moment == "in the middle" else {"hold_before_headers": never}
    upstream.queue(say("One two", **held))
    asked = request(family, stream=moment != "whole")
    if moment == "in the middle":
        reply = await provider.send(asked)
        events = reply.events()
        await anext(events)
        await reply.aclose()
    else:
        task = asyncio.create_task(provider.send(asked))
        await upstream.request_gate(1).wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await upstream.last.gone.wait()


async def test_a_reply_without_bound_is_not_read(
    family: Family, provider: Provider, upstream: StrictUpstream
) -> None:
    upstream.queue(*[say("x" * 5000)] * 2)
    for stream in (False, True):
        reply: ModelReply = await provider.send(request(family, stream=stream))
        with pytest.raises(ProviderTooLarge):
            await reply.read(1000)
        await reply.aclose()
