"""Fillers: sentences before a tool runs ("Let me look."), which the reader hears and memory must not store.

Fillers are a part of the stored reply, since the client sends them back with it. A private field of the reply records
where they are in its text, and recall, summaries and learning leave them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from gateway.core.conversation.private import read_private, with_private
from gateway.core.conversation.wire_message import PRIVATE, WireMessage, read_text
from gateway.core.thoughts import without_thoughts


class FillerSpan(NamedTuple):
    """A filler in the text of its reply, by its offsets."""

    # The offset of the first character.
    start: int
    # The offset after the last character.
    end: int


def make_filler_message(text: str) -> WireMessage:
    """Returns a reply that is nothing but a filler."""
    return with_filler_spans({"role": "assistant", "content": text}, [FillerSpan(0, len(text))])


def read_filler_spans(message: Mapping[str, Any]) -> list[FillerSpan]:
    """Returns the spans of a reply's fillers in their order, from its private field."""
    return [FillerSpan(start, end) for start, end in read_private(message).get("fillers") or ()]


def with_filler_spans(message: WireMessage, spans: Iterable[FillerSpan]) -> WireMessage:
    """Returns a copy of the reply with a private field that has the spans of its fillers."""
    return with_private(message, fillers=[list(span) for span in spans] or None)


def without_fillers(message: WireMessage) -> WireMessage:
    """Returns a copy of the reply without its fillers; the same message if it has no fillers."""
    if PRIVATE not in message or not (spans := read_filler_spans(message)):
        return message
    text = read_text(message)
    text_before = ""
    position = 0
    for start, end in spans:
        text_before = _join_around(text_before, text[position:start])
        position = max(position, end)
    return {**message, "content": _join_around(text_before, text[position:])}


def without_fillers_and_thoughts(message: WireMessage) -> WireMessage:
    """Returns a copy of a reply without fillers and thoughts. Another message is returned as it is."""
    if message.get("role") != "assistant":
        return message
    visible_message = without_fillers(message)
    text = visible_message.get("content")
    content = without_thoughts(text) if isinstance(text, str) else text
    return visible_message if content is text else {**visible_message, "content": content}


def with_fillers_of(message: WireMessage, stored_message: Mapping[str, Any]) -> WireMessage:
    """Returns the client's reply with the fillers of the stored reply, as far as both texts agree.

    White space, punctuation and case make no difference: a spoken reply comes back as a transcript.
    """
    spans = read_filler_spans(stored_message)
    if not spans:
        return message
    text, stored_text = read_text(message), read_text(stored_message)
    if text == stored_text:  # as nearly always; each turn asks this of each reply with a hidden round
        return with_filler_spans(message, spans)
    # Offsets of the letters and digits of both texts.
    offsets = [i for i, char in enumerate(text) if char.isalnum()]
    stored_offsets = [i for i, char in enumerate(stored_text) if char.isalnum()]
    pairs = takewhile(
        lambda pair: stored_text[pair[0]].lower() == text[pair[1]].lower(),
        zip(stored_offsets, offsets, strict=False),
    )
    # The indices in `offsets` by the offsets in the stored text, up to the first characters that differ.
    letter_indices = {stored_offset: n for n, (stored_offset, _) in enumerate(pairs)}
    message_spans: list[FillerSpan] = []
    for start, end in spans:
        filler_letters = [letter_indices[i] for i in range(start, end) if i in letter_indices]
        if filler_letters:
            # The filler reaches to the next letter, so that the punctuation after its last word belongs to it.
            next_letter = filler_letters[-1] + 1
            text_end = offsets[next_letter] if next_letter < len(offsets) else len(text)
            first_offset = offsets[filler_letters[0]] if start else 0
            message_spans.append(FillerSpan(first_offset, len(text[:text_end].rstrip())))
    return with_filler_spans(message, message_spans)


def _join_around(before: str, after: str) -> str:
    """Joins the texts around a filler, with no white space at the beginning, and not twice between the texts."""
    return before + (after if before and not before[-1].isspace() else after.lstrip())
