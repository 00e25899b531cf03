"""The seam between the machine and the dialect in which a client is answered.

The machine decides what the client gets, and when; a `ClientView` of the dialect makes the bytes. Chunks and messages
are those of chat completions, the form into which the adapters bring every provider, whatever the client speaks. The
form is the upstream's: every dialect answers in server-sent events or in one JSON body, as the upstream did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from adapters.types import Event, Json
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.tool_result import ToolResult
from gateway.core.usage.withheld_usage import has_usage_alone
from gateway.errors import GatewayError
from storage.run_records import WaitKind

# The most bytes that a view holds back before the first text: a role, filters' verdicts and comments take some kB.
MAX_HELD_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class ReplyEvent:
    """One event of the upstream's stream on its way to the client."""

    # The bytes of the event; None: the chunk was made of a whole reply that came in the middle of a stream.
    raw: bytes | None
    # The event's name, which few upstreams give.
    name: str | None = None
    # The parsed event; None: a comment, or an unknown event.
    chunk: Json | None = None
    # The pieces of client calls that the client gets with this event; None: the pieces of the chunk, unchanged.
    calls: list[Json] | None = None
    # The usage of all rounds, which replaces the usage of the chunk; None: the usage of the chunk stays.
    usage: Json | None = None

    @property
    def choices(self) -> list[Any]:
        choices = self.chunk.get("choices") if self.chunk else None
        return choices if isinstance(choices, list) else []

    @property
    def has_finish(self) -> bool:
        return any(isinstance(choice, dict) and choice.get("finish_reason") for choice in self.choices)

    @property
    def is_usage(self) -> bool:
        """True if the event is the chunk that carries nothing but usage."""
        return self.chunk is not None and has_usage_alone(self.chunk)


class ClientView:
    """One reply as the client sees it. The machine calls the view, then takes the bytes.

    By default a view shows nothing, and holds nothing back. A dialect implements what its clients are to see.

    The order of the calls in one turn, where `take` may follow each and `release` may come at any time:

        begin                            with the first chunk (`add_whole_reply` comes before it)
        for each round:
          show, show_texts, add_...      the pieces of the reply
          hide_round                     if another round follows
          show_calls, show_tool_result   the gateway's calls, and each result as it comes
          show_results, begin_step       if the steps are saved, and another round follows
        prepare_stored_fields            while the turn is saved, before `end` if `TurnTerms.holds_end`
        note_stop                        the reason of the end
        note_not_stored                  if the turn could not be stored
        render_body                      the end of a reply in one body, or in place of it:
        show_results, end                the end of a stream
        note_not_durable                 if the turn is not on disk

    An error ends the turn at any point: by `render_error_body` if it can still be the status of the reply, or else by
    `note_stop` and then `show_upstream_error` or `fail`.
    """

    __slots__ = ()
    # The client reads chat completions. The view shows the upstream's own bytes, even an event that cannot be read; so
    # the content type is the upstream's.
    speaks_chat: ClassVar[bool] = False
    # The beginning of the ids of calls that the upstream gives no id, or the id of another call of the reply: the view
    # needs an id for each call, and results name the call by it. "": the client gets the upstream's ids as they are.
    call_id_prefix: str = ""

    @property
    def has_signed_thoughts(self) -> bool:
        """True: the thoughts of each round are a block of their own, with a signature that no other text has."""
        return False

    def take(self) -> bytes:
        """Returns the bytes that may leave now, each once.

        No bytes leave before the first text or call, before `MAX_HELD_BYTES` of anything else, or before `release`. The
        reply's status leaves with the first bytes, so until then an error of a later round can be the status.
        """
        return b""

    def release(self) -> None:
        """Ends the holding back: the client has waited for long, and the held bytes may be its only sign of life."""

    # -- a stream

    def begin(self, first: Json) -> None:
        """Begins with the turn's first chunk, which has id, model and time of the reply. Whole replies have one, too.

        Chunks without choices may have come before. The view gets each of them, and the last chunk counts.
        """

    def add_whole_reply(self, body: bytes, reply: Json) -> None:
        """Adds a whole reply, even of a hidden round. body: the body as it came. reply: the value of the body."""

    def show(self, event: ReplyEvent) -> None:
        """Shows an event of the round that is read."""

    def show_texts(self, batch: Sequence[Event], texts: Sequence[str]) -> bool:
        """Shows events that have these texts and nothing else. Returns False: the view needs each event by `show`."""
        return True

    def add_text(self, text: str) -> None:
        """Shows text of no event: of whole replies before, the separator between two rounds, a filler."""

    def add_spoken_text(self, text: str, between: str, call_index: int) -> None:
        """Shows text that a call speaks to the user, as it is written into the call's arguments.

        between: the blanks that separate `text` from the text before, where both are shown as one.
        call_index: the index of the call in the reply.
        """
        self.add_text(between + text)

    def add_thought(self, text: str) -> None:
        """Shows a piece of a thought that the model wrote into the arguments of a call."""

    def add_calls(self, calls: list[Json]) -> None:
        """Shows calls of the client's tools that were held back to the end of a stream without a finish_reason."""

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        """Ends a hidden round: it has no calls of the client, and another round follows.

        tail: the last events of the round, with a finish_reason and usage other than the reply's.
        """

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None, done: bytes) -> None:
        """Ends the stream.

        tail: the events from the first finish_reason on.
        finish_reason: the finish_reason in place of the upstream's, sent even if the upstream sent none; None: the
            upstream's stays.
        done: the upstream's `[DONE]` event; b"": the upstream sent no such event.
        """

    def note_not_stored(self) -> None:
        """Notes before the end that the turn could not be stored."""

    def note_not_durable(self) -> None:
        """Notes after the end that the turn is not on disk."""

    def prepare_stored_fields(self, outcome: TurnOutcome, tail: Sequence[ReplyEvent]) -> Json:
        """Prepares the reply for its storing, and returns the private fields that go with it (`private.py`).

        The view may show the tail for this, and choose what the end will have: an id, the usage, a time. `end` gets the
        same tail after the turn is stored, and does not show it twice.

        tail: the last events of the reply.
        """
        return {}

    # -- the gateway's tools

    def show_calls(self, calls: Sequence[ToolCall]) -> None:
        """Shows complete gateway calls that are about to run."""

    def show_tool_result(self, result: ToolResult) -> None:
        """Shows the result of a gateway call."""

    # -- a turn that saves each step

    def show_results(self, first_seq: int | None, results: Sequence[Json], *, is_last: bool = False) -> None:
        """Shows results of the gateway's tools as they are stored.

        first_seq: the number of the first result; None: the results are a part of the reply, since no tool was run.
        is_last: True if no step is opened with these results.
        """

    def begin_step(self, first_seq: int, reply_seq: int) -> None:
        """Begins a step. Results of the round before are its input.

        first_seq: the number of the step's first message.
        reply_seq: the number of the step's reply.
        """

    def note_stop(
        self, reason: StopReason, waiting: Mapping[str, WaitKind], calls: Sequence[ToolCall] = ()
    ) -> None:
        """Notes the reason for which the turn ends; `end` or an error follows.

        waiting: the calls that wait for an answer, as in `TurnOutcome`.
        calls: the calls that wait, and other calls that were not shown yet.
        """

    # -- errors

    def show_upstream_error(self, error: Json, raw: bytes | None) -> None:
        """Ends the stream with an error of the upstream's.

        error: the error with message, type, param, code, and the upstream's other fields.
        raw: the bytes of the upstream's event; None: the event has another form than `error`.
        """

    def fail(self, error: GatewayError) -> None:
        """Ends the stream with an error of the gateway's."""

    # -- one body

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        """Returns the body of a reply that is no stream, or of a stream of which the view has shown nothing.

        body: the last body that `add_whole_reply` got, for fields outside of the reply; the reply is in `outcome`.
        is_unchanged: True if the body holds exactly what the client gets.
        """
        return b""

    def render_error_body(self, status: int, body: bytes) -> bytes | None:
        """Returns the body that the client gets for an upstream's error, or for a 200 that is no chat completion.

        None: the body has no error that this dialect could show. Then the machine calls this method again with the
        error in OpenAI's form; for a 200 it answers with a 502 of the gateway's.
        """
        return body


class UnseenView(ClientView):
    """Shows nothing: for a turn without a reader. The result of such a turn is read from the store.

    The class itself is a `ViewFactory`, so it is made with terms, which it does not need.
    """

    def __init__(self, terms: TurnTerms) -> None: ...


class ViewFactory(Protocol):
    """Makes the view of a turn in the dialect of a route.

    speaks_chat: the client reads chat completions, so a reply that the gateway has no part in may pass as it comes.
    """

    @property
    def speaks_chat(self) -> bool: ...

    def __call__(self, terms: TurnTerms) -> ClientView: ...
