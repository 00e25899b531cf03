"""Sends to agents: whole replies, and streams of steps or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive
from starlette.types import Scope as AsgiScope
from starlette.types import Send as AsgiSend

from adapters.types import EVENT_STREAM_HEADER, JSON_HEADER
from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._pinging import PingingSink
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.run_events import dump_showing, make_factory
from gateway.agents.api.runs import RunStream, render_run_result
from gateway.agents.registry.agent_models import with_conversation, with_overrides
from gateway.agents.runs.run import RunOutput, RunRequest, RunResult, RunStart
from gateway.agents.wire.message import Showing, read_showing, render_summary
from gateway.agents.wire.run_json import make_end_events, render_result, render_run
from gateway.agents.wire.run_stream import make_ping
from gateway.agents.wire.send import ClientTool, Send
from gateway.agents.wire.send_content import read_send, with_skills
from gateway.agents.wire.sent_values import find_sent, get_sent_or
from gateway.core.definition import ConversationDefinition
from gateway.core.request.memory_mode import refuse_unstored
from gateway.core.request.request_headers import list_headers_for_upstream
from gateway.core.turn.client_view import ViewFactory
from gateway.core.turn.round import DONE_EVENT
from gateway.dialects.event_stream import encode_event
from gateway.errors import BadRequest
from gateway.run.call import Forwarded
from gateway.run.memory.prompt_body import make_body
from gateway.run.receipt import Receipt
from gateway.run.sink import HeldSink
from gateway.web.client_reply import ClientReply
from gateway.web.request_info import get_request_info
from gateway.web.resent_request import is_retry
from storage.records import DEFAULT_CONVERSATION
from storage.run_records import Run

# The definition of a conversation without settings of its own.
_NO_SETTINGS = ConversationDefinition()


class Sends:
    """Begins sends: to an agent, or in one of its conversations."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    async def reply_to(
        self, request: ApiRequest, body: Send, run_request: RunRequest, *, is_stream: bool
    ) -> dict[str, Any] | SendReply | RunStream:
        """Returns the reply to a send: one that writes itself, or the reply of a run in the background."""
        if find_sent(body.callback_url) and not body.background:
            raise BadRequest(
                "Only runs in the background call back: send `background`.", param="callback_url"
            )
        if not body.background:
            return SendReply(
                api=self._api, request=request, body=body, run_request=run_request, is_stream=is_stream
            )
        run = await self.accept(request, body, run_request, by_token=is_stream and body.stream_tokens)
        if is_stream:
            return RunStream(self._api, run, sends_pings=body.include_pings, headers=request.headers)
        run = await self._api.background_runs.follower.wait_for_end(run)
        return await render_run_result(self._api, run, read_showing(body))

    async def accept(
        self,
        request: ApiRequest,
        body: Send,
        run_request: RunRequest,
        *,
        by_token: bool,
        is_shown: bool = True,
    ) -> Run:
        """Accepts a send as a run in the background.

        by_token: True if the events of the run are shown token by token.
        is_shown: True if the events of the run are logged.

        Raises: LimitReached; NotAllowed if the key may not ask for this model; the errors of `RunAcceptance.accept`.
        """
        info = get_request_info(request.http.scope)
        info.model = run_request.spec.model
        receipt = info.begin_receipt()
        # The steps of the run ask the limits themselves, and have receipts of their own.
        receipt.asks_model = False
        await self._api.agent_runs.admit(run_request, receipt)
        showing = read_showing(body)
        options = dump_showing(showing, by_token=by_token)
        return await self._api.background_runs.acceptance.accept(
            run_request,
            callback=find_sent(body.callback_url),
            event_options=options if is_shown else None,
            listing=None if showing == Showing() else orjson.dumps(options),
        )

    async def make_run_request(
        self,
        request: ApiRequest,
        body: Send,
        uid: str,
        *,
        conversation_name: str = DEFAULT_CONVERSATION,
        conversation_definition: ConversationDefinition = _NO_SETTINGS,
    ) -> RunRequest:
        """Returns the run that a send asks for. Raises: BadRequest, Unprocessable, UnknownModel, NotFound.

        uid: the uid of the agent.
        conversation_definition: the definition of the conversation, with its own model and settings.
        """
        scope = request.http.scope
        refuse_unstored(scope["headers"])
        content = read_send(body)
        settings = self._api.settings
        resolved = await self._api.registry.resolver.resolve_uid(request.project, uid)
        model, system = find_sent(body.override_model), _read_system(body, resolved.spec.system)
        spec = with_conversation(settings, resolved.spec, conversation_definition)
        spec = with_overrides(settings, spec, model, system)
        caller = get_request_info(scope).caller
        forwarded = Forwarded(
            list_headers_for_upstream(scope["headers"]), caller.credential, caller.models, caller.key_id
        )
        return RunRequest(
            spec=spec,
            scope=resolved.scope,
            conversation_name=conversation_name,
            messages=content.messages,
            decisions=content.answers,
            fields=spec.definition.sampling,
            client_tools=tuple(map(_render_tool, find_sent(body.client_tools) or ())),
            max_steps=body.max_steps,
            otid=content.otid,
            is_retry=is_retry(scope),
            forwarded=forwarded,
            model=model,
            system=system,
        )


class SendRoutes:
    """The routes that send an agent messages."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._sends = Sends(api)

    def list_routes(self) -> list[AgentsRoute]:
        agent_messages = "/v1/agents/{agent_id}/messages"
        return [
            AgentsRoute("POST", agent_messages, self.send),
            AgentsRoute("POST", f"{agent_messages}/stream", self.stream),
            AgentsRoute("POST", f"{agent_messages}/async", self.send_async),
            AgentsRoute("POST", f"{agent_messages}/preview-raw-payload", self.preview),
        ]

    async def preview(self, request: ApiRequest, body: Send) -> dict[str, Any]:
        """Return what would go to the model with a message, and send nothing."""
        run_request = await self._make_run_request(request, body)
        return make_body(await self._api.agent_runs.preview(run_request))

    async def send(self, request: ApiRequest, body: Send) -> dict[str, Any] | SendReply | RunStream:
        """Send a message to an agent, and answer with what it says."""
        run_request = await self._make_run_request(request, body)
        return await self._sends.reply_to(request, body, run_request, is_stream=body.streaming)

    async def stream(self, request: ApiRequest, body: Send) -> dict[str, Any] | SendReply | RunStream:
        """Send a message, and stream what it says."""
        run_request = await self._make_run_request(request, body)
        return await self._sends.reply_to(request, body, run_request, is_stream=True)

    async def send_async(self, request: ApiRequest, body: Send) -> dict[str, Any]:
        """Send a message, and answer with the run that goes on without its client."""
        run_request = await self._make_run_request(request, body)
        run = await self._sends.accept(request, body, run_request, by_token=False, is_shown=False)
        return render_run(await self._api.store.runs.get(request.project, run.uid))

    async def _make_run_request(self, request: ApiRequest, body: Send) -> RunRequest:
        return await self._sends.make_run_request(request, body, request.read_uid("agent", "agent_id"))


@dataclass(slots=True)
class SendReply:
    """The reply to a send, which performs the run and writes itself."""

    # The parts of the gateway that perform the send.
    api: AgentsApi
    # The request, whose headers the reply gets.
    request: ApiRequest
    # The options of the reply: its form, and the messages that it shows.
    body: Send
    # The run to perform.
    run_request: RunRequest
    # The reply is a stream of events; False: one body.
    is_stream: bool
    # The JSON of the summary with which the run begins, shown before the first reply. `_begin_view` sets it.
    _summary_messages: Sequence[dict[str, Any]] = field(default=(), init=False)

    async def __call__(self, scope: AsgiScope, receive: Receive, asgi_send: AsgiSend) -> None:
        info = get_request_info(scope)
        info.model = self.run_request.spec.model
        info.is_streamed = self.is_stream
        info.memory = "on"
        receipt = info.begin_receipt()
        receipt.headers |= self.request.headers
        with ClientReply(scope, receive, asgi_send, self.api.send_timeout_s) as reply:
            await (
                self._write_stream(reply, receipt) if self.is_stream else self._write_whole(reply, receipt)
            )

    async def _write_whole(self, reply: ClientReply, receipt: Receipt) -> None:
        """Performs the run, and writes its messages as one body. An error before the first reply has its own status."""
        held_sink = HeldSink(reply)
        output = RunOutput(self._begin_view, held_sink, receipt)
        result = await self.api.agent_runs.send(self.run_request, output)
        if result.status != 200:
            await reply.send_body(result.status, held_sink.headers, bytes(held_sink.body))
            return
        with reply.cancel_on_leave():
            messages = await self._render_messages(result)
        body = render_result(messages, result.run, result.started_run_uids, result.last_counts)
        headers = [*receipt.note_head(), JSON_HEADER]
        await reply.send_body(200, headers, orjson.dumps(body))

    async def _write_stream(self, reply: ClientReply, receipt: Receipt) -> None:
        """Performs the run, and writes its events as they come, or those of an earlier run that this send repeats."""
        interval_s = self.api.ping_s if self.body.include_pings else 0.0
        headers = [*self.request.headers.items(), EVENT_STREAM_HEADER]
        with PingingSink(reply, interval_s, headers=headers) as sink:

            def begin_view(start: RunStart) -> ViewFactory:
                sink.ping = make_ping(start.run_uid, self.api.now())
                return self._begin_view(start)

            output = RunOutput(begin_view, sink, receipt)
            result = await self.api.agent_runs.send(self.run_request, output)
            if sink.has_started or result.status != 200:
                return
            # The model was not asked: the send was answered already, or the run waits for more answers.
            with sink.cancel_on_leave():
                messages = await self._render_messages(result)
            sink.start(200, [*receipt.note_head(), EVENT_STREAM_HEADER])
            events = [*messages, *make_end_events(result.run, result.last_counts)]
            await sink.write(b"".join(map(encode_event, events)) + DONE_EVENT)
            await sink.end()

    def _begin_view(self, start: RunStart) -> ViewFactory:
        """Returns the factory of the run's view, and sets `_summary_messages`. It is called before the first reply."""
        showing = read_showing(self.body)
        by_token = self.is_stream and self.body.stream_tokens
        if start.summary is not None:
            self._summary_messages = render_summary(start.summary, start.agent.uid, showing)
        return make_factory(start, showing, self.api.now, by_token=by_token, preface=self._summary_messages)

    async def _render_messages(self, result: RunResult) -> list[dict[str, Any]]:
        renderer = MessageRenderer(self.api.store, result.agent, read_showing(self.body))
        return [*self._summary_messages, *await renderer.render_output(result.run, result.steps)]


def _read_system(body: Send, agent_system: str) -> str | None:
    """Returns the system prompt that a send asks for, with the client's skills; None: the agent's own.

    agent_system: the agent's own system prompt.
    """
    system = find_sent(body.override_system)
    if skills := find_sent(body.client_skills):
        system = with_skills(agent_system if system is None else system, skills)
    return system


def _render_tool(tool: ClientTool) -> dict[str, Any]:
    """Returns a client's tool in the form of the request for the upstream."""
    parameters = find_sent(tool.parameters) or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": get_sent_or(tool.description, ""), "parameters": parameters}
    return {"type": "function", "function": function}
