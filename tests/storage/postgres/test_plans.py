"""How the server reads what a turn asks for: plans are made once, and go by index."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from storage.postgres.database import PostgresDatabase
from storage.sql import statements
from storage.sql.memory_pages import LAST_CHARACTER
from storage.sql.statements import load
from tests.core.conversations import assistant, user
from tests.postgres import empty_database, execute
from tests.storage.conftest import OpenStore, PostgresServer
from tests.stored import ALICE, PATIENT, Clock, Speaker


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Yields a connection on which a prepared statement has one plan, whatever its values."""
    connection = await asyncpg.connect(url, server_settings={"plan_cache_mode": "force_generic_plan"})
    try:
        yield connection
    finally:
        await connection.close()


async def explain(
    connection: asyncpg.Connection, text: str, values: Sequence[str] = (), options: str = "COSTS"
) -> list[str]:
    """Returns the lines of a statement's plan. values: in SQL, those of its first parameters; NULL for the others."""
    count = len(set(re.findall(r"\$\d+", text)))
    given = ", ".join([*values, *["NULL"] * count][:count])
    await connection.execute(f"PREPARE asked AS {text}")
    explained = await connection.fetch(f"EXPLAIN ({options}) EXECUTE asked({given})")
    await connection.execute("DEALLOCATE asked")
    return [line for (line,) in explained]


# A memory of 2,000 turns in 200 conversations, next to 200 small ones.
FILL = """
INSERT INTO agents (uid, project, profile, subject, secret, epoch, created, next_seq)
SELECT 'agent-' || n, 'p', 'f', 'user:' || n, '\\x00', 1, 0, 5000 FROM generate_series(1, 201) n;
INSERT INTO conversations (agent, uid, key, begun, last_at)
SELECT CASE WHEN n <= 200 THEN 1 ELSE n - 199 END, 'conversation-' || n, NULL, n, n FROM generate_series(1, 400) n;
INSERT INTO exchanges (agent, conversation, parent, depth, seq, span, "offset", begun, touched, state, continued,
    active, path, reply_key, input_key, inputs, media)
SELECT c.agent, c.id, CASE WHEN d = 0 THEN NULL ELSE 1 END, d, c.id * 20 + d * 2, 2, 0, d, d, 'finished', 1, 1,
    sha256(('p' || c.id || d)::bytea), sha256(('r' || c.id || d)::bytea), sha256(('i' || c.id || d)::bytea),
    '\\x', '\\x'
FROM conversations c, generate_series(0, 9) d;
INSERT INTO marks (agent, kind, hash, exchange) SELECT agent, 'head', sha256(id::text::bytea), id FROM exchanges;
ANALYZE;
"""


@pytest.fixture(scope="module")
def memories(postgres: str) -> str:
    """The URL of a database that is filled once, for tests that only look at plans."""
    url = empty_database(postgres, 8).url
    execute(url, FILL)
    return url


async def test_the_check_of_the_servers_health_counts_as_no_statement(database: PostgresServer) -> None:
    """It is sent every few seconds, also while a test counts the statements of a request."""
    statements: list[str] = []
    store = await database.open(note=statements.append)
    try:
        assert isinstance(store.database, PostgresDatabase)
        statements.clear()
        await store.database._check_server()
        assert statements == []
    finally:
        await store.close()


async def test_statements_are_planned_once_for_a_connection(open_store: OpenStore) -> None:
    store = await open_store(limits=replace(PATIENT, size=1))
    alice = Speaker(store, ALICE, Clock())
    for word in ("one", "two", "three"):
        await alice.say([user(word)], assistant(f"{word}?"))
    counted = (
        "SELECT count(*), sum(generic_plans)::bigint, sum(custom_plans)::bigint FROM pg_prepared_statements"
    )
    ((statements, generic, custom),) = await store.database.read(lambda each: each.fetch_rows(counted))
    assert statements > 5
    assert generic > statements
    assert custom == 0


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("exchanges.sql", "memory_snapshot"),
        ("exchanges.sql", "pool_found"),
        ("exchanges.sql", "pool_conversation"),
        ("shown_exchanges.sql", "shown_at"),
        ("shown_exchanges.sql", "shown_unindexed"),
        ("stored_paths.sql", "head"),
        ("readers.sql", "of_memories"),
    ],
)
async def test_a_conversation_of_a_long_memory_is_found_by_index(memories: str, file: str, name: str) -> None:
    async with connect(memories) as connection:
        plan = await explain(connection, load(file)[name].postgres)
    steps = [(line, after) for line, after in itertools.pairwise(plan) if " on exchanges" in line]
    # All of an agent's rows are those that nothing but its number leads to.
    whole = [
        line for line, after in steps if "Seq Scan" in line or re.search(r"Cond: \(agent = \S+\)$", after)
    ]
    assert not whole, plan
    assert any("using exchanges" in line or "Bitmap Index Scan" in line for line, _ in steps)


async def test_no_statement_reads_the_exchanges_of_all_memories(memories: str) -> None:
    """A memory is taken for large (`n_distinct`), so that a scan seems to come to a row of a memory at once.

    An EXISTS or a LIMIT of a memory's exchanges without an order makes such a scan look cheap.
    """
    folder = Path(statements.__file__).parent
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.sql"))
    texts = {
        (file, name): statement.postgres
        for file in files
        if file != "pieces.sql"
        for name, statement in load(file).items()
        if "exchanges" in statement.postgres and "$1" in statement.postgres
    }
    assert len(texts) > 100
    async with connect(memories) as connection:
        plans = {key: await explain(connection, text) for key, text in texts.items()}
    scans = {key for key, plan in plans.items() if any("Seq Scan on exchanges " in line for line in plan)}
    # The first two are for readers of all memories; the third reads a page of memories, here a third of all.
    assert scans <= {
        ("readers.sql", "unlearned"), ("readers.sql", "unslept"), ("overview.sql", "memory_sizes"),
    }  # fmt: skip


async def test_a_memory_is_found_empty_without_the_conversations_of_others(memories: str) -> None:
    async with connect(memories) as connection:
        plan = await explain(connection, load("transfer.sql")["is_empty"].postgres)
    assert not [line for line in plan if "Seq Scan on conversations " in line], plan


@pytest.mark.parametrize("name", ["select_erased", "edit_of_call", "edit_of_call_erase"])
async def test_a_forgetting_finds_the_turns_that_a_block_came_from_by_index(memories: str, name: str) -> None:
    """Of whatever memory they are, and whatever all memories have."""
    async with connect(memories) as connection:
        await connection.execute("SET enable_seqscan = off")  # the other tables are small here
        plan = await explain(connection, load("rebuild.sql")[name].postgres)
    assert any("using exchanges_row on exchanges" in line for line in plan), plan
    of_edits = [
        after for line, after in itertools.pairwise(plan) if " on block_ops" in line and "Scan" in line
    ]
    assert all("agent = " in after for after in of_edits), plan


@pytest.mark.parametrize("name", ["by_time_down", "by_time_up"])
async def test_an_agents_conversations_are_sorted_without_those_of_other_agents(
    memories: str, name: str
) -> None:
    """The server does not conclude from the range of `agents.id` that `conversations.agent` lies in it, too."""
    async with connect(memories) as connection:
        await connection.execute("SET enable_seqscan = off")  # the tables are small here
        plan = await explain(connection, load("agents_api/conversations.sql")[name].postgres)
    conditions = [after for line, after in itertools.pairwise(plan) if " on conversations " in line]
    assert conditions
    assert all("agent >= " in condition for condition in conditions), plan


async def test_the_end_of_a_memory_is_found_by_index(database: PostgresServer) -> None:
    """An export begins with it; the last row of all would take a scan of everybody's."""
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute("SET enable_seqscan = off")  # the tables are small here
        text = load("transfer.sql")["export_end"].postgres
        plan = [line for (line,) in await connection.fetch(f"EXPLAIN {text.replace('$1', '1')}")]
    finally:
        await connection.close()
    assert not [line for line in plan if "Seq Scan" in line]
    for table in ("conversations", "block_ops", "runs"):
        ((_, after),) = [pair for pair in itertools.pairwise(plan) if f" on {table} " in pair[0]]
        assert "agent = " in after, plan


# A conversation of 500 turns, where the server takes one for short.
LONG = """
INSERT INTO conversations (id, agent, uid, key, begun, last_at) VALUES (900, 1, 'long', NULL, 0, 0);
INSERT INTO exchanges (id, agent, conversation, parent, depth, seq, span, "offset", begun, touched, state, continued,
    active, path, reply_key, input_key, inputs, media)
SELECT 90000 + d, 1, 900, CASE WHEN d = 0 THEN NULL ELSE 89999 + d END, d, 90000 + d * 2, 2, 0, d, d, 'finished', 1, 1,
    sha256(('lp' || d)::bytea), sha256(('lr' || d)::bytea), sha256(('li' || d)::bytea), '\\x', '\\x'
FROM generate_series(0, 499) d;
"""


async def test_the_ends_of_a_long_conversation_are_found_without_comparing_its_turns(
    database: PostgresServer,
) -> None:
    async with connect(database.url) as connection:
        await connection.execute(FILL)
        await connection.execute(LONG)
        text = load("memory_pages.sql")["deepest"].postgres
        lines = await explain(connection, text, ["1", "900", "2000"], "ANALYZE, TIMING OFF")
    plan = "\n".join(lines)
    steps = re.findall(r"actual rows=([\d.]+) loops=(\d+)", plan)
    read = [float(rows) * int(loops) for rows, loops in steps]
    read += map(float, re.findall(r"Rows Removed by .*: (\d+)", plan))
    assert max(read) < 10_000, plan


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (file, name)
        for file in ("memory_pages.sql", "forget_preview.sql", "people_search.sql")
        for name in load(file)
    ],
)
async def test_a_screen_finds_exchanges_by_their_memory_and_more(memories: str, file: str, name: str) -> None:
    """By its memory alone all that it ever said would be read.

    A conversation of the memory, looked for by both, is narrow enough: its index has no memory.
    """
    async with connect(memories) as connection:
        plan = await explain(connection, load(file)[name].postgres)
    found = [after.strip() for line, after in itertools.pairwise(plan) if " on exchanges" in line]
    narrow = r"(Index|Recheck) Cond: (.*agent = .* AND |\(id = |\(conversation = \(InitPlan)"
    assert not [each for each in found if not re.match(narrow, each)], plan


PEOPLE = """
INSERT INTO agents (uid, project, profile, subject, secret, created, last_turn)
SELECT n::text, 'p', 'f', 'user:person-' || n, '', 0, n * 60 FROM generate_series(1, 20000) n;
INSERT INTO agents (uid, project, profile, subject, secret, created)
SELECT 'agent-' || n, 'p', 'f', 'agent:' || n, '', 0 FROM generate_series(1, 10) n;
ANALYZE;
"""


@pytest.fixture(scope="module")
def people(postgres: str) -> str:
    url = empty_database(postgres, 9).url
    execute(url, PEOPLE)
    return url


@pytest.mark.parametrize(
    ("prefix", "last", "most"),
    [
        ("user:", "Infinity", 200),
        ("user:", "600000", 200),
        ("agent:", "Infinity", 20),
        ("user:person-1777", "Infinity", 20),
        ("user:nobody", "Infinity", 20),
    ],
)
async def test_people_are_listed_from_the_hour_of_their_last_turn(
    people: str, prefix: str, last: str, most: int
) -> None:
    async with connect(people) as connection:
        text = load("memory_pages.sql")["memories"].postgres
        values = ["NULL", f"'{prefix}'", f"'{prefix}{LAST_CHARACTER}'", f"'{last}'", "1000000", "51"]
        lines = await explain(connection, text, values, "ANALYZE, TIMING OFF")
    plan = "\n".join(lines)
    assert "agents_people" in plan
    found = re.findall(r"(?:actual rows=|Rows Removed by .*: )(\d+)", plan)
    assert max(map(int, found)) <= most, plan


JOBS = """
INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload)
SELECT n, 'learn', key, 'pending', 0, 900, 900, 900, '' FROM generate_series(1, 3000) n, (VALUES ('a'), ('b')) k(key);
UPDATE jobs SET state = 'retrying', due = 90000 WHERE first = 1;
INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload)
SELECT agent, kind, n::text, 'pending', 0, 900, 900, 900, ''
FROM generate_series(1, 3000) n, (VALUES (1, 'run'), (0, 'callback')) k(agent, kind);
UPDATE jobs SET state = 'running' WHERE kind = 'run' AND first = 1;
"""


async def test_a_look_for_jobs_takes_a_few_rows_whatever_waits(postgres: str) -> None:
    kinds = "ARRAY['learn', 'run', 'callback', 'none']"
    asked = {
        "due_in": ["1000", kinds, "'h'", "1000"],
        "next": ["1000", kinds],
        "claim": ["1000", "'callback'", "'h'", "1000", "60"],
    }
    # A database of its own, of which the server knows nothing; then all; then that it had no rows.
    async with connect(empty_database(postgres, 7).url) as connection:
        for known in (JOBS, "ANALYZE", f"TRUNCATE jobs; ANALYZE; {JOBS}"):
            await connection.execute(known)
            for name, values in asked.items():
                text = load("jobs.sql")[name].postgres
                plan = "\n".join(await explain(connection, text, values, "ANALYZE"))
                # What steps gave, and what they looked at in vain.
                found = re.findall(r"(?:actual .*?rows=|Rows Removed by .*: )(\d+)", plan)
                assert len(found) > 3, plan
                assert max(map(int, found)) < 10, f"{known}\n{plan}"


# Two memories with 2,500 facts each, all of which are true.
FACTS = """
INSERT INTO facts (agent, seq, text, about, key, at, valid_from, sources)
SELECT 1 + n % 2, n, 'fact ' || n, 'alice', sha256(n::text::bytea), n, n, '[]' FROM generate_series(1, 5000) n;
ANALYZE;
"""


@pytest.mark.parametrize("name", ["current", "all", "as_of"])
async def test_a_page_of_facts_reads_no_more_than_it_shows(database: PostgresServer, name: str) -> None:
    async with connect(database.url) as connection:
        await connection.execute(FACTS)
        text, values = load("facts.sql")[name].postgres, ["1", "100000", "20", "4000"]
        lines = await explain(connection, text, values, "ANALYZE, TIMING OFF")
    plan = "\n".join(lines)
    read = [float(rows) * int(loops) for rows, loops in re.findall(r"actual rows=([\d.]+) loops=(\d+)", plan)]
    assert max(read) < 1_000, plan


# 30 agents with 1,000 runs and 101 conversations each, in two projects. Each run has one step.
RUNS = """
INSERT INTO agents (uid, project, profile, subject, secret, created)
SELECT 'agent-' || n, CASE WHEN n % 2 = 0 THEN 'p' ELSE 'q' END, '@', 'agent:' || n, '', 0
FROM generate_series(1, 30) n;
INSERT INTO conversations (agent, uid, begun, last_at) SELECT id, 'conversation-' || id, 0, 0 FROM agents;
INSERT INTO runs (uid, agent, conversation, state, created)
SELECT 'run-' || n, c.agent, c.id, 'completed', n FROM generate_series(1, 30000) n
JOIN conversations c ON c.uid = 'conversation-' || 1 + n % 30;
INSERT INTO exchanges (agent, conversation, depth, seq, span, "offset", begun, touched, state, continued, active, path,
    reply_key, input_key, inputs, media)
SELECT agent, conversation, 0, id * 2, 2, 0, 0, 0, 'finished', 1, 1, sha256(('p' || id)::bytea),
    sha256(('r' || id)::bytea), sha256(('i' || id)::bytea), '', '' FROM runs;
INSERT INTO run_steps (exchange, agent, run, number, begun) SELECT id, agent, seq / 2, 0, 0 FROM exchanges;
INSERT INTO conversations (agent, uid, begun, last_at) SELECT id, 'further-' || id || '-' || n, 0, 0
FROM agents, generate_series(1, 100) n;
ANALYZE;
"""


@pytest.fixture(scope="module")
def runs(postgres: str) -> str:
    url = empty_database(postgres, 10).url
    execute(url, RUNS)
    return url


@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        (
            "runs",
            "of_project_down",
            ["'p'", "0", "1000000", "ARRAY['completed']", "NULL", "NULL", "NULL", "20"],
        ),
        (
            "runs",
            "of_project_up",
            ["NULL", "0", "1000000", "ARRAY['completed']", "NULL", "NULL", "NULL", "20"],
        ),
        ("runs", "steps_of_project_down", ["'p'", "0", "1000000", "NULL", "20"]),
        ("runs", "row_before", ["1000000", "20"]),
        ("conversations", "of_project_down", ["'p'", "0", "1000000", "20"]),
        ("conversations", "of_project_up", ["'p'", "0", "1000000", "20"]),
    ],
)
async def test_a_page_of_a_projects_list_reads_no_more_than_the_page(
    runs: str, file: str, name: str, values: list[str]
) -> None:
    async with connect(runs) as connection:
        text = load(f"agents_api/{file}.sql")[name].postgres
        lines = await explain(connection, text, values, "ANALYZE, TIMING OFF")
    plan = "\n".join(lines)
    read = [float(rows) * int(loops) for rows, loops in re.findall(r"actual rows=([\d.]+) loops=(\d+)", plan)]
    assert max(read) < 1_000, plan
