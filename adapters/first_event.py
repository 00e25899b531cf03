"""The first event of a stream, which decides whether a request is answered or sent elsewhere."""

from __future__ import annotations

from adapters.errors import ProviderBroke
from adapters.sse import EventDecoder
from adapters.types import Event

# The time for which comments before the content are held back. Chosen below the 5 s that clients (LiveKit's) wait for
# the head and for each sign of life after it.
HELD_S = 2.0
# The names of the events of Claude's API without any content.
_EMPTY_EVENTS = ("ping", "message_start", "content_block_start")


class FirstEvent:
    """Looks for the first event of a stream with content, or for the error that comes in its place.

    Comments and events without content before it are passed over for `HELD_S`.
    """

    __slots__ = ("_decoder", "comment", "ends_at")

    def __init__(self) -> None:
        self._decoder = EventDecoder()
        # The first comment or event without content, which counts as the first event after `HELD_S`; None: there was
        # no such event yet.
        self.comment: Event | None = None
        # The time, by the clock of `feed`, at which `HELD_S` is over.
        self.ends_at = 0.0

    def feed(self, data: bytes, now: float) -> Event | None:
        """Returns the event once it is whole, or `comment` after `HELD_S`; None: neither. now: the time in seconds."""
        events = self._decoder.feed(data)
        for event in events:
            if _has_content(event):
                return event
        if not events:
            return None
        if self.comment is None:
            self.comment, self.ends_at = events[0], now + HELD_S
        return self.comment if now >= self.ends_at else None

    def finish(self) -> Event:
        """Returns the event that the end of the stream completes. Raises: ProviderBroke: it completes no event."""
        for event in self._decoder.finish():
            if _has_content(event):
                return event
        raise ProviderBroke("the upstream's stream ended before its first event")


def _has_content(event: Event) -> bool:
    return event.data is not None and event.name not in _EMPTY_EVENTS
