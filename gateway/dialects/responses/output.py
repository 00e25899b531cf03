"""The output items of a response as they grow. Each item sends its events.

An item begins, and its parts grow by pieces. A complete part, and at last the complete item, is sent once more.
(platform.openai.com/docs/api-reference/responses-streaming)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from adapters.types import Json
from gateway.core.conversation.portable_message import INPUT_ARGUMENT
from gateway.core.conversation.provider_fields import THOUGHT_FIELDS
from gateway.core.json_object import parse_object
from gateway.core.lenient import as_object
from gateway.core.thoughts import read_thoughts
from gateway.core.turn.draft import MessageDraft
from gateway.core.turn.string_reader import StringReader
from gateway.core.turn.tool_call import FUNCTION_TYPES, ToolCall
from gateway.dialects.event_stream import EventSender
from gateway.dialects.responses.call_form import CallForm
from gateway.dialects.responses.call_items import render_call
from gateway.dialects.responses.sealed import seal

# The beginning of the id of an item with a call, by the type of the item; "fc" for all other types.
_ID_PREFIXES: Final = {
    "custom_tool_call": "ctc",
    "tool_search_call": "tsc",
    "local_shell_call": "lsh",
    "shell_call": "sh",
    "apply_patch_call": "apc",
}
# The types of items with arguments that are sent piece by piece.
_GROWING_TYPES: Final = ("function_call", "custom_tool_call")


class Item:
    """An output item of a response as it grows."""

    # The beginning of the item's id.
    id_prefix: ClassVar[str]
    # The complete item, once it has ended.
    final_json: Json

    def __init__(self, tag: str, index: int, send_event: EventSender | None) -> None:
        """Initialises an item that has not begun.

        tag: the part that all ids of the response share.
        index: the item's index in the output.
        send_event: a function that sends an event; None: the response is one JSON body, without events.
        """
        self.tag = tag
        self.index = index
        self._send_event = send_event
        # True if the item was announced.
        self._has_begun = False

    @property
    def id(self) -> str:
        """The id of the item."""
        return f"{self.id_prefix}_{self.tag}_{self.index}"

    def render(self, status: str) -> Json:
        """Returns the item as the response has it. status: "in_progress", "completed" or "incomplete"."""
        raise NotImplementedError

    def read_generated_text(self) -> str:
        """Returns all of the item that the model wrote, for a count of its tokens."""
        raise NotImplementedError

    def emit(self, event_type: str, **fields: Any) -> None:
        """Sends an event that names this item. event_type: the type of the event after `response.`."""
        if self._send_event is not None:
            self._send_event(f"response.{event_type}", item_id=self.id, output_index=self.index, **fields)

    def begin(self) -> None:
        """Announces the item, once."""
        if self._send_event is not None and not self._has_begun:
            self._has_begun = True
            item = self.render("in_progress")
            self._send_event("response.output_item.added", output_index=self.index, item=item)

    def begin_next(self) -> None:
        """Prepares for the item after this one, which begins now: clients count items as they begin."""
        self.begin()

    def end(self, status: str) -> None:
        """Ends the item, and sends it whole. status: "completed" or "incomplete"."""
        self.final_json = self.render(status)
        if self._send_event is not None:
            self._send_event("response.output_item.done", output_index=self.index, item=self.final_json)


class _Part:
    """A part of the content: a text with its annotations and logprobs, or a refusal."""

    def __init__(self, part_type: str) -> None:
        """Makes an empty part. part_type: "output_text" or "refusal"."""
        self.type = part_type
        # The pieces of the text or the refusal.
        self.pieces: list[str] = []
        # The logprobs of the text's tokens, if the upstream sends them.
        self.logprobs: list[Any] = []
        # The annotations of the text, such as citations.
        self.annotations: list[Json] = []

    @property
    def text(self) -> str:
        """The text or the refusal so far."""
        return "".join(self.pieces)

    def render(self) -> Json:
        """Returns the part as the item has it."""
        if self.type == "refusal":
            return {"type": "refusal", "refusal": self.text}
        other_fields = {"annotations": self.annotations, "logprobs": self.logprobs}
        return {"type": "output_text", "text": self.text, **other_fields}


class MessageItem(Item):
    """The text of a reply, with its annotations, or its refusal."""

    id_prefix = "msg"

    def __init__(self, tag: str, index: int, send_event: EventSender | None) -> None:
        super().__init__(tag, index, send_event)
        self._parts: list[_Part] = []
        self.begin()

    def render(self, status: str) -> Json:
        content = [part.render() for part in self._parts]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def read_generated_text(self) -> str:
        return "".join([part.text for part in self._parts])

    def add(self, text: str, logprobs: list[Any]) -> None:
        """Adds a piece of the text, and sends it."""
        part = self._open_part("output_text")
        part.pieces.append(text)
        part.logprobs += logprobs
        self.emit("output_text.delta", content_index=len(self._parts) - 1, delta=text, logprobs=logprobs)

    def refuse(self, text: str) -> None:
        """Adds a piece of a refusal, and sends it."""
        self._open_part("refusal").pieces.append(text)
        self.emit("refusal.delta", content_index=len(self._parts) - 1, delta=text)

    def annotate(self, annotation: Json) -> None:
        """Adds an annotation of the text, and sends it."""
        part = self._open_part("output_text")
        part.annotations.append(annotation)
        self.emit(
            "output_text.annotation.added",
            content_index=len(self._parts) - 1,
            annotation_index=len(part.annotations) - 1,
            annotation=annotation,
        )

    def end(self, status: str) -> None:
        self._end_part()
        super().end(status)

    def _open_part(self, part_type: str) -> _Part:
        if not self._parts or self._parts[-1].type != part_type:
            self._end_part()
            self._parts.append(_Part(part_type))
            if self._send_event is not None:
                self.emit(
                    "content_part.added", content_index=len(self._parts) - 1, part=self._parts[-1].render()
                )
        return self._parts[-1]

    def _end_part(self) -> None:
        if self._send_event is None or not self._parts:
            return
        index = len(self._parts) - 1
        part = self._parts[-1]
        if part.type == "refusal":
            self.emit("refusal.done", content_index=index, refusal=part.text)
        else:
            self.emit("output_text.done", content_index=index, text=part.text, logprobs=part.logprobs)
        self.emit("content_part.done", content_index=index, part=part.render())


class ThoughtsItem(Item):
    """The thoughts of a reply, as the summary that clients show."""

    id_prefix = "rs"

    def __init__(self, tag: str, index: int, send_event: EventSender | None) -> None:
        super().__init__(tag, index, send_event)
        # The model that makes the thoughts; None: the item has no `encrypted_content`.
        self.sealing_model: str | None = None
        self._pieces: list[str] = []
        # Puts together the thoughts as the model sends them, for `encrypted_content`.
        self._sealed_draft = MessageDraft()
        self.begin()

    def render(self, status: str) -> Json:
        text = "".join(self._pieces)
        summary = [{"type": "summary_text", "text": text}] if text else []
        item: Json = {"id": self.id, "type": "reasoning", "summary": summary, "status": status}
        fields = self._sealed_draft.make_message()
        thoughts = {key: fields[key] for key in THOUGHT_FIELDS if key in fields}
        if thoughts and self.sealing_model is not None and status != "in_progress":
            item["encrypted_content"] = seal({"model": self.sealing_model, **thoughts})
        return item

    def read_generated_text(self) -> str:
        return "".join(self._pieces)

    def add(self, delta: Json) -> None:
        """Adds a piece of the thoughts, and sends its text. delta: the delta of a chunk of a chat completion."""
        self._sealed_draft.add({key: delta[key] for key in THOUGHT_FIELDS if delta.get(key)})
        text = read_thoughts(delta)
        if not text:
            return
        if not self._pieces:
            part = {"type": "summary_text", "text": ""}
            self.emit("reasoning_summary_part.added", summary_index=0, part=part)
        self._pieces.append(text)
        self.emit("reasoning_summary_text.delta", summary_index=0, delta=text)

    def end(self, status: str) -> None:
        if self._pieces:
            text = "".join(self._pieces)
            self.emit("reasoning_summary_text.done", summary_index=0, text=text)
            part = {"type": "summary_text", "text": text}
            self.emit("reasoning_summary_part.done", summary_index=0, part=part)
        super().end(status)


class CallItem(Item):
    """A call of a client's tool.

    The item begins when the name is complete: with the first arguments, with the next item, or at the reply's end.
    It ends with the next item if its arguments are a whole object by then, or at the reply's end, since an upstream
    may send the pieces of several calls in turns.
    """

    id_prefix = "fc"

    def __init__(
        self,
        tag: str,
        index: int,
        send_event: EventSender | None,
        call: ToolCall,
        forms: Mapping[str, CallForm],
    ) -> None:
        super().__init__(tag, index, send_event)
        self._call = call
        self._forms = forms
        self._form = self._choose_form()
        self._has_ended = False
        # The number of pieces of the arguments that were sent.
        self._sent_count = 0
        # Reads the input of a custom tool from the arguments of the function that the tool became upstream.
        self._reader = StringReader((INPUT_ARGUMENT,))
        self._input_pieces: list[str] = []

    @property
    def id(self) -> str:
        return f"{_ID_PREFIXES.get(self._form.item_type, self.id_prefix)}_{self.tag}_{self.index}"

    def grow(self) -> None:
        """Reads a further piece of the call, and sends the arguments that have come."""
        # The piece may have completed the name.
        self._form = self._choose_form()
        arguments = self._call.argument_pieces
        item_type = self._form.item_type
        # The arguments of other items are objects, and a typed client reads such an item only when it is whole.
        if not any(arguments) or item_type not in _GROWING_TYPES or self._has_ended:
            return
        self.begin()
        for piece in filter(None, arguments[self._sent_count :]):
            if item_type == "function_call":
                self.emit("function_call_arguments.delta", delta=piece)
            else:
                for _, text in self._reader.feed(piece):
                    self._input_pieces.append(text)
                    self.emit("custom_tool_call_input.delta", delta=text)
        self._sent_count = len(arguments)

    def read_generated_text(self) -> str:
        if self._is_custom:
            return "".join([str(self._custom_call.get(key) or "") for key in ("name", "input")])
        return self._call.name + self._call.arguments_text

    def render(self, status: str) -> Json:
        form = self._form
        arguments = self._call.arguments_text
        text = "".join(self._input_pieces)
        if self._is_custom:
            form = CallForm("custom_tool_call", form.name, form.namespace)
            arguments = ""
            text = str(self._custom_call.get("input") or "")
        if status == "in_progress" and form.item_type in _GROWING_TYPES:
            arguments = ""
            text = ""
        call_id = self._call.id or f"call_{self.tag}_{self.index}"
        members = render_call(form, arguments, text=text)
        return {**members, "id": self.id, "call_id": call_id, "status": status}

    def begin_next(self) -> None:
        self.begin()
        # The id may come later. The item that ends has the call's id.
        if self._call.id and parse_object(self._call.arguments_text) is not None:
            self.end("completed")

    def end(self, status: str) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self.begin()
        item_type = self._form.item_type
        if item_type == "function_call":
            self.emit(
                "function_call_arguments.done", arguments=self._call.arguments_text, name=self._form.name
            )
        elif item_type == "custom_tool_call":
            text = self.render(status)["input"]
            if not self._input_pieces:
                self.emit("custom_tool_call_input.delta", delta=text)
            self.emit("custom_tool_call_input.done", input=text)
        super().end(status)

    @property
    def _is_custom(self) -> bool:
        """True if the upstream sends a call of a custom tool. Other calls are of functions."""
        return self._call.fields.get("type") not in FUNCTION_TYPES

    @property
    def _custom_call(self) -> Json:
        """The name and the input of a custom tool's call, as far as they have come."""
        return as_object(self._call.fields.get(str(self._call.fields["type"])))

    def _choose_form(self) -> CallForm:
        """Returns the form of the call as far as its name has come."""
        if self._is_custom:
            name = str(self._custom_call.get("name") or "")
            return self._forms.get(name) or CallForm("custom_tool_call", name)
        return self._forms.get(self._call.name) or CallForm("function_call", self._call.name)


class SearchItem(Item):
    """A search that the upstream made itself."""

    id_prefix = "ws"

    def __init__(self, tag: str, index: int, send_event: EventSender | None, query: str) -> None:
        super().__init__(tag, index, send_event)
        self._query = query
        self.begin()
        for state in ("in_progress", "searching", "completed"):
            self.emit(f"web_search_call.{state}")
        self.end("completed")

    def render(self, status: str) -> Json:
        action = {"type": "search", "query": self._query, "queries": [self._query]}
        return {"id": self.id, "type": "web_search_call", "status": status, "action": action}

    def read_generated_text(self) -> str:
        return self._query
