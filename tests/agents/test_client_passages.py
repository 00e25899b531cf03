"""Archival memory by the client's own methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from letta_client import BadRequestError, NotFoundError, UnprocessableEntityError

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def test_passages_are_saved_listed_and_forgotten(world: LettaWorld) -> None:
    agent = world.agent()
    passages = world.letta.agents.passages
    texts = [f"Fact number {n} about gardens." for n in range(4)]
    made = [passages.create(agent.id, text=text)[0] for text in texts]
    assert [each.text for each in made] == texts
    assert [each.text for each in passages.list(agent.id)] == texts
    assert [each.text for each in passages.list(agent.id, ascending=False, limit=3)] == texts[:0:-1]
    assert [each.id for each in passages.list(agent.id, after=made[1].id)] == [each.id for each in made[2:]]
    # 0.16.8 reads cursors by time, also where the newest come first: `ascending=false&after=` what is newer.
    newer = passages.list(agent.id, after=made[1].id, ascending=False)
    assert [each.text for each in newer] == texts[:1:-1]
    older = passages.list(agent.id, before=made[2].id, ascending=False)
    assert [each.text for each in older] == texts[1::-1]
    assert [each.text for each in passages.list(agent.id, search="NUMBER 2")] == [texts[2]]
    assert made[1].id is not None
    passages.delete(made[1].id, agent_id=agent.id)
    assert [each.text for each in passages.list(agent.id)] == [texts[0], *texts[2:]]
    with pytest.raises(NotFoundError):
        passages.delete(made[1].id, agent_id=agent.id)


def test_a_long_text_becomes_several_passages(world: LettaWorld) -> None:
    agent = world.agent()
    made = world.letta.agents.passages.create(agent.id, text="One sentence of a long text. " * 200)
    assert len(made) > 2
    assert all(len(each.text) <= 2000 for each in made)


def test_passages_are_searched_by_words_tags_and_dates(world: LettaWorld) -> None:
    agent = world.agent()
    passages = world.letta.agents.passages
    passages.create(
        agent.id, text="The cat is called Miso.", tags=["cat", "name"], created_at="2024-05-01T12:00:00Z"
    )
    passages.create(agent.id, text="The cat eats fish.", tags=["cat"], created_at="2025-05-01T12:00:00Z")
    passages.create(agent.id, text="The car is red.", tags=["car"])
    found = passages.search(agent.id, query="What is the cat called?", top_k=1)
    assert (found.count, found.results[0].content) == (1, "The cat is called Miso.")
    by_tag = passages.search(agent.id, query="cat", tags=["cat", "name"], tag_match_mode="all")
    assert [each.content for each in by_tag.results] == ["The cat is called Miso."]
    by_date = passages.search(agent.id, query="cat", start_datetime="2025-01-01", end_datetime="2025-12-31")
    assert [each.content for each in by_date.results] == ["The cat eats fish."]
    everywhere = world.letta.passages.search(agent_id=agent.id, query="car")
    assert everywhere[0].passage.text == "The car is red."
    with pytest.raises(BadRequestError):
        world.letta.passages.search(query="car")
    with pytest.raises(UnprocessableEntityError, match="start_datetime"):
        passages.search(agent.id, query="cat", start_datetime="soon")


def test_a_day_that_is_the_end_of_a_search_is_part_of_it(world: LettaWorld) -> None:
    agent, passages = world.agent(), world.letta.agents.passages
    passages.create(agent.id, text="The cat eats fish.", created_at="2025-05-01T12:00:00Z")
    day = passages.search(agent.id, query="cat", start_datetime="2025-05-01", end_datetime="2025-05-01")
    before = passages.search(agent.id, query="cat", end_datetime="2025-05-01T00:00:00")
    assert (day.count, before.count) == (1, 0)
    everywhere = world.letta.passages.search
    assert everywhere(agent_id=agent.id, query="cat", end_date="2025-05-01")
    assert everywhere(agent_id=agent.id, query="cat", end_date="9999-12-31")
    world.letta.agents.messages.create(agent.id, input="My violets are blue.")
    said = world.letta.agents.messages.list(agent.id).items[0].date.date().isoformat()
    assert world.letta.messages.search(query="violets", end_date=said)


def test_an_agent_finds_what_was_saved_for_it(world: LettaWorld) -> None:
    agent = world.agent(tools=["archival_memory_search"])
    world.letta.agents.passages.create(agent.id, text="The spare key is under the fern.")
    world.upstream.queue(
        call_tools(Call("archival_memory_search", {"query": "spare key"})), say("Under the fern.")
    )
    reply = world.letta.agents.messages.create(agent.id, input="Where is the key?")
    returned = next(each for each in reply.messages if each.message_type == "tool_return_message")
    assert "under the fern" in str(returned.tool_return)
