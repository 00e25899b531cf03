"""Compares one and two gateways over PostgreSQL with one over SQLite, by the CPU time of gateways and of databases.

All share one upstream and one load generator. Users talk first, and ANALYZE runs, as autovacuum does in time. In each
round, conversations of these users continue at the gateway over SQLite, at one over PostgreSQL, and at two of those at
once; then questions are asked in a memory of 10,000 messages. At the end all are idle. CPU time depends less on other
work of the machine than elapsed time does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import asyncpg
import uvloop

from gateway.core.dates import DAY_S
from gateway.core.memory.rules import RULES
from scripts import load
from scripts.fill import new_agent, write_conversation
from storage.open import is_url, open_store
from tests.postgres import server

EARLIER_TURNS, WARM_TURNS, MEASURED_TURNS = 3, 3, 3
CONNECTIONS = 16
MESSAGES, WORDS, QUESTIONS = 10_000, 30, 200
SEED = 7
# Seconds after which the work that follows turns, such as their index, is done.
SETTLES_S = 6.0
SETTINGS = '{database}\n[[upstreams]]\nname = "mock"\nbase_url = "http://127.0.0.1:{upstream}/v1"\n'


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a measurement."""

    # Users who talk before the first round.
    users: int
    rounds: int
    # Conversations of a round.
    conversations: int
    # Seconds without a request at the end.
    idle_s: float


FULL = Sizes(users=2_000, rounds=7, conversations=320, idle_s=30.0)
QUICK = Sizes(users=100, rounds=3, conversations=48, idle_s=8.0)


class CpuTimes(NamedTuple):
    """Processor times, in seconds."""

    gateways_s: float
    database_s: float


@dataclass(slots=True)
class Setup:
    """Gateways over one database, with their figures."""

    name: str
    gateways: list[load.ServedGateway]
    # Returns the processor time of the database so far, in seconds.
    database_cpu_s: Callable[[], float]
    # The values of each figure by its name, one for each round.
    figures: dict[str, list[float]] = field(default_factory=dict)

    def cpu_times(self) -> CpuTimes:
        """Returns the processor times so far."""
        gateways_s = sum(load.read_cpu_s(gateway.pid) for gateway in self.gateways)
        return CpuTimes(gateways_s, self.database_cpu_s())

    def note_cpu(self, gateways_name: str, database_name: str, before: CpuTimes, factor: float) -> None:
        """Notes the processor times since `before` under two names, each multiplied by a factor."""
        now = self.cpu_times()
        self.note(gateways_name, (now.gateways_s - before.gateways_s) * factor)
        self.note(database_name, (now.database_s - before.database_s) * factor)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.figures.get(name, [float("nan")]))


def tree_cpu_s(root: int) -> float:
    """Returns the CPU seconds of a server and its child processes, including those that have ended."""
    ended = sum(map(int, _fields(root)[13:15])) / os.sysconf("SC_CLK_TCK")
    total = load.read_cpu_s(root) + ended
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if int(_fields(int(folder.name))[1]) == root:
                    total += load.read_cpu_s(int(folder.name))
    return total


def _fields(pid: int) -> list[str]:
    """Returns the fields of a process's `stat` from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


# -- turns


_numbers = itertools.count()


async def run_turns(setup: Setup, conversations: list[load.ClientConversation], turns: int) -> float:
    """Continues each conversation by `turns` turns, at all gateways at once. Returns turns a second.

    Each turn of a conversation is at another gateway than the one before, so that a gateway's caches are always stale.
    """
    count, seconds = len(setup.gateways), 0.0
    for turn in range(turns):
        results = await asyncio.gather(
            *(
                load.drive(
                    gateway.port,
                    load.ConversationFlow(conversations[(index + turn) % count :: count], 1),
                    CONNECTIONS // count,
                )
                for index, gateway in enumerate(setup.gateways)
            )
        )
        errors = [error for result in results for error in result.errors]
        if errors:
            raise SystemExit(f"{setup.name}: these figures are not to be trusted: {errors[:5]}")
        seconds += max(result.ended for result in results) - min(result.began for result in results)
    return len(conversations) * turns / seconds


async def measure(setup: Setup, sizes: Sizes) -> None:
    """Measures a round: each conversation's 4th to 6th turn, by users who have talked before."""
    conversations = [load.ClientConversation(f"bench-{next(_numbers)}") for _ in range(sizes.conversations)]
    for turns_before in (EARLIER_TURNS, WARM_TURNS):
        for conversation in conversations:
            conversation.begin()
        await run_turns(setup, conversations, turns_before)
    before = setup.cpu_times()
    rate = await run_turns(setup, conversations, MEASURED_TURNS)
    turns = sizes.conversations * MEASURED_TURNS
    setup.note_cpu("gateways, CPU ms a turn", "database, CPU ms a turn", before, 1e3 / turns)
    setup.note("turns a second", rate)


async def measure_idle(setups: list[Setup], seconds: float) -> None:
    """Measures gateways and databases while no requests come."""
    await asyncio.sleep(3.0)  # the work that follows the last turns
    times_before = [setup.cpu_times() for setup in setups]
    await asyncio.sleep(seconds)
    for setup, before in zip(setups, times_before, strict=True):
        setup.note_cpu(
            "gateways idle, % of a core", "database idle, % of a core", before, factor=100 / seconds
        )


# -- recall


def vocabulary(rng: random.Random) -> list[str]:
    """Returns the words of the long memory and of the questions about it; from one seed they are the same."""
    return ["".join(rng.choices("abcdefghiklmnoprstuw", k=rng.randint(3, 9))) for _ in range(20_000)]


async def fill_memory(database: str, user: str) -> None:
    """Writes a memory of `MESSAGES` messages. A few words are frequent and most are rare, as in a language."""
    rng = random.Random(SEED)
    words = vocabulary(rng)
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))

    def text() -> str:
        return " ".join(rng.choices(words, cum_weights=weights, k=WORDS))

    store = await open_store(database, RULES)
    try:
        agent = await new_agent(store, user)
        started = time.time() - 100 * DAY_S
        for number in range(MESSAGES // 20):
            at = started + number * 3600
            turns = [(at + turn * 60, text(), text()) for turn in range(10)]
            await write_conversation(store, agent, f"c{number}", turns)
        while await store.search_index.advance(agent.id):
            pass
    finally:
        await store.close()


class Questions:
    """The flow of different questions of a user. Each is a conversation of its own and leaves no memory."""

    def __init__(self, user: str, count: int) -> None:
        self._user = user
        self._remaining = count
        self._words = vocabulary(random.Random(SEED))

    def next_request(self, worker: int) -> bytes | None:
        self._remaining -= 1
        if self._remaining < 0:
            return None
        number = next(_numbers)
        words = " ".join(random.Random(number).choices(self._words[50:3000], k=6))
        body = load.render_body(
            [load.render_message("user", f"What of {words}?")], self._user, is_streamed=False
        )
        return load.chat_request(
            body, b"x-mnemogate-memory: read\r\nx-mnemogate-conversation: question-%d\r\n" % number
        )

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


async def measure_recall(setup: Setup) -> None:
    """Measures requests of a user with many messages and of one without any, and the recall alone."""
    port = setup.gateways[0].port
    for user, name in (("long", "recall"), ("nobody-yet", "without")):
        await load.drive(port, Questions(user, 20), 1)
        before, recalls_before = setup.cpu_times(), _count_recalls(port)
        times_ms = sorted((await load.drive(port, Questions(user, QUESTIONS), 1)).total_ms)
        setup.note_cpu(f"{name}, gateway CPU ms", f"{name}, database CPU ms", before, 1e3 / QUESTIONS)
        setup.note(f"{name}, whole request p50 ms", times_ms[len(times_ms) // 2])
        setup.note(f"{name}, whole request p95 ms", times_ms[len(times_ms) * 95 // 100])
        if user == "long":
            recalls = {bound: count - recalls_before[bound] for bound, count in _count_recalls(port).items()}
            within = min(bound for bound, count in recalls.items() if count >= QUESTIONS * 0.95)
            setup.note("recall alone, p95 ms at most", within * 1e3)


def _count_recalls(port: int) -> dict[float, int]:
    """Returns how many searches a gateway has made, by the upper bound of their time in seconds."""
    text = load.fetch(port, "/metrics").decode()
    rows = re.findall(r'^mnemogate_recall_seconds_bucket\{le="([^"]+)"\} (\d+)', text, re.M)
    return {float(bound): int(count) for bound, count in rows}


# -- all


def render_figures(setups: list[Setup]) -> str:
    names = dict.fromkeys(name for setup in setups for name in setup.figures)
    rows = [["", *(setup.name for setup in setups)]]
    for name in names:
        rows.append(
            [name, *(f"{setup.median(name):,.2f}" if name in setup.figures else "-" for setup in setups)]
        )
    return load.render_table(rows)


def compare_with_goals(setups: list[Setup]) -> Iterator[str]:
    """Compares the figures with the goals of many gateways."""
    sqlite, single, double = setups
    name = "gateways, CPU ms a turn"
    yield f"a gateway's CPU a turn is {single.median(name) / sqlite.median(name):.2f} times SQLite's (goal: < 1.25)"
    name = "database, CPU ms a turn"
    yield (
        f"the database takes {single.median(name):.2f} ms a turn (goal: < 0.5), "
        f"{double.median(name):.2f} with two gateways"
    )
    yield (
        f"recall in {MESSAGES:,} messages: p95 {single.median('recall alone, p95 ms at most'):.0f} ms at most, "
        f"{single.median('recall, whole request p95 ms'):.1f} of the whole request (goal: < 10)"
    )
    rate = double.median("turns a second") / single.median("turns a second")
    cores = len(os.sched_getaffinity(0))
    yield (
        f"two gateways make {rate:.2f} times the turns of one, on {cores} cores "
        "(goal: 1.8, with a core for each gateway, as much for the database, and some for the load)"
    )
    idle = single.median("gateways idle, % of a core") + single.median("database idle, % of a core")
    yield f"idle, a gateway and its database take {idle:.2f}% of a core (goal: 0.1%)"


async def analyze(database: str) -> None:
    """Has the server count its rows, as autovacuum does once a minute."""
    admin = await asyncpg.connect(database)
    await admin.execute("ANALYZE")
    await admin.close()


async def read_sizes(database: str) -> dict[str, int]:
    """Returns the bytes of a database, and of its server's write-ahead log since the start."""
    if not is_url(database):
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            pages, size = (
                reader.execute(f"PRAGMA {each}").fetchone()[0] for each in ("page_count", "page_size")
            )
        return {"disk": pages * size}
    admin = await asyncpg.connect(database)
    size = await admin.fetchval("SELECT pg_database_size(current_database())")
    log = await admin.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
    await admin.close()
    return {"disk": int(size), "log": int(log)}


async def bench(sizes: Sizes, folder: Path, stack: contextlib.ExitStack) -> None:
    """Starts the gateways and databases, measures them in rounds, and prints the figures."""
    upstream = stack.enter_context(load.run_mock(folder / "log"))
    url, postmaster = stack.enter_context(server())

    def gateway(name: str, database: str) -> load.ServedGateway:
        (folder / name).mkdir()
        settings = SETTINGS.format(database=database, upstream=upstream)
        return stack.enter_context(load.serve_gateway(folder / name, settings))

    async def make(name: str) -> str:
        admin = await asyncpg.connect(url)
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        return url.replace("/postgres?", f"/{name}?")

    shared = await make("bench")
    await fill_memory(str(folder / "long.db"), "long")
    await fill_memory(shared, "long")
    shared_gateway = gateway("one", f'[database]\nurl = "{shared}"')
    setups = [
        Setup("SQLite", [gateway("sqlite", f'[database]\npath = "{folder}/long.db"')], lambda: 0.0),
        Setup("PostgreSQL", [shared_gateway], lambda: tree_cpu_s(postmaster)),
    ]
    setups.append(
        Setup(
            "two gateways",
            [shared_gateway, gateway("other", f'[database]\nurl = "{shared}"')],
            setups[1].database_cpu_s,
        )
    )
    for setup in setups:
        earlier_conversations = [load.ClientConversation(f"other-{n}") for n in range(sizes.users)]
        database = f"{folder}/long.db" if setup is setups[0] else shared
        before = await read_sizes(database)
        await run_turns(setup, earlier_conversations, 6)
        await asyncio.sleep(SETTLES_S)
        for name, size in (await read_sizes(database)).items():
            setup.note(f"database, kB of {name} a turn", (size - before[name]) / 1e3 / (sizes.users * 6))
    print(f"{sizes.users} users have talked", file=sys.stderr)
    for number in range(sizes.rounds):
        await analyze(shared)
        for setup in setups[number % 3 :] + setups[: number % 3]:
            await measure(setup, sizes)
        await asyncio.sleep(SETTLES_S)
        for setup in setups[:2]:
            await measure_recall(setup)
        print(f"round {number + 1} of {sizes.rounds} done", file=sys.stderr, flush=True)
    await measure_idle(setups[:2], sizes.idle_s)
    print(render_figures(setups), *compare_with_goals(setups), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench two", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run: rough figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as folder, contextlib.ExitStack() as stack:
        uvloop.run(bench(QUICK if options.quick else FULL, Path(folder), stack))


if __name__ == "__main__":
    main()
