"""Runs and their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from starlette.types import Receive
from starlette.types import Scope as AsgiScope
from starlette.types import Send as AsgiSend

from adapters.types import EVENT_STREAM_HEADER
from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._paging import RUN_MESSAGES, cut_page, read_page, read_ref
from gateway.agents.api._pinging import PingingSink
from gateway.agents.api._query import PageQuery, RunsQuery, StepsQuery, TraceQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.named_conversation import find_conversation_row, get_conversation
from gateway.agents.api.run_events import find_error, read_run_showing
from gateway.agents.runs.live_runs import LIVE_STATES
from gateway.agents.runs.stored_run import load_exchanges_of_run, load_last_counts
from gateway.agents.wire.message import Showing
from gateway.agents.wire.run_json import (
    Feedback,
    StreamRun,
    render_callback,
    render_result,
    render_run,
    render_run_metrics,
    render_step,
    render_step_metrics,
    render_usage,
)
from gateway.agents.wire.run_stream import make_ping
from gateway.agents.wire.sent_values import find_sent
from gateway.core import ids
from gateway.core.memory.visibility import list_tools_used
from gateway.core.turn.round import DONE_EVENT
from gateway.errors import BadRequest, UnknownId
from gateway.web.client_reply import ClientReply
from gateway.web.request_info import get_request_info
from storage.listing import RunEntry, RunFilter, StepEntry
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store


class RunRoutes:
    """The routes of runs."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._runs, self._run_texts = api.store.runs, api.store.run_texts

    def list_routes(self) -> list[AgentsRoute]:
        run = "/v1/runs/{run_id}"
        return [
            AgentsRoute("GET", "/v1/runs", self.list_runs),
            AgentsRoute("GET", "/v1/runs/active", self.list_active),
            AgentsRoute("GET", run, self.retrieve),
            AgentsRoute("GET", f"{run}/messages", self.list_run_messages, paging=RUN_MESSAGES),
            AgentsRoute("GET", f"{run}/steps", self.list_run_steps),
            AgentsRoute("POST", f"{run}/stream", self.stream),
            AgentsRoute("GET", f"{run}/trace", self.list_trace),
            AgentsRoute("GET", f"{run}/metrics", self.retrieve_run_metrics),
            AgentsRoute("GET", f"{run}/usage", self.retrieve_usage),
        ]

    async def list_active(self, request: ApiRequest, query: RunsQuery) -> list[dict[str, Any]]:
        """List runs that go on, or those in the states that are named."""
        query.active = True
        return await self.list_runs(request, query)

    async def list_runs(self, request: ApiRequest, query: RunsQuery) -> list[dict[str, Any]]:
        """List runs."""
        agent_id = find_sent(query.agent_id)
        agent_ids = [*([] if agent_id is None else [agent_id]), *(find_sent(query.agent_ids) or ())]
        if len(set(agent_ids)) > 1:
            raise BadRequest("Runs are listed of one agent, or of all.", param="agent_ids")
        agent = await self._api.agents.get_by_id(request.project, agent_ids[0]) if agent_ids else None
        conversation_row = None
        if (conversation_id := find_sent(query.conversation_id)) is not None:
            agent_uid = None if agent is None else agent.uid
            conversation = await get_conversation(self._api, request.project, conversation_id, agent_uid)
            conversation_row = await find_conversation_row(self._api.store, conversation)
            if conversation_row is None:
                return []
        states = map(RunState, find_sent(query.statuses) or (LIVE_STATES if query.active else RunState))
        agent_row = None if agent is None else agent.id
        background, stop = find_sent(query.background), find_sent(query.stop_reason)
        run_filter = RunFilter(
            agent_row, conversation_row, sorted(set(states)), background=background, stop=stop
        )
        page = await read_page(query, partial(self._get_run_row, request.project), size=100)
        return await self._render_runs(await self._runs.list_runs(request.project, run_filter, page))

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return a run."""
        entry = await self._get_run(request)
        (run_json,) = await self._render_runs([entry])
        return {**run_json, **await self._render_callback(entry.run)}

    async def _render_runs(self, entries: Sequence[RunEntry]) -> list[dict[str, Any]]:
        """Returns the JSON of runs, with the error message of each failed run."""
        failed_rows = [entry.run.id for entry in entries if entry.run.state is RunState.FAILED]
        messages = await self._run_texts.load_error_messages(failed_rows)
        return [render_run(entry, messages.get(entry.run.id)) for entry in entries]

    async def _render_callback(self, run: Run) -> dict[str, Any]:
        """Returns the fields of a run with the outcome of its callback; {} if its client was not called back."""
        load_texts = self._run_texts.load_texts
        texts = await load_texts(run.agent_row, run.id, RunTextKind.CALLBACK) if run.background else ()
        return render_callback(orjson.loads(texts[-1].data)) if texts else {}

    async def list_run_messages(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List a run's messages."""
        return await _list_messages(self._api.store, await self._get_run(request), None, query)

    async def stream(self, request: ApiRequest, body: StreamRun) -> RunStream:
        """Stream what a run in the background says, from any event on."""
        return stream_run(self._api, request, body, (await self._get_run(request)).run)

    async def list_run_steps(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List a run's steps."""
        entry = await self._get_run(request)
        return cut_page(await _render_steps(self._api.store, await self._runs.load_steps(entry.run)), query)

    async def list_trace(self, request: ApiRequest, _: TraceQuery) -> list[Any]:
        """Say that requests are not stored: none."""
        await self._get_run(request)
        return []

    async def retrieve_usage(self, request: ApiRequest) -> dict[str, Any]:
        """Return the tokens that a run has used."""
        run = (await self._get_run(request)).run
        counts = run.counts
        return {
            **render_usage(counts, run.steps, last_counts=await load_last_counts(self._api.store, run)),
            "prompt_tokens_details": {
                "cached_tokens": counts.cached,
                "cache_read_tokens": counts.cached,
                "cache_creation_tokens": counts.written,
            },
            "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
        }

    async def retrieve_run_metrics(self, request: ApiRequest) -> dict[str, Any]:
        """Return how long a run took, and its tools."""
        entry = await self._get_run(request)
        agent = await self._api.store.agents.find_by_id(entry.run.agent_row)
        steps = () if agent is None else await load_exchanges_of_run(self._api.store, agent, entry.run)
        names = dict.fromkeys(name for step in steps for name in list_tools_used(step))
        # The client's own tools and deleted tools have no id.
        tools = [await self._api.registry.tools.find_named(request.project, name) for name in names]
        return render_run_metrics(entry, [tool.uid for tool in tools if tool is not None])

    async def _get_run(self, request: ApiRequest) -> RunEntry:
        return await self._runs.get(request.project, request.read_uid("run", "run_id"))

    async def _get_run_row(self, project: str, run_id: str) -> int:
        return (await self._runs.get(project, read_uid("run", run_id))).run.id


class StepRoutes:
    """The routes of the steps of runs."""

    def __init__(self, api: AgentsApi) -> None:
        self._agents, self._store = api.agents, api.store

    def list_routes(self) -> list[AgentsRoute]:
        step = "/v1/steps/{step_id}"
        return [
            AgentsRoute("GET", "/v1/steps", self.list_steps),
            AgentsRoute("GET", step, self.retrieve_step),
            AgentsRoute("GET", f"{step}/messages", self.list_step_messages, paging=RUN_MESSAGES),
            AgentsRoute("GET", f"{step}/trace", self.retrieve_step_trace),
            AgentsRoute("GET", f"{step}/metrics", self.retrieve_step_metrics),
            AgentsRoute("PATCH", f"{step}/feedback", self.give_feedback),
        ]

    async def list_steps(self, request: ApiRequest, query: StepsQuery) -> list[dict[str, Any]]:
        """List steps."""
        agent = await self._agents.find_by_sent_id(request.project, query.agent_id)
        entries = await self._store.runs.list_steps(
            request.project,
            await read_page(query, partial(self._get_step_row, request.project)),
            agent_row=None if agent is None else agent.id,
            feedback=find_sent(query.feedback),
            has_feedback=find_sent(query.has_feedback),
        )
        return await _render_steps(self._store, entries)

    async def retrieve_step(self, request: ApiRequest) -> dict[str, Any]:
        """Return a step."""
        return (await _render_steps(self._store, [await self._get_step(request)]))[0]

    async def list_step_messages(self, request: ApiRequest, query: PageQuery) -> list[dict[str, Any]]:
        """List a step's messages."""
        step = await self._get_step(request)
        entry = await self._store.runs.get(request.project, step.run_uid)
        return await _list_messages(self._store, entry, step, query)

    async def retrieve_step_metrics(self, request: ApiRequest) -> dict[str, Any]:
        """Return how long a step took."""
        return render_step_metrics(await self._get_step(request))

    async def give_feedback(self, request: ApiRequest, body: Feedback) -> dict[str, Any]:
        """Say how a step was."""
        step = await self._get_step(request)
        await self._store.runs.rate_step(step.step, find_sent(body.feedback))
        return await self.retrieve_step(request)

    async def retrieve_step_trace(self, request: ApiRequest) -> None:
        """Say that requests are not stored: null."""
        await self._get_step(request)

    async def _get_step(self, request: ApiRequest) -> StepEntry:
        ref = request.read_ref("step", "step_id")
        return await self._store.runs.get_step(request.project, ref.uid, ref.seq)

    async def _get_step_row(self, project: str, step_id: str) -> int:
        """Returns the row of a step: the row of its exchange."""
        ref = read_ref("step", step_id)
        return (await self._store.runs.get_step(project, ref.uid, ref.seq)).step.exchange_row


async def _render_steps(store: Store, entries: Sequence[StepEntry]) -> list[dict[str, Any]]:
    """Returns the JSON of steps, with the error message of each failed step."""
    failed_rows = [entry.step.run_row for entry in entries if entry.step.error is not None]
    messages = await store.run_texts.load_error_messages(failed_rows)
    return [
        render_step(entry, None if entry.step.error is None else messages.get(entry.step.run_row))
        for entry in entries
    ]


async def _list_messages(
    store: Store, entry: RunEntry, step: StepEntry | None, query: PageQuery
) -> list[dict[str, Any]]:
    """Returns a page of the messages of a run, or of one of its steps.

    step: the step; None: the messages of all steps.
    """
    agent = await store.agents.find_by_id(entry.run.agent_row)
    if agent is None:
        raise UnknownId("The agent of this run is deleted.")
    exchanges = await load_exchanges_of_run(store, agent, entry.run)
    showing = await read_run_showing(store, entry.run) if step is None else Showing()
    messages = await MessageRenderer(store, agent, showing).render_run(entry.run, exchanges, has_input=True)
    if step is not None:
        step_id = ids.make_id_with_seq("step", step.agent_uid, step.seq)
        messages = [message for message in messages if message["step_id"] == step_id]
    return cut_page(messages, query)


def stream_run(api: AgentsApi, request: ApiRequest, body: StreamRun, run: Run) -> RunStream:
    """Returns the reply that follows a run in the background. Raises: BadRequest if another run has not ended."""
    if not run.background and not run.is_over:
        raise BadRequest("This run streams to its client alone: it is not in the background.")
    sends_pings = body.include_pings is not False
    return RunStream(api, run, body.starting_after, sends_pings=sends_pings, headers=request.headers)


async def render_run_result(api: AgentsApi, run: Run, showing: Showing) -> dict[str, Any]:
    """Returns the whole reply of a run that has ended.

    Raises: UpstreamError, GatewayError if the run failed before its first output.
    """
    agent = await api.store.agents.find_by_id(run.agent_row)
    if agent is None:
        raise UnknownId("The agent of this run is deleted.")
    steps = await load_exchanges_of_run(api.store, agent, run)
    if all(step.reply is None for step in steps) and (error := await find_error(api.store, run)) is not None:
        raise error
    messages = await MessageRenderer(api.store, agent, showing).render_output(run, steps)
    return render_result(messages, run, last_counts=await load_last_counts(api.store, run))


@dataclass(slots=True)
class RunStream:
    """The reply that follows a run in the background."""

    # The parts of the gateway that follow the run.
    api: AgentsApi
    # The run as it was when the reply was made.
    run: Run
    # The number of the last event that the client has; 0: it has none.
    after_number: int = 0
    # True: pings are sent while the run has no event.
    sends_pings: bool = True
    # The headers of the reply.
    headers: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: AsgiSend) -> None:
        info = get_request_info(scope)
        api = self.api
        info.is_streamed = True
        info.memory = "on"
        ping = make_ping(self.run.uid, api.now())
        interval_s = api.ping_s if self.sends_pings else 0.0
        with (
            ClientReply(scope, receive, send, api.send_timeout_s) as reply,
            PingingSink(reply, interval_s, ping) as sink,
        ):
            sink.start(200, [*self.headers.items(), EVENT_STREAM_HEADER])
            # The head leaves now, since a client that reconnects may wait long for the next event.
            await reply.write(b":\n\n")
            last_event = b""
            with reply.cancel_on_leave():
                async for last_event in api.background_runs.follower.read_events(self.run, self.after_number):
                    await sink.write(last_event)
            # After an error event a client reads no further.
            if not last_event.startswith(b"event: error"):
                await sink.write(DONE_EVENT)
            await sink.end()
