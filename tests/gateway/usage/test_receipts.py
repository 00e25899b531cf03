"""The receipt of a request has each call of an upstream, with what it used, however the reply came and ended."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from gateway.run.memory.prompt import Prompt
from gateway.run.receipt import Receipt
from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic, message
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.sdk import World, agent, remember
from tests.patience import becomes

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}


@dataclass
class Receipts:
    """The receipts of a gateway's requests."""

    world: World
    found: list[Receipt] = field(default_factory=list)

    def last(self) -> Receipt:
        self.world.settle()
        return self.found[-1]

    def used(self) -> list[tuple[int, int]]:
        return [call.estimate_used_counts()[:2] for call in self.last().calls]


@pytest.fixture
def receipts(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Receipts]:
    takes: Any = {"responses": "stored", "stream_usage": True}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes),)
    with remember(upstream, tmp_path, agent(), upstreams=upstreams) as world:
        found = Receipts(world)
        world.gateway.app.services.accounting.receipts.add_listener(found.found.append)
        yield found


@pytest.mark.parametrize("memory", ["on", "off"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_counted_as_the_upstream_reports_it(receipts: Receipts, memory: str, stream: bool) -> None:
    receipts.world.upstream.queue(say("Hello there.", usage=USAGE))
    headers = {"x-mnemogate-memory": memory}
    receipts.world.chat(user="alice", headers=headers).say("Hi", stream=stream)
    receipt = receipts.last()
    (call,) = receipt.calls
    assert (receipt.project, receipt.user, receipt.status) == ("default", "alice", 200)
    assert (call.upstream, call.provider, call.model, call.status) == ("up", "openai", "m", 200)
    assert call.is_streamed is stream
    assert call.counts == (40, 3, 0, 0, 0)
    assert 0 < receipt.clock.started_at < call.started_at < call.first_at <= call.ended_at


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_stream_whose_usage_was_not_asked_for_is_what_it_was(receipts: Receipts, memory: str) -> None:
    sdk, upstream = receipts.world.sdk, receipts.world.upstream
    fields: Any = {
        "model": "m",
        "stream": True,
        "user": "alice",
        "messages": [{"role": "user", "content": "Hi"}],
        "extra_headers": {"x-mnemogate-memory": memory},
    }
    raw = sdk.chat.completions.with_raw_response.create(**fields).http_response.read()
    assert upstream.last.json["stream_options"] == {"include_usage": True}
    assert b'"usage"' not in raw
    assert raw.endswith(b"data: [DONE]\n\n")
    chunks = list(sdk.chat.completions.create(**fields, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("memory", ["on", "off"])
def test_the_usage_of_litellms_stream_is_withheld_too(receipts: Receipts, memory: str) -> None:
    chunk: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = [({"role": "assistant", "content": "Hello."}, {}), ({}, {"finish_reason": "stop"})]
    plain = [{**chunk, "choices": [{"index": 0, "delta": delta, **end}]} for delta, end in deltas]
    last = {**chunk, "choices": [{"index": 0, "delta": {}}], "usage": USAGE}
    sent = [b"data: %b\n\n" % json.dumps(each).encode() for each in (*plain, last)]
    receipts.world.upstream.queue(raw(*sent, b"data: [DONE]\n\n"))
    messages = [{"role": "user", "content": "Hi"}]
    reply = receipts.world.post(messages, {"x-mnemogate-memory": memory}, user="alice", stream=True)
    assert reply.body == b"".join((*sent[:2], b"data: [DONE]\n\n"))
    assert receipts.used() == [(40, 3)]


def test_each_hidden_round_is_a_call(receipts: Receipts) -> None:
    arguments = {"label": "human", "new_string": "Has a cat."}
    receipts.world.upstream.queue(
        call_tools(Call("memory_insert", arguments), usage={**USAGE, "prompt_tokens": 50}),
        say("Noted.", usage=USAGE),
    )
    receipts.world.chat(user="alice").say("I have a cat.", model="agent/helper")
    assert receipts.used() == [(50, 3), (40, 3)]
    assert all(call.prompt.injected_tokens > 0 for call in receipts.last().calls)


def test_a_failed_try_is_no_call_of_its_own(upstream: StrictUpstream, tmp_path: Path) -> None:
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, retries=1),)
    with remember(upstream, tmp_path, upstreams=upstreams) as world:
        found: list[Receipt] = []
        world.gateway.app.services.accounting.receipts.add_listener(found.append)
        upstream.queue(fail(503, retry_after="0"), say("Hi.", usage=USAGE))
        world.chat(user="alice").say("Hi")
        world.settle()
        (call,) = found[-1].calls
        assert [(each.endpoint, each.outcome) for each in call.tries] == [("up", "503")]
        assert call.counts is not None


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_reply_that_its_client_leaves_is_estimated(receipts: Receipts, memory: str) -> None:
    hold = Gate()
    receipts.world.upstream.queue(say("abcdefghijkl", tokens=["abcd", "efgh", "ijkl"], hold_after={3: hold}))
    stream = receipts.world.sdk.chat.completions.create(
        model="m",
        stream=True,
        user="alice",
        messages=[{"role": "user", "content": "Hi"}],
        extra_headers={"x-mnemogate-memory": memory},
    )
    text = ""
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if text == "abcdefgh":
            break
    stream.close()
    receipts.world.upstream.last.gone.wait_sync()
    receipt = receipts.last()
    hold.open()
    (call,) = receipt.calls
    assert receipt.status == 499
    assert (call.counts, call.received_chars) == (None, 8)
    assert call.estimate_used_counts() == (call.prompt.tokens or call.sent_tokens, 2, 0, 0, 0)


def test_a_reply_of_claude_that_its_client_leaves_counts_its_prompt_as_reported(tmp_path: Path) -> None:
    """In its own dialect and as a chat completion, with memory and without."""
    found: list[Receipt] = []
    hi: Any = {"stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    with StrictAnthropic() as claude:
        upstreams = (UpstreamSettings("up", "anthropic", claude.base_url),)
        with remember(claude, tmp_path, agent(), upstreams=upstreams) as world:
            world.gateway.app.services.accounting.receipts.add_listener(found.append)
            sdk = anthropic.Anthropic(api_key="sk-a", base_url=world.gateway.url, max_retries=0)
            messages = partial(sdk.messages.create, model="claude-opus-4-6", max_tokens=4000, **hi)
            chat = partial(world.sdk.chat.completions.create, model="claude-opus-4-6", user="alice", **hi)
            off = partial(chat, extra_headers={"x-mnemogate-memory": "off"})
            for ask in (messages, partial(messages, metadata={"user_id": "alice"}), chat, off):
                hold = Gate()
                usage = {"input_tokens": 1000, "output_tokens": 800, "cache_read_input_tokens": 500}
                tokens = ["abcd", "efgh", "ijkl"]
                claude.queue(message(text="abcdefghijkl", tokens=tokens, usage=usage, hold_after={5: hold}))
                with ask() as stream:
                    next(event for event in stream if "efgh" in event.to_json())
                claude.last.gone.wait_sync()
                world.settle()
                hold.open()
    assert [receipt.calls[0].estimate_used_counts() for receipt in found] == [(1500, 2, 500, 0, 0)] * 4


def test_an_upstream_that_refuses_costs_nothing(receipts: Receipts) -> None:
    receipts.world.upstream.queue(fail(400))
    with pytest.raises(openai.BadRequestError):
        receipts.world.chat(user="alice").say("Hi")
    assert receipts.used() == [(0, 0)]
    assert receipts.last().calls[0].status == 400


def test_embeddings_name_their_user(receipts: Receipts) -> None:
    receipts.world.sdk.embeddings.create(model="m", input=["a", "b"], user="bob")
    assert receipts.last().user == "bob"
    assert receipts.used() == [(2, 0)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("user", ["alice", openai.omit])
def test_a_response_that_is_passed_on(receipts: Receipts, stream: bool, user: Any) -> None:
    made = receipts.world.sdk.responses.create(model="m", input="Hi", stream=stream, user=user)
    usage = [*made][-1].response.usage if stream else made.usage  # type: ignore[union-attr]
    assert usage is not None
    assert receipts.used() == [(usage.input_tokens, usage.output_tokens)]


@pytest.mark.parametrize("end", ["incomplete", "failed"])
@pytest.mark.parametrize("user", ["alice", openai.omit])
def test_a_response_that_ends_early_is_counted_as_it_reports(receipts: Receipts, end: str, user: Any) -> None:
    made = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [],
        "status": "in_progress",
    }
    usage = {"input_tokens": 61, "output_tokens": 9, "total_tokens": 70}
    events = (
        {"type": "response.created", "response": made},
        {"type": f"response.{end}", "response": {**made, "status": end, "usage": usage}},
    )
    lines = [
        f"event: {each['type']}\ndata: {json.dumps({**each, 'sequence_number': n})}\n\n".encode()
        for n, each in enumerate(events)
    ]
    receipts.world.upstream.queue(raw(*lines))
    stream = receipts.world.sdk.responses.create(model="m", input="Hi", stream=True, user=user)
    assert [*stream][-1].type == f"response.{end}"
    assert receipts.used() == [(61, 9)]


def test_a_key_in_the_place_of_a_model_or_an_id_is_masked(receipts: Receipts) -> None:
    """A caller may put one there. Operators see both, and the name of a model is stored."""
    world, key = receipts.world, "mg-Zk3vQ9xL2mN8pR5tY7wB4cD6fG1hJ0aS"
    body = {"model": key, "user": "alice", "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(2):
        assert world.gateway.post(body, {"x-request-id": key}).status == 200
    receipts.last()
    services = world.gateway.app.services
    world.gateway.call(services.accounting.meter.write())
    assert world.query("SELECT model, requests FROM usage") == [("mg-***", 2)]
    (newest, _) = services.requests.list_ended()
    assert (newest.model, newest.id) == ("mg-***", "mg-***")
    assert services.requests.find(key) is newest
    world.settle()
    assert world.query("SELECT DISTINCT model FROM exchanges") == ["up/mg-***"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_waits_for_its_next_request_holds_no_prompt(
    receipts: Receipts, stream: bool
) -> None:
    """It holds the receipt of the last one, which could count the usage of its reply."""
    messages = [{"role": "user", "content": "I have a yak."}]
    body = {"model": "m", "user": "alice", "stream": stream, "messages": messages}
    with receipts.world.gateway.connect() as client:
        client.request("POST", "/v1/chat/completions", json.dumps(body).encode())
        client.read_until(b"data: [DONE]" if stream else b'"finish_reason":"stop"')
        receipts.last()
        receipts.found.clear()

        def is_freed() -> bool:
            gc.collect()
            prompts = [each for each in gc.get_objects() if isinstance(each, Prompt)]
            return not any(messages == each.request.messages for each in prompts)

        becomes(is_freed)  # the gateway may still be leaving the functions that answered
