"""The lists of memories: people, agents, conversations without a user."""

from __future__ import annotations

from typing import Annotated, ClassVar
from urllib.parse import quote

from msgspec import Meta

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ActionResult, Answer, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.memory_records import MemoryKind, MemoryRecord
from gateway.run.admin.memory_views import PEOPLE_LOOKED_AT
from gateway.run.admin.word_search import MAX_PEOPLE

_HEADINGS: dict[MemoryKind, str] = {
    "user": "People",
    "agent": "Agents",
    "conversation": "Conversations without a user",
}


class PeopleWordsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The words that are looked for in all memories of people."""

    page_limit: ClassVar[int] = MAX_PEOPLE
    q: str = ""
    # They were looked for as a name first, which nobody has.
    name: bool = False
    # How many people the pages before have looked through.
    looked: Annotated[int, Meta(ge=0, lt=1 << 53)] = 0


class PeopleQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a list of memories. q: the beginning of their names."""

    q: str = ""
    kind: MemoryKind = "user"


def screens(operations: PageOperations) -> list[Screen | Action]:
    async def show(request: ScreenRequest, query: PeopleQuery) -> Answer:
        page = await operations.memories.page(
            request.visitor.project, query.kind, query.q, after=query.after, limit=query.limit
        )
        # Further people who have the name in a block, each with the line that contains it.
        namesakes: list[tuple[MemoryRecord, str]] = []
        name = " ".join(query.q.split())
        if name and query.kind == "user" and query.after is None and not request.is_twin:
            people = await operations.memories.people_called(request.visitor.project, name)
            namesakes = [(memory, line) for memory, line in people if memory not in page.items]
            for memory, _ in namesakes:
                await request.note_read(memory.uid)
            if not (page.items or namesakes):
                return ActionResult(None, f"people/words?q={quote(query.q, safe='')}&name=1")
        context = {
            "kind": query.kind,
            "q": query.q,
            "tabs": _HEADINGS,
            "namesakes": namesakes,
            "looked_at": PEOPLE_LOOKED_AT,
        }
        return View(page, "people.html", _HEADINGS[query.kind], context)

    async def find_words(request: ScreenRequest, query: PeopleWordsQuery) -> View:
        search = await operations.words.find_people(
            request.visitor.project, query.q, after=query.after, limit=query.limit
        )
        for person in search.items:
            await request.note_read(person.memory.uid)
        context = {
            "spans": lambda text: operations.words.spans(text, query.q),
            "after": query.after,
            "looked": query.looked + search.looked_through,
            "is_no_name": query.name,
            "looked_at": PEOPLE_LOOKED_AT,
        }
        return View(search, "people_words.html", "Search what people wrote", context)

    return [
        Screen("people", show, PeopleQuery),
        Screen("people/words", find_words, PeopleWordsQuery, searches=True),
    ]
