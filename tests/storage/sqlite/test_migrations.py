"""A file is brought to the schema this program knows, or refused by name."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from storage.errors import Foreign, StoreError, TooNew
from storage.sqlite.connection import DatabaseFile, open_writer
from storage.sqlite.migration import load_migrations, migrate
from tests.core.conversations import assistant, user
from tests.storage.lanes import FIRST, JOBS, JOBS_BEFORE_LANES
from tests.stored import Speaker, rows

KNOWN = load_migrations()[-1][0]

# The SHA-256 of each migration. Databases out there were made by these files, so a file that is here never changes:
# a change of the schema is a new file, with a line here.
PINNED = {
    "0001_begin.sql": "2c9718a3f10fa530594fb6bf69e3135a0e1f47b6642da82a58f44b855af4fac6",
    "0002_jobs.sql": "277e24e5aa6d6bb3ecd536829b978aafc83110839a39124646f3cd704af9bc2e",
    "0003_summaries.sql": "0ad87dc162b44ce9e5bb5e6d724ab063a7bfa4e1fd486d551018e95f80c3e9a0",
    "0004_facts.sql": "495154aee62affdbc539ac099dbbbe60d7dba57aed0d4ca957a1b168580aeaf9",
    "0005_vectors.sql": "82daae28f627a319be051abc1df3dd5dbe3ebca9dfb466c8219d334f682a250a",
    "0006_keys.sql": "5cc74722dc8167afcb57c79e2592089b9555b20412eabbec50e7e399c4c9798b",
    "0007_agents.sql": "39f1ac25e61bb879ab4cc8c0a822b9e1dbe9f6e530c98833ff6909a98ba431cd",
    "0008_batches.sql": "1bcf5855361524ebc3b88e674671fb2fcaa0350c50d3ec81d19adae2b84f83d9",
    "0009_leases.sql": "ce0b07155bb8eda78801ff54dc32a7fcc56c39b9fb8db3fd0dc8dfc26c5080fa",
    "0010_lines.sql": "08ed5b266cbd27012adbdc54431262d1f3256066a508f61ea342787a70c19be5",
    "0011_followed.sql": "656694a2ba19eb361a3240fcaedf7196e3b04619f890ec786f8ab639d4eb3c19",
    "0012_kept.sql": "96f2263596a9caa7250e1025fde9be5e1e1ed0fc1d8188614a8c3a71775a058b",
    "0013_recall.sql": "5026c28e78d95941f22b6d57e8dee10c327eaf8c0fbab53a7ff343c8140883ee",
    "0014_identities.sql": "b152aa3d684a6db34ed8b2c512216400c84d23927f3f775e3f0600bf63f3259f",
    "0015_passage_metadata.sql": "82a426fc53b0b5581a971281b3c6e004cb530008f99068bade97c7bc0dbdd6d8",
    "0016_lanes.sql": "8c38d92597e89f46e58a2aa466e0d5b9f675dd6c870792357f247660f68bc742",
    "0017_key_use.sql": "c818089b100c67a292833a73019178fde5acaf3cff99cc39a8ae23edd140fc06",
    "0018_deflated_notes.sql": "1c6e149d8323dfa7ce1b2068bc176e963062e93e1e31a532151258102f403382",
    "0019_forks.sql": "0c88e47216b6dcccc970aaf45cea2b98bd72b9b9fd8fdde74501065c79b259e6",
}


@pytest.fixture
def connection(path: Path) -> Any:
    connection = open_writer(DatabaseFile(str(path)))
    yield connection
    connection.close()


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_new_file_gets_the_whole_schema_and_a_second_start_changes_nothing(
    connection: sqlite3.Connection,
) -> None:
    assert migrate(connection, "x") == KNOWN == version(connection)
    before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    assert len(before) > 20
    migrate(connection, "x")
    assert connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before


def test_only_what_is_missing_is_applied(
    connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    first = (1, "CREATE TABLE a (x);")
    migrate(connection, "x", (first,))
    connection.execute("INSERT INTO a VALUES (7)")
    migrate(connection, "x", (first, (2, "ALTER TABLE a ADD COLUMN y DEFAULT 8;")))
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(7, 8)]
    assert version(connection) == 2
    assert caplog.messages == ["x was upgraded from schema version 1 to 2."]


def test_a_step_that_fails_leaves_nothing_of_itself(connection: sqlite3.Connection) -> None:
    first = (1, "CREATE TABLE a (x);")
    with pytest.raises(StoreError):
        migrate(connection, "x", (first, (2, "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1);")))
    assert version(connection) == 1
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    migrate(connection, "x", (first, (2, "CREATE TABLE b (x);")))
    assert version(connection) == 2


@pytest.mark.parametrize(
    ("earlier", "says"),
    [
        ("CREATE TABLE a (x); CREATE INDEX i ON a (x);", "no table a, column y"),
        ("CREATE TABLE a (y, x);", "no index i"),  # the order of columns is the file's own affair
    ],
)
def test_a_file_that_its_version_does_not_describe_is_refused(
    connection: sqlite3.Connection, earlier: str, says: str
) -> None:
    migrate(connection, "x", ((1, earlier),))
    steps = ((1, "CREATE TABLE a (x, y); CREATE INDEX i ON a (x);"), (2, "CREATE TABLE b (x);"))
    with pytest.raises(Foreign, match=says):
        migrate(connection, "x", steps)
    assert version(connection) == 1  # the one that made it can still read it


def test_a_migration_never_changes() -> None:
    folder = resources.files("storage.sqlite.migrations")
    files = [each for each in folder.iterdir() if each.name.endswith(".sql")]
    found = {each.name: sha256(each.read_bytes()).hexdigest() for each in files}
    assert found == PINNED, "append a migration and pin it in PINNED; one that is pinned stays as it is"


def rewind(path: Path, level: int) -> None:
    """Makes the file what the first `level` migrations would have made, with as much of its rows as had a place."""
    new = path.rename(path.with_name("new.db"))
    with closing(open_writer(DatabaseFile(str(path)))) as old:
        migrate(old, str(path), load_migrations()[:level])
        old.execute("ATTACH ? AS new", (str(new),))
        tables = old.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
        # A trigger counts new exchanges in the rows of these two, so they come last.
        for (table,) in sorted(tables, key=lambda row: row[0] in ("agents", "conversations")):
            if table == "learned":
                old.execute("INSERT INTO learned SELECT memory, seq FROM new.readers WHERE reader = 0")
            elif not table.startswith("sqlite_"):
                columns = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
                old.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")


@pytest.mark.parametrize("level", range(1, KNOWN + 1))
async def test_a_database_of_every_older_version_opens_and_works(
    open_store: Any, path: Path, level: int
) -> None:
    store = await open_store()
    _, secret = await store.keys.create("default", "ann")
    said = [user("My cat is called Miso.")]
    alice = Speaker(store)
    await alice.say(said, assistant("Hello Miso."))
    await rows(store, "INSERT INTO readers (memory, reader, seq, at) VALUES (?, 0, 1, 9)", (alice.agent.id,))
    await store.close()
    rewind(path, level)
    with closing(sqlite3.connect(path)) as old:
        assert version(old) == level

    store = await open_store()
    alice = Speaker(store, now=lambda: 2.0)
    said += [assistant("Hello Miso."), user("She is grey.")]
    await alice.say(said, assistant("Noted."))
    first, second = await alice.rows()
    assert (second.parent, first.continued) == (first.id, True)
    found = await store.recall.search(alice.agent, "What is my cat called?")
    assert "My cat is called Miso." in [message.text for message in found]
    key = await store.keys.find(secret)
    assert (key.name, key.memory) == ("ann", None)
    # What came with a later version.
    assert await store.facts.list(alice.agent.id) == []
    read = await rows(store, "SELECT memory, reader, seq FROM readers")
    assert read == ([(alice.agent.id, 0, 1)] if level >= 4 else [])
    (block,) = await store.blocks.load(alice.agent.id)
    assert len(block.uid) == 32
    assert await store.jobs.enqueue("work", alice.agent.id, "k")
    assert [job.kind for job in await store.jobs.list()] == ["work"]
    await store.close()
    with closing(sqlite3.connect(path)) as now:
        assert version(now) == KNOWN


async def test_jobs_of_an_older_file_stand_in_their_lanes(open_store: Any, path: Path) -> None:
    with closing(open_writer(DatabaseFile(str(path)))) as old:
        migrate(old, str(path), load_migrations()[:15])
        old.executemany(JOBS_BEFORE_LANES, JOBS)
    store = await open_store()
    assert await rows(store, "SELECT key FROM jobs WHERE first = 1 ORDER BY id") == FIRST
    assert len(await store.jobs.list()) == len(JOBS)
    await store.close()


async def test_a_newer_file_is_refused_by_name_and_left_alone(open_store: Any, path: Path) -> None:
    await (await open_store()).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {KNOWN + 3}")
    connection.close()
    with pytest.raises(TooNew, match=f"version {KNOWN + 3}.*up to {KNOWN}"):
        await open_store()
    connection = sqlite3.connect(path)
    assert version(connection) == KNOWN + 3
    connection.close()


async def test_a_database_of_something_else_is_refused(open_store: Any, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(Foreign):
        await open_store()


async def test_an_exchange_moves_its_conversation_and_its_agent(store: Any, agent: Any) -> None:
    def add(connection: sqlite3.Connection) -> tuple[Any, Any]:
        connection.execute(
            "INSERT INTO conversations (agent, uid, begun, last_at) VALUES (?, 'c', 1, 1)", (agent.id,)
        )
        for ended, span in ((5.0, 2), (3.0, 3)):
            connection.execute(
                "INSERT INTO exchanges (agent, conversation, depth, seq, span, offset, begun, touched, ended, state,"
                " path, inputs, media)"
                " SELECT ?, 1, 0, next_seq, ?, 0, 1, 1, ?, 'finished', x'00', x'', x'' FROM agents",
                (agent.id, span, ended),
            )
        return (
            connection.execute("SELECT rev, last_at FROM conversations").fetchone(),
            connection.execute("SELECT seq FROM exchanges ORDER BY id").fetchall(),
        )

    assert await store.database.writer.submit(add) == ((2, 5.0), [(1,), (3,)])
    assert store.database.reader.connection.execute("SELECT next_seq FROM agents").fetchone() == (6,)


async def test_the_tip_of_a_line_is_its_last_exchange_and_a_tree_has_none(store: Any) -> None:
    alice = Speaker(store)
    for key in ("line", "tree"):
        await alice.say([user("one")], assistant("First."), key)
    await rows(store, "UPDATE conversations SET tip = -1 WHERE key = 'line'")
    for key in ("line", "tree"):
        await alice.say([user("one"), assistant("First."), user("two")], assistant("Second."), key)
    found = await rows(
        store,
        "SELECT c.key, c.tip, max(e.id) FROM conversations c JOIN exchanges e"
        " ON e.conversation = c.id GROUP BY c.id ORDER BY c.key",
    )
    assert found == [("line", found[0][2], found[0][2]), ("tree", 0, found[1][2])]


async def test_a_step_counts_in_its_run_and_its_stop_ends_it_once(store: Any, agent: Any) -> None:
    run = "INSERT INTO runs (id, uid, agent, conversation, state, created) VALUES (?, ?, ?, 1, 'running', 1)"
    step = (
        "INSERT INTO run_steps (exchange, agent, run, number, begun, ended, prompt, completion, stop, error)"
        " VALUES (?, ?, ?, 1, 2, 3, 10, 5, ?, ?)"
    )
    for id, stop, error in (
        (1, "end_turn", None),
        (2, "cancelled", None),
        (3, "error", "Broken"),
        (4, None, None),
    ):
        await rows(store, run, (id, f"run {id}", agent.id))
        await rows(store, step, (id, agent.id, id, stop, error))
    await rows(store, step, (9, agent.id, 2, "end_turn", None))  # came second
    await rows(store, step, (10, agent.id + 1, 4, "end_turn", None))  # of somebody else
    assert await rows(store, "SELECT id, state, stop, ended, steps, prompt, completion FROM runs") == [
        (1, "completed", "end_turn", 3.0, 1, 10, 5),
        (2, "cancelled", "cancelled", 3.0, 2, 20, 10),
        (3, "failed", "error", 3.0, 1, 10, 5),
        (4, "running", None, None, 1, 10, 5),
    ]
