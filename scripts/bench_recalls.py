"""Measures what it costs to note why a turn recalled what it did: processor time of the loop's thread, and bytes.

Two stores have the same memory, and of their keepers one notes nothing (`memory.keep_why_days = 0`). Both remember and
write the same turns, each turn at one right after the other, and which is first changes. What counts is the processor
time of the thread that has the loop (`time.thread_time`), which others on the machine hardly change: the difference of
the two, as the median over chunks of turns. The bytes are those of the table with its indexes, a row. `packed` is the
making of a row's bytes, which a thread of the database's does. The exit code is 1 above the goals.
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
import load
import orjson
import uvloop

from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.memory.rules import RULES
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryRequest
from gateway.run.memory.prompt import EndpointForm
from gateway.run.memory.turn_write import recall_row_maker
from gateway.run.receipt import Receipt
from gateway.settings import MemorySettings
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
CHUNK = 50
SPEC, TARGET = AgentSpec("default"), Target("bench", "m", 128_000)
BEGUN = 1_760_000_000.0


class Spent(NamedTuple):
    """Processor time in microseconds: of the loop's thread in a turn, and of the making of a row's bytes."""

    turn: float
    packed: float


async def fill(place: Path | str) -> Store:
    """Writes the memories of users, as clients of `load` make them. place: of the database, a file or a URL."""
    store = await open_store(place, RULES)
    for user in map(user_of, range(USERS)):
        agent = await new_agent(store, user, bytes(32))
        for number in range(CONVERSATIONS):
            asked = (load.render_question(user, number * TURNS + n) for n in range(TURNS))
            times = (BEGUN + number * 3_600 + n for n in range(TURNS))
            turns = [
                (at, orjson.loads(each)["content"], REPLY) for at, each in zip(times, asked, strict=True)
            ]
            await write_conversation(store, agent, f"talk-{number}", turns)
        await index(store, user)
    return store


async def index(store: Store, user: str) -> None:
    """Brings the search index of a user's memory up, as it is done when a memory rests."""
    agent = await store.agents.find(Scope("default", "default", f"user:{user}"))
    while agent is not None and await store.search_index.advance(agent.id):
        pass


def user_of(number: int) -> str:
    return f"person-{number % USERS}"


async def perform(keeper: MemoryKeeper, number: int, messages: list[bytes]) -> Spent:
    """Performs the memory of one turn, without an upstream. messages: of its conversation, to which it adds two."""
    user = user_of(number // MEASURED_TURNS)
    messages.append(load.render_question(user, CONVERSATIONS * TURNS + number))
    body = load.render_body(messages, user, stream=False)
    identity = identify([], {"user": user}, IdentityRules("default"), "default")
    receipt = Receipt(time.perf_counter(), f"req_{number:024x}")
    at = BEGUN + 100_000 + number
    request = MemoryRequest(parse(body), identity, SPEC, at, TARGET, ConversationKind.CLIENT)
    reply = {"role": "assistant", "content": REPLY}
    usage = {"prompt_tokens": 300, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 200}}
    outcome = TurnOutcome(End.FINISHED, (reply,), reply, "stop", usage)
    started = time.thread_time_ns()
    context = await keeper.begin(request)
    prompt = await keeper.composer.make_prompt(context, EndpointForm(), ())
    await keeper.write(context, prompt, BlockEdits(), outcome, receipt)
    spent = time.thread_time_ns() - started
    messages.append(load.render_message("assistant", reply["content"]))
    make = recall_row_maker(prompt, outcome, receipt)
    started = time.thread_time_ns()
    if make is not None:
        make()
    return Spent(spent / 1_000, (time.thread_time_ns() - started) / 1_000)


async def compare(off: Path | str, on: Path | str, turns: int) -> tuple[list[Spent], list[Spent]]:
    """Returns what turns took of which nothing was noted, and of which it was. off, on: their databases."""
    spent: dict[int, list[Spent]] = {0: [], 7: []}
    keepers = {}
    for days, folder in ((0, off), (7, on)):
        store = await fill(folder)
        settings = MemorySettings(keep_why_days=days, recall_deadline_ms=10_000)
        keepers[days] = MemoryKeeper(store, settings, lambda: BEGUN + 200_000, NoServices(), None)
    for number in range(turns):
        if number % MEASURED_TURNS == 0:
            messages: dict[int, list[bytes]] = {days: [] for days in spent}
            for keeper in keepers.values():
                await index(keeper.store, user_of(number // MEASURED_TURNS - 1))
        for days in sorted(keepers, reverse=bool(number % 2)):
            spent[days].append(await perform(keepers[days], number, messages[days]))
    for keeper in keepers.values():
        await keeper.store.close()
    return spent[0], spent[7]


def chunks(values: list[float]) -> list[float]:
    """Returns the means of values that follow each other."""
    return [statistics.mean(values[at : at + CHUNK]) for at in range(0, len(values) - CHUNK + 1, CHUNK)]


def bytes_of(database: Path) -> tuple[int, float, float]:
    """Returns how many rows there are, the bytes of a row with its part of the indexes, and those of its data."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as reader:
        (size,) = reader.execute(
            "SELECT sum(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name WHERE m.tbl_name = 'recalls'"
        ).fetchone()
        rows, data = reader.execute("SELECT count(*), avg(length(data)) FROM recalls").fetchone()
    return rows, size / rows, data


async def postgres_bytes_of(url: str) -> tuple[int, float, float]:
    """Returns for PostgreSQL what `bytes_of` does for SQLite."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            "SELECT count(*), pg_total_relation_size('recalls')::float8, avg(length(data))::float8 FROM recalls"
        )
    finally:
        await connection.close()
    return row[0], row[1] / row[0], row[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench recalls", description=__doc__)
    parser.add_argument("--turns", type=int, default=4_000, help="of each (4000)")
    parser.add_argument("--postgres", action="store_true", help="over PostgreSQL")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.postgres:
            url, _ = stack.enter_context(server())
            places = [empty_database(url, number).url for number in (1, 2)]
            off, on = uvloop.run(compare(places[0], places[1], options.turns))
            rows, size, data = uvloop.run(postgres_bytes_of(places[1]))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnemogate-bench-")))
            off, on = uvloop.run(compare(folder / "0.db", folder / "7.db", options.turns))
            rows, size, data = bytes_of(folder / "7.db")
    differences = chunks([b.turn - a.turn for a, b in zip(off, on, strict=True)])
    low, added, high = statistics.quantiles(differences, n=4)
    packed = statistics.median(each.packed for each in on)
    whole = statistics.median(each.turn for each in off)
    if options.json:
        figures = {"loop_us": added, "packed_us": packed, "bytes": size, "data_bytes": data, "rows": rows}
        print(json.dumps(figures))
    else:
        print(
            f"{added:.1f} us of the loop's thread a turn (goal: < {GOAL_US:.0f}; quartiles {low:.1f} and {high:.1f} of "
            f"{len(differences)} chunks), of {whole:.0f}; packed in {packed:.1f} us"
        )
        print(
            f"{size:.0f} bytes a turn (goal: < {GOAL_BYTES:.0f}), {data:.0f} of them data, in {rows:,} rows"
        )
    return 0 if added < GOAL_US and size < GOAL_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
