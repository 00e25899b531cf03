"""Every statement is one that both databases take, and asks for the rows of one agent alone."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from pathlib import Path

import asyncpg
import pytest

from storage.database import Statement
from storage.records import MarkKind
from storage.run_records import RunTextKind
from storage.sql.statements import load
from storage.sqlite.migration import migrate
from storage.sqlite.watch import Watch
from tests.doubles.statements import OF_AN_AGENT
from tests.postgres import empty_database

FOLDER = Path(str(resources.files("storage.sql")))
FILES = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.sql") if file.name != "pieces.sql")
STATEMENTS = {statement.name: statement for file in FILES for statement in load(file).values()}

# Blocks and their history are not an agent's: a block may be shared, and then it is a profile's.

# Statements that are meant to see rows of several agents, and why.
ACROSS = {
    "agents_api/messages.sql: begun": "an id of a response names its turn alone; the memory is returned for the check",
    "agents_api/runs.sql: row_before": "a list of the runs of all agents counts those that it looks through",
    "responses.sql: open_among": "a process asks for the runs that it has accepted itself",
    "transfer.sql: export_end": "the last rows of whole tables are a bound, which needs no scope",
    "transfer.sql: conversation_taken": "the name of a conversation is unique in the database",
    "transfer.sql: run_taken": "likewise",
}


@pytest.fixture
async def connection(postgres: str, own_sessions: None) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(empty_database(postgres).url)
    yield opened
    await opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    migrate(opened, "memory.db")
    Watch().attach(opened)
    yield opened
    opened.close()


async def refused(connection: asyncpg.Connection, statements: dict[str, str]) -> dict[str, str]:
    """What PostgreSQL says of those it does not prepare."""
    found = {}
    for name, text in statements.items():
        try:
            await connection.prepare(text)
        except asyncpg.PostgresError as error:
            found[name] = str(error)
    return found


async def test_postgres_takes_every_statement(connection: asyncpg.Connection) -> None:
    assert len(STATEMENTS) > 200
    assert await refused(connection, {name: each.postgres for name, each in STATEMENTS.items()}) == {}


def test_sqlite_takes_every_statement(sqlite: sqlite3.Connection) -> None:
    for statement in STATEMENTS.values():
        numbers = [int(number) for number in re.findall(r"\?(\d+)", statement)]
        values = [None] * (max(numbers) if numbers else statement.count("?"))
        sqlite.execute(f"EXPLAIN {statement}", values)


def test_sqlite_compiles_no_statement_again(sqlite: sqlite3.Connection) -> None:
    """SQLite compiles one again for each value that could show whether a partial index holds.

    `memory_snapshot` took 0.5 ms so. A CAST around the parameter hides it.
    """
    asked: list[int] = []
    again = set()
    sqlite.set_authorizer(lambda action, *_: asked.append(action) or sqlite3.SQLITE_OK)
    for name, statement in STATEMENTS.items():
        numbers = [int(number) for number in re.findall(r"\?(\d+)", statement)]
        count = max(numbers) if numbers else statement.count("?")
        for value in (1, "x"):
            sqlite.execute("BEGIN")
            # What is given values that its columns refuse says nothing here.
            with contextlib.suppress(sqlite3.Error):
                for _ in range(3):
                    asked.clear()
                    sqlite.execute(statement, (value,) * count).fetchall()
                if asked:
                    again.add(name)
            sqlite.execute("ROLLBACK")
    assert again == set()


def test_exchanges_of_a_list_are_looked_up_by_their_rows(sqlite: sqlite3.Connection) -> None:
    """SQLite takes the index on the agent for it otherwise: all of a large memory is read for a few rows."""
    named = {name: text for name, text in STATEMENTS.items() if re.search(r"\bid IN \(\?", text)}
    slow = []
    for name, text in named.items():
        numbers = [int(number) for number in re.findall(r"\?(\d+)", text)]
        plan = sqlite.execute(f"EXPLAIN QUERY PLAN {text}", [None] * max(numbers))
        slow += [name for *_, step in plan if "exchanges_order (agent=?)" in step]
    assert len(named) >= 9
    assert slow == []


def test_sqlite_is_given_no_bare_parameter_as_a_limit() -> None:
    """Versions from 3.47 on compile a statement again for each value of one, and the tests may have an older one."""
    assert [name for name, text in STATEMENTS.items() if re.search(r"\bLIMIT \?", text)] == []
    assert any(re.search(r"\bLIMIT \$", each.postgres) for each in STATEMENTS.values())


@pytest.mark.parametrize(
    "text",
    [
        "SELECT max(seq, ?1) FROM exchanges WHERE agent = ?2",  # an aggregate there
        "SELECT ifnull(prior, 0) FROM exchanges WHERE agent = ?1",
        "UPDATE passages SET sources = x'5b5d' WHERE agent = ?1",  # a bit string there
        "INSERT OR IGNORE INTO facts_ended (fact, agent, successor, at) VALUES (?1, ?2, 0, 0)",
        "INSERT INTO facts_ended (fact, agent, successor, at) VALUES (?1, ?2, 0, 0) ON CONFLICT DO UPDATE SET at = 1",
        "SELECT id FROM exchanges WHERE agent = ?1 AND parent IS ?2",
        "SELECT id FROM exchanges WHERE agent = ?1 AND continued",  # a number is no condition there
        "SELECT room FROM exchanges WHERE agent = ?1",  # a column that SQLite alone has
    ],
)
async def test_a_statement_that_only_sqlite_takes_is_found(
    connection: asyncpg.Connection, sqlite: sqlite3.Connection, text: str
) -> None:
    sqlite.execute(f"EXPLAIN {text}", [None] * len(set(re.findall(r"\?\d", text))))
    assert await refused(connection, {"bad": text.replace("?", "$")})


def nameless(statement: str) -> list[str]:
    """What follows on the subqueries that it reads from, where that is no name."""
    found = []
    for begins in re.finditer(r"\b(?:FROM|JOIN) \((?=SELECT\b)", statement):
        end, depth = begins.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(statement[end], 0)
            end += 1
        if not re.match(r" (?:AS )?[a-z]", statement[end:]):
            found.append(statement[end : end + 20])
    return found


def test_a_subquery_has_a_name_without_which_postgresql_15_refuses_it() -> None:
    assert {
        name: nameless(each.postgres) for name, each in STATEMENTS.items() if nameless(each.postgres)
    } == {}
    assert nameless("SELECT id FROM (SELECT id FROM agents WHERE (id) = 1) WHERE id = 2") == [" WHERE id = 2"]


NAMED = re.compile(rf"\b(?:FROM|JOIN|UPDATE|INTO) ({'|'.join(OF_AN_AGENT)})\b(?: ([a-z]\w*)\b)?")


def is_scoped(statement: str) -> bool:
    """Whether each of an agent's tables that it names is asked, or written, for an agent."""
    return all(
        re.search(rf"\b{alias}\.agent\b" if alias else r"(?<!\.)\bagent\b", statement)
        for _, alias in NAMED.findall(statement)
    )


def test_statements_on_an_agents_rows_name_the_agent() -> None:
    unscoped = {
        name for name, text in STATEMENTS.items() if not is_scoped(text) or not is_scoped(text.postgres)
    }
    assert unscoped == set(ACROSS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT uid FROM conversations WHERE id = ?", False),
        ("SELECT uid FROM conversations WHERE id = ? AND agent = ?", True),
        ("DELETE FROM facts_ended WHERE fact = ?", False),
        ("SELECT project FROM agents WHERE id = ?", True),
    ],
)
def test_a_statement_that_goes_by_id_alone_is_found(text: str, expected: bool) -> None:
    assert is_scoped(text) is expected


def test_a_list_that_may_go_either_way_is_written_once() -> None:
    statements = load("agents_api/runs.sql")
    for direction, order in (("up", "ASC"), ("down", "DESC")):
        for text in (str(statements[f"of_agent_{direction}"]), statements[f"of_agent_{direction}"].postgres):
            assert f"ORDER BY r.id {order} LIMIT" in text
    assert "of_agent" not in statements


def test_a_piece_may_have_a_text_for_each_database() -> None:
    """What SQLite empties where it is, PostgreSQL deletes."""
    erase = STATEMENTS["erase.sql: passage_erase"]
    assert erase.startswith("UPDATE passages SET agent = -id, ")
    assert erase.endswith("text = '' WHERE id = ?1 AND agent = ?2")
    assert erase.postgres == "DELETE FROM passages WHERE id = $1 AND agent = $2"


def test_no_statement_stands_in_two_places() -> None:
    names: dict[tuple[str, str], list[str]] = {}
    for name, statement in STATEMENTS.items():
        names.setdefault((" ".join(statement.split()), " ".join(statement.postgres.split())), []).append(name)
    assert [same for same in names.values() if len(same) > 1] == []


def test_a_list_takes_one_parameter_there_and_its_placeholders_here(tmp_path: Path) -> None:
    statement = STATEMENTS["transfer.sql: seqs_of"]
    assert isinstance(statement, Statement)
    assert "= ANY($2::BIGINT[])" in statement.postgres
    assert "IN (?2, ?3, " in statement
    assert list(statement.spread((7, [1, 2]))) == [7, 1, 2, *[None] * 62]
    with pytest.raises(ValueError, match="64 values"):
        statement.spread((7, range(65)))


def test_statements_name_marks_by_kinds_that_there_are() -> None:
    clauses = [
        clause
        for text in STATEMENTS.values()
        for clause in re.findall(r"FROM marks[^()]*?kind (?:=|IN) ('\w+'|\([^)]+\))", text)
    ]
    named = {kind for clause in clauses for kind in re.findall(r"'(\w+)'", clause)}
    moved = {MarkKind.MOVED, MarkKind.MOVED_FROM}  # parameters of their statements
    assert named == set(MarkKind) - moved


def test_statements_name_texts_of_runs_by_kinds_that_there_are() -> None:
    named: set[str] = set()
    for text in STATEMENTS.values():
        for alias in re.findall(r"(?:FROM|JOIN|UPDATE) run_texts(?: (?!SET|WHERE)(\w+))?", text):
            column = rf"\b{alias}\.kind" if alias else r"(?<!\.)\bkind"
            for clause in re.findall(rf"{column} (?:=|<>|IN|NOT IN) ('\w+'|\([^)]+\))", text):
                named.update(re.findall(r"'(\w+)'", clause))
    assert named >= {"call", "listing"}  # of a statement with an alias, and of a piece
    assert named <= set(RunTextKind)
