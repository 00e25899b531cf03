"""Removes the usage from a stream if the gateway has asked for it and the client has not.

An upstream that is asked for `stream_options.include_usage` adds a last chunk with usage alone, and `"usage": null` to
each other chunk. (platform.openai.com/docs/api-reference/chat/create)
"""

from __future__ import annotations

import re
from typing import Final

from adapters.types import Json
from gateway.core.json_object import parse_object

# Successive lines, and the blank line that makes an event of them. Lines that make no event are also skipped at once.
_EVENT: Final = re.compile(rb"(?:[^\r\n]++(?:\r\n|\n|\r|\Z))++(\r\n|\n)?")
# In JSON text a quotation mark inside a string is escaped, so these bytes are a field and nothing else.
_NO_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null')
# The name without which an event has no usage.
_MARK: Final = b'"usage"'


def without_null_usage(event: bytes) -> bytes:
    """Returns a copy of an event without a usage that is null; the same bytes if it has no such usage."""
    return _NO_USAGE.sub(b"", event) if _MARK in event else event


def without_usage(events: bytes) -> bytes:
    """Returns a copy of whole events without the additions that the request for the usage has caused."""
    if _MARK not in events:
        return events
    events = without_null_usage(events)
    return _EVENT.sub(lambda match: b"" if match[1] and _is_usage(match[0]) else match[0], events)


def has_usage_alone(chunk: Json) -> bool:
    """Returns whether a chunk has usage alone. LiteLLM's chunk of this kind has a choice with an empty delta."""
    if not isinstance(chunk.get("usage"), dict):
        return False
    choices = chunk.get("choices") or []
    return isinstance(choices, list) and all(
        isinstance(each, dict) and each.get("delta") == {} and not each.get("finish_reason")
        for each in choices
    )


def _is_usage(event: bytes) -> bool:
    if _MARK not in event:
        return False
    chunk = parse_object(event.partition(b"data:")[2])
    return chunk is not None and "choices" in chunk and has_usage_alone(chunk)
