"""A reply in the input of a Responses request, put together from its items: thoughts, text, each call."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

from adapters.types import Json
from gateway.core.conversation.provider_fields import THOUGHT_FIELDS
from gateway.core.conversation.wire_message import choose_separator


class ReferencedThoughts(NamedTuple):
    """Thoughts that the client names by the id of their item."""

    # The id of the item.
    item_id: str
    # The path to the id in the request, for errors.
    param: str


class InputReply:
    """A reply made of several successive items."""

    def __init__(self) -> None:
        # True if the last item is text.
        self._ends_with_text = False
        self._texts: list[str] = []
        # The parts of the content that are no texts.
        self._parts: list[Json] = []
        self._refusals: list[str] = []
        self._calls: list[Json] = []
        # The values of the fields with thoughts, by the fields.
        self._thought_values: dict[str, list[Any]] = {}
        # The model that made the thoughts; "": the model is not known; None: the reply has no thoughts.
        self.model: str | None = None
        self.referenced_thoughts: list[ReferencedThoughts] = []

    @property
    def is_over(self) -> bool:
        """True if a text after the items so far begins the next reply. (Only results come after calls.)"""
        return self._ends_with_text and not self._calls

    def add_content(self, content: str | list[Json]) -> None:
        """Adds the content of a message: a text, or a list of parts."""
        text = content if isinstance(content, str) else self._take_parts(content)
        if self._texts:  # texts are joined like the texts of two rounds in a stored reply
            self._texts.append(choose_separator(self._texts[-1], text))
        self._texts.append(text)
        self._ends_with_text = True

    def add_call(self, call: Json) -> None:
        """Adds a call in the form of chat completions."""
        self._calls.append(call)

    def add_thoughts(self, thoughts: Json) -> None:
        """Adds the fields of a message with thoughts, and `model`, the model that made them; {}: none is known."""
        self._ends_with_text = False
        model = str(thoughts.get("model") or "") if thoughts else self.model
        if model != self.model:
            self._thought_values.clear()  # a model reads only its own thoughts
            self.model = model
        for key in THOUGHT_FIELDS:
            if thoughts.get(key) is not None:
                self._thought_values.setdefault(key, []).append(thoughts[key])

    def build_message(self) -> Json | None:
        """Returns the message; None: the reply has nothing but thoughts."""
        if not (self._texts or self._calls):
            return None
        text = "".join(self._texts)
        content: str | list[Json] = text
        if self._parts:
            content = [*self._parts]
            if text:
                content.insert(0, {"type": "text", "text": text})
        message: Json = {"role": "assistant", "content": content}
        if self._refusals:
            message["refusal"] = "".join(self._refusals)
        if not content and (self._calls or self._refusals):
            message["content"] = None
        for key, values in self._thought_values.items():
            message[key] = _join_values(values)
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def _take_parts(self, parts: list[Json]) -> str:
        """Adds the parts of a content that are no text. Returns the joined text parts."""
        texts: list[str] = []
        for part in parts:
            # A lenient reading accepts a part without a type: the upstream gets the item itself, and judges it.
            part_type = part.get("type")
            if part_type == "text":
                texts.append(part["text"])
            elif part_type == "refusal":
                self._refusals.append(part["refusal"])
            else:
                self._parts.append(part)
        return "".join(texts)


def _join_values(values: list[Any]) -> Any:
    """Returns the values of a field as one value: texts and lists are joined, else the last value counts."""
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(isinstance(value, list) for value in values):
        return [*chain.from_iterable(values)]
    return values[-1]
