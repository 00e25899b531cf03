"""The GenAI metrics count what the receipts have: calls, tokens as reported, first chunks and tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.usage.gen_ai import ModelNames, name_error_type, name_operation, name_provider
from gateway.settings import ModelSettings, UpstreamSettings
from storage.usage_records import UsageLimit
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import World, agent, remember

INFERENCE = "gen_ai_client_inference_"
USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 3,
    "total_tokens": 43,
    "prompt_tokens_details": {"cached_tokens": 8},
}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    takes: Any = {"responses": "stored", "stream_usage": True}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes),)
    with remember(upstream, tmp_path, agent(), upstreams=upstreams) as made:
        yield made


def samples(world: World) -> dict[tuple[str, tuple[str, ...]], float]:
    """Returns what /metrics has, by name and the values of the labels, in the order of their names."""
    world.settle()
    text = world.gateway.ask("GET", "/metrics").body.decode()
    return {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_calls_tokens_and_tools_are_counted(world: World) -> None:
    labels = ("", "chat", "openai", "m")
    arguments = {"label": "human", "new_string": "Has a cat."}
    world.upstream.queue(
        call_tools(Call("memory_insert", arguments), usage=USAGE), say("Noted.", usage=USAGE)
    )
    world.chat(user="alice").say("I have a cat.", model="agent/helper")
    world.chat(user="alice").say("Hi", stream=True)
    world.sdk.embeddings.create(model="e", input="a")
    found = samples(world)
    assert found[INFERENCE + "duration_seconds_count", labels] == 3
    assert found[INFERENCE + "duration_seconds_sum", labels] > 0
    assert found[INFERENCE + "time_to_first_chunk_seconds_count", labels] == 1
    assert found[INFERENCE + "usage_cache_read_input_tokens_total", labels] == 16
    assert found[INFERENCE + "usage_input_tokens_total", labels] > 80
    assert found[INFERENCE + "duration_seconds_count", ("", "embeddings", "openai", "e")] == 1
    assert found["gen_ai_execute_tool_duration_seconds_count", ("memory_insert",)] == 1


def test_a_model_that_no_upstream_answered_for_has_no_label(world: World) -> None:
    world.upstream.queue(fail(404))
    with pytest.raises(openai.NotFoundError):
        world.chat(user="alice").say("Hi", model="my own words")
    found = samples(world)
    assert found[INFERENCE + "duration_seconds_count", ("404", "chat", "openai", "other")] == 1
    assert not any("my own words" in label for _, labels in found for label in labels)


def test_limits_are_counted_by_what_they_do(upstream: StrictUpstream, tmp_path: Path) -> None:
    models = (ModelSettings("m", "m"), ModelSettings("small", "small"))
    with remember(upstream, tmp_path, models=models) as world:

        def add(unit: str, per: str, then: str, most: float) -> None:
            limit = UsageLimit(0, "default", None, None, unit, per, most, then)
            world.gateway.call(world.store.limits.add(limit))

        add("requests", "day", "small", 0)
        world.chat(user="alice").say("Hi")
        add("tokens", "minute", "refuse", 0)
        with pytest.raises(openai.RateLimitError):
            world.chat(user="alice").say("Hi")
        found = samples(world)
        assert found["mnemogate_limited_total", ("day", "alias", "requests")] == 1
        assert found["mnemogate_limited_total", ("minute", "refuse", "tokens")] == 1


def test_labels_are_of_closed_lists() -> None:
    assert [name_operation(path) for path in ("/embeddings", "/responses?x=1", "/files/a")] == [
        "embeddings",
        "chat",
        "",
    ]
    assert (name_provider("gemini"), name_provider("vllm")) == ("gcp.gemini", "vllm")
    assert [
        name_error_type(*each) for each in (("", 200), ("", 404), ("broke", 200), ("503",), ("words",))
    ] == [*("", "404", "broke", "503", "other")]
    names = ModelNames(["named"])
    assert [
        names.choose_name("named", 0),
        names.choose_name("sent", 0),
        names.choose_name("sent", 404),
        names.choose_name("sent", 200),
    ] == [*("named", "other", "other", "sent")]
    labels = [names.choose_label(f"model-{n}", 200) for n in range(300)]
    assert labels[0] == "model-0"
    assert labels[-1] == "other"
    assert len(set(labels)) <= 201
    # A configured name has its label, whatever names came before it.
    assert names.choose_label("named", 200) == "named"
    assert len(names.choose_name("m" * 500, 200)) == 128
