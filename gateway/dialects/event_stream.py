"""Server-sent events as the dialects write them, and the buffer of the events that a client gets."""

from __future__ import annotations

from typing import Any, Final, Protocol

import orjson

from adapters.types import Json
from gateway.core.turn.client_view import MAX_HELD_BYTES

# The note that a turn is not on disk yet, the last line of its stream. A blank line after it would be an event without
# data, and so an error, to older versions of openai-go. A client that splits a stream at its blank lines would lose an
# event after it.
NOT_DURABLE: Final = b": mnemogate not durable\n"


def encode_event(data: Json, name: str | None = None) -> bytes:
    """Returns an event. name: the event's name; None: no name, as in a stream of chat completions."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, orjson.dumps(data))


def encode_typed_event(event_type: str, fields: Json) -> bytes:
    """Returns an event that has its type as its name and in its data."""
    return b"event: %b\ndata: %b\n\n" % (event_type.encode(), orjson.dumps({"type": event_type, **fields}))


class EventSender(Protocol):
    """Sends an event with a type and other fields, as `EventBuffer.emit` does."""

    def __call__(self, event_type: str, **fields: Any) -> None: ...


class EventBuffer:
    """Events and comments that were not sent to the client yet."""

    __slots__ = ("_held_bytes", "_is_holding", "_unsent")

    def __init__(self, *, is_holding: bool) -> None:
        """Makes an empty buffer.

        is_holding: True to hold all bytes until the first content, so that an upstream's error can become the status.
        """
        self._is_holding = is_holding
        self._held_bytes = 0
        self._unsent: list[bytes] = []

    @property
    def is_holding(self) -> bool:
        """True until the bytes may be sent."""
        return self._is_holding

    def release(self) -> None:
        """Lets the bytes be sent from now on, even without content."""
        self._is_holding = False

    def add(self, raw: bytes, *, has_content: bool = True) -> None:
        """Adds an event or a comment. Content releases the bytes; without content, at most MAX_HELD_BYTES are held."""
        self._unsent.append(raw)
        if self._is_holding:
            self._held_bytes += len(raw)
            self._is_holding = not has_content and self._held_bytes <= MAX_HELD_BYTES

    def emit(self, event_type: str, **fields: Any) -> None:
        """Adds an event that has its type as its name and in its data."""
        self.add(encode_typed_event(event_type, fields))

    def take(self) -> bytes:
        """Returns the bytes that may be sent now, and drops them."""
        if self._is_holding or not self._unsent:
            return b""
        data = b"".join(self._unsent)
        self._unsent.clear()
        return data
