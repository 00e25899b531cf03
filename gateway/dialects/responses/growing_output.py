"""The output of a response as it grows: the deltas of a chat completion become items, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from adapters.token_counts import read_token_count
from adapters.types import Json
from gateway.core.conversation.provider_fields import THOUGHT_FIELDS
from gateway.core.conversation.wire_message import read_text
from gateway.core.lenient import as_list, as_object, as_text
from gateway.core.turn.draft import MessageDraft
from gateway.dialects.event_stream import EventSender
from gateway.dialects.responses.growing_response import GrowingResponse
from gateway.dialects.responses.output import (
    CallItem,
    Item,
    MessageItem,
    SearchItem,
    ThoughtsItem,
)

_CLAUDE_SEARCH: Final = ("server_tool_use", "web_search")
_Item = TypeVar("_Item", bound=Item)


class GrowingOutput:
    """The items of one response, in the order in which they begin."""

    def __init__(self, response: GrowingResponse) -> None:
        """Initialises without items. response: the response with this output, which begins with the first item."""
        self._response = response
        self._items: list[Item] = []
        # The item of text or thoughts that is growing.
        self._open_item: Item | None = None
        # Puts the pieces of the client's calls together. Each call of the draft has a call item at the same index.
        self._draft = MessageDraft()
        self._call_items: list[CallItem] = []

    def add_text(self, text: str, logprobs: list[Any]) -> None:
        """Adds a piece of the text."""
        self._open_item_of(MessageItem).add(text, logprobs)

    def add_thought(self, text: str) -> None:
        """Adds a piece of the thoughts."""
        self._open_item_of(ThoughtsItem).add({"reasoning_content": text})

    def add_delta(self, delta: Json, logprobs: list[Any]) -> None:
        """Adds all that a delta of the first choice has."""
        if any(map(delta.get, THOUGHT_FIELDS)):
            self._open_item_of(ThoughtsItem).add(delta)
        for block in as_list(delta.get("provider_blocks")):
            self._add_search(block)
        if text := read_text(delta):
            self.add_text(text, logprobs)
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            self._open_item_of(MessageItem).refuse(refusal)
        for annotation in as_list(delta.get("annotations")):
            if isinstance(annotation, dict):
                self._open_item_of(MessageItem).annotate(
                    _flatten_annotation(annotation, self._count_chars_before())
                )
        for citation in as_list(delta.get("citations")):
            if (url_citation := _find_url_citation(citation, self._count_chars_before())) is not None:
                self._open_item_of(MessageItem).annotate(url_citation)
        for call in as_list(delta.get("tool_calls")):
            if isinstance(call, dict):
                self.add_call(call)

    def add_call(self, piece: Json) -> None:
        """Adds a piece of a call of a client's tool."""
        calls = self._draft.calls
        # The draft separates calls that an upstream sends under one index.
        call = self._draft.add_call_piece(piece)
        if len(self._call_items) < len(calls):
            self._close_item()
            make_item = partial(CallItem, call=call, forms=self._response.terms.forms)
            self._call_items.append(self._add_item(make_item))
        self._call_items[calls.index(call)].grow()

    def end(self, status: str) -> None:
        """Ends the open items. status: the status of the response."""
        self._close_item(status)
        for call_item in self._call_items:
            call_item.end(self._choose_end_status(call_item, status))

    def list_final_items(self) -> list[Json]:
        """Returns the items of an output that has ended."""
        return [item.final_json for item in self._items]

    def render_items(self, status: str) -> list[Json]:
        """Returns the items in the form that they have in a response with this status."""
        return [item.render(self._choose_end_status(item, status)) for item in self._items]

    def list_id_prefixes(self) -> list[str]:
        """Returns the `Item.id_prefix` of each item."""
        return [item.id_prefix for item in self._items]

    def read_generated_text(self) -> str:
        """Returns all that the model wrote, for a count of its tokens."""
        return "".join([item.read_generated_text() for item in self._items])

    def _add_search(self, block: Any) -> None:
        """Adds a web search that Claude made itself. block: a block; only a search's block, with the query, counts."""
        if not isinstance(block, dict) or (block.get("type"), block.get("name")) != _CLAUDE_SEARCH:
            return
        self._close_item()
        self._add_item(partial(SearchItem, query=as_text(as_object(block.get("input")).get("query"))))

    def _count_chars_before(self) -> int:
        """Returns the number of characters of the reply's text before the open item."""
        ended_messages = [
            item for item in self._items if isinstance(item, MessageItem) and item is not self._open_item
        ]
        return sum(len(item.read_generated_text()) for item in ended_messages)

    def _open_item_of(self, item_class: type[_Item]) -> _Item:
        """Returns the open item if it is of this class, or closes it and returns a new item."""
        if isinstance(self._open_item, item_class):
            return self._open_item
        self._close_item()
        item = self._add_item(item_class)
        if isinstance(item, ThoughtsItem):
            item.sealing_model = self._response.choose_sealing_model()
        self._open_item = item
        return item

    def _add_item(self, make_item: Callable[[str, int, EventSender | None], _Item]) -> _Item:
        tag = self._response.begin()
        if self._items:
            self._items[-1].begin_next()
        send_event = self._response.emit if self._response.sends_events else None
        item = make_item(tag, len(self._items), send_event)
        self._items.append(item)
        return item

    def _close_item(self, status: str = "completed") -> None:
        """Ends the open item of text or thoughts, if there is one. status: the status of the response."""
        if self._open_item is not None:
            self._open_item.end(self._choose_end_status(self._open_item, status))
            self._open_item = None

    def _choose_end_status(self, item: Item, status: str) -> str:
        """Returns the status of an item in a response with this status: only the last item can be cut."""
        is_cut = status != "completed" and item is self._items[-1] and not isinstance(item, SearchItem)
        return "incomplete" if is_cut else "completed"


def _flatten_annotation(annotation: Json, chars_before: int) -> Json:
    """Returns an annotation of a chat completion in the form of this API: with the type and the fields side by side.

    chars_before: the number of characters of the reply's text before the item.
    """
    fields = annotation.get(str(annotation.get("type")))
    flat = {"type": annotation.get("type"), **fields} if isinstance(fields, dict) else annotation
    return {**flat, **_move_span(flat, chars_before)}


def _find_url_citation(citation: Any, chars_before: int) -> Json | None:
    """Returns the annotation for a citation of Claude's; None: the citation is of no web page.

    chars_before: the number of characters of the reply's text before the item.
    """
    source = as_object(citation).get("citation")
    if not isinstance(source, dict) or not isinstance(source.get("url"), str):
        return None
    span = _move_span(citation, chars_before)
    return {"type": "url_citation", **span, "url": source["url"], "title": str(source.get("title") or "")}


def _move_span(fields: Json, chars_before: int) -> Json:
    """Returns the offsets of a span, as far as the fields have them, counted from the beginning of the item's text."""
    return {
        key: max(0, read_token_count(fields, key) - chars_before)
        for key in ("start_index", "end_index")
        if isinstance(fields.get(key), int)
    }
