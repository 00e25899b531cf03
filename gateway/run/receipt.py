"""The one account of a request: each call of an upstream with what it used, and the `x-mnemogate-*` headers.

Usage, limits, traces and metrics read it. What is worked on without a client (an agent's run, a job) has one as well.
The edge hands it on once, after the reply's last byte; what has no client hands on its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Final, Literal, Protocol
from weakref import ref

from msgspec import Struct, field

from adapters.types import BYTES_PER_TOKEN, Header, Json, ModelRequest
from gateway.core.trace_context import TraceContext, without_trace
from gateway.core.usage.reply_facts import NO_FACTS, Piece, ReplyFacts, facts_of
from gateway.core.usage.reported import costs_tokens
from storage.records import Scope, TokenCounts

# The reason why a reply ended stands in one of so many; what follows it are usage and marks of the end.
_LAST_PIECES: Final = 4
CLIENT_GONE: Final = 499  # nginx's status for it; it appears in logs, metrics and accounts only


class FailedTry(Struct, frozen=True):
    """A try that brought no reply, before the one that ended the call."""

    # A name as in `x-mnemogate-tries`: of the upstream, with a number from its second key on.
    endpoint: str
    # A status, or the kind of failure.
    outcome: str
    # Of `time.perf_counter()`, when it had failed.
    at: float


# With defaults, since a struct with few fields given costs 0.2 us, and each call of an upstream makes one.
class UpstreamCall(Struct, eq=False):
    """One call of an upstream, whatever number of tries it took. Its times are of `time.perf_counter()`; 0.0: never."""

    # When it began; when the reply's head came, its first piece of a body, and its end.
    begun: float
    answered: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    # Of the last try: the upstream's name and its kind in the settings, the model as it was sent.
    upstream: str = ""
    provider: str = ""
    model: str = ""
    # Below the upstream's base URL, with the query.
    path: str = ""
    method: str = "POST"
    is_streamed: bool = False
    # The gateway asked for the usage of the stream, and its client did not.
    hides_usage: bool = False
    # Made for a memory: what it used was counted as background when it was answered.
    is_background: bool = False
    # Of the body, and of the prompt by our count (0: it was not counted), with the part that memory added.
    sent_bytes: int = 0
    prompt_tokens: int = 0
    injected_tokens: int = 0
    # What the model wrote, in characters, as far as it was received.
    received_chars: int = 0
    # The tokens as the upstream reported them; None: it did not.
    counts: TokenCounts | None = None
    # The status of the answer; 0: there was none.
    status: int = 0
    # Why there was none, or why a reply broke off, as in metrics; "": neither.
    failure: str = ""
    tries: list[FailedTry] = field(default_factory=list)
    # From here on where the request is traced. Of the prompt: the most that the model may write, and whether a summary
    # stands in it.
    max_tokens: int | None = None
    is_compacted: bool = False
    # The first piece of the reply and its last ones, until it has been read what they say.
    first_piece: Piece | None = None
    last_pieces: deque[Piece] | None = None
    reply: ReplyFacts = NO_FACTS

    @property
    def is_answered(self) -> bool:
        """A model has answered, in full or in part."""
        return bool(self.first) and 200 <= self.status < 300

    @property
    def costs_tokens(self) -> bool:
        return costs_tokens(self.method, self.path)

    def used(self) -> TokenCounts:
        """Returns the tokens, estimated where nothing was reported; none where no byte of a reply came."""
        if self.counts is not None:
            return self.counts
        if not self.is_answered or not self.costs_tokens:
            return _NONE
        return TokenCounts(
            self.prompt_tokens or self.sent_bytes // BYTES_PER_TOKEN, self.received_chars // BYTES_PER_TOKEN
        )

    def received(self, piece: Piece) -> None:
        """Notes that a piece of a reply has come: when the first one did, and for a trace what it may say."""
        if not self.first:
            self.first = time.perf_counter()
            if self.last_pieces is not None:
                self.first_piece = piece
        elif self.last_pieces is not None and piece:
            self.last_pieces.append(piece)

    def read_reply(self) -> None:
        """Reads for a trace what the pieces of the reply say, and drops them."""
        if self.first_piece is not None:
            self.reply = facts_of((self.first_piece, *(self.last_pieces or ())))
        self.first_piece = self.last_pieces = None

    def end(self) -> None:
        """Notes that the reply is over, or given up; nothing, if it was."""
        if not self.ended:
            self.ended = time.perf_counter()


_NONE = TokenCounts()


class OwnStep(Struct, frozen=True):
    """Work of the gateway's own for a request. Its times are of `time.perf_counter()`."""

    kind: Literal["execute_tool", "search_memory", "upsert_memory"]
    begun: float
    ended: float
    # Of a tool, as it was offered.
    name: str = ""
    # Of a closed list; "": none.
    failure: str = ""
    # Of a search: how many hits went into the note and its tokens, and whether the search came too late.
    count: int = 0
    tokens: int = 0
    is_late: bool = False
    # Of a write: it was on disk when the reply ended.
    is_durable: bool = True


class Receipt(Struct, eq=False, weakref=True):
    """The account of one request, or of work without one."""

    # When the request arrived, by time.perf_counter().
    begun: float
    # "": it is not noted.
    request_id: str = ""
    # Of the caller; key 0: none.
    project: str = "default"
    key: int = 0
    # As the request named its user, or the settings do; "": no user.
    user: str = ""
    # In the order in which they were made.
    calls: list[UpstreamCall] = field(default_factory=list)
    # In the order in which they ended.
    steps: list[OwnStep] = field(default_factory=list)
    # Of the prompt that is sent next, by our count (0: not counted), and the part of it that memory added.
    prompt_tokens: int = 0
    injected_tokens: int = 0
    # The usage of the stream that comes next is asked for, which its client did not.
    hides_usage: bool = False
    # Of a client's request; False: of work that goes on without one, whose request is counted already.
    is_request: bool = True
    # False: no model has part in it, as in a call over MCP, or is asked by work that goes on after it.
    asks_model: bool = True
    # The row of the memory that the work is for, which is no request's; 0: it is a request's.
    memory: int = 0
    # The `x-ratelimit-*` headers of the limits that hold for it; they take the place of the upstream's.
    rate_limits: Sequence[Header] = ()
    # A limit has turned it away.
    is_refused: bool = False
    # The limit that has turned it away, or had another model answer; 0: none.
    limit: int = 0
    # Of work without a request: its kind, as its span is named.
    kind: str = ""
    # How it ended, once it has: the reply's status (0: none), and whether the gateway has cut it at its end.
    status: int = 0
    is_cut: bool = False
    # The memory that it belongs to, once that is known, and the mode of that.
    scope: Scope | None = None
    mode: str = "on"
    # How many hits went into the note, and whether it is noted with the turn why.
    recalled: int = 0
    is_noted: bool = False
    # When the reply's head left, since it began.
    first_ms: float | None = None
    # The gateway's part of the time up to the reply's head.
    added_ms: float = 0.0
    # By name; one that is None is not sent.
    headers: dict[str, str | None] = field(default_factory=dict)
    # The name by which a client may refer to the turn; None: by nothing.
    turn: str | None = None
    # None: it is not traced. What follows is for its trace: method, scheme and path as they came; when it ended; the
    # agent whose run it is, and since when; the row of the memory that took part.
    trace: TraceContext | None = None
    asked: tuple[str, str, str] | None = None
    ended: float = 0.0
    agent: str = ""
    agent_begun: float = 0.0
    memory_row: int = 0
    # Of the prompt that is sent next, as in its call.
    max_tokens: int | None = None
    is_compacted: bool = False
    # Returns the usage of a reply with a text, counted here; None: its prompt is not known.
    count_tokens: Callable[[str], Json] | None = None
    # When an upstream was first called, and when the last reply's head came.
    _sent: float = 0.0
    _came: float = 0.0

    def stored_turn(self) -> tuple[str, str] | None:
        """Returns the names of conversation and turn under which a reply is stored; None: it is not."""
        conversation, turn = self.headers.get("x-mnemogate-conversation"), self.turn
        is_stored = self.headers.get("x-mnemogate-memory") == "on"
        return (conversation, turn) if is_stored and conversation is not None and turn is not None else None

    def counted(self, text: str) -> Json | None:
        """Returns the usage of a reply with a text, counted here; None: its prompt is not known."""
        return None if self.count_tokens is None else self.count_tokens(text)

    def begin_call(self) -> UpstreamCall:
        """Adds a call of an upstream, which begins now."""
        call = UpstreamCall(time.perf_counter())
        if self.trace is not None:
            call.last_pieces = deque(maxlen=_LAST_PIECES)
        self.calls.append(call)
        return call

    def begin_agent(self, uid: str) -> None:
        """Notes that a run of an agent begins. uid: the agent's."""
        self.agent, self.agent_begun = uid, time.perf_counter()

    def searched(self, begun: float, ms: float, count: int, tokens: int, *, is_late: bool) -> None:
        """Notes for a trace that memory was searched; nothing, if it was not. ms: 0: it was not."""
        if self.trace is not None and ms:
            ended = begun + ms / 1000
            step = OwnStep("search_memory", begun, ended, count=count, tokens=tokens, is_late=is_late)
            self.steps.append(step)

    def wrote(self, begun: float, *, is_durable: bool = True) -> None:
        """Notes for a trace that memory was written, and the reply waited for it."""
        if self.trace is not None:
            step = OwnStep("upsert_memory", begun, time.perf_counter(), is_durable=is_durable)
            self.steps.append(step)

    @property
    def last_call(self) -> UpstreamCall | None:
        """The last call that was made for its reply; None: there was none."""
        return next((call for call in reversed(self.calls) if not call.is_background), None)

    @property
    def has_failed(self) -> bool:
        """True where it ended with an error, or its reply was broken off by an upstream or the gateway."""
        last = self.last_call
        return self.status >= 400 or self.is_cut or (last is not None and bool(last.failure))

    @property
    def is_answered(self) -> bool:
        """A model has answered, in full or in part, or none has part in it."""
        calls = (call for call in self.calls if not call.is_background)
        return not self.asks_model or any(call.is_answered and call.costs_tokens for call in calls)

    def upstream_called(self) -> None:
        now = time.perf_counter()
        self._sent = self._sent or now
        self._came = 0.0  # what is between two calls is a round's: the upstream's time, and its tools'

    def upstream_answered(self) -> None:
        self._came = time.perf_counter()

    def close(self) -> list[Header]:
        """Returns the headers as the reply's head leaves, `x-mnemogate-added-ms` with them.

        The gateway's share is the time before the upstream was first called, and the time since its last reply began.
        """
        now = time.perf_counter()
        self.added_ms = self.added_so_far(now)
        self.first_ms = (now - self.begun) * 1000
        headers = [(name, value) for name, value in self.headers.items() if value is not None]
        headers.append(("x-mnemogate-added-ms", f"{self.added_ms:.2f}"))
        return headers

    def reply_headers(self, upstream: Sequence[Header]) -> list[Header]:
        """Returns all headers as the reply's head leaves. upstream: those of the upstream's that the client gets."""
        if not self.rate_limits:
            return [*upstream, *self.close()]
        own = {name for name, _ in self.rate_limits}
        return [*(each for each in upstream if each[0] not in own), *self.rate_limits, *self.close()]

    def added_so_far(self, now: float | None = None) -> float:
        """Returns the gateway's share of the time until now, in milliseconds."""
        now = time.perf_counter() if now is None else now
        return ((self._sent or now) - self.begun + (now - self._came if self._came else 0.0)) * 1000


# Of what this task works on. Searches and steps of jobs are called by way of journals, tools and partial functions,
# which know nothing of accounts. Connections and tasks that go on hold the context in which they were made, hence the
# reference is weak.
_current: ContextVar[ref[Receipt] | None] = ContextVar("account", default=None)


def set_current(receipt: Receipt) -> Token[ref[Receipt] | None]:
    """Has the calls that are made for a memory in this task be in an account. Returns what takes it back."""
    return _current.set(ref(receipt))


def _current_receipt() -> Receipt | None:
    found = _current.get()
    return None if found is None else found()


def begin_background_call(request: ModelRequest, upstream: str, kind: str, model: str) -> UpstreamCall:
    """Returns a call for a memory that begins now, in the account of what is under way; without one nothing reads it.

    upstream, kind: as in its account. model: as it is sent.
    """
    receipt = _current_receipt()
    call = UpstreamCall(time.perf_counter()) if receipt is None else receipt.begin_call()
    call.upstream, call.provider, call.model = upstream, kind, model
    call.is_background = True
    call.path, call.sent_bytes = request.path, len(request.body)
    return call


def in_trace(
    request: ModelRequest, receipt: Receipt | None, call: UpstreamCall, *, propagates: bool | None
) -> ModelRequest:
    """Returns a request with the headers of the trace that its upstream may know.

    receipt: None: of what is not traced.
    call: the request's own.
    propagates: whether they go to the upstream; None: where the client has sent some.
    """
    trace = None if receipt is None else receipt.trace
    if receipt is None or trace is None:
        # The client's go on as they came.
        return request._replace(headers=without_trace(request.headers)) if propagates is False else request
    headers = without_trace(request.headers)
    if trace.parent_id if propagates is None else propagates:
        headers += trace.headers(receipt.calls.index(call) + 1)
    return request._replace(headers=headers)


def in_background_trace(
    request: ModelRequest, call: UpstreamCall, *, propagates: bool | None
) -> ModelRequest:
    """Returns the same for a call that is made for a memory."""
    return in_trace(request, _current_receipt(), call, propagates=propagates)


class RecordsTraces(Protocol):
    """Decides which requests are traced, and makes spans of their accounts."""

    def begin(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> TraceContext | None:
        """Returns the trace of what begins now; None: it is not sampled. headers: of the request."""

    def take(self, receipt: Receipt) -> None:
        """Takes the account of what has ended and is traced."""


class Accounts:
    """Hands the accounts of requests and of work on to those that read them. One for the process."""

    def __init__(self, tracer: RecordsTraces | None = None) -> None:
        """tracer: None: nothing is traced."""
        self.tracer = tracer
        # Each is handed every account once, after its last byte.
        self.readers: list[Callable[[Receipt], None]] = []

    def hand_on(self, receipt: Receipt) -> None:
        """Hands an account on that has ended."""
        for read in self.readers:
            read(receipt)
        self.hand_to_tracer(receipt)

    def hand_to_tracer(self, receipt: Receipt) -> None:
        """Hands an account that has ended to the tracer alone, if it is traced."""
        if receipt.trace is not None and self.tracer is not None:
            self.tracer.take(receipt)

    @contextmanager
    def work(self, project: str, memory: int = 0, kind: str = "run") -> Iterator[Receipt]:
        """Yields the account of work without a request, and hands it on when that ends.

        project: "" where it is not known.
        memory: the row of the one that it is done for; 0: it goes on with a request that was counted.
        kind: of the work, as its span is named.
        """
        receipt = Receipt(time.perf_counter(), project=project)
        receipt.is_request, receipt.memory = False, memory
        receipt.kind = kind
        if self.tracer is not None:
            receipt.trace = self.tracer.begin()
        token = set_current(receipt)
        try:
            yield receipt
        finally:
            _current.reset(token)
            self.hand_on(receipt)
