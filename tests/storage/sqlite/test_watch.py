"""The numbers reported for the rows of agents that a process writes are those that it would read."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping

import pytest

from storage.database import Changes
from storage.errors import StoreFull
from storage.records import AgentNumbers, Block, Scope
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.conftest import OpenStore
from tests.stored import ALICE, Speaker

Write = Callable[[sqlite3.Connection], object]

_NUMBERS = "SELECT id, epoch, next_seq, indexed_seq, rev, stamp FROM agents"


class Ear:
    """Collects what the writer of a store reports, as the known numbers of all agents."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.heard: list[Changes] = []
        self.known: dict[int, AgentNumbers | None] = self.read()
        store.database.add_change_listener(self._hear)

    def read(self) -> dict[int, AgentNumbers | None]:
        rows = self.store.database.reader.connection.execute(_NUMBERS)  # type: ignore[attr-defined]
        return {id: AgentNumbers(*numbers) for id, *numbers in rows.fetchall()}

    def _hear(self, told: Changes) -> None:
        self.heard.append(told)
        if isinstance(told, Mapping):
            self.known.update(told)

    def submit(self, write: Write) -> asyncio.Future[object]:
        future: asyncio.Future[object] = self.store.database.writer.submit(write)  # type: ignore[attr-defined]
        return future


@pytest.fixture
async def ear(open_store: OpenStore) -> Ear:
    store = await open_store()
    for name in ("user:a", "user:b"):
        await store.agents.find_or_create(
            Scope("default", "default", name), [Block(0, "human", "", "", 100)], [], 1.0
        )
    return Ear(store)


def run(*statements: str) -> Write:
    def write(connection: sqlite3.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    return write


def fail(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE agents SET rev = 99 WHERE id = 2")
    raise ValueError("no")


@pytest.mark.parametrize("column", AgentNumbers._fields)
async def test_each_number_is_reported_before_its_write_is_answered(ear: Ear, column: str) -> None:
    await ear.submit(run(f"UPDATE agents SET {column} = {column} + 1 WHERE id = 1"))
    assert ear.heard == [{1: ear.read()[1]}]
    assert ear.known == ear.read()


async def test_a_number_that_a_trigger_raises_is_reported(ear: Ear) -> None:
    """A block that two see changes: the rows of both are changed by a trigger of the schema."""
    await ear.submit(run("INSERT INTO attached (agent, kind, target, place) VALUES (2, 'block', 1, 0)"))
    assert ear.heard == [{2: ear.read()[2]}]
    await ear.submit(run("UPDATE blocks SET version = 7 WHERE id = 1"))
    assert ear.heard[1:] == [{1: ear.read()[1], 2: ear.read()[2]}]


async def test_the_last_of_several_changes_counts(ear: Ear) -> None:
    raised = "UPDATE agents SET rev = rev + 1 WHERE id = 1"
    await ear.submit(run(raised, raised, raised))
    assert ear.heard == [{1: ear.read()[1]}]


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM agents WHERE id = 1", "UPDATE agents SET subject = 'user:c', uid = 'c' WHERE id = 1"],
)
async def test_nothing_is_known_of_one_who_is_gone_or_renamed(ear: Ear, statement: str) -> None:
    await ear.submit(run(statement))
    assert ear.heard == [{1: None}]


async def test_a_block_of_a_whole_profile_concerns_all(ear: Ear) -> None:
    await ear.store.default_blocks.follow("default", [], [Block(0, "rules", "For all", "Rule", 100)], at=2.0)
    assert None in ear.heard


async def test_a_write_that_failed_reports_no_numbers(ear: Ear) -> None:
    with pytest.raises(ValueError, match="no"):
        await ear.submit(fail)
    assert ear.heard == [{2: None}]
    assert ear.read()[2] != AgentNumbers(0, 1, 0, 99, 0)


async def test_changes_of_a_write_parallel_to_one_that_failed_are_not_known(ear: Ear) -> None:
    raised = run("UPDATE agents SET rev = rev + 1 WHERE id = 1")
    await asyncio.wait([ear.submit(raised), ear.submit(fail)])
    assert ear.heard == [{1: None, 2: None}]


async def test_after_a_fault_nothing_is_known(ear: Ear) -> None:
    ear.store.database.writer.report_fault(StoreFull("no room"))  # type: ignore[attr-defined]
    assert ear.heard == [None]


async def test_a_hot_turn_reads_nothing_also_where_its_conversation_began_a_moment_ago(
    open_store: OpenStore,
) -> None:
    noted: list[str] = []
    alice = Speaker(await open_store(note=noted.append), ALICE)
    await alice.say([user("Hi")], assistant("Hello."))
    await alice.say([user("Who are you?")], assistant("A friend."))
    noted.clear()
    history = [user("How are you?")]
    for reply in ("Well.", "Still well.", "Yes."):
        await alice.begin(history)
        assert noted == []
        await alice.say(history, assistant(reply))
        history += [assistant(reply), user("And now?")]
        noted.clear()
