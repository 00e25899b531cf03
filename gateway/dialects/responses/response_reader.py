"""Reads a reply of OpenAI's Responses API that passes from an upstream to its client."""

from __future__ import annotations

from typing import Final

from adapters.json_escapes import join_halves, read_json_with_halves
from adapters.types import Event, Json
from gateway.core.conversation.wire_message import read_text
from gateway.core.lenient import as_object, decode_object
from gateway.core.turn.commands import FINISHED, End
from gateway.core.turn.draft import join_messages
from gateway.core.turn.native_reader import NativeReply
from gateway.core.usage.reported import is_pending
from gateway.dialects.responses.event_names import CONTINUABLE_END_EVENTS, CREATED_EVENT, END_EVENTS
from gateway.dialects.responses.input import read_items

_DELTA_EVENT: Final = "response.output_text.delta"
_ITEM_EVENT: Final = "response.output_item.done"
# The most events that are read of a reply without an end; later events are not remembered. Chosen: far above what
# models write in one reply. Reading so many events takes some 0.2 s.
MAX_CONTENT_EVENTS: Final = 50_000


class ResponseReader:
    """Reads a response that passes. Implements `NativeReader`, which documents the methods.

    The last event of a stream has the whole response, so only the last event is parsed. If the stream breaks off, the
    earlier events are parsed.
    """

    def __init__(self, *, may_be_later: bool = False) -> None:
        """Makes a reader. may_be_later: True if the upstream may make the response in the background."""
        self.is_over = False
        self.background_id: str | None = None
        self._may_be_later = may_be_later
        self._end: End = End.CANCELLED
        # The response in the last event, or in the whole body.
        self._response: Json = {}
        self._created_event = b""
        # The events with content, for a stream that breaks off.
        self._content_events: list[bytes] = []

    def read(self, event: Event) -> None:
        """Reads the next event of a stream (`NativeReader` documents the method)."""
        if event.data is None or self.is_over:
            return
        # Some upstreams give all events the name "message", which stands for no name.
        is_named = event.name is not None and event.name.startswith("response.")
        event_type = event.name if is_named else decode_object(event.data).get("type")
        if not isinstance(event_type, str):
            return
        if event_type in (_DELTA_EVENT, _ITEM_EVENT):
            if len(self._content_events) < MAX_CONTENT_EVENTS:
                self._content_events.append(event.data)
        elif event_type == CREATED_EVENT:
            self._created_event = event.data
            if self._may_be_later:
                self._note_pending(_read_response(event.data))
        elif event_type in END_EVENTS:
            self.is_over = True
            # The text of a reply that a limit has cut counts nevertheless.
            self._end = FINISHED if event_type in CONTINUABLE_END_EVENTS else End.FAILED
            self._response = _read_response(event.data)

    def read_whole(self, body: bytes) -> None:
        self.is_over = True
        self._response = decode_object(body)
        if self._may_be_later and self._note_pending(self._response):
            self._end = End.CANCELLED
            return
        has_failed = self._response.get("error") or self._response.get("status") in (
            "failed",
            "cancelled",
        )
        self._end = End.FAILED if has_failed else FINISHED

    def make_reply(self) -> NativeReply:
        """Returns the reply as far as it has come. A reply that was cut has only its text, without calls."""
        response = self._response or _read_response(self._created_event)
        items = response.get("output") or self._assemble_items()
        if not isinstance(items, list):
            items = []
        translated = read_items([item for item in items if isinstance(item, dict)], is_lenient=True)
        replies = [message for message in translated.messages if message["role"] == "assistant"]
        message = join_messages(replies) if replies else None
        if message is not None and self._end is not FINISHED:
            text = read_text(message)
            message = {"role": "assistant", "content": text} if text else None
        ids = [response.get("id"), *(item.get("id") for item in items if isinstance(item, dict))]
        return NativeReply(
            self._end, message, tuple(item_id for item_id in ids if isinstance(item_id, str) and item_id)
        )

    def _note_pending(self, response: Json) -> bool:
        """Notes the id of a response in the background. Returns whether the response is made there."""
        response_id = response.get("id")
        self.background_id = response_id if isinstance(response_id, str) and is_pending(response) else None
        return self.background_id is not None

    def _assemble_items(self) -> list[Json]:
        """Returns the complete items, and for each item that is not complete the text that has come."""
        items: dict[int, Json] = {}  # the items by their indices in the output
        deltas: dict[int, list[str]] = {}
        for data in self._content_events:
            event = as_object(read_json_with_halves(data))
            index, item, delta = event.get("output_index"), event.get("item"), event.get("delta")
            if not isinstance(index, int):
                continue
            if isinstance(item, dict):
                items[index] = decode_object(data)["item"]  # without halves
            elif isinstance(delta, str):
                deltas.setdefault(index, []).append(delta)
        for index, pieces in deltas.items():
            part = {"type": "output_text", "text": join_halves("".join(pieces))}
            items.setdefault(index, {"type": "message", "role": "assistant", "content": [part]})
        return [items[index] for index in sorted(items)]


def _read_response(event_data: bytes) -> Json:
    return as_object(decode_object(event_data).get("response"))
