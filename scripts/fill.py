"""Writes conversations straight into a store, for benches that need a memory without the requests that make one."""

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
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.settle import finish
from gateway.core.conversation.tree import Tree
from gateway.core.memory.rules import RULES
from storage.database import Connection
from storage.open import open_store
from storage.records import Agent, Exchange, Scope
from storage.sql import exchanges
from storage.sql.agents import find_or_create_agent
from storage.sql.store import Store

# For each table of PostgreSQL: its name, the columns that are written, and the sequence of its ids.
_COLUMNS = """\
SELECT table_name, array_agg(column_name::text), max(pg_get_serial_sequence(table_name, column_name))
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'schema_versions' AND is_generated = 'NEVER'
GROUP BY table_name"""

Turn = tuple[float, str, str]  # time (seconds since the epoch), question, reply


async def new_agent(store: Store, user: str, secret: bytes | None = None) -> Agent:
    """Makes an agent. secret: the agent's secret; None: a new one."""
    draft = store.agents.get_draft(Scope("default", "default", f"user:{user}"))
    draft = replace(draft, secret=secret or draft.secret)
    agent = await store.database.write(lambda connection: find_or_create_agent(connection, draft))
    store.agents.cache(agent)
    return agent


async def write_conversation(
    store: Store, agent: Agent, key: str, turns: Iterable[Turn], name: str | None = None
) -> None:
    """Writes a conversation. The core decides as it does for live turns; a request has only the end of a long list.

    name: the name in the user's messages; None: no name.
    """
    hasher = MessageHasher(agent.secret)

    async def write(connection: Connection) -> None:
        await connection.lock(agent.id)
        parent: Exchange | None = None
        conversation: int | None = None
        message_list: list[dict[str, str]] = []
        for at, question, answer in turns:
            if conversation is None:
                row = await exchanges.add_conversation(connection, agent.id, f"{agent.id}-{key}", key, at)
                conversation = row.id
            message = {"role": "user", "content": question}
            message_list = [*message_list[-2:], {**message, "name": name} if name else message]
            tree = Tree([replace(parent, parent=None)] if parent else [])
            query = Query(
                HashedList(hasher, message_list), True, MemoryUse.ON, at, 120.0, conversation_row=conversation
            )
            reply = {"role": "assistant", "content": answer}
            exchange = finish(tree, plan_turn(tree, query), RequestEnd(-1, [reply], reply, at + 1.0, {}))
            added = await exchanges.add_exchange(connection, agent.id, exchange)
            if parent is not None:
                await exchanges.update_exchange(connection, agent.id, replace(parent, continued=True))
            message_list.append(reply)
            parent = replace(exchange, id=added.id, seq=added.seq)

    await store.database.write(write)


async def copy_to_postgres(file: Path, url: str) -> None:
    """Makes a store in an empty PostgreSQL database, with all rows of a SQLite file: faster than to fill it again."""
    await (await open_store(url, RULES)).close()
    target = await asyncpg.connect(url)
    with contextlib.closing(sqlite3.connect(file)) as source:
        async with target.transaction():
            # No triggers run, since the rows that they would write are copied, too.
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
