"""The decoder for Anthropic's server-sent events, each of which has a name and one line of data."""

from __future__ import annotations

from adapters.sse import EventDecoder
from adapters.types import Event

_NAME = b"event: "
_DATA = b"data: "


class NamedEventDecoder(EventDecoder):
    """An EventDecoder that takes half the time where every event is `event: <name>` and `data: <line>`."""

    __slots__ = ()

    def make_event(self, raw: bytes) -> Event:
        # Before the first event a byte order mark may come; a carriage return may end any line.
        if self.has_begun and not self.has_cr and raw.startswith(_NAME):
            end = raw.find(b"\n")
            if raw.startswith(_DATA, end + 1) and raw.find(b"\n", end + 1) == len(raw) - 2:
                return Event(
                    raw, raw[end + 1 + len(_DATA) : -2], raw[len(_NAME) : end].decode("utf-8", "replace")
                )
        return super().make_event(raw)
