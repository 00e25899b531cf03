"""Pages of lists: the order of a list, the meaning of its cursors, and the page next to a cursor.

A list is read in one direction, from a cursor on. A page with only a `before` cursor is read backwards from the cursor,
so that it ends there. A client that goes on `before` the first row of its last page thus gets every row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from msgspec import UNSET, Struct, field, structs

from gateway.agents.api._query import PageQuery
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Maybe
from gateway.core import ids
from gateway.errors import UnknownId
from storage.listing import CursorT, Page

# Takes a query and returns it with its order, and with cursors that fit that order.
CursorReader: TypeAlias = Callable[[PageQuery], PageQuery]


def _order_cursors(query: PageQuery) -> PageQuery:
    """Returns a copy of a query with cursors by time (`after` is newer), turned into the order of the list."""
    if not query.is_newest_first():
        return query
    return structs.replace(query, after=query.before, before=query.after)


def _order_message_cursors(query: PageQuery) -> PageQuery:
    """Returns a copy of a query for messages of a conversation or a run, with its cursors in the order of the list.

    Letta's server reads the cursors by time, even if the newest come first: the page `before` a message has older
    messages. Its clients go on from page to page with `after` alone, in the order of the list.
    """
    before, after = read_sent_ref("message", query.before), read_sent_ref("message", query.after)
    if before is None or not query.is_newest_first():
        return query
    if after is not None and (after.uid != before.uid or after.seq > before.seq):
        return query
    return structs.replace(query, after=query.before, before=query.after)


class Paging(Struct, frozen=True):
    """The way in which a list is given page by page."""

    # The order if the query names none.
    is_newest_first: bool = True
    # Returns a query with its cursors in the order of the list. By default they are in this order.
    read_cursors: CursorReader = field(default=lambda query: query)
    # True: the rows of a page are returned oldest first, even if the page is from the newest end.
    is_shown_oldest_first: bool = False

    def make_list_query(self, query: PageQuery) -> PageQuery:
        """Returns the query with which a list is read: with an order, and cursors in this order, `after` first."""
        query = self.read_cursors(
            _set_order(query, is_newest_first=query.is_newest_first(self.is_newest_first))
        )
        if find_sent(query.before) is not None and find_sent(query.after) is None:
            query = _set_order(query, is_newest_first=not query.is_newest_first())
            query = structs.replace(query, after=query.before, before=UNSET)
        return query

    def restore_order(self, query: PageQuery, list_query: PageQuery, answer: Any) -> Any:
        """Returns an answer with its rows in the order that the client asked for.

        query: the query that the client sent.
        list_query: the query that `make_list_query` returned for it.
        answer: a list, or an object with a list in `files`; anything else has no rows.
        """
        is_newest_first = query.is_newest_first(self.is_newest_first) and not self.is_shown_oldest_first
        rows = answer.get("files") if isinstance(answer, dict) else answer
        if isinstance(rows, list) and is_newest_first != list_query.is_newest_first():
            rows.reverse()
        return answer


NEWEST_FIRST = Paging()
OLDEST_FIRST = Paging(is_newest_first=False)
PASSAGES = Paging(is_newest_first=False, read_cursors=_order_cursors)
RUN_MESSAGES = Paging(is_newest_first=False, read_cursors=_order_message_cursors)
CONVERSATION_MESSAGES = Paging(read_cursors=_order_message_cursors)
# Letta's server 0.16.8 returns messages oldest first, even if `order=desc`, the default, selects the newest. Programs
# show them in this order.
MESSAGES = Paging(read_cursors=_order_cursors, is_shown_oldest_first=True)


def _set_order(query: PageQuery, *, is_newest_first: bool) -> PageQuery:
    return structs.replace(query, order="desc" if is_newest_first else "asc", ascending=UNSET)


def cut_page(items: Sequence[dict[str, Any]], query: PageQuery) -> list[dict[str, Any]]:
    """Returns a page of a list in memory. The default size is 100, as on Letta's server.

    Items with one id (the pieces of a message) count as one entry: a cursor names all of them.

    items: the whole list, oldest first.
    query: the query that `Paging.make_list_query` returned.
    """
    ordered = list(items)
    if query.is_newest_first():
        ordered.reverse()
    page_ids = list(dict.fromkeys(item["id"] for item in ordered))
    for cursor, is_after in ((query.after, True), (query.before, False)):
        if (cursor_id := find_sent(cursor)) is not None:
            # An id that is not in the list leaves an empty page: a client may detach each item of a page, and then ask
            # for the page after the last one.
            index = page_ids.index(cursor_id) if cursor_id in page_ids else (len(page_ids) if is_after else 0)
            page_ids = page_ids[index + 1 :] if is_after else page_ids[:index]
    ids_of_page = frozenset(page_ids[: query.get_size(100)])
    return [item for item in ordered if item["id"] in ids_of_page]


def read_page_at(query: PageQuery, read_cursor: Callable[[str], CursorT], *, size: int = 50) -> Page[CursorT]:
    """Returns the page that a query asks for. Raises: the errors of `read_cursor`.

    read_cursor: the function that returns the cursor for an id.
    size: the size of the page if the query names none.
    """
    sent_ids = (find_sent(query.after), find_sent(query.before))
    after, before = [None if sent_id is None else read_cursor(sent_id) for sent_id in sent_ids]
    return Page(after, before, query.get_size(size), query.is_newest_first())


async def read_page(
    query: PageQuery, get_row: Callable[[str], Awaitable[int]], *, size: int = 50
) -> Page[int]:
    """Returns the page that a query asks for, with rows as cursors. Raises: the errors of `get_row`.

    get_row: the function that returns the row for an id.
    size: the size of the page if the query names none.
    """
    page = read_page_at(query, str, size=size)
    after, before = [None if end is None else await get_row(end) for end in (page.after, page.before)]
    return Page(after, before, page.limit, page.newest_first)


def read_sent_ref(kind: str, sent_id: Maybe[str]) -> ids.ObjectRef | None:
    """Returns the uid and number in the id of a parameter; None if it was not sent. Raises: UnknownId."""
    return None if (public_id := find_sent(sent_id)) is None else read_ref(kind, public_id)


def read_ref(kind: str, public_id: str) -> ids.ObjectRef:
    """Returns the uid and number in an id. Raises: UnknownId."""
    ref = ids.parse_ref(kind, public_id)
    if ref is None:
        raise UnknownId(f"There is no {kind} {public_id!r}.")
    return ref
