"""Measures what it costs to note why a turn recalled what it did: processor time of the loop's thread, and bytes.

Two stores have the same memories, and the keeper of one of them notes nothing (`memory.keep_why_days = 0`). Both
perform the same turns, each turn right after the other keeper's, and which is first alternates. The figure is the
difference of the two in processor time of the loop's thread (`time.thread_time`), as the median over chunks of turns;
other work of the machine changes it little. The bytes of a row are its part of the table with its indexes. "Packed" is
the time to make a row's bytes, which a thread of the database does. The exit code is 1 above the goals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import asyncpg
import orjson
import uvloop

from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.memory.rules import RULES
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryRequest
from gateway.run.memory.turn_write import make_recall_row_maker
from gateway.run.receipt import Receipt
from gateway.settings import MemorySettings
from scripts import load
from scripts.bench_recall import NoServices
from scripts.fill import new_agent, write_conversation
from storage.open import open_store
from storage.records import Scope
from storage.sql.store import Store
from tests.postgres import empty_database, server

GOAL_US, GOAL_BYTES = 20.0, 300.0
USERS, CONVERSATIONS, TURNS = 60, 4, 12
MEASURED_TURNS = 6  # of a conversation
REPLY = "Indeed. " * 120
CHUNK = 50  # turns of which the mean is taken
SPEC, TARGET = AgentSpec("default"), Target("bench", "m", 128_000)
STARTED_AT = 1_760_000_000.0


class TurnCost(NamedTuple):
    """Processor time in microseconds."""

    # Of the loop's thread in a turn.
    turn_us: float
    # To make the bytes of the turn's row.
    packing_us: float


class Comparison(NamedTuple):
    """The costs of the same turns in the two stores, in order."""

    off: list[TurnCost]
    on: list[TurnCost]


class TableSize(NamedTuple):
    """The size of the table `recalls`."""

    rows: int
    # Of a row with its part of the indexes.
    row_bytes: float
    # Of a row's data.
    data_bytes: float


async def fill(target: Path | str) -> Store:
    """Writes the memories of users, as clients of `load` make them. target: the database, a file or a URL."""
    store = await open_store(target, RULES)
    for user in map(user_of, range(USERS)):
        agent = await new_agent(store, user, bytes(32))
        for number in range(CONVERSATIONS):
            turns = [
                (
                    STARTED_AT + number * 3_600 + turn,
                    orjson.loads(load.render_question(user, number * TURNS + turn))["content"],
                    REPLY,
                )
                for turn in range(TURNS)
            ]
            await write_conversation(store, agent, f"talk-{number}", turns)
        await index(store, user)
    return store


async def index(store: Store, user: str) -> None:
    """Brings the search index of a user's memory up to date, as the gateway does when a memory rests."""
    agent = await store.agents.find(Scope("default", "default", f"user:{user}"))
    while agent is not None and await store.search_index.advance(agent.id):
        pass


def user_of(number: int) -> str:
    return f"person-{number % USERS}"


async def perform(keeper: MemoryKeeper, number: int, messages: list[bytes]) -> TurnCost:
    """Performs the memory's part of one turn, without an upstream. messages: the conversation, which gets two."""
    user = user_of(number // MEASURED_TURNS)
    messages.append(load.render_question(user, CONVERSATIONS * TURNS + number))
    body = load.render_body(messages, user, is_streamed=False)
    identity = identify([], {"user": user}, IdentityRules("default"), "default")
    receipt = Receipt(f"req_{number:024x}")
    at = STARTED_AT + 100_000 + number
    request = MemoryRequest(parse(body), identity, SPEC, at, TARGET, ConversationKind.CLIENT)
    reply = {"role": "assistant", "content": REPLY}
    usage = {"prompt_tokens": 300, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 200}}
    outcome = TurnOutcome(End.FINISHED, (reply,), reply, "stop", usage)
    started_ns = time.thread_time_ns()
    context = await keeper.begin(request)
    prompt = await keeper.composer.make_prompt(context, EndpointForm(), ())
    await keeper.writer.write(context, prompt, BlockEdits(), outcome, receipt)
    turn_ns = time.thread_time_ns() - started_ns
    messages.append(load.render_message("assistant", reply["content"]))
    make_row = make_recall_row_maker(prompt, outcome, receipt)
    started_ns = time.thread_time_ns()
    if make_row is not None:
        make_row()
    return TurnCost(turn_ns / 1_000, (time.thread_time_ns() - started_ns) / 1_000)


async def compare(off: Path | str, on: Path | str, turns: int) -> Comparison:
    """Performs turns in both stores. off, on: their databases."""
    costs: dict[int, list[TurnCost]] = {0: [], 7: []}
    keepers = {}
    for days, target in ((0, off), (7, on)):
        store = await fill(target)
        settings = MemorySettings(keep_why_days=days, recall_deadline_ms=10_000)
        keepers[days] = MemoryKeeper(store, settings, lambda: STARTED_AT + 200_000, NoServices(), None)
    for number in range(turns):
        if number % MEASURED_TURNS == 0:
            messages: dict[int, list[bytes]] = {days: [] for days in costs}
            for keeper in keepers.values():
                await index(keeper.store, user_of(number // MEASURED_TURNS - 1))
        for days in sorted(keepers, reverse=bool(number % 2)):
            costs[days].append(await perform(keepers[days], number, messages[days]))
    for keeper in keepers.values():
        await keeper.store.close()
    return Comparison(costs[0], costs[7])


def chunk_means(values: list[float]) -> list[float]:
    """Returns the mean of each `CHUNK` of values."""
    return [statistics.mean(values[at : at + CHUNK]) for at in range(0, len(values) - CHUNK + 1, CHUNK)]


def sqlite_table_size(database: Path) -> TableSize:
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as reader:
        (size,) = reader.execute(
            "SELECT sum(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name WHERE m.tbl_name = 'recalls'"
        ).fetchone()
        rows, data = reader.execute("SELECT count(*), avg(length(data)) FROM recalls").fetchone()
    return TableSize(rows, size / rows, data)


async def postgres_table_size(url: str) -> TableSize:
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            "SELECT count(*), pg_total_relation_size('recalls')::float8, avg(length(data))::float8 FROM recalls"
        )
    finally:
        await connection.close()
    return TableSize(row[0], row[1] / row[0], row[2])


def main() -> int:
    """Prints the time and the size of recall records. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench recalls", description=__doc__)
    parser.add_argument("--turns", type=int, default=4_000, help="of each (4000)")
    parser.add_argument("--postgres", action="store_true", help="over PostgreSQL")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()
    if options.turns < 2 * CHUNK:
        parser.error(f"--turns is at least {2 * CHUNK}, since quartiles need two chunks")
    with contextlib.ExitStack() as stack:
        if options.postgres:
            url, _ = stack.enter_context(server())
            off_url, on_url = (empty_database(url, number).url for number in (1, 2))
            off, on = uvloop.run(compare(off_url, on_url, options.turns))
            size = uvloop.run(postgres_table_size(on_url))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnemogate-bench-")))
            off, on = uvloop.run(compare(folder / "0.db", folder / "7.db", options.turns))
            size = sqlite_table_size(folder / "7.db")
    added_us = [noting.turn_us - plain.turn_us for plain, noting in zip(off, on, strict=True)]
    differences = chunk_means(added_us)
    low, added, high = statistics.quantiles(differences, n=4)
    packed = statistics.median(cost.packing_us for cost in on)
    whole = statistics.median(cost.turn_us for cost in off)
    if options.json:
        figures = {"loop_us": added, "packed_us": packed, "bytes": size.row_bytes}
        print(json.dumps(figures | {"data_bytes": size.data_bytes, "rows": size.rows}))
    else:
        print(
            f"{added:.1f} us of the loop's thread a turn (goal: < {GOAL_US:.0f}; quartiles {low:.1f} and {high:.1f} of "
            f"{len(differences)} chunks), of {whole:.0f}; packed in {packed:.1f} us"
        )
        print(
            f"{size.row_bytes:.0f} bytes a turn (goal: < {GOAL_BYTES:.0f}), {size.data_bytes:.0f} of them data, "
            f"in {size.rows:,} rows"
        )
    return 0 if added < GOAL_US and size.row_bytes < GOAL_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
