"""Runs of agents, and work without a request: roots of their own, with links to the turns that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.settings import BatchSettings, UpstreamSettings
from gateway.traces.otlp import OtlpSettings
from tests.agents.letta import LettaWorld, letta
from tests.agents.sleeptime import SleeptimeModel, SleeptimeWorld
from tests.agents.test_peers import ASK
from tests.doubles.anthropic_upstream import StrictAnthropic, message
from tests.doubles.collector import Node, StrictCollector, trees
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.background.learner import Learner, fact
from tests.gateway.compacting import CONTEXT, Notes, compacted, text_of
from tests.gateway.messages.sdk import CLIENTS, client
from tests.gateway.sdk import World, agent, remember
from tests.patience import becomes

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}


@pytest.fixture
def collector() -> Iterator[StrictCollector]:
    with StrictCollector() as found:
        yield found


def roots(world: World, collector: StrictCollector) -> list[Node]:
    world.settle()
    tracer = world.gateway.app.services.tracer
    assert tracer is not None
    return trees(collector.wait_for(tracer._queued_spans))


def root(world: World, collector: StrictCollector, name: str) -> Node:
    """Returns the newest root of a name, once there is one."""
    found = becomes(lambda: [each for each in roots(world, collector) if each.name == name])
    return found[-1]


def at_once(collector: StrictCollector) -> OtlpSettings:
    return OtlpSettings(collector.url, delay_s=0.01)


def test_learning_is_linked_to_the_turn(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector
) -> None:
    memory = {"background_model": "small"}
    with remember(upstream, tmp_path, agent(), memory=memory, otlp=at_once(collector)) as world:
        learner = Learner(world)
        learner.queue_calls(fact("The cat is called Miso.", about="cat", messages=[1]))
        world.chat(user="alice").say("My cat is called Miso.")
        learner.pass_idle_time()
        turn = root(world, collector, "POST /v1/chat/completions")
        learned = root(world, collector, "mnemogate.learn")
        assert learned.shape == ("mnemogate.learn", ["chat small"])
        assert learned.has["openinference.span.kind"] == "CHAIN"
        assert learned.span.trace_id != turn.span.trace_id
        assert [(each.trace_id, each.span_id) for each in learned.span.links] == [
            (turn.span.trace_id, turn.span.span_id)
        ]
        call = learned.below[0].has
        assert (call["mnemogate.upstream"], call["gen_ai.request.model"]) == ("up", "small")
        # It was counted once, by the daily budget.
        text = world.gateway.ask("GET", "/metrics").body.decode()
        assert 'mnemogate_background_calls_total{outcome="ok"} 1.0' in text


def test_a_compaction_is_linked_and_later_calls_show_it(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector
) -> None:
    Notes(upstream)
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=CONTEXT)
    memory = {"background_model": "small", "recall_tokens": 0, "learn_every": 0}
    given: dict[str, Any] = {"upstreams": (small,), "memory": memory, "otlp": at_once(collector)}
    with remember(upstream, tmp_path, agent(), **given) as world:
        chat = world.chat(user="alice")
        for number in range(12):
            chat.say(text_of(number, 40))
            compacted(world)
        summary = root(world, collector, "mnemogate.compact")
        assert summary.shape == ("mnemogate.compact", ["chat small"])
        assert summary.span.links
        turns = [each for each in roots(world, collector) if each.span.kind == Span.SPAN_KIND_SERVER]
        shown = [each.find("chat m").has.get("gen_ai.conversation.compacted") for each in turns]
        assert (shown[0], shown[-1]) == (None, True)


@pytest.fixture
def agents(upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector) -> Iterator[LettaWorld]:
    batch = BatchSettings(poll_s=0.05)
    with letta(upstream, tmp_path, otlp=at_once(collector), batch=batch) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
def test_a_send_to_an_agent(agents: LettaWorld, collector: StrictCollector, stream: bool) -> None:
    agent = agents.agent(name="ann", tools=["core_memory_append"])
    arguments = {"label": "human", "content": "Has a cat."}
    agents.upstream.queue(call_tools(Call("core_memory_append", arguments), usage=USAGE), say("Noted."))
    reply: Any = agents.letta.agents.messages.create(agent.id, input="I have a cat.", streaming=stream)
    if stream:
        list(reply)
    found = root(agents.world, collector, "POST /v1/agents/{agent_id}/messages")
    (run,) = found.below
    assert run.name == "invoke_agent"
    assert run.has == {"gen_ai.operation.name": "invoke_agent", "mnemogate.agent.id": agent.id}
    assert [each.name for each in run.below if each.name != "upsert_memory"] == [
        "chat m",
        "execute_tool core_memory_append",
        "chat m",
    ]
    assert any(each.name == "upsert_memory" for each in run.below)
    assert agent.id not in found.span.name


def test_an_agent_that_another_one_asks_is_in_its_trace(
    agents: LettaWorld, collector: StrictCollector
) -> None:
    agent = agents.agent(name="bob", tools=[])
    asking = agents.agent(name="ann", tools=[ASK])
    agents.upstream.queue(
        call_tools(Call(ASK, {"message": "How are you?", "other_agent_id": agent.id}), usage=USAGE),
        say("I am well."),
        say("Bob is well."),
    )
    agents.letta.agents.messages.create(asking.id, input="How is Bob?")
    found = root(agents.world, collector, "POST /v1/agents/{agent_id}/messages")
    (run,) = found.find("mnemogate.run").below
    assert (run.name, run.has["mnemogate.agent.id"]) == ("invoke_agent", agent.id)
    assert run.find("chat m")
    assert found.find("invoke_agent").has["mnemogate.agent.id"] == asking.id
    assert run.span.trace_id == found.span.trace_id


def test_sleeptime_and_batches(agents: LettaWorld, collector: StrictCollector) -> None:
    agents.upstream.script = model = SleeptimeModel()
    world = SleeptimeWorld(agents, model)
    primary = world.create_primary()
    world.set_frequency(primary, None)
    world.send(primary, "I have a cat.")
    world.wait_until_idle()
    asleep = root(agents.world, collector, "mnemogate.sleeptime")
    (run,) = asleep.below
    assert {"chat m", "execute_tool memory_insert"} <= {each.name for each in run.below}
    turn = root(agents.world, collector, "POST /v1/agents/{agent_id}/messages")
    assert turn.span.span_id in [each.span_id for each in asleep.span.links]
    body = {
        "requests": [{"agent_id": agents.agent(name="b").id, "messages": [{"role": "user", "content": "Hi"}]}]
    }
    status, _ = agents.ask("POST", "/v1/messages/batches", body)
    assert status == 200
    assert root(agents.world, collector, "mnemogate.batch").span.kind == 1


@pytest.mark.parametrize("stream", [False, True])
def test_messages_native_and_translated(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector, stream: bool
) -> None:
    with StrictAnthropic() as claude:
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, models=("m",)),
            UpstreamSettings("claude", kind="anthropic", base_url=claude.base_url, api_key="sk-ant-own"),
        )
        with remember(upstream, tmp_path, upstreams=upstreams, otlp=at_once(collector)) as world:
            sdk = client(world)
            CLIENTS.remove(sdk)  # it is closed here
            for name, provider, reasons in (
                ("m", "openai", ["stop"]),
                ("claude-opus-4-6", "anthropic", ["end_turn"]),
            ):
                for metadata in ({}, {"user_id": "alice"}):
                    made: Any = sdk.messages.create(
                        model=name,
                        max_tokens=64,
                        stream=stream,
                        metadata=metadata,  # type: ignore[arg-type]
                        messages=[{"role": "user", "content": "Hi"}],
                    )
                    if stream:
                        list(made)
                    found = root(world, collector, "POST /v1/messages")
                    call = found.find(f"chat {name}").has
                    assert call["gen_ai.provider.name"] == provider
                    assert call["gen_ai.response.id"]
                    assert call["gen_ai.usage.output_tokens"] > 0
                    assert call["gen_ai.response.finish_reasons"] in (reasons, ["stop"])


def test_tokens_that_a_cache_takes_have_both_names_of_the_conventions(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector
) -> None:
    """Phoenix 20.26 knows the earlier one, which the released packages of the conventions have."""
    usage = {
        "input_tokens": 20,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 1000,
        "output_tokens": 7,
    }
    with StrictAnthropic() as claude:
        claude.queue(message(text="Hello.", usage=usage))
        upstreams = (UpstreamSettings("claude", "anthropic", claude.base_url, api_key="sk-ant-own"),)
        with remember(upstream, tmp_path, upstreams=upstreams, otlp=at_once(collector)) as world:
            world.chat(user="alice").say("Hi", model="claude-opus-4-6")
            call = root(world, collector, "POST /v1/chat/completions").find("chat claude-opus-4-6").has
    assert call["gen_ai.usage.cache_write.input_tokens"] == 300
    assert call["gen_ai.usage.cache_creation.input_tokens"] == 300
    assert call["gen_ai.usage.input_tokens"] == 1320
