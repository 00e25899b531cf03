"""The decoder of server-sent events, incremental: bytes in, whole events out.

An event is everything up to and including two line ends in a row, so that joining `Event.raw` gives the stream back
byte for byte; further blank lines begin the next event. The same bytes cut anywhere give the same events. Where the
stream ends without a blank line, the rest is an event if its data is `[DONE]` or whole JSON.
Fields are as in html.spec.whatwg.org, section 9.2.6. Three choices of this module:

- A field `error`, which an older llama.cpp writes, is the data of an event with this name.
- A blank line of "\\r" at the end of the bytes so far waits for one more byte, which may be its "\\n". Streams with
  plain "\\n", which every provider seen sends, are never held back.
- After a line that ended in a lone "\\r" the blank line is a lone "\\r" too: such streams do not wait either.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8

import orjson

from adapters.errors import ProviderTooLarge, UnfinishedEvent
from adapters.json_escapes import read_json
from adapters.types import Event

# Chosen: an image in base64 fits into one event; a line that never ends cannot fill the memory.
MAX_EVENT_BYTES = 32 * 1024 * 1024
# Chosen: far above the lines of an indented JSON body. A list of millions of lines is many times their bytes.
MAX_EVENT_LINES = 64 * 1024
# The most bytes of comments, blank lines and events without data between two events with data. Chosen: OpenRouter's
# comments of a quarter of an hour, 25 bytes ten times a second.
MAX_COMMENT_BYTES = 256 * 1024

_BLANK_LINE = re.compile(rb"(?>\r\n|\n)(?>\r\n|\n|\r)|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")
# The bytes of the longest blank line, with the end of the line before it.
_MAX_BLANK_LINE_BYTES = 4
_DATA_PREFIX = b"data: "
# An integer, since finding one in bytes takes a fifth of the time of finding bytes.
_CR = ord("\r")


class EventDecoder:
    """The decoder of one stream. Call `feed` with the bytes as they come, and `finish` when the stream ends.

    A subclass that has a faster way for its provider's events overrides `make_event`. The faster way may assume that
    there is no byte order mark once `has_begun`, and no carriage return unless `has_cr`.
    """

    __slots__ = ("_buffer", "_bytes_without_data", "_searched_to", "has_begun", "has_cr")

    def __init__(self) -> None:
        # Begins with the first byte that belongs to no event yet.
        self._buffer = bytearray()
        # The buffer has no blank line before this offset.
        self._searched_to = 0
        # The stream has a carriage return; without one a plain find is enough.
        self.has_cr = False
        # An event was made, so no byte order mark can come any more.
        self.has_begun = False
        # The number of bytes since the last event with data.
        self._bytes_without_data = 0

    def feed(self, data: bytes) -> list[Event]:
        """Returns every event that is whole now, in order; often none, often several.

        Raises: ProviderTooLarge: an event is larger than `MAX_EVENT_BYTES` or has more than `MAX_EVENT_LINES`, or there
        are more than `MAX_COMMENT_BYTES` without data.
        """
        if not self.has_cr and _CR in data:
            self.has_cr = True
        if self._buffer or self.has_cr:
            self._buffer += data
            raws = self._cut_events()
        elif self.has_begun and _is_plain(data) and data.endswith(b"\n\n"):
            # Most reads are one event of one line.
            self._bytes_without_data = 0
            return [Event(data, data[len(_DATA_PREFIX) : -2])]
        else:
            raws = self._split(data)
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise ProviderTooLarge(f"an event is larger than {MAX_EVENT_BYTES} bytes")
        events = []
        for raw in raws:
            event = self.make_event(raw)
            self._bytes_without_data = self._bytes_without_data + len(raw) if event.data is None else 0
            if self._bytes_without_data > MAX_COMMENT_BYTES:
                raise ProviderTooLarge(f"there are more than {MAX_COMMENT_BYTES} bytes between two events")
            events.append(event)
        return events

    def finish(self) -> list[Event]:
        """Returns the event that the end of the stream completes: it lacked its blank line, or is stray blank lines.

        Where the blank line after `[DONE]` or after an event of whole JSON is missing, the event counts as whole. A
        body of plain JSON with the content type of a stream counts as one event.

        Raises: UnfinishedEvent: the stream ended inside an event.
        """
        remaining = bytes(self._buffer)
        self._buffer.clear()
        self._searched_to = 0
        if not remaining:
            return []
        blank = _BLANK_LINE.search(remaining)
        if (blank is not None and blank.end() == len(remaining)) or not remaining.strip(b"\r\n"):
            return [self.make_event(remaining)]
        event = _parse_event(remaining, remaining)
        if event.data is not None and event.data.strip() == b"[DONE]":
            return [Event(remaining, b"[DONE]", event.name)]
        if event.data is not None and isinstance(read_json(event.data)[0], dict):
            return [event._replace(raw=remaining.rstrip(b"\r\n") + b"\n\n")]
        if event.data is None and isinstance(body := read_json(remaining)[0], dict):
            data = orjson.dumps(body)
            return [Event(b"data: " + data + b"\n\n", data)]
        raise UnfinishedEvent(remaining)

    def make_event(self, raw: bytes) -> Event:
        """Returns the event of these bytes, which end with a blank line."""
        if not self.has_begun:
            self.has_begun = True
            if raw.startswith(BOM_UTF8):
                return _parse_event(raw, raw[len(BOM_UTF8) :])
        if not self.has_cr and _is_plain(raw):
            return Event(raw, raw[len(_DATA_PREFIX) : -2])
        return _parse_event(raw, raw)

    def _split(self, data: bytes) -> list[bytes]:
        """Returns the bytes of each event that is whole in a read without carriage returns, where no bytes wait.

        Unlike `_cut_events` it copies only an unfinished event into the buffer.
        """
        *whole, incomplete = data.split(b"\n\n")
        if incomplete:
            self._buffer += incomplete
            self._searched_to = max(0, len(incomplete) - _MAX_BLANK_LINE_BYTES)
        return [event + b"\n\n" for event in whole]

    def _cut_events(self) -> list[bytes]:
        """Takes the whole events off the buffer; only its last few bytes are searched again."""
        buffer = self._buffer
        raws: list[bytes] = []
        event_start = 0
        search_from = self._searched_to
        if self.has_cr:
            # A blank line of "\r" at the very end is held back, see the module's docstring.
            held_end = len(buffer) if buffer.endswith(b"\r") else -1
            while (blank := _BLANK_LINE.search(buffer, search_from)) is not None:
                event_end = blank.end()
                if event_end == held_end and blank.group() != b"\r\r":
                    break
                raws.append(bytes(buffer[event_start:event_end]))
                event_start = event_end
                search_from = event_end
        else:
            while (blank_start := buffer.find(b"\n\n", search_from)) >= 0:
                event_end = blank_start + 2
                raws.append(bytes(buffer[event_start:event_end]))
                event_start = event_end
                search_from = event_end
        if event_start:
            del buffer[:event_start]
        self._searched_to = max(0, len(buffer) - _MAX_BLANK_LINE_BYTES)
        return raws


def _is_plain(raw: bytes) -> bool:
    """Returns whether an event is one line of data, as nearly all are. Such an event needs no parser."""
    return raw.startswith(_DATA_PREFIX) and raw.find(b"\n") == len(raw) - 2


def _parse_event(raw: bytes, text: bytes) -> Event:
    """Returns the event of these bytes. text: `raw` without a byte order mark. Raises: ProviderTooLarge."""
    if max(text.count(b"\n"), text.count(b"\r")) > MAX_EVENT_LINES:
        raise ProviderTooLarge(f"an event has more than {MAX_EVENT_LINES} lines")
    data_lines: list[bytes] = []
    name: str | None = None
    for line in _LINE_END.split(text):
        if not line or line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data_lines.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"error":
            data_lines.append(value)
            name = "error"
    return Event(raw, b"\n".join(data_lines) if data_lines else None, name)
