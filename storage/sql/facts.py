"""Learned facts, and how far learning has come.

A fact's row is never changed; one that gives way to another is named in a table of its own. Numbers are of the agent's
one order, among its messages, so that the search index can name them. The caller decides what is learned, and what a
message of an exchange is; what is confirmed is read off the row here.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

import orjson

from storage.commands import Learned, LearnedFact, Rules, Unlearned
from storage.database import Connection, Database, Row
from storage.records import Agent, Block, Exchange, Fact, Message, State
from storage.sql import exchanges
from storage.sql.agents import load_agent, take_seq
from storage.sql.blocks import ensure_blocks, load_blocks, write_block
from storage.sql.group import Group, effect, reads
from storage.sql.statements import load, rows_of
from storage.sql.vectors import forget_indexed

SQL = load("facts.sql")

ORIGIN = "learning"
# So many exchanges are read at once.
_BATCH = 32
# A message counts with this length at most, because a longer one is shown cut.
_MESSAGE_CHARS = 4_000
# A message that was written before its reply, and has had none for this long, will not get one.
_OPEN_S = 3_600.0
_READ_MS = 5_000.0


class Facts(Group):
    """Facts that were learned, and how far learning has come."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    async def unlearned(
        self,
        agent: int,
        *,
        now: float,
        idle_s: float,
        limit_chars: int,
        upto: int | None = None,
    ) -> Unlearned | None:
        """Reads the next messages that are confirmed; None where the agent is gone.

        upto: reads again what was read up to there before.
        """

        async def read(connection: Connection) -> Unlearned | None:
            of = await load_agent(connection, agent)
            if of is None:
                return None
            cursor = await _cursor(connection, agent)
            values = (agent, cursor, of.next_seq if upto is None else upto, _BATCH)
            rows = await connection.rows(exchanges.SQL["unlearned"], values)
            found = Unlearned(of, cursor, cursor, [], is_more=len(rows) == _BATCH)
            messages: builtins.list[Message] = []
            size = 0
            for e, is_shared, _ in exchanges.spoken(rows):
                if upto is None and not _is_decided(e, now, idle_s):
                    return replace(found, messages=messages, is_more=False, is_waiting=True)
                if e.standing and e.state is State.FINISHED:
                    new = self._rules.messages_of(e, is_shared, None, None)
                    size += sum(min(len(m.text), _MESSAGE_CHARS) for m in new)
                    if upto is None and messages and size > limit_chars:
                        return replace(found, messages=messages, is_more=True)
                    messages += new
                found = replace(found, upto=e.seq)
            return replace(found, messages=messages)

        return await self._database.long_read(read, deadline_ms=_READ_MS)

    @reads
    async def list(
        self, connection: Connection, agent: int, *, is_all: bool = False, limit: int = 100
    ) -> list[Fact]:
        """Returns facts, newest first. is_all: with those that are no longer true."""
        rows = await connection.rows(SQL["all" if is_all else "current"], (agent, limit))
        return [_fact(row) for row in rows]

    @reads
    async def get(self, connection: Connection, agent: int, seqs: Sequence[int]) -> builtins.list[Fact]:
        """Returns the facts with these numbers, in this order, as far as they are still true."""
        rows = await rows_of(connection, SQL["get"], seqs, agent)
        found = {fact.seq: fact for fact in map(_fact, rows)}
        return [found[seq] for seq in seqs if seq in found]

    @reads
    async def blocks(self, connection: Connection, agent: int) -> tuple[Block, ...]:
        """Returns an agent's blocks. Shared ones are read-only here: what one user says is not for the others."""
        return await load_blocks(connection, agent, keep_shared=True)

    @effect
    async def learning(
        self,
        connection: Connection,
        agent: Agent,
        cursor: int,
        upto: int,
        now: float,
        decide: Callable[[Sequence[Block]], Learned],
    ) -> None:
        """Returns the effect that writes what was learned and moves the cursor from `cursor` to `upto`.

        The effect does nothing where the cursor is elsewhere by then. decide: given the blocks as they are when it is
        written.
        """
        if await _cursor(connection, agent.id) != cursor:
            return
        learned = decide(await load_blocks(connection, agent.id, keep_shared=True))
        for block, value, sources in learned.writes:
            if not block.id:
                await ensure_blocks(connection, agent.id, [replace(block, value="")], now)
                block = next(b for b in await load_blocks(connection, agent.id) if b.label == block.label)
            await write_block(
                connection, block.id, block.version, value, at=now, origin=ORIGIN, sources=sources
            )
        for fact in learned.facts:
            await _keep(connection, agent, fact, now)
        await connection.run(SQL["advance"], (agent.id, upto, now))

    @reads
    async def waiting(self, connection: Connection, limit: int) -> builtins.list[int]:
        """Returns people's memories with something that was not learned from yet."""
        return [id for (id,) in await connection.rows(SQL["waiting"], (limit,))]


async def _cursor(connection: Connection, agent: int) -> int:
    return await connection.value(SQL["cursor"], (agent,)) or 0


def _is_decided(e: Exchange, now: float, idle_s: float) -> bool:
    """Says whether the text and the standing of an exchange are settled: a turn followed it, or the idle time is over.

    An exchange that is dated in the future was written before the clock was put back.
    """
    if e.carried or e.state in (State.OFF, State.FORGOTTEN):
        return True
    patience_s = _OPEN_S if e.state is State.OPEN else idle_s
    return abs(now - max(e.ended or e.stopped or e.begun, e.touched)) > patience_s


async def _keep(connection: Connection, agent: Agent, fact: LearnedFact, now: float) -> None:
    """Adds a fact unless one that says the same is there; the facts that it replaces end in any case."""
    key, since = hash_key(agent.secret, fact.key), fact.valid_from or now
    id = await connection.value(SQL["same"], (agent.id, key))
    if id is None:
        seq, sources = await take_seq(connection, agent.id), orjson.dumps(list(fact.sources))
        values = (agent.id, seq, now, since, key, fact.exchange, sources, fact.about, fact.text)
        id = await connection.value(SQL["insert"], values)
    for old in fact.replaces:
        if old != id:
            await connection.run(SQL["end"], (id, since, old, agent.id))
            ended = await connection.rows(SQL["seq_of"], (old, agent.id))
            # The old fact is not shown any more. In the index it would be the best hit, the measure of all others.
            await forget_indexed(connection, agent.id, [seq for (seq,) in ended])


def hash_key(secret: bytes, key: str) -> bytes:
    """Returns a fact's key as it is stored: nobody can try words against it once the secret is gone."""
    return blake2b(key.encode("utf-8", "replace"), key=secret, digest_size=16).digest()


def _fact(row: Row) -> Fact:
    id, seq, text, about, at, valid_from, exchange, sources, ended_at, successor = row
    return Fact(
        id, seq, text, about, at, valid_from, exchange, tuple(orjson.loads(sources)), ended_at, successor
    )
