"""When memories are indexed: soon after they have grown, and not while their turns go on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.run.background.indexing import LONG_BACKLOG, IndexingService
from gateway.run.memory.turn_writer import INDEX_EVERY
from storage.errors import StoreFailed
from storage.sql.store import Store


class Memories:
    """A store of which only the index is asked. It takes two steps for each memory, of a tenth of a second each."""

    def __init__(self) -> None:
        self.now, self.indexed, self.steps, self.is_broken = 100.0, list[int](), 0, False
        self.search_index, self.backlogs = self, dict[int, int]()
        self.indexing = IndexingService(cast(Store, self), lambda: self.now)

    async def advance(self, agent_row: int) -> bool:
        if self.is_broken:
            raise StoreFailed("no disk")
        self.now += 0.1
        self.steps += 1
        if self.steps % 2 == 0:
            self.indexed.append(agent_row)
        return self.steps % 2 == 1

    async def count_backlog(self, agent_row: int) -> int:
        if self.is_broken:
            raise StoreFailed("no disk")
        return self.backlogs[agent_row]

    async def find_lagging_agents(self, at_least: int, limit: int) -> list[int]:
        return [7, 8]

    async def pass_time(self, seconds: float) -> Any:
        self.now += seconds
        return await self.indexing.perform_due()


async def test_a_memory_is_indexed_when_it_has_not_grown_for_a_while() -> None:
    memories = Memories()
    assert await memories.pass_time(0) is None
    memories.indexing.add(1, 16)
    assert await memories.pass_time(1.5) == pytest.approx(0.5)
    memories.indexing.add(1, 18)
    assert await memories.pass_time(1.5) == pytest.approx(0.5)
    assert memories.indexed == []
    # What took two tenths is followed by a pause nine times as long.
    assert await memories.pass_time(0.6) == pytest.approx(1.8)
    assert memories.indexed == [1]
    assert await memories.pass_time(60) is None


async def test_the_one_that_has_not_grown_longest_comes_first() -> None:
    memories = Memories()
    for agent in (1, 2, 1):
        memories.indexing.add(agent, 16)
    for _ in range(2):
        await memories.pass_time(10)
    assert memories.indexed == [2, 1]


async def test_a_memory_with_a_long_backlog_is_indexed_at_once() -> None:
    memories = Memories()
    memories.indexing.add(1, 16)
    memories.indexing.add(2, LONG_BACKLOG)
    memories.indexing.add(3, None)
    assert await memories.pass_time(0) == 0.0
    await memories.pass_time(0)
    assert memories.indexed == [2, 3]


async def test_a_memory_that_has_grown_is_indexed_if_its_index_lacks_enough() -> None:
    memories = Memories()
    memories.backlogs = {1: INDEX_EVERY - 1, 2: INDEX_EVERY, 3: LONG_BACKLOG}
    for agent in memories.backlogs:
        memories.indexing.add_unchecked(agent)
    await memories.pass_time(0)
    assert memories.indexed == [3]
    for _ in range(2):
        await memories.pass_time(10)
    assert memories.indexed == [3, 2]


async def test_a_memory_is_indexed_when_the_store_works_again() -> None:
    memories = Memories()
    memories.indexing.add(1, 16)
    memories.is_broken = True
    with pytest.raises(StoreFailed):
        await memories.pass_time(10)
    memories.is_broken = False
    await memories.pass_time(0)
    assert memories.indexed == [1]


async def test_a_memory_that_grew_while_the_store_failed_is_checked_when_it_works_again() -> None:
    memories = Memories()
    memories.backlogs = {1: LONG_BACKLOG}
    memories.indexing.add_unchecked(1)
    memories.is_broken = True
    with pytest.raises(StoreFailed):
        await memories.pass_time(0)
    memories.is_broken = False
    await memories.pass_time(0)
    assert memories.indexed == [1]


async def test_memories_that_an_earlier_process_has_left_are_indexed() -> None:
    memories = Memories()
    await memories.indexing.recover()
    for _ in range(2):
        await memories.pass_time(10)
    assert memories.indexed == [7, 8]
