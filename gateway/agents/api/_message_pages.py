"""Pages of messages of a conversation, of an agent or of all agents, as the agents API lists them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, TypeAlias

from msgspec.structs import replace

from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._paging import read_page_at, read_ref, read_sent_ref
from gateway.agents.api._query import ShownMessagesQuery
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.agents.runs.system_message import SYSTEM_SEQ, SystemMessage
from gateway.agents.wire.message import Showing, read_showing
from gateway.core import ids
from gateway.core.ids import ObjectRef
from gateway.errors import UnknownId
from storage.listing import Page
from storage.records import DEFAULT_CONVERSATION, Agent

_PAGE = 100
_Entry: TypeAlias = tuple[Agent, MessageView | SystemMessage]
_Entries: TypeAlias = Sequence[_Entry]


class MessagePages:
    """Reads pages of messages and renders them."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._messages = AgentMessages(api.store, api.now)

    async def make_agent_page(
        self, agent: Agent, query: ShownMessagesQuery, conversation_name: str | None
    ) -> list[dict[str, Any]]:
        """Returns a page of an agent's messages. Raises: UnknownId, NotFound.

        query: the query, with cursors in its order.
        conversation_name: the name of the only conversation to list; None: the messages of all conversations, and the
            system message of `default`.
        """
        before = await _read_cursor(self._api, agent, query.before)
        after = await _read_cursor(self._api, agent, query.after)
        page = Page(after, before, query.get_size(_PAGE), query.is_newest_first())
        fetch = partial(self._list_agent_entries, agent, conversation_name, read_showing(query))
        return await self._fill_page(query, page, fetch)

    async def make_project_page(self, project: str, query: ShownMessagesQuery) -> list[dict[str, Any]]:
        """Returns a page of the messages of all agents. Raises: UnknownId."""
        page = read_page_at(query, partial(read_ref, "message"), size=_PAGE)
        return await self._fill_page(query, page, partial(self._messages.list_project_messages, project))

    async def _list_agent_entries(
        self, agent: Agent, conversation_name: str | None, showing: Showing, page: Page[ObjectRef]
    ) -> _Entries:
        """Returns a page of messages, of which the oldest is the system message."""
        has_system = showing.shows("system_message") and _has_system_message(page)
        # The oldest message comes first, or last if the page has room for it.
        limit = page.limit - (has_system and not page.newest_first)
        views = await self._messages.list_agent_messages(
            agent, replace(page, limit=limit), conversation_name=conversation_name
        )
        entries: list[_Entry] = [(agent, view) for view in views]
        if has_system and len(entries) < page.limit:
            system = await self._api.system_messages.render(agent, conversation_name or DEFAULT_CONVERSATION)
            entries.insert(len(entries) if page.newest_first else 0, (agent, system))
        return entries

    async def _fill_page(
        self,
        query: ShownMessagesQuery,
        page: Page[ObjectRef],
        fetch: Callable[[Page[ObjectRef]], Awaitable[_Entries]],
    ) -> list[dict[str, Any]]:
        """Returns the JSON of a page. fetch: the function that returns the messages of a page."""
        limit = page.limit
        # A client takes an empty page for the end of the list, so pages are read until one has a message to show.
        while True:
            entries = await fetch(page)
            rendered_messages = await self._render_entries(entries, query)
            if rendered_messages or len(entries) < page.limit:
                return list(chain.from_iterable(rendered_messages[:limit]))
            # No message of the page is shown. Many more such messages may follow, so a whole page is read next.
            page = replace(page, after=_make_ref(*entries[-1]), limit=max(limit, _PAGE))

    async def _render_entries(
        self, entries: _Entries, query: ShownMessagesQuery
    ) -> list[list[dict[str, Any]]]:
        """Returns the JSON of each message, in the page's order. Messages of which nothing is shown are left out."""
        showing = read_showing(query)
        rendered: list[list[dict[str, Any]]] = []
        for agent, group in groupby(entries, key=itemgetter(0)):
            renderer = MessageRenderer(self._api.store, agent, showing)
            views = [view for _, view in group]
            message_views = [view for view in views if isinstance(view, MessageView)]
            summaries = await renderer.load_summaries(message_views)
            for view in views:
                if query.msg_object:
                    shown_messages = [renderer.render_message_object(view)]
                else:
                    shown_messages = renderer.render_message(view)
                if isinstance(view, MessageView):
                    shown_messages += summaries.get(view.listed.sort_key, ())
                if shown_messages:
                    rendered.append(shown_messages[::-1] if query.is_newest_first() else shown_messages)
        return rendered


async def check_owner(api: AgentsApi, agent: Agent, ref: ObjectRef) -> None:
    """Raises: UnknownId, NotFound if the message is not of this agent."""
    uid = ref.uid
    if ref.seq == SYSTEM_SEQ:
        uid = (await api.system_messages.find_conversation(agent.scope.project, uid))[0].uid
    if uid != agent.uid:
        message_id = ids.make_id_with_seq("message", ref.uid, ref.seq, hidden=ref.hidden)
        raise UnknownId(f"There is no message {message_id!r} of this agent.")


async def _read_cursor(api: AgentsApi, agent: Agent, message_id: Any) -> ObjectRef | None:
    """Returns a cursor among an agent's messages; None if no cursor was sent. Raises: UnknownId, NotFound."""
    ref = read_sent_ref("message", message_id)
    if ref is None:
        return None
    await check_owner(api, agent, ref)
    return ObjectRef(agent.uid, ref.seq, ref.hidden)


def _make_ref(agent: Agent, view: MessageView | SystemMessage) -> ObjectRef:
    """Returns the cursor of a message in the list of its agent's messages."""
    if isinstance(view, MessageView):
        return ObjectRef(agent.uid, view.listed.seq, view.listed.hidden_index)
    return ObjectRef(agent.uid, SYSTEM_SEQ)


def _has_system_message(page: Page[ObjectRef]) -> bool:
    """Returns whether the system message may be on a page. It has no row, and is older than all messages.

    Any cursor at the older end of a page excludes the system message. A cursor at the newer end excludes it by naming
    it.
    """
    older_end, newer_end = page.ends
    return older_end is None and (newer_end is None or newer_end.seq != SYSTEM_SEQ)
