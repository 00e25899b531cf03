"""The receipt of a request: each call of an upstream with its usage, and the `x-mnemogate-*` headers.

Usage, limits, traces and metrics read it. Work without a client (an agent's run, a job) has one as well. The edge hands
it to its readers once, after the reply's last byte (gateway.run.receipts). Work without a client hands on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from msgspec import Struct, field

from adapters.types import Header, Json
from gateway.core.trace_context import TraceContext
from gateway.core.turn_name import TurnName
from gateway.masks import mask_keys_in_name
from gateway.run.upstream_call import NO_PROMPT, PromptFacts, UpstreamCall
from storage.records import Scope

CLIENT_GONE: Final = 499  # nginx's status for it; it appears in logs, metrics and receipts only


def stored_model_name(upstream: str, model: str) -> str:
    """Returns the name under which a turn's model is stored. Keys in it are masked, since callers put them there."""
    return mask_keys_in_name(f"{upstream}/{model}")


class RequestLine(NamedTuple):
    """The first line of a request, as its span shows it."""

    method: str
    scheme: str
    path: str


class GatewayStep(Struct, frozen=True):
    """A step of the gateway's own work for a request. Its times are of `time.perf_counter()`."""

    kind: Literal["execute_tool", "search_memory", "upsert_memory"]
    begun: float
    ended: float
    # The name of a tool, as it was offered.
    name: str = ""
    # Why a tool failed, from a closed list; "": it did not.
    failure: str = ""
    # Of a search: how many hits went into the note.
    count: int = 0
    # The tokens of the note.
    tokens: int = 0
    # The search took too long.
    is_late: bool = False
    # A write was on disk when the reply ended.
    is_durable: bool = True


class AgentRun(NamedTuple):
    """A run of an agent, as its span shows it."""

    # The public name of the agent.
    uid: str
    # When the run began, by `time.perf_counter()`.
    begun: float


class Work(Struct, frozen=True):
    """Work without a client."""

    # The name of its span.
    kind: str
    # The row of the memory for which the work is done. 0: the work goes on with a request that has its own receipt.
    agent_row: int = 0


class Receipt(Struct, eq=False, weakref=True):
    """The receipt of one request, or of work without one."""

    # When the request arrived, by `time.perf_counter()`.
    begun: float
    # "": it is not noted.
    request_id: str = ""
    # The caller's project, and the id of its key; 0: it has none.
    project: str = "default"
    key: int = 0
    # The user as the request or the settings name it; "": none.
    user: str = ""
    # In the order in which they were made.
    calls: list[UpstreamCall] = field(default_factory=list)
    # The last of them that was made for the reply; None: none was.
    last_call: UpstreamCall | None = None
    # In the order in which they ended.
    steps: list[GatewayStep] = field(default_factory=list)
    # Of the next call of an upstream.
    prompt: PromptFacts = NO_PROMPT
    # The usage of the next stream is asked for, and the client did not ask for it.
    hides_usage: bool = False
    # None: it is of a request.
    work: Work | None = None
    # False: no model is called, as in a call over MCP, or it is called by work with a receipt of its own.
    asks_model: bool = True
    # The `x-ratelimit-*` headers of the limits that hold for the request. They replace the upstream's.
    rate_limits: Sequence[Header] = ()
    # A limit has refused the request.
    is_refused: bool = False
    # The id of the limit that has refused it, or had another model answer; 0: none has.
    limit_id: int = 0
    # The status of the reply; 0: there was none.
    status: int = 0
    # The gateway has cut the reply when it stopped.
    is_cut: bool = False
    # The memory of the request, once it is known, and its mode.
    scope: Scope | None = None
    mode: str = "on"
    # How many hits went into the note.
    recalled: int = 0
    # A record of why they were recalled is stored with the turn.
    has_recall_record: bool = False
    # The milliseconds until the reply's head left; None: it has not.
    first_ms: float | None = None
    # The gateway's share of them.
    added_ms: float | None = None
    # The `x-mnemogate-*` headers of the reply; one that is None is not sent.
    headers: dict[str, str | None] = field(default_factory=dict)
    # The turn's part of its `TurnName`; None: no client may refer to it.
    turn: str | None = None
    # Of this turn no text is stored, as it repeats one that was off the record.
    is_off_record: bool = False
    # None: the request is not traced.
    trace: TraceContext | None = None
    # The fields below are for the trace. None: the work belongs to no request.
    request_line: RequestLine | None = None
    # When it ended, by `time.perf_counter()`.
    ended: float = 0.0
    # None: no agent runs.
    agent_run: AgentRun | None = None
    # The row of the request's memory.
    agent_row: int = 0
    # The row of the exchange as which the turn was stored before its reply ended; 0: it is not known.
    exchange_row: int = 0
    # Returns the usage of a reply with a text, by our count; None: the prompt is not known.
    usage_counter: Callable[[str], Json] | None = None
    # When an upstream was first called, and when the head of the last reply came.
    _sent: float = 0.0
    _came: float = 0.0

    @property
    def work_agent_row(self) -> int:
        """The row of the memory for which work is done. 0: this is a request, or work that goes on with one."""
        return 0 if self.work is None else self.work.agent_row

    def stored_turn(self) -> TurnName | None:
        """Returns the name of the turn with which the reply is stored; None: the reply is not stored."""
        return None if self.is_off_record else self.begun_turn()

    def begun_turn(self) -> TurnName | None:
        """Returns the name of the turn, even if it is off the record; None: the request is no turn."""
        conversation, turn = self.headers.get("x-mnemogate-conversation"), self.turn
        return TurnName(conversation, turn) if conversation is not None and turn is not None else None

    def answering_model(self) -> str:
        """Returns the model that was asked last, under the name with which its turn is stored; "": none was."""
        call = self.last_call
        return "" if call is None else stored_model_name(call.upstream, call.model)

    def count_usage(self, text: str) -> Json | None:
        """Returns the usage of a reply with a text, by our count; None: the prompt is not known."""
        return None if self.usage_counter is None else self.usage_counter(text)

    def begin_call(self) -> UpstreamCall:
        """Adds a call of an upstream for the reply, which begins now."""
        call = UpstreamCall(time.perf_counter())
        self.add_call(call)
        return call

    def add_call(self, call: UpstreamCall) -> None:
        """Adds a call of an upstream that has just begun."""
        if self.trace is not None:
            call.trace_pieces()
        self.calls.append(call)
        if not call.is_background:
            self.last_call = call

    def begin_agent(self, uid: str) -> None:
        """Notes that a run of an agent begins. uid: the agent's."""
        self.agent_run = AgentRun(uid, time.perf_counter())

    def note_search(self, begun: float, ms: float, count: int, tokens: int, *, is_late: bool) -> None:
        """Notes a search of memory for a trace. ms: how long it took; 0: there was none, and nothing is noted."""
        if self.trace is not None and ms:
            ended = begun + ms / 1000
            step = GatewayStep("search_memory", begun, ended, count=count, tokens=tokens, is_late=is_late)
            self.steps.append(step)

    def note_write(self, begun: float, *, is_durable: bool = True) -> None:
        """Notes for a trace a write of memory for which the reply waited."""
        if self.trace is not None:
            step = GatewayStep("upsert_memory", begun, time.perf_counter(), is_durable=is_durable)
            self.steps.append(step)

    @property
    def has_failed(self) -> bool:
        """The reply is an error, or an upstream or the gateway broke it off."""
        last = self.last_call
        return self.status >= 400 or self.is_cut or (last is not None and bool(last.failure))

    def upstream_called(self) -> None:
        """Notes that an upstream is called now: what follows is its time, until `upstream_answered`."""
        now = time.perf_counter()
        self._sent = self._sent or now
        # The time between two calls counts as the upstream's, also that of the round's tools.
        self._came = 0.0

    def upstream_answered(self) -> None:
        """Notes that the head of a reply has come: what follows is the gateway's time."""
        self._came = time.perf_counter()

    def note_head(self) -> list[Header]:
        """Notes that the reply's head leaves now. Returns the `x-mnemogate-*` headers for it.

        The gateway's share is the time before the upstream was first called, and the time since its last reply began.
        """
        now = time.perf_counter()
        self.added_ms = self.added_so_far(now)
        self.first_ms = (now - self.begun) * 1000
        headers = [(name, value) for name, value in self.headers.items() if value is not None]
        headers.append(("x-mnemogate-added-ms", f"{self.added_ms:.2f}"))
        return headers

    def reply_headers(self, upstream: Sequence[Header]) -> list[Header]:
        """Notes that the reply's head leaves now. Returns all its headers. upstream: the upstream's, for the client."""
        if not self.rate_limits:
            return [*upstream, *self.note_head()]
        own = {name for name, _ in self.rate_limits}
        return [*(each for each in upstream if each[0] not in own), *self.rate_limits, *self.note_head()]

    def added_so_far(self, now: float | None = None) -> float:
        """Returns the gateway's share of the time until now, in milliseconds. now: by `time.perf_counter()`."""
        now = time.perf_counter() if now is None else now
        return ((self._sent or now) - self.begun + (now - self._came if self._came else 0.0)) * 1000
