"""Watches which agents the writer changes, by triggers of SQLite.

One process owns the file and writes it through one connection. That connection has a trigger on `agents` which reports
the numbers of each changed row, whichever statement or trigger changes it. The last report is what a read would find,
so a cache need not read. The triggers are temporary: they belong to the connection and not to the file. A statement
that adds a row can report values of that row by a function in the same way.
"""

from __future__ import annotations

import sqlite3

from storage.commands import RecallRow
from storage.database import Changes
from storage.records import AgentNumbers

_TRIGGERS = (
    """CREATE TEMP TRIGGER agent_changed AFTER UPDATE OF epoch, next_seq, indexed_seq, rev, stamp ON main.agents BEGIN
        SELECT report_agent(NEW.id, NEW.epoch, NEW.next_seq, NEW.indexed_seq, NEW.rev, NEW.stamp);
    END""",
    """CREATE TEMP TRIGGER agent_renamed AFTER UPDATE OF id, uid, project, profile, subject, secret ON main.agents BEGIN
        SELECT report_agent(OLD.id);
    END""",
    "CREATE TEMP TRIGGER agent_gone AFTER DELETE ON main.agents BEGIN SELECT report_agent(OLD.id); END",
    # All users of a profile have such a block from now on, and no row of those users changes.
    """CREATE TEMP TRIGGER block_shared AFTER INSERT ON main.blocks WHEN NEW.agent IS NULL AND NEW.profile <> '' BEGIN
        SELECT report_all();
    END""",
    """CREATE TEMP TRIGGER block_given AFTER UPDATE OF agent, project, profile ON main.blocks
    WHEN NEW.agent IS NULL AND NEW.profile <> '' BEGIN
        SELECT report_all();
    END""",
    # A turn's recall is a row of its own, and triggers add it: with a second statement, adding a turn would no longer
    # be a transaction by itself. The statement that adds the turn passes the recall to `report_row` or `note_recall`.
    # Their result is a column of the turn's row, so the recall is noted before the row is there. The row's trigger then
    # asks `recalled_by` for the recall's request (NULL: none is noted). `take_recall` returns the data and drops the
    # note, so that the next row has none.
    """CREATE TEMP TRIGGER exchange_recalled AFTER INSERT ON main.exchanges BEGIN
        INSERT INTO recalls (exchange, agent, at, request, data)
        SELECT NEW.id, NEW.agent, coalesce(NEW.ended, NEW.stopped, NEW.touched), r.request, take_recall()
        FROM (SELECT recalled_by() AS request) AS r WHERE r.request IS NOT NULL;
    END""",
    """CREATE TEMP TRIGGER step_recalled AFTER INSERT ON main.run_steps BEGIN
        INSERT INTO recalls (exchange, agent, at, request, data)
        SELECT NEW.exchange, NEW.agent, coalesce(NEW.ended, NEW.begun), r.request, take_recall()
        FROM (SELECT recalled_by() AS request) AS r WHERE r.request IS NOT NULL;
    END""",
)


class Watch:
    """Collects the changes of a batch of statements, in the writer's thread."""

    def __init__(self) -> None:
        # The values that the last statement has reported of the row that it adds.
        self.row: tuple[int, ...] | None = None
        # The recall of that row's turn, until the row is there.
        self._recall: RecallRow | None = None
        self._changed: dict[int, AgentNumbers | None] = {}
        self._is_all = False

    def attach(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Installs the triggers on a connection and returns it; closes it if that fails. Raises: sqlite3.Error."""
        try:
            connection.create_function("report_agent", -1, self._note_agent)
            connection.create_function("report_all", 0, self._note_all)
            connection.create_function("report_row", -1, self._note_row)
            connection.create_function("note_recall", 3, self._note_recall)
            connection.create_function("recalled_by", 0, self._find_recall_note)
            connection.create_function("take_recall", 0, self._take_recall)
            for trigger in _TRIGGERS:
                connection.execute(trigger)
        except BaseException:
            connection.close()
            raise
        return connection

    def take_changes(self, *, is_whole: bool) -> Changes:
        """Returns the changes since the last call, in the form that `Database.add_change_listener` reports.

        is_whole: True if no statement was rolled back. Otherwise the numbers may be of rows that are not there, so
            agents are only reported as changed, without their numbers.
        """
        changed = self._changed
        is_all = self._is_all
        self._changed = {}
        self._is_all = False
        self._recall = None
        if is_all:
            return None
        return changed if is_whole else dict.fromkeys(changed)

    def _note_agent(self, agent_row: int, *numbers: int) -> None:
        self._changed[agent_row] = AgentNumbers(*numbers) if numbers else None

    def _note_row(
        self, seq: int, matches_prefix: int, request: bytes | None = None, data: bytes | None = None
    ) -> int:
        self.row = seq, matches_prefix
        return self._note_recall(seq, request, data)

    def _note_recall(self, value: int, request: bytes | None, data: bytes | None) -> int:
        """Notes the recall of the row that is being added, if it has one.

        Returns the value, which the statement stores in that row: so it is called before the row's triggers run.
        """
        self._recall = None if request is None or data is None else RecallRow(request, data)
        return value

    def _find_recall_note(self) -> bytes | None:
        return None if self._recall is None else self._recall.request

    def _take_recall(self) -> bytes | None:
        recall, self._recall = self._recall, None
        return None if recall is None else recall.data

    def _note_all(self) -> None:
        self._is_all = True
