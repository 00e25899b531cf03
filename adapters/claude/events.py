"""Anthropic's server-sent events, each of which has a name and one line of data."""

from __future__ import annotations

import re
from typing import Final

from adapters.json_escapes import read_json
from adapters.sse import EventDecoder
from adapters.types import Event

_NAME = b"event: "
_DATA = b"data: "
_NAME_LINE: Final = re.compile(rb"event: ?\w+\r?\n")


def with_name_first(event: Event) -> Event:
    """Returns an event that begins with its name, as Anthropic's events do; the same event if it does already.

    Proxies write other lines before the name (comments, `id`, `retry`), which are left out, end lines with carriage
    returns alone, or leave the name to the `type` of the data. An event without data stays as it is.
    """
    if event.data is None or _NAME_LINE.match(event.raw):
        return event
    event_json = read_json(event.data)[0]
    name = event.name or (event_json.get("type") if isinstance(event_json, dict) else None)
    if not isinstance(name, str):
        return event
    lines = b"".join(b"data: %b\n" % line for line in event.data.split(b"\n"))
    return Event(b"event: %b\n%b\n" % (name.encode(), lines), event.data, name)


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
