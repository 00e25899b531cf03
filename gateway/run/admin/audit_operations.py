"""The audit: what operators did, and what people did by their links."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway.run.admin.list_page import ListPage, next_cursor, read_cursor
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.memory_names import name_of
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from storage.listing import LAST_NUMBER
from storage.sql.store import Store

# The actions that make versions of blocks.
_EDITS = ("edit", "undo", "restore")
# How many of a memory's last entries are searched for the actor of an action.
_NEWEST_ENTRIES = 200
# The most lines of an answer to the command line.
PAGE_LINES = 200


class AuditRecord(Struct, frozen=True):
    """Something that an operator did, or a person by a link."""

    # All records of one act, such as a forgetting of several texts, have the same time.
    at: float
    # The name of a key, `code`, `link` or `command`.
    who: str
    action: str
    # The uid of a memory, which may be gone.
    memory: str | None
    # As `audited_parts` has it. The facts that went with what was forgotten are an entry of their own.
    what: str


class AuditOperations(Struct, frozen=True):
    """Adds to the audit, and lists it."""

    store: Store
    # Seconds since the epoch.
    now: Callable[[], float]

    async def add(self, actor: str, action: str, memory: str | None = None, what: str = "") -> None:
        """Adds an entry. Raises: StoreError.

        action: the name of the action, such as "login".
        memory: the uid of the memory that the action concerns; None: it concerns no memory.
        what: as in `AuditRecord`.
        """
        await self.store.audit.add(self.now(), actor, action, memory, what)

    async def list(
        self,
        *,
        memory: str | None = None,
        project: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> ListPage[AuditRecord]:
        """Returns a page of the audit, the newest entries first.

        memory: the uid of a memory, which may be gone: only its entries are listed; None: those of all memories.
        project: only the entries of this project's memories are listed; None: those of all projects.
        after: `next` of the page before.

        Raises: BadRequest: `after` cannot be read; UnknownId: the memory is of another project, or there never was one.
        """
        before = read_cursor(after, LAST_NUMBER)
        entries = await self.store.audit.list(before=before, memory=memory, project=project, limit=limit + 1)
        if memory is not None and (project is not None or not entries):
            await get_agent(self.store, project, memory, param="memory")
        items = tuple(AuditRecord(e.at, e.actor, e.action, e.memory, e.what) for e in entries[:limit])
        return ListPage(items, next_cursor(entries, limit, lambda entry: str(entry.id)))

    async def editors(self, uid: str, label: str) -> dict[int, str]:
        """Returns number of a version -> the actor that made it, for a block, as far as the audit has it.

        uid, label: of the memory and of the block.
        """
        entries = await self.store.audit.list_of_memory(uid, _EDITS, limit=_NEWEST_ENTRIES)
        begin = f"block {label}, version "
        return {
            # "8", or "2 as 8" where version 2 was brought back.
            int(e.what.removeprefix(begin).split()[-1]): e.actor
            for e in entries
            if e.what.startswith(begin)
        }

    async def forgettings(self, uid: str) -> Sequence[AuditRecord]:
        """Returns the last forgettings of parts of a memory, the oldest first. uid: of the memory."""
        entries = await self.store.audit.list_of_memory(uid, ("forget",), limit=_NEWEST_ENTRIES)
        return [AuditRecord(e.at, e.actor, e.action, e.memory, e.what) for e in reversed(entries)]

    async def names(self, uids: Collection[str]) -> dict[str, str]:
        """Returns the names of memories by their uids, without those that are gone."""
        return {uid: name_of(scope) for uid, scope in (await self.store.overview.load_scopes(uids)).items()}

    async def find_facts(self, facts: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Returns those of some facts that are there, true or not. facts: by the uid of the memory, and the number."""
        return await self.store.facts.find_existing(facts) if facts else set()

    async def show_all(self, raw: RawArguments) -> dict[str, Any]:
        """Lists the audit for the command line: {"lines", "next"}. from: the answer's `next`."""
        arguments = Arguments(raw)
        page = await self.list(
            memory=arguments.optional_text("memory"),
            project=arguments.optional_text("project"),
            after=arguments.optional_text("from"),
            limit=PAGE_LINES,
        )
        return {"lines": msgspec.to_builtins(page.items), "next": page.next}
