"""The receipt of a request: each call of an upstream with its usage, and the `x-mnemogate-*` headers.

Usage, limits, traces and metrics read the receipt. Work without a client (an agent's run, a job) has a receipt as well.
The edge publishes the receipt of a request once, after the reply's last byte (gateway.run.receipts). Work without a
client publishes its own.
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
from gateway.run.request_clock import RequestClock
from gateway.run.upstream_call import NO_PROMPT, PromptFacts, UpstreamCall
from storage.records import DEFAULT_PROJECT, Scope

CLIENT_GONE: Final = 499  # nginx's status for it; it appears in logs, metrics and receipts only


def mask_model_name(upstream: str, model: str) -> str:
    """Returns the name under which a turn's model is stored. Keys in it are masked, since callers put them there."""
    return mask_keys_in_name(f"{upstream}/{model}")


class RequestLine(NamedTuple):
    """The first line of a request, as its span shows it."""

    # The HTTP method.
    method: str
    # The scheme of the URL, `http` or `https`.
    scheme: str
    # The path of the URL, without its query.
    path: str


class GatewayStep(Struct, frozen=True):
    """A step of the gateway's own work for a request. Its times are of `time.perf_counter()`."""

    # The operation, as the conventions for traces name it.
    kind: Literal["execute_tool", "search_memory", "upsert_memory"]
    # The time at which the step began.
    started_at: float
    # The time at which the step ended.
    ended_at: float
    # The name of a tool, as it was offered.
    name: str = ""
    # The reason why a tool failed, from a closed list; "": no failure.
    failure: str = ""
    # The number of a search's hits in the note.
    count: int = 0
    # The tokens of the note.
    tokens: int = 0
    # True: the step is a search that took too long.
    is_late: bool = False
    # True: what the step wrote was on disk when the reply ended.
    is_durable: bool = True


class AgentRun(NamedTuple):
    """A run of an agent, as its span shows it."""

    # The public id of the agent.
    uid: str
    # By `time.perf_counter()`.
    started_at: float


class Work(Struct, frozen=True):
    """Work without a client."""

    # The name of its span.
    kind: str
    # The row of the memory for which the work is done; 0: the work continues a request that has its own receipt.
    agent_row: int = 0


class LimitFacts(Struct):
    """The limits that hold for a request, as far as they had an effect."""

    # Their `x-ratelimit-*` headers, which replace the upstream's.
    headers: Sequence[Header] = ()
    # True: a limit has refused the request.
    is_refused: bool = False
    # The id of the limit that has refused the request, or had another model answer it; 0: no limit has.
    limit_id: int = 0


class MemoryFacts(Struct):
    """The memory of a request, as far as it took part in the reply."""

    # The scope of the memory; None: not known yet, or no memory.
    scope: Scope | None = None
    # The row of the memory; 0: no memory, or a memory that is not stored yet.
    agent_row: int = 0
    # Is called with that row if the memory is stored later, even after the request; None: nothing is to be called.
    on_stored: Callable[[int], object] | None = None
    # The memory mode of the request.
    mode: str = "on"
    # The number of hits in the note.
    recalled: int = 0
    # True: a record of why the hits were recalled is stored with the turn.
    has_recall_record: bool = False
    # The name of the turn; None: no client may refer to the turn.
    turn_name: TurnName | None = None
    # True: the turn repeats a turn off the record, so its text is not stored.
    is_off_record: bool = False
    # The row of the exchange as which the turn was stored before its reply ended; 0: not known.
    exchange_row: int = 0

    def note_stored(self, agent_row: int) -> None:
        """Notes that the memory, which began with the turn, is stored now."""
        self.agent_row = agent_row
        if self.on_stored is not None:
            self.on_stored(agent_row)


class Receipt(Struct, eq=False, weakref=True):
    """The receipt of one request, or of work without one."""

    # The id of the request; "": it is not noted.
    request_id: str = ""
    # The caller's project.
    project: str = DEFAULT_PROJECT
    # The id of the caller's key; 0: the caller has no key.
    key_id: int = 0
    # The user as the request or the settings name it; "": no user.
    user: str = ""
    # The times of the request.
    clock: RequestClock = field(default_factory=RequestClock)
    # The calls of upstreams, in the order in which they were made.
    calls: list[UpstreamCall] = field(default_factory=list)
    # The last call that was made for the reply; None: no call was.
    last_call: UpstreamCall | None = None
    # The gateway's own steps, in the order in which they ended.
    steps: list[GatewayStep] = field(default_factory=list)
    # The facts of the prompt for the next call of an upstream.
    prompt: PromptFacts = NO_PROMPT
    # True: the next stream is asked for its usage, though the client did not ask for usage.
    hides_usage: bool = False
    # The work that the receipt is for; None: the receipt is for a request.
    work: Work | None = None
    # True: the request calls a model; False: it calls none, as a call over MCP, or work with its own receipt does.
    asks_model: bool = True
    # The limits of the request.
    limits: LimitFacts = field(default_factory=LimitFacts)
    # The memory of the request.
    memory: MemoryFacts = field(default_factory=MemoryFacts)
    # The status of the reply; 0: there was none.
    status: int = 0
    # True: the gateway has cut the reply when it stopped.
    is_cut: bool = False
    # The `x-mnemogate-*` headers of the reply. A header that is None is not sent.
    headers: dict[str, str | None] = field(default_factory=dict)
    # The request's context in its trace; None: the request is not traced.
    trace: TraceContext | None = None
    # The request's first line, for its trace; None: it is not traced, or the receipt is for work without a request.
    request_line: RequestLine | None = None
    # The run of an agent that the request is, for its trace; None: the request is no run.
    agent_run: AgentRun | None = None
    # Returns the usage of a reply with a text, by the gateway's count; None: an unknown prompt.
    usage_counter: Callable[[str], Json] | None = None

    @property
    def work_agent_row(self) -> int:
        """The row of the memory for which work is done; 0: a request, or work that continues one."""
        return 0 if self.work is None else self.work.agent_row

    def find_turn_name(self) -> TurnName | None:
        """Returns the name of the turn, even of one off the record; None: no client may refer to the turn."""
        return self.memory.turn_name

    def find_stored_turn_name(self) -> TurnName | None:
        """Returns the name of the turn with which the reply is stored; None: the reply is not stored."""
        return None if self.memory.is_off_record else self.memory.turn_name

    def name_answering_model(self) -> str:
        """Returns the model that was asked last, by the name that is stored with its turn, or ""."""
        call = self.last_call
        return "" if call is None else mask_model_name(call.upstream, call.model)

    def count_usage(self, text: str) -> Json | None:
        """Returns the usage of a reply with a text, by the gateway's count, or None if the prompt is not known."""
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

    def note_agent_run(self, uid: str) -> None:
        """Notes that a run of an agent begins. uid: the public id of the agent."""
        self.agent_run = AgentRun(uid, time.perf_counter())

    def note_write(self, started_at: float, *, is_durable: bool = True) -> None:
        """Notes for a trace a write of memory for which the reply waited."""
        if self.trace is not None:
            step = GatewayStep("upsert_memory", started_at, time.perf_counter(), is_durable=is_durable)
            self.steps.append(step)

    @property
    def has_failed(self) -> bool:
        """True if the reply is an error, or if an upstream or the gateway broke it off."""
        call_has_failed = self.last_call is not None and bool(self.last_call.failure)
        return self.status >= 400 or self.is_cut or call_has_failed

    def note_head(self) -> list[Header]:
        """Notes that the reply's head leaves now. Returns the `x-mnemogate-*` headers for it."""
        headers = [(name, value) for name, value in self.headers.items() if value is not None]
        headers.append(("x-mnemogate-added-ms", f"{self.clock.note_head():.2f}"))
        return headers

    def note_reply_head(self, upstream: Sequence[Header]) -> list[Header]:
        """Notes that the reply's head leaves now. Returns all its headers.

        upstream: the upstream's headers that the client gets.
        """
        limit_names = {name for name, _ in self.limits.headers}
        if limit_names:
            upstream = [header for header in upstream if header[0] not in limit_names]
        return [*upstream, *self.limits.headers, *self.note_head()]
