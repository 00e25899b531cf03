"""Writes of facts within a transaction: adds facts, ends replaced facts, and marks facts not to be learned again."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import orjson
from msgspec.structs import replace

from storage.commands import LearnedFact
from storage.database import Connection
from storage.errors import WriteConflict
from storage.records import Agent, MarkKind
from storage.sql.agents import find_agent_by_id, take_seq
from storage.sql.block_history import collect_source_rows
from storage.sql.exchanges import add_marks
from storage.sql.statements import load, load_column
from storage.sql.vector_chunks import forget_indexed

SQL = load("facts.sql")

# The time after which a fact that is learned again is stored again. Sooner, each conversation that begins alike would
# add a row.
_AGAIN_S = 86_400.0


async def add_saved_facts(
    connection: Connection, agent_row: int, facts: Sequence[LearnedFact], now: float
) -> None:
    """Adds the facts that a model has saved by a tool within a turn."""
    if not facts:
        return
    agent = await find_agent_by_id(connection, agent_row)
    assert agent is not None  # its turn has just been written
    for fact in facts:
        await add_fact(connection, agent, fact, now, "model")


async def add_fact(
    connection: Connection,
    agent: Agent,
    fact: LearnedFact,
    now: float,
    origin: str = "learned",
    *,
    is_stated: bool = False,
) -> int | None:
    """Adds a fact, unless there is an equal fact, and ends the facts that it replaces.

    fact: the fact.
    now: the time of the write, in seconds since the epoch.
    origin: the writer of the fact, as the table `facts` names it.
    is_stated: True if a person has written the fact. Then it is added even if it was forgotten before.

    Returns the row of the new or the equal fact; None: the fact is not learned again.
    """
    key = hash_key(agent.secret, fact.key)
    since = fact.valid_from or now
    equal_row = await find_equal(connection, agent.id, key)
    if not is_stated:
        if await _was_unlearned(connection, agent.id, key, fact):
            return None
        if equal_row is not None:
            fact = await _refresh_or_retain(connection, agent.id, equal_row, fact, since)
        elif await _was_learned(connection, agent.id, key, fact):
            return None
    if equal_row is not None and equal_row not in fact.replaces:
        fact_row = equal_row
    else:
        seq = await take_seq(connection, agent.id)
        values = (
            agent.id, seq, now, since, key, fact.exchange_row,
            orjson.dumps(list(fact.sources)), fact.about, fact.text, origin, int(fact.standing),
        )  # fmt: skip
        fact_row = int(await connection.fetch_value(SQL["insert"], values))
        if fact.muted:
            await mute_fact(connection, agent.id, seq, now)
    for ended_row in fact.replaces:
        await end_fact(connection, agent.id, ended_row, fact_row, since)
    return fact_row


async def _refresh_or_retain(
    connection: Connection, agent_row: int, equal_row: int, fact: LearnedFact, since: float
) -> LearnedFact:
    """Returns a learned fact that replaces the equal fact if it refreshes it, or else leaves the equal fact as it is.

    A fact that is learned from another exchange at least a day later takes the place of the equal fact, so that it
    stays when the earlier message is forgotten or has become too old. A fact of a sleeptime agent has no exchange of
    its own (only those that were read, as `sources`), so an equal fact stays and retains its sources.
    """
    other_rows = [row for row in fact.replaces if row != equal_row]
    was_standing = None
    if fact.exchange_row is not None:
        values = (equal_row, agent_row, since - _AGAIN_S)
        was_standing = await connection.fetch_value(SQL["standing_of_refreshable"], values)
    if was_standing is None:
        return replace(fact, replaces=other_rows)
    return replace(fact, replaces=[*other_rows, equal_row], standing=fact.standing or bool(was_standing))


async def _was_unlearned(connection: Connection, agent_row: int, key: bytes, fact: LearnedFact) -> bool:
    """Returns whether an equal fact was forgotten that came from the same messages."""
    unlearned = set(await load_column(connection, SQL["unlearned"], (agent_row, key)))
    source_rows = {*fact.sources, *([] if fact.exchange_row is None else [fact.exchange_row])}
    return bool(unlearned) and source_rows <= unlearned


async def _was_learned(connection: Connection, agent_row: int, key: bytes, fact: LearnedFact) -> bool:
    """Returns whether an equal fact was learned from the same exchange before.

    The exchange is read once more, as after an import. A fact from it that has ended since stays ended.
    """
    if fact.exchange_row is None:
        return False
    return (
        await connection.fetch_value(SQL["learned_before"], (agent_row, key, fact.exchange_row)) is not None
    )


async def end_fact(connection: Connection, agent_row: int, fact_row: int, successor: int, at: float) -> None:
    """Ends a fact that another fact replaces, and takes it out of the index.

    An ended fact is not shown. In the index it might be the best hit, by which all other hits are measured.
    """
    await connection.run(SQL["end"], (successor, at, fact_row, agent_row))
    seqs = await connection.fetch_rows(SQL["seq_of"], (fact_row, agent_row))
    await forget_indexed(connection, agent_row, [seq for (seq,) in seqs])


async def detach_facts(connection: Connection, agent_row: int, seqs: Sequence[int]) -> None:
    """Removes the sources of facts, so that the facts stay when a source is forgotten.

    The facts are not learned again from these sources, even after a correction or once they are forgotten.

    Raises: WriteConflict: one of the facts is gone or no longer true.
    """
    for seq in seqs:
        row = await connection.fetch_row(SQL["learned_from"], (agent_row, seq))
        if (
            row is None
            or await connection.fetch_value(SQL["detach"], (agent_row, seq, orjson.dumps([]))) is None
        ):
            raise WriteConflict(f"fact {seq} is gone or no longer true")
        await mark_unlearned(connection, agent_row, *row)


async def mark_unlearned(
    connection: Connection, agent_row: int, key: bytes, exchange_row: int | None, sources: bytes
) -> None:
    """Marks the exchanges that a fact came from, so that it is not learned from them again."""
    # An imported fact comes from no exchange.
    for source_row in collect_source_rows(exchange_row, sources) or (0,):
        await add_marks(connection, agent_row, MarkKind.UNLEARNED, (key,), source_row)


async def find_equal(connection: Connection, agent_row: int, key: bytes) -> int | None:
    """Returns the row of the true fact with this key. key: the hash that `hash_key` returns."""
    return await connection.fetch_value(SQL["same"], (agent_row, key))


async def is_fact_known(connection: Connection, agent: Agent, key: str) -> bool:
    """Returns whether a fact with this key is true, or was forgotten."""
    hashed = hash_key(agent.secret, key)
    if await find_equal(connection, agent.id, hashed) is not None:
        return True
    return bool(await connection.fetch_rows(SQL["unlearned"], (agent.id, hashed)))


def hash_key(secret: bytes, key: str) -> bytes:
    """Returns a fact's key as it is stored. Once the secret is gone, no guessed words can be compared with it."""
    return blake2b(key.encode("utf-8", "replace"), key=secret, digest_size=16).digest()


async def mute_fact(connection: Connection, agent_row: int, seq: int, at: float) -> None:
    """Mutes a fact, unless it is muted already."""
    await connection.run(SQL["mute"], (agent_row, seq, at))
