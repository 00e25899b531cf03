"""The audit: a table of actions, each with its actor, its memory, and in words what it concerned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.page.page_operations import PageOperations
from gateway.page.people_screens import load_namesakes
from gateway.page.screen import Action, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.audit_operations import ACTIONS, NO_FILTER, AuditFilter, AuditRecord
from gateway.run.admin.audited_parts import AuditedFact, AuditedVersion, is_along
from gateway.run.admin.list_page import ListPage
from gateway.run.admin.page_paths import make_fact_href, make_version_href
from gateway.run.admin.plain_text import count_noun

# The most people who are offered where no entry fits a name.
_OFFERED_PEOPLE = 10
# The objects that actions concern, by the action, for entries that do not name them.
_OBJECTS = {
    "read": "what is remembered",
    "export": "all that is remembered, as a file",
    "link_create": "a link to the person’s own page",
}


class _AuditQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of `AuditFilter`, and a button."""

    memory: str | None = None
    user: str = ""
    action: str = ""
    what: str = ""
    since: str = ""
    until: str = ""
    # True: only entries of today are listed, whatever `since` and `until` say: the button is in the form that sends
    # them.
    today: bool = False


class _TextPart(Struct, frozen=True):
    """A part of the sentence that names what an entry concerns."""

    text: str
    # The page of what it names, relative to /ui/; None: it has no page, or is gone.
    href: str | None = None


class _ExistingParts(Struct, frozen=True):
    """The parts of memories that entries of the audit name and that exist."""

    # The names of the memories, by their uids.
    names: Mapping[str, str]
    # The uid of the memory and the number of each fact.
    facts: set[tuple[str, int]]

    def link_fact(self, uid: str | None, seq: int) -> _TextPart:
        return _TextPart(
            f"fact {seq}", make_fact_href(uid, seq) if uid and (uid, seq) in self.facts else None
        )

    def link_version(self, uid: str | None, label: str, version: int, text: str) -> _TextPart:
        return _TextPart(text, make_version_href(uid, label, version) if uid and uid in self.names else None)


class _Act(Struct, frozen=True):
    """One act of one actor: one entry of the audit, or several of a forgetting, which has one for each text."""

    # The first entry: all have its time, actor, action and memory.
    entry: AuditRecord
    # What each entry concerns, in words.
    parts: Sequence[Sequence[_TextPart]]
    # The facts that were forgotten with the texts ("with facts 4, 7"); "": none.
    along: str


class _FoundEntries(NamedTuple):
    """A page of entries, and the people that the filter may mean if no entry has its person."""

    page: ListPage[AuditRecord]
    # The filter of these entries. If no entry has the query's person, it has the only person that the query finds.
    shown_filter: AuditFilter
    # The ids of the people that the query finds; empty if an entry has its person.
    people: Sequence[str] = ()
    # The memories that were forgotten as a whole today, where no person is found; None: some are.
    forgotten_today: ListPage[AuditRecord] | None = None


class _AuditScreens(Struct, frozen=True):
    """The screen of the audit, as it is called for a request."""

    operations: PageOperations

    async def show(self, request: ScreenRequest, query: _AuditQuery) -> View:
        audit = self.operations.audit
        today = datetime.fromtimestamp(audit.now(), UTC).date().isoformat()
        since, until = (today, "") if query.today else (query.since, query.until)
        sent_filter = AuditFilter(query.memory, query.user.strip(), query.action, query.what, since, until)
        page = await self._list_page(request, query, sent_filter)
        if request.is_twin:
            return View(page)
        if sent_filter.user and not page.items:
            found = await self._search_person(request, query, _FoundEntries(page, sent_filter), today)
        else:
            found = _FoundEntries(page, sent_filter)
        page, shown_filter = found.page, found.shown_filter
        existing = await self._load_existing_parts(page.items)
        context = {
            "acts": _group_acts(page.items, existing),
            "names": existing.names,
            "shown_filter": shown_filter,
            # The text by which the person of the filter was found; "": it is the person's id.
            "found_by": "" if shown_filter.user == sent_filter.user else query.user,
            # The ids of people that are offered for the one that no entry fits.
            "people": [each for each in found.people if each != shown_filter.user],
            # Someone has exactly the id of the filter.
            "is_stored": shown_filter.user in found.people,
            "forgotten_today": found.forgotten_today,
            "actions": ACTIONS,
            "today": today,
            "is_filtered": shown_filter != NO_FILTER,
            "days": count_noun(audit.days, "days"),
        }
        return View(page, "audit.html", "Audit", context)

    async def _load_existing_parts(self, records: Sequence[AuditRecord]) -> _ExistingParts:
        """Returns the memories and facts that some entries name and that exist."""
        audit = self.operations.audit
        names = await self.operations.memories.load_labels(
            {each.memory for each in records if each.memory is not None}
        )
        named_facts = {
            (each.memory, seq)
            for each in records
            if each.memory is not None
            and each.memory in names
            and (fact := _parse_shown_fact(each)) is not None
            for seq in fact.seqs
        }
        return _ExistingParts(names, await audit.find_facts(named_facts))

    async def _list_page(
        self, request: ScreenRequest, query: _AuditQuery, audit_filter: AuditFilter
    ) -> ListPage[AuditRecord]:
        return await self.operations.audit.list(
            audit_filter, project=request.visitor.project, after=query.after, limit=query.limit
        )

    async def _search_person(
        self, request: ScreenRequest, query: _AuditQuery, empty: _FoundEntries, today: str
    ) -> _FoundEntries:
        """Searches the person of a filter that finds no entry. Returns the entries of the only person who is found.

        empty: the empty page of that filter.
        """
        people = await self._find_people(request, empty.shown_filter.user)
        if not people:
            wholly_today = AuditFilter(action="forget", what="all", since=today)
            forgotten_today = await self.operations.audit.list(wholly_today, project=request.visitor.project)
            return empty._replace(forgotten_today=forgotten_today)
        if people[1:]:
            return empty._replace(people=people)
        shown_filter = replace(empty.shown_filter, user=people[0])
        return _FoundEntries(await self._list_page(request, query, shown_filter), shown_filter, people)

    async def _find_people(self, request: ScreenRequest, text: str) -> list[str]:
        """Returns the ids of people that a text finds as the list of people does."""
        page = await self.operations.memories.list_page(
            request.visitor.project, "user", text, limit=_OFFERED_PEOPLE
        )
        namesakes = await load_namesakes(self.operations, request, text, page)
        # A person has a memory in each profile, all by the same id.
        ids = dict.fromkeys(each.name for each in (*page.items, *(memory for memory, _ in namesakes.items)))
        return [*ids][:_OFFERED_PEOPLE]


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    return [Screen("audit", _AuditScreens(operations).show, _AuditQuery)]


def _group_acts(records: Sequence[AuditRecord], existing: _ExistingParts) -> list[_Act]:
    """Returns the acts of some entries, in their order."""
    acts: list[_Act] = []
    for _, group in groupby(records, lambda each: (each.at, each.who, each.action, each.memory)):
        entries, along = [*group], ""
        if len(entries) > 1 and is_along(entries[-1].what):
            along = entries.pop().what
        acts.append(_Act(entries[0], [_make_text_parts(each, existing) for each in entries], along))
    return acts


def _parse_shown_fact(record: AuditRecord) -> AuditedFact | None:
    """Returns the fact that an entry concerns; None: it concerns something else, or a forgotten fact without a page."""
    return None if record.action == "forget" else AuditedFact.parse(record.what)


def _make_text_parts(record: AuditRecord, existing: _ExistingParts) -> list[_TextPart]:
    """Returns what an entry concerns, in words, with links to what exists."""
    uid = record.memory
    if (written := AuditedVersion.parse(record.what)) is not None:
        label, version, restored = written.label, written.version, written.restored
        parts = [existing.link_version(uid, label, version, f"block {label}, version {version}")]
        if restored is not None:
            parts += [
                _TextPart(": "),
                existing.link_version(uid, label, restored, f"version {restored} again"),
            ]
        return parts
    fact = _parse_shown_fact(record)
    if fact is None:
        return [_TextPart(_render_sentence(record))]
    parts = [existing.link_fact(uid, fact.seq)]
    if fact.new_seq is not None:
        parts += [_TextPart(": now "), existing.link_fact(uid, fact.new_seq)]
    if fact.restored_seq is not None:
        parts += [_TextPart(", which says again "), existing.link_fact(uid, fact.restored_seq)]
    if fact.state:
        parts.append(_TextPart(f", {fact.state}"))
    return parts


def _render_sentence(record: AuditRecord) -> str:
    """Returns the words for what an entry concerns that has no page to link to."""
    match record.action, record.what.split(" "):
        case "forget", ["all"]:
            return "all of the memory"
        case "forget", ["exchange", number]:
            return f"message {number} and the rest of its turn"
        case _:
            return record.what or _OBJECTS.get(record.action, "")
