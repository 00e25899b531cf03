"""Sleeptime agents and groups by the client's own methods: made, shown, changed and deleted with their primary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import NotFoundError
from letta_client.types import AgentState

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import StrictUpstream


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def sleeptime_agent_of(world: LettaWorld, agent: AgentState) -> AgentState:
    group = world.letta.agents.retrieve(agent.id).managed_group
    assert group is not None
    assert group.agent_ids is not None
    (id,) = group.agent_ids
    return world.letta.agents.retrieve(id)


def labels(world: LettaWorld, agent: AgentState) -> set[str]:
    return {str(block.label) for block in world.letta.agents.blocks.list(agent.id)}


def test_enable_sleeptime_makes_a_second_agent_that_sees_the_same_blocks(world: LettaWorld) -> None:
    agent = world.agent(name="ann", enable_sleeptime=True)
    sleeper = sleeptime_agent_of(world, agent)
    assert (sleeper.name, sleeper.agent_type) == ("ann-sleeptime", "sleeptime_agent")
    assert (sleeper.llm_config.handle, sleeper.message_buffer_autoclear) == ("openai/m", True)
    assert sorted(str(tool.name) for tool in sleeper.tools) == [
        "memory_finish_edits", "memory_insert", "memory_replace", "memory_rethink",
    ]  # fmt: skip
    rules = {rule.tool_name: rule.type for rule in sleeper.tool_rules or ()}
    assert rules["memory_finish_edits"] == "exit_loop"
    assert {type_ for name, type_ in rules.items() if name != "memory_finish_edits"} == {"continue_loop"}
    assert labels(world, sleeper) == {"memory_persona", "human"}
    shared = {block.id for block in agent.blocks} & {block.id for block in sleeper.blocks}
    assert len(shared) == 1
    assert agent.enable_sleeptime is True
    group = agent.managed_group
    assert group is not None
    assert agent.multi_agent_group is not None
    assert (group.id, agent.multi_agent_group.id) == ("group-" + agent.id.removeprefix("agent-"),) * 2
    assert (group.manager_type, group.manager_agent_id) == ("sleeptime", agent.id)
    assert (group.sleeptime_agent_frequency, group.turns_counter, group.last_processed_message_id) == (
        5,
        0,
        None,
    )


def test_a_sleeptime_agent_follows_the_blocks_of_its_primary_agent(world: LettaWorld) -> None:
    agent = world.agent(enable_sleeptime=True)
    sleeper = sleeptime_agent_of(world, agent)
    block = world.letta.blocks.create(label="plans", value="None yet.")
    persona = world.letta.blocks.create(label="memory_persona", value="It has one of that name.")
    for each in (block, persona):
        world.letta.agents.blocks.attach(str(each.id), agent_id=agent.id)
    assert labels(world, sleeper) == {"memory_persona", "human", "plans"}
    world.letta.agents.blocks.detach(str(block.id), agent_id=agent.id)
    assert labels(world, sleeper) == {"memory_persona", "human"}
    world.letta.agents.update(agent.id, block_ids=[str(block.id)])
    assert labels(world, sleeper) == {"memory_persona", "plans"}


def test_an_update_turns_sleeptime_on_and_off(world: LettaWorld) -> None:
    agent = world.agent(name="ann")
    assert (agent.enable_sleeptime, agent.managed_group) == (False, None)
    for _ in range(2):  # a second time changes nothing
        assert world.letta.agents.update(agent.id, enable_sleeptime=True).enable_sleeptime is True
    sleeper = sleeptime_agent_of(world, agent)
    assert world.letta.agents.update(agent.id, name="anna").enable_sleeptime is True
    off = world.letta.agents.update(agent.id, enable_sleeptime=False)
    assert (off.enable_sleeptime, off.managed_group, len(off.blocks)) == (False, None, 1)
    with pytest.raises(NotFoundError):
        world.letta.agents.retrieve(sleeper.id)


def test_either_may_be_deleted(world: LettaWorld) -> None:
    agent = world.agent(enable_sleeptime=True)
    sleeper = sleeptime_agent_of(world, agent)
    world.letta.agents.delete(agent.id)
    with pytest.raises(NotFoundError):
        world.letta.agents.retrieve(sleeper.id)
    agent = world.agent(enable_sleeptime=True)
    world.letta.agents.delete(sleeptime_agent_of(world, agent).id)
    left = world.letta.agents.retrieve(agent.id)
    assert (left.enable_sleeptime, [block.value for block in left.blocks]) == (False, ["Name: Ann"])
    assert world.letta.agents.update(agent.id, enable_sleeptime=True).enable_sleeptime is True


def test_a_group_is_shown_and_changed_by_its_own_route(world: LettaWorld) -> None:
    agent = world.agent(enable_sleeptime=True)
    path = f"/v1/groups/{agent.id.replace('agent-', 'group-')}"
    status, group = world.ask("GET", path)
    assert agent.managed_group is not None
    assert (status, group["id"]) == (200, agent.managed_group.id)

    def patch(**config: Any) -> Any:
        return world.ask("PATCH", path, {"manager_config": config})

    status, group = patch(manager_type="sleeptime", sleeptime_agent_frequency=3)
    assert (status, group["sleeptime_agent_frequency"]) == (200, 3)
    status, group = patch(manager_type="sleeptime", sleeptime_agent_frequency=None)
    assert (status, group["sleeptime_agent_frequency"]) == (200, None)
    assert patch(manager_type="voice_sleeptime", max_message_buffer_length=40)[0] == 200
    assert world.letta.agents.retrieve(agent.id).message_buffer_limit == 40
    for kind in ("round_robin", "supervisor", "dynamic"):
        status, error = patch(manager_type=kind, max_turns=3)
        assert (status, kind in error["detail"]) == (400, True)
    status, error = patch(manager_type="sleeptime", sleeptime_agent_frequency=0)
    assert (status, error["detail"][0]["loc"][-1]) == (422, "sleeptime_agent_frequency")
    bounds = {"max_message_buffer_length": 10, "min_message_buffer_length": 11}
    status, error = patch(manager_type="voice_sleeptime", **bounds)
    assert (status, error["detail"][0]["loc"]) == (
        422,
        ["body", "manager_config", "min_message_buffer_length"],
    )
    assert patch(manager_type="choir")[0] == 422
    plain = world.agent()
    for unknown in (plain.id.replace("agent-", "group-"), f"group-{'0' * 32}"):
        error = (404, {"detail": f"There is no group {unknown!r}."})
        assert world.ask("GET", f"/v1/groups/{unknown}") == error


def test_a_voice_agent_has_a_group_of_its_kind(world: LettaWorld) -> None:
    agent = world.agent(agent_type="voice_convo_agent", enable_sleeptime=True)
    group = agent.managed_group
    assert group is not None
    assert (group.manager_type, group.max_message_buffer_length, group.min_message_buffer_length) == (
        "voice_sleeptime", 30, 15,
    )  # fmt: skip
    assert sleeptime_agent_of(world, agent).agent_type == "voice_sleeptime_agent"
