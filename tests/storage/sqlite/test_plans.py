"""By which index SQLite finds what the store asks for."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import pytest

from storage.sql.exchanges import SQL
from storage.sql.statements import load
from storage.sql.store import Store

# Statements of which none may read a table from end to end, by file.
QUICK = {
    "statements.sql": ("agent_find", "key_find", "block_load", "op_of_exchange", "terms_since", "passage_list"),
    "exchanges.sql": ("look",),
    "runs.sql": (
        "get", "find", "by_otid", "newest", "begin", "end", "steps", "step_find", "waiting", "texts",
        "text_replace", "of_agent_up", "steps_of_agent_down",
    ),
    "definitions.sql": (
        "get", "by_id", "several", "named", "agent_get", "touch", "of_memory", "list_down", "newest",
        "created_down", "texts_empty",
    ),
    "attached.sql": ("targets", "of_agents", "agents_with", "tags_of", "tags_up", "detach", "detach_all", "untag"),
    "messages.sql": (
        "of_agent_down", "of_agent_up", "of_conversation_down", "of_conversation_up", "at", "tail", "tails",
        "conversation_find", "summaries_over", "of_project_down", "of_project_up", "place",
    ),
    "conversations.sql": ("get", "of_project_down", "of_agent_down", "place", "release", "runs_cancel"),
    "named_blocks.sql": ("find", "seen", "seers", "labelled"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in QUICK.items() for name in names])
async def test_text_is_read_by_index(store: Any, file: str, name: str) -> None:
    sql = load(file)[name]
    numbers = [int(number) for number in re.findall(r"\?(\d+)", sql)]
    values = (None,) * (max(numbers) if numbers else sql.count("?"))
    plan = store.database.reader.connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    scans = [row[3] for row in plan if row[3].startswith("SCAN")]
    # Within `look` and `tails`, what was just found is gone through.
    found = ("SCAN p", "SCAN adds", "SCAN CONSTANT ROW", "SCAN (subquery-3)", "SCAN t")
    assert not [scan for scan in scans if scan not in found]


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("agent = 1 AND path IN (x'01', x'02')", "exchanges_path"),
        ("agent = 1 AND reply_key = x'01'", "exchanges_reply"),
        ("agent = 1 AND input_key = x'01'", "exchanges_input"),
        ("conversation = 1 AND parent = 3", "exchanges_tree"),
        ("conversation = 1 AND parent IS NULL", "exchanges_tree"),
        ("agent = 1 AND begun > 5 AND parent IS NULL AND carried = 0", "exchanges_openings"),
        ("agent = 1 AND seq >= 5", "exchanges_order"),
    ],
)
async def test_exchanges_are_found_by(store: Any, where: str, index: str) -> None:
    plan = store.database.reader.connection.execute(
        f"EXPLAIN QUERY PLAN SELECT said FROM exchanges WHERE {where}"
    ).fetchall()
    assert f"USING INDEX {index} " in plan[0][3]


async def test_who_is_next_is_found_without_looking_at_all_who_wait(store: Store) -> None:
    """The loop's own thread asks, whenever something was enqueued."""
    queries = load("jobs.sql")

    def plan(name: str, *values: object) -> list[str]:
        def read(connection: sqlite3.Connection) -> list[str]:
            spread = queries[name].spread(values)
            rows = connection.execute(f"EXPLAIN QUERY PLAN {queries[name]}", spread)
            steps = rows.fetchall()
            # What a branch finds first is all it looks at: it sorts nothing.
            branches = {parent for _, parent, _, step in steps if step.startswith("SEARCH j ")}
            assert not [step for _, parent, _, step in steps if parent in branches and "TEMP B-TREE" in step]
            return [row[3] for row in steps]

        return store.database.reader.run(read)

    for steps in (plan("due_in", ["x"], "h", 1.0, 1.0), plan("claim", ["x"], "h", 1.0, 1.0, 60.0)):
        found = [step for step in steps if " j " in f"{step} "]
        by_state = "SEARCH j USING INDEX jobs_state (state=?)"
        assert found == ["SEARCH j USING INDEX jobs_asked (asked>?)", by_state, by_state], steps
        assert any("SEARCH o USING" in step and "jobs_lane" in step for step in steps), steps


async def test_a_conversation_is_looked_up_by_itself_and_not_through_all_its_agent_ever_said(
    store: Store,
) -> None:
    def plans(connection: sqlite3.Connection) -> list[str]:
        queries = {SQL["pool_conversation"]: 5, SQL["unmerged"]: 2}  # statement: how many values it takes
        explained = [connection.execute(f"EXPLAIN QUERY PLAN {q}", (1,) * n) for q, n in queries.items()]
        return [str(rows.fetchall()) for rows in explained]

    for plan in await store.database.writer.submit(plans):
        assert "conversation=?" in plan
