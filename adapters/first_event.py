"""The first event of a stream, which decides whether a request is answered or sent elsewhere."""

from __future__ import annotations

import re
from typing import Final

import orjson

from adapters.errors import ProviderReplyBroken
from adapters.sse import EventDecoder
from adapters.types import Event

# The seconds for which comments and events without content are held back. Chosen below the 5 s that clients (LiveKit's)
# wait for the head and for each sign of life after it.
HELD_S = 2.0
# The names of the events of Claude's API without any content.
_EMPTY_EVENTS: Final = ("ping", "message_start", "content_block_start")
_CHOICES: Final = re.compile(rb'"choices"\s*:')
# The most bytes of a chunk of a chat completion without any content. Azure's first chunk has a filter's results for the
# prompt, of some hundred bytes.
_MAX_EMPTY_BYTES: Final = 4096


class FirstEvent:
    """Looks for the first event of a stream with content, or for the error that comes in its place.

    Comments and events without content before it are passed over for `HELD_S`.
    """

    __slots__ = ("_decoder", "held_event", "hold_ends_at")

    def __init__(self) -> None:
        self._decoder = EventDecoder()
        # The first comment or event without content, which counts as the first event after `HELD_S`; None: there was
        # no such event yet.
        self.held_event: Event | None = None
        # The time, by the clock of `feed`, at which `held_event` has been held for `HELD_S`; 0.0: no event is held.
        self.hold_ends_at = 0.0

    def feed(self, data: bytes, now: float) -> Event | None:
        """Returns the event once it is whole, or `held_event` after `HELD_S`; None: neither. now: in seconds."""
        events = self._decoder.feed(data)
        for event in events:
            if has_content(event):
                return event
        if not events:
            return None
        if self.held_event is None:
            self.held_event = events[0]
            self.hold_ends_at = now + HELD_S
        return self.held_event if now >= self.hold_ends_at else None

    def finish(self) -> Event:
        """Returns the event that the stream's end completes. Raises: ProviderReplyBroken: it completes no event."""
        for event in self._decoder.finish():
            if has_content(event):
                return event
        raise ProviderReplyBroken("the upstream's stream ended before its first event")


def has_content(event: Event) -> bool:
    """Returns whether an event is more than a comment, or than the beginning of a reply with nothing in it yet."""
    data = event.data
    if data is None or event.name in _EMPTY_EVENTS:
        return False
    return len(data) > _MAX_EMPTY_BYTES or _CHOICES.search(data) is None or not _is_empty_chunk(data)


def _is_empty_chunk(data: bytes) -> bool:
    """Returns whether data is a chunk of a chat completion that has a role at most, as OpenAI's first chunk."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):
        return False
    if chunk.get("error") or chunk.get("usage"):
        return False
    return all(map(_is_empty_choice, chunk["choices"]))


def _is_empty_choice(choice: object) -> bool:
    """Returns whether a choice has neither an end nor anything that its delta adds to the message but the role."""
    if not isinstance(choice, dict) or choice.get("finish_reason"):
        return False
    delta = choice.get("delta")
    return isinstance(delta, dict) and not any(value for key, value in delta.items() if key != "role")
