"""The audit: the actions of operators, and of people by their links."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, get_args

import msgspec
from msgspec import Struct

from gateway.errors import BadRequest
from gateway.run.admin.audited_parts import AuditedVersion
from gateway.run.admin.list_page import (
    PAGE_LINES,
    ListPage,
    make_next_cursor,
    parse_cursor,
    parse_time_bound,
)
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from storage.listing import LAST_NUMBER
from storage.operator_records import AuditAction, AuditEntry
from storage.sql.store import Store

# The actions that make versions of blocks.
_EDIT_ACTIONS = ("edit", "undo", "restore")
# The number of a memory's last entries that are searched for the actor of an action.
_NEWEST_ENTRIES = 200
ACTIONS: tuple[AuditAction, ...] = get_args(AuditAction)


class AuditRecord(Struct, frozen=True):
    """Something that an operator did, or a person by a link."""

    # All records of one act, such as a forgetting of several texts, have the same time.
    at: float
    # The name of a key, `code`, `link` or `command`.
    who: str
    action: str
    # The uid of a memory, which may be gone.
    memory: str | None
    # The words of `audited_parts`. The facts that went with a forgotten part are an entry of their own.
    what: str


class AuditFilter(Struct, frozen=True):
    """Entries are listed that fit all of these fields. An empty text fits any entry."""

    # The uid of the memory that they concern, which may be gone; None: any.
    memory: str | None = None
    # The user that they concern, in any profile, or the uid of a memory, which may be gone.
    user: str = ""
    # One of `ACTIONS`.
    action: str = ""
    # As `AuditRecord` has it.
    what: str = ""
    # The day (2026-11-24) or time (ISO 8601, in UTC) from which on entries are listed.
    since: str = ""
    # The day or time until which entries are listed; a day counts until its end.
    until: str = ""


NO_FILTER = AuditFilter()


class AuditOperations(Struct, frozen=True):
    """Adds to the audit, and lists it."""

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The days for which entries are stored.
    days: float

    async def add(self, actor: str, action: AuditAction, memory: str | None = None, what: str = "") -> None:
        """Adds an entry.

        memory: the uid of the memory that the action concerns; None: the action concerns no memory.
        what: the value of `AuditRecord.what`.

        Raises: StoreError.
        """
        await self.store.audit.add(self.now(), actor, action, memory, what)

    async def list(
        self,
        wanted: AuditFilter = NO_FILTER,
        *,
        project: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> ListPage[AuditRecord]:
        """Returns a page of the audit, the newest entries first.

        project: the only project with memories of which entries are listed; None: all projects.
        after: `next` of the page before.

        Raises:
            BadRequest: `after` or a field of the filter cannot be read.
            UnknownId: the memory is of another project, or there never was one.
        """
        memory = wanted.memory
        if wanted.action and wanted.action not in ACTIONS:
            raise BadRequest(
                f"There is no action {wanted.action!r}, but {', '.join(ACTIONS)}.", param="action"
            )
        entries = await self.store.audit.list_page(
            before=parse_cursor(after, LAST_NUMBER),
            memory=memory,
            project=project,
            user=wanted.user or None,
            action=wanted.action or None,
            what=wanted.what or None,
            since=parse_time_bound("since", wanted.since) if wanted.since else -math.inf,
            until=parse_time_bound("until", wanted.until, is_end=True) if wanted.until else math.inf,
            limit=limit + 1,
        )
        if memory is not None and (project is not None or not (entries or await self._has_entries(memory))):
            await get_agent(self.store, project, memory, param="memory")
        items = tuple(map(_make_record, entries[:limit]))
        return ListPage(items, make_next_cursor(entries, limit, lambda entry: str(entry.id)))

    async def _has_entries(self, memory: str) -> bool:
        """Returns whether the audit has entries of a memory, which may be gone. memory: the uid."""
        return bool(await self.store.audit.list_page(before=LAST_NUMBER, memory=memory, limit=1))

    async def load_editors(self, uid: str, label: str) -> dict[int, str]:
        """Returns the actors that made the versions of a block, by the numbers of the versions.

        The audit may lack the actors of some versions.

        uid: the uid of the memory that has the block.
        label: the label of the block.
        """
        entries = await self.store.audit.list_of_memory(uid, _EDIT_ACTIONS, limit=_NEWEST_ENTRIES)
        versions = ((AuditedVersion.parse(entry.what), entry.actor) for entry in entries)
        return {
            version.version: actor
            for version, actor in versions
            if version is not None and version.label == label
        }

    async def list_forgettings(self, uid: str) -> Sequence[AuditRecord]:
        """Returns the last forgettings of parts of a memory, the oldest first. uid: the uid of the memory."""
        entries = await self.store.audit.list_of_memory(uid, ("forget",), limit=_NEWEST_ENTRIES)
        return [_make_record(entry) for entry in reversed(entries)]

    async def find_facts(self, facts: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Returns the existing facts among some, true or not. facts: pairs of a memory's uid and a fact's number."""
        return await self.store.facts.find_existing(facts) if facts else set()

    async def show_all(self, raw: RawArguments) -> dict[str, Any]:
        """Lists the audit for the command line: {"lines", "next"}. from: the answer's `next`."""
        arguments = Arguments(raw)
        page = await self.list(
            AuditFilter(
                arguments.read_optional_text("memory"),
                **{
                    name: arguments.read_optional_text(name) or ""
                    for name in ("user", "action", "since", "until")
                },
            ),
            project=arguments.read_optional_text("project"),
            after=arguments.read_optional_text("from"),
            limit=PAGE_LINES,
        )
        return {"lines": msgspec.to_builtins(page.items), "next": page.next}


def _make_record(entry: AuditEntry) -> AuditRecord:
    return AuditRecord(entry.at, entry.actor, entry.action, entry.memory, entry.what)
