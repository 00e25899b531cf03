"""Another model than the one that made a reply gets its words and calls, and nothing that only its provider reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic, message, refuse, think
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.responses.response_client import WEATHER, respond, streamed
from tests.gateway.sdk import World, agent, remember

Json = dict[str, Any]
CLAUDE = "claude-opus-4-8"
OFF = {"x-mnemogate-memory": "off"}
PATCH: Json = {"id": "c", "type": "custom", "custom": {"name": "apply_patch", "input": "*** Begin"}}
APPLY_PATCH: Json = {"type": "custom", "name": "apply_patch"}


@pytest.fixture
def claude() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as made:
        yield made


@pytest.fixture
def world(claude: StrictAnthropic, upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    """Has the model `smart` of Claude's, for which `other/m` stands in."""
    upstreams = (
        UpstreamSettings("claude", "anthropic", claude.base_url, api_key="k"),
        UpstreamSettings("other", "openai", upstream.base_url, takes={"responses": False}),
    )
    models = (
        ModelSettings("smart", CLAUDE, "claude", fallbacks=("other/m",)),
        ModelSettings("m", "m", "other"),
    )
    with remember(upstream, tmp_path, agent(), upstreams=upstreams, models=models) as made:
        yield made


def items_of(response: Any) -> list[Json]:
    return [item.model_dump(exclude_none=True) for item in response.output]


# How a client goes on from a response: the fields of its next request.
def by_id(response: Any) -> Json:
    return {"previous_response_id": response.id, "input": "Why?"}


def by_items(response: Any) -> Json:
    return {"input": [*asked("Is it?"), *items_of(response), *asked("Why?")]}


def by_ids_of_thoughts(response: Any) -> Json:
    items = [{k: v for k, v in each.items() if k != "encrypted_content"} for each in items_of(response)]
    return {"input": [*asked("Is it?"), *items, *asked("Why?")]}


def by_references(response: Any) -> Json:
    named = [{"type": "item_reference", "id": item.id} for item in response.output]
    return {"input": [*asked("Is it?"), *named, *asked("Why?")]}


def by_its_conversation(response: Any) -> Json:
    return {"conversation": response.conversation.id, "input": "Why?"}


def asked(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


any_way = pytest.mark.parametrize(
    "way", [by_id, by_items, by_ids_of_thoughts, by_references, by_its_conversation]
)


def begin(world: World, way: Callable[[Any], Json]) -> Any:
    """Returns the first response, with thoughts that its client can send again."""
    fields: Json = {"include": ["reasoning.encrypted_content"]}
    if way is by_its_conversation:
        fields["conversation"] = world.sdk.conversations.create().id
    return respond(world, model="smart", input="Is it?", user="alice", **fields)


@any_way
@pytest.mark.parametrize("falls_back", [True, False])
def test_thoughts_stay_with_their_model(
    world: World,
    claude: StrictAnthropic,
    upstream: StrictUpstream,
    way: Callable[[Any], Json],
    falls_back: bool,
) -> None:
    claude.queue(think("Hm, perhaps.", "Yes."), think("Well.", "So it is."))
    first = begin(world, way)
    assert [item.type for item in first.output] == ["reasoning", "message"]
    respond(world, model="smart", user="alice", **way(first))
    assert "Hm, perhaps." in str(claude.last.json["messages"])
    if falls_back:
        claude.queue(refuse(529, "overloaded_error"))
    upstream.queue(say("Because."))
    last = respond(world, model="smart" if falls_back else "m", user="alice", **way(first))
    assert last.output_text == "Because."
    assert [m["content"] for m in upstream.last.messages if m["role"] == "assistant"][:1] == ["Yes."]
    assert "Hm, perhaps." not in upstream.last.body.decode()


@pytest.mark.parametrize("named", [{"user": "alice"}, {"extra_headers": OFF}, {}])
@pytest.mark.parametrize("falls_back", [True, False])
def test_sealed_thoughts_stay_with_their_model(
    world: World, claude: StrictAnthropic, upstream: StrictUpstream, named: Json, falls_back: bool
) -> None:
    """As Codex and LiveKit send them, with nothing stored."""
    claude.queue(think("Hm, perhaps.", "Yes."), think("Well.", "So it is."))
    options: Json = {"model": "smart", "store": False, **named}
    first = respond(world, input="Is it?", **options)
    respond(world, **by_items(first), **options)
    assert "Hm, perhaps." in str(claude.last.json["messages"])
    if falls_back:
        claude.queue(refuse(529, "overloaded_error"))
    upstream.queue(say("Because."))
    last = respond(world, **by_items(first), **{**options, **({} if falls_back else {"model": "m"})})
    assert last.output_text == "Because."
    assert "Hm, perhaps." not in upstream.last.body.decode()


@pytest.mark.parametrize("memory", ["on", "off"])
def test_an_upstream_that_stores_responses_gets_nothing_that_the_gateway_has_sealed(
    claude: StrictAnthropic, upstream: StrictUpstream, tmp_path: Path, memory: str
) -> None:
    """Where Codex goes on with one of OpenAI's models."""
    upstreams = (
        UpstreamSettings("claude", "anthropic", claude.base_url, api_key="k"),
        UpstreamSettings("other", "openai", upstream.base_url, takes={"responses": "stored"}),
    )
    models = ModelSettings("smart", CLAUDE, "claude"), ModelSettings("m", "m", "other")
    options: Json = {"user": "alice", "store": False, "extra_headers": {"x-mnemogate-memory": memory}}
    with remember(upstream, tmp_path, upstreams=upstreams, models=models) as world:
        claude.queue(think("Hm, perhaps.", "Yes."), say("They speak of boats."))
        first = respond(world, model="smart", input="Is it?", **options)
        compacted = world.sdk.responses.compact(model="smart", input="Is it a boat?")
        items = [compacted.output[-1].model_dump(exclude_none=True), *by_items(first)["input"]]
        respond(world, model="m", input=items, **options)
        sent = orjson.loads(upstream.last.body)["input"]
        assert [item.get("type", "message") for item in sent] == ["message"] * 4
        assert "They speak of boats." in sent[0]["content"]
        assert "mnemogate:" not in upstream.last.body.decode()


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_model_gets_its_thoughts_back_in_a_tool_loop(
    world: World, upstream: StrictUpstream, memory: str
) -> None:
    """As DeepSeek has to."""
    upstream.rules = Rules(unknown_parameters=False)
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), delta={"reasoning_content": "Rome, then."}))
    options: Json = {"model": "m", "tools": [WEATHER], "extra_headers": {"x-mnemogate-memory": memory}}
    first = respond(world, input="The weather?", **options)
    output: Json = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "sun"}
    ways: list[Json] = [{"input": [*asked("The weather?"), *items_of(first), output]}]
    if memory == "on":
        ways.append({"previous_response_id": first.id, "input": [output]})
    for way in ways:
        respond(world, **way, **options)
        assert upstream.last.messages[-2]["reasoning_content"] == "Rome, then."


@pytest.mark.parametrize("way", [by_id, by_references, by_its_conversation])
def test_a_call_of_a_custom_tool_is_one_of_a_function_elsewhere(
    world: World, claude: StrictAnthropic, upstream: StrictUpstream, way: Callable[[Any], Json]
) -> None:
    upstream.queue(
        streamed({"role": "assistant", "tool_calls": [{"index": 0, **PATCH}]}, finish="tool_calls")
    )
    conversation = {"conversation": world.sdk.conversations.create().id} if way is by_its_conversation else {}
    options: Json = {"user": "alice", "tools": [APPLY_PATCH]}
    first = respond(world, model="m", input="Mend it.", stream=True, **conversation, **options)
    assert [(item.type, item.input) for item in first.output] == [("custom_tool_call", "*** Begin")]
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "Done."}
    again = way(first)
    again["input"] = [output] if isinstance(again["input"], str) else [*again["input"][:-1], output]
    claude.queue(message(text="It is mended."))
    last = respond(world, model="smart", **again, **options)
    assert last.output_text == "It is mended."
    called = claude.last.json["messages"][1]["content"][0]
    assert (called["type"], called["name"], called["input"]) == (
        "tool_use", "apply_patch", {"input": "*** Begin"},
    )  # fmt: skip
