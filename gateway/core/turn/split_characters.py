"""Puts characters together that a stream has cut between the halves of their surrogate pairs.

Some servers escape all characters beyond ASCII, and cut their texts between the two escapes of one. A client that joins
the texts has the character, so memory must have it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from adapters.json_escapes import REPLACEMENT, join_halves, read_json_with_halves
from adapters.types import Json
from gateway.core.lenient import as_list, as_object

# The beginning of the name of a call's arguments in a `_TextKey`.
_CALL = "call "


class _TextKey(NamedTuple):
    """The key of a text of a reply."""

    # The index of the text's choice.
    choice_index: str
    # The name of the text's field, or `_CALL` with the index of its call.
    name: str


class _FoundText(NamedTuple):
    """A text in a chunk."""

    # The key of the text among the reply's texts.
    key: _TextKey
    # The object that has the text.
    fields: Json
    # The name of the text in that object.
    name: str


class SplitCharacters:
    """The first halves in the texts of a reply that wait for their second halves."""

    def __init__(self) -> None:
        # The half with which each text ends so far.
        self._halves: dict[_TextKey, str] = {}

    @property
    def is_waiting(self) -> bool:
        return bool(self._halves)

    def join(self, chunk: Json, data: bytes) -> None:
        """Moves a first half at the end of a text to the next piece of that text. Any other half becomes U+FFFD.

        chunk: a chunk of the reply, which is changed.
        data: the JSON of the chunk.
        """
        # The texts are paired by their order: some servers number no calls, so that two texts may have one key.
        texts_with_halves = _find_texts(read_json_with_halves(data))
        for found_text, with_halves in zip(_find_texts(chunk), texts_with_halves, strict=False):
            text = self._halves.pop(found_text.key, "") + with_halves.fields[found_text.name]
            if "\ud800" <= text[-1:] < "\udc00":
                self._halves[found_text.key], text = text[-1], text[:-1]
            found_text.fields[found_text.name] = join_halves(text)
        for choice in _read_choices(chunk):
            if choice.get("finish_reason"):
                self._end_texts(choice)

    def end(self) -> Json:
        """Ends a reply without a finish_reason. Returns the delta with which the texts of its first choice end."""
        delta: Json = {}
        self._end_texts({"index": 0, "delta": delta})
        self._end_texts({"delta": delta})  # some servers number no choices
        self._halves.clear()
        return delta

    def _end_texts(self, choice: Json) -> None:
        """Replaces the halves in the texts of a choice, which has ended. A half in the arguments of a call is lost."""
        delta = choice.get("delta")
        index = str(choice.get("index"))
        for key in [key for key in self._halves if key.choice_index == index]:
            del self._halves[key]
            if isinstance(delta, dict) and not key.name.startswith(_CALL):
                text = delta.get(key.name) or ""
                if isinstance(text, str):  # some servers end with a list of parts
                    delta[key.name] = text + REPLACEMENT


def _read_choices(chunk: Any) -> list[Json]:
    return [each for each in as_list(as_object(chunk).get("choices")) if isinstance(each, dict)]


def _find_texts(chunk: Any) -> Iterator[_FoundText]:
    """Yields each text in the deltas of a chunk."""
    for choice in _read_choices(chunk):
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        index = str(choice.get("index"))
        for name, value in delta.items():
            if isinstance(value, str):
                yield _FoundText(_TextKey(index, name), delta, name)
        for call in as_list(delta.get("tool_calls")):
            function = as_object(as_object(call).get("function"))
            if isinstance(function.get("arguments"), str):
                key = _TextKey(index, f"{_CALL}{call.get('index')}")
                yield _FoundText(key, function, "arguments")
