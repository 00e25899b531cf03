"""The overview, and the audit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.audit_operations import AuditRecord


class _AuditQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The uid of the memory whose entries are listed, which may be gone; None: the entries of all memories.
    memory: str | None = None


def screens(operations: PageOperations) -> list[Screen | Action]:
    async def overview(request: ScreenRequest, query: NoFields) -> View:
        record = await operations.overview.show(request.visitor.project)
        context = {
            "resent": operations.requests.find_resent(record.replies),
            "unsearched": operations.requests.find_unsearched(record.replies),
        }
        return View(record, "overview.html", "Overview", context)

    async def audit(request: ScreenRequest, query: _AuditQuery) -> View:
        page = await operations.audit.list(
            memory=query.memory, project=request.visitor.project, after=query.after, limit=query.limit
        )
        uids = {each.memory for each in page.items if each.memory is not None}
        names = {} if request.is_twin else await operations.audit.names(uids)
        context = {"acts": _acts_of(page.items), "names": names, "memory": query.memory}
        return View(page, "audit.html", "Audit", context)

    return [Screen("", overview), Screen("audit", audit, _AuditQuery)]


def _acts_of(records: Sequence[AuditRecord]) -> list[list[AuditRecord]]:
    """Returns the records of each act, in their order: a forgetting of several texts has a record for each."""
    return [
        [*act]
        for _, act in groupby(records, lambda record: (record.at, record.who, record.action, record.memory))
    ]
