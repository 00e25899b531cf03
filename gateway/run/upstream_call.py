"""One call of an upstream, for the receipt: its times, its tries and its usage."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from msgspec import Struct, field

from adapters.token_counts import BYTES_PER_TOKEN
from adapters.types import Json
from gateway.core.usage.reply_facts import NO_FACTS, Piece, ReplyFacts, read_facts
from gateway.core.usage.reported import ReplyUsage, costs_tokens, find_reported_counts
from storage.run_records import TokenCounts

# The number of a reply's last pieces that are held: one has the finish reason, and the usage and end marks may follow
# it.
_LAST_PIECES: Final = 4


class FailedTry(Struct, frozen=True):
    """A try that brought no reply, before the one that ended the call."""

    # The endpoint's name, as in `x-mnemogate-tries`.
    endpoint: str
    # A status, or the kind of failure.
    outcome: str
    # By `time.perf_counter()`.
    failed_at: float


class PromptFacts(Struct, frozen=True):
    """The prompt of a call, as far as the gateway made it. Its tokens are by the gateway's count; 0: not counted."""

    # The tokens of the whole prompt.
    tokens: int = 0
    # The tokens that memory added.
    injected_tokens: int = 0
    # The tokens of the conversation that memory left out.
    evicted_tokens: int = 0
    # True: the prompt has a summary.
    is_compacted: bool = False
    # The most tokens that the model may write after it.
    max_tokens: int | None = None


NO_PROMPT: Final = PromptFacts()


# Most fields have defaults, since each call of an upstream makes a struct, which takes 0.2 us if few are given.
class UpstreamCall(Struct, eq=False):
    """One call of an upstream, with all its tries. Its times are of `time.perf_counter()`; 0.0: never."""

    # The time at which the call began.
    started_at: float
    # The time at which the first piece of its body came.
    first_at: float = 0.0
    # The time at which the reply ended.
    ended_at: float = 0.0
    # The name of the upstream of the last try.
    upstream: str = ""
    # The kind of this upstream, in the settings.
    provider: str = ""
    # The model as it was sent.
    model: str = ""
    # The path below the upstream's base URL, with the query.
    path: str = ""
    # The HTTP method.
    method: str = "POST"
    # True: the reply is a stream.
    is_streamed: bool = False
    # True: the gateway asked for the usage of the stream, and its client did not.
    hides_usage: bool = False
    # True: the call was made for a memory, and its tokens were counted as background when it was answered.
    is_background: bool = False
    # The tokens of the request's body, estimated.
    sent_tokens: int = 0
    # The facts of the prompt, by the gateway's count.
    prompt: PromptFacts = NO_PROMPT
    # The characters of the model's reply, as far as it was received; 0 where its tokens are reported.
    received_chars: int = 0
    # The tokens that the upstream reported at the end of the reply; None: no tokens were reported.
    counts: TokenCounts | None = None
    # The prompt's tokens that the upstream reported at the beginning of a reply without `counts`; None: no such report.
    prompt_counts: TokenCounts | None = None
    # The id of a response that the upstream goes on making in the background: it reports its tokens to a later GET.
    pending_id: str | None = None
    # The status of the response; 0: there was no response.
    status: int = 0
    # The reason why there was no response, or why it broke off, by the names of the metrics; "": neither.
    failure: str = ""
    # The tries that failed before the last one.
    tries: list[FailedTry] = field(default_factory=list)
    # The fields below are set where the request is traced.
    # The first piece of the reply, until `read_reply` reads it.
    first_piece: Piece | None = None
    # The last pieces of the reply, until `read_reply` reads them.
    last_pieces: deque[Piece] | None = None
    # The facts that `read_reply` has read.
    reply: ReplyFacts = NO_FACTS

    @property
    def is_answered(self) -> bool:
        """True if a model has answered, in full or in part."""
        return bool(self.first_at) and 200 <= self.status < 300

    @property
    def costs_tokens(self) -> bool:
        return costs_tokens(self.method, self.path)

    def trace_pieces(self) -> None:
        """Begins to hold the pieces of the reply that have facts for its trace."""
        self.last_pieces = deque(maxlen=_LAST_PIECES)

    def estimate_used_counts(self) -> TokenCounts:
        """Returns the tokens of the call: estimated where none were reported, and 0 where no byte of a reply came."""
        if self.counts is not None:
            return self.counts
        if not self.is_answered or not self.costs_tokens:
            return _NO_COUNTS
        prompt = self.prompt_counts or TokenCounts(self.prompt.tokens or self.sent_tokens)
        return prompt._replace(completion=self.received_chars // BYTES_PER_TOKEN)

    def note_usage(self, usage: ReplyUsage, prompt_usage: Json | None) -> None:
        """Notes the usage that a reply has reported so far. prompt_usage: the value of `ModelReply.prompt_usage`."""
        self.counts, self.pending_id = usage.counts, usage.pending_id
        if self.counts is None:
            self.received_chars = usage.char_count
            self.prompt_counts = usage.prompt_counts or find_reported_counts(prompt_usage)

    def note_piece(self, piece: Piece) -> None:
        """Notes that a piece of the reply has come: the time of the first one, and for a trace the piece itself."""
        if not self.first_at:
            self.first_at = time.perf_counter()
            if self.last_pieces is not None:
                self.first_piece = piece
        elif self.last_pieces is not None and piece:
            self.last_pieces.append(piece)

    def read_reply(self) -> None:
        """Reads the facts for a trace from the pieces of the reply, and drops the pieces."""
        if self.first_piece is not None:
            self.reply = read_facts((self.first_piece, *(self.last_pieces or ())))
        self.first_piece = self.last_pieces = None

    def end(self) -> None:
        """Notes that the reply has ended, or was given up. Idempotent."""
        if not self.ended_at:
            self.ended_at = time.perf_counter()


_NO_COUNTS = TokenCounts()
