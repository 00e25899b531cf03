"""Maintenance where processes share a database: what those that died have left is put in order by another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.run.background import maintenance
from gateway.run.background.indexing import IndexingService
from storage.commands import Change, ForgetTarget, Pool
from tests.core.conversations import assistant, user
from tests.postgres import empty_database
from tests.stored import ALICE, Speaker, open_store, rows


async def test_lines_of_processes_that_died_are_deleted(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOK_INTERVAL_S", 0.01)
    store = await open_store(empty_database(postgres).url)
    try:
        for name, seconds in (("left", -4000.0), ("held", 15.0)):
            assert await store.conversation_locks.take(name, seconds)
        looking = asyncio.create_task(
            maintenance.Maintenance(store, 60.0, lambda: 0.0, IndexingService(store)).look_again()
        )
        names = {("left",), ("held",)}
        while ("left",) in names:
            names = set(await rows(store, "SELECT name FROM conversation_locks"))
        looking.cancel()
        assert names == {("held",)}
    finally:
        await store.close()


def unasked(pool: Pool) -> Change:
    raise AssertionError("there is nothing to decide")


async def test_edits_of_a_memory_that_is_being_forgotten_are_no_more_kept(tmp_path: Path) -> None:
    """Its rows go page by page; a shared block would keep what they say."""
    store = await open_store(tmp_path / "a.db", now=lambda: 2000.0)
    try:
        alice = Speaker(store, ALICE, lambda: 1000.0)
        await alice.end(await alice.begin([user("Hello")], "c1"), [assistant("Hi.")], ["knows a secret"])
        ((pending,),) = await rows(store, "SELECT count(*) FROM block_ops WHERE state = 'pending'")
        assert pending
        values = await rows(store, "SELECT count(*) FROM block_history")
        ((conversation, agent, _, last_at),) = await store.turns.due(2000.0, 3000.0, 1)
        await store.forgetting.begin(alice.agent.id, ForgetTarget(is_all=True))
        # However many of them there are, they do not stand in front of those of others.
        assert not await store.turns.due(2000.0, 3000.0, 1)
        assert (
            await maintenance.Maintenance(store, 60.0, lambda: 2000.0, IndexingService(store)).step() is None
        )
        # It began in the moment in which they were found due.
        await store.turns.settle(conversation, agent, last_at, 2000.0, unasked)
        assert await rows(store, "SELECT count(*) FROM block_history") == values
    finally:
        await store.close()
