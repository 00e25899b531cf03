"""By which index SQLite finds what the store asks for."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from storage.sql import exchanges, turns
from storage.sql.statements import load
from storage.sql.store import Store
from storage.sqlite.connection import DatabaseFile
from storage.sqlite.database import connect_current

# Statements of which none may read a table from end to end, by file.
QUICK = {
    "agents.sql": ("agent_find",),
    "agents_api/batches.sql": ("find_job",),
    "jobs.sql": ("of_agent", "state_of"),
    "keys.sql": ("key_find",),
    "blocks.sql": ("block_load",),
    "turn_edits.sql": ("edits_of_exchange",),
    "terms.sql": ("load_terms_since",),
    "passages.sql": ("passage_list",),
    "exchanges.sql": ("memory_snapshot",),
    "rebuild.sql": ("edit_of_call", "edit_of_call_erase"),
    "agents_api/runs.sql": (
        "get", "find", "by_otid", "newest_of_conversation", "newest_waiting", "begin", "end", "steps", "step_find",
        "waiting", "open_down", "of_agent_up", "steps_of_agent_down", "first_exchange", "accepted", "open_background",
    ),
    "agents_api/run_texts.sql": ("texts", "text_replace"),
    "agents_api/definitions.sql": (
        "by_uid", "by_row", "by_rows", "by_name", "version_raise", "rows_of_memory", "list_down", "texts_empty",
    ),
    "agents_api/agents.sql": (
        "get", "newest", "created_down", "tags_of", "tags_up", "untag", "with_name", "with_tags",
        "with_identity", "with_identity_keys",
    ),
    "agents_api/attached.sql": ("targets", "of_agents", "agents_with", "detach", "detach_all"),
    "agents_api/messages.sql": (
        "of_agent_down", "of_agent_up", "of_conversation_down", "of_conversation_up", "at", "tail", "tails",
        "conversation_find", "summaries_over", "of_project_down", "of_project_up", "cursor_row", "begun", "owner",
    ),
    "agents_api/conversations.sql": (
        "get", "of_project_down", "of_agent_down", "cursor", "release", "runs_cancel",
    ),
    "agents_api/forks.sql": ("source", "holder", "exchange", "fork_note"),
    "agents_api/blocks.sql": ("find", "visible", "seers", "labelled"),
}  # fmt: skip


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """To a database without rows, for tests that only look at plans."""
    file = DatabaseFile(str(tmp_path_factory.mktemp("plans") / "memory.db"))
    with closing(connect_current(file)) as connection:
        yield connection


def plan_of(connection: sqlite3.Connection, sql: str) -> list[str]:
    """Returns the steps of a statement, with NULL for all its parameters."""
    count = max(map(int, re.findall(r"\?(\d+)", sql)), default=sql.count("?"))
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (None,) * count)]


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in QUICK.items() for name in names])
def test_text_is_read_by_index(connection: sqlite3.Connection, file: str, name: str) -> None:
    scans = [step for step in plan_of(connection, load(file)[name]) if step.startswith("SCAN")]
    # Within `memory_snapshot` and `tails`, what was just found is gone through; `h`, `f`, `profiles`, `defined` and
    # `tagged` are few: a past, standing facts, the profiles of a project, agents with a name or a tag. `found` are the
    # jobs of a memory.
    found = (
        "SCAN p", "SCAN adds", "SCAN CONSTANT ROW", "SCAN (subquery-3)", "SCAN t", "SCAN h", "SCAN f",
        "SCAN profiles", "SCAN defined", "SCAN tagged", "SCAN found",
    )  # fmt: skip
    assert not [scan for scan in scans if scan not in found]


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("agent = 1 AND path IN (x'01', x'02')", "exchanges_path"),
        ("agent = 1 AND reply_key = x'01'", "exchanges_reply"),
        ("agent = 1 AND input_key = x'01'", "exchanges_input"),
        ("conversation = 1 AND parent = 3", "exchanges_tree"),
        ("conversation = 1 AND parent IS NULL", "exchanges_tree"),
        ("conversation = 1 AND begun = 5.0", "exchanges_begun"),
        ("agent = 1 AND begun > 5 AND parent IS NULL AND continued = 0", "exchanges_openings"),
        ("agent = 1 AND seq >= 5", "exchanges_order"),
    ],
)
def test_exchanges_are_found_by(connection: sqlite3.Connection, where: str, index: str) -> None:
    plan = plan_of(connection, f"SELECT shown_reply FROM exchanges WHERE {where}")
    assert f"USING INDEX {index} " in plan[0]


@pytest.mark.parametrize(
    ("file", "name", "step"),
    [
        ("agents_api/batches.sql", "find_agents", "SEARCH agents USING INDEX sqlite_autoindex_agents_1 (uid=?)"),
        (
            "overview.sql",
            "conversations",
            "SEARCH a USING COVERING INDEX sqlite_autoindex_agents_2 (project=? AND profile=? AND subject=?)",
        ),
        (
            "agents_api/runs.sql",
            "open_down",
            "SEARCH r USING INDEX runs_open (state=? AND id>? AND id<?)",
        ),
        ("agents_api/blocks.sql", "shared_with", "SEARCH x USING COVERING INDEX attached_target (kind=? AND target=?)"),
        ("agents_api/blocks.sql", "hand_over", "SEARCH x USING COVERING INDEX attached_target (kind=? AND target=?)"),
    ],
)  # fmt: skip
def test_rows_that_are_named_are_found_without_all_rows_of_the_project(
    connection: sqlite3.Connection, file: str, name: str, step: str
) -> None:
    steps = plan_of(connection, load(file)[name])
    assert step in steps
    assert not [each for each in steps if "agents_project" in each or each.endswith("(kind=?)")]


def test_the_memories_of_a_subject_are_found_without_others_of_the_project(
    connection: sqlite3.Connection,
) -> None:
    """Before anything of one user was forgotten, or previewed, all users of the project were read."""
    steps = [
        step for step in plan_of(connection, load("forget_targets.sql")["agents_of_subject"]) if " a " in step
    ]
    assert steps
    for step in steps:
        assert re.search(r"\(project=\?( AND profile[=>]\?)?( AND subject=\?)?\)$", step), step
        assert "agents_project" not in step


@pytest.mark.parametrize("name", load("forget_preview.sql"))
def test_a_preview_of_a_forgetting_counts_by_index(connection: sqlite3.Connection, name: str) -> None:
    """Of a list no more is read than its conversation, its memory or its block has.

    `s` are the sources of a row, `gone` what is erased, `up` what is above an exchange. A subquery has the rows that
    are counted, which are found by index.
    """
    steps = plan_of(connection, load("forget_preview.sql")[name])
    assert not [
        step
        for step in steps
        if step.startswith("SCAN") and not re.match(r"SCAN (s|gone|up|CONSTANT|\(subquery)", step)
    ]
    # Never through all that its memory ever said, but for the notes of a few, in their order.
    of_memory = [step for step in steps if re.match(r"SEARCH e USING .*\(agent=\?\)", step)]
    assert of_memory == []


@pytest.mark.parametrize("name", ["texts_left", "texts_left_next", "texts_drop"])
def test_the_clean_up_after_a_run_does_not_go_through_all_that_its_agent_did(
    connection: sqlite3.Connection, name: str
) -> None:
    plan = plan_of(connection, load("agents_api/run_texts.sql")[name])
    assert "SEARCH s USING INTEGER PRIMARY KEY (rowid=?)" in plan
    assert not [step for step in plan if "agent=?" in step]


def test_the_usage_of_a_user_is_found_day_by_day(connection: sqlite3.Connection) -> None:
    plan = plan_of(connection, load("usage.sql")["take_user"])
    assert plan[0] == "SEARCH usage USING PRIMARY KEY (day=? AND project=? AND user=?)"
    assert not [step for step in plan if step.startswith("SCAN") and step != "SCAN days"]


@pytest.mark.parametrize("name", ["by_time_down", "by_time_up"])
def test_conversations_are_not_each_sought_among_all_runs_of_their_agent(
    connection: sqlite3.Connection, name: str
) -> None:
    plan = plan_of(connection, load("agents_api/conversations.sql")[name])
    assert not [step for step in plan if step.startswith("CORRELATED")]


def test_the_items_of_open_batches_are_counted_batch_by_batch(connection: sqlite3.Connection) -> None:
    """Each scrape of the metrics asks for them."""
    plan = plan_of(connection, load("agents_api/batches.sql")["count_open_items"])
    assert "SEARCH i USING COVERING INDEX batch_items_part (batch=?)" in plan


def test_people_are_listed_by_the_hour_of_their_last_turn(connection: sqlite3.Connection) -> None:
    plan = plan_of(connection, load("memory_pages.sql")["memories"])
    assert "SEARCH a USING INDEX agents_people (<expr>=? AND turn_hour<?)" in plan
    assert not [step for step in plan if step.startswith("SCAN a")]


async def test_a_look_for_jobs_takes_the_same_steps_whatever_waits(store: Store) -> None:
    """The loop's own thread asks, whenever something was enqueued."""
    queries, now = load("jobs.sql"), 1000.0
    kinds = ("learn", "run", "callback", "none")
    asked = {
        "is_clock_set_back": (now,),
        "due_in": (now, kinds, "h", now),
        "next": (now, kinds),
        "expired": (kinds, "h", now),
        "make_due": (now,),
        "claim": (now, "callback", "h", now, 60.0),
        # The next one of the longest serial group follows.
        "DELETE FROM jobs WHERE kind = 'run' AND state = 'running'": (),
    }
    asked = {
        name: queries[name].spread(values) if name in queries else values for name, values in asked.items()
    }

    def steps(connection: sqlite3.Connection) -> dict[str, int]:
        """How many instructions of SQLite's each statement takes; what they change is taken back."""
        counts = []
        connection.execute("SAVEPOINT counted")
        for name, values in asked.items():
            counts.append(0)

            def count() -> None:
                counts[-1] += 1

            connection.set_progress_handler(count, 1)
            connection.execute(queries.get(name, name), values).fetchall()
        connection.set_progress_handler(None, 0)
        connection.execute("ROLLBACK TO counted")
        return dict(zip(asked, counts, strict=True))

    found = []
    for memories in (range(1, 10), range(10, 3000)):
        await store.database.writer.submit(lambda connection, to=memories: fill(connection, to))
        found.append(await store.database.writer.submit(steps))
    assert found[0] == found[1]


def fill(connection: sqlite3.Connection, memories: range) -> None:
    """For each memory a job that waits for tomorrow with one behind it, one behind the serial group that runs, one of
    nobody's.

    Each has one more, which is a dead letter.
    """
    add = (
        "INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload, first)"
        " VALUES (?, ?, ?, ?, 0, ?, 900, 900, x'', 0)"
    )
    for agent in memories:
        of = {
            "late": (agent, "learn"), "behind": (agent, "learn"), f"run {agent}": (1, "run"),
            f"call {agent}": (0, "callback"),
        }  # fmt: skip
        connection.executemany(
            add,
            [
                (*serial_group, key, "pending", 950 if serial_group[1] == "run" else 900)
                for key, serial_group in of.items()
            ],
        )
        connection.execute(add, (agent, "learn", "dead", "dead", 900))
    connection.execute("UPDATE jobs SET state = 'retrying', due = 90000 WHERE key = 'late' AND first = 1")
    connection.execute(
        "UPDATE jobs SET state = 'running', holder = 'h', held_until = 2000 WHERE kind = 'run' AND first = 1"
    )


async def test_a_conversation_is_looked_up_by_itself_and_not_through_all_its_agent_ever_said(
    store: Store,
) -> None:
    def plans(connection: sqlite3.Connection) -> list[str]:
        # By statement how many values it takes.
        queries = {exchanges.SQL["pool_conversation"]: 7, turns.SQL["unmerged"]: 2}
        explained = [connection.execute(f"EXPLAIN QUERY PLAN {q}", (1,) * n) for q, n in queries.items()]
        return [str(rows.fetchall()) for rows in explained]

    for plan in await store.database.writer.submit(plans):
        assert "conversation=?" in plan
        assert "FOR ORDER BY" not in plan  # its rows come in their order
