"""An agent that is deleted while it answers: its stream says so, and nothing of it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from letta_client import APIStatusError, ConflictError, NotFoundError
from openai import BadRequestError, OpenAI
from openai import NotFoundError as NoSuchModel

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def left(world: LettaWorld) -> list[int]:
    """How many rows each table has that an agent fills."""
    world.world.settle()
    tables = ("agents", "definitions", "attached", "tags", "runs", "run_steps", "conversations", "blocks")
    return [world.world.query(f"SELECT count(*) FROM {table}")[0] for table in tables]


def test_a_stream_under_way_ends_with_an_error_and_nothing_comes_back(world: LettaWorld) -> None:
    agent = world.agent(tags=["t"])
    gate = Gate()
    world.upstream.queue(say("Too late.", tokens=["Too", " late."], hold_after={2: gate}))
    events = iter(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True))
    assert next(events).content == "Too"
    world.letta.agents.delete(agent.id)
    with pytest.raises(NotFoundError):
        world.letta.agents.retrieve(agent.id)
    with pytest.raises(APIStatusError):
        list(events)  # while the upstream says nothing
    gate.open()
    assert left(world) == [0] * 8
    with pytest.raises(NotFoundError):
        world.letta.agents.messages.create(agent.id, input="Still there?")
    assert left(world) == [0] * 8


def test_a_chat_completion_under_way_ends_and_nothing_comes_back(world: LettaWorld) -> None:
    agent = world.agent(name="ann")
    gate = Gate()
    world.upstream.queue(say("Too late.", tokens=["Too", " late."], hold_after={2: gate}))
    client = OpenAI(base_url=f"{world.world.gateway.url}/v1", api_key="sk-app", max_retries=0)
    messages = [{"role": "user", "content": "Hi"}]
    stream = client.chat.completions.create(model="agent/ann", messages=messages, stream=True)  # type: ignore[call-overload]
    events = iter(stream)
    next(events)
    world.letta.agents.delete(agent.id)
    gate.open()
    list(events)
    assert left(world) == [0] * 8
    with pytest.raises((NoSuchModel, BadRequestError)):
        client.chat.completions.create(model="agent/ann", messages=messages)  # type: ignore[arg-type]
    assert left(world) == [0] * 8
    client.close()


def test_a_whole_reply_under_way_says_that_it_is_not_stored(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    arrived = world.upstream.request_gate(len(world.upstream.requests) + 1)
    world.upstream.queue(say("Too late.", hold_before_headers=gate))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(world.letta.agents.messages.create, agent.id, input="Hi")
        arrived.wait_sync()
        world.letta.agents.delete(agent.id)
        with pytest.raises(ConflictError, match="forgotten meanwhile"):
            future.result(PATIENCE_S)  # while the upstream says nothing
        gate.open()
    assert left(world) == [0] * 8


def begin_in_background(world: LettaWorld, agent: str, gate: Gate) -> Iterator[Any]:
    """Begins a run whose upstream waits for the gate. Returns its events after the first of the reply."""
    world.upstream.queue(say("Too late.", tokens=["Too", " late."], hold_after={2: gate}))
    sent = world.letta.agents.messages.create(
        agent, input="Hi", streaming=True, stream_tokens=True, background=True
    )
    events = iter(sent)
    assert [next(events).message_type for _ in range(2)] == ["ping", "assistant_message"]
    return events


def test_no_client_waits_for_a_run_in_the_background_or_queued_after_one(world: LettaWorld) -> None:
    agent, gate = world.agent(), Gate()
    events = begin_in_background(world, agent.id, gate)
    later = world.letta.agents.messages.create_async(agent.id, input="Later.")
    # A run whose events are not stored, which its reader finds before it is gone.
    follows = iter(world.letta.runs.messages.stream(later.id))
    world.letta.agents.delete(agent.id)
    for reader in (events, follows):
        with pytest.raises(APIStatusError, match="is deleted"):
            list(reader)  # while the upstream says nothing
    gate.open()
    assert left(world) == [0] * 8


def test_no_send_waits_for_a_run_of_a_memory_that_an_operator_has_forgotten(world: LettaWorld) -> None:
    agent, gate = world.agent(), Gate()
    events = begin_in_background(world, agent.id, gate)
    later = iter(
        world.letta.agents.messages.create(agent.id, input="Later.", streaming=True, background=True)
    )
    assert next(later).message_type == "ping"
    world.world.gateway.call(world.world.store.forgetting.wipe(1))
    for reader in (events, later):
        with pytest.raises(APIStatusError, match="is deleted"):
            list(reader)  # while the upstream says nothing
    gate.open()
    assert left(world) == [0] * 8
