"""sleeptime = true of a profile: each user's memory gets a sleeptime agent, in the learner's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import BlockSettings
from storage.job_records import JobState
from storage.records import Scope
from tests.agents.sleep import SleepWorld, is_sleeper, said, sleeping
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import agent as profile

BLOCKS = (
    BlockSettings("human", "What is known."),
    BlockSettings("house", "The rules.", value="Be kind.", shared=True),
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleepWorld]:
    asleep = profile("asleep", sleeptime=True, blocks=BLOCKS, memory_tools=False)
    with sleeping(upstream, tmp_path, asleep, profile("awake"), memory={"background_model": "small"}) as made:
        yield made


def talk(world: SleepWorld, user: str, turns: int, name: str = "asleep") -> None:
    chat = world.letta.world.chat(user=user, model=f"agent/{name}")
    for n in range(turns):
        chat.say(f"{user} says {n}.")
    world.letta.world.settle()


def names(world: SleepWorld) -> list[str]:
    return sorted(str(agent.name) for agent in world.letta.letta.agents.list())


def test_a_users_sleeptime_agent_is_made_with_its_first_run(world: SleepWorld) -> None:
    talk(world, "alice", 3)
    assert names(world) == ["asleep alice"]
    talk(world, "bob", 1)
    world.rest()
    assert names(world) == ["asleep alice", "asleep alice-sleeptime", "asleep bob", "asleep bob-sleeptime"]
    assert sorted(said(each) for each in world.model.transcripts) == [
        ["alice says 0.", "alice says 1.", "alice says 2."],
        ["bob says 0."],
    ]
    assert {seen.json["model"] for seen in world.model.seen} == {"small"}
    assert world.letta.world.block("alice", profile="asleep").value.splitlines() == [
        "alice says 0.", "alice says 1.", "alice says 2.",
    ]  # fmt: skip


@pytest.mark.both
def test_it_reads_nothing_while_the_memory_is_paused(world: SleepWorld) -> None:
    talk(world, "alice", 3)
    memories = world.letta.world
    scope = Scope("default", "asleep", "user:alice")
    agent = memories.gateway.call(memories.store.agents.find(scope))
    assert agent is not None
    memories.gateway.call(memories.store.forgetting.pause(agent.id, memories.clock()))
    world.rest()
    assert world.model.transcripts == []
    memories.gateway.call(memories.store.forgetting.pause(agent.id, None))
    talk(world, "alice", 1)
    world.rest()
    assert "alice says 2." in said(world.model.transcripts[0])


def test_it_reads_after_some_turns_too(world: SleepWorld) -> None:
    talk(world, "alice", 6)
    world.step()
    assert [said(each) for each in world.model.transcripts] == [[f"alice says {n}." for n in range(5)]]
    # The newest turn is provisional: it is read when it is not asked again.
    world.rest()
    assert [said(each) for each in world.model.transcripts][1:] == [["alice says 5."]]


def test_learning_skips_memories_with_a_sleeptime_agent(world: SleepWorld) -> None:
    talk(world, "alice", 12)
    talk(world, "carol", 12, "awake")
    world.rest()
    learning = world.letta.world.gateway.app.services.background.learning

    async def due() -> None:
        await learning.schedule.step()

    world.letta.world.gateway.call(due())
    world.slept()
    asked = [
        seen for seen in world.letta.upstream.chats if seen.json["model"] == "small" and not is_sleeper(seen)
    ]
    assert asked
    assert all("alice" not in str(seen.messages) for seen in asked)


def test_what_users_share_is_not_for_it(world: SleepWorld) -> None:
    talk(world, "alice", 1)
    world.rest()
    (agent,) = world.letta.letta.agents.list(tags=["user:alice"])
    assert agent.enable_sleeptime is True
    sleeper = world.sleeper(agent)
    assert {block.label for block in sleeper.blocks} == {"memory_persona", "human"}


def test_a_user_who_is_forgotten_takes_it_along(world: SleepWorld) -> None:
    for user in ("alice", "bob"):
        talk(world, user, 1)
    world.rest()
    (agent,) = world.letta.letta.agents.list(tags=["user:alice"])
    world.letta.letta.agents.delete(agent.id)
    assert names(world) == ["asleep bob", "asleep bob-sleeptime"]


def test_its_tokens_count_in_the_days_budget(upstream: StrictUpstream, tmp_path: Path) -> None:
    asleep = profile("asleep", sleeptime=True, memory_tools=False)
    memory = {"background_model": "small", "background_daily_tokens": 1}
    with sleeping(upstream, tmp_path, asleep, memory=memory) as world:
        talk(world, "alice", 1)
        world.rest()
        assert len(world.model.seen) == 2
        gateway = world.letta.world.gateway
        gateway.call(gateway.app.services.accounting.meter.write())
        spent = "SELECT sum(background_input_tokens + background_output_tokens) FROM usage WHERE \"user\" = 'alice'"
        assert world.query(spent)[0] > 1
        talk(world, "alice", 1)
        world.rest()
        assert len(world.model.seen) == 2
        world.until(lambda counts: bool(counts[JobState.RETRYING]))
        world.letta.world.clock.sleep(86_400.0)
        world.retry()
        assert len(world.model.seen) == 4
