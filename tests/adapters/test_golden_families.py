"""Requests and replies of providers that speak OpenAI's dialect pass unchanged, and the replies are read."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from adapters import factory
from adapters.base import Provider
from adapters.factory import make_provider
from adapters.providers import PROVIDERS
from adapters.sse import EventDecoder
from adapters.transport import HttpTransport
from adapters.types import Event, ModelRequest
from gateway.core.conversation.wire_message import read_text
from gateway.core.turn.chunks import make_chunk
from gateway.core.turn.draft import MessageDraft
from gateway.core.turn.upstream_error import find_openai_error
from tests.doubles.upstream import Reply, StrictUpstream, raw
from tests.golden import ROOT, Golden, find_golden_files

STREAMS, REPLIES = find_golden_files("streams"), find_golden_files("replies")
HI = [{"role": "user", "content": "Hi"}]
streams = pytest.mark.parametrize("golden", STREAMS, ids=[each.id for each in STREAMS])
replies = pytest.mark.parametrize("golden", REPLIES, ids=[each.id for each in REPLIES])


def provider_of(
    golden: Golden, upstream: StrictUpstream, transport: HttpTransport, patch: pytest.MonkeyPatch
) -> Provider:
    row = PROVIDERS[golden.family]
    patch.setitem(factory.PROVIDERS, row.name, replace(row, base_url=upstream.base_url))
    return make_provider(row.name, key="k", transport=transport)


def make_request(stream: bool) -> ModelRequest:
    return ModelRequest(orjson.dumps({"model": "m", "messages": HI, "stream": stream}))


def test_every_family_has_files_of_each_kind() -> None:
    for kind in ("requests", "replies", "streams"):
        families = {folder.parent.name for folder in ROOT.glob(f"*/{kind}")}
        assert families == PROVIDERS.keys(), f"tests/golden/<provider>/{kind} is there for each provider"


@streams
async def test_a_stream_is_cut_into_events_and_passes_byte_by_byte(
    golden: Golden, upstream: StrictUpstream, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = provider_of(golden, upstream, transport, monkeypatch)
    upstream.queue(raw(*golden.pieces))
    reply = await provider.send(make_request(stream=True))
    events = [event async for batch in reply.events() for event in batch]
    await reply.aclose()
    assert render_events(events) == golden.out
    if not golden.passes_unchanged:
        return
    assert b"".join(event.raw for event in events) == b"".join(golden.pieces)
    decoder = EventDecoder()
    cut = [event for byte in b"".join(golden.pieces) for event in decoder.feed(bytes([byte]))]
    assert cut + decoder.finish() == events


def render_events(events: list[Event]) -> list[Any]:
    """Returns events as golden files have them: data without a name as JSON, other events as their text."""
    return [
        event.raw.decode()
        if event.name or event.data is None or event.data == b"[DONE]"
        else orjson.loads(event.data)
        for event in events
    ]


@streams
def test_the_content_of_a_stream_is_read(golden: Golden) -> None:
    decoder = EventDecoder()
    events = [event for piece in golden.pieces for event in decoder.feed(piece)]
    messages: list[Any] = []
    chunks = []
    for event in events:
        if event.data is not None and event.data != b"[DONE]":
            chunk = orjson.loads(event.data)
            error = find_openai_error(chunk, event.name)
            if error is None:
                chunks.append(chunk)
            else:
                messages.append(error["message"])
    assert messages == [each for each in [golden.says.get("error")] if each is not None]
    check_content(golden, chunks)


@replies
async def test_a_reply_passes_as_it_is(
    golden: Golden, upstream: StrictUpstream, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = provider_of(golden, upstream, transport, monkeypatch)
    headers = {"content-type": "application/json", **golden.fields.get("headers", {})}
    upstream.queue(Reply(status=golden.status, headers=headers, body=[golden.body]))
    reply = await provider.send(make_request(stream=False))
    assert await reply.read(1_000_000) == golden.body
    await reply.aclose()
    assert reply.status == golden.status
    assert headers.items() <= dict(reply.headers).items()


@replies
def test_the_content_of_a_reply_is_read(golden: Golden) -> None:
    body = orjson.loads(golden.body)
    if golden.status == 200:
        check_content(golden, [make_chunk(body)])
    elif isinstance(body, dict):
        error = find_openai_error(body)
        assert error is not None
        assert error["message"]


def check_content(golden: Golden, chunks: list[Any]) -> None:
    """Checks that the message of the chunks has the content that the file states."""
    draft, finish = MessageDraft(), None
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            draft.add(delta)
            draft.add_calls(delta.get("tool_calls") or [], (), is_over=False)
            finish = choice.get("finish_reason") or finish
    message = draft.make_message(draft.calls)
    says = dict(golden.says)
    assert read_text(message) == (says.pop("content") or "")
    calls = [
        [call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())
    ]
    assert calls == says.pop("calls")
    ids = [call["id"] for call in message.get("tool_calls", ())]
    assert len(set(ids)) == len(ids)
    assert finish == says.pop("finish_reason")
    says.pop("error", None)
    assert {key: message.get(key) for key in says} == says
    for key, value in golden.fields.get("keeps", {}).items():
        assert message["tool_calls"][0][key] == value
