"""Sends to agents: whole replies, and streams of steps or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from msgspec.structs import replace
from starlette.types import Receive
from starlette.types import Scope as AsgiScope
from starlette.types import Send as AsgiSend

from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._pinging import PingingSink
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.run_events import options_of, view_of
from gateway.agents.api.runs import RunStream, run_entry_json, run_result_json
from gateway.agents.runs.run import RunRequest, RunResult, RunStart
from gateway.agents.wire.message import Showing, showing_of, summary_json
from gateway.agents.wire.run_json import end_events, result_json
from gateway.agents.wire.run_stream import event, ping_event
from gateway.agents.wire.send import Send, read_send, with_skills
from gateway.agents.wire.sent_values import sent_fields
from gateway.core.definition import ConversationDefinition
from gateway.core.request.identity import refuse_unstored
from gateway.core.request.request_headers import headers_for_upstream
from gateway.core.turn.client_view import MakesView
from gateway.core.turn.round import DONE_EVENT, EVENT_STREAM
from gateway.errors import BadRequest
from gateway.run.call import Forwarded
from gateway.run.receipt import Receipt
from gateway.run.sink import HeldSink
from gateway.web.client_reply import ClientReply
from gateway.web.middleware import info_of
from storage.records import DEFAULT_CONVERSATION, Run


class Sends:
    """Begins sends: to an agent, or in one of its conversations."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    async def begin(
        self,
        request: ApiRequest,
        send: Send,
        uid: str,
        *,
        is_stream: bool,
        conversation_name: str = DEFAULT_CONVERSATION,
        conversation_definition: ConversationDefinition | None = None,
    ) -> dict[str, Any] | SendReply | RunStream:
        """Returns the reply to a send.

        uid: that of the agent.
        conversation_definition: the model and settings that the conversation has of its own, if any.
        """
        if sent_fields(send).get("callback_url") and not send.background:
            raise BadRequest(
                "Only runs in the background call back: send `background`.", param="callback_url"
            )
        run_request = await self.run_request(
            request,
            send,
            uid,
            conversation_name=conversation_name,
            conversation_definition=conversation_definition,
        )
        if not send.background:
            return SendReply(self._api, request, send, run_request, is_stream)
        run = await self.accept(request, send, run_request, by_token=is_stream and send.stream_tokens)
        if is_stream:
            return RunStream(self._api, run, include_pings=send.include_pings, headers=request.headers)
        run = await self._api.background.wait_for_end(run)
        return await run_result_json(self._api, run, showing_of(send))

    async def accept(
        self,
        request: ApiRequest,
        send: Send,
        run_request: RunRequest,
        *,
        by_token: bool,
        is_shown: bool = True,
    ) -> Run:
        """Accepts a send as a run in the background.

        by_token: its events are shown token by token.
        is_shown: its events are logged.

        Raises: LimitReached, NotAllowed if the key may not ask for this model.
        """
        info = info_of(request.http.scope)
        info.model = run_request.spec.model
        receipt = info.begin_receipt()
        # The steps ask for themselves what they may use, and are counted as the run's.
        receipt.asks_model = False
        await self._api.runs.admit(run_request, receipt)
        showing = showing_of(send)
        shown = options_of(showing, by_token=by_token)
        return await self._api.background.accept(
            run_request,
            callback=sent_fields(send).get("callback_url"),
            shown=shown if is_shown else None,
            listing=None if showing == Showing() else orjson.dumps(shown),
        )

    async def run_request(
        self,
        request: ApiRequest,
        send: Send,
        uid: str,
        *,
        conversation_name: str = DEFAULT_CONVERSATION,
        conversation_definition: ConversationDefinition | None = None,
    ) -> RunRequest:
        """Returns what a send asks of an agent. The parameters are those of `begin`."""
        refuse_unstored(request.http.scope["headers"])
        content = read_send(send)
        resolved = await self._api.registry.resolver.resolve_uid(request.project, uid)
        fields = sent_fields(send)
        spec = resolved.spec
        if conversation_definition is not None:
            spec = self._api.registry.resolver.with_conversation(spec, conversation_definition)
        if (model := fields.get("override_model")) is not None:
            spec = self._api.registry.resolver.with_model(spec, model)
        system = fields.get("override_system")
        if skills := fields.get("client_skills"):
            system = with_skills(spec.system if system is None else system, skills)
        if system is not None:
            spec = replace(spec, system=system)
        scope = request.http.scope
        caller = info_of(scope).caller
        forwarded = Forwarded(
            headers_for_upstream(scope["headers"]), caller.credential, caller.models, caller.key
        )
        return RunRequest(
            spec,
            resolved.scope,
            conversation_name,
            messages=content.messages,
            decisions=content.answers,
            fields=spec.definition.sampling,
            client_tools=tuple(_offered(tool) for tool in fields.get("client_tools") or ()),
            max_steps=send.max_steps,
            otid=content.otid,
            is_retry=request.http.headers.get("x-stainless-retry-count", "0") != "0",
            forwarded=forwarded,
            model=fields.get("override_model"),
            system=system,
        )


class SendRoutes:
    """The routes that send an agent messages."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._sends = Sends(api)

    def routes(self) -> list[AgentsRoute]:
        agent_messages = "/v1/agents/{agent_id}/messages"
        return [
            AgentsRoute("POST", agent_messages, self.send),
            AgentsRoute("POST", f"{agent_messages}/stream", self.stream),
            AgentsRoute("POST", f"{agent_messages}/async", self.send_async),
            AgentsRoute("POST", f"{agent_messages}/preview-raw-payload", self.preview),
        ]

    async def preview(self, request: ApiRequest, send: Send) -> dict[str, Any]:
        """Return what would go to the model with a message, and send nothing."""
        run_request = await self._sends.run_request(request, send, request.uid("agent", "agent_id"))
        request_body: dict[str, Any] = orjson.loads((await self._api.runs.preview(run_request)).body())
        return request_body

    async def send(self, request: ApiRequest, send: Send) -> dict[str, Any] | SendReply | RunStream:
        """Send a message to an agent, and answer with what it says."""
        return await self._sends.begin(
            request, send, request.uid("agent", "agent_id"), is_stream=send.streaming
        )

    async def stream(self, request: ApiRequest, send: Send) -> dict[str, Any] | SendReply | RunStream:
        """Send a message, and stream what it says."""
        return await self._sends.begin(request, send, request.uid("agent", "agent_id"), is_stream=True)

    async def send_async(self, request: ApiRequest, send: Send) -> dict[str, Any]:
        """Send a message, and answer with the run that goes on without its client."""
        run_request = await self._sends.run_request(request, send, request.uid("agent", "agent_id"))
        run = await self._sends.accept(request, send, run_request, by_token=False, is_shown=False)
        return run_entry_json(await self._api.store.runs.get(request.project, run.uid))


@dataclass(slots=True)
class SendReply:
    """The reply to a send, which it writes itself."""

    api: AgentsApi
    request: ApiRequest
    send: Send
    run_request: RunRequest
    is_stream: bool
    # What is shown in front of the first reply.
    _before: Sequence[dict[str, Any]] = ()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: AsgiSend) -> None:
        info = info_of(scope)
        info.model, info.stream, info.memory = self.run_request.spec.model, self.is_stream, "on"
        receipt = info.begin_receipt()
        receipt.headers |= self.request.headers
        with ClientReply(scope, receive, send, self.api.send_timeout_s) as reply:
            await (self._streamed(reply, receipt) if self.is_stream else self._whole(reply, receipt))

    async def _whole(self, reply: ClientReply, receipt: Receipt) -> None:
        held = HeldSink(reply)
        result = await self.api.runs.send(self.run_request, self._view, held, receipt)
        if result.status != 200:
            await reply.send_body(result.status, held.headers, bytes(held.body))
            return
        with reply.while_here():
            shown = await self._messages_json(result)
        body = result_json(shown, result.run, result.started_runs, result.last_counts)
        headers = [*receipt.note_head(), ("content-type", "application/json")]
        await reply.send_body(200, headers, orjson.dumps(body))

    async def _streamed(self, reply: ClientReply, receipt: Receipt) -> None:
        interval_s = self.api.ping_s if self.send.include_pings else 0.0
        with PingingSink(reply, interval_s, headers=[*self.request.headers.items(), EVENT_STREAM]) as sink:

            def view(start: RunStart) -> MakesView:
                sink.ping = ping_event(start.run, self.api.now())
                return self._view(start)

            result = await self.api.runs.send(self.run_request, view, sink, receipt)
            if sink.has_started or result.status != 200:
                return
            # Nothing was asked of the model: the send is answered already, or waits for more answers.
            with sink.while_here():
                shown = await self._messages_json(result)
            sink.start(200, [*receipt.note_head(), EVENT_STREAM])
            events = [*shown, *end_events(result.run, result.last_counts)]
            await sink.write(b"".join(map(event, events)) + DONE_EVENT)
            await sink.end()

    def _view(self, start: RunStart) -> MakesView:
        showing, by_token = showing_of(self.send), self.is_stream and self.send.stream_tokens
        if start.summary is not None:
            self._before = summary_json(start.summary, start.agent.uid, showing)
        return view_of(start, showing, self.api.now, by_token=by_token, before=self._before)

    async def _messages_json(self, result: RunResult) -> list[dict[str, Any]]:
        renderer = MessageRenderer(self.api.store, result.agent, showing_of(self.send))
        return [*self._before, *await renderer.output_messages(result.run, result.steps)]


def _offered(tool: Any) -> dict[str, Any]:
    """Returns a client's tool as it goes upstream."""
    fields = sent_fields(tool)
    parameters = fields.get("parameters") or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": fields.get("description") or "", "parameters": parameters}
    return {"type": "function", "function": function}
