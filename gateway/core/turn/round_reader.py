"""Reads one reply of the model into its round, and shows it to the client's view as it comes in.

Two things are not shown at once:

- A tool call waits until its name is known, since the name decides whether the gateway or the client answers it.
- Everything from the finish_reason on (the `tail`) waits for the end. Some upstreams send the last text with it,
  and only the end of the reply decides whether another round follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson
from msgspec import Struct

from adapters.json_escapes import read_json
from adapters.reply_headers import replace_content_type
from adapters.types import EVENT_STREAM_TYPE, Event, Header, Json
from gateway.core.conversation.wire_message import choose_separator, read_text
from gateway.core.finish_reasons import CUT_REASONS, read_finish_reason
from gateway.core.turn.choice_ends import ChoiceEnds
from gateway.core.turn.chunks import as_deltas, is_first_choice, make_chunk, make_delta
from gateway.core.turn.client_view import ClientView, ReplyEvent
from gateway.core.turn.continued_reply import ContinuedReply
from gateway.core.turn.round import AS_BODY, AS_EVENTS, DONE_EVENT, Round
from gateway.core.turn.split_characters import SplitCharacters
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.text_events import TextEventForm
from gateway.core.turn.upstream_error import find_choice_error, find_openai_error
from gateway.core.usage.reported import find_usage
from gateway.errors import GatewayError, UpstreamReplyBroken

# The most events after the last finish_reason, which bounds the memory that an endless stream takes. Usage, verdicts of
# filters and [DONE] come there, which are few. Not measured.
MAX_TAIL_EVENTS: Final = 1000
# The most calls in one reply, far more than models make at once: as many as a stored step has numbers for. Each takes
# 1.5 kB, from an event of 100 bytes.
MAX_CALLS: Final = 500


class CompleteReply(Struct, frozen=True):
    """The model's reply is complete."""


class ErrorReply(Struct, frozen=True):
    """The upstream answered with an error, or with a body that is no chat completion."""

    body: bytes


class ErrorEvent(Struct, frozen=True):
    """The upstream put an error into its stream."""

    # The error in OpenAI's form.
    error: Json
    # The bytes of the event; None: the event has not the form of OpenAI's.
    raw: bytes | None


class BrokenReply(Struct, frozen=True):
    """The upstream could not be reached, or its reply broke off."""

    error: GatewayError


_COMPLETE = CompleteReply()
# The error of a reply with more calls than are read.
_TOO_MANY_CALLS: Final = f"The upstream's reply has more than {MAX_CALLS:,} tool calls"
RoundEnd = CompleteReply | ErrorReply | ErrorEvent | BrokenReply


class _AddedChoices(NamedTuple):
    """The effect of a chunk's choices."""

    # The pieces of client calls that the client gets; None: the pieces of the chunk, unchanged.
    calls: list[Json] | None
    # True: a choice goes on after its finish_reason.
    goes_on: bool


class RoundReader:
    """Reads the reply of one round. A returned `RoundEnd` has the way in which the reply ended; None: it goes on."""

    def __init__(
        self,
        current_round: Round,
        terms: TurnTerms,
        view: ClientView,
        make_turn_usage: Callable[[Json | None], Json | None] | None = None,
        continued: ContinuedReply | None = None,
    ) -> None:
        """Waits for the head of the reply.

        make_turn_usage: returns the client's usage for the usage of this reply, if no other reply follows
            (`Ledger.make_turn_usage`); None: this is the first reply.
        continued: the reply of the rounds before, which this one continues for the client; None: it stands alone.
        """
        self._round = current_round
        self._draft = current_round.draft
        self._terms = terms
        self._view = view
        # True: the request offers tools of the gateway.
        self._has_gateway_tools = bool(terms.gateway_tools)
        # True: the events from the finish_reason on wait for the end.
        self._holds_tail = terms.holds_end or self._has_gateway_tools
        self._make_turn_usage = make_turn_usage
        # True: the view has the turn's first chunk.
        self._has_begun = make_turn_usage is not None
        # The content of the rounds before, a text or a list of parts.
        self._content_before = current_round.spoken.content_before
        self._continued = continued
        # The choices of the reply that have ended.
        self._ends = ChoiceEnds(terms.choice_count)
        # Joins characters that were cut between two events.
        self._split_characters = SplitCharacters()
        # The form of events that add text and do nothing else; None: not known yet.
        self._text_form: TextEventForm | None = None
        # The body of an error reply, which comes as events.
        self._error_body: list[bytes] = []

    def start(self, status: int, headers: tuple[Header, ...]) -> None:
        """Reads the head of the reply."""
        self._round.status, self._round.headers = status, headers
        self._round.is_success = 200 <= status < 300

    def read_texts(self, batch: list[Event]) -> bool:
        """Reads events that add text and do nothing else. Returns False, and reads none, if any of them does more."""
        text_form = self._text_form
        if text_form is None:
            return False
        texts: list[str] = []
        for event in batch:
            text = text_form.find_text(event.raw)
            if text is None:
                return False
            texts.append(text)
        if not self._view.show_texts(batch, texts):
            return False
        self._draft.add_texts(texts)
        return True

    def read(self, batch: list[Event]) -> RoundEnd | None:
        """Reads the events that one read of the upstream brought."""
        if not self._round.is_success:
            self._error_body.extend(event.raw for event in batch)
            return None
        if self._round.form is not AS_EVENTS:
            self._begin_events()
        for event in batch:
            end = self._read_event(event)
            if end is not None:
                return end
        if len(self._round.tail) > MAX_TAIL_EVENTS:
            return self.fail(
                UpstreamReplyBroken("The upstream's stream goes on after its reply was complete")
            )
        if len(self._draft.calls) > MAX_CALLS:
            return self.fail(UpstreamReplyBroken(_TOO_MANY_CALLS))
        return None

    def read_whole(self, body: bytes) -> RoundEnd:
        """Reads the body of a whole reply, like a stream of one delta."""
        if not self._round.is_success:
            return ErrorReply(body)
        parsed, body = read_json(body)
        choices = parsed.get("choices") if isinstance(parsed, dict) else None
        if not isinstance(choices, list) or parsed.get("error"):
            return ErrorReply(body)
        if (choice_error := self._find_choice_error(parsed)) is not None:
            return ErrorReply(orjson.dumps({"error": choice_error}))
        usage = parsed.get("usage")
        if self._round.form is AS_EVENTS:
            # The client is reading events, so the body becomes events, with its usage in a chunk of its own.
            self._round.headers = replace_content_type(self._round.headers, EVENT_STREAM_TYPE)
            chunk = make_chunk(parsed)
            chunk.pop("usage", None)
            self._add_chunk(chunk, raw=None)
            if isinstance(usage, dict) and self._terms.wants_usage:
                self._add_chunk({**chunk, "choices": [], "usage": usage}, raw=None)
            self._round.done_event = DONE_EVENT
        else:
            self._round.form, self._round.body = AS_BODY, body
            self._view.add_whole_reply(body, parsed)
            if self._make_turn_usage is None:
                self._view.begin(parsed)
            for choice in choices:
                if is_first_choice(choice):
                    self._add_delta(make_delta(choice), choice.get("finish_reason"), calls=None)
        if len(self._draft.calls) > MAX_CALLS:
            return BrokenReply(UpstreamReplyBroken(_TOO_MANY_CALLS))
        self._draft.add_usage(usage)
        return self._end_complete()

    def end(self) -> RoundEnd:
        """Ends a stream that was not broken off."""
        if not self._round.is_success:
            return ErrorReply(b"".join(self._error_body))
        if not self._ends.has_finish_reason:
            return self.fail(UpstreamReplyBroken("The upstream's stream ended before its reply was complete"))
        return self._end_complete()

    def fail(self, error: GatewayError) -> RoundEnd:
        """Ends a reply that broke off. If each choice had ended before, the reply is complete."""
        if self._round.form is AS_EVENTS and self._ends.are_complete and not self._ends.has_gone_on:
            return self._end_complete()
        return BrokenReply(error)

    def end_texts(self) -> None:
        """Ends the texts of a reply that has no finish_reason. A client that joins its events has half a character."""
        if self._split_characters.is_waiting and (delta := self._split_characters.end()):
            self._draft.add(delta)
            chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
            self._view.show(ReplyEvent(b"", chunk=chunk))

    def show_tail(self) -> None:
        """Shows the events that waited for the end of the reply. They may have its last text."""
        while self._round.tail:
            self._view.show(self._round.tail.pop(0))

    @property
    def _is_in_tail(self) -> bool:
        """True if the next events wait for the end of the reply."""
        return self._holds_tail and self._ends.are_complete

    def _begin_events(self) -> None:
        if self._round.form is AS_BODY and self._content_before:
            # The round before was hidden, and its body held back; the client gets its text in this stream.
            self._view.add_text(read_text({"content": self._content_before}))
        self._round.form = AS_EVENTS

    def _read_event(self, event: Event) -> RoundEnd | None:
        """Reads one event. Returns how the reply has ended with it; None: the reply goes on."""
        data = event.data
        if data is None:
            self._show_other_event(event)
            return None
        if data.startswith(b"[DONE]"):
            self._round.done_event = event.raw
            return self._end_complete()
        chunk, strict_data = read_json(data)
        if isinstance(chunk, dict):
            if strict_data is not data or self._split_characters.is_waiting:
                self._split_characters.join(chunk, data)
            end = self._read_chunk(chunk, event)
            # While the tail holds events, later events must not overtake them.
            self._text_form = None if self._round.tail else TextEventForm.of(event.raw, chunk)
            return end
        lines = data.split(b"\n")
        if len(lines) > 1 and all(map(_is_event_data, lines)):  # the blank lines between them are missing
            # The lines are read one at a time, since a tail or a hidden round may begin with any of them.
            ends = (self._read_event(Event(b"data: %b\n\n" % line, line, event.name)) for line in lines)
            return next((end for end in ends if end is not None), None)
        if data.startswith(b"{") and not self._view.speaks_chat:
            return self.fail(UpstreamReplyBroken("The upstream's stream has an event that is no JSON"))
        self._show_other_event(event)
        return None

    def _read_chunk(self, chunk: Json, event: Event) -> RoundEnd | None:
        """Reads a chunk. event: the event of which the chunk is the data."""
        if "error" in chunk or not chunk.get("choices") or event.name == "error":
            error = find_openai_error(chunk, event.name)
            if error is not None:
                fields = chunk.get("error")
                is_openai_form = isinstance(fields, dict) and fields.get("message") == error["message"]
                return ErrorEvent(error, event.raw if is_openai_form else None)
        if (choice_error := self._find_choice_error(chunk)) is not None:
            return ErrorEvent(choice_error, raw=None)
        deltas = as_deltas(chunk)
        has_more = False
        if (
            deltas is not chunk
            and chunk.get("object") == "chat.completion"
            and self._draft.read_generated_text()
        ):
            # MiniMax ends its streams with the whole reply, for the usage that it has.
            deltas["choices"] = [
                {**choice, "delta": self._find_undelivered_fields(choice["delta"])}
                for choice in deltas["choices"]
            ]
            has_more = any(choice["delta"] for choice in deltas["choices"])
        # An event with more than its deltas loses its own bytes: clients look for content in deltas alone.
        self._add_chunk(deltas, None if has_more else event.raw, event.name)
        return None

    def _find_choice_error(self, reply: Json) -> Json | None:
        """Returns the error in a choice. None: no error, or the client reads chat completions and finds it itself."""
        return None if self._view.speaks_chat else find_choice_error(reply)

    def _find_undelivered_fields(self, message: Json) -> Json:
        """Returns the fields of a whole reply at the end of a stream that the deltas before it did not have."""
        is_delivered = {"content": bool(self._draft.text), "tool_calls": bool(self._draft.calls)}
        return {key: value for key, value in message.items() if value and not is_delivered.get(key, True)}

    def _show_other_event(self, event: Event) -> None:
        """Shows an event that is no chunk, in the order of the stream."""
        if self._is_in_tail:
            self._round.tail.append(ReplyEvent(event.raw))
        else:
            self._view.show(ReplyEvent(event.raw))

    def _add_chunk(self, chunk: Json, raw: bytes | None, name: str | None = None) -> None:
        """Adds a chunk to the draft, and shows it or puts it into the tail.

        raw: the event of which the chunk is the data; None: the chunk was made here.
        """
        calls, goes_on = self._add_choices(chunk.get("choices"))
        self._round.first_chunk = self._round.first_chunk or (chunk if chunk.get("choices") else {})
        usage = find_usage(chunk)
        turn_usage = self._add_usage(usage)
        if not self._has_begun:
            # Azure's first chunk has the verdict on the prompt, without choices and without the reply's id.
            self._has_begun = bool(chunk.get("choices"))
            self._view.begin(chunk)
        # The draft has the chunk as it came, since the reply goes upstream again.
        if self._continued is not None and self._continued.change_chunk(chunk, lambda: self._draft.text):
            raw = None
        event = ReplyEvent(raw, name, chunk, calls, turn_usage)
        # Some upstreams never give a finish_reason; with most of them usage is what ends a round.
        is_tail = self._is_in_tail or (usage is not None and self._has_gateway_tools and event.is_usage)
        if goes_on or not is_tail:
            self.show_tail()  # a finish_reason or usage in the middle of a reply was not its end
        if is_tail:
            self._round.tail.append(event)
        else:
            self._view.show(event)
        self._show_asides()

    def _add_choices(self, choices: Any) -> _AddedChoices:
        """Adds the choices of a chunk to the draft."""
        calls: list[Json] | None = None
        goes_on = False
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            goes_on = self._ends.note(choice) or goes_on
            # The turn follows the first of several choices. Gateway tools are offered only where there is just one.
            if is_first_choice(choice):
                calls = self._add_delta(choice.get("delta"), choice.get("finish_reason"), calls)
        return _AddedChoices(calls, goes_on)

    def _add_usage(self, usage: Any) -> Json | None:
        """Adds the usage of a chunk. Returns the usage for the client; None: the chunk's own usage stays."""
        if not isinstance(usage, dict):
            return None
        self._draft.add_usage(usage)
        return None if self._make_turn_usage is None else self._make_turn_usage(self._draft.usage)

    def _add_delta(self, delta: Any, reason: Any, calls: list[Json] | None) -> list[Json] | None:
        """Adds a delta of the first choice. Returns the pieces of calls that the client gets.

        calls: is returned if the delta has no calls.
        """
        draft = self._draft
        if reason and (draft.finish_reason is None or self._ends.has_gone_on):
            draft.finish_reason = str(reason)
        if not isinstance(delta, dict):
            return calls
        if self._round.spoken.content_before and (text := delta.get("content")):
            # The words of two rounds must not run together in the one message that the client gets.
            blanks = choose_separator(self._round.spoken.content_before, text)
            if blanks and self._round.form is AS_EVENTS:
                self._view.add_text(blanks)
            self._round.spoken.content_before = ""
        draft.add(delta)
        pieces = delta.get("tool_calls")
        if pieces or (reason and self._has_gateway_tools):
            return draft.add_calls(
                pieces if isinstance(pieces, list) else [], self._terms.gateway_tools, is_over=bool(reason)
            )
        return calls

    def _show_asides(self) -> None:
        """Shows the asides in the arguments of calls, as far as they have come."""
        if self._terms.asides is not None:
            self._round.spoken.read(self._draft, is_shown=self._round.form is AS_EVENTS)

    def _end_complete(self) -> CompleteReply | ErrorReply:
        """Ends a reply that is complete: shows the calls that no finish_reason has announced."""
        is_cut = read_finish_reason(self._draft.finish_reason) in CUT_REASONS
        # As a step of an agent it would pass for a success. Where no steps are saved the client gets it as it came.
        if self._terms.saves_steps and self._draft.is_empty and not is_cut:
            return ErrorReply(self._round.body)
        if self._draft.calls:
            calls = self._draft.add_calls([], self._terms.gateway_tools, is_over=True)
            if calls and self._round.form is AS_EVENTS:
                # Without a finish_reason only the end of the stream shows that these are the client's calls.
                self._view.add_calls(calls)
        self._show_asides()
        return _COMPLETE


def _is_event_data(line: bytes) -> bool:
    """Returns whether a line of an event's data is an event's data by itself."""
    return line == b"[DONE]" or isinstance(read_json(line)[0], dict)
