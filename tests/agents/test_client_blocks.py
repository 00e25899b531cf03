"""Blocks by the client's own methods: shared, bounded, and brought back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from letta_client import (
    APIStatusError,
    ConflictError,
    NotFoundError,
    UnprocessableEntityError,
)

from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.patience import PATIENCE_S


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def test_a_block_is_made_changed_and_deleted(world: LettaWorld) -> None:
    blocks = world.letta.blocks
    made = blocks.create(
        label="job", value="Baker", description="Work.", metadata={"a": 1}, tags=["x"], limit=20
    )
    assert blocks.retrieve(made.id) == made
    assert (made.label, made.value, made.limit, made.metadata, made.tags) == (
        "job",
        "Baker",
        20,
        {"a": 1},
        ["x"],
    )
    changed = blocks.update(made.id, value="Smith", metadata={"b": 2})
    assert (changed.value, changed.metadata, changed.tags, changed.label) == ("Smith", {"b": 2}, ["x"], "job")
    blocks.delete(made.id)
    with pytest.raises(NotFoundError):
        blocks.retrieve(made.id)


def test_the_commonest_blocks_say_what_they_are_for(world: LettaWorld) -> None:
    """0.16.8 describes blocks with these labels where nobody does; an empty description stays empty."""
    agent = world.agent(
        memory_blocks=[{"label": label, "value": "x"} for label in ("human", "persona", "job")]
    )
    said = {block.label: block.description for block in world.letta.agents.blocks.list(agent.id)}
    assert said["human"]
    assert said["persona"]
    assert said["job"] is None
    world.letta.agents.messages.create(agent.id, input="Hello.")
    assert str(said["human"]) in world.upstream.last.json["messages"][0]["content"]
    assert world.letta.blocks.create(label="human", value="x").description == said["human"]
    plain = world.letta.blocks.create(label="human", value="x", description="")
    assert plain.description is None
    copies = world.letta.agents.import_file(
        file=(
            "a.af",
            world.letta.agents.export_file(
                world.agent(name="b", block_ids=[plain.id], memory_blocks=[]).id
            ).encode(),
        )
    )
    copy = world.letta.agents.blocks.retrieve("human", agent_id=copies.agent_ids[0])
    assert copy.description is None


def test_blocks_are_listed_by_filter_and_page(world: LettaWorld) -> None:
    made = [world.letta.blocks.create(label=f"b{n}", value=f"Value {n}") for n in range(5)]
    assert [each.id for each in world.letta.blocks.list(limit=2)] == [each.id for each in made]
    assert [each.label for each in world.letta.blocks.list(label="b3")] == ["b3"]
    assert [each.label for each in world.letta.blocks.list(value_search="value 4")] == ["b4"]
    world.agent(block_ids=[made[2].id], memory_blocks=[])
    assert [each.label for each in world.letta.blocks.list(connected_to_agents_count_gt=0)] == ["b2"]
    assert len(list(world.letta.blocks.list(connected_to_agents_count_eq=[0]))) == 4


def test_a_shared_block_is_one(world: LettaWorld) -> None:
    shared = world.letta.blocks.create(label="team", value="Red")
    one, two = world.agent(name="one", block_ids=[shared.id]), world.agent(name="two")
    seen = world.letta.agents.blocks.attach(shared.id, agent_id=two.id)
    assert [each.label for each in seen.blocks] == ["human", "team"]
    assert {each.name for each in world.letta.blocks.agents.list(shared.id)} == {"one", "two"}
    world.letta.agents.blocks.update("team", agent_id=one.id, value="Blue")
    assert world.letta.agents.blocks.retrieve("team", agent_id=two.id).value == "Blue"
    assert world.letta.blocks.retrieve(shared.id).value == "Blue"
    left = world.letta.agents.blocks.detach(shared.id, agent_id=two.id)
    assert [each.label for each in left.blocks] == ["human"]
    assert [each.label for each in world.letta.agents.blocks.list(one.id)] == ["human", "team"]


def test_a_block_object_sent_with_a_new_agent_makes_a_new_block(world: LettaWorld) -> None:
    given = world.letta.blocks.create(label="team", value="Red", description="Ours.", limit=50, tags=["t"])
    raw = world.letta.agents.with_raw_response.create(
        model="openai/m",
        memory_blocks=[given],  # type: ignore[list-item]
    )
    (made,) = raw.parse().blocks
    assert made.model_dump(exclude={"id"}) == given.model_dump(exclude={"id"})
    assert made.id != given.id
    assert raw.headers["x-mnemogate-kept"] == "memory_blocks.id"
    world.letta.blocks.update(given.id, value="Blue")
    assert world.letta.blocks.retrieve(made.id or "").value == "Red"


def test_a_label_is_there_once(world: LettaWorld) -> None:
    agent = world.agent()
    other = world.letta.blocks.create(label="human", value="Someone else")
    with pytest.raises(ConflictError, match="two blocks labelled 'human'"):
        world.letta.agents.blocks.attach(other.id, agent_id=agent.id)
    spare = world.letta.blocks.create(label="spare", value="")
    world.letta.agents.blocks.attach(spare.id, agent_id=agent.id)
    with pytest.raises(ConflictError):
        world.letta.blocks.update(spare.id, label="human")
    with pytest.raises(ConflictError):
        world.agent(memory_blocks=[{"label": "x", "value": ""}, {"label": "x", "value": ""}])


def test_a_limit_holds_on_every_way_in(world: LettaWorld) -> None:
    agent = world.agent(memory_blocks=[{"label": "human", "value": "Ann", "limit": 5}])
    block = agent.blocks[0]
    assert block.id is not None
    for write in (
        lambda: world.letta.blocks.create(label="x", value="sixsix", limit=5),
        lambda: world.agent(memory_blocks=[{"label": "x", "value": "sixsix", "limit": 5}]),
        lambda: world.letta.blocks.update(block.id or "", value="sixsix"),
        lambda: world.letta.agents.blocks.update("human", agent_id=agent.id, value="sixsix"),
        lambda: world.letta.blocks.update(block.id or "", limit=2),
    ):
        with pytest.raises(UnprocessableEntityError) as refused:
            write()
        (fault,) = refused.value.response.json()["detail"]
        assert fault["loc"] == ["body", "value"]
        assert "characters" in fault["msg"]
    assert world.letta.blocks.retrieve(block.id).value == "Ann"


def test_a_value_is_brought_back(world: LettaWorld) -> None:
    block = world.letta.blocks.create(label="x", value="One")
    world.letta.blocks.update(block.id, value="Two")
    status, history = world.ask("GET", f"/v1/blocks/{block.id}/history")
    assert (status, [each["value"] for each in history]) == (200, ["Two", "One"])
    status, undone = world.ask("POST", f"/v1/blocks/{block.id}/undo")
    assert (status, undone["value"]) == (200, "One")
    assert world.ask("POST", f"/v1/blocks/{block.id}/undo")[0] == 404


def test_the_values_that_a_block_had_are_listed_page_by_page(world: LettaWorld) -> None:
    block = world.letta.blocks.create(label="x", value="1")
    for n in range(2, 104):
        world.letta.blocks.update(block.id, value=str(n))
    path = f"/v1/blocks/{block.id}/history"
    versions = [each["version"] for each in world.ask("GET", path)[1]]
    assert versions == list(range(103, 3, -1))
    rest = world.ask("GET", f"{path}?before=4&limit=2")[1]
    assert [(each["version"], each["value"]) for each in rest] == [(3, "3"), (2, "2")]
    assert world.ask("GET", f"{path}?limit=1001")[0] == 422


def test_a_block_of_a_deleted_agent_stays_with_those_who_share_it(world: LettaWorld) -> None:
    one, two = world.agent(name="one"), world.agent(name="two", memory_blocks=[])
    block = one.blocks[0].id
    assert block is not None
    world.letta.agents.blocks.attach(block, agent_id=two.id)
    world.letta.agents.delete(one.id)
    assert world.letta.agents.blocks.retrieve("human", agent_id=two.id).value == "Name: Ann"


def test_a_detached_block_is_attached_elsewhere(world: LettaWorld) -> None:
    one, two = world.agent(name="one"), world.agent(name="two", memory_blocks=[])
    block = one.blocks[0].id
    assert block is not None
    world.letta.agents.blocks.detach(block, agent_id=one.id)
    with pytest.raises(APIStatusError):
        world.letta.agents.blocks.detach(block, agent_id=one.id)
    world.letta.agents.blocks.attach(block, agent_id=two.id)
    world.letta.agents.delete(one.id)
    assert [each.label for each in world.letta.agents.blocks.list(two.id)] == ["human"]


def test_a_block_that_is_read_only_is_not_the_models_to_change(world: LettaWorld) -> None:
    agent = world.agent(memory_blocks=[{"label": "human", "value": "Ann", "read_only": True}])
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "x"})), say("I may not.")
    )
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    returned = next(each for each in reply.messages if each.message_type == "tool_return_message")
    assert returned.status == "error"
    assert world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value == "Ann"
    assert world.letta.agents.blocks.update("human", agent_id=agent.id, value="Zoe").value == "Zoe"


def test_a_shared_block_that_changes_while_its_edit_waits_is_reported(
    world: LettaWorld,
) -> None:
    shared = world.letta.blocks.create(label="plan", value="Nothing yet.")
    asks = "send_message_to_agent_and_wait_for_reply"
    one = world.agent(name="one", block_ids=[shared.id], tools=[asks])
    two = world.agent(name="two", block_ids=[shared.id], tools=["memory_insert"])
    world.upstream.queue(
        call_tools(Call(asks, {"message": "Plan it.", "other_agent_id": two.id}, "c1")),
        call_tools(Call("memory_insert", {"label": "plan", "new_string": "Tulips in May."}, "c2")),
        say("It is planned."),
        say("I see."),
    )
    reply = world.letta.agents.messages.create(one.id, input="Have it planned.")
    last = world.upstream.last.messages[-1]
    assert last["role"] == "tool"
    assert "It is planned." in last["content"]
    assert "Tulips in May." in last["content"]
    assert last["content"] != "It is planned."
    listed = spoken(world.letta.agents.messages.list(one.id, order="asc").items)
    for found in (reply.messages, listed):
        (result,) = [each for each in found if each.message_type == "tool_return_message"]
        assert result.tool_return == "It is planned."
    words = "It is planned, and long after that it is planned once more."
    path = f"/v1/agents/{one.id}/messages/{listed[2].id}"
    _, changed = world.ask("PATCH", path, {"content": words})
    assert changed["tool_return"] == words


@pytest.mark.both
def test_many_agents_write_one_block_at_once_and_nothing_is_lost(world: LettaWorld) -> None:
    count, gate = 16, Gate()
    shared = world.letta.blocks.create(label="board", value="")
    agents = [world.agent(memory_blocks=[], block_ids=[shared.id]).id for _ in range(count)]

    def answer(request: UpstreamRequest) -> Reply:
        if request.messages[-1]["role"] != "user":
            return say("Done.")
        line = {"label": "board", "new_string": str(request.messages[-1]["content"])}
        return call_tools(Call("memory_insert", line), hold_before_headers=gate)

    world.upstream.script = answer
    arrived = world.upstream.request_gate(len(world.upstream.requests) + count)
    with ThreadPoolExecutor(count) as pool:
        send = world.make_client(timeout=PATIENCE_S).agents.messages.create
        found = [pool.submit(send, agent, input=f"Line {n}.") for n, agent in enumerate(agents)]
        arrived.wait_sync()
        gate.open()
        replies = [each.result() for each in found]
    assert {reply.stop_reason.stop_reason for reply in replies} == {"end_turn"}
    assert {reply.messages[1].status for reply in replies} == {"success"}  # type: ignore[union-attr]
    written = world.letta.blocks.retrieve(shared.id).value.splitlines()
    assert sorted(written) == sorted(f"Line {n}." for n in range(count))


@pytest.mark.both
def test_a_block_is_written_from_all_sides_at_once(world: LettaWorld) -> None:
    """By agents that share it, by hand, and by forgetting what was written into it."""
    shared = world.letta.blocks.create(label="board", value="")
    agents = [world.agent(memory_blocks=[], block_ids=[shared.id]).id for _ in range(6)]
    letta = world.make_client(timeout=PATIENCE_S)

    def answer(request: UpstreamRequest) -> Reply:
        if request.messages[-1]["role"] != "user":
            return say("Done.")
        return call_tools(Call("memory_insert", {"label": "board", "new_string": "A line."}))

    world.upstream.script = answer
    sides: tuple[Callable[[str], object], ...] = (
        lambda agent: letta.agents.messages.create(agent, input="Write."),
        lambda agent: letta.agents.blocks.update("board", agent_id=agent, value="Anew."),
        lambda agent: letta.agents.messages.reset(agent),
        lambda agent: letta.agents.blocks.update("board", agent_id=agent, description=agent),
    )
    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(side, agent) for _ in range(4) for side in sides for agent in agents]
        failed = [error for each in found if (error := each.exception()) is not None]
    # A turn of which something was forgotten meanwhile says so; nobody waits for somebody who waits for him.
    assert {getattr(error, "status_code", error) for error in failed} <= {409}


@pytest.mark.both
def test_parallel_edits_of_one_block_are_all_stored(world: LettaWorld) -> None:
    """Of one that no agent sees, which has no agent's lock to wait for."""
    said: tuple[dict[str, Any], ...] = ({"metadata": {"a": 1}}, {"tags": ["x"]}, {"hidden": True})
    blocks = [world.letta.blocks.create(label="board", value="").id for _ in range(8)]
    update = world.make_client().blocks.update
    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(update, block, **each) for block in blocks for each in said]
        assert [each.exception() for each in found] == [None] * len(found)
    for block in blocks:
        made = world.letta.blocks.retrieve(block)
        assert (made.metadata, made.tags, made.hidden) == ({"a": 1}, ["x"], True)


def test_a_block_that_changes_while_a_client_tool_runs_is_reported(world: LettaWorld) -> None:
    agent = world.agent()
    messages = world.letta.agents.messages
    world.upstream.queue(say("Hi."), call_tools(Call("look", {}, "c1")), say("I see."), say("Ok."))
    messages.create(agent.id, input="Hi")
    look: Any = [{"name": "look", "parameters": {"type": "object", "properties": {}}}]
    messages.create(agent.id, input="Look.", client_tools=look)
    world.letta.agents.blocks.update("human", agent_id=agent.id, value="Name: Zoe")
    answer = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "A cat."}
    given: Any = [{"type": "approval", "approvals": [answer]}]
    reply = messages.create(agent.id, messages=given, client_tools=look)
    result, told = sent = world.upstream.last.messages[-2:]
    assert (result["role"], result["content"]) == ("tool", "A cat.")
    assert told["role"] == "user"
    assert "Name: Zoe" in told["content"]
    assert reply.messages[0].tool_return == "A cat."  # type: ignore[union-attr]
    # It is shown once, stays where it was, and is no user's message.
    messages.create(agent.id, input="Bye")
    later = world.upstream.last.messages
    assert later[-4:-2] == sent
    assert str(later).count("Name: Zoe") == 1
    shown = [m.message_type for m in spoken(messages.list(agent.id, order="asc"))]
    assert shown.count("user_message") == 3
    assert shown.count("system_message") == 1
