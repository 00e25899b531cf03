"""Sends to agents: whole replies, and streams of steps or tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import orjson
from starlette.types import Receive
from starlette.types import Scope as AsgiScope
from starlette.types import Send as AsgiSend

from gateway.core import ids
from gateway.core.definition import ConversationDefinition
from gateway.core.request.headers import forwardable
from gateway.core.turn.client import MakesView
from gateway.core.turn.guide import StopReason
from gateway.dialects.letta.body import given
from gateway.dialects.letta.message import Showing, summary_shown
from gateway.dialects.letta.run import result_json, stop_json, usage_json
from gateway.dialects.letta.send import CallAnswer, Send, Sent, sent
from gateway.dialects.letta.stream import DONE, MakesSteps, RunNumbers, event, ping_event
from gateway.errors import BadRequest
from gateway.run.agents.messages import DEFAULT
from gateway.run.agents.pauses import CallDecision
from gateway.run.agents.run import RunRequest, RunResult, RunStart
from gateway.run.receipt import Receipt
from gateway.run.sink import ClientGone, HeldSink, Sink
from gateway.web.letta.api import AgentsApi
from gateway.web.letta.exchanges import Exchanges
from gateway.web.letta.routes import AgentsRoute, Asked
from gateway.web.middleware import trace_of
from gateway.web.sse import ClientReply

_EVENTS = ("content-type", "text/event-stream; charset=utf-8")


class SendRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def rows(self) -> list[AgentsRoute]:
        one = "/v1/agents/{agent_id}/messages"
        return [
            AgentsRoute(
                "POST", one, self.send, "Send a message to an agent, and answer with what it says.", body=Send
            ),
            AgentsRoute(
                "POST", f"{one}/stream", self.stream, "Send a message, and stream what it says.", body=Send
            ),
        ]

    async def send(self, asked: Asked) -> Any:
        return await self.begin(asked, asked.uid("agent", "agent_id"), is_stream=asked.body.streaming)

    async def stream(self, asked: Asked) -> Any:
        return await self.begin(asked, asked.uid("agent", "agent_id"), is_stream=True)

    async def begin(
        self,
        asked: Asked,
        uid: str,
        *,
        is_stream: bool,
        conversation: str = DEFAULT,
        said_of_it: ConversationDefinition | None = None,
    ) -> Answered:
        """Returns the reply to a send. uid: of the agent. conversation: `default`, or a public name.

        said_of_it: what the conversation has of its own.
        """
        send: Send = asked.body
        if send.background:
            raise BadRequest("Runs in the background are not served yet.", param="background")
        said = sent(send)
        found = await self._api.registry.agent(asked.project, uid)
        fields = given(send)
        spec = found.spec
        if said_of_it is not None:
            spec = self._api.registry.with_said(spec, said_of_it)
        if (model := fields.get("override_model")) is not None:
            spec = self._api.registry.with_model(spec, model)
        if (system := fields.get("override_system")) is not None:
            spec = replace(spec, system=system)
        scope = asked.request.scope
        request = RunRequest(
            spec,
            found.scope,
            conversation,
            messages=said.messages,
            decisions=tuple(map(_decision, said.answers)),
            fields={} if spec.defined is None else spec.defined.sampling,
            client_tools=tuple(_offered(tool) for tool in fields.get("client_tools") or ()),
            max_steps=send.max_steps,
            otid=said.otid,
            is_retry=asked.request.headers.get("x-stainless-retry-count", "0") != "0",
            headers=forwardable(scope["headers"]),
            credential=trace_of(asked.request.scope).caller.credential,
        )
        return Answered(self._api, asked, request, said, is_stream)


@dataclass(slots=True)
class Answered:
    """The reply to a send, which it writes itself."""

    api: AgentsApi
    asked: Asked
    request: RunRequest
    said: Sent
    is_stream: bool
    _before: Sequence[dict[str, Any]] = ()  # what is shown in front of the first reply

    async def __call__(self, scope: AsgiScope, receive: Receive, send: AsgiSend) -> None:
        trace = trace_of(scope)
        trace.model, trace.stream, trace.memory = self.request.spec.model, self.is_stream, "on"
        receipt = Receipt(trace.begun)
        for name, value in self.asked.headers.items():
            receipt.say(name, value)
        connection = scope["state"].get("connection")
        async with ClientReply(receive, send, self.api.send_timeout_s, connection) as reply:
            try:
                await (self._streamed(reply, receipt) if self.is_stream else self._whole(reply, receipt))
            finally:
                trace.added_ms = receipt.added_ms

    async def _whole(self, reply: ClientReply, receipt: Receipt) -> None:
        held = HeldSink(reply)
        result = await self.api.runs.send(self.request, self._view, held, receipt)
        headers = [*receipt.close(), ("content-type", "application/json")]
        if result.status != 200:
            await reply.whole(result.status, headers, bytes(held.body))
            return
        with reply.while_here():
            shown = await self._shown(result)
        run = result.run
        body = result_json(shown, run.stop or StopReason.END_TURN, run.counts, run.steps, result.begun)
        await reply.whole(200, headers, orjson.dumps(body))

    async def _streamed(self, reply: ClientReply, receipt: Receipt) -> None:
        send: Send = self.asked.body
        async with PingingSink(reply, self.api.ping_s if send.include_pings else 0.0) as sink:

            def view(start: RunStart) -> MakesView:
                sink.ping = ping_event(start.run, self.api.now())
                return self._view(start)

            result = await self.api.runs.send(self.request, view, sink, receipt)
        if reply.started or result.status != 200:
            return
        # Nothing was asked of the model: the send is answered already, or waits for more answers.
        with reply.while_here():
            shown = await self._shown(result)
        run = result.run
        reply.start(200, [*receipt.close(), _EVENTS])
        end = [stop_json(run.stop or StopReason.END_TURN), usage_json(run.counts, run.steps)]
        await reply.write(b"".join(map(event, [*shown, *end])) + DONE)
        await reply.end()

    def _view(self, start: RunStart) -> MakesView:
        send: Send = self.asked.body
        steps = 0 if start.is_resumed else 1
        numbers = RunNumbers(
            start.agent.uid,
            ids.named("run", start.run),
            start.first,
            start.reply,
            steps,
            start.names,
            start.begun,
        )
        showing, by_token = showing_of(send), self.is_stream and send.stream_tokens
        if start.summary is not None:
            self._before = summary_shown(start.summary, start.agent.uid, showing)
        return MakesSteps(numbers, showing, by_token, self.api.now, self._before)

    async def _shown(self, result: RunResult) -> list[dict[str, Any]]:
        exchanges = Exchanges(self.api.store, result.agent, showing_of(self.asked.body))
        return [*self._before, *await exchanges.answers(result.run, result.steps)]


def showing_of(send: Send) -> Showing:
    """Returns the way in which a send wants messages to be shown."""
    types = given(send).get("include_return_message_types")
    return Showing(
        None if types is None else frozenset(types),
        send.assistant_message_tool_name if send.use_assistant_message else None,
        send.assistant_message_tool_kwarg,
        send.include_compaction_messages is True,
    )


def _decision(answer: CallAnswer) -> CallDecision:
    return CallDecision(answer.call_id, answer.approve, answer.reason, answer.result)


def _offered(tool: Any) -> dict[str, Any]:
    """Returns a client's tool as it goes upstream."""
    sent_ = given(tool)
    parameters = sent_.get("parameters") or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": sent_.get("description") or "", "parameters": parameters}
    return {"type": "function", "function": function}


@dataclass(slots=True)
class PingingSink:
    """A stream that says something while nothing else is said, once it has begun. every_s: 0: never.

    ping: the event; empty until the run has a name.
    """

    inner: Sink
    every_s: float
    ping: bytes = b""
    _wrote: bool = False
    _task: asyncio.Task[None] | None = field(default=None)

    @property
    def gone(self) -> asyncio.Event:
        return self.inner.gone

    @property
    def started(self) -> bool:
        return self.inner.started

    async def __aenter__(self) -> PingingSink:
        if self.every_s:
            self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.inner.start(status, headers)

    async def write(self, data: bytes) -> None:
        self._wrote = True
        await self.inner.write(data)

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self.inner.end()

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        await self.inner.whole(status, headers, body)

    def while_here(self) -> AbstractContextManager[None]:
        return self.inner.while_here()

    async def _beat(self) -> None:
        # A client that leaves is noticed by whoever writes the reply.
        with suppress(ClientGone):
            while True:
                self._wrote = False
                await asyncio.sleep(self.every_s)
                if self.started and self.ping and not self._wrote:
                    await self.inner.write(self.ping)
