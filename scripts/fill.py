"""Conversations written straight into a store, for benches that need a memory and not the traffic that made it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import asyncpg
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.plan import plan_turn
from gateway.core.conversation.settle import RequestEnd, finish
from gateway.core.conversation.tree import Tree
from gateway.core.memory.rules import RULES
from storage.database import Connection
from storage.open import open_store
from storage.records import Agent, Exchange, Scope
from storage.sql import exchanges
from storage.sql.agents import create_agent
from storage.sql.store import Store

# The columns that the rows of each table of PostgreSQL are written with, and the sequence of their ids.
_COLUMNS = """\
SELECT table_name, array_agg(column_name::text), max(pg_get_serial_sequence(table_name, column_name))
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'schema_versions' AND is_generated = 'NEVER'
GROUP BY table_name"""

Turn = tuple[float, str, str]  # when (seconds), what the user said, what was answered


async def new_agent(store: Store, user: str, secret: bytes | None = None) -> Agent:
    """Makes an agent. secret: instead of one of its own."""
    draft = store.agents.draft(Scope("default", "default", f"user:{user}"))
    draft = replace(draft, secret=secret or draft.secret)
    agent = await store.database.write(lambda connection: create_agent(connection, draft))
    store.agents.cache(agent)
    return agent


async def write_conversation(
    store: Store, agent: Agent, key: str, turns: Iterable[Turn], name: str | None = None
) -> None:
    """One conversation, decided by the same core as live turns are; each turn is seen as the tail of a long list.

    name: of the user, which the messages have.
    """
    hasher = MessageHasher(agent.secret)

    async def write(connection: Connection) -> None:
        await connection.lock(agent.id)
        parent: Exchange | None = None
        conversation: int | None = None
        listed: list[dict[str, str]] = []
        for at, asked, answered in turns:
            if conversation is None:
                begun = await exchanges.add_conversation(connection, agent.id, f"{agent.id}-{key}", key, at)
                conversation = begun.id
            message = {"role": "user", "content": asked}
            listed = [*listed[-2:], {**message, "name": name} if name else message]
            tree = Tree([replace(parent, parent=None)] if parent else [])
            query = Query(
                HashedList(hasher, listed), True, MemoryUse.ON, at, 120.0, conversation_row=conversation
            )
            said = {"role": "assistant", "content": answered}
            e = finish(tree, plan_turn(tree, query), RequestEnd(-1, [said], said, at + 1.0, {}))
            added = await exchanges.add_exchange(connection, agent.id, e)
            if parent is not None:
                await exchanges.update_exchange(connection, agent.id, replace(parent, continued=True))
            listed.append(said)
            parent = replace(e, id=added.id, seq=added.seq)

    await store.database.write(write)


async def copy_to_postgres(file: Path, url: str) -> None:
    """Makes a store in an empty database of PostgreSQL, with all rows of a SQLite one. To fill it takes far longer."""
    await (await open_store(url, RULES)).close()
    target = await asyncpg.connect(url)
    with contextlib.closing(sqlite3.connect(file)) as source:
        async with target.transaction():
            # What triggers write is among the rows.
            await target.execute("SET LOCAL session_replication_role = replica")
            for table, columns, sequence in await target.fetch(_COLUMNS):
                names = ", ".join(f'"{name}"' for name in columns)
                await target.execute(f"DELETE FROM {table}")
                await target.copy_records_to_table(
                    table, records=source.execute(f"SELECT {names} FROM {table}"), columns=columns
                )
                if sequence is not None:
                    await target.execute(f"SELECT setval('{sequence}', max(id)) FROM {table}")
    await target.execute("VACUUM ANALYZE")
    await target.close()
