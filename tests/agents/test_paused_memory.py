"""A memory that its person has paused, as the agents API and chat completions of its stored conversations use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.batches.batch_world import serve_batches
from tests.agents.letta import LettaWorld, letta
from tests.doubles.batches import Outcome
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.page.memories import memory_of
from tests.gateway.sdk import World
from tests.gateway.sdk import agent as profile
from tests.patience import becomes

MESSAGES = [{"role": "user", "content": "What is my cat called?"}]
HEADERS = {"x-mnemogate-user": "alice", "x-mnemogate-conversation": "default"}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, profile("default")) as made:
        yield made


def begin(world: LettaWorld) -> str:
    """Has alice's memory say something in its stored conversation. Returns its public id."""
    world.world.chat(user="alice", model="agent/default").say("My cat is called Miso.")
    agent = f"agent-{memory_of(world.world).uid}"
    world.letta.agents.messages.create(agent, input="My dog is called Zqmisox.")
    return agent


def pause(world: World, *, is_paused: bool = True) -> None:
    since = world.clock() if is_paused else None
    assert world.gateway.call(world.store.forgetting.pause(memory_of(world).id, since))


def stored(world: LettaWorld) -> Any:
    return world.world.query("SELECT id, state, input FROM exchanges ORDER BY id")


@pytest.mark.both(more=[{}])
@pytest.mark.parametrize(
    "more",
    [{}, {"streaming": True}, {"streaming": True, "background": True}],
    ids=["whole", "streamed", "background"],
)
def test_a_send_to_a_paused_memory_is_refused(world: LettaWorld, more: dict[str, Any]) -> None:
    agent = begin(world)
    other = world.letta.conversations.create(agent_id=agent).id
    before, calls = stored(world), len(world.upstream.requests)
    pause(world.world)
    for path in (f"/v1/agents/{agent}/messages", f"/v1/conversations/{other}/messages"):
        status, body = world.ask("POST", path, {"messages": MESSAGES, **more})
        assert (status, "This memory is paused" in str(body)) == (403, True), body
    status, body = world.ask("POST", f"/v1/agents/{agent}/messages/async", {"messages": MESSAGES})
    assert (status, "This memory is paused" in str(body)) == (403, True), body
    assert (stored(world), len(world.upstream.requests)) == (before, calls)
    pause(world.world, is_paused=False)
    assert world.ask("POST", f"/v1/agents/{agent}/messages", {"messages": MESSAGES})[0] == 200


@pytest.mark.both
def test_a_paused_memory_gets_no_passages(world: LettaWorld) -> None:
    agent = begin(world)
    archive = f"archive-{memory_of(world.world).uid}"
    ways = (
        (f"/v1/agents/{agent}/archival-memory", {"text": "Zqsaved."}),
        (f"/v1/archives/{archive}/passages", {"text": "Zqsaved."}),
        (f"/v1/archives/{archive}/passages/batch", {"passages": [{"text": "Zqsaved."}]}),
    )
    pause(world.world)
    for path, sent in ways:
        status, body = world.ask("POST", path, sent)
        assert (status, "This memory is paused" in str(body)) == (403, True), body
    assert b"Zqsaved" not in world.world.data()
    pause(world.world, is_paused=False)
    assert [world.ask("POST", path, sent)[0] for path, sent in ways] == [200, 200, 200]


def test_the_refusal_of_a_paused_memory_is_described(world: LettaWorld) -> None:
    agent = begin(world)
    pause(world.world)
    routes = {
        "/v1/agents/{agent_id}/messages": {"messages": MESSAGES},
        "/v1/agents/{agent_id}/archival-memory": {"text": "Zqsaved."},
        "/v1/agents/{agent_id}/summarize": {},
    }
    described = world.ask("GET", "/openapi.json")[1]["paths"]
    for path, sent in routes.items():
        status, _ = world.ask("POST", path.format(agent_id=agent), sent)
        assert status == 403
        assert "403" in described[path]["post"]["responses"]


def test_a_paused_memory_is_not_summarised(world: LettaWorld) -> None:
    agent = begin(world)
    calls = len(world.upstream.requests)
    pause(world.world)
    status, body = world.ask("POST", f"/v1/agents/{agent}/summarize", {})
    assert (status, "This memory is paused" in str(body)) == (403, True), body
    assert len(world.upstream.requests) == calls


def test_a_chat_completion_of_a_paused_conversation_goes_on_with_memory_off(world: LettaWorld) -> None:
    begin(world)
    before = stored(world)
    pause(world.world)
    reply = world.world.post(MESSAGES, HEADERS)
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "off")
    assert "Zqmisox" not in world.upstream.last.body.decode()
    world.world.settle()
    assert stored(world) == before
    pause(world.world, is_paused=False)
    assert world.world.post(MESSAGES, HEADERS).headers["x-mnemogate-memory"] == "on"
    assert "Zqmisox" in world.upstream.last.body.decode()


@pytest.mark.both
def test_a_run_that_was_accepted_before_the_pause_fails(world: LettaWorld) -> None:
    agent, gate = begin(world), Gate()
    world.upstream.queue(say("Soon.", hold_before_headers=gate))
    first = world.letta.agents.messages.create_async(agent, input="Wait.")
    becomes(lambda: "Wait." in world.upstream.last.body.decode())
    second = world.letta.agents.messages.create_async(agent, input="What is my cat called?")
    pause(world.world)
    gate.open()
    becomes(lambda: all(world.letta.runs.retrieve(run.id).status == "failed" for run in (first, second)))
    _, steps = world.ask("GET", f"/v1/runs/{second.id}")
    assert "This memory is paused" in str(steps)


def test_an_item_of_a_batch_fails_where_its_memory_is_paused(tmp_path: Path) -> None:
    with serve_batches(tmp_path, None, profile("default", model="up/m")) as world:
        agent = begin(world)
        pause(world.world)
        before = stored(world)
        batch = world.wait_for_end(world.create_batch([agent], "What is my cat called?"))
        assert batch["counts"]["failed"] == 1
        assert "This memory is paused" in str(world.list_items(batch))
        assert stored(world) == before


@pytest.mark.both(outcome=[Outcome(text="Miso.")])
@pytest.mark.parametrize("outcome", [Outcome(text="Miso."), Outcome("errored", message="Not allowed: Miso.")])
def test_results_for_a_memory_that_is_paused_meanwhile_are_not_stored(
    outcome: Outcome, tmp_path: Path
) -> None:
    with serve_batches(tmp_path, lambda *_: outcome, profile("default", model="up/m"), held=True) as world:
        agent = begin(world)
        before = stored(world)
        batch = world.create_batch([agent], "What is my cat called?", override_model="open/m")
        world.wait_for(batch, lambda _: len(world.openai.batches) == 1)
        pause(world.world)
        world.openai.finish()
        assert world.wait_for_end(batch)["counts"]["failed"] == 1
        assert "This memory is paused" in world.list_items(batch)[0]["error"]
        assert stored(world) == before
