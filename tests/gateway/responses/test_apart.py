"""A turn that memory does not want is stored for its id alone: its client goes on from it, and it is not recalled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from storage.forget_commands import ForgetTarget
from storage.records import Scope
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.responses.response_client import WEATHER, respond, serve_memory
from tests.gateway.sdk import World, agent

Json = dict[str, Any]
FORM: Json = {"format": {"type": "json_schema", "name": "trip", "schema": {"type": "object"}}}
ASK: Json = {
    "type": "function",
    "name": "ask_researcher",
    "parameters": {"type": "object", "properties": {"task": {"type": "string"}}},
    "strict": False,
}
TASK = "Find the swordfish that weighs the most of all that were caught."


def by_id(response: Any, output: Json) -> Json:
    return {"previous_response_id": response.id, "input": [output]}


def by_reference(response: Any, output: Json) -> Json:
    reference = {"type": "item_reference", "id": response.output[-1].id}
    return {"input": [{"role": "user", "content": TASK}, reference, output]}


def first_step(world: World, upstream: StrictUpstream, kind: str) -> tuple[Any, Json]:
    """Returns the first step of a loop of tools, and the fields that each of its steps has."""
    fields: Json = {"user": "alice", "tools": [WEATHER]}
    if kind == "delegated":
        upstream.queue(call_tools(Call("ask_researcher", {"task": TASK})))
        respond(world, input="Research fish for me please.", user="alice", tools=[ASK])
    else:
        fields["text"] = FORM
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), text="Let me see."))
    return respond(world, input=TASK, **fields), fields


@pytest.mark.both(kind=["structured"], way=[by_id])
@pytest.mark.parametrize("kind", ["structured", "delegated"])
@pytest.mark.parametrize("way", [by_id, by_reference])
def test_a_loop_of_tools_goes_on_by_its_id(
    world: World, upstream: StrictUpstream, kind: str, way: Callable[[Any, Json], Json]
) -> None:
    first, fields = first_step(world, upstream, kind)
    assert first.store is True
    assert world.sdk.responses.retrieve(first.id).output == first.output
    call = first.output[-1]
    output: Json = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    upstream.queue(say('{"fish": 1}'))
    second = respond(world, **way(first, output), **fields)
    assert second.output_text == '{"fish": 1}'
    assert [m["role"] for m in upstream.last.messages[-3:]] == ["user", "assistant", "tool"]
    assert respond(world, input="Go on.", previous_response_id=second.id, **fields).output_text == "Ok."


def test_memory_is_read_for_it_and_does_not_have_it(world: World, upstream: StrictUpstream) -> None:
    respond(world, input="My cat is called Miso, she is grey.", user="alice")
    asked: Json = {"user": "alice", "text": FORM}
    response = respond(world, input="What is my cat called? Answer as JSON, for the swordfish.", **asked)
    assert "grey" in upstream.last.messages[-1]["content"]
    assert world.sdk.responses.retrieve(response.id).id == response.id
    respond(world, input="What about the swordfish?", user="alice")
    assert "JSON" not in str(upstream.last.messages)


@pytest.mark.both
def test_it_is_its_users_and_forgotten_with_them(world: World) -> None:
    response = respond(world, input="Sort it, as JSON.", text=FORM, user="alice")
    with pytest.raises(openai.BadRequestError):
        respond(world, input="And?", previous_response_id=response.id, user="bob")

    async def forget() -> None:
        agent = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        await world.store.forgetting.forget(agent.id, ForgetTarget(is_all=True))

    world.gateway.call(forget())
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(response.id)


def test_where_memory_is_only_read_nothing_is_stored(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_memory(upstream, tmp_path, agent(memory="read", model="m")) as world:
        response = respond(world, model="agent/helper", input="Sort it, as JSON.", text=FORM, user="alice")
        assert response.store is False
        assert world.query("SELECT count(*) FROM exchanges") == [0]


@pytest.mark.both
def test_without_store_nothing_is_stored(world: World) -> None:
    response = respond(world, input="Sort it, as JSON.", text=FORM, user="alice", store=False)
    assert response.store is False
    assert world.query("SELECT count(*) FROM exchanges") == [0]
