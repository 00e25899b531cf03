"""The values of a run: a send to a stored conversation, its beginning and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import orjson
from msgspec import Struct, field

from adapters.types import Json
from gateway.agents.core.call_decision import CallDecision
from gateway.agents.core.rule_guide import DEFAULT_MAX_STEPS
from gateway.agents.core.sleeptime_agent import SLEEP_JOB
from gateway.agents.core.waits import Wait
from gateway.core.agent import AgentSpec
from gateway.core.conversation.private import make_framed_system_message
from gateway.core.conversation.wire_message import PRIVATE, WireMessage, has_result_role, is_system, read_text
from gateway.core.ids import new_uid
from gateway.core.request.chat_request import ChatRequest, find_token_limit
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import Mode
from gateway.core.turn.client_view import ViewFactory
from gateway.run.call import Forwarded
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.tools.toolbox import choose_max_chars, cut_result
from gateway.run.upstream.route import Route
from storage.job_records import Job
from storage.records import DEFAULT_CONVERSATION, READING_PREFIX, Agent, Exchange, Scope, Summary
from storage.run_commands import ReadSpan, RunAccept
from storage.run_records import Run, TokenCounts


class SendFields(Struct, frozen=True, kw_only=True):
    """The part of a send that is stored with a background run until the run has ended."""

    # The messages as they are stored, with the gateway's private fields.
    messages: tuple[WireMessage, ...] = ()
    # Answers to waiting calls. The messages follow the results of these calls.
    decisions: tuple[CallDecision, ...] = ()
    # Further fields of the request to the upstream, by name.
    fields: Mapping[str, Any] = field(default_factory=dict)
    # The client's tools as they go upstream.
    client_tools: tuple[Json, ...] = ()
    # The most steps of the run.
    max_steps: int = DEFAULT_MAX_STEPS
    # True: the request is refused while calls wait for answers, since a message would deny these calls.
    spares_pauses: bool = False
    # The model that replaces the agent's own for this send; None: none does.
    model: str | None = None
    # The system prompt that replaces the agent's own for this send; None: none does.
    system: str | None = None

    def copy_send_fields(self) -> dict[str, Any]:
        """Returns the fields of `SendFields`, for another struct that has them."""
        return {name: getattr(self, name) for name in SendFields.__struct_fields__}


class RunRequest(SendFields, frozen=True):
    """A send to a stored conversation."""

    # The agent, with the model and the system prompt of the send.
    spec: AgentSpec
    # The scope of the agent's memory.
    scope: Scope
    # The `Conversation.name`, or the conversation's public id until the send is in its queue.
    conversation_name: str = DEFAULT_CONVERSATION
    # The client's id of this request, which a resent request has as well; None: the client gives no id.
    otid: str | None = None
    # True: the client's library marks the request as a retry.
    is_retry: bool = False
    # Headers and fields of the client's request that are passed to the upstream.
    forwarded: Forwarded = field(default_factory=Forwarded)
    # The row of another agent's run that waits for the end of this run; None: no run waits.
    parent_run_row: int | None = None
    # The number of messages between agents that led to this request.
    depth: int = 0
    # The span of another memory that the messages quote; None: they quote none. An upstream's failure does not end a
    # run that reads a memory.
    reading: ReadSpan | None = None


class AcceptedRun(Struct, frozen=True):
    """A stored run that one attempt performs."""

    # The run as it was before the attempt.
    run: Run
    # The stored request, without messages.
    request: bytes
    # The attempt of its job. The processes of earlier attempts may have died.
    job: Job
    # An ended run of the same send, which hands its otid on to this run; None: this run replaces no run.
    replaced_run: Run | None = None


class RoutedSend(RunRequest, frozen=True, kw_only=True):
    """A send from any API, with its route and its request for the upstream."""

    # The request for the upstream, without messages.
    request: ChatRequest
    # The agent and the conversation of the send, as memory needs them.
    identity: Identity
    # The upstreams and models that are asked, in their order.
    route: Route
    # True: the client reads each step as separate messages; otherwise all steps are one reply.
    shows_steps: bool
    # The texts of the last reply before this send, as the client of a chat completion has it; None: the client of the
    # agents API sends no earlier replies.
    heard_texts: Sequence[str] | None = None
    # An ended run of the same send, which hands its otid on to the new run; None: the new run replaces no run.
    replaced_run: Run | None = None
    # The wait of another agent for the answer; None: no agent waits.
    awaited_by: Wait | None = None
    # The stored run; None: the client waits for the run.
    accepted: AcceptedRun | None = None


class RunStart(Struct, frozen=True):
    """A run with an open first step, or one that goes on with the calls of a stored step."""

    # The uid of the run.
    run_uid: str
    # The agent that runs.
    agent: Agent
    # The number of the step's first message.
    first_seq: int
    # The number of the step's reply, which is stored already if the run goes on with the reply's calls.
    reply_seq: int
    # True: the run goes on with the calls of a stored step.
    is_resumed: bool = False
    # The names of the tools of these calls, by the ids of the calls.
    tool_names: Mapping[str, str] = field(default_factory=dict)
    # The number of steps that earlier attempts have ended.
    steps: int = 0
    # The tokens of these steps.
    counts: TokenCounts = field(default_factory=TokenCounts)
    # The number of this attempt. An earlier attempt may have shown a part of the reply.
    attempt: int = 1
    # The summary that the prompt begins with; None: the previous prompt began with the same summary, or with none.
    summary: Summary | None = None
    # The uids of the runs that the end of this run starts; empty until the end.
    started_run_uids: Sequence[str] = ()


class RunOutput(Struct, frozen=True):
    """The view, the sink and the receipt of a run's reply."""

    # Returns the factory of the reply's view. It is called once a step is open.
    make_view_factory: Callable[[RunStart], ViewFactory]
    # The sink of the reply's bytes.
    sink: Sink
    # The receipt, which counts the calls of the model.
    receipt: Receipt


class RunResult(Struct, frozen=True):
    """The result of a send."""

    # The run in its final state.
    run: Run
    # The agent of the run.
    agent: Agent
    # The run's exchanges, with their messages.
    steps: tuple[Exchange, ...]
    # True: an earlier send of the same request was answered, so nothing was sent upstream.
    is_repeat: bool = False
    # The HTTP status of the reply.
    status: int = 200
    # The uids of the runs that the end of this run has started.
    started_run_uids: tuple[str, ...] = ()
    # The tokens of the last step; zeros if the upstream reported no tokens.
    last_counts: TokenCounts = field(default_factory=TokenCounts)


def make_reading_command(reader_row: int, memory_row: int, now: float) -> RunAccept:
    """Returns the command that accepts a new run of a sleeptime agent, which reads a memory.

    reader_row: the row of the sleeptime agent's own memory.
    memory_row: the row of the memory that is read.
    now: seconds since the epoch.
    """
    run = Run.make_draft(new_uid(), now, agent_row=reader_row, background=True)
    return RunAccept(
        run, b"{}", READING_PREFIX + run.uid, new_uid(), kind=SLEEP_JOB, read_memory_row=memory_row
    )


def make_identity(run_request: RunRequest) -> Identity:
    """Returns the identity of a send: its agent is known, and memory is required."""
    scope = run_request.scope
    return Identity(
        project=scope.project, profile=scope.profile, agent=run_request.spec.name, user=None, scope=scope,
        conversation_key=run_request.conversation_name, mode=Mode.STRICT, is_retry=run_request.is_retry,
    )  # fmt: skip


def make_chat_request(run_request: RunRequest, *, is_streamed: bool = True) -> ChatRequest:
    """Returns the request of a send as a chat completion, without messages, which come from the path."""
    spec, tools = run_request.spec, [*run_request.client_tools]
    sampling = make_sampling(spec, has_tools=bool(tools or spec.tools), overrides=run_request.fields)
    body: dict[str, Any] = {
        "model": spec.model or "",
        "messages": [],
        **({"stream": True} if is_streamed else {}),
        **sampling,
    }
    if tools:
        body["tools"] = tools
    return ChatRequest(
        raw=orjson.dumps(body),
        json=body,
        model=body["model"],
        messages=[],
        stream=is_streamed,
        tool_names=tuple(str(tool["function"]["name"]) for tool in tools),
        has_tools=bool(tools),
        token_limit=find_token_limit(body),
        gateway_fields=frozenset(sampling),
    )


def make_sampling(
    spec: AgentSpec, *, has_tools: bool, overrides: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the fields that each request of an agent has unless its client sets them.

    has_tools: True if the request has tools of the agent or of the client.
    overrides: fields that override the agent's fields.
    """
    fields = {**spec.definition.sampling, **overrides}
    if not has_tools:
        # Strict upstreams refuse the field without tools.
        fields.pop("parallel_tool_calls", None)
    return fields


def clean_message(message: WireMessage, window: int | None) -> WireMessage:
    """Returns a message of a chat completion as it is stored: private fields come from the gateway alone.

    window: the size of the model's context window in tokens, to which a result is cut; None: the size is not known.
    """
    if is_system(message):
        return make_framed_system_message(read_text(message))
    public = {key: value for key, value in message.items() if key != PRIVATE}
    return cut_to_window(public, window) if has_result_role(public) else public


def cut_to_window(result: WireMessage, window: int | None) -> WireMessage:
    """Returns a copy of a result of a client's tool, cut to the window as results of the gateway's tools are.

    window: the size of the model's context window in tokens; None: the size is not known, and nothing is cut.
    """
    text = result.get("content")
    if window is None or not isinstance(text, str):
        return result
    return {**result, "content": cut_result(text, choose_max_chars(len(text), window))}
