"""Takes the usage out of a stream for a client that has not asked for it, where the gateway has.

An upstream that is asked for `stream_options.include_usage` adds a last chunk without choices, and `"usage": null` to
each other one. (platform.openai.com/docs/api-reference/chat/create)
"""

from __future__ import annotations

import re
from typing import Final

import orjson

# Lines in a row, and the blank one that makes an event of them. What is none is passed over in one go as well.
_EVENT: Final = re.compile(rb"(?:[^\r\n]++(?:\r\n|\n|\r|\Z))++(\r\n|\n)?")
# In JSON text a quotation mark inside a string is escaped, so these bytes are a field and nothing else.
_NO_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null')
_MARK: Final = b'"usage"'


def without_null_usage(event: bytes) -> bytes:
    """Returns an event without a usage that is null."""
    return _NO_USAGE.sub(b"", event) if _MARK in event else event


def without_usage(events: bytes) -> bytes:
    """Returns events, each of them whole, without what asking for the usage has added."""
    if _MARK not in events:
        return events
    events = without_null_usage(events)
    return _EVENT.sub(lambda found: b"" if found[1] and _is_usage(found[0]) else found[0], events)


def _is_usage(event: bytes) -> bool:
    """Returns whether an event is the last chunk, with the usage and without choices."""
    if _MARK not in event:
        return False
    try:
        chunk = orjson.loads(event.partition(b"data:")[2])
    except orjson.JSONDecodeError:
        return False
    return isinstance(chunk, dict) and isinstance(chunk.get("usage"), dict) and chunk.get("choices") == []
