"""Renders a chat completion for its client, in the upstream's own bytes where nothing in them changes.

The client sees one reply whatever number of rounds made it: one id, one role, one usage, no trace of hidden rounds.
(platform.openai.com/docs/api-reference/chat/streaming)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import orjson

from adapters.types import Event, Json
from gateway.core.conversation.private import without_private
from gateway.core.turn.chunks import has_content, is_first_choice
from gateway.core.turn.client_view import MAX_HELD_BYTES, ClientView, ReplyEvent
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.terms import TurnTerms
from gateway.core.usage.withheld_usage import without_null_usage
from gateway.dialects.chat.errors import CHAT_ERRORS
from gateway.dialects.event_stream import NOT_DURABLE, encode_event
from gateway.errors import GatewayError


class ChatView(ClientView):
    """The view of chat completions. It shows one reply, without gateway tools and steps, and one finish_reason.

    While gateway tools are offered, chunks are held back until the first content. A hidden round may come first, and
    then an upstream's error in the next round can still be the reply's status.
    """

    speaks_chat: ClassVar[bool] = True

    def __init__(self, terms: TurnTerms) -> None:
        # True while events are held back.
        self._holds_events = bool(terms.gateway_tools)
        # The bytes of the events that are held back.
        self._held_bytes = 0
        # True if the gateway has asked for usage, and the client has not.
        self._strips_usage = terms.adds_usage and not terms.wants_usage
        # The first chunk of the first round.
        self._first_chunk: Json = {}
        # True if a chunk was shown.
        self._has_begun = False
        # True if a chunk with the role was shown.
        self._has_role = False
        # True if a round was hidden.
        self._has_hidden_round = False
        # True if events pass in their own bytes.
        self._passes_events = not self._holds_events
        # The events that the client has not been sent yet.
        self._unsent: list[bytes] = []

    def take(self) -> bytes:
        if self._holds_events or not self._unsent:
            return b""
        data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
        self._unsent.clear()
        return data

    def release(self) -> None:
        self._holds_events = False

    def begin(self, first: Json) -> None:
        self._first_chunk = first

    def show(self, event: ReplyEvent) -> None:
        if self._passes_events and not self._strips_usage and event.calls is None and event.raw is not None:
            self._unsent.append(event.raw)
        else:
            self._show_changed(event)

    def show_texts(self, batch: Sequence[Event], texts: Sequence[str]) -> bool:
        # Nearly every event of every stream is shown here: its bytes pass as they came.
        if self._passes_events:
            raw = [event.raw for event in batch]
            if self._strips_usage:
                raw = [*map(without_null_usage, raw)]
            self._unsent.extend(raw)
        return self._passes_events

    def add_text(self, text: str) -> None:
        role = {} if self._has_begun else {"role": "assistant"}
        self._append_chunk({**role, "content": text})

    def add_thought(self, text: str) -> None:
        self._append_chunk({"reasoning_content": text})

    def add_calls(self, calls: list[Json]) -> None:
        self._append_chunk({"tool_calls": calls})

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        for event in tail:
            self._show_changed(event, is_hidden=True)
        self._has_hidden_round = True
        self._passes_events = False

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None, done: bytes) -> None:
        if finish_reason and not any(event.has_finish for event in tail):
            # In a hidden round the client may have read a content of null, and its calls were taken out. A message
            # without content and calls is refused by upstreams when the client sends it back, so it gets a content.
            delta = {"content": ""} if self._has_hidden_round else {}
            self._append_chunk(delta, finish_reason)
        for event in tail:
            self._show_changed(event, finish_reason)
        if done:
            self._append(done)
        self._holds_events = False

    def note_not_durable(self) -> None:
        self._append(NOT_DURABLE)

    def show_upstream_error(self, error: Json, raw: bytes | None) -> None:
        self._append(raw if raw is not None else encode_event({"error": error}))

    def fail(self, error: GatewayError) -> None:
        self._append(CHAT_ERRORS.render_event(error))

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        """Returns the body of the last reply with the message, id and usage of all rounds."""
        if is_unchanged:
            return body
        completion = orjson.loads(body)
        for choice in completion["choices"]:
            if is_first_choice(choice):
                choice["message"] = without_private(outcome.shown_reply or {})
                choice["finish_reason"] = outcome.finish_reason
        if outcome.round_count > 1:
            completion |= self._identity
            if isinstance(completion.get("usage"), dict):
                completion["usage"] = outcome.usage
        return orjson.dumps(completion)

    def render_error_body(self, status: int, body: bytes) -> bytes:
        return body

    def _append(self, raw: bytes, *, has_content: bool = True) -> None:
        """Appends bytes. has_content: True if the bytes have content, so that all held bytes may be sent."""
        if self._strips_usage:
            raw = without_null_usage(raw)  # where usage is asked for, every other chunk has `"usage": null`
        self._unsent.append(raw)
        self._has_begun = True
        if self._holds_events:
            self._held_bytes += len(raw)
            self._holds_events = not has_content and self._held_bytes <= MAX_HELD_BYTES

    @property
    def _identity(self) -> Json:
        """The first chunk's id, time and model, which all later chunks get as well."""
        return {key: self._first_chunk[key] for key in ("id", "created", "model") if key in self._first_chunk}

    def _append_chunk(self, delta: Json, finish_reason: str | None = None) -> None:
        """Appends a chunk of the gateway's own."""
        choice: Json = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self._append(encode_event({**self._identity, "object": "chat.completion.chunk", "choices": [choice]}))
        self._has_role = self._has_role or "role" in delta

    def _show_changed(
        self, event: ReplyEvent, finish_reason: str | None = None, *, is_hidden: bool = False
    ) -> None:
        """Appends an event in the client's form, in the upstream's bytes if nothing changes.

        finish_reason: the finish_reason in place of the upstream's; None: the upstream's stays.
        is_hidden: True if the event ends a hidden round.
        """
        chunk = event.chunk
        if chunk is None:
            self._append(event.raw or b"", has_content=False)
            return
        if (self._strips_usage or is_hidden) and event.is_usage:
            return
        changed_fields = self._find_changed_fields(chunk, event.usage, is_hidden=is_hidden)
        choices = [
            self._change_choice(choice, event.calls, finish_reason, is_hidden=is_hidden)
            for choice in event.choices
        ]
        contents = _read_contents(choices)
        if any(shown is not choice for shown, choice in zip(choices, event.choices, strict=True)):
            # An event of which all content was removed is left out.
            if not contents.has_content and not contents.has_role:
                return
            changed_fields["choices"] = choices
        self._has_role = self._has_role or contents.has_role
        raw = event.raw
        if changed_fields or raw is None:
            raw = encode_event({**chunk, **changed_fields}, event.name)
        self._append(raw, has_content=contents.has_content)
        self._passes_events = self._has_role and not (self._holds_events or self._has_hidden_round)

    def _find_changed_fields(self, chunk: Json, usage: Json | None, *, is_hidden: bool) -> Json:
        """Returns the fields of a chunk, besides its choices, that the client gets with other values."""
        changed_fields: Json = {}
        # The client sees one reply: the chunks of later rounds get the id, time and model of the first.
        if self._has_hidden_round:
            changed_fields = {key: value for key, value in self._identity.items() if chunk.get(key) != value}
        if is_hidden and isinstance(chunk.get("usage"), dict):
            changed_fields["usage"] = None
        elif usage is not None:
            changed_fields["usage"] = usage
        return changed_fields

    def _change_choice(
        self, choice: Any, calls: list[Json] | None, finish_reason: str | None, *, is_hidden: bool
    ) -> Any:
        """Returns a choice in the client's form; the same object if nothing changes."""
        if not isinstance(choice, dict):
            return choice
        changed_fields: Json = {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            dropped_keys = set()
            if calls is not None:
                dropped_keys.add("tool_calls")
            if self._has_role and self._has_hidden_round:
                dropped_keys.add("role")
            if calls or dropped_keys & delta.keys():
                changed_fields["delta"] = {
                    key: value for key, value in delta.items() if key not in dropped_keys
                }
                if calls:
                    changed_fields["delta"]["tool_calls"] = calls
        reason = choice.get("finish_reason")
        if reason and is_hidden:
            changed_fields["finish_reason"] = None
        elif reason and finish_reason and reason != finish_reason:
            changed_fields["finish_reason"] = finish_reason
        return {**choice, **changed_fields} if changed_fields else choice


class _ChunkContents(NamedTuple):
    """The contents of a chunk, in all its choices."""

    # True if one of the choices has a role.
    has_role: bool
    # True if one of the choices has content, or an end.
    has_content: bool


def _read_contents(choices: Sequence[Any]) -> _ChunkContents:
    valid_choices = [choice for choice in choices if isinstance(choice, dict)]
    deltas = [choice["delta"] for choice in valid_choices if isinstance(choice.get("delta"), dict)]
    has_finish = any(choice.get("finish_reason") for choice in valid_choices)
    has_role = any(delta.get("role") for delta in deltas)
    return _ChunkContents(has_role, has_finish or any(map(has_content, deltas)))
