"""The lists of memories: people, agents, conversations without a user."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from msgspec import Meta

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, ListQuery, Redirect, Screen, ScreenRequest, View
from gateway.run.admin.list_page import ListPage
from gateway.run.admin.memory.memory_views import NAMESAKES_AMONG, NamedMemories
from gateway.run.admin.records.memory_records import MemoryKind, MemoryRecord
from gateway.run.admin.words.word_search import MAX_PEOPLE
from storage.search.text_words import find_spans_with_words

_HEADINGS: dict[MemoryKind, str] = {
    "user": "People",
    "agent": "Agents",
    "conversation": "Conversations without a user",
}


class PeopleWordsQuery(
    ListQuery,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"is_no_name": "name", "searched_before": "looked"},
):
    """The words that are looked for in all memories of people."""

    page_limit: ClassVar[int] = MAX_PEOPLE
    q: str = ""
    # True: people were searched by these words as a name first, and none has it.
    is_no_name: bool = False
    # The number of memories that the pages before have searched.
    searched_before: Annotated[int, Meta(ge=0, lt=1 << 53)] = 0


class PeopleQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a list of memories."""

    # The beginning of their names.
    q: str = ""
    kind: MemoryKind = "user"
    # Those with the most messages come first; None: those with the newest turns.
    order: Literal["messages"] | None = None


async def load_namesakes(
    operations: PageOperations, request: ScreenRequest, text: str, page: ListPage[MemoryRecord]
) -> NamedMemories:
    """Returns the people who have a name in an id or a block and are not on a page, and notes the read of each.

    A later page of the list may have them, too.
    """
    people = await operations.memories.list_people_called(request.visitor.project, " ".join(text.split()))
    namesakes = [each for each in people.items if each.memory not in page.items]
    for each in namesakes:
        await request.note_read(each.memory.uid)
    return NamedMemories(namesakes, people.has_more)


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    async def show(request: ScreenRequest, query: PeopleQuery) -> Answer:
        page = await operations.memories.list_page(
            request.visitor.project,
            query.kind,
            query.q,
            by_messages=query.order is not None,
            after=query.after,
            limit=query.limit,
        )
        # A program gets the list that it asked for: no namesakes, and no redirect to another search.
        if request.is_twin:
            return View(page)
        namesakes = NamedMemories([], has_more=False)
        # Later pages continue the list; the first page has shown the namesakes.
        if query.q.strip() and query.kind == "user" and query.after is None:
            namesakes = await load_namesakes(operations, request, query.q, page)
            if not (page.items or namesakes.items):
                return Redirect(f"people/words?q={quote(query.q, safe='')}&name=1")
        context = {
            "kind": query.kind,
            "q": query.q,
            "order": query.order,
            "tabs": _HEADINGS,
            "namesakes": namesakes.items,
            "has_more_namesakes": namesakes.has_more,
            "namesakes_among": NAMESAKES_AMONG,
        }
        return View(page, "people.html", _HEADINGS[query.kind], context)

    async def search_words(request: ScreenRequest, query: PeopleWordsQuery) -> View:
        search = await operations.words.search_people(
            request.visitor.project, query.q, after=query.after, limit=query.limit
        )
        for person in search.items:
            await request.note_read(person.memory.uid)
        context = {
            "spans": lambda text: find_spans_with_words(text, query.q),
            "after": query.after,
            "searched": query.searched_before + search.looked_through,
            "is_no_name": query.is_no_name,
            "namesakes_among": NAMESAKES_AMONG,
        }
        return View(search, "people_words.html", "Search what people wrote", context)

    return [
        Screen("people", show, PeopleQuery),
        Screen("people/words", search_words, PeopleWordsQuery, searches=True),
    ]
