"""Stored messages: list, change, forget, reset; and end runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

import orjson

from gateway.agents.api._message_renderer import MessageRenderer, conversation_id
from gateway.agents.api._paging import MESSAGES, place_in
from gateway.agents.api._query import MessagesQuery, ResetQuery, ShownMessagesQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, uid_in
from gateway.agents.api.agent_bodies import Compact, merge_compaction
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.model import UNKNOWN_WINDOW
from gateway.agents.api.passages import moment_of
from gateway.agents.api.search import SearchAgents, SearchMessages, found_json, ranked_json
from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.agents.runs.run import RunRequest
from gateway.agents.runs.send_queue import MAX_SENDS
from gateway.agents.runs.system_message import SYSTEM_SEQ, SystemMessage
from gateway.agents.wire.message import Showing, showing_of
from gateway.agents.wire.send import CancelRuns, ResetMessages, UpdateMessage, read_new_text
from gateway.agents.wire.struct_fields import sent_fields
from gateway.core import ids
from gateway.core.agent import AgentSpec
from gateway.core.ids import Place
from gateway.core.prompt.summary import SummaryTerms, summary_tokens
from gateway.core.turn.guide import StopReason
from gateway.errors import BadRequest, UnknownId
from gateway.run.memory.memory_context import check_not_paused
from gateway.run.memory.queue import QueueTicket
from gateway.run.upstream.route import agent_route
from gateway.web.middleware import info_of
from storage.listing import AgentFilter, Page, RunEntry, RunFilter
from storage.records import DEFAULT_CONVERSATION, Agent, Run, RunState

_PAGE = 100
_MAX_SEARCHED_AGENTS = 64
_Entry: TypeAlias = tuple[Agent, MessageView | SystemMessage]
_Entries: TypeAlias = Sequence[_Entry]
_TEXT_TYPES = frozenset({"assistant_message", "user_message", "system_message", "tool_return_message"})


class MessageRoutes:
    """The routes of messages."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._messages = AgentMessages(api.store, api.now, api.keeper.embed_query)

    def routes(self) -> list[AgentsRoute]:
        agent = "/v1/agents/{agent_id}"
        agent_messages = f"{agent}/messages"
        agent_message = f"{agent_messages}/{{message_id}}"
        return [
            AgentsRoute("GET", agent_messages, self.index, pages=MESSAGES),
            AgentsRoute("POST", f"{agent_messages}/cancel", self.cancel),
            AgentsRoute("POST", f"{agent}/summarize", self.compact_default),
            AgentsRoute("PATCH", agent_message, self.update),
            AgentsRoute("DELETE", agent_message, self.delete),
            AgentsRoute("GET", agent_message, self.of_agent),
            AgentsRoute("POST", "/v1/messages/search", self.search),
            AgentsRoute("POST", "/v1/agents/messages/search", self.search_agents),
            # Without the slash it is Anthropic's.
            AgentsRoute("GET", "/v1/messages", self.index_all, pages=MESSAGES, slashes=("/",)),
            AgentsRoute("GET", "/v1/messages/{message_id}", self.retrieve),
            AgentsRoute("PATCH", f"{agent}/reset-messages", self.reset),
        ]

    async def index(self, request: ApiRequest, query: MessagesQuery) -> list[dict[str, Any]]:
        """List an agent's messages."""
        agent = await self._api.agent(request)
        return await self.agent_page(agent, query, _conversation(query.conversation_id))

    async def agent_page(
        self, agent: Agent, query: ShownMessagesQuery, conversation: str | None
    ) -> list[dict[str, Any]]:
        """Returns a page of messages, with cursors in its order.

        conversation: the name by which one is looked up; None: all of them, with the system message of `default`.
        """
        before = await self._cursor(agent, query.before)
        after = await self._cursor(agent, query.after)
        return await self._page(
            query, after, partial(self._entries_of_agent, agent, conversation, query, before)
        )

    async def _entries_of_agent(
        self,
        agent: Agent,
        conversation: str | None,
        query: ShownMessagesQuery,
        before: Place | None,
        after: Place | None,
        limit: int,
    ) -> _Entries:
        """Returns the messages between two cursors, up to a limit. The system message is the oldest of them."""
        newest_first = query.newest_first()
        with_system = showing_of(query).shows("system_message") and _shows_system_message(
            newest_first, before, after
        )
        leads: list[_Entry] = []
        if with_system and not newest_first:
            leads.append((agent, await self._system_message(agent, conversation)))
        views = await self._messages.list(
            agent,
            conversation=conversation,
            after=after,
            before=before,
            limit=limit - len(leads),
            newest_first=newest_first,
        )
        entries = [*leads, *((agent, view) for view in views)]
        if with_system and newest_first and len(entries) < limit:
            entries.append((agent, await self._system_message(agent, conversation)))
        return entries

    async def _system_message(self, agent: Agent, conversation: str | None) -> SystemMessage:
        return await self._api.system_messages.render(agent, conversation or DEFAULT_CONVERSATION)

    async def index_all(self, request: ApiRequest, query: MessagesQuery) -> list[dict[str, Any]]:
        """List the messages of all agents."""
        conversation = _conversation(query.conversation_id)
        if conversation is not None:
            agent = await self._agent_of_conversation(request.project, conversation)
            return await self.agent_page(agent, query, conversation)
        before = place_in("message", query.before)

        async def fetch(after: Place | None, limit: int) -> _Entries:
            return await self._messages.list_all(
                request.project, after=after, before=before, limit=limit, newest_first=query.newest_first()
            )

        return await self._page(query, place_in("message", query.after), fetch)

    async def _page(
        self,
        query: ShownMessagesQuery,
        after: Place | None,
        fetch: Callable[[Place | None, int], Awaitable[_Entries]],
    ) -> list[dict[str, Any]]:
        """Returns a page as it is shown. fetch: returns the messages after a place, up to a limit."""
        limit = query.size(_PAGE)
        fetched_limit = limit
        # The client takes an empty page for the end, so one is only given where nothing more is to be shown.
        while True:
            entries = await fetch(after, fetched_limit)
            shown = await self._render_entries(entries, query)
            if shown or len(entries) < fetched_limit:
                return [each for of_message in shown[:limit] for each in of_message]
            # Of types that are rare, many may follow that are not shown.
            fetched_limit = max(limit, _PAGE)
            after = _place_of(*entries[-1])

    async def _render_entries(
        self, entries: _Entries, query: ShownMessagesQuery
    ) -> list[list[dict[str, Any]]]:
        """Returns what is shown of each message, in the page's order; those of which nothing is shown are left out."""
        showing = showing_of(query)
        rendered: list[list[dict[str, Any]]] = []
        for agent, group in groupby(entries, key=itemgetter(0)):
            renderer = MessageRenderer(self._api.store, agent, showing)
            views = [view for _, view in group]
            summaries = await renderer.summaries([v for v in views if isinstance(v, MessageView)])
            for view in views:
                shown = [renderer.message_object(view)] if query.msg_object else renderer.message(view)
                if isinstance(view, MessageView):
                    shown += summaries.get(view.listed.sort_key, ())
                if shown:
                    rendered.append(shown[::-1] if query.newest_first() else shown)
        return rendered

    async def of_agent(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Return a message."""
        agent = await self._api.agent(request)
        place = _place_in_path(request)
        await self._check_owner(agent, place)
        return await self._message_json(request.project, place)

    async def retrieve(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Return a message, whichever agent's it is."""
        return await self._message_json(request.project, _place_in_path(request))

    async def search(self, request: ApiRequest, search: SearchMessages) -> list[dict[str, Any]]:
        """Search messages."""
        messages = [
            found_json(
                message,
                ids.id_of("agent", agent.uid),
                conversation_id(view.conversation, view.key),
            )
            for agent, view in await self._search_hits(request.project, search)
            for message in MessageRenderer(self._api.store, agent, Showing()).message(view)
        ]
        return [message for message in messages if message is not None]

    async def search_agents(self, request: ApiRequest, search: SearchAgents) -> list[dict[str, Any]]:
        """Search messages (0.16)."""
        messages = [
            ranked_json(message, rank)
            for rank, (agent, view) in enumerate(await self._search_hits(request.project, search))
            for message in MessageRenderer(self._api.store, agent, Showing()).message(view)
        ]
        return [message for message in messages if message is not None]

    async def _search_hits(self, project: str, search: SearchMessages) -> Sequence[tuple[Agent, MessageView]]:
        """Returns what a search finds, best first. Raises: BadRequest."""
        if search.search_mode == "vector" and self._api.keeper.embed_query is None:
            raise BadRequest("There is no embedder (memory.embedder), so messages are searched by words.")
        agents, conversation = await self._searched_agents(project, search)
        return await self._messages.search(
            agents,
            search.query,
            roles=sent_fields(search).get("roles") or ("user", "assistant"),
            since=moment_of(search.start_date, ("body", "start_date")),
            until=moment_of(search.end_date, ("body", "end_date"), is_end=True),
            limit=search.limit,
            by_meaning=search.search_mode != "fts",
            conversation=conversation,
        )

    async def _searched_agents(
        self, project: str, search: SearchMessages
    ) -> tuple[Sequence[Agent], str | None]:
        """Returns the agents to search, and the conversation, or None for all of theirs. Raises: BadRequest."""
        conversation = _conversation(search.conversation_id)
        if isinstance(search.agent_id, str):
            return [await self._api.named_agent(project, search.agent_id)], conversation
        if conversation is not None:
            return [await self._agent_of_conversation(project, conversation)], conversation
        all_agents = AgentFilter(with_hidden=True, order="completed")
        entries = await self._api.store.defined_agents.list(
            project, all_agents, limit=_MAX_SEARCHED_AGENTS + 1
        )
        if len(entries) > _MAX_SEARCHED_AGENTS:
            raise BadRequest(
                f"A search asks {_MAX_SEARCHED_AGENTS} agents at most, and there are more: name one.",
                param="agent_id",
            )
        return [entry.agent for entry in entries], None

    async def _agent_of_conversation(self, project: str, conversation: str) -> Agent:
        """Returns the agent of a conversation. Raises: NotFound; BadRequest for `default`, which each agent has."""
        if conversation == DEFAULT_CONVERSATION:
            raise BadRequest(
                "Each agent has a conversation `default`: name it by its id.", param="conversation_id"
            )
        return (await self._api.store.conversations.get(project, conversation)).agent

    async def _message_json(self, project: str, place: Place) -> list[dict[str, Any]]:
        """Returns what a message is shown as. Raises: UnknownId."""
        view: MessageView | SystemMessage
        if place.seq == SYSTEM_SEQ:
            agent, conversation = await self._api.system_messages.owner_of(project, place.uid)
            view = await self._system_message(agent, conversation)
        else:
            agent = (await self._api.registry.get_entry(project, place.uid)).agent
            view = await self._messages.get(agent, place)
        return MessageRenderer(self._api.store, agent, Showing()).message(view)

    async def update(self, request: ApiRequest, update: UpdateMessage) -> dict[str, Any]:
        """Give a message another text."""
        agent = await self._api.agent(request)
        place = await self._changeable_place(agent, request)
        text = read_new_text(update)
        view = await self._messages.get(agent, place)
        # Where a call is shown as text its result is left out, so for a result calls are shown as calls.
        showing = Showing(speaks=None) if view.listed.is_result else Showing()
        renderer = MessageRenderer(self._api.store, agent, showing)
        shown_types = [each["message_type"] for each in renderer.message(view)]
        text_type = _text_type(shown_types, sent_fields(update).get("message_type"))
        rewritten = renderer.message(await self._messages.rewrite(agent, place, text))
        return next((each for each in rewritten if each["message_type"] == text_type), rewritten[-1])

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a message, and what was made of it."""
        agent = await self._api.agent(request)
        await self._messages.delete(agent, await self._changeable_place(agent, request))
        return {"message": "The message is forgotten."}

    async def reset(self, request: ApiRequest, _: ResetQuery, _body: ResetMessages) -> dict[str, Any]:
        """Begin an agent's messages anew."""
        agent = await self._api.agent(request)
        await self.cancel_runs(request.project, agent)
        await self._messages.reset(agent)
        return await self._api.agent_json(request)

    async def compact_default(self, request: ApiRequest, compact: Compact) -> dict[str, Any]:
        """Summarise an agent's own conversation now."""
        uid = request.uid("agent", "agent_id")
        resolved = await self._api.registry.resolver.resolve_uid(request.project, uid)
        return await self.compact(request, compact, uid, resolved.spec, DEFAULT_CONVERSATION)

    async def compact(
        self, request: ApiRequest, compact: Compact, uid: str, spec: AgentSpec, conversation: str
    ) -> dict[str, Any]:
        """Summarises a conversation of an agent while no turn runs in it. conversation: as it is looked up."""
        api = self._api
        settings = merge_compaction({}, compact.compaction_settings)
        terms = SummaryTerms.of({**spec.definition.compaction, **settings})
        own_route = partial(agent_route, api.settings, spec)
        api.registry.resolver.check_model(terms.model)
        # Without a model for summaries the agent's own writes it.
        api.check_models(request, [terms.model or (None if api.compactor.default_model else spec.model)])
        admit = partial(api.runs.admit_call, info_of(request.http.scope).begin_receipt())
        with QueueTicket() as ticket:
            await api.keeper.queues.enter((uid, conversation), ticket, MAX_SENDS)
            agent = (await api.registry.get_entry(request.project, uid)).agent
            check_not_paused(agent)
            run_request = RunRequest(spec, agent.scope, conversation)
            prompt_before = await api.runs.preview(run_request)
            stored = await self._messages.conversation(agent, conversation)
            if stored is None or not stored.last_exchange:
                raise BadRequest("Only a stored conversation that has begun can be compacted by hand.")
            size = summary_tokens(prompt_before.target.context_window or UNKNOWN_WINDOW)
            text = await api.compactor.compact_now(agent, stored, terms, own_route, size, admit)
            prompt_after = await api.runs.preview(run_request)
        return {
            "summary": text,
            "num_messages_before": len(orjson.loads(prompt_before.body())["messages"]),
            "num_messages_after": len(orjson.loads(prompt_after.body())["messages"]),
        }

    async def cancel(self, request: ApiRequest, cancel: CancelRuns) -> dict[str, str]:
        """End an agent's runs."""
        agent = await self._api.agent(request)
        run_ids = sent_fields(cancel).get("run_ids")
        if not run_ids:
            return await self.cancel_runs(request.project, agent)
        ended = {}
        for id in run_ids:
            entry = await self._api.store.runs.get(request.project, uid_in("run", id))
            if entry.run.agent != agent.id:
                raise UnknownId(f"There is no run {id!r} of this agent.")
            ended[id] = (await self._cancel_run(request.project, entry)).state.value
        return ended

    async def _cancel_run(self, project: str, entry: RunEntry) -> Run:
        """Cancels a run that has not ended, or ended with calls that wait. Returns it as it is now."""
        if entry.run.stop != StopReason.REQUIRES_APPROVAL:
            return await self._api.runs.cancel(entry.run)
        resolved = await self._api.registry.resolver.resolve_uid(project, entry.agent_uid)
        run_request = RunRequest(resolved.spec, resolved.scope, entry.conversation)
        return await self._api.runs.cancel_waiting(run_request, entry.run)

    async def cancel_runs(
        self, project: str, agent: Agent, conversation: int | None = None
    ) -> dict[str, str]:
        """Cancels the newest thousand live runs of an agent, or of one of its conversations. Returns {run: state}."""
        live = RunFilter(agent.id, conversation, (RunState.CREATED, RunState.RUNNING))
        entries = await self._api.store.runs.list_runs(project, live, Page(limit=1000))
        return {
            ids.id_of("run", each.run.uid): (await self._api.runs.cancel(each.run)).state.value
            for each in entries
        }

    async def _changeable_place(self, agent: Agent, request: ApiRequest) -> Place:
        """Returns the place that the URL names, of a message that can be changed.

        Raises: UnknownId, BadRequest, NotFound.
        """
        place = _place_in_path(request)
        await self._check_owner(agent, place)
        if place.seq == SYSTEM_SEQ:
            raise BadRequest(
                "The system message is the agent's system prompt with its memory, made of them when it is asked for: "
                "change `system` of the agent, or its blocks.",
                param="message_id",
            )
        return place

    async def _cursor(self, agent: Agent, id: Any) -> Place | None:
        """Returns the place of a cursor in an agent's order. Raises: UnknownId, NotFound."""
        place = place_in("message", id)
        if place is None:
            return None
        await self._check_owner(agent, place)
        return Place(agent.uid, place.seq, place.hidden)

    async def _check_owner(self, agent: Agent, place: Place) -> None:
        """Raises: UnknownId, NotFound if a place is no message of this agent."""
        uid = place.uid
        if place.seq == SYSTEM_SEQ:
            uid = (await self._api.system_messages.owner_of(agent.scope.project, uid))[0].uid
        if uid != agent.uid:
            id = ids.id_at("message", place.uid, place.seq, hidden=place.hidden)
            raise UnknownId(f"There is no message {id!r} of this agent.")


def _place_in_path(request: ApiRequest) -> Place:
    """Returns the place that the URL names. Raises: UnknownId."""
    place = place_in("message", request.path["message_id"])
    assert place is not None
    return place


def _place_of(agent: Agent, view: MessageView | SystemMessage) -> Place:
    """Returns the place of a message in the order of its agent's messages."""
    if isinstance(view, MessageView):
        return Place(agent.uid, view.listed.seq, view.listed.hidden_index)
    return Place(agent.uid, SYSTEM_SEQ)


def _shows_system_message(newest_first: bool, before: Place | None, after: Place | None) -> bool:
    """Returns whether a page's cursors let the system message in. It has no row, and is older than all messages.

    Where the oldest come first it leads: any `after` leaves it out, and so does a `before` that names it. Where the
    newest come first it is the last: any `before` leaves it out, and so does an `after` that names it.
    """
    beyond, at_most = (before, after) if newest_first else (after, before)
    return beyond is None and (at_most is None or at_most.seq != SYSTEM_SEQ)


def _conversation(id: Any) -> str | None:
    """Returns the name by which a conversation is looked up; None if all are asked for."""
    if not isinstance(id, str):
        return None
    return DEFAULT_CONVERSATION if id == DEFAULT_CONVERSATION else uid_in("conv", id)


def _text_type(shown_types: Sequence[str], sent_type: str | None) -> str | None:
    """Returns the type of a message's text, which alone can change; None: it has no text.

    shown_types: a reply is shown as several messages: its text, its calls and their results.
    sent_type: of the one that the client names; None: it names none.

    Raises: BadRequest: the message named is none of these, or no text.
    """
    if sent_type is not None and sent_type not in shown_types:
        raise BadRequest(
            f"The message is {' and '.join(shown_types)}, not {sent_type}.", param="message_type"
        )
    text_type = next((each for each in shown_types if each in _TEXT_TYPES), None)
    if sent_type is not None and sent_type != text_type:
        raise BadRequest(f"Only texts can be changed, and this is {sent_type}.", param="message_type")
    return text_type
