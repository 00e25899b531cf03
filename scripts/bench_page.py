"""Measures the page with a large memory, during the load of applications: times, sizes, and the delay of the load.

A database of 1,000,000 messages, of which one memory has 900,000, is written once into `--folder` and used again by
later runs. With `--postgres` a server gets a copy of it. Then conversations of known users continue at a gateway over
it, by one connection.

Short measurements without the page and with a screen a second alternate, so that other work of the machine slows both.
Each p99 is of all turns of a kind. The first measurements without the page against the second ones show how far chance
alone moves it. At last one screen is read after the other, and the header `server-timing` has their times.

With `--cpu` the processor time of each screen is measured, without a load. Other work of the machine changes it little.

The exit code is 1 if a goal is missed: the p95 of a screen, its bytes, or how far the p99 of the load moves with a
screen a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import uvloop

from gateway.core.dates import DAY_S
from gateway.core.memory.rules import RULES
from scripts import load
from scripts.bench_two import SEED, vocabulary
from scripts.fill import copy_to_postgres, new_agent, write_conversation
from storage.commands import LearnedFact, RecallRow
from storage.database import Connection
from storage.listing import PassageDraft
from storage.open import open_store
from storage.reader_commands import LearnedChanges
from storage.recall_record import RecalledEntry, RecallRecord, pack, pack_request_id
from storage.records import Agent, Block
from storage.sql.blocks import load_blocks, write_block
from storage.sql.default_blocks import ensure_blocks
from storage.sql.recalls import note_recall
from storage.sql.statements import make_statement
from storage.sql.store import Store
from tests.postgres import server

# The p95 of a screen, its bytes, and the share by which the p99 of the load moves.
GOAL_MS, GOAL_BYTES, GOAL_MOVE = 100.0, 100_000, 0.05
# Of the large memory: turns of its longest conversation, turns of the others, and their number at full size.
LONGEST, LONG, CONVERSATIONS = 10_000, 200, 2_200
# Of the other memories: how many, and the turns of each.
OTHERS, SHORT = 10_000, 5
# The numbers of the large memory's records besides messages, and of the entries of the audit.
FACTS, VERSIONS, PASSAGES, AUDIT, RECALLS = 5_000, 300, 2_000, 50_000, 20_000
SETTINGS = """\
{database}

[[upstreams]]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
"""
# The seconds in which the gateway does its work on a database that it has just opened.
SETTLES_S = 6.0
# How often the rounds are resampled, for the range in which another run may be.
DRAWS = 200


@dataclass(frozen=True, slots=True)
class FilledDatabase:
    """The names of a written database that a run has to know."""

    # The secret of an operator's key.
    key: str
    # The uid of the large memory.
    memory: str
    # The number of one of its facts.
    fact: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a measurement."""

    # The part of the full database that is filled.
    share: float
    # A round measures the mock without a gateway, then the load without, with, with, and without the page.
    rounds: int
    # The turns of the load in one measurement.
    turns: int
    # The least number of reads of each screen.
    reads: int


@dataclass(slots=True)
class Screen:
    """One URL of the page, with its times and its size."""

    path: str
    ms: list[float] = field(default_factory=list)
    size: int = 0

    def quantile(self, share: float) -> float:
        return sorted(self.ms)[min(len(self.ms) - 1, int(len(self.ms) * share))]


# -- the database


class Words:
    """Sentences of words as a language has them: few frequent ones, most of them rare. A number has one sentence."""

    def __init__(self) -> None:
        self._words = vocabulary(random.Random(SEED))
        self._weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(self._words))))

    @property
    def most_common(self) -> str:
        return self._words[0]

    def render_sentence(self, number: int) -> str:
        """Returns the sentence of a number."""
        rng = random.Random(number)
        return f"({number}) {' '.join(rng.choices(self._words, cum_weights=self._weights, k=14))}."

    def make_turns(self, at: float, first: int, turns: int) -> Iterator[tuple[float, str, str]]:
        """Returns the turns of a conversation: their times, questions and answers.

        at: the time of the first turn, in seconds since the epoch.
        first: the number of the first turn.
        turns: the number of turns.
        """
        numbers = range(first, first + turns)
        return (
            (at + n * 60, self.render_sentence(2 * k), self.render_sentence(2 * k + 1))
            for n, k in enumerate(numbers)
        )


WORDS = Words()
sentence = WORDS.render_sentence


async def fill(file: Path, share: float) -> FilledDatabase:
    """Writes the database. share: the part of its full size."""
    print(f"writing {1_000_000 * share:,.0f} messages", flush=True)
    store = await open_store(file, RULES)
    now = time.time()
    try:
        agent = await new_agent(store, "alice")
        started, first_number = now - 900 * DAY_S, 0
        for number in range(max(1, int(CONVERSATIONS * share))):
            turns = WORDS.make_turns(started + number * 8 * 3_600, first_number, LONG)
            await write_conversation(store, agent, f"talk-{number}", turns)
            first_number += LONG
        longest = max(LONG, int(LONGEST * share))
        await write_conversation(
            store, agent, "longest", WORDS.make_turns(now - 10 * DAY_S, first_number, longest)
        )
        await fill_lists(store, agent, now, share)
        for number in range(max(1, int(OTHERS * share))):
            other_agent = await new_agent(store, f"person-{number}")
            started_at = started + number * 3_600
            await write_conversation(
                store, other_agent, f"short-{number}", WORDS.make_turns(started_at, number, SHORT)
            )
        while await store.search_index.advance(agent.id):
            pass
        _, key = await store.keys.create("", "bench", None, "operator")
        facts = await store.facts.list_page(agent.id, limit=1)
        return FilledDatabase(key, agent.uid, facts[0].seq)
    finally:
        await store.close()


async def fill_lists(store: Store, agent: Agent, now: float, share: float) -> None:
    """Writes the large memory's records besides messages, the audit, and the recalls of its last turns."""
    newest = make_statement(
        "newest", "SELECT id, seq FROM exchanges WHERE agent = ? ORDER BY id DESC LIMIT ?"
    )

    async def write(connection: Connection) -> list[int]:
        rows = await connection.fetch_rows(newest, (agent.id, scale(RECALLS, share)))
        exchange_rows = [row for row, _ in rows]
        _, newest_seq = rows[0]
        await write_recalls(connection, agent.id, exchange_rows, newest_seq, now)
        await write_versions(connection, agent.id, exchange_rows, now)
        await write_audit(connection, agent.uid, scale(AUDIT, share), now)
        return exchange_rows

    rows = await store.database.write(write)
    facts = [
        LearnedFact(sentence(n), "alice", f"fact {n}", now - n, rows[n % 90], rows[:2])
        for n in range(scale(FACTS, share))
    ]
    memory = await store.agents.find_by_id(agent.id)
    assert memory is not None
    learned = store.facts.make_learn_effect(
        memory, 0, memory.next_seq - 1, now, lambda _: LearnedChanges(facts=facts)
    )
    await store.database.write(learned)
    drafts = [PassageDraft(sentence(n), now - n) for n in range(scale(PASSAGES, share))]
    await store.passages.add(agent.id, drafts)


def scale(count: int, share: float) -> int:
    """Returns a share of a number of records, and at least 100, so that lists have several pages."""
    return max(100, int(count * share))


async def write_recalls(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int], newest_seq: int, now: float
) -> None:
    """Notes the recall of each exchange's turn. exchange_rows: the rows of the exchanges, the newest first."""
    entries = tuple(
        RecalledEntry(
            "message",
            seq=newest_seq - 2 * n,
            rank=n + 1,
            score=0.9,
            words=0.9,
            tokens=20,
            reason="" if n < 8 else "weak",
        )
        for n in range(13)
    )
    record = RecallRecord("recalled", 40, 160, part_tokens=(50, 0, 30, 0, 400, 160, 20), entries=entries)
    data = pack(record)
    for n, row in enumerate(exchange_rows):
        recall = RecallRow(pack_request_id(f"req_{n:024x}"), data)
        await note_recall(connection, agent_row, row, now - n, recall)


async def write_versions(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int], now: float
) -> None:
    """Writes a memory block and its versions, a second apart."""
    block = Block(0, "human", "What is known of the person.", "", 5_000)
    begun = now - DAY_S
    await ensure_blocks(connection, agent_row, [block], begun)
    (block_row,) = await load_blocks(connection, agent_row)
    for n in range(1, VERSIONS):
        text = " ".join(sentence(n + k) for k in range(8))
        source = exchange_rows[n % len(exchange_rows)]
        await write_block(connection, block_row.id, n, text, at=begun + n, origin="tool", sources=[source])


async def write_audit(connection: Connection, uid: str, count: int, now: float) -> None:
    """Writes entries of the audit, a tenth of a second apart."""
    audited = make_statement(
        "audited", "INSERT INTO audit (at, actor, action, memory, what) VALUES (?, ?, ?, ?, ?)"
    )
    for n in range(count):
        at = now - DAY_S + n / 10
        await connection.run(audited, (at, "bench", "edit", uid, f"block human, version {n}"))


# -- the page


class Reading(NamedTuple):
    """A screen that was read."""

    # The time of the server, in milliseconds.
    ms: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """A session of an operator, who reads the page."""

    port: int
    cookie: str

    def read(self, path: str) -> Reading:
        """Reads a screen. path: the path below /ui/. Raises: SystemExit: the answer is an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", f"/ui/{path}", headers={"cookie": self.cookie})
            reply = connection.getresponse()
            body = reply.read()
        # A read that takes too long ends with 503, and its time counts.
        if reply.status not in (200, 503):
            raise SystemExit(f"{path}: {reply.status} {body[:300]!r}")
        return Reading(float((reply.getheader("server-timing") or "").partition("dur=")[2]), body)


def sign_in(port: int, key: str) -> Session:
    """Signs an operator in at the page, and returns the session."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "origin": f"http://127.0.0.1:{port}",
    }
    connection.request("POST", "/ui/login", f"key={key}", headers)
    reply = connection.getresponse()
    reply.read()
    return Session(port, (reply.getheader("set-cookie") or "").partition(";")[0])


def twin_of(path: str) -> str:
    """Returns the path of a screen's twin in JSON."""
    path, mark, query = path.partition("?")
    return f"{path or 'overview'}.json{mark}{query}"


def list_paths(session: Session, filled: FilledDatabase) -> list[str]:
    """Returns the paths of all screens, of lists also of a later page, then the paths of their twins, in order."""

    def read_twin(path: str) -> Any:
        return json.loads(session.read(twin_of(path)).body)

    def later_page(path: str, pages: int = 3) -> str:
        """Returns the path of a list's page after some pages of the largest size."""
        separator = "&" if "?" in path else "?"
        after = None
        for _ in range(pages):
            query = "" if after is None else f"&after={quote(after)}"
            after = read_twin(f"{path}{separator}limit=200{query}")["next"] or after
        return f"{path}{separator}after={quote(after)}" if after else path

    memory = f"m/{filled.memory}"
    longest = f"{memory}/c/longest"
    newest_message = read_twin(longest)["items"][-1]
    earlier = read_twin(f"{longest}?limit=200")["next"]
    lists = ["people", f"{memory}/facts", f"{memory}/conversations", f"{memory}/passages", "audit"]
    paths = [
        "",
        *itertools.chain.from_iterable((path, later_page(path)) for path in lists),
        "people?q=person-77",
        "people?kind=agent",
        memory,
        f"{memory}/facts?all=1",
        f"{memory}/facts?as_of={time.time() - 1_000:.0f}",
        f"{memory}/search?q={quote(sentence(77))}",
        f"{memory}/words?q={quote(sentence(77))}",
        f"people/words?q={quote(sentence(77))}",
        f"{memory}/words?q={WORDS.most_common}",
        f"{memory}/b/human",
        f"{memory}/b/human?from=2&to=200",
        f"{memory}/f/{filled.fact}",
        longest,
        f"{longest}?before={earlier}",
        f"{memory}/c/talk-7",
        f"{memory}/forget?message={newest_message['seq']}",
        f"{memory}/forget?exchange={newest_message['exchange']}",
        f"{memory}/forget?conversation=talk-7",
        f"{memory}/forget?conversation=longest",
        f"{memory}/forget?fact={filled.fact}",
        f"{memory}/forget?all=1",
        f"r/req_{7:024x}",
        "requests",
        f"requests?memory={filled.memory}",
        later_page(f"requests?memory={filled.memory}"),
        f"audit?memory={filled.memory}",
        "work",
        "runs",
        "runs?only=failed",
        "keys",
    ]
    return [*paths, *map(twin_of, paths)]


def browse(session: Session, paths: Sequence[str], pause_s: float, end: Any, readings: Any) -> None:
    """Reads screens, one after the other, with pauses, until the event `end`.

    readings: a queue that gets (path, milliseconds, bytes) of each screen, and None at the end.
    """
    try:
        for path in itertools.cycle(paths):
            if end.wait(pause_s):
                break
            reading = session.read(path)
            readings.put((path, reading.ms, len(reading.body)))
    finally:
        readings.put(None)


class Browsing:
    """Processes that read screens, each from the screen on at which the one before has ended."""

    def __init__(self, session: Session, paths: Sequence[str]) -> None:
        self.screens = {path: Screen(path) for path in paths}
        self._session = session
        # The screen that is read next comes first.
        self._paths = list(paths)
        self._context = multiprocessing.get_context("spawn")

    @contextlib.contextmanager
    def in_background(self, pause_s: float) -> Iterator[None]:
        """Has a process read screens during the block. Without a pause their times are noted."""
        end, readings = self._context.Event(), self._context.Queue()
        arguments = (self._session, self._paths, pause_s, end, readings)
        process = self._context.Process(target=browse, args=arguments)
        process.start()
        first_reading = readings.get(timeout=60)
        try:
            yield
        finally:
            end.set()
            for path, ms, size in itertools.chain([first_reading], iter(readings.get, None)):
                if not pause_s:
                    self.screens[path].ms.append(ms)
                self.screens[path].size = size
                self._paths.append(self._paths.pop(0))
            process.join(10)
            if process.exitcode:
                raise SystemExit("the page could not be read")


# -- the load


class Load:
    """Conversations of known users, by one connection."""

    def __init__(self, port: int, users: int) -> None:
        self._port = port
        self._conversations = itertools.cycle([load.ClientConversation(f"person-{n}") for n in range(users)])

    def play(self, turns: int) -> list[float]:
        """Continues conversations. Returns the milliseconds of each turn."""
        conversations = list(itertools.islice(self._conversations, max(1, turns // 3)))
        for conversation in conversations:
            conversation.begin()
        result = uvloop.run(load.drive(self._port, load.ConversationFlow(conversations, 3), 1))
        if result.errors:
            raise SystemExit(f"errors: {result.errors[:5]}")
        return result.total_ms


@dataclass(frozen=True, slots=True)
class Turns:
    """The times of turns in milliseconds, one list for each measurement."""

    # At the mock, without a gateway.
    direct: list[list[float]] = field(default_factory=list)
    # The first measurement of each round without the page.
    first_without: list[list[float]] = field(default_factory=list)
    # With a screen a second: two measurements of each round.
    with_page: list[list[float]] = field(default_factory=list)
    # The last measurement of each round without the page.
    second_without: list[list[float]] = field(default_factory=list)

    def added_p99(self, *kinds: list[list[float]]) -> float:
        """Returns the p99 of all turns of these kinds, less the mock's."""
        return p99(itertools.chain.from_iterable(itertools.chain(*kinds))) - p99(
            itertools.chain(*self.direct)
        )

    @property
    def without(self) -> float:
        """The added p99 without the page, in milliseconds."""
        return self.added_p99(self.first_without, self.second_without)

    @property
    def moves(self) -> float:
        """The share by which the page moves the added p99."""
        return self.added_p99(self.with_page) / self.without - 1

    @property
    def chance(self) -> float:
        """The share by which two measurements of the same differ. They have half the turns of `moves`."""
        return abs(self.added_p99(self.second_without) / self.added_p99(self.first_without) - 1)

    def resampled(self, random_: random.Random) -> Turns:
        """Returns as many rounds, each drawn from all of them."""
        rounds = random_.choices(range(len(self.direct)), k=len(self.direct))
        return Turns(
            [self.direct[n] for n in rounds],
            [self.first_without[n] for n in rounds],
            [self.with_page[2 * n + k] for n in rounds for k in range(2)],
            [self.second_without[n] for n in rounds],
        )


def bench(port: int, mock: int, filled: FilledDatabase, sizes: Sizes) -> tuple[list[Screen], Turns]:
    """Returns the screens, and the turns of the load."""
    session = sign_in(port, filled.key)
    time.sleep(SETTLES_S)
    paths = list_paths(session, filled)
    traffic, direct = Load(port, max(1, int(OTHERS * sizes.share))), Load(mock, 100)
    traffic.play(sizes.turns)
    browsing = Browsing(session, paths)
    turns = Turns()
    for _ in range(sizes.rounds):
        turns.direct.append(direct.play(sizes.turns))
        turns.first_without.append(traffic.play(sizes.turns))
        for _ in range(2):
            with browsing.in_background(1.0):
                turns.with_page.append(traffic.play(sizes.turns))
        turns.second_without.append(traffic.play(sizes.turns))
    while min(len(screen.ms) for screen in browsing.screens.values()) < sizes.reads:
        with browsing.in_background(0.0):
            traffic.play(sizes.turns)
    return list(browsing.screens.values()), turns


def bench_cpu(port: int, pid: int, filled: FilledDatabase, reads: int) -> None:
    """Prints the processor time that the gateway takes for each screen, and for its twin."""
    session = sign_in(port, filled.key)
    time.sleep(SETTLES_S)
    paths = list_paths(session, filled)

    def cpu_ms(path: str) -> float:
        session.read(path)
        cpu_before_s = load.read_cpu_s(pid)
        for _ in range(reads):
            session.read(path)
        return (load.read_cpu_s(pid) - cpu_before_s) * 1000 / reads

    rows = [["screen", "cpu ms", "twin cpu ms"]]
    for html, twin in zip(paths[: len(paths) // 2], paths[len(paths) // 2 :], strict=True):
        rows.append([shorten_path(html, filled.memory), f"{cpu_ms(html):.1f}", f"{cpu_ms(twin):.1f}"])
    print(load.render_table(rows))


def p99(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[int(len(ordered) * 0.99)]


# -- all


def shorten_path(path: str, memory: str) -> str:
    """Returns the path of a screen as tables have it. memory: the uid that is replaced."""
    path = path.replace(memory, "UID")
    return f"/ui/{path if len(path) <= 60 else path[:59] + '…'}"


def report(screens: Sequence[Screen], turns: Turns, memory: str) -> bool:
    """Prints the figures. Returns whether they reach the goals. memory: the uid in the paths."""
    rows = [["screen", "p50 ms", "p95 ms", "kB", "twin p95 ms", "kB"]]
    half = len(screens) // 2
    for html, twin in zip(screens[:half], screens[half:], strict=True):
        sizes = [f"{screen.size / 1000:.0f}" for screen in (html, twin)]
        rows.append(
            [
                shorten_path(html.path, memory),
                f"{html.quantile(0.5):.1f}",
                f"{html.quantile(0.95):.1f}",
                sizes[0],
            ]
        )
        rows[-1] += [f"{twin.quantile(0.95):.1f}", sizes[1]]
    print(load.render_table(rows))
    slowest = max(screens, key=lambda screen: screen.quantile(0.95))
    largest = max(screen.size for screen in screens[:half])
    print(
        f"slowest: {slowest.quantile(0.95):.0f} ms p95 (goal: < {GOAL_MS:.0f}), largest: {largest:,} bytes of HTML"
    )
    random_ = random.Random(SEED)
    drawn = sorted(turns.resampled(random_).moves for _ in range(DRAWS))
    lowest, highest = drawn[DRAWS // 20], drawn[-DRAWS // 20 - 1]
    print(
        f"added p99 of the load: {turns.without:.2f} ms, with a screen a second "
        f"{turns.added_p99(turns.with_page):.2f} ms; it moves by {turns.moves:+.1%} (goal: < {GOAL_MOVE:.0%}; "
        f"nine in ten draws of the rounds: {lowest:+.1%} to {highest:+.1%}; "
        f"two measurements of the same: {turns.chance:.1%})"
    )
    return slowest.quantile(0.95) < GOAL_MS and largest <= GOAL_BYTES and turns.moves < GOAL_MOVE


def main() -> int:
    """Writes the database if it is missing, measures the page, and prints the figures. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench page", description=__doc__)
    default = Path(tempfile.gettempdir()) / "mnemogate-bench-page"
    parser.add_argument(
        "--folder", type=Path, default=default, help=f"the folder of the database ({default})"
    )
    parser.add_argument("--fill", action="store_true", help="write the database alone, and measure nothing")
    parser.add_argument("--postgres", action="store_true", help="measure over PostgreSQL")
    parser.add_argument("--cpu", action="store_true", help="measure the processor time of screens alone")
    parser.add_argument(
        "--share", type=float, default=1.0, help="the part of the full database that is written (1.0)"
    )
    parser.add_argument("--rounds", type=int, default=30, help="the number of measurements of the load (30)")
    parser.add_argument(
        "--turns", type=int, default=900, help="the number of turns in each measurement (900)"
    )
    parser.add_argument("--looks", type=int, default=20, help="the least number of looks at each screen (20)")
    options = parser.parse_args()
    sizes = Sizes(options.share, options.rounds, options.turns, options.looks)
    with contextlib.ExitStack() as stack:
        folder, database = options.folder / f"{options.share:g}", ""
        folder.mkdir(parents=True, exist_ok=True)
        filled_file, file = folder / "filled.json", folder / "mnemogate.db"
        if not filled_file.exists():
            filled = asyncio.run(fill(file, sizes.share))
            filled_file.write_text(json.dumps([filled.key, filled.memory, filled.fact]))
            filled_file.chmod(0o600)
        if options.fill:
            return 0
        filled = FilledDatabase(*json.loads(filled_file.read_text()))
        if options.postgres:
            url, _ = stack.enter_context(server())
            asyncio.run(copy_to_postgres(file, url))
            database = f'[database]\nurl = "{url}"'
        upstream = stack.enter_context(load.run_mock(folder / "log"))
        settings = SETTINGS.format(database=database, port=upstream)
        gateway = stack.enter_context(load.serve_gateway(folder, settings))
        if options.cpu:
            bench_cpu(gateway.port, gateway.pid, filled, sizes.reads)
            return 0
        screens, turns = bench(gateway.port, upstream, filled, sizes)
    return 0 if report(screens, turns, filled.memory) else 1


if __name__ == "__main__":
    raise SystemExit(main())
