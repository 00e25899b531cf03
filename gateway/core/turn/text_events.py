"""Recognises the events of a stream that differ in their text alone, so that they need not be parsed.

Nearly all events of a stream are a word or two between bytes that are the same in all of them: id, model, time. If an
event has the same bytes around its text, it has the same fields.
"""

from __future__ import annotations

import re

from msgspec import Struct

from adapters.types import Json
from gateway.core.turn.json_pieces import REPLACED_FIELDS

_CONTENT = re.compile(rb'"content":\s?"')
# A JSON string up to its end or its first escape. Events with escapes are parsed.
_CHARACTERS = re.compile(rb'[^"\\\x00-\x1f]*')
# The field with which OpenAI pads all events to the same length.
_PADDING = b',"obfuscation":"'


class TextEvents(Struct, frozen=True):
    """The bytes that surround the text in events of one form, taken from an event that was parsed."""

    # The bytes before the text.
    before: bytes
    # The bytes after the text, up to the padding or the end.
    after: bytes
    # The bytes after the padding; None: there is no padding.
    end: bytes | None

    @classmethod
    def like(cls, raw: bytes, chunk: Json) -> TextEvents | None:
        """Returns the form of an event, or None if an event of that form may do more than add text to the reply.

        raw: the bytes of the event.
        chunk: its parsed data.
        """
        text = (_only_text(chunk) or "").encode()
        marks = [*_CONTENT.finditer(raw)] if text else []
        if len(marks) != 1:
            return None
        text_start = marks[0].end()
        if not raw.startswith(text + b'"', text_start):  # it has escaped characters
            return None
        after, padding, ending = raw[text_start + len(text) :].partition(_PADDING)
        return cls(raw[:text_start], after + padding, ending[ending.find(b'"') :] if padding else None)

    def text_of(self, raw: bytes) -> str | None:
        """Returns the text of an event of this form; None: the event has another form and has to be parsed."""
        if not raw.startswith(self.before):
            return None
        text_start = len(self.before)
        text_end = end = _end_of_string(raw, text_start)
        after = self.after
        if self.end is not None:
            if not raw.startswith(after, end):
                return None
            after, end = self.end, _end_of_string(raw, end + len(after))
        if raw[end:] != after:
            return None
        try:
            return raw[text_start:text_end].decode()
        except UnicodeDecodeError:
            return None


def _end_of_string(raw: bytes, start: int) -> int:
    """Returns where a string that begins at `start` ends, if it has no escapes."""
    characters = _CHARACTERS.match(raw, start)
    return start if characters is None else characters.end()


def _only_text(chunk: Json) -> str | None:
    """Returns the text of a chunk that has nothing else of use (usage, an end, a piece of a call), or None."""
    choices = chunk.get("choices")
    if chunk.get("usage") is not None or not isinstance(choices, list) or len(choices) != 1:
        return None
    choice = choices[0]
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict) or choice.get("index") or choice.get("finish_reason"):
        return None
    text = delta.get("content")
    if [key for key, value in delta.items() if value and key != "content" and key not in REPLACED_FIELDS]:
        return None
    return text if isinstance(text, str) else None
