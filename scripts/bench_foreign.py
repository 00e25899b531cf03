"""Measures whether the memory of others slows a query down: one agent's searches next to 1,000 and 1,000,000 messages.

One agent with 1,000 messages of its own is searched through the real store, in a file on disk, next to one agent and
next to 1,000 others with as many messages each (copies of one, rows and index alike). Prints both and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from gateway.core.memory.rules import RULES
from scripts.fill import new_agent, write_conversation
from storage.open import open_store
from storage.records import Agent
from storage.sql.store import Store

WORDS = (
    "kayak garden violin ticket bridge salmon letter camera winter island pepper ladder engine museum candle",
    "bought painted lost found repaired sold borrowed hid planted remembered forgot mentioned",
)
NOUNS, VERBS = (line.split() for line in WORDS)
QUERIES, WARM = 300, 50


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
    while await store.search_index.advance(agent.id):
        pass


async def crowd(store: Store, model: Agent, agents: int) -> None:
    """Copies one agent's rows to new agents."""
    rows = await store.database.read(lambda c: c.fetch_rows("PRAGMA table_info(exchanges)"))
    columns = ", ".join(row[1] for row in rows if row[1] not in ("id", "agent"))
    exchanges = f"INSERT INTO exchanges (agent, {columns}) SELECT ?, {columns} FROM exchanges WHERE agent = ?"
    terms = "INSERT INTO terms (agent, chunk, data) SELECT ?, chunk, data FROM terms WHERE agent = ?"
    for number in range(agents):
        both = ((await new_agent(store, f"x{number}", model.secret)).id, model.id)
        await store.database.write(lambda c, both=both: c.run(exchanges, both))
        await store.database.write(lambda c, both=both: c.run(terms, both))


async def measure(store: Store, agent: Agent) -> list[float]:
    """Returns the milliseconds of each query, sorted, without the first queries, which only fill caches."""
    rng = random.Random(7)
    times = []
    for _ in range(WARM + QUERIES):
        query = f"where did I leave the {rng.choice(NOUNS)} and the {rng.choice(NOUNS)}?"
        begun = time.perf_counter()
        hits = await store.recall.search(agent, query, only_strong=True)
        times.append((time.perf_counter() - begun) * 1000)
        assert hits
    return sorted(times[WARM:])


async def main() -> None:
    """Searches the memory of one agent next to few and to many messages of others, and prints the times."""
    parser = argparse.ArgumentParser(prog="scripts/bench foreign", description=__doc__)
    parser.add_argument("--others", type=int, default=1000, help="agents with 1,000 messages each")
    other_agents = parser.parse_args().others
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(Path(folder) / "bench.db", RULES)
        me, model = await new_agent(store, "me"), await new_agent(store, "model")
        for seed, agent in enumerate((me, model)):
            await fill(store, agent, 1000, seed)
        few = await measure(store, me)
        await crowd(store, model, other_agents - 1)
        many = await measure(store, me)
        await store.close()
    print("| messages of others | p50 ms | p95 ms |\n| --- | --- | --- |")
    for count, times in ((1000, few), (other_agents * 1000, many)):
        print(f"| {count:,} | {statistics.median(times):.2f} | {times[int(len(times) * 0.95)]:.2f} |")
    print(f"ratio of medians: {statistics.median(many) / statistics.median(few):.2f}")


if __name__ == "__main__":
    asyncio.run(main())
