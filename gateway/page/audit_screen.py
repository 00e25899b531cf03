"""The audit: a table of what was done, by whom, to whose memory, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from msgspec import Struct

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.audit_operations import AuditRecord
from gateway.run.admin.hits import fact_href

# What an entry without an object of its own concerns, by its action.
_OBJECTS = {
    "read": "what is remembered",
    "export": "all that is remembered, as a file",
    "link_create": "a link to the person’s own page",
}
_FACT = re.compile(r"\bfact ([0-9]+)")
_REPLACED_FACT = re.compile(r"^fact ([0-9]+) as ([0-9]+)")


class _AuditQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The uid of the memory whose entries are listed, which may be gone; None: the entries of all memories.
    memory: str | None = None


class Words(Struct, frozen=True):
    """Some words of an entry."""

    text: str
    # The page that shows what they name, relative to /ui/; None: they name nothing that has a page, or it is gone.
    href: str | None = None


class Act(Struct, frozen=True):
    """One act. A forgetting of several texts is one, with an entry for each text."""

    # One of its entries.
    entry: AuditRecord
    # What was done to which texts, one after the other.
    parts: Sequence[Sequence[Words]]
    # The facts that a forgetting took along ("with facts 4, 7"); "": none.
    along: str = ""


def screens(operations: PageOperations) -> list[Screen | Action]:
    async def show(request: ScreenRequest, query: _AuditQuery) -> View:
        page = await operations.audit.list(
            memory=query.memory, project=request.visitor.project, after=query.after, limit=query.limit
        )
        if request.is_twin:
            return View(page)
        names = await operations.audit.names({each.memory for each in page.items if each.memory is not None})
        named_facts = {
            (each.memory, int(seq))
            for each in page.items
            if each.action != "forget" and each.memory is not None and each.memory in names
            for seq in _FACT.findall(_words_of(each))
        }
        facts = await operations.audit.find_facts(named_facts)
        context = {"acts": _acts_of(page.items, facts), "names": names, "memory": query.memory}
        return View(page, "audit.html", "Audit", context)

    return [Screen("audit", show, _AuditQuery)]


def _acts_of(records: Sequence[AuditRecord], facts: set[tuple[str, int]]) -> list[Act]:
    """Returns the acts of some entries, in their order. facts: the facts that are there, by memory and number."""
    acts = list[Act]()
    for _, group in groupby(records, lambda each: (each.at, each.who, each.action, each.memory)):
        entries = [*group]
        along = entries.pop().what if entries[1:] and entries[-1].what.startswith("with ") else ""
        acts.append(Act(entries[0], [_with_links(each, facts) for each in entries], along))
    return acts


def _with_links(record: AuditRecord, facts: set[tuple[str, int]]) -> list[Words]:
    """Returns what an entry concerns, with links to the facts that are there."""
    words, uid = list[Words](), record.memory or ""
    # The pattern captures a number, so every second part is one.
    for index, part in enumerate(_FACT.split(_words_of(record))):
        if index % 2:
            href = fact_href(uid, int(part)) if (uid, int(part)) in facts else None
            words.append(Words(f"fact {part}", href))
        elif part:
            words.append(Words(part))
    return words


def _words_of(record: AuditRecord) -> str:
    """Returns what an entry concerns, in words."""
    what = record.what or _OBJECTS.get(record.action, "")
    match record.action:
        case "forget" if what == "all":
            return "all of the memory"
        case "forget" if what.startswith("exchange "):
            return f"message {what.removeprefix('exchange ')} and its reply"
        case "restore":
            return what.replace(" as ", ", brought back as version ")
        case "correct" | "undo":
            return _REPLACED_FACT.sub(r"fact \1: now fact \2", what).replace(
                ", back to", ", which says again"
            )
        case _:
            return what
