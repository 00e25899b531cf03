"""Puts characters together that a stream has cut between the halves of their surrogate pairs.

Some servers escape all characters beyond ASCII, and cut their texts between the two escapes of one. A client that joins
the texts has the character, so memory must have it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapters.json_escapes import REPLACEMENT, join_halves, read_json_with_halves
from adapters.types import Json
from gateway.core.lenient import as_list, as_object

# A text of a reply: the index of its choice, and its name or the index of its call.
_TextKey = tuple[str, str]
_CALL = "call "


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
        # Paired by their order: some servers number no calls, so that two texts may have one key.
        texts_with_halves = _find_texts(read_json_with_halves(data))
        for (text_key, fields, name), (_, fields_with_halves, _) in zip(
            _find_texts(chunk), texts_with_halves, strict=False
        ):
            text = self._halves.pop(text_key, "") + fields_with_halves[name]
            if "\ud800" <= text[-1:] < "\udc00":
                self._halves[text_key], text = text[-1], text[:-1]
            fields[name] = join_halves(text)
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
        ended = [text_key for text_key in self._halves if text_key[0] == str(choice.get("index"))]
        for text_key in ended:
            del self._halves[text_key]
            name = text_key[1]
            if isinstance(delta, dict) and not name.startswith(_CALL):
                text = delta.get(name) or ""
                if isinstance(text, str):  # some servers end with a list of parts
                    delta[name] = text + REPLACEMENT


def _read_choices(chunk: Any) -> list[Json]:
    return [each for each in as_list(as_object(chunk).get("choices")) if isinstance(each, dict)]


def _find_texts(chunk: Any) -> Iterator[tuple[_TextKey, Json, str]]:
    """Yields each text in the deltas of a chunk: its key, the object that has it, and its name there."""
    for choice in _read_choices(chunk):
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        index = str(choice.get("index"))
        for name, value in delta.items():
            if isinstance(value, str):
                yield (index, name), delta, name
        for call in as_list(delta.get("tool_calls")):
            function = as_object(as_object(call).get("function"))
            if isinstance(function.get("arguments"), str):
                yield (index, f"{_CALL}{call.get('index')}"), function, "arguments"
