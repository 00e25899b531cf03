"""Fillers: sentences before a tool runs ("Let me look."), which the reader hears and memory must not store.

They are a part of the reply, because the client sends the reply back and is recognised by it. A private field of the
reply has where in its text they stand, by which recall, summaries and learning leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from gateway.core.conversation.canonical import WireMessage, text_of
from gateway.core.conversation.private import PRIVATE, private_of, with_private
from gateway.core.thoughts import without_thoughts

Spans = list[tuple[int, int]]


def filler_message(text: str) -> WireMessage:
    """Returns a reply that is nothing but a filler."""
    return with_filler_spans({"role": "assistant", "content": text}, [(0, len(text))])


def filler_spans(message: Mapping[str, Any]) -> Spans:
    """Returns where in the text of a reply its fillers stand, in their order."""
    return [(start, end) for start, end in private_of(message).get("fillers") or ()]


def with_filler_spans(message: WireMessage, spans: Spans) -> WireMessage:
    """Returns the reply with a private field of where its fillers stand."""
    return with_private(message, fillers=[list(span) for span in spans] or None)


def without_fillers(message: WireMessage) -> WireMessage:
    """Returns the reply with what the agent had to say alone."""
    if PRIVATE not in message or not (spans := filler_spans(message)):
        return message
    text, own, at = text_of(message), "", 0
    for start, end in spans:
        own, at = _joined(own, text[at:start]), max(at, end)
    return {**message, "content": _joined(own, text[at:])}


def without_fillers_and_thoughts(message: WireMessage) -> WireMessage:
    """Returns a reply without fillers and thoughts. Other messages stay."""
    if message.get("role") != "assistant":
        return message
    bare = without_fillers(message)
    text = bare.get("content")
    own = without_thoughts(text) if isinstance(text, str) else text
    return bare if own is text else {**bare, "content": own}


def _joined(before: str, after: str) -> str:
    return before + (after if before and not before[-1].isspace() else after.lstrip())


def with_fillers_from(message: WireMessage, old: Mapping[str, Any]) -> WireMessage:
    """Returns the form in which a reply came back, with the fillers of the old one as far as it begins like that.

    White space, punctuation and case make no difference: what was spoken comes back as a transcript.
    """
    spans = filler_spans(old)
    if not spans:
        return message
    text = text_of(message)
    if text == text_of(old):  # as nearly always; each turn asks this of each reply with a hidden round
        return with_filler_spans(message, spans)
    places = [i for i, char in enumerate(text) if _is_word(char)]
    words = [(i, char) for i, char in enumerate(text_of(old)) if _is_word(char)]
    # Pairs of places of the same characters, up to the first that differ.
    same = takewhile(
        lambda pair: pair[0][1].lower() == text[pair[1]].lower(), zip(words, places, strict=False)
    )
    at = {old_place: n for n, ((old_place, _), _) in enumerate(same)}
    found: Spans = []
    for start, end in spans:
        spoken = [at[i] for i in range(start, end) if i in at]
        if spoken:
            # Punctuation after the last word belongs to it.
            next_place = spoken[-1] + 1
            stop = places[next_place] if next_place < len(places) else len(text)
            found.append((places[spoken[0]] if start else 0, len(text[:stop].rstrip())))
    return with_filler_spans(message, found)


def _is_word(char: str) -> bool:
    return char.isalnum()
