"""The audit log: the actions of operators on the page and the command line, and of people by their links.

The log has kinds and numbers, never text of a memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from storage.database import Connection
from storage.operator_records import AuditAction, AuditEntry
from storage.sql.group import StoreGroup, long_reads, writes
from storage.sql.statements import load

SQL = load("audit.sql")


class Audit(StoreGroup):
    """The audit log."""

    @writes
    async def add(
        self,
        connection: Connection,
        at: float,
        actor: str,
        action: AuditAction,
        memory: str | None = None,
        what: str = "",
    ) -> None:
        """Adds an action. The parameters are the fields of `AuditEntry`."""
        await connection.run(SQL["audit_add"], (at, actor, action, memory, what))

    @long_reads
    async def list_page(
        self,
        connection: Connection,
        *,
        before: int,
        memory: str | None = None,
        project: str | None = None,
        user: str | None = None,
        action: str | None = None,
        what: str | None = None,
        since: float = -math.inf,
        until: float = math.inf,
        limit: int = 50,
    ) -> list[AuditEntry]:
        """Returns a page of entries, the newest first.

        before: the number of the last entry on the previous page.
        memory: the uid of the one memory that the entries concern; None: any.
        project: the project of the memories that the entries concern; None: all entries.
        user: the user of the memories that the entries concern, or the uid of such a memory, which may be gone; None:
            any.
        action: the only action; None: any.
        what: the only object of an action, as `AuditEntry.what`; None: any.
        since, until: the time from which on, and before which, entries were made; in seconds since the epoch.
        """
        bounds = (before, memory, project, user, action, what, since, until, limit)
        rows = await connection.fetch_rows(SQL["audit_read"], bounds)
        return [AuditEntry(*row) for row in rows]

    @long_reads
    async def list_of_memory(
        self, connection: Connection, memory: str, actions: Sequence[str], *, limit: int
    ) -> Sequence[AuditEntry]:
        """Returns the last actions on a memory, the newest first. memory: its uid. actions: the kinds of actions."""
        rows = await connection.fetch_rows(SQL["audit_of_memory"], (memory, limit, [*actions]))
        return [AuditEntry(*row) for row in rows]

    async def delete_older(self, before: float) -> int:
        """Deletes the entries from before a time. Returns the number of deleted entries."""
        return await self._delete_older(SQL["audit_old"], SQL["audit_age"], before)
