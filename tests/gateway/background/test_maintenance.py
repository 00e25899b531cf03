"""Maintenance where processes share a database: what those that died have left is put in order by another."""

from __future__ import annotations

from pathlib import Path

from gateway.run.background import maintenance
from storage.commands import CandidateExchanges, TurnChange
from storage.forget_commands import ForgetTarget
from tests.core.conversations import assistant, user
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import agent, remember
from tests.postgres import empty_database
from tests.stored import ALICE, Speaker, open_store, rows


def test_locks_of_processes_that_died_are_deleted(upstream: StrictUpstream, postgres: str) -> None:
    with remember(upstream, empty_database(postgres).url, agent()) as world:
        call, store = world.gateway.call, world.store

        async def take() -> None:
            for name, seconds in (("left", -4000.0), ("held", 15.0)):
                assert await store.conversation_locks.acquire(name, seconds)

        call(take())
        call(world.gateway.app.services.background.recover())
        assert call(rows(store, "SELECT name FROM conversation_locks")) == [("held",)]


def unasked(candidates: CandidateExchanges) -> TurnChange:
    raise AssertionError("there is nothing to decide")


async def test_edits_of_a_memory_that_is_being_forgotten_are_not_merged(tmp_path: Path) -> None:
    """Its rows go page by page; a shared block would keep what they say."""
    store = await open_store(tmp_path / "a.db", now=lambda: 2000.0)
    try:
        alice = Speaker(store, ALICE, lambda: 1000.0)
        await alice.end(await alice.begin([user("Hello")], "c1"), [assistant("Hi.")], ["knows a secret"])
        ((pending,),) = await rows(store, "SELECT count(*) FROM block_ops WHERE state = 'pending'")
        assert pending
        values = await rows(store, "SELECT count(*) FROM block_history")
        ((agent, conversation, _, last_at),) = await store.turns.list_due(2000.0, 3000.0, 1)
        await store.forgetting.begin(alice.agent.id, ForgetTarget(is_all=True))
        # However many of them there are, they do not stand in front of those of others.
        assert not await store.turns.list_due(2000.0, 3000.0, 1)
        assert await maintenance.Maintenance(store, 60.0, lambda: 2000.0).perform_due() is None
        # It began in the moment in which they were found due.
        await store.turns.confirm_edits(agent, conversation, last_at, 2000.0, unasked)
        assert await rows(store, "SELECT count(*) FROM block_history") == values
    finally:
        await store.close()
