"""Measures whether the memory of others slows a query down: one agent's searches next to 1,000 and 1,000,000 messages.

One agent with 1,000 messages of its own is searched through the real store, in a file on disk, beside one agent and
beside 1,000 others with as many messages each (copies of one, rows and index alike). Prints both and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.core.memory.rules import RULES
from scripts.fill import new_agent, write_conversation
from storage.open import open_store
from storage.records import Agent, Scope
from storage.sql.agents import create_agent
from storage.sql.store import Store

NOUNS = [
    "kayak",
    "garden",
    "violin",
    "ticket",
    "bridge",
    "salmon",
    "letter",
    "camera",
    "winter",
    "island",
    "pepper",
    "ladder",
    "engine",
    "museum",
    "candle",
]
VERBS = [
    "bought",
    "painted",
    "lost",
    "found",
    "repaired",
    "sold",
    "borrowed",
    "hid",
    "planted",
    "remembered",
    "forgot",
    "mentioned",
]


def sentence(rng: random.Random) -> str:
    return (
        f"I {rng.choice(VERBS)} the {rng.choice(NOUNS)} near the {rng.choice(NOUNS)} on day {rng.randrange(400)}, "
        f"and {rng.choice(VERBS)} a {rng.choice(NOUNS)} as well."
    )


async def fill(store: Store, agent: Agent, messages: int, seed: int) -> None:
    """Writes one long conversation of the agent, and indexes it."""
    rng = random.Random(seed)
    turns = [(float(turn), sentence(rng), sentence(rng)) for turn in range(messages // 2)]
    await write_conversation(store, agent, f"k{seed}", turns)
    while await store.recall.index(agent.id):
        pass


async def crowd(store: Store, model: Agent, agents: int) -> None:
    """Copies one agent's rows to new agents."""
    columns = ", ".join(
        row[1]
        for row in store.database.reader.run(lambda c: c.execute("PRAGMA table_info(exchanges)").fetchall())
        if row[1] not in ("id", "agent")
    )

    def copy(connection: object, number: int) -> None:
        other = create_agent(
            connection,  # type: ignore[arg-type]
            Agent(0, f"x{number}", Scope("default", "default", f"user:x{number}"), model.secret, 0),
        )
        run = connection.execute  # type: ignore[attr-defined]
        run(
            f"INSERT INTO exchanges (agent, {columns}) SELECT ?, {columns} FROM exchanges WHERE agent = ?",
            (other.id, model.id),
        )
        run("INSERT INTO terms SELECT ?, chunk, data FROM terms WHERE agent = ?", (other.id, model.id))

    for number in range(agents):
        await store.database.writer.submit(lambda c, n=number: copy(c, n))


async def measure(store: Store, agent: Agent, queries: int) -> list[float]:
    rng = random.Random(7)
    found = await store.turns.look(agent, None, None)
    assert found is not None
    times = []
    for _ in range(queries):
        query = f"where did I leave the {rng.choice(NOUNS)} and the {rng.choice(NOUNS)}?"
        begun = time.perf_counter()
        hits = await store.recall.search(
            agent, query, size=found.next_seq, indexed=found.indexed_seq, only_strong=True
        )
        times.append((time.perf_counter() - begun) * 1000)
        assert hits
    return sorted(times)


async def main(others: int, queries: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(Path(folder) / "bench.db", RULES)
        made = []
        for name in ("me", "model"):
            agent = await new_agent(store, name)
            await fill(store, agent, 1000, len(made))
            made.append(agent)
        me, model = made
        await measure(store, me, 50)
        few = await measure(store, me, queries)
        begun = time.perf_counter()
        await crowd(store, model, others - 1)
        print(
            f"{others * 1000:,} messages of others written in {time.perf_counter() - begun:.0f} s",
            file=sys.stderr,
        )
        await measure(store, me, 50)
        many = await measure(store, me, queries)
        await store.close()
    print("| messages of others | p50 ms | p95 ms |\n| --- | --- | --- |")
    for count, times in ((1000, few), (others * 1000, many)):
        print(f"| {count:,} | {statistics.median(times):.2f} | {times[int(len(times) * 0.95)]:.2f} |")
    print(f"ratio of medians: {statistics.median(many) / statistics.median(few):.2f}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/bench foreign", description=__doc__)
    parser.add_argument("--others", type=int, default=1000, help="agents with 1,000 messages each")
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.others, options.queries)))
