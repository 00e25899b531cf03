"""Limits of use hold for each step of a run, with a client that waits and without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import RateLimitError

from tests.agents.letta import LettaWorld, letta
from tests.agents.test_background import ended
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.patience import becomes

USAGE = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
NOTE = {"label": "human", "new_string": "Works."}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def two_steps(request: UpstreamRequest) -> Reply:
    if request.json["messages"][-1]["role"] == "tool":
        return say("Done.", usage=USAGE)
    return call_tools(Call("memory_insert", NOTE, "c1"), usage=USAGE)


def send(
    world: LettaWorld, agent: str, way: str, script: Callable[[UpstreamRequest], Reply] = two_steps
) -> Any:
    """Sends a message. Returns its run when it has ended."""
    world.upstream.script = script
    messages = world.letta.agents.messages
    if way == "background":
        run = messages.create_async(agent, input="Work.")
    else:
        messages.create(agent, input="Work.")
        (run,) = world.letta.runs.list(agent_id=agent, limit=1, order="desc")
    return ended(world, run.id)


def used(world: LettaWorld) -> list[float]:
    """Returns how much of each limit is used, once every request has been settled."""
    world.world.settle()
    return under_way(world)


def under_way(world: LettaWorld) -> list[float]:
    """Returns how much of each limit is used, with what is under way."""
    states = world.world.gateway.call(
        world.world.gateway.app.services.accounting.limiter.list_states("default", 0, "")
    )
    return [state.used for state in states]


@pytest.mark.both
@pytest.mark.parametrize("way", ["live", "background"])
def test_a_step_that_a_limit_refuses_ends_the_run(world: LettaWorld, way: str) -> None:
    world.world.limit("tokens", "day", 100)
    agent = world.agent(tools=["memory_insert"]).id
    run = send(world, agent, way)
    assert (run.status, run.stop_reason) == ("failed", "error")
    first, second = world.letta.runs.steps.list(run.id, order="asc")
    assert (first.error_type, second.error_type, second.stop_reason) == (None, "insufficient_quota", "error")
    assert "100 tokens per day" in str(second.error_data)
    # It was not forwarded, and what was used is counted once.
    assert len(world.upstream.chats) == 1
    assert used(world) == [100]


@pytest.mark.parametrize("way", ["live", "background"])
def test_a_long_run_counts_in_the_minutes_of_its_steps(world: LettaWorld, way: str) -> None:
    world.world.limit("tokens", "minute", 250)
    agent, upstream = world.agent(tools=["memory_insert"]).id, world.upstream
    replies = [*(call_tools(Call("memory_insert", NOTE, f"c{n}"), usage=USAGE) for n in range(4))]

    def reply(request: UpstreamRequest) -> Reply:
        world.world.clock.sleep(90)
        return replies.pop() if replies else say("Done.", usage=USAGE)

    run = send(world, agent, way, reply)
    assert (run.status, run.stop_reason, len(upstream.chats)) == ("completed", "end_turn", 5)
    assert used(world) == [0]


def test_a_step_in_a_minute_that_is_used_up_is_refused(world: LettaWorld) -> None:
    world.world.limit("tokens", "minute", 250)
    agent, upstream, hold = world.agent(tools=["memory_insert"]).id, world.upstream, Gate()
    call = Call("memory_insert", NOTE, "c1")
    upstream.queue(call_tools(call, usage=USAGE, hold_before_headers=hold))
    arrived = upstream.request_gate(1)
    run = world.letta.agents.messages.create_async(agent, input="Work.")
    arrived.wait_sync()
    world.world.clock.sleep(60)
    upstream.queue(say("Hi.", usage={"prompt_tokens": 290, "completion_tokens": 10}))
    assert world.world.post([{"role": "user", "content": "Hi"}]).status == 200
    becomes(lambda: under_way(world) == [300])
    hold.open()
    assert ended(world, run.id).stop_reason == "error"
    # The first step counts in the minute before.
    assert used(world) == [300]


def test_a_run_goes_on_while_anything_is_left(world: LettaWorld) -> None:
    world.world.limit("tokens", "day", 101)
    world.world.limit("requests", "day", 1)
    run = send(world, world.agent(tools=["memory_insert"]).id, "live")
    assert (run.status, run.stop_reason) == ("completed", "end_turn")
    assert used(world) == [200, 1]


@pytest.mark.both
def test_a_summary_by_hand_is_counted_and_held_as_a_request(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The budget of background work is not touched."""
    with letta(upstream, tmp_path, memory={"background_daily_tokens": 50}) as world:
        agent, messages = world.agent().id, world.letta.agents.messages
        world.world.limit("tokens", "day", 10_000)
        for n in range(2):
            for part in ("cats", "dogs", "birds"):
                messages.create(agent, input=f"Number {n}: I have {n} {part}.")
            (before,) = used(world)
            upstream.queue(say(f"The user has {n} pets of each kind.", usage=USAGE))
            assert messages.compact(agent).summary
            assert used(world) == [before + 100]
        messages.create(agent, input="I have no pets any more.")
        world.world.limit("requests", "day", 0)
        chat_count = len(upstream.chats)
        with pytest.raises(RateLimitError):
            messages.compact(agent)
        assert len(upstream.chats) == chat_count
