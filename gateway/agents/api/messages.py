"""Stored messages: listed, changed, forgotten and summarised, and the end of the runs that write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.agents.api._message_pages import MessagePages, check_owner
from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._paging import MESSAGES
from gateway.agents.api._query import MessagesQuery, ResetQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.compaction import Compact, compact_on_request
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.named_conversation import get_owner, read_conversation_name
from gateway.agents.api.search import MessageSearchRoutes
from gateway.agents.runs.message_listing import AgentMessages, MessageView
from gateway.agents.runs.run import RunRequest
from gateway.agents.runs.system_message import SYSTEM_SEQ, SystemMessage
from gateway.agents.wire.message import Showing
from gateway.agents.wire.run_json import render_run_states
from gateway.agents.wire.send import CancelRuns, ResetMessages, UpdateMessage
from gateway.agents.wire.send_content import read_new_text
from gateway.agents.wire.sent_values import find_sent
from gateway.core.ids import ObjectRef
from gateway.core.turn.stop_reason import StopReason
from gateway.errors import BadRequest, UnknownId
from storage.listing import RunEntry
from storage.records import Agent
from storage.run_records import Run

# The types of messages whose text can be changed.
_TEXT_TYPES = frozenset({"assistant_message", "user_message", "system_message", "tool_return_message"})


class MessageRoutes:
    """The routes of messages."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._pages = MessagePages(api)
        self._messages = AgentMessages(api.store, api.now)

    def list_routes(self) -> list[AgentsRoute]:
        agent = "/v1/agents/{agent_id}"
        agent_messages = f"{agent}/messages"
        agent_message = f"{agent_messages}/{{message_id}}"
        return [
            AgentsRoute("GET", agent_messages, self.list_messages, paging=MESSAGES),
            AgentsRoute("POST", f"{agent_messages}/cancel", self.cancel),
            AgentsRoute("POST", f"{agent}/summarize", self.compact),
            AgentsRoute("PATCH", agent_message, self.update),
            AgentsRoute("DELETE", agent_message, self.delete),
            AgentsRoute("GET", agent_message, self.retrieve_agent_message),
            # Before the routes of messages, or `search` would be the id of a message.
            *MessageSearchRoutes(self._api).list_routes(),
            # Without the slash it is Anthropic's.
            AgentsRoute("GET", "/v1/messages", self.list_all, paging=MESSAGES, slashes=("/",)),
            AgentsRoute("GET", "/v1/messages/{message_id}", self.retrieve),
            AgentsRoute("PATCH", f"{agent}/reset-messages", self.reset),
        ]

    async def list_messages(self, request: ApiRequest, query: MessagesQuery) -> list[dict[str, Any]]:
        """List an agent's messages."""
        agent = await self._api.agents.get(request)
        return await self._pages.make_agent_page(agent, query, read_conversation_name(query.conversation_id))

    async def list_all(self, request: ApiRequest, query: MessagesQuery) -> list[dict[str, Any]]:
        """List the messages of all agents."""
        conversation_name = read_conversation_name(query.conversation_id)
        if conversation_name is None:
            return await self._pages.make_project_page(request.project, query)
        agent = await get_owner(self._api.store, request.project, conversation_name)
        return await self._pages.make_agent_page(agent, query, conversation_name)

    async def retrieve_agent_message(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Return a message."""
        agent = await self._api.agents.get(request)
        ref = request.read_ref("message", "message_id")
        await check_owner(self._api, agent, ref)
        return await self._render_message(request.project, ref)

    async def retrieve(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Return a message, whichever agent's it is."""
        return await self._render_message(request.project, request.read_ref("message", "message_id"))

    async def _render_message(self, project: str, ref: ObjectRef) -> list[dict[str, Any]]:
        """Returns the JSON of a stored message, which may be several messages. Raises: UnknownId, NotFound."""
        view: MessageView | SystemMessage
        if ref.seq == SYSTEM_SEQ:
            agent, conversation_name = await self._api.system_messages.find_conversation(project, ref.uid)
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
        showing = Showing(speaking_tool=None) if view.listed.is_result else Showing()
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
        # All runs are looked up before any is cancelled.
        project, entries = request.project, {}
        for run_id in run_ids:
            entries[run_id] = await self._api.store.runs.get(project, read_uid("run", run_id))
            if entries[run_id].run.agent_row != agent.id:
                raise UnknownId(f"There is no run {run_id!r} of this agent.")
        cancelled = {run_id: await self._cancel_run(project, entry) for run_id, entry in entries.items()}
        return {run_id: run.state.value for run_id, run in cancelled.items()}

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
        ref = request.read_ref("message", "message_id")
        await check_owner(self._api, agent, ref)
        if ref.seq == SYSTEM_SEQ:
            raise BadRequest(
                "The system message is the agent's system prompt with its memory, made of them when it is asked for: "
                "change `system` of the agent, or its blocks.",
                param="message_id",
            )
        return ref


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
