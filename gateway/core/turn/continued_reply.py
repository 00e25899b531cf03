"""Changes the later rounds of a turn so that they continue the one reply in which the client gets all rounds.

Thoughts get a separator, and spans of the text (annotations, citations) their place in the text of all rounds. The
message that goes upstream again stays as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from adapters.types import Json
from gateway.core.conversation.wire_message import choose_separator, read_text
from gateway.core.lenient import as_list, as_object
from gateway.core.thoughts import read_thoughts, separate_thoughts
from gateway.core.turn.chunks import is_first_choice

# The fields with spans of a reply's text: of OpenAI's search models and OpenRouter, and of adapters/claude.
SPAN_FIELDS: Final = ("annotations", "citations")
_OFFSET_FIELDS: Final = ("start_index", "end_index")


def continue_spans(spans: list[Any], first_index: int, offset: int) -> list[Any]:
    """Returns the spans of a text as the spans of a longer text, numbered.

    OpenAI's SDK for Python reads the index: it puts a list that comes in several chunks together by it.

    first_index: the number of spans before.
    offset: the characters of the longer text before the text.
    """
    return [
        {**_move_span(span, offset), "index": index} if isinstance(span, dict) else span
        for index, span in enumerate(spans, first_index)
    ]


def _move_span(span: Json, offset: int) -> Json:
    """Returns a span at its place. An annotation has its offsets in an object, under the name of its type."""
    moved = _move_offsets(span, offset)
    fields = span.get(str(span.get("type")))
    if isinstance(fields, dict):
        moved[span["type"]] = _move_offsets(fields, offset)
    return moved


def _move_offsets(fields: Json, offset: int) -> Json:
    moved = {key: fields[key] + offset for key in _OFFSET_FIELDS if isinstance(fields.get(key), int)}
    return {**fields, **moved}


class ContinuedReply:
    """The reply of the rounds before, which the chunks of one round continue."""

    def __init__(self, reply: Json, *, separates_thoughts: bool) -> None:
        """Initialises without chunks.

        reply: the replies of the rounds before, as one message.
        separates_thoughts: True if the client gets the thoughts of all rounds as one text.
        """
        self._text = read_text(reply)
        # True: the first thoughts need a separator.
        self._follows_thoughts = separates_thoughts and bool(read_thoughts(reply))
        # The number of spans so far, by their field.
        self._span_counts = {key: len(as_list(reply.get(key))) for key in SPAN_FIELDS}

    def change_chunk(self, chunk: Json, join_text: Callable[[], str]) -> bool:
        """Changes the deltas of a chunk, and returns whether any was changed.

        join_text: a function that returns the text of the round so far, which takes time in a long round.
        """
        is_changed = False
        for choice in filter(is_first_choice, as_list(chunk.get("choices"))):
            is_changed |= self._change_delta(as_object(choice.get("delta")), join_text)
        return is_changed

    def _change_delta(self, delta: Json, join_text: Callable[[], str]) -> bool:
        is_changed = False
        if self._follows_thoughts and separate_thoughts(delta):
            self._follows_thoughts = False
            is_changed = True
        for key in SPAN_FIELDS:
            spans = as_list(delta.get(key))
            if spans and (self._text or self._span_counts[key]):
                offset = len(self._text) + len(choose_separator(self._text, join_text()))
                delta[key] = continue_spans(spans, self._span_counts[key], offset)
                self._span_counts[key] += len(spans)
                is_changed = True
        return is_changed
