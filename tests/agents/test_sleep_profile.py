"""A profile with sleeptime = true: each user's memory has a sleeptime agent instead of the learner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import BlockSettings
from storage.job_records import JobState
from storage.records import Scope
from tests.agents.sleeptime import SleeptimeWorld, is_sleeptime_request, list_user_texts, serve_sleeptime
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import agent as profile

BLOCKS = (
    BlockSettings("human", "What is known."),
    BlockSettings("house", "The rules.", value="Be kind.", shared=True),
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleeptimeWorld]:
    asleep = profile("asleep", sleeptime=True, blocks=BLOCKS, memory_tools=False)
    with serve_sleeptime(
        upstream, tmp_path, asleep, profile("awake"), memory={"background_model": "small"}
    ) as running:
        yield running


def take_turns(world: SleeptimeWorld, user: str, turns: int, name: str = "asleep") -> None:
    chat = world.letta.world.chat(user=user, model=f"agent/{name}")
    for n in range(turns):
        chat.say(f"{user} says {n}.")
    world.letta.world.settle()


def agent_names(world: SleeptimeWorld) -> list[str]:
    return sorted(str(agent.name) for agent in world.letta.letta.agents.list())


def test_a_users_sleeptime_agent_is_created_with_its_first_run(world: SleeptimeWorld) -> None:
    take_turns(world, "alice", 3)
    assert agent_names(world) == ["asleep alice"]
    take_turns(world, "bob", 1)
    world.pass_idle_time()
    assert agent_names(world) == [
        "asleep alice",
        "asleep alice-sleeptime",
        "asleep bob",
        "asleep bob-sleeptime",
    ]
    assert sorted(list_user_texts(each) for each in world.model.transcripts) == [
        ["alice says 0.", "alice says 1.", "alice says 2."],
        ["bob says 0."],
    ]
    assert {seen.json["model"] for seen in world.model.requests} == {"small"}
    assert world.letta.world.block("alice", profile="asleep").value.splitlines() == [
        "alice says 0.", "alice says 1.", "alice says 2.",
    ]  # fmt: skip


@pytest.mark.both
def test_a_sleeptime_agent_does_not_read_a_paused_memory(world: SleeptimeWorld) -> None:
    take_turns(world, "alice", 3)
    memories = world.letta.world
    scope = Scope("default", "asleep", "user:alice")
    agent = memories.gateway.call(memories.store.agents.find(scope))
    assert agent is not None
    memories.gateway.call(memories.store.forgetting.pause(agent.id, memories.clock()))
    world.pass_idle_time()
    assert world.model.transcripts == []
    memories.gateway.call(memories.store.forgetting.pause(agent.id, None))
    take_turns(world, "alice", 1)
    world.pass_idle_time()
    assert "alice says 2." in list_user_texts(world.model.transcripts[0])


def test_a_sleeptime_agent_reads_after_five_turns(world: SleeptimeWorld) -> None:
    take_turns(world, "alice", 6)
    world.run_due_jobs()
    assert [list_user_texts(each) for each in world.model.transcripts] == [
        [f"alice says {n}." for n in range(5)]
    ]
    # The newest turn is provisional: its client may send it again for some time.
    world.pass_idle_time()
    assert [list_user_texts(each) for each in world.model.transcripts][1:] == [["alice says 5."]]


def test_learning_skips_memories_with_a_sleeptime_agent(world: SleeptimeWorld) -> None:
    take_turns(world, "alice", 12)
    take_turns(world, "carol", 12, "awake")
    world.pass_idle_time()
    learning = world.letta.world.gateway.app.services.background.learning

    async def run_due_learning() -> None:
        await learning.schedule.perform_due()

    world.letta.world.gateway.call(run_due_learning())
    world.wait_until_idle()
    learning_requests = [
        request
        for request in world.letta.upstream.chats
        if request.json["model"] == "small" and not is_sleeptime_request(request)
    ]
    assert learning_requests
    assert all("alice" not in str(request.messages) for request in learning_requests)


def test_a_sleeptime_agent_lacks_the_blocks_that_users_share(world: SleeptimeWorld) -> None:
    take_turns(world, "alice", 1)
    world.pass_idle_time()
    (agent,) = world.letta.letta.agents.list(tags=["user:alice"])
    assert agent.enable_sleeptime is True
    sleeper = world.get_sleeptime_agent(agent)
    assert {block.label for block in sleeper.blocks} == {"memory_persona", "human"}


def test_a_sleeptime_agent_is_deleted_with_its_user(world: SleeptimeWorld) -> None:
    for user in ("alice", "bob"):
        take_turns(world, user, 1)
    world.pass_idle_time()
    (agent,) = world.letta.letta.agents.list(tags=["user:alice"])
    world.letta.letta.agents.delete(agent.id)
    assert agent_names(world) == ["asleep bob", "asleep bob-sleeptime"]


def test_its_tokens_count_in_the_daily_budget(upstream: StrictUpstream, tmp_path: Path) -> None:
    asleep = profile("asleep", sleeptime=True, memory_tools=False)
    memory = {"background_model": "small", "background_daily_tokens": 1}
    with serve_sleeptime(upstream, tmp_path, asleep, memory=memory) as world:
        take_turns(world, "alice", 1)
        world.pass_idle_time()
        assert len(world.model.requests) == 2
        gateway = world.letta.world.gateway
        gateway.call(gateway.app.services.accounting.meter.write())
        spent = "SELECT sum(background_input_tokens + background_output_tokens) FROM usage WHERE \"user\" = 'alice'"
        assert world.query(spent)[0] > 1
        take_turns(world, "alice", 1)
        world.pass_idle_time()
        assert len(world.model.requests) == 2
        world.wait_for_jobs(lambda counts: bool(counts[JobState.RETRYING]))
        world.letta.world.clock.sleep(86_400.0)
        world.retry_jobs()
        assert len(world.model.requests) == 4
