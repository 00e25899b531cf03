"""Recognises the events of a stream that differ in their text alone, so that they need not be parsed.

Nearly all events of a stream are a word or two between bytes that are the same in all of them: id, model, time. If an
event has the same bytes around its text, it has the same fields.
"""

from __future__ import annotations

import re

from msgspec import Struct

from adapters.types import Json
from gateway.core.turn.json_pieces import REPLACED_FIELDS

# What comes before the text in an event.
_TEXT_BEGINNING = re.compile(rb'"content":\s?"')
# The field with which OpenAI pads all events to the same length.
_PADDING = b',"obfuscation":"'


class TextEventForm(Struct, frozen=True):
    """The form of events that differ in their text alone: the bytes that surround the text."""

    # The bytes before the text.
    before: bytes
    # The characters between the text and the padding; None: the events have no padding.
    between: str | None
    # The bytes after the text, or after the padding.
    end: bytes

    @classmethod
    def of(cls, raw: bytes, chunk: Json) -> TextEventForm | None:
        """Returns the form of a parsed event; None: an event of that form may do more than add text to the reply.

        raw: the bytes of the event.
        chunk: the parsed data of the event.
        """
        text = (_find_only_text(chunk) or "").encode()
        text_beginnings = [*_TEXT_BEGINNING.finditer(raw)] if text else []
        if len(text_beginnings) != 1:
            return None
        text_start = text_beginnings[0].end()
        if not raw.startswith(text + b'"', text_start):  # it has escaped characters
            return None
        before, end = raw[:text_start], raw[text_start + len(text) :]
        between, padding_mark, ending = end.partition(_PADDING)
        if not padding_mark:
            return cls(before, None, end)
        return cls(before, (between + padding_mark).decode("utf-8", "replace"), ending[ending.find(b'"') :])

    def find_text(self, raw: bytes) -> str | None:
        """Returns the text of an event of this form; None: the event may have another form and has to be parsed."""
        if not (raw.startswith(self.before) and raw.endswith(self.end, len(self.before))):
            return None
        try:
            text, padding = raw[len(self.before) : -len(self.end)].decode(), ""
        except UnicodeDecodeError:
            return None
        if self.between is not None:
            text, mark, padding = text.partition(self.between)
            if not mark:
                return None
        characters = text + padding
        # A string ends at a quotation mark, and has no bare control characters. Few texts have other characters that
        # are not printable.
        is_string = '"' not in characters and "\\" not in characters and characters.isprintable()
        return text if is_string else None


def _find_only_text(chunk: Json) -> str | None:
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
