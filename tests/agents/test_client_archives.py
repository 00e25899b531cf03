"""Archives by the client's own methods."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import BadRequestError, ConflictError, NotFoundError, UnprocessableEntityError

from gateway.agents.registry.archives import Archives
from gateway.run.memory.turn_writer import INDEX_EVERY
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import agent as profile
from tests.patience import becomes


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def test_archives_are_made_listed_changed_and_deleted(world: LettaWorld) -> None:
    archives = world.letta.archives
    one = archives.create(name="one", description="first")
    two = archives.create(name="two")
    assert [each.id for each in archives.list(order="asc")] == [one.id, two.id]
    assert [each.id for each in archives.list(order="asc", limit=1)] == [one.id, two.id]
    assert [each.id for each in archives.list(name="two")] == [two.id]
    assert archives.update(one.id, name="uno").description == "first"
    assert archives.retrieve(one.id).name == "uno"
    archives.delete(one.id)
    with pytest.raises(NotFoundError):
        archives.retrieve(one.id)
    assert [each.id for each in archives.list()] == [two.id]


def test_a_passage_that_is_saved_in_an_archive_is_indexed_without_a_turn(world: LettaWorld) -> None:
    shared = world.letta.archives.create(name="shared")
    texts = [f"The ant number {n}." for n in range(100)]
    world.letta.archives.passages.create_many(shared.id, passages=[{"text": text} for text in texts])
    search_index = world.world.store.search_index
    becomes(lambda: world.world.gateway.call(search_index.find_lagging_agents(INDEX_EVERY, 100)) == [])


def test_a_search_of_an_agent_asks_the_archives_that_it_has_attached(world: LettaWorld) -> None:
    agent, other = world.agent(), world.agent()
    shared = world.letta.archives.create(name="shared")
    passages = world.letta.archives.passages
    made = passages.create(shared.id, text="The boat is called Albatross.", tags=["boat"])
    many = passages.create_many(shared.id, passages=[{"text": "The boat is red."}, {"text": "Rome is old."}])
    assert [each.text for each in many] == ["The boat is red.", "Rome is old."]
    assert made.archive_id == shared.id
    assert made.id is not None

    def found(id: str) -> list[str]:
        return [each.content for each in world.letta.agents.passages.search(id, query="boat").results]

    assert found(agent.id) == []
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    assert sorted(found(agent.id)) == ["The boat is called Albatross.", "The boat is red."]
    assert found(other.id) == []
    assert [each.id for each in world.letta.archives.list(agent_id=agent.id)] == [shared.id]
    own = f"archive-{other.id.removeprefix('agent-')}"
    for archive, agents in ((shared.id, [agent.id]), (own, [other.id])):
        status, told = world.ask("GET", f"/v1/archives/{archive}/agents")
        assert (status, [each["id"] for each in told]) == (200, agents)
    assert list(world.letta.archives.list(agent_id=other.id)) == []
    passages.delete(made.id, archive_id=shared.id)
    assert found(agent.id) == ["The boat is red."]
    with pytest.raises(NotFoundError):
        passages.delete(made.id, archive_id=shared.id)
    world.letta.agents.archives.detach(shared.id, agent_id=agent.id)
    assert found(agent.id) == []
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    world.letta.archives.delete(shared.id)
    assert found(agent.id) == []


def tool(world: LettaWorld, agent: str, name: str, **arguments: Any) -> str:
    """Has the model call a tool. Returns the result that it was sent."""
    world.upstream.queue(call_tools(Call(name, arguments)), say("Done."))
    world.letta.agents.messages.create(agent, input="Go on.")
    result: str = world.upstream.last.messages[-1]["content"]
    return result


def test_a_search_without_a_query_lists_the_newest_of_all_archives(world: LettaWorld) -> None:
    agent, shared = world.agent(), world.letta.archives.create(name="shared")
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    world.letta.agents.passages.create(agent.id, text="old", created_at="2020-01-01T00:00:00Z")
    world.letta.archives.passages.create(shared.id, text="new", created_at="2021-01-01T00:00:00Z")
    world.letta.agents.passages.create(agent.id, text="older", created_at="2019-01-01T00:00:00Z")
    for limit, newest in ((1, ["new"]), (3, ["new", "old", "older"])):
        found = world.letta.passages.search(agent_id=agent.id, limit=limit)
        assert [each.passage.text for each in found] == newest


def test_the_models_own_search_asks_the_attached_archives(world: LettaWorld) -> None:
    tools = ["archival_memory_search", "archival_memory_insert", "recall_memory"]
    agent, other = world.agent(tools=tools), world.agent(tools=tools)
    shared = world.letta.archives.create(name="shared")
    passages = world.letta.archives.passages
    passages.create(shared.id, text="The boat is called Albatross.", tags=["boat"])
    passages.create(shared.id, text="The boat was sold.", created_at="2020-05-01T10:00:00Z")
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    assert (
        tool(world, agent.id, "archival_memory_insert", content="The boat is red.")
        == "Stored in archival memory."
    )
    # What it keeps lies in its own archive.
    own = world.letta.agents.passages.list(agent.id)
    assert [each.text for each in own] == ["The boat is red."]
    found = tool(world, agent.id, "archival_memory_search", query="boat").splitlines()
    assert sorted(line.partition("] ")[2] for line in found) == [
        "The boat is called Albatross. (tags: boat)",
        "The boat is red.",
        "The boat was sold.",
    ]
    rest = world.letta.agents.passages.search(agent.id, query="boat").results
    told = [f"{each.content} (tags: boat)" if each.tags else each.content for each in rest]
    assert sorted(told) == sorted(line.partition("] ")[2] for line in found)
    tagged = tool(world, agent.id, "archival_memory_search", query="boat", tags=["boat"])
    assert tagged.endswith("Albatross. (tags: boat)")
    dated = tool(world, agent.id, "archival_memory_search", query="boat", end_datetime="2021-01-01")
    assert dated == "- [2020-05-01] The boat was sold."
    assert len(tool(world, agent.id, "archival_memory_search", query="boat", top_k=1).splitlines()) == 1
    assert len(tool(world, agent.id, "archival_memory_search", query="boat", top_k=2.0).splitlines()) == 2
    newest = tool(world, agent.id, "archival_memory_search", query=" ", top_k=1)
    assert newest.endswith("The boat is red.")
    assert "Albatross" in tool(world, agent.id, "recall_memory", query="boat")
    assert tool(world, other.id, "archival_memory_search", query="boat") == "Nothing was found."
    world.letta.agents.archives.detach(shared.id, agent_id=agent.id)
    assert "Albatross" not in tool(world, agent.id, "archival_memory_search", query="boat")


def test_the_models_search_in_a_chat_completion_asks_them_as_well(world: LettaWorld) -> None:
    agent = world.agent(name="ann", tools=["archival_memory_search"])
    shared = world.letta.archives.create(name="shared")
    world.letta.archives.passages.create(shared.id, text="The boat is called Albatross.")
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    world.upstream.queue(call_tools(Call("archival_memory_search", {"query": "boat"})), say("Albatross."))
    world.world.chat(model="agent/ann").say("What is the boat called?")
    assert world.upstream.last.messages[-1]["content"].endswith("The boat is called Albatross.")


def test_a_long_text_is_stored_in_parts_whoever_saves_it(world: LettaWorld) -> None:
    agent = world.agent(tools=["archival_memory_insert"])
    text = "word " * 900
    tool(world, agent.id, "archival_memory_insert", content=text, tags=["long"])
    parts = world.letta.agents.passages.list(agent.id)
    assert [len(each.text) <= 2000 for each in parts] == [True] * 3
    assert [each.tags for each in parts] == [["long"]] * 3
    assert "no text to keep" in tool(world, agent.id, "archival_memory_insert", content=" ")
    shared = world.letta.archives.create(name="shared")
    made = world.letta.archives.passages.create(shared.id, text=text)
    assert made.metadata is not None
    ids: Any = made.metadata["parts"]
    assert (ids[0], len(ids)) == (made.id, 3)
    for id in ids:
        world.letta.archives.passages.delete(id, archive_id=shared.id)
    assert world.letta.archives.passages.create(shared.id, text="short").metadata == {}


def test_several_texts_are_saved_or_none(world: LettaWorld) -> None:
    shared, agent = world.letta.archives.create(name="shared"), world.agent()
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    many = world.letta.archives.passages.create_many
    with pytest.raises(UnprocessableEntityError, match="created_at") as wrong:
        many(shared.id, passages=[{"text": "boat one"}, {"text": "boat two", "created_at": "yesterday"}])
    assert wrong.value.body["detail"][0]["loc"] == ["body", "passages", 1, "created_at"]  # type: ignore[index]
    with pytest.raises(UnprocessableEntityError, match="blank"):
        many(shared.id, passages=[{"text": "boat one"}, {"text": "  "}])
    assert world.letta.agents.passages.search(agent.id, query="boat").count == 0
    made = many(shared.id, passages=[{"text": "boat one", "tags": ["a"]}, {"text": "word " * 900}])
    assert [each.tags for each in made] == [["a"], [], [], []]


def test_an_agents_own_archive_is_there_and_is_its_alone(world: LettaWorld) -> None:
    agent, other = world.agent(name="ann"), world.agent(name="bob")
    (made,) = world.letta.agents.passages.create(agent.id, text="Mine.")
    archives, of = world.letta.archives, world.letta.agents.archives
    assert made.archive_id is not None
    own = archives.retrieve(made.archive_id)
    assert (own.id, own.name) == (made.archive_id, "ann's archive")
    of.attach(own.id, agent_id=agent.id)  # it has it
    with pytest.raises(BadRequestError, match="one agent or user alone"):
        of.attach(own.id, agent_id=other.id)
    with pytest.raises(BadRequestError, match="own archive"):
        of.detach(own.id, agent_id=agent.id)
    for change in (lambda: archives.update(own.id, name="x"), lambda: archives.delete(own.id)):
        with pytest.raises(ConflictError, match="own archive"):
            change()
    world.letta.archives.passages.create(own.id, text="By its archive.")
    assert [each.text for each in world.letta.agents.passages.list(agent.id)] == ["Mine.", "By its archive."]
    assert list(archives.list()) == []


def test_a_users_memory_is_attached_to_no_agent_and_nothing_to_it(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with letta(upstream, tmp_path, profile()) as world:
        world.world.chat(model="agent/helper", user="zoe").say("Hello.")
        world.world.settle()
        (zoe,) = world.letta.agents.list(tags=["user:zoe"])
        agent, shared = world.agent(), world.letta.archives.create(name="shared")
        with pytest.raises(BadRequestError, match="one agent or user alone"):
            world.letta.agents.archives.attach(zoe.id.replace("agent-", "archive-"), agent_id=agent.id)
        with pytest.raises(ConflictError, match="settings"):
            world.letta.agents.archives.attach(shared.id, agent_id=zoe.id)


def test_a_description_is_cleared(world: LettaWorld) -> None:
    archives = world.letta.archives
    one = archives.create(name="one", description="first")
    assert archives.update(one.id, name="uno").description == "first"
    assert archives.update(one.id, description=None).description is None
    assert archives.update(one.id, description="again").description == "again"


def test_a_list_has_no_end_before_its_end(world: LettaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = world.world.gateway.app.services.agents.registry
    assert registry is not None
    archives = Archives(world.world.store, world.world.clock)

    async def make() -> None:
        for n in range(1005):
            await archives.create("default", f"archive {n}", {})

    world.world.gateway.call(make())
    newest = [each.name for each in world.letta.archives.list(limit=200)]
    assert newest == [f"archive {n}" for n in reversed(range(1005))]
    oldest = world.letta.archives.list(limit=2, order="asc")
    assert [each.name for each in oldest.items] == ["archive 0", "archive 1"]
    last = oldest.items[1].id
    before = world.letta.archives.list(limit=5, order="asc", before=last)
    assert [each.name for each in before.items] == ["archive 0"]
    with pytest.raises(NotFoundError, match="archive-0000"):
        list(world.letta.archives.list(after=f"archive-{'0' * 32}"))


async def test_seven_of_nine_archives_at_once_are_attached(world: LettaWorld) -> None:
    agent = world.agent()
    made = [world.letta.archives.create(name=f"n{n}") for n in range(9)]
    async with world.async_client() as client:
        attach = client.agents.archives.attach
        done = await asyncio.gather(
            *(attach(each.id, agent_id=agent.id) for each in made), return_exceptions=True
        )
        refused = [each for each in done if isinstance(each, BadRequestError)]
        assert (len(refused), "at most 7 archives and folders" in str(refused[0])) == (2, True)
        assert len([each async for each in client.archives.list(agent_id=agent.id)]) == 7
        passage = await client.archives.passages.create(made[0].id, text="The boat is red.")
        assert passage.archive_id == made[0].id


def test_another_project_has_none_of_it(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, server={"key": "mg-" + "a" * 32}) as world:
        gateway = world.world.gateway
        ours, theirs = (
            world.make_client(gateway.call(gateway.app.services.store.keys.create(name, "test"))[1])
            for name in ("ours", "theirs")
        )
        foreign = theirs.archives.create(name="foreign")
        own = theirs.agents.create(model="openai/m").id.replace("agent-", "archive-")
        agent = ours.agents.create(model="openai/m")
        for id in (foreign.id, own):
            for wrong in (
                lambda id=id: ours.archives.retrieve(id),
                lambda id=id: ours.agents.archives.attach(id, agent_id=agent.id),
                lambda id=id: ours.archives.passages.create(id, text="x"),
                lambda id=id: ours.passages.search(archive_id=id, query="x"),
                lambda id=id: ours.archives.list(after=id),
            ):
                with pytest.raises(NotFoundError, match=id):
                    wrong()
        assert list(ours.archives.list()) == []


@pytest.mark.both
def test_passages_keep_their_metadata(world: LettaWorld) -> None:
    agent, shared = world.agent(), world.letta.archives.create(name="shared")
    world.letta.agents.archives.attach(shared.id, agent_id=agent.id)
    passages, page = world.letta.archives.passages, {"url": "https://example.org", "page": [7]}
    made = passages.create(shared.id, text="The boat is red.", metadata=page)
    one, two = passages.create_many(
        shared.id, passages=[{"text": "The boat is old.", "metadata": {"n": 1}}, {"text": "Rome is old."}]
    )
    assert (made.metadata, one.metadata, two.metadata) == (page, {"n": 1}, {})
    (found,) = world.letta.passages.search(agent_id=agent.id, query="red")
    assert found.passage.metadata == page
    long = passages.create(shared.id, text="word " * 900, metadata=page)
    assert long.metadata is not None
    assert {**long.metadata, "parts": 0} == {**page, "parts": 0}
    # A copy of the agent has them as well.
    copy = world.letta.agents.import_file(file=("a.af", world.letta.agents.export_file(agent.id).encode()))
    (found,) = world.letta.passages.search(agent_id=copy.agent_ids[0], query="red")
    assert found.passage.metadata == page


def test_an_archive_too_many_is_refused(world: LettaWorld) -> None:
    agent, archives = world.agent(), world.letta.archives
    made = [archives.create(name=f"n{n}") for n in range(8)]
    for each in made[:7]:
        world.letta.agents.archives.attach(each.id, agent_id=agent.id)
    with pytest.raises(BadRequestError, match="at most 7 archives and folders"):
        world.letta.agents.archives.attach(made[7].id, agent_id=agent.id)
