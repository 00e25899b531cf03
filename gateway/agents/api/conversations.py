"""Conversations of agents: made, listed, changed, forgotten, and continued by sends.

A path names a conversation by its id. `default` with an `agent_id`, or an agent's id alone, names the agent's own
conversation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.agents.api import conversation_bodies as bodies
from gateway.agents.api._message_pages import MessagePages
from gateway.agents.api._paging import CONVERSATION_MESSAGES, read_page_at
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.compaction import compact_on_request
from gateway.agents.api.dependencies import AgentsApi, read_sent_uid
from gateway.agents.api.named_conversation import NamedConversation, find_conversation_row, get_conversation
from gateway.agents.api.runs import RunStream, stream_run
from gateway.agents.api.sends import SendReply, Sends
from gateway.agents.registry.agent_models import check_model, with_conversation
from gateway.agents.registry.conversation_registry import AgentConversations
from gateway.agents.runs.message_listing import AgentMessages
from gateway.agents.runs.resend import hash_otid
from gateway.agents.runs.run import RunRequest
from gateway.agents.runs.system_message import SYSTEM_SEQ, make_system_id
from gateway.agents.wire.run_json import render_run_states
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Maybe
from gateway.core import ids
from gateway.core.definition import ConversationDefinition
from gateway.errors import BadRequest, UnknownId
from storage.listing import ConversationEntry, ConversationFilter
from storage.run_records import Run

_ARCHIVED_BY_STATUS = {"unarchived": False, "archived": True, "all": None}


class ConversationRoutes:
    """The routes of agents' conversations."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._conversations = AgentConversations(api.store, api.now)
        self._messages = AgentMessages(api.store, api.now)
        self._pages, self._sends = MessagePages(api), Sends(api)

    def list_routes(self) -> list[AgentsRoute]:
        conversations = "/v1/conversations"
        conversation = "/v1/conversations/{conversation_id:conversation}"
        return [
            AgentsRoute("GET", conversations, self.list_conversations, required_parameter="agent_id"),
            AgentsRoute("POST", conversations, self.create, required_parameter="agent_id"),
            AgentsRoute("GET", conversation, self.retrieve),
            AgentsRoute("PATCH", conversation, self.update),
            AgentsRoute("DELETE", conversation, self.delete),
            AgentsRoute("POST", f"{conversation}/fork", self.fork),
            AgentsRoute("POST", f"{conversation}/recompile", self.recompile),
            AgentsRoute("POST", f"{conversation}/compact", self.compact),
            AgentsRoute("POST", f"{conversation}/stream", self.stream),
            AgentsRoute("POST", f"{conversation}/cancel", self.cancel),
            AgentsRoute("GET", f"{conversation}/messages", self.list_messages, paging=CONVERSATION_MESSAGES),
            AgentsRoute("POST", f"{conversation}/messages", self.send),
        ]

    # -- conversations

    async def list_conversations(
        self, request: ApiRequest, query: bodies.ConversationsQuery
    ) -> list[dict[str, Any]]:
        """List conversations."""
        agent = await self._api.agents.find_by_sent_id(request.project, query.agent_id)
        conversation_filter = ConversationFilter(
            None if agent is None else agent.id,
            text=find_sent(query.summary_search),
            is_archived=_ARCHIVED_BY_STATUS[query.archive_status],
            order=query.sorting,
        )
        page = read_page_at(query, partial(read_uid, "conv"))
        entries = await self._api.store.conversations.list_page(request.project, conversation_filter, page)
        return [bodies.render_conversation(entry) for entry in entries]

    async def create(
        self, request: ApiRequest, query: bodies.CreateConversationQuery, body: bodies.CreateConversation
    ) -> dict[str, Any]:
        """Make a conversation of an agent."""
        agent = await self._api.agents.get_by_id(request.project, query.agent_id)
        self._check_model(request, body)
        definition = bodies.with_conversation_update(ConversationDefinition(), body, at=self._api.now())
        return await self._render_conversation(await self._conversations.create(agent, definition))

    async def retrieve(self, request: ApiRequest, query: bodies.ConversationQuery) -> dict[str, Any]:
        """Return a conversation."""
        return await self._render_conversation(await self._get_entry(request, query.agent_id))

    async def update(self, request: ApiRequest, body: bodies.UpdateConversation) -> dict[str, Any]:
        """Change a conversation."""
        entry = await self._get_entry(request)
        self._check_model(request, body)

        def edit(definition: ConversationDefinition) -> ConversationDefinition:
            return bodies.with_conversation_update(definition, body, at=self._api.now())

        changed_entry = await self._conversations.change(request.project, entry.conversation.uid, edit)
        return await self._render_conversation(changed_entry)

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Forget a conversation, and all that came of it."""
        entry = await self._get_entry(request)
        await self._api.agent_runs.live.cancel_all(entry.agent, entry.conversation.id)
        await self._conversations.delete(entry)
        return {"message": "The conversation is forgotten."}

    async def fork(self, request: ApiRequest, query: bodies.ForkConversationQuery) -> dict[str, Any]:
        """Make a conversation that shares the past of another one."""
        conversation = await self._get_conversation(request, query.agent_id)
        message_id = find_sent(query.message_id)
        upto = None if message_id is None else _read_seq(conversation, message_id)
        source = await find_conversation_row(self._api.store, conversation)
        fork = await self._conversations.fork(
            conversation.agent, source, conversation.definition, is_hidden=query.hidden, upto=upto
        )
        return await self._render_conversation(fork)

    async def recompile(
        self,
        request: ApiRequest,
        query: bodies.RecompileConversationQuery,
        body: bodies.RecompileConversation,
    ) -> str:
        """Render the memory section of a conversation again, and return its system prompt."""
        conversation = await self._get_conversation(request, find_sent(body.agent_id) or query.agent_id)
        row = None if query.dry_run else await find_conversation_row(self._api.store, conversation)
        if row is not None:
            await self._api.store.sections.empty_of_conversation(conversation.agent.id, row)
        run_request = await self._make_run_request(request, conversation)
        return (await self._api.agent_runs.preview(run_request)).system

    async def compact(self, request: ApiRequest, body: bodies.CompactConversation) -> dict[str, Any]:
        """Summarise a conversation now."""
        conversation = await self._get_conversation(request, body.agent_id)
        run_request = await self._make_run_request(request, conversation)
        return await compact_on_request(self._api, request, body, conversation.agent.uid, run_request)

    async def cancel(self, request: ApiRequest, query: bodies.ConversationQuery) -> dict[str, str]:
        """End a conversation's runs."""
        conversation = await self._get_conversation(request, query.agent_id)
        row = await find_conversation_row(self._api.store, conversation)
        runs = [] if row is None else await self._api.agent_runs.live.cancel_all(conversation.agent, row)
        return render_run_states(runs)

    # -- messages of conversations

    async def list_messages(
        self, request: ApiRequest, query: bodies.ConversationMessagesQuery
    ) -> list[dict[str, Any]]:
        """List a conversation's messages."""
        conversation = await self._get_conversation(request, query.agent_id)
        return await self._pages.make_agent_page(conversation.agent, query, conversation.name)

    async def send(
        self, request: ApiRequest, body: bodies.ConversationSend
    ) -> dict[str, Any] | SendReply | RunStream:
        """Send a message in a conversation, and answer with what the agent says, by default as a stream."""
        conversation = await self._get_conversation(request, body.agent_id)
        run_request = await self._sends.make_run_request(
            request,
            body,
            conversation.agent.uid,
            conversation_name=conversation.name,
            conversation_definition=conversation.definition,
        )
        return await self._sends.reply_to(request, body, run_request, is_stream=body.streaming)

    async def stream(self, request: ApiRequest, body: bodies.StreamConversation) -> RunStream:
        """Stream the events of a conversation's run.

        The run is the one that is named, which may have ended; else the conversation's newest run, if it is active.
        """
        conversation = await self._get_conversation(request, body.agent_id)
        row = await find_conversation_row(self._api.store, conversation)
        runs = self._api.store.runs
        if (run_id := find_sent(body.run_id)) is not None:
            run: Run | None = (await runs.get(request.project, read_uid("run", run_id))).run
        elif (otid := find_sent(body.otid)) is not None:
            run = await runs.find_run_by_otid(
                conversation.agent.id, hash_otid(conversation.agent, conversation.name, otid)
            )
        else:
            run = None if row is None else await runs.find_newest_run(conversation.agent.id, row)
            if run is None or run.is_over:
                raise BadRequest(
                    "No active runs found for this conversation. Name one that has ended: `run_id`."
                )
        if run is None or run.conversation_row != row:
            raise UnknownId("There is no such run in this conversation.")
        return stream_run(self._api, request, body, run)

    # -- the parts of requests

    def _check_model(self, request: ApiRequest, body: bodies.CreateConversation) -> None:
        """Raises: UnknownModel; NotAllowed if the caller's key may not ask for the model in a body."""
        model = find_sent(body.model) or None
        check_model(self._api.settings, model)
        self._api.check_models(request, [model])

    async def _get_conversation(self, request: ApiRequest, agent_id: Maybe[str]) -> NamedConversation:
        """Returns the conversation in the path. Raises: UnknownId, BadRequest.

        agent_id: the id of the conversation's agent, as the request has it.
        """
        agent_uid = read_sent_uid("agent", agent_id)
        path_id = request.path_params["conversation_id"]
        return await get_conversation(self._api, request.project, path_id, agent_uid)

    async def _get_entry(self, request: ApiRequest, agent_id: Maybe[str] = None) -> ConversationEntry:
        """Returns the conversation in the path, which a client has made.

        Raises: BadRequest for an agent's own conversation, which other paths serve; the errors of `_get_conversation`.
        """
        conversation = await self._get_conversation(request, agent_id)
        if conversation.entry is not None:
            return conversation.entry
        path = f"/v1/agents/{ids.make_id('agent', conversation.agent.uid)}"
        raise BadRequest(f"This is the agent's own conversation: use {path} and its reset-messages.")

    async def _make_run_request(self, request: ApiRequest, conversation: NamedConversation) -> RunRequest:
        """Returns a send without messages to a conversation, with the conversation's settings."""
        resolved = await self._api.registry.resolver.resolve_uid(request.project, conversation.agent.uid)
        spec = with_conversation(self._api.settings, resolved.spec, conversation.definition)
        return RunRequest(spec, conversation.agent.scope, conversation.name)

    async def _render_conversation(self, entry: ConversationEntry) -> dict[str, Any]:
        """Returns the JSON of a conversation, with the ids of its newest messages."""
        agent = entry.agent
        numbers = await self._messages.list_numbers(agent, entry.conversation.uid)
        system = make_system_id(agent, entry.conversation.uid)
        message_ids = [system, *(ids.make_id_with_seq("message", agent.uid, seq) for seq in numbers)]
        return bodies.render_conversation(entry, message_ids=message_ids)


def _read_seq(conversation: NamedConversation, message_id: str) -> int:
    """Returns the number of a message of a conversation; 0 for its system message. Raises: UnknownId."""
    ref = ids.parse_ref("message", message_id)
    if ids.without_attempt(message_id) == make_system_id(conversation.agent, conversation.name):
        return SYSTEM_SEQ
    if ref is None or not ref.seq or ref.uid != conversation.agent.uid:
        raise UnknownId(f"There is no message {message_id!r} in this conversation.", param="message_id")
    return ref.seq
