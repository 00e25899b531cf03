"""One call of the model with its reply: the parts that have come, and the forms in which the reply goes on.

`RoundReader` (gateway.core.turn.round_reader) reads the reply into its `Round`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any, Final

import orjson

from adapters.types import NATIVE_REPLY, Header, Json
from gateway.core.conversation.fillers import make_filler_message
from gateway.core.conversation.private import with_private, without_private
from gateway.core.memory.call_arguments import read_arguments
from gateway.core.turn.chunks import split_into_chunks
from gateway.core.turn.client_view import ClientView, ReplyEvent
from gateway.core.turn.draft import MessageDraft, join_messages
from gateway.core.turn.spoken_text import SpokenText
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut, CallOwner, ToolCall

DONE_EVENT: Final = b"data: [DONE]\n\n"  # ends a stream


class ReplyForm(Enum):
    """The form in which the client is answered.

    The first reply decides, unless it is the body of a hidden round: then the next one does.
    """

    EVENTS = "events"
    BODY = "body"


# Names of the module, since each event of a stream compares with them, and attributes of an Enum are slow to read.
AS_EVENTS, AS_BODY = ReplyForm


class StoredIn(Enum):
    """The turn in which the reply of a round is stored, with its calls."""

    NO_TURN = "no turn"
    THIS_TURN = "this turn"
    EARLIER_TURN = "an earlier turn"


class Round:
    """One call of the model with its reply."""

    def __init__(
        self,
        terms: TurnTerms,
        view: ClientView,
        form: ReplyForm | None,
        content_before: Any = "",
        filler: str = "",
        number: int = 0,
    ) -> None:
        """Begins without a reply.

        form: the form in which the client is answered so far; None: the reply decides.
        content_before: the content of the rounds before, a text or a list of parts.
        filler: the filler that was sent after the previous reply was stored.
        number: the number of the round in its turn, from 0 on.
        """
        # The form in which the client is answered; None: not known yet.
        self.form = form
        # The status of the reply.
        self.status = 200
        # True: the status is one of success.
        self.is_success = True
        # The headers of the reply.
        self.headers: tuple[Header, ...] = ()
        # The message, as far as it has come.
        self.draft = MessageDraft(view.call_id_prefix and f"{view.call_id_prefix}_{number}")
        # The events from the finish_reason on, which wait for the end.
        self.tail: list[ReplyEvent] = []
        # The upstream's event `[DONE]`.
        self.done_event = b""
        # The body of a reply that is no stream.
        self.body = b""
        # The first chunk of a stream, with the id, model and time of its reply.
        self.first_chunk: Json = {}
        # The text that is shown beyond the reply's own.
        self.spoken = SpokenText(terms.asides, view, content_before, filler)
        # The turn in which the reply is stored.
        self.stored_in = StoredIn.NO_TURN
        # True: the view was notified that another round follows.
        self.is_hidden = False
        self._terms = terms

    @property
    def is_stored(self) -> bool:
        return self.stored_in is not StoredIn.NO_TURN

    @property
    def gateway_calls(self) -> list[ToolCall]:
        """The calls that the gateway runs."""
        if not self.draft.calls:
            return []
        return [call for call in self.draft.calls if call.owner is CallOwner.GATEWAY]

    @property
    def client_calls(self) -> list[ToolCall]:
        """The calls that the client has to answer."""
        if not self.draft.calls:
            return []
        return [call for call in self.draft.calls if call.owner is not CallOwner.GATEWAY]

    @property
    def has_text(self) -> bool:
        """True: the user has got text of the reply."""
        return bool(self.spoken.text or self.draft.text)

    def make_shown_reply(self, calls: Iterable[ToolCall] = ()) -> Json:
        """Returns the reply as the client got it, with these calls."""
        message = self.draft.make_message(calls)
        message.pop(NATIVE_REPLY, None)  # the client has got the parts of the native reply
        filler, words = self.spoken.filler, self.spoken.words
        if not (filler or words):
            return message
        filler_messages = [make_filler_message(filler)] if filler else []
        return join_messages([*filler_messages, message, {"content": words or None}])

    def make_upstream_message(self, calls: Iterable[ToolCall] | None = None) -> Json:
        """Returns the reply as it goes upstream again.

        Private fields of the message hold what was shown to the user beyond its text.

        calls: the calls that the message has; None: all calls of the reply.
        """
        sent_calls = [*(self.draft.calls if calls is None else calls)]
        asides = None
        if self._terms.asides is not None:
            asides = self._terms.asides.map_asides(call.name for call in sent_calls)
        return with_private(
            self.draft.make_message(sent_calls),
            filler=self.spoken.filler or None,
            spoken=self.spoken.words or None,
            asides=asides or None,
        )

    def list_last_events(self) -> list[ReplyEvent]:
        """Returns the last events of the stream. If the round is hidden, only the event with its usage.

        A view that shows each round has sent the usage of a hidden round already.
        """
        if not self.is_hidden:
            return self.tail
        if self._terms.shows_steps:
            return []
        usage_events = [
            event for event in self.tail if event.chunk and isinstance(event.chunk.get("usage"), dict)
        ]
        if not usage_events or not self._terms.wants_usage:
            return []
        last_event = usage_events[-1]
        chunk = {**(last_event.chunk or {}), "choices": []}
        return [ReplyEvent(raw=None, chunk=chunk, usage=last_event.usage)]

    def render_stream_as_body(self, calls: Iterable[ToolCall]) -> bytes:
        """Returns a reply that came as a stream as the body of a chat completion, with these calls."""
        return orjson.dumps(self._as_completion(without_private(self.make_shown_reply(calls))))

    def render_as_received(self) -> bytes:
        """Returns a complete reply in the form in which the client is answered: a body, or a stream of few events."""
        if self.form is AS_BODY:
            return self.body
        completion = self._as_completion(self.draft.make_message(self.draft.calls))
        chunks = split_into_chunks(completion, with_usage=self.draft.usage is not None)
        return b"".join([*(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks), DONE_EVENT])

    def resume(self, calls: Iterable[Json], unanswered_ids: Collection[str]) -> None:
        """Begins with the calls of a stored reply, in place of a new reply.

        unanswered_ids: the ids of the calls that the client has to answer; the gateway answers all others.
        """
        self.stored_in = StoredIn.EARLIER_TURN
        self.draft.add_calls([*calls], AllBut(), is_over=True)
        for call in self.draft.calls:
            if call.id in unanswered_ids:
                call.owner = CallOwner.CLIENT

    def add_filler(self, text: str) -> None:
        """Shows a filler that the model has not written."""
        self.spoken.add_filler(text, is_shown=self.form is AS_EVENTS)

    def claim_unreadable_calls(self) -> None:
        """Gives client calls with arguments that are no JSON to the gateway, so that their result is an error.

        Strict servers parse the arguments of earlier calls, and would refuse every later request.
        """
        for call in self.client_calls:
            if read_arguments(call.arguments_text) is None:
                call.owner = CallOwner.GATEWAY
            elif not call.arguments_text.strip():
                call.argument_pieces = ["{}"]

    def _as_completion(self, message: Json) -> Json:
        """Returns a reply that came as a stream as a chat completion with a message."""
        draft = self.draft
        choice: Json = {"index": 0, "message": message, "finish_reason": draft.finish_reason}
        head: Json = {
            key: self.first_chunk[key] for key in ("id", "created", "model") if key in self.first_chunk
        }
        return {**head, "object": "chat.completion", "choices": [choice], "usage": draft.usage}
