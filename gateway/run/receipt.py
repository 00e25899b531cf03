"""The receipt of a request: each call of an upstream with its usage, and the `x-mnemogate-*` headers.

Usage, limits, traces and metrics read it. Work without a client (an agent's run, a job) has one as well. The edge hands
it to its readers once, after the reply's last byte. Work without a client hands on its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Final, Literal, NamedTuple, Protocol
from weakref import ref

from msgspec import Struct, field

from adapters.types import BYTES_PER_TOKEN, Header, Json, ModelRequest
from gateway.core.trace_context import TraceContext, without_trace
from gateway.core.turn_name import TurnName
from gateway.core.usage.estimate import estimate_prompt_tokens
from gateway.core.usage.reply_facts import NO_FACTS, Piece, ReplyFacts, facts_of
from gateway.core.usage.reported import ReplyUsage, costs_tokens, reported_counts
from gateway.masks import mask_keys_in_name
from storage.records import Scope, TokenCounts

# The last pieces of a reply, one of which has the reason why it ended. The others have the usage and marks of the end.
_LAST_PIECES: Final = 4
CLIENT_GONE: Final = 499  # nginx's status for it; it appears in logs, metrics and receipts only


def stored_model_name(upstream: str, model: str) -> str:
    """Returns the name under which a turn's model is stored. Keys in it are masked, since callers put them there."""
    return mask_keys_in_name(f"{upstream}/{model}")


class FailedTry(Struct, frozen=True):
    """A try that brought no reply, before the one that ended the call."""

    # The endpoint's name, as in `x-mnemogate-tries`.
    endpoint: str
    # A status, or the kind of failure.
    outcome: str
    # When it failed, by `time.perf_counter()`.
    at: float


# The fields have defaults: to give few of them costs 0.2 us, and each call of an upstream makes a struct.
class UpstreamCall(Struct, eq=False):
    """One call of an upstream, with all its tries. Its times are of `time.perf_counter()`; 0.0: never."""

    # When it began.
    begun: float
    # When the reply's head came.
    answered: float = 0.0
    # When the first piece of its body came.
    first: float = 0.0
    # When the reply ended.
    ended: float = 0.0
    # The name of the upstream of the last try, and its kind in the settings.
    upstream: str = ""
    provider: str = ""
    # The model as it was sent.
    model: str = ""
    # The path below the upstream's base URL, with the query.
    path: str = ""
    method: str = "POST"
    is_streamed: bool = False
    # The gateway asked for the usage of the stream, and its client did not.
    hides_usage: bool = False
    # It was made for a memory: its tokens were counted as background when it was answered.
    is_background: bool = False
    # The tokens of the request's body, estimated.
    sent_tokens: int = 0
    # The prompt's tokens by our count, those that memory added, and those of the conversation that it left out; 0: they
    # were not counted.
    prompt_tokens: int = 0
    injected_tokens: int = 0
    evicted_tokens: int = 0
    # The characters of the model's reply, as far as it was received; 0 where its tokens are reported.
    received_chars: int = 0
    # The tokens as the upstream reported them; None: it did not.
    counts: TokenCounts | None = None
    # Where it did not, those of the prompt as it reported them when the reply began; None: it did not.
    prompt_counts: TokenCounts | None = None
    # The id of a response that the upstream goes on making, whose tokens it reports to a later GET; None: it is none.
    pending_id: str | None = None
    # The status of the answer; 0: there was none.
    status: int = 0
    # Why there was no answer, or why a reply broke off, as in metrics; "": neither.
    failure: str = ""
    tries: list[FailedTry] = field(default_factory=list)
    # The fields below are set where the request is traced.
    # The most tokens that the model may write.
    max_tokens: int | None = None
    # The prompt has a summary.
    is_compacted: bool = False
    # The first piece of the reply and its last ones, until `read_reply` reads them.
    first_piece: Piece | None = None
    last_pieces: deque[Piece] | None = None
    # What was read of them.
    reply: ReplyFacts = NO_FACTS

    @property
    def is_answered(self) -> bool:
        """A model has answered, in full or in part."""
        return bool(self.first) and 200 <= self.status < 300

    @property
    def costs_tokens(self) -> bool:
        return costs_tokens(self.method, self.path)

    def used_counts(self) -> TokenCounts:
        """Returns the tokens of the call: estimated where none were reported, and 0 where no byte of a reply came."""
        if self.counts is not None:
            return self.counts
        if not self.is_answered or not self.costs_tokens:
            return _NO_COUNTS
        prompt = self.prompt_counts or TokenCounts(self.prompt_tokens or self.sent_tokens)
        return prompt._replace(completion=self.received_chars // BYTES_PER_TOKEN)

    def note_usage(self, usage: ReplyUsage, prompt_usage: Json | None) -> None:
        """Notes what a reply has reported, as far as it came. prompt_usage: `ModelReply.prompt_usage`."""
        self.counts, self.pending_id = usage.counts, usage.pending_id
        if self.counts is None:
            self.received_chars = usage.chars
            self.prompt_counts = usage.prompt_counts or reported_counts(prompt_usage)

    def note_piece(self, piece: Piece) -> None:
        """Notes that a piece of the reply has come: the time of the first one, and for a trace the piece itself."""
        if not self.first:
            self.first = time.perf_counter()
            if self.last_pieces is not None:
                self.first_piece = piece
        elif self.last_pieces is not None and piece:
            self.last_pieces.append(piece)

    def read_reply(self) -> None:
        """Reads the facts for a trace from the pieces of the reply, and drops the pieces."""
        if self.first_piece is not None:
            self.reply = facts_of((self.first_piece, *(self.last_pieces or ())))
        self.first_piece = self.last_pieces = None

    def end(self) -> None:
        """Notes that the reply has ended, or was given up. Idempotent."""
        if not self.ended:
            self.ended = time.perf_counter()


_NO_COUNTS = TokenCounts()


class RequestLine(NamedTuple):
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
    # The tokens of the next prompt by our count, those that memory added, and those of the conversation that it left
    # out; 0: they were not counted.
    prompt_tokens: int = 0
    injected_tokens: int = 0
    evicted_tokens: int = 0
    # The usage of the next stream is asked for, and the client did not ask for it.
    hides_usage: bool = False
    # False: it is of work without a client. The request that began the work has a receipt of its own.
    is_request: bool = True
    # False: no model is called, as in a call over MCP, or it is called by work with a receipt of its own.
    asks_model: bool = True
    # The row of the memory for which background work is done; 0: it is a request's.
    work_memory: int = 0
    # The `x-ratelimit-*` headers of the limits that hold for the request. They replace the upstream's.
    rate_limits: Sequence[Header] = ()
    # A limit has refused the request.
    is_refused: bool = False
    # The id of the limit that has refused it, or had another model answer; 0: none has.
    limit_id: int = 0
    # The kind of work without a client, as its span is named.
    kind: str = ""
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
    # The fields below are for its trace. None: it has no request.
    request_line: RequestLine | None = None
    # When it ended, by `time.perf_counter()`.
    ended: float = 0.0
    # The agent whose run it is, and when the run began.
    agent: str = ""
    agent_begun: float = 0.0
    # The row of the request's memory.
    memory_row: int = 0
    # As in the call of the next prompt.
    max_tokens: int | None = None
    is_compacted: bool = False
    # Returns the usage of a reply with a text, by our count; None: the prompt is not known.
    usage_counter: Callable[[str], Json] | None = None
    # When an upstream was first called, and when the head of the last reply came.
    _sent: float = 0.0
    _came: float = 0.0

    def stored_turn(self) -> TurnName | None:
        """Returns the name of the turn with which the reply is stored; None: it is not."""
        return None if self.is_off_record else self.begun_turn()

    def begun_turn(self) -> TurnName | None:
        """Returns the name of the turn, even if it is off the record; None: it has none."""
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
            call.last_pieces = deque(maxlen=_LAST_PIECES)
        self.calls.append(call)
        if not call.is_background:
            self.last_call = call

    def begin_agent(self, uid: str) -> None:
        """Notes that a run of an agent begins. uid: the agent's."""
        self.agent, self.agent_begun = uid, time.perf_counter()

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
        now = time.perf_counter()
        self._sent = self._sent or now
        # The time between two calls counts as the upstream's, also that of the round's tools.
        self._came = 0.0

    def upstream_answered(self) -> None:
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


# The receipt of the current task's work. Searches and steps of jobs are called by way of journals, tools and partial
# functions, which do not pass receipts on. The reference is weak, because connections and tasks that go on hold the
# context in which they were made.
_current: ContextVar[ref[Receipt] | None] = ContextVar("receipt", default=None)


def set_current_receipt(receipt: Receipt) -> Token[ref[Receipt] | None]:
    """Adds the calls that this task makes for a memory to a receipt. Returns the token that resets this."""
    return _current.set(ref(receipt))


def _current_receipt() -> Receipt | None:
    found = _current.get()
    return None if found is None else found()


def begin_background_call(
    request: ModelRequest, upstream: str, kind: str, model: str, *, is_background: bool = True
) -> UpstreamCall:
    """Returns a call for a memory that begins now. It is in the receipt of the current work, if there is one.

    upstream, kind: the upstream's name, and its kind in the settings.
    model: as it is sent.
    is_background: as in `UpstreamCall`.
    """
    call = UpstreamCall(
        time.perf_counter(),
        upstream=upstream,
        provider=kind,
        model=model,
        path=request.path,
        is_background=is_background,
        sent_tokens=estimate_prompt_tokens(request.body),
    )
    if (receipt := _current_receipt()) is not None:
        receipt.add_call(call)
    return call


def with_trace_headers(
    request: ModelRequest, receipt: Receipt | None, call: UpstreamCall, *, propagates: bool | None
) -> ModelRequest:
    """Returns a request with the trace headers that its upstream may see.

    receipt: None: the request is not traced.
    call: that of the request.
    propagates: whether the upstream gets trace headers; None: if the client has sent some.
    """
    trace = None if receipt is None else receipt.trace
    if receipt is None or trace is None:
        # The client's headers are forwarded as they came.
        return request._replace(headers=without_trace(request.headers)) if propagates is False else request
    headers = without_trace(request.headers)
    if trace.parent_id if propagates is None else propagates:
        headers += trace.headers(receipt.calls.index(call) + 1)
    return request._replace(headers=headers)


def with_background_trace_headers(
    request: ModelRequest, call: UpstreamCall, *, propagates: bool | None
) -> ModelRequest:
    """Returns the same for a call of background work."""
    return with_trace_headers(request, _current_receipt(), call, propagates=propagates)


class RecordsTraces(Protocol):
    """Decides which requests are traced, and makes spans of their receipts."""

    def begin(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> TraceContext | None:
        """Returns the trace of a request or work that begins now; None: it is not sampled. headers: the request's."""

    def take(self, receipt: Receipt) -> None:
        """Takes the receipt of a traced request that has ended."""


class Receipts:
    """Hands the receipts of requests and of work to their readers. One for the process."""

    def __init__(self, tracer: RecordsTraces | None = None) -> None:
        """tracer: None: nothing is traced."""
        self.tracer = tracer
        self._readers: list[Callable[[Receipt], object]] = []

    def when_handed_on(self, reader: Callable[[Receipt], object]) -> None:
        """Has a function called with every receipt once, after the reply's last byte. They are called in this order."""
        self._readers.append(reader)

    def hand_on(self, receipt: Receipt) -> None:
        """Hands the receipt of ended work to all readers and to the tracer."""
        for read in self._readers:
            read(receipt)
        self.hand_to_tracer(receipt)

    def hand_to_tracer(self, receipt: Receipt) -> None:
        """Hands a receipt to the tracer alone, if its request is traced."""
        if receipt.trace is not None and self.tracer is not None:
            self.tracer.take(receipt)

    @contextmanager
    def work(
        self, project: str, memory: int = 0, kind: str = "run", *, key: int = 0, is_awaited: bool = False
    ) -> Iterator[Receipt]:
        """Yields the receipt of work without a client, and hands it on when the work ends.

        project: "" where it is not known.
        memory: the row of the memory for which the work is done; 0: the work continues a request, which was counted.
        kind: the kind of work, as its span is named.
        key: the id of the key of the request that it continues.
        is_awaited: the request or work of this task waits for it. Both are one trace.
        """
        receipt = Receipt(
            time.perf_counter(), project=project, key=key, is_request=False, work_memory=memory, kind=kind
        )
        if self.tracer is not None:
            waiting = _current_receipt() if is_awaited else None
            if waiting is None:
                receipt.trace = self.tracer.begin()
            elif waiting.trace is not None:
                receipt.trace = self.tracer.begin(waiting.trace.own_headers())
        token = set_current_receipt(receipt)
        try:
            yield receipt
        finally:
            _current.reset(token)
            self.hand_on(receipt)
