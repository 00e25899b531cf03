"""Archives by the client's own methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from letta_client import BadRequestError, NotFoundError

from tests.doubles.upstream import StrictUpstream
from tests.gateway.agents.letta import LettaWorld, letta


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


def test_metadata_and_an_archive_too_many_are_refused(world: LettaWorld) -> None:
    agent, archives = world.agent(), world.letta.archives
    made = [archives.create(name=f"n{n}") for n in range(8)]
    with pytest.raises(BadRequestError, match="metadata"):
        archives.passages.create(made[0].id, text="x", metadata={"a": 1})
    for each in made[:7]:
        world.letta.agents.archives.attach(each.id, agent_id=agent.id)
    with pytest.raises(BadRequestError, match="at most 7 archives and folders"):
        world.letta.agents.archives.attach(made[7].id, agent_id=agent.id)
