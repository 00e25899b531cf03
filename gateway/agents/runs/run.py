"""The values of a run: a send to a conversation of ours, how it begins and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import orjson
from msgspec import Struct, field

from adapters.types import Json
from gateway.agents.core.sleeper import SLEEP
from gateway.agents.core.waits import Wait
from gateway.core.agent import AgentSpec
from gateway.core.conversation.canonical import WireMessage, is_system, text_of
from gateway.core.conversation.private import PRIVATE, as_system
from gateway.core.ids import new_uid
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity, Mode
from gateway.core.turn.calls import CallDecision
from gateway.run.call import Passes
from gateway.run.upstream.route import Route
from storage.commands import ReadSpan, RunAccept
from storage.records import DEFAULT, READING, Agent, Counts, Exchange, Run, RunState, Scope, Summary

MAX_STEPS = 50


class RunRequest(Struct, frozen=True):
    """A send to a conversation of ours.

    scope: whose memory. conversation: `default`, or an id. messages: as they are stored, with their private fields.
    decisions: about calls that wait; messages stand behind what comes of them. fields: further ones of the call
    upstream. client_tools: as they go upstream. otid: the client's own id of this send. is_retry: its library sends it
    again. passes: what of the request may go upstream.
    parent: the row of a run of another agent that waits for this one; depth: how many messages of agents led to it.
    spares_pauses: it is refused where somebody has to answer calls first, which a message in between would leave
    without an answer.
    model, system: of this send in place of the agent's; `spec` has them already. reading: what the messages quote, of
    another memory. An upstream's failure does not end such a run.
    """

    spec: AgentSpec
    scope: Scope
    conversation: str = DEFAULT
    messages: tuple[WireMessage, ...] = ()
    decisions: tuple[CallDecision, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    client_tools: tuple[Json, ...] = ()
    max_steps: int = MAX_STEPS
    otid: str | None = None
    is_retry: bool = False
    passes: Passes = field(default_factory=Passes)
    parent: int | None = None
    depth: int = 0
    spares_pauses: bool = False
    model: str | None = None
    system: str | None = None
    reading: ReadSpan | None = None


class AcceptedRun(Struct, frozen=True):
    """A run that was accepted before, as an attempt finds it. request: what is kept of its request without messages.

    attempt: from 1 on; the process may have died in earlier ones.
    """

    run: Run
    request: bytes
    attempt: int = 1


class RunStart(Struct, frozen=True):
    """A run whose first step is open. run: its public name. agent: whose memory.

    first: the number of the step's first message; reply: of its reply. Where calls that waited are answered, of the
    step that made them: no other is open before they have run (is_resumed). names: {call id: tool} of those.
    steps, counts: of earlier attempts. attempt: whose reply that is, where an earlier one may have shown some of it.
    summary: the one that the prompt begins with, where it did not before.
    begun: public names of runs that its end makes due; empty until then.
    """

    run: str
    agent: Agent
    first: int
    reply: int
    is_resumed: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    counts: Counts = field(default_factory=Counts)
    attempt: int = 1
    summary: Summary | None = None
    begun: Sequence[str] = ()


class RunResult(Struct, frozen=True):
    """The result of a send. run: as it ended. agent: whose memory. steps: its exchanges, with their words.

    is_repeat: the same send had been answered before; nothing was sent upstream. status: of the reply. begun: public
    names of runs that its end has made due. last: the tokens of its last step; zeros where they are not known.
    """

    run: Run
    agent: Agent
    steps: tuple[Exchange, ...]
    is_repeat: bool = False
    status: int = 200
    begun: tuple[str, ...] = ()
    last: Counts = field(default_factory=Counts)


class Sending(Struct, frozen=True):
    """A send, whichever way it came. request: the one that came, without what is said in it.

    shows_steps: its client reads each step as messages of its own; else all of them are one reply. replaces: the run
    of the same send that ended before, whose otid it takes. above: of the agent that waits for its answer. accepted:
    None: its client waits for it. heard: the reply before it, as a chat completion's client has it; None: nothing is
    said of that. The other fields are those of `RunRequest`.
    """

    request: ChatRequest
    messages: Sequence[WireMessage]
    identity: Identity
    spec: AgentSpec
    route: Route
    passes: Passes
    shows_steps: bool
    max_steps: int = MAX_STEPS
    otid: str | None = None
    decisions: Sequence[CallDecision] = ()
    replaces: Run | None = None
    parent: int | None = None
    depth: int = 0
    spares_pauses: bool = False
    above: Wait | None = None
    accepted: AcceptedRun | None = None
    reading: ReadSpan | None = None
    heard: Sequence[str] | None = None

    @property
    def scope(self) -> Scope:
        scope = self.identity.scope
        assert scope is not None
        return scope


def reading_of(reader: int, memory: int, now: float) -> RunAccept:
    """Returns a run of a sleeptime agent that reads a memory, to be accepted. reader, memory: rows."""
    run = Run(0, new_uid(), reader, 0, RunState.CREATED, now, background=True)
    return RunAccept(run, b"{}", READING + run.uid, new_uid(), kind=SLEEP, reads=memory)


def identity_of(asked: RunRequest) -> Identity:
    scope = asked.scope
    return Identity(
        scope.project, scope.profile, asked.spec.name, None, asked.conversation, scope, Mode.STRICT,
        append=True, retry=asked.is_retry,
    )  # fmt: skip


def request_of(asked: RunRequest, *, stream: bool = True) -> ChatRequest:
    """Returns the request of a send as a chat completion, without messages: those come from the path."""
    tools = [*asked.client_tools]
    sampling = sampling_of(asked.spec, has_tools=bool(tools or asked.spec.tools), more=asked.fields)
    body: dict[str, Any] = {
        "model": asked.spec.model or "",
        "messages": [],
        **({"stream": True} if stream else {}),
        **sampling,
    }
    if tools:
        body["tools"] = tools
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return ChatRequest(
        raw=orjson.dumps(body),
        json=body,
        model=body["model"],
        messages=[],
        stream=stream,
        wants_usage=False,
        tools=tuple(str(tool["function"]["name"]) for tool in tools),
        has_tools=bool(tools),
        n=1,
        max_tokens=limit if isinstance(limit, int) else None,
        max_tokens_key=next((key for key in ("max_completion_tokens", "max_tokens") if key in body), None),
        added_fields=frozenset(sampling),
    )


def sampling_of(
    spec: AgentSpec, *, has_tools: bool, more: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the fields that each request of an agent bears unless it says them itself.

    has_tools: the request has some, of the agent's or of the client's. more: fields that count before the agent's.
    """
    found = {**({} if spec.defined is None else spec.defined.sampling), **more}
    if not has_tools:
        # Strict upstreams take it with tools only.
        found.pop("parallel_tool_calls", None)
    return found


def of_client(message: WireMessage) -> WireMessage:
    """Returns a message of a chat completion as it is stored: private fields are ours alone."""
    if is_system(message):
        return as_system(text_of(message))
    return {key: value for key, value in message.items() if key != PRIVATE}
