"""Recognises the events of a stream that differ in their text alone, so that each need not be parsed.

Nearly all events of a stream have a word or two between bytes that are the same in all events: id, model, time. If
these bytes are the same, the bytes between them are the text, and no field needs to be looked at.
"""

from __future__ import annotations

import re

from msgspec import Struct

from adapters.types import Json
from gateway.core.turn.json_pieces import REPLACED_FIELDS

_CONTENT = re.compile(rb'"content":\s?"')
# A JSON string up to its end, or to an escaped character. Events with one are parsed.
_CHARACTERS = re.compile(rb'[^"\\\x00-\x1f]*')
# Characters of no meaning with which OpenAI brings all events to the same length.
_PADDING = b',"obfuscation":"'


class TextEvents(Struct, frozen=True):
    """The form of events like one that was parsed."""

    # The bytes before the text.
    before: bytes
    # The bytes after the text, up to the padding or the end.
    after: bytes
    # The bytes after the padding; None: there is no padding.
    end: bytes | None

    @classmethod
    def like(cls, raw: bytes, chunk: Json) -> TextEvents | None:
        """Returns the form of an event, if each event of that form adds its text to the reply and does nothing else.

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
        """Returns the text of an event of this form; None where the event has another form and has to be parsed."""
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
    """Returns where a string without escapes ends that begins at `start`."""
    characters = _CHARACTERS.match(raw, start)
    return start if characters is None else characters.end()


def _only_text(chunk: Json) -> str | None:
    """Returns the text of a chunk that has nothing else of use: no usage, no end, no piece of a call."""
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
