"""The spans of each kind of request, as a strict collector decodes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.settings import TraceSettings, UpstreamSettings
from gateway.traces.otlp import OtlpSettings
from tests.doubles.collector import Node, StrictCollector, trees
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import World, agent, are_idle, remember

USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 7,
    "total_tokens": 47,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
CHAT = "POST /v1/chat/completions"


@dataclass
class Traced:
    """A gateway that exports each trace at once."""

    world: World
    collector: StrictCollector

    def last(self) -> Node:
        """Returns the newest request's tree, once all that was asked has been exported."""
        self.world.settle()
        roots = self.all()
        return [each for each in roots if each.span.kind == 2][-1]

    def all(self) -> list[Node]:
        tracer = self.world.gateway.app.services.tracer
        assert tracer is not None
        return trees(self.collector.wait_for(tracer._queued_spans))


@pytest.fixture
def traced(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Traced]:
    takes: Any = {"responses": "stored", "stream_usage": True}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes, retries=1),)
    with StrictCollector() as collector:
        otlp = OtlpSettings(collector.url, delay_s=0.01)
        with remember(upstream, tmp_path, agent(), upstreams=upstreams, otlp=otlp) as world:
            yield Traced(world, collector)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_with_memory(traced: Traced, stream: bool) -> None:
    world = traced.world
    world.chat(user="alice").say("My cat is called Miso.")
    world.upstream.queue(say("Miso.", usage=USAGE, id="chatcmpl-7", model="m-2026"))
    reply = world.sdk.chat.completions.with_raw_response.create(
        model="m",
        user="alice",
        stream=stream,
        max_tokens=50,
        messages=[{"role": "user", "content": "What is my cat called?"}],
    )
    reply.http_response.read()
    root = traced.last()
    assert reply.headers["x-mnemogate-trace"] == root.span.trace_id.hex()
    assert root.shape == (CHAT, ["search_memory", "chat m", "upsert_memory"])
    assert root.has | {"mnemogate.added_ms": 0, "user.id": "", "session.id": ""} == {
        "openinference.span.kind": "CHAIN",
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "mnemogate.request.id": reply.headers["x-mnemogate-request-id"],
        "mnemogate.project": "default",
        "mnemogate.memory": "on",
        "mnemogate.added_ms": 0,
        "mnemogate.recalled_tokens": int(reply.headers["x-mnemogate-recalled-tokens"]),
        "mnemogate.injected_tokens": int(reply.headers["x-mnemogate-injected-tokens"]),
        "mnemogate.evicted_tokens": 0,
        "user.id": "",
        "session.id": "",
    }
    assert root.has["session.id"] == reply.headers["x-mnemogate-conversation"]
    assert len(root.has["user.id"]) == 16
    call = root.find("chat m").has
    first = call.pop("gen_ai.response.time_to_first_chunk", None)
    assert (first is not None) is stream
    assert call == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        **({"gen_ai.request.stream": True} if stream else {}),
        "gen_ai.request.max_tokens": 50,
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.response.model": "m-2026",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.conversation.id": reply.headers["x-mnemogate-conversation"],
        "server.address": "127.0.0.1",
        "server.port": int(world.upstream.base_url.split(":")[2].split("/")[0]),
        "mnemogate.upstream": "up",
    }
    store = reply.headers["x-mnemogate-agent"]
    assert root.find("search_memory").has == {
        "openinference.span.kind": "RETRIEVER",
        "gen_ai.operation.name": "search_memory",
        "gen_ai.memory.store.id": store,
        "gen_ai.memory.record.count": 1,
        "mnemogate.recall.tokens": int(reply.headers["x-mnemogate-recalled-tokens"]),
        "mnemogate.recall.late": False,
    }
    assert root.find("upsert_memory").has == {
        "openinference.span.kind": "CHAIN",
        "gen_ai.operation.name": "upsert_memory",
        "gen_ai.memory.store.id": store,
        "mnemogate.durable": True,
    }


@pytest.mark.parametrize("users", ["plain", "none"])
def test_a_span_names_the_user_as_the_settings_say(
    upstream: StrictUpstream, tmp_path: Path, users: Any
) -> None:
    with StrictCollector() as collector:
        otlp, traces = OtlpSettings(collector.url, delay_s=0.01), TraceSettings(users)
        with remember(upstream, tmp_path, otlp=otlp, traces=traces) as world:
            world.chat(user="alice").say("Hi")
            root = Traced(world, collector).last()
            assert root.has.get("user.id") == ("alice" if users == "plain" else None)


def test_a_bound_of_tokens_beyond_what_a_span_can_hold(traced: Traced) -> None:
    traced.world.post([{"role": "user", "content": "Hi"}], user="alice", max_tokens=2**64 - 1)
    assert traced.last().find("chat m").has["gen_ai.request.max_tokens"] == 2**63 - 1


def test_a_chat_without_memory(traced: Traced) -> None:
    traced.world.upstream.queue(say("Hi.", usage=USAGE))
    traced.world.chat().say("Hi")
    root = traced.last()
    assert root.shape == (CHAT, ["chat m"])
    assert root.has["mnemogate.memory"] == "none"
    assert root.find("chat m").has["gen_ai.usage.input_tokens"] == 40


def test_tool_rounds_and_a_failed_try(traced: Traced) -> None:
    arguments = {"label": "human", "new_string": "Has a cat."}
    traced.world.upstream.queue(
        fail(503, retry_after="0"),
        call_tools(Call("memory_insert", arguments), usage=USAGE),
        say("Noted.", usage=USAGE),
    )
    traced.world.chat(user="alice").say("I have a cat.", model="agent/helper")
    root = traced.last()
    assert root.shape == (CHAT, ["chat m", "execute_tool memory_insert", "chat m", "upsert_memory"])
    first, tool, second, _ = root.below
    (event,) = first.span.events
    assert (event.name, [each.value.string_value for each in event.attributes]) == (
        "mnemogate.try",
        ["up", "503"],
    )
    assert first.has["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert tool.has == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "memory_insert",
        "gen_ai.tool.type": "function",
    }
    assert not second.span.events


def test_a_refused_request_fails_its_call_and_not_the_gateway(traced: Traced) -> None:
    traced.world.upstream.queue(fail(400))
    with pytest.raises(openai.BadRequestError):
        traced.world.chat(user="alice").say("Hi", model="unheard")
    root = traced.last()
    assert (root.has["http.response.status_code"], root.span.status.code) == (400, 0)
    assert root.find("chat other").has["error.type"] == "400"
    traced.world.upstream.queue(fail(500), fail(500))
    with pytest.raises(openai.InternalServerError):
        traced.world.chat(user="alice").say("Hi")
    assert traced.last().has["error.type"] == "500"


def test_a_client_that_leaves(traced: Traced) -> None:
    world, hold = traced.world, Gate()
    world.upstream.queue(say("abcdefgh", tokens=["abcd", "efgh"], hold_after={2: hold}))
    stream = world.sdk.chat.completions.create(
        model="m", stream=True, user="alice", messages=[{"role": "user", "content": "Hi"}]
    )
    next(iter(stream))
    stream.close()
    world.upstream.last.gone.wait_sync()
    root = traced.last()
    hold.open()
    assert root.has["mnemogate.client_gone"] is True
    assert root.has["error.type"] == "cancelled"
    assert "http.response.status_code" not in root.has
    assert root.find("chat m").has["error.type"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_responses_passed_on_and_by_way_of_chat(traced: Traced, stream: bool) -> None:
    sdk = traced.world.sdk
    for user, below in ((openai.omit, ["chat m"]), ("alice", ["search_memory", "chat m", "upsert_memory"])):
        made: Any = sdk.responses.create(model="m", input="Hi", stream=stream, user=user)
        if stream:
            assert list(made)
        root = traced.last()
        assert root.shape == ("POST /v1/responses", below)
        call = root.find("chat m").has
        assert call["gen_ai.response.id"].startswith("resp_")
        assert call["gen_ai.response.finish_reasons"] == ["completed"]
        assert call["gen_ai.usage.output_tokens"] > 0
    made = sdk.responses.create(model="agent/helper", input="Hi", stream=stream, user="alice")
    if stream:
        assert list(made)
    assert traced.last().find("chat m").has["gen_ai.response.id"].startswith("chatcmpl")


def test_other_endpoints(traced: Traced) -> None:
    sdk = traced.world.sdk
    sdk.embeddings.create(model="e", input="a")
    root = traced.last()
    assert root.shape == ("POST /v1/embeddings", ["embeddings e"])
    assert root.find("embeddings e").has["gen_ai.usage.input_tokens"] > 0
    sdk.models.list()
    assert traced.last().shape == "GET /v1/models"
    with pytest.raises(openai.APIStatusError):
        sdk.post("/no/such/path", cast_to=object, body={})
    assert traced.last().shape == "POST"
    traced.world.gateway.ask("GET", "/health")
    traced.world.gateway.ask("GET", "/metrics")
    assert traced.last().shape == "POST"


def test_an_unknown_method_is_named_as_the_conventions_say(traced: Traced) -> None:
    assert traced.world.gateway.ask("PROPFIND", "/v1/models").status == 405
    root = traced.last()
    assert (root.name, root.has["http.request.method"]) == ("HTTP /v1/models", "_OTHER")


def test_the_vector_of_a_question_is_a_call_of_its_request(upstream: StrictUpstream, tmp_path: Path) -> None:
    with StrictUpstream(key="sk-emb") as other, StrictCollector() as collector:
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, models=("m",)),
            UpstreamSettings("emb", base_url=other.base_url, api_key="sk-emb"),
        )
        memory = {"embedder": "emb/vec", "embedder_wait_ms": 10_000}
        otlp = OtlpSettings(collector.url, delay_s=0.01)
        with remember(upstream, tmp_path, agent(), upstreams=upstreams, memory=memory, otlp=otlp) as world:
            traced = Traced(world, collector)
            world.chat(user="alice").say("My cat is called Miso.")
            world.clock.sleep(500)
            background = world.gateway.app.services.background
            assert background.embedding is not None
            world.gateway.call(background.embedding.schedule.perform_due())
            world.store.jobs.wake()
            world.wait_for_jobs(are_idle)
            world.chat(user="alice").say("What is my cat called?")
            root = traced.last()
            assert root.shape == (CHAT, ["search_memory", "embeddings vec", "chat m", "upsert_memory"])
            call = root.find("embeddings vec").has
            assert call["mnemogate.upstream"] == "emb"
            assert call["gen_ai.usage.input_tokens"] == 1
            (embed,) = [each for each in traced.all() if each.name == "mnemogate.embed"]
            assert {each.name for each in embed.below} == {"embeddings vec"}
            text = world.gateway.ask("GET", "/metrics").body.decode()
            assert 'gen_ai_operation_name="embeddings"' in text
