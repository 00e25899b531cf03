"""A file is brought to the schema this program knows, or refused by name."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from storage.errors import ForeignDatabase, SchemaTooNew, SchemaTooOld, StoreError
from storage.sqlite.connection import DatabaseFile, open_writer
from storage.sqlite.migration import Migration, get_latest_version, load_migrations, migrate
from tests.core.conversations import assistant, user
from tests.stored import Speaker, rows, sized_memory

KNOWN = get_latest_version(load_migrations())

# The SHA-256 of each migration. Databases out there were made by these files, so a file that is here never changes:
# a change of the schema is a new file, with a line here.
PINNED = {
    "0000-0020_tables.sql": "2fd57fdbbad18e9a5efaf88d399b9ffdd2d8ea244e2ba1990908534518e66641",
    "0016-0019_forks.sql": "ff242f6b0f0db7a87a87fb290d28214fb132bb57f8cb2d84599c792c12a81668",
    "0019-0020_names.sql": "fcb9323cfbcf7bb84a90443256a56ac4e9c2fb4950489b8a651bdc45db7cebf7",
    "0020-0021_triggers.sql": "aaa93bad87fff3963de5394f79bea06fd7d0ffa2bf261ca1518e8e6dffcc03fb",
    "0021-0022_page.sql": "bf6fc41812d644fd2e9ff77a5f1d9be3d7cd4c11b3d96b75d2dfd8baaf5ca714",
    "0022-0023_responses.sql": "fa628d67feb0b028f511dbf98c32469904effe039dd2f28730acf7278d63f0f7",
    "0023-0024_begun.sql": "adb6b95b33927d06baf15997eb3aa142731c9ab31f0175ac97ab28931653e8b4",
    "0024-0025_usage.sql": "6fc7425d484ebd00635e351fb3004a7d426a64701fd4542a132b8ec3ee37cfb7",
    "0025-0026_standing.sql": "d1b831440f162c639a96016a8776207f307bf01654dd7d493041467b55786cb8",
    "0026-0027_secrets.sql": "5d25285ef82cc1fa5bc35e70c58139ad3aef0fcb0d5ee5f5e2d34e21befdd483",
    "0027-0028_imports.sql": "c7d068070af24b97e47774457028f84b0d03539eb809b2665cba8df70a2056e3",
    "0028-0029_segments.sql": "ac4732f31cf301be4ba479163be347d454e4111c6cc9e5019bc06fffa2151150",
    "0029-0030_answered.sql": "40050ade83bbc7a2b71cc747131980c6708498e52f6c3144798e3f5fee4e17d2",
    "0030-0031_people.sql": "3ea237dd9e2bebbb94af340770e6861216e56c124fd334fb118ac6de954ad893",
    "0031-0032_installed.sql": "a07012c03e3cd033561a209f9e9a53820e85de5edd6f09e03125181f4114bfe0",
    "0032-0033_seen.sql": "487027481de025bbbe8b8e12fa8acf1234bd40edcf08ab3cab79ab978750f42f",
    "0033-0034_questions.sql": "7df75be23a1b245006a49001eb78ef60dd6779729db6fa652f125a897c0aff0e",
    "0034-0035_parts.sql": "049822150ba14092a39fbf37360e9f725229b1787b832b5bad8704fe0d16640e",
    "0035-0036_user_usage.sql": "08f2947e42eb148a57446bfb1437cd4cf48d0836dfc2601e3839fc103fea9d05",
    "0036-0037_evicted.sql": "6a9e8feb3d69d35fe931508a5a974b7d5fac791f0204c9f95e7fe3dc21841202",
    "0037-0038_counted.sql": "f1a3b217af62d43d82989371ace64753e7181e7b9aefec428ac141b2e3755a9f",
}
SCHEMAS = resources.files("tests.storage.schemas")


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
    first = Migration(0, 1, "CREATE TABLE a (x);")
    migrate(connection, "x", (first,))
    connection.execute("INSERT INTO a VALUES (7)")
    migrate(connection, "x", (first, Migration(1, 2, "ALTER TABLE a ADD COLUMN y DEFAULT 8;")))
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(7, 8)]
    assert version(connection) == 2
    assert caplog.messages == ["x was upgraded from schema version 1 to 2."]


def test_a_step_that_fails_leaves_nothing_of_itself(connection: sqlite3.Connection) -> None:
    first = Migration(0, 1, "CREATE TABLE a (x);")
    with pytest.raises(StoreError):
        migrate(
            connection, "x", (first, Migration(1, 2, "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1);"))
        )
    assert version(connection) == 1
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    migrate(connection, "x", (first, Migration(1, 2, "CREATE TABLE b (x);")))
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
    migrate(connection, "x", (Migration(0, 1, earlier),))
    begin = Migration(0, 1, "CREATE TABLE a (x, y); CREATE INDEX i ON a (x);")
    steps = (begin, Migration(1, 2, "CREATE TABLE b (x);"))
    with pytest.raises(ForeignDatabase, match=says):
        migrate(connection, "x", steps)
    assert version(connection) == 1  # the one that made it can still read it


def test_a_migration_never_changes() -> None:
    folder = resources.files("storage.sqlite.migrations")
    files = [each for each in folder.iterdir() if each.name.endswith(".sql")]
    found = {each.name: sha256(each.read_bytes()).hexdigest() for each in files}
    assert found == PINNED, "append a migration and pin it in PINNED; one that is pinned stays as it is"


def lay(path: Path, version: int) -> None:
    """Makes a file as the program of an older schema left it: two talks with a user, a passage, jobs, a key."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(SCHEMAS.joinpath(f"sqlite_{version}.sql").read_text(encoding="utf-8"))


def schema(path: Path) -> set[tuple[str, str, str]]:
    """Returns the tables with their columns, and indexes and triggers with their text."""
    with closing(sqlite3.connect(path)) as connection:
        columns = connection.execute(
            "SELECT m.name, c.name, c.type || c.\"notnull\" || coalesce(c.dflt_value, '') || c.pk FROM sqlite_master m"
            " JOIN pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
        ).fetchall()
        others = connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL"
        ).fetchall()
    # A column that was renamed stands between quotes in an index.
    return {(a, b, " ".join(c.replace('"', "").split())) for a, b, c in (*columns, *others)}


@pytest.mark.parametrize("level", [16, 19])
async def test_a_database_of_an_older_version_opens_and_works(
    open_store: Any, path: Path, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    lay(path, level)
    store = await open_store()
    assert f"was upgraded from schema version {level} to {KNOWN}." in caplog.text
    alice = Speaker(store, now=lambda: 300.0)
    first, second, third = await alice.rows()
    assert [first.continued, second.active, second.section] == [True, True, 1]
    assert (second.shown_reply, third.redactions) == (
        b'{"role":"assistant","content":"Noted."}',
        frozenset({0}),
    )
    messages = [
        user("My cat is called Miso."),
        assistant("Hello Miso."),
        user("She is grey."),
        assistant("Noted."),
    ]
    await alice.say([*messages, user("And old.")], assistant("I see."))
    *_, last = await alice.rows()
    assert (last.parent, last.active) == (second.id, True)
    hits = await store.recall.search(alice.agent, "What is my cat called?")
    assert "My cat is called Miso." in [message.text for message in hits]
    assert await rows(store, "SELECT text, metadata FROM passages") == [("Cats purr.", None)]
    assert [key.name for key in await store.keys.list()] == ["ann"]
    assert await rows(store, "SELECT text, known FROM sections ORDER BY id LIMIT 1") == [("Section.", b"{}")]
    assert await rows(store, "SELECT reader, seq FROM readers") == [(0, 1)]
    measured = await store.overview.measure(alice.agent.id)
    assert (await sized_memory(store, alice.agent)).messages == measured.messages == 7
    assert sorted((job.kind, job.key) for job in await store.jobs.list_newest()) == [
        ("work", "one"),
        ("work", "two"),
    ]
    await store.close()
    with closing(sqlite3.connect(path)) as now:
        assert version(now) == KNOWN
        assert now.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("level", [16, 19])
async def test_an_upgraded_file_has_the_schema_of_a_new_one(open_store: Any, path: Path, level: int) -> None:
    await (await open_store()).close()
    new = schema(path)
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    lay(path, level)
    await (await open_store()).close()
    assert schema(path) == new


@pytest.mark.parametrize("level", [1, 15, 17])
async def test_a_file_that_is_too_old_is_refused_with_the_way(
    open_store: Any, path: Path, level: int
) -> None:
    lay(path, 16)
    with closing(sqlite3.connect(path)) as old:
        old.execute(f"PRAGMA user_version = {level}")
    with pytest.raises(SchemaTooOld, match=rf"version {level}, from which .* no upgrade\. .*memory export"):
        await open_store()


def test_the_documents_name_the_oldest_file_that_opens() -> None:
    oldest = min(step.from_version for step in load_migrations() if step.from_version)
    page = (Path(__file__).parents[3] / "docs/operations.md").read_text("utf-8")
    assert f"A file from schema version {oldest} on opens." in page


async def test_a_newer_file_is_refused_by_name_and_left_alone(open_store: Any, path: Path) -> None:
    await (await open_store()).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {KNOWN + 3}")
    connection.close()
    with pytest.raises(SchemaTooNew, match=f"version {KNOWN + 3}.*up to {KNOWN}"):
        await open_store()
    connection = sqlite3.connect(path)
    assert version(connection) == KNOWN + 3
    connection.close()


async def test_a_database_of_something_else_is_refused(open_store: Any, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(ForeignDatabase):
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


async def test_tip_has_the_last_exchange_of_a_stored_conversation_and_0_of_a_tree(store: Any) -> None:
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


def test_counters_of_usage_are_added_up_for_each_user(connection: sqlite3.Connection) -> None:
    migrate(connection, "x", [step for step in load_migrations() if step.to_version <= 35])
    connection.executemany(
        "INSERT INTO usage (day, project, user, key, upstream, model, requests) VALUES (1, 'p', ?, 0, 'up', ?, ?)",
        [("alice", "m", 2), ("alice", "n", 3), ("bob", "m", 4)],
    )
    migrate(connection, "x")
    found = connection.execute("SELECT user, requests FROM user_usage").fetchall()
    assert found == [("alice", 5), ("bob", 4)]
