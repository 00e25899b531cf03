"""Stored messages: list, change, forget, reset; and end runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.agents.api._message_pages import MessagePages, check_owner
from gateway.agents.api._message_renderer import MessageRenderer, make_conversation_id
from gateway.agents.api._paging import MESSAGES, read_ref
from gateway.agents.api._query import MessagesQuery, ResetQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.compaction import Compact, compact_on_request
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.passages import read_moment
from gateway.agents.api.search import TEXT_FIELDS, Hit, SearchAgents, SearchMessages
from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.agents.runs.message_search import MessageSearch
from gateway.agents.runs.run import RunRequest
from gateway.agents.runs.system_message import SYSTEM_SEQ, SystemMessage
from gateway.agents.wire.message import Showing
from gateway.agents.wire.run_json import render_run_states
from gateway.agents.wire.send import CancelRuns, ResetMessages, UpdateMessage
from gateway.agents.wire.send_content import read_new_text
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Maybe
from gateway.core import ids
from gateway.core.ids import ObjectRef
from gateway.core.turn.stop_reason import StopReason
from gateway.errors import BadRequest, UnknownId
from storage.listing import AgentFilter, Page, RunEntry
from storage.records import DEFAULT_CONVERSATION, Agent
from storage.run_records import Run

_MAX_SEARCHED_AGENTS = 64
_TEXT_TYPES = frozenset({"assistant_message", "user_message", "system_message", "tool_return_message"})


class MessageRoutes:
    """The routes of messages."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._pages = MessagePages(api)
        self._messages = AgentMessages(api.store, api.now)
        self._search = MessageSearch(api.store, self._messages, api.keeper.embed_query)

    def list_routes(self) -> list[AgentsRoute]:
        agent = "/v1/agents/{agent_id}"
        agent_messages = f"{agent}/messages"
        agent_message = f"{agent_messages}/{{message_id}}"
        return [
            AgentsRoute("GET", agent_messages, self.list_messages, pages=MESSAGES),
            AgentsRoute("POST", f"{agent_messages}/cancel", self.cancel),
            AgentsRoute("POST", f"{agent}/summarize", self.compact),
            AgentsRoute("PATCH", agent_message, self.update),
            AgentsRoute("DELETE", agent_message, self.delete),
            AgentsRoute("GET", agent_message, self.retrieve_of_agent),
            AgentsRoute("POST", "/v1/messages/search", self.search),
            AgentsRoute("POST", "/v1/agents/messages/search", self.search_agents),
            # Without the slash it is Anthropic's.
            AgentsRoute("GET", "/v1/messages", self.list_all, pages=MESSAGES, slashes=("/",)),
            AgentsRoute("GET", "/v1/messages/{message_id}", self.retrieve),
            AgentsRoute("PATCH", f"{agent}/reset-messages", self.reset),
        ]

    async def list_messages(self, request: ApiRequest, query: MessagesQuery) -> list[dict[str, Any]]:
        """List an agent's messages."""
        agent = await self._api.agents.get(request)
        return await self._pages.list_of_agent(agent, query, _read_conversation_name(query.conversation_id))

    async def list_all(self, request: ApiRequest, query: MessagesQuery) -> list[dict[str, Any]]:
        """List the messages of all agents."""
        conversation_name = _read_conversation_name(query.conversation_id)
        if conversation_name is None:
            return await self._pages.list_of_project(request.project, query)
        agent = await self._get_owner(request.project, conversation_name)
        return await self._pages.list_of_agent(agent, query, conversation_name)

    async def retrieve_of_agent(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Return a message."""
        agent = await self._api.agents.get(request)
        ref = read_ref("message", request.path["message_id"])
        await check_owner(self._api, agent, ref)
        return await self._render_message(request.project, ref)

    async def retrieve(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Return a message, whichever agent's it is."""
        return await self._render_message(request.project, read_ref("message", request.path["message_id"]))

    async def search(self, request: ApiRequest, body: SearchMessages) -> list[dict[str, Any]]:
        """Search messages."""
        return [hit.render() for hit in await self._load_hits(request.project, body)]

    async def search_agents(self, request: ApiRequest, body: SearchAgents) -> list[dict[str, Any]]:
        """Search messages (0.16)."""
        return [hit.render_as_older() for hit in await self._load_hits(request.project, body)]

    async def _load_hits(self, project: str, search: SearchMessages) -> list[Hit]:
        """Returns the messages with text that a search finds, best first. Raises: BadRequest."""
        if search.search_mode == "vector" and self._api.keeper.embed_query is None:
            raise BadRequest(
                "There is no embedder (memory.embedder), so messages are searched by words.",
                param="search_mode",
            )
        agents, conversation_name = await self._load_search_scope(project, search)
        found = await self._search.search(
            agents,
            search.query,
            roles=find_sent(search.roles) or ("user", "assistant"),
            since=read_moment(search.start_date, ("body", "start_date")),
            until=read_moment(search.end_date, ("body", "end_date"), is_end=True),
            limit=search.limit,
            by_meaning=search.search_mode != "fts",
            conversation_name=conversation_name,
        )
        return [
            Hit(message, rank, ids.make_id("agent", agent.uid), conversation_id)
            for rank, (agent, view) in enumerate(found)
            for conversation_id in [make_conversation_id(view.conversation_uid, view.key)]
            for message in MessageRenderer(self._api.store, agent, Showing()).render_message(view)
            if message["message_type"] in TEXT_FIELDS
        ]

    async def _load_search_scope(
        self, project: str, search: SearchMessages
    ) -> tuple[Sequence[Agent], str | None]:
        """Returns the agents to search, and the name of the only conversation to search; None: all conversations.

        Raises: BadRequest.
        """
        conversation_name = _read_conversation_name(search.conversation_id)
        if (agent := await self._api.agents.find_sent(project, search.agent_id)) is not None:
            return [agent], conversation_name
        if conversation_name is not None:
            return [await self._get_owner(project, conversation_name)], conversation_name
        all_agents = AgentFilter(includes_hidden=True, order="completed")
        page: Page[str] = Page(limit=_MAX_SEARCHED_AGENTS + 1)
        entries = await self._api.store.defined_agents.list(project, all_agents, page)
        if len(entries) > _MAX_SEARCHED_AGENTS:
            raise BadRequest(
                f"A search asks {_MAX_SEARCHED_AGENTS} agents at most, and there are more: name one.",
                param="agent_id",
            )
        return [entry.agent for entry in entries], None

    async def _get_owner(self, project: str, conversation_name: str) -> Agent:
        """Returns the agent of a conversation. Raises: NotFound; BadRequest for `default`, which each agent has."""
        if conversation_name == DEFAULT_CONVERSATION:
            raise BadRequest(
                "Each agent has a conversation `default`: name it by its id.", param="conversation_id"
            )
        return (await self._api.store.conversations.get(project, conversation_name)).agent

    async def _render_message(self, project: str, ref: ObjectRef) -> list[dict[str, Any]]:
        """Returns the JSON of a stored message, which may be several messages. Raises: UnknownId, NotFound."""
        view: MessageView | SystemMessage
        if ref.seq == SYSTEM_SEQ:
            agent, conversation_name = await self._api.system_messages.find_owner(project, ref.uid)
            view = await self._api.system_messages.render(agent, conversation_name)
        else:
            agent = (await self._api.store.defined_agents.get(project, ref.uid)).agent
            view = await self._messages.get(agent, ref)
        return MessageRenderer(self._api.store, agent, Showing()).render_message(view)

    async def update(self, request: ApiRequest, body: UpdateMessage) -> dict[str, Any]:
        """Give a message another text."""
        agent = await self._api.agents.get(request)
        ref = await self._read_changeable_ref(agent, request)
        text = read_new_text(body)
        view = await self._messages.get(agent, ref)
        # If calls are shown as text, results are left out. So to show a result, calls are shown as calls.
        showing = Showing(speaks=None) if view.listed.is_result else Showing()
        renderer = MessageRenderer(self._api.store, agent, showing)
        shown_types = [message["message_type"] for message in renderer.render_message(view)]
        text_type = _choose_text_type(shown_types, find_sent(body.message_type))
        rewritten = renderer.render_message(await self._messages.rewrite(agent, ref, text))
        return next((message for message in rewritten if message["message_type"] == text_type), rewritten[-1])

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a message, and what was made of it."""
        agent = await self._api.agents.get(request)
        await self._messages.delete(agent, await self._read_changeable_ref(agent, request))
        return {"message": "The message is forgotten."}

    async def reset(self, request: ApiRequest, _: ResetQuery, _body: ResetMessages) -> dict[str, Any]:
        """End an agent's runs, and forget the messages of its own conversation.

        What was learned, saved and written into blocks stays.
        """
        agent = await self._api.agents.get(request)
        await self._api.agent_runs.live.cancel_all(agent)
        await self._messages.reset(agent)
        return await self._api.agents.render_requested(request)

    async def compact(self, request: ApiRequest, body: Compact) -> dict[str, Any]:
        """Summarise an agent's own conversation now."""
        resolved = await self._api.agents.resolve(request)
        run_request = RunRequest(resolved.spec, resolved.scope)
        uid = request.read_uid("agent", "agent_id")
        return await compact_on_request(self._api, request, body, uid, run_request)

    async def cancel(self, request: ApiRequest, body: CancelRuns) -> dict[str, str]:
        """End an agent's runs, or those of them that are named."""
        agent = await self._api.agents.get(request)
        run_ids = find_sent(body.run_ids)
        if not run_ids:
            return render_run_states(await self._api.agent_runs.live.cancel_all(agent))
        entries = {}
        for id in run_ids:
            entries[id] = await self._api.store.runs.get(request.project, read_uid("run", id))
            if entries[id].run.agent_row != agent.id:
                raise UnknownId(f"There is no run {id!r} of this agent.")
        cancelled = {id: await self._cancel_run(request.project, entry) for id, entry in entries.items()}
        return {id: run.state.value for id, run in cancelled.items()}

    async def _cancel_run(self, project: str, entry: RunEntry) -> Run:
        """Cancels a run that has not ended, or whose calls wait for answers. Returns the run as it is now."""
        if entry.run.stop != StopReason.REQUIRES_APPROVAL:
            return await self._api.agent_runs.live.cancel(entry.run)
        resolved = await self._api.registry.resolver.resolve_uid(project, entry.agent_uid)
        run_request = RunRequest(resolved.spec, resolved.scope, entry.conversation_name)
        return await self._api.agent_runs.cancel_waiting(run_request, entry.run)

    async def _read_changeable_ref(self, agent: Agent, request: ApiRequest) -> ObjectRef:
        """Returns the reference to the message in the path, after a check that it can be changed.

        Raises: UnknownId, BadRequest, NotFound.
        """
        ref = read_ref("message", request.path["message_id"])
        await check_owner(self._api, agent, ref)
        if ref.seq == SYSTEM_SEQ:
            raise BadRequest(
                "The system message is the agent's system prompt with its memory, made of them when it is asked for: "
                "change `system` of the agent, or its blocks.",
                param="message_id",
            )
        return ref


def _read_conversation_name(id: Maybe[str]) -> str | None:
    """Returns the name by which a conversation is looked up; None if no conversation was named."""
    sent_id = find_sent(id)
    return sent_id if sent_id in (None, DEFAULT_CONVERSATION) else read_uid("conv", sent_id)


def _choose_text_type(shown_types: Sequence[str], sent_type: str | None) -> str | None:
    """Returns the type of the text among the shown messages of one stored message; None if no text is shown.

    Only a text can be changed.

    shown_types: the types of the shown messages. A reply is shown as several: its text, its calls and their results.
    sent_type: the type of the message that the client asks to change; None: the client names no type.

    Raises: BadRequest if `sent_type` is not shown, or is no text.
    """
    if sent_type is not None and sent_type not in shown_types:
        raise BadRequest(
            f"The message is {' and '.join(shown_types)}, not {sent_type}.", param="message_type"
        )
    text_type = next((shown_type for shown_type in shown_types if shown_type in _TEXT_TYPES), None)
    if sent_type is not None and sent_type != text_type:
        raise BadRequest(f"Only texts can be changed, and this is {sent_type}.", param="message_type")
    return text_type
